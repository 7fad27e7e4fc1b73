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
# # Attention from raw tensors
#
# **How can a token look back at all the tokens before it, and choose?**
#
# Chapter 1 ended with a bigram model. It reads T ids and looks at one of them, the last. Often the answer stands
# further back, and each time somewhere else. So a fixed place will not do. The token itself has to say what it is
# looking for. In this notebook you compute that by hand for one token, then for all at once. You mask the future, split
# the work among heads, break it on purpose, measure what it costs, and train it on something that no bigram can do.
#
# | | |
# |---|---|
# | you know | what an id and a batch are (notebook 05 of chapter 1), matrix products, what a gradient is |
# | you need | about 90 minutes, exercises apart; any laptop: no GPU, no network, under a gigabyte of memory |
# | files | `attend.py`, `masks.py`, `multi_head.py` of this folder; `rotary.py` and `attention_maps.py` in passing |
#
# The letters that come back again and again:
#
# | letter | meaning | shape | in the code |
# |---|---|---|---|
# | B | texts in a batch | | `batch` |
# | T | tokens in a text | | `tokens` |
# | D | width of a token's vector | | `d_model` |
# | h | heads | | `n_head` |
# | d | numbers in one head's query or key, D / h | | `head_dim` |
# | x | the tokens' vectors | (T, D) | `x` |
# | q, Q | what one token asks, what all ask | (d,), (T, d) | `q` |
# | k, K | what a token can be found by | (d,), (T, d) | `k` |
# | v, V | what a token has to say | (d,), (T, d) | `v` |
# | S | scores: how well each query and key agree | (T, T) | `scores` |
# | A | weights: the scores after the softmax, each row sums to 1 | (T, T) | `weights` |

# %% [markdown]
# First what we need. All of it is on your machine already.

# %%
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

torch.manual_seed(1)
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. One question, by hand
#
# Here is a text of six tokens. Five are cards: `a4` says that a has the value 4. The last one asks: what does b have?
#
# Each letter gets a mark of four signs. A token can be found by the mark of its letter: that is its **key**. What it
# has to say is its digit: its **value**. The question has no letter and no digit of its own, so zeros.

# %%
text = ["a4", "b1", "c3", "a2", "b5", "?b"]
mark = {"a": [1, 1, -1, -1], "b": [1, -1, 1, -1], "c": [1, -1, -1, 1]}
keys = [mark["a"], mark["b"], mark["c"], mark["a"], mark["b"], [0, 0, 0, 0]]  # (6, 4)
values = [4, 1, 3, 2, 5, 0]  # (6,)
query = mark["b"]  # (4,): what the token ?b asks for

# %% [markdown]
# How well do a question and a key agree? Multiply sign by sign and add up: each agreement counts 1, each disagreement
# −1. This is the dot product, and the number is the **score**.
#
# **Predict before you run.** The six scores, in your head.

# %%
scores = [sum(a * b for a, b in zip(query, key)) for key in keys]
for token, key, score in zip(text, keys, scores):
    print(f"{token}: key {key!s:15} score {score}")

# %% [markdown]
# Both cards of b agree in all four signs. Another letter agrees in two and disagrees in two. Now scores become
# weights. First we divide by √d = √4 = 2: section 2 says why. Then the softmax, e to the power of each, shared so that
# all add up to 1. By hand: e² ≈ 7.39 twice and e⁰ = 1 four times, 18.78 in all. So a card of b gets 7.39 / 18.78.

# %%
powers = [math.exp(score / math.sqrt(4)) for score in scores]
weights = [power / sum(powers) for power in powers]
print(", ".join(f"{token} {weight:.3f}" for token, weight in zip(text, weights)), "| sum", round(sum(weights), 3))

# %% [markdown]
# What the token gathers is the mean of all values, by these weights. A softmax is never quite 0, so a and c whisper
# along.
#
# **Predict before you run.** The values of b are 1 and 5. What does `?b` gather, roughly?

# %%
print(f"{sum(weight * value for weight, value in zip(weights, values)):.2f}")

# %% [markdown]
# Nobody wrote 2.84. As plain numbers, 1 and 5 blur into about 3. So a value is a *vector*, in which both can stand side
# by side. With one place for each digit, the same weights say: a 1 or a 5, 39% each.

# %%
one_hot = F.one_hot(torch.tensor(values), 6).float()  # (6, 6): row = token, column = digit
one_hot[5] = 0  # the question says nothing
print("digits 0 to 5:", torch.tensor(weights) @ one_hot)  # (6,) @ (6, 6) -> (6,)

# %% [markdown]
# All that attention does is in these lines. A score for each key, a softmax, a mean of the values:
#
# $$\text{attention}(q, K, V)=\text{softmax}\!\left(\frac{qK^\top}{\sqrt d}\right)V$$
#
# As a picture, with and without the division by √d:

# %%
unscaled = torch.tensor(scores).float().softmax(0)  # (6,)
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
axes.bar([i - 0.2 for i in range(6)], weights, 0.38, color="0.75", edgecolor="black", label="score / √d")
axes.bar([i + 0.2 for i in range(6)], unscaled, 0.38, color="0.3", edgecolor="black", label="score as it is")
axes.set(xticks=range(6), xticklabels=text, xlabel="token looked at", ylabel="weight (sums to 1)", ylim=(0, 0.6))
axes.legend(frameon=False, loc="upper center")
plt.show()

# %% [markdown]
# ## 2. Why √d
#
# Without the division the choice is sharper. Is that not better? At d = 4, perhaps. So let d grow. A new model's
# queries and keys look like noise, each number with mean 0 and variance 1. Then each product of two has variance 1, and
# the sum of d independent products has variance d.
#
# **Predict before you run.** The variance of q · k for d = 64? And of q · k / √64?

# %%
for d in (4, 16, 64, 256):
    dots = (torch.randn(20_000, d) * torch.randn(20_000, d)).sum(1)  # (20000,)
    print(f"d = {d:3}: variance of q·k {dots.var():5.0f}, of q·k / √d {(dots / d**0.5).var():.1f}")

# %% [markdown]
# The variance is d, so scores are about √d large: ±16 at d = 256. To a softmax 16 is a great deal, e¹⁶ is nine million.
# Here is what becomes of the weights of 16 keys: how large is the largest, and how much does the softmax still move
# when its scores are moved? Its derivative is a matrix that can be written down, diag(A) − AᵀA for a row A. We measure
# the size of that matrix. First, is it the right one? Ask autograd.


# %%
def softmax_slope(a):
    return torch.diag_embed(a) - a.unsqueeze(-1) * a.unsqueeze(-2)  # (…, n) -> (…, n, n)


