"""Corpora: a name, a folder or a file becomes a stream of documents, split into training and validation.

A document is the unit that is never torn: a book, a manual page, a module's docstrings. The split is made between
documents, because two halves of one book share names and phrases, and a model that has read the first half would
look better on the second than it is.

| --corpus | documents | needs |
|---|---|---|
| `python-docs` | Python's language reference and the standard library's docstrings | nothing: it is on this machine |
| `gutenberg` | Project Gutenberg's books, header and footer removed | `--books`: ids or a query (network), a folder |
| `smollm` | the SmolLM corpus: web pages and synthetic textbooks, in a `--mix` | network |
| `hub:OWNER/NAME` | the rows of a data set of the Hugging Face hub: one `--hub-config` or a `--mix` of them | network |
| a path | the rows of a .parquet, .jsonl or .jsonl.gz file, or of all such files below a folder | the file |
| a path | a text file, or every .txt, .txt.gz and .md file below a folder without files of rows | the file |

`--mix` takes a folder's subfolders as sources, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from utils.downloads import cache_folder
from utils.errors import UserError
from working_with_text_data import gutenberg
from working_with_text_data.gutenberg_catalogue import fetch_catalogue, find_books, is_query, parse_query
from working_with_text_data.hub_corpora import SMOLLM, require_smollm_texts, resolve_revision, stream_column
from working_with_text_data.mixing import mix_by_bytes, parse_mix
from working_with_text_data.near_duplicates import find_near_duplicates
from working_with_text_data.python_docs import python_docs
from working_with_text_data.rows import ROW_SUFFIXES, read_column
from working_with_text_data.text_files import find_text_files, read_text

Split = Literal["train", "validation"]
TEXT_SUFFIXES = (".txt", ".txt.gz", ".md")


@dataclass(frozen=True)
class Document:
    """One text, the name by which reports speak of it, and what was done to its source (encoding, what was dropped)."""

    name: str
    text: str
    source: dict[str, str | int] = field(default_factory=dict)


HUB, FOLDER, ROWS, TEXTS = "hub:OWNER/NAME", "a folder", "files of rows (.parquet, .jsonl, .jsonl.gz)", "text files"
_BELONGS = {  # the flags that mean something with some corpora alone
    "books": ("gutenberg",),
    "deduplicate": ("gutenberg",),
    "text_column": (HUB, ROWS),
    "mix": ("smollm", HUB, FOLDER),
    "hub_config": (HUB,),
    "hub_split": ("smollm", HUB),
    "revision": ("smollm", HUB),
}


@dataclass(frozen=True)
class CorpusOptions:
    """The flags of every script that reads a corpus."""

    corpus: str = "python-docs"
    """python-docs, gutenberg, smollm, hub:OWNER/NAME, or the path of a file or folder of texts or rows."""
    books: str | None = None
    """With --corpus gutenberg: ids such as 11,84,1342 or 11-20 to download, a query of the catalogue such as
    "language=en author=Austen subject=Fiction limit=9" (each of the four may be left out), or a folder of .txt or
    .txt.gz books."""
    deduplicate: bool = True
    """With --corpus gutenberg: leave out other editions of a book, and books that stand in another one."""
    mix: str | None = None
    """Shares of the bytes, as in web=0.7,books=0.3: of smollm's parts, a hub data set's configs, or subfolders."""
    text_column: str = "text"
    """The column of the rows that holds the text."""
    hub_config: str | None = None
    """The configuration of the hub's data set, where it has several."""
    hub_split: str = "train"
    """The split of the hub's data set."""
    revision: str | None = None
    """The commit, branch or tag of the hub's data set; the newest if not given."""
    max_documents: int | None = None
    """Take this many documents at most; all if not given."""
    max_bytes: int | None = None
    """Take this many bytes of text at most, in whole documents; all if not given."""
    validation_every: int = 10
    """Every n-th document is kept for validation and never trained on."""

    def documents(self, report: dict[str, Any] | None = None) -> Iterator[Document]:
        """The corpus's documents, read as they are asked for; those without text are left out.

        Args:
            report: gets, as the documents are read, what was found: how many were empty, what each source gave.

        Raises:
            UserError: no such corpus or path, flags that do not go together, a book or data set cannot be fetched.
            ValueError: a file is binary, damaged or holds no text; the message names it.
        """
        report = {} if report is None else report
        self._refuse_flags_without_meaning()
        return _take(self._open(report), self.max_documents, self.max_bytes, report)

    def split_documents(self, report: dict[str, Any] | None = None) -> Iterator[tuple[Split, Document]]:
        """The documents, each with its side of the split."""
        return split(self.documents(report), self.validation_every)

    def resolved(self) -> Self:
        """The same options with the hub's revision as the commit that it is now, which decides the documents.

        Raises:
            UserError: the hub cannot be asked.
        """
        self._refuse_flags_without_meaning()
        dataset = self._dataset()
        return self if dataset is None else replace(self, revision=resolve_revision(dataset, self.revision))

    def flags(self) -> list[str]:
        """These options as they would be typed, without those that have their default."""
        words: list[str] = []
        for name, value in self.describe().items():
            if value != _DEFAULTS[name]:
                words += [_flag(f"no_{name}")] if value is False else [_flag(name), str(value)]
        return words

    def describe(self) -> dict[str, str | int | bool | None]:
        """What decides the documents, for a manifest."""
        return {name: getattr(self, name) for name in _DEFAULTS}

    def _refuse_flags_without_meaning(self) -> None:
        if not self.corpus or self.books == "":
            raise UserError("--corpus and --books need a value: an empty one would mean this folder and all below it")
        kinds = self._kinds()
        for name, belongs in _BELONGS.items():
            if getattr(self, name) != _DEFAULTS[name] and not kinds & {*belongs}:
                belonging = " or ".join(belongs)
                raise UserError(f"{_flag(name)} belongs to --corpus {belonging}, and here it is {self.corpus}")
        if self.mix is not None and self.hub_config is not None:
            raise UserError("--mix and --hub-config both choose configurations: give one of them")
        for name in ("max_documents", "max_bytes"):
            if (most := getattr(self, name)) is not None and most < 1:
                raise UserError(f"{_flag(name)} must be at least 1, got {most}")

    def _kinds(self) -> set[str]:
        """What the corpus is, in the words of `_BELONGS`."""
        if self.corpus in ("python-docs", "gutenberg", "smollm"):
            return {self.corpus}
        if self.corpus.startswith("hub:"):
            return {HUB}
        path = Path(self.corpus).expanduser()
        if not path.exists():
            raise UserError(
                f"unknown corpus {self.corpus!r}: use python-docs, gutenberg, smollm, hub:OWNER/NAME, or the path of a "
                "file or folder of texts or rows"
            )
        return {ROWS if _files_of_rows(path) else TEXTS} | ({FOLDER} if path.is_dir() else set())

    def _dataset(self) -> str | None:
        """The hub's name of the corpus, if it comes from there.

        Raises:
            UserError: it cannot be one, or `--mix` asks for what is not in it.
        """
        if self.corpus == "smollm":
            if self.mix is None:
                raise UserError("--corpus smollm needs --mix, such as fineweb-edu-dedup=0.7,cosmopedia-v2=0.3")
            require_smollm_texts(list(parse_mix(self.mix)))
            return SMOLLM
        if not self.corpus.startswith("hub:"):
            return None
        dataset = self.corpus.removeprefix("hub:")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", dataset):
            raise UserError(f"--corpus {self.corpus}: write it as hub:OWNER/NAME, such as hub:roneneldan/TinyStories")
        return dataset

    def _open(self, report: dict[str, Any]) -> Iterator[Document]:
        if self.corpus == "python-docs":
            return (Document(*pair) for pair in python_docs())
        if self.corpus == "gutenberg":
            if self.books is None:
                raise UserError(
                    "--corpus gutenberg needs --books: ids such as 11,84, a query such as author=Austen, or a folder"
                )
            return _gutenberg_documents(self.books, self.deduplicate, report)
        dataset = self._dataset()
        if self.mix is None:
            return self._source(dataset, self.hub_config)
        weights = parse_mix(self.mix)
        sources = {name: map(_with_bytes, self._source(dataset, name)) for name in weights}
        return mix_by_bytes(sources, weights, report)

    def _source(self, dataset: str | None, part: str | None) -> Iterator[Document]:
        """The documents of a part (configuration, subfolder) of the hub's data set or, where it is None, of a path."""
        if dataset is not None:
            rows = stream_column(dataset, part, self.hub_split, self.revision, self.text_column)
            return (Document(*row) for row in rows)
        path = Path(self.corpus).expanduser()
        if part is not None and not (path / part).is_dir():
            there = ", ".join(sorted(child.name for child in path.iterdir() if child.is_dir())) or "none"
            raise UserError(f"--mix: {path} has no folder {part!r}; its folders: {there}")
        place = path / (part or "")
        if _files_of_rows(place):
            return _rows_as_documents(path, place, self.text_column)
        return _files_as_documents(path, place)


