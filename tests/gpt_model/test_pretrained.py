"""Model folders: what we write, `transformers` reads; what it writes, we read; damage is named."""

from __future__ import annotations

import json
import os
import pickle
import sys
from dataclasses import replace
from functools import partial

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from gpt_model import GPT, GPTConfig, GPTWithSWA, GPTWithSWAConfig, load_model, load_tokenizer
from gpt_model.gpt import GPT2_124M, GPT2_355M, GPT2_774M, GPT2_1558M
from gpt_model.pretrained import from_huggingface, origin
from tests.gpt_model.test_gpt import tiny_gpt
from utils.device_benchmarking import in_a_fresh_process, peak_bytes
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


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def put_nan(weights):
    weights["transformer.h.1.mlp.c_fc.bias"][3] = torch.nan


def put_integers(weights):
    weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"].to(torch.int8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"has no config\.json"),
        (lambda f: (f / "model.safetensors").unlink(), r"has no model\.safetensors"),
        (lambda f: (f / "config.json").write_text("{", encoding="utf-8"), "not a readable JSON"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "damaged or not safetensors"),
        (lambda f: truncate(f / "model.safetensors"), "damaged or not safetensors"),
        (lambda f: change_weights(f, put_nan), r"transformer\.h\.1\.mlp\.c_fc\.bias holds NaN or infinite numbers"),
        (lambda f: change_weights(f, put_integers), r"wpe\.weight would be torch\.int8: weights are float32"),
        (lambda f: (f / "config.json").write_text("[]", encoding="utf-8"), "describes a None model"),
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


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "~/nowhere", "runs/nowhere", "one/two/three"])
def test_what_looks_like_a_path_is_never_asked_of_the_hub(name):
    with pytest.raises(ValueError, match=r"no model folder at .*make demo.* such as gpt2"):
        load_model(name)


def test_a_folder_wins_over_the_hub_model_of_its_name(folder, monkeypatch):
    folder.rename(folder.with_name("gpt2"))
    monkeypatch.chdir(folder.parent)
    assert load_model("gpt2").config == CONFIG
    assert origin("gpt2") == {"model": "gpt2", "made_by": {"command": "test"}}
    with pytest.raises(ValueError, match="gpt2 is a folder, which has no revision 'main'"):
        load_model("gpt2", revision="main")


@pytest.mark.parametrize(
    ("preset", "shape"),
    [
        (GPT2_124M, {}),  # whole
        (replace(GPT2_355M, n_layer=2, vocab_size=999), {"n_embd": 1024, "n_head": 16}),
        (replace(GPT2_774M, n_layer=2, vocab_size=999), {"n_embd": 1280, "n_head": 20}),
        (replace(GPT2_1558M, n_layer=2, vocab_size=999), {"n_embd": 1600, "n_head": 25}),
    ],
    ids=["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"],
)
@torch.inference_mode()
def test_logits_equal_transformers_at_the_published_sizes(preset, shape):
    if shape:
        shape = {**shape, "n_layer": 2, "vocab_size": 999, "bos_token_id": None, "eos_token_id": None}
    with torch.device("meta"):
        ours, theirs = GPT(preset), transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).eval()
    torch.manual_seed(0)
    weights = {name: 0.1 * torch.randn(w.shape) for name, w in theirs.state_dict().items() if name != "lm_head.weight"}
    theirs.load_state_dict(weights, strict=False, assign=True)
    theirs.tie_weights()
    from_huggingface(ours, {name.removeprefix("transformer."): w for name, w in weights.items()})
    ids = torch.randint(0, preset.vocab_size, (1, 12))
    expected = theirs(ids).logits
    assert (ours.eval()(ids) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_tensors_go_to_transformers_and_back_bit_by_bit(folder, tmp_path):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_model(tmp_path / "theirs")
    for name, parameter in tiny_gpt(config=CONFIG).named_parameters():
        assert torch.equal(again.get_parameter(name), parameter)
    again.save_pretrained(tmp_path / "ours", TOKENIZER)
    first, last = load_file(folder / "model.safetensors"), load_file(tmp_path / "ours" / "model.safetensors")
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)


