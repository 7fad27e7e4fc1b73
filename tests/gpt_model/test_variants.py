"""The variants on the shared body: caches, folders, conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from attention_mechanisms import pad_left
from gpt_model import (
    GPT,
    GPTConfig,
    GPTWithGQA,
    GPTWithGQAConfig,
    GPTWithMLA,
    GPTWithMLAConfig,
    GPTWithSWA,
    GPTWithSWAConfig,
    Sampling,
    generate,
    load_model,
)
from gpt_model.convert import Convert, rank_for_energy, to_grouped_query, to_latent, to_sliding_window
from gpt_model.convert import main as convert
from gpt_model.gpt import GPT2_124M, GPT2_355M, GPT2_774M, GPT2_1558M
from gpt_model.pretrained import model_type
from utils.errors import UserError

SHAPE: dict[str, Any] = {"vocab_size": 61, "context_length": 24, "n_layer": 2, "n_head": 4, "d_model": 32}
MODERN: dict[str, Any] = {
    "norm": "rmsnorm",
    "activation": "relu2",
    "bias": False,
    "qk_norm": True,
    "zero_projections": True,
    "logit_softcap": 15.0,
    "value_embeddings": True,
    "tie_embeddings": False,
}
MODERN_MLA = MODERN | {"qk_norm": False, "value_embeddings": False}
MAKERS = {
    "learned": lambda: GPT(GPTConfig(**SHAPE)),
    "rope": lambda: GPT(GPTConfig(**SHAPE, positions="rope", d_ff=48)),
    "gqa": lambda: GPTWithGQA(GPTWithGQAConfig(**SHAPE, n_kv_head=2)),
    "gqa, learned": lambda: GPTWithGQA(GPTWithGQAConfig(**SHAPE, n_kv_head=1, positions="learned")),
    "mla": lambda: GPTWithMLA(GPTWithMLAConfig(**SHAPE, d_latent=12, d_rope=4, d_query_latent=20)),
    "mla, learned": lambda: GPTWithMLA(GPTWithMLAConfig(**SHAPE, d_latent=12, positions="learned")),
    "mla, modern": lambda: GPTWithMLA(GPTWithMLAConfig(**SHAPE, d_latent=12, d_rope=4, **MODERN_MLA)),
    "modern": lambda: GPT(GPTConfig(**SHAPE, positions="rope", **MODERN)),
    "gqa, modern": lambda: GPTWithGQA(GPTWithGQAConfig(**SHAPE, n_kv_head=2, **MODERN)),
    "swa, modern": lambda: GPTWithSWA(GPTWithSWAConfig(**SHAPE, window=5, n_sink=2, n_kv_head=2, **MODERN)),
    "swa": lambda: GPTWithSWA(GPTWithSWAConfig(**SHAPE, window=5, n_sink=2, global_every=2)),
    "swa, learned": lambda: GPTWithSWA(GPTWithSWAConfig(**SHAPE, window=3, n_kv_head=2, positions="learned")),
}
every_variant = pytest.mark.parametrize("name", MAKERS)


def lively(name, seed=0):
    """A model of which no part is at its initial zeros and ones, which would hide a mistake in it."""
    torch.manual_seed(seed)
    model = MAKERS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@every_variant
@settings(max_examples=10, deadline=None)
@given(chunks=st.lists(st.integers(1, 9), min_size=1, max_size=6).filter(lambda chunks: sum(chunks) <= 24))
def test_any_chunking_through_the_cache_equals_one_pass(name, chunks):
    model = lively(name)
    ids = torch.randint(0, 61, (2, sum(chunks)))
    cache = model.make_cache(2)
    parts = [model(part, cache) for part in ids.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), atol=1e-5, rtol=1e-5)


@every_variant
@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 15), min_size=1, max_size=4), more=st.integers(1, 9), cut=st.integers(1, 15))
def test_rows_of_different_lengths_equal_each_row_alone(name, lengths, more, cut):
    model = lively(name)
    rows = [torch.randint(0, 61, (n + more,)).tolist() for n in lengths]
    ids, padding = pad_left([row[:n] for row, n in zip(rows, lengths, strict=True)])
    cache = model.make_cache(len(rows), padding=padding)
    logits = [model(part, cache) for part in ids.split(cut, dim=1)]
    logits += [
        model(torch.tensor([[row[n + i]] for row, n in zip(rows, lengths, strict=True)]), cache) for i in range(more)
    ]
    together = torch.cat(logits, dim=1)
    for i, (row, n_pad) in enumerate(zip(rows, padding.tolist(), strict=True)):
        torch.testing.assert_close(together[i, n_pad:], model(torch.tensor([row]))[0], atol=1e-5, rtol=1e-5)


@every_variant
def test_a_model_folder_gives_back_the_same_model(name, tmp_path):
    model = lively(name)
    model.save_pretrained(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert (type(again), again.config) == (type(model), model.config)
    ids = torch.randint(0, 61, (1, 24))
    assert torch.equal(again(ids), model(ids))
    assert type(model).from_pretrained(tmp_path / "model").config == model.config


def test_only_gpt_2_calls_itself_gpt2():
    assert {name: model_type(lively(name)) for name in MAKERS if "," not in name} == {
        "learned": "gpt2",
        "rope": "scratchbook_gpt",
        "modern": "scratchbook_gpt",
        "gqa": "scratchbook_gpt_gqa",
        "mla": "scratchbook_gpt_mla",
        "swa": "scratchbook_gpt_swa",
    }


@pytest.mark.parametrize("field", MODERN)
def test_no_change_alone_is_a_gpt_2_and_each_comes_back(field, tmp_path):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE, **{field: MODERN[field]})).eval()
    assert model_type(model) == "scratchbook_gpt"
    model.save_pretrained(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.config == model.config
    ids = torch.randint(0, 61, (1, 24))
    assert torch.equal(again(ids), model(ids))


def test_a_folder_from_before_these_fields_is_as_their_defaults_say(tmp_path):
    model = lively("gqa")
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in MODERN}))
    assert load_model(tmp_path / "model").config == model.config


def test_an_output_matrix_of_its_own_must_be_in_the_folder(tmp_path):
    model = lively("modern")
    model.save_pretrained(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    head = weights.pop("lm_head.weight").clone()
    assert torch.equal(head, model.lm_head.weight) and not torch.equal(head, model.transformer.wte.weight)
    save_file({name: w.clone() for name, w in weights.items()}, tmp_path / "model" / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head\.weight is missing"):
        load_model(tmp_path / "model")


@every_variant
def test_documents_of_a_packed_window_equal_each_alone(name):
    model = lively(name)
    if model.transformer.wpe is not None:
        model.transformer.wpe.weight.data.zero_()  # places run on through the window: only distances are the same
    lengths = [7, 1, 12, 4]
    ids = torch.randint(0, 61, (2, 24))
    documents = torch.repeat_interleave(torch.tensor([5, 3, 9, 5]), torch.tensor(lengths)).expand(2, -1)
    documents = torch.stack([documents[0], torch.zeros(24, dtype=torch.long)])  # the second row is one document
    documents[0, -4:] = 2
    packed = model(ids, documents=documents)
    alone = torch.cat([model(part) for part in ids[:1].split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed[:1], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed[1:], model(ids[1:]), atol=1e-5, rtol=1e-5)


def test_documents_need_a_number_a_token_and_no_cache():
    model, ids = lively("modern"), torch.zeros(2, 5, dtype=torch.long)
    with pytest.raises(ValueError, match=r"documents of shape \(5,\) for ids of \(2, 5\)"):
        model(ids, documents=ids[0])
    with pytest.raises(ValueError, match="and no cache"):
        model(ids, model.make_cache(2), documents=ids)


def test_another_width_of_the_mlp_opens_in_transformers(tmp_path):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE, d_ff=50)).eval()
    model.save_pretrained(tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.randint(0, 61, (1, 24))
    torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("change", [{"n_kv_head": "2"}, {"positions": "alibi"}, {"n_kv_head": 3}, {"d_ff": 1.5}])
def test_a_damaged_config_is_refused_with_its_path(change, tmp_path):
    lively("gqa").save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"config\.json: "):
        load_model(tmp_path / "model")


@every_variant
def test_the_cache_holds_what_the_formula_says(name):
    model = lively(name)
    assert model.make_cache(1, 20).nbytes == model.cache_bytes(20, bytes_per_number=4)


@every_variant
def test_half_precision_stays_half_precision(name):
    model = lively(name).bfloat16()
    cache = model.make_cache(1)
    ids = torch.randint(0, 61, (1, 9))
    logits = torch.cat([model(ids[:, :6], cache), model(ids[:, 6:7], cache), model(ids[:, 7:], cache)], dim=1)
    assert logits.dtype == torch.bfloat16
    assert {buffer.dtype for layer in cache.layers for buffer in layer.buffers} == {torch.bfloat16}
    torch.testing.assert_close(logits.float(), lively(name)(ids), atol=0.15, rtol=0.1)


@every_variant
def test_mixed_precision_trains_and_goes_through_the_cache_without_a_warning(name):
    model = lively(name)
    ids = torch.randint(0, 61, (2, 20))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids)
        cache = model.make_cache(2)
        with torch.no_grad():
            cached = torch.cat([model(part, cache) for part in ids.split([7, 1, 12], dim=1)], dim=1)
    torch.testing.assert_close(cached.float(), logits.float(), atol=0.15, rtol=0.1)
    logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_variant
def test_every_variant_learns_after_it_has_written(name):
    model = lively(name)
    assert len(list(generate(model, [1, 2, 3], 30, Sampling(seed=0)))) == 30  # beyond the context, too
    ids = torch.randint(0, 61, (2, 25))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        logits = model(ids[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_published_sizes_are_what_their_names_say():
    with torch.device("meta"):
        counts = [GPT(config).n_parameters for config in (GPT2_124M, GPT2_355M, GPT2_774M, GPT2_1558M)]
    assert counts == [124_439_808, 354_823_168, 774_030_080, 1_557_611_200]


def test_rotary_positions_see_distances_only():
    model = lively("rope")
    ids = torch.randint(0, 61, (1, 10))
    later = torch.cat([torch.zeros(1, 7, dtype=torch.long), ids], dim=1)
    cache = model.make_cache(1, padding=torch.tensor([7]))
    torch.testing.assert_close(model(later, cache)[:, 7:], model(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["learned", "rope", "modern"])
def test_conversion_that_loses_nothing_changes_nothing(name):
    model = lively(name).double()
    ids = torch.randint(0, 61, (2, 24))
    expected = model(ids)
    variants = [to_grouped_query(model, 4), to_sliding_window(model, 24), to_sliding_window(model, 1, global_every=1)]
    if name == "learned":
        variants.append(to_latent(model, 32))
    for variant in variants:
        torch.testing.assert_close(variant(ids), expected, atol=1e-9, rtol=1e-9)
        cache = variant.make_cache(2)
        cached = torch.cat([variant(part, cache) for part in ids.split([9, 1, 14], dim=1)], dim=1)
        torch.testing.assert_close(cached, expected, atol=1e-9 if name == "learned" else 1e-5, rtol=1e-5)


def test_keys_of_a_group_become_their_mean():
    model = lively("learned")
    _, k, _ = model.transformer.blocks[1].attn.c_attn.weight.view(3, 4, 8, 32)  # (heads, head_dim, d_model)
    pooled = to_grouped_query(model, 2).transformer.blocks[1].attn.c_attn.weight[32:48].view(2, 8, 32)
    torch.testing.assert_close(pooled[1], (k[2] + k[3]) / 2)


def test_embeddings_of_values_are_pooled_as_values_are():
    model = lively("modern")
    name = "transformer.value_embeddings.1.weight"
    rows = model.get_parameter(name).view(61, 4, 8)  # (tokens, heads, head_dim)
    pooled = to_grouped_query(model, 2).get_parameter(name).view(61, 2, 8)
    torch.testing.assert_close(pooled[:, 1], (rows[:, 2] + rows[:, 3]) / 2)


def test_a_model_without_biases_becomes_latent_too():
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE, bias=False)).double()
    ids = torch.randint(0, 61, (2, 24))
    torch.testing.assert_close(to_latent(model, 32)(ids), model(ids), atol=1e-9, rtol=1e-9)


def test_a_latent_of_too_little_rank_is_the_best_of_its_rank():
    model = lively("learned")
    attention = to_latent(model, 10).transformer.blocks[0].attn
    _, k, v = model.transformer.blocks[0].attn.c_attn.weight.chunk(3)
    ours = torch.cat([attention.k_up.weight, attention.v_up.weight]) @ attention.kv_down.weight
    lost = torch.linalg.svdvals(torch.cat([k, v]))[10:]
    torch.testing.assert_close((torch.cat([k, v]) - ours).norm(), lost.norm(), atol=1e-5, rtol=1e-5)


def test_the_rank_follows_the_energy_that_is_to_be_kept():
    model = lively("learned")
    ranks = [rank_for_energy(model, energy) for energy in (0.01, 0.5, 0.9, 1.0)]
    assert ranks == sorted(ranks)
    assert ranks[-1] == 32
    for block in model.transformer.blocks:
        squares = torch.linalg.svdvals(block.attn.c_attn.weight[32:]).square()
        assert squares[: ranks[2]].sum() >= 0.9 * squares.sum()
    assert any(
        torch.linalg.svdvals(block.attn.c_attn.weight[32:]).square()[: ranks[2] - 1].sum()
        < 0.9 * torch.linalg.svdvals(block.attn.c_attn.weight[32:]).square().sum()
        for block in model.transformer.blocks
    )


def test_what_cannot_be_converted_says_why():
    with pytest.raises(ValueError, match="rotary positions cannot become latent"):
        to_latent(lively("rope"), 8)
    with pytest.raises(ValueError, match="only a multi-head GPT can be converted, not a GPTWithSWA"):
        to_grouped_query(lively("swa"), 2)
    with pytest.raises(ValueError, match=r"take one of \[1, 2, 4\]"):
        to_grouped_query(lively("learned"), 3)
    with pytest.raises(ValueError, match="energy must be"):
        rank_for_energy(lively("learned"), 0)


@pytest.mark.parametrize(
    ("config_class", "change", "message"),
    [
        (GPTConfig, {"positions": "alibi"}, "positions must be"),
        (GPTConfig, {"norm": "batchnorm"}, "norm must be 'layernorm' or 'rmsnorm', got 'batchnorm'"),
        (GPTConfig, {"activation": "relu"}, "activation must be 'gelu' or 'relu2', got 'relu'"),
        (GPTConfig, {"logit_softcap": 0.0}, "logit_softcap must be above 0 and finite"),
        (GPTWithMLAConfig, {"d_latent": 8, "qk_norm": True}, "qk_norm cannot be: keys come from latents"),
        (GPTWithMLAConfig, {"d_latent": 8, "value_embeddings": True}, "value embeddings cannot be: values come from"),
        (GPTConfig, {"positions": "rope", "n_head": 32}, "rotary positions turn pairs"),
        (GPTConfig, {"d_ff": 0}, "d_ff must be at least 1"),
        (GPTWithGQAConfig, {"n_kv_head": 3}, r"n_kv_head=3 does not divide n_head=4: take one of \[1, 2, 4\]"),
        (GPTWithMLAConfig, {"d_latent": 33}, "d_latent=33 must be from 1 to d_model=32"),
        (GPTWithMLAConfig, {"d_latent": 8, "d_query_latent": 0}, "d_query_latent=0 must be from 1"),
        (GPTWithMLAConfig, {"d_latent": 8, "d_rope": 3}, "rotary positions turn pairs"),
        (GPTWithSWAConfig, {"window": 0}, "window=0 must be at least 1"),
        (GPTWithSWAConfig, {"n_sink": -1}, "n_sink=-1 must be at least 0"),
        (GPTWithSWAConfig, {"global_every": -1}, "global_every must be at least 0"),
    ],
)
def test_bad_configs_fail_at_construction(config_class, change, message):
    with pytest.raises(ValueError, match=message):
        config_class(**SHAPE | change)


def test_positions_beyond_the_context_are_refused():
    for name in ("learned", "rope"):
        model = lively(name)
        with pytest.raises(ValueError, match="25 tokens are more than the model's context of 24"):
            model(torch.zeros(1, 25, dtype=torch.long))


def test_a_config_of_our_own_must_say_everything(tmp_path):
    config = GPTWithSWAConfig(vocab_size=50, context_length=16, n_layer=1, n_head=2, d_model=8, window=4)
    GPTWithSWA(config).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    whole = json.loads(path.read_text())
    for change, message in (
        (lambda c: c.pop("window"), "lacks window"),
        (lambda c: c.update(windows=3), "has windows, which no scratchbook_gpt_swa has"),
        (lambda c: c.update(model_type=["gpt2"]), r"describes a \['gpt2'\] model"),
        (lambda c: c.update(layer_norm_epsilon=float("nan")), "layer_norm_epsilon must be above 0"),
        (lambda c: c.update(rope_base=float("inf")), "rope_base must be above 1 and finite"),
    ):
        content = dict(whole)
        change(content)
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path / "model")
    path.write_text(json.dumps(whole))
    assert load_model(tmp_path / "model").config == config


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"to": "latent", "window": 3}, "--window belongs to --to sliding-window, and here it is latent"),
        ({"to": "latent", "d_latent": 0}, "d_latent=0 must be from 1"),
        ({"out": Path("model/sub")}, "--out is inside the model's folder"),
    ],
)
def test_conversions_that_cannot_be_are_refused(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    GPT(GPTConfig(vocab_size=50, context_length=16, n_layer=1, n_head=2, d_model=8)).save_pretrained("model")
    with pytest.raises((ValueError, UserError), match=message):
        convert(Convert(**{"model": Path("model"), "out": Path("new"), **flags}))
    assert not (tmp_path / "new").exists()
