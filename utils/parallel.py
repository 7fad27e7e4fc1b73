"""Many processes, results in order: Python runs one thread at a time, so work that is all Python needs processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from typing import Any, TypeVar

from utils.errors import interrupts_wait

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_cores() -> int:
    """How many processors this process may run on, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_processes: int = 1,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """`map(function, items)` over processes, results in the order of the items.

    Items are read as results are taken, a few ahead, so neither have to fit into memory together. With one process, or
    one item, all of it happens in this one. A script that asks for more must have its own work under
    `if __name__ == "__main__":`, since every process that is started imports it.

    Args:
        function: at the top level of a module, as everything that goes to another process.
        initializer, initargs: called once in each process, to set up what all items need.

    Raises:
        ValueError: `num_processes` is below 1.
        Exception: whatever `function` raises.
    """
    if num_processes < 1:
        raise ValueError(f"num_processes must be at least 1, got {num_processes}")
    stream = iter(items)
    first = list(islice(stream, 2))
    items = chain(first, stream)
    if num_processes == 1 or len(first) < 2:  # one item is done before another process has started
        if initializer is not None:
            initializer(*initargs)
        yield from map(function, items)
        return
    # Not "fork": a copy of a process whose other threads (torch's, say) hold a lock would wait for it for ever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, initializer, initargs) as pool:
        ahead: deque[Future[Result]] = deque()
        try:
            for item in items:
                with _deaf_to_interrupts():
                    ahead.append(pool.submit(function, item))  # which starts a process, as long as there are too few
                if len(ahead) > 2 * num_processes:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes that are started here leave Ctrl-C, which a terminal sends to all, to this one, which ends them.

    Else those that are still importing would show tracebacks. Windows knows no mask of signals; there they do.
    """
    with interrupts_wait():
        if not hasattr(signal, "pthread_sigmask"):
            yield
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a new process begins with it
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
