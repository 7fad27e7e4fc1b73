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
# # The training loop
#
# **Five lines teach a model. What is each of them for, and what happens when one is missing?**
#
# A model is a box of numbers, and at first they are noise. A loop of five lines turns the noise into something that
# writes: get a batch, compute the loss, compute its gradient, take a step against it, forget the gradient. None of
# these lines raises an error when another one is missing. The loop just learns badly, or not at all. Here you compute
# two steps by hand, take each line away, and then train a small GPT until it writes words. What long runs add comes
# last: batches in parts, clipping, a loss that fits into memory, a way back after a disaster.
#
# | | |
# |---|---|
# | you know | derivatives, windows and targets (notebook 05), the GPT's shape (notebook 06), logits (notebook 09) |
# | you need | about 90 minutes, exercises apart; any laptop: no GPU, no network, one gigabyte of memory |
# | files | `pretrain_simple.py`, `training_loop.py` and `losses.py` of this folder |
#
# | letter | meaning | shape or unit |
# |---|---|---|
# | w, b | the two numbers of the toy model | – |
# | L | loss; of a language model the mean surprise -ln p(next token) | nats |
# | g | gradient: the derivative of L by every number of the model | as the model |
# | η | learning rate, the length of a step for each unit of g | – |
# | B, T | windows in a batch; tokens in a window | – |
# | N | tokens of a batch, B · T | – |
# | V, d | tokens that exist; width of the model | – |

# %% [markdown]
# What we need is on your machine already.

# %%
import copy
import math
from fractions import Fraction

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

torch.set_num_threads(1)  # sums then come in the same order on every run

# %% [markdown]
# ## 1. Two numbers, by hand
#
# The model is a line, w · x + b. There are two observations: at x = 0 we saw 1, at x = 2 we saw 5. The right answer is
# w = 2, b = 1, and you see it at once. The loop does not see it. It begins at w = b = 0 and knows only how wrong it is:
#
# $$L = \tfrac12\left(e_0^2 + e_2^2\right), \qquad e_x = w x + b - y$$
#
# At the start e₀ = -1 and e₂ = -5, so L = (1 + 25) / 2 = 13. The derivative by w is the mean of 2 · e · x, which is
# (0 - 20) / 2 = -10. By b it is the mean of 2 · e: (-2 - 10) / 2 = -6. In code, with exact fractions:

# %%
xs, ys = (0, 2), (1, 5)


def loss_and_gradient(w, b):
    errors = [w * x + b - y for x, y in zip(xs, ys)]
    loss = Fraction(sum(e * e for e in errors)) / 2
    by_w = Fraction(sum(2 * e * x for e, x in zip(errors, xs))) / 2
    return loss, by_w, Fraction(sum(2 * e for e in errors)) / 2


print("L = {}, dL/dw = {}, dL/db = {}".format(*loss_and_gradient(0, 0)))

# %% [markdown]
# A negative derivative says: more of this number, less loss. So the step goes *against* the gradient: w ← w - η ·
# dL/dw, and the same for b. With η = ¼: w = 10 / 4 = 5/2 and b = 6 / 4 = 3/2. That is too far, but how wrong is it? e₀
# = ½, e₂ = 5 + 3/2 - 5 = 3/2, L = (¼ + 9/4) / 2 = 5/4. From 13 to 5/4 in one step.


# %%
def descend(rate, steps, w=Fraction(0), b=Fraction(0)):
    way = []
    for _ in range(steps + 1):
        loss, by_w, by_b = loss_and_gradient(w, b)
        way.append((w, b, loss))
        w, b = w - rate * by_w, b - rate * by_b
    return way


for w, b, loss in descend(Fraction(1, 4), 3):
    print(f"w = {w!s:6} b = {b!s:6} L = {loss}")

# %% [markdown]
# **Predict before you run (1).** The rate ¼ was good. Is ½ twice as good? Take one step by hand: w = 5, b = 3, so
# e₀ = 2 and e₂ = 8. What is L?

# %%
for rate in (Fraction(1, 4), Fraction(1, 2)):
    print(f"rate {rate}: L =", [round(float(loss), 2) for _, _, loss in descend(rate, 5)])

# %% [markdown]
# (4 + 64) / 2 = 34, more than at the start, and it explodes. There is a limit, and for this bowl it can be computed.
# The second derivatives are the mean of 2x², of 2x and of 2: a matrix of 4, 2, 2, 2. Its largest eigenvalue is 3 + √5.
# A step multiplies the error in that direction by 1 - η(3 + √5), and that grows where η is above 2 / (3 + √5).

# %%
curvature = torch.tensor([[4.0, 2.0], [2.0, 2.0]], dtype=torch.float64)
steepest = float(torch.linalg.eigvalsh(curvature)[-1])
assert math.isclose(steepest, 3 + math.sqrt(5))
print(f"largest rate that does not explode: {2 / steepest:.3f}")

# %% [markdown]
# Both ways on the map of the loss, from above. Each ring has the same loss.

# %%
figure, grid = plt.subplots(1, 2, figsize=(7.5, 3), layout="constrained")
w_axis, b_axis = np.meshgrid(np.linspace(-2, 6.5, 120), np.linspace(-1.5, 4.5, 120))
bowl = (np.square(b_axis - 1) + np.square(2 * w_axis + b_axis - 5)) / 2
for axes, rate, steps in zip(grid, (Fraction(1, 4), Fraction(1, 2)), (12, 2)):
    axes.contour(w_axis, b_axis, bowl, levels=[0.3, 1.25, 5, 13, 34], colors="0.6", linewidths=0.8)
    way = [(float(w), float(b)) for w, b, _ in descend(rate, steps)]
    axes.plot(*zip(*way), "o-", color="black", markersize=4)
    axes.plot(2, 1, "*", color="black", markersize=11, markerfacecolor="white")
    axes.set(title=f"rate {rate}", xlabel="w", ylabel="b", xlim=(-2, 6.5), ylim=(-1.5, 4.5))
