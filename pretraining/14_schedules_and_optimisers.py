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
# # Schedules and optimisers
#
# **The gradient says which way is down. Who says how far, and is every direction worth the same?**
#
# A gradient is a direction for every weight, and no distance. An optimiser makes a step of it; a schedule says how bold
# the steps are at this point of the run. We begin with two weights and a bowl, where every step can be done by
# hand, and end with a small GPT that learns with AdamW and with Muon, each at its own best rate.
#
# | | |
# |---|---|
# | you know | what a gradient is, the loss of a language model (chapter 3), matrix products |
# | you need | about 90 minutes, exercises apart; any laptop: no GPU, no network, one gigabyte of memory |
# | files | `optimizers.py` and `schedules.py` of this folder |
#
# | letter | meaning | shape or unit |
# |---|---|---|
# | w, g | weights; their gradient | as the parameter |
# | η | learning rate | – |
# | β, β₁, β₂ | share of an old mean that is kept at a step | from 0 to below 1 |
# | m, v | running means of g and of g² | as the parameter |
# | λ | weight decay | – |
# | κ | steepest curvature over the flattest | – |
# | M = U S Vᵀ | a matrix, and its singular value decomposition | (rows, columns) |
# | r | rank that GaLore keeps | – |
# | P | parameters of the model | – |

# %% [markdown]
# What we need is on your machine already. One thread: our tensors are small.

# %%
import copy
import math
from fractions import Fraction

import matplotlib.pyplot as plt
import torch

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## 1. Two weights in a bowl
#
# The loss is (x² + 9 y²) / 2, a bowl that is nine times as steep in y as in x: κ = 9. The gradient is (x, 9y). A step
# of plain descent takes η times the gradient away, so each step multiplies x by 1 - η and y by 1 - 9η.
#
# With η = 1/5 that is 4/5 and -4/5. x creeps, y jumps from side to side, and both get smaller. From (16, 16):

# %%
curvature = (1, 9)


def descend(w, rate, n):
    path = [w]
    for _ in range(n):
        w = tuple(x - rate * c * x for x, c in zip(w, curvature))
        path.append(w)
    return path


for x, y in descend((Fraction(16), Fraction(16)), Fraction(1, 5), 3):
    print(f"x = {x}, y = {y}")

# %% [markdown]
# **Predict before you run (1).** What happens with η = 1/4? Work out the two factors first.

# %%
for x, y in descend((Fraction(16), Fraction(16)), Fraction(1, 4), 3):
    print(f"x = {float(x):.2f}, y = {float(y):.2f}")

# %% [markdown]
# y is multiplied by 1 - 9/4 = -5/4 and runs away, while x is doing better than before. The steepest direction decides
# how large η may be: at most 2/9. The flattest then has to live with it. The larger κ, the longer it takes.
#
# ### Momentum
#
# Let a velocity collect the gradients: u ← β u + g, then w ← w - η u. Where the gradient turns at every step it
# cancels; where it always points one way it adds up. For a bowl the best η and β are known (Polyak 1964): with κ = 9
# both are 1/4. By hand for x: u = 16, x = 16 - 4 = 12. Then u = 4 + 12 = 16, x = 12 - 4 = 8. For y: u = 144, y = 16 -
# 36 = -20.


# %%
def heavy_ball(w, rate, beta, n):
    path, speed = [w], (0, 0)
    for _ in range(n):
        speed = tuple(beta * u + c * x for u, x, c in zip(speed, w, curvature))
        w = tuple(x - rate * u for x, u in zip(w, speed))
        path.append(w)
    return path


quarter = Fraction(1, 4)
print([f"({x}, {y})" for x, y in heavy_ball((Fraction(16), Fraction(16)), quarter, quarter, 3)])

# %% [markdown]
# y overshoots at first: 16, -20, 16, -11. Is that what PyTorch calls momentum? All numbers are sums of powers of two,
# so even the last bit must agree:

# %%
w = torch.nn.Parameter(torch.tensor([16.0, 16.0]))
oracle = torch.optim.SGD([w], lr=0.25, momentum=0.25)
for by_hand in heavy_ball((16.0, 16.0), 0.25, 0.25, 10)[1:]:
    w.grad = w.detach() * torch.tensor(curvature)  # (2,)
    oracle.step()
    assert w.tolist() == list(by_hand)
print("10 steps: ours = torch.optim.SGD, bit by bit")

# %% [markdown]
# ## 2. Adam: two means, and a correction
#
# Another cure for a steep direction: divide by the size that its gradient usually has. Adam (Kingma and Ba 2015) keeps
# for each weight a running mean m of the gradient and a running mean v of its square. The step is η · m / √v.
#
# Both means begin at 0 and are too small at first. After t steps they hold only 1 - βᵗ of their weight, so they are
# divided by that. By hand, with β₁ = β₂ = 3/4 and the gradients 4, then 0:
#
# - t = 1: m = 1, over 1/4 gives 4. v = 16/4 = 4, over 1/4 gives 16. Step: 4 / √16 = 1.
# - t = 2: m = 3/4, over 7/16 gives 12/7. v = 3, over 7/16 gives 48/7.


# %%
def corrected_means(gradients, b1, b2):
    m = v = Fraction(0)
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        yield m / (1 - b1**t), v / (1 - b2**t)


for m, v in corrected_means([4, 0], Fraction(3, 4), Fraction(3, 4)):
    print(f"m = {m}, v = {v}, step {float(m) / float(v) ** 0.5:.3f} · η")

# %% [markdown]
# **Predict before you run (2).** The first gradient was 4, and the first step 1 · η. How large is it if the first
# gradient is 4000? If it is 1/1000?

# %%
for g in (Fraction(4000), Fraction(1, 1000)):
    m, v = next(corrected_means([g], Fraction(9, 10), Fraction(95, 100)))
    print(f"gradient {float(g):g}: step {float(m) / float(v) ** 0.5:g} · η")

