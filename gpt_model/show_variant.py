"""What a variant costs, for the demos at the ends of `gpt_gqa.py`, `gpt_mla.py` and `gpt_swa.py`."""

from __future__ import annotations

import torch

from gpt_model.generate import generate
from gpt_model.gpt import GPT, GPTConfig
from gpt_model.sampling import Sampling
from utils.readme_tables import markdown_table


def show_variant(variant: type[GPT], small: GPTConfig) -> None:
    """Prints parameters and cache bytes at the 124M shape beside plain GPT's, and a few tokens of a `small` model."""
    long = 32_768
    rows = []
    with torch.device("meta"):  # shapes without memory
        plain = GPT(GPTConfig(positions="rope", context_length=long))
        for model in (plain, variant(variant.config_class(context_length=long))):
            cache = [f"{model.cache_bytes(n) / 2**20:,.1f}" for n in (1024, 8192, long)]
            rows.append([type(model).__name__, f"{model.n_parameters:,}", *cache])
    print("At GPT-2's smallest shape, cache of one text in half precision:\n")
    print(markdown_table(["model", "parameters", "MiB at 1k tokens", "at 8k", "at 32k"], rows, "lrrrr"))
    torch.manual_seed(0)
    model = variant(small)
    ids = list(generate(model, [1, 2, 3], 12, Sampling(seed=0)))
    print(f"\nUntrained, with {model.n_parameters:,} parameters, it continues 1 2 3 with {' '.join(map(str, ids))}.")
    print("Train one: python pretraining/pretrain_simple.py --help, under --attention")
