"""The figures by which models are compared, against their definitions."""

from __future__ import annotations

import gzip
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from gpt_model.evaluate import (
    Evaluate,
    bytes_of_tokens,
    evaluate_documents,
    evaluate_windows,
    main,
    read_documents,
)
from tests.conftest import assert_one_clear_line
from tests.gpt_model.test_gpt import TINY, as_transformers, tiny_gpt
from utils.errors import UserError
from utils.files import read_json
from working_with_text_data.bytepair_enc import BytePairTokenizer


def test_loss_and_bits_are_sums_over_single_predictions():
    model = tiny_gpt()
    windows = torch.randint(0, 61, (5, 9))
    token_bytes = torch.randint(0, 6, (61,))
    loss, bits = evaluate_windows(model, windows, token_bytes, batch_size=2, precision="float32")
    assert model.training  # as it was
    model.eval()
    surprises, n_bytes = [], 0.0
    for window in windows:
        for i in range(8):
            p = model(window[None, : i + 1])[0, -1].softmax(0)[window[i + 1]]
            surprises.append(-math.log(p.item()))
            n_bytes += token_bytes[window[i + 1]].item()
    assert loss == pytest.approx(sum(surprises) / 40, rel=1e-5)
    assert bits == pytest.approx(sum(surprises) / math.log(2) / n_bytes, rel=1e-5)


def test_bytes_of_tokens_sum_to_the_text():
    tokenizer = BytePairTokenizer.train(["naïve 日本 text, naïve text"] * 2, 270)
    lengths = bytes_of_tokens(tokenizer)
    text = "a naïve 日本 text"
    assert lengths[tokenizer.encode_ordinary(text)].sum().item() == len(text.encode())
    assert lengths[tokenizer.eot_token] == 0
    assert len(lengths) == tokenizer.n_vocab


TOKENIZER = BytePairTokenizer.train(["the cat sat on the mat, naïve 日本 👩‍👩‍👧 text"] * 3, 290)
BYTES = BytePairTokenizer.train(["x"], 257)  # no merges: a token a byte
TEXTS = ["the cat sat on the naïve mat 日本", "", "👩‍👩‍👧 text\n\n text", "the mat " * 30]


def of_vocabulary(tokenizer, seed=0):
    return tiny_gpt(seed, replace(TINY, vocab_size=tokenizer.n_vocab))


def test_figures_of_documents_are_those_of_a_loop_over_tokens():
    model = of_vocabulary(TOKENIZER).eval()
    theirs = as_transformers(model).eval()
    nats, n = 0.0, 0
    for text in TEXTS:
        ids = [TOKENIZER.eot_token, *TOKENIZER.encode(text)]
        for i in range(1, len(ids)):  # stride 1: each token has all that fits before it
            log_p = theirs(torch.tensor([ids[max(i - TINY.context_length, 0) : i]])).logits[0, -1].log_softmax(0)
            nats, n = nats - log_p[ids[i]].item(), n + 1
    figures = evaluate_documents(model, TOKENIZER, TEXTS, stride=1)
    n_bytes, n_words = sum(len(text.encode()) for text in TEXTS), sum(len(text.split()) for text in TEXTS)
    assert (figures.tokens, figures.bytes, figures.words, figures.documents) == (n, n_bytes, n_words, 4)
    assert figures.loss == pytest.approx(nats / n, rel=1e-5)
    assert figures.perplexity == pytest.approx(math.exp(nats / n), rel=1e-4)
    assert figures.bits_per_byte == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)
    assert figures.word_perplexity == pytest.approx(math.exp(nats / n_words), rel=1e-4)


@pytest.mark.parametrize("stride", [1, 7, 24])
@pytest.mark.parametrize("tokenizer", [TOKENIZER, BYTES], ids=["merged", "bytes"])
def test_every_byte_counts_once_whatever_the_tokens_and_windows(tokenizer, stride):
    model = of_vocabulary(tokenizer)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # knows nothing: ln(vocabulary) a token
    figures = evaluate_documents(model, tokenizer, TEXTS, stride)
    assert figures.bytes == sum(len(text.encode()) for text in TEXTS)
    assert figures.bits_per_byte == pytest.approx(
        sum(len(tokenizer.encode(text)) for text in TEXTS) * math.log2(tokenizer.n_vocab) / figures.bytes, rel=1e-5
    )


def test_without_an_end_of_text_the_first_token_is_context_alone():
    plain = BytePairTokenizer(TOKENIZER.ranks)
    ids = plain.encode("the cat sat")
    figures = evaluate_documents(of_vocabulary(TOKENIZER), plain, ["the cat sat"])
    assert figures.tokens == len(ids) - 1
    assert figures.bytes == len(plain.decode_bytes(ids[1:]))


def test_a_text_without_blanks_has_no_word_perplexity():
    figures = evaluate_documents(of_vocabulary(TOKENIZER), TOKENIZER, ["日本" * 400])
    assert figures.word_perplexity == math.inf
    assert figures.as_dict()["word_perplexity"] is None
    assert json.loads(json.dumps(figures.as_dict(), allow_nan=False))["loss"] == figures.loss


