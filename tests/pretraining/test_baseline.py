"""The baseline against Hugging Face's GPT-2, published counts, closed forms and naive loops."""

from __future__ import annotations

import copy
import gzip
import json
import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from pretraining.baseline import (
    BASELINE_124M,
    BASELINE_SMALL,
    Baseline,
    BaselineConfig,
    BaselineGPT,
    baseline_learning_rate,
    baseline_loss,
    baseline_optimizer,
    baseline_step,
    main,
    random_windows,
    read_characters,
    split,
    train_baseline,
)
from tests.conftest import assert_one_clear_line
from utils.errors import UserError

TINY = BaselineConfig(vocab_size=40, context_length=12, n_layer=2, n_head=4, d_model=32, bias=True)


def randomised(config: BaselineConfig) -> BaselineGPT:
    """A model none of whose parameters is zero or one, so that each of them shows."""
    torch.manual_seed(0)
    model = BaselineGPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def windows_of(config: BaselineConfig, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    windows = torch.randint(config.vocab_size, (batch, config.context_length + 1))
    return windows[:, :-1], windows[:, 1:]


def hugging_face(model: BaselineGPT) -> tuple[GPT2LMHeadModel, dict[str, bool]]:
    """GPT-2 with the same weights, and its parameters' names -> whether it has them the other way round."""
    c = model.config
    shape: dict[str, Any] = {
        "vocab_size": c.vocab_size,
        "n_positions": c.context_length,
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_embd": c.d_model,
        "activation_function": "gelu",
        "attn_implementation": "eager",
    }
    theirs = GPT2LMHeadModel(GPT2Config(**shape)).eval()
    turned = {f"transformer.{name}": ".c_" in name and name.endswith("weight") for name, _ in model.named_parameters()}
    parameters = dict(theirs.named_parameters())
    with torch.no_grad():
        for parameter in parameters.values():  # what we have no counterpart of: biases of zero
            parameter.zero_()
        for (name, turn), ours in zip(turned.items(), model.parameters(), strict=True):
            parameters[name].copy_(ours.T if turn else ours)
    return theirs, turned


@pytest.mark.parametrize("bias", [True, False])
def test_loss_and_gradients_equal_hugging_face_s(bias):
    model = randomised(replace(TINY, bias=bias))
    theirs, turned = hugging_face(model)
    ids, targets = windows_of(TINY)
    loss = model(ids, targets)
    expected = F.cross_entropy(theirs(ids).logits.transpose(1, 2), targets)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    parameters = dict(theirs.named_parameters())
    for (name, turn), ours in zip(turned.items(), model.parameters(), strict=True):
        gradient = parameters[name].grad
        assert gradient is not None
        torch.testing.assert_close(ours.grad, gradient.T if turn else gradient, msg=name)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        # Embeddings, 12 blocks of 12 d² and two norms, a norm; with biases 13 d more in each block and d at the end.
        (BASELINE_124M, 50304 * 768 + 1024 * 768 + 12 * (12 * 768**2 + 2 * 768) + 768),
        (BASELINE_124M, 123_587_328 + 1024 * 768),  # nanoGPT prints 123.59M, the positions not counted
        (replace(BASELINE_124M, vocab_size=50257, bias=True), 124_439_808),  # as OpenAI published it
        (BASELINE_SMALL, 65 * 128 + 64 * 128 + 4 * (12 * 128**2 + 2 * 128) + 128),
    ],
)
def test_as_many_parameters_as_published(config, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in BaselineGPT(config).parameters()) == parameters


def test_initial_weights_are_as_wide_as_gpt2_s_and_know_nothing():
    torch.manual_seed(0)
    model = BaselineGPT(replace(BASELINE_SMALL, bias=True))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "ln_" in name:
            assert (parameter == 1).all(), name
        else:
            expected = 0.02 / math.sqrt(2 * 4) if "c_proj" in name else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(parameter.mean().item()) < 0.05 * 0.02, name
    assert model(*windows_of(BASELINE_SMALL)).item() == pytest.approx(math.log(65), abs=0.1)


def test_dropout_acts_in_training_alone():
    model = randomised(TINY)
    dropping = BaselineGPT(replace(TINY, dropout=0.5))
    dropping.load_state_dict(model.state_dict())
    windows = windows_of(TINY)
    assert dropping(*windows) != dropping(*windows)
    assert dropping.eval()(*windows) == model(*windows)


