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
# # Multi-head latent attention
#
# **Grouped queries throw heads away. Can all heads stay, and the cache shrink anyhow?**
#
# Notebook 03 made the cache small by having fewer heads of keys and values. Here every head keeps a key and a value of
# its own. What is kept of a token is something else: one short vector, the *latent*, from which all of them can be made
# again. Making them again would be far too slow. So the second half of the idea is a way of never making them at all.
# This is section 2.1 of the DeepSeek-V2 paper (DeepSeek-AI, 2024).
#
# | | |
# |---|---|
# | you know | queries, keys, values, heads (notebook 01), the cache (02), grouped queries (03), $(AB)x = A(Bx)$ |
# | you need | about 70 minutes, exercises apart; any laptop: no GPU, no network; it runs in about a minute |
# | files | `multi_head_latent.py`, `LatentCache` in `kv_cache.py` and `rotary.py` of this folder |
#
# The letters that come back again and again:
#
# | letter | meaning | in the code |
# |---|---|---|
# | T | tokens in the cache, and so keys | `keys` |
# | H, d | heads, numbers in one head | `n_head`, `head_dim` |
# | D | width of a token's vector x; D = H · d | `d_model` |
# | L | numbers in the latent c | `d_latent` |
# | R | numbers in the rotary key | `d_rope` |
# | $\rho$ | a turn by one position | `Rotary` |
# | $W_{down}$ | makes c from x: (L, D) | `kv_down` |
# | $W_{uk}$, $W_{uv}$ | make all keys, all values from c: (D, L) each; a head's part is (d, L) | `k_up`, `v_up` |
#
# Cells that measure time, or train, are tagged `volatile`: your figures will be a little different from ours.

# %% [markdown]
# First what we need. All of it is on your machine already.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

from attention_mechanisms import GroupedQueryAttention, MultiHeadAttention, MultiHeadLatentAttention, Rotary
from attention_mechanisms.attend import plain_attention

# %% [markdown]
# ## 1. Six tokens and two heads, by hand
#
# Six tokens of D = 4 numbers. H = 2 heads of d = 2 numbers each. Integers, so that you can follow with a pencil.
# Multi-head attention would keep two keys and two values of each token: 2 · D = 8 numbers.

# %%
x = torch.tensor([[1, 0, 1, 2], [0, 1, 0, 0], [2, 1, 0, 1], [1, 1, 1, 0], [0, 2, 1, 1], [1, 0, 0, -1]])  # (T, D)
w_down = torch.tensor([[1, 0, 1, 0], [0, 1, 0, -1]])  # (L, D)
c = x @ w_down.T  # (T, D) @ (D, L) -> (T, L)
print(c.tolist())

# %% [markdown]
# L = 2 numbers of each token are left. The first is $x_0 + x_2$, the second $x_1 - x_3$. That is all that the cache
# will hold. The keys of both heads are made from it by $W_{uk}$, the values by $W_{uv}$:

# %%
w_uk = torch.tensor([[[1, 0], [1, 1]], [[2, -1], [0, 1]]])  # (H, d, L)
w_uv = torch.tensor([[[0, 1], [1, 0]], [[1, 1], [1, -1]]])  # (H, d, L)
k = c @ w_uk.transpose(1, 2)  # (T, L) @ (H, L, d) -> (H, T, d)
v = c @ w_uv.transpose(1, 2)  # (T, L) @ (H, L, d) -> (H, T, d)
for head in range(2):
    print(f"head {head}: keys {k[head].tolist()}")

# %% [markdown]
# Check one: token 2 has c = (2, 0), so its key in head 1 is (2 · 2 - 1 · 0, 0 · 2 + 1 · 0) = (4, 0). The heads have
# different keys, as in multi-head attention. Both are made from the same two numbers.
#
# **Predict before you run.** Two of the six tokens can be told apart by no head, whatever it asks. Which ones? Are
# their vectors x the same?

# %%
for i in range(6):
    for j in range(i):
        if torch.equal(k[:, i], k[:, j]) and torch.equal(v[:, i], v[:, j]):
            print(f"tokens {j} and {i}: x is {x[j].tolist()} and {x[i].tolist()}, c is {c[j].tolist()} for both")

# %% [markdown]
# Here is the price. What the latent does not hold, no head can see. Training has to put into it what the heads need.
#
# ## 2. How many numbers do the keys and values need?
#
# Stack the matrices of keys and of values of any multi-head layer. All that it keeps of a token is one product, W · x:
#
# $$\begin{pmatrix}k\\v\end{pmatrix} = \begin{pmatrix}W_k\\W_v\end{pmatrix}x = W\,x \qquad W: (2D, D)$$
#
# In our toy this W is a product of two thin matrices. That is what *low rank* means.

# %%
w = torch.cat([w_uk.flatten(0, 1), w_uv.flatten(0, 1)]) @ w_down  # (2D, L) @ (L, D) -> (2D, D)
print(w.tolist())
print("singular values:", [round(s, 3) for s in torch.linalg.svdvals(w.double()).tolist()])

# %% [markdown]
# 32 numbers, and only two singular values that are not zero: W has rank 2, and two numbers of a token suffice.
#
# The other way round, this is how to find a latent for a given W. Its singular value decomposition is $W = U S V^T$.
# Keep the L largest singular values: $W_{down}$ is the first L rows of $V^T$, and $U S$, L columns of it, makes keys
# and values again. No other W of rank L is nearer (Eckart and Young, 1936). What is lost is the energy, the sum of
# squares, of the singular values that were dropped.


# %%
def energy_kept(w):
    energy = torch.linalg.svdvals(w.double()).square()
    return energy.cumsum(0) / energy.sum()  # (D,): for L = 1, 2, …, D


print("toy, L = 1 and 2:", [round(kept, 3) for kept in energy_kept(w)[:2].tolist()])

# %% [markdown]
# Now a whole layer: D = 64, fresh from its initialisation. The keys and values of a token are 128 numbers.
#
# **Predict before you run.** How many numbers of a token are needed so that *nothing* is lost? And how much energy is
# kept with 16?

# %%
torch.manual_seed(0)
fresh = MultiHeadAttention(d_model=64, n_head=4)
w_kv = fresh.c_attn.weight.detach()[64:]  # (2D, D): the rows of W_k, then those of W_v
kept = energy_kept(w_kv)
print(f"L = 64: {kept[63]:.3f}   L = 32: {kept[31]:.2f}   L = 16: {kept[15]:.2f}")

# %% [markdown]
# 64 of 128: half, for nothing. The keys and values are made from x, and x has only D numbers. But that is all that
# comes for free. A matrix of random numbers uses all directions about equally, and with a quarter of them half of its
# energy is gone. Compare it with a matrix that was built to have a low rank, plus a little noise:

