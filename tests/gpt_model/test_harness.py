"""The adapter for lm-evaluation-harness against the harness's own for `transformers`, on the same folder."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

pytest.importorskip("lm_eval", reason="needs the harness: `make harness`")

import datasets
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks.hellaswag.utils import preprocess

from gpt_model import GPTConfig, load_model
from gpt_model.evaluate import Evaluate
from gpt_model.evaluate import main as evaluate
from gpt_model.harness import Harness, ScratchbookLM, main
from gpt_model.log_likelihood import encode_pair, text_log_likelihood
from gpt_model.tasks import without_brackets
from tests.gpt_model.test_gpt import tiny_gpt
from tests.gpt_model.test_log_likelihood import alone
from tests.gpt_model.test_tasks import PASSAGES, TOKENIZER, swag
from tests.gpt_model.test_variants import lively
from utils.errors import UserError
from utils.files import read_json

pytestmark = pytest.mark.filterwarnings("default")  # the harness's own are not ours to mend

LAST_WORDS = """
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list: [{metric: perplexity, aggregation: perplexity}, {metric: acc, aggregation: mean}]
"""
ENDINGS = """
output_type: multiple_choice
process_docs: !function hellaswag.process_docs
doc_to_text: "{{query}}"
doc_to_target: "{{label}}"
doc_to_choice: choices
metric_list: [{metric: acc, aggregation: mean}, {metric: acc_norm, aggregation: mean}]
"""
WHOLE_TEXTS = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder, which is a Hugging Face GPT-2 as well."""
    folder = tmp_path_factory.mktemp("harness") / "model"
    model = tiny_gpt(1, GPTConfig(vocab_size=TOKENIZER.n_vocab, context_length=64, n_layer=2, n_head=2, d_model=16))
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(4)
    model.save_pretrained(folder, TOKENIZER)
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    return ScratchbookLM(str(folder), batch_size=3, device="cpu")


@pytest.fixture(scope="module")
def theirs(folder):
    # Without its cache, which takes two cuts of one text for the same question.
    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=3, logits_cache=False)


def requests(kind, *arguments):
    return [Instance(request_type=kind, doc={}, arguments=args, idx=i) for i, args in enumerate(arguments)]


def test_loglikelihood_equals_the_harness_s_own(ours, theirs):
    said = theirs.generate_until(requests("generate_until", ("the cat", {"until": ["zzz"], "max_gen_toks": 2})))[0]
    pairs = [(text[:cut], text[cut:]) for text in PASSAGES for cut in (0, 3, 8, 15)]  # also inside of words
    pairs += [("the house " * 30, "and the sea"), ("a dog ", "ran"), ("", "<|endoftext|>a dog"), ("the cat", said)]
    asked = requests("loglikelihood", *pairs)
    judged, expected = ours.loglikelihood(asked), theirs.loglikelihood(asked)
    for (total, greedy), (their_total, their_greedy) in zip(judged, expected, strict=True):
        assert total == pytest.approx(their_total, abs=1e-4)
        assert greedy == their_greedy
    assert judged[-1][1]


def test_rolling_equals_the_harness_s_own(ours, theirs):
    asked = requests(
        "loglikelihood_rolling", *((text * n,) for text, n in zip(PASSAGES, (1, 9, 2, 30, 1), strict=True))
    )
    assert ours.loglikelihood_rolling(asked) == pytest.approx(theirs.loglikelihood_rolling(asked), abs=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"until": ["\n"], "max_gen_toks": 12},
        {"until": [" the", "e"], "max_gen_toks": 20},
        {"until": "cat", "do_sample": False},
    ],
)
def test_greedy_text_equals_the_harness_s_own(ours, theirs, settings):
    settings = {"max_gen_toks": 10} | settings
    asked = requests("generate_until", *((text, settings) for text in [*PASSAGES, "on and on " * 40]))
    assert ours.generate_until(asked) == theirs.generate_until(asked)


