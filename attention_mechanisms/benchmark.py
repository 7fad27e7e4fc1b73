"""What does each kind of attention cost, measured? One layer at GPT-2 124M's shape, all kinds by turns in one run.

python attention_mechanisms/benchmark.py

    decode    one new token with the cache full: what each step of writing takes. Nearly all of it is reading, of the
              cache and of the layer's weights
    prefill   a whole text in one pass, without a cache: what reading a prompt, or training, takes. Nearly all of it is
              arithmetic, T² of it where every token sees every other.
    alone     either of them without the projections, which are as large in nearly all kinds: scores, sums and the
              cache (and, in the latent kinds, what is made of latents)
    in a row  decode alone, each kind ten times before the next one has its turn
    cache     bytes that a live cache holds, beside what the formula of `cost` says
    memory    the most bytes that a prefill holds on top of its weights and its text

Ratios are to multi-head attention in the same turns: 2.00 is twice as fast. A turn runs all kinds once, so each finds
the processor's caches full of the others' numbers; so would a layer within a model find them full of other layers'.
Ten times in a row, a small cache stays in the processor's: that is the layer by itself, and what most microbenchmarks
show.

Before anything is timed, `forward` is compared with `reference`, and a step through the cache with the last row of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from attention_mechanisms.attend import fast_attention
from attention_mechanisms.grouped_query import GroupedQueryAttention
from attention_mechanisms.kv_cache import LatentCache
from attention_mechanisms.multi_head import MultiHeadAttention
from attention_mechanisms.multi_head_latent import MultiHeadLatentAttention
from attention_mechanisms.rotary import Rotary
from attention_mechanisms.sliding_window import SlidingWindowAttention
from utils.context_benchmark import ContextBenchmark, NumberFormat, measure_all, run_benchmark
from utils.context_report import Row, cache_table, dtypes_of, growth, is_row, memory_columns, speed_table, where
from utils.device_benchmarking import as_many_turns, in_a_fresh_process, lengthening, peak_bytes
from utils.devices import pick_device
from utils.errors import UserError, run_command
from utils.tracking import REPOSITORY

CHAPTER = REPOSITORY / "attention_mechanisms"
D_MODEL, N_HEAD = 768, 12  # GPT-2 124M
D_LATENT, D_ROPE = 256, 32
NAIVE = "latent, naive"
_IN_A_ROW = 10
DecodeTask = Literal["decode", "alone", "in a row"]
PrefillTask = Literal["prefill", "prefill alone"]


@dataclass(frozen=True)
class Benchmark(ContextBenchmark):
    """The flags of this script."""


# --- what is measured -------------------------------------------------------------------------------------------------


class NaiveLatentAttention(MultiHeadLatentAttention):
    """Latent attention that writes out all keys and values at every step: the same numbers, the hard way."""

    def forward(
        self, x: Tensor, cache: LatentCache | None = None, mask: Tensor | None = None, values: Tensor | None = None
    ) -> Tensor:
        """As in `MultiHeadLatentAttention`, never absorbed."""
        if cache is None:
            return super().forward(x, None, mask, values)
        q, latents = self.queries(x, cache.length), self.latents(x, cache.length)
        k, v = self.expanded(cache.append(latents))  # (batch, n_head, keys, head_dim + d_rope), (…, head_dim)
        return self.merge(fast_attention(q, k, v, causal=True, scale=self.scale))


def kinds(longest: int, window: int) -> dict[str, Callable[[], nn.Module]]:
    """name -> a maker of that attention layer, for texts of up to `longest` tokens."""
    rotary = Rotary(D_ROPE, longest)  # for the latent kinds; the others leave positions to the embedding, as GPT-2 does
    return {
        "multi-head": partial(MultiHeadAttention, D_MODEL, N_HEAD),
        "grouped-query, 4": partial(GroupedQueryAttention, D_MODEL, N_HEAD, 4),
        "grouped-query, 3": partial(GroupedQueryAttention, D_MODEL, N_HEAD, 3),
        "multi-query, 1": partial(GroupedQueryAttention, D_MODEL, N_HEAD, 1),
        "latent, absorbed": partial(MultiHeadLatentAttention, D_MODEL, N_HEAD, D_LATENT, rotary=rotary),
        NAIVE: partial(NaiveLatentAttention, D_MODEL, N_HEAD, D_LATENT, rotary=rotary),
        f"window {window}": partial(SlidingWindowAttention, D_MODEL, N_HEAD, window),
        f"window {window}, 4 sinks": partial(SlidingWindowAttention, D_MODEL, N_HEAD, window, 4),
    }


def prefilled(names: Sequence[str]) -> list[str]:
    """Those that differ in prefill: both latent kinds do the same there."""
    return [name for name in names if name != NAIVE]


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


class Identity(nn.Module):
    """What comes in goes out."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def without_projections(layer: Any, x: Tensor) -> Any:
    """The layer with the queries, keys, values or latents of `x` computed beforehand, and no output projection."""
    bare = copy.copy(layer)
    bare._modules = dict(layer._modules)
    bare.c_proj = Identity()
    if isinstance(layer, MultiHeadLatentAttention):
        q, latents = layer.queries(x), layer.latents(x)
        bare.queries, bare.latents = lambda x, start=0: q, lambda x, start=0: latents
    else:
        projected = layer.project(x)
        bare.project = lambda x, start=0, values=None: projected
    return bare


