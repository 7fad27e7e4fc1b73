"""Floor 3, chapter 3: the model, its generation, its weights in and out."""

from gpt_model.generate import Sampling, generate
from gpt_model.gpt import GPT, GPTConfig
from gpt_model.pretrained import load_model, load_tokenizer

__all__ = ["GPT", "GPTConfig", "Sampling", "generate", "load_model", "load_tokenizer"]
