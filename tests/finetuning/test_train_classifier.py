"""From reviews to a measured classifier: what learns, killed and resumed, on two ranks, beside its baselines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetuning.classification.classifier import load_classifier, predict_logits
from finetuning.classification.compare_classifiers import README, RESULTS, CompareClassifiers, main, run_one, table
from finetuning.classification.labelled import DataOptions, read_labelled
from finetuning.classification.metrics import report
from finetuning.classification.synthetic import synthetic_reviews
from finetuning.classification.train_baselines import train_baselines
from finetuning.classification.train_classifier import (
    Classification,
    TrainClassifier,
    make_classifier,
    train_and_measure,
)
from finetuning.lora import load_adapter
from finetuning.tuning import Tuning, is_unfinished
from gpt_model import GPT, GPTConfig, load_model
from pretraining.distributed import Ranks
from tests.conftest import ROOT, assert_one_clear_line
from utils.errors import UserError
from utils.files import write_json
from utils.readme_tables import read_results, with_block
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.token_shards import IGNORE

SCRIPT = "finetuning/classification/train_classifier.py"
ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model folder whose weights are random."""
    tokenizer = BytePairTokenizer.train([text for text, _ in synthetic_reviews(300)], 400)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base") / "model"
    config = GPTConfig(vocab_size=tokenizer.n_vocab, context_length=64, n_layer=2, n_head=2, d_model=32)
    GPT(config).save_pretrained(folder, tokenizer)
    return folder


def options(base, run, **more: Any) -> TrainClassifier:
    small: dict[str, Any] = {"train_limit": 160, "test_limit": 40, "eval_texts": 40, "epochs": 2.0, "batch_size": 8}
    return TrainClassifier(model=str(base), run=Path(run), learning_rate=3e-3, device="cpu", **(small | more))


def flags(o):
    return [
        str(x)
        for x in (
            *("--model", o.model, "--run", o.run, "--train-limit", o.train_limit, "--test-limit", o.test_limit),
            *("--eval-texts", o.eval_texts, "--epochs", o.epochs, "--batch-size", o.batch_size),
            *("--learning-rate", o.learning_rate, "--device", "cpu", "--checkpoint-every", o.checkpoint_every),
        )
    ]


def measured(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "minutes")} for row in rows]


def test_from_texts_to_a_measured_folder(base, tmp_path, capsys):
    o = options(base, tmp_path / "run", train_limit=None, epochs=4.0, test_limit=None)
    ending, figures = train_and_measure(o, ALONE)
    assert ending == "finished"
    assert figures is not None
    assert figures["accuracy"] > 0.7  # chance is 0.5
    assert figures["accuracy_low"] < figures["accuracy"] < figures["accuracy_high"]
    for name in ("test.json", "test.png", "errors.txt", "loss.png", "samples.txt", "model/classifier.json"):
        assert (o.run / name).is_file()
    rows = measured(o.run)
    validation = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    assert min(validation) == 0
    assert len(validation) == 5  # before, and after each epoch
    kept = json.loads((o.run / "model" / "scratchbook.json").read_text())
    assert kept["metrics"]["validation_loss"] == min(validation.values())
    assert kept["data"]["labels"] == ["negative", "positive"]
    classifier, _ = load_classifier(o.run / "model")
    task = Classification(o, ALONE)
    logits = predict_logits(classifier, task.encoded["test"])
    assert figures["accuracy"] == (logits.argmax(1).numpy() == task.labels["test"]).mean()
    assert (o.run / "errors.txt").read_text().count("[") == 10


def changed(before, after):
    return {name for name, w in before.items() if not torch.equal(w, after[name])}


@pytest.mark.parametrize(
    ("more", "learning"),
    [
        ({"learn": "head"}, lambda name: name == "score.weight"),
        ({"learn": "last-block"}, lambda name: ".h.1." in name or ".ln_f." in name or name == "score.weight"),
        ({}, lambda name: True),
        ({"lora": True}, lambda name: "lora_" in name or name == "score.weight"),
    ],
)
def test_what_is_said_to_learn_learns_and_nothing_else(base, tmp_path, more, learning):
    o = options(base, tmp_path / "run", epochs=1.0, keep="last", **more)
    task = Classification(o, ALONE)
    before = {name: w.clone() for name, w in task.model.state_dict().items()}
    Tuning(o, ALONE, task).train()
    wpe = "gpt.transformer.wpe.weight"  # rows beyond the texts' lengths stay, and adamw moves no untouched ones
    now = changed(before, task.model.state_dict())
    assert now == {name for name in before if learning(name)} - ({wpe} - now)
    if o.lora:
        classifier, _ = load_classifier(o.run / "model")  # has them merged
        plain = load_model(base)
        load_adapter(plain, o.run / "adapter")
        ids = torch.tensor([[5, 6, 7]])
        torch.testing.assert_close(plain(ids), load_model(o.run / "model")(ids))
        texts = task.encoded["test"]
        merged, adapted = (predict_logits(one, texts, precision="float32") for one in (classifier, task.classifier))
        torch.testing.assert_close(merged, adapted)


