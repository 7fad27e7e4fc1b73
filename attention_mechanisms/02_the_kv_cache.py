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
# # The KV cache
#
# **A model writes one token at a time. Must it read the whole text again for each?**
#
# Written plainly, yes: attention asks every token before. For one token a hundred are read, for the next a hundred and
# one, and a hundred of those were read a moment ago. Here you find out which results may be kept. You keep them, break
# the arrangement in several ways, and weigh what it costs: memory, and the time that it takes to read memory.
#
# | | |
# |---|---|
# | you know | queries, keys, values, heads and the causal mask (notebook 01 of this chapter) |
# | you need | about 80 minutes, exercises apart; any laptop: no GPU, no network, about a gigabyte of memory |
# | files | `kv_cache.py`, `masks.py`, `attend.py` and `multi_head.py` of this folder |
#
# The letters that come back again and again:
#
# | letter | meaning | in the code |
# |---|---|---|
# | B | texts side by side | `batch` |
# | T | tokens of a text | `tokens` |
# | n | tokens that a cache holds | `cache.length` |
# | d | width of a token's vector | `d_model` |
# | H | heads, each d / H numbers wide | `n_head`, `head_dim` |
# | L | layers | `n_layer` |

# %% [markdown]
# First what we need. All of it is on your machine already.

# %%
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

# %% [markdown]
# ## 1. Five tokens, by hand
#
# One head, five tokens. The projections are done: here are the queries, keys and values, two whole numbers each.

# %%
q = torch.tensor([[0.0, 1], [1, 1], [1, 0], [0, 1], [2, 0]])  # (tokens, head_dim) = (5, 2)
k = torch.tensor([[1.0, 0], [0, 1], [0, 0], [0, 2], [0, 1]])  # (5, 2)
v = torch.tensor([[8.0, 0], [0, 8], [8, 8], [0, 0], [8, 0]])  # (5, 2)

# %% [markdown]
# To spare ourselves $e$, we scale the scores by $\ln 2$ in this toy. Then a score of s weighs $e^{s \ln 2} = 2^s$, and
# you can do everything in your head. Token 2 asks `[1, 0]`. Its scores with keys 0, 1, 2 are 1, 0, 0. So the weights
# are 2, 1, 1, and
#
# $$y_2 = \frac{2\,(8, 0) + 1\,(0, 8) + 1\,(8, 8)}{4} = (6, 4).$$

# %%
from attention_mechanisms.attend import plain_attention
from attention_mechanisms.masks import causal_mask


def toy(q, k, v, mask=None):
    y, _ = plain_attention(q[None, None], k[None, None], v[None, None], mask, scale=math.log(2))
    return y[0, 0]  # (tokens, 2)


print(toy(q, k, v, causal_mask(5, 5)).round().int().tolist())

# %% [markdown]
# Now write these five tokens one after the other, as a model does. The plain way hands over the text so far, again and
# again, and keeps the last row of the answer.
#
# **Predict before you run.** How many keys are made in the five steps, all together?

# %%
made, rows = [], []
for t in range(5):
    so_far = slice(0, t + 1)
    made += range(t + 1)  # the tokens whose keys are made in this step
    rows.append(toy(q[so_far], k[so_far], v[so_far], causal_mask(t + 1, t + 1))[-1])
print("keys made:", len(made), "- of each token:", [made.count(i) for i in range(5)])
print(torch.stack(rows).round().int().tolist())

# %% [markdown]
# Fifteen, for five tokens. The key of token 0 was made five times, and it was `[1, 0]` every time. Only one row of each
# pass was looked at. Look at what that row needed: *its own* query, and *all* keys and values up to it.
#
# So keep keys and values in a list that grows, and ask one question a step. There is no mask any more: what is not
# written yet is not in the list.

# %%
kept_k, kept_v, rows = torch.empty(0, 2), torch.empty(0, 2), []
for t in range(5):
    kept_k = torch.cat([kept_k, k[t : t + 1]])  # (t + 1, 2)
    kept_v = torch.cat([kept_v, v[t : t + 1]])  # (t + 1, 2)
    rows.append(toy(q[t : t + 1], kept_k, kept_v)[0])  # one query, t + 1 keys
print("keys made: 5")
print(torch.stack(rows).round().int().tolist())

# %% [markdown]
# The same five rows. That list is the KV cache, all of it. What follows is about its price and its traps.
#
# ## 2. A model to write with
#
# For the traps we want a model that writes something. A *token* is a word here, and these 44 words are the whole
# world. Every line begins alike, so to know what comes after `to the`, one has to look back.

# %%
TEXT = """the miller brings the grain to the mill by day .
the baker brings the bread to the shop by night .
the carter takes the bread to the town by day .
the grocer takes the coins to the bank by night ."""
words = TEXT.split()
vocabulary = sorted(set(words))
V = len(vocabulary)
print(len(words), "words,", V, "different ones")

# %% [markdown]
# The model is two layers of the project's `MultiHeadAttention`, each adding to what is there, between an embedding and
# an output layer. (The next chapter builds a proper one.) Look at `forward`: the cache is an argument, and the place of
# the first token is what the cache says.

# %%
from attention_mechanisms import LayerCaches, MultiHeadAttention


class TinyModel(nn.Module):
    def __init__(self, d_model=32, n_head=4, n_layer=2, longest=64):
        super().__init__()
        self.what, self.where = nn.Embedding(V, d_model), nn.Embedding(longest, d_model)
        self.norms = nn.ModuleList([nn.LayerNorm(d_model) for _ in range(n_layer)])
        self.layers = nn.ModuleList([MultiHeadAttention(d_model, n_head) for _ in range(n_layer)])
        self.head = nn.Linear(d_model, V)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, ids, cache=None):
        start = cache.length if cache is not None else 0
        places = torch.arange(start, start + ids.shape[1])  # (tokens,)
        if cache is not None and cache.padding is not None:  # section 9
            places = (places - cache.padding[:, None]).clamp(min=0)  # (B, tokens)
        x = self.what(ids) + self.where(places)  # (B, tokens, d)
        for i, layer in enumerate(self.layers):
            x = x + layer(self.norms[i](x), cache.layers[i] if cache is not None else None)
        return self.head(x)  # (B, tokens, V)

    def make_cache(self, batch_size, max_length, padding=None):
        return LayerCaches([layer.make_cache(batch_size, max_length, padding) for layer in self.layers], padding)


# %% [markdown]
# Two sanity numbers. The parameters, counted by hand: two embeddings, in each layer a norm (2d) and four square
# matrices with biases ($4d^2 + 4d$), and the output. And the loss before training, which should be near $\ln V$.

