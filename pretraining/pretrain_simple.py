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
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from gpt_model import GPT, GPTConfig, Sampling
from gpt_model.evaluate import bytes_of_tokens, evaluate_windows, next_token_loss
from gpt_model.generate import generate_text
from pretraining.optimizers import OptimizerName, make_optimizers
from pretraining.schedules import warmup_stable_decay
from utils.devices import Precision, autocast, describe_device, pick_device
from utils.errors import EXIT_INTERRUPTED, UserError, run_command
from utils.files import require_writable, write_json, write_text
from utils.plots import save_curves
from utils.seeding import seed_everything
from utils.tracking import MetricsLog, provenance
from working_with_text_data.token_shards import Batches, TokenShards, evaluation_windows


@dataclass(frozen=True)
class PretrainSimple:
    """The flags of this script. The defaults suit some minutes on a laptop without a GPU."""

    data: Path = Path("runs/demo/tokens")
    """The folder of token shards that prepare_data.py wrote."""
    tokenizer: Path | None = None
    """A tokenizer.json in place of the data folder's own; it must be the one that made the shards."""
    run: Path = Path("runs/demo")
    """The folder for everything that the run writes."""
    n_layer: int = 4
    """Blocks, one above the other."""
    n_head: int = 4
    """Attention heads in each block."""
    d_model: int = 192
    """Width of the residual stream."""
    context_length: int = 256
    """Tokens that the model sees at once."""
    dropout: float = 0.0
    """Probability of setting a number to zero in training."""
    batch_size: int = 16
    """Windows of context_length tokens in each step."""
    steps: int = 1200
    """Steps to take."""
    max_minutes: float = 5.0
    """End after this time even if steps remain, the learning rate coming down in time; 0 for no limit."""
    optimizer: OptimizerName = "muon"
    """muon (for the blocks' matrices, adamw for the rest) or adamw (for everything)."""
    learning_rate: float = 0.02
    """Full learning rate of the blocks' matrices: about 0.02 for muon, 0.003 for adamw."""
    other_learning_rate: float = 0.003
    """Full learning rate of embeddings, norms and biases."""
    weight_decay: float = 0.1
    """Weight decay of the blocks' matrices."""
    evaluations: int = 10
    """How often the validation loss is measured, a sample written and the model saved."""
    eval_tokens: int = 65_536
    """Validation tokens to measure on; the last measurement takes all of them."""
    sample_prompt: str = "The "
    """The samples continue this."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Precision = "auto"
    """auto takes bfloat16 products where the processor is fast at them."""
    seed: int = 0
    """Decides the initial weights, the order of the data, dropout and samples."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluations", "eval_tokens", "learning_rate", "other_learning_rate"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        if self.max_minutes < 0:
            raise UserError(f"--max-minutes must be at least 0 (0 for no limit), got {self.max_minutes}")


