"""The model card: the README.md of a model folder, which says where a model comes from.

Weights alone tell nobody what they learned from, how, and how well (Mitchell et al. 2019, *Model Cards for Model
Reporting*). What this project knows of that is in `scratchbook.json`; here it is written out for people, under a few
lines of YAML by which the hub files the model. What it cannot know, it says: the license, and what the model is for.
"""

from __future__ import annotations

import json
from typing import Any

from gpt_model.gpt import GPT


def model_card(model: GPT, model_type: str, made_by: dict[str, Any]) -> str:
    """The card, in Markdown.

    Args:
        model_type: as in `config.json`.
        made_by: what `scratchbook.json` holds: data, command, metrics.
    """
    config = model.config
    library = "transformers" if model_type == "gpt2" else "llm-scratchbook"
    tags = "".join(f"- {tag}\n" for tag in dict.fromkeys((model_type, "llm-scratchbook")))
    front_matter = f"---\nlibrary_name: {library}\npipeline_tag: text-generation\ntags:\n{tags}---\n"
    command = _inline(made_by["command"]) if made_by.get("command") else "Not recorded."
    return f"""{front_matter}
<!-- Before you publish this: add a line `license: ...` above, and say below what the model is for. -->

# {type(model).__name__} of {model.n_parameters:,} parameters

{config.n_layer} blocks, d_model {config.d_model}, {config.n_head} heads, {config.positions} positions, a context of \
{config.context_length:,} tokens, {config.vocab_size:,} tokens in the vocabulary. Made with LLM Scratchbook; \
`scratchbook.json` has all that was noted.

## Data

{_facts(made_by.get("data"))}

## Command

    {command}

## Metrics

{_facts(made_by.get("metrics"))}

## Use

{_usage(model_type, type(model).__name__)}
"""


def _facts(value: Any) -> str:
    """A line for each entry of a dictionary; anything else as it is."""
    if not value:
        return "Not recorded."
    if not isinstance(value, dict):
        return _inline(value)
    return "\n".join(f"- {name}: {_inline(fact)}" for name, fact in value.items())


def _inline(value: Any) -> str:
    """A value on one line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return " ".join(text.split())


def _usage(model_type: str, class_name: str) -> str:
    """How to open it: a GPT-2 by any program that knows them, a variant by this project."""
    ours = 'from gpt_model import load_model, load_tokenizer\n\nmodel, tokenizer = load_model("."), load_tokenizer(".")'
    theirs = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")'
    )
    if model_type == "gpt2":
        return f"```python\n{theirs}\n```"
    return f"A {class_name} is no GPT-2: LLM Scratchbook opens it.\n\n```python\n{ours}\n```"
