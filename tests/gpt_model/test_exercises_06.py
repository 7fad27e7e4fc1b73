"""The checks of notebook 06 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gpt_model.exercises import ex06
from tests.conftest import refuses


def normalise(x, weight, bias, eps):
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / ((centred**2).mean(dim=-1, keepdim=True) + eps).sqrt() * weight + bias


def with_x_var(x, weight, bias, eps):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + eps).sqrt() * weight + bias


def eps_outside(x, weight, bias, eps):
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True, unbiased=False) + eps) * weight + bias


def no_mean(x, weight, bias, eps):
    return x / ((x**2).mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def over_tokens(x, weight, bias, eps):
    centred = x - x.mean(1, keepdim=True)
    return centred / ((centred**2).mean(1, keepdim=True) + eps).sqrt() * weight + bias


def in_place(x, weight, bias, eps):
    x -= x.mean(-1, keepdim=True)
    return x / ((x**2).mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def no_root(x, weight, bias, eps):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps) * weight + bias


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (with_x_var, "divides by d - 1"),
        (eps_outside, "eps is added to the deviation"),
        (lambda x, w, b, eps: normalise(x, w, b, 0), "eps is not used"),
        (no_root, "take its root"),
        (no_mean, "the mean is not taken away"),
        (lambda x, w, b, eps: normalise(x, 1, 0, eps), "weight and bias are not used"),
        (lambda x, w, b, eps: (normalise(x, 1, 0, eps) + b) * w, "bias is added before"),
        (over_tokens, "over the tokens"),
        (in_place, "has changed"),
        (lambda x, w, b, eps: normalise(x, w, b, eps)[0], "the shape stays"),
        (lambda x, w, b, eps: normalise(x, w, 2 * b, eps), "off by up to"),
    ],
)
def test_normalise(wrong, message):
    ex06.check_normalise(normalise)
    refuses(ex06.check_normalise, wrong, message)


def count_parameters(v, t, n, d, f):
    return v * d + t * d + n * (4 * d * d + 4 * d + 2 * d * f + f + d + 4 * d) + 2 * d


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda v, t, n, d, f: count_parameters(v, t, n, d, f) + v * d, "the output matrix is counted too"),
        (lambda v, t, n, d, f: count_parameters(v, 0, n, d, f), "the table of places is missing"),
        (lambda v, t, n, d, f: count_parameters(v, t, n, d, f) - 2 * d, "the last norm is missing"),
        (lambda v, t, n, d, f: count_parameters(v, t, n, d, f) - n * (5 * d + f), "all biases are missing"),
        (lambda v, t, n, d, f: count_parameters(v, t, n, d, f) - n * d * f, "the MLP has two matrices"),
        (lambda v, t, n, d, f: count_parameters(v, t, n, d, 4 * d), "d_ff is not used"),
        (lambda v, t, n, d, f: count_parameters(v, t, n, d, f) - n * d * d, "attention has four matrices"),
        (lambda v, t, n, d, f: count_parameters(v, t, n, d, f) + 1, r"and you have [\d,]+: \+1"),
    ],
)
def test_count_parameters(wrong, message):
    ex06.check_count_parameters(count_parameters)
    refuses(ex06.check_count_parameters, wrong, message)


def flops_per_token(v, n, d, t):
    return 2 * (12 * n * d * d + v * d) + 4 * n * d * t


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda v, n, d, t: 12 * n * d * d + v * d + 4 * n * d * t, "each matrix counts twice"),
        (lambda v, n, d, t: flops_per_token(v, n, d, t) // 2, "half of it"),
        (lambda v, n, d, t: 3 * flops_per_token(v, n, d, t), "that is training"),
        (lambda v, n, d, t: flops_per_token(0, n, d, t), "the output matrix is missing"),
        (lambda v, n, d, t: flops_per_token(2 * v, n, d, t), "looking up a row costs nothing"),
        (lambda v, n, d, t: flops_per_token(v, n, d, 0) + 2 * n * d * t, "two products with the keys"),
        (lambda v, n, d, t: flops_per_token(v, n, d, 0), "products with the keys are missing"),
        (lambda v, n, d, t: flops_per_token(v, n, d, 0) + 4 * d * t, "every block attends"),
        (lambda v, n, d, t: flops_per_token(v, n, d, t * t), "one token asks once"),
        (lambda v, n, d, t: flops_per_token(v, n, d, t) + 1, "expected"),
    ],
)
def test_flops_per_token(wrong, message):
    ex06.check_flops_per_token(flops_per_token)
    refuses(ex06.check_flops_per_token, wrong, message)


def pre_norm_block(x, ln_1, attn, ln_2, mlp):
    x = x + attn(ln_1(x))
    return x + mlp(ln_2(x))


def post_norm(x, ln_1, attn, ln_2, mlp):
    x = ln_1(x + attn(x))
    return ln_2(x + mlp(x))


def sums_in_the_branch(x, ln_1, attn, ln_2, mlp):
    x = ln_1(x)
    x = ln_2(x + attn(x))
    return x + mlp(x)


def written_into(x, ln_1, attn, ln_2, mlp):
    x += attn(ln_1(x))
    return x + mlp(ln_2(x))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (post_norm, "post-norm"),
        (lambda x, ln_1, attn, ln_2, mlp: x + attn(ln_1(x)) + mlp(ln_2(x)), "both parts read the same x"),
        (lambda x, ln_1, attn, ln_2, mlp: mlp(ln_2(attn(ln_1(x)))), "nothing is added to x"),
        (lambda x, ln_1, attn, ln_2, mlp: mlp(ln_2(x + attn(ln_1(x)))), "the MLP replaces the stream"),
        (sums_in_the_branch, "the normalised copy is what you add to"),
        (lambda x, ln_1, attn, ln_2, mlp: pre_norm_block(x, ln_1, attn, lambda y: y, mlp), "without ln_2"),
        (lambda x, ln_1, attn, ln_2, mlp: pre_norm_block(x, lambda y: y, attn, ln_2, mlp), "without ln_1"),
        (lambda x, ln_1, attn, ln_2, mlp: pre_norm_block(x, ln_1, attn, ln_1, mlp), "ln_1 is used twice"),
        (lambda x, ln_1, attn, ln_2, mlp: pre_norm_block(x, ln_2, mlp, ln_1, attn), "the MLP comes first"),
        (lambda x, ln_1, attn, ln_2, mlp: x + mlp(ln_2(x + attn(ln_1(x)))), "what attention added is lost"),
        (written_into, "has changed"),
        (lambda x, ln_1, attn, ln_2, mlp: 2 * x, "off by up to"),
    ],
)
def test_pre_norm_block(wrong, message):
    ex06.check_pre_norm_block(pre_norm_block)
    refuses(ex06.check_pre_norm_block, wrong, message)


def initialiser(std=0.02, scale=lambda n: math.sqrt(2 * n), scaled="c_proj.weight", bias=0.0, norm=1.0):
    def initialise(model):
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                factor = scale(model.config.n_layer) if name.endswith(scaled) else 1
                nn.init.normal_(parameter, std=std / factor)
            else:
                nn.init.constant_(parameter, bias if name.endswith("bias") else norm)
        return model

    return initialise


def linear_layers_only(model):
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "wte" not in name and "wpe" not in name:
            nn.init.normal_(parameter, std=0.02)
    return model


def with_a_new_table(model):
    model = initialiser()(model)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def uniform(model):
    model = initialiser()(model)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and not name.endswith("c_proj.weight"):
            nn.init.uniform_(parameter, -0.02 * math.sqrt(3), 0.02 * math.sqrt(3))
    return model


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda model: model, "should have deviation|still has deviation 1"),
        (linear_layers_only, "tables are matrices too"),
        (initialiser(std=0.02**2), "not the variance"),
        (initialiser(scale=lambda n: 1), r"is smaller by √\(2 L\)"),
        (initialiser(scaled="mlp.c_proj.weight"), r"attention's and the MLP's"),
        (initialiser(scale=math.sqrt), "a block adds twice"),
        (initialiser(scale=lambda n: 2 * n), "divided by the root of it"),
        (initialiser(scaled="weight"), "only c_proj is"),
        (initialiser(bias=0.5), "is a bias and starts as 0"),
        (initialiser(norm=0.0), "lets nothing through"),
        (initialiser(norm=0.02), "starts as 1"),
        (initialiser(std=0.1), r"should have deviation 0.0200, and has 0.1"),
        (with_a_new_table, "no longer one tensor"),
        (uniform, "have no tails|no tails"),
        (lambda model: 1, "return the model"),
    ],
)
def test_initialise(wrong, message):
    ex06.check_initialise(initialiser())
    refuses(ex06.check_initialise, wrong, message)


def last_logits(model, ids, places=True, norm=True, at=-1, start=0, blocks=True):
    body = model.transformer
    x = body.wte(ids)
    if places and body.wpe is not None:
        x = x + body.wpe.weight[start : start + ids.shape[1]]
    for block in body.blocks if blocks else ():
        x = block(x)
    x = x[:, at]
    return (body.ln_f(x) if norm else x) @ body.wte.weight.T  # (batch, d_model) @ (d_model, V)


def only_the_last_id(model, ids):
    body = model.transformer
    x = body.wte(ids[:, -1:])
    if body.wpe is not None:
        x = x + body.wpe.weight[ids.shape[1] - 1]
    for block in body.blocks:
        x = block(x)
    return body.ln_f(x[:, -1]) @ body.wte.weight.T  # (batch, d_model) @ (d_model, V)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda model, ids: last_logits(model, ids, norm=False), "ln_f, is missing"),
        (lambda model, ids: last_logits(model, ids, places=False), "the positions are missing"),
        (lambda model, ids: last_logits(model, ids, start=1), "positions count from 0"),
        (lambda model, ids: last_logits(model, ids, at=0), "that is the first place"),
        (lambda model, ids: last_logits(model, ids, at=-2), "the last place but one"),
        (lambda model, ids: last_logits(model, ids, blocks=False), "the blocks are missing"),
        (only_the_last_id, "it must see those before it"),
        (lambda model, ids: model(ids), "the logits of all places"),
        (lambda model, ids: model(ids)[:, -1], "cut to the last place first"),
        (lambda model, ids: last_logits(model, ids)[0], r"the shape should be \(batch, vocab_size\)"),
        (lambda model, ids: 2 * last_logits(model, ids), "off by up to"),
    ],
)
def test_last_logits(wrong, message):
    ex06.check_last_logits(last_logits)
    refuses(ex06.check_last_logits, wrong, message)


def test_last_logits_may_use_the_models_own_head():
    ex06.check_last_logits(lambda model, ids: model.lm_head(model.hidden_states(ids)[:, -1]))


def test_a_stub_of_torch_is_no_answer(capsys):
    ex06.attempt(ex06.check_normalise, lambda x, w, b, eps: torch.zeros(2))
    assert "the shape stays" in capsys.readouterr().out
