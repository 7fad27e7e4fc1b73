"""Documents to shard files that grow, and go on growing after a stop.

A corpus may take days to tokenise, so a stop must not lose them. While the files grow, they are flushed to the disk
every few seconds, and only then does `progress.json` say how long each of them is and how many documents are in them.
A kill can cut a file anywhere, but behind the length that stands there nothing counts. Who goes on cuts the files to
these lengths, reads past the documents that are done, and writes what would have been written: the same bytes, however
often it was stopped. That they are the same documents is checked by a hash of all that was read.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from utils.files import read_json, write_json
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.corpora import Document, Split

DOCUMENTS = "documents.jsonl"
PROGRESS = "progress.json"
SPLITS: tuple[Split, ...] = ("train", "validation")
SAVE_SECONDS = 10.0  # the most work that a kill can lose


class SplitWriter:
    """Appends ids to `<split>_00000.bin`, `<split>_00001.bin`, … of at most `shard_tokens` tokens each.

    Goes on from `done`, an earlier writer's `summary`: a last shard that is not full is open again.
    """

    def __init__(
        self, folder: Path, split: Split, dtype: np.dtype[Any], shard_tokens: int, done: dict[str, Any] | None
    ) -> None:
        self.folder, self.split, self.dtype, self.shard_tokens = folder, split, dtype, shard_tokens
        self.shards: list[dict[str, Any]] = done["shards"] if done else []
        self.documents: int = done["documents"] if done else 0
        self.bytes: int = done["bytes"] if done else 0
        self._file: Any = None
        if self.shards and self.shards[-1]["tokens"] < shard_tokens:
            self._reopen(self.shards[-1])

    def _reopen(self, shard: dict[str, Any]) -> None:
        self._open(shard, "r+b")
        self._file.truncate(shard["tokens"] * self.dtype.itemsize)
        while data := self._file.read(2**20):  # leaves the file at its end, where writing goes on
            self._digest.update(data)

    def _open(self, shard: dict[str, Any], mode: str) -> None:
        self._file, self._digest = (self.folder / shard["file"]).open(mode), hashlib.sha256()

    def add(self, ids: npt.NDArray[Any], n_bytes: int) -> None:
        self.documents += 1
        self.bytes += n_bytes
        while len(ids):
            if self._file is None:
                self.shards.append({"file": f"{self.split}_{len(self.shards):05d}.bin", "tokens": 0})
                self._open(self.shards[-1], "wb")
            shard = self.shards[-1]
            part, ids = np.split(ids, [self.shard_tokens - shard["tokens"]])
            data = part.astype(self.dtype).tobytes()
            self._file.write(data)
            self._digest.update(data)
            shard["tokens"] += len(part)
            if shard["tokens"] == self.shard_tokens:
                self.finish_shard()

    def flush(self) -> None:
        if self._file is not None:
            _flush_to_disk(self._file)

    def finish_shard(self) -> None:
        if self._file is not None:
            self.flush()
            self.close()
            self.shards[-1]["sha256"] = self._digest.hexdigest()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def summary(self) -> dict[str, Any]:
        tokens = sum(shard["tokens"] for shard in self.shards)
        return {"documents": self.documents, "bytes": self.bytes, "tokens": tokens, "shards": self.shards}


def _size(path: Path) -> int:
    """Of the file in bytes; -1 if there is none."""
    return path.stat().st_size if path.is_file() else -1


def _flush_to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


@dataclass(frozen=True)
class TokenisedDocument:
    """A document's side, facts for the listing, ids and end, and a hash of all documents up to this one."""

    split: Split
    facts: dict[str, Any]
    ids: npt.NDArray[Any]
    sha256_so_far: str


