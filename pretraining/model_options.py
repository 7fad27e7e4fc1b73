"""The flags that shape a model, for every script that trains one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
    load_model,
    load_tokenizer,
)
from utils.errors import UserError, refuse_foreign_flags
from working_with_text_data.token_shards import TokenShards


@dataclass(frozen=True)
class ModelOptions:
    """The shape of the model. The defaults suit some minutes on a laptop without a GPU."""

    from_model: Path | None = None
    """Begin from the weights in this model folder, such as convert.py writes; its shape counts, not the flags."""
    attention: Literal["multi-head", "grouped-query", "latent", "sliding-window"] = "multi-head"
    """What the blocks gather with."""
    positions: Literal["learned", "rope"] = "learned"
    """A vector a position, or queries and keys turned by angles."""
    n_kv_head: int = 1
    """Of grouped-query: heads of keys and values; divides n_head."""
    d_latent: int = 64
    """Of latent: numbers in the vector that keys and values are made from."""
    d_rope: int = 16
    """Of latent with rope: numbers in the rotary key."""
    window: int = 32
    """Of sliding-window: tokens that a token sees, itself among them."""
    d_ff: int | None = None
    """Width inside the MLPs; 4 times d_model if not given."""
    n_layer: int = 4
    """Blocks, one above the other."""
    n_head: int = 3
    """Attention heads in each block."""
    d_model: int = 192
    """Width of the residual stream."""
    context_length: int = 128
    """Tokens that the model sees at once."""
    dropout: float = 0.0
    """Probability of setting a number to zero in training."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """rmsnorm takes no mean away, and has no bias."""
    activation: Literal["gelu", "relu2"] = "gelu"
    """In the MLPs; relu2 is the square of what is above zero."""
    bias: bool = True
    """Biases in linear layers and in LayerNorm."""
    qk_norm: bool = False
    """Queries and keys of one length."""
    zero_projections: bool = False
    """At first the blocks add nothing to the residual stream."""
    logit_softcap: float | None = None
    """Bend logits so that they stay between minus this and this."""
    value_embeddings: bool = False
    """Every second block adds a learned vector of each token to its values."""
    tie_embeddings: bool = True
    """One matrix for input and output."""


# Fields of the model's config that have a flag of the same name.
SHAPE = (
    "positions", "d_ff", "n_layer", "n_head", "d_model", "dropout", "norm", "activation", "bias", "qk_norm",
    "zero_projections", "logit_softcap", "value_embeddings", "tie_embeddings",
)  # fmt: skip
OF_ATTENTION = {"grouped-query": ("n_kv_head",), "latent": ("d_latent", "d_rope"), "sliding-window": ("window",)}


def refuse_flags_without_meaning(options: ModelOptions, preset: ModelOptions | None = None) -> None:
    """Raises UserError where a flag of the shape was given and would do nothing.

    Args:
        preset: where the defaults of all flags come from; the class's own if not given.
    """
    default = preset or type(options)
    if options.from_model is not None:
        for name in ("attention", *SHAPE, *(name for names in OF_ATTENTION.values() for name in names)):
            if getattr(options, name) != getattr(default, name):
                raise UserError(
                    f"--{name.replace('_', '-')} does nothing with --from-model, whose own shape counts: leave it out"
                )
    refuse_foreign_flags(options, "--attention", options.attention, OF_ATTENTION)


def make_model(options: ModelOptions, shards: TokenShards, preset: ModelOptions | None = None) -> GPT:
    """A new model of the shape that the flags tell, or the one to begin from; weights are drawn from torch's generator.

    Args:
        preset: where the defaults of all flags come from; the class's own if not given.

    Raises:
        UserError: flags that mean nothing together, or a model that does not fit the tokens.
        ValueError: a shape that cannot be.
    """
    refuse_flags_without_meaning(options, preset)
    if options.from_model is not None:
        model = load_model(options.from_model, dtype=torch.float32)
        if load_tokenizer(options.from_model).ranks != shards.tokenizer.ranks:
            raise UserError(f"{options.from_model} has another tokenizer than the tokens in {shards.folder}")
        if model.config.context_length < options.context_length:
            raise UserError(
                f"{options.from_model} sees {model.config.context_length} tokens at once: "
                f"pass --context-length {model.config.context_length}"
            )
        return model.train()
    shape: dict[str, Any] = {name: getattr(options, name) for name in SHAPE}
    shape |= {"vocab_size": shards.tokenizer.n_vocab, "context_length": options.context_length}
    if options.attention == "grouped-query":
        return GPTWithGQA(GPTWithGQAConfig(**shape, n_kv_head=options.n_kv_head))
    if options.attention == "latent":
        return GPTWithMLA(GPTWithMLAConfig(**shape, d_latent=options.d_latent, d_rope=options.d_rope))
    if options.attention == "sliding-window":
        return GPTWithSWA(GPTWithSWAConfig(**shape, window=options.window))
    return GPT(GPTConfig(**shape))
