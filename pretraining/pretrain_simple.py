"""Pretraining in its simplest complete form: read this loop first.

python pretraining/pretrain_simple.py --data runs/demo/tokens --run runs/demo

A language model learns from one question asked again and again: which token comes next? A batch is a set of windows of
text. The model gives a distribution after every token of it; the loss is the mean surprise at what really came,
-ln p(next token). Its gradient says how every weight should move to be less surprised; an optimiser takes a small step.
That is all, some hundred or million times over.

`pretrain.py`, later in this chapter, is this loop with what long and distributed runs need. Nothing here resumes.
"""

from __future__ import annotations

import math
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from gpt_model import GPT
from gpt_model.evaluate import next_token_loss
from gpt_model.pretrained import require_room_for_model
from pretraining.model_options import ModelOptions, make_model, refuse_flags_without_meaning
from pretraining.optimizers import make_optimizers
from pretraining.run_folder import OF_A_RUN, RunFolder, alone_in_run, room_for_a_run
from pretraining.schedules import warmup_stable_decay
from utils.devices import Precision, autocast, describe_device, pick_device
from utils.errors import EXIT_INTERRUPTED, UserError, refuse_broken_text, run_command
from utils.files import require_writable
from utils.seeding import seed_everything
from working_with_text_data.token_shards import Batches, TokenShards


@dataclass(frozen=True)
class PretrainSimple(ModelOptions):
    """The flags of this script. The defaults suit some minutes on a laptop without a GPU."""

    data: Path = Path("runs/demo/tokens")
    """The folder of token shards that prepare_data.py wrote."""
    tokenizer: Path | None = None
    """A tokenizer.json in place of the data folder's own; it must be the one that made the shards."""
    run: Path = Path("runs/demo")
    """The folder for everything that the run writes."""
    overwrite: bool = False
    """Replace an older run in that folder."""
    batch_size: int = 16
    """Windows of context_length tokens in each step."""
    steps: int = 2500
    """Steps to take."""
    max_minutes: float = 5.0
    """End after this time even if steps remain, the learning rate coming down in time; 0 for no limit."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon (for the blocks' matrices, adamw for the rest) or adamw (for everything)."""
    learning_rate: float = 0.04
    """Full learning rate of the blocks' matrices: about 0.04 for muon, 0.003 for adamw."""
    other_learning_rate: float = 0.01
    """Full learning rate of embeddings, norms and biases."""
    weight_decay: float = 0.1
    """Weight decay of the blocks' matrices."""
    evaluations: int = 10
    """How often the validation loss is measured, a sample written and the model saved."""
    eval_tokens: int = 65_536
    """Validation tokens to measure on along the way; the last measurement takes all of them."""
    all_at_end: bool = True
    """--no-all-at-end takes just --eval-tokens for the last measurement too."""
    sample_prompt: str = "The"
    """The samples continue this."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Precision = "auto"
    """auto takes bfloat16 products where the processor is fast at them."""
    seed: int = 0
    """Decides the initial weights, the order of the data, dropout and samples."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluations", "eval_tokens", "learning_rate", "other_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"--weight-decay must be at least 0, got {self.weight_decay}")
        if not 0 <= self.max_minutes < math.inf:
            raise UserError(f"--max-minutes must be at least 0 (0 for no limit), got {self.max_minutes}")
        refuse_broken_text("--sample-prompt", self.sample_prompt)


def main(options: PretrainSimple) -> None:
    seed_everything(options.seed)
    device = pick_device(options.device)
    refuse_flags_without_meaning(options)
    with alone_in_run(require_writable(options.run)):
        if any((options.run / name).exists() for name in OF_A_RUN) and not options.overwrite:
            raise UserError(f"{options.run} holds a run already: choose another folder with --run, or pass --overwrite")
        require_room_for_model(options.run / "model")
        shards = TokenShards.open(options.data, options.tokenizer)
        shards.verify()
        batches = Batches(
            shards.arrays["train"], options.context_length, options.batch_size, options.seed, str(options.data)
        )
        model = make_model(options, shards).to(device)
        optimizers = make_optimizers(
            model, options.optimizer, options.learning_rate, options.other_learning_rate, options.weight_decay
        )
        with room_for_a_run(options.run):
            run = open_folder(options, shards, model)
        train(options, run, batches, model, optimizers)


