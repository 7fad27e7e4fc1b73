"""A GPT with a head: one text at a time, Hugging Face's classifier, and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from sklearn import metrics as sk

from finetuning.classification.classifier import (
    ClassifierConfig,
    GPTClassifier,
    encode_texts,
    load_classifier,
    padded,
    predict_logits,
    save_classifier,
)
from finetuning.classification.metrics import (
    bootstrap_interval,
    calibration_error,
    most_confident_errors,
    report,
    save_picture,
)
from finetuning.classification.predict import Predict, contributions_of, predict, save_words
from finetuning.classification.train_classifier import LabelLoss
from gpt_model import GPT, GPTConfig, load_model
from gpt_model.pretrained import to_huggingface
from tests.conftest import assert_one_clear_line
from utils.errors import UserError
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.token_shards import IGNORE

TOKENIZER = BytePairTokenizer.train(["a film that is good, and a film that is bad, never dull"] * 3, 280)
TINY = GPTConfig(vocab_size=TOKENIZER.n_vocab, context_length=16, n_layer=2, n_head=2, d_model=16)


def made(pooling="last", labels=("bad", "good", "so-so"), seed=0, max_length=12):
    torch.manual_seed(seed)
    classifier = GPTClassifier(GPT(TINY), ClassifierConfig(labels, pooling, max_length))
    torch.nn.init.normal_(classifier.score.weight)
    return classifier.eval()


def some_texts(count=7, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(0, TOKENIZER.n_vocab, random.integers(1, 13)).astype(np.int64) for _ in range(count)]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_padded_batch_equals_each_text_alone(pooling):
    classifier, rows = made(pooling), some_texts()
    ids, lengths = (torch.from_numpy(array) for array in padded(rows))
    together = classifier(ids, lengths)
    for i, row in enumerate(rows):
        hidden = classifier.gpt.hidden_states(torch.from_numpy(row)[None])[0]  # (tokens, d_model)
        pooled = hidden[-1] if pooling == "last" else hidden.mean(dim=0)
        torch.testing.assert_close(together[i], classifier.score(pooled))
    filled = ids.clone()
    filled[torch.arange(ids.shape[1]) >= lengths[:, None]] = 7  # what fills up makes no difference
    torch.testing.assert_close(classifier(filled, lengths), together)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_loss_and_its_gradient_are_the_sum_over_texts_alone(pooling):
    rows, labels = some_texts(5), torch.tensor([0, 2, IGNORE, 1, 1])
    together, alone = made(pooling), made(pooling)
    ids, lengths = (torch.from_numpy(array) for array in padded(rows))
    loss = LabelLoss(together)(ids, labels, lengths)
    loss.backward()
    parts = []
    for row, label in zip(rows, labels, strict=True):
        if label != IGNORE:
            one = torch.from_numpy(row)[None]
            logits = alone(one, torch.tensor([len(row)]))
            parts.append(F.cross_entropy(logits, label[None]))
            parts[-1].backward()
    torch.testing.assert_close(loss, torch.stack(parts).sum())
    for (name, p), q in zip(together.named_parameters(), alone.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, msg=name, rtol=1e-4, atol=1e-6)


def test_equals_hugging_face_s_classifier():
    classifier, rows = made(), [row % 250 + 1 for row in some_texts()]  # id 0 is what fills up
    shape: dict[str, Any] = {
        "n_positions": 16,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "num_labels": 3,
        "pad_token_id": 0,
    }
    config = transformers.GPT2Config(vocab_size=TINY.vocab_size, **shape)
    theirs = transformers.GPT2ForSequenceClassification(config).eval()
    body = {name: w for name, w in to_huggingface(classifier.gpt).items() if not name.startswith("lm_head")}
    theirs.load_state_dict(body | {"score.weight": classifier.score.weight}, strict=True)
    ids, lengths = (torch.from_numpy(array) for array in padded(rows))
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        torch.testing.assert_close(classifier(ids, lengths), theirs(ids, attention_mask=mask).logits)


@pytest.mark.parametrize("batch_tokens", [1, 30, 10_000])
def test_predictions_come_in_the_order_of_the_texts(batch_tokens):
    classifier, rows = made(), some_texts(20)
    found = predict_logits(classifier, rows, batch_tokens, "float32")
    for i, row in enumerate(rows):
        alone = classifier(torch.from_numpy(row)[None], torch.tensor([len(row)]))[0]
        torch.testing.assert_close(found[i], alone)


def test_texts_begin_after_end_of_text_and_lose_the_side_that_is_said():
    text, end = "a film that is good, and never dull", TOKENIZER.eot_token
    ids = TOKENIZER.encode_ordinary(text)
    assert len(ids) > 6
    (whole,), cut = encode_texts(TOKENIZER, [text], ClassifierConfig(("a", "b"), max_length=100))
    assert (whole.tolist(), cut) == ([end, *ids], 0)
    (late,), cut = encode_texts(TOKENIZER, [text], ClassifierConfig(("a", "b"), max_length=6))
    assert (late.tolist(), cut) == ([end, *ids[-5:]], 1)
    (early,), _ = encode_texts(TOKENIZER, [text], ClassifierConfig(("a", "b"), max_length=6, cut="end"))
    assert early.tolist() == [end, *ids[:5]]
    (typed,), _ = encode_texts(TOKENIZER, ["<|endoftext|>"], ClassifierConfig(("a", "b"), max_length=100))
    assert end not in typed[1:]  # what somebody types is text


def test_a_folder_gives_back_the_same_classifier_and_the_language_model(tmp_path):
    classifier, rows = made("mean"), some_texts()
    save_classifier(classifier, tmp_path / "model", TOKENIZER, {"command": "x"})
    again, tokenizer = load_classifier(tmp_path / "model")
    assert again.config == classifier.config
    assert tokenizer.ranks == TOKENIZER.ranks
    torch.testing.assert_close(predict_logits(again, rows), predict_logits(classifier, rows), rtol=0, atol=0)
    ids = torch.from_numpy(rows[0])[None]
    torch.testing.assert_close(load_model(tmp_path / "model")(ids), classifier.gpt(ids), rtol=0, atol=0)
    classifier.gpt.save_pretrained(tmp_path / "model", TOKENIZER)  # a plain model takes its place: no stale head stays
    with pytest.raises(ValueError, match="holds no classifier"):
        load_classifier(tmp_path / "model")


def test_a_damaged_folder_gets_a_clear_line(tmp_path):
    save_classifier(made(), tmp_path / "model", TOKENIZER)
    (tmp_path / "model" / "classifier.json").write_text('{"labels": ["a", "b"], "max_length": 9}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"its head is \(3, 16\), not \(2, 16\)"):
        load_classifier(tmp_path / "model")
    for wrong in ('"max_length": 2.5', '"max_length": true', '"labels": "abc"', '"labels": [1, 2, 3]', '"no": 1'):
        content = '{"labels": ["a", "b", "c"], "max_length": 9, ' + wrong + "}"
        (tmp_path / "model" / "classifier.json").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match="damaged"):
            load_classifier(tmp_path / "model")
    (tmp_path / "model" / "classifier.safetensors").write_bytes(b"xx")
    with pytest.raises(ValueError, match="damaged"):
        load_classifier(tmp_path / "model")


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="context of 16"):
        GPTClassifier(GPT(TINY), ClassifierConfig(("a", "b"), max_length=17))
    for wrong in ({"labels": ("a",)}, {"max_length": 1}, {"pooling": "first"}):
        with pytest.raises(ValueError, match=r"two labels|max_length|pooling"):
            ClassifierConfig(**({"labels": ("a", "b")} | wrong))


# --- figures


def test_the_figures_are_sklearn_s_and_the_interval_is_the_bootstrap_s():
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, 400)
    sure = np.clip(0.5 + 0.3 * (2 * truth - 1) + random.normal(0, 0.3, 400), 0.01, 0.99)
    probabilities = np.stack([1 - sure, sure], axis=1)
    found = report(truth, probabilities)
    assert found["accuracy"] == sk.accuracy_score(truth, probabilities.argmax(axis=1))
    above = [(a > b) + 0.5 * (a == b) for a in sure[truth == 1] for b in sure[truth == 0]]
    assert found["roc_auc"] == pytest.approx(np.mean(above))
    assert found["log_loss"] == pytest.approx(-np.log(probabilities[np.arange(400), truth]).mean())
    right = probabilities.argmax(axis=1) == truth
    drawn = [right[random.integers(0, 400, 400)].mean() for _ in range(4000)]
    assert bootstrap_interval(right) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.006)
    assert sum(map(sum, found["confusion"])) == 400


def test_roc_auc_of_several_labels_is_sklearn_s_and_skips_one_that_no_text_has():
    random = np.random.default_rng(0)
    truth, scores = random.integers(0, 3, 60), random.random((60, 3))
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    assert report(truth, probabilities)["roc_auc"] == pytest.approx(
        sk.roc_auc_score(truth, probabilities, multi_class="ovr")
    )
    truth = truth % 2
    of_each = [sk.roc_auc_score(truth == i, probabilities[:, i]) for i in (0, 1)]
    assert report(truth, probabilities)["roc_auc"] == pytest.approx(np.mean(of_each))


def test_calibration_error_by_hand():
    probabilities = np.array([[0.9, 0.1]] * 10 + [[0.35, 0.65]] * 10)
    truth = np.array([0] * 6 + [1] * 4 + [1] * 10)  # 60 % right where 90 % was said, 100 % where 65 %
    assert calibration_error(truth, probabilities) == pytest.approx((0.3 + 0.35) / 2)
    assert most_confident_errors(truth, probabilities, 3) == [6, 7, 8]


def test_pictures_are_written(tmp_path):
    truth, probabilities = np.array([0, 1, 2, 2]), np.eye(3)[[0, 1, 2, 1]] * 0.8 + 0.2 / 3
    save_picture(tmp_path / "a.png", truth, probabilities, ["one", "two", "three"])
    classifier = made(labels=("bad", "good"))
    save_words(tmp_path / "b.png", predict(classifier, TOKENIZER, "a film that\n is $good$, never dull ü"))
    for name in ("a.png", "b.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("labels", [("$", "$$"), (r"$\frac$", "b"), ("$5 to $10", r"a\$b$")])
def test_labels_are_drawn_as_they_are_written(tmp_path, labels):
    save_picture(tmp_path / "a.png", np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]]), labels)
    save_words(tmp_path / "b.png", predict(made(labels=labels), TOKENIZER, "a film"))


def test_contributions_are_gradient_times_input():
    """For a model that is linear in its embeddings they add up to the difference of logits, exactly."""
    classifier = made("mean", ("bad", "good"))
    gpt = classifier.gpt
    ids = torch.from_numpy(some_texts()[0])
    linear = torch.randn(16, 16)
    gpt.hidden_states = lambda ids: gpt.transformer.wte(ids) @ linear
    logits, found = contributions_of(classifier, ids)
    best = int(logits.argmax())
    torch.testing.assert_close(found.sum(), logits[best] - logits[1 - best])


def test_predict_refuses_nothing_and_says_what_it_left_out():
    classifier = made(labels=("bad", "good"), max_length=4)
    found = predict(classifier, TOKENIZER, "a film that is good, and a film that is bad")
    assert found.cut
    assert len(found.tokens) == len(found.contributions) == 3
    assert sum(found.probabilities.values()) == pytest.approx(1)
    with pytest.raises(ValueError, match="empty"):
        predict(classifier, TOKENIZER, " <br /> ")


def test_a_character_of_several_tokens_is_shown_whole(tmp_path, recwarn):
    """The tokenizer spells what it has not seen by its bytes, and half a character is none."""
    classifier, text = made(labels=("bad", "good"), max_length=16), "a café 电"
    found = predict(classifier, TOKENIZER, text)
    assert "".join(found.tokens) == text
    ids = torch.tensor([TOKENIZER.eot_token, *TOKENIZER.encode(text)])
    _, each = contributions_of(classifier, ids)
    assert len(found.tokens) < len(each) - 1
    assert sum(found.contributions) == pytest.approx(float(each[1:].sum()), abs=1e-6)
    save_words(tmp_path / "a.png", found)
    assert not recwarn.list  # of glyphs that no font on this machine has


def test_predict_s_command(run, tmp_path):
    save_classifier(made(labels=("bad", "good")), tmp_path / "model", TOKENIZER)
    done = run("finetuning/classification/predict.py", "--model", tmp_path / "model", "--text", "a film")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] in ("bad", "good")
    assert_one_clear_line(run("finetuning/classification/predict.py", "--model", tmp_path), "holds no classifier")


def test_a_picture_that_is_no_png_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match=r"words\.jpg must end with \.png"):
        Predict(out=tmp_path / "words.jpg")
