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
# # Precision and memory
#
# **GPT-2's smallest is a file of half a gigabyte. To train it plainly, with 16 windows at a time, takes more than
# thirty times as much. What holds those bytes, and which of them can go?**
#
# A byte is saved in two ways: write a number with fewer bits, or do not keep it. Both can go wrong. A number
# with too few bits does not move when it should learn. We first build number formats by hand, and see a model stand
# still. Then we count: every byte of a training step gets an owner and a formula.
#
# | | |
# |---|---|
# | you know | the block (notebook 06), the training step, AdamW (this chapter's notebooks before) |
# | you need | about 90 minutes, exercises apart; any laptop: no GPU, no network, one gigabyte of memory |
# | files | `losses.py`, `training_loop.py`, `optimizers.py` of this folder, and `utils/devices.py` |
#
# | letter | meaning | unit |
# |---|---|---|
# | e, f | bits of exponent, bits of fraction | bits |
# | B, T | windows in a step; tokens of a window | – |
# | d, H, L | width of the residual stream; heads; blocks | – |
# | V | tokens in the vocabulary | – |
# | N | parameters | – |
# | s | what the loss is multiplied by, so that small gradients survive | – |
# | GB | 10⁹ bytes | – |

# %% [markdown]
# What we need is on your machine already.

# %%
import copy
import inspect
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from gpt_model import GPT, GPTConfig

torch.set_num_threads(1)  # our tensors are tiny, and threads on a busy machine wait for each other

# %% [markdown]
# ## 1. A float of four bits, by hand
#
# A floating-point number has three parts: a sign, an exponent, a fraction. With one bit, two bits and one bit there
# are 16 numbers, few enough to know all of them. The rule is
#
# $$\pm\, 2^{\text{exponent} - \text{bias}} \cdot (1 + \text{fraction}), \qquad \text{bias} = 2^{e-1} - 1 = 1$$
#
# The bits 0 10 1 mean: plus, exponent 2, fraction ½. So 2^(2-1) · 1.5 = 3. Exponent 0 is special. There the leading 1
# is left out and the exponent counts as 1, so that zero exists: 0 00 0 is 0, and 0 00 1 is 2^0 · 0.5 = 0.5. These are
# the *subnormal* numbers.


# %%
def decode(bits, e, f):
    """The number that `bits` mean, with e bits of exponent and f of fraction; no infinities yet."""
    sign, exponent = -1 if bits >> (e + f) else 1, bits >> f & (1 << e) - 1
    fraction = (bits & (1 << f) - 1) / (1 << f)
    bias = (1 << e - 1) - 1
    return sign * 2.0 ** (max(exponent, 1) - bias) * ((exponent > 0) + fraction)


assert decode(0b0101, 2, 1) == 3 and decode(0b0001, 2, 1) == 0.5

# %% [markdown]
# **Predict before you run (1).** Which is the largest of the 16? And how far is it to the one before?

# %%
toy = sorted({decode(bits, 2, 1) for bits in range(16)})
print(toy)

# %% [markdown]
# The steps double with the numbers: ½ near 1, 2 near 6. On a line:

# %%
figure, axes = plt.subplots(figsize=(6.5, 1.3), layout="constrained")
axes.plot(toy, [0] * len(toy), "|", color="black", markersize=22)
axes.set(xticks=toy, yticks=[], xlabel="all numbers of the 4-bit format")
axes.set_xticklabels([f"{x:g}" for x in toy], fontsize=7)
axes.spines[["top", "left", "right"]].set_visible(False)
plt.show()


# %% [markdown]
# A number between two of them is rounded to the nearer one. 2.4 becomes 2. And 5 is just as far from 4 as from 6: then
# the one with the even fraction is taken, 4 (fraction 0), so that ties do not all go the same way.


# %%
def round_to(x, numbers):
    ordered = sorted(n for n in numbers if n >= 0)  # their place is their bit pattern, and even is a fraction of 0
    return min(ordered, key=lambda n: (abs(n - x), ordered.index(n) % 2))


print({x: round_to(x, toy) for x in (2.4, 2.5, 2.6, 5.0, 0.2)})

# %% [markdown]
# ## 2. The formats that models are trained in
#
# The same rule with other numbers of bits. `float32` has 8 bits of exponent and 23 of fraction. `float16` has 5 and
# 10. `bfloat16` has 8 and 7: it is float32 with the last 16 bits cut off. Here is 0.1 in each:

# %%
shapes = {torch.float32: (8, 23), torch.bfloat16: (8, 7), torch.float16: (5, 10)}
for dtype, (e, f) in shapes.items():
    whole = {4: torch.int32, 2: torch.int16}[dtype.itemsize]
    bits = int(torch.tensor(0.1, dtype=dtype).view(whole)) & (1 << 8 * dtype.itemsize) - 1
    text = f"{bits:0{1 + e + f}b}"
    print(f"{dtype!s:15} {text[0]} {text[1 : 1 + e]:8} {text[1 + e :]:23} = {decode(bits, e, f):.10f}")

# %% [markdown]
# Our `decode` against torch, on *every* pattern of the two half formats. An exponent of all ones means infinity or "not
# a number", which we left out.

# %%
patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16)  # all 65,536
for dtype in (torch.bfloat16, torch.float16):
    fast = patterns.view(dtype).double()  # the same bits, read as numbers
    naive = torch.tensor([decode(b & 0xFFFF, *shapes[dtype]) for b in patterns.tolist()], dtype=torch.float64)
    finite = fast.isfinite()
    assert torch.equal(naive[finite], fast[finite])
    print(f"{dtype!s:15} {int(finite.sum()):,} numbers, ours = torch's; largest {float(fast[finite].max()):.3g}")

# %% [markdown]
# `view` looks at the same bytes in another way and computes nothing. How many times as fast as our loop is it?

# %% tags=["volatile"]
from utils.benchmarking import median, time_by_turns

runs = {"loop": lambda: [decode(b & 0xFFFF, 8, 7) for b in patterns.tolist()]}
times = median(time_by_turns(runs | {"view": lambda: patterns.view(torch.bfloat16).float()}, 3))
print(f"loop {times['loop'] * 1e3:.0f} ms, view {times['view'] * 1e3:.3f} ms: {times['loop'] / times['view']:.0f} ×")

