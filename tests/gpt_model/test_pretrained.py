"""Model folders: what we write, `transformers` reads; what it writes, we read; damage is named."""

from __future__ import annotations

import json
import os

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from gpt_model import GPT, GPTConfig, load_model, load_tokenizer
from tests.gpt_model.test_gpt import tiny_gpt
from working_with_text_data.bytepair_enc import BytePairTokenizer

TEXT = "the cat's mat isn't 12345 日本 👩‍👩‍👧\n\n  the end"
TOKENIZER = BytePairTokenizer.train([TEXT] * 3, 280)
CONFIG = GPTConfig(vocab_size=TOKENIZER.n_vocab, context_length=32, n_layer=2, n_head=2, d_model=16)


@pytest.fixture
def folder(tmp_path):
    tiny_gpt(config=CONFIG).save_pretrained(tmp_path / "model", TOKENIZER, {"command": "test"})
    return tmp_path / "model"


def test_our_folder_is_a_hugging_face_folder(folder):
    model, theirs = tiny_gpt(config=CONFIG).eval(), transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(0, CONFIG.vocab_size, (2, 32))
    torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer(TEXT)["input_ids"] == TOKENIZER.encode(TEXT)
    assert tokenizer.decode(TOKENIZER.encode(TEXT)) == TEXT
    assert tokenizer.eos_token_id == theirs.config.eos_token_id == TOKENIZER.eot_token


def test_a_hugging_face_folder_is_ours(folder, tmp_path):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    ids = torch.randint(0, CONFIG.vocab_size, (1, 20))
    torch.testing.assert_close(ours(ids), theirs.eval()(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_folder_comes_back_exactly(folder):
    loaded = load_model(folder)
    assert isinstance(loaded, GPT)
    assert loaded.config == CONFIG
    assert not loaded.training
    for name, parameter in tiny_gpt(config=CONFIG).named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert load_tokenizer(folder).fingerprint == TOKENIZER.fingerprint
    assert json.loads((folder / "scratchbook.json").read_text(encoding="utf-8")) == {"command": "test"}
    assert GPT.from_pretrained(folder).config == CONFIG


def test_a_failed_save_leaves_the_old_model(folder, monkeypatch):
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gpt_model.pretrained.save_file", full)
    with pytest.raises(OSError, match="No space"):
        tiny_gpt(1, CONFIG).save_pretrained(folder, TOKENIZER)
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before
    assert os.listdir(folder.parent) == ["model"]


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def change_weights(folder, change):
    weights = {name: w.clone() for name, w in load_file(folder / "model.safetensors").items()}  # no longer mapped
    change(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"has no config\.json"),
        (lambda f: (f / "model.safetensors").unlink(), r"has no model\.safetensors"),
        (lambda f: (f / "config.json").write_text("{", encoding="utf-8"), "not a readable JSON"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "damaged or not safetensors"),
        (lambda f: change_config(f, model_type="llama"), "'llama' model"),
        (lambda f: change_config(f, activation_function="relu"), "activation_function is 'relu'"),
        (lambda f: change_config(f, scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is True"),
        (lambda f: change_config(f, n_embd=16.0), "n_embd is 16.0, of the wrong type"),
        (lambda f: change_config(f, n_head=3), "not divisible"),
        (lambda f: change_weights(f, lambda w: w.update({"lm_head.weight": torch.ones(3)})), "not the embedding"),
        (lambda f: change_config(f, n_layer="two"), "wrong type"),
        (lambda f: change_config(f, n_layer=3), r"transformer\.h\.2\.\S+ is missing; .* and 9 more"),
        (lambda f: change_config(f, n_positions=64), r"wpe\.weight has shape \(32, 16\), not \(64, 16\)"),
        (lambda f: change_weights(f, lambda w: w.update(extra=torch.zeros(1))), "extra is not part of this model"),
    ],
)
def test_damage_is_named_in_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_says_how_to_make_one(tmp_path):
    with pytest.raises(ValueError, match=r"no model folder at .*make demo"):
        load_model(tmp_path / "nowhere")
