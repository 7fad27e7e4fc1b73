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
# # Scaling laws on a laptop
#
# **You have one computer and one hour. How large should the model be, and how many tokens should it read?**
#
# A large model learns more from each token. A small one reads more tokens in the same time. Somewhere between lies the
# best size. You cannot try all sizes at full length, since that would cost many times the hour. So one trains small
# models briefly, finds the rule that their losses follow, and continues the rule. Here we do all of it, with models
# that train in seconds, and look at how far such a rule can be trusted.
#
# | | |
# |---|---|
# | you know | the GPT's body (notebook 06); what a learning rate is; logarithms |
# | you need | about 90 minutes, exercises apart; any laptop: no GPU, no network, one gigabyte of memory |
# | files | `scaling_benchmark.py` of this folder; `flops_per_token` in `training_loop.py`; `schedules.py` |
#
# | letter | meaning | unit |
# |---|---|---|
# | N | weights of a model | – |
# | D | tokens that it reads in training | tokens |
# | C | compute of the training | FLOPs |
# | L | loss on validation text | nats per token |
# | E, A, B | what stays; what size removes; what text removes | nats, and scales |
# | α, β | exponents of N and of D | – |
# | a | exponent of the best size: N ~ C^a | – |
# | B, T, d, V | windows, their length, the width, the vocabulary (in shapes only) | – |

# %% [markdown]
# What we need is on your machine already.

# %%
import math
from copy import deepcopy

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

torch.set_num_threads(1)  # the models are tiny, and threads on a busy machine wait for each other

# %% [markdown]
# ## 1. A power law, by hand
#
# Three models of 1, 4 and 16 weights have losses of 9, 5 and 3. Each model is four times as large as the one before,
# and the loss goes down by 4, then by 2. It halves *something* each time. What?
#
# If L = E + A / N^α, then L - E shrinks by one factor at each step, so (9 - E)(3 - E) = (5 - E)². The squares cancel:
# 27 - 12 E = 25 - 10 E, and **E = 1**. Then L - 1 is 8, 4, 2: halved where N is four times as large. So α = 1/2, A = 8.

# %%
sizes, losses = [1, 4, 16], [9, 5, 3]
first, second, third = losses
E = (first * third - second**2) / (first + third - 2 * second)
alpha = math.log((first - E) / (second - E)) / math.log(sizes[1] / sizes[0])
A = (first - E) * sizes[0] ** alpha
print(f"L = {E:.0f} + {A:.0f} / N^{alpha:.1f}")

# %% [markdown]
# **Predict before you run (1).** What is the loss at 64 weights? And at 10,000?

# %%
for n in (64, 10_000):
    print(f"N = {n:6}: L = {E + A / n**alpha:.2f}")

# %% [markdown]
# The steps get smaller and smaller, and 1 is never reached. On axes that are both logarithmic, L - E is a straight line
# and its slope is -α. L itself is not: it bends towards E. Who draws a straight line through L promises too much.

# %%
figure, axes = plt.subplots(figsize=(5.5, 3), layout="constrained")
n = np.geomspace(1, 1000, 50)
axes.plot(n, E + A / n**alpha, "k-", label="L")
axes.plot(n, A / n**alpha, "k--", label="L - E, a straight line")
axes.plot(n, 9 * n ** (-math.log(3) / math.log(16)), ":", color="0.5", label="a line through the first and the last L")
axes.plot(sizes, losses, "ko")
axes.set(xscale="log", yscale="log", xlabel="weights N", ylabel="loss (nats per token)")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ### Two ways to spend
#
# Tokens count, too: L = 1 + 8/√N + 8/√D. A weight does about 6 operations for each token (section 2), so a budget C
# buys any N and D with 6 · N · D = C. Let N · D be 256. By hand: N = 4 leaves D = 64, and L = 1 + 4 + 1 = 6. N = 16
# leaves D = 16, and L = 1 + 2 + 2 = 5. N = 64 gives 6 again. The best is 16.
#
# **Predict before you run (2).** The budget is now 16 times as large, N · D = 4096. Which N is best: 16, 64 or 256?

# %%
for product in (256, 4096):
    losses = {n: 1 + 8 / math.sqrt(n) + 8 / math.sqrt(product / n) for n in (4, 16, 64, 256)}
    print(f"N · D = {product:4}: {losses}, best N = {min(losses, key=losses.get)}")

# %% [markdown]
# Four times as large with 16 times the budget: N grows as C^½, and so does D. With exponents that differ, the optimum
# is where the slopes of both terms are equal, and it moves as **N ~ C^a with a = β / (α + β)** (Hoffmann et al. 2022,
# equation 4). That exponent is what all this is about. Kaplan et al. 2020 found a = 0.73: ten times the compute, five
# times the model. Hoffmann et al. found about 0.5, and a model of 70 billion weights with it that beat one of 280
# billion. Section 8 looks at one of the reasons that were named for the difference.
#
# ## 2. What does a token cost?
#
# One product of a weight and an activation is 2 FLOPs: multiply and add. Backward there are two such products for each,
# one for the gradient of the input and one for that of the weight. So 2 + 4 = 6. PyTorch can count what really runs.

# %%
from torch.utils.flop_counter import FlopCounterMode

W = torch.ones(3, 5, requires_grad=True)
x = torch.ones(7, 3, requires_grad=True)
with FlopCounterMode(display=False) as counter:
    (x @ W).sum().backward()  # (7, 3) @ (3, 5) -> (7, 5)
