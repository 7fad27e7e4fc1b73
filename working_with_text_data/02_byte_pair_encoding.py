# %% [markdown]
# # 02 · How do 256 bytes become words?
#
# Notebook 01 left a vocabulary of 256 bytes. It writes every text, and takes one step for each letter. But "the"
# comes up all the time, and always in the same order. Could a machine find out by itself which bytes belong together?
#
# It can, and the rule fits on one line: *write one new symbol for the pair of neighbours that occurs most often, and
# begin again.* Philip Gage published it in 1994 to make files smaller (*A New Algorithm for Data Compression*).
# Sennrich, Haddow and Birch used it in 2016 to give a translation program its words, and GPT-2 in 2019 applied it to
# bytes. Here you do it by hand, then in code, then break it.
#
# | | |
# |---|---|
# | Before this | notebook 01; Python's dictionaries and lists |
# | Minutes | 45 to read, 70 more for the exercises |
# | Hardware | any computer; no GPU, no network; the whole notebook runs in less than a minute |
#
# | word or sign | meaning |
# |---|---|
# | id | a number that stands for a token; 0 to 255 are the bytes |
# | pair | two ids side by side |
# | merge | a pair that was chosen, and gets an id of its own; merge number *m* makes the id 256 + *m* |
# | rank | the order in which tokens were learned, which is the order of their ids |
# | *M*, *V* | number of merges, size of the vocabulary: *V* = 256 + *M* |
# | *n*, *nₘ* | ids in a text; ids in it before merge number *m* |
# | piece | a part of a text, mostly a word, that merges never cross |

# %% [markdown]
# ## 1. Eleven characters, by hand
#
# The text is `banana band`. Its ids are its bytes:

# %%
from working_with_text_data.bytepair_enc.ladder import text_to_ids

ids = text_to_ids("banana band")
print(ids)

# %% [markdown]
# Count the neighbours on paper. `b a n a n a _ b a n d` has ten pairs:
#
# | pair | ba | an | na | a_ | _b | nd |
# |---|---|---|---|---|---|---|
# | times | 2 | **3** | 2 | 1 | 1 | 1 |
#
# `an` wins. Call it 256 and write it wherever it stands: `b 256 256 a _ b 256 d`. Eight ids are left. Count again:
# (b, 256) occurs twice, every other pair once. So 257 = `ban`, and the text is `257 256 a _ 257 d`. Now no pair occurs
# twice. Done: eleven ids have become six, and the vocabulary has grown by two.
#
# The machine needs two small functions for that. The first counts neighbours.

# %%
from collections import Counter
from itertools import pairwise


def neighbours(ids):
    return Counter(pairwise(ids))


print(neighbours(ids))

# %% [markdown]
# The second writes one id for two. It walks from left to right. If the last id written and the next one are the pair,
# the new id takes the place of both.


# %%
def join(ids, pair, new_id):
    written = []
    for i in ids:
        if written and (written[-1], i) == pair:
            written[-1] = new_id
        else:
            written.append(i)
    return written


steps = [ids]
for new_id in (256, 257):
    pair = neighbours(steps[-1]).most_common(1)[0][0]
    steps.append(join(steps[-1], pair, new_id))
    print(pair, "->", new_id, steps[-1])

# %% [markdown]
# The same as on paper. Drawn from these values, each box is a token:

# %%
import matplotlib.pyplot as plt

spelling = {256: "an", 257: "ban"} | {i: chr(i) for i in range(128)}
figure, axes = plt.subplots(figsize=(6, 2.4), layout="constrained")
for row, tokens in enumerate(steps):
    left = 0
    for i in tokens:
        width = len(spelling[i])
        axes.barh(-row, width, 0.7, left, color=str(1.07 - 0.12 * width), edgecolor="black")
        axes.text(left + width / 2, -row, spelling[i].replace(" ", "_"), ha="center", va="center", family="monospace")
        left += width
axes.set_yticks([0, -1, -2], [f"merges: {m}, tokens: {len(tokens)}" for m, tokens in enumerate(steps)])
axes.set(xlabel="position (bytes)", title="banana band")
plt.show()

# %% [markdown]
# **Predict before you run.** What happens to `aaaa` and `aaaaa` when the pair (a, a) is joined? How often is it
# counted, and what is left?

# %%
for text in ("aaaa", "aaaaa"):
    print(text, neighbours(text_to_ids(text)), join(text_to_ids(text), (97, 97), 256))

