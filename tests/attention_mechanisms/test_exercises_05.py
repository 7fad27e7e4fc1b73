"""The checks of notebook 05 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import pytest
import torch

from attention_mechanisms.exercises import ex05
from tests.conftest import refuses


def mask_of(sees):
    return lambda tokens, window, n_sink: [[sees(p, j, window, n_sink) for j in range(tokens)] for p in range(tokens)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (mask_of(lambda p, j, w, s: j <= p and (j >= p - w or j < s)), "one key too many"),
        (mask_of(lambda p, j, w, s: j <= p and (j > p - w + 1 or j < s)), "one key too few"),
        (mask_of(lambda p, j, w, s: j > p - w), "its own future"),
        (mask_of(lambda p, j, w, s: (j <= p and j > p - w) or j < s), "its own future"),
        (mask_of(lambda p, j, w, s: j <= p and j > p - w), "in spite of the window"),
        (mask_of(lambda p, j, w, s: p <= j and (p > j - w or p < s)), "changed places"),
        (mask_of(lambda p, j, w, s: j <= p and (j > p - w or j <= s)), "expected"),
        (lambda tokens, window, n_sink: [[True] * window] * tokens, "rows of"),
    ],
)
def test_window_mask(wrong, message):
    ex05.check_window_mask(mask_of(lambda p, j, w, s: j <= p and (j > p - w or j < s)))
    refuses(ex05.check_window_mask, wrong, message)


def layers(distance, window):
    if not distance:
        return 0
    return None if window == 1 else -(-distance // (window - 1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda distance, window: distance // (window - 1), "rounded down"),
        (lambda distance, window: -(-distance // window), "not window: the token itself"),
        (lambda distance, window: distance // (window - 1) + 1, "do not add 1 always"),
        (lambda distance, window: -(-distance // (window - 1)), "divide by zero"),
        (lambda distance, window: max(1, layers(distance, window) or 0), "needs no layer at all"),
        (lambda distance, window: layers(distance, window) or 0, "return None, not 0"),
        (lambda distance, window: None if window == 1 else layers(distance, window), "with a window of 1 as well"),
        (lambda distance, window: distance, r"layers_needed\(2, 3\) is 1, and you have 2"),
    ],
)
def test_layers_needed(wrong, message):
    ex05.check_layers_needed(layers)
    refuses(ex05.check_layers_needed, wrong, message)


def ring(length, window):
    last = length - 1
    return [last - (last - slot) % window for slot in range(min(length, window))]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda length, window: list(range(max(length - window, 0), length)), "in the wrong slots"),
        (lambda length, window: [p + 1 for p in ring(length, window)], "one too far"),
        (lambda length, window: [p % window for p in ring(length, window)], "these are the slots"),
        (lambda length, window: [(length - 1) - (length - 1 - slot) % window for slot in range(window)], "are filled"),
        (lambda length, window: list(range(min(length, window))), "these are the slots"),
        (lambda length, window: ring(length, window)[:-1], "expected"),
    ],
)
def test_ring_positions(wrong, message):
    ex05.check_ring_positions(ring)
    refuses(ex05.check_ring_positions, wrong, message)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda b, n, t, w: (max(b - w, 0), min(b + n, t)), "one key too many"),
        (lambda b, n, t, w: (b - w + 1, min(b + n, t)), "cut it at 0"),
        (lambda b, n, t, w: (max(b - w + 1, 0), b + n), "the last block is short"),
        (lambda b, n, t, w: (max(b - w + 1, 0), min(b + n, t) - 1), "own key is missing"),
        (lambda b, n, t, w: (max(min(b + n, t) - w, 0), min(b + n, t)), "the window of the last query"),
        (lambda b, n, t, w: (b, min(b + n, t)), "keys before the block"),
        (lambda b, n, t, w: (0, min(b + n, t)), "expected"),
        (lambda b, n, t, w: slice(b, b + n), "return two numbers"),
    ],
)
def test_key_slice(wrong, message):
    ex05.check_key_slice(lambda b, n, t, w: (max(b - w + 1, 0), min(b + n, t)))
    refuses(ex05.check_key_slice, wrong, message)


def bytes_of(held):
    def cache_bytes(n_layer, global_every, tokens, window, n_sink, d_kv, bytes_per_number):
        n_global = n_layer // global_every if global_every else 0
        return 2 * d_kv * held(n_global, n_layer - n_global, tokens, window, n_sink) * bytes_per_number

    return cache_bytes


right_bytes = bytes_of(lambda g, n, t, w, s: g * t + n * (min(t, w) + s))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda *arguments: right_bytes(*arguments) // 2, "half of it is missing"),
        (lambda *arguments: right_bytes(*arguments) // arguments[-1], "numbers, not bytes"),
        (lambda *arguments: right_bytes(*arguments[:-1], 1), "numbers, not bytes"),
        (bytes_of(lambda g, n, t, w, s: (g + n) * (min(t, w) + s)), "the global layers hold all tokens"),
        (bytes_of(lambda g, n, t, w, s: g * t + n * (w + s)), "fills only min"),
        (bytes_of(lambda g, n, t, w, s: g * (t + s) + n * (min(t, w) + s)), "by the local layers alone"),
        (bytes_of(lambda g, n, t, w, s: g * t + n * min(t, w)), "besides the window"),
        (bytes_of(lambda g, n, t, w, s: (g + n) * t), "expected"),
    ],
)
def test_cache_bytes(wrong, message):
    ex05.check_cache_bytes(right_bytes)
    refuses(ex05.check_cache_bytes, wrong, message)


def chunk(before, after):
    """`append_chunk` that keeps `before(old keys, window)` of the old and then `after(all, window)` for the next."""

    def append_chunk(kept, new, window):
        together = torch.cat([before(kept, window), new])
        return together, after(together, window)

    return append_chunk


def last(x, n):
    return x[max(len(x) - n, 0) :]


def trimmed_first(kept, new, window):
    together = last(torch.cat([kept, new]), window)
    return together, together


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (trimmed_first, "trimmed before attending"),
        (chunk(lambda x, w: x, lambda x, w: last(x, w - 1)), "no query of this chunk sees all"),
        (chunk(lambda x, w: last(x, w), lambda x, w: last(x, w - 1)), "no query of this chunk sees all"),
        (chunk(lambda x, w: last(x, w - 1), lambda x, w: last(x, w)), "one kept too many"),
        (chunk(lambda x, w: last(x, w - 1), lambda x, w: x[-(w - 1) :]), r"x\[-0:\] is all of x"),
        (chunk(lambda x, w: last(x, w - 1), lambda x, w: x), "to be kept is"),
        (
            lambda kept, new, window: (last(torch.cat([kept, new]), len(new) + window - 1), last(new, window - 1)),
            "only",
        ),
        (lambda kept, new, window: torch.cat([kept, new]), "return two tensors"),
    ],
)
def test_append_chunk(wrong, message):
    ex05.check_append_chunk(chunk(lambda x, w: last(x, w - 1), lambda x, w: last(x, w - 1)))
    refuses(ex05.check_append_chunk, wrong, message)
