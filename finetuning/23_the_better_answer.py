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
# # The better answer
#
# **Of two answers, one is better. How does a model learn from that alone, without a reward model and without
# reinforcement learning?**
#
# It is easier to say which of two answers is better than to write the best one. *Direct preference optimization*, DPO
# (Rafailov et al. 2023), learns from such comparisons with one line of loss. We derive the line on a set of four
# answers, where everything can be computed, and see that it arrives where theory says. Then a small model learns by it.
# There the rejected answers do become rare, and the chosen ones do not become frequent. We find out why, break it in
# four ways, and look for the case where comparisons know something that good examples do not.
#
# | | |
# |---|---|
# | you know | the training loop (notebook 13), fine-tuning (21), cross-entropy, the Kullback-Leibler divergence |
# | you need | about 90 minutes, exercises apart; any laptop: no GPU, no network, one gigabyte of memory |
# | files | `instruction/dpo.py`, `preferences.py` and `train_dpo.py` of this folder |
#
# | letter | meaning | shape or unit |
# |---|---|---|
# | x, y | a prompt, an answer | – |
# | y_w, y_l | the chosen and the rejected answer: w wins, l loses | – |
# | r | reward: how good an answer is | a number |
# | σ | σ(z) = 1 / (1 + e^-z) | – |
# | π, π_ref | the model that learns (the *policy*), and the model that it began as (the *reference*) | probability |
# | β | price of a nat of distance from the reference | reward / nat |
# | Z | what makes probabilities add up to 1 | – |
# | h | the reward margin | a number |
# | P | weights in the matrices of the blocks | numbers |

# %%
import copy
import math
import random

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

torch.set_num_threads(1)  # our tensors are tiny, and threads on a busy machine wait for each other

# %% [markdown]
# ## 1. From comparisons to numbers
#
# Bradley and Terry (1952): each answer has a number r, and a is preferred to b with probability σ(r_a - r_b). By hand:
# a wins 3 of 4. Then σ(r_a - r_b) = ¾, so r_a - r_b = ln(¾ / ¼) = ln 3. The difference is the logarithm of the odds.
# Only differences are ever seen: if 10 is added to both, nothing changes.


# %%
def wins(difference):
    return 1 / (1 + math.exp(-difference))


print(f"ln 3 = {math.log(3):.3f}, σ(ln 3) = {wins(math.log(3)):.2f}, σ(0) = {wins(0):.2f}")

# %% [markdown]
# Now three answers, each two compared eight times. Row i, column j: how often i was preferred to j.
#
# **Predict before you run (1).** a beats b with odds of 6 : 2, and b beats c with 5 : 3. Which odds does the model give
# to a against c, from these two alone?

# %%
won = torch.tensor([[0.0, 6, 7], [2, 0, 5], [1, 3, 0]])  # (answers, answers)
played = won + won.T
print(f"{(6 / 2) * (5 / 3):.0f} : 1, for differences add up, so odds multiply. In the table it is 7 : 1")

# %% [markdown]
# The data are not of one mind, so we look for the r that make the table most probable. The log-likelihood is
# Σ won_ij · ln σ(r_i - r_j). Its derivative by r_i has a plain meaning: *games won less games that the model thinks are
# won*.


# %%
def surplus(r):
    expected = (played * torch.sigmoid(r[:, None] - r[None, :])).sum(1)  # (answers,)
    return won.sum(1) - expected


r = torch.zeros(3)
print("at first, each is expected to win 8 of 16:", surplus(r).tolist())
for _ in range(200):
    r = r + 0.1 * surplus(r)
print("r less that of c:", [f"{value:.2f}" for value in (r - r[2]).tolist()])
assert surplus(r).abs().max() < 1e-3

# %% [markdown]
# This is logistic regression, and scikit-learn is the oracle. One row a comparison: +1 in the winner's column, -1 in
# the loser's, label 1; and the same mirrored with label 0. No intercept, no penalty.

# %%
from sklearn.linear_model import LogisticRegression

rows = [np.eye(3)[i] - np.eye(3)[j] for i in range(3) for j in range(3) for _ in range(int(won[i, j]))]
X, labels = np.array(rows + [-row for row in rows]), np.repeat([1, 0], len(rows))  # (2 · 24, 3), (2 · 24,)
fitted = LogisticRegression(C=np.inf, fit_intercept=False).fit(X, labels).coef_[0]
np.testing.assert_allclose(fitted - fitted[2], (r - r[2]).numpy(), atol=1e-2)
print("ours = scikit-learn's")

# %% [markdown]
# The curve is the model's; the points are the three shares that were seen. All three miss a little, and together they
# are as near as one number for each answer allows.

# %%
figure, axes = plt.subplots(figsize=(5, 2.6), layout="constrained")
line = np.linspace(-1, 3, 100)
axes.plot(line, 1 / (1 + np.exp(-line)), color="black", linewidth=1)
for i, j, name in ((0, 1, "a to b"), (1, 2, "b to c"), (0, 2, "a to c")):
    axes.plot(float(r[i] - r[j]), float(won[i, j] / played[i, j]), "o", color="black")
    axes.annotate(name, (float(r[i] - r[j]), float(won[i, j] / 8)), xytext=(6, -13), textcoords="offset points")
axes.set(xlabel="difference of r", ylabel="share preferred", ylim=(0, 1.05))
plt.show()

# %% [markdown]
# ### When one never loses
#
# **Predict before you run (2).** a was preferred 8 times of 8. What is r_a - r_b?

# %%
difference, seen = 0.0, []
for step in range(1, 10_001):
    difference += 0.1 * (8 - 8 * wins(difference))  # won less expected
    if step in (10, 100, 1000, 10_000):
        seen.append(round(difference, 1))
assert all(np.diff(seen) > 1.5)
print("after 10, 100, 1,000, 10,000 steps:", seen)

# %% [markdown]
# It has no end. Each ten times as many steps add about ln 10 = 2.3. Keep this in mind: where a rule makes the pairs,
# the right answer *always* wins, and nothing in the comparisons says when a difference is large enough.
#
# ## 2. High rewards, but stay near
#
# Say we know r. We want a policy whose answers have high rewards, but which stays near what the model was. Otherwise it
# would say the one best-paid thing for ever, or find texts that please the reward and nobody else:
#
# J(π) = E[ r(y) ] - β · KL(π ‖ π_ref), with KL(π ‖ π_ref) = Σ π(y) · ln( π(y) / π_ref(y) )
#
# The best π is known: **π\*(y) = π_ref(y) · e^(r(y)/β) / Z**. By hand: two answers, ½ each in the reference,
# r = (ln 3, 0), β = 1. Then ½ · 3 and ½ · 1, divided by their sum 2: π\* = (¾, ¼).


# %%
def best_policy(p_ref, r, beta):
    weights = p_ref * torch.exp(r / beta)  # (answers,)
    return weights / weights.sum()


def J(p, p_ref, r, beta):
    return (p * (r - beta * (p / p_ref).log())).sum()


print(best_policy(torch.tensor([0.5, 0.5]), torch.tensor([math.log(3), 0]), 1.0).tolist())

# %% [markdown]
# Why is it the best? Put ln π\* = ln π_ref + r/β - ln Z into J, and everything else goes:
#
# J(π) = β · ln Z - β · KL(π ‖ π\*)
#
# The first part does not depend on π. The second is 0 for π = π\* and below 0 for any other. That is the whole proof.
# With four answers and five random policies:

# %%
p_ref, r4, beta = torch.tensor([0.4, 0.3, 0.2, 0.1]).double(), torch.tensor([0.0, 1, 2, 3]).double(), 1.0
star = best_policy(p_ref, r4, beta)
log_Z = (p_ref * torch.exp(r4 / beta)).sum().log()
for seed in range(5):
    p = torch.randn(4, generator=torch.Generator().manual_seed(seed)).double().softmax(0)
    torch.testing.assert_close(J(p, p_ref, r4, beta), beta * log_Z - beta * (p * (p / star).log()).sum())
print(f"J(π*) = β ln Z = {beta * log_Z:.4f}; of the reference {J(p_ref, p_ref, r4, beta):.4f}")

# %% [markdown]
# **Predict before you run (3).** What is π\* if β is very large? And if it is nearly 0?

