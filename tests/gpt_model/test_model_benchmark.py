"""The benchmark of whole models runs, keeps its figures, makes its tables of them; nothing is timed that is wrong."""

from __future__ import annotations

import json

import pytest
import torch

from gpt_model import GPT, GPTConfig
from gpt_model.benchmark import Benchmark, kinds, main, require_correct, size_table, tables
from tests.conftest import assert_one_clear_line
from utils.errors import UserError
from utils.readme_tables import with_block
from utils.tracking import REPOSITORY

SCRIPT = "gpt_model/benchmark.py"
MARKERS = "before\n<!-- models:begin -->\n<!-- models:end -->\nafter\n"


def test_it_measures_writes_and_reports_again(run, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(MARKERS, encoding="utf-8")
    flags = ["--out", tmp_path, "--readme", readme, "--device", "cpu", "--batch-size", 2]
    done = run(SCRIPT, *flags, "--quick")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    names = list(kinds(Benchmark(quick=True)))
    assert sorted((row["task"], row["dtype"], row["context"]) for row in report["results"]) == [
        (task, dtype, context)
        for task in ("decode", "prefill")
        for dtype in ("bfloat16", "float32")
        for context in (32, 64)
    ]
    for row in report["results"]:
        assert list(row["seconds"]) == names
        assert all(len(runs) == 3 and min(runs) > 0 for runs in row["seconds"].values())
        if row["task"] == "decode":
            assert row["cache_bytes"] == row["formula_bytes"]
            number = 2 if row["dtype"] == "bfloat16" else 4
            assert row["cache_bytes"]["multi-head"] == 2 * (2 * 768) * row["context"] * number  # batch · (keys, values)
    assert {"commit", "versions", "machine", "command"} <= report.keys()
    assert report["compiled"] is False

    text = readme.read_text(encoding="utf-8")
    assert text == MARKERS.replace("begin -->\n", f"begin -->\n{tables(report)}\n")
    for words in ("batch 2", "| decode, float32, ms | 32 | 64 |", "| prefill, bfloat16, ms | 32 | 64 | 32 → 64 |"):
        assert words in text
    picture = tmp_path / "benchmark.png"
    assert picture.read_bytes().startswith(b"\x89PNG")

    readme.write_text(MARKERS, encoding="utf-8")
    picture.unlink()
    done = run(SCRIPT, *flags, "--report-only")
    assert done.returncode == 0, done.stderr
    assert readme.read_text(encoding="utf-8") == text
    assert picture.is_file()


def test_mistakes_are_one_clear_line(run, tmp_path):
    (tmp_path / "README.md").write_text("no place for tables\n", encoding="utf-8")
    done = run(SCRIPT, "--quick", "--out", tmp_path, "--readme", tmp_path / "README.md")
    assert_one_clear_line(done, "<!-- models:begin -->")
    assert_one_clear_line(run(SCRIPT, "--report-only", "--out", tmp_path), "benchmark.json")
    assert_one_clear_line(run(SCRIPT, "--batch-size", 0, "--out", tmp_path), "--batch-size 0 must be at least 1")


def test_the_cache_outweighs_the_weights_where_the_table_says():
    def row(context, growing, still):
        cache = {"growing": growing, "still": still}
        seconds = {name: [1.0] for name in cache}
        return {
            "task": "decode",
            "dtype": "bfloat16",
            "context": context,
            "seconds": seconds,
            "cache_bytes": cache,
            "formula_bytes": cache,
        }

    # A constant of 1,000 bytes and 10 a token, against 2 · 3,000 bytes of weights: at 500 tokens.
    report = {
        "shape": {"batch_size": 1},
        "parameters": {"growing": 3000, "still": 3000},
        "results": [row(100, 2000, 64), row(200, 3000, 64)],
    }
    lines = size_table(report).splitlines()
    assert lines[2] == "| growing | 3,000 | 15 | 15 | 0.003 | 1.00× | 500 tokens |"
    assert lines[3].endswith("| 46.88× | never |")


def test_nothing_is_measured_that_differs():
    class Forgetful(GPT):
        def hidden_states(self, ids, cache=None, documents=None, positions=None):
            hidden = super().hidden_states(ids, cache, documents, positions)
            return hidden if cache is None else hidden * 1.01

    torch.manual_seed(0)
    config = GPTConfig(vocab_size=64, context_length=16, n_layer=1, n_head=2, d_model=16)
    require_correct("right", GPT(config), 16, "float32")
    with pytest.raises(UserError, match=r"wrong in float32 is .* away from a pass without a cache"):
        require_correct("wrong", Forgetful(config), 16, "float32")


def test_a_try_does_not_replace_what_was_measured(monkeypatch, tmp_path):
    monkeypatch.setattr("utils.context_benchmark.REPOSITORY", tmp_path)
    (tmp_path / "runs" / "quick" / "gpt_model").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"quick.gpt_model.benchmark\.json"):
        main(Benchmark(quick=True, report_only=True))


def test_the_readme_says_what_was_measured():
    folder = REPOSITORY / "gpt_model"
    report = json.loads((folder / "results" / "benchmark.json").read_text(encoding="utf-8"))
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert with_block(text, "models", tables(report)) == text
