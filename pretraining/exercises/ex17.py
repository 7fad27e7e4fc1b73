"""Checks of notebook 17, kill and resume. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from utils.exercises import require_an_answer


def check_go_on(answer: Callable[[dict[str, float], int, float, float], dict[str, float]]) -> None:
    """`go_on(state, steps, rate, m)`: the state after `steps` more steps of momentum descent on theta² / 2."""
    begin = {"theta": 8.0, "v": 0.0}
    given = answer(begin, 1, 0.5, 0.5)
    require_an_answer(given)
    assert begin == {"theta": 8.0, "v": 0.0}, "the state that was given has changed: return a new dictionary"
    assert isinstance(given, dict), "return the state, a dictionary, and not theta alone: v is needed to go on"
    assert set(given) == {"theta", "v"}, "the state has two parts, theta and v: without v nobody can go on"
    assert given != {"theta": 12.0, "v": 8.0}, "the step goes uphill: take rate · v away"
    assert given != {"theta": 8.0, "v": 8.0}, "theta is stepped with the old v: first v, then theta with the new one"
    assert given != {"theta": 0.0, "v": 8.0}, "the rate is missing: theta moves by rate · v"
    assert given == {"theta": 4.0, "v": 8.0}, f"after one step from 8 expected theta 4, v 8, and you have {given}"
    two = answer({"theta": 4.0, "v": 8.0}, 1, 0.5, 0.5)
    assert two != {"theta": 2.0, "v": 4.0}, "you begin with v = 0: go on with the v of the state, or it is another run"
    assert two != {"theta": -2.0, "v": 12.0}, "v keeps all of its old value: it keeps m times that"
    assert two == {"theta": 0.0, "v": 8.0}, f"from theta 4, v 8 expected theta 0, v 8, and you have {two}"
    parts = answer(answer({"theta": 8.0, "v": 0.0}, 3, 0.5, 0.5), 4, 0.5, 0.5)
    straight = answer({"theta": 8.0, "v": 0.0}, 7, 0.5, 0.5)
    assert parts == straight, f"3 + 4 steps must end as 7 do: {parts} is not {straight}"
    other = answer({"theta": 8.0, "v": 4.0}, 1, 0.25, 0.75)
    assert other == {"theta": 5.25, "v": 11.0}, f"with rate ¼ and m = ¾ expected theta 5.25, v 11, not {other}"
    assert answer({"theta": 3.0, "v": 1.0}, 0, 0.5, 0.5) == {"theta": 3.0, "v": 1.0}, "no step changes nothing"
    assert straight == {"theta": 0.5, "v": -1.0}, f"after 7 steps expected theta 0.5, v -1, and you have {straight}"
    print("go_on: right")


def _order(seed: int, epoch: int, n: int) -> list[int]:
    """The windows in the order of an epoch."""
    return [int(i) for i in np.random.default_rng((seed, epoch)).permutation(n)]


def check_windows_of(answer: Callable[[int, int, int, int], list[int]]) -> None:
    """`windows_of(step, n, batch_size, seed)`: the windows of batch number `step`, from the numbers alone."""
    given = answer(0, 10, 4, 5)
    require_an_answer(given)
    first, second = _order(5, 0, 10), _order(5, 1, 10)
    assert isinstance(given, list) and len(given) == 4, "return a list with batch_size windows"
    assert given != [0, 1, 2, 3], "nothing is shuffled: take the windows in the order of the epoch"
    assert given == first[:4], f"batch 0 is the first four of epoch 0, {first[:4]}, and you have {given}"
    next_one = answer(1, 10, 4, 5)
    assert next_one != first[1:5], "batch 1 begins at window step · batch_size, not at window step"
    assert next_one == first[4:8], f"batch 1 is the next four, {first[4:8]}, and you have {next_one}"
    across = answer(2, 10, 4, 5)
    assert across != first[8:], "the epoch ends within the batch: the next one begins without a gap"
    assert across != [*first[8:], *first[:2]], (
        "the next epoch has an order of its own: default_rng((seed, epoch)), not the same again"
    )
    assert across != second[:4], "the last two windows of the epoch are dropped: a batch can lie across two epochs"
    wanted = [*first[8:], *second[:2]]
    assert across == wanted, f"batch 2 holds the end of epoch 0 and the beginning of epoch 1: {wanted}, not {across}"
    assert answer(3, 10, 4, 5) == second[2:6], "batch 3 lies in epoch 1, from its third window on"
    assert answer(1, 10, 4, 5) == next_one, "asked again, batch 1 is another: nothing may be kept from call to call"
    assert answer(0, 10, 4, 6) == _order(6, 0, 10)[:4], "the seed is not used: another seed has another order"
    many = answer(1, 2, 5, 5)
    wanted = [*_order(5, 2, 2)[1:], *_order(5, 3, 2), *_order(5, 4, 2)]
    assert many == wanted, f"a batch of 5 from 2 windows lies across three epochs: expected {wanted}, not {many}"
    print("windows_of: right")


class _NoBytes:
    """What cannot be written: a stand-in for a disk that is full."""


def check_write_whole(answer: Callable[[Path, Any], Any]) -> None:
    """`write_whole(path, data)`: `data` is at `path` whole, or what was there before still is."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as elsewhere:
        path = Path(folder) / "state.bin"
        path.write_bytes(b"the old state, which is longer")
        same = Path(elsewhere) / "same"
        os.link(path, same)  # a second name of the old file, which shows what becomes of it
        answer(path, b"new")
        found = path.read_bytes()
        assert found != b"the old state, which is longer", "your function writes nothing to path: write its body"
        assert found == b"new", f"expected b'new' at path, and there is {found!r}"
        assert [p.name for p in Path(folder).iterdir()] == ["state.bin"], (
            "a file beside path is left after a success: rename it, do not copy it"
        )
        assert same.read_bytes() != b"new", (
            "the old file itself was opened and written over: a kill half way leaves half of it. "
            "Write another file beside it, and rename that"
        )
        raised = False
        try:
            answer(path, _NoBytes())
        except Exception:
            raised = True
        assert path.is_file(), (
            "when writing failed, the old file was gone: do not remove it before the new one is whole"
        )
        assert path.read_bytes() == b"new", (
            "when writing failed, the old file was lost: open(path, 'wb') empties it before there is anything new"
        )
        assert raised, "the error was swallowed: whoever calls must hear that nothing was written (`raise`)"
        left = sorted(p.name for p in Path(folder).iterdir() if p.name != "state.bin")
        assert not left, f"{left[0]} is left beside path after the failure: remove it before you pass the error on"
        fresh = Path(folder) / "fresh.bin"
        answer(fresh, b"first")
        assert fresh.is_file() and fresh.read_bytes() == b"first", "where no old file is, the new one must appear, too"
    print("write_whole: right")


