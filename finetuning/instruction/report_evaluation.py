"""Makes an evaluation presentable: its figures as a committed JSON file, and the table in the chapter's README.

python finetuning/instruction/report_evaluation.py --evaluation runs/evaluation --name python

A row is a model; the first of an evaluation is the one that the others are compared with. The answers themselves stay
in the evaluation's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuning.instruction.evaluate import COLUMNS
from finetuning.report_tables import fits, require_figures
from utils.errors import UserError, run_command
from utils.files import read_json, write_json
from utils.readme_tables import markdown_table, read_results, require_markers, write_block
from utils.tracking import REPOSITORY

RESULTS = REPOSITORY / "finetuning" / "results" / "instructions"
README = REPOSITORY / "finetuning" / "README.md"
SHOWN = ("loss", "bits_per_byte", "token_accuracy", "exact_match", "rouge_l", "keeps_format", "distinct_2", "win_rate")


@dataclass(frozen=True)
class ReportEvaluation:
    """The flags of this script."""

    evaluation: Path = Path("runs/evaluation")
    """What evaluate.py wrote."""
    name: str = "python"
    """What the questions are called in the table, and the name of the JSON file."""
    out: Path = RESULTS
    """The folder for NAME.json; the table is made of all that are in it."""
    readme: Path = README
    """The README with the table, between <!-- instructions:begin --> and <!-- instructions:end -->."""
    report_only: bool = False
    """Make the table from the JSON files as they are."""


def table(results: Sequence[dict[str, Any]]) -> str:
    """A row for each model of each evaluation; a column for each figure that any of them has."""
    if not all(result["figures"] for result in results):
        raise ValueError("an evaluation has no figures")
    shown = [name for name in SHOWN if any(name in one for r in results for one in r["figures"].values())]
    rows = [
        [result["name"], f"`{model}`", str(result["questions"])]
        + [format(figures[name], COLUMNS[name][1]) if name in figures else "" for name in shown]
        for result in results
        for model, figures in result["figures"].items()
    ]
    header = ["questions", "model", "how many", *(COLUMNS[name][0] for name in shown)]
    return markdown_table(header, rows, "llr" + "r" * len(shown))


def figures_of(evaluation: Path, name: str) -> dict[str, Any]:
    """What of an evaluation is committed.

    Raises:
        UserError: there is none, or it is not whole.
    """
    path = evaluation / "results.json"
    again = f"run finetuning/instruction/evaluate.py --out {evaluation}"
    if not path.is_file():
        raise UserError(f"{path} is not there: {again}")
    found = read_json(path)
    try:
        figures = {"name": name, "questions": len(found["answers"]), "figures": found["figures"]}
        figures |= {"made_by": found["made_by"]}
    except (LookupError, TypeError):
        figures = {}
    if not fits(table, figures):
        raise UserError(f"{path} is no whole evaluation: {again}")
    return figures


def main(options: ReportEvaluation) -> None:
    require_markers(options.readme, "instructions")
    if options.name in ("", "..") or Path(options.name).name != options.name:
        raise UserError(f"--name {options.name!r} must be the name of a file, without a folder")
    figures = None if options.report_only else figures_of(options.evaluation, options.name)
    target = options.out / f"{options.name}.json"
    require_figures(options.out, table, replaced=None if figures is None else target)
    if figures is not None:
        write_json(target, figures)
        print(f"Wrote {options.out / options.name}.json")
    made = table(read_results(options.out))
    print(made)
    write_block(options.readme, "instructions", made)
    print(f"Wrote {options.readme}")


if __name__ == "__main__":
    run_command(main, ReportEvaluation)
