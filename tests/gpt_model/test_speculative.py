"""Speculative decoding: greedy against `generate`, draws against exact joint distributions, averages against theory."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_model import GPT, GPTConfig, Sampling, generate, speculative
from gpt_model.sampling import Sampler, invert
from gpt_model.speculative import Speculation, generate_speculatively, judge, look_up
from tests.gpt_model.test_gpt import tiny_gpt
from tests.gpt_model.test_sampling import exact
from tests.gpt_model.test_variants import MAKERS, SHAPE, lively

GREEDY = Sampling(temperature=0)
SMALL = GPTConfig(vocab_size=3, context_length=12, n_layer=1, n_head=1, d_model=8)


def sharp(seed, config=SMALL):
    """A model of which some tokens are far more probable than others."""
    model = tiny_gpt(seed, config).eval()
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(12)
    return model


def like(model, noise):
    """A draft that is nearly right."""
    draft = type(model)(model.config)
    draft.load_state_dict(model.state_dict())
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return draft


MODEL = sharp(3)
GUESSERS = {"good draft": like(MODEL, 0.03), "bad draft": sharp(0), "prompt lookup": look_up}
PROMPT = [1, 2, 0, 1, 2]  # after which prompt lookup guesses 0, 1


def window(text, context):
    """What `generate` reads of a text."""
    start = 0
    for length in range(len(PROMPT), len(text) + 1):
        if length - start > context:
            start = length - context // 2
    return text[start:]


def joint(model, sampling, n):
    """The exact probability of each continuation of PROMPT by `n` tokens, by plain passes and plain arithmetic."""
    found = {}
    for ids in itertools.product(range(3), repeat=n):
        probability = 1.0
        for i, token in enumerate(ids):
            text = [*PROMPT, *ids[:i]]
            logits = model(torch.tensor([window(text, model.config.context_length)]))[0, -1].detach()
            probability *= exact(logits, sampling, text)[token]
        found[ids] = probability
    return found


def p_value(guesser, sampling, model=MODEL, n_draws=250):
    """Of a chi-square test of texts of three tokens against the exact distribution."""
    expected = joint(model, sampling, 3)
    drawn = dict.fromkeys(expected, 0)
    for seed in range(n_draws):
        drawn[tuple(generate_speculatively(model, PROMPT, 3, replace(sampling, seed=seed), (), guesser, 2))] += 1
    assert not any(drawn[ids] for ids, p in expected.items() if p == 0)  # what was cut off never comes
    # The test wants some 5 of each kind: what is expected more seldom is counted as one kind.
    often = [ids for ids, p in expected.items() if p * n_draws >= 5]
    counts, wanted = [drawn[ids] for ids in often], [expected[ids] * n_draws for ids in often]
    rest = n_draws - sum(wanted)
    if rest > 1:
        counts, wanted = [*counts, n_draws - sum(counts)], [*wanted, rest]
    scale = sum(counts) / sum(wanted)  # 1, unless a rest too small to count was left out
    return float(scipy.stats.chisquare(counts, [w * scale for w in wanted]).pvalue)


@pytest.mark.parametrize("guesser", GUESSERS)
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.4),
        Sampling(top_k=2),
        Sampling(top_p=0.8),
        Sampling(repetition_penalty=2.5),
        Sampling(0.9, 3, 0.9, 0.02, 0.8, frequency_penalty=0.7, presence_penalty=0.3),
    ],
    ids=str,
)
def test_texts_follow_the_exact_distribution(guesser, sampling):
    assert p_value(GUESSERS[guesser], sampling) > 1e-3


@pytest.mark.parametrize("guesser", GUESSERS)
def test_texts_do_so_beyond_the_end_of_the_context(guesser):
    model = sharp(3, replace(SMALL, context_length=6))
    assert p_value(GUESSERS[guesser], Sampling(), model) > 1e-3


def replaced_from_p(p, q, guesses, uniform):
    """Draws another token from p rather than from what is left of it."""
    accepted, _ = judge(p, q, guesses, uniform)
    return accepted, invert(p[accepted], uniform[-1:, None])[:, 0]


def accepts_what_is_possible(p, q, guesses, uniform):
    """Whatever has some probability."""
    return judge(p, q, guesses, torch.cat([torch.zeros_like(uniform[:-1]), uniform[-1:]]))


@pytest.mark.parametrize("guesser", GUESSERS)
@pytest.mark.parametrize("rule", [replaced_from_p, accepts_what_is_possible])
def test_a_wrong_rule_would_be_noticed(rule, guesser, monkeypatch):
    """The chi-square tests above have teeth."""
    monkeypatch.setattr(speculative, "judge", rule)
    assert p_value(GUESSERS[guesser], Sampling()) < 1e-3


def test_guesses_that_were_not_counted_would_be_noticed(monkeypatch):
    right: Any = speculative.counts_along

    def only_the_text(text, guesses, sampler, vocab_size):
        return right(text, guesses, sampler, vocab_size)[:1].expand(len(guesses) + 1, -1)

    monkeypatch.setattr(speculative, "counts_along", only_the_text)
    assert p_value(GUESSERS["bad draft"], Sampling(frequency_penalty=1.5)) < 1e-3


def test_one_step_follows_p_whatever_q_is():
    torch.manual_seed(0)
    for _ in range(3):
        p, q = (3 * torch.randn(2, 1, 6)).softmax(dim=-1)
        p[0, 0] = 0  # q may guess what p has cut off
        p /= p.sum()
        drawn = torch.zeros(6)
        for _ in range(2000):
            guess = invert(q, torch.rand(1, 1))[0]
            accepted, last = judge(torch.cat([p, p]), q, guess, torch.rand(2))
            drawn[guess if accepted else last] += 1
        assert drawn[0] == 0
        assert scipy.stats.chisquare(drawn[1:], 2000 * p[0, 1:]).pvalue > 1e-3


@pytest.mark.parametrize("guesser", ["draft", "prompt lookup"])
def test_the_averages_are_those_of_the_theory(guesser):
    """Models whose logits are the same everywhere accept with one known probability."""

    def constant(seed):
        model = tiny_gpt(seed, GPTConfig(vocab_size=8, context_length=2048, n_layer=1, n_head=1, d_model=8)).eval()
        with torch.no_grad():
            model.transformer.ln_f.weight.zero_()
            model.transformer.ln_f.bias.mul_(150)
        return model

    model, draft = constant(0), constant(2)
    p, q = (one(torch.tensor([[0]]))[0, 0].softmax(0) for one in (model, draft))
    speculation = Speculation()
    text = generate_speculatively(
        model, [0], 1500, Sampling(seed=0), (), draft if guesser == "draft" else look_up, 3, speculation
    )
    n = len(list(text))
    assert n == speculation.accepted + speculation.passes == 1500
    if guesser == "draft":
        a = torch.minimum(p, q).sum().item()
        assert 0.2 < a < 0.8
        assert speculation.acceptance_rate == pytest.approx(a, abs=0.05)  # some 3.5 deviations
        assert speculation.tokens_per_pass == pytest.approx((1 - a**4) / (1 - a), rel=0.07)
    else:  # what is looked up is drawn from p itself, nearly, and accepted with its probability
        assert speculation.acceptance_rate == pytest.approx(p.square().sum().item(), abs=0.06)


@pytest.mark.parametrize("name", [name for name in MAKERS if "swa" not in name])
@settings(max_examples=6, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 60), min_size=1, max_size=30),
    n_guess=st.integers(1, 7),
    guesser=st.sampled_from(["draft", "twin", "lookup"]),
    draft_context=st.integers(1, 30),
)
def test_greedy_text_is_that_of_generate(name, prompt, n_guess, guesser, draft_context):
    """Over the ends of both contexts, of which the model's is 24."""
    model = lively(name)
    draft = tiny_gpt(1, GPTConfig(**SHAPE | {"context_length": draft_context, "n_layer": 1}))
    guess = {"draft": draft, "twin": like(model, 0.01), "lookup": None}[guesser]
    ids = list(generate_speculatively(model, prompt, 45, GREEDY, (), guess, n_guess))
    assert ids == list(generate(model, prompt, 45, GREEDY))


