"""The checks of notebook 19 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pretraining.exercises import ex19
from tests.conftest import refuses


def rate_where(rule, change=lambda rate, m: rate / m):
    """An answer that changes the rate where `rule` says so."""
    return lambda name, shape, rate, m: change(rate, m) if rule(name, shape) else rate


def in_blocks(name, shape):
    return len(shape) == 2 and ".h." in name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (rate_where(in_blocks, lambda rate, m: rate * m), "you multiply"),
        (rate_where(lambda name, shape: False), r"need rate / m"),
        (rate_where(in_blocks, lambda rate, m: rate / math.sqrt(m)), "the rule of the start"),
        (rate_where(lambda name, shape: True), "the embedding is looked up"),
        (rate_where(lambda name, shape: len(shape) == 2), "the embedding is looked up"),
        (rate_where(lambda name, shape: in_blocks(name, shape) or "lm_head" in name), "divided by m already"),
        (rate_where(lambda name, shape: ".h." in name), "is a vector"),
        (rate_where(in_blocks, lambda rate, m: rate / max(m, 1)), "below the base width"),
        (rate_where(in_blocks, lambda rate, m: rate / m**2), "expected 0.0025"),
    ],
)
def test_rate_for(wrong, message):
    ex19.check_rate_for(rate_where(in_blocks))
    refuses(ex19.check_rate_for, wrong, message)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda width, base, s: s * base / width, "divide by √m"),
        (lambda width, base, s: s * math.sqrt(width / base), "changed places"),
        (lambda width, base, s: s, "does not change"),
        (lambda width, base, s: width**-0.5, r"1 / √width"),
        (lambda width, base, s: s * (base / width) ** 2, "you divide by m²"),
        (lambda width, base, s: 0.02 * math.sqrt(base / width), "nothing changes"),
        (lambda width, base, s: s * min(1.0, math.sqrt(base / width)), "narrower than the base"),
        (lambda width, base, s: s * (base / width) ** 0.25, "expected 0.01"),
    ],
)
def test_hidden_deviation(wrong, message):
    ex19.check_hidden_deviation(lambda width, base, s: s * math.sqrt(base / width))
    refuses(ex19.check_hidden_deviation, wrong, message)


def slope(widths, changes):
    return float(np.polyfit(np.log(widths), np.log(changes), 1)[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda w, c: 1 / slope(w, c), "changed places"),
        (lambda w, c: c[-1] / c[0], "take logarithms"),
        (lambda w, c: float(np.polyfit(range(len(w)), np.log(c), 1)[0]), "a step of ln 2"),
        (lambda w, c: -slope(w, c), "the sign is turned"),
        (lambda w, c: math.log(c[-1] / c[0]) / math.log(w[-1] / w[0]), "the two ends alone"),
        (lambda w, c: slope(w[:2], c[:2]), "the least-squares slope"),
        (lambda w, c: 1.5, "a level line"),
        (lambda w, c: float(np.polyfit(w, c, 1)[0]), "expected 1.5"),
    ],
)
def test_growth_exponent(wrong, message):
    ex19.check_growth_exponent(slope)
    refuses(ex19.check_growth_exponent, wrong, message)


def operations(per_weight=6, blocks=1.0, outputs=1, of_tries=True, of_steps=True):
    """An answer with one part that may be wrong."""

    def sweep_operations(tries, steps, tokens, d, n_layer, vocab):
        weights = 12 * blocks * n_layer * d**2 + outputs * vocab * d
        return (tries if of_tries else 1) * (steps if of_steps else 1) * tokens * per_weight * weights

    return sweep_operations


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (operations(per_weight=2), "forward alone"),
        (operations(outputs=2), "looked up"),
        (operations(outputs=0), "the output is missing"),
        (operations(blocks=0.5), "times n_layer"),
        (operations(of_tries=False), "times the tries"),
        (operations(of_steps=False), "times the steps"),
        (operations(per_weight=4), "expected"),
        (lambda tries, steps, tokens, d, n_layer, vocab: 42 * steps * tokens * (24 * d**2 + 256 * d), "a number fixed"),
    ],
)
def test_sweep_operations(wrong, message):
    ex19.check_sweep_operations(operations())
    refuses(ex19.check_sweep_operations, wrong, message)
