"""The checks of notebook 04's exercises: right answers pass, and each likely mistake meets its message."""

from __future__ import annotations

import re

import numpy as np
import pytest

from working_with_text_data.exercises import ex04


def remember(pieces, encode):
    known: dict[str, list[int]] = {}
    ids = []
    for piece in pieces:
        if piece not in known:
            known[piece] = encode(piece)
        ids += known[piece]
    return ids


def remember_small_letters(pieces, encode):
    known: dict[str, list[int]] = {}
    ids = []
    for piece in pieces:
        if piece.strip().lower() not in known:
            known[piece.strip().lower()] = encode(piece)
        ids += known[piece.strip().lower()]
    return ids


def cut(text):
    body = text.rstrip()
    words = re.findall(r"\s*\S+", body)
    return [*words[:-1], (words[-1] if words else "") + text[len(body) :]]


def drop(matrix, column):
    keep = np.ones(matrix.shape, bool)
    keep[np.arange(len(matrix)), column] = False
    return matrix[keep].reshape(len(matrix), matrix.shape[1] - 1)


def drop_in_place(matrix, column):
    smaller = drop(matrix, column)
    matrix[:] = 0
    return smaller


RIGHT = [
    ("count_looks", lambda n: n * (n - 1) // 2),
    ("encode_remembering", remember),
    ("cut_words", cut),
    ("cut_words", lambda text: re.findall(r"\s*\S+(?:\s+\Z)?|\s+\Z", text)),
    ("unpack_ids", lambda packed: np.frombuffer(packed, np.uint32).tolist()),
    ("drop_one_each", drop),
    ("drop_one_each", lambda m, c: np.array([np.delete(row, i) for row, i in zip(m, c, strict=True)])),
]
WRONG = [
    ("count_looks", lambda n: None, "returned None"),
    ("count_looks", lambda n: n - 1, "first round alone"),
    ("count_looks", lambda n: n * (n + 1) // 2, "three pairs, not four"),
    ("count_looks", lambda n: n * n, "only the order"),
    ("count_looks", lambda n: max(n, 6), "n = 1"),
    ("encode_remembering", lambda pieces, encode: None, "returned None"),
    ("encode_remembering", lambda pieces, encode: [i for p in pieces for i in encode(p)], "look into the dictionary"),
    ("encode_remembering", lambda ps, encode: [i for p in dict.fromkeys(ps) for i in encode(p)], "its ids again"),
    ("encode_remembering", lambda pieces, encode: [encode(p) for p in pieces], "side by side"),
    ("encode_remembering", lambda pieces, encode: remember(sorted(pieces), encode), "another order"),
    ("encode_remembering", remember_small_letters, "exactly as it is"),
    ("cut_words", lambda text: None, "returned None"),
    ("cut_words", lambda text: text.split(), "the space is gone"),
    ("cut_words", lambda text: re.findall(r"\S+\s*|\s+", text), "the word behind it"),
    ("cut_words", lambda text: re.findall(r"\s*\S+", text), "at the end is lost"),
    ("cut_words", lambda text: re.findall(r"\s?\S+|\s", text), "no cut inside"),
    ("cut_words", lambda text: [text], "nearly whole"),
    ("cut_words", lambda text: [word for word in re.split(r"(?=\n)", text) if word], "no cut inside"),
    ("unpack_ids", lambda packed: None, "returned None"),
    ("unpack_ids", lambda packed: list(packed), "single bytes"),
    ("unpack_ids", lambda packed: np.frombuffer(packed, np.uint16).tolist(), "two bytes"),
    ("unpack_ids", lambda packed: np.frombuffer(packed + bytes(4), np.uint64).tolist(), "which type"),
    ("unpack_ids", lambda packed: np.frombuffer(packed, ">u4").tolist(), "wrong end"),
    ("unpack_ids", lambda packed: np.frombuffer(packed, np.int32).tolist(), "negative"),
    ("unpack_ids", lambda packed: np.frombuffer(packed, np.uint32), "an array"),
    ("unpack_ids", lambda packed: list(np.frombuffer(packed, np.uint32)), "NumPy's numbers"),
    ("drop_one_each", lambda m, c: None, "returned None"),
    ("drop_one_each", lambda m, c: np.delete(m, c, axis=1), "its own"),
    ("drop_one_each", lambda m, c: np.delete(m, c[0], axis=1), "the first row's column"),
    ("drop_one_each", lambda m, c: drop(m, c).ravel(), "reshape it"),
    ("drop_one_each", lambda m, c: drop(m, c).T, "rows stay rows"),
    ("drop_one_each", drop_in_place, "work on a copy"),
    ("drop_one_each", lambda m, c: m[:, :-1], "expected"),
]


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_a_right_answer_passes(name, answer, capsys):
    getattr(ex04, f"check_{name}")(answer)
    assert capsys.readouterr().out.startswith("right")


@pytest.mark.parametrize(("name", "answer", "message"), WRONG)
def test_a_wrong_answer_meets_its_message(name, answer, message):
    with pytest.raises(AssertionError, match=message):
        getattr(ex04, f"check_{name}")(answer)


def test_attempt_says_what_is_wrong_and_goes_on(capsys):
    ex04.attempt(ex04.check_count_looks, lambda n: None)
    ex04.attempt(ex04.check_unpack_ids, lambda packed: 1 / 0)
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("not solved yet: ") for line in lines) and len(lines) == 2
    assert "ZeroDivisionError" in lines[1]
