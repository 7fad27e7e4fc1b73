"""What a table is made of, looked at before it is made: a folder of figures may hold somebody else's JSON file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_json

Table = Callable[[Sequence[Any]], str]


def fits(table: Table, result: Any) -> bool:
    """Whether a table can be made of `result`, which may be anything that a JSON file can hold."""
    try:
        table([result])
    except (LookupError, TypeError, ValueError, AttributeError):
        return False
    return True


def require_figures(folder: Path, table: Table, replaced: Path | None = None) -> None:
    """Looks at all JSON files of a folder.

    Args:
        replaced: the one that is written anew.

    Raises:
        UserError: no table can be made of one of them.
    """
    for path in sorted(folder.glob("*.json")):
        if path != replaced and not fits(table, read_json(path)):
            raise UserError(
                f"{path} holds no figures for this table: move it away, or choose another folder with --out"
            )
