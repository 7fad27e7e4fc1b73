"""Measuring leaves the model as it was, and the folder as if the run ended there."""

from __future__ import annotations

from gpt_model import GPT, GPTConfig, load_model
from pretraining.run_folder import RunFolder
from utils.tracking import read_metrics
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.corpora import Document
from working_with_text_data.token_shards import TokenShards, write_shards


def test_measuring_changes_nothing_in_the_model(tmp_path):
    text = "one and two make three, and three and four make seven. " * 20
    tokenizer = BytePairTokenizer.train([text], 270)
    write_shards(
        tmp_path / "tokens", [("train", Document("a", text)), ("validation", Document("b", text))], tokenizer, {}
    )
    shards = TokenShards.open(tmp_path / "tokens")
    model = GPT(GPTConfig(tokenizer.n_vocab, 16, 1, 2, 16, dropout=0.5)).train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    run = RunFolder(
        tmp_path / "run", model, shards, {"why": "test"}, tokens_per_step=32, batch_size=2, precision="float32",
        eval_tokens=32, sample_prompt="one", seed=0,
    )  # fmt: skip
    run.note_step(5.5, 1.0, 0.1)
    loss = run.measure()
    assert model.training  # or dropout would be off from here on
    assert all(m.training for m in model.modules())
    assert all((p == before[name]).all() for name, p in model.named_parameters())
    assert run.measure(on_everything=True) != loss  # more text, another mean
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert rows[0]["loss"] == 5.5
    assert rows[1]["validation_loss"] == loss
    assert rows[1]["validation_tokens"] < rows[2]["validation_tokens"]
    load_model(tmp_path / "run" / "model")
