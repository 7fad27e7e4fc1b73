"""The training loop that pretraining and fine-tuning share: `pretrain_simple.py`'s, with what long runs need.

One step, on each of R ranks:

    1.  seed the generators from (seed, step, rank), so that dropout is the same whenever this step is taken
    2.  read this rank's slice of batch number `step`, which was made ready in the background
    3.  for each part of it that fits the device (*gradient accumulation*): loss and gradient, added up
    4.  join the gradients of all ranks; measure their norm, clip it
    5.  look at the loss: not a number, or far above what it was? Then no step, but back to the last checkpoint
    6.  step against the gradient, at the rate that the schedule says

**The mean.** Parts and ranks can have different numbers of targets, since some are not asked for. The mean of their
means is then not the mean of all tokens. So losses are *sums*, divided by the number of targets of the whole step,
over all parts and ranks. Then any split of a batch gives the gradient of the one large batch.

**Nothing but the step.** Data, dropout and learning rate are functions of the number of the step. What a checkpoint
adds are the weights and the optimisers' state, and a run that was killed goes on bit by bit as if it had not been.

**Divergence.** A loss that explodes comes of the weights *and* the batch. So the loop goes back to the last checkpoint
and passes over the batches that led there (Chowdhery et al. 2022, section 5.1), a few times, before it gives up.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.utils.checkpoint import checkpoint as forget_and_compute_again

from gpt_model import GPT
from pretraining.distributed import (
    Parallel,
    Ranks,
    add_up,
    clip_gradients,
    gradients_meet,
    parallelise,
    say_to_all,
    wait_for_all,
)
from pretraining.half_weights import HalfMatrices
from pretraining.losses import chunked_cross_entropy, compile_loss
from pretraining.optimizers import load_optimizer_state, optimizer_state
from pretraining.schedules import ScheduleName, learning_rate_scale
from utils.checkpoints import (
    Checkpoint,
    begin_checkpoint,
    find_checkpoints,
    finish_checkpoint,
    load_tree,
    newest_whole,
    prune,
    save_tree,
    staging_folder,
)
from utils.devices import TrainingPrecision, autocast, products_dtype
from utils.errors import UserError, signals_noted
from working_with_text_data.token_shards import IGNORE

STATE, SHARDED = "state.safetensors", "sharded"  # what a checkpoint holds: one file, or a folder that all ranks wrote


@dataclass(frozen=True)
class LoopOptions:
    """The flags of every script that trains with this loop."""

    ABOVE_ZERO: ClassVar[tuple[str, ...]] = (
        "steps", "batch_size", "chunk_tokens", "evaluate_every", "checkpoint_every", "keep_last", "spike",
    )  # fmt: skip

    steps: int = 2500
    """Steps to take."""
    batch_size: int = 16
    """Windows in each step, all ranks and accumulated parts together."""
    micro_batch_size: int | None = None
    """Windows that a device computes at a time; the gradients of a step's parts add up. All at once if not given."""
    schedule: ScheduleName = "cosine"
    """The learning rate's way: cosine, wsd (warm-up, stable, decay) or constant, each after a warm-up."""
    warmup: float = 0.02
    """Share of the steps in which the rate climbs."""
    decay: float = 0.3
    """Of wsd: share of the steps in which the rate descends."""
    floor: float = 0.1
    """Where the rate ends, as a share of the full one."""
    clip: float = 1.0
    """The norm above which a gradient is scaled down to it; 0 for never."""
    precision: TrainingPrecision = "auto"
    """Of products: auto takes bfloat16 where the device is fast at it; float16 scales its losses."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """Those that bfloat16 products read: float32 ones, cast each time, or bfloat16 copies of float32 masters."""
    tf32: bool = True
    """On CUDA, let float32 products round their inputs to 10 bits of fraction."""
    compile: bool = False
    """Let torch.compile make kernels for this model: some minutes first, faster steps after."""
    checkpoint_activations: bool = False
    """Keep only each block's input, and compute the rest again for its gradient: less memory, a third more work."""
    chunk_tokens: int = 1024
    """Tokens whose logits exist at a time in the loss."""
    parallel: Parallel = "ddp"
    """With several ranks: ddp (each keeps all of the model) or fsdp (each keeps a slice)."""
    evaluate_every: int = 500_000
    """Training tokens from one measurement on validation text to the next."""
    checkpoint_every: int = 250
    """Steps from one checkpoint to the next; one is written at the start and the end, too."""
    keep_last: int = 2
    """Checkpoints to keep: the newest ones, "..."""
    keep_best: int = 1
    """... and those with the lowest validation loss."""
    spike: float = 3.0
    """Nats above its recent mean at which a loss counts as diverged, as one that is no number does."""
    rewinds: int = 3
    """How often a run that diverged goes back to its last checkpoint, past the batches that led there."""
    seed: int = 0
    """Decides the initial weights, the order of the data, dropout and samples."""

    def __post_init__(self) -> None:
        for name in self.ABOVE_ZERO:
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        for name in ("warmup", "decay", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} is a share: from 0 to 1, got {getattr(self, name)}")
        for name in ("clip", "keep_best", "rewinds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} must be at least 0, got {getattr(self, name)}")
        if self.warmup + self.decay > 1 and self.schedule == "wsd":
            raise UserError(f"--warmup {self.warmup} and --decay {self.decay} are more than the whole run")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise UserError(f"--micro-batch-size must be at least 1, got {self.micro_batch_size}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed must be from 0 to {2**32 - 1}, got {self.seed}")

    def parts(self, ranks: int) -> int:
        """How many parts a rank's slice of a batch is computed in.

        Raises:
            UserError: the batch cannot be divided so.
        """
        share, left = divmod(self.batch_size, ranks)
        if left or not share:
            raise UserError(f"--batch-size {self.batch_size} does not divide among {ranks} ranks: make it a multiple")
        parts, left = divmod(share, self.micro_batch_size or share)
        if left or not parts:
            raise UserError(
                f"--micro-batch-size {self.micro_batch_size} does not divide the {share} windows of each rank"
            )
        return parts


