"""Checks of notebook 20, a label for a text. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from utils.exercises import require_an_answer

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]


def check_bag_of_words(answer: Callable[[list[str], list[str]], list[list[int]]]) -> None:
    """`bag_of_words(texts, words)`: how often each word is in each text; one row a text."""
    texts, words = ["Good good film", "not bad", "nothing"], ["bad", "film", "good", "not"]
    given = answer(list(texts), list(words))
    require_an_answer(given)
    assert not isinstance(given, set | dict | str), f"return a list of rows, not a {type(given).__name__}"
    rows = [[int(count) for count in row] for row in given]
    assert len(rows) != len(words) or len(rows[0]) != len(texts), (
        "rows and columns have changed places: one row a text, one column a word"
    )
    assert rows != [[0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]], (
        "either each word counts once only, or `Good` is not seen as `good`: count all, in small letters"
    )
    assert rows[2] != [0, 0, 0, 1], "`nothing` holds the letters n-o-t, but is another word: split the text at blanks"
    wanted = [[0, 1, 2, 0], [1, 0, 0, 1], [0, 0, 0, 0]]
    assert rows == wanted, f"expected {wanted}, and you have {rows}"
    print("bag_of_words: right")


def _vectors(answer: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden, lengths, what the answer gives of them), its shape checked."""
    hidden = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([2, 5, 3])
    given = answer(hidden.clone(), lengths.clone())
    require_an_answer(given)
    assert isinstance(given, Tensor), f"return a tensor, not a {type(given).__name__}"
    assert given.shape != (3, 3, 4), (
        "hidden[:, lengths - 1] takes every length of every text, (B, B, d): index the rows, too, with arange(B)"
    )
    assert given.shape == (3, 4), f"a vector a text is wanted, (3, 4), and you have {tuple(given.shape)}"
    return hidden, lengths, given


def _near(given: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(given.double(), wanted.double(), atol=1e-5)


def check_last_vectors(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """`last_vectors(hidden, lengths)`: the vector of each text's last token."""
    hidden, lengths, given = _vectors(answer)
    rows = torch.arange(3)
    assert not _near(given, hidden[:, -1]), (
        "that is the last column: padding, for texts that are shorter than the longest"
    )
    assert not _near(given, hidden[rows, lengths.clamp(max=4)]), (
        "you are one too far: a text of n tokens has its last at n - 1"
    )
    assert not _near(given, hidden[:, 0]), "that is the first token, which has seen nothing but itself"
    assert not _near(given, hidden[rows, (lengths - 2)]), "that is the last but one: positions begin at 0"
    wanted = hidden[rows, lengths - 1]
    assert _near(given, wanted), "expected hidden[i, lengths[i] - 1] for each text i"
    print("last_vectors: right")


def check_mean_vectors(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """`mean_vectors(hidden, lengths)`: the mean over each text's own tokens."""
    hidden, lengths, given = _vectors(answer)
    real = torch.arange(5) < lengths[:, None]
    total = (hidden * real[..., None]).sum(dim=1)
    assert not _near(given, hidden.mean(dim=1)), "the padding is in the mean: leave out what is beyond a text's length"
    assert not _near(given, total / 5), (
        "the padding is out of the sum but still counted: divide by the text's own length, not by T"
    )
    assert not _near(given, hidden.sum(dim=1) / lengths[:, None]), (
        "you divide by the right length, but padding is in the sum"
    )
    assert not _near(given, total), "that is the sum: divide by each text's length"
    assert not _near(given, hidden[torch.arange(3), lengths - 1]), (
        "that is the last token, and not the mean over all of them"
    )
    wanted = total / lengths[:, None]
    assert _near(given, wanted), "expected the mean of hidden[i, :lengths[i]] for each text i"
    filled = hidden.masked_fill(~real[..., None], math.nan)
    assert _near(answer(filled, lengths.clone()), wanted), (
        "0 · NaN is NaN: padding may hold anything, so set it to 0 with masked_fill rather than multiply"
    )
    print("mean_vectors: right")


def check_padding_share(answer: Callable[[Sequence[int], int], float]) -> None:
    """`padding_share(lengths, size)`: which share of all cells is padding, batches in the given order."""
    given = answer([2, 8, 3, 7], 2)
    require_an_answer(given)
    value = float(given)

    def is_near(other: float) -> bool:
        return math.isclose(value, other, abs_tol=1e-9)

    assert not is_near(10), "that is the number of padded cells: their share of all cells is wanted"
    assert not is_near(1 / 11), "you sorted the lengths: batches are taken in the order in which they come"
    assert not is_near(2 / 3), "that is the share of real tokens: padding is the rest"
    assert not is_near(10 / 20), "you divide by the real tokens: divide by all cells, B · longest"
    assert not is_near(12 / 32), (
        "you fill up to the longest of all texts: a batch is only as wide as its own longest one"
    )
    assert not is_near((6 / 16 + 4 / 14) / 2), "the mean of the batches' shares gives small batches too much: sum cells"
    assert is_near(1 / 3), f"expected 10 cells of 30, 0.333, and you have {value:.3f}"
    rest = float(answer([4, 2, 3], 2))
    assert not math.isclose(rest, 1 / 4, abs_tol=1e-9), "the last batch, with one text, is missing"
    assert not math.isclose(rest, 5 / 14, abs_tol=1e-9), (
        "the last batch holds one text only: rows that are not there have no cells"
    )
    assert math.isclose(rest, 2 / 11, abs_tol=1e-9), f"lengths 4, 2, 3 in twos: 2 cells of 11, not {rest:.3f}"
    print("padding_share: right")


def check_expected_calibration_error(answer: Callable[[Floats, Bools, int], float]) -> None:
    """`expected_calibration_error(sure, right, bins)`: mean |probability - share right|, weighted by answers."""
    sure = np.array([0.9] * 4 + [0.6] * 6)
    right = np.array([1, 1, 1, 0, 1, 1, 1, 0, 0, 0], dtype=bool)
    given = answer(sure.copy(), right.copy(), 5)
    require_an_answer(given)
    value = float(given)

    def is_near(other: float) -> bool:
        return math.isclose(value, other, abs_tol=1e-9)

    assert not is_near(0.125), "every bin counts the same: weight each by how many answers are in it"
    assert not is_near(1.2), "divide by the number of answers at the end"
    assert not is_near(0.25), "that is the plain sum over the bins: weight each by its share of the answers"
    assert not is_near(0.15), "that is the largest distance of any bin: the weighted mean is wanted"
    assert not is_near(float(np.abs(sure - right).mean())), (
        "that compares each answer alone: a single answer is right or wrong, only a bin has a share"
    )
    assert is_near(0.12), f"expected 0.4 · 0.15 + 0.6 · 0.10 = 0.12, and you have {value:.4f}"
    opposed = float(answer(np.array([0.9, 0.9, 0.5, 0.5]), np.array([False, False, True, True]), 10))
    assert not math.isclose(abs(opposed), 0.2, abs_tol=1e-9), (
        "all answers in one bin, or distances with a sign, which cancel: take the absolute value in each of the bins"
    )
    assert math.isclose(opposed, 0.7, abs_tol=1e-9), f"0.9 never right, 0.5 always: expected 0.7, not {opposed:.3f}"
    certain = float(answer(np.array([1.0, 1.0]), np.array([True, False]), 10))
    assert math.isclose(certain, 0.5, abs_tol=1e-9), (
        f"a probability of exactly 1 belongs to the last bin, and must not be lost: expected 0.5, not {certain:.3f}"
    )
    print("expected_calibration_error: right")
