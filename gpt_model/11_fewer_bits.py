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
# # Fewer bits
#
# **If reading the weights is what takes the time, how few bits can a weight have?**
#
# A decoding step reads every weight once, for one multiplication. So a weight of half the bytes should be read in half
# the time. A weight is stored, and a stored number can be rounded. Here we take numbers apart, round them by hand, find
# the law that says how much is lost, and then ask a trained model what it thinks of that. At the end we measure whether
# the bytes that were saved come back as time.
#
# | | |
# |---|---|
# | you know | the body of a GPT (notebook 06), the cache, and why decoding is bound by memory (notebook 10) |
# | you need | about 80 minutes, exercises apart; any laptop: no GPU, no network, 1.5 gigabytes of memory |
# | files | `weight_only.py` and `few_rows.cpp` of this folder, `evaluate.py` to judge |
#
# | letter | meaning | shape or unit |
# |---|---|---|
# | W, w | a layer's matrix; one of its weights | (out, in); a number |
# | x, y | what goes into a layer and comes out | (in,) and (out,) |
# | b | bits of a stored weight | bits |
# | n | the largest whole number of b bits, the sign apart: 2^(b - 1) - 1 | 127 for b = 8 |
# | q | a weight as a whole number from -n to n | as W |
# | s | scale: what one step of q is worth | one a matrix, a row or a group |
# | G | weights that share a scale, where it is a group | 32 here |
# | σ | standard deviation of the weights | as w |
#
# A layer computes y = W x. Each **row** of W makes one **output**: that will matter.

# %% [markdown]
# ## 1. A number, taken apart
#
# A floating-point number is a sign, an exponent and a fraction: ± 1.fraction × 2^exponent. The exponent says how large,
# the fraction how exactly. What differs between the formats is how many bits each part gets:
#
# | format | sign | exponent | fraction | bits |
# |---|---|---|---|---|
# | float32 | 1 | 8 | 23 | 32 |
# | float16 | 1 | 5 | 10 | 16 |
# | bfloat16 | 1 | 8 | 7 | 16 |
#
# `struct` gives the bits of the first two (`f` and `e`).

# %%
import struct


def float_bits(value, letter, exponent):
    packed = struct.pack(">" + letter, value)
    bits = "".join(f"{byte:08b}" for byte in packed)
    return f"{bits[0]} {bits[1 : 1 + exponent]} {bits[1 + exponent :]}"


print("float32:", float_bits(0.1, "f", 8))
print("float16:", float_bits(0.1, "e", 5))

# %% [markdown]
# The fraction of 0.1 is 1001 1001 1001 … without end, so every format must round. Read the float32 by hand: the
# exponent field 01111011 is 123, less 127 makes -4. And 1.6 × 2^-4 is 0.1.
#
# Python's `struct` does not know bfloat16. It need not: **a bfloat16 is the upper half of a float32**. Cut off the last
# 16 bits.


# %%
def upper_half(value):
    (word,) = struct.unpack(">I", struct.pack(">f", value))
    (cut,) = struct.unpack(">f", struct.pack(">I", word & 0xFFFF0000))
    return cut


print("float32 0.1:", float_bits(0.1, "f", 8))
print("upper half: ", float_bits(upper_half(0.1), "f", 8), f"= {upper_half(0.1):.6f}")

# %% [markdown]
# And PyTorch? It goes to the *nearest* number that has such an upper half, so here its last bit is one more. Cutting
# always moves towards zero.

# %%
import torch

nearest = torch.tensor(0.1).bfloat16().item()
print("torch:      ", float_bits(nearest, "f", 8), f"= {nearest:.6f}")
assert nearest > 0.1 > upper_half(0.1)

# %% [markdown]
# **Predict before you run (1).** 65,536 is 2^16. What becomes of 65,537 in float32, in float16, in bfloat16? One keeps
# it, one loses the 1, one loses everything.

# %%
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    print(f"{dtype!s:15} {torch.tensor(65_537.0).to(dtype).item():,.0f}   largest {torch.finfo(dtype).max:.3g}")

# %% [markdown]
# float16 has only 5 bits of exponent and ends at 65,504. bfloat16 reaches as far as float32, with a coarse fraction. So
# the two sixteen-bit formats are a trade: **range** against **precision**. Drawn, the distance to the next number,
# relative to the number itself. int8 is there too, with a scale of 1/127: its steps are all equally long, so they are
# relatively coarse where numbers are small.

# %%
import matplotlib.pyplot as plt
import numpy as np

figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
formats = [("float32", -126, 128, 23, "k-"), ("bfloat16", -126, 128, 7, "k--"), ("float16", -14, 16, 10, "k:")]
for name, low, high, fraction, look in formats:
    axes.plot([2.0**low, 2.0**high], [2.0**-fraction] * 2, look, label=name)
size = np.logspace(np.log10(1 / 127), 0, 50)
axes.plot(size, 1 / 127 / size, color="0.55", linewidth=3, label="int8, scale 1/127")
axes.set(xscale="log", yscale="log", xlabel="size of the number", ylabel="step to the next / size")
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# (float16's small numbers below 2^-14 are left out of the drawing, and float32's below 2^-126: they exist, and lose a
# bit of fraction with each halving.)
#
# Do the weights of a layer need a range from 2^-126 to 2^127? Section 4 looks at some: the largest is below 1. Can
# one give up the exponent altogether?

# %% [markdown]
# ## 2. int8 by hand
#
# Yes: one exponent, or rather one **scale**, for many weights. Take the largest |w| of a row, call it 127, and count in
# steps of a 127th:
#
# $$s = \frac{\max |w|}{127},\qquad q = \text{round}(w / s),\qquad w \approx s\,q$$
#
# A toy, 2 × 4. The largest of row one is 1.27, so s = 0.01. The largest of row two is 25.4, so s = 0.2. Do the eight
# divisions by hand before you go on.

# %%
W = torch.tensor([[1.27, -0.64, 0.304, 0.02], [25.4, -12.8, 3.15, 0.04]])  # (out, in)
s = W.abs().amax(dim=1) / 127  # (out,)
q = (W / s[:, None]).round().to(torch.int8)  # (out, in)
print("scales:", [round(v, 3) for v in s.tolist()])
print(q.tolist())

# %% [markdown]
# Back again: s q. Six of the eight are there exactly, to two decimals. 0.304 became 0.30, 3.15 became 3.20, and 0.04
# became zero: a whole row must live with the steps of its largest weight.

# %%
back = s[:, None] * q  # (out, 1) * (out, in) = (out, in)
print([[round(v, 3) for v in row] for row in back.tolist()])
error = (W - back).abs()  # (out, in)
assert (error <= s[:, None] / 2 * 1.0001).all()
print("largest error over its scale, row by row:", [round(v, 2) for v in (error.amax(dim=1) / s).tolist()])

# %% [markdown]
# Rounding moves a number by half a step at most, so **no error exceeds s / 2**. The cell asserts it.
#
# **Predict before you run (2).** One scale for the whole matrix would be 25.4 / 127 = 0.2. What is left of the first
# row? Round its four weights to multiples of 0.2.

