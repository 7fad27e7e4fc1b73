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
# # Low-rank adapters
#
# **To teach a model something new, must every one of its numbers move?**
#
# Full fine-tuning changes each matrix W by some ΔW of the same size. It needs a gradient and two optimiser states for
# every number, and leaves a whole model for each task. LoRA (Hu et al. 2021) writes ΔW as a product of two thin
# matrices, and trains those. We first look whether a real ΔW allows that, then build it, break it, and find out which
# part of a task it could not learn here.
#
# | | |
# |---|---|
# | you know | the body of GPT-2 (notebook 06), the training loop (13), AdamW (14), what a rank is |
# | you need | about 70 minutes, exercises apart; any laptop: no GPU, no network, one gigabyte of memory |
# | files | `lora.py` of this folder |
#
# | letter | meaning | shape or unit |
# |---|---|---|
# | W | a matrix of the model, which stays | (out, in) |
# | ΔW | what fine-tuning adds to it | (out, in) |
# | A, B | the two thin matrices | (r, in), (out, r) |
# | r | rank of the adapter | – |
# | α, s | the constant of the scale; the scale s = α / r | – |
# | G | gradient of the loss by the layer's output | (tokens, out) |
# | σ | singular values of a matrix, the largest first | – |
# | P | weights in the matrices of the blocks | numbers |

# %%
import copy
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

torch.set_num_threads(1)  # our tensors are tiny, and threads on a busy machine wait for each other

# %% [markdown]
# ## 1. Nine numbers from six
#
# A column of three and a row of three, multiplied:

# %%
B, A = torch.tensor([[1], [2], [3]]), torch.tensor([[1, 0, -1]])  # (out, r), (r, in) with r = 1
print(B @ A)  # (out, r) @ (r, in) -> (out, in)

# %% [markdown]
# Nine numbers, and only six are free. Each row is a multiple of A, each column a multiple of B: the rank is 1. With
# r columns and rows it is r · (in + out) numbers for in · out.
#
# **Predict before you run (1).** W is 1024 × 1024 and r = 8. How many times fewer numbers is that?

# %%
print(f"{1024 * 1024:,} and {8 * (1024 + 1024):,}: {1024 * 1024 // (8 * 2048)} times fewer")

# %% [markdown]
# ### Never build the product
#
# Naively, we build B A and multiply x by it. But (B A) x = B (A x), and A x has only r numbers. By hand with
# x = (2, 5, 1): A x = 2 - 1 = 1, so B A x = (1, 2, 3).

# %%
x = torch.tensor([2, 5, 1])  # (in,)
assert torch.equal((B @ A) @ x, B @ (A @ x))
print((A @ x).tolist(), "->", (B @ (A @ x)).tolist())

# %% [markdown]
# Multiplications for n tokens: building costs r · in · out, using it n · in · out. The short way costs
# n · r · (in + out). For 1024 × 1024, r = 8 and n = 64:

# %%
wide_a = torch.randn(8, 1024, generator=torch.Generator().manual_seed(0)) / 32  # (r, in)
wide_b = torch.randn(1024, 8, generator=torch.Generator().manual_seed(1)) / 32  # (out, r)
tokens = torch.randn(64, 1024, generator=torch.Generator().manual_seed(2))  # (n, in)
torch.testing.assert_close(tokens @ (wide_b @ wide_a).T, tokens @ wide_a.T @ wide_b.T, rtol=1e-4, atol=1e-4)
by_naive, by_short = 8 * 1024**2 + 64 * 1024**2, 64 * 8 * 2 * 1024
print(f"{by_naive:,} and {by_short:,} multiplications: {by_naive // by_short} ×")

# %% [markdown]
# Time, by turns. It cannot reach the ratio of the counts: a thin product moves many numbers for few multiplications.

# %% tags=["volatile"]
from utils.benchmarking import median, time_by_turns

runs = {"naive": lambda: tokens @ (wide_b @ wide_a).T, "short": lambda: tokens @ wide_a.T @ wide_b.T}
times = median(time_by_turns(runs, 30))
print(f"{times['naive'] * 1e3:.2f} ms and {times['short'] * 1e3:.2f} ms: {times['naive'] / times['short']:.0f} ×")

# %% [markdown]
# ### The best matrix of rank r
#
# Any matrix is a sum of matrices of rank 1, each with a weight, its *singular value*. The sum of the first r of them is
# the best of rank r, and what is lost is the sum of the other squares (Eckart and Young 1936). By hand: this matrix has
# the singular values 3, 1, 1. So rank 1 keeps 9 of 9 + 1 + 1.

# %%
M = torch.tensor([[2.0, 1, 0], [1, 2, 0], [0, 0, 1]])


def cut_to_rank(matrix, r):
    U, sigma, V = torch.linalg.svd(matrix, full_matrices=False)
    return (U[:, :r] * sigma[:r]) @ V[:r]  # (out, r) @ (r, in) -> (out, in)


