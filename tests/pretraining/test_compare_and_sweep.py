"""Runs beside each other, and searches over their settings."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tyro

from pretraining.compare_runs import curve, differing
from pretraining.pretrain import PRESETS, Pretrain
from pretraining.sweep import (
    Range,
    Sweep,
    keep_to_its_search,
    main,
    open_study,
    read_range,
    search,
    wandb_configuration,
    words_of,
)
from tests.conftest import ROOT, assert_one_clear_line
from tests.pretraining.test_pretrain import TINY, tokens  # noqa: F401 - a fixture
from utils.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, UserError, preset_of
from working_with_text_data.token_shards import TokenShards


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


@pytest.mark.parametrize("config", ["{}", "[]", "5", '{"options": []}', '{"options": {"batch_size": "4"}}'])
def test_a_damaged_config_gets_one_line(tmp_path, config):
    run = make_run(tmp_path / "a", [5.0, 3.0])
    (run / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"config\.json does not say the run's batch_size"):
        curve(run, "tokens", "validation_loss")
    (run / "config.json").unlink()
    with pytest.raises(UserError, match=r"it has no config\.json"):
        curve(run, "tokens", "validation_loss")


@pytest.mark.parametrize("line", ["5", "[]", "null", '{"validation_loss": 1.0}', '{"step": 10, "validation_lo'])
def test_a_damaged_line_is_told_and_the_rest_compared(tmp_path, capsys, line):
    run = make_run(tmp_path / "a", [5.0, 3.0])
    log = run / "metrics.jsonl"
    log.write_text(f"{line}\n{log.read_text()}")
    assert curve(run, "tokens", "validation_loss") == ([0, 320], [5.0, 3.0])
    assert capsys.readouterr().err == f"warning: line 1 of {log} is damaged, and left out\n"
    log.write_text('{"step": 1, "validation_loss": "low"}\n')
    with pytest.raises(UserError, match="nothing was measured"):
        curve(run, "tokens", "validation_loss")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate=log:0.001:0.1", Range("learning_rate", 0.001, 0.1, log=True)),
        ("--learning-rate=0.1:0.2", Range("learning_rate", 0.1, 0.2)),
        ("n_layer=int:2:6", Range("n_layer", 2, 6, integer=True)),
        ("optimizer=adamw,muon", Range("optimizer", choices=("adamw", "muon"))),
        ("batch_size=8,16", Range("batch_size", choices=(8, 16))),
        ("qk_norm=true,false", Range("qk_norm", choices=(True, False))),
        ("n_layer=1:3", Range("n_layer", 1, 3, integer=True)),
        ("batch_size=int:log:4:64", Range("batch_size", 4, 64, log=True, integer=True)),
        ("d_ff=64,128", Range("d_ff", choices=(64, 128))),
        ("d_ff=none,64", Range("d_ff", choices=(None, 64))),
        ("d_ff=64:128", Range("d_ff", 64, 128, integer=True)),
        ("micro_batch_size=1,2", Range("micro_batch_size", choices=(1, 2))),
        ("other_learning_rate=0.01,0.02", Range("other_learning_rate", choices=(0.01, 0.02))),
        ("logit_softcap=10,20", Range("logit_softcap", choices=(10.0, 20.0))),
        ("sample_prompt=The,A", Range("sample_prompt", choices=("The", "A"))),
    ],
)
def test_a_space_is_read(text, expected):
    assert read_range(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nothing=1:2", "write NAME"),
        ("learning_rate", "write NAME"),
        ("learning_rate=2:1", "lower end"),
        ("learning_rate=log:0:1", "lower end"),
        ("learning_rate=-5:-1", "above 0"),
        ("learning_rate=a:b", "must be numbers"),
        ("learning_rate=cubic:1:2", "'cubic': use log, int"),
        ("learning_rate=0.1,nan", "above 0"),
        ("n_layer=a,b", "'a' is not what --n-layer takes"),
        ("n_layer=1.5,2", "'1.5' is not"),
        ("n_layer=int:0.2:0.7", "whole numbers"),
        ("n_layer=1:2.5", "whole numbers"),
        ("optimizer=foo,bar", "'foo' is not what --optimizer takes: use muon"),
        ("positions=1:2", "takes no numbers"),
        ("bias=0:1", "takes no numbers"),
        ("bias=0,1", "'0' is not what --bias takes"),
        ("run=a,b", "same for all"),
        ("resume=no,auto", "same for all"),
        ("overwrite=true,false", "same for all"),
        ("preset=laptop,modern", "same for all"),
        ("data=a,b", "same for all"),
    ],
)
def test_a_space_that_is_none_is_refused(text, why):
    with pytest.raises(UserError, match=f"--space {re.escape(text)}: .*{re.escape(why)}"):
        read_range(text)


def test_integers_are_drawn_for_flags_that_are_integers():
    optuna = pytest.importorskip("optuna")
    trial = optuna.create_study().ask()
    assert type(read_range("n_layer=1:3").draw(trial)) is int
    assert type(read_range("d_ff=log:64:128").draw(trial)) is int


def parsed(words):
    """What pretrain.py takes these words for."""
    return tyro.cli(Pretrain, args=words, default=preset_of(words, PRESETS) or Pretrain())


@pytest.mark.parametrize(
    "options",
    [
        Pretrain(),
        Pretrain(bias=False, qk_norm=True, steps=7, learning_rate=0.1 / 3, d_ff=96, sample_prompt="it's 2"),
        replace(PRESETS["modern"], bias=True, other_learning_rate=None, learning_rate=3e-3, optimizer="adamw"),
        replace(PRESETS["gpt2-124m"], compile=False, data=Path("my tokens")),
    ],
)
def test_flags_become_words_that_say_them(options):
    assert parsed(shlex.split(shlex.join(words_of(options)))) == options


@pytest.mark.skipif(os.name == "nt", reason="W&B's agent runs a Unix shell here")
def test_what_a_wandb_agent_runs_is_the_trial(tmp_path):
    agent = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    space: tuple[str, ...] = (
        "learning_rate=log:0.001:0.1",
        "optimizer=adamw,muon",
        "bias=true,false",
        "qk_norm=true,false",
    )
    space = (*space, "batch_size=int:log:4:64", "d_ff=none,64")
    sweep = Sweep(
        space=space, steps=7, tie_embeddings=False, bias=False, data=Path("my tokens"), folder=Path("my runs")
    )
    configuration = wandb_configuration(sweep, [read_range(text) for text in space])
    assert configuration["parameters"] == {
        "learning_rate": {"min": 0.001, "max": 0.1, "distribution": "log_uniform_values"},
        "optimizer": {"values": ["adamw", "muon"]},
        "no_bias": {"values": [False, True]},
        "qk_norm": {"values": [True, False]},
        "batch_size": {"min": 4, "max": 64, "distribution": "q_log_uniform_values", "q": 1},
        "d_ff": {"values": [None, 64]},
    }
    drawn: dict[str, Any] = {"learning_rate": 0.02, "optimizer": "muon", "qk_norm": False, "batch_size": 5, "d_ff": 64}
    (tmp_path / "python").write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    (tmp_path / "python").chmod(0o755)
    for bias in (True, False):
        arguments = agent.create_sweep_command_args(
            {"args": {k: {"value": v} for k, v in (drawn | {"no_bias": not bias}).items()}}
        )
        command = []  # as wandb.wandb_agent puts it together
        for word in agent.create_sweep_command(configuration["command"]):
            inserted = {"${env}": ["/usr/bin/env"], "${args_no_boolean_flags}": arguments["args_no_boolean_flags"]}
            command += inserted.get(word, [word])
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        said = subprocess.run(
            command, env=os.environ | {"PATH": path, "WANDB_RUN_ID": "x1"}, capture_output=True, text=True, check=True
        )
        program, *words = said.stdout.splitlines()
        assert program == "pretraining/pretrain.py"
        shared: dict[str, Any] = {
            "steps": 7,
            "tie_embeddings": False,
            "data": Path("my tokens"),
            "overwrite": True,
            "wandb": "online",
        }
        expected = Pretrain(**drawn, **shared, bias=bias, run=Path("my runs/sweep/x1"))
        assert parsed(words) == expected


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
    best = min(trials, key=lambda trial: trial["value"])
    assert f"| {best['value']:.4f} |" in second.stdout
    again = shlex.split(second.stdout.split("Next: python pretraining/pretrain.py ")[1])
    done = run("pretraining/pretrain.py", *again)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(row) for row in (tmp_path / "s" / "best" / "metrics.jsonl").read_text().splitlines()]
    assert [row["validation_loss"] for row in rows if "validation_loss" in row][-1] == best["value"]


def sweep_flags(tokens, folder, *flags):  # noqa: F811
    shared = ("--data", tokens, "--folder", folder, "--study", "s", *TINY, "--diagnose-every", 0)
    return (*shared, "--space", "learning_rate=log:0.001:0.1", *flags)


def stop_first_trial(tokens, folder, number, *flags):  # noqa: F811
    """Starts a search, sends the signal when the first trial has taken steps; gives the exit status and the output."""
    command = [sys.executable, ROOT / "pretraining/sweep.py", *sweep_flags(tokens, folder, *flags)]
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log = folder / "s" / "trial-0000" / "metrics.jsonl"
    while process.poll() is None and not (log.is_file() and log.read_text().count('"loss"') >= 2):
        time.sleep(0.01)
    process.send_signal(number)
    said, _ = process.communicate(timeout=240)
    return process.returncode, said


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, EXIT_INTERRUPTED), (signal.SIGTERM, EXIT_TERMINATED), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_stopped_trial_is_begun_again(tokens, tmp_path, run, number, status):  # noqa: F811
    returned, said = stop_first_trial(tokens, tmp_path, number, "--steps", 100, "--trials", 1)
    assert returned == status, said
    assert "Traceback" not in said
    assert "Warning" not in said
    if number == signal.SIGKILL:  # as if a minute had passed
        with sqlite3.connect(tmp_path / "s" / "study.db") as database:
            database.execute("UPDATE trial_heartbeats SET heartbeat = '2001-01-01 00:00:00'")
    done = run("pretraining/sweep.py", *sweep_flags(tokens, tmp_path, "--steps", 100, "--trials", 1))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    trials = json.loads((tmp_path / "s" / "trials.json").read_text())
    assert [trial["state"] for trial in trials] == ["FAIL", "COMPLETE"]
    assert trials[0]["learning_rate"] == trials[1]["learning_rate"]


def test_what_fails_counts_and_is_not_tried_again(tokens, tmp_path, run):  # noqa: F811
    flags = sweep_flags(tokens, tmp_path, "--steps", 3, "--trials", 2)[:-5]
    done = run("pretraining/sweep.py", *flags, "--trials", 2, "--space", "n_head=7,11")  # d_model is no multiple of it
    assert_one_clear_line(done, "no trial came to its end")
    assert done.stdout.count("failed: ") == 2
    assert "n_head" in done.stdout.split("failed: ")[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data": Path("nowhere")}, "no token shards in nowhere"),
        ({"tokenizer": Path("nowhere.json")}, "no tokenizer at nowhere.json"),
        ({"device": "abacus"}, "abacus"),
        ({"from_model": Path(__file__).parent / "nowhere"}, "nowhere"),
    ],
)
def test_what_would_fail_every_trial_is_refused_before_the_first(tokens, tmp_path, wrong, message):  # noqa: F811
    with pytest.raises((UserError, ValueError), match=message):
        main(replace(Sweep(data=tokens, folder=tmp_path, device="cpu"), **wrong))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 7}, "with steps=2500, not 7"),
        ({"eval_tokens": 64}, "with eval_tokens=65536, not 64"),
        ({"seed": 1}, "with seed=0, not 1"),
        ({"space": ("learning_rate=log:0.001:0.2",)}, "with learning_rate=log:0.001:0.1, not log:0.001:0.2"),
        ({"space": ("optimizer=adamw,muon",)}, "with optimizer=adamw, not adamw,muon"),
        ({"space": ("learning_rate=log:0.001:0.1", "n_layer=1:2")}, "with n_layer=4, not int:1:2"),
    ],
)
def test_other_settings_are_another_study(tokens, tmp_path, changes, message):  # noqa: F811
    def begin(sweep):
        ranges = [read_range(text) for text in sweep.space]
        keep_to_its_search(open_study(sweep), sweep, ranges, TokenShards.open(sweep.data))

    sweep = Sweep(data=tokens, folder=tmp_path)
    begin(sweep)
    same: dict[str, Any] = {
        "trials": 30,
        "diagnose_every": 0,
        "device": "cpu",
        "wandb": "offline",
        "space": ("learning_rate=log:1e-3:1e-1",),
    }
    begin(replace(sweep, **same))
    with pytest.raises(UserError, match=re.escape(f"the study sweep was begun {message}: go on as it began")):
        begin(replace(sweep, **changes))


def test_other_tokens_are_another_study(tokens, tmp_path):  # noqa: F811
    sweep, shards = Sweep(data=tokens, folder=tmp_path), TokenShards.open(tokens)
    keep_to_its_search(open_study(sweep), sweep, [], shards)
    shutil.copytree(tokens, tmp_path / "moved")
    moved = TokenShards.open(tmp_path / "moved")
    keep_to_its_search(open_study(sweep), replace(sweep, data=moved.folder), [], moved)
    (moved.folder / "manifest.json").write_text(json.dumps({**moved.manifest, "report": {"by": "another"}}))
    with pytest.raises(UserError, match="the study sweep was begun on other tokens"):
        keep_to_its_search(open_study(sweep), sweep, [], moved)


def test_no_two_trials_draw_the_same_and_a_stop_changes_nothing(tmp_path, monkeypatch):
    def draws(folder, *parts):
        drawn = []
        for trials in parts:  # each opens the study anew, as the next start of the command does
            sweep = Sweep(folder=folder, trials=trials)
            monkeypatch.setattr("pretraining.sweep.Pretraining", lambda options, ranks, report: Quick(options, report))
            search(sweep, [read_range("learning_rate=log:0.001:0.1")], open_study(sweep))
        study = open_study(sweep)
        drawn = [trial.params["learning_rate"] for trial in study.trials]
        return drawn

    class Quick:
        """In place of training: the loss is the rate's distance from 0.01."""

        def __init__(self, options, report):
            self.options, self.report = options, report

        def train(self):
            self.report(1, abs(self.options.learning_rate - 0.01))
            return "finished"

    whole = draws(tmp_path / "whole", 14)
    assert len(set(whole)) == 14
    assert draws(tmp_path / "parts", 3, 7, 14) == whole


