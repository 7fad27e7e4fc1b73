"""Files are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils import files


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_write_bytes_replaces_and_makes_folders(tmp_path):
    target = tmp_path / "a" / "b" / "file"
    files.write_bytes(target, b"one")
    files.write_bytes(target, b"two")
    assert target.read_bytes() == b"two"
    assert listing(target.parent) == ["file"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "file"
    files.write_bytes(target, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert listing(tmp_path) == ["file"]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_and_json_come_back_exactly(text):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        files.write_text(path, text)
        assert path.read_bytes() == text.encode("utf-8")
        files.write_json(path, {"text": text})
        assert files.read_json(path) == {"text": text}


def test_a_file_that_is_not_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.json is not a readable JSON file"):
        files.read_json(tmp_path / "x.json")


def test_replace_folder_swaps_at_the_end(tmp_path):
    target = tmp_path / "model"
    for content in ("one", "two"):
        with files.replace_folder(target, "config.json") as staging:
            (staging / "config.json").write_text(content, encoding="utf-8")
            assert target.exists() == (content == "two")
        assert (target / "config.json").read_text(encoding="utf-8") == content
    assert listing(tmp_path) == ["model"]


def test_replace_folder_keeps_the_old_one_on_any_error(tmp_path):
    target = tmp_path / "model"
    with files.replace_folder(target, "config.json") as staging:
        (staging / "config.json").write_text("old", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt), files.replace_folder(target, "config.json") as staging:
        (staging / "config.json").write_text("new", encoding="utf-8")
        raise KeyboardInterrupt
    assert (target / "config.json").read_text(encoding="utf-8") == "old"
    assert listing(tmp_path) == ["model"]


def test_replace_folder_never_takes_somebody_s_own_folder(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work", encoding="utf-8")
    for name in ("", "config.json"):  # a marker alone does not make it ours
        if name:
            (tmp_path / "thesis" / name).write_text("{}", encoding="utf-8")
        with (
            pytest.raises(ValueError, match=r"holds 'chapter1\.tex', which is not ours"),
            files.replace_folder(tmp_path / "thesis", "config.json", ["*.bin"]),
        ):
            pass
    assert listing(tmp_path / "thesis") == ["chapter1.tex", "config.json"]


def test_replace_folder_follows_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    try:
        (tmp_path / "model").symlink_to(tmp_path / "disk", target_is_directory=True)
    except OSError:
        pytest.skip("this user may not make links")
    for content in ("one", "two"):
        with files.replace_folder(tmp_path / "model", "config.json") as staging:
            (staging / "config.json").write_text(content, encoding="utf-8")
    assert (tmp_path / "disk" / "config.json").read_text(encoding="utf-8") == "two"
    assert (tmp_path / "model").is_symlink()


def test_a_kill_between_the_two_renames_is_undone(tmp_path):
    """The one instant at which the target is absent: readers find the old one, the next writer puts it back."""
    target = tmp_path / "model"
    code = f"""
import os
from utils import files
target = {str(target)!r}
def write(content):
    with files.replace_folder(target, "config.json") as staging:
        (staging / "config.json").write_text(content)
write("old")
rename, calls = os.replace, []
def replace(a, b):
    calls.append(a)
    if len(calls) == 2:
        os._exit(9)  # as SIGKILL would: no handler runs
    rename(a, b)
os.replace = replace
write("new")
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert not target.exists()
    found = files.latest_whole_folder(target, "config.json")  # what a reader reads
    assert (found / "config.json").read_text(encoding="utf-8") == "old"
    with pytest.raises(KeyError), files.replace_folder(target, "config.json"):
        raise KeyError  # a writer that fails as well
    assert (target / "config.json").read_text(encoding="utf-8") == "old"
    with files.replace_folder(target, "config.json") as staging:
        (staging / "config.json").write_text("new", encoding="utf-8")
    assert files.latest_whole_folder(target, "config.json") == target
    assert (target / "config.json").read_text(encoding="utf-8") == "new"


def test_require_writable_leaves_nothing(tmp_path):
    assert files.require_writable(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert listing(tmp_path) == []
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(NotADirectoryError):
        files.require_writable(tmp_path / "file" / "b")


def test_sha256_of_the_empty_file(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert files.sha256_of(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
