"""What is said of the attention is what the model does while it learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gpt_model import (
    GPT,
    GPTConfig,
    GPTWithGQA,
    GPTWithGQAConfig,
    GPTWithMLA,
    GPTWithMLAConfig,
    GPTWithSWA,
    GPTWithSWAConfig,
)
from pretraining.diagnostics import attention_entropy
from pretraining.distributed import Ranks
from pretraining.pretrain import Pretrain, Pretraining
from tests.pretraining.test_pretrain import tokens  # noqa: F401 - a fixture
from working_with_text_data.token_shards import document_numbers

SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "context_length": 16,
    "n_layer": 2,
    "n_head": 2,
    "d_model": 32,
    "positions": "rope",
}
MODELS: dict[str, Callable[[], GPT]] = {
    "multi-head": lambda: GPT(GPTConfig(**SHAPE)),
    "grouped-query": lambda: GPTWithGQA(GPTWithGQAConfig(**SHAPE, n_kv_head=1)),
    "latent": lambda: GPTWithMLA(GPTWithMLAConfig(**SHAPE, d_latent=8, d_rope=4)),
    "sliding-window": lambda: GPTWithSWA(GPTWithSWAConfig(**SHAPE, window=4)),
}


@pytest.mark.parametrize("attention", MODELS)
def test_the_entropy_of_two_documents_is_that_of_each_alone(attention):
    torch.manual_seed(0)
    model = MODELS[attention]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # so that attention is not nearly even
    ids = torch.randint(0, 50, (4, 16))  # (batch, tokens)
    documents = torch.arange(16).expand(4, 16) // 8  # (batch, tokens)
    alone = attention_entropy(model, torch.cat([ids[:, :8], ids[:, 8:]]))
    assert attention_entropy(model, ids, documents) == pytest.approx(alone, rel=1e-4)
    if attention != "sliding-window":  # whose window is shorter than a document
        assert attention_entropy(model, ids)[0] > 1.1 * alone[0]


def test_a_run_with_document_masking_is_looked_at_under_its_mask(tokens, tmp_path):  # noqa: F811
    shape: dict[str, Any] = {
        "n_layer": 1,
        "n_head": 2,
        "d_model": 16,
        "context_length": 128,
        "batch_size": 4,
        "eval_tokens": 1024,
    }
    options = Pretrain(**shape, data=tokens, run=tmp_path / "run", document_masking=True, device="cpu")
    training = Pretraining(options, Ranks(0, 1, torch.device("cpu")))
    training.loop.read.close()
    inputs = training.validation.some[:4, :-1]
    documents = torch.from_numpy(document_numbers(inputs, training.end))
    assert documents.max() > 0
    ids = torch.from_numpy(inputs)
    entropies = training._diagnose()
    assert entropies["attention_entropy.0"] == attention_entropy(training.model, ids, documents)[0]
    assert entropies["attention_entropy.0"] < attention_entropy(training.model, ids)[0]
