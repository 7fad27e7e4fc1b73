"""GPT with sliding-window attention: the body of `gpt.py`, with a memory that ends.

python gpt_model/gpt_swa.py

Mistral 7B is built so, and, with some layers that see everything in between, Gemma 2 and 3. Only the attention differs
(`attention_mechanisms/sliding_window.py`): a token sees the last `window` tokens, and the cache stays at that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from attention_mechanisms import SlidingWindowAttention
from attention_mechanisms.grouped_query import check_heads
from attention_mechanisms.sliding_window import check_window
from gpt_model.gpt import GPT, GPTConfig


@dataclass(frozen=True)
class GPTWithSWAConfig(GPTConfig):
    """The shape of a GPT with sliding-window attention.

    Raises:
        ValueError: as `GPTConfig`, or the window is not at least 1, sinks or `global_every` are negative, or
            `n_kv_head` does not divide `n_head`.
    """

    positions: Literal["learned", "rope"] = "rope"
    """rope: queries and keys turned by angles; learned: a vector a position, added to the embedding, as in GPT-2."""
    window: int = 512
    """Tokens that a token sees, itself among them."""
    n_sink: int = 0
    """Tokens at the beginning that every token sees in spite of the window."""
    global_every: int = 0
    """Every so many blocks, one sees everything: 6 makes blocks 6, 12, … global, counted from 1; 0 makes none."""
    n_kv_head: int | None = None
    """Heads of keys and values; divides n_head. As many as n_head if not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self.window, self.n_sink)
        if self.global_every < 0:
            raise ValueError(f"global_every must be at least 0 (0 for no global block), got {self.global_every}")
        if self.n_kv_head is not None:
            check_heads(self.d_model, self.n_head, self.n_kv_head)

    @property
    def d_values(self) -> int:
        return (self.n_kv_head or self.n_head) * (self.d_model // self.n_head)

    def attention_arguments(self, layer: int) -> dict[str, Any]:
        is_global = self.global_every > 0 and (layer + 1) % self.global_every == 0
        return super().attention_arguments(layer) | {
            "window": None if is_global else self.window,
            "n_sink": self.n_sink,
            "n_kv_head": self.n_kv_head,
        }


class GPTWithSWA(GPT):
    """A GPT whose tokens see the last `window` tokens."""

    config_class: ClassVar[type[GPTConfig]] = GPTWithSWAConfig
    attention_class: ClassVar[type[Any]] = SlidingWindowAttention


if __name__ == "__main__":
    from gpt_model.show_variant import show_variant

    small = GPTWithSWAConfig(
        vocab_size=256, context_length=64, n_layer=2, n_head=6, d_model=96, window=8, n_sink=1, global_every=2
    )
    show_variant(GPTWithSWA, small)
