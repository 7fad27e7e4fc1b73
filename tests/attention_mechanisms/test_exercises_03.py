"""The checks of notebook 03 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attention_mechanisms.exercises import ex03
from tests.conftest import refuses


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda h, n, m: h % m, "deals the heads out like cards"),
        (lambda h, n, m: h // m, "you divide by the number of key/value heads"),
        (lambda h, n, m: h % (n // m), "the place inside the group"),
        (lambda h, n, m: h, "that is multi-head attention"),
        (lambda h, n, m: 0, r"kv_head_of\(2, 4, 2\) is 1, and you have 0"),
    ],
)
def test_kv_head_of(wrong, message, capsys):
    ex03.check_kv_head_of(lambda h, n, m: h * m // n)
    assert capsys.readouterr().out == "kv_head_of: right\n"
    refuses(ex03.check_kv_head_of, wrong, message)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda m, layers, k, d, size, b: m // (layers * k * d * size * b), "values take as much again"),
        (lambda m, layers, k, d, size, b: m // (2 * k * d * size * b), "each layer has a cache"),
        (lambda m, layers, k, d, size, b: m // (2 * layers * d * size * b), "each key/value head has its keys"),
        (lambda m, layers, k, d, size, b: m // (2 * layers * k * d * b), "numbers are not bytes"),
        (lambda m, layers, k, d, size, b: m // (2 * layers * k * d * size), "each text of the batch"),
        (lambda m, layers, k, d, size, b: -(-m // (2 * layers * k * d * size * b)), "round down"),
        (lambda m, layers, k, d, size, b: m / (2 * layers * k * d * size * b), "return a whole number"),
        (lambda m, layers, k, d, size, b: m // (4 * layers * k * d * size * b), r"longest_context\(.*\) is"),
    ],
)
def test_longest_context(wrong, message):
    ex03.check_longest_context(lambda m, layers, k, d, size, b: m // (2 * layers * k * d * size * b))
    refuses(ex03.check_longest_context, wrong, message)


def folded(q, k, v, scaled=True, axis=-1, unfold=True, dealt=False):
    batch, n_kv_head, d = q.shape[0], k.shape[1], q.shape[3]
    if dealt:
        rows = q.reshape(batch, -1, n_kv_head, d).transpose(1, 2)  # (batch, n_kv_head, group, d)
    else:
        rows = q.reshape(batch, n_kv_head, -1, d)  # (batch, n_kv_head, group, d)
    scores = rows @ k.transpose(2, 3) * (d**-0.5 if scaled else 1)  # (batch, n_kv_head, group, keys)
    y = scores.softmax(axis) @ v  # (batch, n_kv_head, group, d)
    if dealt:
        y = y.transpose(1, 2)  # (batch, group, n_kv_head, d)
    return y.reshape(q.shape) if unfold else y


def repeated(q, k, v):
    group = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))


def broadcast(q, k, v):
    batch, n_kv_head, _, d = k.shape
    rows = q.reshape(batch, n_kv_head, -1, 1, d)  # (batch, n_kv_head, group, 1, d)
    scores = rows @ k[:, :, None].transpose(3, 4) * d**-0.5  # (batch, n_kv_head, group, 1, keys)
    return (scores.softmax(-1) @ v[:, :, None]).reshape(q.shape)  # (batch, n_head, 1, d)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda q, k, v: folded(q, k, v, scaled=False), "lack their 1/√d"),
        (lambda q, k, v: folded(q, k, v, dealt=True), "has read key/value head h % n_kv_head"),
        (lambda q, k, v: folded(q, k, v, axis=2), "the softmax goes over the group"),
        (lambda q, k, v: folded(q, k, v, unfold=False), "unfold at the end"),
        (lambda q, k, v: folded(q, k, v)[:, :1], r"the result is \(2, 6, 1, 8\)"),
        (lambda q, k, v: folded(q, k, v) * 2, "farthest from right by"),
        (repeated, "was written to memory"),
        (broadcast, "was written to memory"),
    ],
)
def test_folded_attention(wrong, message):
    ex03.check_folded_attention(folded)
    refuses(ex03.check_folded_attention, wrong, message)


def pooled(weight, n_head, n_kv_head):
    return weight.view(n_kv_head, n_head // n_kv_head, -1, weight.shape[1]).mean(1).flatten(0, 1)


def pooled_in_place(weight, n_head, n_kv_head):
    result = pooled(weight, n_head, n_kv_head)
    weight[: len(result)] = result
    return weight[: len(result)].clone()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda w, n, m: w.view(m, n // m, -1, w.shape[1])[:, 0].flatten(0, 1), "the first head of each group"),
        (lambda w, n, m: pooled(w, n, m) * (n // m), "that is the sum"),
        (lambda w, n, m: w.view(n // m, m, -1, w.shape[1]).mean(0).flatten(0, 1), "a group is neighbours"),
        (lambda w, n, m: w.view(-1, n // m, w.shape[1]).mean(1), "neighbouring rows were pooled"),
        (lambda w, n, m: w.view(m, n // m, -1, w.shape[1]).mean(1), "heads of 4 rows each are wanted"),
        (lambda w, n, m: w[: len(w) * m // n] * 0.5, "farthest from the mean of the heads"),
        (pooled_in_place, "has changed"),
    ],
)
def test_pool_heads(wrong, message):
    ex03.check_pool_heads(pooled)
    refuses(ex03.check_pool_heads, wrong, message)


def regrouped(w_q, w_o, n_head, n_kv_head, back=False, move_o="columns"):
    d = len(w_q) // n_head
    rows = torch.arange(n_head * d).view(-1, n_kv_head, d).transpose(0, 1).flatten()  # (n_head · d,)
    rows = rows.argsort() if back else rows
    return w_q[rows], {"columns": w_o[:, rows], "rows": w_o[rows], "none": w_o, "flipped": w_o[:, rows.flip(0)]}[move_o]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda w_q, w_o, n, m: regrouped(w_q, w_o, n, m, move_o="none"), "w_o still expects"),
        (lambda w_q, w_o, n, m: regrouped(w_q, w_o, n, m, move_o="rows"), "w_o's rows were moved"),
        (lambda w_q, w_o, n, m: regrouped(w_q, w_o, n, m, move_o="flipped"), "w_o's columns are not in the same order"),
        (lambda w_q, w_o, n, m: regrouped(w_q, w_o, n, m, back=True), "that is the way back"),
        (lambda w_q, w_o, n, m: (w_q, regrouped(w_q, w_o, n, m)[1]), "w_q has not changed"),
        (lambda w_q, w_o, n, m: (w_q.flip(0), w_o.flip(1)), "the new order is"),
        (lambda w_q, w_o, n, m: (w_q[: len(w_q) // 2], w_o), "the shapes do not change"),
        (lambda w_q, w_o, n, m: regrouped(w_q, w_o, n, m)[0], "return two weights"),
    ],
)
def test_regroup(wrong, message):
    ex03.check_regroup(regrouped)
    refuses(ex03.check_regroup, wrong, message)


def test_regrouped_weights_give_what_the_other_grouping_gave():
    torch.manual_seed(0)
    n_head, n_kv_head, d, tokens = 6, 2, 4, 5
    x = torch.randn(1, tokens, n_head * d)
    w_q, w_o = torch.randn(2, n_head * d, n_head * d)
    k, v = torch.randn(2, 1, n_kv_head, tokens, d)

    def attention(w_q, w_o, k, v):
        q = (x @ w_q.T).unflatten(2, (n_head, d)).transpose(1, 2)  # (1, n_head, tokens, d)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2) @ w_o.T  # (1, tokens, d_model)

    group = n_head // n_kv_head
    dealt = attention(w_q, w_o, k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1))
    new_q, new_o = regrouped(w_q, w_o, n_head, n_kv_head)
    neighbours = attention(new_q, new_o, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))
    torch.testing.assert_close(neighbours, dealt, rtol=1e-4, atol=1e-4)
