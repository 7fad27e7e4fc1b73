"""The tables in the READMEs are what the committed JSON files say, to the letter."""

from __future__ import annotations

import json

import pytest

from pretraining.report_run import BLOCK, READMES, RESULTS, ReportRun, main, table
from tests.conftest import assert_one_clear_line
from utils.errors import UserError
from utils.readme_tables import with_block

METRICS = {
    "parameters": 2_500_000,
    "tokens": 4_000_000,
    "validation_loss": 3.1234,
    "bits_per_byte": 1.2345,
    "tokens_per_second": 12_345.6,
    "minutes": 5.06,
    "finished": True,
}


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_readmes_hold_the_table_of_the_committed_results(readme):
    text = readme.read_text(encoding="utf-8")
    assert with_block(text, BLOCK, table(RESULTS)) == text


def make_run(run):
    (run / "model").mkdir(parents=True)
    made_by = {"metrics": METRICS, "device": "cpu, 2 threads, float32"}
    (run / "model" / "scratchbook.json").write_text(json.dumps(made_by), encoding="utf-8")
    rows = [{"step": 1, "loss": 2.0}, {"step": 1, "validation_loss": 2.1}]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (run / "samples.txt").write_text("--- step 0, x\nfirst\n\n--- step 1, y\nsaid for $5 and $6\n", encoding="utf-8")
    return run


def test_a_run_becomes_a_row_and_a_picture(tmp_path):
    main(ReportRun(make_run(tmp_path / "run"), "tiny", tmp_path / "results"))
    assert (tmp_path / "results" / "tiny.png").read_bytes().startswith(b"\x89PNG")
    row = table(tmp_path / "results").splitlines()[-1]
    assert row == "| tiny | 2.5M | 4.0M | 3.123 | 1.234 | 12,346 | 5.1 | cpu, 2 threads, float32 |"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("samples.txt", "", "holds no sample"),
        ("samples.txt", "something else\n", "holds no sample"),
        ("samples.txt", "--- step 3, cut sh", "holds no sample"),
        ("metrics.jsonl", "", "no losses to draw"),
        ("model/scratchbook.json", "[]", "has no metrics"),
        ("model/scratchbook.json", "{}", "has no metrics"),
        ("model/scratchbook.json", '{"metrics": 5}', "has no metrics"),
        ("model/scratchbook.json", '{"metrics": {"finished": true}}', "does not say the run's parameters"),
        ("model/scratchbook.json", json.dumps({"metrics": METRICS}), "does not say the run's device"),
        ("model/scratchbook.json", json.dumps({"metrics": METRICS | {"tokens": "4"}}), "does not say the run's tokens"),
    ],
)
def test_a_damaged_run_gets_one_line_and_no_report(tmp_path, file, content, message):
    run = make_run(tmp_path / "run")
    (run / file).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        main(ReportRun(run, "tiny", tmp_path / "results"))
    assert not (tmp_path / "results").exists()


def test_a_damaged_result_gets_one_line(tmp_path):
    (tmp_path / "benchmark.json").write_text('[{"metrics": 1}]', encoding="utf-8")
    assert len(table(tmp_path).splitlines()) == 2
    (tmp_path / "tiny.json").write_text('{"metrics": {"finished": true}}', encoding="utf-8")
    with pytest.raises(UserError, match=r"tiny\.json does not say the run's parameters"):
        table(tmp_path)


def test_an_unfinished_run_has_no_figures(run, tmp_path):
    done = run("pretraining/report_run.py", "--run", tmp_path, "--out", tmp_path / "out")
    assert_one_clear_line(done, "is not a finished run")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "scratchbook.json").write_text('{"metrics": {"interrupted": true}}', encoding="utf-8")
    done = run("pretraining/report_run.py", "--run", tmp_path, "--out", tmp_path / "out")
    assert_one_clear_line(done, "did not come to its end")
    for name in ("", "../evil", "a/b"):
        done = run("pretraining/report_run.py", "--run", tmp_path, "--out", tmp_path / "out", "--name", name)
        assert_one_clear_line(done, "must be the name of a file")
    assert not (tmp_path / "out").exists()
