"""The checks of notebook 25 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise

import pytest

from deployment.benchmark import dollars_a_million
from deployment.exercises import ex25
from tests.conftest import refuses


def price(dollars_an_hour, tokens_per_second, busy):
    return dollars_an_hour / (3600 * tokens_per_second * busy) * 1e6


def price_by_the_module(dollars_an_hour, tokens_per_second, busy):
    return dollars_a_million(dollars_an_hour, tokens_per_second * busy)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda dollars, tokens, busy: price(dollars, tokens, 1), "idle seconds are paid for"),
        (lambda dollars, tokens, busy: price(dollars, tokens, 1) * busy, "dearer, not cheaper"),
        (lambda dollars, tokens, busy: 3600 * price(dollars, tokens, busy), "3600 is missing"),
        (lambda dollars, tokens, busy: price(dollars, tokens, busy) / 1e6, "that is for one token"),
        (lambda dollars, tokens, busy: 1 / price(dollars, tokens, busy), "turn it round"),
        (lambda dollars, tokens, busy: f"{price(dollars, tokens, busy)} dollars", "return a number, not a str"),
        (lambda dollars, tokens, busy: 40.0, "it is 2 dollars"),
        (lambda dollars, tokens, busy: 2 * price(dollars, tokens, busy), "you have 80"),
    ],
)
def test_price(wrong, message):
    ex25.check_price(price)
    ex25.check_price(price_by_the_module)
    refuses(ex25.check_price, wrong, message)


def widest_step(a, c, most):
    return max((most - a) // c, 0)


def widest_step_by_counting(a, c, most):
    n = 0
    while a + c * (n + 1) <= most:
        n += 1
    return n


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda a, c, most: math.ceil((most - a) / c), "you round up"),
        (lambda a, c, most: most // c, "the shared part comes first"),
        (lambda a, c, most: most - a, "divide what a leaves"),
        (lambda a, c, most: (most - a) / c, "only whole texts"),
        (lambda a, c, most: max((most - a - 1) // c, 0), "exactly 48 ms"),
        (lambda a, c, most: max((most - a) // c, 1), "no room even for it"),
        (lambda a, c, most: (most - a) // c, "nothing below it"),
        (lambda a, c, most: int((most - a) / c) if most > a + c else -1, "return 0: for 19 ms"),
        (lambda a, c, most: 7, "you have 7"),
    ],
)
def test_widest_step(wrong, message):
    ex25.check_widest_step(widest_step)
    ex25.check_widest_step(widest_step_by_counting)
    refuses(ex25.check_widest_step, wrong, message)


def ends(due, seconds):
    free, moments = 0.0, []
    for moment, needed in zip(due, seconds, strict=True):
        free = max(free, moment) + needed
        moments.append(free)
    return moments


def waits(due, seconds):
    return [end - moment for end, moment in zip(ends(due, seconds), due, strict=True)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda due, seconds: list(seconds), "the bug of section 7"),
        (lambda due, seconds: [w - s for w, s in zip(waits(due, seconds), seconds, strict=True)], "its own seconds"),
        (ends, "take off when each was due"),
        (lambda due, seconds: [e - d for e, d in zip(accumulate(seconds), due, strict=True)], "cannot work ahead"),
        (lambda due, seconds: [4, 3, 6, 2] if len(due) == 4 else [1], "waits for the second, too"),
        (lambda due, seconds: sum(waits(due, seconds)), "return a list"),
        (lambda due, seconds: waits(due, seconds)[:-1], "you have 3 numbers"),
        (lambda due, seconds: waits(due, seconds) if len(due) > 1 else [6.0], "a server that is free"),
        (lambda due, seconds: [1, 2, 3, 4], "expected"),
    ],
)
def test_waits(wrong, message):
    ex25.check_waits(waits)
    refuses(ex25.check_waits, wrong, message)


def paid_seconds(moments, idle):
    if not moments:
        return 0
    return sum(min(after - before, idle) for before, after in pairwise(moments)) + idle


def paid_by_marking(moments, idle):
    """Second by second, for whole numbers."""
    return len({second for moment in moments for second in range(moment, moment + idle)})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda moments, idle: paid_seconds(moments, idle) - idle, "the last answer has its idle seconds"),
        (lambda moments, idle: len(moments) * idle, "starts the clock anew"),
        (lambda moments, idle: moments[-1] - moments[0] + idle, "the container is gone"),
        (lambda moments, idle: moments[-1] - moments[0], "was gone in between"),
        (lambda moments, idle: sum(idle for a, b in pairwise(moments) if b - a > idle), "short gaps"),
        (lambda moments, idle: [paid_seconds(moments, idle)], "return a number, not a list"),
        (lambda moments, idle: paid_seconds(moments, idle) + (moments[0] if moments else 0), "wherever the clock"),
        (lambda moments, idle: paid_seconds(moments, idle) + 120 * (moments == [0, 120]), "paid for once"),
        (lambda moments, idle: paid_seconds(moments, idle) if moments else idle, "for an empty list"),
        (lambda moments, idle: 500, "you have 500"),
    ],
)
def test_paid_seconds(wrong, message):
    ex25.check_paid_seconds(paid_seconds)
    ex25.check_paid_seconds(paid_by_marking)
    refuses(ex25.check_paid_seconds, wrong, message)


def price_within(a, c, most, dollars_an_hour):
    if most <= a + c:
        return None
    load = 1 - (a + c) / most
    return dollars_an_hour / 3600 * c / load * 1e6


def by_the_rate(a, c, most, dollars_an_hour):
    """By tokens a second, of which (a + c) / (1 - r c) = most allows r."""
    tokens_per_second = (most - a - c) / (most * c)
    return dollars_a_million(dollars_an_hour, tokens_per_second) if tokens_per_second > 0 else None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda a, c, most, dollars: dollars / 3600 * c * 1e6, "the gap has no end"),
        (lambda a, c, most, dollars: 1 - (a + c) / most, "that is ρ"),
        (lambda a, c, most, dollars: dollars / 3600 * c * (1 - (a + c) / most) * 1e6, "divide by ρ"),
        (lambda a, c, most, dollars: dollars / 3600 * c / ((a + c) / most) * 1e6, "and not 1 - ρ"),
        (lambda a, c, most, dollars: dollars / 3600 * c / (1 - a / most) * 1e6, "do not do you that favour"),
        (lambda a, c, most, dollars: dollars / 3600 * most * c / (most - a) * 1e6, "do not do you that favour"),
        (lambda a, c, most, dollars: dollars / 3600 * most * 1e6, "one token each"),
        (lambda a, c, most, dollars: dollars / 3600 * c / (1 - (a + c) / most) * 1e6, "before you divide"),
        (lambda a, c, most, dollars: price_within(a, c, most, dollars) or 0.0, "return None|Return None"),
        (lambda a, c, most, dollars: price_within(a, c, most, 3.6), "7.2 dollars an hour"),
        (lambda a, c, most, dollars: str(price_within(a, c, most, dollars)), "return a number"),
        (lambda a, c, most, dollars: 6.0, "You have 6"),
    ],
)
def test_price_within(wrong, message):
    ex25.check_price_within(price_within)
    ex25.check_price_within(by_the_rate)
    refuses(ex25.check_price_within, wrong, message)
