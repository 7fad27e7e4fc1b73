"""What does an optimiser cost, and what does it buy? State bytes, seconds a step, and the loss after equal tokens.

python pretraining/optimizer_benchmark.py

State and speed are measured on GPT-2's smallest shape with random gradients, all optimisers by turns on the same
weights. GaLore's every `gap`-th step decomposes all gradients anew; it is shown apart.

The losses are those of a small model (4 layers of 128) on tiny Shakespeare by characters. Each optimiser has a rate of
its own: of rates a factor of two apart, the one that ends lowest on the last tenth of the training text, with the rest
of it to learn from. It is none at an edge: the search goes on until both neighbours of the best end higher.
With that rate it learns from all of the training text, with several seeds, and is measured on the validation text.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from gpt_model import GPT
from pretraining.bare_loop import Ids, config_of, search_rates, train_on_ids, whole_windows
from pretraining.baseline import BASELINE_SMALL, find_text, read_characters, split
from pretraining.optimizers import GaLore, OptimizerName, make_optimizers, state_bytes
from pretraining.pretrain import PRESETS, Pretrain
from utils.benchmarking import time_by_turns
from utils.device_benchmarking import as_many_turns, describe_device
from utils.devices import pick_device
from utils.errors import UserError, run_command
from utils.files import require_writable, write_json
from utils.readme_tables import markdown_table, read_results, require_markers, write_block
from utils.tracking import REPOSITORY, provenance

RESULTS = REPOSITORY / "pretraining" / "results" / "optimizers"
README = REPOSITORY / "pretraining" / "README.md"
# Learning rates to begin the search with. GaLore's steps are a quarter of Adam's, its default scale.
RATES = {
    "adamw": (2e-3, 4e-3, 8e-3),
    "muon": (1e-2, 2e-2, 4e-2),
    "galore-adamw": (4e-3, 8e-3, 1.6e-2),
    "galore-adamw8bit": (4e-3, 8e-3, 1.6e-2),
    "galore-adafactor": (4e-3, 8e-3, 1.6e-2),
}


@dataclass(frozen=True)
class OptimizerBenchmark:
    """The flags of this script."""

    optimizers: tuple[OptimizerName, ...] = get_args(OptimizerName)
    """Those to measure; galore-adamw8bit is left out where there is no CUDA."""
    text: Path | None = None
    """Tiny Shakespeare; else misc/tinyshakespeare.txt.gz in the folder that SCRATCHBOOK_DATA names."""
    device: str = "cpu"
    """auto, cpu, cuda or cuda:1."""
    threads: int | None = None
    """Of the processor; torch decides if not given."""
    n_layer: int = 12
    """Blocks of the model whose state and speed are measured; 12 is GPT-2's."""
    galore_rank: int = 128
    """There. In the small model it is 32, a quarter of its width."""
    seconds: float = 60
    """For the speed of all of them."""
    steps: int = 500
    """Steps of 12 windows of 64 characters in the small model."""
    seeds: int = 2
    """Runs that the losses are the means of."""
    out: Path = RESULTS
    """The folder for the JSON file, named by the device."""
    readme: Path = README
    """The README with the table, between <!-- optimizers:begin --> and <!-- optimizers:end -->."""
    report_only: bool = False
    """Make the table from the JSON files as they are."""

    def __post_init__(self) -> None:
        for name in ("n_layer", "galore_rank", "seconds", "steps", "seeds"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        if not self.optimizers:
            raise UserError("nothing to measure: name one of --optimizers")


def with_random_gradients(model: nn.Module) -> nn.Module:
    """The model, with a gradient at each of its parameters."""
    random = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=random).to(parameter.device)
    return model


def measure_steps(options: OptimizerBenchmark, names: Sequence[OptimizerName], device: torch.device) -> dict[str, Any]:
    """name -> bytes of state, seconds of each step, and of one in which GaLore decomposes (the first)."""
    torch.manual_seed(0)
    recipe = replace(PRESETS["gpt2-124m"], n_layer=options.n_layer)
    model = with_random_gradients(GPT(config_of(recipe, vocab_size=50257)).to(device))
    galore = GaLore(rank=options.galore_rank, gap=10**9)  # never again after the first step
    made = {
        name: make_optimizers(model, name, matrix_lr=1e-6, other_lr=1e-6, weight_decay=0.1, galore=galore)
        for name in names
    }

    def step(name: OptimizerName) -> None:
        for optimizer in made[name]:
            optimizer.step()

    contestants: dict[str, Callable[[], object]] = {name: partial(step, name) for name in names}
    first = time_by_turns(contestants, 1)
    seconds = as_many_turns(contestants, options.seconds, 20, device)
    return {
        name: {
            "state_bytes": state_bytes(made[name]),
            "seconds": seconds[name],
            "first_step_seconds": first[name][0],
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }
        for name in names
    }


