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
# # Bound by memory
#
# **A model of 124 million parameters writes some twenty tokens a second on one core. The same core does tens of
# billions of multiplications a second. Where does the rest go?**
#
# A token asks for 124 million multiplications. By arithmetic alone there could be many times as many tokens a second.
# So the core is not calculating most of the time. It waits. Here you find out what for, predict the speed of a model
# from two numbers of your machine, and see the places where the prediction fails.
#
# | | |
# |---|---|
# | you know | the KV cache (notebook 02), the body of GPT-2 (06), sampling (09), logarithmic axes |
# | you need | about 80 minutes, exercises apart; any laptop: no GPU, no network, about 2 gigabytes of free memory |
# | files | `decoding.py`, `generate.py`, `weight_only.py`, `few_rows.cpp` here; `attention_mechanisms/kv_cache.py` |
#
# | letter | meaning | unit |
# |---|---|---|
# | FLOP | one multiplication or one addition; a product of a weight and a number is 2 of them | – |
# | P | weights in matrices, those that a step multiplies with | numbers |
# | L, d, V | blocks, width of the stream, tokens in the vocabulary | – |
# | B | texts that are written side by side | texts |
# | T | tokens of a text that attention sees | tokens |
# | b | bytes of a number: 4 in float32 | bytes |
# | β | bandwidth: bytes that arrive from memory in a second | bytes/s |
# | π | peak: the most FLOPs that the core does in a second | FLOP/s |
# | I | arithmetic intensity: FLOPs done for each byte that is moved | FLOP/byte |
#
# Times depend on your machine. So the text says what to look for, and the code says what was found.

# %% [markdown]
# ## 1. By hand: six weights
#
# A matrix of 2 rows and 3 columns, times a vector. Multiply, add:
#
# $$\begin{pmatrix}1&2&3\\4&5&6\end{pmatrix}\begin{pmatrix}1\\0\\2\end{pmatrix}=\begin{pmatrix}7\\16\end{pmatrix}$$
#
# There are 6 weights. Each was read once, and each was multiplied **once** and added once. That is 12 FLOPs. In
# float32 the weights are 24 bytes. So 12 / 24 = half a FLOP for each byte of weights. PyTorch can count FLOPs itself:

# %%
import torch
from torch.utils.flop_counter import FlopCounterMode

W = torch.tensor([[1.0, 2, 3], [4, 5, 6]])  # (out, in) = (2, 3)
x = torch.tensor([[1.0, 0, 2]])  # (rows, in) = (1, 3)
with FlopCounterMode(display=False) as counter:
    y = x @ W.T  # (1, 3) @ (3, 2) = (1, 2)
print(y.tolist(), "-", counter.get_total_flops(), "FLOPs for", W.nbytes, "bytes of weights")

# %% [markdown]
# Now four vectors at once. The matrix is still read once. Each weight is used four times while it is at hand.

# %%
many = x.repeat(4, 1)  # (rows, in) = (4, 3)
with FlopCounterMode(display=False) as counter:
    many @ W.T  # (4, 3) @ (3, 2) = (4, 2)
print(counter.get_total_flops(), "FLOPs for", W.nbytes, "bytes of weights")

# %% [markdown]
# That is the whole idea of this notebook. What follows is what it costs in milliseconds.
#
# Vectors are bytes too. With n rows going in and coming out:
#
# $$I = \frac{2\,n\cdot\text{out}\cdot\text{in}}{b\,(\text{out}\cdot\text{in} + n\cdot\text{in} + n\cdot\text{out})}$$
#
# **Predict before you run (1).** A matrix of 768 × 768 in float32. What is I with 1 row, with 8, and with 64? You need
# no paper: the vectors are small beside the matrix.


# %%
def intensity(rows, n_out, n_in, b=4):
    moved = b * (n_out * n_in + rows * n_in + rows * n_out)
    return 2 * rows * n_out * n_in / moved


print({rows: round(intensity(rows, 768, 768), 2) for rows in (1, 8, 64)})

# %% [markdown]
# About n / 2, as long as the vectors are few. Later they weigh as much as the matrix, and the curve bends:

# %%
import matplotlib.pyplot as plt

rows = [2**i for i in range(13)]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(rows, [n / 2 for n in rows], ":", color="0.5", label="n / 2")
for (n_out, n_in), look in {(768, 768): "o-k", (3072, 768): "s--k"}.items():
    axes.plot(rows, [intensity(n, n_out, n_in) for n in rows], look, markersize=4, label=f"{n_out} × {n_in}")
axes.set(xscale="log", yscale="log", xlabel="rows n", ylabel="intensity I (FLOP/byte)", title="one product, float32")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 2. Two numbers of your machine
#
# How much can the core multiply, and how much can it read? We ask it. First a clock. On a machine where other programs
# run, a clock on the wall also counts the time that *they* had the core. A single thread has a clock of its own, which
# stands still meanwhile. Waiting for memory it does count, and that is what we are after.

# %%
import os
import time

import torch.nn.functional as F

torch.set_grad_enabled(False)
one_thread = torch.get_num_threads() == 1 and os.name != "nt"  # Windows moves that clock by 15 ms at a time
clock = time.thread_time if one_thread else time.perf_counter

# %% [markdown]
# One helper does all timing here: several things *by turns*, as `time_by_turns` of `utils/benchmarking.py` does, and of
# each the best turn. A limit is what is possible. Everything else on the machine only takes away from it.


# %%
def best(contestants, repeats=5):
    seconds = {name: [] for name in contestants}
    for _ in range(repeats + 1):
        for name, run in contestants.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return {name: min(runs[1:]) for name, runs in seconds.items()}  # the first turn fetches memory from the system


# %% [markdown]
# **The peak π.** A product of two large square matrices uses each number a thousand times. If anything is bound by
# arithmetic, this is.

# %% tags=["volatile"]
from utils.benchmarking import describe_machine

a = torch.randn(1024, 1024)
seconds = best({"square": lambda: a @ a}, 15)["square"]  # (1024, 1024) @ (1024, 1024)
peak = 2 * 1024**3 / seconds
machine = describe_machine()
print(machine["processor"], "-", machine["system"], "-", torch.get_num_threads(), "thread(s), torch", torch.__version__)
print(f"peak: {peak / 1e9:.1f} billion FLOPs a second")