# %%
planted = torch.randn(128, 8) @ torch.randn(8, 64)  # (2D, 8) @ (8, D) -> (2D, D)
planted = planted + 0.3 * torch.randn(128, 64)
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(range(1, 65), energy_kept(planted), "k-", label="rank 8 and noise")
axes.plot(range(1, 65), kept, "k--", label="a fresh layer")
axes.axhline(1, color="0.7", linewidth=0.8)
axes.set(xlabel="L (numbers kept of a token)", ylabel="energy kept (share)", ylim=(0, 1.05), xlim=(0, 65))
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# So cutting a finished layer down is a gamble: it depends on the layer (section 11 tries it on a trained one).
# Multi-head latent attention does not cut. It is *born* with thin matrices, and learns within them.
#
# ## 3. Naive: make all keys again, at each step
#
# The project's layer is `MultiHeadLatentAttention`. We take the shape of GPT-2's smallest model, with D = 768, H = 12,
# d = 64, and give it a latent of L = 256. (R = 32 numbers carry the position; section 7 is about them.) Its matrices:

# %%
torch.manual_seed(1)
D, H, d, L, R = 768, 12, 64, 256, 32
attention = MultiHeadLatentAttention(D, H, L, rotary=Rotary(R, max_length=8193)).eval()
for name, weight in attention.named_parameters():
    print(f"{name:15} {tuple(weight.shape)!s:12} {weight.numel():9,}")

# %% [markdown]
# `q_up` makes H queries of d + R = 96 numbers, `kv_down` makes c and the rotary key, and `k_up` and `v_up` are $W_{uk}$
# and $W_{uv}$ of all heads, one below the other. Count the parameters by hand, beside multi-head attention's:

# %%
matrices = D * (D + H * R) + D * (L + R) + 2 * L * D + D * D  # q_up, kv_down, k_up and v_up, c_proj
by_hand = matrices + L + (D + H * R) + D  # kv_norm, and the biases of q_up and c_proj
classic = MultiHeadAttention(D, H).eval()
assert by_hand == sum(p.numel() for p in attention.parameters()) == attention.cost(1).parameters
print(f"latent {by_hand:,}, multi-head {4 * D * D + 4 * D:,} = {classic.cost(1).parameters:,}")

# %% [markdown]
# Now decode one token. What comes to mind first: take the latents from the cache, make all keys and values, attend as
# ever. `expanded` is the module's own function for that.


# %%
@torch.inference_mode()
def step_naive(attention, x, cache):
    q = attention.queries(x, cache.length)  # (1, H, 1, d + R)
    latents = cache.append(attention.latents(x, cache.length))  # (1, T, L + R)
    k, v = attention.expanded(latents)  # (1, H, T, d + R), (1, H, T, d)
    y, _ = plain_attention(q, k, v, scale=attention.scale)  # (1, H, 1, d)
    return attention.merge(y)  # (1, 1, D)


# %% [markdown]
# Sixty-five tokens: 64 are read in one go, and the last one is a step. It must come out as in one pass without a cache.

# %%
text = torch.randn(1, 65, D)
with torch.inference_mode():
    whole = attention(text)  # (1, 65, D)
    cache = attention.make_cache(1, 65)
    attention(text[:, :64], cache)
    naive = step_naive(attention, text[:, 64:], cache)
torch.testing.assert_close(naive, whole[:, 64:], rtol=1e-5, atol=1e-5)
print("the naive step equals one pass; the cache holds", cache.length, "tokens")

# %% [markdown]
# It is right. What does it cost? Making the keys and values of all heads takes 2 · L · D operations each, for every
# token in the cache, at every step. Attention itself takes far less:
#
# $$\underbrace{4\,T\,L\,D}_{\text{making them}} \quad\text{and}\quad
# \underbrace{2\,T\,H\,(d+R) + 2\,T\,H\,d}_{\text{scores, sum}}$$
#
# PyTorch can count. Fused kernels hide their products from its counter, so `count_flops` asks for the plain ones.

# %%
from attention_mechanisms.cost import count_flops


def flops(run):
    with torch.inference_mode():
        return count_flops(run)


# %% [markdown]
# A cache of 1,023 tokens, then one step. For the price of a step it does not matter what the tokens were, so we fill
# the cache with random latents.


# %%
def filled(attention, n):
    cache = attention.make_cache(1, n + 1)
    cache.append(torch.randn(1, n, attention.d_latent + attention.d_rope))
    return cache


T = 1024
token = torch.randn(1, 1, D)
own = 2 * (D * (D + H * R) + D * (L + R) + D * D)  # the new token's query, its latent, the output
formula = own + 4 * T * L * D + 2 * T * H * (d + R) + 2 * T * H * d
naive_flops = flops(lambda: step_naive(attention, token, filled(attention, T - 1)))
print(f"counted {naive_flops:,}, by the formula {formula:,}")
print(f"of it for making keys and values: {4 * T * L * D / formula:.1%}")

# %% [markdown]
# Almost everything goes into keys and values that are thrown away a moment later.
#
# ## 4. Absorption, line by line
#
# Here is the score of a query q and token j, in one head:
#
# $$q^T k_j \;=\; q^T (W_{uk}\, c_j) \;=\; (q^T W_{uk})\, c_j \;=\; (W_{uk}^T q)^T c_j$$
#
# 1. The key is $W_{uk} c_j$: that is how it is made.
# 2. Brackets may move in a product.
# 3. $q^T W_{uk}$ does not depend on j. Compute it **once**, and call it $\tilde q = W_{uk}^T q$, a query of L numbers.
#
# The matrix has moved over from the keys, of which there are thousands, to the query, of which there is one. (The paper
# speaks of absorbing $W_{uk}$ into the matrix that makes the query. In our large layer that product would have
# H · L · D = 2,359,296 numbers, and the two apart have 786,432. So they stay apart, and each query passes both.)
#
# The last token of the toy asks with q = (1, 2) in head 0 and q = (1, 1) in head 1.
#
# **Predict before you run.** $\tilde q$ of head 0 is $1 \cdot (1, 0) + 2 \cdot (1, 1)$. And of head 1? The rows of its
# $W_{uk}$ are (2, -1) and (0, 1).

# %%
q = torch.tensor([[1, 2], [1, 1]])  # (H, d)
q_absorbed = (q[:, None] @ w_uk)[:, 0]  # (H, 1, d) @ (H, d, L) -> (H, 1, L) -> (H, L)
print("absorbed queries:", q_absorbed.tolist())