# %% [markdown]
# Occurrences that overlap are counted, and cannot all be joined. Three counted, two made; four counted, two made. The
# usual libraries count in this way too, so we do not "repair" it: other counts would choose other merges.
#
# ## 2. Ties
#
# In `banana band` the winners were clear. Usually they are not. After `an` and `ban`, suppose somebody goes on: every
# pair occurs once, and any could be the next. The result must not depend on luck, so there is a rule: *of equally
# frequent pairs, the one with the smallest ids.*


# %%
def winner(counts):
    return min(counts, key=lambda pair: (-counts[pair], pair))


print(winner(Counter({(5, 1): 7, (3, 9): 7, (3, 4): 7, (0, 0): 1})))

# %% [markdown]
# ## 3. Learning from a text
#
# A story of two thousand letters, in which, as in life, the same words come again.

# %%
story = """
Every morning, before the sun is over the roofs, the baker at the corner opens the shutters of the little café. The
baker lights the oven, weighs the flour and measures the water. Nobody else is in the street. The flour is from the mill
at the river, the water is from the well in the yard, and the salt is from the sea, which is a day away by cart. The
baker knows the weight of a loaf by hand and the heat of the oven by ear: when the bricks stop ticking, the oven is
ready.

Then the first of the neighbours come. The teacher wants the same loaf as every other morning, and the teacher says the
same thing as every other morning: that there is nothing better than the smell of bread. The miller brings another sack
of flour and takes another loaf home. The children of the miller want the small round cakes with the seeds, and they
want them while they are warm. The baker gives them the broken ones for nothing, and somehow there are always a few
broken ones in the basket.

In the afternoon the street is quiet again. The baker sits at the door of the café and writes in the big brown book:
the sacks of flour, the loaves, the cakes, the weather. The baker has written in the book for thirty years, and the
books stand on the shelf above the oven, thirty of them, one for every year. In the books there are hard winters and
dry summers, there is the year of the flood, when the river came into the mill, and there is the year when the teacher
was a child and wanted the small round cakes with the seeds.

The baker reads in the old books when the evenings are long. It is strange, says the baker to the cat, how few words
there are in thirty years. The same words come again and again: the flour, the oven, the loaf, the weather. Somebody
could write the whole of it with a hundred words and a few letters for the names. The cat, which has never read a book,
looks at the oven, and the oven ticks. In the morning the shutters will be opened before the sun is over the roofs, and
the words will come again.
"""
story = " ".join(story.split())
print(len(story), "characters,", len(text_to_ids(story)), "bytes")

# %% [markdown]
# Training is the two steps in a loop, until there are enough merges or no pair occurs twice. A pair that occurs once
# would save one id here and tell us nothing about other texts.


# %%
def learn(text, n_merges):
    ids, merges = text_to_ids(text), []
    while len(merges) < n_merges and (counts := neighbours(ids)):
        pair = winner(counts)
        if counts[pair] < 2:
            break
        ids = join(ids, pair, 256 + len(merges))
        merges.append(pair)
    return merges


merges = learn(story, 10_000)
print(len(merges), "merges until no pair occurs twice")

# %% [markdown]
# A merge is two ids. What does it spell? Every token is the bytes of its two parts, which were learned before.


