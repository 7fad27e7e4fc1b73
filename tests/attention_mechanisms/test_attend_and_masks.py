"""The attention formula against PyTorch's, masks against loops, rotary positions against transformers'."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.bias import CausalBias
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from attention_mechanisms import Rotary
from attention_mechanisms.attend import fast_attention, mask_behind_cache, plain_attention, rms_normalised
from attention_mechanisms.masks import causal_mask, document_mask, visible, windowed
from attention_mechanisms.rotary import rotation_table


def make_qkv(group: int, tokens: int, keys: int, d: int = 6, d_value: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(group * 100 + tokens * 10 + keys)
    q = torch.randn(2, 4, tokens, d, requires_grad=True)
    k = torch.randn(2, 4 // group, keys, d, requires_grad=True)
    return q, k, torch.randn(2, 4 // group, keys, d_value, requires_grad=True)


def assert_equal_with_gradients(ours: Tensor, theirs: Tensor, inputs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, weights), torch.autograd.grad(theirs, inputs, weights), strict=True
    ):
        torch.testing.assert_close(a, b)


SHAPES = [(1, 1), (1, 6), (4, 4), (3, 7), (6, 7)]


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize(("tokens", "keys"), SHAPES)
@pytest.mark.parametrize("group", [1, 2, 4])
def test_causal_attention_of_groups_equals_torch_s_with_keys_repeated(group, tokens, keys, scale):
    q, k, v = make_qkv(group, tokens, keys)
    mask = torch.tensor([[j <= keys - tokens + i for j in range(keys)] for i in range(tokens)])
    k_all, v_all = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    expected = F.scaled_dot_product_attention(q, k_all, v_all, mask, scale=scale)
    assert_equal_with_gradients(fast_attention(q, k, v, causal=True, scale=scale), expected, (q, k, v))
    expected = F.scaled_dot_product_attention(q, k_all, v_all, mask, scale=scale)
    assert_equal_with_gradients(plain_attention(q, k, v, mask, scale=scale)[0], expected, (q, k, v))


@pytest.mark.parametrize("d_value", [6, 4])
@pytest.mark.parametrize(("tokens", "keys"), SHAPES)
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("rows", [1, 2])
def test_attention_of_groups_with_any_mask_equals_torch_s_with_keys_repeated(group, tokens, keys, d_value, rows):
    q, k, v = make_qkv(group, tokens, keys, d_value=d_value)
    mask = torch.rand(rows, 1, tokens, keys) < 0.5
    mask[..., 0] = True
    k_all, v_all = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    for ours in (fast_attention(q, k, v, mask), plain_attention(q, k, v, mask)[0]):
        expected = F.scaled_dot_product_attention(q, k_all, v_all, mask)
        assert_equal_with_gradients(ours, expected, (q, k, v))


def test_the_weights_sum_to_one_and_are_zero_where_masked():
    q, k, v = make_qkv(2, 3, 5)
    mask = causal_mask(3, 5)
    y, weights = plain_attention(q, k, v, mask)
    torch.testing.assert_close(weights.sum(3), torch.ones(2, 4, 3))
    assert (weights[..., ~mask] == 0).all()
    torch.testing.assert_close(y, weights @ v.repeat_interleave(2, 1))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_mask_behind_a_cache_says_the_same_by_its_name(device):
    mask = mask_behind_cache(3, 8, torch.device(device))
    assert isinstance(mask, CausalBias) == (device == "cuda")
    q, k, v = (torch.randn(1, 2, tokens, 4) for tokens in (3, 8, 8))
    expected = plain_attention(q, k, v, causal_mask(3, 8))[0]
    torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v, mask), expected)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_keeps_half_precision_even_over_a_cache_that_is_not(dtype, tokens):
    q, k, v = make_qkv(2, tokens, 5)
    expected = plain_attention(q, k, v, causal_mask(tokens, 5))[0]
    halves = q.to(dtype), k.to(dtype), v.to(dtype)
    for y in (
        fast_attention(*halves, causal=True),
        fast_attention(halves[0], k, v, causal=True),
        plain_attention(*halves, causal_mask(tokens, 5))[0],
    ):
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("tokens", [1, 3])
def test_dropout_of_weights_leaves_the_mean_as_it_is(tokens):
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, tokens, 6), torch.randn(1, 2, 5, 6), torch.randn(1, 2, 5, 6)
    mask = causal_mask(tokens, 5)
    q_many, k_many, v_many = (x.expand(4000, -1, -1, -1) for x in (q, k, v))
    expected = plain_attention(q, k, v, mask)[0]
    for y in (
        fast_attention(q_many, k_many, v_many, causal=True, dropout=0.3),
        plain_attention(q_many, k_many, v_many, mask, 0.3)[0],
    ):
        assert not torch.allclose(y[0], expected[0])
        torch.testing.assert_close(y.mean(0, keepdim=True), expected, rtol=0, atol=0.06)


@settings(max_examples=60)
@given(st.data())
def test_visible_equals_a_loop_over_positions(data):
    queries = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=5))
    keys = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=8, unique=True))
    window = data.draw(st.none() | st.integers(1, 14))
    n_sink = data.draw(st.integers(0, 4))
    padding = data.draw(st.none() | st.lists(st.integers(0, 6), min_size=1, max_size=3))
    mask = visible(
        torch.tensor(queries), torch.tensor(keys), window, n_sink, None if padding is None else torch.tensor(padding)
    )
    assert mask.shape == (len(padding or [0]), 1, len(queries), len(keys))
    assert mask.dtype == torch.bool
    for row, first in enumerate(padding or [0]):
        for i, query in enumerate(queries):
            for j, key in enumerate(keys):
                seen = first <= key <= query
                if window is not None and key <= query - window and key >= first + n_sink:
                    seen = False
                assert mask[row, 0, i, j] == (seen or (key == query and padding is not None))


def test_visible_without_window_and_padding_is_the_causal_mask():
    torch.testing.assert_close(visible(torch.arange(3, 7), torch.arange(7))[0, 0], causal_mask(4, 7))


documents = st.lists(st.lists(st.integers(0, 2), min_size=9, max_size=9), min_size=1, max_size=3)


@given(documents)
def test_a_token_sees_those_before_it_of_its_document(rows):
    mask = document_mask(torch.tensor(rows))
    assert mask.shape == (len(rows), 1, 9, 9)
    for b, row in enumerate(rows):
        for i in range(9):
            assert mask[b, 0, i].tolist() == [j <= i and row[j] == row[i] for j in range(9)]


@given(documents, st.integers(1, 10), st.integers(0, 3))
def test_a_window_within_a_mask_equals_a_loop_over_what_each_query_sees(rows, window, n_sink):
    rows = [sorted(row) for row in rows]  # documents one behind the other
    mask = windowed(document_mask(torch.tensor(rows)), window, n_sink)
    for b, row in enumerate(rows):
        for i in range(9):
            own = [j for j in range(i + 1) if row[j] == row[i]]
            assert mask[b, 0, i].nonzero().flatten().tolist() == sorted({*own[-window:], *own[:n_sink]})


def test_normalised_queries_have_one_length_and_no_score_is_above_it():
    x = 100 * torch.randn(2, 3, 5, 16)
    q, k = rms_normalised(x), rms_normalised(torch.randn(2, 3, 5, 16))
    torch.testing.assert_close(q, 4 * x / x.norm(dim=-1, keepdim=True))  # √16
    assert (q @ k.mT / 4).abs().max() <= 4.001
    assert rms_normalised(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert rms_normalised(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
def test_rotary_equals_transformers_llama(base):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        num_attention_heads=2,
        max_position_embeddings=600,
        rope_parameters={"rope_type": "default", "rope_theta": base},
    )
    q, k = torch.randn(2, 2, 550, 16), torch.randn(2, 1, 550, 16)
    for start in (0, 50):
        cos, sin = LlamaRotaryEmbedding(config)(q, torch.arange(start, start + 550)[None])
        theirs = apply_rotary_pos_emb(q, k, cos, sin)
        rotary = Rotary(16, 600, base)
        # theirs makes its angles in float32, ours in float64: 600 radians have an error of 3e-5 there
        torch.testing.assert_close((rotary(q, start), rotary(k, start)), theirs, rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(rotary(q[:, :, :9], 0), theirs_at_start(config, q[:, :, :9]), rtol=1e-5, atol=1e-5)


def theirs_at_start(config: LlamaConfig, q: Tensor) -> Tensor:
    cos, sin = LlamaRotaryEmbedding(config)(q, torch.arange(q.shape[2])[None])
    return apply_rotary_pos_emb(q, q, cos, sin)[0]


def test_rotary_equals_a_multiplication_of_complex_numbers():
    torch.manual_seed(1)
    x = torch.randn(3, 5, 8)
    points = torch.complex(x[..., :4].double(), x[..., 4:].double())
    angles = torch.arange(7, 12).double()[:, None] * torch.tensor([100.0 ** (-2 * i / 8) for i in range(4)]).double()
    turned = points * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat([turned.real, turned.imag], dim=2).float()
    torch.testing.assert_close(Rotary(8, 20, 100.0)(x, 7), expected)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 20))
def test_scores_depend_on_the_distance_only(p, other, distance):
    torch.manual_seed(2)
    rotary = Rotary(8, 64)
    q, k = torch.randn(1, 8), torch.randn(1, 8)
    score = (rotary(q, p + distance) * rotary(k, p)).sum()
    torch.testing.assert_close(score, (rotary(q, other + distance) * rotary(k, other)).sum(), rtol=1e-4, atol=1e-5)
    if distance == 0:
        torch.testing.assert_close(score, (q * k).sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", [-2, 0, 1, 7])
def test_rotary_refuses_numbers_that_make_no_pairs(dim):
    with pytest.raises(ValueError, match="pairs"):
        Rotary(dim, 10)


def test_rotary_refuses_positions_beyond_the_context():
    rotary = Rotary(4, 10)
    assert rotary(torch.ones(3, 4), 7).shape == (3, 4)
    with pytest.raises(ValueError, match="11 tokens are more than the model's context of 10"):
        rotary(torch.ones(3, 4), 8)


def test_tables_made_while_generating_serve_training():
    rotation_table.cache_clear()
    rotary = Rotary(4, 10)
    with torch.inference_mode():
        rotary(torch.ones(3, 4), 0)
    x = torch.randn(3, 4, requires_grad=True)
    y = rotary(x, 2)
    y.square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x)  # a rotation leaves lengths as they are
    assert rotation_table.cache_info().currsize == 1


def test_a_compiled_model_does_not_make_the_table_anew():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph.code)
        return graph.forward

    rotary, x = Rotary(4, 10), torch.randn(3, 4)
    y = torch.compile(lambda x: rotary(x, 2), backend=backend)(x)
    torch.testing.assert_close(y, rotary(x, 2))
    assert len(graphs) == 1
    assert "cos(" not in graphs[0]
    assert "float64" not in graphs[0]  # in which the angles are computed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotary_keeps_half_precision_and_does_not_round_its_angles(dtype):
    torch.manual_seed(3)
    x = torch.randn(2, 3, 8).to(dtype)
    rotary = Rotary(8, 5000)
    y = rotary(x, 4900)
    assert y.dtype == dtype
    assert torch.equal(y, rotary(x.float(), 4900).to(dtype))
