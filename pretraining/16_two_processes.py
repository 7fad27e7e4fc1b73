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
# # Two processes
#
# **Two processes have a model each, and half of a batch each. What must they tell each other so that both end where one
# process with the whole batch would be?**
#
# The answer is short: the sum of their gradients. Around it are three questions that this notebook works out. What is
# divided by what? How do many processes add up millions of numbers without a queue? And does everyone need to keep
# everything? First with integers in one process, then with two real processes on your machine.
#
# | | |
# |---|---|
# | you know | the training step and accumulation (this chapter), what memory holds (notebook 15) |
# | you need | about 75 minutes, exercises apart; any laptop: no GPU, no network, one gigabyte of memory |
# | files | `distributed.py` and `training_loop.py` of this folder |
#
# | letter | meaning |
# |---|---|
# | R, r | ranks: processes that train together; one of them, from 0 |
# | N | numbers in a gradient: parameters |
# | n_r | targets of rank r |
# | g_r | the *sum* of the gradients of rank r's targets |
# | k | parts of a step, whose gradients are accumulated |

# %% [markdown]
# What we need is on your machine already.

# %%
import inspect
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from gpt_model import GPT, GPTConfig
from utils.tracking import REPOSITORY

torch.set_num_threads(1)  # our tensors are tiny, and threads on a busy machine wait for each other

# %% [markdown]
# ## 1. Two workers, by hand
#
# One weight. Worker 0 has three targets, whose gradients are 6, 0 and 3. Worker 1 has one, with gradient 1. One process
# with all four takes their mean: (6 + 0 + 3 + 1) / 4 = 2.5.
#
# Each worker on its own takes the mean of what it has: 9 / 3 = 3 and 1 / 1 = 1.
#
# **Predict before you run (1).** They average their means. Is that 2.5?

# %%
gradients = [[6, 0, 3], [1]]
joined = sum(map(sum, gradients)) / sum(map(len, gradients))
mean_of_means = sum(sum(some) / len(some) for some in gradients) / 2
print("joined:", joined, " mean of means:", mean_of_means)

# %% [markdown]
# 2, and not 2.5. The lonely target of worker 1 counts as much as three others. **Mended:** exchange *sums*, and
# divide by the number of all targets, which must be exchanged, too. Libraries average over the ranks and do not add
# up. So each rank multiplies its sum by R / (all targets) beforehand:

# %%
total = sum(map(len, gradients))
scaled = [sum(some) * 2 / total for some in gradients]
print("each:", scaled, " their average:", sum(scaled) / 2)
assert sum(scaled) / 2 == joined

# %% [markdown]
# ### The same bug in a model
#
# Unequal numbers are no rarity: padding, prompts that are not learned from, the last batch. A tiny GPT over 64 tokens.
# By hand it has (64 + 16) · 32 + 2 · (12 · 32² + 13 · 32) + 2 · 32 parameters.

# %%
SHAPE = {"vocab_size": 64, "context_length": 16, "n_layer": 2, "n_head": 2, "d_model": 32}
torch.manual_seed(0)
model = GPT(GPTConfig(**SHAPE))
N = (64 + 16) * 32 + 2 * (12 * 32**2 + 13 * 32) + 2 * 32
assert model.n_parameters == N
ids = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(1))  # (windows, tokens + 1)
inputs, targets = ids[:, :-1], ids[:, 1:].clone()  # (4, 16) each
print(f"{N:,} parameters, a batch of {targets.numel()} targets")


# %% [markdown]
# `IGNORE` marks a target that is not asked for. A sum, so that nobody divides too early, and its gradient as one
# vector:

# %%
from working_with_text_data.token_shards import IGNORE


def loss_sum(model, inputs, targets):
    logits = model(inputs).flatten(0, 1)  # (windows · tokens, V)
    return F.cross_entropy(logits, targets.flatten(), reduction="sum", ignore_index=IGNORE)


def gradient(model, inputs, targets):
    """The gradient of the sum, as one vector (N,)."""
    model.zero_grad()
    loss_sum(model, inputs, targets).backward()
    return torch.cat([w.grad.flatten() for w in model.parameters()])


# %% [markdown]
# Sanity: at the start the loss is about ln 64 a target.

# %%
at_start = loss_sum(model, inputs, targets).item() / targets.numel()
assert abs(at_start - math.log(64)) < 0.1
print(f"ln 64 = {math.log(64):.1f} nats, and the model has {at_start:.1f}")

