"""Sliding-window attention against whole masks, transformers' Mistral, and its promises about memory."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from transformers import MistralConfig
from transformers.masking_utils import create_sliding_window_causal_mask
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralRotaryEmbedding

from attention_mechanisms import (
    GroupedQueryAttention,
    KVCache,
    LayerCaches,
    MultiHeadAttention,
    RollingCache,
    Rotary,
    SlidingWindowAttention,
)
from attention_mechanisms.attend import plain_attention
from attention_mechanisms.masks import visible
from attention_mechanisms.sliding_window import flex_banded
from tests.attention_mechanisms.helpers import LargestTensor, assert_same_attention, copy_llama, randomise


@pytest.mark.parametrize("window", [9, 10, 1000, None])
def test_a_window_as_long_as_the_text_is_multi_head_attention(window):
    ours = SlidingWindowAttention(16, 4, window, rotary=Rotary(4, 32))
    theirs = MultiHeadAttention(16, 4, rotary=Rotary(4, 32))
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 9, 16)
    assert torch.equal(ours(x), theirs(x))
    a, b = ours.make_cache(2, 9), theirs.make_cache(2, 9)
    assert a.nbytes == b.nbytes
    for part in x.split([4, 1, 3, 1], dim=1):
        torch.testing.assert_close(ours(part, a), theirs(part, b))


@pytest.mark.parametrize(("window", "n_kv_head"), [(1, 4), (4, 2), (7, 1), (40, 2)])
def test_outputs_and_gradients_equal_transformers_mistral(window, n_kv_head):
    torch.manual_seed(0)
    config = MistralConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=n_kv_head,
        max_position_embeddings=64,
        sliding_window=window,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    config._attn_implementation = "eager"
    theirs = MistralAttention(config, 0)
    ours = SlidingWindowAttention(32, 4, window, n_kv_head=n_kv_head, bias=False, rotary=Rotary(8, 64))
    copy_llama(theirs, ours)
    x = torch.randn(2, 21, 32)
    hidden: Any = create_sliding_window_causal_mask(config, x, None, past_key_values=None)
    assert (hidden[0, 0] == 0).sum(1).tolist() == [min(i + 1, window) for i in range(21)]
    positions = MistralRotaryEmbedding(config)(x, torch.arange(21)[None])
    assert_same_attention(theirs, ours, x, positions, hidden)


@pytest.mark.parametrize("n_sink", [0, 3, 20])
@pytest.mark.parametrize("window", [1, 5, 256, 300])
@pytest.mark.parametrize("tokens", [2, 255, 257, 700])
def test_blocks_equal_the_whole_mask_forward_and_backward(tokens, window, n_sink):
    torch.manual_seed(tokens)
    attention = SlidingWindowAttention(16, 4, window, n_sink, n_kv_head=2, rotary=Rotary(4, 700))
    x = torch.randn(1, tokens, 16)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    weights = torch.randn_like(x)
    y, (expected, _) = attention(a), attention.reference(b)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    parameters = list(attention.parameters())
    ours = torch.autograd.grad(y, [a, *parameters], weights)
    theirs = torch.autograd.grad(expected, [b, *parameters], weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_sink", [0, 3])
@pytest.mark.parametrize("window", [1, 5, 300])
@pytest.mark.parametrize("chunks", [[600, 1, 1, 98], [1, 1, 298, 400], [255, 257, 1, 187]])
def test_chunks_across_blocks_equal_the_whole_mask_in_ragged_rows(window, n_sink, chunks):
    torch.manual_seed(1)
    attention = SlidingWindowAttention(16, 4, window, n_sink, n_kv_head=2, rotary=Rotary(4, 700)).eval()
    x = torch.randn(3, 700, 16)
    padding = torch.tensor([0, 2, 270])
    cache = attention.make_cache(3, 700, padding)
    with torch.no_grad():
        y = torch.cat([attention(part, cache) for part in x.split(chunks, dim=1)], dim=1)
        for row, first in enumerate(padding.tolist()):
            expected, _ = attention.reference(x[row : row + 1, first:])
            torch.testing.assert_close(y[row : row + 1, first:], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_sink", [0, 2])
def test_the_cache_is_of_the_window_and_stays_so(n_sink):
    attention = SlidingWindowAttention(16, 4, 5, n_sink, n_kv_head=2).eval()
    one_token = 2 * 3 * 2 * 4 * 4  # keys and values, rows, heads, numbers, bytes
    for max_length in (30, 3000):
        cache = attention.make_cache(3, max_length)
        assert cache.nbytes == (5 + n_sink) * one_token
    for n_new in (1, 3, 1, 20, 1, 1):
        attention(torch.randn(3, n_new, 16), cache)
        assert cache.nbytes == (5 + n_sink) * one_token
        assert sum(buffer.untyped_storage().nbytes() for buffer in cache.buffers) == cache.nbytes
    assert cache.length == 27


def test_the_ring_knows_where_its_keys_stand():
    cache = RollingCache(1, 1, 100, 1, window=4, n_sink=2)
    numbers = torch.arange(30.0).view(1, 1, 30, 1)
    start = 0
    for n_new in (1, 1, 3, 1, 2, 9, 1, 1, 1, 1, 1, 4, 1):
        new = numbers[:, :, start : start + n_new]
        keys, values = cache.append(new, 100 + new)
        start += n_new
        positions = cache.ring_positions()
        if n_new > 1:  # several are given back in order, behind as many as one of them may need
            positions = torch.arange(start - (keys.shape[2] - 2), start)
        assert torch.equal(keys[0, 0, 2:, 0], positions.float())
        assert torch.equal(values, keys + 100) or start < 2  # a sink that is not there yet is zero
        assert set(range(max(start - n_new - 3, 0), start)) == set(positions.tolist()) or n_new == 1
        assert set(range(max(start - 4, 0), start)) <= set(positions.tolist())
        if start >= 2:
            assert keys[0, 0, :2, 0].tolist() == [0, 1]


def filled(window: int, n_tokens: int, n_sink: int = 0) -> RollingCache:
    cache = RollingCache(1, 1, 100, 2, window=window, n_sink=n_sink)
    for _ in range(n_tokens):
        cache.append(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    return cache


def test_truncating_is_allowed_while_everything_is_in_the_window():
    for length in range(5):
        cache = filled(4, 4)
        cache.truncate(length)
        assert cache.length == length


def test_truncating_is_refused_once_tokens_have_left_the_window():
    cache = filled(4, 9)
    for length in range(1, 8):
        with pytest.raises(ValueError, match=rf"cannot truncate to {length} tokens: of 9, this cache keeps the last 4"):
            cache.truncate(length)
        assert cache.length == 9
    for length in (-1, 10):
        with pytest.raises(ValueError, match="cannot truncate"):
            cache.truncate(length)
    cache.truncate(9)
    cache.truncate(8)  # the last token alone: what it overwrote is beyond the window of the next one too
    assert cache.length == 8
    filled(4, 9).truncate(0)


@pytest.mark.parametrize(("n_tokens", "steps"), [(5, [4, 3]), (5, [4, 1]), (9, [8, 7]), (9, [8, 7, 6])])
def test_truncating_step_by_step_is_refused_where_one_long_step_would_be(n_tokens, steps):
    cache = filled(4, n_tokens)
    cache.truncate(steps[0])
    with pytest.raises(ValueError, match="cannot truncate"):
        for length in steps[1:]:
            cache.truncate(length)


@pytest.mark.parametrize("n_sink", [0, 2])
def test_no_row_of_truncations_changes_what_is_read_next(n_sink):
    torch.manual_seed(2)
    attention = SlidingWindowAttention(16, 4, 4, n_sink).eval()
    x = torch.randn(1, 20, 16)
    for length in range(1, 9):
        for n_back in range(1, length):
            cache = attention.make_cache(1, 20)
            attention(x[:, :length], cache)
            try:
                for back in range(1, n_back + 1):
                    cache.truncate(length - back)
            except ValueError:
                continue
            y = attention(x[:, 10:12], cache)
            expected = attention(torch.cat([x[:, : length - n_back], x[:, 10:12]], 1))[:, -2:]
            torch.testing.assert_close(y, expected, msg=lambda m: f"{length} tokens, {n_back} back: {m}")  # noqa: B023


def test_all_layers_are_truncated_or_none():
    whole = KVCache(1, 1, 100, 2)
    whole.append(torch.ones(1, 1, 9, 2), torch.ones(1, 1, 9, 2))
    layers = LayerCaches([whole, filled(4, 9), filled(20, 9)])
    with pytest.raises(ValueError, match="reset it and read the text again"):
        layers.truncate(5)
    assert [layer.length for layer in layers.layers] == [9, 9, 9]
    layers.truncate(8)
    assert [layer.length for layer in layers.layers] == [8, 8, 8]
    layers.reset()
    assert [layer.length for layer in layers.layers] == [0, 0, 0]


@pytest.mark.parametrize("n_sink", [0, 4])
def test_nothing_of_the_size_of_all_scores_is_ever_allocated(n_sink):
    tokens, window = 2048, 64
    attention = SlidingWindowAttention(32, 2, window, n_sink, rotary=Rotary(16, tokens))
    x = torch.randn(1, tokens, 32, requires_grad=True)
    with LargestTensor() as seen:
        attention(x).sum().backward()
    assert seen.numel < tokens * tokens / 16
    cache = attention.make_cache(1, tokens)
    with torch.no_grad(), LargestTensor() as seen:
        attention(x, cache)
    assert seen.numel < tokens * tokens / 16
    with torch.no_grad(), LargestTensor() as seen:  # and this would be seen
        attention.reference(x)
    assert seen.numel >= tokens * tokens


@pytest.mark.parametrize(("window", "n_sink"), [(0, 0), (-1, 0), (3, -1)])
def test_windows_that_see_nothing_are_refused(window, n_sink):
    with pytest.raises(ValueError, match="must be at least"):
        SlidingWindowAttention(16, 4, window, n_sink)


def test_dropout_acts_in_training_only():
    torch.manual_seed(3)
    attention = SlidingWindowAttention(16, 2, 3, 1, dropout=0.5)
    x = torch.randn(1, 8, 16)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


def test_a_layer_without_window_is_grouped_query_attention_with_its_cache():
    ours = SlidingWindowAttention(16, 4, None, n_sink=2, n_kv_head=2)
    theirs = GroupedQueryAttention(16, 4, 2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 9, 16)
    assert torch.equal(ours(x), theirs(x))
    assert isinstance(ours.make_cache(1, 5), KVCache)
    assert ours.cost(50) == theirs.cost(50)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_the_compiled_band_equals_the_whole_mask():
    torch.manual_seed(4)
    n_sink = 3
    q, k, v = torch.randn(1, 4, 300, 16), torch.randn(1, 2, 300, 16), torch.randn(1, 2, 300, 16)
    with torch.no_grad():
        y = flex_banded(q, k, v, 40, n_sink)
    expected, _ = plain_attention(q, k, v, visible(torch.arange(300), torch.arange(300), 40, n_sink))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
