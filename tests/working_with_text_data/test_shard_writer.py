"""However often the writing of shards is stopped, and by how many processes, it ends with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import weakref

import pytest

from tests.conftest import ROOT
from working_with_text_data import shard_writer
from working_with_text_data.bytepair_enc import BytePairTokenizer, bpe
from working_with_text_data.corpora import Document, Split
from working_with_text_data.token_shards import TokenShards, write_shards

SETTINGS = {"corpus": "made up"}


def documents(n: int = 30) -> list[tuple[Split, Document]]:
    return [
        (
            "validation" if i % 5 == 4 else "train",
            Document(f"d{i}", f"document {i}, \u00e9\u00e8. " * (i + 1), {"n": i}),
        )
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return BytePairTokenizer.train([d.text for _, d in documents()], 280)


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory):
    """The files of a folder that was written without a stop."""
    folder = tmp_path_factory.mktemp("whole") / "tokens"
    write_shards(folder, documents(), tokenizer, {}, shard_tokens=300)
    return contents(folder)


@pytest.fixture
def saves_always(monkeypatch):
    monkeypatch.setattr(shard_writer, "SAVE_SECONDS", 0)
    monkeypatch.setattr(bpe, "_CHUNK", 1)  # each document by itself


def contents(folder):
    """name -> bytes of all files but the manifest, which may say how it was made."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def stopping_after(n, error=KeyboardInterrupt):
    yield from documents()[:n]
    raise error


def write(folder, tokenizer, stream, settings=SETTINGS, processes=1):
    return write_shards(folder, stream, tokenizer, {}, 300, processes, settings)


@pytest.mark.parametrize("stops", [[1], [5], [29], [30], [3, 4, 17, 17, 30], list(range(1, 31))])
def test_stopped_and_gone_on_with(tokenizer, whole, saves_always, tmp_path, stops):
    folder = tmp_path / "tokens"
    for n in stops:
        with pytest.raises(KeyboardInterrupt):
            write(folder, tokenizer, stopping_after(n))
        assert not folder.exists()
    manifest = write(folder, tokenizer, documents())
    assert contents(folder) == whole
    TokenShards.open(folder).verify()
    assert manifest["train"]["documents"] + manifest["validation"]["documents"] == 30
    assert os.listdir(tmp_path) == ["tokens"]


def test_what_is_done_is_not_tokenised_again(tokenizer, saves_always, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "tokens", tokenizer, stopping_after(20))
    tokenised: list[str] = []
    encode = BytePairTokenizer._encode_texts

    def noted(self, texts, *rules):
        tokenised.extend(texts)
        return encode(self, texts, *rules)

    monkeypatch.setattr(BytePairTokenizer, "_encode_texts", noted)
    write(tmp_path / "tokens", tokenizer, documents())
    assert tokenised == [document.text for _, document in documents()[20:]]


def test_what_a_kill_wrote_behind_the_last_save_is_cut_off(tokenizer, whole, saves_always, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "tokens", tokenizer, stopping_after(12))
    (staging,) = tmp_path.iterdir()
    for path in staging.iterdir():
        if path.name in ("documents.jsonl", max(p.name for p in staging.glob("train_*.bin"))):
            path.write_bytes(path.read_bytes() + b"half a docu")
    (staging / f"train_{len(list(staging.glob('train_*'))):05d}.bin").write_bytes(b"a shard begun after the last save")
    write(tmp_path / "tokens", tokenizer, documents())
    assert contents(tmp_path / "tokens") == whole


def test_what_a_disk_lost_is_written_again(tokenizer, whole, saves_always, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "tokens", tokenizer, stopping_after(12))
    (staging,) = tmp_path.iterdir()
    (staging / "train_00000.bin").write_bytes(b"")
    write(tmp_path / "tokens", tokenizer, documents())
    assert contents(tmp_path / "tokens") == whole