plt.show()

# %% [markdown]
# On the left, the way jumps across the valley, turns round and is nearly there. On the right it leaves the map. Every
# rate of every model lives between these two pictures.
#
# ## 2. The same in torch: five lines
#
# Nobody derives a GPT by hand. `backward` does it: it walks back through all that was computed, and *adds* each
# derivative to the `.grad` of its parameter. An optimiser reads `.grad` and steps. `zero_grad` empties it again.

# %%
x, y = torch.tensor([0.0, 2.0], dtype=torch.float64), torch.tensor([1.0, 5.0], dtype=torch.float64)


def loop(steps, without="", rate=0.25):
    w, b = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer, losses = torch.optim.SGD([w, b], lr=rate), []
    for _ in range(steps):
        loss = (w * x + b - y).square().mean()  # (2,) -> ()
        losses.append(loss.item())
        if without != "backward":
            loss.backward()
        if without != "step":
            optimizer.step()
        if without != "zero_grad":
            optimizer.zero_grad()
    return losses


# %% [markdown]
# First the whole loop. Ours by hand was exact, and torch's in float64 gives the same numbers.

# %%
by_hand = [float(loss) for _, _, loss in descend(Fraction(1, 4), 19)]
assert np.allclose(loop(20), by_hand, rtol=1e-9, atol=1e-12)
print("by hand = torch.optim.SGD:", [round(loss, 2) for loss in loop(4)])

# %% [markdown]
# **Predict before you run (2).** Without `zero_grad`, gradients of all steps so far add up. Does the loss explode,
# stand still, or something else? What happens without `backward`? Without `step`?

# %%
for without in ("", "backward", "step", "zero_grad"):
    some = loop(60, without)
    print(f"without {without or 'nothing':10} last five: {[round(loss, 2) for loss in some[-5:]]}")

# %% [markdown]
# Without `backward` there is no gradient, and `step` passes over parameters that have none. No error. Without `step`,
# nothing moves. Without `zero_grad` it moves for ever. The sum of all gradients is a *speed*, and a ball with a speed
# and no friction swings through the valley and up the other side. It does not explode here, and it never comes to rest.
#
# ## 3. A small GPT, and text
#
# Now the same with a model that has more than two numbers. The text is Python's own language reference, which is on
# your machine. A tokenizer of 512 tokens is trained on it; every document ends with `<|endoftext|>`.

# %%
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.python_docs import standard_library, topics

documents = [text for _, text in sorted(topics(standard_library()).items())]
tokenizer = BytePairTokenizer.train(documents, 512)
V = tokenizer.n_vocab

# %% [markdown]
# Every tenth document is kept for validation, whole, as notebook 05 says. `Batches` gives windows: batch number `step`
# is a function of the seed and the step.

# %%
from working_with_text_data.token_shards import IGNORE, Batches, evaluation_windows


def ids_of(some):
    ids = [i for text in some for i in [*tokenizer.encode_ordinary(text), tokenizer.eot_token]]
    return np.array(ids, dtype=np.uint16)


held_out = documents[::10]
train_ids, validation_ids = ids_of(t for i, t in enumerate(documents) if i % 10), ids_of(held_out)
T, B = 64, 16
batches = Batches([train_ids], context_length=T, batch_size=B, seed=0)
inputs, targets = map(torch.from_numpy, batches.batch(0))  # (B, T) each
assert torch.equal(inputs[:, 1:], targets[:, :-1])  # each target is the token after its input

# %% [markdown]
# The model: two blocks of width 96. By hand: embeddings (V + 64) · 96; a block has 12 · 96² weights and 13 · 96 biases
# and norms; the last norm has 2 · 96.

# %%
from gpt_model import GPT, GPTConfig


def new_model(seed=0, **changes):
    torch.manual_seed(seed)
    shape = {"context_length": T, "n_layer": 2, "n_head": 4, "d_model": 96} | changes
    return GPT(GPTConfig(V, **shape))


by_hand = (V + T) * 96 + 2 * (12 * 96**2 + 13 * 96) + 2 * 96
assert by_hand == new_model().n_parameters
print(f"{by_hand:,} parameters")

# %% [markdown]
# ### The loss, and what it must be at first
#
# The loss is -ln of the probability that the model gave to the token that came, averaged over all N tokens. Naively it
# is a loop over tokens. `F.cross_entropy` does the same without one.


# %%
def naive_loss(logits, targets):
    total = 0.0
    for scores, target in zip(logits, targets.tolist()):  # (V,) and an id
        total -= float(scores.softmax(dim=0)[target].log())
    return total / len(targets)


model = new_model()
with torch.no_grad():
    logits = model(inputs).flatten(0, 1)  # (B, T, V) -> (N, V)
    loss = F.cross_entropy(logits, targets.flatten())
assert math.isclose(naive_loss(logits, targets.flatten()), loss.item(), rel_tol=1e-4)

# %% [markdown]
# **Predict before you run (3).** A fresh model knows nothing, so each of its V = 512 tokens has about the same
# probability. What is the loss?

# %%
assert abs(loss.item() - math.log(V)) < 0.15
print(f"ln {V} = {math.log(V):.1f} nats, the fresh model {loss.item():.1f}")

# %% [markdown]
# This is the cheapest test there is. A first loss far above ln V means weights that are too large, or targets that the
# model does not have. Far below means that the answer leaks in.
#
# The loop and the vectorised loss by turns:

# %% tags=["volatile"]
from utils.benchmarking import median, time_by_turns