# %%
figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
bars = [("π_ref", p_ref), *((f"β = {b:g}", best_policy(p_ref, r4, b)) for b in (100, 1, 0.2))]
for k, (name, p) in enumerate(bars):
    axes.bar(np.arange(4) + 0.2 * (k - 1.5), p, 0.18, label=name, color=str(0.95 - 0.3 * k), edgecolor="black")
axes.set_xticks(range(4), [f"r = {v:g}" for v in r4.tolist()])
axes.set(ylabel="probability", ylim=(0, 1.05))
axes.legend(frameon=False, ncols=2, fontsize=9)
plt.show()

# %% [markdown]
# Dear distance: the reference itself. Cheap distance: the best-paid answer alone.
#
# ### Turned round
#
# Solve π\* for r: **r(y) = β · ln( π\*(y) / π_ref(y) ) + β · ln Z**. Up to a constant, the policy *tells* the reward
# that it is the best for. So every policy is the best one for some reward.

# %%
told = beta * (star / p_ref).log()  # (answers,)
print("r less what π* tells:", (r4 - told).round(decimals=4).tolist(), "- the same for all: β ln Z")
torch.testing.assert_close(r4 - told, (beta * log_Z).expand(4))

# %% [markdown]
# ## 3. The line
#
# For texts Z is a sum over all texts there are, and cannot be computed. But comparisons only need *differences* of
# rewards, and both answers of a pair have the same Z. Put the turned formula into Bradley-Terry, and it is gone:
#
# h = β · [ ln(π(y_w)/π_ref(y_w)) - ln(π(y_l)/π_ref(y_l)) ],  **loss = -ln σ(h)**
#
# No reward is left, only the policy. That is DPO: fit Bradley-Terry with the reward that the policy itself tells. By
# hand with β = 0.1: the chosen answer went from -12 to -10 nats, the rejected from -8 to -11. So
# h = 0.1 · (2 + 3) = 0.5.

# %%
from finetuning.instruction.dpo import PreferenceLoss


def dpo_naive(policy, reference, beta):
    ratios = policy - reference  # (pairs, 2), the chosen in front
    h = beta * (ratios[:, 0] - ratios[:, 1])  # (pairs,)
    return -torch.log(1 / (1 + torch.exp(-h)))


policy, reference = torch.tensor([[-10.0, -11.0]]), torch.tensor([[-12.0, -8.0]])
house = PreferenceLoss(beta=0.1)
lengths = torch.ones(1, 2)
torch.testing.assert_close(dpo_naive(policy, reference, 0.1), house(house.rewards(policy, reference, lengths)))
print(f"loss {dpo_naive(policy, reference, 0.1).item():.4f} = ours; -ln σ(0.5) = {-math.log(wins(0.5)):.4f}")

# %% [markdown]
# The module takes `logsigmoid`, and not the logarithm of σ. At h = -200 the naive line is no number that one can learn
# from:

# %%
far = torch.tensor([[-2000.0, 0.0]])
print(dpo_naive(far, torch.zeros(1, 2), 0.1).item(), house(house.rewards(far, torch.zeros(1, 2), lengths)).item())

# %% [markdown]
# **At the start** π = π_ref, so h = 0, whatever the pair: the loss is ln 2 = 0.693. This is the sanity number.
#
# ### Who is pushed, and how hard
#
# d(-ln σ(h)) / dh = -σ(-h), and h has β in front of both log-probabilities. So the gradient is
#
# -β · σ(-h) · ( ∇ ln π(y_w) - ∇ ln π(y_l) )
#
# Up with the chosen answer and down with the rejected one, *equally hard*. The weight σ(-h) is the probability that the
# model still gives to the wrong order: a pair that is understood pushes no longer. By hand, σ(-0.5) = 0.378.

# %%
learning = policy.clone().requires_grad_()
house(house.rewards(learning, reference, lengths)).sum().backward()
weight = 0.1 * wins(-0.5)
torch.testing.assert_close(learning.grad, torch.tensor([[-weight, weight]]))
print("gradient by ln π of both:", [f"{g:.4f}" for g in learning.grad[0].tolist()], f"by hand ∓{weight:.4f}")

# %% [markdown]
# The module knows three variations. *Label smoothing* thinks that a share ε of the comparisons is the
# wrong way round: (1 - ε) · loss(h) + ε · loss(-h). Where is its lowest point? There σ(h) = 1 - ε, so
# h = ln((1 - ε)/ε), and no further. *ipo* (Azar et al. 2023) is (h/β - 1/(2β))²: it asks for one difference, and more
# is as bad as less. *dpo-norm* divides log-ratios by the number of tokens, as ipo does here; it comes in section 9.

# %%
h = torch.linspace(-4, 8, 1201, dtype=torch.float64)
pair_of = torch.stack([h, torch.zeros_like(h)], 1)  # (points, 2): rewards with the margin h
losses = {"dpo": house(pair_of), "smoothed, ε = 0.1": PreferenceLoss(0.1, 0.1)(pair_of)}
lowest = float(h[losses["smoothed, ε = 0.1"].argmin()])
ipo = PreferenceLoss(0.1, 0.0, "ipo")(pair_of)
assert abs(lowest - math.log(9)) < 0.01 and abs(float(h[ipo.argmin()]) / 0.1 - 1 / (2 * 0.1)) < 0.2
print(
    f"lowest: smoothed at h = {lowest:.2f}, ln 9 = {math.log(9):.2f}; ipo at h/β = {float(h[ipo.argmin()]) / 0.1:.1f}"
)

# %% [markdown]
# Their shapes. Only the first has no lowest point: it goes on, ever more slowly, as in section 1. On the right the
# weight of a pair in DPO.

# %%
figure, panels = plt.subplots(1, 2, figsize=(7, 2.7), layout="constrained")
for (name, values), style in zip(losses.items(), ("-", "--")):
    panels[0].plot(h, values, style, color="black", label=name)
panels[0].plot(h, ipo / 25, ":", color="black", label="ipo (over 25), β = 0.1")
panels[1].plot(h, torch.sigmoid(-h), color="black")
panels[0].set(xlabel="margin h", ylabel="loss (nats)", ylim=(0, 4))
panels[0].legend(frameon=False, fontsize=8)
panels[1].set(xlabel="margin h", ylabel="weight σ(-h)", ylim=(0, 1.05))
plt.show()

# %% [markdown]
# ### Does it arrive at π\*?
#
# Four answers, the reference and the rewards of section 2. One policy climbs J, and is told r. The other is told only
# how often each answer is preferred to each, and does DPO. Both begin as the reference.


# %%
def descend(loss_of, steps=400):
    theta = p_ref.log().clone().requires_grad_()  # (answers,): π is its softmax
    optimizer, distance = torch.optim.Adam([theta], lr=0.05), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(theta.log_softmax(0)).backward()
        optimizer.step()
        distance.append(float((theta.detach().softmax(0) - star).abs().max()))
    return distance


preferred = torch.sigmoid(r4[:, None] - r4[None, :])  # (answers, answers): the share of i over j


def dpo_on_all(log_p):
    told = beta * (log_p - p_ref.log())  # (answers,)
    return -(preferred * F.logsigmoid(told[:, None] - told[None, :])).sum()  # (answers, answers)


paths = {"J, which knows r": descend(lambda log_p: -J(log_p.exp(), p_ref, r4, beta)), "DPO": descend(dpo_on_all)}
assert all(path[-1] < 1e-3 for path in paths.values())
print("both arrive:", {name: path[-1] < 1e-3 for name, path in paths.items()})

# %% [markdown]
# The largest difference between π(y) and π\*(y), step by step:

# %%
figure, axes = plt.subplots(figsize=(5, 2.5), layout="constrained")
for (name, path), style in zip(paths.items(), ("-", "--")):
    axes.plot(range(1, 401), path, style, color="black", label=name)
axes.set(xlabel="step", ylabel="distance from π*", yscale="log", xlim=(0, 250), ylim=(1e-5, 1))
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# No reward model and no reinforcement learning, and the same end. Two conditions are easily overlooked, and both will
# bite: *all* answers were compared, and the comparisons did not all go one way.
#
# ## 4. The probability of an answer
#
# An answer's log-probability is the sum of those of its tokens, each given all before it. By hand: three tokens with
# probabilities ½, ¼, ½ make 1/16, or -4 ln 2 = -2.77 nats. The prompt's tokens do not count, and neither does what
# fills up a row. The end-of-text *does*: to stop there is part of the answer.
#
# The vector at t is asked for the token at t + 1. Naively, with a tiny random model, token by token:

