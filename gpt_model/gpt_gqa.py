"""GPT with grouped-query attention: the body of `gpt.py`, with fewer heads of keys and values.

python gpt_model/gpt_gqa.py

Llama 2 70B, Llama 3 and Mistral are built so. Only the attention differs (`attention_mechanisms/grouped_query.py`):
`n_head / n_kv_head` query heads share one head of keys and values, and the cache is as many times smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from attention_mechanisms import GroupedQueryAttention
from attention_mechanisms.grouped_query import check_heads
from gpt_model.gpt import GPT, GPTConfig


@dataclass(frozen=True)
class GPTWithGQAConfig(GPTConfig):
    """The shape of a GPT with grouped-query attention.

    Raises:
        ValueError: as `GPTConfig`, or `n_kv_head` does not divide `n_head`.
    """

    positions: Literal["learned", "rope"] = "rope"
    """rope: queries and keys turned by angles; learned: a vector a position, added to the embedding, as in GPT-2."""
    n_kv_head: int = 3
    """Heads of keys and values; divides n_head. 1 is multi-query attention."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.d_model, self.n_head, self.n_kv_head)

    @property
    def d_values(self) -> int:
        return self.n_kv_head * (self.d_model // self.n_head)

    def attention_arguments(self, layer: int) -> dict[str, Any]:
        return super().attention_arguments(layer) | {"n_kv_head": self.n_kv_head}


class GPTWithGQA(GPT):
    """A GPT whose query heads share keys and values in groups."""

    config_class: ClassVar[type[GPTConfig]] = GPTWithGQAConfig
    attention_class: ClassVar[type[Any]] = GroupedQueryAttention


if __name__ == "__main__":
    from gpt_model.show_variant import show_variant

    small = GPTWithGQAConfig(vocab_size=256, context_length=64, n_layer=2, n_head=6, d_model=96, n_kv_head=2)
    show_variant(GPTWithGQA, small)
