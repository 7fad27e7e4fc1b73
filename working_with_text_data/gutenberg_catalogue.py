"""Project Gutenberg's catalogue: which books there are, to be asked by language, author and subject.

It is one table with a row a book, made anew each week, and lies packed at the address below. A query such as
"language=en author=Austen limit=5" gives book numbers. Of authors and subjects any part will do, in either case; a
language is a code such as en, and a book in two languages has both.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from http.client import HTTPException
from pathlib import Path

from utils import downloads, files

CATALOGUE = "https://www.gutenberg.org/cache/epub/feeds/pg_catalog.csv.gz"
_COLUMNS = {"language": "Language", "author": "Authors", "subject": "Subjects"}


def is_query(books: str) -> bool:
    """Whether this is a query rather than a list of numbers."""
    return "=" in books


def parse_query(query: str) -> dict[str, str]:
    """The conditions of a query; values may have spaces, as in "author=Jane Austen language=en".

    Raises:
        ValueError: it is no such query.
    """
    parts = re.split(r"(?:^|\s)\s*(\w+)=", query)
    conditions = {key: value.strip() for key, value in zip(parts[1::2], parts[2::2], strict=True)}
    known = (*_COLUMNS, "limit")
    if parts[0].strip() or not all(conditions.values()) or not conditions.keys() <= {*known}:
        raise ValueError(f"a query has {', '.join(known)}, each as in author=Austen, not {query!r}")
    if not re.fullmatch("[1-9][0-9]*", conditions.get("limit", "1")):
        raise ValueError(f"limit must be a number above 0, got {conditions['limit']!r}")
    return conditions


def find_books(query: str, catalogue: Path) -> list[int]:
    """The numbers of the texts (not recordings, not pictures) in the catalogue that meet the query, in its order.

    Raises:
        ValueError: it is no query, no book meets it, or the file is no catalogue.
    """
    conditions = parse_query(query)
    limit = int(conditions.pop("limit", 0))
    found: list[int] = []
    try:
        with gzip.open(catalogue, "rt", encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                if row["Type"] == "Text" and all(_meets(row[_COLUMNS[k]], k, v) for k, v in conditions.items()):
                    found.append(int(row["Text#"]))
                    if len(found) == limit:
                        break
    except (KeyError, TypeError, ValueError, EOFError, OSError, csv.Error, zlib.error) as error:
        raise ValueError(f"{catalogue} is damaged or another file ({error!r}): delete it") from None
    if not found:
        raise ValueError(f"no book in the catalogue meets {query!r}")
    return found


def _meets(cell: str, key: str, wanted: str) -> bool:
    if key == "language":
        return wanted.lower() in re.split(r"[;\s]+", cell.lower())
    return wanted.lower() in cell.lower()


def fetch_catalogue(folder: Path, url: str = CATALOGUE) -> Path:
    """The catalogue in `folder`, which is fetched unless it is there; delete it to have a newer one.

    Raises:
        ConnectionError: it cannot be fetched; one line that says where to put it by hand.
    """
    path = folder / "pg_catalog.csv.gz"
    if path.is_file():
        return path
    try:
        data, _ = downloads.fetch(url)
        with gzip.open(io.BytesIO(data)) as file:
            if b"Text#" not in file.readline():
                raise ValueError("something else came")
    except (OSError, HTTPException, ValueError, EOFError, zlib.error) as error:
        raise ConnectionError(
            f"Project Gutenberg's catalogue could not be fetched ({' '.join(str(error).split())}): "
            f"get {url} elsewhere and put it at {path}"
        ) from None
    files.write_bytes(path, data)
    return path