# %% [markdown]
# Now all scores, once with keys and once without any:

# %%
with_keys = (k @ q[:, :, None])[:, :, 0]  # (H, T, d) @ (H, d, 1) -> (H, T, 1) -> (H, T)
without = q_absorbed @ c.T  # (H, L) @ (L, T) -> (H, T)
assert torch.equal(with_keys, without)
print(without.tolist())

# %% [markdown]
# The same integers. `c.T` serves both heads: all heads look at the *same* T vectors, each with its own question. That
# is multi-query attention (notebook 03), but with heads of L numbers.
#
# The values, in one head with weights $w_j$:
#
# $$\sum_j w_j\, v_j \;=\; \sum_j w_j\, (W_{uv}\, c_j) \;=\; W_{uv} \Big(\sum_j w_j\, c_j\Big)$$
#
# A matrix may be taken out of a sum. So: gather latents first, and apply $W_{uv}$ once, to what was gathered. We try it
# with weights that a softmax could never give, because they are whole numbers.

# %%
weights = torch.tensor([[1, 0, 2, 0, 0, 1], [0, 3, 0, 0, 1, 0]])  # (H, T)
with_values = (weights[:, None] @ v)[:, 0]  # (H, 1, T) @ (H, T, d) -> (H, 1, d) -> (H, d)
gathered = weights @ c  # (H, T) @ (T, L) -> (H, L)
without = (w_uv @ gathered[:, :, None])[:, :, 0]  # (H, d, L) @ (H, L, 1) -> (H, d, 1) -> (H, d)
assert torch.equal(with_values, without)
print(without.tolist())

# %% [markdown]
# The softmax stands between the two and need not know. Now the whole step, for the large layer. Keys and values have no
# heads any more: `kept` serves for both. (What `turned` is, section 7 tells.)


# %%
@torch.inference_mode()
def step_absorbed(attention, x, cache):
    content, turned = attention.queries(x, cache.length).split([d, R], dim=3)  # (1, H, 1, d), (1, H, 1, R)
    kept = cache.append(attention.latents(x, cache.length))[:, None]  # (1, 1, T, L + R)
    q = torch.cat([content @ attention.per_head(attention.k_up), turned], dim=3)  # (1, H, 1, d) @ (H, d, L) | R
    y, _ = plain_attention(q, kept, kept[..., :L], scale=attention.scale)  # (1, H, 1, L)
    y = y @ attention.per_head(attention.v_up).transpose(1, 2)  # (1, H, 1, L) @ (H, L, d) -> (1, H, 1, d)
    return attention.merge(y)  # (1, 1, D)


# %% [markdown]
# Three ways to the same step: all keys made, none made, and the module, which absorbs by itself.

# %%
steps = {}
for name, step in (("absorbed", step_absorbed), ("module", lambda a, x, cache: a(x, cache))):
    cache.truncate(64)  # forget the token, so that it can come again
    with torch.inference_mode():
        steps[name] = step(attention, text[:, 64:], cache)
    torch.testing.assert_close(steps[name], naive, rtol=1e-5, atol=1e-5)
print("absorbed = module = naive, to 1e-5")

# %% [markdown]
# ## 5. What absorption saves
#
# Each matrix is applied once a step, to one vector; so it counts twice its numbers. Each of the H heads multiplies with
# L + R numbers of each key, and sums as many:
#
# $$2 \cdot \text{matrices} + 4\,H\,T\,(L+R)$$
#
# **Predict before you run.** T = 1,024. How many times fewer operations than the naive step: 5, 40, or 250?

# %%
module_flops = flops(lambda: attention(token, filled(attention, T - 1)))
assert module_flops == 2 * matrices + 4 * H * T * (L + R) == attention.cost(T).flops_per_token
print(f"naive {naive_flops:,}, absorbed {module_flops:,}: {naive_flops / module_flops:.1f} times fewer")

# %% [markdown]
# The formula holds to the last operation. (The module sums R numbers too many in each head, and cuts them off again: a
# fused kernel likes keys and values of one width. The formula counts them.)
#
# Is it also faster? We let them run by turns, so that both meet the same machine. Before each step the cache forgets
# the token of the last one. A run takes microseconds to milliseconds, and whatever else the machine does can only make
# it longer. So we take the fastest of 40.

# %%
from utils.benchmarking import time_by_turns


@torch.inference_mode()
def fastest(contestants, caches):
    prepare = {name: lambda cache=cache: cache.truncate(cache.max_length - 1) for name, cache in caches.items()}
    return {name: min(runs) for name, runs in time_by_turns(contestants, 40, prepare).items()}


# %% [markdown]
# Naive against absorbed, at 1,024 tokens:

# %% tags=["volatile"]
caches = {name: filled(attention, T - 1) for name in ("naive", "absorbed")}
contestants = {
    "naive": lambda: step_naive(attention, token, caches["naive"]),
    "absorbed": lambda: attention(token, caches["absorbed"]),
}
seconds = fastest(contestants, caches)
for name, operations in (("naive", naive_flops), ("absorbed", module_flops)):
    print(f"{name:8} {1000 * seconds[name]:6.2f} ms, {operations / seconds[name] / 1e9:3.0f} billion operations/s")
print(f"absorbed is {seconds['naive'] / seconds['absorbed']:.1f} times as fast")

# %% [markdown]
# Far faster, though not by the whole factor of 44. The second column says why: the naive step gets through more
# operations in a second. Its products are of large matrices, each number of which is used again and again. The absorbed
# step multiplies matrices with single vectors.
#
# ## 6. When not to absorb
#
# An absorbed query is longer: L numbers in place of d. With one query that is a bargain. With many queries, as in
# training or when a prompt is read, it is the keys that are made once and used by all. In one head, for each key:
#
# | | made once | for each of n queries |
# |---|---|---|
# | expanded | $4\,L\,d$ (a key and a value) | $4\,(d + R)$ |
# | absorbed | nothing | $4\,(L + R)$ |
#
# They meet where $4Ld + 4n(d + R) = 4n(L + R)$, that is, at $n = Ld\,/\,(L - d)$. A smaller layer, so that the counts
# are quick: D = 64, H = 4, d = 16, L = 32. They meet at 32 · 16 / 16 = 32 queries.
#
# **Predict before you run.** The module decides by itself. What does it do with 31 new tokens behind a cache of 993?
# With 32? The number of operations will tell.

# %%
small = MultiHeadLatentAttention(64, 4, 32, rotary=Rotary(8, 2048)).eval()


def counted(n, keys=1024):
    cache = filled(small, keys - 1)
    cache.truncate(keys - n)
    return flops(lambda: small(torch.randn(1, n, 64), cache)) / keys


