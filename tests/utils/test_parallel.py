"""Work over processes comes back in order, whatever their number."""

from __future__ import annotations

import os

import pytest

from utils.parallel import map_in_order, usable_cores

_offset = 0


def set_offset(offset: int) -> None:
    global _offset
    _offset = offset


def square(n: int) -> tuple[int, int]:
    return n * n + _offset, os.getpid()


def fail_at_seven(n: int) -> int:
    if n == 7:
        raise ValueError("seven is not liked")
    return n


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_are_in_the_order_of_the_items(processes):
    found = list(map_in_order(square, range(20), processes, set_offset, (100,)))
    set_offset(0)
    assert [result for result, _ in found] == [n * n + 100 for n in range(20)]
    assert (os.getpid() in {pid for _, pid in found}) == (processes == 1)


def test_one_item_starts_no_process():
    assert list(map_in_order(square, [3], 4)) == [(9, os.getpid())]
    assert list(map_in_order(square, [], 4)) == []


def test_items_are_read_as_results_are_taken():
    read = []

    def items():
        for n in range(1000):
            read.append(n)
            yield n

    results = map_in_order(square, items(), 2)
    assert next(results)[0] == 0
    assert len(read) < 10
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_reaches_the_caller(processes):
    with pytest.raises(ValueError, match="seven is not liked"):
        list(map_in_order(fail_at_seven, range(10), processes))


def test_no_processes_are_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        list(map_in_order(square, [1, 2], 0))
    assert usable_cores() >= 1
