"""Turns alternate, tables are what the figures say."""

from __future__ import annotations

import pytest

from utils.benchmarking import describe_machine, median, time_by_turns
from utils.readme_tables import markdown_table, with_block, write_block


def test_contestants_run_by_turns_each_prepared():
    order: list[str] = []
    seconds = time_by_turns(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        repeats=3,
        prepare={"b": lambda: order.append("prepare b")},
    )
    assert order == ["a", "prepare b", "b"] * 3
    assert {name: len(runs) for name, runs in seconds.items()} == {"a": 3, "b": 3}
    assert all(run >= 0 for runs in seconds.values() for run in runs)
    assert median({"a": [3.0, 1.0, 2.0]}) == {"a": 2.0}
    assert describe_machine()["cores"] >= 1


def test_a_table():
    assert markdown_table(["a", "b"], [["1", "2"]], "lr") == "| a | b |\n| --- | ---: |\n| 1 | 2 |"


def test_a_block_is_replaced_and_nothing_else(tmp_path):
    readme = "before\n<!-- x:begin -->\nold\n<!-- x:end -->\nafter \\1\n"
    expected = "before\n<!-- x:begin -->\nnew \\1\n<!-- x:end -->\nafter \\1\n"
    assert with_block(readme, "x", "new \\1") == expected
    (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    write_block(tmp_path / "README.md", "x", "new \\1")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == expected
    with pytest.raises(ValueError, match="markers of 'y'"):
        with_block(readme, "y", "")