s = torch.randn(16)
torch.testing.assert_close(softmax_slope(s.softmax(0)), torch.autograd.functional.jacobian(lambda s: s.softmax(0), s))
print("diag(A) - AᵀA is the softmax's derivative, says autograd")

# %% [markdown]
# Now for growing d: 500 random queries, 16 keys each.


# %%
def saturation(d, scale):
    q, k = torch.randn(500, 1, d), torch.randn(500, 16, d)
    a = (q @ k.transpose(1, 2) * scale).squeeze(1).softmax(1)  # (500, 1, d) @ (500, d, 16) -> (500, 16)
    sizes = softmax_slope(a).flatten(1).norm(dim=1)  # (500, 16, 16) -> (500, 256) -> (500,)
    return a.max(1).values.mean().item(), sizes.median().item()


widths = [4, 16, 64, 256, 1024]
raw, scaled = ([saturation(d, d**-power) for d in widths] for power in (0, 0.5))
print(f"d = 1024: largest weight {raw[-1][0]:.2f} raw, {scaled[-1][0]:.1f} scaled")

# %% [markdown]
# A wide head without the division is all but one-hot before it has learned anything. And on the right: where the
# softmax is one-hot, its slope is next to nothing. No gradient comes through, so it cannot learn to choose otherwise.

# %%
figure, panels = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for i, (axes, what) in enumerate(zip(panels, ("mean largest of 16 weights", "median size of the slope"))):
    axes.loglog(widths, [pair[i] for pair in raw], "k-o", markersize=4, label="q·k")
    axes.loglog(widths, [pair[i] for pair in scaled], "--s", color="0.4", markersize=4, label="q·k / √d")
    axes.set(xlabel="d (numbers in a key)", ylabel=what)
panels[0].legend(frameon=False)
panels[0].set_yticks([0.25, 0.5, 1.0], ["0.25", "0.5", "1"])
panels[0].minorticks_off()
plt.show()

# %% [markdown]
# ## 3. All questions at once
#
# Every token may ask, not just the last. And nobody writes queries by hand: all three are made from the token's vector
# x by three matrices, which are learned. Here they need not be. Nine numbers hold a token of ours: the mark of its card
# (0 to 3), the mark that it asks for (4 to 7), its digit (8).

# %%
x = torch.zeros(6, 9)  # (T, D)
for t, token in enumerate(text):
    if token[0] == "?":
        x[t, 4:8] = torch.tensor(mark[token[1]])
    else:
        x[t, 0:4], x[t, 8] = torch.tensor(mark[token[0]]), int(token[1])
print(x.int())

# %% [markdown]
# Three matrices that pick the right columns. A card asks for its own letter (*who else has it?*), the question for its
# b.

# %%
eye, no = torch.eye(4), torch.zeros(4, 4)
W_q = torch.cat([eye, eye, torch.zeros(1, 4)])  # (9, 4)
W_k = torch.cat([eye, no, torch.zeros(1, 4)])  # (9, 4)
W_v = torch.zeros(9, 1).index_fill(0, torch.tensor([8]), 1)  # (9, 1)
Q, K, V = x @ W_q, x @ W_k, x @ W_v  # (T, D) @ (D, d) -> (6, 4), (6, 4), (6, 1)
print((Q @ K.T).int())  # (T, d) @ (d, T) -> (T, T)

# %% [markdown]
# Row i holds the scores of token i's question, and the last row is section 1. One product did it all. The slow version,
# a query at a time and a key at a time, is the one that we trust:


# %%
def attend_with_loops(Q, K, V):
    rows = []
    for q in Q.tolist():
        powers = [math.exp(sum(a * b for a, b in zip(q, k)) / math.sqrt(len(q))) for k in K.tolist()]
        mean = [sum(p * v[i] for p, v in zip(powers, V.tolist())) / sum(powers) for i in range(V.shape[1])]
        rows.append(mean)
    return torch.tensor(rows)  # (T, d)


# %% [markdown]
# And the same as three products. They must agree.


# %%
def attend(Q, K, V):
    weights = (Q @ K.T / math.sqrt(Q.shape[1])).softmax(dim=1)  # (T, d) @ (d, T) -> (T, T)
    return weights @ V  # (T, T) @ (T, d) -> (T, d)


torch.testing.assert_close(attend(Q, K, V), attend_with_loops(Q, K, V))
print(dict(zip(text, [round(y, 2) for y in attend(Q, K, V).flatten().tolist()])))

# %% [markdown]
# ## 4. Nobody sees the future
#
# Look at the first card. `a4` gathered from `a2`, three tokens later. A model that is asked for the next token must
# not: the answer would stand in the question. So token i may look at the tokens up to i. That is a triangle:

# %%
allowed = torch.ones(6, 6).tril().bool()  # (T, T): row = who looks, column = who is looked at
print(allowed.int())

# %% [markdown]
# How to forbid the rest? Two ways come to mind: set those *weights* to zero after the softmax, or set those *scores* to
# −∞ before it.
#
# **Predict before you run.** What do the rows of weights add up to, in each case?

# %%
S = Q @ K.T / math.sqrt(4)  # (6, 4) @ (4, 6) -> (T, T)
zero_after = S.softmax(1) * allowed
minus_infinity_before = S.masked_fill(~allowed, -torch.inf).softmax(1)
print("zero after:       ", zero_after.sum(1))
print("-infinity before: ", minus_infinity_before.sum(1))

# %% [markdown]
# Zero after leaves rows that are too light. Is it at least blind to the future? The softmax divided by a sum over *all*
# scores, those of the future too. Ask autograd who depends on whom: how much does the output of token i move when
# token j is moved a little?


# %%
def dependence(weights_of):
    def outputs(x):
        S = (x @ W_q) @ (x @ W_k).T / 2  # (T, d) @ (d, T) -> (T, T)
        return weights_of(S) @ (x @ W_v)  # (T, T) @ (T, 1) -> (T, 1)

    slopes = torch.autograd.functional.jacobian(outputs, x)  # (T, 1, T, D)
    return slopes.squeeze(1).norm(dim=2)  # (T, T)


ways = {
    "no mask": lambda S: S.softmax(1),
    "zero after": lambda S: S.softmax(1) * allowed,
    "−∞ before": lambda S: S.masked_fill(~allowed, -torch.inf).softmax(1),
}
depends = {name: dependence(way) for name, way in ways.items()}

# %% [markdown]
# Everything right of the diagonal is a look into the future. In a row, black is the most that this token depends on
# any.

# %%
figure, panels = plt.subplots(1, 3, figsize=(8, 3), layout="constrained")
for axes, (name, sizes) in zip(panels, depends.items()):
    axes.imshow(sizes / sizes.amax(1, keepdim=True), cmap="Greys", vmin=0, vmax=1)
    axes.step(torch.arange(-0.5, 6), torch.arange(-0.5, 6), "k:", where="pre")  # the edge of the future
    axes.set(title=name, xticks=range(6), xticklabels=text, yticks=range(6), yticklabels=text)
