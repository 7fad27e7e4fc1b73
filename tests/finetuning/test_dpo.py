"""DPO against `transformers` and TRL's published formulas, one pair at a time; and the run as its users see it."""

from __future__ import annotations

import json
import math
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetuning.instruction.answering import learned_system_prompt
from finetuning.instruction.dpo import (
    EncodedPair,
    Preference,
    PreferenceLoss,
    answer_lengths,
    encode_pair,
    pack,
    pair_logprobs,
    reward_figures,
)
from finetuning.instruction.preferences import Pair
from finetuning.instruction.prompt_format import ALPACA_TEMPLATE, CHAT_LAYOUT, Message, PromptFormat
from finetuning.instruction.train_dpo import TrainDPO, main
from finetuning.lora import load_adapter, merge_lora
from gpt_model import GPT, GPTConfig, load_model
from gpt_model.pretrained import save_model
from pretraining.distributed import Ranks
from pretraining.run_folder import alone_in_run
from tests.conftest import ROOT, assert_one_clear_line, ended, started
from utils.errors import UserError
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.token_shards import IGNORE

TRAIN_DPO = "finetuning/instruction/train_dpo.py"
CPU = Ranks(0, 1, torch.device("cpu"))
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
FIGURES = ("validation_loss", "reward_margin", "accuracy", "chosen_reward", "rejected_reward", "chosen_likelier")


def user(text: str) -> Message:
    return {"role": "user", "content": text}


