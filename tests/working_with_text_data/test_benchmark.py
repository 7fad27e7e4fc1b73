"""The tables of the benchmark are what the committed JSON says; what is timed gives the same ids first."""

from __future__ import annotations

import json

import pytest

from tests.conftest import assert_one_clear_line
from utils.errors import UserError
from utils.readme_tables import with_block
from working_with_text_data.bytepair_enc.benchmark import README, RESULTS, nine_tenths, ratio, require_equal, tables

SCRIPT = "working_with_text_data/bytepair_enc/benchmark.py"


def test_the_readme_holds_the_tables_of_the_committed_results():
    report = json.loads((RESULTS / "benchmark.json").read_text(encoding="utf-8"))
    text = README.read_text(encoding="utf-8")
    assert with_block(text, "benchmark", tables(report)) == text
    assert not report["commit"].endswith("+")  # measured on code that is committed


def test_a_ratio_is_of_medians():
    row = {"seconds": {"ours": [1.0, 2.0, 30.0], "tiktoken": [5.0, 4.0, 1.0]}}
    assert ratio(row, "tiktoken") == "2.00"
    assert ratio(row, "rustbpe") == ""


def test_nothing_is_measured_that_differs():
    require_equal([1], [1], "ids")
    with pytest.raises(UserError, match="ids differ: nothing was measured"):
        require_equal([1], [2], "ids")


def test_nine_tenths_are_all_of_it():
    text = "one two three four five six seven eight nine ten "
    seen, last = nine_tenths([text, text])
    assert seen[0] + last[0] == text * 2
    assert 0 < len(last[0]) <= len(text * 2) / 10 + 1


def test_it_runs_at_a_small_size(run, data_folder, tmp_path):
    flags = ["--vocabularies", data_folder / "vocab", "--megabytes", 0.05, "--repeats", 1, "--out", tmp_path]
    done = run(SCRIPT, *flags, "--only", "encode", "--names", "gpt2")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    assert {r["task"] for r in report["results"]} == {"repeated", "cold", "steady", "decode", "ladder"}
    assert "× tiktoken" in tables(report | {"memory": []})
    assert_one_clear_line(run(SCRIPT, *flags, "--only", "everything"), "is not one of encode, worst")
