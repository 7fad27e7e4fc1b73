"""The checks of notebook 13 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pretraining.distributed import clip_gradients
from pretraining.exercises import ex13
from pretraining.losses import _loss_and_gradient
from pretraining.training_loop import LossWatch
from tests.conftest import refuses
from working_with_text_data.token_shards import IGNORE


def descent(factor=2.0, over=len, of_w=lambda e, x: e * x, sign=-1.0):
    """An answer with one part that may be wrong."""

    def descend_once(w, b, xs, ys, rate):
        errors = [w * x + b - y for x, y in zip(xs, ys, strict=True)]
        by_w = factor * sum(of_w(e, x) for e, x in zip(errors, xs, strict=True)) / over(xs)
        return w + sign * rate * by_w, b + sign * rate * factor * sum(errors) / over(xs)

    return descend_once


def one_after_the_other(w, b, xs, ys, rate):
    w, _ = descent()(w, b, xs, ys, rate)
    return w, descent()(w, b, xs, ys, rate)[1] if len(xs) == 3 else 1.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (descent(sign=1.0), "uphill"),
        (descent(over=lambda xs: 1), "you sum over the observations"),
        (descent(factor=1.0), "the 2 is missing"),
        (descent(of_w=lambda e, x: e), "has a factor x"),
        (lambda w, b, xs, ys, rate: descent()(w, b, xs, ys, 1.0), "the rate is not used"),
        (lambda w, b, xs, ys, rate: descent(sign=1.0)(0, 0, xs, ys, 1.0), "that is the gradient"),
        (descent(over=lambda xs: 2), "len"),
        (one_after_the_other, "before either moves"),
        (lambda w, b, xs, ys, rate: w, "return two numbers"),
        (lambda w, b, xs, ys, rate: (w, b), "expected"),
    ],
)
def test_descend_once(wrong, message):
    ex13.check_descend_once(descent())
    refuses(ex13.check_descend_once, wrong, message)


def autograd(w, b, xs, ys, rate):
    numbers = torch.tensor([w, b], dtype=torch.float64, requires_grad=True)
    x, y = torch.tensor(xs, dtype=torch.float64), torch.tensor(ys, dtype=torch.float64)
    (numbers[0] * x + numbers[1] - y).square().mean().backward()
    return tuple((numbers - rate * numbers.grad).tolist())


def test_autograd_descends_the_same():
    ex13.check_descend_once(autograd)


def sums_of(parts):
    return [F.cross_entropy(x, t, ignore_index=IGNORE, reduction="sum").item() for x, t in parts]


def asked_in(parts):
    return [int((t != IGNORE).sum()) for _, t in parts]


def step_loss(parts):
    return sum(sums_of(parts)) / sum(asked_in(parts))


def mean_of_means(parts):
    return sum(F.cross_entropy(x, t, ignore_index=IGNORE).item() for x, t in parts) / len(parts)


def weighted_means(parts):
    """Right, but for a part without targets, whose mean is 0 / 0."""
    means = [F.cross_entropy(x, t, ignore_index=IGNORE).item() for x, t in parts]
    return sum(m * n for m, n in zip(means, asked_in(parts), strict=True)) / sum(asked_in(parts))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (mean_of_means, "mean of the parts' means"),
        (lambda parts: mean_of_means(parts) * len(parts), "the parts' means are added up"),
        (lambda parts: sum(sums_of(parts)), "that is the sum"),
        (lambda parts: sum(sums_of(parts)) / sum(len(t) for _, t in parts), "those with IGNORE"),
        (lambda parts: sum(sums_of(parts)) / len(parts), "by the number of parts"),
        (lambda parts: step_loss(parts[-1:]), "only the last part"),
        (weighted_means, "0 / 0"),
        (lambda parts: -step_loss(parts), "expected"),
    ],
)
def test_step_loss(wrong, message):
    ex13.check_step_loss(step_loss)
    refuses(ex13.check_step_loss, wrong, message)


def norm_of(gradients):
    return math.sqrt(sum(float(g.square().sum()) for g in gradients))


def clipper(norm=norm_of, applies=lambda norm, most: most > 0 and norm > most):
    """An answer with one part that may be wrong."""

    def clip_jointly(gradients, most):
        length = norm(gradients)
        scale = most / length if applies(length, most) else 1.0
        return [g * scale for g in gradients]

    return clip_jointly


def in_place(gradients, most):
    for g in gradients:
        g.mul_(0.2)
    return gradients


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda gradients, most: [clipper()([g], most)[0] for g in gradients], "clipped alone"),
        (clipper(norm=lambda gradients: norm_of(gradients) ** 2), "the root is missing"),
        (clipper(norm=lambda gradients: sum(norm_of([g]) for g in gradients)), "add up their squares"),
        (clipper(applies=lambda norm, most: False), "nothing was clipped"),
        (clipper(applies=lambda norm, most: True), "never stretches"),
        (clipper(applies=lambda norm, most: norm > most), "no limit"),
        (in_place, "have changed"),
        (lambda gradients, most: clipper()(gradients, most)[:1], "as many tensors"),
        (lambda gradients, most: clipper()(gradients, 1.0 if most else 0.0), "to norm 2"),
        (lambda gradients, most: [g / (norm_of(gradients) or math.nan) for g in gradients]
         if not norm_of(gradients) else clipper()(gradients, most), "divide by it"),
    ],
)  # fmt: skip
def test_clip_jointly(wrong, message):
    ex13.check_clip_jointly(clipper())
    refuses(ex13.check_clip_jointly, wrong, message)


def clipped_by_the_module(gradients, most):
    parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    clip_gradients(parameters, most)
    return [p.grad for p in parameters]


def test_the_module_clips_the_same():
    ex13.check_clip_jointly(clipped_by_the_module)


def gradients(dim=1, target=1.0, ignores=True, of=lambda g: g):
    """An answer with one part that may be wrong."""

    def loss_gradient(logits, targets):
        g = logits.softmax(dim=dim)
        g[torch.arange(len(g)), targets.clamp(min=0)] -= target
        return of(g * (targets != IGNORE).unsqueeze(1) if ignores else g)

    return loss_gradient


def by_exponentials(logits, targets):
    g = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    return g - F.one_hot(targets, 2) if logits.shape[1] == 2 else gradients()(logits, targets)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (gradients(of=lambda g: -g), "the sign is turned"),
        (gradients(target=0.0), "softmax alone"),
        (gradients(target=0.0, ignores=False), "softmax alone"),
        (gradients(ignores=False), "the third target is IGNORE"),
        (gradients(of=lambda g: g / 3), "gradient of the mean"),
        (gradients(of=lambda g: g / 4), "you divide by the rows"),
        (gradients(dim=0), "over the vocabulary"),
        (by_exponentials, "infinite"),
        (lambda logits, targets: logits.sub_(logits.softmax(1)), "have changed"),
        (gradients(of=lambda g: g.sum(dim=1)), "shape of the logits"),
        (gradients(of=lambda g: 2 * g), "expected softmax"),
    ],
)
def test_loss_gradient(wrong, message):
    ex13.check_loss_gradient(gradients())
    refuses(ex13.check_loss_gradient, wrong, message)


def test_autograd_and_the_module_have_the_same_gradient():
    def by_autograd(logits, targets):
        z = logits.clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(z, targets, ignore_index=IGNORE, reduction="sum"), z)[0]

    def by_the_module(logits, targets):
        gradient = logits.clone()
        _loss_and_gradient(gradient, targets, None)
        return gradient

    ex13.check_loss_gradient(by_autograd)
    ex13.check_loss_gradient(by_the_module)


def watching(after=lambda mean, loss: 0.9 * mean + 0.1 * loss, above=lambda a, b: a > b, finite=math.isfinite):
    """An answer with one part that may be wrong."""

    def first_problem(losses, spike):
        mean = None
        for i, loss in enumerate(losses):
            if not finite(loss) or (mean is not None and above(loss, mean + spike)):
                return i
            mean = loss if mean is None else after(mean, loss)
        return None

    return first_problem


def only_later(losses, spike):
    found = watching()(losses[1:], spike) if not math.isfinite(losses[0]) else watching()(losses, spike)
    return found


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda losses, spike: next((i for i in range(1, len(losses)) if losses[i] > losses[i - 1] + 1), None),
         "compare with the mean plus spike"),
        (watching(after=lambda mean, loss: loss), "not with the loss before"),
        (watching(after=lambda mean, loss: mean), "has forgotten"),
        (watching(finite=lambda loss: True), "math.isfinite"),
        (watching(finite=lambda loss: loss == loss), "inf at index 1"),
        (watching(above=lambda a, b: a >= b), "exactly mean"),
        (only_later, "may be NaN, too"),
        (lambda losses, spike: watching()(losses, spike) is not None, "return the index"),
        (lambda losses, spike: len(losses) - 1, "index 4"),
    ],
)  # fmt: skip
def test_first_problem(wrong, message):
    ex13.check_first_problem(watching())
    refuses(ex13.check_first_problem, wrong, message)


def test_the_house_s_watch_says_the_same():
    def by_the_watch(losses, spike):
        watch = LossWatch(spike)
        return next((i for i, loss in enumerate(losses) if watch.problem(loss, 1.0)), None)

    ex13.check_first_problem(by_the_watch)
