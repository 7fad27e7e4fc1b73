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

What has been found better since then can be switched on, each change alone: see the last fields of `GPTConfig`. With
the defaults it is GPT-2.

Nothing here depends on which attention sits in the blocks. A variant (`gpt_gqa.py`, `gpt_mla.py`, `gpt_swa.py`) is a
config with some fields more and a subclass that names another attention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_mechanisms import LayerCaches, MultiHeadAttention, Rotary
from attention_mechanisms.masks import document_mask


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. The defaults are GPT-2's smallest, 124 million parameters.

    Raises:
        ValueError: a number is not positive, `n_head` does not divide `d_model`, dropout is not in [0, 1), a name is
            none of those that there are, or rotary positions have an odd number of numbers to turn.
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
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """rmsnorm: divides by the root mean square, and takes no mean away (Zhang and Sennrich 2019)."""
    activation: Literal["gelu", "relu2"] = "gelu"
    """Of the MLP. relu2: the square of what is above zero, and nothing of the rest (So et al. 2021, Primer)."""
    bias: bool = True
    """Whether linear layers and LayerNorm have biases. Models since PaLM (Chowdhery et al. 2022, section 2) do not."""
    qk_norm: bool = False
    """Queries and keys are brought to one length, √head_dim (Henry et al. 2020; Dehghani et al. 2023, section 2)."""
    zero_projections: bool = False
    """What a block adds to the stream starts at zero, so that at first it changes nothing (Zhang et al. 2019)."""
    logit_softcap: float | None = None
    """Logits are bent to stay between -cap and cap: cap · tanh(logits / cap) (Gemma 2, Riviere et al. 2024, sec. 2)."""
    value_embeddings: bool = False
    """Blocks 1, 3, … add a learned vector of each token to its values (Zhou et al. 2024; modded-nanogpt)."""
    tie_embeddings: bool = True
    """Whether the output reads the matrix of the input (Press and Wolf 2017). False gives it one of its own."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "n_layer", "n_head", "d_model", "d_ff"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.d_model % self.n_head:
            raise ValueError(f"d_model={self.d_model} is not divisible by n_head={self.n_head}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {known[0]!r} or {known[1]!r}, got {getattr(self, name)!r}")
        if not 1 < self.rope_base < math.inf:  # written so that NaN fails
            raise ValueError(f"rope_base must be above 1 and finite, got {self.rope_base}")
        if not 0 < self.layer_norm_epsilon < math.inf:
            raise ValueError(f"layer_norm_epsilon must be above 0 and finite, got {self.layer_norm_epsilon}")
        if self.logit_softcap is not None and not 0 < self.logit_softcap < math.inf:
            raise ValueError(f"logit_softcap must be above 0 and finite (none for no cap), got {self.logit_softcap}")
        self.attention_arguments(0)  # rotary positions that cannot be

    @property
    def rotary_dim(self) -> int:
        """How many numbers of a head rotary positions turn: all of them, if a variant does not say otherwise."""
        return self.d_model // self.n_head

    @property
    def d_values(self) -> int:
        """Numbers in the values of all heads together, which value embeddings are added to."""
        return self.d_model

    def attention_arguments(self, layer: int) -> dict[str, Any]:
        """What the model's `attention_class` is made with in block `layer`; a variant's config adds its own."""
        rotary = None
        if self.positions == "rope":
            rotary = Rotary(self.rotary_dim, self.context_length, self.rope_base)
        return {
            "d_model": self.d_model,
            "n_head": self.n_head,
            "dropout": self.dropout,
            "bias": self.bias,
            "rotary": rotary,
            "qk_norm": self.qk_norm,
        }


_CHOICES = {"positions": ("learned", "rope"), "norm": ("layernorm", "rmsnorm"), "activation": ("gelu", "relu2")}

# The four sizes that OpenAI published, and some for a laptop.
GPT2_124M = GPTConfig()
GPT2_355M = GPTConfig(n_layer=24, n_head=16, d_model=1024)
GPT2_774M = GPTConfig(n_layer=36, n_head=20, d_model=1280)
GPT2_1558M = GPTConfig(n_layer=48, n_head=25, d_model=1600)
GPT_LAPTOP = GPTConfig(vocab_size=2048, context_length=256, n_layer=4, n_head=6, d_model=192)
GPT_TOY = GPTConfig(vocab_size=256, context_length=64, n_layer=2, n_head=2, d_model=32)


def make_norm(config: GPTConfig) -> nn.LayerNorm | nn.RMSNorm:
    """The norm in front of each part of a block, and behind the last one."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.d_model, eps=config.layer_norm_epsilon)
    return nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon, bias=config.bias)