class Objective(nn.Module):
    """What is minimised: `forward(*tensors)` gives the sum of the losses over the targets of a part of a batch."""

    def compile_parts(self) -> None:
        """Lets `torch.compile` make kernels for its parts; a subclass says for which."""

    def take_figures(self) -> dict[str, float]:
        """What else there is to note of the step just taken, for `metrics.jsonl`; a subclass may have something."""
        return {}


class NextToken(Objective):
    """The objective of pretraining: the surprise at each next token, with never all logits there at once."""

    def __init__(self, model: GPT, chunk_tokens: int = 1024) -> None:
        super().__init__()
        self.model = model
        self.chunk_tokens = chunk_tokens
        self._body: Callable[..., Tensor] = model.hidden_states

    def forward(self, inputs: Tensor, targets: Tensor, *documents: Tensor) -> Tensor:
        """The sum of the losses, in nats, of `targets` after `inputs`: int64 (batch, tokens) each.

        `documents`, and then positions, may follow: see `GPT.forward`.
        """
        hidden = self._body(inputs, None, *documents).flatten(0, 1)  # (batch · tokens, d_model)
        matrix, cap = self.model.lm_head.weight, self.model.config.logit_softcap
        return chunked_cross_entropy(hidden, matrix, targets.flatten(), self.chunk_tokens, cap)

    def compile_parts(self) -> None:
        """All but the output matrix becomes kernels. The model itself stays as it is, and so do its names."""
        self._body = torch.compile(self.model.hidden_states)
        compile_loss()


def checkpoint_blocks(blocks: Sequence[nn.Module]) -> None:
    """Lets each block forget what it computed until its gradient is asked for (Chen et al. 2016).

    Forward, a block then keeps its input alone; backward computes the rest again. Weights keep their names.
    """
    for block in blocks:
        block.forward = partial(forget_and_compute_again, block.forward, use_reentrant=False)


def flops_per_token(model: GPT, context_length: int | None = None) -> float:
    """Of a forward and backward pass: 6 for each weight of a product, 12 · n_layer · d_model · T for the attention.

    The convention of Chowdhery et al. 2022, appendix B: each product costs 2 forward and 4 backward, attention counts
    all T keys though half are masked, and what is computed twice counts once. An embedding is a product where it is
    the output matrix, too; elsewhere its rows are looked up, which costs nothing. Norms and biases count like products,
    and are few.

    Args:
        context_length: T, the tokens of a window; the model's own if not given.
    """
    output, keys = model.lm_head.weight, context_length or model.config.context_length
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m.weight is not output]
    looked_up = sum(table.numel() for table in tables)
    return 6 * (model.n_parameters - looked_up) + 12 * model.config.n_layer * model.config.d_model * keys


