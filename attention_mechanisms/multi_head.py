"""Multi-head causal self-attention (Vaswani et al. 2017, section 3.2): each token gathers from those before it.

A token asks (query q), every earlier token answers with what it is about (key k) and what it has to say (value v).
The answers are weighed by how well question and key agree:

    attention(Q, K, V) = softmax(Q Kᵀ / √head_dim + mask) V          Q, K, V: (tokens, head_dim)

Several heads do this side by side on slices of the vector, d_model = n_head · head_dim, so that one token can gather
different things from different places. The scores are divided by √head_dim because a dot product of head_dim numbers of
unit variance has variance head_dim; without it the softmax of a wide head would be all but one-hot from the start.

    parameters          4 · d_model² + 4 · d_model       (W_q, W_k, W_v in one matrix, W_o; biases)
    FLOPs per token     8 · d_model² + 4 · d_model · T   (T keys seen)
    cache per token     2 · d_model numbers a layer
"""

from __future__ import annotations

from torch import Tensor, nn

from attention_mechanisms.attend import fast_attention, plain_attention, rms_normalised
from attention_mechanisms.cost import AttentionCost
from attention_mechanisms.kv_cache import KVCache
from attention_mechanisms.masks import causal_mask
from attention_mechanisms.rotary import Rotary


class MultiHeadAttention(nn.Module):
    """Causal self-attention with `n_head` heads.

    Args:
        d_model: width of the vectors that come in and go out.
        n_head: number of heads; divides d_model.
        dropout: probability with which attention weights, and parts of the output, are set to zero in training.
        bias: whether the projections have biases.
        rotary: turns queries and keys by their positions; None where positions are learned.
        qk_norm: whether queries and keys are brought to one length, √head_dim, before their product; without weights.

    Raises:
        ValueError: `n_head` does not divide `d_model`.
    """

    def __init__(
        self,
        d_model: int,
        n_head: int,
        dropout: float = 0.0,
        bias: bool = True,
        rotary: Rotary | None = None,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        if n_head < 1 or d_model % n_head:
            raise ValueError(f"d_model={d_model} is not divisible by n_head={n_head}")
        self.n_head = n_head
        self.head_dim = d_model // n_head
        self.rotary, self.qk_norm = rotary, qk_norm
        if rotary is not None:
            rotary.require(self.head_dim)
        self.c_attn = nn.Linear(d_model, 3 * d_model, bias=bias)  # W_q, W_k and W_v, one product instead of three
        self.c_proj = nn.Linear(d_model, d_model, bias=bias)  # W_o: mixes what the heads gathered
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
            values: (batch, tokens, d_model), added to the values.

        Returns:
            (batch, tokens, d_model).

        Raises:
            ValueError: the cache is of another attention, or comes with a mask.
        """
        start = cache.length if cache is not None else 0
        q, k, v = self.project(x, start, values)  # each (batch, n_head, tokens, head_dim)
        if cache is not None:
            KVCache.require(cache, mask)
            k, v = cache.append(k, v)  # (batch, n_head, keys, head_dim)
            mask = cache.padding_mask(x.shape[1])
        dropout = self.attention_dropout if self.training else 0.0
        y = fast_attention(q, k, v, mask, causal=mask is None, dropout=dropout)  # (batch, n_head, tokens, head_dim)
        return self.residual_dropout(self.c_proj(y.transpose(1, 2).flatten(2)))  # heads side by side again

    def reference(self, x: Tensor, mask: Tensor | None = None, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`forward` without a cache, by the formula, and the attention weights (batch, n_head, tokens, tokens)."""
        q, k, v = self.project(x, values=values)  # each (batch, n_head, tokens, head_dim)
        mask = causal_mask(x.shape[1], x.shape[1], x.device) if mask is None else mask
        y, weights = plain_attention(q, k, v, mask, self.attention_dropout if self.training else 0.0)
        return self.residual_dropout(self.c_proj(y.transpose(1, 2).flatten(2))), weights

    def project(self, x: Tensor, start: int = 0, values: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of `x`, whose first token is at `start`: each (batch, n_head, tokens, head_dim)."""
        batch, tokens, _ = x.shape
        qkv = self.c_attn(x).view(batch, tokens, 3, self.n_head, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (batch, n_head, tokens, head_dim)
        if values is not None:
            v = v + values.unflatten(2, (-1, self.head_dim)).transpose(1, 2).to(v.dtype)
        if self.qk_norm:
            q, k = rms_normalised(q), rms_normalised(k)
        if self.rotary is not None:
            q, k = self.rotary(q, start), self.rotary(k, start)
        return q, k, v

    def make_cache(
        self, batch_size: int, max_length: int, padding: Tensor | None = None, like: Tensor | None = None
    ) -> KVCache:
        """An empty cache for this layer, on the device and in the number format of `like`, or else of its weights."""
        like = self.c_attn.weight if like is None else like
        return KVCache(batch_size, self.n_head, max_length, self.head_dim, like.dtype, like.device, padding)

    def cost(self, n_keys: int) -> AttentionCost:
        """What a token costs that sees `n_keys` keys, its own among them."""
        d_model = self.n_head * self.head_dim
        biases = 4 * d_model if self.c_attn.bias is not None else 0
        return AttentionCost(
            parameters=4 * d_model**2 + biases,
            flops_per_token=8 * d_model**2 + 4 * d_model * n_keys,
            cache_numbers=2 * d_model * n_keys,
        )
