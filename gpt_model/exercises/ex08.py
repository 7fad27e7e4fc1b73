"""Checks of notebook 08, the published weights. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable

import torch
from torch import Tensor

from utils.exercises import require_an_answer

Placed = tuple[str, Tensor] | None


def _three_tensors() -> tuple[bytes, dict[str, bytes]]:
    """A safetensors file with three tensors, and the bytes of each. The header's order is not that of the numbers."""
    numbers = {"wpe.weight": b"first: 16 bytes!", "wte.weight": b"second", "ln_f.bias": b"third of them"}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin, places = 0, {}
    for name, data in numbers.items():
        places[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [begin, begin + len(data)]}
        begin += len(data)
    text = json.dumps(header | {name: places[name] for name in reversed(places)}).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(numbers.values()), numbers


def check_tensor_bytes(answer: Callable[[bytes, str], bytes]) -> None:
    """`tensor_bytes(file, name)`: the bytes of one tensor, cut out of the bytes of a safetensors file."""
    file, numbers = _three_tensors()
    (length,) = struct.unpack("<Q", file[:8])
    for name, right in numbers.items():
        given = answer(file, name)
        require_an_answer(given)
        header = json.loads(file[8 : 8 + length])
        begin, end = header[name]["data_offsets"]
        assert given != file[begin:end] or given == right, (
            "you count the offsets from the file's first byte: they count from the end of the header"
        )
        assert given != file[8 + begin : 8 + end], (
            "you skip the 8 bytes of the length and not the header: the numbers begin behind both"
        )
        assert given != file[length + begin : length + end], (
            "the numbers begin at 8 + length: the 8 bytes of the length are not part of the header"
        )
        assert given != file[8 + length + begin : 8 + length + begin + end] or given == right, (
            "the second offset is where the tensor ends, not how long it is"
        )
        assert bytes(given) == right, f"{name}: expected {right!r}, and you have {bytes(given)!r}"
    print("tensor_bytes: right")


def check_to_ours(answer: Callable[[str, Tensor], Placed]) -> None:
    """`to_ours(name, tensor)`: our name and tensor for one of a published GPT-2; None for a mask."""
    square, wide, row = torch.arange(16.0).view(4, 4), torch.arange(48.0).view(4, 12), torch.arange(4.0)
    require_an_answer(answer("h.0.attn.c_attn.weight", wide))
    for name, tensor, turned in [
        ("h.0.attn.c_attn.weight", wide, True),
        ("h.0.attn.c_proj.weight", square, True),
        ("h.0.mlp.c_fc.weight", wide, True),
        ("h.1.mlp.c_proj.weight", wide.T.contiguous(), True),
        ("wte.weight", wide, False),
        ("wpe.weight", wide, False),
        ("h.0.attn.c_proj.bias", row, False),
        ("h.0.attn.c_attn.bias", row, False),
        ("transformer.ln_f.weight", row, False),
        ("transformer.h.0.attn.c_proj.weight", square, True),
    ]:
        given = answer(name, tensor)
        assert given is not None, f"{name} is a weight, and you leave it out: masks end in .attn.bias"
        ours, value = given
        assert not ours.startswith("transformer.transformer."), f"{name} has its prefix already: add it where it lacks"
        assert ours == "transformer." + name.removeprefix("transformer."), (
            f"{name} is called transformer.{name.removeprefix('transformer.')} here, and you call it {ours}"
        )
        if not turned:
            assert torch.equal(value, tensor), f"{name} is an embedding, a bias or a norm: those are not turned"
            continue
        assert value.shape == tensor.T.shape, f"{name} must be turned: theirs is (in, out), nn.Linear's (out, in)"
        if tensor.shape[0] == tensor.shape[1]:
            assert not torch.equal(value, tensor), f"{name} is square: its shape tells nothing, and it is turned too"
        assert torch.equal(value, tensor.T), f"{name}: to turn is .T; a view or reshape mixes the numbers"
    for name in ("h.0.attn.bias", "transformer.h.11.attn.bias", "h.3.attn.masked_bias"):
        assert answer(name, torch.ones(1, 1, 4, 4)) is None, f"{name} is a mask, not a weight: return None"
    print("to_ours: right")