print(counter.get_total_flops(), "counted, 6 · weights · tokens =", 6 * 15 * 7)

# %% [markdown]
# Now a model. The vocabulary is 96 characters: the newline and what a typewriter has. The recipe is the house's
# `modern`: rotary positions, RMSNorm, no biases. So all weights are in products, but for the norms.

# %%
from gpt_model import GPT, GPTConfig

V, T = 96, 64
MODERN = {"positions": "rope", "qk_norm": True, "norm": "rmsnorm", "bias": False}


def make_model(n_layer, d):
    torch.manual_seed(0)
    return GPT(GPTConfig(V, T, n_layer, d // 16, d, **MODERN))


# %% [markdown]
# By hand: the embedding, which is the output matrix as well, has V · d weights. A block has 12 d²: 4 d² in the
# attention and 8 d² in the MLP. Each block has two norms of d, and one more stands at the end.

# %%
SIZES = [(1, 16), (1, 32), (2, 32), (2, 48), (3, 64)]
for n_layer, d in SIZES:
    by_hand = V * d + n_layer * (12 * d**2 + 2 * d) + d
    assert by_hand == make_model(n_layer, d).n_parameters
    print(f"{n_layer} x {d}: {by_hand:7,} weights, {12 * n_layer * d**2 / by_hand:.0%} of them in the blocks")

# %% [markdown]
# The house's formula is `flops_per_token`: 6 · N, and 12 · n_layer · d · T for attention, whose keys and values meet
# each other and no weight. Against the counter, attention written out as two products so that each is counted:

# %%
from torch.nn.attention import SDPBackend, sdpa_kernel

from pretraining.training_loop import flops_per_token


def counted_per_token(model):
    ids = torch.zeros(2, T, dtype=torch.long)  # (B, T)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()  # (B · T, V) and (B · T,)
    return counter.get_total_flops() / ids.numel()


# %% [markdown]
# **Predict before you run (3).** 6 · N with all weights, 6 · N with the blocks' weights alone, the formula: which is
# nearest to what is counted in the smallest model, and which is the furthest off?

# %%
for n_layer, d in SIZES:
    model = make_model(n_layer, d)
    counted, blocks = counted_per_token(model), 6 * 12 * n_layer * d**2
    assert abs(counted / flops_per_token(model) - 1) < 0.015
    print(f"{n_layer} x {d}: counted {counted:9,.0f}, formula {flops_per_token(model) / counted:.2f} of it,", end=" ")
    print(f"6N {6 * model.n_parameters / counted:.2f}, 6N of blocks {blocks / counted:.2f}")

# %% [markdown]
# The formula is right to about a hundredth: it counts the norms, whose weights are in no matrix product. The blocks
# alone miss more than half of the smallest model. This is not a detail. Kaplan et al. left the embeddings out, and at
# small sizes that alone bends the exponent (Pearce and Song 2024; Porian et al. 2024). Below, N is *all* weights and C
# is the formula times D.

# %%
figure, axes = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
shapes = {f"{n} x {d}": (n, d, V, T) for n, d in SIZES} | {"GPT-2, 124M": (12, 768, 50257, 1024)}
shapes |= {"70B, 80 x 8192": (80, 8192, 32000, 2048)}
parts = np.array([[12 * n * d * d, v * d, 2 * n * d * t] for n, d, v, t in shapes.values()], dtype=float)  # (models, 3)
parts /= parts.sum(axis=1, keepdims=True)
for i, (name, grey) in enumerate((("blocks' weights", "0.35"), ("output matrix", "0.95"), ("attention", "0.7"))):
    axes.barh(list(shapes), parts[:, i], left=parts[:, :i].sum(axis=1), color=grey, edgecolor="black", label=name)
axes.set(xlabel="share of the FLOPs of a token", xlim=(0, 1))
axes.invert_yaxis()
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## 3. Text, and a first step
#
# Python's documentation is on every machine. `characters` makes ids of it; every tenth document is kept for validation.
# Losses below are means over 384 windows of validation text, the same ones for all models.

# %%
from pretraining.scaling_benchmark import ScalingBenchmark, read_text
from working_with_text_data.token_shards import Batches

text, (inputs, targets) = read_text(ScalingBenchmark())  # (characters,), (windows, T) twice
inputs, targets = torch.from_numpy(inputs[:384]), torch.from_numpy(targets[:384])
assert len(text) > 1_000_000 and text.max() < V
batches = Batches([text], context_length=T, batch_size=8)


@torch.no_grad()
def validation_loss(model):
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item()  # (B · T, V) and (B · T,)


# %% [markdown]
# Two sanity numbers. A new model knows nothing and should be as surprised as a guess among 96: ln 96 = 4.56 nats. And
# how many steps does the text last, at 8 · 64 = 512 tokens a step?

# %%
loss = validation_loss(make_model(2, 48))
assert abs(loss - math.log(V)) < 0.1
assert len(text) > 3000 * 512
print(f"at the start {loss:.1f} nats, ln V = {math.log(V):.1f}; an epoch has more than 3,000 steps")

# %% [markdown]
# One step of training, by the house's optimiser: Muon for the blocks' matrices, AdamW for the rest. `scale` is the
# share of the full learning rate.


# %%
def make(n_layer, d, factor=1.0):
    model, rate = make_model(n_layer, d), factor * 0.02 * 64 / d
    return model, make_optimizers(model, "muon", matrix_lr=rate, other_lr=rate, weight_decay=0.1)


def step(model, optimizers, batch, scale):
    inputs, targets = map(torch.from_numpy, batch)  # (B, T) both
    loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())  # (B · T, V) and (B · T,)
    loss.backward()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = scale * group["peak_lr"]
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


# %% [markdown]
# Sanity again: the same batch, over and over, must be learned by heart.

# %%
from pretraining.optimizers import make_optimizers

model, optimizers = make(2, 48)
one = batches.batch(0)
curve = [step(model, optimizers, one, 1.0) for _ in range(150)]
assert curve[-1] < 0.3 < 4 < curve[0]
print(f"one batch: from {curve[0]:.1f} to below 0.3 nats in {len(curve)} steps")

# %% [markdown]
# ### The learning rate, a rule by size
#
# A rate that is right for one size may be wrong for another. Then we would compare how well the rates were chosen, and
# not the sizes. A common rule is to divide by the width; `make` has 0.02 · 64 / d. Is it good here? Half of it and
# twice of it, for the smallest and the largest model. The schedule is up for ten steps, level, and down over the last
# quarter.

# %%
from pretraining.schedules import warmup_cosine, warmup_stable_decay

WARMUP, DECAY = 10, 0.25


def wsd(i, steps):
    return warmup_stable_decay((i + 0.5) / steps, WARMUP / steps, DECAY)


def train(n_layer, d, steps, schedule=wsd, factor=1.0, batches=batches):
    model, optimizers = make(n_layer, d, factor)
    for i in range(steps):
        step(model, optimizers, batches.batch(i), schedule(i, steps))
    return model


# %% [markdown]
# Losses have a third digit that another processor may change. Cells that print them are not compared when the notebook
# is checked; what must hold everywhere is asserted.

# %% tags=["volatile"]
rates = {size: [validation_loss(train(*size, 80, factor=f)) for f in (0.5, 1, 2)] for size in ((1, 16), (3, 64))}
for size, found in rates.items():
    print(size, "half, rule, double:", [round(loss, 2) for loss in found])
assert all(found[1] < min(found) + 0.12 for found in rates.values())

# %% [markdown]
# The rule is nowhere far from the best of the three. Not more than that: who wants the last hundredth has to search
# each size and each length.
#
# ## 4. One trunk, many ends
#
# We want each size at several lengths, each run *with a schedule that ends there*. The plain way is a run for each: D
# + 2D + 4D + 8D tokens. But warm-up, stable, decay has a level part that does not know when it will end. So: one level
# run, the *trunk*. Where a length asks for its decay, copy model and optimiser, and let the copy decay (Hu et al.
# 2024; Hägele et al. 2024).


# %%
def train_naive(n_layer, d, lengths):
    return [validation_loss(train(n_layer, d, steps)) for steps in lengths]


def train_branches(n_layer, d, lengths):
    (model, optimizers), done, losses = make(n_layer, d), 0, []
    for steps in lengths:
        turn = round((1 - DECAY) * steps)
        for i in range(done, turn):
            step(model, optimizers, batches.batch(i), wsd(i, 10**9 if i >= WARMUP else steps))
        done, (end, its) = turn, deepcopy((model, optimizers))
        for i in range(turn, steps):
            step(end, its, batches.batch(i), wsd(i, steps))
        losses.append(validation_loss(end))
    return losses


# %% [markdown]
# By hand, for 40, 80 and 160 steps: a run each is 280 steps. The trunk has 0.75 · 160 = 120 and the ends have a
# quarter of 280, which is 70: together 190. Both ways take the same steps on the same batches, so the losses must be
# *equal*.

# %%
lengths = [40, 80, 160]
naive, fast = train_naive(1, 16, lengths), train_branches(1, 16, lengths)
assert naive == fast
branch_steps = (1 - DECAY) * max(lengths) + DECAY * sum(lengths)
print(f"equal to the last bit, for {branch_steps:.0f} steps in place of {sum(lengths)}")

# %% [markdown]
# And on the clock, by turns:

# %% tags=["volatile"]
from utils.benchmarking import median, time_by_turns

ways = {"a run each": lambda: train_naive(1, 16, lengths), "branches": lambda: train_branches(1, 16, lengths)}
seconds = median(time_by_turns(ways, 1))
ratio = seconds["a run each"] / seconds["branches"]
print(f"{seconds['a run each']:.2f} s and {seconds['branches']:.2f} s: {ratio:.2f} ×, by steps {280 / 190:.2f} ×")

# %% [markdown]
# ## 5. The runs
#
# Four budgets, each twice the one before. Each size gets as many steps as the budget pays: C / (FLOPs a token) / 512.
# Two exceptions, both with a reason. Runs below 80 steps are left out: they are beginnings, and follow no law yet.
# Runs of more than a million tokens are left out for the time that they take.

# %%
BUDGETS = [2e10 * 2**k for k in range(4)]


def steps_for(size, budget):
    return 4 * round(budget / flops_per_token(make_model(*size)) / 512 / 4)  # whole quarters, for the decay


plan = {size: [s for b in BUDGETS if 80 <= (s := steps_for(size, b)) <= 1_000_000 / 512] for size in SIZES}
for size, lengths in plan.items():
    print(size, "steps:", lengths)

# %% [markdown]
# **Predict before you run (4).** With the largest budget, is the best size the largest, the smallest, or one between?
# The cell takes most of this notebook's time.

# %%
runs = []  # (size, weights, tokens, FLOPs, loss)
for size, lengths in plan.items():
    for steps, loss in zip(lengths, train_branches(*size, lengths)):
        model = make_model(*size)
        runs.append((size, model.n_parameters, 512 * steps, 512 * steps * flops_per_token(model), loss))
N, D, C, L = (np.array([run[i] for run in runs], dtype=float) for i in (1, 2, 3, 4))  # (runs,) each
print(len(runs), "runs, all of them better than at the start:", bool((math.log(V) > L).all()))

# %% tags=["volatile"]
for size, n, d, c, loss in runs:
    print(f"{size[0]} x {size[1]}: N = {n:7,}, D = {d:7,}, C = {c:.1e}, D / N = {d / n:5.1f}, L = {loss:.2f}")

# %% [markdown]
# Loss against compute. Each size falls and then flattens, and gets overtaken by a larger one. The lower edge of all is
# the *envelope*: the best that can be had for a budget, with these sizes.

# %%
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for i, size in enumerate(SIZES):
    mine = [j for j, run in enumerate(runs) if run[0] == size]
    axes.plot(C[mine], L[mine], marker="osv^D"[i], color=str(0.15 * i), label=f"{N[mine[0]]:,.0f} weights")
best = [L[np.abs(C / b - 1) < 0.1].min() for b in BUDGETS]
axes.plot(BUDGETS, best, color="0.8", linewidth=7, zorder=0, label="envelope")
axes.set(xscale="log", xlabel="compute C (FLOPs)", ylabel="loss (nats per character)")
axes.set_xticks(BUDGETS, [f"{b:.1e}" for b in BUDGETS])
axes.minorticks_off()
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## 6. The best size for a budget
#
# Now cut the other way: fix the budget, go through the sizes. Such a curve is an *isoFLOP*. Too small a model is full,
# too large a one has read too little. A parabola through loss over log N has its lowest point at the best size.


# %%
def lowest(n, losses):
    curve, slope, _ = np.polyfit(np.log(n), losses, 2)
    return math.exp(-slope / (2 * curve))


at_budget = {b: np.flatnonzero(np.abs(C / b - 1) < 0.1) for b in BUDGETS}
optima = {b: lowest(N[i], L[i]) for b, i in at_budget.items()}
for b, i in at_budget.items():
    assert N[i].min() < optima[b] < N[i].max()
print("an optimum between the smallest and the largest that were tried, at each of", len(optima), "budgets")

# %% [markdown]
# So the answer to (4): one between. Both arms of each curve go up, since too large is as wrong as too small.

# %% tags=["volatile"]
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for k, (b, i) in enumerate(at_budget.items()):
    grid = np.geomspace(N[i].min(), N[i].max(), 50)
    axes.plot(N[i], L[i], "osv^D"[k], color="black", markersize=5, label=f"{b:.1e} FLOPs")
    axes.plot(grid, np.polyval(np.polyfit(np.log(N[i]), L[i], 2), np.log(grid)), "-", color="0.6", zorder=0)
    axes.plot(optima[b], np.polyval(np.polyfit(np.log(N[i]), L[i], 2), np.log(optima[b])), "*k", markersize=11)
axes.set(xscale="log", xlabel="weights N (stars: lowest points)", ylabel="loss (nats per character)")
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()
iso_exponent = np.polyfit(np.log(BUDGETS), np.log(list(optima.values())), 1)[0]
print("best sizes:", [f"{n:,.0f}" for n in optima.values()], f"N ~ C^{iso_exponent:.2f}")

# %% [markdown]
# ## 7. The law
#
# One formula for all runs (Hoffmann et al. 2022, equation 2):
#
# $$L(N, D) = E + \frac{A}{N^{\alpha}} + \frac{B}{D^{\beta}}$$
#
# Five numbers. Two of them are in exponents, where least squares has no formula. But *if α and β are known, the rest is
# linear*: three columns, 1, N^-α and D^-β. So go through a grid of exponents, solve three unknowns in each cell, and
# keep the best. We count errors as shares of the loss.


# %%
def fit_naive(n, d, losses, alphas, betas):
    best = (math.inf,)
    for alpha in alphas:
        for beta in betas:
            columns = np.stack([np.ones(len(n)), n**-alpha, d**-beta], axis=1) / losses[:, None]  # (runs, 3)
            found = np.linalg.lstsq(columns, np.ones(len(n)), rcond=None)[0]  # (3,)
            squares = ((columns @ found - 1) ** 2).sum()
            if (found > 0).all() and squares < best[0]:
                best = (squares, alpha, beta)
    return best


# %% [markdown]
# First on points that *were made* by a law, with the numbers that Hoffmann et al. published. If the fit cannot find
# those, it can find nothing. The module's `fit_cells` solves all cells of a grid at once.

# %%
from pretraining.scaling_benchmark import Law, bootstrap_exponents, fit_cells, fit_law

chinchilla = Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 1e10, 4), np.geomspace(1e9, 1e12, 4)))  # (16,) each
axis = np.linspace(0.1, 0.5, 41)
squares, alpha, beta = fit_naive(n / 1e8, d / 1e10, chinchilla.loss(n, d), axis, axis)
print(f"naive: α = {alpha:.2f}, β = {beta:.2f}")