def test_old_files_with_masks_and_bare_names_open_in_any_number_format(folder):
    def age(weights):
        for name in list(weights):
            weights[name.removeprefix("transformer.")] = weights.pop(name).half()
        for i in range(CONFIG.n_layer):
            weights[f"h.{i}.attn.bias"] = torch.ones(32, 32).tril().view(1, 1, 32, 32)
            weights[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        weights["lm_head.weight"] = weights["wte.weight"].clone()

    change_weights(folder, age)
    change_config(folder, n_ctx=32, summary_type="cls_index", task_specific_params={"text-generation": {}})
    for dtype, expected in ((None, torch.float16), (torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)):
        loaded = load_model(folder, dtype=dtype)
        for name, parameter in tiny_gpt(config=CONFIG).named_parameters():
            assert torch.equal(loaded.get_parameter(name), parameter.half().to(expected))
            assert loaded.get_parameter(name).is_contiguous()
    with pytest.raises(ValueError, match=r"would be torch\.int8"):
        load_model(folder, dtype=torch.int8)


def test_numbers_too_large_for_the_format_are_refused(folder):
    change_weights(folder, lambda w: w["transformer.ln_f.bias"].fill_(1e6))
    assert load_model(folder, dtype=torch.bfloat16).get_parameter("transformer.ln_f.bias").min() > 9e5
    with pytest.raises(ValueError, match=r"ln_f\.bias holds NaN .*, or too large for torch\.float16"):
        load_model(folder, dtype=torch.float16)


def test_a_loaded_model_trains_and_draws_no_random_numbers(folder):
    torch.manual_seed(1)
    loaded = load_model(folder).train()
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    loaded(torch.tensor([[1, 2, 3]])).logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loaded.parameters())
    assert len(list(loaded.parameters())) == len(list(tiny_gpt(config=CONFIG).parameters()))  # the embedding once


def test_large_weights_are_cut_into_files_that_transformers_opens(folder, tmp_path):
    model, limit = tiny_gpt(config=CONFIG).eval(), 10_000
    model.save_pretrained(folder, TOKENIZER, max_shard_bytes=limit)  # in place of one file
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    for file in files:
        weights = load_file(folder / file)
        assert sum(w.nbytes for w in weights.values()) <= limit or len(weights) == 1
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in model.parameters())
    ids = torch.randint(0, CONFIG.vocab_size, (1, 20))
    assert torch.equal(load_model(folder)(ids), model(ids))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-5, rtol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=limit)
    assert torch.equal(load_model(tmp_path / "theirs")(ids), model(ids))
    (folder / files[1]).unlink()
    with pytest.raises(ValueError, match=rf"index\.json names {files[1]}, and .* has no such file"):
        load_model(folder)
    for places in (None, {"a": 1}, {"a": "../config.json"}):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")
        with pytest.raises(ValueError, match=r"weight_map is missing|has no such file"):
            load_model(folder)
    model.save_pretrained(folder, TOKENIZER)  # and one file in place of many
    assert [path.name for path in folder.glob("model*")] == ["model.safetensors"]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("opened",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_unless_it_is_asked_for(folder, monkeypatch, zipped):
    monkeypatch.chdir(folder.parent)
    weights = load_file(folder / "model.safetensors")
    expected = load_model(folder)(torch.tensor([[1, 2, 3]]))
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)  # before 2020, without
    with pytest.raises(ValueError, match=r"has no model\.safetensors.* allow_pickle=True \(--allow-pickle\)"):
        load_model(folder)
    assert torch.equal(GPT.from_pretrained(folder, allow_pickle=True)(torch.tensor([[1, 2, 3]])), expected)
    torch.save({"transformer.wte.weight": Evil()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="damaged, or holds more than tensors and is refused") as caught:
        load_model(folder, allow_pickle=True)
    assert "\n" not in str(caught.value)
    assert not (folder.parent / "opened").exists()
    for content in (b"", b"x" * 100, pickle.dumps([1, 2], protocol=2)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"pytorch_model\.bin (is damaged|holds no dictionary)"):
            load_model(folder, allow_pickle=True)


@pytest.mark.parametrize("rows", [TOKENIZER.n_vocab - 1, TOKENIZER.n_vocab + 1, 4096])
def test_a_tokenizer_of_another_size_is_refused(rows, folder, tmp_path):
    with pytest.raises(ValueError, match=rf"has {TOKENIZER.n_vocab} tokens and the model {rows:,}: they do not belong"):
        GPT(replace(CONFIG, vocab_size=rows)).save_pretrained(tmp_path / "other", TOKENIZER)
    assert not (tmp_path / "other").exists()
    change_config(folder, vocab_size=rows)
    with pytest.raises(ValueError, match=rf"has {TOKENIZER.n_vocab} tokens and the model {rows:,}"):
        load_tokenizer(folder)


def test_an_embedding_may_be_padded_to_a_round_number(tmp_path):
    GPT(replace(CONFIG, vocab_size=320)).save_pretrained(tmp_path / "padded", TOKENIZER)
    assert load_tokenizer(tmp_path / "padded").n_vocab == TOKENIZER.n_vocab


def test_other_programs_are_told_what_they_ask_for(tmp_path):
    tiny_gpt(config=CONFIG).to(torch.bfloat16).save_pretrained(tmp_path / "model", TOKENIZER)
    content = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert content["n_ctx"] == 32  # llama.cpp's converter
    config = transformers.AutoConfig.from_pretrained(tmp_path / "model")  # vLLM's way
    assert (config.hidden_size, config.max_position_embeddings, config.dtype) == (16, 32, torch.bfloat16)
    ends = transformers.GenerationConfig.from_pretrained(tmp_path / "model")
    assert ends.bos_token_id == ends.eos_token_id == TOKENIZER.eot_token
    tiny_gpt(config=CONFIG).save_pretrained(tmp_path / "bare")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "bare").eos_token_id is None


