"""Each cut against `transformers`' processors, each option's draws against its exact distribution."""

from __future__ import annotations

from typing import Any

import pytest
import scipy.stats
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from gpt_model.sampling import Sampler, Sampling, count_tokens, invert


def adjust(logits, sampling, seen=()):
    """`Sampler.adjust` of one text."""
    counts = torch.bincount(torch.tensor(seen, dtype=torch.long), minlength=len(logits)).float()[None]
    return Sampler([sampling]).adjust(logits[None], counts)[0]


@given(
    temperature=st.floats(0.1, 3),
    top_k=st.integers(1, 61),
    top_p=st.floats(0.05, 1),
    min_p=st.floats(0, 0.9),
    penalty=st.floats(0.5, 2),
    seed=st.integers(0, 100),
)
def test_the_cuts_equal_transformers_processors(temperature, top_k, top_p, min_p, penalty, seed):
    logits = 3 * torch.randn(61, generator=torch.Generator().manual_seed(seed))
    seen = [1, 5, 9, 5]
    lp: Any = transformers.generation.logits_process
    scores = lp.RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen]), logits[None].clone())
    for warper in (
        lp.TemperatureLogitsWarper(temperature),
        lp.TopKLogitsWarper(top_k),
        lp.TopPLogitsWarper(top_p),
        lp.MinPLogitsWarper(min_p),
    ):
        scores = warper(torch.tensor([seen]), scores)
    ours = adjust(logits, Sampling(temperature, top_k, top_p, min_p, penalty), seen)
    torch.testing.assert_close(ours.softmax(0), scores[0].softmax(0), atol=1e-5, rtol=1e-4)


def test_frequency_and_presence_are_taken_off():
    logits = torch.tensor([1.0, 2.0, 3.0, 4.0])
    ours = adjust(logits, Sampling(frequency_penalty=0.5, presence_penalty=2.0), [3, 1, 3, 3])
    assert ours.tolist() == [1.0, 2.0 - 0.5 - 2.0, 3.0, 4.0 - 1.5 - 2.0]


OPTIONS = [
    Sampling(),
    Sampling(temperature=0.5),
    Sampling(temperature=1.7),
    Sampling(top_k=4),
    Sampling(top_p=0.7),
    Sampling(min_p=0.2),
    Sampling(repetition_penalty=1.8),
    Sampling(frequency_penalty=0.4),
    Sampling(presence_penalty=1.5),
    Sampling(0.8, 6, 0.9, 0.05, 1.2, frequency_penalty=0.1),
]
LOGITS = torch.tensor([2.0, -1.0, 0.5, 1.5, -0.5, 1.0, -2.0, 0.0, 1.8, -1.5])
SEEN = [0, 0, 3, 8, 0]


def exact(logits, s, seen):
    """The distribution in plain Python, from the options' definitions."""
    import math

    x = [float(v) for v in logits]
    for i, v in enumerate(x):
        n = seen.count(i)
        if n:
            x[i] = (v / s.repetition_penalty if v > 0 else v * s.repetition_penalty) - s.presence_penalty
            x[i] -= s.frequency_penalty * n
    x = [v / s.temperature for v in x]

    def probabilities(kept):
        total = sum(math.exp(x[i]) for i in kept)
        return {i: math.exp(x[i]) / total for i in kept}

    kept = sorted(range(len(x)), key=lambda i: -x[i])[: s.top_k or None]
    nucleus, together = [], 0.0
    for i, p in probabilities(kept).items():
        if together < s.top_p:
            nucleus.append(i)
        together += p
    p = probabilities(nucleus)
    p = probabilities([i for i in nucleus if p[i] >= s.min_p * max(p.values())])
    return [p.get(i, 0.0) for i in range(len(x))]


@pytest.mark.parametrize("sampling", OPTIONS, ids=str)
def test_draws_follow_the_exact_distribution(sampling):
    n = 20_000
    sampler = Sampler([sampling])
    counts = torch.bincount(torch.tensor(SEEN), minlength=len(LOGITS)).float()[None]
    probabilities = sampler.probabilities(sampler.adjust(LOGITS[None], counts))
    uniform = torch.rand(n, 1, generator=torch.Generator().manual_seed(1))
    drawn = torch.bincount(invert(probabilities.expand(n, -1).contiguous(), uniform)[:, 0], minlength=len(LOGITS))
    expected = torch.tensor(exact(LOGITS, sampling, SEEN), dtype=torch.float64)
    possible = expected > 0
    assert drawn[~possible].sum() == 0  # what was cut off never comes
    test = scipy.stats.chisquare(drawn[possible].numpy(), (n * expected[possible]).numpy())
    assert test.pvalue > 1e-3


def test_a_wrong_distribution_would_be_noticed():
    """The chi-square test above has teeth: draws at temperature 1 are not those at 0.9."""
    n = 20_000
    uniform = torch.rand(n, 1, generator=torch.Generator().manual_seed(1))
    drawn = torch.bincount(invert(LOGITS.softmax(0).expand(n, -1).contiguous(), uniform)[:, 0], minlength=len(LOGITS))
    expected = torch.tensor(exact(LOGITS, Sampling(temperature=0.9), []), dtype=torch.float64)
    assert scipy.stats.chisquare(drawn.numpy(), (n * expected).numpy()).pvalue < 1e-3


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20).filter(any), st.floats(0, 1, exclude_max=True))
def test_inversion_never_takes_what_has_no_probability(probabilities, uniform):
    p = torch.tensor([probabilities])
    if not p.sum() > 1e-30:
        return
    assert p[0, int(invert(p, torch.tensor([[uniform]])))] > 0


def test_rows_are_drawn_each_by_its_own_settings():
    settings = [Sampling(seed=3), Sampling(temperature=0), Sampling(0.5, 3, seed=3), Sampling(top_p=0.5, seed=9)]
    logits = torch.randn(4, 5000, generator=torch.Generator().manual_seed(0))
    counts = torch.zeros_like(logits)
    together = Sampler(settings)
    alone = [Sampler([s]) for s in settings]
    for _ in range(5):
        drawn = together.draw(together.adjust(logits, counts))
        for row, sampler in enumerate(alone):
            assert drawn[row] == sampler.draw(sampler.adjust(logits[row : row + 1], counts[:1]))
    assert (drawn[1] == logits[1].argmax()).all()


def test_a_wide_nucleus_is_sorted_as_a_whole():
    logits = torch.zeros(1, 3000)  # its best thousand have a third of the probability
    kept = Sampler([Sampling(top_p=0.9)]).adjust(logits).isfinite().sum()
    assert 2699 <= kept <= 2701


def test_tokens_are_counted_after_the_padding():
    ids = torch.tensor([[-1, -1, 2, 2, 0], [1, 1, 1, 2, 3]])
    assert count_tokens(ids, 4, [2, 0]).tolist() == [[1, 0, 2, 0], [0, 3, 1, 1]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": 1e-40},
        {"temperature": float("nan")},
        {"seed": 2**64},
        {"top_k": -1},
        {"top_k": 2**63},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 1e-40},
        {"repetition_penalty": 1e40},
        {"frequency_penalty": float("inf")},
        {"presence_penalty": float("nan")},
    ],
)
def test_bad_sampling_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)
