"""Attention maps: the weights belong to the model, and the pictures are made by a command."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attention_mechanisms.attention_maps import all_heads, one_head, readable
from gpt_model import GPT
from gpt_model.gpt import GPT_TOY
from gpt_model.show_attention import ShowAttention, attention_weights, main
from tests.gpt_model.test_gpt import as_transformers
from tests.gpt_model.test_variants import every_variant, lively
from working_with_text_data.bytepair_enc import BytePairTokenizer


def test_the_weights_are_those_of_transformers():
    model = lively("learned")
    theirs = as_transformers(model).eval()
    theirs.set_attn_implementation("eager")
    ids = torch.randint(0, 61, (2, 9))
    expected = theirs(ids, output_attentions=True).attentions
    for ours, weights in zip(attention_weights(model, ids), expected, strict=True):
        torch.testing.assert_close(ours, weights.detach(), atol=1e-5, rtol=1e-5)


@every_variant
def test_rows_sum_to_one_and_nobody_sees_the_future(name):
    for weights in attention_weights(lively(name), torch.randint(0, 61, (1, 20))):
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(1, 4, 20))
        assert not weights.triu(1).any()


def test_the_command_draws_and_says_where(tmp_path, capsys):
    tokenizer = BytePairTokenizer.train(["a line of text, and another line of text"] * 3, 61 + 256)
    model = lively("swa")
    config = type(model.config)(**{**vars(model.config), "vocab_size": tokenizer.n_vocab})
    type(model)(config).save_pretrained(tmp_path / "model", tokenizer)
    main(ShowAttention(model=tmp_path / "model", text="a line of text", out=tmp_path / "maps", layer=1, head=3))
    names = {path.name for path in (tmp_path / "maps").iterdir()}
    assert names == {"layer-1.png", "layer-1-head-3.png", "cache.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "maps").iterdir())
    assert "Next: python gpt_model/show_attention.py" in capsys.readouterr().out
    for wrong, message in (({"layer": 2}, "--layer 2: this model has 2"), ({"text": "a"}, "tokens; a picture needs")):
        with pytest.raises(Exception, match=message):
            main(ShowAttention(model=tmp_path / "model", out=tmp_path / "maps", **wrong))


def test_weights_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(n_head, tokens, tokens\), not \(2, 3, 4\)"):
        all_heads(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="2 tokens for weights of 3"):
        one_head(torch.zeros(3, 3), ["a", "b"])


def test_spaces_and_line_ends_can_be_seen():
    assert readable(" a\n$") == "␣a⏎\\$"


def test_maps_of_a_model_in_training_are_whole():
    torch.manual_seed(0)
    model = GPT(replace(GPT_TOY, dropout=0.5)).train()
    ids = torch.randint(0, 256, (1, 9))
    first, second = attention_weights(model, ids), attention_weights(model, ids)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert model.training
    with pytest.raises(ValueError, match="65 tokens are more than the model's context of 64"):
        attention_weights(model, torch.zeros(1, 65, dtype=torch.long))
