"""What to begin a conversation with: questions that the model has learned, or the beginning of a text."""

from __future__ import annotations

from pathlib import Path

from chat_ui.models import Choice
from utils.files import read_json

_N = 4
_LONGEST = 60  # characters of a label
_BEGINNINGS = ["Once upon a time", "The capital of France is", "In the beginning", "def fibonacci(n):"]
_OF_PYTHON = ["The assert statement", "Return a list of", "If the file does not exist,", "class"]
_QUESTIONS = [
    "What can you do?",
    "Tell me a short story.",
    "Explain what a list is.",
    "Write a sentence about the sea.",
]


def starters(choice: Choice) -> list[tuple[str, str]]:
    """Labels and messages that suit a model: those that its run kept, if it did."""
    folder = Path(choice.source)
    if choice.answers:
        return [_labelled(text) for text in _kept_questions(folder) or _QUESTIONS]
    return [_labelled(text) for text in (_OF_PYTHON if _read_python_docs(folder) else _BEGINNINGS)]


def _labelled(text: str) -> tuple[str, str]:
    line = " ".join(text.split())
    return (line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"), text


def _kept_questions(folder: Path) -> list[str]:
    """Questions that the training run beside a model kept: three that it learned, and one that it never saw."""
    for run in (folder.parent, folder.parent.parent / "instruct"):
        try:
            kept = read_json(run / "questions.json")
            by_side = {side: [k["messages"][-1]["content"] for k in kept if k["side"] == side] for side in _SIDES}
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            continue
        return [*by_side["trained"][: _N - 1], *by_side["held out"][:1]]
    return []


_SIDES = ("trained", "held out")


def _read_python_docs(folder: Path) -> bool:
    """Whether a model was trained on the embedded corpus."""
    try:
        return "python-docs" in (folder / "scratchbook.json").read_text(encoding="utf-8")
    except OSError:
        return False
