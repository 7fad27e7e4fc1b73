"""Preference pairs: what is read from where, what is left out, and that the split keeps questions apart."""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from finetuning.instruction.instructions import InstructionOptions, read_examples, split_examples
from finetuning.instruction.preferences import (
    KINDS,
    Pair,
    PreferenceOptions,
    corrupt,
    documented_names,
    pairs_from_rows,
    rule_pairs,
    split_names,
    split_pairs,
)
from utils.errors import UserError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def pairs_of(*rows):
    return list(pairs_from_rows(rows, "t"))


TALK = [user("one"), assistant("two"), user("three")]
SAME_PAIR: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "three", "chosen": "good", "rejected": "bad"},
    "prompt of messages": {"prompt": [user("three")], "chosen": [assistant("good")], "rejected": [assistant("bad")]},
    "ultrafeedback": {
        "prompt": "three",
        "chosen": [user("three"), assistant("good")],
        "rejected": [user("three"), assistant("bad")],
        "score_chosen": 8.0,
    },
    "without a prompt": {"chosen": [user("three"), assistant("good")], "rejected": [user("three"), assistant("bad")]},
    "hh": {"chosen": "\n\nHuman: three\n\nAssistant: good", "rejected": "\n\nHuman: three\n\nAssistant: bad"},
    "hh with a prompt": {"prompt": "\n\nHuman: three\n\nAssistant:", "chosen": " good", "rejected": " bad"},
}


@pytest.mark.parametrize("layout", SAME_PAIR)
def test_every_layout_of_columns_gives_the_same_pair(layout):
    assert pairs_of(SAME_PAIR[layout]) == [Pair((user("three"),), "good", "bad")]


def test_a_conversation_of_several_turns_keeps_them():
    expected = [Pair(tuple(TALK), "good", "bad")]
    assert pairs_of({"prompt": TALK, "chosen": "good", "rejected": "bad"}) == expected
    assert pairs_of({"chosen": [*TALK, assistant("good")], "rejected": [*TALK, assistant("bad")]}) == expected
    told = "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant: {}"
    assert pairs_of({"chosen": told.format("good"), "rejected": told.format("bad")}) == expected


def test_a_prompt_may_begin_with_a_role_s_name_and_be_a_question():
    row = {"prompt": "Assistant: is that a word?", "chosen": "good", "rejected": "bad"}
    assert pairs_of(row) == [Pair((user("Assistant: is that a word?"),), "good", "bad")]