def test_requests_with_other_settings_are_answered_in_their_order(ours):
    settings = [{"until": ["e"], "max_gen_toks": 3}, {"until": [], "max_gen_toks": 7}]
    asked = [(text, settings[i % 2]) for i, text in enumerate(PASSAGES)]
    together = ours.generate_until(requests("generate_until", *asked))
    assert together == [ours.generate_until(requests("generate_until", one))[0] for one in asked]


def test_variants_are_judged_too(tmp_path):
    model = lively("mla")
    config = type(model.config)(**{**vars(model.config), "vocab_size": TOKENIZER.n_vocab})
    type(model)(config).save_pretrained(tmp_path / "model", TOKENIZER)
    lm, model = ScratchbookLM(str(tmp_path / "model"), device="cpu"), load_model(tmp_path / "model")
    pair = encode_pair(TOKENIZER, "the cat", " sat on")
    (total, greedy), *_ = lm.loglikelihood(requests("loglikelihood", ("the cat", " sat on")))
    assert (total, greedy) == pytest.approx(alone(model, *pair), abs=1e-4)
    ids = [TOKENIZER.eot_token, *TOKENIZER.encode("the cat sat " * 20)]
    rolled = lm.loglikelihood_rolling(requests("loglikelihood_rolling", ("the cat sat " * 20,)))
    assert rolled == [pytest.approx(text_log_likelihood(model, ids, config.context_length), abs=1e-4)]


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """Tasks of the harness with local data."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))  # many seconds
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "hellaswag.py").write_text("from lm_eval.tasks.hellaswag.utils import process_docs\n", encoding="utf-8")
    for name, text in (("last_words", LAST_WORDS), ("endings", ENDINGS), ("whole_texts", WHOLE_TEXTS)):
        rows = [swag(i) for i in range(12)] if name == "endings" else [{"text": text} for text in PASSAGES]
        data = folder / f"{name}.jsonl"
        data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        where = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{where}{text}", encoding="utf-8")
    return folder


def test_the_command_s_figures_are_those_of_transformers_and_of_evaluate(folder, theirs, tasks, tmp_path, capsys):
    names = ("last_words", "endings", "whole_texts")
    main(Harness(str(folder), names, tasks, out=tmp_path / "out.json", device="cpu"))
    results = read_json(tmp_path / "out.json")["results"]
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    expected = simple_evaluate(theirs, tasks=list(names), task_manager=manager, bootstrap_iters=0)["results"]
    checked, shown = 0, capsys.readouterr().out
    for name in names:
        for figure, value in expected[name].items():
            if "," in figure and "stderr" not in figure:
                assert results[name][figure] == pytest.approx(value, rel=1e-4)
                assert f"| {name} | {figure.removesuffix(',none')} | {results[name][figure]:,.4f} |" in shown
                checked += 1
    assert checked == 7
    for task, name in (("lambada", "last_words"), ("hellaswag", "endings")):
        out = tmp_path / f"{task}.json"
        evaluate(Evaluate(model=str(folder), task=task, data=tasks / f"{name}.jsonl", out=out))  # type: ignore[arg-type]
        figures = read_json(out)["figures"]
        for figure in figures.keys() & {"acc", "acc_norm", "perplexity"}:
            assert figures[figure] == pytest.approx(expected[name][f"{figure},none"], rel=1e-4)


def test_texts_are_prepared_alike():
    for text in ("  a [b] c[d]  [title] e ", "[header] How [title]", "no brackets", "a [title] b [c [d] e] f"):
        assert without_brackets(text) == preprocess(text)


def test_what_does_not_fit_is_named_in_one_line(folder, tasks, tmp_path):
    with pytest.raises(UserError, match="the harness has no task 'nothing'"):
        main(Harness(str(folder), ("endings", "nothing"), tasks))
    with pytest.raises(UserError, match="--limit must be at least 1"):
        Harness(limit=0)
    tiny_gpt().save_pretrained(tmp_path / "small")
    TOKENIZER.save(tmp_path / "small" / "tokenizer.json")
    with pytest.raises(ValueError, match="they do not belong together"):
        ScratchbookLM(str(tmp_path / "small"))
