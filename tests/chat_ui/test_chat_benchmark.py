"""The benchmark of users at once: what it measures, writes and refuses, on a tiny model."""

from __future__ import annotations

import pytest

from chat_ui.benchmark import ChatBenchmark, any_tokenizer, check, fresh_engine, main, questions
from tests.chat_ui.helpers import model_folder, tiny_model
from utils.errors import UserError
from utils.files import read_json


def test_a_row_for_each_number_of_users_and_a_table_that_says_what_was_measured(tmp_path):
    folder, readme = model_folder(tmp_path / "model", layout=None), tmp_path / "README.md"
    readme.write_text("<!-- chat:begin -->\n<!-- chat:end -->\n")
    options = ChatBenchmark(
        model=str(folder),
        name="tiny",
        users=(1, 3),
        prompt_tokens=5,
        new_tokens=6,
        repeats=2,
        threads=1,
        device="cpu",
        out=tmp_path / "results",
        readme=readme,
    )
    main(options)
    result = read_json(tmp_path / "results" / "tiny.json")
    assert [row["users"] for row in result["results"]] == [1, 3]
    for row in result["results"]:
        for way in ("one at a time", "the engine", "one batch"):
            assert len(row["all"][way]) == 2
            assert all(
                0 < m <= last <= whole
                for m, last, whole in zip(
                    row["first_median"][way], row["first_last"][way], row["all"][way], strict=True
                )
            )
    assert "tiny: 5 tokens each and an answer of 6, medians of 2 turns" in readme.read_text()


def test_an_engine_that_writes_something_else_is_not_timed(monkeypatch):
    model = tiny_model()
    engine = fresh_engine(model, any_tokenizer(model.config.vocab_size), 2)
    prompts = questions(model, 2, 4)
    check(engine, prompts, 5)
    monkeypatch.setattr("chat_ui.benchmark.generate_tokens", lambda *_: iter(()))
    with pytest.raises(UserError, match="0 of 2 answers"):
        check(engine, prompts, 5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model": "a", "shape": "gpt2-124m"}, "give one"),
        ({"users": ()}, "--users"),
        ({"new_tokens": 1}, "--new-tokens at least 2"),
    ],
)
def test_flags_that_cannot_be(flags, message):
    with pytest.raises(UserError, match=message):
        ChatBenchmark(**flags)