class ReadAhead:
    """`make(i)` for i = 0, 1, 2, …, the next few made ready by a thread while the device computes."""

    def __init__(self, make: Callable[[int], Any], ahead: int = 2) -> None:
        self.make, self.ahead = make, ahead
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._futures: dict[int, Future[Any]] = {}

    def __call__(self, i: int) -> Any:
        """`make(i)`, in whatever order it is asked for."""
        wanted = range(i, i + 1 + self.ahead)
        futures = {j: self._futures.get(j) or self._pool.submit(self.make, j) for j in wanted}
        self._futures = futures
        return futures[i].result()

    def close(self) -> None:
        """Ends the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass
class LossWatch:
    """Knows what the loss and the gradient have been, and so whether they explode."""

    spike: float
    loss: float | None = None
    """Running mean of the losses of about the last ten steps."""
    norm: float | None = None
    """Of the gradient norms of about the last hundred."""

    def problem(self, loss: float, norm: float) -> str | None:
        """Why no step should be taken; None for no reason, and then these count."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient's norm is {norm}"
        if self.loss is not None and loss > self.loss + self.spike:
            return f"the loss is {loss:.2f}, after {self.loss:.2f} on average"
        self.loss = loss if self.loss is None else 0.9 * self.loss + 0.1 * loss
        return None

    def warning(self, norm: float) -> str | None:
        """What may become a problem: a gradient ten times as large as usual.

        One that float16's scaler leaves out, being infinite or no number, is not usual, and does not count.
        """
        if not math.isfinite(norm):
            return None
        usual, self.norm = self.norm, norm if self.norm is None else 0.99 * self.norm + 0.01 * norm
        if usual is not None and norm > 10 * usual:
            return f"the gradient's norm is {norm:.2f}, after {usual:.2f} on average"
        return None


@dataclass(frozen=True)
class Step:
    """What one step of training showed."""

    loss: float
    """Mean over all targets of the step, in nats, before the step was taken."""
    gradient_norm: float
    """Before clipping."""
    learning_rate_scale: float
    """The share of the full rate."""
    seconds: float
    targets: int


@dataclass
class Hooks:
    """What a script adds to the loop. All are called on every rank, since some of it may need them all."""

    on_step: Callable[[Step], None]
    """After each step."""
    evaluate: Callable[[bool], float]
    """Measures on validation text, and gives the loss; True at the end of the run."""
    before_update: Callable[[], None] = lambda: None
    """When a step's gradient is known, and the weights have not moved."""
    state: Callable[[], dict[str, Any]] = dict
    """What the script wants to find in a checkpoint: a tree of plain values."""
    restore: Callable[[dict[str, Any]], None] = lambda state: None
    """Gets that back when a run goes on."""
    say: Callable[[str], None] = print
    """For people; called on rank 0 alone."""


Ending = Literal["finished", "interrupted", "terminated"]


