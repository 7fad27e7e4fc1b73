"""Notebooks that are what they say: plain Python that is committed executed, and compared with a fresh execution.

python utils/notebooks.py                     # execute all, write the .ipynb beside each .py
python utils/notebooks.py --check             # execute all, write nothing, fail where the committed outputs differ

A notebook is written as a Python file with `# %%` cells (jupytext's percent format), which can be read, searched and
reviewed; the `.ipynb` beside it holds the same cells with their outputs and pictures. Only text outputs are compared:
pictures differ by a font. A cell whose output is not the same twice (a time, say) has the tag `volatile`:

    # %% tags=["volatile"]
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import tyro
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from utils.errors import UserError, run_command
from utils.files import write_text
from utils.tracking import REPOSITORY

_SECONDS = 600  # for one cell; no notebook takes half of it


def find_notebooks(folder: Path = REPOSITORY) -> list[Path]:
    """The notebooks' Python files below `folder`: those that begin with two digits, in the order of the chapters."""
    found = folder.rglob("[0-9][0-9]_*.py")
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def execute(path: Path) -> Any:
    """The notebook of a Python file, executed from a fresh start in the file's own folder.

    With one thread, if the environment does not say otherwise: sums then come in the same order on every machine, and
    two threads that wait for each other on a busy one can take twenty times as long as one alone.

    Raises:
        ValueError: a cell failed; the message has the cell and the error.
    """
    notebook = jupytext.read(path)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "jupytext": {"formats": "ipynb,py:percent"},
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # jupytext draws them at random, and files would differ by nothing else
    where = {"metadata": {"path": path.parent}}
    client = NotebookClient(notebook, timeout=_SECONDS, kernel_name="python3", resources=where)
    try:
        client.execute(env={"OMP_NUM_THREADS": "1", **os.environ})
    except CellExecutionError as error:
        raise ValueError(f"{path}: a cell failed: {error}") from None
    for cell in notebook.cells:
        cell.get("metadata", {}).pop("execution", None)  # when each cell ran
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """Outputs with neighbouring pieces of one stream put together: how a stream is cut depends on the moment."""
    joined: list[Any] = []
    for output in outputs:
        if joined and output.output_type == "stream" == joined[-1].output_type and output.name == joined[-1].name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def visible(notebook: Any) -> list[str]:
    """The lines that are compared: sources, and text outputs of cells that are not volatile."""
    lines: list[str] = []
    for number, cell in enumerate(notebook.cells):
        lines += [f"--- cell {number}, {cell.cell_type}", *cell.source.splitlines()]
        if cell.cell_type == "code" and "volatile" not in cell.metadata.get("tags", []):
            for output in cell.outputs:
                text = output.text if output.output_type == "stream" else output.get("data", {}).get("text/plain", "")
                shown = "" if text.startswith("<Figure") else text
                lines += [f"    > {line}" for line in shown.splitlines()]
    return lines


def differences(path: Path) -> str:
    """How a fresh execution differs from what is committed beside `path`; "" if it does not."""
    committed = path.with_suffix(".ipynb")
    if not committed.is_file():
        return f"{committed} is missing: run `make notebooks`"
    before, now = visible(nbformat.read(committed, as_version=4)), visible(execute(path))
    return "\n".join(difflib.unified_diff(before, now, "committed", "fresh", lineterm="", n=1))


_FOLDED = re.compile(r"<details>\s*<summary>Solution: `(\w+)`</summary>\s*```python\n(.*?)```\s*</details>", re.DOTALL)


def folded_solutions(path: Path) -> dict[str, str]:
    """function's name -> the code of its solution, for all that are folded away in a notebook's text.

    One looks so, in a Markdown cell:

        <details><summary>Solution: `count_bytes`</summary>

        ```python
        def count_bytes(text): ...
        ```
        </details>
    """
    cells = jupytext.read(path).cells
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return dict(_FOLDED.findall(text))


@dataclass(frozen=True)
class Notebooks:
    """The flags of this script."""

    paths: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Some notebooks' Python files; all if not given."""
    check: bool = False
    """Write nothing, and fail where a fresh execution differs from what is committed."""


def main(options: Notebooks) -> None:
    paths = [path.resolve() for path in options.paths] or find_notebooks()
    if missing := [path for path in paths if not path.is_file() or path.suffix != ".py"]:
        raise UserError(f"{missing[0]} is not a notebook's .py file")
    failed = False
    for path in paths:
        if options.check:
            difference = differences(path)
            print(f"{path.name}: {'differs' if difference else 'as committed'}\n{difference}".rstrip(), flush=True)
            failed |= bool(difference)
        else:
            write_text(path.with_suffix(".ipynb"), nbformat.writes(execute(path)) + "\n")
            print(f"Wrote {path.with_suffix('.ipynb')}", flush=True)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main, Notebooks)
