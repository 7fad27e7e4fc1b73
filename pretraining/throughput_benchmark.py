"""How many tokens a second does a training step learn from, beside nanoGPT's? GPT-2's smallest shape, by turns.

python pretraining/throughput_benchmark.py                                           # this computer's processor
python pretraining/throughput_benchmark.py --device cuda --batch-size 32             # a GPU: MFU, too

Both train the same shape with the same batch: `baseline.py` as nanoGPT does, and `TrainingLoop` with the preset
`gpt2-124m` (its loss in chunks, AdamW in one kernel, and everything that a real step does: reading ahead, the watch
over the loss, the learning rate). Each chosen combination of number format and compiling is measured in both; beside
bfloat16-weights nanoGPT's products are bfloat16, and its weights float32 as always. They take their steps by turns, and
a ratio is that of their medians in the same run; 1.10 means that ours learns from a tenth more tokens. The first steps,
in which kernels are compiled, are not counted.

On CUDA, MFU is the share of the data sheet's peak that the model's own operations make up (Chowdhery et al. 2022,
appendix B), and `--largest` finds the largest batch whose step fits the memory: with and without activations kept, and
with each optimiser.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from gpt_model import GPT
from pretraining.bare_loop import bare_loop, config_of
from pretraining.baseline import BASELINE_124M, BaselineGPT, baseline_optimizer, baseline_step
from pretraining.optimizers import OptimizerName
from pretraining.pretrain import PRESETS, Pretrain
from pretraining.training_loop import TrainingLoop, flops_per_token
from utils.benchmarking import median
from utils.device_benchmarking import as_many_turns, describe_device
from utils.devices import Precision, peak_flops, pick_device, products_dtype
from utils.errors import UserError, run_command
from utils.files import require_writable, write_json
from utils.readme_tables import markdown_table, read_results, require_markers, write_block
from utils.tracking import REPOSITORY, provenance

RESULTS = REPOSITORY / "pretraining" / "results" / "throughput"
README = REPOSITORY / "pretraining" / "README.md"
VOCABULARY = 50257
Format = Literal["float32", "bfloat16", "bfloat16-weights"]


@dataclass(frozen=True)
class ThroughputBenchmark:
    """The flags of this script."""

    device: str = "cpu"
    """auto, cpu, cuda, cuda:1 or mps."""
    threads: int | None = None
    """Of the processor; torch decides if not given."""
    formats: tuple[Format, ...] = get_args(Format)
    """Of the products; the weights are float32, or in bfloat16-weights bfloat16 copies of float32 masters."""
    eager: bool = True
    """--no-eager leaves out the steps that are not compiled."""
    compiled: bool = True
    """--no-compiled leaves out those that are."""
    n_layer: int = 12
    """Blocks; 12 is GPT-2's."""
    batch_size: int = 1
    """Windows in a step."""
    context_length: int = 1024
    """Tokens in a window."""
    seconds: float = 120
    """For each pair of contestants, compiling left out; at least 2 turns are taken."""
    largest: bool = False
    """Find the largest batches that fit, too. On CUDA only."""
    out: Path = RESULTS
    """The folder for the JSON file, named by the device."""
    readme: Path = README
    """The README with the table, between <!-- throughput:begin --> and <!-- throughput:end -->."""
    report_only: bool = False
    """Make the table from the JSON files as they are."""

    def __post_init__(self) -> None:
        for name in ("n_layer", "batch_size", "context_length", "seconds"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"--threads must be at least 1, got {self.threads}")
        if not self.formats or not (self.eager or self.compiled):
            raise UserError("nothing to measure: name one of --formats, and leave out one of --no-eager, --no-compiled")


def products_of(numbers: Format) -> Precision:
    """What the products of this format are in, whatever the weights are."""
    return "float32" if numbers == "float32" else "bfloat16"


def recipe_of(options: ThroughputBenchmark, numbers: Format, compiled: bool) -> Pretrain:
    """The preset gpt2-124m in the benchmark's shape, without biases as the baseline is."""
    return replace(
        PRESETS["gpt2-124m"],
        n_layer=options.n_layer,
        context_length=options.context_length,
        batch_size=options.batch_size,
        micro_batch_size=None,
        bias=False,
        precision=products_of(numbers),
        weights="bfloat16" if numbers == "bfloat16-weights" else "float32",
        compile=compiled,
    )


def random_batch(options: ThroughputBenchmark) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(inputs, targets), int64 (batch_size, context_length): what the tokens say makes no difference to the time."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (options.batch_size, options.context_length + 1))
    return ids[:, :-1], ids[:, 1:]


def our_loop(options: ThroughputBenchmark, recipe: Pretrain, device: torch.device) -> TrainingLoop:
    """Our contestant: `take_step` is a step."""
    torch.manual_seed(0)
    model = GPT(config_of(recipe, VOCABULARY)).to(device)
    batch = random_batch(options)
    return bare_loop(recipe, model, lambda step, rank, ranks: batch)


def baseline_stepper(
    options: ThroughputBenchmark, precision: Precision, compiled: bool, device: torch.device
) -> Callable[[], float]:
    """nanoGPT: a function that takes a step, and gives the loss before it."""
    torch.manual_seed(0)
    shape = replace(BASELINE_124M, n_layer=options.n_layer, context_length=options.context_length)
    model = BaselineGPT(shape).to(device)
    optimizer = baseline_optimizer(model, 6e-4, fused=device.type == "cuda")
    called: Any = torch.compile(model) if compiled else model
    inputs, targets = (torch.from_numpy(part).to(device) for part in random_batch(options))
    return lambda: baseline_step(called, optimizer, inputs, targets, precision).item()


