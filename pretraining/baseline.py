"""What there is to beat: nanoGPT's recipe, written anew and on its own.

python pretraining/baseline.py --text tinyshakespeare.txt

Whoever says that they train faster must say faster than what. The yardstick here is nanoGPT (Karpathy 2022, MIT), the
code that many a GPT-2 was trained with: blocks that normalise first, learned positions, input and output sharing one
embedding, AdamW whose matrices decay, a learning rate that climbs in a line and comes down in half a cosine,

    rate(step) = least + (full - least) · (1 + cos(π · share of the descent)) / 2.

None of this is imported from the rest of the house. A baseline that shared the model or the loop with what is compared
to it would win and lose by the same mistakes, and nobody would see them. And it is measured by what it can do: every
choice is nanoGPT's own, and the learning rate can be tuned for it as for anything else (`--tuning`).

One figure is taken otherwise. nanoGPT estimates its losses on some random windows (20 of its batches in the small
recipe, which its README says ends at 1.88); here they are measured on the whole of the validation text.
"""

from __future__ import annotations

import gzip
import math
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from utils.benchmarking import describe_machine
from utils.devices import Precision, autocast, describe_device, pick_device
from utils.errors import UserError, run_command
from utils.files import require_writable, write_json
from utils.seeding import seed_everything
from utils.tracking import provenance

Ids = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class BaselineConfig:
    """The shape of the model. The defaults are those that nanoGPT trains as GPT-2 of 124 million parameters.

    Raises:
        ValueError: a number is not positive, `n_head` does not divide `d_model`, or dropout is not in [0, 1).
    """

    vocab_size: int = 50304
    """Rows of the embedding: GPT-2's 50257 tokens, filled up to a multiple of 64, which is faster."""
    context_length: int = 1024
    """Tokens that the model can see at once."""
    n_layer: int = 12
    """Blocks, one above the other."""
    n_head: int = 12
    """Attention heads in each block."""
    d_model: int = 768
    """Width of the residual stream."""
    dropout: float = 0.0
    """Probability of setting a number to zero in training."""
    bias: bool = False
    """Whether linear layers and LayerNorms add a bias; GPT-2's do, nanoGPT's own models do not."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "n_layer", "n_head", "d_model"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.d_model % self.n_head:
            raise ValueError(f"d_model={self.d_model} is not divisible by n_head={self.n_head}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")


BASELINE_124M = BaselineConfig()
# What nanoGPT's README trains "on a macbook (or other cheap computer)", on the 65 characters of tiny Shakespeare.
BASELINE_SMALL = BaselineConfig(vocab_size=65, context_length=64, n_layer=4, n_head=4, d_model=128)


class BaselineAttention(nn.Module):
    """Causal multi-head attention, with one product for queries, keys and values."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = nn.Linear(config.d_model, 3 * config.d_model, bias=config.bias)
        self.c_proj = nn.Linear(config.d_model, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, d_model) to the same."""
        batch, tokens, d_model = x.shape
        q, k, v = (
            part.view(batch, tokens, self.n_head, -1).transpose(1, 2)  # (batch, heads, tokens, head_dim)
            for part in self.c_attn(x).chunk(3, dim=-1)  # each (batch, tokens, d_model)
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        y = y.transpose(1, 2).reshape(batch, tokens, d_model)  # the heads side by side again
        return F.dropout(self.c_proj(y), dropout)


class BaselineMLP(nn.Module):
    """Four times wider, GELU, and back."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.d_model, 4 * config.d_model, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.d_model, config.d_model, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, d_model) to the same."""
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x))))  # inside, (batch, tokens, 4 · d_model)


class BaselineBlock(nn.Module):
    """Attention, then the MLP, each reading a normalised copy of the residual stream and adding to it."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.d_model, bias=config.bias)
        self.attn = BaselineAttention(config)
        self.ln_2 = nn.LayerNorm(config.d_model, bias=config.bias)
        self.mlp = BaselineMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, d_model) to the same."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class BaselineGPT(nn.Module):
    """nanoGPT's model: ids and the ids that follow them to the mean loss."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.wpe = nn.Embedding(config.context_length, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(BaselineBlock(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.d_model, bias=config.bias)
        self.apply(self._initialise)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # 2 · n_layer of them add to the residual stream
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer))

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """The mean of -ln p(target) in nats, over all positions.

        Args:
            ids: (batch, tokens).
            targets: (batch, tokens), the id that follows each.
        """
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.dropout(self.wte(ids) + self.wpe(positions))  # (batch, tokens, d_model)
        for block in self.h:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)  # (batch, tokens, vocab)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())  # over batch · tokens rows