def test_what_says_nothing_is_left_out_and_counted():
    rows: list[dict[str, Any]] = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "same ", "rejected": "same"},
        {"prompt": "q", "chosen": " ", "rejected": "b"},
        {"prompt": "", "chosen": "a", "rejected": "b"},
        {"chosen": [user("x"), assistant("a")], "rejected": [user("y"), assistant("b")]},
    ]
    left_out: dict[str, int] = {}
    assert len(list(pairs_from_rows(rows, "t", left_out))) == 1
    assert left_out == {"equal answers": 1, "empty answers": 2, "different prompts": 1, "repeated pairs": 1}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "q", "answer": "a"}, ["t, row 1 has no column 'chosen'", "prompt, answer"]),
        ({"prompt": "q", "chosen": "a"}, ["no column 'rejected'"]),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, ["t, row 1, chosen is 'None'", "list of messages"]),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, ["the prompt is '3'"]),
        ({"prompt": "q", "chosen": [{"role": "bot", "content": "a"}], "rejected": "b"}, ["system, user, assistant"]),
        ({"prompt": "q", "chosen": [], "rejected": "b"}, ["is '[]'"]),
        ({"chosen": "a", "rejected": "b"}, ["no conversation that ends with an answer", "Human:"]),
        ({"chosen": [user("q")], "rejected": [user("q")]}, ["no conversation that ends with an answer"]),
    ],
)
def test_wrong_columns_are_named(row, words):
    with pytest.raises(ValueError) as caught:
        pairs_of(row)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_files_of_every_kind_hold_the_same(tmp_path):
    rows = [{"prompt": f"q{i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(10)]
    lines = "\n".join(map(json.dumps, rows)).encode()
    (tmp_path / "p.jsonl").write_bytes(lines)
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "p.json").write_text(json.dumps(rows))
    (tmp_path / "p.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    read = [PreferenceOptions(data=str(path)).read()[:2] for path in sorted(tmp_path.iterdir())]
    assert len(read) == 5
    assert all(sides == read[0] for sides in read)
    assert sorted(p.chosen for side in read[0] for p in side) == [f"a{i}" for i in range(10)]
    assert len(read[0][1]) == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.jsonl", b"", "is empty"),
        ("p.json", b"[]", "holds no preference pairs"),
        ("p.json", b"{}", "holds a dict, not a list of rows"),
        ("p.json", b"[1]", "not an object"),
        ("p.json", b'{"a": 1}\n{"a": 2}', ".jsonl"),
        ("p.json", '["ä"]'.encode("latin-1"), "line 1 is not UTF-8"),
        ("p.json.gz", b"no gzip", "broken gzip"),
        ("p.jsonl", b'{"chosen": "a"', "line 1 is not JSON"),
        ("p.csv", b"chosen,rejected", "no file of records"),
        ("p.jsonl", b'{"prompt": "q", "chosen": "a", "rejected": "b"}', "one question or one chosen answer"),
        ("p.jsonl", rb'{"prompt": "q \ud83d", "chosen": "a", "rejected": "b"}', "row 1 holds half a surrogate pair"),
        ("p.jsonl", b'{"prompt": "q", "chosen": "a", "rejected": "a"}', "(1 equal answers left out)"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises((UserError, ValueError)) as caught:
        PreferenceOptions(data=str(path)).read()
    assert words in str(caught.value)


def test_flags_that_mean_nothing_are_refused():
    for options, words in (
        (PreferenceOptions(validation_share=0), "--validation-share"),
        (PreferenceOptions(validation_share=0.2), "--validation-share says nothing of --data python-docs"),
        (PreferenceOptions(max_pairs=1), "--max-pairs"),
        (PreferenceOptions(revision="main"), "--revision belongs to --data hub:"),
        (PreferenceOptions(data="x.jsonl", hub_split="test"), "--hub-split belongs to"),
    ):
        with pytest.raises(UserError, match=words):
            options.check()
    for data, words in (("nowhere.jsonl", "no such file"), ("hub:nobody", "hub:OWNER/NAME")):
        with pytest.raises(UserError, match=words):
            PreferenceOptions(data=data).read()


def test_the_hub_is_read_at_the_commit_that_is_noted(monkeypatch):
    asked = []

    def load_dataset(*arguments, **named):
        asked.append((arguments, named))
        return ({"prompt": f"q{i}", "chosen": "a", "rejected": f"b{i}", "n": i} for i in range(10**9))

    class Api:
        def dataset_info(self, dataset, revision, timeout):
            return SimpleNamespace(sha=f"commit of {dataset} at {revision}")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    options = PreferenceOptions(data="hub:a/b", hub_config="c", hub_split="s", revision="main", max_pairs=4)
    with pytest.raises(UserError, match="one question or one chosen answer"):
        options.read()  # all have the same answer, so no split keeps it on one side
    assert asked[0][0] == ("a/b", "c")
    assert asked[0][1] == {"split": "s", "revision": "commit of a/b at main", "streaming": True}


def test_a_hub_that_cannot_be_reached_is_one_clear_line():
    with pytest.raises(UserError, match=r"owner/name could not be read from the hub .* --data FILE"):
        PreferenceOptions(data="hub:owner/name").read()  # tests are offline


PAIRS = st.lists(st.builds(lambda q, a, b: Pair((user(f"q{q}"),), f"a{a}", f"b{b}"), *[st.integers(0, 9)] * 3))


@given(PAIRS, st.floats(0.01, 0.99), st.randoms())
def test_no_question_and_no_right_answer_is_on_both_sides(pairs, share, draw):
    try:
        training, validation = split_pairs(pairs, share)
    except UserError:
        return
    assert training
    assert validation
    assert sorted(map(repr, training + validation)) == sorted(map(repr, pairs))
    assert not {p.question for p in training} & {p.question for p in validation}
    assert not {p.chosen for p in training} & {p.chosen for p in validation}
    mixed = draw.sample(pairs, len(pairs))
    assert sorted(map(repr, split_pairs(mixed, share)[1])) == sorted(map(repr, validation))  # whatever the order


def test_the_share_of_questions_is_what_was_asked_for():
    pairs = [Pair((user(f"q{i}"),), f"a{i}", "b") for i in range(200)]
    assert [len(split_pairs(pairs, share)[1]) for share in (0.001, 0.1, 0.25, 0.999)] == [1, 20, 50, 199]


@given(st.lists(st.sampled_from("abcdefgh"), min_size=5, max_size=30).map(" ".join), st.integers(0, 99))
def test_a_corrupted_answer_is_what_its_kind_says_and_never_the_right_one(answer, seed):
    words = answer.split()
    if len(set(words)) < 2:
        with pytest.raises(ValueError, match="no other order"):
            corrupt(answer, "shuffled", "", random.Random(seed))
        return
    made = {kind: corrupt(answer, kind, "other one", random.Random(seed)) for kind in KINDS}
    assert answer not in made.values()
    assert made["other"] == "other one"
    assert answer.startswith(made["truncated"] + " ")
    assert sorted(made["shuffled"].split()) == sorted(words)
    again = made["repeated"].split()
    assert any(again == (words[:n] * len(words))[: len(again)] for n in (2, 3))
    with pytest.raises(ValueError, match="unknown kind"):
        corrupt(answer, "worse", "", random.Random(seed))


def test_the_embedded_pairs_come_from_docstrings_that_python_itself_shows():
    import asyncio
    import inspect
    import textwrap

    named = documented_names()
    assert len(named) > 3000
    for name, thing in (("textwrap.dedent", textwrap.dedent), ("asyncio.runners.run", asyncio.run)):
        doc = inspect.getdoc(thing) or ""
        assert named[name] == " ".join(doc.split("\n\n")[0].split())
    pairs = rule_pairs(named)
    assert pairs == rule_pairs(dict(sorted(named.items(), key=lambda item: item[1])))
    assert min(Counter(p.kind for p in pairs).values()) > len(pairs) / len(KINDS) * 0.8
    assert all(p.chosen != p.rejected for p in pairs)


def test_no_name_that_instructions_hold_out_is_learned_from():
    options = InstructionOptions()
    held_out = split_examples(read_examples(options), options)["validation"]
    asked = {example.question[-1]["content"] for example in held_out}
    training, validation, report = PreferenceOptions().read()
    assert not asked & {pair.messages[-1]["content"] for pair in training}
    assert len(asked & {pair.messages[-1]["content"] for pair in validation}) > 50
    assert not {p.chosen for p in training} & {p.chosen for p in validation}
    assert not {p.rejected for p in training if p.kind == "other"} & {p.chosen for p in validation}
    assert len(training) > 10 * len(validation) > 1000
    assert report["left_out"]["answers held out under another name"] > 0


def test_few_embedded_pairs_have_both_sides(monkeypatch):
    named = {f"m.f{i}": f"what the function {i} is for" for i in range(200)}
    monkeypatch.setattr("finetuning.instruction.preferences.documented_names", lambda: named)
    for n in (2, 3, 60):
        training, validation, _ = PreferenceOptions(max_pairs=n).read()
        assert len(training) + len(validation) == n
        assert training
        assert validation


def test_a_name_with_a_held_out_answer_is_on_neither_side():
    named = {f"m.f{i}": "the same answer to all of them" for i in range(99)}
    learned, held_out = split_names(named)
    assert not learned
    assert 0 < len(held_out) < 20
