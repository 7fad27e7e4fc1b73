"""Every notebook, executed from a fresh start, says what is committed; and each solution passes its own check."""

from __future__ import annotations

import importlib

import pytest

from utils.notebooks import differences, find_notebooks, folded_solutions
from utils.tracking import REPOSITORY

NOTEBOOKS = find_notebooks()
SOLUTIONS = [(path, name) for path in NOTEBOOKS for name in folded_solutions(path)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_fresh_execution_equals_what_is_committed(path):
    assert differences(path) == ""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_has_four_exercises_with_solutions(path):
    assert len(folded_solutions(path)) >= 4


@pytest.mark.parametrize(("path", "name"), SOLUTIONS, ids=lambda value: getattr(value, "stem", value))
def test_a_solution_passes_its_check(path, name):
    """The check `check_NAME` is in the chapter's `exercises/exNN.py`."""
    folder = ".".join(path.parent.relative_to(REPOSITORY).parts)
    checks = importlib.import_module(f"{folder}.exercises.ex{path.name[:2]}")
    namespace: dict[str, object] = {}
    exec(folded_solutions(path)[name], namespace)
    getattr(checks, f"check_{name}")(namespace[name])
