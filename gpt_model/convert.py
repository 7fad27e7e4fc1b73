"""Turns a trained multi-head GPT into one with another attention, without beginning again.

python gpt_model/convert.py --model runs/demo/model --to grouped-query --n-kv-head 1 --out runs/demo-gqa/model

Most of what a model knows sits in its embeddings and MLPs, and those stay. Only keys and values are pressed together:

    grouped-query    the keys of a group of heads become their mean, and so do the values (Ainslie et al. 2023, 2.1)
    latent           W_k over W_v, (2 d_model, d_model), is cut down by its singular value decomposition to rank
                     d_latent: the best approximation of that rank (Eckart and Young 1936)
    sliding-window   nothing changes but what a token may see

With as many heads, with full rank, with a window as long as the text, nothing is lost and the logits are the same.
Below that the model is hurt, and further training for some hundred steps heals it: `pretrain_simple.py --from-model`.

Two biases vanish on the way to latents, exactly. That of the keys adds the same number, q · b_k, to all scores of a
query, which a softmax does not see. That of the values adds b_v to every weighted mean, so it moves through W_o into
the bias of the output.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gpt_model.gpt import GPT, GPTConfig
from gpt_model.gpt_gqa import GPTWithGQA, GPTWithGQAConfig
from gpt_model.gpt_mla import GPTWithMLA, GPTWithMLAConfig
from gpt_model.gpt_swa import GPTWithSWA, GPTWithSWAConfig
from utils.errors import UserError, refuse_foreign_flags, run_command


def to_grouped_query(model: GPT, n_kv_head: int) -> GPTWithGQA:
    """The model with the keys and values of `n_head / n_kv_head` heads at a time replaced by their mean.

    Raises:
        ValueError: `model` is no multi-head GPT, or `n_kv_head` does not divide its heads.
    """
    config = GPTWithGQAConfig(**_shape(model), n_kv_head=n_kv_head)
    weights = dict(model.state_dict())
    for prefix in _attention_prefixes(model):
        for kind in ("weight", "bias") if config.bias else ("weight",):
            name = f"{prefix}.c_attn.{kind}"
            q, k, v = weights[name].chunk(3)  # each (d_model, d_model) or, of the bias, (d_model,)
            pooled = [_mean_of_groups(heads, config.n_head, n_kv_head) for heads in (k, v)]
            weights[name] = torch.cat([q, *pooled])
    for name in weights:
        if ".value_embeddings." in name:  # added to the values, so pooled like them
            weights[name] = _mean_of_groups(weights[name].T, config.n_head, n_kv_head).T
    variant = GPTWithGQA(config)
    _fill(variant, weights, model)
    return variant


def _mean_of_groups(heads: Tensor, n_head: int, n_kv_head: int) -> Tensor:
    """(n_head * head_dim, …) to (n_kv_head * head_dim, …): neighbouring heads averaged."""
    grouped = heads.unflatten(0, (n_kv_head, n_head // n_kv_head, -1))  # (n_kv_head, group, head_dim, …)
    return grouped.mean(dim=1).flatten(0, 1)


def to_latent(model: GPT, d_latent: int) -> GPTWithMLA:
    """The model with keys and values made from a latent vector of `d_latent` numbers.

    Raises:
        ValueError: `model` is no multi-head GPT with learned positions, `d_latent` is above its width, or the model has
            what latent attention cannot have (`qk_norm`, `value_embeddings`).
    """
    if model.config.positions != "learned":
        raise ValueError(
            "a model with rotary positions cannot become latent: its keys are turned after they are made, and so are "
            "no product of one matrix with a latent; take one with learned positions"
        )
    config = GPTWithMLAConfig(**_shape(model), d_latent=d_latent, latent_norm=False)
    weights = dict(model.state_dict())
    d_model = config.d_model
    for prefix in _attention_prefixes(model):
        q, k, v = weights.pop(f"{prefix}.c_attn.weight").chunk(3)  # each (d_model, d_model)
        left, singular, right = _svd(k, v)  # (2 d_model, d_model), (d_model,), (d_model, d_model)
        root = singular[:d_latent].sqrt()  # half to each side, so that both learn at one pace
        up = (left[:, :d_latent] * root).to(k.dtype)  # (2 d_model, d_latent)
        weights |= {
            f"{prefix}.q_up.weight": q,
            f"{prefix}.kv_down.weight": (root[:, None] * right[:d_latent]).to(k.dtype),  # (d_latent, d_model)
            f"{prefix}.k_up.weight": up[:d_model],
            f"{prefix}.v_up.weight": up[d_model:],
        }
        if config.bias:
            q_bias, _, v_bias = weights.pop(f"{prefix}.c_attn.bias").chunk(3)
            weights[f"{prefix}.q_up.bias"] = q_bias
            weights[f"{prefix}.c_proj.bias"] = (
                weights[f"{prefix}.c_proj.bias"] + weights[f"{prefix}.c_proj.weight"] @ v_bias
            )
    variant = GPTWithMLA(config)
    _fill(variant, weights, model)
    return variant


def _svd(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The decomposition of W_k over W_v, in float64: U (2 d, d), S (d,), Vᵀ (d, d)."""
    left, singular, right = torch.linalg.svd(torch.cat([k, v]).double(), full_matrices=False)
    return left, singular, right


