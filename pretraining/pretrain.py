"""Pretraining that can be trusted with long runs: resumes, many processes, presets, tracking.

python pretraining/pretrain.py --data runs/demo/tokens --run runs/laptop

torchrun --standalone --nproc-per-node 8 -- pretraining/pretrain.py --preset gpt2-124m --data DATA --run RUN

The loop is in `training_loop.py`; here it gets its data, its model and its optimisers, and a folder to write to. What a
run writes is whole at every instant: a kill loses the steps since the last checkpoint, and the same command with
`--resume auto` goes on from there, to the same losses bit by bit (on one kind of CPU, in float32).
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from gpt_model import GPT
from gpt_model.evaluate import bytes_of_tokens
from pretraining.diagnostics import attention_entropy, copy_of, matrices_of, update_to_weight
from pretraining.distributed import Ranks, join_ranks, whole_weights
from pretraining.model_options import ModelOptions, make_model
from pretraining.optimizers import GaLore, OptimizerName, make_optimizers, state_bytes
from pretraining.run_folder import RunFolder
from pretraining.run_options import (
    RunOptions,
    alone_with,
    go_on,
    refuse_another_run,
    require_same_data,
    room_for,
    trackers_of,
)
from pretraining.training_loop import Ending, Hooks, LoopOptions, NextToken, Step, TrainingLoop, flops_per_token
from utils.devices import describe_device, peak_flops, products_dtype
from utils.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, UserError, refuse_broken_text, run_command
from utils.files import require_writable, sha256_of, write_json
from utils.seeding import seed_everything
from working_with_text_data.token_shards import (
    MANIFEST,
    Batches,
    TokenShards,
    document_numbers,
    evaluation_windows,
)


@dataclass(frozen=True)
class Pretrain(LoopOptions, ModelOptions, RunOptions):
    """The flags of this script. --preset changes the defaults of the others; --preset NAME --help shows them."""

    preset: str | None = None
    """A recipe by name: laptop, modern, gpt2-124m or gpt2-355m."""
    data: Path = Path("runs/demo/tokens")
    """The folder of token shards that prepare_data.py wrote."""
    tokenizer: Path | None = None
    """A tokenizer.json in place of the data folder's own; it must be the one that made the shards."""
    run: Path = Path("runs/pretrain")
    """The folder for everything that the run writes."""
    document_masking: bool = False
    """No token sees another document of its window."""
    optimizer: OptimizerName = "adamw"
    """Of the blocks' matrices: adamw, muon, galore-adamw, galore-adamw8bit (CUDA) or galore-adafactor."""
    learning_rate: float = 3e-3
    """Full learning rate of the blocks' matrices: about 0.003 for adamw in a small model, 0.03 for muon."""
    other_learning_rate: float | None = None
    """Full learning rate of embeddings, norms and biases; the same if not given."""
    weight_decay: float = 0.1
    """Weight decay of the blocks' matrices."""
    decay_embeddings: bool = False
    """Let embeddings decay, too, as nanoGPT does."""
    beta1: float = 0.9
    """Of AdamW: what the running mean of the gradient keeps at a step."""
    beta2: float = 0.95
    """Of AdamW: what that of its square keeps."""
    momentum: float = 0.95
    """Of Muon: what the running mean of the gradient keeps at a step."""
    galore_rank: int = 128
    """Of GaLore: directions of a gradient that are kept."""
    galore_gap: int = 200
    """Of GaLore: steps until the directions are found anew."""
    galore_scale: float = 0.25
    """Of GaLore: the step as a share of plain Adam's."""
    galore_embeddings: bool = False
    """Of GaLore: project the embeddings, too."""
    eval_tokens: int = 65_536
    """Validation tokens to measure on along the way; the last measurement takes all of them."""
    all_at_end: bool = True
    """--no-all-at-end takes just --eval-tokens for the last measurement too."""
    diagnose_every: int = 250
    """Steps from one look at update-to-weight ratios and attention entropy to the next; 0 for never."""
    sample_prompt: str = "The"
    """The samples continue this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("learning_rate", "eval_tokens", "galore_rank", "galore_gap", "galore_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        if self.other_learning_rate is not None and not 0 < self.other_learning_rate < math.inf:
            raise UserError(f"--other-learning-rate must be above 0, got {self.other_learning_rate}")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 0 and below 1, got {getattr(self, name)}")
        for name in ("weight_decay", "diagnose_every"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} must be at least 0, got {getattr(self, name)}")
        refuse_broken_text("--sample-prompt", self.sample_prompt)

    def make_optimizers(self, model: GPT) -> list[torch.optim.Optimizer]:
        """See `optimizers.make_optimizers`."""
        return make_optimizers(
            model,
            self.optimizer,
            self.learning_rate,
            self.learning_rate if self.other_learning_rate is None else self.other_learning_rate,
            self.weight_decay,
            betas=(self.beta1, self.beta2),
            momentum=self.momentum,
            decay_embeddings=self.decay_embeddings,
            galore=GaLore(self.galore_rank, self.galore_gap, self.galore_scale, self.galore_embeddings),
        )


# nanoGPT's recipe for GPT-2 on OpenWebText: 491,520 tokens a step; warm-up over 2,000 of 600,000 steps. The model is
# GPT-2's own: it has biases, which nanoGPT leaves out, and the vocabulary of the shards, not filled up to 50,304. And
# the parts of a batch are smaller by two windows: 10 divide what 1, 2, 4, 8 or 16 ranks have of 480, and 12 do not.
_GPT2 = Pretrain(
    n_layer=12,
    n_head=12,
    d_model=768,
    context_length=1024,
    batch_size=480,
    micro_batch_size=10,
    steps=600_000,
    warmup=2_000 / 600_000,
    learning_rate=6e-4,
    decay_embeddings=True,
    compile=True,
    evaluate_every=491_520_000,
    eval_tokens=2_457_600,
    checkpoint_every=1_000,
    diagnose_every=1_000,
)

PRESETS = {
    "laptop": Pretrain(),
    "modern": Pretrain(
        positions="rope",
        qk_norm=True,
        norm="rmsnorm",
        bias=False,
        optimizer="muon",
        learning_rate=0.02,
        other_learning_rate=0.02,
        schedule="wsd",
        decay=0.6,
        floor=0.0,
    ),
    "gpt2-124m": _GPT2,
    # The shape of GPT-2's second size; the rate of GPT-3's model of that size (Brown et al. 2020, table 2.1).
    "gpt2-355m": replace(_GPT2, n_layer=24, n_head=16, d_model=1024, micro_batch_size=5, learning_rate=3e-4),
}
PRESETS = {name: replace(recipe, preset=name) for name, recipe in PRESETS.items()}

# What may differ when a run goes on, besides what never matters.
_MAY_CHANGE = {"preset", "data", "tokenizer", "eval_tokens", "all_at_end", "diagnose_every"}


class Validation:
    """The fixed windows of validation text, (windows, context_length + 1): some for along the way, all for the end."""

    def __init__(self, shards: TokenShards, options: Pretrain) -> None:
        arrays, length = shards.arrays["validation"], options.context_length
        self.some = evaluation_windows(arrays, length, options.eval_tokens)
        self.all = evaluation_windows(arrays, length) if options.all_at_end else self.some
        self._token_bytes = bytes_of_tokens(shards.tokenizer).numpy()  # (n_vocab,)

    def bytes_of(self, targets: npt.NDArray[Any]) -> int:
        """Bytes of text that these tokens stand for, at least 1."""
        return max(int(self._token_bytes[targets].sum()), 1)


class Pretraining:
    """One run on this rank: the data, the model and the loop put together, and what is shown of it.

    Args:
        report: called with (tokens learned from, validation loss) at each measurement; what it raises ends the run.

    Raises:
        UserError, ValueError: flags, data, folder or checkpoint do not fit; one line that says what to do.
    """

    def __init__(self, options: Pretrain, ranks: Ranks, report: Callable[[int, float], None] | None = None) -> None:
        self.options, self.ranks, self.report = options, ranks, report
        refuse_another_run(options, _MAY_CHANGE)
        options.parts(ranks.size)
        self.shards = TokenShards.open(options.data, options.tokenizer)
        require_same_data(options, sha256_of(self.shards.folder / MANIFEST))
        if ranks.is_first:
            self.shards.verify()
            require_writable(options.run)
        self.end = self.shards.tokenizer.eot_token
        name, arrays = str(options.data), self.shards.arrays["train"]
        self.batches = Batches(arrays, options.context_length, options.batch_size, options.seed, name)
        self.validation = Validation(self.shards, options)
        seed_everything(options.seed)
        preset = PRESETS.get(options.preset or "")
        self.model = make_model(options, self.shards, preset).to(ranks.device)
        self.n_parameters, self.flops = self.model.n_parameters, flops_per_token(self.model, options.context_length)
        self.peak, self.of_peak = peak_flops(ranks.device, products_dtype(ranks.device, options.precision))
        self.validation_loss = math.nan
        self.before: dict[str, torch.Tensor] = {}
        self.run: RunFolder | None = None  # on rank 0, from the first step on
        self.run_state: dict[str, Any] = {}
        checkpoints = options.run / "checkpoints"
        self.loop = TrainingLoop(
            NextToken(self.model, options.chunk_tokens),
            self.model,
            self.model.transformer.blocks,
            lambda: options.make_optimizers(self.model),
            self.batch,
            options,
            ranks,
            Hooks(self.on_step, self.evaluate, self.before_update, self.state, self.restore, self.say),
            checkpoints,
        )
        self.matrices = matrices_of(self.model)
        self.resumed = go_on(options, self.loop)

    def train(self) -> Ending:
        """The run, from where it is to its end."""
        with room_for(self.options, self.ranks, self.resumed):
            if self.ranks.is_first:
                self.run = self._open_folder()
            self._say_what_comes()
        hidden = None if self.ranks.is_first else True
        self.bar = tqdm(desc="pretraining", unit="step", disable=hidden, dynamic_ncols=True, **self._progress())
        try:
            ending = self.loop.run()
        finally:
            self.bar.close()
        if self.run is not None:
            self._say_what_was(self.run, ending)
        return ending

    def batch(self, step: int, rank: int, ranks: int) -> tuple[Any, ...]:
        """A rank's slice of batch number `step`: inputs, targets and, if they count, the documents."""
        inputs, targets = self.batches.batch(step, rank, ranks)
        return (inputs, targets, *self._documents(inputs))

    def _documents(self, inputs: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], ...]:
        return (document_numbers(inputs, self.end),) if self.options.document_masking else ()

    # --- what the loop calls

    def before_update(self) -> None:
        """Keeps the matrices as they are, where this step is one to look at."""
        every = self.options.diagnose_every
        self.before = copy_of(self.matrices) if every and (self.loop.step + 1) % every == 0 else {}

    def on_step(self, step: Step) -> None:
        """Notes and shows the step."""
        diagnosis = self._diagnose() if self.before else {}
        if self.run is None:
            return
        figures = {"gradient_norm": step.gradient_norm, "targets": self.loop.targets}
        self.run.note_step(step.loss, step.learning_rate_scale, step.seconds, **figures)
        if diagnosis:
            self.run.metrics.log(step=self.loop.step, **diagnosis)
        left = (self.options.steps - self.loop.step) * self.loop.seconds / self.loop.step / 60
        self.bar.n = self.loop.step
        self.bar.set_postfix_str(
            f"loss {step.loss:.3f}, validation {self.validation_loss:.3f}, {self.speed:,.0f} tokens/s, "
            f"MFU {self.flops_utilisation:.0%}, {left:.1f} min left"
        )

    def _diagnose(self) -> dict[str, float]:
        diagnosis = {f"update_to_weight.{n}": x for n, x in update_to_weight(self.before, self.matrices).items()}
        self.before = {}
        if self.options.parallel == "ddp" and self.ranks.is_first:  # fsdp has cut what attention needs whole
            inputs = self.validation.some[:4, :-1]  # (4, tokens)
            seen = (torch.from_numpy(array).to(self.ranks.device) for array in (inputs, *self._documents(inputs)))
            diagnosis |= {f"attention_entropy.{i}": x for i, x in enumerate(attention_entropy(self.model, *seen))}
        return diagnosis

    def evaluate(self, last: bool) -> float:
        """Measures on validation text, and lets rank 0 write the model, a sample and the plot."""
        windows = self.validation.all if last else self.validation.some
        inputs, targets = windows[:, :-1], windows[:, 1:]  # (windows, context_length) each
        loss = self.loop.mean_loss(inputs, targets, *self._documents(inputs))
        bits = loss * targets.size / math.log(2) / self.validation.bytes_of(targets)
        whole = self._whole_model()
        if self.run is not None:
            self.run.record(loss, bits, targets.size, finished=last, model=whole)
        self.validation_loss = loss
        if self.report is not None:
            self.report(self.loop.targets, loss)
        return loss

    def _whole_model(self) -> GPT | None:
        """On rank 0 the model in one piece, where it is cut over the ranks; every rank must call it."""
        if self.options.parallel == "ddp":
            return None
        weights = whole_weights(self.model)
        if not self.ranks.is_first:
            return None
        model = type(self.model)(self.model.config)
        model.load_state_dict(weights)
        return model

    def state(self) -> dict[str, Any]:
        """What the folder needs to go on."""
        return self.run.state() if self.run is not None else {}

    def restore(self, state: dict[str, Any]) -> None:
        """A run goes on, or goes back: then what was written stays, as the record of what went wrong."""
        self.run_state = state
        if self.run is not None:
            self.run.steps = self.loop.step
            self.run.metrics.log(step=self.loop.step, rewound=self.loop.rewound)

    # --- for people

    def say(self, text: str) -> None:
        """Prints above the bar, once for all ranks."""
        if self.ranks.is_first:
            tqdm.write(text)

    @property
    def speed(self) -> float:
        """Tokens a second, all ranks together, measuring left out."""
        return self.loop.targets / max(self.loop.seconds, 1e-9)

    @property
    def flops_utilisation(self) -> float:
        """MFU: the share of the devices' peak that the model's own operations make up."""
        return self.speed * self.flops / self.peak / self.ranks.size

    def _open_folder(self) -> RunFolder:
        o, manifest = self.options, self.shards.manifest
        data = {"made_by": manifest["made_by"], "tokenizer_fingerprint": manifest["tokenizer_fingerprint"]}
        return RunFolder(
            o.run,
            self.model,
            self.shards,
            asdict(o),
            tokens_per_step=o.batch_size * o.context_length,
            batch_size=o.micro_batch_size or o.batch_size,
            precision=o.precision,
            eval_tokens=o.eval_tokens,
            sample_prompt=o.sample_prompt,
            seed=o.seed,
            data=data | {"manifest_sha256": sha256_of(self.shards.folder / MANIFEST)},
            state=self.run_state,
            trackers=trackers_of(o, self.loop.step, self.resumed),
        )

    def _progress(self) -> dict[str, int]:
        return {"total": self.options.steps, "initial": self.loop.step}

    def _say_what_comes(self) -> None:
        o, ranks = self.options, self.ranks
        several = f", {ranks.size} ranks ({o.parallel})" if ranks.size > 1 else ""
        self.say(f"{self.n_parameters:,} parameters on {describe_device(ranks.device, o.precision)}{several}")
        parts = "" if self.loop.parts == 1 else f", accumulated over {self.loop.parts} parts"
        self.say(
            f"{o.steps:,} steps of {o.batch_size * o.context_length:,} tokens{parts}; one epoch is "
            f"{self.batches.steps_per_epoch:,.0f} steps"
        )
        if self.resumed:
            self.say(f"Going on after step {self.loop.step:,}, from {self.loop.folder}")

    def _say_what_was(self, run: RunFolder, ending: Ending) -> None:
        o, loop = self.options, self.loop
        kept = state_bytes(loop.optimizers)
        made_by = {"peak_flops": self.peak, "of_peak": self.of_peak, "optimizer_state_bytes": kept}
        write_json(o.run / "speed.json", made_by | {"tokens_per_second": self.speed, "mfu": self.flops_utilisation})
        print(f"\n{loop.step:,} steps, {loop.targets:,} tokens in {run.minutes:.1f} minutes; ", end="")
        print(f"{self.speed:,.0f} tokens/s while training, MFU {self.flops_utilisation:.1%} ({self.of_peak});")
        print(f"{kept / 1e6:,.1f} MB of optimiser state on this rank")
        if ending == "finished":
            print(f"Wrote {o.run}: model, checkpoints, metrics.jsonl, loss.png, samples.txt")
            print(f"Next: python gpt_model/generate.py --model {shlex.quote(str(o.run / 'model'))} --prompt The")
        else:
            print(f"Stopped at step {loop.step} of {o.steps}, and saved. The same command with --resume auto goes on.")


def main(options: Pretrain) -> None:
    with join_ranks(options.device) as ranks, alone_with(options, ranks):
        ending = Pretraining(options, ranks).train()
    if ending != "finished":
        sys.exit({"interrupted": EXIT_INTERRUPTED, "terminated": EXIT_TERMINATED}[ending])


if __name__ == "__main__":
    run_command(main, Pretrain, PRESETS)
