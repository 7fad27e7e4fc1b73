"""Many processes that learn as one: who is who, how gradients meet, and what each has to keep.

Each process (a *rank*) has a device and a slice of every batch. Two ways to make one model of their work:

    ddp     every rank keeps all weights and all optimiser state. After each backward pass the gradients are averaged
            over the ranks, so that all take the same step (Li et al. 2020).
    fsdp    every rank keeps a slice of each tensor: of weights, gradients and optimiser state alike. A block's weights
            are gathered just before they are needed and let go after; gradients are summed to where their slice lives
            (Rajbhandari et al. 2020, ZeRO stage 3; PyTorch's `fully_shard`). More traffic, 1/ranks of the memory.

Either way the step is that of one process with the joined batch. The mean over ranks of their own mean losses would
not be: ranks can have different numbers of targets. So each rank's *sum* is divided by the number of targets of *all*
ranks, and multiplied by the number of ranks, since what follows is an average.

`torchrun` starts the processes, tells each its RANK, LOCAL_RANK and WORLD_SIZE, and ends all when one fails.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from utils.devices import pick_device

Parallel = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Ranks:
    """This process among all that train together."""

    rank: int
    """From 0; rank 0 is the one that writes and speaks."""
    size: int
    """How many there are."""
    device: torch.device
    """This one's own."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0


@contextlib.contextmanager
def join_ranks(device: str = "auto") -> Iterator[Ranks]:
    """This process's place among those that `torchrun` started; one of one where it was not started so.

    Args:
        device: as `pick_device`; "auto" and "cuda" give each process of a machine a GPU of its own.

    Raises:
        ValueError: no such device, or there are more processes on this machine than GPUs.
    """
    size, rank, local = (int(os.environ.get(name, "01"[name == "WORLD_SIZE"])) for name in _OF_TORCHRUN)
    if device == "auto" and size > 1 and not torch.cuda.is_available():
        device = "cpu"  # several processes cannot share an Apple GPU's work
    place = pick_device(f"cuda:{local}" if size > 1 and device in ("auto", "cuda") else device)
    if size > 1:
        if place.type == "cuda":
            torch.cuda.set_device(place)
        dist.init_process_group(_backend(place))
    try:
        yield Ranks(rank, size, place)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
            # That forgets the group, whose threads end only when nothing else holds it, and DDP's objects hold it in a
            # circle. A thread with a tensor in its hand when the interpreter ends would abort the process.
            gc.collect()


def _backend(device: torch.device) -> str:
    """Gradients go through NCCL between GPUs; single numbers go through gloo, and need not wait for the GPU."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


_OF_TORCHRUN = ("WORLD_SIZE", "RANK", "LOCAL_RANK")


def add_up(ranks: Ranks, *values: float) -> list[float]:
    """The sum over all ranks of each of `values`, in double precision; every rank must call it."""
    if ranks.size == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)  # (values,)
    dist.all_reduce(sums)
    return cast(list[float], sums.tolist())


def say_to_all(ranks: Ranks, value: Any) -> Any:
    """What rank 0 has as `value`, on every rank; every rank must call it."""
    if ranks.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def wait_for_all(ranks: Ranks) -> None:
    """Returns when every rank is here."""
    add_up(ranks, 0.0)


def parallelise(
    objective: nn.Module, blocks: Sequence[nn.Module], ranks: Ranks, parallel: Parallel, half: bool = False
) -> nn.Module:
    """What to call in place of `objective`, so that backward joins the gradients of all ranks.

    Args:
        objective: its `forward` gives the loss. For fsdp its parameters are cut in place.
        blocks: parts of it that are gathered and let go one by one, in the order in which they are used.
        half: fsdp gathers its float32 slices as bfloat16 weights, and adds up gradients in float32.
    """
    if parallel == "fsdp":
        if not dist.is_initialized():  # one rank alone is a group, too
            dist.init_process_group(_backend(ranks.device), store=HashStore(), rank=0, world_size=1)
        policy = MixedPrecisionPolicy()
        if half:
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        for block in blocks:
            fully_shard(block, mp_policy=policy)
        return cast(nn.Module, fully_shard(objective, mp_policy=policy))
    if ranks.size == 1:
        return objective
    on = [ranks.device] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(objective, device_ids=on, broadcast_buffers=False, gradient_as_bucket_view=True)


@contextlib.contextmanager
def gradients_meet(parallel: nn.Module, meet: bool) -> Iterator[None]:
    """Around a forward and backward pass: whether its gradients are joined (the last of a step) or only gathered up."""
    if isinstance(parallel, FSDPModule):
        parallel.set_requires_gradient_sync(meet)
        yield
        return
    alone: AbstractContextManager[Any] = contextlib.nullcontext()
    if isinstance(parallel, DistributedDataParallel) and not meet:
        alone = parallel.no_sync()
    with alone:
        yield


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scales all gradients together so that their joint norm is `max_norm` at most (Pascanu et al. 2013).

    Args:
        max_norm: 0 for no limit.

    Returns:
        The norm before: of the whole gradient, however many ranks it is cut over.
    """
    parameters = [p for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([cast(Tensor, p.grad) for p in parameters])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm.item()


@contextlib.contextmanager
def gathered(parallel: nn.Module) -> Iterator[None]:
    """While the block runs, the weights outside of the blocks are whole on every rank; every rank must be in it."""
    if isinstance(parallel, FSDPModule):
        parallel.unshard()
    yield
    if isinstance(parallel, FSDPModule):
        parallel.reshard()


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights on the CPU, put together from all ranks; every rank must call it."""
    return {
        name: (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach().cpu()
        for name, weight in model.state_dict().items()
    }
