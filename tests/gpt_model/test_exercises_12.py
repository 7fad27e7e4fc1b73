"""The checks of notebook 12 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import math

import pytest

from gpt_model.exercises import ex12
from tests.conftest import refuses


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p, q: p, "divide by q"),
        (lambda p, q: q / p, "upside down"),
        (lambda p, q: p / q, "above 1"),
        (lambda p, q: min(p, q) / q if p < q else 0.5, "always accepted"),
        (lambda p, q: 0.3, "it is 0.25"),
    ],
)
def test_accept_probability(wrong, message):
    refuses(ex12.check_accept_probability, wrong, message)
    ex12.check_accept_probability(lambda p, q: min(1, p / q))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p, q: p, "counted twice"),
        (lambda p, q: p - q, "negative"),
        (lambda p, q: (q - p).clamp(min=0) / (q - p).clamp(min=0).sum(), "too much of"),
        (lambda p, q: (p - q).clamp(min=0), "sum to 1"),
        (lambda p, q: (p - q).clamp(min=0).softmax(0), "a softmax is not"),
        (lambda p, q: (p - q).clamp(min=0).sum(), "for each token"),
        (lambda p, q: (p - q).abs() / (p - q).abs().sum(), "expected"),
    ],
)
def test_leftover(wrong, message):
    refuses(ex12.check_leftover, wrong, message)


def sums(rates):
    """1 + r0 + r0 r1 + …"""
    return 1 + sum(math.prod(rates[: i + 1]) for i in range(len(rates)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda rates: sums(rates) - 1, "comes of itself"),
        (lambda rates: 1 + sum(rates), "multiply along the way"),
        (lambda rates: 1 + math.prod(rates), "only passes of which every guess"),
        (lambda rates: sums(rates) if rates else 0.0, "without guesses"),
        (lambda rates: sums(sorted(rates, reverse=True)), "after a refusal is lost"),
        (lambda rates: sums(sorted(rates)), "the order matters"),
        (lambda rates: 2.0, "is 1.875"),
    ],
)
def test_expected_tokens(wrong, message):
    refuses(ex12.check_expected_tokens, wrong, message)
    ex12.check_expected_tokens(sums)


def finder(order=-1, shift=True, itself=False, tail=True):
    """An answer with one part that may be wrong."""

    def lookup(text, size, n):
        last = text[-size:] if tail else text[-size - 1 : -1]
        places = range(len(text) - size + (1 if itself else 0))
        for start in places[::order]:
            if text[start : start + size] == last:
                begin = start + size if shift else start
                return text[begin : begin + n]
        return []

    return lookup


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (finder(order=1), "followed the first time"),
        (finder(shift=False), "the tail itself: what followed"),
        (finder(itself=True), "nothing was found"),
        (lambda text, size, n: finder()(text, size, n) if len(text) > 3 else [], "fewer than n"),
        (lambda text, size, n: finder()(text, size, n) or text[-size:], "no earlier occurrence"),
        (lambda text, size, n: [0], "after the last 1, 2"),
    ],
)
def test_lookup(wrong, message):
    refuses(ex12.check_lookup, wrong, message)
    ex12.check_lookup(finder())
