"""Learning-rate schedules, as the share of the full rate at some progress through the run.

A step against the gradient is right for a small step only, and how small depends on how far the run is: at the start
the gradients are large and of no use yet (warm-up), in the middle a high rate travels far, and at the end a low one
settles what the high one kept stirring. Two shapes of the way down are in use:

    cosine    from the warm-up's end on, half a cosine: nanoGPT, GPT-3, Llama. The end must be known at the beginning.
    wsd       level, then down in a straight line (warm-up, stable, decay): the level part can go on for as long as one
              likes, and every decay from it is a finished model.

A share, and of progress, so that the same schedule serves any number of steps and any optimiser.
"""

from __future__ import annotations

import math
from typing import Literal

ScheduleName = Literal["cosine", "wsd", "constant"]


def warmup_stable_decay(progress: float, warmup: float = 0.02, decay: float = 0.9, floor: float = 0.0) -> float:
    """Up in a straight line, level, and down in a straight line (Hu et al. 2024, section 4).

    Args:
        progress: from 0 at the start to 1 at the end.
        warmup: share of the run that climbs.
        decay: share of the run that descends.
        floor: where the descent ends.

    Returns:
        From 0 to 1.
    """
    if progress < warmup:
        return progress / warmup
    if decay == 0:
        return 1.0
    return floor + (1.0 - floor) * min(1.0, max(1.0 - progress, 0.0) / decay)


def warmup_cosine(progress: float, warmup: float = 0.02, floor: float = 0.1) -> float:
    """Up in a straight line, and down along half a cosine (Loshchilov and Hutter 2017, equation 5, without restarts).

    Args:
        progress: from 0 at the start to 1 at the end.
        warmup: share of the run that climbs.
        floor: where the descent ends.

    Returns:
        From 0 to 1.
    """
    if progress < warmup:
        return progress / warmup
    way = min((progress - warmup) / max(1.0 - warmup, 1e-12), 1.0)
    return floor + (1.0 - floor) * (1.0 + math.cos(math.pi * way)) / 2


def learning_rate_scale(name: ScheduleName, progress: float, warmup: float, decay: float, floor: float) -> float:
    """The share of the full rate of the schedule called `name`; `decay` is of wsd alone, and constant has no floor."""
    if name == "cosine":
        return warmup_cosine(progress, warmup, floor)
    return warmup_stable_decay(progress, warmup, 0.0 if name == "constant" else decay, floor)
