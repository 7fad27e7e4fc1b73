"""From a row of ids to batches: the sliding window, in memory and in plain sight.

A language model reads `context_length` ids and is asked, after each of them, which one comes next. So an example is a
window of the text, and its targets are the same window moved on by one:

    ids       [ 5  2  9  4  7  1  8 ]
    inputs    [ 5  2  9  4 ]                  after 5 comes 2, after 5 2 comes 9, …: four questions in one window
    targets      [ 2  9  4  7 ]

The window slides on by `stride` ids. With a stride of `context_length` every id is a target once. A smaller stride
shows each id several times, in different company: more examples from a small text, and more of the same.

This is the whole idea, for a text that fits into memory. `token_shards.py` does the same for one that does not: ids on
disk, windows that are read only when a batch needs them, an order that can be resumed at any step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class SlidingWindows(Dataset[tuple[Tensor, Tensor]]):
    """Windows over a row of ids, as (inputs, targets), each int64 (context_length,).

    They are views into one tensor: a thousand overlapping windows take no more memory than the text.

    Args:
        ids: of the whole text; documents are joined with `<|endoftext|>` between them.
        context_length: ids that the model reads at once.
        stride: ids from the start of one window to the start of the next; `context_length` if not given.

    Raises:
        ValueError: a number is below 1, the ids are not whole numbers in a row, or these are fewer than one window and
            the id after it.
    """

    def __init__(
        self, ids: Sequence[int] | npt.NDArray[Any] | Tensor, context_length: int, stride: int | None = None
    ) -> None:
        stride = context_length if stride is None else stride
        if context_length < 1 or stride < 1:
            raise ValueError(f"context length and stride must be at least 1, got {context_length} and {stride}")
        array = np.array(ids)  # a copy: no window writes into the caller's
        if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or not array.size):
            raise ValueError(f"ids are whole numbers in a row, got {array.dtype} of shape {array.shape}")
        row = torch.from_numpy(array.astype(np.int64))  # (tokens,)
        if len(row) <= context_length:
            raise ValueError(
                f"the text has {len(row):,} ids, too few for a window of {context_length} and the id after it: "
                "use more text or a shorter context"
            )
        self.windows = row.unfold(0, context_length + 1, stride)  # (windows, context_length + 1), a view

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        window = self.windows[i]  # (context_length + 1,)
        return window[:-1], window[1:]


def make_loader(
    ids: Sequence[int] | npt.NDArray[Any] | Tensor,
    context_length: int,
    batch_size: int,
    stride: int | None = None,
    shuffle: bool = True,
    seed: int = 0,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches of `SlidingWindows`: pairs of int64 (batch, context_length), every window once an epoch.

    A last batch that would be smaller is left out when shuffling, since its few windows would weigh more than others.

    Args:
        batch_size: windows in a batch.
        shuffle: in a new order each epoch, which `seed` decides.

    Raises:
        ValueError: as `SlidingWindows`, or there are fewer windows than one batch needs.
    """
    windows = SlidingWindows(ids, context_length, stride)
    if shuffle and len(windows) < batch_size:
        raise ValueError(
            f"the text has {len(windows)} windows, too few for a batch of {batch_size}: use more text, a smaller "
            "batch or a smaller stride"
        )
    order = torch.Generator().manual_seed(seed)
    return DataLoader(windows, batch_size, shuffle=shuffle, drop_last=shuffle, generator=order)
