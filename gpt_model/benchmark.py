"""What does each attention cost a whole model? GPT-2 124M's body with each of them, by turns in one run.

python gpt_model/benchmark.py

    prefill   reading a prompt into an empty cache, to the logits of the first new token: how long a user waits
    decode    one more token with the cache full: how fast the text then comes
    cache     bytes that the live caches hold, beside what `model.cache_bytes` says
    memory    the most bytes that a prefill holds on top of the weights: its cache, and what is on the way

`attention_mechanisms/benchmark.py` measures one attention layer by itself. Around it a model has MLPs, and a matrix
that compares with every token of the vocabulary; every step reads these too, whatever attention there is. So a ratio
here is smaller than there, and it is the one that a user feels.

Ratios are to multi-head attention in the same turns: 2.00 is twice as fast. Before anything is timed, a pass in two
chunks through the cache is compared with one pass without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from attention_mechanisms import LayerCaches
from gpt_model.gpt import GPT, GPT2_124M, GPTConfig
from gpt_model.gpt_gqa import GPTWithGQA
from gpt_model.gpt_mla import GPTWithMLA
from gpt_model.gpt_swa import GPTWithSWA
from utils.benchmarking import Seconds
from utils.context_benchmark import ContextBenchmark, NumberFormat, measure_all, run_benchmark
from utils.context_report import Row, base_of, dtypes_of, growth, is_row, memory_columns, short, speed_table, where
from utils.device_benchmarking import as_many_turns, in_a_fresh_process, lengthening, peak_bytes
from utils.devices import pick_device
from utils.errors import UserError, run_command
from utils.readme_tables import markdown_table
from utils.tracking import REPOSITORY

CHAPTER = REPOSITORY / "gpt_model"


@dataclass(frozen=True)
class Benchmark(ContextBenchmark):
    """The flags of this script."""

    max_prefill: int = 4096
    """The longest of these that is also prefilled."""
    repeats: int = 15
    """Turns of each measurement, at most; the median counts."""
    seconds: float = 15.0
    """Time for each measurement: fewer turns are made where they take longer, but never fewer than 2."""
    batch_size: int = 1
    """Texts side by side."""
    n_layer: int = GPT2_124M.n_layer
    """Blocks of the models."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the models; auto: on CUDA only. Each kind and context then takes a minute more to start."""

    quickly: ClassVar[dict[str, Any]] = {**ContextBenchmark.quickly, "n_layer": 1}

    @property
    def compiled(self) -> bool:
        """Whether the models are compiled."""
        return self.compile == "on" or (self.compile == "auto" and pick_device(self.device).type == "cuda")


def kinds(options: Benchmark) -> dict[str, Callable[[], GPT]]:
    """name -> a maker of that model, with random weights."""
    longest, window = max(options.contexts), options.window
    vocab_size = 512 if options.quick else GPT2_124M.vocab_size
    body = replace(GPT2_124M, vocab_size=vocab_size, n_layer=options.n_layer, context_length=longest, positions="rope")

    def maker(model_class: type[GPT], **more: Any) -> Callable[[], GPT]:
        config: GPTConfig = model_class.config_class(**vars(body), **more)
        return partial(model_class, config)

    return {
        "multi-head": maker(GPT),
        "grouped-query, 4": maker(GPTWithGQA, n_kv_head=4),
        "latent": maker(GPTWithMLA, d_latent=256, d_rope=32),
        f"window {window}": maker(GPTWithSWA, window=window),
        f"window {window}, 1 in 4 global": maker(GPTWithSWA, window=window, global_every=4),
    }


def build(make: Callable[[], GPT], dtype: NumberFormat, options: Benchmark) -> GPT:
    """A model with random weights, the same ones at every call."""
    torch.manual_seed(0)
    return make().to(pick_device(options.device), getattr(torch, dtype)).eval()


