"""Instructions of every shape become the same examples, once each, on one side; bad ones are one clear line."""

from __future__ import annotations

import ast
import gzip
import inspect
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from finetuning.instruction.instructions import (
    InstructionOptions,
    normalised,
    read_examples,
    side_of,
    split_examples,
)
from finetuning.instruction.python_questions import first_sentence, python_questions
from tests.conftest import ROOT
from utils.errors import UserError

ROWS = [
    {"instruction": "Name a fruit.", "input": "", "output": "Plum"},
    {"instruction": "Add them.", "input": "1 2", "output": "3"},
    {"instruction": "Add them.", "input": "2 2", "output": "4"},
    {"instruction": " name  A FRUIT", "input": None, "output": "Pear"},  # asked before
    {"instruction": "Say nothing.", "input": "", "output": " "},
    {"instruction": "Null?", "input": "", "output": None},
    {"instruction": None, "input": "x", "output": "y"},
]
WRITERS = {
    "a.json": lambda path: path.write_text(json.dumps(ROWS)),
    "b.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "c.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, ROWS))),
    "d.jsonl.gz": lambda path: path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode())),
    "e.parquet": lambda path: parquet.write_table(pa.Table.from_pylist(ROWS), path),
}


def read(path: Path, **options: str):
    report: dict[str, int] = {}
    examples = read_examples(InstructionOptions(data=str(path), **options), report)  # type: ignore[arg-type]
    return [([m["content"] for m in e.messages], e.name) for e in examples], report


def saved(path: Path, rows: object) -> Path:
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_examples(tmp_path, name):
    WRITERS[name](tmp_path / name)
    examples, report = read(tmp_path / name)
    assert examples == [
        (["Name a fruit.", "Plum"], "name a fruit"),
        (["Add them.\n\n### Input:\n1 2", "3"], "add them"),
        (["Add them.\n\n### Input:\n2 2", "4"], "add them"),
    ]
    assert report == {"rows": 7, "asked before": 1, "empty answers": 2, "empty questions": 1, "examples": 3}


def test_a_folder_is_all_its_files_and_other_columns_can_be_named(tmp_path):
    for i in range(2):
        rows = [{"q": f"Q{i}", "context": "c", "a": "A"}]
        (tmp_path / f"{i}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = {"instruction_column": "q", "input_column": "context", "output_column": "a"}
    examples, _ = read(tmp_path, **columns)
    assert [name for _, name in examples] == ["q0", "q1"]
    assert examples[0][0] == ["Q0\n\n### Input:\nc", "A"]


def test_chats_of_both_kinds_and_seed_tasks(tmp_path):
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Bye!")]
    messages = [{"role": role, "content": text} for role, text in turns]
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    shared = [{"from": names[role], "value": text} for role, text in turns]
    chat, _ = read(saved(tmp_path / "a.json", [{"messages": messages}]))
    assert chat == [([text for _, text in turns], "hi")]
    assert read(saved(tmp_path / "b.json", [{"conversations": shared}]))[0] == chat
    unanswered = [{"talk": [*messages, {"role": "user", "content": "?"}]}, {"talk": None}, {"talk": messages[:2]}]
    examples, report = read(saved(tmp_path / "c.json", unanswered), messages_column="talk")
    assert examples == chat
    assert report["without question or answer"] == 2
    seed = {"instruction": "Translate.", "instances": [{"input": "one", "output": "un"}, {"input": "", "output": "x"}]}
    examples, _ = read(saved(tmp_path / "d.json", [seed]))
    assert examples == [(["Translate.\n\n### Input:\none", "un"], "translate"), (["Translate.", "x"], "translate")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", [{"question": "Q", "answer": "A"}], "row 1 has the columns question, answer: name yours with"),
        ("a.json", [{"instruction": "Q", "output": 3}], "row 1: 'output' is 3, not a text"),
        ("a.json", [{"messages": "hi"}], "messages is 'hi', not a list of messages"),
        ("a.json", [{"messages": [{"text": "hi"}]}], "needs role and content"),
        ("a.json", [{"messages": [{"role": "tool", "content": "x"}]}], "a message is by 'tool', and roles are"),
        ("a.json", [{"messages": [{"role": ["user"], "content": "x"}]}], "a message is by ['user'], and roles are"),
        ("a.json", [{"messages": [{"role": {}, "content": "x"}]}], "a message is by {}, and roles are"),
        ("a.json", [], "holds no example with a question and an answer (0 examples)"),
        ("a.json", [{"instruction": "Q", "output": ""}], "(1 rows, 1 empty answers, 0 examples)"),
        ("a.json", {"data": []}, "holds a dict, not a list of rows"),
        ("a.json", ["x"], "row 1 is 'x', not an object with named columns"),
        ("a.json", [{"instruction": "\ud800", "output": "x"}], "half a surrogate pair"),
        ("a.json", b'{"a": 1}\n{"a": 2}', "JSON by lines is called .jsonl"),
        ("a.json", b'[\n{"instruction": "Caf\xe9", "output": "x"}]', "line 2 is not UTF-8"),
        ("a.jsonl", b'{"instruction": "a", "output": "b"}\n{"instruction": "Caf\xe9"}', "line 2 is not JSON ('utf-8'"),
        ("a.json.gz", b"\x1f\x8b junk", "broken gzip file"),
        ("a.parquet", b"junk", "is damaged or not Parquet"),
    ],
)
def test_bad_data_is_one_clear_line(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises((UserError, ValueError)) as caught:
        read(path)
    assert words in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_and_no_data_set_says_what_to_give(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"nowhere\.json: no such file or folder; use python-docs"):
        read(Path("nowhere.json"))
    with pytest.raises(UserError, match=r"no \.json, .* file below this folder"):
        read(tmp_path)
    fake = types.ModuleType("datasets")
    monkeypatch.setitem(sys.modules, "datasets", fake)

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    fake.load_dataset = unreachable  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"vicgalle/alpaca-gpt4 could not be read from the hub .no route.* --data PATH"):
        read(Path("vicgalle/alpaca-gpt4"))
    fake.load_dataset = lambda name, split: ROWS  # type: ignore[attr-defined]
    assert len(read(Path("vicgalle/alpaca-gpt4"))[0]) == 3


