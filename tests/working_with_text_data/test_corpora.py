"""Corpora give whole documents, split between them, never within (but for a single one)."""

from __future__ import annotations

import gzip

import pytest
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
        ("python-docs", "11", "--books goes with --corpus gutenberg"),
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
