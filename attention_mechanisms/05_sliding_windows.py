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
# # Sliding windows
#
# **Must everything be remembered?**
#
# The three notebooks before this one made what is kept of a token smaller: no work twice, fewer heads, one latent
# vector. But all of them keep *every* token. A text twice as long is a cache twice as large, and reading it takes four
# times the scores. Here a token looks back at the last W tokens and no further. What does that save, what does it cost,
# and what breaks?
#
# | | |
# |---|---|
# | you know | attention and its mask (notebook 01), the KV cache and chunks (02), grouped heads (03) |
# | you need | about 75 minutes, exercises apart; any laptop: no GPU, no network, a gigabyte of free memory |
# | files | `sliding_window.py`, `masks.py`, and `RollingCache` in `kv_cache.py`, of this folder |
#
# The sources: Beltagy et al. 2020, *Longformer*, section 3.1 (the window); Jiang et al. 2023, *Mistral 7B* (the rolling
# cache); Xiao et al. 2024, *Efficient Streaming Language Models with Attention Sinks* (section 9).
#
# | letter | meaning | in the code |
# |---|---|---|
# | T | tokens in the text | `tokens` |
# | W | keys that a query sees, its own among them | `window` |
# | p, j | position of a query, of a key | `positions` |
# | n | layers above one another | `len(layers)` |
# | B | queries computed together, a block | `_BLOCK` |
# | h, d | heads, numbers in a head | `n_head`, `head_dim` |
# | s | tokens at the beginning that are always seen, the sinks | `n_sink` |

# %% [markdown]
# First what we need. All of it is on your machine already.

# %%
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

from attention_mechanisms import KVCache, MultiHeadAttention, RollingCache, Rotary, SlidingWindowAttention
from attention_mechanisms.attend import plain_attention
from attention_mechanisms.masks import visible

# %% [markdown]
# ## 1. Eight tokens, by hand
#
# Eight tokens, a window of W = 3. The token at position p sees itself and the two before it: the keys j with
# p - W < j ≤ p. Draw it with a 1 for *sees*:

# %%
T, W = 8, 3
by_hand = [[int(p - W < j <= p) for j in range(T)] for p in range(T)]
for row in by_hand:
    print(*row)

# %% [markdown]
# A band along the diagonal. The project's own is `visible`, a function of two rows of positions. It must draw the same.