panels[0].set_ylabel("token whose output moves")
figure.supxlabel("token that is moved", fontsize=10)
plt.show()

# %% [markdown]
# The middle one leaks, faintly. In numbers:

# %%
for name, sizes in depends.items():
    print(f"{name:11} looks into the future: {(sizes.triu(1) > 1e-6).sum().item()} of 15")

# %% [markdown]
# Can zero-after be mended by dividing each row by its own sum? Yes: it is the same softmax then.

# %%
torch.testing.assert_close(zero_after / zero_after.sum(1, keepdim=True), minus_infinity_before)
print("zero after, divided by its sum = -infinity before")

# %% [markdown]
# But only on paper. Let a future score be 200 larger than the allowed ones, and float32 has nothing left to divide.

# %%
large = torch.tensor([[1.0, 2.0, 200.0]])  # the third is not allowed
seen = torch.tensor([[True, True, False]])
zeroed = large.softmax(1) * seen
print("zero after, divided:", zeroed / zeroed.sum(1, keepdim=True))
print("-infinity before:   ", large.masked_fill(~seen, -torch.inf).softmax(1))

# %% [markdown]
# So −∞ before it is, here and in the module. It has one hole of its own: a query that may look at nobody. A softmax of
# nothing but −∞ is 0 / 0. In a causal mask this cannot happen, since each token sees itself.

# %%
print(torch.full((1, 3), -torch.inf).softmax(1))

# %% [markdown]
# ## 5. A bug that raises no error: `is_causal=True`
#
# PyTorch has all of this in one call, `F.scaled_dot_product_attention`, and a flag for the triangle. It wants axes for
# batch and heads in front. On our text it agrees with us:

# %%
Q4, K4, V4 = Q[None, None], K[None, None], V[None, None]  # (1, 1, 6, 4), (1, 1, 6, 4), (1, 1, 6, 1)
ours = minus_infinity_before @ V  # (6, 6) @ (6, 1) -> (6, 1)
theirs = F.scaled_dot_product_attention(Q4, K4, V4, is_causal=True)  # (1, 1, 6, 1)
torch.testing.assert_close(theirs[0, 0], ours)
print("PyTorch agrees:", [round(y, 2) for y in ours.flatten().tolist()])

# %% [markdown]
# Now suppose that the first four tokens have been read before, and their keys and values kept. Two tokens are new, `b5`
# and `?b`: two queries, six keys. The obvious call:
#
# **Predict before you run.** Does it give the last two numbers of the line above?

# %%
wrong = F.scaled_dot_product_attention(Q4[:, :, 4:], K4, V4, is_causal=True)  # queries (1, 1, 2, 4), keys (1, 1, 6, 4)
print("for b5 and ?b:", [round(y, 2) for y in wrong.flatten().tolist()])

# %% [markdown]
# 4.00 and 1.36 instead of 3.00 and 2.84. *Seen*: no error, the right shape, plausible numbers.
#
# *Diagnosed.* A trick makes attention show its weights: give it the identity matrix as values. The mean of its rows
# *is* the weights.

# %%
identity = torch.eye(6)[None, None]  # (1, 1, 6, 6)
shown = F.scaled_dot_product_attention(Q4[:, :, 4:], K4, identity, is_causal=True)[0, 0]  # (2, 6)
print(shown)

# %% [markdown]
# The new tokens stand at places 4 and 5. They were treated as places 0 and 1: `b5` saw `a4` alone, `?b` saw `a4` and
# `b1`. PyTorch aligns the triangle at the *top left*. We want it at the bottom right, where the queries are the last of
# the keys. `masks.py` has that mask:

# %%
from attention_mechanisms.masks import causal_mask

print(causal_mask(2, 6).int())  # (2, 6)
assert torch.equal(causal_mask(6, 6), allowed)

# %% [markdown]
# *Mended*: hand over the mask, or call the project's `fast_attention`, which takes care of it.

# %%
from attention_mechanisms.attend import fast_attention, plain_attention

right = F.scaled_dot_product_attention(Q4[:, :, 4:], K4, V4, causal_mask(2, 6))  # (1, 1, 2, 1)
torch.testing.assert_close(right[0, 0], ours[4:])
torch.testing.assert_close(fast_attention(Q4[:, :, 4:], K4, V4, causal=True), right)
print("for b5 and ?b:", [round(y, 2) for y in right.flatten().tolist()])

# %% [markdown]
# Both sets of weights, side by side. A hatched square is one that the query should have seen, and did not.

# %%
mended = F.scaled_dot_product_attention(Q4[:, :, 4:], K4, identity, causal_mask(2, 6))[0, 0]  # (2, 6)
figure, panels = plt.subplots(2, 1, figsize=(6, 3.4), sharex=True, layout="constrained")
titles = ("is_causal=True: top left", "causal_mask(2, 6): bottom right")
for axes, weights, name in zip(panels, (shown, mended), titles):
    axes.imshow(weights, cmap="Greys", vmin=0, vmax=1)
    for i, j in torch.argwhere((weights == 0) & causal_mask(2, 6)).tolist():
        axes.add_patch(plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="///", edgecolor="0.6"))
    axes.set(title=name, yticks=[0, 1], yticklabels=text[4:], xticks=range(6), xticklabels=text, ylabel="query")
panels[1].set_xlabel("key: token looked at")
plt.show()

# %% [markdown]
# With a single new token, the case of a model that writes, it is at its worst.
#
# **Predict before you run.** One query at the end, six keys, `is_causal=True`. What comes out?

# %%
one = F.scaled_dot_product_attention(Q4[:, :, 5:], K4, V4, is_causal=True)  # query (1, 1, 1, 4)
print(one.item(), "while the value of the first token is", V[0].item())

# %% [markdown]
# It read the first token, whatever was asked. A single query sees every key, so it needs no mask at all.
#
# ## 6. Many heads
#
# One softmax makes one choice. To look for two things at a time, a token needs two questions. So the D numbers are cut
# into h slices of d = D / h, and each slice attends on its own. These slices are the **heads**. Two heads of two
# numbers, three tokens:

# %%
numbers = torch.arange(12).view(1, 3, 4)  # (B, T, D) = (1, 3, 4)
heads = numbers.view(1, 3, 2, 2)  # (B, T, D) -> (B, T, h, d): each token's numbers cut in two
heads = heads.transpose(1, 2)  # (B, T, h, d) -> (B, h, T, d): heads in front, as one more batch
print("tokens:", numbers[0].tolist())
print("head 0:", heads[0, 0].tolist())
print("head 1:", heads[0, 1].tolist())

