"""How many steps does a recipe need to reach the loss at which nanoGPT's ends? Same shape, same batch, same text.

python pretraining/recipe_benchmark.py                              # tiny Shakespeare by characters
python pretraining/recipe_benchmark.py --tokens runs/books/tokens   # three sizes on token shards

nanoGPT's published recipe for a small computer (tiny Shakespeare by characters, 4 layers of 128, 2,000 batches of 12
windows of 64) is run by `baseline.py`, as published and with its learning rate tuned. On token shards there is nothing
published; there the same recipe runs in three sizes, each with a rate tuned for it: of rates a factor of two apart, the
one that ends lowest on the last tenth of the training text, with the rest of it to learn from. The preset `modern` of
`pretrain.py` stays as it is for all sizes and both texts. It gets ever more steps, its schedule made for each number of
them, until its mean loss over the seeds is no higher than the baseline's. What counts is that number of steps over the
baseline's.

Both are measured on the same validation text, in windows side by side, in float32. No times: see
`throughput_benchmark.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pretraining.bare_loop import search_rates, train_on_ids, whole_windows
from pretraining.baseline import BASELINE_SMALL, BaselineConfig, Ids, find_text, read_characters, split, train_baseline
from pretraining.pretrain import PRESETS, Pretrain
from utils.benchmarking import describe_machine
from utils.errors import UserError, run_command
from utils.files import require_writable, write_json
from utils.readme_tables import markdown_table, read_results, require_markers, write_block
from utils.tracking import REPOSITORY, provenance
from working_with_text_data.token_shards import TokenShards

RESULTS = REPOSITORY / "pretraining" / "results" / "recipe"
README = REPOSITORY / "pretraining" / "README.md"
PUBLISHED = {
    "as published": 1e-3,
    "rate tuned": 4e-3,
}  # learning rates; --tuning of baseline.py chose the second
SIZES = {"2 layers of 64": (2, 2, 64), "4 layers of 128": (4, 4, 128), "6 layers of 192": (6, 6, 192)}
LONGEST = 100_000  # ids of a validation text


@dataclass(frozen=True)
class RecipeBenchmark:
    """The flags of this script."""

    text: Path | None = None
    """Tiny Shakespeare; else misc/tinyshakespeare.txt.gz in the folder that SCRATCHBOOK_DATA names."""
    tokens: Path | None = None
    """A folder of token shards that prepare_data.py wrote: three sizes are compared on it, in place of the text."""
    sizes: tuple[str, ...] = tuple(SIZES)
    """Those to compare on token shards."""
    steps: int | None = None
    """Steps of the baseline; 2,000 for the text, and 1,000 for token shards, if not given."""
    shares: tuple[float, ...] = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0)
    """Numbers of our steps to try, rising, as shares of the baseline's."""
    rates: tuple[float, ...] = (1e-3, 2e-3)
    """Learning rates of the baseline to begin the search with, on token shards; at least two."""
    seeds: int = 2
    """Runs of everything, each with its own weights and order of the data."""
    out: Path = RESULTS
    """The folder for the JSON files, one a shape; the table is made of all that are in it."""
    readme: Path = README
    """The README with the table, between <!-- recipe:begin --> and <!-- recipe:end -->."""
    report_only: bool = False
    """Make the table from the JSON files as they are."""

    def __post_init__(self) -> None:
        rising = list(self.shares) == sorted(set(self.shares)) and all(share > 0 for share in self.shares)
        if unknown := sorted(set(self.sizes) - set(SIZES)):
            raise UserError(f"--sizes {unknown[0]!r} is unknown: {', '.join(map(repr, SIZES))} are there")
        if self.seeds < 1 or not self.shares or not rising:
            raise UserError("--seeds must be at least 1, and --shares rising numbers above 0")
        if len(set(self.rates)) < 2 or min(self.rates) <= 0 or (self.steps is not None and self.steps < 1):
            raise UserError("--rates must be two at least and above 0, and --steps at least 1")


@dataclass(frozen=True)
class Task:
    """A text, a shape, and how long the baseline learns."""

    name: str
    config: BaselineConfig
    train: Ids
    validation: Ids
    steps: int


def tasks_of(options: RecipeBenchmark) -> Iterator[Task]:
    """What the flags ask for.

    Raises:
        UserError: there is no such text.
    """
    if options.tokens is None:
        ids, vocab_size = read_characters(find_text(options.text))
        config = replace(BASELINE_SMALL, vocab_size=vocab_size)
        yield Task("tiny Shakespeare by characters", config, *split(ids), options.steps or 2000)
        return
    shards = TokenShards.open(options.tokens)
    train, validation = (np.concatenate(shards.arrays[side]).astype(np.uint16) for side in ("train", "validation"))
    for name in options.sizes:
        n_layer, n_head, d_model = SIZES[name]
        shape = replace(BASELINE_SMALL, n_layer=n_layer, n_head=n_head, d_model=d_model)
        config = replace(shape, vocab_size=shards.tokenizer.n_vocab)
        yield Task(f"tokens, {name}", config, train, validation[:LONGEST], options.steps or 1000)


