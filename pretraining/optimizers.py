"""Optimisers: how a gradient becomes a step.

AdamW (Loshchilov and Hutter 2019) divides each number's step by the size that its gradient usually has. For that it
keeps two numbers a parameter, more bytes than the model itself.

That treats a matrix as a bag of numbers. Muon (Jordan et al. 2024) takes the momentum of a whole matrix and puts the
nearest orthogonal one in its place: with the singular value decomposition M = U S Vᵀ, the step is U Vᵀ. So every
direction learns at one speed, where plain momentum spends nearly all on the few largest. A decomposition would be slow;
five rounds of an odd polynomial, which pushes all singular values towards 1, need matrix products only (Newton-Schulz).
One number a parameter is kept. Embeddings, biases and norms are no maps from vectors to vectors, and stay with AdamW.

GaLore (Zhao et al. 2024) saves memory the other way: the gradient of a matrix is projected on its `rank` largest
singular directions, Adam works in that small space, and the step is projected back; every `gap` steps the directions
are found anew. `galore-torch` does it for those parameter groups only that say `rank`, and for the others without a
word does nothing: `state_bytes` shows what is really saved.

| name | kept for a matrix (m, n), m ≤ n, and rank r | needs |
|---|---|---|
| adamw | 2 m n | |
| muon | m n | |
| galore-adamw | m r + 2 n r | |
| galore-adamw8bit | the same at a byte each, blocks' scales besides | CUDA |
| galore-adafactor | m r + n + r | |
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from utils.devices import has_fast_bfloat16

OptimizerName = Literal["muon", "adamw", "galore-adamw", "galore-adamw8bit", "galore-adafactor"]


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
                whole = torch.stack([x.full_tensor() if isinstance(x, DTensor) else x for x in ahead])
                steps = orthogonalise(whole) * max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(parameters, steps, strict=True):
                    if isinstance(parameter, DTensor):  # every rank has computed all of it, and keeps its own part
                        update = distribute_tensor(update, parameter.device_mesh, parameter.placements)
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


@dataclass(frozen=True)
class GaLore:
    """How GaLore projects.

    Raises:
        ValueError: a number is not above 0.
    """

    rank: int = 128
    """Directions that the gradient of a matrix keeps; a matrix that is no larger is stepped by plain Adam."""
    gap: int = 200
    """Steps from one decomposition to the next."""
    scale: float = 0.25
    """The step, as a share of plain Adam's."""
    embeddings: bool = False
    """Project the embeddings, too."""

    def __post_init__(self) -> None:
        for name in ("rank", "gap", "scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"GaLore's {name} must be above 0, got {getattr(self, name)}")


def make_optimizers(
    model: nn.Module,
    name: OptimizerName,
    matrix_lr: float,
    other_lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.95),
    momentum: float = 0.95,
    decay_embeddings: bool = False,
    galore: GaLore | None = None,
) -> list[torch.optim.Optimizer]:
    """The optimisers of a model: its blocks' matrices with `name`, everything else with AdamW.

    Norms and biases never decay: pulling them to zero does not make a model simpler, only worse.
    Each parameter group keeps its full rate in `group["peak_lr"]`, for a schedule to scale.

    Args:
        matrix_lr, weight_decay: of the blocks' matrices.
        other_lr: of embeddings, norms and biases.
        betas: how much of the running means AdamW keeps at a step: of the gradient, and of its square.
        momentum: of Muon.
        decay_embeddings: embeddings decay as the matrices do.
        galore: of the three GaLore optimisers; the defaults if not given.

    Raises:
        ValueError: no such optimiser, or it cannot run where the model is.
    """
    if name not in get_args(OptimizerName):
        raise ValueError(f"unknown optimizer {name!r}: use one of {', '.join(get_args(OptimizerName))}")
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrices = [p for n, p in named if p.ndim == 2 and ".h." in n]
    chosen = {id(p) for p in matrices}
    embeddings = [p for _, p in named if p.ndim == 2 and id(p) not in chosen]
    vectors = [p for _, p in named if p.ndim != 2]
    kept: dict[str, Any] = {"params": embeddings, "lr": other_lr, "weight_decay": weight_decay * decay_embeddings}
    of_matrices: dict[str, Any] = {"params": matrices, "lr": matrix_lr, "weight_decay": weight_decay}
    rest: list[dict[str, Any]] = [{"params": vectors, "lr": other_lr, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = []
    if name.startswith("galore"):
        galore = galore or GaLore()
        groups = [*_galore_groups(of_matrices, galore)]
        groups += _galore_groups(kept, galore) if galore.embeddings else [kept]
        optimizers.append(_galore_optimizer(name, [*groups, *rest], betas))
    else:
        if name == "muon":
            optimizers.append(Muon(matrices, matrix_lr, momentum, weight_decay))
            rest = [kept, *rest]
        else:
            rest = [kept, *rest, of_matrices]
        rest = [group for group in rest if group["params"]]
        if rest:
            optimizers.append(torch.optim.AdamW(rest, betas=betas, eps=1e-10, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _galore_groups(group: dict[str, Any], galore: GaLore) -> Iterator[dict[str, Any]]:
    """`group` in two: what is projected, which has to say so by a `rank`, and what is too small for it."""
    large = [p for p in group["params"] if min(p.shape) > galore.rank]
    small = [p for p in group["params"] if min(p.shape) <= galore.rank]
    projected = {"rank": galore.rank, "update_proj_gap": galore.gap, "scale": galore.scale, "proj_type": "std"}
    if large:
        yield group | {"params": large} | projected
    if small:
        yield group | {"params": small}


def _galore_optimizer(name: str, groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.Optimizer:
    groups = [group for group in groups if group["params"]]
    parameters = [p for group in groups for p in group["params"]]
    if any(isinstance(p, DTensor) for p in parameters):
        raise ValueError(f"{name} decomposes whole matrices, and fsdp cuts them: use --parallel ddp, muon or adamw")
    if name == "galore-adamw8bit" and parameters[0].device.type != "cuda":
        raise ValueError(f"galore-adamw8bit runs on CUDA only, and the model is on {parameters[0].device.type}")
    import galore_torch  # here, because with it come transformers and bitsandbytes, some seconds that few runs need

    made: torch.optim.Optimizer
    if name == "galore-adafactor":
        made = galore_torch.GaLoreAdafactor(
            groups, beta1=betas[0], scale_parameter=False, relative_step=False, warmup_init=False
        )
    elif name == "galore-adamw8bit":
        made = galore_torch.GaLoreAdamW8bit(groups, betas=betas)
    else:
        made = galore_torch.GaLoreAdamW(groups, betas=betas, no_deprecation_warning=True)
    made.register_step_post_hook(_compact_projections)
    return made


def _compact_projections(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """After a decomposition, keeps the directions alone.

    `galore-torch` keeps a view of all of them: the memory that it promises to save is still held. And the view lies in
    columns, where one loaded from a file lies in rows; a processor may round their products differently.
    """
    for values in optimizer.state.values():
        projector = values.get("projector")
        if projector is None:
            continue
        matrix = projector.ortho_matrix
        if not matrix.is_contiguous() or matrix.untyped_storage().nbytes() > matrix.nbytes:
            projector.ortho_matrix = matrix.clone(memory_format=torch.contiguous_format)


def state_bytes(optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Bytes that the optimisers keep from step to step, projections included."""

    def of(value: Any) -> int:
        if isinstance(value, Tensor):
            return value.nbytes
        if isinstance(value, dict):
            return sum(map(of, value.values()))
        return sum(map(of, value)) if isinstance(value, list | tuple) else 0

    return of([optimizer_state(optimizer)["state"] for optimizer in optimizers])


_PROJECTOR = ("rank", "update_proj_gap", "scale", "proj_type", "ortho_matrix")


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`optimizer.state_dict()` made of dictionaries, lists, numbers and tensors alone, which can be stored safely.

    GaLore keeps an object of its own among them, which only a pickle could hold; its fields stand in for it.
    """
    state = optimizer.state_dict()
    plain = {
        index: {
            key: {field: getattr(value, field) for field in _PROJECTOR} if key == "projector" else value
            for key, value in values.items()
        }
        for index, values in state["state"].items()
    }
    return {**state, "state": plain}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Gives an optimiser what `optimizer_state` gave of one for the same parameters.

    Raises:
        ValueError: it is of another optimiser or of other parameter groups.
    """
    projectors = {i: values["projector"] for i, values in state["state"].items() if "projector" in values}
    others = {i: {k: v for k, v in values.items() if k != "projector"} for i, values in state["state"].items()}
    optimizer.load_state_dict({**state, "state": others})
    if not projectors:
        return
    from galore_torch.galore_projector import GaLoreProjector

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, fields in projectors.items():
        matrix = fields["ortho_matrix"]
        projector = GaLoreProjector(**{name: fields[name] for name in _PROJECTOR if name != "ortho_matrix"})
        projector.ortho_matrix = matrix.to(parameters[i].device)
        optimizer.state[parameters[i]]["projector"] = projector