# %% [markdown]
# All 1,681 cells at once, the same cell:

# %%
every_alpha, every_beta = (x.ravel() for x in np.meshgrid(axis, axis, indexing="ij"))  # (cells,) each


def fit_fast():
    _, squares = fit_cells(n / 1e8, d / 1e10, chinchilla.loss(n, d), every_alpha, every_beta)  # (cells,)
    return every_alpha[squares.argmin()], every_beta[squares.argmin()]


assert fit_fast() == (alpha, beta)
found = fit_law(n, d, chinchilla.loss(n, d))
print(f"naive = fast; finer grids around it: E = {found.E:.2f}, α = {found.alpha:.2f}, β = {found.beta:.2f}")

# %% tags=["volatile"]
ways = {"naive": lambda: fit_naive(n, d, chinchilla.loss(n, d), axis, axis), "fast": fit_fast}
seconds = median(time_by_turns(ways, 5))
naive, fast = seconds["naive"], seconds["fast"]
print(f"naive {naive * 1e3:.0f} ms, fast {fast * 1e3:.1f} ms: {naive / fast:.0f} ×")

# %% [markdown]
# Now our runs, and scipy's general optimiser as an outside oracle. It starts from our answer *moved away*, knows
# nothing of the grid, and must not find anything better.

# %%
import scipy.optimize