# %%
torch.manual_seed(0)
model = TinyModel()
d = 32
by_hand = V * d + 64 * d + 2 * (2 * d + 4 * d**2 + 4 * d) + (d * V + V)
print("parameters:", sum(p.numel() for p in model.parameters()), "by hand:", by_hand)

row = torch.tensor([vocabulary.index(word) for word in words])  # (44,)
loss = F.cross_entropy(model(row[None, :-1]).flatten(0, 1), row[1:])  # (1 * 43, V) and (43,)
print(f"loss at the start {loss:.1f}, ln {V} = {math.log(V):.1f}")

# %% [markdown]
# Train it until it knows the text by heart. A window of 32 words begins anywhere, and the text runs in a circle. So the
# place in the window says nothing, and the model has to use its attention. This takes a few seconds.

# %%
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
circle = row.repeat(2)  # (88,)
for _ in range(150):
    starts = torch.randint(0, 44, (16, 1))
    windows = circle[starts + torch.arange(33)]  # (16, 33)
    loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss below 0.1:", loss.item() < 0.1)

# %% [markdown]
# From here on nobody learns. Now the loop that writes. With `cache=None` it is the plain way of section 1, with a cache
# it hands over only what the model has *not read yet*.

# %%
torch.set_grad_enabled(False)


def ids_of(text):
    return torch.tensor([[vocabulary.index(word) for word in text.split()]])  # (1, tokens)


def go_on(model, ids, n, cache=None):
    unread = ids
    for _ in range(n):
        logits = model(ids if cache is None else unread, cache)  # (B, tokens, V)
        unread = logits[:, -1:].argmax(-1)  # (B, 1): the most probable next word
        ids = torch.cat([ids, unread], dim=1)  # (B, tokens + 1)
    return ids


def show(ids):
    return " ".join(vocabulary[i] for i in ids)


plain = go_on(model, ids_of("the miller"), 20)
print(show(plain[0]))

# %% [markdown]
# It recites. And with a cache?

# %%
cached = go_on(model, ids_of("the miller"), 20, model.make_cache(1, 22))
assert torch.equal(cached, plain)
print(show(cached[0]))

# %% [markdown]
# ## 3. What the plain way costs
#
# One token that sees t keys takes $8d^2 + 4dt$ FLOPs in a layer: $8d^2$ for the four matrices, $4dt$ for scores and
# sums. That is what `MultiHeadAttention.cost` says. Without a cache, step t does this for t tokens. Over T steps:
#
# | | matrices | scores and sums |
# |---|---|---|
# | without a cache | $8d^2 \cdot T(T+1)/2$ | $4d \cdot T(T+1)(2T+1)/6$ |
# | with a cache | $8d^2 \cdot T$ | $4d \cdot T(T+1)/2$ |
#
# A power of T is saved everywhere: $T^2$ becomes $T$ for the matrices, $T^3$ becomes $T^2$ for the scores. Do not
# believe it, count it. PyTorch has a counter for matrix products. It does not see into the CPU's fused kernel, so
# attention runs as plain products while we count. `cost.py` has a function for that:

# %%
import inspect

from attention_mechanisms.cost import count_flops

print(inspect.getsource(count_flops))

# %% [markdown]
# Each step is counted by itself, both ways: the whole text so far through the layer, and one token in front of a cache.

# %%
torch.manual_seed(0)
d, T = 64, 96
layer, x = MultiHeadAttention(d, n_head=4), torch.randn(1, T, d)
cache = layer.make_cache(1, T)
plain_flops = [count_flops(lambda t=t: layer(x[:, :t])) for t in range(1, T + 1)]
cached_flops = [count_flops(lambda t=t: layer(x[:, t - 1 : t], cache)) for t in range(1, T + 1)]

# %% [markdown]
# **Predict before you run.** T = 96 tokens, d = 64. About how many times more FLOPs does the plain way take: 10, 50 or
# 1000 times?

# %%
plain_formula = 8 * d**2 * T * (T + 1) // 2 + 4 * d * T * (T + 1) * (2 * T + 1) // 6
cached_formula = 8 * d**2 * T + 4 * d * T * (T + 1) // 2
assert (sum(plain_flops), sum(cached_flops)) == (plain_formula, cached_formula)
print(f"plain {plain_formula:,} and cached {cached_formula:,} FLOPs, as counted")
print(f"ratio {plain_formula / cached_formula:.0f}")

# %% [markdown]
# To the last FLOP. The ratio is about T / 2, as long as the matrices are the larger part. Step by step, from the
# counter:

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.loglog(range(1, T + 1), plain_flops, "k-", label="all tokens again")
axes.loglog(range(1, T + 1), cached_flops, "k--", label="one token and a cache")
axes.set(xlabel="step t (tokens so far)", ylabel="work of the step (FLOPs)", title="counted, one layer, d = 64")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# FLOPs are not seconds. So let the clock speak, on a wider layer, by turns. First the equality, then the ratio.

# %%
torch.manual_seed(0)
wide, text = MultiHeadAttention(256, n_head=4).eval(), torch.randn(1, 256, 256)


def write_plainly():
    return torch.cat([wide(text[:, : t + 1])[:, -1:] for t in range(256)], dim=1)  # (1, 256, d)


def write_with_cache():
    cache = wide.make_cache(1, 256)
    return torch.cat([wide(text[:, t : t + 1], cache) for t in range(256)], dim=1)  # (1, 256, d)


torch.testing.assert_close(write_plainly(), write_with_cache())
print("equal: 256 tokens, one by one")

# %% [markdown]
# These numbers are of the machine that ran this notebook last. Yours will differ.

# %% tags=["volatile"]
from utils.benchmarking import median, time_by_turns

seconds = median(time_by_turns({"plain": write_plainly, "cached": write_with_cache}))
print({name: f"{1e3 * s:.0f} ms" for name, s in seconds.items()}, f"{seconds['plain'] / seconds['cached']:.0f} times")

# %% [markdown]
# Faster. But how much had the FLOPs promised? `cost` knows.

# %%
promised = sum(t * wide.cost(t).flops_per_token for t in range(1, 257))
promised /= sum(wide.cost(t).flops_per_token for t in range(1, 257))
print(f"by FLOPs alone: {promised:.0f} times")

# %% [markdown]
# On the machine that ran this, the clock did not pay that out. A step with one token makes poor use of the arithmetic
# that a machine has. Section 11 says why.
#
# ## 4. What may be kept, and what makes it safe
#
# A kept key must be the key that would be made anew. Is it? Change one word of a text, the word at place 5, and see
# whose keys move. The caches themselves are our witnesses: they hold the keys of both layers.
#
# **Predict before you run.** Which places will have other keys in the first layer, and which in the second?


