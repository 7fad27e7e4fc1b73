"""The checks of notebook 01 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import pytest
import torch

from attention_mechanisms.exercises import ex01
from tests.conftest import refuses


def attend_one(q, k, v):
    return (k @ q / len(q) ** 0.5).softmax(0) @ v


def with_plain_powers(q, k, v):
    powers = (k @ q / 2).exp()
    return powers / powers.sum() @ v


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda q, k, v: (k @ q).softmax(0) @ v, "not scaled"),
        (lambda q, k, v: (k @ q / len(q)).softmax(0) @ v, "you divide by d"),
        (lambda q, k, v: (k @ q * len(q) ** 0.5).softmax(0) @ v, "you multiply"),
        (lambda q, k, v: (k @ q / v.shape[1] ** 0.5).softmax(0) @ v, "not that of a value"),
        (lambda q, k, v: (k @ q / len(k) ** 0.5).softmax(0) @ v, "not the number of keys"),
        (lambda q, k, v: (k @ q).softmax(0) / 2 @ v, "before the softmax, not after"),
        (lambda q, k, v: k @ q / 2 @ v, "there is no softmax"),
        (lambda q, k, v: (k @ q / 2).exp() @ v, "do not sum to 1"),
        (lambda q, k, v: (k @ q / 2).softmax(0), "the values are still to be averaged"),
        (lambda q, k, v: attend_one(q, k, v)[None], "drop the axis"),
        (lambda q, k, v: attend_one(q, k, v).tolist(), "not a list"),
        (lambda q, k, v: attend_one(q, k, v.flip(0)), "expected"),
        (with_plain_powers, "large scores give nan"),
    ],
)
def test_attend_one(wrong, message):
    ex01.check_attend_one(attend_one)
    refuses(ex01.check_attend_one, wrong, message)


def same(documents):
    return documents[:, None] == documents[None, :]


def neighbours(documents):
    """Forgets that a document's number may come again."""
    borders = torch.cat([torch.zeros(1, dtype=torch.int64), documents.diff().ne(0).cumsum(0)])
    return same(borders).tril()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (same, "the future is not masked"),
        (lambda documents: torch.ones(len(documents), len(documents)).tril().bool(), "still see each other"),
        (lambda documents: ~same(documents).tril(), "inverted"),
        (lambda documents: same(documents).triu(), "rows are queries"),
        (lambda documents: same(documents).tril(-1), "does not see itself"),
        (lambda documents: same(documents).tril().float(), "a bool mask"),
        (lambda documents: same(documents).tril()[None], "of shape"),
        (neighbours, "expected"),
    ],
)
def test_document_mask(wrong, message):
    ex01.check_document_mask(lambda documents: same(documents).tril())
    refuses(ex01.check_document_mask, wrong, message)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda t, d: 4 * t * d**2 + 2 * t**2 * d, "half of it"),
        (lambda t, d: 4 * t**2 * d, "the projections are missing"),
        (lambda t, d: 8 * t * d**2, "grow with T²"),
        (lambda t, d: 6 * t * d**2 + 4 * t**2 * d, "W_o is the fourth"),
        (lambda t, d: 8 * t * d**2 + 2 * t**2 * d, "there are two"),
        (lambda t, d: 8 * d**2 + 4 * t * d, "one token's share"),
        (lambda t, d: 8 * t * d**2 + 4 * t * d, r"attention_flops\(16, 64\) is"),
    ],
)
def test_attention_flops(wrong, message):
    ex01.check_attention_flops(lambda t, d: t * (8 * d * d + 4 * t * d))
    refuses(ex01.check_attention_flops, wrong, message)


def entropy(weights, axis=-1):
    return torch.special.entr(weights).sum(axis)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda a: (-(a * a.log()).sum(-1)).exp(), "is nan in floats"),
        (entropy, "that is the entropy"),
        (lambda a: (-entropy(a)).exp(), "the sign"),
        (lambda a: (-(a * a.clamp(min=1e-30).log2()).sum(-1)).exp(), "in bits"),
        (lambda a: entropy(a, -2).exp(), "you add up columns"),
        (lambda a: torch.special.entr(a).mean(-1).exp(), "not a mean"),
        (lambda a: (a > 0).sum(-1), "what may be seen"),
        (lambda a: entropy(a, (-2, -1)).exp(), "one number a head"),
        (lambda a: torch.special.entr(a).exp(), "one number a row"),
        (lambda a: 1 / a.square().sum(-1), "the first rows are"),
    ],
)
def test_tokens_looked_at(wrong, message):
    ex01.check_tokens_looked_at(lambda a: entropy(a).exp())
    refuses(ex01.check_tokens_looked_at, wrong, message)


def in_blocks(mend_total=True, mend_gathered=True, with_largest=True, scaled=True, divided=True, whole_blocks=False):
    def attend_in_blocks(q, k, v, block):
        largest, total, gathered = torch.tensor(-torch.inf), torch.tensor(0.0), torch.zeros(v.shape[1])
        end = len(k) - len(k) % block if whole_blocks else len(k)
        for start in range(0, end, block):
            scores = k[start : start + block] @ q / (len(q) ** 0.5 if scaled else 1)
            now = torch.maximum(largest, scores.max()) if with_largest else torch.tensor(0.0)
            mend = (largest - now).exp() if with_largest else torch.tensor(1.0)
            powers = (scores - now).exp()
            total = total * (mend if mend_total else 1) + powers.sum()
            gathered = gathered * (mend if mend_gathered else 1) + powers @ v[start : start + block]
            largest = now
        return gathered / total if divided else gathered

    return attend_in_blocks


def with_many_softmaxes(q, k, v, block):
    parts = zip(k.split(block), v.split(block), strict=True)
    return torch.stack([attend_one(q, some_k, some_v) for some_k, some_v in parts]).mean(0)


def with_the_last_block(q, k, v, block):
    for some_k, some_v in zip(k.split(block), v.split(block), strict=True):
        y = attend_one(q, some_k, some_v)
    return y


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (in_blocks(scaled=False), "not scaled"),
        (in_blocks(divided=False), "divide what was gathered"),
        (in_blocks(mend_total=False, mend_gathered=False), "nothing is mended"),
        (in_blocks(mend_total=False), "the total is not mended"),
        (in_blocks(mend_gathered=False), "what was gathered is not mended"),
        (in_blocks(with_largest=False), "large scores give nan"),
        (in_blocks(whole_blocks=True), "which is not full"),
        (with_many_softmaxes, "a softmax of its own"),
        (with_the_last_block, "only the last block is left"),
        (lambda q, k, v, block: attend_one(q, k, v), "slice the keys first"),
        (lambda q, k, v, block: (q @ k.T / 2).softmax(0) @ v, "slice the keys first"),
        (lambda q, k, v, block: attend_one(q, k[:block], v[:block]), "in blocks of 4 expected"),
    ],
)
def test_attend_in_blocks(wrong, message):
    ex01.check_attend_in_blocks(in_blocks())
    refuses(ex01.check_attend_in_blocks, wrong, message)
