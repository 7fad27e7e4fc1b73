"""Runs beside each other: one plot of their validation losses, and one table.

python pretraining/compare_runs.py runs/laptop runs/modern

The axis is the tokens learned from, which is what data costs, or the seconds that the steps took, which is what the
machine costs. A recipe can win on one and lose on the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import tyro

from utils.errors import UserError, run_command
from utils.files import read_json
from utils.plots import save_curves
from utils.readme_tables import markdown_table
from utils.tracking import read_metrics


@dataclass(frozen=True)
class CompareRuns:
    """The flags of this script."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, in the order in which they are shown; up to twelve."""
    out: Path = Path("runs/comparison.png")
    """The picture to write."""
    axis: Literal["tokens", "seconds"] = "tokens"
    """What the losses are drawn against."""
    measure: Literal["validation_loss", "bits_per_byte"] = "validation_loss"
    """bits_per_byte where the tokenizers differ."""


def options_of(run: Path) -> dict[str, Any]:
    """The flags of a run.

    Raises:
        UserError: its config.json is missing or damaged.
    """
    path = run / "config.json"
    if not path.is_file():
        raise UserError(f"{run} is not a run folder: it has no config.json")
    config = read_json(path)
    options = config.get("options") if isinstance(config, dict) else None
    for name in ("batch_size", "context_length"):
        if not isinstance(options, dict) or type(options.get(name)) is not int:
            raise UserError(f"{path} does not say the run's {name}, by which tokens are counted: leave this run out")
    return cast(dict[str, Any], options)


def curve(run: Path, axis: str, measure: str) -> tuple[list[float], list[float]]:
    """(places on the axis, values) of each measurement of a run.

    Raises:
        UserError: it is no run, or nothing was measured in it.
    """
    if not (run / "metrics.jsonl").is_file():
        raise UserError(f"{run} is not a run folder: it has no metrics.jsonl")
    options = options_of(run)
    per_step = options["batch_size"] * options["context_length"]
    seconds, x, y = 0.0, [], []
    for row in read_metrics(run / "metrics.jsonl"):
        row = {name: figure for name, figure in row.items() if not isinstance(figure, str)}
        seconds += row.get("seconds", 0.0)
        if measure in row:
            x.append(seconds if axis == "seconds" else row["step"] * per_step)
            y.append(row[measure])
    if not y:
        raise UserError(f"nothing was measured in {run}")
    return x, y


def differing(options: list[dict[str, Any]]) -> list[str]:
    """The settings that are not the same in all runs, but for where things lie."""
    names = dict.fromkeys(name for one in options for name in one)
    same = {"run", "data", "tokenizer", "overwrite", "resume", "preset"}
    return [n for n in names if n not in same and len({str(one.get(n)) for one in options}) > 1]


def table(runs: list[Path], curves: dict[str, tuple[list[float], list[float]]], measure: str) -> str:
    """One row a run: what is its own, and what it reached."""
    options = [options_of(run) for run in runs]
    names = differing(options)
    rows = []
    for run, one in zip(runs, options, strict=True):
        _, y = curves[str(run)]
        rows.append([run.name, *(str(one.get(name, "")) for name in names), f"{y[-1]:.4f}", f"{min(y):.4f}"])
    return markdown_table(["run", *names, f"last {measure}", "best"], rows)


def main(options: CompareRuns) -> None:
    if not 1 <= len(options.runs) <= 12:
        raise UserError(f"name from 1 to 12 run folders, got {len(options.runs)}")
    runs = list(dict.fromkeys(options.runs))
    curves = {str(run): curve(run, options.axis, options.measure) for run in runs}
    unit = {"validation_loss": "validation loss (nats per token)", "bits_per_byte": "bits per byte"}[options.measure]
    x_label = {"tokens": "tokens learned from", "seconds": "seconds of training steps"}[options.axis]
    labels = [run.name for run in runs]
    named = labels if len(set(labels)) == len(labels) else [str(run) for run in runs]
    save_curves(options.out, dict(zip(named, curves.values(), strict=True)), "", x_label, unit)
    print(table(runs, curves, options.measure))
    print(f"\nWrote {options.out}")


if __name__ == "__main__":
    run_command(main, CompareRuns)
