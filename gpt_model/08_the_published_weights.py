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
# **Somebody else trained a GPT-2 and published a file of numbers. What does it take for our model to speak with them?**
#
# The body of notebook 06 has the right shape, and its weights are random. The right ones lie on a hub, in a file that
# another program wrote, under other names, some of them turned on their side. Here we read such a file with `struct`
# and `json` alone, move it into our model by hand, and meet the mistakes that load without a complaint.
#
# | | |
# |---|---|
# | you know | the body of a GPT (notebook 06) |
# | you need | about 60 minutes, exercises apart; any laptop: no GPU, no network, half a gigabyte of memory |
# | files | `pretrained.py` and `hub.py` of this folder do it for real |
#
# | letter | meaning | shape |
# |---|---|---|
# | d | width of the residual stream | 8 in the small model here, 768 in GPT-2 |
# | W | matrix of an `nn.Linear` | (out, in) |
# | Wᵀ | the same as GPT-2's file keeps it | (in, out) |
# | q, k, v | query, key and value of a token | (d,) each |
# | V | tokens in the vocabulary | 50,257 in GPT-2 |

# %% [markdown]
# ## 1. A file of numbers, byte by byte
#
# A **safetensors** file has three parts: 8 bytes that say how long the header is, the header, and then numbers and
# nothing but numbers. The header is JSON: for each tensor its number format, its shape, and where its bytes begin and
# end.
#
# Here is one with a single matrix of 2 × 3, made by hand.

# %%
import json
import struct

numbers = struct.pack("<6f", 1, 2, 3, 4, 5, 6)  # six float32, four bytes each, the low byte first
header = {"W": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
text = json.dumps(header).encode()
file = struct.pack("<Q", len(text)) + text + numbers
print(len(file), "bytes: 8 +", len(text), "+", len(numbers))

# %% [markdown]
# The library reads what we wrote. There is nothing more to the format.

# %%
import safetensors.torch

print(safetensors.torch.load(file))

# %% [markdown]
# Reading is the same the other way round. `np.frombuffer` looks at bytes as numbers and copies none of them.

# %%
import numpy as np


def read_header(data):
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), 8 + length


def read_tensor(data, name):
    header, start = read_header(data)
    begin, end = header[name]["data_offsets"]
    flat = np.frombuffer(data[start + begin : start + end], dtype="<f4")
    return flat.reshape(header[name]["shape"])  # (2, 3) here


print(read_tensor(file, "W"))

# %% [markdown]
# **Predict before you run.** The header says `shape: [2, 3]`. Somebody changes that to `[3, 2]` and touches no number.
# What is the matrix then: the transpose?

# %%
turned = file.replace(b'"shape": [2, 3]', b'"shape": [3, 2]')
print(read_tensor(turned, "W"))
print("is it the transpose?", np.array_equal(read_tensor(turned, "W"), read_tensor(file, "W").T))

# %% [markdown]
# No. The same six numbers in the same order, cut into other rows. The transpose of a matrix is another order of its
# numbers in memory. Keep this in mind for section 5.

# %% [markdown]
# ## 2. Why not a pickle?
#
# Before safetensors, weights were Python pickles. A pickle is no list of numbers: it is a small program, which the
# reader runs. Whatever it names is called. This one prints a line; it could as well delete your files.

# %%
import io
import pickle

import torch


class Harmless:
    def __reduce__(self):
        return print, ("a pickle ran this line while it was opened",)


evil = pickle.dumps({"wte.weight": Harmless()})
opened = pickle.loads(evil)

# %% [markdown]
# PyTorch refuses this, if one lets it: `weights_only=True` allows the names that make tensors, and no others.

# %%
buffer = io.BytesIO()
torch.save({"wte.weight": Harmless()}, buffer)
buffer.seek(0)
try:
    torch.load(buffer, weights_only=True)
except pickle.UnpicklingError as error:
    print("refused:", "print" in str(error))

# %% [markdown]
# `load_model` takes safetensors, and a pickle only if one asks for it (`allow_pickle`), and then in this way.

# %% [markdown]
# ## 3. A model as it is published
#
# There may be no network where you read this, so we publish a model ourselves: GPT-2 as `transformers` makes it, tiny,
# with random weights, written in the layout of the file that has been on the hub since 2019. Two things in it are old
# habits: names lack the `transformer.` in front, and each block carries its causal mask as `attn.bias`.