# %% [markdown]
# ### Spacing, and where it ends
#
# Near 1 the next number is 2^-f away. In general the spacing is 2^(k - f) for numbers from 2^k to 2^(k+1). At
# the bottom the exponent cannot fall any further; then the spacing stays, and whatever is below half of it becomes
# zero: *underflow*. At the top is infinity: *overflow*.

# %%
for dtype, (e, f) in shapes.items():
    info, bias = torch.finfo(dtype), 2 ** (e - 1) - 1
    assert info.eps == 2.0**-f and info.smallest_normal == 2.0 ** (1 - bias)
    print(f"{dtype!s:15} near 1: 2^-{f:<2}  largest {info.max:.1e}  smallest {2.0 ** (1 - bias - f):.1e}")

# %% [markdown]
# The relative spacing over the whole range of magnitudes, one line a format:

# %%
figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
for (dtype, (e, f)), style in zip(shapes.items(), ("-", "--", ":")):
    bias = 2 ** (e - 1) - 1
    powers = range(1 - bias - f, bias + 1)
    relative = [2.0 ** (max(k, 1 - bias) - f - k) for k in powers]
    axes.plot([2.0**k for k in powers], relative, style, color="black", label=str(dtype).removeprefix("torch."))
axes.set(xscale="log", yscale="log", xlabel="magnitude of the number", ylabel="spacing / magnitude")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# float16 is finer than bfloat16 where it lives, and it lives in a small place: from 6 · 10⁻⁸ to 65,504. bfloat16 is
# coarse everywhere, and reaches as far as float32. The rest of part one is about these two weaknesses.
#
# ## 3. 1 + 1/512 = 1
#
# **Predict before you run (2).** The spacing of bfloat16 near 1 is 1/128. What is 1 + 1/512? And if you begin with 0
# and add 1/512 a thousand times, where are you at the end? In exact arithmetic it is 1.953.

# %%
small = torch.tensor(1 / 512, dtype=torch.bfloat16)
assert 1 + small == 1
total = torch.tensor(0.0, dtype=torch.bfloat16)
for _ in range(1000):
    total += small
print("1 + 1/512 =", float(1 + small), " and a thousand times 1/512 =", float(total))

# %% [markdown]
# It stops at one half. From ½ to 1 the spacing is 1/256, and 1/512 is half of that: a tie, which goes to the
# even neighbour, which is ½ itself. From there on every addition is lost. Torch's own `sum` does not fall for it. It
# adds in float32 and rounds once:

# %%
print("sum:", float(small.expand(1000).sum()))

# %% [markdown]
# That is the first rule of mixed precision: **multiply in few bits, add up in many**. The second follows, since a
# weight is a sum, too: of all its updates.
#
# ## 4. The bug: weights in bfloat16
#
# A small GPT over bytes, V = 256, on Python's own documentation. By hand it has (256 + 64) · 64 numbers in embeddings,
# 12 · 64² + 13 · 64 in each of two blocks, and 2 · 64 in the last norm.

# %%
from working_with_text_data.corpora import open_corpus

text = "\n\n".join(document.text for document in open_corpus("python-docs")).encode()[:400_000]
data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()  # (bytes,)
config = GPTConfig(vocab_size=256, context_length=64, n_layer=2, n_head=4, d_model=64)
torch.manual_seed(0)
model = GPT(config)
assert model.n_parameters == (256 + 64) * 64 + 2 * (12 * 64**2 + 13 * 64) + 2 * 64
print(f"{model.n_parameters:,} parameters")


# %% [markdown]
# Batches and a loss, as in the notebooks before.


# %%
def windows(n, generator):
    starts = torch.randint(len(data) - 65, (n,), generator=generator).tolist()
    some = torch.stack([data[start : start + 65] for start in starts])  # (n, 65)
    return some[:, :-1].contiguous(), some[:, 1:].contiguous()  # inputs and targets, (n, 64) each


def mean_loss(model, inputs, targets):
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())  # (B · T, V) and (B · T,)


# %% [markdown]
# A loop whose weights *live* in a format that we choose. The arithmetic stays float32, so that only the storage
# differs: after each step every weight is rounded to `kept_in`. With `master=True` the optimiser has a float32 copy of
# its own, and the model only gets the rounded values.


# %%
def train(model, steps, lr, seed, kept_in=torch.float32, master=False):
    weights, generator = list(model.parameters()), torch.Generator().manual_seed(seed)
    stepped = [w.detach().clone() for w in weights] if master else weights
    optimizer, losses = torch.optim.AdamW(stepped, lr=lr, weight_decay=0.0), []
    for _ in range(steps):
        loss = mean_loss(model, *windows(16, generator))
        model.zero_grad()
        loss.backward()
        take_step(optimizer, stepped, weights, kept_in)
        losses.append(loss.item())
    return losses


# %% [markdown]
# The two lines at the end are the whole difference: `stepped` is what remembers, `weights` is what computes.


# %%
@torch.no_grad()
def take_step(optimizer, stepped, weights, kept_in):
    for mine, weight in zip(stepped, weights):
        mine.grad = weight.grad
    optimizer.step()
    for mine, weight in zip(stepped, weights):
        weight.copy_(mine.to(kept_in))


# %% [markdown]
# Sanity first: a fresh model is surprised by about ln V, and one batch is learned by heart.

# %%
one_batch, fresh = windows(2, torch.Generator().manual_seed(0)), copy.deepcopy(model)
assert abs(mean_loss(fresh, *one_batch).item() - math.log(256)) < 0.2
optimizer = torch.optim.AdamW(fresh.parameters(), lr=5e-3)
for _ in range(120):
    optimizer.zero_grad()
    loss = mean_loss(fresh, *one_batch)
    loss.backward()
    optimizer.step()
assert loss.item() < 0.3
print(f"ln V = {math.log(256):.2f} nats; one batch by heart: below 0.3")

