"""softmax(Q Kᵀ / √d + mask) V: once as the formula says it, once as fast as it goes.

Both take grouped heads: k and v may have fewer heads than q, and then each serves `n_head / n_kv_head` query heads in a
row. With as many, it is the classic attention; with one, multi-query. No repeated key is ever written to memory: the
queries that share a key are *folded* into rows of one matrix,

    (batch, n_head, tokens, d)  ->  (batch, n_kv_head, n_head / n_kv_head · tokens, d)

which asks the same questions of the same keys in one larger product. Where one query meets many keys this is also the
faster way: the keys are read from memory once for the whole group, and reading them is what takes the time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_mechanisms.masks import causal_mask


def rms_normalised(x: Tensor) -> Tensor:
    """(…, head_dim) to vectors of length √head_dim: what QK-norm makes of queries and keys (Henry et al. 2020).

    However the matrices grow in training, no score is then above √head_dim, so that the softmax cannot become one-hot
    and its gradient nothing (Dehghani et al. 2023, section 2).
    """
    return F.rms_norm(x, x.shape[-1:], eps=1e-6).to(x.dtype)


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """The formula, step by step: what the notebooks derive, and what the fast path is held to.

    Args:
        q: (batch, n_head, tokens, d).
        k: (batch, n_kv_head, keys, d); n_kv_head divides n_head.
        v: (batch, n_kv_head, keys, d_value).
        mask: bool, broadcastable to (batch, n_head, tokens, keys); True where a query may look. One that may look
            nowhere gets NaN.
        dropout: probability with which a weight is set to zero.
        scale: what the scores are multiplied by; 1 / √d if not given.

    Returns:
        y (batch, n_head, tokens, d_value) and the weights (batch, n_head, tokens, keys), whose rows sum to 1.
    """
    batch, n_head, tokens, d = q.shape
    n_kv_head, keys = k.shape[1], k.shape[2]
    folded = q.reshape(batch, n_kv_head, -1, d)  # (batch, n_kv_head, group · tokens, d)
    scores = folded @ k.transpose(2, 3)  # (batch, n_kv_head, group · tokens, keys)
    scores = scores.view(batch, n_head, tokens, keys) * (d**-0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    dropped = F.dropout(weights, dropout)
    y = dropped.view(batch, n_kv_head, -1, keys) @ v  # (batch, n_kv_head, group · tokens, d_value)
    return y.view(batch, n_head, tokens, v.shape[3]), weights


def fast_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """The same through `F.scaled_dot_product_attention`, which never writes the scores to memory (Dao et al. 2022).

    Args:
        mask: as above, of shape (batch or 1, 1, tokens, keys); not together with `causal`.
        causal: the queries are the last of the keys, and each sees what is not after it.

    Returns:
        (batch, n_head, tokens, d_value).
    """
    batch, n_head, tokens, d = q.shape
    n_kv_head, keys, d_value = k.shape[1], k.shape[2], v.shape[3]
    k, v = k.to(q.dtype), v.to(q.dtype)  # a no-op but under autocast, where q is in half precision, the cache is not
    if d_value < d:  # fused kernels want values as wide as keys; for others torch writes all scores down
        v = F.pad(v, (0, d - d_value))
    if tokens == 1:  # it sees every key: no mask is needed, and its group can be folded
        q = q.reshape(batch, n_kv_head, n_head // n_kv_head, d)  # (batch, n_kv_head, group, d)
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale)  # (batch, n_kv_head, group, d)
        return y.reshape(batch, n_head, 1, -1)[..., :d_value]
    # is_causal aligns queries and keys at the top left, which is right for square scores only. Behind a cache they
    # belong at the bottom right.
    if causal and tokens < keys:
        mask = mask_behind_cache(tokens, keys, q.device)
    grouped, square = n_kv_head < n_head, causal and tokens == keys
    y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=square, scale=scale, enable_gqa=grouped)
    return y[..., :d_value]


def mask_behind_cache(tokens: int, keys: int, device: torch.device) -> Tensor:
    """The causal mask of the last `tokens` of `keys` positions, (tokens, keys).

    CUDA's kernels know this alignment by its name, which is a tensor subclass that `torch.compile` cannot make;
    elsewhere the mask is written out.
    """
    if device.type != "cuda" or torch.compiler.is_compiling():
        return causal_mask(tokens, keys, device)
    from torch.nn.attention.bias import causal_lower_right  # slow to import, and only CUDA needs it

    return causal_lower_right(tokens, keys)
