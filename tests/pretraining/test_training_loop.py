"""One step is one step: whatever it is divided into, computed with, or interrupted by."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gpt_model import GPT, GPTConfig
from pretraining.distributed import Ranks
from pretraining.optimizers import make_optimizers
from pretraining.schedules import warmup_cosine
from pretraining.training_loop import (
    Hooks,
    LoopOptions,
    LossWatch,
    NextToken,
    ReadAhead,
    TrainingLoop,
    flops_per_token,
    seed_of,
)
from tests.conftest import ROOT
from utils.checkpoints import find_checkpoints
from utils.errors import UserError
from working_with_text_data.token_shards import IGNORE, Batches

HERE = Ranks(0, 1, torch.device("cpu"))
OPTIONS = LoopOptions(steps=6, batch_size=8, precision="float32", chunk_tokens=7, evaluate_every=10**9)
CONFIG = GPTConfig(vocab_size=50, context_length=16, n_layer=2, n_head=2, d_model=32)


def make_batch(step, rank=0, ranks=1):
    """Windows with very different numbers of targets, as packed and padded ones have."""
    draw = np.random.default_rng(step)
    ids = draw.integers(0, 50, (8, 17))
    inputs, targets = ids[:, :-1], ids[:, 1:].copy()
    for row in range(8):
        targets[row, : 2 * row] = IGNORE
    share = 8 // ranks
    return inputs[rank * share : (rank + 1) * share], targets[rank * share : (rank + 1) * share]


def make_loop(tmp_path, batch=make_batch, config=CONFIG, optimizer="adamw", on_step=None, evaluate=None, **options):
    torch.manual_seed(0)
    model = GPT(config)
    steps: list[float] = []
    hooks = Hooks(
        on_step=on_step or (lambda step: steps.append(step.loss)),
        evaluate=evaluate or (lambda last: 0.0),
        say=lambda text: said.append(text),
    )
    said: list[str] = []
    loop = TrainingLoop(
        NextToken(model, OPTIONS.chunk_tokens),
        model,
        model.transformer.blocks,
        lambda: make_optimizers(model, optimizer, 0.01, 0.01, 0.1),
        batch,
        replace(OPTIONS, **options),
        HERE,
        hooks,
        tmp_path,
    )
    return loop, steps, said


def plain_training(steps, batch=make_batch, config=CONFIG):
    """The same by the book: full logits, one large batch, PyTorch's loss, clipping and AdamW."""
    torch.manual_seed(0)
    model = GPT(config)
    (optimizer,) = make_optimizers(model, "adamw", 0.01, 0.01, 0.1)
    losses = []
    for step in range(steps):
        inputs, targets = map(torch.from_numpy, batch(step))
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine((step + 0.5) / steps, OPTIONS.warmup, OPTIONS.floor) * group["peak_lr"]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model


@pytest.mark.parametrize("micro", [None, 4, 2, 1])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_any_parts_give_the_one_large_batch(tmp_path, micro, checkpointed):
    loop, losses, _ = make_loop(tmp_path, micro_batch_size=micro, checkpoint_activations=checkpointed)
    assert loop.run() == "finished"
    expected, model = plain_training(6)
    assert losses == pytest.approx(expected, rel=1e-5)
    for ours, plain in zip(loop.model.parameters(), model.parameters(), strict=True):
        if ours.ndim == 2:  # the gradient of keys' biases is zero but for rounding, which AdamW makes as large as any
            torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-3)


def test_checkpointed_blocks_give_the_same_bits_with_dropout(tmp_path):
    config = replace(CONFIG, dropout=0.2)
    plain, forgetful = (
        make_loop(tmp_path / str(on), config=config, checkpoint_activations=on)[:2] for on in (False, True)
    )
    for loop, _ in (plain, forgetful):
        loop.run()
    assert forgetful[1] == plain[1]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, at a break between two graphs
