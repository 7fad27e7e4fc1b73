"""Checks of notebook 05, from ids to batches. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from utils.exercises import attempt as attempt
from utils.exercises import require_an_answer

Array = npt.NDArray[Any]
Row = list[int]
Lines = list[tuple[str, str]]


def check_count_windows(answer: Callable[[int, int, int], int]) -> None:
    """`count_windows(n, context_length, stride)`: how many windows with their targets fit into n ids."""
    require_an_answer(answer(7, 4, 1))
    cases = [(n, t, s) for n in range(1, 30) for t in range(1, 8) for s in range(1, 10)]
    right = {case: len(range(0, case[0] - case[1], case[2])) for case in cases}
    given = {case: answer(*case) for case in cases}
    too_short = [case for case in cases if case[0] <= case[1]]
    others = [case for case in cases if case[0] > case[1]]

    def all_are(formula: Callable[[int, int, int], int]) -> bool:
        return all(given[case] == formula(*case) for case in others)

    assert not all_are(lambda n, t, s: (n - t) // s + 1), (
        "one too many at the end: the last id of a window needs a target too, so a window takes context_length + 1 ids"
    )
    assert not all_are(lambda n, t, s: (n - t - 1) // s), (
        "one too few: the window that starts at 0 takes no step, so add 1 to the number of steps"
    )
    assert not all_are(lambda n, t, s: n // s), "you divide all ids by the stride: the last starts have no full window"
    assert not all_are(lambda n, t, s: (n - 1) // t), "the stride is not used: windows start every `stride` ids"
    for case in others:
        assert given[case] == right[case], f"count_windows{case} is {right[case]}, and you have {given[case]}"
    for case in too_short:
        assert given[case] == 0, f"count_windows{case}: a text without room for one window has 0, not {given[case]}"
    print("count_windows: right")


def check_target_counts(answer: Callable[[int, int, int], Array]) -> None:
    """`target_counts(n, context_length, stride)`: how often each of n ids is a target, an array of n numbers."""
    require_an_answer(answer(7, 4, 1))
    for n, t, s in [(13, 4, 4), (13, 4, 2), (13, 4, 1), (14, 4, 6), (21, 5, 3), (6, 5, 5)]:
        given = np.asarray(answer(n, t, s))
        starts = range(0, n - t, s)
        right, inputs = np.zeros(n, int), np.zeros(n, int)
        for start in starts:
            inputs[start : start + t] += 1
            right[start + 1 : start + t + 1] += 1
        where = f"n={n}, context_length={t}, stride={s}"
        assert given.shape == (n,), f"one count for each of the {n} ids is wanted, and you have shape {given.shape}"
        assert (given == right).all() or (given != inputs).any(), (
            f"{where}: you count how often an id is read; targets are one id further on"
        )
        assert (given == right).all() or given[0] == 0, (
            f"{where}: id 0 is never a target, because nothing stands before it"
        )
        assert (given == right).all() or right.max() <= 1 or given.max() > 1, (
            f"{where}: windows overlap, so add to a count in place of setting it to 1"
        )
        assert (given == right).all() or given.sum() <= right.sum(), (
            f"{where}: too many targets: a window without room for its last target has slipped in"
        )
        assert (given == right).all(), f"{where}: expected {right.tolist()}, and you have {given.tolist()}"
    print("target_counts: right")


def check_join_documents(answer: Callable[[list[Row], int], Row]) -> None:
    """`join_documents(documents, end)`: one row of ids, each document followed by `end`."""
    documents, end = [[5, 2], [9], [], [4, 7, 1]], 99
    before = copy.deepcopy(documents)
    given = answer(documents, end)
    require_an_answer(given)
    row, right = list(given), [5, 2, 99, 9, 99, 99, 4, 7, 1, 99]
    assert documents == before, "the documents that were given have changed: build a new row, do not append to them"
    assert end in row, "nothing stands between the documents: a model would learn to go on from one to the next"
    assert row[0] != end, "the end stands in front: it follows each document, so that the model can predict it"
    assert row != right[:-1], "the last document has no end: it follows every document, not only between two"
    assert row != [5, 2, 99, 9, 99, 4, 7, 1, 99], "an empty document has an end too: do not skip it"
    assert all(isinstance(i, int | np.integer) for i in row), "a flat row of ids is wanted, not lists within a list"
    assert row == right, f"expected {right}, and you have {row}"
    print("join_documents: right")


def check_split_by_document(answer: Callable[[Lines, int], tuple[Lines, Lines]]) -> None:
    """`split_by_document(lines, every)`: (train, validation), every n-th document's lines all for validation."""
    lines = [
        (f"book {d}", f"line {i}") for d, n in zip("hcgfbead", (3, 1, 2, 4, 2, 3, 1, 2), strict=True) for i in range(n)
    ]
    given = answer(list(lines), 4)
    require_an_answer(given)
    assert isinstance(given, tuple) and len(given) == 2, "return two lists: (train, validation)"
    train, validation = map(list, given)
    names = list(dict.fromkeys(name for name, _ in lines))
    right = set(names[3::4])
    assert sorted(train + validation) == sorted(lines), "lines were lost or doubled: each is on one side, once"
    both = {name for name, _ in train} & {name for name, _ in validation}
    assert not both, (
        f"{sorted(both)[0]!r} is on both sides, which is the leak: decide by document, not by the number of the line"
    )
    held = {name for name, _ in validation}
    assert held != set(names) - right, "the two sides are swapped: return (train, validation)"
    assert held != set(sorted(names)[3::4]), "documents are counted in the order of their names: take them as they come"
    assert held != set(names[0::4]), "that is the first of every four: the every-th is wanted (the 4th, the 8th, …)"
    assert held == right, f"with every=4 the documents {sorted(right)} are for validation, and you have {sorted(held)}"
    assert train == [line for line in lines if line[0] not in right], "keep the lines in their order"
    print("split_by_document: right")


