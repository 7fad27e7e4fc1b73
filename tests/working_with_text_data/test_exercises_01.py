"""The checks of notebook 01 tell a right answer from the usual wrong ones, and say which it is."""

from __future__ import annotations

import unicodedata

import pytest

from working_with_text_data.exercises import ex01


def lead_length(data):
    return 1 if data[0] < 0x80 else 2 if data[0] < 0xE0 else 3 if data[0] < 0xF0 else 4


def decode(data, n=None, lead_mask=True, mask=0x3F, shift=6):
    n = n or lead_length(data)
    code = data[0] & (0x7F if n == 1 else 0x7F >> n) if lead_mask else data[0]
    for byte in data[1:n]:
        code = (code << shift) | (byte & mask)
    return code, n


def off_by_one(data):
    code, n = decode(data)
    return (code, n) if code < 0x10FFFF else (code - 1, n)


def mend(text, wrong="cp1252"):
    try:
        return text.encode(wrong).decode("utf-8")
    except UnicodeError:
        return text


def cut(text, limit):
    return text.encode()[:limit].decode("utf-8", "ignore").encode()


def one_byte_back(text, limit):
    data = text.encode()
    return data[: limit - 1] if 0 < limit < len(data) and data[limit - 1] >= 0x80 else data[:limit]


def same(a, b, form="NFC"):
    return unicodedata.normalize(form, a) == unicodedata.normalize(form, b)


def without_marks(text):
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


RIGHT = [
    (ex01.check_count_characters, lambda data: sum(byte & 0xC0 != 0x80 for byte in data)),
    (ex01.check_decode_one, decode),
    (ex01.check_mend_mojibake, mend),
    (ex01.check_cut_to_bytes, cut),
    (ex01.check_same_text, same),
    (ex01.check_same_text, lambda a, b: same(a, b, "NFD")),
]
WRONG = [
    (ex01.check_count_characters, lambda data: None, "in place of the dots"),
    (ex01.check_count_characters, len, "number of bytes"),
    (ex01.check_count_characters, lambda data: sum(b & 0xC0 == 0x80 for b in data), "turn the condition round"),
    (ex01.check_count_characters, lambda data: sum(b >= 0xC0 for b in data), "are characters too"),
    (ex01.check_count_characters, lambda data: sum(b < 0x80 for b in data), "only ASCII"),
    (ex01.check_count_characters, lambda data: max(sum(b & 0xC0 != 0x80 for b in data), 1), "no characters"),
    (ex01.check_count_characters, lambda data: data.count(b"a"), "count every byte"),
    (ex01.check_decode_one, lambda data: data.decode(), "return two things"),
    (ex01.check_decode_one, lambda data: (data.decode()[0], 1), "leave out chr"),
    (ex01.check_decode_one, lambda data: decode(data, lead_mask=False), "length bits of the first byte"),
    (ex01.check_decode_one, lambda data: decode(data, mask=0xFF), "bits 10 of the following"),
    (ex01.check_decode_one, lambda data: decode(data, shift=8), "six bits, not eight"),
    (ex01.check_decode_one, lambda data: (ord(data.decode()), 1), "takes 2 bytes"),
    (ex01.check_decode_one, lambda data: (ord(data.decode()[0]), len(data)), "took all of the bytes"),
    (ex01.check_decode_one, lambda data: (ord(data.decode()), len(data)), "more characters may follow"),
    (ex01.check_decode_one, off_by_one, "off by one"),
    (ex01.check_mend_mojibake, lambda text: text, "comes back as it was"),
    (ex01.check_mend_mojibake, lambda text: text.encode().decode("cp1252"), "breaks it once more"),
    (ex01.check_mend_mojibake, lambda text: mend(text, "latin-1"), "Latin-1 has no"),
    (ex01.check_mend_mojibake, lambda text: text.encode("latin-1").decode(), "Latin-1 has no"),
    (ex01.check_mend_mojibake, lambda text: text.encode("cp1252").decode(), "catch UnicodeError"),
    (ex01.check_mend_mojibake, lambda text: text.encode("cp1252", "ignore").decode("utf-8", "ignore"), "loses"),
    (ex01.check_mend_mojibake, lambda text: text.encode("cp1252", "replace").decode("utf-8", "replace"), "loses"),
    (ex01.check_cut_to_bytes, lambda text, limit: text.encode()[:limit], "goes through the é"),
    (ex01.check_cut_to_bytes, lambda text, limit: text[:limit].encode(), "counts bytes, not characters"),
    (ex01.check_cut_to_bytes, lambda text, limit: cut(text, limit).decode(), "return bytes"),
    (
        ex01.check_cut_to_bytes,
        lambda text, limit: text.encode()[:limit].decode("utf-8", "replace").encode(),
        "U\\+FFFD stands in",
    ),
    (ex01.check_cut_to_bytes, lambda text, limit: cut(text, min(limit, 2)), "only if cut"),
    (ex01.check_cut_to_bytes, one_byte_back, "bytes have room for"),
    (ex01.check_same_text, lambda a, b: a == b, "bring both of them"),
    (ex01.check_same_text, lambda a, b: unicodedata.normalize("NFC", a) == b, "bring both of them"),
    (ex01.check_same_text, lambda a, b: same(a, b, "NFKC"), "throw away too much"),
    (ex01.check_same_text, lambda a, b: same(a.casefold(), b.casefold()), "case were not asked"),
    (ex01.check_same_text, lambda a, b: without_marks(a) == without_marks(b), "keep the marks"),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_a_right_answer_passes(check, answer, capsys):
    check(answer)
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize(("check", "answer", "message"), WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(check, answer, message):
    with pytest.raises(AssertionError, match=message):
        check(answer)


def test_an_attempt_never_breaks_the_notebook(capsys):
    ex01.attempt(ex01.check_count_characters, len)
    ex01.attempt(ex01.check_cut_to_bytes, lambda text, limit: 1 / 0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("not solved yet: ") for line in lines] == [True, True]
    assert "ZeroDivisionError" in lines[1]
