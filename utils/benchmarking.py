"""Speed, measured so that another can believe it: side by side, by turns, as a ratio.

A machine is never as fast as a moment ago: it warms up, it throttles, somebody else computes. So two things that are
compared run by turns, A B A B, in the same minute, and the figure is the ratio of their medians. What is written down
is every single time, with the machine, the versions and the commit.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Seconds = dict[str, list[float]]


def time_by_turns(
    contestants: Mapping[str, Callable[[], object]],
    repeats: int = 3,
    prepare: Mapping[str, Callable[[], object]] | None = None,
) -> Seconds:
    """name -> the seconds that each of its runs took.

    Args:
        contestants: name -> what is timed.
        prepare: name -> what is done before each of its runs and not timed.
    """
    seconds: Seconds = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            if prepare and name in prepare:
                prepare[name]()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median(seconds: Seconds) -> dict[str, float]:
    """name -> the median of its runs."""
    return {name: statistics.median(runs) for name, runs in seconds.items()}


def processor() -> str:
    """The processor's own name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def describe_machine() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": processor(), "cores": cores, "system": f"{platform.system()} {platform.machine()}"}
