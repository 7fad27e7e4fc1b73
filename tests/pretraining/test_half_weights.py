"""bfloat16 weights with float32 masters: what learns is float32, and what computes is rounded from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gpt_model import GPT
from pretraining.half_weights import HalfMatrices
from pretraining.optimizers import make_optimizers
from pretraining.schedules import warmup_cosine
from pretraining.training_loop import NextToken
from tests.pretraining.test_training_loop import CONFIG, OPTIONS, make_batch, make_loop
from utils.devices import autocast
from working_with_text_data.token_shards import IGNORE

HALF = {"precision": "bfloat16", "weights": "bfloat16"}


def training_by_hand(steps, parts):
    """A bfloat16 model, float32 masters in a list, and a gradient summed in float32: (losses, masters by name)."""
    torch.manual_seed(0)
    model = GPT(CONFIG)
    masters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    learner = GPT(CONFIG)  # holds the masters, for the groups of the optimiser alone
    for name, p in learner.named_parameters():
        p.data = masters[name].data
    (optimizer,) = make_optimizers(learner, "adamw", 0.01, 0.01, 0.1)
    for p in model.parameters():
        if p.ndim == 2:
            p.data = p.data.bfloat16()
    objective, losses = NextToken(model, OPTIONS.chunk_tokens), []
    for step in range(steps):
        inputs, targets = map(torch.from_numpy, make_batch(step))
        asked, total = int((targets != IGNORE).sum()), 0.0
        sums = {name: torch.zeros_like(p) for name, p in masters.items()}
        for x, y in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
            with autocast(torch.device("cpu"), "bfloat16"):
                loss = objective(x, y)
            names, weights = zip(*model.named_parameters(), strict=True)
            for name, gradient in zip(names, torch.autograd.grad(loss / asked, weights), strict=True):
                sums[name] += gradient.float()
            total += loss.item()
        for name, p in learner.named_parameters():
            p.grad = sums[name]
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine((step + 0.5) / steps, OPTIONS.warmup, OPTIONS.floor) * group["peak_lr"]
        optimizer.step()
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(masters[name])
        losses.append(total / asked)
    return losses, masters


@pytest.mark.parametrize("micro", [None, 2])
def test_the_loop_is_what_one_writes_by_hand(tmp_path, micro):
    loop, losses, _ = make_loop(tmp_path, micro_batch_size=micro, **HALF)
    assert loop.run() == "finished"
    expected, masters = training_by_hand(6, parts=8 // micro if micro else 1)
    assert losses == pytest.approx(expected, rel=1e-6)
    for name, p in loop.model.named_parameters():
        assert p.dtype == torch.float32
        if p.ndim == 2:
            torch.testing.assert_close(p, masters[name], atol=1e-5, rtol=1e-4)


def test_products_read_copies_and_all_else_sees_masters(tmp_path):
    seen: dict[str, set[tuple[int, torch.dtype]]] = {"forward": set(), "step": set(), "evaluate": set()}

    def note(where):
        seen[where] |= {(p.ndim, p.dtype) for p in loop.model.parameters()}
        return 0.0

    loop, _, _ = make_loop(tmp_path, on_step=lambda step: note("step"), evaluate=lambda last: note("evaluate"), **HALF)
    loop.model.transformer.ln_f.register_forward_pre_hook(lambda *_: note("forward") or None)
    loop.run()
    assert seen["forward"] == {(2, torch.bfloat16), (1, torch.float32)}
    assert seen["step"] == seen["evaluate"] == {(2, torch.float32), (1, torch.float32)}
    assert loop.model.lm_head.weight is loop.model.transformer.wte.weight  # tied still


def test_steps_too_small_for_bfloat16_are_not_lost(tmp_path):
    """At this rate no step moves a bfloat16 weight; plain bfloat16 weights would stand still for ever."""
    loop, _, _ = make_loop(tmp_path, **HALF)
    loop.optimizers = make_optimizers(loop.model, "adamw", 1e-6, 1e-6, 0.0)
    before = [p.detach().clone() for p in loop.model.parameters() if p.ndim == 2]
    for _ in range(6):
        assert loop.take_step() is None
    loop.read.close()
    after = [p.detach() for p in loop.model.parameters() if p.ndim == 2]
    moved = torch.cat([(a != b).flatten() for a, b in zip(before, after, strict=True)]).float().mean()
    still = torch.cat([(a.bfloat16() == b.bfloat16()).flatten() for a, b in zip(before, after, strict=True)])
    assert moved > 0.9
    assert still.float().mean() > 0.9


@pytest.mark.parametrize("micro", [None, 2])
def test_it_learns_as_with_float32_weights(tmp_path, micro):
    losses = {}
    for weights in ("float32", "bfloat16"):
        options = HALF | {"weights": weights, "micro_batch_size": micro, "steps": 40}
        loop, losses[weights], _ = make_loop(tmp_path / weights, lambda *_: make_batch(0), **options)
        loop.run()
    assert losses["float32"][-1] < losses["float32"][0] - 1
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bfloat16"] != losses["float32"]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, at a break between two graphs
def test_compiled_is_eager(tmp_path):
    torch._dynamo.reset()  # other tests compile the same code for other models, and there is a limit to that
    losses = []
    for on in (False, True):
        loop, one, _ = make_loop(tmp_path / str(on), compile=on, steps=4, **HALF)
        loop.hooks.evaluate = lambda last, loop=loop: loop.mean_loss(*make_batch(9))
        loop.run()
        losses.append([*one, loop.best])
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "galore-adamw"])
def test_a_run_that_goes_on_is_bit_for_bit_the_uninterrupted_one(tmp_path, optimizer):
    options = {"optimizer": optimizer, "config": replace(CONFIG, dropout=0.1, d_model=160, n_layer=1), **HALF}
    whole, losses, _ = make_loop(tmp_path / "whole", **options)
    whole.run()
    first: list[float] = []

    def die_at_five(step):
        first.append(step.loss)
        if len(first) == 5:
            raise KeyboardInterrupt

    cut, _, _ = make_loop(tmp_path / "cut", on_step=die_at_five, checkpoint_every=3, **options)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    again, rest, _ = make_loop(tmp_path / "cut", **options)
    assert again.resume()
    again.run()
    assert first[:3] + rest == losses
    for ours, expected in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, expected)


def test_the_masters_are_back_after_an_error():
    model = GPT(CONFIG)
    before = dict(model.named_parameters())
    halves = HalfMatrices(model, True)
    with pytest.raises(KeyboardInterrupt), halves.in_place():
        assert model.lm_head.weight.dtype == torch.bfloat16
        raise KeyboardInterrupt
    assert all(p is before[name] for name, p in model.named_parameters())


def test_frozen_matrices_have_no_copies():
    model = GPT(CONFIG)
    model.transformer.wte.requires_grad_(False)
    halves = HalfMatrices(model, True)
    assert len(halves.copies) == 1 + 4 * CONFIG.n_layer  # positions, and four matrices a block
    assert not HalfMatrices(model, False).copies
