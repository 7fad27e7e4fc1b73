"""Rows of different lengths that take a step together: what continuous batching asks of the caches.

A server writes many texts at once, which begin and end when they like (Yu et al. 2022, Orca, section 3). Aligned at
their ends they would have to be moved whenever one comes. So here each text has a row of the cache for itself, filled
from the left, with a length of its own:

    row 0      T  h  i  s  .  ?
    row 1      H  i  !  ?
    row 2      A  n  d  ?

A prompt is read in its row alone (`LayerCaches.row`), by the ordinary caches. What is here is for the other step, the
one that is taken for every token: one token a row, each at its own position, all rows in one pass. The products with
the weights do not care. Attention writes each row's key into that row's own place, and a mask hides what lies beyond
its length; it is one call for all rows, as long as the longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attention_mechanisms.kv_cache import Cache, Device, KVCache, LatentCache, LayerCaches, RollingCache


class _Step:
    """What all layers need to know of a step: the lengths of the rows before it, int64 (rows,)."""

    def __init__(self, lengths: Sequence[int], device: Device) -> None:
        self.lengths = torch.tensor(lengths, device=device)
        self.rows = torch.arange(len(lengths), device=device)
        self.longest = max(lengths) + 1
        self.mask: Tensor | None = None  # bool (rows, 1, 1, longest): the keys up to each row's own
        if min(lengths) < self.longest - 1:
            keys = torch.arange(self.longest, device=device)
            self.mask = (keys <= self.lengths[:, None])[:, None, None]

    def take(self, cache: Cache) -> tuple[Tensor, ...]:
        """The buffers of the rows that take the step."""
        return tuple(buffer[: len(self.rows)] for buffer in cache.buffers)

    def write(self, buffers: Sequence[Tensor], new: Sequence[Tensor], at: Tensor) -> None:
        """Puts a token of each row, (rows, …, 1, numbers), into the place `at` (rows,) of its buffer."""
        for buffer, one in zip(buffers, new, strict=True):
            buffer.movedim(-2, 1)[self.rows, at] = one.squeeze(-2).to(buffer.dtype)


class _RaggedKVCache(KVCache):
    """The first rows of a KVCache, for one step."""

    def __init__(self, cache: KVCache, step: _Step) -> None:
        self.buffers, self.step = step.take(cache), step
        self.length = step.lengths  # type: ignore[assignment]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of one token a row; returns those of all, (rows, n_kv_head, longest, head_dim)."""
        self.step.write(self.buffers, (keys, values), self.step.lengths)
        return self.keys[:, :, : self.step.longest], self.values[:, :, : self.step.longest]

    def padding_mask(self, n_query: int) -> Tensor | None:
        """Which keys the token of each row sees."""
        return self.step.mask


class _RaggedLatentCache(LatentCache):
    """The first rows of a LatentCache, for one step."""

    def __init__(self, cache: LatentCache, step: _Step) -> None:
        self.buffers, self.step = step.take(cache), step
        self.length = step.lengths  # type: ignore[assignment]

    def append(self, latents: Tensor) -> Tensor:
        """Latents of one token a row; returns those of all, (rows, longest, d_latent + d_rope)."""
        self.step.write(self.buffers, (latents,), self.step.lengths)
        return self.latents[:, : self.step.longest]

    def padding_mask(self, n_query: int) -> Tensor | None:
        """Which keys the token of each row sees."""
        return self.step.mask


class _RaggedRollingCache(RollingCache):
    """The first rows of a RollingCache, for one step."""

    def __init__(self, cache: RollingCache, step: _Step) -> None:
        self.buffers, self.step = step.take(cache), step
        self.window, self.n_sink, self.max_length = cache.window, cache.n_sink, cache.max_length
        self.length, self.padding = step.lengths, None  # type: ignore[assignment]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of one token a row; returns the sinks and the ring of all, filled or not."""
        at = self.step.lengths
        self.step.write(self.buffers, (keys, values), self.n_sink + at % self.window)
        early = (at < self.n_sink).nonzero().flatten()  # rows whose token is a sink, too
        for buffer, new in zip(self.buffers, (keys, values), strict=True):
            buffer[early, :, at[early]] = new[early, :, 0].to(buffer.dtype)
        return self.keys, self.values

    def newest_mask(self) -> Tensor:
        """Which slots the token of each row sees, bool (rows, 1, 1, n_sink + window)."""
        at = self.step.lengths[:, None]  # (rows, 1)
        slots = torch.arange(self.window, device=at.device)
        written = slots + (at - slots).div(self.window, rounding_mode="floor") * self.window >= 0  # (rows, window)
        sinks = torch.arange(self.n_sink, device=at.device) <= at - self.window  # once they have left the window
        return torch.cat([sinks, written], dim=1)[:, None, None]


_RAGGED: dict[type[Cache], type[Any]] = {
    KVCache: _RaggedKVCache,
    LatentCache: _RaggedLatentCache,
    RollingCache: _RaggedRollingCache,
}


class RaggedCaches(LayerCaches):
    """The caches of all layers for one step of one token a row, each row at its own position.

    To be used once: the rows take note of their new token by `done`.

    Args:
        shared: what `make_cache` gave, for at least as many rows.
        rows: the first ones of `shared.row(i)`, in this order, none of them empty or full.
    """

    def __init__(self, shared: LayerCaches, rows: Sequence[LayerCaches]) -> None:
        self.rows = rows
        self.step = _Step([row.length for row in rows], shared.layers[0].buffers[0].device)
        super().__init__([_RAGGED[type(layer)](layer, self.step) for layer in shared.layers])

    @property
    def length(self) -> int:
        """Tokens of the longest row before the step."""
        return self.step.longest - 1

    def positions(self, n_new: int, device: Device) -> Tensor:
        """int64 (rows, 1): where in its text the token of each row stands."""
        return self.step.lengths[:, None]

    def done(self) -> None:
        """After the step: each row is longer by a token."""
        for row in self.rows:
            for layer in row.layers:
                layer.advance()