def test_from_scratch_takes_the_weights_away_and_keeps_the_shape(base, tmp_path):
    scratch, _ = make_classifier(options(base, tmp_path, from_scratch=True, seed=1), ("a", "b"))
    given, _ = make_classifier(options(base, tmp_path), ("a", "b"))
    assert scratch.gpt.config == given.gpt.config
    assert not torch.equal(scratch.gpt.transformer.wte.weight, given.gpt.transformer.wte.weight)
    assert torch.equal(given.gpt.transformer.wte.weight, load_model(base).transformer.wte.weight)


def test_batches_hold_each_text_with_its_label(base, tmp_path):
    task = Classification(options(base, tmp_path, batch_size=6), ALONE)
    seen = []
    for step in range(task.examples.steps_per_epoch):
        ids, labels, lengths = task.batch(step, 0, 1)
        halves = [task.batch(step, rank, 2) for rank in range(2)]
        for whole, parts in zip((ids, labels, lengths), zip(*halves, strict=True), strict=True):
            assert np.array_equal(whole, np.concatenate(parts))
        for row, label, length in zip(ids, labels, lengths, strict=True):
            if label != IGNORE:
                seen.append((row[:length].tolist(), int(label)))
    expected = [
        (ids.tolist(), int(label)) for ids, label in zip(task.encoded["train"], task.labels["train"], strict=True)
    ]
    assert sorted(seen) == sorted(expected)