# %%
from finetuning.instruction.dpo import EncodedPair, answer_logprobs, pack
from gpt_model import GPT, GPTConfig

torch.manual_seed(0)
tiny = GPT(GPTConfig(vocab_size=20, context_length=16, n_layer=1, n_head=2, d_model=16))
pairs = [EncodedPair([1, 2, 3], [4, 5, 0], [6, 0]), EncodedPair([7], [8, 0], [9, 10, 11, 0])]
ids, answer = map(torch.from_numpy, pack(pairs))  # (pairs, 2, tokens) both
print(ids[0], answer[0], sep="\n")

# %% [markdown]
# `pack` fills up on the right and says which tokens are an answer's. Both ways, on all four rows:


# %%
def logprob_naive(model, ids, answer):
    total = torch.zeros(())
    for t in range(1, len(ids)):
        if answer[t]:
            total = total + model(ids[None, :t])[0, -1].log_softmax(0)[ids[t]]  # reads only what comes before
    return total


rows, said = ids.flatten(0, 1), answer.flatten(0, 1)  # (2 · pairs, tokens)
naive = torch.stack([logprob_naive(tiny, *row) for row in zip(rows, said)])
torch.testing.assert_close(answer_logprobs(tiny, rows, said), naive, rtol=1e-4, atol=1e-4)
print("naive = the module's:", [round(value, 1) for value in naive.tolist()])

# %% [markdown]
# Naively a row of T tokens is read T times; the module reads all rows at once, and makes logits for answers only.
# The outside oracle is `transformers`, on the same weights and on each answer alone:

# %%
import tempfile
from pathlib import Path

import transformers

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
scratch = tempfile.TemporaryDirectory()  # gone when the notebook ends
tiny.save_pretrained(Path(scratch.name) / "tiny")
theirs = transformers.AutoModelForCausalLM.from_pretrained(Path(scratch.name) / "tiny").eval()
with torch.no_grad():
    for row, mask, ours in zip(rows, said, naive):
        logprobs = theirs(row[None]).logits[0, :-1].log_softmax(-1)  # (tokens - 1, vocab)
        own = logprobs.gather(1, row[1:, None])[:, 0][mask[1:]].sum()
        torch.testing.assert_close(own, ours, rtol=1e-4, atol=1e-4)
print("ours = transformers'")

# %% [markdown]
# **Predict before you run (4).** Someone forgets the mask's beginning, and counts the prompt's tokens as well. What
# does that do to h?

# %%
with_prompt = (ids != 0) | answer  # the prompt and the answer, not what fills up
with_prompt[:, :, 0] = False  # nothing comes before the first token
sums = answer_logprobs(tiny, rows, with_prompt.flatten(0, 1)).unflatten(0, (-1, 2))
right = answer_logprobs(tiny, rows, said).unflatten(0, (-1, 2))  # (pairs, 2)
torch.testing.assert_close(sums[:, 0] - sums[:, 1], right[:, 0] - right[:, 1], rtol=1e-4, atol=1e-4)
print("differences with and without the prompt are equal")

# %% [markdown]
# Nothing. Both rows begin with the same tokens, and causal attention gives them the same probabilities: they cancel, as
# Z does. *A common beginning of two answers cancels as well.* That will explain something below.
#
# ## 5. A model that has read good and bad
#
# The model to be improved must know right answers and give wrong ones, too. So we invent a library, and a corpus in
# which 7 answers of 10 are right. The same question has four right answers, in four wordings:

# %%
NOUNS = ["jar", "box", "rope", "lamp", "coin", "boat", "tree", "road", "kite", "drum"]
VERBS = {
    "count": "the number of things in the {}", "find": "the place of a thing in the {}",
    "first": "the first thing in the {}", "drop": "the {} without its first thing",
    "sort": "the things of the {} in order", "flip": "the things of the {} from last to first",
    "join": "all things of the {} as one text", "pairs": "the things of the {} two by two",
}  # fmt: skip
MODES = {"": "", "_safe": " or nothing if it is empty", "_lazy": " as soon as it is asked for",
         "_deep": " and of all that are in it"}  # fmt: skip
OPENINGS = ["Returns", "Gives", "Tells you", "You get"]

# %% [markdown]
# `lamp.flip_safe` is one of 10 · 8 · 4 = 320 names. 64 are held out. Each of their parts is known from other names.

# %%
RIGHT = {
    f"{noun}.{verb}{mode}": [f"{opening} {text.format(noun)}{more}." for opening in OPENINGS]
    for noun in NOUNS for verb, text in VERBS.items() for mode, more in MODES.items()
}  # fmt: skip
names = sorted(RIGHT)
random.Random(0).shuffle(names)
held_out, known = names[:64], names[64:]
print(*RIGHT["lamp.flip_safe"], sep="\n")

# %% [markdown]
# The wrong answers are those of `preferences.py`: another question's answer, the first words only, words in another
# order, the first words again and again.

# %%
from finetuning.instruction.preferences import KINDS, Pair, corrupt


def make_pair(name, draw, kinds=KINDS):
    good, kind = draw.choice(RIGHT[name]), draw.choice(kinds)
    other = draw.choice(RIGHT[draw.choice([n for n in names if n != name])])
    question = {"role": "user", "content": f"What does `{name}` do?"}
    return Pair((question,), good, corrupt(good, kind, other, draw), kind)


for kind in KINDS:
    print(f"{kind:10}", make_pair("lamp.flip_safe", random.Random(1), (kind,)).rejected)

# %% [markdown]
# The corpus: twelve times each known name, with a right answer in 7 of 10 cases. A tokenizer of at most 600 tokens is
# made from the right answers; it needs fewer, since all pieces of their few words are then one token. Answers are
# learned in the layout of the chat, and the loss is on their tokens alone.

# %%
from finetuning.instruction.packing import padded, tokens_of
from finetuning.instruction.prompt_format import PromptFormat
from working_with_text_data.bytepair_enc import BytePairTokenizer

layout = PromptFormat.named("chat")
drawn = [make_pair(name, random.Random(f"{name} {i}")) for name in known for i in range(12)]
texts = [layout.text([*pair.messages, {"role": "assistant", "content": pair.chosen}]) for pair in drawn]
tokenizer = BytePairTokenizer.train([text.replace("<|endoftext|>", "") for text in texts], 600)
print(texts[0])

# %% [markdown]
# As tokens, with their targets:


# %%
def as_tokens(pair, answer):
    messages = [*pair.messages, {"role": "assistant", "content": answer}]
    return tokens_of(layout.encode(tokenizer, messages), 64)


coin = random.Random(0)
corpus = [as_tokens(pair, pair.chosen if coin.random() < 0.7 else pair.rejected) for pair in drawn]
print(f"{len(corpus):,} examples; the longest has {max(map(len, corpus))} tokens")

# %% [markdown]
# Nearly all learning here goes through the house's `TrainingLoop`, without a run's folder. An objective, batches by
# number, and the flags of a script are all it needs. (Notebook 13 takes it apart.)

# %%
from finetuning.tuning import ExampleBatches, TuningOptions, blocks_of
from pretraining.distributed import Ranks
from pretraining.training_loop import Hooks, NextToken, TrainingLoop

HERE = Ranks(0, 1, torch.device("cpu"))


def train(objective, batch, options, on_step=lambda step: None):
    model, hooks, nowhere = objective.model, Hooks(on_step, lambda last: 0.0), Path("nowhere")
    parts = (blocks_of(model), lambda: options.make_optimizers(model), batch)
    loop = TrainingLoop(objective, model, *parts, options, HERE, hooks, nowhere)
    while loop.step < options.steps:
        assert loop.take_step() is None
    loop.read.close()
    return model


# %% [markdown]
# Imitation first: the loss of notebook 13 on the answers' tokens.


# %%
def imitate(model, examples, steps, rate, size=16):
    chosen, seen = ExampleBatches([len(one) for one in examples], size), []
    options = TuningOptions(steps=steps, batch_size=size, learning_rate=rate, warmup=0.1, precision="float32")

    def batch(step, rank, ranks):
        return padded([examples[i] for i in chosen(step) if i >= 0], size)

    return train(NextToken(model), batch, options, lambda step: seen.append(step.loss)), seen


