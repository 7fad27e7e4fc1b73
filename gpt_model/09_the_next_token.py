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
# # The next token
#
# **A model gives 50,257 numbers. Which token comes next, and why is the best one not the best?**
#
# A language model does not write. It gives a number to every token that exists, and stops. What turns numbers into text
# is a draw. A draw needs rules: how bold, how far down the list, what about words that were just there? Each rule
# is two or three lines long. We see all of them on one distribution of six words, which you can work out in your
# head. Then on a small text, where they write.
#
# | | |
# |---|---|
# | you know | what logits are (notebook 06), what a cache is (chapter 2, notebook 02), logarithms |
# | you need | about 90 minutes, exercises apart; any laptop: no GPU, no network, one gigabyte of memory |
# | files | `sampling.py` and `generate.py` of this folder |
#
# | letter | meaning | shape or unit |
# |---|---|---|
# | V | tokens that exist | – |
# | B, T | texts side by side; tokens of a text | – |
# | l | logits, the model's scores | (B, V) |
# | p | probabilities, softmax of l | (B, V) |
# | c | counts: how often each token is in the text already | (B, V) |
# | u | uniform numbers from 0 to below 1 | (B, 1) |
# | t, k | temperature; how many tokens top-k keeps | (B, 1) |
# | H | entropy: the mean surprise of a draw | bits |
# | s | surprise of a token, -log p | nats, or bits |

# %% [markdown]
# What we need is on your machine already.

# %%
import math
import re

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

torch.set_num_threads(1)  # our tensors are tiny, and threads on a busy machine wait for each other

# %% [markdown]
# ## 1. Six words, by hand
#
# *The cat sat on the …* Six words may follow. The logits are 3, 2, 1, 0, -1 and -1, in units of ln 2, so that softmax
# becomes powers of two: 8 + 4 + 2 + 1 + ½ + ½ = 16. The probabilities are 1/2, 1/4, 1/8, 1/16, 1/32, 1/32.

# %%
words = ["mat", "sofa", "roof", "moon", "idea", "of"]
logits = torch.tensor([[3.0, 2, 1, 0, -1, -1]], dtype=torch.float64) * math.log(2)  # (1, V)
p = logits.softmax(dim=-1)  # (1, V)
print({word: round(32 * share, 3) for word, share in zip(words, p[0].tolist())}, "/ 32")

# %% [markdown]
# *Greedy* always takes the best word: `mat`. It is the best guess if you are paid for each hit. But half of all cats
# sit somewhere else, and greedy says so never. We come back to that.
#
# ### Drawing with one number
#
# Lay the six probabilities end to end, on a line from 0 to 1. Throw one uniform number u onto it. It falls into the
# stretch of a word just as often as that word is probable. The ends of the stretches are at 0.5, 0.75, 0.875,
# 0.9375, 0.96875 and 1. As a loop:


# %%
def draw_naive(probabilities, u):
    end = 0.0
    for i, share in enumerate(probabilities):
        end += share
        if u < end:
            return i
    return len(probabilities) - 1  # rounding: the sum ended below u


# %% [markdown]
# **Predict before you run (1).** Which words do u = 0.10, 0.70, 0.90 and 0.95 give? Look at the ends above.

# %%
for u in (0.10, 0.70, 0.90, 0.95):
    print(f"u = {u:.2f}: {words[draw_naive(p[0].tolist(), u)]}")

# %% [markdown]
# The line, and the four numbers on it. The upper curve is the same in another form: the *cumulative* probability. To
# draw is to go from u on the vertical axis to the step that it meets. Hence the name: inversion.

# %%
figure, (line, steps) = plt.subplots(2, 1, figsize=(6.5, 4), height_ratios=[1, 3], layout="constrained")
ends = p[0].cumsum(0).tolist()
for i, (end, share) in enumerate(zip(ends, p[0].tolist())):
    line.barh(0, share, left=end - share, color=str(0.95 - 0.12 * i), edgecolor="black")
    line.text(end - share / 2, 0.55, words[i], ha="center", fontsize=7, rotation=0 if share > 0.05 else 90)
line.plot([0.10, 0.70, 0.90, 0.95], [0] * 4, "v", color="black", markerfacecolor="white")
line.set(xlabel="u, uniform from 0 to 1", yticks=[], ylim=(-0.5, 1.5), xlim=(0, 1))
line.spines[["top", "left", "right"]].set_visible(False)
steps.step(range(7), [0, *ends], where="post", color="black")
for u in (0.10, 0.70, 0.90, 0.95):
    i = draw_naive(p[0].tolist(), u)
    steps.plot([0, i, i], [u, u, 0], "--", color="0.5", linewidth=1)
steps.set(xticks=range(6), ylabel="cumulative p", ylim=(0, 1.05), xlim=(0, 6))
steps.set_xticklabels(words, ha="left")
plt.show()

# %% [markdown]
# Loops over a vocabulary are slow. The ends are sorted by nature, so the place of u is found by halving: that is
# `torch.searchsorted`, and the module's `invert`. Ten thousand draws by both, the same numbers u:

# %%
from gpt_model.sampling import invert

