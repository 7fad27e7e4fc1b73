"""The flags that every long run has: its folder, going on with it, and who is told of its figures."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from gpt_model.pretrained import require_room_for_model
from pretraining.distributed import Ranks, say_to_all
from pretraining.run_folder import OF_A_RUN, alone_in_run, room_for_a_run
from pretraining.training_loop import TrainingLoop
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
        ValueError: where the model is to go stands something else.
    """
    require_room_for_model(options.run / "model")
    there = [name for name in OF_A_RUN if (options.run / name).exists()]
    if may_go_on(options):
        _refuse_other_settings(options, may_change)
    elif options.resume == "auto" and _nothing_was_learned(options.run):
        if "config.json" in there and not options.overwrite:
            _refuse_other_settings(options, may_change)
    elif there and not options.overwrite:
        how = "go on with --resume auto, choose another folder with --run, or pass --overwrite"
        if options.resume == "auto":
            how = "it has no checkpoints to go on from: choose another folder with --run, or pass --overwrite"
        raise UserError(f"{options.run} holds a run already ({there[0]}): {how}")


def may_go_on(options: RunOptions) -> bool:
    """Whether the run goes on with the checkpoints in its folder.

    Where config.json does not say what they are of, --overwrite lets the run begin anew.
    """
    if options.resume == "no" or not find_checkpoints(options.run / "checkpoints"):
        return False
    if options.overwrite:
        try:
            config_of_run(options.run)
        except (UserError, ValueError):
            return False
    return True


def _nothing_was_learned(run: Path) -> bool:
    """Whether what is there, if anything, is of a run that was killed before its first checkpoint was whole."""
    metrics, checkpoints = run / "metrics.jsonl", run / "checkpoints"
    noted = metrics.is_file() and metrics.stat().st_size > 0
    kept = checkpoints.is_dir() and any(not path.name.startswith(".") for path in checkpoints.iterdir())
    known = (run / "config.json").is_file()  # else nobody knows whose the rest is
    others = [name for name in OF_A_RUN if name not in ("metrics.jsonl", "checkpoints") and (run / name).exists()]
    return not (noted or kept or (run / "model").exists() or (others and not known))


def _refuse_other_settings(options: RunOptions, may_change: Collection[str]) -> None:
    before = config_of_run(options.run)["options"]
    now = json.loads(json.dumps(asdict(options), default=str))  # as it was written: tuples become lists
    for field in fields(options):
        name, value = field.name, now[field.name]
        if name in _MAY_CHANGE or name in may_change:
            continue
        was = before.get(name, field.default)  # a flag that did not exist yet when the run began
        if str(was) != str(value):
            raise UserError(
                f"{options.run} was trained with --{name.replace('_', '-')} {was}, not {value}: "
                "go on with that, or choose another folder with --run"
            )


def config_of_run(run: Path) -> dict[str, Any]:
    """What config.json says of a run.

    Raises:
        UserError: it is missing or damaged.
    """
    path = run / "config.json"
    config = read_json(path) if path.is_file() else None
    if not isinstance(config, dict) or not isinstance(config.get("options"), dict):
        state = "is missing" if config is None else "is damaged: it has no options"
        raise UserError(
            f"{path} {state}: without it nobody can tell whether the run may go on; bring it back, or begin anew with "
            "--overwrite, which removes what is there"
        )
    return config


def require_same_data(options: RunOptions, manifest_sha256: str) -> None:
    """A run that goes on must learn from the tokens that it began with; their folder may have moved.

    Raises:
        UserError: the manifest of the shards is another.
    """
    if not may_go_on(options):
        return
    before = (config_of_run(options.run).get("data") or {}).get("manifest_sha256")
    if before is not None and before != manifest_sha256:
        raise UserError(
            f"{options.run} was trained on other tokens (their manifest.json is another): pass the folder that it "
            "began with as --data, or choose another --run"
        )


def go_on(options: RunOptions, loop: TrainingLoop) -> bool:
    """Takes `loop` to the newest whole checkpoint, if the run is to go on; whether there was one. For every rank.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
        ValueError: it is of another model or of other optimisers.
    """
    if not say_to_all(loop.ranks, may_go_on(options)):  # rank 0 may already change what others still look at
        return False
    if loop.resume():
        return True
    if find_checkpoints(loop.folder) and not options.overwrite:
        raise UserError(
            f"all checkpoints in {loop.folder} are damaged, and nothing is begun anew unasked: pass --overwrite for "
            "that, or choose another folder with --run"
        )
    return False


@contextlib.contextmanager
def alone_with(options: RunOptions, ranks: Ranks) -> Iterator[None]:
    """Around a run, from its first look into its folder on: nobody else may write there meanwhile.

    Raises:
        ValueError: another process writes there.
    """
    with alone_in_run(options.run) if ranks.is_first else contextlib.nullcontext():
        say_to_all(ranks, None)  # the others look once the folder is in order
        yield


def room_for(options: RunOptions, ranks: Ranks, goes_on: bool) -> AbstractContextManager[None]:
    """Around what a run does before its first step: an older one goes if this one does not go on with it."""
    return room_for_a_run(options.run) if ranks.is_first and not goes_on else contextlib.nullcontext()


def trackers_of(options: RunOptions, step: int, goes_on: bool) -> list[Tracker]:
    """Those that were asked for, of a run that has taken `step` steps before.

    Raises:
        UserError: W&B is to be told, and nobody is logged in.
    """
    trackers = []
    if options.wandb != "off":
        config, name = asdict(options), options.run.resolve().name
        trackers.append(wandb_tracker(options.run, options.wandb, options.wandb_project, name, config, goes_on))
    if options.tensorboard:
        trackers.append(tensorboard_tracker(options.run / "tensorboard", step))
    return trackers