@pytest.fixture(scope="module")
def tokenizer():
    return BytePairTokenizer.train([f"What is {a} plus {b}? It is {a + b}." for a in range(9) for b in range(9)], 290)


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    """A tiny model that knows a chat template; it has dropout, which a comparison must do without."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.n_vocab, 64, n_layer=2, n_head=2, d_model=16, dropout=0.2))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # so that log-probabilities differ
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(model, folder, tokenizer, beside=PromptFormat.named("chat").beside())
    return folder


@pytest.fixture(scope="module")
def pairs():
    """Sums with right and wrong results, of different lengths."""
    draw = random.Random(1)
    found = []
    for a in range(8):
        for b in range(5):
            question = f"What is {a} plus {b}?"
            wrong = f"It is {a} plus {b + draw.randrange(1, 9)}." + " It is." * draw.randrange(3)
            found.append(Pair((user(question),), f"It is {b} plus {a}.", wrong, "other"))
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"prompt": p.messages[0]["content"], "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def trl_loss(policy, reference, lengths, beta, smoothing, kind):
    """TRL's published formulas (`dpo_trainer.py`: sigmoid with cDPO's smoothing, sigmoid_norm, ipo) of one pair."""
    chosen_logratios, rejected_logratios = policy[0] - reference[0], policy[1] - reference[1]
    if kind == "dpo":
        delta = chosen_logratios - rejected_logratios
    else:
        delta = chosen_logratios / lengths[0] - rejected_logratios / lengths[1]
    if kind == "ipo":
        return (delta - 1 / (2 * beta)) ** 2
    up, down = torch.sigmoid(beta * delta).log(), torch.sigmoid(-beta * delta).log()
    return -up * (1 - smoothing) - down * smoothing


def layout_in(folder) -> PromptFormat:
    layout = PromptFormat.of(folder)
    assert layout is not None
    return layout


def hf_logprob(model, prompt, answer):
    """One answer, nothing beside it, token by token."""
    ids = torch.tensor([prompt + answer])
    logprobs = model(ids).logits[0].log_softmax(-1)
    return sum(logprobs[len(prompt) + i - 1, token] for i, token in enumerate(answer))


KINDS = [("dpo", 0.5, 0.0), ("dpo", 0.1, 0.2), ("dpo-norm", 2.0, 0.0), ("dpo-norm", 2.0, 0.1), ("ipo", 0.3, 0.0)]


@pytest.mark.parametrize(("kind", "beta", "smoothing"), KINDS)
def test_loss_and_gradient_equal_transformers_with_trl_s_formula(base, tokenizer, pairs, kind, beta, smoothing):
    layout = layout_in(base)
    encoded = [encode_pair(layout, tokenizer, pair, 64) for pair in pairs[:5]]
    assert len({p.length for p in encoded}) > 1  # so that something is filled up
    rng = np.random.default_rng(0)
    reference = torch.from_numpy(rng.normal(-30, 3, (5, 2)).astype(np.float32))

    theirs = AutoModelForCausalLM.from_pretrained(base).eval()
    expected = sum(
        trl_loss(
            [hf_logprob(theirs, p.prompt, p.chosen), hf_logprob(theirs, p.prompt, p.rejected)],
            reference[i],
            (len(p.chosen), len(p.rejected)),
            beta,
            smoothing,
            kind,
        )
        for i, p in enumerate(encoded)
    )
    expected.backward()

    model = load_model(base)
    objective = Preference(model, PreferenceLoss(beta, smoothing, kind), chunk_tokens=3)
    ids, answer = pack(encoded)
    ids, answer = np.pad(ids, ((0, 1), (0, 0), (0, 3))), np.pad(answer, ((0, 1), (0, 0), (0, 3)))  # and a sixth, empty
    numbers = torch.tensor([0, 1, 2, 3, 4, IGNORE])
    padded = torch.cat([reference, torch.zeros(1, 2)])
    loss = objective(torch.from_numpy(ids), numbers, torch.from_numpy(answer), padded)
    loss.backward()
    torch.testing.assert_close(loss, expected.float(), rtol=1e-4, atol=1e-4)
    gradients = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        other = gradients[name].grad
        torch.testing.assert_close(
            parameter.grad, other.T if name.endswith(TRANSPOSED) else other, rtol=2e-3, atol=2e-4, msg=name
        )
    assert set(objective.take_figures()) == {f"batch_{name}" for name in reward_figures(torch.zeros(1, 2))}
    assert objective.take_figures() == {}


def test_parts_of_a_batch_add_up(base, tokenizer, pairs):
    layout, model = layout_in(base), load_model(base)
    encoded = [encode_pair(layout, tokenizer, pair, 64) for pair in pairs[:6]]
    objective = Preference(model, PreferenceLoss())
    arrays = [torch.from_numpy(a) for a in pack(encoded)]
    reference = torch.full((6, 2), -20.0)
    whole = objective(arrays[0], torch.arange(6), arrays[1], reference)
    whole.backward()
    gradient = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    figures = objective.take_figures()
    model.zero_grad()
    parts = [
        objective(arrays[0][i : i + 2], torch.arange(2), arrays[1][i : i + 2], reference[i : i + 2])
        for i in range(0, 6, 2)
    ]
    sum(parts).backward()
    torch.testing.assert_close(sum(parts), whole)
    for ours, parameter in zip(gradient, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, ours, rtol=1e-4, atol=1e-5)
    assert objective.take_figures() == pytest.approx(figures, rel=1e-5)


def test_log_probabilities_do_not_depend_on_the_batch(base, tokenizer, pairs):
    model, theirs = load_model(base).train(), AutoModelForCausalLM.from_pretrained(base).eval()
    encoded = [encode_pair(layout_in(base), tokenizer, pair, 64) for pair in pairs[:7]]
    with torch.no_grad():
        expected = [[hf_logprob(theirs, p.prompt, said) for said in (p.chosen, p.rejected)] for p in encoded]
    for size in (1, 3, 7):
        np.testing.assert_allclose(pair_logprobs(model, encoded, size, CPU), expected, rtol=1e-4)
    assert model.training
    assert answer_lengths(encoded).tolist() == [[len(p.chosen), len(p.rejected)] for p in encoded]


@pytest.mark.parametrize(("kind", "smoothing", "start"), [("dpo", 0, math.log(2)), ("dpo", 0.3, math.log(2)),
                                                         ("dpo-norm", 0, math.log(2)), ("ipo", 0, 25.0)])  # fmt: skip
def test_where_nothing_was_learned_the_loss_is_ln_2(kind, smoothing, start):
    loss = PreferenceLoss(0.1, smoothing, kind)
    logprobs = torch.randn(4, 2)
    rewards = loss.rewards(logprobs, logprobs, torch.ones(4, 2))
    torch.testing.assert_close(loss(rewards), torch.full((4,), start))
    assert rewards.count_nonzero() == 0
    assert reward_figures(rewards)["accuracy"] == 0.5


def test_the_loss_and_its_gradient_by_hand():
    rewards = torch.tensor([[0.7, -0.4], [-1.0, 2.0]], requires_grad=True)
    loss = PreferenceLoss()(rewards)
    margins = [1.1, -3.0]
    assert loss.tolist() == pytest.approx([math.log(1 + math.exp(-m)) for m in margins])
    loss.sum().backward()
    expected = [[-1 / (1 + math.exp(m)), 1 / (1 + math.exp(m))] for m in margins]  # -σ(-h) and σ(-h)
    torch.testing.assert_close(rewards.grad, torch.tensor(expected))
    figures = reward_figures(rewards.detach())
    assert figures == pytest.approx(
        {"reward_margin": -0.95, "accuracy": 0.5, "chosen_reward": -0.15, "rejected_reward": 0.8}
    )


def test_extreme_margins_stay_finite():
    rewards = torch.tensor([[500.0, -500.0], [-500.0, 500.0]], requires_grad=True)
    loss = PreferenceLoss()(rewards)
    loss.sum().backward()
    assert loss.tolist() == [0.0, 1000.0]
    torch.testing.assert_close(rewards.grad, torch.tensor([[0.0, 0.0], [-1.0, 1.0]]), rtol=0, atol=0)


@pytest.mark.parametrize("values", [{"beta": 0}, {"beta": math.nan}, {"label_smoothing": 0.5},
                                    {"kind": "ipo", "label_smoothing": 0.1}])  # fmt: skip
def test_numbers_out_of_range_are_refused(values):
    with pytest.raises(ValueError):
        PreferenceLoss(**values)


# --- a pair as tokens


@pytest.mark.parametrize("template", [ALPACA_TEMPLATE, CHAT_LAYOUT])
def test_only_the_last_answer_counts_and_it_ends(tokenizer, template):
    layout = PromptFormat(template)
    messages: tuple[Message, ...] = (
        user("What is 1?"),
        {"role": "assistant", "content": "It is."},
        user("What is 2?"),
    )
    pair = encode_pair(layout, tokenizer, Pair(messages, "It is 3.", "It is 4. It is."), 500)
    assert tokenizer.decode(pair.prompt) == layout.text(messages, ask=True)
    assert pair.prompt == layout.encode(tokenizer, messages, ask=True).ids
    assert tokenizer.decode(pair.chosen) == "It is 3.<|endoftext|>"
    assert tokenizer.decode(pair.rejected) == "It is 4. It is.<|endoftext|>"
    assert not pair.shortened


def test_what_does_not_fit_is_cut_from_the_documented_side(tokenizer):
    layout = PromptFormat.named("chat")
    long, short = " ".join(["What is 1 plus 2?"] * 9), "What is 1?"
    whole = encode_pair(layout, tokenizer, Pair((user(long),), "It is 3.", "It is 4."), 900)
    cut = encode_pair(layout, tokenizer, Pair((user(long),), "It is 3.", "It is 4."), 40)
    assert cut.shortened == ("prompt",)
    assert (cut.chosen, cut.rejected) == (whole.chosen, whole.rejected)
    assert cut.length == 40
    assert cut.prompt == whole.prompt[-len(cut.prompt) :]
    cut = encode_pair(layout, tokenizer, Pair((user(short),), long, "It is 4."), 40)
    whole = encode_pair(layout, tokenizer, Pair((user(short),), long, "It is 4."), 900)
    assert "answer" in cut.shortened
    assert cut.length == 40
    assert len(cut.prompt) == min(20, len(whole.prompt))  # half of the context is the prompt's
    assert cut.chosen == whole.chosen[: 40 - len(cut.prompt)]
    assert cut.rejected == whole.rejected


def test_filled_up_places_are_no_answers():
    pairs = [EncodedPair([1, 2], [3], [4, 5, 6]), EncodedPair([7], [8, 9], [10])]
    ids, answer = pack(pairs)
    assert ids.tolist() == [[[1, 2, 3, 0, 0], [1, 2, 4, 5, 6]], [[7, 8, 9, 0, 0], [7, 10, 0, 0, 0]]]
    assert [ids[i, j][answer[i, j]].tolist() for i in (0, 1) for j in (0, 1)] == [[3], [4, 5, 6], [8, 9], [10]]


# --- the run

SMALL = [
    "--device",
    "cpu",
    "--precision",
    "float32",
    "--batch-size",
    8,
    "--checkpoint-every",
    5,
    "--learning-rate",
    0.01,
]


def start(base, data, folder, *flags, ranks=1):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks, "--"] if ranks > 1 else []
    command = [sys.executable, *torchrun, ROOT / TRAIN_DPO, "--model", base, "--data", data, "--run", folder]
    return started([*command, *SMALL, *flags])


def kill_in_the_middle(process, folder, at):
    log, deadline = folder / "metrics.jsonl", time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if log.is_file() and log.read_text().count('"loss"') >= at:
            for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
                one.kill()
            break
        time.sleep(0.002)
    process.communicate(timeout=240)
    return process.returncode


def rows_of(folder):
    """Step -> all that was noted there but the time that it took."""
    kept: dict[int, list[object]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        figures = [(k, row[k]) for k in sorted(row) if k not in ("seconds", "minutes")]
        kept.setdefault(row["step"], []).append(figures)
    return kept


@pytest.fixture(scope="module")
def whole(base, data, tmp_path_factory):
    """A run with adapters, from beginning to end."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    said = ended(start(base, data, folder, "--lora", "--lora-dropout", 0.1, "--steps", 40))
    return folder, said