n = 10_000
u = torch.rand(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # (n, 1)
many = p.expand(n, -1).contiguous()  # (1, V) -> (n, V)
drawn = invert(many, u)[:, 0]  # (n,)
assert drawn.tolist() == [draw_naive(p[0].tolist(), x) for x in u[:, 0].tolist()]
print("naive = fast:", dict(zip(words, torch.bincount(drawn, minlength=6).tolist())))

# %% [markdown]
# How many times as fast? By turns, on a vocabulary of GPT-2's size and 8 texts:

# %% tags=["volatile"]
from utils.benchmarking import median, time_by_turns

wide = torch.randn(8, 50257, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)  # (B, V)
rows, eight = wide.tolist(), torch.rand(8, 1)
times = {"naive": lambda: [draw_naive(row, x) for row, (x,) in zip(rows, eight.tolist())]}
times = median(time_by_turns(times | {"fast": lambda: invert(wide, eight)}, 7))
print(f"naive {times['naive'] * 1e3:.2f} ms, fast {times['fast'] * 1e3:.2f} ms: {times['naive'] / times['fast']:.0f} ×")

# %% [markdown]
# ### Do the draws follow p?
#
# A rule for that was written down before computers were. Of n draws, n·p of each word are expected. Add up the squared
# misses, each over what was expected (Pearson 1900). Six words leave five free numbers. If all is well, the
# sum is above 20.5 once in a thousand times.

# %%
import scipy.stats


def chi_square(drawn, p):
    expected = len(drawn) * p
    return float(((torch.bincount(drawn, minlength=len(p)) - expected) ** 2 / expected).sum())


print(f"limit {scipy.stats.chi2.ppf(0.999, df=5):.1f}, inversion {chi_square(drawn, p[0]):.1f}")

# %% [markdown]
# ### Another way: the Gumbel-max trick
#
# Give *each* word a uniform number of its own, add -ln(-ln u) to its logit, and take the best. It looks like magic, and
# is a race. -ln(u) / p is the waiting time of an alarm clock that rings at rate p. The clock that rings first is
# word i with probability p_i. The smallest -ln(u) / p is the largest ln p - ln(-ln u).
#
# Next to it a wrong way that looks just as good: multiply each probability by a uniform number, and take the largest.
#
# **Predict before you run (2).** Does the wrong way give too many of the best word, or too few?

# %%
noise = torch.rand(n, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)  # (n, V)
gumbel = (logits - (-noise.log()).log()).argmax(dim=-1)  # (n,)
wrong = (p * noise).argmax(dim=-1)  # (n,)
for name, ids in (("inversion", drawn), ("Gumbel-max", gumbel), ("argmax of p · u", wrong)):
    shares = (torch.bincount(ids, minlength=6) / n).tolist()
    print(f"{name:16} {[round(share, 2) for share in shares]}  chi-square {chi_square(ids, p[0]):8.1f}")

# %% [markdown]
# Far too many. The test has teeth. Gumbel needs V numbers a draw where inversion needs one. In exchange it needs no sum
# over the vocabulary. This house inverts: one number for each text and step is easily made on the CPU, and is the
# same on every device.
#
# ## 2. Why the best one is not the best
#
# Surprise is -log₂ p, in bits: `mat` has 1, `sofa` 2, `idea` 5. The mean surprise of a draw is the *entropy*. By hand:
#
# $$H = \tfrac12\cdot1 + \tfrac14\cdot2 + \tfrac18\cdot3 + \tfrac1{16}\cdot4 + \tfrac1{32}\cdot5 +
# \tfrac1{32}\cdot5 = 1.9375 \text{ bits}$$


# %%
def entropy(p):
    return torch.xlogy(p, 1 / p).sum(dim=-1) / math.log(2)  # (…, V) -> (…): bits; 0 · log 0 counts as 0


print(f"H = {float(entropy(p)):.4f} bits")
assert abs(float(entropy(p)) - 1.9375) < 1e-12

# %% [markdown]
# Now 20 such places in a row. Greedy writes 20 times `mat`, with a surprise of 20 · 1 bits. No other text of 20 words
# is as probable.
#
# **Predict before you run (3).** You draw 1,000 texts of 20 words. What is their mean surprise? How many of
# them are as probable as greedy's?

# %%
texts = drawn[:10_000].view(500, 20)  # (texts, words)
texts = torch.cat([texts, gumbel.view(500, 20)])  # (1000, words): both ways of drawing
surprise = -p[0].log2()[texts].sum(dim=1)  # (1000,) bits
print(f"mean {float(surprise.mean()):.1f} bits, 20 · H = {20 * 1.9375:.2f}, the least {float(surprise.min()):.0f}")
print("texts with 20 bits:", int((surprise < 20.5).sum()), "of", len(surprise))

# %% [markdown]
# None. Each drawn text is much less probable than greedy's, and all of them together are what the model says the world
# looks like. The most probable text is one that nearly nobody writes. It is like the most probable sequence of a
# biased coin: heads, heads, heads. This is the first half of the answer. The second half needs a model that reads
# what it wrote.
#
# ## 3. Greedy and its loops
#
# A small text. All of it stands here.

# %%
TEXT = """\
The old sailor lives in a small house by the sea. Every morning he walks to the harbour and looks at the boats.
The sea is grey in the morning and blue in the evening. When the wind is strong, the boats stay in the harbour.
When the wind is weak, the boats go out to the sea and come back in the evening with fish.
The old sailor has a dog. The dog is small and grey, and it walks with him to the harbour.
One morning the old sailor looks at the sea and sees a light. It is a small light, far out, where no boat should be.
The dog sees the light too. It looks at the sea and does not bark.
The wind is strong that morning, and the boats stay in the harbour. So the old sailor takes his own boat.
It is a small boat, and it is old. The dog jumps in. They go out to the sea, and the wind takes them far from the house.
The light comes near. It is a lamp in a bottle, and in the bottle is a letter.
The letter says: when you read this, the sea has been kind to you.
Put the lamp in your window, and it will be kind to me.
In the evening the old sailor comes back to the harbour. He puts the lamp in the window of the small house by the sea.
Every evening he looks at the light in the window. Far out, where no boat should be, another light looks back at him.
"""

# %% [markdown]
# The simplest model that reads: a *bigram*. It knows one word, the last one, and has counted what followed it. So that
# no word is impossible, each row gets a tenth of a count, spread as the words are spread in the text.

# %%
tokens = re.findall(r"\w+|[^\w\s]", TEXT.lower())
vocabulary = list(dict.fromkeys(tokens))  # in the order of the text
V = len(vocabulary)
ids = torch.tensor([vocabulary.index(word) for word in tokens])  # (T,)
counts = torch.zeros(V, V, dtype=torch.float64)
counts.index_put_((ids[:-1], ids[1:]), torch.ones(len(ids) - 1, dtype=torch.float64), accumulate=True)
print(len(tokens), "words,", V, "different ones")

# %% [markdown]
# Row v of `bigram` has the log-probabilities of what follows word v: logits as a model gives them. Two sanity numbers.
# A model that knows nothing is surprised by ln V a word. Ours, on the text that it counted, must be well below.

# %%
unigram = torch.bincount(ids, minlength=V).double() / len(ids)  # (V,)
bigram = ((counts + 0.1 * unigram) / (counts.sum(dim=1, keepdim=True) + 0.1)).log()  # (V, V)
bigram = bigram.round(decimals=9)  # the last bits of a logarithm differ between processors, and would break ties
assert torch.allclose(bigram.exp().sum(dim=1), torch.ones(V, dtype=torch.float64))
print(f"ln V = {math.log(V):.2f} nats a word, the bigram {float(F.nll_loss(bigram[ids[:-1]], ids[1:])):.2f}")

# %% [markdown]
# Now let it write. `choose` gets the logits of one step, (1, V), and gives an id.


# %%
def write(choose, n, start="."):
    i, out = vocabulary.index(start), []
    for _ in range(n):
        i = choose(bigram[i : i + 1])
        out.append(i)
    return out


def text_of(ids):
    return " ".join(vocabulary[i] for i in ids)


# %% [markdown]
# **Predict before you run (4).** Greedy makes of every word *one* next word, always the same. There are 83 words. What
# must happen after at most 83 steps, whatever the text?


# %%
def greedy(logits):
    return int(logits.argmax())


print(text_of(write(greedy, 40)))

# %% [markdown]
# It must come back to a word that it had, and then goes round for ever. For a bigram that is a theorem. A larger model
# remembers more than one word, so nothing forces it. But each round makes the next one more probable, and it falls into
# the same hole (Holtzman et al. 2020, section 4). Our GPT will show it below.
#
# A number for it: the share of 4-grams that were there before. 0 is a text without any repetition of four words.


# %%
def repeated_share(ids, n=4):
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams)


def draw_with(generator):
    return lambda logits: int(invert(logits.exp(), torch.rand(1, 1, generator=generator, dtype=torch.float64)))


# %% [markdown]
# Greedy, a draw, and the text itself, each of 200 words:

# %%
drawn_text = write(draw_with(torch.Generator().manual_seed(0)), 200)
print(text_of(drawn_text[:40]))
for name, some in (("greedy", write(greedy, 200)), ("drawn", drawn_text), ("the text", ids[:200].tolist())):
    print(f"{name:9} repeated 4-grams: {repeated_share(some):.2f}")

