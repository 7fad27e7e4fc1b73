"""Floor 3, chapter 3: the model, its variants, its generation, its weights in and out."""

from gpt_model.generate import Sampling, generate
from gpt_model.gpt import GPT, GPTConfig
from gpt_model.gpt_gqa import GPTWithGQA, GPTWithGQAConfig
from gpt_model.gpt_mla import GPTWithMLA, GPTWithMLAConfig
from gpt_model.gpt_swa import GPTWithSWA, GPTWithSWAConfig
from gpt_model.pretrained import load_model, load_tokenizer

__all__ = [
    "GPT",
    "GPTConfig",
    "GPTWithGQA",
    "GPTWithGQAConfig",
    "GPTWithMLA",
    "GPTWithMLAConfig",
    "GPTWithSWA",
    "GPTWithSWAConfig",
    "Sampling",
    "generate",
    "load_model",
    "load_tokenizer",
]
