"""Checks of the exercises of notebook 04. Each takes the learner's function and says which mistake is likely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from utils.exercises import attempt as attempt
from working_with_text_data.bytepair_enc import GPT2_PATTERN
from working_with_text_data.bytepair_enc.patterns import compile_pattern, split_into_pieces

Array = npt.NDArray[Any]


def check_count_looks(answer: Callable[[int], int]) -> None:
    """`answer(n)`: pairs that the plain rule looks at until a piece of n bytes is one token."""
    assert answer(4) is not None, "it returned None: write the body and return the number"
    assert answer(4) != 3, "that is the first round alone: the rounds after it look at their pairs too"
    assert answer(4) != 4 + 3 + 2 + 1, "four parts have three pairs, not four: the first round looks at n - 1"
    assert answer(4) != 16, "n² is only the order of it: add up 3 + 2 + 1"
    for n in (1, 2, 3, 4, 7, 100):
        expected = sum(range(n))
        assert answer(n) == expected, f"n = {n}: (n - 1) + (n - 2) + … + 1 = {expected}, you say {answer(n)}"
    print("right: n (n - 1) / 2")


def check_encode_remembering(answer: Callable[[Sequence[str], Callable[[str], list[int]]], Sequence[int]]) -> None:
    """`answer(pieces, encode)`: the ids of all pieces in order, with `encode` called once for each distinct one."""
    pieces = ["the", " cat", " and", " the", " cat", " and", "The", " cat"]
    expected = [i for piece in pieces for i in piece.encode()]
    calls: list[str] = []

    def encode(piece: str) -> list[int]:
        calls.append(piece)
        return list(piece.encode())

    got = answer(pieces, encode)
    assert got is not None, "it returned None: return the list of ids"
    ids = list(got)
    once = [i for piece in dict.fromkeys(pieces) for i in piece.encode()]
    assert ids != once, "a piece that comes again has to give its ids again: remember them, do not leave them out"
    assert not ids or not isinstance(ids[0], list), "a list of lists: the ids stand side by side in one list"
    assert sorted(ids) != sorted(expected) or ids == expected, "the ids are in another order than the pieces"
    assert ids == expected, "other ids: is the key the piece exactly as it is, capitals and spaces included?"
    twice = len(calls) - len(set(calls))
    assert not twice, f"`encode` was called {twice} times for a piece that it had seen: look into the dictionary first"
    print(f"right: {len(calls)} calls for {len(pieces)} pieces")


def check_cut_words(answer: Callable[[str], Sequence[str]]) -> None:
    """`answer(text)`: words, cut in front of white space that follows something else; no piece of GPT-2's torn."""
    pattern = compile_pattern(GPT2_PATTERN)
    got = answer("the cat")
    assert got is not None, "it returned None: return the list of words"
    assert list(got) != ["the", "cat"], "the space is gone: the words together must be the text"
    assert list(got) != ["the ", "cat"], "the space belongs to the word behind it: cut in front of it"
    for length in range(6):
        for letters in product("a .\n", repeat=length):
            text = "".join(letters)
            words = list(answer(text))
            if "".join(words) != text and text.startswith("".join(words)) and not text[len("".join(words)) :].strip():
                raise AssertionError(f"{text!r}: the white space at the end is lost")
            assert "".join(words) == text, f"{text!r}: the words together are {''.join(words)!r}"
            pieces = [piece for word in words for piece in split_into_pieces(pattern, word)]
            torn = f"{text!r} is cut into {words}, and that tears a piece of {split_into_pieces(pattern, text)}"
            assert pieces == split_into_pieces(pattern, text), f"{torn}: no cut inside of a run of white space"
    text = "one two\nthree   four "
    assert len(list(answer(text))) >= 4, f"{text!r} stays nearly whole: cut in front of each run of white space"
    print("right: the words have the pieces of the text")


def check_unpack_ids(answer: Callable[[bytes], list[int]]) -> None:
    """`answer(packed)`: the ids that stand side by side as uint32, as a list of Python's numbers."""
    ids = [5, 300, 70_000, 0, 4_000_000_000]
    got = answer(np.array(ids, np.uint32).tobytes())
    assert got is not None, "it returned None: return the list of ids"
    assert len(got) != 4 * len(ids), "these are single bytes: four bytes make one id"
    assert len(got) != 2 * len(ids), "two bytes an id are too few: uint32 has four"
    assert len(got) == len(ids), f"{len(ids)} ids went in and {len(got)} came out: which type has four bytes?"
    assert got[0] != 5 << 24, "the bytes of each id are read from the wrong end: leave them as the machine has them"
    assert got[-1] >= 0, "a large id came out negative: the numbers have no sign, uint32 and not int32"
    assert list(got) == ids, f"expected {ids}, got {list(got)}"
    assert isinstance(got, list), "the numbers are right, but this is an array: give a list with .tolist()"
    assert all(type(i) is int for i in got), "the list holds NumPy's numbers: .tolist() makes Python's"
    assert answer(b"") == [], "no bytes are no ids: an empty list"
    print("right: four bytes an id")


def check_drop_one_each(answer: Callable[[Array, Array], Array]) -> None:
    """`answer(matrix, column)`: each row without the number in its own column, (rows, n) to (rows, n - 1)."""
    matrix = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]])
    column = np.array([0, 3, 1])
    before = matrix.copy()
    got = answer(matrix, column)
    assert got is not None, "it returned None: return the smaller matrix"
    got = np.asarray(got)
    assert np.array_equal(matrix, before), "the matrix that was given is changed: work on a copy"
    assert got.shape != (3, 1), "the columns of all rows went from every row: each row loses one number, its own"
    assert got.ndim == 2, (
        f"the shape is {got.shape}: taking by a mask makes one row of all; reshape it to (rows, n - 1)"
    )
    assert not np.array_equal(got, matrix[:, 1:]), "every row lost the first row's column: each has its own"
    assert got.shape == (3, 3), f"expected the shape (3, 3), got {got.shape}"
    expected = np.array([[2, 3, 4], [5, 6, 7], [9, 11, 12]])
    assert not np.array_equal(np.sort(got.ravel()), np.sort(expected.ravel())) or np.array_equal(got, expected), (
        "the right numbers, in other places: rows stay rows, and their order stays"
    )
    assert np.array_equal(got, expected), f"expected {expected.tolist()}, got {got.tolist()}"
    one = answer(np.array([[1, 2]]), np.array([1]))
    assert np.array_equal(one, [[1]]), "it fails on a matrix of one row"
    print("right: each row without one of its numbers")