def test_compiled_is_eager(tmp_path):
    torch._dynamo.reset()  # other tests compile the same code for other models, and there is a limit to that
    config = replace(CONFIG, norm="rmsnorm", activation="relu2", qk_norm=True, positions="rope", logit_softcap=15.0)
    config = replace(config, value_embeddings=True, n_layer=2)
    losses = []
    for on in (False, True):
        loop, one, _ = make_loop(tmp_path / str(on), config=config, compile=on, steps=3)
        loop.run()
        losses.append(one)
        assert not any("_orig_mod" in name for name in loop.model.state_dict())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_bfloat16_follows_float32(tmp_path):
    losses = {}
    for precision in ("float32", "bfloat16", "float16"):
        loop, losses[precision], _ = make_loop(tmp_path / precision, precision=precision, steps=4)
        loop.run()
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.01)
    assert losses["float16"] == pytest.approx(losses["float32"], rel=0.01)
    assert losses["bfloat16"] != losses["float32"] != losses["float16"]


def test_float16_leaves_out_a_step_whose_scale_was_too_large(tmp_path):
    loop, losses, _ = make_loop(tmp_path, precision="float16", steps=3)
    loop.scaler._init_scale = 2.0**60
    before = [p.clone() for p in loop.model.parameters()]
    loop.run()
    assert len(losses) == 3
    assert loop.scaler.get_scale() < 2.0**60
    assert loop.watch.norm is None  # nothing of it in what gradients usually are
    assert all(torch.equal(a, b) for a, b in zip(before, loop.model.parameters(), strict=True))


@pytest.mark.parametrize("overflow", [math.inf, math.nan])
def test_a_step_left_out_does_not_blind_the_watch(overflow):
    watch = LossWatch(spike=3.0)
    assert [watch.warning(norm) for norm in (1.0, overflow, 1.0)] == [None, None, None]
    assert watch.norm == 1.0
    assert watch.warning(20.0) == "the gradient's norm is 20.00, after 1.00 on average"


def test_documents_see_only_themselves(tmp_path):
    """With masking, the loss of a packed window is that of its documents one by one."""
    rope = replace(CONFIG, positions="rope")
    inputs, targets = (part[:1] for part in make_batch(0))
    documents = np.array([[0] * 5 + [1] * 11])

    def packed(step, rank, ranks):
        return inputs, targets, documents

    loop, _, _ = make_loop(tmp_path, packed, rope, batch_size=1)
    torch.manual_seed(0)
    model = GPT(rope)
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    alone = torch.cat([model(x[:, :5]), model(x[:, 5:])], dim=1)  # (1, tokens, vocab_size)
    expected = F.cross_entropy(alone.flatten(0, 1), y.flatten(), ignore_index=IGNORE)
    assert loop.mean_loss(inputs, targets, documents) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("windows", [1, 7, 8, 20])
def test_mean_loss_is_over_targets_however_many_windows_there_are(tmp_path, windows):
    loop, _, _ = make_loop(tmp_path, micro_batch_size=4)
    inputs, targets = (np.concatenate([make_batch(i)[k] for i in range(3)])[:windows] for k in (0, 1))
    with torch.no_grad():
        logits = loop.model(torch.from_numpy(inputs))
    expected = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten(), ignore_index=IGNORE)
    assert loop.mean_loss(inputs, targets) == pytest.approx(expected.item(), rel=1e-5)


# --- divergence


def poisoned(model, at):
    """A weight that is no number, once, before step `at`: as a broken batch or a cosmic ray would leave it."""
    done: list[int] = []

    def before(step):
        if step == at and not done:
            done.append(step)
            with torch.no_grad():
                next(model.parameters())[0] = math.nan

    return before


def test_a_run_that_diverges_goes_back_and_passes_over_the_batches(tmp_path):
    asked = []

    def batch(step, rank=0, ranks=1):
        asked.append(step)
        return make_batch(step)

    loop, losses, said = make_loop(tmp_path, batch, checkpoint_every=2, steps=6)
    poison = poisoned(loop.model, at=5)
    loop.hooks.on_step = lambda step: (losses.append(step.loss), poison(loop.step))
    assert loop.run() == "finished"
    assert loop.step == 6
    assert all(map(math.isfinite, losses))
    assert "back to step 4" in said[0]
    assert loop.skipped == 2  # batches 4 and 5 led there, so that steps 4 and 5 read 6 and 7
    assert max(asked) >= 7
    assert all(torch.isfinite(p).all() for p in loop.model.parameters())