# %% [markdown]
# First some steps at a high rate, in float32. Then, as at the end of every schedule, a low rate: 3 · 10⁻⁵. From the
# same weights and the same batches, three ways to keep them.

# %%
train(model, 120, 3e-3, seed=0)
ways = {
    "float32": {},
    "bfloat16": {"kept_in": torch.bfloat16},
    "bfloat16 + masters": {"kept_in": torch.bfloat16, "master": True},
}
tests = windows(64, torch.Generator().manual_seed(99))
trained = {name: copy.deepcopy(model) for name in ways}
losses = {name: train(trained[name], 200, 3e-5, seed=1, **how) for name, how in ways.items()}

# %% [markdown]
# **Seen.** How far did the loss on windows of its own (64 of them, always the same) come down, as a share of what
# float32 reached?

# %%
with torch.no_grad():
    begin = mean_loss(model, *tests).item()
    fell = {name: begin - mean_loss(trained[name], *tests).item() for name in ways}
share = {name: value / fell["float32"] for name, value in fell.items()}
assert share["bfloat16"] < 1 / 3 < 0.9 < share["bfloat16 + masters"]
print("bfloat16 alone: less than a third of the way; with masters: more than nine tenths")

# %% [markdown]
# The same as curves. Batches differ from each other far more than the three ways do. So each loss is set against that
# of the model which does not learn at all, on the same batch. Each point is a mean of 20 batches.

# %% tags=["volatile"]
frozen = train(copy.deepcopy(model), 200, 0.0, seed=1)
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for (name, values), style in zip(losses.items(), ("-", "s--", "o:")):
    means = (torch.tensor(values) - torch.tensor(frozen)).view(10, 20).mean(dim=1)  # (200,) -> (10, 20) -> (10,)
    axes.plot(range(10, 200, 20), means.tolist(), style, color="black", markerfacecolor="white", label=name)
axes.set(xlabel="step at the low rate", ylabel="loss above that without\nlearning (nats a byte)")
axes.legend(frameon=False, fontsize=8)
plt.show()
print({name: f"{value:.2f}" for name, value in share.items()}, "of float32's fall")

# %% [markdown]
# The loss does not explode, and nothing warns. The run is only worse, and looks as if the rate were too low.
#
# **Diagnosed.** AdamW's first step moves each weight by the rate, 3 · 10⁻⁵, however large the gradient is. A weight
# moves if that is more than half of the spacing around it. Near 1, where the norms' weights are, half a spacing is
# 1/256, or 1/512 downwards: such a weight cannot move at all.
#
# **Predict before you run (3).** Below which magnitude can a weight move? Half of the spacing is 2^(k - 8) from 2^k to
# 2^(k+1), and the step of 3 · 10⁻⁵ is a little less than 2^-15.

# %%
rounded = copy.deepcopy(model)
with torch.no_grad():
    for weight in rounded.parameters():
        weight.copy_(weight.bfloat16())
moved = copy.deepcopy(rounded)
train(moved, 1, 3e-5, seed=2, kept_in=torch.bfloat16)
pairs = [(name, a != b, b.detach()) for (name, a), b in zip(moved.named_parameters(), rounded.parameters())]
largest = max(float(b[changed].abs().max()) for _, changed, b in pairs if changed.any())
print(f"the largest weight that moved is {largest:.4f}; 2^-7 = {2**-7:.4f}")
assert largest <= 2**-7

# %% [markdown]
# k - 8 must be below -15, so 2^k is at most 2^-8, and the weight below 2^-7. GPT-2's weights begin with a deviation of
# 0.02, so most are above that. Counted by kind:

# %%
for kind in ("ln_", "wte", "mlp.c_fc.weight", "attn.c_attn.weight"):
    some = torch.cat([changed.flatten() for name, changed, _ in pairs if kind in name])
    assert some.float().mean() < 0.25
    print(f"{kind:19} less than a quarter of {len(some):,} moved")

# %% [markdown]
# **Mended.** Keep a float32 copy, the *master weights*, and step those (Micikevicius et al. 2018, section 3.1). Small
# steps add up there until they are large enough to show in the rounded copy. The third curve lies on the first. It
# costs 4 bytes a parameter. This house takes the other spelling of the same idea: weights *are* float32, and are
# rounded for each product. That is what *autocast* does.
#
# ## 5. float16: gradients that vanish
#
# float16 has a fine fraction, so that steps are lost less easily. It has few exponents instead: below 2^-25 everything
# is zero. How small are gradients? We listen where they arrive at each block's two wide layers.


# %%
def gradients_inside(model, inputs, targets):
    seen, hooks = [], []

    def listen(layer, given, out):
        out.register_hook(lambda gradient: seen.append(gradient.flatten()))

    for block in model.transformer.h:
        hooks += [layer.register_forward_hook(listen) for layer in (block.attn.c_attn, block.mlp.c_fc)]
    mean_loss(model, inputs, targets).backward()
    for hook in hooks:
        hook.remove()
    return torch.cat(seen)


inside = gradients_inside(model, *windows(32, torch.Generator().manual_seed(3)))
inside = inside[inside != 0]
assert inside.abs().max() < 2**-10
print("all below 2^-10, the median below 2^-20:", bool(inside.abs().median() < 2**-20))

# %% [markdown]
# A mean over 2,048 targets divides each by 2,048, and that is why they are small. Beside them, what float16 can hold:

# %%
figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
axes.hist(inside.abs().log2().tolist(), bins=range(-45, 1), color="0.6", edgecolor="black", linewidth=0.5)
axes.axvspan(-24, -14, color="0.9", zorder=0)
axes.axvline(-25, color="black", linestyle="--")
height = axes.get_ylim()[1]
axes.text(-25.3, 0.93 * height, "becomes 0 in float16", ha="right", fontsize=8)
axes.text(-14.3, 0.93 * height, "subnormal", ha="right", fontsize=8)
axes.text(-13.5, 0.93 * height, "normal, up to 2^16", fontsize=8)
axes.set(xlabel="log₂ of a gradient's magnitude", ylabel="gradients", xlim=(-45, 3))
plt.show()