@pytest.mark.parametrize("wrong", [{"n_layer": 0}, {"n_head": 5}, {"dropout": 1.0}])
def test_a_shape_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(TINY, **wrong)


def test_matrices_and_embeddings_decay_and_nothing_else():
    model = BaselineGPT(TINY)
    optimizer = baseline_optimizer(model, 0.5, weight_decay=0.1, betas=(0.9, 0.99))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # AdamW then does nothing but decay
    optimizer.step()
    for name, parameter in model.named_parameters():
        decays = name.endswith("weight") and "ln_" not in name
        torch.testing.assert_close(parameter, before[name] * (1 - 0.5 * 0.1 if decays else 1), msg=name)
    assert all(group["betas"] == (0.9, 0.99) for group in optimizer.param_groups)


def test_the_rate_climbs_in_a_line_and_comes_down_in_a_cosine():
    rate = [baseline_learning_rate(step, 1.0, 0.1, warmup_steps=100, decay_steps=2100) for step in range(2200)]
    assert rate[0] == pytest.approx(1 / 101)  # the first step is not for nothing
    np.testing.assert_allclose(np.diff(rate[:101]), 1 / 101)
    assert rate[100] == 1
    assert rate[1100] == pytest.approx(0.55)  # half-way down
    assert rate[600] == pytest.approx(0.1 + 0.9 * math.cos(math.pi / 8) ** 2)  # (1 + cos x) / 2 = cos² (x / 2)
    assert (np.diff(rate[100:2101]) < 0).all()
    assert set(rate[2100:]) == {0.1}
    assert baseline_learning_rate(100, 1.0, 0.1, warmup_steps=100, decay_steps=100) == 0.1


def test_a_step_goes_against_the_gradient_and_no_further_than_1():
    model = randomised(TINY)
    other = copy.deepcopy(model)
    ids, targets = windows_of(TINY)
    loss = baseline_step(model, torch.optim.SGD(model.parameters(), lr=1.0), ids, targets)
    expected = other(ids, targets)
    expected.backward()
    gradients = [p.grad for p in other.parameters() if p.grad is not None]
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert norm > 1  # so it is clipped
    assert loss == expected.detach()
    for after, before, gradient in zip(model.parameters(), other.parameters(), gradients, strict=True):
        torch.testing.assert_close(after, before - gradient / norm)
        assert after.grad is None


def test_bfloat16_is_for_products_and_weights_stay_whole():
    model = randomised(TINY)
    ids, targets = windows_of(TINY)
    expected = model(ids, targets).item()
    loss = baseline_step(model, baseline_optimizer(model, 1e-3), ids, targets, "bfloat16").item()
    assert loss != expected
    assert loss == pytest.approx(expected, rel=0.02)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_windows_begin_anywhere_and_each_target_follows():
    ids = np.arange(20, dtype=np.uint16)
    inputs, targets = random_windows(ids, 500, 4, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(4))
    assert set(inputs[:, 0].tolist()) == set(range(16))  # the last one's last target is the last id


@pytest.mark.parametrize("length", [13, 24, 25, 12 * 700])
def test_the_loss_is_measured_on_every_window_once(length):
    model = randomised(replace(TINY, dropout=0.5))
    ids = np.random.default_rng(0).integers(0, 40, length).astype(np.uint16)
    loss = baseline_loss(model, ids)
    assert model.training
    model.eval()
    losses = []
    for start in range(0, length - 12, 12):
        window = torch.from_numpy(ids[start : start + 13].astype(np.int64))[None]  # (1, tokens + 1)
        losses.append(model(window[:, :-1], window[:, 1:]).item())
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_training_learns_and_the_same_seed_gives_the_same_losses():
    ids = np.tile(np.arange(10, dtype=np.uint16), 30)
    config = replace(TINY, vocab_size=10, bias=False)

    def losses(seed: int) -> list[tuple[int, float]]:
        run = train_baseline(
            config, ids, ids, steps=25, learning_rate=1e-2, warmup_steps=2, evaluate_every=10, seed=seed
        )
        assert [m.seconds for m in run] == sorted(m.seconds for m in run)
        return [(m.step, m.validation_loss) for m in run]

    first = losses(0)
    assert [step for step, _ in first] == [0, 10, 20, 25]
    assert first[0][1] == pytest.approx(math.log(10), abs=0.1)
    assert first[-1][1] < 0.5
    assert losses(0) == first != losses(1)