# %% [markdown]
# One, always. **Adam's first step moves each weight by exactly η**, up or down, however small its gradient. Remember
# that for section 8. And without the correction? Give the same gradient at every step. The right step is 1 · η for
# ever. Uncorrected, it is (1 - β₁ᵗ) / √(1 - β₂ᵗ).

# %%
ts = range(1, 1001)
uncorrected = {b2: [(1 - 0.9**t) / (1 - b2**t) ** 0.5 for t in ts] for b2 in (0.95, 0.999)}
print({b2: (round(sizes[0], 2), round(max(sizes), 2)) for b2, sizes in uncorrected.items()}, "first and largest")

# %% [markdown]
# The missing correction can go either way: too short at first with β₂ = 0.95, more than six times too long with 0.999.

# %%
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
for (b2, sizes), style in zip(uncorrected.items(), ("--", ":")):
    axes.plot(ts, sizes, style, color="black", label=f"uncorrected, β₂ = {b2}")
axes.axhline(1, color="0.5", label="corrected")
axes.set(xscale="log", xlabel="step t", ylabel="length of the step (η)", ylim=(0, 7))
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# The three on the bowl. Adam with η = 1 sees no difference between x and y at the start: it walks down the diagonal.


# %%
def adam(w, rate, n, b1=0.9, b2=0.95):
    path, m, v = [w], [0.0, 0.0], [0.0, 0.0]
    for t in range(1, n + 1):
        g = [c * x for c, x in zip(curvature, w)]
        m = [b1 * a + (1 - b1) * x for a, x in zip(m, g)]
        v = [b2 * a + (1 - b2) * x * x for a, x in zip(v, g)]
        w = tuple(x - rate * a / (1 - b1**t) / (b / (1 - b2**t)) ** 0.5 for x, a, b in zip(w, m, v))
        path.append(w)
    return path


paths = {
    "descent, η = 1/5": descend((16.0, 16.0), 0.2, 60),
    "momentum, η = β = 1/4": heavy_ball((16.0, 16.0), 0.25, 0.25, 60),
    "Adam, η = 1": adam((16.0, 16.0), 1.0, 60),
}

# %% [markdown]
# The paths over the bowl's lines of equal loss, and the distance from the bottom.

# %%
figure, (bowl, far) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
xs, ys = torch.meshgrid(torch.linspace(-8, 18, 90), torch.linspace(-21, 18, 90), indexing="xy")  # (90, 90) both
bowl.contour(xs, ys, (xs**2 + 9 * ys**2) / 2, levels=[10, 60, 200, 500, 1000], colors="0.8", linewidths=0.8)
for (name, path), style in zip(paths.items(), ("o:", "s--", ".-")):
    bowl.plot(*zip(*path[:25]), style, color="black", markersize=3, linewidth=0.8, markerfacecolor="white")
    far.plot([math.hypot(*w) for w in path], style, color="black", markersize=2.5, linewidth=0.8, label=name)
bowl.set(xlabel="x", ylabel="y")
far.set(yscale="log", xlabel="step", ylabel="distance from the bottom", ylim=(1e-6, 100))
far.legend(frameon=False, fontsize=7)
plt.show()

# %% [markdown]
# On a smooth bowl momentum wins and Adam is the worst at the end: steps of nearly fixed length cannot settle. That is
# no accident. It is why η must come down, section 9. A language model's loss is no bowl, though: its curvatures
# differ by far more than nine, and nobody knows them.
#
# ## 3. Weight decay, and a bug
#
# Decay pulls each weight towards 0, so that what no gradient defends is forgotten. For plain descent there are two ways
# to write it, and they are the same: add λw to the gradient, or multiply w by 1 - ηλ. It was natural to take the first
# way for Adam, too, and libraries did so for years.
#
# Two weights, both at 1. One has gradients of ±10 by turns, the other of ±0.1. Their mean is 0, so neither has anything
# to learn, and decay should be all that happens.


# %%
def adam_with_decay(size, coupled, n=200, rate=0.01, decay=0.5, b1=0.9, b2=0.95):
    w, m, v, path = 1.0, 0.0, 0.0, []
    for t in range(1, n + 1):
        g = size * (-1) ** t + decay * w * coupled
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        w = w * (1 - rate * decay * (not coupled)) - rate * m / (1 - b1**t) / (v / (1 - b2**t)) ** 0.5
        path.append(w)
    return path


# %% [markdown]
# **Predict before you run (3).** 200 steps at ηλ = 0.005 leave (1 - 0.005)²⁰⁰ ≈ 0.37 of a weight. What does the
# coupled way leave of each of the two?

# %%
coupled = {size: adam_with_decay(size, True) for size in (10, 0.1)}
for size, path in coupled.items():
    print(f"coupled, gradients of ±{size}: {abs(path[-1]):.2f} is left")

# %% [markdown]
# **Seen:** one weight hardly decays, the other is gone. **Diagnosed:** λw went into m and v, and was divided by √v with
# the rest. Where gradients are large, a decay of λw / 10 is left. Where they are small, λw *is* the gradient, and the
# weight walks to 0 at the full rate η. The more a weight is used, the less it decays. **Mended** by Loshchilov and
# Hutter (2019): the decay stays out of the means. That is the W in AdamW.

# %%
mended = {size: adam_with_decay(size, False) for size in (10, 0.1)}
for size, path in mended.items():
    print(f"decoupled, gradients of ±{size}: {abs(path[-1]):.2f} is left")
    assert abs(path[-1] - (1 - 0.005) ** 200) < 0.02

# %% [markdown]
# All four:

# %%
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
for size, style in ((10, "-"), (0.1, "--")):
    axes.plot(coupled[size], style, color="0.6", label=f"coupled, gradients ±{size}")
    axes.plot(mended[size], style, color="black", label=f"decoupled, gradients ±{size}")
axes.set(xlabel="step", ylabel="weight", ylim=(-0.05, 1.05))
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# PyTorch has both, under two names. Which is which?