def baseline_loss_at(task: Task, rate: float, seed: int) -> float:
    """Where the baseline ends."""
    measured = train_baseline(
        task.config,
        task.train,
        task.validation,
        learning_rate=rate,
        seed=seed,
        steps=task.steps,
        warmup_steps=max(1, task.steps // 20),  # 100 of 2,000, as published
        evaluate_every=task.steps,
    )
    return measured[-1].validation_loss


def tuned_rates(task: Task, rates: Sequence[float]) -> dict[str, float]:
    """rate -> the baseline's loss with it, on the last tenth of the training text. See `search_rates`."""
    train, validation = split(task.train)
    tuning = replace(task, train=train, validation=validation[:LONGEST])
    losses = search_rates(lambda rate: baseline_loss_at(tuning, rate, seed=0), rates)
    return {f"{rate:g}": loss for rate, loss in losses.items()}


def recipe_for(config: BaselineConfig, steps: int, seed: int) -> Pretrain:
    """The preset `modern`, in the baseline's shape and with its batch."""
    return replace(
        PRESETS["modern"],
        n_layer=config.n_layer,
        n_head=config.n_head,
        d_model=config.d_model,
        context_length=config.context_length,
        batch_size=12,
        steps=steps,
        precision="float32",
        seed=seed,
    )


def measure(task: Task, options: RecipeBenchmark) -> dict[str, Any]:
    """All runs of a task: name -> the baseline's losses, and number of steps -> ours."""
    seeds = range(options.seeds)
    rates, tuning = PUBLISHED, {}
    if options.tokens is not None:
        tuning = tuned_rates(task, options.rates)
        best = min(tuning, key=lambda rate: tuning[rate])
        rates = {f"rate tuned, {best}": float(best)}
    baseline = {name: [baseline_loss_at(task, rate, seed) for seed in seeds] for name, rate in rates.items()}
    hardest = min(statistics.mean(losses) for losses in baseline.values())
    ours: dict[str, list[float]] = {}
    for share in options.shares:
        steps = max(1, round(share * task.steps))
        recipes = [recipe_for(task.config, steps, seed) for seed in seeds]
        windows = whole_windows(task.validation, task.config.context_length)
        ours[str(steps)] = [
            train_on_ids(recipe, task.config.vocab_size, task.train, windows, name=f"modern, {steps} steps").loss
            for recipe in recipes
        ]
        print(f"{task.name}, modern, {steps} steps: {statistics.mean(ours[str(steps)]):.4f}, wanted {hardest:.4f}")
        if statistics.mean(ours[str(steps)]) <= hardest:
            break
    figures = {"name": task.name, "steps": task.steps, "baseline": baseline, "modern": ours}
    tuned = {"tuning": tuning} if tuning else {}
    return figures | tuned | {"machine": describe_machine(), "made_by": provenance()}


def steps_needed(ours: Mapping[str, Sequence[float]], target: float) -> int | None:
    """The fewest steps whose mean loss is at most `target`; None where none of those tried is."""
    reached = [int(steps) for steps, losses in ours.items() if statistics.mean(losses) <= target]
    return min(reached, default=None)


def table(results: Sequence[dict[str, Any]]) -> str:
    """One row for each loss to reach."""

    def shown(losses: Sequence[float]) -> str:
        return f"{statistics.mean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})"

    rows = []
    for result in results:
        for name, losses in result["baseline"].items():
            needed = steps_needed(result["modern"], statistics.mean(losses))
            ours = "not reached" if needed is None else shown(result["modern"][str(needed)])
            ratio = f"{needed / result['steps']:.3f}" if needed else "-"
            row = [name, f"{result['steps']:,}", shown(losses), f"{needed:,}" if needed else "-", ours, ratio]
            rows.append([result["name"], *row])
    header = ["text and shape", "nanoGPT's recipe", "its steps", "its loss", "modern's steps", "modern's loss", "ratio"]
    return markdown_table(header, rows, "llrrrrr")


def main(options: RecipeBenchmark) -> None:
    require_markers(options.readme, "recipe")
    if not options.report_only:
        require_writable(options.out)
        for task in tasks_of(options):
            path = options.out / f"{task.name.replace(',', '').replace(' ', '-').lower()}.json"
            write_json(path, measure(task, options))
            print(f"Wrote {path}")
    results = table(read_results(options.out))
    print(results)
    write_block(options.readme, "recipe", results)
    print(f"Wrote {options.readme}")


if __name__ == "__main__":
    run_command(main, RecipeBenchmark)
