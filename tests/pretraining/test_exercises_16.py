"""The checks of notebook 16 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import pytest
import torch

from pretraining.exercises import ex16
from tests.conftest import refuses


def joined(means, counts):
    return sum(mean * count for mean, count in zip(means, counts, strict=True) if count) / sum(counts)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda means, counts: sum(means) / len(means), "mean of the means"),
        (lambda means, counts: sum(means) / sum(counts), "multiply each by its count"),
        (lambda means, counts: joined(means, counts) * sum(counts), "divide it by how many"),
        (lambda means, counts: joined(means, counts) * sum(counts) / len(counts), "not by the number of ranks"),
        (lambda means, counts: sum(m * n for m, n in zip(means, counts, strict=True)) / sum(counts), "NaN is NaN"),
        (lambda means, counts: joined(means, counts) * 2 / len(means), "must change nothing"),
        (lambda means, counts: joined(means, counts) + 1, "expected"),
    ],
)
def test_joined_gradient(wrong, message):
    ex16.check_joined_gradient(joined)
    refuses(ex16.check_joined_gradient, wrong, message)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda n, size, ranks: 2 * (ranks - 1) * n // ranks, "not bytes"),
        (lambda n, size, ranks: (ranks - 1) * n // ranks * size, "one time around"),
        (lambda n, size, ranks: 2 * n * size, "not R"),
        (lambda n, size, ranks: (ranks - 1) * n * size, "the naive way"),
        (lambda n, size, ranks: 2 * (ranks - 1) * n * size, "all ranks send together"),
        (lambda n, size, ranks: max(1, 2 * (ranks - 1) * n // ranks * size), "sends nothing"),
        (lambda n, size, ranks: 2 * (ranks - 1) * n // ranks * 4, "expected 2800"),
        (lambda n, size, ranks: 2 * (ranks - 1) / ranks * n * size, "return an int|are 6400"),
    ],
)
def test_ring_bytes(wrong, message):
    ex16.check_ring_bytes(lambda n, size, ranks: 2 * (ranks - 1) * n // ranks * size)
    refuses(ex16.check_ring_bytes, wrong, message)


def cut(n, ranks, rank):
    rows = -(-n // ranks)
    return min(rank * rows, n), min((rank + 1) * rows, n)


def evenly(n, ranks, rank):
    """numpy.array_split's way."""
    rows, more = divmod(n, ranks)
    start = rank * rows + min(rank, more)
    return start, start + rows + (rank < more)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda n, ranks, rank: (cut(n, ranks, rank)[0], n // ranks), "return .start, end."),
        (lambda n, ranks, rank: cut(n, ranks, ranks - 1 - rank), "rank 1 of 2"),
        (lambda n, ranks, rank: (rank * (n // ranks), (rank + 1) * (n // ranks)), "belong to nobody"),
        (evenly, "the first slices are full"),
        (lambda n, ranks, rank: (rank * -(-n // ranks), (rank + 1) * -(-n // ranks)), "ends after the last row"),
        (
            lambda n, ranks, rank: (rank * (n // ranks), n if rank == ranks - 1 else (rank + 1) * (n // ranks)),
            "largest",
        ),
        (lambda n, ranks, rank: (rank * -(-n // ranks), cut(n, ranks, rank)[1]), "beyond the end"),
    ],
)
def test_slice_of(wrong, message):
    ex16.check_slice_of(cut)
    refuses(ex16.check_slice_of, wrong, message)


def test_slices_are_those_of_torch():
    for n in range(1, 12):
        for ranks in range(1, 6):
            chunks = torch.arange(n).chunk(ranks)
            mine = [list(range(*cut(n, ranks, rank))) for rank in range(ranks)]
            assert [row for row in mine if row] == [chunk.tolist() for chunk in chunks]


def leftwards(rank, step, ranks, again=-1, way=1):
    if step < ranks - 1:
        return (rank + step) % ranks
    return (rank + again + way * (step - (ranks - 1))) % ranks


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda rank, step, ranks: (rank - step) % ranks, "the ring to the right"),
        (lambda rank, step, ranks: rank, "the same piece"),
        (lambda rank, step, ranks: (rank + 2 * step) % ranks, "piece 3, which has just come"),
        (lambda rank, step, ranks: 0 if step == 0 else leftwards(rank, step, ranks), "rank r sends piece r"),
        (lambda rank, step, ranks: leftwards(rank, step, ranks, again=1), "begins with the piece that is whole"),
        (lambda rank, step, ranks: leftwards(rank, step, ranks, way=-1), "do not get everywhere"),
        (lambda rank, step, ranks: rank + step, "modulo R"),
    ],
)
def test_piece_to_send(wrong, message):
    ex16.check_piece_to_send(leftwards)
    refuses(ex16.check_piece_to_send, wrong, message)
