"""Checkpoints: what goes in comes out, whole or not at all."""

from __future__ import annotations

import errno
import math
import os
import shutil
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from utils import checkpoints
from utils.checkpoints import find_checkpoints, load_tree, newest_whole, prune, save_tree, write_checkpoint
from utils.files import read_json

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=10,
)


@given(trees)
def test_a_tree_of_plain_values_comes_back_equal_in_value_and_type(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("tree") / "t"
    save_tree(path, tree)
    assert repr(load_tree(path)) == repr(tree)


def test_tensors_come_back_bit_by_bit_and_one_stays_one(tmp_path):
    shared = torch.randn(3, 4)
    tree: dict[Any, Any] = {
        1: [shared, shared.T, torch.tensor(math.nan), torch.zeros(0, 2), torch.randn(4).bfloat16()],
        "same": shared,
        "byte": torch.get_rng_state(),
        "step": torch.tensor(5.0),
    }
    save_tree(tmp_path / "t", tree)
    loaded = load_tree(tmp_path / "t")
    for a, b in zip(tree[1], loaded[1], strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b) or (a.isnan().all() and b.isnan().all())
    assert loaded["same"].data_ptr() == loaded[1][0].data_ptr()
    assert torch.equal(loaded["byte"], tree["byte"])


def test_what_no_file_can_hold_safely_is_refused(tmp_path):
    with pytest.raises(TypeError, match="object cannot be stored"):
        save_tree(tmp_path / "t", {"a": [object()]})
    with pytest.raises(TypeError, match="cannot be a key"):
        save_tree(tmp_path / "t", {1.5: 0})


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * len(b)])
def test_a_damaged_tree_is_one_clear_error(tmp_path, damage):
    save_tree(tmp_path / "t", {"a": torch.ones(100)})
    (tmp_path / "t").write_bytes(damage((tmp_path / "t").read_bytes()))
    with pytest.raises(ValueError, match="damaged"):
        load_tree(tmp_path / "t")


def write(folder, step, **facts):
    return write_checkpoint(folder, step, lambda staging: save_tree(staging / "state", {"step": step}), **facts)


def test_the_newest_whole_one_is_found_and_damage_is_passed_over(tmp_path):
    for step in (5, 10, 100):
        write(tmp_path, step)
    assert [c.step for c in find_checkpoints(tmp_path)] == [100, 10, 5]
    told: list[str] = []
    (tmp_path / "step-00000100" / "state").write_bytes(b"broken")
    found = newest_whole(tmp_path, told.append)
    assert found is not None
    assert load_tree(found.folder / "state") == {"step": 10}
    assert "damaged" in told[0]
    (tmp_path / "step-00000010" / "checkpoint.json").write_text("{")
    oldest = newest_whole(tmp_path, told.append)
    assert oldest is not None
    assert oldest.step == 5
    (tmp_path / "step-00000005" / "state").unlink()
    told.clear()
    assert newest_whole(tmp_path, told.append) is None
    assert len(told) == 3
    assert all(text.endswith("; this checkpoint is passed over") for text in told)  # promises none before it
    assert newest_whole(tmp_path / "none") is None
    assert write(tmp_path, 100).damage() is None  # a damaged one is written over


def test_one_that_goes_while_somebody_looks_is_not_among_them(tmp_path, monkeypatch):
    for step in (1, 2):
        write(tmp_path, step)

    def read_as_it_goes(path):
        shutil.rmtree(path.parent) if "00000002" in path.parent.name else None
        return read_json(path)

    monkeypatch.setattr(checkpoints, "read_json", read_as_it_goes)
    assert [checkpoint.step for checkpoint in find_checkpoints(tmp_path)] == [1]


def test_the_last_and_the_best_are_kept(tmp_path):
    for step, loss in enumerate([3.0, 1.0, 2.0, 1.5, 1.7, None], 1):
        write(tmp_path, step, **({} if loss is None else {"validation_loss": loss}))
    prune(tmp_path, keep_last=2, keep_best=2)
    assert [c.step for c in find_checkpoints(tmp_path)] == [6, 5, 4, 2]
    prune(tmp_path, keep_last=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("No space left on device (os error 28)", errno.ENOSPC),
        ("No space left on device", errno.ENOSPC),
        (f"Disk quota exceeded (os error {errno.EDQUOT})", errno.EDQUOT),
        (f"File too large (os error {errno.EFBIG})", errno.EFBIG),
        ("something else", errno.EIO),
    ],
)
def test_a_full_disk_leaves_the_older_ones_and_nothing_else(tmp_path, monkeypatch, words, number):
    write(tmp_path, 1)

    def full(*_):
        raise SafetensorError(f"Error while serializing: I/O error: {words}")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError) as caught:
        write(tmp_path, 2)
    assert caught.value.errno == number
    assert caught.value.strerror == os.strerror(number)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_what_a_kill_left_is_never_taken_for_a_checkpoint(tmp_path):
    write(tmp_path, 1)
    (checkpoints.begin_checkpoint(tmp_path, 2) / "state").write_bytes(b"half")
    assert [c.step for c in find_checkpoints(tmp_path)] == [1]
    write(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes that die at a chosen call are made by fork")
@pytest.mark.parametrize("calls", range(7))
def test_a_kill_while_the_only_one_is_replaced_loses_nothing(tmp_path, monkeypatch, calls):
    """A writer dies before, between and after the calls that rename or remove something; the next one cleans up."""
    write(tmp_path, 1, of="old")

    def dies_at_last(function):
        def call(*arguments, **named):
            done.append(function)
            if len(done) > calls:
                os._exit(9)
            return function(*arguments, **named)

        return call

    done: list[object] = []
    if not (writer := os.fork()):
        for module, name in ((os, "replace"), (shutil, "rmtree")):
            monkeypatch.setattr(module, name, dies_at_last(getattr(module, name)))
        write(tmp_path, 1, of="new")
        os._exit(0)
    os.waitpid(writer, 0)
    found = newest_whole(tmp_path)
    assert found is not None
    assert found.step == 1
    checkpoints.begin_checkpoint(tmp_path, 2)
    again = newest_whole(tmp_path)
    assert again is not None
    assert again.facts == found.facts
    write(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