class Reporter:
    """Measures the model, and leaves the run folder at every report as if the run ended there."""

    def __init__(self, options: PretrainSimple, model: GPT, shards: TokenShards) -> None:
        self.options, self.model, self.tokenizer = options, model, shards.tokenizer
        self.token_bytes = bytes_of_tokens(shards.tokenizer)
        self.windows = torch.from_numpy(evaluation_windows(shards.arrays["validation"], options.context_length))
        self.start = time.perf_counter()
        self.made_by = provenance(data=shards.manifest["made_by"], seed=options.seed)
        self.metrics = MetricsLog(require_writable(options.run) / "metrics.jsonl")
        self.training_curve: list[tuple[int, float]] = []
        self.validation_curve: list[tuple[int, float]] = []
        self.samples: list[str] = []
        config = {"options": asdict(options), "model": asdict(model.config), **self.made_by}
        write_json(options.run / "config.json", config)

    def minutes(self) -> float:
        return (time.perf_counter() - self.start) / 60

    def trained(self, step: int, loss: float, scale: float, tokens_per_second: float) -> None:
        """Notes the training loss at one step."""
        self.training_curve.append((step, loss))
        self.metrics.log(step=step, loss=loss, learning_rate_scale=scale, tokens_per_second=tokens_per_second)

    def report(self, step: int, everything: bool = False) -> float:
        """Validation loss, a sample, the model folder; the loss is returned."""
        stride = 1 if everything else max(1, self.windows.numel() // self.options.eval_tokens)
        loss, bits_per_byte = evaluate_windows(
            self.model, self.windows[::stride], self.token_bytes, self.options.batch_size, self.options.precision
        )
        self.validation_curve.append((step, loss))
        prompt, sampling = self.options.sample_prompt, Sampling(temperature=0.8, top_p=0.95, seed=self.options.seed)
        text = prompt + "".join(generate_text(self.model, self.tokenizer, prompt, 120, sampling))
        self.model.train()
        self.samples.append(f"--- step {step}, validation loss {loss:.4f}\n{text}\n")
        figures: dict[str, Any] = {
            "step": step,
            "validation_loss": loss,
            "bits_per_byte": bits_per_byte,
            "validation_tokens": self.windows[::stride, 1:].numel(),
            "minutes": self.minutes(),
        }
        self.metrics.log(**figures)
        write_text(self.options.run / "samples.txt", "\n".join(self.samples))
        self.save(figures)
        first_line = " ".join(text.split())[:70]
        tqdm.write(f"step {step:5d}  validation {loss:.3f} nats/token  {bits_per_byte:.3f} bits/byte  | {first_line}")
        return loss

    def save(self, figures: dict[str, Any]) -> None:
        """Writes the model folder and the plot."""
        self.model.save_pretrained(self.options.run / "model", self.tokenizer, self.made_by | {"metrics": figures})
        curves = {
            name: ([step for step, _ in curve], [loss for _, loss in curve])
            for name, curve in (("training", self.training_curve), ("validation", self.validation_curve))
            if curve
        }
        bits = f"{figures['bits_per_byte']:.3f} bits per byte on validation text" if "bits_per_byte" in figures else ""
        title = f"{self.model.n_parameters / 1e6:.1f}M parameters, {self.options.optimizer}"
        save_curves(self.options.run / "loss.png", curves, title, "step", "loss (nats per token)", bits)


def main(options: PretrainSimple) -> None:
    seed_everything(options.seed)
    device = pick_device(options.device)
    shards = TokenShards.open(options.data, options.tokenizer)
    batches = Batches(
        shards.arrays["train"], options.context_length, options.batch_size, options.seed, str(options.data)
    )
    config = GPTConfig(
        shards.tokenizer.n_vocab,
        options.context_length,
        options.n_layer,
        options.n_head,
        options.d_model,
        options.dropout,
    )
    model = GPT(config).to(device)
    optimizers = make_optimizers(
        model, options.optimizer, options.learning_rate, options.other_learning_rate, options.weight_decay
    )
    tokens_per_step = options.batch_size * options.context_length
    print(f"{model.n_parameters:,} parameters on {describe_device(device, options.precision)}")
    limit = f", or {options.max_minutes:g} minutes if those are over first" if options.max_minutes else ""
    print(
        f"{options.steps:,} steps of {tokens_per_step:,} tokens{limit}; one epoch is {batches.steps_per_epoch:,} steps"
    )

    reporter = Reporter(options, model, shards)
    bar = tqdm(total=options.steps, desc="pretraining", unit="step", disable=None, dynamic_ncols=True)
    step, progress, next_report, validation_loss, training_seconds = 0, 0.0, 0.0, float("nan"), 0.0
    try:
        while progress < 1:
            if progress >= next_report:
                validation_loss = reporter.report(step)
                next_report += 1 / options.evaluations
            step_start = time.perf_counter()

            # One step of learning: the rate, a batch, the loss, its gradient, a step against it.
            scale = warmup_stable_decay(progress)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = scale * group["peak_lr"]
            inputs, targets = (torch.from_numpy(ids).to(device) for ids in batches.batch(step))  # (batch, tokens)
            with autocast(device, options.precision):
                loss = next_token_loss(model, inputs, targets)
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            step += 1

            loss_now = loss.item()
            if not math.isfinite(loss_now):
                raise UserError(
                    f"the loss is {loss_now} at step {step}: try a lower --learning-rate (the last good model is kept)"
                )
            training_seconds += time.perf_counter() - step_start
            tokens_per_second = step * tokens_per_step / training_seconds
            reporter.trained(step, loss_now, scale, tokens_per_second)
            progress = step / options.steps
            if options.max_minutes:
                progress = max(progress, reporter.minutes() / options.max_minutes)
            left = reporter.minutes() * (1 - min(progress, 1)) / progress
            bar.update()
            speed = f"{tokens_per_second:,.0f} tokens/s, {left:.1f} min left"
            bar.set_postfix_str(f"loss {loss_now:.3f}, validation {validation_loss:.3f}, {speed}")
    except KeyboardInterrupt:
        bar.close()
        reporter.save({"step": step, "minutes": reporter.minutes(), "interrupted": True})
        print(f"\nStopped at step {step}. The model as it is now: {options.run / 'model'}")
        sys.exit(EXIT_INTERRUPTED)
    bar.close()
    reporter.report(step, everything=True)
    print(f"\n{step:,} steps, {step * tokens_per_step:,} tokens in {reporter.minutes():.1f} minutes; ", end="")
    print(f"{tokens_per_second:,.0f} tokens/s while training")
    print(f"Wrote {options.run}: model, metrics.jsonl, loss.png, samples.txt")
    print(f'Next: python gpt_model/generate.py --model {options.run / "model"} --prompt "The "')


if __name__ == "__main__":
    run_command(main, PretrainSimple)
