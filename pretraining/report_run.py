"""Makes a finished run presentable: a picture, a JSON file of its figures, and the tables in the READMEs.

python pretraining/report_run.py --run runs/demo --name demo

Every figure in a README comes from such a JSON file, so that none is typed and each can be traced to a command.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError, run_command
from utils.files import read_json, write_json
from utils.plots import save_curves
from utils.readme_tables import markdown_table, write_block
from utils.tracking import REPOSITORY, metric_curves

RESULTS = REPOSITORY / "pretraining" / "results"
READMES = (REPOSITORY / "README.md", REPOSITORY / "pretraining" / "README.md")
BLOCK = "runs"  # between <!-- runs:begin --> and <!-- runs:end --> in each README


@dataclass(frozen=True)
class ReportRun:
    """The flags of this script."""

    run: Path = Path("runs/demo")
    """A run folder that pretrain_simple.py or pretrain.py wrote."""
    name: str = "demo"
    """What the run is called in tables and file names."""
    out: Path = RESULTS
    """The folder for NAME.json and NAME.png."""


def table(results: Path) -> str:
    """The Markdown table of all runs in a folder of results, in which benchmarks (without `metrics`) lie, too."""
    header = ["run", "parameters", "tokens seen", "validation nats/token", "bits per byte", "tokens/s", "minutes"]
    rows = []
    for path in sorted(results.glob("*.json")):
        run = read_json(path)
        if not isinstance(run, dict) or "metrics" not in run:
            continue
        m = metrics_of(run, path)
        rows.append(
            [
                path.stem,
                f"{m['parameters'] / 1e6:.1f}M",
                f"{m['tokens'] / 1e6:.1f}M",
                f"{m['validation_loss']:.3f}",
                f"{m['bits_per_byte']:.3f}",
                f"{m['tokens_per_second']:,.0f}",
                f"{m['minutes']:.1f}",
                run["device"],
            ]
        )
    return markdown_table([*header, "device"], rows, "lrrrrrrl")


def metrics_of(made_by: Any, path: Path) -> dict[str, Any]:
    """The figures of a finished run, where `path`, its `scratchbook.json` or a copy of it, holds `made_by`.

    Raises:
        UserError: the run is not finished, or a figure is missing.
    """
    metrics = made_by.get("metrics") if isinstance(made_by, dict) else None
    if not isinstance(metrics, dict):
        raise UserError(f"{path} is damaged, it has no metrics: train the run again")
    if not metrics.get("finished"):
        raise UserError(f"{path}: the run did not come to its end: its figures would be those of an unfinished run")
    for name in ("parameters", "tokens", "validation_loss", "bits_per_byte", "tokens_per_second", "minutes"):
        if not isinstance(metrics.get(name), int | float):
            raise UserError(f"{path} does not say the run's {name}: only whole runs of pretraining are reported")
    if not isinstance(made_by.get("device"), str):
        raise UserError(f"{path} does not say the run's device: only whole runs of pretraining are reported")
    return metrics


def last_sample(run: Path) -> str:
    """The text that the finished model wrote.

    Raises:
        UserError: there is none.
    """
    _, begins, sample = (run / "samples.txt").read_text(encoding="utf-8").rpartition("--- step ")
    if not begins or "\n" not in sample:
        raise UserError(f"{run / 'samples.txt'} is damaged, it holds no sample: train the run again")
    return sample.split("\n", 1)[1]


def main(options: ReportRun) -> None:
    if not options.name or Path(options.name).name != options.name:
        raise UserError(f"--name {options.name!r} must be the name of a file, without a folder")
    if not (options.run / "model" / "scratchbook.json").is_file():
        raise UserError(f"{options.run} is not a finished run: train one with pretraining/pretrain_simple.py")
    made_by = read_json(options.run / "model" / "scratchbook.json")
    m = metrics_of(made_by, options.run / "model" / "scratchbook.json")
    curves = metric_curves(options.run / "metrics.jsonl", training="loss", validation="validation_loss")
    if not curves:
        raise UserError(f"{options.run / 'metrics.jsonl'} holds no losses to draw: train the run again")
    lines = [piece for line in last_sample(options.run).splitlines() for piece in textwrap.wrap(line, 78) or [""]]
    write_json(options.out / f"{options.name}.json", made_by)
    save_curves(
        options.out / f"{options.name}.png",
        curves,
        f"{options.name}: {m['parameters'] / 1e6:.1f}M parameters, {m['minutes']:.1f} minutes",
        "step",
        "loss (nats per token)",
        f"{m['bits_per_byte']:.3f} bits per byte",
        text="\n".join(lines[:22]),
    )
    print(f"Wrote {options.out / options.name}.json and .png")
    if options.out.resolve() == RESULTS:
        for readme in READMES:
            write_block(readme, BLOCK, table(RESULTS))
        print(f"Wrote the tables in {' and '.join(str(path.relative_to(REPOSITORY)) for path in READMES)}")


if __name__ == "__main__":
    run_command(main, ReportRun)