# %% [markdown]
# Rank 0 has the first two windows, rank 1 the others. We take away more and more of rank 1's 32 targets, and look how
# far the mean of means is from the joined gradient.


# %%
def errors(left):
    some = targets.clone()
    some[2:].view(-1)[left:] = IGNORE  # rank 1 keeps `left` of its targets
    first, second = gradient(model, inputs[:2], some[:2]), gradient(model, inputs[2:], some[2:])
    joined = gradient(model, inputs, some) / (32 + left)
    wrong, right = (first / 32 + second / left) / 2, (first + second) / (32 + left)
    return [float((g - joined).norm() / joined.norm()) for g in (wrong, right)]


lefts = (32, 24, 16, 8, 4, 2, 1)
wrong, right = zip(*map(errors, lefts))
assert wrong[0] < 1e-5 and max(right) < 1e-5 and wrong[-1] > 0.5
print("wrong by more than half of its length, with 32 targets against 1:", wrong[-1] > 0.5)

# %% [markdown]
# The picture says why the bug lives long: with equal numbers there is nothing to see.

# %%
figure, axes = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
axes.plot(lefts, wrong, "s-", color="black", label="mean of means")
axes.plot(lefts, right, "o:", color="black", markerfacecolor="white", label="sum / all targets")
axes.set(xlabel="targets of rank 1 (rank 0 has 32)", ylabel="error / length of gradient")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## 2. A ring
#
# How do R ranks get the sum of R vectors? Naively each sends all it has to everyone: (R - 1) · N numbers sent by each.
# Better: cut the vector into R pieces and sit in a circle.
#
# 1. *Reduce-scatter*, R - 1 steps. Each passes one piece to its right neighbour, who adds its own. Then each rank has
#    the whole sum of one piece.
# 2. *All-gather*, R - 1 steps. The finished pieces go round the same way.
#
# In step t of the first part, rank r sends piece r - t: the one that it has just added to. In the second it sends piece
# r + 1 - t. All indices are modulo R.


# %%
def ring_all_reduce(vectors):
    """Pieces of each rank after each step, and how many numbers each rank has sent."""
    R = len(vectors)
    states, sent = [[list(v) for v in vectors]], [0] * R
    for t in range(2 * (R - 1)):
        adds = t < R - 1
        now = [list(v) for v in states[-1]]
        for r in range(R):
            piece = (r - t if adds else r + 1 - (t - R + 1)) % R
            received = states[-1][r][piece]  # what r had before this step: all send at once
            now[(r + 1) % R][piece] = received + now[(r + 1) % R][piece] if adds else received
            sent[r] += 1
        states.append(now)
    return states, sent


# %% [markdown]
# **Predict before you run (2).** Three ranks have (1, 2, 3), (10, 20, 30) and (100, 200, 300). Which pieces are whole
# after two steps, and where?

# %%
states, sent = ring_all_reduce([(1, 2, 3), (10, 20, 30), (100, 200, 300)])
for step, state in enumerate(states):
    print(step, "  ".join(f"{row!s:16}" for row in state))
assert states[-1] == [[111, 222, 333]] * 3

# %% [markdown]
# After step 2 rank 0 has 222, rank 1 has 333, rank 2 has 111. The rest is passing on. How many numbers did each rank
# send? 2 (R - 1) pieces of N / R numbers:
#
# $$2\,\frac{R-1}{R}\,N$$
#
# Counted for several R, with one number a piece, so that N = R:

# %%
for R in (2, 3, 4, 8):
    states, sent = ring_all_reduce([[r * 100 + i for i in range(R)] for r in range(R)])
    assert all(row == [sum(r * 100 + i for r in range(R)) for i in range(R)] for row in states[-1])
    assert set(sent) == {2 * (R - 1) * R / R}
    print(f"R = {R}: formula 2 · {R - 1} / {R} · N = {2 * (R - 1)} numbers, counted {sent[0]}; naive {(R - 1) * R}")

# %% [markdown]
# However many ranks there are, nobody sends more than 2 N. The naive way is R / 2 times as much. How the sum grows,
# with 8 ranks: each square is a piece of a rank, the darker the more ranks have been added into it.

# %%
R = 8
states, _ = ring_all_reduce([[1] * R for _ in range(R)])  # with ones a sum counts its ranks
figure, grid = plt.subplots(1, 5, figsize=(8, 2), sharey=True, layout="constrained")
for axes, step in zip(grid, (0, 3, 7, 10, 14)):
    axes.imshow(states[step], cmap="Greys", vmin=0, vmax=R, origin="lower")
    axes.set(title=f"after step {step}", xlabel="piece", xticks=range(0, R, 2))