# %% [markdown]
# Head 0 holds the first half of *every* token. Why not a single `view` straight to (B, h, T, d)? It has the right shape
# and runs without complaint:

# %%
mixed = numbers.view(1, 2, 3, 2)  # (B, T, D) -> (B, h, T, d) in one step
print("head 0:", mixed[0, 0].tolist(), "<- which token is which?")

# %% [markdown]
# Its three rows are the two halves of token 0, and half of token 1. The transpose is what keeps tokens apart. Back
# again it goes the same way, reversed. So `merge` undoes `split`:


# %%
def split(x, n_head):
    batch, tokens, d_model = x.shape
    return x.view(batch, tokens, n_head, d_model // n_head).transpose(1, 2)  # (B, T, D) -> (B, T, h, d) -> (B, h, T, d)


def merge(y):
    return y.transpose(1, 2).flatten(2)  # (B, h, T, d) -> (B, T, h, d) -> (B, T, D)


assert torch.equal(merge(split(numbers, 2)), numbers)

# %% [markdown]
# Now all of it: one matrix for Q, K and V side by side, the heads, and at the end a matrix that mixes what they
# gathered. Every line is one of the sections above.


# %%
def multi_head(x, W_qkv, b_qkv, W_o, b_o, n_head):
    q, k, v = (x @ W_qkv.T + b_qkv).chunk(3, dim=2)  # (B, T, D) @ (D, 3 D) -> three (B, T, D)
    q, k, v = split(q, n_head), split(k, n_head), split(v, n_head)  # each (B, h, T, d)
    S = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])  # (B, h, T, d) @ (B, h, d, T) -> (B, h, T, T)
    S = S.masked_fill(~causal_mask(x.shape[1], x.shape[1]), -torch.inf)
    return merge(S.softmax(3) @ v) @ W_o.T + b_o  # (B, h, T, T) @ (B, h, T, d) -> (B, h, T, d) -> (B, T, D) @ (D, D)


# %% [markdown]
# The module that every model of this project uses is `MultiHeadAttention`. With its weights our function must give what
# it gives.

# %%
from attention_mechanisms import MultiHeadAttention

layer = MultiHeadAttention(d_model=64, n_head=4)
x = torch.randn(2, 10, 64)  # (B, T, D)
toy = multi_head(x, layer.c_attn.weight, layer.c_attn.bias, layer.c_proj.weight, layer.c_proj.bias, n_head=4)
torch.testing.assert_close(toy, layer(x))
print("raw tensors = MultiHeadAttention:", tuple(toy.shape))

# %% [markdown]
# How many parameters? Four matrices D × D and four biases of D, however many heads there are: heads only cut.

# %%
by_hand = 4 * 64 * 64 + 4 * 64
for n_head in (1, 4, 16):
    made = MultiHeadAttention(64, n_head)
    print(f"{n_head:2} heads: {sum(p.numel() for p in made.parameters()):,} parameters, by hand {by_hand:,}")

# %% [markdown]
# **Dropout** takes one line. In training some weights are set to zero at random, and the others are raised so that the
# mean stays. The rows then no longer sum to 1, and that is meant so.

# %%
row = torch.full((1, 8), 1 / 8)
dropped = torch.stack([F.dropout(row[0], 0.5) for _ in range(5000)])  # (5000, 8)
print("values that occur:", dropped.unique().tolist(), "| mean / before:", round(dropped.mean().item() * 8, 1))

# %% [markdown]
# ## 7. Five witnesses
#
# Five ways to the same numbers: ours; `plain_attention`, which is the formula as the project keeps it;
# `fast_attention`; PyTorch's function; and PyTorch's own layer, `torch.nn.MultiheadAttention`, with copied weights. The
# first three functions, on the heads of our layer:

# %%
q, k, v = layer.project(x)  # each (B, h, T, d) = (2, 4, 10, 16)
formula, weights = plain_attention(q, k, v, causal_mask(10, 10))  # (2, 4, 10, 16), (2, 4, 10, 10)
torch.testing.assert_close(fast_attention(q, k, v, causal=True), formula)
torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v, is_causal=True), formula)
torch.testing.assert_close(layer.c_proj(merge(formula)), toy)  # (B, h, T, d) -> (B, T, D) @ (D, D)
print("three functions, one result; weights", tuple(weights.shape), "sum to", round(weights.sum(3).mean().item(), 3))

# %% [markdown]
# Then PyTorch's layer. It was written without a thought of ours, so it is the strongest witness. One thing to know: its
# `attn_mask` is True where a query may **not** look. In `scaled_dot_product_attention` True means that it may.

# %%
witness = torch.nn.MultiheadAttention(64, 4, batch_first=True)
pairs = {"in_proj_weight": layer.c_attn.weight, "in_proj_bias": layer.c_attn.bias}
pairs |= {"out_proj.weight": layer.c_proj.weight, "out_proj.bias": layer.c_proj.bias}
witness.load_state_dict(pairs)
y, their_weights = witness(x, x, x, attn_mask=~causal_mask(10, 10), average_attn_weights=False)
torch.testing.assert_close(y, layer(x))
torch.testing.assert_close(their_weights, layer.reference(x)[1])
print("torch.nn.MultiheadAttention: same outputs, same weights of all", their_weights.shape[1], "heads")

# %% [markdown]
# Equal outputs are not yet equal learning. The gradients, too:

# %%
ours, theirs = layer.c_attn.weight, witness.in_proj_weight
(our_slope,) = torch.autograd.grad(layer(x).square().mean(), ours)  # (3 D, D)
(their_slope,) = torch.autograd.grad(witness(x, x, x, attn_mask=~causal_mask(10, 10))[0].square().mean(), theirs)
torch.testing.assert_close(our_slope, their_slope)
print("gradients agree on", our_slope.numel(), "weights")

# %% [markdown]
# ## 8. What it costs
#
# Each token looks at all tokens, so T tokens make T² scores. For one layer and T tokens, counting a multiplication and
# an addition each as one operation:
#
# $$\text{FLOPs}=\underbrace{8\,T D^2}_{\text{four matrices}}+\underbrace{4\,T^2 D}_{QK^\top\text{ and }AV},
# \qquad\text{bytes of the weights}=h\,T^2\cdot 4$$
#
# PyTorch can count the operations as they happen. `reference` is the module by its plain formula, and `cost` is the
# module's own account.

# %%
from torch.utils.flop_counter import FlopCounterMode