def random_ids(model: GPT, tokens: int, batch_size: int) -> Tensor:
    """int64 (batch, tokens)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(model.config.vocab_size, (batch_size, tokens), generator=generator).to(model.device)


@torch.inference_mode()
def require_correct(name: str, model: GPT, tokens: int, dtype: NumberFormat) -> None:
    """Stops the benchmark: nothing is timed that computes something else with a cache than without.

    Raises:
        UserError: the last token behind a cache has other logits than in one pass.
    """
    ids = random_ids(model, tokens, 1)
    expected = model(ids)[:, -1].float()  # (1, vocab_size)
    cache = model.make_cache(1, tokens)
    model.next_logits(ids[:, :-1], cache)
    error = float((model.next_logits(ids[:, -1:], cache).float() - expected).abs().max() / expected.abs().max())
    if not error <= (1e-4 if dtype == "float32" else 5e-2):  # written so that a NaN fails
        raise UserError(f"{name} in {dtype} is {error:.1e} away from a pass without a cache: nothing was measured")


def set_length(cache: LayerCaches, length: int) -> None:
    """Makes the cache believe that it holds so many tokens."""
    for layer in cache.layers:
        layer.length = length


def full_cache(model: GPT, context: int, batch_size: int) -> LayerCaches:
    """A cache that lacks one token of `context`; what is in it is random, which costs the same as text."""
    cache = model.make_cache(batch_size, context)
    for layer in cache.layers:
        for buffer in layer.buffers:
            buffer.normal_()
    set_length(cache, context - 1)
    return cache


def measure_decode(models: dict[str, GPT], context: int, dtype: NumberFormat, options: Benchmark) -> Row:
    """One new token behind a full cache."""
    caches = {name: full_cache(model, context, options.batch_size) for name, model in models.items()}
    ask = asker(options)

    def step(name: str, ids: Tensor) -> None:
        set_length(caches[name], context - 1)
        ask(models[name], ids, caches[name])

    contestants = {
        name: partial(step, name, random_ids(model, 1, options.batch_size)) for name, model in models.items()
    }
    seconds = timed(contestants, options)
    number = 4 if dtype == "float32" else 2
    return {
        "task": "decode",
        "dtype": dtype,
        "context": context,
        "seconds": seconds,
        "cache_bytes": {name: cache.nbytes for name, cache in caches.items()},
        "formula_bytes": {n: options.batch_size * model.cache_bytes(context, number) for n, model in models.items()},
    }


def measure_prefill(models: dict[str, GPT], context: int, dtype: NumberFormat, options: Benchmark) -> Row:
    """A whole prompt into an empty cache."""
    caches = {name: model.make_cache(options.batch_size, context) for name, model in models.items()}
    ask = asker(options)

    def read(name: str, ids: Tensor) -> None:
        caches[name].reset()
        ask(models[name], ids, caches[name])

    ids = {name: random_ids(model, context, options.batch_size) for name, model in models.items()}
    contestants = {name: partial(read, name, ids[name]) for name in models}
    seconds = timed(contestants, options)
    return {"task": "prefill", "dtype": dtype, "context": context, "seconds": seconds}


def timed(contestants: Mapping[str, Callable[[], None]], options: Benchmark) -> Seconds:
    """The seconds of each run, once compiled."""
    device = pick_device(options.device)
    return as_many_turns(contestants, options.seconds, options.repeats, device, warm_up=2 if options.compiled else 0)


def asker(options: Benchmark) -> Callable[[GPT, Tensor, LayerCaches], Tensor]:
    """`GPT.next_logits`, compiled where that is asked for."""
    if not options.compiled:
        return GPT.next_logits
    torch._dynamo.reset()  # each context and kind is compiled for itself, not for what came before
    compiled: Callable[[GPT, Tensor, LayerCaches], Tensor] = torch.compile(GPT.next_logits)
    return compiled


def peak_of_prefill(name: str, context: int, dtype: NumberFormat, options: Benchmark) -> int | None:
    """The most bytes that a prefill holds besides the weights. On a CPU, Linux alone tells: else None."""
    torch.set_num_threads(options.threads)
    model = build(kinds(options)[name], dtype, options)
    with torch.inference_mode():
        model.next_logits(random_ids(model, 32, 1), model.make_cache(1, 32))  # loads what a first run loads
        ids = random_ids(model, context, options.batch_size)

        def read() -> None:
            model.next_logits(ids, model.make_cache(options.batch_size, context))

        return peak_bytes(read, model.device)


def measure_format(dtype: NumberFormat, options: Benchmark) -> Iterator[Row]:
    """All rows of one number format, as they come."""
    models = {name: build(make, dtype, options) for name, make in kinds(options).items()}
    for name, model in models.items():
        require_correct(name, model, min(options.window + 40, max(options.contexts)), dtype)
    print(f"{dtype}: all {len(models)} models compute with a cache what they compute without", flush=True)
    for context in options.decode_contexts:
        yield measure_decode(models, context, dtype, options)

    def measure_some(names: list[str], context: int) -> Row:
        return measure_prefill({name: models[name] for name in names}, context, dtype, options)

    yield from lengthening(measure_some, list(models), options.prefill_contexts, options.longest)


def measure_memory(dtype: NumberFormat, prefills: list[Row], options: Benchmark) -> Row:
    """The peak of each model's prefill, at the longest context that is prefilled."""
    at = prefills[-1]["context"]
    names = list(kinds(options))[: 1 if options.quick else None]  # a process each takes seconds
    peaks = {name: in_a_fresh_process(peak_of_prefill, name, at, dtype, options) for name in names}
    return {"dtype": dtype, "context": at, "bytes": {name: peak for name, peak in peaks.items() if peak is not None}}


