"""The step that is taken for every token, made fast.

One token a text goes through the model, and for each weight that is read from memory there is one multiplication to
do. So a step lasts as long as reading the weights and the cache takes, and what else is done in between. Nothing is
allocated for the cache (`attention_mechanisms/kv_cache.py`); what remains is overhead: in GPT-2 more than three
hundred small operations, each asked for by Python, each with a kernel of its own.

`torch.compile` fuses them. What stands in its way is that a text grows: a graph with the text's length in it would be
compiled again at each step.

    on the CPU    the length is a symbol in the graph, and the products with the weights stay operators of their own
                  (`weight_only.py`): compiled as part of the graph they were many times slower
    on CUDA       the length is a number in memory, in a `StaticKVCache`, and no shape ever changes: the whole step is
                  recorded once as a CUDA graph and then replayed, one launch a step in place of hundreds
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attention_mechanisms import KVCache, LayerCaches, StaticKVCache

if TYPE_CHECKING:
    from gpt_model.gpt import GPT

Step = Callable[["GPT", Tensor, LayerCaches], Tensor]


def next_logits(model: GPT, ids: Tensor, cache: LayerCaches) -> Tensor:
    """`GPT.next_logits`, as a function that can be compiled: ids (batch, tokens) to (batch, vocab_size)."""
    return model.next_logits(ids, cache)


def next_logits_statically(model: GPT, ids: Tensor, cache: LayerCaches) -> Tensor:
    """The same with static caches: no number of it is known to Python, so none of them is checked."""
    positions = cache.positions(ids.shape[1], ids.device)
    return model.logits_of(model.transformer(ids, positions, cache)[:, -1])


def decoding_step(device: torch.device, compiled: bool) -> Step:
    """What takes a step on `device`, with the cache that `decoding_cache` gives."""
    if not compiled:
        return next_logits
    return _compiled(next_logits_statically) if device.type == "cuda" else _compiled(next_logits)


@lru_cache
def _compiled(step: Step) -> Step:
    """Compiled once a process; torch keeps a graph for each model and batch size."""
    static = step is next_logits_statically
    # Other shapes are compiled anew, and after several of them torch goes on without compiling.
    graph: Step = torch.compile(step, mode="reduce-overhead" if static else "default")
    return graph


def decoding_length(context: int, needed: int, compiled: bool) -> int:
    """Tokens that a cache has room for: the whole context when compiled, so that no text needs a graph of its own."""
    return context if compiled else min(context, needed)


def decoding_cache(cache: LayerCaches, compiled: bool) -> LayerCaches:
    """The cache for decoding after a prefill, with the same buffers: static on CUDA when compiled.

    Raises:
        ValueError: its layers keep something else than keys and values.
    """
    first = cache.layers[0]
    if not compiled or not first.buffers[0].is_cuda:
        return cache
    return static_caches(cache)


def static_caches(cache: LayerCaches) -> LayerCaches:
    """`StaticKVCache`s over the buffers of a cache, which is not to be used after that.

    Raises:
        ValueError: its layers keep something else than keys and values.
    """
    layers = []
    for layer in cache.layers:
        if type(layer) is not KVCache:
            raise ValueError(
                f"a compiled step on CUDA needs a cache of keys and values, not a {type(layer).__name__}: decode "
                "without compiling"
            )
        layers.append(StaticKVCache(layer))
    return LayerCaches(layers, cache.padding)
