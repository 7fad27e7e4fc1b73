"""What a training run leaves behind, kept in such a state all along as if the run ended now.

config.json      the options, and how to make it again
metrics.jsonl    a line for every step and every measurement
loss.png         both losses
samples.txt      what the model wrote at each measurement
model/           a model folder, replaced as a whole at each measurement
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gpt_model import GPT, Sampling
from gpt_model.evaluate import bytes_of_tokens, evaluate_windows
from gpt_model.generate import generate_text
from utils.devices import Precision, describe_device
from utils.errors import UserError
from utils.files import require_writable, write_json, write_text
from utils.plots import save_curves
from utils.tracking import MetricsLog, metric_curves, provenance
from working_with_text_data.token_shards import TokenShards, evaluation_windows


class RunFolder:
    """Measures a model as it learns and writes the run's folder.

    Args:
        folder: made if absent; the files of an older run in it are written over.
        model, shards: what is trained, and on what.
        options: kept in config.json.
        tokens_per_step: to count the tokens seen.
        batch_size, precision: for measuring.
        eval_tokens: validation tokens to measure on along the way.
        sample_prompt: the samples continue this.
        seed: of the samples.

    Raises:
        ValueError: there is too little validation text.
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        model: GPT,
        shards: TokenShards,
        options: dict[str, Any],
        *,
        tokens_per_step: int,
        batch_size: int,
        precision: Precision,
        eval_tokens: int,
        sample_prompt: str,
        seed: int,
    ) -> None:
        self.folder, self.model, self.tokenizer = folder, model, shards.tokenizer
        self.tokens_per_step, self.batch_size, self.precision = tokens_per_step, batch_size, precision
        self.eval_tokens, self.sample_prompt = eval_tokens, sample_prompt
        self.sampling = Sampling(temperature=0.8, top_p=0.95, seed=seed)
        self.token_bytes = bytes_of_tokens(shards.tokenizer)
        self.validation = shards.arrays["validation"]
        self.made_by = provenance(
            data=shards.manifest["made_by"], device=describe_device(model.device, precision), options=options
        )
        self.metrics = MetricsLog(require_writable(folder) / "metrics.jsonl")
        write_json(folder / "config.json", self.made_by)
        self.samples: list[str] = []
        self.start, self.training_seconds, self.steps = time.perf_counter(), 0.0, 0

    @property
    def minutes(self) -> float:
        """Since the run began, measuring included."""
        return (time.perf_counter() - self.start) / 60

    @property
    def tokens_per_second(self) -> float:
        """While training, measuring left out."""
        return self.steps * self.tokens_per_step / max(self.training_seconds, 1e-9)

    def note_step(self, loss: float, learning_rate_scale: float, seconds: float) -> None:
        """Notes one more step of training and its loss.

        Raises:
            UserError: the loss is infinite or not a number.
        """
        self._require_finite(loss)
        self.steps += 1
        self.training_seconds += seconds
        self.metrics.log(step=self.steps, loss=loss, learning_rate_scale=learning_rate_scale, seconds=seconds)

    def start_clock(self) -> None:
        """Counts the minutes from now on."""
        self.start = time.perf_counter()

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} after step {self.steps}: try a lower --learning-rate; "
                f"{self.folder / 'model'} is the last model that was measured"
            )

    def measure(self, on_everything: bool = False) -> float:
        """Measures the validation loss, writes a sample, the model and the plot; returns the loss.

        Args:
            on_everything: on all the validation text, not `eval_tokens` of it; this ends the run.

        Raises:
            UserError: the loss is infinite or not a number; the model on disk stays the one before.
        """
        some = None if on_everything else self.eval_tokens
        windows = torch.from_numpy(evaluation_windows(self.validation, self.model.config.context_length, some))
        loss, bits_per_byte = evaluate_windows(self.model, windows, self.token_bytes, self.batch_size, self.precision)
        self._require_finite(loss)
        text = "".join(generate_text(self.model, self.tokenizer, self.sample_prompt, 120, self.sampling))
        self.samples.append(f"--- step {self.steps}, validation loss {loss:.4f}\n{self.sample_prompt}{text}\n")
        write_text(self.folder / "samples.txt", "\n".join(self.samples))
        figures = {"validation_loss": loss, "bits_per_byte": bits_per_byte, "validation_tokens": windows[:, 1:].numel()}
        self.metrics.log(step=self.steps, minutes=self.minutes, **figures)
        self.save(**figures, finished=on_everything)
        shown = " ".join((self.sample_prompt + text).split())[:64]
        tqdm.write(f"step {self.steps:5d}  validation {loss:.3f} nats/token, {bits_per_byte:.3f} bits/byte  | {shown}")
        return loss

    def save(self, **figures: Any) -> None:
        """Writes the model folder, with `figures` among its own, and the plot."""
        figures |= {
            "step": self.steps,
            "tokens": self.steps * self.tokens_per_step,
            "parameters": self.model.n_parameters,
            "tokens_per_second": self.tokens_per_second,
            "minutes": self.minutes,
        }
        self.model.save_pretrained(self.folder / "model", self.tokenizer, self.made_by | {"metrics": figures})
        curves = metric_curves(self.metrics.path, training="loss", validation="validation_loss")
        note = f"{figures['bits_per_byte']:.3f} bits per byte of validation text" if "bits_per_byte" in figures else ""
        title = f"{self.model.n_parameters / 1e6:.1f}M parameters, {figures['tokens'] / 1e6:.1f}M tokens"
        save_curves(self.folder / "loss.png", curves, title, "step", "loss (nats per token)", note)