def baseline_optimizer(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    fused: bool = False,
) -> torch.optim.AdamW:
    """AdamW, under which matrices and embeddings decay, biases and norms do not.

    Args:
        fused: all of a step in one kernel; nanoGPT takes it on CUDA alone.
    """
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)


def baseline_learning_rate(
    step: int, learning_rate: float, min_learning_rate: float, warmup_steps: int, decay_steps: int
) -> float:
    """The rate of step `step`, counted from 0: up in a line, then down in half a cosine until `decay_steps`."""
    if step < warmup_steps:
        return learning_rate * (step + 1) / (warmup_steps + 1)
    if step >= decay_steps:
        return min_learning_rate
    progress = (step - warmup_steps) / (decay_steps - warmup_steps)
    return min_learning_rate + (learning_rate - min_learning_rate) * (1 + math.cos(math.pi * progress)) / 2


def baseline_step(
    model: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    ids: Tensor,
    targets: Tensor,
    precision: Precision = "float32",
) -> Tensor:
    """One step of learning; the loss before it. `model` may be compiled: `torch.compile(BaselineGPT(config))`.

    Args:
        ids: (batch, tokens).
        targets: (batch, tokens), the id that follows each.
    """
    with autocast(ids.device, precision):
        loss = model(ids, targets)
    loss.backward()
    clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def random_windows(
    ids: Ids, batch_size: int, context_length: int, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Windows that begin anywhere, some text often and some never, and the ids that follow: (batch, tokens) each."""
    starts = torch.randint(len(ids) - context_length, (batch_size,), generator=generator)
    at = starts.numpy()[:, None] + np.arange(context_length + 1)  # (batch, tokens + 1)
    windows = torch.from_numpy(ids[at].astype(np.int64)).to(device)
    return windows[:, :-1], windows[:, 1:]


@torch.no_grad()
def baseline_loss(model: BaselineGPT, ids: Ids, precision: Precision = "float32") -> float:
    """The mean loss on all of `ids`, in windows side by side; what does not fill the last one is left out."""
    context_length, device = model.config.context_length, model.wte.weight.device
    count = (len(ids) - 1) // context_length
    inputs, targets = (
        torch.from_numpy(part[: count * context_length].astype(np.int64)).view(count, context_length).to(device)
        for part in (ids, ids[1:])
    )  # each (windows, tokens)
    at_once = max(1, 8192 // context_length)  # windows in a batch: logits of a large vocabulary need memory
    was_training = model.training
    model.eval()
    total = 0.0
    with autocast(device, precision):
        for x, y in zip(inputs.split(at_once), targets.split(at_once), strict=True):
            total += model(x, y).item() * len(x)
    model.train(was_training)
    return total / count


class Measurement(NamedTuple):
    """A run at one of its evaluations."""

    step: int
    """Steps taken."""
    seconds: float
    """Seconds that they took, compiling among them; evaluations are not counted."""
    validation_loss: float
    """Nats a token, on all of the validation ids."""


def train_baseline(
    config: BaselineConfig,
    train: Ids,
    validation: Ids,
    *,
    batch_size: int = 12,
    steps: int = 2000,
    learning_rate: float = 1e-3,
    warmup_steps: int = 100,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.99),
    evaluate_every: int = 250,
    seed: int = 0,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
    compile: bool = False,
) -> list[Measurement]:
    """nanoGPT's loop. The defaults are those of its recipe for a small computer, to go with `BASELINE_SMALL`.

    The learning rate comes down to a tenth of `learning_rate` at the last step, as nanoGPT advises.

    Args:
        train: ids to learn from.
        validation: ids to measure on, before the first step, every `evaluate_every` steps and after the last.
        seed: decides the initial weights, the windows and dropout.

    Raises:
        ValueError: `train` or `validation` has no whole window, or a number is not positive.
    """
    for name, value in (("batch_size", batch_size), ("steps", steps), ("evaluate_every", evaluate_every)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for name, ids in (("train", train), ("validation", validation)):
        if len(ids) <= config.context_length:
            raise ValueError(f"{name} has {len(ids)} ids; a window and what follows need {config.context_length + 1}")
    seed_everything(seed)
    windows, device = torch.Generator().manual_seed(seed), torch.device(device)
    model = BaselineGPT(config).to(device)
    optimizer = baseline_optimizer(model, learning_rate, weight_decay, betas, fused=device.type == "cuda")
    stepped = cast(Callable[[Tensor, Tensor], Tensor], torch.compile(model) if compile else model)
    measured: list[Measurement] = []
    seconds, start = 0.0, time.perf_counter()
    bar = tqdm(range(steps + 1), desc="baseline", unit="step", disable=None, dynamic_ncols=True)
    for step in bar:
        if step % evaluate_every == 0 or step == steps:
            if device.type != "cpu":
                torch.accelerator.synchronize(device)  # or the clock would be read before the work is done
            seconds += time.perf_counter() - start
            measured.append(Measurement(step, seconds, baseline_loss(model, validation, precision)))
            bar.set_postfix_str(f"validation {measured[-1].validation_loss:.3f}")
            start = time.perf_counter()
        if step < steps:
            rate = baseline_learning_rate(step, learning_rate, learning_rate / 10, warmup_steps, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            inputs, targets = random_windows(train, batch_size, config.context_length, windows, device)
            baseline_step(stepped, optimizer, inputs, targets, precision)
    return measured


@dataclass(frozen=True)
class Baseline:
    """The flags of this script. The defaults are nanoGPT's recipe for a small computer."""

    text: Path | None = None
    """Tiny Shakespeare or another text, packed with gzip or not; else misc/tinyshakespeare.txt.gz in the folder that
    the environment variable SCRATCHBOOK_DATA names."""
    out: Path = Path("runs/baseline.json")
    """The JSON file to write."""
    tuning: bool = False
    """Learn from nine tenths of the training text and measure on its last tenth, to choose a learning rate by: one
    that the validation text chose would look better than it is."""
    learning_rate: float = 1e-3
    """The full learning rate; the last step's is a tenth of it."""
    steps: int = 2000
    """Steps of 12 windows of 64 characters."""
    evaluate_every: int = 250
    """Steps from one measurement to the next."""
    seed: int = 0
    """Decides the initial weights and the windows."""
    device: str = "cpu"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Precision = "float32"
    """auto takes bfloat16 products where the processor is fast at them."""
    compile: bool = False
    """Train the compiled model; compiling counts among the seconds."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "steps", "evaluate_every"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")


def find_text(path: Path | None) -> Path:
    """`path`, or where the folder of real data has tiny Shakespeare.

    Raises:
        UserError: neither is there.
    """
    if path is None:
        if not os.environ.get("SCRATCHBOOK_DATA"):
            raise UserError("no text to learn from: pass --text PATH, with tiny Shakespeare or another text")
        path = Path(os.environ["SCRATCHBOOK_DATA"]) / "misc" / "tinyshakespeare.txt.gz"
    if not path.is_file():
        raise UserError(f"no text at {path}: pass --text PATH, with tiny Shakespeare or another text")
    return path


def read_characters(path: Path) -> tuple[Ids, int]:
    """The text as ids of its characters, which are numbered in the order of Unicode, and how many kinds there are.

    Raises:
        ValueError: broken gzip, or not UTF-8.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode("utf-8")
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a text in UTF-8, packed with gzip or not ({error})") from None
    characters, ids = np.unique(np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32), return_inverse=True)
    return ids.astype(np.uint16), len(characters)


