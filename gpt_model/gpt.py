"""GPT-2: the body that every model of this house shares.

Ids become vectors; blocks refine them by turns of looking around (attention) and thinking over (a two-layer network);
the last vectors are compared with every token's embedding to say which comes next:

    x = wte[ids] + wpe[positions]                     (with rotary positions, wte[ids] alone)
    for each block:   x = x + attention(norm(x));   x = x + mlp(norm(x))
    logits = norm(x) · wteᵀ

The sums are the *residual stream*: every block adds to it and none replaces it, so gradients reach the first layer
undiminished. Normalising before each part rather than after it is GPT-2's change to the Transformer that made deep
stacks train (Radford et al. 2019, section 2.3). Input and output share the matrix wte (Press and Wolf 2017).

Parameters have the names of Hugging Face's GPT-2, so a trained model *is* one: see `pretrained.py`.

Nothing here depends on which attention sits in the blocks. A variant (`gpt_gqa.py`, `gpt_mla.py`, `gpt_swa.py`) is a
config with some fields more and a subclass that names another attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_mechanisms import LayerCaches, MultiHeadAttention, Rotary


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. The defaults are GPT-2's smallest, 124 million parameters.

    Raises:
        ValueError: a number is not positive, `n_head` does not divide `d_model`, dropout is not in [0, 1), or rotary
            positions have an odd number of numbers to turn.
    """

    vocab_size: int = 50257
    """Tokens in the vocabulary: rows of the embedding."""
    context_length: int = 1024
    """Tokens that the model can see at once: rows of the position embedding."""
    n_layer: int = 12
    """Blocks, one above the other."""
    n_head: int = 12
    """Attention heads in each block."""
    d_model: int = 768
    """Width of the residual stream."""
    dropout: float = 0.0
    """Probability of setting a number to zero in training; against learning a small corpus by heart."""
    layer_norm_epsilon: float = 1e-5
    """Added to the variance in LayerNorm, so that a constant vector does not divide by zero."""
    d_ff: int | None = None
    """Width inside the MLP; 4 · d_model if not given. Models of different attention get equal parameters by it."""
    positions: Literal["learned", "rope"] = "learned"
    """learned: a vector a position, added to the embedding, as in GPT-2; rope: queries and keys turned by angles."""
    rope_base: float = 10_000.0
    """Of rope: the slowest pair of numbers turns once in about 2π times as many tokens; more for longer contexts."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "n_layer", "n_head", "d_model", "d_ff"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.d_model % self.n_head:
            raise ValueError(f"d_model={self.d_model} is not divisible by n_head={self.n_head}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if self.positions not in ("learned", "rope"):
            raise ValueError(f"positions must be 'learned' or 'rope', got {self.positions!r}")
        if not 1 < self.rope_base < math.inf:  # written so that NaN fails
            raise ValueError(f"rope_base must be above 1 and finite, got {self.rope_base}")
        if not 0 < self.layer_norm_epsilon < math.inf:
            raise ValueError(f"layer_norm_epsilon must be above 0 and finite, got {self.layer_norm_epsilon}")
        self.attention_arguments(0)  # rotary positions that cannot be

    @property
    def rotary_dim(self) -> int:
        """How many numbers of a head rotary positions turn: all of them, if a variant does not say otherwise."""
        return self.d_model // self.n_head

    def attention_arguments(self, layer: int) -> dict[str, Any]:
        """What the model's `attention_class` is made with in block `layer`; a variant's config adds its own."""
        rotary = None
        if self.positions == "rope":
            rotary = Rotary(self.rotary_dim, self.context_length, self.rope_base)
        return {"d_model": self.d_model, "n_head": self.n_head, "dropout": self.dropout, "rotary": rotary}


# The four sizes that OpenAI published, and some for a laptop.
GPT2_124M = GPTConfig()
GPT2_355M = GPTConfig(n_layer=24, n_head=16, d_model=1024)
GPT2_774M = GPTConfig(n_layer=36, n_head=20, d_model=1280)
GPT2_1558M = GPTConfig(n_layer=48, n_head=25, d_model=1600)
GPT_LAPTOP = GPTConfig(vocab_size=2048, context_length=256, n_layer=4, n_head=6, d_model=192)
GPT_TOY = GPTConfig(vocab_size=256, context_length=64, n_layer=2, n_head=2, d_model=32)


class MLP(nn.Module):
    """The two-layer network of a block, applied to each token alone: (four times) wider, GELU, and back."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        d_ff = config.d_ff or 4 * config.d_model
        self.c_fc = nn.Linear(config.d_model, d_ff)
        self.c_proj = nn.Linear(d_ff, config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, d_model) to the same."""
        x = F.gelu(self.c_fc(x), approximate="tanh")  # (batch, tokens, d_ff)
        return self.dropout(self.c_proj(x))  # (batch, tokens, d_model)


class Block(nn.Module):
    """Attention, then the MLP, each reading a normalised copy of the residual stream and adding to it."""

    def __init__(self, config: GPTConfig, attention_class: type[Any], layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.attn = attention_class(**config.attention_arguments(layer))
        self.ln_2 = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        """(batch, tokens, d_model) to the same."""
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Embeddings, blocks and the last norm: ids to vectors. The names of its parts are Hugging Face's."""

    def __init__(self, config: GPTConfig, attention_class: type[Any]) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.wpe = nn.Embedding(config.context_length, config.d_model) if config.positions == "learned" else None
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList([Block(config, attention_class, layer) for layer in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    @property
    def blocks(self) -> list[Block]:
        """`h`, for type checkers."""
        return cast(list[Block], list(self.h))

    def forward(self, ids: Tensor, positions: Tensor, cache: LayerCaches | None = None) -> Tensor:
        """ids (batch, tokens) and their positions (tokens,) or (batch, tokens) to (batch, tokens, d_model)."""
        x = self.wte(ids)  # (batch, tokens, d_model)
        if self.wpe is not None:
            x = x + self.wpe(positions)
        x = self.drop(x)
        for i, block in enumerate(self.h):
            x = block(x, cache.layers[i] if cache is not None else None)
        normalised: Tensor = self.ln_f(x)
        return normalised


class GPT(nn.Module):
    """A GPT-2 language model.

    A variant is a subclass that names another `config_class` and `attention_class`; nothing else of the body changes.
    """

    config_class: ClassVar[type[GPTConfig]] = GPTConfig
    attention_class: ClassVar[type[Any]] = MultiHeadAttention

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config, self.attention_class)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight  # one matrix, read in two ways
        self.apply(self._initialise)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                # Each of the 2 · n_layer parts adds to the stream; scaled so, its variance at the top is that of one.
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer))

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        """GPT-2's: every matrix normal with deviation 0.02, biases zero."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor, cache: LayerCaches | None = None) -> Tensor:
        """The logits of the token after each of `ids`.

        Args:
            ids: int64 (batch, tokens).
            cache: what `make_cache` gave; `ids` then follow the tokens that are in it, and are added.

        Returns:
            (batch, tokens, vocab_size).

        Raises:
            ValueError: the text would be longer than `context_length`.
        """
        logits: Tensor = self.lm_head(self.hidden_states(ids, cache))  # (batch, tokens, vocab_size)
        return logits

    def hidden_states(self, ids: Tensor, cache: LayerCaches | None = None) -> Tensor:
        """The last block's vectors, normalised: `forward` without the output matrix. (batch, tokens, d_model)."""
        n_new = ids.shape[1]
        end = n_new + (cache.length if cache is not None else 0)
        if end > self.config.context_length:
            raise ValueError(f"{end} tokens are more than the model's context of {self.config.context_length}")
        positions = torch.arange(n_new, device=ids.device) if cache is None else cache.positions(n_new, ids.device)
        hidden: Tensor = self.transformer(ids, positions, cache)
        return hidden

    def next_logits(self, ids: Tensor, cache: LayerCaches | None = None) -> Tensor:
        """The logits of what follows the last of `ids`, which is all that generation asks: (batch, vocab_size)."""
        logits: Tensor = self.lm_head(self.hidden_states(ids, cache)[:, -1])
        return logits

    def make_cache(self, batch_size: int, max_length: int | None = None, padding: Tensor | None = None) -> LayerCaches:
        """An empty cache for `batch_size` texts of up to `max_length` tokens (the whole context if not given).

        Args:
            padding: int64 (batch,), for texts of different lengths: see `attention_mechanisms.pad_left`.
        """
        length = self.config.context_length if max_length is None else max_length
        like = self.transformer.ln_f.weight  # activations have its format, whatever the matrices are kept in
        layers = [block.attn.make_cache(batch_size, length, padding, like) for block in self.transformer.blocks]
        return LayerCaches(layers, padding)

    def cache_bytes(self, n_tokens: int, bytes_per_number: int = 2) -> int:
        """Bytes that a text of `n_tokens` keeps in the caches of all blocks, by the formulas of `AttentionCost`."""
        return sum(block.attn.cost(n_tokens).cache_bytes(bytes_per_number) for block in self.transformer.blocks)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.ln_f.weight.device

    @property
    def n_parameters(self) -> int:
        """Number of parameters, the shared embedding counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def save_pretrained(
        self,
        folder: Path | str,
        tokenizer: Any = None,
        made_by: dict[str, Any] | None = None,
        max_shard_bytes: int = 5 * 10**9,
    ) -> None:
        """Writes a model folder: see `pretrained.save_model`."""
        from gpt_model.pretrained import save_model

        save_model(self, folder, tokenizer, made_by, max_shard_bytes)

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: Path | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        allow_pickle: bool = False,
    ) -> Self:
        """A model from a folder or from the hub: see `pretrained.load_model`.

        Raises:
            ValueError: neither a folder nor a hub model, or a model of another class.
            ConnectionError: it is not in the cache, and the hub cannot be reached.
        """
        from gpt_model.pretrained import load_model

        model = load_model(name_or_folder, device, dtype, revision, allow_pickle)
        if type(model) is not cls:
            raise ValueError(f"{name_or_folder} holds a {type(model).__name__}, not a {cls.__name__}")
        return model
