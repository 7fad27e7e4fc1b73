"""The third step of encoding: the bytes of one piece, merged by rank. The definition, and two ways to be quick.

    merge_piece      the definition: look at every pair, join the best, again. O(n²) for n bytes
    merge_by_heap    a heap of pairs: O(n log n), and quicker than the definition from the first bytes on
    merge_pieces     hundreds of pieces at once, each step one array operation for all of them

All give the same ids; the tests hold the second and third to the first.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_NO_TOKEN = np.int32(2**31 - 1)  # the rank of a pair that is no token: above every other
_FREE = np.int64(-1)  # no key


def merge_piece(piece: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """The ids of one piece by the plain rule: join the adjacent pair of lowest rank, leftmost first.

    This is the definition. It looks at every pair for every merge: O(n²) for n bytes, which is hopeless for a long run
    of letters.
    """
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 1:
        candidates = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not candidates:
            break
        _, i = min(candidates)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]


def merge_by_heap(piece: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """The same ids as `merge_piece` in O(n log n): a heap of pairs by rank over parts that are linked to their right.

    Each part is named by where it starts; `end[start]` is where it ends, and so where its right neighbour starts.
    A heap entry is (rank, start, middle, stop) of two neighbours. It is stale, and skipped, if either has grown since.
    """
    n = len(piece)
    end = list(range(1, n + 1))
    start_of_part_ending_at = list(range(-1, n))
    heap = [(ranks[piece[i : i + 2]], i, i + 1, i + 2) for i in range(n - 1) if piece[i : i + 2] in ranks]
    heapq.heapify(heap)
    while heap:
        _, start, middle, stop = heapq.heappop(heap)
        if end[start] != middle or end[middle] != stop:
            continue
        end[start], end[middle] = stop, -1
        start_of_part_ending_at[stop] = start
        left = start_of_part_ending_at[start]
        for a, b in ((left, start), (start, stop)):  # the two pairs that the new part makes
            if a >= 0 and b < n and (pair := piece[a : end[b]]) in ranks:
                heapq.heappush(heap, (ranks[pair], a, b, end[b]))
    ids, start = [], 0
    while start < n:
        ids.append(ranks[piece[start : end[start]]])
        start = end[start]
    return ids


class PairRanks:
    """Which token two tokens make, for whole arrays of pairs: a hash table with open addressing, in NumPy.

    Two ids make one 64-bit key. A multiplicative hash names its slot; a slot that another key has taken sends it to the
    next one. A pair that was never asked about is looked up in the vocabulary, once, and kept, also if it is no token:
    text has few distinct pairs, so after some megabytes nearly all questions are answered from the table.

    Args:
        ranks: the bytes of each ordinary token -> its id.
        tokens: id -> its bytes, for all of these.

    Attributes:
        byte_ids: int32 (256,), the id of each byte.
        tokens: as given.
    """

    def __init__(self, ranks: Mapping[bytes, int], tokens: Mapping[int, bytes]) -> None:
        self._ranks, self.tokens = ranks, tokens
        self.byte_ids = np.array([ranks[bytes([byte])] for byte in range(256)], np.int32)
        self._make_table(bits=16)

    def _make_table(self, bits: int) -> None:
        self._shift, self._last_slot = np.uint64(64 - bits), (1 << bits) - 1
        self._keys = np.full(1 << bits, _FREE, np.int64)
        self._values = np.empty(1 << bits, np.int32)
        self._used = 0

    def __call__(self, left: Array, right: Array) -> Array:
        """int32, of the shape of `left` and `right`: the id that each pair of ids makes, or 2**31 - 1."""
        key = left.astype(np.int64) << 32 | right
        slot = self._slots_of(key)
        values = self._values[slot]
        (unknown,) = np.nonzero(self._keys[slot] == _FREE)
        if len(unknown):
            self._learn(np.unique(key[unknown]))
            values[unknown] = self._values[self._slots_of(key[unknown])]
        return values

    def _slots_of(self, key: Array) -> Array:
        """Where each key is, or the free slot where it would go."""
        mixed = key.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # 2**64 / the golden ratio
        slot = (mixed >> self._shift).astype(np.int64)
        found = self._keys[slot]
        (elsewhere,) = np.nonzero((found != key) & (found != _FREE))
        while len(elsewhere):
            slot[elsewhere] = (slot[elsewhere] + 1) & self._last_slot
            found = self._keys[slot[elsewhere]]
            elsewhere = elsewhere[(found != key[elsewhere]) & (found != _FREE)]
        return slot

    def _learn(self, keys: Array) -> None:
        """Looks up pairs that are not in the table. The keys are distinct."""
        values = self._look_up(keys.tolist())
        if 2 * (self._used + len(keys)) > len(self._keys):  # at most half full, so that a free slot is never far
            old, bits = self._keys != _FREE, (4 * (self._used + len(keys))).bit_length()
            old_keys, old_values = self._keys[old], self._values[old]
            self._make_table(bits)
            self._insert(old_keys, old_values)
        self._insert(keys, values)

    def _look_up(self, keys: list[int]) -> Array:
        """int32 (keys,): what these pairs make, from the vocabulary itself."""
        token, low = self.tokens, 2**32 - 1
        pairs = [token[key >> 32] + token[key & low] for key in keys]
        return np.array([self._ranks.get(pair, _NO_TOKEN) for pair in pairs], np.int32)

    def _insert(self, keys: Array, values: Array) -> None:
        self._used += len(keys)
        while len(keys):
            slot = self._slots_of(keys)
            self._keys[slot] = keys  # where several want one slot, one of them gets it
            placed = self._keys[slot] == keys
            self._values[slot[placed]] = values[placed]
            keys, values = keys[~placed], values[~placed]


class PairOrder(PairRanks):
    """The same where pairs are ranked and not what they make, as in a list of merges.

    Ids are 0 to 255 for the bytes, and 256 + m for what pair number m makes; a token that several pairs spell has
    several.

    Args:
        pairs: of tokens, the first to be merged first.
    """

    def __init__(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        single = [bytes([byte]) for byte in range(256)]
        tokens = [*single, *(left + right for left, right in pairs)]
        self._order = {pair: 256 + m for m, pair in enumerate(pairs)}
        super().__init__({token: i for i, token in enumerate(single)}, dict(enumerate(tokens)))

    def _look_up(self, keys: list[int]) -> Array:
        token, low = self.tokens, 2**32 - 1
        pairs = [(token[key >> 32], token[key & low]) for key in keys]
        return np.array([self._order.get(pair, _NO_TOKEN) for pair in pairs], np.int32)


def merge_pieces(pieces: Sequence[bytes], pair_ranks: PairRanks, fewest: int = 1) -> tuple[Array, Array]:
    """The same ids as `merge_piece` of each piece, with every step taken for all pieces at once.

    Pieces with the same number of parts are the rows of one matrix, so that the best pair of each is one `argmin`.
    A row that merges a pair has one part less, and joins the rows of that length: so one pass from the longest pieces
    down to single parts does all of it. A row that has no pair left is done.

    Args:
        pieces: at least one, and none of less than `fewest` bytes.
        fewest: nothing more is merged in a piece of so many parts.

    Returns:
        ids int32, those of all pieces one after the other; and int64 (pieces,), how many each has.
    """
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    starts = np.cumsum(lengths) - lengths
    all_parts = pair_ranks.byte_ids[np.frombuffer(b"".join(pieces), np.uint8)]
    all_ranks = pair_ranks(all_parts[:-1], all_parts[1:])  # also, for nothing, of the last byte of each and the next
    order = np.argsort(-lengths, kind="stable")
    longest = int(lengths[order[0]])
    # beginning[n] … beginning[n - 1] are the places in `order` of the pieces with n bytes.
    beginning = np.searchsorted(-lengths[order], -np.arange(longest + 1), side="left")
    beginning = np.append(beginning, 0)

    ids, counts = np.empty_like(all_parts), np.empty_like(lengths)  # ids: at first with gaps, as long as the bytes
    row_piece = np.empty(0, np.int64)  # which piece each row is
    parts = np.empty((0, longest), np.int32)  # (rows, n)
    ranks = np.empty((0, longest - 1), np.int32)  # (rows, n - 1): of the pairs of neighbours
    for n in range(longest, fewest - 1, -1):
        fresh = order[beginning[n] : beginning[n - 1]]
        places = starts[fresh][:, None] + np.arange(n)  # (fresh, n)
        row_piece = np.concatenate([row_piece, fresh])
        parts = np.concatenate([parts, all_parts[places]])
        if n == fewest:
            ids[starts[row_piece][:, None] + np.arange(n)] = parts
            counts[row_piece] = n
            break
        ranks = np.concatenate([ranks, all_ranks[places[:, :-1]]])
        best = ranks.argmin(axis=1)  # (rows,): the leftmost, where several are equal
        made = ranks[np.arange(len(ranks)), best]  # (rows,)
        done, going = np.nonzero(made == _NO_TOKEN)[0], np.nonzero(made != _NO_TOKEN)[0]
        ids[starts[row_piece[done]][:, None] + np.arange(n)] = parts[done]
        counts[row_piece[done]] = n
        row_piece, parts, ranks, best = row_piece[going], parts[going], ranks[going], best[going]
        row = np.arange(len(going))
        parts[row, best] = made[going]
        parts, ranks = _without(parts, best + 1), _without(ranks, best)  # (rows, n - 1), (rows, n - 2)
        # The two pairs that the new part makes, where there are two.
        r, c = np.concatenate([row, row]), np.concatenate([best - 1, best])  # (2 rows,)
        inside = (c >= 0) & (c < n - 2)
        r, c = r[inside], c[inside]
        ranks[r, c] = pair_ranks(parts[r, c], parts[r, c + 1])
    gaps_before = starts - (np.cumsum(counts) - counts)
    return ids[np.repeat(gaps_before, counts) + np.arange(counts.sum())], counts


def _without(matrix: Array, column: Array) -> Array:
    """(rows, n) to (rows, n - 1): each row without one of its numbers."""
    keep = np.ones(matrix.shape, bool)
    keep[np.arange(len(matrix)), column] = False
    return matrix[keep].reshape(len(matrix), matrix.shape[1] - 1)
