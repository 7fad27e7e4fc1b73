"""A C++ file is compiled once, loaded, and done without where there is no compiler."""

from __future__ import annotations

import ctypes
import os

import pytest

from utils.native import load_native


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCHBOOK_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "twice.cpp"
    path.write_text('extern "C" int twice(int n) { return 2 * n; }\n', encoding="utf-8")
    load_native.cache_clear()
    yield path
    load_native.cache_clear()


def test_a_file_is_compiled_once(source, tmp_path, monkeypatch):
    library = load_native(source)
    if library is None:
        pytest.skip("no C++ compiler on this machine")
    assert library.twice(21) == 42
    (made,) = (tmp_path / "cache" / "native").iterdir()
    before = made.stat().st_mtime_ns
    load_native.cache_clear()
    assert isinstance(load_native(source), ctypes.CDLL)
    assert made.stat().st_mtime_ns == before
    source.write_text('extern "C" int twice(int n) { return n + n + 0; }\n', encoding="utf-8")
    load_native.cache_clear()
    assert load_native(source) is not None
    assert len(os.listdir(made.parent)) == 2  # another text is another library


def test_without_a_compiler_there_is_none(source, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert load_native(source) is None


def test_none_can_be_asked_for(source, monkeypatch):
    monkeypatch.setenv("SCRATCHBOOK_NATIVE", "0")
    assert load_native(source) is None


def test_what_does_not_compile_is_done_without(source):
    source.write_text("this is no C++\n", encoding="utf-8")
    assert load_native(source) is None
