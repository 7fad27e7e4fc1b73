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
# # Width and learning rate
#
# **A small model's best learning rate is found in minutes. Does it hold for a wide one?**
#
# A learning rate is found by trying. For a large model each try costs a fortune, so one would like to try on a small
# one. We see first, with a sum of n numbers, why that fails: the same step does more in a wider layer. The same sum
# says how the rates must change with the width. Then we measure whether it is true, on models of width 32 to 256.
#
# | | |
# |---|---|
# | you know | what Adam and Muon do with a gradient (notebook 14), the parts of a GPT (notebook 06) |
# | you need | about 75 minutes, exercises apart; any laptop: no GPU, no network, one gigabyte of memory |
# | files | `optimizers.py` of this folder |
#
# | letter | meaning | shape or unit |
# |---|---|---|
# | n | how many products a sum has: the width of a layer's input | – |
# | d | width of the model, `d_model` | – |
# | m | width multiplier: d over the base width | – |
# | η | learning rate | – |
# | w, x, y | weights, input, y = Σ wᵢ xᵢ | (n,), (n,), – |
# | σ | standard deviation of weights at the start | – |
# | L, V | blocks; tokens in the vocabulary | – |
# | B, T | windows in a batch; tokens of a window | – |
# | RMS | root of the mean square: the typical size of a number | – |

# %% [markdown]
# What we need is on your machine already. One thread: our tensors are small.

# %%
import math

import matplotlib.pyplot as plt
import torch

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## 1. A sum of n products
#
# One number of a layer's output is a sum, y = w₁ x₁ + … + wₙ xₙ. Let each x be 1 or -1. **At the start** the weights
# have random signs. Random signs cancel: the sum of n of them has a typical size of √n. So weights of size 1/√n give a
# y of size 1, for any n. By hand with n = 4, weights ±1/2 and x = (1, 1, -1, 1):

# %%
x = [1, 1, -1, 1]
w = [0.5, -0.5, -0.5, 0.5]
print("y =", sum(a * b for a, b in zip(w, x)))

# %% [markdown]
# **After a step** it is another matter. Suppose that y should grow. The gradient of weight i has the sign of xᵢ, and
# Adam's first step moves each weight by exactly η towards it (notebook 14). Now nothing cancels: each of the n weights
# adds η · |xᵢ| = η.
#
# **Predict before you run (1).** With η = 1/8, how far does y move for n = 4? For n = 16?


# %%
def after_a_step(w, x, rate):
    return [a + rate * (1 if b > 0 else -1) for a, b in zip(w, x)]


for n, agree in ((4, 3), (16, 10)):  # weights of size 1/√n, of which so many have the sign of their x
    xs, ws = [1] * n, [1 / math.sqrt(n)] * agree + [-1 / math.sqrt(n)] * (n - agree)
    before, after = (sum(a * b for a, b in zip(v, xs)) for v in (ws, after_a_step(ws, xs, 0.125)))
    print(f"n = {n:2}: y from {before:g} to {after:g}, a change of {after - before:g} = n · η")

# %% [markdown]
# Start: √n. Step: n. **What is learned grows faster with the width than what is drawn.** So a fixed η that suits a
# narrow layer is too much for a wide one, and to change y by a fixed amount η must fall as 1/n.
#
# Is Adam's step what we said? PyTorch's is the oracle, on random numbers:

# %%
p = torch.nn.Parameter(torch.randn(1000, dtype=torch.float64))
inputs = torch.randn(1000, dtype=torch.float64)  # (n,)
start = p.detach().clone()
optimizer = torch.optim.AdamW([p], lr=0.125, eps=0, weight_decay=0)
(-(p @ inputs)).backward()  # (n,) @ (n,) -> a number that should grow
optimizer.step()
torch.testing.assert_close(p.detach(), start + 0.125 * inputs.sign())
print("AdamW's first step: w + η · sign(x)")