# %% [markdown]
# The base: two blocks of width 64, 600 steps of 32 answers. Its parameters by hand: embeddings (V + 64) · 64, each
# block 12 · 64² weights and 13 · 64 biases and norms, the last norm 2 · 64. Its loss should begin at about ln V.

# %%
torch.manual_seed(0)
V = tokenizer.n_vocab
base = GPT(GPTConfig(vocab_size=V, context_length=64, n_layer=2, n_head=4, d_model=64))
assert base.n_parameters == (V + 64) * 64 + 2 * (12 * 64**2 + 13 * 64) + 2 * 64
base, reading = imitate(base, corpus, 600, 6e-3, 32)
assert abs(reading[0] - math.log(V)) < 0.3 and np.mean(reading[-20:]) < 0.7
print(f"{base.n_parameters:,} parameters; {reading[0]:.1f} nats a token at first, ln {V} = {math.log(V):.1f}")

# %% [markdown]
# ### What does it say?
#
# We ask the 64 held-out questions, four times each, and draw every token from the model's own distribution. Since there
# is a rule for right answers, an answer can be judged. And since we have both models' probabilities at every token, the
# distance from the reference can be measured: along the answers that π writes, at each token, the KL of the two
# distributions over the next one, summed (over at most 30 tokens).

# %%
from gpt_model.generate import generate_tokens
from gpt_model.sampling import Sampling

asked = [name for name in held_out for _ in range(4)]
prompts = [layout.encode(tokenizer, make_pair(name, random.Random(0)).messages, ask=True).ids for name in asked]


def write(model):
    said = [[] for _ in prompts]
    for token in generate_tokens(model, prompts, 30, Sampling(seed=0), {tokenizer.eot_token}):
        said[token.row].append(token.id)
    return said


# %% [markdown]
# Not all wrong answers are wrong in the same way:

# %%
from collections import Counter


def sort_of(name, text, n_tokens):
    if text in RIGHT[name]:
        return "right"
    if any(text in answers for answers in RIGHT.values()):
        return "other"
    if any(answer.startswith(text) for answer in RIGHT[name]):
        return "truncated"
    return "endless" if n_tokens == 30 else "none of these"


# %% [markdown]
# `judge` gives the texts, the share of each sort, the KL in nats and the mean length in tokens:


# %%
def judge(model, reference):
    said = write(model)
    texts = [tokenizer.decode(ids) for ids in said]
    sorts = Counter(sort_of(name, text, len(ids)) for name, text, ids in zip(asked, texts, said))
    ended = [ids + [tokenizer.eot_token] * (len(ids) < 30) for ids in said]
    ids, answer = pack([EncodedPair(prompt, one, one) for prompt, one in zip(prompts, ended)])
    rows, mask = torch.from_numpy(ids[:, 0]), torch.from_numpy(answer[:, 0, 1:])  # (answers, tokens), one less
    with torch.no_grad():
        p, q = (m.eval()(rows[:, :-1]).log_softmax(-1) for m in (model, reference))  # (answers, tokens - 1, V)
    kl = float(((p.exp() * (p - q)).sum(-1) * mask).sum(1).mean())
    shares = {sort: sorts[sort] / len(said) for sort in ("right", "other", "truncated", "endless", "none of these")}
    return shares | {"KL": kl, "tokens": float(np.mean([len(ids) for ids in said])), "texts": texts}


longest = max(len(tokenizer.encode_ordinary(answer)) for answers in RIGHT.values() for answer in answers)
assert longest < 25
print(f"the longest right answer has {longest} tokens: 30 leave room")

# %% [markdown]
# **Predict before you run (5).** 7 of 10 answers in its corpus were right. How many of the base's own?

# %% tags=["volatile"]
of_base = judge(base, base)
print(f"{of_base['right']:.0%} right")
for name, text in list(zip(asked, of_base["texts"]))[:8]:
    print(f"{name:15}", text)

# %% [markdown]
# It imitates what it has read, faults included, and adds some slips of its own.

# %%
assert 0.35 < of_base["right"] < 0.75 and of_base["KL"] == 0
print("less than what it has read:", of_base["right"] < 0.75)

# %% [markdown]
# ## 6. Pairs
#
# Four pairs of each known name, made by rule: a right answer and a corrupted one. `encode_pair` gives the ids, both
# answers behind the same prompt:

# %%
from finetuning.instruction.dpo import answer_lengths, encode_pair, pair_logprobs


def make_pairs(names, times, kinds=KINDS):
    return [make_pair(name, random.Random(f"pair {name} {i}"), kinds) for name in names for i in range(times)]


def encoded(names, times, kinds=KINDS):
    return [encode_pair(layout, tokenizer, pair, 64) for pair in make_pairs(names, times, kinds)]


learn_pairs, test_pairs = encoded(known, 4), encoded(held_out, 4)
one = learn_pairs[0]
for part in ("prompt", "chosen", "rejected"):
    print(f"{part:8}", repr(tokenizer.decode(getattr(one, part))))

# %% [markdown]
# What does the base think of the held-out pairs? A point an answer: its length, and its log-probability.
#
# **Predict before you run (6).** Every token costs something. Which wrong answers look good by the sum, only because
# they are short?

# %%
before = pair_logprobs(base, test_pairs, 64, HERE)  # (pairs, 2)
n_tokens = answer_lengths(test_pairs).numpy()  # (pairs, 2)
kinds = np.array([pair.kind for pair in test_pairs])
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
axes.plot(n_tokens[:, 0], before[:, 0], ".", color="0.6", label="right")
for kind, marker in zip(KINDS, "xv+s"):
    of = kinds == kind
    axes.plot(n_tokens[of, 1], before[of, 1], marker, color="black", markerfacecolor="none", markersize=5, label=kind)
axes.set(xlabel="tokens of the answer", ylabel="ln π (nats)", ylim=(-100, 3))
axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower left")
plt.show()

# %% [markdown]
# The truncated ones are near the top: six tokens cost less than fifteen. Divided by their length they are far worse.
# *A sum favours the short.* In DPO only ratios to the reference count, and at the start those are 0 for every length.
#
# ### Sanity: the start, and one batch by heart
#
# The policy is the reference: rewards 0, loss ln 2, and half a hit for each pair. Then one batch of four pairs, eighty
# steps of our own few lines:

# %%
from finetuning.instruction.dpo import Preference

ids, answer = map(torch.from_numpy, pack(learn_pairs[:4]))  # (pairs, 2, tokens)
reference = torch.from_numpy(pair_logprobs(base, learn_pairs[:4], 4, HERE))  # (pairs, 2)
pupil, seen = copy.deepcopy(base), []
optimizer = torch.optim.AdamW(pupil.parameters(), lr=1e-3, weight_decay=0.0)
for _ in range(80):
    policy = answer_logprobs(pupil, ids.flatten(0, 1), answer.flatten(0, 1)).unflatten(0, (-1, 2))
    loss = -F.logsigmoid(0.1 * ((policy - reference)[:, 0] - (policy - reference)[:, 1])).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    seen.append(loss.item())
assert abs(seen[0] - math.log(2)) < 1e-4 and seen[-1] < 0.1
print(f"{seen[0]:.4f} at first, ln 2 = {math.log(2):.4f}; below 0.1 at the end:", seen[-1] < 0.1)

# %% [markdown]
# The module's objective `Preference` gives the sum of the losses of a batch. Ours, and its gradient:

# %%
objective = Preference(pupil, PreferenceLoss(0.1))
policy = answer_logprobs(pupil, ids.flatten(0, 1), answer.flatten(0, 1)).unflatten(0, (-1, 2))
by_hand = dpo_naive(policy, reference, 0.1).sum()
ours = torch.autograd.grad(by_hand, list(pupil.parameters()))
total = objective(ids, torch.arange(4), answer, reference)
house_gradient = torch.autograd.grad(total, list(pupil.parameters()))
torch.testing.assert_close(by_hand, total)
for mine, its in zip(ours, house_gradient):
    torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-5)
print("ours = Preference, loss and gradient")

# %% [markdown]
# ## 7. DPO
#
# The reference never changes. So its log-probabilities are computed once, before the first step, and there is no second
# model. The rest are parts that we know: `ExampleBatches` says which pairs are in a batch, `Preference` is the loss,
# `TrainDPO` holds the script's flags.

# %%
from finetuning.instruction.dpo import reward_figures
from finetuning.instruction.train_dpo import TrainDPO


