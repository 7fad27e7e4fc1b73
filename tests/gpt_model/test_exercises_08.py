"""The checks of notebook 08 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import json
import struct

import pytest

from gpt_model.exercises import ex08
from utils.exercises import attempt

CHECKS = [getattr(ex08, name) for name in dir(ex08) if name.startswith("check_")]


def refuses(check, answer, message):
    with pytest.raises(AssertionError, match=message):
        check(answer)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_stub_is_told_that_it_is_one(check, capsys):
    def stub(*arguments): ...

    attempt(check, stub)
    assert capsys.readouterr().out == "not solved yet: your function returns nothing: write its body, with a `return`\n"


def raw(data):
    return data[8 : 8 + struct.unpack("<Q", data[:8])[0]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (raw, "return a dictionary, not a bytes"),
        (lambda data: json.loads(raw(data)), "no tensor: take it out"),
        (lambda data: {"W": [1, 2]}, "expected"),
        (lambda data: list(json.loads(raw(data))), "return a dictionary, not a list"),
    ],
)
def test_header_of(wrong, message):
    refuses(ex08.check_header_of, wrong, message)


def renamer(masks=(".attn.bias", ".attn.masked_bias"), head=True, always=False):
    """An answer with one part that may be wrong."""

    def rename(weights):
        kept = {}
        for name, tensor in weights.items():
            if name.endswith(masks) or (head and name == "lm_head.weight"):
                continue
            kept[name if name.startswith("transformer.") and not always else f"transformer.{name}"] = tensor
        return kept

    return rename


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (renamer(masks=("bias",)), "with the dot in front"),
        (renamer(masks=(".attn.masked_bias",)), "is no weight: leave it out"),
        (renamer(masks=(".attn.bias",)), "left over from a mask"),
        (renamer(head=False), "not loaded twice"),
        (renamer(always=True), "not twice"),
        (lambda weights: {**renamer()(weights), "x": 1}, "expected"),
    ],
)
def test_rename(wrong, message):
    refuses(ex08.check_rename, wrong, message)
    ex08.check_rename(renamer())


CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda name, tensor: tensor, r"keeps \(in, out\)"),
        (lambda name, tensor: tensor.reshape(tensor.shape[::-1]), "cut the same order into other rows"),
        (lambda name, tensor: tensor.T.contiguous() if len(set(tensor.shape)) > 1 else tensor, "square shape cannot"),
        (lambda name, tensor: tensor.T.contiguous() if tensor.ndim == 2 else tensor, "is an embedding"),
        (lambda name, tensor: tensor.T.contiguous() if "c_attn" in name else tensor, "attn.c_proj belongs to a Conv1D"),
        (lambda name, tensor: tensor.T if name.endswith(CONV1D) else tensor, "puts the rows one after the other"),
    ],
)
def test_turn(wrong, message):
    refuses(ex08.check_turn, wrong, message)


def counter(block=13, last=True, masks=4, head=False, size=None):
    """An answer with one part that may be wrong."""

    def n_bytes(vocab_size, context_length, n_layer, d_model, bytes_per_number):
        numbers = (vocab_size + context_length) * d_model + n_layer * (12 * d_model**2 + block * d_model)
        numbers += 2 * d_model * last + vocab_size * d_model * head
        per_mask = bytes_per_number if masks == "same" else masks
        return numbers * (size or bytes_per_number) + n_layer * context_length**2 * per_mask

    return n_bytes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (counter(masks=0, size=1), "number of numbers"),
        (counter(masks=0), "masks are missing"),
        (counter(head=True), "stored once"),
        (counter(last=False), "last norm is missing"),
        (counter(block=0), "biases and norms"),
        (counter(masks="same"), "whatever the weights are"),
        (counter(block=12), "expected"),
    ],
)
def test_n_bytes(wrong, message):
    refuses(ex08.check_n_bytes, wrong, message)
    ex08.check_n_bytes(counter())