# %% [markdown]
# Now a whole layer of n outputs, where loops are slow. A naive one first, then the product of matrices. They must
# agree:

# %%
W, v = torch.randn(200, 200, dtype=torch.float64) / math.sqrt(200), torch.randn(200, dtype=torch.float64)
rows, column = W.tolist(), v.tolist()


def naive():
    return [sum(a * b for a, b in zip(row, column)) for row in rows]


torch.testing.assert_close(torch.tensor(naive(), dtype=torch.float64), W @ v)  # (n, n) @ (n,) -> (n,)

# %% [markdown]
# And how many times as fast?

# %% tags=["volatile"]
from utils.benchmarking import median, time_by_turns

times = median(time_by_turns({"naive": naive, "product": lambda: W @ v}, 9))
print(f"{times['naive'] / times['product']:.0f} × as fast")

# %% [markdown]
# Layers of width n, an input x of RMS 1, and a target that pulls at all outputs. Three steps with η = 0.01: Adam's sign
# of the gradient; the same with η · 32 / n; and Muon's, the gradient made orthogonal. The gradient of a layer for one
# input is an outer product, δ xᵀ.
#
# **Predict before you run (2).** An orthogonal matrix turns vectors and does not stretch them. How does the change of
# the output under Muon's step grow with n?

# %%
from pretraining.optimizers import orthogonalise

widths_of_toy, sizes = [32, 64, 128, 256, 512, 1024], {"start": [], "sign": [], "sign, 32/n": [], "orthogonal": []}


def rms(t):
    return float(t.square().mean().sqrt())


for n in widths_of_toy:
    g = torch.Generator().manual_seed(n)
    x, delta = torch.randn(n, generator=g), torch.randn(n, generator=g)  # (n,) both
    gradient = torch.outer(delta, x)  # (n, n)
    sizes["start"].append(rms(torch.randn(n, n, generator=g) @ x / math.sqrt(n)))  # (n, n) @ (n,) -> (n,)
    sizes["sign"].append(rms(0.01 * gradient.sign() @ x))
    sizes["sign, 32/n"].append(rms(0.01 * 32 / n * gradient.sign() @ x))
    sizes["orthogonal"].append(rms(0.01 * orthogonalise(gradient) @ x))
for name, some in sizes.items():
    print(f"{name:10} from width 32 to 1024: {some[-1] / some[0]:5.1f} ×")

# %% [markdown]
# Not at all: its step has a spectral norm of its own, η, whatever the width. The sign's change grows as n.

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for (name, some), style in zip(sizes.items(), ("o-", "s-", "s--", "^:")):
    axes.plot(widths_of_toy, some, style, color="black", markerfacecolor="white", markersize=5, label=name)
axes.set(xscale="log", yscale="log", xlabel="width n", ylabel="output, or its change (RMS)")
axes.set_xticks(widths_of_toy, [str(n) for n in widths_of_toy])
axes.minorticks_off()
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## 2. The rules
#
# Yang et al. (2022, *Tensor Programs V*) call the result the *maximal update parametrisation*, µP. We choose a base
# width at which nothing changes, here 128, and m = d / 128. With Adam:
#
# | parameters | start | rate | why |
# |---|---|---|---|
# | matrices of the blocks (n grows with d) | σ / √m | η / m | sums of n products, section 1 |
# | embedding, norms, biases | σ | η | no sum over the width: each number stands alone |
# | output matrix | σ | η, and the logits are divided by m | a sum over d whose result must not grow |
#
# Attention has a sum too: q · k over a head. Once learned, q and k agree, so it grows as the head's width, and µP
# divides by that and not by its root. Our heads have 16 numbers at every width, and a wider model has more of them.
# So the two differ by a fixed factor, and we leave it alone.
#
# The house's model is the standard parametrisation: everything starts with 0.02, all rates are η. Ours is a subclass of
# three lines.

# %%
from gpt_model import GPT, GPTConfig

BASE, V, CONTEXT = 128, 256, 32