def open_folder(options: PretrainSimple, shards: TokenShards, model: GPT) -> RunFolder:
    """What measures the model as it learns, and writes the run's folder."""
    return RunFolder(
        options.run,
        model,
        shards,
        asdict(options),
        tokens_per_step=options.batch_size * options.context_length,
        batch_size=options.batch_size,
        precision=options.precision,
        eval_tokens=options.eval_tokens,
        sample_prompt=options.sample_prompt,
        seed=options.seed,
        context_length=options.context_length,
    )


def train(
    options: PretrainSimple, run: RunFolder, batches: Batches, model: GPT, optimizers: list[torch.optim.Optimizer]
) -> None:
    """The run itself, in a folder that no other run writes to meanwhile."""
    device, tokens_per_step = model.device, options.batch_size * options.context_length
    print(f"{model.n_parameters:,} parameters on {describe_device(device, options.precision)}")
    limit = f", or {options.max_minutes:g} minutes if those are over first" if options.max_minutes else ""
    epoch = f"one epoch is {batches.steps_per_epoch:,.0f} steps"
    print(f"{options.steps:,} steps of {tokens_per_step:,} tokens{limit}; {epoch}")

    def progress_at(step: float) -> float:
        """How far the run is, from 0 to 1: by steps or by time, whichever is further."""
        by_time = run.minutes / options.max_minutes if options.max_minutes else 0.0
        return min(max(step / options.steps, by_time), 1.0)

    bar = tqdm(total=options.steps, desc="pretraining", unit="step", disable=None, dynamic_ncols=True)
    try:
        validation_loss, next_measurement = run.measure(), 1 / options.evaluations
        run.start_clock()
        while (progress := progress_at(run.steps)) < 1:
            if progress >= next_measurement:
                validation_loss, next_measurement = run.measure(), progress + 1 / options.evaluations
            step_start = time.perf_counter()

            # The learning rate for the middle of this step.
            scale = warmup_stable_decay(progress_at(run.steps + 0.5))
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = scale * group["peak_lr"]

            # One step of learning: a batch, the loss, its gradient, a step against it.
            inputs, targets = (torch.from_numpy(ids).to(device) for ids in batches.batch(run.steps))  # (batch, tokens)
            with autocast(device, options.precision):
                loss = next_token_loss(model, inputs, targets)
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)  # one odd batch must not throw the weights far away
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

            run.note_step(loss.item(), scale, time.perf_counter() - step_start)
            progress = progress_at(run.steps)
            bar.update()
            bar.set_postfix_str(
                f"loss {loss.item():.3f}, validation {validation_loss:.3f}, {run.tokens_per_second:,.0f} tokens/s, "
                f"{run.minutes * (1 - progress) / progress:.1f} min left"
            )
        run.measure(on_everything=options.all_at_end, finished=True)
    except KeyboardInterrupt:
        run.save(interrupted=True)
        bar.close()
        print(f"\nStopped at step {run.steps}. The model as it is now: {options.run / 'model'}")
        sys.exit(EXIT_INTERRUPTED)
    finally:
        bar.close()
    print(f"\n{run.steps:,} steps, {run.steps * tokens_per_step:,} tokens in {run.minutes:.1f} minutes; ", end="")
    print(f"{run.tokens_per_second:,.0f} tokens/s while training")
    print(f"Wrote {options.run}: model, metrics.jsonl, loss.png, samples.txt")
    print(f"Next: python gpt_model/generate.py --model {shlex.quote(str(options.run / 'model'))} --prompt The")


if __name__ == "__main__":
    run_command(main, PretrainSimple)
