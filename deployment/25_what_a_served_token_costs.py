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
# # What a served token costs
#
# **A rented machine costs the same whether it writes one answer or thirty. What does a token cost, who decides it, and
# what does it cost those who wait?**
#
# A price list says so many dollars for a million tokens. No machine is rented by the token. It is rented by the second,
# and somebody has divided. Here we divide ourselves: first by hand, then with a real server in this notebook that many
# clients ask over HTTP, then with people who come when they like, and with a machine that waits for them. On the way a
# benchmark will tell us that all is well while a server hangs.
#
# | | |
# |---|---|
# | you know | what bounds a step (notebook 10), continuous batching and its rows (24) |
# | you need | about 80 minutes, exercises apart; any laptop: no GPU, no network but loopback, one gigabyte of memory |
# | files | `api.py`, `openai_format.py`, `benchmark.py`, `modal_common.py` of this folder |
# | | `chat_engine.py` of `chat_ui`, `continuous_batching.py` of `gpt_model` |
#
# | word or letter | meaning | unit |
# |---|---|---|
# | D | what the machine costs | dollars an hour |
# | step | a pass of the model that gives a token to each text in it | – |
# | b | texts in a step | texts |
# | a, c | seconds of a step that all share; seconds that each text adds | s |
# | t(b) | time of a step, a + c · b | s |
# | due, first, last | when a question was to be asked, its first piece came, its stream ended | s |
# | N | clients who ask at the same time, each again when it has its answer | clients |
# | r | questions that come in a second | 1/s |
# | n | tokens of an answer | tokens |
# | ρ | load: the share of what the server could do that is asked of it | – |
# | closed, open load | clients who wait before they ask again; clients who do not | – |
#
# Times depend on your machine, and so do prices per token. The text says what to look for, the code what was found.

# %% [markdown]
# ## 1. By hand: 3.60 dollars an hour
#
# A machine costs 3.60 dollars an hour. That is a tenth of a cent a second. A step for one text takes 20 ms:

# %%
dollars_an_hour, step = 3.60, 0.020
tokens_per_second = 1 / step
price = dollars_an_hour / 3600 / tokens_per_second * 1e6
print(f"{tokens_per_second:.0f} tokens a second, {price:.0f} dollars for a million, a token every {step * 1e3:.0f} ms")

# %% [markdown]
# Look at the numbers 20 and 20. At this rent a millisecond of the machine for each token *is* a dollar for a million
# tokens. We shall keep that.
#
# Now a step gives a token to each of several texts. Such a step takes longer, but not so many times as long: a part of
# it is the same for all. Let that part be a = 16 ms, and let each text add c = 4 ms:
#
# $$t(b) = a + c\,b \qquad\qquad
# \text{dollars a token} = \frac{D}{3600}\cdot\frac{t(b)}{b} = \frac{D}{3600}\left(\frac{a}{b} + c\right)$$
#
# **Predict before you run (1).** Eight texts in each step. What does a million tokens cost now? And how long does each
# of the eight wait between two tokens?


# %%
def by_hand(b, a=0.016, c=0.004, dollars_an_hour=3.60):
    step = a + c * b  # seconds
    return dollars_an_hour / 3600 * step / b * 1e6, step * 1e3  # dollars for a million, ms between two tokens


price, gap = by_hand(8)
print(f"{price:.0f} dollars for a million, and {gap:.0f} ms between two tokens")

# %% [markdown]
# Less than a third of the price, for more than twice the wait. That is the bargain of this whole notebook. More of it:

# %%
for b in (1, 2, 4, 8, 16, 64, 10**6):
    price, gap = by_hand(b)
    print(f"{b:9,} texts: {price:5.2f} dollars for a million, {gap:11,.0f} ms between two tokens")

# %% [markdown]
# Two ends. At the top somebody is served fast and pays for the whole machine. At the bottom the shared part a is
# divided among so many that nothing of it is left. What remains is c. No batch, however large, goes below
#
# $$\text{least price} = \frac{D}{3600}\cdot c$$
#
# And who decides where between the ends you are? Three parties: the machine (a and c), those who ask (there may be no
# eight), and the operator, who says how many texts may be in a step.

# %% [markdown]
# ## 2. What a step really takes
#
# Notebook 10 has shown why a and c exist: a step reads the weights once for all texts, and multiplies them for each.
# Notebook 24 has measured it. Here we only need the two numbers of *this* machine, and what they are in dollars.
#
# The tokenizer is a tiny one, and the model is large enough to be read from memory. Its weights are random: a step
# takes as long whatever the weights say.

# %%
import torch

from finetuning.instruction.prompt_format import PromptFormat
from gpt_model import GPT, GPTConfig
from working_with_text_data.bytepair_enc import BytePairTokenizer

torch.set_num_threads(1)  # one core, at whose price we shall work
layout = PromptFormat.named("chat")
talk = [
    {"role": "user", "content": "What does a token cost?"},
    {"role": "assistant", "content": "What the machine costs while it is written."},
    {"role": "user", "content": "Who decides it?"},
    {"role": "assistant", "content": "Those who ask at the same time."},
    {"role": "user", "content": "And who waits?"},
    {"role": "assistant", "content": "Those who ask at the same time."},
]
tokenizer = BytePairTokenizer.train([layout.text(talk)] * 3, 300)
V = tokenizer.n_vocab
print(V, "tokens in the vocabulary")

# %% [markdown]
# Parameters by hand: a block has 12 d² weights and 13 d biases and norms; V · d for the tokens, 256 · d for positions,
# 2 d for the last norm.

# %%
torch.manual_seed(0)
wide = GPT(GPTConfig(vocab_size=V, context_length=256, n_layer=6, n_head=8, d_model=512)).eval()
d = 512
assert wide.n_parameters == 6 * (12 * d**2 + 13 * d) + V * d + 256 * d + 2 * d
P = 6 * 12 * d**2 + V * d  # weights in matrices, read in every step
print(f"{wide.n_parameters:,} parameters; P = {P:,} in matrices, {4 * P / 1e6:.0f} MB")

# %% [markdown]
# Steps of 1 to 16 texts, by turns, of each the fastest of nine. Each text has read 32 tokens. The clock is the thread's
# own, which stands still while other programs have the core.
#
# **Predict before you run (2).** Which is larger here: a, or 16 times c?

# %% tags=["volatile"]
import os
import time

import numpy as np

from attention_mechanisms.ragged import RaggedCaches

clock = time.perf_counter if os.name == "nt" else time.thread_time  # Windows moves a thread's clock by 15 ms at a time
sizes, shared = (1, 2, 4, 8, 16), wide.make_cache(16, 64)
rows, seconds = [shared.row(i) for i in range(16)], {b: [] for b in sizes}
with torch.inference_mode():
    for row in rows:
        wide.next_logits(torch.zeros(1, 32, dtype=torch.int64), row)  # (1, T) -> (1, V)
    for b in sizes * 9:
        start = clock()
        wide.next_logits(torch.zeros(b, 1, dtype=torch.int64), RaggedCaches(shared, rows[:b]))  # (b, 1) -> (b, V)
        seconds[b].append(clock() - start)
t = {b: min(some) for b, some in seconds.items()}
c, a = np.polyfit(sizes, list(t.values()), 1)  # the line of least squares
print(f"a = {a * 1e3:.1f} ms for all, c = {c * 1e3:.2f} ms for each text")
for b in sizes:
    print(f"{b:2} texts: {t[b] * 1e3:5.1f} ms measured, {(a + c * b) * 1e3:5.1f} ms by a + c · b")

