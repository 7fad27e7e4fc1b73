"""The checks of notebook 21 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from finetuning.exercises import ex21
from finetuning.lora import LoRA, LoRALinear
from tests.conftest import refuses


def of_the_module(W, bias, A, B, alpha):
    """A `LoRALinear` with these numbers."""
    layer = LoRALinear(nn.Linear(W.shape[1], W.shape[0]), LoRA(len(A), alpha))
    layer.weight.data, layer.lora_a.data, layer.lora_b.data = W, A, B
    assert layer.bias is not None
    layer.bias.data = bias
    return layer


def counted_by_the_module(shapes, r):
    layers = [LoRALinear(nn.Linear(n_in, n_out), LoRA(r)) for n_out, n_in in shapes]
    return sum(layer.lora_a.numel() + layer.lora_b.numel() for layer in layers)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda shapes, r: sum(a * b for a, b in shapes), "the matrices themselves"),
        (lambda shapes, r: sum(r * a * b for a, b in shapes), "do not multiply"),
        (lambda shapes, r: sum(a + b for a, b in shapes), "for rank 1"),
        (lambda shapes, r: sum(r * b for _, b in shapes), "A alone"),
        (lambda shapes, r: sum(r * a for a, _ in shapes), "one of the two parts"),
        (lambda shapes, r: 7, "expected 8"),
    ],
)
def test_count_adapter(wrong, message):
    ex21.check_count_adapter(lambda shapes, r: sum(r * (a + b) for a, b in shapes))
    ex21.check_count_adapter(counted_by_the_module)
    refuses(ex21.check_count_adapter, wrong, message)


def delta_of_the_module(A, B, alpha):
    W = torch.zeros(len(B), A.shape[1])
    return of_the_module(W, torch.zeros(len(B)), A, B, alpha).merged().weight.detach()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda A, B, alpha: B @ A, "the scale is missing"),
        (lambda A, B, alpha: alpha * B @ A, "and not alpha"),
        (lambda A, B, alpha: alpha / A.shape[1] * B @ A, "you divide by `in`"),
        (lambda A, B, alpha: alpha / len(A) ** 0.5 * B @ A, "another proposal"),
        (lambda A, B, alpha: (alpha / len(A) * B @ A).T, "B comes first"),
        (lambda A, B, alpha: A, r"you have \(2, 5\)"),
        (lambda A, B, alpha: -alpha / len(A) * B @ A, "expected"),
    ],
)
def test_delta_weight(wrong, message):
    ex21.check_delta_weight(lambda A, B, alpha: alpha / len(A) * B @ A)
    ex21.check_delta_weight(delta_of_the_module)
    refuses(ex21.check_delta_weight, wrong, message)


def forward(scale=lambda alpha, A: alpha / len(A), keeps=True, has_bias=True, has_adapter=True):
    """An answer with one part that may be wrong."""

    def lora_forward(x, W, bias, A, B, alpha):
        y = scale(alpha, A) * (x @ A.T @ B.T) if has_adapter else 0
        y = y + x @ W.T if keeps else y
        return y + bias if has_bias else y

    return lora_forward


def by_merging(x, W, bias, A, B, alpha):
    return x @ (W + alpha / len(A) * B @ A).T + bias


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (forward(has_bias=False), "the bias is missing"),
        (forward(scale=lambda alpha, A: 1), "alpha / r is missing"),
        (forward(scale=lambda alpha, A: alpha), "and not alpha"),
        (forward(keeps=False), "W x is missing"),
        (forward(has_adapter=False), "the adapter is missing"),
        (
            lambda x, W, bias, A, B, alpha: 3 * forward(scale=lambda *_: 1)(x, W, bias, A, B, alpha),
            "the adapter's alone",
        ),
        (by_merging, "a matrix .* was built on the way"),
        (lambda x, W, bias, A, B, alpha: x, "return a tensor"),
        (lambda *a: -forward()(*a), "expected"),
    ],
)
def test_lora_forward(wrong, message):
    ex21.check_lora_forward(forward())
    refuses(ex21.check_lora_forward, wrong, message)


def test_the_right_answer_is_the_module_s():
    x, W, bias, A, B = (torch.randn(size) for size in ((3, 5), (4, 5), (4,), (2, 5), (4, 2)))
    torch.testing.assert_close(of_the_module(W, bias, A, B, 6.0)(x).detach(), forward()(x, W, bias, A, B, 6.0))


def start_of_the_module(n_in, n_out, r):
    layer = LoRALinear(nn.Linear(n_in, n_out), LoRA(r))
    return layer.lora_a, layer.lora_b


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda n_in, n_out, r: (torch.zeros(r, n_in), torch.zeros(n_out, r)), "both are zero"),
        (lambda n_in, n_out, r: (torch.randn(r, n_in), torch.randn(n_out, r)), "B A is not zero"),
        (lambda n_in, n_out, r: (torch.ones(r, n_in), torch.zeros(n_out, r)), "the rank stays 1"),
        (lambda n_in, n_out, r: (torch.zeros(n_out, r), torch.randn(r, n_in)), "changed places"),
        (lambda n_in, n_out, r: (torch.randn(n_in, r), torch.zeros(r, n_out)), r"A is \(r, in\)"),
        (lambda n_in, n_out, r: torch.randn(r, n_in), "return two tensors"),
    ],
)
def test_start_adapter(wrong, message):
    ex21.check_start_adapter(lambda n_in, n_out, r: (torch.randn(r, n_in), torch.zeros(n_out, r)))
    ex21.check_start_adapter(lambda n_in, n_out, r: (torch.zeros(r, n_in), torch.randn(n_out, r)))
    ex21.check_start_adapter(start_of_the_module)
    refuses(ex21.check_start_adapter, wrong, message)


def rank_by(values=torch.linalg.svdvals, power=2, add=1):
    """An answer with one part that may be wrong."""

    def rank_for(M, share):
        parts = values(M) ** power
        kept = parts.cumsum(0) / parts.sum()
        return int((kept >= share - 1e-6).int().argmax()) + add

    return rank_for


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (rank_by(power=1), "their squares"),
        (rank_by(add=0), "one less than the rank"),
        (rank_by(values=lambda M: torch.linalg.svdvals(M).flip(0)), "begin with the largest"),
        (rank_by(values=lambda M: torch.diagonal(M).sort(descending=True).values), "not the diagonal"),
        (lambda M, share: rank_by()(M, 0.9), "for a share of 0.7"),
        (lambda M, share: float(rank_by()(M, share)), "return an int"),
    ],
)
def test_rank_for(wrong, message):
    ex21.check_rank_for(rank_by())
    refuses(ex21.check_rank_for, wrong, message)