def test_a_loss_far_above_its_mean_counts_too(tmp_path):
    loop, _, said = make_loop(tmp_path, steps=4, spike=0.5)

    def spoil(step):
        if loop.step == 2 and not said:
            with torch.no_grad():
                next(loop.model.parameters()).mul_(100)

    loop.hooks.on_step = spoil
    loop.run()
    assert "on average at step 3" in said[0]


def test_who_diverges_again_and_again_is_stopped_in_one_line(tmp_path):
    loop, _, _ = make_loop(tmp_path, rewinds=2, checkpoint_every=2)

    def spoil(step):
        with torch.no_grad():
            next(loop.model.parameters())[0] = math.nan

    loop.hooks.on_step = spoil
    with pytest.raises(UserError, match=r"diverged at step 2: the loss is nan.*lower --learning-rate"):
        loop.run()
    assert loop.rewound == 3
    assert find_checkpoints(tmp_path)[0].damage() is None


def test_a_checkpoint_of_broken_weights_is_set_aside(tmp_path):
    """What breaks the weights at the very step of a checkpoint is in it, and going back there is no help."""
    loop, _, said = make_loop(tmp_path, checkpoint_every=3, steps=8, keep_last=5)
    spoiled: list[bool] = []

    def spoil(step):
        if loop.step == 3 and not spoiled:
            spoiled.append(True)
            with torch.no_grad():
                next(loop.model.parameters())[0] = math.nan

    loop.hooks.on_step = spoil
    assert loop.run() == "finished"
    assert ["back to step 3" in said[0], "back to step 0" in said[1], len(said)] == [True, True, 2]
    assert (tmp_path / "diverged-step-00000003").is_dir()  # nothing is thrown away
    assert all(torch.isfinite(p).all() for p in loop.model.parameters())
    assert [c.step for c in find_checkpoints(tmp_path)] == [8, 6, 3, 0]


def test_rewinds_are_counted_across_restarts(tmp_path):
    """As a scheduler restarts what ends with an error: --rewinds is for the whole run, and no batch comes twice."""

    def spoil(step):
        with torch.no_grad():
            next(loop.model.parameters())[0] = math.nan

    loop, _, said = make_loop(tmp_path, rewinds=2, checkpoint_every=100, steps=20)
    loop.hooks.on_step = spoil
    with pytest.raises(UserError, match="did not help 2 times"):
        loop.run()
    assert len(said) == 2
    loop, _, said = make_loop(tmp_path, rewinds=2, checkpoint_every=100, steps=20)
    loop.hooks.on_step = spoil
    assert loop.resume()
    assert (loop.rewound, loop.skipped) == (2, 4)
    with pytest.raises(UserError, match="did not help 2 times"):
        loop.run()
    assert said == []


# --- checkpoints


def damage(checkpoint):
    state = checkpoint.folder / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"\xff")


def test_damaged_checkpoints_do_not_push_out_those_of_the_run_that_goes_on(tmp_path):
    make_loop(tmp_path, checkpoint_every=2, keep_last=3)[0].run()
    for checkpoint in find_checkpoints(tmp_path)[:2]:  # of the steps 6 and 4
        damage(checkpoint)
    loop, _, _ = make_loop(tmp_path, checkpoint_every=1, keep_last=2)
    assert loop.resume()
    assert loop.step == 2
    assert [c.step for c in find_checkpoints(tmp_path)] == [6, 4, 2]  # nothing goes before there is something newer
    assert loop.take_step() is None
    loop.save()
    assert [c.step for c in find_checkpoints(tmp_path)] == [3, 2]
    assert loop.take_step() is None
    loop.save()
    assert [(c.step, c.damage()) for c in find_checkpoints(tmp_path)] == [(4, None), (3, None)]


