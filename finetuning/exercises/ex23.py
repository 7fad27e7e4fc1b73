"""Checks of notebook 23, the better answer. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from utils.exercises import require_an_answer


def check_win_probability(answer: Callable[[float, float], float]) -> None:
    """`win_probability(r_a, r_b)`: Bradley-Terry's probability that a is preferred to b."""
    given = answer(math.log(3), 0.0)
    require_an_answer(given)
    p = float(given)
    assert not math.isclose(p, 0.25, abs_tol=1e-6), "that is the probability that b is preferred: take r_a - r_b"
    assert not math.isclose(p, 3.0, abs_tol=1e-6), "e^(r_a - r_b) is the odds, 3 : 1: the probability is ¾"
    assert not math.isclose(p, math.log(3), abs_tol=1e-6), "that is the difference itself: put it through σ"
    assert math.isclose(p, 0.75, abs_tol=1e-6), f"with r_a - r_b = ln 3 a wins ¾ of the time, and you have {p:.4f}"
    p = float(answer(5.0, 6.0))
    assert not math.isclose(p, 5 / 11, abs_tol=1e-3), "rewards are compared as e^r, not as they are: e^5 / (e^5 + e^6)"
    assert math.isclose(p, 1 / (1 + math.e), abs_tol=1e-6), (
        "only the difference counts: 5 against 6 is σ(-1), as 0 against 1 is"
    )
    for r_a, r_b, wanted in ((2000.0, 0.0, 1.0), (0.0, 2000.0, 0.0), (2000.0, 2000.0, 0.5)):
        try:
            p = float(answer(r_a, r_b))
        except (OverflowError, ZeroDivisionError):
            p = math.nan
        assert p == wanted, (
            f"right for small rewards, but r_a = {r_a:g}, r_b = {r_b:g} should give {wanted:g}: e^2000 is no number. "
            "Take the difference first, and e only of what is not above 0"
        )
    print("win_probability: right")


def _near(given: Tensor, wanted: Tensor) -> bool:
    return given.shape == wanted.shape and torch.allclose(given.double(), wanted.double(), atol=1e-5)


def check_best_of(answer: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """`best_of(p_ref, r, beta)`: the policy with the highest reward less beta times KL."""
    p_ref, r, beta = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.0, 1.0, -2.0]), 0.5
    given = answer(p_ref.clone(), r.clone(), beta)
    require_an_answer(given)
    assert isinstance(given, Tensor) and given.shape == (3,), "return a tensor with a probability for each answer"
    raised = p_ref * (r / beta).exp()
    assert not _near(given, raised), "these do not add up to 1: divide by their sum, Z"
    assert not _near(given, torch.softmax(r / beta, 0)), "π_ref is missing: an answer that it never gives stays at 0"
    assert not _near(given, torch.softmax(p_ref + r / beta, 0)), "inside the softmax stands ln π_ref, not π_ref"
    assert not _near(given, torch.softmax(p_ref.log() + r, 0)), "β is missing: r / β stands in the exponent"
    assert not _near(given, torch.softmax(p_ref.log() + r * beta, 0)), (
        "r is divided by β, not multiplied: where distance is dear, rewards count less"
    )
    assert not _near(given, torch.nn.functional.one_hot(r.argmax(), 3)), (
        "that is the best for β = 0: the distance from π_ref costs something here"
    )
    assert not _near(given, torch.softmax(p_ref.log() - r / beta, 0)), "high rewards go up, not down: mind the sign"
    assert _near(given, raised / raised.sum()), "expected π_ref · e^(r / β) / Z"
    never = answer(torch.tensor([0.0, 1.0]), torch.tensor([9.0, 0.0]), 1.0)
    assert _near(never, torch.tensor([0.0, 1.0])), "what the reference never says has probability 0 whatever its reward"
    print("best_of: right")


_POLICY = torch.tensor([[-10.0, -11.0], [-7.0, -3.0]])
_REFERENCE = torch.tensor([[-12.0, -8.0], [-5.0, -4.0]])
_BETA = 0.5
_MARGIN = _BETA * torch.tensor([5.0, -3.0])  # (2 + 3) and (-2 - 1)


def _loss(h: Tensor) -> Tensor:
    return -torch.nn.functional.logsigmoid(h)


