# %% [markdown]
# # 04 · Where does the time go?
#
# The encoder of notebook 02 is three lines long and right. It is also slow: by the end of this page (figure 7) you
# will have seen the same ids come faster by three powers of ten, still from Python. Nothing here is a trick of the
# processor. Each step removes work that did not have to be done, and after each one we assert that not one id has
# changed.
#
# | | |
# |---|---|
# | Before this | notebooks 02 and 03; a little NumPy (shapes, `argmin`, indexing with arrays) |
# | Minutes | 60 to read, 55 more for the exercises |
# | Hardware | any computer with two cores; no GPU, no network; the whole notebook runs in about a minute |
#
# | sign | meaning |
# |---|---|
# | $M$ | merges of the vocabulary |
# | $n$ | bytes of one piece; at first also its parts |
# | $P$, $D$ | pieces of a text; *different* pieces among them |
# | rows | pieces that have the same number of parts, one under the other in a matrix `(rows, n)` |
#
# Times differ from machine to machine. Cells that measure are marked `volatile`: they are not compared when the
# notebook is checked, and the text around them says what to look for, not which figure you will see.

# %% [markdown]
# ## 1. A toy, and the same ids three ways
#
# First a text that stands in the notebook, so that everything about it is the same on every machine. A vocabulary is
# trained on it, and its merges are kept in the order in which they were learned.

# %%
from working_with_text_data.bytepair_enc import GPT2_PATTERN, GPT4_PATTERN, GPT4O_PATTERN, BytePairTokenizer, ladder
from working_with_text_data.bytepair_enc.counting import count_pieces
from working_with_text_data.bytepair_enc.training import learn_merges

STORY = """The baker bakes bread before the break of day. The bread is baked by the baker's brother, the other baker.
"Is the bread baked?" the brother asked. "The bread is baked, brother," the baker said, "and the day has broken."
On other days the other brother bakes, and the baker brings the bread to the market. They break the bread together.
"""
merges = learn_merges(count_pieces([STORY], GPT4_PATTERN), 32)
toy = BytePairTokenizer.from_merges(merges)
print(len(merges), "merges, the last one makes", toy.tokens_by_rank()[-1])

# %% [markdown]
# Three encoders for one text: the whole list of merges, one after the other (notebook 02); the merge of lowest rank,
# again and again; and the project's fast one. tiktoken, which is written in Rust, gets the same vocabulary and is asked
# too.

# %%
from working_with_text_data.bytepair_enc.merging import merge_piece
from working_with_text_data.bytepair_enc.patterns import compile_pattern, split_into_pieces

pattern = compile_pattern(GPT4_PATTERN)
pieces = split_into_pieces(pattern, STORY)
in_order = ladder.encode_pieces(pieces, merges)
by_rank = [i for piece in pieces for i in merge_piece(piece.encode(), toy.ranks)]
assert in_order == by_rank == toy.encode(STORY) == toy.to_tiktoken().encode(STORY)
print(len(STORY.encode()), "bytes,", len(pieces), "pieces,", len(in_order), "tokens")

# %% [markdown]
# One sanity number before anything is timed. Each merge makes two parts into one, so a text of $B$ bytes and $T$ tokens
# took exactly $B - T$ merges, whichever way. That is all the work there *has* to be. Everything else is looking.

# %% [markdown]
# ## 2. By hand: who looks how often?
#
# Take the piece `baker` and a vocabulary of four merges: `b a`, `e r`, `k er`, `ba ker`.
#
# | in order: each merge walks along the piece | parts after it | places looked at |
# |---|---|---|
# | 1: `b a` | `ba k e r` | 5 |
# | 2: `e r` | `ba k er` | 4 |
# | 3: `k er` | `ba ker` | 3 |
# | 4: `ba ker` | `baker` | 2 |
#
# Fourteen. By rank we look at the four pairs of neighbours, join the best, look at the three pairs that are left, then
# two, then one: ten. No great difference, with four merges. But a real vocabulary has a hundred thousand, and the first
# way asks about *all* of them, also those that have nothing to do with a baker.
#
# **Predict before you run (1).** The piece stays `baker`. The vocabulary grows from 4 merges to 32. How do the two
# counts grow?


# %%
def looks_in_order(piece, merges):
    ids, looks = ladder.text_to_ids(piece), 0
    for m, pair in enumerate(merges):
        looks += len(ids)
        ids = ladder.merge_pair(ids, pair, 256 + m)
    return looks


def looks_by_rank(piece, merges):
    tokens_left = len(ladder.encode_with_merges(piece, merges))
    n, looks = len(piece.encode()), 0
    for parts in range(n, tokens_left - 1, -1):  # one round for each number of parts, the last one finds nothing
        looks += parts - 1
    return looks


# %% [markdown]
# We count both for the first 4, 8, … 32 merges of the toy.

# %%
sizes = list(range(4, 33, 4))
counted = {
    "in order": [looks_in_order("baker", merges[:m]) for m in sizes],
    "by rank": [looks_by_rank("baker", merges[:m]) for m in sizes],
}
print({name: (looks[0], looks[-1]) for name, looks in counted.items()})

# %% [markdown]
# In order it grows with the vocabulary: about $M \cdot n$ at first, less as the piece gets shorter, and never under
# $M$. By rank it is at most $(n-1) + (n-2) + \dots + 1 = n(n-1)/2$, and $M$ is not in it. Both bounds hold:

# %%
n = len("baker")
assert all(m <= looks <= m * n for m, looks in zip(sizes, counted["in order"], strict=True))
assert all(looks <= n * (n - 1) // 2 for looks in counted["by rank"])

# %% [markdown]
# Figure 1: places looked at for `baker`, against the size of the vocabulary.

# %%
import matplotlib.pyplot as plt

plt.rcParams["figure.dpi"] = 90
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
axes.plot(sizes, counted["in order"], "ks-", ms=4, label="merges in order")
axes.plot(sizes, counted["by rank"], "k^:", ms=4, label="by rank")
axes.axhline(n * (n - 1) // 2, ls="--", color="0.5", lw=1, label="n (n − 1) / 2")
axes.set(xlabel="merges M of the vocabulary", ylabel="places looked at")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 3. A real text, and the first ratio
#
# For times we need more text: `python-docs`, the language reference and docstrings that came with your Python. They
# differ from version to version, so from here on some cells are volatile. A vocabulary of 4,096 tokens is trained on
# it.

# %% tags=["volatile"]
import random
import time

from working_with_text_data.corpora import open_corpus

texts = [document.text for document in open_corpus("python-docs")]
docs = "\n".join(texts)
started = time.perf_counter()
doc_merges = learn_merges(count_pieces(texts, GPT4_PATTERN), 4096 - 257)
tokenizer = BytePairTokenizer.from_merges(doc_merges)
print(f"{len(docs.encode()) / 1e6:.2f} MB, {len(doc_merges):,} merges in {time.perf_counter() - started:.1f} s")

# %% [markdown]
# Two helpers. The contestants run by turns (A B A B), since no machine is as fast as a moment ago, and the median
# counts. Speeds are kept for a picture at the end.

# %%
from utils.benchmarking import median, time_by_turns

speeds = {}  # what -> megabytes per second


def compare(contestants, repeats=3):
    """Prints how many times as fast the second contestant was as the first."""
    seconds = median(time_by_turns(contestants, repeats))
    (slow, a), (fast, b) = seconds.items()
    print(f"{slow}: {a * 1e3:,.2f} ms; {fast}: {b * 1e3:,.2f} ms; {a / b:,.1f} times as fast")
    return seconds


# %% [markdown]
# **Predict before you run (2).** The vocabulary has some four thousand merges, and an English piece some five bytes.
# From the formulas above: $M n$ against at most $n(n-1)/2$. What ratio do you expect, in powers of ten?

# %% tags=["volatile"]
little = docs[20_000:20_600]
little_pieces = split_into_pieces(pattern, little)
assert ladder.encode_pieces(little_pieces, doc_merges) == tokenizer.encode_ordinary(little)
seconds = compare(
    {
        "merges in order": lambda: ladder.encode_pieces(little_pieces, doc_merges),
        "by rank": lambda: [merge_piece(piece.encode(), tokenizer.ranks) for piece in little_pieces],
    }
)
speeds.update({name: len(little.encode()) / 1e6 / s for name, s in seconds.items()})

# %% [markdown]
# A place looked at by rank costs more than one looked at in order (it joins bytes and asks a dictionary), so the ratio
# is smaller than the counts promise. It is still the largest step of the ladder, and the only one that needed an idea
# about the algorithm.
#
# ## 4. A piece that came once comes again
#
# The next steps need none. They notice that text repeats itself. In the toy already:

# %%
from collections import Counter

counts = Counter(pieces)
print(f"P = {len(pieces)} pieces, D = {len(counts)} different ones; {counts.most_common(3)}")

# %% [markdown]
# The ids of a piece depend on the piece alone. So merge each different piece once and remember it.


# %%
def encode_remembering(pieces, ranks, known):
    ids = []
    for piece in pieces:
        if piece not in known:
            known[piece] = merge_piece(piece.encode(), ranks)
        ids += known[piece]
    return ids


known = {}
assert encode_remembering(pieces, toy.ranks, known) == by_rank
assert len(known) == len(counts)

# %% [markdown]
# How does $D$ grow with $P$? **Predict before you run (3):** after ten times as much text, are there ten times as many
# different pieces? Figure 2 counts it, on axes where a power law is a straight line.

# %% tags=["volatile"]
doc_pieces = split_into_pieces(pattern, docs)
seen, different = set(), []
for piece in doc_pieces:
    seen.add(piece)
    different.append(len(seen))
marks = [2**k for k in range(4, len(different).bit_length())]
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
axes.loglog(marks, [different[m - 1] for m in marks], "ko-", ms=4, label="different pieces, measured")
axes.loglog(marks, marks, "--", color="0.5", label="if none came twice")
axes.set(xlabel="pieces P read", ylabel="different pieces D")
axes.legend(frameon=False)
plt.show()
print(f"P = {len(doc_pieces):,}, D = {len(seen):,}: a piece comes {len(doc_pieces) / len(seen):.0f} times on average")

# %% [markdown]
# The curve bends away from the dashed line and keeps bending (Heaps 1978, *Information Retrieval*, found this growth
# slower than the text's). So the more text, the smaller the share that has to be merged: $D/P$ of it. What does it buy?
# One pass with an empty memory, so that the new pieces are paid for.

# %% tags=["volatile"]
part = docs[:300_000]
part_pieces = split_into_pieces(pattern, part)
seconds = compare(
    {
        "every piece by rank": lambda: [
            i for piece in part_pieces for i in merge_piece(piece.encode(), tokenizer.ranks)
        ],
        "each different piece once": lambda: encode_remembering(part_pieces, tokenizer.ranks, {}),
    }
)
print(f"P / D = {len(part_pieces) / len(set(part_pieces)):.1f}")

# %% [markdown]
# Less than $P/D$: the dictionary has to be asked for every piece, and the rare pieces, which are merged, are the long
# ones. Where is the time now? Take the two parts apart: cutting the text with the pattern, and looking pieces up.

# %% tags=["volatile"]
warm = {}
encode_remembering(part_pieces, tokenizer.ranks, warm)
seconds = compare(
    {
        "the pattern": lambda: split_into_pieces(pattern, part),
        "the dictionary": lambda: encode_remembering(part_pieces, tokenizer.ranks, warm),
    }
)
whole = sum(seconds.values())
speeds["dictionary of pieces"] = len(part.encode()) / 1e6 / whole
print(f"the pattern takes {100 * seconds['the pattern'] / whole:.0f} % of the time")

# %% [markdown]
# ## 5. Words before the pattern
#
# The pattern has become the largest cost. It asks of each character whether it is a letter in any script. But if the
# text repeats its *words*, the pattern need not look at a word twice either. Cut at white space first, with something
# simple and quick, and remember the ids of words.
#
# It is right only if **no match of the pattern ever crosses a cut**. Cutting is easy. Cutting where the pattern would
# cut anyway is the whole art. The obvious try: white space begins a word, so cut in front of every space.

# %%
import re


def cut_before_every_space(text):
    return re.findall(r" ?[^ ]+| ", text)


def pieces_of_words(cut, text):
    return [piece for word in cut(text) for piece in split_into_pieces(pattern, word)]


print(cut_before_every_space("the baker's bread"))
assert pieces_of_words(cut_before_every_space, STORY) == pieces  # right on the whole story

# %% [markdown]
# ### The bug
#
# It passes on the story. It would pass on most prose. Then somebody encodes Python code.

# %%
CODE = "if x:\n        return y\n"
print("pattern:", split_into_pieces(pattern, CODE))
print("words:  ", pieces_of_words(cut_before_every_space, CODE))

# %% [markdown]
# **Seen:** the indentation is one piece of seven spaces to the pattern, and seven pieces to us. The ids differ, the
# text that comes back is the same, and no error says so. A model that was trained on the one and is given the other
# reads indentation that it has never met.
#
# **Diagnosed:** find a match of the pattern that lies on both sides of a cut.


# %%
def torn(cut, text, pattern=pattern):
    """The first match of the pattern that goes across a cut; None if there is none."""
    places, at = set(), 0
    for word in cut(text):
        places.add(at)
        at += len(word)
    for match in pattern.finditer(text):
        if inside := [place for place in range(match.start() + 1, match.end()) if place in places]:
            return match.group(), inside[0] - match.start()
    return None


print(torn(cut_before_every_space, CODE))

# %% [markdown]
# `\s+(?!\S)` matches a run of spaces, and we cut in the middle of it. The same mistake with line ends: "a line end ends
# a line, so cut behind each". But GPT-4's pattern keeps line ends together, and with the signs before them.


# %%
def cut_behind_every_line_end(text):
    return re.findall(r"[^\n]*\n|[^\n]+", text)


print(torn(cut_behind_every_line_end, "the end.\n\n\nThe baker"))

# %% [markdown]
# How do you find such cases before a user does? Ask for *all* small texts. Five kinds of characters matter here:
# letters, spaces, line ends, signs, and the slash that GPT-4o treats apart. All texts of up to six of them are 19,530.
#
# **Predict before you run (4).** Of these 19,530 texts, on how many does each of the two cuts change the pieces: a
# handful, some per cent, most?

# %%
from itertools import product

SMALL = ["".join(letters) for length in range(1, 7) for letters in product("a \n./", repeat=length)]


def count_wrong(cut, pattern=pattern):
    def of_words(text):
        return [piece for word in cut(text) for piece in split_into_pieces(pattern, word)]

    return sum(of_words(text) != split_into_pieces(pattern, text) for text in SMALL)


for cut in (cut_before_every_space, cut_behind_every_line_end):
    print(f"{cut.__name__}: {count_wrong(cut):,} of {len(SMALL):,} texts")

# %% [markdown]
# **Mended:** `word_cuts.py` cuts GPT-4's text in front of a *run* of white space that follows something else. Line
# ends stay with what is before them, up to the last line end of the run. Why does no match cross such a cut? Look at
# what may hold white space in GPT-4's pattern:
#
# - `[^\r\n\p{L}\p{N}]?\p{L}+` and ` ?[^\s\p{L}\p{N}]+[\r\n]*` may have one space, **first**. Nothing but line ends may
#   follow the signs.
# - The four others are **only** white space, and stop at the first character that is something else.
#
# So a match never has something else and *then* a space. In front of such a space we may cut. Behind line ends a match
# goes on only with white space up to the last line end of the run, and that is where the second cut is. GPT-2's pattern
# lets nothing follow signs, so line ends begin a word there. GPT-4o's lets slashes follow line ends, so where one does,
# there is no cut.

# %%
from working_with_text_data.bytepair_enc.word_cuts import CUTTERS

for text in ("the  baker's\n\n  bread. ", CODE, "end.\n\n\nThe baker"):
    print(CUTTERS[GPT4_PATTERN](text))

# %% [markdown]
# All 19,530 texts again, for three patterns, each with its own cut and with GPT-2's and GPT-4's. Figure 3 shows the
# counts.

# %%
patterns = {"GPT-2": GPT2_PATTERN, "GPT-4": GPT4_PATTERN, "GPT-4o": GPT4O_PATTERN}
cuts = {
    "every space": cut_before_every_space,
    "every line end": cut_behind_every_line_end,
    "GPT-2's cut": CUTTERS[GPT2_PATTERN],
    "GPT-4's cut": CUTTERS[GPT4_PATTERN],
}
wrong = {name: [count_wrong(cut, compile_pattern(p)) for p in patterns.values()] for name, cut in cuts.items()}
for name, numbers in wrong.items():
    print(f"{name:15}", dict(zip(patterns, numbers, strict=True)))
for rule in patterns.values():
    assert count_wrong(CUTTERS[rule], compile_pattern(rule)) == 0

# %% [markdown]
# Zero where a pattern meets its own cut, and thousands where it meets another's. (GPT-4's cut is GPT-4o's too.)

# %%
import numpy as np

figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
for k, (name, hatch, colour) in enumerate(zip(patterns, ("", "///", "..."), ("0.35", "white", "0.85"), strict=True)):
    heights = [100 * numbers[k] / len(SMALL) for numbers in wrong.values()]
    bars = axes.bar(np.arange(4) + 0.27 * (k - 1), heights, 0.25, color=colour, ec="black", hatch=hatch, label=name)
    axes.bar_label(bars, ["0" if height == 0 else "" for height in heights], fontsize=9)
axes.set(xticks=range(4), xticklabels=cuts, ylabel="texts with other pieces, %", ylim=(0, None))
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# All small texts are not all texts. The argument above is the proof, and the count is what would have told us that the
# argument was wrong. What does it buy?

# %% tags=["volatile"]
cut = CUTTERS[GPT4_PATTERN]
word_ids = {}


def encode_words(text):
    ids = []
    for word in cut(text):
        if word not in word_ids:
            word_ids[word] = encode_remembering(split_into_pieces(pattern, word), tokenizer.ranks, warm)
        ids += word_ids[word]
    return ids


assert encode_words(part) == tokenizer.encode_ordinary(part)
seconds = compare(
    {
        "pieces, looked up": lambda: encode_remembering(split_into_pieces(pattern, part), tokenizer.ranks, warm),
        "words, looked up": lambda: encode_words(part),
    }
)
speeds["dictionary of words"] = len(part.encode()) / 1e6 / seconds["words, looked up"]

# %% [markdown]
# ## 6. New words, all at once
#
# What is left is words that nobody has seen. One by one each costs some microseconds of Python. Many of them together
# can share every step. Put pieces with the same number of parts under one another. Here are three of four bytes, and a
# vocabulary of three merges: `ab` = 256, `cd` = 257, `ab cd` = 258.

# %%
three = [b"abcd", b"xabx", b"bcbc"]
ranks = toy.ranks | {b"ab": 256, b"cd": 257, b"abcd": 258}
ranks = {token: i for token, i in ranks.items() if len(token) == 1 or token in (b"ab", b"cd", b"abcd")}
parts = np.array([list(piece) for piece in three])  # (rows, n) = (3, 4)
print(parts)

# %% [markdown]
# For each row, the rank of each pair of neighbours: one column less. A pair that is no token gets a rank above every
# other, so that it never wins.

# %%
NO_TOKEN = 999
token_of = {i: token for token, i in ranks.items()}


def rank_of_pairs(left, right):
    """The rank of each pair, of the shape of `left` and `right`."""
    pairs = zip(left.ravel().tolist(), right.ravel().tolist(), strict=True)
    return np.array([ranks.get(token_of[a] + token_of[b], NO_TOKEN) for a, b in pairs], int).reshape(left.shape)


pair_ranks = rank_of_pairs(parts[:, :-1], parts[:, 1:])  # (rows, n - 1)
print(pair_ranks)

# %% [markdown]
# The best pair of every row is one `argmin`. It takes the leftmost of equal ones, which is just what the rule asks for.

# %%
best = pair_ranks.argmin(axis=1)  # (rows,)
made = pair_ranks[np.arange(3), best]  # (rows,)
print("best column of each row:", best, "  it makes:", made)

# %% [markdown]
# The third row has no pair left: it is done, with its four bytes as ids. The others write the new id over the left part
# and drop the right one. Each row drops another column, so a mask says which numbers stay.

# %%
going = made != NO_TOKEN
parts, best, made = parts[going], best[going], made[going]  # (2, 4), (2,), (2,)
rows = np.arange(len(parts))
parts[rows, best] = made
keep = np.ones(parts.shape, bool)
keep[rows, best + 1] = False
parts = parts[keep].reshape(len(parts), 3)  # (rows, n - 1)
print(parts)

# %% [markdown]
# Two rows of three parts: `ab c d` and `x ab x`. Now the same again, and pieces that had three bytes from the start
# can join these rows. One way down from the longest pieces to the shortest does all of them. The whole of it, for rows
# of one length:


# %%
def merge_rows(parts):
    """The ids of each row, by the plain rule, all rows in step: (rows, n) to a list of rows."""
    place, result = np.arange(len(parts)), [None] * len(parts)
    for n in range(parts.shape[1], 0, -1):
        pair_ranks = rank_of_pairs(parts[:, :-1], parts[:, 1:])  # (rows, n - 1)
        pair_ranks = np.pad(pair_ranks, ((0, 0), (0, 1)), constant_values=NO_TOKEN)  # (rows, n): the last never wins
        best = pair_ranks.argmin(axis=1)  # (rows,)
        made = pair_ranks[np.arange(len(parts)), best]  # (rows,)
        for row in np.flatnonzero(made == NO_TOKEN):
            result[place[row]] = parts[row].tolist()
        going = made != NO_TOKEN
        place, parts, best, made = place[going], parts[going], best[going], made[going]
        rows, keep = np.arange(len(parts)), np.ones(parts.shape, bool)
        parts[rows, best] = made
        keep[rows, best + 1] = False
        parts = parts[keep].reshape(len(parts), n - 1)  # (rows, n - 1)
    return result


# %% [markdown]
# Toy against definition, and the module's `merge_pieces` against both. Its other refinement is a hash table for pairs
# in NumPy (`PairRanks`), where ours asks a Python dictionary, and it computes only the two ranks that a merge changes.

# %%
from working_with_text_data.bytepair_enc.merging import PairRanks, merge_pieces

expected = [merge_piece(piece, ranks) for piece in three]
assert merge_rows(np.array([list(piece) for piece in three])) == expected
ids, counts_of_ids = merge_pieces(three, PairRanks(ranks, token_of))
assert ids.tolist() == [i for row in expected for i in row] and counts_of_ids.tolist() == [len(row) for row in expected]
print(expected)

# %% [markdown]
# How much faster is it? That depends on how many pieces come together: each array operation has a price of its own, and
# only many rows make it small. Figure 4 measures it for the pieces of `python-docs` that are not one token already.

# %% tags=["volatile"]
new = sorted({piece.encode() for piece in doc_pieces} - tokenizer.ranks.keys())
random.Random(0).shuffle(new)
numbers = [8, 32, 128, 512, 2048, len(new)]
table = PairRanks(tokenizer.ranks, dict(enumerate(tokenizer.tokens_by_rank())))
together, _ = merge_pieces(new, table)
assert together.tolist() == [i for piece in new for i in merge_piece(piece, tokenizer.ranks)]
each = {"one by one": [], "all at once": []}
for number in numbers:
    some = new[:number]
    seconds = median(
        time_by_turns(
            {
                "one by one": lambda some=some: [merge_piece(piece, tokenizer.ranks) for piece in some],
                "all at once": lambda some=some: merge_pieces(some, table),
            }
        )
    )
    for name, s in seconds.items():
        each[name].append(1e6 * s / number)

# %% [markdown]
# The picture:

# %% tags=["volatile"]
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
axes.loglog(numbers, each["one by one"], "ks--", ms=4, label="one by one")
axes.loglog(numbers, each["all at once"], "ko-", ms=4, label="all at once")
axes.set(xlabel="new pieces that come together", ylabel="microseconds per piece")
axes.legend(frameon=False)
plt.show()
print(
    f"with {numbers[-1]:,} pieces {each['one by one'][-1] / each['all at once'][-1]:.1f} times as fast, "
    f"with {numbers[0]} {each['one by one'][0] / each['all at once'][0]:.2f} times"
)

# %% [markdown]
# With few pieces, arrays *lose*. So `fast_encoding.py` merges few new pieces one by one and many together; `_MANY`, at
# its top, says from how many.
#
# ## 7. One very long piece
#
# The plain rule looks at all pairs again after each merge: $n(n-1)/2$ looks for $n$ bytes. For a word that is nothing.
# For a hundred thousand letters without a space (a DNA string, a file in base 64) it is $5 \cdot 10^9$. A heap of
# pairs keeps the best one on top. A merge changes two pairs, and each goes into the heap for about $\log_2 n$ steps.
#
# By hand, `a b a b` with `ab` = 256 and `ab ab` = 257. The heap holds (rank, where it starts):
#
# | heap | taken | parts | new in the heap |
# |---|---|---|---|
# | (256, 0), (256, 2) | (256, 0) | `ab a b` | |
# | (256, 2) | (256, 2) | `ab ab` | (257, 0) |
# | (257, 0) | (257, 0) | `abab` | |
#
# One catch: a pair that stands in the heap may be gone by the time it comes up, since a neighbour was merged away.
# Nobody searches the heap to delete it. Such an entry is *stale*, and skipped when it is taken.

# %%
from working_with_text_data.bytepair_enc.merging import merge_by_heap

for piece in (b"abab", b"thebakersbrother" * 20, b"bread", b"aaaa"):
    assert merge_by_heap(piece, toy.ranks) == merge_piece(piece, toy.ranks)

# %% [markdown]
# Figure 5: time against length, on axes where $n^2$ is a line of slope 2 and $n \log n$ one of slope a little over 1.

# %% tags=["volatile"]
letters = "".join(random.Random(0).choices("etaoinshrdlu", k=2**16)).encode()
longest = {"plain rule": 11, "heap": 16}
curves = {}
for name, merge in (("plain rule", merge_piece), ("heap", merge_by_heap)):
    lengths = [2**k for k in range(2, longest[name] + 1)]
    some = {n: [letters[n * i : n * i + n] for i in range(max(2**11 // n, 1))] for n in lengths}  # short: many of them
    runs = {n: lambda a=some[n], merge=merge: [merge(piece, tokenizer.ranks) for piece in a] for n in lengths}
    least = [min(times) for times in time_by_turns(runs, 5).values()]  # the least disturbed run
    curves[name] = (lengths, [t / len(some[n]) for n, t in zip(lengths, least, strict=True)])
slope = {name: np.polyfit(np.log(n[-4:]), np.log(s[-4:]), 1)[0] for name, (n, s) in curves.items()}
print({name: f"slope {value:.2f}" for name, value in slope.items()})

# %% [markdown]
# Drawn with guides of the two slopes, each through the last point measured:

# %% tags=["volatile"]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for (name, (lengths, s)), style in zip(curves.items(), ("ks-", "ko-"), strict=True):
    axes.loglog(lengths, s, style, ms=4, mfc="black" if name == "heap" else "white", label=name)
n, s = np.array(curves["plain rule"][0]), curves["plain rule"][1]
axes.loglog(n, s[-1] * (n / n[-1]) ** 2, ":", color="0.4", label="n²")
n, s = np.array(curves["heap"][0]), curves["heap"][1]
axes.loglog(n, s[-1] * n * np.log(n) / (n[-1] * np.log(n[-1])), "--", color="0.4", label="n log n")
axes.set(xlabel="bytes n of the piece", ylabel="seconds")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# The slopes are the ones that the formulas promise: 2, and a little over 1.
#
# And a surprise. A heap has a price of its own, so one would expect the plain rule to win for short pieces. Look where
# the curves cross: on the machine that made this page they do not. The plain rule asks the dictionary about every pair
# again after each merge, and the heap asks about each pair once. A guess about speed is a guess until it is measured.
#
# ## 8. Ids as bytes, and back
#
# Everything is looked up now, and still lists of numbers are made. A list of a million ids is a million pointers. But
# an id fits into four bytes, and bytes can be joined in one go. So the dictionary of words holds packed bytes, not
# lists:

# %%
packed = {piece: np.array(toy.encode_ordinary(piece), np.uint32).tobytes() for piece in counts}
joined = b"".join([packed[piece] for piece in pieces])
assert np.frombuffer(joined, np.uint32).tolist() == by_rank  # 4 bytes an id, (tokens,)
print(len(joined), "bytes for", len(by_rank), "ids")

# %% [markdown]
# Both ways, for all of `python-docs`: lists put one behind the other, and bytes joined. The second stays an array,
# which is what training wants anyway.

# %% tags=["volatile"]
from itertools import chain

doc_lists = {piece: tokenizer.encode_ordinary(piece) for piece in seen}
doc_packed = {piece: np.array(ids, np.uint32).tobytes() for piece, ids in doc_lists.items()}
seconds = compare(
    {
        "lists": lambda: list(chain.from_iterable(map(doc_lists.__getitem__, doc_pieces))),
        "packed bytes": lambda: np.frombuffer(b"".join(map(doc_packed.__getitem__, doc_pieces)), np.uint32),
    }
)

# %% [markdown]
# Back to text is a table: id → bytes. Fetched one by one in Python, or all at once by NumPy's `take` from an array of
# objects, which does the same in C.

# %%
table_of_bytes = toy.tokens_by_rank()
one_by_one = b"".join([table_of_bytes[i] for i in by_rank])
in_an_array = np.array([table_of_bytes[i] for i in range(len(table_of_bytes))], object)
assert one_by_one == b"".join(in_an_array.take(by_rank).tolist()) == STORY.encode()
assert toy.decode(by_rank) == STORY

# %% [markdown]
# The module fetches slices of 4,000, so that what is fetched is still in the processor's cache when it is joined. Its
# table holds strings, a character for each byte, because Python joins those faster than bytes.
# tiktoken decodes the same ids, as a third opinion.

# %% tags=["volatile"]
theirs = tokenizer.to_tiktoken()
doc_ids = tokenizer.encode_ordinary(docs)
doc_table = tokenizer.tokens_by_rank()
assert tokenizer.decode(doc_ids) == theirs.decode(doc_ids) == docs
slices = compare(
    {
        "one by one": lambda: b"".join([doc_table[i] for i in doc_ids]).decode(),
        "slices by take": lambda: tokenizer.decode(doc_ids),
    }
)
libraries = compare({"tiktoken": lambda: theirs.decode(doc_ids), "ours": lambda: tokenizer.decode(doc_ids)})

# %% [markdown]
# ## 9. Training: touch only what changes
#
# Training by the definition counts all pairs of all pieces, joins one, and begins again. For $M$ merges over $S$
# symbols that is about $M \cdot S$ looks. But a merge changes few pieces. How few? The toy can say: for each merge,
# the pieces that hold its pair.

# %%
words = {piece.encode(): list(piece.encode()) for piece in counts}
touched = []
for m, pair in enumerate(merges):
    holders = [piece for piece, ids in words.items() if pair in ladder.count_pairs(ids)]
    touched.append(len(holders))
    words.update({piece: ladder.merge_pair(words[piece], pair, 256 + m) for piece in holders})
print(f"{sum(touched)} pieces touched by {len(merges)} merges; the definition looks at {len(merges) * len(words):,}")

# %% [markdown]
# So an **index** says for each pair which pieces hold it, and a merge goes to those alone. A **heap** knows the most
# frequent pair without looking at all of them. And one more idea: write each token as one *character*. Then a piece is
# a string, a pair is a string of two, and joining it is `str.replace`, which C does.

# %%
piece = "banana"
print(piece.replace("an", chr(256)), "is", [ord(c) for c in piece.replace("an", chr(256))])
assert [ord(c) for c in piece.replace("an", chr(256))] == ladder.merge_pair(list(b"banana"), (97, 110), 256)

# %% [markdown]
# The heap of training is lazy too. A merge *lowers* the counts of pairs that it tears apart, and their entries are
# then too high. Nobody searches for them. When such an entry comes up it goes back with its true count. Three pairs,
# by hand:

# %%
import heapq

true_count = {"er": 5, "re": 4, "br": 6}
heap = [(-count, pair) for pair, count in true_count.items()]
heapq.heapify(heap)
true_count["br"] = 3  # a merge has taken three of them away; the heap does not know
while -heap[0][0] != true_count[heap[0][1]]:
    noted, pair = heapq.heappop(heap)
    print(f"{pair}: noted {-noted}, true {true_count[pair]}, goes back")
    heapq.heappush(heap, (-true_count[pair], pair))
print("the most frequent pair is", heap[0][1])

# %% [markdown]
# Same merges as the definition, on the toy and on `python-docs`. Figure 6 has the times, the definition's only as far
# as patience goes (eight merges). The toy first.

# %%
toy_counts = count_pieces([STORY], GPT4_PATTERN)
assert learn_merges(toy_counts, 32) == ladder.learn_on_pieces(toy_counts, 32) == merges

# %% [markdown]
# Then all of the documents. The learner of `training.py` can be asked for one step at a time.

# %% tags=["volatile"]
from working_with_text_data.bytepair_enc.training import MergeLearner

doc_counts = count_pieces(texts, GPT4_PATTERN)
started = time.perf_counter()
assert ladder.learn_on_pieces(doc_counts, 8) == doc_merges[:8]
by_definition = (time.perf_counter() - started) / 8
started = time.perf_counter()
learner = MergeLearner.from_pieces(doc_counts)
took = [time.perf_counter() - started]
while learner.step() and len(took) < 2000:
    took.append(time.perf_counter() - started)
assert learner.merges == doc_merges[: len(learner.merges)]

# %% [markdown]
# What one more merge costs, in either way:

# %% tags=["volatile"]
each_merge = (took[-1] - took[0]) / (len(took) - 1)
print(f"definition {1e3 * by_definition:.0f} ms a merge")
print(f"index and heap {1e3 * each_merge:.3f} ms a merge, and {took[0]:.2f} s once")
print(
    f"2,000 merges: {2000 * by_definition:.0f} s by the definition (8 were measured), {took[-1]:.2f} s with both: "
    f"{2000 * by_definition / took[-1]:.0f} times as fast"
)

# %% [markdown]
# The picture, the definition's line drawn on from its eight merges:

# %% tags=["volatile"]
numbers = np.arange(1, len(took))
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
axes.loglog(numbers, by_definition * numbers, "k--", label="definition")
axes.loglog(numbers, took[1:], "k-", label="index and heap")
axes.set(xlabel="merges learned", ylabel="seconds")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# The flat start of the fast curve is the index being built: it is paid once.
#
# ## 10. Three speeds, and an honest comparison
#
# What is "the speed" of an encoder that remembers? There are three, and only together are they the truth.
#
# - **repeated**: every word was seen before. A second pass over a corpus, or a service after some hours.
# - **steady**: an unseen tenth of the text, after the other nine.
# - **cold**: a new tokenizer on its first text.
#
# tiktoken remembers nothing between texts, so all three are alike to it. It gets the same vocabulary, one thread
# against one thread, by turns.

# %% tags=["volatile"]
assert tokenizer.encode_ordinary(docs) == theirs.encode_ordinary(docs)
border = docs.index(" ", len(docs) * 9 // 10)
first, last = docs[:border], docs[border:]
state = {}


def fresh(text=""):
    """A tokenizer that has seen `text` and no more."""
    state["ours"] = BytePairTokenizer.from_merges(doc_merges)
    state["ours"].encode_ordinary(text)


# %% [markdown]
# What happens before each run is not timed: making the tokenizer, and for "steady" and "repeated" letting it see the
# text.

# %% tags=["volatile"]
tests = {"repeated": (docs, docs), "steady": (first, last), "cold": ("", docs), "cold, 2 kB": ("", docs[:2000])}
ratios = {}
for name, (before, text) in tests.items():
    contestants = {
        "ours": lambda text=text: state["ours"].encode_ordinary(text),
        "tiktoken": lambda text=text: theirs.encode_ordinary(text),
    }
    seconds = median(time_by_turns(contestants, 5, {"ours": lambda before=before: fresh(before)}))
    ratios[name] = seconds["tiktoken"] / seconds["ours"]
    megabytes = len(text.encode()) / 1e6
    speeds[f"ours, {name}"] = megabytes / seconds["ours"]
    speeds["tiktoken"] = speeds.get("tiktoken", megabytes / seconds["tiktoken"])
    verdict = "as fast as tiktoken" if ratios[name] >= 1 else "as fast as tiktoken: SLOWER"
    print(
        f"{name:10} {megabytes / seconds['ours']:6.2f} MB/s, tiktoken {megabytes / seconds['tiktoken']:6.2f} MB/s: "
        f"{ratios[name]:.2f} times {verdict}"
    )

# %% [markdown]
# Figure 7: the whole ladder, each rung on its own text (the slow ones on less), so read it as orders of size.

# %% tags=["volatile"]
figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
bars = axes.barh(list(speeds), speeds.values(), color=["0.75" if name == "tiktoken" else "0.4" for name in speeds])
axes.bar_label(bars, [f" {speed:.2g}" for speed in speeds.values()], fontsize=8)
axes.set(xlabel="megabytes per second, one thread", xscale="log", xlim=(1e-4, 300))
axes.invert_yaxis()
plt.show()

# %% [markdown]
# Read your own figures above. Ours, from the machine that made this page, say this plainly: **where every word was seen
# before, Python that remembers is about as fast as compiled Rust that computes. Everywhere else it is slower here**: on
# words that are new (steady, cold) and on a short first text several times, on the long run below ten times and more,
# and in decoding a little. What was gained on this page was gained over our own first version.
#
# And the worst case: one long run of letters, which nothing remembered helps with. tiktoken has a heap for it as well.

# %% tags=["volatile"]
long_text = letters.decode()
assert tokenizer.encode_ordinary(long_text) == theirs.encode_ordinary(long_text)
seconds = median(
    time_by_turns(
        {
            "ours": lambda: state["ours"].encode_ordinary(long_text),
            "tiktoken": lambda: theirs.encode_ordinary(long_text),
        },
        3,
        {"ours": fresh},
    )
)
print(
    f"{len(long_text):,} letters: ours {seconds['ours'] * 1e3:.0f} ms, tiktoken {seconds['tiktoken'] * 1e3:.0f} ms, "
    f"{seconds['tiktoken'] / seconds['ours']:.2f} times as fast"
)

# %% [markdown]
# ## 11. Exercises
#
# Each check says what probably went wrong. Until you have an answer it prints "not solved yet".
#
# **Exercise 1** (easy, 5 minutes). A piece of `n` bytes ends as one token. How many pairs does the plain rule look at,
# all rounds together? (When one part is left there is no pair to look at.)

# %%
from working_with_text_data.exercises.ex04 import (
    attempt,
    check_count_looks,
    check_cut_words,
    check_drop_one_each,
    check_encode_remembering,
    check_unpack_ids,
)


def count_looks(n): ...


attempt(check_count_looks, count_looks)

# %% [markdown]
# <details><summary>Solution: `count_looks`</summary>
#
# ```python
# def count_looks(n):
#     return n * (n - 1) // 2
# ```
# </details>
#
# **Exercise 2** (easy, 10 minutes). `encode_remembering(pieces, encode)` gives the ids of all pieces side by side, and
# calls `encode` once for each different piece.


# %%
def encode_remembering(pieces, encode): ...


attempt(check_encode_remembering, encode_remembering)

# %% [markdown]
# <details><summary>Solution: `encode_remembering`</summary>
#
# ```python
# def encode_remembering(pieces, encode):
#     known, ids = {}, []
#     for piece in pieces:
#         if piece not in known:
#             known[piece] = encode(piece)
#         ids += known[piece]
#     return ids
# ```
# </details>
#
# **Exercise 3** (easy, 5 minutes). `unpack_ids(packed)` turns bytes, four an id as the machine writes them, into a
# list of Python's numbers.


# %%
def unpack_ids(packed): ...


attempt(check_unpack_ids, unpack_ids)

# %% [markdown]
# <details><summary>Solution: `unpack_ids`</summary>
#
# ```python
# import numpy as np
#
#
# def unpack_ids(packed):
#     return np.frombuffer(packed, np.uint32).tolist()
# ```
# </details>
#
# **Exercise 4** (medium, 15 minutes). `drop_one_each(matrix, column)` gives each row without the number in its own
# column: `(rows, n)` to `(rows, n - 1)`, and the given matrix stays as it is. (`np.delete` drops the same columns
# everywhere.)


# %%
def drop_one_each(matrix, column): ...


attempt(check_drop_one_each, drop_one_each)

# %% [markdown]
# <details><summary>Solution: `drop_one_each`</summary>
#
# ```python
# import numpy as np
#
#
# def drop_one_each(matrix, column):
#     keep = np.ones(matrix.shape, bool)
#     keep[np.arange(len(matrix)), column] = False
#     return matrix[keep].reshape(len(matrix), matrix.shape[1] - 1)
# ```
# </details>
#
# **Exercise 5** (hard, 20 minutes). Write GPT-2's cut: `cut_words(text)` cuts in front of white space that follows
# something else, and nowhere in a run of white space. White space at the end of the text stays with the last word. The
# check asks about all small texts.


# %%
def cut_words(text): ...


attempt(check_cut_words, cut_words)

# %% [markdown]
# <details><summary>Solution: `cut_words`</summary>
#
# ```python
# import re
#
#
# def cut_words(text):
#     body = text.rstrip()
#     words = re.findall(r"\s*\S+", body)
#     return [*words[:-1], (words[-1] if words else "") + text[len(body) :]]
# ```
# </details>
#
# ## 12. In the project's source
#
# Everything of this page in one class: `FastEncoder` in `fast_encoding.py`. Its heart looks words up, and what is
# missing is learned together:

# %%
import inspect

from working_with_text_data.bytepair_enc.fast_encoding import FastEncoder

print(inspect.getsource(FastEncoder._learn_pieces))

# %% [markdown]
# You have met every line: a piece that is a token already, few new pieces one by one, many all at once, long ones by
# the heap. And the definition that all of it is held to:

# %%
print(inspect.getsource(merge_piece))
for text in [STORY, CODE, *SMALL[::37]]:
    by_definition = [i for p in split_into_pieces(pattern, text) for i in merge_piece(p.encode(), toy.ranks)]
    assert toy.encode(text) == by_definition == toy.to_tiktoken().encode(text)

# %% [markdown]
# Read on in this order: `ladder.py` (the definitions), `merging.py`, `word_cuts.py`, `fast_encoding.py`, and for
# training `counting.py` and `training.py`. `benchmark.py` measures what section 10 did, with the published
# vocabularies and larger corpora, against Hugging Face's `tokenizers` too.
#
# ## 13. What to keep
#
# - Find out where the time goes before you make anything fast, and after each step again: it goes elsewhere.
# - The largest gain came from not asking about merges that cannot apply. The next ones came from repetition.
# - A quicker cut is right only where the pattern would cut anyway. The proof is an argument, and all small texts test
#   it.
# - Arrays pay when many things take the same step. With few they lose.
# - A heap turns $n^2$ into $n \log n$; stale entries are skipped, not searched for.
# - Say which speed you mean: repeated, steady or cold.
#
# **Pitfalls**
#
# - Timing a second run of something that remembers, and calling it *the* speed.
# - Comparing a time of today with one of yesterday: run both by turns.
# - A cache that is never emptied. `FastEncoder` forgets everything when it holds a million words.
# - Testing a cut on prose. Code, tables and line ends are where cuts go wrong.
#
# **On other machines.** Nothing here uses a GPU: CUDA and Apple's MPS make no difference. Packed ids are in the
# machine's own order of bytes, and never leave it as such. On Windows the ids are the same, and for `num_processes`
# above 1 a script needs `if __name__ == "__main__":`, there as everywhere.
#
# **The next question.** A whole corpus is now ids in seconds. A model reads a few hundred of them at a time, and a
# corpus may be larger than memory. *How does a row of ids become batches?* Notebook 05 answers that.