grid[0].set_ylabel("rank")
plt.show()

# %% [markdown]
# And what a rank sends for GPT-2's 124 million gradients of 4 bytes, by formula:

# %%
ranks, gradient_bytes = range(2, 33), 4 * 124_439_808
figure, axes = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
axes.plot(ranks, [(R - 1) * gradient_bytes / 1e9 for R in ranks], "--", color="black", label="all to all")
axes.plot(ranks, [2 * (R - 1) / R * gradient_bytes / 1e9 for R in ranks], "-", color="black", label="ring")
axes.set(xlabel="ranks R", ylabel="sent by a rank (GB a step)", yscale="log")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## 3. Two real processes
#
# A process is a program of its own, with memory of its own. We write a small script into a temporary folder and start
# it twice. Its beginning is always the same: who am I, and where do we meet? Here they meet in a file
# (`FileStore`), which works on every system. *gloo* is the library that carries numbers between processes on CPUs.

# %%
BEGIN = """
import sys
from datetime import timedelta
from pathlib import Path
import torch
import torch.distributed as dist

torch.set_num_threads(1)
rank, folder, wait = int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
store = dist.FileStore(str(folder / "meeting"), 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=wait))
"""
END = """
torch.save(result, folder / f"rank{rank}.pt")
dist.destroy_process_group()
"""

# %% [markdown]
# The other side starts both and waits for both. Each leaves its `result` in a file.


# %%
def start_two(body, folder, wait):
    script = Path(folder) / "script.py"
    script.write_text(BEGIN + body + END, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(script)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    return [subprocess.Popen([*command, str(rank), str(folder), str(wait)], **pipes) for rank in (0, 1)]


def on_two_ranks(body):
    """[result of rank 0, result of rank 1] of a script."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        processes = start_two(body, folder, wait=120)
        said = [process.communicate(timeout=240)[1] for process in processes]
        assert not any(process.returncode for process in processes), said
        return [torch.load(Path(folder) / f"rank{rank}.pt") for rank in (0, 1)]


# %% [markdown]
# **Predict before you run (3).** Each rank makes a tensor with rank + 1 in it, and calls `all_reduce`. What do the two
# have then?

# %%
print(
    on_two_ranks("""
result = torch.tensor([rank + 1.0])
dist.all_reduce(result)
""")
)

# %% [markdown]
# Both have the sum, in place of what they had.
#
# ## 4. DDP by hand, and three ways to the same gradient
#
# Now the tiny GPT, each rank with two of the four windows. Rank 1 has only 8 targets, so that the trap of section 1 is
# open. By hand it takes three lines: share the number of targets, go backward, add up each gradient.

# %%
SETUP = f"""
from gpt_model import GPT, GPTConfig
from pretraining.distributed import Ranks, parallelise
from pretraining.training_loop import NextToken
from working_with_text_data.token_shards import IGNORE

SHAPE = {SHAPE!r}
torch.manual_seed(0)
model = GPT(GPTConfig(**SHAPE))
ids = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(1))  # (windows, tokens + 1)
inputs, targets = ids[:, :-1], ids[:, 1:].clone()
targets[2:].view(-1)[8:] = IGNORE
mine = slice(2 * rank, 2 * rank + 2)  # my windows
"""
BY_HAND = """
objective = NextToken(model, 64)  # gives the sum of the losses
total = torch.tensor(float((targets[mine] != IGNORE).sum()))
dist.all_reduce(total)
(objective(inputs[mine], targets[mine]) / total).backward()
for w in model.parameters():
    dist.all_reduce(w.grad)
result = {"by hand": torch.cat([w.grad.flatten() for w in model.parameters()]), "total": total}
"""

# %% [markdown]
# Then with torch's own `DistributedDataParallel`, our oracle, and with the house's `parallelise`. Both average, so the
# loss is multiplied by R.

# %%
BY_OTHERS = """
from torch.nn.parallel import DistributedDataParallel

ways = {
    "torch's DDP": lambda objective: DistributedDataParallel(objective),
    "the house": lambda objective: parallelise(objective, [], Ranks(rank, 2, torch.device("cpu")), "ddp"),
}
for name, way in ways.items():
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE))
    parallel = way(NextToken(model, 64))
    (parallel(inputs[mine], targets[mine]) * 2 / total).backward()
    result[name] = torch.cat([w.grad.flatten() for w in model.parameters()])
