"""From what is on the screen to what the model is asked, and how: messages and settings, without the web framework.

A conversation on the screen holds more than the model should read: notices, errors, the word that something was
stopped. An answer is known by the `ANSWER` in its metadata, which also keeps its ids, so that it can be looked into
later and goes on exactly where it ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from chat_ui.chat_engine import Answer, Prompt, Wish
from finetuning.instruction.prompt_format import Message
from gpt_model import Sampling
from utils.errors import UserError

ANSWER = "answer"
_MOST_TOKENS = 4096  # of one answer, whatever somebody types into the settings

DEFAULTS: dict[str, Any] = {
    "temperature": 0.7,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "max_new_tokens": 128,
    "seed": "",
    "system_prompt": "",
}
"""What the settings are to begin with; an empty seed is another one each time."""


class Markdown:
    """Prepares an answer, piece by piece, for a page that reads Markdown with directives.

    Chainlit takes a colon with letters behind it, as in `:meth:`, for a directive and shows nothing of it. A backslash
    makes it a colon again; in code, where a backslash would show, a colon is one anyway.
    """

    def __init__(self) -> None:
        self._waiting = ""  # what the next piece may change: a colon, backticks that may become more, a line's end
        self._fence = 0  # backticks that the code began with, in which we are

    def feed(self, piece: str) -> str:
        """What is certain with one more piece."""
        text = self._waiting + piece
        end = re.search(r"(?::|`+|\n\s*)\Z", text)
        self._waiting = end[0] if end else ""
        return self._escaped(text[: len(text) - len(self._waiting)])

    def finish(self) -> str:
        """What still waits when nothing more comes."""
        text, self._waiting = self._waiting, ""
        return text

    def _escaped(self, text: str) -> str:
        parts = []
        for part in re.split(r"(`+|\n\s*\n)", text):
            if part.startswith("`"):
                self._fence = len(part) if not self._fence else 0 if len(part) == self._fence else self._fence
            elif re.fullmatch(r"\n\s*\n", part) and self._fence < 3:
                self._fence = 0  # code within a line ends with its paragraph
            elif not self._fence:
                part = re.sub(r":(?=[A-Za-z])", r"\:", part)
            parts.append(part)
        return "".join(parts)


class OnScreen(Protocol):
    """A message as Chainlit keeps it."""

    @property
    def type(self) -> str:
        """user_message or assistant_message."""

    @property
    def content(self) -> str:
        """Its text."""

    @property
    def metadata(self) -> dict[str, Any] | None:
        """What is kept with it."""


def wish_from(settings: Mapping[str, Any], slide: bool, attempt: int = 0) -> Wish:
    """How to write, from the settings as the page sends them: numbers, numbers as text, or nothing.

    Args:
        slide: see `Wish`.
        attempt: how often this answer was written before; with a seed, each attempt has its own.

    Raises:
        UserError: a value is no number, or out of its range.
    """
    values = {**DEFAULTS, **{name: value for name, value in settings.items() if value is not None}}
    seed = _whole(values, "seed") if str(values["seed"]).strip() else None
    try:
        sampling = Sampling(
            temperature=_number(values, "temperature"),
            top_k=_whole(values, "top_k"),
            top_p=_number(values, "top_p"),
            min_p=_number(values, "min_p"),
            repetition_penalty=_number(values, "repetition_penalty"),
            seed=None if seed is None else seed + attempt,
        )
        return Wish(min(_whole(values, "max_new_tokens"), _MOST_TOKENS), sampling, slide=slide)
    except ValueError as error:
        raise UserError(f"settings: {error}") from None


def _number(values: Mapping[str, Any], name: str) -> float:
    try:
        return float(values[name])
    except (TypeError, ValueError):
        raise UserError(f"settings: {name} must be a number, and is {values[name]!r}") from None


def _whole(values: Mapping[str, Any], name: str) -> int:
    number = _number(values, name)
    if number != number or number in (float("inf"), -float("inf")) or number != int(number):
        raise UserError(f"settings: {name} must be a whole number, and is {values[name]!r}")
    return int(str(values[name]).strip()) if str(values[name]).strip().lstrip("-").isdigit() else int(number)


def conversation(messages: Iterable[OnScreen], system_prompt: str = "") -> list[Message]:
    """The turns that the model is to read: what people wrote and was answered, and what they wrote last.

    A message without an answer was refused, too long perhaps; it would be refused with every later one, too. An answer
    behind another one is where that one went on: they are one turn.
    """
    turns: list[Message] = [{"role": "system", "content": system_prompt}] if system_prompt.strip() else []
    for message in messages:
        if message.type == "user_message":
            if turns and turns[-1]["role"] == "user":
                del turns[-1]
            turns.append({"role": "user", "content": message.content})
        elif is_answer(message):
            text = (message.metadata or {}).get("text", message.content)
            if turns and turns[-1]["role"] == "assistant":
                text = turns.pop()["content"] + text
            turns.append({"role": "assistant", "content": text})
    return turns


def is_answer(message: OnScreen) -> bool:
    """Whether a model wrote it."""
    return bool(message.metadata and ANSWER in message.metadata)


@dataclass(frozen=True)
class Figures:
    """What there is to say about an answer."""

    tokens: int
    prompt_tokens: int
    reused: int
    dropped: int
    seconds_to_first: float | None
    tokens_per_second: float | None
    finish: str

    def short(self) -> str:
        """A few words, to stand under it."""
        speed = f" · {self.tokens_per_second:,.0f} tokens/s" if self.tokens_per_second else ""
        return f"{_count(self.tokens, 'token')}{speed}{_ENDED[self.finish]}"

    def long(self) -> str:
        """All of them."""
        reused = f", {self.reused:,} of them still in the cache" if self.reused else ""
        dropped = f" The {_count(self.dropped, 'oldest message')} did not fit." if self.dropped else ""
        first = f"; the first after {self.seconds_to_first:.2f} s" if self.seconds_to_first is not None else ""
        read, wrote = _count(self.prompt_tokens, "token"), _count(self.tokens, "token")
        return f"Read {read}{reused}. Wrote {wrote}{first}.{dropped}"


_ENDED = {
    "stop": "",
    "length": " · limit reached",
    "context": " · context full",
    "cancelled": " · stopped",
    "failed": " · failed",
}


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def figures_of(answer: Answer) -> Figures:
    """The figures of an answer that has ended."""
    return Figures(
        tokens=len(answer.ids),
        prompt_tokens=len(answer.prompt.ids),
        reused=answer.n_reused,
        dropped=answer.prompt.n_dropped,
        seconds_to_first=answer.seconds_to_first,
        tokens_per_second=answer.tokens_per_second,
        finish=answer.finish or "failed",
    )


def metadata_of(answer: Answer, text: str, source: str, attempt: int) -> dict[str, Any]:
    """What an answer's message keeps: figures, its text and ids, and which model wrote it."""
    return {
        ANSWER: vars(figures_of(answer)),
        "text": text,
        "model": source,
        "attempt": attempt,
        "prompt_ids": answer.prompt.ids,
        "ids": answer.ids,
    }


def goes_on(metadata: Mapping[str, Any], context_length: int) -> Prompt:
    """The prompt for more of an answer: all that was read and written, its end if that is too long.

    Raises:
        UserError: there is nothing to go on from.
    """
    ids = [*metadata.get("prompt_ids", []), *metadata.get("ids", [])]
    if not ids:
        raise UserError("this answer is too old to go on: ask again")
    return Prompt(ids[-max(context_length // 2, 1) :] if len(ids) >= context_length else ids)