# %%
def spell_all(merges):
    tokens = [bytes([i]) for i in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens


tokens = spell_all(merges)
print([token.decode() for token in tokens[256:286]])

# %% [markdown]
# Nobody told it what English is, and there are "the" and "and", and an "ing" at the end of the row.
#
# **Predict before you run.** What is the longest token that two thousand letters can make it learn?

# %%
print(repr(max(tokens, key=len).decode()))

# %% [markdown]
# Seven words in one token, the last without its s, because the phrase comes twice in the story. Section 7 does
# something about that.
#
# Each merge takes the best pair that is left, so each has less to gain than the one before. `used[m]` is how often the
# pair of merge *m* stands in the text at that moment, and `n[m]` how many ids there are then.

# %%
ids, used, n = text_to_ids(story), [], []
for m, pair in enumerate(merges):
    used.append(neighbours(ids)[pair])
    n.append(len(ids))
    ids = join(ids, pair, 256 + m)
print(used[:12], "...", used[-3:])

# %% [markdown]
# On axes of powers:

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.loglog(range(1, len(used) + 1), used, "k-", drawstyle="steps-mid")
axes.set(xlabel="merge (1 is the first)", ylabel="times it occurs", title="What each merge finds")
axes.grid(alpha=0.3, which="both")
plt.show()

# %% [markdown]
# The long flat end is one tie after another: more than a hundred merges of pairs that occur just twice. How many of the
# first hundred merges had a rival with the same count?

# %%
ids, rivals = text_to_ids(story), []
for m, pair in enumerate(merges[:100]):
    counts = neighbours(ids)
    rivals.append(sum(count == counts[pair] for count in counts.values()) - 1)
    ids = join(ids, pair, 256 + m)
print(sum(r > 0 for r in rivals), "of 100 had a rival; most rivals at once:", max(rivals))

# %% [markdown]
# So the rule for ties decides most of a small vocabulary. Here is another rule, "the pair that was seen first", as in
# minbpe (Karpathy 2024):


# %%
def learn_first_seen(text, n_merges):
    ids, merges = text_to_ids(text), []
    while len(merges) < n_merges and (counts := neighbours(ids)):
        pair = max(counts, key=counts.get)  # of several, the first in the text
        if counts[pair] < 2:
            break
        ids = join(ids, pair, 256 + len(merges))
        merges.append(pair)
    return merges


# %% [markdown]
# **Predict before you run.** How many of the tokens do the two vocabularies share?

# %%
other_merges = learn_first_seen(story, 10_000)
first = next(m for m, (a, b) in enumerate(zip(merges, other_merges, strict=False)) if a != b)
shared = set(tokens[256:]) & set(spell_all(other_merges)[256:])
print(f"first difference at merge {first}; {len(merges)} and {len(other_merges)} tokens, {len(shared)} in both")

# %% [markdown]
# Neither is better by that. But their ids mean different things, and a model trained with one cannot read the other. A
# rule for ties is part of the definition.
#
# ## 4. Encoding: the same merges in the same order
#
# Training is over. Here is another text, which the merges have never seen:

# %%
other = """
When the weather is warm, the teacher reads another book at the door of the school. The children listen to the story of
the fisherman and the whale, which is a sad story, and then they want another one. Nobody knows whether the whale was
real. The teacher says that there are stranger things in the sea than in the books, and the children, who have never
been at the sea, look at the river and wonder.
"""
other = " ".join(other.split())
print(len(text_to_ids(other)), "bytes")

# %% [markdown]
# To encode it, do again what training did: merge 0 wherever it fits, then merge 1, and so on. Nothing is counted any
# more.


# %%
def encode(text, merges):
    ids = text_to_ids(text)
    for m, pair in enumerate(merges):
        ids = join(ids, pair, 256 + m)
    return ids


encoded = encode(other, merges)
print(len(encoded), "ids:", [tokens[i].decode() for i in encoded[:12]])

# %% [markdown]
# Decoding needs no thought: put the bytes one after the other.


# %%
def decode(ids, tokens):
    return b"".join(tokens[i] for i in ids).decode("utf-8", errors="replace")


assert decode(encoded, tokens) == other
print(decode(encode("Grüße, 日本! 😀", merges), tokens))

# %% [markdown]
# Umlauts, kanji, emoji: the story has none of them, and they come back. What no merge covers stays bytes.
#
# An outside judge. `tiktoken` is OpenAI's encoder, written in Rust. Given our vocabulary, and a pattern that takes the
# whole text as one piece, it must give our ids.

# %%
from working_with_text_data.bytepair_enc import GPT4_PATTERN, BytePairTokenizer

judge = BytePairTokenizer.from_merges(merges, pattern=r"[\s\S]+").to_tiktoken()
assert judge.encode_ordinary(other) == encoded
assert judge.encode_ordinary(story) == encode(story, merges)
print("tiktoken gives the same ids")

# %% [markdown]
# ## 5. What a vocabulary buys
#
# How many ids does each text take when the vocabulary grows? One line for the text that the merges were learned from,
# one for the text that they have not seen.

# %%
lengths = {"story (learned from)": [], "other text": []}
for name, text in zip(lengths, (story, other)):
    ids = text_to_ids(text)
    for m, pair in enumerate(merges):
        lengths[name].append(len(text_to_ids(text)) / len(ids))  # bytes a token
        ids = join(ids, pair, 256 + m)
print({name: [round(curve[m], 2) for m in (0, 50, 100, 200)] for name, curve in lengths.items()})

# %% [markdown]
# Drawn:

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for (name, curve), style in zip(lengths.items(), ("k-", "k--")):
    axes.plot(range(256, 256 + len(curve)), curve, style, label=name)
axes.set(xlabel="size of the vocabulary V (tokens)", ylabel="bytes a token", title="Compression")
axes.legend(frameon=False)
axes.grid(alpha=0.3)
plt.show()

# %% [markdown]
# The lines part. The vocabulary goes on to learn the story by heart, and that helps the story only. Two thousand
# letters are far too few to learn English from.
#
# A larger vocabulary is not free. Each token needs a row of *d* numbers in a model (*V · d* parameters), and a model
# that has learned nothing is more at a loss. It gives each token the chance 1/*V* and pays ln *V* a token. By hand
# for the bytes: ln 256 = 5.545 a byte. For tokens, divide by how many bytes each covers:

# %%
import math

for M in (0, 50, 100, 200):
    V, per_token = 256 + M, lengths["other text"][M]
    print(
        f"V = {V}: ln V = {math.log(V):.3f} a token, {math.log(V) / per_token:.3f} a byte, V·768 = {V * 768:,} numbers"
    )

# %% [markdown]
# The loss *a token* has risen, the loss *a byte* has fallen by more than half, and no model has learned anything yet.
# So two models with different tokenizers are compared by the byte, never by the token.
#
# ## 6. A deliberate bug: the right text from the wrong ids
#
# *Seen.* Somebody writes the encoder anew and reasons: training joins the most frequent pair, so encoding joins the
# most frequent pair too, if it is a merge.


# %%
def encode_by_frequency(text, merges):
    new_id = {pair: 256 + m for m, pair in enumerate(merges)}
    ids = text_to_ids(text)
    while known := {pair: count for pair, count in neighbours(ids).items() if pair in new_id}:
        pair = winner(known)
        ids = join(ids, pair, new_id[pair])
    return ids


# %% [markdown]
# **Predict before you run.** Is the story still encoded rightly? Does the other text still come back?

# %%
print("story encoded as before:", encode_by_frequency(story, merges) == encode(story, merges))
print("other text comes back:  ", decode(encode_by_frequency(other, merges), tokens) == other)
print("other text's ids as before:", encode_by_frequency(other, merges) == encode(other, merges))

# %% [markdown]
# This is what makes the bug dangerous. Every test that looks at the text passes, and on the text that it was trained
# on even the ids are right, since there the frequencies are those of training. On any other text the ids are wrong,
# with no error.
#
# *Diagnosed.* Look for the first place where the two part, and at the tokens there.

# %%
wrong = encode_by_frequency(other, merges)
place = next(i for i, (a, b) in enumerate(zip(encoded, wrong, strict=False)) if a != b)
for name, ids in (("by order", encoded), ("by frequency", wrong)):
    print(f"{name:13}", [tokens[i].decode() for i in ids[place - 1 : place + 4]])

# %% [markdown]
# There both rules had a choice, what to do with "is warm". Which merge is the older one, and which is the more frequent
# here?

# %%
counts = neighbours(text_to_ids(other))
for token in ("s ", " w"):
    m = tokens.index(token.encode()) - 256
    print(f"{token!r} is merge {m}, and its bytes stand {counts[merges[m]]} times side by side in this text")

# %% [markdown]
# "s " was learned before " w", and " w" is more frequent in this text. A model learned its numbers for the ids that the
# order gives. How many tokens would it get that stand where it expects them?


# %%
def spans(ids):
    """Where each token begins, and which it is."""
    starts, position = set(), 0
    for i in ids:
        starts.add((position, i))
        position += len(tokens[i])
    return starts


print(f"{len(spans(encoded) & spans(wrong))} of {len(encoded)} tokens are the same")

# %% [markdown]
# *Mended.* The number of the merge decides, whatever the text: that is `encode` above. Another tempting shortcut
# fails in the same silent way: take the longest token that fits, then go on behind it.


# %%
def encode_longest(text, tokens):
    id_of, data, ids = {token: i for i, token in enumerate(tokens)}, text.encode(), []
    while data:
        length = max(size for size in range(1, 40) if data[:size] in id_of)
        ids.append(id_of[data[:length]])
        data = data[length:]
    return ids


for name, text in (("story", story), ("other", other)):
    a, b = encode(text, merges), encode_longest(text, tokens)
    print(f"{name}: {len(a)} ids by order, {len(b)} by the longest match, {len(spans(a) & spans(b))} the same")

# %% [markdown]
# It is not worse at compression: on the other text it even saves an id. It is merely not what the model was trained
# with. The test that finds both bugs compares *ids*, on a text that was not trained on, with an encoder that is known
# to be right.
#
# ## 7. Words first
#
# Back to the token of seven words. Merges that run across words waste the vocabulary on phrases, and give "oven." and
# "oven," and "oven is" a token each. So the text is cut into *pieces* first, mostly a word with the space before it,
# and no merge may cross a cut. What exactly a piece is, notebook 03 tells. Here the cut is GPT-4's:

# %%
from working_with_text_data.bytepair_enc.patterns import compile_pattern, split_into_pieces

pattern = compile_pattern(GPT4_PATTERN)
pieces = split_into_pieces(pattern, story)
print(len(pieces), "pieces:", pieces[:9])

# %% [markdown]
# Pieces repeat. Training needs to know only which there are, and how often each occurs:

# %%
piece_counts = Counter(piece.encode() for piece in pieces)
print(len(piece_counts), "distinct:", piece_counts.most_common(4))

# %% [markdown]
# The loop is the same, but for two things: pairs are looked for within each distinct piece, and they count as often as
# the piece occurs. The ladder's next rung does that.

# %%
from working_with_text_data.bytepair_enc.ladder import encode_pieces, learn_on_pieces

word_merges = learn_on_pieces(piece_counts, 10_000)
word_tokens = spell_all(word_merges)
print(len(word_merges), "merges; the longest tokens:", [t.decode() for t in sorted(word_tokens, key=len)[-5:]])

# %% [markdown]
# Tokens are words now, and parts of words. The two vocabularies, by the length of their tokens:

# %%
import numpy as np

by_length = [np.bincount([len(t) for t in some[256:]], minlength=40)[:40] for some in (tokens, word_tokens)]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.bar(np.arange(40) - 0.2, by_length[0], 0.4, color="white", edgecolor="black", label="across words")
axes.bar(np.arange(40) + 0.2, by_length[1], 0.4, color="0.3", edgecolor="black", label="within pieces")
axes.set(xlabel="length of a token (bytes)", ylabel="tokens", title="What was learned", xlim=(1, 40))
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# And what does it cost in compression? With all of the merges of each:

# %%
for name, text in (("story", story), ("other", other)):
    within = encode_pieces(split_into_pieces(pattern, text), word_merges)
    print(f"{name}: {len(encode(text, merges))} ids across words, {len(within)} within pieces")

# %% [markdown]
# On the story, the tokens across words win by far: they know it by heart. On the other text, the pieces do as well with
# fewer merges.
#
# How far can this go? A test that is worth making with every learner: let it overfit. With `min_frequency=1` it may
# join pairs that occur only once. It must end with every piece one token.

# %%
all_merges = learn_on_pieces(piece_counts, 1_000_000, min_frequency=1)
assert len(encode_pieces(pieces, all_merges)) == len(pieces)
print(len(all_merges), "merges make every piece of the story one token")

# %% [markdown]
# ## 8. The toy is the module
#
# The functions of this notebook are those of `bytepair_enc/ladder.py`, in other words. Equal on everything so far:

# %%
from working_with_text_data.bytepair_enc import ladder

assert merges == ladder.learn_on_text(story, 10_000)
for text in (story, other, "aaaaa", "", "Grüße 😀"):
    assert neighbours(text_to_ids(text)) == ladder.count_pairs(text_to_ids(text))
    assert encode(text, merges) == ladder.encode_with_merges(text, merges)
    assert join(text_to_ids(text), (97, 97), 256) == ladder.merge_pair(text_to_ids(text), (97, 97), 256)
print("equal")

# %% [markdown]
# Hugging Face's `tokenizers` has a trainer of its own, in Rust. It numbers the 256 bytes in another order, that of its
# printable alphabet, so its ties fall otherwise. First its pipeline, with our pattern:

# %%
import json

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

theirs = Tokenizer(models.BPE())
byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
cut = pre_tokenizers.Split(Regex(GPT4_PATTERN), "isolated")
theirs.pre_tokenizer = pre_tokenizers.Sequence([cut, byte_level])
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=456, initial_alphabet=alphabet, min_frequency=2, show_progress=False)
theirs.train_from_iterator([story], trainer)

