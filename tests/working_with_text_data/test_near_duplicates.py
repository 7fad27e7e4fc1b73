"""Near-duplicates, against the sets of word tuples that hashes stand for, and in real books."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from working_with_text_data.gutenberg import find_books_in, read_book
from working_with_text_data.near_duplicates import (
    THRESHOLD,
    WORDS,
    estimate_overlap,
    find_near_duplicates,
    overlap,
    shingles,
    sketch,
)


def naive_overlap(a: str, b: str) -> tuple[float, float]:
    def tuples(text):
        words = text.split()
        return {tuple(words[i : i + WORDS]) for i in range(max(len(words) - WORDS + 1, min(len(words), 1)))}

    x, y = tuples(a), tuples(b)
    common = len(x & y)
    return (common / len(x | y), common / min(len(x), len(y))) if x and y else (0.0, 0.0)


def made_text(n_words: int, seed: int) -> list[str]:
    return [f"w{n}" for n in np.random.default_rng(seed).integers(2_000, size=n_words)]


few_words = st.lists(st.sampled_from(["a", "b", "it's".replace("'", ""), "é"]), max_size=30).map(" ".join)


@given(few_words, few_words)
def test_hashes_stand_for_the_words_in_a_row(a, b):
    assert overlap(shingles(a), shingles(b)) == pytest.approx(naive_overlap(a, b))


def test_case_punctuation_and_line_ends_make_no_difference():
    a, b = "It was the BEST of times,\r\nit was—the worst", "it was the best of times it was the worst."
    assert (shingles(a) == shingles(b)).all()


def test_signs_that_set_italics_in_plain_text_and_other_cases_make_no_difference():
    a, b = "it was a _very_ big STRASSE and ran home", "it was a very big straße and ran home"
    assert (shingles(a) == shingles(b)).all()


def test_what_a_text_is_left_out_for_stays():
    """A is in B, and B in C, but A is not in C: without B, A is the only one of its kind."""
    words = made_text(1_300, seed=5)
    texts = {"A": words[:400], "B": [*words[70:700]], "C": [*words[180:1_300]]}
    found = find_near_duplicates(list(texts), lambda name: " ".join(texts[name]))
    assert [(one.dropped, one.kept) for one in found] == [("B", "C")]
    texts["C"] = [*words[50:1_300]]  # and now A is in C too
    found = find_near_duplicates(list(texts), lambda name: " ".join(texts[name]))
    assert {(one.dropped, one.kept) for one in found} == {("A", "C"), ("B", "C")}


@pytest.mark.parametrize(("changed", "size"), [(0.0, 20_000), (0.03, 20_000), (0.2, 20_000), (0.03, 200_000)])
def test_sketches_estimate_what_was_made(changed, size):
    """A copy with words changed at random keeps (1 - changed) ** 5 of its shingles."""
    text = made_text(size, seed=1)
    random = np.random.default_rng(2)
    copy = [f"new{i}" if random.random() < changed else word for i, word in enumerate(text)]
    a, b = shingles(" ".join(text)), shingles(" ".join(copy))
    kept = (1 - changed) ** WORDS
    expected = kept / (2 - kept), kept
    assert overlap(a, b) == pytest.approx(expected, abs=0.02)
    assert estimate_overlap(sketch(a), sketch(b)) == pytest.approx(expected, abs=0.1)


def test_a_story_is_found_in_a_collection_a_hundred_times_as_long():
    story, rest = made_text(5_000, seed=1), made_text(500_000, seed=2)
    a, b = shingles(" ".join(story)), shingles(" ".join(rest[:1000] + story + rest[1000:]))
    assert estimate_overlap(sketch(a), sketch(b))[1] == pytest.approx(1, abs=0.05)
    assert len(sketch(b)) < len(b) / 50


def test_which_one_stays():
    one, two = " ".join(made_text(3_000, seed=1)), " ".join(made_text(3_000, seed=2))
    texts = {
        "one": one,
        "one again": one.upper(),
        "in two": " ".join(two.split()[:300]),
        "two": two,
        "both": f"{one}\n{two}",
        "another": " ".join(made_text(3_000, seed=3)),
        "empty": "",
        "short": "four words are these",
        "short too": "Four words are these.",
    }
    found = find_near_duplicates(list(texts), texts.__getitem__)
    left = [name for name in texts if name not in {duplicate.dropped for duplicate in found}]
    # "in two" is found in "two", which later is itself found in "both".
    assert left == ["both", "another", "empty", "short"]
    assert {(d.dropped, d.kept) for d in found} >= {("one again", "both"), ("in two", "both"), ("short too", "short")}
    for duplicate in found:
        expected = naive_overlap(texts[duplicate.dropped].lower(), texts[duplicate.kept].lower())
        if not duplicate.dropped.startswith("short"):
            assert (duplicate.jaccard, duplicate.containment) == pytest.approx(expected, abs=0.001)


def test_real_books(data_folder):
    """Of 24 real books none is another's edition; one misprinted, one cut short and one bound with another are."""
    paths = find_books_in(data_folder / "gutenberg")[::4][:12] + find_books_in(data_folder / "gutenberg")[-12:]
    texts = {path.name: read_book(path).text for path in paths}
    assert find_near_duplicates(list(texts), texts.__getitem__) == []
    first, second, third, fourth = list(texts)[:4]
    random = np.random.default_rng(0)
    words = texts[first].split()
    misprinted = " ".join(word if random.random() > 0.02 else f"x{word}" for word in words)
    more = {
        "misprinted": misprinted,
        "cut short": texts[second][: len(texts[second]) // 3],
        "bound together": texts[third] + texts[fourth],
    }
    found = find_near_duplicates([*texts, *more], (texts | more).__getitem__)
    assert {(d.dropped, d.kept) for d in found} == {
        ("misprinted", first),
        ("cut short", second),
        (third, "bound together"),
        (fourth, "bound together"),
    }
    assert min(d.containment for d in found) > THRESHOLD
