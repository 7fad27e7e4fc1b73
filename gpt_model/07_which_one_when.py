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
# # Which one when: the measured table
#
# **Someone hands you a machine, a context and a number of users. Which attention do you build?**
#
# You know four kinds by now: multi-head, grouped-query, latent, sliding window. Each saves something, and each has a
# price. This project has measured them: one layer alone, whole models, and what they learn. Here we read those three
# files as one reads a map. First we say by a formula what should be there. Then we look, and say where the formula was
# wrong.
#
# | | |
# |---|---|
# | you know | the four kinds (notebooks 01 to 05), the body around them (notebook 06), medians, logarithmic axes |
# | you need | about 75 minutes, exercises apart; any laptop: no GPU, no network, one gigabyte of memory |
# | files | `attention_mechanisms/cost.py` and `benchmark.py`, `gpt_model/benchmark.py`, `utils/context_report.py` |
#
# | letter | meaning | unit |
# |---|---|---|
# | T | context: tokens of a text, the new one among them | tokens |
# | W | window: keys that a token of a sliding window sees | tokens |
# | U | users: texts that are written at the same time | texts |
# | P | numbers in the weights | numbers |
# | C(T) | numbers in the cache of one text of T tokens | numbers |
# | b | bytes of a number: 4 in float32, 2 in bfloat16 | bytes |
# | β | bandwidth: bytes that come from memory in a second | bytes/s |
# | t₀ | what a step takes that has nothing to do with bytes | s |
# | s | speedup: how many times as fast as multi-head, in the same turns | – |
# | a | share of a model's time that is spent in attention | – |
#
# The figures below come from files that a command writes anew. So the text says what to look for, and the code says
# what was found.

# %% [markdown]
# ## 1. By hand: who fits into 4,000 bytes?
#
# A toy first. A layer of width 8 with 2 heads, in each of the four kinds. b = 2 bytes a number. The weights are there
# once. Each text has a cache of its own.
#
# | kind | P by hand | C(T) by hand |
# |---|---|---|
# | multi-head | 4 · 8² + 4 · 8 = 288 | 2 · 8 · T |
# | grouped-query, one head of keys and values | 2 · 8² + 2 · 8 · 4 + 2 · 8 + 2 · 4 = 216 | 2 · 4 · T |
# | latent of 4 numbers | 8² + 8 · 4 + 2 · 4 · 8 + 8² + 4 + 8 + 8 = 244 | 4 · T |
# | window of 10 | as multi-head: 288 | 2 · 8 · min(T, 10) |
#
# The same from the modules. First the parameters, counted one by one, beside the formula.

# %%
import torch

from attention_mechanisms import (
    GroupedQueryAttention,
    MultiHeadAttention,
    MultiHeadLatentAttention,
    SlidingWindowAttention,
)

toys = {
    "multi-head": MultiHeadAttention(8, 2),
    "grouped-query, 1": GroupedQueryAttention(8, 2, 1),
    "latent, 4": MultiHeadLatentAttention(8, 2, d_latent=4),
    "window 10": SlidingWindowAttention(8, 2, window=10),
}

# %% [markdown]
# `cost(T)` is the formula that stands beside each module. Two columns, one counted, one calculated:

# %%
for name, layer in toys.items():
    counted = sum(parameter.numel() for parameter in layer.parameters())
    assert counted == layer.cost(25).parameters
    print(f"{name:17} P = {counted}, C(25) = {layer.cost(25).cache_numbers}")

# %% [markdown]
# Now the question. 4,000 bytes of memory, less the weights, divided by one text's cache:
#
# $$U = \left\lfloor\frac{M - b\,P}{b\,C(T)}\right\rfloor$$
#
# Multi-head with T = 25: (4000 - 576) / 800 is 4, and a rest.
#
# **Predict before you run (1).** With T = 25, which kind serves the most users? And with T = 100? Work out the four
# numbers by hand before you look.


# %%
def users_by_hand(memory, layer, context):
    cost = layer.cost(context)
    return (memory - 2 * cost.parameters) // (2 * cost.cache_numbers)


for context in (25, 100):
    print(f"T = {context:3}:", {name: users_by_hand(4000, layer, context) for name, layer in toys.items()})

# %% [markdown]
# The order changes. At 25 tokens the latents win, at 100 the window does. It stopped growing at 10. So there is no best
# kind. There is a best kind *for a context*. Where do the lines cross? Draw them from live caches, each made for T
# tokens and asked how many bytes it holds.

# %%
import matplotlib.pyplot as plt


