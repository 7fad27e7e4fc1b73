"""Checks of notebook 03, grouped-query attention. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attention_mechanisms.attend import plain_attention
from utils.exercises import attempt as attempt
from utils.exercises import require_an_answer


def check_kv_head_of(answer: Callable[[int, int, int], int]) -> None:
    """`kv_head_of(h, n_head, n_kv_head)`: the head of keys and values that query head h reads."""
    require_an_answer(answer(0, 4, 2))
    cases = [(h, n, m) for n, m in ((4, 2), (12, 12), (12, 4), (12, 3), (12, 1), (8, 2)) for h in range(n)]
    given = {case: answer(*case) for case in cases}

    def all_are(formula: Callable[[int, int, int], int]) -> bool:
        return all(given[case] == formula(*case) for case in cases)

    assert not all_are(lambda h, n, m: h % m), "that deals the heads out like cards: neighbours share, so divide"
    assert not all_are(lambda h, n, m: h // m), (
        "you divide by the number of key/value heads: divide by the size of a group, n_head // n_kv_head"
    )
    assert not all_are(lambda h, n, m: h % (n // m)), "that is the place inside the group: divide, take no remainder"
    assert not all_are(lambda h, n, m: h), "that is multi-head attention: there are only n_kv_head heads to read"
    for (h, n, m), head in given.items():
        assert head == h // (n // m), f"kv_head_of({h}, {n}, {m}) is {h // (n // m)}, and you have {head}"
    print("kv_head_of: right")


def check_longest_context(answer: Callable[[int, int, int, int, int, int], int]) -> None:
    """`longest_context(memory, n_layer, n_kv_head, head_dim, bytes_per_number, batch_size)`: tokens that fit."""
    require_an_answer(answer(10**9, 12, 12, 64, 4, 1))
    for case in ((10**9, 12, 3, 64, 4, 5), (8 * 10**9, 80, 8, 128, 2, 5), (10**6, 2, 1, 16, 4, 3)):
        memory, n_layer, n_kv_head, head_dim, size, batch = case
        given = answer(*case)
        a_token = 2 * n_layer * n_kv_head * head_dim * size * batch
        right = memory // a_token
        forgotten = {
            "keys are not all: values take as much again": 2,
            "that is one layer: each layer has a cache of its own": n_layer,
            "that is one head: each key/value head has its keys": n_kv_head,
            "numbers are not bytes: divide by bytes_per_number too": size,
            "that is one text: each text of the batch has a cache of its own": batch,
        }
        for message, factor in forgotten.items():
            assert int(given) == right or int(given) != memory // (a_token // factor), message
        assert given != -(-memory // a_token) or given == right, "the last of these tokens does not fit: round down"
        assert given == int(given), f"a token is in the cache or is not: return a whole number, not {given}"
        assert given == right, f"longest_context{case} is {right:,}, and you have {given:,}"
    print("longest_context: right")


class _LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest new tensor has; a view of an older one is not new."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        older = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in older:
                self.numel = max(self.numel, x.untyped_storage().nbytes() // x.element_size())
        return result


def check_folded_attention(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """`folded_attention(q, k, v)`: q (batch, n_head, 1, d), k and v (batch, n_kv_head, keys, d); one query, no copy."""
    torch.manual_seed(0)
    for n_kv_head in (3, 1, 6, 2):
        batch, n_head, keys, d = 2, 6, 9, 8
        q = torch.randn(batch, n_head, 1, d)
        k, v = torch.randn(2, batch, n_kv_head, keys, d)
        with _LargestTensor() as seen:
            given = answer(q, k, v)
        require_an_answer(given)
        where = f"n_head={n_head}, n_kv_head={n_kv_head}"
        group = n_head // n_kv_head
        assert given.shape != (batch, n_kv_head, group, d) or group == 1, (
            f"{where}: unfold at the end: the result is (batch, n_head, 1, d), as q is"
        )
        assert given.shape == q.shape, f"{where}: the result is {tuple(q.shape)}, and you have {tuple(given.shape)}"
        right = plain_attention(q, k, v)[0]

        def is_near(value: Tensor, given: Tensor = given) -> bool:
            return torch.allclose(given, value, atol=1e-5)

        assert is_near(right) or not is_near(plain_attention(q, k, v, scale=1.0)[0]), "the scores lack their 1/√d"
        dealt = plain_attention(q, k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1))[0]
        assert is_near(right) or not is_near(dealt), (
            f"{where}: query head h has read key/value head h % n_kv_head: a group is neighbours, so fold by "
            "reshape(batch, n_kv_head, group, d) and nothing else"
        )
        scores = q.reshape(batch, n_kv_head, group, d) @ k.transpose(2, 3) * d**-0.5  # (batch, n_kv_head, group, keys)
        across = (scores.softmax(2) @ v).reshape(q.shape)  # (batch, n_head, 1, d)
        assert is_near(right) or not is_near(across), (
            f"{where}: the softmax goes over the group: each query shares its weights among the keys, the last axis"
        )
        assert is_near(right), f"{where}: farthest from right by {(given - right).abs().max().item():.3f}"
        assert group == 1 or seen.numel < batch * n_head * keys * d, (
            f"{where}: right, but a key for every query head was written to memory (repeat_interleave does it, and so "
            "does a product that broadcasts): fold the queries, and leave the keys as they are"
        )
    print("folded_attention: right")


def check_pool_heads(answer: Callable[[Tensor, int, int], Tensor]) -> None:
    """`pool_heads(weight, n_head, n_kv_head)`: (n_head · d, d_model) to (n_kv_head · d, d_model), each group's mean."""
    torch.manual_seed(0)
    for n_head, n_kv_head, d in ((6, 2, 4), (6, 3, 4), (6, 1, 2), (4, 4, 3)):
        group, d_model = n_head // n_kv_head, 5
        weight = torch.randn(n_head * d, d_model)
        before = weight.clone()
        given = answer(weight, n_head, n_kv_head)
        require_an_answer(given)
        assert torch.equal(weight, before), "the weight that was given has changed: return a new one"
        assert given.shape == (n_kv_head * d, d_model), (
            f"{n_kv_head} heads of {d} rows each are wanted, {(n_kv_head * d, d_model)}; you have {tuple(given.shape)}"
        )
        heads = weight.view(n_kv_head, group, d, d_model)  # (n_kv_head, group, d, d_model)
        right = heads.mean(1).flatten(0, 1)  # (n_kv_head · d, d_model)
        dealt = weight.view(group, n_kv_head, d, d_model).mean(0).flatten(0, 1)  # (n_kv_head · d, d_model)
        rows = weight.view(n_kv_head * d, group, d_model).mean(1)  # (n_kv_head · d, d_model)

        def is_near(value: Tensor, given: Tensor = given) -> bool:
            return torch.allclose(given, value, atol=1e-6)

        assert is_near(right) or not is_near(heads[:, 0].flatten(0, 1)), "that is the first head of each group"
        assert is_near(right) or not is_near(right * group), "that is the sum: the scores would be too large by `group`"
        assert is_near(right) or not is_near(dealt), (
            "heads h, h + n_kv_head, … were pooled: a group is neighbours, so the group is the second axis of the view"
        )
        assert is_near(right) or not is_near(rows), (
            "neighbouring rows were pooled: rows belong to one head in blocks of d, and the mean goes over heads"
        )
        assert is_near(right), f"farthest from the mean of the heads by {(given - right).abs().max().item():.3f}"
    print("pool_heads: right")