assert torch.allclose(torch.linalg.svdvals(M), torch.tensor([3.0, 1, 1]), atol=1e-5)
print(cut_to_rank(M, 1).round(decimals=3).add(0.0), f"kept {9 / 11:.0%}")

# %% [markdown]
# ## 2. A real fine-tuning
#
# A small GPT first learns Python's documentation. Then it is fine-tuned on film reviews, which were made from patterns
# and have nothing to do with Python. One tokenizer, made from the documentation, serves for both.

# %%
from finetuning.classification.synthetic import synthetic_reviews
from gpt_model import GPT, GPTConfig
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.corpora import open_corpus

documentation = "\n".join(document.text for document, _ in zip(open_corpus("python-docs"), range(400)))[:600_000]
reviews = "\n".join(text for text, _ in synthetic_reviews())
order = torch.randperm(10_000, generator=torch.Generator().manual_seed(0)).tolist()
sums = "\n".join(f"{i // 100} + {i % 100} = {i // 100 + i % 100}." for i in order)
tokenizer = BytePairTokenizer.train([documentation], 512)
texts = {"docs": documentation, "reviews": reviews, "sums": sums}
ids = {name: torch.tensor(tokenizer.encode_ordinary(text)) for name, text in texts.items()}

# %% [markdown]
# Windows of 64 tokens at random places; the last tenth of each text is for measuring. The sums wait for section 9.


# %%
def windows(name, step, held_out=False):
    data, place = ids[name], torch.Generator().manual_seed(step + 10**6 * held_out)
    low, high = (len(data) * 9 // 10, len(data)) if held_out else (0, len(data) * 9 // 10)
    starts = torch.randint(low, high - 65, (16,), generator=place)
    return torch.stack([data[start : start + 65] for start in starts])  # (B, T + 1)


# %% [markdown]
# The loss, and its mean over eight held-out batches:


# %%
def loss_of(model, rows):
    return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())  # (B · T, V), (B · T,)


@torch.no_grad()
def measure(model, name):
    return sum(loss_of(model, windows(name, i, held_out=True)).item() for i in range(8)) / 8