# %%
positions = torch.arange(T)
mask = visible(positions, positions, window=W)  # (1, 1, T, T): the same for all texts and heads
assert mask[0, 0].int().tolist() == by_hand
print("visible = by hand;", int(mask.sum()), "pairs of", T * (T + 1) // 2, "that may look under a causal mask")

# %% [markdown]
# How many pairs is that for any T? Every query sees W keys, but the first W - 1 see fewer. They lack W - 1, W - 2, … 1
# of them, together W (W - 1) / 2:
#
# $$\text{pairs} = T\,W - \frac{W(W-1)}{2} \qquad\text{against}\qquad \frac{T(T+1)}{2}$$

# %%
for tokens in range(1, 30):
    for window in range(1, tokens + 1):
        p = torch.arange(tokens)
        assert visible(p, p, window).sum() == tokens * window - window * (window - 1) // 2
print("8 · 3 - 3 =", 8 * 3 - 3, "and the formula holds for all T < 30, W ≤ T")

# %% [markdown]
# Now let the eight tokens attend. All queries are zero, so all scores are equal, and each token takes the plain mean of
# what it sees. The values are numbers that you can add in your head.
#
# **Predict before you run.** What does the last token gather? And the first?

# %%
v = torch.tensor([3.0, 6, 0, 9, 3, 3, 12, 6]).view(1, 1, T, 1)  # (batch, heads, T, d)
zero = torch.zeros(1, 1, T, 1)  # (batch, heads, T, d): queries and keys
y, weights = plain_attention(zero, zero, v, mask)  # (1, 1, T, 1) and (1, 1, T, T)
print([round(number, 1) for number in y.flatten().tolist()])

# %% [markdown]
# The last: (3 + 12 + 6) / 3 = 7. The first sees itself alone, 3. The second has two, (3 + 6) / 2 = 4.5.
#
# ## 2. How far does news travel?
#
# The last token knows nothing of what is more than two places back. But its neighbours know a little more, and in the
# layer above it looks at *them*. Two layers of means are the product of the two tables of weights.
#
# **Predict before you run.** After two layers, what share of the last token comes from each of the eight? Every entry
# is a number of ninths.

# %%
A = weights[0, 0]  # (T, T): row p says where token p looks
two = A @ A  # (T, T) @ (T, T) -> (T, T)
print([round(9 * share) for share in two[-1].tolist()], "ninths")

# %% [markdown]
# 1 2 3 2 1: there is one way to get four places back (two steps of two), and there are three ways to get two places
# back. Four places, from two layers of W - 1 = 2. One more layer adds W - 1 more:
#
# $$\text{reach after } n \text{ layers} = n\,(W-1) \text{ tokens}$$
#
# Is that so for real layers, with weights of their own, heads and residual sums? Ask the gradient. Where the output at
# the last place does not depend on a token, its gradient is zero, and exactly so.

# %%
torch.manual_seed(0)
T, W = 16, 3
layers = [SlidingWindowAttention(d_model=8, n_head=2, window=W) for _ in range(5)]


def gradient_at(n):
    x = torch.randn(1, T, 8, requires_grad=True)  # (batch, T, d_model)
    y = x
    for layer in layers[:n]:
        y = y + layer(y)  # (1, T, 8)
    (gradient,) = torch.autograd.grad(y[0, -1].sum(), x)  # (1, T, 8)
    return gradient[0].norm(dim=1)  # (T,): one number a token


# %% [markdown]
# **Predict before you run.** How many tokens does the last one depend on with 1, 2, 3, 4, 5 layers, itself among them?

# %%
influence = torch.stack([gradient_at(n) for n in range(1, 6)])  # (5, T)
for n, row in enumerate(influence, 1):
    seen = row.nonzero().flatten().tolist()
    assert seen == list(range(T - 1 - n * (W - 1), T))
    print(f"{n} layers: {len(seen):2} tokens, as far back as {T - 1 - seen[0]:2} = {n} · {W - 1}")

# %% [markdown]
# Exact, to the token. The second witness is a poke: change one token, look which outputs move. Forward, the same reach.

# %%
x = torch.randn(1, T, 8)
poked = x.clone()
poked[0, 4] += 1
for n in (1, 2, 3):
    a, b = x, poked
    for layer in layers[:n]:
        a, b = a + layer(a), b + layer(b)
    print(f"{n} layers: token 4 moves the outputs {(a != b).any(dim=2)[0].nonzero().flatten().tolist()}")

# %% [markdown]
# The gradients as a picture: each row is a depth, black is the strongest influence on the last token, and what has a
# cross is exactly zero. The scale is logarithmic.

# %%
figure, axes = plt.subplots(figsize=(6.4, 3), layout="constrained")
picture = axes.imshow(influence.clamp(min=1e-6).log10(), cmap="Greys", vmin=-5, vmax=0.5, aspect="auto")
layer_of, token_of = (influence == 0).nonzero(as_tuple=True)
axes.plot(token_of, layer_of, "kx", markersize=5)
axes.set(xlabel="token that is asked about (position)", ylabel="layers (number)", xticks=range(0, T, 3))
axes.set_yticks(range(5), range(1, 6))
figure.colorbar(picture, label="gradient norm (log10)")
plt.show()

# %% [markdown]
# So a stack of windows *can* bring news from n (W - 1) tokens back. But look at the shades: the furthest token that is
# reached at all has little influence. A rumour that passed through five mouths is faint. These layers are untrained;
# section 10 trains some and asks again.

# %%
far = [influence[n - 1, T - 1 - n * (W - 1)].item() for n in range(1, 6)]
print("the furthest token that is reached:", f"{far[0]:.1f} with one layer, {far[-1]:.5f} with five")
assert far[-1] < far[0] / 20

# %% [markdown]
# ## 3. From T² to T · W
#
# A mask alone saves nothing. Here is the version that one writes first: all T² scores, and then most of them are thrown
# away.


# %%
def whole(q, k, v, window):
    p = torch.arange(q.shape[2])
    return plain_attention(q, k, v, visible(p, p, window))[0]  # scores: (batch, h, T, T)


# %% [markdown]
# To save, what is not needed must not be computed. A single query needs a slice of W keys. One matrix product a query
# would be slow, so take B queries next to one another, from `begin` to `end`. The *first* of them looks furthest back,
# to begin - W + 1. The *last* needs the keys up to its own, end - 1. So the block needs the slice
#
# $$[\,\text{begin} - W + 1,\ \text{end})\qquad\text{of } B + W - 1 \text{ keys},$$
#
# cut at 0. Within that slice the mask still has two corners to take away, so it is asked for again, by position.


# %%
def in_blocks(q, k, v, window, block):
    parts = []
    for begin in range(0, q.shape[2], block):
        end, low = min(begin + block, q.shape[2]), max(begin - window + 1, 0)
        near = visible(torch.arange(begin, end), torch.arange(low, end), window)  # (1, 1, block, block + window - 1)
        y, _ = plain_attention(q[:, :, begin:end], k[:, :, low:end], v[:, :, low:end], near)
        parts.append(y)  # (batch, h, block, d)
    return torch.cat(parts, dim=2)  # (batch, h, T, d)


# %% [markdown]
# What it computes, drawn: light is what a block computes, dark is what the mask lets through. Everything white is never
# touched.

# %%
T, W, B = 24, 5, 6
computed = torch.zeros(T, T)
for begin in range(0, T, B):
    computed[begin : begin + B, max(begin - W + 1, 0) : begin + B] = 0.35
p = torch.arange(T)
computed[visible(p, p, W)[0, 0]] = 0.9
figure, axes = plt.subplots(figsize=(4, 3.6), layout="constrained")
axes.imshow(computed, cmap="Greys", vmin=0, vmax=1)
axes.set(title=f"T = {T}, W = {W}, B = {B}", xlabel="key (position)", ylabel="query (position)")
axes.set(xticks=range(0, T, B), yticks=range(0, T, B))
plt.show()

# %% [markdown]
# Equality first, for windows and blocks of many sizes: smaller than a block, larger, larger than the text.

# %%
torch.manual_seed(1)
q, k, v = (torch.randn(2, 2, 50, 8) for _ in range(3))  # (batch, h, T, d)
for window in (1, 2, 7, 16, 50, 90):
    expected = whole(q, k, v, window)
    p = torch.arange(50)
    outside = F.scaled_dot_product_attention(q, k, v, attn_mask=visible(p, p, window))  # (2, 2, 50, 8)
    torch.testing.assert_close(expected, outside)
    for block in (1, 5, 16, 64):
        torch.testing.assert_close(in_blocks(q, k, v, window, block), expected)
print("6 windows × 4 blocks: in blocks = whole mask = F.scaled_dot_product_attention")

# %% [markdown]
# And the module? `SlidingWindowAttention` in blocks of 128, against its own projections sent through our two:

# %%
attention = SlidingWindowAttention(d_model=16, n_head=2, window=20, rotary=Rotary(8, 300))
with torch.no_grad():
    x = torch.randn(1, 300, 16)  # (batch, T, d_model)
    q, k, v = attention.project(x)  # (1, 2, 300, 8) each
    for y in (whole(q, k, v, 20), in_blocks(q, k, v, 20, 128)):  # (1, 2, 300, 8)
        torch.testing.assert_close(attention(x), attention.merge(y), rtol=1e-4, atol=1e-5)
print("SlidingWindowAttention = whole mask = in blocks, 300 tokens")

# %% [markdown]
# ### The formula, and what torch counts
#
# A product of two matrices, (a, b) by (b, c), is 2abc operations. Attention has two such products, queries by keys and
# weights by values. So m queries that meet c keys in h heads of d numbers take 4 h d m c operations:
#
# $$\text{whole: } 4hd\,T^2\qquad \text{in blocks: } 4hd\sum_{\text{blocks}} B\cdot\min(\text{begin}+B,\ B+W-1)
# \ \approx\ 4hd\,T\,(B+W-1)$$
#
# `torch.utils.flop_counter` watches every matrix product and counts. It knows nothing of our formula.

# %%
from torch.utils.flop_counter import FlopCounterMode


def counted(work, *arguments):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work(*arguments)
    return counter.get_total_flops()


def formula(T, W, B, h, d):
    return 4 * h * d * sum(B * min(begin + B, B + W - 1) for begin in range(0, T, B))


# %% [markdown]
# **Predict before you run.** T doubles. By what factor do the operations of each grow?

# %%
h, d, W, B = 1, 32, 128, 128
flops = {}
for T in (512, 1024, 2048, 4096):
    q = torch.randn(1, h, T, d)  # as keys and values too: what is in them does not matter here
    flops[T] = counted(whole, q, q, q, W), counted(in_blocks, q, q, q, W, B)
    assert flops[T] == (4 * h * d * T**2, formula(T, W, B, h, d))
    print(f"T {T:5}: whole {flops[T][0] / 1e6:7.1f}, in blocks {flops[T][1] / 1e6:6.1f} million operations")

# %% [markdown]
# As the formula says, to the last operation. The whole mask grows by 4 with each doubling, the band by a little more
# than 2 (its first block is cheaper), then by 2. Note that the band is not free of waste: with B = W, a block computes
# 2W - 1 keys for a query that sees W. A smaller B wastes less and makes more calls.
#
# ### Time and memory
#
# How large is the largest tensor that is ever made? A few lines watch every operation of torch.

# %%
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.numel = max(self.numel, result.numel() if isinstance(result, torch.Tensor) else 0)
        return result


# %% [markdown]
# The scores are what grows. As a whole they are T² numbers. In a block they are B · (B + W - 1) = 128 · 255 = 32,640,
# whatever T.

# %%
for T in flops:
    q = torch.randn(1, 1, T, 8)  # narrow heads, so that it is the scores that are largest
    with torch.no_grad(), Largest() as all_scores:
        whole(q, q, q, W)
    with torch.no_grad(), Largest() as some_scores:
        in_blocks(q, q, q, W, B)
    print(f"T {T:5}: largest tensor {all_scores.numel:11,} numbers as a whole, {some_scores.numel:7,} in blocks")
    assert (all_scores.numel, some_scores.numel) == (T * T, max(B * (B + W - 1), T * 8))

# %% [markdown]
# (At 4,096 tokens the result itself, T · 8 numbers, has become larger than a block's scores.) Now the time. Three
# contestants by turns, the median of three: the whole mask, our blocks, and the module's blocks, which go through
# `F.scaled_dot_product_attention`. These numbers are of the machine that ran this notebook last.

# %% tags=["volatile"]
from utils.benchmarking import median, time_by_turns

module = SlidingWindowAttention(d_model=32, n_head=1, window=W)


def timed(q):
    runs = {
        "whole": lambda: whole(q, q, q, W),
        "blocks": lambda: in_blocks(q, q, q, W, B),
        "module": lambda: module.whole_text(q, q, q),
    }
    with torch.no_grad():
        return median(time_by_turns(runs, repeats=3))


times = {T: timed(torch.randn(1, 1, T, 32)) for T in flops}  # (batch, h, T, d)
for T in times:
    ms = {name: 1000 * seconds for name, seconds in times[T].items()}
    print(f"T {T:5}: whole {ms['whole']:7.1f} ms, in blocks {ms['blocks']:6.1f} ms, module {ms['module']:6.1f} ms")

# %% [markdown]
# What the fast way is worth at the longest text, and how both grow:

# %% tags=["volatile"]
print(f"T 4096: blocks are {times[4096]['whole'] / times[4096]['blocks']:.0f} times as fast as the whole mask;")
print(f"by operations it would be {flops[4096][0] / flops[4096][1]:.0f} times")
for name in ("whole", "blocks"):
    print(f"{name:6}: 2048 -> 4096 takes {times[4096][name] / times[2048][name]:.1f} times as long")

# %% [markdown]
# On the left operations, counted (marks) and by the formula (lines). On the right the time. All axes are logarithmic: a
# line twice as steep is a square.

# %%
lengths = list(flops)
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for i, (name, mark, line) in enumerate((("whole", "o", "-"), ("blocks", "s", "--"))):
    expected = [4 * h * d * T**2 if i == 0 else formula(T, W, B, h, d) for T in lengths]
    left.loglog(lengths, expected, line, color="black", label=f"{name}, formula")
    left.loglog(lengths, [flops[T][i] for T in lengths], mark, color="black", mfc="none", ms=8)
    right.loglog(lengths, [1000 * times[T][name] for T in lengths], line + mark, color="black", label=name)
right.loglog(lengths, [1000 * times[T]["module"] for T in lengths], ":^", color="0.4", label="module")
left.set(xlabel="T (tokens)", ylabel="work (operations)")
right.set(xlabel="T (tokens)", ylabel="time (ms)")
for axes in (left, right):
    axes.set_xticks(lengths, lengths)
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## 4. A cache that stays small
#
# While writing, a token needs the W keys up to its own, and nobody will ever ask for what lies further back. So the
# cache needs W places. Which one is free for a new token? The one whose token has just left the window. It stood W
# places back, so a ring of W slots and a remainder will do:
#
# $$\text{the token at position } p \text{ lies in slot } p \bmod W$$

# %%
ring = [None, None, None]
for p in range(8):
    ring[p % 3] = p
    print(f"after token {p}: {ring}")

# %% [markdown]
# **Predict before you run.** Eight tokens are in. In which slots are positions 5, 6 and 7? Look at the last line, then
# ask `RollingCache`, which is given each position as its key.

# %%
cache = RollingCache(batch_size=1, n_kv_head=1, max_length=100, head_dim=1, window=3)
for p in range(8):
    new = torch.full((1, 1, 1, 1), float(p))  # (batch, h, new tokens, d)
    keys, values = cache.append(new, new)
places = cache.ring_positions()
assert keys.flatten().tolist() == places.tolist() == ring
print("slots hold", places.tolist(), "- the ring by hand:", ring)

# %% [markdown]
# Over thirteen steps. A number is the position that a slot holds; grey is the slot that was written in this step.

# %%
held = torch.full((3, 13), -1)  # (slots, steps)
for step in range(13):
    held[:, step:][step % 3] = step
figure, axes = plt.subplots(figsize=(6.4, 2), layout="constrained")
for slot in range(3):
    for step in range(13):
        new = step % 3 == slot
        axes.add_patch(plt.Rectangle((step - 0.5, slot - 0.5), 1, 1, fc="0.75" if new else "1", ec="0.4"))
        axes.text(step, slot, str(held[slot, step].item()).replace("-1", ""), ha="center", va="center")
axes.set(xlabel="step (tokens read)", ylabel="slot", xlim=(-0.5, 12.5), ylim=(2.5, -0.5), yticks=range(3))
axes.set_xticks(range(13), range(1, 14))
plt.show()

# %% [markdown]
# The positions lie out of order: 6, 7, 5. Does attention mind? Its result is Σ weight · value, a sum, and the softmax
# divides by a sum. Sums have no order. And a rotary position is turned into the key before it is stored. So:

# %%
torch.manual_seed(2)
q, k, v = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8)  # one query, three keys
order = [1, 2, 0]
in_order, shuffled = plain_attention(q, k, v)[0], plain_attention(q, k[:, :, order], v[:, :, order])[0]
torch.testing.assert_close(in_order, shuffled)
print("the same result in another order")

