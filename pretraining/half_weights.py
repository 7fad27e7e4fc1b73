"""Half-precision weights with float32 masters: matrices are kept in bfloat16 for the products, and learn in float32.

Under autocast alone every part of a batch casts every matrix anew, and what the embedding says is float32, and so is
the residual stream that all blocks add to. Here each matrix has a bfloat16 copy for a whole step. The embedding's is
read as well, so the stream moves half the bytes, too. Norms and biases stay float32: they are small, and add up.

bfloat16 keeps 8 bits of a fraction. A step that is smaller than 1/256 of a weight would be lost in it, and most are.
So the model's own float32 matrices are the *masters* (Micikevicius et al. 2018, section 3.1), and the copies are made
of them before each step:

    copy ← bfloat16(master);   master.grad ← master.grad + float32(copy.grad), part by part;   step the master

The copies are in the model's place while its gradient is computed, and never else. So whatever optimises, measures,
saves or goes on knows nothing of them, and a checkpoint holds no weights but the masters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class HalfMatrices:
    """bfloat16 copies of the matrices of `model` that learn; of none if not `enabled`."""

    def __init__(self, model: nn.Module, enabled: bool) -> None:
        self.copies: dict[nn.Parameter, nn.Parameter] = {}
        """master -> copy."""
        self._places: list[tuple[nn.Module, str, nn.Parameter]] = []  # (module, name in it, master)
        for module in model.modules() if enabled else ():
            for name, master in module.named_parameters(recurse=False):
                if master.ndim == 2 and master.requires_grad:
                    if master not in self.copies:  # a tied matrix has two places
                        self.copies[master] = nn.Parameter(master.detach().to(torch.bfloat16))
                    self._places.append((module, name, master))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """While the block runs, the model computes with the copies, rounded from the masters as they are now."""
        with torch.no_grad():
            for master, copy in self.copies.items():
                copy.copy_(master)
        for module, name, master in self._places:
            setattr(module, name, self.copies[master])
        try:
            yield
        finally:
            for module, name, master in self._places:
                setattr(module, name, master)

    def give_gradients(self) -> None:
        """Adds the copies' gradients to the masters', in float32: sums of many parts would lose bits in bfloat16."""
        for master, copy in self.copies.items():
            if copy.grad is None:
                continue
            if master.grad is None:
                master.grad = copy.grad.to(master.dtype)
            else:
                master.grad += copy.grad
            copy.grad = None