def measure_decode(
    task: DecodeTask,
    layers: dict[str, Any],
    context: int,
    dtype: NumberFormat,
    options: Benchmark,
) -> Row:
    """One new token behind a full cache; alone without the projections, in a row several times that."""
    device = pick_device(options.device)
    x = random_text(1, dtype, device)
    caches = {name: full_cache(layer, context) for name, layer in layers.items()}
    bare = {name: layer if task == "decode" else without_projections(layer, x) for name, layer in layers.items()}
    times = _IN_A_ROW if task == "in a row" else 1

    def step(name: str) -> None:
        for _ in range(times):
            caches[name].length = context - 1
            bare[name](x, caches[name])

    contestants = {name: partial(step, name) for name in layers if times == 1 or name != NAIVE}
    seconds = as_many_turns(contestants, options.seconds, options.repeats, device)
    number = 4 if dtype == "float32" else 2
    return {
        "task": task,
        "dtype": dtype,
        "context": context,
        "seconds": {name: [run / times for run in runs] for name, runs in seconds.items()},
        "cache_bytes": {name: cache.nbytes for name, cache in caches.items()},
        "formula_bytes": {name: layer.cost(context).cache_bytes(number) for name, layer in layers.items()},
    }


def measure_prefill(
    task: PrefillTask,
    layers: dict[str, Any],
    context: int,
    dtype: NumberFormat,
    options: Benchmark,
) -> Row:
    """A whole text without a cache; alone without the projections."""
    device = pick_device(options.device)
    x = random_text(context, dtype, device)
    bare = {name: layer if task == "prefill" else without_projections(layer, x) for name, layer in layers.items()}
    contestants = {name: partial(layer, x) for name, layer in bare.items()}
    seconds = as_many_turns(contestants, options.seconds, options.repeats, device)
    return {"task": task, "dtype": dtype, "context": context, "seconds": seconds}


def peak_of_prefill(name: str, context: int, dtype: NumberFormat, options: Benchmark) -> int | None:
    """The most bytes that a prefill holds besides weights and text. On a CPU, Linux alone tells: else None."""
    torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    layer = build(kinds(max(options.contexts), options.window)[name], dtype, device)
    x = random_text(context, dtype, device)
    with torch.inference_mode():
        layer(x[:, :64])  # loads what a first run loads
        return peak_bytes(partial(layer, x), device)


def measure_format(dtype: NumberFormat, options: Benchmark) -> Iterator[Row]:
    """All rows of one number format, as they come."""
    device, contexts = pick_device(options.device), options.decode_contexts
    layers = {name: build(make, dtype, device) for name, make in kinds(contexts[-1], options.window).items()}
    for name, layer in layers.items():
        require_correct(name, layer, options.window + 40, dtype, device)
    print(f"{dtype}: all {len(layers)} kinds compute what their formula says", flush=True)
    for context in contexts:
        for step in get_args(DecodeTask):
            yield measure_decode(step, layers, context, dtype, options)
    for whole in get_args(PrefillTask):

        def measure_some(names: list[str], context: int, task: PrefillTask = whole) -> Row:
            return measure_prefill(task, {name: layers[name] for name in names}, context, dtype, options)

        yield from lengthening(measure_some, prefilled(list(layers)), options.prefill_contexts, options.longest)


def measure_memory(dtype: NumberFormat, prefills: list[Row], options: Benchmark) -> Row:
    """The peak of each kind's prefill, at the longest context but one."""
    row = prefills[max(len(prefills) - 2, 0)]
    names = list(row["seconds"])[: 1 if options.quick else None]  # a process each takes seconds
    peaks = {name: in_a_fresh_process(peak_of_prefill, name, row["context"], dtype, options) for name in names}
    known = {name: peak for name, peak in peaks.items() if peak is not None}
    return {"dtype": dtype, "context": row["context"], "bytes": known}


def measure(options: Benchmark) -> dict[str, Any]:
    """The contents of benchmark.json."""
    report = measure_all(options, partial(measure_format, options=options), partial(measure_memory, options=options))
    shape = {"d_model": D_MODEL, "n_head": N_HEAD, "d_latent": D_LATENT, "d_rope": D_ROPE, "window": options.window}
    return report | {"shape": shape}


# --- what a person sees -----------------------------------------------------------------------------------------------


def tables(report: dict[str, Any]) -> str:
    """The tables of a README, from the contents of a benchmark.json."""
    shape = report["shape"]
    parts = [
        f"One layer, d_model {shape['d_model']}, {shape['n_head']} heads, batch 1, on {where(report)}. "
        f"Latent: d_latent {shape['d_latent']}, {shape['d_rope']} rotary numbers. Milliseconds, the median of several "
        "turns; in brackets how many times as fast as multi-head attention in the same turns."
    ]
    results, last_decode = report["results"], []
    for dtype in dtypes_of(report):
        for task, title in (("decode", "decode"), ("alone", "attention alone"), ("in a row", "alone, ten in a row")):
            rows = [row for row in results if is_row(row, task, dtype)]
            parts.append(speed_table(rows, f"{title}, {dtype}, ms", {}))
        last_decode.append([row for row in results if is_row(row, "decode", dtype)][-1])
    parts.append(cache_table(last_decode))
    for dtype in dtypes_of(report):
        for task in get_args(PrefillTask):
            if rows := [row for row in results if is_row(row, task, dtype)]:
                more = growth(rows) | (memory_columns(report, dtype) if task == "prefill" else {})
                parts.append(speed_table(rows, f"{task}, {dtype}, ms", more))
    return "\n\n".join(parts)


def main(options: Benchmark) -> None:
    run_benchmark(options, partial(measure, options), tables, CHAPTER, "attention", "one layer's")


if __name__ == "__main__":
    run_command(main, Benchmark)
