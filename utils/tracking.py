"""What a run leaves behind: its figures as they came, and enough about how it was made to make it again."""

from __future__ import annotations

import json
import math
import platform
import shlex
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from utils.errors import UserError, one_line
from utils.files import write_text

REPOSITORY = Path(__file__).resolve().parents[1]
_VERSIONS_OF = ("torch", "numpy", "regex", "tokenizers", "transformers", "safetensors")


WANDB_ID = "wandb_id.txt"

Figures = dict[str, float | int | str]
Tracker = Callable[[Figures], None]


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, on disk at once, so that a kill loses at most one line.

    Args:
        path: started anew (a run's log is its own), but for the first `keep_bytes`, where a run goes on.
        trackers: are given each line, too.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, path: Path | str, keep_bytes: int = 0, trackers: Sequence[Tracker] = ()) -> None:
        self.path, self.trackers = Path(path), trackers
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:  # cut where it is: nothing that is kept is written anew
            file.truncate(min(keep_bytes, file.tell()))

    def log(self, **figures: float | int | str) -> None:
        """Appends one line of named figures, but for infinite ones and those that are no number: JSON has none."""
        figures = {name: x for name, x in figures.items() if isinstance(x, str) or math.isfinite(x)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
        for tracker in self.trackers:
            tracker(figures)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size


def tensorboard_tracker(folder: Path, step: int = 0) -> Tracker:
    """Draws all figures that have a step in TensorBoard: `tensorboard --logdir FOLDER`.

    Args:
        step: what a run that goes on had written beyond it is passed over.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter  # here, because it takes seconds that few runs need
    except ImportError:
        raise UserError("--tensorboard needs a package that is missing: pip install tensorboard") from None

    writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def track(figures: Figures) -> None:
        for name, value in figures.items():
            if name != "step" and not isinstance(value, str) and "step" in figures:
                writer.add_scalar(name, value, figures["step"])
        writer.flush()

    return track


def require_wandb_key(mode: Literal["online", "offline"]) -> None:
    """Raises UserError if W&B is missing, or is to be sent figures and nobody is logged in."""
    try:
        import wandb  # here, because it takes seconds that few runs need
    except ImportError:
        raise UserError("--wandb needs a package that is missing: pip install wandb") from None
    if mode == "online" and not wandb.api.api_key:
        raise UserError("W&B knows no key: set WANDB_API_KEY, run `wandb login`, or pass --wandb offline")


def wandb_tracker(
    folder: Path, mode: Literal["online", "offline"], project: str, name: str, config: dict[str, Any], goes_on: bool
) -> Tracker:
    """Sends all figures to Weights & Biases, or keeps them in `folder` to be sent later by `wandb sync`.

    The run's id is kept in `folder`, so that a run that `goes_on` is the same run there; one that begins gets a new id.

    Raises:
        UserError: W&B refuses it, cannot be reached, or is missing; or figures are to be sent, and nobody is logged in.
            (W&B itself would ask, and wait for ever in a batch job.)
    """
    require_wandb_key(mode)
    import wandb

    identity = folder / WANDB_ID
    if not goes_on or not identity.is_file() or not identity.read_text().strip():
        write_text(identity, uuid.uuid4().hex[:8])
    try:
        run = wandb.init(
            project=project,
            name=name,
            id=identity.read_text().strip(),
            resume="allow",
            mode=mode,
            dir=str(folder),
            config=config,
            settings=wandb.Settings(silent=True, console="off"),
        )
    except wandb.errors.Error as error:
        raise UserError(f"W&B: {one_line(error)}; mend it, or pass --wandb offline or off") from None

    # W&B's own count of steps only goes up, and what a run tells of a step that it went back to would be dropped.
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")

    def track(figures: Figures) -> None:
        run.log(dict(figures))

    return track


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` that are whole: objects that have a step, and figures.

    A last line that a kill cut short is left out. A damaged line before it, which a failing disk may leave, is left
    out with a warning: the run goes on, and what came after is still read.
    """
    rows = []
    *lines, cut_short = Path(path).read_bytes().split(b"\n")
    for number, line in enumerate((*lines, cut_short), start=1):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif line.strip() and not (number > len(lines) and line.startswith(b"{")):
            print(f"warning: line {number} of {path} is damaged, and left out", file=sys.stderr)
    return rows


def _row(line: bytes) -> dict[str, Any] | None:
    """One line of a `metrics.jsonl`; None for what is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    return row if all(isinstance(figure, int | float | str) for figure in row.values()) else None


def metric_curves(path: Path | str, **metrics: str) -> dict[str, tuple[list[float], list[float]]]:
    """label -> (steps, values) for each label=metric that stands in a `metrics.jsonl`, ready to be drawn."""
    rows = read_metrics(path)
    curves = {}
    for label, metric in metrics.items():
        points = [(row["step"], row[metric]) for row in rows if isinstance(row.get(metric), int | float)]
        if points:
            curves[label] = ([step for step, _ in points], [value for _, value in points])
    return curves


def provenance(**more: Any) -> dict[str, Any]:
    """How something was made: the command, the commit, the machine, the versions, and whatever is given in `more`.

    Only this program's own command line is kept (paths as the user typed them), never the environment.
    """
    return {
        "command": shlex.join(["python", _script(), *sys.argv[1:]]),
        "commit": git_commit(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **_versions()},
        **more,
    }


def _script() -> str:
    """The running script as it is typed from the repository's root."""
    path = Path(sys.argv[0]).resolve()
    return path.relative_to(REPOSITORY).as_posix() if path.is_relative_to(REPOSITORY) else path.name


def git_commit() -> str | None:
    """The commit of this repository, with "+" if tracked files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != REPOSITORY:
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _versions() -> dict[str, str]:
    versions = {}
    for name in _VERSIONS_OF:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
