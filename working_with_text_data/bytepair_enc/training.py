"""Learning the merges of byte-pair encoding: count once, then touch only what a merge changes.

The idea in its plainest form is `ladder.learn_on_pieces`: count all pairs of neighbours, join the most frequent one
everywhere, and begin again. Three observations make it fast without changing one merge:

    words repeat        The text is cut into pieces first, and merges never cross a piece. So keep each *distinct* piece
                        once, with its count (`counting.py`). Fifty megabytes of prose have some 150,000.
    merges are local    Joining a pair changes the counts of only those pairs that stand beside it. An index
                        pair -> pieces finds the places; a heap finds the next best pair without looking at all.
    a token is a letter Write every token as one character, and a piece is a string. Then a pair is a string of two, and
                        joining it is `str.replace`, which C does.

Ties: of equally frequent pairs, the one with the smallest ids is joined first, as in Hugging Face's trainer and in
rustbpe. (minbpe takes the pair that it saw first.) Hugging Face numbers the 256 bytes in the order of its byte
alphabet, not from 0 to 255, so that ties fall otherwise: `byte_order` says which numbering is meant.
"""

from __future__ import annotations

import gzip
import heapq
import json
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from operator import add
from pathlib import Path
from typing import Any

from tqdm import tqdm

from utils.errors import interrupts_wait
from utils.files import write_bytes
from working_with_text_data.bytepair_enc.counting import Counted, count_pieces
from working_with_text_data.bytepair_enc.ladder import Pair

_SAVE_EVERY = 60.0  # seconds
_SURROGATES = range(0xD800, 0xE000)  # no characters of their own: ids from here on take characters behind them


def _letter(i: int) -> str:
    """The character that stands for token `i`; a larger id has a larger character, so strings compare as ids do."""
    return chr(i if i < _SURROGATES.start else i + len(_SURROGATES))


def _id(letter: str) -> int:
    """The token that a character stands for."""
    code = ord(letter)
    return code if code < _SURROGATES.start else code - len(_SURROGATES)


class MergeLearner:
    """The state of training: the pieces as far as they are merged, and how often each pair stands in them.

    Args:
        words: the distinct pieces, a character a token (see `_letter`).
        frequency: how often each stands in the text.
        merges: the pairs that were joined already. Merge number m made the token with id 256 + m.
    """

    def __init__(self, words: list[str], frequency: list[int], merges: list[Pair] | None = None) -> None:
        self.words, self.frequency, self.merges = words, frequency, merges or []
        self._index_pairs()

    @classmethod
    def from_pieces(cls, piece_counts: Mapping[bytes, int], byte_order: Sequence[int] = range(256)) -> MergeLearner:
        """Before the first merge.

        Args:
            piece_counts: the distinct pieces and how often each stands in the text.
            byte_order: the byte that each of the ids 0 … 255 stands for.

        Raises:
            ValueError: `byte_order` is not an order of the 256 bytes.
        """
        if sorted(byte_order) != list(range(256)):
            raise ValueError("byte_order must hold each of the bytes 0 … 255 once")
        letter_of = str.maketrans({chr(byte): _letter(i) for i, byte in enumerate(byte_order)})
        # Latin-1 reads each byte as the character of that number.
        words = [piece.decode("latin-1").translate(letter_of) for piece in piece_counts]
        return cls(words, list(piece_counts.values()))

    def _index_pairs(self) -> None:
        """Notes where each pair stands in the words as they are, and so how often."""
        places: defaultdict[str, list[int]] = defaultdict(list)
        for place, word in enumerate(self.words):
            for pair in map(add, word, word[1:]):
                places[pair].append(place)
        self._places = places
        self._counts = {pair: self._times(found) for pair, found in places.items()}
        self._heap = [(-count, pair) for pair, count in self._counts.items()]
        heapq.heapify(self._heap)

    def _times(self, places: list[int]) -> int:
        """How often the words at these places stand in the text, together."""
        return sum(map(self.frequency.__getitem__, places))

    def _most_frequent(self) -> tuple[str, int]:
        """The next pair to join and its count, taken off the heap; ("", 0) if there is none.

        Counts fall as merges take occurrences away. What the heap says is then too high: such an entry goes back with
        its true count when it comes up. No count rises but those of pairs with a new token, which are pushed anew.
        """
        while self._heap:
            noted, pair = heapq.heappop(self._heap)
            count = self._counts[pair]
            if count == -noted:
                return pair, count
            if count > 0:
                heapq.heappush(self._heap, (-count, pair))
        return "", 0

    def step(self, min_frequency: int = 2) -> bool:
        """Joins the most frequent pair everywhere; False if there is none that occurs `min_frequency` times."""
        pair, count = self._most_frequent()
        if count < min_frequency or not pair:
            return False
        new = _letter(256 + len(self.merges))
        self.merges.append((_id(pair[0]), _id(pair[1])))
        first, second = pair[0], pair[1]
        words, counts, places = self.words, self._counts, self._places
        neighbours_before: defaultdict[str, list[int]] = defaultdict(list)  # a token -> where it stands before the pair
        neighbours_after: defaultdict[str, list[int]] = defaultdict(list)
        last = -1
        for place in places.pop(pair):
            if place == last:  # once for each occurrence, one after the other
                continue
            last = place
            before, found, after = words[place].partition(pair)
            joined = [before]
            while found:  # not where merges since have taken every occurrence
                if before:
                    neighbours_before[before[-1]].append(place)
                if after:
                    neighbours_after[after[0]].append(place)
                between, found, after = after.partition(pair)
                before = between or new
                joined.append(between)
            words[place] = new.join(joined)
        # First what comes after: where a pair follows on itself, `second + first` turns into `new + first`, and then,
        # with the next one joined too, into `new + new`.
        changes = [(second + right, new + right, there) for right, there in neighbours_after.items()]
        changes += [(left + first, left + new, there) for left, there in neighbours_before.items()]
        for lost, gained, there in changes:
            times = self._times(there)
            counts[lost] -= times
            counts[gained] = times
            places[gained] = there
        del counts[pair]
        for _, gained, _ in changes:
            if counts[gained]:
                heapq.heappush(self._heap, (-counts[gained], gained))
        return True