flat = targets.flatten()  # (N,)
times = {"naive": lambda: naive_loss(logits, flat), "fast": lambda: F.cross_entropy(logits, flat)}
times = median(time_by_turns(times, 5))
print(f"naive {times['naive'] * 1e3:.1f} ms, fast {times['fast'] * 1e3:.2f} ms: {times['naive'] / times['fast']:.0f} ×")

# %% [markdown]
# ### One batch by heart
#
# The second cheapest test. A loop that is right can learn one small batch by heart. If it cannot, nothing else will
# work.


# %%
def mean_loss(model, inputs, targets):
    logits = model(inputs)  # (B, T, V)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)


model = new_model()
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
for _ in range(100):
    loss = mean_loss(model, inputs[:2], targets[:2])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
assert loss.item() < 0.2
print("two windows by heart: below 0.2 nats")

# %% [markdown]
# ### Each line taken away
#
# Now section 2 again with the GPT, and with one more line to lose: the one that gets a *new* batch. AdamW is the
# optimiser; how it works is the next notebook's question. We watch the loss on validation text, which no loop has seen.

# %%
windows = torch.from_numpy(evaluation_windows([validation_ids], T, max_tokens=32 * T))  # (32, T + 1)


@torch.no_grad()
def validation_loss(model):
    return mean_loss(model, windows[:, :-1], windows[:, 1:]).item()


def train(steps, without="", rate=5e-3):
    model, seen = new_model(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for step in range(steps):
        batch = 0 if without == "new batch" else step
        loss = mean_loss(model, *map(torch.from_numpy, batches.batch(batch)))
        if without != "backward":
            loss.backward()
        if without != "step":
            optimizer.step()
        if without != "zero_grad":
            optimizer.zero_grad()
        if step % 10 == 9:
            seen.append((step + 1, loss.item(), validation_loss(model)))
    return seen


# %% [markdown]
# **Predict before you run (4).** Which of the five has the lowest *training* loss after 60 steps? Which of them are
# then worse on validation text than the model that knows nothing, ln V?

# %%
runs = {without: train(60, without) for without in ("", "zero_grad", "new batch", "step", "backward")}
ends = {without: seen[-1] for without, seen in runs.items()}
print("lowest training loss without:", min(ends, key=lambda name: ends[name][1]))
print("worse than knowing nothing, without:", [name for name, end in ends.items() if end[2] > math.log(V) + 0.3])
assert ends["step"][2] == ends["backward"][2] and ends[""][2] < 5.8

# %% [markdown]
# The loop without a new batch has by far the best training loss, and its model is worse than none. That is the reason
# to keep text aside: nobody would see it from the training loss.

# %% tags=["volatile"]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
styles = {"": "-", "zero_grad": "--", "step": ":", "backward": "x", "new batch": "-."}
for without, style in styles.items():
    color = "0.5" if style == "x" else "black"
    if without != "new batch":
        left.plot(loop(40, without), style, color=color, markersize=4)
    steps, _, values = zip(*runs[without])
    right.plot(steps, values, style, color=color, label=f"without {without}" if without else "all lines")
left.set(title="two numbers", xlabel="step", ylabel="loss (squared error)")
right.set(title="a small GPT", xlabel="step", ylabel="validation loss (nats)")
figure.legend(*right.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# Without `zero_grad` the GPT learns at first, not much slower than the whole loop. Then the old gradients outweigh the
# new one, and it runs on past every valley. AdamW divides by the size of its gradients, so nothing overflows and
# nothing warns. A bug that works for ten steps is the hardest to find: compare with a loop that you trust, as here.
#
# ## 4. Twenty lines that write words
#
# The whole loop, with the two lines that every real one has besides: a learning rate that climbs at first and then
# descends, and clipping (section 6). Before it, what does the fresh model write?

# %%
from gpt_model import Sampling
from gpt_model.generate import generate_text

sampling = Sampling(temperature=0.6, top_p=0.9, seed=0)


def write(model, n=120):
    return "".join(generate_text(model.eval(), tokenizer, "The", n, sampling))


model = new_model()
before = write(model)
first_loss = validation_loss(model.train())

# %% [markdown]
# And here it is. `F.cross_entropy` and AdamW are torch's, everything else you have seen.


# %%
def learn(model, batches, steps, rate=4e-3, every=25):
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95))
    rows = []
    for step in range(steps):
        scale = min((step + 1) / 40, 1.0, 1.4 * (1 - step / steps))  # up, level, down
        for group in optimizer.param_groups:
            group["lr"] = rate * scale
        loss = mean_loss(model, *map(torch.from_numpy, batches.batch(step)))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rows.append((loss.item(), norm.item(), validation_loss(model) if (step + 1) % every == 0 else None))
    return rows


rows = learn(model, batches, 800)
trained, after = model, write(model)

# %% [markdown]
# What did it learn? The loss, and a number that one can read: of all words of three letters or more that the model
# writes, how many are words of the reference?

# %%
import re

known = set(re.findall(r"[A-Za-z]{3,}", " ".join(documents)))


def share_of_words(text):
    words = re.findall(r"[A-Za-z]{3,}", text)
    return sum(word in known for word in words) / max(len(words), 1)


assert rows[-1][2] < 0.75 * first_loss
assert share_of_words(after) > 2 * share_of_words(before)
print("validation loss: below three quarters of the first; more than twice as many real words")

# %% [markdown]
# Both texts. They are short of sense, and yet somebody has learned English spacing, line breaks and the look of Python.

# %% tags=["volatile"]
print(f"before, {share_of_words(before):.0%} words:\n{before[:200]!r}\n")
print(f"loss {rows[0][0]:.2f} -> {rows[-1][0]:.2f}, validation {rows[-1][2]:.2f}")
print(f"after, {share_of_words(after):.0%} words:\nThe{after}")

# %% [markdown]
# The curves of this run: on the left the loss, on the right the norm of the gradient before clipping, which we shall
# need below.