_DEFAULTS = {option.name: option.default for option in fields(CorpusOptions)}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def open_corpus(name: str, books: str | None = None) -> Iterator[Document]:
    """The documents of a corpus. See `CorpusOptions.documents` for what it raises."""
    return CorpusOptions(corpus=name, books=books).documents()


def _take(
    documents: Iterable[Document], max_documents: int | None, max_bytes: int | None, report: dict[str, Any]
) -> Iterator[Document]:
    """The documents that hold text, up to a number and to a sum of bytes; how many hold none is counted in `report`."""
    report["empty_texts"] = n_documents = n_bytes = 0
    for document in documents:
        if not document.text.strip():
            report["empty_texts"] += 1
            continue
        if max_bytes is not None:
            n_bytes += _with_bytes(document)[1]
            if n_bytes > max_bytes:
                if not n_documents:
                    raise UserError(f"--max-bytes {max_bytes}: the first document alone has {n_bytes:,} bytes")
                return
        yield document
        n_documents += 1
        if n_documents == max_documents:
            return


def _with_bytes(document: Document) -> tuple[Document, int]:
    return document, len(document.text.encode("utf-8", "replace"))


def _gutenberg_documents(books: str, deduplicate: bool, report: dict[str, Any]) -> Iterator[Document]:
    paths = _gutenberg_files(books)
    if deduplicate:
        paths = _without_near_duplicates(list(paths), report)
    for path in paths:
        book = gutenberg.read_book(path)
        facts = {name: value for name, value in asdict(book).items() if name not in ("name", "text")}
        yield Document(book.name, book.text, facts)


