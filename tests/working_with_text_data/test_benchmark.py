"""The tables of the benchmark are what the committed JSON says; what is timed gives the same ids first."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import assert_one_clear_line
from utils.errors import UserError
from utils.readme_tables import with_block
from working_with_text_data.bytepair_enc import benchmark
from working_with_text_data.bytepair_enc.benchmark import (
    README,
    RESULTS,
    draw,
    nine_tenths,
    ratio,
    require_equal,
    tables,
)

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
    picture = (tmp_path / "benchmark.png").read_bytes()
    (tmp_path / "benchmark.png").unlink()
    done = run(SCRIPT, "--report-only", "--out", tmp_path)  # nothing is measured, so it needs no vocabularies
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "benchmark.png").read_bytes() == picture
    assert json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8")) == report
    assert_one_clear_line(run(SCRIPT, *flags, "--only", "everything"), "is not one of encode, worst")


def test_what_is_missing_is_told_in_one_line(run, tmp_path):
    assert_one_clear_line(run(SCRIPT, "--report-only", "--out", tmp_path), "measure first")
    assert_one_clear_line(run(SCRIPT, "--out", tmp_path), "--vocabularies is needed to measure")


def test_the_plot_shows_every_ratio_of_the_tables(tmp_path, monkeypatch):
    """Each dot is where the committed results say."""
    report = json.loads((RESULTS / "benchmark.json").read_text(encoding="utf-8"))
    figures: list[Any] = []
    monkeypatch.setattr(benchmark, "save_figure", lambda path, figure: figures.append(figure))
    draw(tmp_path / "plot.png", report)
    dots: dict[tuple[int, str], list[float]] = {
        (panel, line.get_label()): [float(x) for x in line.get_xdata()]
        for panel, axes in enumerate(figures[0].axes)
        for line in axes.lines
        if not line.get_label().startswith("_")
    }
    tasks = ("repeated", "steady", "cold", "decode")
    name = report["results"][0]["vocabulary"]
    for panel, peer in enumerate(("tiktoken", "tokenizers")):
        for corpus in ("prose", "code", "languages"):
            rows = [r for r in report["results"] if (r["corpus"], r.get("vocabulary")) == (corpus, name)]
            expected = [float(ratio(r, peer)) for r in rows if r["task"] in tasks]
            assert dots[panel, corpus] == expected
    for peer in ("tokenizers", "rustbpe"):
        expected = [float(ratio(r, peer)) for r in report["results"] if r["task"] == "train"]
        assert dots[2, f"against {peer}"] == expected
    for (panel, _), places in dots.items():
        axes = figures[0].axes[panel]
        low, high = axes.get_xlim()
        assert all(low < x < high for x in places)
        assert axes.get_xlabel() == "times as fast as the peer (log scale)"


def test_the_readme_shows_the_committed_plot():
    assert (RESULTS / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert (RESULTS / "benchmark.png").stat().st_size < 150_000
    assert "](bytepair_enc/results/benchmark.png)" in README.read_text(encoding="utf-8")