# %%
for kind, coupled_too in ((torch.optim.Adam, True), (torch.optim.AdamW, False)):
    w = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    oracle = kind([w], lr=0.01, betas=(0.9, 0.95), eps=0, weight_decay=0.5)
    for t in range(1, 201):
        w.grad = torch.full_like(w, 10.0 * (-1) ** t)
        oracle.step()
    assert abs(w.item() - adam_with_decay(10, coupled_too)[-1]) < 1e-9
    print(f"{kind.__name__:5} = {'coupled' if coupled_too else 'decoupled'}")

# %% [markdown]
# ## 4. A model to learn with
#
# Now real weights. A GPT of two blocks, 64 wide, reads Python's language reference as bytes: 256 tokens, nothing to
# train before. By hand: embedding and output have 256 · 64 numbers each, a block 12 · 64² + 13 · 64, the last norm 2 ·
# 64.

# %%
from gpt_model import GPT, GPTConfig

CONTEXT, V, D = 32, 256, 64
config = GPTConfig(V, CONTEXT, n_layer=2, n_head=4, d_model=D, positions="rope", tie_embeddings=False)


def fresh(seed=0):
    torch.manual_seed(seed)
    return GPT(config)


by_hand = 2 * V * D + 2 * (12 * D**2 + 13 * D) + 2 * D
assert fresh().n_parameters == by_hand
print(f"{by_hand:,} parameters")

# %% [markdown]
# The text, its last tenth kept apart. A batch is a function of seed and step, so that all optimisers see the same.

# %%
from working_with_text_data.python_docs import standard_library, topics

text = torch.tensor(list("\n\n".join(topics(standard_library()).values()).encode()))  # (bytes,)
read, held = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]


def windows(ids, starts):
    return torch.stack([ids[i : i + CONTEXT + 1] for i in starts])  # (B, CONTEXT + 1)


def batch(step, seed):
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    return windows(read, torch.randint(len(read) - CONTEXT, (16,), generator=generator).tolist())


# %% [markdown]
# A step, with a schedule: `scale(step)` is the share of the full rate. Gradients longer than 1 are shortened to 1.

# %%
from torch.nn.utils import clip_grad_norm_

from gpt_model.evaluate import next_token_loss


def step_of(model, optimizers, ids, share=1.0):
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * group["peak_lr"]
    loss = next_token_loss(model, ids[:, :-1], ids[:, 1:])  # (B, CONTEXT) both
    loss.backward()
    clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


# %% [markdown]
# A run, and what it is measured by: the mean loss over 128 windows of the text that was kept apart.

# %%
checks = windows(held, torch.linspace(0, len(held) - CONTEXT - 1, 128).long().tolist())  # (128, CONTEXT + 1)


@torch.no_grad()
def held_loss(model):
    return next_token_loss(model, checks[:, :-1], checks[:, 1:]).item()


def train(model, optimizers, steps, scale, seed=0, start=0):
    return [step_of(model, optimizers, batch(i, seed), scale(i)) for i in range(start, start + steps)]


# %% [markdown]
# Sanity first. A fresh model is surprised by about ln 256 nats, and one batch must be learnt by heart.
# `make_optimizers` is the house's: it gives a list, since Muon will need a helper.

# %%
from pretraining.optimizers import make_optimizers, state_bytes

model = fresh()
optimizers = make_optimizers(model, "adamw", 0.01, 0.01, weight_decay=0.0)
losses = [step_of(model, optimizers, batch(0, 0)[:2]) for _ in range(80)]
assert abs(losses[0] - math.log(256)) < 0.1 and losses[-1] < 0.3
print(f"ln 256 = {math.log(256):.1f}, first loss {losses[0]:.1f}; by heart: below 0.3")

# %% [markdown]
# ## 5. AdamW in six lines, on the live model
#
# The formula of section 2, decay decoupled, tensors in place of numbers. ε keeps a weight that never had a gradient
# from dividing by 0.


# %%
def adamw_step(p, g, m, v, t, rate, decay, b1=0.9, b2=0.95, eps=1e-10):
    p.mul_(1 - rate * decay)
    m.lerp_(g, 1 - b1)
    v.lerp_(g * g, 1 - b2)
    unbiased, size = m / (1 - b1**t), (v / (1 - b2**t)).sqrt()
    p.sub_(rate * unbiased / (size + eps))


# %% [markdown]
# Two copies of one model, the same batches. PyTorch steps the one, we the other.

# %%
ours, theirs = fresh(), fresh()
oracle = torch.optim.AdamW(theirs.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.1)
means = [(torch.zeros_like(p), torch.zeros_like(p)) for p in ours.parameters()]
for t in range(1, 6):
    for some in (ours, theirs):
        some.zero_grad()
        next_token_loss(some, batch(t, 0)[:, :-1], batch(t, 0)[:, 1:]).backward()
    oracle.step()
    with torch.no_grad():
        for p, (m, v) in zip(ours.parameters(), means):
            adamw_step(p, p.grad, m, v, t, rate=1e-3, decay=0.1)

# %% [markdown]
# In float32 sums round differently, and a gradient that is itself rounding noise is blown up by the division. So we
# compare where that cannot hide anything: the bulk of the weights, and the worst one against a single step.

# %%
off = torch.cat([(a - b).abs().flatten() for a, b in zip(ours.parameters(), theirs.parameters())]).detach()  # (P,)
assert off.quantile(0.99) < 1e-6 and off.max() < 1e-3
print("after 5 steps: 99% of the weights within 0.000001, none further off than one step of 0.001")

# %% [markdown]
# ### Who decays, and what is kept
#
# `make_optimizers` puts the weights in groups. Norms and biases do not decay: a norm's gain of 0 makes no model
# simpler, it switches a channel off. Embeddings do not either, unless asked.

# %%
[adamw] = make_optimizers(fresh(), "adamw", 1e-3, 1e-3, weight_decay=0.1)
for group in adamw.param_groups:
    print(f"{len(group['params']):2} tensors like {tuple(group['params'][0].shape)}: decay {group['weight_decay']}")

