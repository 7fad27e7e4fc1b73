"""The benchmark of recipes: its windows, its arithmetic, and a run of a few steps."""

from __future__ import annotations

import numpy as np
import torch

from pretraining.baseline import BASELINE_SMALL, BaselineGPT, baseline_loss
from pretraining.recipe_benchmark import steps_needed, table, train_ours, whole_windows


def test_both_are_measured_on_the_same_windows():
    ids = np.random.default_rng(0).integers(0, 65, 1000).astype(np.uint16)
    inputs, targets = whole_windows(ids, 64)
    torch.manual_seed(0)
    model = BaselineGPT(BASELINE_SMALL)
    with torch.no_grad():
        loss = model(torch.from_numpy(inputs), torch.from_numpy(targets)).item()
    assert abs(loss - baseline_loss(model, ids)) < 1e-5


def test_the_fewest_steps_that_reach_the_target_count():
    ours = {"100": [2.0, 2.2], "200": [1.8, 1.9], "300": [1.7, 1.7]}
    assert steps_needed(ours, 1.85) == 200
    assert steps_needed(ours, 1.6) is None
    made = table({"baseline": {"easy": [1.9, 1.86], "hard": [1.5]}, "modern": ours})
    assert "| easy | 1.880 (1.860 to 1.900) | 200 | 1.850 (1.800 to 1.900) | 0.100 |" in made
    assert "| hard | 1.500 (1.500 to 1.500) | - | not reached | - |" in made


def test_a_few_steps_learn_and_a_seed_decides_them():
    text = np.tile(np.arange(65, dtype=np.uint16), 60)
    first = train_ours(text, text[:1000], 65, 12, seed=0)
    assert first < 3.5 < np.log(65)  # each id is always followed by the same one
    assert first == train_ours(text, text[:1000], 65, 12, seed=0) != train_ours(text, text[:1000], 65, 12, seed=1)
