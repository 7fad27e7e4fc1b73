"""Checks of notebook 06, the GPT body. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_model.gpt import GPT, GPTConfig
from utils.exercises import attempt as attempt
from utils.exercises import require_an_answer

Part = Callable[[Tensor], Tensor]


def check_normalise(answer: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """`normalise(x, weight, bias, eps)`: LayerNorm over the last axis."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 6, generator=generator) * 3 + 2
    weight, bias = torch.rand(6, generator=generator) + 1.5, torch.randn(6, generator=generator)
    eps = 0.5
    before = x.clone()
    given = answer(x, weight, bias, eps)
    require_an_answer(given)
    assert torch.equal(x, before), "the x that was given has changed: `x -= …` writes into it, make a new tensor"
    assert given.shape == x.shape, f"the shape stays {tuple(x.shape)}, and you have {tuple(given.shape)}"
    centred = x - x.mean(-1, keepdim=True)
    variance = x.var(-1, keepdim=True, unbiased=False)

    def over(axis: int) -> Tensor:
        middle = x - x.mean(axis, keepdim=True)
        return middle / (x.var(axis, keepdim=True, unbiased=False) + eps).sqrt() * weight + bias

    everything = (x - x.mean()) / (x.var(unbiased=False) + eps).sqrt() * weight + bias
    mistakes = {
        "x.var() divides by d - 1: take unbiased=False, or the mean of the squares": (
            centred / (x.var(-1, keepdim=True) + eps).sqrt() * weight + bias
        ),
        "eps is added to the deviation: it belongs under the root, to the variance": (
            centred / (variance.sqrt() + eps) * weight + bias
        ),
        "eps is not used: a constant vector would divide by zero": centred / variance.sqrt() * weight + bias,
        "you divide by the variance: take its root": centred / (variance + eps) * weight + bias,
        "the mean is not taken away (that is RMSNorm, or nearly)": (
            x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight + bias
        ),
        "weight and bias are not used": centred / (variance + eps).sqrt(),
        "bias is added before weight multiplies": (centred / (variance + eps).sqrt() + bias) * weight,
        "mean and variance are over the tokens: each vector is normalised by itself, over the last axis": over(1),
        "mean and variance are over the whole tensor: each vector is normalised by itself": everything,
    }
    _tell_which(given, F.layer_norm(x, (6,), weight, bias, eps), mistakes)
    assert torch.isfinite(answer(torch.full((1, 6), 3.0), weight, bias, 1e-5)).all(), (
        "a constant vector gives no number"
    )
    print("normalise: right")


def check_count_parameters(answer: Callable[[int, int, int, int, int], int]) -> None:
    """`count_parameters(vocab_size, context_length, n_layer, d_model, d_ff)`: of a GPT with a shared table."""
    require_an_answer(answer(256, 64, 2, 32, 128))
    for v, t, n, d, f in [(256, 64, 2, 32, 128), (50257, 1024, 12, 768, 3072), (61, 24, 3, 16, 40)]:
        with torch.device("meta"):
            config = GPTConfig(vocab_size=v, context_length=t, n_layer=n, n_head=4, d_model=d, d_ff=f)
            right = GPT(config).n_parameters
        given = int(answer(v, t, n, d, f))
        mistakes = {
            "the output matrix is counted too: it is the table of ids, shared": right + v * d,
            "the table of places is missing": right - t * d,
            "the last norm is missing: 2 · d above the blocks": right - 2 * d,
            "the norms of the blocks are missing: two in each, with two vectors each": right - 4 * n * d,
            "all biases are missing": right - n * (4 * d + f + d),
            "a norm has a weight and a bias: you count one of them": right - 2 * n * d - d,
            "the biases of attention are missing: 3 · d for q, k and v, and d for the output": right - 4 * n * d - 0,
            "the MLP has two matrices, d · d_ff each: you count one": right - n * d * f,
            "attention has four matrices: you count W_q, W_k and W_v only": right - n * d * d,
        }
        if f != 4 * d:
            mistakes["d_ff is not used: the MLP need not be 4 · d_model wide"] = right + n * (4 * d - f) * (2 * d + 1)
        found = [message for message, value in mistakes.items() if value == given]
        assert given == right or not found, " or: ".join(found)
        assert given == right, f"for {(v, t, n, d, f)} expected {right:,}, and you have {given:,}: {given - right:+,}"
    print("count_parameters: right")


