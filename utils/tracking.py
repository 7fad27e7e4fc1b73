"""What a run leaves behind: its figures as they came, and enough about how it was made to make it again."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
_VERSIONS_OF = ("torch", "numpy", "regex", "tokenizers", "transformers", "safetensors")


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, on disk at once, so that a kill loses at most one line."""

    def __init__(self, path: Path | str) -> None:
        """Starts `path` anew (a run's log is its own).

        Raises:
            OSError: the folder cannot be written.
        """
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(b"")

    def log(self, **figures: float | int | str) -> None:
        """Appends one line of named figures."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line cut short by a kill is left out."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def metric_curves(path: Path | str, **metrics: str) -> dict[str, tuple[list[float], list[float]]]:
    """label -> (steps, values) for each label=metric that stands in a `metrics.jsonl`, ready to be drawn."""
    rows = read_metrics(path)
    curves = {}
    for label, metric in metrics.items():
        points = [(row["step"], row[metric]) for row in rows if metric in row]
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
