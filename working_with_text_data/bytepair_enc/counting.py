"""How often each piece stands in a corpus: all that training needs to know of it.

The texts are read once, one at a time. They are gathered into chunks of some megabytes, and worker processes count the
chunks: first whole words, cut at white space by C (`word_cuts.py`), then the pieces of each *distinct* word.

Memory is bounded by the number of distinct pieces, which on a large corpus is mostly pieces that occur once: names,
numbers, misprints. Where there are more than `max_pieces`, the rarest are forgotten, those that occurred once first
(lossy counting: Manku and Motwani 2002). A piece may so lose a few of its counts; merges are decided by pairs that
occur thousands of times. What is forgotten depends on the texts and their order alone, never on how many processes
counted them: chunks are counted apart and added up in their order.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from utils.errors import interrupts_wait
from utils.parallel import map_in_order
from working_with_text_data.bytepair_enc.patterns import compile_pattern, split_into_pieces
from working_with_text_data.bytepair_enc.word_cuts import CUTTERS, blocks, words_to_pieces

_CHUNK = 8_000_000  # characters that are counted together
_BLOCK = 8_000  # of which so many are cut at a time, so that the words are still in the processor's cache


def chunks_of(texts: Iterable[str], size: int = _CHUNK) -> Iterator[list[str]]:
    """The texts in lists of at least `size` characters together; the last one may have fewer."""
    chunk: list[str] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if characters >= size:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def count_chunk(texts: list[str], pattern: str) -> Counter[str]:
    """How often each piece stands in the texts.

    Raises:
        ValueError: the pattern does not compile.
    """
    compiled, cut = compile_pattern(pattern), CUTTERS.get(pattern)
    words: Counter[str] = Counter()
    if cut is None:
        for text in texts:
            words.update(split_into_pieces(compiled, text))
        return words
    for text in texts:
        for block in blocks(text, _BLOCK):
            words.update(cut(block))
    pieces: defaultdict[str, int] = defaultdict(int)  # a Counter is quick with lists, and slow one by one
    for group, found, starts, ends in words_to_pieces(list(words), partial(split_into_pieces, compiled)):
        counts = np.array([words[word] for word in group])
        times = np.zeros(len(found) + 1, np.int64)  # of each piece: up by a count where a word begins, then down
        times[starts] += counts
        times[ends] -= counts
        for piece, count in zip(found, np.cumsum(times[:-1]).tolist(), strict=True):
            if count:  # not what stands between two words
                pieces[piece] += count
    return Counter(pieces)


@dataclass
class Counted:
    """How far counting has come: with the texts behind these it goes on as if it had never stopped."""

    texts: int = 0
    """Texts whose pieces are counted, from the first one on."""
    pieces: Counter[str] = field(default_factory=Counter)
    """How often each piece stands in them."""


def count_pieces(
    texts: Iterable[str],
    pattern: str,
    num_processes: int = 1,
    max_pieces: int = 20_000_000,
    counted: Counted | None = None,
    after_chunk: Callable[[], None] | None = None,
) -> Counter[bytes]:
    """How often each piece stands in the texts, the pieces as UTF-8 bytes (lone surrogates as U+FFFD).

    Args:
        texts: read once, one at a time.
        num_processes: that count at the same time. The counts are the same for any number.
        max_pieces: distinct pieces to remember; where there are more, the rarest are forgotten.
        counted: what was counted before `texts`; it is kept up to date, also where Ctrl-C ends the counting.
        after_chunk: called whenever it has changed.

    Raises:
        ValueError: the pattern does not compile, or a number is below 1.
    """
    if max_pieces < 1:
        raise ValueError(f"max_pieces must be at least 1, got {max_pieces}")
    compile_pattern(pattern)
    counted = counted or Counted()
    sizes: deque[int] = deque()  # texts in each of the chunks that are under way

    def chunks() -> Iterator[list[str]]:
        for chunk in chunks_of(texts):
            sizes.append(len(chunk))
            yield chunk

    for counts in map_in_order(partial(count_chunk, pattern=pattern), chunks(), num_processes):
        with interrupts_wait():  # so that a chunk is counted as a whole or not at all
            counted.texts += sizes.popleft()
            counted.pieces.update(counts)
            rarest = 0
            while len(counted.pieces) > max_pieces:
                rarest += 1
                kept = {piece: count for piece, count in counted.pieces.items() if count > rarest}
                counted.pieces = Counter(kept)
        if after_chunk is not None:
            after_chunk()
    in_bytes: defaultdict[bytes, int] = defaultdict(int)
    for piece, count in counted.pieces.items():
        try:
            in_bytes[piece.encode("utf-8")] += count
        except UnicodeEncodeError:
            in_bytes[piece.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode("utf-8")] += count
    return Counter(in_bytes)