def test_the_command_reads_every_kind_of_file(tmp_path, capsys):
    of_vocabulary(TOKENIZER).save_pretrained(tmp_path / "model", TOKENIZER)
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text(TEXTS[0], encoding="utf-8")
    (texts / "b.txt.gz").write_bytes(gzip.compress(TEXTS[2].encode()))
    (texts / "c.jsonl").write_text(json.dumps({"text": TEXTS[3]}) + "\n", encoding="utf-8")
    Dataset.from_list([{"text": TEXTS[0]}, {"text": TEXTS[1]}]).to_parquet(texts / "d.parquet")
    main(Evaluate(model=str(tmp_path / "model"), text=(texts,), out=tmp_path / "out.json", stride=5))
    report = read_json(tmp_path / "out.json")
    expected = evaluate_documents(of_vocabulary(TOKENIZER), TOKENIZER, [TEXTS[0], TEXTS[2], TEXTS[3], TEXTS[0], ""], 5)
    assert report["figures"] == pytest.approx(expected.as_dict())
    assert report["stride"] == 5 and "command" in report
    out = capsys.readouterr().out
    assert f"nats per token   {expected.loss:.4f}" in out
    assert f"bits per byte    {expected.bits_per_byte:.4f}" in out
    main(Evaluate(model=str(tmp_path / "model"), text=(texts / "c.jsonl", texts / "a.txt"), limit=1))
    assert f"1 documents, 60 words, {len(TOKENIZER.encode(TEXTS[3]))} tokens" in capsys.readouterr().out


def test_the_command_asks_questions(tmp_path, capsys):
    of_vocabulary(TOKENIZER).save_pretrained(tmp_path / "model", TOKENIZER)
    rows = [{"text": "the cat sat on the mat"}, {"text": "on the mat the cat"}]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    model, out = str(tmp_path / "model"), tmp_path / "out.json"
    main(Evaluate(model=model, task="lambada", data=tmp_path / "l.jsonl", out=out))
    report = read_json(out)
    assert report["figures"].keys() == {"questions", "acc", "acc_stderr", "perplexity"}
    assert report["data"] == str(tmp_path / "l.jsonl")
    assert "LAMBADA, 2 questions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "give either --text with files to judge, or --task"),
        ({"text": "t.txt", "task": "lambada"}, "give either"),
        ({"text": "t.txt", "data": "x.jsonl"}, "--data belongs to --task"),
        ({"task": "lambada", "stride": 3}, "--stride belongs to --text"),
        ({"text": "t.txt", "stride": 0}, "--stride must be at least 1, got 0"),
        ({"text": "t.txt", "batch_size": 0}, "--batch-size must be at least 1"),
        ({"text": "nowhere"}, "--text nowhere: there is no such file or folder"),
        ({"text": "empty"}, "--text empty holds no .txt"),
        ({"text": "t.txt", "stride": 25}, "the stride must be from 1 to the model's context of 24, got 25"),
        ({"text": "empty.txt"}, "there is no token to judge: the text is empty"),
        ({"text": "t.jsonl", "column": "story"}, "t.jsonl, row 1 has no column 'story': it has text"),
        ({"task": "lambada", "data": "nowhere.jsonl"}, "No such file"),
        ({"task": "lambada", "data": "empty.jsonl"}, "there are no questions"),
        ({"text": "t.txt", "model": "small"}, "they do not belong together"),
        ({"text": "t.txt", "model": "./nowhere"}, "no model folder at nowhere"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    of_vocabulary(TOKENIZER).save_pretrained("model", TOKENIZER)
    tiny_gpt().save_pretrained("small")
    TOKENIZER.save("small/tokenizer.json")
    for name, text in (("t.txt", "text"), ("empty.txt", ""), ("t.jsonl", '{"text": "a"}'), ("empty.jsonl", "")):
        Path(name).write_text(text, encoding="utf-8")
    Path("empty").mkdir()
    flags = {"model": "model"} | flags
    flags |= {"text": (Path(flags["text"]),)} if "text" in flags else {}
    flags |= {"data": Path(flags["data"])} if "data" in flags else {}
    with pytest.raises((UserError, ValueError, OSError), match=re.escape(message)) as caught:
        main(Evaluate(**flags))
    assert "\n" not in str(caught.value)


def test_a_mistake_ends_the_command_with_one_line(run):
    assert_one_clear_line(run("gpt_model/evaluate.py", "--text", "nowhere"), "no such file or folder")


def test_real_text_is_judged_whole(data_folder):
    text = next(read_documents(data_folder / "web" / "wikitext2_valid_test.parquet")).text[:3000]
    figures = evaluate_documents(of_vocabulary(TOKENIZER), TOKENIZER, [text], batch_size=64)
    assert figures.bytes == len(text.encode())
    assert figures.words == len(re.findall(r"\S+", text))


def test_stored_weights_can_be_judged(tmp_path, capsys):
    of_vocabulary(TOKENIZER).save_pretrained(tmp_path / "model", TOKENIZER)
    (tmp_path / "t.txt").write_text("a text to be judged", encoding="utf-8")
    figures = []
    for i, weights in enumerate(("as-saved", "float32", "int8")):
        out = tmp_path / f"{i}.json"
        main(Evaluate(str(tmp_path / "model"), (tmp_path / "t.txt",), weights=weights, out=out))  # type: ignore[arg-type]
        figures.append(json.loads(out.read_text(encoding="utf-8"))["figures"]["loss"])
    assert figures[0] == pytest.approx(figures[1], abs=1e-5)
    assert figures[0] != figures[2] == pytest.approx(figures[0], rel=0.05)