# %% [markdown]
# The cost: m and v for every weight, four bytes a number, and one counter a tensor. By formula 8 P + 4 · tensors. That
# is twice the model itself.

# %%
model = fresh()
optimizers = make_optimizers(model, "adamw", 4e-3, 4e-3, weight_decay=0.1)
step_of(model, optimizers, batch(0, 0))
formula = 8 * model.n_parameters + 4 * len(list(model.parameters()))
assert state_bytes(optimizers) == formula
print(f"formula {formula:,} bytes = measured, {formula / (4 * model.n_parameters):.2f} × the model")

# %% [markdown]
# ## 6. Muon: a matrix is not a bag of numbers
#
# Adam would take the same step if the numbers of a matrix were shuffled. But a matrix is a map. Its singular value
# decomposition M = U S Vᵀ says: along each direction of Vᵀ, stretch by s, and turn it into a direction of U. How are
# the s of a real step distributed? We train for 30 steps and look at the momentum of a live matrix, the first layer
# of a block's MLP.
#
# **Predict before you run (4).** The matrix is 256 × 64, so it has 64 directions. How many of them hold 90% of the
# momentum's energy, Σ s²: about 58, about 30, or fewer than 20?

# %%
from pretraining.optimizers import Muon, orthogonalise

model = fresh()
optimizers = make_optimizers(model, "muon", 0.04, 4e-3, weight_decay=0.1)
train(model, optimizers, 30, lambda step: 1.0)
matrix = model.transformer.h[0].mlp.c_fc.weight
M = optimizers[0].state[matrix]["momentum"].clone()  # (256, 64)
s = torch.linalg.svdvals(M)  # (64,), falling
energy = (s**2).cumsum(0) / (s**2).sum()  # (64,)
directions = int((energy < 0.9).sum()) + 1
assert directions < 20
print("fewer than 20 of 64 directions hold 90% of the energy")

# %% [markdown]
# Plain momentum would spend nearly all of its step on a few directions. Muon (Jordan et al. 2024) keeps U and Vᵀ and
# sets every s to 1: the step is U Vᵀ, and each direction learns at one speed.

# %%
U, S, Vt = torch.linalg.svd(M, full_matrices=False)  # (256, 64), (64,), (64, 64)
exact = U @ Vt  # (256, 64) @ (64, 64) -> (256, 64)
sign = M.sign()  # what Adam does at its first step
spectra = {"momentum": s, "sign, as in Adam": torch.linalg.svdvals(sign), "U Vᵀ": torch.linalg.svdvals(exact)}
spectra["orthogonalise"] = torch.linalg.svdvals(orthogonalise(M))
spread = {name: float(x[0] / x[31]) for name, x in spectra.items()}  # the largest over the middle one
assert spread["momentum"] > 2 * spread["sign, as in Adam"] > 4 and spread["orthogonalise"] < 2
print("largest over middle: momentum more than 2 × the sign's; U Vᵀ", round(spread["U Vᵀ"], 3))

# %% [markdown]
# All of them, over the largest of each. The sign lies in between: better spread than the momentum, far from level. The
# last direction falls off a cliff: LayerNorm takes the mean out of what this layer reads, so hardly anything ever comes
# along it.

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for (name, x), style in zip(spectra.items(), ("-", "--", ":", "-.")):
    axes.plot(range(1, 65), (x / x[0]).tolist(), style, color="black", linewidth=1.2, label=name)
axes.set(yscale="log", xlabel="direction, from the largest", ylabel="singular value / largest", ylim=(1e-3, 1.5))
axes.legend(frameon=False, fontsize=8, loc="lower left")
plt.show()

# %% [markdown]
# ### Without a decomposition: Newton-Schulz
#
# A decomposition at each step would be slow. But look what a polynomial of odd powers does: X Xᵀ X = U S³ Vᵀ. It
# changes S and leaves U and Vᵀ alone. So pick one that drives every s to 1. The classic is 1.5 s - 0.5 s³. On the
# diagonal matrix of 1 and 1/2 by hand: 1 stays 1, and 1/2 becomes 3/4 - 1/16 = 11/16.


# %%
def newton_schulz(X, a, b, c, rounds):
    for _ in range(rounds):
        gram = X @ X.mT  # (rows, rows)
        X = a * X + (b * gram + c * gram @ gram) @ X  # (rows, rows) @ (rows, columns)
    return X


half = torch.diag(torch.tensor([1, 0.5], dtype=torch.float64))
print([newton_schulz(half, 1.5, -0.5, 0.0, n).diagonal().tolist() for n in (1, 2)])
assert newton_schulz(half, 1.5, -0.5, 0.0, 1)[1, 1] == 11 / 16

# %% [markdown]
# It converges, but a small s grows by only 1.5 a round. Jordan's has a fifth power and is much steeper at 0: 3.4445 s -
# 4.775 s³ + 2.0315 s⁵. By hand for s = 1: 3.4445 - 4.775 + 2.0315 = 0.701.
#
# **Predict before you run (5).** Does the 1 come back to 1 in later rounds?

# %%
JORDAN = (3.4445, -4.7750, 2.0315)
for n in range(1, 6):
    one, other = newton_schulz(half, *JORDAN, n).diagonal().tolist()
    print(f"round {n}: {one:.3f}  {other:.3f}")

# %% [markdown]
# It never settles. It wanders between 0.7 and 1.2, which is near enough for a step, and in exchange small values come
# up fast. Left the polynomial, right the live momentum: a line for each fourth singular value.

