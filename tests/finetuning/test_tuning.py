"""Examples in batches: every one once an epoch, long ones with long ones, decided by (seed, epoch) alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetuning.tuning import ExampleBatches, TuningOptions
from utils.errors import UserError


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 3), st.integers(1, 5))
def test_every_example_comes_once_an_epoch(lengths, batch_size, seed, pool):
    batches = ExampleBatches(lengths, batch_size, seed, pool)
    for epoch in range(2):
        first = epoch * batches.steps_per_epoch
        given_ = np.concatenate([batches(first + i) for i in range(batches.steps_per_epoch)])
        assert sorted(given_[given_ >= 0]) == list(range(len(lengths)))
        assert len(given_) == batches.steps_per_epoch * batch_size
        assert (given_ < 0).sum() < batch_size


def test_a_step_can_be_asked_for_alone_and_seeds_and_epochs_differ():
    lengths = np.arange(100)
    in_order = [ExampleBatches(lengths, 10, 1)(i) for i in range(20)]
    batches = ExampleBatches(lengths, 10, 1)
    for i in (19, 0, 7, 12):  # as after a resume, or a rewind
        assert np.array_equal(batches(i), in_order[i])
    assert not np.array_equal(np.stack(in_order[:10]), np.stack(in_order[10:]))
    assert not np.array_equal(ExampleBatches(lengths, 10, 2)(0), in_order[0])


def test_sorting_in_pools_saves_most_of_what_fills_up():
    lengths = np.random.default_rng(0).integers(10, 500, 2000)

    def filled_up(pool):
        batches = ExampleBatches(lengths, 16, 0, pool)
        chosen = [batches(i) for i in range(batches.steps_per_epoch)]
        return sum(lengths[c[c >= 0]].max() * 16 for c in chosen) / lengths.sum() - 1

    assert filled_up(1) > 0.7
    assert filled_up(50) < 0.05
    order = [lengths[ExampleBatches(lengths, 16, 0, 50)(i)].max() for i in range(20)]
    assert order != sorted(order)  # short ones do not come first


def test_flags_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="no examples"):
        ExampleBatches([], 4)
    for wrong in ({"epochs": 0}, {"learning_rate": -1}, {"steps": -1}, {"lora_rank": 0}, {"parallel": "fsdp"}):
        with pytest.raises(UserError):
            TuningOptions(**wrong)
    for more in ({"lora_rank": 4}, {"lora_alpha": 8.0}, {"lora_dropout": 0.1}, {"lora_targets": ("c_attn",)}):
        with pytest.raises(UserError, match=r"belongs to --lora: add it"):
            TuningOptions(**more)
        TuningOptions(lora=True, **more)
    assert TuningOptions(steps=0).steps == 0  # as many as the epochs make
