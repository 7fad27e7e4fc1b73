"""Files of rows: JSON by lines, and Parquet, in which data sets are handed around.

JSON by lines has an object a line, and is read by anything. Parquet keeps each column by itself, packed, with its type.
Either way a row comes as a dictionary; a text is a column of it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROW_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def read_rows(path: Path | str, column: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl, .jsonl.gz or .parquet file, read as they are asked for.

    Of Parquet, only `column` is read if it is given and there.

    Raises:
        ValueError: it is damaged or another kind of file, or a line is no JSON object; one line that names it.
        OSError: it cannot be read.
    """
    path = Path(path)
    if not path.name.lower().endswith(ROW_SUFFIXES):
        raise ValueError(f"{path} is not a file of rows: {', '.join(ROW_SUFFIXES)} can be read")
    if path.suffix.lower() == ".parquet":
        yield from _parquet_rows(path, column)
    else:
        yield from _json_rows(path)


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Lines end with a line feed alone: other ends of lines stand inside JSON's strings."""
    packed = path.suffix.lower() == ".gz"
    with gzip.open(path, "rb") if packed else path.open("rb") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _json_row(line, f"{path}, line {number}")
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: broken gzip file ({error})") from None


def _json_row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are both ValueErrors
        raise ValueError(f"{where} is not JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where} is JSON, but no object with named columns")
    return row


def _parquet_rows(path: Path, column: str | None) -> Iterator[dict[str, Any]]:
    import pyarrow  # here, because it takes a while that most commands need not wait; it comes with `datasets`
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns = [column] if column in file.schema_arrow.names else None
            for batch in file.iter_batches(1000, columns=columns):  # of thousands of rows, texts may be a gigabyte
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is damaged or not Parquet ({error})") from None


def require_utf8(text: str, where: str) -> None:
    """JSON can spell half a surrogate pair (`"\\ud83d"`), which no file can hold and no tokenizer can read.

    Raises:
        ValueError: the text has one; the message names `where`.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} holds half a surrogate pair, which is no UTF-8 text: mend or remove it") from None


def read_column(path: Path | str, column: str) -> Iterator[str]:
    """The texts in one column of a file of rows.

    Raises:
        ValueError: as `read_rows`, or a row has no such column, or something else than a text in it.
    """
    for number, row in enumerate(read_rows(path, column), 1):
        if column not in row:
            raise ValueError(
                f"{path}, row {number} has no column {column!r}: it has {', '.join(map(str, row)) or 'none'}"
            )
        if not isinstance(row[column], str):
            raise ValueError(f"{path}, row {number}: {column!r} is {row[column]!r}, not a text")
        yield row[column]