# %%
one_scale = W.abs().max() / 127  # ()
print([[round(v, 1) for v in row] for row in ((W / one_scale).round() * one_scale).tolist()])

# %% [markdown]
# The first row was ruined by a weight in the second: 1.27 became 1.2, 0.304 became 0.4, 0.02 is gone. It uses q from -3
# to 6, of 127. That is why a scale belongs to a row, and why people speak of scales *per channel*.
#
# ### Why the row, and not the column?
#
# Because a row makes one output, and its scale is the same for the whole sum. So it can wait outside:
#
# $$y_o = \sum_i s_o\,q_{oi}\,x_i = s_o \sum_i q_{oi}\,x_i$$
#
# With x = (1, 2, 10, 5), by hand: 127 - 128 + 300 + 10 = 309, times 0.01 is 3.09. The weights as they were give 3.13.

# %%
x = torch.tensor([1.0, 2.0, 10.0, 5.0])  # (in,)
sums = q.float() @ x  # (out, in) @ (in,) = (out,)
print("q x:", sums.tolist(), " s (q x):", [round(v, 2) for v in (s * sums).tolist()])
print("W x:", [round(v, 2) for v in (W @ x).tolist()])  # (out, in) @ (in,) = (out,)
torch.testing.assert_close(s * sums, back @ x)  # (out, in) @ (in,) = (out,)

# %% [markdown]
# One multiplication by a scale for each output, and none for each weight. And an error of y that can be bounded: each
# weight is off by s / 2 at most, so y by s / 2 · Σ|x|.

# %%
bound = s / 2 * x.abs().sum()  # (out,)
off = (s * sums - W @ x).abs()  # (out, in) @ (in,) = (out,)
assert (off <= bound).all()
print("off by", [round(v, 2) for v in off.tolist()], "at most", [round(v, 2) for v in bound.tolist()])

# %% [markdown]
# The bound is a promise for the worst case: all errors as large as can be, and all on the same side. How far from it is
# the usual case? 256 outputs of 512 inputs, all random:

# %%
torch.manual_seed(0)
gaussian, v = torch.randn(256, 512), torch.randn(512)  # (out, in), (in,)
steps = gaussian.abs().amax(dim=1) / 127  # (out,)
q_many = (gaussian / steps[:, None]).round()  # (out, in)
off = (steps * (q_many @ v) - gaussian @ v).abs()  # (out, in) @ (in,) = (out,)
bound = steps / 2 * v.abs().sum()  # (out,)
assert (off <= bound).all()
print(f"the bound is {bound.mean() / off.mean():.0f} times the mean error")

# %% [markdown]
# Errors have both signs, and in a long sum most of them cancel. Keep that in mind for section 5.
#
# ### Naive, then fast
#
# The definition as a loop over single numbers, as one would tell it to a friend. Python's `round` goes to the even
# neighbour at a tie, and so does PyTorch's.


# %%
def quantize_by_loops(weight):
    q, scales = [], []
    for row in weight.tolist():
        scale = max(abs(w) for w in row) / 127
        q.append([round(w / scale) if scale else 0 for w in row])
        scales.append(scale)
    return torch.tensor(q, dtype=torch.int8), torch.tensor(scales)


# %% [markdown]
# And the project's `quantize_int8`, which does whole matrices at once. Equal on the toy, and on 64 × 512 random
# weights:

# %%
from gpt_model.weight_only import quantize_int8

torch.manual_seed(0)
for weight in (W, torch.randn(64, 512)):
    (by_loops, scales), (at_once, s_module) = quantize_by_loops(weight), quantize_int8(weight)
    assert torch.equal(by_loops, at_once)
    torch.testing.assert_close(scales, s_module)
assert torch.equal(q, quantize_int8(W)[0])
print("loops = module = by hand")

# %% [markdown]
# How many times as fast?

# %% tags=["volatile"]
from utils.benchmarking import median, time_by_turns

ways = {"loops": lambda: quantize_by_loops(weight), "module": lambda: quantize_int8(weight)}
took = median(time_by_turns(ways, 5))
print(f"loops {took['loops'] * 1e3:.1f} ms, module {took['module'] * 1e3:.2f} ms:", end=" ")
print(f"{took['loops'] / took['module']:.0f} times as fast")

# %% [markdown]
# An outside judge. PyTorch has a function that rounds to such a grid and back, made for training with quantised
# weights. Given our scales, it must find our numbers.

# %%
zeros = torch.zeros(len(weight), dtype=torch.int32)  # (out,)
theirs = torch.fake_quantize_per_channel_affine(weight, s_module, zeros, 0, -127, 127)  # (out, in)
torch.testing.assert_close(theirs, s_module[:, None] * at_once, rtol=1e-6, atol=0)
print("s q = torch.fake_quantize_per_channel_affine")

# %% [markdown]
# ## 3. Any number of bits, and three sizes of family
#
# With b bits the grid goes from -n to n, n = 2^(b - 1) - 1. (One pattern of bits, -n - 1, stays unused, for the sake of
# symmetry.) And a scale can belong to the matrix, to a row, or to a **group** of G = 32 weights that stand side by side
# in a row. A group's scale no longer leaves the whole sum. It leaves the sum of its group, one multiplication for 32.


# %%
def quantize(w, bits, family):
    n = 2 ** (bits - 1) - 1
    families = {"matrix": (1, -1), "row": w.shape, "group": (-1, 32)}
    w = w.reshape(families[family])  # (families, members)
    scale = w.abs().amax(dim=1, keepdim=True) / n  # (families, 1)
    scale = torch.where(scale > 0, scale, 1)
    return (w / scale).round().clamp(-n, n), scale


def rounded(w, bits, family="row"):
    numbers, scale = quantize(w, bits, family)
    return (numbers * scale).reshape(w.shape)  # (families, members) -> (out, in)


assert torch.equal(quantize(weight, 8, "row")[0], at_once.float())

# %% [markdown]
# How good is it? Compare the power of the weights with the power of the error, in decibels, as one does with sound. It
# is the *signal-to-quantisation-noise ratio*:
#
# $$\text{SQNR} = 10 \log_{10} \frac{\sum w^2}{\sum (w - s q)^2}\ \text{dB}$$
#
# The law, on paper: errors lie anywhere in a step of length s, so their mean square is s² / 12. And s is max|w| / n:
#
# $$\text{SQNR} \approx 20 \log_{10} n + 10 \log_{10} 12 + 20 \log_{10}\frac{\sigma}{\max|w|}$$
#
# One bit more makes n twice as large: 20 log₁₀ 2 = **6.02 dB a bit**.


# %%
def sqnr(w, other):
    return 10 * torch.log10(w.square().sum() / (w - other).square().sum()).item()


ladder = range(2, 13)
measured = {f: [sqnr(gaussian, rounded(gaussian, b, f)) for b in ladder] for f in ("matrix", "row", "group")}
slope = np.polyfit(list(ladder)[4:], measured["row"][4:], 1)[0]
print(f"{slope:.2f} dB a bit from 6 bits on")
assert abs(slope - 6.02) < 0.1