# %% [markdown]
# What does mind is the mask, if it goes by *slots*. Two queries at positions 6 and 7, keys in slots of positions 6, 7,
# 5. By slot, as a triangle aligned at the bottom right:

# %%
from attention_mechanisms.masks import causal_mask

slots = torch.tensor([6, 7, 5])
print("by slot     ", causal_mask(2, 3).int().tolist())
print("by position ", visible(torch.tensor([6, 7]), slots, window=3)[0, 0].int().tolist())

# %% [markdown]
# By slot, token 6 would see slot 1, where token 7 lies: its own future. By position it sees 6 and 5. That is why
# `visible` takes positions and not two counts, and why `append` hands back the positions with the keys.
#
# ## 5. A bug that only chunks can see
#
# A prompt does not come token by token. It comes in chunks, and with a window the obvious code is: put the new keys
# behind the kept ones, keep the last W, attend. Read it twice: do you see the bug?


# %%
def trim_then_attend(kept_k, kept_v, q, k, v, start, window):
    k, v = torch.cat([kept_k, k], 2), torch.cat([kept_v, v], 2)  # (batch, h, kept + new, d)
    k, v = k[:, :, -window:], v[:, :, -window:]  # the window
    end = start + q.shape[2]
    seen = visible(torch.arange(start, end), torch.arange(end - k.shape[2], end), window)
    return plain_attention(q, k, v, seen)[0], k, v


