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
# # Guess and judge
#
# **A step reads all the weights, whether it judges one token or five. Can several tokens come out of one pass, with
# exactly the same distribution?**
#
# Notebook 10 found that a step lasts as long as its bytes, and notebook 11 made the bytes fewer. What is left is to get
# more out of each reading. A pass over five tokens costs little more than a pass over one. But the next five tokens are
# not known yet: they are what we want. So let something cheap guess them.
#
# | | |
# |---|---|
# | you know | sampling (notebook 09), the cache and what bounds a step (notebook 10) |
# | you need | about 70 minutes, exercises apart; any laptop: no GPU, no network, 1 gigabyte of memory |
# | files | `speculative.py` of this folder, `sampling.py`, and the cache's `truncate` |
#
# | letter | meaning | shape |
# |---|---|---|
# | p | the model's distribution of the next token: the truth | (V,) |
# | q | the guesser's | (V,) |
# | x | a token that was guessed, drawn from q | a number |
# | a | the probability that a guess is accepted | 0 to 1 |
# | k | guesses before each pass | a number |
# | c | time of a draft's step over that of a step of the model | a number |
# | V | tokens in the vocabulary | 3 in the toy |

# %% [markdown]
# ## 1. Three tokens, by hand
#
# The vocabulary is *red*, *green*, *blue*. The model knows p; the guesser believes q.

# %%
from fractions import Fraction

words = ["red", "green", "blue"]
p = [Fraction(6, 10), Fraction(3, 10), Fraction(1, 10)]
q = [Fraction(3, 10), Fraction(3, 10), Fraction(4, 10)]

# %% [markdown]
# The guesser draws x from q. We may keep x or not, and if not, draw another. Which rule makes the result distributed
# as p?
#
# *red* comes too seldom from q: keep it always. *blue* comes four times too often: keep it one time in four. That is
#
#     accept x with probability min(1, p(x) / q(x))
#
# After this, the accepted ones have probability q · min(1, p / q) = min(p, q):

# %%
accepted = [qx * min(Fraction(1), px / qx) for px, qx in zip(p, q)]
a = sum(accepted)
print({word: str(x) for word, x in zip(words, accepted)}, "accepted in all:", a)

# %% [markdown]
# **Predict before you run.** 7/10 of the time we are done. In the other 3/10 another token must be drawn. From which
# distribution, so that all adds up to p?

# %%
left = [px - x for px, x in zip(p, accepted)]
print({word: str(x) for word, x in zip(words, left)}, "of", 1 - a)

# %% [markdown]
# From what is missing: (p - q)⁺, what p has and q has not, divided by its sum. Here that is *red* alone. And the sum of
# what is missing is just the probability of being refused, so that it always comes out:

# %%
result = [x + (1 - a) * rest / sum(left) for x, rest in zip(accepted, left)]
assert result == p
print([str(x) for x in result])

# %% [markdown]
# As a picture: the part under both is what is accepted, and its area is a. What p has above q is the replacement.

# %%
import matplotlib.pyplot as plt
import numpy as np

figure, axis = plt.subplots(figsize=(5.5, 2.8))
at = np.arange(3)
axis.bar(at, [float(x) for x in accepted], 0.6, color="gray", label="min(p, q): accepted")
axis.bar(at, [float(x) for x in left], 0.6, [float(x) for x in accepted], color="white", ec="black", label="(p - q)⁺")
axis.step([-0.5, 0.5, 1.5, 2.5], [float(x) for x in [q[0], *q]], color="black", ls=":", label="q")
axis.set_xticks(at, words)
axis.set_ylabel("probability")
axis.legend()
figure.tight_layout()

# %% [markdown]
# **Whatever q is, the result is p.** A bad guesser costs time and never quality. That is the theorem of Leviathan et
# al. (2023) and Chen et al. (2023), and it was the arithmetic above.

# %% [markdown]
# ## 2. Two wrong rules
#
# The rule looks fussier than it must be. Why not, after a refusal, simply draw from p? **This is the bug** that one
# writes first.

# %%
wrong = [x + (1 - a) * px for x, px in zip(accepted, p)]
print({word: f"{float(x):.2f}, not {float(px):.2f}" for word, x, px in zip(words, wrong, p)})