law = fit_law(N, D, L)


def errors(x):
    return Law(*np.exp(x[:3]), *x[3:]).loss(N, D) / L - 1  # (runs,)


ours = ((law.loss(N, D) / L - 1) ** 2).sum()
start = [*np.log([max(law.E, 0.1), 1.3 * law.A, 0.7 * law.B]), law.alpha, law.beta]
theirs = 2 * scipy.optimize.least_squares(errors, start, x_scale="jac", max_nfev=5000).cost
assert ours <= theirs * 1.02
print("scipy finds no better law")

# %% tags=["volatile"]
print(f"L = {law.E:.2f} + {law.A:.3g} / N^{law.alpha:.2f} + {law.B:.3g} / D^{law.beta:.2f}")
print(f"typical error {math.sqrt(ours / len(L)):.1%} of the loss; a = β / (α + β) = {law.size_exponent:.2f}")

# %% [markdown]
# ### Can it foresee?
#
# A formula with five numbers fits many things. The test is a run that it has not seen. Fit the four smaller sizes, and
# predict the largest.
#
# **Predict before you run (5).** How far off will it be: a thousandth, a hundredth, a tenth of the loss? Too high, or
# too low?

# %%
seen = N.max() > N
without = fit_law(N[seen], D[seen], L[seen])
off = without.loss(N[~seen], D[~seen]) / L[~seen] - 1
inside = np.abs(without.loss(N[seen], D[seen]) / L[seen] - 1)
assert np.abs(off).max() > inside.mean()
print(f"the {len(off)} unseen runs: the worst is further off than the mean of those that were fitted")

