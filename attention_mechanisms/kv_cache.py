"""Caches: what attention remembers so that a new token costs one row of work, not all of them.

A causal model's keys and values of a token never change once computed, since later tokens cannot reach back. While
generating, each step therefore needs the query of the new token only, against the kept keys and values of all before.

The buffers are allocated once, for the longest text that will come, and filled from the left: appending by
concatenation would copy everything at every step, O(T²) bytes for T tokens. A cache is handed to `forward` as an
argument and never kept inside a module: one model can serve many conversations, each with its own cache.

What is kept of a token, in numbers a layer:

    KVCache        keys and values of each key/value head    2 · n_kv_head · head_dim
    LatentCache    one latent vector, one rotary key         d_latent + d_rope
    RollingCache   as KVCache, of the last `window` tokens   nothing more, once the window is full

**Rows of different lengths.** The texts of a batch are aligned at their *right* ends, so that all of them write their
next token into the same column:

    column     0  1  2  3  4 | 5          padding
    row 0      T  h  i  s  . | ?          0
    row 1      -  -  H  i  ! | ?          2

`length`, the number of columns filled, is then one number for all rows and the only position there is. `padding` says
how many columns on the left of each row are no text: nobody looks at them. A learned position is counted from where
the text begins, column - padding; rotary positions depend on distances alone, so the column will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, Self

import torch
from torch import Tensor

from attention_mechanisms.masks import sinks_and_window, visible

Device = torch.device | str


def pad_left(rows: Sequence[Sequence[int]], pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """Texts of different lengths as one batch, aligned at their ends.

    Returns:
        ids int64 (batch, longest), and padding int64 (batch,): the columns on the left of each row that hold `pad_id`.

    Raises:
        ValueError: no row, or an empty one.
    """
    if not rows or not all(rows):
        raise ValueError("a batch needs at least one row, and each row at least one id")
    longest = max(map(len, rows))
    padding = [longest - len(row) for row in rows]
    ids = [[pad_id] * n + list(row) for n, row in zip(padding, rows, strict=True)]
    return torch.tensor(ids), torch.tensor(padding)


def check_padding(padding: Tensor | None, batch_size: int, max_length: int) -> None:
    """Raises ValueError where padding is not a count of columns for each text that leaves room for some text."""
    if padding is None:
        return
    if not isinstance(padding, Tensor) or padding.dtype != torch.int64 or padding.shape != (batch_size,):
        what = f"{padding.dtype} of shape {tuple(padding.shape)}" if isinstance(padding, Tensor) else repr(padding)
        raise ValueError(f"padding must be an int64 tensor with a number for each of {batch_size} texts, not {what}")
    if not 0 <= int(padding.min()) <= int(padding.max()) < max_length:
        raise ValueError(f"padding must be from 0 to below the {max_length} tokens that fit, not {padding.tolist()}")


class Cache:
    """What all caches of one layer have in common: a length, padding, and buffers.

    Args:
        max_length: tokens of a text that fit.
        padding: int64 (batch,), columns on the left of each row that are no text; None if all rows begin at 0.
        buffers: what the subclass keeps.
    """

    def __init__(self, max_length: int, padding: Tensor | None, *buffers: Tensor) -> None:
        if max_length < 1:
            raise ValueError(f"a cache holds at least 1 token, not {max_length}")
        check_padding(padding, buffers[0].shape[0], max_length)
        self.max_length = max_length
        self.padding = padding
        self.buffers = buffers
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes that the buffers really hold."""
        return sum(buffer.nbytes for buffer in self.buffers)

    @classmethod
    def require(cls, cache: Any, mask: Tensor | None = None) -> None:
        """Raises ValueError where an attention that keeps such a cache is given that of another, or a mask beside it.

        A class of your own, with the same methods, is taken as it is.
        """
        if mask is not None:
            raise ValueError("a mask is for whole windows, without a cache: the cache knows who may look at whom")
        if isinstance(cache, Cache) and not isinstance(cache, cls):
            raise ValueError(
                f"this attention keeps a {cls.__name__} and was given a {type(cache).__name__}: use the make_cache of "
                "the same model"
            )

    def grow(self, new: Tensor) -> int:
        """The length with new tokens, (…, tokens, numbers) as the buffers are.

        Raises:
            ValueError: they do not fit, or are of another batch, other heads or another width.
        """
        kept, n_new = self.buffers[0], new.shape[-2]
        if (*new.shape[:-2], new.shape[-1]) != (*kept.shape[:-2], kept.shape[-1]):
            raise ValueError(
                f"the cache was made for {kept.shape[0]} texts, {tuple(kept.shape[1:-2])} heads and "
                f"{kept.shape[-1]} numbers; what came is of {new.shape[0]}, {tuple(new.shape[1:-2])} and "
                f"{new.shape[-1]}: make a cache with the same model for as many texts"
            )
        end = self.length + n_new
        if end > self.max_length:
            raise ValueError(f"the cache holds {self.max_length} tokens; {self.length} are in it and {n_new} came")
        return end

    def padding_mask(self, n_query: int) -> Tensor | None:
        """Which keys the last `n_query` tokens see, bool (batch, 1, n_query, length); None if there is no padding."""
        if self.padding is None:
            return None
        positions = torch.arange(self.length, device=self.padding.device)
        return visible(positions[-n_query:], positions, padding=self.padding)

    def select_rows(self, rows: Tensor) -> None:
        """Row i becomes a copy of what row `rows[i]` was, as a beam search needs it. int64 (batch,)."""
        for buffer in self.buffers:
            buffer.copy_(buffer[rows])

    def row(self, i: int) -> Self:
        """Row i alone, in the same memory: a cache of its own, empty."""
        row = copy(self)
        row.buffers = tuple(buffer[i : i + 1] for buffer in self.buffers)
        row.padding, row.length = None, 0
        return row

    @property
    def filled(self) -> int:
        """Places of the buffers, along their last axis but one, that have something in them."""
        return self.length

    def swap(self, other: Self) -> None:
        """Exchanges the contents with those of another row."""
        n = max(self.filled, other.filled)
        for mine, theirs in zip(self.buffers, other.buffers, strict=True):
            kept = mine[..., :n, :].clone()
            mine[..., :n, :] = theirs[..., :n, :]
            theirs[..., :n, :] = kept
        self.length, other.length = other.length, self.length

    def copy_from(self, other: Self, length: int) -> None:
        """Becomes a copy of the first `length` tokens of another row.

        Raises:
            ValueError: that row has fewer, or no longer keeps them all.
        """
        other.check_truncate(length)
        n = min(length, other.filled)
        for mine, theirs in zip(self.buffers, other.buffers, strict=True):
            mine[..., :n, :] = theirs[..., :n, :]
        self.length = length

    def check_truncate(self, length: int) -> None:
        """Raises the ValueError of `truncate`, and changes nothing."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of {self.length} tokens to {length}")

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` tokens, so that a shared beginning need not be computed again.

        Raises:
            ValueError: there are fewer.
        """
        self.check_truncate(length)
        self.length = length

    def reset(self) -> None:
        """Forgets everything; the buffers stay."""
        self.length = 0

    def advance(self) -> None:
        """Takes note of a token that was written into the buffers from outside."""
        self.length += 1