# %%
import tempfile
from pathlib import Path

import transformers

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
shape = {"vocab_size": 50, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}
shape |= {"bos_token_id": None, "eos_token_id": None}
theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).eval()
with torch.no_grad():
    for parameter in theirs.parameters():
        parameter.add_(
            0.3 * torch.randn_like(parameter)
        )  # biases that are not zero: or a mistake in them would not show

# %% [markdown]
# The published file, then, and the small `config.json` beside it.

# %%
published = {}
for name, tensor in theirs.transformer.state_dict().items():
    published[name] = tensor.clone().contiguous()
for layer in range(2):
    published[f"h.{layer}.attn.bias"] = torch.ones(16, 16).tril().view(1, 1, 16, 16)  # (1, 1, tokens, tokens)
folder = Path(tempfile.mkdtemp()) / "published"
theirs.config.save_pretrained(folder)
safetensors.torch.save_file(published, folder / "model.safetensors", metadata={"format": "pt"})
print(sorted(path.name for path in folder.iterdir()))

# %% [markdown]
# Our own reader from section 1 opens it. These are the tensors of the first block and of what is around the blocks:

# %%
data = (folder / "model.safetensors").read_bytes()
names, _ = read_header(data)
names.pop("__metadata__")
for name in sorted(names):
    if not name.startswith("h.1"):
        print(f"{name:22s}", names[name]["shape"])

# %% [markdown]
# **Predict before you run.** The model multiplies its last vectors with a matrix of 50 × 8 to get logits. Which tensor
# of the file is that?

# %%
print("lm_head.weight" in names)
print(theirs.lm_head.weight is theirs.transformer.wte.weight)

# %% [markdown]
# It is not there: the output matrix *is* the embedding, `wte.weight`, and a tensor with two names is stored once.

# %% [markdown]
# ## 4. Names
#
# Our parameters have Hugging Face's names on purpose. What is left is a table of three lines:
#
# | in the file | in our model |
# |---|---|
# | `wte.weight`, `h.0.ln_1.weight`, … | `transformer.` in front |
# | `h.0.attn.bias`: a mask | nothing: ours is made when it is needed |
# | (nothing) | `lm_head.weight` is `transformer.wte.weight` |

# %%
from gpt_model import GPT, GPTConfig

config = GPTConfig(vocab_size=50, context_length=16, n_layer=2, n_head=2, d_model=8)


def our_name(name):
    return None if name.endswith(".attn.bias") else f"transformer.{name}"


renamed = {our_name(name): read_tensor(data, name) for name in names if our_name(name)}
expected = {name for name, _ in GPT(config).named_parameters()}
print("missing:", expected - renamed.keys(), " extra:", renamed.keys() - expected)

# %% [markdown]
# Names agree. Before anything is copied, compare the shapes as well, and say all differences at once: whoever loads a
# model wants to read what is wrong, not the first thing that fails.

# %%
model = GPT(config)
wrong = {
    name: (renamed[name].shape, tuple(parameter.shape))
    for name, parameter in model.named_parameters()
    if renamed[name].shape != tuple(parameter.shape)
}
for name, (found, wanted) in sorted(wrong.items())[:4]:
    print(f"{name:34s} {found} in the file, {wanted} in our model")
print(len(wrong), "of", len(expected))

# %% [markdown]
# ## 5. The Conv1D trap
#
# Six matrices lie on their side. GPT-2 was written with a layer called `Conv1D`, which keeps its matrix as (in, out)
# and computes x W; `nn.Linear` keeps (out, in) and computes x Wᵀ. So the file has the transpose of what we need.
#
# Six. But each block has four such matrices, and there are two blocks.
#
# **Predict before you run.** Which two have the right shape though they lie on their side?

# %%
square = [name for name in renamed if renamed[name].ndim == 2 and renamed[name].shape[0] == renamed[name].shape[1]]
print(square)

# %% [markdown]
# `attn.c_proj` is square: d × d is d × d, turned or not. Its shape cannot tell. So here is **the bug**: transpose what
# does not fit, and leave what fits. It loads without one complaint.


