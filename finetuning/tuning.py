"""One fine-tuning run: `TrainingLoop` around a task, and the folder that it leaves behind.

Classification, instructions and preferences differ in what a batch holds, what its loss is and how an answer is judged.
That is a `Task`. All else is here, once: which example is in which batch, the folder, resuming, keeping the best.

    RUN/config.json, metrics.jsonl, loss.png     as every run has them
    RUN/samples.txt                              what the task shows of itself at each measurement
    RUN/model/                                   a model folder: the best measured so far, or the last (--keep)
    RUN/checkpoints/                             what --resume auto goes on from
"""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from tqdm import tqdm

from finetuning.lora import LoRA
from gpt_model import GPT
from gpt_model.pretrained import MADE_BY, find_folder
from pretraining.distributed import Ranks, add_up
from pretraining.optimizers import GaLore, OptimizerName, make_optimizers
from pretraining.run_options import (
    RunOptions,
    config_of_run,
    go_on,
    may_go_on,
    refuse_another_run,
    room_for,
    trackers_of,
)
from pretraining.training_loop import Ending, Hooks, LoopOptions, Objective, Step, TrainingLoop
from utils.devices import describe_device
from utils.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, UserError
from utils.files import read_json, require_writable, write_json, write_text
from utils.plots import save_curves
from utils.tracking import MetricsLog, metric_curves, provenance

Arrays = tuple[npt.NDArray[Any], ...]


@dataclass(frozen=True)
class TuningOptions(LoopOptions, RunOptions):
    """The flags of every script that fine-tunes."""

    ABOVE_ZERO: ClassVar[tuple[str, ...]] = tuple(
        name for name in LoopOptions.ABOVE_ZERO if name not in ("steps", "evaluate_every")
    )

    model: str = "runs/demo/model"
    """What to begin from: a model folder, or a name on the hub such as gpt2."""
    run: Path = Path("runs/tuned")
    """The folder for everything that the run writes."""
    epochs: float = 3.0
    """How often each example is learned from."""
    steps: int = 0
    """Steps to take; 0 for as many as --epochs makes."""
    max_minutes: float = 0.0
    """End after this time even if steps remain, at whatever rate the schedule is then; 0 for no limit."""
    evaluate_every: int = 0
    """Targets learned from between one measurement and the next; 0 for an epoch's."""
    keep: Literal["best", "last"] = "best"
    """What model/ holds: the lowest validation loss measured, or the end of the run."""
    optimizer: OptimizerName = "adamw"
    """Of the blocks' matrices: adamw, muon, galore-adamw, galore-adamw8bit (CUDA) or galore-adafactor."""
    learning_rate: float = 5e-4
    """Full learning rate of the blocks' matrices."""
    other_learning_rate: float | None = None
    """Full learning rate of a new head, of embeddings, norms and biases; the same if not given."""
    weight_decay: float = 0.01
    """Weight decay of the blocks' matrices."""
    lora: bool = False
    """Train low-rank adapters only; model/ has them merged, and adapter/ holds them alone."""
    lora_rank: int = 8
    """Rows and columns of the two small matrices."""
    lora_alpha: float = 16.0
    """The adapter's output is multiplied by this over the rank."""
    lora_dropout: float = 0.0
    """Probability of setting a number of the adapter's input to zero."""
    lora_targets: tuple[str, ...] = ("c_attn", "c_proj", "c_fc")
    """Linear layers that get an adapter: the ends of their names, or regular expressions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        if self.other_learning_rate is not None and not 0 < self.other_learning_rate < math.inf:
            raise UserError(f"--other-learning-rate must be above 0, got {self.other_learning_rate}")
        for name in ("steps", "evaluate_every", "weight_decay", "max_minutes"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} must be at least 0, got {getattr(self, name)}")
        for name in ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets"):
            if not self.lora and getattr(self, name) != getattr(TuningOptions, name):
                raise UserError(f"--{name.replace('_', '-')} belongs to --lora: add it, or leave this out")
        if self.parallel != "ddp":
            raise UserError("fine-tuning keeps all of the model on every rank: leave out --parallel")
        try:
            self.adapters()
        except ValueError as error:
            raise UserError(f"--lora: {error}") from None

    def adapters(self) -> LoRA:
        """What the flags say of LoRA."""
        return LoRA(self.lora_rank, self.lora_alpha, self.lora_dropout, self.lora_targets)

    def make_optimizers(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """Of everything in `model` that is to be trained. See `optimizers.make_optimizers`."""
        other = self.learning_rate if self.other_learning_rate is None else self.other_learning_rate
        galore = GaLore()
        return make_optimizers(model, self.optimizer, self.learning_rate, other, self.weight_decay, galore=galore)


class ExampleBatches:
    """Which examples are in batch number `step`: every example once an epoch, decided by (seed, epoch) alone.

    Examples of about equal length come together, so that little is filled up: an epoch is shuffled, cut into pools of
    some batches, each pool sorted by length and cut into batches, and the batches are shuffled. Which batch an example
    is in is left to chance; that long ones meet long ones is not.

    Args:
        lengths: (examples,), in tokens.
        pool: batches that are sorted together; 1 for no sorting.

    Raises:
        ValueError: there are no examples.
    """

    def __init__(self, lengths: npt.ArrayLike, batch_size: int, seed: int = 0, pool: int = 50) -> None:
        self.lengths, self.batch_size, self.seed, self.pool = np.asarray(lengths), batch_size, seed, pool
        if not len(self.lengths):
            raise ValueError("there are no examples to learn from")
        self.steps_per_epoch = -(-len(self.lengths) // batch_size)
        self._epoch: tuple[int, npt.NDArray[np.int64]] | None = None

    def __call__(self, step: int) -> npt.NDArray[np.int64]:
        """int64 (batch_size,): numbers of examples; -1 where an epoch's last batch has none."""
        epoch, i = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._arranged(epoch))
        return self._epoch[1][i]

    def _arranged(self, epoch: int) -> npt.NDArray[np.int64]:
        """(steps_per_epoch, batch_size)."""
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(len(self.lengths))
        size = self.pool * self.batch_size
        pools = [order[i : i + size] for i in range(0, len(order), size)]
        order = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        lacking = self.steps_per_epoch * self.batch_size - len(order)
        batches = np.concatenate([order, np.full(lacking, -1)]).reshape(-1, self.batch_size)
        return random.permutation(batches)


