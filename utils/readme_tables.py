"""Tables in READMEs that are generated, never typed: what stands between two markers is replaced by a command.

<!-- NAME:begin -->
…
<!-- NAME:end -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_json, require_writable, write_json, write_text


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """A Markdown table.

    Args:
        align: a letter a column, l or r; all to the left if not given.
    """
    marks = ["---:" if letter == "r" else "---" for letter in (align or "l" * len(header))]
    lines = [" | ".join(header), " | ".join(marks)] + [" | ".join(row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def with_block(readme: str, name: str, content: str) -> str:
    """`readme` with `content` between the markers of `name`.

    Raises:
        ValueError: the markers are not there, once each.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if readme.count(begin) != 1 or readme.count(end) != 1:
        raise ValueError(f"the markers of {name!r} must be there once each")
    block = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.S)
    return block.sub(lambda _: f"{begin}\n{content}\n{end}", readme)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The figures that a benchmark wrote: all JSON files of a folder, in the order of their names.

    Raises:
        UserError: there is none.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise UserError(f"no figures in {folder}: run without --report-only first")
    return [read_json(path) for path in paths]


def require_markers(path: Path, name: str) -> None:
    """Says before anything is measured that a table will have no place.

    Raises:
        UserError: the markers of `name` are not there, once each.
    """
    try:
        with_block(path.read_text(encoding="utf-8"), name, "")
    except ValueError:
        raise UserError(
            f"{path} needs the lines <!-- {name}:begin --> and <!-- {name}:end -->, once each, where the tables "
            "belong: add them, or choose another folder with --out"
        ) from None


def publish(
    path: Path,
    measure: Callable[[], dict[str, Any]] | None,
    tables: Callable[[dict[str, Any]], str],
    readme: Path | None,
    block: str,
    draw: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """What a benchmark of one file does: writes what it measured to `path`, and the tables of it into `readme`.

    Args:
        measure: None to take what stands in `path`.
        readme: None to print the tables.
        block: the name of the README's markers.
        draw: makes the picture, where there is one.

    Raises:
        UserError: the markers are not there.
        OSError: there are no figures to take, or the folder cannot be written to.
    """
    if readme is not None:
        require_markers(readme, block)
    if measure is None:
        report = read_json(path)
    else:
        require_writable(path.parent)
        report = measure()
        write_json(path, report)
        print(f"Wrote {path}")
    if draw is not None:
        draw(report)
    if readme is not None:
        write_block(readme, block, tables(report))
        print(f"Wrote the tables in {readme}")
    else:
        print(f"\n{tables(report)}")


def write_block(path: Path | str, name: str, content: str) -> None:
    """`with_block` of a file, in place."""
    path = Path(path)
    write_text(path, with_block(path.read_text(encoding="utf-8"), name, content))
