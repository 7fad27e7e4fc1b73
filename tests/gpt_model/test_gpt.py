"""The GPT body against `transformers`' GPT-2, and against what must be true of any such model."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_model import GPT, GPTConfig
from gpt_model.pretrained import to_huggingface

TINY = GPTConfig(vocab_size=61, context_length=24, n_layer=3, n_head=4, d_model=32)


def tiny_gpt(seed=0, config=TINY):
    torch.manual_seed(seed)
    model = GPT(config)
    with torch.no_grad():  # biases and norms start as zeros and ones, which would hide a mistake in them
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def as_transformers(model):
    """`transformers`' GPT-2 with the weights of ours."""
    c = model.config
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=c.vocab_size,
            n_positions=c.context_length,
            n_layer=c.n_layer,
            n_head=c.n_head,
            n_embd=c.d_model,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        )
    )
    missing, unexpected = theirs.load_state_dict(to_huggingface(model), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    return theirs


def test_logits_loss_and_gradients_equal_transformers():
    ours = tiny_gpt()
    theirs = as_transformers(ours)
    ids = torch.randint(0, 61, (2, 24))
    logits, expected = ours(ids), theirs(ids, labels=ids)
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=1e-5)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(loss, expected.loss, atol=1e-6, rtol=1e-6)
    loss.backward()
    expected.loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        theirs_is_transposed = gradients[name].shape != parameter.shape or name.endswith(
            ("c_attn.weight", "c_proj.weight", "c_fc.weight")
        )
        expected_gradient = gradients[name].T if theirs_is_transposed else gradients[name]
        torch.testing.assert_close(parameter.grad, expected_gradient, atol=1e-6, rtol=1e-4)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=6).filter(lambda chunks: sum(chunks) <= 24))
def test_any_chunking_through_the_cache_equals_one_pass(chunks):
    model = tiny_gpt().eval()
    ids = torch.randint(0, 61, (3, sum(chunks)))
    cache = model.make_cache(3)
    parts = [model(part, cache) for part in ids.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), atol=1e-5, rtol=1e-5)
    assert cache.length == sum(chunks)


def test_a_truncated_cache_continues_as_if_the_rest_had_not_been():
    model = tiny_gpt().eval()
    shared, one, other = torch.randint(0, 61, (1, 6)), torch.randint(0, 61, (1, 5)), torch.randint(0, 61, (1, 4))
    cache = model.make_cache(1)
    model(torch.cat([shared, one], dim=1), cache)
    cache.truncate(6)
    expected = model(torch.cat([shared, other], dim=1))[:, 6:]
    torch.testing.assert_close(model(other, cache), expected, atol=1e-5, rtol=1e-5)


def test_the_cache_holds_what_the_formula_says():
    cache = tiny_gpt().make_cache(2, 10)
    assert cache.nbytes == 3 * 2 * (2 * 10 * 32) * 4  # layers · (K, V) · (batch · tokens · d_model) · float32


def test_the_initial_loss_is_that_of_guessing():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=1000, context_length=64, n_layer=4, n_head=4, d_model=64))
    ids = torch.randint(0, 1000, (4, 65))
    loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss.item() - math.log(1000)) < 0.1


def test_one_batch_can_be_learned_by_heart():
    model = tiny_gpt()
    ids = torch.randint(0, 61, (4, 25))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_parameters_are_counted_as_by_hand():
    d, block = 768, 12 * 768**2 + 13 * 768  # attention 4d² + 4d, mlp 8d² + 5d, two norms 4d
    expected = 50257 * d + 1024 * d + 12 * block + 2 * d
    with torch.device("meta"):
        assert GPT(GPTConfig()).n_parameters == expected == 124_439_808


def test_residual_projections_start_smaller():
    config = GPTConfig(vocab_size=64, context_length=8, n_layer=8, n_head=2, d_model=256)
    torch.manual_seed(0)
    block = GPT(config).transformer.blocks[0]
    assert block.mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)  # √(2 · 8) = 4
    assert block.attn.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": 5}, "not divisible by n_head=5"),
        ({"n_layer": 0}, "n_layer must be at least 1"),
        ({"dropout": 1.0}, "dropout must be"),
    ],
)
def test_bad_configs_fail_at_construction(change, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**{"n_head": 4, "d_model": 32} | change)


def test_a_text_beyond_the_context_is_refused():
    with pytest.raises(ValueError, match="25 tokens are more than the model's context of 24"):
        tiny_gpt()(torch.zeros(1, 25, dtype=torch.long))
