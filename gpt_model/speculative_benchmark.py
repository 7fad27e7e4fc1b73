"""What does guessing ahead bring on real text? Trained models, with a draft and with prompt lookup, by turns.

python gpt_model/speculative_benchmark.py --model runs/books/model --draft runs/books-draft/model

Prompts are windows of the validation text, which neither model has seen. Each is continued by `generate` and by
`generate_speculatively`, and what counts is tokens a second, and tokens for each pass of the model: the first is what
these two models gain on this machine, the second what any machine would have to make use of.

Before anything is timed, the greedy text has to be that of `generate`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gpt_model.generate import generate
from gpt_model.gpt import GPT
from gpt_model.pretrained import load_model, load_tokenizer
from gpt_model.sampling import Sampling
from gpt_model.speculative import Guess, Speculation, generate_speculatively, look_up
from utils.benchmarking import median
from utils.context_report import where
from utils.device_benchmarking import describe_device
from utils.devices import pick_device
from utils.errors import UserError, run_command
from utils.readme_tables import markdown_table, publish
from utils.tracking import REPOSITORY, provenance
from working_with_text_data.token_shards import TokenShards, evaluation_windows

CHAPTER = REPOSITORY / "gpt_model"
PLAIN = "generate"


@dataclass(frozen=True)
class SpeculativeBenchmark:
    """The flags of this script."""

    model: Path = Path("runs/books/model")
    """A model folder."""
    draft: Path = Path("runs/books-draft/model")
    """The folder of a smaller model with the same tokenizer."""
    data: Path = Path("runs/books/tokens")
    """The folder of token shards whose validation text is continued."""
    n_guess: tuple[int, ...] = (2, 4, 8)
    """Tokens to guess for each pass."""
    temperatures: tuple[float, ...] = (0.0, 1.0)
    """0 is greedy."""
    prompts: int = 8
    """Windows of the text to continue."""
    prompt_tokens: int = 64
    """Tokens in each."""
    new_tokens: int = 60
    """Tokens to write after each."""
    repeats: int = 5
    """Turns; the median counts."""
    threads: int = 1
    """CPU threads."""
    device: str = "auto"
    """auto, cpu or cuda."""
    out: Path = CHAPTER / "results"
    """The folder for speculative.json."""
    readme: Path | None = None
    """The file that gets the table, between its markers; the chapter's own if `out` is too."""
    report_only: bool = False
    """Measure nothing: make the table again from speculative.json."""


Write = Callable[[list[int], int, Speculation], Iterator[int]]
"""Continues a prompt; its place gives the seed."""


def writers(model: GPT, draft: GPT, temperature: float, options: SpeculativeBenchmark) -> dict[str, Write]:
    """name -> what writes; the first one guesses nothing."""

    def plainly(prompt: list[int], seed: int, _: Speculation) -> Iterator[int]:
        return generate(model, prompt, options.new_tokens, Sampling(temperature, seed=seed))

    def guessing(guesser: GPT | Guess, n: int) -> Write:
        def write(prompt: list[int], seed: int, done: Speculation) -> Iterator[int]:
            sampling = Sampling(temperature, seed=seed)
            return generate_speculatively(model, prompt, options.new_tokens, sampling, (), guesser, n, done)

        return write

    guessers: dict[str, GPT | Guess] = {"draft": draft, "prompt lookup": look_up}
    named = {f"{name}, {n} guesses": guessing(g, n) for name, g in guessers.items() for n in options.n_guess}
    return {PLAIN: plainly, **named}


