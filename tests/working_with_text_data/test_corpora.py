"""Corpora give whole documents, split between them, never within (but for a single one)."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tyro
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from utils.errors import UserError
from working_with_text_data.corpora import CorpusOptions, Document, open_corpus, split
from working_with_text_data.python_docs import docstrings, python_docs


def test_python_docs_are_the_reference_and_the_docstrings():
    documents = dict(python_docs())
    assert "assert" in documents["topic:assert"]
    assert "JavaScript Object Notation" in documents["module:json"]
    assert "json.dumps\n\nSerialize" in documents["module:json"]
    assert sum(map(len, documents.values())) > 1_000_000
    assert not any(name.startswith(("module:test.", "module:_")) for name in documents)


def test_docstrings_are_public_and_nothing_is_run():
    source = b'''"""Mine."""
raise SystemExit("a module that must not be imported")
def shown(x):
    """Shown."""
def _hidden(): "Hidden."
class C:
    "A class."
    async def method(self): "A method."
    class _Inner: "Hidden too."
'''
    assert (
        docstrings(source, "m") == "m\n\nMine.\n\n\nm.shown\n\nShown.\n\n\nm.C\n\nA class.\n\n\nm.C.method\n\nA method."
    )
    assert docstrings(b"x = 1", "m") == docstrings(b"def (", "m") == ""


@given(st.integers(1, 60), st.integers(2, 25))
def test_the_split_loses_nothing_and_leaves_text_on_both_sides(n_documents, every):
    documents = [Document(f"d{i}", f"text {i}. " * 20) for i in range(n_documents)]
    sides = list(split(documents, every))
    assert {side for side, _ in sides} == {"train", "validation"}
    assert "".join(d.text for _, d in sides) == "".join(d.text for d in documents)
    if n_documents > 1:
        assert [d for _, d in sides] == documents
        n_validation = sum(side == "validation" for side, _ in sides)
        assert n_validation == max(1, n_documents // every)


def test_a_single_document_is_cut_after_a_paragraph():
    text = "\n\n".join(f"Paragraph {i}." for i in range(100))
    (_, head), (_, tail) = split([Document("one", text, {"encoding": "ascii"})])
    assert head.source == {"encoding": "ascii"}
    assert head.text + tail.text == text
    assert head.text.endswith("\n\n")
    assert 0.85 < len(head.text) / len(text) < 0.92


def test_folders_files_and_encodings(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_bytes("café\r\n".encode("cp1252"))
    (tmp_path / "deep" / "a.txt.gz").write_bytes(gzip.compress("naïve".encode()))
    (tmp_path / "c.md").write_bytes(b"\xef\xbb\xbf# Title")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "._b.txt").write_bytes(b"\0\0\0\0")  # what macOS leaves beside a file
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "UPPER.TXT").write_bytes(b"loud")
    assert {d.name: d.text for d in open_corpus(str(tmp_path))} == {
        "b.txt": "café\n",
        "c.md": "# Title",
        "deep/a.txt.gz": "naïve",
        "UPPER.TXT": "loud",
    }
    assert [d.text for d in open_corpus(str(tmp_path / "b.txt"))] == ["café\n"]


@pytest.mark.parametrize(
    ("name", "books", "message"),
    [
        ("wikipedia", None, "unknown corpus 'wikipedia'"),
        ("gutenberg", None, "needs --books"),
        ("python-docs", "11", "--books belongs to --corpus gutenberg"),
        ("gutenberg", "no/such/folder", "no such folder, and not ids either"),
    ],
)
def test_bad_names_are_refused(name, books, message):
    with pytest.raises(UserError, match=message):
        list(open_corpus(name, books))


def test_empty_and_binary_files_are_refused_by_name(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\0\1\2" * 100)
    with pytest.raises(ValueError, match=r"x\.txt: not a text"):
        list(open_corpus(str(tmp_path / "x.txt")))
    with pytest.raises(UserError, match=r"holds no \.txt"):
        (tmp_path / "nothing").mkdir()
        list(open_corpus(str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match="corpus is empty"):
        list(split([]))
    with pytest.raises(ValueError, match="at least 2"):
        list(CorpusOptions(validation_every=1).split_documents())


# --- books ---------------------------------------------------------------------------------------------------------


def test_other_editions_are_left_out_and_named(tmp_path):
    random = np.random.default_rng(0)
    tale = " ".join(f"w{n}" for n in random.integers(5_000, size=4_000))
    other = " ".join(f"w{n}" for n in random.integers(5_000, size=4_000))
    for name, text in (("pg1", tale), ("pg2", other), ("pg3", tale.upper()), ("pg4", f"{other}\n\n{'new words ' * 9}")):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    options = CorpusOptions(corpus="gutenberg", books=str(tmp_path))
    report: dict[str, Any] = {}
    assert [d.name for d in options.documents(report)] == ["pg1", "pg2"]
    assert [(found["dropped"], found["kept"]) for found in report["dropped"]] == [
        ("pg3.txt", "pg1.txt"),
        ("pg4.txt", "pg2.txt"),
    ]
    kept = replace(options, deduplicate=False).documents()
    assert [d.name for d in kept] == ["pg1", "pg2", "pg3", "pg4"]


def test_a_query_is_looked_up_and_its_books_are_read(tmp_path, monkeypatch):
    cache = tmp_path / "gutenberg"
    cache.mkdir()
    (cache / "pg_catalog.csv.gz").write_bytes(
        gzip.compress(b"Text#,Type,Issued,Title,Language,Authors,Subjects,LoCC,Bookshelves\n7,Text,,T,en,Me,,,\n")
    )
    (cache / "pg7.txt").write_text("My book.", encoding="utf-8")
    monkeypatch.setenv("SCRATCHBOOK_CACHE", str(tmp_path))
    assert [d.text for d in CorpusOptions(corpus="gutenberg", books="author=me").documents()] == ["My book.\n"]
    for wrong in ("author=you", "colour=red", "author="):
        with pytest.raises(UserError, match="--books"):
            list(CorpusOptions(corpus="gutenberg", books=wrong).documents())


# --- rows ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path):
    """A folder with two subfolders of rows, in three kinds of file."""
    texts = {"web/a-10.jsonl": ["x" * 10] * 5, "web/a-9.jsonl.gz": ["first", " \n", "second"]}
    for name, column in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        lines = "".join(json.dumps({"story": text}) + "\n" for text in column).encode()
        (tmp_path / name).write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    (tmp_path / "books").mkdir()
    Dataset.from_list([{"n": i, "story": "y" * 40} for i in range(9)]).to_parquet(tmp_path / "books" / "b.parquet")
    (tmp_path / "README.md").write_text("not a row", encoding="utf-8")
    return tmp_path


def test_a_folder_with_files_of_rows_is_rows(rows):
    report: dict[str, Any] = {}
    found = list(CorpusOptions(corpus=str(rows), text_column="story").documents(report))
    assert [d.name for d in found[:3]] == ["web/a-9.jsonl.gz#1", "web/a-9.jsonl.gz#3", "web/a-10.jsonl#1"]
    assert [d.text for d in found] == ["first", "second", *["x" * 10] * 5, *["y" * 40] * 9]
    assert report["empty_texts"] == 1
    one = CorpusOptions(corpus=str(rows / "books" / "b.parquet"), text_column="story").documents()
    assert [d.name for d in one] == [f"b.parquet#{i}" for i in range(1, 10)]


def test_how_much_is_taken_can_be_bounded(rows):
    options = CorpusOptions(corpus=str(rows), text_column="story")
    for most in (1, 3, 16):
        assert len(list(replace(options, max_documents=most).documents())) == most
    for most, n_documents in ((5, 1), (10, 1), (11, 2), (20, 2), (21, 3), (10_000, 16)):
        assert len(list(replace(options, max_bytes=most).documents())) == n_documents
    with pytest.raises(UserError, match="first document alone has 5 bytes"):
        list(replace(options, max_bytes=4).documents())


def test_subfolders_are_mixed_by_bytes(rows):
    report: dict[str, Any] = {}
    options = CorpusOptions(corpus=str(rows), text_column="story", mix="books=0.8,web=0.2")
    names = [d.name.split("/")[0] for d in options.documents(report)]
    # Bytes taken of books are 40, 80, 120, 160; of web 5, 7 (a blank text), 13, 23, 33: four times as many.
    assert names[:8] == ["books", "web", "web", "books", "web", "books", "web", "books"]
    assert len(names) == 16
    assert report["exhausted"] == ["web", "books"]
    with pytest.raises(UserError, match="has no folder 'wiki'; its folders: books, web"):
        replace(options, mix="wiki=1").documents()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_column": "t"}, "--text-column belongs to --corpus hub:OWNER/NAME or files of rows"),
        ({"mix": "a=1"}, "--mix belongs to --corpus smollm or hub:OWNER/NAME or a folder"),
        ({"hub_config": "c"}, "--hub-config belongs to --corpus hub:OWNER/NAME, and here it is python-docs"),
        ({"corpus": "smollm", "mix": "cosmopedia-v2=1", "text_column": "t"}, "--text-column belongs"),
        ({"corpus": "gutenberg", "books": "11", "revision": "main"}, "--revision belongs"),
        ({"deduplicate": False}, "--deduplicate belongs to --corpus gutenberg"),
        ({"max_bytes": 0}, "--max-bytes must be at least 1"),
        ({"max_documents": -1}, "--max-documents must be at least 1"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        CorpusOptions(**options).documents()


def test_options_can_be_typed_again():
    options = CorpusOptions(corpus="hub:a/b", mix="web=1", max_bytes=10, revision="main", validation_every=5)
    assert tyro.cli(CorpusOptions, args=options.flags()) == options
    books = CorpusOptions(corpus="gutenberg", books="author=Jane Austen", deduplicate=False)
    assert tyro.cli(CorpusOptions, args=books.flags()) == books
    assert CorpusOptions().flags() == []


def test_real_parquet_in_the_hub_s_layout(data_folder):
    report: dict[str, Any] = {}
    mix = "fineweb-edu-dedup-like=0.7,cosmopedia-v2-like=0.3"
    options = CorpusOptions(corpus=str(data_folder / "web"), mix=mix, max_bytes=2_000_000)
    found = list(options.documents(report))
    sizes = Counter[str]()
    for document in found:
        sizes[document.name.split("/")[0]] += len(document.text.encode())
    assert sizes["fineweb-edu-dedup-like"] / sizes.total() == pytest.approx(0.7, abs=0.01)
    assert found == list(options.documents())