def check_flops_per_token(answer: Callable[[int, int, int, int], int]) -> None:
    """`flops_per_token(vocab_size, n_layer, d_model, n_keys)`: forward, in a plain GPT."""
    require_an_answer(answer(250, 5, 36, 70))
    for v, n, d, t in [(250, 5, 36, 70), (50257, 12, 768, 1000), (61, 3, 16, 7)]:
        given = answer(v, n, d, t)
        head, blocks, attention = 2 * v * d, 24 * n * d * d, 4 * n * d * t
        right = head + blocks + attention
        mistakes = {
            "a multiplication and an addition are two operations: each matrix counts twice": (head + blocks) // 2
            + attention,
            "half of it: a multiplication and an addition are two operations": right // 2,
            "that is training: forward alone is a third of it": 3 * right,
            "that is training's 6 N, with attention's part as forward": 3 * (head + blocks) + attention,
            "the output matrix is missing: V · d numbers": right - head,
            "the table of ids is counted as a product: looking up a row costs nothing": right + head,
            "attention has two products with the keys' number: scores, and weights with values": right - attention // 2,
            "attention's products with the keys are missing": right - attention,
            "every block attends: attention's part is times n_layer": right - attention + 4 * d * t,
            "the MLP is missing: 8 · d² numbers a block": right - 16 * n * d * d,
            "attention's products are counted for all queries: one token asks once": right - attention + attention * t,
        }
        found = [message for message, value in mistakes.items() if value == given]
        assert given == right or not found, found[0]
        assert given == right, f"for {(v, n, d, t)} expected {right:,}, and you have {given:,}"
    print("flops_per_token: right")


def check_pre_norm_block(answer: Callable[[Tensor, Part, Part, Part, Part], Tensor]) -> None:
    """`pre_norm_block(x, ln_1, attn, ln_2, mlp)`: one block of the stream."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, generator=generator)
    a, b, c, d = (torch.randn(4, 4, generator=generator) for _ in range(4))

    def ln_1(x: Tensor) -> Tensor:
        return torch.tanh(x @ a)  # (2, 3, 4) @ (4, 4)

    def attn(x: Tensor) -> Tensor:
        return torch.sin(x @ b)  # (2, 3, 4) @ (4, 4)

    def ln_2(x: Tensor) -> Tensor:
        return torch.tanh(x @ c)  # (2, 3, 4) @ (4, 4)

    def mlp(x: Tensor) -> Tensor:
        return torch.cos(x @ d)  # (2, 3, 4) @ (4, 4)

    before = x.clone()
    given = answer(x, ln_1, attn, ln_2, mlp)
    require_an_answer(given)
    assert torch.equal(x, before), "the x that was given has changed: `x += …` writes into it, use x = x + …"
    middle = x + attn(ln_1(x))
    post = ln_1(x + attn(x))
    normed = ln_1(x)
    normed_middle = normed + attn(normed)
    again = ln_2(normed_middle)
    bare = attn(ln_1(x))
    mistakes = {
        "the norms come after the sums (post-norm): normalise what a part reads, not the stream": ln_2(
            post + mlp(post)
        ),
        "both parts read the same x: the MLP reads the stream to which attention has added": (middle + mlp(ln_2(x))),
        "nothing is added to x: each part adds to the stream": mlp(ln_2(bare)),
        "attention replaces the stream: add to x what it gives": bare + mlp(ln_2(bare)),
        "the MLP replaces the stream: add to x what it gives": mlp(ln_2(middle)),
        "the normalised copy is what you add to: the sum goes to x itself": again + mlp(again),
        "the MLP reads the stream without ln_2": middle + mlp(middle),
        "attention reads the stream without ln_1": x + attn(x) + mlp(ln_2(x + attn(x))),
        "ln_1 is used twice: the second half has a norm of its own": middle + mlp(ln_1(middle)),
        "the MLP comes first: attention gathers, then the MLP thinks it over": x
        + mlp(ln_2(x))
        + attn(ln_1(x + mlp(ln_2(x)))),
        "the second sum goes to the old x, and what attention added is lost": x + mlp(ln_2(middle)),
    }
    _tell_which(given, middle + mlp(ln_2(middle)), mistakes)
    print("pre_norm_block: right")


def check_initialise(answer: Callable[[GPT], GPT]) -> None:
    """`initialise(model)`: GPT-2's initialisation, from any weights; returns the model."""
    n_layer = 3
    torch.manual_seed(0)
    given_model = GPT(GPTConfig(vocab_size=300, context_length=80, n_layer=n_layer, n_head=4, d_model=64))
    with torch.no_grad():
        for parameter in given_model.parameters():
            parameter.copy_(torch.randn_like(parameter) + 0.5)
    model = answer(given_model)
    require_an_answer(model)
    assert isinstance(model, GPT), f"return the model, not a {type(model).__name__}"
    assert model.lm_head.weight is model.transformer.wte.weight, (
        "the table of ids and the output matrix are no longer one tensor: write into the parameters, replace none"
    )
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if values.ndim == 1:
            _check_vector(name, values)
            continue
        wanted = 0.02 / math.sqrt(2 * n_layer) if name.endswith("c_proj.weight") else 0.02
        deviation, mean = values.std().item(), values.mean().item()

        def is_near(value: float, deviation: float = deviation) -> bool:
            return math.isclose(deviation, value, rel_tol=0.06)

        assert is_near(wanted) or not is_near(1.0), f"{name} still has deviation 1: tables are matrices too"
        assert is_near(wanted) or not is_near(wanted**2) or wanted < 0.02, (
            f"{name} has deviation {deviation:.4f}: 0.02 is the deviation, not the variance"
        )
        assert is_near(wanted) or not (wanted < 0.02 and is_near(0.02)), (
            f"{name} has deviation 0.02: the last matrix of each part, attention's and the MLP's, is smaller by √(2 L)"
        )
        assert is_near(wanted) or not is_near(0.02 / math.sqrt(n_layer)), (
            f"{name} is divided by √L: a block adds twice, so it is √(2 L)"
        )
        assert is_near(wanted) or not is_near(0.02 / (2 * n_layer)), (
            f"{name} is divided by 2 L: variances add up, so the deviation is divided by the root of it"
        )
        assert is_near(wanted) or wanted < 0.02 or not is_near(0.02 / math.sqrt(2 * n_layer)), (
            f"{name} is scaled by √(2 L): only c_proj is, which writes into the stream"
        )
        assert is_near(wanted), f"{name} should have deviation {wanted:.4f}, and has {deviation:.4f}"
        assert abs(mean) < wanted / 5, f"{name} should have mean 0, and has {mean:.4f}"
        assert abs(values).max() > 2.2 * wanted, f"{name} is not normal: its numbers have no tails"
    print("initialise: right")


