"""Checks of notebook 22, learning to answer. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from utils.exercises import require_an_answer


def check_answer_targets(answer: Callable[[Sequence[int], Sequence[bool]], Any]) -> None:
    """`answer_targets(ids, said)`: the next token where the assistant says it, -100 elsewhere."""
    ids, said = [5, 6, 7, 8, 9, 1, 4], [False, False, False, True, True, True, False]
    given = answer(list(ids), list(said))
    require_an_answer(given)
    given = given.tolist() if isinstance(given, Tensor) else list(given)
    assert len(given) != len(ids), "n tokens have n - 1 targets: nothing is known to follow the last one"
    assert given != [-100, -100, -100, 9, 1, 4], (
        "the mask is shifted once too few: a target is asked where the *target* is the assistant's, said[1:]"
    )
    assert given != [-100, -100, -100, 8, 9, 1], "those are the tokens that are read: a target is one after, ids[1:]"
    assert given != [6, 7, 8, 9, 1, 4], "that asks everything: the prompt's tokens are read, and not asked"
    assert 0 not in given, "what is not asked is -100 and not 0: 0 is a token, and would be learned"
    assert given != [-100, -100, 8, 9, -100, -100], "the end token, id 1 here, is the assistant's too"
    assert given != [6, 7, -100, -100, -100, 4], "the other way round: the prompt is passed over, the answer asked"
    assert given == [-100, -100, 8, 9, 1, -100], f"expected [-100, -100, 8, 9, 1, -100], and you have {given}"
    two = answer([2, 3, 1, 4, 5, 1], [False, True, True, False, True, True])
    assert list(two) == [3, 1, -100, 5, 1], "a conversation has several answers: each of them is asked"
    print("answer_targets: right")


def check_step_mean(answer: Callable[[Sequence[tuple[Tensor, Tensor]]], Any]) -> None:
    """`step_mean(parts)`: the mean loss over all targets of a step."""
    parts = [
        (torch.tensor([[2.0, 7.0, 7.0]]), torch.tensor([[True, False, False]])),
        (torch.tensor([[1.0, 2.0, 1.0], [2.0, 1.0, 7.0]]), torch.tensor([[True, True, True], [True, True, False]])),
    ]
    given = answer([(losses.clone(), asked.clone()) for losses, asked in parts])
    require_an_answer(given)
    given = float(given)
    assert not math.isclose(given, (2 + 7 / 5) / 2, rel_tol=1e-5), (
        "that is the mean of the parts' means: add up the losses of all parts, and divide once by all targets"
    )
    assert not math.isclose(given, (2 + 4 / 3 + 3 / 2) / 3, rel_tol=1e-5), (
        "that is the mean of the rows' means: a row with few targets would weigh as much as a long one"
    )
    assert not math.isclose(given, 30 / 9, rel_tol=1e-5), "padding is counted: take the losses where `asked` is true"
    assert not math.isclose(given, 9 / 9, rel_tol=1e-5), "divide by what is asked, and not by all places"
    assert not math.isclose(given, 9, rel_tol=1e-5), "that is the sum: divide by the number of targets"
    assert not math.isclose(given, 9 / 2, rel_tol=1e-5), "you divide by the number of parts: divide by that of targets"
    assert not math.isclose(given, 9 / 3, rel_tol=1e-5), "you divide by the number of rows: divide by that of targets"
    assert math.isclose(given, 9 / 6, rel_tol=1e-5), f"expected 9 / 6 = 1.5, and you have {given:.4g}"
    empty = [*parts, (torch.tensor([[7.0]]), torch.tensor([[False]]))]
    assert math.isclose(float(answer(empty)), 1.5, rel_tol=1e-5), "a part without targets changes nothing"
    print("step_mean: right")


def check_pack_row(answer: Callable[[Sequence[int], int], tuple[Tensor, Tensor]]) -> None:
    """`pack_row(lengths, width)`: positions and mask of examples in one row."""
    given = answer([3, 2], 7)
    require_an_answer(given)
    assert isinstance(given, tuple) and len(given) == 2, "return two tensors, positions and mask"
    positions, mask = given
    assert tuple(positions.shape) == (7,), f"positions are (width,) = (7,), and you have {tuple(positions.shape)}"
    assert positions.tolist()[:5] != [0, 1, 2, 3, 4], (
        "positions go on: each example begins anew at 0, as it does when it is alone"
    )
    assert positions.tolist()[:5] != [1, 2, 3, 1, 2], "positions begin at 0"
    assert positions.tolist() == [0, 1, 2, 0, 1, 0, 0], (
        f"expected positions [0, 1, 2, 0, 1, 0, 0], and you have {positions.tolist()}"
    )
    assert tuple(mask.shape) == (7, 7), f"the mask is (width, width) = (7, 7), and you have {tuple(mask.shape)}"
    assert mask.dtype == torch.bool, f"the mask is boolean, and yours is {mask.dtype}"
    documents = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    same, past = documents[:, None] == documents, torch.ones(7, 7, dtype=torch.bool).tril()  # (7, 7) each
    assert not torch.equal(mask, past), "that is the causal mask alone: the second example reads the first"
    assert not torch.equal(mask, same), "within an example a token sees those after it: only the past is allowed"
    assert not torch.equal(mask, (same & past).T), "rows and columns have changed places: mask[i, j], i looks at j"
    assert not torch.equal(mask, ~(same & past)), "true and false have changed places: true is what may be seen"
    assert mask.diagonal().all(), (
        "a token that sees nothing at all has a softmax over nothing, which is not a number: each sees itself, what "
        "fills up too"
    )
    assert not mask[5:, :5].any() and not mask[:5, 5:].any(), "what fills up sees an example, or is seen by one"
    wrong = (mask != (same & past)).nonzero()
    assert not len(wrong), f"mask[{wrong[0, 0]}, {wrong[0, 1]}] should be {not bool(mask[tuple(wrong[0])])}"
    full = answer([1, 1, 2], 4)
    assert full[0].tolist() == [0, 0, 0, 1] and full[1].sum() == 5, "a row that is full, of three examples, went wrong"
    print("pack_row: right")


def check_rouge_of(answer: Callable[[Sequence[str], Sequence[str]], float]) -> None:
    """`rouge_of(said, wanted)`: twice the longest common subsequence, over the words of both."""
    said, wanted = ["b", "x", "a", "c", "d"], ["a", "b", "c", "d"]  # b c d, with x a between: L is 3
    given = answer(list(said), list(wanted))
    require_an_answer(given)
    assert isinstance(given, int | float) and not isinstance(given, bool), f"return a number, not {given!r}"
    assert not math.isclose(given, 2 * 4 / 9), "that is a bag of words: the common words must be in the same order"
    assert not math.isclose(given, 2 * 2 / 9), "gaps are allowed: not the longest common run, but the longest sequence"
    assert not math.isclose(given, 3), "that is L itself: make it 2 L / (words said + words wanted)"
    assert not math.isclose(given, 3 / 4), "that is recall alone: what is said too much must count, too"
    assert not math.isclose(given, 3 / 5), "that is precision alone: what is missing must count, too"
    assert not math.isclose(given, 3 / 9), "the harmonic mean has a 2 in it: 2 L / (words said + words wanted)"
    assert not math.isclose(given, (3 / 4 + 3 / 5) / 2), "that is the plain mean of both: take the harmonic one"
    assert math.isclose(given, 6 / 9), f"expected 2 · 3 / (5 + 4) = 0.667, and you have {given:.4g}"
    assert math.isclose(answer(["a", "a"], ["a"]), 2 / 3), "a word said twice is common as often as both have it"
    assert math.isclose(answer(["a", "b", "a", "c"], ["a", "c"]), 4 / 6), "the first match need not be the best one"
    assert math.isclose(answer(["c", "a", "b", "d"], ["a", "b", "c", "d"]), 6 / 8), (
        "do not take each match as it comes: c first leaves c d, and a b d is longer"
    )
    assert answer(["x"], ["y"]) == 0 and answer([], []) == 0, "0 where nothing is common, also where nothing is said"
    print("rouge_of: right")


def check_swapped_win_rate(answer: Callable[[Sequence[str], Sequence[str]], float]) -> None:
    """`swapped_win_rate(first, second)`: our answer is A in the first order and B in the second."""
    first = ["A", "A", "B", "A", "A", "A", "tie", "A"]
    second = ["B", "B", "A", "A", "A", "A", "tie", "tie"]  # two wins, a loss, three that moved, and two ties
    given = answer(list(first), list(second))
    require_an_answer(given)
    given = float(given)
    assert not math.isclose(given, 6.5 / 8), "that looks at the first order alone, in which our answer is in place A"
    assert not math.isclose(given, 5.5 / 8), (
        "the places are exchanged in the second order: there our answer is B, and B is a vote for us"
    )
    assert not math.isclose(given, 4.75 / 8), (
        "that is the mean of both orders: a verdict that does not stay, such as A and then a tie, is a tie"
    )
    assert not math.isclose(given, 2 / 8), "ties are worth a half, and not nothing"
    assert not math.isclose(given, 2 / 3), "ties count among the pairs: divide by all of them"
    assert not math.isclose(given, 2.5 / 4), "verdicts that moved with the place count as ties: do not leave them out"
    assert not math.isclose(given, 4.5), "that is a sum: divide by the number of pairs"
    assert math.isclose(given, 4.5 / 8), f"expected (2 + 5 / 2) / 8 = 0.5625, and you have {given:.4g}"
    print("swapped_win_rate: right")
