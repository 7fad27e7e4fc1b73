"""Grouped-query attention against multi-head attention and transformers' Llama, and what it writes to memory."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RotaryEmbedding

from attention_mechanisms import GroupedQueryAttention, MultiHeadAttention, Rotary
from tests.attention_mechanisms.helpers import (
    LargestTensor,
    assert_same_attention,
    copy_llama,
    largest_allocation,
    randomise,
)


@pytest.mark.parametrize("rotary", [None, Rotary(4, 32)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_as_many_heads_of_keys_as_of_queries_are_multi_head_attention(rotary, bias, qk_norm):
    ours = GroupedQueryAttention(16, 4, 4, bias=bias, rotary=rotary, qk_norm=qk_norm)
    theirs = MultiHeadAttention(16, 4, bias=bias, rotary=rotary, qk_norm=qk_norm)
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())  # the same names too
    x = torch.randn(2, 9, 16)
    assert torch.equal(ours(x), theirs(x))
    a, b = ours.make_cache(2, 9), theirs.make_cache(2, 9)
    assert a.nbytes == b.nbytes
    for part in x.split([4, 1, 3, 1], dim=1):
        assert torch.equal(ours(part, a), theirs(part, b))


@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
def test_outputs_and_gradients_equal_transformers_llama(n_kv_head):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=n_kv_head,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    config._attn_implementation = "eager"
    theirs = LlamaAttention(config, 0)
    ours = GroupedQueryAttention(32, 4, n_kv_head, bias=False, rotary=Rotary(8, 64))
    copy_llama(theirs, ours)
    x = torch.randn(2, 11, 32)
    positions = LlamaRotaryEmbedding(config)(x, torch.arange(11)[None])
    hidden = torch.full((11, 11), -torch.inf).triu(1)[None, None]
    assert_same_attention(theirs, ours, x, positions, hidden)


@pytest.mark.parametrize("n_kv_head", [1, 4])
def test_outputs_and_gradients_with_normalised_queries_and_keys_equal_transformers_qwen3(n_kv_head):
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=n_kv_head,
        head_dim=8,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    config._attn_implementation = "eager"
    theirs = Qwen3Attention(config, 0)  # its norms have weights, which start at one and stay so here
    ours = GroupedQueryAttention(32, 4, n_kv_head, bias=False, rotary=Rotary(8, 64), qk_norm=True)
    copy_llama(theirs, ours)
    x = torch.randn(2, 11, 32)
    positions = Qwen3RotaryEmbedding(config)(x, torch.arange(11)[None])
    hidden = torch.full((11, 11), -torch.inf).triu(1)[None, None]
    assert_same_attention(theirs, ours, x, positions, hidden)


@pytest.mark.parametrize(
    ("d_model", "n_head", "n_kv_head"), [(10, 3, 1), (16, 4, 3), (16, 4, 8), (16, 4, 0), (16, 0, 1)]
)
def test_heads_that_do_not_divide_are_refused(d_model, n_head, n_kv_head):
    with pytest.raises(ValueError, match=r"divi"):
        GroupedQueryAttention(d_model, n_head, n_kv_head)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("n_new", [1, 2])
def test_no_repeated_key_is_written_to_memory(n_new, padded):
    n_head, n_kv_head, keys, head_dim = 8, 1, 2048, 16
    attention = GroupedQueryAttention(n_head * head_dim, n_head, n_kv_head).eval()
    repeated = n_head * keys * head_dim
    x = torch.randn(1, keys, n_head * head_dim)
    cache = attention.make_cache(1, keys, torch.tensor([3]) if padded else None)
    with torch.inference_mode():
        attention(x[:, :-n_new], cache)
        if (
            n_new == 1 or padded
        ):  # torch's CausalBias, the mask of several without padding, allows no such mode around it
            with LargestTensor() as seen:
                attention(x[:, -n_new:], cache)
            assert seen.numel < repeated / 2
            cache.truncate(keys - n_new)
        allocated = largest_allocation(lambda: attention(x[:, -n_new:], cache))
        with LargestTensor() as repeats:  # and this would be seen
            cache.keys.repeat_interleave(n_head, dim=1)
        assert repeats.numel == repeated
        assert largest_allocation(lambda: cache.keys.repeat_interleave(n_head, dim=1)) == repeated * 4
    assert allocated < repeated * 4 / 2


def test_half_precision_is_kept_through_the_cache():
    attention = GroupedQueryAttention(32, 4, 2, rotary=Rotary(8, 16))
    x = torch.randn(2, 9, 32)
    expected = attention(x)
    attention = attention.to(torch.bfloat16)
    cache = attention.make_cache(2, 9)
    assert cache.keys.dtype == torch.bfloat16
    parts = [attention(part.bfloat16(), cache) for part in x.split([5, 1, 3], dim=1)]
    assert parts[0].dtype == torch.bfloat16
    torch.testing.assert_close(torch.cat(parts, 1).float(), expected, rtol=0.05, atol=0.05)
