"""Which models can be picked, what is loaded, and what a conversation can begin with."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from chat_ui.chat_engine import ChatEngine
from chat_ui.models import Models, choices, shown_name
from chat_ui.starters import starters
from tests.chat_ui.helpers import model_folder
from utils.errors import UserError


def test_folders_that_answer_come_first_then_base_models_then_the_published_ones(tmp_path):
    model_folder(tmp_path / "demo" / "model", layout=None)
    model_folder(tmp_path / "demo" / "instruct" / "model")
    model_folder(tmp_path / "newer" / "model")
    os.utime(tmp_path / "demo" / "instruct" / "model" / "config.json", (1, 1))
    classifier = model_folder(tmp_path / "labels" / "model", layout=None)
    (classifier / "classifier.safetensors").write_bytes(b"")
    (tmp_path / "a-run").mkdir()
    (tmp_path / "a-run" / "config.json").write_text("{}")
    model_folder(tmp_path / "a-run" / "checkpoints" / "step-1")
    found = choices(tmp_path)
    assert [choice.name for choice in found] == [
        "newer",
        "demo/instruct",
        "demo",
        "gpt2",
        "gpt2-medium",
        "gpt2-large",
        "gpt2-xl",
    ]
    assert [choice.answers for choice in found[:4]] == [True, True, False, False]
    assert "Made by `a_test.py`" in found[0].about
    assert choices(tmp_path / "nowhere")[0].name == "gpt2"


def test_a_model_is_loaded_once_however_many_ask(tmp_path):
    folder = str(model_folder(tmp_path / "one" / "model"))
    made = []

    def make(*arguments):
        made.append(ChatEngine(*arguments))
        return made[-1]

    models = Models(tmp_path, make_engine=make)
    got = []
    threads = [threading.Thread(target=lambda: got.append(models.engine(folder))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and got == made * 8
    assert made[0].name == "one" and made[0].layout is not None


def test_a_model_that_loads_keeps_nobody_from_another(tmp_path):
    slow, quick = (str(model_folder(tmp_path / name / "model")) for name in ("slow", "quick"))
    begun, may_end = threading.Event(), threading.Event()

    def make(*arguments):
        if arguments[-1] == "slow":
            begun.set()
            assert may_end.wait(30)
        return ChatEngine(*arguments)

    def load_quickly():
        models.engine(quick)
        done.set()

    models, done = Models(tmp_path, make_engine=make), threading.Event()
    threads = [threading.Thread(target=models.engine, args=(slow,))]
    threads.append(threading.Thread(target=load_quickly))
    threads[0].start()
    assert begun.wait(30)
    threads[1].start()
    was_served = done.wait(10)
    may_end.set()
    for thread in threads:
        thread.join()
    assert was_served


def test_no_two_models_have_one_name(tmp_path):
    folders = [tmp_path / "gpt2" / "model", tmp_path / "gpt2-xl", tmp_path / "one", tmp_path / "one" / "model"]
    for folder in folders:
        model_folder(folder, layout=None)
    found = {choice.name: choice.source for choice in choices(tmp_path)}
    assert found["gpt2"] == "gpt2" and found["gpt2/model"] == str(folders[0])
    assert found["one"] == str(folders[2]) and found["one/model"] == str(folders[3])
    assert set(map(str, folders)) <= set(found.values()) and len(found) == len(choices(tmp_path)) == 8


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("runs/demo/instruct/model", "demo/instruct"),
        ("elsewhere/model", "elsewhere"),
        ("model", "model"),
        ("gpt2", "gpt2"),
        ("/models/demo/instruct/model", "/models/demo/instruct"),
        ("/model", "/"),
        (".", "."),
        ("runs", "."),
    ],
)
def test_what_a_folder_is_called(folder, name):
    assert shown_name(Path(folder), Path("runs")) == name


def test_a_model_that_was_trained_anew_is_loaded_anew_and_one_that_is_gone_stays(tmp_path):
    folder = model_folder(tmp_path / "one" / "model", seed=0)
    models = Models(tmp_path)
    first = models.engine(str(folder))
    model_folder(folder, seed=1)
    os.utime(folder / "config.json", (10, 10))
    second = models.engine(str(folder))
    assert second is not first
    shutil.rmtree(folder)
    assert models.engine(str(folder)) is second


def test_of_many_models_those_go_that_nobody_waits_for(tmp_path):
    folders = [str(model_folder(tmp_path / str(n) / "model")) for n in range(4)]
    models = Models(tmp_path, most=2)
    engines = [models.engine(folder) for folder in folders]
    assert models.engine(folders[3]) is engines[3]
    assert models.engine(folders[0]) is not engines[0]


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_a_broken_model_is_a_line_that_says_what_to_do(tmp_path, damage):
    folder = model_folder(tmp_path / "one" / "model")
    (folder / damage).write_text("{% broken")
    with pytest.raises(UserError) as caught:
        Models(tmp_path).engine(str(folder))
    assert str(folder) in str(caught.value) and "make demo" in str(caught.value)


def test_a_model_that_cannot_be_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="gpt2-xl cannot be opened"):
        Models(tmp_path).engine("gpt2-xl")


def test_starters_are_what_the_run_kept(tmp_path):
    folder = model_folder(tmp_path / "demo" / "instruct" / "model")
    kept = [
        {"side": side, "messages": [{"role": "user", "content": f"{side} question {n} " + "long " * 20}]}
        for side in ("trained", "held out")
        for n in range(5)
    ]
    (folder.parent / "questions.json").write_text(json.dumps(kept))
    model_folder(tmp_path / "demo" / "dpo" / "model")
    model_folder(tmp_path / "base" / "model", layout=None)
    found = {choice.name: choice for choice in choices(tmp_path)}
    for name in ("demo/instruct", "demo/dpo"):
        shown = starters(found[name])
        assert [text.split(" long")[0] for _, text in shown] == [
            "trained question 0",
            "trained question 1",
            "trained question 2",
            "held out question 0",
        ]
        assert all(len(label) <= 60 for label, _ in shown)
    for name in ("base", "gpt2"):
        assert len(starters(found[name])) == 4
    (folder.parent / "questions.json").write_text("not json")
    assert len(starters(found["demo/instruct"])) == 4
