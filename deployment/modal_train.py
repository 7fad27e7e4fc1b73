"""Training on Modal's GPUs: this repository's own scripts with their own flags, unchanged.

    modal run deployment/modal_train.py pretraining/prepare_data.py --corpus python-docs
    SCRATCHBOOK_GPU=H100:8 modal run --detach deployment/modal_train.py pretraining/pretrain.py \\
        --preset gpt2-124m --data runs/demo/tokens --run runs/long

The folder `runs/` is a Volume, which all machines see and which stays. Scripts that train get the GPUs: one process for
one, `torchrun` for several, and for several machines, which Modal starts together. All others get processor cores only.

What a script writes is committed to the Volume with each checkpoint, every few minutes, and at the end. A script that
is killed, or whose machine is taken away, is started again, and goes on from its newest checkpoint (`--resume auto`).
Meanwhile the log says how many tokens a second it learns from, what it has cost so far and what it will.
README.md in this folder begins at an empty account.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import modal

from deployment.modal_common import (
    PRICES_OF,
    ROOT,
    dollars_an_hour,
    gpu_setting,
    gpus_of,
    name_of,
    python_image,
    refuse,
    setting,
    settings,
    whole,
    with_repository,
)
from utils.checkpoints import find_checkpoints
from utils.errors import EXIT_USER_ERROR
from utils.files import read_json

APP = name_of("SCRATCHBOOK_APP", "scratchbook-train")
GPU = gpu_setting("L4")
MACHINES = whole("SCRATCHBOOK_MACHINES", 1)
CORES = whole("SCRATCHBOOK_CORES", 8)  # for scripts that do not train
HOURS = whole("SCRATCHBOOK_HOURS", 24)  # of one try
RETRIES = whole("SCRATCHBOOK_RETRIES", 3, least=0)
COMMIT_SECONDS = 60 * whole("SCRATCHBOOK_COMMIT_MINUTES", 5)
VOLUME = name_of("SCRATCHBOOK_RUNS_VOLUME", "scratchbook-runs")
WANDB_SECRET = name_of("SCRATCHBOOK_WANDB_SECRET", "none")
if HOURS > 24 or RETRIES > 10:
    refuse("Modal allows a try 24 hours at most, and 10 retries: SCRATCHBOOK_HOURS, SCRATCHBOOK_RETRIES")
if MACHINES > 1 and gpus_of(GPU) != 8:
    refuse("SCRATCHBOOK_MACHINES beyond 1 takes whole machines: SCRATCHBOOK_GPU=H100:8 or another with :8")

TRAINS = {
    "pretraining/pretrain.py",
    "finetuning/classification/train_classifier.py",
    "finetuning/instruction/train_instruct.py",
    "finetuning/instruction/train_dpo.py",
}  # all of them know --run and --resume
WORK = Path(setting("SCRATCHBOOK_WORK", "/job"))  # where scripts run; its folder runs/ is the Volume
BEGUN = "begun-on-modal.json"  # in a run's folder: what it was begun with
LOOK_SECONDS = 10.0
GRACE_SECONDS = 25.0  # Modal gives 30 to a container that has to go

volume = modal.Volume.from_name(VOLUME, create_if_missing=True)
secrets = [] if WANDB_SECRET == "none" else [modal.Secret.from_name(WANDB_SECRET, required_keys=["WANDB_API_KEY"])]
image = with_repository(python_image())
app = modal.App(APP)


@dataclass(frozen=True)
class Place:
    """A machine among those that work together."""

    rank: int = 0
    first: str = ""
    """The address of the first one; empty where it is alone."""
    machines: int = 1


# --- what is run


def value_of(flags: Sequence[str], name: str) -> str | None:
    """What `--name VALUE` or `--name=VALUE` gives."""
    for i, flag in enumerate(flags):
        if flag == name:
            return flags[i + 1] if i + 1 < len(flags) else ""
        if flag.startswith(f"{name}="):
            return flag.removeprefix(f"{name}=")
    return None


def check(arguments: Sequence[str], machines: int = 1) -> None:
    """Refuses what cannot go well, before anything is paid for.

    Raises:
        SystemExit: with one line.
    """
    if not arguments:
        refuse(
            "give a script and its flags: modal run deployment/modal_train.py pretraining/pretrain.py --run runs/NAME"
        )
    script, *flags = arguments
    if (
        Path(script).is_absolute()
        or ".." in Path(script).parts
        or not (ROOT / script).is_file()
        or script[-3:] != ".py"
    ):
        refuse(f"{script} is no script of this repository: give its path, such as pretraining/pretrain.py")
    for name in ("--run", "--out"):
        where = value_of(flags, name)
        parts = PurePosixPath(where or "").parts
        if where is not None and (parts[:1] != ("runs",) or len(parts) < 2 or ".." in parts):
            refuse(f"{name} {where} is no folder below runs/, the Volume: it would be lost with the machine")
    if script not in TRAINS:
        return
    if not value_of(flags, "--run"):
        refuse("say where the run goes: --run runs/NAME")
    if "--overwrite" in flags or value_of(flags, "--resume") == "no":
        refuse(
            "a run that is tried again goes on with what is there, and would lose it by --overwrite or --resume no: "
            f"choose another --run, or remove the old one by `modal volume rm -r {VOLUME} NAME`"
        )
    if machines > 1 and value_of(flags, "--parallel") == "fsdp":
        refuse(
            "checkpoints of --parallel fsdp need a disk that all machines see at once, and a Volume is none: use ddp"
        )


def command(arguments: Sequence[str], place: Place, processes: int) -> list[str]:
    """The command line for `arguments` on one machine."""
    script, *flags = arguments
    if script in TRAINS and value_of(flags, "--resume") is None:
        flags += ["--resume", "auto"]
    start = [sys.executable]
    if place.machines > 1:
        start += ["-m", "torch.distributed.run", "--nnodes", str(place.machines), "--node-rank", str(place.rank)]
        start += ["--master-addr", place.first, "--master-port", "29500"]
    elif processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone"]
    if place.machines > 1 or processes > 1:
        start += ["--nproc-per-node", str(processes), "--"]
    return [*start, str(ROOT / script), *flags]


def begin(arguments: Sequence[str], place: Place) -> list[str]:
    """The arguments for this try. One that died before its first checkpoint has to write over what it left.

    That it was the same run is known from a file that stays in its folder until the run has ended.
    """
    run = _run_of(arguments)
    begun = run / BEGUN
    if place.rank == 0 and not (run.exists() and set(run.iterdir()) - {begun}):
        run.mkdir(parents=True, exist_ok=True)
        begun.write_text(json.dumps(list(arguments)), encoding="utf-8")
    same = begun.is_file() and read_json(begun) == list(arguments)
    return [*arguments, "--overwrite"] if same and not find_checkpoints(run / "checkpoints") else list(arguments)


def _run_of(arguments: Sequence[str]) -> Path:
    return WORK / str(value_of(arguments, "--run"))


def run_script(
    arguments: Sequence[str],
    commit: Callable[[], object],
    place: Place | None = None,
    processes: int = 1,
    dollars_a_second: float = 0.0,
) -> int:
    """Runs a script to its end, and says meanwhile how it goes.

    Args:
        commit: makes what has been written last.
        processes: of this machine, one a GPU.

    Returns:
        Its exit status, 0, or 2 for a mistake in the flags, which no retry would mend.

    Raises:
        RuntimeError: it died of something else, which another try may mend.
    """
    place = place or Place()
    run = _run_of(arguments) if arguments[0] in TRAINS else None
    line = command(begin(arguments, place) if run else arguments, place, processes)
    print(f"[modal] running {' '.join(line[1:])}", flush=True)
    process = subprocess.Popen(line, cwd=WORK, env=os.environ | {"PYTHONPATH": str(ROOT)})
    progress = Progress(run if place.rank == 0 else None, dollars_a_second)
    try:
        while not _has_ended(process, LOOK_SECONDS):
            if progress.look():
                commit()
        if process.returncode == 0 and run and place.rank == 0:
            (run / BEGUN).unlink(missing_ok=True)
    finally:  # also when the machine is taken away or the call is cancelled: a script that is asked to end saves
        process.terminate()
        if not _has_ended(process, GRACE_SECONDS):
            process.kill()
        commit()
    if process.returncode in (0, EXIT_USER_ERROR):
        return process.returncode
    raise RuntimeError(f"{arguments[0]} ended with status {process.returncode}")


def _has_ended(process: subprocess.Popen[bytes], within: float) -> bool:
    """Whether a process ends within so many seconds."""
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        return False
    return True


class Progress:
    """Says now and then how fast a run learns, what it has cost, and what it will.

    Args:
        run: the run's folder; None where nothing is to be said, by a script that does not train or another machine.
        dollars_a_second: of all GPUs together.
    """

    def __init__(self, run: Path | None, dollars_a_second: float) -> None:
        self.run, self.dollars_a_second = run, dollars_a_second
        self.start = self.committed = time.monotonic()
        self.said = -math.inf  # so that the first step is reported at once
        self.before: dict[str, Any] | None = None
        self.saved = self._newest_checkpoint()

    def look(self) -> bool:
        """Reports if it is time to, and says whether to commit: at intervals, and where there is a new checkpoint."""
        now = time.monotonic()
        if now - self.said >= COMMIT_SECONDS and (figures := self.figures()):
            self.said = now
            print(f"[modal] {figures}", flush=True)
        saved, self.saved = self.saved, self._newest_checkpoint()
        if saved == self.saved and now - self.committed < COMMIT_SECONDS:
            return False
        self.committed = now
        return True

    def figures(self) -> str:
        """How far the run is; nothing before its first step."""
        spent = self.dollars_a_second * (time.monotonic() - self.start)
        step = self._last_step()
        if step is None:
            return ""
        before, self.before = self.before, step
        steps, tokens, seconds = step["step"], step["targets"], step["seconds"] * step["step"]  # by the last step alone
        if before is not None and step["written"] > before["written"] and step["step"] > before["step"]:
            steps, tokens = step["step"] - before["step"], step["targets"] - before["targets"]
            seconds = step["written"] - before["written"]  # measuring and saving are in it
        text = f"step {step['step']:,}, loss {step['loss']:.3f}, {tokens / seconds:,.0f} tokens/s, ${spent:.2f} so far"
        if (total := self._all_steps()) is None:
            return text
        left = (total - step["step"]) * seconds / steps
        return f"{text}, {left / 3600:.1f} hours and ${left * self.dollars_a_second:,.2f} to go"

    def _last_step(self) -> dict[str, Any] | None:
        """The last line about a step in the metrics, and when it was written."""
        metrics = self.run / "metrics.jsonl" if self.run else None
        if metrics is None or not metrics.is_file():
            return None
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - 65_536))
            lines = file.read().splitlines()
        for line in reversed(lines):
            with contextlib.suppress(ValueError):  # a line is half written, or cut at its beginning
                figures = json.loads(line)
                if "targets" in figures and "seconds" in figures:
                    return {**figures, "written": metrics.stat().st_mtime}
        return None

    def _all_steps(self) -> int | None:
        """How many the run will take, where its options say so."""
        config = self.run / "config.json" if self.run else None
        options = read_json(config).get("options", {}) if config and config.is_file() else {}
        return options.get("steps")

    def _newest_checkpoint(self) -> int | None:
        found = find_checkpoints(self.run / "checkpoints") if self.run else []
        return found[0].step if found else None


# --- where it runs


def _commit() -> None:
    if not modal.is_local():
        volume.commit()


def _together(function: Any) -> Any:
    """Starts as many containers at once as there should be machines."""
    return modal.clustered(size=MACHINES, rdma=True)(function) if MACHINES > 1 else function


def _place() -> Place:
    if MACHINES == 1 or modal.is_local():
        return Place()
    cluster = modal.Cluster.from_context()
    return Place(cluster.container_rank(), cluster.container_ips()[0], MACHINES)


@app.function(
    image=image,
    gpu=GPU,
    volumes={str(WORK / "runs"): volume},
    secrets=secrets,
    env=settings(),
    timeout=HOURS * 3600,
    retries=modal.Retries(max_retries=RETRIES, initial_delay=10.0),
    single_use_containers=True,  # a try begins in a container that no other has left anything in
    max_containers=MACHINES,
)
@_together
def train(arguments: list[str]) -> int:
    """A script that trains, on the GPUs."""
    dollars = dollars_an_hour(GPU, MACHINES) / 3600
    return run_script(arguments, _commit, _place(), max(gpus_of(GPU), 1), dollars)


@app.function(
    image=image,
    cpu=CORES,
    memory=16_384,
    volumes={str(WORK / "runs"): volume},
    env=settings(),
    timeout=HOURS * 3600,
    retries=modal.Retries(max_retries=RETRIES, initial_delay=10.0),
    single_use_containers=True,
    max_containers=1,
)
def prepare(arguments: list[str]) -> int:
    """Any other script: corpora, tokenizers, tables. It has no GPU to pay for."""
    return run_script(arguments, _commit)


@app.local_entrypoint()
def main(*arguments: str) -> None:
    """`modal run [--detach] deployment/modal_train.py SCRIPT FLAGS...`; with --detach it outlives this terminal."""
    check(arguments, MACHINES)
    trains = arguments[0] in TRAINS
    if trains:
        hourly = dollars_an_hour(GPU, MACHINES)
        print(
            f"{MACHINES} x {GPU or 'no GPU'}: ${hourly:.2f} an hour for GPUs by the prices of {PRICES_OF}, "
            f"${hourly * HOURS:,.2f} if it takes all {HOURS} hours of a try, of which there may be {RETRIES + 1}."
        )
    status = (train if trains else prepare).remote(list(arguments))
    if status:
        sys.exit(status)
