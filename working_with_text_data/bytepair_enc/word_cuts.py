r"""Cutting a text into words before the pattern is asked, at places where the pattern would cut anyway.

Natural text repeats its words. If a text is cut at white space first, each distinct word has to go through the pattern
and the merges once, and a dictionary does the rest. Cutting is done with the standard library's `re`, for which "white
space or not" is a quick question, where `\p{L}` is not. It is right only if no match of the pattern ever crosses a cut:

    GPT-2             cut in front of white space that follows something else      "the| end.|\n\nThen|  it"
    GPT-4, GPT-4o     the same, but line ends stay with what is before them,
                      up to the last line end of the white space                   "the| end.\n\n|Then|  it"

*No match crosses.* Every alternative that matches white space has it first or has nothing else; only line ends may also
follow signs, in GPT-4 and GPT-4o. So a match never holds something else with white space behind it, line ends aside.
Behind a line end go on only white space (up to the last line end of the run, which is where the cut is) and, in GPT-4o,
slashes: where one follows, there is no cut.

*The sides do not change.* What a match begins with, no alternative asks, so the right side matches as before. On the
left, only the white-space alternatives look ahead. A left side that ends in something else does not meet them. One that
ends with the last line end of its white space is now the end of a text, and each of the three alternatives that may
take such a run takes all of it, as before. The white space at the end of the text is left with the last word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress
from operator import itemgetter, not_

import numpy as np

from working_with_text_data.bytepair_enc.patterns import (
    FIRST_GPT4_PATTERN,
    GPT2_PATTERN,
    GPT4_PATTERN,
    GPT4O_PATTERN,
    Pattern,
)

Cutter = Callable[[str], list[str]]

# What `\s` is to the pattern's engines. Python's own has U+001C to U+001F too, which are signs to them.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029"
WHITE_SPACE += "\u202f\u205f\u3000"
_SPACES, _LOOSE_ENDS = frozenset(WHITE_SPACE), frozenset(WHITE_SPACE) - {"\r", "\n"}
_S, _N = f"[{WHITE_SPACE}]", f"[^{WHITE_SPACE}]"
# Possessive: nothing is ever given back, which saves a fifth of the time.
_BEFORE_WHITE_SPACE = re.compile(f"{_S}*+{_N}++")
_BEHIND_LINE_ENDS = re.compile(rf"{_S}*+{_N}++(?:[\r\n](?:{_S}*[\r\n])?+(?:/{_N}*+)?+)*+")


def _cut(words: re.Pattern[str], text: str) -> list[str]:
    body = text.rstrip(WHITE_SPACE)
    found: list[str] = words.findall(body)
    if len(body) == len(text):
        return found
    return [*found[:-1], (found[-1] if found else "") + text[len(body) :]]


def _cut_before_white_space(text: str) -> list[str]:
    """GPT-2's cuts."""
    return _cut(_BEFORE_WHITE_SPACE, text)


def _cut_behind_line_ends(text: str) -> list[str]:
    """The cuts of GPT-4 and GPT-4o."""
    return _cut(_BEHIND_LINE_ENDS, text)


CUTTERS: dict[Pattern, Cutter] = {
    GPT2_PATTERN: _cut_before_white_space,
    GPT4_PATTERN: _cut_behind_line_ends,
    FIRST_GPT4_PATTERN: _cut_behind_line_ends,
    GPT4O_PATTERN: _cut_behind_line_ends,
}
"""pattern -> what cuts a text into words whose pieces, one after the other, are the pieces of the text."""


def words_to_pieces(
    words: Sequence[str], split: Callable[[str], list[str]]
) -> Iterator[tuple[list[str], list[str], list[int], list[int]]]:
    """The pieces of many words, from one look of the pattern at all of them.

    Asking the pattern about each word by itself costs more than its answer. So words are joined with something between
    them that keeps them apart: a space and a letter end any word, and before one that does not begin with white space
    comes a line end too, which no letter keeps. Only a word that ends in other white space than a line end is asked
    about alone, since it was the end of a text. Words in ASCII are apart, because for these the pattern is quicker.

    Args:
        words: from one of `CUTTERS`, in any order.
        split: a text -> its pieces.

    Yields:
        Some of the words; pieces of all of these and of what is between them; and where in the pieces each word begins
        and ends.
    """
    alone, together = _parted(words, map(_LOOSE_ENDS.__contains__, map(itemgetter(-1), words)))
    behind_space, others = _parted(together, map(_SPACES.__contains__, map(itemgetter(0), together)))
    for words_alike, between, pieces_between in ((behind_space, " a", 1), (others, " a\n", 2)):
        for group in _parted(words_alike, map(str.isascii, words_alike)):
            if not group:
                continue
            pieces = split(between + between.join(group))
            piece_ends = np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)))
            word_ends = np.cumsum(np.fromiter(map(len, group), np.int64, len(group)) + len(between))
            ends = np.searchsorted(piece_ends, word_ends) + 1
            starts = np.concatenate([[0], ends[:-1]]) + pieces_between
            if not np.array_equal(piece_ends[ends - 1], word_ends):
                raise AssertionError("a match of the pattern crosses the end of a word")  # no text can do that
            yield group, pieces, starts.tolist(), ends.tolist()
    for word in alone:
        pieces = split(word)
        yield [word], pieces, [0], [len(pieces)]


def _parted(words: Sequence[str], chosen: Iterable[bool]) -> tuple[list[str], list[str]]:
    """The words that are chosen, and the others; in their order."""
    flags = list(chosen)
    return list(compress(words, flags)), list(compress(words, map(not_, flags)))


# Two places that are safe for all of them: before a space behind something else, and behind a single line end between
# something else and a letter or digit. (`\S` is narrower here than in the pattern, which only leaves out some places.)
_SAFE = re.compile(r"(?<=\S)(?= )|(?<=\S\n)(?=\w)")


def blocks(text: str, size: int) -> Iterator[str]:
    """`text` in blocks of about `size` characters, cut where it is safe for all of `CUTTERS`.

    A block is longer where there is no such place.
    """
    start = 0
    while len(text) - start > size:
        safe = _SAFE.search(text, start + size)
        cut = safe.start() if safe else len(text)
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:]


def last_cut(text: str) -> int:
    """The last place in `text` where it may be cut, safe for all of `CUTTERS`; 0 if there is none."""
    seen = 1_000
    while True:
        begin = max(len(text) - seen, 0)
        # Not behind the last character: nobody knows what follows it.
        found = [safe.start() for safe in _SAFE.finditer(text, begin) if 0 < safe.start() < len(text)]
        if found or begin == 0:
            return found[-1] if found else 0
        seen *= 30