# %% [markdown]
# The left tail is lost, and the middle, the subnormal part, keeps only some of its bits. The right is empty: up to
# 2^16 there is room. So: multiply the *loss* by s = 2^16. Every gradient is then s times as large, by the chain rule,
# and before the step they are divided by s again, in float32.
#
# **Predict before you run (4).** With s = 2^16 all bars move 16 to the right. What share is lost then?


# %% tags=["volatile"]
def lost(gradients, scale):
    return float(((gradients * scale).half() == 0).float().mean())


print(f"zero in float16: plain {lost(inside, 1):.1f}, scaled by 2^16 {lost(inside, 2**16):.1f}")
assert lost(inside, 2**16) < lost(inside, 1) / 10
print("infinite with s = 2^16:", int((inside * 2**16).half().isinf().sum()), "of them")

# %% [markdown]
# ### Which scale? The rule of GradScaler
#
# As large as it goes. Nobody knows beforehand how large, so it is tried out. An infinite gradient means: too large.
# Leave that step out and halve s. After 2,000 good steps in a row double it. By hand, with 3 in place of 2,000 and s
# = 8: good, good, good: 16. Bad: 8, and the count begins anew.


# %%
class HandScaler:
    def __init__(self, scale, interval):
        self.scale, self.interval, self.good = scale, interval, 0

    def after(self, found_infinity):
        """True if the step may be taken."""
        if found_infinity:
            self.scale, self.good = self.scale / 2, 0
            return False
        self.good += 1
        if self.good == self.interval:
            self.scale, self.good = self.scale * 2, 0
        return True


# %% [markdown]
# Torch's own as the oracle, on a weight whose gradient we set: fine, fine, fine, infinite, and so on.

# %%
w = torch.nn.Parameter(torch.zeros(1))
optimizer = torch.optim.SGD([w], lr=1.0)
theirs, ours, scales = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3), HandScaler(8.0, 3), []
for gradient in (1.0, 1.0, 1.0, math.inf, 1.0, 1.0, math.inf, math.inf, 1.0, 1.0, 1.0):
    theirs.scale(w.sum()).backward()
    w.grad.fill_(gradient)
    theirs.step(optimizer)
    theirs.update()
    ours.after(math.isinf(gradient))
    scales.append((ours.scale, theirs.get_scale()))
assert all(a == b for a, b in scales) and w.isfinite().all()
print([a for a, _ in scales])

# %% [markdown]
# Eight of the eleven steps were taken, and the weight is finite. bfloat16 has float32's exponents, and needs none of
# this. That is why it has replaced float16 wherever the hardware has it.
#
# ## 6. Autocast: which operation in which format
#
# `autocast` of `utils/devices.py` is a context. Within it matrix products take bfloat16 inputs, whatever comes in.
# Let us ask each part of a block what it gets and what it gives:

# %%
from utils.devices import autocast


def report(name):
    short = lambda dtype: str(dtype).removeprefix("torch.")  # noqa: E731
    return lambda _, given, out: print(f"{name:12} {short(given[0].dtype):9} -> {short(out.dtype)}")


block = model.transformer.h[0]
parts = {name: part for name, part in block.named_modules() if name and not list(part.children())}
hooks = [part.register_forward_hook(report(name)) for name, part in parts.items() if "dropout" not in name]
with autocast(torch.device("cpu"), "bfloat16"):
    loss = mean_loss(model, *tests)
for hook in hooks:
    hook.remove()

# %% [markdown]
# Products give bfloat16. Norms get float32: they add up. So does the residual stream, because float32 + bfloat16 is
# float32. And the weights:

# %%
model.zero_grad()
loss.backward()
formats = {name: {w.dtype for w in some} for name, some in (("weights", model.parameters()), ("loss", [loss]))}
print(formats, {w.grad.dtype for w in model.parameters()})

# %% [markdown]
# Weights and gradients are float32. So autocast needs no masters, because weights *are* masters. And it needs no
# rounding in the optimiser. (Section 4's way is the flag `--weights bfloat16`: products read bfloat16 copies of the
# matrices, so the stream is bfloat16, too, and moves half the bytes. See `half_weights.py`.)
#
# How far is autocast's gradient from that of float32? Relative to the length of the whole gradient:


# %%
def gradient_of(model, format, loss=mean_loss):
    model.zero_grad()
    with autocast(torch.device("cpu"), format):
        value = loss(model, *tests)
    value.backward()
    return torch.cat([w.grad.flatten() for w in model.parameters()])


exact = gradient_of(model, "float32")
off = float((gradient_of(model, "bfloat16") - exact).norm() / exact.norm())
assert 0.001 < off < 0.02
print("off by less than 2 in 100: small beside what another batch would change")

# %% [markdown]
# Is that last claim true? Another batch of the same size:

# %%
tests, kept = windows(64, torch.Generator().manual_seed(100)), tests
other = gradient_of(model, "float32")
tests = kept
assert (other - exact).norm() > 0.3 * exact.norm()
print("another batch: off by more than 30 in 100")

# %% [markdown]
# **What does not work everywhere.** Half as many bits should be faster. They are where the chip multiplies bfloat16.
# Measured on yours, a product of 512 × 512 matrices:

# %% tags=["volatile"]
from utils.devices import has_fast_bfloat16

a = torch.randn(512, 512)  # (512, 512)
half = a.bfloat16()
times = median(time_by_turns({"float32": lambda: a @ a, "bfloat16": lambda: half @ half}, 7))
print({name: f"{1e3 * value:.2f} ms" for name, value in times.items()})
print("the house calls bfloat16 fast here:", has_fast_bfloat16(torch.device("cpu")))

# %% [markdown]
# So the house asks the device before it takes bfloat16 (`precision="auto"`).
#
# ## 7. Sixteen bytes a parameter
#
# Now the memory. What stays from step to step: a weight (4 bytes), its gradient (4), and AdamW's two running means (4
# each). By hand 16 · N. Counted on the live model:

# %%
from pretraining.optimizers import state_bytes