for T in (16, 64, 256):
    with FlopCounterMode(display=False) as counter:
        layer.reference(torch.randn(1, T, 64))
    formula = 8 * T * 64**2 + 4 * T**2 * 64
    assert formula == T * layer.cost(T).flops_per_token
    print(f"T = {T:3}: counted {counter.get_total_flops():>10,}, formula {formula:>10,}")

# %% [markdown]
# The formula counts the whole square: the plain version computes the future, and then forbids it.
#
# Memory next. To learn, a function has to keep what its gradient will need. PyTorch lets us listen to what is kept:


# %%
def largest_kept(function, T, n_head=4, d=16):
    sizes = []
    q, k, v = (torch.randn(1, n_head, T, d, requires_grad=True) for _ in range(3))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
        function(q, k, v)
    return max(sizes)


functions = {
    "plain_attention": lambda q, k, v: plain_attention(q, k, v, causal_mask(q.shape[2], q.shape[2]))[0],
    "fast_attention": lambda q, k, v: fast_attention(q, k, v, causal=True),
}

# %% [markdown]
# **Predict before you run.** From T = 512 to T = 1,024, by how much does the largest tensor grow that the plain formula
# keeps? And the largest one of the fast path?

# %%
lengths = [64, 128, 256, 512, 1024]
kept = {name: [largest_kept(function, T) for T in lengths] for name, function in functions.items()}
assert kept["plain_attention"] == [4 * T**2 * 4 for T in lengths]
for name, sizes in kept.items():
    print(f"{name:15}", *(f"{size:>10,}" for size in sizes))

# %% [markdown]
# Four times as much against twice as much. The plain formula keeps h · T² · 4 bytes to the byte. The fast path keeps no
# square: its largest tensor has the size of q, h · T · d · 4 bytes. How can a softmax be computed without its row of
# scores? In pieces, with a running sum that is mended along the way (Dao et al. 2022, *FlashAttention*). Exercise E
# lets you do it.

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.loglog(lengths, [4 * T**2 * 4 for T in lengths], ":", color="0.4", label="h T² · 4")
axes.loglog(lengths, [4 * T * 16 * 4 for T in lengths], "--", color="0.4", label="h T d · 4")
axes.loglog(lengths, kept["plain_attention"], "ko", markersize=5, label="plain, measured")
axes.loglog(lengths, kept["fast_attention"], "ks", markersize=5, fillstyle="none", label="fast, measured")
axes.set(xlabel="T (tokens)", ylabel="largest tensor kept (bytes)", title="4 heads of 16 numbers")
axes.set_xticks(lengths, [f"{T:,}" for T in lengths])
axes.minorticks_off()
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# In a model this is no trifle. GPT-2's smallest has 12 layers of 12 heads and T = 1,024. By the formula, its weights of
# one text in float32:

# %%
print(f"{12 * 12 * 1024**2 * 4 / 1e6:,.0f} MB")

# %% [markdown]
# And time. Three contestants: Python's loops (with the causal mask), the three products, the fused function. First the
# loops, which are again the ones that we trust.


# %%
def causal_with_loops(q, k, v):
    rows = [attend_with_loops(q[i : i + 1], k[: i + 1], v[: i + 1]) for i in range(len(q))]  # T of (1, d)
    return torch.cat(rows)  # (T, d)


q, k, v = torch.randn(3, 1, 1, 128, 16)  # each (B, h, T, d) = (1, 1, 128, 16)
triangle = causal_mask(128, 128)
torch.testing.assert_close(causal_with_loops(q[0, 0], k[0, 0], v[0, 0]), plain_attention(q, k, v, triangle)[0][0, 0])
torch.testing.assert_close(fast_attention(q, k, v, causal=True), plain_attention(q, k, v, triangle)[0])
print("three ways, one result")

# %% [markdown]
# Medians of turns taken one after another. These numbers are of the machine that ran this notebook last. Yours will
# differ.

# %% tags=["volatile"]
from utils.benchmarking import median, time_by_turns

contestants = {
    "loops": lambda: causal_with_loops(q[0, 0], k[0, 0], v[0, 0]),
    "products": lambda: plain_attention(q, k, v, triangle),
    "fused": lambda: fast_attention(q, k, v, causal=True),
}
took = median(time_by_turns(contestants, repeats=5))
for name, seconds in took.items():
    print(f"{name:8} {seconds * 1e6:9,.0f} µs, {took['loops'] / seconds:7,.0f} times as fast as the loops")

# %% [markdown]
# Both leave the loops far behind. How far apart are the two as T grows? Four heads of 16 numbers, forward only.

# %% tags=["volatile"]
from functools import partial

speeds = {}
for T in (128, 256, 512, 1024, 2048):
    qkv = torch.randn(3, 1, 4, T, 16)  # q, k and v: each (1, 4, T, 16)
    speeds[T] = median(time_by_turns({name: partial(f, *qkv) for name, f in functions.items()}, repeats=5))
    plain, fast = speeds[T].values()
    print(f"T = {T:5,}: plain {plain * 1e3:7.2f} ms, fast {fast * 1e3:6.2f} ms, {plain / fast:.1f} times")

# %% [markdown]
# The dotted line has the slope of T². Hold both against it:

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for name, style in (("plain_attention", "k-o"), ("fast_attention", "k--s")):
    axes.loglog(list(speeds), [speeds[T][name] * 1e3 for T in speeds], style, markersize=4, label=name)
last = speeds[2048]["plain_attention"] * 1e3
axes.loglog(list(speeds), [last * (T / 2048) ** 2 for T in speeds], ":", color="0.4", label="slope of T²")
axes.set(xlabel="T (tokens)", ylabel="time (ms)", title="4 heads of 16 numbers, forward")
axes.set_xticks(list(speeds), [f"{T:,}" for T in speeds])
axes.minorticks_off()
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 9. Attention does not know where anything stands
#
# Back to the six cards. `b1` came before `b5`. A reader would say that the later one counts.
#
# **Predict before you run.** We put the five cards into another order, so that `b5` comes first. What does `?b` gather
# now?

# %%
order = [4, 2, 0, 3, 1, 5]  # b5 c3 a4 a2 b1 ?b
Q_new, K_new, V_new = Q[order], K[order], V[order]  # (6, 4), (6, 4), (6, 1)
print([text[i] for i in order], "->", round(attend(Q_new, K_new, V_new)[5].item(), 2))
print(text, "->", round(attend(Q, K, V)[5].item(), 2))

# %% [markdown]
# The same. A sum does not know the order of its parts. To a layer of attention, the tokens before are a *set*. That
# holds for the trained module as for the toy: shuffle what comes before the last token, and its output stays.

# %%
shuffled = torch.cat([torch.randperm(9), torch.tensor([9])])
torch.testing.assert_close(layer(x[:, shuffled])[:, 9], layer(x)[:, 9])  # (B, D) each
print("another order, the same output for the last token")