"""

# %% [markdown]
# And once more with torch's DDP, in one line less: the wrapped model has no name, it is made, called and gone.

# %%
ONE_LINE = """
torch.manual_seed(0)
model = GPT(GPTConfig(**SHAPE))
(DistributedDataParallel(NextToken(model, 64))(inputs[mine], targets[mine]) * 2 / total).backward()
result["in one line"] = torch.cat([w.grad.flatten() for w in model.parameters()])
"""
both = on_two_ranks(SETUP + BY_HAND + BY_OTHERS + ONE_LINE)

# %% [markdown]
# One process with the joined batch is what all must equal. Sums come in another order, so "equal" is within 10⁻⁶ of
# the gradient's length.

# %%
some = targets.clone()
some[2:].view(-1)[8:] = IGNORE
joined = gradient(model, inputs, some) / 40
assert both[0]["total"] == 40
for name in ("by hand", "torch's DDP", "the house"):
    for result in both:
        assert (result[name] - joined).norm() < 1e-6 * joined.norm()
    print(f"{name:12} = one process, on both ranks; ranks equal to the bit: {torch.equal(*(r[name] for r in both))}")

# %% [markdown]
# **What did not work** is the one line.
# Before backward runs, nobody holds the wrapper any more, so Python frees it, and what listened for gradients with it.
# Backward then does what it would do alone:

# %%
assert not torch.equal(*(r["in one line"] for r in both))
for rank, own in enumerate((slice(0, 2), slice(2, 4))):
    alone = gradient(model, inputs[own], some[own]) * 2 / 40
    assert (both[rank]["in one line"] - alone).norm() < 1e-5 * alone.norm()
print("in one line: each rank has its own gradient, and no error was raised")

# %% [markdown]
# So keep what `parallelise` gives. That the ranks agree *to the bit* matters more than it seems. They never exchange
# weights again. Equal weights and equal gradients give equal weights, step after step. A difference would stay.
#
# ## 5. When they do not start alike
#
# Three runs of 30 steps of plain gradient descent, on both ranks: started alike and gradients joined; started from
# different seeds and gradients joined; started alike and gradients *not* joined. We keep the distance between the two
# ranks' weights.
#
# **Predict before you run (4).** With different seeds and joined gradients: does the distance shrink, stay, or grow?

# %%
apart = on_two_ranks(
    SETUP
    + """
def run(seed, join):
    torch.manual_seed(seed)
    model, distances = GPT(GPTConfig(**SHAPE)), []
    for step in range(30):
        weights = torch.cat([w.detach().flatten() for w in model.parameters()])
        other = weights.clone()
        dist.broadcast(other, src=0)  # what rank 0 has
        distances.append((weights - other).norm().item())
        model.zero_grad()
        (NextToken(model, 64)(inputs[mine], targets[mine]) / 40).backward()
        for w in model.parameters():
            if join:
                dist.all_reduce(w.grad)
            w.data -= 0.1 * w.grad
    return distances

result = {"alike, joined": run(0, True), "other seeds, joined": run(rank, True), "alike, not joined": run(0, False)}
"""
)[1]

# %% [markdown]
# On rank 1, where the distance to rank 0 is seen:

# %%
figure, axes = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
for (name, values), style in zip(apart.items(), ("-", "--", ":")):
    axes.plot(values, style, color="black", label=name)
axes.set(xlabel="step", ylabel="distance of the ranks' weights")
axes.legend(frameon=False, fontsize=8)
plt.show()
assert max(apart["alike, joined"]) == 0
assert abs(apart["other seeds, joined"][-1] / apart["other seeds, joined"][0] - 1) < 1e-3
assert sorted(apart["alike, not joined"]) == apart["alike, not joined"]

# %% [markdown]
# It *stays*. Both take the same step, so the difference between them is what it was at the start, forever. Each rank
# then goes with a gradient half of which was computed at other weights. Nothing fails, the loss may even fall, and
# rank 0's checkpoint is of a model that nobody trained. The mend is one call before the first step: broadcast rank 0's
# weights. DDP does it when it is made:

# %%
after = on_two_ranks(
    SETUP
    + """