class KVCache(Cache):
    """Keys and values of one layer.

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
        device: Device = "cpu",
        padding: Tensor | None = None,
    ) -> None:
        shape = (batch_size, n_kv_head, max_length, head_dim)
        keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        super().__init__(max_length, padding, keys, values)

    @property
    def keys(self) -> Tensor:
        """(batch, n_kv_head, max_length, head_dim)."""
        return self.buffers[0]

    @property
    def values(self) -> Tensor:
        """(batch, n_kv_head, max_length, head_dim)."""
        return self.buffers[1]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the keys and values of new tokens and returns all that are kept, old and new.

        Args:
            keys, values: (batch, n_kv_head, new tokens, head_dim).

        Returns:
            Two views (batch, n_kv_head, length, head_dim) into the buffers, not copies.

        Raises:
            ValueError: they do not fit.
        """
        end = self.grow(keys)
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class LatentCache(Cache):
    """What multi-head latent attention keeps of a token: its latent vector, and the rotary key that all heads share.

    They lie side by side, so that one product with the absorbed query gives the whole score.

    Args:
        d_latent: numbers in the latent vector.
        d_rope: numbers in the rotary key; 0 for none.
    """

    def __init__(
        self,
        batch_size: int,
        max_length: int,
        d_latent: int,
        d_rope: int,
        dtype: torch.dtype = torch.float32,
        device: Device = "cpu",
        padding: Tensor | None = None,
    ) -> None:
        latents = torch.zeros((batch_size, max_length, d_latent + d_rope), dtype=dtype, device=device)
        super().__init__(max_length, padding, latents)

    @property
    def latents(self) -> Tensor:
        """(batch, max_length, d_latent + d_rope)."""
        return self.buffers[0]

    def append(self, latents: Tensor) -> Tensor:
        """Adds new tokens' latents with their rotary keys, and returns all that are kept.

        Args:
            latents: (batch, new tokens, d_latent + d_rope).

        Returns:
            A view (batch, length, d_latent + d_rope).

        Raises:
            ValueError: they do not fit.
        """
        end = self.grow(latents)
        self.latents[:, self.length : end] = latents
        self.length = end
        return self.latents[:, :end]


