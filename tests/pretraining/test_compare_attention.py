"""The comparison of attentions, on a corpus of some lines."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from pretraining.compare_attention import README, RESULTS, CompareAttention, main, table, train
from pretraining.prepare_data import PrepareData
from pretraining.prepare_data import main as prepare
from pretraining.pretrain_simple import PretrainSimple
from pretraining.pretrain_simple import main as pretrain
from utils.readme_tables import with_block
from working_with_text_data.bytepair_enc import BytePairTokenizer


def test_every_variant_is_equally_large_and_the_table_is_made_of_the_figures(tmp_path, capsys):
    text = tmp_path / "text"
    text.mkdir()
    for i in range(8):
        lines = [f"line {n} of document {i}: attention gathers what it needs." for n in range(30)]
        (text / f"{i}.txt").write_text("\n".join(lines))
    BytePairTokenizer.train([p.read_text() for p in text.iterdir()], 300).save(tmp_path / "tokenizer.json")
    prepare(PrepareData(corpus=str(text), tokenizer=tmp_path / "tokenizer.json", out=tmp_path / "tokens"))
    shape: dict[str, Any] = {"n_layer": 2, "n_head": 4, "d_model": 64, "context_length": 16, "batch_size": 2}
    base: dict[str, Any] = {**shape, "steps": 2, "max_minutes": 0, "evaluations": 1, "device": "cpu"}
    pretrain(PretrainSimple(data=tmp_path / "tokens", run=tmp_path / "base", **base))
    readme = tmp_path / "README.md"
    readme.write_text("<!-- quality:begin -->\n<!-- quality:end -->\n")
    options: dict[str, Any] = {"out": tmp_path / "quality.json", "readme": readme}
    flags = CompareAttention(
        data=tmp_path / "tokens",
        base=tmp_path / "base" / "model",
        runs=tmp_path / "runs",
        steps=2,
        healing_steps=2,
        window=4,
        device="cpu",
        **options,
        **shape,
    )
    main(flags)
    results = json.loads((tmp_path / "quality.json").read_text())
    sizes = [run["parameters"] for r in results["from_nothing"] for run in r["runs"]]
    assert len(sizes) == 10  # each kind with two seeds
    assert max(sizes) - min(sizes) <= 2 * (2 * 64 + 1)  # a column of the MLPs
    assert len(results["converted"]) == 3
    once = readme.read_text()
    runs = [run for r in results["from_nothing"] + results["converted"] for run in r["runs"]]
    assert all(f"{run['validation_loss']:.3f}" in once for run in runs)
    for result in results["from_nothing"]:
        first, second = (run["validation_loss"] for run in result["runs"])
        assert first != second
        assert f"{(first + second) / 2:.3f} (" in once
    assert [run["rate"] for run in results["converted"][0]["runs"]] == [0.01, 0.002, 0.0005]
    readme.write_text("<!-- quality:begin -->\n<!-- quality:end -->\n")
    main(CompareAttention(report_only=True, **options))
    assert readme.read_text() == once


def test_what_is_whole_is_not_trained_again(tmp_path, monkeypatch):
    trained: list[PretrainSimple] = []
    monkeypatch.setattr("pretraining.compare_attention.pretrain", trained.append)
    options = PretrainSimple(run=tmp_path / "run")
    (tmp_path / "run").mkdir()
    train(options)
    train(options)
    train(replace(options, seed=1))  # another run: the folder says that of the last one only
    assert [run.seed for run in trained] == [0, 1]


def test_the_readme_says_what_was_measured():
    text = README.read_text(encoding="utf-8")
    assert with_block(text, "quality", table(json.loads(RESULTS.read_text(encoding="utf-8")))) == text