# %% [markdown]
# And what feeds it: chunks of c tokens, one after the other.


# %%
def fed_in_chunks(step, q, k, v, c, window):
    kept_k, kept_v, parts = k[:, :, :0], v[:, :, :0], []
    for i in range(0, q.shape[2], c):
        new = slice(i, i + c)
        y, kept_k, kept_v = step(kept_k, kept_v, q[:, :, new], k[:, :, new], v[:, :, new], i, window)
        parts.append(y)
    return torch.cat(parts, 2)  # (batch, h, T, d)


torch.manual_seed(3)
T, W = 12, 3
q, k, v = (torch.randn(1, 1, T, 4) for _ in range(3))  # (batch, h, T, d)
right = whole(q, k, v, W)  # (1, 1, T, 4)

# %% [markdown]
# **Predict before you run.** W = 3. For which sizes of chunks is the result right?

# %%
for c in (1, 2, 3, 4, 6):
    y = fed_in_chunks(trim_then_attend, q, k, v, c, W)
    nan, wrong = y.isnan().any(3).sum().item(), (~torch.isclose(y, right)).any(3).sum().item()
    print(f"chunks of {c}: {nan} tokens are NaN, {wrong - nan} more are wrong")

# %% [markdown]
# *Seen.* Token by token, all is right: a test that writes one token at a time never finds this. With chunks longer than
# W there are NaN. With chunks of 2 or 3 there are none, every number looks fine, and tokens are wrong. That is the
# worst of the three.
#
# *Diagnosed.* Which keys does each query of a chunk see after trimming, and which should it? Here is the second chunk
# of four, positions 4 to 7. A filled square is seen, a cross was thrown away too early.

# %%
queries, all_keys = torch.arange(4, 8), torch.arange(2, 8)
should = visible(queries, all_keys, W)[0, 0]  # (4, 6)
gone = should & (all_keys < 8 - W)  # (4, 6): trimmed to the last three: 5, 6, 7
figure, axes = plt.subplots(figsize=(5, 2.6), layout="constrained")
axes.imshow((should & ~gone).float() * 0.8, cmap="Greys", vmin=0, vmax=1, extent=(1.5, 7.5, 7.5, 3.5))
row, column = gone.nonzero(as_tuple=True)
axes.plot(all_keys[column], queries[row], "kx", markersize=9)
axes.set(xlabel="key (position)", ylabel="query (position)", yticks=range(4, 8))
plt.show()

# %% [markdown]
# The keys were trimmed to the window of the *last* query. Token 7 is right. Token 6 lost key 4. Token 4 lost all three,
# its own among them, and a softmax over nothing is 0 / 0, not a number.

# %%
print("keys lost by tokens 4 to 7:", gone.sum(1).tolist())
print("softmax over nothing:", torch.tensor([-torch.inf] * 3).softmax(0).tolist())

# %% [markdown]
# *Mended.* Attend first, trim afterwards. Before the chunk, W - 1 old keys are needed: its first query sees itself and
# the W - 1 before it.


# %%
def attend_then_trim(kept_k, kept_v, q, k, v, start, window):
    k, v = torch.cat([kept_k, k], 2), torch.cat([kept_v, v], 2)  # (batch, h, kept + new, d)
    end = start + q.shape[2]
    seen = visible(torch.arange(start, end), torch.arange(end - k.shape[2], end), window)
    y, _ = plain_attention(q, k, v, seen)  # (batch, h, new, d)
    return y, k[:, :, -window:], v[:, :, -window:]


for c in range(1, 13):
    torch.testing.assert_close(fed_in_chunks(attend_then_trim, q, k, v, c, W), right)
print("chunks of 1 to 12: right")

# %% [markdown]
# `RollingCache.append` does the same: for several tokens at once it returns old keys *and* all new ones, and the ring
# keeps the last W. With chunks drawn at random, rotary positions, sinks (section 9) and grouped heads:

# %%
torch.manual_seed(4)
attention = SlidingWindowAttention(16, 4, window=7, n_sink=2, n_kv_head=2, rotary=Rotary(4, 64)).eval()
x = torch.randn(2, 40, 16)  # (batch, T, d_model)
with torch.no_grad():
    expected, _ = attention.reference(x)
    for _ in range(50):
        cuts = torch.randperm(39)[: torch.randint(1, 20, ())].sort().values + 1
        cache = attention.make_cache(batch_size=2, max_length=40)
        y = torch.cat([attention(part, cache) for part in x.tensor_split(cuts, dim=1)], dim=1)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
print("50 random ways to cut 40 tokens: all equal one pass")

# %% [markdown]
# ## 6. What the cache holds
#
# With keys and values of `d_kv` = (key/value heads) · d numbers a token:
#
# $$\text{multi-head: } 2\,d_{kv}\,T \qquad\text{window: } 2\,d_{kv}\,(\min(T, W) + s)\quad\text{numbers a layer}$$
#
# **Predict before you run.** d_model 64, float32, W = 100. How many bytes does each hold for 50, 100, 200 and 800
# tokens?

# %%
whole_layer, window_layer = MultiHeadAttention(64, 4), SlidingWindowAttention(64, 4, window=100)
sizes = {}
for T in (50, 100, 200, 800):
    sizes[T] = [layer.make_cache(batch_size=1, max_length=T).nbytes for layer in (whole_layer, window_layer)]
    assert sizes[T] == [2 * 64 * T * 4, 2 * 64 * min(T, 100) * 4]
    assert sizes[T][1] == window_layer.cost(T).cache_bytes(bytes_per_number=4)
    print(f"{T:4} tokens: multi-head {sizes[T][0]:8,} bytes, window {sizes[T][1]:7,} bytes")

# %% [markdown]
# Formula and buffers agree. Does it *stay* that way while tokens come? Feed 400 tokens, look after each, and count the
# storage of the buffers itself:

# %%
cache = window_layer.make_cache(batch_size=1, max_length=10_000)
seen = set()
with torch.no_grad():
    for _ in range(400):
        window_layer(torch.randn(1, 1, 64), cache)
        seen.add(sum(buffer.untyped_storage().nbytes() for buffer in cache.buffers))
print(cache.length, "tokens read; bytes held at any time:", seen)

# %% [markdown]
# And drawn, for caches that are made for texts of that length:

