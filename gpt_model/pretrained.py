"""Model folders: a trained GPT on disk, which is a Hugging Face GPT-2 folder as well; and theirs, which are ours.

    config.json             the shape; for a GPT-2, under Hugging Face's names
    model.safetensors       the weights, under the names of Hugging Face's GPT-2 as far as that has them; large ones in
                            several files, with model.safetensors.index.json to say what is in which
    tokenizer.json          the tokenizer (tokenizer_config.json tells `transformers` how to open it)
    scratchbook.json        how it was made: command, data, versions, metrics
    README.md               the same for people: the model card
    chat_template.jinja     of models that follow instructions: how messages become a text
    classifier.*            of classifiers: the head and what its labels are called

Two traps stand between our tensors and theirs. Their GPT-2 keeps its four matrices of a block as (in, out), the
transpose of what `nn.Linear` keeps; and the output matrix is not stored, since it is the embedding. The published
files add two more: their names may lack the `transformer.` in front, and among them are the causal masks of each block.

Loading allocates one copy of the weights. The model is made on the *meta* device, all shape and no numbers; the file is
mapped, so that its pages come in as they are read; and each tensor is turned and converted on its way into the place
where it stays. Mapped pages count as memory in use until their file is let go, and the system may drop them before
that: a process that loads a single file shows up to twice its size, and hardly more than once in pieces.

What GPT-2 is not (rotary positions, another norm or attention) has a `model_type` of its own and is kept as it is here,
so that no other program opens it as something that it is not.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt_model import hub
from gpt_model.gpt import GPT, GPTConfig
from gpt_model.gpt_gqa import GPTWithGQA
from gpt_model.gpt_mla import GPTWithMLA
from gpt_model.gpt_swa import GPTWithSWA
from gpt_model.model_card import model_card
from utils.files import latest_whole_folder, read_json, replace_folder, require_replaceable, write_json, write_text
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.bytepair_enc.bpe import END_OF_TEXT
from working_with_text_data.bytepair_enc.patterns import GPT2_PATTERN
from working_with_text_data.bytepair_enc.vocabularies import parse_gpt2_files

CONFIG, WEIGHTS, MADE_BY, CARD = "config.json", "model.safetensors", "scratchbook.json", "README.md"
TOKENIZER, TOKENIZER_CONFIG, GENERATION_CONFIG = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"  # what a tokenizer was before there was tokenizer.json
PICKLE = "pytorch_model.bin"  # what weights were before there was safetensors
MAX_SHARD_BYTES = 5 * 10**9
_SHARDS, _PICKLE_SHARDS = "model-*-of-*.safetensors", "pytorch_model-*-of-*.bin"
_INDEX, _PICKLE_INDEX = f"{WEIGHTS}.index.json", f"{PICKLE}.index.json"
CHAT_TEMPLATE = "chat_template.jinja"
_BESIDE = (CHAT_TEMPLATE, "classifier.json", "classifier.safetensors")  # what later chapters put there
_OWNED = (WEIGHTS, _INDEX, _SHARDS, TOKENIZER, TOKENIZER_CONFIG, GENERATION_CONFIG, MADE_BY, CARD, *_BESIDE)
_TOKENIZER_FILES = (CONFIG, TOKENIZER, TOKENIZER_CONFIG, VOCABULARY, MERGES)
_MODEL_FILES = (*_TOKENIZER_FILES, CHAT_TEMPLATE, GENERATION_CONFIG, WEIGHTS, _INDEX, _SHARDS)
_PICKLE_FILES = (PICKLE, _PICKLE_INDEX, _PICKLE_SHARDS)
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_HUGGING_FACE_NAMES = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "d_model": "n_embd",
    "dropout": "resid_pdrop",
    "layer_norm_epsilon": "layer_norm_epsilon",
    "d_ff": "n_inner",
}
# Fields that came later. A folder that lacks them was written before, and is as their defaults say.
_LATER = {
    "norm",
    "activation",
    "bias",
    "qk_norm",
    "zero_projections",
    "logit_softcap",
    "value_embeddings",
    "tie_embeddings",
}
_CLASSES: dict[str, type[GPT]] = {
    "gpt2": GPT,
    "scratchbook_gpt": GPT,
    "scratchbook_gpt_gqa": GPTWithGQA,
    "scratchbook_gpt_mla": GPTWithMLA,
    "scratchbook_gpt_swa": GPTWithSWA,
}

_BESIDE_SHAPE = {"architectures", "model_type", "bos_token_id", "eos_token_id"}  # in config.json of our own kinds

# What our body does, where `transformers`' GPT-2 offers a choice.
_GPT2 = {
    "activation_function": "gelu_new",
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def to_huggingface(model: GPT) -> dict[str, Tensor]:
    """The model's weights under Hugging Face's names and in its layout; a variant's in that of `nn.Linear`."""
    weights = _without_copies(model)
    if model_type(model) != "gpt2":
        return {name: tensor.contiguous() for name, tensor in weights.items()}
    return {name: (w.T if name.endswith(_TRANSPOSED) else w).contiguous() for name, w in weights.items()}


