"""The tokenizer against Hugging Face's `tokenizers`, `tiktoken`, and its own plain definition."""

from __future__ import annotations

import gzip
import json
import random
import re
import unicodedata
from array import array

import numpy as np
import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from working_with_text_data.bytepair_enc import GPT2_PATTERN, GPT4_PATTERN, BytePairTokenizer, ladder, training
from working_with_text_data.bytepair_enc.counting import count_pieces
from working_with_text_data.bytepair_enc.merging import merge_by_heap, merge_piece
from working_with_text_data.bytepair_enc.tokenizer_json import byte_alphabet, recover_pair

TEXT = (
    "The quick brown fox doesn't jump over 12345 lazy dogs; the DOG'S won't be quick.\n\n"
    "def quick(n: int) -> str:\n    return 'brown' * n  # the quick brown fox\n"
    "Größe, naïve café, Ελληνικά, русский текст, 日本語のテキスト, 한국어, हिन्दी, 👩‍👩‍👧 🇫🇷\r\n\ttab\n"
) * 3
# Character classes grow with every Unicode version, and each engine knows its own; so no unassigned ones here.
ASSIGNED = st.text(
    st.characters(exclude_categories=["Cs"]).filter(lambda c: unicodedata.category(c) != "Cn"), max_size=60
)
ANY = st.text(max_size=60)  # lone surrogates too
NATURAL = st.text(st.sampled_from("theqick bro'sS wn12\n\r\t .,é日👩\u200d\u00a0"), max_size=80)


@pytest.fixture(scope="module", params=["gpt2", "gpt4"])
def tokenizer(request):
    pattern = {"gpt2": GPT2_PATTERN, "gpt4": GPT4_PATTERN}[request.param]
    return BytePairTokenizer.train([TEXT], 400, pattern, ("<|endoftext|>", "<|user|>"))


