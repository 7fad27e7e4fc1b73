"""Texts that come and go side by side, against each of them written alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_mechanisms import ragged
from gpt_model import Sampling, generate_tokens
from gpt_model.continuous_batching import ContinuousBatch
from tests.gpt_model.test_variants import MAKERS, every_variant, lively

CONTEXT, VOCABULARY = 24, 61


def model_of(name):
    """In float64, so that a draw does not hang on a rounding."""
    return lively(name).double().eval()


def finish(batch, texts):
    """Steps until all is written: the tokens of each text, and why it ended."""
    tokens: Any = {text: [] for text in texts}
    ends: Any = {}
    while batch.n_texts:
        for text, token, end in batch.step():
            assert text not in ends
            if token:
                tokens.setdefault(text, []).append(token)
            if end:
                ends[text] = end
    return tokens, ends


def alone(model, text, n_prompt):
    """What `generate_tokens` makes of a text, without the tokens that do not fit the context."""
    tokens = list(
        generate_tokens(
            model, [text.ids[:n_prompt]], text.max_new_tokens, text.sampling, text.stop, n_logprobs=text.n_logprobs
        )
    )
    fit = len(tokens) if text.slide else CONTEXT - min(n_prompt, CONTEXT) + 1
    return tokens[:fit]


sampling = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 99),
)
asks = st.tuples(
    st.lists(st.integers(0, 3), min_size=1, max_size=30),  # few ids, so that prompts begin alike
    st.integers(1, 40),
    sampling,
    st.sets(st.integers(0, VOCABULARY - 1), max_size=6),
    st.sampled_from([None, 0, 3]),
    st.booleans(),
    st.integers(0, 9),  # steps before it comes
)


@every_variant
@settings(max_examples=15, deadline=None)
@given(asks=st.lists(asks, min_size=1, max_size=7), n_rows=st.integers(1, 4), chunk=st.sampled_from([1, 3, 100]))
def test_a_text_among_others_is_the_text_alone(name, asks, n_rows, chunk):
    model = model_of(name)
    batch = ContinuousBatch(model, n_rows, chunk=chunk)
    texts: Any = []
    tokens: Any = {}
    ends: Any = {}
    for prompt, *rest, steps in asks:
        texts.append(batch.add(prompt, *rest))
        for _ in range(steps):
            for text, token, end in batch.step():
                tokens.setdefault(text, []).extend([token] if token else [])
                ends |= {text: end} if end else {}
    later, later_ends = finish(batch, texts)
    ends |= later_ends
    for text in texts:
        ours, expected = tokens.get(text, []) + later[text], alone(model, text, text.n_prompt)
        assert [token.id for token in ours] == [token.id for token in expected]
        for mine, theirs in zip(ours, expected, strict=True):
            assert mine.row == text.number
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-6)
            assert [i for i, _ in mine.alternatives] == [i for i, _ in theirs.alternatives]
        assert text.ids[text.n_prompt :] == [token.id for token in ours]
        full = not text.slide and min(text.n_prompt, CONTEXT) + text.n_new > CONTEXT
        assert ends[text] == ("length" if text.n_new == text.max_new_tokens else "context" if full else "stop")
    assert batch.n_writing == 0 and not batch.waiting


def test_the_reason_of_an_end():
    model = model_of("rope")
    greedy = Sampling(temperature=0)
    first = next(generate_tokens(model, [[1, 2, 3]], 1, greedy)).id
    batch = ContinuousBatch(model, 4)
    stopped = batch.add([1, 2, 3], 5, greedy, stop={first})
    long, full = batch.add([1, 2], 5, greedy), batch.add([1, 2], 100, greedy)
    tokens, ends = finish(batch, [stopped, long, full])
    assert ends == {stopped: "stop", long: "length", full: "context"}
    assert [len(tokens[text]) for text in (stopped, long, full)] == [0, 5, CONTEXT - 1]


def test_a_cancelled_text_ends_at_the_next_step_and_the_others_do_not_notice():
    model = model_of("gqa")
    batch = ContinuousBatch(model, 2)
    texts = [batch.add([n, n + 1], 12, Sampling(seed=n)) for n in range(4)]  # two of them wait
    for _ in range(3):
        batch.step()
    texts[0].cancelled = texts[3].cancelled = True
    progress = batch.step()
    assert {p.text: p.finish for p in progress if p.finish} == {texts[0]: "cancelled", texts[3]: "cancelled"}
    assert texts[0].n_new == 3 and texts[3].n_new == 0
    finish(batch, texts)
    for text in texts[1:3]:
        assert text.ids[2:] == [token.id for token in alone(model, text, 2)]


def count_read(model):
    """The tokens that the model reads from now on, in a list."""
    read = []
    model.transformer.register_forward_pre_hook(lambda module, args: read.append(args[0].numel()))
    return read


@pytest.mark.parametrize("name", ["learned", "mla", "gqa, modern"])
def test_the_next_turn_reads_what_is_new_alone(name):
    model = model_of(name)
    batch = ContinuousBatch(model, 3)
    others = batch.add([9, 9, 9], 2, Sampling(seed=1))
    first = batch.add([1, 2, 3, 4, 5], 4, Sampling(seed=2))
    finish(batch, [others, first])
    second = batch.add([*first.ids, 6, 7], 3, Sampling(seed=3))
    read = count_read(model)
    finish(batch, [second])
    assert second.n_reused == 8  # the last of the four drawn tokens was never read
    assert sum(read) == 3 + 2  # it and the two new ones, and two of the three drawn
    assert second.ids[11:] == [token.id for token in alone(model, second, 11)]


def test_a_beginning_is_shared_while_its_first_reader_still_writes():
    model = model_of("learned")
    batch = ContinuousBatch(model, 3)
    system = [1, 2, 3, 4, 5, 6, 7, 8]
    one = batch.add([*system, 9], 12, Sampling(seed=1))
    batch.step()
    other = batch.add([*system, 10, 11], 12, Sampling(seed=2))
    finish(batch, [one, other])
    assert other.n_reused == 8
    for text, n in ((one, 9), (other, 10)):
        assert text.ids[n:] == [token.id for token in alone(model, text, n)]


def test_a_regenerated_answer_takes_the_row_of_the_first():
    model = model_of("learned")
    batch = ContinuousBatch(model, 3)
    for _ in range(3):
        text = batch.add([1, 2, 3, 4, 5], 4, Sampling(seed=2))
        finish(batch, [text])
    assert text.n_reused == 4
    assert sum(bool(row.ids) for row in batch.rows) == 1


def test_a_long_prompt_does_not_stop_those_who_write():
    model = model_of("learned")
    batch = ContinuousBatch(model, 2, chunk=4)
    writing = batch.add([1, 2], 20, Sampling(seed=1))
    batch.step()
    batch.add([3] * 20, 2)
    for step in range(5):
        assert [p.text for p in batch.step() if p.token][:1] == [writing], step


def test_everything_at_random_for_a_while():
    """Hundreds of texts through three rows, a third of them cancelled on the way."""
    model, rng = model_of("swa"), random.Random(0)
    batch = ContinuousBatch(model, 3, chunk=5)
    texts: Any = []
    while len(texts) < 150 or batch.n_texts:
        if len(texts) < 150 and rng.random() < 0.4:
            prompt = [rng.randrange(3) for _ in range(rng.randrange(1, 20))]
            texts.append(batch.add(prompt, rng.randrange(1, 15), Sampling(seed=rng.randrange(9)), slide=True))
        if texts and rng.random() < 0.1:
            rng.choice(texts).cancelled = True
        batch.step()
    for text in texts:
        expected = [token.id for token in alone(model, text, text.n_prompt)]
        assert text.ids[text.n_prompt :] == expected[: text.n_new]
        assert text.cancelled or text.n_new == text.max_new_tokens


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda b: b.add([], 3), "the prompt is empty"),
        (lambda b: b.add([VOCABULARY], 3), "outside the model's vocabulary"),
        (lambda b: b.add([1], 0), "max_new_tokens must be at least 1"),
        (lambda b: ContinuousBatch(b.model, 0), "n_rows=0"),
        (lambda b: ContinuousBatch(b.model, 1, CONTEXT + 1), "from 1 to the model's context"),
    ],
)
def test_what_cannot_be_is_refused(bad, message):
    batch = ContinuousBatch(model_of("learned"), 1)
    with pytest.raises(ValueError, match=message):
        bad(batch)
    assert not batch.n_texts


def test_every_variant_has_its_ragged_cache():
    assert {type(layer) for name in MAKERS for layer in MAKERS[name]().make_cache(1).layers} == set(ragged._RAGGED)