# %% [markdown]
# (A step of one text goes another way through the processor, a matrix times a vector, and so need not lie on the line.)
#
# Now dollars. What does one core cost? The project's apps for a rented machine estimate with prices that others quote;
# the table stands in `modal_common.py`, with its date. Memory is on top and is left out here.

# %%
from deployment.benchmark import dollars_a_million
from deployment.modal_common import DOLLARS_A_CORE_SECOND, PRICES_OF

D = 3600 * DOLLARS_A_CORE_SECOND
assert abs(dollars_a_million(3.6, 50) - 20) < 1e-9  # the module divides as we did in section 1
print(f"one core: {D:.4f} dollars an hour (prices: {PRICES_OF})")

# %% [markdown]
# On the left the line beside what was measured. On the right the same in dollars, with the floor under it.

# %% tags=["volatile"]
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
across = np.linspace(1, 16, 100)
left.plot(across, (a + c * across) * 1e3, "--", color="0.5", label="a + c · b")
left.plot(sizes, [t[b] * 1e3 for b in sizes], "ok", label="measured")
left.set(xlabel="texts in a step", ylabel="time of a step (ms)", ylim=(0, None))
right.plot(across, D / 3600 * (a / across + c) * 1e6, "--", color="0.5", label="(a / b + c) · D / 3600")
right.plot(sizes, [dollars_a_million(D, b / t[b]) for b in sizes], "ok", label="measured")
right.axhline(D / 3600 * c * 1e6, linestyle=":", color="black", label="the floor, c · D / 3600")
right.set(xlabel="texts in a step", ylabel="dollars for a million tokens", ylim=(0, None))
for axes in (left, right):
    axes.set_xticks(sizes)
    axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# The price falls steeply and then hardly at all. The first texts that join divide a among them. The later ones only
# bring their own c, which everybody has to wait for.

# %% tags=["volatile"]
print(f"floor: {D / 3600 * c * 1e6:.4f} dollars for a million; 16 texts pay {dollars_a_million(D, 16 / t[16]):.4f}")
print(f"a = {a * 1e3:.1f} ms, in which {4 * P / 1e6:.0f} MB are read: {4 * P / a / 1e9:.0f} GB/s")
print(f"c = {c * 1e3:.2f} ms for {2 * P / 1e6:.0f} million FLOPs: {2 * P / c / 1e9:.0f} GFLOP/s")

# %% [markdown]
# ## 3. A server in this notebook
#
# So far there was no server. Between a step and a person stand a queue, a thread, JSON and HTTP. We start the real one,
# with all of it, here: `create_app`, with two models. `wide` is for times. For texts we want a model that answers, so a
# small one learns three questions by heart. Its loss begins at ln V, as that of a guess, and one batch is all it sees:

# %%
import math

import torch.nn.functional as F

torch.manual_seed(0)
small = GPT(GPTConfig(vocab_size=V, context_length=256, n_layer=2, n_head=4, d_model=64))
encoded = layout.encode(tokenizer, talk)
ids = torch.tensor([encoded.ids])  # (1, T)
targets = torch.where(torch.tensor(encoded.answer), ids[0], -100)[1:]  # (T - 1,): what the assistant says
optimizer, losses = torch.optim.AdamW(small.parameters(), lr=5e-3, weight_decay=0.0), []
for _ in range(100):
    loss = F.cross_entropy(small(ids[:, :-1])[0], targets)  # (T - 1, V), (T - 1,)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert abs(losses[0] - math.log(V)) < 0.1 and losses[-1] < 0.05
print(f"loss at first {losses[0]:.1f}, ln {V} = {math.log(V):.1f}; at last below 0.05")

# %% [markdown]
# From here on it is in float64, so that the same text is the same text on every machine. An engine for each. `wide` has
# 16 rows: so many answers are written at a time, and others wait. It ends an answer when it is as long as was asked
# for, and not when chance draws an end.

# %%
from chat_ui.chat_engine import ChatEngine

small = small.double().eval()
engines = {
    "small": ChatEngine(small, tokenizer, layout, "small", n_rows=8),
    "wide": ChatEngine(wide, tokenizer, None, "wide", n_rows=16),
    "wide, 4 rows": ChatEngine(wide, tokenizer, None, "wide, 4 rows", n_rows=4),
    "talk": ChatEngine(small, tokenizer, layout, "talk", n_rows=4),  # for section 8: nobody has talked with it before
}
for name in ("wide", "wide, 4 rows"):
    engines[name].stop_ids = frozenset()

# %% [markdown]
# `uvicorn` is what listens. It runs in a thread, on a port of loopback that nobody uses: no other machine can reach it.

# %%
import threading

import httpx
import uvicorn

from deployment.api import create_app
from utils.addresses import free_port

config = uvicorn.Config(create_app(engines), host="127.0.0.1", port=free_port(), log_level="warning", access_log=False)
server = uvicorn.Server(config)
listening = threading.Thread(target=server.run, daemon=True)
listening.start()
while listening.is_alive() and not server.started:
    time.sleep(0.01)
url = f"http://127.0.0.1:{config.port}"
http = httpx.Client(base_url=url, timeout=300, trust_env=False)  # no proxy stands between us
print(http.get("/health").json(), [one["id"] for one in http.get("/v1/models").json()["data"]])

# %% [markdown]
# ### What goes over the wire
#
# A question is JSON. The answer is a *stream*: lines that begin with `data:`, each a piece of JSON, one for each token
# that has made a piece of text certain. It is sent as soon as it is there.
#
# **Predict before you run (3).** The answer is `What the machine costs while it is written.`, of so many tokens as the
# first line below says. How many lines has the stream? (Who speaks comes first. Why it ended, how many tokens there
# were, and `[DONE]` come last.)


# %%
def lines_of(body):
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        return [line for line in response.iter_lines() if line]


question = {"model": "small", "messages": talk[:1], "temperature": 0, "stream": True}
question["stream_options"] = {"include_usage": True}
lines = lines_of(question)
n_tokens = len(tokenizer.encode_ordinary(talk[1]["content"]))
assert len(lines) == n_tokens + 4
print(f"{n_tokens} tokens, {len(lines)} lines")

# %% [markdown]
# The first three, the last four. Their ids, the hour, and what is the same in all of them are cut out:

# %%
import re

for line in [*lines[:3], "...", *lines[-4:]]:
    print(re.sub(r'"(id|created|object|model)": ("[^"]*"|\d+), ', "", line))

# %% [markdown]
# The last line but one is the bill. `prompt_tokens` were read, `completion_tokens` written. Both can be counted by
# hand. (The token that ended the answer is in neither: it was drawn, which took a step, and nobody is charged for it.)

# %%
import json