def line(axes, x, y, number, **more):
    color, dashes = ("0.0", "0.55")[number // 4], ("-", "--", ":", "-.")[number % 4]
    look = {"color": color, "linestyle": dashes, "marker": "osD^v<x+"[number], "markersize": 5}
    axes.plot(x, y, **look | more)


# %% [markdown]
# Black and grey, solid and broken, each with a marker of its own: all figures of this notebook use these lines.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
lengths = list(range(5, 101, 5))
for number, (name, layer) in enumerate(toys.items()):
    held = [layer.make_cache(1, T).nbytes // 2 for T in lengths]  # live caches are float32: halved for 2 bytes
    assert held == [layer.cost(T).cache_bytes(2) for T in lengths]
    line(left, lengths, held, number, label=name)
    line(right, lengths, [users_by_hand(4000, layer, T) for T in lengths], number)
left.set(xlabel="context (tokens)", ylabel="cache of one text (bytes)", title="live caches, 2 bytes a number")
right.set(xlabel="context (tokens)", ylabel="users (texts)", yscale="log", title="who fits into 4,000 bytes")
left.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## 2. Three files
#
# The measurements lie in the repository as JSON: every run's seconds, with the machine and the versions. A row is one
# measurement of all kinds *by turns*. `utils/context_report.py` reads such rows, and makes the READMEs' tables of them.

# %%
import itertools

from utils.context_report import base_of, dtypes_of, growth, is_row, ratio, short, speed_table, where
from utils.files import read_json
from utils.tracking import REPOSITORY

layer_report = read_json(REPOSITORY / "attention_mechanisms/results/benchmark.json")
model_report = read_json(REPOSITORY / "gpt_model/results/benchmark.json")
quality = read_json(REPOSITORY / "gpt_model/results/quality.json")

# %% [markdown]
# On which machine? A figure without its machine is a rumour.

# %%
print("one layer:   ", where(layer_report))
print("whole models:", where(model_report))
print("formats:     ", dtypes_of(layer_report))
print("shape:       ", layer_report["shape"])

# %% [markdown]
# Two small helpers: the rows of a task, and the median of a kind in a row.

# %%
from utils.benchmarking import median

FORMAT = dtypes_of(layer_report)[0]


def rows_of(report, task, dtype=FORMAT):
    return [row for row in report["results"] if is_row(row, task, dtype)]


def seconds(row, name):
    return median(row["seconds"])[name]


# %% [markdown]
# And the layers themselves, in the shape in which they were measured, so that their formulas can be asked.

# %%
from attention_mechanisms import benchmark as one_layer

decode = rows_of(layer_report, "decode")
base, longest = base_of(decode), decode[-1]["context"]
W = layer_report["shape"]["window"]
torch.manual_seed(0)
layers = {name: make().eval() for name, make in one_layer.kinds(longest, W).items()}
print(list(layers))

# %% [markdown]
# *Latent, absorbed* is what the module does while it writes. *Latent, naive* makes all keys anew at each step. Section
# 6 needs it, the others leave it out.

# %%
KINDS = [name for name in layers if name != one_layer.NAIVE]

# %% [markdown]
# ## 3. The cache: measured beside the formula
#
# Bytes are the easy part, because nothing about them depends on the day. Each row holds what a live cache took.
#
# **Predict before you run (2).** Multi-head has d_model = 768 and keeps a key and a value a token: 1,536 numbers. The
# latent layer keeps 256 + 32. At the longest context, how many times smaller is the latent cache? And the window's?

# %%
from IPython.display import Markdown, display

from utils.context_report import cache_table

last_of = [rows_of(layer_report, "decode", dtype)[-1] for dtype in dtypes_of(layer_report)]
display(Markdown(cache_table(last_of)))

# %% [markdown]
# 1,536 / 288 is 5 and a third; the window is T / W times smaller. One row is no proof. Every kind, context and number
# format of both files, against a formula that is computed here:

# %%
agree = total = 0
for row in [row for row in layer_report["results"] if row["task"] == "decode"]:
    for name in KINDS:
        said = layers[name].cost(row["context"]).cache_bytes(4 if row["dtype"] == "float32" else 2)
        agree, total = agree + (said == row["cache_bytes"][name]), total + 1
assert agree == total
print(f"one layer: {agree} of {total} caches hold exactly what the formula says")

# %% [markdown]
# The whole models too. They are made without memory, on the device `meta`, and asked by `model.cache_bytes`.

# %%
from gpt_model import benchmark as whole_model

options = whole_model.Benchmark(window=W, n_layer=model_report["shape"]["n_layer"])
with torch.device("meta"):
    models = {name: make() for name, make in whole_model.kinds(options).items()}
decode_rows = [row for row in model_report["results"] if row["task"] == "decode"]
batch, agree = model_report["shape"]["batch_size"], 0
for row in decode_rows:
    b = 4 if row["dtype"] == "float32" else 2
    agree += all(batch * models[n].cache_bytes(row["context"], b) == held for n, held in row["cache_bytes"].items())
assert agree == len(decode_rows)
print(f"whole models: {agree} of {len(decode_rows)} rows hold exactly what the formula says")

# %% [markdown]
# Another number by hand, before we believe any of it. GPT-2's smallest has 50,257 tokens, 12 blocks, width 768. A block
# has 12 · 768² weights and 13 · 768 biases and norms. With rotary positions there is no table of positions.

# %%
by_hand = 50_257 * 768 + 12 * (12 * 768**2 + 13 * 768) + 2 * 768
print(f"by hand {by_hand:,}, counted {models['multi-head'].n_parameters:,}")
assert by_hand == models["multi-head"].n_parameters
assert {name: model.n_parameters for name, model in models.items()} == model_report["parameters"]

# %% [markdown]
# ## 4. One step of one layer, over the context
#
# Now time. One new token, the cache full: how long does the layer take?
#
# **Predict before you run (3).** One of the lines below is flat, or nearly so. Which one, and why? What will the others
# do when the context doubles, if nearly all of the time goes into reading the cache?

# %%
figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
contexts = [row["context"] for row in decode]
for number, name in enumerate(KINDS):
    line(axes, contexts, [seconds(row, name) * 1e3 for row in decode], number, label=name)
axes.set(xscale="log", yscale="log", xlabel="context (tokens)", ylabel="one step (ms)", title=f"one layer, {FORMAT}")
axes.set_xticks(contexts, [short(context) for context in contexts])
axes.minorticks_off()
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# The window reads W keys, however long the text. The same as a table, with the ratio to multi-head in brackets. The
# last column says how many times as long the last context takes as the one before: 2 for a kind that does nothing but
# read its cache, 1 for one that reads the same at any length.

# %%
display(Markdown(speed_table(decode, f"decode, {FORMAT}, ms", growth(decode))))

# %% [markdown]
# ## 5. Two numbers that predict the rest
#
# A step reads the layer's weights and the text's cache, once each. If reading is all that matters, its time is a line:
#
# $$t = t_0 + \frac{b\,(P + C(T))}{\beta}$$
#
# Fit the two unknowns on **multi-head's rows only**. Each row counts relative to its own time, so that the longest does
# not drown the others.

# %%
import numpy as np


def gigabytes(name, context, b=4):
    cost = layers[name].cost(context)
    return b * (cost.parameters + cost.cache_numbers) / 1e9


x = np.array([gigabytes(base, row["context"]) for row in decode])  # (rows,)
y = np.array([seconds(row, base) for row in decode])  # (rows,)
unknowns = np.stack([x, np.ones_like(x)], axis=1) / y[:, None]  # (rows, 2)
(slope, t0), *_ = np.linalg.lstsq(unknowns, np.ones_like(y), rcond=None)  # (rows, 2) @ (2,) = (rows,)
print(f"free fit:      bandwidth {1 / slope:5.1f} GB/s, t0 = {t0 * 1e3:5.2f} ms, from {len(y)} rows of {base}")

# %% [markdown]
# No time is below zero. A negative t₀ says that short caches came faster than long ones: out of the processor's own
# cache, perhaps, or in a quieter minute. Then the line goes through the origin, and β is the median of the rows.

# %%
if t0 < 0:
    slope, t0 = float(np.median(y / x)), 0.0  # (rows,) -> ()
print(f"what we take:  bandwidth {1 / slope:5.1f} GB/s, t0 = {t0 * 1e3:5.2f} ms")

# %% [markdown]
# Six other kinds have not been looked at. What do these two numbers say about them? Measured / predicted, at each
# context. 1.00 is a hit, 2.00 took twice as long as its bytes can explain.

# %%
departs = {}
for name in KINDS:
    departs[name] = [seconds(row, name) / (t0 + slope * gigabytes(name, row["context"])) for row in decode]
print(f"{'':21}", *(f"{short(context):>6}" for context in contexts))
for name, factors in departs.items():
    print(f"{name:21}", *(f"{factor:6.2f}" for factor in factors))

# %% [markdown]
# As a picture: on the diagonal, a prediction is right; above it, the kind takes longer than its bytes.

# %%
figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
for number, name in enumerate(KINDS):
    predicted = [(t0 + slope * gigabytes(name, T)) * 1e3 for T in contexts]
    line(axes, predicted, [seconds(row, name) * 1e3 for row in decode], number, linestyle="", label=name)
low, high = min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1])
low = max(low, 0.1)
axes.plot([low, high], [low, high], "-", color="0.7", linewidth=1, label="as predicted")
axes.set(xscale="log", yscale="log", xlabel="predicted from bytes (ms)", ylabel="measured (ms)")
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# Which kinds depart most? Of the middle of their contexts:

# %%
middle = {name: float(np.median(factors)) for name, factors in departs.items() if name != base}
for name, factor in sorted(middle.items(), key=lambda item: -abs(np.log(item[1]))):
    print(f"{name:21} {factor:5.2f} × what its bytes explain")