def learn_merges(
    piece_counts: Mapping[bytes, int],
    n_merges: int,
    byte_order: Sequence[int] = range(256),
    min_frequency: int = 2,
) -> list[Pair]:
    """The `n_merges` most frequent pairs, one after the other. Merge number m makes the token with id 256 + m.

    Args:
        piece_counts: the distinct pieces and how often each stands in the text.
        byte_order: the byte that each of the ids 0 … 255 stands for.
        min_frequency: stop when the best pair is rarer.

    Raises:
        ValueError: `byte_order` is not an order of the 256 bytes.
    """
    learner = MergeLearner.from_pieces(piece_counts, byte_order)
    while len(learner.merges) < n_merges and learner.step(min_frequency):
        pass
    return learner.merges


def learn_from_texts(
    texts: Iterable[str],
    n_merges: int,
    pattern: str,
    *,
    byte_order: Sequence[int] = range(256),
    min_frequency: int = 2,
    max_pieces: int = 20_000_000,
    num_processes: int = 1,
    progress: bool = False,
    checkpoint: Path | str | None = None,
    corpus: str = "",
) -> list[Pair]:
    """`learn_merges` of the pieces of `texts`.

    Args:
        texts: read once, one at a time, in the same order each time; not at all where a checkpoint has their counts.
        checkpoint: a file to which the state goes every minute and when the work is interrupted, so that no text is
            counted and no merge learned twice. It stays there at the end, and a larger `n_merges` goes on from it.
        corpus: what the texts are, in words. A checkpoint of other words or settings is refused. The texts themselves
            cannot be compared without reading them: who changes them, deletes the file.

    Raises:
        ValueError: the texts are empty, the checkpoint is another's or damaged, or as `count_pieces`.
    """
    made_for = {"corpus": corpus, "pattern": pattern, "byte_order": list(byte_order), "max_pieces": max_pieces}
    made_for["min_frequency"] = min_frequency
    kept = _Checkpoint(None if checkpoint is None else Path(checkpoint), made_for)
    state = kept.load()
    if progress and (how_far := _how_far(state)):
        tqdm.write(f"Going on from {checkpoint} with {how_far}")
    learner = state if isinstance(state, MergeLearner) else _count(texts, state, kept, num_processes)
    hidden = None if progress else True  # None: no bar where nobody watches
    kept.save(learner)
    # A merge that is half done would be saved as a whole one: so Ctrl-C waits for its end.
    with (
        tqdm(total=n_merges, initial=len(learner.merges), desc="merges", unit="merge", disable=hidden) as bar,
        interrupts_wait() as interrupted,
    ):
        while len(learner.merges) < n_merges and not interrupted():
            kept.save_at_times(learner)
            if not learner.step(min_frequency):
                break
            bar.update()
        kept.save(learner)
    return learner.merges[:n_merges]


