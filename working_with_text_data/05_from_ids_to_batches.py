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
# # From ids to batches
#
# **How does a row of ids become the batches that a model learns from?**
#
# A tokenizer has turned a text into one long row of ids. A model learns from small rectangles of them, and for every id
# in a rectangle it is asked which one comes next. Between the row and the rectangles lie a handful of decisions: where
# to cut, how far to step, what to put between two documents, what to keep back, how to store it all. Each is a line of
# code. Most of them fail without a word when they are wrong. Here you make each one small enough to see.
#
# | | |
# |---|---|
# | you know | what a token id is (notebook 02), what `<\|endoftext\|>` is (notebook 03), slices of a list |
# | you need | about 70 minutes, exercises apart; any laptop: no GPU, no network, a few hundred megabytes of memory |
# | files | `windows.py` (in memory) and `token_shards.py` (on disk) of this folder |
#
# The letters that come back again and again:
#
# | letter | meaning | in the code |
# |---|---|---|
# | N | ids in the row | `len(row)` |
# | T | ids that the model reads at once | `context_length` |
# | S | ids from the start of one window to the start of the next | `stride` |
# | W | windows | `len(windows)` |
# | B | windows in a batch | `batch_size` |
# | V | ids that exist | `n_vocab` |

# %% [markdown]
# First what we need. All of it is on your machine already.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

# %% [markdown]
# ## 1. Seven ids, by hand
#
# Here is a whole text, as ids. Never mind what they spell. The model reads T = 4 of them at once. After each one it is
# asked for the next, so four ids are four questions:

# %%
ids = [5, 2, 9, 4, 7, 1, 8]
for t in range(4):
    print(f"after {ids[: t + 1]} comes {ids[t + 1]}")

# %% [markdown]
# Nobody had to label anything: the text holds its own answers. So an example is two slices of one row, of which the
# second begins one id later. Each target stands under the input that it follows.

# %%
inputs, targets = ids[0:4], ids[1:5]
print("inputs ", inputs)
print("targets", targets)

# %% [markdown]
# ## 2. The window slides
#
# Four ids of a text of seven are not enough. The window moves on by S ids, the *stride*, and asks again. This is all of
# it in plain Python, the version that everything below is held to:


# %%
def windows_by_hand(ids, T, S):
    return [(ids[i : i + T], ids[i + 1 : i + T + 1]) for i in range(0, len(ids) - T, S)]


# %% [markdown]
# **Predict before you run.** Seven ids, windows of four. How many windows are there with a stride of 4, of 2, of 1?
# (Each window also needs the id behind it.)

# %%
for S in (4, 2, 1):
    found = windows_by_hand(ids, 4, S)
    print(f"stride {S}: {len(found)} windows, starting with", [x[0] for x, _ in found])

# %% [markdown]
# With a stride of 4 there is just one: the second would start at 7 and read `[7, 1, 8]`, one id short. Now count them
# without making them. A window takes T + 1 ids, the last of them only as a target. The first window takes no step, and
# each further one takes S ids of what is left:
#
# $$W = \left\lfloor\frac{N - T - 1}{S}\right\rfloor + 1 \qquad\text{if } N > T$$

# %%
for N in range(2, 60):
    for T in range(1, N):
        for S in range(1, 12):
            assert len(windows_by_hand(list(range(N)), T, S)) == (N - T - 1) // S + 1
print("the formula holds for all N < 60, T < N, S < 12")

# %% [markdown]
# The project's own is `SlidingWindows`. It must give what the slices give, for every stride.

# %%
from working_with_text_data.windows import SlidingWindows, make_loader

for S in range(1, 7):
    module = [(x.tolist(), y.tolist()) for x, y in SlidingWindows(ids, 4, S)]
    assert module == windows_by_hand(ids, 4, S)
print("SlidingWindows = slices by hand, strides 1 to 6")

# %% [markdown]
# A picture says more. Thirteen ids lie from left to right, and each row is one window. A grey square is read, a dot is
# predicted. What is drawn comes from `SlidingWindows` itself: the ids are their own places, 0 to 12.


# %%
def draw_windows(axes, N, T, S):
    for number, (x, y) in enumerate(SlidingWindows(range(N), T, S)):
        axes.barh([number] * T, 0.9, left=x.numpy() - 0.45, height=0.8, color="0.8", edgecolor="0.4")
        axes.plot(y.numpy(), [number] * T, "ko", markersize=4)
    axes.set(
        title=f"stride {S}", xlabel="place in the row (ids)", xlim=(-1, N), xticks=range(0, N, 4), ylim=(8.7, -0.7)
    )


figure, panels = plt.subplots(1, 3, figsize=(9, 3), sharey=True, layout="constrained")
for axes, S in zip(panels, (4, 2, 1), strict=True):
    draw_windows(axes, 13, 4, S)
panels[0].set_ylabel("window (number)")
plt.show()

# %% [markdown]
# Look at the left panel. The dot that hangs over the end of each window lies on the first square of the next: two
# neighbours share one id. The first asks for it, the second reads it. That is why, with S = T, nothing is left out.
#
# ## 3. The stride decides how often each id is asked for
#
# **Predict before you run.** Thirteen ids, T = 4, S = 1. How often is the id at place 6 a target? And the one at place
# 0? And at place 12?


# %%
def target_counts_of(N, T, S):
    targets = torch.cat([y for _, y in SlidingWindows(range(N), T, S)])  # (W * T,)
    return torch.bincount(targets, minlength=N)


for S in (4, 2, 1):
    print(f"stride {S}:", target_counts_of(13, 4, S).tolist())

# %% [markdown]
# Four times in the middle, never at the beginning (nothing stands before it), once at the end. With S = T every id but
# the first is a target once. With a smaller stride each id is asked for T / S times, with other ids before it.
#
# And a stride *above* T? Try 6 with T = 4:

# %%
counts = target_counts_of(21, 4, 6)
print(counts.tolist())
print("never asked for:", (counts[1:] == 0).sum().item(), "of 20")

# %% [markdown]
# A gap after every window, and no error. Those ids are in the text, and nobody ever asks for them. Here are all four
# cases on a longer row.

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
lines = {1: ("-", "0.0"), 4: ("--", "0.0"), 8: ("-", "0.6"), 12: (":", "0.0")}
for S, (dashes, grey) in lines.items():
    axes.step(range(50), target_counts_of(50, 8, S), dashes, color=grey, where="mid", label=f"stride {S}")