# %%
def keys_of(model, ids):
    cache = model.make_cache(1, ids.shape[1])
    model(ids, cache)
    return torch.stack([layer.keys[0] for layer in cache.layers])  # (L, H, tokens, head_dim)


before = ids_of("the miller brings the grain to the mill by day")
after = ids_of("the miller brings the grain by the mill by day")
change = (keys_of(model, before) - keys_of(model, after)).abs().amax(dim=(1, 3))  # (L, tokens)
for i, moved in enumerate(change > 1e-5):
    print(f"layer {i}: keys moved at places", moved.nonzero().flatten().tolist())

# %% [markdown]
# In the first layer only place 5: a key is made from its own token alone. In the second layer place 5 *and all later
# ones*, because they have looked at it. Never an earlier one. What comes later cannot reach back, so what is kept stays
# right. That is causality, and the cache rests on nothing else.
#
# Take it away, and the cache is wrong. Here are the same weights in an attention without a mask, as in models that fill
# gaps in a text (BERT, Devlin et al. 2018).

# %%
import copy


class SeesAll(MultiHeadAttention):
    def forward(self, x, cache=None):
        q, k, v = self.project(x)  # each (B, H, tokens, head_dim)
        y = F.scaled_dot_product_attention(q, *cache.append(k, v))  # (B, H, tokens, head_dim)
        return self.c_proj(y.transpose(1, 2).flatten(2))  # (B, tokens, d)


def with_attention(model, attention):
    other = copy.deepcopy(model)
    for layer in other.layers:
        layer.__class__ = attention  # the same weights, another forward
    return other


both_ways = with_attention(model, SeesAll)
change_all = (keys_of(both_ways, before) - keys_of(both_ways, after)).abs().amax(dim=(1, 3))  # (L, tokens)
print("layer 1: keys moved at places", (change_all[1] > 1e-5).nonzero().flatten().tolist())

# %% [markdown]
# Every key of the second layer has moved. A cache for such a model would be stale after each word. Both cases as a
# picture: the darker, the further a key has moved.

# %%
figure, panels = plt.subplots(2, 1, figsize=(6, 3), sharex=True, layout="constrained")
for axes, moved, title in zip(panels, (change, change_all), ("causal", "without a mask"), strict=True):
    picture = axes.imshow(moved, cmap="Greys", vmin=0, vmax=float(change.max()), aspect="auto")
    axes.set(title=title, ylabel="layer (number)", yticks=[0, 1])
panels[1].set(xlabel="place in the text (tokens); the word at 5 was changed", xticks=range(10))
figure.colorbar(picture, ax=panels, label="largest change\nof a key")
plt.show()

# %% [markdown]
# And queries? Keep them if you like. Nobody will ask for them: query t is used in row t of the scores and in no other,
# and row t is over when token t + 1 comes. The toy in section 1 read each of its queries once.
#
# ## 5. Any chunks
#
# A prompt is there at once, and what follows comes one by one. So a cache must take *chunks* of any size. The promise
# of every attention module here is: **any chunks through a cache give what one pass gives**. Eight tokens can be cut
# in $2^7 = 128$ ways, so we try all of them.


# %%
def in_chunks(layer, x, cuts, cache):
    return torch.cat([layer(chunk, cache) for chunk in x.tensor_split(cuts, dim=1)], dim=1)  # (B, tokens, d)


torch.manual_seed(0)
layer, x = MultiHeadAttention(32, n_head=4), torch.randn(2, 8, 32)
whole = layer(x)  # (2, 8, 32)
for number in range(2**7):
    cuts = [place for place in range(1, 8) if number >> (place - 1) & 1]
    torch.testing.assert_close(in_chunks(layer, x, cuts, layer.make_cache(2, 8)), whole)
print("128 ways of cutting 8 tokens: all equal")

# %% [markdown]
# A judge from outside: `torch.nn.MultiheadAttention` with our weights. It knows nothing of caches and reads the text in
# one pass. (Its mask says True where one may *not* look.)

# %%
theirs = nn.MultiheadAttention(32, 4, batch_first=True)
theirs.in_proj_weight.copy_(layer.c_attn.weight)
theirs.in_proj_bias.copy_(layer.c_attn.bias)
theirs.out_proj.weight.copy_(layer.c_proj.weight)
theirs.out_proj.bias.copy_(layer.c_proj.bias)
expected, _ = theirs(x, x, x, attn_mask=~causal_mask(8, 8))  # (2, 8, 32)
torch.testing.assert_close(in_chunks(layer, x, [3, 4], layer.make_cache(2, 8)), expected)
print("torch.nn.MultiheadAttention agrees")

# %% [markdown]
# ## 6. Growing by concatenation, or filling a buffer
#
# In section 1 the list grew by `torch.cat`. That makes a new tensor and copies everything into it, at every step. With
# r bytes a token, T steps copy $r (1 + 2 + \dots + T) = r\,T(T+1)/2$ bytes. The power of T that we had saved is back,
# in another place.
#
# The way out: set aside a buffer for the longest text that will come, once, and write each token into its slot. Then T
# steps write $r\,T$ bytes. In plain code, with r = 2 · H · head_dim · 4 bytes (keys and values, float32):


# %%
class GrowingCache:
    def __init__(self, batch, n_head, head_dim):
        self.keys = self.values = torch.empty(batch, n_head, 0, head_dim)

    def append(self, keys, values):  # (B, H, new, head_dim) each
        self.keys = torch.cat([self.keys, keys], dim=2)  # (B, H, length, head_dim)
        self.values = torch.cat([self.values, values], dim=2)  # (B, H, length, head_dim)
        return self.keys, self.values

    length = property(lambda self: self.keys.shape[2])
    nbytes = property(lambda self: self.keys.nbytes + self.values.nbytes)


# %% [markdown]
# The other one is the project's `KVCache`. Both must give the same keys and values. What differs is where these are: we
# add up the bytes of every new tensor, and ask where each result begins in memory.

# %%
from attention_mechanisms import KVCache

H, head_dim, T = 12, 64, 64
growing, buffer = GrowingCache(1, H, head_dim), KVCache(1, H, T, head_dim)
copied, addresses = [], set()
for _ in range(T):
    new = torch.randn(1, H, 1, head_dim), torch.randn(1, H, 1, head_dim)
    grown, filled = growing.append(*new), buffer.append(*new)
    assert torch.equal(grown[0], filled[0]) and torch.equal(grown[1], filled[1])
    copied.append(growing.nbytes)
    addresses.add(filled[0].data_ptr())

