"""The checks of notebook 17 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil

import numpy as np
import pytest
import torch

from pretraining.exercises import ex17
from tests.conftest import refuses
from utils.files import write_bytes


def goer(sign=-1.0, keeps=lambda m: m, begin=lambda v: v, keys=("theta", "v"), rated=lambda rate: rate):
    """An answer with one part that may be wrong."""

    def go_on(state, steps, rate, m):
        theta, v = state["theta"], begin(state["v"])
        for _ in range(steps):
            v = keeps(m) * v + theta
            theta = theta + sign * rated(rate) * v
        return {name: value for name, value in (("theta", theta), ("v", v)) if name in keys}

    return go_on


def theta_first(state, steps, rate, m):
    theta, v = state["theta"], state["v"]
    for _ in range(steps):
        theta, v = theta - rate * v, m * v + theta
    return {"theta": theta, "v": v}


def in_place(state, steps, rate, m):
    state.update(goer()(state, steps, rate, m))
    return state


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (goer(sign=1.0), "uphill"),
        (theta_first, "first v, then theta"),
        (goer(rated=lambda rate: 1.0), "the rate is missing"),
        (goer(begin=lambda v: 0.0), "it is another run"),
        (goer(keeps=lambda m: 1.0), "it keeps m times"),
        (goer(keys=("theta",)), "without v nobody"),
        (lambda *arguments: goer()(*arguments)["theta"], "not theta alone"),
        (in_place, "return a new dictionary"),
        (goer(keeps=lambda m: 0.5), "with rate ¼"),
        (lambda state, steps, rate, m: goer()(state, min(steps, 1), rate, m), "after 7 steps|must end as 7"),
        (lambda state, steps, rate, m: goer()(state, max(steps, 1), rate, m), "no step changes nothing"),
    ],
)
def test_go_on(wrong, message):
    ex17.check_go_on(goer())
    refuses(ex17.check_go_on, wrong, message)


def by_torch(state, steps, rate, m):
    theta = torch.tensor([state["theta"]], requires_grad=True)
    optimizer = torch.optim.SGD([theta], lr=rate, momentum=m)
    optimizer.state[theta]["momentum_buffer"] = torch.tensor([state["v"]])
    for _ in range(steps):
        optimizer.zero_grad()
        (theta.square() / 2).sum().backward()
        optimizer.step()
    return {"theta": theta.item(), "v": optimizer.state[theta]["momentum_buffer"].item()}


def test_torch_goes_on_the_same():
    ex17.check_go_on(by_torch)


def order(seed, epoch, n):
    return [int(i) for i in np.random.default_rng((seed, epoch)).permutation(n)]


def windows(first=lambda step, size: step * size, epoch_of=lambda epoch: epoch, seeded=lambda seed: seed):
    """An answer with one part that may be wrong."""

    def windows_of(step, n, batch_size, seed):
        begin = first(step, batch_size)
        places = [divmod(place, n) for place in range(begin, begin + batch_size)]
        return [order(seeded(seed), epoch_of(epoch), n)[within] for epoch, within in places]

    return windows_of


def cut_at_the_end(step, n, batch_size, seed):
    begin = step * batch_size
    return order(seed, begin // n, n)[begin % n : begin % n + batch_size]


def last_dropped(step, n, batch_size, seed):
    per_epoch = n // batch_size
    epoch, within = divmod(step, per_epoch)
    return order(seed, epoch, n)[within * batch_size :][:batch_size]


def with_memory():
    calls = []

    def windows_of(step, n, batch_size, seed):
        calls.append(step)
        return windows()(step if len(calls) < 5 else step + 1, n, batch_size, seed)

    return windows_of


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda step, n, batch_size, seed: list(range(step, step + batch_size)), "nothing is shuffled"),
        (windows(first=lambda step, size: step), "not at window step"),
        (cut_at_the_end, "ends within the batch"),
        (windows(epoch_of=lambda epoch: 0), "an order of its own"),
        (last_dropped, "are dropped"),
        (windows(seeded=lambda seed: 5), "the seed is not used"),
        (with_memory(), "asked again"),
        (windows(first=lambda step, size: (step + 1) * size), "batch 0 is the first four"),
        (lambda *arguments: tuple(windows()(*arguments)), "return a list"),
        (windows(epoch_of=lambda epoch: min(epoch, 1)), "across three epochs"),
    ],
)
def test_windows_of(wrong, message):
    ex17.check_windows_of(windows())
    refuses(ex17.check_windows_of, wrong, message)


def write_whole(path, data):
    aside = path.with_name(f".{path.name}.new")
    try:
        with open(aside, "wb") as file:
            file.write(data)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def in_the_file(path, data):
    with open(path, "wb") as file:
        file.write(data)


def removes_first(path, data):
    path.unlink(missing_ok=True)
    in_the_file(path.with_name("aside"), data)
    os.replace(path.with_name("aside"), path)


def copies(path, data):
    aside = path.with_name("aside")
    in_the_file(aside, data)
    shutil.copy(aside, path)


def leaves_its_file(path, data):
    aside = path.with_name("aside")
    in_the_file(aside, data)
    os.replace(aside, path)


def swallows(path, data):
    with contextlib.suppress(Exception):
        write_whole(path, data)


def old_must_exist(path, data):
    if path.exists():
        write_whole(path, data)


def checks_first(path, data):
    """Right but for the place: it writes over the file itself."""
    if not isinstance(data, bytes):
        raise TypeError
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (in_the_file, "written over"),
        (checks_first, "written over"),
        (removes_first, "the old file was gone"),
        (copies, "do not copy"),
        (leaves_its_file, "is left beside path after the failure"),
        (swallows, "swallowed"),
        (old_must_exist, "must appear, too"),
        (lambda path, data: None, "writes nothing"),
        (lambda path, data: write_whole(path, data + data), "expected b'new'"),
    ],
)
def test_write_whole(wrong, message):
    ex17.check_write_whole(write_whole)
    ex17.check_write_whole(write_bytes)
    refuses(ex17.check_write_whole, wrong, message)


def is_good(data, digest):
    return hashlib.sha256(data).hexdigest() == digest


def newest_good(checkpoints, good=is_good, choose=max):
    return choose([step for step, data, digest in checkpoints if good(data, digest)], default=None)


def only_the_newest(checkpoints):
    found = max(checkpoints, default=None)
    return found[0] if found and is_good(*found[1:]) else None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda c: newest_good(c, good=lambda data, digest: True), "100 is damaged: its data"),
        (lambda c: newest_good(c, choose=min), "the oldest"),
        (lambda c: next((step for step, *rest in c if is_good(*rest)), None), "the first of the list"),
        (only_the_newest, "go on looking"),
        (lambda c: newest_good(c) or None, "takes? 0 for nothing"),
        (lambda c: max(c, default=None), "return the step"),
        (lambda c: newest_good(c, good=lambda data, digest: len(data) < 2 and is_good(data, digest)), "step 0"),
        (lambda c: newest_good([x for x in c if is_good(*x[1:])] or c, good=lambda *_: True), "the only one"),
    ],
)
def test_newest_good(wrong, message):
    ex17.check_newest_good(newest_good)
    refuses(ex17.check_newest_good, wrong, message)


def interval(factor=2.0, hours=3600.0, root=math.sqrt, of_machines=lambda m: 1 / m, after=lambda m: 1, least=1):
    """An answer with one part that may be wrong."""

    def best_interval(delta, mtbf, machines, step_seconds):
        seconds = root(factor * delta * mtbf * hours * of_machines(machines)) * after(machines)
        return max(least, int(seconds / step_seconds))

    return best_interval


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (interval(hours=1.0), "mtbf is in hours"),
        (interval(factor=1.0), "the 2 is missing"),
        (interval(root=lambda x: x), "the root is missing"),
        (interval(of_machines=lambda m: m), "fail more often"),
        (interval(of_machines=lambda m: 1, after=lambda m: 1 / m), "under"),
        (interval(of_machines=lambda m: 1), "is not used"),
        (lambda d, f, m, s: int(interval()(d, f, m, 1.0) * s), "fewer of them"),
        (interval(least=0), "every step"),
        (lambda *arguments: float(interval()(*arguments)), "an int"),
        (lambda *arguments: interval()(*arguments) + 1, "120 steps"),
    ],
)
def test_best_interval(wrong, message):
    ex17.check_best_interval(interval())
    refuses(ex17.check_best_interval, wrong, message)
