"""The benchmark of guessing ahead measures what it says, on models that the test makes."""

from __future__ import annotations

import json

import pytest
import torch

from gpt_model import GPT, GPTConfig
from gpt_model.speculative_benchmark import PLAIN, require_same_text, table
from tests.conftest import assert_one_clear_line
from utils.errors import UserError
from utils.readme_tables import with_block
from utils.tracking import REPOSITORY
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.corpora import Document, Split
from working_with_text_data.token_shards import write_shards

SCRIPT = "gpt_model/speculative_benchmark.py"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Flags for a model, a draft and shards of one tokenizer."""
    folder = tmp_path_factory.mktemp("speculative")
    texts = ["the cat sat on the mat and looked at the other cat " * 20] * 10
    tokenizer = BytePairTokenizer.train(texts, 280)
    tokenizer.save(folder / "tokenizer.json")
    documents: list[tuple[Split, Document]] = [
        ("validation" if i % 2 else "train", Document(str(i), text)) for i, text in enumerate(texts)
    ]
    write_shards(folder / "tokens", documents, tokenizer, {})
    for name, n_layer in (("model", 2), ("draft", 1)):
        torch.manual_seed(n_layer)
        config = GPTConfig(vocab_size=tokenizer.n_vocab, context_length=64, n_layer=n_layer, n_head=2, d_model=16)
        GPT(config).save_pretrained(folder / name, tokenizer)
    return ["--model", folder / "model", "--draft", folder / "draft", "--data", folder / "tokens"]


QUICK = ["--prompts", 2, "--prompt-tokens", 8, "--new-tokens", 10, "--repeats", 2, "--n-guess", 2, 3]


def test_both_guessers_are_measured(run, tmp_path, folders):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- speculative:begin -->\n<!-- speculative:end -->\n", encoding="utf-8")
    done = run(SCRIPT, *folders, *QUICK, "--out", tmp_path, "--readme", readme)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "speculative.json").read_text(encoding="utf-8"))
    for row in report["results"]:
        names = [f"{guesser}, {n} guesses" for guesser in ("draft", "prompt lookup") for n in (2, 3)]
        assert list(row["seconds"]) == [PLAIN, *names]
        for name in names:
            facts = row["speculation"][name]
            assert 1 <= facts["tokens_per_pass"] <= int(name.split(", ")[1][0]) + 1
            assert 0 <= facts["acceptance"] <= 1
    assert table(report) in readme.read_text(encoding="utf-8")


def test_nothing_is_timed_that_writes_something_else():
    made = {PLAIN: lambda prompt, seed, done: iter([1, 2]), "wrong": lambda prompt, seed, done: iter([1, 3])}
    require_same_text({PLAIN: made[PLAIN]}, [[1]])
    with pytest.raises(UserError, match="wrong writes another greedy text"):
        require_same_text(made, [[1]])


def test_mistakes_are_one_clear_line(run, tmp_path, folders):
    assert_one_clear_line(run(SCRIPT, *folders, "--repeats", 0), "--repeats must be at least 1")
    other = BytePairTokenizer.train(["another tokenizer"], 270)
    GPT(GPTConfig(vocab_size=other.n_vocab, context_length=8, n_layer=1, n_head=1, d_model=4)).save_pretrained(
        tmp_path / "other", other
    )
    done = run(SCRIPT, "--model", tmp_path / "other", *folders[2:], *QUICK, "--out", tmp_path)
    assert_one_clear_line(done, "another tokenizer")


def test_the_readme_says_what_was_measured():
    folder = REPOSITORY / "gpt_model"
    report = json.loads((folder / "results" / "speculative.json").read_text(encoding="utf-8"))
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert with_block(text, "speculative", table(report)) == text
