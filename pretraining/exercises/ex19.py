"""Checks of notebook 19, width and learning rate. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from utils.exercises import require_an_answer


def _near(given: float, wanted: float) -> bool:
    return math.isclose(float(given), wanted, rel_tol=1e-6, abs_tol=1e-12)


def check_rate_for(answer: Callable[[str, tuple[int, ...], float, float], float]) -> None:
    """`rate_for(name, shape, rate, m)`: Adam's rate of a parameter under µP, whose logits are divided by m."""
    matrix = answer("transformer.h.0.mlp.c_fc.weight", (1024, 256), 0.01, 4.0)
    require_an_answer(matrix)
    assert not _near(matrix, 0.04), "you multiply: a wider matrix changes its output more, so its rate is divided by m"
    assert not _near(matrix, 0.01), "the matrices of the blocks need rate / m: their outputs are sums over the width"
    assert not _near(matrix, 0.005), "you divide by √m, which is the rule of the start: a step adds up as n, not as √n"
    assert _near(matrix, 0.0025), f"for a block's matrix expected 0.0025, and you have {matrix}"
    embedding = answer("transformer.wte.weight", (256, 256), 0.01, 4.0)
    assert _near(embedding, 0.01), (
        f"the embedding is looked up, no sum over the width: its rate stays 0.01, not {embedding}"
    )
    output = answer("lm_head.weight", (256, 256), 0.01, 4.0)
    assert _near(output, 0.01), f"the logits are divided by m already: the output's rate stays 0.01, not {output}"
    for name in ("transformer.h.0.ln_1.weight", "transformer.h.1.attn.c_attn.bias"):
        vector = answer(name, (256,), 0.01, 4.0)
        assert _near(vector, 0.01), f"{name} is a vector, each number stands alone: 0.01, not {vector}"
    narrow = answer("transformer.h.1.attn.c_proj.weight", (32, 32), 0.01, 0.25)
    assert _near(narrow, 0.04), f"below the base width m is less than 1, and the rate is larger: 0.04, not {narrow}"
    print("rate_for: right")


def check_hidden_deviation(answer: Callable[[int, int, float], float]) -> None:
    """`hidden_deviation(width, base, deviation)`: deviation · √(base / width)."""
    given = answer(512, 128, 0.02)
    require_an_answer(given)
    assert not _near(given, 0.005), "you divide by m: random signs cancel, and their sum grows as √n, so divide by √m"
    assert not _near(given, 0.04), "wider layers need smaller weights: base and width have changed places"
    assert not _near(given, 0.02), "the deviation does not change with the width: then the outputs do"
    assert not _near(given, 512**-0.5), "that is 1 / √width: at the base width it must be the given deviation"
    assert not _near(given, 0.00125), "you divide by m², the rule for a variance twice: the deviation goes with 1 / √m"
    assert _near(given, 0.01), f"for width 512 and base 128 expected 0.01, and you have {given}"
    same = answer(96, 96, 0.3)
    assert _near(same, 0.3), f"at the base width nothing changes: 0.3, not {same}"
    small = answer(32, 128, 0.02)
    assert _near(small, 0.04), f"narrower than the base, the weights are larger: 0.04, not {small}"
    print("hidden_deviation: right")


def check_growth_exponent(answer: Callable[[Sequence[float], Sequence[float]], float]) -> None:
    """`growth_exponent(widths, changes)`: the slope of the least-squares line of log change over log width."""
    widths = [32.0, 64.0, 128.0, 256.0]
    given = answer(list(widths), [0.5 * d**1.5 for d in widths])
    require_an_answer(given)
    assert not _near(given, 1 / 1.5), "the axes have changed places: it is the change over the width"
    assert not _near(given, 8**1.5), "that is the ratio of the ends: take logarithms first"
    assert not _near(given, 1.5 * math.log(2)), "the logarithms of d are missing: doubling the width is a step of ln 2"
    assert not _near(given, -1.5), "the sign is turned: what grows has a positive exponent"
    assert _near(given, 1.5), f"for 0.5 · d^1.5 expected 1.5, and you have {float(given):.4g}"
    level = answer(list(widths), [3.0] * 4)
    assert _near(level, 0.0), f"a level line has the exponent 0, not {float(level):.4g}"
    bent = float(answer(list(widths), [1.0, 2.0, 2.0, 2.0]))
    assert not _near(bent, 1 / 3), "you look at the two ends alone: all points count, by least squares"
    assert _near(bent, 0.3), f"for 1, 2, 2, 2 the least-squares slope is 0.3, and you have {bent:.4g}"
    print("growth_exponent: right")


def check_sweep_operations(answer: Callable[[int, int, int, int, int, int], float]) -> None:
    """`sweep_operations(tries, steps, tokens, d, n_layer, vocab)`: 6 a weight and token, attention left out."""
    given = answer(7, 10, 512, 32, 2, 256)
    require_an_answer(given)
    blocks, output = 12 * 2 * 32**2, 256 * 32
    unit = 7 * 10 * 512
    assert not _near(given, 2 * unit * (blocks + output)), "that is forward alone: backward costs twice that again"
    assert not _near(given, 6 * unit * (blocks + 2 * output)), "the embedding is looked up, not multiplied: V d once"
    assert not _near(given, 6 * unit * blocks), "the output is missing: V d products a token"
    assert not _near(given, 6 * unit * (blocks // 2 + output)), "12 d² is for one block: times n_layer"
    assert not _near(given, 6 * unit // 7 * (blocks + output)), "that is one run: times the tries"
    assert not _near(given, 6 * 7 * 512 * (blocks + output)), "that is one step of each: times the steps"
    wanted = 6 * unit * (blocks + output)
    assert _near(given, wanted), f"expected {wanted:,}, and you have {float(given):,.0f}"
    wide = answer(1, 1, 1, 768, 12, 50257)
    assert _near(wide, 6 * (144 * 768**2 + 50257 * 768)), (
        "right for d = 32, wrong for GPT-2's shape: is a number fixed?"
    )
    print("sweep_operations: right")
