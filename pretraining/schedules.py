"""Learning-rate schedules, as the share of the full rate at some progress through the run."""

from __future__ import annotations


def warmup_stable_decay(progress: float, warmup: float = 0.02, decay: float = 0.9) -> float:
    """Up in a straight line, level, and down in a straight line to zero (Hu et al. 2024, section 4).

    Args:
        progress: from 0 at the start to 1 at the end.
        warmup: share of the run that climbs.
        decay: share of the run that descends.

    Returns:
        From 0 to 1.
    """
    if progress < warmup:
        return progress / warmup
    return min(1.0, max(1.0 - progress, 0.0) / decay)
