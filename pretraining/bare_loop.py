"""`TrainingLoop` on ids in memory, with no run folder around it: for benchmarks and small experiments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from gpt_model import GPT, GPTConfig
from pretraining.distributed import Ranks
from pretraining.model_options import SHAPE
from pretraining.pretrain import Pretrain
from pretraining.training_loop import Hooks, NextToken, TrainingLoop
from utils.errors import UserError
from utils.seeding import seed_everything
from working_with_text_data.token_shards import Batches

Ids = npt.NDArray[np.uint16]
Windows = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]  # inputs and targets, (windows, length) each


def config_of(recipe: Pretrain, vocab_size: int) -> GPTConfig:
    """The shape that a recipe's flags tell, of a multi-head model."""
    shape: dict[str, Any] = {name: getattr(recipe, name) for name in SHAPE}
    return GPTConfig(vocab_size=vocab_size, context_length=recipe.context_length, **shape)


def bare_loop(
    recipe: Pretrain,
    model: GPT,
    batch: Callable[[int, int, int], Sequence[npt.NDArray[Any]]],
) -> TrainingLoop:
    """A loop whose steps are taken one by one with `take_step`; close its `read` at the end. It writes nothing.

    Args:
        model: on the device where it is to be trained.
        batch: see `TrainingLoop`.
    """
    return TrainingLoop(
        NextToken(model, recipe.chunk_tokens),
        model,
        model.transformer.blocks,
        lambda: recipe.make_optimizers(model),
        batch,
        recipe,
        Ranks(0, 1, model.device),
        Hooks(on_step=lambda step: None, evaluate=lambda last: 0.0),
        Path("nowhere"),  # where checkpoints would be
    )


def whole_windows(ids: Ids, length: int) -> Windows:
    """(inputs, targets) of all windows side by side that are full, int64 (windows, length)."""
    count = (len(ids) - 1) // length
    inputs, targets = (part[: count * length].astype(np.int64).reshape(count, length) for part in (ids, ids[1:]))
    return inputs, targets


@dataclass(frozen=True)
class Trained:
    """What a small experiment ends with."""

    model: GPT
    loss: float
    """Nats a token, on all validation windows."""
    loop: TrainingLoop


def train_on_ids(
    recipe: Pretrain, vocab_size: int, train: Ids, validation: Windows, device: str = "cpu", name: str = "training"
) -> Trained:
    """A model trained as `recipe` says, from `recipe.seed`, in memory.

    Args:
        name: what the progress bar calls the run.

    Raises:
        UserError: it diverged.
        ValueError: `train` has too few ids.
    """
    seed_everything(recipe.seed)
    model = GPT(config_of(recipe, vocab_size)).to(torch.device(device))
    batches = Batches([train], recipe.context_length, recipe.batch_size, recipe.seed)
    loop = bare_loop(recipe, model, batches.batch)
    try:
        for _ in tqdm(range(recipe.steps), desc=name, unit="step", disable=None, leave=False):
            if problem := loop.take_step():
                raise UserError(f"the recipe diverged: {problem}")
        return Trained(model, loop.mean_loss(*validation), loop)
    finally:
        loop.read.close()


def search_rates(loss_at: Callable[[float], float], rates: Sequence[float]) -> dict[float, float]:
    """Learning rate -> `loss_at` it, rising: of `rates`, and beyond by factors of two until the best has neighbours.

    What lies at the edge of a search may be far from the best.
    """
    losses = {rate: loss_at(rate) for rate in sorted(rates)}
    while (best := min(losses, key=lambda rate: losses[rate])) in (min(losses), max(losses)):
        rate = best / 2 if best == min(losses) else best * 2
        losses[rate] = loss_at(rate)
    return {rate: losses[rate] for rate in sorted(losses)}
