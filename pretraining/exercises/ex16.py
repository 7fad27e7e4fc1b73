"""Checks of notebook 16, two processes. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from utils.exercises import require_an_answer


def check_joined_gradient(answer: Callable[[list[Tensor], list[int]], Tensor]) -> None:
    """`joined_gradient(means, counts)`: from the ranks' means to that of all targets."""
    means, counts = [torch.tensor([3.0, 6.0]), torch.tensor([1.0, 2.0])], [3, 1]
    given = answer([mean.clone() for mean in means], list(counts))
    require_an_answer(given)
    assert isinstance(given, Tensor) and given.shape == (2,), "return a tensor of the shape of one gradient"

    def is_(*numbers: float) -> bool:
        return torch.allclose(given, torch.tensor(numbers))

    assert not is_(2.0, 4.0), "that is the mean of the means: a rank with three targets must count three times"
    assert not is_(1.0, 2.0), "the means are added up and divided by all targets: multiply each by its count first"
    assert not is_(10.0, 20.0), "that is the sum over all targets: divide it by how many there are"
    assert not is_(5.0, 10.0), "divide by the number of targets, 4, and not by the number of ranks"
    assert is_(2.5, 5.0), f"expected [2.5, 5.0], and you have {given.tolist()}"
    none = answer([*[mean.clone() for mean in means], torch.full((2,), torch.nan)], [*counts, 0])
    assert not none.isnan().any(), "a rank without targets has a mean of NaN, and 0 · NaN is NaN: leave it out"
    assert torch.allclose(none, torch.tensor([2.5, 5.0])), "a rank without targets must change nothing"
    print("joined_gradient: right")


def check_ring_bytes(answer: Callable[[int, int, int], int]) -> None:
    """`ring_bytes(n, size, ranks)`: what each rank sends."""
    given = answer(1200, 4, 3)
    require_an_answer(given)
    assert given != 1600, "that is numbers, not bytes: multiply by the size of one"
    assert given != 3200, "that is one time around: after reduce-scatter the sums still have to go round (all-gather)"
    assert given != 9600, "R - 1 steps each way, not R: nobody has to send to itself. Or that is the naive way"
    assert given != 19200, "that is what all ranks send together: asked for is what each sends"
    assert given == 6400, f"2 · 2 steps with 400 numbers of 4 bytes are 6400, and you have {given}"
    alone = answer(1200, 4, 1)
    assert alone == 0, f"one rank alone sends nothing, and you have {alone}"
    half = answer(800, 2, 8)
    assert half == 2800, f"for 800 numbers of 2 bytes and 8 ranks expected 2800, and you have {half}"
    assert isinstance(given, int), "return an int: divide with //"
    print("ring_bytes: right")


def check_slice_of(answer: Callable[[int, int, int], tuple[int, int]]) -> None:
    """`slice_of(n, ranks, rank)`: (start, end), as `torch.chunk` cuts."""
    first = answer(8, 2, 1)
    require_an_answer(first)
    assert first != (4, 4), "(start, length) is not asked for: return (start, end)"
    assert first != (0, 4), "the slices begin with rank 0: rank 1 of 2 has the second half"
    assert tuple(first) == (4, 8), f"8 rows on 2 ranks: rank 1 has (4, 8), and you have {first}"
    given = [tuple(answer(10, 4, rank)) for rank in range(4)]
    assert given != [(0, 2), (2, 4), (4, 6), (6, 8)], "rows 8 and 9 belong to nobody: round n / R up, not down"
    assert given != [(0, 3), (3, 6), (6, 8), (8, 10)], (
        "the first slices are full, ⌈10 / 4⌉ = 3 rows, and the rest is left"
    )
    assert given != [(0, 3), (3, 6), (6, 9), (9, 12)], "the last slice ends after the last row: min(end, n)"
    assert given != [(0, 2), (2, 4), (4, 6), (6, 10)], (
        "the last slice takes the rest, but it must not be the largest: round up"
    )
    assert given == [(0, 3), (3, 6), (6, 9), (9, 10)], f"10 rows on 4 ranks: you have {given}"
    few = [tuple(answer(3, 4, rank)) for rank in range(4)]
    assert few == [(0, 1), (1, 2), (2, 3), (3, 3)], f"3 rows on 4 ranks: the last has (3, 3), and you have {few}"
    empty = tuple(answer(5, 4, 3))
    assert empty != (6, 5), "an empty slice is (n, n): the start must not be beyond the end, min(start, n)"
    assert empty == (5, 5), f"5 rows on 4 ranks: 2, 2, 1 and none; the last is (5, 5), and you have {empty}"
    print("slice_of: right")


def _one_of(ranks: int, answer: Callable[[int, int, int], int], rank: int, step: int) -> int:
    piece = answer(rank, step, ranks)
    assert piece in range(ranks), f"rank {rank} sends piece {piece} of {ranks} at step {step}: count modulo R"
    return piece


def _ring(answer: Callable[[int, int, int], int], ranks: int, steps: Sequence[int], state: list[list[int]]) -> None:
    """Lets a ring to the left take some steps."""
    for step in steps:
        before = [list(row) for row in state]
        for rank in range(ranks):
            piece = _one_of(ranks, answer, rank, step)
            if step < ranks - 1:
                state[(rank - 1) % ranks][piece] += before[rank][piece]
            else:
                state[(rank - 1) % ranks][piece] = before[rank][piece]


def check_piece_to_send(answer: Callable[[int, int, int], int]) -> None:
    """`piece_to_send(rank, step, ranks)` of a ring that passes to the left."""
    require_an_answer(answer(1, 0, 4))
    begins = [answer(rank, 0, 4) for rank in range(4)]
    assert begins == [0, 1, 2, 3], f"at step 0 rank r sends piece r, and yours send {begins}"
    second = answer(2, 1, 4)
    assert second != 1, (
        "that is the ring to the right: at step 1 rank 2 sends what has just come, and here that comes from rank 3"
    )
    assert second != 2, "always the same piece is sent: at step 1 pass on the one that has just come"
    assert second == 3, f"at step 1 rank 2 sends piece 3, which has just come from rank 3, and yours sends {second}"
    for ranks in (2, 3, 5):
        state = [[10**rank] * ranks for rank in range(ranks)]
        whole = sum(10**rank for rank in range(ranks))
        _ring(answer, ranks, range(ranks - 1), state)
        assert all(whole in row for row in state), (
            f"after reduce-scatter with {ranks} ranks each must have one whole sum, {whole}, and yours have {state}"
        )
        turn = [state[rank][_one_of(ranks, answer, rank, ranks - 1)] for rank in range(ranks)]
        assert turn == [whole] * ranks, (
            f"all-gather begins with the piece that is whole: rank r has finished piece r - 1, and yours send {turn}"
        )
        _ring(answer, ranks, range(ranks - 1, 2 * ranks - 2), state)
        assert state == [[whole] * ranks] * ranks, (
            f"with {ranks} ranks the whole sums do not get everywhere: in all-gather, too, pass on what has just come"
        )
    print("piece_to_send: right")
