"""The checks of notebook 01, Unicode and bytes.

A check calls the learner's function on small texts, from the plainest on. What is wrong first decides the message, and
the message names the mistake that usually gives such an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from utils.exercises import attempt as attempt

Function = Callable[..., Any]


def call(answer: Function, *arguments: Any, hint: str = "look at the last line of the error above") -> Any:
    """What the learner's function returns.

    Raises:
        AssertionError: it raises an exception, and then `hint` says why, or returns nothing.
    """
    shown = f"{getattr(answer, '__name__', 'your function')}({', '.join(map(repr, arguments))})"
    try:
        result = answer(*arguments)
    except Exception as error:
        raise AssertionError(f"{shown} raises {type(error).__name__}: {hint}") from error
    assert result is not None, f"{shown} returns None: put your code in place of the dots, and end with a return"
    return result


def check_count_characters(answer: Function) -> None:
    """`count_characters(data)`: how many code points the UTF-8 bytes hold."""
    n = call(answer, "Aé€😀!".encode())  # 1 + 2 + 3 + 4 + 1 bytes
    assert n != 11, "that is the number of bytes: the bytes 10xxxxxx continue a character and must not count"
    assert n != 6, "that counts the bytes that continue a character: turn the condition round"
    assert n != 3, "that counts only bytes from 0xC0 on: the ASCII bytes, below 0x80, are characters too"
    assert n != 2, "that counts only ASCII: the first byte of a longer character begins with 11"
    assert n == 5, f"'Aé€😀!' has 5 code points, and you count {n}: count every byte that is not 10xxxxxx"
    assert call(answer, b"") == 0, "no bytes are no characters"
    for text in ("plain", "日本語", "e\u0301", "\x7f\x80\u07ff\u0800\uffff\U00010000\U0010ffff"):
        n = call(answer, text.encode())
        assert n == len(text), f"{text!r} has {len(text)} code points, and you count {n}: is the mask 0b11000000?"
    print("count_characters: right")


def check_decode_one(answer: Function) -> None:
    """`decode_one(data)`: the code point of the first character, and how many bytes it takes."""
    for text in ("A", "é", "€", "😀"):
        data = text.encode()
        result = call(answer, data, hint="does each of the four forms of the first byte have its own branch?")
        assert isinstance(result, tuple) and len(result) == 2, "return two things: the code point and the bytes it took"
        code, n = result
        assert isinstance(code, int), f"the code point is a number, not {code!r}: leave out chr()"
        lead = data[0]
        for byte in data[1:]:
            lead = (lead << 6) | (byte & 0x3F)
        raw = data[0] & (0x7F >> len(data) if len(data) > 1 else 0x7F)
        eight = raw
        for byte in data[1:]:
            raw, eight = (raw << 6) | byte, (eight << 8) | (byte & 0x3F)
        right = ord(text)
        assert code == right or code != lead, "the length bits of the first byte are still in: mask them away"
        assert code == right or code != raw, "the bits 10 of the following bytes are still in: use byte & 0b111111"
        assert code == right or code != eight, "a following byte brings six bits, not eight: shift by 6"
        assert code == right, f"{data!r} is U+{right:04X}, and you get {code:#x}"
        assert n == len(data), f"{text!r} takes {len(data)} bytes, and you say {n}"
    code, n = call(answer, "éé!".encode(), hint="more characters may follow the first one")
    assert n != 5, "you took all of the bytes: the first byte says how many belong to the first character"
    assert (code, n) == (0xE9, 2), f"the first character of 'éé!' is U+00E9 in 2 bytes, and you get {(code, n)}"
    for right in (0, 0x7F, 0x80, 0x7FF, 0x800, 0xFFFF, 0x10000, 0x10FFFF):
        data = chr(right).encode()
        result = call(answer, data)
        assert result == (right, len(data)), f"at the edge U+{right:04X} you get {result}: is a comparison off by one?"
    print("decode_one: right")


def check_mend_mojibake(answer: Function) -> None:
    """`mend_mojibake(text)`: the text that it was before somebody read its UTF-8 as cp1252; any other text as it is."""
    hint = "text that was never broken cannot be turned back: catch UnicodeError and return it as it is"
    mended = call(answer, "cafÃ©", hint="encode with cp1252 gives the bytes back, decode with utf-8 reads them rightly")
    assert mended != "cafÃ©", "'cafÃ©' comes back as it was: encode with cp1252, then decode with utf-8"
    assert mended != "cafÃƒÂ©", "that breaks it once more: encode with the wrong codec, decode with the right one"
    assert mended == "café", f"'cafÃ©' was 'café', and you get {mended!r}"
    latin = "'â‚¬' was '€', but Latin-1 has no ‚ (U+201A): encode with cp1252"
    assert call(answer, "â‚¬", hint=latin) == "€", latin
    for text in ("plain", "naïve", "Ångström", "5 €", "日本語", "😀"):
        same = call(answer, text, hint=hint)
        assert len(same) >= len(text) and "\ufffd" not in same, (
            f"{text!r} was right and comes back as {same!r}: errors='ignore' or 'replace' loses characters for good"
        )
        assert same == text, f"{text!r} was right and comes back as {same!r}: {hint}"
    print("mend_mojibake: right")


def check_cut_to_bytes(answer: Function) -> None:
    """`cut_to_bytes(text, limit)`: as many whole characters as fit into `limit` bytes of UTF-8, encoded."""
    cut = call(answer, "aé", 2, hint="cut the bytes first, then drop what cannot be decoded")
    assert isinstance(cut, bytes), f"return bytes, not {type(cut).__name__}: the limit is about the encoded text"
    assert b"\xef\xbf\xbd" not in cut, "U+FFFD stands in for the lost half and takes 3 bytes itself: drop the half"
    assert cut != b"a\xc3", "the cut goes through the é: a character whose bytes do not all fit must go"
    assert cut != b"a\xc3\xa9", "that is more than 2 bytes: the limit counts bytes, not characters"
    assert cut == b"a", f"of 'aé', 2 bytes have room for b'a' alone, and you give {cut!r}"
    assert call(answer, "aé", 3) == "aé".encode(), "all 3 bytes of 'aé' fit into 3: drop the last character only if cut"
    assert call(answer, "aé", 100) == "aé".encode(), "a limit above the length leaves the text whole"
    assert call(answer, "aé", 0) == b"", "nothing fits into 0 bytes"
    text = "x é € 😀 日本 e\u0301"
    for limit in range(len(text.encode()) + 1):
        fits = max(n for n in range(len(text) + 1) if len(text[:n].encode()) <= limit)
        right = text[:fits].encode()
        cut = call(answer, text, limit, hint="characters have up to 4 bytes: go back as far as needed")
        assert cut == right, f"of {text!r}, {limit} bytes have room for {right!r}, and you give {cut!r}"
    print("cut_to_bytes: right")


def check_same_text(answer: Function) -> None:
    """`same_text(a, b)`: whether two texts are the same but for how their accents are spelled."""
    for a, b in (("\u00e9", "e\u0301"), ("e\u0301", "\u00e9")):
        assert call(answer, a, b), (
            f"{a!r} and {b!r} are one text in two spellings: bring both of them, not one, into the same normal form"
        )
    assert call(answer, "a\u0323\u0307", "a\u0307\u0323"), "two marks may stand in either order: NFC or NFD sorts them"
    for a, b in (("Rose", "rose"), ("STRASSE", "straße")):
        assert not call(answer, a, b), f"{a!r} and {b!r} differ: upper and lower case were not asked about"
    for a, b in (("x²", "x2"), ("ﬁn", "fin")):
        assert not call(answer, a, b), f"{a!r} and {b!r} are different texts: NFKC and NFKD throw away too much"
    assert not call(answer, "résumé", "resume"), "é is not e: keep the marks, they are part of the text"
    print("same_text: right")
