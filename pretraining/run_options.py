"""The flags that every long run has: its folder, going on with it, and who is told of its figures."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from utils.checkpoints import find_checkpoints
from utils.errors import UserError
from utils.files import read_json
from utils.tracking import Tracker, tensorboard_tracker, wandb_tracker


@dataclass(frozen=True)
class RunOptions:
    """Where a run writes, and what it does with what is there."""

    run: Path = Path("runs/run")
    """The folder for everything that the run writes."""
    resume: Literal["no", "auto"] = "no"
    """auto goes on from the newest whole checkpoint in the run's folder, or begins if there is none."""
    overwrite: bool = False
    """Replace an older run in that folder."""
    tensorboard: bool = False
    """Draw the figures in TensorBoard, too: tensorboard --logdir RUN/tensorboard."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases: online sends the figures there, offline keeps them for `wandb sync`."""
    wandb_project: str = "llm-scratchbook"
    """The project there."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""


# What may differ when a run goes on: how fast, how often and whereto, not what is learned.
_MAY_CHANGE = {
    "run", "resume", "overwrite", "device", "micro_batch_size", "compile", "checkpoint_activations", "chunk_tokens",
    "tf32", "evaluate_every", "checkpoint_every", "keep_last", "keep_best", "rewinds", "spike", "tensorboard", "wandb",
    "wandb_project", "max_minutes",
}  # fmt: skip


def refuse_another_run(options: RunOptions, may_change: Collection[str] = ()) -> None:
    """What stands in the run's folder is kept, unless this run goes on with it or may replace it.

    Args:
        may_change: names of options that may differ when a run goes on, besides those of every run.

    Raises:
        UserError: another run is there, or the same with other settings.
    """
    if options.resume == "no":
        if (options.run / "metrics.jsonl").exists() and not options.overwrite:
            raise UserError(
                f"{options.run} holds a run already: go on with --resume auto, choose another folder with --run, or "
                "pass --overwrite"
            )
        return
    if not find_checkpoints(options.run / "checkpoints"):
        if (options.run / "metrics.jsonl").exists() and not options.overwrite:
            raise UserError(f"{options.run} holds a run without checkpoints: pass --overwrite to begin it anew")
        return
    before = read_json(options.run / "config.json")["options"]
    now = json.loads(json.dumps(asdict(options), default=str))  # as it was written: tuples become lists
    for name, value in now.items():
        if name in _MAY_CHANGE or name in may_change:
            continue
        if str(before.get(name)) != str(value):
            raise UserError(
                f"{options.run} was trained with --{name.replace('_', '-')} {before.get(name)}, not {value}: "
                "go on with that, or choose another folder with --run"
            )


def trackers_of(options: RunOptions, step: int) -> list[Tracker]:
    """Those that were asked for, of a run that has taken `step` steps before.

    Raises:
        UserError: W&B is to be told, and nobody is logged in.
    """
    trackers = []
    if options.tensorboard:
        trackers.append(tensorboard_tracker(options.run / "tensorboard", step))
    if options.wandb != "off":
        config = asdict(options)
        trackers.append(
            wandb_tracker(options.run, options.wandb, options.wandb_project, options.run.resolve().name, config)
        )
    return trackers
