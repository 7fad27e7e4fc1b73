# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Grouped-query attention
#
# **Of the cache, what can we give up?**
#
# Notebook 02 kept the keys and values of every token in every head. That made writing fast, and it made memory the
# limit: the cache grows with the text, and each new token reads all of it. So something has to go. Tokens could go, or
# numbers, or heads. Here it is heads. In 2019 Noam Shazeer kept a single head of keys and values for all queries
# (*multi-query attention*). In 2023 Ainslie and others took the middle way: a few heads, each shared by a group of
# queries (*grouped-query attention*). You will share two heads among four by hand, see how that goes wrong without a
# word, and measure what it saves and what it costs.
#
# | | |
# |---|---|
# | you know | attention with many heads (notebook 01), the cache (notebook 02), matrix products |
# | you need | about 75 minutes, exercises apart; any laptop: no GPU, no network, about a gigabyte of memory |
# | files | `grouped_query.py` and `attend.py` of this folder |
#
# The letters that come back again and again:
#
# | letter | meaning | in the code |
# |---|---|---|
# | H | heads of queries | `n_head` |
# | K | heads of keys and values | `n_kv_head` |
# | G | query heads that share one of them, H / K | `group` |
# | d | numbers in one head's query, key or value | `head_dim` |
# | D | width of a token's vector, H · d | `d_model` |
# | T | tokens, and so keys | `tokens`, `keys` |
# | B | texts side by side | `batch` |

# %% [markdown]
# First what we need. All of it is on your machine already.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

from attention_mechanisms import GroupedQueryAttention, MultiHeadAttention
from attention_mechanisms.attend import fast_attention, plain_attention

# %% [markdown]
# ## 1. Four heads ask, two answer
#
# A text of three tokens. The last one asks. It has H = 4 queries, one a head, and there are K = 2 heads of keys and
# values. All numbers are whole, and d = 2.

# %%
queries = [[1, 0], [0, 1], [1, 0], [0, 1]]  # (H, d)
keys = [[[1, 0], [0, 1], [1, 1]], [[2, 0], [0, 1], [0, 0]]]  # (K, T, d)
values = [[[5, 0], [0, 5], [5, 5]], [[12, 0], [0, 12], [12, 12]]]  # (K, T, d)

# %% [markdown]
# Who asks whom? Neighbours share. With G = H / K = 2, the query heads 0 and 1 read key/value head 0, and the heads 2
# and 3 read head 1:
#
# $$\text{query head } h \text{ reads key/value head } \lfloor h / G \rfloor$$
#
# A softmax takes powers of *e*. To stay with whole numbers we take powers of 2: a score s weighs 2ˢ. Then head 0 scores
# its three keys with 1, 0, 1, which weigh 2, 1, 2, and its answer is the mean of the values with these weights.


# %%
def answer_by_hand(query, its_keys, its_values):
    powers = [2 ** sum(a * b for a, b in zip(query, key)) for key in its_keys]
    return [sum(p * value[i] for p, value in zip(powers, its_values)) / sum(powers) for i in range(2)]


print("head 0 reads head 0:", answer_by_hand(queries[0], keys[0], values[0]))

# %% [markdown]
# On paper: (2 · 5 + 1 · 0 + 2 · 5) / 5 = 4, and (2 · 0 + 1 · 5 + 2 · 5) / 5 = 3.
#
# **Predict before you run.** Query head 2 is `[1, 0]`, as head 0 is. Which keys does it read, how much do they weigh,
# and what does it answer?

