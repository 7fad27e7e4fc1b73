"""What does each kind of attention cost, measured? One layer at GPT-2 124M's shape, all kinds by turns in one run.

python attention_mechanisms/benchmark.py

    decode    one new token with the cache full: what each step of writing takes. Nearly all of it is reading, of the
              cache and of the layer's weights
    alone     the same without the projections, which are as large in nearly all kinds: scores, sums and the cache
    prefill   a whole text in one pass, without a cache: what reading a prompt, or training, takes. Nearly all of it is
              arithmetic, T² of it where every token sees every other.
    cache     bytes that a live cache holds, beside what the formula of `cost` says
    memory    the most bytes that a prefill holds on top of its weights and its text

Ratios are to multi-head attention in the same turns: 2.00 is twice as fast. A turn runs all kinds once, so each finds
the processor's caches full of the others' numbers; so would a layer within a model find them full of other layers'.

Before anything is timed, `forward` is compared with `reference`, and a step through the cache with the last row of it.
"""

from __future__ import annotations

import copy
import gc
import io
import itertools
import math
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attention_mechanisms.attend import fast_attention
from attention_mechanisms.grouped_query import GroupedQueryAttention
from attention_mechanisms.kv_cache import LatentCache
from attention_mechanisms.multi_head import MultiHeadAttention
from attention_mechanisms.multi_head_latent import MultiHeadLatentAttention
from attention_mechanisms.rotary import Rotary
from attention_mechanisms.sliding_window import SlidingWindowAttention
from utils.benchmarking import Seconds, describe_machine, median, time_by_turns
from utils.devices import pick_device
from utils.errors import UserError, run_command
from utils.files import read_json, require_writable, write_bytes, write_json
from utils.readme_tables import markdown_table, with_block, write_block
from utils.tracking import REPOSITORY, provenance

