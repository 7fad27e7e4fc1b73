"""The checks of notebook 02 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import pytest
import torch

from attention_mechanisms.exercises import ex02
from attention_mechanisms.masks import causal_mask
from tests.conftest import refuses


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda b, t, n, h, d, size: b * t * n * h * d * size, "a key and a value"),
        (lambda b, t, n, h, d, size: 2 * b * t * n * h * d * size * 8, "not a bit"),
        (lambda b, t, n, h, d, size: 2 * b * t * n * h * h * d * size, "the heads are counted twice"),
        (lambda b, t, n, h, d, size: 2 * t * n * h * d * size, "batch_size is missing"),
        (lambda b, t, n, h, d, size: 2 * b * t * h * d * size, "n_layer is missing"),
        (lambda b, t, n, h, d, size: 2 * b * t * n * h * d, "bytes_per_number is missing"),
        (lambda b, t, n, h, d, size: 2 * b * t * n * d * size, "n_kv_head is missing"),
        (lambda b, t, n, h, d, size: 2 * b * t**2 * n * h * d * size, "and you have"),
    ],
)
def test_cache_bytes(wrong, message):
    ex02.check_cache_bytes(lambda b, t, n, h, d, size: 2 * b * t * n * h * d * size)
    refuses(ex02.check_cache_bytes, wrong, message)


def read_plainly(prompt, n_new):
    return n_new * prompt + n_new * (n_new - 1) // 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p, n: (p + n - 1, read_plainly(p, n)), "swapped"),
        (lambda p, n: (read_plainly(p + 1, n), p + n - 1), "about to write"),
        (lambda p, n: (n * p, p + n - 1), "one token more than the one before"),
        (lambda p, n: (sum(range(1, p + n)), p + n - 1), "the prompt is read in one pass"),
        (lambda p, n: (read_plainly(p, n), p + n), "never read: one less"),
        (lambda p, n: (read_plainly(p, n), n), "the prompt is read too, once"),
        (lambda p, n: (read_plainly(p, n), n - 1), "the prompt is read too, once"),
        (lambda p, n: (read_plainly(p, n), p * n), "with a cache 7, and you have 15"),
        (lambda p, n: ((p + n) ** 2, p + n - 1), "without a cache 18, and you have 64"),
        (lambda p, n: read_plainly(p, n) + p + n - 1, "return two numbers"),
    ],
)
def test_tokens_read(wrong, message):
    ex02.check_tokens_read(lambda p, n: (read_plainly(p, n), p + n - 1))
    refuses(ex02.check_tokens_read, wrong, message)


def all_true(*shape):
    return torch.ones(*shape, dtype=torch.bool)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda n_cached, n_new: all_true(n_new, n_cached + n_new).tril(), "top left corner"),
        (lambda n_cached, n_new: all_true(n_new, n_cached + n_new), "each other's future"),
        (lambda n_cached, n_new: ~causal_mask(n_new, n_cached + n_new), "other way round"),
        (lambda n_cached, n_new: all_true(n_new, n_cached + n_new).tril(n_cached - 1), "a token sees itself"),
        (lambda n_cached, n_new: all_true(n_new, n_new).tril(), "a row a new token and a column a key"),
        (lambda n_cached, n_new: causal_mask(n_new, n_cached + n_new).int(), "torch.bool"),
        (lambda n_cached, n_new: causal_mask(n_new, n_cached + n_new).tolist(), "a tensor is wanted"),
        (
            lambda n_cached, n_new: torch.cat([~all_true(n_new, n_cached), all_true(n_new, n_new).tril()], dim=1),
            "sees all tokens in the cache",
        ),
        (lambda n_cached, n_new: causal_mask(n_new, n_cached + n_new).flip(0), "expected"),
    ],
)
def test_chunk_mask(wrong, message):
    ex02.check_chunk_mask(lambda n_cached, n_new: causal_mask(n_new, n_cached + n_new))
    refuses(ex02.check_chunk_mask, wrong, message)


def append(buffer, length, new):
    end = length + new.shape[2]
    if end > buffer.shape[2]:
        raise ValueError("too many")
    buffer[:, :, length:end] = new
    return buffer[:, :, :end]


def append_at_the_beginning(buffer, length, new):
    buffer[:, :, : new.shape[2]] = new
    return buffer[:, :, : length + new.shape[2]]


def append_and_return_all(buffer, length, new):
    append(buffer, length, new)
    return buffer


def append_and_return_new(buffer, length, new):
    return append(buffer, length, new)[:, :, length:]


def append_backwards(buffer, length, new):
    return append(buffer, length, new.flip(2))


def append_what_fits(buffer, length, new):
    return append(buffer, length, new[:, :, : buffer.shape[2] - length])


def append_before_checking(buffer, length, new):
    end = length + new.shape[2]
    buffer[:, :, length:end] = new[:, :, : buffer.shape[2] - length]
    if end > buffer.shape[2]:
        raise ValueError("too many")
    return buffer[:, :, :end]


def append_without_checking(buffer, length, new):
    end = length + new.shape[2]
    buffer[:, :, length:end] = new
    return buffer[:, :, :end]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda buffer, length, new: torch.cat([buffer[:, :, :length], new], dim=2), "torch.cat makes another tensor"),
        (append_at_the_beginning, "old tokens are overwritten"),
        (append_and_return_all, "whole buffer"),
        (append_and_return_new, "return the old tokens too"),
        (lambda buffer, length, new: append(buffer, length, new).clone(), "you return a copy"),
        (append_backwards, "in their order"),
        (append_what_fits, "do not drop any"),
        (append_before_checking, "check before you write"),
        (append_without_checking, "raise ValueError, not RuntimeError"),
    ],
)
def test_append(wrong, message):
    ex02.check_append(append)
    refuses(ex02.check_append, wrong, message)


def common_prefix(old, new):
    return next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (common_prefix, "leaves nothing to read"),
        (
            lambda old, new: min(sum(a == b for a, b in zip(old, new, strict=False)), len(new) - 1),
            "nothing may be kept",
        ),
        (lambda old, new: min(len(set(old) & set(new)), len(new) - 1), "place by place"),
        (lambda old, new: len(old), "not everything in the cache"),
        (lambda old, new: 0, "more could be kept: 3, and you keep 0"),
        (lambda old, new: max(common_prefix(old, new) - 1, 0), "more could be kept"),
        (lambda old, new: new[: common_prefix(old, new)], "a length is wanted"),
    ],
)
def test_keep(wrong, message):
    ex02.check_keep(lambda old, new: min(common_prefix(old, new), len(new) - 1))
    refuses(ex02.check_keep, wrong, message)