# %% [markdown]
# ### The other ceiling: arithmetic
#
# A number that was read must also be worked on. How often, the formulas say. A number of multi-head's cache meets one
# query: a multiplication and an addition, 2 FLOPs. With grouped queries it meets n_head / n_kv_head of them. An
# absorbed latent meets **all** heads, and twice, once as a key and once as a value: 4 · n_head. From `cost`:

# %%
for name in KINDS[:5]:
    shorter, longer = layers[name].cost(1024), layers[name].cost(2048)
    flops = longer.flops_per_token - shorter.flops_per_token
    print(f"{name:17} {flops / (longer.cache_numbers - shorter.cache_numbers):5.1f} FLOPs for each number of the cache")

# %% [markdown]
# So reading fewer bytes is not the same as doing less. How fast can this machine calculate? Take multi-head's prefill,
# which is nearly all arithmetic: the FLOPs of all its tokens, by the formula, over the time.


# %%
def prefill_flops(name, context, seen=lambda keys: keys):
    return sum(layers[name].cost(seen(keys)).flops_per_token for keys in range(1, context + 1))


prefill = rows_of(layer_report, "prefill")
reading = [row for row in prefill if base in row["seconds"]]
speeds = [prefill_flops(base, row["context"]) / seconds(row, base) for row in reading]
peak = max(speeds)
print("GFLOP/s in prefill:", {short(row["context"]): round(speed / 1e9) for row, speed in zip(reading, speeds)})

# %% [markdown]
# Two ceilings, one under the other. This is the *roofline* of Williams, Waterman and Patterson (2009): a step takes at
# least as long as the slower of reading and calculating. At the longest context:

# %%
row = decode[-1]
print(f"{short(longest):21} reading  arithmetic    sum  measured (ms)")
for name in KINDS:
    by_bytes = t0 + slope * gigabytes(name, longest)
    by_flops = layers[name].cost(longest).flops_per_token / peak
    both = f"{by_bytes * 1e3:7.2f} {by_flops * 1e3:11.2f} {(by_bytes + by_flops) * 1e3:6.2f}"
    print(f"{name:21} {both} {seconds(row, name) * 1e3:9.2f}")

# %% [markdown]
# If reading and calculating go on at the same time, a kind takes the larger of its two columns; if they take turns, the
# sum. Look at the line of the latents. Where its second column comes near to its first, or exceeds it, the latent layer
# is bound by arithmetic, and a smaller latent would help twice. The peak is that of large square products. One query
# over thousands of keys is a thin product, and need not reach it. So the second column is a floor, not a promise.
#
# **What did not work.** bfloat16 halves the bytes. If bytes were all, every time would halve. Float32's time over
# bfloat16's:

# %%
for dtype in dtypes_of(layer_report)[1:]:
    for name in KINDS[:6]:
        halves = [
            seconds(row, name) / seconds(other, name)
            for row, other in zip(decode, rows_of(layer_report, "decode", dtype))
        ]
        print(f"{name:21}", *(f"{half:5.2f}" for half in halves), f"  {FORMAT} / {dtype}")

# %% [markdown]
# Where 2.00 is missed, something other than bytes took the time. Below 1.00 the smaller format was even slower, which
# depends on whether the processor can calculate in it. A formula for bytes does not know that.

# %% [markdown]
# ## 6. Naive, then fast: keys that need never be made
#
# Latent attention could make the keys and values of all T tokens from their latents, at every step. That is what the
# formula of the paper says when it is read aloud. It costs 4 · d_latent · d_model FLOPs for each token kept.
# *Absorption* moves the matrix to the query, of which there is one.
#
# Do both compute the same? A live check first: the same weights, the same random cache of 1,024 tokens.

# %%
absorbed, naive = layers["latent, absorbed"], layers[one_layer.NAIVE]
naive.load_state_dict(absorbed.state_dict())
token = one_layer.random_text(1, "float32", torch.device("cpu"))  # (1, 1, d_model)
torch.manual_seed(0)
one, two = one_layer.full_cache(absorbed, 1024), one_layer.full_cache(naive, 1024)
two.buffers[0].copy_(one.buffers[0])  # (1, keys, d_latent + d_rope)
with torch.inference_mode():
    torch.testing.assert_close(naive(token, two), absorbed(token, one), rtol=1e-4, atol=1e-5)  # (1, 1, d_model)
print("naive = absorbed")

# %% [markdown]
# Equal. A step behind a cache, to be timed: the cache is told that it lacks one token, and the layer writes it.

# %%
from utils.benchmarking import time_by_turns


def step(layer, cache, x, context):
    cache.length = context - 1
    with torch.inference_mode():
        return layer(x, cache)


# %% [markdown]
# And how long does each take, here, on your machine?

# %% tags=["volatile"]
torch.set_num_threads(1)
pair = {"naive": lambda: step(naive, two, token, 1024), "absorbed": lambda: step(absorbed, one, token, 1024)}
time_by_turns(pair, 2)  # warms up
here = median(time_by_turns(pair, 7))
print({name: f"{t * 1e3:.2f} ms" for name, t in here.items()}, f"{here['naive'] / here['absorbed']:.1f} times")

# %% [markdown]
# The file has the same ratio at every context. Beside it the ratio of FLOPs, by the formulas.

# %%
L, D, H = (layer_report["shape"][key] for key in ("d_latent", "d_model", "n_head"))
for row in decode:
    T, cost = row["context"], absorbed.cost(row["context"])
    naively = cost.flops_per_token + 4 * L * D * T - 4 * T * H * L + 4 * T * D  # keys made; heads of 64, not of 256
    slower = seconds(row, one_layer.NAIVE) / seconds(row, "latent, absorbed")
    print(f"{short(T):>4}: {naively / cost.flops_per_token:5.1f} × the FLOPs, {slower:6.1f} × the time")

# %% [markdown]
# The ratio of FLOPs rises to a limit as T grows, because both grow with T. If the ratio of times goes on beyond that of
# FLOPs, the naive way pays for something else as well: it writes T keys and T values of all heads to memory, and reads
# them again.

# %% [markdown]
# ## 7. A bug in a benchmark
#
# You want to know how much faster a window is. You write what everyone writes first: call the layer ten times, divide
# by ten. Here it is, live, at 4,096 tokens, without the projections, which both have.

# %%
import statistics
from time import perf_counter


def seconds_in_a_row(run, times=10):
    run()  # warms up
    start = perf_counter()
    for _ in range(times):
        run()
    return (perf_counter() - start) / times


# %% [markdown]
# The two contestants, behind full caches. A third and a fourth stand ready; we shall need them.

# %%
WINDOW = f"window {W}"


def contestant(name, context):
    layer = layers[name]
    with torch.inference_mode():
        bare, cache = one_layer.without_projections(layer, token), one_layer.full_cache(layer, context)
    return lambda: step(bare, cache, token, context)


runs = {name: contestant(name, 4096) for name in (base, "grouped-query, 4", "latent, absorbed", WINDOW)}

# %% [markdown]
# **Predict before you run (4).** The window reads 512 keys of 4,096: an eighth of the bytes. So it can be at most 8
# times as fast, if bytes are what costs. What will the bad benchmark say, and what the one by turns, in which the other
# kinds run in between?