def learn(model, name, steps, rate):
    parameters, losses = [p for p in model.parameters() if p.requires_grad], []
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min((step + 1) / 10, 1 - step / steps)
        optimizer.zero_grad()
        loss = loss_of(model, windows(name, step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


# %% [markdown]
# The base, two blocks of width 64, 400 steps. Before: its loss is about ln 512 = 6.24. After: the loss on reviews is
# still high.

# %%
torch.manual_seed(0)
base = GPT(GPTConfig(vocab_size=512, context_length=64, n_layer=2, n_head=4, d_model=64))
print(f"at first {measure(base, 'docs'):.1f} nats a token, ln 512 = {math.log(512):.1f}")
learn(base, "docs", 400, 3e-3)
assert measure(base, "docs") < 5

# %% [markdown]
# Full fine-tuning on reviews: every parameter, 150 steps.

# %%
full, _ = learn(copy.deepcopy(base), "reviews", 150, 2e-3)
assert measure(full, "reviews") < measure(base, "reviews") - 2

# %% [markdown]
# Both models on both texts. The fine-tuned one has learned reviews, and lost some of the documentation:

# %% tags=["volatile"]
for name, model in (("base", base), ("fine-tuned", full)):
    print(f"{name:11} docs {measure(model, 'docs'):.2f}, reviews {measure(model, 'reviews'):.2f} nats a token")

# %% [markdown]
# ### Is ΔW of low rank?
#
# We have W before and after, so ΔW is a subtraction. A matrix whose numbers are drawn at random, of the same shape and
# size, stands beside it.
#
# **Predict before you run (2).** Of 64 singular values, which share of the sum of squares do the first 8 have if the
# matrix is random? And in ΔW?

# %%
names = [name for name, layer in base.named_modules() if isinstance(layer, nn.Linear) and name != "lm_head"]


def changed(name):
    return (full.get_submodule(name).weight - base.get_submodule(name).weight).detach()  # (out, in)


deltas = {name: changed(name) for name in names}
some = deltas["transformer.h.1.mlp.c_fc"]  # (256, 64)
noise = torch.randn(some.shape, generator=torch.Generator().manual_seed(0)) * some.std()
energy = {}
for name, matrix in (("random", noise), ("ΔW", some)):
    squares = torch.linalg.svdvals(matrix) ** 2  # (64,)
    energy[name] = float(squares[:8].sum() / squares.sum())
assert energy["random"] < 0.3 < 0.55 < energy["ΔW"]

# %% [markdown]
# The share of the first 8:

# %% tags=["volatile"]
print({name: f"{share:.2f}" for name, share in energy.items()})

# %% [markdown]
# All eight matrices of the model, and the random one dashed:

# %%
figure, axes = plt.subplots(figsize=(5.6, 3), layout="constrained")
for i, matrix in enumerate(deltas.values()):
    sigma = torch.linalg.svdvals(matrix)
    axes.plot(range(1, 65), sigma / sigma[0], color=str(0.1 * (i % 4)), linewidth=1, label="ΔW" if i == 0 else None)
sigma = torch.linalg.svdvals(noise)
axes.plot(range(1, 65), sigma / sigma[0], "k--", label="random")
axes.set(xlabel="number of the singular value", ylabel="σ over the largest σ", ylim=(0, 1.05))
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# A few directions carry most of it. But none of the curves reaches zero early: ΔW is not *of* low rank, it is *near*
# one of low rank. How much does the rest matter to the loss? We cut each ΔW to rank r and put it back. Embeddings,
# biases and norms stay fine-tuned.


# %%
def with_cut(r):
    model = copy.deepcopy(full)
    for name, matrix in deltas.items():
        model.get_submodule(name).weight.data = base.get_submodule(name).weight.data + cut_to_rank(matrix, r)
    return model


ranks = [0, 1, 2, 4, 8, 16, 32, 64]
cut_losses = [measure(with_cut(r), "reviews") for r in ranks]
assert cut_losses == sorted(cut_losses, reverse=True) and abs(cut_losses[-1] - measure(full, "reviews")) < 1e-3
worth = [(cut_losses[0] - loss) / (cut_losses[0] - cut_losses[-1]) for loss in cut_losses]
assert worth[4] > 0.6

# %% [markdown]
# Full rank is worth 100%, none of it 0%:

# %% tags=["volatile"]
print("of what the ΔW are worth:", {f"rank {r}": f"{share:.0%}" for r, share in zip(ranks, worth)})

# %% [markdown]
# The loss over the rank that was left. A method that can only make a ΔW of rank 8 has lost a part before it begins, and
# not the larger one. It need not find this ΔW: trained within rank 8, it may find a better one of that rank.

# %%
figure, axes = plt.subplots(figsize=(5, 2.6), layout="constrained")
axes.plot(range(len(ranks)), cut_losses, "o-", color="black")
axes.set(xlabel="rank that is left of each ΔW", ylabel="loss on reviews (nats/token)", ylim=(0, None))
axes.set_xticks(range(len(ranks)), ranks)
plt.show()

# %% [markdown]
# ## 3. The adapter
#
# y = W x + s · B (A x), with s = α / r. W and its bias stay. By hand with W = identity, the A and B of section 1 and
# s = 2: x = (2, 5, 1) gives x + 2 · (1, 2, 3) = (4, 9, 7). The toy, and the module's `LoRALinear` beside it:


# %%
def lora_naive(x, W, A, B, s):
    return x @ (W + s * B @ A).T  # (n, in) @ (in, out) -> (n, out)


from finetuning.lora import LoRA, LoRALinear, add_lora, lora_layers, merge_lora

layer = LoRALinear(nn.Linear(3, 3, bias=False), LoRA(rank=1, alpha=2.0))
layer.weight.data, layer.lora_a.data, layer.lora_b.data = torch.eye(3), A.float(), B.float()
assert torch.equal(layer(x.float()), lora_naive(x.float(), torch.eye(3), A.float(), B.float(), 2.0))
print(layer(x.float()).tolist())

# %% [markdown]
# ### It begins with nothing
#
# A begins at random and B at zero. So B A is zero: the model with adapters says exactly what the base said. And only
# the adapters may learn.

# %%
torch.manual_seed(1)
adapted = copy.deepcopy(base)
add_lora(adapted, LoRA(rank=4))
rows = windows("reviews", 0)
assert torch.equal(adapted(rows[:, :-1]), base(rows[:, :-1]))
learning = {name.rsplit(".", 1)[-1] for name, p in adapted.named_parameters() if p.requires_grad}
print("the same logits; what learns:", sorted(learning))

# %% [markdown]
# With B = 0, can anything learn? The gradients, with G the gradient at the output (n, out) and x (n, in):
#
# - of B: s · Gᵀ (x Aᵀ), which is not zero, since A is not;
# - of A: s · (G B)ᵀ x, which *is* zero, since B is.
#
# **Predict before you run (3).** After the first step, which of the two gradients is zero at the second?

# %%
optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
norms = {"lora_a": [], "lora_b": []}
for step in range(20):
    optimizer.zero_grad()
    loss_of(adapted, windows("reviews", step)).backward()
    for name, values in norms.items():
        parts = [p.grad.square().sum() for n, p in adapted.named_parameters() if n.endswith(name)]
        values.append(float(torch.stack(parts).sum().sqrt()))
    optimizer.step()
assert norms["lora_a"][0] == 0 < norms["lora_b"][0] and norms["lora_a"][1] > 0
print("A's gradient: zero at step 1:", norms["lora_a"][0] == 0, "- zero at step 2:", norms["lora_a"][1] == 0)

# %% [markdown]
# None: B has moved, and A follows one step later. The lengths of both gradients, all adapters together:

# %%
figure, axes = plt.subplots(figsize=(5, 2.5), layout="constrained")
for (name, values), style in zip(norms.items(), ("o-", "s--")):
    axes.plot(range(1, 21), values, style, color="black", markersize=3.5, label=f"of {name[-1].upper()}")
axes.set(xlabel="step", ylabel="length of the gradient", xticks=[1, 5, 10, 15, 20])
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 4. The bug: both at zero
#
# "Adapters begin with nothing, so I set both to zero." It looks tidy. The first logits are the same.

# %%
torch.manual_seed(1)
tidy = copy.deepcopy(base)
add_lora(tidy, LoRA(rank=4))
for one in lora_layers(tidy).values():
    nn.init.zeros_(one.lora_a)
before = measure(tidy, "reviews")
_, tidy_losses = learn(tidy, "reviews", 30, 1e-2)
_, good_losses = learn(adapted, "reviews", 30, 1e-2)

# %% [markdown]
# **Seen:** nothing fails, the loss moves from batch to batch, and the model does not learn at all.

# %%
print("the held-out loss has changed:", measure(tidy, "reviews") != before)
print("learns, with A at random:", sum(good_losses[-10:]) < sum(tidy_losses[-10:]) - 2)
assert measure(tidy, "reviews") == before

# %% [markdown]
# **Diagnosed:** look at the two formulas again. Each gradient has the *other* matrix as a factor. Both zero means both
# gradients zero, for ever. It is a saddle: the loss is flat in both, though it slopes where both move together.

# %%
tidy.zero_grad()
loss_of(tidy, rows).backward()
print("largest gradient:", max(float(p.grad.abs().max()) for p in tidy.parameters() if p.requires_grad))

# %% [markdown]
# **Mended:** one of the two at random. Not both: then B A is not zero, and the model begins changed.

# %%
torch.manual_seed(1)
mended = copy.deepcopy(base)
add_lora(mended, LoRA(rank=4))
assert all(one.lora_a.abs().max() > 0 and one.lora_b.abs().max() == 0 for one in lora_layers(mended).values())
_, mended_losses = learn(mended, "reviews", 30, 1e-2)
assert measure(mended, "reviews") < before - 0.2
print("A at random, B at zero: it learns")

# %% [markdown]
# ## 5. What the scale is for
#
# Say we change r. Must the learning rate change too? Adam's first step moves every number of B by about ±η, whatever
# the size of the gradient. The r columns of B each get the sign that helps, so their effects on the batch *add up*:
# r times as much. With s = α / r that is constant. With s = α it grows like r.
#
# But a direction that is not of this batch gets r contributions of either sign, which add up like √r. So ΔW as a whole
# should shrink like √r / r = 1 / √r. (That is why Kalajdzievski 2023 proposes s = α / √r.)
#
# **Predict before you run (4).** One step at r = 1 and at r = 64, with s = α / r. How do the change of the batch's
# logits and the length of ΔW compare?


# %%
def one_step(r, scale):
    torch.manual_seed(1)
    model = copy.deepcopy(base)
    add_lora(model, LoRA(r, scale * r))  # alpha is given so that alpha / r is the scale
    loss_of(model, rows).backward()
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0).step()
    with torch.no_grad():
        moved = (model(rows[:, :-1]) - base(rows[:, :-1])).square().mean().sqrt()
        length = sum((one.scale * one.lora_b @ one.lora_a).square().sum() for one in lora_layers(model).values()).sqrt()
    return float(moved), float(length)


# %% [markdown]
# Three rules, four ranks:

# %%
rules = {"α / r": lambda r: 16 / r, "α / √r": lambda r: 16 / math.sqrt(r), "α": lambda r: 16.0}
steps = {rule: [one_step(r, scale(r)) for r in (1, 4, 16, 64)] for rule, scale in rules.items()}
kept = steps["α / r"]
assert all(0.8 < moved / kept[0][0] < 1.25 for moved, _ in kept)

# %% [markdown]
# The rule of LoRA, in units of what it does at r = 1:

# %% tags=["volatile"]
print("α / r: logits", [f"{moved / kept[0][0]:.1f}" for moved, _ in kept], "of that at r = 1")
print("α / r: ΔW    ", [f"{length / kept[0][1]:.1f}" for _, length in kept], "and 1 / √r is 1, 0.5, 0.25, 0.12")

# %% [markdown]
# On the left what the batch sees, on the right the length of ΔW. α / r keeps the first constant, α / √r the second.
# "The learning rate need not change" is thus true of the first step's effect on its own batch, and no more was shown.

# %%
figure, panels = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
for axes, part, label in zip(panels, (0, 1), ("change of the logits (RMS)", "length of ΔW (Frobenius)")):
    for (rule, values), marker in zip(steps.items(), "os^"):
        axes.plot([1, 4, 16, 64], [value[part] for value in values], marker + "-", color="black", label=f"s = {rule}")
    axes.set(xscale="log", yscale="log", xlabel="rank r", ylabel=label)
    axes.set_xticks([1, 4, 16, 64], [1, 4, 16, 64])
    axes.set_yticks([0.1, 0.3, 1, 3], [0.1, 0.3, 1, 3])
    axes.set_ylim(0.04, 4)
    axes.minorticks_off()
panels[0].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## 6. How much rank is needed?
#
# 150 steps on reviews for each rank, α = 16 and one rate for all, which was not searched for. Beside it two ways
# without adapters: everything learns, and *only the same eight matrices* learn, in full.
#
# **Predict before you run (5).** Will rank 64, which can be any ΔW of these matrices, reach full fine-tuning?


# %%
def adapt(r, name="reviews", steps=150):
    torch.manual_seed(1)
    model = copy.deepcopy(base)
    add_lora(model, LoRA(r))
    return learn(model, name, steps, 1e-2)[0]


sweep = {r: adapt(r) for r in (1, 2, 4, 8, 16, 64)}
sweep_losses = {r: measure(model, "reviews") for r, model in sweep.items()}

# %% [markdown]
# The same matrices in full, and nothing else:

# %%
matrices_only = copy.deepcopy(base).requires_grad_(False)
for name in names:
    matrices_only.get_submodule(name).weight.requires_grad_(True)
learn(matrices_only, "reviews", 150, 2e-3)
levels = {"everything learns": measure(full, "reviews"), "the eight matrices": measure(matrices_only, "reviews")}
levels["base"] = measure(base, "reviews")

# %% [markdown]
# The loss over the rank, and the three levels:

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(range(6), list(sweep_losses.values()), "o-", color="black", label="adapters of rank r")
for (name, level), style in zip(levels.items(), ("-", "--", ":")):
    axes.axhline(level, linestyle=style, color="0.4", label=name)
axes.set(xlabel="rank r", ylabel="loss on reviews (nats/token)", ylim=(0, None))
axes.set_xticks(range(6), list(sweep_losses))
axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.02))
plt.show()