def dpo(model, pairs, steps=100, rate=1e-3, beta=0.1, kind="dpo", on_step=lambda policy, step: None):
    policy, known = copy.deepcopy(model).train(), pair_logprobs(model, pairs, 64, HERE)  # (pairs, 2)
    chosen = ExampleBatches([pair.length for pair in pairs], 16)
    options = TrainDPO(steps=steps, batch_size=16, learning_rate=rate, beta=beta, loss=kind, precision="float32")

    def batch(step, rank, ranks):
        numbers = np.array([i for i in chosen(step) if i >= 0])
        ids, answer = pack([pairs[i] for i in numbers])
        return ids, numbers, answer, known[numbers]

    return train(Preference(policy, options.objective()), batch, options, lambda step: on_step(policy, step))


# %% [markdown]
# 100 steps of 16 pairs with β = 0.1. After every fifth, both log-probabilities of the held-out pairs are measured.

# %%
history = []


def watch(policy, step):
    if len(history) % 5 == 0:
        after = pair_logprobs(policy, test_pairs, 64, HERE)
        history.append((step.loss, after - before))
    else:
        history.append((step.loss, None))


better = dpo(base, learn_pairs, on_step=watch)
measured = [(step, change) for step, (_, change) in enumerate(history, 1) if change is not None]
moved = pair_logprobs(better, test_pairs, 64, HERE) - before  # (pairs, 2): ln π/π_ref
figures = reward_figures(torch.from_numpy(0.1 * moved))
assert figures["reward_margin"] > 2 and figures["accuracy"] > 0.97 and abs(history[0][0] - math.log(2)) < 1e-3

# %% [markdown]
# On questions that it has never seen:

# %% tags=["volatile"]
print({name: round(value, 2) for name, value in figures.items()})

# %% [markdown]
# The margin grows, and every pair is in the right order. **Predict before you run (7).** So by how much has the chosen
# answer become more probable?

# %%
figure, panels = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
steps = [step for step, _ in measured]
panels[0].plot(steps, [0.1 * (c[:, 0] - c[:, 1]).mean() for _, c in measured], color="black", label="margin h")
panels[0].plot(steps, [(c[:, 0] > c[:, 1]).mean() for _, c in measured], "--", color="black", label="accuracy")
for side, style, name in ((1, "--", "rejected"), (0, "-", "chosen")):
    panels[1].plot(steps, [c[:, side].mean() for _, c in measured], style, color="black", label=name)
panels[2].plot(steps, [c[:, 0].mean() for _, c in measured], color="black", label="chosen alone")
panels[2].axhline(0, color="0.6", linewidth=0.8)
for axes, label in zip(panels, ("held-out pairs", "change of ln π (nats)", "change of ln π (nats)")):
    axes.set(xlabel="step", ylabel=label)
    axes.legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# Not at all. Nearly all of the margin is the rejected answer's fall, by dozens of nats. The chosen one rises by
# some tenths of a nat, and loses them again. The loss does not mind: it sees the difference alone.

# %%
risen = [float(change[:, 0].mean()) for _, change in measured]
assert max(risen) > 0.02 and risen[-1] < max(risen) - 0.1
assert moved[:, 1].mean() < -15 and abs(moved[:, 0].mean()) < 0.1 * abs(moved[:, 1].mean())
print("the chosen answer's share of the movement is below a tenth")
of_better, SORTS = judge(better, base), ("right", "other", "truncated", "endless", "none of these")
assert of_better["other"] + of_better["truncated"] < 0.5 * (of_base["other"] + of_base["truncated"])
assert of_better["right"] < 0.9 and of_better["none of these"] > of_base["none of these"]

# %% [markdown]
# In figures, and what the model now says:

# %% tags=["volatile"]
print(f"chosen {moved[:, 0].mean():+.2f} nats, rejected {moved[:, 1].mean():+.1f}", end="; ")
print(f"right {of_base['right']:.0%} before, {of_better['right']:.0%} now; KL {of_better['KL']:.1f} nats")
for name, text in [pair for pair in zip(asked, of_better["texts"]) if pair[1] not in RIGHT[pair[0]]][:6]:
    print(f"{name:15}", text)
print("before", {sort: f"{of_base[sort]:.0%}" for sort in SORTS})
print("now   ", {sort: f"{of_better[sort]:.0%}" for sort in SORTS})

# %% [markdown]
# Nearly all pairs are in order. The share of right answers, which is what we wanted, is far from that. The rejected
# kinds have become rare, as asked. In their place stand answers that are in no pair at all. To be never the rejected
# answer is not to be the right one.
#
# ## 8. Why the chosen answer falls
#
# Probabilities add up to 1, so what the rejected answer loses, others get. Nothing in the loss says who. In a table of
# four answers (section 3) it was settled, because all had been compared. A model can give far more answers than there
# are pairs, and has one set of weights for all.
#
# The smallest case by hand. Three answers, of length 1, 2 and 3, and *one* weight: π(y) ∝ e^(θ · length). The pair says
# that 2 is better than 1. h = β · θ, so θ grows. At θ = ln 2 the three have 2 : 4 : 8 parts of 14. The chosen one fell
# from ⅓ to 2/7, though it is now preferred 2 : 1; the third, which nobody mentioned, has 4/7.

# %%
theta = torch.linspace(0, 4, 50)
shares = (theta[:, None] * torch.tensor([1.0, 2, 3])).softmax(1)  # (50, answers)
assert torch.allclose((math.log(2) * torch.tensor([1.0, 2, 3])).softmax(0), torch.tensor([1, 2, 4]) / 7)
figure, axes = plt.subplots(figsize=(5, 2.5), layout="constrained")
for share, style, name in zip(shares.T, (":", "-", "--"), ("1, rejected", "2, chosen", "3, in no pair")):
    axes.plot(theta, share, style, color="black", label=name)
axes.set(xlabel="margin over β: θ", ylabel="probability", ylim=(0, 1))
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# The pair wanted "not so short", and the only weight there was heard "longer". This is called *likelihood displacement*
# (Razin et al. 2024).
#
# ### The same in the model
#
# A small step against the loss moves the weights by η · (g_w - g_l), with g_w = ∇ ln π(y_w) and g_l = ∇ ln π(y_l). So
# ln π(y_w) changes by η · (|g_w|² - g_w · g_l). It **falls if g_w · g_l > |g_w|²**: if both answers hang on the same
# weights, and the rejected one hangs on them more. Both sides can be measured:


# %%
def gradient(model, pairs, side):
    ids, answer = map(torch.from_numpy, pack(pairs))
    mean = answer_logprobs(model, ids[:, side], answer[:, side]).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(mean, list(model.parameters()))])  # (parameters,)


def pull(model):
    found = {}
    for kind in KINDS:
        some = [pair for pair in test_pairs if pair.kind == kind][:16]
        g_w, g_l = gradient(model, some, 0), gradient(model, some, 1)
        found[kind] = (float(g_w @ g_w), float(g_w @ g_l))
    return found


at_first, later = pull(base), pull(better)
assert all(own > cross for own, cross in at_first.values())

# %% [markdown]
# Sixteen pairs of each kind; `up` is |g_w|², `down` is g_w · g_l:

# %% tags=["volatile"]
for name, table in (("base", at_first), ("after DPO", later)):
    told = (f"{kind}: up {own:.0f}, down {cross:.0f}" for kind, (own, cross) in table.items())
    print(f"{name:10}", "; ".join(told))

# %% [markdown]
# At the start `up` is larger for every kind, and the chosen answer did rise at first. Later both have grown, `down` far
# more, and by the kind it is near `up`, above it or still below. It is a local look: AdamW's steps are not plain
# gradient steps, and each pair is also moved by all others.

# %%
ratio = {name: sum(c for _, c in t.values()) / sum(o for o, _ in t.values()) for name, t in
         (("first", at_first), ("later", later))}  # fmt: skip
assert ratio["later"] > ratio["first"]
print("`down` over `up`, all kinds together, has grown:", ratio["later"] > ratio["first"])

# %% [markdown]
# ## 9. What goes wrong
#
# ### A bug: the reference moves along
#
# "The reference is the model. So I compute its log-probabilities with the model, without gradient." One line:

# %%
learner, flat = copy.deepcopy(base), []
optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3, weight_decay=0.0)
chosen = ExampleBatches([pair.length for pair in learn_pairs], 16)
for step in range(60):
    ids, answer = map(torch.from_numpy, pack([learn_pairs[i] for i in chosen(step) if i >= 0]))
    policy = answer_logprobs(learner, ids.flatten(0, 1), answer.flatten(0, 1)).unflatten(0, (-1, 2))
    reference = policy.detach()  # the bug
    loss = house(house.rewards(policy, reference, answer.sum(2))).mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
    optimizer.step()
    flat.append(loss.item())

# %% [markdown]
# **Seen:** the loss is the same at every step, to the last digit, as if nothing were learned. And yet:

# %%
of_learner = judge(learner, base)
print("losses:", {round(loss, 4) for loss in flat})
print("it moved further than DPO did:", of_learner["KL"] > 2 * of_better["KL"])
assert {round(loss, 4) for loss in flat} == {0.6931} and of_learner["KL"] > 2 * of_better["KL"]

# %% [markdown]
# What it says now:

# %% tags=["volatile"]
print(f"right {of_learner['right']:.0%}, KL {of_learner['KL']:.0f} nats: {of_learner['texts'][0]!r}")

# %% [markdown]
# **Diagnosed:** h is always 0, so the loss is ln 2. But its *gradient* is not 0: it is -β · ½ · (g_w - g_l), at full
# weight for ever. A pair that has long been understood still pushes, since nobody remembers where it began. A flat
# loss does not mean that nothing happens. **Mended:** compute the reference once, from a model that does not learn, as
# section 7 did. Check at any time after the first step: the loss must have left ln 2.
#
# ### β is the price of distance
#
# **Predict before you run (8).** The same 100 steps with five β. Which one gives the largest log-ratios? And which the
# most right answers?

# %%
sweep = {0.1: better}
for b in (0.02, 0.2, 0.5, 2.0):
    sweep[b] = dpo(base, learn_pairs, beta=b)
sweep = dict(sorted(sweep.items()))
judged = {b: judge(model, base) for b, model in sweep.items()}
changes = {b: pair_logprobs(model, test_pairs, 64, HERE) - before for b, model in sweep.items()}

# %% [markdown]
# Everything in one table:

# %% tags=["volatile"]
print("   β  right      KL  tokens  pairs in order  chosen  rejected (nats)")
for b, of in judged.items():
    up, down = changes[b].T  # (pairs,) both
    print(f"{b:4} {of['right']:6.0%} {of['KL']:7.1f} {of['tokens']:7.1f} {(up > down).mean():15.0%}", end="")
    print(f" {up.mean():7.1f} {down.mean():9.1f}")

# %% [markdown]
# On the left the log-ratio's margin h/β, on the right the share of right answers, both over the KL that was paid:

# %%
kls, rights = ([of[name] for of in judged.values()] for name in ("KL", "right"))
margins = [float((c[:, 0] - c[:, 1]).mean()) for c in changes.values()]
figure, panels = plt.subplots(1, 2, figsize=(7.4, 2.9), layout="constrained")
panels[1].axhline(of_base["right"], linestyle=":", color="0.4", label="base")
for axes, values, side in zip(panels, (margins, rights), ("right", "center")):
    axes.plot(kls, values, "o-", color="black")
    for b, kl, value in zip(judged, kls, values):
        axes.annotate(f"{b:g}", (kl, value), xytext=(0, 7), textcoords="offset points", fontsize=8, ha=side)
    axes.set(xscale="log", xlabel="KL from the base (nats an answer)", xlim=(0.4, 80))
panels[0].set(ylabel="margin h / β (nats)", ylim=(0, 115))
panels[1].set(ylabel="right answers", ylim=(0, 1))
panels[1].legend(frameon=False)
plt.show()

# %% [markdown]
# The numbers at the points are β. What holds of them:

# %%
best = max(judged, key=lambda b: judged[b]["right"])
assert judged[0.02]["KL"] == max(kls) and judged[0.02]["right"] < of_base["right"] - 0.2
assert judged[best]["right"] > of_base["right"] + 0.1 and changes[0.02][:, 0].mean() < -2
assert (changes[0.02][:, 0] > changes[0.02][:, 1]).mean() > 0.9
print("least β: more than 9 pairs of 10 in order, largest margin, and fewer right answers than the base")

# %% [markdown]
# This is *over-optimisation*: what is optimised goes on rising, and what is meant falls. The accuracy on held-out pairs
# does not show it. The KL does, and reading what the model writes. With a small β the weight σ(-h) stays near ½ until
# the log-ratios are huge, so everything is pushed for long.
#
# ### The corruption's opposite
#
# Now pairs of one kind alone. *Truncated*: the rejected answer is the chosen one's beginning, and stops too early. The
# common beginning cancels (section 4). What is left says "do not stop here". *Repeated*: the rejected answer says its
# first words again and again. What is left says "not these words, not now".
#
# **Predict before you run (9).** Which faults will the two models have? Remember the three answers of section 8.

# %%
only = {kind: dpo(base, encoded(known, 4, (kind,))) for kind in ("truncated", "repeated")}
one_kind = {kind: judge(model, base) for kind, model in only.items()}
assert one_kind["truncated"]["truncated"] < of_base["truncated"] and of_base["endless"] < 0.02
assert one_kind["truncated"]["endless"] > 0.02 and one_kind["truncated"]["tokens"] > of_base["tokens"] + 1
assert one_kind["repeated"]["right"] < of_base["right"] - 0.2
print("hardly an answer of the base was endless; of the model that learned not to be short, some are")
with_the = {name: np.mean([" the " in text for text in of["texts"]]) for name, of in
            (("base", of_base), ("repeated", one_kind["repeated"]))}  # fmt: skip
assert with_the["repeated"] < with_the["base"] - 0.2

# %% [markdown]
# The sorts of answers, in percent:

# %%
table = {"base": of_base, "all kinds": of_better} | {f"{kind} alone": of for kind, of in one_kind.items()}
shares = np.array([[of[sort] for sort in SORTS] for of in table.values()])  # (models, sorts)
figure, axes = plt.subplots(figsize=(6, 2.7), layout="constrained")
axes.imshow(shares, cmap="Greys", vmin=0, vmax=1.6, aspect="auto")
for row, column in np.ndindex(shares.shape):
    axes.text(column, row, f"{shares[row, column]:.0%}", ha="center", va="center")
axes.set_xticks(range(5), SORTS)
axes.set_yticks(range(4), table)
axes.set(xlabel="the model's own answers", ylabel="DPO on pairs of")
plt.show()

# %% [markdown]
# Some of them:

# %% tags=["volatile"]
print("answers with a *the*:", {name: f"{share:.0%}" for name, share in with_the.items()})
for kind, of in one_kind.items():
    print(f"{kind} alone:", *(repr(text) for text in sorted(of["texts"], key=len)[-2:] + of["texts"][:3]), sep="\n  ")

# %% [markdown]
# The first did get what it was asked for: no answer is cut short any more, and some more are right. But
# "not stopping early" was learned as "not stopping", and "not these words again" as "not these words": *the* is in
# every right answer, mostly among the first words, and has become rare. Each kind alone makes its opposite fault; pairs
# of all kinds hold each other in check, up to a point.
#
# *dpo-norm* divides each log-ratio by its answer's length, "so that length is no reward of its own". Does it help here?
# A token of the common beginning now has the weight 1/|y_w| in one answer and 1/|y_l| in the other. They no longer
# cancel. By hand, with 16 and 6 tokens: 1/16 - 1/6 = -0.10. The rejected answer is the shorter one, so the *common and
# right* beginning is pushed **down**.

# %%
normed = dpo(base, encoded(known, 4, ("truncated",)), steps=60, beta=2.0, kind="dpo-norm")
normed_all = dpo(base, learn_pairs, steps=60, beta=2.0, kind="dpo-norm")
of_normed, of_normed_all = judge(normed, base), judge(normed_all, base)
assert of_normed["right"] < 0.15 < 0.5 < of_normed_all["right"]
print("dpo-norm on truncated pairs leaves few right answers; on pairs of all kinds it does not do that")

# %% [markdown]
# In figures:

# %% tags=["volatile"]
print(
    f"right, of 100: {100 * of_normed['right']:.0f} with truncated pairs, {100 * of_normed_all['right']:.0f} with all"
)