class GPTWithDividedLogits(GPT):
    """The logits over m. m = 1 is the house's GPT."""

    m = 1.0

    def logits_of(self, hidden):
        return super().logits_of(hidden / self.m)  # (B, T, d) -> (B, T, V)


# %% [markdown]
# The parameter groups. `make_optimizers` already tells the blocks' matrices from the rest: `matrix_lr` is for them.

# %%
from pretraining.optimizers import make_optimizers


def make(d, kind, rate, seed=0):
    torch.manual_seed(seed)
    config = GPTConfig(V, CONTEXT, n_layer=2, n_head=d // 16, d_model=d, positions="rope", tie_embeddings=False)
    model, m = GPTWithDividedLogits(config), d / BASE
    if kind == "muon":
        return model, make_optimizers(model, "muon", rate, 4e-3, weight_decay=0.0)
    if kind == "standard":
        return model, make_optimizers(model, "adamw", rate, rate, weight_decay=0.0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2 and ".h." in name:
                p.div_(math.sqrt(m))
    model.m = m
    return model, make_optimizers(model, "adamw", rate / m, rate, weight_decay=0.0)


# %% [markdown]
# At the base width the two must be the same thing. And two numbers by hand: the parameters, 2 V d for embedding and
# output, 12 d² + 13 d a block, 2 d for the last norm; and the standard group's rates against ours at d = 256, m = 2.

# %%
a, b = make(BASE, "standard", 0.01)[0], make(BASE, "µP", 0.01)[0]
assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
assert a.n_parameters == 2 * V * 128 + 2 * (12 * 128**2 + 13 * 128) + 2 * 128
for kind in ("standard", "µP"):
    model, [adamw] = make(256, kind, 0.01)
    rates = {tuple(group["params"][0].shape): group["lr"] for group in adamw.param_groups}
    print(f"{kind:8} logits / {model.m:g}, rates {rates}")

# %% [markdown]
# ### Two ways to write the output
#
# Papers write µP in several ways, which look different. For the output: divide the logits by m and keep the rate η; or
# start with σ / m, and take the rate η / m. Adam does not care how long a gradient is, so both give the same function
# at every step. Asserted, over five steps of a layer alone with m = 4:

# %%
torch.manual_seed(0)
h, wanted, m = torch.randn(8, 16, dtype=torch.float64), torch.randint(10, (8,)), 4  # (tokens, d), (tokens,)
A = torch.nn.Parameter(torch.randn(10, 16, dtype=torch.float64))
C = torch.nn.Parameter(A.detach() / m)
pairs = [(A, m, torch.optim.Adam([A], lr=0.1, eps=0)), (C, 1, torch.optim.Adam([C], lr=0.1 / m, eps=0))]
for _ in range(5):
    outs = []
    for weight, divisor, optimizer in pairs:
        outs.append(h @ weight.mT / divisor)  # (tokens, d) @ (d, V) -> (tokens, V)
        torch.nn.functional.cross_entropy(outs[-1], wanted).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(*outs)
print("five steps: the same logits")

# %% [markdown]
# ## 3. The coordinate check
#
# Before any sweep there is a test that takes seconds: take a few steps, and see how far the activations have moved,
# over the width. If the rules are right the lines are level. The text is Python's language reference as bytes.

# %%
from gpt_model.evaluate import next_token_loss
from working_with_text_data.python_docs import standard_library, topics

text = torch.tensor(list("\n\n".join(topics(standard_library()).values()).encode()))  # (bytes,)
read, held = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]


def windows(ids, starts):
    return torch.stack([ids[i : i + CONTEXT + 1] for i in starts])  # (B, T + 1)


def batch(step, seed=0):
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    return windows(read, torch.randint(len(read) - CONTEXT, (16,), generator=generator).tolist())


# %% [markdown]
# One step of learning, with a share of the full rate:

# %%
from torch.nn.utils import clip_grad_norm_


def step_of(model, optimizers, ids, share=1.0):
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * group["peak_lr"]
    loss = next_token_loss(model, ids[:, :-1], ids[:, 1:])  # (B, T) both
    loss.backward()
    clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


# %% [markdown]
# Sanity: at both ends of our widths a fresh model is surprised by about ln 256, and one small batch is learnt by heart.
# At width 32 the logits are *multiplied* by 4, so that the start is a little further from knowing nothing.

# %%
for d in (32, 256):
    model, optimizers = make(d, "µP", 0.01)
    losses = [step_of(model, optimizers, batch(0)[:2]) for _ in range(80)]
    assert abs(losses[0] - math.log(256)) < 0.3 and min(losses) < 0.6
    print(f"width {d}: ln 256 = {math.log(256):.1f}, first loss {losses[0]:.1f}; by heart: below 0.6")

# %% [markdown]
# We listen at three places: the embedding, the first layer of the last block's MLP, the logits. Their change from
# before to after four steps, on a batch that was not trained on:

# %%
PLACES = ("embedding", "hidden layer", "logits")


@torch.no_grad()
def activations(model, ids):
    seen = []
    parts = (model.transformer.wte, model.transformer.h[-1].mlp.c_fc)
    hooks = [part.register_forward_hook(lambda _, __, out: seen.append(out.clone())) for part in parts]
    logits = model(ids[:, :-1])  # (B, T, V)
    for hook in hooks:
        hook.remove()
    return [*seen, logits]


def movement(model, optimizers, steps=4):
    before = activations(model, batch(99))
    for i in range(steps):
        step_of(model, optimizers, batch(i))
    return [rms(b - a) for a, b in zip(before, activations(model, batch(99)))]


# %% [markdown]
# **Predict before you run (3).** The rate is 2⁻⁸ for all. In the standard parametrisation, which of the three places
# moves more in a wider model, and which does not?

# %%
check_widths = [32, 64, 128, 256, 512]
moved = {kind: [movement(*make(d, kind, 2**-8)) for d in check_widths] for kind in ("standard", "µP")}
growth = {kind: [some[-1][i] / some[0][i] for i in range(3)] for kind, some in moved.items()}
assert growth["standard"][1] > 4 and growth["standard"][2] > 4
assert all(0.4 < x < 2.5 for x in growth["µP"]) and growth["standard"][0] < 1.5
print("standard: hidden layer and logits move over 4 × as far at 512 as at 32, the embedding does not")
print("µP: all three within a factor of 2.5")

# %% [markdown]
# ### A bug
#
# The output is easily forgotten: it is not in a block, and no rate of it changes. Here are the right rates without the
# division of the logits:

# %%
forgotten = []
for d in check_widths:
    model, optimizers = make(d, "µP", 2**-8)
    model.m = 1.0
    forgotten.append(movement(model, optimizers))
moved["µP, logits not divided"] = forgotten

# %% [markdown]
# All of it, over the width:

# %%
figure, grid = plt.subplots(1, 3, figsize=(9, 3), sharey=True, layout="constrained")
for axes, (kind, some) in zip(grid, moved.items()):
    for i, style in enumerate(("o:", "s--", "^-")):
        values = [x[i] for x in some]
        axes.plot(check_widths, values, style, color="black", markersize=4, mfc="white", label=PLACES[i])
    axes.set_title(kind, fontsize=9)
    axes.set(xscale="log", yscale="log", xlabel="width d")
    axes.set_xticks(check_widths, [str(d) for d in check_widths])
    axes.minorticks_off()
grid[0].set_ylabel("change after 4 steps (RMS)")
grid[0].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# **Seen:** on the right one line climbs. **Diagnosed:** it is the logits', and theirs alone. So the blocks have the
# right rates, and the sum over d that is left is the output's. **Mended:** the middle. No loss curve would have told
# us: each of these models learns. Measured against the width, the bug has a name.

# %%
growth_of_bug = forgotten[-1][2] / forgotten[0][2]
assert growth_of_bug > 3 * growth["µP"][2]
print("the forgotten division: the logits' growth is more than 3 times that of µP")

# %% [markdown]
# ## 4. What a sweep costs
#
# A step of learning costs 2 operations per weight and token forward and 4 backward. Weights of products are 12 d² a
# block and V d of the output; the embedding is looked up, not multiplied. With L = 2 and B T = 512. What attention adds
# by itself, about T / 6d of a block's, PyTorch's counter does not see on a CPU, and we leave it out, too.

# %%
from torch.utils.flop_counter import FlopCounterMode


def step_operations(d, n_layer=2, tokens=512):
    return 6 * tokens * (12 * n_layer * d**2 + V * d)


for d in (32, 256):
    model, optimizers = make(d, "standard", 1e-3)
    with FlopCounterMode(display=False) as counter:
        next_token_loss(model, batch(0)[:, :-1], batch(0)[:, 1:]).backward()
    assert counter.get_total_flops() == step_operations(d)
    print(f"width {d:3}: formula = counted: {step_operations(d):,} operations a step")

# %% [markdown]
# **Predict before you run (4).** How many rates can be tried at width 32 for the price of one at width 256? Eight times
# the width is not eight times the cost.

# %%
print(f"{step_operations(256) / step_operations(32):.0f} tries; time is another matter, see below")

# %% [markdown]
# ## 5. The sweep
#
# 80 steps, a warm-up of a tenth and a straight way down, as in notebook 14. What is measured is the loss on 128 windows
# of the text that was kept apart. All runs see the same batches.

# %%
import time

from pretraining.schedules import warmup_stable_decay

STEPS = 80
checks = windows(held, torch.linspace(0, len(held) - CONTEXT - 1, 128).long().tolist())  # (128, T + 1)
losses, curves, seconds = {}, {}, {}


def run(d, kind, rate):
    start = time.perf_counter()
    model, optimizers = make(d, kind, rate)
    shares = [warmup_stable_decay((i + 0.5) / STEPS, warmup=0.1) for i in range(STEPS)]
    curves[kind, d, rate] = [step_of(model, optimizers, batch(i), share) for i, share in enumerate(shares)]
    with torch.no_grad():
        losses[kind, d, rate] = next_token_loss(model, checks[:, :-1], checks[:, 1:]).item()
    seconds[kind, d, rate] = time.perf_counter() - start


def print_sweep(kind, rates):
    for d in sorted({d for k, d, _ in losses if k == kind}):
        row = [f"{losses[kind, d, r]:5.2f}" if (kind, d, r) in losses else "    –" for r in rates]
        print(f"{kind:8} {d:3}: {' '.join(row)}")


# %% [markdown]
# First the standard parametrisation. Rates are powers of two. The widest has four of them only, where its best may be,
# since it costs most of the time.

# %% tags=["volatile"]
RATES = [2.0**-k for k in range(12, 4, -1)]
for d, rates in ((32, RATES), (64, RATES), (128, RATES), (256, RATES[:4])):
    for rate in rates:
        run(d, "standard", rate)
print("rates       ", " ".join(f"2^{math.log2(r):.0f}".rjust(5) for r in RATES))
print_sweep("standard", RATES)

# %% [markdown]
# Read off the best of each row: the wider, the smaller. Now µP. Width 128 is its base, where both are the same.
#
# **Predict before you run (5).** Where will the best of each row be?

# %% tags=["volatile"]
for rate in RATES:
    for table in (losses, curves, seconds):
        table["µP", BASE, rate] = table["standard", BASE, rate]
for d, rates in ((32, RATES), (64, RATES), (256, RATES[1:5])):
    for rate in rates:
        run(d, "µP", rate)
print("rates       ", " ".join(f"2^{math.log2(r):.0f}".rjust(5) for r in RATES))
print_sweep("µP", RATES)

# %% [markdown]
# And Muon in the standard parametrisation, its embeddings, norms and output at 0.004. Two widths are enough to see a
# drift.

# %% tags=["volatile"]
MUON_RATES = [2.0**-k for k in range(7, 1, -1)]
for d in (32, 128):
    for rate in MUON_RATES:
        run(d, "muon", rate)
print("rates       ", " ".join(f"2^{math.log2(r):.0f}".rjust(5) for r in MUON_RATES))
print_sweep("muon", MUON_RATES)

# %% [markdown]
# The three as curves. A ring marks the best of each width.

# %% tags=["volatile"]


def valley(kind, d):
    rates = sorted(r for k, e, r in losses if (k, e) == (kind, d))
    return rates, [losses[kind, d, r] for r in rates]


figure, grid = plt.subplots(1, 3, figsize=(9.5, 3.2), sharey=True, layout="constrained")
for axes, kind in zip(grid, ("standard", "µP", "muon")):
    for (d, gray), style in zip(((32, 0.6), (64, 0.45), (128, 0.25), (256, 0.0)), (":", "-.", "--", "-")):
        rates, some = valley(kind, d)
        if rates:
            axes.plot(rates, some, style, color=str(gray), label=f"d = {d}")
            axes.plot(rates[some.index(min(some))], min(some), "o", color=str(gray), markerfacecolor="white")
    axes.set_xscale("log", base=2)
    axes.set_title(kind, fontsize=9)
    axes.set(xlabel="learning rate η", ylim=(2.1, 3.6))
    axes.legend(frameon=False, fontsize=8, loc="upper right")
grid[0].set_ylabel("held-out loss (nats a byte)")
plt.show()

# %% [markdown]
# What of that is more than noise? We assert only what leaves room: the standard best falls at least fourfold from 32 to
# 256, µP's moves by one step of the grid at most.


# %%
def best_rate(kind, d):
    rates, some = valley(kind, d)
    return rates[some.index(min(some))]


assert best_rate("standard", 32) >= 4 * best_rate("standard", 256)
assert all(0.5 <= best_rate("µP", d) / best_rate("µP", BASE) <= 2 for d in (32, 64, 256))
print("standard: the best rate falls at least 4 × from width 32 to 256; µP: it stays, but for a step of the grid")

# %% [markdown]
# The best rate over the width, with the 1/d of section 1 for comparison. Muon is left out: at width 32 its valley is so
# flat that the place of the ring is chance.

# %% tags=["volatile"]
figure, axes = plt.subplots(figsize=(5.5, 3), layout="constrained")
for kind, style in (("standard", "s-"), ("µP", "o--")):
    ds = sorted({d for k, d, _ in losses if k == kind})
    axes.plot(ds, [best_rate(kind, d) for d in ds], style, color="black", markerfacecolor="white", label=kind)
axes.plot([32, 256], [best_rate("standard", 32), best_rate("standard", 32) / 8], color="0.7", label="1/d")
axes.set_xscale("log", base=2)
axes.set_yscale("log", base=2)
axes.set(xlabel="width d", ylabel="best learning rate")
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## 6. What it is worth
#
# The question was: take the best rate of width 32 to the wide model. What is lost against the best that the wide one
# has in the grid? Where that run was not among the wide one's four, it is made now. Muon's wide model is 128.

# %% tags=["volatile"]
for kind, d in (("standard", 256), ("µP", 256), ("muon", 128)):
    rate = best_rate(kind, 32)
    if (kind, d, rate) not in losses:
        run(d, kind, rate)
    lost = losses[kind, d, rate] - min(valley(kind, d)[1])
    print(f"{kind:8}: rate 2^{math.log2(rate):.0f} gives {losses[kind, d, rate]:.2f}, {lost:.2f} above the best there")

# %% [markdown]
# The loss curves of the first two, each with the rate that was best at width 32:

# %% tags=["volatile"]
figure, axes = plt.subplots(figsize=(5.5, 3), layout="constrained")
for kind, style in (("standard", "-"), ("µP", "--")):
    some = torch.tensor(curves[kind, 256, best_rate(kind, 32)]).unfold(0, 5, 1).mean(dim=1)  # (steps - 4, 5) -> mean
    axes.plot(range(4, STEPS), some.tolist(), style, color="black", label=kind)
axes.set(xlabel="step (mean over 5)", ylabel="training loss (nats a byte)")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# And what a sweep of eight rates took at each width. Operations by the formula, seconds as measured:

# %% tags=["volatile"]
for d in (32, 64, 128):
    sweep = sum(seconds["standard", d, rate] for rate in RATES)
    print(f"width {d:3}: {8 * STEPS * step_operations(d) / 1e9:5.0f} billion operations, {sweep:4.0f} s")
sweep = 8 * sum(seconds["standard", 256, rate] for rate in RATES[:4]) / 4  # had all eight been run
print(f"width 256: {8 * STEPS * step_operations(256) / 1e9:5.0f} billion operations, {sweep:4.0f} s")

# %% [markdown]
# Seconds grow more slowly than operations: at width 32 a step is mostly overhead. Price a
# sweep in both before you trust the small one to be free.
#
# **What transferred, and what did not.**
#
# - In the standard parametrisation the best rate fell with the width, at least as fast as 1/d. Under µP it
#   stayed.
# - *µP did not give the lower loss.* Compare the best of each row at width 256: with its own rate the standard
#   parametrisation does as well or better here. µP saves the search, and promises nothing else.
# - The base is a choice, too. With 128 the house's 0.02 is the start of a model of that width. Set BASE = 32 and run
#   again: then all wide models begin smaller, and the losses are others.
# - Muon lost little by the transfer, and section 1 is only half of the reason: its valley is flat. At width 128 a
#   factor of 16 in the rate costs it less than a factor of 4 costs AdamW.
# - One seed, 80 steps, steps of a factor of 2. Neighbours in a row that differ by some hundredths are equal. Whether a
#   rate also holds for more steps, more layers or a larger batch was not asked: those have rules of their own.
#
# ## 7. Exercises
#
# Write the body in place of the dots and run the cell. The check says what is missing.

# %%
from pretraining.exercises.ex19 import (
    check_growth_exponent,
    check_hidden_deviation,
    check_rate_for,
    check_sweep_operations,
)
from utils.exercises import attempt

# %% [markdown]
# **A. The rate of each parameter** (easy, 5 minutes) `name` and `shape` are of a parameter of our GPT, `m` is the width
# multiplier. Return its rate with Adam under µP. The logits are divided by m elsewhere.


# %%
def rate_for(name, shape, rate, m): ...


attempt(check_rate_for, rate_for)

# %% [markdown]
# **B. The start of a matrix** (easy, 5 minutes) At the width `base` the blocks' matrices start with `deviation`.
# Return the deviation at `width`, so that outputs have the same size.


# %%
def hidden_deviation(width, base, deviation): ...


attempt(check_hidden_deviation, hidden_deviation)

# %% [markdown]
# **C. A coordinate check in a number** (medium, 10 minutes) `changes` are measured at `widths`, two lists of floats.
# If a change grows as dᵃ its logarithm is a straight line over that of d. Return its slope a, the least-squares line
# through *all* points.


# %%
def growth_exponent(widths, changes): ...


attempt(check_growth_exponent, growth_exponent)

# %% [markdown]
# **D. The price of a sweep** (medium, 10 minutes) `tries` runs of `steps` steps of `tokens` tokens, a model of width
# `d` with `n_layer` blocks and a vocabulary of `vocab`. Return the operations by section 4's formula, forward and
# backward, without attention.


# %%
def sweep_operations(tries, steps, tokens, d, n_layer, vocab): ...


attempt(check_sweep_operations, sweep_operations)

# %% [markdown]
# ### Solutions
#
# <details><summary>Solution: `rate_for`</summary>
#
# ```python
# def rate_for(name, shape, rate, m):
#     return rate / m if len(shape) == 2 and ".h." in name else rate
# ```
# </details>
#
# <details><summary>Solution: `hidden_deviation`</summary>
#
# ```python
# def hidden_deviation(width, base, deviation):
#     return deviation * (base / width) ** 0.5
# ```
# </details>
#
# <details><summary>Solution: `growth_exponent`</summary>
#
# ```python
# import math
#
#
# def growth_exponent(widths, changes):
#     xs, ys = [math.log(d) for d in widths], [math.log(c) for c in changes]
#     x, y = sum(xs) / len(xs), sum(ys) / len(ys)
#     return sum((a - x) * (b - y) for a, b in zip(xs, ys)) / sum((a - x) ** 2 for a in xs)
# ```
# </details>
#
# <details><summary>Solution: `sweep_operations`</summary>
#
# ```python
# def sweep_operations(tries, steps, tokens, d, n_layer, vocab):
#     weights = 12 * n_layer * d**2 + vocab * d
#     return tries * steps * tokens * 6 * weights
# ```
# </details>

# %% [markdown]
# ## 8. What you take along
#
# **Recap**
#
# - Random signs add up as √n, learned ones as n. So the start wants 1/√n, and Adam's rate 1/n.
# - That holds for sums over the width: the blocks' matrices and the output. Embeddings, norms and biases keep theirs.
# - A coordinate check takes seconds and shows which rule is broken, before any sweep.
# - Here the standard best rate fell with the width, and µP's stayed. Its losses were not lower for that.
# - Muon's step has the same spectral norm at every width.
#
# **Pitfalls**, each seen above: the logits not divided; a base width whose start is too small for the wide; a best
# rate read from one seed and a flat valley; a sweep priced in operations and paid in seconds.
#
# ### Reading guide
#
# Where the house decides which parameter is which, and µP would have to come in: the lines of `make_optimizers` from
# `matrices` to `vectors`. What keeps Muon's step one length is the last line but two of its `step`. The whole of the
# rest of Muon is in

# %%
import inspect

print(inspect.getsource(orthogonalise))

# %% [markdown]
# Tall matrices get √(rows / columns) times more. A step from d to 4d numbers then has twice the spectral norm, and that
# factor is the same at every width: it does not disturb the transfer. Asserted for the layer's two shapes:

# %%
from pretraining.optimizers import Muon

for shape in ((256, 64), (1024, 256)):
    p = torch.nn.Parameter(torch.zeros(shape))
    p.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    Muon([p], lr=1.0).step()
    norm = float(torch.linalg.matrix_norm(p.detach(), 2))
    assert 2 * 0.7 < norm < 2 * 1.3
    print(f"{shape}: spectral norm of the step between 1.4 and 2.6")

# %% [markdown]
# The house's `pretrain.py` has no µP: its `modern` preset uses Muon. What is in this notebook, three lines of a
# subclass and a dozen of groups, is all that it takes to try.
#
# **CUDA, Apple's MPS, Windows.** None of them was run here. On CUDA widths that are no multiples of 64 run below the
# hardware's speed, so seconds over width have steps in them. In half precision the logits of a wide standard model
# may grow out of range where µP's do not; the coordinate check should be run in the precision of the training. MPS
# has no float64: the toy cells that ask for it would have to stay on the CPU. Nothing here depends on paths or
# processes, which is where Windows differs.
#
# **Sources.** Yang et al. 2022, *Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter
# Transfer* · Yang, Simon and Bernstein 2023, *A Spectral Condition for Feature Learning* · Jordan et al. 2024, *Muon*
# · Kingma and Ba 2015, *Adam*.
#
# **The next question.** The model has read a text and can go on with it. But a person who asks a question wants an
# answer and not more questions of the same kind. What has to be learned besides? Chapter 5, `finetuning`.