class ShardsWriter:
    """The growing folder: both sides, the list of documents, and how far they are.

    Use as a context manager, which closes the files.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any], shard_tokens: int) -> None:
        self.folder = folder
        done = self._read_progress(dtype)
        self.documents: int = done.get("documents", 0)
        self.documents_sha256: str = done.get("documents_sha256", hashlib.sha256().hexdigest())
        self.splits = {split: SplitWriter(folder, split, dtype, shard_tokens, done.get(split)) for split in SPLITS}
        self._listing = (folder / DOCUMENTS).open("r+b" if done else "wb")
        self._listing.truncate(done.get("listing_bytes", 0))
        self._listing.seek(0, os.SEEK_END)
        self._saved = time.monotonic()

    def _read_progress(self, dtype: np.dtype[Any]) -> dict[str, Any]:
        """What `progress.json` says, or nothing where there is none or the files are shorter: a disk that lost them."""
        path = self.folder / PROGRESS
        done: dict[str, Any] = read_json(path) if path.is_file() else {}
        lengths = {DOCUMENTS: done["listing_bytes"]} if done else {}
        for split in SPLITS if done else ():
            lengths |= {shard["file"]: shard["tokens"] * dtype.itemsize for shard in done[split]["shards"]}
        if any(_size(self.folder / name) < length for name, length in lengths.items()):
            self.forget()
            return {}
        return done

    def add(self, document: TokenisedDocument) -> None:
        self.splits[document.split].add(document.ids, document.facts["bytes"])
        self._listing.write((json.dumps(document.facts, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
        self.documents += 1
        self.documents_sha256 = document.sha256_so_far

    def is_time_to_save(self) -> bool:
        return time.monotonic() - self._saved >= SAVE_SECONDS

    def save(self) -> None:
        """Everything so far on the disk, and only then the word that it is there."""
        for writer in self.splits.values():
            writer.flush()
        _flush_to_disk(self._listing)
        progress = {"documents": self.documents, "documents_sha256": self.documents_sha256}
        progress |= {"listing_bytes": self._listing.tell()}
        write_json(self.folder / PROGRESS, progress | self.summaries())
        self._saved = time.monotonic()

    def finish(self) -> None:
        """Gives the last shards their checksums, and saves for the last time."""
        for writer in self.splits.values():
            writer.finish_shard()
        self.save()

    def forget(self) -> None:
        """What is here is of no use: nobody goes on with it."""
        (self.folder / PROGRESS).unlink(missing_ok=True)

    def summaries(self) -> dict[str, Any]:
        return {split: writer.summary() for split, writer in self.splits.items()}

    def __enter__(self) -> ShardsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._listing.close()
        for writer in self.splits.values():
            writer.close()


def tokenise(
    documents: Iterable[tuple[Split, Document]], tokenizer: BytePairTokenizer, processes: int, done: ShardsWriter
) -> Iterator[TokenisedDocument]:
    """The documents behind those that are done, tokenised a few megabytes at a time.

    Raises:
        ValueError: those that are done are not the first of `documents`.
    """
    stream = iter(documents)
    digest = hashlib.sha256()
    waiting: deque[tuple[Split, dict[str, Any], str]] = deque()  # what is known of the texts that the tokenizer holds

    def read(split: Split, document: Document) -> int:
        data = document.text.encode("utf-8", "replace")
        digest.update(f"{split} {document.name} {len(data)}\n".encode("utf-8", "replace") + data)
        return len(data)

    def texts() -> Iterator[str]:
        for split, document in islice(stream, done.documents):
            read(split, document)
        if digest.hexdigest() != done.documents_sha256:
            done.forget()
            raise ValueError("the corpus is not what it was when this work began: the same command now begins anew")
        for split, document in stream:
            facts = {"name": document.name, "split": split, "bytes": read(split, document), "tokens": 0}
            waiting.append((split, facts | document.source, digest.hexdigest()))
            yield document.text

    for ids in tokenizer.encode_batch_to_numpy(texts(), num_processes=processes, disallowed_special=()):
        split, facts, sha256_so_far = waiting.popleft()
        facts["tokens"] = len(ids) + 1
        yield TokenisedDocument(split, facts, np.append(ids, tokenizer.eot_token), sha256_so_far)