# %%
figure, (curve, rounds) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
xs = torch.linspace(0, 1.2, 100)
curve.plot(xs, 3.4445 * xs - 4.775 * xs**3 + 2.0315 * xs**5, color="black", label="Jordan's")
curve.plot(xs, 1.5 * xs - 0.5 * xs**3, "--", color="black", label="1.5 s - 0.5 s³")
curve.axhline(1, color="0.7", linewidth=0.8)
curve.set(xlabel="s before the round", ylabel="s after", ylim=(0, 1.4))
curve.legend(frameon=False, fontsize=8)
X = M.mT / M.norm()  # (64, 256): the short side first, the largest s at most 1
along = [(U.mT @ newton_schulz(X, *JORDAN, n).mT @ Vt.mT).diagonal() for n in range(6)]  # (64, 64) -> (64,)
rounds.plot(torch.stack(along)[:, ::4].numpy(), "o-", color="black", markersize=2.5, linewidth=0.6)
rounds.set(yscale="log", xlabel="rounds", ylabel="singular value", ylim=(1e-3, 2))
plt.show()

# %% [markdown]
# Our loop is the module's. The largest s is brought below 1 by the norm; of the two products X Xᵀ and Xᵀ X the smaller
# is taken. On processors with fast bfloat16 the module computes in it, hence the tolerance.

# %%
toy = newton_schulz(X, *JORDAN, 5).mT  # (256, 64)
torch.testing.assert_close(toy, orthogonalise(M), atol=0.03, rtol=0)
values = spectra["orthogonalise"]
print(
    "toy = module; half of the values lie between 0.7 and 1.2:", bool(((values > 0.68) & (values < 1.22)).sum() >= 32)
)

# %% [markdown]
# **Naive against fast.** The decomposition is the naive way. The two agree in direction: the cosine between them, as
# long vectors, is close to 1, and no singular value is above 1.3.

# %%
square = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))  # (256, 256)


def by_svd(x):
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    return left @ right


a, b = by_svd(square), orthogonalise(square)
cosine = float((a * b).sum() / (a.norm() * b.norm()))
assert cosine > 0.95 and torch.linalg.svdvals(b)[0] < 1.3
print(f"cosine {cosine:.2f}")

# %% [markdown]
# And the time, by turns:

# %% tags=["volatile"]
from utils.benchmarking import median, time_by_turns

times = median(time_by_turns({"svd": lambda: by_svd(square), "newton": lambda: orthogonalise(square)}, 7))
ratio = times["svd"] / times["newton"]
print(f"SVD {times['svd'] * 1e3:.1f} ms, Newton-Schulz {times['newton'] * 1e3:.1f} ms: {ratio:.1f} ×")

# %% [markdown]
# **The cost formula.** For rows m ≤ columns n, a round takes two products with 2 m² n operations, and one, of the gram
# matrix with itself, with 2 m³. Five rounds: 5 (4 m² n + 2 m³). PyTorch can count what really runs:

# %%
from torch.utils.flop_counter import FlopCounterMode

with FlopCounterMode(display=False) as counter:
    orthogonalise(M)
m, n = 64, 256
assert counter.get_total_flops() == 5 * (4 * m**2 * n + 2 * m**3)
print(f"formula = counted: {counter.get_total_flops():,} operations for one {n} × {m} matrix")

# %% [markdown]
# Per weight that is 5 (4 m + 2 m² / n), whatever the batch. A step of learning costs about 6 operations per weight *and
# token*. So with B tokens in a batch the overhead is about (20 m + 10 m² / n) / 6B: small where the batch is large
# against the width.

# %%
for width, tokens in ((64, 512), (768, 491_520)):
    share = (20 * width + 10 * width**2 / (4 * width)) / (6 * tokens)
    print(f"width {width}, {tokens:,} tokens a step: {share:.1%} more operations")

# %% [markdown]
# Our toy pays much more than GPT-2 would.
#
# ### Muon against PyTorch's
#
# Muon is momentum, looking one gradient ahead (Nesterov), then `orthogonalise`, then a step. Tall matrices get √(rows /
# columns) more. PyTorch has had one since version 2.9. It always computes in bfloat16, whose numbers have eight bits.

# %%
start = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
pair = Muon([ours], lr=0.1, weight_decay=0.5), torch.optim.Muon([theirs], lr=0.1, weight_decay=0.5)
for i in range(3):
    ours.grad = theirs.grad = torch.randn(24, 8, generator=torch.Generator().manual_seed(i))
    for optimizer in pair:
        optimizer.step()
torch.testing.assert_close(ours, theirs, atol=0.01, rtol=0.01)
print("three steps: ours = torch.optim.Muon, within bfloat16")

# %% [markdown]
# ## 7. GaLore: fewer numbers to keep
#
# Muon keeps one number for each weight, where Adam keeps two. GaLore (Zhao et al. 2024) goes further. If few
# directions hold most of the gradient, keep Adam's means for those only: project the gradient on its r largest
# directions, let Adam step there, project back.
#
# How much of a live gradient do r directions keep? The share of the energy, for a gradient and for noise of its shape:

# %%
loss = next_token_loss(model, batch(99, 0)[:, :-1], batch(99, 0)[:, 1:])
loss.backward()
noise = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
kept = {}
for name, G in (("gradient", matrix.grad), ("noise", noise)):
    squares = torch.linalg.svdvals(G) ** 2  # (64,)
    kept[name] = (squares.cumsum(0) / squares.sum()).tolist()
assert kept["gradient"][7] > 2 * kept["noise"][7]

# %% [markdown]
# Rank 8 of 64 keeps more than twice as much of the gradient as of noise.

# %%
figure, axes = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
axes.plot(range(1, 65), kept["gradient"], color="black", label="gradient, live")
axes.plot(range(1, 65), kept["noise"], "--", color="0.4", label="noise")
axes.set(xlabel="rank r (of 64)", ylabel="energy kept (share)", ylim=(0, 1.02))
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# The optimiser is `galore_torch`. It projects those parameter groups that say `rank`, and only those. For a matrix of
# m ≤ n it keeps the directions, m r, and Adam's two means, 2 n r. With 256 × 64 and r = 8: 4 · (64 · 8 + 2 · 256 · 8)
# bytes.
#
# **Predict before you run (6).** You write the rank, but not into the group. Does it raise? What does it keep?

# %%
import contextlib
import io
import logging

