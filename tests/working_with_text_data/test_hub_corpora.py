"""Data sets of the hub, with the hub's place taken by files that the real `datasets` streams."""

from __future__ import annotations

from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest

from utils.errors import UserError
from working_with_text_data.corpora import CorpusOptions

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """What was asked of the hub, which holds two configurations of one data set."""
    asked: list[tuple[str | None, ...]] = []
    for config, size in (("web", 10), ("books", 30)):
        rows = [{"text": f"{config} {i} ".ljust(size, "."), "n": i} for i in range(50)]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / f"{config}.parquet")
    load = datasets.load_dataset

    def load_dataset(name, config, *, split, revision, streaming):
        asked.append((name, config, split, revision))
        assert streaming
        file = str(tmp_path / f"{config or 'web'}.parquet")
        return load("parquet", data_files={"train": file}, split=split, streaming=True, cache_dir=str(tmp_path))

    def dataset_info(self, name, revision=None, timeout=None):
        asked.append((name, revision))
        return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    return asked


def test_a_name_is_resolved_once_and_read_at_that_commit(hub):
    options = CorpusOptions(corpus="hub:somebody/texts", hub_config="books", revision="main").resolved()
    assert options.describe()["revision"] == COMMIT
    assert options.resolved() == options  # a commit is not asked for again
    found = list(options.documents())
    assert hub == [("somebody/texts", "main"), ("somebody/texts", "books", "train", COMMIT)]
    assert [d.text for d in found] == [f"books {i} ".ljust(30, ".") for i in range(50)]
    assert found[2].name == "books#3"


def test_configurations_are_mixed_by_bytes(hub):
    options = CorpusOptions(corpus="hub:somebody/texts", mix="web=1,books=3", max_bytes=400)
    names = [d.name.split("#")[0] for d in options.documents()]
    assert names.count("web") == names.count("books") == 10  # of 10 and 30 bytes each


def test_smollm_is_such_a_data_set(hub, monkeypatch):
    with pytest.raises(UserError, match="needs --mix, such as"):
        CorpusOptions(corpus="smollm").resolved()
    with pytest.raises(UserError, match="python-edu holds no text"):
        CorpusOptions(corpus="smollm", mix="cosmopedia-v2=1,python-edu=1").documents()
    with pytest.raises(UserError, match="smollm has no 'fineweb'"):
        CorpusOptions(corpus="smollm", mix="fineweb=1").documents()
    assert hub == []
    options = CorpusOptions(corpus="smollm", mix="fineweb-edu-dedup=0.7,cosmopedia-v2=0.3").resolved()
    assert options.revision == COMMIT
    assert hub == [("HuggingFaceTB/smollm-corpus", None)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"text_column": "story"}, "row 1 has only text, n and not the column 'story'"),
        ({"text_column": "n"}, "row 1 has 0 in the column 'n'"),
        ({"hub_split": "test"}, "could not be read from the hub"),
        ({"corpus": "hub:texts"}, "write it as hub:OWNER/NAME"),
        ({"mix": "web=1", "hub_config": "web"}, "give one of them"),
    ],
)
def test_mistakes_are_told_in_one_line(hub, more, message):
    with pytest.raises(UserError, match=message) as caught:
        list(CorpusOptions(**({"corpus": "hub:somebody/texts"} | more)).documents())
    assert "\n" not in str(caught.value)


def test_without_a_network_the_files_are_named(monkeypatch):
    """The real library, which the tests keep from the network."""
    for revision in (None, COMMIT):
        options = CorpusOptions(corpus="smollm", mix="cosmopedia-v2=1", revision=revision)
        with pytest.raises(UserError, match=r"datasets/HuggingFaceTB/smollm-corpus into FOLDER/fineweb-edu-dedup/"):
            list(options.resolved().documents())


def test_a_network_that_breaks_is_told(hub, monkeypatch):
    def breaking(*_, **__):
        yield {"text": "one"}
        raise TimeoutError("the server is silent")

    monkeypatch.setattr(datasets, "load_dataset", breaking)
    stream = CorpusOptions(corpus="hub:somebody/texts").documents()
    assert next(stream).text == "one"
    with pytest.raises(UserError, match=r"hub \(the server is silent\): run the same command again"):
        next(stream)