def check_regroup(answer: Callable[[Tensor, Tensor, int, int], tuple[Tensor, Tensor]]) -> None:
    """`regroup(w_q, w_o, n_head, n_kv_head)`: query heads in the order in which neighbours share."""
    n_head, n_kv_head, d = 6, 2, 3
    width = n_head * d
    w_q = torch.arange(width * width, dtype=torch.float32).view(width, width)  # (n_head · d, d_model)
    w_o = -w_q.T.contiguous()  # (d_model, n_head · d)
    given = answer(w_q.clone(), w_o.clone(), n_head, n_kv_head)
    require_an_answer(given)
    assert isinstance(given, tuple) and len(given) == 2, "return two weights: (w_q, w_o)"
    new_q, new_o = given
    assert new_q.shape == w_q.shape and new_o.shape == w_o.shape, "the shapes do not change: only the order of heads"
    order = [0, 2, 4, 1, 3, 5]  # the heads that read key/value head 0, then those that read 1
    rows = torch.tensor([head * d + i for head in order for i in range(d)])
    back = rows.argsort()
    if torch.equal(new_q, w_q[rows]):
        assert not torch.equal(new_o, w_o), "w_o still expects the heads in their old order: its columns move too"
        assert not torch.equal(new_o, w_o[rows]), "w_o's rows were moved: it reads the heads along its columns"
    assert not torch.equal(new_q, w_q), "w_q has not changed: its heads are still in the order of h % n_kv_head"
    assert not torch.equal(new_q, w_q[back]), (
        "that is the way back: the new heads 0, 1, … are the old ones that read key/value head 0, in their order"
    )
    assert torch.equal(new_q, w_q[rows]), (
        f"of {n_head} heads over {n_kv_head}, the new order is {order}, d rows each; yours begins with the rows "
        f"{(new_q[:: width // n_head, 0] / width).int().tolist()} where a head begins"
    )
    assert torch.equal(new_o, w_o[:, rows]), "w_q is right, and w_o's columns are not in the same order"
    print("regroup: right")
