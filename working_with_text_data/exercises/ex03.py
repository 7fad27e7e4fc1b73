"""Checks of the exercises of notebook 03. Each takes the learner's function and says which mistake is likely."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import regex

from utils.exercises import attempt as attempt
from working_with_text_data.bytepair_enc import BytePairTokenizer

_TEXT = "the red dog sees the red door, the red dog reads the letter. " * 3
_TYPED = ("hello", "stop<|end|>now", "<|user|>", "a<|assistant|>b<|user|>c", "")


def _small_tokenizer() -> BytePairTokenizer:
    return BytePairTokenizer.train([_TEXT], 300, special_tokens=("<|user|>", "<|assistant|>", "<|end|>"))


def check_count_number_pieces(answer: Callable[[int], int]) -> None:
    """`answer(digits)` is the number of pieces that GPT-4's pattern makes of that many digits."""
    assert answer(4) is not None, "it returned None: write the body and return the number"
    assert answer(1) != 0, "one digit is one piece: round up, not down"
    assert answer(5) != 5, "5 digits are not 5 pieces: three digits share one"
    assert answer(6) != 3, "6 digits are 2 pieces: when the digits come out even there is no piece more"
    for digits in (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 31):
        expected = len(regex.findall(r"\p{N}{1,3}", "7" * digits))
        assert answer(digits) == expected, (
            f"{digits} digits are {expected} pieces, you say {answer(digits)}: a part of a group counts as a whole one"
        )
    print("right: ⌈digits / 3⌉")


def check_group_from_the_right(answer: Callable[[], str]) -> None:
    """`answer()` is a pattern that cuts 1234567 as people do, 1|234|567, and other text as well as it can."""
    pattern = answer()
    assert isinstance(pattern, str), "it returned no pattern: return a string such as r'...'"
    compiled = regex.compile(pattern)
    assert not compiled.groups, "the pattern captures groups: write (?:...) in place of (...)"

    def cut(text: str) -> list[str]:
        return [found for found in compiled.findall(text) if any(c.isdigit() for c in found)]

    got = cut("1234567")
    assert got != ["123", "456", "7"], "these are threes from the left: look ahead for threes up to the last digit"
    assert got != ["1234567"], "the number stays whole: at most three digits may match at once"
    assert got == ["1", "234", "567"], f"1234567 should be cut 1|234|567, yours gives {'|'.join(got)}"
    got = cut("1234567 apples")
    assert got == ["1", "234", "567"], (
        f"before other text the cut is {'|'.join(got)}: end the look-ahead at (?!\\d), not at the end of the text"
    )
    for text, expected in (("12", ["12"]), ("123", ["123"]), ("1000 10000", ["1", "000", "10", "000"])):
        assert cut(text) == expected, f"{text!r} should be cut {'|'.join(expected)}, yours gives {'|'.join(cut(text))}"
    print("right: the same digit groups that people write")


def check_frame_message(answer: Callable[[BytePairTokenizer, str], Sequence[int]]) -> None:
    """`answer(tokenizer, typed)` is <|user|>, the ids of what was typed, <|assistant|>; only those two are control."""
    tokenizer = _small_tokenizer()
    user, assistant = tokenizer.special_tokens["<|user|>"], tokenizer.special_tokens["<|assistant|>"]
    for typed in _TYPED:
        try:
            got = answer(tokenizer, typed)
        except ValueError:
            raise AssertionError(
                f"it fails on {typed!r}: people may type what they like; use encode_ordinary, which refuses nothing"
            ) from None
        assert got is not None, "it returned None: return the list of ids"
        ids = list(got)
        assert ids[:1] == [user], "the first id must be the control token <|user|>: take it from special_tokens"
        control = [i for i in ids if tokenizer.is_special_token(i)]
        assert len(control) <= 2, f"{typed!r} brought in a control token: the whole was encoded with allowed_special"
        assert len(ids) > 1 and ids[-1] == assistant, "the last id must be the control token <|assistant|>"
        inside = tokenizer.decode(ids[1:-1])
        assert inside == typed, f"what was typed, {typed!r}, came out as {inside!r}: do not delete or change it"
        assert ids[1:-1] == tokenizer.encode_ordinary(typed), "what was typed has other ids than encode_ordinary gives"
    print("right: two control tokens, and the text as it was typed")


def check_find_unused(answer: Callable[[BytePairTokenizer, Sequence[str]], Sequence[int]]) -> None:
    """`answer(tokenizer, texts)` is the sorted ids of ordinary tokens that no text is encoded with."""
    tokenizer = _small_tokenizer()
    texts = ["the red letter", "reads the <|end|>"]
    got = answer(tokenizer, texts)
    assert got is not None, "it returned None: return the list of ids"
    ids = list(got)
    used = {i for text in texts for i in tokenizer.encode_ordinary(text)}
    expected = sorted(set(tokenizer.ranks.values()) - used)
    assert not any(tokenizer.is_special_token(i) for i in ids), "special tokens are not asked for: look in ranks alone"
    assert set(ids) != used, "these are the tokens that do occur: it asks for the others"
    spelled = "".join(texts).encode()
    by_letters = sorted(i for token, i in tokenizer.ranks.items() if token not in spelled)
    assert sorted(ids) != by_letters, (
        "a token's letters may stand in the text and the token not: they are merged on; encode, and count ids"
    )
    last = set(tokenizer.ranks.values()) - set(tokenizer.encode_ordinary(texts[-1]))
    assert set(ids) != last, "only the last text was counted: gather the ids of all texts"
    assert set(ids) == set(expected), f"{len(expected)} tokens are unused, you found {len(ids)}"
    assert ids == expected, "the ids are right: now sort them"
    print(f"right: {len(expected)} tokens wait for a text")


def check_measure_premium(answer: Callable[[BytePairTokenizer, str, str], float]) -> None:
    """`answer(tokenizer, text, reference)`: how many times as many tokens `text` needs as `reference`."""
    tokenizer = _small_tokenizer()
    text, reference = "собака 🐕", "the red dog reads"
    got = answer(tokenizer, text, reference)
    assert got is not None, "it returned None: return the ratio"
    a, b = len(tokenizer.encode_ordinary(text)), len(tokenizer.encode_ordinary(reference))
    assert got != b / a, "upside down: the text's tokens are divided by the reference's"
    assert got != len(text) / len(reference), "these are characters: a price is paid in tokens"
    assert got != len(text.encode()) / len(reference.encode()), "these are bytes: a price is paid in tokens"
    assert got != a - b, "that is a difference: divide"
    assert got != a // b, "a whole number: divide with /, not with //"
    assert abs(got - a / b) < 1e-9, f"expected {a} / {b} = {a / b:.3f}, got {got}"
    print(f"right: {a / b:.1f} times as many tokens")