axes.set(title="T = 8", xlabel="place in the row (ids)", ylabel="times a target (windows)", ylim=(-0.3, 9.8))
axes.legend(frameon=False, ncols=4, loc="upper center", fontsize=8)
plt.show()

# %% [markdown]
# So the stride has a price. One pass over the row answers W · T questions, about N · T / S. A stride of 1 costs T times
# the arithmetic of a stride of T, for the same text: more examples, and more of the same.

# %%
N, T = 10_000, 100
for S in (100, 50, 10, 1):
    W = len(SlidingWindows(range(N), T, S))
    print(
        f"stride {S:3}: {W:5,} windows, {W * T:7,} questions, {W * T / (N - 1):6.2f} for each id;  T / S = {T / S:.0f}"
    )

# %% [markdown]
# ## 4. Views and copies: a thousand windows in the memory of one text
#
# Overlapping windows repeat the text. Does the memory repeat it too? That depends on how the windows are made.
#
# **Predict before you run.** 10,000 ids of 8 bytes each, T = 100, S = 1, so 9,900 windows of 101 ids. How many bytes do
# they take as copies, one slice each, stacked? How many does `SlidingWindows` take?

# %%
row = torch.arange(N)
copies = torch.stack([row[i : i + T + 1] for i in range(N - T)])  # (W, T + 1)
views = SlidingWindows(row, T, stride=1).windows  # (W, T + 1)
assert torch.equal(copies, views)
print(f"copies {copies.untyped_storage().nbytes():>9,} bytes = W (T + 1) 8 = {len(copies) * (T + 1) * 8:,}")
print(f"views  {views.untyped_storage().nbytes():>9,} bytes = N 8         = {N * 8:,}")

# %% [markdown]
# The same numbers, a hundred times less memory. `unfold` copies nothing. It notes down how to walk: to the next window
# in steps of S ids, to the next id in steps of 1. A tensor says so itself, by its strides:

# %%
print("copies", tuple(copies.shape), "strides", copies.stride())
print("views ", tuple(views.shape), "strides", views.stride())

# %% [markdown]
# How much is saved is a matter of the stride. Both lines are measured, tensor by tensor. Each axis is logarithmic.

# %%
strides = [1, 2, 5, 10, 20, 50, 100]
view_bytes = [row.unfold(0, T + 1, S).untyped_storage().nbytes() for S in strides]
copy_bytes = [row.unfold(0, T + 1, S).contiguous().untyped_storage().nbytes() for S in strides]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.loglog(strides, copy_bytes, "k-o", markersize=4, label="copies: W (T + 1) 8 bytes")
axes.loglog(strides, view_bytes, "--s", color="0.4", markersize=4, label="views: N 8 bytes")
axes.set(title="10,000 ids, T = 100", xlabel="stride (ids)", ylabel="memory (bytes)")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# A view has a price, too: it is the same memory under many names. Write into one window and its neighbours change.

# %%
toy = SlidingWindows(torch.tensor(ids), 4, stride=1)
toy[0][0][3] = -1  # the last input of window 0
print("window 1 now reads", toy[1][0].tolist(), "and window 2", toy[2][0].tolist())

# %% [markdown]
# Nothing in this project writes into a window. What a `DataLoader` gives out is safe in any case: it stacks B windows
# into a new tensor, and that is a copy. Its memory holds B · T ids and not one more.

# %%
x, y = next(iter(make_loader(row, T, batch_size=8, stride=1)))
print(tuple(x.shape), x.untyped_storage().nbytes(), "bytes = B T 8 =", 8 * T * 8)

# %% [markdown]
# ## 5. Every window once an epoch, in another order each time
#
# Neighbouring windows are about the same thing. Taken in their order, a batch would be one page of one book. So the
# windows are shuffled. `make_loader` gives them to PyTorch's `DataLoader` with a generator of its own, which starts
# from a seed.
#
# **Predict before you run.** Sixteen windows in batches of 4. Is the order of the second epoch that of the first? Does
# a second loader with the same seed repeat the first one's orders?


# %%
def starts(loader):
    return torch.cat([x[:, 0] for x, _ in loader]).tolist()  # where each window begins: the ids are their places


loader, again = (make_loader(range(65), 4, batch_size=4, seed=7) for _ in range(2))
epochs = [starts(loader) for _ in range(3)]
print("each window once, every time: ", all(sorted(order) == list(range(0, 64, 4)) for order in epochs))
print("epoch 1 in the order of epoch 0:", epochs[1] == epochs[0])
print("the same seed, the same orders: ", [starts(again) for _ in range(3)] == epochs)

# %% [markdown]
# Three promises, all kept: nothing is left out, nothing repeats, and whoever has the seed has the run. Here are two of
# the epochs. Each row and each column has one mark of each kind.

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(epochs[0], "ko", markersize=5, label="epoch 0")
axes.plot(epochs[1], "s", color="0.4", markersize=7, fillstyle="none", label="epoch 1")
axes.vlines([3.5, 7.5, 11.5], -3, 63, color="0.8", linestyle=":")
axes.set(xlabel="turn in the epoch (windows; dots part the batches)", ylabel="where it begins (ids)", xticks=range(16))
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# What does PyTorch's own `DataLoader` say, given the windows that we sliced by hand? Without shuffling, the same
# batches:

# %%
from torch.utils.data import DataLoader

by_hand = windows_by_hand(torch.arange(65), 4, 4)
for ours, theirs in zip(make_loader(range(65), 4, 4, shuffle=False), DataLoader(by_hand, 4), strict=True):
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])  # (B, T) each
print("make_loader = DataLoader over slices by hand")

# %% [markdown]
# Sixteen windows in batches of 5 leave one over. Shuffled, the loader drops it: a batch of one window would weigh as
# much as a batch of five, and it is another window each time. For measuring, without shuffling, it is kept.

# %%
for shuffle in (True, False):
    sizes = [len(x) for x, _ in make_loader(range(65), 4, batch_size=5, shuffle=shuffle)]
    print(f"shuffle={shuffle}: batches of {sizes}")

# %% [markdown]
# ## 6. Where one document ends: a bug that nobody reports
#
# A corpus is not one text. It is many, laid end to end. Here are three, and a tokenizer of their own.

# %%
from working_with_text_data.bytepair_enc import BytePairTokenizer

