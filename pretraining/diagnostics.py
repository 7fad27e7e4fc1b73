"""What the loss does not show: how far each matrix moves at a step, and how widely each layer looks.

**Update to weight.** The norm of a matrix's step over the norm of the matrix. About a thousandth is healthy for AdamW;
a hundredth and more tears down what was learned, a hundred-thousandth means that the matrix hardly learns.

**Attention entropy.** Of the weights with which a token gathers from the tokens before it, in nats: 0 where it looks at
one alone, ln n where it looks at n alike. All near 0 after a while, with a loss that rises, is how attention collapses
(Zhai et al. 2023); never leaving ln n means that a layer has not found what to look for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gpt_model import GPT


def matrices_of(model: nn.Module) -> dict[str, Tensor]:
    """Name -> weight of each matrix, embeddings among them; names without what all have in common."""
    return {
        name.removeprefix("transformer.").removesuffix(".weight"): parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2
    }


def copy_of(matrices: dict[str, Tensor]) -> dict[str, Tensor]:
    """The matrices as they are now."""
    return {name: matrix.detach().clone() for name, matrix in matrices.items()}


def update_to_weight(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """Name -> ‖after - before‖ / ‖before‖. With fsdp every rank must call it."""
    return {
        name: _number((after[name].detach() - matrix).norm()) / max(_number(matrix.norm()), 1e-12)
        for name, matrix in before.items()
    }


def _number(x: Tensor) -> float:
    return (x.full_tensor() if isinstance(x, DTensor) else x).item()


@torch.no_grad()
def attention_entropy(model: GPT, ids: Tensor, documents: Tensor | None = None) -> list[float]:
    """The mean entropy of each layer's attention weights over all heads and tokens of `ids`, in nats.

    Args:
        ids: int64 (batch, tokens).
        documents: the same shape; given, a token sees those of its own document alone: see `GPT.forward`.
    """
    seen: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
    hooks = [
        block.attn.register_forward_pre_hook(lambda *call: seen.append(call), with_kwargs=True)
        for block in model.transformer.blocks
    ]
    was_training = model.training
    model.eval()
    try:
        model.hidden_states(ids, None, documents)
    finally:
        for hook in hooks:
            hook.remove()
    entropies = []
    for attention, (x, _cache, *more), named in seen:
        _, weights = attention.reference(x, *more, **named)  # (batch, n_head, tokens, tokens)
        entropies.append(-torch.xlogy(weights, weights).sum(-1).mean().item())
    model.train(was_training)
    return entropies