# %% [markdown]
# Greedy is dull, the draw rambles. Both use the same model. The rest of this notebook is about the land between them.
#
# ## 4. Temperature
#
# Divide the logits by t before softmax. Then p becomes p^(1/t), brought to the sum 1. By hand with t = 2: square roots
# of 8, 4, 2, 1, ½, ½. With t = ½: squares, 64, 16, 4, 1, ¼, ¼, and their sum is 85.5.
#
# **Predict before you run (5).** What is the entropy for t near 0? For t without end? You need no computer for either.

# %%
from gpt_model.sampling import scale_by_temperature


def at(t):
    return scale_by_temperature(logits, torch.tensor([[t]], dtype=torch.float64)).softmax(dim=-1)  # (1, V)


assert torch.allclose(at(0.5) * 85.5, torch.tensor([[64, 16, 4, 1, 0.25, 0.25]], dtype=torch.float64))
for t in (0.01, 0.5, 1.0, 2.0, 1000.0):
    print(f"t = {t:7.2f}: H = {float(entropy(at(t))):.2f} bits, best word {float(at(t)[0, 0]):.3f}")

# %% [markdown]
# 0 bits: no choice is left. And log₂ 6 = 2.585 bits: a fair die. The way from one to the other:

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3), layout="constrained")
for number, t in enumerate((0.5, 1.0, 2.0)):
    places = [i + 0.27 * (number - 1) for i in range(6)]
    left.bar(places, at(t)[0].tolist(), 0.27, color=str(0.2 + 0.35 * number), edgecolor="black", label=f"t = {t}")
left.set(xticks=range(6), xticklabels=words, ylabel="probability")
left.legend(frameon=False, fontsize=8)
ts = torch.logspace(-1.3, 1.7, 60).tolist()
right.plot(ts, [float(entropy(at(t))) for t in ts], color="black")
right.axhline(math.log2(6), linestyle=":", color="0.4")
right.text(0.06, math.log2(6) - 0.2, "log₂ 6", fontsize=8)
right.set(xscale="log", xlabel="temperature t", ylabel="entropy H (bits)")
plt.show()

# %% [markdown]
# A division by 0 has no place in this. t = 0 means greedy, and the module leaves it to the draw: `scale_by_temperature`
# divides by 1 there. Written naively it fails without a message:

# %%
print("naive:", (logits / 0.0).softmax(dim=-1)[0].tolist())
print("module, in 32nds:", [round(32 * x, 2) for x in at(0.0)[0].tolist()], "and then argmax")

# %% [markdown]
# inf - inf is *not a number*, and everything after it too. Now the loops. How much of the bigram's text repeats itself,
# over the temperature? Eight texts of 100 words at each.

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
ts, shares = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0], []
for t in ts:
    draw = draw_with(torch.Generator().manual_seed(0))
    some = [write(lambda logits, draw=draw, t=t: draw(logits / t), 100) for _ in range(8)]
    shares.append(sum(map(repeated_share, some)) / 8)
axes.plot(ts, shares, "o-", color="black", label="drawn by the bigram")
axes.axhline(repeated_share(ids.tolist()), linestyle="--", color="0.4", label="the text itself")
axes.set(xlabel="temperature", ylabel="repeated 4-grams (share)", ylim=(0, 1))
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# Low temperatures do not cure greedy, they are greedy with a fever. High ones do, at the price of sense. Temperature
# turns *everything* up: the good second word, and the thousands that should never come.
#
# ## 5. Cutting the tail: top-k, top-p, min-p
#
# GPT-2 gives each of 50,257 tokens some probability. If each of 50,000 bad ones has one in a million, then one draw in
# twenty is bad: 50,000 / 1,000,000. And one bad word leads a text astray. So: cut.
#
# **Top-k** keeps the k best. Look at it on two distributions: ours, and a flat one of 50 words.

# %%
from gpt_model.sampling import keep_min_p, keep_top_k, keep_top_p

flat = torch.zeros(1, 50, dtype=torch.float64)  # (1, V)
for name, some in (("peaked", logits), ("flat", flat + torch.arange(50) * -0.001)):
    kept = keep_top_k(some, torch.tensor([[3]]), most=3).isfinite()  # (1, V)
    print(f"{name:7} top-k 3 keeps {int(kept.sum())} tokens, p = {float(some.softmax(-1)[kept].sum()):.3f} together")

# %% [markdown]
# The same three tokens, whether the model is sure or not. On the flat one k = 3 throws away 94% of what the model
# thinks, and for no reason. **Top-p**, the *nucleus*, keeps the fewest of the best that have probability p together.
#
# **Predict before you run (6).** The sums of our six words are 0.5, 0.75, 0.875, 0.9375, 0.96875, 1. How many tokens
# does p = 0.8 keep? And p = 0.3? How many of the 50 flat ones does 0.8 keep?


# %%
def size_of_nucleus(logits, p):
    return int(keep_top_p(logits, torch.tensor([[p]])).isfinite().sum())


print("peaked:", {p: size_of_nucleus(logits, p) for p in (0.3, 0.7, 0.8, 0.9)})
print("flat:  ", {0.8: size_of_nucleus(flat + torch.arange(50) * -0.001, 0.8)})

# %% [markdown]
# A token goes if *those before it* have p already. So the best one always stays, and the last one that is needed too.
# On the flat distribution 40 are left, without anybody saying "40".
#
# **Min-p** asks something else: how does a token compare with the best? With min_p = 0.2 whatever is at least a fifth
# as probable as the best stays. With us, 1/2 · 0.2 = 0.1: three words. All three on a real model, our bigram. Each dot
# is one word; the model's next-word distribution after it has some entropy, and each rule keeps so many tokens.

# %%
kept = {
    "top-k, 5": keep_top_k(bigram, torch.full((V, 1), 5), most=5),
    "top-p, 0.8": keep_top_p(bigram, torch.full((V, 1), 0.8)),
    "min-p, 0.2": keep_min_p(bigram, torch.full((V, 1), 0.2, dtype=torch.float64)),
}
sizes = {name: some.isfinite().sum(dim=1) for name, some in kept.items()}  # (V, V) -> (V,)
H = entropy(bigram.exp())  # (V,)
print({name: (int(size.min()), int(size.max())) for name, size in sizes.items()}, "fewest and most")

# %% [markdown]
# The same, drawn:

# %%
figure, axes = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
for (name, size), marker, color in zip(sizes.items(), "s^o", ("0.75", "black", "0.4")):
    axes.plot(H.tolist(), size.tolist(), marker, color=color, markersize=4, markerfacecolor="none", label=name)
axes.set(xlabel="entropy of the next word (bits)", ylabel="tokens kept", yscale="log")
axes.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
axes.minorticks_off()
axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# Look at the left: where the model is sure, top-p and min-p keep one or two words, and top-k drags in three or four
# more. Where a sixth is as good as the fifth it keeps both, rather than choose by id. On the right, five are too few.
# The other two follow the model.
#
# ## 6. Penalties, and a bug
#
# Against loops there is a blunter tool: make less probable what is in the text already. CTRL (Keskar et al. 2019,
# section 4.1) divides the logit of each such token by r > 1. So it says in the formula. Let us do it, after a text with
# `mat` and `idea` in it:


# %%
def penalise_by_formula(logits, r, counts):
    return torch.where(counts > 0, logits / r, logits)