# %% tags=["volatile"]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
left.plot([row[0] for row in rows], color="0.65", linewidth=0.8, label="training")
left.plot(*zip(*[(i, row[2]) for i, row in enumerate(rows) if row[2]]), "ko-", markersize=3, label="validation")
left.axhline(math.log(V), linestyle=":", color="black")
left.text(len(rows), math.log(V) - 0.12, "ln V", ha="right", va="top", fontsize=8)
left.set(xlabel="step", ylabel="loss (nats per token)")
left.legend(frameon=False, fontsize=8)
right.plot([row[1] for row in rows], color="black", linewidth=0.8)
right.axhline(1.0, linestyle="--", color="0.5", label="clipped above")
right.legend(frameon=False, fontsize=8)
right.set(xlabel="step", ylabel="norm of the gradient", yscale="log")
plt.show()

# %% [markdown]
# ### Training loss and validation loss part ways
#
# The gap that opens between the curves is no accident: 800 steps read the same text several times. Give the same loop
# only 60 windows, again and again:

# %%
few = Batches([train_ids[: 60 * T]], context_length=T, batch_size=B, seed=0)
narrow = learn(new_model(), few, 240, every=20)
measured = [row[2] for row in narrow if row[2]]
lowest = min(measured)
assert measured[-1] > lowest + 0.5 and narrow[-1][0] < 1.5
print("validation loss rises again by more than half a nat, while the training loss falls below 1.5")

# %% [markdown]
# Both, side by side. The dotted line is where the validation loss was lowest.

# %% tags=["volatile"]
figure, axes = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
axes.plot([row[0] for row in narrow], color="0.5", label="training, 60 windows")
axes.plot(*zip(*[(i, row[2]) for i, row in enumerate(narrow) if row[2]]), "ko-", markersize=3, label="validation")
axes.axvline(20 * (measured.index(lowest) + 1), linestyle=":", color="black")
axes.set(xlabel="step", ylabel="loss (nats per token)")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# To the right of the dotted line every step makes the model worse, and the training loss says that it gets better.
#
# ## 5. A batch in parts, and a bug
#
# A batch that does not fit into memory is computed in parts. `backward` adds, so the parts' gradients add up by
# themselves: *gradient accumulation*. What loss shall each part have? Some targets are not asked for (padding,
# `IGNORE`), so parts have different numbers of them. Integers first: part one has a single target with loss 8. Part two
# has three, with losses 2, 2 and 2. The mean over all four is 14 / 4.

# %%
parts = [[8], [2, 2, 2]]
mean_of_means = Fraction(sum(Fraction(sum(part), len(part)) for part in parts), len(parts))
all_targets = Fraction(sum(map(sum, parts)), sum(map(len, parts)))
print(f"mean of the parts' means: {mean_of_means}, mean over all targets: {all_targets}")

# %% [markdown]
# 5 against 7/2. The lonely target counted as much as three others together. Now the loop as most people write it first:
# each part's own mean, divided by the number of parts. The batch is padded: window r is asked only for its last few
# tokens.

# %%
padded = targets.clone()  # (B, T)
for row in range(B):
    padded[row, : T - 2 - 4 * (B - 1 - row)] = IGNORE
n_targets = (padded != IGNORE).sum(dim=1)  # (B,)
print("targets in each window:", n_targets.tolist())


# %% [markdown]
# The gradient of all parts together, as one long vector:


# %%
def gradient(model, part_loss, size):
    model.zero_grad()
    for first in range(0, B, size):
        part_loss(model, inputs[first : first + size], padded[first : first + size]).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])  # (parameters,)


