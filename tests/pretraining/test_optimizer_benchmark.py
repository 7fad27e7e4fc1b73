"""The benchmark of optimisers: the bytes it counts, and a run of seconds."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch

from pretraining.optimizer_benchmark import (
    RATES,
    README,
    RESULTS,
    OptimizerBenchmark,
    main,
    measure_losses,
    measure_steps,
    small_recipe,
    table,
)
from pretraining.optimizers import OptimizerName
from tests.conftest import assert_one_clear_line
from utils.errors import UserError
from utils.readme_tables import read_results, with_block

TINY = OptimizerBenchmark(n_layer=1, galore_rank=8, seconds=0.01, steps=3, seeds=1)
D = 768
OTHERS = (50257 + 1024) * D + 13 * D + 2 * D  # embeddings; the biases and norms of a block; the last norm


def test_the_bytes_are_those_of_the_formulas():
    names: list[OptimizerName] = ["adamw", "muon", "galore-adamw"]
    found = measure_steps(TINY, names, torch.device("cpu"))
    shapes = [(D, 3 * D), (D, D), (D, 4 * D), (4 * D, D)]  # of one block's matrices
    matrices, steps = sum(m * n for m, n in shapes), 4  # a counter for each parameter, which is a float32
    small = sum(min(m, n) * 8 + 2 * max(m, n) * 8 for m, n in shapes)  # m r + 2 n r
    assert found["adamw"]["parameters"] == matrices + OTHERS
    assert abs(found["adamw"]["state_bytes"] - 8 * (matrices + OTHERS)) < 100 * steps
    assert abs(found["muon"]["state_bytes"] - (4 * matrices + 8 * OTHERS)) < 100 * steps
    assert abs(found["galore-adamw"]["state_bytes"] - (4 * small + 8 * OTHERS)) < 100 * steps


def test_every_optimiser_has_rates_and_runs_in_the_small_model():
    for name in get_args(OptimizerName):
        rates = RATES[name]
        assert list(rates) == sorted(rates)
        assert small_recipe(name, rates[0], 3, 0).galore_rank < small_recipe(name, rates[0], 3, 0).d_model


def test_from_a_run_to_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr("pretraining.optimizer_benchmark.RATES", {"adamw": (4e-3,), "galore-adamw": (1e-5, 1e-2)})
    text, readme = tmp_path / "text.txt", tmp_path / "README.md"
    text.write_text("abcdefgh" * 1000, encoding="utf-8")
    readme.write_text("<!-- optimizers:begin -->\n<!-- optimizers:end -->", encoding="utf-8")
    options = replace(TINY, optimizers=("adamw", "galore-adamw", "galore-adamw8bit"), text=text, readme=readme)
    main(replace(options, out=tmp_path / "out", steps=10))
    (result,) = read_results(tmp_path / "out")
    assert list(result["losses"]) == ["adamw", "galore-adamw"]  # the third needs CUDA
    for tuned in result["losses"].values():
        lowest, *_, highest = map(float, tuned["tuning"])
        assert lowest < tuned["rate"] < highest  # where the search began, it is at an edge
        assert tuned["tuning"][str(tuned["rate"])] == min(tuned["tuning"].values())
    assert tuned["tuning"]["0.01"] < tuned["tuning"]["1e-05"]
    assert "| galore-adamw |" in readme.read_text(encoding="utf-8")


def test_a_rate_that_diverges_ends_the_search(monkeypatch):
    def train(recipe, *_):
        if recipe.learning_rate > 0.1:
            raise UserError("the recipe diverged")
        return SimpleNamespace(loss=1 / recipe.learning_rate)

    monkeypatch.setattr("pretraining.optimizer_benchmark.train_on_ids", train)
    found = measure_losses(TINY, ["muon"], np.arange(1000, dtype=np.uint16), 1000, "cpu")["muon"]
    assert found["tuning"] == {"0.01": 100, "0.02": 50, "0.04": 25, "0.08": 12.5, "0.16": math.inf}
    assert found["rate"] == 0.08


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optimizers", "galore-adamw8bit"], "CUDA only"),
        (["--steps", "0"], "above 0"),
    ],
)
def test_bad_flags_get_one_clear_line(run, flags, message):
    assert_one_clear_line(run("pretraining/optimizer_benchmark.py", *flags), message)


def test_the_readme_holds_the_table_of_the_committed_results():
    text = README.read_text(encoding="utf-8")
    assert with_block(text, "optimizers", table(read_results(RESULTS))) == text