seen = torch.tensor([[1, 0, 0, 0, 1, 0]])  # (1, V): mat and idea are in the text
before, after = p[0], penalise_by_formula(logits, 2.0, seen).softmax(dim=-1)[0]
for i in (0, 4, 5):
    print(f"{words[i]:5} {32 * float(before[i]):5.2f} / 32 -> {32 * float(after[i]):5.2f} / 32")

# %% [markdown]
# **Seen:** `mat` became less probable, as it should. `idea` became *more* probable: twice as much as before. A penalty
# that rewards. **Diagnosed:** look at the logits themselves.

# %%
print("unpenalised, in ln 2:", [round(x, 2) for x in (logits[0] / math.log(2)).tolist()])
by_formula = penalise_by_formula(logits, 2.0, seen)
print("penalised, in ln 2:  ", [round(x, 2) for x in (by_formula[0] / math.log(2)).tolist()])

# %% [markdown]
# 3 / 2 is less than 3. But -1 / 2 is *more* than -1. Dividing moves a number towards 0, and for a negative logit that
# is up. Part of its rise is innocent: all others share what `mat` gave away. `of` shows how much. It has the same
# logit, was not in the text, and rose less. **Mended:** divide what is positive, multiply what is negative.


# %%
def penalise(logits, r, counts):
    return torch.where(counts > 0, torch.where(logits > 0, logits / r, logits * r), logits)


after = penalise(logits, 2.0, seen).softmax(dim=-1)[0]
for i in (0, 4, 5):
    print(f"{words[i]:5} {32 * float(before[i]):5.2f} / 32 -> {32 * float(after[i]):5.2f} / 32")

# %% [markdown]
# `idea` is now less probable than `of`. The module says the same:

# %%
from gpt_model.sampling import penalise_frequency, penalise_repetition

two = torch.tensor([[2.0]], dtype=torch.float64)
assert torch.equal(penalise(logits, 2.0, seen), penalise_repetition(logits, two, seen))
assert not torch.equal(by_formula, penalise_repetition(logits, two, seen))
print("penalise = penalise_repetition")

# %% [markdown]
# **What does not work even so.** Softmax does not care where zero is: add 5 to all logits, and p is the same. But this
# penalty does care. The same model, with all logits moved:

# %%
for shift in (-5, 0, 5):
    moved = penalise(logits + shift, 1.3, seen).softmax(dim=-1)[0]
    print(f"logits {shift:+d}: mat {float(moved[0]):.3f}, idea {float(moved[4]):.3f}")

# %% [markdown]
# Three answers to one question. The *frequency* and the *presence* penalty (OpenAI's API) have no such flaw: they
# subtract, f for each time that a token is in the text, and q if it is there at all. By hand: after `mat mat mat idea`
# with f = ln 2 / 2 and q = ln 2, how far down do `mat` and `idea` go? 3/2 + 1 = 2.5 and 1/2 + 1 = 1.5, in units of ln
# 2.

# %%
times_seen = torch.tensor([[3, 0, 0, 0, 1, 0]])  # (1, V)
f, q = torch.tensor([[math.log(2) / 2]]), torch.tensor([[math.log(2)]])
down = logits - penalise_frequency(logits, f, q, times_seen)
print([round(x, 2) for x in (down[0] / math.log(2)).tolist()])
moved = penalise_frequency(logits + 5, f, q, times_seen).softmax(dim=-1)
assert torch.allclose(moved, penalise_frequency(logits, f, q, times_seen).softmax(dim=-1))

# %% [markdown]
# ## 7. Every rule on one distribution
#
# `Sampling` holds the settings, `Sampler.adjust` applies them. Eight settings, the same six words, and `mat mat mat
# idea` as the text so far. White is what the model said, dark what is drawn from.

# %%
from gpt_model.sampling import Sampler, Sampling

settings = {
    "greedy": Sampling(temperature=0),
    "temperature 0.5": Sampling(temperature=0.5),
    "temperature 2": Sampling(temperature=2),
    "top-k 3": Sampling(top_k=3),
    "top-p 0.7": Sampling(top_p=0.7),
    "min-p 0.2": Sampling(min_p=0.2),
    "repetition 1.5": Sampling(repetition_penalty=1.5),
    "frequency 0.5": Sampling(frequency_penalty=0.5),
}
sampler = Sampler(list(settings.values()))
adjusted = sampler.adjust(logits.expand(8, -1), times_seen.expand(8, -1))  # (1, V) -> (8, V)
drawn_from = sampler.probabilities(adjusted)  # (8, V)

# %% [markdown]
# One call for eight texts, each with its own settings: that is what the columns (B, 1) are for.

# %%
figure, grid = plt.subplots(2, 4, figsize=(9, 4), sharex=True, sharey=True, layout="constrained")
for axes, name, row in zip(grid.flat, settings, drawn_from.tolist()):
    axes.bar(range(6), p[0].tolist(), 0.9, color="white", edgecolor="0.4")
    axes.bar(range(6), row, 0.5, color="0.25")
    axes.set_title(f"{name}\nH = {float(entropy(torch.tensor(row))):.2f} bits", fontsize=9)
    axes.set_xticks(range(6), words, rotation=60, fontsize=8)
for axes in grid[:, 0]:
    axes.set_ylabel("probability")
plt.show()

# %% [markdown]
# ### The order matters
#
# Top-p before or after temperature 2: is that the same? After it, the distribution is flatter, and needs more tokens to
# reach 0.8.
#
# **Predict before you run (7).** At temperature 2 the probabilities are about 0.33, 0.23, 0.16, 0.12, 0.08, 0.08. How
# many stay with p = 0.8, and how many stayed at temperature 1?

# %%
two, most = torch.tensor([[2.0]]), torch.tensor([[0.8]])
first_t = keep_top_p(scale_by_temperature(logits, two), most).softmax(dim=-1)
first_p = scale_by_temperature(keep_top_p(logits, most), two).softmax(dim=-1)
print("temperature, then top-p:", [round(x, 3) for x in first_t[0].tolist()])
print("top-p, then temperature:", [round(x, 3) for x in first_p[0].tolist()])

# %% [markdown]
# `moon` can come in one order, and never in the other. Neither is wrong. But a setting means something only with its
# order. The module's is: penalties, temperature, top-k, top-p, min-p. Top-k alone does not care, because a temperature
# changes no ranks.
#
# ### The oracle
#
# `transformers` has each rule as a class. Ours against theirs, on random logits of 61 tokens, all at once:

# %%
import transformers
from transformers.generation import logits_process as theirs

transformers.logging.set_verbosity_error()
random = 3 * torch.randn(1, 61, generator=torch.Generator().manual_seed(0))  # (1, V)
text = torch.tensor([[1, 5, 9, 5]])  # (1, T)
scores = theirs.RepetitionPenaltyLogitsProcessor(1.3)(text, random.clone())
rules = [theirs.TemperatureLogitsWarper(0.8), theirs.TopKLogitsWarper(20), theirs.TopPLogitsWarper(0.9)]
for rule in [*rules, theirs.MinPLogitsWarper(0.05)]:
    scores = rule(text, scores)

# %% [markdown]
# The same with one `Sampling`. The counts of a text come from `count_tokens`.

# %%
from gpt_model.sampling import count_tokens

ours = Sampler([Sampling(0.8, 20, 0.9, 0.05, 1.3)])
mine = ours.probabilities(ours.adjust(random, count_tokens(text, 61, padding=[0])))
torch.testing.assert_close(mine, scores.softmax(dim=-1))
print("ours = transformers':", int((mine > 0).sum()), "of 61 tokens are left")

