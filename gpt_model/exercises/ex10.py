"""Checks of notebook 10, bound by memory. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from utils.exercises import require_an_answer


def check_product_intensity(answer: Callable[[int, int, int, int], float]) -> None:
    """`product_intensity(rows, n_out, n_in, weight_bytes)`: FLOPs for each byte that is moved."""
    require_an_answer(answer(1, 2, 3, 4))
    cases = [(1, 2, 3, 4), (4, 20, 30, 2), (16, 12, 50, 1), (3, 7, 7, 4)]
    given = [answer(*case) for case in cases]

    def all_are(formula: Callable[[int, int, int, int], float]) -> bool:
        return all(math.isclose(value, formula(*case)) for value, case in zip(given, cases, strict=True))

    assert not all_are(lambda n, o, i, w: 2 * n * o * i / (w * o * i)), (
        "the vectors are moved too: rows · n_in numbers go in and rows · n_out come out"
    )
    assert not all_are(lambda n, o, i, w: n * o * i / (w * o * i + 4 * n * (i + o))), (
        "a weight is multiplied and the product is added: that is 2 FLOPs"
    )
    assert not all_are(lambda n, o, i, w: 2 * o * i / (w * o * i + 4 * n * (i + o))), (
        "each row is multiplied with the whole matrix: the FLOPs grow with the rows"
    )
    assert not all_are(lambda n, o, i, w: 2 * n * o * i / (n * w * o * i + 4 * n * (i + o))), (
        "the matrix is read once for all rows, not once for each"
    )
    assert not all_are(lambda n, o, i, w: 2 * n * o * i / (w * (o * i + n * (i + o)))), (
        "only the matrix is stored in weight_bytes: what goes in and comes out has 4 bytes a number"
    )
    assert not all_are(lambda n, o, i, w: (w * o * i + 4 * n * (i + o)) / (2 * n * o * i)), (
        "that is bytes for each FLOP: turn the fraction round"
    )
    for (rows, n_out, n_in, size), value in zip(cases, given, strict=True):
        right = 2 * rows * n_out * n_in / (size * n_out * n_in + 4 * rows * (n_in + n_out))
        assert math.isclose(value, right), (
            f"{rows} rows, {n_out} × {n_in} in {size} bytes: expected {right:.4f}, you have {value}"
        )
    print("product_intensity: right")


def check_tokens_per_second(answer: Callable[[int, float, float, float, float, float], float]) -> None:
    """`tokens_per_second(batch, weight_bytes, cache_bytes, flops, bandwidth, peak)`: the roof, for all texts."""
    require_an_answer(answer(1, 100.0, 20.0, 50.0, 10.0, 100.0))
    cases = [
        (1, 100.0, 20.0, 50.0, 10.0, 100.0),
        (4, 100.0, 10.0, 50.0, 10.0, 100.0),
        (8, 100.0, 10.0, 400.0, 10.0, 100.0),
        (16, 10.0, 1.0, 3000.0, 10.0, 100.0),
    ]
    given = [answer(*case) for case in cases]

    def all_are(formula: Callable[[int, float, float, float, float, float], float]) -> bool:
        return all(math.isclose(value, formula(*case)) for value, case in zip(given, cases, strict=True))

    assert not all_are(lambda n, w, c, f, b, p: n / ((w + n * c) / b + n * f / p)), (
        "reading and arithmetic go on at the same time: the longer of the two counts, not their sum"
    )
    assert not all_are(lambda n, w, c, f, b, p: n / min((w + n * c) / b, n * f / p)), (
        "the step waits for the slower of the two: take the larger time"
    )
    assert not all_are(lambda n, w, c, f, b, p: n / max(n * (w + c) / b, n * f / p)), (
        "the weights are read once for all texts of a step: only the caches are each text's own"
    )
    assert not all_are(lambda n, w, c, f, b, p: n / max((w + c) / b, n * f / p)), (
        "each text has a cache: batch times cache_bytes are read"
    )
    assert not all_are(lambda n, w, c, f, b, p: n / max((w + n * c) / b, f / p)), (
        "each text brings its own FLOPs: batch times flops are done"
    )
    assert not all_are(lambda n, w, c, f, b, p: 1 / max((w + n * c) / b, n * f / p)), (
        "that is steps a second: each step gives a token to every text of the batch"
    )
    assert not all_are(lambda n, w, c, f, b, p: max((w + n * c) / b, n * f / p)), (
        "that is the time of a step: how many tokens come in a second?"
    )
    assert not all_are(lambda n, w, c, f, b, p: n / ((w + n * c) / b)), (
        "with many texts arithmetic takes longer than reading: compare both"
    )
    for (batch, weights, cache, flops, bandwidth, peak), value in zip(cases, given, strict=True):
        right = batch / max((weights + batch * cache) / bandwidth, batch * flops / peak)
        assert math.isclose(value, right), f"batch {batch}: expected {right:.4f} tokens a second, you have {value}"
    print("tokens_per_second: right")


def check_bytes_copied(answer: Callable[[int, int, int], int]) -> None:
    """`bytes_copied(prompt, new, token_bytes)`: what a cache by `torch.cat` writes."""
    require_an_answer(answer(3, 2, 10))
    cases = [(3, 2, 10), (1, 5, 4), (100, 1, 8), (0, 6, 2)]
    given = [answer(*case) for case in cases]

    def all_are(formula: Callable[[int, int, int], float]) -> bool:
        return all(math.isclose(value, formula(*case)) for value, case in zip(given, cases, strict=True))

    assert not all_are(lambda p, n, s: s * (p + n)), (
        "that is what a buffer would be written: `cat` writes all old tokens again at each step"
    )
    assert not all_are(lambda p, n, s: s * sum(range(p + 1, p + n + 1))), (
        "the prompt is written too, once, before the first new token"
    )
    assert not all_are(lambda p, n, s: s * sum(range(p, p + n))), (
        "the last step copies too: its result has prompt + new tokens, so range needs one more"
    )
    assert not all_are(lambda p, n, s: s * (p + n) * (p + n + 1) // 2), (
        "the prompt is appended at once, not token by token: begin with `prompt` tokens"
    )
    assert not all_are(lambda p, n, s: s * (p + n * (p + n))), (
        "earlier steps copied less: the lengths are prompt + 1, prompt + 2, … and not prompt + new each time"
    )
    assert not all_are(lambda p, n, s: sum(range(p, p + n + 1))), "those are tokens: each has token_bytes"
    for (prompt, new, size), value in zip(cases, given, strict=True):
        right = size * sum(range(prompt, prompt + new + 1))
        assert value == right, f"prompt {prompt}, {new} new, {size} bytes each: expected {right}, you have {value}"
    print("bytes_copied: right")


def check_append_in_place(answer: Callable[[Tensor, int, Tensor], Tensor]) -> None:
    """`append_in_place(buffer, length, new)`: rows into their place, and the filled part as a view."""
    buffer, new = torch.full((6, 2), -1.0), torch.tensor([[5.0, 6.0], [7.0, 8.0]])
    buffer[:3] = torch.arange(6.0).view(3, 2)  # (3, 2)
    before = buffer.clone()
    filled = answer(buffer, 3, new)
    require_an_answer(filled)
    assert isinstance(filled, Tensor), f"return the filled rows as a tensor, not a {type(filled).__name__}"
    assert filled.shape != (6, 2), "you return the whole buffer: its last row is not filled"
    assert filled.shape != (2, 2), "you return the new rows alone: attention needs the old ones too"
    assert filled.shape == (5, 2), f"3 rows were there and 2 came: expected shape (5, 2), not {tuple(filled.shape)}"
    in_place = filled.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
    if not in_place and torch.equal(buffer, before):
        raise AssertionError("the buffer has not changed, so all old rows were copied: write into it, without `cat`")
    assert torch.equal(buffer[:3], before[:3]), "old rows have changed: the new ones begin at row `length`"
    assert in_place, "what you return is a copy: slice the buffer, and neither clone nor concatenate"
    assert torch.equal(filled, torch.cat([before[:3], new])), "the new rows belong right behind the first `length` ones"
    assert torch.equal(buffer[5:], before[5:]), "rows behind the new ones have changed"

    whole = torch.zeros(3, 2)
    try:
        answer(whole, 1, new)
    except ValueError:
        raise AssertionError("1 + 2 rows fit exactly into 3: refuse only what is longer") from None
    small = torch.zeros(4, 2)
    try:
        answer(small, 3, new)
    except ValueError:
        pass
    except Exception as error:
        raise AssertionError(
            f"3 + 2 rows do not fit into 4: raise a ValueError yourself, before a {type(error).__name__} does"
        ) from None
    else:
        raise AssertionError("3 + 2 rows do not fit into 4, and nothing was raised: a slice is cut off silently")
    assert not small.any(), "what does not fit must not be written in part: compare before you write"
    print("append_in_place: right")


def check_batch_that_balances(answer: Callable[[int, int, int, float, float], int | None]) -> None:
    """`batch_that_balances(weights, cache, b, bandwidth, peak)`: the first batch that is bound by arithmetic."""
    given = answer(1000, 0, 4, 10.0, 100.0)
    require_an_answer(given)
    assert given != 40, "a weight is 2 FLOPs, a multiplication and an addition"
    assert given != 5, "each weight has b bytes"
    assert given == 20, f"without a cache it is b · peak / (2 · bandwidth) = 20, whatever the weights; you have {given}"
    uneven = answer(1000, 0, 4, 12.0, 100.0)
    assert uneven != 16, "at 16 reading still takes longer (16.67 balances): round up"
    assert uneven is not None and uneven == int(uneven), f"a batch is a whole number of texts, not {uneven}"
    assert uneven == 17, f"16.67 texts balance, so the first whole batch is 17, and you have {uneven}"
    # 80 n ≥ … with a cache of 25: n · (2 · 1025 / 100 - 4 · 25 / 10) = n · 10.5 ≥ 400, so 39
    cached = answer(1000, 25, 4, 10.0, 100.0)
    assert cached != 20, "the caches are read too, one for each text: they push the balance to larger batches"
    assert cached != 21, "each text has a cache of its own: batch times cache numbers are read, not one cache"
    assert cached != 40, "the numbers of a cache are multiplied as well: 2 FLOPs each, for each text"
    assert cached == 39, f"with 25 numbers of cache a text, 38.1 balance: expected 39, and you have {cached}"
    try:
        never = answer(1000, 500, 4, 10.0, 100.0)
    except ZeroDivisionError:
        raise AssertionError("a text may add as much reading as arithmetic: look before you divide") from None
    assert never is None, (
        f"with 500 numbers of cache each text adds 200 s of reading and 30 s of arithmetic: no batch will do, so None "
        f"and not {never}"
    )
    try:
        even = answer(60, 4, 4, 8.0, 64.0)  # 2 · 64 / 64 = 4 · 4 / 8 = 2 s
    except ZeroDivisionError:
        raise AssertionError("a text may add as much reading as arithmetic: look before you divide") from None
    assert even is None, f"each text adds 2 s of both, and the weights are never caught up with: None, not {even}"
    one = answer(1000, 0, 4, 1e6, 100.0)
    assert one == 1, f"a machine with slow arithmetic is bound by it from 1 text on: there is no batch of {one}"
    print("batch_that_balances: right")
