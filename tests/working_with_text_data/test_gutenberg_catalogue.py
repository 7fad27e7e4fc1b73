"""The catalogue: a small one made for the test, in the form of the real one."""

from __future__ import annotations

import csv
import gzip
import io

import pytest

from utils import downloads
from working_with_text_data.gutenberg_catalogue import fetch_catalogue, find_books, is_query, parse_query

COLUMNS = ["Text#", "Type", "Issued", "Title", "Language", "Authors", "Subjects", "LoCC", "Bookshelves"]
AUSTEN = "Austen, Jane, 1775-1817"
ROWS = [
    ["105", "Text", "1994-02-01", "Persuasion", "en", AUSTEN, "Love stories; England -- Fiction", "PR", ""],
    ["1342", "Text", "1998-06-01", "Pride and\nPrejudice", "en", AUSTEN, "Courtship -- Fiction", "PR", "Best Books"],
    ["20890", "Sound", "2007-03-01", "Emma", "en", AUSTEN, "England -- Fiction", "PR", ""],
    ["42078", "Text", "2013-02-01", "The Letters of Jane Austen", "en", AUSTEN, "Correspondence", "PR", ""],
    ["4650", "Text", "2003-11-01", "Candide", "fr", "Voltaire, 1694-1778", "Fiction", "PQ", ""],
    ["500", "Text", "1996-04-01", "Deux langues", "en; fr", "Collodi", "", "PZ", ""],
]


def packed_catalogue() -> bytes:
    table = io.StringIO()
    csv.writer(table).writerows([COLUMNS, *ROWS])
    return gzip.compress(table.getvalue().encode("utf-8"), mtime=0)


@pytest.fixture
def catalogue(tmp_path):
    path = tmp_path / "pg_catalog.csv.gz"
    path.write_bytes(packed_catalogue())
    return path


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("author=austen", [105, 1342, 42078]),
        ("author=Austen, Jane subject=fiction", [105, 1342]),
        ("subject=Fiction author=Austen limit=1", [105]),
        ("language=fr", [4650, 500]),
        ("language=EN  limit=3", [105, 1342, 42078]),
        ("limit=2", [105, 1342]),
    ],
)
def test_books_are_found(catalogue, query, ids):
    assert is_query(query)
    assert find_books(query, catalogue) == ids


@pytest.mark.parametrize(
    "query", ["title=Emma", "Austen author=x", "author=", "limit=0", "limit=many", "author=a limit="]
)
def test_what_is_no_query_is_refused(query):
    with pytest.raises(ValueError, match=r"a query has|limit must be"):
        parse_query(query)


def test_nothing_found_and_a_damaged_file_are_told(catalogue):
    with pytest.raises(ValueError, match="no book in the catalogue meets 'language=e'"):
        find_books("language=e", catalogue)  # a code, not a part of one
    for data in (
        b"no gzip",
        gzip.compress(b"a,b\n1,2\n", mtime=0),
        packed_catalogue()[:-9],
        gzip.compress(b"\xff\n", mtime=0),
    ):
        catalogue.write_bytes(data)
        with pytest.raises(ValueError, match="damaged or another file"):
            find_books("author=nobody", catalogue)


def test_it_is_fetched_once(tmp_path, monkeypatch):
    asked: list[str] = []

    def fetch(url):
        asked.append(url)
        return packed_catalogue(), "application/gzip"

    monkeypatch.setattr(downloads, "fetch", fetch)
    for _ in range(2):
        assert find_books("author=Voltaire", fetch_catalogue(tmp_path / "cache")) == [4650]
    assert asked == ["https://www.gutenberg.org/cache/epub/feeds/pg_catalog.csv.gz"]


@pytest.mark.parametrize(
    "answer", [b"<html>busy</html>", gzip.compress(b"something else", mtime=0), b"", OSError("no route")]
)
def test_without_it_one_line_says_where_to_put_it(tmp_path, monkeypatch, answer):
    def fetch(url):
        if isinstance(answer, OSError):
            raise answer
        return answer, "text/html"

    monkeypatch.setattr(downloads, "fetch", fetch)
    with pytest.raises(ConnectionError, match=r"put it at .*pg_catalog\.csv\.gz") as caught:
        fetch_catalogue(tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
