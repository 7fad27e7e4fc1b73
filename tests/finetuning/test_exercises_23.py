"""The checks of notebook 23 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
import torch.nn.functional as F

from finetuning.exercises import ex23
from finetuning.instruction.dpo import PreferenceLoss, answer_logprobs
from gpt_model import GPT
from tests.conftest import refuses


def stable(r_a, r_b):
    return torch.sigmoid(torch.tensor(r_a - r_b, dtype=torch.float64)).item()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda r_a, r_b: stable(r_b, r_a), "b is preferred"),
        (lambda r_a, r_b: math.exp(r_a - r_b), "the odds"),
        (lambda r_a, r_b: r_a - r_b, "the difference itself"),
        (lambda r_a, r_b: 0.5, "and you have 0.5000"),
        (lambda r_a, r_b: r_a / (r_a + r_b) if r_b else 0.75, "not as they are"),
        (lambda r_a, r_b: stable(r_a, 0.0), "only the difference counts"),
        (lambda r_a, r_b: math.exp(r_a) / (math.exp(r_a) + math.exp(r_b)), "right for small rewards"),
        (lambda r_a, r_b: 1 / (1 + math.exp(-(r_a - r_b))), "r_a = 0, r_b = 2000 should give 0"),
    ],
)
def test_win_probability(wrong, message):
    ex23.check_win_probability(stable)
    refuses(ex23.check_win_probability, wrong, message)


def by_ascent(p_ref, r, beta):
    """The same optimum without the formula: gradient ascent on what is to be maximised."""
    theta = p_ref.clamp(min=1e-12).log().clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=0.05)
    for _ in range(1500):
        p = theta.softmax(0)
        loss = -(p * (r - beta * (p.log() - p_ref.clamp(min=1e-12).log()))).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return theta.detach().softmax(0)


def tilted(exponent, reference=torch.log, normed=True):
    """An answer with one part that may be wrong."""

    def best_of(p_ref, r, beta):
        scores = reference(p_ref) + exponent(r, beta)
        return scores.softmax(0) if normed else scores.exp()

    return best_of


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (tilted(lambda r, beta: r / beta, normed=False), "do not add up to 1"),
        (tilted(lambda r, beta: r / beta, reference=torch.zeros_like), "π_ref is missing"),
        (tilted(lambda r, beta: r / beta, reference=torch.clone), "stands ln π_ref"),
        (tilted(lambda r, beta: r), "β is missing"),
        (tilted(lambda r, beta: r * beta), "divided by β"),
        (tilted(lambda r, beta: -r / beta), "mind the sign"),
        (lambda p_ref, r, beta: F.one_hot(r.argmax(), len(r)).float(), "for β = 0"),
        (lambda p_ref, r, beta: p_ref, "expected π_ref"),
        (lambda p_ref, r, beta: torch.softmax((p_ref + 1e-9).log().clamp(min=-2) + r / beta, 0), "never says"),
        (lambda p_ref, r, beta: 0.5, "return a tensor"),
    ],
)
def test_best_of(wrong, message):
    ex23.check_best_of(tilted(lambda r, beta: r / beta))
    refuses(ex23.check_best_of, wrong, message)


def test_the_best_policy_is_where_gradient_ascent_arrives():
    p_ref, r = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.0, 1.0, -2.0])
    expected = tilted(lambda r, beta: r / beta)(p_ref, r, 0.5)
    torch.testing.assert_close(by_ascent(p_ref, r, 0.5), expected, rtol=0, atol=1e-4)


def of_the_module(policy, reference, beta):
    loss = PreferenceLoss(beta)
    return loss(loss.rewards(policy, reference, torch.ones_like(policy)))


def loss_of(margin, of=lambda h: -F.logsigmoid(h)):
    return lambda policy, reference, beta: of(margin(policy, reference, beta))


def margin(policy, reference, beta):
    ratios = policy - reference
    return beta * (ratios[:, 0] - ratios[:, 1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda *a: of_the_module(*a).mean(), "leave out the mean"),
        (lambda *a: of_the_module(*a).sum(), "leave out the mean or the sum"),
        (lambda *a: -F.logsigmoid(a[2] * (a[0] - a[1])), r"expected the shape"),
        (loss_of(lambda *a: -margin(*a)), "changed places"),
        (loss_of(margin, F.logsigmoid), "negative logarithm"),
        (loss_of(lambda p, q, beta: margin(p, q, 1.0)), "β is missing"),
        (loss_of(lambda p, q, beta: margin(p, 0 * q, beta)), "the reference is missing"),
        (loss_of(margin, lambda h: 1 - h.sigmoid()), "1 - σ"),
        (loss_of(margin, lambda h: -h.sigmoid().log()), "take logsigmoid"),
        (loss_of(margin, lambda h: h**2), "expected -ln"),
        (lambda *a: 0.5, "return a tensor"),
    ],
)
def test_dpo_loss(wrong, message):
    ex23.check_dpo_loss(loss_of(margin))
    ex23.check_dpo_loss(of_the_module)
    refuses(ex23.check_dpo_loss, wrong, message)


def weight_of_the_module(policy, reference, beta):
    """The same from autograd."""
    learning = policy.clone().requires_grad_()
    of_the_module(learning, reference, beta).sum().backward()
    assert learning.grad is not None
    return -learning.grad[:, 0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda *a: torch.sigmoid(-margin(*a)), "β is missing: it stands"),
        (lambda *a: a[2] * torch.sigmoid(margin(*a)), "a pair that is understood"),
        (lambda *a: torch.sigmoid(margin(*a)), "the right order"),
        (lambda *a: -weight_of_the_module(*a), "the push is positive"),
        (lambda p, q, beta: beta * torch.sigmoid(-margin(p, q, 1.0)), "missing inside σ"),
        (lambda *a: torch.full((2,), a[2] / 2), "at the start"),
        (lambda *a: weight_of_the_module(*a) / 2, "the mean over pairs"),
        (lambda *a: margin(*a), "expected β"),
        (lambda *a: weight_of_the_module(*a).sum(), "a number for each pair"),
    ],
)
def test_pair_weight(wrong, message):
    ex23.check_pair_weight(lambda *a: a[2] * torch.sigmoid(-margin(*a)))
    ex23.check_pair_weight(weight_of_the_module)
    refuses(ex23.check_pair_weight, wrong, message)


def own_logprobs(logits, ids):
    return logits[:-1].log_softmax(1).gather(1, ids[1:, None])[:, 0]  # (tokens - 1,)


def right_logprob(logits, ids, answer):
    return own_logprobs(logits, ids)[answer[1:]].sum()


class Says:
    """What `answer_logprobs` asks of a model: here the vectors are the logits."""

    def __init__(self, logits):
        self.logits = logits

    def hidden_states(self, ids):
        return self.logits[None, : ids.shape[1]]

    def logits_of(self, vectors):
        return vectors


def logprob_of_the_module(logits, ids, answer):
    return answer_logprobs(cast(GPT, Says(logits)), ids[None], answer[None])[0]


def without_its_end(logits, ids, answer):
    kept = answer.clone()
    kept[answer.nonzero().max()] = False
    return right_logprob(logits, ids, kept)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda z, ids, a: z.log_softmax(1).gather(1, ids[:, None])[:, 0][a].sum(), r"what comes \*after\* t"),
        (lambda z, ids, a: own_logprobs(z, ids).sum(), "prompt and filling"),
        (lambda z, ids, a: own_logprobs(z, ids)[a[:-1]].sum(), "the mask is not shifted"),
        (lambda z, ids, a: own_logprobs(z, ids)[a[1:]].mean(), "that is the mean"),
        (without_its_end, "the answer's last token"),
        (lambda z, ids, a: z[:-1].gather(1, ids[1:, None])[:, 0][a[1:]].sum(), "these are logits"),
        (lambda z, ids, a: own_logprobs(z, ids).exp()[a[1:]].sum(), "logarithms"),
        (lambda *a: -right_logprob(*a), "below 0"),
        (lambda z, ids, a: own_logprobs(z, ids)[a[1:]], "return one number"),
        (lambda z, ids, a: z.sum(), "expected the sum"),
        (lambda z, ids, a: 1.0, "return a tensor"),
    ],
)
def test_answer_logprob(wrong, message):
    ex23.check_answer_logprob(right_logprob)
    ex23.check_answer_logprob(logprob_of_the_module)
    refuses(ex23.check_answer_logprob, wrong, message)