# %%
lengths = list(range(20, 801, 20))
held = [[layer.make_cache(1, T).nbytes / 1024 for T in lengths] for layer in (whole_layer, window_layer)]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(lengths, held[0], "k-", label="multi-head")
axes.plot(lengths, held[1], "k--", label="window 100")
axes.axvline(100, color="0.6", linestyle=":")
axes.set(xlabel="length of the text (tokens; dots: W)", ylabel="cache of one layer (KiB)")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# A short text needs no ring of the full size, so both lines rise together up to W. Parameters are no matter of the
# window: by hand 4 · 64² + 4 · 64, for both.

# %%
n_parameters = [sum(p.numel() for p in layer.parameters()) for layer in (whole_layer, window_layer)]
print(n_parameters, "by hand", 4 * 64**2 + 4 * 64, "by the module", window_layer.cost(800).parameters)

# %% [markdown]
# ## 7. A window as long as the text
#
# Where W ≥ T the band is the whole triangle, and nothing may differ from multi-head attention: not by rounding, not at
# all. The names of the weights are the same, so they can be copied.

# %%
torch.manual_seed(5)
multi_head = MultiHeadAttention(32, 4, rotary=Rotary(8, 64))
for window in (20, 21, 1000):
    sliding = SlidingWindowAttention(32, 4, window, rotary=Rotary(8, 64))
    sliding.load_state_dict(multi_head.state_dict())
    x = torch.randn(2, 20, 32)  # (batch, T, d_model)
    assert torch.equal(sliding(x), multi_head(x))
print("W ≥ T: equal to the last bit")

# %% [markdown]
# **Predict before you run.** And W = 19, for 20 tokens: how many of the 20 outputs differ?

# %%
sliding.window = 19
differs = ~torch.isclose(sliding(x), multi_head(x)).all(dim=2)[0]  # (T,)
print("outputs that differ:", differs.nonzero().flatten().tolist())

# %% [markdown]
# Only the last token has a key to lose: the first.
#
# ## 8. An outside witness: Mistral
#
# All of the above compared this project with itself. `transformers` has Mistral's attention, written by others. With
# the same weights, it must give the same numbers. It draws its own mask, too.

# %%
from transformers import MistralConfig
from transformers.masking_utils import create_sliding_window_causal_mask
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralRotaryEmbedding

config = MistralConfig(
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    sliding_window=5,
    rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
)
config._attn_implementation = "eager"  # the formula, step by step

# %% [markdown]
# Three matrices there are one here, in the order q, k, v. Mistral has no biases.

# %%
torch.manual_seed(6)
theirs = MistralAttention(config, layer_idx=0)
ours = SlidingWindowAttention(32, 4, window=5, n_kv_head=2, bias=False, rotary=Rotary(8, 64))
with torch.no_grad():
    ours.c_attn.weight.copy_(torch.cat([theirs.q_proj.weight, theirs.k_proj.weight, theirs.v_proj.weight]))
    ours.c_proj.weight.copy_(theirs.o_proj.weight)

# %% [markdown]
# Outputs and weights, on 21 tokens:

# %%
x = torch.randn(2, 21, 32)  # (batch, T, d_model)
with torch.no_grad():
    hidden = create_sliding_window_causal_mask(config, x, None, past_key_values=None)  # (1 or 2, 1, T, T)
    angles = MistralRotaryEmbedding(config)(x, torch.arange(21)[None])
    y_theirs, weights_theirs = theirs(x, angles, hidden)
    torch.testing.assert_close(ours(x), y_theirs)
    torch.testing.assert_close(ours.reference(x)[1], weights_theirs)
print("keys that its queries see:", (hidden[0, 0] == 0).sum(1).tolist())
print("outputs and weights agree with transformers' Mistral")

# %% [markdown]
# Does Mistral count the token itself in its window of 5? The line above says so: five keys, the query's own among them.
# Others count the keys *beside* it, as the `window_size` of the flash-attn library does by its documentation. An
# off-by-one of this kind raises no error.
#
# ## 9. Sinks: does the window break a trained model?
#
# So far a model that *has* a window. Now take one that was trained with full attention and put a window on it, to save
# its cache. Xiao et al. report that large models then break at once when the first tokens leave the window, even where
# those say nothing of use. Their reason: a softmax must give its weights to something. A head that has nothing to do
# gives them to the first tokens, the *sinks*. Can we see that here?
#
# We need a task in which a head mostly has nothing to do. Ids 2 to 31 follow one another in a fixed order, `follow`.
# One time in five comes a 1 instead, which says: *now repeat what stood before me*. So a head has work to do at a 1, to
# look one place back. Everywhere else the last id is all that one needs. Each text begins with a 0.

# %%
V, T = 32, 48
torch.manual_seed(7)
follow = torch.cat([torch.tensor([2, 2]), 2 + torch.randperm(V - 2)])  # (V,): what comes after each id


def texts(n, seed):
    g = torch.Generator().manual_seed(seed)
    ids = torch.zeros(n, T + 1, dtype=torch.long)  # (n, T + 1)
    ids[:, 1] = torch.randint(2, V, (n,), generator=g)
    for t in range(2, T + 1):
        last, before = ids[:, t - 1], ids[:, t - 2]
        usual = torch.where(torch.rand(n, generator=g) < 0.2, 1, follow[last])
        ids[:, t] = torch.where(last == 1, before, usual)
    return ids


print(texts(1, seed=0)[0, :20].tolist())

# %% [markdown]
# Everything a token needs is within two places. The best loss can be worked out by hand. After a 1 the answer is
# certain. Elsewhere a coin falls, one in five, which nobody can know:
#
# $$-0.2 \ln 0.2 - 0.8 \ln 0.8 = 0.500 \text{ nats}$$
#
# The model is a small one: embedding, attention with a window a layer (`None`: everything), a layer of thinking over
# where `mlp` says so, and the logits. Chapter 3 builds it properly.


# %%
class Tiny(nn.Module):
    def __init__(self, V, windows, d=32, n_head=1, T=T, mlp=True):
        super().__init__()
        rotary = Rotary(d // n_head, T)
        self.embed, self.head = nn.Embedding(V, d), nn.Linear(d, V, bias=False)
        self.attention = nn.ModuleList([SlidingWindowAttention(d, n_head, W, rotary=rotary) for W in windows])
        parts = [nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d)) for _ in windows]
        self.mlp = nn.ModuleList(parts if mlp else [])

    def forward(self, ids):
        x = self.embed(ids)  # (batch, T, d)
        for i, attention in enumerate(self.attention):
            x = x + attention(F.layer_norm(x, x.shape[2:]))
            if self.mlp:
                x = x + self.mlp[i](F.layer_norm(x, x.shape[2:]))
        return self.head(F.layer_norm(x, x.shape[2:]))  # (batch, T, V)


# %% [markdown]
# Training is the usual loop. A target of -100 is one that nobody asks for.


