"""Token shards: documents as one long row of ids on disk, read through memory mapping, served as batches.

Training asks for random windows of a corpus that may be larger than memory. So the corpus is tokenised once, and the
ids are kept as plain arrays of 16-bit integers (32-bit for vocabularies above 65,536). The operating system maps the
files into memory and reads only the pages that are touched.

    documents  ->  ids + <|endoftext|>  ids + <|endoftext|>  …  ->  train_00000.bin, train_00001.bin, …
                                                                    validation_00000.bin, …

`<|endoftext|>` *follows* every document: it tells the model that what comes next has nothing to do with what was.

A folder of shards is complete in itself: the ids mean nothing without their tokenizer, so `tokenizer.json` lies with
them, and `manifest.json` holds its fingerprint, counts, checksums, and the settings that made all of it.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from utils.files import latest_whole_folder, read_json, replace_folder, sha256_of, write_json
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.corpora import Document, Split

FORMAT = "scratchbook-token-shards-1"
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
DOCUMENTS = "documents.jsonl"
_OWNED = (TOKENIZER, DOCUMENTS, "train_*.bin", "validation_*.bin")
SPLITS: tuple[Split, ...] = ("train", "validation")


def token_dtype(n_vocab: int) -> np.dtype[Any]:
    """The smallest of the two integer types that holds every id, little-endian on every machine."""
    return np.dtype("<u2") if n_vocab <= 2**16 else np.dtype("<u4")


class _SplitWriter:
    """Appends ids to `<split>_00000.bin`, `<split>_00001.bin`, … of at most `shard_tokens` tokens each."""

    def __init__(self, folder: Path, split: Split, dtype: np.dtype[Any], shard_tokens: int) -> None:
        self.folder, self.split, self.dtype, self.shard_tokens = folder, split, dtype, shard_tokens
        self.shards: list[dict[str, Any]] = []
        self.documents = self.bytes = 0
        self._file: Any = None

    def add(self, ids: npt.NDArray[Any], n_bytes: int) -> None:
        self.documents += 1
        self.bytes += n_bytes
        while len(ids):
            if self._file is None:
                name = f"{self.split}_{len(self.shards):05d}.bin"
                self.shards.append({"file": name, "tokens": 0})
                self._file, self._digest = (self.folder / name).open("wb"), hashlib.sha256()
            shard = self.shards[-1]
            part, ids = np.split(ids, [self.shard_tokens - shard["tokens"]])
            data = part.astype(self.dtype).tobytes()
            self._file.write(data)
            self._digest.update(data)
            shard["tokens"] += len(part)
            if shard["tokens"] == self.shard_tokens:
                self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file, self.shards[-1]["sha256"] = None, self._digest.hexdigest()

    def summary(self) -> dict[str, Any]:
        tokens = sum(shard["tokens"] for shard in self.shards)
        return {"documents": self.documents, "bytes": self.bytes, "tokens": tokens, "shards": self.shards}


def write_shards(
    folder: Path | str,
    documents: Iterable[tuple[Split, Document]],
    tokenizer: BytePairTokenizer,
    made_by: dict[str, Any],
    shard_tokens: int = 100_000_000,
) -> dict[str, Any]:
    """Tokenises documents into a shards folder, which appears whole or not at all, and returns its manifest.

    Args:
        documents: (side of the split, document); each is read, tokenised and let go.
        tokenizer: must have `<|endoftext|>`.
        made_by: kept in the manifest: command, corpus, versions.
        shard_tokens: tokens in one file at most.

    Raises:
        ValueError: no text for training or for validation, or `folder` holds something else.
        OSError: cannot be written, disk full; an older folder stays as it was.
    """
    end = np.array([tokenizer.eot_token])
    dtype = token_dtype(tokenizer.n_vocab)
    with replace_folder(folder, MANIFEST, _OWNED) as staging:
        writers = {split: _SplitWriter(staging, split, dtype, shard_tokens) for split in SPLITS}
        try:
            with open(staging / DOCUMENTS, "w", encoding="utf-8") as listing:
                for split, document in documents:
                    ids = np.array(tokenizer.encode_ordinary(document.text), dtype=np.int64)
                    n_bytes = len(document.text.encode("utf-8", "replace"))
                    writers[split].add(np.concatenate([ids, end]), n_bytes)
                    facts = {"name": document.name, "split": split, "bytes": n_bytes, "tokens": len(ids) + 1}
                    listing.write(json.dumps(facts | document.source, ensure_ascii=False) + "\n")
        finally:
            for writer in writers.values():
                writer.close()
        for split, writer in writers.items():
            if not writer.bytes:
                raise ValueError(f"the corpus leaves no text for {split}: it is empty or too small to split")
        tokenizer.save(staging / TOKENIZER)
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "dtype": dtype.name,
            "n_vocab": tokenizer.n_vocab,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "made_by": made_by,
        }
        manifest |= {split: writer.summary() for split, writer in writers.items()}
        write_json(staging / MANIFEST, manifest)
    return manifest


@dataclass(frozen=True)
class TokenShards:
    """An opened shards folder. `arrays[split]` are the memory-mapped files of that side, in order."""

    folder: Path
    manifest: dict[str, Any]
    tokenizer: BytePairTokenizer
    arrays: dict[Split, list[npt.NDArray[Any]]]

    @classmethod
    def open(cls, folder: Path | str, tokenizer_path: Path | str | None = None) -> TokenShards:
        """Opens the folder and checks that its tokenizer is the one that made its ids.

        Args:
            tokenizer_path: use this `tokenizer.json` in place of the folder's own.

        Raises:
            ValueError: not a shards folder, a shard is missing or cut short, the tokenizer is missing or another one.
        """
        folder = latest_whole_folder(folder, MANIFEST)
        if not (folder / MANIFEST).is_file():
            raise ValueError(
                f"no token shards in {folder}: make them with `python pretraining/prepare_data.py --out {folder}`"
            )
        manifest = read_json(folder / MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ValueError(f"{folder / MANIFEST} is not a manifest of {FORMAT}: prepare the data again")
        tokenizer_path = Path(tokenizer_path or folder / TOKENIZER)
        tokenizer = BytePairTokenizer.load(tokenizer_path)
        if tokenizer.fingerprint != manifest["tokenizer_fingerprint"]:
            raise ValueError(
                f"{tokenizer_path} is not the tokenizer that made the shards in {folder}: "
                "use that one, or prepare the data again with this one"
            )
        dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        arrays = {split: [_map(folder, shard, dtype) for shard in manifest[split]["shards"]] for split in SPLITS}
        return cls(folder, manifest, tokenizer, arrays)

    def verify(self) -> None:
        """Reads every shard and compares its checksum with the manifest's.

        Raises:
            ValueError: a shard is not what was written.
        """
        for split in SPLITS:
            for shard in self.manifest[split]["shards"]:
                if sha256_of(self.folder / shard["file"]) != shard["sha256"]:
                    raise ValueError(f"{self.folder / shard['file']} is damaged: prepare the data again")


def _map(folder: Path, shard: dict[str, Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    path = folder / shard["file"]
    size = path.stat().st_size if path.is_file() else 0
    if size != shard["tokens"] * dtype.itemsize:
        raise ValueError(f"{path} has {size:,} bytes, not {shard['tokens'] * dtype.itemsize:,}: prepare the data again")
    return np.memmap(path, dtype=dtype, mode="r")


class Batches:
    """Batches of windows: each at most once an epoch, in an order that (seed, epoch) decides alone.

    A window is `context_length + 1` ids: the inputs, and the same moved by one as targets. Neighbouring windows share
    one id, so that no id is a target twice. Each epoch begins at another offset, so that cuts fall elsewhere, and
    leaves out what does not fill a batch: other windows each time. Batch number `step` can be asked for directly, so a
    run that resumes at step N sees what it would have seen. Windows never cross from one shard file to the next.

    Args:
        arrays: the memory-mapped shards of one side.
        context_length: tokens the model reads at once.
        batch_size: windows in a batch.
        seed: decides the order.

    Raises:
        ValueError: there are fewer windows than one batch needs.
    """

    def __init__(
        self,
        arrays: list[npt.NDArray[Any]],
        context_length: int,
        batch_size: int,
        seed: int = 0,
        name: str = "the data",
    ) -> None:
        if context_length < 1 or batch_size < 1:
            raise ValueError(f"context length and batch size must be at least 1, got {context_length} and {batch_size}")
        self.arrays, self.context_length, self.batch_size, self.seed = arrays, context_length, batch_size, seed
        # One window fewer than fit, so that the offset of an epoch (0 … context_length - 1) always has room.
        per_array = [max((len(array) - 1) // context_length - 1, 0) for array in arrays]
        self._ends = list(np.cumsum(per_array))
        self.windows = int(self._ends[-1]) if arrays else 0
        self.steps_per_epoch = self.windows // batch_size
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"{name} has {sum(map(len, arrays)):,} tokens, too few for a batch of {batch_size} windows of "
                f"{context_length} (and one more): use more text, a shorter context or a smaller batch"
            )
        self._epoch = -1

    def batch(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(inputs, targets) of batch number `step`, each int64 (batch_size, context_length)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            random = np.random.default_rng((self.seed, epoch))
            self._offset = int(random.integers(self.context_length))
            self._order = random.permutation(self.windows)
            self._epoch = epoch
        rows = self._order[position * self.batch_size : (position + 1) * self.batch_size]
        windows = np.stack([self._window(int(row)) for row in rows]).astype(np.int64)
        return windows[:, :-1], windows[:, 1:]

    def _window(self, row: int) -> npt.NDArray[Any]:
        which = bisect.bisect_right(self._ends, row)
        first = row - (self._ends[which - 1] if which else 0)
        start = int(first) * self.context_length + self._offset
        return self.arrays[which][start : start + self.context_length + 1]


def evaluation_windows(
    arrays: list[npt.NDArray[Any]], context_length: int, max_tokens: int | None = None
) -> npt.NDArray[np.int64]:
    """Fixed windows for measuring: side by side over all the text, or evenly spread if `max_tokens` allows fewer.

    Returns:
        int64 (windows, context_length + 1). Text that is shorter than a context gives one short window.

    Raises:
        ValueError: there is no token to predict.
    """
    starts = [(array, i) for array in arrays for i in range(0, len(array) - context_length, context_length)]
    if not starts:
        longest = max(arrays, key=len, default=np.zeros(0))
        if len(longest) < 2:
            raise ValueError("there is too little validation text: not one token to predict")
        return longest[None].astype(np.int64)
    allowed = len(starts) if max_tokens is None else max(1, max_tokens // context_length)
    if allowed < len(starts):
        starts = [starts[i] for i in np.linspace(0, len(starts) - 1, allowed).round().astype(int)]
    return np.stack([array[i : i + context_length + 1] for array, i in starts]).astype(np.int64)
