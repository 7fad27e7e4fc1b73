"""Shards hold exactly the documents' ids; batches are every window once an epoch."""

from __future__ import annotations

import json
import os
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.corpora import Document, Split
from working_with_text_data.token_shards import (
    IGNORE,
    Batches,
    TokenShards,
    document_numbers,
    evaluation_windows,
    token_dtype,
    write_shards,
)

DOCUMENTS: list[tuple[Split, Document]] = [
    ("train" if i % 4 else "validation", Document(f"d{i}", f"document number {i}. " * (i + 1))) for i in range(12)
]


@pytest.fixture(scope="module")
def tokenizer():
    return BytePairTokenizer.train([d.text for _, d in DOCUMENTS], 280)


@pytest.fixture
def folder(tokenizer, tmp_path):
    write_shards(tmp_path / "tokens", DOCUMENTS, tokenizer, {"why": "test"}, shard_tokens=50)
    return tmp_path / "tokens"


def test_shards_are_the_documents_with_an_end_after_each(folder, tokenizer):
    shards = TokenShards.open(folder)
    for split in ("train", "validation"):
        expected = []
        for side, document in DOCUMENTS:
            if side == split:
                expected += [*tokenizer.encode_ordinary(document.text), tokenizer.eot_token]
        assert np.concatenate(shards.arrays[split]).tolist() == expected
        assert all(len(array) == 50 for array in shards.arrays[split][:-1])
        part = shards.manifest[split]
        assert part["tokens"] == len(expected)
        assert part["bytes"] == sum(len(d.text) for side, d in DOCUMENTS if side == split)
    rows = [json.loads(line) for line in (folder / "documents.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["name"] for row in rows] == [d.name for _, d in DOCUMENTS]


def test_ids_are_stored_in_the_smaller_type_that_holds_them():
    assert token_dtype(65_536).itemsize == 2
    assert token_dtype(65_537).itemsize == 4


def test_the_same_input_gives_the_same_bytes(folder, tokenizer, tmp_path):
    write_shards(tmp_path / "again", DOCUMENTS, tokenizer, {"why": "test"}, shard_tokens=50)
    names = sorted(os.listdir(folder))
    assert names == sorted(os.listdir(tmp_path / "again"))
    assert all((folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


def test_another_tokenizer_is_refused(folder, tmp_path):
    BytePairTokenizer.train(["something else entirely, else"], 280).save(tmp_path / "foreign.json")
    with pytest.raises(ValueError, match="is not the tokenizer that made the shards"):
        TokenShards.open(folder, tmp_path / "foreign.json")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="no tokenizer at"):
        TokenShards.open(folder)


def test_damage_is_found(folder, tmp_path):
    shard = folder / "train_00001.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"train_00001\.bin has 98 bytes, not 100"):
        TokenShards.open(folder)
    shard.write_bytes(shard.read_bytes() + b"xx")
    with pytest.raises(ValueError, match=r"train_00001\.bin is damaged"):
        TokenShards.open(folder).verify()
    with pytest.raises(ValueError, match="no token shards in"):
        TokenShards.open(tmp_path / "nowhere")
    (folder / "manifest.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="not a manifest"):
        TokenShards.open(folder)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tokenizer_fingerprint", (None, 5, ["x"])),
        ("dtype", (None, "float16", "nothing", 7, ["uint16"])),
        ("made_by", (None, "me", [])),
        ("train", (None, [], "x", {}, {"shards": {}}, {"shards": ["train_00000.bin"]}, {"shards": [{}]})),
        ("validation", ({"shards": [{"file": "validation_00000.bin", "tokens": "50", "sha256": "x"}]},)),
        ("validation", ({"shards": [{"file": 5, "tokens": 50, "sha256": "x"}]},)),
        ("validation", ({"shards": [{"file": "validation_00000.bin", "tokens": 50}]},)),
    ],
)
def test_a_damaged_manifest_gets_one_line(folder, name, values):
    path = folder / "manifest.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    lacking = {key: value for key, value in whole.items() if key != name}
    for damaged in (lacking, *({**whole, name: value} for value in values)):
        path.write_text(json.dumps(damaged), encoding="utf-8")
        with pytest.raises(ValueError, match=rf"manifest\.json is damaged, it has no whole '{name}'"):
            TokenShards.open(folder)


def test_nothing_is_left_when_writing_fails(tokenizer, tmp_path):
    def failing():
        yield DOCUMENTS[1]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_shards(tmp_path / "tokens", failing(), tokenizer, {})
    with pytest.raises(ValueError, match="no text for validation"):
        write_shards(tmp_path / "tokens", DOCUMENTS[1:2], tokenizer, {})
    assert os.listdir(tmp_path) == []


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    context=st.integers(1, 9),
    batch_size=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_every_token_is_a_target_once_an_epoch(lengths, context, batch_size, seed):
    n = sum(lengths)
    arrays = [np.arange(a, b) for a, b in pairwise(np.cumsum([0, *lengths]))]
    try:
        batches = Batches(arrays, context, batch_size, seed)
    except ValueError as error:
        assert "too few for a batch" in str(error)
        assert n <= context or -(-n // context) < batch_size
        return
    three_epochs = -(-3 * batches.windows // batch_size)
    seen = [batches.batch(step) for step in range(three_epochs)]
    inputs, targets = (np.concatenate(part)[: 3 * batches.windows] for part in zip(*seen, strict=True))
    asked = targets != IGNORE
    assert (targets == (inputs + 1) % n)[asked].all()  # each target is the id that follows, around the ring
    assert ((inputs[:, 1:] - inputs[:, :-1]) % n == 1 % n).all()  # windows are unbroken
    for epoch in range(3):
        window = slice(epoch * batches.windows, (epoch + 1) * batches.windows)
        assert sorted(targets[window][asked[window]]) == list(range(n))


@given(st.sampled_from([1, 2, 3, 6]), st.integers(0, 30))
def test_ranks_share_the_batch(ranks, step):
    arrays = [np.arange(40), np.arange(40, 100)]
    batches = Batches(arrays, 7, 6, seed=1)
    for whole, *parts in zip(batches.batch(step), *(batches.batch(step, r, ranks) for r in range(ranks)), strict=True):
        assert (np.concatenate(parts) == whole).all()
    with pytest.raises(ValueError, match="6 windows does not divide by 4 ranks"):
        batches.batch(0, 0, 4)


def test_document_numbers_count_the_ends():
    inputs = np.array([[5, 9, 6, 6, 9, 9, 7], [9, 1, 1, 1, 1, 1, 9]])
    expected = [[0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1]]
    assert document_numbers(inputs, end_of_text=9).tolist() == expected


def test_a_batch_depends_on_seed_and_step_alone():
    arrays = [np.arange(1000)]
    one, other = Batches(arrays, 8, 4, seed=1), Batches(arrays, 8, 4, seed=1)
    for step in (50, 3, 0, 99, 3):  # any order
        assert (one.batch(step)[0] == other.batch(step)[0]).all()
    assert not (one.batch(0)[0] == Batches(arrays, 8, 4, seed=2).batch(0)[0]).all()
    with pytest.raises(ValueError, match="at least 1"):
        Batches(arrays, 0, 4)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 20), st.integers(1, 200))
def test_evaluation_windows_lie_side_by_side_whatever_the_shards(lengths, context, max_tokens):
    n = sum(lengths)
    shards = np.split(np.arange(n), np.cumsum(lengths)[:-1])
    if n < 2:
        with pytest.raises(ValueError, match="too little validation text"):
            evaluation_windows(shards, context)
        return
    windows = evaluation_windows(shards, context)
    assert (np.diff(windows, axis=1) == 1).all()
    assert windows[0, 0] == 0
    assert (windows[1:, 0] == windows[:-1, -1]).all()
    unseen = n - 1 - windows[:, 1:].size
    assert 0 <= unseen < context
    assert windows.shape[1] == min(context + 1, n)
    some = evaluation_windows(shards, context, max_tokens)
    assert some.tolist() == evaluation_windows([np.arange(n)], context, max_tokens).tolist()


def test_evaluation_windows_are_spread_over_all_text():
    windows = evaluation_windows([np.arange(1001)], 10, max_tokens=50)
    assert windows.shape == (5, 11)
    assert windows[0, 0] == 0
    assert windows[-1, -1] == 1000
    with pytest.raises(ValueError, match="too little validation text"):
        evaluation_windows([np.arange(1)], 10)