def start(o, *more, ranks=1):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "--"]
    return subprocess.Popen(
        [sys.executable, *(torchrun if ranks > 1 else []), str(ROOT / SCRIPT), *flags(o), *more],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_killed_and_resumed_is_as_if_never_killed(base, tmp_path):
    o = options(base, tmp_path / "cut", checkpoint_every=7)
    process = start(o)
    log, deadline = o.run / "metrics.jsonl", time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if log.is_file() and log.read_text().count('"loss"') >= 23:
            process.kill()
            break
        time.sleep(0.002)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL, said
    assert len(measured(o.run)) < 43
    torch.set_num_threads(1)
    _, cut = train_and_measure(replace(o, resume="auto"), ALONE)
    _, whole = train_and_measure(replace(o, run=tmp_path / "whole"), ALONE)
    assert measured(o.run) == measured(tmp_path / "whole")
    timed = ("training_seconds", "test_texts_per_second")
    assert cut is not None
    assert whole is not None
    assert {k: v for k, v in cut.items() if k not in timed} == {k: v for k, v in whole.items() if k not in timed}


def test_a_run_goes_on_with_its_own_texts_alone(base, tmp_path):
    """With other texts under the same name, what was held out would be learned from, and then measured on."""
    data = tmp_path / "rows.jsonl"
    rows = [json.dumps({"text": f"{'never' if i % 2 else 'so'} dull, film {i}", "label": i % 2}) for i in range(80)]
    data.write_text("\n".join(rows), encoding="utf-8")
    once = options(base, tmp_path / "run", data=str(data), steps=2)
    train_and_measure(once, ALONE)
    train_and_measure(replace(once, resume="auto"), ALONE)
    data.write_text("\n".join(rows[1:]), encoding="utf-8")
    with pytest.raises(UserError, match="begun with other examples or another tokenizer"):
        train_and_measure(replace(once, resume="auto"), ALONE)


def test_two_ranks_and_parts_take_the_steps_of_one(base, tmp_path):
    o = options(base, tmp_path / "one", epochs=1.0)
    two = start(replace(o, run=tmp_path / "two"), ranks=2)
    train_and_measure(o, ALONE)
    train_and_measure(replace(o, run=tmp_path / "parts", micro_batch_size=2), ALONE)
    said, _ = two.communicate(timeout=300)
    assert two.returncode == 0, said
    one, *others = ([r["loss"] for r in measured(tmp_path / n) if "loss" in r] for n in ("one", "two", "parts"))
    for losses in others:
        assert losses == pytest.approx(one, rel=1e-3)
        assert losses[0] == pytest.approx(one[0], rel=1e-6)


def test_what_does_not_fit_gets_one_clear_line(run, base, tmp_path):
    ours = flags(options(base, tmp_path / "run"))
    assert_one_clear_line(run(SCRIPT, *ours, "--model", tmp_path / "nowhere"), "nowhere")
    assert_one_clear_line(run(SCRIPT, *ours, "--max-length", 65), "context of 64")
    assert_one_clear_line(run(SCRIPT, *ours, "--max-length", 0), "--max-length must be at least 2")
    assert_one_clear_line(run(SCRIPT, *ours, "--lora", "--learn", "head"), "leave out --learn")
    assert_one_clear_line(run(SCRIPT, *ours, "--lora", "--lora-targets", "q_proj"), "this model has")
    assert_one_clear_line(run(SCRIPT, *ours, "--validation", "1.5"), "--validation is a share")
    train_and_measure(options(base, tmp_path / "run", epochs=0.5), ALONE)
    assert_one_clear_line(run(SCRIPT, *ours), "holds a run already")
    other = run(SCRIPT, *ours, "--epochs", 0.5, "--resume", "auto", "--pooling", "mean")
    assert_one_clear_line(other, "--pooling last, not mean")


def test_linear_baselines_beat_chance_and_the_search_is_on_validation():
    data = read_labelled(options("", "", train_limit=None))
    found = train_baselines(data)
    assert found["majority"]["test"]["accuracy"] == pytest.approx(0.5, abs=0.1)
    for name, one in found.items():
        best = max(tried["validation_accuracy"] for tried in one["tried"])
        assert one["validation_accuracy"] == best
        if name != "majority":
            assert one["test"]["accuracy"] > 0.8
            assert len(one["tried"]) >= 6


@pytest.mark.parametrize("finished", [True, False])
def test_a_base_whose_run_goes_on_is_taken_with_a_warning(base, tmp_path, finished, capsys):
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    made_by = json.loads((folder / "scratchbook.json").read_text(encoding="utf-8"))
    made_by["metrics"] = {"finished": finished}
    (folder / "scratchbook.json").write_text(json.dumps(made_by), encoding="utf-8")
    train_and_measure(options(folder, tmp_path / "run", train_limit=16, epochs=0.1), ALONE)
    assert ("has not come to its end" in capsys.readouterr().out) is not finished


def test_a_model_is_unfinished_until_its_run_has_come_to_the_end(base, tmp_path, monkeypatch):
    told, losses = [], iter([1.0, 3.0, 2.0])  # the first is the best, and is not written again at the end
    whole = Tuning.evaluate

    def evaluate(self: Tuning, last: bool) -> float:
        loss = whole(self, last)
        told.append(is_unfinished(str(tmp_path / "run" / "model")))
        return loss

    monkeypatch.setattr(Tuning, "evaluate", evaluate)
    monkeypatch.setattr(Classification, "evaluate", lambda *_: {"validation_loss": next(losses)})
    ending, _ = train_and_measure(options(base, tmp_path / "run", train_limit=16, epochs=2.0), ALONE)
    assert ending == "finished"
    assert told == [True, True, False]
    metrics = json.loads((tmp_path / "run" / "model" / "scratchbook.json").read_text(encoding="utf-8"))["metrics"]
    assert metrics["validation_loss"] == 1.0


def test_ways_are_compared_and_what_is_done_is_not_done_again(base, tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- classifiers:begin -->\n<!-- classifiers:end -->", encoding="utf-8")
    o = CompareClassifiers(
        model=str(base),
        ways=("head only", "everything"),
        rates=(3e-3,),
        epochs=0.2,
        train_limit=80,
        test_limit=40,
        runs=tmp_path / "runs",
        out=tmp_path / "out",
        readme=readme,
        device="cpu",
    )
    main(o)
    made = readme.read_text(encoding="utf-8")
    assert "| synthetic | head only |" in made
    assert "| synthetic | everything | 0.003 |" in made
    monkeypatch.setattr("finetuning.classification.compare_classifiers.train_and_measure", None)
    main(o)  # would fail if it trained
    assert readme.read_text(encoding="utf-8") == made
    data = read_labelled(o)
    for sha256, fits in ((data.summary["sha256"], True), ("of other texts", False)):
        baselines = tmp_path / "baselines.json"
        one = {"test": report(np.array([0, 1]), np.eye(2)), "training_seconds": 1.0}
        write_json(baselines, {"data": {"sha256": sha256}, "baselines": {"a count of words": one}})
        if fits:
            main(replace(o, baselines=baselines))
            assert "| synthetic | a count of words |" in readme.read_text(encoding="utf-8")
        else:
            with pytest.raises(UserError, match="of other texts than --data synthetic: make it anew"):
                main(replace(o, baselines=baselines))
    with pytest.raises(TypeError):  # other texts, so it trains
        main(replace(o, data_seed=1, runs=tmp_path / "other"))
    assert CompareClassifiers(data="a/aclImdb_v1.tar.gz").called == "aclImdb_v1"
    damaged: list[Any] = [{"data": []}, [], {"data": data.summary}, {"data": data.summary, "baselines": {"a": None}}]
    for wrong in damaged:
        write_json(tmp_path / "baselines.json", wrong)
        with pytest.raises(UserError, match=r"baselines\.json (is of other texts|is damaged)"):
            main(replace(o, baselines=tmp_path / "baselines.json"))
    made = readme.read_text(encoding="utf-8")
    write_json(tmp_path / "out" / "other.json", {"a": 1})
    with pytest.raises(UserError, match=r"other\.json holds no figures for this table"):
        main(replace(o, report_only=True))
    assert readme.read_text(encoding="utf-8") == made


@pytest.mark.parametrize("before", [[], {}, {"flags": 1}, None])
def test_a_run_that_does_not_say_what_it_found_is_done_again(base, tmp_path, monkeypatch, before):
    again = []

    def train(run: TrainClassifier, ranks: Ranks) -> tuple[str, None]:
        again.append(run)
        return "interrupted", None

    monkeypatch.setattr("finetuning.classification.compare_classifiers.train_and_measure", train)
    write_json(tmp_path / "run" / "done.json", before)
    with pytest.raises(UserError, match="the same command goes on"):
        run_one(options(base, tmp_path / "run"), "0")
    assert len(again) == 1


def test_baselines_refuse_what_would_fail_after_minutes(run, tmp_path):
    script = "finetuning/classification/train_baselines.py"
    assert_one_clear_line(run(script, "--out", tmp_path), "is a folder: --out names a JSON file")
    assert_one_clear_line(run(script, "--min-count", 0), "--min-count must be at least 1, got 0")
    few = run(script, "--min-count", 10000, "--out", tmp_path / "a.json")
    assert_one_clear_line(few, "no word of two letters or more stands in 10,000 of the training texts")


def test_too_few_texts_of_a_label_for_the_baselines_are_said_at_once():
    data = read_labelled(DataOptions())
    few = replace(data, train=[item for item in data.train if item.label] + [i for i in data.train if not i.label][:3],
                  validation=[item for item in data.validation if item.label])  # fmt: skip
    with pytest.raises(UserError, match=r"3 texts of the label 'negative' .* 5 are needed"):
        train_baselines(few)


def test_flags_that_do_nothing_or_cannot_be_are_refused(base, tmp_path):
    with pytest.raises(UserError, match=r"--optimizer muon .* leave it out"):
        options(base, tmp_path, learn="head", optimizer="muon")
    for name in ("..", ".", "", "a/b"):
        with pytest.raises(UserError, match="must be the name of a file"):
            CompareClassifiers(name=name)
    assert CompareClassifiers(data=".", name="here").called == "here"
    with pytest.raises(UserError, match="--name"):
        CompareClassifiers(data=".")


def test_a_comparison_with_other_flags_names_its_own(base, tmp_path, monkeypatch):
    train_and_measure(options(base, tmp_path / "run", epochs=0.1), ALONE)
    monkeypatch.setattr("finetuning.classification.compare_classifiers.train_and_measure", None)
    with pytest.raises(UserError, match=r"was trained with --epochs 0\.1, not 0\.2: .* with --runs,"):
        run_one(options(base, tmp_path / "run", epochs=0.2, resume="auto"), "0")


def test_the_readme_holds_the_table_of_the_committed_results():
    text = README.read_text(encoding="utf-8")
    assert with_block(text, "classifiers", table(read_results(RESULTS))) == text
