"""Contestants over the length of a text: the tables and the plot of a benchmark that measures at several contexts.

A row of its results is one measurement of all contestants by turns:

    {"task": "decode", "dtype": "float32", "context": 1024, "seconds": {name: [seconds of each run]},
     "cache_bytes": {name: bytes}, "formula_bytes": {name: bytes}}            (the last two where there is a cache)

Ratios are to one of the contestants, `base`, in the same turns: 2.00 is twice as fast.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.benchmarking import median
from utils.plots import save_figure
from utils.readme_tables import markdown_table

Row = dict[str, Any]


def is_row(row: Row, task: str, dtype: str, context: int | None = None) -> bool:
    """Whether a row is of this task, number format and, if given, context."""
    return row["task"] == task and row["dtype"] == dtype and context in (None, row["context"])


def line_of(row: Row) -> str:
    """A measurement in a line, for the terminal."""
    ms = "  ".join(f"{name} {seconds * 1e3:.4g}" for name, seconds in median(row["seconds"]).items())
    return f"{row['task']:13s} {row['dtype']:8s} {row['context']:6,d}, ms: {ms}"


def base_of(rows: list[Row]) -> str:
    """What the others are compared with: the first contestant."""
    return next(iter(rows[0]["seconds"]))


def ratio(row: Row, name: str, base: str) -> float | None:
    """How many times as fast as `base` in the same turns; None where one of them was left out."""
    middle = median(row["seconds"])
    return middle[base] / middle[name] if name in middle and base in middle else None


def short(tokens: int) -> str:
    """1024 as 1k."""
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else f"{tokens:,}"


def cell(row: Row, name: str, base: str) -> str:
    """Milliseconds, and the ratio."""
    if name not in row["seconds"]:
        return "–"
    faster, ms = ratio(row, name, base), median(row["seconds"])[name] * 1e3
    number = f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"
    return number if faster is None or name == base else f"{number} ({faster:.2f}×)"


def speed_table(rows: list[Row], title: str, more: Mapping[str, Mapping[str, str]]) -> str:
    """A line a contestant, a column a context; `more`: heading -> contestant -> what stands in further columns."""
    names, base = rows[0]["seconds"], base_of(rows)
    header = [title, *(short(row["context"]) for row in rows), *more]
    lines = [
        [name, *(cell(row, name, base) for row in rows), *(column.get(name, "–") for column in more.values())]
        for name in names
    ]
    return markdown_table(header, lines, "l" + "r" * (len(header) - 1))


def growth(rows: list[Row]) -> dict[str, dict[str, str]]:
    """A column: how many times as long the last context takes as the one before."""
    if len(rows) < 2:
        return {}
    before, after = median(rows[-2]["seconds"]), median(rows[-1]["seconds"])
    heading = f"{short(rows[-2]['context'])} → {short(rows[-1]['context'])}"
    return {heading: {name: f"{after[name] / before[name]:.2f}" for name in before if name in after}}


def cache_table(rows: list[Row]) -> str:
    """What the caches hold at the longest context, each number format's `rows[-1]`."""
    context, names, base = rows[0]["context"], rows[0]["cache_bytes"], base_of(rows)
    header = [f"cache at {short(context)}"]
    for row in rows:
        header += [f"{row['dtype']}, bytes a token", "by the formula", "MB in all"]
    lines = []
    for name in names:
        line = [name]
        for row in rows:
            held, said = row["cache_bytes"][name], row["formula_bytes"][name]
            line += [f"{held / context:,.5g}", f"{said / context:,.5g}", f"{held / 1e6:,.3g}"]
        lines.append([*line, f"{rows[0]['cache_bytes'][base] / rows[0]['cache_bytes'][name]:.2f}×"])
    return markdown_table([*header, "smaller"], lines, "l" + "r" * (len(header)))


def memory_columns(report: dict[str, Any], dtype: str) -> dict[str, dict[str, str]]:
    """A column: the peak of a prefill in MB, from report["memory"]: rows of dtype, context and name -> bytes."""
    return {
        f"peak MB at {short(row['context'])}": {name: f"{size / 1e6:,.0f}" for name, size in row["bytes"].items()}
        for row in report["memory"]
        if row["dtype"] == dtype and row["bytes"]
    }


def where(report: dict[str, Any]) -> str:
    """The processor or GPU, and torch's version, for the line above a table."""
    machine = report["machine"]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return f"{machine.get('gpu') or machine['processor'] + ', ' + threads}, torch {report['versions']['torch']}"


def dtypes_of(report: dict[str, Any]) -> list[str]:
    """The number formats measured, in order."""
    return list(dict.fromkeys(row["dtype"] for row in report["results"]))


_LINES: tuple[dict[str, Any], ...] = (
    {"linestyle": "-", "color": "black", "marker": "o", "linewidth": 2.0},
    {"linestyle": "-", "color": "0.45", "marker": "s"},
    {"linestyle": "--", "color": "0.45", "marker": "D"},
    {"linestyle": ":", "color": "0.45", "marker": "v"},
    {"linestyle": "-", "color": "black", "marker": "^", "markerfacecolor": "white"},
    {"linestyle": "--", "color": "black", "marker": "x"},
    {"linestyle": "-.", "color": "black", "marker": "s", "markerfacecolor": "white"},
    {"linestyle": ":", "color": "black", "marker": "+", "markersize": 9},
)


def draw(path: Path, report: dict[str, Any], of: str) -> None:
    """Decode time a number format, and cache size, over the context: one PNG, readable in black and white.

    Args:
        of: whose cache it is: "one layer's", say.
    """
    from matplotlib.figure import Figure  # here, because it takes a second that most commands need not wait

    dtypes = dtypes_of(report)
    figure = Figure(figsize=(4.6 * (len(dtypes) + 1), 5.2), layout="constrained")
    all_axes = figure.subplots(1, len(dtypes) + 1, squeeze=False)[0]
    for i, (dtype, axes) in enumerate(itertools.zip_longest(dtypes, all_axes)):
        rows = [row for row in report["results"] if is_row(row, "decode", dtype or dtypes[0])]
        for name, style in zip(rows[0]["seconds"], _LINES, strict=False):
            if dtype is None:
                y = [row["cache_bytes"][name] / 1e6 for row in rows]
            else:
                y = [median(row["seconds"])[name] * 1e3 for row in rows]
            x = [row["context"] for row in rows]
            axes.plot(x, y, label=name if i == 0 else None, **{"linewidth": 1.3, "markersize": 5.5} | style)
        what = f"one decoding step, {dtype}" if dtype else f"the cache, {dtypes[0]}"
        axes.set(xscale="log", yscale="log", title=what, xlabel="context (tokens)")
        axes.set_ylabel("time of a step (ms)" if dtype else f"size of {of} cache (MB)")
        ticks = sorted({row["context"] for row in rows})
        axes.set_xticks(ticks, [short(tick) for tick in ticks])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.grid(alpha=0.3)
    limits = [axes.get_ylim() for axes in all_axes[:-1]]
    for axes in all_axes[:-1]:  # one scale for all number formats
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    for axes in all_axes:
        low, high = axes.get_ylim()
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        axes.set_yticks([n * 10.0**p for p in powers for n in (1, 2, 5) if low <= n * 10.0**p <= high])
        axes.minorticks_off()
    figure.legend(loc="outside lower center", ncols=4, frameon=False, handlelength=4)
    save_figure(path, figure)
