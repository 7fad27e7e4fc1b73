"""Checks of the chapter's exercises: `exNN.py` belongs to notebook NN. A check says what probably went wrong."""

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