# %% tags=["volatile"]
wrong = {name: statistics.median(seconds_in_a_row(runs[name]) for _ in range(5)) for name in (base, WINDOW)}
right = median(time_by_turns(runs, 15))
print(f"ten in a row: {wrong[base] / wrong[WINDOW]:5.1f} times as fast")
print(f"by turns:     {right[base] / right[WINDOW]:5.1f} times as fast;  bytes allow {4096 / W:.0f}")

# %% [markdown]
# *Seen:* the same layer, the same data, two ratios. On a machine that is busy the two may lie close together, or change
# places; the file, which has more runs, says it again. `alone` is by turns, `in a row` is ten times each:

# %%
alone, in_a_row = rows_of(layer_report, "alone"), rows_of(layer_report, "in a row")
print("context  bytes allow  by turns  in a row")
for turn, row in zip(alone, in_a_row, strict=True):
    allowed = layers[base].cost(turn["context"]).cache_numbers / layers[WINDOW].cost(turn["context"]).cache_numbers
    two_ways = ratio(turn, WINDOW, base), ratio(row, WINDOW, base)
    print(f"{short(turn['context']):>7} {allowed:12.1f} {two_ways[0]:9.1f} {two_ways[1]:9.1f}")

# %% [markdown]
# *Diagnosed:* divide the bytes that a step reads by its time. Whatever comes from memory comes at the memory's speed.
# What comes faster was not in memory. It was still in the processor's own cache, from the call before.

# %%
window_bytes = layers[WINDOW].cost(longest).cache_bytes(4)
print(f"the window holds {window_bytes / 1e6:.1f} MB, {base} at {short(longest)}", end=" ")
print(f"{layers[base].cost(longest).cache_bytes(4) / 1e6:.0f} MB; the fit of section 5 says {1 / slope:.0f} GB/s")
for what, rows in (("by turns", alone), ("in a row", in_a_row)):
    for name in (base, WINDOW):
        speed = [layers[name].cost(row["context"]).cache_bytes(4) / seconds(row, name) / 1e9 for row in rows]
        print(f"{what}, {name:11} GB/s:", *(f"{value:6.1f}" for value in speed))

# %% [markdown]
# Drawn, the same numbers: a dashed line is ten in a row, a solid one by turns.

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for name, color in ((base, "0.55"), (WINDOW, "black")):
    for rows, dashes, way in ((alone, "-", "by turns"), (in_a_row, "--", "in a row")):
        speed = [layers[name].cost(row["context"]).cache_bytes(4) / seconds(row, name) / 1e9 for row in rows]
        axes.plot(contexts, speed, dashes, color=color, marker="o" if name == base else "s", label=f"{name}, {way}")
axes.axhline(1 / slope, color="black", linestyle=":", label="the fit of section 5")
axes.set(xscale="log", yscale="log", xlabel="context (tokens)", ylabel="cache read (GB/s)")
axes.set_xticks(contexts, [short(context) for context in contexts])
axes.minorticks_off()
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# How many times as fast did each kind's bytes come when it ran ten times in a row?

# %%
for name in (base, WINDOW):
    gain = np.median([seconds(turn, name) / seconds(row, name) for turn, row in zip(alone, in_a_row)])
    print(f"{name:11} in a row: {gain:.1f} times as fast as by turns (the middle of all contexts)")

# %% [markdown]
# *Mended:* `time_by_turns` runs every kind once, then again. Between two runs of the window the others have filled the
# processor's cache with their numbers. That is also how a layer lives inside a model: eleven other layers run before
# its next turn. All tables of this project are made so. "In a row" is no lie. It answers another question: how fast is
# this layer when nothing else runs?

# %% [markdown]
# ## 8. From a layer to a model
#
# A model has MLPs, and a matrix that compares with every token. No attention makes those faster. If a share a of the
# time goes into attention, and attention becomes s times as fast, then the whole becomes faster by (Amdahl 1967):
#
# $$r = \frac{1}{(1 - a) + a / s}$$
#
# With a = 1/2 and s = 3, that is 1 / (1/2 + 1/6) = 1.5. And with an s beyond all bounds: 2. Three hand-made numbers to
# hold on to.


# %%
def amdahl_by_hand(a, s):
    return 1 / ((1 - a) + a / s)


print(f"{amdahl_by_hand(0.5, 3):.2f}  {amdahl_by_hand(0.5, 1e9):.2f}  {amdahl_by_hand(1, 3):.2f}")

# %% [markdown]
# What is a, for multi-head? Two estimates that know nothing of each other. *By bytes*: attention's weights and caches,
# as a share of all that a step reads. *By time*: twelve layers of the first file, as a share of a step of the second.


# %%
def share_by_bytes(model, context):
    costs = [block.attn.cost(context) for block in model.transformer.blocks]
    cache = sum(cost.cache_numbers for cost in costs)
    return (sum(cost.parameters for cost in costs) + cache) / (model.n_parameters + cache)


def share_by_time(context):
    row = next(row for row in decode if row["context"] == context)
    whole = next(row for row in model_decode if row["context"] == context)
    return len(models[base].transformer.blocks) * seconds(row, base) / seconds(whole, base)


# %% [markdown]
# Both, at each context that both files have. A share above 1 is impossible. Where it stands, the two files were not
# measured on equally quiet machines, and the estimate by time is worth nothing there.

# %%
model_decode = rows_of(model_report, "decode")
shared = [row["context"] for row in model_decode if row["context"] in contexts]
for context in shared:
    by_time = share_by_time(context)
    remark = "  (more than the whole!)" if by_time > 1 else ""
    print(f"{short(context):>4}: by bytes {share_by_bytes(models[base], context):.2f}, by time {by_time:.2f}{remark}")

# %% [markdown]
# **Predict before you run (5).** At the shortest context, most of a step reads weights that no attention touches. How
# much can the best attention win there at the most? At the longest?
#
# The prediction: a by bytes, s from the file of single layers. The models' *1 in 4 global* has multi-head in a quarter
# of its blocks, so its s is that of the mixture: the time of a layer is a quarter of 1 and three quarters of 1 / s. One
# thing is in no prediction: the models turn queries and keys by their positions, the single layers (but for the latent
# one) do not.


# %%
def layer_speedup(name, context):
    row = next(row for row in decode if row["context"] == context)
    if name.endswith("global"):
        return 1 / (0.25 + 0.75 / ratio(row, WINDOW, base))
    return ratio(row, "latent, absorbed" if name == "latent" else name, base)


# %% [markdown]
# Predicted and measured, side by side:

# %%
print("predicted → measured")
whole = {row["context"]: row for row in model_decode}
for name in list(models)[1:]:
    predicted = [amdahl_by_hand(share_by_bytes(models[base], T), layer_speedup(name, T)) for T in shared]
    pairs = [f"{p:4.2f} → {ratio(whole[T], name, base):4.2f}" for p, T in zip(predicted, shared)]
    print(f"{name:25}", "  ".join(pairs))

# %% [markdown]
# The limit, 1 / (1 - a), is what an attention that costs nothing would reach. Nothing measured should lie above it by
# more than the noise.

# %%
figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
for number, name in enumerate(list(models)[1:]):
    predicted = [amdahl_by_hand(share_by_bytes(models[base], T), layer_speedup(name, T)) for T in shared]
    line(axes, shared, [ratio(whole[T], name, base) for T in shared], number, linestyle="-", label=name)
    line(axes, shared, predicted, number, linestyle="--", markerfacecolor="white", color="0.55")
