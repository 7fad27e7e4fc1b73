"""Draws what a model looks at while it reads a sentence, and what it remembers of it.

python gpt_model/show_attention.py --model runs/demo/model --text "The assert statement" --layer 0 --head 1

Attention maps show where weight goes, not why, nor that it matters: a head may look at a token whose value is almost
zero.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from attention_mechanisms.attention_maps import all_heads, cache_growth, one_head, to_png
from gpt_model.gpt import GPT
from utils.devices import pick_device
from utils.errors import UserError, run_command
from utils.files import require_writable, write_bytes


@torch.inference_mode()
def attention_weights(model: GPT, ids: Tensor) -> list[Tensor]:
    """What every head of every layer looks at.

    The body of `GPT.forward`, with the plain path of attention in place of the fast one, which never has the weights.

    Args:
        ids: int64 (batch, tokens).

    Returns:
        A tensor (batch, n_head, tokens, tokens) for each layer.
    """
    if ids.shape[1] > model.config.context_length:
        raise ValueError(f"{ids.shape[1]} tokens are more than the model's context of {model.config.context_length}")
    was_training = model.training
    model.eval()  # a weight that was dropped out would be a hole in the map
    body, all_weights = model.transformer, []
    x = body.wte(ids)  # (batch, tokens, d_model)
    if body.wpe is not None:
        x = x + body.wpe(torch.arange(ids.shape[1], device=ids.device))
    for i, block in enumerate(body.blocks):
        y, weights = block.attn.reference(block.ln_1(x), values=body.values(i, ids))
        all_weights.append(weights)
        x = x + y
        x = x + block.mlp(block.ln_2(x))
    model.train(was_training)
    return all_weights


@dataclass(frozen=True)
class ShowAttention:
    """The flags of this script."""

    model: Path = Path("runs/demo/model")
    """A model folder."""
    text: str = "The assert statement raises AssertionError if the condition is false."
    """What the model reads."""
    layer: int = 0
    """The block whose heads are drawn, counted from 0."""
    head: int = 0
    """The head that is drawn large, counted from 0."""
    out: Path = Path("runs/attention")
    """The folder for the pictures."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""


def main(options: ShowAttention) -> None:
    from gpt_model.pretrained import load_model, load_tokenizer

    model, tokenizer = load_model(options.model, pick_device(options.device)), load_tokenizer(options.model)
    config = model.config
    for name, value, count in (("layer", options.layer, config.n_layer), ("head", options.head, config.n_head)):
        if not 0 <= value < count:
            raise UserError(f"--{name} {value}: this model has {count}, counted from 0")
    ids = tokenizer.encode_ordinary(options.text)
    if not 2 <= len(ids) <= min(config.context_length, 256):
        most = min(config.context_length, 256)
        raise UserError(f"--text has {len(ids)} tokens; a picture needs from 2 to {most}")
    weights = attention_weights(model, torch.tensor([ids], device=model.device))[options.layer][0]  # (n_head, T, T)
    tokens = [tokenizer.decode([i]) for i in ids]
    lengths = [config.context_length * i // 16 or 1 for i in range(1, 17)]
    held = [model.cache_bytes(n) for n in lengths]
    pictures = {
        f"layer-{options.layer}.png": all_heads(weights, f"{type(model).__name__}, layer {options.layer}"),
        f"layer-{options.layer}-head-{options.head}.png": one_head(
            weights[options.head], tokens, f"layer {options.layer}, head {options.head}"
        ),
        "cache.png": cache_growth({type(model).__name__: (lengths, held)}, "cache of one text, half precision"),
    }
    folder = require_writable(options.out)
    for name, figure in pictures.items():
        write_bytes(folder / name, to_png(figure))
        print(f"Wrote {folder / name}")
    another = (options.layer + 1) % config.n_layer
    command = ["python", "gpt_model/show_attention.py", "--model", str(options.model), "--layer", str(another)]
    print(f"Next: {shlex.join(command)}")


if __name__ == "__main__":
    run_command(main, ShowAttention)