# %%
def load(turn):
    model = GPT(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = torch.tensor(renamed[name])
            parameter.copy_(tensor.T if turn(name, tensor, parameter) else tensor)  # (in, out) to (out, in)
    return model


careless = load(lambda name, tensor, parameter: tensor.shape != parameter.shape)
ids = torch.tensor([[3, 14, 15, 9, 2, 6]])
with torch.no_grad():
    off = (careless(ids) - theirs(ids).logits).abs().max() / theirs(ids).logits.abs().max()
print(f"off by {off:.0%} of the largest logit")

# %% [markdown]
# Nothing failed, and the text would be nonsense, or worse: not quite nonsense. With shapes alone this cannot be seen;
# it takes a comparison with numbers that somebody else computed. **The mend** is to decide by name.

# %%
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
right = load(lambda name, tensor, parameter: name.endswith(CONV1D))
with torch.no_grad():
    ours, reference = right(ids), theirs(ids).logits
torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)
print("equal logits")

# %% [markdown]
# How wrong is wrong? One figure for each way of loading: the logits of one token, ours over theirs. On the line, all is
# well.

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(6, 2.8), sharey=True)
with torch.no_grad():
    for axis, (title, one) in zip(axes, {"by shape": careless, "by name": right}.items()):
        axis.plot(reference[0, -1], one(ids)[0, -1], "o", ms=3, color="black")
        axis.axline((0, 0), slope=1, ls=":", color="gray")
        axis.set(title=f"transposed {title}", xlabel="their logits")
axes[0].set_ylabel("our logits")
figure.tight_layout()

# %% [markdown]
# ## 6. Another silent one: three matrices in one
#
# `c_attn` makes q, k and v in one product: its output is 3 d numbers, first all of q, then all of k, then all of v.
# Some other models keep them head by head: q, k, v of head 0, then of head 1. The shape is the same.
#
# **Predict before you run.** Take the columns in that other order. Will the model complain?

# %%
with torch.no_grad():
    mixed = load(lambda name, tensor, parameter: name.endswith(CONV1D))
    for block in mixed.transformer.h:
        rows = block.attn.c_attn.weight  # (3 d, d)
        by_head = rows.view(2, 3, 4, 8).transpose(0, 1)  # (head, qkv, head_dim, d) to (qkv, head, head_dim, d)
        block.attn.c_attn.weight.copy_(by_head.reshape(24, 8))  # (3 d, d)
    off = (mixed(ids) - reference).abs().max() / reference.abs().max()
print(f"no complaint, and off by {off:.0%}")

# %% [markdown]
# What such mistakes do to a model that *means* something shows in its loss. Our tiny one means nothing, so we teach it
# a sentence first, in a few seconds, and load it wrongly afterwards.

# %%
torch.manual_seed(1)
sentence = torch.randint(0, 50, (1, 16))
optimizer = torch.optim.Adam(theirs.parameters(), lr=3e-3)
for _ in range(400):
    loss = theirs(sentence, labels=sentence).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss after training: {loss.item():.1f}; of a model that knows nothing: {np.log(50):.1f}")

# %% [markdown]
# Now the four ways: random weights, transposed by shape, heads mixed, and right.

# %%
import torch.nn.functional as F

state = {f"transformer.{name}": w.numpy() for name, w in theirs.transformer.state_dict().items()}
renamed.update({name: state[name] for name in renamed})
learned = load(lambda name, tensor, parameter: name.endswith(CONV1D))
by_shape = load(lambda name, tensor, parameter: tensor.shape != parameter.shape)
mixed = load(lambda name, tensor, parameter: name.endswith(CONV1D))
with torch.no_grad():
    for block in mixed.transformer.h:
        rows = block.attn.c_attn.weight
        rows.copy_(rows.view(2, 3, 4, 8).transpose(0, 1).reshape(24, 8))  # (2, 3, 4, 8) to (3, 2, 4, 8), to (3 d, d)


# %%
def loss_of(model):
    with torch.no_grad():
        logits = model(sentence[:, :-1])  # (1, 15, 50)
    return F.cross_entropy(logits[0], sentence[0, 1:]).item()


losses = {"random": loss_of(GPT(config)), "by shape": loss_of(by_shape), "heads mixed": loss_of(mixed)}
losses["right"] = loss_of(learned)
figure, axis = plt.subplots(figsize=(5, 2.6))
axis.barh(list(losses), list(losses.values()), color="gray")
axis.axvline(np.log(50), ls=":", color="black", label="ln V")
axis.set_xlabel("loss (nats a token)")
axis.legend()
figure.tight_layout()

# %% [markdown]
# Nearly all that it had learned is gone, and nothing said so. A loss near what was published is the second test of a
# loader, after equal logits.

