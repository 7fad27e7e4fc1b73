"""Near-duplicates: the same book in another edition, or inside of another.

A model that sees a text twice learns it by heart, and where one copy is for validation, its loss there means nothing.
Equal files would be found by their hash. Editions differ in a word here and there, so texts are compared as the sets of
their shingles, all five words in a row (Broder 1997, "On the resemblance and containment of documents"):

    resemblance (Jaccard)    |A ∩ B| / |A ∪ B|             1 for the same text in any order of its chapters
    containment              |A ∩ B| / min(|A|, |B|)       1 for a story and the collection that it stands in

A library's sets do not fit into memory, and each pair of books would be too many comparisons. Both are mended by a
sketch: a hash spreads shingles evenly, so those with the smallest hashes are a random sample, and *the same* sample in
every text (MinHash). A sketch holds the 256 smallest of a short text and, since a story that is a hundredth of its
collection would be lost among that one's 256, at least the hundredth part of a long one. An index from hash to texts
then gives the few pairs that share much, and only these are read again and compared in full.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

WORDS = 5  # in a shingle
THRESHOLD = 0.8  # of the smaller text within the other makes a near-duplicate
SMALLEST = 256  # hashes in a sketch at least
RATE = 100  # and one of so many

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Duplicate:
    """A text to leave out, the one that stays in its place, and how alike they are."""

    dropped: str
    kept: str
    jaccard: float
    containment: float


def shingles(text: str) -> Hashes:
    """The hashes of the text's distinct shingles, sorted. Case, punctuation and line ends make no difference."""
    words = re.findall(r"[^\W_]+", text.casefold())  # `_` sets italics in plain text
    hash_of = {word: int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest()) for word in set(words)}
    hashes = np.array([hash_of[word] for word in words], dtype=np.uint64)  # (words,)
    n = max(len(words) - WORDS + 1, min(len(words), 1))
    rolled = np.zeros(n, dtype=np.uint64)
    for i in range(min(WORDS, len(words))):  # arithmetic modulo 2 ** 64; the order of the words counts
        rolled = (rolled ^ hashes[i : i + n]) * np.uint64(0x9E3779B97F4A7C15)
        rolled ^= rolled >> np.uint64(32)  # or the high bits, by which hashes are sorted, would not reach the low ones
    return np.unique(rolled)


def overlap(a: Hashes, b: Hashes) -> tuple[float, float]:
    """Jaccard and containment of two sets of shingles; 0 where one is empty."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    smaller, together = min(len(a), len(b)), len(a) + len(b) - common
    return (common / together, common / smaller) if smaller else (0.0, 0.0)


def sketch(a: Hashes) -> Hashes:
    """The smallest hashes of a set of shingles, in order."""
    return a[: max(SMALLEST, int(np.searchsorted(a, np.uint64(2**64 // RATE))))].copy()  # a view would keep all of `a`


def estimate_overlap(a: Hashes, b: Hashes) -> tuple[float, float]:
    """`overlap` of two texts, estimated from their sketches, as far as both of them reach."""
    if not len(a) or not len(b):
        return 0.0, 0.0
    end = min(a[-1], b[-1])
    return overlap(a[: np.searchsorted(a, end, "right")], b[: np.searchsorted(b, end, "right")])


def find_near_duplicates(names: Sequence[str], read: Callable[[str], str]) -> list[Duplicate]:
    """Which of the texts to leave out, so that none left is a near-duplicate of another.

    Of two that are the same (by their Jaccard), the first stays; of one that is inside of another, the larger.

    Args:
        names: of the texts, in order.
        read: gives the text of a name; each is read once, and those that are alike again.
    """
    sketches: dict[str, Hashes] = {}
    texts_with: defaultdict[int, list[str]] = defaultdict(list)
    alike: list[tuple[str, str]] = []
    for number, name in enumerate(tqdm(names, desc="comparing", unit=" books", disable=None)):
        sketches[name] = sketch(shingles(read(name)))
        hashes = sketches[name].tolist()
        sharing = {*chain.from_iterable(texts_with.get(h, ()) for h in hashes)}
        for earlier in names[:number]:
            if earlier in sharing and estimate_overlap(sketches[earlier], sketches[name])[1] >= THRESHOLD / 2:
                alike.append((earlier, name))
        for h in hashes:
            texts_with[h].append(name)
    return _choose(alike, read)


def _choose(alike: list[tuple[str, str]], read: Callable[[str], str]) -> list[Duplicate]:
    """Of the pairs, those that really are near-duplicates, unless one of the two has been left out already.

    What stays in place of a text can itself be left out for a third. Then the text is compared with all that stay, and
    stays too if it is in none of them.
    """
    duplicates: dict[str, Duplicate] = {}

    def compare(first: str, second: str) -> Duplicate | None:
        a, b = shingles(read(first)), shingles(read(second))
        jaccard, containment = overlap(a, b)
        if containment < THRESHOLD:
            return None
        second_stays = jaccard < THRESHOLD and len(b) > len(a)
        dropped, kept = (first, second) if second_stays else (second, first)
        return Duplicate(dropped, kept, round(jaccard, 3), round(containment, 3))

    for first, second in alike:
        if first not in duplicates and second not in duplicates and (found := compare(first, second)):
            duplicates[found.dropped] = found
    for name, before in list(duplicates.items()):
        if before.kept in duplicates:
            del duplicates[name]
            others = [other for pair in alike if name in pair for other in pair if other != name]
            for other in others:
                if other not in duplicates and (found := compare(name, other)):
                    duplicates[name] = replace(found, dropped=name, kept=other)
                    break
    return list(duplicates.values())
