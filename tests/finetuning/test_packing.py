"""Packed and padded examples are what each is alone: logits, loss and gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from finetuning.instruction.packing import PackedBatches, Tokens, best_fit, packed, padded, padding_waste, tokens_of
from finetuning.instruction.prompt_format import Encoded
from finetuning.tuning import ExampleBatches
from gpt_model import GPT, GPTConfig
from gpt_model.gpt_gqa import GPTWithGQA, GPTWithGQAConfig
from gpt_model.gpt_mla import GPTWithMLA, GPTWithMLAConfig
from gpt_model.gpt_swa import GPTWithSWA, GPTWithSWAConfig
from pretraining.training_loop import NextToken
from working_with_text_data.token_shards import IGNORE

SHAPE: dict[str, Any] = {"vocab_size": 61, "context_length": 32, "n_layer": 3, "n_head": 4, "d_model": 32}
MODELS: dict[str, Any] = {
    "learned": (GPT, GPTConfig(**SHAPE)),
    "rope": (GPT, GPTConfig(**SHAPE, positions="rope")),
    "grouped": (GPTWithGQA, GPTWithGQAConfig(**SHAPE, n_kv_head=2)),
    "latent": (GPTWithMLA, GPTWithMLAConfig(**SHAPE, d_latent=8, positions="rope", d_rope=4)),
    "window": (GPTWithSWA, GPTWithSWAConfig(**SHAPE, window=4)),
}


def tiny(name):
    torch.manual_seed(0)
    kind, config = MODELS[name]
    model = kind(config)
    with torch.no_grad():  # positions start so small that a wrong one would hardly show
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def made_up(lengths, seed=0):
    """Examples whose first half is a question."""
    draw = np.random.default_rng(seed)
    examples = []
    for n in lengths:
        ids = draw.integers(0, 61, n + 1)
        examples.append(Tokens(ids[:-1], np.where(np.arange(1, n + 1) > n // 2, ids[1:], IGNORE)))
    return examples


EXAMPLES = made_up([9, 14, 5, 1, 20, 11, 3])
ROWS = [[4, 5], [1, 0, 2], [3, 6]]  # of 31, 28 and 4 tokens


def alone(model, examples):
    """Logits of each by itself, and the sum of all losses, by PyTorch's own."""
    logits = [model(torch.from_numpy(e.inputs)[None])[0] for e in examples]
    losses = [
        F.cross_entropy(y, torch.from_numpy(e.targets), reduction="sum", ignore_index=IGNORE)
        for y, e in zip(logits, examples, strict=True)
    ]
    return logits, torch.stack(losses).sum()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_packed_logits_and_gradients_are_those_of_each_example_alone(name):
    model = tiny(name)
    logits, loss = alone(model, EXAMPLES)
    expected = gradients(model, loss)
    arrays = packed([[EXAMPLES[i] for i in row] for row in ROWS], 32)
    ids, targets, documents, positions = map(torch.from_numpy, arrays)
    together = model(ids, documents=documents, positions=positions)
    for row, numbers in enumerate(ROWS):
        start = 0
        for i in numbers:
            own = together[row, start : start + len(EXAMPLES[i])]
            torch.testing.assert_close(own, logits[i], atol=1e-5, rtol=1e-5)
            start += len(EXAMPLES[i])
    objective = NextToken(model, chunk_tokens=7)
    ours = objective(ids, targets, documents, positions)
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
    for key, gradient in gradients(model, ours).items():
        torch.testing.assert_close(gradient, expected[key], atol=1e-4, rtol=1e-4, msg=key)


@pytest.mark.parametrize("left_out", ["documents", "positions"])
def test_without_documents_or_positions_it_would_be_another_loss(left_out):
    """So the test above can fail."""
    model = tiny("learned")
    _, loss = alone(model, EXAMPLES)
    ids, targets, documents, positions = map(torch.from_numpy, packed([[EXAMPLES[i] for i in r] for r in ROWS], 32))
    if left_out == "documents":
        documents = torch.zeros_like(documents)
    else:
        positions = torch.arange(32).expand_as(ids)
    ours = NextToken(model)(ids, targets, documents, positions)
    assert abs(ours.item() - loss.item()) > 0.1


