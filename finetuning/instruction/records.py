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
    try:
        data = path.read_bytes()
        records = json.loads(gzip.decompress(data) if name.endswith(".gz") else data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: broken gzip file ({error})") from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are both ValueErrors
        raise ValueError(f"{path} is not JSON ({error}); a file with an object a line is called .jsonl") from None
    if not isinstance(records, list):
        raise ValueError(f"{path} is JSON, but no list of objects")
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise ValueError(f"{path}, record {number} is {str(record)[:80]!r}, not an object with named columns")
        yield record