# %% [markdown]
# Its merges, as bytes, beside ours: once with the bytes in its order, once in their natural one.

# %%
from working_with_text_data.bytepair_enc.tokenizer_json import byte_alphabet, bytes_of_spelling

their_tokens = [bytes_of_spelling(a + b) for a, b in json.loads(theirs.to_str())["model"]["merges"]]
for name, order in (("its order of the bytes", list(byte_alphabet())), ("0 to 255", range(256))):
    ours = BytePairTokenizer.train([story], 456, GPT4_PATTERN, (), byte_order=order).tokens_by_rank()[256:]
    print(f"{name:23} equal: {ours == their_tokens!s:6} in both: {len(set(ours) & set(their_tokens))} of {len(ours)}")

# %% [markdown]
# With the same numbering, two programs by different people, in different languages, agree on every merge. With the
# other numbering the ties alone make a difference.
#
# ## 9. One file, three readers
#
# The tokenizer goes to a file, `tokenizer.json`, in Hugging Face's format. This project, `tokenizers` and `tiktoken`
# have to give the same ids from it.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

tokenizer = BytePairTokenizer.from_merges(word_merges, GPT4_PATTERN)
with TemporaryDirectory() as folder:
    tokenizer.save(Path(folder) / "tokenizer.json")
    loaded = BytePairTokenizer.load(Path(folder) / "tokenizer.json")
    hugging_face = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