# %% [markdown]
# **Predict before you run.** In these 64 steps `KVCache` returned 64 keys tensors. At how many different addresses do
# they begin?

# %%
r = 2 * H * head_dim * 4
print("addresses of KVCache's keys:", len(addresses))
print(f"bytes made by torch.cat {sum(copied):,} = r T (T + 1) / 2 = {r * T * (T + 1) // 2:,}")
print(f"bytes of the buffer     {buffer.nbytes:,} = r T             = {r * T:,}")

# %% [markdown]
# One address. `append` returns *views* into the buffer, longer by one token each time, and no old key is touched. Added
# up over the steps:

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.loglog(range(1, T + 1), torch.tensor(copied).cumsum(0) / 1e6, "k-", label="torch.cat: r t (t + 1) / 2")
axes.loglog(range(1, T + 1), [r * t / 1e6 for t in range(1, T + 1)], "k--", label="buffer: r t")
axes.set(xlabel="step t (tokens)", ylabel="written in all (MB)", title="counted, one layer, H · head_dim = 768")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# And in seconds, for a text of 1,000 tokens, by turns:


# %%
def fill(cache, n=1000):
    new = torch.ones(1, H, 1, head_dim)
    for _ in range(n):
        cache.append(new, new)


contestants = {
    "torch.cat": lambda: fill(GrowingCache(1, H, head_dim)),
    "buffer": lambda: fill(KVCache(1, H, 1000, head_dim)),
}

# %% [markdown]
# The clock:

# %% tags=["volatile"]
seconds = median(time_by_turns(contestants))
ratio = seconds["torch.cat"] / seconds["buffer"]
print({name: f"{1e3 * s:.0f} ms" for name, s in seconds.items()}, f"{ratio:.0f} times")

# %% [markdown]
# The buffer has a price too. It is there in full from the first token on, used or not. And a view is the same memory
# under another name. Whoever keeps one sees it change when its slots are written again:

# %%
cache = KVCache(1, 1, 4, 1)
one, two = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)
kept, _ = cache.append(one, one)
cache.reset()  # forget everything
cache.append(two, two)
print("I kept a key of 1. It is now", kept.item())

# %% [markdown]
# So use what `append` returns at once, and `clone()` what you want to keep.
#
# ## 7. The mask behind a cache: a bug that training never sees
#
# Three new tokens come, and five are in the cache. The queries are the *last* three of eight. Query 0 sees keys 0 to 5,
# and so on: the triangle belongs into the bottom right corner.

# %%
print(causal_mask(3, 8).int())

# %% [markdown]
# PyTorch's `F.scaled_dot_product_attention` has a flag for causal attention, `is_causal=True`. It is fast, it is right
# in training, and it reads well. So here is an attention as one writes it first. Do you see the bug?


# %%
class Careless(MultiHeadAttention):
    def forward(self, x, cache=None):
        q, k, v = self.project(x)  # each (B, H, tokens, head_dim)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, H, keys, head_dim)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, tokens, head_dim)
        return self.c_proj(y.transpose(1, 2).flatten(2))  # (B, tokens, d)


# %% [markdown]
# Test it as one would, against the model that recites. Logits of a trained model are large, and sums in another order
# round differently, so we compare to four digits.