# %% [markdown]
# So the place has to be put into the vectors. GPT-2 adds a learned vector for each place. Llama (Touvron et al. 2023)
# turns queries and keys by an angle that grows with the place: rotary positions (Su et al. 2021, *RoFormer*). Pairs of
# numbers are turned, fast pairs and slow ones. Two vectors that are turned alike keep their product, so the score
# depends on the *distance* alone. Here it is for a query and a key that are equal:

# %%
from attention_mechanisms import Rotary

rotary = Rotary(dim=16, max_length=200)
same = torch.ones(64, 16) / 4  # (64, 16): one vector of length 1 at 64 places
by_distance = rotary(same, 0)[0] @ rotary(same, 0).T  # (16,) @ (16, 64) -> (64,)
later = rotary(same, 100)[0] @ rotary(same, 100).T  # the same places, all of them 100 further on
torch.testing.assert_close(by_distance, later, rtol=0, atol=1e-4)
print("distance 0, 1, 8, 32:", [round(by_distance[p].item(), 2) for p in (0, 1, 8, 32)])

# %% [markdown]
# A key agrees best with a query of its own place, and less with one further away, in waves.

# %%
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
axes.plot(by_distance, "k-o", markersize=3)
axes.axhline(1, color="0.4", linestyle=":", label="without positions")
axes.set(xlabel="distance of query and key (tokens)", ylabel="q · k (length 1 each)", ylim=(-0.3, 1.15))
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# With rotary positions the same shuffle is noticed. The weights are copied, so nothing else is new.

# %%
turned = MultiHeadAttention(d_model=64, n_head=4, rotary=rotary)
turned.load_state_dict(layer.state_dict())
print("order noticed:", not torch.allclose(turned(x[:, shuffled])[:, 9], turned(x)[:, 9], atol=1e-4))

# %% [markdown]
# (A second layer without positions would notice, too: the tokens in between saw different sets, because of the mask.
# Section 10 has one layer only.)

# %%
print("order noticed by two layers:", not torch.allclose(layer(layer(x[:, shuffled]))[:, 9], layer(layer(x))[:, 9]))

# %% [markdown]
# ## 10. Let it learn
#
# The matrices of section 3 were picked by hand. Can they be learned? A task like our toy, larger: eight cards with the
# letters a to h in any order, each with a random digit, then a question. The next token is the answer. All in all V =
# 98 ids: 80 cards, 8 questions, 10 answers.

# %%
names = [f"{letter}{digit}" for letter in "abcdefgh" for digit in range(10)]  # ids 0 to 79
names += [f"?{letter}" for letter in "abcdefgh"] + [f"={digit}" for digit in range(10)]  # 80 to 87, 88 to 97


def with_question(letters, digits):
    rows = torch.arange(len(letters))
    asked = letters[rows, torch.randint(8, rows.shape)]  # (B,)
    places = torch.arange(1, 9) * (letters == asked[:, None])  # (B, 8): 0 where another letter stands
    ids = torch.cat([letters * 10 + digits, 80 + asked[:, None]], dim=1)  # (B, 9)
    return ids, 88 + digits[rows, places.argmax(1)]  # if a letter comes twice, its last card counts


# %% [markdown]
# One text, to see that the question and the answer fit.


# %%
def lookup(n):
    letters = torch.rand(n, 8).argsort(dim=1)  # (B, 8): each letter once, in any order
    return with_question(letters, torch.randint(10, (n, 8)))


ids, answers = lookup(1)
print(*(names[i] for i in ids[0]), "->", names[answers[0]])

# %% [markdown]
# What can the bigram do? It sees the question and nothing else.
#
# **Predict before you run.** Ten digits, all equally frequent. What is the bigram's best loss?

# %%
ids, answers = lookup(40_000)
counts = torch.bincount(ids[:, -1] * 98 + answers, minlength=98 * 98).view(98, 98) + 0.01  # (V, V)
log_p = (counts / counts.sum(1, keepdim=True)).log()  # (V, V): row = the id that is read, column = what follows
ids, answers = lookup(10_000)
print(f"bigram {-log_p[ids[:, -1], answers].mean():.2f}, ln 10 = {math.log(10):.2f}")

# %% [markdown]
# It has learned that a digit comes, and can do no more. Now the smallest model with attention: a vector for each id,
# one layer of two heads, a matrix from vectors to ids. No positions, for the letters are found wherever they stand.


# %%
class OneLayer(torch.nn.Module):
    def __init__(self, rotary=None):
        super().__init__()
        self.embedding = torch.nn.Embedding(98, 64)
        self.attention = MultiHeadAttention(64, n_head=2, rotary=rotary)
        self.to_ids = torch.nn.Linear(64, 98)
        torch.nn.init.normal_(self.embedding.weight, std=0.5)
        torch.nn.init.normal_(self.to_ids.weight, std=0.02)

    def forward(self, ids):
        return self.to_ids(self.attention(self.embedding(ids)))  # (B, T) -> (B, T, 64) -> (B, T, V)


# %% [markdown]
# Three sanity numbers before any training. The parameters, counted by hand. The loss at the beginning: a model that
# knows nothing has ln V. And one batch of 32, which it must be able to learn by heart.


# %%
def train(model, make, steps, batch=128, slower=True):
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.01), []
    for step in range(steps):
        if slower:  # large steps first, small ones at the end
            optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        ids, answers = make(batch)
        loss = F.cross_entropy(model(ids)[:, -1], answers)  # (B, V) and (B,): the last place alone is asked
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# %% [markdown]
# Here they are.

# %%
torch.manual_seed(2)
one_batch = lookup(32)
model = OneLayer()
by_heart = train(model, lambda n: one_batch, steps=60)
by_hand = 98 * 64 + (4 * 64 * 64 + 4 * 64) + (64 * 98 + 98)
print(f"parameters {sum(p.numel() for p in model.parameters()):,}, by hand {by_hand:,}")
print(f"loss at the beginning {by_heart[0]:.1f}, ln 98 = {math.log(98):.1f}")
print("one batch learned by heart:", by_heart[-1] < 0.05)

# %% [markdown]
# All in order. Now with new texts at every step, so that nothing can be learned by heart. This takes a few seconds.

# %% tags=["volatile"]
torch.manual_seed(3)
model = OneLayer()
losses = train(model, lookup, steps=200)
with torch.no_grad():
    ids, answers = lookup(2000)
    right = (model(ids)[:, -1].argmax(1) == answers).float().mean().item()
print(f"loss {losses[0]:.2f} -> {losses[-1]:.4f}; {right:.1%} of 2,000 new texts answered rightly")
assert losses[-1] < 0.1 and right > 0.97

