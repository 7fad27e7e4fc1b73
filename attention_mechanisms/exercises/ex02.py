"""Checks of notebook 02, the KV cache. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from utils.exercises import attempt as attempt
from utils.exercises import require_an_answer


def check_cache_bytes(answer: Callable[[int, int, int, int, int, int], int]) -> None:
    """`cache_bytes(batch_size, tokens, n_layer, n_kv_head, head_dim, bytes_per_number)`: of keys and values, in all."""
    require_an_answer(answer(1, 1, 1, 1, 1, 1))
    names = ("batch_size", "tokens", "n_layer", "n_kv_head", "head_dim", "bytes_per_number")
    for case in [(3, 17, 5, 6, 7, 4), (1, 1024, 12, 12, 64, 2)]:
        given = answer(*case)
        batch_size, tokens, n_layer, n_kv_head, head_dim, bytes_per_number = case
        right = 2 * batch_size * tokens * n_layer * n_kv_head * head_dim * bytes_per_number
        assert given * 2 != right, "half of it: a token has a key and a value"
        assert given != right * 8, "8 times too much: a byte is asked for, not a bit"
        assert given != right * n_kv_head, "the heads are counted twice: head_dim is the width of one head"
        for name, factor in zip(names, case, strict=True):
            assert factor == 1 or given * factor != right, f"{name} is missing from the product"
        assert given == right, f"cache_bytes{case} is {right:,}, and you have {given:,}"
    print("cache_bytes: right")


def check_tokens_read(answer: Callable[[int, int], tuple[int, int]]) -> None:
    """`tokens_read(prompt, n_new)`: tokens that go through the layers, (without a cache, with one)."""
    require_an_answer(answer(5, 3))
    for prompt, n_new in [(5, 3), (1, 10), (40, 1), (7, 20)]:
        given = answer(prompt, n_new)
        assert isinstance(given, tuple) and len(given) == 2, "return two numbers: (without a cache, with one)"
        without, with_cache = given
        right = sum(range(prompt, prompt + n_new)), prompt + n_new - 1
        where = f"prompt={prompt}, n_new={n_new}"
        assert n_new == 1 or (without, with_cache) != right[::-1], "the two are swapped: (without a cache, with one)"
        assert without != sum(range(prompt + 1, prompt + n_new + 1)), (
            f"{where}: without a cache you read the token that a pass is about to write: the first pass reads the "
            "prompt alone"
        )
        assert without == right[0] or without != prompt * n_new, (
            f"{where}: without a cache each pass reads one token more than the one before, not the prompt alone"
        )
        assert without == right[0] or without != sum(range(1, prompt + n_new)), (
            f"{where}: without a cache the prompt is read in one pass, not token by token"
        )
        assert without == right[0], f"{where}: without a cache {right[0]}, and you have {without}"
        assert with_cache != prompt + n_new, f"{where}: with a cache the last token is written and never read: one less"
        assert with_cache == right[1] or with_cache not in (n_new, n_new - 1), (
            f"{where}: with a cache the prompt is read too, once"
        )
        assert with_cache == right[1], f"{where}: with a cache {right[1]}, and you have {with_cache}"
    print("tokens_read: right")


def check_chunk_mask(answer: Callable[[int, int], Tensor]) -> None:
    """`chunk_mask(n_cached, n_new)`: bool (n_new, n_cached + n_new), True where a new token may look."""
    require_an_answer(answer(5, 3))
    for n_cached, n_new in [(5, 3), (0, 4), (6, 1), (2, 5)]:
        given, keys = answer(n_cached, n_new), n_cached + n_new
        right = torch.ones(n_new, keys, dtype=torch.bool).tril(diagonal=n_cached)
        where = f"n_cached={n_cached}, n_new={n_new}"
        assert isinstance(given, Tensor), f"a tensor is wanted, not {type(given).__name__}"
        assert given.shape == (n_new, keys), (
            f"{where}: a row a new token and a column a key, old ones too: ({n_new}, {keys}), and you have "
            f"{tuple(given.shape)}"
        )
        assert given.dtype == torch.bool, f"a mask of dtype torch.bool is wanted, not {given.dtype}"
        assert not torch.equal(given, ~right), f"{where}: the other way round: True is where a token MAY look"
        assert n_cached == 0 or not torch.equal(given, right.new_ones(n_new, keys).tril()), (
            f"{where}: that is the top left corner, as is_causal=True has it: new token 0 stands at place {n_cached}"
        )
        assert n_new == 1 or not given.all(), f"{where}: new tokens see each other's future: token 0 sees token 1"
        assert not torch.equal(given, right.new_ones(n_new, keys).tril(diagonal=n_cached - 1)), (
            f"{where}: a token sees itself, too: <= and not <"
        )
        assert n_cached == 0 or given[:, :n_cached].all(), f"{where}: every new token sees all tokens in the cache"
        assert torch.equal(given, right), f"{where}: expected\n{right.int()}\nand you have\n{given.int()}"
    print("chunk_mask: right")


def check_append(answer: Callable[[Tensor, int, Tensor], Tensor]) -> None:
    """`append(buffer, length, new)`: writes `new` behind `length` tokens, returns a view of all that are kept."""
    require_an_answer(answer(torch.zeros(1, 1, 3, 1), 0, torch.ones(1, 1, 1, 1)))
    for length, n in [(0, 3), (3, 2), (5, 1), (2, 4)]:
        buffer = torch.full((2, 3, 6, 4), -1.0)
        buffer[:, :, :length] = torch.arange(length).view(1, 1, -1, 1)
        new = torch.arange(100, 100 + n).float().view(1, 1, -1, 1).expand(2, 3, n, 4)
        right = torch.cat([buffer[:, :, :length], new], dim=2)
        given = answer(buffer, length, new)
        where = f"{length} tokens kept, {n} new"
        assert given.shape != new.shape or length == 0, f"{where}: return the old tokens too, not the new ones alone"
        assert given.shape != buffer.shape or length + n == 6, (
            f"{where}: you return the whole buffer: cut it at length + n, or empty slots are attended to"
        )
        assert given.shape == right.shape, f"{where}: expected {tuple(right.shape)}, and you have {tuple(given.shape)}"
        assert length == 0 or torch.equal(given[:, :, :length], right[:, :, :length]), (
            f"{where}: old tokens are overwritten: the new ones begin at slot `length`"
        )
        assert torch.equal(given, right), f"{where}: the new tokens are not behind the old ones, in their order"
        assert torch.equal(buffer[:, :, : length + n], right), (
            f"{where}: the buffer has not got the new tokens: write into it, torch.cat makes another tensor"
        )
        assert given.data_ptr() == buffer.data_ptr(), f"{where}: you return a copy: a slice of the buffer is a view"
    buffer = torch.zeros(1, 1, 6, 1)
    try:
        answer(buffer, 5, torch.ones(1, 1, 2, 1))
    except ValueError:
        assert not buffer.any(), "they do not fit, and something was written all the same: check before you write"
    except Exception as error:
        raise AssertionError(f"2 tokens behind 5 in 6 slots: raise ValueError, not {type(error).__name__}") from error
    else:
        raise AssertionError("2 tokens do not fit behind 5 in 6 slots: raise ValueError, do not drop any")
    print("append: right")


def check_keep(answer: Callable[[Sequence[int], Sequence[int]], int]) -> None:
    """`keep(old, new)`: to what length a cache of the ids `old` is truncated before `new` is read."""
    require_an_answer(answer([1, 2], [1, 2, 3]))
    cases = {
        "the same ids in another order": ([1, 2, 3, 7], [2, 1, 3, 4], 0),
        "one message more": ([1, 2, 3], [1, 2, 3, 4, 5], 3),
        "the last token changed": ([1, 2, 3], [1, 2, 4], 2),
        "a token in the middle changed": ([1, 2, 3, 4, 5], [1, 2, 9, 4, 5, 6], 2),
        "nothing in common": ([1, 2], [3, 4], 0),
        "an empty cache": ([], [3, 4], 0),
        "the same text": ([1, 2, 3], [1, 2, 3], 2),
        "a shorter text": ([1, 2, 3, 4], [1, 2], 1),
    }
    for what, (old, new, right) in cases.items():
        given = answer(list(old), list(new))
        where = f"{what}, {old} then {new}"
        assert not isinstance(given, list | tuple), f"{where}: a length is wanted, not the ids"
        equal_places = sum(a == b for a, b in zip(old, new, strict=False))
        assert given == right or given != len(new) or new != old[: len(new)], (
            f"{where}: all of it kept leaves nothing to read, and without reading there are no logits: one token less"
        )
        assert given == right or given != equal_places, (
            f"{where}: behind a difference nothing may be kept, even where ids are equal: those keys have seen it"
        )
        assert given == right or given != len(set(old) & set(new)), (
            f"{where}: ids that occur in both are not enough: they must be equal place by place from the beginning"
        )
        assert given == right or given != len(old), f"{where}: not everything in the cache is a beginning of the new"
        assert given >= right, f"{where}: more could be kept: {right}, and you keep {given}"
        assert given == right, f"{where}: keep {right}, and you keep {given}"
    print("keep: right")