def test_training_is_these_steps_at_these_rates():
    """The loop against itself written out, with PyTorch's AdamW in place of our groups (nothing decays here)."""
    ids = np.random.default_rng(0).integers(0, 40, 200).astype(np.uint16)
    run = train_baseline(
        TINY, ids, ids, batch_size=4, steps=3, learning_rate=0.02, warmup_steps=1, weight_decay=0.0, seed=5
    )
    torch.manual_seed(5)
    model, draws = BaselineGPT(TINY), torch.Generator().manual_seed(5)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    for rate in (0.01, 0.02, 0.002 + 0.018 / 2):
        optimizer.param_groups[0]["lr"] = rate
        starts = torch.randint(200 - 12, (4,), generator=draws).tolist()
        windows = torch.from_numpy(np.stack([ids[i : i + 13] for i in starts]).astype(np.int64))
        optimizer.zero_grad()
        model(windows[:, :-1], windows[:, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert run[-1].validation_loss == pytest.approx(baseline_loss(model, ids), rel=1e-5)


@pytest.mark.parametrize("wrong", ["batch_size", "steps", "evaluate_every"])
def test_a_run_that_cannot_be_is_refused(wrong):
    ids, argument = np.zeros(50, dtype=np.uint16), cast(dict[str, Any], {wrong: 0})
    with pytest.raises(ValueError, match=wrong):
        train_baseline(TINY, ids, ids, **argument)
    with pytest.raises(ValueError, match="validation has 12 ids"):
        train_baseline(TINY, ids, ids[:12])


def test_tiny_shakespeare_is_split_as_nanogpt_does(data_folder):
    ids, kinds = read_characters(data_folder / "misc" / "tinyshakespeare.txt.gz")
    train, validation = split(ids)
    assert (len(train), len(validation), kinds) == (1_003_854, 111_540, 65)  # what its prepare.py notes


def test_characters_are_numbered_in_the_order_of_unicode(tmp_path):
    text = "zoë ate\r\n𝄞 and zoë"
    order = {character: i for i, character in enumerate(sorted(set(text)))}
    (tmp_path / "plain.txt").write_bytes(text.encode())
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress(text.encode()))
    for path in tmp_path.iterdir():
        ids, kinds = read_characters(path)
        assert ids.dtype == np.uint16
        assert (ids.tolist(), kinds) == ([order[character] for character in text], len(order))


@pytest.mark.parametrize("tuning", [False, True])
def test_the_command_writes_what_it_printed_and_tuning_never_sees_validation(tmp_path, capsys, tuning):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be " * 100)
    main(Baseline(text=text, out=tmp_path / "out" / "b.json", steps=2, evaluate_every=1, tuning=tuning))
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "b.json").read_text())
    assert [m["step"] for m in results["measured"]] == [0, 1, 2]
    assert all(f"{m['validation_loss']:.4f}" in printed for m in results["measured"])
    assert results["config"]["vocab_size"] == len(set("to be or not to be "))
    assert results["characters"] == (
        {"train": 1539, "validation": 171} if tuning else {"train": 1710, "validation": 190}
    )


def test_mistakes_are_one_clear_line(tmp_path, run, monkeypatch):
    short = tmp_path / "short.txt"
    short.write_text("to be")
    assert_one_clear_line(run("pretraining/baseline.py", "--text", short), "5 characters", "longer text")
    monkeypatch.delenv("SCRATCHBOOK_DATA", raising=False)
    with pytest.raises(UserError, match="--text PATH"):
        main(Baseline())
    with pytest.raises(UserError, match="no text at"):
        main(Baseline(text=tmp_path / "none.txt"))
    with pytest.raises(UserError, match="--steps must be above 0"):
        Baseline(steps=0)
    for broken in (gzip.compress(b"to be")[:-9], b"\xff to be"):
        (tmp_path / "broken").write_bytes(broken)
        with pytest.raises(ValueError, match="not a text in UTF-8"):
            read_characters(tmp_path / "broken")