def _gutenberg_files(books: str) -> Iterator[Path]:
    """The files of the books, which are fetched as they are asked for."""
    folder = Path(books).expanduser()
    if folder.is_dir():
        return iter(gutenberg.find_books_in(folder))
    cache = cache_folder() / "gutenberg"
    if is_query(books):
        try:
            parse_query(books)  # before anything is fetched for it
            ids = find_books(books, fetch_catalogue(cache))
        except ValueError as error:
            raise UserError(f"--books: {error}") from None
    else:
        try:
            ids = gutenberg.parse_book_ids(books)
        except ValueError as error:
            raise UserError(f"--books {books}: no such folder, and not ids either ({error})") from None
    return gutenberg.download_books(ids, cache)


def _without_near_duplicates(paths: list[Path], report: dict[str, Any]) -> Iterator[Path]:
    """The books but for those that stand in another one; which were dropped is told in `report`."""
    by_name = {str(path): path for path in paths}
    found = find_near_duplicates(list(by_name), lambda name: gutenberg.read_book(by_name[name]).text)
    report["dropped"] = [
        asdict(duplicate) | {"dropped": by_name[duplicate.dropped].name, "kept": by_name[duplicate.kept].name}
        for duplicate in found
    ]
    dropped = {duplicate.dropped for duplicate in found}
    return (path for name, path in by_name.items() if name not in dropped)


def _files_of_rows(path: Path) -> list[Path]:
    """The files of rows at `path`: itself, or all below it."""
    if path.is_dir():
        return find_text_files(path, ROW_SUFFIXES)
    return [path] if path.name.lower().endswith(ROW_SUFFIXES) else []


def _rows_as_documents(base: Path, path: Path, column: str) -> Iterator[Document]:
    for file in _files_of_rows(path):
        for number, text in enumerate(read_column(file, column), 1):
            yield Document(f"{_name(file, base)}#{number}", text)


def _files_as_documents(base: Path, path: Path) -> Iterator[Document]:
    files = [path] if path.is_file() else find_text_files(path, TEXT_SUFFIXES)
    if not files:
        raise UserError(f"{path} holds no {', '.join((*TEXT_SUFFIXES, *ROW_SUFFIXES))} file")
    for file in files:
        text, encoding = read_text(file)
        yield Document(_name(file, base), text, {"encoding": encoding})


def _name(file: Path, base: Path) -> str:
    return file.relative_to(base).as_posix() if base.is_dir() else file.name


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
