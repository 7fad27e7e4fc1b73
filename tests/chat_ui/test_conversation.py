"""What of the screen the model reads, how it is asked to write, and what the page is given to show."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_ui.conversation import Figures, Markdown, conversation, goes_on, wish_from
from utils.errors import UserError


@dataclass
class Shown:
    """A message on the screen."""

    type: str
    content: str
    metadata: dict[str, Any] | None = field(default_factory=dict)


def person(text):
    return Shown("user_message", text)


def answer(text, shown=None):
    return Shown("assistant_message", shown or text, {"answer": {}, "text": text})


def test_notices_are_not_part_of_the_conversation():
    shown = [
        Shown("assistant_message", "a notice", None),
        person("one"),
        answer("1"),
        Shown("assistant_message", "Task manually stopped."),
        person("two"),
    ]
    assert conversation(shown, "Be brief.") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two"},
    ]
    assert conversation(shown, "  ")[0]["role"] == "user"


def test_a_message_that_was_refused_does_not_come_again():
    shown = [person("x" * 10**6), Shown("assistant_message", "too long"), person("two"), answer("2"), person("three")]
    assert [turn["content"] for turn in conversation(shown)] == ["two", "2", "three"]


def test_an_answer_that_went_on_is_one_turn():
    shown = [person("one"), answer("1, "), Shown("assistant_message", "a notice"), answer("2"), person("two")]
    assert [(turn["role"], turn["content"]) for turn in conversation(shown)] == [
        ("user", "one"),
        ("assistant", "1, 2"),
        ("user", "two"),
    ]


def test_the_model_reads_what_it_wrote_and_not_what_the_page_shows():
    assert conversation([person("q"), answer("a:b", "a\\:b"), person("r")])[1]["content"] == "a:b"


def test_settings_become_a_wish():
    wish = wish_from(
        {"temperature": "0.5", "top_k": 7.0, "seed": " 12 ", "max_new_tokens": "9", "top_p": None, "unknown": 1},
        slide=True,
        attempt=2,
    )
    assert (wish.sampling.temperature, wish.sampling.top_k, wish.sampling.top_p) == (0.5, 7, 1.0)
    assert (wish.sampling.seed, wish.max_new_tokens, wish.slide) == (14, 9, True)
    assert wish_from({}, False).sampling.seed is None
    assert wish_from({"seed": 2**62 + 1}, False).sampling.seed == 2**62 + 1  # not through a float
    assert wish_from({"max_new_tokens": 10**9}, False).max_new_tokens == 4096


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": "warm"}, "temperature must be a number, and is 'warm'"),
        ({"temperature": -1}, "temperature must be 0 or at least 0.001"),
        ({"temperature": "nan"}, "temperature must be"),
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"top_k": "inf"}, "top_k must be a whole number"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"seed": "seven"}, "seed must be a number"),
        ({"seed": -3}, "seed must be from 0"),
        ({"repetition_penalty": []}, "repetition_penalty must be a number"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        wish_from(settings, False)


def through_markdown(pieces):
    markdown = Markdown()
    return "".join([markdown.feed(piece) for piece in pieces]) + markdown.finish()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see :meth:`foo` and a:b", "see \\:meth:`foo` and a\\:b"),
        ("at 12:30, yes: no", "at 12:30, yes: no"),
        ("`a:b` a:b", "`a:b` a\\:b"),
        ("``x`a:b`` a:b", "``x`a:b`` a\\:b"),
        ("```\na:b\n\n`c:d\n```\na:b", "```\na:b\n\n`c:d\n```\na\\:b"),
        ("an open `a:b\n\na:b", "an open `a:b\n\na\\:b"),
        ("ends with:", "ends with:"),
        ("::note", ":\\:note"),
    ],
)
def test_a_colon_stays_a_colon(text, shown):
    assert through_markdown([text]) == shown


@given(st.lists(st.text(alphabet="ab:`\n ", max_size=6), max_size=8))
def test_however_an_answer_is_cut_the_page_shows_the_same(pieces):
    whole = "".join(pieces)
    shown = through_markdown(pieces)
    assert shown.replace("\\:", ":") == whole
    assert shown == through_markdown(list(whole))


def test_figures_in_words():
    figures = Figures(1, 20, 7, 2, 0.25, None, "stop")
    assert figures.short() == "1 token"
    assert figures.long() == (
        "Read 20 tokens, 7 of them still in the cache. Wrote 1 token; the first after 0.25 s. "
        "The 2 oldest messages did not fit."
    )
    assert Figures(2000, 1, 0, 0, 0.1, 1234.5, "length").short() == "2,000 tokens · 1,234 tokens/s · limit reached"
    assert Figures(0, 1, 0, 0, None, None, "cancelled").long() == "Read 1 token. Wrote 0 tokens."


def test_an_answer_goes_on_from_all_that_was_read_and_written():
    assert goes_on({"prompt_ids": [1, 2], "ids": [3]}, 10).ids == [1, 2, 3]
    assert goes_on({"prompt_ids": list(range(8)), "ids": [8, 9]}, 10).ids == [5, 6, 7, 8, 9]
    with pytest.raises(UserError, match="ask again"):
        goes_on({}, 10)