def check_split_heads(answer: Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor]]) -> None:
    """`split_heads(qkv, n_head)`: queries, keys and values, each (batch, n_head, tokens, head_dim)."""
    batch, tokens, d, heads = 2, 5, 12, 3
    qkv = torch.arange(batch * tokens * 3 * d).view(batch, tokens, 3 * d)
    given = answer(qkv, heads)
    require_an_answer(given)
    size = (batch, heads, tokens, d // heads)
    assert len(given) == 3, f"three tensors are asked for, and you return {len(given)}"
    for part, name in zip(given, ("queries", "keys", "values"), strict=True):
        assert part.shape != (batch, tokens, heads, d // heads), (
            f"the {name} are {tuple(part.shape)}: heads come before tokens, so transpose(1, 2) is missing"
        )
        assert part.shape == size, f"the {name} are {tuple(part.shape)}, not {size}"
    right = [part.view(batch, tokens, heads, d // heads).transpose(1, 2) for part in qkv.chunk(3, dim=-1)]
    mixed = qkv.view(batch, tokens, heads, 3, d // heads)
    assert not torch.equal(given[0], mixed[:, :, :, 0].transpose(1, 2)), (
        "you read head by head, q k v of each: GPT-2 keeps all queries first, then all keys, then all values"
    )
    assert not torch.equal(given[0], qkv.chunk(3, dim=-1)[0].reshape(size)), (
        "a view straight to (batch, n_head, tokens, head_dim) gives a head other tokens' numbers: "
        "view as (batch, tokens, n_head, head_dim), then transpose"
    )
    dealt = qkv.view(batch, tokens, 3, d // heads, heads).permute(2, 0, 4, 1, 3)
    assert not torch.equal(given[0], dealt[0]), (
        "you deal the numbers out to the heads in turn: a head's numbers stand side by side"
    )
    for place, (part, expected) in enumerate(zip(given, right, strict=True)):
        others = [i for i in range(3) if i != place and torch.equal(part, right[i])]
        assert not others, "the three are in another order: queries, then keys, then values"
        assert torch.equal(part, expected), f"part {place} of queries, keys, values has other numbers than expected"
    print("split_heads: right")


def check_weight_bytes(answer: Callable[[int, int, int, int, int], int]) -> None:
    """`weight_bytes(vocab_size, context_length, n_layer, d_model, b)`: of a GPT-2's weights, b bytes a number."""
    require_an_answer(answer(50257, 1024, 12, 768, 4))
    cases = [(50257, 1024, 12, 768, 4), (100, 8, 2, 4, 2), (300, 64, 3, 16, 1)]
    given = [answer(*case) for case in cases]

    def right(v: int, t: int, n: int, d: int, b: int) -> int:
        return b * (v * d + t * d + n * (12 * d * d + 13 * d) + 2 * d)

    def all_are(change: Callable[[int, int, int, int, int], int]) -> bool:
        return given == [right(*case) + change(*case) for case in cases]

    assert not all_are(lambda v, t, n, d, b: b * v * d), (
        "the output matrix is the embedding: one tensor with two names is kept once"
    )
    assert not all_are(lambda v, t, n, d, b: -b * t * d), "the table of positions is missing: context_length rows"
    assert not all_are(lambda v, t, n, d, b: -b * n * 9 * d), "each of a block's four matrices has a bias: 9 d in all"
    assert not all_are(lambda v, t, n, d, b: -b * (4 * n * d + 2 * d)), (
        "the norms are missing: a weight and a bias each, two in a block and one at the end"
    )
    assert not all_are(lambda v, t, n, d, b: -b * 2 * d), "the last norm is missing: 2 d numbers after the blocks"
    assert not all_are(lambda v, t, n, d, b: b * n * t * t), "the masks are no weights: nothing is learned in them"
    assert given != [right(*case) // case[-1] for case in cases], "that is how many numbers: each takes b bytes"
    assert given != [8 * right(*case) for case in cases], "that is bits: b is bytes already"
    for case, value in zip(cases, given, strict=True):
        assert value == right(*case), f"weight_bytes{case} is {right(*case):,}, and you have {value:,}"
    print("weight_bytes: right")


def check_is_announced(answer: Callable[[bytes, str], bool]) -> None:
    """`is_announced(data, checksum)`: 64 digits are the SHA-256 of the file, 40 are git's name for it."""
    data = b'{"n_layer": 12}'
    large = hashlib.sha256(data).hexdigest()
    small = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    bare = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    require_an_answer(answer(data, large))
    assert answer(data, large), "64 digits are the SHA-256 of the bytes, and you say that they do not match"
    flipped = bytes([data[0] ^ 1]) + data[1:]
    assert not answer(flipped, large), "one bit has been flipped, and you say that the file is as announced"
    assert not answer(flipped, small), "one bit has been flipped, and you say that the file is as announced"
    assert not answer(data, bare), "git does not hash the bare file: b'blob <length>\\0' goes in front"
    assert answer(data, small), "40 digits are git's: the SHA-1 of b'blob <length>\\0' and the file, length in decimal"
    same_start = large[:8] + small[8:] + large[40:]
    assert not answer(data, same_start), "the first digits are not enough: compare all of them"
    for short in ("", large[:12]):
        assert answer(data, short) is False, "a checksum of another length is none: return False, do not trust the file"
    print("is_announced: right")