for n in (29, 30, 31, 32, 33):
    print(f"{n} new tokens: {counted(n):,.0f} operations a key, {counted(n) - counted(n - 1):.0f} more than before")

# %% [markdown]
# Up to 31, one more token costs 673 more. From 33 on it costs 409: the keys are made, and a query has become cheaper.
# The picture shows the two lines of the formula, and circles for what PyTorch counted inside `forward`. What every new
# token costs in any case, its own projections, is taken off.

# %%
queries = [1, 8, 16, 24, 31, 32, 40, 48, 56, 64]
own = 2 * 64 * (64 + 4 * 8 + 32 + 8 + 64)  # a new token's query, latent and output
dots = [counted(n) - own * n / 1024 for n in queries]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(queries, [4 * 4 * n * (32 + 8) for n in queries], "k--", label="absorbed: 4 H n (L + R)")
axes.plot(queries, [4 * 4 * (32 * 16 + n * (16 + 8)) for n in queries], "k-", label="expanded: 4 H (L d + n (d + R))")
axes.plot(queries, dots, "ko", markersize=6, fillstyle="none", label="counted in the module")
axes.set(xlabel="n (new tokens read at once)", ylabel="operations a key", ylim=(0, None))
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# The circles follow the lower line (a little above the dashed one, since $W_{uk}$ and $W_{uv}$ are applied to each new
# query). In the large layer the two lines meet at 256 · 64 / 192 = 85.3, so from 86 new tokens on the keys are made.
#
# ## 7. Positions: a bug, and why it cannot be patched
#
# So far the heads of the toy see a bag of tokens. `rotary.py` tells a key where it stands by turning it (RoPE, Su et
# al., 2021): token j's key becomes $\rho^j k_j$ and a query at position p becomes $\rho^p q$, where $\rho$ is a turn
# by a fixed angle. Their product depends on the distance p - j alone. Let us do that to the toy. To keep integers, one
# position is a quarter turn: (a, b) becomes (-b, a).

# %%
quarter = torch.tensor([[0, -1], [1, 0]])  # (d, d)
turn = [torch.linalg.matrix_power(quarter.double(), n).long() for n in range(8)]
k_turned = torch.stack([k[:, j] @ turn[j].T for j in range(6)], dim=1)  # (H, d) @ (d, d), six times -> (H, T, d)
q_turned = q @ turn[5].T  # (H, d) @ (d, d) -> (H, d): the query stands at position 5
right = (k_turned @ q_turned[:, :, None])[:, :, 0]  # (H, T, d) @ (H, d, 1) -> (H, T)
print(right.tolist())

# %% [markdown]
# These are the right scores, with all keys made and turned. Now the absorbed step, as one writes it without thinking:
# the query is made, turned, absorbed. The latents are as they were.

# %%
q_absorbed = (q_turned[:, None] @ w_uk)[:, 0]  # (H, 1, d) @ (H, d, L) -> (H, L)
wrong = q_absorbed @ c.T  # (H, L) @ (L, T) -> (H, T)
for head in range(2):
    print(f"head {head}: right {right[head].tolist()}, absorbed {wrong[head].tolist()}")
print("right at positions", [j for j in range(6) if torch.equal(right[:, j], wrong[:, j])])

# %% [markdown]
# *Seen.* Every shape fits, nothing complains, and most scores are wrong.
#
# *Diagnosed.* Positions 0 and 4 are right. At 0 a key is not turned, and four quarter turns are none. So what is
# missing is the turn of the keys. Nobody made keys, so nobody turned them. Can it be put back? Write it out:
#
# $$(\rho^p q)^T (\rho^j W_{uk}\, c_j) \;=\; q^T \underbrace{\rho^{j-p}\, W_{uk}}_{\text{differs for each } j}\, c_j$$
#
# The turn stands *between* the query and $W_{uk}$. What the query would have to absorb is another matrix for each
# distance:

# %%
for distance in range(4):
    print(f"distance {distance}: q of head 0 absorbs to {(q[0] @ turn[-distance % 4] @ w_uk[0]).tolist()}")

# %% [markdown]
# With T distances that is T absorbed queries a head, 2 · d · L operations each: as dear as making T keys. And to move
# the turn past the matrix, and turn latents in place of keys? Matrices do not change places:

# %%
print("turn, then W_uk:", (w_uk[0] @ turn[1]).tolist(), " W_uk, then turn:", (turn[1] @ w_uk[0]).tolist())

# %% [markdown]
# (Even if they did, the values are made from the latent too, and they must not be turned.)
#
# In the toy a turn comes round every four tokens. The project's `Rotary` has slow and fast turns together. Here is the
# same bug in a layer of 64 numbers a head, measured: how far are the absorbed scores from the right ones?

# %%
torch.manual_seed(2)
rotary = Rotary(64, 256)
latents, up, query = torch.randn(200, 32), torch.randn(64, 32) / 32**0.5, torch.randn(1, 64)
right_scores = (rotary(latents @ up.T, 0) @ rotary(query, 199).T)[:, 0]  # (200, 64) @ (64, 1) -> (200,)
wrong_scores = (latents @ (rotary(query, 199) @ up).T)[:, 0]  # (200, 32) @ (32, 1) -> (200,)
error = (right_scores - wrong_scores).abs() / right_scores.std()
print(
    f"error at position 0: {error[0]:.3f}; mean over the others: {error[1:].mean():.2f} times the spread of the scores"
)

# %% [markdown]
# Drawn over the positions:

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(error, "k-", linewidth=0.8)
axes.plot(0, error[0], "ko", label="position 0: not turned, so right")
axes.set(xlabel="position of the key (tokens)", ylabel="error of the score\n(spreads of the right scores)")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# *Mended.* DeepSeek's way out: leave the keys from the latent unturned, and give the position numbers of its own. Each
# head gets a further query part of R numbers. **One** further key part of R numbers, made from x and turned, is shared
# by all heads and kept beside the latent:
#
# $$\text{score} = \frac{q^T k_j + (\rho^p q^r)^T (\rho^j k^r_j)}{\sqrt{d + R}}
# = \frac{\big(\tilde q,\; \rho^p q^r\big) \cdot \big(c_j,\; \rho^j k^r_j\big)}{\sqrt{d + R}}$$
#
# Two vectors side by side on each side, so one product gives the whole score. Nothing stands between $W_{uk}$ and the
# query any more. All of this is asserted on the module, for all 65 tokens at once:

# %%
with torch.inference_mode():
    queries, kept = attention.queries(text), attention.latents(text)  # (1, H, 65, d + R), (1, 65, L + R)
    k_all, _ = attention.expanded(kept)  # (1, H, 65, d + R)
    q_all, kept_all, _ = attention.absorbed(queries, kept)  # (1, H, 65, L + R), (1, 1, 65, L + R)
    expected = queries @ k_all.transpose(2, 3)  # (1, H, 65, d + R) @ (1, H, d + R, 65) -> (1, H, 65, 65)
    found = q_all @ kept_all.transpose(2, 3)  # (1, H, 65, L + R) @ (1, 1, L + R, 65) -> (1, H, 65, 65)
torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
print("absorbed scores with decoupled rotary keys are right at all", found.shape[-1], "positions")

# %% [markdown]
# And what we wanted of RoPE still holds: move the whole text by 1,000 positions, and no score changes by more
# than rounding.

# %%
with torch.inference_mode():
    later = attention.queries(text, 1000) @ attention.expanded(attention.latents(text, 1000))[0].transpose(2, 3)
torch.testing.assert_close(later, expected, rtol=1e-3, atol=1e-4)  # (1, H, 65, 65)
print("the same scores 1,000 tokens later")

# %% [markdown]
# ## 8. What the cache holds
#
# L + R numbers a token, whatever the number of heads. Multi-head attention keeps 2 · D. We ask the caches themselves:

# %%
T = 1024
grouped = GroupedQueryAttention(D, H, n_kv_head=3).eval()
for name, layer, numbers in (
    ("multi-head", classic, 2 * D),
    ("3 groups", grouped, 2 * 3 * d),
    ("latent", attention, L + R),
):
    held = layer.make_cache(1, T).nbytes
    assert held == T * numbers * 4 == layer.cost(T).cache_bytes(4)
    print(f"{name:10} {numbers:5,} numbers a token, {held:9,} bytes: {2 * D / numbers:.2f} times smaller")

# %% [markdown]
# 5.33 times: between grouped queries with three heads of keys and values, and with two. But here there are twelve
# *different* keys of every token. The gain grows with the heads, because the latent does not. DeepSeek-V2 itself has
# H = 128, d = 128, L = 512 and R = 64 (the paper, section 3.1.2):

# %%
H2, d2, L2, R2 = 128, 128, 512, 64
print(f"{2 * H2 * d2:,} numbers against {L2 + R2}: {2 * H2 * d2 / (L2 + R2):.1f} times smaller")
print(f"as grouped queries with {(L2 + R2) / (2 * d2)} heads of keys and values")

# %% [markdown]
# 2.25 groups: that figure stands in the paper, too (section 2.1.4). And the picture, from real caches:

# %%
from attention_mechanisms.attention_maps import cache_growth

lengths = range(1024, 8193, 1024)
layers = {"multi-head": classic, "grouped, 3 heads": grouped, "latent": attention}
held = {name: (lengths, [layer.make_cache(1, n).nbytes for n in lengths]) for name, layer in layers.items()}
cache_growth(held, "one layer, float32")

# %% [markdown]
# ## 9. Is a smaller cache also faster?
#
# When one token is written, all of the cache is read. If reading were all, latent attention would be 5.33 times as fast
# as multi-head attention on a long text. But look at the operations. Each of the H heads multiplies with the *whole*
# latent, since nobody cut it into heads:

# %%
for name, operations, numbers in (("multi-head", 4 * H * d, 2 * D), ("latent, absorbed", 4 * H * (L + R), L + R)):
    print(f"{name:16} {operations:6,} operations a key, {4 * numbers:5,} bytes: {operations / 4 / numbers:4.1f} a byte")

# %% [markdown]
# 4.5 times *more* operations on 5.33 times fewer bytes: 24 times as many operations for each byte that is read. Which
# of the two takes the time? Measure a step of each, over the length of the text. The last column is what the ratio
# would be if only reading counted. A step reads the cache *and* the layer's parameters, which on a short text weigh
# more.

# %% tags=["volatile"]
measured, by_bytes, layers = {}, {}, {"multi-head": classic, "latent": attention}
for n in (512, 1024, 2048, 4096):
    caches = {"multi-head": classic.make_cache(1, n), "latent": filled(attention, n - 1)}
    caches["multi-head"].append(*torch.randn(2, 1, H, n - 1, d))  # keys and values, (1, H, n - 1, d) each
    runs = {name: lambda layer=layers[name], cache=caches[name]: layer(token, cache) for name in layers}
    measured[n] = fastest(runs, caches)
    read = [4 * layers[name].cost(n).parameters + caches[name].nbytes for name in layers]
    by_bytes[n], ratio = read[0] / read[1], measured[n]["multi-head"] / measured[n]["latent"]
    print(f"{n:5} tokens:", *(f"{name} {1000 * s:5.2f} ms," for name, s in measured[n].items()), end=" ")
    print(f"ratio {ratio:.2f}; by bytes {by_bytes[n]:.2f}")

# %% [markdown]
# The same as a picture. The dotted line is where the latent layer would be if reading were all.

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for name, line in (("multi-head", "ko-"), ("latent", "ks--")):
    axes.plot(list(measured), [1000 * s[name] for s in measured.values()], line, markersize=4, label=name)
promised = [1000 * measured[n]["multi-head"] / by_bytes[n] for n in measured]
axes.plot(list(measured), promised, "k:", label="latent, if reading were all")
axes.set(xlabel="T (tokens in the cache)", ylabel="time of one step (ms)", ylim=(0, None))
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# On the machine of the committed output, the latent layer gains on long texts, and less than its bytes promise. What
# is it waiting for? One experiment tells. We let fewer heads look at the same 4,096 latents. The bytes that are read
# stay the same, and the operations shrink with the heads.
#
# **Predict before you run.** If a step waits for memory, what does the time do? If it waits for arithmetic?

# %% tags=["volatile"]
from attention_mechanisms.attend import fast_attention

latents, asking = torch.randn(1, 1, 4096, L + R), torch.randn(1, H, 1, L + R)
runs = {n: lambda n=n: fast_attention(asking[:, :n], latents, latents) for n in (3, 6, 9, 12)}
by_heads = fastest(runs, {})
for n, s in by_heads.items():
    print(f"{n:2} heads: {1000 * s:.2f} ms, {4 * n * 4096 * (L + R) / s / 1e9:3.0f} billion operations/s")

# %% [markdown]
# The time grows with the heads, on the same bytes. Not in proportion: a part of it is there with few heads, too. But
# from three heads to twelve it about doubles, so with all twelve the greater part is arithmetic. In float32 on this CPU
# the absorbed layer is bound by computing. The saved *memory* is all there; of the saved *time* a part is eaten up. The
# folder's README has longer texts and half precision, with the same finding.
#
# ## 10. Queries, and a witness from outside
#
# One line more: DeepSeek makes queries from a latent, too, `d_query_latent`. Nothing of a query is ever kept, so the
# cache does not change. It is there for the memory of training, says the paper (section 2.1.2), and saves parameters.

