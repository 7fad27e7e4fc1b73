"""The GPT body against `transformers`' GPT-2, and against what must be true of any such model."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from gpt_model import GPT, GPTConfig
from gpt_model.gpt import make_norm
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


# Each change to GPT-2 alone, and all of them.
CHANGES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "rope": {"positions": "rope"},
    "rmsnorm": {"norm": "rmsnorm"},
    "relu2": {"activation": "relu2"},
    "no bias": {"bias": False},
    "qk_norm": {"qk_norm": True},
    "softcap": {"logit_softcap": 0.5},  # low, so that it bends
    "values": {"value_embeddings": True},
    "untied": {"tie_embeddings": False},
}
CHANGES["all"] = {field: value for change in CHANGES.values() for field, value in change.items()}


def by_the_formula(model, ids):
    """The logits of one text, ids (tokens,), a head and a query at a time, from the weights alone."""
    c, w = model.config, dict(model.named_parameters())

    def linear(x, name):
        y = x @ w[f"{name}.weight"].T
        return y + w[f"{name}.bias"] if c.bias else y

    def norm(x, name):
        if c.norm == "layernorm":
            x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + c.layer_norm_epsilon).sqrt() * w[f"{name}.weight"]
        return x + w[f"{name}.bias"] if c.norm == "layernorm" and c.bias else x

    def turned(x, position):
        if c.positions == "learned":
            return x
        half = len(x) // 2
        angles = position * c.rope_base ** (-torch.arange(half, dtype=x.dtype) / half)
        points = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([points.real, points.imag])

    def unit(x):
        return x / (x.square().mean() + 1e-6).sqrt() if c.qk_norm else x

    x = w["transformer.wte.weight"][ids]
    if c.positions == "learned":
        x = x + w["transformer.wpe.weight"][: len(ids)]
    for layer in range(c.n_layer):
        block = f"transformer.h.{layer}"
        q, k, v = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").split(c.d_model, dim=1)
        if c.value_embeddings and layer % 2 == 1:
            v = v + w[f"transformer.value_embeddings.{layer}.weight"][ids]
        rows = []
        for i in range(len(ids)):
            heads = []
            for h in range(c.n_head):
                own = slice(h * c.d_model // c.n_head, (h + 1) * c.d_model // c.n_head)
                query = turned(unit(q[i, own]), i)
                scores = [query @ turned(unit(k[j, own]), j) / math.sqrt(len(query)) for j in range(i + 1)]
                heads.append(torch.stack(scores).softmax(0) @ v[: i + 1, own])
            rows.append(torch.cat(heads))
        x = x + linear(torch.stack(rows), f"{block}.attn.c_proj")
        y = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        y = y.clamp(min=0) ** 2 if c.activation == "relu2" else F.gelu(y, approximate="tanh")
        x = x + linear(y, f"{block}.mlp.c_proj")
    logits = norm(x, "transformer.ln_f") @ w["transformer.wte.weight" if c.tie_embeddings else "lm_head.weight"].T
    return logits if c.logit_softcap is None else c.logit_softcap * torch.tanh(logits / c.logit_softcap)


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_alone_and_all_equal_the_formula_with_gradients(change):
    model = tiny_gpt(config=replace(TINY, **CHANGES[change])).double()
    ids = torch.randint(0, 61, (9,))
    ours, expected = model(ids[None])[0], by_the_formula(model, ids)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)  # rotary angles are in float32
    direction = torch.randn_like(ours)
    parameters = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(ours, parameters, direction),
        torch.autograd.grad(expected, parameters, direction),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_the_root_mean_square_norm_is_transformers():
    ours, theirs = make_norm(replace(TINY, norm="rmsnorm")), LlamaRMSNorm(32, eps=TINY.layer_norm_epsilon)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight.normal_())
    a, b = (x.requires_grad_() for x in torch.randn(3, 32).mul(5).expand(2, -1, -1).clone())
    torch.testing.assert_close(ours(a), theirs(b))
    ours(a).square().sum().backward()
    theirs(b).square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


@pytest.mark.parametrize("change", ["gpt2", "all"])
def test_with_zero_projections_blocks_change_nothing_at_first_and_all_of_them_learn(change):
    torch.manual_seed(0)
    model = GPT(replace(TINY, **CHANGES[change] | {"zero_projections": True, "positions": "rope"}))
    ids = torch.randint(0, 61, (2, 24))
    body = model.transformer
    torch.testing.assert_close(model.hidden_states(ids), body.ln_f(body.wte(ids)))
    if change == "all":  # with an output matrix of its own, which starts at zero too
        assert not model(ids).any()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(4):  # the output, then what is before it, and so on inwards
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert not any(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_no_logit_is_beyond_the_cap_and_small_ones_stay():
    model = tiny_gpt(config=replace(TINY, logit_softcap=2.0))
    hidden = torch.randn(5, 32)
    free = model.lm_head(hidden)
    assert (model.logits_of(1000 * hidden).abs() <= 2).all()
    torch.testing.assert_close(model.logits_of(hidden / 1000), free / 1000, atol=1e-9, rtol=1e-4)


def test_embeddings_of_values_and_the_output_matrix_stand_outside_of_the_blocks():
    names = {name for name, _ in tiny_gpt(config=replace(TINY, **CHANGES["all"])).named_parameters()}
    new = names - {name for name, _ in tiny_gpt().named_parameters()}
    assert new == {"transformer.value_embeddings.1.weight", "lm_head.weight"}  # of three blocks, number 1 alone


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("change", ["gpt2", "all"])
def test_the_body_compiles_whole_with_its_gradient(change, packed):
    model = tiny_gpt(config=replace(TINY, **CHANGES[change]))
    ids = torch.randint(0, 61, (2, 24))
    documents = torch.arange(24).div(7, rounding_mode="floor").expand(2, -1) if packed else None
    torch._dynamo.reset()
    compiled = torch.compile(model.hidden_states, backend="aot_eager", fullgraph=True)
    ours, expected = compiled(ids, documents=documents), model.hidden_states(ids, documents=documents)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    parameters = list(model.transformer.parameters())
    for one, other in zip(
        torch.autograd.grad(ours.sin().sum(), parameters),
        torch.autograd.grad(expected.sin().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


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