def must_step(loop: TrainingLoop) -> None:
    """A step, or the reason why not."""
    if problem := loop.take_step():
        raise UserError(f"the step went wrong: {problem}")


def measure_pair(options: ThroughputBenchmark, numbers: Format, compiled: bool, device: torch.device) -> dict[str, Any]:
    """The seconds of each step of both contestants, and what our model's operations make of the device's peak."""
    precision = products_of(numbers)
    print(f"{numbers}, {'compiled' if compiled else 'not compiled'} ...", flush=True)
    with ExitStack() as stack:
        recipe = recipe_of(options, numbers, compiled)
        loop = our_loop(options, recipe, device)
        stack.callback(loop.read.close)
        contestants: dict[str, Callable[[], object]] = {
            "nanoGPT": baseline_stepper(options, precision, compiled, device),
            "ours": partial(must_step, loop),
        }
        seconds = as_many_turns(contestants, options.seconds, 50, device, warm_up=2 if compiled else 1)
        tokens = options.batch_size * options.context_length
        peak, source = peak_flops(device, products_dtype(device, precision))
        medians = median(seconds)
        speed = {name: tokens / s for name, s in medians.items()}
        mfu = {name: s * flops_per_token(our_model(loop)) / peak for name, s in speed.items()}
        row = {"precision": numbers, "compiled": compiled, "seconds": seconds, "tokens_per_second": speed}
        return row | {"mfu": mfu, "peak": source, "ratio": medians["nanoGPT"] / medians["ours"]}


def our_model(loop: TrainingLoop) -> GPT:
    """The model that a loop trains, for type checkers."""
    assert isinstance(loop.model, GPT)
    return loop.model


# --- the largest batch ------------------------------------------------------------------------------------------------


def fits(options: ThroughputBenchmark, recipe: Pretrain, device: torch.device) -> int | None:
    """The bytes that two steps of this recipe held at most; None if the memory was not enough."""
    loop = None
    torch.cuda.reset_peak_memory_stats(device)
    try:
        loop = our_loop(replace(options, batch_size=recipe.batch_size), recipe, device)
        must_step(loop)
        must_step(loop)
        return torch.cuda.max_memory_allocated(device)
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        if loop is not None:
            loop.read.close()
        del loop
        gc.collect()
        torch.cuda.empty_cache()


def largest_that(fits_in: Callable[[int], bool]) -> int:
    """The largest batch size that fits, found by doubling and halving; 0 if not even one window does."""
    low, high = 0, 1
    while fits_in(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 16):  # to about 6 %
        middle = (low + high) // 2
        low, high = (middle, high) if fits_in(middle) else (low, middle)
    return low


def largest_batches(options: ThroughputBenchmark, device: torch.device) -> list[dict[str, Any]]:
    """A row for each optimiser, with activations kept and forgotten."""
    rows = []
    for optimizer in get_args(OptimizerName):
        for forget in (False, True):
            recipe = replace(recipe_of(options, "bfloat16", False), optimizer=optimizer, checkpoint_activations=forget)

            def fits_in(size: int, recipe: Pretrain = recipe) -> bool:
                return fits(options, replace(recipe, batch_size=size), device) is not None

            size = largest_that(fits_in)
            rows.append({"optimizer": optimizer, "checkpoint_activations": forget, "batch_size": size})
            print(f"{optimizer}{', activations forgotten' if forget else ''}: {size} windows", flush=True)
    return rows


# --- the table --------------------------------------------------------------------------------------------------------


def table(results: Sequence[dict[str, Any]]) -> str:
    """A row for each pair of contestants of each device."""
    rows = []
    for result in results:
        machine = result["machine"]
        where = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads"
        for row in result["rows"]:
            speed, mfu = row["tokens_per_second"], row["mfu"]
            shape = result["shape"]
            rows.append(
                [
                    where,
                    f"{shape['batch_size']} × {shape['context_length']:,}",
                    row["precision"] + (", compiled" if row["compiled"] else ""),
                    f"{speed['nanoGPT']:,.0f}",
                    f"{speed['ours']:,.0f}",
                    f"{mfu['ours']:.0%}",
                    f"{row['ratio']:.2f}",
                ]
            )
    header = ["device", "batch", "products", "nanoGPT, tokens/s", "ours, tokens/s", "MFU", "ratio"]
    return markdown_table(header, rows, "lllrrrr")


def main(options: ThroughputBenchmark) -> None:
    require_markers(options.readme, "throughput")
    if not options.report_only:
        device = pick_device(options.device)
        if options.largest and device.type != "cuda":
            raise UserError(f"--largest asks what fits a GPU's memory, and the device is {device.type}: use CUDA")
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        require_writable(options.out)
        rows = []
        for numbers in options.formats:
            for compiled in [False] * options.eager + [True] * options.compiled:
                rows.append(measure_pair(options, numbers, compiled, device))
                print(f"  {rows[-1]['ratio']:.3f} times as many tokens a second", flush=True)
                gc.collect()
        shape = {name: getattr(options, name) for name in ("n_layer", "batch_size", "context_length")}
        results = {"shape": shape, "rows": rows, "machine": describe_device(device, torch.get_num_threads())}
        if options.largest:
            results["largest"] = largest_batches(options, device)
        path = options.out / f"{device.type}.json"
        write_json(path, results | {"made_by": provenance()})
        print(f"Wrote {path}")
    found = table(read_results(options.out))
    print(found)
    write_block(options.readme, "throughput", found)
    print(f"Wrote {options.readme}")


if __name__ == "__main__":
    run_command(main, ThroughputBenchmark)