texts = [
    "Bread needs flour, water, salt and time. Leave the dough in a warm bowl.",
    "The moon pulls the sea. Twice a day the water comes, and twice a day it goes.",
    "A bishop keeps to its colour. Leave it behind your own pawns and it sees nothing.",
]
tokenizer = BytePairTokenizer.train(texts, vocab_size=300)
print(tokenizer.n_vocab, "ids, the last one is", tokenizer.decode([tokenizer.eot_token]))

# %% [markdown]
# An outside witness first, so that whatever goes wrong below is not the tokenizer's fault: `tiktoken`, given our
# vocabulary, makes the same ids.

# %%
outside = tokenizer.to_tiktoken()
assert all(outside.encode_ordinary(text) == tokenizer.encode_ordinary(text) for text in texts)
print("tiktoken agrees on", sum(len(tokenizer.encode_ordinary(text)) for text in texts), "ids")

# %% [markdown]
# Now the row. The obvious way is to encode each document and to append. Read it twice: do you see the bug?

# %%
joined = []
for text in texts:
    joined += tokenizer.encode_ordinary(text)
windows = SlidingWindows(joined, context_length=12)
print(len(joined), "ids,", len(windows), "windows, shapes", windows[0][0].shape, windows[0][1].shape)

# %% [markdown]
# Everything is there, every shape is right, and no check of any kind has complained.
#
# **Predict before you run.** The bread text ends with `bowl.` What will the model be asked to say after that?

# %%
end_of_bread = len(tokenizer.encode_ordinary(texts[0]))
i = (end_of_bread - 1) // 12  # the window that reads the last id of the first text
for a, b in zip(*windows[i], strict=True):
    print(f"after {tokenizer.decode([a])!r:10} comes {tokenizer.decode([b])!r}")

# %% [markdown]
# After `bowl.` comes a `T`, the beginning of `The moon pulls the sea`. The model is punished unless it guesses that.
# Worse, from there on it is asked about the moon with bread in its context, and learns that such things belong
# together. *Seen.*
#
# *Diagnosed.* Give each id the number of its document. Then a question whose two sides have different numbers is one
# that no reader could answer. There is one for every border between two documents, and the row has no sign of where
# they are: `<|endoftext|>` does not occur.

# %%
lengths = [len(tokenizer.encode_ordinary(text)) for text in texts]
document_of = np.repeat(range(3), lengths)  # (N,): the number of each id's document
crossing = [int((x != y).sum()) for x, y in SlidingWindows(document_of, 12)]
print("questions across a border, by window:", crossing)
print("<|endoftext|> in the row:", tokenizer.eot_token in joined)

# %% [markdown]
# *Mended.* `<|endoftext|>` follows every document, the last one too.

# %%
row = []
for text in texts:
    row += [*tokenizer.encode_ordinary(text), tokenizer.eot_token]
x, y = SlidingWindows(row, context_length=12)[i]
for a, b in zip(x, y, strict=True):
    print(f"after {tokenizer.decode([a])!r:15} comes {tokenizer.decode([b])!r}")

# %% [markdown]
# Two questions have become good ones. After `bowl.` the answer is *the text ends here*, which a reader can know. After
# `<|endoftext|>` it is *some text begins*, and the sign is there to be read. Windows still hold two documents. They no
# longer hide it: the row itself says where one ends.
#
# The two rows, side by side. A shade is a document, black is `<|endoftext|>`, and the lines are where windows begin.

# %%
with_ends = np.concatenate([[document] * n + [3] for document, n in enumerate(lengths)])
shades = plt.matplotlib.colors.ListedColormap(["0.65", "0.95", "0.8", "0.0"])
figure, panels = plt.subplots(2, 1, figsize=(8, 2.6), sharex=True, layout="constrained")
for axes, numbers, title in zip(panels, (document_of, with_ends), ("joined", "with <|endoftext|>"), strict=True):
    axes.imshow(numbers[None], cmap=shades, vmin=0, vmax=3, aspect="auto", interpolation="nearest")  # (1, N)
    axes.vlines(np.arange(0, len(numbers), 12) - 0.5, -0.5, 0.5, color="black", linewidth=0.7)
    axes.set_title(title, fontsize=10)
    axes.set_yticks([])
panels[1].set_xlabel("place in the row (ids)")
plt.show()

# %% [markdown]
# What does **not** mend it: to write `<|endoftext|>` between the *texts* and then encode. As ordinary text it is
# thirteen characters like any others. And `encode`, which knows better, refuses: see notebook 03.

# %%
text = "<|endoftext|>".join(texts)
spelled = tokenizer.encode_ordinary(text)
print(len(spelled) - len(joined), "ids more, and the end of a text among them:", tokenizer.eot_token in spelled)
try:
    tokenizer.encode(text)
except ValueError as error:
    print("encode:", str(error).split(":")[0])

# %% [markdown]
# ## 7. From memory to disk
#
# A list of Python integers is fine for three texts. A corpus may have billions of ids, and it is read by runs that
# start again and again. `token_shards.py` tokenises it once and lays the ids on disk, as plain numbers side by side.
#
# We need more text. Here is a machine that tells tales: number n has its own hero, town and friend, the same on every
# computer, and eight sentences that all tales share.

# %%
SENTENCES = (
    "{hero} was born in {town}, a small place by the sea.",
    "Every morning {hero} walked down to the harbour of {town}.",
    "One day a letter came from {friend}.",
    "{friend} had found an old map, and {hero} wanted to see it.",
    "So {hero} left {town} before the sun was up.",
    "The road from {town} was long, and {friend} was waiting.",
    "They looked at the map all night, {hero} and {friend}.",
    "In the end {hero} and {friend} came back to {town}.",
)

# %% [markdown]
# A name is three syllables, drawn from 80. The multiplication scatters the numbers, so that tales that follow each
# other do not sound alike.