def _without_copies(model: GPT) -> dict[str, Tensor]:
    """The model's weights, without an output matrix that is the embedding."""
    tied = model.config.tie_embeddings
    return {name: w for name, w in model.state_dict().items() if not (tied and name == "lm_head.weight")}


def from_huggingface(
    model: GPT,
    weights: dict[str, Tensor],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> None:
    """Gives `model` weights in the layout of `to_huggingface`, copied one by one to where they stay.

    Args:
        model: its own weights are let go, so it may have been made on the meta device.
        weights: name -> tensor; those that are mapped from a file are read as they are copied.
        dtype: the number format to convert to; if not given, that of the embedding in `weights`.

    Raises:
        ValueError: names or shapes differ (the message lists the first ones), a tensor is not of floating point, or it
            holds infinite numbers or NaN.
    """
    own = ("transformer.", "lm_head.")
    weights = {name if name.startswith(own) else f"transformer.{name}": w for name, w in weights.items()}
    tied = model.config.tie_embeddings
    head = weights.pop("lm_head.weight", None) if tied else None
    if head is not None and not torch.equal(head, weights.get("transformer.wte.weight", head[:0])):
        raise ValueError("the output matrix lm_head.weight is not the embedding: this is not a GPT-2 with tied weights")
    ignored = (".attn.bias", ".attn.masked_bias")  # masks that old versions saved
    transposed = _TRANSPOSED if model_type(model) == "gpt2" else ()
    ours = {name: w.T if name.endswith(transposed) else w for name, w in weights.items() if not name.endswith(ignored)}
    _require_same(ours, _without_copies(model))
    del weights, head  # so that each tensor is let go once it is copied, and a file with its last
    wanted = dtype or ours["transformer.wte.weight"].dtype
    placed = {name: _place(name, ours.pop(name), device, wanted) for name in list(ours)}
    if tied:
        placed["lm_head.weight"] = placed["transformer.wte.weight"]
    model.load_state_dict(placed, assign=True)
    if tied:
        model.lm_head.weight = model.transformer.wte.weight


def _require_same(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raises ValueError, with the first differences, where names or shapes are others than expected."""
    wrong = [f"{name} is missing" for name in expected.keys() - ours.keys()]
    wrong += [f"{name} is not part of this model" for name in ours.keys() - expected.keys()]
    wrong += [
        f"{name} has shape {tuple(ours[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected.keys() & ours.keys()
        if ours[name].shape != expected[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"the weights do not fit the model: {'; '.join(sorted(wrong)[:3])}{more}")


def _place(name: str, source: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """A copy of `source` on `device` in `dtype`, rows in a row; ValueError if it holds no proper numbers."""
    for kind in (source.dtype, dtype):
        if kind not in _FLOATS:
            raise ValueError(f"{name} would be {kind}: weights are float32, bfloat16, float16 or float64")
    target = torch.empty(source.shape, dtype=dtype, device=device).copy_(source)
    if not torch.stack(torch.aminmax(target)).isfinite().all():  # NaN spreads to both; no copy is made
        raise ValueError(f"{name} holds NaN or infinite numbers: the weights are damaged, or too large for {dtype}")
    return target


def model_type(model: GPT) -> str:
    """What `config.json` calls the model: gpt2 where it is one, and otherwise a name of this project's."""
    told = {ours: getattr(model.config, ours) for ours in (*_HUGGING_FACE_NAMES, "rope_base")}  # the last has no effect
    if type(model) is GPT and model.config == GPTConfig(**told):
        return "gpt2"
    return next(name for name, kind in reversed(_CLASSES.items()) if kind is type(model))


def _config_to_json(model: GPT) -> dict[str, Any]:
    """The contents of `config.json` that tell the shape."""
    kind = model_type(model)
    if kind != "gpt2":
        return {"architectures": [type(model).__name__], "model_type": kind, **asdict(model.config)}
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": kind,
        "activation_function": "gelu_new",
        **{theirs: getattr(model.config, ours) for ours, theirs in _HUGGING_FACE_NAMES.items()},
        "n_ctx": model.config.context_length,  # the same once more, for llama.cpp's converter
        "attn_pdrop": model.config.dropout,
        "embd_pdrop": model.config.dropout,
        "tie_word_embeddings": True,
        "torch_dtype": str(model.lm_head.weight.dtype).removeprefix("torch."),
    }


def save_model(
    model: GPT,
    folder: Path | str,
    tokenizer: BytePairTokenizer | None = None,
    made_by: dict[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    beside: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a model folder, which appears whole or not at all; an older one is replaced.

    Args:
        made_by: kept in `scratchbook.json`, and told in the model card: `command`, `data`, `metrics` and what else.
        max_shard_bytes: weights of more than that go into several files of at most that each.
        beside: the contents of files that later chapters put there: a chat template, or a classifier's head.

    Raises:
        ValueError: `folder` holds something that is not a model folder, the tokenizer is of another size, or the
            weights are stored (`weight_only.py`).
        OSError: cannot be written, disk full; an older model stays as it was.
    """
    if unknown := sorted((beside or {}).keys() - set(_BESIDE)):
        raise ValueError(f"{unknown[0]} is not part of a model folder: {', '.join(_BESIDE)} may lie beside the weights")
    if not isinstance(model.lm_head, torch.nn.Linear):
        raise ValueError("the weights of this model are stored in fewer bytes: save the model that it was made from")
    if tokenizer is not None:
        _require_same_size(tokenizer, model.config.vocab_size, f"{folder} cannot be written")
    has_end = tokenizer is not None and END_OF_TEXT in tokenizer.special_tokens
    end_id = tokenizer.eot_token if tokenizer is not None and has_end else None
    ends = {"bos_token_id": end_id, "eos_token_id": end_id}  # null, or `transformers` would take GPT-2's 50256
    with replace_folder(folder, CONFIG, _OWNED) as staging:
        write_json(staging / CONFIG, _config_to_json(model) | ends)
        write_json(staging / GENERATION_CONFIG, ends)
        _save_weights(to_huggingface(model), staging, max_shard_bytes)
        if tokenizer is not None:
            tokenizer.save(staging / TOKENIZER)
            write_json(
                staging / TOKENIZER_CONFIG,
                {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "model_max_length": model.config.context_length,
                    "clean_up_tokenization_spaces": False,
                    **({"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT} if has_end else {}),
                },
            )
        for name, content in (beside or {}).items():
            (staging / name).write_bytes(content)
        write_json(staging / MADE_BY, made_by or {})
        write_text(staging / CARD, model_card(model, model_type(model), made_by or {}))


def require_room_for_model(folder: Path | str) -> None:
    """Raises ValueError if a model could not be saved there, because `folder` holds something else."""
    require_replaceable(folder, CONFIG, _OWNED)


def _config_from(content: dict[str, Any], path: Path) -> GPTConfig:
    """The shape in a `config.json`; ValueError if a value is of the wrong type or range."""
    kind = content["model_type"]
    config_class = _CLASSES[kind].config_class
    hints = get_type_hints(config_class)
    names = {ours: _HUGGING_FACE_NAMES.get(ours) if kind == "gpt2" else ours for ours in hints}
    if kind != "gpt2":  # our own files say everything; GPT-2's may leave out what is as in GPT-2
        if missing := sorted(names.keys() - content.keys() - _LATER):
            raise ValueError(f"{path} lacks {', '.join(missing)}: without them the model would be another one")
        if unknown := sorted(content.keys() - names.keys() - _BESIDE_SHAPE):
            raise ValueError(f"{path} has {', '.join(unknown)}, which no {kind} has: is it misspelt?")
    shape = {ours: content[theirs] for ours, theirs in names.items() if theirs in content}
    for ours, value in shape.items():
        if not _fits(value, hints[ours]):
            raise ValueError(f"{path}: {names[ours]} is {value!r}, of the wrong type")
    try:
        return config_class(**shape)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is of the type that a field of a config has."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    kinds = get_args(hint) or (hint,)
    return type(value) in kinds or (float in kinds and type(value) is int)


def _save_weights(weights: dict[str, Tensor], folder: Path, max_shard_bytes: int) -> None:
    """Writes the weights into one file, or into several and an index: tensor -> the file that it is in."""
    shards = _split(weights, max_shard_bytes)
    if len(shards) == 1:
        _save_file(weights, folder / WEIGHTS)
        return
    index: dict[str, str] = {}
    for i, names in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        _save_file({name: weights[name] for name in names}, folder / file)
        index |= dict.fromkeys(names, file)
    total = sum(tensor.nbytes for tensor in weights.values())
    write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": index})


def _split(weights: dict[str, Tensor], max_bytes: int) -> list[list[str]]:
    """The names of the weights in groups of at most `max_bytes`, in order; a larger tensor is a group of its own."""
    groups: list[list[str]] = [[]]
    left = max_bytes
    for name, tensor in weights.items():
        if tensor.nbytes > left and groups[-1]:
            groups.append([])
            left = max_bytes
        groups[-1].append(name)
        left -= tensor.nbytes
    return groups


def _save_file(weights: dict[str, Tensor], path: Path) -> None:
    """Writes one file; a full disk is an OSError here too, which safetensors' own error is not."""
    try:
        save_file(weights, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number and os.name == "posix":
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        raise OSError(f"{path} could not be written ({error})") from None


def load_model(
    name_or_folder: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
) -> GPT:
    """The model in a model folder or on the hub, ready for generation (dropout off).

    Args:
        name_or_folder: a folder, ours or anybody's GPT-2; or what the hub calls a model (`gpt2`, `somebody/model`).
        dtype: the number format of the weights; as they were saved, if not given.
        revision: of a model on the hub: a branch, tag or commit; see `hub.download`.
        allow_pickle: opens weights that are there as a pickle only. A pickle can name any function; PyTorch is told
            to refuse all but those that make tensors (`weights_only`), but the format was not made to be safe.

    Raises:
        ValueError: neither a folder nor a hub model, a file is missing or damaged, another kind of model, or weights
            that do not fit.
        ConnectionError: it is not in the cache, and the hub cannot be reached.
    """
    folder = find_folder(name_or_folder, _MODEL_FILES, revision)
    if allow_pickle and not _has_safetensors(folder):
        folder = find_folder(name_or_folder, (*_MODEL_FILES, *_PICKLE_FILES), revision)
    kind, config = _read_config(folder)
    with torch.device("meta"):
        model = _CLASSES[kind](config)
    from_huggingface(model, _read_weights(folder, allow_pickle), device, dtype)
    return model.eval()


def find_folder(name_or_folder: Path | str, files: tuple[str, ...] = _MODEL_FILES, revision: str | None = None) -> Path:
    """The folder that a user means: one that exists, or else a hub model's, whose `files` are fetched into the cache.

    Raises:
        ValueError: neither a folder nor a hub model, or a run's folder.
        ConnectionError: it is not in the cache, and the hub cannot be reached.
    """
    name = name_or_folder.as_posix() if isinstance(name_or_folder, Path) else name_or_folder
    folder = latest_whole_folder(Path(name).expanduser(), CONFIG)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"{folder} is a folder, which has no revision {revision!r}: those are for hub models")
        if (folder / "model" / CONFIG).is_file() and not _has_safetensors(folder):
            raise ValueError(f"{folder} is the folder of a run: its model is {folder / 'model'}")
        return folder
    is_path = name.startswith((".", "/", "~", "runs/")) or name.count("/") > 1 or "\\" in name
    if is_path or folder.exists():
        raise ValueError(f"no model folder at {folder}: train one with `make demo`, or name a hub model such as gpt2")
    return hub.download(name, files, revision)


def origin(name_or_folder: Path | str, revision: str | None = None) -> dict[str, Any]:
    """Where a model comes from, for the `made_by` of what is made from it: a hub id and its commit, or a folder."""
    folder = find_folder(name_or_folder, revision=revision)
    if Path(name_or_folder).expanduser().is_dir():
        made_by = folder / MADE_BY
        return {"model": str(name_or_folder), "made_by": read_json(made_by) if made_by.is_file() else None}
    return {"model": hub.repository_and_revision(str(name_or_folder))[0], "commit": folder.name}


def _has_safetensors(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() or (folder / _INDEX).is_file()


def _read_config(folder: Path) -> tuple[str, GPTConfig]:
    """The kind of model and its shape, from `config.json`; ValueError if it is one that cannot be opened."""
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} is not a model folder: it has no {CONFIG}")
    content = read_json(path)
    kind = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in _CLASSES:
        raise ValueError(f"{path} describes a {kind!r} model; only {', '.join(_CLASSES)} can be opened")
    for name, value in _GPT2.items() if kind == "gpt2" else ():
        if content.get(name, value) != value:
            raise ValueError(f"{path}: {name} is {content[name]!r}; only GPT-2's own {value!r} can be opened")
    return kind, _config_from(content, path)


def _read_weights(folder: Path, allow_pickle: bool) -> dict[str, Tensor]:
    """The tensors of a model folder, mapped: nothing is read before it is used."""
    if _has_safetensors(folder):
        files = _weight_files(folder, WEIGHTS, _INDEX)
        return {name: w for file in files for name, w in _open_safetensors(file).items()}
    if allow_pickle:
        files = _weight_files(folder, PICKLE, _PICKLE_INDEX)
        return {name: w for file in files for name, w in _open_pickle(file).items()}
    raise ValueError(
        f"{folder} is not a model folder: it has no {WEIGHTS}. A pickle ({PICKLE}) could hold any program; if that is "
        "what there is, and you trust whoever made it, pass allow_pickle=True (--allow-pickle)"
    )


def _weight_files(folder: Path, single: str, index: str) -> list[Path]:
    """The one file with weights, or those that the index names."""
    if (folder / single).is_file():
        return [folder / single]
    if not (folder / index).is_file():
        raise ValueError(f"{folder} is not a model folder: it has no {WEIGHTS}, and no {single} either")
    content = read_json(folder / index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ValueError(f"{folder / index} does not say which tensor is in which file: its weight_map is missing")
    for file in places.values():
        if Path(file).name != file or not (folder / file).is_file():
            raise ValueError(f"{folder / index} names {file}, and {folder} has no such file")
    return [folder / file for file in sorted(set(places.values()))]


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path, device="cpu")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not safetensors ({error})") from None


def _open_pickle(path: Path) -> dict[str, Tensor]:
    try:  # before 2020 it was no zip file, and cannot be mapped
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # damaged bytes are read as instructions, and these fail in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is damaged, or holds more than tensors and is refused ({reason})") from None
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise ValueError(f"{path} holds no dictionary of tensors: it is not the weights of a model")
    return weights


def load_tokenizer(name_or_folder: Path | str, revision: str | None = None) -> BytePairTokenizer:
    """The tokenizer in a model folder or of a hub model: tokenizer.json, or vocab.json and merges.txt.

    Raises:
        ValueError: neither a folder nor a hub model, it has no tokenizer, or one of another size than the model.
        ConnectionError: it is not in the cache, and the hub cannot be reached.
    """
    folder = find_folder(name_or_folder, _TOKENIZER_FILES, revision)
    if not (folder / TOKENIZER).is_file() and (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
        tokenizer = _from_vocabulary_and_merges(folder)
    else:
        tokenizer = BytePairTokenizer.load(folder / TOKENIZER)
    if (folder / CONFIG).is_file():
        content = read_json(folder / CONFIG)
        rows = content.get("vocab_size") if isinstance(content, dict) else None
        if isinstance(rows, int):
            _require_same_size(tokenizer, rows, str(folder))
    return tokenizer


def _from_vocabulary_and_merges(folder: Path) -> BytePairTokenizer:
    """GPT-2's own two files, under the names that they have on the hub."""
    vocabulary, merges = (folder / VOCABULARY).read_bytes(), (folder / MERGES).read_bytes()
    try:
        ranks = parse_gpt2_files(merges, vocabulary)
    except ValueError as error:
        raise ValueError(f"{folder}, {MERGES} as vocab.bpe and {VOCABULARY} as encoder.json: {error}") from None
    end = read_json(folder / VOCABULARY).get(END_OF_TEXT)
    return BytePairTokenizer(ranks, GPT2_PATTERN, {} if end is None else {END_OF_TEXT: end}, folder.name)


def _require_same_size(tokenizer: BytePairTokenizer, rows: int, where: str) -> None:
    """Raises ValueError if a tokenizer does not go with an embedding of so many rows.

    An embedding may have some rows more, up to a round number, because matrices of such sizes are faster.
    """
    tokens = tokenizer.n_vocab
    is_padded = rows % 64 == 0 and 0 < rows - tokens < 1024
    if rows != tokens and not is_padded:
        raise ValueError(
            f"{where}: the tokenizer has {tokens:,} tokens and the model {rows:,}: they do not belong together; take "
            "the tokenizer that the model was trained with"
        )