logging.disable(logging.WARNING)  # its import brings libraries that speak of what they do not find here
with contextlib.redirect_stderr(io.StringIO()):
    import galore_torch
logging.disable(logging.NOTSET)
say = {"rank": 8, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
for name, extra in (("with rank", say), ("without", {})):
    p = torch.nn.Parameter(noise.clone())
    optimizer = galore_torch.GaLoreAdamW([{"params": [p], **extra}], lr=0.01, no_deprecation_warning=True)
    p.grad = noise.clone()
    optimizer.step()
    print(f"{name:9}: {state_bytes([optimizer]):,} bytes")

# %% [markdown]
# No error, no warning, and no saving: without the key it is plain Adam. `state_bytes` is how you find out. The house's
# `make_optimizers` makes the groups itself:

# %%
from pretraining.optimizers import GaLore

assert 4 * (64 * 8 + 2 * 256 * 8) == 18_432 and 8 * 256 * 64 == 131_072
galore_model = fresh()
galore = make_optimizers(galore_model, "galore-adamw", 4e-3, 4e-3, 0.0, galore=GaLore(rank=8))
step_of(galore_model, galore, batch(0, 0))
projected = [group for group in galore[0].param_groups if "rank" in group]
assert len(projected) == 1 and len(projected[0]["params"]) == 8  # four matrices in each of two blocks
print("the 8 matrices of the blocks are projected")

# %% [markdown]
# ## 8. Warm-up
#
# Adam's first step moves each weight by η, section 2. Our matrices begin at a typical size of 0.02. With η = 0.004 the
# first step should change them by 0.004 / 0.02 = 0.2 of their length; those called `c_proj` start at 0.02 / √4, so by
# 0.4. A fifth of all that is there, on the word of a single batch.

# %%
from pretraining.diagnostics import copy_of, matrices_of, update_to_weight


def first_steps(scale, n=40):
    model = fresh()
    optimizers = make_optimizers(model, "adamw", 4e-3, 4e-3, weight_decay=0.0)
    ratios = []
    for i in range(n):
        before = copy_of(matrices_of(model))
        step_of(model, optimizers, batch(i, 0), scale(i))
        ratios.append(update_to_weight(before, matrices_of(model)))
    return ratios


cold, warm = first_steps(lambda step: 1.0), first_steps(lambda step: min(1.0, (step + 1) / 20))
print({name: round(cold[0][name], 1) for name in ("h.0.mlp.c_fc", "h.0.mlp.c_proj")})

# %% [markdown]
# As computed. Warm-up lets the rate climb in a straight line, here over 20 steps:

# %%
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
for name, ratios, style in (("at full rate from the start", cold, "-"), ("20 steps of warm-up", warm, "--")):
    axes.plot([r["h.0.mlp.c_fc"] for r in ratios], style, color="black", label=name)
axes.set(yscale="log", xlabel="step", ylabel="step / weight, c_fc", ylim=(3e-3, 0.5))
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# Does it help? Here is what 100 steps give without and with it, at three rates, two seeds each. The house's schedules
# take progress, from 0 to 1, and not a step.

# %% tags=["volatile"]
from pretraining.schedules import learning_rate_scale


def run(name, rate, warmup, seed, steps=100, other=None, schedule="wsd"):
    model = fresh(seed)
    optimizers = make_optimizers(model, name, rate, other or rate, weight_decay=0.1)
    scale = lambda i: learning_rate_scale(schedule, (i + 0.5) / steps, warmup, 0.9, 0.0)  # noqa: E731
    losses = train(model, optimizers, steps, scale, seed)
    return losses, held_loss(model), state_bytes(optimizers)


for rate in (2e-3, 8e-3, 32e-3):
    results = [[round(run("adamw", rate, warmup, seed)[1], 2) for seed in (0, 1)] for warmup in (0.0, 0.1)]
    print(f"η = {rate:.3f}: without {results[0]}, with {results[1]}")

# %% [markdown]
# Read the seeds before you read a difference: it counts only where both seeds are on one side. A low rate needs no
# warm-up, as its first step is small anyway. At high rates the damage of the first steps has to be repaired later.
#
# ## 9. The way down
#
# At the end of a run a high rate keeps stirring what should settle: Adam on the bowl. So the rate comes down. Two
# shapes are in use. **Cosine** falls from the warm-up on, and must know the end at the beginning. **Warm-up, stable,
# decay** stays level, then falls in a straight line (Hu et al. 2024). By hand, with a decay over the last 40% of the
# run: at 60% the share is 1, at 80% it is 1/2.

# %%
half_way = learning_rate_scale("wsd", 0.8, 0.1, 0.4, 0.0)
assert abs(half_way - 0.5) < 1e-12 and learning_rate_scale("cosine", 0.05, 0.1, 0.4, 0.1) == 0.5
progress = [i / 200 for i in range(201)]
shapes = {n: [learning_rate_scale(n, p, 0.1, 0.4, 0.1) for p in progress] for n in ("cosine", "wsd", "constant")}
figure, axes = plt.subplots(figsize=(5.5, 2.6), layout="constrained")
for (name, shares), style in zip(shapes.items(), ("-", "--", ":")):
    axes.plot(progress, shares, style, color="black", label=name)
axes.set(xlabel="progress (share of the run)", ylabel="share of the full rate")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# What the level part is good for: **one stable run, several finished models.** We train 240 steps at the full rate, and
# at 80, 160 and 240 a copy branches off, whose rate falls to 0 within 40 steps.

# %% tags=["volatile"]
DECAY, stops = 40, (80, 160, 240)
trunk = fresh()
trunk = trunk, make_optimizers(trunk, "adamw", 4e-3, 4e-3, weight_decay=0.1)
stable, branches = [], {}
for stop in stops:
    stable += train(*trunk, 80, lambda i: min(1.0, (i + 1) / 10), start=len(stable))
    before = held_loss(trunk[0])
    model, optimizers = copy.deepcopy(trunk)  # both together, so that the copy steps its own weights
    down = train(model, optimizers, DECAY, lambda i, stop=stop: 1 - (i - stop + 0.5) / DECAY, start=stop)
    branches[stop] = down, before, held_loss(model)
    print(f"branch at {stop}: {before:.2f} before, {branches[stop][2]:.2f} after {DECAY} steps down")

# %% [markdown]
# At 80 the level part is still falling as fast as a branch. At 160 it is not: the 40 steps down bring more than the
# next 80 level ones. Against three cosine runs, each made for its own end, of the same lengths. What each way costs
# for the three models is known beforehand: 240 + 3 · 40 = 360 steps against 120 + 200 + 280 = 600.

# %% tags=["volatile"]
cosines = {stop: run("adamw", 4e-3, 10 / (stop + DECAY), 0, stop + DECAY, schedule="cosine")[:2] for stop in stops}
for stop, (_, loss) in cosines.items():
    print(f"{stop + DECAY} steps: cosine {loss:.2f}, branch {branches[stop][2]:.2f}")

# %% [markdown]
# One seed, and the same full rate for both, which leaves cosine the lower mean rate: its own best may be another. So
# this shows that branches are no worse than runs made for their end, and not that cosine is bad. The stable run and
# its branches, smoothed over 9 steps:

# %% tags=["volatile"]


def smooth(losses, n=9):
    return torch.tensor(losses).unfold(0, n, 1).mean(dim=1).tolist()  # (steps,) -> (steps - n + 1, n) -> mean


figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
axes.plot(range(8, len(stable)), smooth(stable), color="0.6", label="stable")
for stop, (down, _, _) in branches.items():
    axes.plot(range(stop, stop + DECAY), smooth(stable[stop - 8 : stop] + down), "k--", label="_")
axes.plot([stop + DECAY for stop in stops], [b[2] for b in branches.values()], "ko", label="branch, held-out loss")
axes.plot(
    [s + DECAY for s in stops], [c[1] for c in cosines.values()], "k^", mfc="white", label="cosine, held-out loss"
)
axes.set(xlabel="step", ylabel="loss (nats a byte)", ylim=(1.9, 3.6))
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## 10. AdamW against Muon
#
# A comparison of optimisers at one learning rate compares learning rates. So each gets a small grid, 100 steps, the
# same batches and two seeds. AdamW has one rate for everything. Muon's is for the blocks' matrices, and AdamW steps
# its embeddings and norms at 0.004, which we did not tune.

# %% tags=["volatile"]
import time

grids = {"adamw": (1e-3, 2e-3, 4e-3, 8e-3, 16e-3), "muon": (0.01, 0.02, 0.04, 0.08, 0.16)}
results, begin = {}, time.perf_counter()
for name, rates in grids.items():
    for rate in rates:
        runs = [run(name, rate, 0.1, seed, other=4e-3 if name == "muon" else None) for seed in (0, 1)]
        results[name, rate] = runs
        print(f"{name:5} η = {rate:.3f}: {[round(loss, 2) for _, loss, _ in runs]}")
print(f"{time.perf_counter() - begin:.0f} s for all 20 runs")

# %% [markdown]
# Left the curve over the rate, both seeds and their mean; right the loss curves of each at its best rate.

# %% tags=["volatile"]


def mean_loss(name, rate):
    return sum(loss for _, loss, _ in results[name, rate]) / 2


best = {name: min(rates, key=lambda rate, name=name: mean_loss(name, rate)) for name, rates in grids.items()}
figure, (valley, curves) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for (name, rates), marker, style in zip(grids.items(), "os", ("-", "--")):
    valley.plot(rates, [mean_loss(name, r) for r in rates], style, color="black", label=name)
    for seed in (0, 1):
        valley.plot(rates, [results[name, r][seed][1] for r in rates], marker, color="0.4", mfc="none", markersize=4)
    curves.plot(smooth(results[name, best[name]][0][0]), style, color="black", label=f"{name}, η = {best[name]:g}")
valley.set(xscale="log", xlabel="learning rate η", ylabel="held-out loss (nats a byte)")
curves.set(xlabel="step (mean over 9)", ylabel="training loss (nats a byte)")
for axes in (valley, curves):
    axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# The table: the loss at the best rate, the bytes kept, and the time of a whole step. Muon keeps one number less for
# each weight of the blocks' matrices; the bytes follow from that by hand.

# %% tags=["volatile"]
pairs = {}
for name in grids:
    model = fresh()
    pairs[name] = model, make_optimizers(model, name, best[name], 4e-3, weight_decay=0.1)
seconds = median(
    time_by_turns({name: lambda pair=pair: step_of(*pair, batch(0, 0)) for name, pair in pairs.items()}, 15)
)
for name in grids:
    losses = ", ".join(f"{loss:.2f}" for _, loss, _ in results[name, best[name]])
    print(
        f"{name:5} loss {losses}  state {results[name, best[name]][0][2]:,} bytes  {seconds[name] * 1e3:.1f} ms a step"
    )

# %% [markdown]
# That both seeds of Muon are below both of AdamW is asserted, not only printed:

# %%
worst = {name: max(loss for _, loss, _ in results[name, best[name]]) for name in grids}
least = {name: min(loss for _, loss, _ in results[name, best[name]]) for name in grids}
assert worst["muon"] < least["adamw"]
in_blocks = 2 * 12 * D**2
assert results["muon", best["muon"]][0][2] < results["adamw", best["adamw"]][0][2] - 4 * in_blocks + 1
print(f"equal tokens: Muon is lower with both seeds, and keeps 4 · {in_blocks:,} bytes less")

# %% [markdown]
# What this does *not* show. It is a model of 133 thousand weights over 100 steps, where whoever starts fast wins. A
# step of Muon takes longer, and at equal time the gap is smaller than at equal tokens. Two seeds bound the noise
# badly.
#
# ## 11. Exercises
#
# Write the body in place of the dots and run the cell. The check says what is missing.

# %%
from pretraining.exercises.ex14 import (
    check_adam_direction,
    check_decaying_names,
    check_heavy_ball_path,
    check_newton_schulz_round,
    check_wsd_share,
)
from utils.exercises import attempt

# %% [markdown]
# **A. The heavy ball** (easy, 5 minutes) The loss is c w² / 2. Return the list of the `n` positions *after* each step
# of momentum: u ← β u + g, then w ← w - η u, with u = 0 at the start.


# %%
def heavy_ball_path(w, c, rate, beta, n): ...


attempt(check_heavy_ball_path, heavy_ball_path)

# %% [markdown]
# **B. Adam's direction** (medium, 10 minutes) `gradients` is the list of all gradients of one weight so far, floats.
# Return the last step of Adam over η, both means corrected, without ε.


# %%
def adam_direction(gradients, b1, b2): ...


attempt(check_adam_direction, adam_direction)

# %% [markdown]
# **C. Who decays?** (easy, 5 minutes) `shapes` is a dictionary from a parameter's name to its shape, with the names
# of our GPT. Return the set of names that decay: the matrices inside the blocks (`.h.`), and nothing else.


# %%
def decaying_names(shapes): ...


attempt(check_decaying_names, decaying_names)

# %% [markdown]
# **D. One round** (medium, 10 minutes) `X` is any matrix whose largest singular value is at most 1. Return a X + b (X
# Xᵀ) X + c (X Xᵀ)² X. Do not normalise.


# %%
def newton_schulz_round(X, a, b, c): ...


attempt(check_newton_schulz_round, newton_schulz_round)

# %% [markdown]
# **E. Warm-up, stable, decay, in steps** (medium, 10 minutes) Return the share of the full rate at `step`, counted
# from 0, of `steps`. It climbs (step + 1) / `warmup` until it is 1, stays, and falls over the last `decay` steps:
# (steps - step) / `decay`.


# %%
def wsd_share(step, steps, warmup, decay): ...


attempt(check_wsd_share, wsd_share)

# %% [markdown]
# ### Solutions
#
# <details><summary>Solution: `heavy_ball_path`</summary>
#
# ```python
# def heavy_ball_path(w, c, rate, beta, n):
#     u, path = 0, []
#     for _ in range(n):
#         u = beta * u + c * w
#         w = w - rate * u
#         path.append(w)
#     return path
# ```
# </details>
#
# <details><summary>Solution: `adam_direction`</summary>
#
# ```python
# def adam_direction(gradients, b1, b2):
#     m = v = 0.0
#     for g in gradients:
#         m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
#     t = len(gradients)
#     return m / (1 - b1**t) / (v / (1 - b2**t)) ** 0.5
# ```
# </details>
#
# <details><summary>Solution: `decaying_names`</summary>
#
# ```python
# def decaying_names(shapes):
#     return {name for name, shape in shapes.items() if len(shape) == 2 and ".h." in name}
# ```
# </details>
#
# <details><summary>Solution: `newton_schulz_round`</summary>
#
# ```python
# def newton_schulz_round(X, a, b, c):
#     gram = X @ X.mT
#     return a * X + (b * gram + c * gram @ gram) @ X
# ```
# </details>
#
# <details><summary>Solution: `wsd_share`</summary>
#
# ```python
# def wsd_share(step, steps, warmup, decay):
#     return min(1.0, (step + 1) / warmup, (steps - step) / decay)
# ```
# </details>

# %% [markdown]
# ## 12. What you take along
#
# **Recap**
#
# - The steepest direction limits the rate, the flattest pays for it. Momentum and division by √v are two ways out.
# - Adam's first step moves each weight by η, whatever its gradient. Warm-up makes η small while that is so.
# - Decay belongs outside of the means: with AdamW all weights decay alike, with L2 the idle ones vanish.
# - A matrix's momentum lies in few directions. Muon gives all directions one speed, by matrix products only.
# - State: 8 bytes a weight for AdamW, 4 for Muon's matrices, less for GaLore, if the group says `rank`.
# - One stable run has as many ends as you like. Cosine has one.
#
# **Pitfalls**, each seen above: a rate above 2 over the steepest curvature; a mean that is not corrected; decay in the
# gradient; norms that decay; a comparison at one rate; GaLore without `rank`; one seed read as a result.
#
# ### Reading guide
#
# `orthogonalise` is section 6 for a stack of matrices at once, with the short side first:

# %%
import inspect

print(inspect.getsource(orthogonalise))

# %% [markdown]
# The schedule. `floor` is where the descent ends, and `min` keeps the level part level:

# %%
from pretraining.schedules import warmup_stable_decay

print(inspect.getsource(warmup_stable_decay))

# %% [markdown]
# In `optimizers.py` read `Muon.step` next: it stacks matrices of one shape, so that one product serves all of them.
# Then `make_optimizers`, which is section 5's groups, and `optimizer_state`, which makes GaLore's state storable.
#
# **CUDA, Apple's MPS, Windows.** None of them was run here. On CUDA `orthogonalise` computes in bfloat16 where the GPU
# is fast at it, and `galore-adamw8bit` exists there only. `make_optimizers` asks for the fused AdamW, which steps all
# tensors in one kernel. MPS has no float64: the toy on the diagonal matrix would have to stay on the CPU. Nothing here
# depends on paths or processes, which is where Windows differs.
#
# **Sources.** Polyak 1964 (the heavy ball) · Kingma and Ba 2015, *Adam* · Loshchilov and Hutter 2019, *Decoupled Weight
# Decay Regularization* · Jordan et al. 2024, *Muon* · Zhao et al. 2024, *GaLore* · Loshchilov and Hutter 2017, *SGDR*
# (cosine) · Hu et al. 2024, *MiniCPM*, section 4 (warm-up, stable, decay).
#
# **The next question.** An optimiser keeps one or two numbers for each weight, and a step keeps much more besides. What
# holds the memory of a training run, and which of it can go? Notebook 15, `15_precision_and_memory`.