def by_means(size):
    return lambda model, x, y: mean_loss(model, x, y) / (B // size)


# %% [markdown]
# **Predict before you run (5).** Is the gradient of four parts the same as that of the one large batch?

# %%
model = new_model()
one_batch = gradient(model, by_means(B), B)  # (parameters,)
for size in (8, 4, 1):
    off = gradient(model, by_means(size), size) - one_batch
    print(f"parts of {size:2}: the gradient is off by {float(off.norm() / one_batch.norm()):.0%} of its length")

# %% [markdown]
# **Seen:** the gradient depends on how the batch is cut, and badly so. **Diagnosed:** divide each window's weight by
# what it should be. In parts of one window, the window with 2 targets counts as much as the one with 62.
#
# **Mended:** sums in place of means, divided by the targets of the *whole* batch, which are known beforehand.


# %%
def by_sums(model, x, y):
    logits = model(x).flatten(0, 1)  # (size · T, V)
    total = F.cross_entropy(logits, y.flatten(), ignore_index=IGNORE, reduction="sum")
    return total / n_targets.sum()


for size in (B, 8, 4, 1):
    torch.testing.assert_close(gradient(model, by_sums, size), one_batch, rtol=1e-3, atol=1e-6)
print("sums over targets: any parts give the gradient of the one batch")

# %% [markdown]
# How much each target counted, in parts of one window and before the mending. It should be a level line.

# %%
figure, axes = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
weight = (1 / B) / n_targets * n_targets.sum()  # (B,): of one target, as a multiple of what it should be
axes.plot(n_targets.tolist(), weight.tolist(), "o-", color="black", markersize=4, label="mean of means")
axes.axhline(1.0, linestyle="--", color="0.5", label="sum over all targets")
axes.set(xlabel="targets in the window", ylabel="weight of a target (×)", yscale="log")
axes.set_yticks([0.5, 1, 2, 5, 10, 16], ["0.5", "1", "2", "5", "10", "16"])
axes.minorticks_off()
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ### What accumulation saves
#
# Forward keeps what backward will need, and all of it grows with the number of tokens at a time. So a part of 1/4 needs
# 1/4. torch tells us what it keeps, tensor by tensor; parameters are kept anyway and do not count.


# %%
def bytes_kept(model, size):
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = by_sums(model, inputs[:size], padded[:size])
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(n for place, n in kept.items() if place not in own), loss


whole, _ = bytes_kept(model, 16)
print({size: f"1 / {whole / bytes_kept(model, size)[0]:.1f}" for size in (16, 8, 4, 2)}, "of the bytes")

# %% [markdown]
# ## 6. Clipping
#
# One odd batch can have a gradient many times as long as usual, and one long step can undo a thousand good ones. So the
# whole gradient is scaled down to length 1 where it is longer (Pascanu et al. 2013). By hand: (3, 4) has length 5, and
# becomes (3/5, 4/5). A gradient of length ½ stays as it is. The length is *joint*, over all tensors.


# %%
def clip(gradients, most):
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    scale = min(1.0, most / norm) if norm > 0 else 1.0
    return [g * scale for g in gradients], norm


three, four = torch.tensor([3.0]), torch.tensor([4.0])
print([round(float(g), 2) for g in clip([three, four], 1.0)[0]])

# %% [markdown]
# The oracle is `torch.nn.utils.clip_grad_norm_`, the house's is `clip_gradients`. All three on the gradient of a GPT:

# %%
from pretraining.distributed import clip_gradients

by_sums(model, inputs, padded).backward()
ours, norm = clip([p.grad for p in model.parameters()], 0.5)
other = copy.deepcopy(model)
for p, q in zip(model.parameters(), other.parameters()):
    q.grad = p.grad.clone()
its_norm = torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
assert math.isclose(clip_gradients(model.parameters(), 0.5), norm, rel_tol=1e-4)
assert math.isclose(float(its_norm), norm, rel_tol=1e-4)
for a, p, q in zip(ours, model.parameters(), other.parameters()):
    torch.testing.assert_close(a, p.grad, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-8)

# %% [markdown]
# **What does not work:** to clip each tensor alone. (3, 4) as two tensors then becomes (1, 1), which points elsewhere.
# Joint clipping changes the length and never the direction.

# %%
joint = torch.cat(clip([three, four], 1.0)[0])  # (2,)
alone = torch.cat([clip([g], 1.0)[0][0] for g in (three, four)])  # (2,)
g = torch.cat([three, four])
for name, some in (("joint", joint), ("each alone", alone)):
    print(f"{name:10} cosine with the gradient: {float(F.cosine_similarity(some, g, dim=0)):.3f}")

# %% [markdown]
# What is it good for? Our trained model gets one odd batch: ids drawn at random. Its gradient is long. One step of
# plain gradient descent with it, once as it is and once clipped to 1, and then the validation loss:


# %%
def after_an_odd_batch(most):
    hurt = copy.deepcopy(trained)
    odd = torch.randint(V, (2, B, T), generator=torch.Generator().manual_seed(0))  # inputs and targets
    mean_loss(hurt, *odd).backward()
    norm = clip_gradients(hurt.parameters(), most)
    torch.optim.SGD(hurt.parameters(), lr=0.5).step()
    return norm, validation_loss(hurt)


norm, unclipped = after_an_odd_batch(0)
_, clipped = after_an_odd_batch(1.0)
usual = sorted(row[1] for row in rows)[len(rows) // 2]
assert norm > 2 * usual and unclipped - rows[-1][2] > 2 * (clipped - rows[-1][2])
print("a gradient of more than twice the usual length; unclipped it does more than twice the harm")

# %% [markdown]
# The numbers themselves:

# %% tags=["volatile"]
print(f"norm {norm:.2f}, usually {usual:.2f}")
print(f"validation loss {rows[-1][2]:.2f} -> {unclipped:.2f} unclipped, {clipped:.2f} clipped")

# %% [markdown]
# ## 7. The loss in chunks
#
# The largest tensor of a training step is the logits: N · V numbers. With GPT-2's vocabulary and 16 windows of 1024
# tokens that is

# %%
N_gpt2, V_gpt2 = 16 * 1024, 50257
print(f"{N_gpt2} · {V_gpt2} · 4 bytes = {N_gpt2 * V_gpt2 * 4 / 1e9:.1f} GB, and the gradient by them as much again")

# %% [markdown]
# But the loss is a sum over tokens. A chunk of tokens can go all the way, logits, loss, gradient, before the next
# begins. The gradient by the logits of one token is softmax minus 1 at the target. By hand for logits (ln 2, ln 1, ln
# 1) and target 0: softmax is (½, ¼, ¼), so the gradient is (-½, ¼, ¼).

# %%
z = torch.tensor([[2.0, 1.0, 1.0]], dtype=torch.float64).log().requires_grad_()  # (1, V)
F.cross_entropy(z, torch.tensor([0])).backward()
print([round(share, 3) for share in z.grad[0].tolist()])


# %% [markdown]
# With that, the loss in chunks. Nothing is left for a backward pass to do:


# %%
def chunked_by_hand(hidden, weight, targets, chunk):
    """The sum of the losses, and its gradients by `hidden` (N, d) and `weight` (V, d)."""
    loss, by_hidden, by_weight = 0.0, torch.zeros_like(hidden), torch.zeros_like(weight)
    for first in range(0, len(hidden), chunk):
        h, t = hidden[first : first + chunk], targets[first : first + chunk]  # (chunk, d), (chunk,)
        logits = h @ weight.T  # (chunk, d) @ (d, V) -> (chunk, V)
        loss += float(F.cross_entropy(logits, t, reduction="sum"))
        gradient = logits.softmax(dim=1)  # (chunk, V)
        gradient[torch.arange(len(t)), t] -= 1
        by_hidden[first : first + chunk] = gradient @ weight  # (chunk, V) @ (V, d) -> (chunk, d)
        by_weight += gradient.T @ h  # (V, chunk) @ (chunk, d) -> (V, d)
    return loss, by_hidden, by_weight


# %% [markdown]
# The plain way, our chunks, and the house's `chunked_cross_entropy` give one loss and the same gradients:

# %%
from pretraining.losses import chunked_cross_entropy

generator = torch.Generator().manual_seed(0)
hidden, weight = torch.randn(1000, 16, generator=generator), torch.randn(3000, 16, generator=generator)
wanted = torch.randint(3000, (1000,), generator=generator)  # (N,)
hidden.requires_grad_(), weight.requires_grad_()


def plain(hidden, weight, targets):
    return F.cross_entropy(hidden @ weight.T, targets, reduction="sum")  # (N, d) @ (d, V) -> (N, V) -> ()


def value_and_gradients(function, *more):
    loss = function(hidden, weight, wanted, *more)
    return [loss.item(), *torch.autograd.grad(loss, (hidden, weight))]


all_three = value_and_gradients(plain), chunked_by_hand(hidden.detach(), weight.detach(), wanted, 64)
for one in (*all_three, value_and_gradients(chunked_cross_entropy, 64)):
    assert math.isclose(one[0], all_three[0][0], rel_tol=1e-5)
    torch.testing.assert_close(list(one[1:]), all_three[0][1:], rtol=1e-4, atol=1e-4)
print("plain = by hand = chunked_cross_entropy, with gradients")

# %% [markdown]
# ### Bytes, by formula and measured
#
# Plain: the logits, their log-softmax, and the gradient by one of them exist together, 3 · 4 · N · V bytes. In chunks
# it is a few times 4 · chunk · V, however large N is, plus the gradients that stay, 4 · d · (N + V) bytes. To measure
# it we listen to every operation of torch, note each new storage, and strike it out when it is freed.

# %%
import weakref

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.now, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)):
            self.note(tensor.untyped_storage())
        return result

    def note(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now, self.peak = self.now + size, max(self.peak, self.now + size)
            weakref.finalize(storage, self.forget, key, size)

    def forget(self, key, size):
        self.known.discard(key)
        self.now -= size


# %% [markdown]
# One more contestant: chunks in plain torch, whose losses are added up, and backward at the end.
#
# **Predict before you run (6).** Is that as good? When can torch let the logits of the first chunk go?


# %%
def chunks_for_autograd(hidden, weight, targets, chunk):
    starts = range(0, len(hidden), chunk)
    return sum(plain(hidden[i : i + chunk], weight, targets[i : i + chunk]) for i in starts)


# %% [markdown]
# The peak of forward and backward, for a growing number of tokens:


# %%
def peak_of(function, n, *more):
    h, w = torch.zeros(n, 16, requires_grad=True), torch.zeros(3000, 16, requires_grad=True)
    t = torch.zeros(n, dtype=torch.long)
    with PeakBytes() as watch:
        function(h, w, t, *more).backward()
    return watch.peak


sizes = [256, 512, 1024, 2048, 4096]
peaks = {"plain": [peak_of(plain, n) for n in sizes]}
peaks["autograd's chunks"] = [peak_of(chunks_for_autograd, n, 128) for n in sizes]
peaks["house's chunks"] = ours = [peak_of(chunked_cross_entropy, n, 128) for n in sizes]
for name, values in peaks.items():
    print(f"{name:17}", [f"{value / 1e6:.0f} MB" for value in values])
for n, value in zip(sizes, peaks["plain"]):
    assert abs(value / (3 * 4 * n * 3000) - 1) < 0.06  # the formula; what is above it are hidden vectors and weights
print(f"plain / house's at N = 4096: {peaks['plain'][-1] / ours[-1]:.0f} ×")

# %% [markdown]
# No: backward needs each chunk's log-softmax, so autograd keeps them all. The house's chunks compute the gradient at
# once and keep nothing. The measured peaks, and the formula for one copy, two and three of the logits:

# %%
figure, axes = plt.subplots(figsize=(5.8, 3.2), layout="constrained")
for (name, values), marker, color in zip(peaks.items(), "o^s", ("black", "0.6", "0.3")):
    axes.plot(sizes, [value / 1e6 for value in values], marker + "-", color=color, markersize=4, label=name)
for copies in (1, 2, 3):
    axes.plot(sizes, [copies * 4 * n * 3000 / 1e6 for n in sizes], "k:", linewidth=0.8)
    axes.text(4200, copies * 4 * 4096 * 3000 / 1e6, f"{copies} · 4NV", fontsize=8, va="center")
axes.set(xlabel="tokens N", ylabel="peak (MB)", xscale="log", yscale="log", xlim=(230, 7000))
axes.set_xticks(sizes, [str(n) for n in sizes])
axes.minorticks_off()
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# Is it slower? Gradients are computed in the forward pass, so what has to be compared is both passes. By turns:

# %% tags=["volatile"]
times = {"plain": lambda: value_and_gradients(plain)}
times = median(time_by_turns(times | {"chunked": lambda: value_and_gradients(chunked_cross_entropy, 128)}, 9))
print(f"plain {times['plain'] * 1e3:.1f} ms, chunked {times['chunked'] * 1e3:.1f} ms: ", end="")
print(f"{times['chunked'] / times['plain']:.2f} × the time")

# %% [markdown]
# ## 8. The house's step is our step
#
# `TrainingLoop.take_step` is the loop that pretraining and fine-tuning share. It gets an objective (the sum of the
# losses), a batch by number, and hooks. We give it our padded batch in four parts, and plain gradient descent, so that
# rounding cannot hide behind AdamW's division.

# %%
import tempfile
from pathlib import Path

from pretraining.distributed import Ranks
from pretraining.training_loop import Hooks, LoopOptions, NextToken, TrainingLoop

runs_folder = tempfile.TemporaryDirectory()
HERE = Ranks(0, 1, torch.device("cpu"))
options = LoopOptions(
    steps=40, batch_size=B, micro_batch_size=4, schedule="constant", warmup=0.0, precision="float32",
    chunk_tokens=100, checkpoint_every=16, evaluate_every=10**9,
)  # fmt: skip


def house_loop(model, batch, name, on_step=lambda step: None, rate=0.1, say=print):
    groups = [{"params": list(model.parameters()), "lr": rate, "peak_lr": rate}]
    return TrainingLoop(
        NextToken(model, options.chunk_tokens), model, model.transformer.blocks, lambda: [torch.optim.SGD(groups)],
        batch, options, HERE, Hooks(on_step, lambda last: 0.0, say=say), Path(runs_folder.name) / name,
    )  # fmt: skip


# %% [markdown]
# One step by the house, and one by our lines: sums over targets, clipping to 1, a step, from the same weights.

# %%
theirs, mine, steps = new_model(), new_model(), []
house = house_loop(theirs, lambda step, rank, ranks: (inputs.numpy(), padded.numpy()), "step", steps.append)
assert house.take_step() is None

by_sums(mine, inputs, padded).backward()
clipped, norm = clip([p.grad for p in mine.parameters()], 1.0)
with torch.no_grad():
    for p, g in zip(mine.parameters(), clipped):
        p -= 0.1 * g
for p, q in zip(mine.parameters(), theirs.parameters()):
    torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
assert math.isclose(steps[0].gradient_norm, norm, rel_tol=1e-4) and steps[0].targets == int(n_targets.sum())
house.read.close()
print("our step = TrainingLoop.take_step, in four parts, padded")

# %% [markdown]
# ## 9. Not a number, and the way back
#
# A number becomes infinite, or a bit flips in memory, and the loss is NaN: *not a number*. Everything that touches NaN
# becomes NaN.
#
# **Predict before you run (7).** One weight of the embedding becomes NaN. How much of the model is still a number after
# one step of the plain loop?

# %%
sick = new_model()
with torch.no_grad():
    sick.transformer.wte.weight[int(inputs[0, 0]), 0] = math.nan
optimizer = torch.optim.SGD(sick.parameters(), lr=0.1)
mean_loss(sick, inputs, targets).backward()
optimizer.step()
numbers = sum(int(p.isfinite().sum()) for p in sick.parameters())
print(f"{numbers / sick.n_parameters:.0%} of the weights are numbers")

# %% [markdown]
# All gone, in a single step. So the house looks at the loss *before* the step. `LossWatch` knows the running mean of
# the losses, and says what is wrong: not a number, or more than `spike` nats above the mean.

# %%
from pretraining.training_loop import LossWatch

watch = LossWatch(spike=3.0)
for loss in (6.0, 5.0, 4.0, 9.5, 4.0, math.nan):
    print(f"loss {loss}: {watch.problem(loss, norm=1.0) or 'fine'}")

# %% [markdown]
# By hand: 6, then 0.9 · 6 + 0.1 · 5 = 5.9, then 5.71. A loss of 9.5 is more than 3 above. It does not enter
# the mean, so the watch does not get used to disaster.
#
# If there is a problem, no step is taken. The loop goes back to its last checkpoint and *past* the batches that led
# there (Chowdhery et al. 2022, section 5.1): a disaster comes of weights and batches together, and with other batches
# it may not come. We break a weight after step 20; checkpoints are written every 16 steps.

# %%
curve, broken = [], []


def note(step):
    curve.append((house.step, step.loss))
    if house.step == 20 and not broken:
        broken.append(house.step)
        with torch.no_grad():
            theirs.transformer.wte.weight[0, 0] = math.nan


theirs = new_model()
house = house_loop(theirs, lambda step, rank, ranks: batches.batch(step), "rewind", note, rate=0.3)
print(house.run())
assert house.skipped == 5 and all(bool(p.isfinite().all()) for p in theirs.parameters())

# %% [markdown]
# Steps 17 to 20 were taken twice, the second time with other batches. The picture shows both:

# %% tags=["volatile"]
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
first, second = curve[:20], curve[20:]
axes.plot(*zip(*first), "s--", color="0.5", markersize=4, markerfacecolor="none", label="until the weights broke")
axes.plot(*zip(*second), "o-", color="black", markersize=3, label="after going back")
axes.axvline(16.5, linestyle=":", color="black")
axes.text(16.2, min(loss for _, loss in curve), "checkpoint", fontsize=8, ha="right")
axes.set(xlabel="step", ylabel="loss (nats per token)")
axes.legend(frameon=False, fontsize=8)
plt.show()
runs_folder.cleanup()

# %% [markdown]
# ## 10. Exercises
#
# Write the body in place of the dots and run the cell. The check says what is missing.

# %%
from pretraining.exercises.ex13 import (
    check_clip_jointly,
    check_descend_once,
    check_first_problem,
    check_loss_gradient,
    check_step_loss,
)
from utils.exercises import attempt

# %% [markdown]
# **A. One step** (easy, 5 minutes) `xs` and `ys` are lists of numbers. Return the new (w, b) after one step of gradient
# descent on the mean squared error of w · x + b.


# %%
def descend_once(w, b, xs, ys, rate): ...


attempt(check_descend_once, descend_once)

# %% [markdown]
# **B. The loss of a step** (medium, 10 minutes) `parts` is a list of pairs: logits (tokens, V) and targets (tokens,),
# with `IGNORE` = -100 where nothing is asked. Return the loss of the whole step, a float.


# %%
def step_loss(parts): ...


attempt(check_step_loss, step_loss)

# %% [markdown]
# **C. Clipping** (medium, 10 minutes) `gradients` is a list of tensors. Return a new list, scaled together so that the
# joint norm is at most `most`. Shorter gradients stay as they are. `most` = 0 means no limit.


# %%
def clip_jointly(gradients, most): ...


attempt(check_clip_jointly, clip_jointly)

# %% [markdown]
# **D. The gradient of a loss** (medium, 15 minutes) `logits` (N, V), `targets` (N,) with `IGNORE` = -100 where nothing
# is asked. Return the gradient of the *sum* of the losses by the logits, (N, V), without `backward`.


# %%
def loss_gradient(logits, targets): ...


attempt(check_loss_gradient, loss_gradient)

# %% [markdown]
# **E. The watch** (medium, 15 minutes) `losses` is a list. Return the index of the first one that is not finite, or
# more than `spike` above the running mean of those before it; None if there is none. The running mean begins at the
# first loss, and becomes 0.9 · mean + 0.1 · loss after each.


# %%
def first_problem(losses, spike): ...


attempt(check_first_problem, first_problem)

# %% [markdown]
# ### Solutions
#
# <details><summary>Solution: `descend_once`</summary>
#
# ```python
# def descend_once(w, b, xs, ys, rate):
#     errors = [w * x + b - y for x, y in zip(xs, ys)]
#     by_w = sum(2 * e * x for e, x in zip(errors, xs)) / len(xs)
#     by_b = sum(2 * e for e in errors) / len(xs)
#     return w - rate * by_w, b - rate * by_b
# ```
# </details>
#
# <details><summary>Solution: `step_loss`</summary>
#
# ```python
# import torch.nn.functional as F
#
#
# def step_loss(parts):
#     total, asked = 0.0, 0
#     for logits, targets in parts:
#         total += F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum").item()
#         asked += int((targets != -100).sum())
#     return total / asked
# ```
# </details>
#
# <details><summary>Solution: `clip_jointly`</summary>
#
# ```python
# import math
#
#
# def clip_jointly(gradients, most):
#     norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
#     scale = most / norm if most > 0 and norm > most else 1.0
#     return [g * scale for g in gradients]
# ```
# </details>
#
# <details><summary>Solution: `loss_gradient`</summary>
#
# ```python
# import torch
#
#
# def loss_gradient(logits, targets):
#     asked = targets != -100
#     gradient = logits.softmax(dim=1)  # (N, V)
#     gradient[torch.arange(len(targets)), targets.clamp(min=0)] -= 1
#     return gradient * asked.unsqueeze(1)
# ```
# </details>
#
# <details><summary>Solution: `first_problem`</summary>
#
# ```python
# import math
#
#
# def first_problem(losses, spike):
#     mean = None
#     for i, loss in enumerate(losses):
#         if not math.isfinite(loss) or (mean is not None and loss > mean + spike):
#             return i
#         mean = loss if mean is None else 0.9 * mean + 0.1 * loss
#     return None
# ```
# </details>

# %% [markdown]
# ## 11. What you take along
#
# **Recap**
#
# - Batch, loss, `backward`, `step`, `zero_grad`. Each can be missing without an error, and each then fails in its own
#   way.
# - A rate has a limit: 2 over the largest curvature. Above it, steps grow.
# - Before a long run: the first loss is ln V, and one batch can be learnt by heart.
# - Training loss says what was memorised. Validation loss says what was learnt.
# - Parts of a batch: sums, over the targets of the whole step. Then any cut gives one gradient.
# - Clipping is joint. It changes the length and not the direction.
# - The loss in chunks is the same loss, and its peak hardly grows with N.
# - Look at the loss before the step. After it, it is too late.
#
# **Pitfalls**, each seen above: a rate twice as large; no `zero_grad`; the same batch again and again; a mean of means;
# tensors clipped one by one; chunks that backward keeps; a NaN that was stepped on.
#
# ### Reading guide
#
# Read `pretrain_simple.py` first: its `main` is section 4 with a progress bar. Then `training_loop.py`. The heart of it
# is how parts add up. `scale` is ranks over targets, and `gradients_meet` is for several processes. `halves` are those
# of `--weights bfloat16`, and none without it:

# %%
import inspect

print(inspect.getsource(TrainingLoop._backward))

# %% [markdown]
# The watch, and the clipping:

# %%
print(inspect.getsource(LossWatch.problem))
print(inspect.getsource(clip_gradients))

# %% [markdown]
# And in `losses.py`, the gradient of a chunk, which takes the place of its logits: softmax, minus 1 at the target,
# nothing where nothing is asked.

# %%
from pretraining.losses import _loss_and_gradient, _softmax_in_place

print(inspect.getsource(_softmax_in_place))
print(inspect.getsource(_loss_and_gradient))

# %% [markdown]
# **CUDA, Apple's MPS, Windows.** None of them was run here. On CUDA the source pins batches and copies them while the
# device computes, may round products to bfloat16 (`autocast`), and in float16 scales the loss so that small gradients
# do not vanish; then an infinite gradient is the scaler's business and no reason to go back. `loss.item()` waits for
# the device. Sums come in another order there, so equal means equal but for rounding. MPS has no float64, which
# sections 1, 2 and 7 use. On Windows, folders with open files cannot be removed, so `runs_folder.cleanup()` needs the
# loop's thread ended first.
#
# **Sources.** Robbins and Monro 1951, *A Stochastic Approximation Method* · Rumelhart, Hinton, Williams 1986, *Learning
# representations by back-propagating errors* · Pascanu, Mikolov, Bengio 2013, *On the difficulty of training recurrent
# neural networks* · Loshchilov and Hutter 2019, *Decoupled Weight Decay Regularization* · Chowdhery et al. 2022,
# *PaLM*, section 5.1 · Hsu et al. 2024, *Liger Kernel*, section 3.2.
#
# **The next question.** Our loop says `optimizer.step()` and looks away. With plain gradient descent one rate serves
# all weights. AdamW keeps two numbers for each of them. What for, and can a step be better still? Notebook 14 opens the
# optimiser.
