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
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from utils.errors import interrupts_wait
from utils.files import latest_whole_folder, read_json, replace_folder, resume_folder, sha256_of, write_json
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.corpora import Document, Split
from working_with_text_data.shard_writer import DOCUMENTS, PROGRESS, SPLITS, ShardsWriter, tokenise

FORMAT = "scratchbook-token-shards-1"
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
_OWNED = (TOKENIZER, DOCUMENTS, PROGRESS, "train_*.bin", "validation_*.bin")


def token_dtype(n_vocab: int) -> np.dtype[Any]:
    """The smallest of the two integer types that holds every id, little-endian on every machine."""
    return np.dtype("<u2") if n_vocab <= 2**16 else np.dtype("<u4")


def write_shards(
    folder: Path | str,
    documents: Iterable[tuple[Split, Document]],
    tokenizer: BytePairTokenizer,
    made_by: dict[str, Any],
    shard_tokens: int = 100_000_000,
    processes: int = 1,
    settings: dict[str, Any] | None = None,
    report: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Tokenises documents into a shards folder, which appears whole or not at all, and returns its manifest.

    Args:
        documents: (side of the split, document); each is read, tokenised and let go.
        tokenizer: must have `<|endoftext|>`.
        made_by: kept in the manifest: command, corpus, versions.
        shard_tokens: tokens in one file at most.
        processes: that tokenise at the same time; the shards are the same for any number.
        settings: what decides the documents, kept in the manifest. If given, a call that is stopped leaves its work
            beside `folder`, and a call with equal settings goes on with it.
        report: kept in the manifest as it is when all documents are read.

    Raises:
        ValueError: no text for training or for validation, `folder` holds something else, another process is at it, or
            the documents are not those that the work to go on with was begun with.
        OSError: cannot be written, disk full; an older folder stays as it was.
    """
    dtype = token_dtype(tokenizer.n_vocab)
    identity = {"format": FORMAT, "tokenizer_fingerprint": tokenizer.fingerprint, "shard_tokens": shard_tokens}
    with (
        _staging_folder(folder, identity, settings) as staging,
        ShardsWriter(staging, dtype, shard_tokens) as writer,
    ):
        try:
            for document in tokenise(documents, tokenizer, processes, writer):
                with interrupts_wait():
                    writer.add(document)
                    if writer.is_time_to_save():
                        writer.save()
        except KeyboardInterrupt:
            if writer.documents and settings is not None:
                writer.save()
                print(f"\nThe first {writer.documents:,} documents are kept: the same command goes on behind them")
            raise
        writer.finish()
        for split, part in writer.summaries().items():
            if not part["bytes"]:
                raise ValueError(f"the corpus leaves no text for {split}: it is empty or too small to split")
        tokenizer.save(staging / TOKENIZER)
        manifest: dict[str, Any] = {
            **identity,
            "dtype": dtype.name,
            "n_vocab": tokenizer.n_vocab,
            "made_by": made_by,
            "settings": settings or {},
            "report": report or {},
            "documents_sha256": writer.documents_sha256,
            **writer.summaries(),
        }
        write_json(staging / MANIFEST, manifest)
    (Path(folder) / PROGRESS).unlink(missing_ok=True)  # not before the folder is in its place
    return manifest


def _staging_folder(
    folder: Path | str, identity: dict[str, Any], settings: dict[str, Any] | None
) -> AbstractContextManager[Path]:
    if settings is None:
        return replace_folder(folder, MANIFEST, _OWNED)
    key = hashlib.sha256(json.dumps([identity, settings], sort_keys=True, default=str).encode()).hexdigest()
    return resume_folder(folder, MANIFEST, _OWNED, key[:16], PROGRESS)


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
            ValueError: not a shards folder, its manifest is damaged, a shard is missing or cut short, the tokenizer is
                missing or another one.
        """
        folder = latest_whole_folder(folder, MANIFEST)
        if not (folder / MANIFEST).is_file():
            raise ValueError(
                f"no token shards in {folder}: make them with `python pretraining/prepare_data.py --out {folder}`"
            )
        manifest = _read_manifest(folder / MANIFEST)
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


def _read_manifest(path: Path) -> dict[str, Any]:
    """A manifest that has all that is read from it.

    Raises:
        ValueError: it has not.
    """
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path} is not a manifest of {FORMAT}: prepare the data again")
    is_whole: dict[str, bool] = {
        "tokenizer_fingerprint": isinstance(manifest.get("tokenizer_fingerprint"), str),
        "dtype": manifest.get("dtype") in ("uint16", "uint32"),
        "made_by": isinstance(manifest.get("made_by"), dict),
        **{split: _is_side(manifest.get(split)) for split in SPLITS},
    }
    if damaged := [name for name, whole in is_whole.items() if not whole]:
        raise ValueError(f"{path} is damaged, it has no whole {damaged[0]!r}: prepare the data again")
    return manifest


def _is_side(side: Any) -> bool:
    """Whether it is what a manifest says of one side of the split, as far as that is read."""
    shards = side.get("shards") if isinstance(side, dict) else None
    return isinstance(shards, list) and all(
        isinstance(shard, dict)
        and isinstance(shard.get("file"), str)
        and isinstance(shard.get("sha256"), str)
        and type(shard.get("tokens")) is int
        and shard["tokens"] > 0
        for shard in shards
    )


