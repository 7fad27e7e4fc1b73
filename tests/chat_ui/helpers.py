"""What several tests of the chat need: a tiny model with its tokenizer, and a run folder to pick it from."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from finetuning.instruction.prompt_format import FormatName, PromptFormat
from gpt_model import GPT, GPTConfig
from working_with_text_data.bytepair_enc import BytePairTokenizer

WORDS = "What does len do? Return the number of items. The cat sat on the mat. ### Response: é 日本 👩‍👩‍👧"


@cache
def tokenizer() -> BytePairTokenizer:
    """320 tokens, of which one is `<|endoftext|>`."""
    return BytePairTokenizer.train([WORDS] * 3, 320)


def tiny_model(context_length: int = 96, seed: int = 0) -> GPT:
    """A model of random weights, in float64, so that no text hangs on a rounding."""
    torch.manual_seed(seed)
    config = GPTConfig(tokenizer().n_vocab, context_length, n_layer=2, n_head=2, d_model=32)
    model = GPT(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        model.transformer.ln_f.weight.mul_(2)
    return model


def model_folder(folder: Path, layout: FormatName | None = "alpaca", seed: int = 0, context_length: int = 96) -> Path:
    """A model folder as a training stage leaves it; without a layout, that of a base model."""
    beside = PromptFormat.named(layout).beside() if layout else None
    tiny_model(context_length, seed).float().save_pretrained(
        folder, tokenizer(), {"command": "python a_test.py --seed 0"}, beside=beside
    )
    return folder