def measure(options: Benchmark) -> dict[str, Any]:
    """The contents of benchmark.json."""
    report = measure_all(options, partial(measure_format, options=options), partial(measure_memory, options=options))
    with torch.device("meta"):  # shapes without memory
        parameters = {name: make().n_parameters for name, make in kinds(options).items()}
    shape = {"n_layer": options.n_layer, "d_model": GPT2_124M.d_model, "batch_size": options.batch_size}
    return report | {"shape": shape, "compiled": options.compiled, "parameters": parameters}


def size_table(report: dict[str, Any]) -> str:
    """Parameters and caches, and the context at which a text's cache outweighs the model."""
    dtype, batch = dtypes_of(report)[-1], report["shape"]["batch_size"]
    rows = [row for row in report["results"] if is_row(row, "decode", dtype)]
    row, base = rows[-1], base_of(rows)
    context, number = row["context"], 4 if dtype == "float32" else 2
    lines = []
    for name, parameters in report["parameters"].items():
        held, said = row["cache_bytes"][name], row["formula_bytes"][name]
        grown, since = held, context  # by how much the cache grew over how many tokens
        if len(rows) > 1:
            grown, since = held - rows[-2]["cache_bytes"][name], context - rows[-2]["context"]
        outweighs = "never"
        if grown:
            outweighs = f"{context + (parameters * number * batch - held) * since / grown:,.0f} tokens"
        lines.append(
            [
                name,
                f"{parameters:,}",
                f"{held / context / batch:,.0f}",
                f"{said / context / batch:,.0f}",
                f"{held / 1e6:,.4g}",
                f"{row['cache_bytes'][base] / held:.2f}×",
                outweighs,
            ]
        )
    header = [
        f"{dtype}, {short(context)}",
        "parameters",
        "cache, bytes a token",
        "by the formula",
        "MB in all",
        "smaller",
        "as large as the weights at",
    ]
    return markdown_table(header, lines, "lrrrrrr")


def tables(report: dict[str, Any]) -> str:
    """The tables of a README, from the contents of a benchmark.json."""
    shape = report["shape"]
    compiled = ", compiled" if report["compiled"] else ""
    parts = [
        f"Models of {shape['n_layer']} blocks, d_model {shape['d_model']}, batch {shape['batch_size']}, on "
        f"{where(report)}{compiled}. Milliseconds, the median of several turns; in brackets how many times as fast as "
        "multi-head attention in the same turns.",
        size_table(report),
    ]
    for dtype in dtypes_of(report):
        decode = [row for row in report["results"] if is_row(row, "decode", dtype)]
        parts.append(speed_table(decode, f"decode, {dtype}, ms", {}))
    for dtype in dtypes_of(report):
        if prefill := [row for row in report["results"] if is_row(row, "prefill", dtype)]:
            more = growth(prefill) | memory_columns(report, dtype)
            parts.append(speed_table(prefill, f"prefill, {dtype}, ms", more))
    return "\n\n".join(parts)


def main(options: Benchmark) -> None:
    run_benchmark(options, partial(measure, options), tables, CHAPTER, "models", "the model's")


if __name__ == "__main__":
    run_command(main, Benchmark)