def check_bits_per_byte(answer: Callable[[float, int, str], float]) -> None:
    """`bits_per_byte(loss, n_tokens, text)`: of a loss in nats a token, on a text of so many tokens."""
    require_an_answer(answer(1.0, 3, "abcdef"))
    for loss, n_tokens, text in [(math.log(2), 3, "abcdef"), (5.5, 4, "Größe: 3 €"), (0.7, 9, "日本語のテキスト")]:
        given, n_bytes = float(answer(loss, n_tokens, text)), len(text.encode("utf-8"))
        right = loss * n_tokens / n_bytes / math.log(2)

        def is_near(value: float, given: float = given) -> bool:
            return math.isclose(given, value, rel_tol=1e-9)

        assert is_near(right) or not is_near(right * math.log(2)), "that is nats a byte: divide by ln 2 for bits"
        assert is_near(right) or not is_near(right * math.log(2) ** 2), "multiplied by ln 2: a nat is more than a bit"
        assert is_near(right) or not is_near(loss / math.log(2)), "that is bits a token: a token has several bytes"
        assert is_near(right) or not is_near(loss / n_tokens * n_bytes / math.log(2)), (
            "tokens and bytes have changed places: the loss of all tokens is shared by all bytes"
        )
        assert is_near(right) or not is_near(right * n_bytes / len(text)), (
            "len(text) counts characters: bytes are len(text.encode('utf-8'))"
        )
        assert is_near(right), f"for {loss:.3f}, {n_tokens}, {text!r} expected {right:.4f}, and you have {given:.4f}"
    print("bits_per_byte: right")


def check_batch_at(answer: Callable[[Array, int, int, int, int], tuple[Array, Array]]) -> None:
    """`batch_at(ids, context_length, batch_size, seed, step)`: (inputs, targets) of batch `step`, from these alone."""
    n, t, b = 101, 5, 4
    ids = np.arange(1000, 1000 + n)  # 20 windows side by side, so 5 batches an epoch
    first = answer(ids, t, b, 0, 0)
    require_an_answer(first)
    again = answer(ids, t, b, 0, 0)
    steps = [answer(ids, t, b, 0, step) for step in range(10)]
    for inputs, targets in steps:
        assert np.shape(inputs) == np.shape(targets) == (b, t), (
            f"inputs and targets are ({b}, {t}) each, and you have {np.shape(inputs)} and {np.shape(targets)}"
        )
        assert not np.array_equal(inputs, targets), "targets are the inputs themselves: move them on by one id"
        assert np.array_equal(np.asarray(targets), np.asarray(inputs) + 1), (
            "each target is the id that follows its input"
        )
    assert np.array_equal(first[0], again[0]), (
        "asked twice for one step, you give two batches: make a new generator from the seed each time"
    )
    later = np.asarray(answer(ids, t, b, 0, 3)[0])
    assert np.array_equal(later, steps[3][0]), "step 3 asked for directly is not step 3 in its turn: keep no state"
    firsts = [sorted(int(row[0]) for inputs, _ in steps[k : k + 5] for row in np.asarray(inputs)) for k in (0, 5)]
    assert len(set(firsts[0])) == len(firsts[0]), (
        "a window comes twice in one epoch: permute the windows once an epoch and take the batches from that order"
    )
    assert not all(np.array_equal(steps[k][0], steps[k + 5][0]) for k in range(5)), (
        "epoch 1 repeats the order of epoch 0: the generator's seed must hold the epoch too, as (seed, epoch)"
    )
    assert firsts[0] == firsts[1] == list(range(1000, 1000 + n - 1, t)), (
        "an epoch is every window once: windows start at 0, context_length, 2 * context_length, …"
    )
    other = answer(ids, t, b, 1, 0)[0]
    assert not np.array_equal(other, first[0]), "another seed gives the same batch: the seed is not used"
    assert not np.array_equal(other, steps[5][0]), (
        "seed 1 begins with what seed 0 has in its epoch 1: do not add the two, give the generator (seed, epoch)"
    )
    print("batch_at: right")