def test_the_hub_is_asked_through_datasets_itself(tmp_path, monkeypatch):
    """`datasets` opens a local folder as it opens the hub's: the same call, the same rows."""
    (tmp_path / "owner" / "set").mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "owner" / "set" / "train.parquet")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    from datasets import load_dataset

    rows = load_dataset(str(tmp_path / "owner" / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    assert [dict(row) for row in rows] == ROWS


# --- the split


def test_an_instruction_is_on_one_side_and_adding_rows_moves_none(tmp_path):
    rows = [{"instruction": f"Task {i % 400}.", "input": str(i), "output": "x"} for i in range(1200)]
    options = InstructionOptions(data=str(saved(tmp_path / "a.json", rows)), validation_share=0.2, test_share=0.1)
    examples = read_examples(options)
    sides = split_examples(examples, options)
    names = {side: {e.name for e in found} for side, found in sides.items()}
    assert sum(map(len, names.values())) == 400
    assert sum(map(len, sides.values())) == 1200
    assert 50 < len(names["validation"]) < 110  # 80 on average, with a deviation of 8
    assert 16 < len(names["test"]) < 64
    fewer = split_examples(examples[:300], options)
    assert all({e.name for e in fewer[side]} <= names[side] for side in names)
    other = InstructionOptions(data=options.data, validation_share=0.2, test_share=0.1, split_seed=1)
    assert {e.name for e in split_examples(examples, other)["validation"]} != names["validation"]
    some = split_examples(examples, InstructionOptions(data=options.data, validation_share=0.2, max_examples=10))
    assert len(some["train"]) == 10


@given(st.text(), st.integers(0, 3))
def test_case_space_and_end_marks_make_no_other_instruction(text, seed):
    assert normalised(f"  {text}\n") == normalised(text)
    assert normalised(normalised(text)) == normalised(text)
    options = InstructionOptions(split_seed=seed)
    assert side_of(normalised(text + "."), options) == side_of(normalised(text + " "), options)


def test_an_empty_side_says_so(tmp_path):
    path = saved(tmp_path / "a.json", ROWS[:1])
    options = InstructionOptions(data=str(path))
    with pytest.raises(UserError, match=r"no validation example among the 1 of .*a\.json: give more data"):
        split_examples(read_examples(options), options)
    for wrong in ({"validation_share": 0}, {"validation_share": 1}, {"test_share": 0.99}, {"max_examples": 0}):
        with pytest.raises(UserError, match="--"):
            InstructionOptions(**wrong)


# --- python-docs


@pytest.fixture(scope="module")
def pairs():
    return python_questions()


def test_questions_about_python_are_many_and_right(pairs):
    found = {pair.question: pair.answer for pair in pairs}
    assert len(found) == len(pairs)  # none is asked twice
    assert len({pair.name for pair in pairs}) > 4500
    assert found["What does `str.partition` do?"] == "Partition the string into three parts using the given separator."
    assert found["Show the signature of `textwrap.dedent`."] == "`textwrap.dedent(text)`"
    loads = "`json.loads(s, *, cls=None, object_hook=None, parse_float=None, parse_int=None, parse_constant=None, "
    assert found["Show the signature of `json.loads`."].startswith(loads)
    lower = "Which method of `str` returns a copy of the string converted to lowercase?"
    assert found[lower] == "`str.lower`"
    assert all(len(pair.answer) <= 170 and "\n" not in pair.answer for pair in pairs)
    assert not any(" object at 0x" in pair.answer for pair in pairs)  # would differ from run to run


def test_signatures_are_those_that_python_itself_tells(pairs):
    """`inspect` reads the living function; ours come from the source alone."""
    import bisect
    import fractions
    import shlex
    import textwrap

    found = {pair.question: pair.answer for pair in pairs}
    for function in (textwrap.wrap, shlex.split, bisect.bisect_left):
        name = f"{function.__module__.removeprefix('_')}.{function.__qualname__}"
        parameters = list(inspect.signature(function).parameters)
        answer = found[f"Show the signature of `{name}`."]
        shown = ast.parse(f"def f{answer.strip('`').removeprefix(name)}: 0").body[0]
        assert isinstance(shown, ast.FunctionDef)
        a = shown.args
        names = [x.arg for x in (*a.posonlyargs, *a.args, *([a.vararg] if a.vararg else []), *a.kwonlyargs)]
        assert names + ([a.kwarg.arg] if a.kwarg else []) == parameters
    method = found["Show the signature of `fractions.Fraction.limit_denominator`."]
    assert method == "`fractions.Fraction.limit_denominator(max_denominator=1000000)`"
    assert "self" in inspect.signature(fractions.Fraction.limit_denominator).parameters


def test_nothing_is_imported(pairs):
    assert "turtle" in {pair.name.split(".")[0] for pair in pairs}  # importing it would need a display's library
    assert "turtle" not in sys.modules


def test_held_out_names_are_unseen(pairs, monkeypatch):
    monkeypatch.setattr("finetuning.instruction.instructions.python_questions", lambda: pairs)
    options = InstructionOptions(validation_share=0.1)
    sides = split_examples(read_examples(options), options)
    train, held_out = ({e.name for e in sides[side]} for side in ("train", "validation"))
    assert not train & held_out
    about = {name for e in sides["train"] for name in re.findall(r"`(.*?)`", e.question[-1]["content"] + e.answer)}
    learned = {e.question[-1]["content"] for e in sides["train"] if not e.question[-1]["content"].startswith("Which")}
    assert not any(f"`{name}`" in question for name in held_out for question in learned)
    assert len(about & train) > 4000


def test_the_questions_are_the_same_in_every_process(pairs):
    """Sets and hashes differ between processes; the questions, and so the split, must not."""
    code = "from finetuning.instruction.python_questions import python_questions as q; print(q())"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == repr(pairs), done.stderr


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Return it. And more.", None),  # too short to say anything
        ("Return the very first one. And more.", "Return the very first one."),
        ("Open a file (e.g. a text) for\n    reading.\n\nMore.", "Open a file (e.g. a text) for reading."),
        ("No full stop at all", "No full stop at all."),
        ("f(x) -> int\n\nCount all the things.", "Count all the things."),
        ("These are the options:\n\n- a", None),
        ("x" * 200, None),
        (">>> a = dict(b=1)\n>>> a\n{'b': 1}", None),
        ("", None),
    ],
)
def test_the_first_sentence(docstring, expected):
    assert first_sentence(docstring) == expected


# --- real files


def test_real_sets_are_read_whole(data_folder):
    counts = {}
    names = ("alpaca_gpt4_subset.json.gz", "rasbt_instruction-data.json.gz", "seed_tasks.jsonl.gz")
    for name in names:
        options = InstructionOptions(data=str(data_folder / "instructions" / name))
        report: dict[str, int] = {}
        examples = read_examples(options, report)
        counts[name] = report["rows"]
        assert len(examples) > 0.9 * report["rows"]
        sides = split_examples(examples, options)
        assert not {e.name for e in sides["train"]} & {e.name for e in sides["validation"]}
    assert counts["rasbt_instruction-data.json.gz"] == 1100
