"""Checks of notebook 15, precision and memory. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from utils.exercises import require_an_answer


def check_spacing(answer: Callable[[float, int], float]) -> None:
    """`spacing(x, f)`: from x to the next larger number, with f bits of fraction."""
    given = answer(3.0, 7)
    require_an_answer(given)
    assert not math.isclose(given, 2.0**-7), "that is the spacing near 1: it doubles with every power of two"
    assert not math.isclose(given, 3 * 2.0**-7), (
        "x · 2^-f grows smoothly, but the spacing is the same from 2 to 4: take the power of two below x"
    )
    assert not math.isclose(given, 2.0**-5), "that is the spacing above 4: round the logarithm of x down, not up"
    assert not math.isclose(given, 2.0**-7 / 2), "the exponent counts the other way: larger numbers lie further apart"
    assert math.isclose(given, 2.0**-6), f"for 3 and f = 7 expected 2^-6 = {2.0**-6}, and you have {given}"
    power = answer(4.0, 7)
    assert math.isclose(power, 2.0**-5), (
        f"4 is a power of two and begins the interval from 4 to 8: expected 2^-5 = {2.0**-5}, and you have {power}"
    )
    small = answer(0.02, 7)
    assert math.isclose(small, 2.0**-13), (
        f"0.02 lies between 2^-6 and 2^-5, so the spacing is 2^-13 = {2.0**-13}, and you have {small}: "
        "round the logarithm down for numbers below 1, too (int() rounds towards 0)"
    )
    for x in (1.0, 5.5, 100.0, 0.3):
        below, above = torch.tensor([x, math.inf], dtype=torch.float32)
        wanted = float(torch.nextafter(below, above)) - float(below)
        assert math.isclose(answer(float(below), 23), wanted), f"for x = {x} and f = 23 torch says {wanted}"
    print("spacing: right")


def check_next_scale(answer: Callable[[float, int, bool, int], tuple[float, int]]) -> None:
    """`next_scale(scale, good, found_infinity, interval)`: the pair after a step."""
    given = answer(8.0, 1, True, 3)
    require_an_answer(given)
    assert isinstance(given, tuple) and len(given) == 2, "return a pair: (scale, good)"
    assert given[0] != 16.0, "an infinity means that the scale is too large: halve it"
    assert given[0] == 4.0, f"an infinity halves the scale: 8 becomes 4, and you have {given[0]}"
    assert given[1] == 0, "after an infinity the count of good steps begins anew, at 0"
    early = answer(8.0, 1, False, 3)
    assert early[0] != 16.0, "this is the second good step of three: the scale doubles only after the third"
    assert early == (8.0, 2), f"a good step before the interval is full only counts: (8.0, 2), and you have {early}"
    full = answer(8.0, 2, False, 3)
    assert full != (8.0, 3), "this is the third good step of three, and the scale must double now, not at the next"
    assert full[0] == 16.0, f"after the third good step of three 8 becomes 16, and you have {full[0]}"
    assert full[1] == 0, "when the scale has doubled, the count begins anew: else it doubles at every step from here on"
    again = answer(16.0, 2, True, 3)
    assert again == (8.0, 0), (
        f"an infinity at the third step halves, and never doubles: (8.0, 0), and you have {again}: look for it first"
    )
    print("next_scale: right")


def check_master_step(answer: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """`master_step(weight, master, gradient, lr)`: a step on the master, and its rounded copy."""
    weight, master = torch.ones(3, dtype=torch.bfloat16), torch.ones(3)
    gradient = torch.tensor([1.0, 0.0, -1.0], dtype=torch.bfloat16)
    mine, own = weight, master
    given: Tensor | None = None
    for _ in range(8):
        given = answer(mine, own, gradient, 2.0**-10)
        require_an_answer(given)
    assert given is not None
    assert isinstance(given, Tensor) and given.dtype == torch.bfloat16, "return the weight, which stays bfloat16"
    assert not torch.equal(master, torch.ones(3)), "the master has not changed: step it in place, master -= ..."
    wanted = torch.tensor([1 - 2.0**-7, 1, 1 + 2.0**-7])
    assert master[0] <= 1, "the master went up against a positive gradient's direction: subtract lr · gradient"
    assert not torch.allclose(master, torch.tensor([1 - 2.0**-10, 1, 1 + 2.0**-10])), (
        "after eight steps the master has moved by one: it is set from the rounded weight each time. Step the master"
    )
    assert torch.allclose(master, wanted, rtol=0, atol=1e-7), (
        f"after eight steps of 1/1024 the master must be {wanted.tolist()}, and is {master.tolist()}: "
        "it must never see a rounded number"
    )
    assert not torch.equal(weight, torch.ones(3, dtype=torch.bfloat16)), (
        "the master has moved and the weight has not: copy it over in place, weight.copy_(master)"
    )
    assert torch.equal(weight, wanted.bfloat16()), (
        f"the weight must be the rounded master, {wanted.tolist()}, and is {weight.tolist()}: do not step it besides"
    )
    assert given is weight, "return the weight that was given, changed in place, and no new tensor"
    print("master_step: right")


def check_block_numbers(answer: Callable[[int, int, int], int]) -> None:
    """`block_numbers(d, heads, d_ff)`: kept for each token by a block with ReLU²."""
    given = answer(64, 4, 200)
    require_an_answer(given)
    attention = 64 + 2 + 64 + 3 * 64 + 4 + 64
    mlp = 64 + 2 + 64
    wanted = attention + mlp + 2 * 200
    assert given != 16 * 64 + 4 + 4, "that is the block with d_ff = 4 d: put d_ff in the place of each 4 d"
    assert given != wanted + 200, (
        "you count three tensors of d_ff: ReLU's output serves ReLU and the square, so its bytes count once"
    )
    assert given != wanted - 200, (
        "you count one tensor of d_ff: the output of the square is kept too, for the gradient of c_proj's weight"
    )
    assert given != 4 * wanted, "numbers are asked for, not bytes"
    assert given != wanted - 4, "attention keeps one sum for each head: H numbers a token"
    assert given != wanted - 8, "the sums of the heads and both norms: a mean and a deviation of each norm are missing"
    assert given != wanted - 4 - 4, "each norm keeps a mean and a deviation besides its input"
    assert given == wanted, f"expected {wanted} numbers for d = 64, 4 heads, d_ff = 200, and you have {given}"
    other = answer(32, 2, 64)
    assert other == 8 * 32 + 2 + 4 + 2 * 64, f"for d = 32, 2 heads, d_ff = 64 expected 390, and you have {other}"
    print("block_numbers: right")