# %% [markdown]
# *blue* comes too often. It was let through as often as it should come already, as min(p, q), and then it gets another
# chance. **Diagnosed**: what has been accepted must be subtracted before the second draw. Draws show it as well.
# Chi-square adds up (seen - expected)² / expected; with 2 degrees of freedom, above 14 is a case of one in a thousand.

# %%
import torch

from gpt_model.speculative import judge

P, Q = (torch.tensor([[float(x) for x in of]]) for of in (p, q))


def chi_square(rule, n=20_000):
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(3)
    for _ in range(n):
        guess = torch.multinomial(Q[0], 1, generator=generator)
        counts[rule(guess, torch.rand(2, generator=generator))] += 1
    return ((counts - n * P[0]) ** 2 / (n * P[0])).sum().item()


# %% [markdown]
# The right rule is the module's `judge`: it takes the distributions of all places at once. Here there is one place,
# and the token behind it does not matter.


# %%
def right_rule(guess, uniform):
    accepted, token = judge(P.repeat(2, 1), Q, guess, uniform)
    return guess if accepted.item() else token


def from_p(guess, uniform):
    accepted, _ = judge(P.repeat(2, 1), Q, guess, uniform)
    return guess if accepted.item() else torch.multinomial(P[0], 1)


torch.manual_seed(1)
right, wrong = chi_square(right_rule, 4000), chi_square(from_p, 4000)
print("right:", right < 14, " drawn again from p:", wrong < 14)

# %% [markdown]
# **Predict before you run.** The other tempting rule: accept a guess if it is the model's best token. What does that
# make of a model at temperature 1?

# %%
best_only = [sum(q[:1]) + (1 - q[0]) * p[0], *((1 - q[0]) * px for px in p[1:])]
print({word: f"{float(x):.2f}, not {float(px):.2f}" for word, x, px in zip(words, best_only, p)})

# %% [markdown]
# It makes the best even more probable, as a lower temperature would. For greedy decoding, where p puts everything on
# its best token, this rule and ours are the same.

# %% [markdown]
# ## 3. Several guesses, one pass
#
# Guess k tokens one after the other, and let the model judge them all in one pass over k + 1 positions: it gives p at
# each place, because a causal model's logits at a place depend on what is before it alone. Accept from the left until
# the first refusal, mend that one, and forget the rest. If none is refused, the pass has told what follows the last
# one too: one more token, free.
#
# If each guess is accepted with probability a, a pass gives at least one token, a second one with probability a, a
# third with a², …:
#
#     1 + a + a² + … + aᵏ = (1 - aᵏ⁺¹) / (1 - a)


# %%
def tokens_a_pass(a, k):
    return k + 1 if a == 1 else (1 - a ** (k + 1)) / (1 - a)


generator = torch.Generator().manual_seed(0)
for a, k in ((0.5, 3), (0.8, 5)):
    fine = torch.rand(20_000, k, generator=generator) < a
    simulated = 1 + fine.long().cumprod(dim=1).sum(dim=1).float().mean().item()
    formula = tokens_a_pass(a, k)
    print(f"a = {a}, k = {k}: {formula:.2f} by the formula; equal: {abs(simulated - formula) < 0.05}")

# %% [markdown]
# Its curve flattens: the tenth guess is seldom reached.

# %%
figure, axis = plt.subplots(figsize=(5.5, 2.8))
for a, style in ((0.3, ":"), (0.6, "--"), (0.8, "-."), (0.95, "-")):
    axis.plot(range(11), [tokens_a_pass(a, k) for k in range(11)], style, color="black", label=f"a = {a}")
axis.set(xlabel="guesses k", ylabel="tokens a pass")
axis.legend()
figure.tight_layout()

# %% [markdown]
# ## 4. What a pass costs
#
# The gain needs that a pass over k + 1 tokens costs about as much as over one. Notebook 10 said why: the weights are
# read once. Measured, on a model whose weights do not fit a processor's cache, in float32 and as int8:

# %% tags=["volatile"]
import time

from gpt_model import GPT, GPTConfig, store_weights

