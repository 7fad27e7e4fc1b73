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
# # The published weights
#
# **Somebody else trained a GPT-2 and published a file of numbers. What does it take for our model to speak with it?**
#
# A published model is a file of bytes, a few names and a handful of numbers that tell the shape. Nothing in it runs. So
# one should be able to open it with two modules of the standard library, and we will. Then come the traps: a matrix
# that lies on its side and fits all the same, three matrices in one, one tensor with two names. Some of them say
# nothing when you fall in. At the end our model and `transformers` give the same logits, from the same file.
#
# | | |
# |---|---|
# | you know | the body of a GPT (notebook 06), and queries, keys and values (chapter 2, notebook 01) |
# | you need | about 90 minutes, exercises apart; any laptop: no GPU, no network, one gigabyte of memory |
# | files | `pretrained.py` and `hub.py` of this folder, and a look at `model_card.py` |
#
# | letter | meaning | in the code |
# |---|---|---|
# | V | ids that exist | `vocab_size` |
# | T | tokens that the model can see at once | `context_length`, theirs `n_positions` |
# | L | blocks | `n_layer` |
# | H | attention heads in a block | `n_head` |
# | d | numbers in a vector of the stream | `d_model`, theirs `n_embd` |
# | N | numbers in the weights, each counted once | `n_parameters` |
# | b | bytes of a number: 4, 2 or 1 | `dtype` |
# | W, M | a matrix as `nn.Linear` keeps it, (out, in); as they keep it, (in, out) | |
#
# *Ours* is this project's `GPT`. *Theirs* is the GPT-2 of Hugging Face's `transformers`, and the files made for it.

# %% [markdown]
# ## 1. By hand: six numbers in a file
#
# The format is called safetensors, and all of it is this (its source: the README of `huggingface/safetensors`):
#
# | bytes | what |
# |---|---|
# | 8 | n, the length of the header: a whole number, lowest byte first |
# | n | the header: JSON. For each tensor its number format, its shape, and where its numbers begin and end |
# | the rest | the numbers, one tensor after the other |
#
# The places count from the end of the header. Let us write one matrix of 2 rows and 3 columns. First the numbers:
# `<6f` means six float32, lowest byte first.

# %%
import json
import struct

numbers = struct.pack("<6f", 1, 2, 3, 4, 5, 6)
print(len(numbers), "bytes:", numbers[:12].hex(" ", 4), "…")

# %% [markdown]
# 1.0 is `00 00 80 3f`: the exponent sits in the last bytes, because the lowest come first. Now the header. It may end
# in spaces; they make the numbers begin at a multiple of 8.
#
# **Predict before you run (1).** The header without spaces has 57 letters. How long is the whole file?