# %% [markdown]
# ## 8. A model that remembers more: a small GPT
#
# Now with the real loop. A tokenizer of 402 tokens, trained on the text above, and a GPT of two blocks. By hand: the
# embeddings have (402 + 64) · 64 numbers; a block has 12 · 64² weights and 13 · 64 biases and norms; the last norm 2 ·
# 64.

# %%
from gpt_model import GPT, GPTConfig
from working_with_text_data.bytepair_enc import BytePairTokenizer

tokenizer = BytePairTokenizer.train([TEXT], 420)
data = torch.tensor(tokenizer.encode_ordinary(TEXT))  # (T,)
torch.manual_seed(0)
config = GPTConfig(tokenizer.n_vocab, context_length=64, n_layer=2, n_head=4, d_model=64, dropout=0.1)
model = GPT(config)
by_hand = (tokenizer.n_vocab + 64) * 64 + 2 * (12 * 64**2 + 13 * 64) + 2 * 64
assert by_hand == model.n_parameters
print(f"{len(data)} tokens of text, {tokenizer.n_vocab} in the vocabulary, {by_hand:,} parameters")

# %% [markdown]
# A step of learning. How learning works is chapter 4's; here we need a model that has learned a little.


# %%
def step(model, optimizer, windows):
    logits = model(windows[:, :-1])  # (B, T, V)
    loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())  # (B · T, V) and (B · T,)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def some_windows(n, generator, length=65):
    starts = torch.randint(len(data) - length + 1, (n,), generator=generator).tolist()
    return torch.stack([data[start : start + length] for start in starts])  # (n, length)


# %% [markdown]
# Sanity first. A fresh model is surprised by about ln V. And one batch must be learnt by heart, or something is broken.

# %%
import copy

fresh, one_batch = copy.deepcopy(model), some_windows(2, torch.Generator().manual_seed(0))
optimizer = torch.optim.AdamW(fresh.parameters(), lr=5e-3)
losses = [step(fresh, optimizer, one_batch) for _ in range(80)]
assert abs(losses[0] - math.log(tokenizer.n_vocab)) < 0.1 and losses[-1] < 0.3
print(f"ln V = {math.log(tokenizer.n_vocab):.1f}, first loss {losses[0]:.1f}; by heart: below 0.3")

# %% [markdown]
# And now 60 steps on windows from everywhere. We stop early on purpose: a model that knows the text by heart would only
# recite it.

# %% tags=["volatile"]
generator = torch.Generator().manual_seed(0)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
losses = [step(model, optimizer, some_windows(16, generator)) for _ in range(60)]
model.eval()
print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f} nats a token")

# %% [markdown]
# The loop of writing is `generate`: it gives id after id. Three settings, one model, the same beginning.

# %% tags=["volatile"]
from gpt_model.generate import generate

prompt = tokenizer.encode_ordinary("The old sailor")
for sampling in (Sampling(temperature=0), Sampling(seed=0), Sampling(0.7, top_p=0.9, seed=0)):
    out = list(generate(model, prompt, 120, sampling))
    print(f"t = {sampling.temperature}, top-p {sampling.top_p}: repeated 4-grams {repeated_share(out):.2f}")
    print("  ", repr(tokenizer.decode(out)))

# %% [markdown]
# At temperature 0, look for a phrase that comes back. At temperature 1, look for half words and bytes that are no
# characters: the tail of section 5, drawn. The middle setting is a compromise, not a cure; judge for yourself.
#
# Is greedy what others call greedy? `transformers` has a GPT-2 of its own. It gets our weights, and its own loop.

# %%
from gpt_model.pretrained import to_huggingface

shape = {"vocab_size": config.vocab_size, "n_positions": 64, "n_layer": 2, "n_head": 4, "n_embd": 64}
other = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).eval()
other.load_state_dict(to_huggingface(model), strict=False)
length = 64 - len(prompt)
out = other.generate(torch.tensor([prompt]), max_new_tokens=length, do_sample=False, pad_token_id=0, eos_token_id=None)
assert out[0, len(prompt) :].tolist() == list(generate(model, prompt, length, Sampling(temperature=0)))
print("greedy = transformers' greedy, to the end of the context")

# %% [markdown]
# ## 9. Rules of your own
#
# A rule is a function of logits and the texts so far. `generate` takes any number of them, and calls them *before* its
# own rules. One that bans a token:

# %%
dot, light = tokenizer.encode_ordinary(".")[0], tokenizer.encode_ordinary(" light")


def ban(token):
    return lambda logits, texts: logits.index_fill(1, torch.tensor([token]), -torch.inf)


out = list(generate(model, prompt, 50, Sampling(seed=0), processors=[ban(dot)]))
assert len(out) == 50 and dot not in out
print("50 tokens, and no full stop among them")

# %% [markdown]
# And one that forces a pattern: at step n only the nth token of it is possible. After that the model is free.


# %%
def force(pattern, start):
    def rule(logits, texts):  # (B, V) and (B, T)
        n = texts.shape[1] - start
        if n >= len(pattern):
            return logits
        only = torch.full_like(logits, -torch.inf)
        only[:, pattern[n]] = 0
        return only

    return rule


pattern = tokenizer.encode_ordinary(" sees a light")
print(tokenizer.decode(list(generate(model, prompt, len(pattern), processors=[force(pattern, len(prompt))]))))

# %% [markdown]
# **What does not work.** Banning a *word* by banning a token. The word has other spellings in tokens:

# %%
for word in (" light", "light", " Light"):
    print(repr(word), [tokenizer.decode([i]) for i in tokenizer.encode_ordinary(word)])

# %% [markdown]
# Ban the first, and the model may still write the word with two others. A word is banned for certain only where text
# is looked at: section 13's stop strings do that.
#
# ## 10. A seed for each text
#
# Texts are written side by side; notebook 10 says why that pays. A text should not change because of its neighbours.
# Naively, one source of numbers serves all rows. Alone, a text gets the first three numbers; beside another, this:

# %%
alone = torch.rand(3, 1, generator=torch.Generator().manual_seed(5))  # (steps, 1)
together = torch.rand(3, 2, generator=torch.Generator().manual_seed(5))  # (steps, B)
print("alone:   ", [round(x, 3) for x in alone[:, 0].tolist()])
print("together:", [round(x, 3) for x in together[:, 0].tolist()])

# %% [markdown]
# The neighbour takes every other number. The same seed, another text. So `Sampler` has a source for each row:

# %%
one, both = Sampler([Sampling(seed=5)]), Sampler([Sampling(seed=5), Sampling(seed=6)])
print("alone:   ", [round(one.uniforms().item(), 3) for _ in range(3)])
print("together:", [round(both.uniforms()[0].item(), 3) for _ in range(3)])

# %% [markdown]
# With the model: three texts of *different length*, drawn together and each alone. `generate_tokens` yields the tokens
# of all rows as they come.

# %%
from gpt_model.generate import generate_tokens

prompts = [tokenizer.encode_ordinary(some) for some in ("The old sailor", "In the evening the dog", "It")]
seeds = [Sampling(0.8, seed=s) for s in (5, 6, 7)]
together = [[], [], []]
for token in generate_tokens(model, prompts, 30, seeds):
    together[token.row].append(token.id)
