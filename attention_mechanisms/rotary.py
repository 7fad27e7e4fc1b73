"""Rotary position embedding, RoPE (Su et al. 2021, section 3.4): where a token stands, written as an angle.

Take a query and a key as d/2 points in the plane each, and turn point i of a token at position p by the angle p · θᵢ:

    θᵢ = base^(-2i / d)          i = 0 … d/2 - 1
    (a, b)  ->  (a cos pθᵢ - b sin pθᵢ,  b cos pθᵢ + a sin pθᵢ)

The product of two points depends on the angle between them only. So q·k depends on the *distance* of the two tokens and
not on where in the text they stand: fast points tell neighbours apart, slow ones tell paragraphs apart. Nothing is
learned, values are not turned, and nothing is added to the residual stream.

Point i is made of the numbers i and i + d/2 of a head, as in `transformers`' Llama. The paper, and DeepSeek, take
neighbours 2i and 2i + 1: the same thing with the rows of W_q and W_k in another order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotary:
    """Turns queries and keys by their positions.

    It has no weights, so it is no module: nothing is saved, and half precision weights do not round the angles.

    Args:
        dim: numbers that are turned, an even count.
        max_length: positions that there are.
        base: the slowest point turns about once in 2π · base tokens; more for longer contexts.

    Raises:
        ValueError: `dim` is odd or not positive.
    """

    dim: int
    max_length: int
    base: float = 10_000.0

    def __post_init__(self) -> None:
        if self.dim < 2 or self.dim % 2:
            raise ValueError(f"rotary positions turn pairs of numbers: {self.dim} is not an even count of at least 2")

    def require(self, head_dim: int) -> None:
        """Raises ValueError where heads are of another width than what is turned."""
        if self.dim != head_dim:
            raise ValueError(f"rotary positions of {self.dim} numbers do not fit heads of {head_dim}")

    def __call__(self, x: Tensor, start: int | Tensor) -> Tensor:
        """Turns `x`, whose first token stands at position `start`.

        Args:
            x: (…, tokens, dim).
            start: for all rows; or int64 (batch,), for each of `x` (batch, …, tokens, dim) its own. A tensor, with one
                number as a `StaticKVCache` has it or with several, is not checked.

        Returns:
            The same shape and dtype.

        Raises:
            ValueError: a position is beyond `max_length`.
        """
        n_tokens = x.shape[-2]
        table = _constant_table(self.dim, self.max_length, self.base, x.device)  # (2, max_length, dim / 2)
        if not isinstance(start, Tensor) and start + n_tokens > self.max_length:
            raise ValueError(f"{start + n_tokens} tokens are more than the model's context of {self.max_length}")
        if isinstance(start, Tensor) and start.ndim:
            at = start[:, None] + torch.arange(n_tokens, device=x.device)  # (batch, tokens)
            cos, sin = table[:, at.view(len(at), *[1] * (x.ndim - 3), n_tokens)]  # (batch, …, tokens, dim / 2)
        elif isinstance(start, Tensor) or torch.compiler.is_compiling():  # a slice would make `start` part of the graph
            cos, sin = table[:, start + torch.arange(n_tokens, device=x.device)]  # (tokens, dim / 2)
        else:
            cos, sin = table[:, start : start + n_tokens]
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        a, b = exact.chunk(2, dim=-1)  # each (…, tokens, dim / 2)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


@lru_cache(maxsize=16)
def rotation_table(dim: int, length: int, base: float, device: torch.device) -> Tensor:
    """float32 (2, length, dim / 2): cosine and sine of every position's angles, computed once for all layers.

    Models in float64 are turned by float32's angles too: fine for tests to 1e-6, and for everything that is trained.
    """
    with torch.inference_mode(False):  # a table made while generating must serve training as well
        points = torch.arange(0, dim, 2, dtype=torch.float64) / dim
        angles = torch.outer(torch.arange(length, dtype=torch.float64), base**-points)  # (length, dim / 2)
        return torch.stack([angles.cos(), angles.sin()]).float().to(device)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constant_table(dim: int, length: int, base: float, device: torch.device) -> Tensor:
    """`rotation_table`: a compiled model keeps it, where it would otherwise make all of it anew in every pass."""
    return rotation_table(dim, length, base, device)
