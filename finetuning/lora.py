"""LoRA: a large matrix learns through two small ones (Hu et al. 2021).

Fine-tuning changes a matrix W (out, in) by some ΔW of the same shape, with a gradient and an optimiser state as large.
But ΔW is found to be of low rank: what a task adds to a language model lies in few directions. So W stays as it is, and

    y = W x + (alpha / r) · B A x,      A (r, in), B (out, r), r much smaller than in and out

is trained by A and B alone: r · (in + out) numbers in place of in · out. A begins at random and B at zero, so that at
first nothing is changed. Afterwards (alpha / r) · B A is added to W once and for all (`merge_lora`), and the model is
as fast as it was; or A and B alone are kept, some megabytes for each task beside one large model (`save_adapter`).

The factor alpha / r keeps what a first step changes about the same when r changes, so the learning rate need not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpt_model import GPT
from gpt_model.pretrained import model_type
from utils.files import read_json, replace_folder, write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # peft's names
_PREFIX = "base_model.model."  # in front of each weight in peft's file


@dataclass(frozen=True)
class LoRA:
    """Which matrices get an adapter, and of what size.

    Raises:
        ValueError: a number is out of its range.
    """

    rank: int = 8
    """r: columns of B, rows of A."""
    alpha: float = 16.0
    """The adapter's output is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Probability of setting a number of the adapter's input to zero in training."""
    targets: tuple[str, ...] = ("c_attn", "c_proj", "c_fc")
    """Linear layers whose name ends so, or that match as a whole if it is a regular expression: h.[01].attn.c_attn"""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha must be above 0 and finite, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        for pattern in self.targets:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"{pattern!r} names no layers: as a regular expression it is broken ({error})"
                ) from None


class LoRALinear(nn.Linear):
    """A linear layer and its adapter. `weight` and `bias` keep their names, and are not trained."""

    def __init__(self, base: nn.Linear, lora: LoRA) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.requires_grad_(False)
        like: dict[str, Any] = {"dtype": base.weight.dtype, "device": base.weight.device}
        self.lora_a = nn.Parameter(torch.empty(lora.rank, base.in_features, **like))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, lora.rank, **like))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as nn.Linear begins, between -1/√in and 1/√in
        self.scale, self.dropout = lora.alpha / lora.rank, nn.Dropout(lora.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        small = F.linear(self.dropout(x), self.lora_a)  # (…, rank)
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(small, self.lora_b)

    def merged(self) -> nn.Linear:
        """The plain layer that does the same."""
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        layer.weight = nn.Parameter(self.weight.detach() + self.scale * (self.lora_b @ self.lora_a).detach())
        layer.bias = self.bias  # the same one, which is still frozen: a copy for saving must not wake it
        return layer


def _linears(model: nn.Module, targets: Sequence[str]) -> Iterator[tuple[nn.Module, str, str, nn.Linear]]:
    """(parent, name in it, whole name, layer) of each linear layer that `targets` name."""
    patterns = [re.compile(rf"(?:.*\.)?(?:{target})") for target in targets]
    for whole, parent in list(model.named_modules()):
        for name, layer in list(parent.named_children()):
            full = f"{whole}.{name}".lstrip(".")
            if isinstance(layer, nn.Linear) and any(pattern.fullmatch(full) for pattern in patterns):
                yield parent, name, full, layer


def add_lora(model: nn.Module, lora: LoRA) -> list[str]:
    """Gives every target an adapter, and lets nothing else of the model be trained; the targets' names.

    Raises:
        ValueError: there is no such layer, it has an adapter already, or its matrix is read by other means than a call.
    """
    found = list(_linears(model, lora.targets))
    if not found:
        kinds = sorted({name for _, name, _, _ in _linears(model, [".*"])})
        raise ValueError(f"no linear layer is called {' or '.join(lora.targets)}: this model has {', '.join(kinds)}")
    for _, name, full, layer in found:
        if isinstance(layer, LoRALinear):
            raise ValueError(f"{full} has an adapter already: merge it first")
        if name in ("k_up", "v_up", "lm_head"):
            raise ValueError(f"{full} can have no adapter: its matrix is read elsewhere, too, without it")
    model.requires_grad_(False)
    for parent, name, _, layer in found:
        # A model that answers, dropout off, goes on doing so.
        setattr(parent, name, LoRALinear(layer, lora).train(layer.training))
    return [full for _, _, full, _ in found]


def merge_lora(model: nn.Module) -> None:
    """Adds every adapter to its matrix: the model is then a plain one again, all of it trainable."""
    for parent, name, _, layer in _linears(model, [".*"]):
        if isinstance(layer, LoRALinear):
            setattr(parent, name, layer.merged())
    model.requires_grad_(True)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """name -> layer, of all that have an adapter."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` of the plain model that does the same, while this one goes on learning."""
    weights = dict(model.state_dict())
    for name, layer in lora_layers(model).items():
        weights[f"{name}.weight"] = layer.merged().weight.detach()
        del weights[f"{name}.lora_a"], weights[f"{name}.lora_b"]
    return weights