# %% [markdown]
# The law beside the measurement, for a scale a matrix. At few bits n is not quite doubled by a bit (1, 3, 7, 15), so
# the steps are longer there. At 2 bits the law fails: nearly all weights round to zero, and the errors no longer lie
# anywhere in a step.

# %%
spread = 20 * np.log10((gaussian.std() / gaussian.abs().max()).item())
law = [20 * np.log10(2 ** (b - 1) - 1) + 10 * np.log10(12) + spread for b in ladder]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for (name, values), look in zip(measured.items(), ("ko", "ks", "k^")):
    axes.plot(ladder, values, look, mfc="white", label=f"a scale a {name}")
axes.plot(ladder, law, "k-", linewidth=1, label="law, for a matrix")
axes.set(xlabel="bits of a weight", ylabel="SQNR (dB)", title="Gaussian weights")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# The three families are parallel lines. A smaller family has a smaller maximum, that is all. But small families need
# more scales, and scales are bits too. Counted with scales of 16 bits:

# %%
for name, members in (("matrix", 256 * 512), ("row", 512), ("group", 32)):
    gain, largest = measured[name][2] - measured["matrix"][2], gaussian.reshape(-1, members).abs().amax(dim=1).mean()
    print(f"{name:6} max|w| = {largest:.2f} σ: {16 / members:.3f} bits more a weight,", end=" ")
    print(f"{gain:.1f} dB better than a matrix at 4 bits")

# %% [markdown]
# A row costs next to nothing. A group costs half a bit, which is worth 3 dB by the law, and is better than a row by 3
# dB. For Gaussian weights that is a draw. Groups must earn their scales where weights are *not* Gaussian: section 6.

# %% [markdown]
# ## 4. A model to try it on
#
# Random weights say nothing about what a model can bear. So we train a small one, on the documentation of your own
# Python, byte by byte: V = 256. It takes about half a minute. (Another Python has another text, so all numbers from
# here on are your machine's.)

# %% tags=["volatile"]
from gpt_model import GPT, GPTConfig, Sampling, generate
from gpt_model.evaluate import evaluate_windows, next_token_loss
from working_with_text_data.corpora import open_corpus

text = "\n\n".join(document.text for document in open_corpus("python-docs")).encode()
data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()  # (bytes,)
learn, held = data[: int(0.9 * len(data))], data[int(0.9 * len(data)) :]
print(f"{len(learn):,} bytes to learn from, {len(held):,} held back")

# %% [markdown]
# Its size by hand. A block has 12 d² weights, 9 d biases and 4 d numbers in its norms. Around the two blocks: the
# embedding, which is the output matrix as well, and a last norm.

# %%
d, L, V = 128, 2, 256
torch.manual_seed(0)
model = GPT(GPTConfig(vocab_size=V, context_length=64, n_layer=L, n_head=4, d_model=d, positions="rope"))
assert model.n_parameters == L * (12 * d * d + 13 * d) + V * d + 2 * d
print(f"{model.n_parameters:,} parameters")

# %% [markdown]
# Two sanity numbers before the long run. At the beginning a model knows nothing: ln 256 = 5.5 nats. And a copy of it
# must be able to learn one small batch by heart.

# %%
import copy


