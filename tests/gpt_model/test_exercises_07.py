"""The checks of notebook 07 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import math
import statistics

import pytest

from gpt_model.exercises import ex07
from tests.conftest import refuses


def users_right(memory, weights, context, size, window=None):
    kept = context if window is None else min(context, window)
    return max(0, (memory - weights) // (kept * size))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda m, w, t, c, k=None: m // (t * c), "the weights take memory too"),
        (lambda m, w, t, c, k=None: m // (w + t * c), "share one copy of the weights"),
        (lambda m, w, t, c, k=None: (m - w) // c, "for each of its context tokens"),
        (lambda m, w, t, c, k=None: (m - w) / (t * c), "round down"),
        (lambda m, w, t, c, k=None: math.ceil((m - w) / (t * c)), "round down"),
        (lambda m, w, t, c, k=None: max(0, (m - w) // (t * c)), "the window is not used"),
        (lambda m, w, t, c, k=None: max(0, (m - w) // ((k or t) * c)), "take the smaller of the two"),
        (lambda m, w, t, c, k=None: (m - w) // (min(t, k or t) * c), "the weights alone do not fit"),
        (lambda m, w, t, c, k=None: 7, r"is 4, and you have 7|round down"),
    ],
)
def test_users_that_fit(wrong, message):
    ex07.check_users_that_fit(users_right)
    refuses(ex07.check_users_that_fit, wrong, message)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda a, s: 1 - a + a * s, "you average speeds"),
        (lambda a, s: 1 - a + a / s, "that is the time that is left"),
        (lambda a, s: 1 / (a / s), "does not go away"),
        (lambda a, s: 1 / (a + (1 - a) / s), "changed places"),
        (lambda a, s: s, "expected"),
    ],
)
def test_whole_speedup(wrong, message):
    ex07.check_whole_speedup(lambda a, s: 1 / (1 - a + a / s))
    refuses(ex07.check_whole_speedup, wrong, message)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda w, c, u, b, f: u * (w + c) / b + f, "read once for all users"),
        (lambda w, c, u, b, f: (w + c) / b + f, "each user has a cache"),
        (lambda w, c, u, b, f: u * c / b + f, "reads the weights too"),
        (lambda w, c, u, b, f: (w + u * c) / b, "`fixed` is missing"),
        (lambda w, c, u, b, f: (w + u * c) / b + u * f, "once a step"),
        (lambda w, c, u, b, f: (w + u * c) * b + f, "expected"),
    ],
)
def test_predict_seconds(wrong, message):
    ex07.check_predict_seconds(lambda w, c, u, b, f: (w + u * c) / b + f)
    refuses(ex07.check_predict_seconds, wrong, message)


def pays(middle=statistics.median, order=lambda rows: sorted(rows, key=lambda row: row["context"]), enough=None):
    """An answer with one part that may be wrong."""
    enough = enough or (lambda ratio, least: ratio >= least)

    def context_that_pays(rows, name, base, least):
        found = None
        for row in reversed(order(rows)):
            if not enough(middle(row["seconds"][base]) / middle(row["seconds"][name]), least):
                break
            found = row["context"]
        return found

    return context_that_pays


def first_that_pays(rows, name, base, least):
    for row in sorted(rows, key=lambda row: row["context"]):
        if statistics.median(row["seconds"][base]) / statistics.median(row["seconds"][name]) >= least:
            return row["context"]
    return None


def sorted_in_place(rows, name, base, least):
    rows.sort(key=lambda row: row["context"])
    return pays()(rows, name, base, least)


def upside_down(rows, name, base, least):
    """4,096 where the right answer is, and the wrong way round."""
    return 4096 if name == "base" else pays()(rows, name, base, least)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (first_that_pays, "from which on it pays at every longer one"),
        (pays(middle=statistics.mean), "you take means"),
        (sorted_in_place, "have changed"),
        (pays(enough=lambda ratio, least: ratio > least), "reached exactly"),
        (upside_down, "base's seconds over name's"),
        (lambda rows, *more: pays()(rows, *more) or 8192, "the answer is None"),
    ],
)
def test_context_that_pays(wrong, message):
    ex07.check_context_that_pays(pays())
    refuses(ex07.check_context_that_pays, wrong, message)


def all_bytes(weights, cache, users):
    return weights + users * cache


def chooser(fits=True, margin_used=True, best_of_fitting=True, size=all_bytes, key=None):
    """An answer with one part that may be wrong."""

    def choose(kinds, memory, users, margin):
        taken = {name: size(*kind[:2], users) for name, kind in kinds.items()}
        fitting = [name for name in kinds if taken[name] <= memory] if fits else list(kinds)
        if not fitting:
            return None
        best = min(kinds[name][2] for name in (fitting if best_of_fitting else kinds))
        good = [n for n in fitting if not margin_used or kinds[n][2] <= best + margin] or [
            min(fitting, key=lambda name: taken[name])
        ]
        return min(good, key=lambda name: key(kinds[name]) if key else taken[name])

    return choose


def strict(kinds, memory, users, margin):
    return chooser()(kinds, memory - 1, users, margin)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (chooser(fits=False), "20 users bring 20 caches"),
        (chooser(size=lambda w, c, u: w + c), "20 users bring 20 caches"),
        (chooser(margin_used=False), "the margin is not used"),
        (chooser(best_of_fitting=False), "a kind that does not fit"),
        (chooser(key=lambda kind: kind[2]), "takes less"),
        (chooser(key=lambda kind: kind[1]), "Compare all bytes"),
        (strict, "compare with <="),
        (lambda *given: chooser()(*given) or "tiny", "return None"),
    ],
)
def test_choose(wrong, message):
    ex07.check_choose(chooser())
    refuses(ex07.check_choose, wrong, message)