torch.set_num_threads(1)
torch.manual_seed(0)
large = GPT(GPTConfig(vocab_size=16_000, context_length=64, n_layer=6, n_head=8, d_model=640)).eval()


@torch.inference_mode()
def seconds_of(model, n, repeats=7):
    cache, ids = model.make_cache(1, 64), torch.ones(1, n, dtype=torch.long)
    runs = []
    for _ in range(repeats):
        cache.truncate(0)
        start = time.perf_counter()
        model(ids, cache)
        runs.append(time.perf_counter() - start)
    return min(runs)


sizes = (1, 2, 3, 5, 9)
costs = {name: [seconds_of(m, n) for n in sizes] for name, m in
         {"float32": store_weights(large, "float32"), "int8": store_weights(large, "int8")}.items()}  # fmt: skip
for name, row in costs.items():
    print(f"{name:8s}", "  ".join(f"{n}: {1000 * s:.1f} ms ({s / row[0]:.2f}×)" for n, s in zip(sizes, row)))

# %% [markdown]
# Nearly free at first, and then not: a processor's core is soon bound by arithmetic. **What did not work** is both at
# once: with int8 the weights come so fast that arithmetic binds from the second token on, and a pass over a few tokens
# costs as much as several steps. On a GPU the flat part is much longer.

# %% tags=["volatile"]
figure, axis = plt.subplots(figsize=(5.5, 2.8))
for (name, row), style in zip(costs.items(), ("-o", "--s")):
    axis.plot(sizes, [s / row[0] for s in row], style, color="black", label=name)
axis.plot(sizes, sizes, ":", color="gray", label="one by one")
axis.set(xlabel="tokens in one pass", ylabel="time, of one token")
axis.legend()
figure.tight_layout()

# %% [markdown]
# And the guesses are not free. If a guess costs c of a step of the model, and a pass over k + 1 tokens costs as much
# as a step, then k guesses and one pass cost k c + 1 steps and give `tokens_a_pass(a, k)` tokens:
#
#     speed-up = (1 - aᵏ⁺¹) / ((1 - a) (k c + 1))
#
# **Predict before you run.** For which c does guessing never pay, whatever k is?

# %%
figure, axis = plt.subplots(figsize=(5.5, 2.8))
for c, style in ((0.02, "-"), (0.1, "--"), (0.3, "-."), (0.7, ":")):
    speed_up = [tokens_a_pass(0.7, k) / (k * c + 1) for k in range(11)]
    axis.plot(range(11), speed_up, style, color="black", label=f"c = {c}")
axis.axhline(1, color="gray", lw=0.7)
axis.set(xlabel="guesses k", ylabel="speed-up, a = 0.7", ylim=(0.2, 3.5))
axis.legend(ncol=4, fontsize=8, loc="upper left")
figure.tight_layout()

# %% [markdown]
# From c = a on: the first guess adds a tokens and costs c steps. A draft that is a third of the model in time, and
# right half of the time, is hardly worth its trouble.

# %% [markdown]
# ## 5. Two small models
#
# Now for real. A larger and a smaller model learn the same text: function signatures that repeat, as code does.

# %%
from working_with_text_data.bytepair_enc import BytePairTokenizer

names = ["load", "save", "read", "write", "find", "open", "close", "count"]
things = ["file", "model", "token", "text", "cache", "batch"]
lines = [f"def {n}_{t}({t}, path):\n    return {n}({t}, path)\n" for n in names for t in things]
order = torch.randperm(480, generator=torch.Generator().manual_seed(0)) % len(lines)
text = "".join(lines[i] for i in order)
tokenizer = BytePairTokenizer.train([text], 330)
stream = torch.tensor(tokenizer.encode_ordinary(text))
print(text[:84], len(stream), "tokens", sep="\n")

# %% [markdown]
# The target has four blocks, the draft has one. Both train for some seconds.


