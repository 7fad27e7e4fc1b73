"""Byte-pair encoding as the idea is told, with nothing made fast: the rungs that the fast code stands on.

Each function here is the definition of something that another file does quickly. The tests hold the two together, the
notebooks climb from one to the next, and the benchmark says what each rung was worth. Read top to bottom:

    text_to_ids         a text is bytes, and bytes are ids already
    count_pairs         which two neighbours occur most often?
    merge_pair          write one id for the two
    learn_on_text       again and again: that is training
    encode_with_merges  the same merges, in the same order, on another text: that is encoding
    learn_on_pieces     the same, but no merge may cross from one piece of the text to the next
    encode_pieces       and encoding with that rule
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

Pair = tuple[int, int]


def text_to_ids(text: str) -> list[int]:
    """The UTF-8 bytes of `text`, each from 0 to 255: ids of a vocabulary that has to be learned by nobody."""
    return list(text.encode("utf-8"))


def count_pairs(ids: Sequence[int]) -> Counter[Pair]:
    """How often each two ids stand side by side."""
    return Counter(pairwise(ids))


def best_pair(counts: Mapping[Pair, int]) -> Pair:
    """The most frequent pair; of several, the one with the smallest ids, as Hugging Face's trainer decides too."""
    return min(counts, key=lambda pair: (-counts[pair], pair))


def merge_pair(ids: Sequence[int], pair: Pair, new_id: int) -> list[int]:
    """`ids` with every occurrence of `pair`, from the left, replaced by `new_id`."""
    merged, i = [], 0
    while i < len(ids):
        if ids[i] == pair[0] and i + 1 < len(ids) and ids[i + 1] == pair[1]:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def learn_on_text(text: str, n_merges: int) -> list[Pair]:
    """The merges that training makes on one text, pair by pair. Merge number m makes the id 256 + m.

    Ends early when no pair occurs twice.
    """
    ids = text_to_ids(text)
    merges: list[Pair] = []
    while len(merges) < n_merges and (counts := count_pairs(ids)):
        pair = best_pair(counts)
        if counts[pair] < 2:
            break
        ids = merge_pair(ids, pair, 256 + len(merges))
        merges.append(pair)
    return merges


def encode_with_merges(text: str, merges: Sequence[Pair]) -> list[int]:
    """The ids of `text`: every merge, in the order in which it was learned, wherever it fits."""
    ids = text_to_ids(text)
    for m, pair in enumerate(merges):
        ids = merge_pair(ids, pair, 256 + m)
    return ids


def learn_on_pieces(piece_counts: Mapping[bytes, int], n_merges: int, min_frequency: int = 2) -> list[Pair]:
    """`learn_on_text` within pieces: each distinct piece is kept once, and its pairs count as often as it occurs."""
    words = {piece: list(piece) for piece in piece_counts}
    merges: list[Pair] = []
    while len(merges) < n_merges:
        counts: Counter[Pair] = Counter()
        for piece, ids in words.items():
            for pair in pairwise(ids):
                counts[pair] += piece_counts[piece]
        if not counts or counts[best_pair(counts)] < min_frequency:
            break
        merges.append(best_pair(counts))
        words = {piece: merge_pair(ids, merges[-1], 255 + len(merges)) for piece, ids in words.items()}
    return merges


def encode_pieces(pieces: Iterable[str], merges: Sequence[Pair]) -> list[int]:
    """`encode_with_merges` of each piece, one after the other."""
    return [i for piece in pieces for i in encode_with_merges(piece, merges)]