def test_a_signal_during_the_best_measurement_does_not_lose_its_note(tmp_path):
    def evaluate(last):
        if loop.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return 3.0 - loop.step

    loop, _, _ = make_loop(tmp_path, evaluate=evaluate, evaluate_every=1)
    assert loop.run() == "interrupted"
    assert find_checkpoints(tmp_path)[0].step == 2
    assert find_checkpoints(tmp_path)[0].facts["validation_loss"] == 1.0
    again, _, _ = make_loop(tmp_path, evaluate_every=10**9, keep_last=1)
    assert again.resume()
    again.save()
    assert find_checkpoints(tmp_path)[0].facts["validation_loss"] == 1.0
    assert again.run() == "finished"
    assert ["validation_loss" in c.facts for c in find_checkpoints(tmp_path)] == [False, True]  # of steps 6 and 2


@pytest.mark.parametrize(
    ("of_a_rank", "number"),
    [
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"), errno.ENOSPC),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), errno.EDQUOT),
    ],
)
def test_a_full_disk_is_one_error_of_the_disk_for_fsdp_too(tmp_path, monkeypatch, of_a_rank, number):
    loop, _, _ = make_loop(tmp_path)
    loop.options = replace(loop.options, parallel="fsdp")

    def fail(*_, **__):
        raise CheckpointException("write", {0: (of_a_rank, traceback.StackSummary())})

    monkeypatch.setattr(dcp.state_dict_saver, "save", fail)
    with pytest.raises(OSError) as caught:
        loop.save()
    assert caught.value.errno == number
    assert not list(tmp_path.iterdir())


# --- parts


def test_read_ahead_gives_what_was_asked_for_in_any_order():
    made = []

    def make(i):
        made.append(i)
        return i * i

    read = ReadAhead(make, ahead=2)
    assert [read(i) for i in (0, 1, 2, 7, 3, 3)] == [0, 1, 4, 49, 9, 9]
    read.close()
    assert made.count(1) == made.count(2) == 1  # made once, ahead of being asked for

    def broken(i):
        raise ValueError("no such batch")

    read = ReadAhead(broken)
    with pytest.raises(ValueError, match="no such batch"):
        read(0)
    read.close()


def test_flops_per_token_by_hand():
    # nanoGPT's count for GPT-2: 6 N + 12 L H Q T, with N = 124,439,808 without the 1024 x 768 positions
    assert (
        flops_per_token(GPT(replace(CONFIG, n_layer=1))) == 6 * (50 * 32 + 32 * 32 * 12 + 32 * 13 + 64) + 12 * 32 * 16
    )


@pytest.mark.parametrize("tokens", [16, 5])
@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_embeddings": False}, {"value_embeddings": True}, {"positions": "rope", "tie_embeddings": False}],
)
def test_flops_per_token_are_those_that_torch_counts(changes, tokens):
    model = GPT(replace(CONFIG, bias=False, norm="rmsnorm", **changes))
    ids = torch.zeros(2, tokens, dtype=torch.long)  # (batch, tokens)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    norms = sum(p.numel() for p in model.parameters() if p.ndim == 1)  # counted like products, by convention
    assert flops_per_token(model, tokens) - 6 * norms == counter.get_total_flops() / ids.numel()


def test_every_step_and_rank_has_a_seed_of_its_own():
    seeds = {seed_of(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(4)}
    assert len(seeds) == 600
    assert seed_of(1, 2, 3) == seed_of(1, 2, 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 6, "micro_batch_size": 4}, "does not divide the 6 windows"),
        ({"warmup": 0.6, "decay": 0.6, "schedule": "wsd"}, "more than the whole run"),
        ({"clip": -1.0}, "--clip must be at least 0"),
        ({"seed": -1}, "--seed must be from 0"),
        ({"precision": "float16", "parallel": "fsdp"}, "use bfloat16, or ddp"),
        ({"precision": "float32", "weights": "bfloat16"}, "not float32: pass --precision bfloat16, too"),
        ({"precision": "float16", "weights": "bfloat16"}, "not float16: pass --precision bfloat16, too"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, wrong, message):
    with pytest.raises(UserError, match=message):
        make_loop(tmp_path, **wrong)
    with pytest.raises(UserError, match="does not divide among 3 ranks"):
        OPTIONS.parts(3)


