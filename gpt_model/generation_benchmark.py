"""How fast does a model write, and how fast could it? Decoding beside `transformers`, and beside the memory's speed.

python gpt_model/generation_benchmark.py

A GPT-2 of 124 million random weights continues a short prompt and a long one, greedily. All contestants have the same
weights and run by turns:

    transformers           the same model in `transformers`, float32, with its cache
    as it is               `generate` on the float32 model
    float32, bfloat16, int8    the same with stored weights (`weight_only.py`); "compiled" with torch.compile's step

    tokens/s               of the tokens after the first
    first token            seconds from the call to the first token: the prompt's prefill
    bytes a token          stored weights that a step reads, and the cache in the middle of the text
    share                  bytes a token · tokens/s over the bytes a second that a plain read of memory reaches here
    tokens judged          what a pass of speculative decoding costs (`speculative.py`)

Before anything is timed, each contestant has to write the ids that `transformers` writes in float32: on the same
weights, or on those that the stored ones stand for.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gpt_model.generate import generate, generate_tokens
from gpt_model.gpt import GPT, GPT2_124M, GPT_TOY, GPTConfig
from gpt_model.sampling import Sampling
from gpt_model.weight_only import Storage, WeightOnlyLinear, store_weights, stored_bytes
from utils.benchmarking import median
from utils.context_report import where
from utils.device_benchmarking import as_many_turns, describe_device
from utils.devices import pick_device
from utils.errors import UserError, run_command
from utils.readme_tables import markdown_table, publish
from utils.tracking import REPOSITORY, provenance

CHAPTER = REPOSITORY / "gpt_model"
PEER = "transformers"
GREEDY = Sampling(temperature=0)
STORAGES: tuple[Storage, ...] = ("float32", "bfloat16", "int8")


@dataclass(frozen=True)
class GenerationBenchmark:
    """The flags of this script."""

    prompts: tuple[int, ...] = (32, 900)
    """Tokens in the prompt."""
    new_tokens: int = 60
    """Tokens to write after it."""
    repeats: int = 7
    """Turns of each measurement; the median counts."""
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Texts side by side, for the curve of throughput."""
    passes: tuple[int, ...] = (1, 2, 3, 5, 9)
    """Tokens of one text that are judged in one pass, as speculative decoding does."""
    compiled: bool = True
    """Measure compiled steps too. Takes a minute to start; needs a compiler."""
    threads: int = 1
    """CPU threads."""
    device: str = "auto"
    """auto, cpu or cuda."""
    out: Path = CHAPTER / "results"
    """The folder for generation.json."""
    readme: Path | None = None
    """The file that gets the tables, between its markers; the chapter's own if `out` is too."""
    quick: bool = False
    """A try in seconds with a tiny model. Its figures mean nothing, and go to runs/quick."""
    report_only: bool = False
    """Measure nothing: make the tables again from generation.json."""

    def __post_init__(self) -> None:
        if self.quick:
            for name, value in {
                "prompts": (8, 40),
                "new_tokens": 6,
                "repeats": 2,
                "batches": (1, 2),
                "passes": (1, 2),
            }.items():
                object.__setattr__(self, name, value)
            object.__setattr__(self, "compiled", False)
            if self.out == CHAPTER / "results":
                object.__setattr__(self, "out", REPOSITORY / "runs" / "quick" / "gpt_model")

    @property
    def config(self) -> GPTConfig:
        """The shape that is measured."""
        return GPT_TOY if self.quick else GPT2_124M

    def check(self) -> None:
        """Raises UserError where a flag's value makes no sense."""
        for name in ("new_tokens", "repeats", "threads"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if not self.prompts or not self.batches or min(self.prompts + self.batches) < 1:
            raise UserError("--prompts and --batches: give one or more of each, each at least 1")
        if not self.passes or min(self.passes) < 1:
            raise UserError("--passes: give one or more, each at least 1")
        longest = max(self.prompts) + max(self.new_tokens, *self.passes)
        if longest > self.config.context_length:
            raise UserError(f"{longest} tokens are more than the context of {self.config.context_length}: take fewer")


Write = Callable[[list[int], int], list[int]]
"""Continues a prompt by so many tokens."""


def contestants(model: GPT, options: GenerationBenchmark) -> dict[str, tuple[Write, int]]:
    """name -> what writes, and the bytes of weights that each of its steps reads."""
    peer = as_transformers(model)
    made: dict[str, tuple[Write, int]] = {
        PEER: (partial(write_with_transformers, peer), stored_bytes(model)),
        "as it is": (partial(write, model, False), stored_bytes(model)),
    }
    on_gpu = model.device.type == "cuda"
    for storage in STORAGES:
        stored = store_weights(model, storage) if not on_gpu or storage == "int8" else model.to(getattr(torch, storage))
        made[storage] = (partial(write, stored, False), stored_bytes(stored))
        if options.compiled:
            made[f"{storage}, compiled"] = (partial(write, stored, True), stored_bytes(stored))
    return made


def write(model: GPT, compiled: bool, prompt: list[int], n: int) -> list[int]:
    """The next `n` ids, greedily."""
    return list(generate(model, prompt, n, GREEDY, compiled=compiled))


def write_with_transformers(peer: Any, prompt: list[int], n: int) -> list[int]:
    """The same in `transformers`."""
    ids = torch.tensor([prompt], device=peer.device)
    done = peer.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=n,
        min_new_tokens=n,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    new: list[int] = done[0, len(prompt) :].tolist()
    return new


def as_transformers(model: GPT) -> Any:
    """A GPT-2 of `transformers` with the weights of `model`."""
    import transformers

    from gpt_model.pretrained import to_huggingface

    c = model.config
    config = transformers.GPT2Config(
        vocab_size=c.vocab_size, n_positions=c.context_length, n_embd=c.d_model, n_layer=c.n_layer, n_head=c.n_head
    )
    peer = transformers.GPT2LMHeadModel(config).eval()
    weights = to_huggingface(model)
    peer.load_state_dict({**weights, "lm_head.weight": weights["transformer.wte.weight"]})
    return peer.to(model.device)


def with_rounded_weights(model: GPT, storage: Storage) -> GPT:
    """A float32 model whose matrices are those that `storage` stands for."""
    rounded = copy.deepcopy(model)
    for layer in rounded.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = WeightOnlyLinear(layer.weight.data, None, storage).weight
    if model.config.tie_embeddings:
        rounded.transformer.wte.weight = rounded.lm_head.weight
    return rounded


def agreement(ours: list[int], expected: list[int]) -> int:
    """How many ids are the same before the first that is not."""
    return next((i for i, (a, b) in enumerate(zip(ours, expected, strict=True)) if a != b), len(ours))


def check_ids(made: dict[str, tuple[Write, int]], model: GPT, prompt: list[int], n: int) -> dict[str, int]:
    """name -> ids that agree with float32 on the same rounded weights, of `n`.

    Raises:
        UserError: a contestant that has to write the same ids does not: nothing is timed then.
    """
    agreed = {}
    for name, (contestant, _) in made.items():
        storage = name.split(",")[0]
        reference = with_rounded_weights(model, storage) if storage in ("bfloat16", "int8") else model  # type: ignore[arg-type]
        agreed[name] = agreement(contestant(prompt, n), write_with_transformers(as_transformers(reference), prompt, n))
        if agreed[name] < n and not model.device.type == "cuda":
            raise UserError(f"{name} writes other ids than transformers on the same weights after {agreed[name]}")
    return agreed


def read_bandwidth(device: torch.device) -> float:
    """Bytes a second at which memory is read: the best of several reads of a large buffer, in several streams."""
    buffer = torch.ones(100_000_000 if device.type == "cpu" else 500_000_000, device=device)
    halves = buffer.view(2, -1)

    def seconds(read: Callable[[], Tensor]) -> float:
        best = float("inf")
        for _ in range(7):
            start = time.perf_counter()
            read().item()  # waits for the device
            best = min(best, time.perf_counter() - start)
        return best

    ways = (buffer.sum, lambda: torch.dot(halves[0], halves[1]))
    return max(buffer.nbytes / seconds(way) for way in ways)


def time_writing(contestant: Write, prompt: list[int], n: int) -> tuple[float, float]:
    """Seconds to the first token, and for each one after it."""
    start = time.perf_counter()
    contestant(prompt, 1)
    first = time.perf_counter() - start
    start = time.perf_counter()
    contestant(prompt, n + 1)
    return first, (time.perf_counter() - start - first) / n


def measure_prompt(made: dict[str, tuple[Write, int]], model: GPT, length: int, options: GenerationBenchmark) -> Any:
    """A row of the report: one prompt, all contestants by turns."""
    generator = torch.Generator().manual_seed(length)
    prompt = torch.randint(model.config.vocab_size, (length,), generator=generator).tolist()
    agreed = check_ids(made, model, prompt, options.new_tokens)
    first: dict[str, list[float]] = {name: [] for name in made}
    each: dict[str, list[float]] = {name: [] for name in made}
    for _ in tqdm(range(options.repeats), desc=f"prompt {length}", unit="turn", leave=False):
        for name, (contestant, _) in made.items():
            a, b = time_writing(contestant, prompt, options.new_tokens)
            first[name].append(a)
            each[name].append(b)
    cache = 4 * model.cache_bytes(length + options.new_tokens // 2, 1)
    sizes = {name: weights + cache for name, (_, weights) in made.items()}
    return {"prompt": length, "first": first, "each": each, "agreed": agreed, "bytes": sizes}


def measure_batches(model: GPT, options: GenerationBenchmark) -> list[dict[str, Any]]:
    """Tokens a second of all texts together, for each number of texts."""
    stored = store_weights(model, "bfloat16")
    rows = []
    for batch in tqdm(options.batches, desc="batches", unit="size", leave=False):
        prompts = [[(7 * i + j) % model.config.vocab_size for j in range(min(options.prompts))] for i in range(batch)]
        row: dict[str, Any] = {"batch": batch, "seconds": {}}
        for name, contestant in (("as it is", model), ("bfloat16", stored)):
            runs = []
            for n in [1, options.new_tokens] * min(options.repeats, 3):
                start = time.perf_counter()
                for _ in generate_tokens(contestant, prompts, n, GREEDY):
                    pass
                runs.append(time.perf_counter() - start)
            steps = options.new_tokens - 1
            row["seconds"][name] = [(b - a) / steps for a, b in zip(runs[::2], runs[1::2], strict=True)]
        rows.append(row)
    return rows


@torch.inference_mode()
def measure_passes(model: GPT, options: GenerationBenchmark) -> list[dict[str, Any]]:
    """Seconds of one pass over so many tokens, behind the longest prompt, for each format of the weights."""
    models: dict[str, GPT] = {storage: store_weights(model, storage) for storage in STORAGES}
    start = max(options.prompts)
    caches = {name: stored.make_cache(1, start + max(options.passes)) for name, stored in models.items()}
    rows = []
    for n in options.passes:
        ids = torch.arange(n, device=model.device)[None]

        def judge(name: str, ids: Tensor = ids) -> None:
            for layer in caches[name].layers:
                layer.length = start  # what is in it is zeros, which cost the same as text
            models[name](ids, caches[name])

        runs = {name: partial(judge, name) for name in models}
        rows.append({"tokens": n, "seconds": as_many_turns(runs, 10.0, 5 * options.repeats, model.device)})
    return rows


def measure(options: GenerationBenchmark) -> dict[str, Any]:
    """The contents of generation.json."""
    device = pick_device(options.device)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = GPT(options.config).to(device).eval()
    bandwidth = read_bandwidth(device)
    print(f"memory is read at {bandwidth / 1e9:.1f} GB/s", flush=True)
    made = contestants(model, options)
    rows = []
    for length in options.prompts:
        rows.append(measure_prompt(made, model, length, options))
        speeds = {name: 1 / seconds for name, seconds in median(rows[-1]["each"]).items()}
        print(f"prompt {length}: " + "  ".join(f"{name} {speed:.1f}/s" for name, speed in speeds.items()), flush=True)
    batches, passes = measure_batches(model, options), measure_passes(model, options)
    return {
        **provenance(),
        "machine": describe_device(device, options.threads),
        "parameters": model.n_parameters,
        "bandwidth": bandwidth,
        "new_tokens": options.new_tokens,
        "results": rows,
        "batches": batches,
        "passes": passes,
    }


def tables(report: dict[str, Any]) -> str:
    """The tables of a README, from the contents of a generation.json."""
    bandwidth = report["bandwidth"]
    parts = [
        f"GPT-2 of {report['parameters'] / 1e6:.0f} million random weights, greedy, one text, on {where(report)}. "
        f"Memory is read at {bandwidth / 1e9:.1f} GB/s."
    ]
    for row in report["results"]:
        each, first = median(row["each"]), median(row["first"])
        lines = [
            [
                name,
                f"{1 / each[name]:.1f}",
                f"{each[PEER] / each[name]:.2f}×",
                f"{1000 * first[name]:,.0f}",
                f"{row['bytes'][name] / 1e6:.0f}",
                f"{100 * row['bytes'][name] / each[name] / bandwidth:.0f} %",
            ]
            for name in each
        ]
        header = [
            f"prompt {row['prompt']}",
            "tokens/s",
            f"× {PEER}",
            "first token, ms",
            "MB a token",
            "share of the limit",
        ]
        parts.append(markdown_table(header, lines, "lrrrrr"))
    names = list(report["batches"][0]["seconds"])
    lines = []
    for name in names:
        speeds = [row["batch"] / median(row["seconds"])[name] for row in report["batches"]]
        lines.append([name, *(f"{speed:.0f}" for speed in speeds)])
    header = [
        "tokens/s of all texts",
        *(f"{row['batch']} text{'s' if row['batch'] > 1 else ''}" for row in report["batches"]),
    ]
    parts.append(markdown_table(header, lines, "l" + "r" * len(report["batches"])))
    medians = [median(row["seconds"]) for row in report["passes"]]
    lines = [
        [name, *(f"{1000 * m[name]:.1f} ({m[name] / medians[0][name]:.2f}×)" for m in medians)] for name in medians[0]
    ]
    header = ["tokens judged in one pass: ms", *(str(row["tokens"]) for row in report["passes"])]
    parts.append(markdown_table(header, lines, "l" + "r" * len(medians)))
    return "\n\n".join(parts)


def main(options: GenerationBenchmark) -> None:
    options.check()
    in_chapter = options.out == CHAPTER / "results"
    readme = CHAPTER / "README.md" if options.readme is None and in_chapter else options.readme
    measured = None if options.report_only else partial(measure, options)
    publish(options.out / "generation.json", measured, tables, readme, "generation")


if __name__ == "__main__":
    run_command(main, GenerationBenchmark)