# %%
compressed = MultiHeadLatentAttention(D, H, L, d_query_latent=384, rotary=Rotary(R, 1024))
print(f"parameters {attention.cost(1).parameters:,} -> {compressed.cost(1).parameters:,}")
print("cache, bytes:", attention.make_cache(1, 1024).nbytes, "->", compressed.make_cache(1, 1024).nbytes)

# %% [markdown]
# Two witnesses. The first needs no latent. Without norm and without positions, our layer is multi-head attention whose
# matrices happen to be products. `torch.nn.MultiheadAttention`, given those products, must agree.

# %%
torch.manual_seed(3)
plain = MultiHeadLatentAttention(32, 4, 12, latent_norm=False, bias=False).eval()
oracle = nn.MultiheadAttention(32, 4, bias=False, batch_first=True).eval()
with torch.no_grad():
    w_k, w_v = plain.k_up.weight @ plain.kv_down.weight, plain.v_up.weight @ plain.kv_down.weight  # (D, L) @ (L, D)
    oracle.in_proj_weight.copy_(torch.cat([plain.q_up.weight, w_k, w_v]))  # (3D, D)
    oracle.out_proj.weight.copy_(plain.c_proj.weight)
    z = torch.randn(2, 9, 32)
    hidden = torch.ones(9, 9, dtype=torch.bool).triu(1)
    torch.testing.assert_close(plain(z), oracle(z, z, z, attn_mask=hidden)[0], rtol=1e-5, atol=1e-6)
print("torch.nn.MultiheadAttention agrees")

# %% [markdown]
# The second is DeepSeek-V2's own attention, as Hugging Face's `transformers` has it, at a tiny size with random
# weights. (Nothing is downloaded.)

# %%
from transformers import DeepseekV2Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention, DeepseekV2RotaryEmbedding

shape = {"hidden_size": 32, "num_attention_heads": 4, "kv_lora_rank": 12, "q_lora_rank": None, "v_head_dim": 8}
parts = {"qk_nope_head_dim": 8, "qk_rope_head_dim": 6, "max_position_embeddings": 64}
config = DeepseekV2Config(**shape, **parts, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0})
config._attn_implementation = "eager"
theirs = DeepseekV2Attention(config, 0).eval()
print({name: tuple(weight.shape) for name, weight in theirs.named_parameters()})

# %% [markdown]
# The same matrices under other names. Two differ in form. Their `kv_b_proj` holds $W_{uk}$ and $W_{uv}$ of a head one
# below the other. And they turn neighbouring numbers (0 with 1), where our `Rotary` turns number i with i + R / 2: the
# same with rows in another order.

# %%
ours = MultiHeadLatentAttention(32, 4, 12, bias=False, rotary=Rotary(6, 64)).eval()
pairs = torch.tensor([0, 2, 4, 1, 3, 5])
query_rows = torch.cat([head * 14 + torch.cat([torch.arange(8), 8 + pairs]) for head in range(4)])
up = theirs.kv_b_proj.weight.detach().view(4, 16, 12)  # (H, d + d, L)
copied = {
    "q_up.weight": theirs.q_proj.weight[query_rows],
    "kv_down.weight": theirs.kv_a_proj_with_mqa.weight[torch.cat([torch.arange(12), 12 + pairs])],
    "kv_norm.weight": theirs.kv_a_layernorm.weight,
    "k_up.weight": up[:, :8].flatten(0, 1),  # (H, d, L) -> (D, L)
    "v_up.weight": up[:, 8:].flatten(0, 1),  # (H, d, L) -> (D, L)
    "c_proj.weight": theirs.o_proj.weight,
}
print(ours.load_state_dict(copied))

# %% [markdown]
# One pass of theirs, which makes all keys, against ours token by token, absorbed:

# %%
with torch.inference_mode():
    z = torch.randn(2, 13, 32)
    positions = DeepseekV2RotaryEmbedding(config)(z, torch.arange(13)[None])
    future = torch.full((13, 13), -torch.inf).triu(1)[None, None]  # (1, 1, 13, 13): added to their scores
    expected, _ = theirs(z, future, None, positions)
    cache = ours.make_cache(2, 13)
    found = torch.cat([ours(part, cache) for part in z.split(1, dim=1)], dim=1)  # (2, 13, 32)
torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
print("transformers' DeepSeek-V2 agrees, token by token")

# %% [markdown]
# ## 11. How narrow may the latent be? A task to learn
#
# How many numbers a token needs, nobody can say in general. It depends on what the heads have to find. Here is a task
# that needs attention and nothing else. Twelve items lie before the layer, each a key and a value out of 32. Then it is
# asked for one key, and has to name the value.

# %%
K, N = 32, 12


def recall_batch(n, generator):
    keys = torch.rand(n, K, generator=generator).argsort(dim=1)[:, :N]  # (n, N), all different
    values = torch.randint(K, (n, N), generator=generator)  # (n, N)
    asked = torch.randint(N, (n, 1), generator=generator)  # (n, 1)
    return keys, values, keys.gather(1, asked), values.gather(1, asked)[:, 0]


keys, values, asked, answer = recall_batch(1, torch.Generator().manual_seed(12))
print(dict(zip(keys[0].tolist(), values[0].tolist())), " asked:", asked.item(), " answer:", answer.item())

# %% [markdown]
# The model is one attention layer between embeddings and a matrix of logits. That matrix begins at zero, so at first
# all values are equally likely.


# %%
class Recall(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.key, self.value, self.ask = nn.Embedding(K, 32), nn.Embedding(K, 32), nn.Embedding(K, 32)
        self.attention, self.head = attention, nn.Linear(32, K)
        self.head.weight.data.zero_(), self.head.bias.data.zero_()

    def read(self, keys, values, asked):
        return torch.cat([self.key(keys) + self.value(values), self.ask(asked)], dim=1)  # (n, N + 1, 32)

    def forward(self, keys, values, asked):
        return self.head(self.attention(self.read(keys, values, asked))[:, -1])  # (n, 32) @ (32, K) -> (n, K)


# %% [markdown]
# **Predict before you run.** What is the loss before the first step? It is the logarithm of a whole number.


# %%
def loss_of(model, batch):
    *question, answer = batch
    return F.cross_entropy(model(*question), answer)  # (n, K), (n,)


def narrow(d_latent):
    return MultiHeadLatentAttention(32, 4, d_latent, bias=False)


torch.manual_seed(4)
model, batch = Recall(narrow(8)), recall_batch(64, torch.Generator().manual_seed(6))
by_hand = 3 * K * 32 + (32 * K + K) + (32 * 32 + 32 * 8 + 2 * 8 * 32 + 32 * 32 + 8)
assert by_hand == sum(p.numel() for p in model.parameters())
print(f"loss {loss_of(model, batch):.3f}, ln {K} = {torch.tensor(K).log():.3f}; {by_hand:,} parameters")

# %% [markdown]
# Can it learn one batch of 64 questions by heart? A loop that will serve for everything that follows:


# %%
def train(model, batches, lr=0.01):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, len(batches))
    for batch in batches:
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return loss.item()