def test_a_run_learns_the_pairs_and_leaves_what_it_says(base, whole):
    folder, said = whole
    first, *_, last = [dict(row) for rows in rows_of(folder).values() for row in rows if dict(row).get("accuracy")]
    assert first["step"] == 0
    assert first["validation_loss"] == pytest.approx(math.log(2), abs=1e-12)
    assert (first["reward_margin"], first["accuracy"]) == (0.0, 0.5)
    assert set(FIGURES) <= set(last)
    steps = [dict(row) for rows in rows_of(folder).values() for row in rows if "batch_reward_margin" in dict(row)]
    assert len(steps) == 40
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert steps[-1]["loss"] < 0.5
    assert steps[-1]["batch_accuracy"] > 0.8
    assert steps[-1]["batch_reward_margin"] == pytest.approx(
        steps[-1]["batch_chosen_reward"] - steps[-1]["batch_rejected_reward"], rel=1e-4
    )
    for name in ("rewards.png", "loss.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert name in said
    assert "chosen    It is" in (folder / "samples.txt").read_text()
    assert "evaluate.py --models" in said


def test_the_model_keeps_the_template_and_is_the_base_with_its_adapter(base, whole, tokenizer):
    folder, _ = whole
    assert PromptFormat.of(folder / "model") == PromptFormat.of(base)
    assert AutoTokenizer.from_pretrained(folder / "model").chat_template == CHAT_LAYOUT
    merged, adapted = load_model(folder / "model"), load_model(base)
    load_adapter(adapted, folder / "adapter")
    ids = torch.arange(60).reshape(2, 30)
    torch.testing.assert_close(merged(ids), adapted(ids), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(merged(ids), load_model(base)(ids), atol=1e-2)
    merge_lora(adapted)
    torch.testing.assert_close(merged(ids), adapted(ids), rtol=1e-4, atol=1e-4)


def test_killed_and_resumed_is_bit_for_bit_as_if_never_killed(base, data, whole, tmp_path):
    folder, flags = tmp_path / "cut", ("--lora", "--lora-dropout", 0.1, "--steps", 40)
    assert kill_in_the_middle(start(base, data, folder, *flags), folder, at=13) == -signal.SIGKILL
    assert len(rows_of(folder)) < 40
    assert "Going on after step" in ended(start(base, data, folder, *flags, "--resume", "auto"))
    assert rows_of(folder) == rows_of(whole[0])
    a, b = load_model(folder / "model"), load_model(whole[0] / "model")
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_two_ranks_and_small_parts_take_the_steps_of_one(base, data, tmp_path):
    flags = ("--steps", 6, "--lora")
    one = start(base, data, tmp_path / "one", *flags)
    ended(start(base, data, tmp_path / "two", *flags, "--micro-batch-size", 2, ranks=2))
    ended(one)
    ours, theirs = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert ours.keys() == theirs.keys()
    for step in ours:
        # Adam divides by the gradient's own size, so that rounding grows with the steps; a wrong mean is off at once.
        close = 1e-4 if step <= 1 else 0.01
        for a, b in zip(ours[step], theirs[step], strict=True):
            for name in ("loss", "gradient_norm", *FIGURES):
                if name in dict(a):
                    assert dict(b)[name] == pytest.approx(dict(a)[name], rel=close, abs=close), (step, name)


def options(base, data, folder, **more):
    """Those of a run within this process."""
    same: dict[str, Any] = {"device": "cpu", "precision": "float32", "batch_size": 8, "steps": 1}
    return TrainDPO(model=str(base), data=str(data), run=folder, **same | more)


def test_a_run_that_goes_on_refuses_another_model_under_the_same_name(base, data, tmp_path, tokenizer):
    model, folder = tmp_path / "model", tmp_path / "run"
    layout = PromptFormat.named("chat").beside()
    save_model(load_model(base), model, tokenizer, beside=layout)
    main(options(model, data, folder))
    with pytest.raises(UserError, match="holds a run already"):
        main(options(model, data, folder))
    with pytest.raises(UserError, match=r"was trained with --beta 0\.1, not 0\.2"):
        main(options(model, data, folder, resume="auto", beta=0.2))
    main(options(model, data, folder, resume="auto"))
    changed = load_model(base)
    torch.nn.init.normal_(changed.transformer.ln_f.weight)
    save_model(changed, model, tokenizer, beside=layout)
    with pytest.raises(UserError, match=r"began with another model or other pairs .* --overwrite"):
        main(options(model, data, folder, resume="auto"))
    (folder / "reference.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="begun with other examples or another tokenizer"):
        main(options(model, data, folder, resume="auto"))
    main(options(base, data, tmp_path / "other"))
    main(options(model, data, folder, overwrite=True))


def test_a_refused_run_leaves_the_older_one_its_reference(base, data, tmp_path):
    folder = tmp_path / "run"
    main(options(base, data, folder))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    other = tmp_path / "rows.jsonl"
    other.write_text("\n".join(Path(data).read_text("utf-8").splitlines()[:-2]) + "\n")
    with pytest.raises(ValueError, match="no linear layer is called"):
        main(options(base, other, folder, overwrite=True, lora=True, lora_targets=("nosuch",)))
    with alone_in_run(folder), pytest.raises(ValueError, match="another process is writing"):
        main(options(base, other, folder, overwrite=True))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"beta": 0}, "beta must be above 0"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "label smoothing is for dpo"),
        ({"format": "alpaca"}, "has a chat template of its own.*leave out --format"),
        ({"lora": True, "lora_targets": ("no_such",)}, "no linear layer is called no_such"),
        ({"validation_share": 1.0}, "--validation-share must be between"),
        ({"max_pairs": 2, "batch_size": 0}, "--batch-size must be above 0"),
    ],
)
def test_mistakes_are_one_clear_line(base, data, tmp_path, more, words):
    with pytest.raises((UserError, ValueError), match=words):
        main(options(base, data, tmp_path / "run", **more))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_mistake_in_the_shell_has_no_traceback(base, tmp_path, run):
    done = run(TRAIN_DPO, "--model", base, "--data", "nowhere.jsonl", "--run", tmp_path / "run")
    assert_one_clear_line(done, "no such file")


def test_a_model_without_instructions_needs_a_format(base, data, tmp_path, tokenizer):
    plain = tmp_path / "plain"
    save_model(load_model(base), plain, tokenizer)
    with pytest.raises(UserError, match=r"has no chat template.*--format alpaca"):
        main(options(plain, data, tmp_path / "run"))
    main(options(plain, data, tmp_path / "run", format="alpaca"))
    assert PromptFormat.of(tmp_path / "run" / "model") == PromptFormat.named("alpaca")


def test_a_learned_system_prompt_stays_before_each_question(base, data, tmp_path, tokenizer):
    model, folder = tmp_path / "model", tmp_path / "run"
    made_by = {"options": {"system_prompt": "What is it?"}}
    save_model(load_model(base), model, tokenizer, made_by, beside=PromptFormat.named("chat").beside())
    main(options(model, data, folder))
    assert learned_system_prompt(folder / "model") == "What is it?"
    assert "system: What is it?\n\nuser: What is" in (folder / "samples.txt").read_text()
