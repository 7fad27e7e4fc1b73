"""The benchmark runs, keeps its figures, and makes its tables from them; nothing is timed that is wrong."""

from __future__ import annotations

import json

import pytest
import torch

from attention_mechanisms import MultiHeadLatentAttention, Rotary
from attention_mechanisms.benchmark import (
    Benchmark,
    NaiveLatentAttention,
    kinds,
    main,
    prefilled,
    require_correct,
    tables,
)
from tests.conftest import assert_one_clear_line
from utils.context_report import growth, ratio
from utils.errors import UserError
from utils.readme_tables import with_block
from utils.tracking import REPOSITORY

SCRIPT = "attention_mechanisms/benchmark.py"
MARKERS = "before\n<!-- attention:begin -->\n<!-- attention:end -->\nafter\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmark")


def test_it_measures_writes_and_reports_again(run, folder):
    readme = folder / "README.md"
    readme.write_text(MARKERS, encoding="utf-8")
    flags = ["--out", folder, "--readme", readme, "--device", "cpu"]
    done = run(SCRIPT, *flags, "--quick")
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))
    names = list(kinds(64, 16))
    assert sorted((row["task"], row["dtype"], row["context"]) for row in report["results"]) == [
        (task, dtype, context)
        for task in ("alone", "decode", "in a row", "prefill", "prefill alone")
        for dtype in ("bfloat16", "float32")
        for context in (32, 64)
    ]
    for row in report["results"]:
        assert list(row["seconds"]) == (names if row["task"] in ("decode", "alone") else prefilled(names))
        assert all(len(runs) == 3 and min(runs) > 0 for runs in row["seconds"].values())
        if not row["task"].startswith("prefill"):  # every window is full at 32 tokens: the formula is exact
            assert row["cache_bytes"] == row["formula_bytes"]
    assert {"commit", "versions", "machine", "command"} <= report.keys()
    assert report["machine"]["threads"] == 1

    text = readme.read_text(encoding="utf-8")
    assert text == MARKERS.replace("begin -->\n", f"begin -->\n{tables(report)}\n")
    for words in (
        "| decode, float32, ms | 32 | 64 |",
        "| prefill, bfloat16, ms | 32 | 64 | 32 → 64 |",
        "by the formula",
    ):
        assert words in text
    picture = folder / "benchmark.png"
    assert picture.read_bytes().startswith(b"\x89PNG")

    written = (folder / "benchmark.json").read_bytes()
    readme.write_text(MARKERS, encoding="utf-8")
    picture.unlink()
    done = run(SCRIPT, *flags, "--report-only")
    assert done.returncode == 0, done.stderr
    assert readme.read_text(encoding="utf-8") == text
    assert picture.is_file()
    assert (folder / "benchmark.json").read_bytes() == written


def test_mistakes_are_one_clear_line(run, tmp_path):
    (tmp_path / "README.md").write_text("no place for tables\n", encoding="utf-8")
    flags = ["--quick", "--out", tmp_path]
    assert_one_clear_line(run(SCRIPT, *flags, "--readme", tmp_path / "README.md"), "<!-- attention:begin -->")
    assert not (tmp_path / "benchmark.json").exists()  # said before the minutes of measuring, not after
    with pytest.raises(FileNotFoundError, match=r"benchmark\.json"):
        main(Benchmark(report_only=True, out=tmp_path))


def test_the_naive_latent_kind_is_the_same_attention():
    torch.manual_seed(0)
    absorbed = MultiHeadLatentAttention(24, 3, 12, rotary=Rotary(4, 9))
    naive = NaiveLatentAttention(24, 3, 12, rotary=Rotary(4, 9))
    naive.load_state_dict(absorbed.state_dict())
    x = torch.randn(2, 9, 24)
    caches = [layer.make_cache(2, 9) for layer in (absorbed, naive)]
    for i in range(9):
        y, y_naive = absorbed(x[:, i : i + 1], caches[0]), naive(x[:, i : i + 1], caches[1])
        torch.testing.assert_close(y_naive, y, rtol=1e-5, atol=1e-6)


def test_nothing_is_measured_that_differs():
    class Wrong(NaiveLatentAttention):
        def forward(self, x, cache=None, mask=None, values=None):
            return super().forward(x, cache, mask, values) * 1.01

    with pytest.raises(UserError, match=r"forward of wrong in float32 is .* away from reference: nothing was measured"):
        require_correct("wrong", Wrong(768, 12, 8), 8, "float32", torch.device("cpu"))


def test_ratios_and_growth_are_of_medians():
    before = {"context": 1024, "seconds": {"multi-head": [4.0, 1.0, 90.0], "other": [2.0, 2.0, 50.0]}}
    after = {"context": 2048, "seconds": {"multi-head": [16.0]}}  # the other was left out
    assert ratio(before, "other", "multi-head") == 2.0
    assert ratio(after, "other", "multi-head") is None
    assert growth([before, after]) == {"1k → 2k": {"multi-head": "4.00"}}


def test_flags_are_checked():
    for wrong in ({"threads": 0}, {"repeats": 0}, {"window": 0}, {"dtypes": ()}, {"contexts": ()}):
        with pytest.raises(UserError, match=f"--{next(iter(wrong))}"):
            Benchmark(**wrong).check()


def test_a_try_does_not_replace_what_was_measured(monkeypatch, tmp_path):
    monkeypatch.setattr("utils.context_benchmark.REPOSITORY", tmp_path)
    (tmp_path / "runs" / "quick" / "attention_mechanisms").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"quick.attention_mechanisms.benchmark\.json"):
        main(Benchmark(quick=True, report_only=True))


def test_the_readme_says_what_was_measured():
    folder = REPOSITORY / "attention_mechanisms"
    report = json.loads((folder / "results" / "benchmark.json").read_text(encoding="utf-8"))
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert with_block(text, "attention", tables(report)) == text
