"""The checks of notebook 14 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import pytest
import torch

from gpt_model import GPT, GPTConfig
from pretraining.exercises import ex14
from pretraining.optimizers import make_optimizers, orthogonalise
from pretraining.schedules import warmup_stable_decay
from tests.conftest import refuses


def heavy_ball(speed=lambda u, g, beta: beta * u + g, gradient=lambda w, c: c * w, sign=-1, late=False):
    """An answer with one part that may be wrong."""

    def heavy_ball_path(w, c, rate, beta, n):
        u, path = 0, []
        for _ in range(n):
            new = speed(u, gradient(w, c), beta)
            w = w + sign * rate * (u if late else new)
            u = new
            path.append(w)
        return path

    return heavy_ball_path


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda w, *rest: [w, *heavy_ball()(w, *rest)], "only positions after a step"),
        (lambda *given: heavy_ball()(*given)[-1:], "append after every step"),
        (heavy_ball(speed=lambda u, g, beta: g), "plain descent"),
        (heavy_ball(speed=lambda u, g, beta: beta * u + (1 - beta) * g), "a sum and not a mean"),
        (heavy_ball(gradient=lambda w, c: w), "the curvature is missing"),
        (heavy_ball(sign=1), "expected|walk up"),
        (heavy_ball(late=True), "first u, then w"),
        (lambda *given: tuple(heavy_ball()(*given)), "return a list"),
        (lambda *given: [-20.0, 16.0, -11.0], "with c = 1"),
    ],
)
def test_heavy_ball_path(wrong, message):
    ex14.check_heavy_ball_path(heavy_ball())
    refuses(ex14.check_heavy_ball_path, wrong, message)


def test_the_heavy_ball_is_torch_s():
    def answer(w, c, rate, beta, n):
        p = torch.nn.Parameter(torch.tensor([w], dtype=torch.float64))
        optimizer = torch.optim.SGD([p], lr=rate, momentum=beta)
        path = []
        for _ in range(n):
            p.grad = c * p.detach()
            optimizer.step()
            path.append(p.item())
        return path

    ex14.check_heavy_ball_path(answer)


def direction(correct_m=True, correct_v=True, root=0.5, power=True, sign=1, last=False):
    """An answer with one part that may be wrong."""

    def adam_direction(gradients, b1, b2):
        m = v = 0.0
        for g in gradients[-1:] if last else gradients:
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        t = len(gradients) if power and not last else 1
        m = m / (1 - b1**t) if correct_m else m
        v = v / (1 - b2**t) if correct_v else v
        return sign * m / v**root if v else 0.0

    return adam_direction


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (direction(sign=-1), "the minus stands where"),
        (direction(root=1), "square root"),
        (direction(correct_m=False, correct_v=False), "the first step is 1"),
        (direction(correct_v=False), "the first step is 1"),
        (direction(power=False), r"it is 1 - b \*\* t"),
        (direction(last=True), "m and v go through all"),
        (lambda g, b1, b2: direction(correct_m=len(g) == 1)(g, b1, b2), "m is not corrected"),
        (lambda g, b1, b2: direction(correct_v=len(g) == 1)(g, b1, b2), "v is not corrected"),
        (lambda g, b1, b2: direction()(g, 0.5, 0.75), "after 1, 2, -3"),
    ],
)
def test_adam_direction(wrong, message):
    ex14.check_adam_direction(direction())
    refuses(ex14.check_adam_direction, wrong, message)


def test_the_direction_is_torch_s():
    def answer(gradients, b1, b2):
        p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = torch.optim.AdamW([p], lr=1.0, betas=(b1, b2), eps=0, weight_decay=0)
        for g in gradients:
            before = p.item()
            p.grad = torch.full_like(p, g)
            optimizer.step()
        return before - p.item()

    ex14.check_adam_direction(answer)


def names_where(rule):
    return lambda shapes: {name for name, shape in shapes.items() if rule(name, shape)}


right_names = names_where(lambda name, shape: len(shape) == 2 and ".h." in name)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (set, "everything decays"),
        (names_where(lambda name, shape: name.endswith("weight")), "is a norm's"),
        (names_where(lambda name, shape: ".h." in name and ".ln_" not in name), "biases do not decay"),
        (names_where(lambda name, shape: len(shape) == 2), "the embedding is a matrix"),
        (names_where(lambda name, shape: len(shape) == 2 and "wte" not in name), "the output is a matrix"),
        (lambda shapes: sorted(right_names(shapes)), "return a set"),
        (names_where(lambda name, shape: len(shape) == 2 and "mlp" in name), "missing"),
    ],
)
def test_decaying_names(wrong, message):
    ex14.check_decaying_names(right_names)
    refuses(ex14.check_decaying_names, wrong, message)


def test_the_names_are_the_module_s():
    model = GPT(GPTConfig(256, 8, n_layer=1, n_head=2, d_model=8))
    named = dict(model.named_parameters())
    [optimizer] = make_optimizers(model, "adamw", 0.1, 0.1, 0.1)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    expected = {name for name, p in named.items() if id(p) in decayed}
    assert right_names({name: tuple(p.shape) for name, p in named.items()}) == expected


def ns_round(X, a, b, c):
    gram = X @ X.mT
    return a * X + (b * gram + c * gram @ gram) @ X


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda X, a, b, c: a * X + b * X**3 + c * X**5, "powers of each number"),
        (lambda X, a, b, c: a * X + (b * X @ X.mT + c * (X @ X.mT) ** 2) @ X, "gram @ gram"),
        (lambda X, a, b, c: ns_round(X, a, b, c) - a * X, "the first term"),
        (lambda X, a, b, c: ns_round(X, a, b, c) / ns_round(X, a, b, c).norm(), "is normalised"),
        (lambda X, a, b, c: a * X + b * (X.mT @ X) @ X, "the shapes do not fit"),
        (lambda X, a, b, c: ns_round(X, a, b, 0), "off by"),
        (lambda X, a, b, c: X @ X.mT, "the shape of X"),
        (
            lambda X, a, b, c: a * X + b * X @ X.mT @ X + c * X @ X.mT @ X @ X.mT @ X @ X.mT @ X,
            "seventh power",
        ),
    ],
)
def test_newton_schulz_round(wrong, message):
    ex14.check_newton_schulz_round(ns_round)
    refuses(ex14.check_newton_schulz_round, wrong, message)


def test_the_round_is_the_module_s():
    X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    once = ns_round(X / X.norm(), 3.4445, -4.7750, 2.0315)
    torch.testing.assert_close(once, orthogonalise(X, rounds=1), atol=0.02, rtol=0.02)


def share(up=lambda s, w: (s + 1) / w, down=lambda s, n, d: (n - s) / d, top=1.0):
    return lambda step, steps, warmup, decay: min(top, up(step, warmup), down(step, steps, decay))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (share(top=9.0), "never above 1"),
        (share(up=lambda s, w: s / w), "first step has the share 0"),
        (share(up=lambda s, w: 1.0), "there is no warm-up"),
        (share(down=lambda s, n, d: 1.0), "there is no decay"),
        (lambda s, n, w, d: (s + 1) / w if s < w else (n - s) / (n - w), "falls from the warm-up on"),
        (share(down=lambda s, n, d: (n - 1 - s) / d), "last step has the share 0"),
        (share(down=lambda s, n, d: (n - 2 - s) / d), "walks up"),
        (share(down=lambda s, n, d: (n - s) / 4), "step 13 of 20"),
    ],
)
def test_wsd_share(wrong, message):
    ex14.check_wsd_share(share())
    refuses(ex14.check_wsd_share, wrong, message)


def test_the_share_is_the_module_s_at_the_steps_ends():
    """The module's warm-up is met at the end of a step, and its descent at the beginning."""
    for step in range(20):
        climbs = warmup_stable_decay((step + 1) / 20, warmup=0.2 + 1e-9, decay=0.0)
        falls = warmup_stable_decay(step / 20, warmup=0.0, decay=0.4)
        assert share()(step, 20, 4, 8) == pytest.approx(min(climbs, falls))
