"""Each fast path of the tokenizer against the plain version that it replaces, and the patterns against tiktoken's."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import signal
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest
import regex
import tiktoken
import tiktoken_ext.openai_public as published
from hypothesis import given, settings
from hypothesis import strategies as st

from working_with_text_data.bytepair_enc import (
    GPT2_PATTERN,
    GPT4_PATTERN,
    GPT4O_PATTERN,
    BytePairTokenizer,
    counting,
    fast_encoding,
    ladder,
    patterns,
    training,
    unicode_pin,
)
from working_with_text_data.bytepair_enc.check_against_tiktoken import random_texts
from working_with_text_data.bytepair_enc.counting import chunks_of, count_chunk, count_pieces
from working_with_text_data.bytepair_enc.merging import PairRanks, merge_by_heap, merge_piece, merge_pieces
from working_with_text_data.bytepair_enc.patterns import FIRST_GPT4_PATTERN, compile_pattern, split_into_pieces
from working_with_text_data.bytepair_enc.word_cuts import CUTTERS, blocks, last_cut

PATTERNS = {"gpt2": GPT2_PATTERN, "gpt4": GPT4_PATTERN, "gpt4o": GPT4O_PATTERN, "first gpt4": FIRST_GPT4_PATTERN}
PUBLISHED = {"gpt2": "r50k_base", "gpt4": "cl100k_base", "gpt4o": "o200k_base"}
# Where the classes that patterns tell apart meet: white space of every kind, line ends, slashes, signs, letters.
EDGES = st.text(st.sampled_from("aB 1.,/'\n\r\t\x0b\x1c\x85\xa0\u2028\u3000s日é\u0301\U0001f469ʕ\u0558"), max_size=40)
TEXTS = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in random_texts(1, 1500)]
BYTES = {bytes([b]): b for b in range(256)}


def pieces_of(pattern, text):
    return split_into_pieces(compile_pattern(pattern), text)


# --- pieces -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=sorted(PUBLISHED))
def with_their_pattern(request):
    """Our tokenizer, and the same vocabulary in tiktoken with the pattern that tiktoken has for it."""
    ours = BytePairTokenizer.train(TEXTS, 800, PATTERNS[request.param])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "load_tiktoken_bpe", lambda *_, **__: BYTES)
        theirs = published.ENCODING_CONSTRUCTORS[PUBLISHED[request.param]]()["pat_str"]
    assert theirs != ours.pattern or request.param == "gpt4o"  # written otherwise, meant alike
    return ours, tiktoken.Encoding("theirs", pat_str=theirs, mergeable_ranks=ours.ranks, special_tokens={})


def test_our_patterns_cut_as_tiktoken_s_do(with_their_pattern):
    ours, theirs = with_their_pattern
    for text in TEXTS:
        assert ours.encode_ordinary(text) == theirs.encode_ordinary(text)
    joined = "".join(TEXTS)
    assert ours.encode_ordinary(joined) == theirs.encode_ordinary(joined)


@settings(max_examples=300)
@given(EDGES)
def test_our_patterns_cut_as_tiktoken_s_do_at_every_edge(with_their_pattern, text):
    ours, theirs = with_their_pattern
    assert ours.encode_ordinary(text) == theirs.encode_ordinary(text)


@pytest.mark.parametrize("name", sorted(PATTERNS))
@given(text=st.text(st.sampled_from([chr(i) for i in range(128)] + list("aB 1.'\n\r\t/") * 12), max_size=40))
def test_the_quicker_pattern_for_ascii_cuts_as_the_published_one(name, text):
    quick = patterns.in_ascii(PATTERNS[name])
    assert quick is not None
    assert quick.findall(text) == compile_pattern(PATTERNS[name]).findall(text)


def test_other_patterns_have_no_quicker_one():
    assert patterns.in_ascii(r"\p{L}+|\P{L}+") is None


@pytest.mark.parametrize("kind", ["L", "N", "M", "Lu", "Ll", "Lt", "Lm", "Lo"])
def test_every_code_point_is_what_tiktoken_s_engine_takes_it_for(kind):
    """A newer `regex` or tiktoken may know another Unicode: then the ranges in unicode_pin.py need a new look."""
    everything = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    pattern = rf"\p{{{kind}}}"
    encoding = tiktoken.Encoding("bytes", pat_str=pattern, mergeable_ranks=BYTES, special_tokens={})
    theirs = encoding.decode(encoding.encode_ordinary(everything))
    shown = unicode_pin.as_unicode_16(everything)
    assert len(shown) == len(everything)
    assert "".join(everything[match.start()] for match in regex.finditer(pattern, shown)) == theirs


def test_white_space_is_the_same_in_all_three_engines():
    from working_with_text_data.bytepair_enc import word_cuts

    everything = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    encoding = tiktoken.Encoding("bytes", pat_str=r"\s", mergeable_ranks=BYTES, special_tokens={})
    spaces = set(encoding.decode(encoding.encode_ordinary(everything)))
    assert spaces == set(regex.findall(r"\s", everything)) == set(word_cuts.WHITE_SPACE)


# --- words ------------------------------------------------------------------------------------------------------------


def check_cuts(pattern, text):
    words = CUTTERS[pattern](text)
    assert "".join(words) == text
    assert [piece for word in words for piece in pieces_of(pattern, word)] == pieces_of(pattern, text)


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_no_match_crosses_a_cut_between_words(name):
    for text in [*TEXTS, "".join(TEXTS), " ".join(TEXTS), "\n".join(TEXTS)]:
        check_cuts(PATTERNS[name], text)


@settings(max_examples=500)
@given(st.sampled_from(sorted(PATTERNS)), EDGES)
def test_no_match_crosses_a_cut_at_any_edge(name, text):
    check_cuts(PATTERNS[name], text)


@settings(max_examples=300)
@given(st.sampled_from(sorted(PATTERNS)), EDGES, st.integers(1, 10))
def test_blocks_change_no_piece(name, text, size):
    parts = list(blocks(text, size))
    assert "".join(parts) == text
    assert [p for part in parts for p in pieces_of(PATTERNS[name], part)] == pieces_of(PATTERNS[name], text)
    cut = last_cut(text)
    assert pieces_of(PATTERNS[name], text[:cut]) + pieces_of(PATTERNS[name], text[cut:]) == (
        pieces_of(PATTERNS[name], text)
    )


def test_blocks_and_the_last_cut_find_a_place_in_prose():
    text = "One sentence, and another one.\nA new line. " * 2000
    assert max(map(len, blocks(text, 1000))) < 1050
    assert len(text) - last_cut(text) < 50
    assert last_cut("x" * 100_000) == 0


# --- merges -----------------------------------------------------------------------------------------------------------

SMALL = BytePairTokenizer.train(["abcab abab cabc aabb bcca aaaa " * 5, *TEXTS[:200]], 600)
PIECES = st.lists(
    st.binary(min_size=1, max_size=40).map(lambda b: bytes(x % 4 + 97 for x in b)), min_size=1, max_size=30
)


@given(PIECES)
def test_merging_together_and_by_heap_equals_the_definition(pieces):
    expected = [merge_piece(piece, SMALL.ranks) for piece in pieces]
    assert [merge_by_heap(piece, SMALL.ranks) for piece in pieces] == expected
    ids, counts = merge_pieces(pieces, PairRanks(SMALL.ranks, {i: token for token, i in SMALL.ranks.items()}))
    assert ids.tolist() == [i for piece in expected for i in piece]
    assert counts.tolist() == [len(piece) for piece in expected]


def test_merging_together_equals_the_definition_as_the_table_grows():
    draw = random.Random(2)
    table = PairRanks(SMALL.ranks, {i: token for token, i in SMALL.ranks.items()})
    for _ in range(3):
        pieces = [draw.randbytes(draw.randint(1, 30)) for _ in range(8000)]
        ids, counts = merge_pieces(pieces, table)
        assert ids.tolist() == [i for piece in pieces for i in merge_piece(piece, SMALL.ranks)]
        assert int(counts.sum()) == len(ids)
    assert table._last_slot >= 2**17 - 1  # it has grown


def plain_ids(tokenizer, text):
    return [i for piece in pieces_of(tokenizer.pattern, text) for i in merge_piece(piece.encode(), tokenizer.ranks)]


@pytest.mark.parametrize("name", [*sorted(PATTERNS), "none of the published"])
@pytest.mark.parametrize("limits", [{"_MANY": 1}, {"_MANY": 1, "_TOGETHER": 500, "_BLOCK": 60, "_REMEMBERED": 20}])
def test_encoding_at_speed_equals_encoding_piece_by_piece(monkeypatch, name, limits):
    for limit, value in limits.items():
        monkeypatch.setattr(fast_encoding, limit, value)
    tokenizer = BytePairTokenizer.train(TEXTS[:300], 700, PATTERNS.get(name, r"\p{L}+|\d"))
    text = "".join(TEXTS[300:900])
    expected = plain_ids(tokenizer, text)
    for _ in range(2):  # new, and seen before
        assert tokenizer.encode_ordinary(text) == expected
        assert tokenizer.encode_to_numpy(text, disallowed_special=()).tolist() == expected


@pytest.mark.parametrize("name", [*sorted(PATTERNS), "none of the published"])
@pytest.mark.parametrize("limits", [{}, {"_MANY": 1, "_BLOCK": 60}, {"_TOGETHER": 30}])
def test_many_texts_together_have_the_ids_of_each_alone(monkeypatch, name, limits):
    for limit, value in limits.items():
        monkeypatch.setattr(fast_encoding, limit, value)
    tokenizer = BytePairTokenizer.train(TEXTS[:300], 700, PATTERNS.get(name, r"\p{L}+|\d"))
    expected = [plain_ids(tokenizer, text) for text in TEXTS]
    for _ in range(2):  # new, and seen before
        assert tokenizer.encode_batch(TEXTS, disallowed_special=()) == expected
    assert tokenizer.encode_batch([]) == []


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(fast_encoding, "_REMEMBERED", 50)
    tokenizer = BytePairTokenizer.train([TEXTS[0] + "aa"], 260)
    for number in range(2000):
        tokenizer.encode_ordinary(f"word{number} other{number}")
    assert len(tokenizer._encoder._words) < 60
    assert len(tokenizer._encoder._pieces) < 60


def test_memory_is_bounded_where_words_are_long(monkeypatch):
    monkeypatch.setattr(fast_encoding, "_CHARACTERS", 5_000)
    for pattern in (GPT4_PATTERN, r"\p{L}+|\P{L}+"):
        tokenizer = BytePairTokenizer.train([TEXTS[0] + "aa"], 260, pattern)
        for number in range(50):
            text = f"{number}".translate(str.maketrans("0123456789", "abcdefghij")) * 500
            assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text
            assert sum(map(len, tokenizer._encoder._words)) < 7_000
            assert sum(map(len, tokenizer._encoder._pieces)) < 7_000


def test_threads_may_share_a_tokenizer(monkeypatch):
    """Each thread has words that no other has seen; who learns, moves tables that others read."""
    tokenizer = BytePairTokenizer.train([" ".join(TEXTS[:300])], 700)
    made = random.Random(0)
    texts = [" ".join("".join(made.choices("abcdefgh", k=7)) for _ in range(4000)) for _ in range(6)]
    expected = [BytePairTokenizer(tokenizer.ranks, tokenizer.pattern).encode_ordinary(text) for text in texts]
    monkeypatch.setattr(fast_encoding, "_REMEMBERED", 5_000)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(6) as pool:
            for _ in range(3):
                assert list(pool.map(tokenizer.encode_ordinary, texts)) == expected
    finally:
        sys.setswitchinterval(before)


def test_ctrl_c_while_pairs_are_learned_leaves_the_tokenizer_whole(monkeypatch):
    """It comes between what a pair is and what it makes, and in another run while the table grows."""
    tokenizer = BytePairTokenizer.train([" ".join(TEXTS[:300])], 700)
    made = random.Random(0)
    text = " ".join("".join(made.choices("abcdefgh", k=7)) for _ in range(4000))
    expected = BytePairTokenizer(tokenizer.ranks, tokenizer.pattern).encode_ordinary(text)

    def interrupted(table, *_, bits=0):
        if bits:
            table._last_slot = (1 << bits) - 1
        else:
            table._keys[:] = 0
        raise KeyboardInterrupt

    tokenizer.encode_ordinary(" ".join(reversed(text.split()[:500])))
    for method in ("_insert", "_make_table"):
        with monkeypatch.context() as patched:
            patched.setattr(PairRanks, method, interrupted)
            with pytest.raises(KeyboardInterrupt):
                tokenizer.encode_ordinary(text)
        assert tokenizer.encode_ordinary(text) == expected
        tokenizer = BytePairTokenizer(tokenizer.ranks, tokenizer.pattern)


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_are_the_same_for_any_number_of_processes(monkeypatch, processes):
    from working_with_text_data.bytepair_enc import bpe

    monkeypatch.setattr(bpe, "_CHUNK", 5_000)
    texts = [*TEXTS[:200], "", "<|endoftext|>", "a<|endoftext|><|endoftext|>b<|endoftext|>", "lone \ud800 surrogate"]
    expected = [SMALL.encode(text, allowed_special="all") for text in texts]
    assert SMALL.encode_batch(texts, num_processes=processes, allowed_special="all") == expected
    with pytest.raises(ValueError, match="spells the special token"):
        SMALL.encode_batch(texts, num_processes=processes)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_counting_words_first_counts_the_same_pieces(name):
    plain = Counter(piece for text in TEXTS for piece in pieces_of(PATTERNS[name], text))
    assert count_chunk(TEXTS, PATTERNS[name]) == plain


def test_counts_are_the_same_for_any_number_of_processes(monkeypatch):
    monkeypatch.setattr(counting, "chunks_of", lambda texts: chunks_of(texts, 3_000))
    for limit in (10**6, 300):
        one = count_pieces(iter(TEXTS), GPT4_PATTERN, 1, limit)
        two = count_pieces(iter(TEXTS), GPT4_PATTERN, 2, limit)
        assert list(one.items()) == list(two.items())
        assert len(one) <= limit


def test_of_too_many_pieces_the_rarest_are_forgotten():
    texts = ["the " * 50 + f"rare{i} " for i in range(200)]
    counts = count_pieces(texts, r"\S+ ", max_pieces=20)
    assert len(counts) <= 20
    assert counts[b"the "] == 10_000


def test_chunks_keep_the_order_and_every_text():
    assert [text for chunk in chunks_of(TEXTS, 100) for text in chunk] == TEXTS
    assert all(sum(map(len, chunk)) >= 100 for chunk in list(chunks_of(TEXTS, 100))[:-1])


@settings(max_examples=60)
@given(
    st.dictionaries(st.binary(min_size=1, max_size=12).map(lambda b: bytes(x % 3 + 97 for x in b)), st.integers(1, 9))
)
def test_the_merge_learner_equals_the_definition(piece_counts):
    assert training.learn_merges(piece_counts, 25) == ladder.learn_on_pieces(piece_counts, 25)


def test_ids_above_the_surrogates_are_letters_too():
    ids = [0, 255, 0xD7FF, 0xD800, 0xDFFF, 0xE000, 200_000]
    letters = [training._letter(i) for i in ids]
    assert [training._id(letter) for letter in letters] == ids
    assert letters == sorted(letters)
    assert not any(0xD800 <= ord(letter) < 0xE000 for letter in letters)


def never_read():
    raise AssertionError("the texts were read again")
    yield ""


def test_training_goes_on_after_an_interruption(tmp_path, monkeypatch):
    whole = training.learn_from_texts(TEXTS, 150, GPT4_PATTERN)
    step, checkpoint = training.MergeLearner.step, tmp_path / "state.gz"

    def step_with_a_ctrl_c_in_the_middle(learner, min_frequency):
        if len(learner.merges) == 60:
            signal.raise_signal(signal.SIGINT)
        return step(learner, min_frequency)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.MergeLearner, "step", step_with_a_ctrl_c_in_the_middle)
        training.learn_from_texts(TEXTS, 150, GPT4_PATTERN, checkpoint=checkpoint)
    assert len(json.loads(gzip.decompress(checkpoint.read_bytes()))["merges"]) == 61  # the step was made whole
    assert training.learn_from_texts(never_read(), 150, GPT4_PATTERN, checkpoint=checkpoint) == whole
    assert training.learn_from_texts(never_read(), 100, GPT4_PATTERN, checkpoint=checkpoint) == whole[:100]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("max_pieces", [10**6, 300])
def test_counting_goes_on_after_an_interruption(tmp_path, monkeypatch, processes, max_pieces):
    """At any text, any number of times: no text is counted twice, none is left out."""
    monkeypatch.setattr(counting, "chunks_of", lambda texts: chunks_of(texts, 3_000))
    flags = {"max_pieces": max_pieces, "num_processes": processes}
    whole = training.learn_from_texts(TEXTS, 100, GPT4_PATTERN, max_pieces=max_pieces)
    checkpoint, counted, stops = tmp_path / "state.gz", count_chunk, [40, 400, 400, 1200, len(TEXTS) - 1]

    def stopped(at):
        for i, text in enumerate(TEXTS):
            if i == at:
                signal.raise_signal(signal.SIGINT)
            yield text

    texts_done = []
    for at in stops:
        with pytest.raises(KeyboardInterrupt):
            training.learn_from_texts(stopped(at), 100, GPT4_PATTERN, checkpoint=checkpoint, **flags)
        texts_done.append(json.loads(gzip.decompress(checkpoint.read_bytes()))["texts"])
        assert texts_done[-1] <= at
    assert texts_done == sorted(texts_done)
    assert 0 < texts_done[-2] < len(TEXTS)

    seen: list[str] = []

    def noting(texts, pattern):
        seen.extend(texts)
        return counted(texts, pattern)

    if processes == 1:
        monkeypatch.setattr(counting, "count_chunk", noting)
    assert training.learn_from_texts(TEXTS, 100, GPT4_PATTERN, checkpoint=checkpoint, **flags) == whole
    assert processes == 2 or seen == TEXTS[texts_done[-1] :]
    assert training.learn_from_texts(never_read(), 100, GPT4_PATTERN, checkpoint=checkpoint, **flags) == whole


def test_a_kill_while_counting_loses_a_minute_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "chunks_of", lambda texts: chunks_of(texts, 3_000))
    monkeypatch.setattr(training, "_SAVE_EVERY", 1.0)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=partial(next, itertools.count())))  # time flies

    class KilledError(Exception):
        pass

    def killed():
        yield from TEXTS[:1200]
        raise KilledError  # which nothing waits for, or saves at

    checkpoint = tmp_path / "state.gz"
    with pytest.raises(KilledError):
        training.learn_from_texts(killed(), 100, GPT4_PATTERN, checkpoint=checkpoint)
    texts = json.loads(gzip.decompress(checkpoint.read_bytes()))["texts"]
    assert 0 < texts < 1200
    whole = training.learn_from_texts(TEXTS, 100, GPT4_PATTERN)
    assert training.learn_from_texts(TEXTS, 100, GPT4_PATTERN, checkpoint=checkpoint) == whole


def test_a_damaged_checkpoint_of_counting_is_refused(tmp_path):
    checkpoint = tmp_path / "state.gz"
    made_for = {"pattern": GPT4_PATTERN, "byte_order": list(range(256)), "max_pieces": 20_000_000, "corpus": ""}
    made_for["min_frequency"] = 2
    for state in (
        {"texts": 1, "pieces": ["a"], "counts": []},
        {"texts": 1, "pieces": ["a"]},
        {"texts": 1, "pieces": ["a"], "counts": ["b"]},
    ):
        checkpoint.write_bytes(gzip.compress(json.dumps(made_for | state).encode()))
        with pytest.raises(ValueError, match=r"state\.gz is not a readable checkpoint"):
            training.learn_from_texts(TEXTS, 5, GPT4_PATTERN, checkpoint=checkpoint)


def test_a_foreign_or_damaged_checkpoint_is_refused(tmp_path):
    checkpoint = tmp_path / "state.gz"
    training.learn_from_texts(TEXTS, 5, GPT4_PATTERN, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="another pattern: delete it"):
        training.learn_from_texts(TEXTS, 5, GPT2_PATTERN, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="another corpus: delete it"):
        training.learn_from_texts(TEXTS, 5, GPT4_PATTERN, checkpoint=checkpoint, corpus="other texts")
    with pytest.raises(ValueError, match="made with another min_frequency"):
        training.learn_from_texts(TEXTS, 5, GPT4_PATTERN, checkpoint=checkpoint, min_frequency=3)
    whole = checkpoint.read_bytes()
    content = json.loads(gzip.decompress(whole))
    for wrong in ({"frequency": content["frequency"][1:]}, {"merges": [[300, 7]]}, {"merges": [["a", "b"]]}):
        checkpoint.write_bytes(gzip.compress(json.dumps(content | wrong).encode()))
        with pytest.raises(ValueError, match="not a readable checkpoint"):
            training.learn_from_texts(TEXTS, 5, GPT4_PATTERN, checkpoint=checkpoint)
    checkpoint.write_bytes(gzip.compress(b'{"words": ["ab"], "frequency": [3], "merges": []}'))
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        training.learn_from_texts(TEXTS, 5, GPT4_PATTERN, checkpoint=checkpoint)
    checkpoint.write_bytes(whole[:-50])
    with pytest.raises(ValueError, match=r"state\.gz is not a readable checkpoint"):
        training.learn_from_texts(TEXTS, 5, GPT4_PATTERN, checkpoint=checkpoint)
