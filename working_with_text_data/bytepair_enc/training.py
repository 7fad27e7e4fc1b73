"""Learning the merges of byte-pair encoding: count once, then update only what a merge touches.

The idea in its plainest form: count all pairs of neighbouring tokens in the text, join the most frequent pair
everywhere into a new token, and begin again. Two observations make it fast without changing one merge:

    words repeat       The text is cut into pieces first, and merges never cross a piece. So keep each *distinct*
                       piece once, with its count. Ten megabytes of prose have about fifty thousand.
    merges are local   Joining a pair changes the counts of only those pairs that stand in pieces with it. An index
                       pair -> pieces finds them; a heap finds the next best pair without looking at all.

Ties: of equally frequent pairs, the one with the smallest ids is joined first, as in Hugging Face's trainer.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import regex
from tqdm import tqdm

Pair = tuple[int, int]


def compile_pattern(pattern: str) -> regex.Pattern[str]:
    """The pattern, ready for `split_into_pieces`.

    Raises:
        ValueError: it does not compile, or has groups that capture; one line that says where.
    """
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"the pattern {pattern!r} does not compile: {error}") from None
    if compiled.groups:
        raise ValueError(f"the pattern {pattern!r} captures groups: write (?:...) in place of (...)")
    return compiled


def split_into_pieces(pattern: regex.Pattern[str], text: str) -> list[str]:
    """The matches of `pattern` one after the other; what stands between two matches is a piece of its own.

    The usual patterns match every character, and then this is `findall`.
    """
    pieces: list[str] = pattern.findall(text)
    if sum(map(len, pieces)) == len(text):
        return pieces
    pieces, position = [], 0
    for match in pattern.finditer(text):
        pieces += [text[position : match.start()], match.group()]
        position = match.end()
    return [piece for piece in [*pieces, text[position:]] if piece]


def count_pieces(texts: Iterable[str], pattern: str) -> Counter[bytes]:
    """How often each piece stands in the texts, the pieces as UTF-8 bytes (lone surrogates as U+FFFD)."""
    compiled = compile_pattern(pattern)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split_into_pieces(compiled, text))
    in_bytes: Counter[bytes] = Counter()
    for piece, count in counts.items():
        in_bytes[piece.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode("utf-8")] += count
    return in_bytes


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


def learn_merges(
    piece_counts: Mapping[bytes, int],
    n_merges: int,
    byte_order: Sequence[int] = range(256),
    min_frequency: int = 2,
    progress: bool = False,
) -> list[Pair]:
    """The `n_merges` most frequent pairs, one after the other. Merge number m makes the token with id 256 + m.

    Args:
        piece_counts: the distinct pieces and how often each stands in the text.
        byte_order: the byte that each of the ids 0 … 255 stands for.
        min_frequency: stop when the best pair is rarer.
        progress: shows a progress bar.

    Raises:
        ValueError: `byte_order` is not an order of the 256 bytes.
    """
    if sorted(byte_order) != list(range(256)):
        raise ValueError("byte_order must hold each of the bytes 0 … 255 once")
    id_of_byte = {byte: i for i, byte in enumerate(byte_order)}
    words = [[id_of_byte[b] for b in piece] for piece in piece_counts]
    frequency = list(piece_counts.values())

    pair_counts: Counter[Pair] = Counter()
    words_with: defaultdict[Pair, set[int]] = defaultdict(set)
    for w, word in enumerate(words):
        for pair in pairwise(word):
            pair_counts[pair] += frequency[w]
            words_with[pair].add(w)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)

    merges: list[Pair] = []
    bar = tqdm(total=n_merges, desc="merges", unit="merge", disable=None if progress else True)
    while heap and len(merges) < n_merges:
        negative_count, pair = heapq.heappop(heap)
        count = pair_counts[pair]
        if -negative_count != count:  # stale: a merge since has taken some of its occurrences
            if count > 0:
                heapq.heappush(heap, (-count, pair))
            continue
        if count < min_frequency:
            break
        new_id = 256 + len(merges)
        merges.append(pair)
        bar.update()
        fresh: set[Pair] = set()
        for w in words_with.pop(pair):
            before, after = words[w], merge_pair(words[w], pair, new_id)
            for old in pairwise(before):
                pair_counts[old] -= frequency[w]
            for new in pairwise(after):
                pair_counts[new] += frequency[w]
                words_with[new].add(w)
                if new_id in new:  # only pairs with the new token can have become more frequent
                    fresh.add(new)
            words[w] = after
        del pair_counts[pair]
        for new in fresh:
            heapq.heappush(heap, (-pair_counts[new], new))
    bar.close()
    return merges