# %%
def train(n_layer, d_model, steps, seed):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(tokenizer.n_vocab, 96, n_layer, 4, d_model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        at = torch.randint(0, len(stream) - 65, (8,))
        windows = torch.stack([stream[i : i + 65] for i in at])  # (8, 65)
        logits = model(windows[:, :-1])  # (8, 64, V)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), loss.item()


(target, loss), (draft, draft_loss) = train(4, 96, 250, 0), train(1, 32, 250, 1)
print(f"{target.n_parameters:,} and {draft.n_parameters:,} parameters")
assert loss < draft_loss < np.log(tokenizer.n_vocab)  # the draft is worse, and both are better than knowing nothing

# %% [markdown]
# First plainly, then guessing ahead. With temperature 0 the text must be the same, token for token.

# %%
from gpt_model import Sampling, Speculation, generate, generate_speculatively

prompt = tokenizer.encode_ordinary("def read_cache")
greedy = Sampling(temperature=0)
plain = list(generate(target, prompt, 60, greedy))
for guesser in (draft, None):  # a draft model, and prompt lookup
    assert list(generate_speculatively(target, prompt, 60, greedy, guesser=guesser)) == plain
print(tokenizer.decode(prompt + plain[:30]))

# %% [markdown]
# How many passes did that take? `Speculation` counts them.

# %% tags=["volatile"]
for name, guesser in {"draft": draft, "prompt lookup": None}.items():
    done = Speculation()
    list(generate_speculatively(target, prompt, 60, greedy, guesser=guesser, speculation=done))
    print(f"{name:14s} {done.passes} passes for 60 tokens, {done.acceptance_rate:.0%} of the judged guesses accepted")

# %% [markdown]
# And the time? These models are tiny: a pass costs its hundred small operations, not the reading of weights. A step of
# the draft has about a third as many, so c is about a third. What remains of the gain?

# %% tags=["volatile"]
ways = {
    "plain": lambda: list(generate(target, prompt, 60, greedy)),
    "draft": lambda: list(generate_speculatively(target, prompt, 60, greedy, guesser=draft)),
    "prompt lookup": lambda: list(generate_speculatively(target, prompt, 60, greedy)),
}
best = {}
for name, way in ways.items():
    runs = []
    for _ in range(3):
        start = time.perf_counter()
        way()
        runs.append(time.perf_counter() - start)
    best[name] = min(runs)
print({name: f"{best['plain'] / s:.2f}×" for name, s in best.items()})

# %% [markdown]
# ## 6. A run, looked at
#
# What is guessed, and what becomes of it? A guesser is a function, so we can wrap one and write down what it says.
# Accepted guesses stand in [brackets], what the model itself drew stands bare.

# %% tags=["volatile"]
from gpt_model.speculative import look_up


def trace(n_tokens):
    guesses = []

    def watching(text, n, sampler):
        ids, q = look_up(text, n, sampler)
        guesses.append((len(text), ids.tolist()))
        return ids, q

    text = prompt + list(generate_speculatively(target, prompt, n_tokens, greedy, guesser=watching))
    ours = set()
    for start, ids in guesses:
        right = [i for i, token in enumerate(ids) if text[start : start + i + 1] == ids[: i + 1]]
        ours |= {start + i for i in right}
    pieces = [tokenizer.decode([token]) for token in text]
    return "".join(f"[{piece}]" if i in ours else piece for i, piece in enumerate(pieces))


print(trace(50))

# %% [markdown]
# Inside a function, names come back, and prompt lookup copies them. At a new line there is nothing to copy.

# %% [markdown]
# ## 7. Acceptance over temperature
#
# a is 1 - half of Σ |p - q|: the overlap of the two. A flatter p and q overlap more by themselves; but prompt lookup is
# sure of itself, its q is 1 for one token, and so it is accepted with p(x) alone.

# %% tags=["volatile"]
temperatures = [0.0, 0.3, 0.6, 1.0, 1.5]
rates = {}
for name, guesser in {"draft": draft, "prompt lookup": None}.items():
    rates[name] = []
    for t in temperatures:
        done = Speculation()
        for seed in range(6):
            settings = Sampling(temperature=t, seed=seed)
            list(generate_speculatively(target, prompt, 50, settings, guesser=guesser, speculation=done))
        rates[name].append(done.acceptance_rate)

figure, axis = plt.subplots(figsize=(5.5, 2.8))
for (name, row), style in zip(rates.items(), ("-o", "--s")):
    axis.plot(temperatures, row, style, color="black", label=name)
axis.set(xlabel="temperature", ylabel="accepted", ylim=(0, 1))
axis.legend()
figure.tight_layout()

# %% [markdown]
# Prompt lookup loses as soon as the temperature leaves 0: what it is sure of is only probable. The draft, which draws
# from a distribution much like the model's, hardly loses until both are flat.

# %% [markdown]
# ## 8. Exactly the same distribution, by counting
#
# The theorem is for one token. A program has a loop, a cache that is rolled back, penalties that count guesses. So
# count: with a vocabulary of 3, there are 9 texts of two tokens. Their exact probabilities come from plain passes.

# %%
torch.manual_seed(3)
tiny, other = (GPT(GPTConfig(3, 12, 1, 1, 8)).eval() for _ in range(2))
with torch.no_grad():
    for one in (tiny, other):
        for parameter in one.parameters():
            parameter.add_(0.6 * torch.randn_like(parameter))
start = [1, 2, 0, 1]


@torch.inference_mode()
def exact():
    found = {}
    for x in range(3):
        first = tiny(torch.tensor([start]))[0, -1].softmax(0)[x]
        second = tiny(torch.tensor([[*start, x]]))[0, -1].softmax(0)
        found |= {(x, y): (first * second[y]).item() for y in range(3)}
    return found


# %% [markdown]
# Draw 1,500 texts with the other model as a draft, and compare. With 8 degrees of freedom, chi-square above 26 is one
# in a thousand.

# %%
from collections import Counter

expected, n = exact(), 1500
drawn = Counter(
    tuple(generate_speculatively(tiny, start, 2, Sampling(seed=seed), guesser=other, n_guess=1)) for seed in range(n)
)
chi = sum((drawn[pair] - n * probability) ** 2 / (n * probability) for pair, probability in expected.items())
print("consistent with the exact distribution:", chi < 26)

# %% [markdown]
# The tests of `speculative.py` do so for each option of `Sampling`, for good and bad drafts, and check that wrong
# rules are noticed.

# %% [markdown]
# ## 9. Rolling back
#
# A refused guess has left its keys and values in the cache. They must go, or the next pass attends to a text that never
# was. Since the cache is a buffer with a length, that costs nothing: `truncate` sets the length.

# %%
cache = target.make_cache(1, 32)
with torch.no_grad():
    ids = stream[None, :4]  # (1, 4)
    target(ids, cache)
    target(torch.tensor([[7, 8, 9]]), cache)  # three guesses, all refused
    cache.truncate(4)
    after = target.next_logits(stream[None, 4:5], cache)
    assert torch.allclose(after, target.next_logits(stream[None, :5]), atol=1e-5)
print("the length again:", cache.length)

# %% [markdown]
# **Predict before you run.** A sliding window of 4 tokens keeps its keys in a ring of 4 places. Three guesses have been
# written over the three oldest. Can they be taken back?

# %%
from gpt_model import GPTWithSWA, GPTWithSWAConfig

sliding = GPTWithSWA(GPTWithSWAConfig(vocab_size=3, context_length=32, n_layer=1, n_head=1, d_model=8, window=4))
try:
    list(generate_speculatively(sliding, start, 10))
except ValueError as error:
    print(error)

# %% [markdown]
# ## 10. An oracle
#
# `transformers` has assisted generation. With the same two models it must write the same greedy text.

# %%
import tempfile
from pathlib import Path

import transformers

transformers.logging.set_verbosity_error()
folder = Path(tempfile.mkdtemp())
theirs = []
for name, model in (("target", target), ("draft", draft)):
    model.save_pretrained(folder / name)
    theirs.append(transformers.AutoModelForCausalLM.from_pretrained(folder / name).eval())
ids = torch.tensor([prompt])
assisted = theirs[0].generate(
    ids,
    attention_mask=torch.ones_like(ids),
    assistant_model=theirs[1],
    max_new_tokens=40,
    do_sample=False,
    pad_token_id=0,
)
assert assisted[0, len(prompt) :].tolist() == plain[:40]
print("the same 40 tokens")

# %% [markdown]
# ## 11. Exercises
#
# **1. `accept_probability`** (easy, 5 minutes). The probability with which a guess x is accepted, from p(x) and q(x).

# %%
from gpt_model.exercises.ex12 import check_accept_probability, check_expected_tokens, check_leftover, check_lookup
from utils.exercises import attempt


def accept_probability(p_x, q_x): ...


attempt(check_accept_probability, accept_probability)

# %% [markdown]
# **2. `leftover`** (easy, 10 minutes). The distribution from which a refused guess is replaced: p and q are tensors
# (V,).


# %%
def leftover(p, q): ...


attempt(check_leftover, leftover)

# %% [markdown]
# **3. `expected_tokens`** (medium, 10 minutes). Tokens a pass gives on average, where guess i, counted from 0, is
# accepted with probability `rates[i]` once it is reached.


# %%
def expected_tokens(rates): ...


attempt(check_expected_tokens, expected_tokens)

# %% [markdown]
# **4. `lookup`** (medium, 20 minutes). Prompt lookup with one length: the up to `n` tokens that followed the last
# `size` tokens of `text` when these last occurred before; an empty list if they never did.


# %%
def lookup(text, size, n): ...


attempt(check_lookup, lookup)

# %% [markdown]
# <details><summary>Solution: `accept_probability`</summary>
#
# ```python
# def accept_probability(p_x, q_x):
#     return min(1, p_x / q_x)
# ```
# </details>
#
# <details><summary>Solution: `leftover`</summary>
#
# ```python
# def leftover(p, q):
#     left = (p - q).clamp(min=0)
#     return left / left.sum()
# ```
# </details>
#
# <details><summary>Solution: `expected_tokens`</summary>
#
# ```python
# def expected_tokens(rates):
#     total, reached = 1.0, 1.0
#     for rate in rates:
#         reached *= rate
#         total += reached
#     return total
# ```
# </details>
#
# <details><summary>Solution: `lookup`</summary>
#
# ```python
# def lookup(text, size, n):
#     tail = text[-size:]
#     for start in range(len(text) - size - 1, -1, -1):
#         if text[start : start + size] == tail:
#             return text[start + size : start + size + n]
#     return []
# ```
# </details>

# %% [markdown]
# ## 12. What to take along
#
# - One pass can judge several guesses, since a causal model gives its distribution at every place.
# - Accept with min(1, p / q), replace from (p - q)⁺: the result has distribution p, whatever guessed.
# - Tokens a pass: (1 - aᵏ⁺¹) / (1 - a). It pays if the guesser is right often and costs little: a above c, by far.
# - Prompt lookup costs nothing and pays where text repeats.
#
# **Pitfalls.** Drawing again from p after a refusal. Forgetting to roll back the cache. Penalties that do not count
# the guesses before. A draft with another tokenizer: its ids mean something else. Timing it on a model too small to
# wait for memory.
#
# **On other machines.** On CUDA passes over a few tokens are nearly flat for much longer, and one wait for the device
# is needed a pass, for the number of accepted tokens. It was not run here, nor on Apple's MPS.
#
# **The module.** The heart of `speculative.py` is short:

# %%
import inspect

print(inspect.getsource(judge).split('"""')[2])

# %% [markdown]
# And it is our toy: from p and q of section 1, a refused *blue* becomes *red*, and a refused token is never drawn
# again.

# %%
accepted, token = judge(P.repeat(2, 1), Q, torch.tensor([2]), torch.tensor([0.9, 0.5]))  # 0.9 is above 1/4: refused
print(accepted.item(), "accepted, then", words[token.item()])

# %% [markdown]
# **Sources.** Leviathan, Kalman, Matias 2023, *Fast Inference from Transformers via Speculative Decoding* · Chen et al.
# 2023, *Accelerating Large Language Model Decoding with Speculative Sampling* · Saxena 2023, *Prompt Lookup Decoding*.
#
# **The next question.** All of this makes a model write faster, and none of it makes it write better. How does a model
# *learn*: which loss, which steps, and how do you know that it goes well? Chapter 4, `pretraining`, begins there.