KILLED = """
import os, signal, sys
from tests.working_with_text_data.test_shard_writer import documents, write
from working_with_text_data import shard_writer
from working_with_text_data.bytepair_enc import BytePairTokenizer, bpe

if __name__ == "__main__":
    shard_writer.SAVE_SECONDS, bpe._CHUNK = 0, 1
    folder, tokenizer, n = sys.argv[1], BytePairTokenizer.load(sys.argv[2]), int(sys.argv[3])
    def killed():
        for i, pair in enumerate(documents()):
            if i == n:
                os.kill(os.getpid(), signal.SIGKILL)
            yield pair
    write(folder, tokenizer, killed(), processes=int(sys.argv[4]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_for_real(tokenizer, whole, tmp_path, processes):
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "killed.py").write_text(KILLED, encoding="utf-8")
    (tmp_path / "out").mkdir()
    folder = tmp_path / "out" / "tokens"
    for n in (11, 23):
        command = [sys.executable, tmp_path / "killed.py", folder, tmp_path / "tokenizer.json", n, processes]
        done = subprocess.run([*map(str, command)], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120)
        assert done.returncode == -signal.SIGKILL
    (staging,) = (tmp_path / "out").iterdir()
    assert (staging / "progress.json").is_file()
    write(folder, tokenizer, documents())
    assert contents(folder) == whole


def test_any_number_of_processes_gives_the_same_bytes(tokenizer, whole, saves_always, tmp_path):
    write(tmp_path / "tokens", tokenizer, documents(), processes=3)
    assert contents(tmp_path / "tokens") == whole


def test_other_settings_begin_anew_and_remove_the_stale(tokenizer, whole, saves_always, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "tokens", tokenizer, stopping_after(12), settings={"corpus": "another"})
    write(tmp_path / "tokens", tokenizer, documents())
    assert contents(tmp_path / "tokens") == whole
    assert os.listdir(tmp_path) == ["tokens"]
    assert "other settings" in capsys.readouterr().out


@pytest.mark.parametrize("corpus", [documents()[1:], documents()[:5]])
def test_another_corpus_is_not_gone_on_with(tokenizer, saves_always, tmp_path, corpus):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "tokens", tokenizer, stopping_after(12))
    with pytest.raises(ValueError, match="corpus is not what it was"):
        write(tmp_path / "tokens", tokenizer, corpus)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot lock folders")
def test_two_at_once_are_refused(tokenizer, saves_always, tmp_path):
    def both():
        yield from documents()[:9]
        with pytest.raises(ValueError, match="another process is writing"):
            write(tmp_path / "tokens", tokenizer, documents())
        yield from documents()[9:]

    write(tmp_path / "tokens", tokenizer, both())
    TokenShards.open(tmp_path / "tokens").verify()


def test_a_failure_keeps_what_was_saved_and_only_that(tokenizer, whole, tmp_path, monkeypatch):
    broken = ConnectionError("the network is gone")
    with pytest.raises(ConnectionError):
        write(tmp_path / "tokens", tokenizer, stopping_after(12, broken))
    assert os.listdir(tmp_path) == []  # ten seconds were not over: there was nothing to keep
    monkeypatch.setattr(shard_writer, "SAVE_SECONDS", 0)
    monkeypatch.setattr(bpe, "_CHUNK", 1)
    with pytest.raises(ConnectionError):
        write(tmp_path / "tokens", tokenizer, stopping_after(12, broken))
    write(tmp_path / "tokens", tokenizer, documents())
    assert contents(tmp_path / "tokens") == whole


class CountedText(str):
    """A text that can be seen to be let go."""

    __slots__ = ("__weakref__",)


@pytest.mark.parametrize(("processes", "bound"), [(1, 10), (2, 40)])
def test_memory_does_not_grow_with_the_corpus(tokenizer, tmp_path, monkeypatch, processes, bound):
    """Texts are let go as they are written: few of 400 are ever alive together."""
    monkeypatch.setattr(bpe, "_CHUNK", 5_000)
    alive: weakref.WeakSet[CountedText] = weakref.WeakSet()
    most = 0

    def many():
        nonlocal most
        for i in range(400):
            text = CountedText(f"document {i} " * 100)
            alive.add(text)
            most = max(most, len(alive))
            yield "validation" if i % 10 == 9 else "train", Document(f"d{i}", text)

    manifest = write(tmp_path / "tokens", tokenizer, many(), processes=processes)
    assert manifest["train"]["documents"] == 360
    assert 4 <= most <= bound
