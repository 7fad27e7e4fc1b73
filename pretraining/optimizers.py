"""Optimisers: how a gradient becomes a step.

AdamW (Loshchilov and Hutter 2019) divides each number's step by the size that its gradient usually has. That ignores
that most parameters are matrices. Muon (Jordan et al. 2024) takes the momentum of a whole matrix and replaces it by
the nearest orthogonal one: with the singular value decomposition M = U S Vᵀ, the step is U Vᵀ, so that every direction
learns at one speed, where plain momentum spends nearly all on the few largest. A decomposition would be slow; five
rounds of an odd polynomial, which pushes every singular value towards 1, need matrix products only (Newton-Schulz).

Embeddings, biases and norms are no maps from vectors to vectors, and stay with AdamW.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from utils.devices import has_fast_bfloat16

OptimizerName = Literal["muon", "adamw"]


def orthogonalise(matrices: Tensor, rounds: int = 5) -> Tensor:
    """About U Vᵀ of each matrix U S Vᵀ: singular values land between 0.7 and 1.2, which is near enough for a step.

    Each round is X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X. The coefficients are Jordan's: steep at zero, so that small
    singular values grow quickly, at the price of never settling exactly at 1.

    Args:
        matrices: (…, rows, columns).

    Returns:
        The same shape and dtype.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # X Xᵀ is then the smaller of the two products
    x = x.to(torch.bfloat16 if has_fast_bfloat16(matrices.device) else torch.float32)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # the largest singular value is now at most 1
    for _ in range(rounds):
        gram = x @ x.mT  # (…, rows, rows)
        x = a * x + (b * gram + c * gram @ gram) @ x  # (…, rows, columns)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024). For matrices only.

    Args:
        parameters: two-dimensional ones.
        lr: the step of a square matrix has this as its spectral norm; a tall one's is √(rows / columns) times it.
        momentum: share of the old momentum that is kept; the step looks one gradient ahead (Nesterov).
        weight_decay: times lr, the share of each weight that is lost at a step.

    Raises:
        ValueError: a parameter is not a matrix.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon steps matrices, not a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; matrices of equal shape are orthogonalised together."""
        for group in self.param_groups:
            by_shape: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                ahead = []
                for parameter in parameters:
                    gradient, state = parameter.grad, self.state[parameter]
                    assert gradient is not None
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(parameter)
                    state["momentum"].lerp_(gradient, 1 - group["momentum"])
                    ahead.append(gradient.lerp(state["momentum"], group["momentum"]))
                steps = orthogonalise(torch.stack(ahead)) * max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(parameters, steps, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


def make_optimizers(
    model: nn.Module, name: OptimizerName, matrix_lr: float, other_lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """The optimisers of a model: its blocks' matrices with `name`, everything else with AdamW.

    Norms and biases never decay: pulling them to zero does not make a model simpler, only worse.
    Each parameter group keeps its full rate in `group["peak_lr"]`, for a schedule to scale.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".h." in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in others if p.ndim == 2], "lr": other_lr, "weight_decay": 0.0},
        {"params": [p for p in others if p.ndim != 2], "lr": other_lr, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if name == "adamw":
        groups.append({"params": matrices, "lr": matrix_lr, "weight_decay": weight_decay})
    else:
        optimizers.append(Muon(matrices, matrix_lr, weight_decay=weight_decay))
    optimizers.append(torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-10, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers
