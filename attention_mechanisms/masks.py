"""Who may look at whom.

A query is a token that asks, a key one that may answer. Two counts are not enough to say who stands where: with a cache
there are fewer queries than keys, and a rolling cache keeps its keys out of order. So the general mask is a function of
*positions*, and every other one follows from it.
"""

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


def document_mask(documents: Tensor) -> Tensor:
    """True where a token may attend to one before it of its own document, in windows that are packed with several.

    Documents 0 0 0 1 1:

        1 . . . .
        1 1 . . .
        1 1 1 . .
        . . . 1 .
        . . . 1 1

    Args:
        documents: int64 (batch, tokens), a number for each document.

    Returns:
        bool (batch, 1, tokens, tokens): the 1 stands for all heads.
    """
    tokens = documents.shape[1]
    same = documents[:, None, :, None] == documents[:, None, None, :]  # (batch, 1, tokens, tokens)
    return same & causal_mask(tokens, tokens, documents.device)


def windowed(mask: Tensor, window: int, n_sink: int = 0) -> Tensor:
    """`mask`, less what is neither among the last `window` keys of a query nor among the first `n_sink` that it sees.

    Args:
        mask: bool (…, tokens, tokens), True where a query may look: `causal_mask`, or narrower.

    Returns:
        The same shape.
    """
    position = torch.arange(mask.shape[-1], device=mask.device)
    query, key = position[:, None], position
    first = mask.int().argmax(dim=-1, keepdim=True)  # (…, tokens, 1): where the text of each query begins
    return mask & ((key > query - window) | (key < first + n_sink))


def visible(
    query_positions: Tensor,
    key_positions: Tensor,
    window: int | None = None,
    n_sink: int = 0,
    padding: Tensor | None = None,
) -> Tensor:
    """True where a query may attend to a key, from where they stand in the text.

    A key is seen by the queries from its own position on (causal); with a window, by the `window` queries from there
    on; with sinks, the first `n_sink` tokens of a text are seen by all that come after. Window 3, one sink:

        1 . . . . .
        1 1 . . . .
        1 1 1 . . .
        1 1 1 1 . .
        1 . 1 1 1 .
        1 . . 1 1 1

    Args:
        query_positions: int64 (n_query,).
        key_positions: int64 (n_key,), in any order.
        window: keys that a query sees, its own among them; None for all.
        n_sink: tokens at the beginning that every query sees in spite of the window.
        padding: int64 (batch,), columns on the left of each row that are not text (see `kv_cache.py`). No token of the
            text sees them. They see themselves, because a softmax over nothing is not a number.

    Returns:
        bool (batch, 1, n_query, n_key), of batch 1 without padding: the 1 stands for all heads.
    """
    query = query_positions.view(1, 1, -1, 1)
    key = key_positions.view(1, 1, 1, -1)
    first = 0 if padding is None else padding.view(-1, 1, 1, 1)
    near = key <= query
    if window is not None:
        near = near & ((key > query - window) | (key < first + n_sink))
    return near if padding is None else (near & (key >= first)) | (key == query)


def sinks_and_window(
    query_positions: Tensor, key_positions: Tensor, window: int, sinks: Tensor, padding: Tensor | None = None
) -> Tensor:
    """`visible` of a window, for keys that stand behind the sinks: a sink is seen once it has left the window.

    Before that it is among the other keys too, and would count twice.

    Args:
        query_positions: int64 (n_query,).
        key_positions: int64 (n_key,), of the keys behind the sinks, in any order.
        sinks: int64 (batch or 1, n_sink), the positions of the sinks.
        padding: int64 (batch,), columns that are no text.

    Returns:
        bool (batch or 1, 1, n_query, n_sink + n_key).
    """
    near = visible(query_positions, key_positions, window, padding=padding)  # (batch or 1, 1, n_query, n_key)
    if not sinks.shape[1]:
        return near
    far = sinks[:, None, None, :] <= query_positions[:, None] - window  # (batch or 1, 1, n_query, n_sink)
    return torch.cat([far.expand(near.shape[0], -1, -1, -1), near], dim=3)