last = train(model, [batch] * 100)
assert last < 0.05
print("one batch, learned by heart: loss below 0.05")

# %% [markdown]
# Now fresh questions at each step, 400 steps of 128, and latents of several widths. The judge is 4,000 questions that
# none of them has seen. Multi-head attention and one head of keys and values (multi-query) learn the same task; they
# keep 64 and 16 numbers of a token.

# %%
generator = torch.Generator().manual_seed(7)
lessons = [recall_batch(128, generator) for _ in range(400)]
exam = recall_batch(4000, generator)
makers = {f"latent {n}": (lambda n=n: narrow(n)) for n in (2, 4, 6, 8, 16, 32)}
makers |= {
    "multi-head": lambda: MultiHeadAttention(32, 4, bias=False),
    "multi-query": lambda: GroupedQueryAttention(32, 4, 1, bias=False),
}

# %% [markdown]
# Eight layers, each from the same seed and through the same lessons:

# %% tags=["volatile"]
trained, exam_loss, kept = {}, {}, {}
for name, make in makers.items():
    torch.manual_seed(8)
    trained[name] = Recall(make())
    train(trained[name], lessons)
    with torch.inference_mode():
        exam_loss[name] = loss_of(trained[name], exam).item()
    kept[name] = trained[name].attention.cost(1).cache_numbers
    print(f"{name:12} {kept[name]:3} numbers a token, loss {exam_loss[name]:.4f}")

# %% [markdown]
# Two numbers are not enough, four are better, and somewhere below eight the task is solved. The digits will differ on
# your machine. This much should not:

# %%
assert exam_loss["latent 2"] > 2 > exam_loss["latent 8"] + 1
assert exam_loss["latent 8"] < 0.2 and exam_loss["multi-head"] < 0.2
print("a latent of 8 learns what multi-head attention learns with 64 numbers; a latent of 2 does not")

# %% [markdown]
# And section 2's gamble? Take the *trained* multi-head layer and cut its stacked matrix down to rank L. That keeps as
# many numbers as a latent of the same width, but it was never trained to live with them.

# %% tags=["volatile"]
import copy

cut_loss = {}
for n in (2, 4, 6, 8, 16, 24, 32):
    cut = copy.deepcopy(trained["multi-head"])
    weight = cut.attention.c_attn.weight.data[32:]  # (2D, D)
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)  # (2D, D), (D,), (D, D)
    weight.copy_(u[:, :n] * s[:n] @ vt[:n])  # (2D, n) @ (n, D) -> (2D, D)
    with torch.inference_mode():
        cut_loss[n] = loss_of(cut, exam).item()
print({n: round(loss, 2) for n, loss in cut_loss.items()})

# %% [markdown]
# Both lines in one picture:

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
widths = [n for name, n in kept.items() if name.startswith("latent")]
axes.plot(widths, [exam_loss[f"latent {n}"] for n in widths], "ko-", markersize=5, label="latent, trained so")
axes.plot(list(cut_loss), list(cut_loss.values()), "s--", color="0.4", markersize=4, label="multi-head, cut afterwards")
axes.plot(64, exam_loss["multi-head"], "k^", label="multi-head")
axes.plot(16, exam_loss["multi-query"], "kx", markersize=9, label="multi-query")
axes.axhline(torch.tensor(K).log(), color="black", linestyle=":", linewidth=0.8, label=f"ln {K}: knowing nothing")
axes.set_xscale("log", base=2)
axes.set_xticks([2, 4, 8, 16, 32, 64], ["2", "4", "8", "16", "32", "64"])
axes.set(xlabel="numbers kept of a token", ylabel="loss on the exam (nats)")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# Look at what the picture does **not** show. Multi-query attention with its 16 numbers solves this task as well: it
# gives no reason to prefer latents. For that one needs a task on which shared keys fail, and ours is too easy. What it
# does show: a latent must be wide enough for the task, eight is enough here, and a layer that was trained with a narrow
# latent is far better than one that is cut to it without further training. Cut to eight numbers, the layer is worse
# than one that knows nothing: it is wrong, and sure of it.
#
# Does the layer really look for the asked key? The weights of its last token, in four heads, for one question:

# %%
one = recall_batch(1, torch.Generator().manual_seed(12))
with torch.inference_mode():
    model = trained["latent 8"]
    _, weights = model.attention.reference(model.read(*one[:3]))  # (1, H, N + 1, N + 1)
figure, axes = plt.subplots(figsize=(6, 2.4), layout="constrained")
picture = axes.imshow(weights[0, :, -1], cmap="Greys", vmin=0, vmax=1, aspect="auto")  # (H, N + 1)
axes.set_xticks(range(N + 1), [*map(str, one[0][0].tolist()), "?"])
axes.set(xlabel=f"key of the item looked at; asked for: {one[2].item()}", ylabel="head", yticks=range(4))
figure.colorbar(picture, ax=axes, label="weight")
plt.show()

# %% [markdown]
# In the committed picture three heads look at the asked item and at nothing else, and the fourth looks about. All four
# read the same eight numbers of each item, and each makes a key of its own from them.
#
# ## 12. Exercises
#
# Write the body in place of the dots and run the cell. The check says what is missing.

# %%
from attention_mechanisms.exercises.ex04 import (
    check_absorb_query,
    check_cache_ratio,
    check_crossover,
    check_cut_to_latent,
    check_gather_values,
)
from utils.exercises import attempt

# %% [markdown]
# **A. How many times smaller?** (easy, 5 minutes) How many times as much does multi-head attention keep of a token as
# latent attention with as many heads of the same size?


# %%
def cache_ratio(n_head, head_dim, d_latent, d_rope): ...


attempt(check_cache_ratio, cache_ratio)

# %% [markdown]
# **B. Absorb a query** (medium, 10 minutes) `q` is (n_head, head_dim) and `w_uk` (n_head, head_dim, d_latent). Return
# the absorbed queries, (n_head, d_latent).