def gelu(x: Tensor) -> Tensor:
    """x times the share of a normal distribution below x (Hendrycks and Gimpel 2016), in GPT-2's approximation."""
    return F.gelu(x, approximate="tanh")


def relu2(x: Tensor) -> Tensor:
    """The square of x where it is above zero, and zero elsewhere."""
    return F.relu(x).square()


class MLP(nn.Module):
    """The two-layer network of a block, applied to each token alone: (four times) wider, GELU or ReLU², and back."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        d_ff = config.d_ff or 4 * config.d_model
        self.c_fc = nn.Linear(config.d_model, d_ff, bias=config.bias)
        self.c_proj = nn.Linear(d_ff, config.d_model, bias=config.bias)
        self.activation = {"gelu": gelu, "relu2": relu2}[config.activation]
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, d_model) to the same."""
        x = self.activation(self.c_fc(x))  # (batch, tokens, d_ff)
        return self.dropout(self.c_proj(x))  # (batch, tokens, d_model)


class Block(nn.Module):
    """Attention, then the MLP, each reading a normalised copy of the residual stream and adding to it."""

    def __init__(self, config: GPTConfig, attention_class: type[Any], layer: int) -> None:
        super().__init__()
        self.ln_1 = make_norm(config)
        self.attn = attention_class(**config.attention_arguments(layer))
        self.ln_2 = make_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: Any = None, mask: Tensor | None = None, values: Tensor | None = None) -> Tensor:
        """(batch, tokens, d_model) to the same. `mask` and `values` are for attention: see `MultiHeadAttention`."""
        x = x + self.attn(self.ln_1(x), cache, mask, values)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Embeddings, blocks and the last norm: ids to vectors. The names of its parts are Hugging Face's."""

    def __init__(self, config: GPTConfig, attention_class: type[Any]) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.wpe = nn.Embedding(config.context_length, config.d_model) if config.positions == "learned" else None
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList([Block(config, attention_class, layer) for layer in range(config.n_layer)])
        self.ln_f = make_norm(config)
        self.value_embeddings = nn.ModuleDict()
        if config.value_embeddings:
            for layer in range(1, config.n_layer, 2):
                self.value_embeddings[str(layer)] = nn.Embedding(config.vocab_size, config.d_values)

    @property
    def blocks(self) -> list[Block]:
        """`h`, for type checkers."""
        return cast(list[Block], list(self.h))

    def values(self, layer: int, ids: Tensor) -> Tensor | None:
        """What attention in block `layer` adds to its values, (batch, tokens, d_values); None where it adds nothing."""
        name = str(layer)
        return self.value_embeddings[name](ids) if name in self.value_embeddings else None

    def forward(
        self, ids: Tensor, positions: Tensor, cache: LayerCaches | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """ids (batch, tokens) and their positions (tokens,) or (batch, tokens) to (batch, tokens, d_model)."""
        x = self.wte(ids)  # (batch, tokens, d_model)
        if self.wpe is not None:
            x = x + self.wpe(positions)
        x = self.drop(x)
        for i, block in enumerate(self.h):
            x = block(x, cache.layers[i] if cache is not None else None, mask, self.values(i, ids))
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
        if config.tie_embeddings:
            self.lm_head.weight = self.transformer.wte.weight  # one matrix, read in two ways
        self.apply(self._initialise)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                # Each of the 2 · n_layer parts adds to the stream; scaled so, its variance at the top is that of one.
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer))
        if config.zero_projections:
            self._start_at_zero()

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        """GPT-2's: every matrix normal with deviation 0.02, biases zero."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def _start_at_zero(self) -> None:
        """`zero_projections`: blocks add nothing to the stream, and an output matrix of its own has no opinion."""
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight") or name == "lm_head.weight":  # a tied one has the name of the embedding
                nn.init.zeros_(parameter)

    def forward(
        self,
        ids: Tensor,
        cache: LayerCaches | None = None,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """The logits of the token after each of `ids`.

        Args:
            ids: int64 (batch, tokens).
            cache: what `make_cache` gave; `ids` then follow the tokens that are in it, and are added.
            documents: int64 (batch, tokens), a number for each document of a packed window: a token then sees those of
                its own document only. Positions run on through the window. Only without a cache.
            positions: int64 (batch, tokens), where each token stands in its own document, from 0: then every document
                of the window has the logits that it has alone. Learned positions need them; rotary ones tell distances
                alone, which are the same in the window, and pass over them. Only with `documents`.

        Returns:
            (batch, tokens, vocab_size).

        Raises:
            ValueError: the text would be longer than `context_length`, `documents` are of another shape than `ids`
                or come with a cache, or `positions` are of another shape or come without `documents`.
        """
        return self.logits_of(self.hidden_states(ids, cache, documents, positions))

    def logits_of(self, hidden: Tensor) -> Tensor:
        """What the vectors of `hidden_states` say of the next token: (…, d_model) to (…, vocab_size)."""
        logits: Tensor = self.lm_head(hidden)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def hidden_states(
        self,
        ids: Tensor,
        cache: LayerCaches | None = None,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """The last block's vectors, normalised: `forward` without the output matrix. (batch, tokens, d_model)."""
        if documents is not None and (cache is not None or documents.shape != ids.shape):
            raise ValueError(
                f"documents of shape {tuple(documents.shape)} for ids of {tuple(ids.shape)}: a number for each token "
                "is needed, and no cache, which holds one document a row"
            )
        if positions is not None and (documents is None or positions.shape != ids.shape):
            raise ValueError(
                f"positions of shape {tuple(positions.shape)} for ids of {tuple(ids.shape)}: a number for each token "
                "is needed, and documents, within which they count"
            )
        n_new = ids.shape[1]
        end = n_new + (cache.length if cache is not None else 0)
        if end > self.config.context_length:
            raise ValueError(f"{end} tokens are more than the model's context of {self.config.context_length}")
        if positions is None:
            positions = torch.arange(n_new, device=ids.device) if cache is None else cache.positions(n_new, ids.device)
        mask = None if documents is None else document_mask(documents)
        hidden: Tensor = self.transformer(ids, positions, cache, mask)
        return hidden

    def next_logits(self, ids: Tensor, cache: LayerCaches | None = None) -> Tensor:
        """The logits of what follows the last of `ids`, which is all that generation asks: (batch, vocab_size)."""
        return self.logits_of(self.hidden_states(ids, cache)[:, -1])

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
        """Number of parameters, an embedding that is shared counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def save_pretrained(
        self,
        folder: Path | str,
        tokenizer: Any = None,
        made_by: dict[str, Any] | None = None,
        max_shard_bytes: int = 5 * 10**9,
        beside: Mapping[str, bytes] | None = None,
    ) -> None:
        """Writes a model folder: see `pretrained.save_model`."""
        from gpt_model.pretrained import save_model

        save_model(self, folder, tokenizer, made_by, max_shard_bytes, beside)

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