def _count(texts: Iterable[str], counted: Counted, kept: _Checkpoint, num_processes: int) -> MergeLearner:
    """Counts the texts that are not in `counted` yet."""
    pattern, byte_order, max_pieces = (kept.made_for[name] for name in ("pattern", "byte_order", "max_pieces"))
    rest = islice(texts, counted.texts, None)
    try:
        pieces = count_pieces(rest, pattern, num_processes, max_pieces, counted, lambda: kept.save_at_times(counted))
        if not pieces:
            raise ValueError("there is no text to train a tokenizer on: the corpus is empty, or too small to be split")
        return MergeLearner.from_pieces(pieces, byte_order)
    except KeyboardInterrupt:
        kept.save(counted)
        raise


def _how_far(state: MergeLearner | Counted) -> str:
    """For people; empty at the beginning."""
    if isinstance(state, MergeLearner):
        return f"{len(state.merges):,} merges; the corpus is not read again"
    return f"{state.texts:,} texts counted, which are read again but not counted again" if state.texts else ""


class _Checkpoint:
    """The file that the state of training goes to, if there is to be one.

    Args:
        made_for: what a state has to have been made for, to be gone on from.
    """

    def __init__(self, path: Path | None, made_for: dict[str, Any]) -> None:
        self.path, self.made_for = path, made_for
        self._next = time.monotonic() + _SAVE_EVERY

    def save_at_times(self, state: MergeLearner | Counted) -> None:
        """Saves it once a minute, or less often where that takes long."""
        if time.monotonic() > self._next:
            self.save(state)

    def save(self, state: MergeLearner | Counted) -> None:
        """Writes the state, atomically."""
        if self.path is None:
            return
        begun = time.monotonic()
        if isinstance(state, MergeLearner):
            content = {"merges": state.merges, "words": state.words, "frequency": state.frequency}
        else:
            pieces = state.pieces
            content = {"texts": state.texts, "pieces": list(pieces), "counts": list(pieces.values())}
        data = json.dumps(self.made_for | content).encode("ascii")
        write_bytes(self.path, gzip.compress(data, compresslevel=1, mtime=0))
        now = time.monotonic()
        self._next = now + max(_SAVE_EVERY, 10 * (now - begun))

    def load(self) -> MergeLearner | Counted:
        """The state in the file; the beginning of all if there is none.

        Raises:
            ValueError: the file is damaged, or made for something else.
        """
        if self.path is None or not self.path.is_file():
            return Counted()
        state: MergeLearner | Counted
        try:
            content = json.loads(gzip.decompress(self.path.read_bytes()))
            if "merges" in content:
                merges = [(a, b) for a, b in content["merges"]]
                words, frequency = content["words"], content["frequency"]
                if any(not 0 <= i < 256 + m for m, pair in enumerate(merges) for i in pair):
                    raise ValueError("a merge of what was not there yet")
                if len(words) != len(frequency) or min(frequency, default=0) < 0:
                    raise ValueError("not a count for each word")
                state = MergeLearner(words, frequency, merges)
            else:
                state = Counted(content["texts"])
                for piece, count in zip(content["pieces"], content["counts"], strict=True):
                    state.pieces[piece] += count
            differing = [name for name, value in self.made_for.items() if content[name] != value]
        except (ValueError, KeyError, TypeError, EOFError, OSError, RecursionError, zlib.error):
            raise ValueError(f"{self.path} is not a readable checkpoint of training: delete it to begin anew") from None
        for name in differing:
            raise ValueError(f"{self.path} was made with another {name}: delete it to begin anew")
        return state
