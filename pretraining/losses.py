"""The loss, in chunks: the largest tensor of the training step, never made.

After the last block, N vectors of d numbers are compared with V tokens. Plainly:

    logits = hidden · Wᵀ            (N, V)   in the precision of the products
    loss   = Σ logsumexp(logits) - logits[target]      in float32, and so a copy of all of it; the gradient is another

With GPT-2's vocabulary, N = 16 × 1024 tokens have 823 million logits: 3.3 GB a copy, more than all else in the step.
But nobody needs them at once. The loss is a sum over tokens, and its gradient by the logits of one token is

    softmax(logits) - onehot(target)

which is known as soon as the logits are. So a chunk of tokens is carried all the way (logits, loss, gradient by the
hidden vectors, its share of the gradient by W) before the next begins, and one chunk of logits is all that ever exists.
The price is that the gradient is computed in the forward pass; what backward adds is a multiplication.

GPT-2 has 50,257 tokens, an odd number, and tensor cores load rows that begin at multiples of 16 bytes: a matrix of such
rows is multiplied by slower kernels. So nanoGPT makes its vocabulary 50,304. Here the model keeps the tokenizer's, and
the half-precision copy of W that autocast makes anyway gets some rows of zeros more (`ROWS`), which no loss looks at.

This is the idea of Liger's fused kernel (Hsu et al. 2024, section 3.2, "FusedLinearCrossEntropy") in plain PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from working_with_text_data.token_shards import IGNORE

BLOCK = 2**22  # logits that a processor carries all the way at a time, so that they stay in its cache
ROWS = 64  # half-precision copies of W have a multiple of this many rows


def softcap(logits: Tensor, cap: float | None) -> Tensor:
    """cap · tanh(logits / cap): about the same near zero, never beyond ±cap (Riviere et al. 2024, section 2)."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _softmax_in_place(logits: Tensor, index: Tensor, asked: Tensor, cap: float | None) -> Tensor:
    """log p(target), (tokens, 1); and `logits` become the gradient that they would have if no token were the target.

    Args:
        logits: (tokens, vocab_size), any format; what is computed of them is float32.
        index: int64 (tokens, 1), the targets.
        asked: (tokens, 1), False where the loss does not count.
    """
    y = softcap(logits.float(), cap)
    log_p = F.log_softmax(y, dim=1)  # (tokens, vocab_size)
    log_p_target = log_p.gather(1, index)
    gradient = log_p.exp_().mul_(asked)  # in place, since a copy is as large as the logits
    if cap is not None:
        gradient.mul_(1 - (y / cap) ** 2)  # d tanh(z) = 1 - tanh(z)²
    logits.copy_(gradient)
    return log_p_target


_kernel = _softmax_in_place


def compile_loss() -> None:
    """From now on the elementwise part of the loss runs as one kernel, made by `torch.compile`."""
    global _kernel
    if _kernel is _softmax_in_place:
        _kernel = torch.compile(_softmax_in_place, dynamic=False)


def _loss_and_gradient(logits: Tensor, targets: Tensor, cap: float | None) -> Tensor:
    """The sum of the losses; and `logits` (tokens, vocab_size) become their gradient. `targets` are (tokens,)."""
    asked = (targets != IGNORE).unsqueeze(1)  # (tokens, 1)
    index = targets.clamp(min=0).unsqueeze(1)  # (tokens, 1)
    slope = 1 if cap is None else 1 - (softcap(logits.gather(1, index).float(), cap) / cap) ** 2
    log_p = _kernel(logits, index, asked, cap)  # (tokens, 1)
    # At the target it is softmax - 1: written anew, since half precision has forgotten how little is missing to 1.
    logits.scatter_(1, index, (log_p.expm1() * slope * asked).to(logits.dtype))
    return -(log_p * asked).sum()


def _loss(logits: Tensor, targets: Tensor, cap: float | None) -> Tensor:
    y = softcap(logits.float(), cap)
    return F.cross_entropy(y, targets, reduction="sum", ignore_index=IGNORE)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, cap: float | None, dtype: torch.dtype
    ) -> Tensor:
        loss = hidden.new_zeros((), dtype=torch.float32)
        vocab_size, half = len(weight), dtype.itemsize < 4
        more = -vocab_size % ROWS if half else 0
        cast = weight.to(dtype)
        if more:
            cast = weight.new_zeros((vocab_size + more, weight.shape[1]), dtype=dtype)
            cast[:vocab_size] = weight
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        by_hidden = torch.empty_like(hidden) if need_hidden else None
        by_weight = None
        block = max(1, BLOCK // vocab_size) if hidden.device.type == "cpu" else chunk
        for start in range(0, len(hidden), chunk):
            h, t = hidden[start : start + chunk].to(dtype), targets[start : start + chunk]  # (chunk, d_model), (chunk,)
            padded = h @ cast.mT  # (chunk, vocab_size + more); soon their gradient, which is 0 in the added columns
            logits = padded[:, :vocab_size]
            for some_logits, some_targets in zip(logits.split(block), t.split(block), strict=True):
                if need_hidden or need_weight:
                    loss += _loss_and_gradient(some_logits, some_targets, cap)
                else:
                    loss += _loss(some_logits, some_targets, cap)
            if by_hidden is not None:
                by_hidden[start : start + chunk] = padded @ cast  # between -1 and 1, so that half precision holds it
            if need_weight and by_weight is None:
                by_weight = (padded.mT @ h)[:vocab_size].to(torch.float32)  # (vocab_size, d_model)
            elif by_weight is not None and half:
                by_weight += (padded.mT @ h)[:vocab_size]
            elif by_weight is not None:
                by_weight.addmm_(padded.mT, h)
        ctx.save_for_backward(by_hidden, by_weight)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        by_hidden, by_weight = ctx.saved_tensors
        return (
            None if by_hidden is None else by_hidden * gradient.to(by_hidden.dtype),
            None if by_weight is None else (by_weight * gradient).to(ctx.weight_dtype),
            None,
            None,
            None,
            None,
        )


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int = 1024, cap: float | None = None
) -> Tensor:
    """The sum of the losses of `hidden · weightᵀ` against `targets`, in nats; float32, whatever the products are.

    Equal to `F.cross_entropy(hidden @ weight.T, targets, reduction="sum")` and its gradients, but for rounding. Under
    autocast the products have autocast's format. Gradients of gradients are not offered.

    Args:
        hidden: (tokens, d_model).
        weight: (vocab_size, d_model).
        targets: int64 (tokens,); `IGNORE` where nothing is asked.
        chunk_tokens: rows of logits that exist at a time.
        cap: see `softcap`.

    Raises:
        ValueError: shapes do not fit, or a chunk has no token.
    """
    if hidden.ndim != 2 or targets.shape != hidden.shape[:1] or weight.shape[1:] != hidden.shape[1:]:
        shapes = f"{tuple(hidden.shape)}, {tuple(weight.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"expected (tokens, d_model), (vocab_size, d_model) and (tokens,), got {shapes}")
    if chunk_tokens < 1:
        raise ValueError(f"a chunk must have at least 1 token, got {chunk_tokens}")
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return _ChunkedCrossEntropy.apply(hidden, weight, targets, chunk_tokens, cap, dtype)
