"""The benchmark of recipes: its windows, its arithmetic, and a run of a few steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pretraining.bare_loop import train_on_ids, whole_windows
from pretraining.baseline import BASELINE_SMALL, BaselineConfig, BaselineGPT, baseline_loss
from pretraining.recipe_benchmark import (
    README,
    RESULTS,
    RecipeBenchmark,
    Task,
    main,
    recipe_for,
    steps_needed,
    table,
    tuned_rates,
)
from tests.conftest import assert_one_clear_line
from utils.readme_tables import read_results, with_block


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
    result = {"name": "a text", "steps": 2000, "baseline": {"easy": [1.9, 1.86], "hard": [1.5]}, "modern": ours}
    made = table([result, result | {"name": "another", "steps": 1000}])
    assert "| a text | easy | 2,000 | 1.880 (1.860 to 1.900) | 200 | 1.850 (1.800 to 1.900) | 0.100 |" in made
    assert "| another | hard | 1,000 | 1.500 (1.500 to 1.500) | - | not reached | - |" in made


def test_the_readme_holds_the_table_of_the_committed_results():
    text = README.read_text(encoding="utf-8")
    assert with_block(text, "recipe", table(read_results(RESULTS))) == text


def test_a_few_steps_learn_and_a_seed_decides_them():
    text = np.tile(np.arange(65, dtype=np.uint16), 60)
    recipe = recipe_for(BASELINE_SMALL, 12, seed=0)
    windows = whole_windows(text[:1000], recipe.context_length)
    first = train_on_ids(recipe, 65, text, windows).loss
    assert first < 3.5 < np.log(65)  # each id is always followed by the same one
    assert first == train_on_ids(recipe, 65, text, windows).loss
    assert first != train_on_ids(replace(recipe, seed=1), 65, text, windows).loss


def test_the_rate_is_chosen_without_the_text_that_is_measured_on():
    text = np.tile(np.arange(16, dtype=np.uint16), 200)
    config = BaselineConfig(vocab_size=16, context_length=16, n_layer=1, n_head=1, d_model=16)
    task = Task("a text", config, text, text[:0], steps=20)  # no validation text: it would be an error to look at it
    tuned = tuned_rates(task, (1e-2, 1.0))
    assert min(tuned, key=lambda rate: tuned[rate]) not in (min(tuned, key=float), max(tuned, key=float))


def test_a_search_goes_on_where_its_edge_is_the_best(monkeypatch):
    asked = []

    def loss_at(task, rate, seed):
        asked.append(rate)
        return (np.log2(rate) - 3) ** 2  # the best is 8

    monkeypatch.setattr("pretraining.recipe_benchmark.baseline_loss_at", loss_at)
    task = Task("a text", BASELINE_SMALL, np.arange(100, dtype=np.uint16), np.arange(9, dtype=np.uint16), steps=1)
    assert tuned_rates(task, (1.0, 2.0)) == {"1": 9, "2": 4, "4": 1, "8": 0, "16": 1}
    assert asked == [1, 2, 4, 8, 16]
    assert list(tuned_rates(task, (64.0, 32.0))) == ["4", "8", "16", "32", "64"]


def test_from_a_text_to_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr("pretraining.recipe_benchmark.PUBLISHED", {"as published": 1e-3})
    text, readme = tmp_path / "text.txt", tmp_path / "README.md"
    text.write_text("abcdefgh" * 400, encoding="utf-8")
    readme.write_text("<!-- recipe:begin -->\n<!-- recipe:end -->", encoding="utf-8")
    options = RecipeBenchmark(text=text, steps=20, shares=(0.5, 1.0), seeds=1, out=tmp_path / "out", readme=readme)
    main(options)
    made = readme.read_text(encoding="utf-8")
    assert "| tiny Shakespeare by characters | as published | 20 |" in made
    main(replace(options, report_only=True))
    assert readme.read_text(encoding="utf-8") == made


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shares", "0.3", "0.2"], "rising"),
        (["--rates", "0"], "above 0"),
        (["--report-only", "--out", "nowhere"], "no figures"),
        (["--tokens", "nowhere"], "nowhere"),
    ],
)
def test_bad_flags_get_one_clear_line(run, flags, message):
    assert_one_clear_line(run("pretraining/recipe_benchmark.py", *flags), message)