fresh = copy.deepcopy(model)
optimizer = torch.optim.AdamW(fresh.parameters(), lr=1e-3)
mean_loss(fresh, *windows(2, torch.Generator().manual_seed(0))).backward()
optimizer.step()
N, tensors = fresh.n_parameters, len(list(fresh.parameters()))
held = [sum(w.nbytes for w in fresh.parameters()), sum(w.grad.nbytes for w in fresh.parameters())]
held.append(state_bytes([optimizer]))
print({name: f"{value:,}" for name, value in zip(("weights", "gradients", "AdamW"), held)}, f"16 N = {16 * N:,}")

# %% [markdown]
# The gap, to the byte: AdamW also counts the steps of each tensor, in a number of 4 bytes.

# %%
assert sum(held) == 16 * N + 4 * tensors
print(f"{sum(held) - 16 * N} bytes more = 4 · {tensors} tensors")

# %% [markdown]
# Bfloat16 weights with masters: 2 (weight) + 2 (gradient) + 4 (master) + 8 (AdamW) = 16 again. **Mixed precision saves
# nothing here.** Four ways do: Muon keeps one mean for matrices instead of two; 8-bit AdamW keeps 2 bytes for both
# (Dettmers et al. 2022); GaLore keeps the means of a projected gradient, r rows instead of d (Zhao et al. 2024); FSDP
# divides everything by the number of ranks, which is the next notebook.
#
# ## 8. Activations: what backward will ask for
#
# For y = x Wᵀ the gradient of W is gᵀ x, so x must be kept until backward. For a sum nothing must be kept. Torch says
# what it keeps if we ask it: `saved_tensors_hooks` calls us with each tensor that goes into the store. Two tensors may
# share their bytes, so bytes are counted once for each *storage*. Weights are there anyway, and do not count.