# %%
def name(n):
    n = n * 100_003 % 80**3
    syllables = [n // 80**k % 80 for k in range(3)]
    return "".join("bdfghklmnprstvwz"[s // 5] + "aeiou"[s % 5] for s in syllables).capitalize()


def tale(n):
    who = {"hero": name(3 * n), "town": name(3 * n + 1), "friend": name(3 * n + 2)}
    return "".join(sentence.format(**who) + "\n" for sentence in SENTENCES)


print(tale(1))

# %% [markdown]
# Two hundred of them are our corpus. `split` marks every tenth document for validation. Why whole documents? Section 10
# measures that. The tokenizer sees only the tales for training.

# %%
from working_with_text_data.corpora import Document, split

documents = list(split([Document(f"tale {n}", tale(n)) for n in range(1, 201)], validation_every=10))
train_texts = [document.text for side, document in documents if side == "train"]
tokenizer = BytePairTokenizer.train(train_texts, vocab_size=512)
V = tokenizer.n_vocab
print(len(documents), "documents,", len(train_texts), "for training;", V, "ids in the vocabulary")

# %% [markdown]
# Now to a folder. `write_shards` reads one document at a time, so the corpus may be larger than memory. The folder
# appears whole or not at all.

# %%
import os
import tempfile

from working_with_text_data.token_shards import (
    IGNORE,
    Batches,
    TokenShards,
    evaluation_windows,
    token_dtype,
    write_shards,
)

temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
folder = os.path.join(temporary.name, "tokens")
manifest = write_shards(folder, documents, tokenizer, made_by={"corpus": "tales 1 to 200"}, shard_tokens=20_000)
print(*sorted(os.listdir(folder)), sep="\n")

# %% [markdown]
# A shard here holds 20,000 ids at most, so that we get more than one. (The default is a hundred million.) With them lie
# the tokenizer that made them, a list of the documents, and the manifest: what all of it is.
#
# **Predict before you run.** The first training shard has 20,000 ids. How many bytes has the file?

# %%
for shard in manifest["train"]["shards"]:
    size = os.path.getsize(os.path.join(folder, shard["file"]))
    print(f"{shard['file']}: {shard['tokens']:6,} ids, {size:6,} bytes, {size / shard['tokens']:.0f} for each id")

# %% [markdown]
# Two bytes an id: there are 512 ids, and 16 bits tell 65,536 apart. Larger vocabularies take four bytes. In the
# published ones of `bytepair_enc/vocabularies.py` the last id is a special token's, so their sizes are known without
# their files.

# %%
from working_with_text_data.bytepair_enc.vocabularies import VOCABULARIES

for vocabulary in ("gpt2", "cl100k_base", "o200k_base"):
    n_vocab = max(VOCABULARIES[vocabulary].special_tokens.values()) + 1
    dtype = token_dtype(n_vocab)
    print(f"{vocabulary:12} {n_vocab:7,} ids: {dtype}, a thousand million tokens are {dtype.itemsize} GB (int64: 8 GB)")

# %% [markdown]
# What if somebody saves memory in the wrong place? Cast to 16 bits, an id of a large vocabulary does not complain. It
# becomes another id.

# %%
print(np.array([5, 65_541, 100_276]).astype("<u2"))

# %% [markdown]
# Nothing would crash. The model would learn another text. This is why the type is chosen from the vocabulary's size, in
# one place, and written into the manifest.
#
# ### Read without loading
#
# `TokenShards.open` *maps* the files: the array looks as if it were in memory, and the operating system reads the pages
# that are touched. So a corpus may be larger than memory.

# %%
shards = TokenShards.open(folder)
first = shards.arrays["train"][0]
print(type(first).__name__, first.dtype, first.shape, "writable:", first.flags.writeable)
print(repr(tokenizer.decode(first[:12])))

# %% [markdown]
# What is in the files? Exactly what section 6 made by hand: the ids of each document, then the end.

# %%
expected = []
for text in train_texts:
    expected += [*tokenizer.encode_ordinary(text), tokenizer.eot_token]
assert np.concatenate(shards.arrays["train"]).tolist() == expected
print(f"{len(expected):,} ids on disk = the loop by hand")

# %% [markdown]
# ### Ids mean nothing without their tokenizer
#
# Suppose that the tokenizer beside the ids were exchanged for another of the same size: one that was trained on the
# tales read backwards. Here is what the ids then spell.

# %%
foreign = BytePairTokenizer.train([text[::-1] for text in train_texts], vocab_size=512)
print("its own:", repr(tokenizer.decode(first[:12])))
print("foreign:", repr(foreign.decode(first[:12])))

# %% [markdown]
# Gibberish, and no error. So the manifest holds a fingerprint, a hash of all that decides an id, and `open` compares.

# %%
path = os.path.join(temporary.name, "foreign.json")
foreign.save(path)
try:
    TokenShards.open(folder, tokenizer_path=path)
except ValueError as error:
    print(str(error).replace(path, "foreign.json").replace(folder, "tokens"))

# %% [markdown]
# ## 8. Batches that can be asked for by number
#
# A run that was stopped at step 6,000 must go on with batch 6,000, not with batch 0. A `DataLoader` would have to be
# wound forward. `Batches` is asked: `batch(step)` is a function of the seed and the step, and of nothing else.
#
# And every id should be asked for: once an epoch, no more, no less. Section 2's windows leave out the first id, which
# has nothing before it, and what does not fill a window at the end. `Batches` loses none. It bends the row into a
# **ring**: the first id follows the last, which is an `<|endoftext|>`, as after any document. And where T does not
# divide N, the last window around the ring asks for fewer: the targets that are too many are set to -100, which
# PyTorch's cross-entropy passes over.
#
# A toy again, with ids that are their own places, so that every batch says where it was cut.

# %%
toy = Batches([np.arange(27)], context_length=4, batch_size=2, seed=0)
for step in range(4):
    x, y = toy.batch(step)  # int64, (B, T) each
    print(f"step {step}: {x.tolist()} are read, {y.tolist()} are asked for")

# %% [markdown]
# Find the window that goes around the end of the row, and the short one. (They may be the same.)
#
# ### Resume
#
# **Predict before you run.** One run goes from step 0 to step 9. Another is started anew and asked for step 6 first.
# Does it see what the first one saw at step 6, and after?

# %%
whole = [toy.batch(step) for step in range(10)]
resumed = Batches([np.arange(27)], context_length=4, batch_size=2, seed=0)
same = [np.array_equal(resumed.batch(step), whole[step]) for step in (6, 7, 8, 9, 0)]
print(same)

# %% [markdown]
# Any order, any step. `divmod(windows before it, windows an epoch)` says which epoch a window belongs to, and the
# order of that epoch is drawn from `(seed, epoch)`. Nothing has to be saved in a checkpoint but the number of the
# step. Epochs follow each other without a gap: 27 ids are 7 windows, so step 3 had the last of one epoch and the first
# of the next.
#
# ### Other cuts each epoch
#
# With windows side by side, the id at a cut is always read with nothing before it. So each epoch begins at another
# offset, from 0 to T - 1. Four epochs of a row of 42, drawn from the batches themselves:

# %%
N, T = 42, 8
long_toy = Batches([np.arange(N)], T, batch_size=1, seed=8)
figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
for step in range(4 * long_toy.windows):
    _, y = long_toy.batch(step)
    asked = y[y != IGNORE]
    axes.barh(step // long_toy.windows, 1, left=asked - 0.5, height=0.7, color="0.85")
    axes.plot(asked[[0, 0]] - 0.5, step // long_toy.windows + np.array([-0.35, 0.35]), "k-")  # where it was cut
axes.set(xlabel="place of the target (ids)", ylabel="epoch (number)", yticks=range(4), xlim=(-1, N), ylim=(3.6, -0.6))
plt.show()

# %% [markdown]
# Each line is where a window begins. All of each row is grey. **Predict before you run.** How often has each id been
# asked for after 200 epochs?

# %%
times = np.zeros(N, int)
for step in range(200 * long_toy.windows):
    _, y = long_toy.batch(step)
    np.add.at(times, y[y != IGNORE], 1)
print("of 200 epochs, each id was asked for in\n", times)

# %% [markdown]
# Are these windows those of section 2? Bend the row by hand: twice the row, behind each other. Slices of that, begun at
# the epoch's offset, must be the same set.

# %%
for epoch in range(20):
    steps = range(epoch * long_toy.windows, (epoch + 1) * long_toy.windows)
    cut = {tuple(long_toy.batch(step)[0][0]) for step in steps}
    by_hand = [tuple(x) for x, _ in windows_by_hand(2 * list(range(N)), T, T)]
    shifted = [{tuple((i + offset) % N for i in x) for x in by_hand[: long_toy.windows]} for offset in range(T)]
    assert cut in shifted
print("20 epochs: Batches = slices by hand")

# %% [markdown]
# ### What an epoch costs, in numbers
#
# $$W=\left\lceil\frac{N}{T}\right\rceil,\qquad
# \text{steps}=\frac{W}{B},\qquad \text{bytes on disk}=N\cdot\text{itemsize}$$
#
# with all shards in one ring of N ids. By the formula, and as measured on the tales:

# %%
T, B = 128, 16
N = sum(shard["tokens"] for shard in manifest["train"]["shards"])
batches = Batches(shards.arrays["train"], T, B, seed=0)
size = sum(array.nbytes for array in shards.arrays["train"])
print(f"windows  {math.ceil(N / T)}  {batches.windows}")
print(f"steps    {math.ceil(N / T) / B}  {batches.steps_per_epoch}")
print(f"bytes    {N * 2}  {size}")

# %% [markdown]
# ### Naive and fast
#
# How fast do batches come? The naive loader is what one writes first: the ids in a Python list, a slice for each
# window, `torch.tensor` of each. To compare, both must cut at the same places. On a row of places `Batches` tells us
# its own.


# %%
def naive_batch(row, starts):
    x = torch.stack([torch.tensor(row[start : start + T]) for start in starts])  # (B, T)
    y = torch.stack([torch.tensor(row[start + 1 : start + T + 1]) for start in starts])  # (B, T)
    return x, y


ids_list, array = expected + expected[: T + 1], np.array(expected, token_dtype(V))  # the list: bent, as far as needed
fast, places = Batches([array], T, B, seed=0), Batches([np.arange(len(array))], T, B, seed=0)
starts_of = [places.batch(step)[0][:, 0].tolist() for step in range(int(fast.steps_per_epoch))]

# %% [markdown]
# Equality first. Every batch of an epoch, every id that is read or asked for, by slices of a plain list and by the
# module:

# %%
for step, begin in enumerate(starts_of):
    x, y = naive_batch(ids_list, begin)
    fast_x, fast_y = fast.batch(step)
    asked = fast_y != IGNORE
    assert np.array_equal(x, fast_x) and np.array_equal(y.numpy()[asked], fast_y[asked])
print(len(starts_of), "batches of", (B, T), "are equal")

# %% [markdown]
# And now the time, for a batch: the median of five rounds, the two in turn. These numbers are of the machine that ran
# this notebook last. Yours will differ.

# %% tags=["volatile"]
from time import perf_counter


def seconds_a_batch(make):
    begin = perf_counter()
    for step in range(len(starts_of)):
        make(step)
    return (perf_counter() - begin) / len(starts_of)


rounds = [
    (seconds_a_batch(lambda step: naive_batch(ids_list, starts_of[step])), seconds_a_batch(fast.batch))
    for _ in range(5)
]
naive_time, fast_time = np.median(rounds, axis=0)
print(
    f"naive {naive_time * 1e6:,.0f} µs, Batches {fast_time * 1e6:,.0f} µs a batch: {naive_time / fast_time:.0f} times"
)

# %% [markdown]
# `torch.tensor` asks every Python number in a list for its value, 2 · B · T of them in a batch. The array hands over B
# slices, whatever their length.
#
# ## 9. Are the targets right? Ask the loss
#
# A wrong shift by one, and training still runs. So before any training, three numbers that you can work out by hand.
#
# ### Knowing nothing costs ln V
#
# The loss is the cross-entropy: minus the logarithm of the probability that the model gave to the right id, as a mean.
# A model that knows nothing gives 1 / V to each of V ids, whatever the targets are.
#
# **Predict before you run.** V = 512. What is its loss on any batch?

# %%
x, y = (torch.from_numpy(part) for part in batches.batch(0))  # (B, T) each
assert (y != IGNORE).all()  # the short window is in another batch
logits = torch.zeros(B, T, V)  # all equal: the softmax of each row is 1 / V
loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())  # (B * T, V) and (B * T,)
by_hand = -sum(math.log(1 / V) for _ in y.flatten()) / y.numel()
print(f"PyTorch {loss:.4f}, by hand {by_hand:.4f}, ln {V} = {math.log(V):.4f}")

# %% [markdown]
# A fresh model should begin near that number. Far above, its first guesses are wild. Far below, it has seen the
# answers.
#
# ### Bits per byte
#
# A nat a token says little: with another tokenizer, tokens are longer. Bits a byte can be compared. Share the loss of
# all tokens among all bytes, and divide by ln 2:

# %%
n_bytes = len(tokenizer.decode_bytes(y.flatten().tolist()))
bits = loss.item() * y.numel() / n_bytes / math.log(2)
print(f"{y.numel()} tokens are {n_bytes} bytes: {bits:.2f} bits a byte")

# %% [markdown]
# Fewer than the 8 bits that a byte has, from a model that knows nothing? That is the tokenizer's doing. A choice of 512
# is 9 bits, and it buys more than 3 bytes at a time.
#
# ### A model made of counts
#
# Now one that knows a little. The *bigram* model looks at one id and says how often each other followed it. It has V ·
# V numbers, and it learns by counting pairs. A tenth is added to each count, so that nothing is impossible.


# %%
def count_pairs(x, y, V):
    pairs = torch.bincount(x.flatten() * V + y.flatten(), minlength=V * V)  # (V * V,)
    return pairs.reshape(V, V)  # (V, V): row = the id that is read, column = the one that follows


def log_probabilities(counts, extra=0.1):
    smoothed = counts.double() + extra
    return (smoothed / smoothed.sum(1, keepdim=True)).log()  # (V, V), each row sums to 1 before the logarithm


def loss_of(log_p, x, y):
    return -log_p[x, y].mean().item()  # (B, T) -> one number


# %% [markdown]
# To test the test, a text whose answer is known: 16 ids, where i is followed by 2i or by 2i + 1 (modulo 16), as a coin
# decides. Each id is as frequent as any other. Given the last id there are two choices, so the best loss is ln 2.
#
# **Predict before you run.** Suppose that a careless hand takes as target not the next id, but the second after it. Or
# the fourth. Or the input itself. What are the losses?

# %%
coins = np.random.default_rng(0).integers(0, 2, 40_000).tolist()
walk = [0]
for coin in coins:
    walk.append((2 * walk[-1] + coin) % 16)
walk = torch.tensor(walk)
for shift in (1, 2, 4, 0):
    x, y = walk[: len(walk) - shift], walk[shift:]
    print(f"target {shift} further on: {loss_of(log_probabilities(count_pairs(x, y, 16)), x, y):.2f}")

# %% [markdown]
# With the right shift ln 2 = 0.69. With every id more that is skipped, one coin more is unknown: 2 ln 2, and so on,
# until at 4 the input says nothing and the loss is ln 16 = 2.77, as if nothing had been learned. And a shift of 0 gives
# 0.00: *too good to be true* is a wrong shift as well. The question had its answer in it.

# %% [markdown]
# Now the module. The walk goes through `Batches`, and whoever wrote the targets there is measured by ln 2.


# %%
def whole_windows(batches):
    """All windows of an epoch but the short one: inputs and targets, (W, T) each."""
    epoch = [batches.batch(step) for step in range(int(batches.steps_per_epoch))]
    x, y = (torch.from_numpy(np.concatenate(part)) for part in zip(*epoch, strict=True))
    asked = (y != IGNORE).all(1)
    return x[asked], y[asked]


walk_batches = Batches([walk.numpy()], context_length=32, batch_size=8)
x, y = whole_windows(walk_batches)  # (W, 32) each
print(f"Batches: {loss_of(log_probabilities(count_pairs(x, y, 16)), x, y):.2f}, ln 2 = {math.log(2):.2f}")

# %% [markdown]
# What does this test *not* see? We tried a shift the wrong way, where the model is asked for the id **before** its
# input:

# %%
x, y = walk[1:], walk[:-1]
print(f"target 1 before: {loss_of(log_probabilities(count_pairs(x, y, 16)), x, y):.2f}")

# %% [markdown]
# The same 0.69. Of two neighbours, each says as much about the other. A bigram that learns to read backwards has just
# as low a loss, and would write backwards. So a loss is not enough: look at some ids, as in section 6. Section 2's
# comparison with plain slices saw the direction, and so do the tests of `windows.py` and `token_shards.py`.
#
# ### The same test on real batches
#
# Count pairs on one epoch of training batches. Then measure on the validation tales, in fixed windows side by side.

# %%
train_x, train_y = whole_windows(batches)  # (W, T) each
held = torch.from_numpy(evaluation_windows(shards.arrays["validation"], T))  # (windows, T + 1)
log_p = log_probabilities(count_pairs(train_x, train_y, V))
bigram_loss = loss_of(log_p, held[:, :-1], held[:, 1:])
print(f"knowing nothing {math.log(V):.2f}, bigram on validation {bigram_loss:.2f}")

# %% [markdown]
# It falls below ln V, so the batches carry what they should. PyTorch agrees with our arithmetic: its loss takes the
# rows of `log_p` as logits.

# %%
logits = log_p[held[:, :-1]]  # (windows, T) -> (windows, T, V)
oracle = F.cross_entropy(logits.flatten(0, 1), held[:, 1:].flatten()).item()  # (windows * T, V), (windows * T,)
assert math.isclose(oracle, bigram_loss, rel_tol=1e-9)
print(f"F.cross_entropy {oracle:.6f}, by hand {bigram_loss:.6f}")

# %% [markdown]
# Is *below ln V* enough of a test on real text, then? We tried wrong shifts on the tales. The frequencies alone,
# without any input, are one more line to compare with.

# %%
windows = torch.cat([train_x, train_y[:, -1:]], dim=1)  # (W, T + 1)
frequency = (torch.bincount(windows.flatten(), minlength=V).double() + 0.1).log().log_softmax(0)  # (V,)
unigram_loss = -frequency[held[:, 1:]].mean().item()
by_shift = []
for shift in range(13):
    n = T + 1 - shift
    log_p = log_probabilities(count_pairs(windows[:, :n], windows[:, shift:], V))
    by_shift.append(loss_of(log_p, held[:, :n], held[:, shift:]))
print(f"frequencies alone {unigram_loss:.2f};", "by shift", [round(loss, 1) for loss in by_shift])

# %% [markdown]
# On the left the walk with its known answer, on the right the tales.

# %%
toy_shifts = range(8)
pairs_of = [(walk[: len(walk) - shift], walk[shift:]) for shift in toy_shifts]
toy_losses = [loss_of(log_probabilities(count_pairs(x, y, 16)), x, y) for x, y in pairs_of]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot(toy_shifts, toy_losses, "ko-", markersize=5, label="measured")
left.plot(toy_shifts, [min(shift, 4) * math.log(2) for shift in toy_shifts], "s", color="0.4", ms=9, mfc="none")
left.lines[-1].set_label("min(shift, 4) · ln 2")
left.axhline(math.log(16), linestyle=":", color="black", label="ln 16")
right.plot(by_shift, "ko-", markersize=5, label="measured on validation")
right.axhline(math.log(V), linestyle=":", color="black", label=f"ln {V}")
right.axhline(unigram_loss, linestyle="--", color="0.4", label="frequencies alone")
left.set(title="the walk", xlabel="shift of the targets (ids)", ylabel="loss (nats a token)", ylim=(-0.2, 3.2))
right.set(title="the tales", xlabel="shift of the targets (ids)", ylim=(-0.4, 7), xticks=range(0, 13, 2))
left.legend(frameon=False, fontsize=8, loc="lower right")
right.legend(frameon=False, fontsize=8, loc="lower right")
plt.show()

# %% [markdown]
# The walk is a sharp test: with a shift of 4 nothing is left to learn. The tales are a blunt one. Real ids are not
# equally frequent, and tales repeat each other, so *every* shift lies below ln V, and even below the frequencies alone.
# What marks the right one is its place: the lowest, but for 0, where the answer stands in the question. So put a text
# whose answer you know through your loader, before any other.
#
# ### One batch, learned by heart
#
# The last of the three numbers. A model with a gradient should be able to learn one batch by heart. Ours is the bigram
# again, as a table of V · V weights: 512 · 512 = 262,144 parameters. At zero, all is equal, so its loss begins at ln V.
# Counting tells where it must end: no bigram can do better on this batch than the batch's own counts.

# %%
x, y = (torch.from_numpy(part) for part in batches.batch(0))  # (B, T) each
table = torch.zeros(V, V, requires_grad=True)
optimizer = torch.optim.Adam([table], lr=0.3)
losses = []
for _ in range(100):
    loss = F.cross_entropy(table[x].flatten(0, 1), y.flatten())  # (B, T, V) -> (B * T, V)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

# %% [markdown]
# Where did it begin, and where did it end?

# %%
best = loss_of(log_probabilities(count_pairs(x, y, V), extra=1e-9), x, y)
print(f"{table.numel():,} parameters; loss {losses[0]:.2f} -> {losses[-1]:.2f}, by counting {best:.2f}")

# %% [markdown]
# It ends where counting says. A loader, a loss and an optimiser that can do this are wired rightly. The whole way down:

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(losses, "k-", label="gradient descent")
axes.axhline(math.log(V), linestyle=":", color="black", label=f"ln {V}")
axes.axhline(best, linestyle="--", color="0.4", label="by counting")
axes.set(xlabel="step (number)", ylabel="loss on one batch (nats a token)", ylim=(-0.3, 7))
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 10. Why the split goes between documents
#
# Every tenth *line* for validation is easier to write than every tenth document, and it looks more even. What is wrong
# with it? Measure: sixty tales, split both ways, a bigram of each, and one judge for both: twelve tales that neither
# has seen a line of. They are what the model will meet tomorrow.


# %%
def lines_of(n):
    return [torch.tensor(tokenizer.encode_ordinary(line)) for line in tale(n).splitlines(keepends=True)]


def pairs(lines):
    return torch.cat([line[:-1] for line in lines]), torch.cat([line[1:] for line in lines])  # (pairs,) each


sixty = [lines_of(n) for n in range(1, 61)]
tomorrow = [line for n in range(1001, 1013) for line in lines_of(n)]

# %% [markdown]
# The two splits. Each keeps back a tenth.

# %%
all_lines = [line for lines in sixty for line in lines]
by_line = (
    [line for i, line in enumerate(all_lines, 1) if i % 10],
    [line for i, line in enumerate(all_lines, 1) if i % 10 == 0],
)
by_document = (
    [line for i, lines in enumerate(sixty, 1) if i % 10 for line in lines],
    [line for i, lines in enumerate(sixty, 1) if i % 10 == 0 for line in lines],
)
print("lines to train on and to validate on:", [len(part) for part in by_line], [len(part) for part in by_document])

# %% [markdown]
# **Predict before you run.** Which of the two reports the lower validation loss? Which of the two models does better on
# tomorrow's tales?


# %%
def three_losses(train, held):
    log_p = log_probabilities(count_pairs(*pairs(train), V))
    return [loss_of(log_p, *pairs(part)) for part in (train, held, tomorrow)]


report = {"by line": three_losses(*by_line), "by document": three_losses(*by_document)}
for way, losses in report.items():
    print(f"split {way:12} training {losses[0]:.2f}, validation {losses[1]:.2f}, tomorrow {losses[2]:.2f}")

# %% [markdown]
# The two models are about equally good: look at *tomorrow*. Only one of the two reports is honest. Split by line, a
# name that is held back in one line was learned from the others, and validation asks for what has been seen. No model
# got better by that. Split by document, validation comes near to what tomorrow brings. (The tenth between them is no
# wonder: six tales and twelve are small samples.)

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for k, (what, grey, hatch) in enumerate(
    (("training", "0.9", ""), ("validation", "0.7", "//"), ("tomorrow", "0.4", ""))
):
    bars = axes.bar(
        np.arange(2) + 0.27 * (k - 1),
        [losses[k] for losses in report.values()],
        0.25,
        color=grey,
        hatch=hatch,
        edgecolor="black",
        label=what,
    )
    axes.bar_label(bars, fmt="%.2f", fontsize=8)
axes.set(xticks=[0, 1], xticklabels=report, xlabel="split", ylabel="loss (nats a token)", ylim=(0, 5))
axes.legend(frameon=False, ncols=3, loc="upper center", fontsize=8)
plt.show()

# %% [markdown]
# ## 11. Exercises
#
# Write the body in place of the dots and run the cell. The check says what is missing.

# %%
from working_with_text_data.exercises.ex05 import (
    attempt,
    check_batch_at,
    check_bits_per_byte,
    check_count_windows,
    check_join_documents,
    check_split_by_document,
    check_target_counts,
)

# %% [markdown]
# **A. How many windows?** (easy, 5 minutes) How many windows, with their targets, fit into n ids? A row that is too
# short has none. No loop is needed.


# %%
def count_windows(n, context_length, stride): ...


attempt(check_count_windows, count_windows)

# %% [markdown]
# **B. How often is each id asked for?** (medium, 10 minutes) An array of n numbers, without making any window.


# %%
def target_counts(n, context_length, stride): ...


attempt(check_target_counts, target_counts)

# %% [markdown]
# **C. One row of many documents** (easy, 5 minutes) `documents` is a list of lists of ids, and `end` is the id of
# `<|endoftext|>`. An empty document is a document, too.


# %%
def join_documents(documents, end): ...


attempt(check_join_documents, join_documents)

# %% [markdown]
# **D. A split without a leak** (medium, 10 minutes) `lines` is a list of (document's name, line), documents one after
# the other. Return (train, validation), two such lists: every `every`-th document is for validation, counted from 1 in
# the order in which they come.


# %%
def split_by_document(lines, every): ...


attempt(check_split_by_document, split_by_document)

# %% [markdown]
# **E. Bits per byte** (easy, 5 minutes) `loss` is a mean in nats a token, over the `n_tokens` tokens of `text`.


# %%
def bits_per_byte(loss, n_tokens, text): ...


attempt(check_bits_per_byte, bits_per_byte)

# %% [markdown]
# **F. Any batch, asked for directly** (hard, 25 minutes) `ids` is an array. Windows lie side by side from 0 on, every
# window comes once an epoch, and what does not fill a batch is left out. Return (inputs, targets) of batch `step`,
# which depend on the arguments alone. Another epoch has another order, and so has another seed.


# %%
def batch_at(ids, context_length, batch_size, seed, step): ...


attempt(check_batch_at, batch_at)

# %% [markdown]
# ### Solutions
#
# <details><summary>Solution: `count_windows`</summary>
#
# ```python
# def count_windows(n, context_length, stride):
#     if n <= context_length:
#         return 0
#     return (n - context_length - 1) // stride + 1
# ```
# </details>
#
# <details><summary>Solution: `target_counts`</summary>
#
# ```python
# import numpy as np
#
#
# def target_counts(n, context_length, stride):
#     counts = np.zeros(n, int)
#     for start in range(0, n - context_length, stride):
#         counts[start + 1 : start + context_length + 1] += 1
#     return counts
# ```
# </details>
#
# <details><summary>Solution: `join_documents`</summary>
#
# ```python
# def join_documents(documents, end):
#     return [i for document in documents for i in [*document, end]]
# ```
# </details>
#
# <details><summary>Solution: `split_by_document`</summary>
#
# ```python
# def split_by_document(lines, every):
#     names = list(dict.fromkeys(name for name, _ in lines))  # each once, in the order in which they come
#     held = set(names[every - 1 :: every])
#     train = [line for line in lines if line[0] not in held]
#     validation = [line for line in lines if line[0] in held]
#     return train, validation
# ```
# </details>
#
# <details><summary>Solution: `bits_per_byte`</summary>
#
# ```python
# import math
#
#
# def bits_per_byte(loss, n_tokens, text):
#     return loss * n_tokens / len(text.encode("utf-8")) / math.log(2)
# ```
# </details>
#
# <details><summary>Solution: `batch_at`</summary>
#
# ```python
# import numpy as np
#
#
# def batch_at(ids, context_length, batch_size, seed, step):
#     windows = (len(ids) - 1) // context_length
#     epoch, position = divmod(step, windows // batch_size)
#     order = np.random.default_rng((seed, epoch)).permutation(windows)
#     rows = order[position * batch_size : (position + 1) * batch_size]
#     places = rows[:, None] * context_length + np.arange(context_length)  # (batch_size, context_length)
#     return ids[places], ids[places + 1]
# ```
# </details>

# %% [markdown]
# ## 12. What you take along
#
# **Recap**
#
# - A window is T + 1 ids: the first T are read, the last T are asked for. Each target follows its input.
# - The stride decides how often each id is asked for: T / S times. Above T, ids are lost. Work grows as T / S, too.
# - Windows can be views: N · 8 bytes for all of them. A batch is a copy.
# - `<|endoftext|>` follows every document. Without it, questions cross borders that nobody can see.
# - Validation is made of whole documents. Otherwise the report is better than the model.
# - On disk: N · 2 or N · 4 bytes, the tokenizer with them, its fingerprint in the manifest.
# - A batch is a function of (seed, step). So a run can go on where it stopped. Each id is asked for once an epoch.
# - Knowing nothing costs ln V. Below it, look twice: a wrong shift can be there, too.
#
# **Pitfalls**, each seen above: a stride above T (gaps); writing into a view (neighbours change); joining without ends;
# spelling `<|endoftext|>` as text; ids cast to a type that is too small (they wrap); another tokenizer's ids
# (gibberish, no error); validation by line (a leak); a shift of 0 (too good) or of -1 (as good as the right one).
#
# ### Reading guide
#
# You know the idea of both modules now. `windows.py` is short: one line of it, `row.unfold(...)`, is sections 2 to 4.
# What it gives out is two slices of a window. That is all of it:

# %%
import inspect

print(inspect.getsource(SlidingWindows.__getitem__))

# %% [markdown]
# In `token_shards.py`, read `write_shards` first (section 7), then `TokenShards.open` (the checks), then `Batches`.
# Here is its heart. `divmod` finds the epoch of each window, and ranks (several processes that learn together, chapter
# 4) get a slice of the batch each.

# %%
print(inspect.getsource(Batches.batch))

# %% [markdown]
# And how a place in the order becomes a window: `ids[:-1]` and `ids[1:]` are the shift, and what is too much around the
# ring is not asked for.

# %%
print(inspect.getsource(Batches._window))

# %% [markdown]
# That the toys above equal these modules was asserted in sections 2 (`SlidingWindows`), 7 (`write_shards`) and 8
# (`Batches`). What was not shown: `TokenShards.verify` compares checksums, and `evaluation_windows` spreads a few
# windows over a long text.
#
# **CUDA, Apple's MPS, Windows.** All of this notebook ran on a CPU, and none of it needs more: batches are made in
# ordinary memory, and a training loop moves them with `.to(device)`. The files are little-endian everywhere. Windows
# does not delete a file while it is mapped (so says Microsoft's page on `DeleteFile`): close the notebook before you
# remove its shards.
#
# **The next question.** Our bigram reads T ids and looks at one of them, the last. In the tales that is not enough:
# whose name follows *So* was said in the lines before. How can each place look back at all the places before it, and
# choose? Chapter 2, `attention_mechanisms`, begins there.
