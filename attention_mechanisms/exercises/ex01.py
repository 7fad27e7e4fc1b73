"""Checks of notebook 01, attention from raw tensors. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from utils.exercises import attempt as attempt
from utils.exercises import require_an_answer


def _random(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Standard normal numbers, the same at each call, whatever the global seed is."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _is(given: Tensor, value: Tensor) -> bool:
    return given.shape == value.shape and torch.allclose(given.float(), value, rtol=1e-3, atol=1e-4)


def check_attend_one(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """`attend_one(q, k, v)`: what one query (d,) gathers from keys (keys, d) and values (keys, d_value)."""
    q, k, v = _random((4,), (6, 4), (6, 3))
    given = answer(q, k, v)
    require_an_answer(given)
    assert isinstance(given, Tensor), f"return a tensor, not a {type(given).__name__}"
    products = k @ q  # (keys,)
    assert given.shape != (6,), "that is one number for each key, the weights: the values are still to be averaged"
    assert given.shape != (1, 3), "one query gathers (d_value,): drop the axis of length 1"
    assert given.shape == (3,), f"the answer is (d_value,), here (3,), and you have {tuple(given.shape)}"
    assert not _is(given, products.softmax(0) @ v), "the scores are not scaled: divide them by √d before the softmax"
    assert not _is(given, (products / 4).softmax(0) @ v), "you divide by d: the scores' deviation is √d"
    assert not _is(given, (products * 2).softmax(0) @ v), "you multiply by √d: divide"
    assert not _is(given, (products / 3**0.5).softmax(0) @ v), "d is the width of a key, not that of a value"
    assert not _is(given, (products / 6**0.5).softmax(0) @ v), "d is the width of a key, not the number of keys"
    assert not _is(given, products.softmax(0) / 2 @ v), "divide by √d before the softmax, not after it"
    assert not _is(given, products / 2 @ v), "there is no softmax: weights are positive and sum to 1"
    powers = (products / 2).exp()
    assert not _is(given, powers @ v), "the weights do not sum to 1: divide them by their sum"
    assert _is(given, powers / powers.sum() @ v), f"expected {powers / powers.sum() @ v}, and you have {given}"
    large = answer(100 * q, 100 * k, v)
    assert not large.isnan().any(), "large scores give nan: take the largest score away before exp, as .softmax() does"
    print("attend_one: right")


def check_document_mask(answer: Callable[[Tensor], Tensor]) -> None:
    """`document_mask(document_of)`: bool (T, T), True for keys that are not later and of the same document."""
    document_of = torch.tensor([3, 3, 3, 1, 1, 3, 3])  # a number may come again: only equal numbers count
    given = answer(document_of)
    require_an_answer(given)
    n = len(document_of)
    assert isinstance(given, Tensor) and given.shape == (n, n), f"a tensor of shape ({n}, {n}) is wanted"
    same = document_of[:, None] == document_of[None, :]  # (T, T)
    right = same.tril()
    assert given.dtype == torch.bool, f"a bool mask is wanted: {given.dtype} is *added* to the scores in PyTorch"
    assert not torch.equal(given, same), "the future is not masked: a query also sees later tokens of its document"
    assert not torch.equal(given, torch.ones(n, n).tril().bool()), "the documents still see each other"
    assert not torch.equal(given, ~right), "the mask is inverted: True is for what a query may see"
    assert not torch.equal(given, same.triu()), "that is the past masked: rows are queries, columns are keys"
    assert not torch.equal(given, right & ~torch.eye(n).bool()), (
        "a token does not see itself: the first of a document would see nothing, and its softmax is nan"
    )
    assert torch.equal(given, right), f"expected\n{right.int()}\nand you have\n{given.int()}"
    print("document_mask: right")


def check_attention_flops(answer: Callable[[int, int], int]) -> None:
    """`attention_flops(tokens, d_model)`: additions and multiplications of a multi-head layer on a whole text."""
    require_an_answer(answer(2, 4))
    cases = [(1, 8), (16, 64), (1024, 768), (5000, 16)]
    given = [answer(*case) for case in cases]

    def all_are(formula: Callable[[int, int], float]) -> bool:
        return all(abs(number - formula(*case)) < 0.5 for number, case in zip(given, cases, strict=True))

    assert not all_are(lambda t, d: 4 * t * d**2 + 2 * t**2 * d), (
        "half of it: a multiplication and an addition are two operations"
    )
    assert not all_are(lambda t, d: 4 * t**2 * d), "the projections are missing: x is multiplied by four matrices"
    assert not all_are(lambda t, d: 8 * t * d**2), "the scores and the means are missing: they grow with T²"
    assert not all_are(lambda t, d: 6 * t * d**2 + 4 * t**2 * d), "three matrices counted: W_o is the fourth"
    assert not all_are(lambda t, d: 8 * t * d**2 + 2 * t**2 * d), (
        "one product of size T² counted: there are two, queries with keys and weights with values"
    )
    assert not all_are(lambda t, d: 8 * d**2 + 4 * t * d), "that is one token's share: the text has T of them"
    for number, (t, d) in zip(given, cases, strict=True):
        right = 8 * t * d**2 + 4 * t**2 * d
        assert number == right, f"attention_flops({t}, {d}) is {right:,}, and you have {number:,}"
    print("attention_flops: right")


def check_tokens_looked_at(answer: Callable[[Tensor], Tensor]) -> None:
    """`tokens_looked_at(weights)`: e to the entropy of each row, (…, T, T) to (…, T)."""
    (scores,) = _random((2, 3, 5, 5))
    weights = scores.masked_fill(~torch.ones(5, 5).tril().bool(), -torch.inf).softmax(-1)  # (2, 3, 5, 5)
    given = answer(weights)
    require_an_answer(given)
    assert isinstance(given, Tensor), f"return a tensor, not a {type(given).__name__}"
    assert not given.isnan().any(), "0 · ln 0 is nan in floats: a weight of 0 adds nothing (torch.special.entr)"
    entropy = torch.special.entr(weights)  # (2, 3, 5, 5)
    assert given.shape != (2, 3), "one number a head: leave the rows apart, each query has its own"
    assert given.shape == (2, 3, 5), f"one number a row is wanted, (2, 3, 5), and you have {tuple(given.shape)}"
    assert not _is(given, entropy.sum(-1)), "that is the entropy: take e to the power of it, to count in tokens"
    assert not _is(given, (-entropy.sum(-1)).exp()), "the sign: an entropy is -Σ a ln a, and never negative"
    assert not _is(given, (entropy.sum(-1) / torch.tensor(2.0).log()).exp()), (
        "the entropy is in bits (log2), and e to the power wants nats: use log, or 2 to the power"
    )
    assert not _is(given, entropy.sum(-2).exp()), "you add up columns: a row is one query, the last axis is its keys"
    assert not _is(given, entropy.mean(-1).exp()), "an entropy is a sum over the keys, not a mean"
    assert not _is(given, (weights > 0).sum(-1).float()), "that counts what may be seen: a small weight counts little"
    assert _is(given, entropy.sum(-1).exp()), f"the first rows are {entropy.sum(-1).exp()[0, 0]}, not {given[0, 0]}"
    print("tokens_looked_at: right")


class _Seen(Tensor):
    """Keys that remember the most rows of them that a product has taken at once."""

    most = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in (Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.matmul, torch.mv, torch.mm):
            _Seen.most = max([_Seen.most, *(a.numel() // 4 for a in args if isinstance(a, _Seen))])  # d = 4
        return super().__torch_function__(func, types, args, kwargs or {})


def check_attend_in_blocks(answer: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> None:
    """`attend_in_blocks(q, k, v, block)`: as `attend_one`, with `block` scores at a time at most."""
    q, k, v = _random((4,), (10, 4), (10, 3))
    k = 2 * k[(k @ q).argsort()[[4, 1, 6, 2, 9, 3, 8, 5, 7, 0]]]  # in blocks of 4, the largest comes in the second
    scores = k @ q / 2  # (keys,)

    def given(block: int, factor: float = 1.0) -> Tensor:
        y = answer(factor * q, k, v, block)
        require_an_answer(y)
        assert isinstance(y, Tensor) and y.shape == (3,), "return a tensor (d_value,), here (3,)"
        return y

    def means(with_mended: bool, with_mended_total: bool, block: int) -> Tensor:
        largest, total, gathered = torch.tensor(-torch.inf), torch.tensor(0.0), torch.zeros(3)
        for s, some in zip(scores.split(block), v.split(block), strict=True):
            now = torch.maximum(largest, s.max())
            mend, powers = (largest - now).exp(), (s - now).exp()
            total = total * (mend if with_mended_total else 1) + powers.sum()
            gathered = gathered * (mend if with_mended else 1) + powers @ some
            largest = now
        return gathered / total

    whole = given(10)
    assert not _is(whole, (k @ q).softmax(0) @ v), "the scores are not scaled: divide them by √d"
    assert not _is(whole, (scores - scores.max()).exp() @ v), "at the end, divide what was gathered by the total"
    right = scores.softmax(0) @ v  # (d_value,)
    assert _is(whole, right), f"one block of all keys is plain attention: expected {right}, and you have {whole}"
    blocks = given(4)
    local = torch.stack([s.softmax(0) @ some for s, some in zip(scores.split(4), v.split(4), strict=True)])
    assert not _is(blocks, local.mean(0)) and not _is(blocks, local.sum(0)), (
        "each block has a softmax of its own: one total belongs to all blocks, and is divided by once, at the end"
    )
    assert not _is(blocks, local[-1]), "only the last block is left: add to what was gathered before"
    assert not _is(blocks, scores[:8].softmax(0) @ v[:8]), "the last block, which is not full, is left out"
    assert not _is(blocks, means(False, False, 4)), (
        "nothing is mended when a larger score comes: multiply both sums by exp(old largest - new largest)"
    )
    assert not _is(blocks, means(True, False, 4)), "the total is not mended when a larger score comes"
    assert not _is(blocks, means(False, True, 4)), "what was gathered is not mended when a larger score comes"
    assert _is(blocks, right), f"in blocks of 4 expected {right}, and you have {blocks}"
    for block in (1, 3, 9):
        assert _is(given(block), right), f"in blocks of {block} expected {right}, and you have {given(block)}"
    large = given(4, 1000.0)
    assert not large.isnan().any(), (
        "large scores give nan: take the largest score so far away before exp, so that no power is above 1"
    )
    assert _is(large, (1000 * scores).softmax(0) @ v), "wrong for large scores: mend by a difference of two maxima"
    _Seen.most = 0
    answer(q, k.as_subclass(_Seen), v, 3)
    assert _Seen.most <= 3, f"with block=3 a product takes {_Seen.most} keys at once: slice the keys first"
    print("attend_in_blocks: right")