# --- several ranks

SEVERAL = """
import sys, json, torch
from dataclasses import replace
from tests.pretraining.test_training_loop import *
from pretraining import optimizers
from pretraining.distributed import join_ranks, whole_weights
torch.set_num_threads(1)
parallel, optimizer, folder, weights = sys.argv[1:]
precision = "bfloat16" if weights == "bfloat16" else "float32"
optimizers.has_fast_bfloat16 = lambda device: False  # Muon's products too: in bfloat16, the order of a sum is seen
with join_ranks("cpu") as ranks:
    torch.manual_seed(0)
    model = GPT(CONFIG)
    seen = []
    hooks = Hooks(lambda step: seen.append((step.loss, step.gradient_norm)), lambda last: 0.0)
    loop = TrainingLoop(
        NextToken(model, 7), model, model.transformer.blocks,
        lambda: make_optimizers(model, optimizer, 0.01, 0.01, 0.1), make_batch,
        replace(OPTIONS, parallel=parallel, micro_batch_size=2, precision=precision, weights=weights),
        ranks, hooks, Path(folder),
    )
    loop.run()
    inputs, targets = (part[:5] for part in make_batch(99))
    mean = loop.mean_loss(inputs, targets)
    weights = whole_weights(model)
    if ranks.is_first:
        print(json.dumps([seen, mean, {name: w.double().sum().item() for name, w in weights.items() if w.ndim == 2}]))
"""


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_ranks_are_one_process_with_the_joined_batch(tmp_path, optimizer):
    found = one_and_several(tmp_path, optimizer)
    for name in ("ddp", "fsdp"):
        for (loss, norm), (expected_loss, expected_norm) in zip(found[name][0], found["one"][0], strict=True):
            assert loss == pytest.approx(expected_loss, rel=1e-5)
            assert norm == pytest.approx(expected_norm, rel=1e-4)
        assert found[name][1] == pytest.approx(found["one"][1], rel=1e-4)
        assert found[name][2] == pytest.approx(found["one"][2], rel=2e-3, abs=2e-3)


def test_two_ranks_with_bfloat16_weights_are_one_process_but_for_rounding(tmp_path):
    found = one_and_several(tmp_path, "adamw", "bfloat16")
    for name in ("ddp", "fsdp"):
        for (loss, norm), (expected_loss, expected_norm) in zip(found[name][0], found["one"][0], strict=True):
            assert loss == pytest.approx(expected_loss, rel=2e-3)
            assert norm == pytest.approx(expected_norm, rel=2e-2)
        assert found[name][1] == pytest.approx(found["one"][1], rel=2e-3)


def one_and_several(tmp_path, optimizer, weights="float32"):
    """What `SEVERAL` prints: of one process, and of two with each way of joining."""
    script = tmp_path / "several.py"
    script.write_text("from pathlib import Path\n" + SEVERAL)
    found = {}
    for name, ranks, parallel in (("one", 1, "ddp"), ("ddp", 2, "ddp"), ("fsdp", 2, "fsdp")):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "--"]
        done = subprocess.run(
            [*launch, str(script), parallel, optimizer, str(tmp_path / name), weights],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_ranks_read_different_windows_of_the_same_batches():
    batches = Batches([np.arange(1000)], 8, 4, seed=3)
    for step in range(60):
        whole = batches.batch(step)[0]
        parts = [batches.batch(step, rank, 2)[0] for rank in range(2)]
        assert (np.concatenate(parts) == whole).all()
        assert not {tuple(row) for row in parts[0]} & {tuple(row) for row in parts[1]}