torch.manual_seed(rank)
model = GPT(GPTConfig(**SHAPE))
before = model.transformer.wte.weight[0, 0].item()
parallelise(NextToken(model, 64), [], Ranks(rank, 2, torch.device("cpu")), "ddp")
result = {"before": before, "after": torch.cat([w.detach().flatten() for w in model.parameters()])}
"""
)
assert after[0]["before"] != after[1]["before"] and torch.equal(after[0]["after"], after[1]["after"])
print("different before, equal to the bit after")

# %% [markdown]
# ## 6. Fewer and larger messages
#
# Two things make the exchange cheap. *Buckets*: a message for each tensor would be many small ones. DDP puts tensors
# together into buckets (25 MB unless told otherwise) and sends each as soon as its last gradient is there. Gradients of
# the last layers come first, so the network works while backward goes on. *Accumulation*: with k parts a step, only the
# last part's backward needs an exchange. `no_sync` holds it back before.
#
# **Predict before you run (5).** k = 4 parts and b buckets. How many all-reduces does a step have without `no_sync`,
# and how many with it?
#
# We count with a hook that DDP calls for each bucket. A larger model, so that there is something to see, and buckets of
# half a megabyte.

# %%
COUNTED = """
import time
from contextlib import nullcontext
from torch.nn.parallel import DistributedDataParallel
from pretraining.distributed import gradients_meet

torch.manual_seed(0)
model = GPT(GPTConfig(vocab_size=64, context_length=64, n_layer=4, n_head=4, d_model=128))
parallel = DistributedDataParallel(NextToken(model, 64), bucket_cap_mb=0.5)
x = torch.randint(64, (8, 64), generator=torch.Generator().manual_seed(rank))
buckets, ready, start = [], [], [0.0]
now = lambda: time.perf_counter() - start[0]

def exchange(state, bucket):
    entry = {"numbers": bucket.buffer().numel(), "from": now()}
    buckets.append(entry)
    def finish(future):
        entry["to"] = now()
        return future.value()[0] / 2
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(finish)

parallel.register_comm_hook(None, exchange)
"""

# %% [markdown]
# A step of four parts, both ways. The first steps are thrown away: DDP forms its buckets anew when it has seen in which
# order gradients come.

# %%
counted = on_two_ranks(
    SETUP
    + COUNTED
    + """
def step(hold_back):
    buckets.clear()
    for part in range(4):
        with gradients_meet(parallel, part == 3 or not hold_back):
            parallel(x, x).backward()
    return len(buckets), sum(b["numbers"] for b in buckets)

def timeline():
    buckets.clear()
    loss = parallel(x, x)
    dist.barrier()
    start[0] = time.perf_counter()
    for name, w in model.named_parameters():
        if name.endswith("c_fc.weight"):
            w.register_hook(lambda g, name=name: ready.append((name, now())))
    loss.backward()
    return {"buckets": list(buckets), "ready": ready, "end": now()}

step(False), step(False)
result = {"plain": step(False), "no_sync": step(True), "N": model.n_parameters, "time": timeline()}
"""
)[0]
for name in ("plain", "no_sync"):
    print(f"{name:8} {counted[name][0]:3} all-reduces, {counted[name][1] / counted['N']:.0f} N numbers")

# %% [markdown]
# Exactly k times fewer, in numbers and in calls. `gradients_meet` is the house's name for it, since FSDP spells it
# otherwise.

# %%
b = counted["no_sync"][0]
assert counted["plain"] == (4 * b, 4 * counted["N"]) and counted["no_sync"] == (b, counted["N"])
print(f"formula: k · b = 4 · {b} = {4 * b} and b = {b}")

# %% [markdown]
# Where do the buckets lie in time? One backward pass, live: each bar is a bucket on its way, each mark a moment when a
# block's MLP got its gradient.

# %% tags=["volatile"]
when = counted["time"]
figure, axes = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
for number, bucket in enumerate(when["buckets"]):
    axes.barh(number, 1e3 * (bucket["to"] - bucket["from"]), left=1e3 * bucket["from"], color="0.7", edgecolor="black")
for name, at in when["ready"]:
    axes.axvline(1e3 * at, color="black", linestyle=":", linewidth=1)
    axes.text(1e3 * at, -0.9, f"h.{name.split('.')[2]}", fontsize=7, ha="center")
axes.axvline(1e3 * when["end"], color="black")
axes.text(1e3 * when["end"], -0.9, "end", fontsize=7, ha="center")
axes.set(xlabel="time in the backward pass (ms)", ylabel="bucket", ylim=(len(when["buckets"]), -1.6))
plt.show()

# %% [markdown]
# The last block, h.3, is ready first, and buckets leave while earlier blocks still compute. On one machine with two
# cores that is no gain: sending takes the same cores. Between GPUs the network has its own hardware, and most of the
# exchange hides behind backward.
#
# ## 7. FSDP: nobody keeps everything
#
# With DDP every rank holds all 16 bytes a parameter (notebook 15). FSDP cuts each tensor along its first axis into R
# slices. Rank r keeps slice r of weights, gradients and AdamW's means. Before a block is used its slices are gathered;
# after that they are let go. Gradients are not all-reduced but reduce-scattered: each rank gets the sum of its slice
# only. It is the ring of section 2, cut in the middle.
#
# **Predict before you run (6).** Two ranks. Bytes of weights a rank keeps: half of 4 N? And while block 0 is gathered?

# %%
SHARDED = """
from pretraining.distributed import whole_weights
from pretraining.optimizers import state_bytes