# %%
def train(model, draw, steps, lr=1e-2):
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=lr), []
    for _ in range(steps):
        ids, targets = draw()  # (batch, T) each
        loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# %% [markdown]
# Two sanity numbers before we trust it. Untrained, the loss is near ln 32 = 3.47. A little above: `nn.Linear` draws its
# weights with variance 1 / 3d, so d of them times normalised numbers give logits of variance 1/3, and normal logits of
# variance σ² cost about σ² / 2 more: 3.47 + 0.17 = 3.63. And one batch can be learned by heart, far below 0.5 even,
# because a coin that was seen to fall is no longer one.

# %% tags=["volatile"]
torch.manual_seed(8)
data, held_out = texts(1024, seed=1), texts(256, seed=2)
few = data[:4]
with torch.no_grad():
    logits = [Tiny(V, [None])(held_out[:, :-1]).flatten(0, 1) for _ in range(20)]  # (256 · T, V) each
first = [F.cross_entropy(each, held_out[:, 1:].flatten()).item() for each in logits]
print(f"by hand {math.log(V) + 1 / 6:.2f}, mean of 20 fresh models {sum(first) / 20:.2f}")
losses = train(Tiny(V, [None]), lambda: (few[:, :-1], few[:, 1:]), steps=300)
print(f"one batch by heart: {losses[0]:.2f} -> {losses[-1]:.3f}")

# %% [markdown]
# Now one layer of one head with full attention, without `mlp`: what the head gathers goes straight to the logits, so it
# has to be silent where it has nothing to say.

# %%


def trained(d, seed, steps=600):
    torch.manual_seed(seed)
    model = Tiny(V, [None], d=d, mlp=False)

    def draw():
        batch = data[torch.randint(len(data), (32,))]  # (32, T + 1)
        return batch[:, :-1], batch[:, 1:]

    return model, train(model, draw, steps)


model, losses = trained(d=32, seed=0)

# %% [markdown]
# The loss falls to what the coin leaves. (The mean over all tokens lies below 0.5, because some of them follow a 1.)

# %%
figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
axes.plot(losses, color="black", linewidth=0.8)
axes.axhline(math.log(V), linestyle=":", color="0.3", label="ln 32")
axes.axhline(0.5, linestyle="--", color="0.3", label="the coin")
axes.set(xlabel="step (number)", ylabel="loss (nats a token)", ylim=(0, 4))
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# Where does the head look? The map of one text of which it has seen nothing. Arrows mark the tokens that are a 1.

# %%
with torch.no_grad():
    ids = held_out[:1, :24]  # (1, 24)
    x = model.embed(ids)  # (1, 24, d)
    weights = model.attention[0].reference(F.layer_norm(x, x.shape[2:]))[1]  # (1, 1, 24, 24)
figure, axes = plt.subplots(figsize=(4.6, 3.8), layout="constrained")
picture = axes.imshow(weights[0, 0], cmap="Greys", vmin=0, vmax=1)
ones = (ids[0] == 1).nonzero().flatten()
axes.plot([24.2] * len(ones), ones, "k<", clip_on=False, markersize=5)
axes.set(xlabel="token looked at (position)", ylabel="token that looks (position)", xlim=(-0.5, 23.5))
figure.colorbar(picture, label="weight", shrink=0.8)
plt.show()

# %% [markdown]
# At the arrows the head looks one place back: its work. Elsewhere much of its weight lies in the first column, on the
# 0, which says nothing. That is a sink. How much, as a mean over the places from 16 on, which have 17 keys or more?

# %% tags=["volatile"]


def first_weight(model, ids, start=16):
    with torch.no_grad():
        x = model.embed(ids)  # (batch, T, d)
        w = model.attention[0].reference(F.layer_norm(x, x.shape[2:]))[1][:, :, start:, 0].mean(1)  # (batch, T - start)
    after_one = ids[:, start:] == 1
    return w[after_one].mean().item(), w[~after_one].mean().item()


busy, idle = first_weight(model, held_out[:, :-1])
evenly = (1 / torch.arange(17, T + 1)).mean().item()
print(f"weight on the first token: {busy:.3f} with work to do, {idle:.3f} without; spread evenly {evenly:.3f}")

# %% [markdown]
# Put a window on the trained model. The module's `window` and `n_sink` are plain attributes; the weights do not change.
#
# **Predict before you run.** W = 4, and all that matters is within two places. Does the loss change? And if the one
# first token is kept?


# %%
def loss_with(model, window, n_sink, ids=held_out, start=16):
    for layer in model.attention:
        layer.window, layer.n_sink = window, n_sink
    with torch.no_grad():
        logits = model(ids[:, :-1])[:, start:]  # (batch, T - start, V)
        losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1 + start :].flatten(), reduction="none")
    for layer in model.attention:
        layer.window, layer.n_sink = None, 0
    idle = (ids[:, start:-1] != 1).flatten()
    return losses[idle].mean().item()  # where the head has nothing to do


# %% [markdown]
# The loss where the head is idle, whose floor is 0.500:

# %% tags=["volatile"]
full = loss_with(model, None, 0)
print(f"full attention {full:.3f}")
for window in (2, 4, 8, 16):
    row = [loss_with(model, window, n_sink) for n_sink in (0, 1, 4)]
    print(f"window {window:2}: no sink {row[0]:.3f}, one sink {row[1]:.3f}, four sinks {row[2]:.3f}")

# %% [markdown]
# The window takes away nothing that the task needs, and yet the loss rises. The weight that lay on the 0 must go
# somewhere, and now it falls on tokens that mean something. With the one first token kept, the harm is all but gone. It
# is small, some hundredths of a nat: this model does not *break*, as the large ones do.
#
# Is it always so? Here is what did not come out as the story says. Six trained models, two widths, three seeds each:
# how much weight the first token gets, and what one sink is worth under a window of 4.

# %% tags=["volatile"]
found = {}
for d in (32, 64):
    for seed in range(3):
        one, _ = trained(d, seed, steps=500)
        losses = [loss_with(one, *setting) for setting in ((None, 0), (4, 0), (4, 1))]
        found[d, seed] = first_weight(one, held_out[:, :-1])[1], losses[1] - losses[2]
        print(f"d {d}, seed {seed}: first weight {found[d, seed][0]:.2f};", end=" ")
        print(f"loss {losses[0]:.3f}, window {losses[1]:.3f}, with one sink {losses[2]:.3f}")

# %% [markdown]
# Not every model grew a sink. Which did is a matter of the seed, and of nothing that we controlled. Each mark is a
# model; above the line, the sink helps.

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for d, mark in ((32, "o"), (64, "s")):
    points = [found[d, seed] for seed in range(3)]
    axes.plot(*zip(*points, strict=True), mark, color="black", mfc="none" if d == 64 else "black", label=f"d = {d}")
