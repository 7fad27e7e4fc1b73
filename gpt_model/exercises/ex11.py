"""Checks of notebook 11, fewer bits. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

import torch
from torch import Tensor

from utils.exercises import require_an_answer


def check_quantize_rows(answer: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> None:
    """`quantize_rows(weight, bits)`: (q int8 (out, in), scale (out,)), symmetric, a scale for each output."""
    weight = torch.tensor([[1.27, -0.64, 0.308, 0.02], [-25.4, 12.8, 3.15, 0.04], [0.0, 0.0, 0.0, 0.0]])
    given = answer(weight.clone(), 8)
    require_an_answer(given)
    assert isinstance(given, tuple) and len(given) == 2, "return two tensors: q and the scales"
    q, scale = given
    assert scale.numel() != 1, "one scale for the whole matrix: a small row is ruined by a large one, give each its own"
    assert scale.numel() != weight.shape[1], (
        "a scale for each input, and that cannot leave the sum over the inputs: take the maximum along dim=1"
    )
    assert scale.shape == (3,), f"the scales have shape (out,), here (3,), not {tuple(scale.shape)}"
    assert q.shape == weight.shape, f"q has the shape of the matrix, {tuple(weight.shape)}, not {tuple(q.shape)}"
    assert q.dtype == torch.int8, f"q is to be stored as int8, not {q.dtype}: add .to(torch.int8)"
    maxima = weight.abs().amax(dim=1)
    for wrong in (128, 255, 256):
        assert not torch.allclose(scale[:2], maxima[:2] / wrong), (
            f"you divide by {wrong}: the largest number of b bits with a sign is 2^(b - 1) - 1, here 127, "
            "and what lies above it changes its sign in the cast"
        )
    assert not torch.allclose(scale[:2], weight.amax(dim=1)[:2] / 127), (
        "the scale of a row whose largest weight is negative is wrong: take the maximum of the absolute values"
    )
    assert torch.allclose(scale[:2], maxima[:2] / 127), f"expected scales 0.01 and 0.2, and you have {scale[:2]}"
    assert q[0].tolist() != [127, -64, 30, 2], (
        "0.308 / 0.01 is 30.8 and became 30: a cast to int8 cuts off, so .round() comes before it"
    )
    assert q[:2].tolist() == [[127, -64, 31, 2], [-127, 64, 16, 0]], f"the first two rows are {q[:2].tolist()}"
    assert not bool(scale.isnan().any()) and q[2].tolist() == [0, 0, 0, 0], (
        "a row of zeros has the scale 0, and 0 / 0 is no number: divide by 1 there"
    )
    four, _ = answer(weight.clone(), 4)
    assert int(four.abs().max()) <= 7, f"4 bits go to 7, and you have {int(four.abs().max())}: `bits` is not used"
    assert four[:2].tolist() == [[7, -4, 2, 0], [-7, 4, 1, 0]], f"with 4 bits the first rows are {four[:2].tolist()}"
    print("quantize_rows: right")


def check_stored_size(answer: Callable[[int, int, int, int, int], float]) -> None:
    """`stored_size(n_out, n_in, bits, group, scale_bits)`: the bytes of a matrix and the scales of its groups."""
    require_an_answer(answer(64, 128, 4, 32, 16))
    cases = [(64, 128, 4, 32, 16), (16, 96, 3, 32, 32), (8, 64, 8, 64, 32)]
    given = [answer(*case) for case in cases]

    def all_are(formula: Callable[[int, int, int, int, int], float]) -> bool:
        return all(math.isclose(value, formula(*case)) for value, case in zip(given, cases, strict=True))

    assert not all_are(lambda o, i, b, g, s: o * i * b / 8), "the scales are missing: they are stored too"
    assert not all_are(lambda o, i, b, g, s: o * i * b + o * i // g * s), "these are bits: a byte has 8 of them"
    assert not all_are(lambda o, i, b, g, s: o * i * (b + s) / 8), "a scale serves its whole group, not one weight"
    assert not all_are(lambda o, i, b, g, s: (o * i * b + o * s) / 8), "a row has more than one scale: one for a group"
    assert not all_are(lambda o, i, b, g, s: (o * i * b + i // g * s) / 8), "every row has its own groups: times n_out"
    for case, value in zip(cases, given, strict=True):
        n_out, n_in, bits, group, scale_bits = case
        right = (n_out * n_in * bits + n_out * (n_in // group) * scale_bits) / 8
        assert math.isclose(value, right), f"stored_size{case} is {right}, and you have {value}"
    uneven = answer(10, 100, 4, 32, 16)
    assert not math.isclose(uneven, 560), (
        "100 weights in groups of 32 make three groups and a smaller fourth, which has a scale too: round up"
    )
    assert not math.isclose(uneven, 562.5), "there is no eighth of a scale: 100 / 32 groups are 4, rounded up"
    assert not math.isclose(uneven, 564), "groups end where a row ends: round up in each row, not once for the matrix"
    assert math.isclose(uneven, 580), f"10 rows of 100 weights with 4 groups each take 580 bytes, not {uneven}"
    print("stored_size: right")


def check_unpack_nibbles(answer: Callable[[Tensor], Tensor]) -> None:
    """`unpack_nibbles(packed)`: uint8 (n,) to int8 (2 n,), the lower four bits first."""
    packed = torch.tensor([0x21, 0x7F, 0x80, 0x3D], dtype=torch.uint8)
    right = [1, 2, -1, 7, 0, -8, -3, 3]
    given = answer(packed.clone())
    require_an_answer(given)
    values = given.tolist()
    assert given.numel() == 8, f"4 bytes hold 8 numbers, and you have {given.numel()}"
    assert values != [v % 16 for v in right], (
        "1111 is -1, not 15: in two's complement the fourth bit counts -8, so take 16 away from what is above 7"
    )
    swapped = [v for low, high in zip(right[::2], right[1::2], strict=True) for v in (high, low)]
    assert values not in (swapped, [v % 16 for v in swapped]), "the first number is in the lower four bits, not above"
    halves = right[::2] + right[1::2]
    assert values not in (halves, [v % 16 for v in halves]), (
        "all lower halves come first in yours: the two of one byte stand side by side, so stack along dim=1"
    )
    assert values != [v % 16 - 8 for v in right], (
        "you take 8 away from all: that is another code (an offset); two's complement takes 16 from those above 7"
    )
    assert values == right, f"expected {right}, and you have {values}"
    assert given.dtype == torch.int8, f"the numbers have a sign and fit into int8: not {given.dtype}"
    print("unpack_nibbles: right")


def _bfloat16(x: float) -> float:
    """By PyTorch, which the learner's function does without."""
    return float(torch.tensor(x, dtype=torch.float32).bfloat16())


