"""The settings of a conversation, as the page shows them; `conversation.wish_from` reads what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chainlit.input_widget import InputWidget, NumberInput, Slider, TextInput

from chat_ui.conversation import DEFAULTS

_SLIDERS = [  # id, label, smallest, largest, step, what it does
    (
        "temperature",
        "Temperature",
        0,
        2,
        0.05,
        "Below 1 is safer, above 1 wilder; 0 takes the most probable token.",
    ),
    ("top_p", "Top-p", 0.05, 1, 0.05, "Only the fewest tokens that have this probability together."),
    ("min_p", "Min-p", 0, 1, 0.01, "Only tokens at least this fraction as probable as the best."),
    ("repetition_penalty", "Repetition penalty", 1, 2, 0.05, "Above 1, tokens of the text become less probable."),
]
_NUMBERS = [
    ("top_k", "Top-k", "Only the k most probable tokens; 0 for all."),
    ("max_new_tokens", "Tokens at most", "Of one answer."),
]
_SEED = "A whole number: with the same one the same text comes again. Empty: another each time."


def widgets(answers: bool, values: Mapping[str, Any]) -> list[InputWidget]:
    """What the page shows.

    Args:
        answers: whether the model knows conversations, and so a system prompt.
        values: what is set already, by the names of `DEFAULTS`.
    """
    now = {**DEFAULTS, **values}
    shown: list[InputWidget] = [
        Slider(id=name, label=label, initial=float(now[name]), min=low, max=high, step=step, description=about)
        for name, label, low, high, step, about in _SLIDERS
    ]
    shown += [
        NumberInput(id=name, label=label, initial=now[name], description=about) for name, label, about in _NUMBERS
    ]
    shown.append(TextInput(id="seed", label="Seed", initial=str(now["seed"]), description=_SEED))
    if answers:
        prompt, about = str(now["system_prompt"]), "Stands before the conversation."
        shown.append(
            TextInput(id="system_prompt", label="System prompt", initial=prompt, multiline=True, description=about)
        )
    return shown