def check_newest_good(answer: Callable[[list[tuple[int, bytes, str]]], int | None]) -> None:
    """`newest_good(checkpoints)`: the newest step whose data still have the digest that was noted."""

    def one(step: int, data: bytes, written: bytes | None = None) -> tuple[int, bytes, str]:
        return step, data, hashlib.sha256(data if written is None else written).hexdigest()

    given = answer([one(20, b"b"), one(100, b"c"), one(3, b"a")])
    require_an_answer(given)
    assert not isinstance(given, tuple), "return the step, a number, and not the whole checkpoint"
    assert given != 3, (
        "that is the oldest, or simply the last of the list: they come in any order, and the newest counts"
    )
    assert given != 20, "that is the first of the list: they come in any order, and the newest counts"
    assert given == 100, f"all three are good, and the newest is 100, not {given}"
    damaged = [one(20, b"b"), one(100, b"c", b"C"), one(3, b"a")]
    found = answer(damaged)
    assert found != 100, "100 is damaged: its data have another digest than what was written"
    assert found is not None, "100 is damaged, but the ones before it are good: go on looking"
    assert found == 20, f"100 is damaged, so the one before it serves, 20 and not {found}"
    cut = answer([one(7, b"who", b"whole"), one(5, b"x")])
    assert cut == 5, f"7 was cut short, so 5 serves, and you have {cut}"
    assert answer([one(1, b"x", b"y")]) is None, "the only one is damaged: None"
    assert answer([]) is None, "there is none at all: None"
    assert answer([one(0, b"start")]) == 0, (
        "step 0 is a checkpoint like any other: `or` and `if step` take 0 for nothing"
    )
    print("newest_good: right")


def check_best_interval(answer: Callable[[float, float, int, float], int]) -> None:
    """`best_interval(delta, mtbf, machines, step_seconds)`: Young's interval in steps."""
    given = answer(2.0, 1.0, 1, 1.0)
    require_an_answer(given)
    assert given != 2, "mtbf is in hours, and delta in seconds: multiply by 3600"
    assert given != 84, "the 2 is missing: τ = √(2 δ M)"
    assert given != 14400, "the root is missing: τ = √(2 δ M)"
    assert given == 120, f"√(2 · 2 · 3600) = 120 steps of a second, and you have {given}"
    assert isinstance(given, int) and not isinstance(given, bool), "return a whole number of steps, an int"
    many = answer(2.0, 1.0, 4, 1.0)
    assert many != 240, "more machines fail more often, so M becomes smaller: divide by their number"
    assert many != 30, "M is divided by the machines *under* the root: 4 machines halve τ"
    assert many != 120, "the number of machines is not used: any one that fails ends the run"
    assert many == 60, f"with 4 machines expected 60, and you have {many}"
    slow = answer(2.0, 1.0, 1, 7.0)
    assert slow != 840, "a step takes 7 s, so there are fewer of them in τ: divide"
    assert slow == 17, f"120 s are 17 whole steps of 7 s, and you have {slow}"
    least = answer(0.01, 0.001, 100, 60.0)
    assert least == 1, f"a step of a minute is longer than τ, so every step: 1 and not {least}"
    assert answer(8.0, 1.0, 1, 1.0) == int(math.sqrt(2 * 8 * 3600)), "four times δ doubles τ"
    print("best_interval: right")
