"""Measured on a device: waiting for what a GPU still computes, within a budget of seconds, and the most memory held."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from utils.benchmarking import Seconds, describe_machine, median, time_by_turns


def as_many_turns(
    contestants: Mapping[str, Callable[[], object]],
    budget: float,
    most: int,
    device: torch.device,
    warm_up: int = 0,
) -> Seconds:
    """As `time_by_turns`, with as many turns as there is time for, at least 2.

    The first turn warms up and is not counted, unless it took all the time.

    Args:
        budget: seconds for all turns together.
        most: turns, if they are quick.
        device: what is computed there is waited for.
        warm_up: turns before all others, whose time is nobody's: kernels are compiled in them. One at least on CUDA.
    """

    def finished(run: Callable[[], object]) -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()

    contestants = {name: partial(finished, run) for name, run in contestants.items()}
    time_by_turns(contestants, max(warm_up, 1 if device.type == "cuda" else 0))
    first = time_by_turns(contestants, 1)
    turn = sum(runs[0] for runs in first.values())
    repeats = min(most, max(2, int(budget / turn)))
    if turn < budget:
        return time_by_turns(contestants, repeats)
    more = time_by_turns(contestants, repeats - 1)
    return {name: first[name] + more[name] for name in contestants}


def lengthening(
    measure: Callable[[list[str], int], dict[str, Any]],
    names: Sequence[str],
    contexts: Sequence[int],
    longest: float,
) -> Iterator[dict[str, Any]]:
    """Rows of `measure(names, context)` for each context, without those that would take too long.

    Args:
        measure: makes a row whose "seconds" are name -> the seconds of each run.
        contexts: in rising order.
        longest: seconds that one run may take; the next is expected to take T² times as long.
    """
    left = list(names)
    for i, context in enumerate(contexts):
        row = measure(left, context)
        yield row
        if i + 1 < len(contexts):
            expected = {name: (contexts[i + 1] / context) ** 2 * t for name, t in median(row["seconds"]).items()}
            for name in [name for name in left if expected[name] > longest]:
                print(f"  {name} could take {expected[name]:.0f} s at {contexts[i + 1]:,} tokens: left out", flush=True)
                left.remove(name)
            if not left:
                return


def peak_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """The most bytes that `run` held on top of what was there before. On a CPU, Linux alone tells: else None.

    A CPU process keeps memory that it has had once, so run it in a fresh one: see `in_a_fresh_process`.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    peak_file = Path("/proc/self/clear_refs")
    if device.type != "cpu" or not peak_file.exists():
        return None
    peak_file.write_text("5")  # the most so far is what it holds now
    resident = _status("VmRSS")
    run()
    return _status("VmHWM") - resident


def _status(field: str) -> int:
    """Bytes that the system counts for this process: VmRSS, what it holds now, or VmHWM, the most it has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def in_a_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in a fresh process, which has no other's memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def describe_device(device: torch.device, threads: int) -> dict[str, Any]:
    """`describe_machine` with what is computed on."""
    machine = describe_machine() | {"threads": threads, "device": device.type}
    return machine | {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else machine