@pytest.mark.parametrize("is_variant", [False, True])
def test_the_card_tells_data_command_and_metrics(is_variant, tmp_path):
    made_by = {
        "command": "python pretraining/pretrain_simple.py --run 'runs/a b'",
        "data": {"corpus": "tales: 1 to 200", "options": {"seed": 3}},
        "metrics": {"bits_per_byte": 2.125, "finished": True},
    }
    swa = GPTWithSWAConfig(**(vars(CONFIG) | {"positions": "rope", "window": 8}))
    model = GPTWithSWA(swa) if is_variant else GPT(CONFIG)
    model.save_pretrained(tmp_path / "model", TOKENIZER, made_by)
    kind = "scratchbook_gpt_swa" if is_variant else "gpt2"
    front_matter = huggingface_hub.metadata_load(tmp_path / "model" / "README.md")
    assert front_matter == {
        "library_name": "llm-scratchbook" if is_variant else "transformers",
        "pipeline_tag": "text-generation",
        "tags": [kind, "llm-scratchbook"],
    }
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    for told in (
        f"{model.n_parameters:,} parameters",
        "\n- corpus: tales: 1 to 200\n",
        '\n- options: {"seed": 3}\n',
        "\n    python pretraining/pretrain_simple.py --run 'runs/a b'\n",
        "\n- bits_per_byte: 2.125\n- finished: true\n",
        "load_model" if is_variant else "AutoModelForCausalLM",
    ):
        assert told in card
    GPT(CONFIG).save_pretrained(tmp_path / "unknown")
    assert (tmp_path / "unknown" / "README.md").read_text(encoding="utf-8").count("Not recorded.") == 3


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells the most memory that a process has held")
def test_loading_holds_one_copy_of_the_weights(tmp_path):
    model = GPT(GPTConfig(vocab_size=256, context_length=64, n_layer=4, n_head=12, d_model=768))
    size = sum(p.nbytes for p in model.parameters())
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_bytes=size // 8)
    # The pages of a mapped file count until it is let go: all of one file, and of many one at a time.
    for folder, dtype, copies in (("one", torch.bfloat16, 1 + 0.5), ("many", torch.float32, 1 + 1 / 8)):
        load = partial(load_model, tmp_path / folder, "cpu", dtype)
        peak = in_a_fresh_process(peak_bytes, load, torch.device("cpu"))
        assert 0.4 < peak / size < copies + 0.3, (folder, peak / size)