# %% [markdown]
# In figures:

# %% tags=["volatile"]
print({f"rank {r}": round(loss, 2) for r, loss in sweep_losses.items()})
print({name: round(level, 2) for name, level in levels.items()})

# %% [markdown]
# Two findings. Against *the same matrices in full*, rank 8 is nearly enough, with an eighth of a matrix's rank: what
# the method claims is true here. But against *everything* all of that is far off, and more rank does not help. So rank
# is not what is missing.
#
# ### What LoRA could not learn here
#
# What does full fine-tuning have that the eight matrices have not? Embeddings, biases and norms. Take the fine-tuned
# model and put parts of the base back:

# %%
parts = {"embedding of tokens": "wte", "embedding of positions": "wpe", "biases and norms": (".bias", "ln_")}
back = {}
for part, marks in parts.items():
    model = copy.deepcopy(full)
    for name, p in model.named_parameters():
        if any(mark in name for mark in ([marks] if isinstance(marks, str) else marks)):
            p.data.copy_(base.get_parameter(name))
    back[part] = measure(model, "reviews") - measure(full, "reviews")
assert max(back, key=back.get) == "embedding of tokens" and back["embedding of tokens"] > 0.5
print("the part that costs most when it goes back:", max(back, key=back.get))

# %% [markdown]
# The embedding, which is also the output matrix. To be sure, the other way round: let it learn *beside* adapters of
# rank 8, at their rate.

