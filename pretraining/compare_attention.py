"""Which attention learns best? The same books, the same tokens, the same number of parameters.

python pretraining/compare_attention.py --data runs/books/tokens --base runs/books/model

Two questions, with the loop of `pretrain_simple.py` for all of them:

    from nothing      each variant is trained on the same batches. What its attention saves in parameters goes into
                      wider MLPs, so that all models are equally large.
    after conversion  a trained multi-head model (--base) becomes each variant by `convert.py`. Its loss is measured as
                      it is then, and after a short run that heals it.

What is trained from nothing is trained with several seeds: a difference between two kinds that is no larger than that
between two seeds means nothing. Healing is tried at several rates, since what has lost much needs a large one and what
has lost little is harmed by it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gpt_model import GPT, load_model
from gpt_model.convert import rank_for_energy, to_grouped_query, to_latent, to_sliding_window
from gpt_model.evaluate import bytes_of_tokens, evaluate_windows
from pretraining.model_options import make_model
from pretraining.pretrain_simple import PretrainSimple
from pretraining.pretrain_simple import main as pretrain
from utils.benchmarking import describe_machine
from utils.errors import UserError, run_command
from utils.files import read_json, write_json
from utils.readme_tables import markdown_table, write_block
from utils.tracking import REPOSITORY, provenance
from working_with_text_data.token_shards import TokenShards, evaluation_windows

RESULTS = REPOSITORY / "gpt_model" / "results" / "quality.json"
README = REPOSITORY / "gpt_model" / "README.md"


@dataclass(frozen=True)
class CompareAttention:
    """The flags of this script."""

    data: Path = Path("runs/books/tokens")
    """The folder of token shards to train on."""
    base: Path | None = None
    """A trained multi-head model with learned positions and the same tokenizer, to convert; none leaves that out."""
    runs: Path = Path("runs/compare")
    """The folder for the runs. Those that are whole in it, with the same flags, are not done again."""
    out: Path = RESULTS
    """The JSON file to write."""
    readme: Path = README
    """The README with the table, between <!-- quality:begin --> and <!-- quality:end -->."""
    report_only: bool = False
    """Make the table from the JSON file as it is."""
    eval_tokens: int = 131_072
    """Validation tokens to measure on, evenly spread over all of them; the same for every model."""
    steps: int = 500
    """Steps of each run from nothing."""
    healing_steps: int = 150
    """Steps of each healing run."""
    healing_rates: tuple[float, ...] = (0.01, 0.002, 0.0005)
    """Learning rates of Muon to heal with, each in a run of its own; AdamW's is a quarter. A beginning takes 0.04."""
    seeds: int = 2
    """Runs from nothing of each kind, with as many initial weights and orders of the data."""
    window: int = 32
    """Tokens that sliding windows see."""
    n_layer: int = 4
    """Blocks of the models trained from nothing."""
    n_head: int = 4
    """Their attention heads."""
    d_model: int = 192
    """Their width."""
    context_length: int = 128
    """Tokens that they see at once."""
    batch_size: int = 16
    """Windows in each step."""
    energy: float = 0.9
    """Of conversion to latents: the share of the squared singular values to keep."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    seed: int = 0
    """The first seed; the others count up from it."""


def equally_large(options: PretrainSimple, shards: TokenShards, n_parameters: int) -> PretrainSimple:
    """The options with that d_ff which brings the model nearest to `n_parameters`."""
    per_unit = options.n_layer * (2 * options.d_model + 1)  # a column, a row and a bias in each block
    excess = make_model(options, shards).n_parameters - n_parameters
    return replace(options, d_ff=4 * options.d_model - round(excess / per_unit))


def main(options: CompareAttention) -> None:
    if options.report_only:
        if not options.out.is_file():
            raise UserError(f"no figures at {options.out}: run without --report-only first")
        write_block(options.readme, "quality", table(read_json(options.out)))
        print(f"Wrote {options.readme}")
        return
    shards = TokenShards.open(options.data)
    common = PretrainSimple(
        data=options.data,
        overwrite=True,
        n_layer=options.n_layer,
        n_head=options.n_head,
        d_model=options.d_model,
        context_length=options.context_length,
        batch_size=options.batch_size,
        steps=options.steps,
        max_minutes=0,
        evaluations=1,
        eval_tokens=options.eval_tokens,
        all_at_end=False,
        device=options.device,
        seed=options.seed,
    )
    rope = replace(common, positions="rope")
    contestants = {
        "multi-head, learned positions": common,
        "multi-head, rope": rope,
        "grouped-query, 1 KV head": replace(rope, attention="grouped-query", n_kv_head=1),
        "latent": replace(rope, attention="latent"),
        f"sliding window {options.window}": replace(rope, attention="sliding-window", window=options.window),
    }
    target = make_model(common, shards).n_parameters
    results: dict[str, Any] = {"from_nothing": [], "converted": []}
    for name, flags in contestants.items():
        folder = options.runs / name.replace(", ", "-").replace(" ", "-")
        print(f"\n=== {name}")
        runs = []
        for seed in range(options.seed, options.seed + options.seeds):
            run = folder / f"seed-{seed}"
            train(replace(equally_large(flags, shards, target), run=run, seed=seed))
            runs.append({"seed": seed, **figures(run)})
        results["from_nothing"].append({"name": name, "runs": runs})
    if options.base is not None:
        base = load_model(options.base)
        ways: dict[str, Callable[[], GPT]] = {
            "grouped-query, 1 KV head": lambda: to_grouped_query(base, 1),
            "latent": lambda: to_latent(base, rank_for_energy(base, options.energy)),
            f"sliding window {options.window}": lambda: to_sliding_window(base, options.window),
        }
        measure = Measure(shards, common, base.config.context_length)
        results["base"] = {"name": "multi-head", **measure(base)}
        for name, way in ways.items():
            print(f"\n=== converted: {name}")
            variant, folder = way(), options.runs / f"converted-{name.replace(', ', '-').replace(' ', '-')}"
            variant.save_pretrained(folder / "converted", shards.tokenizer)
            runs = []
            for rate in options.healing_rates:
                run = folder / f"healed-{rate:g}"
                healing = replace(
                    common,
                    n_layer=PretrainSimple.n_layer,  # the shape is the converted model's
                    n_head=PretrainSimple.n_head,
                    d_model=PretrainSimple.d_model,
                    from_model=folder / "converted",
                    context_length=base.config.context_length,
                    run=run,
                    steps=options.healing_steps,
                    learning_rate=rate,
                    other_learning_rate=rate / 4,
                )
                train(healing)
                runs.append({"rate": rate, **figures(run)})
            results["converted"].append({"name": name, "before": measure(variant), "runs": runs})
    results |= {
        "options": {k: str(v) for k, v in vars(options).items() if k not in ("out", "readme", "report_only")},
        "machine": describe_machine(),
        "made_by": provenance(),
    }
    write_json(options.out, results)
    write_block(options.readme, "quality", table(results))
    print(f"\nWrote {options.out} and the table in {options.readme}")


def train(options: PretrainSimple) -> None:
    """`pretrain`, if that has not been done with these flags."""
    marker, flags = options.run / "compared.json", {name: str(value) for name, value in vars(options).items()}
    if marker.is_file() and read_json(marker) == flags:
        print(f"{options.run} is whole")
        return
    pretrain(options)
    write_json(marker, flags)


class Measure:
    """Loss and bits per byte of a model on the same windows as the runs measure themselves."""

    def __init__(self, shards: TokenShards, options: PretrainSimple, context_length: int) -> None:
        self.windows = torch.from_numpy(
            evaluation_windows(shards.arrays["validation"], context_length, options.eval_tokens)
        )
        self.token_bytes = bytes_of_tokens(shards.tokenizer)
        self.batch_size = options.batch_size

    def __call__(self, model: GPT) -> dict[str, Any]:
        loss, bits = evaluate_windows(model, self.windows, self.token_bytes, self.batch_size)
        return {"validation_loss": loss, "bits_per_byte": bits}


def figures(run: Path) -> dict[str, Any]:
    """What a finished run says of itself."""
    made = read_json(run / "model" / "scratchbook.json")
    model = load_model(run / "model")
    cache = model.cache_bytes(model.config.context_length)
    return {
        "parameters": model.n_parameters,
        "d_ff": model.config.d_ff or 4 * model.config.d_model,
        "cache_bytes": cache,
        "context_length": model.config.context_length,
        **{key: made["metrics"][key] for key in ("validation_loss", "bits_per_byte", "tokens", "tokens_per_second")},
    }


def table(results: dict[str, Any]) -> str:
    """Both tables as Markdown."""
    header = ["from nothing", "parameters", "validation nats/token", "bits per byte", "cache bytes per token"]
    rows = []
    for result in results["from_nothing"]:
        runs = result["runs"]
        losses = [run["validation_loss"] for run in runs]
        spread = f" ({min(losses):.3f} to {max(losses):.3f})" if len(runs) > 1 else ""
        bits = statistics.mean(run["bits_per_byte"] for run in runs)
        loss = f"{statistics.mean(losses):.3f}{spread}"
        rows.append([result["name"], f"{runs[0]['parameters']:,}", loss, f"{bits:.3f}", cache_per_token(runs[0])])
    text = markdown_table(header, rows, "lrrrr")
    healing = ""
    if results["converted"]:
        rates = [run["rate"] for run in results["converted"][0]["runs"]]
        healed = [f"healed at {rate:g}" for rate in rates]
        header = ["converted from multi-head", "parameters", "as converted", *healed, "cache bytes per token"]
        rows = [["multi-head, as it was", "", f"{results['base']['validation_loss']:.3f}", *[""] * len(rates), ""]]
        for result in results["converted"]:
            runs = result["runs"]
            losses = [f"{run['validation_loss']:.3f}" for run in runs]
            before = f"{result['before']['validation_loss']:.3f}"
            rows.append([result["name"], f"{runs[0]['parameters']:,}", before, *losses, cache_per_token(runs[0])])
        text += "\n\n" + markdown_table(header, rows, "l" + "r" * (len(header) - 1))
        healing = f", each healing run {runs[0]['tokens']:,}"
    first = results["from_nothing"][0]["runs"]
    return (
        f"{text}\n\nEach run from nothing saw {first[0]['tokens']:,} tokens{healing}; from nothing, the mean of "
        f"{len(first)} seeds and their range. Losses in nats per token, cache in bfloat16."
    )


def cache_per_token(run: dict[str, Any]) -> str:
    """Bytes that a token of a text as long as the model's context keeps."""
    return f"{run['cache_bytes'] / run['context_length']:,.0f}"


if __name__ == "__main__":
    run_command(main, CompareAttention)