print(loaded.n_vocab, "tokens:", "256 bytes,", len(word_merges), "merges, and", *loaded.special_tokens)

# %% [markdown]
# The plain definition judges all of them:

# %%
for text in (story, other, "Grüße, 日本! 😀", ""):
    expected = encode_pieces(split_into_pieces(pattern, text), word_merges)
    assert tokenizer.encode(text) == loaded.encode(text) == expected
    assert hugging_face.encode(text).ids == loaded.to_tiktoken().encode(text) == expected
print("four times the same ids")

# %% [markdown]
# ## 10. What training costs
#
# Each merge walks over the whole text, once to count and once to join. Before merge *m* there are *nₘ* ids, so the
# work is
#
# $$2\,(n_0 + n_1 + \dots + n_{M-1}) \le 2\,M\,n_0$$
#
# steps. Section 3 kept the *nₘ*. Beside the formula, a count of what the loop really looks at:

# %%
looked_at = 0


class Counted(list):
    def __iter__(self):
        global looked_at
        looked_at += len(self)  # every loop here goes to the end
        return super().__iter__()


ids = Counted(text_to_ids(story))
for m, pair in enumerate(merges):
    assert winner(neighbours(ids)) == pair
    ids = Counted(join(ids, pair, 256 + m))
print(f"formula: {2 * sum(n):,}   looked at: {looked_at:,}   bound 2 M n₀: {2 * len(merges) * n[0]:,}")

