"""What several tests of attention need: eyes for memory, and weights of other people's modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that any operation made; a view of an older one is not made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in before:
                self.numel = max(self.numel, x.untyped_storage().nbytes() // x.element_size())
        return result


def largest_allocation(work: Callable[[], object]) -> int:
    """Bytes of the largest piece of CPU memory that `work` asked for, inside of fused kernels too."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = profile.profiler.kineto_results.events()
    return max(event.nbytes() for event in events if event.name() == "[memory]")


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Gives every weight, those of norms and biases too, a value that would show if it were forgotten."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * (0.3 if weight.ndim > 1 else 0.5))
            if "norm" in name:
                weight.add_(1)


def copy_llama(theirs: Any, ours: Any) -> None:
    """Copies the weights of transformers' LlamaAttention or MistralAttention: three matrices there are one here."""
    with torch.no_grad():
        ours.c_attn.weight.copy_(torch.cat([theirs.q_proj.weight, theirs.k_proj.weight, theirs.v_proj.weight]))
        ours.c_proj.weight.copy_(theirs.o_proj.weight)


def assert_same_attention(theirs: Any, ours: Any, x: Tensor, positions: Any, hidden: Tensor) -> None:
    """Outputs, weights and gradients of modules that `copy_llama` made equal; `hidden`: what theirs adds to scores."""
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y_theirs, weights_theirs = theirs(b, positions, hidden)
    y_ours = ours(a)
    torch.testing.assert_close(y_ours, y_theirs)
    torch.testing.assert_close(ours.reference(a)[1], weights_theirs)
    y_ours.square().sum().backward()
    y_theirs.square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    parts = [theirs.q_proj.weight.grad, theirs.k_proj.weight.grad, theirs.v_proj.weight.grad]
    torch.testing.assert_close(ours.c_attn.weight.grad, torch.cat(parts))
    torch.testing.assert_close(ours.c_proj.weight.grad, theirs.o_proj.weight.grad)