for row, some in enumerate(together):
    assert some == list(generate(model, prompts[row], 30, seeds[row]))
print("three texts of", [len(some) for some in prompts], "tokens: alone = together")

# %% [markdown]
# The products inside are summed in another order for three rows than for one. So "the same" is "but for rounding". A
# number u would have to fall within a hair of an end to show it.
#
# How can prompts of different lengths stand in one tensor? Aligned at their *ends*: then all rows write their next
# token into the same column. Only the beginning is ragged, and nobody looks there.

# %%
from attention_mechanisms.kv_cache import pad_left

batch, padding = pad_left(prompts)  # (B, longest), (B,)
for row, n in zip(batch.tolist(), padding.tolist()):
    print(" ".join(["   -"] * n + [f"{i:4}" for i in row[n:]]), "| next")

# %% [markdown]
# Aligned at the beginning instead, the next token of the shortest would have to be written into the middle, and
# `logits[:, -1]` would be the scores after padding. With the padding told to the cache, the last column is right for
# all:

# %%
with torch.inference_mode():
    right = model.next_logits(batch, model.make_cache(3, padding=padding))  # (B, V)
    forgotten = model.next_logits(batch, model.make_cache(3))  # the same without telling it
    for row, some in enumerate(prompts):
        own = model.next_logits(torch.tensor([some]))[0]  # (V,)
        same, off = torch.allclose(right[row], own, atol=1e-4), torch.allclose(forgotten[row], own, atol=1e-4)
        print(f"padding {int(padding[row])}: told {same}, not told {off}")

# %% [markdown]
# Only the row without padding survives when it is not told.
#
# ## 11. What a text's surprise means
#
# The probability of a text is the product over its tokens, so the log-probabilities add up. -Σ ln p is its *total
# surprise*, in nats. Divided by the number of tokens it is the loss of training; e to the power of that is the
# *perplexity*. With `n_logprobs` the loop gives them along. At temperature 0.5, whose probabilities are they: the
# model's, or those drawn from?

# %%
drawn = list(generate_tokens(model, [prompt], 20, Sampling(0.5, seed=1), n_logprobs=2))
total = -sum(token.logprob for token in drawn)
whole = torch.tensor([prompt + [token.id for token in drawn]])  # (1, T)
with torch.inference_mode():
    after = model(whole[:, :-1])[0, len(prompt) - 1 :]  # (1, T - 1, V) -> (20, V)
    for t in (1.0, 0.5):
        again = F.cross_entropy(after / t, whole[0, len(prompt) :], reduction="sum").item()
        print(f"at t = {t}: the loop's sum", "agrees" if abs(again - total) < 1e-2 else "is another")

# %% [markdown]
# The model's own. So texts that were drawn by different settings can be compared. Token by token, with the best two at
# each place:

# %% tags=["volatile"]
for token in drawn[:8]:
    best = ", ".join(f"{tokenizer.decode([i])!r} {math.exp(value):.2f}" for i, value in token.alternatives)
    print(f"{tokenizer.decode([token.id])!r:12} surprise {-token.logprob:5.2f} nats   best: {best}")
print(f"total {total:.1f} nats, perplexity {math.exp(total / 20):.2f}")

# %% [markdown]
# ## 12. Half characters
#
# A token is bytes, and a character may be spread over several. Decoded one by one, as a chat would show them:

# %%
some = tokenizer.encode_ordinary("The café 日.")
print("one by one:", "".join(tokenizer.decode([i]) for i in some))

# %% [markdown]
# `StreamDecoder` holds bytes back until a character is whole. Each piece that it gives is certain:

# %%
from working_with_text_data.bytepair_enc import StreamDecoder

decoder = StreamDecoder(tokenizer)
pieces = [decoder.feed(i) for i in some]
print(pieces)
assert "".join(pieces) + decoder.finish() == "The café 日."

# %% [markdown]
# ## 13. Stop strings across tokens
#
# A stop string ends the text. `the sea` is no token; it begins in one and ends in another. Naively, one looks for it in
# each piece:

# %%
from gpt_model.generate import stream_text

some = tokenizer.encode_ordinary("He looks at the same sea, and then at the sea again.")
pieces = [tokenizer.decode([i]) for i in some]
print(pieces)
print("found in a piece:", any("the sea" in piece for piece in pieces))

# %% [markdown]
# **Predict before you run (8).** The stop string is `the sea`. Which pieces can be shown at once, and which must wait?
# Think of `the` before `same`.

# %%
print(list(stream_text(some, tokenizer, stop=["the sea"])))

# %% [markdown]
# What *could* be the beginning of the stop string waits; as soon as it cannot be any more, it goes out. The `t` of `at`
# waited for a moment, and `the` until `n` came. No further token is asked for once the stop string is complete, and the
# stop string itself is never shown. Writing it by hand is exercise E.
#
# ## 14. The end of the context
#
# The model has 64 positions. What comes after the 64th token? Learned positions cannot slide: position 65 does not
# exist. So `generate` forgets the older half and reads the newer half again, from position 0. We listen at the
# transformer's door, and note what it reads:

# %%
reads = []
hook = model.transformer.register_forward_pre_hook(
    lambda _, given: reads.append((given[0].shape[1], int(given[1].max()) + 1))  # tokens read, columns in the cache
)
out = list(generate(model, prompt, 200, Sampling(seed=0)))
hook.remove()
print(f"{len(out)} tokens; more than one read at steps", [i for i, (n, _) in enumerate(reads) if n > 1])

# %% [markdown]
# The cache over the steps, from the live model:

# %%
figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
axes.plot([length for _, length in reads], color="black", label="columns in the cache")
axes.plot([n for n, _ in reads], "--", color="0.5", label="tokens read in this step")
axes.axhline(64, color="0.5", linewidth=0.8, linestyle=":")
axes.set(xlabel="step (tokens written)", ylabel="tokens", ylim=(0, 90))
axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")
plt.show()

# %% [markdown]
# What does that cost? A round with context C reads C / 2 tokens at once, and then C / 2 single ones, and writes C / 2 +
# 1 tokens. So C / (C / 2 + 1) are read for each token written. With C = 64 that is 64 / 33. Counted over the full
# rounds:

# %%
begins = [i for i, (n, _) in enumerate(reads) if n > 1][1:]
measured = sum(n for n, _ in reads[begins[0] : begins[-1]]) / (begins[-1] - begins[0])
assert measured == 64 / 33
print(f"formula 64 / 33 = {64 / 33:.3f}, counted {measured:.3f} tokens read for each token written")

# %% [markdown]
# Had each step read the whole window again, it would be 64 for each. The other price is not in the formula: after such
# a step, the model has forgotten half of what it knew.
#
# ## 15. Beam search: more probable, and duller
#
# Greedy takes the best *word*. The most probable *text* is something else: a good beginning may lead to a poor end.
# Beam search keeps the `width` best texts at each step. Ten lines, on the bigram:


# %%
def beam_search(start, width, n):
    beams = [(0.0, [vocabulary.index(start)])]
    for _ in range(n):
        longer = []
        for score, text in beams:
            row = bigram[text[-1]]  # (V,)
            best = row.sort(descending=True, stable=True).indices[:width].tolist()
            longer += [(score + float(row[i]), [*text, i]) for i in best]
        beams = sorted(longer, key=lambda beam: -round(beam[0], 9))[:width]
    return beams[0][0], beams[0][1][1:]