# %%
assert losses["right"] < 0.5 < losses["by shape"]
assert losses["heads mixed"] > 0.5

# %% [markdown]
# ## 7. Generation agrees, and so does the way back
#
# Greedy text is a stern judge: one wrong number somewhere, and sooner or later another token is the best.

# %%
from gpt_model import Sampling, generate

prompt = sentence[0, :3].tolist()
mine = list(generate(learned, prompt, 12, Sampling(temperature=0)))
expected_ids = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0)[0, 3:]
assert mine == expected_ids.tolist()
print(mine)

# %% [markdown]
# And back: what `save_pretrained` writes is a folder that `transformers` opens, and what it writes again is ours, bit
# for bit.

# %%
from gpt_model import load_model

learned.save_pretrained(folder.parent / "ours")
again = transformers.AutoModelForCausalLM.from_pretrained(folder.parent / "ours")
again.save_pretrained(folder.parent / "theirs")
returned = load_model(folder.parent / "theirs")
assert all(torch.equal(a, b) for a, b in zip(learned.parameters(), returned.parameters(), strict=True))
print(sorted(path.name for path in (folder.parent / "ours").iterdir()))

# %% [markdown]
# `load_model` does all of sections 1 to 5, on the old layout as well:

# %%
loaded = load_model(folder)
with torch.no_grad():
    torch.testing.assert_close(loaded(ids), reference, atol=1e-5, rtol=1e-4)
print(type(loaded).__name__, loaded.config)

# %% [markdown]
# ## 8. Memory: how many copies?
#
# The naive way makes a model with random weights, reads the file into a dictionary, and copies. At its worst moment
# there are two copies of everything, three if the dictionary is converted first. For GPT-2's largest, 6 gigabytes a
# copy.
#
# | | random model | dictionary | converted |
# |---|---|---|---|
# | naive | 1 | 1 | 1 |
# | `load_state_dict(assign=True)` on the *meta* device, file mapped | 0 | 0 | 1 |
#
# A **meta** tensor has a shape and no numbers, so making the model costs nothing. A **mapped** file is no copy either:
# a page of it comes into memory when somebody reads it, and may be dropped again.

# %%
with torch.device("meta"):
    shell = GPT(GPTConfig(n_layer=48, n_head=25, d_model=1600))
print(f"{shell.n_parameters:,} parameters;", "first weight on", shell.lm_head.weight.device)

# %% [markdown]
# Copies times parameters times 4 bytes, for the four published sizes. That `load_model` does with one is measured in
# the project's tests, on a process of its own.

# %%
from gpt_model.gpt import GPT2_124M, GPT2_355M, GPT2_774M, GPT2_1558M


def parameters(config):
    with torch.device("meta"):
        return GPT(config).n_parameters


sizes = {f"{round(parameters(c) / 1e6)}M": parameters(c) for c in (GPT2_124M, GPT2_355M, GPT2_774M, GPT2_1558M)}
figure, axis = plt.subplots(figsize=(6, 2.8))
for i, (how, copies) in enumerate({"naive, converted": 3, "naive": 2, "mapped, assigned": 1}.items()):
    gigabytes = [4 * n * copies / 1e9 for n in sizes.values()]
    axis.bar(np.arange(4) + 0.27 * (i - 1), gigabytes, 0.25, label=how, color=str(0.2 + 0.3 * i), edgecolor="black")
axis.set_xticks(range(4), sizes)
axis.set(ylabel="gigabytes at the peak", xlabel="model, float32")
axis.legend()
figure.tight_layout()

# %% [markdown]
# The formula behind the bars is worth having: embeddings V d and T d, and each block 12 d² + 13 d. Check it against
# the four models:

# %%
for c, n in zip((GPT2_124M, GPT2_355M, GPT2_774M, GPT2_1558M), sizes.values()):
    d = c.d_model
    by_hand = (c.vocab_size + c.context_length) * d + c.n_layer * (12 * d * d + 13 * d) + 2 * d
    assert by_hand == n
print("the formula is right for", ", ".join(sizes))

# %% [markdown]
# Does it take as long, too? Both ways on a model of 20 million parameters, from the same file. The times are of this
# machine.

# %% tags=["volatile"]
import time

from gpt_model.pretrained import CONFIG, WEIGHTS

medium = GPTConfig(vocab_size=5000, context_length=256, n_layer=5, n_head=8, d_model=512)
GPT(medium).save_pretrained(folder.parent / "medium")