# %% [markdown]
# It does what it says, and on truncated pairs that is the wrong thing. It is meant for answers that differ from their
# beginning on. Nothing was searched for here: neither rates nor β nor the number of steps.
#
# ## 10. And simply imitating the better ones?
#
# We have right answers in hand: the chosen ones. The simplest thing is to fine-tune on them, and to throw the rejected
# ones away.
#
# **Predict before you run (10).** As many steps of 16, at the same rate. More right answers than the best DPO of
# section 9, or fewer? And what happens to the *rejected* ones, which it never sees?

# %%
answers = [as_tokens(pair, pair.chosen) for pair in make_pairs(known, 4)]
imitator, _ = imitate(copy.deepcopy(base), answers, 100, 1e-3)
of_imitator = judge(imitator, base)
moved_by_it = pair_logprobs(imitator, test_pairs, 64, HERE) - before
assert of_imitator["right"] > judged[best]["right"] + 0.03 and of_imitator["KL"] < judged[best]["KL"]
assert (moved_by_it[:, 0] > moved_by_it[:, 1]).mean() > 0.95

# %% [markdown]
# Compared:

# %% tags=["volatile"]
for name, of, change in (
    (f"DPO, β = {best:g}", judged[best], changes[best]),
    ("imitation", of_imitator, moved_by_it),
):
    print(f"{name:12} right {of['right']:.0%}, KL {of['KL']:.2f}; chosen {change[:, 0].mean():+.2f} nats", end="")
    print(f", rejected {change[:, 1].mean():+.1f}, in order {(change[:, 0] > change[:, 1]).mean():.0%}")

# %% [markdown]
# It wins, with less KL, and even orders the pairs. A model that says the right thing has no room for the wrong one.
# Where the chosen answer is a *model answer*, comparisons add little to it. So what are they good for?
#
# ## 11. When the chosen one is merely better
#
# Most comparisons have no right answer in them. Of two, one is better, and the next one might beat it. Say somebody
# has a taste in openings: *Returns* above *Gives* above *Tells you* above *You get*, with rewards 2.4, 1.6, 0.8 and 0,
# and chooses by Bradley-Terry, so not always in that order. All answers are right ones.
#
# Each wording is in half of the pairs. How often is it the chosen one? *You get* in about 9% of all pairs, *Returns* in
# 41%. Imitation of the chosen ones arrives there, and no further: it never hears *against whom* one has won. DPO should
# arrive at π_ref · e^(r/β) / Z.

# %%
taste = np.array([2.4, 1.6, 0.8, 0.0])
beats = 1 / (1 + np.exp(taste[None, :] - taste[:, None]))  # (openings, openings)
chosen_share = (beats.sum(1) - 0.5) / 6  # without itself; six pairs of openings, each once
print(dict(zip(OPENINGS, chosen_share.round(2).tolist())))
assert math.isclose(chosen_share.sum(), 1)

# %% [markdown]
# The recipe of the paper is to imitate first and to compare then. So the reference is now a model that mostly knows
# what is right: 60 steps of imitation. Its four wordings are about equally frequent.


# %%
def taste_pairs(names, times):
    draw, made = random.Random(0), []
    for name in names:
        for _ in range(times):
            i, j = draw.sample(range(4), 2)
            won, lost = (i, j) if draw.random() < beats[i, j] else (j, i)
            made.append(Pair(make_pair(name, random.Random(0)).messages, RIGHT[name][won], RIGHT[name][lost]))
    return made


compared = taste_pairs(known, 12)
start, _ = imitate(copy.deepcopy(base), answers, 60, 1e-3)
of_start = judge(start, start)
assert of_start["right"] > 0.85
print(f"{len(compared):,} comparisons; the first: {compared[0].chosen!r} over {compared[0].rejected!r}")

# %% [markdown]
# How frequent is each wording? Among the four right answers to a question, exactly: from their log-probabilities. The
# mass of all four together is measured beside it.


# %%
def wordings(model, names=held_out):
    question = {name: make_pair(name, random.Random(0)).messages for name in names}
    two = [Pair(question[name], *RIGHT[name][k : k + 2]) for name in names for k in (0, 2)]
    four = [encode_pair(layout, tokenizer, pair, 64) for pair in two]
    logprobs = torch.from_numpy(pair_logprobs(model, four, 64, HERE)).view(-1, 4)  # (names, openings)
    return logprobs.double().softmax(1).mean(0).numpy(), float(logprobs.exp().sum(1).mean())


# %% [markdown]
# DPO with β = 1, and imitation of the chosen answers: 100 steps each, at one rate, from the same start.

# %%
tasteful = [encode_pair(layout, tokenizer, pair, 64) for pair in compared]
by_dpo = dpo(start, tasteful, steps=100, rate=2e-4, beta=1.0)
by_imitation, _ = imitate(copy.deepcopy(start), [as_tokens(pair, pair.chosen) for pair in compared], 100, 2e-4)
found = {name: wordings(model) for name, model in (("start", start), ("imitation", by_imitation), ("DPO", by_dpo))}
predicted = found["start"][0] * np.exp(taste)
predicted = predicted / predicted.sum()
assert abs(found["DPO"][0] - predicted).max() < 0.1 and abs(found["imitation"][0] - chosen_share).max() < 0.1
assert found["DPO"][0][0] > found["imitation"][0][0] + 0.04 and found["DPO"][1] > 0.8

# %% [markdown]
# Measured, and what the theory says. The prediction knows nothing of the trained model: only the start, the rewards and
# β.

# %%
figure, axes = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
shown = [("start", found["start"][0]), ("imitation", found["imitation"][0]), ("DPO", found["DPO"][0]),
         ("predicted π*", predicted)]  # fmt: skip
for k, (name, p) in enumerate(shown):
    hatch = "//" if name.startswith("pred") else None
    axes.bar(np.arange(4) + 0.2 * (k - 1.5), p, 0.18, label=name, color=str((0.95, 0.7, 0.3, 1)[k]), edgecolor="black",
             hatch=hatch)  # fmt: skip
axes.set_xticks(range(4), OPENINGS)
axes.set(ylabel="share of the right answers")
axes.legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# In figures:

# %% tags=["volatile"]
for name, p in [*shown, ("chosen in pairs", chosen_share)]:
    mass = f"; all four together {found[name][1]:.2f}" if name in found else ""
    print(f"{name:16}", p.round(2).tolist(), mass)
print(f"right: {of_start['right']:.0%} at the start, {judge(by_dpo, start)['right']:.0%} after DPO")

# %% [markdown]
# The formula of section 2, in a language model, on questions that it has not seen: DPO goes past the shares of the
# chosen answers towards π\*. Look at the last line, too. Only right answers were compared here, so nothing holds the
# wrong ones down, and the four wordings together have lost a little. It was a little because the steps were small. So:
# imitation for what is right, comparisons for what is better, and a look at what is in no pair.
#
# ## 12. What it costs
#
# A token costs 2 P FLOPs forward and 4 P backward. A pair has two rows. If the reference were a second model, each step
# would add its forward pass: 8 P for 6 P, and all its weights in memory. With numbers kept it is two of them a pair.
#
# **Predict before you run (11).** How much slower is a step with a living reference?

# %% tags=["volatile"]
from utils.benchmarking import median, time_by_turns

ids, answer = map(torch.from_numpy, pack(learn_pairs[:16]))
rows, said = ids.flatten(0, 1), answer.flatten(0, 1)
kept = torch.from_numpy(pair_logprobs(base, learn_pairs[:16], 16, HERE))


def one_step(alive):
    with torch.no_grad():
        reference = answer_logprobs(base, rows, said).unflatten(0, (-1, 2)) if alive else kept
    objective(ids, torch.arange(16), answer, reference).backward()


times = median(time_by_turns({"kept": lambda: one_step(False), "alive": lambda: one_step(True)}, 9))
objective.take_figures()
print(f"kept {times['kept'] * 1e3:.0f} ms, alive {times['alive'] * 1e3:.0f} ms: ", end="")
print(f"{times['alive'] / times['kept']:.2f} ×, and 8 / 6 = {8 / 6:.2f}")

# %% [markdown]
# And the memory, for the numbers and for the model that they stand for:

# %%
kept_bytes, model_bytes = 8 * len(learn_pairs), 4 * base.n_parameters
assert pair_logprobs(base, learn_pairs, 64, HERE).nbytes == kept_bytes
print(f"{kept_bytes:,} bytes kept for {len(learn_pairs):,} pairs; a second model has {model_bytes:,}")