# %% [markdown]
# For a bigram the very best text can be found exactly: the best score that ends in word j is the best over all words i
# before it (Viterbi 1967). That is the oracle. Sixteen words after a full stop:

# %%
exact = bigram[vocabulary.index(".")]  # (V,)
for _ in range(15):
    exact = (exact[:, None] + bigram).max(dim=0).values  # (V, 1) + (V, V) -> (V,)
for width in (1, 5, 10, 30):
    score, text = beam_search(".", width, 16)
    print(f"width {width:3}: {score:6.2f} nats  {text_of(text)}")
print(f"the best   {float(exact.max()):7.2f} nats")

# %% [markdown]
# Width 1 is greedy. Wider beams find texts that are more than e³ times as probable, and even a width of 30 misses the
# very best by a hair: it dropped its beginning too early. Are they better texts? Look at what 60 words do. Beside
# greedy and the widest beam: a draw, and the text itself.

# %%
candidates = {
    "greedy": write(greedy, 60),
    "beam, 30": beam_search(".", 30, 60)[1],
    "drawn": drawn_text[:60],
    "the text": ids[:60].tolist(),
}


def surprises(text):
    before = [vocabulary.index("."), *text[:-1]]
    return (-bigram[before, text] / math.log(2)).tolist()  # (T,) bits


for name, text in candidates.items():
    mean = sum(surprises(text)) / len(text)
    print(f"{name:9} {mean:4.1f} bits a word, repeated 4-grams {repeated_share(text):.2f}, {len(set(text))} words")

# %% [markdown]
# A person's text is not the most probable one, not even under a model made of that very text. It goes up and down: easy
# words, and then one that says something. (Holtzman et al. 2020 show it for GPT-2, in figure 2.)

# %%
figure, grid = plt.subplots(4, 1, figsize=(7, 4.6), sharex=True, sharey=True, layout="constrained")
for axes, (name, text) in zip(grid, candidates.items()):
    axes.bar(range(60), surprises(text), color="0.3")
    axes.set_title(name, fontsize=9, loc="left")
grid[-1].set_xlabel("word")
figure.supylabel("surprise (bits)", fontsize=9)
plt.show()

# %% [markdown]
# So beam search answers a question that nobody asks of a story: which text is the most probable? Where there is one
# right answer, as in translation, the question makes sense. And it costs `width` times the model's work.
#
# ## 16. What a draw costs
#
# `keep_top_p` needs the tokens in order. To sort V numbers takes about V · log₂ V comparisons. To find only the k best
# takes about one look at each, and k · log₂ k to order those. For V = 50,257 and k = 1,000:

# %%
V_gpt2, few = 50257, 1000
by_sorting, by_topk = V_gpt2 * math.log2(V_gpt2), V_gpt2 + few * math.log2(few)
print(f"sort {by_sorting:,.0f}, topk {by_topk:,.0f} comparisons: {by_sorting / by_topk:.0f} ×")

# %% [markdown]
# The naive way, always sorting. Equal to the module's on a peaked and on a flat distribution:


# %%
def top_p_by_sorting(logits, p):
    ordered, order = logits.softmax(dim=-1).sort(descending=True)  # (B, V) both
    before = ordered.cumsum(dim=-1) - ordered
    cut = torch.ones_like(logits, dtype=torch.bool).scatter(1, order, before >= p)
    return logits.masked_fill(cut & (p < 1), -torch.inf)