# %% [markdown]
# Does time follow? For that, a larger text: the language reference that comes with Python, the same for everybody but
# for the version. Four sizes, sixty merges each, on the machine that ran this notebook.

# %% tags=["volatile"]
from pydoc_data.topics import topics
from time import perf_counter

reference = "\n".join(topics.values())
sizes, visits, took = (10_000, 20_000, 40_000, 80_000), [], []
for size in sizes:
    start = perf_counter()
    some_merges = ladder.learn_on_text(reference[:size], 60)
    took.append(perf_counter() - start)
    n_after = [len(encode(reference[:size], some_merges[:m])) for m in range(0, 60, 6)]
    visits.append(2 * 60 * sum(n_after) / len(n_after))  # the sum of the nₘ from every sixth of them
print([f"{v / 1e6:.2f} million steps: {t:.2f} s" for v, t in zip(visits, took)])

# %% [markdown]
# If the formula is right, time is proportional to the steps: a straight line through zero.

# %% tags=["volatile"]
per_step = sum(took) / sum(visits)
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot([0, visits[-1] / 1e6], [0, visits[-1] * per_step], color="0.7", linewidth=5, label="time = constant · steps")
axes.plot(np.array(visits) / 1e6, took, "ko", label="measured")
axes.set(xlabel="steps by the formula (millions)", ylabel="time (s)", title=f"{per_step * 1e9:.0f} nanoseconds a step")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# Thirty thousand merges on a gigabyte would be 60 million million steps at most. At a tenth of a microsecond each,
# that is ten weeks. Something has to be left out, and most of it can be, because most of the work is looking at what
# has not changed. Count it on the story: how many distinct pieces hold the pair that a merge joins?

# %%
words, touched = {piece: list(piece) for piece in piece_counts}, 0
for m, pair in enumerate(word_merges):
    holding = [piece for piece, ids in words.items() if pair in pairwise(ids)]
    touched += len(holding)
    words |= {piece: join(words[piece], pair, 256 + m) for piece in holding}
looked_at = len(word_merges) * len(words)
print(f"looked at: {looked_at:,} pieces   changed: {touched:,}   one in {looked_at / touched:.0f}")

# %% [markdown]
# `training.py` remembers in which pieces each pair stands, and goes to those alone; a heap of pairs
# gives the next winner without a look at all counts. Equal first:

# %%
from working_with_text_data.bytepair_enc.training import learn_merges

assert learn_merges(piece_counts, 10_000) == word_merges
assert learn_merges({story.encode(): 1}, 10_000) == merges  # a story is a piece too
print("the fast learner makes the same merges")

# %% [markdown]
# Then the ratio, on four sizes of the language reference, a hundred merges each:


# %% tags=["volatile"]
def seconds(function, *arguments):
    start = perf_counter()
    result = function(*arguments)
    return perf_counter() - start, result


