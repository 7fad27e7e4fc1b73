"""GPT with multi-head latent attention: the body of `gpt.py`, remembering one small vector a token.

python gpt_model/gpt_mla.py

DeepSeek-V2, V3 and R1 are built so. Only the attention differs (`attention_mechanisms/multi_head_latent.py`): the keys
and values of all heads are made from a latent vector, and the cache holds that alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from attention_mechanisms import MultiHeadLatentAttention
from attention_mechanisms.multi_head_latent import NO_QK_NORM, NO_VALUES, check_latents
from gpt_model.gpt import GPT, GPTConfig


@dataclass(frozen=True)
class GPTWithMLAConfig(GPTConfig):
    """The shape of a GPT with multi-head latent attention.

    Raises:
        ValueError: as `GPTConfig`, or a latent is wider than what it is made from, or `d_rope` is odd; or `qk_norm` or
            `value_embeddings`, for which there would have to be keys and values.
    """

    positions: Literal["learned", "rope"] = "rope"
    """rope: d_rope numbers beside the latent carry the position; learned: added to the embedding, as in GPT-2."""
    d_latent: int = 256
    """Numbers in the latent vector of keys and values: what is kept of a token, with the rotary key."""
    d_rope: int = 32
    """Numbers in the rotary key of all heads, and in each head's rotary query; unused with learned positions."""
    d_query_latent: int | None = None
    """Numbers in a latent vector of the query; none makes queries from the token itself."""
    latent_norm: bool = True
    """Normalise the latents, as DeepSeek does; conversion from another attention does not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_latents(self.d_model, self.n_head, self.d_latent, self.d_query_latent)
        if self.qk_norm:
            raise ValueError(NO_QK_NORM)
        if self.value_embeddings:
            raise ValueError(NO_VALUES)

    @property
    def rotary_dim(self) -> int:
        return self.d_rope

    def attention_arguments(self, layer: int) -> dict[str, Any]:
        shared = super().attention_arguments(layer)
        del shared["qk_norm"]  # refused above
        return shared | {
            "d_latent": self.d_latent,
            "d_query_latent": self.d_query_latent,
            "latent_norm": self.latent_norm,
        }


class GPTWithMLA(GPT):
    """A GPT whose keys and values are made from a latent vector."""

    config_class: ClassVar[type[GPTConfig]] = GPTWithMLAConfig
    attention_class: ClassVar[type[Any]] = MultiHeadLatentAttention


if __name__ == "__main__":
    from gpt_model.show_variant import show_variant

    small = GPTWithMLAConfig(vocab_size=256, context_length=64, n_layer=2, n_head=6, d_model=96, d_latent=32, d_rope=8)
    show_variant(GPTWithMLA, small)