class StaticKVCache(KVCache):
    """A KVCache whose length is a number in memory rather than in Python, so that no step differs from the one before.

    A step then has the same shapes every time: it attends to the whole buffer, with a mask over what is not filled.
    That is more work, and the price of being recorded as a CUDA graph.

    Args:
        cache: whose buffers are taken over, with what is in them. It is not to be used after that.
    """

    def __init__(self, cache: KVCache) -> None:
        self.buffers = cache.buffers
        self.max_length, self.padding = cache.max_length, cache.padding
        self.length = torch.tensor(cache.length, device=self.keys.device)  # type: ignore[assignment]
        for tensor in (self.keys, self.values, self.length):
            torch._dynamo.mark_static_address(tensor)  # a graph may then write into it

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the keys and values of new tokens and returns the whole buffers.

        Returns:
            Two of (batch, n_kv_head, max_length, head_dim).

        What does not fit is an error of the device's, or none: whoever counts the steps has to stop in time.
        """
        columns = self.length + torch.arange(keys.shape[2], device=keys.device)
        self.keys.index_copy_(2, columns, keys.to(self.keys.dtype))
        self.values.index_copy_(2, columns, values.to(self.values.dtype))
        self.length += keys.shape[2]
        return self.keys, self.values

    def padding_mask(self, n_query: int) -> Tensor:
        """Which keys the last `n_query` tokens see, bool (batch or 1, 1, n_query, max_length)."""
        device = self.keys.device
        queries = self.length - n_query + torch.arange(n_query, device=device)
        return visible(queries, torch.arange(self.max_length, device=device), padding=self.padding)


class RollingCache(Cache):
    """Keys and values of the last `window` tokens, and of the first `n_sink` of each row.

    The window is a ring: the token at position p lies in slot p mod `window`, over the one that has just left the
    window. Attention does not care in which order its keys lie, as long as their positions are known.

    Args:
        window: tokens in the ring.
        n_sink: tokens at the beginning of each text that are kept for ever, in slots before the ring.
    """

    def __init__(
        self,
        batch_size: int,
        n_kv_head: int,
        max_length: int,
        head_dim: int,
        window: int,
        n_sink: int = 0,
        dtype: torch.dtype = torch.float32,
        device: Device = "cpu",
        padding: Tensor | None = None,
    ) -> None:
        self.window, self.n_sink = min(window, max_length), n_sink
        shape = (batch_size, n_kv_head, n_sink + self.window, head_dim)
        keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self.longest = 0  # the length up to which slots were written, whatever was truncated since
        super().__init__(max_length, padding, keys, values)

    @property
    def keys(self) -> Tensor:
        """(batch, n_kv_head, n_sink + window, head_dim): the sinks, then the ring."""
        return self.buffers[0]

    @property
    def values(self) -> Tensor:
        """(batch, n_kv_head, n_sink + window, head_dim), as the keys."""
        return self.buffers[1]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds new tokens, and returns the keys and values that these may need.

        For a single token they are a view of the buffers: the sinks, then the ring, whose order `ring_positions` tells.
        For several, the ring is first read in the order of its positions and the new tokens are put behind it, so that
        the others after the sinks are consecutive: a copy of the window, once a chunk.

        Args:
            keys, values: (batch, n_kv_head, new tokens, head_dim).

        Returns:
            Keys and values (batch, n_kv_head, n_sink + n, head_dim): the sinks, then n other tokens.

        Raises:
            ValueError: they do not fit.
        """
        start, end = self.length, self.grow(keys)
        if end - start == 1:
            slot = self.n_sink + start % self.window
            self.keys[:, :, slot : slot + 1], self.values[:, :, slot : slot + 1] = keys, values
            if start < self.n_sink or (self.n_sink and self.padding is not None):
                self._write_sinks(keys, values, start)
            filled = self.n_sink + min(end, self.window)
            result = self.keys[:, :, :filled], self.values[:, :, :filled]
        else:
            before = torch.arange(max(start - self.window + 1, 0), start, device=keys.device)
            slots = self.n_sink + before % self.window
            together = [
                torch.cat([buffer[:, :, slots], new.to(buffer.dtype)], dim=2)
                for buffer, new in ((self.keys, keys), (self.values, values))
            ]
            self._write(keys, values, start)
            if self.n_sink:
                together = [
                    torch.cat([buffer[:, :, : self.n_sink], kept], dim=2)
                    for buffer, kept in zip((self.keys, self.values), together, strict=True)
                ]
            result = together[0], together[1]
        self.length, self.longest = end, max(self.longest, end)
        return result

    def ring_positions(self) -> Tensor:
        """int64 (min(length, window),): where in the text the tokens of the ring stand, slot by slot."""
        slots = torch.arange(min(self.length, self.window), device=self.keys.device)
        return slots + (self.length - 1 - slots) // self.window * self.window  # the latest p with p mod window = slot

    def _write(self, keys: Tensor, values: Tensor, start: int) -> None:
        """Puts new tokens, the first at position `start`, into the ring, and into the sinks where they begin a text."""
        end = start + keys.shape[2]
        kept = torch.arange(max(start, end - self.window), end, device=keys.device)  # those that are not overwritten
        slots = self.n_sink + kept % self.window
        self.keys[:, :, slots] = keys[:, :, kept - start].to(self.keys.dtype)
        self.values[:, :, slots] = values[:, :, kept - start].to(self.values.dtype)
        if self.n_sink:
            self._write_sinks(keys, values, start)

    def _write_sinks(self, keys: Tensor, values: Tensor, start: int) -> None:
        """Puts those of the new tokens, the first at position `start`, that are among the first of their row."""
        n_new = keys.shape[2]
        column = self.sink_positions(keys.device) - start  # (batch or 1, n_sink): where among the new tokens
        inside = ((column >= 0) & (column < n_new))[:, None, :, None]
        column = column.clamp(0, n_new - 1)[:, None, :, None].expand(*keys.shape[:2], -1, keys.shape[3])
        for buffer, new in ((self.keys, keys), (self.values, values)):
            sinks = buffer[:, :, : self.n_sink]
            buffer[:, :, : self.n_sink] = torch.where(inside, new.gather(2, column).to(buffer.dtype), sinks)

    def sink_positions(self, device: Device) -> Tensor:
        """int64 (batch or 1, n_sink): the positions of each row's first tokens."""
        first = torch.arange(self.n_sink, device=device)[None]
        return first if self.padding is None else first + self.padding[:, None]

    def advance(self) -> None:
        """Takes note of a token that was written into the buffers from outside."""
        super().advance()
        self.longest = max(self.longest, self.length)

    def newest_mask(self) -> Tensor | None:
        """Which slots the last token sees, bool (batch or 1, 1, 1, slots); None where it sees all that are filled."""
        some_sinks_are_near = self.n_sink and self.length < self.window + self.n_sink
        if not some_sinks_are_near and self.padding is None:
            return None
        device = self.keys.device
        newest = torch.tensor([self.length - 1], device=device)
        return sinks_and_window(newest, self.ring_positions(), self.window, self.sink_positions(device), self.padding)

    def row(self, i: int) -> Self:
        """Row i alone, in the same memory: a cache of its own, empty."""
        row = super().row(i)
        row.longest = 0
        return row

    @property
    def filled(self) -> int:
        """Slots that have something in them."""
        return self.n_sink + min(self.longest, self.window) if self.longest else 0

    def swap(self, other: Self) -> None:
        """Exchanges the contents with those of another row."""
        super().swap(other)
        self.longest, other.longest = other.longest, self.longest

    def copy_from(self, other: Self, length: int) -> None:
        """Becomes a copy of the first `length` tokens of another row, with all that this keeps of them."""
        other.check_truncate(length)
        n = other.filled  # slots do not follow one another as positions do
        for mine, theirs in zip(self.buffers, other.buffers, strict=True):
            mine[..., :n, :] = theirs[..., :n, :]
        self.length, self.longest = length, other.longest

    def check_truncate(self, length: int) -> None:
        """Raises ValueError too where the tokens before `length` have left the window."""
        super().check_truncate(length)
        if length and length < self.longest - 1 and self.longest > self.window:
            raise ValueError(
                f"cannot truncate to {length} tokens: of {self.longest}, this cache keeps the last {self.window}; "
                "reset it and read the text again"
            )

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` tokens, where the window still holds what comes before them.

        Raises:
            ValueError: there are fewer, or the window has moved on.
        """
        super().truncate(length)
        if not length:
            self.longest = 0

    def reset(self) -> None:
        """Forgets everything; the buffers stay."""
        self.truncate(0)


class LayerCaches:
    """The caches of all layers of a model, which fill in step.

    Args:
        layers: one or more, all empty.
        padding: the same tensor that they were made with.
    """

    def __init__(self, layers: Sequence[Cache], padding: Tensor | None = None) -> None:
        self.layers = list(layers)
        self.padding = padding

    @property
    def length(self) -> int:
        """Columns filled so far, and so the position of the next one."""
        return self.layers[0].length

    @property
    def max_length(self) -> int:
        """Tokens that fit."""
        return self.layers[0].max_length

    @property
    def nbytes(self) -> int:
        """Bytes that the buffers of all layers really hold."""
        return sum(layer.nbytes for layer in self.layers)

    def positions(self, n_new: int, device: Device) -> Tensor:
        """Where in their texts the next `n_new` tokens stand: int64 (n_new,), or (batch, n_new) with padding.

        They are counted from where each text begins; columns before that get 0.
        """
        columns = self.length + torch.arange(n_new, device=device)
        return columns if self.padding is None else (columns - self.padding[:, None]).clamp(min=0)

    def row(self, i: int) -> LayerCaches:
        """Row i alone, in the same memory, as caches of their own that are empty. For texts that come and go."""
        return LayerCaches([layer.row(i) for layer in self.layers])

    def swap(self, other: LayerCaches) -> None:
        """Exchanges what is kept of this row, in every layer, with another row."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.swap(theirs)

    def copy_from(self, other: LayerCaches, length: int) -> None:
        """Becomes a copy of the first `length` tokens of another row, in every layer or, if one cannot, in none."""
        for theirs in other.layers:
            theirs.check_truncate(length)
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.copy_from(theirs, length)

    def select_rows(self, rows: Tensor) -> None:
        """Row i becomes a copy of what row `rows[i]` was, in every layer. int64 (batch,); rows of one length."""
        for layer in self.layers:
            layer.select_rows(rows)

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` tokens, in every layer or, if one of them cannot, in none."""
        for layer in self.layers:
            layer.check_truncate(length)
        for layer in self.layers:
            layer.truncate(length)

    def reset(self) -> None:
        """Forgets everything, in every layer."""
        for layer in self.layers:
            layer.reset()