axes.axhline(0, color="0.5", linewidth=0.8)
axes.axvline(evenly, color="0.5", linestyle=":")
axes.set(xlabel="weight on the first token, idle (dots: spread evenly)", ylabel="loss saved by a sink (nats)")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# In the run that stands here, keeping the first token pays for every model that leans on it much. Of those that lean on
# it little, one *loses* by a sink. A guess, which we did not test: that model found another way to be silent, and now
# the first token takes a share among four keys that it never had among forty. A sink is a habit that a model may take
# up in training. *Look at the weights before you decide.*
#
# And on real text? Bytes of Python's documentation, two layers of four heads, every piece begun with id 256, a few
# seconds of training. The text depends on your Python version, so do the numbers.

# %% tags=["volatile"]
from working_with_text_data.python_docs import standard_library, topics

reference = topics(standard_library())
row = torch.tensor(list("\n".join(reference[name] for name in sorted(reference)).encode()))  # (bytes,)
pieces = row.unfold(0, 64, 64)  # (pieces, 64)
pieces = torch.cat([torch.full((len(pieces), 1), 256), pieces], dim=1)  # (pieces, 65)
docs, docs_held = pieces[:-200], pieces[-200:]
torch.manual_seed(9)
writer = Tiny(257, [None, None], d=64, n_head=4, T=64)


def draw_docs():
    batch = docs[torch.randint(len(docs), (32,))]  # (32, 65)
    return batch[:, :-1], batch[:, 1:]


losses = train(writer, draw_docs, steps=250, lr=3e-3)

# %% [markdown]
# The same two questions: what lies on the first token, and what does a sink save?

# %% tags=["volatile"]
share = first_weight(writer, docs_held[:, :-1], start=32)[1]
print(f"first layer, weight on the first token {share:.3f}; spread evenly {(1 / torch.arange(33, 65)).mean():.3f}")
for window, n_sink in ((None, 0), (16, 0), (16, 1), (16, 4), (8, 0), (8, 1)):
    print(f"window {window}, sinks {n_sink}: {loss_with(writer, window, n_sink, docs_held, start=32):.3f} nats a byte")

# %% [markdown]
# At this size, on this text, after so short a training, we could not see that sinks matter: compare the lines with 0
# and with 1 sink. What the window costs here is what the bytes beyond it were worth. That says nothing against the
# published findings, which are of models many thousand times as large. We report what we saw.
#
# ## 10. One layer that sees everything
#
# Section 2 said that n layers of windows reach n (W - 1) tokens. Do *trained* layers get that far? And what if one of
# them has no window? A task that needs a single far token: somewhere in the text stands one of eight keys, 0 to 7,
# among noise, 8 to 15. The last token, 16, asks which it was.

# %%
FAR = 20  # tokens in a text


def errands(n, generator):
    ids = torch.randint(8, 16, (n, FAR), generator=generator)  # (n, FAR)
    distance = torch.randint(1, FAR, (n,), generator=generator)  # (n,): how far back the key stands
    key = torch.randint(0, 8, (n,), generator=generator)  # (n,)
    ids[torch.arange(n), FAR - 1 - distance] = key
    ids[:, -1] = 16
    targets = torch.full((n, FAR), -100)  # (n, FAR): nobody asks ...
    targets[:, -1] = key  # ... but at the end
    return ids, targets, distance


# %% [markdown]
# Train, then measure the loss for each distance by itself. Guessing among eight costs ln 8 = 2.08.


# %%
def loss_by_distance(windows, steps=250):
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    model = Tiny(17, windows, n_head=2, T=FAR)
    train(model, lambda: errands(64, g)[:2], steps, lr=3e-3)
    ids, targets, distance = errands(6000, torch.Generator().manual_seed(2))
    with torch.no_grad():
        losses = F.cross_entropy(model(ids)[:, -1], targets[:, -1], reduction="none")  # (6000,)
    return [losses[distance == far].mean().item() for far in range(1, FAR)]


# %% [markdown]
# **Predict before you run.** Windows of 4. Two layers with windows; three; and two, of which the second sees
# everything. Up to which distance does each know the key?

# %%
stacks = {"two windows": [4, 4], "three windows": [4, 4, 4], "a window, then all": [4, None]}
by_distance = {name: loss_by_distance(windows) for name, windows in stacks.items()}
for name, losses in by_distance.items():
    known = [far for far, loss in enumerate(losses, 1) if loss < 0.5]
    print(f"{name:18}: knows the key at distances {known[0]} to {known[-1]}; all others are guesses")
    assert all(abs(loss - math.log(8)) < 0.3 for far, loss in enumerate(losses, 1) if far not in known)

# %% [markdown]
# Two windows of 4 know 2 · 3 = 6 tokens back, three know 9, and not one further. One layer without a window knows
# everything.

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for (name, losses), line in zip(by_distance.items(), ("k-o", "k--s", "k:^"), strict=True):
    axes.plot(range(1, FAR), losses, line, markersize=4, label=name)
axes.axhline(math.log(8), color="0.6", linewidth=0.8)
axes.set(
    xlabel="distance of the key (tokens)", ylabel="loss (nats; line: ln 8)", xticks=range(1, FAR, 3), ylim=(-0.1, 3)
)
axes.legend(frameon=False, ncols=3, fontsize=8, loc="upper center")
plt.show()

# %% [markdown]
# The cliff is where the formula of section 2 put it. The faint gradients there were no obstacle: training made the
# rumour loud. What lies beyond the reach, no training can fetch.
#
# So models mix. Gemma 3's report (2025) names five local layers to each global one. What does a mix hold? Local layers
# hold W tokens, global ones all T. Twelve layers, every sixth global, W = 512, d_kv = 768, float32:

# %%
T, W, one_token = 8192, 512, 2 * 768 * 4  # bytes of a token's keys and values in one layer
mixes = {"all global": [None] * 12, "every 6th global": ([W] * 5 + [None]) * 2, "all local": [W] * 12}
for name, windows in mixes.items():
    with torch.device("meta"):  # shapes without memory
        layers = [SlidingWindowAttention(768, 12, window) for window in windows]
    held = sum(layer.make_cache(1, T).nbytes for layer in layers)
    assert held == sum(T if window is None else W for window in windows) * one_token
    print(f"{name:17} {held / 2**20:6.1f} MiB for {T:,} tokens")

# %% [markdown]
# The mix is bound by its two global layers: they hold most of it, and they grow with T. It is a factor, not a bound.
#
# ## 11. Exercises
#
# Write the body in place of the dots and run the cell. The check says what is missing.

# %%
from attention_mechanisms.exercises.ex05 import (
    check_append_chunk,
    check_cache_bytes,
    check_key_slice,
    check_layers_needed,
    check_ring_positions,
    check_window_mask,
)
from utils.exercises import attempt

# %% [markdown]
# **A. The band** (easy, 5 minutes) A list of T lists of T truth values: may the token of the row see the one of the
# column? With sinks, the first `n_sink` tokens are seen by all that come after them.