def rank_for_energy(model: GPT, energy: float) -> int:
    """The smallest d_latent at which every layer keeps this share of the squared singular values of W_k over W_v.

    Raises:
        ValueError: `model` is no multi-head GPT, or `energy` is not above 0 and at most 1.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy must be above 0 and at most 1, got {energy}")
    _shape(model)
    ranks = []
    for prefix in _attention_prefixes(model):
        _, k, v = model.state_dict()[f"{prefix}.c_attn.weight"].chunk(3)
        squares = _svd(k, v)[1].square()
        kept = squares.cumsum(0) / squares.sum()  # of the largest 1, 2, 3 …
        ranks.append(min(int((kept < energy - 1e-12).sum()) + 1, len(kept)))
    return max(ranks)


def to_sliding_window(model: GPT, window: int, n_sink: int = 0, global_every: int = 0) -> GPTWithSWA:
    """The model with the same weights, whose tokens see the last `window` tokens.

    Raises:
        ValueError: `model` is no multi-head GPT, or the window is not at least 1.
    """
    config = GPTWithSWAConfig(**_shape(model), window=window, n_sink=n_sink, global_every=global_every)
    variant = GPTWithSWA(config)
    _fill(variant, model.state_dict(), model)
    return variant


def _shape(model: GPT) -> dict[str, Any]:
    """The fields that every variant has in common with `model`."""
    if type(model) is not GPT:
        raise ValueError(f"only a multi-head GPT can be converted, not a {type(model).__name__}")
    config = asdict(model.config)
    return {field.name: config[field.name] for field in fields(GPTConfig)}


def _attention_prefixes(model: GPT) -> list[str]:
    return [f"transformer.h.{i}.attn" for i in range(model.config.n_layer)]


def _fill(variant: GPT, weights: dict[str, Tensor], model: GPT) -> None:
    """Puts `weights` into `variant`, which then stands where `model` stands."""
    variant.to(device=model.device, dtype=model.lm_head.weight.dtype).train(model.training)
    variant.load_state_dict(weights)


@dataclass(frozen=True)
class Convert:
    """The flags of this script."""

    model: Path = Path("runs/demo/model")
    """A model folder with a multi-head GPT."""
    to: Literal["grouped-query", "latent", "sliding-window"] = "grouped-query"
    """The attention to end with."""
    out: Path = Path("runs/converted/model")
    """The model folder to write."""
    n_kv_head: int = 1
    """Of grouped-query: heads of keys and values; divides the model's heads."""
    d_latent: int | None = None
    """Of latent: numbers in the latent vector; chosen by --energy if not given."""
    energy: float = 0.9
    """Of latent: the share of the squared singular values of keys and values to keep in every layer."""
    window: int = 64
    """Of sliding-window: tokens that a token sees, itself among them."""
    n_sink: int = 0
    """Of sliding-window: tokens at the beginning that every token sees all the same."""
    global_every: int = 0
    """Of sliding-window: every so many blocks, one sees everything; 0 for none."""


def main(options: Convert) -> None:
    from gpt_model.pretrained import load_model, load_tokenizer

    if options.out.resolve() == options.model.resolve():
        raise UserError("--out is the model itself: choose another folder")
    if options.model.resolve() in options.out.resolve().parents:
        raise UserError("--out is inside the model's folder: choose another folder")
    belongs = {
        "grouped-query": ("n_kv_head",),
        "latent": ("d_latent", "energy"),
        "sliding-window": ("window", "n_sink", "global_every"),
    }
    refuse_foreign_flags(options, "--to", options.to, belongs)
    model = load_model(options.model)
    variant: GPT
    if options.to == "grouped-query":
        variant = to_grouped_query(model, options.n_kv_head)
    elif options.to == "latent":
        d_latent = rank_for_energy(model, options.energy) if options.d_latent is None else options.d_latent
        variant = to_latent(model, d_latent)
        print(f"d_latent = {variant.config.d_latent}")  # type: ignore[attr-defined]
    else:
        variant = to_sliding_window(model, options.window, options.n_sink, options.global_every)
    made_by = {"command": "gpt_model/convert.py", "options": {k: str(v) for k, v in asdict(options).items()}}
    variant.save_pretrained(options.out, load_tokenizer(options.model), made_by)
    length = model.config.context_length
    print(
        f"{model.n_parameters:,} parameters became {variant.n_parameters:,}; the cache of {length:,} tokens, ", end=""
    )
    print(f"{model.cache_bytes(length):,} bytes, became {variant.cache_bytes(length):,} (half precision)")
    print(f"Wrote {options.out}")
    healed = options.out.parent if options.out.name == "model" else options.out
    folder, run = shlex.quote(str(options.out)), shlex.quote(f"{healed}-healed")
    # What has lost much needs the larger rate, and what has lost little is harmed by it: see the README's table.
    rates = (
        "0.01 --other-learning-rate 0.0025" if options.to == "grouped-query" else "0.002 --other-learning-rate 0.0005"
    )
    command = f"python pretraining/pretrain_simple.py --from-model {folder} --run {run} --steps 300"
    print(f"Next, to heal what it lost: {command} --learning-rate {rates}")


if __name__ == "__main__":
    run_command(main, Convert)
