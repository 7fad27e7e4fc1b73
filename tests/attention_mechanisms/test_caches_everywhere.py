"""What must hold of every attention module: its cache, its plain formula and its costs."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_mechanisms import (
    GroupedQueryAttention,
    LayerCaches,
    MultiHeadAttention,
    MultiHeadLatentAttention,
    Rotary,
    SlidingWindowAttention,
    pad_left,
)
from attention_mechanisms.cost import count_flops
from attention_mechanisms.masks import document_mask
from tests.attention_mechanisms.helpers import randomise

WINDOW, N_SINK = 4, 2
VARIANTS = ["mha", "mha_qk_norm", "gqa", "gqa_qk_norm", "mla", "mla_query", "swa", "swa_qk_norm", "swa_sinks"]
every_variant = pytest.mark.parametrize("variant", VARIANTS)
with_and_without_rope = pytest.mark.parametrize("rope", [False, True], ids=["no_rope", "rope"])
chunk_lists = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def make(variant: str, rope: bool, bias: bool = True, d_model: int = 16, n_head: int = 4) -> Any:
    rotary = Rotary(d_model // n_head, 64) if rope else None
    shared: dict[str, Any] = {"bias": bias, "rotary": rotary, "qk_norm": variant.endswith("qk_norm")}
    attention: torch.nn.Module
    if variant.startswith("mha"):
        attention = MultiHeadAttention(d_model, n_head, **shared)
    elif variant.startswith("gqa"):
        attention = GroupedQueryAttention(d_model, n_head, n_head // 2, **shared)
    elif variant.startswith("mla"):
        rotary = Rotary(2, 64) if rope else None
        d_query_latent = 6 if variant == "mla_query" else None
        attention = MultiHeadLatentAttention(d_model, n_head, d_model // 2, d_query_latent, bias=bias, rotary=rotary)
    else:
        n_sink = N_SINK if variant == "swa_sinks" else 0
        attention = SlidingWindowAttention(d_model, n_head, WINDOW, n_sink, n_head // 2, **shared)
    randomise(attention)
    return attention.eval()


def in_chunks(attention: Any, x: Tensor, chunks: list[int], cache: Any) -> Tensor:
    with torch.no_grad():
        return torch.cat([attention(part, cache) for part in x.split(chunks, dim=1)], dim=1)


def assert_near(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@every_variant
@with_and_without_rope
@settings(max_examples=12)
@given(chunks=chunk_lists, bias=st.booleans(), spare=st.integers(0, 3))
def test_any_chunking_through_the_cache_equals_one_pass(variant, rope, chunks, bias, spare):
    attention = make(variant, rope, bias)
    torch.manual_seed(sum(chunks))
    x = torch.randn(2, sum(chunks), 16)
    cache = attention.make_cache(2, sum(chunks) + spare)
    y = in_chunks(attention, x, chunks, cache)
    assert_near(y, attention(x))
    assert_near(y, attention.reference(x)[0])
    assert cache.length == sum(chunks)


@every_variant
@with_and_without_rope
@settings(max_examples=12)
@given(data=st.data(), bias=st.booleans())
def test_ragged_rows_equal_each_row_alone_in_any_chunking(variant, rope, data, bias):
    attention = make(variant, rope, bias)
    torch.manual_seed(0)
    words = torch.randn(10, 16)
    words[0] = 50.0  # what stands in the padding must not matter
    rows = data.draw(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=9), min_size=1, max_size=3))
    ids, padding = pad_left(rows)
    n_more = data.draw(st.integers(0, 7))
    ids = torch.cat([ids, torch.randint(1, 10, (len(rows), n_more))], dim=1)
    chunks: list[int] = []
    while sum(chunks) < ids.shape[1]:
        chunks.append(data.draw(st.integers(1, ids.shape[1] - sum(chunks))))
    y = in_chunks(attention, words[ids], chunks, attention.make_cache(len(rows), ids.shape[1], padding))
    assert y.isfinite().all()
    for i, first in enumerate(padding.tolist()):
        alone = words[ids[i : i + 1, first:]]
        assert_near(y[i : i + 1, first:], attention(alone))


@every_variant
@with_and_without_rope
def test_ragged_rows_equal_each_row_alone_in_a_prompt_and_single_steps(variant, rope):
    attention = make(variant, rope)
    torch.manual_seed(1)
    padding = torch.tensor([0, 7, 3])
    x = torch.randn(3, 20, 16)
    y = in_chunks(attention, x, [8] + [1] * 12, attention.make_cache(3, 20, padding))
    for i, first in enumerate(padding.tolist()):
        assert_near(y[i : i + 1, first:], attention(x[i : i + 1, first:]))


def test_rows_are_aligned_at_their_ends():
    ids, padding = pad_left([[1, 2, 3], [4], [5, 6]], pad_id=9)
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4], [9, 5, 6]]
    assert padding.tolist() == [0, 2, 1]
    for rows in ([], [[1], []]):
        with pytest.raises(ValueError, match="at least one"):
            pad_left(rows)


@every_variant
@with_and_without_rope
@settings(max_examples=15)
@given(data=st.data())
def test_truncating_and_going_on_equals_never_having_had_the_rest(variant, rope, data):
    attention = make(variant, rope)
    torch.manual_seed(2)
    before = data.draw(chunk_lists)
    after = data.draw(chunk_lists)
    length = sum(before)
    kept = data.draw(st.integers(0, length))
    padding = torch.tensor([0, 1]) if data.draw(st.booleans()) and kept else None
    first, then = torch.randn(2, length, 16), torch.randn(2, sum(after), 16)
    cache = attention.make_cache(2, length + sum(after), padding)
    in_chunks(attention, first, before, cache)
    layers = LayerCaches([cache], padding)
    if variant.startswith("swa") and length > WINDOW and kept not in (0, length - 1, length):
        with pytest.raises(ValueError, match="cannot truncate"):
            layers.truncate(kept)
        assert layers.length == length
        return
    layers.truncate(kept)
    assert layers.length == kept
    y = in_chunks(attention, then, after, cache)
    fresh = attention.make_cache(2, length + sum(after), padding)
    whole = torch.cat([first[:, :kept], then], dim=1)
    assert_near(y, in_chunks(attention, whole, [whole.shape[1]], fresh)[:, kept:])


@every_variant
@with_and_without_rope
def test_a_reset_cache_is_as_good_as_a_new_one(variant, rope):
    attention = make(variant, rope)
    torch.manual_seed(3)
    cache = attention.make_cache(2, 12)
    in_chunks(attention, torch.randn(2, 12, 16), [5, 1, 6], cache)
    cache.reset()
    assert cache.length == 0
    x = torch.randn(2, 10, 16)
    assert_near(in_chunks(attention, x, [1, 3, 1, 5], cache), attention(x))


@every_variant
def test_an_overfull_cache_is_refused_and_unharmed(variant):
    attention = make(variant, rope=True)
    torch.manual_seed(4)
    x = torch.randn(1, 8, 16)
    cache = attention.make_cache(1, 8)
    parts = [in_chunks(attention, x[:, :7], [4, 3], cache)]
    with pytest.raises(ValueError, match="the cache holds 8 tokens; 7 are in it and 2 came"):
        attention(x[:, :2], cache)
    assert cache.length == 7
    parts.append(in_chunks(attention, x[:, 7:], [1], cache))
    assert_near(torch.cat(parts, dim=1), attention(x))
    with pytest.raises(ValueError, match="the cache holds 8 tokens"):
        attention(x[:, :1], cache)
    with pytest.raises(ValueError, match="at least 1 token"):
        attention.make_cache(1, 0)


@every_variant
@with_and_without_rope
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 3, 11])
def test_outputs_and_gradients_equal_the_plain_formula(variant, rope, bias, tokens):
    attention = make(variant, rope, bias).train()
    torch.manual_seed(5)
    x = torch.randn(2, tokens, 16, requires_grad=True)
    y, (expected, weights) = attention(x), attention.reference(x)
    assert_near(y, expected)
    assert weights.shape == (2, 4, tokens, tokens)
    assert (weights.triu(1) == 0).all()
    torch.testing.assert_close(weights.sum(3), torch.ones(2, 4, tokens))
    inputs, direction = [x, *attention.parameters()], torch.randn_like(y)
    ours = torch.autograd.grad(y, inputs, direction)
    theirs = torch.autograd.grad(expected, inputs, direction)
    for one, other in zip(ours, theirs, strict=True):
        assert_near(one, other)


@pytest.mark.parametrize("variant", ["mha_qk_norm", "gqa", "swa", "swa_sinks"])
@settings(max_examples=12)
@given(chunks=chunk_lists)
def test_values_that_are_added_equal_another_bias_for_each_token_in_any_chunking(variant, chunks):
    attention = make(variant, rope=True)
    tokens, d_values = sum(chunks), attention.c_attn.out_features - 16 - (8 if variant != "mha_qk_norm" else 16)
    torch.manual_seed(tokens)
    x, values = torch.randn(2, tokens, 16), torch.randn(2, tokens, d_values)
    cache = attention.make_cache(2, tokens)
    with torch.no_grad():
        parts = zip(x.split(chunks, dim=1), values.split(chunks, dim=1), strict=True)
        y = torch.cat([attention(part, cache, values=added) for part, added in parts], dim=1)
        expected, weights = attention.reference(x, values=values)
        assert_near(y, expected)
        assert_near(attention(x, values=values), expected)
        added = values.unflatten(2, (-1, 4)).transpose(1, 2)  # (2, heads of values, tokens, 4)
        gathered = weights @ added.repeat_interleave(4 // added.shape[1], dim=1)  # (2, 4, tokens, 4)
        more = gathered.transpose(1, 2).flatten(2) @ attention.c_proj.weight.T  # (2, tokens, 16)
        assert_near(expected, attention.reference(x)[0] + more)


@every_variant
@settings(max_examples=8)
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_documents_of_a_packed_window_equal_each_alone_with_its_gradient(variant, lengths):
    attention = make(variant, rope=True).train()
    torch.manual_seed(sum(lengths))
    x = torch.randn(2, sum(lengths), 16, requires_grad=True)
    numbers = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = document_mask(numbers.expand(2, -1))
    y = attention(x, mask=mask)
    alone = torch.cat([attention(part) for part in x.split(lengths, dim=1)], dim=1)
    assert_near(y, alone)
    assert_near(attention.reference(x, mask)[0], alone)
    direction = torch.randn_like(y)
    assert_near(torch.autograd.grad(y, x, direction)[0], torch.autograd.grad(alone, x, direction)[0])


@every_variant
def test_a_mask_beside_a_cache_is_refused(variant):
    attention = make(variant, rope=True)
    mask = document_mask(torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="a mask is for whole windows, without a cache"):
        attention(torch.randn(1, 3, 16), attention.make_cache(1, 8), mask)


def test_nothing_can_be_added_to_values_that_come_from_latents():
    attention, x = make("mla", rope=True), torch.randn(1, 3, 16)
    for run in (attention, attention.reference):
        with pytest.raises(ValueError, match="values come from latents"):
            run(x, values=x)


@every_variant
@with_and_without_rope
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(16, 4), (48, 6), (24, 2)])
def test_the_number_of_parameters_is_as_the_formula_says(variant, rope, bias, shape):
    attention = make(variant, rope, bias, *shape)
    real = sum(weight.numel() for weight in attention.parameters())
    assert attention.cost(10).parameters == real


def operations_of_the_last_token(attention: Any, n_keys: int) -> int:
    cache = attention.make_cache(1, n_keys)
    with torch.no_grad():
        for _ in range(n_keys - 1):
            attention(torch.randn(1, 1, 16), cache)
        return count_flops(lambda: attention(torch.randn(1, 1, 16), cache))


@pytest.mark.parametrize(
    ("variant", "rope"),
    [(variant, rope) for variant in VARIANTS for rope in (False, True) if not (rope and variant.startswith("mla"))],
)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n_keys", [2, 5, 6, 20])
def test_the_operations_of_a_token_are_as_the_formula_says(variant, rope, bias, n_keys):
    if variant == "swa_sinks" and n_keys < WINDOW + N_SINK:
        pytest.skip("in a test of its own")
    attention = make(variant, rope, bias)
    assert attention.cost(n_keys).flops_per_token == operations_of_the_last_token(attention, n_keys)


@pytest.mark.parametrize("variant", ["mla", "mla_query"])
@pytest.mark.parametrize("n_keys", [2, 20])
def test_the_operations_of_a_token_with_rotary_keys_beside_latents_are_as_the_formula_says(variant, n_keys):
    attention = make(variant, rope=True)
    assert attention.cost(n_keys).flops_per_token == operations_of_the_last_token(attention, n_keys)


@pytest.mark.parametrize("n_keys", [2, 5])
def test_the_operations_of_a_token_are_as_the_formula_says_before_sinks_leave_the_window(n_keys):
    attention = make("swa_sinks", rope=True)
    assert attention.cost(n_keys).flops_per_token == operations_of_the_last_token(attention, n_keys)


@every_variant
@with_and_without_rope
@pytest.mark.parametrize("n_keys", [1, 3, 5, 6, 20])
def test_the_numbers_in_the_cache_are_as_the_formula_says(variant, rope, n_keys):
    if variant == "swa_sinks" and n_keys < WINDOW + N_SINK:
        pytest.skip("in a test of its own")
    attention = make(variant, rope)
    cost = attention.cost(n_keys)
    assert cost.cache_numbers * 4 == attention.make_cache(1, n_keys).nbytes
    assert cost.cache_bytes(4) * 3 == attention.make_cache(3, n_keys).nbytes
    half = attention.to(torch.bfloat16)
    assert half.cost(n_keys).cache_bytes() == half.make_cache(1, n_keys).nbytes


@pytest.mark.parametrize("n_keys", [1, 3, 5])
def test_the_numbers_in_the_cache_are_as_the_formula_says_for_texts_shorter_than_window_and_sinks(n_keys):
    attention = make("swa_sinks", rope=True)
    assert attention.cost(n_keys).cache_numbers * 4 == attention.make_cache(1, n_keys).nbytes


def test_caches_are_smaller_at_the_shape_of_the_small_model():
    with torch.device("meta"):  # no memory is needed to know how much would be
        whole = MultiHeadAttention(768, 12)
        grouped = GroupedQueryAttention(768, 12, 3)
        latent = MultiHeadLatentAttention(768, 12, 256, rotary=Rotary(32, 1024))
        window = SlidingWindowAttention(768, 12, 256)
    for n_keys in (300, 1024, 8192):
        nbytes = whole.make_cache(1, n_keys).nbytes
        assert nbytes == 2 * 768 * n_keys * 4 == whole.cost(n_keys).cache_bytes(4)
        assert nbytes == 4 * grouped.make_cache(1, n_keys).nbytes
        assert nbytes >= 5 * latent.make_cache(1, n_keys).nbytes
        assert nbytes * 288 == latent.cost(n_keys).cache_bytes(4) * 1536
        assert window.make_cache(1, n_keys).nbytes == 2 * 768 * 256 * 4 == window.cost(n_keys).cache_bytes(4)


@every_variant
@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (1, 4), (2, 1), (4, 3)])
def test_a_cache_for_other_texts_is_refused_and_stays_as_it_was(variant, rows, tokens):
    attention = make(variant, rope=False)
    cache = attention.make_cache(3, 20)
    attention(torch.randn(3, 4, 16), cache)
    before = [buffer.clone() for buffer in cache.buffers]
    with pytest.raises(ValueError, match=f"the cache was made for 3 texts.*what came is of {rows}"):
        attention(torch.randn(rows, tokens, 16), cache)
    assert cache.length == 4
    assert all(torch.equal(a, b) for a, b in zip(before, cache.buffers, strict=True))


@pytest.mark.parametrize("of", VARIANTS)
@pytest.mark.parametrize("given", VARIANTS)
def test_the_cache_of_another_attention_is_refused(of, given):
    attention, cache = make(of, rope=False), make(given, rope=False).make_cache(1, 20)
    same = {"mla_query": "mla"}
    of, given = (same.get(name, name.removesuffix("_qk_norm")) for name in (of, given))
    if of == given:
        attention(torch.randn(1, 2, 16), cache)
        return
    with pytest.raises(ValueError, match=r"make_cache of the same model|make a cache with the same model"):
        attention(torch.randn(1, 1, 16), cache)


@every_variant
@pytest.mark.parametrize(
    "padding",
    [
        torch.tensor([0, -1, 1]),
        torch.tensor([1]),
        torch.tensor([0, 1]),
        torch.tensor([0.0, 1.0, 2.0]),
        torch.tensor([[0], [1], [2]]),
        torch.tensor([0, 1, 20]),
        [0, 1, 2],
    ],
    ids=str,
)
def test_padding_that_is_none_is_refused(variant, padding):
    with pytest.raises(ValueError, match="padding must be"):
        make(variant, rope=False).make_cache(3, 20, padding)


@pytest.mark.parametrize("dim", [2, 16])
def test_rotary_positions_of_another_width_are_refused(dim):
    for attention in (partial(MultiHeadAttention, 16, 4), partial(GroupedQueryAttention, 16, 4, 2)):
        with pytest.raises(ValueError, match=f"rotary positions of {dim} numbers do not fit heads of 4"):
            attention(rotary=Rotary(dim, 64))
