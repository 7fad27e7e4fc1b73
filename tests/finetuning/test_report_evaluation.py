"""The table of evaluations: what the committed JSON files say, and what an evaluation becomes."""

from __future__ import annotations

import json

from finetuning.instruction.report_evaluation import README, RESULTS, ReportEvaluation, main, table
from tests.conftest import assert_one_clear_line
from utils.readme_tables import read_results, with_block

SCRIPT = "finetuning/instruction/report_evaluation.py"


def test_the_readme_holds_the_table_of_the_committed_results():
    text = README.read_text(encoding="utf-8")
    assert with_block(text, "instructions", table(read_results(RESULTS))) == text


def test_an_evaluation_becomes_rows_and_its_answers_stay_behind(tmp_path):
    before, after = {"loss": 3.25, "exact_match": 0.0}, {"loss": 2.5, "exact_match": 0.125, "win_rate": 0.75}
    found = {"figures": {"base": before, "tuned": after}, "made_by": {"command": "x"}, "answers": [{}, {}, {}]}
    (tmp_path / "results.json").write_text(json.dumps(found), encoding="utf-8")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- instructions:begin -->\n<!-- instructions:end -->", encoding="utf-8")
    options = ReportEvaluation(tmp_path, "sums", tmp_path / "out", readme)
    main(options)
    made = readme.read_text(encoding="utf-8")
    assert "| sums | `base` | 3 | 3.2500 | 0.0% |  |" in made
    assert "| sums | `tuned` | 3 | 2.5000 | 12.5% | 75.0% |" in made
    assert "answers" not in json.loads((tmp_path / "out" / "sums.json").read_text(encoding="utf-8"))


def test_bad_flags_get_one_clear_line(run, tmp_path):
    assert_one_clear_line(run(SCRIPT, "--evaluation", str(tmp_path)), "evaluate.py")
    assert_one_clear_line(run(SCRIPT, "--evaluation", str(tmp_path), "--name", "a/b"), "without a folder")