# %% [markdown]
# **The bandwidth β.** Read a buffer of 256 MiB. There are many ways to read: one after the other, as a sum; as
# eight streams side by side; as a matrix that meets one vector, with PyTorch's product or with this project's own (more
# of that in section 9). Do they all get the same? (The eight streams also write an eighth of what they read.)

# %% tags=["volatile"]
import gpt_model.weight_only  # registers torch.ops.scratchbook.few_rows


def ways_to_read(buffer):
    matrix, vector = buffer.view(-1, 4096), torch.ones(1, 4096)  # (numbers / 4096, 4096)
    return {
        "sum": lambda: buffer.sum(),
        "eight streams": lambda: buffer.view(8, -1).sum(0),  # (8, numbers / 8) -> (numbers / 8,)
        "F.linear, one row": lambda: F.linear(vector, matrix),  # (1, 4096) @ (4096, rows) = (1, rows)
        "few_rows, one row": lambda: torch.ops.scratchbook.few_rows(vector, matrix, None, None),
    }


reading = {name: 2**28 / seconds for name, seconds in best(ways_to_read(torch.ones(2**26)), 7).items()}
print({name: f"{rate / 1e9:.1f} GB/s" for name, rate in reading.items()})

# %% [markdown]
# They need not agree. A core keeps only so many reads under way, and how it is asked decides how many. We take the
# fastest as β. A figure that another program can beat would be no limit.

# %% tags=["volatile"]
bandwidth = max(reading.values())
print(f"β = {bandwidth / 1e9:.1f} GB/s")
print(f"ridge: π / β = {peak / bandwidth:.1f} FLOPs for each byte")

# %% [markdown]
# The *ridge* says how many FLOPs a byte must bring before arithmetic, not memory, is what one waits for. One row brings
# half a FLOP a byte. Compare.
#
# "Memory" means *large*. A processor keeps what it used last in caches of its own, and reads those faster. A model that
# fits into them does not feel β at all. The same sum over buffers of growing size:

# %% tags=["volatile"]
sizes = [2**k for k in range(14, 29, 2)]  # bytes
rates = []
for size in sizes:
    piece = torch.ones(size // 4)
    again = max(1, 2**22 // size)  # small ones are read several times in a turn
    rates.append(again * size / best({"sum": lambda p=piece, n=again: [p.sum() for _ in range(n)]})["sum"])
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot([size / 2**20 for size in sizes], [rate / 1e9 for rate in rates], "o-k", markersize=4)
axes.set(xscale="log", xlabel="buffer (MiB)", ylabel="read by sum (GB/s)", title="small things are nearer")
axes.set_ylim(0)
plt.show()

# %% [markdown]
# On the left, starting the operation takes longer than the reading (section 7 is about that). In the middle the caches
# help. On the right there is memory alone, or a very large cache. Our model should be on the right.
#
# ## 3. A model of moderate size
#
# No published weights are needed. Speed does not depend on what the weights say. So: GPT-2's width, 8 blocks, a small
# vocabulary, random weights.

# %%
from gpt_model import GPT, GPTConfig

torch.manual_seed(0)
config = GPTConfig(vocab_size=4096, context_length=8192, n_layer=8, n_head=12, d_model=768)
model = GPT(config).eval()
L, d, V = config.n_layer, config.d_model, config.vocab_size
print(f"{model.n_parameters:,} parameters")

# %% [markdown]
# Count them by hand. A block has matrices of 3 d², d², 4 d² and 4 d²: 12 d² in all, and 13 d biases and norms. The
# embedding V · d is the output matrix too. Positions: 8192 · d. The last norm: 2 d.

# %%
BLOCKS, HEAD = L * 12 * d**2, V * d
P = BLOCKS + HEAD
assert model.n_parameters == P + L * 13 * d + 8192 * d + 2 * d
print(f"P = {P:,} weights in matrices, {4 * P / 1e6:.0f} MB; biases and norms add {L * 13 * d / P:.2%}")

# %% [markdown]
# A step reads one row of the positions, not all of them, and so they are no part of P. A last sanity number: a model
# that knows nothing should lose about ln V nats a token. Random logits of variance σ² lose about σ² / 2 more.

# %%
import math

torch.manual_seed(1)
ids = torch.randint(0, V, (1, 257))
logits = model(ids[:, :-1])  # (1, 256, V)
loss = F.cross_entropy(logits[0], ids[0, 1:]).item()
expected = math.log(V) + logits.var().item() / 2
print(f"ln V = {math.log(V):.1f}, with half the variance {expected:.1f}, loss = {loss:.1f}")

# %% [markdown]
# Now the cost of a step, by formula. Each weight of a matrix: 2 FLOPs. Attention: each of the d numbers of a key is
# multiplied by the query, each of a value by its weight: 4 d a key and block. What is read: the matrices once, and
# each text's cache of 2 d numbers a token and block.
#
# $$\text{FLOPs} = B\,(2P + 4\,d\,L\,T) \qquad \text{bytes} = b\,(P + B\cdot 2\,d\,L\,T)$$


# %%
def step_flops(batch, keys):
    return batch * (2 * P + 4 * d * L * keys)


def step_bytes(batch, keys, b=4):
    return b * (P + batch * 2 * d * L * keys)


# %% [markdown]
# To measure a step at any length without reading a text first, we fill a cache with noise and say how long it is. After
# each step the cache forgets the new token, so that all runs do the same.


# %%
@torch.inference_mode()
def step_at(model, keys, batch=1):
    cache = model.make_cache(batch, keys)
    for layer in cache.layers:
        layer.keys.normal_(), layer.values.normal_()  # (batch, heads, keys, head_dim)
        layer.length = keys - 1
    new = torch.zeros(batch, 1, dtype=torch.int64)

    @torch.inference_mode()
    def step():
        cache.truncate(keys - 1)
        return model.next_logits(new, cache)  # (batch, V)

    return step


# %% [markdown]
# PyTorch's counter is the witness for the FLOPs. It knows the plain formula of attention (`SDPBackend.MATH`) as two
# matrix products.

# %%
from torch.nn.attention import SDPBackend, sdpa_kernel

for batch, keys in ((1, 100), (3, 500)):
    step = step_at(model, keys, batch)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    assert counter.get_total_flops() == step_flops(batch, keys)
    print(f"B = {batch}, T = {keys}: {counter.get_total_flops():,} FLOPs, counted and calculated")

# %% [markdown]
# And here is something that did not work. Without that line the fused attention kernel of the CPU runs. Does the
# counter see it?

# %% tags=["volatile"]
with FlopCounterMode(display=False) as counter:
    step()
print(f"counted {counter.get_total_flops():,}, missing {step_flops(3, 500) - counter.get_total_flops():,}")
print(f"attention's share of the formula: {3 * 4 * d * L * 500:,}")

# %% [markdown]
# If the missing number is attention's share, the counter does not know the kernel's name and says nothing about it. A
# witness is asked about something known first.
#
# ## 4. The naive loop, and the cache
#
# Before speed, rightness. Two loops that always take the most probable token. The naive one reads the whole text anew
# for each token, the other reads only what is new.


# %%
@torch.inference_mode()
def write_naively(model, ids, n):
    for _ in range(n):
        new = model.next_logits(ids).argmax(-1, keepdim=True)  # (batch, 1)
        ids = torch.cat([ids, new], dim=1)  # (batch, tokens + 1)
    return ids


@torch.inference_mode()
def write(model, ids, n, cache=None):
    cache = cache or model.make_cache(len(ids), ids.shape[1] + n)
    new = ids
    for _ in range(n):
        new = model.next_logits(new, cache).argmax(-1, keepdim=True)  # (batch, 1)
        ids = torch.cat([ids, new], dim=1)  # (batch, tokens + 1): 8 bytes a token, too few to matter
    return ids


# %% [markdown]
# To see words, a tiny model learns one sentence by heart. Its loss begins near ln 256, as it must.

# %%
SENTENCE = b"A step reads every weight once and uses it once. So a step lasts as long as the reading does."
line = torch.tensor([list(SENTENCE)])  # (1, tokens)
torch.manual_seed(2)
tiny = GPT(GPTConfig(vocab_size=256, context_length=128, n_layer=2, n_head=2, d_model=32))
optimizer = torch.optim.AdamW(tiny.parameters(), lr=5e-3)
print(f"ln 256 = {math.log(256):.1f}; {tiny.n_parameters:,} parameters")

# %% [markdown]
# One batch, again and again, until it is known.

# %%
losses = []
with torch.enable_grad():
    for _ in range(200):
        loss = F.cross_entropy(tiny(line[:, :-1])[0], line[0, 1:])  # (tokens, 256), (tokens,)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
tiny.eval()
print(f"loss at first {losses[0]:.1f}, at last below 0.1: {losses[-1] < 0.1}")

# %% [markdown]
# Both loops, from the first six bytes:

# %%
prompt, N = line[:, :6], line.shape[1] - 6
naive, cached = write_naively(tiny, prompt, N), write(tiny, prompt, N)
assert torch.equal(naive, cached)
print(bytes(cached[0].tolist()).decode())

# %% [markdown]
# An outside witness: `transformers` opens our folder as one of its own GPT-2s, and writes with its own loop and cache.

# %%
import tempfile

import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
    tiny.save_pretrained(os.path.join(temporary, "model"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(os.path.join(temporary, "model")).eval()

# %% [markdown]
# The same ids, from their `generate` and from this project's:

# %%
from gpt_model import Sampling, generate

settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
witness = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=N, **settings)
ours = list(generate(tiny, prompt[0].tolist(), N, Sampling(temperature=0)))
assert witness[0].tolist() == cached[0].tolist() == prompt[0].tolist() + ours
print(len(ours), "ids: transformers, gpt_model.generate, and both loops agree")

# %% [markdown]
# Now the larger model: a prompt of 64 tokens, 16 new ones.
#
# **Predict before you run (2).** The naive loop puts 64 + 65 + … + 79 tokens through the model, the other 64 + 15. That
# is a ratio of FLOPs. Will the ratio of *times* be as large, or smaller?

# %%
print(f"FLOPs, naive over cached: {sum(range(64, 80)) / (64 + 15):.1f}")

# %% [markdown]
# Ids first, then seconds:

# %% tags=["volatile"]
start = torch.randint(0, V, (1, 64))
assert torch.equal(write_naively(model, start, 16), write(model, start, 16))
loops = {"naive": lambda: write_naively(model, start, 16), "cached": lambda: write(model, start, 16)}
times = best(loops, 1)
print({name: f"{seconds:.2f} s" for name, seconds in times.items()})
print(f"seconds, naive over cached: {times['naive'] / times['cached']:.1f}, and the same ids")

# %% [markdown]
# Faster, but by less than the FLOPs say. The FLOPs that the cache left over are slow ones. Each waits for a weight.
#
# ## 5. The prediction
#
# If a step does nothing but read, then
#
# $$t = \frac{b\,(P + 2\,d\,L\,T)}{\beta} \quad (B = 1)$$
#
# **Predict before you run (3).** At which T does the cache weigh as much as the matrices? Set P = 2 d L T, with
# P = 12 L d² + V d, and divide. Which letter nearly falls out?

# %%
even = P / (2 * d * L)
assert even == 6 * d + V / (2 * L)
print(f"6 d + V / 2 L = {6 * d} + {V // (2 * L)} = {even:.0f} tokens; GPT-2's smallest: {6 * 768 + 50257 / 24:.0f}")

# %% [markdown]
# About six times the width, however many blocks there are. That is multi-head attention's; the kinds of notebook 07
# move it. The bytes of a live cache confirm the formula:

# %%
assert model.make_cache(1, 1000).nbytes == step_bytes(1, 1000) - step_bytes(1, 0) == model.cache_bytes(1000, 4)
print(f"a cache of 1,000 tokens: {model.make_cache(1, 1000).nbytes:,} bytes, as the formula says")

# %% [markdown]
# Now milliseconds. Four lengths, by turns: measured, predicted, and the share of the limit that is reached.

# %% tags=["volatile"]
lengths = [64, 1536, 3072, 6144]
steps = {T: step_at(model, T) for T in lengths}
measured = best(steps, 7)
del steps  # their caches are large
predicted = {T: step_bytes(1, T) / bandwidth for T in lengths}
for T in lengths:
    share = predicted[T] / measured[T]
    print(f"T = {T:5}: measured {measured[T] * 1e3:6.1f} ms, predicted {predicted[T] * 1e3:6.1f} ms, {share:4.0%}")

# %% [markdown]
# As a picture. The dotted line is the weights alone, and what lies above it is the cache.

# %% tags=["volatile"]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(lengths, [measured[T] * 1e3 for T in lengths], "o-k", markersize=4, label="measured")
axes.plot(lengths, [predicted[T] * 1e3 for T in lengths], "--", color="0.4", label="bytes / β")
axes.axhline(step_bytes(1, 0) / bandwidth * 1e3, color="0.5", linestyle=":", label="weights alone")
axes.axvline(even, color="0.7", linewidth=1, label="cache = weights")
axes.set(xlabel="context T (tokens)", ylabel="one step (ms)", title="one text, more and more to read")
axes.set_ylim(0)
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# A share near 100 % says: there is nothing left to gain but by reading *less*. A share far below says that something
# else takes time, or that the product reads more slowly than the best way of section 2. (Much above it means that part
# of the model stayed in a processor's cache, or that other programs were reading while β was measured. They share the
# memory with us, and no clock can take that out.)
#
# The opening question, then. GPT-2's smallest reads its 124 million weights for each token. The project's benchmark
# measured it on the machine named below, and this one can say what its own limit would be:

# %% tags=["volatile"]
from utils.benchmarking import median
from utils.context_report import is_row, where
from utils.files import read_json
from utils.tracking import REPOSITORY

report = read_json(REPOSITORY / "gpt_model/results/benchmark.json")
row = next(row for row in report["results"] if is_row(row, "decode", "float32") and row["context"] == 1024)
rate = 1 / median(row["seconds"])["multi-head"]
gpt2_bytes = 4 * (12 * 12 * 768**2 + 50257 * 768 + 12 * 2 * 768 * 1024)
print(f"file, {where(report)}: {rate:.0f} tokens a second at T = 1,024: {rate * gpt2_bytes / 1e9:.1f} GB/s were read")
print(f"here, by memory: at most {bandwidth / gpt2_bytes:.0f}; by arithmetic: at most {peak / 2 / 124e6:.0f}")

# %% [markdown]
# That is the answer. The core is not slow. It is fed slowly.
#
# ### What did not work: weights of zero
#
# If multiplying is what costs, a matrix of zeros should be cheap. Try it: all work saved, no byte saved.

# %% tags=["volatile"]
full = torch.randn(4096, 4096)  # (out, in), 64 MiB
empty = torch.zeros(4096, 4096)
one = torch.randn(1, 4096)
times = best({"random": lambda: F.linear(one, full), "zeros": lambda: F.linear(one, empty)}, 15)
print(f"random {times['random'] * 1e3:.2f} ms, zeros {times['zeros'] * 1e3:.2f} ms")

# %% [markdown]
# The zeros are read like any other numbers. Leaving weights out helps only if they are not stored.
#
# ## 6. The roofline
#
# Two limits, and whichever is lower holds (Williams, Waterman and Patterson 2009):
#
# $$\text{FLOP/s} \le \min(\pi,\; \beta\cdot I) \qquad
# t \ge \max\left(\frac{\text{FLOPs}}{\pi}, \frac{\text{bytes}}{\beta}\right)$$
#
# Over I, that is a slope and then a flat roof. A decoding step with 1, 8 and 64 texts has matrices read once for all of
# them. A *prefill* reads a prompt of 256 tokens in one pass: its rows are tokens of one text.
#
# In a prefill each token sees those before it, and only the last one needs the output matrix:


# %%
def prefill_flops(n):
    return 2 * (BLOCKS * n + HEAD) + 4 * d * L * n * (n + 1) // 2


for name, flops, moved in (
    ("decode, B = 1", step_flops(1, 64), step_bytes(1, 64)),
    ("decode, B = 8", step_flops(8, 64), step_bytes(8, 64)),
    ("decode, B = 64", step_flops(64, 64), step_bytes(64, 64)),
    ("prefill, 256", prefill_flops(256), step_bytes(1, 256)),
):
    print(f"{name:15} I = {flops / moved:5.1f} FLOP/byte")

# %% [markdown]
# Now batches of many sizes, and the prefill, measured.

# %% tags=["volatile"]
batches = [1, 2, 4, 8, 16, 32, 64]
steps = {B: step_at(model, 64, B) for B in batches}
batch_times = best(steps, 4)
del steps
prefill_time = best({"prefill": lambda: model.next_logits(ids[:, :256])}, 3)["prefill"]
points = {f"decode {B}": (step_flops(B, 64), step_bytes(B, 64), batch_times[B]) for B in (1, 8, 64)}
points["prefill 256"] = (prefill_flops(256), step_bytes(1, 256), prefill_time)

# %% [markdown]
# The roof from section 2, and the points beneath it:

# %% tags=["volatile"]
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
across = [2.0**k for k in range(-2, 10)]
across = sorted([*across, peak / bandwidth])
axes.plot(across, [min(peak, bandwidth * i) / 1e9 for i in across], "-k", label="roof of this machine")
for (name, (flops, moved, seconds)), marker in zip(points.items(), "osD^", strict=True):
    axes.plot(flops / moved, flops / seconds / 1e9, marker, color="0.35", markersize=7, label=name)
axes.set(xscale="log", yscale="log", xlabel="intensity I (FLOP/byte)", ylabel="billion FLOP/s", title="roofline")
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# Decoding one text lies on the slope, the prefill below the flat part. The same weights, the same code. What differs is
# how often a weight is used once it is there. What the roof promises and what was reached:

# %% tags=["volatile"]
for name, (flops, moved, seconds) in points.items():
    bound = "memory" if moved / bandwidth > flops / peak else "arithmetic"
    limit = max(moved / bandwidth, flops / peak)
    print(f"{name:12} bound by {bound:10}: {seconds * 1e3:6.1f} ms, {limit / seconds:4.0%} of the limit's speed")

# %% [markdown]
# ### A batch is nearly free, until it is not
#
# Eight texts read the same weights once. By the roof, tokens a second should grow with the batch, and then stop growing
# where arithmetic binds.

# %% tags=["volatile"]
limits = [B / max(step_bytes(B, 64) / bandwidth, step_flops(B, 64) / peak) for B in batches]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(batches, limits, "--", color="0.4", label="roofline")
axes.plot(batches, [B / batch_times[B] for B in batches], "o-k", markersize=4, label="measured")
axes.set(xscale="log", yscale="log", xlabel="texts side by side B", ylabel="tokens a second, all texts", title="T = 64")
axes.set_xticks(batches, [str(B) for B in batches])
axes.minorticks_off()
axes.legend(frameon=False)
plt.show()
print({B: f"{B / batch_times[B] * batch_times[1]:.1f}×" for B in batches})

# %% [markdown]
# Look at the small batches. If the points fall away from the dashed line at 2, 4 or 8, then the matrix product for few
# rows is not as good as the one for one row or for many. The roof says what is possible, not what a library does.
#
# Each user of a batch gets tokens at the speed of the *step*. Serving many makes the machine cheaper for each, and
# nobody's text faster.
#
# ### Two latencies
#
# A person who waits knows two times. **Time to first token**: the prompt is read, one token is drawn. **Time per
# token**: from then on.
#
# **Predict before you run (4).** A prompt of 256 tokens has some 256 times the FLOPs of a step. Is the first token 256
# times as late as the next one? Take π and β of section 2 and work out both times.

# %% tags=["volatile"]
import itertools

stamps = [clock()]
for _ in generate(model, ids[0, :256].tolist(), 17, Sampling(temperature=0)):
    stamps.append(clock())
gaps = [after - before for before, after in itertools.pairwise(stamps)]
first, later = gaps[0], sorted(gaps[1:])[len(gaps[1:]) // 2]
print(f"first token {first * 1e3:6.1f} ms; FLOPs / π    = {prefill_flops(256) / peak * 1e3:6.1f} ms")
print(f"later       {later * 1e3:6.1f} ms; bytes / β    = {step_bytes(1, 264) / bandwidth * 1e3:6.1f} ms")
print(f"FLOPs: {prefill_flops(256) / step_flops(1, 264):.0f} times as many, time: {first / later:.1f} times as long")

# %% [markdown]
# The prompt's tokens share each weight, so its FLOPs come at a speed near π. A step's come at β / 2. Two different
# remedies follow: a faster multiplier shortens the first wait, a faster memory the second.
#
# ## 7. Below the roof: overhead
#
# How many operations does a step have? Every call that reaches PyTorch's core passes a `TorchDispatchMode`. Ours
# counts, and adds up the bytes of what each operation returns. A *view* only describes memory that is there, so we tell
# them apart.

# %%
from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls, self.views, self.written = Counter(), Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        (self.views if function.is_view else self.calls)[name] += 1
        self.written[name] += result.nbytes if isinstance(result, torch.Tensor) else 0
        return result


# %% [markdown]
# The matrix products we can say beforehand: four a block, and the output.

# %%
cache = model.make_cache(1, 8)
with Operations() as seen:
    model.next_logits(ids[:, :1], cache)
products = seen.calls["addmm"] + seen.calls["mm"]
assert products == 4 * L + 1
print(f"{products} matrix products = 4 · {L} + 1")

# %% [markdown]
# And all the rest? (The exact number belongs to this version of PyTorch.)

# %% tags=["volatile"]
print(f"{sum(seen.calls.values())} operations and {sum(seen.views.values())} views, {products} of them products")
print("operations:", dict(seen.calls.most_common(8)))

# %% [markdown]
# Beside 240 MB of weights, the others move next to nothing. But each has to be asked for. For the tiny model of section
# 4 that is all there is.
#
# **Predict before you run (5).** Its weights and a cache of 64 tokens are less than 0.2 MB. Divide by your β. Will its
# step take as long as that?

# %% tags=["volatile"]
small = step_at(tiny, 64)
with Operations() as seen:
    small()
n_operations = sum(seen.calls.values()) + sum(seen.views.values())
small_time = best({"tiny": small}, 200)["tiny"]
by_bytes = 4 * (tiny.n_parameters + 2 * 2 * 32 * 64) / bandwidth
print(f"by bytes {by_bytes * 1e6:.0f} µs, measured {small_time * 1e6:.0f} µs: {by_bytes / small_time:.0%} of the limit")
print(f"{n_operations} operations and views: {small_time / n_operations * 1e6:.1f} µs each")

# %% [markdown]
# The roofline is still a limit, and it says nothing here. (Such a model fits into the processor's caches, so even β is
# too pessimistic.) The step is bound by Python and by the launching of operations. Neither fewer bytes nor a faster
# multiplier would help it. So there are three things to wait for: arithmetic, memory, and *being asked*. Check which
# before you mend anything.
#
# ## 8. Asking less often: compiled steps
#
# `torch.compile` records what a function does and makes fewer, larger operations of it. It may only use a recording
# again if what it saw is unchanged. And a text grows. We count recordings, with a backend that does nothing to them
# (`eager`), so that no C++ compiler is needed.

# %%
from torch._dynamo.utils import counters


def recordings(function, arguments, **options):
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(function, backend="eager", fullgraph=True, **options)
    results = [float(compiled(argument)) for argument in arguments]
    return results, counters["stats"]["unique_graphs"]


# %% [markdown]
# A stand-in for attention: it reads the first n numbers of a buffer. In one form n is a Python number, and a slice has
# the length n. In the other n lies in memory, the whole buffer is read, and a mask hides what is not filled.

# %%
kept = torch.arange(16.0)


def growing(n):
    return kept[:n].sum()  # (n,) -> ()


def fixed(n):
    return torch.where(torch.arange(16) < n, kept, 0).sum()  # (16,) -> ()


# %% [markdown]
# **Predict before you run (6).** Lengths 3, 4, 5, 6, 7, 8. How many recordings does each form need? There is a third
# way between them: with PyTorch's default, a number that was seen to change becomes a symbol.

# %%
as_number, n_number = recordings(growing, range(3, 9), dynamic=False)
as_symbol, n_symbol = recordings(growing, range(3, 9))
in_memory, n_memory = recordings(fixed, [torch.tensor(n) for n in range(3, 9)])
assert as_number == as_symbol == in_memory
print(f"a number: {n_number} recordings, a symbol: {n_symbol}, a number in memory: {n_memory}")

# %% [markdown]
# One recording a token would be a catastrophe: each takes longer than the token. The symbol needs two, the first before
# anyone knew that n changes. The number in memory needs one.
#
# On a CPU this project uses the symbol, on CUDA the number in memory. Why not the symbol there too? A **CUDA graph** is
# stricter than a recording. It holds the very addresses and sizes of hundreds of kernel launches, and replays them with
# a single call. Nothing may differ from one step to the next but the numbers in memory. (Explained here, not run: it
# needs an NVIDIA GPU.)
#
# `StaticKVCache` is a cache of that kind. Its `length` is a tensor. Compare what attention gets to see at each step:

# %%
from gpt_model.decoding import next_logits_statically, static_caches


def shapes(cache, steps=3):
    new = torch.zeros(1, 2, 1, 16)  # (batch, heads, tokens, head_dim), as in the tiny model
    return [tuple(cache.append(new, new)[0].shape) for _ in range(steps)]


print("KVCache      ", shapes(tiny.make_cache(1, 128).layers[0]))
print("StaticKVCache", shapes(static_caches(tiny.make_cache(1, 128)).layers[0]))

# %% [markdown]
# The last shape is always the whole buffer. A mask hides what is empty. Does it write the same text? Read the prompt
# with a plain cache, turn it into a static one, go on:

# %%
with torch.inference_mode():
    plain = tiny.make_cache(1, 128)
    new = tiny.next_logits(prompt, plain).argmax(-1, keepdim=True)  # (1, 1)
    static, written = static_caches(plain), prompt[0].tolist()
    for _ in range(N):
        written.append(new.item())
        new = next_logits_statically(tiny, new, static).argmax(-1, keepdim=True)  # (1, 1)
assert written == cached[0].tolist()
print(len(written), "ids, as with KVCache")

# %% [markdown]
# The price: bytes of keys and values that are read though they are empty. Over a whole text of N tokens in a buffer for
# N, that is N² against N (N + 1) / 2, so nearly twice. It is worth it where launches cost more.
#
# Here is the compiled step for real, if your machine has a C++ compiler. The tiny model, with its products as operators
# of their own (`store_weights`, as the head of `decoding.py` asks).

# %% tags=["volatile"]
from pathlib import Path

from gpt_model.decoding import decoding_step
from gpt_model.weight_only import store_weights
from utils.native import load_native

few_rows_cpp = Path(gpt_model.weight_only.__file__).with_name("few_rows.cpp")
has_compiler = load_native(few_rows_cpp) is not None
light = store_weights(tiny, "float32")
print("a C++ compiler is here" if has_compiler else "no C++ compiler here: the next cell compiles nothing")

# %% [markdown]
# Compiling takes its time at first, and the same text must come out. After that, by turns:


# %% tags=["volatile"]
@torch.inference_mode()
def write_with(step):
    cache, new, out = light.make_cache(1, 128), prompt, []
    for i in range(N):
        new = (step if i else eager)(light, new, cache).argmax(-1, keepdim=True)  # (1, 1)
        out.append(new.item())
    return out


eager, compiled = decoding_step(light.device, False), decoding_step(light.device, True)
torch._dynamo.reset()
begun = time.perf_counter()
try:
    assert has_compiler, "no C++ compiler"
    assert write_with(compiled) == ours
    print(f"compiled in {time.perf_counter() - begun:.0f} s, the same {N} ids")
    pair = {"as it is": lambda: write_with(eager), "compiled": lambda: write_with(compiled)}
    print({name: f"{seconds / N * 1e6:.0f} µs a step" for name, seconds in best(pair, 7).items()})
except Exception as error:  # whatever keeps this machine from compiling, the notebook goes on
    print(f"not compiled here: {type(error).__name__}: {str(error)[:200]}")

# %% [markdown]
# What was fused: norms, GELU, additions and copies became loops of C++, many operations in one. What was not: the
# products. A product that is bound by memory does not become faster by being asked for more cleverly.
#
# ## 9. Reading at the speed of memory: `few_rows.cpp`
#
# For one row, a matrix product is a loop over weights. The project's own is short enough to be read. This is the heart
# of it:

# %%
source = few_rows_cpp.read_text(encoding="utf-8")
start_of_dot = source.index("template <typename Stored, long ROWS>")
print(source[start_of_dot : source.index("\n}\n", start_of_dot) + 2])

# %% [markdown]
# Two things to see. `sums` are many independent sums, so that no addition waits for the one before. And
# `__builtin_prefetch` asks for a line of 64 bytes that will be needed 4096 bytes later. The answer is there by the time
# the loop is. Rows of x come in groups of up to four, and the weights are read with the first group.
#
# Right first: the operator against `F.linear`. (Without a compiler, the operator falls back to `F.linear` itself.)

# %%
torch.manual_seed(3)
weight, bias = torch.randn(300, 700), torch.randn(300)  # (out, in), (out,)
for n in (1, 2, 3, 7):
    x = torch.randn(n, 700)  # (rows, in)
    y = torch.ops.scratchbook.few_rows(x, weight, None, bias)  # (n, 700) @ (700, 300) + (300,) = (n, 300)
    torch.testing.assert_close(y, F.linear(x, weight, bias), rtol=1e-4, atol=1e-4)
print("few_rows = F.linear for 1, 2, 3 and 7 rows")

# %% [markdown]
# Then the ratio, on the whole model. Above 1, `few_rows` is faster. The format is float32 still: nothing is saved yet,
# only read differently.

# %% tags=["volatile"]
stored = store_weights(model, "float32")
for B in (1, 4):
    pair = best({"F.linear": step_at(model, 64, B), "few_rows": step_at(stored, 64, B)}, 7)
    share = step_bytes(B, 64) / bandwidth / pair["few_rows"]
    print(f"B = {B}: F.linear / few_rows = {pair['F.linear'] / pair['few_rows']:.2f}; few_rows at {share:.0%} of β")

# %% [markdown]
# If that is near 1 with one row, a library reads as well as a careful loop: there is one speed of memory. With a few
# rows the two may part, in either direction.
#
# ## 10. A bug that no test sees
#
# The shortest cache in the world appends with `torch.cat`. Here it is, as a `KVCache` with another `append`.

# %%
from attention_mechanisms import KVCache, LayerCaches


class CatCache(KVCache):
    def append(self, keys, values):
        old_keys, old_values = self.keys[:, :, : self.length], self.values[:, :, : self.length]
        longer = torch.cat([old_keys, keys], dim=2)  # (batch, heads, length + new, head_dim)
        self.buffers = longer, torch.cat([old_values, values], dim=2)
        self.length = longer.shape[2]
        return self.keys, self.values


# %% [markdown]
# **Seen.** The text is right. A test of the text passes.

# %%
caches = LayerCaches([CatCache(1, 2, 1, 16) for _ in range(2)])
assert torch.equal(write(tiny, prompt, N, caches), cached)
print("the same ids")

# %% [markdown]
# But a long text gets slower with every token, and by more than attention explains. One layer of our model, `append`
# alone, from an empty cache to 1,024 tokens:

# %% tags=["volatile"]
new = torch.randn(1, 12, 1, 64)  # (batch, heads, tokens, head_dim)


def append_times(cache, n=1024):
    stamps = [clock()]
    for _ in range(n):
        cache.append(new, new)
        stamps.append(clock())
    gaps = torch.tensor(stamps, dtype=torch.float64).diff() * 1e6  # (n,), µs
    return gaps.view(-1, 64).median(1).values.tolist()  # (n / 64, 64) -> (n / 64,)


slow, fast = append_times(CatCache(1, 12, 1, 64)), append_times(KVCache(1, 12, 1024, 64))
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(range(64, 1025, 64), slow, "o-k", markersize=4, label="torch.cat")
axes.plot(range(64, 1025, 64), fast, "s--", color="0.4", markersize=4, label="KVCache, into a buffer")
axes.set(xlabel="tokens in the cache", ylabel="one append (µs)", title="the same result, copied or not")
axes.set_ylim(0)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# **Diagnosed.** Count the bytes that each writes, with the counter of section 7. Keys and values of a token are
# 2 · 12 · 64 numbers, 6,144 bytes. To append token t, `cat` writes all t of them. Over T tokens:
#
# $$6144\,(1 + 2 + \dots + T) = 6144\,\frac{T(T+1)}{2} \qquad\text{against}\qquad 6144\,T$$

# %%
T, new = 256, torch.zeros(1, 12, 1, 64)
counts = {}
for name, cache in {"cat": CatCache(1, 12, 1, 64), "copy_": KVCache(1, 12, T, 64)}.items():
    with Operations() as seen:
        for _ in range(T):
            cache.append(new, new)
    counts[name] = seen.written[name]
assert counts == {"cat": 6144 * T * (T + 1) // 2, "copy_": 6144 * T}
print(counts, f"- {counts['cat'] / counts['copy_']:.1f} = (T + 1) / 2 times as many bytes")

# %% [markdown]
# **Mended.** Allocate once, for the longest text, and write each token into its place: the `KVCache` of this project,
# which was the other line of the figure all along. `cat` has a second price. While it copies, the old and the new
# buffer both exist, so the peak is nearly twice the cache. What it has in its favour: nobody needs to know the length
# beforehand. The usual way out is a buffer that doubles when it is full.
#
# The lesson beyond caches: ask of every line in a decoding step what it *moves*, not what it computes.

# %% [markdown]
# ## 11. Exercises
#
# Write the body in place of the dots and run the cell. The check says what is missing.

# %%
from gpt_model.exercises.ex10 import (
    check_append_in_place,
    check_batch_that_balances,
    check_bytes_copied,
    check_product_intensity,
    check_tokens_per_second,
)
from utils.exercises import attempt

# %% [markdown]
# **A. Intensity** (easy, 5 minutes) FLOPs for each byte of a product of (rows, n_in) with a matrix (n_out, n_in).
# Numbers that go in and come out are 4 bytes. The matrix is *stored* in `weight_bytes` bytes a weight: 4, 2 or 1.


# %%
def product_intensity(rows, n_out, n_in, weight_bytes): ...


attempt(check_product_intensity, product_intensity)

# %% [markdown]
# **B. Under the roof** (easy, 10 minutes) The most tokens a second, of all texts together. A step for `batch` texts
# reads `weight_bytes` once and `cache_bytes` for each text, and does `flops` FLOPs for each text. The machine reads
# `bandwidth` bytes and does `peak` FLOPs a second, both at the same time.


# %%
def tokens_per_second(batch, weight_bytes, cache_bytes, flops, bandwidth, peak): ...


attempt(check_tokens_per_second, tokens_per_second)

# %% [markdown]
# **C. What `cat` copies** (medium, 10 minutes) A prompt of `prompt` tokens is appended at once, then `new` tokens one
# by one, each time with `torch.cat`. A token has `token_bytes`. How many bytes are written in all, with the prompt's?


# %%
def bytes_copied(prompt, new, token_bytes): ...


attempt(check_bytes_copied, bytes_copied)

# %% [markdown]
# **D. A place for everything** (medium, 15 minutes) Write `new` (tokens, width) into `buffer` (longest, width) behind
# its first `length` rows. Return the filled rows as a *view*, old and new. Raise a ValueError if they do not fit, and
# leave the buffer as it was.


# %%
def append_in_place(buffer, length, new): ...


attempt(check_append_in_place, append_in_place)

# %% [markdown]
# **E. Where arithmetic binds** (hard, 20 minutes) Weights are `weights` numbers of `b` bytes; 2 FLOPs each a text. Each
# text has `cache` numbers of `b` bytes of its own, at 2 FLOPs each. Return the smallest whole batch for which
# arithmetic takes at least as long as reading. None if there is none, however large the batch. When is that so?


# %%
def batch_that_balances(weights, cache, b, bandwidth, peak): ...


attempt(check_batch_that_balances, batch_that_balances)

# %% [markdown]
# ### Solutions
#
# <details><summary>Solution: `product_intensity`</summary>
#
# ```python
# def product_intensity(rows, n_out, n_in, weight_bytes):
#     moved = weight_bytes * n_out * n_in + 4 * rows * (n_in + n_out)
#     return 2 * rows * n_out * n_in / moved
# ```
# </details>
#
# <details><summary>Solution: `tokens_per_second`</summary>
#
# ```python
# def tokens_per_second(batch, weight_bytes, cache_bytes, flops, bandwidth, peak):
#     reading = (weight_bytes + batch * cache_bytes) / bandwidth  # the weights are read once for all texts
#     arithmetic = batch * flops / peak
#     return batch / max(reading, arithmetic)
# ```
# </details>
#
# <details><summary>Solution: `bytes_copied`</summary>
#
# ```python
# def bytes_copied(prompt, new, token_bytes):
#     lengths = range(prompt, prompt + new + 1)  # after the prompt, and after each token
#     return token_bytes * sum(lengths)
# ```
# </details>
#
# <details><summary>Solution: `append_in_place`</summary>
#
# ```python
# def append_in_place(buffer, length, new):
#     end = length + len(new)
#     if end > len(buffer):
#         raise ValueError(f"the buffer holds {len(buffer)} tokens; {length} are in it and {len(new)} came")
#     buffer[length:end] = new
#     return buffer[:end]
# ```
# </details>
#
# <details><summary>Solution: `batch_that_balances`</summary>
#
# ```python
# import math
#
#
# def batch_that_balances(weights, cache, b, bandwidth, peak):
#     # n · 2 (weights + cache) / peak  >=  b (weights + n · cache) / bandwidth, solved for n
#     gain = 2 * (weights + cache) / peak - b * cache / bandwidth  # what one text more adds to arithmetic's lead
#     if gain <= 0:
#         return None  # each text brings more reading than arithmetic: long contexts never get there
#     return max(1, math.ceil(b * weights / bandwidth / gain))
# ```
# </details>

# %% [markdown]
# ## 12. What you take along
#
# **Recap**
#
# - One row, one multiplication a weight: I = 2 / b FLOPs a byte, half a FLOP in float32. n rows: n times as many.
# - t ≥ max(FLOPs / π, bytes / β). Two numbers of a machine, and you can say what cannot be faster.
# - Decoding one text waits for memory, a prefill for arithmetic. Hence two latencies, with two remedies.
# - A batch shares the weights, and no text shares its cache. From about 6 d tokens on, the cache is the larger part.
# - A tiny model waits for neither. It waits to be asked. Compiling asks less often, if nothing in the step grows in
#   Python.
# - A cache of `cat` is right and writes O(T²) bytes.
#
# **Pitfalls**, each seen above: FLOPs taken for time; a bandwidth measured in one way and called the limit; a small
# model that fits the processor's cache; a counter that does not know a kernel; a batch called free without its cache;
# zeros taken for savings; a Python number that grows inside a compiled step; a test of the text that sees no copy.
#
# ### Reading guide
#
# `next_logits_statically` is the step that is recorded on CUDA, and `decoding_step` chooses. Read them with section 8
# in mind: which number does Python know? `logits_of` is the output matrix; in GPT-2 it does no more.

# %%
import inspect

from gpt_model import decoding

print(inspect.getsource(decoding.next_logits_statically))
print(inspect.getsource(decoding.decoding_step))

# %% [markdown]
# The mended bug is `KVCache.append`. Two lines write into the buffers, and the last one returns views. A toy of it is
# exercise D: rows into their place. Hold one to the other.

# %%
print(inspect.getsource(KVCache.append).split('"""')[2])
cache, rows, toy = KVCache(1, 1, 5, 2), torch.arange(6.0).view(3, 2), torch.zeros(5, 2)  # (3, 2), (5, 2)
cache.append(rows[None, None], rows[None, None])  # (1, 1, 3, 2)
toy[0:3] = rows
view = cache.append(rows[None, None, :1], rows[None, None, :1])[0]  # (1, 1, 4, 2)
toy[3:4] = rows[:1]
assert torch.equal(cache.keys[0, 0], toy) and view.is_set_to(cache.keys[:, :, :4])

# %% [markdown]
# In `generate.py`, read `_next_logits`: the prefill, then steps. It is the loop `write` of section 4, and its ids were
# asserted to be the same. In `weight_only.py`, read `WeightOnlyLinear.forward`: when it takes `few_rows`, and when not.
#
# **CUDA, Apple's MPS, Windows.** Only a CPU was run here. The formulas for FLOPs and bytes hold anywhere, π and β do
# not. On CUDA and on MPS an operation returns before it is done: a clock has to wait (`torch.cuda.synchronize`,
# `torch.mps.synchronize`), and so `best` would be wrong as it stands. There, `.item()` in a loop is such a wait at each
# token. `generate` looks at a token one step late on CUDA for that reason. The static cache with a CUDA graph is for
# CUDA alone; `decoding_step` compiles with a symbol elsewhere. `few_rows` is for the CPU: on other devices
# `WeightOnlyLinear` widens the matrix and calls `F.linear`. On Windows `load_native` compiles nothing and gives None,
# and the operator falls back to `F.linear`.
#
# **Sources.** Williams, Waterman, Patterson 2009, *Roofline: an insightful visual performance model for multicore
# architectures* · Pope et al. 2022, *Efficiently scaling transformer inference* (prefill and decoding, two costs).
#
# **The next question.** A step lasts as long as its bytes. The weights are 4 bytes each. What if they were 2, or 1? The
# arithmetic could stay as it is. What would the text lose, and would the step really take a quarter of the time?
# Notebook 11, *fewer bits*.