# %%
def saved_by(run, weights=()):
    """storage -> bytes of all that `run()` keeps for backward; `weights` do not count."""
    mine, kept = {w.untyped_storage().data_ptr() for w in weights}, {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in mine:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # with the tensor, so that its place is not reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = run()  # lives to here, and with it the graph
    del out
    return {key: nbytes for key, (nbytes, _) in kept.items()}


# %% [markdown]
# By hand: x of shape (2, 3) has 24 bytes. **Predict before you run (5).** What do a product with a weight, a sum with
# x, a GELU and a LayerNorm (3 numbers wide) of x keep?

# %%
x, weight = torch.ones(2, 3, requires_grad=True), torch.ones(4, 3, requires_grad=True)
cases = {
    "x Wᵀ": lambda: x @ weight.mT,  # (2, 3) · (3, 4) -> (2, 4)
    "x + x": lambda: x + x,
    "gelu(x)": lambda: F.gelu(x),
    "layer_norm(x)": lambda: F.layer_norm(x, (3,)),
}
print({name: sum(saved_by(run, [weight]).values()) for name, run in cases.items()})

# %% [markdown]
# 24, 0, 24, and 24 + 16: LayerNorm keeps the mean and the deviation of each of the two rows besides. Now the block,
# token by token, in numbers:
#
# | what is kept | for the gradient of | numbers a token |
# |---|---|---|
# | x, mean, deviation | first norm | d + 2 |
# | norm's output | c_attn | d |
# | q, k, v | attention | 3 d |
# | a sum for each head | attention | H |
# | attention's output | c_proj, and attention itself | d |
# | x, mean, deviation | second norm | d + 2 |
# | norm's output | c_fc | d |
# | c_fc's output | GELU | 4 d |
# | GELU's output | c_proj | 4 d |
#
# Together 16 d + H + 4 numbers of 4 bytes. The MLP holds half of it.


# %%
def block_bytes(tokens, d, heads):
    return 4 * tokens * (16 * d + heads + 4)


B, T, d, H, V, L = 8, 64, config.d_model, config.n_head, config.vocab_size, config.n_layer
x = torch.randn(B, T, d, requires_grad=True)
kept = saved_by(lambda: block(x), model.parameters())
assert sum(kept.values()) == block_bytes(B * T, d, H)
print(f"counted {sum(kept.values()):,} bytes = formula: {block_bytes(1, d, H):,} a token")

# %% [markdown]
# To the byte. The *sum for each head* is all that fast attention keeps of its T² scores. The plain formula keeps the
# scores themselves. Same output, first on one input:

# %%
attention = block.attn
y, weights = attention.reference(x)
torch.testing.assert_close(attention(x), y)
plain = sum(saved_by(lambda: attention.reference(x), model.parameters()).values())
fast = sum(saved_by(lambda: attention(x), model.parameters()).values())
print(f"plain {plain:,} bytes, fast {fast:,}: {plain / fast:.1f} × as many, same output")

# %% [markdown]
# And over the length of the window, for 4 windows. Dotted is 4 · B · T · (5 d + H), the formula for the fast one: the
# norm's output, q, k, v, the output.

# %%
lengths, measured = (64, 128, 256, 512), {"plain": [], "fast": []}
for length in lengths:
    longer = torch.randn(4, length, d, requires_grad=True)
    for name, run in (("plain", attention.reference), ("fast", attention)):
        measured[name].append(sum(saved_by(lambda: run(longer), model.parameters()).values()) / 1e6)  # noqa: B023
formula = [4 * 4 * length * (5 * d + H) / 1e6 for length in lengths]
assert measured["fast"] == formula

# %% [markdown]
# On axes where a power is a straight line: the lower slope is 1, and the upper one goes towards 2, the square of T.

# %%
figure, axes = plt.subplots(figsize=(5.5, 3), layout="constrained")
axes.plot(lengths, measured["plain"], "s-", color="black", label="plain: the scores are kept")
axes.plot(lengths, measured["fast"], "o", color="black", markerfacecolor="white", label="fast: they are not")
axes.plot(lengths, formula, ":", color="black", label="formula")
axes.set(xscale="log", yscale="log", xlabel="tokens of a window, T", ylabel="kept for backward (MB)")
axes.set_xticks(lengths, lengths)
axes.minorticks_off()
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## 9. Logits: the largest tensor
#
# The last product gives B · T · V numbers. Cross-entropy keeps their log-probabilities. With V = 256 that is little.
# With GPT-2's V it is 50,257 numbers a token, and the whole body of L = 12 blocks keeps 12 · 12,304 = 147,648.
# `losses.py` goes chunk by chunk, computes each chunk's gradient at once, and keeps only the gradients by the hidden
# vectors (B · T · d) and by W (V · d).

# %%
from pretraining.losses import chunked_cross_entropy

hidden = torch.randn(B * T, d, requires_grad=True)
W = torch.randn(5000, d, requires_grad=True)  # (V, d), with a larger V
targets = torch.randint(5000, (B * T,))
both = {
    "plain": lambda: F.cross_entropy(hidden @ W.mT, targets, reduction="sum"),  # (B · T, d) · (d, V)
    "chunked": lambda: chunked_cross_entropy(hidden, W, targets, 64),
}
for a, b in zip(*(torch.autograd.grad(run(), (hidden, W)) for run in both.values())):
    torch.testing.assert_close(a, b)
print({name: f"{sum(saved_by(run, [hidden, W]).values()):,}" for name, run in both.items()}, "bytes, equal gradients")

# %% [markdown]
# By formula: plain keeps 4 B T V for the log-probabilities, and targets, 8 bytes each; chunked keeps 4 (B T + V) d.
# (`hidden` belongs to the body.)

# %%
assert sum(saved_by(both["chunked"], [hidden, W]).values()) == 4 * (B * T + 5000) * d
assert sum(saved_by(both["plain"], [hidden, W]).values()) == 4 * B * T * 5000 + 8 * B * T + 4
print("both to the byte; the 4 at the end is the sum of the targets' weights")

# %% [markdown]
# ## 10. Checkpointing: forget, and compute again
#
# Half of the activations of a block can be computed from the other half. All of them can be computed from the block's
# input (Chen et al. 2016). So keep only that, d numbers a token, and run the block again when its gradient is due.
#
# **Predict before you run (6).** From 16 d + H + 4 to d numbers. How many times less is kept? And the gradient: equal,
# or nearly so?

# %%
from pretraining.training_loop import checkpoint_blocks

inputs, targets = windows(B, torch.Generator().manual_seed(0))
forgetful = copy.deepcopy(model)
checkpoint_blocks(forgetful.transformer.h)
kept = {
    name: sum(saved_by(lambda: some.hidden_states(inputs), some.parameters()).values())  # noqa: B023
    for name, some in (("all", model), ("checkpointed", forgetful))
}
print({name: f"{nbytes:,}" for name, nbytes in kept.items()})
assert torch.equal(gradient_of(model, "float32"), gradient_of(forgetful, "float32"))

# %% [markdown]
# The gradients are equal to the bit, since the same operations are done again. What is left besides the blocks is the
# last norm and the ids (8 bytes each, and the positions):

# %%
around = 4 * B * T * (d + 2) + 8 * B * T + 8 * T
assert kept["all"] == L * block_bytes(B * T, d, H) + around
assert kept["checkpointed"] == L * 4 * B * T * d + around
print(f"blocks alone: {(16 * d + H + 4) / d:.1f} times less")

# %% [markdown]
# The price: a forward pass counts 2 operations a weight and token, backward 4, and forward again 2. So 8 / 6 = 4/3.
# Measured on this model, by turns:

# %% tags=["volatile"]
runs = {
    name: (lambda some=some: mean_loss(some, *tests).backward())
    for name, some in (("all", model), ("checkpointed", forgetful))
}
times = {name: min(some) for name, some in time_by_turns(runs, 15).items()}
print({name: f"{1e3 * value:.1f} ms" for name, value in times.items()})
print(f"{times['checkpointed'] / times['all']:.2f} × as long; 4/3 = 1.33 by the formula")

# %% [markdown]
# In so small a model the formula knows only a part: norms, GELU and the machinery of forgetting are no products, and
# cost time, too. Expect a little more than 4/3 here.

# %% [markdown]
# ## 11. Half precision saves activations
#
# Under autocast what the products touch is kept in 2 bytes: 14 d of the 16 d. The two inputs of the norms stay in 4,
# with means, deviations and sums. And each weight matrix is kept as a bfloat16 copy, 12 d² numbers a block.


# %%
def half_block_bytes(tokens, d, heads):
    return tokens * (2 * 14 * d + 4 * (2 * d + heads + 4)) + 2 * 12 * d * d


with autocast(torch.device("cpu"), "bfloat16"):
    kept = sum(saved_by(lambda: block(x), model.parameters()).values())
assert kept == half_block_bytes(B * T, d, H)
ratio = half_block_bytes(10**6, 768, 12) / block_bytes(10**6, 768, 12)
print(f"counted = formula; for GPT-2's width and many tokens {ratio:.2f} of float32, not 0.50")

# %% [markdown]
# ## 12. One step, every byte
#
# All of it in one picture, from live tensors. Three ways, one model, B = 32:


# %%
def owners(model, loss, B=32):
    inputs, targets = windows(B, torch.Generator().manual_seed(0))
    kept = {}
    body = lambda: kept.setdefault("hidden", model.hidden_states(inputs))  # noqa: E731
    bytes_body = sum(saved_by(body, model.parameters()).values())
    bytes_all = sum(saved_by(lambda: loss(model, inputs, targets), model.parameters()).values())
    N = sum(w.nbytes for w in model.parameters())
    return {"weights": N, "gradients": N, "AdamW": 2 * N, "body": bytes_body, "loss": bytes_all - bytes_body}


def chunked_loss(model, inputs, targets):
    hidden = model.hidden_states(inputs).flatten(0, 1)  # (B · T, d)
    return chunked_cross_entropy(hidden, model.lm_head.weight, targets.flatten(), 64) / targets.numel()


rows = {"plain": owners(model, mean_loss), "chunked loss": owners(model, chunked_loss)}
rows["... and checkpointed"] = owners(forgetful, chunked_loss)
rows["... and checkpointed"]["body"] += block_bytes(32 * T, d, H)  # the one that is computed again

# %% [markdown]
# The last line is easily forgotten: whenever a block is computed again, *its* activations are there. What else is
# missing? Tensors that live for a moment, as the gradients of activations do. Torch has a tool that watches
# every allocation of a step (it is not public yet). Its peak is our oracle:

# %%
from torch.distributed._tools.mem_tracker import MemTracker


def peak(model, loss, B=32):
    inputs, targets = windows(B, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    loss(model, inputs, targets).backward()
    optimizer.step()  # AdamW's means exist from here on
    optimizer.zero_grad()
    watch = MemTracker()
    watch.track_external(model, optimizer, inputs, targets)
    with watch:
        loss(model, inputs, targets).backward()
    (most,) = watch.get_tracker_snapshot("peak").values()
    return most["Total"]


models = {"plain": (model, mean_loss), "chunked loss": (model, chunked_loss)}
peaks = {name: peak(*some) for name, some in (models | {"... and checkpointed": (forgetful, chunked_loss)}).items()}

# %% [markdown]
# Bars are what we own by name; the cross is the peak of the watched step.

# %%
figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
shades = {"weights": "0.15", "gradients": "0.35", "AdamW": "0.55", "body": "0.8", "loss": "white"}
for number, (name, row) in enumerate(rows.items()):
    left = 0
    for owner, nbytes in row.items():
        label = owner if number == 0 else None
        axes.barh(number, nbytes / 1e6, left=left, color=shades[owner], edgecolor="black", label=label)
        left += nbytes / 1e6
    axes.plot(peaks[name] / 1e6, number, "x", color="black", label="peak, watched" if number == 0 else None)
axes.set(yticks=range(3), yticklabels=list(rows), xlabel="memory of a step (MB), measured", ylim=(2.6, -0.6))
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# Gradients do not exist yet when activations are at their peak, and some temporaries do. How far apart are the two
# totals?

# %%
for name, row in rows.items():
    print(f"{name:21} owners {sum(row.values()) / 1e6:5.1f} MB, watched peak {peaks[name] / 1e6:5.1f} MB")
    assert 0.8 < peaks[name] / sum(row.values()) < 1.2

# %% [markdown]
# Within a fifth, and the order is right. The first row can be explained to the end: at its peak two gradients of the
# logits are there besides, and weights have no gradients yet.

# %%
explained = sum(rows["plain"].values()) - rows["plain"]["gradients"] + 2 * 4 * 32 * T * V
print(f"plain: {explained / 1e6:.1f} MB explained, {peaks['plain'] / 1e6:.1f} MB watched")
assert abs(explained - peaks["plain"]) < 0.01 * peaks["plain"]

# %% [markdown]
# Enough to decide with, and not enough for the last gigabyte.
#
# ## 13. GPT-2, and what fits on 24 GB
#
# From here on everything is **formula**, not measurement: no GPU was used. The formulas are those that were right to
# the byte above. For the plain loss two more copies of the logits are added: their gradients in the backward pass.


# %%
def training_bytes(config, B, half=False, chunked=False, checkpointed=False, state=8):
    d, heads, tokens = config.d_model, config.n_head, B * config.context_length
    N = (config.vocab_size + config.context_length) * d + config.n_layer * (12 * d * d + 13 * d) + 2 * d
    block = half_block_bytes(tokens, d, heads) if half else block_bytes(tokens, d, heads)
    body = config.n_layer * (4 * tokens * d) + block if checkpointed else config.n_layer * block
    plain = 3 * 4 * tokens * config.vocab_size
    some = 4 * (tokens + config.vocab_size) * d + 3 * 4 * 1024 * config.vocab_size  # one chunk at a time
    return {"weights": 4 * N, "gradients": 4 * N, "AdamW": state * N, "body": body, "loss": some if chunked else plain}


# %% [markdown]
# The question at the top, answered: GPT-2 with 124 million parameters, 16 windows.

# %%
from gpt_model.gpt import GPT2_124M, GPT2_355M, GPT2_774M, GPT2_1558M

steps = {
    "plain, float32": {},
    "+ chunked loss": {"chunked": True},
    "+ bfloat16 products": {"chunked": True, "half": True},
    "+ checkpointed": {"chunked": True, "half": True, "checkpointed": True},
    "+ 8-bit AdamW": {"chunked": True, "half": True, "checkpointed": True, "state": 2},
}
rows = {name: training_bytes(GPT2_124M, 16, **how) for name, how in steps.items()}
totals = {name: sum(row.values()) / 1e9 for name, row in rows.items()}
print({name: f"{total:.1f} GB" for name, total in totals.items()})
assert totals["plain, float32"] > 30 * rows["plain, float32"]["weights"] / 1e9

# %% [markdown]
# Drawn. Each row takes something away from one owner:

# %%
figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
for number, row in enumerate(rows.values()):
    left = 0
    for owner, nbytes in row.items():
        label = owner if number == 0 else None
        axes.barh(number, nbytes / 1e9, left=left, color=shades[owner], edgecolor="black", label=label)
        left += nbytes / 1e9
axes.set(yticks=range(5), yticklabels=list(rows), xlabel="GPT-2 124M, 16 windows of 1,024: GB, by formula")
axes.invert_yaxis()
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# The calculator: the largest number of windows that fits. A tenth of the card is left for what the formulas do not
# know, such as the allocator's gaps and the kernels' workspace. Bytes grow with B, so we count up.


# %%
def largest_batch(config, card, **how):
    B = 0
    while sum(training_bytes(config, B + 1, **how).values()) <= 0.9 * card:
        B += 1
    return B


print(f"{'24 GB':20}", *(f"{name:>6}" for name in ("124M", "355M", "774M", "1558M")))
for name, how in steps.items():
    fits = [largest_batch(some, 24e9, **how) for some in (GPT2_124M, GPT2_355M, GPT2_774M, GPT2_1558M)]
    print(f"{name:20}", *(f"{n:6}" for n in fits))

# %% [markdown]
# Zero means: not even one window. The largest GPT-2 does not fit until its optimiser shrinks, since 16 · 1.56 · 10⁹
# is 25 GB already, and no trick with activations helps against that. The other way out is more than one card.
#
# ## 14. Exercises
#
# Write the body in place of the dots and run the cell. The check says what is missing.

# %%
from pretraining.exercises.ex15 import check_block_numbers, check_master_step, check_next_scale, check_spacing
from utils.exercises import attempt

# %% [markdown]
# **A. Spacing** (easy, 5 minutes) How far is it from `x`, a positive normal number, to the next larger one in a format
# with `f` bits of fraction? Return a float. A power of two belongs to the interval that it begins. `math.frexp` or
# `math.log2` help.


# %%
def spacing(x, f): ...


attempt(check_spacing, spacing)

# %% [markdown]
# **B. The next scale** (medium, 10 minutes) The rule of section 5 as a function. It gets the scale, the number of good
# steps since it changed last, whether this step found an infinity, and the interval. Return the new pair (scale, good).


# %%
def next_scale(scale, good, found_infinity, interval): ...


attempt(check_next_scale, next_scale)

# %% [markdown]
# **C. A step with masters** (medium, 10 minutes) `weight` (bfloat16) and `master` (float32) have one shape, and so
# has `gradient` (bfloat16). Take a step of plain gradient descent at rate `lr`: change the master *in place*, and the
# weight *in place* to what the master says. Return the weight.


# %%
def master_step(weight, master, gradient, lr): ...


attempt(check_master_step, master_step)

# %% [markdown]
# **D. Another MLP** (hard, 15 minutes) How many *numbers* does a block keep for each token in float32, if its MLP is
# `d_ff` wide and its activation is ReLU² (`relu2` in `gpt.py`), `F.relu(x).square()`? Mind what ReLU keeps: its
# *output* is enough to know where x was positive. And what does the square keep? Go through the table of section 8.


# %%
def block_numbers(d, heads, d_ff): ...


attempt(check_block_numbers, block_numbers)

# %% [markdown]
# ### Solutions
#
# <details><summary>Solution: `spacing`</summary>
#
# ```python
# import math
#
#
# def spacing(x, f):
#     fraction, k = math.frexp(x)  # x = fraction · 2^k with fraction from ½ to below 1, so x begins at 2^(k - 1)
#     return 2.0 ** (k - 1 - f)
# ```
# </details>
#
# <details><summary>Solution: `next_scale`</summary>
#
# ```python
# def next_scale(scale, good, found_infinity, interval):
#     if found_infinity:
#         return scale / 2, 0
#     if good + 1 == interval:
#         return scale * 2, 0
#     return scale, good + 1
# ```
# </details>
#
# <details><summary>Solution: `master_step`</summary>
#
# ```python
# def master_step(weight, master, gradient, lr):
#     master -= lr * gradient.float()
#     weight.copy_(master)  # rounds
#     return weight
# ```
# </details>
#
# <details><summary>Solution: `block_numbers`</summary>
#
# ```python
# def block_numbers(d, heads, d_ff):
#     attention = (d + 2) + d + 3 * d + heads + d
#     mlp = (d + 2) + d + d_ff + d_ff  # ReLU's output serves ReLU and the square; the square's output serves c_proj
#     return attention + mlp
# ```
# </details>

# %% [markdown]
# ## 15. What you take along
#
# **Recap**
#
# - A float is a sign, an exponent and a fraction. Exponent bits are reach, fraction bits are fineness.
# - bfloat16 lost small updates: a run stood still without a word. float32 masters brought it back.
# - float16 lost small gradients. A scaled loss brought them back; the scale finds itself.
# - Autocast rounds for products, and adds up in float32. Weights stay float32.
# - What stays: 16 bytes a parameter. What comes and goes: 16 d + H + 4 numbers for each token and block, and V logits.
# - Chunks remove the logits at no loss. Checkpointing removes most activations for a third more work.
#
# **Pitfalls**, each seen above: adding many small numbers in half precision; weights without masters; a loss that is
# too small for float16; a scale that is never lowered; half precision on a chip that is slow at it; bytes counted by
# tensor and not by storage; a peak that is not the sum of what stays.
#
# ### Reading guide
#
# The house's own words for section 6 and section 10 are short. Autocast, where "auto" asks the device first:

# %%
print(inspect.getsource(autocast))

# %% [markdown]
# And checkpointing: each block's `forward` is wrapped, so that names of weights stay.

# %%
print(inspect.getsource(checkpoint_blocks))

# %% [markdown]
# Our loss of sections 9 and 12 is the house's own objective, to the bit:

# %%
from pretraining.training_loop import NextToken

house = NextToken(model, 64)(inputs, targets) / targets.numel()
assert torch.equal(house, chunked_loss(model, inputs, targets))
print("toy = module")

# %% [markdown]
# Then read `_ChunkedCrossEntropy` in `losses.py`, where the gradient is made in the forward pass, and
# `TrainingLoop._backward` and `take_step` in `training_loop.py`: `scaler.scale`, `unscale_`, `step` and `update` stand
# in the order of section 5.
#
# **CUDA, Apple's MPS, Windows.** None of them was run here. On CUDA bfloat16 is fast from Ampere on; older cards need
# float16 and a scaler. CUDA's fused attention keeps its random state besides, some bytes. `torch.cuda.memory_allocated`
# counts what we counted, `max_memory_allocated` the peak, and `nvidia-smi` shows more, because the allocator keeps
# freed blocks. MPS and other processors without fused attention on the CPU may keep the scores, and then section 8's
# count is higher. On Windows nothing differs.
#
# **Sources.** Micikevicius et al. 2018, *Mixed Precision Training* · Kalamkar et al. 2019, *A Study of BFLOAT16 for
# Deep Learning Training* · Chen et al. 2016, *Training Deep Nets with Sublinear Memory Cost* · Korthikanti et al.
# 2022, *Reducing Activation Recomputation in Large Transformer Models* · Dao et al. 2022, *FlashAttention* · Hsu et
# al. 2024, *Liger Kernel* · Dettmers et al. 2022, *8-bit Optimizers via Block-wise Quantization* · Zhao et al. 2024,
# *GaLore*.
#
# **The next question.** One card is full, or too slow. Two cards are twice as much of both, if they make *one* model.
# What do they have to tell each other, and when? Notebook 16, `16_two_processes`.
