"""Checks of notebook 18, scaling laws. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from utils.exercises import require_an_answer


def _near(given: Any, wanted: float) -> bool:
    """Whether a number is `wanted` but for rounding."""
    return math.isclose(float(given), wanted, rel_tol=1e-6, abs_tol=1e-9)


def check_best_of_budget(answer: Callable[..., tuple[float, float]]) -> None:
    """`best_of_budget(flops, ratio)`: N and D with 6 · N · D = flops and D = ratio · N."""
    given = answer(480.0, 20)
    require_an_answer(given)
    assert isinstance(given, (tuple, list)) and len(given) == 2, "return two numbers: N, D"
    n, d = given
    assert not (_near(n, 40.0) and _near(d, 2.0)), "N and D have changed places: N comes first, and D is 20 times N"
    assert not _near(n, 4.0), "480 / 120 is N², not N: D grows with N, so take the square root"
    assert not _near(n, math.sqrt(24.0)), (
        "the 6 is missing: a weight costs 6 FLOPs a token, 2 forward and 4 backward, and C = 6 · N · D"
    )
    assert not _near(n, math.sqrt(12.0)), "you count 2 FLOPs a weight and token: backward costs 4 more"
    assert not _near(n, math.sqrt(80.0)), "the ratio is missing in N: 6 · N · (ratio · N) = flops"
    assert _near(n, 2.0), f"with 480 FLOPs and 20 tokens a weight N is 2, and you have {n}"
    assert _near(d, 40.0), f"D is 20 tokens for each of 2 weights, 40, and you have {d}"
    other = answer(600.0, 4)
    assert _near(other[0], 5.0) and _near(other[1], 20.0), (
        f"with 600 FLOPs and a ratio of 4 expected (5, 20), and you have {tuple(other)}: is 20 written in the body?"
    )
    print("best_of_budget: right")


def check_branch_steps(answer: Callable[[Sequence[int], float], float]) -> None:
    """`branch_steps(lengths, decay)`: steps of one trunk and of all ends that branch off it."""
    given = answer([80, 160, 40], 0.25)
    require_an_answer(given)
    assert not _near(given, 280), "that is a run for each length: the trunk is shared"
    assert not _near(given, 210), "these are the level parts of all runs: a trunk is walked once, and the ends count"
    assert not _near(given, 160), "that is the longest run alone: the other ends need steps, too"
    assert not _near(given, 120), "that is the trunk: its ends have steps, too"
    assert not _near(given, 70), "these are the ends: the trunk has steps, too"
    assert not _near(given, 230), (
        "the trunk goes only to where the last decay begins, (1 - decay) · the longest, not to the end"
    )
    assert not _near(given, 120 + 3 * 40), "each end decays over a share of its *own* length, not of the longest"
    assert not _near(given, 30 + 70), (
        "`lengths` come in any order: the trunk is as long as the longest needs, not the last"
    )
    assert _near(given, 190), f"120 steps of trunk and ends of 20, 40 and 10: 190, and you have {given}"
    alone = answer([100], 0.3)
    assert _near(alone, 100), f"one length alone costs what it costs: 100, and you have {alone}"
    without = answer([10, 20], 0.0)
    assert _near(without, 20), f"without decay all ends lie on the trunk: 20, and you have {without}"
    print("branch_steps: right")


def check_effective_tokens(answer: Callable[..., float]) -> None:
    """`effective_tokens(unique, epochs, decay)`: what U tokens, read several times, are worth."""
    once = answer(1000, 1, 15.4)
    require_an_answer(once)
    assert not _near(once, 0), "text that is read once is worth something: the first reading is U itself"
    assert not _near(once, 1000 + 15400 * (1 - math.exp(-1 / 15.4))), (
        "the first reading counts as a repetition: r is epochs - 1"
    )
    assert not _near(once, 15400 * (1 - math.exp(-1 / 15.4))), (
        "U is missing: repetitions are worth something on top of it"
    )
    assert _near(once, 1000), f"1,000 tokens read once are worth 1,000, and you have {once}"
    four = answer(1000, 4, 15.4)
    assert not _near(four, 4000), "that is all tokens read: a repetition is worth less than new text"
    wanted = 1000 + 15400 * (1 - math.exp(-3 / 15.4))
    assert not _near(four, 1000 + 1000 * (1 - math.exp(-3 / 15.4))), (
        "a factor R is missing before the bracket: U · R · (…)"
    )
    assert not _near(four, 1000 + 15400 * math.exp(-3 / 15.4)), (
        "1 - e^(…) is meant: with no repetition nothing is added"
    )
    assert not _near(four, 1000 + 15400 * (1 - math.exp(3 / 15.4))), "the sign of the exponent is turned: e^(-r / R)"
    assert not _near(four, 1000 + 15400 * (1 - math.exp(-3 * 15.4))), "divide by R in the exponent, do not multiply"
    assert _near(four, wanted), f"expected {wanted:.1f} for four epochs, and you have {four}"
    other = answer(10, 3, 2.0)
    assert _near(other, 10 + 20 * (1 - math.exp(-1))), f"with R = 2 you have {other}: is 15.4 written in the body?"
    print("effective_tokens: right")


def check_fit_three(answer: Callable[[Sequence[float], Sequence[float]], tuple[float, float, float]]) -> None:
    """`fit_three(n, losses)`: E, A and alpha of the power law through three points."""
    given = answer([4, 16, 64], [13.0, 7.0, 4.0])  # 1 + 24 / √N
    require_an_answer(given)
    assert isinstance(given, (tuple, list)) and len(given) == 3, "return three numbers: E, A, alpha"
    e, a, alpha = given
    assert not _near(e, 0.0), "E is left out: L itself is no straight line in log-log, L - E is"
    assert not _near(e, 4.0), "E is not the last loss: it lies below all of them"
    assert _near(e, 1.0), f"(13 - E)(4 - E) = (7 - E)² gives E = 1, and you have {e}"
    assert not _near(alpha, -0.5), "the sign of alpha: the loss falls as A / N^alpha with alpha above 0"
    assert not _near(alpha, math.log(2)), "divide by the logarithm of the ratio of the sizes, log 4, too"
    assert not _near(alpha, math.log(13 / 7) / math.log(4)), "alpha is the slope of L - E, not of L"
    assert not _near(alpha, 2.0), "the slope is upside down: log of the losses' ratio over log of the sizes' ratio"
    assert _near(alpha, 0.5), f"L - E halves where N is four times as large: alpha = 0.5, and you have {alpha}"
    assert not _near(a, 12.0), "12 is L - E at N = 4: A is that times 4^alpha"
    assert not _near(a, 6.0), "you divide by 4^alpha: A / N^alpha = 12 gives A = 12 · 4^alpha"
    assert _near(a, 24.0), f"A = 12 · √4 = 24, and you have {a}"
    other = answer([1, 10, 100], [2 + 3.0, 2 + 0.3, 2 + 0.03])
    assert all(_near(x, y) for x, y in zip(other, (2.0, 3.0, 1.0), strict=True)), (
        f"for 2 + 3 / N at N = 1, 10, 100 expected (2, 3, 1), and you have {tuple(other)}"
    )
    print("fit_three: right")


def check_iso_minimum(answer: Callable[[list[float], list[float]], float | None]) -> None:
    """`iso_minimum(n, losses)`: the size at the lowest point of a parabola in log N, if it is among those tried."""
    n = [1e3, 1e4, 1e5, 1e6]
    losses = [2 + 0.1 * (math.log(x) - math.log(2e4)) ** 2 for x in n]
    given = answer(list(n), list(losses))
    require_an_answer(given)
    value = float(given) if given is not None else math.nan

    def is_near(other: float) -> bool:
        return math.isclose(value, other, rel_tol=1e-3)

    curve, slope, _ = np.polyfit(n, losses, 2)
    assert not is_near(-slope / (2 * curve)), "the parabola is in log N, and yours is in N: the right half weighs all"
    assert not is_near(math.log(2e4)), "that is log N: take exp of it"
    assert not is_near(math.log10(2e4)), "that is the logarithm to the base 10: take 10 to the power of it"
    assert not is_near(1e4), "that is the best of the sizes tried: the lowest point lies between them"
    assert not is_near(math.exp(-2 * math.log(2e4))), "the lowest point is at -slope / (2 · curve): a factor is wrong"
    assert not is_near(1 / 2e4), "a sign is turned: the lowest point is at -slope / (2 · curve)"
    assert not is_near(4e8), "-slope / curve is twice as far: the lowest point is at -slope / (2 · curve)"
    assert is_near(2e4), f"these losses have their lowest point at 20,000, and you have {given}"
    hill = answer(list(n), [4 - loss for loss in losses])
    assert hill is None, f"a parabola that opens downwards has no lowest point: None, not {hill}"
    falling = answer(list(n), [2 + 0.01 * (math.log(x) - math.log(1e8)) ** 2 for x in n])
    assert falling is None, (
        f"the lowest point is at 100 million, and the largest size that was tried is one: None, not {falling}"
    )
    rising = answer(list(n), [2 + 0.01 * (math.log(x) - math.log(10)) ** 2 for x in n])
    assert rising is None, f"the lowest point is at 10, below all sizes that were tried: None, not {rising}"
    print("iso_minimum: right")