limit = [1 / (1 - share_by_bytes(models[base], T)) for T in shared]
axes.plot(shared, limit, ":", color="black", label="limit 1 / (1 - a)")
axes.plot([], [], "--", color="0.55", label="grey, open: predicted")
axes.set(xscale="log", yscale="log", xlabel="context (tokens)", ylabel="times as fast as multi-head")
axes.set_xticks(shared, [short(context) for context in shared])
axes.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
axes.minorticks_off()
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# Whole models, in milliseconds:

# %%
display(Markdown(speed_table(model_decode, f"decode, whole model, {FORMAT}, ms", {})))

# %% [markdown]
# ## 9. Reading the prompt
#
# Before the first word, the prompt is read: T tokens in one pass. Here each weight is read once for all of them, and
# arithmetic counts. The projections cost the same for each token. The scores cost as many keys as a token sees:
#
# $$\text{FLOPs} \approx T\,(8\,d^2) + 4\,d\cdot\frac{T^2}{2}\quad\text{(multi-head)}\qquad
# T\,(8\,d^2) + 4\,d\,T\,W\quad\text{(window)}$$
#
# **Predict before you run (6).** Twice the context: how many times the FLOPs, with T far above d? For multi-head, for
# the window? And which kinds cannot help much here, whatever they save in the cache?


# %%
def kinds_reading(task, name):
    return [row for row in rows_of(layer_report, task) if name in row["seconds"]]


for name in (base, WINDOW):
    rows = kinds_reading("prefill", name)
    for before, after in itertools.pairwise(rows):
        flops = prefill_flops(name, after["context"]) / prefill_flops(name, before["context"])
        took = seconds(after, name) / seconds(before, name)
        step_up = f"{short(before['context'])} → {short(after['context'])}"
        print(f"{name:11} {step_up:>10}: {flops:.2f} × the FLOPs, {took:.2f} × the time")

# %% [markdown]
# (The window's first tokens see fewer than W keys; `cost` counts them as they are. The module computes a little more:
# its blocks of 128 queries read W + 127 keys.)
#
# In FLOPs the window grows by 2 with each doubling, and multi-head moves from 2 towards 4. Drawn, time over FLOPs from
# the formula:

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for number, name in enumerate((base, WINDOW)):
    rows = kinds_reading("prefill", name)
    T = [row["context"] for row in rows]
    line(axes, T, [seconds(row, name) for row in rows], number, linestyle="-", label=f"{name}, measured")
    by_formula = [prefill_flops(name, context) / peak for context in T]
    line(axes, T, by_formula, number, linestyle="--", color="0.55", mfc="white", label=f"{name}, FLOPs / peak")
axes.set(xscale="log", yscale="log", xlabel="context (tokens)", ylabel="prefill of one layer (s)")
ticks = [row["context"] for row in prefill]
axes.set_xticks(ticks, [short(context) for context in ticks])
axes.minorticks_off()
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# How much of it are the projections? Measured: what is left of *prefill* when *prefill alone* is taken away. By the
# formula: their share of the FLOPs.

# %%
bare = {row["context"]: row for row in rows_of(layer_report, "prefill alone")}
for name in (base, WINDOW):
    for row in kinds_reading("prefill", name):
        T = row["context"]
        if name in bare.get(T, {"seconds": {}})["seconds"]:
            measured = 1 - seconds(bare[T], name) / seconds(row, name)
            said = T * layers[name].cost(0).flops_per_token / prefill_flops(name, T)
            print(f"{name:11} {short(T):>4}: projections measured {measured:5.2f}, by FLOPs {said:.2f}")

# %% [markdown]
# A measured share below zero, or far from its formula, says that the two rows were timed in different minutes of a busy
# machine. Both are there for you to judge.
#
# All kinds, as a table. Grouped queries share keys, and so save projections and memory. They do not save one of the T²
# scores.

# %%
display(Markdown(speed_table(prefill, f"prefill of one layer, {FORMAT}, ms", growth(prefill))))

# %% [markdown]
# ## 10. Many users
#
# A server writes for many people at once. All of them share the weights, and each brings a cache. How many fit into 8
# GB in bfloat16? The formula is that of section 1, on the whole model.