@pytest.fixture(scope="module")
def huggingface(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(path)
    return tokenizers.Tokenizer.from_file(str(path))


def test_a_merge_by_hand():
    """aaabdaaabac, the example of Gage 1994: aa is most frequent, then (aa, a) and so on."""
    merges = training.learn_merges({b"aaabdaaabac": 1}, 3)
    a, b = ord("a"), ord("b")
    assert merges == [(a, a), (a, b), (256, 257)]  # aa (4), ab (2), aa+ab (2)


@settings(max_examples=50)
@given(st.lists(st.text("aab ", max_size=30), min_size=1, max_size=5))
def test_fast_training_equals_the_definition(texts):
    counts = count_pieces(texts, GPT4_PATTERN)
    assert training.learn_merges(counts, 30) == ladder.learn_on_pieces(counts, 30)


def test_training_makes_the_merges_of_hugging_face(data_folder):
    book = next((data_folder / "gutenberg").glob("pg11_*"))
    text = gzip.decompress(book.read_bytes()).decode("utf-8-sig")
    check_merges_of_hugging_face(text, 1500)


def test_training_makes_the_merges_of_hugging_face_on_a_small_text():
    check_merges_of_hugging_face(TEXT, 330)


def check_merges_of_hugging_face(text, vocab_size):
    """With its numbering of the bytes, ties included."""
    pre = tokenizers.pre_tokenizers
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = pre.Sequence(
        [pre.Split(tokenizers.Regex(GPT4_PATTERN), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre.ByteLevel.alphabet(), min_frequency=2, show_progress=False
    )
    theirs.train_from_iterator([text], trainer)
    expected = [tuple(pair) for pair in json.loads(theirs.to_str())["model"]["merges"]]
    alphabet = byte_alphabet()
    ours = BytePairTokenizer.train([text], vocab_size, GPT4_PATTERN, (), byte_order=list(alphabet))
    by_rank = sorted(ours.ranks, key=ours.ranks.__getitem__)[256:]
    pairs = [recover_pair(token, ours.ranks) for token in by_rank]
    assert [tuple("".join(alphabet[b] for b in part) for part in pair) for pair in pairs] == expected


@given(st.one_of(ANY, NATURAL))
def test_any_text_comes_back(tokenizer, text):
    expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # tiktoken's rule for surrogates
    ids = tokenizer.encode_ordinary(text)
    assert tokenizer.decode(ids) == expected
    assert tokenizer.decode_bytes(ids) == b"".join(tokenizer.decode_tokens_bytes(ids)) == expected.encode("utf-8")


@given(st.one_of(ASSIGNED, NATURAL))
def test_ids_equal_those_of_hugging_face_and_tiktoken(tokenizer, huggingface, text):
    ids = tokenizer.encode_ordinary(text)
    assert huggingface.encode(text).ids == tokenizer.encode(text, allowed_special="all")
    assert tokenizer.to_tiktoken().encode_ordinary(text) == ids
    assert huggingface.decode(ids, skip_special_tokens=False) == text


def test_ids_equal_on_real_books(data_folder, tmp_path):
    books = [
        gzip.decompress(p.read_bytes()).decode("utf-8", "replace")
        for p in sorted((data_folder / "gutenberg").glob("*"))[:6]
    ]
    tokenizer = BytePairTokenizer.train(books[:1], 1000)
    tokenizer.save(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for book in books:
        ids = tokenizer.encode_ordinary(book)
        assert ids == theirs.encode(book).ids
        assert tokenizer.decode(ids) == book


@given(st.binary(max_size=300).map(lambda data: bytes(b % 3 + 97 for b in data)))
def test_the_heap_merges_as_the_definition_does(piece):
    ranks = BytePairTokenizer.train(["abcab abab cabc aabb bcca " * 5], 300).ranks
    assert merge_by_heap(piece, ranks) == merge_piece(piece, ranks)


def test_a_long_run_of_letters_is_encoded_as_tiktoken_does(tokenizer):
    text = "".join(random.Random(0).choices("aeiounrst", k=20_000))
    assert tokenizer.encode_ordinary(text) == tokenizer.to_tiktoken().encode_ordinary(text)


SPECIAL_TEXTS = ["a<|endoftext|>b", "<|user|><|endoftext|>", "<|end", "<|endoftext|><|user|> x <|user|>"]


@pytest.mark.parametrize("text", SPECIAL_TEXTS)
@pytest.mark.parametrize("allowed", [set(), {"<|user|>"}, "all"])
@pytest.mark.parametrize("disallowed", ["all", (), {"<|endoftext|>"}])
def test_special_tokens_follow_tiktoken_s_rules(tokenizer, text, allowed, disallowed):
    theirs = tokenizer.to_tiktoken()
    try:
        expected = theirs.encode(text, allowed_special=allowed, disallowed_special=disallowed)
    except ValueError:
        with pytest.raises(ValueError, match="spells the special token"):
            tokenizer.encode(text, allowed_special=allowed, disallowed_special=disallowed)
    else:
        assert tokenizer.encode(text, allowed_special=allowed, disallowed_special=disallowed) == expected


def test_facts_equal_tiktoken_s(tokenizer):
    theirs = tokenizer.to_tiktoken()
    assert isinstance(theirs, tiktoken.Encoding)
    for name in ("n_vocab", "max_token_value", "eot_token", "special_tokens_set"):
        assert getattr(tokenizer, name) == getattr(theirs, name)
    assert tokenizer.encode_batch(["the", "dog"]) == theirs.encode_batch(["the", "dog"])
    assert tokenizer.encode_single_token(" the") == theirs.encode_single_token(" the")
    assert tokenizer.encode_single_token("<|user|>") == theirs.encode_single_token("<|user|>")


def test_save_load_save_is_the_same_file_and_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "one.json")
    loaded = BytePairTokenizer.load(tmp_path / "one.json")
    loaded.save(tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)


def test_the_fingerprint_sees_every_part():
    base = BytePairTokenizer.train([TEXT], 300)
    others = [
        BytePairTokenizer(base.ranks, GPT2_PATTERN, base.special_tokens),
        BytePairTokenizer(base.ranks, base.pattern, {"<|end|>": base.eot_token}),
        BytePairTokenizer.train([TEXT], 301),
        BytePairTokenizer.train([TEXT], 300, byte_order=list(byte_alphabet())),
    ]
    assert len({t.fingerprint for t in [base, *others]}) == 5


def test_a_file_of_hugging_face_s_own_trainer_is_read(tmp_path):
    theirs = tokenizers.ByteLevelBPETokenizer()  # GPT-2's pipeline
    theirs.train_from_iterator([TEXT], vocab_size=350, show_progress=False)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = BytePairTokenizer.load(tmp_path / "tokenizer.json")
    assert ours.encode_ordinary(TEXT) == theirs.encode(TEXT).ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].update(type="WordPiece"), "only byte-level BPE"),
        (lambda c: c.update(normalizer={"type": "NFKC"}), "normalizer"),
        (lambda c: c.pop("model"), "not a Hugging Face tokenizer.json"),
        (lambda c: c.update(pre_tokenizer={"type": "Whitespace"}), "pre-tokenizer"),
        (lambda c: c["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="("), "does not compile"),
        (lambda c: (c["model"]["vocab"].pop("a"), c["model"]["merges"].clear()), "needs all 256 bytes; 1 are missing"),
    ],
)
def test_another_kind_of_tokenizer_is_refused_in_one_line(tokenizer, tmp_path, change, message):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        BytePairTokenizer.load(path)
    assert "tokenizer.json" in str(caught.value)


@pytest.mark.parametrize("pattern", [r"\p{L}+", r"[^\s]+(?=\s)", r"x"])
def test_a_pattern_that_leaves_gaps_loses_no_text(pattern, tmp_path):
    tokenizer = BytePairTokenizer.train([TEXT], 300, pattern)
    ids = tokenizer.encode_ordinary(TEXT)
    assert tokenizer.decode(ids) == TEXT
    tokenizer.save(tmp_path / "tokenizer.json")
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(TEXT).ids == ids


def test_bad_arguments_are_refused(tokenizer):
    with pytest.raises(ValueError, match="needs at least 257"):
        BytePairTokenizer.train([TEXT], 256)
    with pytest.raises(ValueError, match="corpus is empty"):
        BytePairTokenizer.train([], 300)
    with pytest.raises(ValueError, match="captures groups"):
        BytePairTokenizer.train([TEXT], 300, r"(\w+)|(\W+)")
    with pytest.raises(ValueError, match="distinct"):
        BytePairTokenizer.train([TEXT], 300, special_tokens=("<|a|>", "<|a|>"))
    with pytest.raises(ValueError, match="no token of this vocabulary"):
        tokenizer.decode([10**6])
    with pytest.raises(ValueError, match="all 256 bytes"):
        BytePairTokenizer({b"a": 0})
    with pytest.raises(ValueError, match="share one id"):
        BytePairTokenizer(tokenizer.ranks, special_tokens={"<|x|>": 0})
    with pytest.raises(ValueError, match="no tokenizer at"):
        BytePairTokenizer.load("nowhere/tokenizer.json")


@pytest.mark.parametrize("wrong", [-3, 7.5, 2**40, "5", True])
def test_ids_that_are_none_are_refused(tokenizer, wrong):
    with pytest.raises(ValueError, match="is not a whole number from 0 to"):
        BytePairTokenizer(tokenizer.ranks, special_tokens={"<|x|>": wrong})
    with pytest.raises(ValueError, match="is not a whole number from 0 to"):
        BytePairTokenizer(tokenizer.ranks | {b"xyz": wrong})


@pytest.mark.parametrize("special", ["b", "Ġ", "the"])
def test_a_special_token_spelled_as_an_ordinary_one_is_not_saved(tmp_path, special):
    tokenizer = BytePairTokenizer.train(["the the bb " * 5], 300, special_tokens=[special])
    with pytest.raises(ValueError, match="is spelled as an ordinary token"):
        tokenizer.save(tmp_path / "t.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ([(97, 98), (97, -1)], "merge 1 joins 97 and -1: ids from 0 to 256 are there"),
        ([(256, 97)], "merge 0 joins 256 and 97"),
        ([(97, 98), (256, 99), (98, 99), (97, 258)], "merge 3 spells b'abc', which is the token 257 already"),
    ],
)
def test_merges_that_cannot_be_are_named(merges, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        BytePairTokenizer.from_merges(merges)


@pytest.mark.parametrize("wrong", [None, 3, b"bytes"])
def test_a_text_among_many_that_is_none_is_refused(tokenizer, wrong):
    for call in (
        lambda: tokenizer.encode_batch(["a", wrong]),
        lambda: BytePairTokenizer.train(["a", wrong], 300),
    ):
        with pytest.raises(TypeError, match=f"encodes a str, not {type(wrong).__name__}"):
            call()


def test_one_text_in_place_of_many_is_refused(tokenizer):
    for call in (
        lambda: BytePairTokenizer.train("one text", 300),
        lambda: BytePairTokenizer.train(["a"], 300, special_tokens="<|a|>"),
        lambda: BytePairTokenizer.from_merges([], special_tokens="<|a|>"),
        lambda: tokenizer.encode_batch("abc"),
        lambda: tokenizer.encode("abc", allowed_special="<|user|>"),
    ):
        with pytest.raises(TypeError, match="write"):
            call()


@pytest.mark.parametrize("pattern", ["", "x*", "a|"])
def test_a_pattern_that_matches_nothing_is_refused(pattern):
    with pytest.raises(ValueError, match="matches the empty text"):
        BytePairTokenizer.train([TEXT], 300, pattern)


def test_a_deeply_nested_file_is_no_tokenizer(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(ValueError, match=r"deep\.json is not a readable JSON file"):
        BytePairTokenizer.load(tmp_path / "deep.json")


def test_numpy_ids_are_ids(tokenizer):
    ids = tokenizer.encode_to_numpy("the dog")
    assert tokenizer.decode(ids) == tokenizer.decode(list(ids)) == "the dog"
    with pytest.raises(ValueError, match="-1"):
        tokenizer.decode([*ids, ids.astype("int64")[0] * 0 - 1])


@pytest.mark.parametrize("wrong", [-1, -300, -(2**32), -(2**80), 2**31, 2**32, 2**32 + 97, 2**80, 9.0, "a", None, [97]])
def test_what_is_no_id_is_named_wherever_it_stands(tokenizer, wrong):
    for ids in ([wrong], [97, wrong], [97] * 10_000 + [wrong] + [97] * 10_000):
        with pytest.raises(ValueError, match=f"id {re.escape(repr(wrong))} is no token of this vocabulary"):
            tokenizer.decode_bytes(ids)


def test_a_tensor_of_fractions_is_no_row_of_ids(tokenizer):
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match=r"id tensor\(97.5000\) is no token of this vocabulary"):
        tokenizer.decode_bytes(torch.tensor([97.5, 98]))


def test_ids_may_come_from_anywhere(tokenizer):
    assert tokenizer.decode_bytes([]) == b""
    for ids in ([97, 98], (97, 98), iter([97, 98]), b"ab", range(97, 99), array("Q", [97, 98]), np.array([97, 98])):
        assert tokenizer.decode_bytes(ids) == b"ab"


def test_a_small_corpus_ends_with_a_smaller_vocabulary():
    assert BytePairTokenizer.train(["abab"], 10_000).n_vocab == 256 + 1 + 1  # "ab", then every pair is single
