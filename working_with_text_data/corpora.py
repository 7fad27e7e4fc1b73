"""Corpora: a name, a folder or a file becomes a stream of documents, split into training and validation.

A document is the unit that is never torn: a book, a manual page, a module's docstrings. The split is made between
documents, because two halves of one book share names and phrases, and a model that has read the first half would
look better on the second than it is.

| --corpus | documents | needs |
|---|---|---|
| `python-docs` | Python's language reference and the standard library's docstrings | nothing: it is on this machine |
| `gutenberg` | Project Gutenberg's books, header and footer removed | `--books` with ids (network) or a folder |
| a path | a text file, or every .txt, .txt.gz and .md file below a folder | the file |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from utils.downloads import cache_folder
from utils.errors import UserError
from working_with_text_data import gutenberg
from working_with_text_data.python_docs import python_docs
from working_with_text_data.text_files import find_text_files, read_text

Split = Literal["train", "validation"]
TEXT_SUFFIXES = (".txt", ".txt.gz", ".md")


@dataclass(frozen=True)
class Document:
    """One text, the name by which reports speak of it, and what was done to its source (encoding, what was dropped)."""

    name: str
    text: str
    source: dict[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class CorpusOptions:
    """The flags of every script that reads a corpus."""

    corpus: str = "python-docs"
    """python-docs, gutenberg, or the path of a text file or folder."""
    books: str | None = None
    """With --corpus gutenberg: ids such as 11,84,1342 or 11-20 to download, or a folder of .txt or .txt.gz books."""
    validation_every: int = 10
    """Every n-th document is kept for validation and never trained on."""

    def documents(self) -> Iterator[Document]:
        """The corpus's documents, read as they are asked for. See `open_corpus` for what it raises."""
        return open_corpus(self.corpus, self.books)

    def split_documents(self) -> Iterator[tuple[Split, Document]]:
        """The documents, each with its side of the split."""
        return split(self.documents(), self.validation_every)

    def flags(self) -> list[str]:
        """These options as they would be typed, without those that have their default."""
        chosen = {"--corpus": self.corpus, "--books": self.books, "--validation-every": str(self.validation_every)}
        default = CorpusOptions()
        defaults = (default.corpus, default.books, str(default.validation_every))
        return [
            word
            for (flag, value), usual in zip(chosen.items(), defaults, strict=True)
            if value is not None and value != usual
            for word in (flag, value)
        ]

    def describe(self) -> dict[str, str | int | None]:
        """What decides the documents, for a manifest."""
        return {"corpus": self.corpus, "books": self.books, "validation_every": self.validation_every}


def open_corpus(name: str, books: str | None = None) -> Iterator[Document]:
    """The documents of a corpus.

    Raises:
        UserError: no such corpus or path, `books` is missing or not wanted, a book cannot be downloaded.
        ValueError: a file is binary, damaged or holds no text; the message names it.
    """
    if not name or books == "":
        raise UserError("--corpus and --books need a value: an empty one would mean this folder and all below it")
    if books is not None and name != "gutenberg":
        raise UserError(f"--books goes with --corpus gutenberg, not with --corpus {name}")
    if name == "python-docs":
        return (Document(*pair) for pair in python_docs())
    if name == "gutenberg":
        if books is None:
            raise UserError(
                "--corpus gutenberg needs --books: ids such as 11,84,1342, or a folder of .txt or .txt.gz books"
            )
        return _gutenberg_documents(books)
    path = Path(name).expanduser()
    if path.exists():
        return _files_as_documents(path)
    raise UserError(f"unknown corpus {name!r}: use python-docs, gutenberg, or the path of a text file or folder")


def _gutenberg_documents(books: str) -> Iterator[Document]:
    folder = Path(books).expanduser()
    if folder.is_dir():
        found = gutenberg.read_books_folder(folder)
    else:
        try:
            ids = gutenberg.parse_book_ids(books)
        except ValueError as error:
            raise UserError(f"--books {books}: no such folder, and not ids either ({error})") from None
        found = map(gutenberg.read_book, gutenberg.download_books(ids, cache_folder() / "gutenberg"))
    for book in found:
        facts = {name: value for name, value in asdict(book).items() if name not in ("name", "text")}
        yield Document(book.name, book.text, facts)


def _files_as_documents(path: Path) -> Iterator[Document]:
    files = [path] if path.is_file() else find_text_files(path, TEXT_SUFFIXES)
    if not files:
        raise UserError(f"{path} holds no {', '.join(TEXT_SUFFIXES)} file")
    for file in files:
        text, encoding = read_text(file)
        if text.strip():
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            yield Document(name, text, {"encoding": encoding})


def split(documents: Iterable[Document], validation_every: int = 10) -> Iterator[tuple[Split, Document]]:
    """Marks each document "train" or "validation": every `validation_every`-th is for validation.

    A corpus of fewer documents gives its last one; a single document is cut in two, its last tenth for validation.

    Raises:
        ValueError: `validation_every` is below 2, or there is no document.
    """
    if validation_every < 2:
        raise ValueError(f"validation_every must be at least 2, got {validation_every}")
    stream = iter(documents)
    held = next(stream, None)
    if held is None:
        raise ValueError("the corpus is empty: there is no document in it")
    has_validation = False
    number = 1
    for following in stream:
        side: Split = "validation" if number % validation_every == 0 else "train"
        has_validation |= side == "validation"
        yield side, held
        held, number = following, number + 1
    if number == 1:
        head, tail = _cut(held.text)
        yield "train", replace(held, name=f"{held.name}, first part", text=head)
        yield "validation", Document(f"{held.name}, last part", tail)
    else:
        yield "train" if has_validation and number % validation_every else "validation", held


def _cut(text: str) -> tuple[str, str]:
    """`text` in two, nine tenths of the way, after the last paragraph or line that ends there."""
    aim = len(text) * 9 // 10
    for separator in ("\n\n", "\n", " "):
        if (at := text.rfind(separator, aim // 2, aim)) > 0:
            return text[: at + len(separator)], text[at + len(separator) :]
    return text[:aim], text[aim:]
