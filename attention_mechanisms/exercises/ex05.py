"""Checks of notebook 05, sliding windows. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from utils.exercises import require_an_answer


def check_window_mask(answer: Callable[[int, int, int], list[list[bool]]]) -> None:
    """`window_mask(tokens, window, n_sink)`: rows of truth values, may the row's token see the column's?"""
    require_an_answer(answer(3, 2, 0))
    for tokens, window, n_sink in [(6, 3, 0), (5, 1, 0), (4, 9, 0), (7, 3, 2), (8, 2, 1)]:
        given = torch.as_tensor(answer(tokens, window, n_sink)).bool()
        assert given.shape == (tokens, tokens), f"{tokens} rows of {tokens} are wanted, not {tuple(given.shape)}"
        query, key = torch.arange(tokens)[:, None], torch.arange(tokens)[None]
        near, sink = key > query - window, key < n_sink
        right = (key <= query) & (near | sink)
        where = f"tokens={tokens}, window={window}, n_sink={n_sink}"
        assert torch.equal(given, right) or not torch.equal(given, right.T), (
            "rows and columns have changed places: a row is the token that looks"
        )
        assert not (given & (key > query)).any(), f"{where}: a token sees its own future: j <= p, for the sinks as well"
        wider = (key <= query) & ((key >= query - window) | sink)
        assert torch.equal(given, right) or not torch.equal(given, wider), (
            f"{where}: one key too many: the window counts the token itself, so p - window < j"
        )
        narrower = (key <= query) & ((key > query - window + 1) | sink)
        assert torch.equal(given, right) or not torch.equal(given, narrower), (
            f"{where}: one key too few: the token itself and window - 1 before it"
        )
        assert torch.equal(given, right) or not torch.equal(given, (key <= query) & near), (
            f"{where}: the first n_sink tokens are seen by all that come after them, in spite of the window"
        )
        assert torch.equal(given, right), f"{where}: expected {right.int().tolist()}, not {given.int().tolist()}"
    print("window_mask: right")


def check_layers_needed(answer: Callable[[int, int], int | None]) -> None:
    """`layers_needed(distance, window)`: the fewest layers that carry news so far; None where none can."""
    require_an_answer(answer(4, 3))
    cases = [(distance, window) for distance in range(1, 40) for window in range(2, 12)]
    given = {case: answer(*case) for case in cases}
    right = {(distance, window): -(-distance // (window - 1)) for distance, window in cases}

    def all_are(formula: Callable[[int, int], int]) -> bool:
        return all(given[case] == formula(*case) for case in cases)

    assert not all_are(lambda distance, window: distance // (window - 1)), (
        "rounded down: what is left of the way needs a layer too, so round up"
    )
    assert not all_are(lambda distance, window: -(-distance // window)), (
        "a layer brings news window - 1 tokens far, not window: the token itself is in its window"
    )
    assert not all_are(lambda distance, window: distance // (window - 1) + 1), (
        "one too many where the way divides evenly: round up, do not add 1 always"
    )
    for case in cases:
        assert given[case] == right[case], f"layers_needed{case} is {right[case]}, and you have {given[case]}"
    assert answer(0, 5) == 0, "a distance of 0 needs no layer at all"
    try:
        alone, here = answer(3, 1), answer(0, 1)
    except ZeroDivisionError:
        raise AssertionError("with a window of 1 you divide by zero: a token sees itself alone, return None") from None
    assert alone is None, f"with a window of 1 no number of layers is enough: return None, not {alone}"
    assert here == 0, "a distance of 0 needs no layer, with a window of 1 as well"
    print("layers_needed: right")


def check_ring_positions(answer: Callable[[int, int], list[int]]) -> None:
    """`ring_positions(length, window)`: the position in each filled slot of the ring, after `length` tokens."""
    require_an_answer(answer(8, 3))
    for length, window in [(8, 3), (9, 3), (10, 3), (2, 3), (0, 3), (3, 3), (7, 1), (1_000_003, 5)]:
        given, ring = list(answer(length, window)), [-1] * window
        for p in range(max(length - window, 0), length):
            ring[p % window] = p
        right = ring[: min(length, window)]
        where = f"length={length}, window={window}"
        assert length >= window or len(given) <= length, (
            f"{where}: only {length} slots are filled: leave the others out, and you have {given}"
        )
        assert given == right or given != [p + 1 for p in right], (
            f"{where}: one too far: the last token that was read stands at position length - 1"
        )
        assert given == right or given != [p % window for p in right], (
            f"{where}: these are the slots: what is asked for is the position that lies in each"
        )
        assert given == right or sorted(given) != sorted(right), (
            f"{where}: the right positions in the wrong slots: position p lies in slot p mod window, so {right}"
        )
        assert given == right, f"{where}: expected {right}, and you have {given}"
    print("ring_positions: right")


def check_key_slice(answer: Callable[[int, int, int, int], tuple[int, int]]) -> None:
    """`key_slice(begin, block, tokens, window)`: (low, high), the keys that this block of queries needs together."""
    require_an_answer(answer(8, 4, 20, 3))
    for begin, block, tokens, window in [(8, 4, 20, 3), (12, 6, 40, 5), (0, 4, 20, 3), (2, 4, 20, 9), (18, 4, 20, 3)]:
        given = answer(begin, block, tokens, window)
        assert isinstance(given, tuple) and len(given) == 2, "return two numbers: (low, high)"
        low, high = given
        end, where = min(begin + block, tokens), f"begin={begin}, block={block}, tokens={tokens}, window={window}"
        assert high <= tokens, (
            f"{where}: the text ends at {tokens}, and you slice up to {high}: the last block is short"
        )
        assert high != end - 1, f"{where}: a slice ends before its second number: the last query's own key is missing"
        assert low >= 0, f"{where}: low is {low}, and a negative number counts from the end: cut it at 0"
        assert low != max(begin - window, 0) or begin < window, (
            f"{where}: one key too many: the first query sees itself and window - 1 before it"
        )
        assert low != max(end - window, 0) or low == max(begin - window + 1, 0), (
            f"{where}: that is the window of the last query: the first one looks furthest back"
        )
        assert (low, high) != (begin, end) or begin == 0, f"{where}: keys before the block are needed too"
        right = max(begin - window + 1, 0), end
        assert given == right, f"{where}: expected {right}, and you have {given}"
    print("key_slice: right")


def check_cache_bytes(answer: Callable[[int, int, int, int, int, int, int], int]) -> None:
    """`cache_bytes(n_layer, global_every, tokens, window, n_sink, d_kv, bytes_per_number)`: of a mixed model."""
    require_an_answer(answer(2, 0, 9, 3, 0, 8, 2))
    for n_layer, every, tokens, window, n_sink, d_kv, size in [
        (4, 0, 100, 10, 0, 8, 4),
        (12, 6, 100, 10, 0, 8, 2),
        (13, 6, 100, 10, 4, 8, 4),
        (12, 6, 7, 10, 0, 8, 2),
        (3, 1, 50, 10, 2, 16, 4),
    ]:
        given = answer(n_layer, every, tokens, window, n_sink, d_kv, size)
        n_global, near = (n_layer // every if every else 0), min(tokens, window)
        n_local, one = n_layer - n_global, 2 * d_kv * size
        right = (n_global * tokens + n_local * (near + n_sink)) * one
        where = f"n_layer={n_layer}, global_every={every}, tokens={tokens}, window={window}, n_sink={n_sink}"

        def is_not(value: int, given: int = given, right: int = right) -> bool:
            return given == right or given != value

        assert is_not(right // 2), f"{where}: half of it is missing: keys and values are d_kv numbers each"
        assert is_not(right // size), f"{where}: these are numbers, not bytes"
        assert is_not(n_layer * (near + n_sink) * one), f"{where}: the global layers hold all tokens, not a window"
        assert is_not((n_global * tokens + n_local * (window + n_sink)) * one), (
            f"{where}: a text shorter than the window fills only min(tokens, window) places"
        )
        assert is_not((n_global * (tokens + n_sink) + n_local * (near + n_sink)) * one), (
            f"{where}: a global layer sees the first tokens anyway: sinks are kept by the local layers alone"
        )
        assert is_not((n_global * tokens + n_local * near) * one), f"{where}: the sinks are kept besides the window"
        assert given == right, f"{where}, d_kv={d_kv}, bytes_per_number={size}: expected {right}, not {given}"
    print("cache_bytes: right")


def check_append_chunk(answer: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]) -> None:
    """`append_chunk(kept, new, window)`: (the keys to attend to, those to keep for the next token)."""
    require_an_answer(answer(torch.zeros(2, 1), torch.zeros(2, 1), 3))
    for start, n_kept, n_new, window in [
        (9, 2, 5, 3),
        (9, 2, 1, 3),
        (9, 6, 2, 4),
        (0, 0, 4, 3),
        (1, 1, 1, 4),
        (9, 3, 2, 1),
    ]:
        places = torch.arange(start - n_kept, start + n_new, dtype=torch.float32)[:, None]  # (n_kept + n_new, 1)
        given = answer(places[:n_kept], places[n_kept:], window)
        assert isinstance(given, tuple) and len(given) == 2, "return two tensors: (to attend to, to keep)"
        attended, kept = ([int(p) for p in part.flatten()] for part in given)
        end = start + n_new
        right = list(range(start - min(n_kept, window - 1), end))
        keep = right[max(len(right) - window + 1, 0) :]
        where = f"window {window}, tokens {start - n_kept} to {start - 1} kept, {start} to {end - 1} new"
        assert set(range(start, end)) <= set(attended) and len(attended) >= len(right), (
            f"{where}: trimmed before attending: token {start} still needs keys that are not in {attended}"
        )
        assert len(attended) <= len(right), (
            f"{where}: no query of this chunk sees all of {attended}: the first looks back window - 1 tokens"
        )
        assert attended == right, f"{where}: to attend to {right}, in order, and you have {attended}"
        assert window > 1 or not kept, (
            f"{where}: with a window of 1 nothing need be kept (mind that x[-0:] is all of x), and you have {kept}"
        )
        assert kept != right[-window:] or len(kept) == len(keep), (
            f"{where}: one kept too many: the next token's own key is in its window, so window - 1 old ones do"
        )
        assert len(kept) >= len(keep), f"{where}: the next token needs {keep}, and you keep only {kept}"
        assert kept == keep, f"{where}: to be kept is {keep}, and you have {kept}"
    print("append_chunk: right")