# %% [markdown]
# From ln 98 past the bigram's ln 10 and down to nothing.

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(losses, "k-", label="one layer of attention")
axes.axhline(math.log(98), color="0.4", linestyle=":", label="ln 98: knows nothing")
axes.axhline(math.log(10), color="0.4", linestyle="--", label="ln 10: the best bigram")
axes.set(xlabel="step (number)", ylabel="loss (nats an answer)", ylim=(-0.2, 5))
axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.88))
plt.show()

# %% [markdown]
# How does it do it? `reference` gives the weights of all heads, and `attention_maps.py` draws them. One text, and the
# head that looks hardest at the right card:

# %% tags=["volatile"]
from attention_mechanisms.attention_maps import one_head

ids, answers = lookup(1)
weights = model.attention.reference(model.embedding(ids))[1][0]  # (h, T, T)
card = (ids[0, :8] // 10 == ids[0, 8] - 80).nonzero().item()  # the place of the card that is asked for
head = weights[:, 8, card].argmax().item()
print(f"asked {names[ids[0, 8]]}; weight on {names[ids[0, card]]} in each head:", weights[:, 8, card].detach())

# %% [markdown]
# The last row is the one to read.

# %%
one_head(weights[head], [names[i] for i in ids[0]], "a head that was never told what a letter is")

# %% [markdown]
# The question looks at its card. The rows above the last are whatever they happen to be, because nobody ever asked for
# their outputs.
#
# Nobody told the model that `c0` to `c9` have a letter in common: ids are numbers without any meaning. So the gradient
# must have made keys that agree. Look at them: the scores of all 8 questions with all 80 cards, in the same head.

# %% tags=["volatile"]
q, k, _ = model.attention.project(model.embedding(torch.arange(88))[None])  # each (1, 2, 88, 32)
S = (q[0, head, 80:] @ k[0, head, :80].T / 32**0.5).detach()  # (8, 32) @ (32, 80) -> (8, 80)
best = S.topk(10).indices // 10  # (8, 10): the letters of the ten cards that each question likes best
print(f"{(best == torch.arange(8)[:, None]).sum()} of the 80 liked best have the letter that was asked for")

# %% [markdown]
# Blocks of ten along the diagonal: the letters, found again, some more clearly than others. And there is a second
# head, which may see what this one misses.

# %%
figure, axes = plt.subplots(figsize=(7, 2.2), layout="constrained")
picture = axes.imshow(S, cmap="Greys", aspect="auto")
axes.set(xticks=range(0, 80, 10), xticklabels=names[:80:10], yticks=range(8), yticklabels=names[80:88])
axes.set(xlabel="card looked at (ten a letter)", ylabel="question")
figure.colorbar(picture, ax=axes, label="score")
plt.show()

# %% [markdown]
# ### Where it fails
#
# Now let letters come more than once: eight cards, four letters, and the *last* card of a letter counts. What is the
# best that a layer without positions can do? It sees a set of cards. If the letter stands on three of them, it cannot
# know which came last. The best guess is the share of each digit among them, and the loss is the entropy of these
# shares. That can be computed without any model:


# %%
def rewritten(n):
    return with_question(torch.randint(4, (n, 8)), torch.randint(10, (n, 8)))


torch.manual_seed(4)
ids, answers = rewritten(40_000)
hits = (ids[:, :8] // 10 == ids[:, 8:] - 80).float()  # (B, 8)
digits = F.one_hot(ids[:, :8] % 10, 10).float()  # (B, 8, 10)
shares = (hits[:, None] @ digits).squeeze(1) / hits.sum(1, keepdim=True)  # (B, 1, 8) @ (B, 8, 10) -> (B, 10)
floor = torch.special.entr(shares).sum(1).mean().item()
print(f"best without positions {floor:.2f}, best with positions 0.00")

# %% [markdown]
# Our layer should stay above even that. What it can gather are the shares, and the logits are a multiple of them. The
# best guess would need their logarithms. Which multiple is the best, and how good is it?

# %%
fits = {c: F.cross_entropy(c * shares, answers - 88).item() for c in range(1, 21)}
linear = min(fits.values())
print(f"logits = c times the shares: {linear:.2f} at best")

# %% [markdown]
# **Predict before you run.** Two models, the same but for rotary positions. Where does each end?

# %% tags=["volatile"]
curves = {}
for name, positions in (("without positions", None), ("with rotary positions", Rotary(32, 16))):
    torch.manual_seed(5)
    curves[name] = train(OneLayer(positions), rewritten, steps=400)
    print(f"{name:21} mean loss of the last 50 steps {sum(curves[name][-50:]) / 50:.2f}")
without, with_rotary = (sum(curve[-50:]) / 50 for curve in curves.values())
assert without > floor > 0.4 > with_rotary

# %% [markdown]
# Without positions, the loss comes down to what we computed for multiples of the shares, and stays there. The answer is
# not in what the layer sees. With positions it falls far below.
#
# The figure has both limits.

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for (name, curve), style in zip(curves.items(), ("-", "--")):
    smooth = torch.tensor(curve).unfold(0, 10, 1).mean(1)  # (steps - 9, 10) -> (steps - 9,)
    axes.plot(range(9, 400), smooth, style, color="black", label=name)
axes.axhline(linear, color="0.4", linestyle="-.", label="multiples of the shares, at best")
axes.axhline(floor, color="0.4", linestyle=":", label="any guess without positions, at best")
axes.set(xlabel="step (number)", ylabel="loss, mean of 10 steps (nats)", ylim=(-0.2, 4))
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# One thing more did not work at first. `train` takes smaller and smaller steps. With a step size that stays the same to
# the end, the loss without positions came to rest higher. It looked like a limit of the layer, and was one of the
# training. Knowing the limit from arithmetic told the two apart.

# %% tags=["volatile"]
torch.manual_seed(5)
restless = train(OneLayer(), rewritten, steps=400, slower=False)
print(f"last 50 steps: the same step size {sum(restless[-50:]) / 50:.2f}, smaller and smaller {without:.2f}")

# %% [markdown]
# ## 11. Exercises
#
# Write the body in place of the dots and run the cell. The check says what is missing.

# %%
from attention_mechanisms.exercises.ex01 import (
    attempt,
    check_attend_in_blocks,
    check_attend_one,
    check_attention_flops,
    check_document_mask,
    check_tokens_looked_at,
)

# %% [markdown]
# **A. One query** (easy, 10 minutes) `q` is (d,), `k` is (keys, d), `v` is (keys, d_value), all tensors. Return what
# the query gathers, (d_value,). No mask: it may see every key.


# %%
def attend_one(q, k, v): ...


attempt(check_attend_one, attend_one)

# %% [markdown]
# **B. Documents that do not see each other** (easy, 10 minutes) Several documents lie in one row. `document_of` is
# (T,), the number of each token's document. Return the mask, bool (T, T), True where a query may look: not at the
# future, and not at another document.


# %%
def document_mask(document_of): ...


attempt(check_document_mask, document_mask)

# %% [markdown]
# **C. What does a layer cost?** (easy, 5 minutes) The operations of one multi-head layer on a whole text, projections
# and all, as in section 8. A multiplication and an addition are two.


# %%
def attention_flops(tokens, d_model): ...


attempt(check_attention_flops, attention_flops)

# %% [markdown]
# **D. How many tokens does it look at?** (medium, 15 minutes) An attention map in one number a row: e to the power of
# the row's entropy in nats. A row that looks at one token has 1, one that looks at n alike has n. `weights` is (…, T,
# T), and some weights are 0. Return (…, T).


# %%
def tokens_looked_at(weights): ...


attempt(check_tokens_looked_at, tokens_looked_at)

# %% [markdown]
# **E. Attention without the row of scores** (hard, 40 minutes) As A, but take the keys `block` at a time and never hold
# more scores than that. Keep three things: the largest score so far, the sum of the powers so far, the sum of powers
# times values so far. When a larger score comes, the old sums were made with the wrong maximum: mend them by a factor.
# This is how the fused function needs no T². Scores can be large: e to the power of 1,000 is too much for any float.


# %%
def attend_in_blocks(q, k, v, block): ...


attempt(check_attend_in_blocks, attend_in_blocks)

# %% [markdown]
# ### Solutions
#
# <details><summary>Solution: `attend_one`</summary>
#
# ```python
# def attend_one(q, k, v):
#     scores = k @ q / len(q) ** 0.5  # (keys, d) @ (d,) -> (keys,)
#     return scores.softmax(0) @ v  # (keys,) @ (keys, d_value) -> (d_value,)
# ```
# </details>
#
# <details><summary>Solution: `document_mask`</summary>
#
# ```python
# def document_mask(document_of):
#     same = document_of[:, None] == document_of[None, :]  # (T, 1), (1, T) -> (T, T)
#     return same.tril()
# ```
# </details>
#
# <details><summary>Solution: `attention_flops`</summary>
#
# ```python
# def attention_flops(tokens, d_model):
#     return 8 * tokens * d_model**2 + 4 * tokens**2 * d_model
# ```
# </details>
#
# <details><summary>Solution: `tokens_looked_at`</summary>
#
# ```python
# import torch
#
#
# def tokens_looked_at(weights):
#     entropy = torch.special.entr(weights).sum(-1)  # entr(a) = -a ln a, and 0 at 0; (…, T, T) -> (…, T)
#     return entropy.exp()
# ```
# </details>
#
# <details><summary>Solution: `attend_in_blocks`</summary>
#
# ```python
# import torch
#
#
# def attend_in_blocks(q, k, v, block):
#     largest, total, gathered = torch.tensor(-torch.inf), torch.tensor(0.0), torch.zeros(v.shape[1])
#     for start in range(0, len(k), block):
#         scores = k[start : start + block] @ q / len(q) ** 0.5  # (block, d) @ (d,) -> (block,)
#         new_largest = torch.maximum(largest, scores.max())
#         mend = (largest - new_largest).exp()  # 0 in the first block, 1 where the maximum stays
#         powers = (scores - new_largest).exp()  # (block,), none above 1
#         total = total * mend + powers.sum()
#         gathered = gathered * mend + powers @ v[start : start + block]  # (block,) @ (block, d_value) -> (d_value,)
#         largest = new_largest
#     return gathered / total
# ```
# </details>

# %% [markdown]
# ## 12. What you take along
#
# **Recap**
#
# - A token asks (q). Each token answers with what it can be found by (k) and what it has to say (v).
# - Attention is a mean of the values, by a softmax of the scores q · k / √d.
# - Without √d, scores have variance d. The softmax of a wide head is one-hot from the start, and its slope is gone.
# - The future is masked by −∞ before the softmax. Zero after it leaks through the denominator.
# - Heads are slices of the vector. `view`, then `transpose`: (B, T, D) → (B, T, h, d) → (B, h, T, d).
# - One layer takes 8 T D² + 4 T² D operations. The plain formula keeps h T² weights, the fused one keeps none.
# - Attention sees a set. Where order matters, positions have to be put in.
# - One layer, 29,282 parameters and a few seconds do what no bigram can.
#
# **Pitfalls**, each seen above: `is_causal=True` with fewer queries than keys (top left, no error); a mask after the
# softmax (a leak); a query that may see nobody (0 / 0); `view` without `transpose` (tokens mixed); a boolean mask that
# means *forbidden* in `torch.nn.MultiheadAttention` and *allowed* in `scaled_dot_product_attention`; values that are
# plain numbers (they blur); order that matters, and no positions.
#
# ### Reading guide
#
# `attend.py` holds the formula. Below it is as the project keeps it. New to you is one thing, `folded`: keys may have
# fewer heads than queries, which is the subject of notebook 03. With as many heads the two shapes are the same. That it
# gives what our raw tensors give was asserted in sections 7 and 8.

# %%
import inspect

print(inspect.getsource(plain_attention).split('"""')[2])

# %% [markdown]
# In `multi_head.py`, read `project` next. It is our `split`, for queries, keys and values at once. The three `if`s are
# for what a model may add: more to the values, one length for queries and keys, positions. Here all three are off.

# %%
print(inspect.getsource(MultiHeadAttention.project))

# %% [markdown]
# Then `forward`: project, attend, merge. It has an argument `cache`, which is for the next notebook. With `mask`, a
# text may be kept from seeing another that was packed into the same row (`document_mask`). In `fast_attention` you will
# meet the mended bug of section 5 again, in the line with `tokens < keys`. The tests of this folder hold every version
# to the plain one, in outputs and gradients.
#
# **CUDA, Apple's MPS, Windows.** This notebook ran on a CPU under Linux, and nothing in it was run elsewhere. Tensors
# and layers move with `.to(device)`; masks have to be made there, too, and `causal_mask` takes a `device`. On CUDA,
# `fast_attention` names the bottom-right alignment (`causal_lower_right`) in place of writing the mask out, so that
# PyTorch may choose a fused kernel for it. That branch, near the end of `fast_attention`, did not run here. Times
# differ everywhere. Sums taken in another order differ in their last digits, so compare with a tolerance, as we did.
#
# **The next question.** A model writes one token at a time. With each new token it would compute all the queries, keys
# and values of the text again, although those of the old tokens cannot have changed: nobody saw the future. What if
# they were kept? Notebook 02, `02_the_kv_cache`, keeps them, and counts what that saves and what it costs.
