"""Grouped-query attention (Ainslie et al. 2023): several query heads share one head of keys and values.

While a model writes, each step reads all cached keys and values to answer a single query a head: the time goes into
reading. Queries are new at every step and cost nothing to keep, so their number stays; keys and values are kept for
ever, so there are fewer of them:

    query head h attends to key/value head h // group,     group = n_head / n_kv_head

    n_kv_head = n_head    multi-head attention
    n_kv_head = 1         multi-query attention (Shazeer 2019)

With d_kv = n_kv_head · head_dim:

    parameters          2 · d_model² + 2 · d_model · d_kv + 2 · d_model + 2 · d_kv
    FLOPs per token     4 · d_model² + 4 · d_model · d_kv + 4 · d_model · T      (the products with T keys stay)
    cache per token     2 · d_kv numbers a layer: n_head / n_kv_head times less
"""

from __future__ import annotations

from torch import Tensor, nn

from attention_mechanisms.attend import fast_attention, plain_attention, rms_normalised
from attention_mechanisms.cost import AttentionCost
from attention_mechanisms.kv_cache import KVCache
from attention_mechanisms.masks import causal_mask
from attention_mechanisms.rotary import Rotary


class GroupedQueryAttention(nn.Module):
    """Causal self-attention with `n_head` heads of queries and `n_kv_head` of keys and values.

    Args:
        d_model: width of the vectors that come in and go out.
        n_head: heads of queries; divides d_model.
        n_kv_head: heads of keys and values; divides n_head.
        dropout: probability with which attention weights, and parts of the output, are set to zero in training.
        bias: whether the projections have biases.
        rotary: turns queries and keys by their positions; None where positions are learned.
        qk_norm: whether queries and keys are brought to one length, √head_dim, before their product; without weights.

    Raises:
        ValueError: `n_head` does not divide `d_model`, or `n_kv_head` does not divide `n_head`.
    """

    def __init__(
        self,
        d_model: int,
        n_head: int,
        n_kv_head: int,
        dropout: float = 0.0,
        bias: bool = True,
        rotary: Rotary | None = None,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        check_heads(d_model, n_head, n_kv_head)
        self.n_head, self.n_kv_head = n_head, n_kv_head
        self.head_dim = d_model // n_head
        self.rotary, self.qk_norm = rotary, qk_norm
        if rotary is not None:
            rotary.require(self.head_dim)
        self.c_attn = nn.Linear(d_model, (n_head + 2 * n_kv_head) * self.head_dim, bias=bias)  # W_q, W_k and W_v
        self.c_proj = nn.Linear(d_model, d_model, bias=bias)  # W_o
        self.attention_dropout = dropout
        self.residual_dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, cache: KVCache | None = None, mask: Tensor | None = None, values: Tensor | None = None
    ) -> Tensor:
        """Attends from each token of `x` to itself, those before it in `x`, and those in `cache`.

        Args:
            x: (batch, tokens, d_model).
            cache: keys and values of the tokens before `x`; those of `x` are appended to it.
            mask: bool (batch or 1, 1, tokens, tokens), True where a query may look, in place of the causal one; only
                without a cache.
            values: (batch, tokens, n_kv_head * head_dim), added to the values.

        Returns:
            (batch, tokens, d_model).

        Raises:
            ValueError: the cache is of another attention, or comes with a mask.
        """
        q, k, v = self.project(x, cache.length if cache is not None else 0, values)
        if cache is not None:
            KVCache.require(cache, mask)
            k, v = cache.append(k, v)  # (batch, n_kv_head, keys, head_dim)
            mask = cache.padding_mask(x.shape[1])
        y = fast_attention(q, k, v, mask, causal=mask is None, dropout=self.dropout_now)
        return self.merge(y)

    def reference(self, x: Tensor, mask: Tensor | None = None, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`forward` without a cache, by the formula, and the attention weights (batch, n_head, tokens, tokens)."""
        mask = causal_mask(x.shape[1], x.shape[1], x.device) if mask is None else mask
        y, weights = plain_attention(*self.project(x, values=values), mask, self.dropout_now)
        return self.merge(y), weights

    @property
    def dropout_now(self) -> float:
        """The dropout of attention weights: none outside of training."""
        return self.attention_dropout if self.training else 0.0

    def project(self, x: Tensor, start: int = 0, values: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """q (batch, n_head, tokens, head_dim), k and v (batch, n_kv_head, tokens, head_dim), `x` being at `start`."""
        heads = self.c_attn(x).unflatten(2, (-1, self.head_dim)).transpose(1, 2)  # (batch, all heads, tokens, head_dim)
        q, k, v = heads.split([self.n_head, self.n_kv_head, self.n_kv_head], dim=1)
        if values is not None:
            v = v + values.unflatten(2, (-1, self.head_dim)).transpose(1, 2).to(v.dtype)
        if self.qk_norm:
            q, k = rms_normalised(q), rms_normalised(k)
        if self.rotary is not None:
            q, k = self.rotary(q, start), self.rotary(k, start)
        return q, k, v

    def merge(self, y: Tensor) -> Tensor:
        """(batch, n_head, tokens, head_dim) to (batch, tokens, d_model): the heads side by side, and mixed."""
        mixed: Tensor = self.residual_dropout(self.c_proj(y.transpose(1, 2).flatten(2)))
        return mixed

    def make_cache(
        self, batch_size: int, max_length: int, padding: Tensor | None = None, like: Tensor | None = None
    ) -> KVCache:
        """An empty cache for this layer, on the device and in the number format of `like`, or else of its weights."""
        like = self.c_attn.weight if like is None else like
        return KVCache(batch_size, self.n_kv_head, max_length, self.head_dim, like.dtype, like.device, padding)

    def cost(self, n_keys: int) -> AttentionCost:
        """What a token costs that sees `n_keys` keys, its own among them."""
        d_model, d_kv = self.n_head * self.head_dim, self.n_kv_head * self.head_dim
        biases = 2 * d_model + 2 * d_kv if self.c_attn.bias is not None else 0
        return AttentionCost(
            parameters=2 * d_model**2 + 2 * d_model * d_kv + biases,
            flops_per_token=4 * d_model**2 + 4 * d_model * d_kv + 4 * d_model * n_keys,
            cache_numbers=2 * d_kv * n_keys,
        )


def check_heads(d_model: int, n_head: int, n_kv_head: int) -> None:
    """Raises ValueError where the heads do not divide the width, or the groups are not equal."""
    if n_head < 1 or d_model % n_head:
        raise ValueError(f"d_model={d_model} is not divisible by n_head={n_head}")
    if n_kv_head < 1 or n_head % n_kv_head:
        fitting = [n for n in range(1, n_head + 1) if n_head % n == 0]
        raise ValueError(f"n_kv_head={n_kv_head} does not divide n_head={n_head}: take one of {fitting}")
