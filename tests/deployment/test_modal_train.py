"""The training app: what a deployment sets up, and its bodies on the CPU: killed, tried again, on several machines."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, ended, started
from tests.deployment.modal_tools import ELSEWHERE, deployed, read_app, refused
from utils.checkpoints import find_checkpoints

PRETRAIN = "pretraining/pretrain.py"
TINY = ["--n-layer", "1", "--n-head", "2", "--d-model", "16", "--context-length", "16", "--batch-size", "8"]
TINY += ["--eval-tokens", "256", "--no-all-at-end", "--evaluate-every", "5000", "--device", "cpu"]
TINY += ["--precision", "float32", "--checkpoint-every", "7", "--data", "runs/tokens"]
pytestmark = pytest.mark.filterwarnings("ignore:.*is executing locally")  # as it should


def pretraining(run: str, steps: int, dropout: float = 0.1) -> list[str]:
    """Ranks draw their dropout on their own, so that only without it several of them equal one."""
    return [PRETRAIN, *TINY, "--steps", str(steps), "--dropout", str(dropout), "--run", f"runs/{run}"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A Volume on which the app itself has prepared some tokens, by the scripts that need no GPU."""
    work = tmp_path_factory.mktemp("work")
    (work / "runs").mkdir()
    with pytest.MonkeyPatch.context() as monkeypatch:
        app = read_app("modal_train", monkeypatch, work, work=work, gpu="none")
        corpus = ["--corpus", "python-docs", "--max-bytes", "60000"]
        tokenizer = "working_with_text_data/bytepair_enc/train_tokenizer.py"
        assert app.prepare.local([tokenizer, *corpus, "--vocab-size", "300", "--out", "runs/tokenizer.json"]) == 0
        shards = ["--tokenizer", "runs/tokenizer.json", "--out", "runs/tokens", "--processes", "1"]
        assert app.prepare.local(["pretraining/prepare_data.py", *corpus, *shards]) == 0
    return work / "runs"


@pytest.fixture
def app(runs, monkeypatch, tmp_path):
    app = read_app("modal_train", monkeypatch, tmp_path, work=runs.parent, gpu="none")
    monkeypatch.setattr(app, "LOOK_SECONDS", 0.05)
    return app


