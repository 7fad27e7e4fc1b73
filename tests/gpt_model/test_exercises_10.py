"""The checks of notebook 10 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import math

import pytest
import torch

from gpt_model.exercises import ex10
from tests.conftest import refuses


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda n, o, i, w: 2 * n / w, "the vectors are moved too"),
        (lambda n, o, i, w: n * o * i / (w * o * i + 4 * n * (i + o)), "2 FLOPs"),
        (lambda n, o, i, w: 2 * o * i / (w * o * i + 4 * n * (i + o)), "grow with the rows"),
        (lambda n, o, i, w: 2 * o * i / (w * o * i + 4 * (i + o)), "not once for each"),
        (lambda n, o, i, w: 2 * n * o * i / (w * (o * i + n * i + n * o)), "only the matrix is stored"),
        (lambda n, o, i, w: (w * o * i + 4 * n * (i + o)) / (2 * n * o * i), "turn the fraction round"),
        (lambda n, o, i, w: 0.5, "expected"),
    ],
)
def test_product_intensity(wrong, message):
    ex10.check_product_intensity(lambda n, o, i, w: 2 * n * o * i / (w * o * i + 4 * n * (i + o)))
    refuses(ex10.check_product_intensity, wrong, message)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda n, w, c, f, b, p: n / ((w + n * c) / b + n * f / p), "not their sum"),
        (lambda n, w, c, f, b, p: n / min((w + n * c) / b, n * f / p), "take the larger time"),
        (lambda n, w, c, f, b, p: n / max(n * (w + c) / b, n * f / p), "read once for all texts"),
        (lambda n, w, c, f, b, p: n / max((w + c) / b, n * f / p), "each text has a cache"),
        (lambda n, w, c, f, b, p: n / max((w + n * c) / b, f / p), "its own FLOPs"),
        (lambda n, w, c, f, b, p: 1 / max((w + n * c) / b, n * f / p), "steps a second"),
        (lambda n, w, c, f, b, p: max((w + n * c) / b, n * f / p), "the time of a step"),
        (lambda n, w, c, f, b, p: n * b / (w + n * c), "compare both"),
        (lambda n, w, c, f, b, p: p / f, "expected"),
    ],
)
def test_tokens_per_second(wrong, message):
    ex10.check_tokens_per_second(lambda n, w, c, f, b, p: n / max((w + n * c) / b, n * f / p))
    refuses(ex10.check_tokens_per_second, wrong, message)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p, n, s: s * (p + n), "writes all old tokens again"),
        (lambda p, n, s: s * sum(p + t for t in range(1, n + 1)), "the prompt is written too"),
        (lambda p, n, s: s * sum(range(p, p + n)), "range needs one more"),
        (lambda p, n, s: s * (p + n) * (p + n + 1) // 2, "not token by token"),
        (lambda p, n, s: s * (p + n * (p + n)), "earlier steps copied less"),
        (lambda p, n, s: sum(range(p, p + n + 1)), "each has token_bytes"),
        (lambda p, n, s: s * n**2, "expected"),
    ],
)
def test_bytes_copied(wrong, message):
    ex10.check_bytes_copied(lambda p, n, s: s * sum(range(p, p + n + 1)))
    refuses(ex10.check_bytes_copied, wrong, message)


def appender(fits=lambda end, longest: end <= longest, first=None, result=None, check_last=False):
    """An answer with one part that may be wrong."""

    def append_in_place(buffer, length, new):
        end = length + len(new)
        if not check_last and not fits(end, len(buffer)):
            raise ValueError("full")
        at = length if first is None else first(length)
        room = buffer[at : at + len(new)]
        room.copy_(new[: len(room)])
        if check_last and not fits(end, len(buffer)):
            raise ValueError("full")
        return buffer[:end] if result is None else result(buffer, length, end)

    return append_in_place


def concatenates(buffer, length, new):
    return torch.cat([buffer[:length], new])


def assigns(buffer, length, new):
    end = length + len(new)
    buffer[length:end] = new
    return buffer[:end]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (concatenates, "without `cat`"),
        (appender(result=lambda b, length, end: b), "the whole buffer"),
        (appender(result=lambda b, length, end: b[length:end]), "the new rows alone"),
        (appender(result=lambda b, length, end: b[: end + 3 - 4]), "expected shape"),
        (appender(result=lambda b, length, end: b[:end].clone()), "a copy"),
        (appender(first=lambda length: length - 1), "old rows have changed"),
        (appender(first=lambda length: length + 1), "right behind"),
        (appender(fits=lambda end, longest: end < longest), "fit exactly"),
        (assigns, "raise a ValueError yourself"),
        (appender(fits=lambda end, longest: True), "cut off silently"),
        (appender(check_last=True), "compare before you write"),
        (lambda b, length, new: (b[:5], 5), "as a tensor"),
    ],
)
def test_append_in_place(wrong, message):
    ex10.check_append_in_place(appender())
    refuses(ex10.check_append_in_place, wrong, message)


def balances(flops=2, own_flops=2, size=None, rounded=math.ceil, at_least=1, none=True):
    """An answer with one part that may be wrong."""

    def batch_that_balances(weights, cache, b, bandwidth, peak):
        b = size or b
        gain = (flops * weights + own_flops * cache) / peak - b * cache / bandwidth
        if none and gain <= 0:
            return None
        return max(at_least, rounded(b * weights / bandwidth / gain))

    return batch_that_balances


def cache_read_once(w, c, b, bandwidth, peak):
    return max(1, math.ceil(b * (w + c) * peak / (2 * w * bandwidth)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (balances(flops=1, own_flops=1), "2 FLOPs, a multiplication and an addition"),
        (balances(size=1), "each weight has b bytes"),
        (balances(rounded=math.floor), "round up"),
        (balances(rounded=lambda n: n), "a whole number"),
        (lambda w, c, b, bandwidth, peak: max(1, math.ceil(b * peak / 2 / bandwidth)), "the caches are read too"),
        (cache_read_once, "not one cache"),
        (balances(own_flops=0), "multiplied as well"),
        (balances(none=False), "no batch will do|look before you divide"),
        (lambda *case: balances()(*case) or (None if case[1] == 500 else 1), "never caught up"),
        (balances(at_least=0, rounded=lambda n: 0 if n < 1 else math.ceil(n)), "from 1 text on"),
    ],
)
def test_batch_that_balances(wrong, message):
    ex10.check_batch_that_balances(balances())
    refuses(ex10.check_batch_that_balances, wrong, message)
