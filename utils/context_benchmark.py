"""The frame of a benchmark over contexts: its flags, its checks, and what it writes.

A script subclasses `ContextBenchmark` with its own flags and calls `run_benchmark` with what measures and what makes
the tables. Rows have the form that `context_report.py` describes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from utils.context_report import Row, draw, is_row, line_of
from utils.device_benchmarking import describe_device
from utils.devices import pick_device
from utils.errors import UserError
from utils.readme_tables import publish
from utils.tracking import REPOSITORY, provenance

NumberFormat = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class ContextBenchmark:
    """The flags that such benchmarks share."""

    contexts: tuple[int, ...] = (1024, 2048, 4096, 8192, 16_384, 32_768)
    """Tokens in the text, the new one among them."""
    max_prefill: int = 16_384
    """The longest of these that is also prefilled."""
    dtypes: tuple[NumberFormat, ...] = ("float32", "bfloat16")
    """Number formats of weights, texts and caches."""
    window: int = 512
    """Keys that a query of the sliding window sees."""
    repeats: int = 25
    """Turns of each measurement, at most; the median counts."""
    seconds: float = 5.0
    """Time for each measurement: fewer turns are made where they take longer, but never fewer than 2."""
    longest: float = 30.0
    """Seconds that a single run may take; what would, judged by the context before, is left out."""
    threads: int = 1
    """CPU threads."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1."""
    out: Path | None = None
    """The folder for benchmark.json and benchmark.png; the chapter's own if not given."""
    readme: Path | None = None
    """The file that gets the tables, between its markers; if not given, the chapter's own when `out` is too."""
    quick: bool = False
    """A try in seconds, with tiny texts and few turns. Its figures mean nothing, and go to runs/quick."""
    report_only: bool = False
    """Measure nothing: make the tables and the plot again from benchmark.json."""

    quickly: ClassVar[dict[str, Any]] = {"contexts": (32, 64), "max_prefill": 64, "window": 16, "repeats": 3}

    def __post_init__(self) -> None:
        if self.quick:
            for name, value in self.quickly.items():
                object.__setattr__(self, name, value)

    @property
    def decode_contexts(self) -> list[int]:
        """The contexts in rising order."""
        return sorted(set(self.contexts))

    @property
    def prefill_contexts(self) -> list[int]:
        """Those of them that are prefilled."""
        return [context for context in self.decode_contexts if context <= self.max_prefill]

    def check(self) -> None:
        """Raises UserError where a flag's value makes no sense."""
        if not self.contexts or min(self.contexts) < 2:
            raise UserError(f"--contexts {self.contexts}: one or more are needed, each of at least 2 tokens")
        if not self.dtypes:
            raise UserError("--dtypes: give float32, bfloat16 or both")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise UserError(f"--{field.name.replace('_', '-')} {value} must be at least 1")


def measure_all(
    options: ContextBenchmark,
    rows_of: Callable[[NumberFormat], Iterator[Row]],
    memory_of: Callable[[NumberFormat, list[Row]], Row],
) -> dict[str, Any]:
    """Everything that a report has in common, with a line for each measurement as it comes.

    Args:
        rows_of: measures the rows of one number format.
        memory_of: measures the peaks of memory, when the format's rows of the task "prefill" are known.
    """
    torch.set_num_threads(options.threads)
    results: list[Row] = []
    memory: list[Row] = []
    with torch.inference_mode():
        for dtype in options.dtypes:
            for row in rows_of(dtype):
                print(line_of(row), flush=True)
                results.append(row)
            if prefills := [row for row in results if is_row(row, "prefill", dtype)]:
                memory.append(memory_of(dtype, prefills))
                sizes = "  ".join(f"{name} {size / 1e6:.0f}" for name, size in memory[-1]["bytes"].items())
                print(f"memory        {dtype:8s} {memory[-1]['context']:6,d}, MB: {sizes}", flush=True)
    machine = describe_device(pick_device(options.device), options.threads)
    return {**provenance(), "machine": machine, "results": results, "memory": memory}


def run_benchmark(
    options: ContextBenchmark,
    measure: Callable[[], dict[str, Any]],
    tables: Callable[[dict[str, Any]], str],
    chapter: Path,
    block: str,
    of: str,
) -> None:
    """Measures, writes benchmark.json and benchmark.png, and puts the tables where they belong.

    Args:
        chapter: the folder whose README.md and results/ are written where the flags name no others.
        block: the name of the README's markers.
        of: whose cache the plot shows: "one layer's", say.
    """
    options.check()
    in_chapter = options.out is None and not options.quick  # what means nothing must not replace what does
    out = options.out or (chapter / "results" if in_chapter else REPOSITORY / "runs" / "quick" / chapter.name)
    readme = chapter / "README.md" if options.readme is None and in_chapter else options.readme
    path, picture = out / "benchmark.json", out / "benchmark.png"

    def told() -> dict[str, Any]:
        print(f"Measures {len(options.dtypes)} number formats at {len(options.contexts)} contexts, for {path}")
        return measure()

    def drawn(report: dict[str, Any]) -> None:
        draw(picture, report, of)
        print(f"Wrote {picture}")

    publish(path, None if options.report_only else told, tables, readme, block, drawn)