def _check_vector(name: str, values: Tensor) -> None:
    """Raises the AssertionError for a bias, or a weight of a norm, that does not start as it should."""
    is_norm_weight = name.endswith("weight")
    if is_norm_weight:
        assert not (values == 0).all(), f"{name} is 0: a norm that multiplies by 0 lets nothing through; it starts as 1"
        assert (values == 1).all(), f"{name} is the weight of a norm and starts as 1: only matrices are drawn"
    else:
        assert (values == 0).all(), f"{name} is a bias and starts as 0"


def check_last_logits(answer: Callable[[GPT, Tensor], Tensor]) -> None:
    """`last_logits(model, ids)`: (batch, vocab_size), and no row of logits more than that."""
    for positions in ("learned", "rope"):
        torch.manual_seed(0)
        model = GPT(
            GPTConfig(vocab_size=61, context_length=24, n_layer=2, n_head=4, d_model=32, positions=positions)
        ).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        ids = torch.randint(0, 61, (3, 9))
        rows: list[int] = []
        handle = model.lm_head.register_forward_hook(lambda _m, i, _o, rows=rows: rows.append(i[0].numel() // 32))
        with torch.no_grad():
            given = answer(model, ids)
        handle.remove()
        require_an_answer(given)
        _check_one(given, model, ids)
        assert not rows or sum(rows) == 3, (
            f"the logits are right, but you computed {sum(rows)} rows of them for 3: cut to the last place first"
        )
    print("last_logits: right")


@torch.no_grad()
def _check_one(given: Tensor, model: GPT, ids: Tensor) -> None:
    """Raises the AssertionError for the logits of one model."""
    body, tokens = model.transformer, ids.shape[1]
    assert given.shape != (3, tokens, 61), "these are the logits of all places: only the last one is asked for"
    assert given.shape == (3, 61), f"the shape should be (batch, vocab_size) = (3, 61), and is {tuple(given.shape)}"

    def through(x: Tensor, norm: bool = True) -> Tensor:
        for block in body.blocks:
            x = block(x)
        return (body.ln_f(x) if norm else x) @ body.wte.weight.T  # (3, tokens, 32) @ (32, 61) -> (3, tokens, 61)

    x = body.wte(ids)  # (3, tokens, 32)
    if body.wpe is not None:
        x = x + body.wpe.weight[:tokens]
    mistakes = {
        "the last norm, ln_f, is missing": through(x, norm=False)[:, -1],
        "that is the first place: the last one is asked for": through(x)[:, 0],
        "that is the last place but one": through(x)[:, -2],
        "only the last id went through the blocks: it must see those before it": through(x[:, -1:])[:, -1],
        "the blocks are missing": (body.ln_f(x) @ body.wte.weight.T)[:, -1],  # (3, tokens, 32) @ (32, 61)
    }
    if body.wpe is not None:
        moved = body.wte(ids) + body.wpe.weight[1 : tokens + 1]
        mistakes["the positions are missing: add wpe to what wte gives"] = through(body.wte(ids))[:, -1]
        mistakes["positions count from 0, not from 1"] = through(moved)[:, -1]
    _tell_which(given, model(ids)[:, -1], mistakes)


def _tell_which(given: Tensor, right: Tensor, mistakes: Mapping[str, Any]) -> None:
    """Raises the message of the mistake that gives what was given, or says how far it is from what is right."""

    def equals(value: Tensor) -> bool:
        return value.shape == given.shape and torch.allclose(given, value, atol=1e-4, rtol=1e-4)

    if equals(right):
        return
    for message, value in mistakes.items():
        assert not equals(value), message
    assert given.shape == right.shape, f"the shape should be {tuple(right.shape)}, and is {tuple(given.shape)}"
    raise AssertionError(f"the numbers are off by up to {(given - right).abs().max():.3f}")