def test_penalties_of_greedy_text_grow_with_the_guesses():
    model = lively("rope")
    sampling = Sampling(temperature=0, repetition_penalty=1.3, frequency_penalty=0.2)
    expected = list(generate(model, [3], 40, sampling))
    assert expected != list(generate(model, [3], 40, GREEDY))
    for guesser in (like(model, 0.01), look_up):
        assert list(generate_speculatively(model, [3], 40, sampling, guesser=guesser)) == expected


@pytest.mark.parametrize("name", ["learned", "gqa", "mla"])
@pytest.mark.parametrize("sampling", [Sampling(seed=1), Sampling(0.8, 20, 0.9, 0.01, 1.2, seed=1), GREEDY], ids=str)
def test_a_model_that_guesses_for_itself_is_always_right(name, sampling):
    model, speculation = lively(name), Speculation()
    assert len(list(generate_speculatively(model, [1], 20, sampling, (), model, 4, speculation))) == 20
    assert speculation == Speculation(passes=4, guessed=16, judged=16, accepted=16)
    assert (speculation.acceptance_rate, speculation.tokens_per_pass) == (1, 5)


def test_lookup_takes_the_latest_of_the_longest():
    sampler = Sampler([Sampling()])

    def found(text, n):
        return look_up(text, n, sampler)[0].tolist()

    assert found([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], 2) == [4, 9]  # three tokens are more than two that came later
    assert found([7, 3, 4, 8, 3, 5, 9, 3], 2) == [5, 9]  # the later of two
    assert found([1, 2, 6, 1, 2], 7) == [6, 1, 2, 6, 1, 2, 6]  # a text that repeats itself
    assert found([1, 2, 3], 4) == found([1], 4) == []


