"""The table of evaluations: what the committed JSON files say, and what an evaluation becomes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from finetuning.instruction.report_evaluation import README, RESULTS, ReportEvaluation, main, table
from tests.conftest import assert_one_clear_line
from utils.errors import UserError
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


WHOLE: dict[str, Any] = {"figures": {"base": {"loss": 3.25}}, "made_by": {"command": "x"}, "answers": [{}]}


@pytest.mark.parametrize(
    "wrong",
    [{}, [], 3, {"figures": WHOLE["figures"], "answers": []}, WHOLE | {"figures": []}, WHOLE | {"figures": {}},
     WHOLE | {"figures": {"base": None}}, WHOLE | {"figures": {"base": {"loss": None}}}, WHOLE | {"answers": None}],
)  # fmt: skip
def test_what_is_no_evaluation_is_refused_before_anything_is_written(tmp_path, wrong):
    readme, out = tmp_path / "README.md", tmp_path / "out"
    readme.write_text("<!-- instructions:begin -->\n<!-- instructions:end -->", encoding="utf-8")
    before = readme.read_text(encoding="utf-8")
    (tmp_path / "results.json").write_text(json.dumps(wrong), encoding="utf-8")
    options = ReportEvaluation(tmp_path, "sums", out, readme)
    with pytest.raises(UserError, match=r"results\.json is no whole evaluation: run .*evaluate\.py"):
        main(options)
    assert not out.exists()
    (tmp_path / "results.json").write_text(json.dumps(WHOLE), encoding="utf-8")
    out.mkdir()
    (out / "other.json").write_text(json.dumps(wrong), encoding="utf-8")
    for report_only in (False, True):
        with pytest.raises(UserError, match=r"other\.json holds no figures for this table"):
            main(replace(options, report_only=report_only))
    assert [path.name for path in out.iterdir()] == ["other.json"]
    assert readme.read_text(encoding="utf-8") == before


def test_bad_flags_get_one_clear_line(run, tmp_path):
    assert_one_clear_line(run(SCRIPT, "--evaluation", str(tmp_path)), "evaluate.py")
    assert_one_clear_line(run(SCRIPT, "--evaluation", str(tmp_path), "--name", "a/b"), "without a folder")
    with pytest.raises(UserError, match="without a folder"):
        main(ReportEvaluation(tmp_path, ".."))