@pytest.mark.parametrize("name", ["learned", "rope"])
def test_padded_loss_and_gradients_are_those_of_each_example_alone(name):
    model = tiny(name)
    _, loss = alone(model, EXAMPLES)
    expected = gradients(model, loss)
    ids, targets = map(torch.from_numpy, padded(EXAMPLES, 9, fill=3))
    assert ids.shape == (9, 20)
    ours = NextToken(model, chunk_tokens=7)(ids, targets)
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
    for key, gradient in gradients(model, ours).items():
        torch.testing.assert_close(gradient, expected[key], atol=1e-4, rtol=1e-4, msg=key)


def test_positions_need_documents_and_their_shape():
    model = tiny("learned")
    ids = torch.zeros(1, 4, dtype=torch.int64)
    for wrong in ({"positions": ids}, {"documents": ids, "positions": ids[:, :3]}):
        with pytest.raises(ValueError, match="a number for each token is needed, and documents"):
            model(ids, **wrong)


@given(st.lists(st.integers(1, 32), min_size=1, max_size=60), st.integers(0, 5))
def test_every_example_is_in_one_row_and_none_is_too_full(lengths, seed):
    order = np.random.default_rng(seed).permutation(len(lengths))
    rows = best_fit(lengths, 32, order)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= 32 for row in rows)
    assert len(rows) == len(best_fit(lengths, 32))  # whatever the order
    fewest = -(-sum(lengths) // 32)
    assert len(rows) <= 11 / 9 * max(fewest, sum(n > 16 for n in lengths)) + 4  # Johnson 1973 against a lower bound


def test_best_fit_finds_what_fits_exactly():
    rows = best_fit([10, 22, 16, 16, 5, 27, 32], 32)
    assert sorted(sorted(row) for row in rows) == [[0, 1], [2, 3], [4, 5], [6]]
    with pytest.raises(ValueError, match="an example of 33 tokens does not fit into a row of 32"):
        best_fit([33], 32)


def test_an_epoch_has_every_example_once_and_depends_on_seed_and_epoch_alone():
    lengths = np.random.default_rng(1).integers(1, 30, 100)
    batches, again = (PackedBatches(lengths, 32, 8, seed=3) for _ in range(2))
    n = batches.steps_per_epoch
    epochs = [[batches(e * n + i) for i in range(n)] for e in range(3)]
    for epoch in epochs:
        assert all(len(step) == 8 for step in epoch)
        assert sorted(i for step in epoch for row in step for i in row) == list(range(100))
    assert epochs[0] != epochs[1]
    assert again(2 * n + 1) == epochs[2][1]  # asked for at once, as a resumed run does
    assert PackedBatches(lengths, 32, 8, seed=4)(0) != epochs[0][0]


def test_waste_is_the_share_that_only_fills_up():
    assert PackedBatches([32, 16, 15, 1], 32, 2).waste == 0
    assert PackedBatches([20, 20], 32, 2).waste == pytest.approx(24 / 64)
    assert padding_waste([4, 2, 4, 2], ExampleBatches([4, 2, 4, 2], 2)) == 0  # sorted by length
    lengths = np.random.default_rng(0).integers(1, 30, 400)
    inputs = [padded(made_up(lengths[n[n >= 0]]), 8)[0] for n in map(ExampleBatches(lengths, 8), range(50))]
    held = sum(array.size for array in inputs)
    assert padding_waste(lengths, ExampleBatches(lengths, 8)) == pytest.approx(1 - lengths.sum() / held)


def test_targets_are_the_answer_and_its_end():
    encoded = Encoded([1, 2, 3, 4, 5, 6, 7], [False, False, False, True, True, False, False])
    tokens = tokens_of(encoded, 10)
    assert tokens is not None
    assert tokens.inputs.tolist() == [1, 2, 3, 4]  # what stands after the answer is left out
    assert tokens.targets.tolist() == [IGNORE, IGNORE, 4, 5]
    assert not tokens.was_cut


def test_answers_are_cut_from_the_end_and_a_question_alone_is_nothing():
    encoded = Encoded([1, 2, 3, 4, 5, 6], [False, False, False, True, True, True])
    whole, cut = tokens_of(encoded, 5), tokens_of(encoded, 4)
    assert whole is not None
    assert cut is not None
    assert (whole.was_cut, cut.was_cut) == (False, True)
    assert cut.targets.tolist() == [IGNORE, IGNORE, 4, 5]
    assert tokens_of(encoded, 2) is None
    assert tokens_of(Encoded([1, 2], [False, False]), 5) is None
