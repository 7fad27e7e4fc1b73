"""Floor 2, chapter 2: ids in context. Attention modules and the caches that they write their keys and values to."""

from attention_mechanisms.grouped_query import GroupedQueryAttention
from attention_mechanisms.kv_cache import (
    Cache,
    KVCache,
    LatentCache,
    LayerCaches,
    RollingCache,
    StaticKVCache,
    pad_left,
)
from attention_mechanisms.multi_head import MultiHeadAttention
from attention_mechanisms.multi_head_latent import MultiHeadLatentAttention
from attention_mechanisms.rotary import Rotary
from attention_mechanisms.sliding_window import SlidingWindowAttention

__all__ = [
    "Cache",
    "GroupedQueryAttention",
    "KVCache",
    "LatentCache",
    "LayerCaches",
    "MultiHeadAttention",
    "MultiHeadLatentAttention",
    "RollingCache",
    "Rotary",
    "SlidingWindowAttention",
    "StaticKVCache",
    "pad_left",
]