def naive():
    model = GPT(medium)
    weights = safetensors.torch.load_file(folder.parent / "medium" / WEIGHTS)
    weights = {name: w.T.contiguous() if name.endswith(CONV1D) else w.clone() for name, w in weights.items()}
    model.load_state_dict(weights, strict=False)
    return model


seconds = {}
for name, way in {"naive": naive, "load_model": lambda: load_model(folder.parent / "medium")}.items():
    start = time.perf_counter()
    way()
    seconds[name] = time.perf_counter() - start
print({name: f"{s:.2f} s" for name, s in seconds.items()}, f"ratio {seconds['naive'] / seconds['load_model']:.1f}")

# %% [markdown]
# Most of the naive time goes into random numbers that are thrown away at once.

# %% [markdown]
# ## 9. Large files are cut, and names are no addresses
#
# Weights of more than some gigabytes come in several files, with an index that says which tensor is in which.

# %%
learned.save_pretrained(folder.parent / "sharded", max_shard_bytes=4000)
index = json.loads((folder.parent / "sharded" / "model.safetensors.index.json").read_text())
files = sorted(set(index["weight_map"].values()))
print(len(files), "files; the embedding is in", index["weight_map"]["transformer.wte.weight"])
assert torch.equal(load_model(folder.parent / "sharded").lm_head.weight, learned.lm_head.weight)

# %% [markdown]
# On a hub, `gpt2` is a name, and what lies under a name may change overnight. Two things do not change: a **commit** of
# the repository, which names one state of it for ever, and a **checksum**, which is made from the bytes themselves.
# `hub.py` pins the first and checks the second. One bit is enough:

# %% tags=["volatile"]
import hashlib

flipped = bytearray(data)
flipped[-1] ^= 1
for one in (data, bytes(flipped)):
    print(hashlib.sha256(one).hexdigest()[:16])

# %% [markdown]
# **Predict before you run.** The bit that we flipped is the lowest or the highest of some number. Would you have seen
# it in the text that the model writes? Look at what the last number was and is.

# %% tags=["volatile"]
before, after = (np.frombuffer(bytes(one)[-4:], "<f4")[0] for one in (data, flipped))
print(f"{before:.6f} became {after:.6f}")

# %% [markdown]
# The last byte of a float32 that is stored low byte first holds its sign and most of its exponent: the number became
# four times as large, or a quarter. Every number in the file is still a proper number. Only the checksum knows.

# %% [markdown]
# ## 10. What is in such weights?
#
# With a real GPT-2 you would look here at what training left in each kind of matrix. We look at the small one that has
# learned a sentence, beside how it began: the spread of its weights, and how many directions its matrices use.

# %%
figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.8))
for name, style in {"attn.c_attn": "-", "attn.c_proj": "--", "mlp.c_fc": ":"}.items():
    w = learned.get_parameter(f"transformer.h.0.{name}.weight").detach()  # (out, in)
    axes[0].hist(w.flatten(), bins=20, histtype="step", ls=style, color="black", label=name)
    axes[1].plot(torch.linalg.svdvals(w), style, color="black", marker="o", ms=3, label=name)
axes[0].set(xlabel="weight", ylabel="count")
axes[1].set(xlabel="direction", ylabel="singular value")
axes[1].legend(fontsize=8)
figure.tight_layout()

# %% [markdown]
# ## 11. The real thing
#
# With a network, this is all, and it was not run here:
#
#     python gpt_model/generate.py --model gpt2 --prompt "The most beautiful equation is"
#
# It fetches 548 megabytes once (124 million numbers of 4 bytes, and the masks of twelve blocks of 1,024 × 1,024),
# checks them, and keeps them. Without a network the error says which command to run elsewhere and where to put the
# files.

# %%
masks = 12 * 1024 * 1024 * 4
print(f"{(4 * sizes['124M'] + masks) / 1e6:.0f} million bytes")

# %% [markdown]
# ## 12. Exercises
#
# Each function is checked as you run its cell; the checks know the likely mistakes.
#
# **1. `header_of`** (easy, 10 minutes). The header of a safetensors file, from its bytes, as a dictionary, without the
# entry `__metadata__`.

# %%
from gpt_model.exercises.ex08 import check_header_of, check_n_bytes, check_rename, check_turn
from utils.exercises import attempt


def header_of(data): ...


attempt(check_header_of, header_of)

