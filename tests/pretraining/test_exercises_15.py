"""The checks of notebook 15 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import math

import pytest
import torch

from gpt_model import GPTConfig
from gpt_model.gpt import GPT
from pretraining.exercises import ex15
from tests.conftest import refuses


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x, f: 2.0**-f, "the spacing near 1"),
        (lambda x, f: x * 2.0**-f, "grows smoothly"),
        (lambda x, f: 2.0 ** (math.frexp(x)[1] - f), "round the logarithm of x down"),
        (lambda x, f: 2.0 ** (-math.floor(math.log2(x)) - f), "the other way"),
        (lambda x, f: 2.0 ** (math.ceil(math.log2(x)) - 1 - f), "begins the interval"),
        (lambda x, f: 2.0 ** (int(math.log2(x)) - f), "rounds towards 0"),
        (lambda x, f: 7.0, "expected 2"),
    ],
)
def test_spacing(wrong, message):
    ex15.check_spacing(lambda x, f: 2.0 ** (math.floor(math.log2(x)) - f))
    refuses(ex15.check_spacing, wrong, message)


def scaler(down=0.5, restart=0, full=lambda good, interval: good + 1 == interval, after=0, look_first=True):
    """An answer with one part that may be wrong."""

    def next_scale(scale, good, found_infinity, interval):
        if found_infinity and (look_first or not full(good, interval)):
            return scale * down, restart if restart is not None else good
        if full(good, interval):
            return scale * 2, after if after is not None else good + 1
        return scale, good + 1

    return next_scale


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda *given: 4.0, "return a pair"),
        (scaler(down=2), "too large: halve it"),
        (scaler(down=1), "halves the scale"),
        (scaler(restart=None), "begins anew, at 0"),
        (scaler(full=lambda good, interval: True), "only after the third"),
        (scaler(full=lambda good, interval: good == interval), "must double now"),
        (scaler(after=None), "at every step from here on"),
        (scaler(look_first=False), "look for it first"),
    ],
)
def test_next_scale(wrong, message):
    ex15.check_next_scale(scaler())
    refuses(ex15.check_next_scale, wrong, message)


def test_next_scale_is_torch_s():
    w = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([w], lr=1.0)
    theirs, state = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2), (64.0, 0)
    for infinite in (False, False, True, False, True, True, False, False, False):
        theirs.scale(w.sum()).backward()
        w.grad = torch.tensor([math.inf if infinite else 1.0])
        theirs.step(optimizer)
        theirs.update()
        state = scaler()(*state, infinite, 2)
        assert state[0] == theirs.get_scale()


def stepped(source=lambda weight, master: master, sign=-1.0, copied=True, twice=False, keeps=True):
    """An answer with one part that may be wrong."""

    def master_step(weight, master, gradient, lr):
        new = source(weight, master).float() + sign * lr * gradient.float()
        if keeps:
            master.copy_(new)
        if copied:
            weight.copy_(new)
        if twice:
            weight += (sign * 8 * lr * gradient).bfloat16()
        return weight

    return master_step


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (stepped(keeps=False), "the master has not changed"),
        (stepped(sign=1.0), "subtract"),
        (stepped(source=lambda weight, master: weight), "moved by one"),
        (stepped(copied=False), "the weight has not"),
        (stepped(twice=True), "do not step it besides"),
        (lambda weight, master, gradient, lr: stepped()(weight, master, gradient, lr).float(), "stays bfloat16"),
        (lambda weight, master, gradient, lr: stepped()(weight, master, gradient, lr).clone(), "no new tensor"),
        (stepped(sign=-2.0), "never see a rounded number"),
    ],
)
def test_master_step(wrong, message):
    ex15.check_master_step(stepped())
    refuses(ex15.check_master_step, wrong, message)


def numbers(d, heads, d_ff, *, wide=2, sums=True, statistics=4):
    return 8 * d + heads * sums + statistics + wide * d_ff


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda d, heads, d_ff: 16 * d + heads + 4, "in the place of each 4 d"),
        (lambda *given: numbers(*given, wide=3), "count once"),
        (lambda *given: numbers(*given, wide=1), "one tensor of d_ff"),
        (lambda *given: 4 * numbers(*given), "not bytes"),
        (lambda *given: numbers(*given, sums=False), "one sum for each head"),
        (lambda *given: numbers(*given, sums=False, statistics=0), "both norms"),
        (lambda *given: numbers(*given) + 1, "expected 920"),
        (lambda d, heads, d_ff: numbers(64, heads, d_ff), "expected 390"),
    ],
)
def test_block_numbers(wrong, message):
    ex15.check_block_numbers(numbers)
    refuses(ex15.check_block_numbers, wrong, message)


@pytest.mark.parametrize(("d", "heads", "d_ff"), [(64, 4, 200), (32, 2, 64)])
def test_block_numbers_are_what_torch_keeps(d, heads, d_ff):
    config = GPTConfig(50, 16, 1, heads, d, d_ff=d_ff, activation="relu2")
    block, x, kept = GPT(config).transformer.h[0], torch.randn(3, 16, d, requires_grad=True), {}
    weights = {w.untyped_storage().data_ptr() for w in block.parameters()}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = block(x)
    assert y.shape == x.shape
    assert sum(nbytes for nbytes, _ in kept.values()) == 4 * 3 * 16 * numbers(d, heads, d_ff)
