"""The checks of notebook 18 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pretraining.exercises import ex18
from pretraining.scaling_benchmark import Law, fit_law
from tests.conftest import refuses


def budget(cost=lambda ratio: 6 * ratio, root=math.sqrt):
    """An answer with one part that may be wrong."""

    def best_of_budget(flops, ratio=20):
        n = root(flops / cost(ratio))
        return n, ratio * n

    return best_of_budget


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda flops, ratio=20: budget()(flops, ratio)[::-1], "changed places"),
        (budget(root=lambda x: x), "take the square root"),
        (budget(cost=lambda ratio: ratio), "the 6 is missing"),
        (budget(cost=lambda ratio: 2 * ratio), "backward costs 4 more"),
        (budget(cost=lambda ratio: 6), "the ratio is missing"),
        (lambda flops, ratio=20: budget()(flops, 20), "is 20 written in the body"),
        (lambda flops, ratio=20: budget()(flops, ratio)[0], "return two numbers"),
        (lambda flops, ratio=20: (budget()(flops, ratio)[0], flops), "D is 20 tokens"),
    ],
)
def test_best_of_budget(wrong, message):
    ex18.check_best_of_budget(budget())
    refuses(ex18.check_best_of_budget, wrong, message)


def branches(trunk=lambda x, decay: (1 - decay) * max(x), ends=lambda x, decay: decay * sum(x)):
    return lambda lengths, decay: trunk(lengths, decay) + ends(lengths, decay)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x, decay: sum(x), "a run for each length"),
        (lambda x, decay: max(x), "the longest run alone"),
        (branches(ends=lambda x, decay: 0), "that is the trunk"),
        (branches(trunk=lambda x, decay: 0), "these are the ends"),
        (branches(trunk=lambda x, decay: max(x)), "not to the end"),
        (branches(trunk=lambda x, decay: (1 - decay) * sum(x), ends=lambda x, decay: 0), "a trunk is walked once"),
        (branches(ends=lambda x, decay: decay * max(x) * len(x)), "of its \\*own\\* length"),
        (branches(trunk=lambda x, decay: (1 - decay) * x[-1]), "in any order"),
        (branches(ends=lambda x, decay: 0.25 * sum(x)), "one length alone"),
    ],
)
def test_branch_steps(wrong, message):
    ex18.check_branch_steps(branches())
    refuses(ex18.check_branch_steps, wrong, message)


def test_branch_steps_counts_what_a_loop_takes():
    lengths, taken, done = [40, 80, 160], 0, 0
    for steps in lengths:
        turn = round(0.75 * steps)
        taken, done = taken + (turn - done) + (steps - turn), turn
    assert taken == branches()(lengths, 0.25)


def worth(first=lambda u: u, r=lambda epochs: epochs - 1, gain=lambda r, R: R * (1 - math.exp(-r / R))):
    return lambda unique, epochs, decay=15.4: first(unique) + unique * gain(r(epochs), decay)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (worth(first=lambda u: 0), "the first reading is U itself"),
        (worth(r=lambda epochs: epochs), "r is epochs - 1"),
        (worth(first=lambda u: 0, r=lambda epochs: epochs), "U is missing"),
        (lambda unique, epochs, decay=15.4: unique * epochs, "all tokens read"),
        (worth(gain=lambda r, R: 1 - math.exp(-r / R)), "a factor R is missing"),
        (worth(gain=lambda r, R: R * (1 - math.exp(r / R))), "the sign of the exponent"),
        (worth(gain=lambda r, R: R * (1 - math.exp(-r * R))), "divide by R"),
        (lambda unique, epochs, decay=15.4: worth()(unique, epochs), "is 15.4 written in the body"),
        (lambda unique, epochs, decay=15.4: unique, "expected"),
    ],
)
def test_effective_tokens(wrong, message):
    ex18.check_effective_tokens(worth())
    refuses(ex18.check_effective_tokens, wrong, message)


def floor_of(losses):
    first, second, third = losses
    return (first * third - second**2) / (first + third - 2 * second)


def three(
    floor=floor_of,
    slope=lambda n, y, losses: math.log(y[0] / y[1]) / math.log(n[1] / n[0]),
    scale=lambda n, y, alpha: y[0] * n[0] ** alpha,
):
    """An answer with one part that may be wrong."""

    def fit_three(n, losses):
        e = floor(losses)
        y = [loss - e for loss in losses]
        alpha = slope(n, y, losses)
        return e, scale(n, y, alpha), alpha

    return fit_three


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (three(floor=lambda losses: 0.0), "E is left out"),
        (lambda n, losses: (losses[-1], 1.0, 0.5), "not the last loss"),
        (three(slope=lambda n, y, losses: -math.log(y[0] / y[1]) / math.log(4)), "the sign of alpha"),
        (three(slope=lambda n, y, losses: math.log(y[0] / y[1])), "ratio of the sizes"),
        (three(slope=lambda n, y, losses: math.log(losses[0] / losses[1]) / math.log(4)), "the slope of L - E"),
        (three(slope=lambda n, y, losses: math.log(n[1] / n[0]) / math.log(y[0] / y[1])), "upside down"),
        (three(scale=lambda n, y, alpha: y[0]), "12 is L - E"),
        (three(scale=lambda n, y, alpha: y[0] / n[0] ** alpha), "you divide by"),
        (three(slope=lambda n, y, losses: math.log(y[0] / y[1]) / math.log(4)), "for 2 \\+ 3 / N"),
        (lambda n, losses: three()(n, losses)[:2], "return three numbers"),
        (lambda n, losses: (2.0, 1.0, 0.5), "gives E = 1"),
    ],
)
def test_fit_three(wrong, message):
    ex18.check_fit_three(three())
    refuses(ex18.check_fit_three, wrong, message)


def test_three_points_agree_with_the_module_s_fit():
    """The module fits sizes and tokens together; in sizes, it finds the same exponent and scale."""
    n, d = (x.ravel() for x in np.meshgrid([4.0, 16.0, 64.0], [1e2, 1e3, 1e4]))
    law = fit_law(n, d, np.asarray(Law(1.0, 24.0, 5.0, 0.5, 0.5).loss(n, d)))
    _, a, alpha = three()([4, 16, 64], [13.0, 7.0, 4.0])
    assert math.isclose(law.alpha, alpha, abs_tol=5e-3) and math.isclose(law.A, a, rel_tol=2e-2)


def parabola(axis=np.log, back=math.exp, at=lambda curve, slope: -slope / (2 * curve), check=True, inside=True):
    """An answer with one part that may be wrong."""

    def iso_minimum(n, losses):
        curve, slope, _ = np.polyfit(axis(np.array(n)), losses, 2)
        if check and curve <= 0:
            return None
        best = back(at(curve, slope))
        return best if not inside or min(n) < best < max(n) else None

    return iso_minimum


def only_from_above(n, losses):
    best = parabola(inside=False)(n, losses)
    return best if best is not None and best < max(n) else None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (parabola(axis=lambda n: n, back=lambda x: x), "yours is in N"),
        (parabola(back=lambda x: x, inside=False), "that is log N"),
        (parabola(axis=np.log10, back=lambda x: x, inside=False), "to the base 10"),
        (lambda n, losses: n[int(np.argmin(losses))], "the best of the sizes tried"),
        (parabola(at=lambda curve, slope: slope / (2 * curve), inside=False), "a sign is turned"),
        (parabola(at=lambda curve, slope: -slope / curve, inside=False), "twice as far"),
        (parabola(check=False), "opens downwards"),
        (parabola(inside=False), "at 100 million"),
        (only_from_above, "below all sizes"),
    ],
)
def test_iso_minimum(wrong, message):
    ex18.check_iso_minimum(parabola())
    refuses(ex18.check_iso_minimum, wrong, message)
