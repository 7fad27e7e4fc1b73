"""Text in parts: any chunking gives the ids of the whole, and no half character is ever shown."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from working_with_text_data.bytepair_enc.check_against_tiktoken import random_texts

PATTERNS = {"gpt2": GPT2_PATTERN, "gpt4": GPT4_PATTERN, "gpt4o": GPT4O_PATTERN, "other": r"\p{L}+|\s+|."}
TEXTS = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in random_texts(5, 400)]
TOKENIZERS = {name: BytePairTokenizer.train(TEXTS, 500, pattern) for name, pattern in PATTERNS.items()}
WORDS = st.lists(
    st.sampled_from(["the", " end", ".\n", "\n", "  ", " ", "/x", "日本", "\r\n", "!", "\tif"]), max_size=60
)


@settings(max_examples=150)
@given(st.sampled_from(sorted(PATTERNS)), WORDS, st.lists(st.integers(1, 30), min_size=1, max_size=10))
def test_any_chunking_gives_the_ids_of_the_whole(name, words, sizes):
    tokenizer, text = TOKENIZERS[name], "".join(words)
    parts: list[str] = []
    start = 0
    while start < len(text):
        size = sizes[len(parts) % len(sizes)]
        parts.append(text[start : start + size])
        start += size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "_PART", 12)
        ids = [i for array in encode_stream(tokenizer, parts) for i in array.tolist()]
    assert ids == tokenizer.encode_ordinary(text)


def test_a_long_stream_comes_in_parts(monkeypatch):
    monkeypatch.setattr(streaming, "_PART", 1000)
    arrays = list(encode_stream(TOKENIZERS["gpt4"], ["a few words and "] * 1000))
    assert len(arrays) > 5
    text = "x" * 5000  # and one without a place to cut is held
    assert sum(map(len, encode_stream(TOKENIZERS["gpt4"], list(text)))) == len(TOKENIZERS["gpt4"].encode(text))


def test_a_file_is_encoded_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "_PART", 100)
    text = "Line one.\r\nLine two, é and 日本語.\r\n\r\n" * 50
    (tmp_path / "a.txt").write_bytes(text.encode("utf-8"))
    ids = [i for array in encode_file(TOKENIZERS["gpt4"], tmp_path / "a.txt") for i in array.tolist()]
    assert ids == TOKENIZERS["gpt4"].encode_ordinary(text)
    (tmp_path / "b.txt").write_bytes(b"caf\xe9 " * 100)
    with pytest.raises(ValueError, match=r"b\.txt is not UTF-8"):
        list(encode_file(TOKENIZERS["gpt4"], tmp_path / "b.txt"))


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=40))
def test_a_stream_of_ids_shows_whole_characters_only(text):
    tokenizer = TOKENIZERS["gpt4"]
    decoder = StreamDecoder(tokenizer)
    shown = [decoder.feed(i) for i in tokenizer.encode_ordinary(text)]
    assert "".join(shown) == text
    assert decoder.finish() == ""


def test_ids_that_end_inside_a_character_say_so():
    tokenizer = TOKENIZERS["gpt4"]
    decoder = StreamDecoder(tokenizer)
    first_bytes = [tokenizer.ranks[bytes([b])] for b in "日".encode()[:2]]
    assert "".join(decoder.feed(i) for i in first_bytes) == ""
    assert decoder.finish() == "\ufffd"
    assert decoder.feed(tokenizer.ranks[b"a"]) == "a"  # and begins anew
    with pytest.raises(ValueError, match="no token of this vocabulary"):
        decoder.feed(10**6)