# %% [markdown]
# For 7 billion parameters in bfloat16 a second model has 14 GB; the numbers are 8 bytes a pair at any size.
#
# ### The script does the same
#
# `train_dpo.py` is these parts with a folder around them. Four steps of it, on our base and pairs in a file, against
# four of ours:

# %%
import contextlib
import io
import json

from finetuning.instruction.train_dpo import PreferenceTask
from finetuning.tuning import Tuning

folder = Path(scratch.name)
base.save_pretrained(folder / "base", tokenizer, beside=layout.beside())
made = make_pairs(known, 1)
lines = [{"prompt": p.messages[0]["content"], "chosen": p.chosen, "rejected": p.rejected} for p in made]
(folder / "pairs.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
where = {"model": str(folder / "base"), "data": str(folder / "pairs.jsonl"), "run": folder / "run"}
options = TrainDPO(**where, steps=4, learning_rate=1e-3, precision="float32", device="cpu")

# %% [markdown]
# Its losses are in `metrics.jsonl`:

# %%
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    task = PreferenceTask(options, HERE)
    Tuning(options, HERE, task, begin=task.keep_reference).train()
logged = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
script = [row["loss"] for row in logged if "loss" in row]
mine = []
dpo(base, task.training, steps=4, on_step=lambda policy, step: mine.append(step.loss))
np.testing.assert_allclose(mine, script, rtol=1e-4)
print(f"four losses of the script = ours; in its folder: {sorted(p.name for p in (folder / 'run').iterdir())}")

# %% [markdown]
# ## 13. Exercises
#
# Write the body in place of the dots and run the cell. The check says what is missing.

# %%
from finetuning.exercises.ex23 import (
    check_answer_logprob,
    check_best_of,
    check_dpo_loss,
    check_pair_weight,
    check_win_probability,
)
from utils.exercises import attempt

# %% [markdown]
# **A. Bradley and Terry** (easy, 5 minutes) `r_a` and `r_b` are rewards. Return the probability that a is preferred to
# b. It must hold for large rewards, too.


# %%
def win_probability(r_a, r_b): ...


attempt(check_win_probability, win_probability)

# %% [markdown]
# **B. The best policy** (easy, 5 minutes) `p_ref` and `r` are tensors (answers,). Return the π that maximises
# E[r] - β · KL(π ‖ π_ref).


# %%
def best_of(p_ref, r, beta): ...


attempt(check_best_of, best_of)

# %% [markdown]
# **C. The loss** (medium, 10 minutes) `policy` and `reference` are log-probabilities (pairs, 2), the chosen answer in
# front. Return DPO's losses (pairs,). They must be finite for any margin.


# %%
def dpo_loss(policy, reference, beta): ...


attempt(check_dpo_loss, dpo_loss)

# %% [markdown]
# **D. The push** (medium, 10 minutes) The same arguments. Return, for each pair, the number by which the gradient
# multiplies ∇ ln π(y_w) - ∇ ln π(y_l) in the direction of the step: how hard the pair still pushes, (pairs,).


# %%
def pair_weight(policy, reference, beta): ...


attempt(check_pair_weight, pair_weight)

# %% [markdown]
# **E. An answer's log-probability** (hard, 15 minutes) `logits` is (tokens, vocab), what the model said at each token
# of `ids` (tokens,); `answer` (tokens,) is True for the answer's tokens. Return its log-probability, a tensor without
# dimensions.


# %%
def answer_logprob(logits, ids, answer): ...


attempt(check_answer_logprob, answer_logprob)

# %% [markdown]
# ### Solutions
#
# <details><summary>Solution: `win_probability`</summary>
#
# ```python
# import math
#
#
# def win_probability(r_a, r_b):
#     difference = r_a - r_b
#     if difference >= 0:
#         return 1 / (1 + math.exp(-difference))
#     return math.exp(difference) / (1 + math.exp(difference))
# ```
# </details>
#
# <details><summary>Solution: `best_of`</summary>
#
# ```python
# import torch
#
#
# def best_of(p_ref, r, beta):
#     return torch.softmax(p_ref.log() + r / beta, dim=0)
# ```
# </details>
#
# <details><summary>Solution: `dpo_loss`</summary>
#
# ```python
# import torch
#
#
# def dpo_loss(policy, reference, beta):
#     ratios = policy - reference  # (pairs, 2)
#     return -torch.nn.functional.logsigmoid(beta * (ratios[:, 0] - ratios[:, 1]))
# ```
# </details>
#
# <details><summary>Solution: `pair_weight`</summary>
#
# ```python
# import torch
#
#
# def pair_weight(policy, reference, beta):
#     ratios = policy - reference  # (pairs, 2)
#     return beta * torch.sigmoid(-beta * (ratios[:, 0] - ratios[:, 1]))
# ```
# </details>
#
# <details><summary>Solution: `answer_logprob`</summary>
#
# ```python
# def answer_logprob(logits, ids, answer):
#     logprobs = logits[:-1].log_softmax(dim=1)  # the row at t is asked for the token at t + 1
#     own = logprobs.gather(1, ids[1:, None])[:, 0]  # (tokens - 1,)
#     return own[answer[1:]].sum()
# ```
# </details>

# %% [markdown]
# ## 14. What you take along
#
# **Recap**
#
# - Bradley-Terry turns comparisons into differences of rewards; who never loses has no finite reward.
# - Reward less β · KL has the optimum π_ref · e^(r/β) / Z. Turned round, a policy tells its reward, but for a constant.
# - Comparisons need no constant: -ln σ(h) is a loss of the policy alone. It starts at ln 2 for any pairs.
# - Both answers are pushed equally hard, by β · σ(-h). Only the difference is held: the chosen one may fall.
# - What is in no pair is not held by anything. Accuracy on pairs was over 90% where almost nothing else was left.
# - Where the chosen answers were model answers, imitating them was better. Where they were merely better, DPO went past
#   them, to about where the formula says.
#
# **Pitfalls**, each seen above: a reference that moves along, with its flat loss; too small a β; pairs that differ in
# one habit only; dividing by length where one answer is the other's beginning; judging by the accuracy on pairs.
#
# ### Reading guide
#
# The whole loss of section 3, with its variations:

# %%
import inspect

print(inspect.getsource(PreferenceLoss.rewards))
print(inspect.getsource(PreferenceLoss.__call__))

# %% [markdown]
# The log-probabilities of section 4. Read why logits are made for some tokens at a time, and made again for the
# gradient:

# %%
print(inspect.getsource(answer_logprobs))

# %% [markdown]
# And the objective that the loop minimises:

# %%
print(inspect.getsource(Preference.forward))

# %% [markdown]
# Then `train_dpo.py`: `fingerprint`, which refuses to go on with another reference, and `without_dropout`, since with
# dropout the policy is not the reference at the start. `rewards.png` of a run has the curves of section 7: look at the
# chosen one.
#
# **Limits.** One small model, made-up answers, pairs by rule; one seed, no rate searched for. Which β is best, how far
# the chosen answer falls and by how much imitation wins are findings about this case. People's comparisons were not
# used. DPO on a model's own fresh answers, a term of imitation in DPO's loss, and reinforcement learning were not run.
#
# **CUDA, Apple's MPS, Windows.** None of them was run here. On a GPU a larger model computes in bfloat16, and the
# reference and the policy must do so alike: a rounding difference is a reward that nobody gave. On MPS all is float32,
# and the float64 of sections 2 and 3 would have to stay on the CPU. On Windows nothing differs that this notebook uses.
#
# **Sources.** Bradley and Terry 1952, *Rank Analysis of Incomplete Block Designs* · Rafailov et al. 2023, *Direct
# Preference Optimization: Your Language Model is Secretly a Reward Model* · Azar et al. 2023, *A General Theoretical
# Paradigm to Understand Learning from Human Preferences* (ipo) · Mitchell 2023, *A note on DPO with noisy preferences*
# (smoothing) · Lambert et al. 2024, *Tülu 3* (dpo-norm) · Razin et al. 2024, *Unintentional Unalignment: Likelihood
# Displacement in Direct Preference Optimization* · Gao et al. 2022, *Scaling Laws for Reward Model Overoptimization*.
#
# **The next question.** Here a rule said which answers are right. For real questions there is none. Who judges then,
# and how do we know that the judge does not just like the first of two answers? `instruction/evaluate.py` and
# `judge.py` begin there.
