"""LoRA against `peft`: the same numbers from the same adapters, in both directions, forward and backward."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

from finetuning.lora import (
    LoRA,
    LoRALinear,
    add_lora,
    load_adapter,
    lora_layers,
    merge_lora,
    merged_weights,
    save_adapter,
)
from gpt_model import GPT, GPTConfig, GPTWithMLA, GPTWithMLAConfig
from utils.files import read_json, write_json

# peft asks transformers for something that it will drop.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
TINY = GPTConfig(vocab_size=40, context_length=12, n_layer=2, n_head=2, d_model=16)


def with_adapters(seed=0):
    torch.manual_seed(seed)
    model = GPT(TINY)
    add_lora(model, LoRA(rank=3, alpha=6))
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_b, std=0.3)  # zero at first, which would hide everything
    return model


def test_at_first_nothing_is_changed_and_only_adapters_learn():
    torch.manual_seed(0)
    model, ids = GPT(TINY), torch.randint(0, 40, (2, 9))
    before = model(ids)
    names = add_lora(model, LoRA(rank=3))
    assert len(names) == 2 * 4
    assert torch.equal(model(ids), before)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {f"{name}.lora_{x}" for name in names for x in "ab"}
    assert sum(p.numel() for n, p in model.named_parameters() if n in learning) == 2 * 3 * (16 + 48 + 32 + 80 + 80)
    model(ids).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_peft_reads_what_we_save_and_computes_the_same(tmp_path):
    model, ids = with_adapters(), torch.randint(0, 40, (2, 9))
    plain = copy.deepcopy(model)
    for layer in lora_layers(plain).values():
        nn.init.zeros_(layer.lora_b)
    merge_lora(plain)  # adds nothing: the base
    plain.save_pretrained(tmp_path / "base")
    save_adapter(model, tmp_path / "adapter", LoRA(rank=3, alpha=6), str(tmp_path / "base"))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True).eval()
    torch.testing.assert_close(model(ids), theirs(ids).logits)
    assert (theirs(ids).logits - plain(ids)).abs().max() > 0.1
    model(ids).square().sum().backward()
    theirs(ids).logits.square().sum().backward()
    for name, layer in lora_layers(model).items():
        other: Any = theirs.get_submodule(f"base_model.model.{name}")
        for ours, its in ((layer.lora_a, other.lora_A), (layer.lora_b, other.lora_B)):
            torch.testing.assert_close(ours.grad, its["default"].weight.grad, rtol=1e-4, atol=1e-5)


def test_we_read_what_peft_saves(tmp_path):
    torch.manual_seed(0)
    model, ids = GPT(TINY), torch.randint(0, 40, (2, 9))
    model.save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(
        r=2, lora_alpha=5, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, init_lora_weights=False
    )
    theirs = peft.get_peft_model(base, config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    lora = load_adapter(model, tmp_path / "adapter")
    assert (lora.rank, lora.alpha, len(lora_layers(model))) == (2, 5, 4)
    torch.testing.assert_close(model(ids), theirs(ids).logits)


def test_merging_changes_nothing_and_leaves_a_plain_model(tmp_path):
    model, ids = with_adapters(), torch.randint(0, 40, (2, 9))
    before = model(ids)
    plain = GPT(TINY)
    plain.load_state_dict(merged_weights(model))
    torch.testing.assert_close(plain(ids), before)
    merge_lora(model)
    torch.testing.assert_close(model(ids), before)
    assert not lora_layers(model)
    assert {type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)} == {nn.Linear}
    assert all(p.requires_grad for p in model.parameters())
    model.save_pretrained(tmp_path / "model")
    assert model.lm_head.weight is model.transformer.wte.weight


def test_save_and_load_is_the_same_model(tmp_path):
    model, ids = with_adapters(), torch.randint(0, 40, (2, 9))
    save_adapter(model, tmp_path / "adapter", LoRA(rank=3, alpha=6), "base")
    fresh = with_adapters(seed=0)
    merge_lora_away(fresh)
    load_adapter(fresh, tmp_path / "adapter")
    torch.testing.assert_close(fresh(ids), model(ids))


def merge_lora_away(model):
    """Leaves the base alone."""
    for layer in lora_layers(model).values():
        nn.init.zeros_(layer.lora_b)
    merge_lora(model)


def test_dropout_is_of_the_adapter_alone():
    layer = LoRALinear(nn.Linear(8, 8), LoRA(rank=2, dropout=0.5))
    x = torch.randn(4, 8)
    plain = nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), plain)  # the adapter adds zeros
    nn.init.normal_(layer.lora_b)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("c_attn",), 2),
        ((r"h\.1\.attn\.c_attn",), 1),
        (("mlp.c_proj", "attn.c_proj"), 4),
        (("c_proj",), 4),
        (("transformer.h.0.mlp.c_fc",), 1),
    ],
)
def test_targets_are_ends_of_names_or_regular_expressions(targets, expected):
    assert len(add_lora(GPT(TINY), LoRA(targets=targets))) == expected


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="this model has c_attn"):
        add_lora(GPT(TINY), LoRA(targets=("q_proj",)))
    with pytest.raises(ValueError, match="adapter already"):
        add_lora(with_adapters(), LoRA())
    latent = GPTWithMLA(GPTWithMLAConfig(vocab_size=40, context_length=12, n_layer=1, n_head=2, d_model=16, d_latent=8))
    with pytest.raises(ValueError, match="read elsewhere"):
        add_lora(latent, LoRA(targets=("k_up",)))
    for wrong in ({"rank": 0}, {"alpha": 0.0}, {"alpha": float("nan")}, {"dropout": 1.0}, {"targets": ("(",)}):
        with pytest.raises(ValueError, match=r"rank|alpha|dropout|regular expression"):
            LoRA(**wrong)
    with pytest.raises(ValueError, match="holds no adapter"):
        load_adapter(GPT(TINY), tmp_path)
    save_adapter(with_adapters(), tmp_path / "adapter", LoRA(rank=3), "base")
    other = GPT(GPTConfig(vocab_size=40, context_length=12, n_layer=1, n_head=2, d_model=16))
    with pytest.raises(ValueError, match="of another model"):
        load_adapter(other, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="damaged"):
        load_adapter(GPT(TINY), tmp_path / "adapter")


def test_to_look_at_merged_weights_changes_nothing():
    """A run saves its model and goes on: what was frozen must stay so, or its gradients count in the norm."""
    model = with_adapters()
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(".lora_" in name for name in learning)
    merged_weights(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == learning


def test_adapters_of_a_model_that_answers_have_their_dropout_off():
    model = GPT(GPTConfig(vocab_size=50, context_length=16, n_layer=1, n_head=2, d_model=16)).eval()
    add_lora(model, LoRA(dropout=0.5))
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("damage", [{"r": None}, {"r": "8"}, {"lora_alpha": None}, None,
                                    {"r": 3.0}, {"r": True}, {"r": 10**12}, {"lora_alpha": True}])  # fmt: skip
def test_damaged_settings_of_an_adapter_are_a_clear_line(tmp_path, damage):
    save_adapter(with_adapters(), tmp_path / "adapter", LoRA(rank=3, alpha=6), "base")
    path = tmp_path / "adapter" / "adapter_config.json"
    write_json(path, [] if damage is None else read_json(path) | damage)
    model = with_adapters(seed=0)
    merge_lora_away(model)
    with pytest.raises(ValueError, match=r"adapter_config\.json is damaged"):
        load_adapter(model, tmp_path / "adapter")
