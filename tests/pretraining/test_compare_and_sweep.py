"""Runs beside each other, and searches over their settings."""

from __future__ import annotations

import json

import pytest

from pretraining.compare_runs import curve, differing
from pretraining.sweep import Range, Sweep, read_range, wandb_configuration
from tests.conftest import assert_one_clear_line
from tests.pretraining.test_pretrain import TINY, tokens  # noqa: F401 - a fixture
from utils.errors import UserError


def make_run(folder, losses, **options):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"options": {"batch_size": 4, "context_length": 8, **options}}))
    rows = [{"step": 10 * i, "validation_loss": loss} for i, loss in enumerate(losses)]
    rows += [{"step": 1, "loss": 5.0, "seconds": 2.0}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_runs_are_compared_by_tokens_and_by_what_differs(tmp_path, run):
    a = make_run(tmp_path / "a", [5.0, 3.0, 3.5], optimizer="adamw", seed=1)
    b = make_run(tmp_path / "b", [5.0, 2.0], optimizer="muon", seed=1)
    assert curve(a, "tokens", "validation_loss") == ([0, 320, 640], [5.0, 3.0, 3.5])
    assert differing([{"x": 1, "run": "a"}, {"x": 2, "run": "b"}, {"x": 1, "y": 3, "run": "c"}]) == ["x", "y"]
    done = run("pretraining/compare_runs.py", a, b, "--out", tmp_path / "c.png")
    assert done.returncode == 0, done.stderr
    assert "| a | adamw | 3.5000 | 3.0000 |" in done.stdout
    assert "| b | muon | 2.0000 | 2.0000 |" in done.stdout
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert_one_clear_line(run("pretraining/compare_runs.py", tmp_path), "is not a run folder")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate=log:0.001:0.1", Range("learning_rate", 0.001, 0.1, log=True)),
        ("--learning-rate=0.1:0.2", Range("learning_rate", 0.1, 0.2)),
        ("n_layer=int:2:6", Range("n_layer", 2, 6, integer=True)),
        ("optimizer=adamw,muon", Range("optimizer", choices=("adamw", "muon"))),
        ("batch_size=8,16", Range("batch_size", choices=(8, 16))),
        ("qk_norm=true,false", Range("qk_norm", choices=(True, False))),
    ],
)
def test_a_space_is_read(text, expected):
    assert read_range(text) == expected


@pytest.mark.parametrize(
    "text", ["nothing=1:2", "learning_rate", "learning_rate=2:1", "learning_rate=log:0:1", "n_layer=a,b"]
)
def test_a_space_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="--space"):
        read_range(text)


def test_the_same_space_for_wandb():
    sweep = Sweep(space=("learning_rate=log:0.001:0.1", "optimizer=adamw,muon"), steps=7)
    configuration = wandb_configuration(sweep, [read_range(text) for text in sweep.space])
    assert configuration["parameters"]["learning_rate"] == {
        "min": 0.001,
        "max": 0.1,
        "distribution": "log_uniform_values",
    }
    assert configuration["parameters"]["optimizer"] == {"values": ["adamw", "muon"]}
    assert configuration["parameters"]["steps"] == {"value": 7}


def test_a_study_goes_on_where_it_stopped(tokens, tmp_path, run):  # noqa: F811
    flags = ("--data", tokens, "--folder", tmp_path, "--study", "s", *TINY, "--steps", 6, "--diagnose-every", 0)
    flags = (*flags, "--space", "learning_rate=log:0.001:0.1")
    first = run("pretraining/sweep.py", *flags, "--trials", 2)
    assert first.returncode == 0, first.stderr
    second = run("pretraining/sweep.py", *flags, "--trials", 3)
    assert second.returncode == 0, second.stderr
    assert "Trial 2:" in second.stdout
    assert "Trial 1:" not in second.stdout
    trials = json.loads((tmp_path / "s" / "trials.json").read_text())
    assert [trial["number"] for trial in trials] == [0, 1, 2]
    assert f"| {min(t['value'] for t in trials):.4f} |" in second.stdout
