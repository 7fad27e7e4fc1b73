"""The checks of notebook 11 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import math
import struct

import pytest
import torch

from gpt_model.exercises import ex11
from tests.conftest import refuses


def quantizer(dim=1, n=None, absolute=True, whole=torch.round, safe=True, dtype=torch.int8, keepdim=False):
    """An answer with one part that may be wrong."""

    def quantize_rows(weight, bits):
        top = n or 2 ** (bits - 1) - 1
        scale = (weight.abs() if absolute else weight).amax(dim=dim) / top
        scale = torch.where(scale > 0, scale, 1) if safe is True else scale
        shaped = scale[:, None] if dim == 1 else scale
        q = torch.nan_to_num(whole(weight / shaped)).clamp(-128, 127).to(dtype)
        return q, scale[:, None] if keepdim else scale

    return quantize_rows


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (quantizer(dim=(0, 1)), "one scale for the whole matrix"),
        (quantizer(dim=0), "cannot leave the sum"),
        (quantizer(keepdim=True), r"shape \(out,\)"),
        (quantizer(dtype=torch.float32), "stored as int8"),
        (quantizer(n=128), "you divide by 128"),
        (quantizer(n=255), "you divide by 255"),
        (quantizer(absolute=False), "absolute values"),
        (quantizer(whole=torch.trunc), "cuts off"),
        (quantizer(n=127), "`bits` is not used"),
        (lambda w, bits: (w.to(torch.int8), w[:, 0] / 0), "expected scales"),
    ],
)
def test_quantize_rows(wrong, message):
    ex11.check_quantize_rows(quantizer())
    refuses(ex11.check_quantize_rows, wrong, message)


def test_quantize_rows_of_zeros():
    def nan_scale(weight, bits):
        q, scale = quantizer()(weight, bits)
        return q, torch.where(weight.abs().amax(dim=1) > 0, scale, math.nan)

    refuses(ex11.check_quantize_rows, nan_scale, "a row of zeros")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda o, i, b, g, s: o * i * b / 8, "the scales are missing"),
        (lambda o, i, b, g, s: o * i * b + o * math.ceil(i / g) * s, "these are bits"),
        (lambda o, i, b, g, s: o * i * (b + s) / 8, "serves its whole group"),
        (lambda o, i, b, g, s: (o * i * b + o * s) / 8, "more than one scale"),
        (lambda o, i, b, g, s: (o * i * b + i // g * s) / 8, "times n_out"),
        (lambda o, i, b, g, s: (o * i * b + o * (i // g) * s) / 8, "a smaller fourth"),
        (lambda o, i, b, g, s: (o * i * b + o * i / g * s) / 8, "no eighth of a scale"),
        (lambda o, i, b, g, s: (o * i * b + math.ceil(o * i / g) * s) / 8, "round up in each row"),
        (lambda o, i, b, g, s: o * i, "is 4608"),
    ],
)
def test_stored_size(wrong, message):
    ex11.check_stored_size(lambda o, i, b, g, s: (o * i * b + o * math.ceil(i / g) * s) / 8)
    refuses(ex11.check_stored_size, wrong, message)


def unpacker(signed=lambda v: torch.where(v > 7, v - 16, v), swapped=False, dim=1, dtype=torch.int8):
    """An answer with one part that may be wrong."""

    def unpack_nibbles(packed):
        halves = [packed & 15, packed >> 4]
        both = torch.stack(halves[::-1] if swapped else halves, dim=dim).flatten()
        return signed(both.to(torch.int8)).to(dtype)

    return unpack_nibbles


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (unpacker(signed=lambda v: v), "the fourth bit counts -8"),
        (unpacker(signed=lambda v: v - 8), "another code"),
        (unpacker(swapped=True), "in the lower four bits"),
        (unpacker(swapped=True, signed=lambda v: v), "in the lower four bits"),
        (unpacker(dim=0), "stand side by side"),
        (unpacker(dtype=torch.float32), "fit into int8"),
        (lambda packed: packed & 15, "hold 8 numbers"),
        (unpacker(signed=lambda v: -v), "expected"),
    ],
)
def test_unpack_nibbles(wrong, message):
    ex11.check_unpack_nibbles(unpacker())
    refuses(ex11.check_unpack_nibbles, wrong, message)


def rounder(add, mask=0xFFFF0000):
    """An answer that adds something to the word of a float before it cuts."""

    def to_bfloat16(x):
        (word,) = struct.unpack(">I", struct.pack(">f", x))
        (value,) = struct.unpack(">f", struct.pack(">I", (word + add(word)) & mask))
        return value

    return to_bfloat16


def without_carry(x):
    """Rounds the fraction alone, and keeps the exponent."""
    (word,) = struct.unpack(">I", struct.pack(">f", x))
    fraction = (word & 0x7FFFFF) + 0x7FFF + (word >> 16 & 1)
    (value,) = struct.unpack(">f", struct.pack(">I", word & 0xFF800000 | min(fraction, 0x7F0000) & 0x7F0000))
    return value


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (rounder(lambda word: 0), "cut the lower half off"),
        (rounder(lambda word: 0x8000), "always go up at a tie"),
        (rounder(lambda word: 0x7FFF), "always go down"),
        (lambda x: x if x > 65_504 else struct.unpack("e", struct.pack("e", x))[0], "that is float16"),
        (lambda x: struct.unpack(">I", struct.pack(">f", x))[0] >> 16, "not the bits of one"),
        (without_carry, "run into the exponent"),
        (lambda x: x, "nearest to"),
    ],
)
def test_to_bfloat16(wrong, message):
    ex11.check_to_bfloat16(rounder(lambda word: 0x7FFF + (word >> 16 & 1)))
    refuses(ex11.check_to_bfloat16, wrong, message)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda n, b, a, c: b / a, "the cache is read too"),
        (lambda n, b, a, c: (n * b + c) / (n * a + c), "a byte has 8 bits"),
        (lambda n, b, a, c: (n * a / 8 + c) / (n * b / 8 + c), "time which is left"),
        (lambda n, b, a, c: (n * b / 8 + c) / (n * a / 8 + c * a / b), "it keeps its bytes"),
        (lambda n, b, a, c: (n * b / 8 + c) / (n * a / 8), "after the change as well"),
        (lambda n, b, a, c: n, "and you have"),
    ],
)
def test_step_ratio(wrong, message):
    ex11.check_step_ratio(lambda n, b, a, c: (n * b / 8 + c) / (n * a / 8 + c))
    refuses(ex11.check_step_ratio, wrong, message)
