"""The figures by which models are compared, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from gpt_model.evaluate import bytes_of_tokens, evaluate_windows
from tests.gpt_model.test_gpt import tiny_gpt
from working_with_text_data.bytepair_enc import BytePairTokenizer


def test_loss_and_bits_are_sums_over_single_predictions():
    model = tiny_gpt()
    windows = torch.randint(0, 61, (5, 9))
    token_bytes = torch.randint(0, 6, (61,))
    loss, bits = evaluate_windows(model, windows, token_bytes, batch_size=2, precision="float32")
    assert model.training  # as it was
    model.eval()
    surprises, n_bytes = [], 0.0
    for window in windows:
        for i in range(8):
            p = model(window[None, : i + 1])[0, -1].softmax(0)[window[i + 1]]
            surprises.append(-math.log(p.item()))
            n_bytes += token_bytes[window[i + 1]].item()
    assert loss == pytest.approx(sum(surprises) / 40, rel=1e-5)
    assert bits == pytest.approx(sum(surprises) / math.log(2) / n_bytes, rel=1e-5)


def test_bytes_of_tokens_sum_to_the_text():
    tokenizer = BytePairTokenizer.train(["naïve 日本 text, naïve text"] * 2, 270)
    lengths = bytes_of_tokens(tokenizer)
    text = "a naïve 日本 text"
    assert lengths[tokenizer.encode_ordinary(text)].sum().item() == len(text.encode())
    assert lengths[tokenizer.eot_token] == 0
    assert len(lengths) == tokenizer.n_vocab