class Epochs(Protocol):
    """`ExampleBatches`, or another way to go through all examples again and again."""

    steps_per_epoch: int


class Task(Protocol):
    """What a kind of fine-tuning brings along."""

    blocks: list[nn.Module]
    data: dict[str, Any]
    """How the data was made, for config.json and the model card; its `fingerprint`, if it has one, tells equal data."""

    @property
    def objective(self) -> Objective:
        """`forward(*arrays of batch)` gives the sum of the losses."""

    @property
    def model(self) -> nn.Module:
        """Whose weights are trained (those that ask for a gradient) and kept."""

    @property
    def examples(self) -> Epochs:
        """Knows how many steps go through all of them."""

    def batch(self, step: int, rank: int, ranks: int) -> Arrays:
        """A rank's slice of batch number `step`; the second array holds the targets. Function of these alone."""

    def evaluate(self, loop: TrainingLoop, last: bool) -> dict[str, float]:
        """`validation_loss` and other figures; called on every rank."""

    def save(self, folder: Path, made_by: dict[str, Any]) -> None:
        """Writes the model folder; called on rank 0."""

    def sample(self) -> str:
        """Some lines for people; called on rank 0."""


@dataclass(frozen=True)
class Plot:
    """A picture that a run draws of its figures beside loss.png."""

    file: str
    y_label: str
    """With its unit."""
    curves: dict[str, str]
    """What a curve is called -> the name of its figure in metrics.jsonl."""


@dataclass
class _Progress:
    best: float = math.inf
    minutes: float = 0.0
    metrics: int = 0
    samples: list[str] = field(default_factory=list)