def descend(model, batch_of, steps, peak=4e-3):
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=peak), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = peak * min(1, (step + 1) / 30, 1.02 - step / steps)
        ids = batch_of()  # (batch, tokens + 1)
        loss = next_token_loss(model, ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# %% [markdown]
# The one small batch: four texts of 16 random bytes.

# %%
batch = torch.randint(V, (4, 17))  # (batch, tokens + 1)
by_heart = descend(copy.deepcopy(model), lambda: batch, 60)
assert by_heart[-1] < 0.5
print(f"ln 256 = {np.log(256):.1f}, at the beginning {by_heart[0]:.1f}; one batch by heart: {by_heart[-1] < 0.5}")

# %% [markdown]
# Now the real thing.

# %% tags=["volatile"]
dice = torch.Generator().manual_seed(0)


def some_text():
    starts = torch.randint(0, len(learn) - 65, (16, 1), generator=dice)  # (batch, 1)
    return learn[starts + torch.arange(65)]  # (batch, tokens + 1)


losses = descend(model, some_text, steps=700)
print(f"from {losses[0]:.2f} to {np.mean(losses[-50:]):.2f} nats a byte")

# %% [markdown]
# How good is it on text that it has not seen? `evaluate_windows` gives nats a token and bits a byte. Here a token *is*
# a byte, so one is the other over ln 2. This number is what all else will be compared with.

# %% tags=["volatile"]
model.eval()
starts = torch.arange(0, len(held) - 65, (len(held) - 65) // 200)[:200, None]  # (windows, 1)
windows, one_byte = held[starts + torch.arange(65)], torch.ones(V, dtype=torch.long)  # (windows, tokens + 1), (V,)


def bits_per_byte(model):
    return evaluate_windows(model, windows, one_byte, precision="float32")[1]


as_it_was = bits_per_byte(model)
print(f"{as_it_was:.4f} bits a byte; knowing nothing would be 8")

# %% [markdown]
# ### What its weights look like
#
# How large is the largest weight of each matrix?

# %% tags=["volatile"]
for name, w in model.named_parameters():
    if name.endswith("weight") and "ln_" not in name:
        print(f"{name:32} {w.abs().max():.2f}, that is {w.abs().max() / w.std():.1f} σ")

# %% [markdown]
# A row of a trained matrix, and the grids of 8 and of 3 bits under it. With 3 bits there are seven places to be.

# %%
row = model.transformer.h[0].mlp.c_fc.weight[0].detach()  # (in,)
figure, axes = plt.subplots(figsize=(6, 2.4), layout="constrained")
for height, bits in enumerate((3, 4, 8), start=1):
    n = 2 ** (bits - 1) - 1
    axes.plot((torch.arange(-n, n + 1) * row.abs().max() / n).numpy(), [height] * (2 * n + 1), "k|", markersize=9)
axes.plot(row.numpy(), [0] * len(row), "ko", mfc="none", markersize=4, alpha=0.6)
axes.set_yticks(range(4), ["weights", "3 bits", "4 bits", "8 bits"])
axes.set(xlabel="weight (no unit)", ylim=(-0.6, 3.6), title="one row of c_fc and its grids")
plt.show()

# %% [markdown]
# Most weights crowd near zero, where the grid has few places; the ends of the grid serve one or two weights. That is
# waste, and section 6 comes back to it.
#
# ## 5. The error, and then what counts
#
# First the error of all matrices together, over bits, for the three families. Every matrix is rounded; biases and norms
# are less than one number in a hundred and stay. Scales are kept in float16 from here on, as one would store them.


# %%
def is_matrix(name):
    return name.endswith("weight") and "ln_" not in name


@torch.no_grad()
def with_fewer_bits(model, bits, family, which=is_matrix, quantize=quantize):
    light = copy.deepcopy(model)
    for name, weight in light.named_parameters():
        if is_matrix(name) and which(name):
            numbers, scale = quantize(weight, bits, family)
            weight.copy_((numbers * scale.half().float()).reshape(weight.shape))  # (families, members) -> (out, in)
    return light


def all_weights(model):
    return torch.cat([w.detach().flatten() for name, w in model.named_parameters() if is_matrix(name)])  # (weights,)


# %% [markdown]
# Each bits and family makes a model. We keep both numbers of it: the error of its weights, and the bits a byte on held
# text.

# %% tags=["volatile"]
BITS, FAMILIES = (8, 6, 5, 4, 3, 2), ("matrix", "row", "group")
noise, judged = {}, {}
for family in FAMILIES:
    light = [with_fewer_bits(model, bits, family) for bits in BITS]
    noise[family] = [sqnr(all_weights(model), all_weights(m)) for m in light]
    judged[family] = [bits_per_byte(m) for m in light]
    print(f"{family:6} SQNR (dB):", *(f"{bits} bits {v:5.1f}  " for bits, v in zip(BITS, noise[family])))

# %% [markdown]
# As with Gaussian weights: about 6 dB for each bit, and more for the last ones.
#
# **Predict before you run (3).** So the error at least doubles with each bit that is taken away. What will the model's
# surprise at new text do? Rise steadily as well? Where would you stop: at 8 bits, 6, 4, 3, 2?

# %% tags=["volatile"]
print(f"bits a byte more than the {as_it_was:.4f} of float32")
for family in FAMILIES:
    print(f"{family:6}", *(f"{bits} bits {v - as_it_was:+.4f}  " for bits, v in zip(BITS, judged[family])))
assert judged["row"][0] - as_it_was < 0.02 and judged["row"][-1] - as_it_was > 0.3

# %% [markdown]
# Both pictures side by side. On the left the error, nearly a straight line. On the right what it does, and that is no
# line. It is flat, and then there is a **cliff**. An output is a sum of many weights, whose errors cancel as in section
# 2, so a model bears small ones. Then it does not. The right picture counts the scales' bits as well.

# %%
in_all = all_weights(model).numel()
n_rows = sum(len(w) for name, w in model.named_parameters() if is_matrix(name))
scale_bits = {"matrix": 0, "row": 16 * n_rows / in_all, "group": 16 / 32}
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for family, look in zip(FAMILIES, ("ko-", "ks--", "k^:")):
    left.plot(BITS, noise[family], look, mfc="white", label=f"a scale a {family}")
    right.plot([b + scale_bits[family] for b in BITS], judged[family], look, mfc="white")
right.axhline(as_it_was, color="0.6", linewidth=1)
right.text(7.2, as_it_was + 0.15, "float32", fontsize=8)
left.set(xlabel="bits of q", ylabel="SQNR (dB)", title="the error")
right.set(xlabel="bits of a weight, scales counted", ylabel="bits a byte", title="what counts")
left.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# So an answer to the opening question, for this model and this way of rounding: 8 bits cost next to nothing, 4 a
# little, and 2 far too much. A scale for the matrix falls off first. Groups lie below rows at equal bits of q; with the
# scales counted, look how close the two curves come. A larger model may bear more or less. It was not measured here.
#
# ### The matrix that is read twice
#
# The embedding is also the output matrix. It is one tensor: rounding it moves what goes in *and* what is compared at
# the end.
#
# **Predict before you run (4).** It has 7.7 % of all weights. At 2 bits a row, which hurts more: rounding the embedding
# alone, or all the other matrices and not it?

# %% tags=["volatile"]
share = model.transformer.wte.weight.numel() / in_all
print(f"the embedding is {share:.1%} of the weights")
for bits in (4, 3, 2):
    alone = bits_per_byte(with_fewer_bits(model, bits, "row", which=lambda name: "wte" in name))
    others = bits_per_byte(with_fewer_bits(model, bits, "row", which=lambda name: "wte" not in name))
    print(f"{bits} bits: embedding alone {alone - as_it_was:+.3f}, all others {others - as_it_was:+.3f}")

# %% [markdown]
# Compare the two columns with the two shares of the weights. Which of its two uses is it that hurts? Take the models
# apart: an output matrix of its own, and only one of the two rounded.

# %% tags=["volatile"]
for where in ("input", "output"):
    light = copy.deepcopy(model)
    light.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # no longer shared
    target = light.transformer.wte if where == "input" else light.lm_head
    target.weight.data = rounded(target.weight.data, 2)
    print(f"only as {where}, 2 bits: {bits_per_byte(light) - as_it_was:+.3f}")

# %% [markdown]
# That is what sharing means here: one decision for two uses that need not bear the same. One could leave this matrix in
# more bits. In GPT-2's smallest it is 50,257 · 768 weights, 31 % of all, so that would not be free. The module keeps
# the sharing: `WeightOnlyEmbedding` widens rows of the very matrix that the output reads.

# %% [markdown]
# ## 6. One large weight
#
# The scale follows the largest weight of its family. So one outlier ruins all its neighbours. A row of 128 Gaussian
# weights in 4 bits, and the same row with one weight of 12:

# %%
torch.manual_seed(0)
plain = torch.randn(1, 128)  # (out, in)
spoiled = plain.clone()
spoiled[0, 40] = 12.0
for name, w in (("plain", plain), ("spoiled", spoiled)):
    rest = torch.arange(128) != 40
    errors = {f: (w - rounded(w, 4, f))[0, rest].square().mean().sqrt().item() for f in ("row", "group")}
    print(f"{name:7} error of the 127 others (rms):", {f: round(e, 2) for f, e in errors.items()})

# %% [markdown]
# Drawn, weight by weight. With a scale a row, all 127 others suffer. With groups, only the 31 in the same group do.

# %%
figure, axes = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
axes.plot((spoiled - rounded(spoiled, 4, "row"))[0].abs().numpy(), "o", color="0.6", markersize=4, label="scale a row")
axes.plot((spoiled - rounded(spoiled, 4, "group"))[0].abs().numpy(), "kx", markersize=4, label="scale a group")
for edge in (32, 64, 96):
    axes.axvline(edge - 0.5, color="0.8", linewidth=1)
axes.set(xlabel="place in the row (weight 40 is 12)", ylabel="error (as the weight)", title="4 bits")
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# Another cure is **clipping**: take a smaller scale on purpose. The largest weights then hit the end of the grid and
# lose much, and all others have finer steps. Where is the best? Try every clip, from a tenth of the maximum to all of
# it, and take the least squared error.


# %%
def clipped(w, bits, share):
    n = 2 ** (bits - 1) - 1
    scale = share * w.abs().amax(dim=1, keepdim=True) / n  # (out, 1)
    return (w / scale).round().clamp(-n, n) * scale


shares = np.linspace(0.1, 1, 46)
curves = {name: [sqnr(w, clipped(w, 4, c)) for c in shares] for name, w in (("plain", plain), ("spoiled", spoiled))}
trained = model.transformer.h[1].mlp.c_proj.weight.detach()  # (out, in)
curves["trained c_proj"] = [sqnr(trained, clipped(trained, 4, c)) for c in shares]

# %% [markdown]
# The same curve for the two rows and for a trained matrix:

# %%
figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
for (name, values), look in zip(curves.items(), ("k-", "k:", "k--")):
    axes.plot(shares, values, look, label=name)
    best = int(np.argmax(values))
    axes.plot(shares[best], values[best], "ko", markersize=5)
axes.set(xlabel="clip (share of the row's maximum)", ylabel="SQNR (dB)", title="4 bits; dots: the best clip")
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# A little clipping gains about a decibel or two in each. It cannot save the spoiled row by this measure, since to cut a
# 12 short is itself a large error. Groups can. Is the gain also seen in what counts? Each row with its own best clip,
# against no clipping:


# %% tags=["volatile"]
def quantize_best_clip(w, bits, family):
    n, (_, scale) = 2 ** (bits - 1) - 1, quantize(w, bits, family)
    tries = [((w / (c * scale)).round().clamp(-n, n), c * scale) for c in np.linspace(0.4, 1, 31).tolist()]
    errors = torch.stack([(w - q * s).square().sum(dim=1) for q, s in tries])  # (tries, out)
    best = errors.argmin(dim=0)  # (out,)
    scale = torch.stack([s for _, s in tries])[best, torch.arange(len(w))]  # (tries, out, 1) -> (out, 1)
    return (w / scale).round().clamp(-n, n), scale


for bits, without in list(zip(BITS, judged["row"]))[3:]:
    with_clip = bits_per_byte(with_fewer_bits(model, bits, "row", quantize=quantize_best_clip))
    print(f"{bits} bits a row: {without - as_it_was:+.3f}, with the best clip {with_clip - as_it_was:+.3f}")

# %% [markdown]
# The fewer places a grid has, the more it matters where it ends.
#
# ## 7. A bug: one step too many
#
# You write `quantize_int8` yourself, in a hurry. 8 bits, so the grid has 2^8 = 256 places, half of them positive: you
# divide by 128.


# %%
def quantize_in_a_hurry(w, bits, family):
    scale = w.abs().amax(dim=1, keepdim=True) / 128  # (out, 1)
    return (w / scale).round().to(torch.int8), scale


# %% [markdown]
# **Predict before you run (5).** 128 in place of 127: less than one percent finer steps. What will the model say?

# %% tags=["volatile"]
hurried = bits_per_byte(with_fewer_bits(model, 8, "row", quantize=quantize_in_a_hurry))
print(f"by 127: {judged['row'][0] - as_it_was:+.4f} bits a byte;  by 128: {hurried - as_it_was:+.4f}")

# %% [markdown]
# *Seen:* on the machine where this was written, the loss is far up, more than with 4 good bits. *Diagnosed:* look at
# the weights that are off by more than a step, and at what became of them.

# %% tags=["volatile"]
w = model.transformer.h[0].mlp.c_fc.weight.detach()  # (out, in)
q_bad, s_bad = quantize_in_a_hurry(w, 8, "row")
bad = (w - q_bad * s_bad).abs() > s_bad  # (out, in)
rows_up = (w.amax(dim=1) == w.abs().amax(dim=1)).sum().item()
print(f"{bad.sum().item()} bad weights; rows whose largest weight is positive: {rows_up}")
print("what they became:", q_bad[bad].unique().tolist(), "  128. as int8 is", torch.tensor(128.0).to(torch.int8).item())

# %% [markdown]
# The largest weight of a row is exactly 128 steps. int8 ends at 127. The cast does not complain: on the machine where
# this was written it goes round to -128. The *largest* weight of the row changes its sign, and with it any other that
# rounds to 128. What a cast from float does with a number that does not fit is not laid down. Another processor may
# stop at 127, and you would never see the bug there. Whole numbers do go round:

# %%
print("128 as int8:", torch.tensor(128).to(torch.int8).item())
print("100 · 3 in int8:", (torch.tensor(100, dtype=torch.int8) * torch.tensor(3, dtype=torch.int8)).item())

# %% [markdown]
# *Mended:* divide by 127, and put a `clamp(-127, 127)` before the cast wherever the scale is not the row's own maximum.
#
# The second line is the same bug one floor up. A product of two int8 needs 15 bits and a sign, and their sum more: so
# whole-number products are summed in int32, which is enough for 2^31 / 127² = 133,144 of them. Our kernel widens to
# float32 instead.
#
# ### Another way to be wrong: the scale of a column
#
# A scale for each *input* rounds just as well, or better. The error is as small. But it cannot leave the sum:

# %%
torch.manual_seed(0)
w, x = torch.randn(8, 8), torch.randn(8)  # (out, in), (in,)
s_column = w.abs().amax(dim=0) / 127  # (in,)
q_column = (w / s_column).round()  # (out, in)
right, wrong = (q_column * s_column) @ x, s_column * (q_column @ x)  # (out, in) @ (in,) = (out,)
exact = w @ x  # (out, in) @ (in,) = (out,)
print(f"scales inside the sum: off by {(right - exact).abs().max():.2f};", end=" ")
print(f"outside: off by {(wrong - exact).abs().max():.1f}")

# %% [markdown]
# No error is raised, since the matrix is square. (With out ≠ in PyTorch would refuse.) A scale of a column may be given
# to x, before the product. That is sometimes done on purpose: it is how outliers are pushed from x into W or back.

# %% [markdown]
# ## 8. What did not work: activations with one scale
#
# If weights can have 8 bits, why not x as well? Then the product could be done in whole numbers. The scale of x must be
# found at each step. Try the simplest: one scale for all of x.
#
# Dettmers et al. (2022, *LLM.int8()*) report that large models have a few features that are many times as large as all
# others. A model as small as ours need not have any. We put one in, without changing what the model computes: in each
# norm one channel is multiplied by 60, and the next matrix divides its column by 60.


# %%
@torch.no_grad()
def with_outlier(model, channel=7, factor=60):
    loud = copy.deepcopy(model)
    for block in loud.transformer.blocks:
        for norm, layer in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
            norm.weight[channel] *= factor
            norm.bias[channel] *= factor
            layer.weight[:, channel] /= factor
    return loud


# %% [markdown]
# The same function, in other numbers. How large are the channels that go into the last block's MLP?

# %%
loud, inside = with_outlier(model), {}
torch.testing.assert_close(loud(windows[:4, :-1]), model(windows[:4, :-1]), rtol=1e-3, atol=1e-3)
for name, each in (("as trained", model), ("with an outlier", loud)):
    hook = each.transformer.h[1].ln_2.register_forward_hook(lambda m, i, out, name=name: inside.update({name: out}))
    each(windows[:16, :-1])
    hook.remove()
largest = {name: out.detach().abs().amax(dim=(0, 1)) for name, out in inside.items()}  # (batch, tokens, d) -> (d,)

# %% [markdown]
# The largest number in each channel, over 16 texts. The two lines are the step of int8, if all channels share one
# scale. What lies below half of it becomes zero.

# %%
figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
for (name, values), look in zip(largest.items(), ("ko", "kx")):
    axes.semilogy(values.numpy(), look, mfc="none", markersize=4, label=name)
axes.axhline(largest["with an outlier"].max() / 127, color="black", linestyle=":", label="one step, with the outlier")
axes.axhline(largest["as trained"].max() / 127, color="0.55", linestyle="--", label="one step, as trained")
axes.set(xlabel="channel", ylabel="largest |x| (no unit)", title="into the last MLP")
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# Three ways to round x to 8 bits: one scale for all of it, one for each token, and the idea of LLM.int8(): the loud
# channel is set apart and stays as it is, and only the rest is rounded.


# %%
def to_8_bits(x, dim):
    scale = x.abs().amax(dim=dim, keepdim=True) / 127  # (1, 1, 1), or (batch, tokens, 1)
    return (x / scale).round() * scale


def apart(x, channel=7):
    quiet = x.clone()
    quiet[..., channel] = 0
    return to_8_bits(quiet, -1) + (x - quiet)  # (batch, tokens, d)


ROUNDINGS = {"one scale": lambda x: to_8_bits(x, (0, 1, 2)), "one a token": lambda x: to_8_bits(x, -1), "apart": apart}

# %% [markdown]
# **Predict before you run (6).** Which of the three survive the outlier? Does a scale for each token help?


# %% tags=["volatile"]
def with_rounded_inputs(model, rounding):
    light = copy.deepcopy(model)
    for block in light.transformer.blocks:
        for layer in (block.attn.c_attn, block.mlp.c_fc):
            layer.register_forward_pre_hook(lambda module, inputs: (rounding(inputs[0]),))
    return bits_per_byte(light) - as_it_was


for name, rounding in ROUNDINGS.items():
    quiet, loudly = (with_rounded_inputs(each, rounding) for each in (model, loud))
    print(f"activations, {name:12} as trained {quiet:+.4f}, with an outlier {loudly:+.4f} bits a byte")

# %% [markdown]
# With one scale the outlier decides, and the rest of x is left with a handful of steps. A scale for each token helps
# some: a token in which the loud channel happens to be quiet is saved. In the others it is as loud as before. Setting
# it apart is the cure. That is the finding of the paper, in small.
#
# And weight-only? It does not round x at all. But look again: the outlier's column of W was divided by 60, and a row's
# steps are too coarse for it. Its errors are then multiplied by 60.

# %% tags=["volatile"]
for bits in (8, 6):
    quiet, loudly = (bits_per_byte(with_fewer_bits(each, bits, "row")) - as_it_was for each in (model, loud))
    print(f"weights only, {bits} bits a row: as trained {quiet:+.4f}, with an outlier {loudly:+.4f} bits a byte")

# %% [markdown]
# Far less than the activations suffered, but not nothing at 6 bits. Two models, one function, and not equally easy to
# round: what matters is an error's effect on y, not its size in W.

# %% [markdown]
# ## 9. To the nearest, or by lot
#
# There is another way to round: 0.3 becomes 1 in three cases of ten and 0 in seven. *Stochastic* rounding is wrong each
# time and right on average. To the nearest, 0.3 is 0, always.


# %%
def by_lot(values, dice):
    return (values + torch.rand(values.shape, generator=dice)).floor()


dice = torch.Generator().manual_seed(0)
many = torch.full((10_000,), 0.3)
print(f"mean to the nearest {many.round().mean():.1f}, by lot {by_lot(many, dice).mean():.1f}")

# %% [markdown]
# Where does that matter? Where a number is rounded again and again. Two hundred updates of 0.02, to a weight that can
# only be a multiple of 0.1. It should arrive at 4.

# %%
stuck, drawn = torch.zeros(1000), torch.zeros(1000)  # (weights,) each
for _ in range(200):
    stuck = ((stuck + 0.02) / 0.1).round() * 0.1
    drawn = by_lot((drawn + 0.02) / 0.1, dice) * 0.1
print(f"to the nearest {stuck.mean():.1f}, by lot {drawn.mean():.1f}")

# %% [markdown]
# To the nearest, no update is ever large enough to be seen. So for *training* in few bits a lot is drawn. For storing
# weights once there is nothing to average over time, and the lot has twice the mean square error: s² / 6, where the
# nearest has s² / 12.

# %%
numbers, scale = gaussian / (gaussian.abs().amax(dim=1, keepdim=True) / 127), 1  # (out, in), in steps
ratio = (by_lot(numbers, dice) - numbers).square().mean() / (numbers.round() - numbers).square().mean()
print(f"mean square error, by lot over nearest: {ratio:.1f}")
assert abs(ratio - 2) < 0.1

# %% [markdown]
# And what the model says to it, at 4 bits a row:


# %% tags=["volatile"]
def quantize_by_lot(w, bits, family):
    n, (_, scale) = 2 ** (bits - 1) - 1, quantize(w, bits, family)
    return by_lot(w / scale, dice).clamp(-n, n), scale


lots = [bits_per_byte(with_fewer_bits(model, 4, "row", quantize=quantize_by_lot)) - as_it_was for _ in range(3)]
print(f"nearest {judged['row'][3] - as_it_was:+.3f}; by lot, three times:", *(f"{v:+.3f}" for v in lots))

# %% [markdown]
# ## 10. The module: bytes before and after
#
# `store_weights` makes a model whose matrices are stored as float32, bfloat16 or int8, and computes in float32. How
# many bytes? By hand, for int8: one byte a weight, four for the scale of each row, four for each bias and norm. A block
# has 9 d rows.

# %%
from gpt_model.weight_only import store_weights, stored_bytes

light = {storage: store_weights(model, storage) for storage in ("float32", "bfloat16", "int8")}
weights, n_rows, rest = L * 12 * d * d + V * d, L * 9 * d + V, L * 13 * d + 2 * d
by_hand = {"float32": 4 * weights, "bfloat16": 2 * weights, "int8": weights + 4 * n_rows}
for storage, each in light.items():
    assert stored_bytes(each) == by_hand[storage] + 4 * rest
    print(f"{storage:8} {stored_bytes(each):9,} bytes, {stored_bytes(light['float32']) / stored_bytes(each):.2f} times")

# %% [markdown]
# Not 4.00 times: scales and biases weigh something in a model so narrow. The embedding was counted once, because it
# *is* the output matrix:

# %%
assert light["int8"].transformer.wte.head is light["int8"].lm_head
print(light["int8"].lm_head)

# %% [markdown]
# And what they lose. Our own int8 of section 5 is the module's, but for its scales, which are float16. The losses must
# nearly agree. (A loss that is *lower* than float32's by a hundred thousandth is luck: rounding moved it that way.)

# %% tags=["volatile"]
for storage, each in light.items():
    print(f"{storage:8} {bits_per_byte(each) - as_it_was:+.5f} bits a byte")
print(f"ours     {judged['row'][0] - as_it_was:+.5f}")

# %% [markdown]
# **Predict before you run (7).** The three models write, each taking the most probable byte at every step. Will they
# write the same text?

# %% tags=["volatile"]
prompt, greedy = b"Return a list of ", Sampling(temperature=0)
texts = {storage: bytes(generate(each, list(prompt), 40, sampling=greedy)) for storage, each in light.items()}
for storage, written in texts.items():
    same = next((i for i, (a, b) in enumerate(zip(written, texts["float32"])) if a != b), len(written))
    print(f"{storage:8} {written!r}, as float32 for {same} bytes")

# %% [markdown]
# One text says little. Of 20 prompts from the held-back text, how many are continued for 40 bytes exactly as by
# float32? Where two bytes are nearly equally probable, the smallest error decides, and from there on the texts have
# nothing to do with each other. That is not the same as *worse*. The bits a byte say whether it is worse.

# %% tags=["volatile"]
for storage in ("bfloat16", "int8"):
    equal = 0
    for ids in windows[:20, :24].tolist():
        a, b = (list(generate(light[f], ids, 40, sampling=greedy)) for f in ("float32", storage))
        equal += a == b
    print(f"{storage:8} {equal} of 20 texts are the same")

# %% [markdown]
# ## 11. Do the bytes come back as time?
#
# The formula of notebook 10, with what was learned here. A step reads what is stored, and the cache of T tokens:
#
# $$\text{bytes of a step} = \text{stored} + 4 \cdot 2\,L\,d\,T\qquad
# \frac{t_{\text{float32}}}{t_{\text{int8}}} \approx \frac{4P + \text{cache}}{P + \text{cache}}$$
#
# It can only hold for a model that does not fit into the processor's own cache. So here is a larger one, 109 million
# weights, random: time does not depend on what they are.

# %%
config = GPTConfig(vocab_size=8192, context_length=1024, n_layer=8, n_head=16, d_model=1024, positions="rope")
torch.manual_seed(0)
large = GPT(config).eval()
heavy = {storage: store_weights(large, storage) for storage in light}
T, cache = 257, large.make_cache(1, 257)
to_read = {storage: stored_bytes(each) + cache.nbytes for storage, each in heavy.items()}
for storage, size in to_read.items():
    print(f"{storage:8} {size / 1e6:6.1f} MB a step, of which cache {cache.nbytes / 1e6:.1f}:", end=" ")
    print(f"predicted {to_read['float32'] / size:.2f} times as fast")

# %% [markdown]
# A step behind 256 tokens. The cache is filled with random numbers and set back after each step, so that all steps are
# alike.

# %%
for layer in cache.layers:
    layer.length = T - 1
    for buffer in layer.buffers:
        buffer.normal_()


def step(model):
    with torch.inference_mode():
        logits = model.next_logits(torch.tensor([[65]]), cache)  # (1, 1) -> (1, V)
    cache.truncate(T - 1)
    return logits


# %% [markdown]
# **Predict before you run (8).** The formula says 1.93 and 3.58. What will the clock say?

# %% tags=["volatile"]
turns = {storage: (lambda each=each: step(each)) for storage, each in heavy.items()}
time_by_turns(turns, 2)  # warms up, and compiles the kernel if there is a compiler
took = median(time_by_turns(turns, 9))
for storage, t in took.items():
    ratio = f"{took['float32'] / t:.2f} times as fast, predicted {to_read['float32'] / to_read[storage]:.2f}"
    print(f"{storage:8} {t * 1e3:6.1f} ms, {to_read[storage] / t / 1e9:5.1f} GB/s, {ratio}")

# %% [markdown]
# Predicted and measured, drawn. What is missing to the predicted ratio is time that has nothing to do with bytes: the
# many small operations between the products, and widening, which takes instructions. (A ratio *above* the predicted one
# is a busy machine's: medians of nine runs are not exact.) Where the GB/s of int8 are below
# those of float32, it is no longer memory alone that holds it up. **Without a compiler** the module widens the whole
# matrix before it multiplies. Then fewer bytes need not be faster at all, and the last cell of this section shows why.

# %% tags=["volatile"]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
places, names = np.arange(3), list(heavy)
said = [to_read["float32"] / to_read[name] for name in names]
axes.bar(places - 0.2, said, 0.38, color="0.85", edgecolor="black", label="bytes")
clock = [took["float32"] / took[name] for name in names]
axes.bar(places + 0.2, clock, 0.38, color="0.45", hatch="//", edgecolor="black", label="clock, here")
axes.set_xticks(places, names)
axes.set(xlabel="stored as", ylabel="times as fast as float32", title="one step of 109 million weights")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ### Naive, then fast, once more
#
# The same for one layer. *Naive*: make the float32 matrix anew from the stored one, and multiply. *Fast*: `few_rows`
# reads a weight as it is stored and widens it in a register. Equal, to float32's rounding:

# %%
import torch.nn.functional as F

layer = heavy["int8"].transformer.h[0].mlp.c_fc  # a WeightOnlyLinear
x = torch.randn(1, 1024)  # (1, in)
with torch.inference_mode():
    naive, fast = F.linear(x, layer.weight, layer.bias), layer(x)  # (1, in) @ (in, out) = (1, out)
torch.testing.assert_close(fast, naive, rtol=1e-4, atol=1e-4)
print("widened first = widened in a register")

# %% [markdown]
# The eight matrices of 4 MB, one after the other, by both ways:

# %% tags=["volatile"]
layers = [block.mlp.c_fc for block in heavy["int8"].transformer.blocks]


@torch.inference_mode()
def all_layers(way, rows=1):
    for layer in layers:
        y = way(layer, x.expand(rows, -1))  # (1, in) -> (rows, in)
    return y


pair = {
    "naive": lambda: all_layers(lambda m, x: F.linear(x, m.weight, m.bias)),
    "fast": lambda: all_layers(lambda m, x: m(x)),
}
time_by_turns(pair, 1)
took = median(time_by_turns(pair, 7))
print(f"naive {took['naive'] * 1e3:.1f} ms, fast {took['fast'] * 1e3:.1f} ms: {took['naive'] / took['fast']:.1f} times")

# %% [markdown]
# ## 12. Exercises
#
# Each check tells you the likely mistake. Solutions are folded away below.

# %%
from gpt_model.exercises.ex11 import (
    check_quantize_rows,
    check_step_ratio,
    check_stored_size,
    check_to_bfloat16,
    check_unpack_nibbles,
)
from utils.exercises import attempt

# %% [markdown]
# **A. Any number of bits** (easy, 10 minutes) Quantise a matrix (out, in) symmetrically to `bits` bits, with a scale
# for each output. Return q as int8 (out, in) and the scales (out,). A row of zeros stays one.


# %%
def quantize_rows(weight, bits): ...


attempt(check_quantize_rows, quantize_rows)

# %% [markdown]
# **B. How large is the file?** (easy, 10 minutes) A matrix of `n_out` rows and `n_in` columns, `bits` bits a weight,
# and a scale of `scale_bits` bits for each group of `group` weights of a row. A row's last group may be smaller, and
# has a scale all the same. Return the bytes.


# %%
def stored_size(n_out, n_in, bits, group, scale_bits): ...


attempt(check_stored_size, stored_size)

# %% [markdown]
# **C. Two in a byte** (medium, 20 minutes) Four-bit numbers from -8 to 7 are stored two in a byte: the first in the
# lower four bits, the second in the upper, each in two's complement. `packed` is uint8 (n,). Return int8 (2 n,).


# %%
def unpack_nibbles(packed): ...


attempt(check_unpack_nibbles, unpack_nibbles)

# %% [markdown]
# **D. bfloat16, to the nearest** (hard, 25 minutes) Return the bfloat16 nearest to the Python float `x`, as a float. At
# a tie take the one whose last bit is 0. With `struct` and whole numbers, without PyTorch. x is finite and a float32.


# %%
def to_bfloat16(x): ...


attempt(check_to_bfloat16, to_bfloat16)

# %% [markdown]
# **E. How many times as fast?** (easy, 10 minutes) A model of `n_weights` weights goes from `before` to `after` bits a
# weight. A step also reads `cache_bytes` bytes of cache, which stay as they are. If bytes are all that counts, how many
# times as fast is a step?


# %%
def step_ratio(n_weights, before, after, cache_bytes): ...


attempt(check_step_ratio, step_ratio)

# %% [markdown]
# ### Solutions
#
# <details><summary>Solution: `quantize_rows`</summary>
#
# ```python
# import torch
#
#
# def quantize_rows(weight, bits):
#     n = 2 ** (bits - 1) - 1
#     scale = weight.abs().amax(dim=1) / n
#     safe = torch.where(scale > 0, scale, 1)
#     return (weight / safe[:, None]).round().clamp(-n, n).to(torch.int8), scale
# ```
# </details>
#
# <details><summary>Solution: `stored_size`</summary>
#
# ```python
# import math
#
#
# def stored_size(n_out, n_in, bits, group, scale_bits):
#     groups = n_out * math.ceil(n_in / group)
#     return (n_out * n_in * bits + groups * scale_bits) / 8
# ```
# </details>
#
# <details><summary>Solution: `unpack_nibbles`</summary>
#
# ```python
# import torch
#
#
# def unpack_nibbles(packed):
#     both = torch.stack([packed & 15, packed >> 4], dim=1).flatten().to(torch.int8)
#     return torch.where(both > 7, both - 16, both)
# ```
# </details>
#
# <details><summary>Solution: `to_bfloat16`</summary>
#
# ```python
# import struct
#
#
# def to_bfloat16(x):
#     (word,) = struct.unpack(">I", struct.pack(">f", x))
#     word += 0x7FFF + (word >> 16 & 1)  # half a step, and less by a hair where the last bit is 0 already
#     (value,) = struct.unpack(">f", struct.pack(">I", word & 0xFFFF0000))
#     return value
# ```
# </details>
#
# <details><summary>Solution: `step_ratio`</summary>
#
# ```python
# def step_ratio(n_weights, before, after, cache_bytes):
#     return (n_weights * before / 8 + cache_bytes) / (n_weights * after / 8 + cache_bytes)
# ```
# </details>

# %% [markdown]
# ## 13. What you take along
#
# **Recap**
#
# - A float is range and precision. bfloat16 keeps float32's range, float16 has more precision. 65,537 tells them apart.
# - int8 is one scale for many weights: s = max|w| / 127. No weight moves by more than s / 2.
# - A row's scale leaves the sum, so it costs one multiplication for each output.
# - A bit is 6.02 dB. Smaller families have smaller maxima, and more scales, which are bits too.
# - Errors grow evenly with each bit taken away. The loss does not: flat, and then a cliff. Only text tells where.
# - The embedding is also the output, and a small share of the weights may do a large share of the damage.
# - Bytes come back as time only where memory was what held it up, and the widening is done in a register.
#
# **Pitfalls**, each seen above: 128 in place of 127; products in int8; a scale over the inputs taken out of the sum;
# one scale for all activations; an outlier in a row; scales that nobody counted as bits; greedy texts that differ taken
# for worse ones; a model that fits into the processor's cache taken for a benchmark.
#
# ### Reading guide
#
# The decisive function has four lines. The toy of section 2 was asserted to equal it, and so were the loops.

# %%
import inspect

print(inspect.getsource(quantize_int8))

# %% [markdown]
# Where a weight is widened: for a few rows by the operator, else as a whole matrix. Note the test for gradients, since
# the operator has none.

# %%
from gpt_model.weight_only import WeightOnlyLinear

print(inspect.getsource(WeightOnlyLinear.forward))

# %% [markdown]
# The toy layer against the module, with the numbers that you did by hand: 3.09 and 31.8.

# %%
toy = WeightOnlyLinear(W, None, "int8")
with torch.inference_mode():
    y = toy(torch.tensor([[1.0, 2.0, 10.0, 5.0]]))  # (1, in) @ (in, out) = (1, out)
torch.testing.assert_close(y[0], s * sums)
print(toy, [round(v, 2) for v in y[0].tolist()])

# %% [markdown]
# In `few_rows.cpp` read `bfloat16`, which is section 1's upper half in four lines, and `dot`: `float(w_row[i + lane])`
# is the widening, and `__builtin_prefetch` asks for what comes next. In `weight_only.py`, read `WeightOnlyEmbedding`
# and `store_weights`; in `evaluate.py`, `evaluate_windows`.
#
# **CUDA, Apple's MPS, Windows.** Nothing was run on them here. From the source: the operator `few_rows` is for the CPU
# only. On CUDA and MPS, `forward` takes the other way and widens the whole matrix at each call, so memory is saved and
# time is not. On Windows no kernel is compiled (`load_native` gives None), so widening is done by PyTorch there too.
# The grids, the bounds and the bytes are the same everywhere. What a cast from a float too large to int8 gives is not.
#
# **Sources.** Dettmers, Lewis, Belkada, Zettlemoyer 2022, *LLM.int8(): 8-bit Matrix Multiplication for Transformers at
# Scale* (outlier features) · Press and Wolf 2017, *Using the Output Embedding to Improve Language Models* (the shared
# matrix).
#
# **The next question.** A weight is still read for one multiplication. The kernel takes several rows, and reads each
# weight once for all of them. What do four rows cost, if one costs 1?

# %% tags=["volatile"]
crowd = {f"{rows} rows": (lambda rows=rows: all_layers(lambda m, x: m(x), rows)) for rows in (1, 2, 4)}
time_by_turns(crowd, 1)
took = median(time_by_turns(crowd, 7))
print({name: f"{t / took['1 rows']:.2f}" for name, t in took.items()}, "times as long as one row")

# %% [markdown]
# If four rows cost less than four steps, then a model could *judge* four tokens for less than it takes to write them.
# But whose tokens? The next ones are not known yet. Somebody would have to **guess** them, cheaply, and must be allowed
# to be wrong. How is that done without changing what the model writes? That is notebook 12, guess and judge.