# %%
def users_of(model, memory, context, b=2):
    return int((memory - b * model.n_parameters) // model.cache_bytes(context, b))


for context in (shared[0], shared[-1]):
    print(f"{short(context):>4}:", {name: users_of(model, 8e9, context) for name, model in models.items()})

# %% [markdown]
# Drawn for each context. Users who wait are users too: where a line is twice as high, one machine serves twice as many.

# %%
figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
for number, (name, model) in enumerate(models.items()):
    line(axes, shared, [users_of(model, 8e9, T) for T in shared], number, label=name)
axes.set(xscale="log", yscale="log", xlabel="context (tokens)", ylabel="texts that fit into 8 GB", title="bfloat16")
axes.set_xticks(shared, [short(context) for context in shared])
axes.minorticks_off()
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# This is a matter of bytes, which section 3 has confirmed. Is a machine with sixteen users sixteen times as slow? All
# of them are answered in one pass, and the weights are read once for all. The files have a batch of 1 only, so we
# measure it here: one multi-head layer, each text with 1,024 tokens in a cache of its own.
#
# (The caches are filled with random numbers first. Freshly made zeros may not be in memory yet at all, and would be
# read too fast.)


# %%
def crowd(users, context=1024):
    cache, x = layers[base].make_cache(users, context), token.expand(users, -1, -1)  # (users, 1, d_model)
    for buffer in cache.buffers:
        buffer.normal_()
    return lambda: step(layers[base], cache, x, context)


def bytes_of(users, context=1024):
    cost = layers[base].cost(context)
    return 4 * (cost.parameters + users * cost.cache_numbers)


# %% [markdown]
# **Predict before you run (7).** The layer has 2,362,368 weights, and a cache of 1,572,864 numbers for each user. For
# 16 users, how many times the bytes of 1 user does a step read? So how many times as long should it take?

# %% tags=["volatile"]
crowds = {users: crowd(users) for users in (1, 4, 16)}
time_by_turns(crowds, 2)  # warms up
took = median(time_by_turns(crowds, 9))
for users, t in took.items():
    more = f"{bytes_of(users) / bytes_of(1):4.1f} × the bytes, {t / took[1]:4.1f} × the time"
    print(f"{users:2} users: {more}, {users / t:6,.0f} tokens a second in all")

# %% [markdown]
# The more of a step is cache, the less there is to share. That is the second reason for small caches: not only do more
# users fit, the tenth costs less. For whole models, try `python gpt_model/benchmark.py --batch-size 8`.
#
# At which context does a single text's cache weigh as much as the model? C(T) = P. For kinds that grow by c numbers a
# token, that is T = P / c, and for a window with no global layer it is never.


# %%
def outweighs_at(model, far=1 << 20):
    start, end = model.cache_bytes(far), model.cache_bytes(2 * far)
    if end == start:
        return None
    c = (end - start) / far  # bytes a token, once windows are full
    return far + (2 * model.n_parameters - start) / c


for name, model in models.items():
    at = outweighs_at(model)
    print(f"{name:25}", "never" if at is None else f"{at:9,.0f} tokens")

# %% [markdown]
# ## 11. What do they learn?
#
# Speed is worth nothing if the text gets worse. `pretraining/compare_attention.py` trains each kind from nothing on the
# same books: the same tokens, equally many parameters, each with several seeds. First, are they equally large?

# %%
from_nothing = {result["name"]: result["runs"] for result in quality["from_nothing"]}
sizes = {name: runs[0]["parameters"] for name, runs in from_nothing.items()}
print({name: f"{size:,}" for name, size in sizes.items()})
print(f"largest / smallest: {max(sizes.values()) / min(sizes.values()):.4f}")
print("seeds of each:", [len(runs) for runs in from_nothing.values()])

# %% [markdown]
# Loss over bytes: left is cheap, down is good. A bar goes from the best seed to the worst.

# %%
losses = {name: [run["validation_loss"] for run in runs] for name, runs in from_nothing.items()}
token_bytes = {name: runs[0]["cache_bytes"] / runs[0]["context_length"] for name, runs in from_nothing.items()}
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
for number, (name, values) in enumerate(losses.items()):
    center = statistics.mean(values)
    bars = [[center - min(values)], [max(values) - center]]
    axes.errorbar(
        token_bytes[name], center, yerr=bars, fmt="osD^v"[number % 5], color="black", mfc="white", capsize=5, label=name
    )
axes.set(xlabel="cache (bytes a token, bfloat16)", ylabel="validation loss (nats a token)", xlim=(0, None))
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# Now the only question that counts here: **is a difference between two kinds larger than that between two seeds of one
# kind?** The rule, said before we look: a difference counts if the two ranges of seeds do not overlap, *and* the means
# are further apart than the widest range of any kind.

# %%
widest = max(max(values) - min(values) for values in losses.values())


def differs(a, b):
    apart = min(losses[a]) > max(losses[b]) or max(losses[a]) < min(losses[b])
    return apart and abs(statistics.mean(losses[a]) - statistics.mean(losses[b])) > widest


print(f"the widest range between seeds: {widest:.3f} nats")

# %% [markdown]
# Every pair, judged by that rule:

# %%
for a, b in itertools.combinations(losses, 2):
    difference = statistics.mean(losses[a]) - statistics.mean(losses[b])
    print(f"{difference:+.3f}  {'counts' if differs(a, b) else '  –   '}  {a} – {b}")

# %% [markdown]
# Where a dash stands, this comparison cannot tell the two apart. That is not the same as *they are equal*: small
# models, short contexts, few seeds. A handful of seeds gives a poor idea of a range. More would be better, and take
# longer.

# %% [markdown]
# ### A test that the books do not make
#
# Books are kind to windows: what matters for the next word is mostly near. Here is a text that is not. Twelve letters
# out of 8, at random; after the last one, the *first* is asked for. One layer with a window of 4 sees the last four
# letters, and the first is eleven places back.

# %%
import math

import torch.nn.functional as F

from gpt_model import GPT, GPTWithGQA, GPTWithMLA, GPTWithSWA

shape = {"vocab_size": 8, "context_length": 12, "n_layer": 1, "n_head": 2, "d_model": 32, "positions": "learned"}
tiny = {
    "multi-head": (GPT, {}),
    "grouped-query, 1": (GPTWithGQA, {"n_kv_head": 1}),
    "latent, 8": (GPTWithMLA, {"d_latent": 8}),
    "window 4": (GPTWithSWA, {"window": 4}),
}


def recall_loss(model, ids):
    logits = model(ids)[:, -1]  # (batch, tokens, vocab_size) -> (batch, vocab_size)
    return F.cross_entropy(logits, ids[:, 0])


# %% [markdown]
# **Predict before you run (8).** What is the loss before any training? And which kinds get one single batch of 32 by
# heart? Which learn the task, when every batch is new?


# %%
def train(kind, steps, fresh):
    torch.manual_seed(0)
    model_class, more = tiny[kind]
    model = model_class(model_class.config_class(**shape, **more))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids, curve = torch.randint(8, (32, 12)), []
    for _ in range(steps):
        loss = recall_loss(model, torch.randint(8, (64, 12)) if fresh else ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


# %% [markdown]
# Both ways for each kind. *By heart* and *learned* are said where the last ten losses have a mean below 0.5.

# %%
by_heart = {kind: train(kind, 150, fresh=False) for kind in tiny}
learned = {kind: train(kind, 250, fresh=True) for kind in tiny}
print(f"ln 8 = {math.log(8):.1f}; at the beginning:", {kind: round(curve[0], 1) for kind, curve in learned.items()})
for kind in tiny:
    ends = [statistics.mean(curves[kind][-10:]) < 0.5 for curves in (by_heart, learned)]
    print(f"{kind:17} one batch by heart: {ends[0]!s:5}  learned: {ends[1]}")

# %% [markdown]
# All of them begin at ln 8, as those do who know nothing. All of them learn one batch by heart, the window too: the
# last four letters are enough to tell 32 texts apart. So that test says that the wiring is right, and nothing about how
# far a model sees. With new texts, the window stays where it began. Longer training would not help: what is asked for
# never reaches it.

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for number, (kind, curve) in enumerate(learned.items()):
    line(axes, range(0, 120, 4), curve[:120:4], number, label=kind)
axes.axhline(math.log(8), color="0.7", linewidth=1, label="ln 8")
axes.set(xlabel="step (number)", ylabel="loss (nats)", title="which letter came first?")
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## 12. Converting what is trained
#
# You need not begin at nothing. `convert.py` turns a trained multi-head model into each kind. It loses something, and a
# short run heals it. How large should the learning rate of that run be?
#
# **Predict before you run (9).** One kind has lost much by its conversion, another little. Which of them needs the
# large rate? What does a large rate do to the other?

# %%
before = {result["name"]: result["before"]["validation_loss"] for result in quality["converted"]}
healed = {
    result["name"]: {run["rate"]: run["validation_loss"] for run in result["runs"]} for result in quality["converted"]
}
was = quality["base"]["validation_loss"]
for name, by_rate in healed.items():
    print(f"{name:25} as converted {before[name] - was:+.3f};", end=" ")
    print(", ".join(f"healed at {rate:g}: {loss - was:+.3f}" for rate, loss in by_rate.items()))

# %% [markdown]
# (Each figure is the distance to the multi-head model as it was.) The same, drawn. On the left the loss as converted,
# then by rate, from small to large.

# %%
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
rates = sorted(next(iter(healed.values())))
for number, (name, by_rate) in enumerate(healed.items()):
    line(axes, range(len(rates) + 1), [before[name], *(by_rate[rate] for rate in rates)], number, label=name)
axes.axhline(was, color="0.7", linewidth=1, label="multi-head, as it was")
axes.set_xticks(range(len(rates) + 1), ["as converted", *(f"{rate:g}" for rate in rates)])
axes.set(xlabel="learning rate of the healing run (Muon's)", ylabel="validation loss (nats a token)")
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# In words, by two rules: which rate was the best for each kind, and which rates made it *worse* than it was as
# converted?

# %%
for name in sorted(before, key=before.get):
    best = min(healed[name], key=healed[name].get)
    harmful = [f"{rate:g}" for rate, loss in healed[name].items() if loss > before[name]]
    print(f"{name:25} lost {before[name] - was:.2f}; best rate {best:g}; made worse by {', '.join(harmful) or 'none'}")

# %% [markdown]
# Read the last two columns against the first. Does the kind that lost least want the smallest rate? A rate that suits a
# beginning is a large step, and a model that is nearly there has nowhere to go with it. If *none* stands everywhere,
# the rates tried were all small enough. It is one run each: no seeds were compared here, so hundredths mean nothing.

# %% [markdown]
# ## 13. On your own machine
#
# The tables are of another machine. Yours has its own bandwidth. A small measurement, but the rules stay: nothing is
# timed that is not right. The oracle is PyTorch's own module, with our weights.

# %%
ours, theirs = layers[base], torch.nn.MultiheadAttention(768, 12, batch_first=True).eval()
with torch.no_grad():
    theirs.in_proj_weight.copy_(ours.c_attn.weight)  # (3 d_model, d_model) both
    theirs.in_proj_bias.copy_(ours.c_attn.bias)
    theirs.out_proj.load_state_dict(ours.c_proj.state_dict())
    x = one_layer.random_text(40, "float32", torch.device("cpu"))  # (1, 40, d_model)
    hidden = torch.ones(40, 40, dtype=torch.bool).triu(1)  # (40, 40), True where one may not look
    torch.testing.assert_close(ours(x), theirs(x, x, x, attn_mask=hidden, need_weights=False)[0], rtol=1e-4, atol=1e-5)
print("multi-head = torch.nn.MultiheadAttention")

# %% [markdown]
# The others are held to their own plain formula, by the same function that the benchmark calls before it measures: a
# whole pass, and a step behind a cache.

# %%
for name in KINDS:
    one_layer.require_correct(name, layers[name], W + 40, "float32", torch.device("cpu"))
print(len(KINDS), "kinds compute what their formula says")

# %% [markdown]
# A layer of each kind, by turns, at two contexts. Seconds, not minutes, so the medians are of few runs.

# %% tags=["volatile"]
from functools import partial

mine = {}
for context in (1024, 4096):
    caches = {name: one_layer.full_cache(layers[name], context) for name in KINDS}
    steps = {name: partial(step, layers[name], caches[name], token, context) for name in KINDS}
    time_by_turns(steps, 3)  # warms up
    mine[context] = median(time_by_turns(steps, 25))
for name in KINDS:
    print(f"{name:21}", *(f"{short(T)}: {mine[T][name] * 1e3:6.2f} ms" for T in mine))

# %% [markdown]
# Milliseconds of two machines cannot be compared. Ratios can: how many times as fast as multi-head, here and in the
# file?

# %% tags=["volatile"]
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
row = next(row for row in decode if row["context"] == 4096)
places = np.arange(len(KINDS))
axes.bar(places - 0.2, [ratio(row, name, base) for name in KINDS], 0.38, color="0.8", edgecolor="black", label="file")
here = [mine[4096][base] / mine[4096][name] for name in KINDS]
axes.bar(places + 0.2, here, 0.38, color="0.4", hatch="//", edgecolor="black", label="here, now")
axes.axhline(1, color="black", linewidth=0.8)
axes.set_xticks(places, [name.replace(", ", ",\n").replace(" 512", "\n512") for name in KINDS], fontsize=8)
axes.set(ylabel="times as fast as multi-head", title="one step of one layer at 4k")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# Where the two bars differ much, ask which ceiling of section 5 is lower on your machine.

# %% [markdown]
# ## 14. Which one when
#
# The table that this notebook is named after. No cell of it is typed. The rules:
#
# - **pays from**: the smallest context from which on, at all measured ones, the whole model's step is 1.2 times as fast
#   as multi-head's
# - **at the longest**: how many times as fast there
# - **prompt**: the whole model's prefill against multi-head's at the longest prompt measured
# - **bytes a token**: of the cache of the whole model in bfloat16, at the longest context
# - **outweighs**: the context at which one text's cache weighs as much as the model
# - **loss**: against multi-head with rotary positions, trained from nothing, and whether that counts by section 11's
#   rule


# %%
def pays_from(name, least=1.2):
    pays = None
    for row in reversed(model_decode):
        if (ratio(row, name, base) or 0) < least:
            break
        pays = row["context"]
    return "–" if pays is None else short(pays)


def loss_cell(name, reference="multi-head, rope"):
    families = ("multi-head, rope", "grouped-query", "latent", "sliding window")
    family = next(f for f in families if f.split(",")[0].split()[-1] in name)
    trained = next(n for n in losses if n.startswith(family))
    if trained == reference:
        return "0"
    difference = statistics.mean(losses[trained]) - statistics.mean(losses[reference])
    return f"{difference:+.3f}{'' if differs(trained, reference) else ' (within seeds)'}"


# %% [markdown]
# The row of one kind, from those rules and the functions above:

# %%
from utils.readme_tables import markdown_table

model_prefill = rows_of(model_report, "prefill")


def row_of(name):
    at, prompt = outweighs_at(models[name]), ratio(model_prefill[-1], name, base)
    return [
        name,
        "" if name == base else pays_from(name),
        f"{ratio(model_decode[-1], name, base):.2f}×",
        "–" if prompt is None else f"{prompt:.2f}×",
        f"{models[name].cache_bytes(longest) / longest:,.0f}",
        "never" if at is None else f"{at:,.0f}",
        loss_cell(name),
    ]


# %% [markdown]
# And here it is.

# %%
header = [
    "kind",
    "pays from",
    f"at {short(model_decode[-1]['context'])}",
    f"prompt of {short(model_prefill[-1]['context'])}",
    "bytes a token",
    "outweighs the weights at",
    "loss",
]
print(table := markdown_table(header, map(row_of, models), "lrrrrrr"))

# %% [markdown]
# The same as a page shows it:

# %%
display(Markdown(table))

# %% [markdown]
# The losses come from smaller models with other settings (one head of keys and values, a window of 32): see section 11.
# The last column says whether a *family* learns, not what this very model would lose. And by section 11's second test,
# a window without global layers cannot recall what has left its reach, whatever the books say.
#
# The opening question, as a function. Who fits, and who is fastest among those?


# %%
def which(memory, context, users):
    row = min(model_decode, key=lambda row: abs(row["context"] - context))
    fitting = [name for name in models if users_of(models[name], memory, context) >= users]
    return sorted(fitting, key=lambda name: seconds(row, name))


# %% [markdown]
# Three people come to you: one with a laptop and a short text, one with a server and long ones, one who asks too much.

# %%
for memory, context, users in ((2e9, 1024, 1), (24e9, 16_384, 100), (24e9, 32_768, 5_000)):
    names = which(memory, context, users)
    print(f"{memory / 1e9:.0f} GB, {short(context)}, U = {users:,}: {', then '.join(names) or 'nobody fits'}")

# %% [markdown]
# The function knows nothing of what must be recalled. You do. If the answer may stand anywhere in the text, strike out
# the plain window before you ask.

# %% [markdown]
# ## 15. Exercises
#
# Write the body in place of the dots and run the cell. The check says what is missing.

# %%
from gpt_model.exercises.ex07 import (
    check_choose,
    check_context_that_pays,
    check_predict_seconds,
    check_users_that_fit,
    check_whole_speedup,
)
from utils.exercises import attempt

# %% [markdown]
# **A. How many users?** (easy, 5 minutes) How many texts of `context` tokens fit into `memory` bytes beside `weights`
# bytes? Each token keeps `bytes_per_token`. With a `window`, a text keeps no more than so many tokens; None is no
# window. If not even the weights fit, nobody does.


# %%
def users_that_fit(memory, weights, context, bytes_per_token, window=None): ...


attempt(check_users_that_fit, users_that_fit)

# %% [markdown]
# **B. Amdahl** (easy, 5 minutes) A share of the time goes into attention. It becomes `speedup` times as fast. How many
# times as fast is the whole?


# %%
def whole_speedup(share, speedup): ...


attempt(check_whole_speedup, whole_speedup)

# %% [markdown]
# **C. A decoding time from bytes** (medium, 10 minutes) One step for `users` texts side by side, in seconds: the bytes
# that it reads over `bandwidth` (bytes a second), and `fixed` seconds on top. Who shares what?


# %%
def predict_seconds(weight_bytes, cache_bytes, users, bandwidth, fixed): ...


attempt(check_predict_seconds, predict_seconds)

# %% [markdown]
# **D. From where does it pay?** (medium, 15 minutes) `rows` are rows of a benchmark, in any order: `row["context"]` and
# `row["seconds"]`, which is name -> the seconds of each run. Return the smallest context from which on `name` is at
# least `least` times as fast as `base`, by medians, there and at every longer context measured. None if there is none.


# %%
def context_that_pays(rows, name, base, least): ...


attempt(check_context_that_pays, context_that_pays)

# %% [markdown]
# **E. Two bounds at once** (hard, 20 minutes) `kinds` is name -> (weight bytes, cache bytes of one text, loss). Of the
# kinds that fit into `memory` with `users` texts, take those whose loss is at most `margin` above the best loss *among
# those that fit*. Return the name of the one that takes the fewest bytes in all; None if no kind fits.


# %%
def choose(kinds, memory, users, margin): ...


attempt(check_choose, choose)

# %% [markdown]
# ### Solutions
#
# <details><summary>Solution: `users_that_fit`</summary>
#
# ```python
# def users_that_fit(memory, weights, context, bytes_per_token, window=None):
#     kept = context if window is None else min(context, window)
#     return max(0, int((memory - weights) // (kept * bytes_per_token)))
# ```
# </details>
#
# <details><summary>Solution: `whole_speedup`</summary>
#
# ```python
# def whole_speedup(share, speedup):
#     return 1 / ((1 - share) + share / speedup)
# ```
# </details>
#
# <details><summary>Solution: `predict_seconds`</summary>
#
# ```python
# def predict_seconds(weight_bytes, cache_bytes, users, bandwidth, fixed):
#     return (weight_bytes + users * cache_bytes) / bandwidth + fixed  # the weights are read once for all
# ```
# </details>
#
# <details><summary>Solution: `context_that_pays`</summary>
#
# ```python
# import statistics
#
#
# def context_that_pays(rows, name, base, least):
#     pays = None
#     for row in sorted(rows, key=lambda row: row["context"], reverse=True):
#         middle = {kind: statistics.median(runs) for kind, runs in row["seconds"].items()}
#         if middle[base] / middle[name] < least:
#             break
#         pays = row["context"]
#     return pays
# ```
# </details>
#
# <details><summary>Solution: `choose`</summary>
#
# ```python
# def choose(kinds, memory, users, margin):
#     taken = {name: weights + users * cache for name, (weights, cache, _) in kinds.items()}
#     fitting = [name for name in kinds if taken[name] <= memory]
#     if not fitting:
#         return None
#     best = min(kinds[name][2] for name in fitting)
#     good = [name for name in fitting if kinds[name][2] <= best + margin]
#     return min(good, key=lambda name: taken[name])
# ```
# </details>

# %% [markdown]
# ## 16. What you take along
#
# **Recap**
#
# - Memory is arithmetic: b · P once, b · C(T) for every text. The formula was met by every live cache.
# - A step of one layer is first of all reading: t₀ + bytes / β. Fit it on one kind, and let the others say how far it
#   holds.
# - What departs from that line does something else: an absorbed latent works on each number 4 · n_head FLOPs long.
# - Bytes saved and FLOPs saved are two things. Naive latents have the same cache, and another time.
# - A layer's speedup is not a model's. Amdahl's limit, 1 / (1 - a), stands before any measurement.
# - Prompts are arithmetic: T² or T · W. Sharing keys does not take away a single score.
# - A difference counts when it is larger than that between seeds. Say the rule before you look.
#
# **Pitfalls**, each seen above: one kind ten times in a row (its cache stays warm); milliseconds of two machines or two
# minutes compared; half the bytes taken for half the time; a layer's ratio promised to users; one batch learned by
# heart taken for a skill; a loss on books taken for the power to recall; a healing rate that fits a beginning.
#
# ### Reading guide
#
# Everything here rests on three small functions. First the formula beside the module, for multi-head. Its last line is
# C(T), and section 1's table by hand was asserted to equal it:

# %%
import inspect

print(inspect.getsource(MultiHeadAttention.cost))

# %% [markdown]
# Then the cure of section 7, turns instead of rows:

# %%
print(inspect.getsource(time_by_turns))

# %% [markdown]
# And the ratio that all tables show. That our median is the module's, and the ratio that of section 2's helper:

# %%
print(inspect.getsource(ratio))
for row in decode:
    assert ratio(row, WINDOW, base) == seconds(row, base) / seconds(row, WINDOW)

# %% [markdown]
# `model.cache_bytes` adds up `cost` over the blocks. The users of section 10, by a loop over blocks:

# %%
model = models[f"window {W}, 1 in 4 global"]
by_block = [2 * block.attn.cost(longest).cache_numbers for block in model.transformer.blocks]
assert sum(by_block) == model.cache_bytes(longest)
print([size // 1024 for size in by_block], "KiB, block by block")

# %% [markdown]
# In `attention_mechanisms/benchmark.py`, read `without_projections` and `measure_decode`; in `gpt_model/benchmark.py`,
# `size_table`; in `pretraining/compare_attention.py`, `equally_large`.
#
# **CUDA, Apple's MPS, Windows.** The line above section 2's output says where the tables were made. Other devices were
# not run here. The formulas for bytes and FLOPs hold on any of them; β, t₀ and the peak do not, so the ratios will
# differ. On CUDA and on Apple's MPS a call returns before the work is done: `as_many_turns` waits with
# `torch.cuda.synchronize` or `torch.mps.synchronize`, and a loop of your own must too, or it times nothing. Peaks of a
# prefill's memory are measured on CUDA and on Linux; elsewhere the benchmark leaves that column out.
#
# **Sources.** Williams, Waterman, Patterson 2009, *Roofline* · Amdahl 1967, *Validity of the single processor approach
# to achieving large scale computing capabilities* · DeepSeek-AI 2024, *DeepSeek-V2*, section 2.1 (absorption).
#
# **The next question.** You can choose a body now, and say what it costs. Its weights are still random. Somebody else's
# are not: they were published, as a file of numbers. What does it take for our model to speak with them? Notebook 08,
# *the published weights*, begins there.