# %% tags=["volatile"]
figure, axes = plt.subplots(figsize=(4.6, 3.4), layout="constrained")
axes.plot(L[seen], without.loss(N[seen], D[seen]), "o", color="0.5", markerfacecolor="none", label="fitted")
axes.plot(L[~seen], without.loss(N[~seen], D[~seen]), "D", color="black", label="held out: the largest size")
axes.axline((L.min(), L.min()), slope=1, color="0.7", linewidth=1)
axes.set(xlabel="measured loss (nats per character)", ylabel="predicted loss")
axes.legend(frameon=False, fontsize=8)
plt.show()
print("fitted, mean error:", f"{inside.mean():.1%};", "held out:", [f"{x:+.1%}" for x in off])

# %% [markdown]
# The prediction is too low: the law promises more than the size keeps. Inside the range the formula is good, and one
# step outside it is several times worse. The runs that it has not seen are also those with few steps, where learning
# has just begun. So they differ from the others in two things at once, and we cannot say which one it is.
#
# ### How sure is the exponent?
#
# Draw the runs anew, with replacement, and fit again: the *bootstrap*. What changes from draw to draw is what the data
# do not decide.

# %%
exponents = bootstrap_exponents(N, D, L, times=200)
low, high = exponents[len(exponents) // 20], exponents[-1 - len(exponents) // 20]
assert high - low > 0.02
print("the middle 90 % are wider than 0.02: a second digit would be a claim")

# %% tags=["volatile"]
figure, axes = plt.subplots(figsize=(5.5, 2.6), layout="constrained")
axes.hist(exponents, bins=25, color="0.8", edgecolor="0.4")
for x, style, name in ((law.size_exponent, "-", "the law, all runs"), (iso_exponent, "--", "the parabolas")):
    axes.axvline(x, color="black", linestyle=style, label=name)
axes.set(xlabel="exponent a of the best size, N ~ C^a", ylabel="draws")
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()
print(f"fit {law.size_exponent:.2f}, middle 90 % {low:.2f} to {high:.2f}; parabolas {iso_exponent:.2f}")

# %% [markdown]
# The formula and the parabolas do not agree on our runs, and both are reasonable ways to read them. The parabolas look
# at each budget alone. The formula wants one exponent β for all sizes and lengths, and pays for it with errors of a
# hundredth of the loss. The optimum is flat, so such errors move it far. The bootstrap does not know this: it knows
# the scatter of these runs, not that the formula may be wrong, nor what another seed, rate or batch would do. The true
# uncertainty is larger than its interval. Ask whoever quotes an exponent for the way it was found.
#
# ## 8. A loss that is read too early
#
# Branches are a nuisance. Somebody leaves them out and reads the loss of the level run as it goes: all lengths for the
# price of one, it seems. The same size, the same batches, the same number of tokens as in section 5.


# %%
def level(i, steps):
    return min(1.0, (i + 0.5) / WARMUP)


def read_on_the_way(schedule, lengths, size=(1, 32)):
    (model, optimizers), losses = make(*size), []
    for i in range(lengths[-1]):
        step(model, optimizers, batches.batch(i), schedule(i, lengths[-1]))
        if i + 1 in lengths:
            losses.append(validation_loss(model))
    return losses


LENGTHS = plan[1, 32]
proper = [run[-1] for run in runs if run[0] == (1, 32)]

# %% [markdown]
# **Predict before you run (6).** Is what is read on the way higher or lower than the branch that ends there? And does
# the gap become smaller or larger with the length?

# %%
unfinished = read_on_the_way(level, LENGTHS)
gaps = [way - own for way, own in zip(unfinished, proper)]
assert all(gap > 0 for gap in gaps) and gaps[-1] > gaps[0]
print("higher, at each length; and the gap becomes larger")

# %% [markdown]
# **Seen:** each loss is too high. **Diagnosed:** the rate. At its full height it keeps stirring the weights, and what
# it stirs only comes to rest in a decay. The longer the run, the more there is to come to rest. The losses themselves
# still look like a fine curve. But its slope is wrong, and slopes are what we came for:

# %%
slopes = {name: -np.polyfit(np.log(LENGTHS), np.log(y), 1)[0] for name, y in (("way", unfinished), ("own", proper))}
assert slopes["way"] < 0.95 * slopes["own"]
print("the exponent of the loss over tokens comes out too small")

# %% [markdown]
# Since a = β / (α + β), too small a β makes the best size grow too slowly. **Mended:** a schedule that ends where you
# read, which is what our branches are.
#
# ### The cosine that made history
#
# A cosine goes down from the first step to the last, so it must know the last. Kaplan et al. 2020 trained to one fixed
# length and read shorter ones on the way; Hoffmann et al. 2022 (section 2) name this as a reason why their exponents
# differ. On the way of a long cosine the rate is still high, so an early loss is too high, and the last one is right:
# the slope comes out too *steep*. Let us try: one long cosine, read on its way, beside our branches, and beside a
# cosine of its own for each length.


# %%
def cosine(i, steps):
    return warmup_cosine((i + 0.5) / steps, WARMUP / steps, floor=0.0)


long = read_on_the_way(cosine, LENGTHS)
own_cosines = [validation_loss(train(1, 32, steps, schedule=cosine)) for steps in LENGTHS[:-1]] + long[-1:]
slopes["long"] = -np.polyfit(np.log(LENGTHS), np.log(long), 1)[0]
assert long[0] > proper[0] and long[1] > max(proper[1], own_cosines[1]) and slopes["long"] > 1.05 * slopes["own"]
print("read on the way at", LENGTHS[:2], "steps: above the branches that end there, and the slope too steep")

# %% tags=["volatile"]
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
tokens = 512 * np.array(LENGTHS)
lines = {"level, read on the way": (unfinished, "^:"), "long cosine, read on the way": (long, "s--")}
lines |= {"cosine for each length": (own_cosines, "D-."), "branch for each length": (proper, "o-")}
for i, (name, (y, style)) in enumerate(lines.items()):
    axes.plot(tokens, y, style, color=str((3 - i) / 5), markerfacecolor="none", label=name)
    print(f"{name:28}", [f"{loss:.2f}" for loss in y], f"slope {-np.polyfit(np.log(tokens), np.log(y), 1)[0]:.3f}")
axes.set(xscale="log", yscale="log", xlabel="tokens D", ylabel="loss (nats per character)")
axes.set_yticks([2.0, 2.2, 2.4, 2.6], ["2.0", "2.2", "2.4", "2.6"])
axes.set_xticks(tokens, [f"{t:,}" for t in tokens])
axes.minorticks_off()
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# Against the branches it is as they say: too high on the way, right at the end, too steep. At the middle length the
# cosine of its own is better, too. **At the shortest it did not work:** there a cosine of its own is no better than the
# long one on its way. In so few steps there is hardly anything to come to rest, and a cosine that ends soon has little
# time at a high rate. An effect that is in a paper may be absent at your scale, and a schedule that ends in time may
# still be a poor one.
#
# ## 9. What if the text runs out?
#
# Our text ends at 1.7 million characters, and the web ends, too. May one read it again? Muennighoff et al. 2023 count
# *effective* tokens: U different ones, read r times more, are worth D' = U + U · R · (1 - e^(-r / R)), and they found
# R of about 15. By hand: with r = 0 it is U. With r far above R it is never more than (1 + R) · U.
#
# The same 320 steps, on ever less different text:

# %%
EPOCHS = [1, 2, 4, 16]


def on_less_text(epochs, steps=320):
    pages = text[: len(text) // 1024 * 1024].reshape(-1, 1024)  # (pages, characters of a page)
    chosen = np.linspace(0, len(pages) - 1, steps * 512 // epochs // 1024).astype(int)  # spread over all of the text
    part = pages[chosen].ravel()  # (characters,)
    return validation_loss(train(1, 32, steps, batches=Batches([part], T, 8)))


repeated = [on_less_text(epochs) for epochs in EPOCHS]
assert repeated[3] > max(repeated[:3]) + 0.2 and max(repeated[:3]) - min(repeated[:3]) < 0.1
print("16 epochs are far worse than 1, 2 and 4, which are nearly equal")

# %% [markdown]
# Beside it what the law of section 7 says with D' in place of D. It was fitted on text that was read once.

# %% tags=["volatile"]
figure, axes = plt.subplots(figsize=(5.5, 3), layout="constrained")
unique = 512 * 320 / np.array(EPOCHS)
worth = unique + unique * 15.4 * (1 - np.exp(-(np.array(EPOCHS) - 1) / 15.4))
axes.plot(EPOCHS, repeated, "ko-", label="measured")
axes.plot(EPOCHS, law.loss(make_model(1, 32).n_parameters, worth), "--", color="0.5", label="the law with D'")
axes.set(xscale="log", xlabel="times that the text is read (epochs)", ylabel="loss (nats per character)")
axes.set_xticks(EPOCHS, EPOCHS)
axes.minorticks_off()
axes.legend(frameon=False, fontsize=8)
plt.show()
print("measured", [round(x, 2) for x in repeated])

# %% [markdown]
# Up to four epochs hardly cost anything, which is what Muennighoff et al. found as well. Sixteen cost more than the
# formula says: ten pages seem to be too few for it.
#
# One caution: the pages are spread over the whole text, but fewer pages still show fewer of its subjects. Repetition
# and narrowness are mixed in this measurement, and at 16 epochs the text is ten pages long.
#
# ## 10. One GPU for a day
#
# A calculator needs three things: FLOPs a second, the share of them that training uses, and a law. For the first two
# look at your device's data sheet and at MFU in `pretrain.py`'s output. Suppose 300 · 10¹² FLOPs a second and 40 %, for
# 86,400 seconds: C = 1.04 · 10¹⁹. The rule that people remember from Hoffmann et al. is **20 tokens a weight**:
# C = 6 · N · 20 N, so N = √(C / 120).

# %%
day = 300e12 * 0.4 * 86_400
N_day = math.sqrt(day / 120)
print(f"C = {day:.2e}: N = {N_day / 1e6:.0f} million weights, D = {20 * N_day / 1e9:.1f} billion tokens")
print(f"their fitted law says N = {chinchilla.best_size(day) / 1e6:.0f} million")

# %% [markdown]
# The rule and the law of one and the same paper differ: its third way of fitting had been stopped too early
# (Besiroglu et al. 2024). Now the same budget in *our* law, which has never seen more than 2 · 10¹¹ FLOPs:

# %% tags=["volatile"]
n_ours = law.best_size(day)
print(f"ours: N = {n_ours / 1e6:,.0f} million, D = {day / 6 / n_ours / 1e9:,.1f} billion characters")
times = [f"{(day / BUDGETS[-1]) ** a:.0e}" for a in (low, high)]
print("the bootstrap: from", times[0], "to", times[1], "times the best size of our largest budget")

# %% [markdown]
# Do not use that number. We went 8 orders of magnitude on, from a range of less than one. **What does not transfer
# from a laptop:**
#
# - *The coefficients.* E, A and B depend on the text, the tokens and the context. A character is no BPE token, and 64
#   of them see little.
# - *The exponent.* At our sizes embeddings and attention are a large part, and runs of some hundred steps are partly
#   warm-up.
# - *The batch.* It is 512 tokens for all. The best one grows with the tokens (McCandlish et al. 2018).
# - *The shape.* One to three blocks: depth and width grow together here, and not by a rule that was tested.
#
# What does transfer is the method: cost first, a schedule for each length, isoFLOPs with an optimum inside, one law,
# one size held out, an interval. And what is best *to train* is not best *to use*: a model that will answer many
# questions should be smaller and read more.
#
# ### Ten times the compute
#
# `python pretraining/scaling_benchmark.py` does the same with up to a million weights and 1.6 · 10¹² FLOPs, a run of
# its own for each point, in less than ten minutes alone on one core. Its result is committed:

# %% tags=["volatile"]
from pretraining.scaling_benchmark import RESULTS
from utils.files import read_json

longer = read_json(RESULTS)
held = [row["predicted"] / row["loss"] - 1 for row in longer["held_out"]]
print(f"{len(longer['points'])} runs: a = {longer['size_exponent']:.2f},", end=" ")
print("middle 90 %", [round(x, 2) for x in longer["size_exponent_90"]], "held out:", [f"{x:+.1%}" for x in held])

# %% [markdown]
# Another exponent, with a narrower interval, and a better prediction of what it has not seen. It lies in the interval
# of our short runs, but our own best guess does not lie in its. So much for the second digit of an exponent.
#
# ## 11. Exercises
#
# Write the body in place of the dots and run the cell. The check says what is missing.

# %%
from pretraining.exercises.ex18 import (
    check_best_of_budget,
    check_branch_steps,
    check_effective_tokens,
    check_fit_three,
    check_iso_minimum,
)
from utils.exercises import attempt

# %% [markdown]
# **A. The rule of twenty** (easy, 5 minutes) For `flops` of compute and `ratio` tokens a weight, return (N, D) with
# 6 · N · D = flops, as two floats.


# %%
def best_of_budget(flops, ratio=20): ...


attempt(check_best_of_budget, best_of_budget)

# %% [markdown]
# **B. Branches** (easy, 10 minutes) `lengths` are the runs' steps, in any order; each spends the share `decay` of its
# own steps on its decay. How many steps are taken in all, with one trunk? A float.


# %%
def branch_steps(lengths, decay): ...


attempt(check_branch_steps, branch_steps)

# %% [markdown]
# **C. Worth of old text** (easy, 10 minutes) `unique` different tokens are read `epochs` times (1 is once). Return the
# effective tokens, with R = `decay`. Mind that the first reading is no repetition.


# %%
def effective_tokens(unique, epochs, decay=15.4): ...


attempt(check_effective_tokens, effective_tokens)

# %% [markdown]
# **D. Three points** (medium, 15 minutes) `n` are three sizes, each the same factor larger than the one before, and
# `losses` their losses. Return (E, A, alpha) of the law through all three.


# %%
def fit_three(n, losses): ...


attempt(check_fit_three, fit_three)

# %% [markdown]
# **E. The lowest point** (hard, 20 minutes) `n` sizes and their losses at one budget, as lists. Return the size at the
# lowest point of a parabola in log N, or `None` if the parabola has no lowest point or has it outside the sizes tried.


# %%
def iso_minimum(n, losses): ...


attempt(check_iso_minimum, iso_minimum)

# %% [markdown]
# ### Solutions
#
# <details><summary>Solution: `best_of_budget`</summary>
#
# ```python
# import math
#
#
# def best_of_budget(flops, ratio=20):
#     n = math.sqrt(flops / (6 * ratio))
#     return n, ratio * n
# ```
# </details>
#
# <details><summary>Solution: `branch_steps`</summary>
#
# ```python
# def branch_steps(lengths, decay):
#     return (1 - decay) * max(lengths) + decay * sum(lengths)
# ```
# </details>
#
# <details><summary>Solution: `effective_tokens`</summary>
#
# ```python
# import math
#
#
# def effective_tokens(unique, epochs, decay=15.4):
#     return unique + unique * decay * (1 - math.exp(-(epochs - 1) / decay))
# ```
# </details>
#
# <details><summary>Solution: `fit_three`</summary>
#
# ```python
# import math
#
#
# def fit_three(n, losses):
#     first, second, third = losses
#     e = (first * third - second**2) / (first + third - 2 * second)
#     alpha = math.log((first - e) / (second - e)) / math.log(n[1] / n[0])
#     return e, (first - e) * n[0] ** alpha, alpha
# ```
# </details>
#
# <details><summary>Solution: `iso_minimum`</summary>
#
# ```python
# import math
#
# import numpy as np
#
#
# def iso_minimum(n, losses):
#     curve, slope, _ = np.polyfit(np.log(n), losses, 2)
#     if curve <= 0:
#         return None
#     best = math.exp(-slope / (2 * curve))
#     return best if min(n) < best < max(n) else None
# ```
# </details>

# %% [markdown]
# ## 12. What you take along
#
# **Recap**
#
# - A power law is a line in log-log only after E is taken away.
# - C ≈ 6 · N · D. At small sizes the output matrix and the attention are not small.
# - For each budget there is a best size. It was between the sizes that we tried, at every budget.
# - The law is linear but for two exponents: a grid and least squares find it without a start.
# - One trunk with branches gives each length its own schedule, equal to the last bit to a run of its own.
# - A law is as good as its prediction of what it has not seen. Ours was worse there than inside.
#
# **Pitfalls**, each seen above: a straight line through L; the FLOPs of the blocks alone; one learning rate for all
# sizes; losses read before the schedule has ended; runs that are mere beginnings; a formula that is trusted 8 orders of
# magnitude away; an interval that knows scatter alone.
#
# ### Reading guide
#
# Three functions decide. The cost of a token, which is section 2:

# %%
import inspect

print(inspect.getsource(flops_per_token))

# %% [markdown]
# The schedule whose level part does not know its end, which is section 4:

# %%
print(inspect.getsource(warmup_stable_decay))

# %% [markdown]
# And all cells of the grid at once, which is the naive loop of section 7. It has one more case, for an E that would be
# below zero:

# %%
print(inspect.getsource(fit_cells))

# %% [markdown]
# In `scaling_benchmark.py` read `measure` next, which takes a run for each point, through the `TrainingLoop` that long
# runs use.
#
# **CUDA, Apple's MPS, Windows.** None of them was run here. FLOPs are the same everywhere, seconds are not: on a GPU
# models as small as these leave it idle, so a budget in seconds would favour larger ones. In bfloat16 losses differ in
# the third digit, which is what some of our comparisons are about; compare runs of one precision. Sums come in another
# order, so "equal to the last bit" in section 4 may fail there. MPS has no float64; the fit is numpy's and stays on
# the CPU. Nothing depends on the system's paths or processes, which is where Windows differs.
#
# **Sources.** Kaplan et al. 2020, *Scaling Laws for Neural Language Models* · Hoffmann et al. 2022, *Training
# Compute-Optimal Large Language Models* · Muennighoff et al. 2023, *Scaling Data-Constrained Language Models* · Hu et
# al. 2024, *MiniCPM* · Hägele et al. 2024, *Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations*
# · Besiroglu et al. 2024, *Chinchilla Scaling: A replication attempt* · Pearce and Song 2024, *Reconciling Kaplan and
# Chinchilla Scaling Laws* · Porian et al. 2024, *Resolving Discrepancies in Compute-Optimal Scaling of Language
# Models* · McCandlish et al. 2018, *An Empirical Model of Large-Batch Training*.
#
# **The next question.** Every size had its own learning rate here, by a rule that was tried on small models. Does what
# is tuned on a small model hold for a large one, which nobody can afford to tune? Notebook 19,
# `19_width_and_learning_rate`.
