"""Floor 3, chapter 3: the model, its variants, its generation, its weights in and out."""

from gpt_model.beam_search import Beam, beam_search
from gpt_model.generate import Token, generate, generate_tokens
from gpt_model.gpt import GPT, GPTConfig
from gpt_model.gpt_gqa import GPTWithGQA, GPTWithGQAConfig
from gpt_model.gpt_mla import GPTWithMLA, GPTWithMLAConfig
from gpt_model.gpt_swa import GPTWithSWA, GPTWithSWAConfig
from gpt_model.pretrained import load_model, load_tokenizer
from gpt_model.sampling import Sampling
from gpt_model.speculative import Speculation, generate_speculatively
from gpt_model.weight_only import store_weights

__all__ = [
    "GPT",
    "Beam",
    "GPTConfig",
    "GPTWithGQA",
    "GPTWithGQAConfig",
    "GPTWithMLA",
    "GPTWithMLAConfig",
    "GPTWithSWA",
    "GPTWithSWAConfig",
    "Sampling",
    "Speculation",
    "Token",
    "beam_search",
    "generate",
    "generate_speculatively",
    "generate_tokens",
    "load_model",
    "load_tokenizer",
    "store_weights",
]
