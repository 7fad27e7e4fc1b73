"""Work in several processes comes back in order; text that comes in parts has the ids of the whole text."""

from __future__ import annotations

import itertools
import operator
import os
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import parallel
from utils.parallel import map_in_order
from working_with_text_data.bytepair_enc import (
    GPT2_PATTERN,
    GPT4_PATTERN,
    GPT4O_PATTERN,
    BytePairTokenizer,
    StreamDecoder,
    encode_file,
    encode_stream,
    streaming,
)
from working_with_text_data.bytepair_enc.word_cuts import CUTTERS


def noted(items, read):
    """The items, each put into `read` when it is taken."""
    for item in items:
        read.append(item)
        yield item


# --- map_in_order: what goes to another process stands at the top level -----------------------------------------------


def slow_first(i):
    """The earlier the item, the longer it takes, so that results are ready in another order."""
    time.sleep(0.02 * max(0, 6 - i))
    return i * i


def refuse_three(i):
    if i == 3:
        raise KeyError("three is refused")
    return i


def process_of(_):
    return os.getpid()


_here = {"offset": 0}


def set_offset(offset):
    _here["offset"] += offset


def add_offset(i):
    return i + _here["offset"]


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(num_processes):
    assert list(map_in_order(slow_first, range(20), num_processes)) == [i * i for i in range(20)]


@pytest.mark.parametrize(("num_processes", "ahead"), [(1, 1), (2, 4)])
def test_items_are_read_as_results_are_taken(num_processes, ahead):
    read: list[int] = []
    items = noted(itertools.count(), read)  # endless: nobody could read it first
    results: Any = map_in_order(operator.neg, items, num_processes)
    assert read == []
    assert [next(results) for _ in range(3)] == [0, -1, -2]
    assert len(read) <= 3 + ahead
    results.close()


@pytest.mark.parametrize("num_processes", [1, 2])
def test_an_exception_in_a_worker_reaches_the_caller_in_its_turn(num_processes):
    results = map_in_order(refuse_three, range(10), num_processes)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="three is refused"):
        next(results)
    assert list(results) == []


def test_work_is_done_elsewhere_only_where_there_is_more_than_one_item():
    assert os.getpid() not in list(map_in_order(process_of, range(2), 2))
    assert list(map_in_order(process_of, range(2), 1)) == [os.getpid()] * 2


def test_one_item_or_none_starts_no_process(monkeypatch):
    def start(*arguments):
        raise AssertionError("a process was started")

    monkeypatch.setattr(parallel, "ProcessPoolExecutor", start)
    assert list(map_in_order(process_of, [0], 8)) == [os.getpid()]
    assert list(map_in_order(process_of, [], 8)) == []
    with pytest.raises(AssertionError, match="a process was started"):
        list(map_in_order(process_of, [0, 1], 8))


@pytest.mark.parametrize("num_processes", [1, 2])
def test_each_process_is_set_up_once(num_processes, monkeypatch):
    monkeypatch.setitem(_here, "offset", 0)
    assert list(map_in_order(add_offset, range(8), num_processes, set_offset, (100,))) == list(range(100, 108))


@pytest.mark.parametrize("num_processes", [0, -1])
def test_fewer_than_one_process_is_refused(num_processes):
    with pytest.raises(ValueError, match=f"num_processes must be at least 1, got {num_processes}"):
        list(map_in_order(operator.neg, range(3), num_processes))


# --- text in parts ----------------------------------------------------------------------------------------------------

OWN_PATTERN = r"[a-z ]+|\s|[A-Z]\S*"  # nobody's: pieces go on across spaces, and other characters are in none
PATTERNS = {"gpt2": GPT2_PATTERN, "gpt4": GPT4_PATTERN, "gpt4o": GPT4O_PATTERN, "own": OWN_PATTERN}
TEXT = (
    "The quick brown fox doesn't jump over 12345 lazy dogs; the DOG'S won't be quick.\r\n\r\n"
    "def quick(n: int) -> str:\n    return 'brown' * n  # the/quick/brown fox\n/\n//\n  \n"
    "Größe, naïve café, Ελληνικά, 日本語のテキスト, 한국어, हिन्दी, 👩‍👩‍👧 🇫🇷\r\n\ttab <|endoftext|> "
)
NATURAL = st.text(st.sampled_from("theqick bro'sS wn12\n\n\r\t  ./,é日👩\u200d\u00a0"), max_size=25)
PARTS = st.lists(NATURAL | st.text(max_size=10), max_size=12)  # lone surrogates too


