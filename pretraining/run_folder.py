"""What a training run leaves behind, kept in such a state all along as if the run ended now.

config.json      the options, and how to make it again
metrics.jsonl    a line for every step and every measurement
loss.png         both losses
samples.txt      what the model wrote at each measurement
model/           a model folder, replaced as a whole at each measurement
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gpt_model import GPT, Sampling
from gpt_model.evaluate import bytes_of_tokens, evaluate_windows
from gpt_model.generate import generate_text
from utils.devices import TrainingPrecision, describe_device
from utils.errors import UserError
from utils.files import alone_in, require_writable, write_json, write_text
from utils.plots import save_curves
from utils.tracking import WANDB_ID, MetricsLog, Tracker, metric_curves, provenance
from working_with_text_data.token_shards import TokenShards, evaluation_windows

OF_A_RUN = (
    "config.json", "metrics.jsonl", "checkpoints", "model", "samples.txt", "loss.png", "speed.json", "tensorboard",
    WANDB_ID, "reference.safetensors",
)  # fmt: skip
"""What scripts that train write into their folder, and what is never replaced unasked."""
_OLDER, _GONE = ".older", ".older.gone"


@contextlib.contextmanager
def alone_in_run(folder: Path) -> Iterator[None]:
    """Around a run, from its first look into `folder` on: nobody else may write there meanwhile. Makes the folder.

    Raises:
        ValueError: another process writes there.
        OSError: it cannot be made.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with alone_in(folder):
            _bring_back(folder)  # what a kill left aside
            yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()  # if it is still empty


@contextlib.contextmanager
def room_for_a_run(folder: Path) -> Iterator[None]:
    """Around all that can still be refused: an older run in `folder` is gone at the end, or back if the block fails.

    Its model stays, until a new one takes its place as a whole.
    """
    _bring_back(folder)
    older = folder / _OLDER
    older.mkdir(parents=True)
    for path in _replaced(folder):
        path.rename(older / path.name)
    try:
        yield
    except BaseException:
        for path in _replaced(folder):
            _remove(path)
        _bring_back(folder)
        raise
    older.rename(folder / _GONE)  # in one step: a kill leaves all of it or nothing
    shutil.rmtree(folder / _GONE, ignore_errors=True)


def _replaced(folder: Path) -> list[Path]:
    there = [folder / name for name in OF_A_RUN if name != "model" and (folder / name).exists()]
    return [path for path in there if not path.is_symlink()]  # a link to a larger disk, say, stays where it is


