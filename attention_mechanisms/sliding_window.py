"""Sliding-window attention (Beltagy et al. 2020, section 3.1; Jiang et al. 2023): each token sees the last W tokens.

Most of what matters for the next word is near. A token that sees the last W keys, its own among them, needs W keys in
the cache however long the text, and T · W scores instead of T². Layers above one another still carry news from afar:
after n layers it can have come n · (W - 1) tokens, as a rumour does.

    query p sees key j     if  p - W < j ≤ p,     or  j < n_sink

**Sinks** (Xiao et al. 2024, StreamingLLM). A softmax has to give its weights to something; trained models give what
they do not need to the first tokens. When these leave the window the model breaks. Keeping a few of them for ever mends
it. Here they keep their true positions; StreamingLLM counts positions inside the cache, which matters to rotary
positions only beyond the trained context, where this model does not go.

    parameters          as grouped-query attention
    FLOPs per token     projections + 4 · d_model · (min(T, W) + n_sink)
    cache               2 · d_kv · (min(T, W) + n_sink) numbers a layer, in all

The band is computed in blocks: B queries next to one another need the B + W - 1 keys up to theirs, a slice. No mask
larger than B × (B + W) exists.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from attention_mechanisms.attend import fast_attention
from attention_mechanisms.cost import AttentionCost
from attention_mechanisms.grouped_query import GroupedQueryAttention
from attention_mechanisms.kv_cache import KVCache, RollingCache
from attention_mechanisms.masks import causal_mask, sinks_and_window, windowed
from attention_mechanisms.rotary import Rotary

_BLOCK = 128  # queries computed together: larger reads more keys in vain, smaller makes more calls


class SlidingWindowAttention(GroupedQueryAttention):
    """Causal self-attention in which each token sees the last `window` tokens.

    Args:
        window: keys that a query sees, its own among them; None for all, in the global layers of a mixed model.
        n_sink: tokens at the beginning of the text that every query sees in spite of the window.
        n_kv_head: heads of keys and values; as many as n_head if not given.
        Others: as in `GroupedQueryAttention`.

    Raises:
        ValueError: the window is not at least 1 or the sinks not at least 0, or the heads do not divide.
    """

    def __init__(
        self,
        d_model: int,
        n_head: int,
        window: int | None,
        n_sink: int = 0,
        n_kv_head: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        rotary: Rotary | None = None,
        qk_norm: bool = False,
    ) -> None:
        super().__init__(d_model, n_head, n_head if n_kv_head is None else n_kv_head, dropout, bias, rotary, qk_norm)
        check_window(window, n_sink)
        self.window, self.n_sink = window, n_sink

    def forward(self, x: Tensor, cache: Any = None, mask: Tensor | None = None, values: Tensor | None = None) -> Tensor:
        """Attends from each token of `x` to itself and those before it, in `x` and in `cache`, within the window.

        Args:
            x: (batch, tokens, d_model).
            cache: what `make_cache` gave.
            mask: bool (batch or 1, 1, tokens, tokens), True where a query may look if the window lets it, in place of
                the causal one; only without a cache. Sinks are then the first tokens that a query may look at.
            values: (batch, tokens, n_kv_head * head_dim), added to the values.

        Returns:
            (batch, tokens, d_model).

        Raises:
            ValueError: the cache is of another attention or window, or comes with a mask.
        """
        if self.window is None:
            return super().forward(x, cache, mask, values)
        tokens, start = x.shape[1], cache.length if cache is not None else 0
        q, k, v = self.project(x, start, values)
        if cache is None:
            return self.merge(self.whole_text(q, k, v, mask))
        RollingCache.require(cache, mask)
        if (cache.window, cache.n_sink) != (min(self.window, cache.max_length), self.n_sink):
            raise ValueError(
                f"the cache is of window {cache.window} with {cache.n_sink} sinks, the attention of {self.window} with "
                f"{self.n_sink}: use the make_cache of the same model"
            )
        k, v = cache.append(k, v)  # (batch, n_kv_head, n_sink + keys, head_dim): the sinks, then others
        if tokens > 1:
            end = start + tokens
            positions = torch.arange(end - (k.shape[2] - self.n_sink), end, device=x.device)
            return self.merge(self.banded(q, k, v, start, positions, cache.sink_positions(x.device), cache.padding))
        return self.merge(fast_attention(q, k, v, cache.newest_mask(), dropout=self.dropout_now))

    def whole_text(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention without a cache, for training: q (batch, n_head, tokens, head_dim), k and v of the same tokens."""
        assert self.window is not None
        if mask is not None:  # it is as large as all scores already, so the band saves nothing
            mask = windowed(mask, self.window, self.n_sink)
            return fast_attention(q, k, v, mask, dropout=self.dropout_now)
        tokens, n_sink = q.shape[2], min(self.n_sink, q.shape[2])
        if tokens <= self.window:
            return fast_attention(q, k, v, causal=True, dropout=self.dropout_now)
        if q.is_cuda and not self.dropout_now:
            return flex_banded(q, k, v, self.window, self.n_sink)
        if n_sink:
            k, v = (torch.cat([kept[:, :, :n_sink], kept], dim=2) for kept in (k, v))
        positions = torch.arange(tokens, device=q.device)
        return self.banded(q, k, v, 0, positions, positions[None, :n_sink])

    def banded(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        start: int,
        positions: Tensor,
        sinks: Tensor,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Attention in the band alone, block by block: O(T · W) in time and memory.

        Args:
            q: (batch, n_head, tokens, head_dim), at the positions from `start` on.
            k, v: (batch, n_kv_head, n_sink + keys, head_dim): the sinks, then the others.
            positions: int64 (keys,), of those others: consecutive, and the last ones are the queries' own.
            sinks: int64 (batch or 1, n_sink), the positions of the sinks.
            padding: int64 (batch,), columns that are no text.

        Returns:
            (batch, n_head, tokens, head_dim).
        """
        assert self.window is not None
        n_sink, n_before = sinks.shape[1], len(positions) - q.shape[2]
        blocks = []
        for begin in range(0, q.shape[2], _BLOCK):
            queries = q[:, :, begin : begin + _BLOCK]  # (batch, n_head, block, head_dim)
            end = n_before + begin + queries.shape[2]
            low = max(n_before + begin - self.window + 1, 0)
            near = slice(n_sink + low, n_sink + end)
            if n_sink:
                some_k, some_v = (torch.cat([kept[:, :, :n_sink], kept[:, :, near]], dim=2) for kept in (k, v))
            else:
                some_k, some_v = k[:, :, near], v[:, :, near]
            at = torch.arange(start + begin, start + begin + queries.shape[2], device=q.device)
            mask = sinks_and_window(at, positions[low:end], self.window, sinks, padding)
            blocks.append(fast_attention(queries, some_k, some_v, mask, dropout=self.dropout_now))
        return torch.cat(blocks, dim=2)

    def reference(self, x: Tensor, mask: Tensor | None = None, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`forward` without a cache, with a whole mask, and the attention weights (batch, n_head, tokens, tokens)."""
        if self.window is not None:
            mask = causal_mask(x.shape[1], x.shape[1], x.device) if mask is None else mask
            mask = windowed(mask, self.window, self.n_sink)
        return super().reference(x, mask, values)

    def make_cache(  # type: ignore[override]
        self, batch_size: int, max_length: int, padding: Tensor | None = None, like: Tensor | None = None
    ) -> KVCache | RollingCache:
        """An empty cache for this layer: of the window and the sinks, or of everything where there is no window."""
        if self.window is None:
            return super().make_cache(batch_size, max_length, padding, like)
        like = self.c_attn.weight if like is None else like
        shape = (batch_size, self.n_kv_head, max_length, self.head_dim, self.window, self.n_sink)
        return RollingCache(*shape, like.dtype, like.device, padding)

    def cost(self, n_keys: int) -> AttentionCost:
        """What token number `n_keys` of a text costs, which sees the window and the sinks alone."""
        seen = n_keys if self.window is None else min(n_keys, self.window) + self.n_sink
        return super().cost(seen)


def check_window(window: int | None, n_sink: int) -> None:
    """Raises ValueError where a window sees nothing or sinks are fewer than none."""
    if window is not None and window < 1:
        raise ValueError(f"window={window} must be at least 1, the token itself; as large as the context it sees all")
    if n_sink < 0:
        raise ValueError(f"n_sink={n_sink} must be at least 0")


def flex_banded(q: Tensor, k: Tensor, v: Tensor, window: int, n_sink: int) -> Tensor:
    """The band by FlexAttention, which compiles a kernel that skips the blocks outside. On a CPU it has no gradient.

    Args:
        q: (batch, n_head, tokens, head_dim).
        k, v: (batch, n_kv_head, tokens, head_dim).
    """
    mask = _flex_mask(q.shape[2], window, n_sink, q.device)
    y: Tensor = _compiled_flex()(q, k, v, block_mask=mask, enable_gqa=k.shape[1] < q.shape[1])
    return y


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention  # slow to import, and only CUDA needs it

    return torch.compile(flex_attention)


@lru_cache(maxsize=32)
def _flex_mask(tokens: int, window: int, n_sink: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & ((key > query - window) | (key < n_sink))

    return create_block_mask(seen, None, None, tokens, tokens, device=str(device))