@pytest.fixture(scope="module", params=PATTERNS)
def tokenizer(request):
    return BytePairTokenizer.train([TEXT] * 3, 400, PATTERNS[request.param])


def ids_of(stream):
    return np.concatenate(list(stream)).tolist()


@settings(max_examples=200)
@given(parts=PARTS, held=st.integers(1, 12))
def test_any_parts_of_a_text_have_its_ids(tokenizer, parts, held):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "_PART", held)
        assert ids_of(encode_stream(tokenizer, parts)) == tokenizer.encode_ordinary("".join(parts))


@settings(max_examples=30)
@given(size=st.integers(1, 40), held=st.integers(1, 60))
def test_a_text_in_equal_parts_has_its_ids(tokenizer, size, held):
    text = TEXT * 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "_PART", held)
        parts = [text[i : i + size] for i in range(0, len(text), size)]
        assert ids_of(encode_stream(tokenizer, iter(parts))) == tokenizer.encode_ordinary(text)


def test_ids_come_before_the_text_has_ended_where_it_may_be_cut(tokenizer, monkeypatch):
    monkeypatch.setattr(streaming, "_PART", 10)
    read: list[str] = []
    stream = encode_stream(tokenizer, noted(["word "] * 100, read))
    first = next(stream)
    proven = tokenizer.pattern in CUTTERS
    assert len(read) == (2 if proven else 100)  # about no other pattern anything is proven: the text is held whole
    assert [*first.tolist(), *ids_of([*stream, np.empty(0, int)])] == tokenizer.encode_ordinary("word " * 100)


def test_a_text_with_no_place_to_cut_is_held_whole(tokenizer, monkeypatch):
    monkeypatch.setattr(streaming, "_PART", 10)
    (only,) = encode_stream(tokenizer, ["日本語"] * 50)
    assert only.tolist() == tokenizer.encode_ordinary("日本語" * 50)


def test_a_file_has_the_ids_of_its_text_line_ends_and_all(tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    for ends in ("\r\n", "\n", "\r"):
        text = TEXT.replace("\r\n", "\n").replace("\n", ends) * 3
        path.write_bytes(text.encode("utf-8"))
        for held in (1, 7, 64, 4_000_000):
            monkeypatch.setattr(streaming, "_PART", held)
            ids = ids_of(encode_file(tokenizer, path))
            assert ids == tokenizer.encode_ordinary(text)
            assert tokenizer.decode_bytes(ids) == path.read_bytes()


def test_an_empty_file_has_no_ids(tokenizer, tmp_path):
    (tmp_path / "empty.txt").write_bytes(b"")
    assert ids_of(encode_file(tokenizer, str(tmp_path / "empty.txt"))) == []


def test_a_file_that_is_not_utf8_is_named(tokenizer, tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("some text, then a café".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8"):
        list(encode_file(tokenizer, path))
    with pytest.raises(FileNotFoundError):
        list(encode_file(tokenizer, tmp_path / "nowhere.txt"))


# --- ids one by one ---------------------------------------------------------------------------------------------------


def fed(tokenizer, ids):
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.feed(i) for i in ids), decoder.finish()]


@settings(max_examples=200)
@given(text=NATURAL | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=40))
def test_ids_one_by_one_give_the_text_and_no_question_marks(tokenizer, text):
    shown = fed(tokenizer, tokenizer.encode_ordinary(text))
    assert "".join(shown) == text
    assert not any("\ufffd" in part for part in shown)
    assert shown[-1] == ""  # a whole text leaves nothing to report


@settings(max_examples=200)
@given(st.data())
def test_any_ids_one_by_one_give_what_decode_gives(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.max_token_value), max_size=40))
    assert "".join(fed(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("character", ["é", "語", "👩"])
def test_a_cut_character_is_held_back_and_reported_at_the_end(tokenizer, character):
    data = character.encode("utf-8")  # the ids 0 … 255 are the bytes
    for n in range(1, len(data)):
        decoder = StreamDecoder(tokenizer)
        assert [decoder.feed(i) for i in data[:n]] == [""] * n
        assert decoder.finish() == "\ufffd"
        assert decoder.finish() == ""  # it begins anew
        assert "".join(decoder.feed(i) for i in data) == character


def test_special_tokens_give_their_spelling_and_no_id_is_made_up(tokenizer):
    decoder = StreamDecoder(tokenizer)
    assert decoder.feed(tokenizer.eot_token) == "<|endoftext|>"
    for wrong in (tokenizer.n_vocab, -1):
        with pytest.raises(ValueError, match="is no token of this vocabulary"):
            decoder.feed(wrong)