def check_to_bfloat16(answer: Callable[[float], float]) -> None:
    """`to_bfloat16(x)`: the nearest bfloat16, at a tie the one whose last bit is 0."""
    require_an_answer(answer(0.1))
    plain = [0.1, 3.14159274, -0.1, 1.00732421875, 65_537.0, 1e-20]
    given = [answer(x) for x in plain]
    assert all(isinstance(value, float) for value in given), "return a float, not the bits of one: unpack them again"
    cut = [
        struct.unpack(">f", struct.pack(">I", struct.unpack(">I", struct.pack(">f", x))[0] & 0xFFFF0000))[0]
        for x in plain
    ]
    assert given != cut, (
        "you cut the lower half off, which goes towards zero: to the nearest means adding half a step first"
    )
    assert not math.isclose(given[0], struct.unpack("e", struct.pack("e", 0.1))[0], rel_tol=1e-6), (
        "that is float16, with 10 bits of fraction: bfloat16 has 7, and is the upper half of a float32"
    )
    for x, value in zip(plain, given, strict=True):
        assert value == _bfloat16(x), f"the bfloat16 nearest to {x} is {_bfloat16(x)}, and you have {value}"
    even, odd = 1 + 2**-8, 1 + 3 * 2**-8  # both in the middle of two neighbours
    low, high = answer(even), answer(odd)
    assert low != 1 + 2**-7, (
        "1.00390625 is in the middle between 1 and 1.0078125: you always go up at a tie, and it is the last bit 0 that "
        "wins: 1"
    )
    assert high != 1 + 2**-7, "1.01171875 is a tie too, and the neighbour above has the last bit 0: you always go down"
    assert (low, high) == (1.0, 1 + 2**-6), f"at the two ties expected 1.0 and 1.015625, and you have {low} and {high}"
    over = answer(1.998046875)
    assert over == 2.0, f"1.998046875 rounds up to 2: the carry must be free to run into the exponent, not {over}"
    print("to_bfloat16: right")


def check_step_ratio(answer: Callable[[int, int, int, int], float]) -> None:
    """`step_ratio(n_weights, before, after, cache_bytes)`: how many times as fast a step is, if bytes are all."""
    require_an_answer(answer(1000, 32, 8, 500))
    cases = [(1000, 32, 8, 500), (1_000_000, 16, 4, 250_000), (800, 32, 16, 10_000)]
    given = [answer(*case) for case in cases]

    def all_are(formula: Callable[[int, int, int, int], float]) -> bool:
        return all(math.isclose(value, formula(*case)) for value, case in zip(given, cases, strict=True))

    assert not all_are(lambda n, b, a, c: b / a), (
        "the cache is read too, and it keeps its bytes: only the weights become smaller"
    )
    assert not all_are(lambda n, b, a, c: (n * b + c) / (n * a + c)), "bits and bytes are added: a byte has 8 bits"
    assert not all_are(lambda n, b, a, c: (n * a / 8 + c) / (n * b / 8 + c)), (
        "that is the time which is left: how many times as fast is before over after"
    )
    assert not all_are(lambda n, b, a, c: (n * b / 8 + c) / (n * a / 8)), "the cache is read after the change as well"
    for case, value in zip(cases, given, strict=True):
        n, before, after, cache = case
        right = (n * before / 8 + cache) / (n * after / 8 + cache)
        assert math.isclose(value, right), f"step_ratio{case} is {right:.4f}, and you have {value}"
    print("step_ratio: right")