def save_adapter(model: GPT, folder: Path | str, lora: LoRA, base: str) -> None:
    """Writes the adapters alone, as `peft` reads them: `PeftModel.from_pretrained(model, folder)`.

    Args:
        base: the name or folder of the model that they belong to.

    Raises:
        ValueError: the model has no adapter.
        OSError: it cannot be written.
    """
    layers = lora_layers(model)
    if not layers:
        raise ValueError("this model has no adapters to save: add_lora gives it some")
    weights = {}
    for name, layer in layers.items():
        weights[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_a.detach().contiguous()  # (rank, in)
        weights[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_b.detach().contiguous()  # (out, rank)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(layers),
        "fan_in_fan_out": model_type(model) == "gpt2",  # Hugging Face's GPT-2 keeps its matrices as (in, out)
        "bias": "none",
        "inference_mode": True,
    }
    with replace_folder(folder, CONFIG, (WEIGHTS,)) as staging:
        write_json(staging / CONFIG, config)
        save_file(weights, staging / WEIGHTS, metadata={"format": "pt"})


def load_adapter(model: GPT, folder: Path | str) -> LoRA:
    """Gives `model` the adapters that `save_adapter` or `peft` wrote; how they were made.

    Raises:
        ValueError: there is no adapter, it is damaged, of a kind that is not known here, or of another model.
        OSError: it cannot be read.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} holds no adapter: {CONFIG} and {WEIGHTS} are needed")
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG} is damaged: it holds no settings")
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("bias", "none") != "none":
        raise ValueError(f"{folder} holds another kind of adapter than plain LoRA without biases")
    if config.get("rank_pattern") or config.get("alpha_pattern") or config.get("use_rslora"):
        raise ValueError(f"{folder} holds adapters of several sizes or scales, which are not known here")
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged ({error})") from None
    names = sorted({name.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for name in weights})
    try:
        rank, alpha, dropout = config["r"], config["lora_alpha"], config.get("lora_dropout", 0.0)
        if type(rank) is not int or isinstance(alpha, bool) or isinstance(dropout, bool):
            raise TypeError(f"{rank!r}, {alpha!r}, {dropout!r}")
        lora = LoRA(rank, alpha, dropout, tuple(map(re.escape, names)))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / CONFIG} is damaged: r, lora_alpha or lora_dropout is no number ({error})"
        ) from None
    rows = {len(weight) for name, weight in weights.items() if ".lora_A." in name and weight.ndim}
    if rows and rows != {rank}:
        raise ValueError(f"{folder / CONFIG} is damaged: r is {rank}, and the matrices have {sorted(rows)[0]} rows")
    added = add_lora(model, lora)
    if sorted(added) != names:
        lacking = sorted(set(names) - set(added))
        raise ValueError(f"{folder} is of another model: this one has no {lacking[0] if lacking else names[0]}")
    for name, layer in lora_layers(model).items():
        for ours, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
            source, target = weights.get(f"{_PREFIX}{name}.{theirs}.weight"), getattr(layer, ours)
            if source is None or source.shape != target.shape:
                shape = "missing" if source is None else f"{tuple(source.shape)}, not {tuple(target.shape)}"
                raise ValueError(f"{folder} is of another model: {theirs} of {name} is {shape}")
            target.data.copy_(source)
    return lora
