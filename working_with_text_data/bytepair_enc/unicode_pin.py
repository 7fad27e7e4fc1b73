"""Which Unicode? One version for all ids, whatever the installed engine knows.

A pattern asks whether a character is a letter, and the answer changes as Unicode grows: a script that was added last
year is letters to the engine that knows it and signs to the one that does not. tiktoken's engine knows Unicode 16, the
`regex` package a newer one. The two cut 17,560 code points differently, so the same text would have other ids.

Ids must not depend on what happens to be installed, so this project takes tiktoken's answer. Where a text has one of
those code points, its pieces are found on a *stand-in* text: each newer character is replaced by one that belongs to
the class that tiktoken sees, and the pieces are then cut from the real text at the same places. That costs one search
of a text and nothing more, since such characters are rare.

`tests` asks both engines about every code point there is, so a new version of either is noticed.
"""

from __future__ import annotations

import re

# Assigned after Unicode 16: to tiktoken they are neither letters nor numbers nor marks. First and last of each range.
NEWER_THAN_UNICODE_16 = (
    "0558 058B-058C 05C8-05C9 088F 0B53-0B54 0C5C 0CDC 1ACF-1AF0 208F 209D-209F A7CE-A7CF A7D2 A7D4 A7DD A7E2 A7F1 "
    "AB6C-AB6D 107BB-107BF 10940-10959 10EC5-10EC7 10ECB-10ECF 10ED9-10EEE 10EF0-10EFB 11B0A 11B60-11B67 11DB0-11DDB "
    "11DE0-11DE9 11DF0-11DF1 1246F 12475-1247F 12550-12686 16EA0-16EB8 16EBB-16ED3 16FF2-16FF6 187F8-187FF 18CD6-18CDA "
    "18D09-18D20 18D80-18DF2 18E00-19191 191A0-191D2 1B123-1B128 1B168 1D127-1D128 1D250-1D252 1D25B-1D25C 1D25F "
    "1D280-1D281 1D6A6 1DF1F-1DF24 1DF2B-1DF81 1DF90-1DF96 1DFCD-1DFFF 1E6C0-1E6DE 1E6E0-1E6F5 1E6FE-1E6FF 2B73A-2B73F "
    "2B81E 2CEA2-2CEAD 323B0-33479 3D000-3FC3F"
)
_RANGES = [tuple(int(end, 16) for end in entry.split("-")) for entry in NEWER_THAN_UNICODE_16.split()]
NOT_A_LETTER = "\ue000"  # private use: to every version neither a letter nor a number nor white space
LOWER_CASE = "\u0251"  # ɑ: of U+0295, which was a lower-case letter in Unicode 16 and has no case since
_STAND_INS = {c: NOT_A_LETTER for first, *last in _RANGES for c in range(first, (last or [first])[0] + 1)}
_STAND_INS[0x295] = LOWER_CASE
_BELOW_10000 = "".join(map(chr, (c for c in _STAND_INS if c < 0x10000)))
# A quick first look, which lets through what lies above U+FFFF: a set of all the ranges would be slow to search for.
_MAY_DIFFER = re.compile(f"[{_BELOW_10000}\U00010000-\U0010ffff]")


def as_unicode_16(text: str) -> str:
    """`text` for a pattern to look at: as long as `text`, with each newer character replaced by its stand-in."""
    if text.isascii() or _STAND_INS.keys().isdisjoint(map(ord, set(_MAY_DIFFER.findall(text)))):
        return text
    return text.translate(_STAND_INS)