# %%
torch.manual_seed(1)
beside = copy.deepcopy(base)
add_lora(beside, LoRA(8))
beside.transformer.wte.weight.requires_grad_(True)
learn(beside, "reviews", 150, 1e-2)
assert measure(beside, "reviews") < sweep_losses[8] - 1

# %% [markdown]
# In figures:

# %% tags=["volatile"]
print(f"rank 8: {sweep_losses[8]:.2f}; with the embedding {measure(beside, 'reviews'):.2f} nats a token")

# %% [markdown]
# So that was it. (It is even below full fine-tuning, but at another rate, and neither was searched for.) `peft` has a
# setting for it, `modules_to_save`.
#
# Why does this base need new embeddings? A guess: other tokens are frequent in reviews. The guess can be tested: how
# surprising is a token if one knows nothing but the shares of tokens in the documentation?

# %% tags=["volatile"]
shares = torch.bincount(ids["docs"], minlength=512) + 1.0  # (V,)
surprise = -(shares / shares.sum()).log()  # (V,) nats
print({name: f"{float(surprise[some].mean()):.1f} nats" for name, some in ids.items()})

# %% [markdown]
# The guess was wrong: by shares alone reviews are no more surprising than the documentation itself. But the figure says
# something else. Our base has a loss on the documentation that is not far below it: after 400 steps it knows little
# more than the shares. Its embeddings are hardly trained, and adapters in the blocks cannot write there.
#
# It shows in the usual sanity check, too: learn one small batch by heart. Two windows of reviews, 150 steps.
#
# **Predict before you run (6).** Full fine-tuning goes to nearly 0. Do adapters of rank 16?