def measure_temperature(
    model: GPT, draft: GPT, prompts: list[list[int]], temperature: float, options: SpeculativeBenchmark
) -> dict[str, Any]:
    """A row of the report."""
    made = writers(model, draft, temperature, options)
    if temperature == 0:
        require_same_text(made, prompts)
    done = {name: Speculation() for name in made}
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in tqdm(range(options.repeats), desc=f"temperature {temperature:g}", unit="turn", leave=False):
        for name, write in made.items():
            done[name] = Speculation()
            start = time.perf_counter()
            for seed, prompt in enumerate(prompts):
                for _ in write(prompt, seed, done[name]):
                    pass
            seconds[name].append((time.perf_counter() - start) / len(prompts) / options.new_tokens)
    facts = {name: {"tokens_per_pass": d.tokens_per_pass, "acceptance": d.acceptance_rate} for name, d in done.items()}
    return {"temperature": temperature, "seconds": seconds, "speculation": facts}


def require_same_text(made: dict[str, Write], prompts: list[list[int]]) -> None:
    """Raises UserError where a greedy text is another than that of `generate`: nothing is timed then."""
    for seed, prompt in enumerate(prompts):
        expected = list(made[PLAIN](prompt, seed, Speculation()))
        for name, write in made.items():
            if list(write(prompt, seed, Speculation())) != expected:
                raise UserError(f"{name} writes another greedy text than generate: nothing was measured")


def measure(options: SpeculativeBenchmark) -> dict[str, Any]:
    """The contents of speculative.json."""
    torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    model, draft = load_model(options.model, device), load_model(options.draft, device)
    shards = TokenShards.open(options.data)
    if load_tokenizer(options.model).fingerprint != shards.tokenizer.fingerprint:
        raise UserError(f"{options.data} was made with another tokenizer than {options.model}: their ids differ")
    length = options.prompt_tokens
    prompts = evaluation_windows(shards.arrays["validation"], length, options.prompts * length)[:, :length].tolist()
    rows = []
    for temperature in options.temperatures:
        rows.append(measure_temperature(model, draft, prompts, temperature, options))
        print(line_of(rows[-1]), flush=True)
    sizes = {"model": model.n_parameters, "draft": draft.n_parameters}
    shape = {"prompts": options.prompts, "prompt_tokens": options.prompt_tokens, "new_tokens": options.new_tokens}
    return {**provenance(), "machine": describe_device(device, options.threads), **sizes, **shape, "results": rows}


def line_of(row: dict[str, Any]) -> str:
    """For people, while it goes on."""
    speeds = "  ".join(f"{name} {1 / seconds:.0f}/s" for name, seconds in median(row["seconds"]).items())
    return f"temperature {row['temperature']:g}: {speeds}"


def table(report: dict[str, Any]) -> str:
    """The table of a README, from the contents of a speculative.json."""
    rows = report["results"]
    lines = []
    for name in rows[0]["seconds"]:
        line = [name]
        for row in rows:
            seconds, facts = median(row["seconds"]), row["speculation"][name]
            line += [f"{1 / seconds[name]:.0f}", f"{seconds[PLAIN] / seconds[name]:.2f}×"]
            guessed = [f"{100 * facts['acceptance']:.0f} %", f"{facts['tokens_per_pass']:.2f}"]
            line += ["", ""] if name == PLAIN else guessed
        lines.append(line)
    header = [""]
    for row in rows:
        how = "greedy" if row["temperature"] == 0 else f"temperature {row['temperature']:g}"
        header += [f"{how}: tokens/s", "ratio", "accepted", "tokens a pass"]
    text = (
        f"A model of {report['model']:,} parameters and a draft of {report['draft']:,}, trained on the same books; "
        f"{report['prompts']} prompts of {report['prompt_tokens']} tokens, {report['new_tokens']} written after each, "
        f"on {where(report)}."
    )
    return text + "\n\n" + markdown_table(header, lines, "l" + "rrrr" * len(rows))


def main(options: SpeculativeBenchmark) -> None:
    for name in ("prompts", "prompt_tokens", "new_tokens", "repeats", "threads"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    readme = CHAPTER / "README.md" if options.readme is None and options.out == CHAPTER / "results" else options.readme
    measured = None if options.report_only else partial(measure, options)
    publish(options.out / "speculative.json", measured, table, readme, "speculative")


if __name__ == "__main__":
    run_command(main, SpeculativeBenchmark)