def check_dpo_loss(answer: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """`dpo_loss(policy, reference, beta)`: the loss of each pair."""
    given = answer(_POLICY.clone(), _REFERENCE.clone(), _BETA)
    require_an_answer(given)
    assert isinstance(given, Tensor), f"return a tensor, not a {type(given).__name__}"
    h = _MARGIN
    assert not _near(given, _loss(h).mean()) and not _near(given, _loss(h).sum()), (
        "one loss for each pair is asked for: leave out the mean or the sum"
    )
    assert given.shape == (2,), f"expected the shape (pairs,) = (2,), and you have {tuple(given.shape)}"
    assert not _near(given, _loss(-h)), "chosen and rejected have changed places: the chosen answer is in front"
    assert not _near(given, -_loss(h)), "the loss is the negative logarithm: mind the sign"
    assert not _near(given, _loss(h / _BETA)), "β is missing"
    plain = _POLICY[:, 0] - _POLICY[:, 1]
    assert not _near(given, _loss(_BETA * plain)), (
        "the reference is missing: what counts is how each log-probability has moved from it"
    )
    assert not _near(given, 1 - torch.sigmoid(h)), "that is 1 - σ(h): the loss is -ln σ(h)"
    assert _near(given, _loss(h)), "expected -ln σ(h) with h = β · (ratio of the chosen - ratio of the rejected)"
    far = answer(torch.tensor([[-2000.0, 0.0]]), torch.zeros(1, 2), 1.0)
    assert _near(far, torch.tensor([2000.0])), (
        "right for small margins, but at h = -2000 the loss is 2000, not infinite: σ(h) is 0 in float32, so take "
        "logsigmoid, not the logarithm of sigmoid"
    )
    print("dpo_loss: right")


def check_pair_weight(answer: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """`pair_weight(policy, reference, beta)`: how hard each pair pushes."""
    given = answer(_POLICY.clone(), _REFERENCE.clone(), _BETA)
    require_an_answer(given)
    assert isinstance(given, Tensor) and given.shape == (2,), "return a tensor with a number for each pair"
    h = _MARGIN
    wanted = _BETA * torch.sigmoid(-h)
    assert not _near(given, torch.sigmoid(-h)), "β is missing: it stands before both log-probabilities in h"
    assert not _near(given, _BETA * torch.sigmoid(h)), (
        "that grows with the margin: a pair that is understood pushes no longer, so it is σ(-h)"
    )
    assert not _near(given, torch.sigmoid(h)), "that is the probability of the right order: the weight is β · σ(-h)"
    assert not _near(given, -wanted), (
        "the gradient has a minus, and the step goes against the gradient: the push is positive"
    )
    assert not _near(given, _BETA * torch.sigmoid(-h / _BETA)), "β is missing inside σ: h has it, too"
    assert not _near(given, torch.full((2,), _BETA / 2)), "that is the weight at the start, where h = 0"
    assert not _near(given, wanted / 2), "the mean over pairs is not asked for: one weight for each"
    assert _near(given, wanted), "expected β · σ(-h) for each pair"
    print("pair_weight: right")


def check_answer_logprob(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """`answer_logprob(logits, ids, answer)`: the log-probability of the answer's tokens, given all before them."""
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([1, 4, 2, 3, 0, 2, 2])
    said = torch.tensor([False, False, True, True, True, False, False])  # two are filled up
    given = answer(logits.clone(), ids.clone(), said.clone())
    require_an_answer(given)
    assert isinstance(given, Tensor), f"return a tensor, not a {type(given).__name__}"
    logprobs = logits.log_softmax(1)
    own = logprobs[:-1].gather(1, ids[1:, None])[:, 0]  # (tokens - 1,)
    wanted = own[said[1:]].sum()
    unshifted = logprobs.gather(1, ids[:, None])[:, 0]
    assert given.numel() == 1, "return one number: the sum over the answer's tokens"
    given = given.reshape(())
    assert not _near(given, unshifted[said].sum()), (
        "the row at t says what comes *after* t: the token at t + 1 is looked up there, not the one at t"
    )
    assert not _near(given, own.sum()), "prompt and filling count in yours: take the answer's tokens alone"
    assert not _near(given, own[said[:-1]].sum()), (
        "the mask is not shifted as the ids are: `answer` tells which *ids* count, so it loses its first, as ids do"
    )
    assert not _near(given, own[1:4].mean()), "that is the mean: the log-probability of all of them is the sum"
    assert not _near(given, own[1:3].sum()), "the answer's last token is missing: to stop there is part of the answer"
    assert not _near(given, logits[:-1].gather(1, ids[1:, None])[1:4].sum()), (
        "these are logits: log_softmax over the vocabulary makes log-probabilities of them"
    )
    assert not _near(given, own.exp()[said[1:]].sum()), "probabilities multiply, and their *logarithms* add up"
    assert not _near(given, -wanted), "a log-probability is below 0: mind the sign"
    assert _near(given, wanted), "expected the sum of log_softmax(logits)[t, ids[t + 1]] where answer[t + 1]"
    print("answer_logprob: right")