def losses(run: Path) -> list[float]:
    """Of all steps and measurements, each once, in their order."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line[name] for line in lines for name in ("loss", "validation_loss") if name in line]


def test_killed_half_way_and_tried_again_it_ends_as_if_nothing_had_been(app, runs):
    assert app.train.local(pretraining("whole", 120)) == 0

    code = f"import deployment.modal_train as app; app.train.local({pretraining('cut', 120)!r})"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True) as container:
        while not find_checkpoints(runs / "cut" / "checkpoints") and container.poll() is None:
            time.sleep(0.01)
        assert container.poll() is None, "it should not have ended yet"
        os.killpg(container.pid, signal.SIGKILL)  # the whole container, with all that runs in it
    assert (runs / "cut" / app.BEGUN).is_file()

    assert app.train.local(pretraining("cut", 120)) == 0
    assert losses(runs / "cut") == losses(runs / "whole")
    assert not (runs / "cut" / app.BEGUN).exists()


def test_a_script_that_dies_raises_so_that_it_is_tried_again(app, runs, monkeypatch):
    start = subprocess.Popen

    def start_and_kill(*arguments, **more):
        process = start(*arguments, **more)
        while not find_checkpoints(runs / "died" / "checkpoints"):
            time.sleep(0.01)
        process.kill()
        return process

    monkeypatch.setattr(app.subprocess, "Popen", start_and_kill)
    commits: list[int] = []
    with pytest.raises(RuntimeError, match=r"pretrain.py ended with status -9"):
        app.run_script(pretraining("died", 400), lambda: commits.append(1))
    assert commits


def test_one_that_died_before_its_first_checkpoint_begins_again(app, runs):
    arguments = pretraining("early", 10)
    assert app.begin(arguments, app.Place())[-1] == "--overwrite"
    (runs / "early" / "config.json").write_text('{"options": {}}', encoding="utf-8")  # and here it died
    assert app.train.local(arguments) == 0
    # But another run in that folder is refused by the script, as everywhere, and there is nothing to try again.
    assert app.train.local([*arguments, "--seed", "5"]) == 2


def test_a_machine_that_is_taken_away_leaves_a_checkpoint(app, runs, monkeypatch):
    monkeypatch.setattr(app.Progress, "look", lambda progress: _interrupt_once_it_learns(runs / "taken"))
    commits: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        app.run_script([*pretraining("taken", 5000), "--checkpoint-every", "100000"], lambda: commits.append(1))
    assert find_checkpoints(runs / "taken" / "checkpoints") and len(commits) == 1


def _interrupt_once_it_learns(run: Path) -> bool:
    if (run / "metrics.jsonl").is_file() and len(losses(run)) > 3:
        raise KeyboardInterrupt
    return False


def test_it_says_how_fast_and_how_dear_and_commits_each_checkpoint(app, runs, monkeypatch, capsys):
    monkeypatch.setattr(app, "COMMIT_SECONDS", 0.2)
    commits: list[int] = []
    assert app.run_script(pretraining("dear", 300), lambda: commits.append(1), dollars_a_second=10.0) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[modal] step")]
    assert said and " tokens/s, $" in said[0] and "to go" in said[0] and len(commits) > 2

    monkeypatch.setattr(app, "COMMIT_SECONDS", 1e9)
    progress = app.Progress(runs / "dear", 1.0)
    assert not progress.look()
    progress.saved = 7
    assert progress.look()


def test_what_has_no_checkpoints_is_committed_at_intervals_and_says_nothing_of_cost(app, monkeypatch, capsys):
    monkeypatch.setattr(app, "COMMIT_SECONDS", 1e9)
    commits: list[int] = []
    assert app.run_script(["gpt_model/generate.py", "--help"], lambda: commits.append(1)) == 0
    assert len(commits) == 1  # at its end, though there were many looks before
    assert "so far" not in capsys.readouterr().out
    monkeypatch.setattr(app, "COMMIT_SECONDS", 0.01)
    assert app.run_script(["gpt_model/generate.py", "--help"], lambda: commits.append(1)) == 0
    assert len(commits) > 5


def test_speed_and_cost_are_those_of_the_last_minutes(app, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"options": {"steps": 300}}', encoding="utf-8")
    metrics = tmp_path / "metrics.jsonl"
    line = {"loss": 2.5, "seconds": 0.5}
    progress = app.Progress(tmp_path, dollars_a_second=0.01)
    progress.start = time.monotonic() - 100
    assert progress.figures() == ""
    for step, written in ((100, 1000.0), (200, 1050.0)):
        metrics.write_text(json.dumps(line | {"step": step, "targets": 1000 * step}) + '\n{"validation_loss": 2}\n{"st')
        os.utime(metrics, (written, written))
        said = progress.figures()
        tokens, hours, dollars = ("2,000", "0.0", "1.00") if step == 100 else ("2,000", "0.0", "0.50")
        assert said.startswith(f"step {step}, loss 2.500, {tokens} tokens/s, $1.0"), said
        assert said.endswith(f"{hours} hours and ${dollars} to go"), said


def test_several_gpus_are_processes_of_torchrun(app, runs):
    assert app.run_script(pretraining("two", 10, dropout=0), lambda: None, processes=2) == 0
    assert app.run_script(pretraining("one", 10, dropout=0), lambda: None) == 0
    assert losses(runs / "two") == pytest.approx(losses(runs / "one"), rel=1e-4)


def answers_at(address: str) -> bool:
    try:
        with socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("first", ["127.0.0.1", "::1"])
def test_several_machines_meet_at_the_first(app, runs, first):
    """As containers of a cluster do; there, addresses are of IPv6."""
    if not answers_at(first):
        pytest.skip(f"needs a loopback at {first}")
    name = f"machines-{first.count(':')}"
    lines = [app.command(pretraining(name, 10, dropout=0), app.Place(rank, first, 2), 1) for rank in range(2)]
    together = [started(["env", "-C", runs.parent, f"PYTHONPATH={ROOT}", *line]) for line in lines]
    for one in together:
        ended(one)
    app.run_script(pretraining(f"{name}-alone", 10, dropout=0), lambda: None)
    assert losses(runs / name) == pytest.approx(losses(runs / f"{name}-alone"), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a script"),
        (["pretraining/none.py"], "no script of this repository"),
        (["/etc/passwd"], "no script of this repository"),
        (["../x.py"], "no script of this repository"),
        ([PRETRAIN], "--run runs/NAME"),
        ([PRETRAIN, "--run", "/tmp/x"], "would be lost"),
        ([PRETRAIN, "--run=runs/../x"], "would be lost"),
        ([PRETRAIN, "--run", "runs"], "no folder below runs/"),
        ([PRETRAIN, "--run", "runs/."], "no folder below runs/"),
        (["pretraining/prepare_data.py", "--out", "tokens"], "would be lost"),
        ([PRETRAIN, "--run", "runs/x", "--overwrite"], "modal volume rm"),
        ([PRETRAIN, "--run", "runs/x", "--resume", "no"], "modal volume rm"),
        ([PRETRAIN, "--run", "runs/x", "--parallel", "fsdp"], "use ddp"),
    ],
)
def test_what_cannot_go_well_is_refused_before_it_costs_anything(app, arguments, words):
    with pytest.raises(SystemExit, match=words):
        app.check(arguments, machines=2)


def test_what_may_go_well_is_not(app):
    app.check([PRETRAIN, "--run", "runs/x", "--resume=auto", "--parallel", "fsdp"], machines=1)
    app.check(["pretraining/prepare_data.py"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"machines": 2}, "whole machines"),
        ({"hours": 25}, "24 hours at most"),
        ({"retries": 11}, "10 retries"),
        ({"commit_minutes": 0}, "SCRATCHBOOK_COMMIT_MINUTES"),
    ],
)
def test_settings_that_make_no_sense_are_one_clear_line(settings, words):
    assert words in refused("modal_train", **settings)


def test_every_script_that_trains_knows_how_to_go_on(app):
    from pretraining.run_options import RunOptions

    for script in app.TRAINS:
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        ours = [x for x in vars(module).values() if isinstance(x, type) and x.__module__ == module.__name__]
        assert any(issubclass(x, RunOptions) for x in ours), script


def test_what_is_deployed(tmp_path):
    train, prepare = deployed("modal_train", tmp_path)["functions"]
    assert (train["name"], prepare["name"]) == ("train", "prepare")
    assert train["gpu"] == "L4:1" and prepare["gpu"] is None
    for function in (train, prepare):
        assert function["volumes"] == {"/job/runs": "scratchbook-runs"} and function["max_containers"] == 1
        assert function["retries"] == 3 and function["timeout_s"] == 24 * 3600 and not function["web"]


def test_several_machines_and_a_key_for_wandb_are_deployed(tmp_path):
    report = deployed("modal_train", tmp_path, machines=2, gpu="H100:8", wandb_secret="my-wandb", hours=3, retries=1)
    train = report["functions"][0]
    assert train["gpu"] == "H100:8" and train["cluster_size"] == 2 and train["max_containers"] == 2
    assert train["timeout_s"] == 3 * 3600 and train["retries"] == 1
    assert report["secrets"]["my-wandb"] == ["WANDB_API_KEY"]


def test_modal_run_passes_flags_on_to_the_script(runs):
    """The real client, whose command line gives all that follows the app to the script."""
    if not ELSEWHERE.is_file():
        pytest.skip("needs the stand-in for Modal's control plane: SCRATCHBOOK_MODAL_LOOPBACK names its run_deploy.sh")
    given = {"SCRATCHBOOK_WORK": str(runs.parent), "SCRATCHBOOK_GPU": "none", "MODE": "run"}
    done = subprocess.run(
        [str(ELSEWHERE), "deployment/modal_train.py", sys.executable],
        cwd=ROOT,
        env=os.environ | given | {"RUN_ARGS": " ".join(pretraining("launched", 5))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "an hour for GPUs by the prices of" in done.stdout
    assert len(losses(runs / "launched")) >= 5
