"""The checks of notebook 03's exercises: right answers pass, and each likely mistake meets its message."""

from __future__ import annotations

import pytest

from working_with_text_data.exercises import ex03


def frame(tokenizer, typed):
    return [
        tokenizer.special_tokens["<|user|>"],
        *tokenizer.encode_ordinary(typed),
        tokenizer.special_tokens["<|assistant|>"],
    ]


def unused(tokenizer, texts):
    used = {i for text in texts for i in tokenizer.encode_ordinary(text)}
    return sorted(set(tokenizer.ranks.values()) - used)


def tokens(tokenizer, text):
    return len(tokenizer.encode_ordinary(text))


RIGHT = [
    ("count_number_pieces", lambda digits: -(-digits // 3)),
    ("group_from_the_right", lambda: r"\d{1,3}(?=(?:\d{3})*(?!\d))|\D+"),
    ("group_from_the_right", lambda: r"\p{L}+|\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|\s+"),
    ("frame_message", frame),
    ("find_unused", unused),
    ("measure_premium", lambda t, text, reference: tokens(t, text) / tokens(t, reference)),
]
WRONG = [
    ("count_number_pieces", lambda digits: None, "returned None"),
    ("count_number_pieces", lambda digits: digits // 3, "round up"),
    ("count_number_pieces", lambda digits: digits, "three digits share one"),
    ("count_number_pieces", lambda digits: digits // 3 + 1, "no piece more"),
    ("count_number_pieces", lambda digits: max(1, round(digits / 3)), "a part of a group"),
    ("group_from_the_right", lambda: None, "no pattern"),
    ("group_from_the_right", lambda: r"\d{1,3}|\D+", "from the left"),
    ("group_from_the_right", lambda: r"\d+|\D+", "stays whole"),
    ("group_from_the_right", lambda: r"\d{1,3}(?=(\d{3})*(?!\d))", "captures groups"),
    ("group_from_the_right", lambda: r"\d{1,3}(?=(?:\d{3})*$)|\d+|\D+", "not at the end of the text"),
    ("group_from_the_right", lambda: r"\d{3}(?=(?:\d{3})*(?!\d))", r"1\|234\|567"),
    ("frame_message", lambda t, typed: None, "returned None"),
    ("frame_message", lambda t, typed: t.encode(f"<|user|>{typed}<|assistant|>", allowed_special="all"), "brought in"),
    ("frame_message", lambda t, typed: [frame(t, "")[0], *t.encode(typed), frame(t, "")[1]], "refuses nothing"),
    ("frame_message", lambda t, typed: frame(t, typed.replace("<|end|>", "")), "do not delete"),
    ("frame_message", lambda t, typed: frame(t, typed)[:-1], "last id"),
    ("frame_message", lambda t, typed: t.encode_ordinary(f"<|user|>{typed}<|assistant|>"), "first id"),
    ("find_unused", lambda t, texts: None, "returned None"),
    ("find_unused", lambda t, texts: [*unused(t, texts), t.special_tokens["<|end|>"]], "special tokens"),
    ("find_unused", lambda t, texts: [i for x in texts for i in t.encode_ordinary(x)], "do occur"),
    ("find_unused", lambda t, texts: [i for x, i in t.ranks.items() if x not in "".join(texts).encode()], "merged on"),
    ("find_unused", lambda t, texts: unused(t, texts[-1:]), "only the last text"),
    ("find_unused", lambda t, texts: unused(t, texts)[::-1], "sort them"),
    ("measure_premium", lambda t, text, reference: None, "returned None"),
    ("measure_premium", lambda t, text, reference: tokens(t, reference) / tokens(t, text), "upside down"),
    ("measure_premium", lambda t, text, reference: len(text) / len(reference), "characters"),
    ("measure_premium", lambda t, text, reference: len(text.encode()) / len(reference.encode()), "bytes"),
    ("measure_premium", lambda t, text, reference: tokens(t, text) - tokens(t, reference), "difference"),
]


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_a_right_answer_passes(name, answer, capsys):
    getattr(ex03, f"check_{name}")(answer)
    assert capsys.readouterr().out.startswith("right")


@pytest.mark.parametrize(("name", "answer", "message"), WRONG)
def test_a_wrong_answer_meets_its_message(name, answer, message):
    with pytest.raises(AssertionError, match=message):
        getattr(ex03, f"check_{name}")(answer)


def test_attempt_says_what_is_wrong_and_goes_on(capsys):
    ex03.attempt(ex03.check_count_number_pieces, lambda digits: None)
    ex03.attempt(ex03.check_count_number_pieces, lambda digits: 1 / 0)
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("not solved yet: ") for line in lines) and len(lines) == 2
    assert "ZeroDivisionError" in lines[1]