# %%
def by_heart(model, rate):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = loss_of(model, rows[:2])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# %% [markdown]
# The two, from the same base:

# %%
torch.manual_seed(1)
sixteen = copy.deepcopy(base)
add_lora(sixteen, LoRA(rank=16))
heart = {"everything": by_heart(copy.deepcopy(base), 2e-3), "adapters": by_heart(sixteen, 1e-2)}
assert heart["everything"][-1] < 0.6 and 1 < heart["adapters"][-1] < heart["adapters"][0] / 1.5

# %% [markdown]
# Their losses on these two windows:

# %%
figure, axes = plt.subplots(figsize=(5, 2.5), layout="constrained")
for (name, losses), style in zip(heart.items(), ("-", "--")):
    axes.plot(range(1, 151), losses, style, color="black", label=name)
axes.set(xlabel="step", ylabel="loss (nats/token)", ylim=(0, None))
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# They do not, though 128 tokens are few and rank 16 is much. Try more rank and more steps. So a failed sanity check may
# say what is frozen, and not that there is a bug.
#
# This base is far smaller and has read far less than GPT-2, and its task is far away. For a base that knows the words
# the gap may be small; that was not measured here.
#
# ## 7. Numbers and bytes
#
# The eight matrices are (192, 64), (64, 64), (256, 64) and (64, 256) in each of two blocks. With r = 8 the adapters
# have 8 · (256 + 128 + 320 + 320) · 2 numbers. A gradient has 4 bytes for each, AdamW 8.

# %%
from pretraining.optimizers import state_bytes

by_hand = 8 * (256 + 128 + 320 + 320) * 2
eight = copy.deepcopy(sweep[8])
trained = [p for p in eight.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained)
loss_of(eight, rows).backward()
optimizer.step()
gradients = sum(p.grad.nbytes for p in eight.parameters() if p.grad is not None)
assert sum(p.numel() for p in trained) == by_hand and gradients == 4 * by_hand
assert abs(state_bytes([optimizer]) - 8 * by_hand) < 1000  # and a step counter for each tensor
print(f"{by_hand:,} of {base.n_parameters:,} numbers learn; gradients {gradients:,} bytes, AdamW twice that")

# %% [markdown]
# In a model of this size a rank of 8 is not small. For GPT-2's smallest, whose shape costs nothing on the device
# `meta`, with d = 768: (3 + 1) + (1 + 1) + (1 + 4) + (4 + 1) = 16 times d for each block and unit of rank.

# %%
with torch.device("meta"):
    gpt2 = GPT(GPTConfig())
total = gpt2.n_parameters
add_lora(gpt2, LoRA(rank=8))
few = sum(p.numel() for p in gpt2.parameters() if p.requires_grad)
assert few == 8 * 16 * 768 * 12
print(f"{few:,} of {total:,}: {few / total:.1%}", end="; ")
print(f"gradients and AdamW {12 * few / 1e6:.0f} MB in place of {12 * total / 1e6:,.0f}")

# %% [markdown]
# And time? Forward 2 P FLOPs a token, back through the layers 2 P, gradients of weights 2 P. Adapters need the first
# two, and the third only of thin matrices. So 4 P for 6 P.
#
# **Predict before you run (7).** Adapters train a few percent of the numbers here. Which part of a step's time do they
# save?

# %% tags=["volatile"]
torch.manual_seed(0)
wide = GPT(GPTConfig(512, 64, n_layer=4, n_head=4, d_model=256))
wide_lora = copy.deepcopy(wide)
add_lora(wide_lora, LoRA(rank=8))
still = copy.deepcopy(wide).requires_grad_(False)
still.transformer.wpe.requires_grad_(True)  # so that the gradient has to come down through all blocks
models = {"everything": wide, "no gradients of weights": still, "adapters": wide_lora}
runs = {name: lambda model=model: loss_of(model, rows).backward() for name, model in models.items()}
fastest = {name: min(seconds) for name, seconds in time_by_turns(runs, 9).items()}
for name, seconds in fastest.items():
    print(f"{name:24} {seconds * 1e3:4.0f} ms: {seconds / fastest['everything']:.2f}")
print(f"by the formula           {4 / 6:13.2f}")

# %% [markdown]
# Nowhere near that share. The middle line is the formula without adapters: two thirds, nearly. The thin products of
# the adapters then take back most of the third that was won. They are few multiplications, but every one of them reads
# and writes whole activations, as in section 1. What LoRA saves is memory.
#
# ## 8. Merging
#
# After training, s · B A is added to W, once. Then there is no adapter and no cost. It must not change an answer:

# %%
merged = copy.deepcopy(sweep[8])
merge_lora(merged)
with torch.no_grad():
    torch.testing.assert_close(merged(rows[:, :-1]), sweep[8](rows[:, :-1]), rtol=1e-4, atol=1e-4)
assert not lora_layers(merged)
print("merged = with adapters, and the model is a plain GPT again")

# %% [markdown]
# A slip that is easy to make and hard to see: W + B A, without the scale. Here s = 2, so half of what was learned is
# lost. Nothing fails. Only the equality above, or the loss, tells.

# %%
slip = copy.deepcopy(base)
for name, one in lora_layers(sweep[8]).items():
    slip.get_submodule(name).weight.data = (one.weight + one.lora_b @ one.lora_a).detach()
assert measure(slip, "reviews") > measure(merged, "reviews") + 0.02
print("without the scale the loss is higher:", measure(slip, "reviews") > measure(merged, "reviews"))

# %% [markdown]
# What the adapters cost while they are there, for one token at a time, as in generation:

# %% tags=["volatile"]
merged_wide = copy.deepcopy(wide_lora)
merge_lora(merged_wide)
one_token = torch.tensor([[1]])
with torch.inference_mode():
    runs = {"adapters": lambda: wide_lora(one_token), "merged": lambda: merged_wide(one_token)}
    times = median(time_by_turns(runs, 50))
print(f"{ {name: f'{s * 1e3:.2f} ms' for name, s in times.items()} }: {times['adapters'] / times['merged']:.1f} ×")

# %% [markdown]
# ## 9. Several tasks on one base
#
# Not merged, adapters can be exchanged. A second task, sums like `12 + 7 = 19.`, from the same base:

# %%
import tempfile
from pathlib import Path

from finetuning.lora import load_adapter, save_adapter

scratch = tempfile.TemporaryDirectory()  # gone when the notebook ends
folder = Path(scratch.name)
base.save_pretrained(folder / "base", tokenizer)
adapters = {"reviews": sweep[8], "sums": adapt(8, "sums")}
for name, model in adapters.items():
    save_adapter(model, folder / name, LoRA(8), str(folder / "base"))
size = {name: (folder / name / "adapter_model.safetensors").stat().st_size for name in adapters}
assert all(4 * by_hand < n < 4 * by_hand + 5000 for n in size.values())
print("the file of an adapter: 4 bytes a number, and its names:", size["reviews"] == size["sums"])

# %% [markdown]
# Each is loaded onto a fresh copy of the base and measured on all three texts. The last row is full fine-tuning on
# reviews.


# %%
def loaded(name):
    model = copy.deepcopy(base)
    load_adapter(model, folder / name)
    return model


models = {"base": base, "+ reviews": loaded("reviews"), "+ sums": loaded("sums"), "full, reviews": full}
table = torch.tensor([[measure(model, name) for name in ids] for model in models.values()])  # (models, texts)
assert abs(float(table[1, 1]) - sweep_losses[8]) < 0.05
assert table[1, 1] < table[0, 1] - 0.3 and table[2, 2] < table[0, 2] - 0.5 and table[3, 0] > table[0, 0] + 0.3

# %% [markdown]
# Pale is good. Look down the column of the documentation: what did the base forget?

# %%
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
axes.imshow(table, cmap="Greys", vmin=0, vmax=12, aspect="auto")
for row in range(4):
    for column in range(3):
        axes.text(column, row, f"{table[row, column]:.1f}", ha="center", va="center")
axes.set_xticks(range(3), list(ids))
axes.set_yticks(range(4), list(models))
axes.set(xlabel="measured on (nats/token)")
plt.show()

# %% [markdown]
# Each adapter is good at its own task. It also makes the model worse at the documentation: an adapter does not protect
# from forgetting while it is on. What it gives is the way back. Take it off, and the base is there to the last bit;
# after full fine-tuning it is gone.
#
# ## 10. The oracle: peft
#
# `peft` is the library that most people train adapters with. It must read our folder and say the same:

# %%
import logging
import warnings

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of kernels that are not needed here
import peft
import transformers

warnings.filterwarnings("ignore")  # it asks transformers for something that will be renamed
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
their_base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
theirs = peft.PeftModel.from_pretrained(their_base, folder / "sums").eval()
with torch.no_grad():
    torch.testing.assert_close(theirs(rows[:, :-1]).logits, models["+ sums"](rows[:, :-1]), rtol=1e-3, atol=1e-3)
print("ours = peft's")

# %% [markdown]
# ## 11. Exercises
#
# Write the body in place of the dots and run the cell. The check says what is missing.

# %%
from finetuning.exercises.ex21 import (
    check_count_adapter,
    check_delta_weight,
    check_lora_forward,
    check_rank_for,
    check_start_adapter,
)
from utils.exercises import attempt

# %% [markdown]
# **A. How many numbers?** (easy, 5 minutes) `shapes` is a list of (out, in), one a matrix. Return how many numbers
# adapters of rank `r` have together.


# %%
def count_adapter(shapes, r): ...