# %%
def window_mask(tokens, window, n_sink): ...


attempt(check_window_mask, window_mask)

# %% [markdown]
# **B. How deep must it be?** (easy, 5 minutes) The least number of layers with this window through which news can
# travel `distance` tokens. A distance of 0 needs none. `None` where no number of layers is enough.


# %%
def layers_needed(distance, window): ...


attempt(check_layers_needed, layers_needed)

# %% [markdown]
# **C. Who lies where?** (medium, 10 minutes) `length` tokens were read into a ring of `window` slots. A list of the
# position in each slot, as long as there are filled slots. No loop over the tokens: a text may have a million.


# %%
def ring_positions(length, window): ...


attempt(check_ring_positions, ring_positions)

# %% [markdown]
# **D. What a block needs** (medium, 10 minutes) The queries from `begin` on, at most `block` of them, of a text of
# `tokens`. Return (low, high): the slice of keys that they need together.


# %%
def key_slice(begin, block, tokens, window): ...


attempt(check_key_slice, key_slice)

# %% [markdown]
# **E. The bytes of a mix** (medium, 10 minutes) The cache of a model of `n_layer` layers, of which each
# `global_every`-th sees everything (0: none), for a text of `tokens`. `d_kv` numbers make a key, as many a value.


# %%
def cache_bytes(n_layer, global_every, tokens, window, n_sink, d_kv, bytes_per_number): ...


attempt(check_cache_bytes, cache_bytes)

# %% [markdown]
# **F. A chunk arrives** (hard, 20 minutes) `kept` (m, d) are the keys that are kept, in order of their positions: the
# last `window - 1` that were read, all if they were fewer, perhaps more. `new` (n, d) are those of a chunk. Return (to
# attend to, to keep). What is to be attended to holds every key that some query of the chunk sees, and no other. What
# is to be kept is as small as it can be: what the *next* token needs besides its own key.


# %%
def append_chunk(kept, new, window): ...


attempt(check_append_chunk, append_chunk)

# %% [markdown]
# ### Solutions
#
# <details><summary>Solution: `window_mask`</summary>
#
# ```python
# def window_mask(tokens, window, n_sink):
#     return [[j <= p and (j > p - window or j < n_sink) for j in range(tokens)] for p in range(tokens)]
# ```
# </details>
#
# <details><summary>Solution: `layers_needed`</summary>
#
# ```python
# def layers_needed(distance, window):
#     if distance == 0:
#         return 0
#     if window == 1:
#         return None
#     return -(-distance // (window - 1))  # rounded up
# ```
# </details>
#
# <details><summary>Solution: `ring_positions`</summary>
#
# ```python
# def ring_positions(length, window):
#     last = length - 1
#     return [last - (last - slot) % window for slot in range(min(length, window))]
# ```
# </details>
#
# <details><summary>Solution: `key_slice`</summary>
#
# ```python
# def key_slice(begin, block, tokens, window):
#     return max(begin - window + 1, 0), min(begin + block, tokens)
# ```
# </details>
#
# <details><summary>Solution: `cache_bytes`</summary>
#
# ```python
# def cache_bytes(n_layer, global_every, tokens, window, n_sink, d_kv, bytes_per_number):
#     n_global = n_layer // global_every if global_every else 0
#     held = n_global * tokens + (n_layer - n_global) * (min(tokens, window) + n_sink)
#     return 2 * d_kv * held * bytes_per_number
# ```
# </details>
#
# <details><summary>Solution: `append_chunk`</summary>
#
# ```python
# import torch
#
#
# def append_chunk(kept, new, window):
#     before = kept[max(len(kept) - window + 1, 0) :]  # the first new query sees window - 1 old keys
#     together = torch.cat([before, new])  # (window - 1 + n, d)
#     return together, together[max(len(together) - window + 1, 0) :]
# ```
# </details>

# %% [markdown]
# ## 12. What you take along
#
# **Recap**
#
# - With a window, the token at p sees the keys j with p - W < j ≤ p: a band of T · W pairs in place of T² / 2.
# - n layers reach n (W - 1) tokens, exactly. Trained layers got that far here, and not one token further.
# - A mask saves nothing. Blocks do: B queries need the slice [begin - W + 1, end).
# - The cache is a ring: position p lies in slot p mod W. Attention has no order; the mask goes by position.
# - Attend first, trim afterwards. Then any chunking equals one pass.
# - The cache holds 2 · d_kv · (min(T, W) + s) numbers a layer, however long the text.
# - A model that was trained without a window may lean on its first tokens. Some of ours did, some did not.
# - One layer that sees everything fetches what windows cannot. It brings its cache that grows.
#
# **Pitfalls**, each seen above: trimming before attending (NaN with long chunks, wrong numbers with short ones, right
# token by token); a mask by slots (the future is seen); the window counted with or without the token itself; a whole
# mask that is called *sliding window* and computes all T² scores; a window on a model that leans on its first token.
#
# ### Reading guide
#
# Start with `sinks_and_window` in `masks.py`: it is section 1, with sinks beside the window. A sink is added only once
# it has left the window. Otherwise its key would be counted twice.

# %%
import inspect

from attention_mechanisms.masks import sinks_and_window

print(inspect.getsource(sinks_and_window).split('"""')[2])

# %% [markdown]
# `banded` is our `in_blocks`. Find the slice: `low` is begin - W + 1, moved by the keys that were there before the
# chunk.

# %%
print(inspect.getsource(SlidingWindowAttention.banded).split('"""')[2])

# %% [markdown]
# And the decisive lines of the ring, in `RollingCache.append`. The branch for one token writes and then reads. The
# branch for a chunk reads *before* `_write` overwrites: section 5.

# %%
print(inspect.getsource(RollingCache.append).split('"""')[2])

# %% [markdown]
# That the toys equal the module was asserted in sections 1 (`visible`), 3 (`SlidingWindowAttention`) and 4
# (`RollingCache`). A layer without a window makes the cache of notebook 02:

# %%
assert isinstance(SlidingWindowAttention(16, 2, window=None).make_cache(1, 8), KVCache)
print("window=None: a KVCache")

# %% [markdown]
# **CUDA, Apple's MPS, Windows.** All of this notebook ran on a CPU. On CUDA, a text longer than its window goes through
# FlexAttention (`flex_banded`) when there is no cache and no dropout: a compiled kernel that skips the blocks outside
# the band. It was not run here, and its speed is not claimed. On MPS the blocks of section 3 are used; that was not run
# either, nor was Windows; the CPU's path compiles nothing and writes no files.
#
# **The next question.** Four kinds of attention now stand side by side, and each of them only *gathers*. To train one,
# we had to knock a `Tiny` model together around it: an embedding, a norm, an `mlp`, a head. What else does a model
# need, how much of each, and why does a deep one train at all? Chapter 3 begins with that: notebook 06, *The GPT body*.
