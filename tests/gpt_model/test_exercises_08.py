"""The checks of notebook 08 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import hashlib
import json
import struct

import pytest

from gpt_model.exercises import ex08
from tests.conftest import refuses


def reader(start=lambda length: 8 + length, end=lambda begin, last: last, cut=lambda data: data):
    """An answer with one part that may be wrong."""

    def tensor_bytes(file, name):
        (length,) = struct.unpack("<Q", file[:8])
        begin, last = json.loads(file[8 : 8 + length])[name]["data_offsets"]
        return cut(file[start(length) + begin : start(length) + end(begin, last)])

    return tensor_bytes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (reader(start=lambda length: 0), "from the file's first byte"),
        (reader(start=lambda length: 8), "not the header"),
        (reader(start=lambda length: length), "8 bytes of the length are not part"),
        (reader(end=lambda begin, last: begin + last), "not how long it is"),
        (reader(cut=lambda data: data[::-1]), "expected"),
    ],
)
def test_tensor_bytes(wrong, message):
    ex08.check_tensor_bytes(reader())
    refuses(ex08.check_tensor_bytes, wrong, message)


FOUR = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def translator(masks=(".attn.bias", ".attn.masked_bias"), turned=None, turn=lambda w: w.T, prefix=None):
    """An answer with one part that may be wrong."""
    turned = turned or (lambda name, w: name.endswith(FOUR))
    prefix = prefix or (lambda name: name if name.startswith("transformer.") else f"transformer.{name}")

    def to_ours(name, tensor):
        if name.endswith(masks):
            return None
        return prefix(name), turn(tensor) if turned(name, tensor) else tensor

    return to_ours


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (translator(turned=lambda name, w: False), r"theirs is \(in, out\)"),
        (translator(turned=lambda name, w: w.ndim == 2 and w.shape[0] != w.shape[1]), "is square: its shape"),
        (translator(turned=lambda name, w: w.ndim == 2), "those are not turned"),
        (translator(turn=lambda w: w.reshape(w.shape[1], w.shape[0])), "is square|mixes the numbers"),
        (translator(prefix=lambda name: name), "is called transformer"),
        (translator(prefix=lambda name: f"transformer.{name}"), "has its prefix already"),
        (translator(masks=".masked_bias"), "is a mask"),
        (translator(masks=".bias"), "masks end in .attn.bias"),
    ],
)
def test_to_ours(wrong, message):
    ex08.check_to_ours(translator())
    refuses(ex08.check_to_ours, wrong, message)


def split_right(qkv, n_head):
    batch, tokens, width = qkv.shape
    parts = qkv.view(batch, tokens, 3, n_head, width // 3 // n_head)
    return tuple(parts.permute(2, 0, 3, 1, 4))


def head_by_head(qkv, n_head):
    batch, tokens, width = qkv.shape
    return tuple(qkv.view(batch, tokens, n_head, 3, width // 3 // n_head).permute(3, 0, 2, 1, 4))


def straight(qkv, n_head):
    batch, tokens, width = qkv.shape
    return tuple(p.reshape(batch, n_head, tokens, width // 3 // n_head) for p in qkv.chunk(3, dim=-1))


def dealt(qkv, n_head):
    batch, tokens, width = qkv.shape
    return tuple(qkv.view(batch, tokens, 3, width // 3 // n_head, n_head).permute(2, 0, 4, 1, 3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (head_by_head, "all queries first"),
        (straight, "other tokens' numbers"),
        (dealt, "in turn"),
        (lambda qkv, n_head: split_right(qkv, n_head)[::-1], "in another order"),
        (lambda qkv, n_head: tuple(p.transpose(1, 2) for p in split_right(qkv, n_head)), "is missing"),
        (lambda qkv, n_head: split_right(qkv, n_head)[:2], "three tensors"),
        (lambda qkv, n_head: qkv.chunk(3, dim=-1), r"not \(2, 3, 5, 4\)"),
    ],
)
def test_split_heads(wrong, message):
    ex08.check_split_heads(split_right)
    refuses(ex08.check_split_heads, wrong, message)


def weighing(head=0, positions=1, biases=9, norms=4, last=2, masks=0, times=lambda b: b):
    """An answer with one part that may be wrong."""

    def weight_bytes(v, t, n, d, b):
        block = 12 * d * d + (biases + norms) * d + masks * t * t
        return times(b) * ((1 + head) * v * d + positions * t * d + n * block + last * d)

    return weight_bytes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (weighing(head=1), "kept once"),
        (weighing(positions=0), "table of positions"),
        (weighing(biases=0), "has a bias"),
        (weighing(norms=0, last=0), "the norms are missing"),
        (weighing(last=0), "the last norm"),
        (weighing(masks=1), "no weights"),
        (weighing(times=lambda b: 1), "how many numbers"),
        (weighing(times=lambda b: 8 * b), "that is bits"),
        (weighing(biases=4), "and you have"),
    ],
)
def test_weight_bytes(wrong, message):
    ex08.check_weight_bytes(weighing())
    refuses(ex08.check_weight_bytes, wrong, message)


def judge(git=lambda data: b"blob %d\0" % len(data) + data, digits=None, otherwise=False):
    """An answer with one part that may be wrong."""

    def is_announced(data, checksum):
        if len(checksum) not in (40, 64):
            return otherwise
        large = len(checksum) == 64
        made = hashlib.sha256(data).hexdigest() if large else hashlib.sha1(git(data)).hexdigest()
        return made[:digits] == checksum[:digits]

    return is_announced


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (judge(git=lambda data: data), "does not hash the bare file"),
        (judge(git=lambda data: b"blob %d" % len(data) + data), "40 digits are git's"),
        (judge(digits=8), "the first digits are not enough"),
        (judge(otherwise=True), "of another length"),
        (lambda data, checksum: True, "has been flipped"),
        (lambda data, checksum: False, "64 digits are the SHA-256"),
    ],
)
def test_is_announced(wrong, message):
    ex08.check_is_announced(judge())
    refuses(ex08.check_is_announced, wrong, message)