RESULTS = REPOSITORY / "attention_mechanisms" / "results"
README = REPOSITORY / "attention_mechanisms" / "README.md"
D_MODEL, N_HEAD = 768, 12  # GPT-2 124M
D_LATENT, D_ROPE = 256, 32
BASE = "multi-head"
NumberFormat = Literal["float32", "bfloat16"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """The flags of this script."""

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
    out: Path = RESULTS
    """The folder for benchmark.json and benchmark.png."""
    readme: Path | None = None
    """The file that gets the tables, between its markers; if not given, the chapter's own when `out` is too."""
    quick: bool = False
    """A try in seconds: texts of 32 and 64 tokens, a window of 16, 3 turns. Its figures mean nothing."""
    report_only: bool = False
    """Measure nothing: make the tables and the plot again from benchmark.json."""

    def __post_init__(self) -> None:
        if self.quick:
            tiny = {"contexts": (32, 64), "max_prefill": 64, "window": 16, "repeats": 3}
            for name, value in tiny.items():
                object.__setattr__(self, name, value)

    @property
    def readme_path(self) -> Path | None:
        """The file that gets the tables."""
        return README if self.readme is None and self.out.resolve() == RESULTS else self.readme


# --- what is measured -------------------------------------------------------------------------------------------------


class NaiveLatentAttention(MultiHeadLatentAttention):
    """Latent attention that writes out all keys and values at every step: the same numbers, the hard way."""

    def forward(self, x: Tensor, cache: LatentCache | None = None) -> Tensor:
        """As in `MultiHeadLatentAttention`, never absorbed."""
        if cache is None:
            return super().forward(x)
        q, latents = self.queries(x, cache.length), self.latents(x, cache.length)
        k, v = self.expanded(cache.append(latents))  # (batch, n_head, keys, head_dim + d_rope), (…, head_dim)
        return self.merge(fast_attention(q, k, v, causal=True, scale=self.scale))


def kinds(longest: int, window: int) -> dict[str, Callable[[], nn.Module]]:
    """name -> a maker of that attention layer, for texts of up to `longest` tokens."""
    rotary = Rotary(D_ROPE, longest)  # for the latent kinds; the others leave positions to the embedding, as GPT-2 does
    return {
        BASE: partial(MultiHeadAttention, D_MODEL, N_HEAD),
        "grouped-query, 4": partial(GroupedQueryAttention, D_MODEL, N_HEAD, 4),
        "grouped-query, 3": partial(GroupedQueryAttention, D_MODEL, N_HEAD, 3),
        "multi-query, 1": partial(GroupedQueryAttention, D_MODEL, N_HEAD, 1),
        "latent, absorbed": partial(MultiHeadLatentAttention, D_MODEL, N_HEAD, D_LATENT, rotary=rotary),
        "latent, naive": partial(NaiveLatentAttention, D_MODEL, N_HEAD, D_LATENT, rotary=rotary),
        f"window {window}": partial(SlidingWindowAttention, D_MODEL, N_HEAD, window),
        f"window {window}, 4 sinks": partial(SlidingWindowAttention, D_MODEL, N_HEAD, window, 4),
    }


def prefilled(names: Sequence[str]) -> list[str]:
    """Those that differ in prefill: both latent kinds do the same there."""
    return [name for name in names if name != "latent, naive"]


def build(make: Callable[[], nn.Module], dtype: NumberFormat, device: torch.device) -> Any:
    """A layer with random weights, the same ones at every call."""
    torch.manual_seed(0)
    return make().to(device, getattr(torch, dtype)).eval()


def random_text(tokens: int, dtype: NumberFormat, device: torch.device) -> Tensor:
    """(1, tokens, d_model)."""
    return torch.randn(1, tokens, D_MODEL, generator=torch.Generator().manual_seed(1)).to(device, getattr(torch, dtype))


@torch.inference_mode()
def require_correct(name: str, layer: Any, tokens: int, dtype: NumberFormat, device: torch.device) -> None:
    """Stops the benchmark: nothing is timed that does not compute what the formula says.

    Raises:
        UserError: `forward`, or a step behind a cache, is not `reference`.
    """
    x = random_text(tokens, dtype, device)
    expected = layer.reference(x)[0].float()  # (1, tokens, d_model)
    cache = layer.make_cache(1, tokens)
    layer(x[:, :-1], cache)
    found = {"forward": (layer(x), expected), "a step behind the cache": (layer(x[:, -1:], cache), expected[:, -1:])}
    tolerance = 1e-4 if dtype == "float32" else 3e-2  # of the largest number; bfloat16 keeps 8 bits
    for what, (y, y_expected) in found.items():
        error = float((y.float() - y_expected).abs().max() / expected.abs().max())
        if not error <= tolerance:  # written so that a NaN fails
            raise UserError(f"{what} of {name} in {dtype} is {error:.1e} away from reference: nothing was measured")


def full_cache(layer: Any, context: int) -> Any:
    """A cache that lacks one token of `context`; what is in it is random, which costs the same as text."""
    cache = layer.make_cache(1, context)
    for buffer in cache.buffers:
        buffer.normal_()
    cache.length = context - 1
    return cache


def timed(
    contestants: Mapping[str, Callable[[], object]],
    options: Benchmark,
    device: torch.device,
    prepare: Mapping[str, Callable[[], object]] | None = None,
) -> Seconds:
    """As many turns as there is time for. The first warms up, unless it took all the time: then it counts."""

    def finished(run: Callable[[], object]) -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    contestants = {name: partial(finished, run) for name, run in contestants.items()}
    if device.type == "cuda":
        time_by_turns(contestants, 1, prepare)  # compiles kernels, which may take all the time
    first = time_by_turns(contestants, 1, prepare)
    turn = sum(runs[0] for runs in first.values())
    repeats = min(options.repeats, max(2, int(options.seconds / turn)))
    if turn < options.seconds:
        return time_by_turns(contestants, repeats, prepare)
    more = time_by_turns(contestants, repeats - 1, prepare)
    return {name: first[name] + more[name] for name in contestants}


class Identity(nn.Module):
    """What comes in goes out."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def without_projections(layer: Any) -> Any:
    """The layer with queries, keys, values or latents of one token computed beforehand, and no output projection."""
    bare = copy.copy(layer)
    bare._modules = dict(layer._modules)
    x = random_text(1, "float32", torch.device("cpu")).to(layer.c_proj.weight)
    bare.c_proj = Identity()
    if isinstance(layer, MultiHeadLatentAttention):
        q, latents = layer.queries(x), layer.latents(x)
        bare.queries, bare.latents = lambda x, start=0: q, lambda x, start=0: latents
    else:
        projected = layer.project(x)
        bare.project = lambda x, start=0: projected
    return bare


def measure_decode(
    layers: dict[str, Any], context: int, dtype: NumberFormat, options: Benchmark, alone: bool = False
) -> Row:
    """One new token behind a full cache; `alone` without the projections."""
    device = pick_device(options.device)
    number = 4 if dtype == "float32" else 2
    formula = {name: layer.cost(context).cache_bytes(number) for name, layer in layers.items()}
    if alone:
        layers = {name: without_projections(layer) for name, layer in layers.items()}
    x = random_text(1, dtype, device)
    caches = {name: full_cache(layer, context) for name, layer in layers.items()}
    seconds = timed(
        {name: partial(layer, x, caches[name]) for name, layer in layers.items()},
        options,
        device,
        {name: partial(cache.truncate, context - 1) for name, cache in caches.items()},
    )
    return {
        "task": "alone" if alone else "decode",
        "dtype": dtype,
        "context": context,
        "seconds": seconds,
        "cache_bytes": {name: cache.nbytes for name, cache in caches.items()},
        "formula_bytes": formula,
    }


def measure_prefill(layers: dict[str, Any], context: int, dtype: NumberFormat, options: Benchmark) -> Row:
    """A whole text without a cache."""
    device = pick_device(options.device)
    x = random_text(context, dtype, device)
    seconds = timed({name: partial(layer, x) for name, layer in layers.items()}, options, device)
    return {"task": "prefill", "dtype": dtype, "context": context, "seconds": seconds}


def peak_of_prefill(name: str, context: int, dtype: NumberFormat, options: Benchmark) -> int | None:
    """The most bytes that a prefill holds besides weights and text. On a CPU, Linux alone tells: else None."""
    torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    layer = build(kinds(max(options.contexts), options.window)[name], dtype, device)
    x = random_text(context, dtype, device)
    peak_file = Path("/proc/self/clear_refs")
    with torch.inference_mode():
        layer(x[:, :64])  # loads what a first run loads
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            layer(x)
            return torch.cuda.max_memory_allocated(device) - before
        if device.type != "cpu" or not peak_file.exists():
            return None
        peak_file.write_text("5")  # the most so far is what it holds now
        resident = _status("VmRSS")
        layer(x)
        return _status("VmHWM") - resident


def _status(field: str) -> int:
    """Bytes that the system counts for this process: VmRSS, what it holds now, or VmHWM, the most it has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def in_a_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in a fresh process, which has no other's memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(options: Benchmark) -> dict[str, Any]:
    """Everything, with a line for each measurement as it comes."""
    torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    contexts = sorted(set(options.contexts))
    makers = kinds(contexts[-1], options.window)
    results: list[Row] = []
    memory: list[Row] = []

    def note(row: Row) -> None:
        ms = "  ".join(f"{name} {seconds * 1e3:.4g}" for name, seconds in median(row["seconds"]).items())
        print(f"{row['task']:7s} {row['dtype']:8s} {row['context']:6,d}, ms: {ms}", flush=True)
        results.append(row)

    with torch.inference_mode():
        for dtype in options.dtypes:
            layers = {name: build(make, dtype, device) for name, make in makers.items()}
            for name, layer in layers.items():
                require_correct(name, layer, options.window + 40, dtype, device)
            print(f"{dtype}: all {len(layers)} kinds compute what their formula says", flush=True)
            for context in contexts:
                note(measure_decode(layers, context, dtype, options))
                note(measure_decode(layers, context, dtype, options, alone=True))
            left = {name: layers[name] for name in prefilled(list(layers))}
            lengths = [context for context in contexts if context <= options.max_prefill]
            for i, context in enumerate(lengths):
                note(measure_prefill(left, context, dtype, options))
                if i + 1 < len(lengths):
                    growth = (lengths[i + 1] / context) ** 2
                    expected = {name: growth * t for name, t in median(results[-1]["seconds"]).items()}
                    left = {name: layer for name, layer in left.items() if expected[name] <= options.longest}
                    for name in expected.keys() - left.keys():
                        print(f"  {name} would take {expected[name]:.0f} s at {lengths[i + 1]:,} tokens: left out")
            if lengths:
                at = lengths[-2] if len(lengths) > 1 else lengths[-1]
                timed_there = next(row for row in results if is_row(row, "prefill", dtype, at))["seconds"]
                some = list(timed_there)[:1] if options.quick else list(timed_there)  # a process each takes seconds
                peaks = {name: in_a_fresh_process(peak_of_prefill, name, at, dtype, options) for name in some}
                memory.append(
                    {"dtype": dtype, "context": at, "bytes": {n: b for n, b in peaks.items() if b is not None}}
                )
                megabytes = "  ".join(f"{name} {size / 1e6:.0f}" for name, size in memory[-1]["bytes"].items())
                print(f"memory  {dtype:8s} {at:6,d}, MB: {megabytes}", flush=True)
    machine = describe_machine() | {"threads": options.threads, "device": device.type}
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    shape = {"d_model": D_MODEL, "n_head": N_HEAD, "d_latent": D_LATENT, "d_rope": D_ROPE, "window": options.window}
    return {**provenance(), "machine": machine, "shape": shape, "results": results, "memory": memory}


# --- what a person sees -----------------------------------------------------------------------------------------------


def is_row(row: Row, task: str, dtype: str, context: int | None = None) -> bool:
    """Whether a row is of this task, number format and, if given, context."""
    return row["task"] == task and row["dtype"] == dtype and context in (None, row["context"])


def ratio(row: Row, name: str) -> float | None:
    """How many times as fast as multi-head attention in the same turns; None where one was left out."""
    middle = median(row["seconds"])
    return middle[BASE] / middle[name] if name in middle and BASE in middle else None


def short(tokens: int) -> str:
    """1024 as 1k."""
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else f"{tokens:,}"


def cell(row: Row, name: str) -> str:
    """Milliseconds, and the ratio."""
    if name not in row["seconds"]:
        return "–"
    faster, ms = ratio(row, name), median(row["seconds"])[name] * 1e3
    number = f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"
    return number if faster is None or name == BASE else f"{number} ({faster:.2f}×)"


def speed_table(rows: list[Row], title: str, more: Mapping[str, Mapping[str, str]]) -> str:
    """A line a kind, a column a context; `more`: heading -> kind -> what stands in further columns."""
    names = rows[0]["seconds"]
    header = [title, *(short(row["context"]) for row in rows), *more]
    lines = [
        [name, *(cell(row, name) for row in rows), *(column.get(name, "–") for column in more.values())]
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
    context, names = rows[0]["context"], rows[0]["cache_bytes"]
    header = [f"cache at {short(context)}"]
    for row in rows:
        header += [f"{row['dtype']}, bytes a token", "by the formula", "MB in all"]
    lines = []
    for name in names:
        line = [name]
        for row in rows:
            held, said = row["cache_bytes"][name], row["formula_bytes"][name]
            line += [f"{held / context:,.5g}", f"{said / context:,.5g}", f"{held / 1e6:,.3g}"]
        lines.append([*line, f"{rows[0]['cache_bytes'][BASE] / rows[0]['cache_bytes'][name]:.2f}×"])
    return markdown_table([*header, "smaller"], lines, "l" + "r" * (len(header)))


def dtypes_of(report: dict[str, Any]) -> list[str]:
    """The number formats measured, in order."""
    return list(dict.fromkeys(row["dtype"] for row in report["results"]))


def tables(report: dict[str, Any]) -> str:
    """The tables of a README, from the contents of a benchmark.json."""
    machine, shape, versions = report["machine"], report["shape"], report["versions"]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    where = machine.get("gpu") or f"{machine['processor']}, {threads}"
    parts = [
        f"One layer, d_model {shape['d_model']}, {shape['n_head']} heads, batch 1, on {where}, "
        f"torch {versions['torch']}. Latent: d_latent {shape['d_latent']}, {shape['d_rope']} rotary numbers. "
        "Milliseconds, the median of several turns; in brackets how many times as fast as multi-head attention in the "
        "same turns."
    ]
    results, last_decode = report["results"], []
    for dtype in dtypes_of(report):
        decode = [row for row in results if is_row(row, "decode", dtype)]
        last_decode.append(decode[-1])
        parts.append(speed_table(decode, f"decode, {dtype}, ms", {}))
        alone = [row for row in results if is_row(row, "alone", dtype)]
        parts.append(speed_table(alone, f"attention alone, {dtype}, ms", {}))
    parts.append(cache_table(last_decode))
    for dtype in dtypes_of(report):
        if prefill := [row for row in results if is_row(row, "prefill", dtype)]:
            more = growth(prefill)
            for measured in report["memory"]:
                if measured["dtype"] == dtype and measured["bytes"]:
                    heading = f"peak MB at {short(measured['context'])}"
                    more[heading] = {name: f"{size / 1e6:,.0f}" for name, size in measured["bytes"].items()}
            parts.append(speed_table(prefill, f"prefill, {dtype}, ms", more))
    return "\n\n".join(parts)


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


def draw(path: Path, report: dict[str, Any]) -> None:
    """Decode time a number format, and cache size, over the context: one PNG, readable in black and white."""
    from matplotlib.figure import Figure  # here, because it takes a second that most commands need not wait

    dtypes = dtypes_of(report)
    figure = Figure(figsize=(4.6 * (len(dtypes) + 1), 5.2), layout="constrained")
    all_axes = figure.subplots(1, len(dtypes) + 1, squeeze=False)[0]
    for i, (dtype, axes) in enumerate(itertools.zip_longest(dtypes, all_axes)):
        rows = [row for row in report["results"] if is_row(row, "decode", dtype or dtypes[0])]
        for name, style in zip(rows[0]["seconds"], _LINES, strict=True):
            if dtype is None:
                y = [row["cache_bytes"][name] / 1e6 for row in rows]
            else:
                y = [median(row["seconds"])[name] * 1e3 for row in rows]
            x = [row["context"] for row in rows]
            axes.plot(x, y, label=name if i == 0 else None, **{"linewidth": 1.3, "markersize": 5.5} | style)
        what = f"one decoding step, {dtype}" if dtype else f"the cache, {dtypes[0]}"
        axes.set(xscale="log", yscale="log", title=what, xlabel="context (tokens)")
        axes.set_ylabel("time of a step (ms)" if dtype else "size of one layer's cache (MB)")
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
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_bytes(path, picture.getvalue())


def require_markers(readme: Path) -> None:
    """Says before anything is measured that the tables will have no place.

    Raises:
        UserError: there are no markers, or more than one pair.
    """
    try:
        with_block(readme.read_text(encoding="utf-8"), "attention", "")
    except ValueError:
        raise UserError(
            f"{readme} needs the lines <!-- attention:begin --> and <!-- attention:end -->, once each, where the "
            "tables belong: add them, or choose another folder with --out"
        ) from None


def check(options: Benchmark) -> None:
    """Raises UserError where a flag's value makes no sense."""
    if not options.contexts or min(options.contexts) < 2:
        raise UserError(f"--contexts {options.contexts}: one or more are needed, each of at least 2 tokens")
    if not options.dtypes:
        raise UserError("--dtypes: give float32, bfloat16 or both")
    for name, value in (("repeats", options.repeats), ("threads", options.threads), ("window", options.window)):
        if value < 1:
            raise UserError(f"--{name} {value} must be at least 1")


def main(options: Benchmark) -> None:
    check(options)
    path, readme = options.out / "benchmark.json", options.readme_path
    if readme is not None:
        require_markers(readme)
    if options.report_only:
        report = read_json(path)
    else:
        require_writable(options.out)
        print(f"Measures {len(options.dtypes)} number formats at {len(options.contexts)} contexts, for {path}")
        report = measure(options)
        write_json(path, report)
        print(f"\nWrote {path}")
    picture = options.out / "benchmark.png"
    draw(picture, report)
    print(f"Wrote {picture}")
    if readme is not None:
        write_block(readme, "attention", tables(report))
        print(f"Wrote the tables in {readme}")
    else:
        print(f"\n{tables(report)}")


if __name__ == "__main__":
    run_command(main, Benchmark)