normal = torch.randn(1, V_gpt2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # (1, V)
peaked, flat, nine = 4 * normal, 1 * normal, torch.tensor([[0.9]])
for some in (peaked, flat):
    assert torch.equal(top_p_by_sorting(some, nine), keep_top_p(some, nine))
    print(f"the best thousand have {float(some.softmax(-1).topk(few).values.sum()):.2f}")

# %% [markdown]
# Where the best thousand have p, nobody needs the rest. Where not, the module has to sort after all, and has looked in
# vain. Measured, by turns, in float32:

# %% tags=["volatile"]
from functools import partial

ways = {"sort": top_p_by_sorting, "module": keep_top_p}
for name, some in (("peaked", peaked.float()), ("flat", flat.float())):
    runs = {way: partial(cut, some, nine) for way, cut in ways.items()}
    times = median(time_by_turns(runs, 15))
    both = f"sort {times['sort'] * 1e3:5.2f} ms, module {times['module'] * 1e3:5.2f} ms"
    print(f"{name}: {both}: {times['sort'] / times['module']:.1f} ×")

# %% [markdown]
# The bare operations over the size of the vocabulary. If the formula held to the letter, the gap would grow with log V.

# %% tags=["volatile"]
sizes = [2000, 5000, 10_000, 20_000, 50_257, 100_000, 200_000]
measured = {"sort": [], "topk, 1000": []}
for size in sizes:
    some = torch.randn(1, size, generator=torch.Generator().manual_seed(0))  # (1, V)
    runs = {"sort": partial(some.sort, descending=True), "topk, 1000": partial(some.topk, 1000)}
    for name, value in median(time_by_turns(runs, 9)).items():
        measured[name].append(value * 1e3)

# %% [markdown]
# Measured with markers; the formula dotted: the number of comparisons, scaled to meet the last sort.

# %% tags=["volatile"]
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
axes.plot(sizes, measured["sort"], "o-", color="black", label="sort, measured")
axes.plot(sizes, measured["topk, 1000"], "s-", color="0.5", label="topk, measured")
unit = measured["sort"][-1] / (sizes[-1] * math.log2(sizes[-1]))
axes.plot(sizes, [unit * V * math.log2(V) for V in sizes], "k:", label="V log₂ V")
axes.plot(sizes, [unit * (V + few * math.log2(few)) for V in sizes], ":", color="0.5", label="V + k log₂ k")
axes.set(xscale="log", yscale="log", xlabel="vocabulary V (tokens)", ylabel="time (ms)")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# The order of the lines is as it should be. The rest did not work out: comparisons are not time. topk lies lower than
# its count, and sort may have jumps that no count explains. A count knows how many looks, not where the numbers lie.
#
# Does it matter? Set a draw with all rules beside one step of a model. This one has GPT-2's vocabulary and a small body
# with random weights: how long a step takes does not depend on what it says. The fastest of 30 turns, since whatever
# else the machine does only adds.

# %% tags=["volatile"]
torch.manual_seed(0)
middle = GPT(GPTConfig(n_layer=4, n_head=4, d_model=256)).eval()
rich = Sampler([Sampling(0.8, 50, 0.9, 0.05, seed=0)])
with torch.inference_mode():
    one = torch.tensor([[1]])
    scores = middle.next_logits(one)  # (1, V)
    runs = {"step": lambda: middle.next_logits(one), "draw": lambda: rich.draw(rich.adjust(scores))}
    times = {name: min(some) for name, some in time_by_turns(runs, 30).items()}
print(f"step {times['step'] * 1e3:.2f} ms, draw {times['draw'] * 1e3:.2f} ms, {middle.n_parameters:,} parameters")

# %% [markdown]
# The draw is the smaller part, but beside so small a body it is not nothing: read the ratio off before you call it
# free. GPT-2's smallest has nearly eight times as many parameters as this one, and its draw is from as many tokens.
#
# ## 17. Exercises
#
# Write the body in place of the dots and run the cell. The check says what is missing.

# %%
from gpt_model.exercises.ex09 import (
    check_gumbel_draw,
    check_nucleus,
    check_penalise_text,
    check_safe_length,
    check_total_surprise,
)
from utils.exercises import attempt

# %% [markdown]
# **A. A penalty for what was said** (easy, 5 minutes) `logits` is a tensor (V,), `text` a list of ids in which some may
# come twice. Return new logits with the repetition penalty `r` of section 6. Once in the text is as bad as twice.


# %%
def penalise_text(logits, text, r): ...


attempt(check_penalise_text, penalise_text)

# %% [markdown]
# **B. The nucleus** (medium, 10 minutes) `probabilities` is a list in the order of the ids. Return the *set of ids*
# that top-p keeps: the fewest of the best that have at least `p` together.


# %%
def nucleus(probabilities, p): ...


attempt(check_nucleus, nucleus)

# %% [markdown]
# **C. Gumbel-max** (medium, 10 minutes) `logits` (V,) and as many uniform numbers `u`, each above 0 and below 1. Return
# the id that is drawn, an int.


# %%
def gumbel_draw(logits, u): ...


attempt(check_gumbel_draw, gumbel_draw)

# %% [markdown]
# **D. The surprise of a text** (medium, 10 minutes) `logits` is (T, V): row i scores what *follows* `ids[i]`. Return
# the total surprise of `ids[1:]` in nats, a float. The first id is given, so nobody is surprised by it.


# %%
def total_surprise(logits, ids): ...


attempt(check_total_surprise, total_surprise)

# %% [markdown]
# **E. What may be shown?** (hard, 20 minutes) `text` has come so far, and holds none of the strings in `stops` yet. How
# many of its characters may be shown now? All but the longest end that could be the beginning of a stop string.


# %%
def safe_length(text, stops): ...


attempt(check_safe_length, safe_length)

# %% [markdown]
# ### Solutions
#
# <details><summary>Solution: `penalise_text`</summary>
#
# ```python
# import torch
#
#
# def penalise_text(logits, text, r):
#     new = logits.clone()
#     for i in set(text):
#         new[i] = logits[i] / r if logits[i] > 0 else logits[i] * r
#     return new
# ```
# </details>
#
# <details><summary>Solution: `nucleus`</summary>
#
# ```python
# def nucleus(probabilities, p):
#     kept, together = set(), 0.0
#     for i in sorted(range(len(probabilities)), key=lambda i: -probabilities[i]):
#         if together >= p:  # those before it have p already
#             break
#         kept.add(i)
#         together += probabilities[i]
#     return kept
# ```
# </details>
#
# <details><summary>Solution: `gumbel_draw`</summary>
#
# ```python
# import torch
#
#
# def gumbel_draw(logits, u):
#     return int((logits - torch.log(-torch.log(u))).argmax())
# ```
# </details>
#
# <details><summary>Solution: `total_surprise`</summary>
#
# ```python
# import torch.nn.functional as F
#
#
# def total_surprise(logits, ids):
#     return F.cross_entropy(logits[:-1], ids[1:], reduction="sum").item()
# ```
# </details>
#
# <details><summary>Solution: `safe_length`</summary>
#
# ```python
# def safe_length(text, stops):
#     waiting = 0
#     for stop in stops:
#         for n in range(1, min(len(stop) - 1, len(text)) + 1):
#             if text.endswith(stop[:n]):
#                 waiting = max(waiting, n)
#     return len(text) - waiting
# ```
# </details>

# %% [markdown]
# ## 18. What you take along
#
# **Recap**
#
# - A draw is one uniform number on a line of probabilities. Gumbel-max is the same distribution by V numbers.
# - The most probable text is no typical text: among a thousand drawn ones not a single one was as probable.
# - Greedy on a bigram must loop. Temperature moves the entropy from 0 to log₂ V, and turns up the bad with the good.
# - Top-k keeps a number, top-p a probability, min-p a ratio. The last two follow the model.
# - Rules have an order, and settings mean something only with it.
# - A text has its own seed. Prompts are aligned at their ends. Bytes wait for characters, text for stop strings.
# - Beam search finds what is more probable. It did not find what is better.
#
# **Pitfalls**, each seen above: the argmax of p · u; a temperature of 0 divided by; a penalty that rewards negative
# logits; a repetition penalty that depends on where zero is; a word banned by one of its tokens; one source of random
# numbers for all rows; padding that the cache was not told of; a stop string looked for in pieces; tokens decoded one
# by one.
#
# ### Reading guide
#
# Two functions decide. The first is the draw, the loop of section 1 without a loop. `nextafter` guards against a u that
# rounding carries to the very end:

# %%
import inspect

print(inspect.getsource(invert))

# %% [markdown]
# The second is the order of the rules:

# %%
print(inspect.getsource(Sampler.adjust))

# %% [markdown]
# Our own chain of this notebook against it, all rules at once, on the six words:

# %%
s = Sampling(0.8, 4, 0.9, 0.1, 1.5, frequency_penalty=0.25, presence_penalty=0.5)
ours = penalise(logits.float(), 1.5, times_seen) - 0.25 * times_seen - 0.5 * (times_seen > 0)
ours = ours / 0.8
ours = ours.masked_fill(ours < ours.topk(4).values[:, -1:], -torch.inf)  # (1, V) < (1, 1)
ours = top_p_by_sorting(ours, torch.tensor([[0.9]]))
ours = ours.masked_fill(ours.softmax(-1) < 0.1 * ours.softmax(-1).max(), -torch.inf)
assert torch.equal(ours, Sampler([s]).adjust(logits, times_seen))
print("toy = module, kept:", [word for word, score in zip(words, ours[0].tolist()) if score > -math.inf])

# %% [markdown]
# In `generate.py`, read `generate_tokens` next, and then `_next_logits`, which is section 14, and
# `_possible_beginning`, which is exercise E.
#
# **CUDA, Apple's MPS, Windows.** None of them was run here. Uniform numbers are made on the CPU on every device, so a
# seed means the same numbers everywhere; the logits differ by rounding. On CUDA the source says three things:
# `keep_top_p` sorts the whole vocabulary, because to ask whether a thousand are enough would mean to wait for the
# device; `generate_tokens` starts the next step before it looks at the last token; and a compiled step becomes a CUDA
# graph. MPS has no float64, so the toy cells that ask for it would have to run on the CPU, as they do here. Nothing in
# this notebook depends on the system's paths or processes, which is where Windows differs.
#
# **Sources.** Holtzman et al. 2020, *The Curious Case of Neural Text Degeneration* · Fan et al. 2018, *Hierarchical
# Neural Story Generation* (top-k) · Nguyen et al. 2024, *Turning Up the Heat: Min-p Sampling* · Keskar et al. 2019,
# *CTRL*, section 4.1 · Pearson 1900 (chi-square) · Viterbi 1967 · Gumbel-max: Maddison, Tarlow, Minka 2014, *A\*
# Sampling*, section 2.
#
# **The next question.** The draw costs the same for every model with this vocabulary. The step has all the weights to
# go through. And yet a step does hardly any arithmetic: one token goes through the model. What does the processor wait
# for? Notebook 10, `10_bound_by_memory`.