class TrainingLoop:
    """Takes the steps, and leaves checkpoints behind.

    Args:
        objective: `forward(*tensors)` gives the sum of the losses of a part of a batch.
        model: the part of it whose weights are trained and kept.
        blocks: the model's blocks in order; see `parallelise`.
        make_optimizers: called when the weights are where they stay.
        batch: (step, rank, ranks) -> this rank's slice of a batch, as arrays (windows, …): what `forward` takes. The
            second holds the targets, `IGNORE` where nothing is asked.
        folder: for the checkpoints.

    Raises:
        UserError: the batch does not divide among the ranks, float16 is to be cut by fsdp, or bfloat16 weights are for
            other products.
    """

    def __init__(
        self,
        objective: Objective,
        model: nn.Module,
        blocks: Sequence[nn.Module],
        make_optimizers: Callable[[], list[torch.optim.Optimizer]],
        batch: Callable[[int, int, int], Sequence[npt.NDArray[Any]]],
        options: LoopOptions,
        ranks: Ranks,
        hooks: Hooks,
        folder: Path,
    ) -> None:
        self.parts = options.parts(ranks.size)
        dtype = products_dtype(ranks.device, options.precision)
        if dtype == torch.float16 and options.parallel == "fsdp":
            raise UserError("--precision float16 scales gradients that --parallel fsdp cuts: use bfloat16, or ddp")
        half = options.weights == "bfloat16"
        if half and dtype != torch.bfloat16:
            products = str(dtype).removeprefix("torch.")
            raise UserError(
                f"--weights bfloat16 is for bfloat16 products, not {products}: pass --precision bfloat16, too"
            )
        if ranks.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = options.tf32
        if options.checkpoint_activations:
            checkpoint_blocks(blocks)
        if options.compile:
            objective.compile_parts()
        self.model, self.options, self.ranks, self.hooks, self.folder = model, options, ranks, hooks, folder
        self.halves = HalfMatrices(model, half and options.parallel == "ddp")  # fsdp gathers masters as bfloat16 itself
        with self.halves.in_place():  # which is what ddp will see, and joins the gradients of
            self.parallel = parallelise(objective, blocks, ranks, options.parallel, half)
        self.optimizers = make_optimizers()
        if options.parallel == "fsdp":
            self._fill_optimizers()
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=dtype == torch.float16)
        self.read = ReadAhead(lambda i: batch(i, ranks.rank, ranks.size))
        self.watch = LossWatch(options.spike)
        self.step = 0
        """Steps taken."""
        self.skipped = 0
        """Batches passed over: the next is number `step + skipped`."""
        self.targets = 0
        """Targets of all steps taken: the tokens learned from."""
        self.seconds = 0.0
        """Of all steps taken."""
        self.evaluated_at: int | None = None
        """`targets` at the last measurement."""
        self.best = math.inf
        """The lowest validation loss."""
        self.note: dict[str, float] = {}
        """What the checkpoint of this step says of it: the validation loss, where that was the best so far."""
        self.rewound = 0
        """How often the run has gone back."""
        self.came_back_to: int | None = None
        """The step of the checkpoint that the last rewind went to."""

    # --- the run

    def run(self) -> Ending:
        """Trains to the last step, or until a signal asks it to end; the newest checkpoint is then of where it is.

        Raises:
            UserError: it diverges again and again; the last good checkpoint is what is left.
            OSError: the disk is full.
        """
        with signals_noted(signal.SIGINT, signal.SIGTERM) as noted:
            try:
                return self._run(noted)
            finally:
                self.read.close()

    def _run(self, noted: Callable[[], int]) -> Ending:
        if self.step == 0:
            self.save()  # a full disk shows now and not in an hour, and the first rewind has where to go
        while self.step < self.options.steps:
            if self._evaluation_is_due():
                self._evaluate(last=False)
            # Ranks may hear of a signal at different steps, so they ask each other.
            interrupted, terminated = add_up(self.ranks, noted() == signal.SIGINT, noted() == signal.SIGTERM)
            if interrupted or terminated:
                self.save()
                return "terminated" if terminated else "interrupted"
            if problem := self.take_step():
                self._rewind(problem)
            elif self.step % self.options.checkpoint_every == 0 and self.step < self.options.steps:
                self.save()
        self._evaluate(last=True)
        self.save()
        return "finished"

    def take_step(self) -> str | None:
        """Steps 1 to 6 of the list above; what is wrong, if that was why no step was taken."""
        start = time.perf_counter()
        ranks = self.ranks
        torch.manual_seed(seed_of(self.options.seed, self.step, ranks.rank))
        arrays = self.read(self.step + self.skipped)
        (targets,) = add_up(ranks, int((arrays[1] != IGNORE).sum()))
        with self.halves.in_place():
            own = self._backward(arrays, ranks.size / targets)
        (total,) = add_up(ranks, own)
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = clip_gradients(self.model.parameters(), self.options.clip)
        loss = total / targets
        # A scale that is too large makes infinite gradients; the scaler then leaves the step out, and takes a smaller.
        problem = self.watch.problem(loss, 0.0 if self.scaler.is_enabled() else norm)
        if problem is None:
            if (warning := self.watch.warning(norm)) and ranks.is_first:
                self.hooks.say(f"warning: {warning} (step {self.step + 1})")
            scale = self._set_learning_rate()
            self.hooks.before_update()
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
            self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        if problem is not None:
            return problem
        seconds = time.perf_counter() - start
        self.note = {}
        self.step, self.targets, self.seconds = self.step + 1, self.targets + int(targets), self.seconds + seconds
        self.hooks.on_step(Step(loss, norm, scale, seconds, int(targets)))
        return None

    def _backward(self, arrays: Sequence[npt.NDArray[Any]], scale: float) -> float:
        """Adds up the gradient of `scale` times the loss over all parts; gives the sum of the losses of this rank."""
        total = 0.0
        parts = [self._to_device(array).chunk(self.parts) for array in arrays]
        for i, part in enumerate(zip(*parts, strict=True)):
            # What is given away after a part cannot wait to be joined in the last.
            with gradients_meet(self.parallel, i == self.parts - 1 or bool(self.halves.copies)):
                with autocast(self.ranks.device, self.options.precision):
                    loss = self.parallel(*part)
                self.scaler.scale(loss * scale).backward()
            self.halves.give_gradients()
            total += loss.item()
        return total

    def _to_device(self, array: npt.NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.ranks.device.type != "cuda":
            return tensor.to(self.ranks.device)
        return tensor.pin_memory().to(self.ranks.device, non_blocking=True)

    def _set_learning_rate(self) -> float:
        """Sets all rates to those of the middle of this step, and gives the share of the full one."""
        o = self.options
        scale = learning_rate_scale(o.schedule, (self.step + 0.5) / o.steps, o.warmup, o.decay, o.floor)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = scale * group["peak_lr"]
        return scale

    # --- measuring

    def _evaluation_is_due(self) -> bool:
        every = self.options.evaluate_every
        return self.evaluated_at is None or self.targets // every > self.evaluated_at // every

    def _evaluate(self, last: bool) -> None:
        loss = self.hooks.evaluate(last)
        self.evaluated_at = self.targets
        if loss < self.best:
            self.best = loss
            if self.step and not last:
                self.note = {"validation_loss": loss}
                self.save()

    @torch.no_grad()
    def mean_loss(self, *arrays: npt.NDArray[Any]) -> float:
        """The mean loss over all targets of `arrays`, which are what `batch` gives, for any number of windows."""
        size = self.options.batch_size // self.ranks.size // self.parts
        share = -(-len(arrays[0]) // (size * self.ranks.size)) * size  # windows of each rank, whole parts of them
        lacking = share * self.ranks.size - len(arrays[0])
        first = self.ranks.rank * share
        fills = zip(arrays, _FILL[: len(arrays)], strict=True)
        filled = [np.concatenate([a, np.full((lacking, *a.shape[1:]), fill)]) for a, fill in fills]
        parts = [self._to_device(a[first : first + share]).split(size) for a in filled]
        self.model.eval()
        total = 0.0
        for part in zip(*parts, strict=True):
            with autocast(self.ranks.device, self.options.precision):
                total += self.parallel(*part).item()
        self.model.train()
        total, targets = add_up(self.ranks, total, float((filled[1][first : first + share] != IGNORE).sum()))
        return total / targets

    # --- divergence

    def _rewind(self, problem: str) -> None:
        """Goes back to the last checkpoint, and past the batches from there to here."""
        failed, step, self.rewound = self.step + self.skipped, self.step + 1, self.rewound + 1
        if self.rewound > self.options.rewinds:
            raise UserError(
                f"diverged at step {step}: {problem}; going back did not help {self.options.rewinds} times. Begin "
                f"anew with a lower --learning-rate or a longer --warmup; the checkpoints are in {self.folder}"
            )
        if self.step == self.came_back_to:  # not one step further: the weights in that checkpoint are broken already
            self._set_newest_aside()
        if not self.resume():
            raise UserError(f"diverged at step {step}: {problem}, and there is no whole checkpoint in {self.folder}")
        self.came_back_to = self.step
        self.skipped = failed + 1 - self.step
        self.save()  # or a restart would read the same batches again, and know of no rewind
        if self.ranks.is_first:
            self.hooks.say(f"warning: {problem} at step {step}; back to step {self.step}, past {self.skipped} batches")

    def _set_newest_aside(self) -> None:
        """Gives the newest checkpoint another name, by which it is not found, if there is one before it."""
        if self.ranks.is_first:
            newest, *before = find_checkpoints(self.folder)
            if before:
                os.replace(newest.folder, newest.folder.with_name(f"diverged-{newest.folder.name}"))
        wait_for_all(self.ranks)

    # --- checkpoints

    def save(self) -> None:
        """Writes a checkpoint of where the run is; every rank must call it.

        Raises:
            OSError: the disk is full.
        """
        first, sharded = self.ranks.is_first, self.options.parallel == "fsdp"
        if first:
            begin_checkpoint(self.folder, self.step)
        wait_for_all(self.ranks)
        staging = staging_folder(self.folder, self.step)
        try:
            if sharded:
                _save_shards(self._sharded_state(), staging / SHARDED)
            if first:
                own = self._own_state() | {"rewound": self.rewound}
                save_tree(staging / STATE, own | ({} if sharded else self._whole_state()))
                finish_checkpoint(self.folder, self.step, **self.note)
                prune(self.folder, self.options.keep_last, self.options.keep_best, newest=self.step)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        wait_for_all(self.ranks)

    def resume(self) -> bool:
        """Goes to where the newest whole checkpoint is; False where there is none. Every rank must call it.

        Raises:
            ValueError: it is of another model or of other optimisers.
        """
        found = newest_whole(self.folder, self.hooks.say) if self.ranks.is_first else None
        found = say_to_all(self.ranks, found)
        if found is not None:
            self.load(found)
        return found is not None

    def load(self, checkpoint: Checkpoint) -> None:
        """Goes to where `checkpoint` is. See `resume`."""
        state = load_tree(checkpoint.folder / STATE)
        sharded = "model" not in state
        if sharded != (self.options.parallel == "fsdp"):
            raise ValueError(
                f"{checkpoint.folder} was written with --parallel {'fsdp' if sharded else 'ddp'}: go on with that"
            )
        try:
            if sharded:
                parts = self._sharded_state()
                dcp.state_dict_loader.load(parts, checkpoint_id=checkpoint.folder / SHARDED)
                set_state_dict(
                    self.model, self.optimizers, model_state_dict=parts["model"], optim_state_dict=parts["optimizers"]
                )
            else:
                self.model.load_state_dict(state["model"])
                for optimizer, of_one in zip(self.optimizers, state["optimizers"], strict=True):
                    load_optimizer_state(optimizer, of_one)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"{checkpoint.folder} does not fit this model and its optimisers ({error})") from None
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        for name in _OWN:
            setattr(self, name, state[name])
        self.rewound = max(self.rewound, state.get("rewound", 0))  # going back does not take back that it did
        self.note = {name: fact for name, fact in checkpoint.facts.items() if name == "validation_loss"}
        self.watch = LossWatch(self.options.spike, **state["watch"])
        self.hooks.restore(state["script"])

    def _own_state(self) -> dict[str, Any]:
        watch = {"loss": self.watch.loss, "norm": self.watch.norm}
        own = {name: getattr(self, name) for name in _OWN}
        return own | {"watch": watch, "scaler": self.scaler.state_dict(), "script": self.hooks.state()}

    def _whole_state(self) -> dict[str, Any]:
        states = [optimizer_state(optimizer) for optimizer in self.optimizers]
        return {"model": self.model.state_dict(), "optimizers": states}

    def _fill_optimizers(self) -> None:
        """Gives the optimisers their state, all zeros, before the first step.

        PyTorch would fill it when a checkpoint first asks for it, by a step at rate zero. Such a step counts: AdamW's
        correction of its young means would be one step ahead for the rest of the run.
        """
        get_state_dict(self.model, self.optimizers)
        for optimizer in self.optimizers:
            for state in optimizer.state.values():
                for value in state.values():
                    if isinstance(value, Tensor):
                        value.zero_()

    def _sharded_state(self) -> dict[str, Any]:
        model, optimizers = get_state_dict(self.model, self.optimizers)
        return {"model": model, "optimizers": optimizers}


def _save_shards(state: dict[str, Any], folder: Path) -> None:
    """Lets every rank write its slices of `state`; what goes wrong on one of them is raised on all.

    Raises:
        OSError: the disk is full.
    """
    try:
        dcp.state_dict_saver.save(state, checkpoint_id=folder)
    except CheckpointException as error:
        for cause, _ in error.failures.values():
            if isinstance(cause, OSError | KeyboardInterrupt):
                raise cause from None
            if "inline_container" in str(cause):  # torch's writer of files does not say why it could not
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise


_OWN = ("step", "skipped", "targets", "seconds", "evaluated_at", "best")
_FILL = (0, IGNORE, 0, 0)  # of windows that only make the parts equal: inputs, targets, documents, positions


def seed_of(seed: int, step: int, rank: int) -> int:
    """A seed of its own for every step of every rank."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)
