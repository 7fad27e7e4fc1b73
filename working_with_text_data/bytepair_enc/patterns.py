r"""How text is cut into pieces before any merge, so that no token spans two words.

Without a cut, "dog." and "dog!" and "dog?" would each become a token, and so would " of the". The published
vocabularies come with a regular expression each; ids are right only with that one. Read from left to right, the first
alternative that matches takes as much as it can:

    GPT-2       '(?:[sdmt]|ll|ve|re)      the end of an English contraction: 's, 't, 'll
                 ?\p{L}+                  a word, with one space before it
                 ?\p{N}+                  a number, of any length
                 ?[^\s\p{L}\p{N}]+        a run of signs
                \s+(?!\S)                 white space, but for the last one before a word
                \s+
    GPT-4       contractions in either case, words that may begin with any one sign ("(word"), numbers in threes from
                the left, signs that keep the line ends behind them, and white space up to its last line end
    GPT-4o      words that change to lower case once (so that camelCase is cut), marks (\p{M}) as parts of words,
                contractions kept with their word, signs that keep slashes and line ends

Written so that three engines read them alike: the `regex` package, Oniguruma (in Hugging Face's `tokenizers`) and
fancy-regex (in `tiktoken`). tiktoken spells its own with possessive quantifiers, which Oniguruma reads otherwise:
there `{1,3}+` is a repetition. None is needed here, because no alternative could match by giving anything back.
`(?![\s\S])` is the end of the text; `$` would also be the end of a line to one of the three.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import accumulate, pairwise

import regex

from working_with_text_data.bytepair_enc.unicode_pin import as_unicode_16

GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# The third alternative from the end came to tiktoken later: white space at the end of the text is one piece.
GPT4_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s+(?![\s\S])|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The first form of GPT-4's pattern, which many tokenizer.json files have: the same but for the end of a text.
FIRST_GPT4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Pattern = str | tuple[str, ...]
"""A pattern, or several in a row: each cuts the pieces of the one before and sees nothing beyond their ends."""


def compile_pattern(pattern: str) -> regex.Pattern[str]:
    """The pattern, ready for `split_into_pieces`.

    Raises:
        ValueError: it does not compile, or has groups that capture; one line that says where.
    """
    if not isinstance(pattern, str):
        raise ValueError(f"the pattern {pattern!r} is not a str")
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"the pattern {pattern!r} does not compile: {error}") from None
    if compiled.groups:
        raise ValueError(f"the pattern {pattern!r} captures groups: write (?:...) in place of (...)")
    if compiled.match(""):
        raise ValueError(f"the pattern {pattern!r} matches the empty text: each match must take a character")
    return compiled


_PUBLISHED = {GPT2_PATTERN, GPT4_PATTERN, FIRST_GPT4_PATTERN, GPT4O_PATTERN}
_IN_ASCII = {"L": "A-Za-z", "Lu": "A-Z", "Ll": "a-z", "Lt": "", "Lm": "", "Lo": "", "M": "", "N": "0-9"}


@lru_cache
def in_ascii(pattern: str) -> re.Pattern[str] | None:
    r"""What cuts ASCII text as a published pattern does; None for other patterns.

    In ASCII \p{L} is A-Za-z, and the standard library's `re`, the faster of the two engines, can say that.
    """
    if pattern not in _PUBLISHED:
        return None
    translated, in_class = [], False
    for part in re.findall(r"\\p\{\w+\}|\\.|.", pattern):
        in_class = part == "[" or (in_class and part != "]")
        if part.startswith(r"\p"):
            part = _IN_ASCII[part[3:-1]] if in_class else f"[{_IN_ASCII[part[3:-1]]}]"
        translated.append(part)
    return re.compile("".join(translated), re.ASCII)  # with this flag `\s` is what `regex` takes for it, too


def split_into_pieces(pattern: regex.Pattern[str], text: str) -> list[str]:
    """The matches of `pattern` one after the other; what stands between two matches is a piece of its own.

    The published patterns match every character, and then this is `findall`, but for what `unicode_pin.py` explains.
    """
    if text.isascii() and (quick := in_ascii(pattern.pattern)):
        return quick.findall(text)
    shown = as_unicode_16(text)
    pieces: list[str] = pattern.findall(shown)
    if sum(map(len, pieces)) != len(text):
        pieces = _with_gaps(pattern, shown)
    if shown is not text:
        ends = [0, *accumulate(map(len, pieces))]
        pieces = [text[start:end] for start, end in pairwise(ends)]
    return pieces


def _with_gaps(pattern: regex.Pattern[str], text: str) -> list[str]:
    pieces, position = [], 0
    for match in pattern.finditer(text):
        pieces += [text[position : match.start()], match.group()]
        position = match.end()
    return [piece for piece in [*pieces, text[position:]] if piece]


def splitter(pattern: Pattern) -> Callable[[str], list[str]]:
    """What cuts a text into pieces.

    Raises:
        ValueError: as `compile_pattern`.
    """
    if not isinstance(pattern, tuple):
        return partial(split_into_pieces, compile_pattern(pattern))
    steps = [splitter(one) for one in pattern]

    def split(text: str) -> list[str]:
        pieces = [text] if text else []
        for step in steps:
            pieces = [part for piece in pieces for part in step(piece)]
        return pieces

    return split