def small_recipe(name: OptimizerName, rate: float, steps: int, seed: int) -> Pretrain:
    """The preset laptop in the small shape, with this optimiser.

    What is no matrix of a block has AdamW in all of them. Its rate is that of AdamW's matrices beside AdamW, and
    `modern`'s beside Muon.
    """
    shape = BASELINE_SMALL
    return replace(
        PRESETS["laptop"],
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        d_model=shape.d_model,
        context_length=shape.context_length,
        batch_size=12,
        optimizer=name,
        learning_rate=rate,
        other_learning_rate=PRESETS["modern"].other_learning_rate if name == "muon" else min(rate, 4e-3),
        galore_rank=32,
        galore_gap=100,
        precision="float32",
        steps=steps,
        seed=seed,
    )


def measure_losses(
    options: OptimizerBenchmark, names: Sequence[OptimizerName], ids: Ids, vocab_size: int, device: str
) -> dict[str, Any]:
    """name -> the losses of the rates tried on the tuning split, the rate chosen, and the losses with it.

    A rate that is too high for the model to learn at all has an infinite loss.
    """
    train, validation = split(ids)
    found: dict[str, Any] = {}

    def loss_of(recipe: Pretrain, train: Ids, validation: Ids) -> float:
        windows = whole_windows(validation, recipe.context_length)
        return train_on_ids(recipe, vocab_size, train, windows, device, f"{recipe.optimizer}").loss

    def tuning_loss(name: OptimizerName, rate: float) -> float:
        try:
            return loss_of(small_recipe(name, rate, options.steps, 0), *split(train))
        except UserError:  # it diverged
            return math.inf

    for name in names:
        tuning = search_rates(partial(tuning_loss, name), RATES[name])
        best = min(tuning, key=lambda rate: tuning[rate])
        recipes = [small_recipe(name, best, options.steps, seed) for seed in range(options.seeds)]
        losses = [loss_of(recipe, train, validation) for recipe in recipes]
        found[name] = {"tuning": {str(rate): loss for rate, loss in tuning.items()}, "rate": best, "losses": losses}
        print(f"{name}: {statistics.mean(losses):.3f} with rate {best}", flush=True)
    return found


def table(results: Sequence[dict[str, Any]]) -> str:
    """A row for each optimiser of each device."""
    rows = []
    for result in results:
        machine = result["machine"]
        where = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads"
        for name, step in result["steps"].items():
            loss = result["losses"][name]
            losses = loss["losses"]
            rate = float(loss["rate"])
            decomposing = f"{step['first_step_seconds']:.1f}" if name.startswith("galore") else ""
            rows.append(
                [
                    name,
                    f"{step['state_bytes'] / 1e6:,.0f}",
                    f"{statistics.median(step['seconds']):.3f}",
                    decomposing,
                    f"{rate:g}",
                    f"{statistics.mean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})",
                    where,
                ]
            )
    header = ["optimiser", "state, MB", "seconds a step", "when GaLore decomposes", "rate", "loss", "device"]
    return markdown_table(header, rows, "lrrrrrl")


def main(options: OptimizerBenchmark) -> None:
    require_markers(options.readme, "optimizers")
    if not options.report_only:
        device = pick_device(options.device)
        names = [name for name in options.optimizers if name != "galore-adamw8bit" or device.type == "cuda"]
        if not names:
            raise UserError("galore-adamw8bit runs on CUDA only: pass --device cuda, or another of --optimizers")
        ids, vocab_size = read_characters(find_text(options.text))
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        require_writable(options.out)
        results = {
            "steps": measure_steps(options, names, device),
            "losses": measure_losses(options, names, ids, vocab_size, options.device),
            "machine": describe_device(device, torch.get_num_threads()),
            "made_by": provenance(),
        }
        write_json(options.out / f"{device.type}.json", results)
        print(f"Wrote {options.out / f'{device.type}.json'}")
    found = table(read_results(options.out))
    print(found)
    write_block(options.readme, "optimizers", found)
    print(f"Wrote {options.readme}")


if __name__ == "__main__":
    run_command(main, OptimizerBenchmark)