def _map(folder: Path, shard: dict[str, Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    path = folder / shard["file"]
    size = path.stat().st_size if path.is_file() else 0
    if size != shard["tokens"] * dtype.itemsize:
        raise ValueError(f"{path} has {size:,} bytes, not {shard['tokens'] * dtype.itemsize:,}: prepare the data again")
    return np.memmap(path, dtype=dtype, mode="r")


IGNORE = -100  # a target that is not asked for: torch's own convention


class Batches:
    """Batches of windows: every token is a target once an epoch, in an order that (seed, epoch) decides alone.

    The shards are read as one ring of N ids: each id is the target of the one before it, and the first that of the
    last, an `<|endoftext|>`. An epoch lays windows of `context_length` side by side around the ring, from an offset of
    its own so that cuts fall elsewhere, and takes them in a shuffled order. The last window is short where the length
    does not divide N: what it lacks is filled up, with targets that are not asked for (`IGNORE`). Epochs follow each
    other without a gap, so a batch can hold the end of one and the beginning of the next.

    Batch number `step` can be asked for directly: the position in the data is the number of the step, and a run that
    resumes at step N sees what it would have seen. Ranks take equal slices of each batch.

    Args:
        arrays: the memory-mapped shards of one side.
        context_length: tokens the model reads at once.
        batch_size: windows in a batch.
        seed: decides the order.
        name: what errors call the data.

    Raises:
        ValueError: an epoch has fewer windows than one batch needs.
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
        self._ends = [int(end) for end in np.cumsum([len(array) for array in arrays])]
        self.tokens = self._ends[-1] if arrays else 0
        self.windows = -(-self.tokens // context_length)
        self.steps_per_epoch = self.windows / batch_size
        if self.windows < batch_size or self.tokens <= context_length:
            raise ValueError(
                f"{name} has {self.tokens:,} tokens, too few for a batch of {batch_size} windows of "
                f"{context_length}: use more text, a shorter context or a smaller batch"
            )
        self._epochs: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(inputs, targets) of batch number `step`, each int64 (batch_size / ranks, context_length).

        Args:
            step: from 0.
            rank, ranks: the slice to give; `ranks` divides the batch size.

        Raises:
            ValueError: it does not.
        """
        if self.batch_size % ranks:
            raise ValueError(f"a batch of {self.batch_size} windows does not divide by {ranks} ranks")
        share = self.batch_size // ranks
        first = step * self.batch_size + rank * share  # windows since the first epoch's beginning
        windows = np.stack([self._window(*divmod(first + row, self.windows)) for row in range(share)])
        return windows[:, 0], windows[:, 1]

    def _window(self, epoch: int, place: int) -> npt.NDArray[np.int64]:
        """The window that an epoch shows at a place in its order: inputs above, targets below, (2, context_length)."""
        offset, order = self._epoch(epoch)
        length = self.context_length
        start = int(order[place]) * length
        asked = min(length, self.tokens - start)  # fewer in the last window around the ring
        ids = _read(self.arrays, self._ends, (offset + start) % self.tokens, length + 1)  # (context_length + 1,)
        targets = ids[1:].copy()
        targets[asked:] = IGNORE
        return np.stack([ids[:-1], targets])

    def _epoch(self, epoch: int) -> tuple[int, npt.NDArray[np.int64]]:
        """(offset, order of the windows) of an epoch; the last two are kept, since a batch can lie across them."""
        if epoch not in self._epochs:
            random = np.random.default_rng((self.seed, epoch))
            offset = int(random.integers(self.context_length))
            kept = {known: drawn for known, drawn in self._epochs.items() if abs(known - epoch) == 1}
            self._epochs = {**kept, epoch: (offset, random.permutation(self.windows))}
        return self._epochs[epoch]


def _read(arrays: list[npt.NDArray[Any]], ends: list[int], start: int, length: int) -> npt.NDArray[np.int64]:
    """`length` ids around the ring of shards from place `start` on, from as many of them as they lie in.

    Args:
        ends: of each shard, its last place and one.
    """
    parts, which = [], bisect.bisect_right(ends, start)
    while length > 0:
        begin = start - (ends[which] - len(arrays[which]))
        part = arrays[which][begin : begin + length].astype(np.int64)
        parts.append(part)
        length -= len(part)
        which = (which + 1) % len(arrays)
        start = ends[which] - len(arrays[which])
    return np.concatenate(parts)


def document_numbers(inputs: npt.NDArray[Any], end_of_text: int) -> npt.NDArray[np.int64]:
    """Which document of its window each token belongs to, from 0; `<|endoftext|>` belongs to the one that it ends.

    Args:
        inputs: (windows, context_length).
        end_of_text: its id.

    Returns:
        int64 of the same shape.
    """
    ends = (inputs == end_of_text).astype(np.int64)  # (windows, context_length)
    return np.cumsum(ends, axis=1) - ends


def evaluation_windows(
    arrays: list[npt.NDArray[Any]], context_length: int, max_tokens: int | None = None
) -> npt.NDArray[np.int64]:
    """Fixed windows for measuring: side by side over all the text, or evenly spread if `max_tokens` allows fewer.

    The shards are one row of ids: a window may begin in one and end in the next.

    Returns:
        int64 (windows, context_length + 1). Text that is shorter than a context gives one short window.

    Raises:
        ValueError: there is no token to predict.
    """
    ends = [int(end) for end in np.cumsum([len(array) for array in arrays])]
    tokens = ends[-1] if ends else 0
    if tokens < 2:
        raise ValueError("there is too little validation text: not one token to predict")
    length = min(context_length, tokens - 1)
    starts: Sequence[int] = range(0, tokens - length, length)
    allowed = len(starts) if max_tokens is None else max(1, max_tokens // length)
    if allowed < len(starts):
        starts = [starts[i] for i in np.linspace(0, len(starts) - 1, allowed).round().astype(int)]
    return np.stack([_read(arrays, ends, start, length + 1) for start in starts])
