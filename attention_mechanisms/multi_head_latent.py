"""Multi-head latent attention (DeepSeek-V2, 2024, section 2.1): keys and values of all heads from one small vector.

Grouped queries save memory by having fewer keys. Here every head has keys and values of its own, but they are all
made from one *latent* vector of the token, and only that is kept:

    c = W_dkv x                         (d_latent)            kept in the cache
    kʰ = W_ukʰ c,   vʰ = W_uvʰ c        (head_dim)            for each head h, never kept

**Absorption.** Making all keys again at each step would cost more than it saves. But a score needs no key:

    qʰ · kʰ = qʰ · (W_ukʰ c) = (W_ukʰᵀ qʰ) · c

The matrix moves over to the query, of which there is one, from the keys, of which there are thousands; the same holds
for values, Σ wⱼ W_uvʰ cⱼ = W_uvʰ (Σ wⱼ cⱼ). All heads then look at the same latents: it is multi-query attention with
heads of d_latent numbers. That is more arithmetic a key and far less memory: right for one query, wrong for many.

**Rotary keys.** Turning a key by its position would stand between W_uk and the query, and nothing could be absorbed. So
the position goes into d_rope further numbers: a query part of each head, and one key part kʳ that all heads share, kept
beside the latent.

    score = (qʰ · kʰ + qʳʰ · kʳ) / √(head_dim + d_rope)

With D = n_head · head_dim, R = n_head · d_rope, L = d_latent, and the query not compressed:

    parameters          d_model · (D + R) + d_model · (L + d_rope) + 2 · L · D + D · d_model      (+ norm, bias)
    cache per token     L + d_rope numbers a layer
    FLOPs per token     2 · parameters + 4 · n_head · T · (L + d_rope)                    absorbed, T keys

W_uk is never applied to a token while decoding, but its transpose is, to the query: so each matrix still counts once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attention_mechanisms.attend import fast_attention, plain_attention
from attention_mechanisms.cost import AttentionCost
from attention_mechanisms.kv_cache import LatentCache
from attention_mechanisms.masks import causal_mask
from attention_mechanisms.rotary import Rotary

NO_VALUES = "value embeddings cannot be: values come from latents, and the cache keeps those alone"
NO_QK_NORM = "qk_norm cannot be: keys come from latents and are never written out while decoding, so none has a length"


class LatentNorm(nn.RMSNorm):
    """RMSNorm in the number format of its weights, also under autocast, where the latent comes in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class MultiHeadLatentAttention(nn.Module):
    """Causal self-attention whose keys and values come from a latent vector.

    Args:
        d_model: width of the vectors that come in and go out.
        n_head: heads; divides d_model.
        d_latent: numbers in the latent vector; at most d_model, of which the keys and values are made in any case.
        d_query_latent: numbers in a latent vector of the query; None if queries are made from `x` itself. It saves
            memory in training, not in the cache.
        latent_norm: whether latents are normalised, as in DeepSeek. Without, the layer is a low-rank multi-head
            attention, and what conversion makes of one.
        dropout: probability with which attention weights, and parts of the output, are set to zero in training.
        bias: whether queries and output have biases. Those of keys and values would do nothing: the one adds the same
            number to all scores of a query, the other a constant to the output.
        rotary: of d_rope numbers, for the rotary part of queries and keys; None where positions are learned.

    Raises:
        ValueError: `n_head` does not divide `d_model`, or a latent is wider than what it is made from.
    """

    def __init__(
        self,
        d_model: int,
        n_head: int,
        d_latent: int,
        d_query_latent: int | None = None,
        latent_norm: bool = True,
        dropout: float = 0.0,
        bias: bool = True,
        rotary: Rotary | None = None,
    ) -> None:
        super().__init__()
        check_latents(d_model, n_head, d_latent, d_query_latent)
        self.n_head, self.d_latent = n_head, d_latent
        self.head_dim = d_model // n_head
        self.rotary = rotary
        self.d_rope = 0 if rotary is None else rotary.dim
        self.scale = (self.head_dim + self.d_rope) ** -0.5

        def norm(width: int) -> nn.Module:
            return LatentNorm(width, eps=1e-6) if latent_norm else nn.Identity()

        d_query = n_head * (self.head_dim + self.d_rope)
        self.q_down = nn.Identity() if d_query_latent is None else nn.Linear(d_model, d_query_latent, bias=False)
        self.q_norm = nn.Identity() if d_query_latent is None else norm(d_query_latent)
        self.q_up = nn.Linear(d_query_latent or d_model, d_query, bias=bias)  # W_uq and W_qr, head by head
        self.kv_down = nn.Linear(d_model, d_latent + self.d_rope, bias=False)  # W_dkv and W_kr
        self.kv_norm = norm(d_latent)
        self.k_up = nn.Linear(d_latent, d_model, bias=False)  # W_uk of all heads
        self.v_up = nn.Linear(d_latent, d_model, bias=False)  # W_uv of all heads
        self.c_proj = nn.Linear(d_model, d_model, bias=bias)  # W_o
        self.attention_dropout = dropout
        self.residual_dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, cache: LatentCache | None = None, mask: Tensor | None = None, values: Tensor | None = None
    ) -> Tensor:
        """Attends from each token of `x` to itself, those before it in `x`, and those in `cache`.

        Args:
            x: (batch, tokens, d_model).
            cache: latents of the tokens before `x`; those of `x` are appended to it.
            mask: bool (batch or 1, 1, tokens, tokens), True where a query may look, in place of the causal one; only
                without a cache.
            values: for other attentions: nothing can be added to values that come from latents.

        Returns:
            (batch, tokens, d_model).

        Raises:
            ValueError: the cache is of another attention, or comes with a mask; or `values` are given.
        """
        if values is not None:
            raise ValueError(NO_VALUES)
        tokens, start = x.shape[1], cache.length if cache is not None else 0
        q, latents = self.queries(x, start), self.latents(x, start)
        if cache is not None:
            LatentCache.require(cache, mask)
            latents = cache.append(latents)  # (batch, keys, d_latent + d_rope)
            mask = cache.padding_mask(tokens)
        dropout = self.attention_dropout if self.training else 0.0
        # Absorbed, a query costs 2 · d_latent a key and head in place of 2 · head_dim. Expanded, each key and value is
        # made first, which costs 2 · d_latent · head_dim a head. So few queries are absorbed and many are not.
        few = tokens * (self.d_latent - self.head_dim) < self.d_latent * self.head_dim
        if few and latents.shape[1] > tokens:
            q, k, v = self.absorbed(q, latents)
            y = fast_attention(q, k, v, mask, mask is None, dropout, self.scale)[..., : self.d_latent]
            y = y @ self.per_head(self.v_up).transpose(1, 2)  # (batch, n_head, tokens, head_dim)
        else:
            k, v = self.expanded(latents)
            y = fast_attention(q, k, v, mask, mask is None, dropout, self.scale)
        return self.merge(y)

    def reference(self, x: Tensor, mask: Tensor | None = None, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`forward` without a cache, by the formula, and the attention weights (batch, n_head, tokens, tokens)."""
        if values is not None:
            raise ValueError(NO_VALUES)
        k, v = self.expanded(self.latents(x))
        mask = causal_mask(x.shape[1], x.shape[1], x.device) if mask is None else mask
        dropout = self.attention_dropout if self.training else 0.0
        y, weights = plain_attention(self.queries(x), k, v, mask, dropout, self.scale)
        return self.merge(y), weights

    def queries(self, x: Tensor, start: int = 0) -> Tensor:
        """(batch, tokens, d_model) to (batch, n_head, tokens, head_dim + d_rope), the rotary part turned."""
        q = self.q_up(self.q_norm(self.q_down(x)))  # (batch, tokens, n_head * (head_dim + d_rope))
        q = q.unflatten(2, (self.n_head, -1)).transpose(1, 2)  # (batch, n_head, tokens, head_dim + d_rope)
        if self.rotary is None:
            return q
        content, turned = q.split([self.head_dim, self.d_rope], dim=3)
        return torch.cat([content, self.rotary(turned, start)], dim=3)

    def latents(self, x: Tensor, start: int = 0) -> Tensor:
        """(batch, tokens, d_model) to (batch, tokens, d_latent + d_rope): all that is kept of a token."""
        latent, turned = self.kv_down(x).split([self.d_latent, self.d_rope], dim=2)
        latent = self.kv_norm(latent)
        return latent if self.rotary is None else torch.cat([latent, self.rotary(turned, start)], dim=2)

    def expanded(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (batch, n_head, keys, head_dim + d_rope) and values (batch, n_head, keys, head_dim), written out."""
        latents = latents.to(self.k_up.weight.dtype)
        latent, turned = latents.split([self.d_latent, self.d_rope], dim=2)
        k = self.k_up(latent).unflatten(2, (self.n_head, -1)).transpose(1, 2)  # (batch, n_head, keys, head_dim)
        v = self.v_up(latent).unflatten(2, (self.n_head, -1)).transpose(1, 2)  # (batch, n_head, keys, head_dim)
        if self.rotary is not None:
            shared = turned[:, None].expand(-1, self.n_head, -1, -1)  # one rotary key for all heads
            k = torch.cat([k, shared.to(k.dtype)], dim=3)  # (batch, n_head, keys, head_dim + d_rope)
        return k, v

    def absorbed(self, q: Tensor, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries that ask the latents themselves; keys and values are then the latents, of one head.

        Returns:
            q (batch, n_head, tokens, d_latent + d_rope); k and v, both (batch, 1, keys, d_latent + d_rope). The rotary
            numbers of v mean nothing, and are cut off after the sum: fused kernels like keys and values of one width.
        """
        content, turned = q.split([self.head_dim, self.d_rope], dim=3)
        content = content @ self.per_head(self.k_up)  # (batch, n_head, tokens, head_dim) @ (n_head, head_dim, d_latent)
        kept = latents[:, None]
        return torch.cat([content, turned], dim=3), kept, kept

    def per_head(self, up: nn.Linear) -> Tensor:
        """The matrix of `k_up` or `v_up` as (n_head, head_dim, d_latent)."""
        return up.weight.view(self.n_head, self.head_dim, self.d_latent)

    def merge(self, y: Tensor) -> Tensor:
        """(batch, n_head, tokens, head_dim) to (batch, tokens, d_model): the heads side by side, and mixed."""
        mixed: Tensor = self.residual_dropout(self.c_proj(y.transpose(1, 2).flatten(2)))
        return mixed

    def make_cache(
        self, batch_size: int, max_length: int, padding: Tensor | None = None, like: Tensor | None = None
    ) -> LatentCache:
        """An empty cache for this layer, on the device and in the number format of `like`, or else of its weights."""
        like = self.kv_down.weight if like is None else like
        return LatentCache(batch_size, max_length, self.d_latent, self.d_rope, like.dtype, like.device, padding)

    def cost(self, n_keys: int) -> AttentionCost:
        """What a token costs that sees `n_keys` keys, its own among them, absorbed."""
        d_model, width = self.n_head * self.head_dim, self.d_latent + self.d_rope
        d_query = self.n_head * (self.head_dim + self.d_rope)
        compressed = isinstance(self.q_down, nn.Linear)
        d_query_latent = self.q_up.in_features if compressed else 0
        query = (d_model + d_query) * d_query_latent if compressed else d_model * d_query
        matrices = query + d_model * width + 2 * self.d_latent * d_model + d_model**2
        norms = (self.d_latent + d_query_latent) if isinstance(self.kv_norm, nn.RMSNorm) else 0
        biases = d_model + d_query if self.c_proj.bias is not None else 0
        return AttentionCost(
            parameters=matrices + norms + biases,
            flops_per_token=2 * matrices + 4 * self.n_head * n_keys * width,
            cache_numbers=width * n_keys,
        )


def check_latents(d_model: int, n_head: int, d_latent: int, d_query_latent: int | None) -> None:
    """Raises ValueError where heads do not divide the width, or a latent has more numbers than it can use."""
    if n_head < 1 or d_model % n_head:
        raise ValueError(f"d_model={d_model} is not divisible by n_head={n_head}")
    for name, width in (("d_latent", d_latent), ("d_query_latent", d_query_latent)):
        if width is not None and not 1 <= width <= d_model:
            raise ValueError(
                f"{name}={width} must be from 1 to d_model={d_model}: the latent is made from {d_model} numbers, "
                "and more of them hold nothing more"
            )