def split(ids: Ids) -> tuple[Ids, Ids]:
    """The first nine tenths, and the last."""
    at = int(len(ids) * 0.9)
    return ids[:at], ids[at:]


def main(options: Baseline) -> None:
    device = pick_device(options.device)
    text = find_text(options.text)
    ids, vocab_size = read_characters(text)
    train, validation = split(ids)
    if options.tuning:
        train, validation = split(train)
    config = replace(BASELINE_SMALL, vocab_size=vocab_size)
    if len(validation) <= config.context_length:
        raise UserError(f"{text} has {len(ids):,} characters, too few to learn from: pass a longer text")
    require_writable(options.out.parent)
    print(f"{len(train):,} characters of {vocab_size} kinds to learn from, {len(validation):,} to measure on")
    print(f"{options.steps:,} steps on {describe_device(device, options.precision)}")
    measured = train_baseline(
        config,
        train,
        validation,
        steps=options.steps,
        learning_rate=options.learning_rate,
        evaluate_every=options.evaluate_every,
        seed=options.seed,
        device=device,
        precision=options.precision,
        compile=options.compile,
    )
    print(f"{'step':>8}{'seconds':>10}{'validation loss':>18}")
    for step, seconds, loss in measured:
        print(f"{step:>8,}{seconds:>10.1f}{loss:>18.4f}")
    results = {
        "options": {name: value for name, value in asdict(options).items() if name not in ("text", "out")},
        "config": asdict(config),
        "characters": {"train": len(train), "validation": len(validation)},
        "measured": [measurement._asdict() for measurement in measured],
        "machine": describe_machine() | {"device": describe_device(device, options.precision)},
        "made_by": provenance(),
    }
    write_json(options.out, results)
    print(f"Wrote {options.out}")


if __name__ == "__main__":
    run_command(main, Baseline)
