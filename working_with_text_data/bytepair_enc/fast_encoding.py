"""Encoding at the speed of a dictionary: each distinct word is merged once, and new words all together.

Natural text is repetition. Three observations turn an encoder that merges into one that looks up:

    a piece is always the same ids      so remember them: str -> ids
    a word is always the same pieces    so remember words, which `word_cuts.py` cuts without the pattern
    ids side by side are bytes          as four bytes each, the ids of a text are one `bytes.join`: no list of numbers
                                        is made before somebody asks for one, and the garbage collector stays out of it

What is left is words that are new. One by one, each costs some ten microseconds of Python. A large text brings
thousands of them, and then `merge_pieces` takes every step for all at once, several times as fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, pairwise
from sys import byteorder
from threading import Lock

import numpy as np

from working_with_text_data.bytepair_enc.merging import PairRanks, merge_by_heap, merge_pieces
from working_with_text_data.bytepair_enc.word_cuts import Cutter, blocks, words_to_pieces

_TOGETHER = 2_000_000  # characters whose new words are learned together: the more, the less each costs
_BLOCK = 8_000  # characters that are looked up together: few enough for the processor's cache
_MANY = 300  # new pieces; from here on merging them together beats merging one by one
_SHORT_PIECE = 40  # bytes; longer ones are rare, and merging them together with others would make all wait for them
_REMEMBERED = 1 << 20  # words, and pieces; of more, all are forgotten, which bounds the memory
_CHARACTERS = 1 << 24  # of all remembered words, or pieces: a text without white space is one word


class FastEncoder:
    """From a text to its ids, side by side as uint32. Threads may share it: one of them learns at a time.

    Args:
        ranks: the bytes of each ordinary token -> its id.
        tokens: id -> its bytes, for all of these.
        split: a text -> its pieces.
        cut: a text -> words with the same pieces, if there is a way that is quicker than `split`.
    """

    def __init__(
        self,
        ranks: Mapping[bytes, int],
        tokens: Mapping[int, bytes],
        split: Callable[[str], list[str]],
        cut: Cutter | None,
    ) -> None:
        self._ranks, self._tokens, self._split, self._cut = ranks, tokens, split, cut
        self._words, self._word_characters = dict[str, bytes](), 0
        self._pieces, self._piece_characters = dict[str, bytes](), 0
        self._pair_ranks: PairRanks | None = None  # made when first needed
        self._learning = Lock()

    def encode(self, text: str) -> bytes:
        """The ids of `text`, all of it ordinary, as packed uint32.

        Raises:
            UnicodeEncodeError: the text has lone surrogates.
        """
        if self._cut is None:
            pieces = self._split(text)
            with self._learning:
                return b"".join(next(self._ids_of_pieces([pieces])))
        if len(text) <= _BLOCK:
            return self._encode_blocks([text])[0]
        return b"".join([b"".join(self._encode_blocks(blocks(part, _BLOCK))) for part in blocks(text, _TOGETHER)])

    def encode_many(self, texts: Sequence[str]) -> list[bytes]:
        """`encode` of each text, with new words learned from all together: so short texts cost what long ones do."""
        if len(texts) < 2 or self._cut is None or max(map(len, texts)) > _TOGETHER:
            return [self.encode(text) for text in texts]
        cut = [list(blocks(text, _BLOCK)) for text in texts]
        encoded = iter(self._encode_blocks(chain.from_iterable(cut)))
        return [b"".join(islice(encoded, len(parts))) for parts in cut]

    def _encode_blocks(self, texts: Iterable[str]) -> list[bytes]:
        """Looks all words up, learns those that are new from all blocks together, and fills them in."""
        assert self._cut is not None
        if len(self._words) > _REMEMBERED or self._word_characters > _CHARACTERS:
            self._words, self._word_characters = {}, 0  # not cleared: another thread may be looking things up
        known, new = self._words, set[str]()
        encoded: list[bytes] = []
        waiting: list[tuple[int, list[bytes | None], dict[int, str]]] = []
        for text in texts:
            words = self._cut(text)
            found = list(map(known.get, words))
            try:
                encoded.append(b"".join(found))  # type: ignore[arg-type]
            except TypeError:  # None cannot be joined
                missing = _missing(found, words)
                new.update(missing.values())
                waiting.append((len(encoded), found, missing))
                encoded.append(b"")
        if waiting:
            with self._learning:
                self._learn_words(list(new), known)
            for block, found, missing in waiting:
                encoded[block] = b"".join(_filled_in(found, missing, known))
        return encoded

    def _learn_words(self, new: list[str], known: dict[str, bytes]) -> None:
        self._word_characters += sum(map(len, new))
        groups = list(words_to_pieces(new, self._split))
        ids_of_groups = self._ids_of_pieces([pieces for _, pieces, _, _ in groups])
        for (words, _, starts, ends), ids in zip(groups, ids_of_groups, strict=True):
            known.update(zip(words, map(b"".join, map(ids.__getitem__, map(slice, starts, ends))), strict=True))

    def _ids_of_pieces(self, rows: list[list[str]]) -> Iterator[list[bytes]]:
        """The ids of each piece, row by row; those that were never met are learned from all rows together."""
        if len(self._pieces) > _REMEMBERED or self._piece_characters > _CHARACTERS:
            self._pieces, self._piece_characters = {}, 0
        known, new = self._pieces, set[str]()
        waiting = []
        for pieces in rows:
            found = list(map(known.get, pieces))
            missing = _missing(found, pieces)
            new.update(missing.values())
            waiting.append((found, missing))
        self._learn_pieces(new)
        return (_filled_in(found, missing, known) for found, missing in waiting)

    def _learn_pieces(self, new: set[str]) -> None:
        """Remembers the ids of pieces that were never met."""
        known, ranks = self._pieces, self._ranks
        self._piece_characters += sum(map(len, new))
        to_merge: dict[str, bytes] = {}
        for piece in new:
            data = piece.encode("utf-8")
            token = ranks.get(data)
            if token is not None:
                known[piece] = token.to_bytes(4, byteorder)
            elif len(data) <= _SHORT_PIECE:
                to_merge[piece] = data
            else:
                known[piece] = _packed(merge_by_heap(data, ranks))
        if len(to_merge) < _MANY:
            for piece, data in to_merge.items():
                known[piece] = _packed(merge_by_heap(data, ranks))
            return
        if self._pair_ranks is None:
            self._pair_ranks = PairRanks(ranks, self._tokens)
        try:
            ids, counts = merge_pieces(list(to_merge.values()), self._pair_ranks)
        except BaseException:  # Ctrl-C may have left half of a pair in the table
            self._pair_ranks = None
            raise
        packed = ids.astype(np.uint32).tobytes()
        ends = [0, *(4 * np.cumsum(counts)).tolist()]
        known.update(zip(to_merge, [packed[start:end] for start, end in pairwise(ends)], strict=True))


def _missing(found: list[bytes | None], keys: list[str]) -> dict[int, str]:
    """place -> key, where nothing was found."""
    return {place: keys[place] for place, ids in enumerate(found) if ids is None}


def _filled_in(found: list[bytes | None], missing: dict[int, str], known: dict[str, bytes]) -> list[bytes]:
    """`found`, with what was missing then and is known now."""
    for place, key in missing.items():
        found[place] = known[key]
    return found  # type: ignore[return-value]  # nothing is None any more


def _packed(ids: list[int]) -> bytes:
    return np.array(ids, np.uint32).tobytes()