# %%
header = {"m": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
text = json.dumps(header, separators=(",", ":")).encode()
padded = text + b" " * (-len(text) % 8)
toy_file = struct.pack("<Q", len(padded)) + padded + numbers
print(f"{len(text)} letters, {len(padded)} with spaces; 8 + {len(padded)} + {len(numbers)} = {len(toy_file)} bytes")

# %% [markdown]
# The whole file as a picture. Each byte is a small square, sixteen in a row. White: the length. Grey: the
# header. Black: the numbers.

# %%
import matplotlib.pyplot as plt
import numpy as np

kinds = np.full(-(-len(toy_file) // 16) * 16, np.nan)
kinds[: len(toy_file)] = 2
kinds[: 8 + len(padded)] = 1
kinds[:8] = 0
figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
axes.pcolormesh(kinds.reshape(-1, 16), cmap="Greys", edgecolors="0.4", linewidth=0.7)  # (bytes,) -> (rows, 16)
for place, byte in enumerate(toy_file):
    letter = chr(byte) if 8 <= place < 8 + len(padded) else f"{byte:02x}"
    axes.text(place % 16 + 0.5, place // 16 + 0.5, letter, ha="center", va="center", fontsize=7,
              color="white" if kinds[place] == 2 else "black")  # fmt: skip
axes.set(xlabel="place in the row (bytes)", ylabel="row (16 bytes)", title="a whole safetensors file")
axes.invert_yaxis()
plt.show()

# %% [markdown]
# And back. Two readers, because they teach two things. The **naive** one asks `struct` for every single number. It
# knows two number formats, which is all that this notebook needs.


# %%
def header_and_start(data):
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), 8 + length


def read_naively(data):
    header, start = header_and_start(data)
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        letter, size = {"F32": ("f", 4), "F16": ("e", 2)}[entry["dtype"]]
        values = struct.unpack(f"<{(end - begin) // size}{letter}", data[begin:end])
        found[name] = torch.tensor(values).reshape(entry["shape"])  # (numbers,) -> the shape in the header
    return found


# %% [markdown]
# The **fast** one makes no number at all. It lays a tensor over the bytes, which are float32 already. (`bytearray`,
# because a tensor may be written to, and `bytes` may not.)

# %%
import torch

FORMATS = {"F32": torch.float32, "F16": torch.float16}


def read_fast(data):
    header, start = header_and_start(data)
    header.pop("__metadata__", None)
    found, data = {}, bytearray(data)
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype = FORMATS[entry["dtype"]]
        flat = torch.frombuffer(data, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=start + begin)
        found[name] = flat.view(entry["shape"])  # (numbers,) -> the shape in the header
    return found


# %% [markdown]
# Both, and the library `safetensors`, on our 96 bytes:

# %%
import safetensors.torch

print(read_naively(toy_file)["m"])
for other in (read_fast(toy_file), safetensors.torch.load(toy_file)):
    assert torch.equal(other["m"], read_naively(toy_file)["m"])

# %% [markdown]
# The same, and how many times as fast? With a million numbers, by turns:

# %% tags=["volatile"]
from utils.benchmarking import median, time_by_turns

million = safetensors.torch.save({"m": torch.randn(1000, 1000)})
assert torch.equal(read_naively(million)["m"], read_fast(million)["m"])
seconds = median(time_by_turns({"naive": lambda: read_naively(million), "fast": lambda: read_fast(million)}, repeats=3))
print(f"naive {seconds['naive'] * 1e3:.0f} ms, fast {seconds['fast'] * 1e3:.2f} ms")
print(f"the fast reader is {seconds['naive'] / seconds['fast']:.0f} times as fast")

# %% [markdown]
# ## 2. Why a header, and no code
#
# Before safetensors, weights were published as *pickles*: that is what `torch.save` writes. A pickle is a list of
# instructions. One of them is *call this function with these arguments*, and the file says which function. Here is a
# harmless one:

# %%
import pickle


class Surprise:
    def __reduce__(self):
        return print, ("this line was printed by a file that was only opened",)


pickled = pickle.dumps({"weights": Surprise()}, protocol=4)
print(len(pickled), "bytes, and nothing has been printed yet")

# %% [markdown]
# **Predict before you run (2).** We only *read* it. We touch no entry of it. What happens?

# %%
opened = pickle.loads(pickled)
print("and the weights are:", opened)

# %% [markdown]
# It could have been `os.system`. PyTorch's answer is `weights_only=True`: only functions that build tensors are let
# through.

# %%
import io

buffer = io.BytesIO()
torch.save({"weights": Surprise()}, buffer)
buffer.seek(0)
try:
    torch.load(buffer, weights_only=True)
except pickle.UnpicklingError:
    print("refused: the file asks for a function that makes no tensor")

# %% [markdown]
# That is a list of what is allowed, bolted onto a format that allows everything. A safetensors file has nothing to
# refuse: a length, JSON, numbers. So `load_model` opens pickles only if `allow_pickle=True` asks for it, and then with
# `weights_only` too.

# %% [markdown]
# ## 3. Somebody trains a model
#
# There is no network here. So we play both parts. First, *somebody*: they have `transformers`, a text and a minute. The
# tokenizer is ours, from chapter 1.

# %%
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing in this notebook may ask the network
import transformers

from working_with_text_data.bytepair_enc import BytePairTokenizer

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)  # our tensors are tiny, and threads on a busy machine wait for each other

# %% [markdown]
# The text is a small story, cut into rows of 32 ids.

# %%
STORY = (
    "The keeper of the light rows out at dusk. He carries oil, a book and a loaf of bread. The lamp is high, the "
    "stairs are steep, and the sea below never sleeps. He fills the lamp, he trims the wick, he turns the glass. "
    "Ships pass in the dark and do not know his name. In the morning he puts out the light, closes the book and rows "
    "home. The bread is gone, the oil is low, the sea is grey. At dusk the keeper of the light rows out again. "
)
tokenizer = BytePairTokenizer.train([STORY] * 3, 300)
ids = torch.tensor(tokenizer.encode(STORY))
ids = ids[: len(ids) // 32 * 32].view(-1, 32)  # (tokens,) -> (batch, 32)
print(f"{tokenizer.n_vocab} tokens in the vocabulary; (batch, tokens) = {tuple(ids.shape)}")

# %% [markdown]
# Their model: 2 blocks, 3 heads, width 48. `labels=ids` makes it compute the loss of each next token itself.

# %%
import math

torch.manual_seed(0)
shape = {"vocab_size": tokenizer.n_vocab, "n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 3}
shape |= {f"{part}_pdrop": 0.0 for part in ("resid", "embd", "attn")}
shape |= {f"{end}_token_id": tokenizer.eot_token for end in ("bos", "eos")}
theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).eval()
fresh = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
first_loss = theirs(ids, labels=ids).loss.item()
print(f"loss of a fresh model {first_loss:.1f}, ln V = {math.log(tokenizer.n_vocab):.1f}")

# %% [markdown]
# A fresh model guesses evenly, so its loss is near ln V. Now one batch, over and over, until they know it by heart.

# %%
optimizer = torch.optim.AdamW(theirs.parameters(), lr=5e-3)
losses = []
for _ in range(120):
    loss = theirs(ids, labels=ids).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < 0.2
print("learned by heart: the loss is below 0.2")

# %% [markdown]
# Step by step, as it happened just now:

# %%
figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
axes.plot(losses, "k-", label="their loss, one batch")
axes.axhline(math.log(tokenizer.n_vocab), color="0.5", linestyle="--", label="ln V")
axes.set(xlabel="step", ylabel="loss (nats per token)")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# They publish. The file on the hub was made by an old version, and three things in it look odd today. We make ours
# exactly so:
#
# 1. names without `transformer.` in front, since it was saved from the body alone,
# 2. so there is no `lm_head.weight`,
# 3. and beside the weights of each block lies its causal mask, `attn.bias`, a triangle of ones. It is no bias.

# %%
published = {name.removeprefix("transformer."): tensor for name, tensor in theirs.state_dict().items()}
del published["lm_head.weight"]
for layer in range(2):
    published[f"h.{layer}.attn.bias"] = torch.ones(64, 64).tril().view(1, 1, 64, 64)  # (T, T) -> (1, 1, T, T)

# %% [markdown]
# A folder with two files: the shape and the numbers.

# %%
import tempfile
from pathlib import Path

temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
home = Path(temporary.name)
folder = home / "published"
theirs.config.save_pretrained(folder)
safetensors.torch.save_file(published, folder / "model.safetensors", metadata={"format": "pt"})
print(sorted(path.name for path in folder.iterdir()))

# %% [markdown]
# Now the other part. **From here on we have only that folder.** The shape first, and how its names are called here:

# %%
from gpt_model.gpt import GPT, GPTConfig

said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
config = GPTConfig(said["vocab_size"], said["n_positions"], said["n_layer"], said["n_head"], said["n_embd"])
print({name: getattr(config, name) for name in ("vocab_size", "context_length", "n_layer", "n_head", "d_model")})

# %% [markdown]
# And the file, with our reader of section 1. `data[:8]` says how long the header is:

# %%
data = (folder / "model.safetensors").read_bytes()
header, start = header_and_start(data)
print("metadata:", header.pop("__metadata__"))
for name in sorted(header)[:4]:
    print(f"{name:24} {header[name]['dtype']} {header[name]['shape']}")

# %% [markdown]
# How large must it be? A block has 12 d² numbers in matrices, 9 d in their biases, 4 d in two norms:
#
# $$N = V d + T d + L\,(12 d^2 + 13 d) + 2 d \qquad\text{bytes} = 8 + n + 4\,(N + L\,T^2)$$
#
# **Predict before you run (3).** V, T, L and d stand above. Which is larger here, the weights of a block or its mask?


# %%
def count_by_hand(config):
    d = config.d_model
    block = 12 * d**2 + 13 * d
    return (config.vocab_size + config.context_length) * d + config.n_layer * block + 2 * d


N, masks = count_by_hand(config), config.n_layer * config.context_length**2
print(f"a block {12 * 48**2 + 13 * 48:,} numbers, its mask {64**2:,}; N = {N:,}")
assert len(data) == start + 4 * (N + masks)
print("the file has exactly the bytes of the formula")

# %% [markdown]
# The same formula meets the real file in section 11.

# %% [markdown]
# ## 4. Names
#
# What does our model expect, and what is there?

# %%
weights = read_fast(data)
torch.manual_seed(1)
model = GPT(config).eval()
expected = model.state_dict()
print(f"expected {len(expected)} names, found {len(weights)}; in common: {len(expected.keys() & weights.keys())}")

# %% [markdown]
# None in common, and `load_state_dict(strict=False)` would be content with that. It would load nothing and say so only
# in what it returns. A table is better. One rule first:


# %%
def our_name(name):
    return name if name.startswith("transformer.") else f"transformer.{name}"


def is_mask(name):
    return name.endswith((".attn.bias", ".attn.masked_bias"))


# %% [markdown]
# Then each of theirs, with what becomes of it. One block stands for all:

# %%
for name in sorted(name for name in weights if not name.startswith("h.1")):
    found, there = expected.get(our_name(name)), weights[name]
    verdict = "left out: a mask" if found is None else "same shape" if found.shape == there.shape else "other shape"
    print(f"{name:23} {tuple(there.shape)!s:17} → {'' if found is None else str(tuple(found.shape)):10} {verdict}")

# %% [markdown]
# And what is missing or extra once the names are put right:

# %%
found = {our_name(name) for name in weights if not is_mask(name)}
print("missing:", sorted(expected.keys() - found))
print("extra:  ", sorted(found - expected.keys()))

# %% [markdown]
# The output matrix is missing. Section 7 says why it is not needed.

# %% [markdown]
# ## 5. The matrix that lies on its side
#
# Three of a block's four matrices have another shape. Load them as they are:
#
# **Predict before you run (4).** Which of the four, `attn.c_attn`, `attn.c_proj`, `mlp.c_fc`, `mlp.c_proj`, does
# PyTorch *not* complain about?

# %%
import re

as_they_are = {our_name(name): w for name, w in weights.items() if not is_mask(name)}
try:
    GPT(config).load_state_dict(as_they_are, strict=False)
except RuntimeError as error:
    print("size mismatch:", sorted({name.split(".", 3)[3] for name in re.findall(r"mismatch for (\S+):", str(error))}))

# %% [markdown]
# Why do they lie on their side? By hand, two numbers in and two out. They compute x M, with M of shape (in, out):
# `transformers` calls that layer `Conv1D`, from OpenAI's own code. `nn.Linear` computes x Wᵀ, with W of shape
# (out, in). The same layer needs W = Mᵀ.

# %%
M = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # (in, out)
x = torch.tensor([[1.0, 1.0]])  # (1, in)
print("theirs       ", (x @ M).tolist())  # (1, in) @ (in, out) = (1, out): [1 + 3, 2 + 4]
print("W = M        ", torch.nn.functional.linear(x, M).tolist())  # x Mᵀ: [1 + 2, 3 + 4]
print("W = M turned ", torch.nn.functional.linear(x, M.T).tolist())

# %% [markdown]
# `W = M` gives numbers, of the right shape, and wrong. A square matrix fits either way.
#
# ### The bug
#
# Somebody in a hurry turns *what complains*. It reads well, it loads without a word, with every shape checked:


# %%
def turn_what_complains(weights):
    placed = {our_name(name): w for name, w in weights.items() if not is_mask(name)}
    return {name: w if w.shape == expected[name].shape else w.T for name, w in placed.items()}  # (in, out) -> (out, in)


def loaded(placed):
    model = GPT(config).eval()
    result = model.load_state_dict(placed, strict=False)
    assert result.missing_keys == ["lm_head.weight"] and not result.unexpected_keys
    return model


wrong = loaded(turn_what_complains(weights))
print("loaded, and no complaint")

# %% [markdown]
# Does it speak? The loss on the story that somebody's model knows by heart, by hand:

# %%
import torch.nn.functional as F


@torch.no_grad()
def loss_of(model):
    logits = model(ids[:, :-1])  # (batch, tokens - 1, V)
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()  # (batch · (tokens - 1), V)


# %% [markdown]
# Beside a model that has learned nothing, and the one that the file came from:

# %% tags=["volatile"]
their_loss = theirs(ids, labels=ids).loss.item()
print(f"fresh model {loss_of(model):.3f}   ours, loaded {loss_of(wrong):.3f}   theirs {their_loss:.3f}")

# %% [markdown]
# Not a little wrong. But nothing failed, and with a model that you do not know you would call it a bad model.
#
# ### The diagnosis
#
# Two models that should agree, and modules of the same names: so ask each module what came out of it, and find the
# first that differs. A *hook* is a function that PyTorch calls with a module's output.


# %%
@torch.no_grad()
def outputs_of(model, names):
    seen, modules = {}, dict(model.named_modules())
    hooks = [modules[n].register_forward_hook(lambda _, __, y, n=n: seen.update({n: y})) for n in names]
    model(ids)
    for hook in hooks:
        hook.remove()
    return seen


# %% [markdown]
# `theirs` has been trained by somebody; here it is only asked. In the order in which data flows:

# %%
parts = ["wte", "wpe", "h.0.ln_1", "h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.ln_2", "h.0.mlp.c_fc", "h.0.mlp.c_proj"]
names = [f"transformer.{part}" for part in parts]
right_outputs, wrong_outputs = outputs_of(theirs, names), outputs_of(wrong, names)
for name in names:
    same = torch.allclose(right_outputs[name], wrong_outputs[name], atol=1e-3)
    print(f"{name:30} {'agrees' if same else 'DIFFERS'}")

# %% [markdown]
# All agree up to `attn.c_attn`, and `attn.c_proj` is the first that does not. It got the same vectors, so it is its own
# matrix. The square one.
#
# ### The cure
#
# Turn by **name**, not by shape.

# %%
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def turn_by_name(weights):
    placed = {our_name(name): w for name, w in weights.items() if not is_mask(name)}
    return {name: w.T if name.endswith(CONV1D) else w for name, w in placed.items()}  # (in, out) -> (out, in)


right = loaded(turn_by_name(weights))

# %% [markdown]
# The loss again, of both, and of the model that the file came from:

# %% tags=["volatile"]
print(f"turned by shape {loss_of(wrong):.3f}   turned by name {loss_of(right):.3f}   theirs {their_loss:.3f}")

# %% [markdown]
# Every logit of the story, ours against theirs. On the diagonal the two agree.

# %%
with torch.no_grad():
    reference = theirs(ids).logits  # (batch, tokens, V)
    answers = {"turned by shape": wrong(ids), "turned by name": right(ids)}  # each (batch, tokens, V)
figure, pair = plt.subplots(1, 2, figsize=(6.4, 3), layout="constrained", sharey=True)
for axes, (name, logits) in zip(pair, answers.items()):
    axes.plot(reference.flatten()[::40], logits.flatten()[::40], "k.", markersize=2)  # (batch · tokens · V,)
    axes.set(xlabel="theirs (logit)", title=name)
pair[0].set_ylabel("ours (logit)")
plt.show()

# %% [markdown]
# ## 6. What did not find the bug
#
# Could one *see* from the numbers that a matrix lies on its side? We tried three looks at `attn.c_proj`, on somebody's
# trained weights: the histogram, the norm, the singular values. Here are the kinds of matrices of this live model, each
# kind from all blocks. (They say something about 120 steps on one story, and nothing about GPT-2. Why the embedding has
# two humps we did not look into.)

# %%
kinds_of = {"wte": "-", "attn.c_attn": "--", "attn.c_proj": ":", "mlp.c_fc": "-."}
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for kind, look in kinds_of.items():
    values = torch.cat([w.flatten() for name, w in weights.items() if name.endswith(f"{kind}.weight")])
    heights, edges = np.histogram(values.numpy(), bins=60, range=(-0.4, 0.4), density=True)
    axes.plot((edges[1:] + edges[:-1]) / 2, heights, color="black", linestyle=look, label=kind)
axes.set(xlabel="weight", ylabel="density", title="the small model of section 3")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# **Predict before you run (5).** In which of the three looks does a square matrix differ from its transpose?

# %%
M = weights["h.0.attn.c_proj.weight"]  # (48, 48)
values, turned = torch.linalg.svdvals(M), torch.linalg.svdvals(M.T)  # each (48,)
print("same histogram:      ", torch.equal(M.flatten().sort().values, M.T.flatten().sort().values))
print("same norm:           ", torch.allclose(M.norm(), M.T.norm()))
print("same singular values:", torch.allclose(values, turned, atol=1e-4))

# %% [markdown]
# Drawn: the rings lie on the line. What training changed, one does see.

# %%
figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
axes.plot(values, "k-", label="as in the file")
axes.plot(turned, "o", color="0.55", markersize=4, label="turned")
axes.plot(torch.linalg.svdvals(fresh["transformer.h.0.attn.c_proj.weight"]), "k:", label="before training")
axes.set(xlabel="number of the singular value", ylabel="size", title="h.0.attn.c_proj")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# In none. A matrix and its transpose hold the same numbers. And a test on a *fresh* model? It takes the numbers of
# before the training, and makes the same mistake:

# %% tags=["volatile"]
untrained = {name: w for name, w in fresh.items() if name != "lm_head.weight"}
straight, fallen = loaded(turn_by_name(untrained)), loaded(turn_what_complains(untrained))
print(f"turned by name {loss_of(straight):.4f}, turned by shape {loss_of(fallen):.4f}, ln V {math.log(300):.4f}")

# %% [markdown]
# Both are near ln V, and which one is nearer is chance. The **loss** of a random model shows nothing. And its logits?

# %%
with torch.no_grad():
    distance = (straight(ids) - fallen(ids)).abs().max().item()  # (batch, tokens, V) -> ()
assert distance > 0.01
print("the logits of the two differ by more than 0.01, a hundred times what section 9 lets pass")

# %% [markdown]
# So: compare logits with an oracle, not losses, and not looks.

# %% [markdown]
# ## 7. One tensor, two names
#
# The output matrix compares the last vector with every token's embedding. In GPT-2 it *is* the embedding. The file
# keeps it once, and the model must too. How did our loaded model get its `lm_head.weight`? It was missing.

# %%
head, table = right.lm_head.weight, right.transformer.wte.weight
print("one tensor:", head is table, "- one place in memory:", head.data_ptr() == table.data_ptr())
print(f"names {len(expected)}, tensors {len(list(right.parameters()))}")

# %% [markdown]
# `GPT` ties the two when it is made, so filling one fills the other. An untied copy would cost V d numbers:
#
# **Predict before you run (6).** For our tiny model and for GPT-2's smallest (V = 50,257, d = 768): which share would
# the second copy add?

# %%
from gpt_model.gpt import GPT2_124M

for name, shape_of in (("ours", config), ("gpt2", GPT2_124M)):
    copy, once = shape_of.vocab_size * shape_of.d_model, count_by_hand(shape_of)
    print(f"{name}: a copy of {copy:,} numbers on top of {once:,}, {copy / once:.0%}")

# %% [markdown]
# A pitfall: `load_state_dict(..., assign=True)` does not fill tensors, it puts others in their place. Put one in the
# place of `wte.weight`, and `lm_head` still has the old one.

# %%
untied = GPT(config).eval()
untied.load_state_dict(turn_by_name(weights), strict=False, assign=True)
print("still one tensor:", untied.lm_head.weight is untied.transformer.wte.weight)
untied.lm_head.weight = untied.transformer.wte.weight  # the cure
with torch.no_grad():
    assert torch.equal(untied(ids), right(ids))

# %% [markdown]
# ## 8. Three matrices in one
#
# `attn.c_attn` is (d, 3 d) in the file: queries, keys and values in one product. *In which order?* By hand, one token,
# d = 4 and 2 heads, so 12 numbers. They are named after what they are:

# %%
row = ["q0", "q0", "q1", "q1", "k0", "k0", "k1", "k1", "v0", "v0", "v1", "v1"]  # part, then head
grid = np.array(row)
print("GPT-2:    ", grid.reshape(3, 2, 2)[0].tolist())  # (12,) -> (part, head, head_dim), part 0: queries
print("by heads: ", grid.reshape(2, 3, 2)[:, 0].tolist())  # (12,) -> (head, part, head_dim), part 0 of each head

# %% [markdown]
# Both give a (2, 2) of *queries*. The second has `k1` in it, without a complaint. That order is not absurd: GPT-NeoX
# keeps its matrix head by head (`modeling_gpt_neox.py` in `transformers`). Somebody who knows that model will try it:


# %%
def as_if_by_heads(w, n_head):
    d = w.shape[-1] // 3
    by_head = w.view(*w.shape[:-1], n_head, 3, d // n_head)  # (…, head, part, head_dim)
    return by_head.transpose(-3, -2).reshape(w.shape)  # (…, part, head, head_dim) -> (…, 3 d)


interleaved = {
    name: as_if_by_heads(w, 3) if ".attn.c_attn." in name else w for name, w in weights.items()
}  # weight (d, 3 d) and bias (3 d,)
mixed = loaded(turn_by_name(interleaved))

# %% [markdown]
# Loaded, and no complaint. The loss:

# %% tags=["volatile"]
print(f"by parts {loss_of(right):.3f}   by heads {loss_of(mixed):.3f}   theirs {their_loss:.3f}")

# %% [markdown]
# A second silent mistake: every name, shape and byte is right. The hooks of section 5 would point at `attn.c_attn`.
# That the module splits by parts, seen from outside:

# %%
attention = right.transformer.blocks[0].attn
x = torch.randn(1, 5, 48)
with torch.no_grad():
    parts = attention.c_attn(x).chunk(3, dim=-1)  # (1, 5, 3 d) -> three of (1, 5, d)
    by_hand = [part.view(1, 5, 3, 16).transpose(1, 2) for part in parts]  # each (1, heads, 5, head_dim)
    for ours, module in zip(by_hand, attention.project(x)):  # each (1, heads, 5, head_dim)
        assert torch.equal(ours, module)
print("chunk(3), then heads: equal to MultiHeadAttention.project")

# %% [markdown]
# ## 9. The oracle, and the way back
#
# Now `transformers` opens the same folder, from the disk. All logits, and the loss.

# %%
oracle = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
with torch.no_grad():
    difference = (right(ids) - oracle(ids).logits).abs().max().item()
assert difference < 1e-4
print(f"{reference.numel():,} logits, none further than 1e-4 from the oracle's")

# %% [markdown]
# And what it says. Greedy: the most probable id, appended, again and again. Ours by hand, theirs by `generate`:

# %%


@torch.no_grad()
def greedy(model, text, n):
    for _ in range(n):
        text = torch.cat([text, model(text)[:, -1].argmax(-1, keepdim=True)], dim=1)  # (1, tokens + 1)
    return text


prompt = ids[:1, :6]  # (1, 6)
with torch.no_grad():
    said = oracle.generate(prompt, max_new_tokens=25, do_sample=False, eos_token_id=None, pad_token_id=0)
assert torch.equal(greedy(right, prompt, 25), said)
print("25 greedy ids, all the same")

# %% [markdown]
# As text, with the two silent mistakes below it. How far their words are from sense is chance; that they are other
# words is not.

# %% tags=["volatile"]
for name, speaker in {"right": right, "turned by shape": wrong, "split by heads": mixed}.items():
    print(f"{name:16}", repr(tokenizer.decode(greedy(speaker, prompt, 25)[0].tolist())))

# %% [markdown]
# The project's loader is `from_huggingface` and its inverse is `to_huggingface`. First: does ours agree with it? Then
# the way back, ours → theirs → ours, **bit by bit**. Turning a matrix twice changes nothing, so nothing may change.

# %%
from gpt_model.pretrained import from_huggingface, load_model, to_huggingface

module, again = load_model(folder), GPT(config)
from_huggingface(again, to_huggingface(module))
for name, w in right.state_dict().items():
    assert torch.equal(w, module.state_dict()[name]), name
    assert torch.equal(w, again.state_dict()[name]), name
back = to_huggingface(right)
assert all(torch.equal(back[our_name(n)], w) for n, w in weights.items() if not is_mask(n))
print(f"{len(back)} tensors: ours by hand = load_model's; there and back, bit by bit; and equal to the file")

# %% [markdown]
# What does it say of a wrong file? One line, with the names:

# %%
try:
    from_huggingface(GPT(config), {name: w for name, w in weights.items() if "ln_2" not in name})
except ValueError as error:
    print(error)

# %% [markdown]
# ## 10. One copy in memory
#
# A model that fits into memory may still not be *loadable*, if loading holds several copies. Count them in what we did:
#
# 1. `GPT(config)` fills every tensor with random numbers, which nobody needs,
# 2. `read_bytes()` holds the file, and `read_fast` copies it into a `bytearray`,
# 3. a dictionary of turned matrices in the right order of rows is another copy.
#
# The naive loader below is the plain form of it. It leaves out one of those copies and still has three.


# %%
def load_naively(folder):
    from safetensors.torch import load

    from gpt_model.gpt import GPT, GPTConfig
    from gpt_model.pretrained import _TRANSPOSED

    model = GPT(GPTConfig(8192, 256, 6, 8, 512))  # copy 1: random
    with open(f"{folder}/model.safetensors", "rb") as file:
        weights = load(file.read())  # copy 2: the file
    placed = {name: (w.T if name.endswith(_TRANSPOSED) else w).clone() for name, w in weights.items()}  # copy 3
    model.load_state_dict(placed, strict=False)
    return model.eval()


# %% [markdown]
# The frugal one has three ideas:
#
# - **meta**: `torch.device("meta")` makes a model of shapes without numbers;
# - **mapping**: `safe_open` maps the file, so that its pages come in as they are read, and the system may drop them;
# - **assign**: each tensor is turned on the way into the place where it *stays*.


# %%
def load_frugally(folder):
    import torch
    from safetensors import safe_open

    from gpt_model.gpt import GPT, GPTConfig
    from gpt_model.pretrained import _TRANSPOSED

    with torch.device("meta"):
        model = GPT(GPTConfig(8192, 256, 6, 8, 512))  # no numbers
    placed = {}
    with safe_open(f"{folder}/model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 (it is no dictionary)
            w = file.get_tensor(name)
            placed[name] = (w.T if name.endswith(_TRANSPOSED) else w).clone(memory_format=torch.contiguous_format)
    model.load_state_dict(placed, strict=False, assign=True)
    model.lm_head.weight = model.transformer.wte.weight  # section 7's pitfall
    return model.eval()


# %% [markdown]
# A larger model, so that bytes show above what Python itself takes. Random weights: what is in them does not matter.

# %%
torch.manual_seed(0)
big = GPT(GPTConfig(8192, 256, 6, 8, 512)).eval()
big.save_pretrained(home / "big")
big.save_pretrained(home / "big-in-pieces", max_shard_bytes=big.n_parameters // 2)
weight_bytes = 4 * big.n_parameters
print(f"{big.n_parameters:,} parameters, {weight_bytes / 1e6:.0f} MB in float32")

# %% [markdown]
# Equal first:

# %%
with torch.no_grad():
    probe = torch.arange(20).view(1, 20)  # (20,) -> (1, 20)
    expected_logits = big(probe)
    for load in (load_naively, load_frugally, load_model):
        assert torch.equal(load(home / "big")(probe), expected_logits)
print("three loaders, the same logits")

# %% [markdown]
# Then the peak, in a fresh process for each, because a process keeps the memory that it has once had. Linux says how
# much a process has held at most. What counts there are *resident* pages, and pages of a mapped file among them.


# %%
import inspect
import subprocess
import sys

from utils.tracking import REPOSITORY

PROGRAM = """
import torch
from utils.device_benchmarking import peak_bytes
from gpt_model.pretrained import load_model
import safetensors.torch
{source}
print(peak_bytes(lambda: {name}({folder!r}), torch.device("cpu")))
"""


def peak_of(load, folder="big"):
    source = "" if load is load_model else inspect.getsource(load)
    program = PROGRAM.format(source=source, name=load.__name__, folder=str(home / folder))
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return None if done.stdout.strip() == "None" else int(done.stdout)


# %% [markdown]
# **Predict before you run (7).** In copies of the weights: what will the naive loader hold at most? And the frugal one,
# whose new tensors and mapped pages are there at the same time? And if the same weights come in eight files and more,
# each let go when it has been read?

# %% tags=["volatile"]
loaders = {"naive": load_naively, "frugal, by hand": load_frugally, "load_model": load_model}
peaks = {name: peak_of(load) for name, load in loaders.items()}
peaks["load_model, pieces"] = peak_of(load_model, "big-in-pieces")
copies = {name: peak / weight_bytes for name, peak in peaks.items() if peak is not None}
print({name: f"{number:.2f}" for name, number in copies.items()} or "this system does not tell")

# %% [markdown]
# Hatched, what the program itself asks for, counted from its lines above. Grey, what was measured: with the pages of
# the mapped file, which the system can take back when it needs them. So the two copies of the frugal loaders are one
# that stays and one that is lent; in pieces, the loan is small. Where a bar is missing, the system does not tell.

# %%
counted = {"naive": 3, "frugal, by hand": 1, "load_model": 1, "load_model, pieces": 1}
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for number, name in enumerate(counted):
    axes.bar(number - 0.2, counted[name], 0.38, color="white", edgecolor="black", hatch="//", label="counted")
    axes.bar(number + 0.2, copies.get(name, 0), 0.38, color="0.6", edgecolor="black", label="measured, resident")
axes.set_xticks(range(4), [name.replace(", ", ",\n") for name in counted])
axes.set(ylabel="peak (copies of the weights)")
handles, labels = axes.get_legend_handles_labels()
axes.legend(handles[:2], labels[:2], frameon=False)
plt.show()

# %% [markdown]
# And the time. No random numbers to draw, one copy less to write:

# %% tags=["volatile"]
contestants = {name: (lambda load=load: load(home / "big")) for name, load in loaders.items()}
seconds = median(time_by_turns(contestants, repeats=3))
for name, value in seconds.items():
    print(f"{name:16} {value:.2f} s, {seconds['naive'] / value:.1f} times as fast as naive")

# %% [markdown]
# `load_model` also looks at every number for NaN and infinity. The loader by hand does not.

# %% [markdown]
# ## 11. Formats, several files, four sizes
#
# ### Half the bytes
#
# Files in float16 are common. A number keeps 11 bits of its fraction (10, and the leading 1 that is not stored), so
# rounding moves it by at most one part in 2¹¹. That holds for numbers of at least 2⁻¹⁴; smaller ones lose more.

# %%
halves = {name: w.half() for name, w in weights.items()}
w, h = weights["wte.weight"], halves["wte.weight"].float()
normal = w.abs() >= 2**-14
worst = ((w - h).abs() / w.abs())[normal].max().item()
assert worst <= 2**-11
print("the embedding's largest relative error is at most 2^-11, as the law says")

# %% [markdown]
# Back to float32 is exact: every float16 is a float32. So loading a float16 file as float32 loses nothing *more*. A
# whole folder, opened in both formats:

# %%
theirs.config.save_pretrained(home / "half")
safetensors.torch.save_file(halves, home / "half" / "model.safetensors", metadata={"format": "pt"})
as_saved, as_float32 = load_model(home / "half"), load_model(home / "half", dtype=torch.float32)
for name, w in as_float32.state_dict().items():
    assert torch.equal(w.half(), as_saved.state_dict()[name])
size = (home / "half" / "model.safetensors").stat().st_size
print(as_saved.lm_head.weight.dtype, as_float32.lm_head.weight.dtype, f"{size / len(data):.2f} of the bytes")

# %% [markdown]
# What did rounding cost?

# %% tags=["volatile"]
print(f"float32 {loss_of(right):.5f}, from float16 {loss_of(as_float32):.5f} nats per token")

# %% [markdown]
# ### Several files
#
# Large models come in pieces. `model.safetensors.index.json` maps each name to its file, and that is all. Our folder
# again, in pieces of at most 60,000 bytes:

# %%
right.save_pretrained(home / "pieces", max_shard_bytes=60_000)
index = json.loads((home / "pieces" / "model.safetensors.index.json").read_text(encoding="utf-8"))
print(index["metadata"], f"{len(index['weight_map'])} names in {len(set(index['weight_map'].values()))} files")
for name in ("transformer.wte.weight", "transformer.h.0.attn.c_attn.weight", "transformer.ln_f.bias"):
    print(f"{name:36} {index['weight_map'][name]}")

# %% [markdown]
# Read by hand: each file once, all dictionaries joined.

# %%
joined = {}
for file in sorted(set(index["weight_map"].values())):
    joined |= read_fast((home / "pieces" / file).read_bytes())
assert joined.keys() == index["weight_map"].keys()
assert all(torch.equal(joined[name], w) for name, w in back.items())
print("the pieces are the whole")

# %% [markdown]
# ### The four published sizes
#
# Now the formula of section 3 meets the real ones. Parameters by hand, against a `GPT` on the device meta, which takes
# no memory:

# %%
from gpt_model.gpt import GPT2_355M, GPT2_774M, GPT2_1558M

sizes = {"gpt2": GPT2_124M, "gpt2-medium": GPT2_355M, "gpt2-large": GPT2_774M, "gpt2-xl": GPT2_1558M}
for name, shape_of in sizes.items():
    with torch.device("meta"):
        assert GPT(shape_of).n_parameters == count_by_hand(shape_of)
    gigabytes = [f"{b * count_by_hand(shape_of) / 1e9:5.2f}" for b in (4, 2, 1)]
    print(f"{name:12} N = {count_by_hand(shape_of):13,}   GB at 4, 2, 1 bytes: {', '.join(gigabytes)}")

# %% [markdown]
# The hub lists `model.safetensors` of `openai-community/gpt2`, at the commit that this project pins, at 548,105,171
# bytes, with a header of 14,283. (We looked this up; the notebook cannot fetch it.)
#
# **Predict before you run (8).** 4 N is 497,759,232. What are the other fifty million bytes?

# %%
L, T = GPT2_124M.n_layer, GPT2_124M.context_length
size = 8 + 14_283 + 4 * (count_by_hand(GPT2_124M) + L * T**2)
print(f"masks: {4 * L * T**2:,} bytes; all: {size:,}")
assert size == 548_105_171

# %% [markdown]
# Twelve triangles of ones: a tenth of the file, and no learning in it.

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for number, (b, look) in enumerate({4: "black", 2: "0.55", 1: "white"}.items()):
    heights = [b * count_by_hand(shape_of) / 1e9 for shape_of in sizes.values()]
    axes.bar(np.arange(4) + 0.27 * (number - 1), heights, 0.26, color=look, edgecolor="black", label=f"{b} bytes")
axes.set_xticks(range(4), list(sizes))
axes.set(ylabel="weights (GB)", title="by formula")
axes.legend(frameon=False, title="a number")
plt.show()

# %% [markdown]
# Which fit this machine? The weights once, and leave half of the memory to all else:

# %% tags=["volatile"]
if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fit = [name for name, shape_of in sizes.items() if 4 * count_by_hand(shape_of) < memory / 2]
    print(f"{memory / 1e9:.0f} GB of memory; in float32 these fit:", ", ".join(fit))
else:
    print("this system does not tell how much memory it has")

# %% [markdown]
# ## 12. A name is no address
#
# `gpt2` is a name. What it stands for may change tomorrow: a hub is git behind HTTP, and a branch moves. A **commit**
# does not: its forty digits are computed from its contents. So `hub.py` pins the published models:

# %%
from gpt_model import hub

for name in ("gpt2", "gpt2-xl", "somebody/model"):
    print(f"{name:15}", *hub.repository_and_revision(name))

# %% [markdown]
# A model that is not pinned is what its branch `main` is *now*. For a result that others can repeat, give `revision=`
# and note it: `pretrained.origin` tells both.
#
# The commit says which bytes should come. A **checksum** says whether these bytes came. SHA-256, by hand on our file:

# %% tags=["volatile"]
import hashlib

checksum = hashlib.sha256(data).hexdigest()
print(checksum)

# %% [markdown]
# (It depends on somebody's training, so it may differ on your machine.) It equals the project's `sha256_of`. Now
# one bit of one weight flips, a thousand bytes before the end:

# %%
from utils.files import sha256_of

assert sha256_of(folder / "model.safetensors") == hashlib.sha256(data).hexdigest()
damaged = bytearray(data)
damaged[-1000] ^= 1
changed = sum(not torch.equal(w, weights[name]) for name, w in read_fast(bytes(damaged)).items())
print(f"length the same: {len(damaged) == len(data)}; tensors that differ: {changed}")

# %% [markdown]
# It opens, it has the right length, one number is another. Only the checksum sees it:

# %%
bad = hashlib.sha256(damaged).hexdigest()
digits = sum(one != other for one, other in zip(bad, hashlib.sha256(data).hexdigest()))
assert digits > 32
print("one bit of the file, and more than half of the 64 digits are others")

# %% [markdown]
# `hub.download` compares with what the hub announced, and removes a file that is not it. Small files have git's own
# checksum there, which is a SHA-1 of the length and the contents. One of the exercises is that comparison. How it
# behaves when a download breaks off is in `tests/gpt_model/test_hub.py`, against a hub on the same machine.

# %% [markdown]
# ## 13. A model folder is what we write
#
# The other direction. `save_pretrained` writes the shape, the weights, the tokenizer, and where it all came from.

# %%
mine = home / "mine"
right.save_pretrained(mine, tokenizer, {"command": "notebook 08", "data": "a story", "metrics": {"steps": 120}})
for path in sorted(mine.iterdir()):
    print(path.name)

# %% [markdown]
# Without this project: `transformers` opens model and tokenizer, and gives the same ids and logits.

# %%
opened = transformers.AutoModelForCausalLM.from_pretrained(mine).eval()
their_tokenizer = transformers.AutoTokenizer.from_pretrained(mine)
assert their_tokenizer(STORY)["input_ids"] == tokenizer.encode(STORY)
with torch.no_grad():
    torch.testing.assert_close(opened(ids).logits, right(ids), atol=1e-4, rtol=1e-4)
print(f"{type(opened).__name__}: the same {len(tokenizer.encode(STORY))} ids, and the same logits")

# %% [markdown]
# Weights alone tell nobody what they learned from. The card says what is known, and that the rest is not:

# %%
card = (mine / "README.md").read_text(encoding="utf-8")
print("\n".join(line for line in card.splitlines()[8:26] if line))

# %% [markdown]
# ## 14. For real
#
# With a network, and not run here:
#
#     python gpt_model/generate.py --model gpt2 --prompt "The keeper of the light"
#
# What to expect, from what was computed above: one file of 548 million bytes, fetched once into the cache of
# `huggingface_hub`, checked, then read from there without a network; 0.50 GB of weights in memory. `gpt2-xl` is the
# same line with another name, and 6.23 GB in float32. How good the text is was not measured here.

# %% [markdown]
# ## 15. Exercises
#
# Each cell runs as it is, and says what is missing.

# %%
from gpt_model.exercises.ex08 import (
    check_is_announced,
    check_split_heads,
    check_tensor_bytes,
    check_to_ours,
    check_weight_bytes,
)
from utils.exercises import attempt

# %% [markdown]
# **A. Weigh it** (easy, 10 minutes) The bytes of a GPT-2's weights, `b` bytes a number: no header, no masks, and the
# output matrix is the embedding.


# %%
def weight_bytes(vocab_size, context_length, n_layer, d_model, b): ...


attempt(check_weight_bytes, weight_bytes)

# %% [markdown]
# **B. Cut it out** (easy, 10 minutes) `file` holds the bytes of a whole safetensors file. Return the bytes of the
# tensor of that name, whatever its number format.


# %%
def tensor_bytes(file, name): ...


attempt(check_tensor_bytes, tensor_bytes)

# %% [markdown]
# **C. Theirs to ours** (medium, 15 minutes) A name and a tensor of a published GPT-2, the name with or without
# `transformer.`. Return our name and our tensor as a pair, or `None` for a mask.


# %%
def to_ours(name, tensor): ...


attempt(check_to_ours, to_ours)

# %% [markdown]
# **D. Split the heads** (medium, 15 minutes) `qkv` is (batch, tokens, 3 d), as it comes from `c_attn`. Return queries,
# keys and values, each (batch, n_head, tokens, head_dim).


# %%
def split_heads(qkv, n_head): ...


attempt(check_split_heads, split_heads)

# %% [markdown]
# **E. As announced?** (hard, 20 minutes) A hub announces 64 digits for a large file, its SHA-256, and 40 for a small
# one: the SHA-1 of `b"blob <length>\0"` (the length in decimal digits) and the file. `True` if the bytes are what was
# announced. A checksum of another length is none: `False`.


# %%
def is_announced(data, checksum): ...


attempt(check_is_announced, is_announced)

# %% [markdown]
# ### Solutions
#
# <details><summary>Solution: `weight_bytes`</summary>
#
# ```python
# def weight_bytes(vocab_size, context_length, n_layer, d_model, b):
#     d = d_model
#     block = 12 * d * d + 9 * d + 4 * d  # matrices, their biases, two norms
#     return b * ((vocab_size + context_length) * d + n_layer * block + 2 * d)
# ```
# </details>
#
# <details><summary>Solution: `tensor_bytes`</summary>
#
# ```python
# import json
# import struct
#
#
# def tensor_bytes(file, name):
#     (length,) = struct.unpack("<Q", file[:8])
#     begin, end = json.loads(file[8 : 8 + length])[name]["data_offsets"]
#     return file[8 + length + begin : 8 + length + end]
# ```
# </details>
#
# <details><summary>Solution: `to_ours`</summary>
#
# ```python
# def to_ours(name, tensor):
#     if name.endswith((".attn.bias", ".attn.masked_bias")):
#         return None
#     turned = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
#     ours = name if name.startswith("transformer.") else f"transformer.{name}"
#     return ours, tensor.T if name.endswith(turned) else tensor
# ```
# </details>
#
# <details><summary>Solution: `split_heads`</summary>
#
# ```python
# def split_heads(qkv, n_head):
#     batch, tokens, width = qkv.shape
#     head_dim = width // 3 // n_head
#     parts = qkv.chunk(3, dim=-1)  # each (batch, tokens, d)
#     return tuple(part.reshape(batch, tokens, n_head, head_dim).transpose(1, 2) for part in parts)
# ```
# </details>
#
# <details><summary>Solution: `is_announced`</summary>
#
# ```python
# import hashlib
#
#
# def is_announced(data, checksum):
#     if len(checksum) == 64:
#         return hashlib.sha256(data).hexdigest() == checksum
#     if len(checksum) == 40:
#         return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == checksum
#     return False
# ```
# </details>

# %% [markdown]
# ## 16. What you take along
#
# **Recap**
#
# - A safetensors file is 8 bytes of length, a JSON header, and numbers. Nothing in it runs. A pickle is a program.
# - Names, then shapes, then **meaning**: a tensor can have the right name and shape and still be read wrongly.
# - GPT-2's four matrices of a block are kept (in, out). Turn them by name. The square one says nothing if you do not.
# - Queries, keys and values are three parts, each cut into heads. Not the other way round.
# - The output matrix is the embedding: one tensor, two names, kept once.
# - bytes = 8 + n + b (V d + T d + L (12 d² + 13 d) + 2 d), and the published file has L masks of T² more.
# - Loading should hold one copy: shapes on meta, a mapped file, each tensor straight to its place.
# - A name moves, a commit does not, and a checksum notices one bit.
#
# **Pitfalls**, each seen above: `strict=False`, which is content with nothing; turning what complains; judging weights
# by histograms or singular values; judging a loader by the loss of a random model; `assign=True`, which unties; a file
# of the right length taken for the right file.
#
# ### Reading guide
#
# `pretrained.py` opens with the traps. The decisive function is `from_huggingface`. You have written almost
# every line of it:

# %%
print(inspect.getsource(from_huggingface))

# %% [markdown]
# Find in it: the prefix, the head that must equal the embedding, the masks, `w.T` by name, the comparison of names and
# shapes, `assign=True` and the line that ties again. `tied` is true of every GPT-2; a model of this project may have an
# output matrix of its own, which is then loaded as any other. That ours equals it was asserted in section 9. The list
# of names too:

# %%
from gpt_model.pretrained import _TRANSPOSED

assert set(CONV1D) == set(_TRANSPOSED)
print(inspect.getsource(to_huggingface))

# %% [markdown]
# Then `_place` in the same file, which copies one tensor to where it stays, and `hub._require_announced`.
#
# **CUDA, Apple's MPS, Windows.** All of this ran on a CPU, under Linux. `load_model(folder, device="cuda")` or `"mps"`
# copies each tensor to the device as it is read; that was not run here. The file is the same for all of them: its
# numbers have the lowest byte first. MPS has no float64. The peak of section 10 is told by Linux alone. Windows does
# not delete a file that is still mapped, so the temporary folder may stay (`ignore_cleanup_errors`); and where it
# allows no symbolic links, the hub's cache does not carry the checksums, and only lengths are compared (`hub.py`).
#
# **Sources.** README of `huggingface/safetensors` (the format) · Radford et al. 2019, *Language Models are Unsupervised
# Multitask Learners* · Press and Wolf 2017, *Using the Output Embedding to Improve Language Models* ·
# `modeling_gpt2.py` and `modeling_gpt_neox.py` in `transformers` · Mitchell et al. 2019, *Model Cards for Model
# Reporting*.
#
# **The next question.** The model speaks. But we only ever took its most probable id. It gives a probability to *every*
# id, and a text of most probable ids is not the most probable text, nor the best. Which of them should be next?
# Notebook 09, `the_next_token`.