def _bring_back(folder: Path) -> None:
    shutil.rmtree(folder / _GONE, ignore_errors=True)
    older = folder / _OLDER
    if older.is_dir():
        for path in older.iterdir():
            _remove(folder / path.name)
            path.rename(folder / path.name)
        older.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class RunFolder:
    """Measures a model as it learns and writes the run's folder.

    Args:
        folder: made if absent; the files of an older run in it are written over.
        model, shards: what is trained, and on what.
        options: kept in config.json.
        tokens_per_step: to count the tokens seen.
        batch_size, precision: for measuring.
        eval_tokens: validation tokens to measure on along the way.
        context_length: of the windows to measure on; all that the model sees at once, if not given.
        sample_prompt: the samples continue this.
        seed: of the samples.
        data: how the data was made and by what it is known, for config.json; the manifest's own account if not given.
        state: what `state()` gave, of a run that goes on: what was written after that is taken back.
        trackers: are told of all figures.

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
        precision: TrainingPrecision,
        eval_tokens: int,
        sample_prompt: str,
        seed: int,
        context_length: int | None = None,
        data: dict[str, Any] | None = None,
        state: dict[str, Any] | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.folder, self.model, self.tokenizer = folder, model, shards.tokenizer
        self.tokens_per_step, self.batch_size, self.precision = tokens_per_step, batch_size, precision
        self.eval_tokens, self.sample_prompt = eval_tokens, sample_prompt
        self.context_length = context_length or model.config.context_length
        self.sampling = Sampling(temperature=0.8, top_p=0.95, seed=seed)
        self.token_bytes = bytes_of_tokens(shards.tokenizer)
        self.validation = shards.arrays["validation"]
        self.made_by = provenance(
            data=data or shards.manifest["made_by"],
            device=describe_device(model.device, precision),
            options=options,
        )
        state = state or {}
        self.metrics = MetricsLog(require_writable(folder) / "metrics.jsonl", state.get("metrics", 0), trackers)
        write_json(folder / "config.json", self.made_by)
        self.samples: list[str] = list(state.get("samples", []))
        self.start = time.perf_counter() - 60 * state.get("minutes", 0.0)
        self.training_seconds, self.steps = state.get("training_seconds", 0.0), state.get("steps", 0)

    @property
    def minutes(self) -> float:
        """Since the run began, measuring included."""
        return (time.perf_counter() - self.start) / 60

    @property
    def tokens_per_second(self) -> float:
        """While training, measuring left out."""
        return self.steps * self.tokens_per_step / max(self.training_seconds, 1e-9)

    def state(self) -> dict[str, Any]:
        """What a later process needs to go on with this folder from here."""
        return {
            "metrics": self.metrics.size,
            "samples": self.samples,
            "minutes": self.minutes,
            "training_seconds": self.training_seconds,
            "steps": self.steps,
        }

    def note_step(self, loss: float, learning_rate_scale: float, seconds: float, **more: float) -> None:
        """Notes one more step of training, its loss, and whatever `more` is known of it.

        Raises:
            UserError: the loss is infinite or not a number.
        """
        self._require_finite(loss)
        self.steps += 1
        self.training_seconds += seconds
        self.metrics.log(step=self.steps, loss=loss, learning_rate_scale=learning_rate_scale, seconds=seconds, **more)

    def start_clock(self) -> None:
        """Counts the minutes from now on."""
        self.start = time.perf_counter()

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} after step {self.steps}: try a lower --learning-rate; "
                f"{self.folder / 'model'} is the last model that was measured"
            )

    def measure(self, on_everything: bool = False, finished: bool = False) -> float:
        """Measures the validation loss, writes a sample, the model and the plot; returns the loss.

        Args:
            on_everything: on all the validation text, not `eval_tokens` of it.
            finished: this ends the run.

        Raises:
            UserError: the loss is infinite or not a number; the model on disk stays the one before.
        """
        some = None if on_everything else self.eval_tokens
        windows = torch.from_numpy(evaluation_windows(self.validation, self.context_length, some))
        loss, bits_per_byte = evaluate_windows(self.model, windows, self.token_bytes, self.batch_size, self.precision)
        self.record(loss, bits_per_byte, windows[:, 1:].numel(), finished=finished)
        return loss

    def record(
        self, loss: float, bits_per_byte: float, tokens: int, finished: bool = False, model: GPT | None = None
    ) -> None:
        """Notes a validation loss, and writes a sample, the model and the plot.

        Args:
            tokens: how many it was measured on.
            finished: this ends the run.
            model: stands in for the one that is trained, where that is cut over several processes.

        Raises:
            UserError: the loss is infinite or not a number; the model on disk stays the one before.
        """
        self._require_finite(loss)
        model = model or self.model
        text = "".join(generate_text(model, self.tokenizer, self.sample_prompt, 120, self.sampling))
        self.samples.append(f"--- step {self.steps}, validation loss {loss:.4f}\n{self.sample_prompt}{text}\n")
        write_text(self.folder / "samples.txt", "\n".join(self.samples))
        figures = {"validation_loss": loss, "bits_per_byte": bits_per_byte, "validation_tokens": tokens}
        self.metrics.log(step=self.steps, minutes=self.minutes, **figures)
        self.save(model, **figures, finished=finished)
        shown = " ".join((self.sample_prompt + text).split())[:64]
        tqdm.write(f"step {self.steps:5d}  validation {loss:.3f} nats/token, {bits_per_byte:.3f} bits/byte  | {shown}")

    def save(self, model: GPT | None = None, **figures: Any) -> None:
        """Writes the model folder, with `figures` among its own, and the plot."""
        model = model or self.model
        figures |= {
            "step": self.steps,
            "tokens": self.steps * self.tokens_per_step,
            "parameters": self.model.n_parameters,
            "tokens_per_second": self.tokens_per_second,
            "minutes": self.minutes,
        }
        model.save_pretrained(self.folder / "model", self.tokenizer, self.made_by | {"metrics": figures})
        curves = metric_curves(self.metrics.path, training="loss", validation="validation_loss")
        note = f"{figures['bits_per_byte']:.3f} bits per byte of validation text" if "bits_per_byte" in figures else ""
        title = f"{self.model.n_parameters / 1e6:.1f}M parameters, {figures['tokens'] / 1e6:.1f}M tokens"
        save_curves(self.folder / "loss.png", curves, title, "step", "loss (nats per token)", note)
