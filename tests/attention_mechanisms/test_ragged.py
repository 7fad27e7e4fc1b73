"""Rows of different lengths in one step, against each row alone in a cache of its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_mechanisms import LayerCaches
from attention_mechanisms.ragged import RaggedCaches
from tests.attention_mechanisms.test_caches_everywhere import assert_near, every_variant, make, with_and_without_rope


def read(attention, x, row):
    """A prompt (tokens, 16) into one row."""
    with torch.no_grad():
        return attention(x[None], row.layers[0])


@every_variant
@with_and_without_rope
@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), steps=st.integers(1, 8), seed=st.integers(0, 99))
def test_a_ragged_step_equals_each_row_alone(variant, rope, lengths, steps, seed):
    attention = make(variant, rope)
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randn(n + steps, 16, generator=generator) for n in lengths]
    shared = LayerCaches([attention.make_cache(5, 20)])
    rows = [shared.row(i) for i in range(len(texts))]
    for text, row, n in zip(texts, rows, lengths, strict=True):
        read(attention, text[:n], row)
    for step in range(steps):
        caches = RaggedCaches(shared, rows)
        new = torch.stack([text[n + step] for text, n in zip(texts, lengths, strict=True)])[:, None]  # (rows, 1, 16)
        with torch.no_grad():
            y = attention(new, caches.layers[0])
        caches.done()
        for i, (text, n) in enumerate(zip(texts, lengths, strict=True)):
            assert_near(y[i, 0], attention(text[None, : n + step + 1])[0, -1])
    assert [row.length for row in rows] == [n + steps for n in lengths]


@every_variant
@with_and_without_rope
def test_rows_can_be_swapped_and_copied(variant, rope):
    attention = make(variant, rope)
    torch.manual_seed(3)
    long, short, new = torch.randn(11, 16), torch.randn(2, 16), torch.randn(3, 16)
    shared = LayerCaches([attention.make_cache(3, 20)])
    first, second, third = (shared.row(i) for i in range(3))
    read(attention, long, first)
    read(attention, short, second)
    first.swap(second)
    third.copy_from(second, 11)
    assert (first.length, second.length, third.length) == (2, 11, 11)
    expected = attention(torch.cat([long, new])[None])[:, 11:]
    assert_near(read(attention, new, second), expected)
    assert_near(read(attention, new, third), expected)
    third.copy_from(first, 1)  # the beginning of a text alone
    assert_near(read(attention, new, third), attention(torch.cat([short[:1], new])[None])[:, 1:])
    assert_near(read(attention, new, first), attention(torch.cat([short, new])[None])[:, 2:])


def test_a_row_whose_window_has_moved_on_gives_no_beginning():
    attention = make("swa", False)
    shared = LayerCaches([attention.make_cache(2, 20)])
    rows = shared.row(0), shared.row(1)
    read(attention, torch.randn(9, 16), rows[0])
    with pytest.raises(ValueError, match="keeps the last 4"):
        rows[1].copy_from(rows[0], 5)
    assert rows[1].length == 0