def test_a_seed_repeats_and_another_differs():
    model, draft = lively("learned"), lively("learned", 1)
    for guesser in (draft, look_up):
        texts = [list(generate_speculatively(model, [1], 20, Sampling(seed=s), (), guesser)) for s in (1, 1, 2)]
        assert texts[0] == texts[1] != texts[2]


def test_stop_ids_end_the_text_and_are_not_given():
    model = lively("learned")
    free = list(generate(model, [1], 10, GREEDY))
    for stop in set(free):
        ids = list(generate_speculatively(model, [1], 10, GREEDY, {stop}, like(model, 0.001)))
        assert ids == free[: free.index(stop)]


def test_no_more_than_was_asked_for():
    model = lively("learned")
    for n in range(8):
        assert len(list(generate_speculatively(model, [1, 2, 1], n, GREEDY, (), model, n_guess=3))) == n


def test_the_models_modes_are_as_they_were():
    model, draft = lively("learned").train(), lively("gqa").eval()
    text = generate_speculatively(model, [1], 9, guesser=draft)
    next(text)
    assert not model.training and not draft.training
    text.close()
    assert model.training and not draft.training


def test_a_sliding_window_is_refused_unless_the_text_stays_within_it():
    model = lively("swa")  # a window of 5
    with pytest.raises(ValueError, match="window of 5 cannot take back guesses in a text of 6 tokens"):
        next(generate_speculatively(model, [1, 2], 4, GREEDY))
    with pytest.raises(ValueError, match="window of 5 cannot take back"):
        next(generate_speculatively(lively("rope"), [1, 2], 4, GREEDY, guesser=model))
    within = list(generate_speculatively(model, [1, 2], 3, GREEDY, guesser=lively("rope")))
    assert within == list(generate(model, [1, 2], 3, GREEDY))


def test_bad_input_is_refused():
    model = tiny_gpt()
    with pytest.raises(ValueError, match="prompt is empty"):
        next(generate_speculatively(model, [], 1))
    with pytest.raises(ValueError, match="outside the model's vocabulary"):
        next(generate_speculatively(model, [61], 1))
    with pytest.raises(ValueError, match="n_guess must be at least 1, got 0"):
        next(generate_speculatively(model, [1], 1, n_guess=0))
    other = GPT(replace(model.config, vocab_size=60))
    with pytest.raises(ValueError, match="vocabulary of 60 tokens and the model one of 61"):
        next(generate_speculatively(model, [1], 1, guesser=other))