def test_no_trial_is_given_up_for_the_loss_it_begins_with(tmp_path, monkeypatch):
    class Worse:
        """In place of training: each trial begins worse than the one before, and ends better, but for the last."""

        def __init__(self, options, ranks, report):
            self.number, self.report = int(options.run.name[-4:]), report

        def train(self):
            self.report(0, 10.0 + self.number)
            self.report(64, 5.0 - self.number if self.number < 7 else 9.0)
            self.report(128, 1.0)
            return "finished"

    monkeypatch.setattr("pretraining.sweep.Pretraining", Worse)
    sweep = Sweep(folder=tmp_path, trials=8)
    search(sweep, [read_range("learning_rate=log:0.001:0.1")], open_study(sweep))
    assert [trial.state.name for trial in open_study(sweep).trials] == ["COMPLETE"] * 7 + ["PRUNED"]


def test_the_ranks_of_torchrun_are_no_workers(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without torchrun"):
        main(Sweep(folder=tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_study_lies_in_its_own_folder_whatever_its_name(tmp_path):
    for name in ("a%41 b#c", "two words", "caf\u00e9") + (() if os.name == "nt" else ("what?x=1&y", "50%")):
        open_study(Sweep(folder=tmp_path, study=name)).enqueue_trial({})
        assert (tmp_path / name / "study.db").stat().st_size
        assert len(open_study(Sweep(folder=tmp_path, study=name)).trials) == 1


def test_workers_that_start_at_once_share_one_study(tmp_path):
    ready = threading.Barrier(4)

    def opened(folder):
        ready.wait()
        open_study(Sweep(folder=folder)).enqueue_trial({})

    with ThreadPoolExecutor(4) as workers:
        for i in range(3):
            list(workers.map(opened, [tmp_path / str(i)] * 4))
            assert len(open_study(Sweep(folder=tmp_path / str(i))).trials) == 4


def test_a_file_that_is_no_study_gets_one_line(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "study.db").write_text("no database, however one looks at it" * 100)
    with pytest.raises(UserError, match=r"study.db cannot be opened .* choose another --study"):
        open_study(Sweep(folder=tmp_path))


def test_trials_that_no_study_knows_are_not_replaced(tmp_path):
    (tmp_path / "s" / "trial-0000" / "model").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds trials, but no study.db knows them"):
        open_study(Sweep(folder=tmp_path, study="s"))
    assert (tmp_path / "s" / "trial-0000" / "model").is_dir()