local = lambda tensor: tensor.to_local() if hasattr(tensor, "to_local") else tensor
held = lambda: sum(local(w).nbytes for w in model.parameters())
result = {}
for kind in ("ddp", "fsdp"):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE))
    parallel = parallelise(NextToken(model, 64), model.transformer.blocks, Ranks(rank, 2, torch.device("cpu")), kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    (parallel(inputs[mine], targets[mine]) * 2 / 40).backward()
    optimizer.step()
    gradients = sum(local(w.grad).nbytes for w in model.parameters())
    moments = sum(local(v).nbytes for s in optimizer.state.values() for k, v in s.items() if k != "step")
    result[kind] = {"weights": held(), "gradients": gradients, "AdamW": moments}
    if kind == "fsdp":
        block = model.transformer.blocks[0]
        parallel.reshard()
        before = held()
        block.unshard()
        result["gathered"] = held() - before
        block.reshard()
    result["after " + kind] = torch.cat([w.flatten() for w in whole_weights(model).values()])
"""
shared = on_two_ranks(SETUP + SHARDED)

# %% [markdown]
# Counted from the live tensors of rank 0 and rank 1:

# %%
for kind in ("ddp", "fsdp"):
    for rank in (0, 1):
        print(f"{kind:4} rank {rank}:", {name: f"{value:,}" for name, value in shared[rank][kind].items()})
block_numbers = 12 * 32**2 + 13 * 32
print(f"4 N = {4 * N:,}; gathering a block adds {shared[0]['gathered']:,}, half of {4 * block_numbers:,}")

# %% [markdown]
# The formulas, to the byte. Every first axis of this model is even, so the halves are exact. After the step the weights
# are those of DDP, but for rounding:

# %%
for rank in (0, 1):
    assert shared[rank]["ddp"] == {"weights": 4 * N, "gradients": 4 * N, "AdamW": 8 * N}
    assert shared[rank]["fsdp"] == {"weights": 2 * N, "gradients": 2 * N, "AdamW": 4 * N}
    assert shared[rank]["gathered"] == 2 * block_numbers
    torch.testing.assert_close(shared[rank]["after ddp"], shared[rank]["after fsdp"], atol=1e-4, rtol=1e-4)
print("ddp 16 N, fsdp 16 N / 2; same weights after a step")

# %% [markdown]
# As a picture: measured on the left; on the right GPT-2's largest, 1,558 million parameters, by formula, with one
# gathered block of 4 · 12 · 1600² bytes besides.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.8), layout="constrained")
bottoms = [0.0, 0.0]
for owner, shade in (("weights", "0.2"), ("gradients", "0.55"), ("AdamW", "0.9")):
    values = [shared[0][kind][owner] / 1e3 for kind in ("ddp", "fsdp")]
    left.bar(["ddp", "fsdp"], values, 0.6, bottom=bottoms, color=shade, edgecolor="black", label=owner)
    bottoms = [a + b for a, b in zip(bottoms, values)]
left.set(ylabel="kept by a rank of 2 (kB)")
left.legend(frameon=False, fontsize=8)
several, params = (1, 2, 4, 8, 16, 32), 1.558e9
right.plot(several, [16 * params / 1e9] * 6, "--", color="black", label="ddp")
sharded = [(16 * params / R + 4 * 12 * 1600**2) / 1e9 for R in several]
right.plot(several, sharded, "o-", color="black", label="fsdp")
right.axhline(24, color="0.5", linestyle=":")
right.set(xscale="log", yscale="log", xlabel="ranks R", ylabel="kept by a rank (GB)", ylim=(0.5, 60))
right.set_xticks(several, several)
right.minorticks_off()
right.text(32, 21, "24 GB card", fontsize=7, ha="right", va="top")
right.legend(frameon=False, fontsize=8, loc="lower left")
plt.show()

# %% [markdown]
# The price is traffic. Weights are gathered forward and again backward, and gradients are reduce-scattered: three half
# rings where DDP has two, so 3 (R - 1) / R · N numbers a step (Rajbhandari et al. 2020, section 7). That is a formula
# here, and not measured. Activations are not cut: each rank has those of its own windows.
#
# ## 8. When a rank dies
#
# All the others wait for it. What they must not do is wait forever. Two cases: rank 1 ends before the exchange, and
# rank 1 is alive but does something else.


# %%
def survive(body, wait):
    """Whether rank 0 failed, and named an error of communication; rank 1 is ended by us if it is still there."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        first, second = start_two(body, folder, wait)
        said = first.communicate(timeout=200)[1]
        second.kill()
        second.communicate()
        return first.returncode != 0, "RuntimeError" in said or "DistBackendError" in said or "DistNetworkError" in said


WORK = "result = torch.ones(1)\ndist.all_reduce(result)\n"
SILENT = """
import time
group = dist.new_group(timeout=timedelta(seconds=5))
if rank == 1:
    time.sleep(100)
dist.all_reduce(result, group=group)
"""

# %% [markdown]
# **Predict before you run (7).** The time-out is 120 seconds in the first case. Does rank 0 wait that long?

# %%
begin = time.perf_counter()
failed, named = survive(WORK + "import os\nif rank == 1:\n    os._exit(9)\n" + WORK, wait=120)
assert failed and named and time.perf_counter() - begin < 100
print("a rank that ended: rank 0 fails with an error, long before its time-out")

# %% [markdown]
# It does not: the connection was closed, and rank 0 notices. A rank that is silent closes nothing. There only the
# time-out helps, here 5 seconds. Its default is half an hour.

# %%
failed, named = survive(WORK + SILENT, wait=120)
assert failed and named
print("a silent rank: rank 0 fails with an error when the time is over")

# %% [markdown]
# So: an error, not a hang. What goes on from there is not the work of the ranks, but of who started them. `torchrun`
# ends the others, and starts all again if it may; `--resume auto` goes on from the last checkpoint.
#
# ## 9. Launching
#
# `torchrun` gives each process RANK, LOCAL_RANK and WORLD_SIZE in its environment; `join_ranks` reads them. One
# machine, eight GPUs:
#
#     torchrun --standalone --nproc-per-node 8 -- pretraining/pretrain.py --data DATA --run RUN --resume auto
#
# Two machines, the same line on each, where HOST is one of them:
#
#     torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --max-restarts 3 -- \
#         pretraining/pretrain.py --data DATA --run RUN --resume auto
#
# `--` stands before the script. Without it torchrun takes the script's `--run` for an abbreviation of its own
# `--run-path`. Add `--parallel fsdp` when the model does not fit.
#
# ## 10. Exercises
#
# Write the body in place of the dots and run the cell. The check says what is missing.

# %%
from pretraining.exercises.ex16 import (
    check_joined_gradient,
    check_piece_to_send,
    check_ring_bytes,
    check_slice_of,
)
from utils.exercises import attempt

# %% [markdown]
# **A. The joined gradient** (easy, 5 minutes) `means` are the ranks' mean gradients (tensors of one shape), `counts`
# how many targets each had. A rank may have none; its mean is then all NaN. Return the gradient of the joined batch.


# %%
def joined_gradient(means, counts): ...


attempt(check_joined_gradient, joined_gradient)

# %% [markdown]
# **B. Bytes on the ring** (easy, 5 minutes) How many bytes does *each* rank send in a ring all-reduce of `n` numbers of
# `size` bytes over `ranks` ranks? `n` is a multiple of `ranks`. Return an int.


# %%
def ring_bytes(n, size, ranks): ...


attempt(check_ring_bytes, ring_bytes)

# %% [markdown]
# **C. Which slice?** (medium, 10 minutes) FSDP cuts `n` rows into slices of ⌈n / R⌉ rows, as long as there are any: the
# last ones may be shorter or empty. Return (start, end) of the rows of `rank`; an empty one is (n, n).


# %%
def slice_of(n, ranks, rank): ...


attempt(check_slice_of, slice_of)

# %% [markdown]
# **D. The ring the other way** (hard, 15 minutes) Now everyone passes to its *left* neighbour, from r to r - 1. Rank r
# begins, at step 0, with piece r again. Which piece does it send at `step`, for all 2 (R - 1) steps: first those of
# reduce-scatter, then those of all-gather? The check runs your ring with numbers.


# %%
def piece_to_send(rank, step, ranks): ...


attempt(check_piece_to_send, piece_to_send)

# %% [markdown]
# ### Solutions
#
# <details><summary>Solution: `joined_gradient`</summary>
#
# ```python
# def joined_gradient(means, counts):
#     sums = [mean * count for mean, count in zip(means, counts) if count]  # 0 · NaN is NaN
#     return sum(sums) / sum(counts)
# ```
# </details>
#
# <details><summary>Solution: `ring_bytes`</summary>
#
# ```python
# def ring_bytes(n, size, ranks):
#     return 2 * (ranks - 1) * (n // ranks) * size
# ```
# </details>
#
# <details><summary>Solution: `slice_of`</summary>
#
# ```python
# def slice_of(n, ranks, rank):
#     rows = -(-n // ranks)  # rounded up
#     return min(rank * rows, n), min((rank + 1) * rows, n)
# ```
# </details>
#
# <details><summary>Solution: `piece_to_send`</summary>
#
# ```python
# def piece_to_send(rank, step, ranks):
#     if step < ranks - 1:
#         return (rank + step) % ranks  # what came from the right one step ago
#     return (rank - 1 + step - (ranks - 1)) % ranks  # first the one that is whole here, then what came
# ```
# </details>

# %% [markdown]
# ## 11. What you take along
#
# **Recap**
#
# - Ranks exchange *sums* of gradients and divide by *all* targets. The mean of means is right only for equal numbers.
# - A ring adds up R vectors with 2 (R - 1) / R · N numbers sent by each, however many there are.
# - Three ways gave one gradient: by hand, torch's DDP, the house. Ranks were equal to the bit.
# - Ranks that start apart stay apart. Broadcast first.
# - `no_sync` makes k times fewer all-reduces. Buckets leave while backward goes on.
# - FSDP keeps 16 N / R bytes a rank and one gathered block, for half as much traffic again.
# - A dead rank is an error at once, a silent one after the time-out.
#
# **Pitfalls**, each seen above: means that are averaged; a wrapper that nobody holds; seeds that differ without a
# broadcast; gradients that are not joined; all-reduces for parts that do not need them; a silent rank and a long
# time-out; `--` left out.
#
# ### Reading guide
#
# `parallelise` is short. It chooses between the two ways of sections 4 and 7:

# %%
from pretraining.distributed import gradients_meet, parallelise

print(inspect.getsource(parallelise))

# %% [markdown]
# And so is section 6:

# %%
print(inspect.getsource(gradients_meet))

# %% [markdown]
# Then read `TrainingLoop.take_step` and `_backward` in `training_loop.py`. There is section 1: `add_up` shares the
# number of targets, and the loss is multiplied by `ranks.size / targets`. In `tests/pretraining/test_training_loop.py`,
# `test_two_ranks_are_one_process_with_the_joined_batch` does for whole runs what section 4 does for one gradient.
#
# **CUDA, Apple's MPS, Windows.** None of them was run here. On CUDA the exchange goes through NCCL instead of gloo,
# on a stream of its own, and each rank has a GPU; `join_ranks` chooses by LOCAL_RANK. NCCL notices a silent rank by a
# watchdog that ends the process. MPS has no exchange: `join_ranks` takes the CPU when there are several ranks. On
# Windows there is gloo and no NCCL; the meeting in a file works there by design of torch, and the scripts here are
# started anew and not forked, which is the only way that Windows has.
#
# **Sources.** Li et al. 2020, *PyTorch Distributed* · Patarasuk and Yuan 2009, *Bandwidth Optimal All-reduce
# Algorithms for Clusters of Workstations* · Rajbhandari et al. 2020, *ZeRO* · Zhao et al. 2023, *PyTorch FSDP* ·
# Goyal et al. 2017, *Accurate, Large Minibatch SGD*, section 3 (what to normalise by).
#
# **The next question.** The pieces are all there: a loop, an optimiser, a format, ranks. A run takes days. What if the
# power fails at night, or the loss explodes at step 90,000? What must be written down so that nothing is lost?
