"""The benchmark of throughput: that both contestants do the same work, its search, and a run of seconds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from pretraining.throughput_benchmark import (
    README,
    RESULTS,
    ThroughputBenchmark,
    baseline_stepper,
    largest_that,
    main,
    our_loop,
    our_model,
    products_of,
    recipe_of,
    table,
)
from tests.conftest import assert_one_clear_line
from utils.readme_tables import read_results, with_block

TINY = ThroughputBenchmark(
    n_layer=1, context_length=16, batch_size=2, seconds=0.01, formats=("bfloat16-weights",), compiled=False
)


def test_both_learn_from_the_same_batch_in_models_of_one_size():
    """Both start near ln(vocabulary) and fall by about as much: neither leaves out a part of the step."""
    device = torch.device("cpu")
    step = baseline_stepper(TINY, "float32", False, device)
    theirs = [step() for _ in range(3)]
    recipe = replace(recipe_of(TINY, "float32", False), warmup=0.0)
    loop = our_loop(TINY, recipe, device)
    ours = []
    for _ in range(3):
        assert loop.take_step() is None
        ours.append(loop.watch.loss or math.nan)
    loop.read.close()
    assert abs(theirs[0] - 10.825) < 0.4 > abs(ours[0] - 10.825)
    assert theirs[2] < theirs[0] - 0.2
    assert ours[2] < ours[0] - 0.02  # a running mean, which keeps nine tenths
    theirs_parameters, ours_parameters = 50304 * 768 + 16 * 768, 50257 * 768 + 16 * 768
    blocks = our_model(loop).n_parameters - ours_parameters
    assert blocks == 12 * 768**2 + 3 * 768  # four matrices of attention's and eight of the MLP's size, three norms
    assert theirs_parameters - ours_parameters == 47 * 768


@pytest.mark.parametrize("memory", [0, 1, 2, 5, 16, 37, 100, 1000])
def test_the_largest_batch_is_found(memory):
    asked = []

    def fits_in(size):
        asked.append(size)
        return size <= memory

    found = largest_that(fits_in)
    assert found <= memory
    assert memory - found <= max(0, memory // 16)
    assert len(asked) <= 20


def test_only_bfloat16_weights_keep_weights_in_bfloat16():
    """And nanoGPT beside them multiplies in bfloat16."""
    found = [(products_of(n), recipe_of(TINY, n, False)) for n in ("float32", "bfloat16", "bfloat16-weights")]
    assert [p for p, _ in found] == [recipe.precision for _, recipe in found] == ["float32", "bfloat16", "bfloat16"]
    assert [recipe.weights for _, recipe in found] == ["float32", "float32", "bfloat16"]
    loop = our_loop(TINY, found[2][1], torch.device("cpu"))
    assert loop.take_step() is None
    assert len(loop.halves.copies) == 2 + 4  # embeddings, and the four matrices of its block
    loop.read.close()


def test_from_a_run_to_a_table(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- throughput:begin -->\n<!-- throughput:end -->", encoding="utf-8")
    threads = torch.get_num_threads()
    main(replace(TINY, out=tmp_path / "out", readme=readme, threads=1))
    torch.set_num_threads(threads)
    made = readme.read_text(encoding="utf-8")
    assert "2 × 16 | bfloat16-weights |" in made
    (row,) = read_results(tmp_path / "out")[0]["rows"]
    medians = {name: sorted(runs)[len(runs) // 2] for name, runs in row["seconds"].items() if len(runs) % 2}
    if len(medians) == 2:
        assert row["ratio"] == pytest.approx(medians["nanoGPT"] / medians["ours"])
    assert row["tokens_per_second"]["ours"] / row["tokens_per_second"]["nanoGPT"] == pytest.approx(row["ratio"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--largest"], "use CUDA"),
        (["--no-eager", "--no-compiled"], "nothing to measure"),
        (["--threads", "0"], "at least 1"),
        (["--readme", "LICENSE"], "needs the lines"),
        (["--out", "nowhere", "--report-only"], "no figures"),
    ],
)
def test_bad_flags_get_one_clear_line(run, flags, message):
    assert_one_clear_line(run("pretraining/throughput_benchmark.py", *flags), message)


def test_the_readme_holds_the_table_of_the_committed_results():
    text = README.read_text(encoding="utf-8")
    assert with_block(text, "throughput", table(read_results(RESULTS))) == text