usage = json.loads(lines[-2].removeprefix("data: "))["usage"]
assert usage["prompt_tokens"] == len(layout.encode(tokenizer, talk[:1], ask=True).ids)
assert usage["completion_tokens"] == n_tokens
print({name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")})

# %% [markdown]
# ### The oracle: a client that others wrote
#
# Does it speak the language that programs expect? The `openai` package was made for another server. It asks ours the
# same, and must come to the same text and the same bill:

# %%
from openai import OpenAI

client = OpenAI(
    base_url=f"{url}/v1", api_key="none is asked for", http_client=httpx.Client(trust_env=False, timeout=300)
)
chunks = list(client.chat.completions.create(**question))
theirs = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
pieces = [json.loads(line.removeprefix("data: ")) for line in lines_of(question)[:-1]]
ours = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces if piece["choices"])
billed = chunks[-1].usage.model_dump(exclude_none=True)
assert theirs == ours == talk[1]["content"] and billed == pieces[-1]["usage"]
print(f"{len(chunks)} pieces for the openai client: {theirs}")

# %% [markdown]
# ## 4. A client with a clock
#
# What should a client write down? Three moments and a number: when the question was **due**, when its **first** piece
# came, when the stream ended (**last**), and how many tokens the server says it has.
#
# By hand, with two people. One asks at 0 s, sees a word at 1 s and the last of 9 tokens at 5 s. The other asks at 2 s,
# sees a word at 2.5 s, and the last of 11 tokens at 12.5 s:

# %%
two = [(0.0, 1.0, 5.0, 9), (2.0, 2.5, 12.5, 11)]  # due, first, last, tokens
for due, first, last, new in two:
    print(f"first word after {first - due} s, then a token every {(last - first) / (new - 1)} s")

# %% [markdown]
# And tokens a second? Clients stop asking at 10 s, say, and the second answer goes on until 12.5 s. Naively there are
# two ways, and both are wrong. All 20 tokens in 10 s would count what was written after the bell. All 20 in 12.5 s
# would count seconds in which the server had only one left to serve, because nobody was let in any more.
#
# **Predict before you run (4).** What is right? Tokens until the bell, as if they came evenly, in 10 s.


# %%
def tokens_until(end, first, last, new):
    return new if last <= end else new * max(end - first, 0) / (last - first)


def figures(asked, seconds):
    waits = sorted(first - due for due, first, _, _ in asked)
    return {
        "tokens_per_second": sum(tokens_until(seconds, *one[1:]) for one in asked) / seconds,
        "first_95": waits[math.ceil(0.95 * len(waits)) - 1],  # as long as 95 of 100 wait at most
    }


print(f"20 in 10 s: {20 / 10}; 20 in 12.5 s: {20 / 12.5}; until the bell: {figures(two, 10.0)['tokens_per_second']}")

# %% [markdown]
# The module `benchmark.py` calls such a record `Asked`, and its `summary` gives these figures and some more. It must
# agree with the toy:

# %%
from deployment.benchmark import Asked, summary

one, other = (Asked(due, first, last, prompt=3, new=new) for due, first, last, new in two)
by_module = summary([one, other], 10.0)
for name, value in figures(two, 10.0).items():
    assert math.isclose(by_module[name], value)
print({name: round(value, 3) for name, value in by_module.items()})

# %% [markdown]
# ### Naive: one question after another
#
# A client in a few lines. It asks, notes when each piece comes, and reads the stream to its end. (The module's,
# `Client`, does the same with asyncio; section 12 prints it.)


# %%
def ask(question, started):
    due, came, text, usage = time.perf_counter() - started, [], "", None
    with http.stream("POST", "/v1/completions", json=question) as response:
        for line in response.raise_for_status().iter_lines():
            if line.startswith("data: {"):
                piece = json.loads(line.removeprefix("data: "))
                usage = piece.get("usage") or usage
                if piece["choices"]:
                    came.append(time.perf_counter() - started)
                    text += piece["choices"][0]["text"]
    last = time.perf_counter() - started
    return Asked(due, came[0], last, usage["prompt_tokens"], usage["completion_tokens"]), came, text


# %% [markdown]
# Eight questions of 16 random ids each, with answers of 24 tokens. No two begin alike, so that nothing that has been
# read for one can be used for another.

# %%
import random


def questions(model, n, seed, prompt_tokens=16, new_tokens=24):
    rng, shared = random.Random(seed), {"model": model, "max_tokens": new_tokens, "temperature": 0, "stream": True}
    shared["stream_options"] = {"include_usage": True}
    return [shared | {"prompt": [rng.randrange(256) for _ in range(prompt_tokens)]} for _ in range(n)]


# %% [markdown]
# One after another, then all at once, each from a thread of its own:

# %%
from concurrent.futures import ThreadPoolExecutor


def one_after_another(some):
    started = time.perf_counter()
    return [ask(question, started) for question in some]


def all_at_once(some):
    started = time.perf_counter()
    with ThreadPoolExecutor(len(some)) as pool:
        return list(pool.map(lambda question: ask(question, started), some))


# %% [markdown]
# First: do they get the same texts? With the small model, to the last character.

# %%
eight = questions("small", 8, seed=0)
alone, together = one_after_another(eight), all_at_once(eight)
assert [text for _, _, text in alone] == [text for _, _, text in together]
assert all(asked.new <= 24 and asked.prompt == 16 for asked, _, _ in alone + together)
print("eight texts, the same alone and together")

# %% [markdown]
# Then: how much sooner? With the wide model. And toy and module must agree on answers of the real server, too.

# %% tags=["volatile"]
alone, together = one_after_another(questions("wide", 8, seed=1)), all_at_once(questions("wide", 8, seed=2))
assert sum(asked.new for asked, _, _ in together) == sum(asked.new for asked, _, _ in alone) == 8 * 24
took = {}
for name, some in {"one after another": alone, "all at once": together}.items():
    answers = [asked for asked, _, _ in some]
    took[name] = max(asked.last for asked in answers)
    toy = figures([(asked.due, asked.first, asked.last, asked.new) for asked in answers], took[name])
    by_module = summary(answers, took[name])
    assert all(math.isclose(by_module[key], value) for key, value in toy.items())
    rate, gap = by_module["tokens_per_second"], by_module["token_median"]
    print(f"{name:17} {rate:4.0f} tokens/s, each a token every {gap * 1e3:4.1f} ms; done after {took[name]:.2f} s")
print(f"{took['one after another'] / took['all at once']:.1f} times as soon done")

# %% [markdown]
# What that looks like on the wire. A row for each of the eight, a tick for each piece that came:

# %% tags=["volatile"]
figure, panels = plt.subplots(2, 1, figsize=(8, 4), layout="constrained", sharex=True)
for axes, (name, some) in zip(panels, {"one after another": alone, "all at once": together}.items()):
    axes.eventplot([came for _, came, _ in some], colors="black", linelengths=0.7, linewidths=0.8)
    axes.set(ylabel="client", yticks=range(8), yticklabels=range(1, 9), xlim=(0, None))
    axes.set_title(f"{name}: {took[name]:.2f} s", fontsize=9)
    axes.invert_yaxis()
axes.set_xlabel("time since the first question (s)")
plt.show()

# %% [markdown]
# Below, ticks stand under one another: a column is a step, which has a token for everybody. Above, ticks of one row are
# closer together than below, and for seven eighths of the time each row is empty. (At the left of the lower panel
# prompts are read: those of whoever came first in the first step, all others in the next.)
#
# ## 5. More and more people
#
# Now the module. In a *closed load* N clients ask, each again as soon as it has its answer. It says how many tokens the
# server can write. Questions have 16 ids, answers 12 to 36 tokens. Each load goes on for less than two seconds. All of
# them are run twice, by turns, and of each the better one counts: what else the machine does only takes away.
#
# (A notebook has an event loop of its own already, so the clients get one in a thread, as in notebook 24.)

# %%
import asyncio

from deployment.benchmark import Client, ServedBenchmark, closed_load, http_to, open_load, quantile, written_by

options = ServedBenchmark(prompt_tokens=16, new_tokens=24, threads=1)
assert math.isclose(options.price, D)


async def load(way, model, n, seconds, seed):
    async with http_to(url) as one:
        before = await written_by(one)  # what the server has counted, from its /metrics
        asked = await way(Client(one, model, options, 256, seed), n, seconds)
        return asked, await written_by(one) - before


def in_a_loop(work):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


# %% [markdown]
# Of each load a line:


# %%
def told(row):
    rate = row["tokens_per_second"]
    price = f"{rate:4.0f} tokens/s, {dollars_a_million(D, rate):.3f} dollars for a million"
    first, gap = row["first_median"] * 1e3, row["token_median"] * 1e3
    return f"{price}; first word after {first:4.0f} ms, then a token every {gap:5.1f} ms"


# %% [markdown]
# **Predict before you run (5).** From 1 client to 16: how many times as many tokens a second? How many times as long
# between two tokens of one answer? What happens to the first word?

# %% tags=["volatile"]
SECONDS, crowds = 1.8, (1, 2, 4, 8, 16)
runs = [
    (N, *in_a_loop(load(closed_load, "wide", N, SECONDS, seed=1000 + 100 * turn + N)))
    for turn in range(2)
    for N in crowds
]
closed = {}
for N, asked, _ in runs:
    row = summary(asked, SECONDS)
    closed[N] = max(closed.get(N, row), row, key=lambda row: row["tokens_per_second"])
for N, row in closed.items():
    print(f"{N:2} clients: {told(row)}")

# %% [markdown]
# A figure that only one side has seen is no figure. The clients add up what each answer's usage says; the server has
# its own count at `/metrics`. To the token:

# %%
for _, asked, written in runs:
    assert sum(one.new for one in asked) == written
    assert all(12 <= one.new <= 36 and one.prompt == 16 for one in asked)
print(f"clients and server count the same tokens, in {len(runs)} loads of {len(runs)}")

# %% [markdown]
# ### A sanity number: Little's law
#
# In any place, however it works inside, the people in it are as many as come in a second, times the seconds that each
# stays (Little 1961):
#
# $$N = \text{rate} \times \text{time}$$
#
# By hand: a café that 30 people enter each hour, and each stays for half an hour, has 15 people in it. No more is
# needed: not how they come, not in which order they are served.
#
# In a closed load N is known, since we have sent them. So if rate and time come from a sound clock, the product has to
# be N. (Who is inside at the bell is counted until then.)

# %% tags=["volatile"]
for N, asked, _ in runs[: len(crowds)]:
    stays = [min(one.last, SECONDS) - one.due for one in asked]
    rate, time_inside = len(stays) / SECONDS, sum(stays) / len(stays)
    assert 0.75 * N < rate * time_inside <= N * (1 + 1e-9)
    print(f"N = {N:2}: {rate:5.2f} questions/s × {time_inside:.3f} s = {rate * time_inside:5.2f}")

# %% [markdown]
# Slightly below N, never above: between an answer and the next question a client has to think, too.
#
# ### The plot that everybody should know
#
# To the right: longer between two tokens. Upwards: dearer. Each point is a number of clients. Nobody gets to the corner
# below on the left. The dashed line is a + c · b of section 2, which knows no server and no prompts.
#
# Prompts are passes, too. Each answer brings one of 16 tokens, which takes about t(16) here and stops everybody else
# for so long; it is paid for by the 24 tokens of its answer. The dotted line adds that.
#
# One more load is in it: 16 clients, but an operator who lets only 4 into a step.
#
# **Predict before you run (6).** Near which point will it lie? And what will it cost those 16, if not money?

# %% tags=["volatile"]
of_16 = [in_a_loop(load(closed_load, "wide, 4 rows", 16, SECONDS, seed))[0] for seed in (998, 999)]
narrow = max((summary(asked, SECONDS) for asked in of_16), key=lambda row: row["tokens_per_second"])
print("16 clients, 16 rows:", told(closed[16]))
print("16 clients,  4 rows:", told(narrow))
print(" 4 clients, 16 rows:", told(closed[4]))

# %% [markdown]
# The picture:

# %% tags=["volatile"]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
where = lambda row: (row["token_median"] * 1e3, dollars_a_million(D, row["tokens_per_second"]))  # noqa: E731
steps, prompt = a + c * across, (a + c * options.prompt_tokens) / options.new_tokens  # s; s for each token
left.plot(steps * 1e3, D / 3600 * steps / across * 1e6, "--", color="0.5", label="a + c · b alone")
left.plot(
    (steps + (across - 1) * prompt) * 1e3, D / 3600 * (steps / across + prompt) * 1e6, ":k", label="and the prompts"
)
left.plot(*zip(*map(where, closed.values())), "o-k", label="the server, N clients")
left.plot(*where(narrow), "s", color="black", markerfacecolor="white", label="16 clients, 4 rows")
for N, row in closed.items():
    left.annotate(str(N), where(row), xytext=(4, 5), textcoords="offset points")
left.margins(0.12)
left.set(xlabel="between two tokens of an answer (ms)", ylabel="dollars for a million tokens")
left.set(xlim=(0, None), ylim=(0, None))
left.legend(frameon=False, fontsize=8)
right.plot(crowds, [row["first_median"] * 1e3 for row in closed.values()], "o-k", label="16 rows, median")
right.plot(crowds, [row["first_95"] * 1e3 for row in closed.values()], "v:", color="0.4", label="16 rows, 95 of 100")
right.plot([16], [narrow["first_median"] * 1e3], "s", color="black", markerfacecolor="white", label="4 rows, median")
right.set(xlabel="clients N", ylabel="until the first word (ms)", xticks=crowds, ylim=(0, None))
right.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# The operator's limit of rows moves a server along the curve. Four rows for 16 clients are a step of four texts: the
# price and the pace of four clients, as far as the machine was as quiet in both minutes. The other twelve stand
# outside, and their wait is on the right. A limit makes nobody's tokens cheaper. It protects the pace of those who are
# inside.
#
# What is left between the dotted line and the points? HTTP, JSON, an event loop and the clients themselves, which run
# here in the same process and on the same cores as the model. (One client may lie to the left of both lines, as one
# text did in section 2.)
#
# ## 6. People come when they like
#
# In a closed load clients are polite: nobody asks while they wait. People are not like that. They come at moments that
# have nothing to do with the server, and so sometimes two at once. This is an *open load*.
#
# ### Behind a lock
#
# First a server that serves one after another, each in 3 s. By hand: questions at 0, 1, 2, 10 and 11 s.


# %%
def queued(due, seconds):
    free, waits = 0, []
    for moment, needed in zip(due, seconds):
        begin = max(free, moment)
        waits.append(begin - moment)  # until somebody turns to it
        free = begin + needed
    return waits


print(queued([0, 1, 2, 10, 11], [3] * 5))

# %% [markdown]
# The third waits for 4 s, and from 9 to 10 the server has nothing to do. Both on the same morning: had they come
# evenly, nobody would have waited. Now at random: moments of a Poisson process, at a load ρ, where each answer takes a
# second.
#
# For answers that all take s seconds the mean wait is known (Pollaczek and Khinchine; a queue called M/D/1):
#
# $$W = \frac{\rho}{2\,(1-\rho)}\; s$$
#
# **Predict before you run (7).** Half loaded, the formula says half a second. And at 80 %? At 95 %? By how much is the
# server at 95 % busier than at 80 %, and by how much longer do people wait?

# %%
from itertools import accumulate, pairwise


def poisson(rate, n, seed=0):
    rng = random.Random(seed)
    return list(accumulate(rng.expovariate(rate) for _ in range(n)))


locked = {}
for rho in (0.2, 0.5, 0.8, 0.9, 0.95):
    locked[rho] = queued(poisson(rho, 200_000), [1.0] * 200_000)
    mean, formula = sum(locked[rho]) / 200_000, rho / (2 * (1 - rho))
    assert abs(mean / formula - 1) < 0.1
    print(f"load {rho:3.0%}: wait {mean:5.2f} s simulated, {formula:5.2f} s by the formula;", end=" ")
    print(f"5 of 100 wait longer than {quantile(locked[rho], 0.95):4.1f} s")

# %% [markdown]
# A wait that grows like 1 / (1 - ρ): the last per cents of the load are the dearest ones. What a machine costs does not
# depend on ρ: at half the load each answer costs twice. So there are two prices, and each wants another ρ.
#
# (Answers of different lengths are worse. If lengths are exponential, with the same mean, people wait twice as long: a
# short question sits behind a long one.)

# %%
rng = random.Random(1)
spread = queued(poisson(0.8, 200_000), [rng.expovariate(1) for _ in range(200_000)])
print(f"load 80 %, all alike: {sum(locked[0.8]) / 200_000:.1f} s; spread: {sum(spread) / 200_000:.1f} s")

# %% [markdown]
# ### Side by side
#
# A server with a row for everybody lets nobody stand outside. Then where is the wait? In the pace. Who comes finds
# others in the step, on average as many as there are at any moment. With answers of n tokens, r of them a second, a gap
# of g seconds between tokens, an answer stays for n · g seconds, and by Little's law r · n · g others are there. So
#
# $$g = a + c\,(1 + r\,n\,g) \quad\Longrightarrow\quad g = \frac{a + c}{1 - \rho} \quad\text{with}\quad \rho = r\,n\,c$$
#
# The gap of somebody who is alone, t(1), divided by 1 - ρ. And the price? D buys r · n = ρ / c tokens a second:
#
# $$\text{dollars a token} = \frac{D}{3600}\cdot\frac{c}{\rho}$$
#
# That is the floor of section 1, divided by ρ. So here is the bargain for people who come by chance, in one line: the
# floor over ρ, against t(1) over 1 - ρ. A simulation, step by step, with the numbers of section 1:

# %%
from collections import deque


def gaps(due, n, a=0.016, c=0.004):
    coming, inside, now, step, spans = deque(due), deque(), 0.0, 0, []
    while coming or inside:
        now = now if inside else max(now, coming[0])
        while coming and coming[0] <= now:
            inside.append((step + n, coming.popleft()))  # the step that gives its last token, and when it came
        now, step = now + a + c * len(inside), step + 1
        while inside and inside[0][0] == step:
            spans.append((now - inside.popleft()[1]) / n)
    return spans


# %% [markdown]
# **Predict before you run (8).** ρ = 0.5, a = 16 ms, c = 4 ms, 3.60 dollars an hour: which gap, and which price? In
# your head, from the two formulas.

# %%
n, served = 64, {}
for rho in (0.2, 0.5, 0.8, 0.9):
    spans = gaps(poisson(rho / (n * 0.004), 60_000), n)
    served[rho] = sum(spans) / len(spans) * 1e3
    formula, price = 20 / (1 - rho), 3.6 / 3600 * 0.004 / rho * 1e6
    assert abs(served[rho] / formula - 1) < 0.1
    print(f"load {rho:3.0%}: a token every {served[rho]:5.1f} ms simulated, {formula:5.1f} by the formula;", end=" ")
    print(f"{price:5.2f} dollars for a million")

# %% [markdown]
# And behind a lock? It needs t(1) = 20 ms of itself for each token, and not c = 4. So what is a load of 20 % side by
# side is one of 100 % behind a lock: there its queue has no end.
#
# Both as pictures. On the right the bargain: the closed load of section 1, where a step has always as many texts, and
# the open one, where chance decides.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
loads = np.linspace(0.02, 0.96, 200)
left.plot(loads, loads / (2 * (1 - loads)), "-", color="0.5", label="ρ / 2 (1 - ρ)")
left.plot(list(locked), [sum(waits) / len(waits) for waits in locked.values()], "ok", label="simulated")
left.set(xlabel="load ρ", ylabel="mean wait (answers)", title="behind a lock", xlim=(0, 1), ylim=(0, 12))
texts = np.linspace(1, 46, 100)
right.plot(16 + 4 * texts, 16 / texts + 4, "--", color="0.5", label="always b texts")
open_loads = np.linspace(0.15, 0.91, 100)
right.plot(20 / (1 - open_loads), 4 / open_loads, "-", color="black", label="by chance, at load ρ")
right.plot(list(served.values()), [4 / rho for rho in served], "ok", label="simulated")
for rho, gap in served.items():
    right.annotate(f"{rho:.0%}", (gap, 4 / rho), xytext=(5, 5), textcoords="offset points")
right.axhline(4, linestyle=":", color="black", label="the floor")
right.set(xlabel="between two tokens (ms)", ylabel="dollars for a million tokens", title="side by side")
right.set(xlim=(0, 240), ylim=(0, 24))
for axes in (left, right):
    axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# What does chance cost? Solve both pairs of formulas for the gap at a given price, once by b and once by ρ. Chance
# makes it (a + c) / a times as long, whatever the price:

# %%
for price in (5, 8, 20):
    always, chance = 16 + 4 * 16 / (price - 4), 20 / (1 - 4 / price)
    assert math.isclose(chance / always, (16 + 4) / 16)
    print(f"at {price:2} dollars: {always:2.0f} ms always, {chance:3.0f} ms by chance: {chance / always:.2f} times")

# %% [markdown]
# ### The real server
#
# The same clients as in section 5, but now they come by chance, at shares of the most answers a second that 16 clients
# got. Beside it what a lock would do at that rate, by the formula. One at a time it has the rate of N = 1.

# %% tags=["volatile"]
most, alone_rate = closed[16]["answers_per_second"], closed[1]["answers_per_second"]
opened = {}
for seed, share in enumerate((0.2, 0.5, 0.9), 3000):
    rate = share * most
    seconds = min(max(16 / rate, 2.0), 4.0)
    asked, written = in_a_loop(load(open_load, "wide", rate, seconds, seed))
    assert sum(one.new for one in asked) == written
    if asked:
        row, rho = opened.setdefault(share, summary(asked, seconds)), rate / alone_rate
        lock = f"for {1e3 / alone_rate * rho / (2 * (1 - rho)):.0f} ms" if rho < 1 else "without end"
        print(f"{share:.0%} of {most:.1f} answers/s: {told(row)}; behind a lock one waits {lock}")

# %% [markdown]
# Look at both waits. There is a free row for nearly everybody, so the first word does not wait for somebody's last.
# What grows with the load is the time between tokens. A few seconds of chance are few: run it twice before you believe
# a figure.
#
# ## 7. The bug: a clock that starts too late
#
# Here is a benchmark as it is often written. A question is to be asked each half second, for 100 seconds. Each takes a
# tenth of a second. One client asks, waits for the answer, notes how long it took, and asks the next one when that is
# due, or at once if it is late. And the server hangs, once, from second 40 to 50.


# %%
def hanging_server(due):
    free, moments = 0.0, []
    for moment in due:
        sent = max(moment, free)  # our client is still waiting for the one before
        begin = 50.0 if 40 <= sent < 50 else sent
        free = begin + 0.1
        moments.append((sent, free))
    return moments


due = [0.5 * i for i in range(200)]
moments = hanging_server(due)
from_sent = [done - sent for sent, done in moments]
print(f"{len(due)} questions, mean wait {sum(from_sent) / 200:.2f} s")

# %% [markdown]
# **Predict before you run (9).** The server was dead for a tenth of the time. What does the benchmark report as the
# wait that 95 of 100 do not exceed?
#
# **Seen.**

# %%
print(f"95 of 100 wait at most {quantile(from_sent, 0.95):.1f} s; the longest wait is {max(from_sent):.1f} s")

# %% [markdown]
# All is well, it says, but for one question.
#
# **Diagnosed.** While the server hung, the client hung with it. Those who should have been asked between 40 and 50 were
# asked later, when the server was well again, and their clock started only then. How many were sent late?

# %%
late = [sent - moment for moment, (sent, _) in zip(due, moments) if sent > moment]
print(f"{len(late)} of {len(due)} questions were sent late, the first of them by {late[0]:.1f} s")

# %% [markdown]
# The server decides when it is measured, and so it is not measured when it is bad. Gil Tene calls it *coordinated
# omission*. People would have come all the same: they do not know that somebody else waits.
#
# **Mended**, by one word. The clock starts when a question was *due*, and not when it was sent:

# %%
from_due = [done - moment for moment, (_, done) in zip(due, moments)]
assert quantile(from_sent, 0.95) < 0.2 and quantile(from_due, 0.95) > 5
print(f"95 of 100 wait at most {quantile(from_due, 0.95):.1f} s, and {sum(w > 0.2 for w in from_due)} people were late")

# %% [markdown]
# The same run, the same answers, two clocks:

# %%
figure, axes = plt.subplots(figsize=(8, 2.9), layout="constrained")
axes.plot(due, from_due, "o", color="0.55", markersize=5, label="from when it was due")
axes.plot([sent for sent, _ in moments], from_sent, ".k", markersize=4, label="from when it was sent")
axes.axvspan(40, 50, color="0.9", label="the server hangs")
axes.set(xlabel="time (s)", ylabel="wait (s)", xlim=(30, 70), ylim=(0, None))
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# `open_load` of the module starts each question at its moment, whoever waits, and hands that moment to `Client.ask`. A
# closed load cannot do that. It has no moments but those that the server allows. So its waits are those of N polite
# clients, good for tokens a second and for the pace, and no promise to anybody who comes by chance.
#
# ## 8. Reading is cheaper than writing
#
# Sellers price them apart: tokens that the model reads, and, dearer, tokens that it writes. Why? Count the passes. A
# hook writes down the shape of each one, (texts, tokens). First 64 tokens are read and 1 is written, then 1 is read and
# 64 are written:

# %%
diary = []
hook = wide.transformer.register_forward_pre_hook(lambda module, args: diary.append(tuple(args[0].shape)))
passes = {}
for name, read, write in (("read", 64, 1), ("write", 1, 64)):
    diary.clear()
    asked, _, _ = ask(questions("wide", 1, 3, read, write)[0], time.perf_counter())
    assert (asked.prompt, asked.new) == (read, write)
    passes[name] = len(diary)
    print(f"{name:5} 64 tokens: {len(diary):2} passes, {4 * P * len(diary) / 64 / 1e6:5.1f} MB of weights a token")
assert passes == {"read": 1, "write": 64}
hook.remove()

# %% [markdown]
# The arithmetic is about the same, 2 P FLOPs a token. But a prompt is there from the beginning. All its tokens go
# through one pass, and the weights are read once for all of them. A prompt is a batch by itself. What is written cannot
# be: the next token hangs on the last.
#
# **Predict before you run (10).** By section 2, one who is alone waits about a + c for a token that is written. What
# will a token cost that is read in one pass with 191 others?

# %% tags=["volatile"]
reads = [ask(question, time.perf_counter())[0] for question in questions("wide", 3, 4, 192, 1)]
writes = [ask(question, time.perf_counter())[0] for question in questions("wide", 3, 5, 4, 32)]
per_read = min(one.first - one.due for one in reads) / 192
per_written = min((one.last - one.first) / (one.new - 1) for one in writes)
for name, each in {"read": per_read, "written": per_written, "written by 16 at once": t[16] / 16}.items():
    price = dollars_a_million(D, 1 / each)
    print(f"{name:20} {1 / each:5.0f} tokens/s, {each * 1e3:5.2f} ms a token, {price:.4f} dollars for a million")
print(f"alone, writing is {per_written / per_read:.0f} times as dear as reading; c was {c * 1e3:.2f} ms")

# %% [markdown]
# Reading costs about c: the arithmetic alone, as if the batch had no end. (Or less, where the product of many rows is
# done better than that of a few.) Writing comes near to that only if others write at the same time. So a seller who
# asks more for written tokens asks for the seconds in which the machine reads weights for too few.
#
# ### What has been read already
#
# A conversation is sent again with each turn. But the engine still has the row of the last turn (notebook 24), and what
# is found there is not read again. The bill says how much: `cached_tokens`.
#
# **Predict before you run (11).** The first turn has so many tokens in all as its `total_tokens` says. How many tokens
# of the second turn's prompt are found?

# %%
bills, turns = [], []
for turn in range(3):
    turns.append(talk[2 * turn])
    reply = client.chat.completions.create(model="talk", messages=turns, temperature=0, max_tokens=40)
    turns.append({"role": "assistant", "content": reply.choices[0].message.content})
    bills.append(reply.usage)
    found = reply.usage.prompt_tokens_details.cached_tokens
    print(f"turn {turn + 1}: prompt {reply.usage.prompt_tokens:3}, of it found {found:2},", end=" ")
    print(f"written {reply.usage.completion_tokens}, in all {reply.usage.total_tokens:3}: {turns[-1]['content']}")
assert all(after.prompt_tokens_details.cached_tokens == before.total_tokens for before, after in pairwise(bills))

# %% [markdown]
# Prompt and answer of the turn before, all of it. What is left to read is the end mark and what is new. Without that a
# long talk reads itself again and again (notebook 24, section 8). How much of all that these three prompts hold was
# read?

# %%
asked_for = sum(usage.prompt_tokens for usage in bills)
read = asked_for - sum(usage.prompt_tokens_details.cached_tokens for usage in bills)
print(f"{asked_for} tokens of prompts, {read} read: {1 - read / asked_for:.0%} saved")

# %% [markdown]
# A row is lent to whoever needs it, so this is no promise: come back after sixteen others, and it may be gone. And with
# two machines behind one address your row is on one of them.
#
# That was the last question. The server ends, as it must be told to: it stops listening, and its thread with it.

# %%
server.should_exit = True
http.close(), client.close()
listening.join(30)
assert not listening.is_alive()
print("the server is gone")

# %% [markdown]
# ## 9. A machine that waits
#
# So far somebody always asked. A machine that nobody asks costs the same. With it the whole price is
#
# $$\text{dollars for a million} = \frac{D\cdot 10^6}{3600\cdot\text{tokens a second}\cdot\text{busy}}$$
#
# where *busy* is the share of the paid time in which it writes. Modal's containers are paid while they are there: they
# come with a question, and go when nobody has asked for some seconds. By hand: answers at 0, 1, 6, 7 and 20 minutes,
# all short; the container goes after 2 minutes without one.


# %%
def paid(moments, idle):
    return sum(min(after - before, idle) for before, after in pairwise(moments)) + idle


print(f"{paid([0, 1, 6, 7, 20], 2)} minutes are paid, of {20 + 2}")

# %% [markdown]
# At random moments, r a second? A gap between two questions is longer than x with probability exp(-r · x). The
# container is there at a moment if somebody has asked within the last idle seconds, and so
#
# $$\text{share of the time that is paid} = 1 - e^{-r\cdot\text{idle}}$$
#
# **Predict before you run (12).** A question every ten minutes on average, a container that waits for two: what share
# of the day is paid?

# %%
from deployment.modal_serve import IDLE_SECONDS

for every in (6000, 600, 120, 30):
    some = poisson(1 / every, 50_000, seed=2)
    simulated, formula = paid(some, IDLE_SECONDS) / some[-1], 1 - math.exp(-IDLE_SECONDS / every)
    assert abs(simulated / formula - 1) < 0.05
    print(f"a question every {every:4} s: {simulated:5.1%} of the time paid, {formula:5.1%} by the formula")

# %% [markdown]
# The `IDLE_SECONDS` are those of this project's app for Modal. Now in dollars, for a GPU that it takes unless told
# otherwise. The price is a quoted one, of the date below. What such a GPU writes in a second was not measured here. So
# we count answers and not its speed: an answer of 64 tokens, and nothing but the rent.

# %%
from deployment.modal_common import dollars_an_hour as rent_of

gpu, n = rent_of("L4"), 64
print(f"an L4: {gpu:.2f} dollars an hour (prices: {PRICES_OF})")
for every in (6000, 600, 120, 30):
    share = 1 - math.exp(-IDLE_SECONDS / every)
    always = gpu / 3600 * every / n * 1e6
    print(f"every {every:4} s: {always:9,.2f} dollars for a million tokens if it is always there,", end=" ")
    print(f"{always * share:6.2f} if it goes")

# %% [markdown]
# The last column has a ceiling. If hardly anybody comes, each answer pays for its own idle seconds and no more:

# %%
ceiling = gpu / 3600 * IDLE_SECONDS / n * 1e6
print(f"{gpu / 3600:.6f} dollars a second × {IDLE_SECONDS} s / {n} tokens: {ceiling:.2f} dollars for a million")

# %% [markdown]
# On the left the share that is paid, for two idle times; the marks are simulated. On the right what the tokens cost.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
hourly = np.logspace(-1, 3, 200)  # questions an hour
for idle, line, mark in ((IDLE_SECONDS, "-", "o"), (5 * IDLE_SECONDS, "--", "s")):
    left.plot(hourly, 1 - np.exp(-hourly / 3600 * idle), line, color="black", label=f"goes after {idle} s")
    for questions_an_hour in (1, 6, 30, 120):
        some = poisson(questions_an_hour / 3600, 20_000, seed=3)
        left.plot(questions_an_hour, paid(some, idle) / some[-1], mark, color="0.4")
    price = gpu / hourly / n * 1e6 * (1 - np.exp(-hourly / 3600 * idle))
    right.plot(hourly, price, line, color="black", label=f"goes after {idle} s")
right.plot(hourly, gpu / hourly / n * 1e6, ":", color="0.4", label="always there")
left.set(xscale="log", xlabel="questions an hour", ylabel="share of the time that is paid", ylim=(0, 1.05))
right.set(xscale="log", yscale="log", xlabel="questions an hour", ylabel="dollars for a million tokens")
left.legend(frameon=False, fontsize=8)
right.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# Each answer counts 64 tokens, so a few questions an hour make dear tokens, whatever is rented. To the right the lines
# meet: a container that never gets its idle seconds never goes.
#
# ### From which traffic on is "always there" the cheaper one?
#
# In dollars alone it never is, at the same price a second: who goes home cannot cost more than who stays. But who comes
# to an empty house waits for a cold start. So ask for what a cold start that does *not* happen costs. In an hour the
# machine that stays costs more by D · exp(-r · idle). The one that goes starts cold as often as a gap is too long, 3600
# · r · exp(-r · idle) times. Divide:
#
# $$\text{dollars for each cold start that is spared} = \frac{D}{3600\,r}$$
#
# The idle time has dropped out. What remains is what the machine costs between two questions. (Seconds that a start
# itself takes are paid too. They stretch both counts alike, and drop out as well.) The simulation, with a start of 40
# s:


# %%
def rented(moments, idle, start):
    on, off, n_cold = 0.0, 0.0, 0  # off: the moment at which the container goes
    for moment in moments:
        if moment >= off:
            n_cold, on, off = n_cold + 1, on + start + idle, moment + start + idle
        else:
            ready = max(off - idle, moment)  # while it starts, nobody is served
            on, off = on + ready + idle - off, ready + idle
    return on, n_cold


some = poisson(1 / 600, 50_000, seed=4)
for start in (0, 40):
    on, n_cold = rented(some, IDLE_SECONDS, start)
    each = gpu / 3600 * (some[-1] - on) / n_cold
    print(f"a start of {start:2} s: {n_cold} cold starts, {each:.4f} dollars for each that is spared", end="; ")
    print(f"D / 3600 r = {gpu / 3600 * 600:.4f}")
    assert abs(each / (gpu / 6) - 1) < 0.05

# %% [markdown]
# So it is your word what somebody's wait is worth. Say a cent, and you know from which traffic on to stay awake:

# %%
for cents in (0.1, 1, 10):
    print(f"a cold start is worth {cents:4} cents: stay from {gpu / (cents / 100):6.1f} questions an hour on")

# %% [markdown]
# ## 10. What was measured elsewhere
#
# The figures of section 5 are those of a notebook: a small model, less than two seconds, clients in the same process.
# The project's `benchmark.py` asks a server in a process of its own, for longer, and writes JSON files to
# `deployment/results`. Those that are committed:

# %% tags=["volatile"]
from deployment.benchmark import CHAPTER, measured_on
from utils.files import read_json

results = [read_json(path) for path in sorted((CHAPTER / "results").glob("*.json"))]
for result in results:
    print(f"{result['name']}, on {measured_on(result)}, {result['dollars_an_hour']:.3f} dollars an hour", end=" ")
    print(f"(prices: {result['prices_of']})")
    for row in result["closed"]:
        price = dollars_a_million(result["dollars_an_hour"], row["tokens_per_second"])
        print(f"  {row['clients']:2} clients: {row['tokens_per_second']:6,.0f} tokens/s,", end=" ")
        print(f"a token every {row['token_median'] * 1e3:5.1f} ms, {price:.3f} dollars for a million")
if not results:
    print("none yet: python deployment/benchmark.py measures here and writes one")

# %% [markdown]
# The plot that everybody should know, of these, if there are any:

# %% tags=["volatile"]
if results:
    figure, panels = plt.subplots(
        1, len(results), figsize=(4.5 * len(results), 3.2), layout="constrained", squeeze=False
    )
    for axes, result in zip(panels[0], results):
        gaps_ms = [row["token_median"] * 1e3 for row in result["closed"]]
        prices = [dollars_a_million(result["dollars_an_hour"], row["tokens_per_second"]) for row in result["closed"]]
        axes.plot(gaps_ms, prices, "o-k")
        for row, *point in zip(result["closed"], gaps_ms, prices):
            axes.annotate(str(row["clients"]), point, xytext=(4, 4), textcoords="offset points")
        axes.set(xlabel="between two tokens (ms)", ylabel="dollars for a million tokens", title=result["name"])
        axes.set(xlim=(0, 1.15 * max(gaps_ms)), ylim=(0, 1.15 * max(prices)))
    plt.show()

# %% [markdown]
# And a GPU? **None was run for this notebook.** What can be said without one is what it would have to do. It costs so
# many times what a core costs, and so it must write so many times as many tokens a second, for the same model, to be as
# cheap:

# %%
from deployment.modal_common import DOLLARS_A_SECOND

for name in ("T4", "L4", "A100-80GB", "H100", "B200"):
    times = DOLLARS_A_SECOND[name] / DOLLARS_A_CORE_SECOND
    print(f"{name:9} {rent_of(name):5.2f} dollars an hour: {times:5.1f} times a core")

# %% [markdown]
# These prices are quoted from others (`modal_common.py` says from whom), of the date that section 2 prints. They
# change, and a GPU needs cores and memory beside it, which are charged as well.

# %% [markdown]
# ## 11. Exercises
#
# Write the body in place of the dots and run the cell. The check says what is missing.

# %%
from deployment.exercises.ex25 import (
    check_paid_seconds,
    check_price,
    check_price_within,
    check_waits,
    check_widest_step,
)
from utils.exercises import attempt

# %% [markdown]
# **A. The price** (easy, 5 minutes) A machine costs `dollars_an_hour` and writes `tokens_per_second` while it is busy,
# which it is for a share `busy` of the time. What does a million tokens cost, in dollars?


# %%
def price(dollars_an_hour, tokens_per_second, busy): ...


attempt(check_price, price)

# %% [markdown]
# **B. The widest step** (easy, 10 minutes) A step of b texts takes a + c · b, and nobody should wait longer than `most`
# between two tokens. How many texts may be in a step? All three are whole milliseconds. 0 if there is no room for one.


# %%
def widest_step(a, c, most): ...


attempt(check_widest_step, widest_step)

# %% [markdown]
# **C. An honest clock** (medium, 15 minutes) A server serves one after another. Question i is due at `due[i]`, in
# order, and takes `seconds[i]`. Return, for each, the time from when it was due until its answer is there.


# %%
def waits(due, seconds): ...


attempt(check_waits, waits)

# %% [markdown]
# **D. What is paid** (medium, 10 minutes) Answers are at `moments`, in order, in seconds, and take no time. A container
# comes with an answer and goes `idle` seconds after the last one. For how many seconds is one there? There may be no
# answers at all.


# %%
def paid_seconds(moments, idle): ...


attempt(check_paid_seconds, paid_seconds)

# %% [markdown]
# **E. As cheap as may be** (hard, 20 minutes) People come by chance to a server that writes side by side, as in section
# 6. A step takes a + c · b seconds, and between two tokens there may be `most` seconds on average. At the highest load
# that allows it, what does a million tokens cost? None if no load does.


# %%
def price_within(a, c, most, dollars_an_hour): ...


attempt(check_price_within, price_within)

# %% [markdown]
# ### Solutions
#
# <details><summary>Solution: `price`</summary>
#
# ```python
# def price(dollars_an_hour, tokens_per_second, busy):
#     return dollars_an_hour * 1e6 / (3600 * tokens_per_second * busy)
# ```
# </details>
#
# <details><summary>Solution: `widest_step`</summary>
#
# ```python
# def widest_step(a, c, most):
#     return max((most - a) // c, 0)
# ```
# </details>
#
# <details><summary>Solution: `waits`</summary>
#
# ```python
# def waits(due, seconds):
#     free, result = 0.0, []
#     for moment, needed in zip(due, seconds):
#         free = max(free, moment) + needed
#         result.append(free - moment)
#     return result
# ```
# </details>
#
# <details><summary>Solution: `paid_seconds`</summary>
#
# ```python
# def paid_seconds(moments, idle):
#     if not moments:
#         return 0
#     return sum(min(after - before, idle) for before, after in zip(moments, moments[1:])) + idle
# ```
# </details>
#
# <details><summary>Solution: `price_within`</summary>
#
# ```python
# def price_within(a, c, most, dollars_an_hour):
#     load = 1 - (a + c) / most  # from most = (a + c) / (1 - load)
#     if load <= 0:
#         return None
#     return dollars_an_hour / 3600 * c / load * 1e6
# ```
# </details>

# %% [markdown]
# ## 12. What you take along
#
# **Recap**
#
# - A machine is paid by the second. A token costs the seconds of a step, divided among all who are in it.
# - t(b) = a + c · b. The price falls to c and no further; the gap between tokens grows with every text.
# - Measure with three moments and a number: due, first, last, tokens. Little's law tells whether the clock is sound.
# - A closed load says how much a server can write, an open one how long people wait. Waits grow like 1 / (1 - ρ), the
#   price falls like 1 / ρ.
# - Reading costs about c or less, since a prompt is a batch by itself. What a row still holds is not read again.
# - An idle machine is paid like a busy one. A cold start that is spared costs what the machine costs between two
#   questions.
#
# **Pitfalls**, each seen above: tokens that are counted after the bell, or divided by seconds in which nobody was let
# in; a figure that only one side has counted; a clock that starts when a question is *sent*; the waits of a closed load
# told to people who come by chance; prompts that begin alike in a benchmark, which are not read at all; a price without
# its date, without the idle hours, or without the pace that belongs to it.
#
# ### Reading guide
#
# A question of the module, from when it is due to the end of its stream. Compare it with `ask` of section 4:

# %%
import inspect

print(inspect.getsource(Client.ask))

# %% [markdown]
# The two loads. See in which of them somebody waits for an answer before the next question:

# %%
print(inspect.getsource(closed_load))
print(inspect.getsource(open_load))

# %% [markdown]
# Then read `summary` and `Asked.tokens_before` with section 4 beside it, `_events` of `api.py`, where a stream is made
# and where a client that leaves is noticed, and `scaledown_window` in `modal_serve.py`, which is section 9.
#
# **Limits**
#
# - One process: server, engine and clients share the interpreter's lock here. Tokens a second are lower, and gaps
#   longer, than a server of its own would have. `benchmark.py` gives it one.
# - t(b) = a + c · b holds as long as the rows are short. Each text also has a cache of its own to be read, which grows
#   with it (notebook 10, section 5).
# - The first *piece of text* is not always the first token: half a character is held back (notebook 24, section 9).
# - ρ = r · n · c counts written tokens. Prompts take their c as well; with long ones ρ is larger.
#
# **CUDA, Apple's MPS, Windows.** None of them was run here. The formulas hold anywhere, a and c do not. The more a
# machine can calculate for each byte that it reads, the smaller is c beside a, and the more is won by many texts. On
# CUDA and MPS a step returns before it is done: to measure t(b) alone a clock has to wait for it (notebook 10). What
# clients measure over HTTP needs no such care, since a token that has arrived has been computed. On Windows a thread's
# clock is too coarse, so section 2 takes the wall's.
#
# **Sources.** Little 1961, *A proof for the queuing formula L = λW* · Kleinrock 1975 and 1976, *Queueing systems*, for
# the formula of Pollaczek and Khinchine, and for servers that all share · Tene, *How NOT to measure latency* (talks),
# for coordinated omission · Yu et al. 2022, *Orca: a distributed serving system for transformer-based generative
# models* · Kwon et al. 2023, *Efficient memory management for large language model serving with PagedAttention*: more
# rows in the same memory, and so more texts among whom a is divided · Agrawal et al. 2024, *Taming throughput-latency
# tradeoff in LLM inference with Sarathi-Serve*.
#
# ### The last question
#
# This is the last notebook, and its bill still counts tokens. But people do not want tokens, they want text. How many
# tokens has a text?

# %%
for text in ("Those who ask at the same time.", "Ceux qui demandent en même temps.", "同時に尋ねる人たち。"):
    n_tokens = len(tokenizer.encode_ordinary(text))
    print(f"{text}: {len(text)} characters, {n_tokens} tokens: {n_tokens / len(text):.2f} for each character")

# %% [markdown]
# The same machine, the same price for a token, and three prices for saying the same. This tokenizer has only seen
# English. Whoever made it decided, long before anybody rented a machine. So the answer to "what does a text cost" does
# not stand at the end of the house. It stands at its door: *how does a machine that knows only numbers hold any text?*
# `working_with_text_data`, notebook 01. Go round once more. You will read it with other eyes.
