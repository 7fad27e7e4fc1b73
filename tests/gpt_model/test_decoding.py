"""The compiled step and the static caches against the plain ones."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_mechanisms import StaticKVCache
from gpt_model import Sampling, generate
from gpt_model.decoding import decoding_cache, decoding_step, next_logits, next_logits_statically, static_caches
from gpt_model.weight_only import store_weights
from tests.gpt_model.test_variants import MAKERS, lively

needs_a_compiler = pytest.mark.skipif(
    os.name == "nt" or not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler on this machine"
)


@pytest.mark.parametrize("name", ["learned", "rope", "modern", "gqa", "gqa, learned", "gqa, modern"])
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3), steps=st.integers(1, 10))
@settings(max_examples=10, deadline=None)
def test_static_caches_give_the_same_logits(name, lengths, steps):
    model = lively(name)
    longest = max(lengths)
    padding = torch.tensor([longest - n for n in lengths]) if len(set(lengths)) > 1 else None
    ids = torch.randint(0, 61, (len(lengths), longest + steps))
    with torch.no_grad():
        plain, begun = (model.make_cache(len(lengths), 24, padding) for _ in range(2))
        model.next_logits(ids[:, :longest], plain), model.next_logits(ids[:, :longest], begun)
        static = static_caches(begun)
        assert all(isinstance(layer, StaticKVCache) for layer in static.layers)
        for i in range(longest, longest + steps):
            expected = next_logits(model, ids[:, i : i + 1], plain)
            ours = next_logits_statically(model, ids[:, i : i + 1], static)
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
        assert int(static.length) == plain.length


@pytest.mark.parametrize("name", ["mla", "swa"])
def test_other_caches_cannot_be_static(name):
    with pytest.raises(ValueError, match=r"needs a cache of keys and values, not a (Latent|Rolling)Cache"):
        static_caches(lively(name).make_cache(1))


def test_without_compiling_nothing_is_static():
    cache = lively("learned").make_cache(1)
    assert decoding_cache(cache, False) is cache
    assert decoding_cache(cache, True) is cache  # on a CPU the length may grow
    assert decoding_step(torch.device("cpu"), False) is next_logits


@needs_a_compiler
def test_a_compiled_step_writes_the_same_texts():
    model = store_weights(lively("rope"), "int8")
    s = Sampling(temperature=0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for prompt, n in (
        ([1, 2, 3], 30),
        ([4], 5),
        ([5, 6], 9),
        ([7, 8, 9, 10], 12),
    ):  # the first beyond the context of 24
        assert list(generate(model, prompt, n, s, compiled=True)) == list(generate(model, prompt, n, s))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4  # not one for each text


@needs_a_compiler
def test_a_static_step_is_compiled_once():
    model = lively("rope")
    static = static_caches(model.make_cache(1, 24))
    graphs = 0

    def counting(graph, _):
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch._dynamo.reset()
    step = torch.compile(next_logits_statically, fullgraph=True, backend=counting)
    with torch.no_grad():
        plain = model.make_cache(1, 24)
        for token in range(20):
            ids = torch.tensor([[token]])
            torch.testing.assert_close(step(model, ids, static), next_logits(model, ids, plain), atol=1e-5, rtol=1e-5)
    assert graphs == 1


@needs_a_compiler
@pytest.mark.parametrize("name", MAKERS)
def test_a_growing_text_is_compiled_for_few_lengths(name):
    graphs = 0

    def counting(graph, _):
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch._dynamo.reset()
    step = torch.compile(next_logits, fullgraph=True, backend=counting)
    model, padding = lively(name), torch.tensor([0, 1])
    caches = [model.make_cache(2, 24, padding) for _ in range(2)]
    with torch.no_grad():
        for cache in caches:
            model.next_logits(torch.ones(2, 3, dtype=torch.long), cache)
        for token in range(20):
            ids = torch.tensor([[token], [token + 1]])
            ours, expected = step(model, ids, caches[0]), next_logits(model, ids, caches[1])
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert graphs <= 3  # the first length, any length, and a window that is full
