"""Checks of notebook 08, the published weights. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from utils.exercises import require_an_answer


def check_header_of(answer: Callable[[bytes], dict[str, Any]]) -> None:
    """`header_of(data)`: the header of a safetensors file without `__metadata__`."""
    tensors = {"W": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}}
    for metadata in ({"__metadata__": {"format": "pt"}}, {}):
        text = json.dumps({**metadata, **tensors}).encode()
        given = answer(struct.pack("<Q", len(text)) + text + struct.pack("<2f", 1.0, 2.0))
        require_an_answer(given)
        assert isinstance(given, dict), f"return a dictionary, not a {type(given).__name__}: json.loads makes one"
        assert "__metadata__" not in given, "`__metadata__` is no tensor: take it out"
        assert given == tensors, f"expected {tensors}, and you have {given}"
    print("header_of: right")


def check_rename(answer: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """`rename(weights)`: the names of our model, without masks and without the output matrix."""
    one = torch.ones(1)
    names = ["wte.weight", "h.0.attn.c_attn.bias", "h.0.attn.bias", "h.0.attn.masked_bias", "transformer.wpe.weight"]
    before = dict.fromkeys([*names, "lm_head.weight"], one)
    given = answer(dict(before))
    require_an_answer(given)
    assert "transformer.h.0.attn.c_attn.bias" in given, (
        "`attn.c_attn.bias` is a bias and belongs to the model; the mask is called `.attn.bias`, with the dot in front"
    )
    assert not any(name.endswith(".attn.bias") for name in given), "a mask, `.attn.bias`, is no weight: leave it out"
    assert not any("masked_bias" in name for name in given), (
        "`.attn.masked_bias` is left over from a mask: leave it out"
    )
    assert not any("lm_head" in name for name in given), "`lm_head.weight` is the embedding, and is not loaded twice"
    assert "transformer.transformer.wpe.weight" not in given, "newer files have `transformer.` already: not twice"
    wanted = {"transformer.wte.weight", "transformer.h.0.attn.c_attn.bias", "transformer.wpe.weight"}
    assert given.keys() == wanted, f"expected {sorted(wanted)}, and you have {sorted(given)}"
    print("rename: right")


def check_turn(answer: Callable[[str, Tensor], Tensor]) -> None:
    """`turn(name, tensor)`: transposed where it belongs to a Conv1D, and contiguous."""
    wide, square = torch.arange(6.0).view(2, 3), torch.arange(9.0).view(3, 3)
    given = answer("transformer.h.0.attn.c_attn.weight", wide)
    require_an_answer(given)
    assert given.shape == (3, 2), (
        f"a Conv1D keeps (in, out), here (2, 3), and nn.Linear wants (3, 2), not {given.shape}"
    )
    assert torch.equal(given, wide.T), (
        "the shape is right and the numbers are not: .view and .reshape cut the same order into other rows; use .T"
    )
    for name in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        turned = answer(f"transformer.h.1.{name}.weight", square)
        assert torch.equal(turned, square.T), (
            f"{name} belongs to a Conv1D too, and is not turned: decide by the name, since a square shape cannot tell"
        )
    for name in ("wte.weight", "wpe.weight"):
        assert torch.equal(answer(f"transformer.{name}", square), square), f"{name} is an embedding: it stays as it is"
    bias = torch.arange(3.0)
    assert torch.equal(answer("transformer.h.0.attn.c_attn.bias", bias), bias), "a bias has nothing to turn"
    assert answer("transformer.h.0.mlp.c_fc.weight", wide).is_contiguous(), (
        ".T looks at the same memory in another order: .contiguous() puts the rows one after the other"
    )
    print("turn: right")


def check_n_bytes(answer: Callable[[int, int, int, int, int], int]) -> None:
    """`n_bytes(vocab_size, context_length, n_layer, d_model, bytes_per_number)` of a published file."""
    vocab_size, context, n_layer, d = 50257, 1024, 12, 768
    given = answer(vocab_size, context, n_layer, d, 4)
    require_an_answer(given)
    embeddings, block, last = (vocab_size + context) * d, 12 * d * d + 13 * d, 2 * d
    weights, masks = embeddings + n_layer * block + last, n_layer * context**2
    assert given != weights, "that is the number of numbers: each has 4 bytes, and the masks are missing"
    assert given != 4 * weights, "the masks are missing: context_length² numbers in each block"
    assert given != 4 * (weights + masks + vocab_size * d), "the output matrix is the embedding, and stored once"
    assert given != 4 * (weights - last + masks), "the last norm is missing: 2 · d_model numbers"
    assert given != 4 * (embeddings + n_layer * 12 * d * d + last + masks), (
        "biases and norms of the blocks are missing: 13 · d_model numbers in each"
    )
    assert given == 4 * (weights + masks), f"expected {4 * (weights + masks):,}, and you have {given:,}"
    half = answer(vocab_size, context, n_layer, d, 2)
    assert half != 2 * (weights + masks), "the masks are float32 whatever the weights are: 4 bytes a number"
    assert half == 2 * weights + 4 * masks, f"with 2 bytes: {2 * weights + 4 * masks:,}, and you have {half:,}"
    print("n_bytes: right")
