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

import torch.nn.functional as F
from torch import Tensor, nn

from attention_mechanisms.kv_cache import KVCache
from attention_mechanisms.masks import causal_mask


class MultiHeadAttention(nn.Module):
    """Causal self-attention with `n_head` heads.

    Args:
        d_model: width of the vectors that come in and go out.
        n_head: number of heads; divides d_model.
        dropout: probability with which attention weights, and parts of the output, are set to zero in training.
        bias: whether the projections have biases.

    Raises:
        ValueError: `n_head` does not divide `d_model`.
    """

    def __init__(self, d_model: int, n_head: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        if d_model % n_head:
            raise ValueError(f"d_model={d_model} is not divisible by n_head={n_head}")
        self.n_head = n_head
        self.head_dim = d_model // n_head
        self.c_attn = nn.Linear(d_model, 3 * d_model, bias=bias)  # W_q, W_k and W_v, one product instead of three
        self.c_proj = nn.Linear(d_model, d_model, bias=bias)  # W_o: mixes what the heads gathered
        self.attention_dropout = dropout
        self.residual_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """Attends from each token of `x` to itself, those before it in `x`, and those in `cache`.

        Args:
            x: (batch, tokens, d_model).
            cache: keys and values of the tokens before `x`; those of `x` are appended to it.

        Returns:
            (batch, tokens, d_model).
        """
        batch, tokens, d_model = x.shape
        q, k, v = self.c_attn(x).split(d_model, dim=2)  # each (batch, tokens, d_model)
        split_heads = (batch, tokens, self.n_head, self.head_dim)
        q = q.view(split_heads).transpose(1, 2)  # (batch, n_head, tokens, head_dim)
        k = k.view(split_heads).transpose(1, 2)  # (batch, n_head, tokens, head_dim)
        v = v.view(split_heads).transpose(1, 2)  # (batch, n_head, tokens, head_dim)
        if cache is not None:
            k, v = cache.append(k, v)  # (batch, n_head, keys, head_dim)
        keys = k.shape[2]

        # The three cases of a causal mask. Nothing before x: the square one. A single query: it sees every key.
        # Several queries after cached keys: a mask aligned at the bottom right, which is_causal would get wrong.
        mask = causal_mask(tokens, keys, x.device) if 1 < tokens < keys else None
        y = F.scaled_dot_product_attention(
            q,
            k.to(q.dtype),  # a no-op but under autocast, where q comes in half precision and the cache may not
            v.to(q.dtype),
            attn_mask=mask,
            dropout_p=self.attention_dropout if self.training else 0.0,
            is_causal=tokens == keys,
        )  # (batch, n_head, tokens, head_dim)
        y = y.transpose(1, 2).reshape(batch, tokens, d_model)  # heads side by side again
        return self.residual_dropout(self.c_proj(y))

    def make_cache(self, batch_size: int, max_length: int) -> KVCache:
        """An empty cache for this layer, on the device and in the number format of its weights."""
        weight = self.c_attn.weight
        return KVCache(batch_size, self.n_head, max_length, self.head_dim, weight.dtype, weight.device)