# %% [markdown]
# **2. `rename`** (easy, 10 minutes). From a dictionary with the names of an old file to one with ours: `transformer.`
# in front where it is not there yet, masks (`.attn.bias`, `.attn.masked_bias`) and `lm_head.weight` left out.


# %%
def rename(weights): ...


attempt(check_rename, rename)

# %% [markdown]
# **3. `turn`** (medium, 15 minutes). A tensor of the file, by its name, as our model wants it: transposed if it
# belongs to a Conv1D, as it is if not, and with its rows one after the other in memory (`is_contiguous`).


# %%
def turn(name, tensor): ...


attempt(check_turn, turn)

# %% [markdown]
# **4. `n_bytes`** (medium, 15 minutes). Bytes of the numbers in a published file of GPT-2's layout, from its shape and
# the bytes of a number: all parameters, the output matrix not among them, and the float32 masks of each block.


# %%
def n_bytes(vocab_size, context_length, n_layer, d_model, bytes_per_number): ...


attempt(check_n_bytes, n_bytes)

# %% [markdown]
# <details><summary>Solution: `header_of`</summary>
#
# ```python
# import json
# import struct
#
#
# def header_of(data):
#     (length,) = struct.unpack("<Q", data[:8])
#     header = json.loads(data[8 : 8 + length])
#     header.pop("__metadata__", None)
#     return header
# ```
# </details>
#
# <details><summary>Solution: `rename`</summary>
#
# ```python
# def rename(weights):
#     kept = {}
#     for name, tensor in weights.items():
#         if name.endswith((".attn.bias", ".attn.masked_bias", "lm_head.weight")):
#             continue
#         kept[name if name.startswith("transformer.") else f"transformer.{name}"] = tensor
#     return kept
# ```
# </details>
#
# <details><summary>Solution: `turn`</summary>
#
# ```python
# def turn(name, tensor):
#     conv1d = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
#     return (tensor.T if name.endswith(conv1d) else tensor).contiguous()
# ```
# </details>
#
# <details><summary>Solution: `n_bytes`</summary>
#
# ```python
# def n_bytes(vocab_size, context_length, n_layer, d_model, bytes_per_number):
#     block = 12 * d_model**2 + 13 * d_model
#     numbers = (vocab_size + context_length) * d_model + n_layer * block + 2 * d_model
#     return numbers * bytes_per_number + n_layer * context_length**2 * 4
# ```
# </details>

# %% [markdown]
# ## 13. What to take along
#
# - A safetensors file is a length, a JSON header and numbers. A pickle is a program.
# - Names and shapes catch the loud mistakes. A square matrix on its side, or heads in another order, they do not:
# compare   logits with another implementation, and the loss with what was published.
# - Transpose by name, never by shape.
# - The output matrix of GPT-2 is its embedding, and is not stored.
# - One copy of the weights is enough: meta device, mapped file, assign.
# - A name is no address: pin the commit, check the bytes.
#
# **Pitfalls.** `load_state_dict(strict=False)` is silent about what is missing: the naive loader above needed it for
# the tied matrix, and would not have noticed a forgotten block. A model that was loaded wrongly still writes.
#
# **On other machines.** Nothing here depends on the device. On CUDA, `load_model(..., device="cuda")` moves each
# tensor as it is read. On Windows a mapped file cannot be deleted while it is open. Neither was run here.
#
# **The module.** `pretrained.py` decides by name, as we do; this is the whole of its way out:

# %%
import inspect

from gpt_model import pretrained

print(inspect.getsource(pretrained.to_huggingface))

# %% [markdown]
# And the toy is the module: our renamed, turned tensors are those that it loads.

# %%
for name, parameter in load_model(folder.parent / "ours").named_parameters():
    tensor = torch.tensor(renamed[name])
    assert torch.equal(parameter, tensor.T if name.endswith(CONV1D) else tensor)
print("all", len(renamed), "tensors equal; the file is", CONFIG, "and", WEIGHTS)

# %% [markdown]
# **Sources.** Radford et al. 2019, *Language Models are Unsupervised Multitask Learners* · the safetensors format,
# huggingface.co/docs/safetensors · Press and Wolf 2017, *Using the Output Embedding to Improve Language Models*.
#
# **The next question.** The model is loaded, and gives 50,257 numbers for what comes next. Which token is it to be,
# and why is the best one not the best? Notebook 09, *the next token*.
