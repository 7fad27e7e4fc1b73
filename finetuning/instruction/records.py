"""Records of a local file, whatever its kind: JSON by lines, Parquet, or one JSON list of objects.

Instruction data comes as any of the three, often packed with gzip. Either way a record is a dictionary.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from working_with_text_data.rows import ROW_SUFFIXES, read_rows

SUFFIXES = (".json", ".json.gz", *ROW_SUFFIXES)


def read_records(path: Path | str) -> Iterator[dict[str, Any]]:
    """The records of a .json, .json.gz, .jsonl, .jsonl.gz or .parquet file.

    Raises:
        ValueError: it is damaged, empty or another kind of file, or a record is no JSON object; one line that names it.
        OSError: it cannot be read.
    """
    path = Path(path)
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise ValueError(f"{path} is no file of records: {', '.join(SUFFIXES)} can be read")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    if not name.endswith((".json", ".json.gz")):
        yield from read_rows(path)
        return
    yield from _json_list(path, path.read_bytes())


def _json_list(path: Path, raw: bytes) -> Iterator[dict[str, Any]]:
    """The objects in a file that is one JSON list."""
    try:
        text = (gzip.decompress(raw) if path.suffix.lower() == ".gz" else raw).decode("utf-8-sig")
        rows = json.loads(text)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: broken gzip file ({error})") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line} is not UTF-8 ({error.reason}): save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        hint = ": JSON by lines is called .jsonl" if "Extra data" in str(error) else ""
        raise ValueError(f"{path} is not JSON ({error}){hint}") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds a {type(rows).__name__}, not a list of rows")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number} is {str(row)[:60]!r}, not an object with named columns")
        yield row
