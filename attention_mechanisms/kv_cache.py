"""The key/value cache: what attention remembers so that a new token costs one row of work, not all of them.

A causal model's keys and values of a token never change once computed, since later tokens cannot reach back. While
generating, each step therefore needs the query of the new token only, against the kept keys and values of all before.

The buffers are allocated once, for the longest text that will come, and filled from the left: appending by
concatenation would copy everything at every step, O(T²) bytes for T tokens.

    bytes per token and layer = 2 (K and V) · n_kv_head · head_dim · bytes per number
"""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values of one attention layer for `batch_size` sequences of the same length.

    The cache is handed to `forward` as an argument and never kept inside the module: one model can serve many
    conversations, each with its own cache.

    Args:
        batch_size: sequences side by side.
        n_kv_head: heads of keys and values.
        max_length: tokens that fit.
        head_dim: numbers in one head's key or value.
    """

    def __init__(
        self,
        batch_size: int,
        n_kv_head: int,
        max_length: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch_size, n_kv_head, max_length, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def max_length(self) -> int:
        """Tokens that fit."""
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes that the buffers really hold."""
        return self.keys.nbytes + self.values.nbytes

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the keys and values of new tokens and returns all that are kept, old and new.

        Args:
            keys, values: (batch, n_kv_head, new tokens, head_dim).

        Returns:
            Two views (batch, n_kv_head, length, head_dim) into the buffers, not copies.

        Raises:
            ValueError: they do not fit.
        """
        end = self.length + keys.shape[2]
        if end > self.max_length:
            raise ValueError(
                f"the cache holds {self.max_length} tokens; {self.length} are in it and {keys.shape[2]} came"
            )
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` tokens, so that a shared beginning need not be computed again."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of {self.length} tokens to {length}")
        self.length = length

    def reset(self) -> None:
        """Forgets everything; the buffers stay."""
        self.length = 0


class LayerCaches:
    """The caches of all layers of a model, which fill in step."""

    def __init__(self, layers: list[KVCache]) -> None:
        self.layers = layers

    @property
    def length(self) -> int:
        """Tokens seen so far, and so the position of the next one."""
        return self.layers[0].length

    @property
    def max_length(self) -> int:
        """Tokens that fit."""
        return self.layers[0].max_length

    @property
    def nbytes(self) -> int:
        """Bytes that the buffers of all layers really hold."""
        return sum(layer.nbytes for layer in self.layers)

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` tokens, in every layer."""
        for layer in self.layers:
            layer.truncate(length)

    def reset(self) -> None:
        """Forgets everything, in every layer."""
        self.truncate(0)
