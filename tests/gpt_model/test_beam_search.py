"""Beam search against `transformers`', and against looking at every text there is."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_model import GPTConfig, Sampling, generate
from gpt_model.beam_search import beam_search
from tests.gpt_model.test_gpt import as_transformers, tiny_gpt
from tests.gpt_model.test_variants import MAKERS, lively

SMALL = GPTConfig(vocab_size=4, context_length=12, n_layer=2, n_head=2, d_model=8)


def sharp(seed, config):
    """A model of which some tokens are far more probable than others."""
    model = tiny_gpt(seed, config).eval()
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(8)
    return model


MODEL = sharp(0, GPTConfig(vocab_size=13, context_length=24, n_layer=2, n_head=2, d_model=16))
THEIRS = as_transformers(MODEL).eval()


@settings(max_examples=25, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    n_beams=st.integers(2, 8),
    length_penalty=st.sampled_from([-1.0, 0.0, 0.6, 1.0, 2.0]),
    stop=st.sets(st.integers(0, 12), max_size=3),
)
def test_texts_and_scores_equal_transformers(prompt, n_beams, length_penalty, stop):
    expected = THEIRS.generate(
        torch.tensor([prompt]),
        max_new_tokens=9,
        num_beams=n_beams,
        num_return_sequences=n_beams,
        length_penalty=length_penalty,
        early_stopping="never",  # their name for: not before the outcome is certain
        do_sample=False,
        eos_token_id=sorted(stop) or None,
        pad_token_id=13,  # no token of the model's, so that it tells where a text has ended
        return_dict_in_generate=True,
        output_scores=True,
    )
    found = beam_search(MODEL, prompt, 9, n_beams, length_penalty, stop)
    torch.testing.assert_close(
        torch.tensor([beam.score for beam in found]), expected.sequences_scores, atol=1e-5, rtol=1e-5
    )
    theirs = [[i for i in row if i != 13] for row in expected.sequences[:, len(prompt) :].tolist()]
    assert [beam.ids for beam in found] == [row[:-1] if row[-1] in stop else row for row in theirs]


@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.0, 1.5])
@pytest.mark.parametrize("stop", [set(), {2}, {0, 3}], ids=str)
def test_enough_beams_find_what_looking_at_every_text_finds(stop, length_penalty):
    model, prompt, longest = sharp(1, SMALL), [1, 3], 4
    texts = {}
    for ids in itertools.product(range(4), repeat=longest):
        end = next((i + 1 for i, token in enumerate(ids) if token in stop), longest)
        logprobs = model(torch.tensor([[*prompt, *ids]]))[0].log_softmax(-1)[len(prompt) - 1 :]
        logprob = sum(logprobs[i, ids[i]].item() for i in range(end))
        texts[ids[:end]] = (logprob / end**length_penalty, logprob)
    best = sorted(texts.items(), key=lambda item: -item[1][0])
    found = beam_search(model, prompt, longest, 4 ** (longest - 1), length_penalty, stop)
    assert len(found) == min(64, len(texts))
    for beam, (ids, (score, logprob)) in zip(found, best, strict=False):
        assert (beam.score, beam.logprob) == pytest.approx((score, logprob), abs=1e-5)
        assert tuple(beam.ids) == (ids[:-1] if ids[-1] in stop else ids)


def test_beams_find_what_greedy_misses():
    probability = {}
    for n_beams in (1, 2, 8):
        probability[n_beams] = [beam_search(MODEL, [i], 8, n_beams)[0].logprob for i in range(13)]
    better = [beams > greedy + 1e-4 for greedy, beams in zip(probability[1], probability[8], strict=True)]
    assert sum(better) >= 4


@pytest.mark.parametrize("name", MAKERS)
def test_one_beam_is_greedy(name):
    model = lively(name)
    for prompt in ([5], [1, 2, 3, 4, 5, 6, 7]):
        (beam,) = beam_search(model, prompt, 16, 1)
        assert beam.ids == list(generate(model, prompt, 16, Sampling(temperature=0)))


@pytest.mark.parametrize("name", MAKERS)
def test_log_probabilities_are_those_of_one_pass(name):
    """Of every variant: rows of any cache go with their beams."""
    model = lively(name)
    found = beam_search(model, [1, 2, 3], 15, 5, length_penalty=0.0)
    assert len({tuple(beam.ids) for beam in found}) == 5
    for beam in found:
        logprobs = model(torch.tensor([[1, 2, 3, *beam.ids]]))[0].log_softmax(-1)[2:-1]
        expected = logprobs.gather(1, torch.tensor(beam.ids)[:, None]).sum().item()
        assert beam.logprob == beam.score == pytest.approx(expected, abs=1e-4)


def test_the_mode_is_as_it_was():
    model = tiny_gpt().train()
    beam_search(model, [1], 2, 2)
    assert model.training


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt_ids": []}, "prompt is empty"),
        ({"prompt_ids": [13]}, "outside the model's vocabulary"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"n_beams": 0}, "n_beams must be at least 1, got 0"),
        ({"length_penalty": math.nan}, "length_penalty must be from -10 to 10, got nan"),
        ({"prompt_ids": [1] * 20, "max_new_tokens": 6}, "20 tokens and 6 new ones do not fit .* context of 24"),
    ],
)
def test_bad_input_is_refused(wrong, message):
    right = {"prompt_ids": [1], "max_new_tokens": 3, "n_beams": 2}
    with pytest.raises(ValueError, match=message):
        beam_search(MODEL, **right | wrong)
