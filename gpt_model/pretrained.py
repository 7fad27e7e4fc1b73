"""Model folders: a trained GPT on disk, which is a Hugging Face GPT-2 folder as well.

    config.json             the shape; for a GPT-2, under Hugging Face's names
    model.safetensors       the weights, under the names of Hugging Face's GPT-2 as far as that has them
    tokenizer.json          the tokenizer (tokenizer_config.json tells `transformers` how to open it)
    scratchbook.json        how it was made: command, data, versions, metrics

Two traps stand between our tensors and theirs. Their GPT-2 keeps its four matrices of a block as (in, out), the
transpose of what `nn.Linear` keeps; and the output matrix is not stored, since it is the embedding.

What GPT-2 is not (rotary positions, another attention) has a `model_type` of its own and is kept as it is here, so that
no other program opens it as something that it is not.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt_model.gpt import GPT, GPTConfig
from gpt_model.gpt_gqa import GPTWithGQA
from gpt_model.gpt_mla import GPTWithMLA
from gpt_model.gpt_swa import GPTWithSWA
from utils.files import latest_whole_folder, read_json, replace_folder, write_json
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.bytepair_enc.bpe import END_OF_TEXT

CONFIG, WEIGHTS, MADE_BY = "config.json", "model.safetensors", "scratchbook.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_OWNED = (WEIGHTS, TOKENIZER, TOKENIZER_CONFIG, "generation_config.json", MADE_BY)
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
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    if model_type(model) != "gpt2":
        return {name: tensor.contiguous() for name, tensor in weights.items()}
    return {name: (w.T if name.endswith(_TRANSPOSED) else w).contiguous() for name, w in weights.items()}


def from_huggingface(model: GPT, weights: dict[str, Tensor]) -> None:
    """Puts weights in the layout of `to_huggingface` into `model`.

    Raises:
        ValueError: names or shapes differ; the message lists the first ones.
    """
    weights = {name if name.startswith("transformer.") else f"transformer.{name}": w for name, w in weights.items()}
    head = weights.pop("transformer.lm_head.weight", None)
    if head is not None and not torch.equal(head, weights.get("transformer.wte.weight", head[:0])):
        raise ValueError("the output matrix lm_head.weight is not the embedding: this is not a GPT-2 with tied weights")
    ignored = (".attn.bias", ".attn.masked_bias")  # masks that old versions saved
    transposed = _TRANSPOSED if model_type(model) == "gpt2" else ()
    ours = {name: w.T if name.endswith(transposed) else w for name, w in weights.items() if not name.endswith(ignored)}
    expected = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
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
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(ours[name])


def model_type(model: GPT) -> str:
    """What `config.json` calls the model: gpt2 where it is one, and otherwise a name of this project's."""
    if type(model) is GPT and model.config.positions == "learned":
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
        "attn_pdrop": model.config.dropout,
        "embd_pdrop": model.config.dropout,
        "tie_word_embeddings": True,
    }


def save_model(
    model: GPT,
    folder: Path | str,
    tokenizer: BytePairTokenizer | None = None,
    made_by: dict[str, Any] | None = None,
) -> None:
    """Writes a model folder, which appears whole or not at all; an older one is replaced.

    Raises:
        ValueError: `folder` holds something that is not a model folder.
        OSError: cannot be written, disk full; an older model stays as it was.
    """
    content = _config_to_json(model)
    if tokenizer is not None and END_OF_TEXT in tokenizer.special_tokens:
        content |= {"bos_token_id": tokenizer.eot_token, "eos_token_id": tokenizer.eot_token}
    with replace_folder(folder, CONFIG, _OWNED) as staging:
        write_json(staging / CONFIG, content)
        _save_weights(to_huggingface(model), staging / WEIGHTS)
        if tokenizer is not None:
            tokenizer.save(staging / TOKENIZER)
            end = END_OF_TEXT if END_OF_TEXT in tokenizer.special_tokens else None
            write_json(
                staging / TOKENIZER_CONFIG,
                {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "model_max_length": model.config.context_length,
                    "clean_up_tokenization_spaces": False,
                    **({"bos_token": end, "eos_token": end} if end else {}),
                },
            )
        write_json(staging / MADE_BY, made_by or {})


def _config_from(content: dict[str, Any], path: Path) -> GPTConfig:
    """The shape in a `config.json`; ValueError if a value is of the wrong type or range."""
    kind = content["model_type"]
    config_class = _CLASSES[kind].config_class
    hints = get_type_hints(config_class)
    names = {ours: _HUGGING_FACE_NAMES.get(ours) if kind == "gpt2" else ours for ours in hints}
    if kind != "gpt2":  # our own files say everything; GPT-2's may leave out what is as in GPT-2
        if missing := sorted(names.keys() - content.keys()):
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


def _save_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Writes the weights; a full disk is an OSError here too, which safetensors' own error is not."""
    try:
        save_file(weights, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number and os.name == "posix":
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        raise OSError(f"{path} could not be written ({error})") from None


def load_model(folder: Path | str, device: torch.device | str = "cpu") -> GPT:
    """The model in a model folder, ready for generation (dropout off).

    Raises:
        ValueError: no such folder, a file is missing or damaged, another kind of model, or weights that do not fit.
    """
    folder = latest_whole_folder(folder, CONFIG)
    if not folder.is_dir():
        raise ValueError(f"no model folder at {folder}: train one with `make demo`, or give --model the path of one")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not a model folder: it has no {name}")
    content = read_json(folder / CONFIG)
    kind = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in _CLASSES:
        raise ValueError(f"{folder / CONFIG} describes a {kind!r} model; only {', '.join(_CLASSES)} can be opened")
    for name, value in _GPT2.items() if kind == "gpt2" else ():
        if content.get(name, value) != value:
            raise ValueError(
                f"{folder / CONFIG}: {name} is {content[name]!r}; only GPT-2's own {value!r} can be opened"
            )
    config = _config_from(content, folder / CONFIG)
    try:
        weights = load_file(folder / WEIGHTS, device="cpu")
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged or not safetensors ({error})") from None
    model = _CLASSES[kind](config)
    from_huggingface(model, weights)
    return model.to(device).eval()


def load_tokenizer(folder: Path | str) -> BytePairTokenizer:
    """The tokenizer in a model folder.

    Raises:
        ValueError: it has none.
    """
    return BytePairTokenizer.load(Path(folder) / TOKENIZER)