sizes, plain, fast = (25_000, 50_000, 100_000, 200_000), [], []
for size in sizes:
    counts = Counter(piece.encode() for piece in split_into_pieces(pattern, reference[:size]))
    (slow_time, slow_merges), (fast_time, fast_merges) = (
        seconds(f, counts, 100) for f in (learn_on_pieces, learn_merges)
    )
    assert slow_merges == fast_merges
    plain.append(slow_time)
    fast.append(fast_time)
    print(f"{size:7,} characters: {slow_time:5.2f} s and {fast_time:.3f} s, {slow_time / fast_time:4.0f} times as fast")

# %% [markdown]
# Drawn, with powers on both axes:

# %% tags=["volatile"]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.loglog(np.array(sizes) / 1000, plain, "ko-", markersize=4, label="definition: learn_on_pieces")
axes.loglog(np.array(sizes) / 1000, fast, "ks--", markersize=4, label="index and heap: learn_merges")
axes.set_xticks(np.array(sizes) / 1000, [f"{size // 1000}" for size in sizes])
axes.minorticks_off()
axes.set(xlabel="text (thousand characters)", ylabel="time for 100 merges (s)", title="The same merges")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# Now a larger vocabulary costs little: 4,000 tokens from the first half of the reference. How are tokens spread in the
# other half, which it has not seen?

# %% tags=["volatile"]
half = len(reference) // 2
train_time, large = seconds(BytePairTokenizer.train, [reference[:half]], 4000)
print(f"trained in {train_time:.1f} s")
unseen = reference[half:]
frequencies = {
    "bytes": np.bincount(np.frombuffer(unseen.encode(), np.uint8)),
    "4,000 tokens": np.bincount(large.encode_to_numpy(unseen, disallowed_special=())),
}
print({name: f"{f.sum():,} ids, the commonest {f.max() / f.sum():.1%}" for name, f in frequencies.items()})

# %% [markdown]
# Sorted by how frequent they are, words of a language fall roughly as 1 over their place (Zipf 1949). The grey line
# falls so. Bytes do not follow it: a few are everywhere, and the rest are rare. Tokens come much nearer.

# %% tags=["volatile"]
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
for (name, f), style in zip(frequencies.items(), ("k:", "k-")):
    axes.loglog(range(1, len(f) + 1), np.sort(f)[::-1] / f.sum(), style, label=name)
axes.loglog([1, 4000], [0.1, 0.1 / 4000], color="0.75", linewidth=4, label="1 / place", zorder=0)
axes.set(xlabel="place (1 is the commonest)", ylabel="share of the text", title="How tokens are spread", ylim=(1e-6, 1))
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 11. Exercises
#
# Write your function in place of the dots, run the cell, and read what the check says. In all of them, merge number *m*
# makes the id 256 + *m*.
#
# ### Exercise 1 · `expand` (easy, 8 minutes)
#
# The bytes that one token stands for, from the merges alone: `expand(256, [(97, 110)]) == b"an"`.

# %%
from working_with_text_data.exercises.ex02 import attempt, check_expand


def expand(token, merges): ...


attempt(check_expand, expand)

# %% [markdown]
# <details><summary>Solution: `expand`</summary>
#
# ```python
# def expand(token, merges):
#     if token < 256:
#         return bytes([token])
#     left, right = merges[token - 256]
#     return expand(left, merges) + expand(right, merges)
# ```
# </details>
#
# ### Exercise 2 · `decode_ids` (easy, 8 minutes)
#
# The text of a row of ids. A character may be spread over two tokens, and the ids may end inside one: show U+FFFD then.

# %%
from working_with_text_data.exercises.ex02 import check_decode_ids


def decode_ids(ids, merges): ...


attempt(check_decode_ids, decode_ids)

# %% [markdown]
# <details><summary>Solution: `decode_ids`</summary>
#
# ```python
# def decode_ids(ids, merges):
#     tokens = [bytes([i]) for i in range(256)]
#     for left, right in merges:
#         tokens.append(tokens[left] + tokens[right])
#     return b"".join(tokens[i] for i in ids).decode("utf-8", errors="replace")
# ```
# </details>
#
# ### Exercise 3 · `best_pair_of` (easy, 8 minutes)
#
# Of a dictionary pair → count, the pair that is joined next: the most frequent, and of several the one with the
# smallest ids. Try another way than the `winner` above.

# %%
from working_with_text_data.exercises.ex02 import check_best_pair_of


def best_pair_of(counts): ...


attempt(check_best_pair_of, best_pair_of)

