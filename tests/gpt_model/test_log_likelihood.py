"""Sums of log-probabilities against `transformers` and loops that score one token at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_model.log_likelihood import encode_pair, log_likelihoods, text_log_likelihood, windows_of
from tests.gpt_model.test_gpt import TINY, as_transformers, tiny_gpt
from tests.gpt_model.test_variants import every_variant, lively
from working_with_text_data.bytepair_enc import BytePairTokenizer

CONTEXT = TINY.context_length


def ids_of(seed, n):
    return torch.randint(0, 61, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def alone(logits_of, context, continuation, context_length=CONTEXT):
    """ln p and greediness of one continuation, one token at a time: no batch, no padding."""
    total, greedy, text = 0.0, True, list(context)
    room = context_length + 1 - len(continuation)  # what the windows keep of the context
    text = text[-room:]
    for token in continuation:
        log_p = logits_of(torch.tensor([text]))[0, -1].log_softmax(0)
        total += log_p[token].item()
        greedy &= log_p.argmax().item() == token
        text.append(token)
    return total, greedy


def test_pairs_equal_transformers_one_by_one():
    model = tiny_gpt()
    theirs = as_transformers(model).eval()
    sizes = [(1, 1), (3, 7), (20, 4), (1, 24), (40, 5), (22, 3), (9, 1), (60, 24)]
    pairs = [(ids_of(i, a), ids_of(100 + i, b)) for i, (a, b) in enumerate(sizes)]
    best = theirs(torch.tensor([[5, 6, 7]])).logits[0, -1].argmax().item()
    pairs.append(([5, 6, 7], [best]))
    judged = log_likelihoods(model, pairs, batch_size=3)
    assert model.training  # as it was
    for (total, greedy), (context, continuation) in zip(judged, pairs, strict=True):
        expected = alone(lambda ids: theirs(ids).logits, context, continuation)
        assert total == pytest.approx(expected[0], abs=1e-4)
        assert greedy == expected[1]
    assert judged[-1][1]
    assert not all(greedy for _, greedy in judged)


@every_variant
def test_what_fills_up_a_batch_changes_nothing(name):
    model = lively(name)
    pairs = [(ids_of(i, 2 + i), ids_of(50 + i, 9 - i)) for i in range(8)]
    together = log_likelihoods(model, pairs, batch_size=8)
    for pair, (total, greedy) in zip(pairs, together, strict=True):
        expected = alone(model, *pair)
        assert total == pytest.approx(expected[0], abs=1e-4)
        assert greedy == expected[1]


@given(st.integers(0, 90), st.integers(1, 12), st.data())
def test_every_token_is_judged_once_with_all_the_context_that_was_promised(n, context_length, data):
    stride = data.draw(st.integers(1, context_length))
    ids = list(range(n))
    windows = list(windows_of(ids, context_length, stride))
    assert [i for _, judged in windows for i in judged] == ids[1:]
    for number, (context, judged) in enumerate(windows):
        assert [*context, *judged] == ids[context[0] : judged[-1] + 1]
        assert len(context) + len(judged) <= context_length + 1
        if number:  # the first window has what there is
            assert len(context) >= context_length + 1 - stride


@pytest.mark.parametrize("stride", [1, 5, 12, 24])
@settings(max_examples=5)
@given(n=st.integers(2, 70))
def test_a_text_in_windows_equals_a_loop_over_its_tokens(stride, n):
    model = tiny_gpt().eval()
    theirs = as_transformers(model).eval()
    ids = ids_of(n, n)
    # Which window judges token i is written out here from the definition: the first that ends at or after it.
    expected = 0.0
    for i in range(1, n):
        end = CONTEXT
        while end < min(i, n - 1):
            end += stride
        first = max(min(end, n - 1) - CONTEXT, 0)
        logits = theirs(torch.tensor([ids[first:i]])).logits[0, -1]
        expected += logits.log_softmax(0)[ids[i]].item()
    assert text_log_likelihood(model, ids, stride, batch_size=4) == pytest.approx(expected, abs=1e-3)


def test_a_text_that_fits_is_one_pass_of_transformers():
    model = tiny_gpt().eval()
    ids = ids_of(3, CONTEXT + 1)
    loss = as_transformers(model).eval()(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
    expected = loss[torch.arange(CONTEXT), ids[1:]].sum().item()
    for stride in (None, 1, CONTEXT):
        assert text_log_likelihood(model, ids, stride) == pytest.approx(expected, abs=1e-4)
    uniform = tiny_gpt().eval()
    with torch.no_grad():
        uniform.lm_head.weight.zero_()
    assert text_log_likelihood(uniform, ids) == pytest.approx(-CONTEXT * math.log(61))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([([], [1])], "at least one token each"),
        ([([1], [2]), ([1], [])], "at least one token each"),
        ([([1], [2] * 25)], "a continuation of 25 tokens does not fit the model's context of 24"),
        ([([1], [61])], "ids outside the model's vocabulary of 61"),
        ([([-1], [2])], "ids outside the model's vocabulary of 61"),
    ],
)
def test_what_cannot_be_judged_is_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        log_likelihoods(tiny_gpt(), pairs)


@pytest.mark.parametrize("stride", [-1, 0, 25])
def test_a_stride_that_leaves_gaps_is_refused(stride):
    with pytest.raises(ValueError, match=f"the stride must be from 1 to the model's context of 24, got {stride}"):
        text_log_likelihood(tiny_gpt(), [1, 2, 3], stride)


def test_pairs_are_cut_where_the_context_ends():
    tokenizer = BytePairTokenizer.train(["the cat sat on the mat, the cat"] * 3, 280)
    whole = tokenizer.encode_ordinary("on the cat")
    for context, continuation in (("on the", " cat"), ("on the ", "cat")):
        first, second = encode_pair(tokenizer, context, continuation)
        assert first + second == whole
        assert (tokenizer.decode(first), tokenizer.decode(second)) == ("on the", " cat")
    assert encode_pair(tokenizer, "", "cat") == ([tokenizer.eot_token], tokenizer.encode_ordinary("cat"))
