"""LAMBADA and HellaSwag against `transformers` scoring each candidate alone, and against their definitions."""

from __future__ import annotations

import json
import math

import pytest
import torch
import transformers

from gpt_model import GPT, GPTConfig
from gpt_model.tasks import TASKS, hellaswag_question, judge, lambada_question, read_questions, without_brackets
from tests.gpt_model.test_gpt import tiny_gpt
from utils.errors import UserError
from working_with_text_data.bytepair_enc import BytePairTokenizer

PASSAGES = [
    "the cat sat on the mat and looked at the cat",
    "a dog ran to the house, and in the house there was a dog",
    "they saw the moon over the sea, the sea under the moon",
    "naïve words of one sort, and of another sort",
    "it was cold and she had no coat, so he gave her his coat",
]
ENDINGS = ["sits on the mat.", "[step] runs  to the house and the sea.", "looks.", "has a naïve coat, they saw."]
TOKENIZER = BytePairTokenizer.train([*PASSAGES, *ENDINGS] * 3, 330)


def swag(i, **changes):
    return {
        "ind": i,
        "activity_label": f"Activity {i}",
        "ctx_a": "A cat is on a mat [title] How to sit [substeps] Look.",
        "ctx_b": f"the dog of House {i}",
        "ctx": "unused",
        "endings": ENDINGS[i % 4 :] + ENDINGS[: i % 4],
        "label": ((2, 2, 2, 1, 3, 0)[i % 6] - i) % 4,  # the short ending more often than others
        "source_id": "wikihow~1",
        **changes,
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model, and `transformers`' view of its folder."""
    folder = tmp_path_factory.mktemp("model")
    config = GPTConfig(vocab_size=TOKENIZER.n_vocab, context_length=96, n_layer=2, n_head=2, d_model=16)
    model = tiny_gpt(1, config)
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(4)  # far from uniform, so that questions differ
    model.eval().save_pretrained(folder, TOKENIZER)
    return (
        model,
        transformers.AutoModelForCausalLM.from_pretrained(folder).eval(),
        transformers.AutoTokenizer.from_pretrained(folder),
    )


@torch.no_grad()
def alone(theirs, tokenizer, context, continuation):
    """ln p and greediness of one continuation by `transformers`, on text that is not padded."""
    whole, n = tokenizer(context + continuation)["input_ids"], len(tokenizer(context)["input_ids"])
    logits = theirs(torch.tensor([whole])).logits[0, n - 1 : -1].log_softmax(-1)
    targets = torch.tensor(whole[n:])
    return logits[range(len(targets)), targets].sum().item(), torch.equal(logits.argmax(-1), targets)


def test_lambada_equals_transformers_on_each_passage_alone(models):
    model, theirs, tokenizer = models
    said = theirs.generate(  # a word that this model says, so that one answer is right
        torch.tensor([tokenizer("the cat")["input_ids"]]), max_new_tokens=1, do_sample=False, pad_token_id=0
    )
    passages = [*PASSAGES, "the cat" + tokenizer.decode(said[0, -1:])]
    questions = [lambada_question({"text": text}) for text in passages]
    figures = TASKS["lambada"].figures(questions, judge(model, TOKENIZER, questions, batch_size=2))
    expected = []
    for text in passages:
        words = text.split(" ")
        expected.append(alone(theirs, tokenizer, " ".join(words[:-1]), " " + words[-1]))
    acc = sum(greedy for _, greedy in expected) / len(expected)
    assert figures["acc"] == acc
    assert figures["acc_stderr"] == pytest.approx(math.sqrt(acc * (1 - acc) / len(expected)))
    assert figures["perplexity"] == pytest.approx(
        math.exp(-sum(ln_p for ln_p, _ in expected) / len(expected)), rel=1e-4
    )


def test_hellaswag_equals_transformers_on_each_ending_alone(models):
    model, theirs, tokenizer = models
    rows = [swag(i) for i in range(12)]
    questions = [hellaswag_question(row) for row in rows]
    figures = TASKS["hellaswag"].figures(questions, judge(model, TOKENIZER, questions, batch_size=5))
    right = right_by_length = 0
    for row, question in zip(rows, questions, strict=True):
        sums = torch.tensor([alone(theirs, tokenizer, question.context, f" {e}")[0] for e in question.answers])
        right += sums.argmax().item() == row["label"]
        right_by_length += (sums / torch.tensor([len(e) for e in question.answers])).argmax().item() == row["label"]
    assert (figures["acc"], figures["acc_norm"]) == (right / 12, right_by_length / 12)
    assert 0 < right < 12 and 0 < right_by_length < 12 and right != right_by_length


def test_texts_are_prepared_as_the_harness_does():
    question = hellaswag_question(swag(1, label="2"))
    assert question.context == "Activity 1: A cat is on a mat. How to sit Look. The dog of house 1"
    assert question.answers[0] == " runs to the house and the sea."
    assert question.correct == 2
    assert without_brackets("  a [b] c[d]  [title] e ") == "a c . e"
    question = lambada_question({"text": 'he said: "no, not'})
    assert (question.context, question.answers) == ('he said: "no,', ("not",))


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("lambada", {"story": "a b"}, "LAMBADA needs a text in the column 'text', and the row has story"),
        ("lambada", {"text": "word"}, "'word' has no last word"),
        ("lambada", {"text": "two words "}, "has no last word"),
        ("hellaswag", {"text": "a b"}, "needs the column 'activity_label', and the row has text"),
        ("hellaswag", swag(0, endings=ENDINGS[:3]), "four endings, not"),
        ("hellaswag", swag(0, endings="four"), "four endings, not 'four'"),
        ("hellaswag", swag(0, label=4), "the label must be 0, 1, 2 or 3, got '4'"),
        ("hellaswag", swag(0, label=-1), "the label must be 0, 1, 2 or 3, got '-1'"),
        ("hellaswag", swag(0, label=""), "not published, take the validation part"),
        ("hellaswag", swag(0, ctx_b=None), "'ctx_b' is None, not a text"),
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path, task, row, message):
    good = {"text": PASSAGES[0]} if task == "lambada" else swag(0)
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n", encoding="utf-8")
    assert len(read_questions(task, path, limit=1)) == 1
    with pytest.raises(ValueError, match=message) as caught:
        read_questions(task, path)
    assert str(caught.value).startswith(f"{path}, row 2: ")


@pytest.mark.parametrize("task", TASKS)
def test_without_the_hub_the_error_says_what_to_do(task):
    with pytest.raises(UserError, match=r"could not be fetched from the hub .*: download https://.* with --data$"):
        read_questions(task)


def test_what_cannot_be_asked_is_refused(models):
    with pytest.raises(ValueError, match="there are no questions"):
        judge(models[0], TOKENIZER, [])
    small = GPT(GPTConfig(vocab_size=300, context_length=96, n_layer=1, n_head=1, d_model=8))
    with pytest.raises(ValueError, match="they do not belong together"):
        judge(small, TOKENIZER, [lambada_question({"text": PASSAGES[0]})])