# %% [markdown]
# <details><summary>Solution: `best_pair_of`</summary>
#
# ```python
# def best_pair_of(counts):
#     most = max(counts.values())
#     return min(pair for pair, count in counts.items() if count == most)
# ```
# </details>
#
# ### Exercise 4 · `encode_by_rank` (medium, 20 minutes)
#
# `encode` tries every merge, and most do not occur in a short text. Turn it round: look at which pairs the text has,
# join the one that was learned earliest, and go on until none is a merge. The ids must be the same.

# %%
from working_with_text_data.exercises.ex02 import check_encode_by_rank


def encode_by_rank(text, merges): ...


attempt(check_encode_by_rank, encode_by_rank)

# %% [markdown]
# <details><summary>Solution: `encode_by_rank`</summary>
#
# ```python
# from itertools import pairwise
#
#
# def encode_by_rank(text, merges):
#     number = {pair: m for m, pair in enumerate(merges)}
#     ids = list(text.encode("utf-8"))
#     while known := [(number[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in number]:
#         m, i = min(known)  # the earliest merge, and of its places the leftmost
#         ids[i : i + 2] = [256 + m]
#     return ids
# ```
# </details>
#
# ### Exercise 5 · `learn_from_words` (hard, 25 minutes)
#
# Training within words: `counts` says how often each word (as bytes) occurs. Return `n_merges` pairs, or fewer where no
# pair is left that occurs twice.

# %%
from working_with_text_data.exercises.ex02 import check_learn_from_words


def learn_from_words(counts, n_merges): ...


attempt(check_learn_from_words, learn_from_words)

# %% [markdown]
# <details><summary>Solution: `learn_from_words`</summary>
#
# ```python
# from collections import Counter
# from itertools import pairwise
#
#
# def join(ids, pair, new_id):
#     written = []
#     for i in ids:
#         if written and (written[-1], i) == pair:
#             written[-1] = new_id
#         else:
#             written.append(i)
#     return written
#
#
# def learn_from_words(counts, n_merges):
#     words = [(list(word), count) for word, count in counts.items()]
#     merges = []
#     while len(merges) < n_merges:
#         pairs = Counter()
#         for ids, count in words:
#             for pair in pairwise(ids):
#                 pairs[pair] += count
#         best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
#         if best is None or pairs[best] < 2:
#             break
#         words = [(join(ids, best, 256 + len(merges)), count) for ids, count in words]
#         merges.append(best)
#     return merges
# ```
# </details>
#
# ## 12. In the project's source
#
# `bytepair_enc/ladder.py` is this notebook as a module, rung by rung. The tests hold the fast code to it. Its training
# loop, which you have written twice by now:

# %%
import inspect

print(inspect.getsource(ladder.learn_on_text))

# %% [markdown]
# And its encoder, three lines long. All that is fast in this project has to give the same ids as this does on each
# piece:

# %%
print(inspect.getsource(ladder.encode_with_merges))
for piece in set(pieces):
    assert tokenizer.encode(piece) == ladder.encode_with_merges(piece, word_merges)

# %% [markdown]
# Where to read on: `training.py`, first its docstring and then `MergeLearner.step`, which changes only what a merge
# touches. `tokenizer_json.py` for the file; its `recover_pair` finds the two parts of a token from the ranks alone.
#
# ## 13. What to keep
#
# - Training: count the pairs of neighbours, join the most frequent, begin again. Encoding: the same merges, in the same
#   order.
# - The vocabulary is 256 bytes and one token a merge. Nothing is unknown, and every text comes back.
# - Cut into pieces first, or the vocabulary learns phrases by heart.
# - The rule for ties and the numbering of the bytes belong to the definition.
# - Compare models by the byte, since a token is as long as its tokenizer makes it.
#
# **Pitfalls**
#
# - Encoding by frequency, or by the longest match: the text comes back, and the ids are wrong.
# - Testing an encoder only on the text that it was trained on, or only by decoding.
# - Decoding token by token: a character may be spread over two.
# - Choosing of equal pairs whichever a dictionary gives first.
# - Looking at compression on the training text alone.
#
# **On other machines.** Nothing here uses a GPU, so CUDA and Apple's MPS make no difference, and neither does
# Windows: the merges come from counts and a rule for ties, and `tokenizer.json` is written as UTF-8 everywhere.
#
# **The next question.** Here a pattern cut the text into pieces, and you took it on trust. Where should a text be
# cut? At what does a number end, or "don't", or four spaces of Python? And how does a text say that a document is
# over, in a way that no user can forge? *What must never be merged?* Notebook 03 answers that.