# %%
G = 2
by_hand = [answer_by_hand(queries[h], keys[h // G], values[h // G]) for h in range(4)]
for h, answer in enumerate(by_hand):
    print(f"query head {h} reads head {h // G}: {answer}")

# %% [markdown]
# The same question, another head of keys: scores 2, 0, 0, weights 4, 1, 1, so (48 + 0 + 12) / 6 = 10 and 24 / 6 = 4.
# Heads of one group read the same keys and still differ, because their questions do.
#
# The project's formula takes grouped heads as they are. 2ˢ is e to the power of s · ln 2, so its `scale` is ln 2 here.

# %%
q = torch.tensor(queries, dtype=torch.float)[None, :, None]  # (1, H, 1, d)
k, v = (torch.tensor(part, dtype=torch.float)[None] for part in (keys, values))  # (1, K, T, d) each
y, weights = plain_attention(q, k, v, scale=math.log(2))  # (1, H, 1, d), (1, H, 1, T)
torch.testing.assert_close(y[0, :, 0], torch.tensor(by_hand))
torch.testing.assert_close(fast_attention(q, k, v, scale=math.log(2)), y)
print("plain_attention = fast_attention = by hand:", y[0, :, 0].round().int().tolist())

# %% [markdown]
# Who reads whom is not a matter of names. It can be measured: move a value a little and see whose answer moves. That is
# a gradient. Each row of the matrix below says how a query head's answer hangs on the key/value heads.


# %%
def who_reads(attend, H, K, keys=5, d=4):
    q, k, v = torch.randn(1, H, 1, d), torch.randn(1, K, keys, d), torch.randn(1, K, keys, d, requires_grad=True)
    y = attend(q, k, v)  # (1, H, 1, d)
    rows = [torch.autograd.grad(y[0, h].sum(), v, retain_graph=True)[0].sum((0, 2, 3)) / d for h in range(H)]
    return torch.stack(rows)  # (H, K)


torch.manual_seed(0)
print(who_reads(fast_attention, 4, 2).round().int())

# %% [markdown]
# The rows are heads of queries, and a 1 marks what they read. Twelve heads, from one memory each to one for all, drawn
# from the gradients of `fast_attention`:


# %%
def draw_reads(axes, reads, title):
    axes.imshow(reads.numpy(), cmap="Greys", vmin=0, vmax=1, aspect="auto")
    axes.hlines(np.arange(len(reads)) - 0.5, -0.5, reads.shape[1] - 0.5, color="0.6", linewidth=0.5)
    axes.set_xticks(range(0, reads.shape[1], 1 if reads.shape[1] < 6 else 2))
    axes.set(title=title, xlabel="key/value head (number)")


figure, panels = plt.subplots(1, 3, figsize=(8, 3), sharey=True, layout="constrained")
for axes, K, title in zip(panels, (12, 4, 1), ("K = 12: multi-head", "K = 4: grouped-query", "K = 1: multi-query")):
    draw_reads(axes, who_reads(fast_attention, 12, K), title)
panels[0].set_ylabel("query head (number)")
plt.show()

# %% [markdown]
# ## 2. Why heads of keys and values, and not of queries?
#
# Because queries are not in the cache. A query is asked once, when its token is new. Keys and values are asked by every
# token that comes after. So fewer queries save nothing that stays, and fewer keys and values save memory for the whole
# text. Two layers of GPT-2's smallest size (D = 768, H = 12), each with an empty cache for 1,000 tokens:

# %%
multi_head = MultiHeadAttention(d_model=768, n_head=12)
grouped = GroupedQueryAttention(d_model=768, n_head=12, n_kv_head=3)
for layer in (multi_head, grouped):
    cache = layer.make_cache(batch_size=1, max_length=1000)
    print(f"{type(layer).__name__:22} keys {tuple(cache.keys.shape)}, cache {cache.nbytes:,} bytes")

# %% [markdown]
# A quarter. Do chunks through this cache still equal one pass, as notebook 02 asked of every cache? Any cut will do:

# %%
torch.manual_seed(0)
x = torch.randn(2, 9, 768)  # (B, T, D)
for cuts in ([9], [1] * 9, [4, 1, 3, 1], [7, 2]):
    cache = grouped.make_cache(2, 9)
    parts = [grouped(part, cache) for part in x.split(cuts, dim=1)]  # (B, cut, D) each
    torch.testing.assert_close(torch.cat(parts, dim=1), grouped(x), rtol=1e-4, atol=1e-5)
print("four ways to cut nine tokens give one answer")

# %% [markdown]
# ## 3. The layer, from its raw weights
#
# One matrix makes queries, keys and values. Its rows lie in this order: H heads of queries, K of keys, K of values. So
# here is the whole layer on raw tensors. Nothing in it is new but the number of key and value rows, and the line that
# gives each query head its copy.


# %%
def layer_by_hand(x, layer, H, K, d):
    W_q, W_k, W_v = layer.c_attn.weight.split([H * d, K * d, K * d])
    b_q, b_k, b_v = layer.c_attn.bias.split([H * d, K * d, K * d])
    q = (x @ W_q.T + b_q).unflatten(2, (H, d)).transpose(1, 2)  # (B, T, D) @ (D, H d) -> (B, H, T, d)
    k = (x @ W_k.T + b_k).unflatten(2, (K, d)).transpose(1, 2)  # (B, T, D) @ (D, K d) -> (B, K, T, d)
    v = (x @ W_v.T + b_v).unflatten(2, (K, d)).transpose(1, 2)  # (B, T, D) @ (D, K d) -> (B, K, T, d)
    k, v = k.repeat_interleave(H // K, dim=1), v.repeat_interleave(H // K, dim=1)  # (B, H, T, d): a copy a query head
    scores = q @ k.transpose(2, 3) / d**0.5  # (B, H, T, d) @ (B, H, d, T) -> (B, H, T, T)
    scores = scores.masked_fill(torch.ones(scores.shape[2:]).triu(1).bool(), -torch.inf)
    y = scores.softmax(dim=-1) @ v  # (B, H, T, T) @ (B, H, T, d) -> (B, H, T, d)
    return y.transpose(1, 2).flatten(2) @ layer.c_proj.weight.T + layer.c_proj.bias  # (B, T, D)


torch.testing.assert_close(layer_by_hand(x, grouped, 12, 3, 64), grouped(x), rtol=1e-4, atol=1e-5)
print("by hand = GroupedQueryAttention")

# %% [markdown]
# ### One end: as many as queries
#
# With K = H each query head has its own keys again. That must be multi-head attention, to the last bit, with the same
# weights under the same names.

# %%
same = GroupedQueryAttention(d_model=768, n_head=12, n_kv_head=12)
same.load_state_dict(multi_head.state_dict())
print("K = H: equal to MultiHeadAttention to the last bit:", torch.equal(same(x), multi_head(x)))

# %% [markdown]
# ### The other end: one for all
#
# With K = 1 it is Shazeer's multi-query attention. He writes it without a head axis in keys and values. So do we, with
# `einsum`, and compare. (b text, h head, t query, s key, d number in a head.)

# %%
one = GroupedQueryAttention(d_model=768, n_head=12, n_kv_head=1)
q, k, v = one.project(x)  # (B, H, T, d), (B, 1, T, d), (B, 1, T, d)
scores = torch.einsum("bhtd,bsd->bhts", q, k[:, 0]) / 8  # (B, H, T, T); √64 = 8
weights = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf).softmax(dim=-1)  # (B, H, T, T)
y = torch.einsum("bhts,bsd->bhtd", weights, v[:, 0])  # (B, H, T, d)
torch.testing.assert_close(one.merge(y), one(x), rtol=1e-4, atol=1e-5)
print("K = 1: equal to multi-query attention, keys of shape", tuple(k[:, 0].shape))

# %% [markdown]
# ### A witness from outside
#
# Llama's attention, as `transformers` has it, is grouped-query attention with rotary positions and without biases. It
# is the code that reads published weights, so its grouping is the one that counts. A small one, with random weights:

# %%
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
config._attn_implementation = "eager"
torch.manual_seed(0)
theirs = LlamaAttention(config, 0)

# %% [markdown]
# It has three matrices where ours has one. We lay them under each other, in the order of section 3.

# %%
from attention_mechanisms import Rotary

ours = GroupedQueryAttention(32, n_head=4, n_kv_head=2, bias=False, rotary=Rotary(dim=8, max_length=64))
with torch.no_grad():
    rows = [theirs.q_proj.weight, theirs.k_proj.weight, theirs.v_proj.weight]  # (32, 32), (16, 32), (16, 32)
    ours.c_attn.weight.copy_(torch.cat(rows))  # (64, 32)
    ours.c_proj.weight.copy_(theirs.o_proj.weight)

# %% [markdown]
# Eleven tokens through both. `hidden` is what their scores have added where the future lies.

# %%
some = torch.randn(2, 11, 32)  # (B, T, D)
angles = LlamaRotaryEmbedding(config)(some, torch.arange(11)[None])
hidden = torch.full((11, 11), -torch.inf).triu(1)[None, None]  # (1, 1, T, T)
expected, _ = theirs(some, angles, hidden)
torch.testing.assert_close(ours(some), expected, rtol=1e-4, atol=1e-5)
print("GroupedQueryAttention = transformers' LlamaAttention, within 0.00001")

# %% [markdown]
# ## 4. A bug without a symptom
#
# The copy in section 3 was `repeat_interleave`: 0 0 1 1. PyTorch has another one with a shorter name, `repeat`:
# 0 1 0 1. Somebody writes an attention of their own with it, and loads the weights of ours.


# %%
def forward_with_repeat(layer, x):
    q, k, v = layer.project(x)  # (B, H, T, d), (B, K, T, d), (B, K, T, d)
    G = layer.n_head // layer.n_kv_head
    k, v = k.repeat(1, G, 1, 1), v.repeat(1, G, 1, 1)  # (B, H, T, d)
    return layer.merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))  # (B, T, D)


wrong, right = forward_with_repeat(grouped, x), grouped(x)
print("shape", tuple(wrong.shape), "as it should be; NaN among its numbers:", wrong.isnan().any().item())
print(f"size of a number: {wrong.std():.1f}, as it should be {right.std():.1f}")

# %% [markdown]
# All weights loaded, each shape fits, the numbers have the right size. *Seen* it is only when the right answer lies
# beside it:

# %%
distance = (wrong - right).pow(2).mean().sqrt() / right.pow(2).mean().sqrt()
print(f"distance from the right answer, in its own size: {distance:.1f}")
print("heads that read what they should:", [h for h in range(12) if h // 4 == h % 3])

# %% [markdown]
# Why 1.0? Two answers of equal size that have nothing to do with one another are √2 apart. Six of the twelve heads read
# by chance what they should, so half of the squares are gone: √(2 / 2) = 1. Half of the layer is right and half is
# noise, which is harder to notice than an error. Would a test have caught it?
#
# **Predict before you run.** Somebody tests the new attention against ours with random weights, but for one K only. For
# which K of 1, 2, 3, 4, 6, 12 does the test pass?

# %%
for K in (1, 2, 3, 4, 6, 12):
    layer = GroupedQueryAttention(48, n_head=12, n_kv_head=K)
    small = torch.randn(1, 5, 48)  # (B, T, D)
    passes = torch.allclose(forward_with_repeat(layer, small), layer(small), atol=1e-5)
    print(f"K = {K:2}: the test {'passes' if passes else 'fails'}")

# %% [markdown]
# At both ends: with one head there is nothing to choose, with twelve nothing to share. These are the two cases that one
# would test first. So test in the middle, with 1 < K < H.
#
# *Diagnosed.* Ask the gradient who reads whom.


# %%
def attend_with_repeat(q, k, v):
    G = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(q, k.repeat(1, G, 1, 1), v.repeat(1, G, 1, 1))  # (B, H, 1, d)


figure, panels = plt.subplots(1, 2, figsize=(6, 3), sharey=True, layout="constrained")
draw_reads(panels[0], who_reads(fast_attention, 12, 3), "ours: h // G")
draw_reads(panels[1], who_reads(attend_with_repeat, 12, 3), "theirs: h % K")
panels[0].set_ylabel("query head (number)")
plt.show()

# %% [markdown]
# Blocks on the left, stripes on the right. `repeat` deals the heads out like cards: query head h reads head h % K. The
# toy shows what that does. Head 0 and head 3 are dealt what they had before. Heads 1 and 2 have changed places at the
# table:

# %%
dealt = [answer_by_hand(queries[h], keys[h % 2], values[h % 2]) for h in range(4)]
for h in range(4):
    print(f"query head {h}: {by_hand[h]} should be; dealt like cards {dealt[h]}")

# %% [markdown]
# A layer that is *trained* with stripes is as good as one with blocks: the names of heads mean nothing. The error is to
# train with one and to run with the other. *Mended*, either in the code:


# %%
def forward_mended(layer, x):
    q, k, v = layer.project(x)  # (B, H, T, d), (B, K, T, d), (B, K, T, d)
    G = layer.n_head // layer.n_kv_head
    k, v = k.repeat_interleave(G, dim=1), v.repeat_interleave(G, dim=1)  # (B, H, T, d)
    return layer.merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))  # (B, T, D)


torch.testing.assert_close(forward_mended(grouped, x), grouped(x), rtol=1e-4, atol=1e-5)
print("mended")

# %% [markdown]
# or in the weights, where they come from a striped model and the code is not to change: put the query heads into
# another order. That is exercise E.
#
# ## 5. Three ways to share: copy, tell, fold
#
# Now the speed. One token is new, and its queries meet a long cache. Three ways to the same answer. The naive one makes
# the copies, so that old code for multi-head attention works on:


# %%
def attend_by_copy(q, k, v):
    G = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(G, dim=1), v.repeat_interleave(G, dim=1)  # (B, H, T, d)
    return F.scaled_dot_product_attention(q, k, v)  # (B, H, 1, d)


# %% [markdown]
# The second tells PyTorch that the heads are grouped, and leaves the rest to it:


# %%
def attend_by_flag(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)  # (B, H, 1, d)


# %% [markdown]
# The third changes the question. G query heads with one query each ask the same keys. To these keys it is all the same
# whether four heads ask once, or one head asks four times. So we fold the heads of a group into rows:
#
# $$(B,\ H,\ 1,\ d) \;\to\; (B,\ K,\ G,\ d)$$
#
# Neighbours share, so this is a plain `reshape`, and no number moves.


# %%
def attend_by_folding(q, k, v):
    B, H, _, d = q.shape
    folded = q.reshape(B, k.shape[1], H // k.shape[1], d)  # (B, K, G, d)
    return F.scaled_dot_product_attention(folded, k, v).reshape(B, H, 1, d)  # (B, K, G, d) -> (B, H, 1, d)


# %% [markdown]
# Equality first, for every K, held to the plain formula and to the module's `fast_attention`:

# %%
torch.manual_seed(0)
for K in (1, 2, 3, 4, 6, 12):
    q, k, v = torch.randn(1, 12, 1, 64), torch.randn(1, K, 500, 64), torch.randn(1, K, 500, 64)
    expected = plain_attention(q, k, v)[0]  # (1, H, 1, d)
    for attend in (attend_by_copy, attend_by_flag, attend_by_folding, fast_attention):
        torch.testing.assert_close(attend(q, k, v), expected, rtol=1e-4, atol=1e-5)
print("copy = flag = fold = fast_attention = plain_attention")

# %% [markdown]
# What do they write to memory? PyTorch's profiler notes every piece that is asked for. The largest says what we need.

# %%
import os
from functools import partial

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes about itself


def largest_allocation(work):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = profile.profiler.kineto_results.events()
    return max(event.nbytes() for event in events if event.name() == "[memory]")


# %% [markdown]
# **Predict before you run.** K = 3, 4,096 keys of 64 numbers, 4 bytes each. How large is a repeated key tensor of 12
# heads? Do the two others make anything of that size?

# %%
T = 4096
q, k, v = torch.randn(1, 12, 1, 64), torch.randn(1, 3, T, 64), torch.randn(1, 3, T, 64)
copied = largest_allocation(lambda: attend_by_copy(q, k, v))
print(f"copy: {copied:,} bytes = H T d 4 = {12 * T * 64 * 4:,}; the keys themselves are {k.nbytes:,}")
for name, attend in (("flag", attend_by_flag), ("fold", attend_by_folding)):
    print(f"{name}: less than half of that:", largest_allocation(partial(attend, q, k, v)) < copied / 2)

# %% [markdown]
# The copy gives back, for the time of a step, all that the cache saved: 12.6 MB for the keys and as much for the
# values.
#
# Now the time. Each way runs 41 times by turns, after a pause of ten milliseconds, and the fastest turn counts, because
# whatever else the machine does can only add to it. These numbers are of the machine that ran this notebook last. Yours
# will differ.

# %% tags=["volatile"]
import time

from utils.benchmarking import time_by_turns


def fastest(runs):
    pauses = {name: partial(time.sleep, 0.01) for name in runs}
    return {name: min(seconds) * 1e3 for name, seconds in time_by_turns(runs, 41, pauses).items()}  # ms


ways = {"copy": attend_by_copy, "flag": attend_by_flag, "fold": attend_by_folding}
milliseconds = {}
for K in (12, 3, 1):
    k, v = torch.randn(1, K, T, 64), torch.randn(1, K, T, 64)
    milliseconds[K] = fastest({name: partial(attend, q, k, v) for name, attend in ways.items()})
    times = milliseconds[K]
    print(
        f"K = {K:2}: copy {times['copy']:6.2f} ms, flag {times['flag']:5.2f} ms, fold {times['fold']:5.2f} ms;",
        f"the copy takes {times['copy'] / times['fold']:.1f} times as long as the fold",
    )

# %% [markdown]
# Drawn, on a logarithmic axis:

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for i, (name, grey, hatch) in enumerate((("copy", "0.35", ""), ("flag", "0.7", "//"), ("fold", "0.95", ""))):
    heights = [times[name] for times in milliseconds.values()]
    places = np.arange(3) + 0.27 * (i - 1)
    bars = axes.bar(places, heights, 0.25, color=grey, hatch=hatch, edgecolor="black", label=name)
    axes.bar_label(bars, fmt="%.1f", fontsize=8)
axes.set_yscale("log")
axes.margins(y=0.15)
axes.set(xticks=range(3), xticklabels=milliseconds, xlabel="heads of keys and values, K", ylabel="time (ms)")
axes.set_title("12 queries, 4,096 keys", fontsize=10)
axes.legend(frameon=False, bbox_to_anchor=(1, 1), loc="upper left")
plt.show()

# %% [markdown]
# Three things to see.
#
# The *copy* gains least from fewer heads. It reads K of them, writes H, and reads those H again, so most of what it
# moves does not depend on K.
#
# The *flag* copies nothing, and still its time falls much less than the cache does. From K = 12 to K = 1 there are
# twelve times fewer keys. It behaves as if the keys were walked through once for each query head. We measured its time,
# not what its kernel does inside.
#
# The *fold* falls with the cache. It is one product of a (G, d) with a (d, T) matrix for each key/value head, so each
# key is read once, and G queries use it while it is there. With K = 12 there is nothing to fold, and flag and fold do
# the same work.
#
# Why not fold always? Because of the mask. One new query sees every key, so there is nothing to hide. Several queries
# see different keys. Folded, their rows would need a mask of their own, G times as long. So `fast_attention` folds a
# single query and takes the flag for more.

# %% [markdown]
# ## 6. What it costs, by formula and by count
#
# A layer with biases. Queries are made by a D × D matrix, keys and values by D × Kd ones, and W_o is D × D. A product
# with a matrix takes two operations a weight. Each of the T keys takes 2d for its score and 2d for its value in each of
# H heads:
#
# $$\text{parameters} = 2D^2 + 2D\,Kd + 2D + 2Kd$$
#
# $$\text{FLOPs per token} = 4D^2 + 4D\,Kd + 4DT \qquad\text{cache} = 2\,Kd\,T \text{ numbers}$$
#
# Where is K in these? In the cache as a factor. In the parameters beside a term without it. In the last term of the
# FLOPs not at all.
#
# **Predict before you run.** From K = 12 to K = 1: which of the three gets 12 times smaller? How many times smaller do
# the parameters get?


# %%
def by_formula(H, K, d, T):
    D = H * d
    return 2 * D**2 + 2 * D * K * d + 2 * D + 2 * K * d, 4 * D**2 + 4 * D * K * d + 4 * D * T, 2 * K * d * T


for K in (12, 6, 4, 3, 2, 1):
    parameters, flops, numbers = by_formula(12, K, 64, T=4096)
    print(f"K = {K:2}: {parameters:9,} parameters, {flops:10,} FLOPs a token, cache {numbers:9,} numbers")

# %% [markdown]
# Now count. Parameters are counted one by one. FLOPs are counted by PyTorch, while one token goes through the plain
# formula with 4,095 before it. (What these were does not matter to a count, so the cache is only told its length.)

# %%
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def by_count(layer, T):
    cache = layer.make_cache(1, T)
    cache.length = T - 1
    with FlopCounterMode(display=False) as counter:
        q, k, v = layer.project(torch.randn(1, 1, 768))  # (1, H, 1, d), (1, K, 1, d), (1, K, 1, d)
        layer.merge(plain_attention(q, *cache.append(k, v))[0])  # (1, 1, D)
    return sum(p.numel() for p in layer.parameters()), counter.get_total_flops(), cache.nbytes // 4


# %% [markdown]
# Formula, count, and what the module says of itself in `cost`:

# %%
for K in (12, 6, 4, 3, 2, 1):
    layer = GroupedQueryAttention(768, n_head=12, n_kv_head=K)
    cost = layer.cost(4096)
    said = (cost.parameters, cost.flops_per_token, cost.cache_numbers)
    assert by_formula(12, K, 64, 4096) == by_count(layer, 4096) == said
print("formula = count = cost, for each K")

# %% [markdown]
# As shares of multi-head attention:

# %%
Ks = [1, 2, 3, 4, 6, 12]
shares = np.array([by_formula(12, K, 64, 4096) for K in Ks]) / by_formula(12, 12, 64, 4096)  # (6, 3)
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for column, (name, line) in enumerate((("parameters", "k-o"), ("FLOPs per token", "k--s"), ("cache", "k:^"))):
    axes.plot(Ks, 100 * shares[:, column], line, markersize=4, label=name)
axes.set(xlabel="heads of keys and values, K", ylabel="share of multi-head (%)", xticks=Ks, ylim=(0, 105))
axes.set_title("D = 768, H = 12, T = 4,096", fontsize=10)
axes.legend(frameon=False, loc="lower right")
plt.show()
print("at K = 1:", dict(zip(("parameters", "FLOPs", "cache"), shares[0].round(3).tolist())))

# %% [markdown]
# Only the cache falls in proportion. The parameters stop a little above a half, because W_q and W_o stay. The FLOPs
# hardly move. So this is no way to compute less. It is a way to *keep* and to *read* less, and it pays where reading is
# what takes the time: while writing, token by token. Reading a long prompt at once is arithmetic, and of that there is
# hardly less.
#
# What a whole model of 12 such layers holds, measured on caches that were really made, and the length at which a
# billion bytes are full:

# %%
lengths = [256, 1024, 2048, 4096]
held = {
    K: [12 * GroupedQueryAttention(768, 12, K).make_cache(1, n).nbytes for n in lengths] for K in (12, 3, 1)
}  # bytes of 12 layers
for K, sizes in held.items():
    a_token = sizes[-1] // lengths[-1]
    print(f"K = {K:2}: {a_token:6,} bytes a token, a billion bytes hold {10**9 // a_token:7,} tokens")

# %% [markdown]
# The same, drawn by the project's own figure:

# %%
from attention_mechanisms.attention_maps import cache_growth

figure = cache_growth({f"K = {K}": (lengths, sizes) for K, sizes in held.items()}, "12 layers, D = 768, float32")
figure.set_size_inches(6, 3)
figure

# %% [markdown]
# ## 7. Is a step as fast as the bytes say?
#
# If reading takes the time, a step should take as long as its bytes: the weights of the layer, and the cache, once
# each. That is a prediction, and it can fail. We take the time of K = 12 as the measure, and predict all others from
# it.


# %%
def bytes_read(K, T):
    parameters, _, numbers = by_formula(12, K, 64, T)
    return 4 * (parameters + numbers)


print({K: f"{bytes_read(K, 4096) / 1e6:.1f} MB" for K in Ks})

# %% [markdown]
# A step: one token through a layer whose cache holds 4,095 others.


# %%
def make_step(K, T=4096):
    layer = GroupedQueryAttention(768, n_head=12, n_kv_head=K)
    cache, token = layer.make_cache(1, T), torch.randn(1, 1, 768)  # token: (B, 1, D)
    cache.append(*torch.randn(2, 1, K, T - 1, 64))  # keys and values, (1, K, T - 1, d) each

    @torch.inference_mode()
    def step():
        cache.truncate(T - 1)
        return layer(token, cache)

    return step


# %% [markdown]
# By turns again, the fastest of 41. These are numbers of the machine that ran this notebook last.

# %% tags=["volatile"]
steps = {K: make_step(K) for K in Ks}
measured = fastest(steps)
predicted = {K: measured[12] * bytes_read(K, 4096) / bytes_read(12, 4096) for K in Ks}
for K in Ks:
    print(
        f"K = {K:2}: {measured[K]:5.2f} ms, by its bytes {predicted[K]:5.2f} ms;",
        f"{measured[12] / measured[K]:4.1f} times as fast as K = 12",
    )

# %% [markdown]
# A line through the origin would be the prediction, come true.

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
megabytes = [bytes_read(K, 4096) / 1e6 for K in Ks]
axes.plot(megabytes, measured.values(), "ko", markersize=5, label="measured, at each K")
axes.plot([0, megabytes[-1]], [0, measured[12]], "--", color="0.4", label="as its bytes say")
for K, size in zip(Ks, megabytes):
    axes.annotate(f"{K}", (size, measured[K]), textcoords="offset points", xytext=(0, 6), ha="center", fontsize=8)
axes.set(xlabel="bytes of weights and cache (MB)", ylabel="time of a step (ms)", xlim=(0, 38))
axes.set_ylim(0, 1.2 * max(measured.values()))
axes.legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# The order is as predicted: fewer bytes, less time. The dots need not lie on the line. Above it, a step costs more than
# its bytes: starting each operation, the softmax, and the arithmetic of H · T products do not get less with K (section
# 6). Below it, K = 12 was slower than its share, as when another program wants the memory too: the line goes through
# that one dot. We did not measure these parts one by one.
#
# The table in this chapter's `README.md` has such times for contexts from 1,000 to 32,000 tokens. There the gain of K =
# 1 grows with the context, because the weights, which are read too, weigh less and less beside the cache. It stays
# below 12 at any length.
#
# ## 8. What is lost? A task for several heads
#
# So much for what is saved. What does sharing cost in quality? Small layers on a small task can show what *may* happen.
# They do not say how a large language model fares.
#
# Four address books, written over one another. A text begins with 8 tokens. Token i holds entry i of all four books: in
# each book another name (0 to 7, each once) and a number (0 to 7, at random). Then come 8 questions, each with one name
# for each book. The answer is four numbers. They stand at four different tokens, so one pattern of looking cannot find
# them all: a head must look by the names of *its* book.


# %%
def make_texts(n, generator):
    names = torch.rand(n, 4, 8, generator=generator).argsort(-1).transpose(1, 2)  # (n, 8 tokens, 4 books)
    numbers = torch.randint(8, (n, 8, 4), generator=generator)  # (n, 8 tokens, 4 books)
    entry = torch.randint(8, (n, 8, 4), generator=generator)  # (n, 8 questions, 4 books): the entry that is asked for
    return names, numbers, names.gather(1, entry), numbers.gather(1, entry)


names, numbers, asked, answers = make_texts(1, torch.Generator().manual_seed(0))
print("token 0 has names", names[0, 0].tolist(), "and numbers", numbers[0, 0].tolist())
print("question 0 asks for", asked[0, 0].tolist(), "and the answer is", answers[0, 0].tolist())

# %% [markdown]
# The reader: each name and each number of each book has a vector, and a token is the sum of its vectors. Then comes one
# attention layer (D = 64, H = 8, d = 8), and a linear map to four choices of 8.


# %%
class Reader(torch.nn.Module):
    def __init__(self, K):
        super().__init__()
        self.name, self.number = (torch.nn.Parameter(0.3 * torch.randn(4, 8, 64)) for _ in range(2))  # (books, 8, D)
        self.attention = GroupedQueryAttention(64, n_head=8, n_kv_head=K)
        self.choice = torch.nn.Linear(64, 4 * 8)

    def embed(self, names, numbers, asked):
        book = torch.arange(4)
        entries = (self.name[book, names] + self.number[book, numbers]).sum(2)  # (n, 8, 4, D) -> (n, 8, D)
        return torch.cat([entries, self.name[book, asked].sum(2)], dim=1)  # (n, 16, D)

    def forward(self, names, numbers, asked):
        y = self.attention(self.embed(names, numbers, asked))[:, 8:]  # (n, 8 questions, D)
        return self.choice(y).unflatten(2, (4, 8))  # (n, 8, 32) -> (n, 8, 4 books, 8)


# %% [markdown]
# The loss, and training with Adam. The rate falls to zero over the second half.


# %%
def loss_of(reader, texts):
    *given, answers = texts
    return F.cross_entropy(reader(*given).flatten(0, 2), answers.flatten())  # (n 8 4, 8), (n 8 4,)


def train(reader, steps, next_texts):
    optimizer, losses = torch.optim.Adam(reader.parameters()), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.003 * min(1, 2 * (steps - step) / steps)
        loss = loss_of(reader, next_texts())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# %% [markdown]
# Sanity numbers first. Knowing nothing costs ln 8 a question. And two texts should be learned by heart, even with a
# single head of keys and values. If not, the wiring is wrong, not the sharing.

# %%
torch.manual_seed(0)
reader, two_texts = Reader(K=1), make_texts(2, torch.Generator().manual_seed(0))
losses = train(reader, 300, lambda: two_texts)
print(f"ln 8 = {math.log(8):.1f}, the first loss {losses[0]:.1f}, two texts by heart: {losses[-1] < 0.1}")

# %% [markdown]
# Now the real task, with new texts at every step. First the layer that all else is measured by, with K = H = 8. The
# losses are on 256 texts that nobody trained on. From here on the last digits depend on the machine.

# %% tags=["volatile"]
test = make_texts(256, torch.Generator().manual_seed(99))


def fresh_texts(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda: make_texts(64, generator)


@torch.no_grad()
def test_loss(reader):
    return loss_of(reader, test).item()


torch.manual_seed(0)
teacher = Reader(K=8)
train(teacher, 400, fresh_texts(0))
print(f"K = 8: loss {test_loss(teacher):.2f}, knowing nothing {math.log(8):.2f}")

# %% [markdown]
# Solved. How? Here is where its heads look in one text, straight from `reference`. The lower half of each map are the
# questions, the left half the entries.

# %%
from attention_mechanisms.attention_maps import all_heads

with torch.no_grad():
    _, weights = teacher.attention.reference(teacher.embed(names, numbers, asked))  # (1, H, 16, 16)
all_heads(weights[0], "eight heads, one text")

# %% [markdown]
# The dark squares at the lower left differ from head to head. They are the entries that hold the asked names, found by
# different books. Which book does each head follow? For every question, add up the weight that a head gives to the
# entry that is right for a book.

# %% tags=["volatile"]
with torch.no_grad():
    _, weights = teacher.attention.reference(teacher.embed(*test[:3]))  # (n, H, 16, 16)
is_right = test[0][:, None] == test[2][:, :, None]  # (n, 8 questions, 8 entries, 4 books)
follows = torch.einsum("nhqe,nqeb->hb", weights[:, :, 8:, :8], is_right.float()) / (256 * 8)  # (H, books)
for h, row in enumerate(follows):
    print(f"head {h}: weight on the right entry of book 0 to 3:", [f"{w:.2f}" for w in row])

# %% [markdown]
# An eighth, 0.125, is what a head gives that does not care for a book. The large numbers say who follows what.
# Neighbours need not follow the same book, because nothing ever asked them to. Now they shall share.
#
# ### From eight heads to fewer: pool
#
# Nobody likes to train a large model again only to have a smaller cache. Ainslie and others convert a trained one: the
# keys' matrices of a group become one, their **mean**, and so do the values'. Then it is trained a little longer. They
# report that the mean works better than to pick one head, and that better than to begin with random weights. Let us
# see what it does here.


# %%
def pool(weight, K, how, H=8, d=8):
    q, kv = weight[: H * d], weight[H * d :]  # (H d, …), (2 H d, …)
    groups = kv.unflatten(0, (2, K, H // K, d))  # (2, K, G, d, …)
    pooled = {
        "mean": lambda: groups.mean(2),
        "first": lambda: groups[:, :, 0],
        "random": lambda: torch.empty_like(groups[:, :, 0]).uniform_(-1 / 8, 1 / 8),  # as nn.Linear begins, 1 / √D
    }[how]()  # (2, K, d, …)
    return torch.cat([q, pooled.flatten(0, 2)])  # (H d + 2 K d, …)


def convert(reader, K, how):
    smaller, state = Reader(K), reader.state_dict()
    for name in ("attention.c_attn.weight", "attention.c_attn.bias"):
        state[name] = pool(state[name], K, how)
    smaller.load_state_dict(state)
    return smaller


# %% [markdown]
# A conversion that is wrong looks like one that is lossy. So test it where it must lose nothing: where the heads of
# each group are equal already. We take a reader with K = 2, copy each head four times to get one with K = 8, and pool
# that.

# %%
torch.manual_seed(0)
two = Reader(K=2)
state = two.state_dict()
for name in ("attention.c_attn.weight", "attention.c_attn.bias"):
    kv = state[name][64:].unflatten(0, (2, 2, 8)).repeat_interleave(4, dim=1)  # (2, K, d, …) -> (2, H, d, …)
    state[name] = torch.cat([state[name][:64], kv.flatten(0, 2)])  # (3 D, …)

# %% [markdown]
# Then the eight must answer as the two did, and pooled they must be the two again.

# %%
eight = Reader(K=8)
eight.load_state_dict(state)
torch.testing.assert_close(eight(*two_texts[:3]), two(*two_texts[:3]), rtol=1e-4, atol=1e-5)
for how in ("mean", "first"):
    back = convert(eight, 2, how).state_dict()
    assert all(torch.allclose(back[name], weight) for name, weight in two.state_dict().items())
print("2 heads -> 8 equal ones -> 2 heads: nothing lost")

# %% [markdown]
# This is worth a second look. Whatever grouped heads compute, multi-head attention can compute too, by repeating
# weights. The other way round there is no such promise.
#
# **Predict before you run.** The trained reader has a loss near 0, and knowing nothing costs 2.08. Pooled from 8 heads
# to 4, to 2, to 1: where does the loss land, before any healing?

# %% tags=["volatile"]
for K in (4, 2, 1):
    jumps = {how: test_loss(convert(teacher, K, how)) for how in ("mean", "first", "random")}
    print(f"K = {K}, not healed:", ", ".join(f"{how} {loss:.2f}" for how, loss in jumps.items()))

# %% [markdown]
# A high jump, whichever way. With fewer heads the mean's loss comes near to ln 8, and stays below it: the mean of heads
# that look for different things looks for nothing in particular. A picked head goes above: it answers its own question,
# with confidence, in the name of the others too. A loss above ln 8 is not ignorance. It is error.
#
# ### Heal
#
# Then train on, for 40 steps: a tenth of the first training. (Ainslie and others take a twentieth.) One reader says
# little, so there are three, begun from other seeds.

# %% tags=["volatile"]
teachers = [teacher]
for seed in (1, 2):
    torch.manual_seed(seed)
    teachers.append(Reader(K=8))
    train(teachers[-1], 400, fresh_texts(seed))
print("K = 8, three seeds:", [f"{test_loss(reader):.2f}" for reader in teachers])

# %% [markdown]
# Each of them is pooled to each K in each way, and healed. The table has the losses afterwards.

# %% tags=["volatile"]
curves, healed = {}, {}
for K in (4, 2, 1):
    for how in ("mean", "first", "random"):
        readers = [convert(reader, K, how) for reader in teachers]
        before = [test_loss(reader) for reader in readers]
        curves[K, how] = [train(reader, 40, fresh_texts(50 + seed)) for seed, reader in enumerate(readers)]
        healed[K, how] = [test_loss(reader) for reader in readers]
        means = f"mean of three {np.mean(before):.2f} -> {np.mean(healed[K, how]):.2f}"
        print(f"K = {K}, {how:6}: {means}; each at the end", [f"{loss:.2f}" for loss in healed[K, how]])

# %% [markdown]
# What must hold on any machine, we assert. Pooling hurts, and healing helps.

# %%
for K in (4, 2, 1):
    for how in ("mean", "first"):
        jumps = [test_loss(convert(reader, K, how)) for reader in teachers]
        assert np.mean(healed[K, how]) < np.mean(jumps) and np.mean(jumps) > 0.3
print("every mean loss jumped, and fell again")

# %% [markdown]
# The whole way, as the mean of the three seeds:

# %%
figure, panels = plt.subplots(1, 3, figsize=(9, 3), sharey=True, layout="constrained")
for axes, K in zip(panels, (4, 2, 1)):
    for how, line, grey in (("mean", "-", "0"), ("first", "--", "0"), ("random", ":", "0.4")):
        axes.plot(np.mean(curves[K, how], axis=0), line, color=grey, label=how)
    axes.axhline(math.log(8), color="0.6", linewidth=0.7)
    axes.set(title=f"K = {K}", xlabel="step of healing (number)", ylim=(0, 3.2))
panels[0].set_ylabel("training loss (nats a question)")
panels[0].text(39, math.log(8) + 0.05, "ln 8", ha="right", fontsize=8, color="0.3")
panels[2].legend(frameon=False, fontsize=8, loc="lower left")
plt.show()

# %% [markdown]
# What did the mean buy here? Read the table and the curves together.
#
# - To 4 and to 2 heads, the mean starts lower than the first head and ends lower, as in the paper.
# - To 1 head it starts lower and ends *higher*, for each of the three seeds. Here the picked head heals faster.
# - Random heads hardly leave ln 8 in these 40 steps, though queries, embeddings and the last map are trained. So both
#   the mean and the first head keep something that is worth many steps.
# - From 8 to 4, forty steps take most of the jump back. From 8 to 1 they do not, whichever way.
#
# So on this task the mean is the better start for moderate groups, and no rule for all. Three seeds of a layer with 64
# numbers a token cannot say more.
#
# ### What did not work: longer keys
#
# The mean of G vectors that have nothing to do with one another is √G times shorter than they are. So the scores of a
# pooled head are smaller, and its softmax is flatter. Would it help to stretch the pooled keys by √G? It sounds right.
# We tried, with the first reader and 40 steps as before:

# %% tags=["volatile"]
for K in (4, 2, 1):
    stretched = convert(teacher, K, "mean")
    with torch.no_grad():
        for part in (stretched.attention.c_attn.weight, stretched.attention.c_attn.bias):
            part[64 : 64 + 8 * K] *= (8 / K) ** 0.5  # the rows of the keys, (K d, …)
    before = test_loss(stretched)
    train(stretched, 40, fresh_texts(50))
    print(f"K = {K}: stretched {before:.2f} -> {test_loss(stretched):.2f}, plain mean -> {healed[K, 'mean'][0]:.2f}")

# %% [markdown]
# No better. What the mean lacks is not length alone.
#
# ### Trained with few heads from the start
#
# Is the task too much for few heads, or only the conversion? The same 400 steps from nothing, one seed:

# %% tags=["volatile"]
scratch = {}
for K in (4, 2, 1):
    torch.manual_seed(0)
    scratch[K] = Reader(K)
    train(scratch[K], 400, fresh_texts(0))
    print(f"K = {K} from the start: loss {test_loss(scratch[K]):.2f}")

# %% [markdown]
# With K = 4 the task is solved as well as with 8, and pooling to 4 came near to that in a tenth of the steps. So eight
# heads of keys were never needed for this task; they were only what the first reader had learned to use. With K = 1 it
# is another matter. Even the whole training stays far from 0. Eight numbers in a key, for the names of four books, are
# too few here, or 400 steps are. We did not train for longer.
#
# One more number, to close section 4. The reader that was trained with K = 4, read by code that deals its heads out
# like cards:

# %% tags=["volatile"]
with torch.no_grad():
    mixed = scratch[4].embed(*test[:3])  # (n, 16, D)
    y = forward_with_repeat(scratch[4].attention, mixed)[:, 8:]  # (n, 8, D)
    logits = scratch[4].choice(y).unflatten(2, (4, 8))  # (n, 8, 4, 8)
    dealt_loss = F.cross_entropy(logits.flatten(0, 2), test[3].flatten()).item()
print(f"grouped rightly {test_loss(scratch[4]):.2f}, dealt like cards {dealt_loss:.2f}, knowing nothing 2.08")

# %% [markdown]
# No error was raised, and the reader does no better than one that knows nothing.

# %% [markdown]
# ## 9. Exercises
#
# Write the body in place of the dots and run the cell. The check says what is missing.

# %%
from attention_mechanisms.exercises.ex03 import (
    attempt,
    check_folded_attention,
    check_kv_head_of,
    check_longest_context,
    check_pool_heads,
    check_regroup,
)

# %% [markdown]
# **A. Who reads whom?** (easy, 3 minutes) The key/value head that query head h reads, where neighbours share.


# %%
def kv_head_of(h, n_head, n_kv_head): ...


attempt(check_kv_head_of, kv_head_of)

# %% [markdown]
# **B. How long a text fits?** (easy, 5 minutes) `memory` bytes are left for the caches of all layers and all texts of a
# batch. How many tokens can each text have?


# %%
def longest_context(memory, n_layer, n_kv_head, head_dim, bytes_per_number, batch_size): ...


attempt(check_longest_context, longest_context)

# %% [markdown]
# **C. Fold it yourself** (medium, 15 minutes) `q` is (batch, n_head, 1, d), `k` and `v` are (batch, n_kv_head, keys,
# d), and the result is as `q`. Use `@` and `softmax` only. No repeated key may be written to memory: the check looks.


# %%
def folded_attention(q, k, v): ...


attempt(check_folded_attention, folded_attention)

# %% [markdown]
# **D. Pool heads** (medium, 10 minutes) `weight` is the keys' matrix of a multi-head layer, (n_head · d, d_model), head
# under head. Return (n_kv_head · d, d_model): for each group the mean of its heads.


# %%
def pool_heads(weight, n_head, n_kv_head): ...


attempt(check_pool_heads, pool_heads)

# %% [markdown]
# **E. Mend the weights** (hard, 20 minutes) A model was trained with stripes: query head h reads head h % n_kv_head.
# Your code has blocks. `w_q` is (n_head · d, d_model), `w_o` is (d_model, n_head · d). Return both with the query heads
# in another order, so that the layer computes what it was trained for. Heads that share stay in their order.


# %%
def regroup(w_q, w_o, n_head, n_kv_head): ...


attempt(check_regroup, regroup)

# %% [markdown]
# ### Solutions
#
# <details><summary>Solution: `kv_head_of`</summary>
#
# ```python
# def kv_head_of(h, n_head, n_kv_head):
#     group = n_head // n_kv_head
#     return h // group
# ```
# </details>
#
# <details><summary>Solution: `longest_context`</summary>
#
# ```python
# def longest_context(memory, n_layer, n_kv_head, head_dim, bytes_per_number, batch_size):
#     a_token = 2 * n_layer * n_kv_head * head_dim * bytes_per_number  # 2: a key and a value
#     return memory // (a_token * batch_size)
# ```
# </details>
#
# <details><summary>Solution: `folded_attention`</summary>
#
# ```python
# def folded_attention(q, k, v):
#     batch, n_head, _, d = q.shape
#     n_kv_head = k.shape[1]
#     folded = q.reshape(batch, n_kv_head, n_head // n_kv_head, d)  # (batch, n_kv_head, group, d)
#     scores = folded @ k.transpose(2, 3) * d**-0.5  # (batch, n_kv_head, group, keys)
#     y = scores.softmax(dim=-1) @ v  # (batch, n_kv_head, group, d)
#     return y.reshape(batch, n_head, 1, d)  # (batch, n_head, 1, d)
# ```
# </details>
#
# <details><summary>Solution: `pool_heads`</summary>
#
# ```python
# def pool_heads(weight, n_head, n_kv_head):
#     d = weight.shape[0] // n_head
#     groups = weight.view(n_kv_head, n_head // n_kv_head, d, -1)  # (n_kv_head, group, d, d_model)
#     return groups.mean(dim=1).flatten(0, 1)  # (n_kv_head · d, d_model)
# ```
# </details>
#
# <details><summary>Solution: `regroup`</summary>
#
# ```python
# import torch
#
#
# def regroup(w_q, w_o, n_head, n_kv_head):
#     d = w_q.shape[0] // n_head
#     striped = torch.arange(n_head).view(-1, n_kv_head)  # (group, n_kv_head): column j has the heads that read j
#     order = striped.T.flatten()  # (n_head,): those of 0, then those of 1, …
#     rows = (order[:, None] * d + torch.arange(d)).flatten()  # (n_head · d,)
#     return w_q[rows], w_o[:, rows]
# ```
# </details>

# %% [markdown]
# ## 10. What you take along
#
# **Recap**
#
# - Queries are asked once, keys and values for ever. So there may be fewer heads of keys and values than of queries.
# - Query head h reads key/value head h // G, with G = H / K. K = H is multi-head attention, K = 1 is multi-query.
# - The cache falls by H / K. The parameters fall to a half at most, the FLOPs with T keys not at all.
# - One query over a long cache: fold the group into rows. Each key is then read once for all of its group.
# - A step gets faster as its bytes get fewer, less than in proportion: some work does not depend on K.
# - Multi-head attention can do all that grouped can. Pooling goes the other way, loses, and has to be healed.
#
# **Pitfalls**, each seen above: `repeat` in place of `repeat_interleave` (no error, wrong answers); tests at K = 1 and
# K = H only (they cannot see it); copies of keys (they undo the saving at every step); hoping that fewer heads compute
# less (they read less); a pooled model without healing.
#
# ### Reading guide
#
# `grouped_query.py` is `multi_head.py` with another number of rows. Read `project`: it is section 3. One matrix, split
# into three by counting heads. The three `if`s are for what a model may add, and off here.

# %%
import inspect

print(inspect.getsource(GroupedQueryAttention.project))

# %% [markdown]
# The sharing itself is not there. It is in `attend.py`. The lines under `if tokens == 1` are `attend_by_folding` of
# section 5, and `enable_gqa` in the last call is `attend_by_flag`. The middle, about `causal`, is notebook 02's.

# %%
print(inspect.getsource(fast_attention))

# %% [markdown]
# That the toys above equal these modules was asserted in sections 1 (`plain_attention`, `fast_attention`), 3
# (`GroupedQueryAttention`), 5 (folding) and 6 (`cost`).
#
# **CUDA, Apple's MPS, Windows.** All of this notebook ran on a CPU under Linux, and nothing here was run on another
# device or system. PyTorch's own text on `scaled_dot_product_attention` calls `enable_gqa` experimental and says that
# on CUDA it works with the flash-attention and the plain kernel only. A GPU has another ratio of arithmetic to reading,
# so the times of sections 5 and 7 say nothing about it. Which head reads which, the bytes of a cache and the count of
# FLOPs are arithmetic, and the same everywhere. No cell uses anything that one system has and another has not.
#
# **Sources.** Shazeer 2019, *Fast Transformer Decoding: One Write-Head is All You Need* · Ainslie and others 2023,
# *GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints* (pooling: section 2.1 and the
# ablations).
#
# **The next question.** We gave up heads. Each group has one memory, and what its heads would have kept apart is gone.
# But do twelve heads of keys hold twelve times as much as one? They are all made from the same vector. Could all heads
# stay, and the cache still shrink? Notebook 04 keeps one small vector a token and makes every head from it.
