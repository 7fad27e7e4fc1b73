"""How many steps does a recipe need to reach the loss at which nanoGPT's ends? Same shape, same batch, same text.

python pretraining/recipe_benchmark.py

nanoGPT's published recipe for a small computer (tiny Shakespeare by characters, 4 layers of 128, 2,000 batches of 12
windows of 64) is run by `baseline.py`, as published and with the learning rate that a tuning split chose. The preset
`modern` of `pretrain.py` then gets ever more steps, its schedule made for each number of them, until its mean loss over
the seeds is no higher than the baseline's. What counts is that number of steps over the baseline's.

Both are measured on all of the validation text, in windows side by side, in float32. No times: see the throughput.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from gpt_model import GPT, GPTConfig
from pretraining.baseline import BASELINE_SMALL, Ids, find_text, read_characters, split, train_baseline
from pretraining.distributed import Ranks
from pretraining.model_options import SHAPE
from pretraining.pretrain import PRESETS, Pretrain
from pretraining.training_loop import Hooks, NextToken, TrainingLoop
from utils.benchmarking import describe_machine
from utils.errors import UserError, run_command
from utils.files import read_json, require_writable, write_json
from utils.readme_tables import markdown_table, write_block
from utils.seeding import seed_everything
from utils.tracking import REPOSITORY, provenance
from working_with_text_data.token_shards import Batches

RESULTS = REPOSITORY / "pretraining" / "results" / "recipe.json"
README = REPOSITORY / "pretraining" / "README.md"
STEPS = 2000  # of the baseline
TARGETS = {"as published": 1e-3, "rate tuned": 4e-3}  # the baseline's learning rates


@dataclass(frozen=True)
class RecipeBenchmark:
    """The flags of this script."""

    text: Path | None = None
    """Tiny Shakespeare; else misc/tinyshakespeare.txt.gz in the folder that SCRATCHBOOK_DATA names."""
    budgets: tuple[int, ...] = (200, 220, 240, 260, 280, 300, 350, 400, 450, 500, 600, 700, 800)
    """Numbers of steps to try, rising."""
    seeds: int = 2
    """Runs of everything, each with its own weights and order of the data."""
    out: Path = RESULTS
    """The JSON file to write."""
    readme: Path = README
    """The README with the table, between <!-- recipe:begin --> and <!-- recipe:end -->."""
    report_only: bool = False
    """Make the table from the JSON file as it is."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or not self.budgets or list(self.budgets) != sorted(set(self.budgets)) or self.budgets[0] < 1:
            raise UserError("--seeds must be at least 1, and --budgets rising numbers of steps")


def whole_windows(ids: Ids, length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(inputs, targets) of all windows side by side that are full, int64 (windows, length): the baseline's own."""
    count = (len(ids) - 1) // length
    inputs, targets = (part[: count * length].astype(np.int64).reshape(count, length) for part in (ids, ids[1:]))
    return inputs, targets


def train_ours(train: Ids, validation: Ids, vocab_size: int, steps: int, seed: int) -> float:
    """The validation loss of the preset `modern`, in the baseline's shape and with its batch, after `steps` steps."""
    recipe: Pretrain = replace(
        PRESETS["modern"],
        n_layer=BASELINE_SMALL.n_layer,
        n_head=BASELINE_SMALL.n_head,
        d_model=BASELINE_SMALL.d_model,
        context_length=BASELINE_SMALL.context_length,
        batch_size=12,
        steps=steps,
        precision="float32",
        seed=seed,
    )
    shape: dict[str, Any] = {name: getattr(recipe, name) for name in SHAPE}
    seed_everything(seed)
    model = GPT(GPTConfig(vocab_size=vocab_size, context_length=recipe.context_length, **shape))
    loop = TrainingLoop(
        NextToken(model),
        model,
        model.transformer.blocks,
        lambda: recipe.make_optimizers(model),
        Batches([train], recipe.context_length, recipe.batch_size, seed).batch,
        recipe,
        Ranks(0, 1, torch.device("cpu")),
        Hooks(on_step=lambda step: None, evaluate=lambda last: 0.0),
        Path("nowhere"),  # no checkpoint is written
    )
    try:
        for _ in tqdm(range(steps), desc=f"modern, {steps} steps", unit="step", disable=None, leave=False):
            if problem := loop.take_step():
                raise UserError(f"the recipe diverged: {problem}")
        return loop.mean_loss(*whole_windows(validation, recipe.context_length))
    finally:
        loop.read.close()


def measure(options: RecipeBenchmark) -> dict[str, Any]:
    """All runs: name -> the baseline's losses, and number of steps -> ours."""
    ids, vocab_size = read_characters(find_text(options.text))
    train, validation = split(ids)
    config = replace(BASELINE_SMALL, vocab_size=vocab_size)
    seeds = range(options.seeds)
    baseline = {
        name: [
            train_baseline(config, train, validation, learning_rate=rate, seed=seed, steps=STEPS, evaluate_every=STEPS)[
                -1
            ].validation_loss
            for seed in seeds
        ]
        for name, rate in TARGETS.items()
    }
    hardest = min(statistics.mean(losses) for losses in baseline.values())
    ours: dict[str, list[float]] = {}
    for budget in options.budgets:
        ours[str(budget)] = [train_ours(train, validation, vocab_size, budget, seed) for seed in seeds]
        print(f"modern, {budget} steps: {statistics.mean(ours[str(budget)]):.4f}")
        if statistics.mean(ours[str(budget)]) <= hardest:
            break
    return {"baseline": baseline, "modern": ours, "machine": describe_machine(), "made_by": provenance()}


def steps_needed(ours: Mapping[str, Sequence[float]], target: float) -> int | None:
    """The fewest steps whose mean loss is at most `target`; None where none of those tried is."""
    reached = [int(steps) for steps, losses in ours.items() if statistics.mean(losses) <= target]
    return min(reached, default=None)


def table(results: dict[str, Any]) -> str:
    """One row a target."""

    def shown(losses: Sequence[float]) -> str:
        return f"{statistics.mean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})"

    rows = []
    for name, losses in results["baseline"].items():
        needed = steps_needed(results["modern"], statistics.mean(losses))
        ours = "not reached" if needed is None else shown(results["modern"][str(needed)])
        rows.append([name, shown(losses), str(needed or "-"), ours, f"{needed / STEPS:.3f}" if needed else "-"])
    header = ["nanoGPT's recipe", f"its loss after {STEPS:,} steps", "modern's steps", "modern's loss", "ratio"]
    return markdown_table(header, rows, "lrrrr")


def main(options: RecipeBenchmark) -> None:
    if options.report_only:
        if not options.out.is_file():
            raise UserError(f"no figures at {options.out}: run without --report-only first")
    else:
        require_writable(options.out.parent)
        write_json(options.out, measure(options))
        print(f"Wrote {options.out}")
    results = read_json(options.out)
    print(table(results))
    write_block(options.readme, "recipe", table(results))
    print(f"Wrote {options.readme}")


if __name__ == "__main__":
    run_command(main, RecipeBenchmark)
