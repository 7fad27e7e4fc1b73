"""Multi-head attention against PyTorch's own module and against itself in chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from attention_mechanisms import KVCache, LayerCaches, MultiHeadAttention
from attention_mechanisms.masks import causal_mask


def test_outputs_and_gradients_equal_torch_s_module():
    torch.manual_seed(0)
    ours = MultiHeadAttention(24, 4)
    theirs = nn.MultiheadAttention(24, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.c_attn.weight)
        theirs.in_proj_bias.copy_(ours.c_attn.bias.normal_())
        theirs.out_proj.weight.copy_(ours.c_proj.weight)
        theirs.out_proj.bias.copy_(ours.c_proj.bias.normal_())
    x = torch.randn(2, 7, 24)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    hidden = torch.ones(7, 7, dtype=torch.bool).triu(1)  # theirs: True where a query may not look
    y_ours, (y_theirs, _) = ours(a), theirs(b, b, b, attn_mask=hidden, need_weights=False)
    torch.testing.assert_close(y_ours, y_theirs)
    y_ours.square().sum().backward()
    y_theirs.square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(ours.c_attn.weight.grad, theirs.in_proj_weight.grad)


def test_the_mask_is_aligned_at_the_last_key():
    for n_query in range(1, 6):
        for n_key in range(n_query, 8):
            mask = causal_mask(n_query, n_key)
            for i in range(n_query):
                for j in range(n_key):
                    assert mask[i, j] == (j <= n_key - n_query + i)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.booleans())
def test_any_chunking_through_the_cache_equals_one_pass(chunks, bias):
    torch.manual_seed(1)
    attention = MultiHeadAttention(16, 2, bias=bias).eval()
    x = torch.randn(2, sum(chunks), 16)
    cache = attention.make_cache(2, sum(chunks))
    parts = [attention(part, cache) for part in x.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), attention(x))
    assert cache.length == sum(chunks)


def test_no_token_sees_a_later_one():
    attention = MultiHeadAttention(16, 4).eval()
    x = torch.randn(1, 6, 16)
    changed = x.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(attention(x)[:, :4], attention(changed)[:, :4])
    assert not torch.allclose(attention(x)[:, 4:], attention(changed)[:, 4:])


def test_dropout_acts_in_training_only():
    attention = MultiHeadAttention(16, 2, dropout=0.5)
    x = torch.randn(1, 5, 16)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


def test_the_cache_counts_forgets_and_refuses():
    cache = KVCache(2, 3, 8, 4)
    assert cache.nbytes == 2 * (2 * 3 * 8 * 4) * 4  # keys and values, float32
    ones = torch.ones(2, 3, 5, 4)
    keys, _ = cache.append(ones, ones)
    assert keys.shape == (2, 3, 5, 4)
    cache.truncate(2)
    keys, values = cache.append(2 * ones, 3 * ones)
    assert cache.length == 7
    assert keys[0, 0, :, 0].tolist() == [1, 1, 2, 2, 2, 2, 2]
    assert values[0, 0, -1, 0] == 3
    with pytest.raises(ValueError, match="holds 8 tokens"):
        cache.append(ones, ones)
    with pytest.raises(ValueError, match="cannot truncate"):
        cache.truncate(9)
    layers = LayerCaches([cache])
    layers.reset()
    assert (layers.length, layers.max_length, layers.nbytes) == (0, 8, cache.nbytes)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="not divisible"):
        MultiHeadAttention(10, 3)
