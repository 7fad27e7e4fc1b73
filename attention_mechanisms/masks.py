"""Who may look at whom."""

from __future__ import annotations

import torch
from torch import Tensor


def causal_mask(n_query: int, n_key: int, device: torch.device | str | None = None) -> Tensor:
    """True where query i may attend to key j, when the queries are the *last* `n_query` of `n_key` tokens.

    Query i stands at position n_key - n_query + i, and sees the keys up to there. With 2 queries and 5 keys:

        1 1 1 1 0
        1 1 1 1 1

    PyTorch's `is_causal=True` aligns the other way, at the top left: there these two queries would see key 0, and keys
    0 and 1. It is right only when there are as many queries as keys.

    Returns:
        bool (n_query, n_key).
    """
    return torch.ones(n_query, n_key, dtype=torch.bool, device=device).tril(diagonal=n_key - n_query)
