"""The benchmark of generation measures what it says, or says that it does not."""

from __future__ import annotations

import json

import pytest
import torch

from gpt_model import GPT
from gpt_model.generation_benchmark import PEER, agreement, check_ids, contestants, tables, with_rounded_weights
from gpt_model.generation_benchmark import GenerationBenchmark as Benchmark
from gpt_model.gpt import GPT_TOY
from gpt_model.weight_only import store_weights
from tests.conftest import assert_one_clear_line
from tests.gpt_model.test_weight_only import STORAGES
from utils.errors import UserError
from utils.readme_tables import with_block
from utils.tracking import REPOSITORY

SCRIPT = "gpt_model/generation_benchmark.py"
QUICK = Benchmark(quick=True)


def test_a_try_measures_everyone_and_fills_the_tables(run, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- generation:begin -->\n<!-- generation:end -->\nafter\n", encoding="utf-8")
    done = run(SCRIPT, "--quick", "--out", tmp_path, "--readme", readme)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "generation.json").read_text(encoding="utf-8"))
    assert [row["prompt"] for row in report["results"]] == list(QUICK.prompts)
    for row in report["results"]:
        assert list(row["each"]) == [PEER, "as it is", "float32", "bfloat16", "int8"]
        assert all(len(runs) == QUICK.repeats for runs in row["each"].values())
        assert set(row["agreed"].values()) == {QUICK.new_tokens}
        assert row["bytes"]["as it is"] > row["bytes"]["bfloat16"] > row["bytes"]["int8"]
    text = readme.read_text(encoding="utf-8")
    assert text.count(f"| {PEER} |") == len(QUICK.prompts)
    assert text.startswith("before\n") and text.endswith("after\n")


def test_the_bytes_of_a_step_are_weights_and_cache():
    torch.manual_seed(0)
    model = GPT(GPT_TOY).eval()
    sizes = {name: weights for name, (_, weights) in contestants(model, QUICK).items()}
    assert sizes[PEER] == sizes["as it is"] == 4 * model.n_parameters
    cache = model.make_cache(1, 30)
    assert 4 * model.cache_bytes(30, 1) == cache.nbytes  # the factor by which `measure_prompt` multiplies


def test_nothing_is_timed_that_writes_something_else():
    torch.manual_seed(0)
    model = GPT(GPT_TOY).eval()
    made = contestants(model, QUICK)
    prompt = list(range(20))
    assert set(check_ids(made, model, prompt, 6).values()) == {6}
    right, size = made["int8"]
    wrong = {**made, "int8": (lambda prompt, n: [i ^ 1 for i in right(prompt, n)], size)}
    with pytest.raises(UserError, match="int8 writes other ids"):
        check_ids(wrong, model, prompt, 6)


def test_rounded_weights_are_those_that_are_stored():
    torch.manual_seed(0)
    model = GPT(GPT_TOY).eval()
    ids = torch.randint(0, 256, (1, 20))
    with torch.no_grad():
        for storage in STORAGES[1:]:
            rounded, stored = with_rounded_weights(model, storage), store_weights(model, storage)
            torch.testing.assert_close(rounded(ids), stored(ids), atol=1e-5, rtol=1e-5)
            assert not torch.equal(rounded(ids), model(ids))


def test_agreement_ends_at_the_first_difference():
    assert agreement([1, 2, 3], [1, 2, 3]) == 3
    assert agreement([1, 9, 3], [1, 2, 3]) == 1


def test_mistakes_are_one_clear_line(run, tmp_path):
    assert_one_clear_line(run(SCRIPT, "--repeats", 0), "--repeats must be at least 1")
    assert_one_clear_line(run(SCRIPT, "--prompts", 1000, "--new-tokens", 100), "1100 tokens", "1024")
    assert_one_clear_line(run(SCRIPT, "--report-only", "--out", tmp_path), "generation.json")
    (tmp_path / "README.md").write_text("no place for tables\n", encoding="utf-8")
    done = run(SCRIPT, "--quick", "--out", tmp_path, "--readme", tmp_path / "README.md")
    assert_one_clear_line(done, "<!-- generation:begin -->")


def test_the_readme_says_what_was_measured():
    folder = REPOSITORY / "gpt_model"
    report = json.loads((folder / "results" / "generation.json").read_text(encoding="utf-8"))
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert with_block(text, "generation", tables(report)) == text
