"""Floor 2, chapter 2: ids in context. Attention modules and the caches that they write their keys and values to."""

from attention_mechanisms.kv_cache import KVCache, LayerCaches
from attention_mechanisms.multi_head import MultiHeadAttention

__all__ = ["KVCache", "LayerCaches", "MultiHeadAttention"]