# %%
def assert_near(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


careless = with_attention(model, Careless)
text = ids_of("the miller brings the grain to the mill")
assert_near(careless(text), model(text))
assert_near(careless(text, careless.make_cache(1, 8)), model(text))
print("equal without a cache, and equal for a whole prompt into an empty cache")

# %% [markdown]
# Two tests passed. Training would never complain, and neither would the first pass over a prompt. Now let it write.

# %% tags=["volatile"]
print("right:   ", show(plain[0]))
print("careless:", show(go_on(careless, ids_of("the miller"), 20, careless.make_cache(1, 22))[0]))

# %% [markdown]
# *Seen.* It does not recite, and no error was raised. Look closer: five words into the cache, then three. Which rows of
# logits are wrong?

# %%
cache = careless.make_cache(1, 8)
logits = torch.cat([careless(text[:, :5], cache), careless(text[:, 5:], cache)], dim=1)  # (1, 8, V)
error = (logits - model(text)).abs().amax(dim=2)[0]  # (8,)
print("rows that differ:", (error > 1e-3).nonzero().flatten().tolist())

# %% [markdown]
# All of the second chunk and none of the first. *Diagnosed* how? Ask the kernel what it looks at. There is a trick:
# $y = \text{weights} \cdot V$, so if V is the identity matrix, the answer *is* the weights.


# %%
def weights_of(q, k, **how):
    identity = torch.eye(k.shape[2])[None, None].expand(1, q.shape[1], -1, -1)  # (1, H, keys, keys)
    return F.scaled_dot_product_attention(q, k, identity, **how)  # (1, H, queries, keys)


torch.manual_seed(0)
q, k = torch.randn(1, 1, 8, 16), torch.randn(1, 1, 8, 16)  # (B, H, tokens, head_dim)
truth = weights_of(q, k, is_causal=True)[:, :, 5:]  # the last three rows of one pass
wrong = weights_of(q[:, :, 5:], k, is_causal=True)  # (1, 1, 3, 8)
mended = weights_of(q[:, :, 5:], k, attn_mask=causal_mask(3, 8))  # (1, 1, 3, 8)
print("keys that each query sees: wrong", (wrong[0, 0] > 0).sum(1).tolist(), "right", (truth[0, 0] > 0).sum(1).tolist())

# %% [markdown]
# Queries 5, 6 and 7 see one, two and three keys, as if they were the first three of the text. With fewer queries than
# keys, `is_causal` lays its triangle into the *top left* corner. (The documentation of the function says so. Few read
# it before they have to.)

# %%
figure, panels = plt.subplots(3, 1, figsize=(6, 4), sharex=True, layout="constrained")
titles = ("the last rows of one pass", "is_causal=True behind a cache", "attn_mask=causal_mask(3, 8)")
for axes, weights, title in zip(panels, (truth, wrong, mended), titles, strict=True):
    picture = axes.imshow(weights[0, 0], cmap="Greys", vmin=0, vmax=1)
    axes.set_title(title, fontsize=10)
    axes.set(yticks=range(3), yticklabels=[5, 6, 7])
panels[1].set_ylabel("query (place)")
panels[2].set_xlabel("key (place)")
figure.colorbar(picture, ax=panels, label="weight")
plt.show()

# %% [markdown]
# **Predict before you run.** One new token behind a full cache, the commonest case of all. What does it see with
# `is_causal=True`?

# %%
print(weights_of(q[:, :, 7:], k, is_causal=True)[0, 0].round(decimals=2).tolist())

# %% [markdown]
# Key 0, and nothing else: the whole text is gone. *Mended*: write the mask out. PyTorch has a name for the same mask,
# `causal_lower_right`, which serves as our judge.

# %%
from torch.nn.attention.bias import causal_lower_right

torch.testing.assert_close(mended, truth)
torch.testing.assert_close(weights_of(q[:, :, 5:], k, attn_mask=causal_lower_right(3, 8)), truth)
print("causal_mask(3, 8) = the last rows of one pass = causal_lower_right(3, 8)")

# %% [markdown]
# `fast_attention` in `attend.py` does this in three cases: one query needs no mask at all, as many queries as keys may
# have `is_causal`, and what lies between gets the mask. That is why section 5 held for all 128 ways.
#
# ## 8. Whose memory is it?
#
# Where should the cache live? It is tempting to hide it in the model. Then the loop that writes need not carry it.


# %%
class Remembering:
    def __init__(self, model):
        self.model, self.memory = model, model.make_cache(1, 64)

    def say(self, ids):
        return self.model(ids, self.memory)[:, -1].argmax(-1)[None]  # (1, 1): the next word


def talk(say, ids, n):
    said = [ids]
    for _ in range(n):
        said.append(say(said[-1]))
        yield said[-1].item()


print(show(talk(Remembering(model).say, ids_of("the grocer takes"), 8)))

# %% [markdown]
# It works. With one conversation everything works. Now two people talk to it at the same time, and their words come in
# turns.
#
# **Predict before you run.** What will the model say to the second?

# %% tags=["volatile"]
server = Remembering(model)
first, second = talk(server.say, ids_of("the grocer takes"), 8), talk(server.say, ids_of("the miller brings"), 8)
for name, said in zip(("to the first: ", "to the second:"), zip(*zip(first, second)), strict=True):
    print(name, show(said))

# %% [markdown]
# Both texts went into one memory, and each conversation reads the other's words. On the machine that ran this, both
# were told of the miller's grain. Imagine that with private letters. The mend is not a lock. It is to let go: the model
# has weights and nothing else, and each conversation brings its own cache.

# %%
caches = [model.make_cache(1, 16) for _ in range(2)]
chats = [
    talk(lambda ids, cache=cache: model(ids, cache)[:, -1].argmax(-1)[None], ids_of(start), 8)
    for cache, start in zip(caches, ("the grocer takes", "the miller brings"), strict=True)
]
said_first, said_second = zip(*zip(*chats))
print("to the first: ", show(said_first))
print("to the second:", show(said_second))

# %% [markdown]
# ### A shared beginning is read once
#
# A cache that one holds in the hand can do more. Many conversations begin alike: the same instructions, then a
# question. `truncate(n)` forgets all but the first n tokens. That is a change of one number; no key is moved.

# %%
beginning = ids_of("the miller brings the grain to the mill by day .")  # (1, 11)
cache = model.make_cache(1, 16)
model(beginning, cache)
for question in ("the baker brings", "the carter takes"):
    cache.truncate(11)
    logits = model(ids_of(question), cache)  # (1, 3, V): 3 words read in place of 14
    assert_near(logits, model(torch.cat([beginning, ids_of(question)], dim=1))[:, 11:])
    print(cache.length, "words in the cache, 3 of them new:", question, "->", show(logits[0, -1:].argmax(-1)))

# %% [markdown]
# `reset`, which section 6 used, forgets everything and keeps the buffer for the next text. What a cache cannot forget
# is something in the *middle*: in the second layer, all later keys have seen it (section 4). We try it, by leaving out
# the word at place 5 and moving the rest down.

# %%
cache = model.make_cache(1, 10)
model(before, cache)
keys = cache.layers[1].keys[0]  # (H, 10, head_dim)
shifted = torch.cat([keys[:, :5], keys[:, 6:]], dim=1)  # (H, 9, head_dim)
anew = keys_of(model, torch.cat([before[:, :5], before[:, 6:]], dim=1))[1]  # (H, 9, head_dim)
moved = (shifted - anew).abs().amax(dim=(0, 2)) > 1e-3  # (9,)
print("keys of layer 1 that are not what they should be:", moved.nonzero().flatten().tolist())

# %% [markdown]
# That did not work: everything from the gap on is stale. Those keys have seen the word that is gone, and they were made
# for the place one further on. Keep the beginning, read the rest again.
#
# ## 9. Rows of different lengths
#
# Two people, two texts, one batch. The texts differ in length, a tensor does not. `pad_left` aligns them at their
# *right* ends and says how many columns on the left of each are no text.

# %%
from attention_mechanisms import pad_left

texts = ["the miller brings the grain", "the baker"]
ids, padding = pad_left([ids_of(text)[0].tolist() for text in texts])
print(ids.tolist(), "padding", padding.tolist())

# %% [markdown]
# Why at the right? The next word of every row then goes into the *same* column, so one number, `cache.length`, is true
# for all. Aligned at the left, the second row would write its third word into column 2 and the first its sixth into
# column 5, and the last logits of each row would stand in another column.
#
# The zeros are not nothing. They are ids like any other, here the id of `.`, and each has a key.
#
# **Predict before you run.** We give the batch to the model without a word about padding. Which row is right?


# %%
def last_logits(ids, padding=None):
    cache = model.make_cache(len(ids), ids.shape[1], padding)
    return model(ids, cache)[:, -1]  # (B, V)


alone = torch.cat([last_logits(ids_of(text)) for text in texts])  # (2, V)
for name, found in {"not told": last_logits(ids), "told": last_logits(ids, padding)}.items():
    print(
        f"{name}: rows equal to the same text alone:", [torch.allclose(a, b, atol=1e-4) for a, b in zip(found, alone)]
    )

# %% [markdown]
# The first has no padding and is right either way. The second needs two things, and the cache tells both:
#
# - **A mask.** No word may look at a column that is no text.
# - **Positions.** `the` stands in column 3, and it is the first word of its text: place 3 - 3 = 0. See `forward` in
#   section 2.
#
# The mask comes from `visible`, a function of positions. Here it is for both rows, with three more columns written:

# %%
from attention_mechanisms.masks import visible

columns = torch.arange(8)
mask = visible(columns, columns, padding=padding)  # (B, 1, 8, 8)
figure, panels = plt.subplots(1, 2, figsize=(6, 3.2), sharey=True, layout="constrained")
for axes, seen, n in zip(panels, mask[:, 0], padding.tolist(), strict=True):
    axes.imshow(~seen, cmap="gray")
    axes.set(title=f"padding {n}", xlabel="key (column)", xticks=range(8), yticks=range(8))
panels[0].set_ylabel("query (column)")
plt.show()

# %% [markdown]
# Black is what may be seen. On the right, each column of padding sees itself. Nobody reads what comes of it. Without
# it, that row would be a softmax over nothing:

# %%
print(torch.full((3,), -torch.inf).softmax(dim=0).tolist())

# %% [markdown]
# And *not a number* spreads: in the next layer it would be a value, and 0 · NaN is NaN. With the mask, both rows write
# on together, one step for the two of them.

# %%
together = go_on(model, ids, 9, model.make_cache(2, 14, padding))  # (2, 14)
for n, line in zip(padding.tolist(), together, strict=True):
    assert torch.equal(line[n:], go_on(model, line[None, n:5], 9)[0])
    print(show(line[n:]))

# %% [markdown]
# Here positions are learned, one vector a place. Rotary positions turn queries and keys by angles, and only differences
# of angles count. Then the column will do, as `kv_cache.py` says. Is that so? A row with 3 columns of padding, against
# the same row alone:

# %%
from attention_mechanisms import Rotary

torch.manual_seed(0)
turning = MultiHeadAttention(32, n_head=4, rotary=Rotary(8, max_length=32))
x, n = torch.randn(1, 5, 32), torch.tensor([3])
padded = torch.cat([torch.randn(1, 3, 32), x], dim=1)  # (1, 8, 32)
y = turning(padded, turning.make_cache(1, 8, padding=n))  # (1, 8, 32)
torch.testing.assert_close(y[:, 3:], turning(x))
print("rotary: columns will do")

# %% [markdown]
# ## 10. How many bytes
#
# A key and a value for each layer and each key/value head (as many as heads, for now):
#
# $$\text{bytes a token} = 2 \cdot L \cdot n_\text{kv head} \cdot \text{head dim} \cdot \text{bytes a number}$$
#
# Against the bytes that live caches hold:

# %%
for length in (1, 16, 64):
    cache = model.make_cache(1, length)
    print(f"{length:2} tokens: nbytes {cache.nbytes:6,}, by the formula {length * 2 * 2 * 4 * 8 * 4:6,}")

# %% [markdown]
# Watch one grow while the model writes. One cache is told that 32 words will come. The other is made of growing caches,
# one a layer. They have an `append` and a `length`, and now they say that no row has padding. The model never asks for
# more.

# %%
GrowingCache.padding_mask = lambda self, n_query: None
buffered, lists = model.make_cache(1, 32), LayerCaches([GrowingCache(1, 4, 8), GrowingCache(1, 4, 8)])
held, filled, grown, word = [], [], [], ids_of("the miller brings")
for _ in range(29):
    logits = model(word, buffered)  # (1, tokens, V)
    assert_near(model(word, lists), logits)
    word = logits[:, -1:].argmax(-1)  # (1, 1)
    held.append(buffered.nbytes)
    filled.append(buffered.length)
    grown.append(lists.nbytes)

# %% [markdown]
# The buffer is flat: `nbytes` says what is really held, not what is filled. Growing caches hold just what they need, at
# the price of section 6.

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(filled, [b / 1e3 for b in held], "k-", label="buffer for 32: nbytes")
axes.plot(filled, [b / 1e3 for b in grown], "ko", markersize=4, label="torch.cat: nbytes")
axes.plot(filled, [512 * n / 1e3 for n in filled], "--", color="0.5", label="n · 512 bytes")
axes.set(xlabel="tokens in the cache (number)", ylabel="cache (kB)", ylim=(0, 19))
axes.legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# ### At the size of GPT-2
#
# GPT-2's smallest has 12 layers of 12 heads, 64 numbers each, so d = 768. Its parameters, by hand: words and places,
# then in each layer two norms ($4d$), attention ($4d^2 + 4d$) and a two-layer network ($8d^2 + 5d$), then a last norm.
# Hugging Face's model is the judge. On the device `meta` tensors have shapes and no numbers, so this costs no memory.

# %%
from transformers import GPT2Config, GPT2LMHeadModel

with torch.device("meta"):
    gpt2 = GPT2LMHeadModel(GPT2Config())
d = 768
parameters = 50257 * d + 1024 * d + 12 * (4 * d + (4 * d**2 + 4 * d) + (8 * d**2 + 5 * d)) + 2 * d
assert parameters == sum(p.numel() for p in gpt2.parameters())
print(f"{parameters:,} parameters: {2 * parameters / 1e6:.0f} MB in 16 bits")

# %% [markdown]
# **Predict before you run.** The weights are 249 MB and each token in the cache takes some kilobytes. How long must a
# text be for its cache to outweigh the model: a thousand tokens, seven thousand, a million?

# %%
cache = LayerCaches([KVCache(1, 12, 1024, 64, torch.bfloat16, "meta") for _ in range(12)])
a_token = cache.nbytes // 1024
assert a_token == 2 * 12 * 12 * 64 * 2
print(f"{a_token:,} bytes a token, {cache.nbytes / 1e6:.1f} MB for 1,024 tokens")
print(f"the cache outweighs the weights from {2 * parameters // a_token + 1:,} tokens on")

# %% [markdown]
# 6,752 tokens. GPT-2 reads 1,024 at most, so one text does not get there. Seven texts side by side do: 7 · 37.7 MB are
# 264 MB. Each text has its own cache, and all share the weights.

# %%
tokens = [2**i for i in range(7, 16)]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for B, dashes in ((1, "k-"), (8, "k--"), (64, "k:")):
    axes.loglog(tokens, [B * n * a_token / 1e6 for n in tokens], dashes, label=f"caches, B = {B}")
axes.axhline(2 * parameters / 1e6, color="0.5", linewidth=3, label="weights")
axes.set(xlabel="length of each text (tokens)", ylabel="memory (MB)", title="GPT-2 124M's shape, 16 bits")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# Does the outside world keep the same numbers? We give one layer of a small Hugging Face GPT-2 our layer's weights, and
# look into its cache. (Its matrices lie on their side, hence `.T`.)

# %%
torch.manual_seed(0)
shape = GPT2Config(vocab_size=V, n_positions=16, n_embd=32, n_layer=1, n_head=4, bos_token_id=None, eos_token_id=None)
theirs = GPT2LMHeadModel(shape).eval()
block, ours = theirs.transformer.h[0], MultiHeadAttention(32, n_head=4)
ours.c_attn.weight.copy_(block.attn.c_attn.weight.T)
ours.c_attn.bias.copy_(block.attn.c_attn.bias)
x = theirs.transformer.wte(text) + theirs.transformer.wpe(torch.arange(8))  # (1, 8, 32)
cache = ours.make_cache(1, 8)
_ = ours(block.ln_1(x), cache)

# %% [markdown]
# Theirs was never told of ours:

# %%
kept = theirs(text, use_cache=True).past_key_values.layers[0]
torch.testing.assert_close(cache.keys, kept.keys)  # (1, 4, 8, 8) each
torch.testing.assert_close(cache.values, kept.values)
print("transformers keeps", tuple(kept.keys.shape), "keys, and they are ours")

# %% [markdown]
# ## 11. Why writing is bound by reading
#
# With the cache, a step takes few FLOPs. In section 3 the clock did not pay out what the FLOPs promised. Count what
# else a step does (Shazeer 2019 does so in *Fast Transformer Decoding*): it *reads* every key and value from memory,
# once, and all weights. In one layer, with 4 bytes a number, that is
#
# $$\text{bytes of a step} = 4\,(\underbrace{2dn}_\text{cache} + \underbrace{4d^2 + 4d}_\text{weights}).$$
#
# Each number of the cache is multiplied once and added once: 2 FLOPs for 4 bytes.

# %%
layer = MultiHeadAttention(768, n_head=12)
for n in (1024, 8192):
    cache, attention_flops = layer.make_cache(1, n), layer.cost(n).flops_per_token - layer.cost(0).flops_per_token
    assert cache.nbytes + sum(p.nbytes for p in layer.parameters()) == 4 * (2 * 768 * n + 4 * 768**2 + 4 * 768)
    print(f"n = {n}: {attention_flops / cache.nbytes} FLOPs for each byte of the cache")

# %% [markdown]
# When a prompt of T tokens is read in one pass, the same key serves up to T queries, and there are up to T times as
# many FLOPs for a byte. So a prompt keeps the arithmetic busy, and writing waits for memory. Is that so here?
#
# We time a step of one layer at GPT-2's width, behind caches of four lengths. (What is in them does not matter for the
# time.) With them run two judges: how fast this machine copies bytes, each of which is read and written, and how fast
# it multiplies large matrices. All by turns, and each step has a layer of its own, so that it finds the processor's own
# small memory full of other numbers, as it would in a model.


# %%
def make_step(n):
    layer = MultiHeadAttention(768, n_head=12)
    cache, x = layer.make_cache(1, n), torch.randn(1, 1, 768)

    def step():
        cache.length = n - 1  # full but for the new token
        layer(x, cache)  # (1, 1, d)

    return step


lengths = [256, 1024, 4096, 16384]
source, target, square = torch.ones(2**25), torch.ones(2**25), torch.ones(1024, 1024)  # 134 MB, 134 MB, 4 MB
contestants = {"copy": lambda: target.copy_(source), "product": lambda: square @ square}  # (1024, 1024) both
contestants |= {n: make_step(n) for n in lengths}

# %% [markdown]
# **Predict before you run.** Beside the clock will stand two predictions: all bytes at the speed of copying, and all
# FLOPs at the speed of multiplying. Which of the two is nearer?

# %% tags=["volatile"]
seconds = median(time_by_turns(contestants, 15))
bandwidth, arithmetic = 2 * source.nbytes / seconds["copy"], 2 * 1024**3 / seconds["product"]  # bytes/s, FLOPs/s
by_bytes = [1e3 * 4 * (2 * 768 * n + 4 * 768**2 + 4 * 768) / bandwidth for n in lengths]
by_flops = [1e3 * layer.cost(n).flops_per_token / arithmetic for n in lengths]
print(f"copying {bandwidth / 1e9:.1f} GB/s, multiplying {arithmetic / 1e9:.0f} GFLOP/s")
for n, a, b in zip(lengths, by_bytes, by_flops):
    print(f"n = {n:6,}: {1e3 * seconds[n]:6.2f} ms; its bytes alone {a:6.2f}, its FLOPs alone {b:5.2f}")

# %% [markdown]
# The same as a picture. Where the dots lie near the solid line, a step takes as long as reading its bytes.

# %% tags=["volatile"]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.loglog(lengths, [1e3 * seconds[n] for n in lengths], "ko", label="measured")
axes.loglog(lengths, by_bytes, "k-", label="its bytes at the speed of copying")
axes.loglog(lengths, by_flops, "k:", label="its FLOPs at the speed of multiplying")
axes.set(xlabel="tokens in the cache (number)", ylabel="a step of one layer (ms)")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# On the machine that ran this, a step behind a long cache takes about as long as its bytes. Short ones took less.
# But every step takes many times as long as its FLOPs would.
#
# What did not work was our first measurement. It ran the same step again and again, and behind a short cache the step
# came out *faster* than memory can be read: keys and weights were still in the processor's small memory. Here are both,
# by turns: one layer twelve times, and twelve layers once each, as a model runs them.

# %% tags=["volatile"]
steps = [make_step(256) for _ in range(12)]
ways = {
    "one layer, twelve times": lambda: [steps[0]() for _ in range(12)],
    "twelve layers, once each": lambda: [step() for step in steps],
}
for name, taken in median(time_by_turns(ways, 9)).items():
    print(f"{name}: {1e3 * taken / 12:.2f} ms a step; its bytes alone {by_bytes[0]:.2f}")

# %% [markdown]
# So the way to write faster is not to compute less. It is to **read less**.
#
# ## 12. Exercises
#
# Write the body in place of the dots and run the cell. The check says what is missing.

# %%
from attention_mechanisms.exercises.ex02 import (
    attempt,
    check_append,
    check_cache_bytes,
    check_chunk_mask,
    check_keep,
    check_tokens_read,
)

# %% [markdown]
# **A. Bytes of a cache** (easy, 5 minutes) For `batch_size` texts of `tokens` tokens each, through all layers.


# %%
def cache_bytes(batch_size, tokens, n_layer, n_kv_head, head_dim, bytes_per_number): ...


attempt(check_cache_bytes, cache_bytes)

# %% [markdown]
# **B. How many tokens are read?** (easy, 10 minutes) A prompt of `prompt` tokens is there, and `n_new` are written. How
# many tokens go through the layers, all passes together, without a cache and with one? Return both numbers. Mind the
# last token: once it is written, we stop.


# %%
def tokens_read(prompt, n_new): ...


attempt(check_tokens_read, tokens_read)

# %% [markdown]
# **C. The mask of a chunk** (medium, 10 minutes) `n_cached` tokens are in the cache and `n_new` come. Return a bool
# tensor of shape (n_new, n_cached + n_new), True where a new token may look. Without `causal_mask`, please.


# %%
def chunk_mask(n_cached, n_new): ...


attempt(check_chunk_mask, chunk_mask)

# %% [markdown]
# **D. Into the buffer** (medium, 15 minutes) `buffer` is (B, H, longest, head_dim) and holds `length` tokens. Write
# `new`, (B, H, n, head_dim), behind them, and return a view of all tokens that are kept now. Where they do not fit,
# raise a ValueError and change nothing.


# %%
def append(buffer, length, new): ...


attempt(check_append, append)

# %% [markdown]
# **E. What may be kept?** (hard, 20 minutes) A cache holds the ids `old`. Now the ids `new` come: the same chat with
# one message more, or with an earlier message changed. To what length do you truncate? As much as possible is kept,
# but the model must read at least one token to have logits for the next.


# %%
def keep(old, new): ...


attempt(check_keep, keep)

# %% [markdown]
# ### Solutions
#
# <details><summary>Solution: `cache_bytes`</summary>
#
# ```python
# def cache_bytes(batch_size, tokens, n_layer, n_kv_head, head_dim, bytes_per_number):
#     numbers_a_token = 2 * n_layer * n_kv_head * head_dim  # 2: a key and a value
#     return batch_size * tokens * numbers_a_token * bytes_per_number
# ```
# </details>
#
# <details><summary>Solution: `tokens_read`</summary>
#
# ```python
# def tokens_read(prompt, n_new):
#     without = sum(prompt + i for i in range(n_new))  # pass i reads the prompt and the i tokens written so far
#     with_cache = prompt + n_new - 1  # each token once; the last one is never read
#     return without, with_cache
# ```
# </details>
#
# <details><summary>Solution: `chunk_mask`</summary>
#
# ```python
# import torch
#
#
# def chunk_mask(n_cached, n_new):
#     queries = torch.arange(n_cached, n_cached + n_new)  # where the new tokens stand
#     keys = torch.arange(n_cached + n_new)
#     return keys[None, :] <= queries[:, None]  # (n_new, n_cached + n_new)
# ```
# </details>
#
# <details><summary>Solution: `append`</summary>
#
# ```python
# def append(buffer, length, new):
#     end = length + new.shape[2]
#     if end > buffer.shape[2]:
#         raise ValueError(f"{end} tokens do not fit into {buffer.shape[2]}")
#     buffer[:, :, length:end] = new  # (B, H, n, head_dim)
#     return buffer[:, :, :end]  # (B, H, end, head_dim)
# ```
# </details>
#
# <details><summary>Solution: `keep`</summary>
#
# ```python
# def keep(old, new):
#     same = 0
#     for a, b in zip(old, new):  # the shorter of the two ends it
#         if a != b:
#             break
#         same += 1
#     return min(same, len(new) - 1)
# ```
# </details>

# %% [markdown]
# ## 13. What you take along
#
# **Recap**
#
# - Written plainly, T tokens send about $T^2 / 2$ rows through each matrix and make $T^3 / 3$ scores. With a cache: T
#   rows and $T^2 / 2$ scores.
# - Keys and values are kept, queries are not: each of them is used once.
# - It is safe because the model is causal: what comes later cannot change a key.
# - Any chunks through a cache give what one pass gives. The mask sits at the bottom right.
# - A buffer is allocated once. Lists that grow by `torch.cat` copy $T(T+1)/2$ tokens.
# - The cache is an argument. A conversation is a cache.
# - Rows are aligned at their right ends; padding is masked, and places are counted from where a text begins.
# - 2 · L · n_kv_head · head_dim numbers a token. At GPT-2's shape the cache outweighs the weights from 6,752 tokens on.
# - A step behind a long cache takes about as long as reading it.
#
# **Pitfalls**, each seen above: `is_causal=True` behind a cache (sees the wrong keys, raises nothing, passes the tests
# of training); a cache for attention without a causal mask; a cache hidden in the model; a view kept across `truncate`
# or `reset`; cutting out of the middle; padding that the model is not told of; a mask that leaves a row nothing to see
# (NaN); a clock that runs one step again and again.
#
# ### Reading guide
#
# In `kv_cache.py` read the text at the top, then `Cache` (`grow`, `truncate`), then this. You have seen what it
# returns, and that it equals the list that grows (section 6).

# %%
print(inspect.getsource(KVCache.append))

# %% [markdown]
# Next `MultiHeadAttention.forward`. Three things in it are about a cache: where the new tokens stand, `append`, and the
# mask where there is padding. A mask of the caller's is for whole texts, and refused beside a cache. The toy loop of
# section 1 is this with one head and no matrices. Assert it, with both:

# %%
x = torch.randn(1, 5, 768)
q, k, v = layer.project(x)  # each (1, 12, 5, 64)
kept_k, kept_v, rows = k[:, :, :0], v[:, :, :0], []
for t in range(5):
    kept_k = torch.cat([kept_k, k[:, :, t : t + 1]], dim=2)  # (1, 12, t + 1, 64)
    kept_v = torch.cat([kept_v, v[:, :, t : t + 1]], dim=2)  # (1, 12, t + 1, 64)
    rows.append(plain_attention(q[:, :, t : t + 1], kept_k, kept_v)[0])  # (1, 12, 1, 64)
merged = torch.cat(rows, dim=2).transpose(1, 2).flatten(2)  # (1, 12, 5, 64) -> (1, 5, 768)
torch.testing.assert_close(layer.c_proj(merged), in_chunks(layer, x, [1, 3], layer.make_cache(1, 5)))
print("the toy loop = MultiHeadAttention, in chunks of 1, 2 and 2")

# %% [markdown]
# And here is its body:

# %%
print(inspect.getsource(MultiHeadAttention.forward).split('"""')[2])

# %% [markdown]
# Then `fast_attention` in `attend.py`, for its three cases of the mask. `RollingCache` and `LatentCache` wait for later
# notebooks.
#
# **CUDA, Apple's MPS, Windows.** All of this ran on a CPU. `make_cache` puts the buffers where the weights are, in
# their number format. On CUDA, `fast_attention` gives the mask of a chunk by its name, `causal_lower_right`, instead of
# writing it out. That, MPS and Windows were not run here. Nothing above touches a file, and so nothing depends on the
# system. On CUDA and MPS work is queued and the call returns early (PyTorch's notes on CUDA call it asynchronous
# execution). A clock has to wait, by `torch.cuda.synchronize()` or `torch.mps.synchronize()`. Those above do not, and
# would be wrong there.
#
# **The next question.** A step reads the weights once for all texts of a batch, and a cache for each of them. All of
# the cache is keys and values, of 12 heads in each layer. Does every head of queries need keys and values of its own?
# Notebook 03 gives some of them up.