attempt(check_count_adapter, count_adapter)

# %% [markdown]
# **B. ΔW** (easy, 5 minutes) Return what is added to W when an adapter is merged: `A` is (r, in), `B` is (out, r).


# %%
def delta_weight(A, B, alpha): ...


attempt(check_delta_weight, delta_weight)

# %% [markdown]
# **C. The layer** (medium, 10 minutes) `x` is (n, in), `W` (out, in), `bias` (out,). Return W x + bias and the adapter,
# (n, out), without ever building a matrix (out, in).


# %%
def lora_forward(x, W, bias, A, B, alpha): ...


attempt(check_lora_forward, lora_forward)

# %% [markdown]
# **D. A good start** (medium, 10 minutes) Return A (r, n_in) and B (n_out, r) that change nothing and can learn.


# %%
def start_adapter(n_in, n_out, r): ...


attempt(check_start_adapter, start_adapter)

# %% [markdown]
# **E. Which rank?** (hard, 15 minutes) Return the smallest r for which the best matrix of rank r has at least `share`
# of the sum of squares of `M`.


# %%
def rank_for(M, share): ...


attempt(check_rank_for, rank_for)

# %% [markdown]
# ### Solutions
#
# <details><summary>Solution: `count_adapter`</summary>
#
# ```python
# def count_adapter(shapes, r):
#     return sum(r * (n_out + n_in) for n_out, n_in in shapes)
# ```
# </details>
#
# <details><summary>Solution: `delta_weight`</summary>
#
# ```python
# def delta_weight(A, B, alpha):
#     return alpha / len(A) * (B @ A)
# ```
# </details>
#
# <details><summary>Solution: `lora_forward`</summary>
#
# ```python
# def lora_forward(x, W, bias, A, B, alpha):
#     small = x @ A.T  # (n, r)
#     return x @ W.T + bias + alpha / len(A) * (small @ B.T)
# ```
# </details>
#
# <details><summary>Solution: `start_adapter`</summary>
#
# ```python
# import torch
#
#
# def start_adapter(n_in, n_out, r):
#     return torch.randn(r, n_in) / n_in**0.5, torch.zeros(n_out, r)
# ```
# </details>
#
# <details><summary>Solution: `rank_for`</summary>
#
# ```python
# import torch
#
#
# def rank_for(M, share):
#     squares = torch.linalg.svdvals(M) ** 2
#     for r in range(len(squares) + 1):
#         if squares[:r].sum() >= share * squares.sum() - 1e-9:
#             return r
#     return len(squares)
# ```
# </details>

# %% [markdown]
# ## 12. What you take along
#
# **Recap**
#
# - A matrix of rank r has r · (in + out) free numbers, and B (A x) never builds it.
# - A real ΔW was near one of low rank, not of low rank.
# - B at zero changes nothing; A at random lets B learn at once, and A one step later.
# - α / r keeps the first step's effect on its batch the same for every r. ΔW itself shrinks like 1 / √r.
# - Adapters save gradients and optimiser states. Of a step's time they save at most a third, and here hardly that.
# - Rank 8 did nearly what the same matrices did in full. What was missing was the embedding.
#
# **Pitfalls**, each seen above: both matrices at zero; the scale forgotten when merging; a larger rank where something
# else is missing; to hope that an adapter forgets nothing.
#
# ### Reading guide
#
# The layer of section 3, and its merge:

# %%
import inspect

print(inspect.getsource(LoRALinear.forward))
print(inspect.getsource(LoRALinear.merged))

# %% [markdown]
# `add_lora` finds the targets and freezes all the rest. Read why it refuses `lm_head` and MLA's `k_up`: their matrices
# are read by other means than a call, and an adapter would be passed over.

# %%
print(inspect.getsource(add_lora))

# %% [markdown]
# Then `merged_weights`, which saves a merged model while this one goes on learning, and `save_adapter`, with the one
# flag that matters for `peft`: `fan_in_fan_out`, since Hugging Face's GPT-2 keeps its matrices as (in, out).
#
# **CUDA, Apple's MPS, Windows.** None of them was run here. On a GPU the base may be kept in bfloat16; adapters take
# the format of the layer that they sit on, and merging then rounds, so the equality of section 8 holds to fewer digits.
# The device `meta` and the counts are the same everywhere. On Windows nothing differs that this notebook uses.
#
# **Sources.** Hu et al. 2021, *LoRA: Low-Rank Adaptation of Large Language Models* · Aghajanyan et al. 2020, *Intrinsic
# Dimensionality Explains the Effectiveness of Language Model Fine-Tuning* · Kalajdzievski 2023, *A Rank Stabilization
# Scaling Factor for Fine-Tuning with LoRA* · Eckart and Young 1936.
#
# **The next question.** We can teach a model a text, or a label. A chat asks for more: a question comes, an answer is
# wanted, and only the answer should be learned. Where does a prompt end, and who tells the loss?
