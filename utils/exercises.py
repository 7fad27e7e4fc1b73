"""Exercises in notebooks: how a check meets an answer.

The exercises of notebook NN have their checks in `<chapter>/exercises/exNN.py`, one `check_NAME` each. A check
raises an AssertionError whose message names the likely mistake, and prints a line when the answer is right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def attempt(check: Callable[[Any], None], answer: Any) -> None:
    """Runs a check and prints what is still missing, so that a notebook with open exercises runs to its end."""
    try:
        check(answer)
    except Exception as error:  # a learner's function may raise anything
        what = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        print(f"not solved yet: {what}")


def require_an_answer(value: object) -> None:
    """Raises the AssertionError that tells a stub that it is one."""
    assert value is not None and value is not ..., "your function returns nothing: write its body, with a `return`"
