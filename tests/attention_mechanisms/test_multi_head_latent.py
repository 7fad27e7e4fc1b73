"""Multi-head latent attention against itself absorbed and expanded, and against transformers' DeepSeek-V2."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import DeepseekV2Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention, DeepseekV2RotaryEmbedding

from attention_mechanisms import MultiHeadLatentAttention, Rotary
from attention_mechanisms.attend import plain_attention
from attention_mechanisms.masks import causal_mask
from tests.attention_mechanisms.helpers import LargestTensor, randomise


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("d_query_latent", [None, 10])
@pytest.mark.parametrize("rotary", [None, Rotary(4, 64)])
def test_decoding_absorbed_equals_training_expanded(dtype, tolerance, d_query_latent, rotary):
    torch.manual_seed(0)
    attention = MultiHeadLatentAttention(32, 4, 12, d_query_latent, rotary=rotary)
    randomise(attention)
    attention = attention.to(dtype).eval()
    x = torch.randn(2, 20, 32, dtype=dtype)
    expected = attention(x)
    cache = attention.make_cache(2, 20)
    assert cache.latents.dtype == dtype
    parts = [attention(part, cache) for part in x.split([7] + [1] * 6 + [3, 4], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=tolerance, atol=tolerance)
    # the plain formula takes its softmax in float32, whatever comes in
    torch.testing.assert_close(attention.reference(x)[0], expected, rtol=1e-4, atol=1e-5)


def test_absorbed_queries_give_the_scores_and_values_of_the_keys_made_for_them():
    torch.manual_seed(1)
    attention = MultiHeadLatentAttention(32, 4, 12, rotary=Rotary(4, 64)).double()
    randomise(attention)
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    q, latents = attention.queries(x), attention.latents(x)
    k, v = attention.expanded(latents)
    mask = causal_mask(9, 9)
    y, weights = plain_attention(q, k, v, mask, scale=attention.scale)
    q_absorbed, k_absorbed, v_absorbed = attention.absorbed(q, latents)
    z, weights_absorbed = plain_attention(q_absorbed, k_absorbed, v_absorbed, mask, scale=attention.scale)
    torch.testing.assert_close(q_absorbed @ k_absorbed.transpose(2, 3), q @ k.transpose(2, 3), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights_absorbed, weights, rtol=1e-6, atol=1e-7)  # softmax is in float32
    up = attention.v_up.weight.view(4, 8, 12)
    z = torch.einsum("bhtl,hdl->bhtd", z[..., :12], up)
    torch.testing.assert_close(z, y, rtol=1e-5, atol=1e-6)


def test_decoding_makes_no_keys_of_single_heads():
    n_head, keys = 16, 1024
    attention = MultiHeadLatentAttention(128, n_head, 16, rotary=Rotary(4, keys)).eval()
    x = torch.randn(1, keys, 128)
    cache = attention.make_cache(1, keys)
    with torch.inference_mode():
        attention(x[:, :-1], cache)
        with LargestTensor() as seen:
            attention(x[:, -1:], cache)
    assert seen.numel < keys * 128 / 4


@pytest.mark.parametrize("q_lora_rank", [None, 20])
def test_outputs_and_gradients_equal_transformers_deepseek(q_lora_rank):
    torch.manual_seed(2)
    config = DeepseekV2Config(
        hidden_size=32,
        num_attention_heads=4,
        kv_lora_rank=12,
        q_lora_rank=q_lora_rank,
        qk_nope_head_dim=8,
        qk_rope_head_dim=6,
        v_head_dim=8,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    config._attn_implementation = "eager"
    theirs: Any = DeepseekV2Attention(config, 0)
    randomise(theirs)
    ours: Any = MultiHeadLatentAttention(32, 4, 12, q_lora_rank, bias=False, rotary=Rotary(6, 64))
    pairs = torch.tensor([0, 2, 4, 1, 3, 5])  # theirs turns neighbours together, ours numbers half a vector apart
    query_rows = torch.cat([head * 14 + torch.cat([torch.arange(8), 8 + pairs]) for head in range(4)])
    kv_rows = torch.cat([torch.arange(12), 12 + pairs])
    keys_and_values = theirs.kv_b_proj.weight.view(4, 16, 12)
    with torch.no_grad():
        if q_lora_rank is None:
            query_up = theirs.q_proj
        else:
            ours.q_down.weight.copy_(theirs.q_a_proj.weight)
            ours.q_norm.weight.copy_(theirs.q_a_layernorm.weight)
            query_up = theirs.q_b_proj
        ours.q_up.weight.copy_(query_up.weight[query_rows])
        ours.kv_down.weight.copy_(theirs.kv_a_proj_with_mqa.weight[kv_rows])
        ours.kv_norm.weight.copy_(theirs.kv_a_layernorm.weight)
        ours.k_up.weight.copy_(keys_and_values[:, :8].reshape(32, 12))
        ours.v_up.weight.copy_(keys_and_values[:, 8:].reshape(32, 12))
        ours.c_proj.weight.copy_(theirs.o_proj.weight)
    x = torch.randn(2, 13, 32)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    positions = DeepseekV2RotaryEmbedding(config)(x, torch.arange(13)[None])
    hidden = torch.full((13, 13), -torch.inf).triu(1)[None, None]
    y_theirs, weights_theirs = theirs(b, hidden, None, positions)
    torch.testing.assert_close(ours(a), y_theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.reference(a)[1], weights_theirs, rtol=1e-5, atol=1e-5)
    cache = ours.make_cache(2, 13)
    with torch.no_grad():
        parts = [ours(part, cache) for part in x.split([4] + [1] * 9, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), y_theirs, rtol=1e-5, atol=1e-5)

    ours(a).sin().sum().backward()
    y_theirs.sin().sum().backward()
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(a.grad, b.grad, **close)
    torch.testing.assert_close(ours.q_up.weight.grad, query_up.weight.grad[query_rows], **close)
    torch.testing.assert_close(ours.kv_down.weight.grad, theirs.kv_a_proj_with_mqa.weight.grad[kv_rows], **close)
    torch.testing.assert_close(ours.kv_norm.weight.grad, theirs.kv_a_layernorm.weight.grad, **close)
    grad = theirs.kv_b_proj.weight.grad.view(4, 16, 12)
    torch.testing.assert_close(ours.k_up.weight.grad, grad[:, :8].reshape(32, 12), **close)
    torch.testing.assert_close(ours.v_up.weight.grad, grad[:, 8:].reshape(32, 12), **close)
    torch.testing.assert_close(ours.c_proj.weight.grad, theirs.o_proj.weight.grad, **close)


@pytest.mark.parametrize(("rotary", "width"), [(None, 12), (Rotary(4, 64), 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_holds_a_latent_and_one_rotary_key_a_token(rotary, width, dtype):
    attention = MultiHeadLatentAttention(32, 4, 12, rotary=rotary).to(dtype)
    cache = attention.make_cache(3, 50)
    assert cache.nbytes == 3 * 50 * width * dtype.itemsize
    attention(torch.randn(3, 5, 32, dtype=dtype), cache)
    attention(torch.randn(3, 1, 32, dtype=dtype), cache)
    assert cache.nbytes == 3 * 50 * width * dtype.itemsize
    assert (cache.latents[:, :6] != 0).any(2).all()
    assert (cache.latents[:, 6:] == 0).all()


@pytest.mark.parametrize(
    ("n_head", "d_latent", "d_query_latent"),
    [(4, 0, None), (4, 33, None), (4, 8, 0), (4, 8, 33), (3, 8, None), (0, 8, 8)],
)
def test_latents_and_heads_that_make_no_sense_are_refused(n_head, d_latent, d_query_latent):
    with pytest.raises(ValueError, match=r"must be from 1 to d_model=32|not divisible"):
        MultiHeadLatentAttention(32, n_head, d_latent, d_query_latent)


def test_without_norm_it_is_multi_head_attention_of_low_rank():
    torch.manual_seed(3)
    attention = MultiHeadLatentAttention(32, 4, 12, 10, latent_norm=False).double().eval()
    randomise(attention)
    assert not any("norm" in name for name, _ in attention.named_parameters())
    assert isinstance(attention.q_down, nn.Linear)
    x = torch.randn(2, 7, 32, dtype=torch.float64)
    w_q = attention.q_up.weight @ attention.q_down.weight
    w_k, w_v = attention.k_up.weight @ attention.kv_down.weight, attention.v_up.weight @ attention.kv_down.weight
    classic = nn.MultiheadAttention(32, 4, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        assert classic.in_proj_weight is not None
        classic.in_proj_weight.copy_(torch.cat([w_q, w_k, w_v]))
        classic.in_proj_bias.zero_()[:32].copy_(attention.q_up.bias)
        classic.out_proj.load_state_dict(attention.c_proj.state_dict())
    hidden = torch.ones(7, 7, dtype=torch.bool).triu(1)
    expected, _ = classic(x, x, x, attn_mask=hidden, need_weights=False)
    torch.testing.assert_close(attention(x), expected, rtol=1e-12, atol=1e-12)
    cache = attention.make_cache(2, 7)
    parts = [attention(part, cache) for part in x.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-5, atol=1e-6)
