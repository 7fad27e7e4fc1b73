"""One seed for everything that draws: Python's `random`, NumPy and torch on every device."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seeds the three global generators, so that a run can be repeated.

    To the bit on the CPU, with the same machine and versions; on a GPU some kernels add in no fixed order.

    Raises:
        ValueError: `seed` is outside 0 … 2**32 - 1, which is what NumPy accepts.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed {seed} is outside 0 … {2**32 - 1}")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - ours draw from Generators of their own; libraries may not
    torch.manual_seed(seed)  # CPU, CUDA and MPS alike