# %%
def absorb_query(q, w_uk): ...


attempt(check_absorb_query, absorb_query)

# %% [markdown]
# **C. Sum without values** (medium, 10 minutes) `weights` is (n_head, keys), each row sums to 1; `latents` is
# (keys, d_latent) and `w_uv` (n_head, head_dim, d_latent). Return what each head gathers, (n_head, head_dim), without
# making the value of any token. The check counts operations.


# %%
def gather_values(weights, latents, w_uv): ...


attempt(check_gather_values, gather_values)

# %% [markdown]
# **D. From how many queries on are keys worth making?** (medium, 15 minutes) The smallest whole number of new tokens
# for which expanding costs no more operations than absorbing (section 6). Where it never pays, return `math.inf`.


# %%
def crossover(head_dim, d_latent): ...


attempt(check_crossover, crossover)

# %% [markdown]
# **E. Cut a layer down to a latent** (hard, 25 minutes) `w_k` and `w_v` are (D, d_model) each. Return (w_down, w_uk,
# w_uv) of shapes (d_latent, d_model), (D, d_latent) and (D, d_latent), such that `w_uk @ w_down` and `w_uv @ w_down`
# together are as near to `w_k` and `w_v` as any latent of that width can be.


# %%
def cut_to_latent(w_k, w_v, d_latent): ...


attempt(check_cut_to_latent, cut_to_latent)

# %% [markdown]
# ### Solutions
#
# <details><summary>Solution: `cache_ratio`</summary>
#
# ```python
# def cache_ratio(n_head, head_dim, d_latent, d_rope):
#     return 2 * n_head * head_dim / (d_latent + d_rope)
# ```
# </details>
#
# <details><summary>Solution: `absorb_query`</summary>
#
# ```python
# def absorb_query(q, w_uk):
#     return (q[:, None] @ w_uk)[:, 0]  # (n_head, 1, head_dim) @ (n_head, head_dim, d_latent)
# ```
# </details>
#
# <details><summary>Solution: `gather_values`</summary>
#
# ```python
# def gather_values(weights, latents, w_uv):
#     gathered = weights @ latents  # (n_head, keys) @ (keys, d_latent) -> (n_head, d_latent)
#     return (w_uv @ gathered[:, :, None])[:, :, 0]  # (n_head, head_dim, d_latent) @ (n_head, d_latent, 1)
# ```
# </details>
#
# <details><summary>Solution: `crossover`</summary>
#
# ```python
# import math
#
#
# def crossover(head_dim, d_latent):
#     if d_latent <= head_dim:
#         return math.inf  # an absorbed query is no longer than another one
#     return -(-d_latent * head_dim // (d_latent - head_dim))  # rounded up
# ```
# </details>
#
# <details><summary>Solution: `cut_to_latent`</summary>
#
# ```python
# import torch
#
#
# def cut_to_latent(w_k, w_v, d_latent):
#     u, s, vt = torch.linalg.svd(torch.cat([w_k, w_v]), full_matrices=False)
#     up = u[:, :d_latent] * s[:d_latent]  # (2D, d_latent)
#     return vt[:d_latent], up[: len(w_k)], up[len(w_k) :]
# ```
# </details>

# %% [markdown]
# ## 13. What you take along
#
# **Recap**
#
# - Of a token, one latent is kept: c = $W_{down}$ x. All heads have keys and values of their own, made from it.
# - They are never made while decoding: $W_{uk}$ moves over to the query, $W_{uv}$ behind the sum.
# - 2 · matrices + 4 H T (L + R) operations a step, counted exactly. Naive takes 4 T L D more.
# - A turn between $W_{uk}$ and the query would break this. So positions have R numbers of their own, one key for all
#   heads.
# - The cache holds L + R numbers a token: 5.33 times fewer than multi-head at 256 + 32 of 2 · 768.
# - Absorbed heads do more operations a key than multi-head attention. Fewer bytes are not yet less time.
# - Many queries at once, n ≥ L d / (L - d): make the keys after all.
#
# **Pitfalls**, each seen above: turning the query and forgetting that no key was turned; making keys at every step
# (right, and slow); cutting a trained layer down and expecting it to work; a latent that is too narrow; promising the
# ratio of the caches as a ratio of times.
#
# ### Reading guide
#
# In `multi_head_latent.py` read `latents` first (what is kept), then `expanded` (section 3), then this one. It is
# section 4 and the mend of section 7 together: `per_head(self.k_up)` is $W_{uk}$, head by head, and the rotary part of
# the query goes beside it.

# %%
import inspect

print(inspect.getsource(MultiHeadLatentAttention.absorbed))

# %% [markdown]
# Then `forward`. The line that sets `absorb` is section 6, solved for the number of tokens so that nothing is divided.
# Last of all, the toy of section 1 as the module: same matrices, same scores, same sums.

# %%
toy = MultiHeadLatentAttention(4, 2, 2, latent_norm=False, bias=False).eval()
with torch.no_grad():
    toy.kv_down.weight.copy_(w_down)
    toy.k_up.weight.copy_(w_uk.flatten(0, 1))  # (H, d, L) -> (D, L)
    toy.v_up.weight.copy_(w_uv.flatten(0, 1))  # (H, d, L) -> (D, L)
    kept = toy.latents(x[None].float())  # (1, T, L)
    keys, values = toy.expanded(kept)  # (1, H, T, d) each
    asked, *_ = toy.absorbed(q[None, :, None].float(), kept)  # (1, H, 1, L)
assert torch.equal(kept[0], c.float()) and torch.equal(keys[0], k.float()) and torch.equal(values[0], v.float())
assert torch.equal(asked[0, :, 0] @ kept[0].T, with_keys.float())  # (H, L) @ (L, T) -> (H, T)
print("the toy's latents, keys, values and absorbed scores = the module's")

# %% [markdown]
# **CUDA, Apple's MPS, Windows.** All of this ran on a CPU under Linux, in float32, and nothing else was run. The
# shapes, the sizes of the caches and the formulas are the same everywhere. The times are not: what decides is how many
# operations a device does while it reads a byte, so measure section 9 on yours before you choose. On CUDA
# `fast_attention` names the causal mask of a chunk behind a cache (`causal_lower_right`), where elsewhere it writes it
# out. MPS has no float64: what uses `.double()` here has to stay on the CPU there. Products in float32 may differ in
# their last digits between devices, so compare with a tolerance, as above.
#
# **The next question.** The cache is small now, and still it grows with every token, and so does each step. Must a
# token see *everything* that came before? Notebook 05, `05_sliding_windows`, lets it forget.