def is_unfinished(model: str) -> bool:
    """Whether a model folder was saved along the way by a run that goes on, or was interrupted."""
    path = find_folder(model) / MADE_BY
    made_by = read_json(path) if path.is_file() else {}
    if not isinstance(made_by, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object")
    metrics = made_by.get("metrics")
    return isinstance(metrics, dict) and metrics.get("finished") is False


def say_finished(folder: Path) -> None:
    """Notes in a model folder that was saved along the way that its run has come to the end."""
    made_by = read_json(folder / MADE_BY)
    made_by["metrics"]["finished"] = True
    write_json(folder / MADE_BY, made_by)


def refuse_other_data(options: TuningOptions, fingerprint: str | None) -> None:
    """A run goes on with the ids that it began with: else what was held out would be learned from.

    Raises:
        UserError: files, or the base model's tokenizer, have changed since.
    """
    if not may_go_on(options):
        return
    before = (config_of_run(options.run).get("data") or {}).get("fingerprint")
    if before is not None and before != fingerprint:
        raise UserError(
            f"{options.run} was begun with other examples or another tokenizer than its --data and --model "
            f"({options.model}) give now: restore them, or choose another folder with --run"
        )


class Tuning:
    """One run on this rank.

    Args:
        plots: what to draw at each measurement, besides the loss.
        begin: called on rank 0 before the first step, to write what else the folder is to keep.

    Raises:
        UserError, ValueError: flags, data, folder or checkpoint do not fit; one line that says what to do.
    """

    def __init__(
        self,
        options: TuningOptions,
        ranks: Ranks,
        task: Task,
        plots: Sequence[Plot] = (),
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self.ranks, self.task, self.plots, self.begin = ranks, task, plots, begin
        per_epoch = task.examples.steps_per_epoch
        steps = options.steps or max(1, round(options.epochs * per_epoch))
        every = options.evaluate_every or 10**15
        self.given, self.options = options, replace(options, steps=steps, evaluate_every=every)
        refuse_another_run(options)
        refuse_other_data(options, task.data.get("fingerprint"))
        if ranks.is_first:
            require_writable(options.run)
        self.progress = _Progress()
        self.figures: dict[str, float] = {}
        self.metrics: MetricsLog | None = None  # on rank 0, from the first step on
        self.start = time.perf_counter()
        self.loop = TrainingLoop(
            task.objective,
            task.model,
            task.blocks,
            lambda: options.make_optimizers(task.model),
            task.batch,
            self.options,
            ranks,
            Hooks(self.on_step, self.evaluate, state=self.state, restore=self.restore, say=self.say),
            options.run / "checkpoints",
        )
        self.resumed = go_on(options, self.loop)

    def train(self) -> Ending:
        """The run, from where it is to its end."""
        o, loop = self.options, self.loop
        trained = sum(p.numel() for p in self.task.model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.task.model.parameters())
        self.made_by = provenance(
            data=self.task.data, device=describe_device(self.ranks.device, o.precision), options=asdict(self.given)
        )
        unfinished = is_unfinished(o.model)
        with room_for(o, self.ranks, self.resumed):
            if self.ranks.is_first:
                trackers = trackers_of(o, loop.step, self.resumed)
                self.metrics = MetricsLog(o.run / "metrics.jsonl", self.progress.metrics, trackers)
                write_json(o.run / "config.json", self.made_by)
                self.begin()
        per_epoch = self.task.examples.steps_per_epoch
        if unfinished:
            self.say(f"warning: the run that makes {o.model} has not come to its end: what it had saved is the base")
        self.say(f"{trained:,} of {total:,} parameters learn, on {describe_device(self.ranks.device, o.precision)}")
        self.say(f"{o.steps:,} steps of {o.batch_size} rows, {o.steps / per_epoch:.1f} epochs")
        if self.resumed:
            self.say(f"Going on after step {loop.step:,}, from {loop.folder}")
        self.start = time.perf_counter() - 60 * self.progress.minutes
        hidden = None if self.ranks.is_first else True
        self.bar = tqdm(
            desc="fine-tuning", unit="step", disable=hidden, dynamic_ncols=True, total=o.steps, initial=loop.step
        )
        try:
            ending = loop.run()
        finally:
            self.bar.close()
        self._say_what_was(ending)
        return ending

    # --- what the loop calls

    def on_step(self, step: Step) -> None:
        """Notes and shows the step; measures at the end of an epoch, where nothing else was asked for."""
        figures = self.task.objective.take_figures()
        if self.metrics is not None:
            self.metrics.log(
                step=self.loop.step,
                loss=step.loss,
                learning_rate_scale=step.learning_rate_scale,
                gradient_norm=step.gradient_norm,
                targets=self.loop.targets,
                seconds=step.seconds,
                **figures,
            )
            self.bar.n = self.loop.step
            measured = f", validation {self.figures['validation_loss']:.3f}" if self.figures else ""
            self.bar.set_postfix_str(f"loss {step.loss:.3f}{measured}")
        if self._time_is_up():
            self.options = self.loop.options = replace(self.options, steps=self.loop.step)
        epoch_ends = self.loop.step % self.task.examples.steps_per_epoch == 0
        if not self.given.evaluate_every and epoch_ends and self.loop.step < self.options.steps:
            self.evaluate(last=False)

    def _time_is_up(self) -> bool:
        """What rank 0's clock says, on every rank: they must end at the same step."""
        if not self.options.max_minutes:
            return False
        over = (time.perf_counter() - self.start) / 60 >= self.options.max_minutes
        (is_over,) = add_up(self.ranks, self.ranks.is_first and over)
        return bool(is_over)

    def evaluate(self, last: bool) -> float:
        """Measures, and lets rank 0 write the model if it is to be kept, and show it."""
        self.figures = self.task.evaluate(self.loop, last)
        loss = self.figures["validation_loss"]
        better = loss < self.progress.best
        self.progress.best = min(loss, self.progress.best)
        if self.metrics is None:
            return loss
        if not math.isfinite(loss):
            raise UserError(f"the validation loss is {loss} after step {self.loop.step}: lower the --learning-rate")
        self.progress.minutes = (time.perf_counter() - self.start) / 60
        self.metrics.log(step=self.loop.step, minutes=self.progress.minutes, **self.figures)
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in self.figures.items())
        self.say(f"step {self.loop.step:5d}  {shown}")
        self.progress.samples.append(f"--- step {self.loop.step}, validation loss {loss:.4f}\n{self.task.sample()}\n")
        write_text(self.options.run / "samples.txt", "\n".join(self.progress.samples))
        if better or self.options.keep == "last" or not (self.options.run / "model").exists():
            about = {"step": self.loop.step, "minutes": self.progress.minutes, "finished": last}
            self.task.save(self.options.run / "model", self.made_by | {"metrics": self.figures | about})
        elif last:
            say_finished(self.options.run / "model")
        note = ", ".join(shown.split(", ")[:4])  # there is room for a line
        curves = metric_curves(self.metrics.path, training="loss", validation="validation_loss")
        save_curves(self.options.run / "loss.png", curves, self.options.run.name, "step", "loss (nats)", note)
        for plot in self.plots:
            curves = metric_curves(self.metrics.path, **plot.curves)
            save_curves(self.options.run / plot.file, curves, self.options.run.name, "step", plot.y_label)
        return loss

    def state(self) -> dict[str, Any]:
        """What the folder needs to go on."""
        self.progress.minutes = (time.perf_counter() - self.start) / 60
        if self.metrics is not None:
            self.progress.metrics = self.metrics.size
        return asdict(self.progress)

    def restore(self, state: dict[str, Any]) -> None:
        """A run goes on, or goes back: then what was written stays."""
        if self.metrics is None:
            self.progress = _Progress(**state) if state else _Progress()
        else:
            self.task.objective.take_figures()  # those of the step that failed
            self.metrics.log(step=self.loop.step, rewound=self.loop.rewound)

    # --- for people

    def say(self, text: str) -> None:
        """Prints above the bar, once for all ranks."""
        if self.ranks.is_first:
            tqdm.write(text)

    def _say_what_was(self, ending: Ending) -> None:
        if not self.ranks.is_first:
            return
        loop, run = self.loop, self.options.run
        seconds = max(loop.seconds, 1e-9)
        print(f"\n{loop.step:,} steps, {loop.targets:,} targets in {self.progress.minutes:.1f} minutes; ", end="")
        print(f"{loop.targets / seconds:,.0f} targets/s while training")
        if ending == "finished":
            pictures = ", ".join(["loss.png", *(plot.file for plot in self.plots)])
            print(f"Wrote {run}: model, checkpoints, metrics.jsonl, {pictures}, samples.txt")
        else:
            print(f"Stopped at step {loop.step} of {self.options.steps}, and saved. ", end="")
            print("The same command with --resume auto goes on.")


def exit_unless_finished(ending: Ending) -> None:
    """The status that tells a shell or a scheduler how a run ended."""
    if ending != "finished":
        sys.exit({"interrupted": EXIT_INTERRUPTED, "terminated": EXIT_TERMINATED}[ending])


def blocks_of(model: GPT) -> list[nn.Module]:
    """The model's blocks, for a `Task`."""
    return list(model.transformer.blocks)


def quoted(path: Path | str) -> str:
    """A path as it is typed in a shell."""
    return shlex.quote(str(path))
