"""The checks of notebook 02, byte-pair encoding.

As in `ex01.py`: small cases from the plainest on, and a message that names the mistake that usually gives such an
answer. Merge number m makes the id 256 + m; ids below 256 are bytes.
"""

from __future__ import annotations

from working_with_text_data.bytepair_enc import ladder
from working_with_text_data.exercises.ex01 import Function, attempt, call

__all__ = [
    "attempt",
    "check_best_pair_of",
    "check_decode_ids",
    "check_encode_by_rank",
    "check_expand",
    "check_learn_from_words",
]

_A, _B, _C, _D, _N = b"abcdn"
_BANANA: list[ladder.Pair] = [(_A, _N), (_B, 256), (257, 256)]  # an, ban, banan
_TEXT = "the cat sat on the mat, the other cat sat on the naïve café; that is the café of the cats. "


def check_expand(answer: Function) -> None:
    """`expand(token, merges)`: the bytes that a token stands for."""
    result = call(answer, _B, _BANANA, hint="an id below 256 is a byte, and no merge made it")
    assert not isinstance(result, str), "return bytes, not a str: a token may be half of a character"
    assert result != bytes(_B), "bytes(98) is 98 zeros: bytes([98]) is the byte 98"
    assert result == b"b", f"the token 98 is the byte of 'b', and you give {result!r}"
    result = call(answer, 0xC3, _BANANA)
    assert result == b"\xc3", f"the token 195 is the byte C3, and you give {result!r}: chr() would make a character"
    result = call(answer, 256, _BANANA, hint="merge number m makes the id 256 + m: look at merges[token - 256]")
    assert result != b"na", "the parts are in the wrong order: the left one first"
    assert result == b"an", f"256 is the first merge, 'a' and 'n', and you give {result!r}: look at merges[token - 256]"
    deeper = "a part may itself be merged: expand it in turn, down to the bytes"
    result = call(answer, 258, _BANANA, hint=deeper)
    assert result == b"banan", f"258 is 'ban' and 'an', and you give {result!r}: {deeper}"
    merges = ladder.learn_on_text(_TEXT * 2, 40)
    everything = b"".join(call(answer, i, merges) for i in ladder.encode_with_merges(_TEXT, merges))
    assert everything == _TEXT.encode(), "the tokens of a text, one after the other, must be the bytes of the text"
    print("expand: right")


def check_decode_ids(answer: Function) -> None:
    """`decode_ids(ids, merges)`: the text of ids, with U+FFFD for what is no UTF-8."""
    result = call(answer, [_B, 256], _BANANA)
    assert not isinstance(result, bytes), "return a str: decode the bytes at the end"
    assert result == "ban", f"98, 256 is 'b' and 'an', and you give {result!r}"
    together = "put the bytes of all tokens together before you decode: one character may be spread over two"
    result = call(answer, [0xC3, 0xA9], [], hint=together)
    assert result != "Ã©", "chr() of a byte is a character of its own, the mojibake of notebook 01: collect bytes"
    assert result == "é", f"195, 169 are the two bytes of é, and you give {result!r}: {together}"
    result = call(answer, [_A, 0xC3], [], hint="ids may end inside a character: decode with errors='replace'")
    assert result != "a", "errors='ignore' hides that something is missing: use errors='replace'"
    assert result == "a\ufffd", f"after 'a' comes half a character, so U+FFFD, and you give {result!r}"
    assert call(answer, [], _BANANA) == "", "no ids are no text"
    merges = ladder.learn_on_text(_TEXT * 2, 40)
    assert call(answer, ladder.encode_with_merges(_TEXT, merges), merges) == _TEXT, "a text must come back as it was"
    print("decode_ids: right")


def check_best_pair_of(answer: Function) -> None:
    """`best_pair_of(counts)`: the most frequent pair; of several, the one with the smallest ids."""
    result = call(answer, {(1, 2): 5, (3, 4): 7})
    assert result != (1, 2), "that is the rarest pair, or the one with the smallest ids: the most frequent is asked for"
    assert result not in (7, ((3, 4), 7)), "return the pair alone, without its count"
    assert result == (3, 4), f"(3, 4) occurs 7 times, more than any other, and you give {result!r}"
    result = call(answer, {(3, 9): 7, (5, 1): 7, (3, 4): 7, (4, 4): 7, (0, 0): 1})
    assert result != (3, 9), "of equal counts you take the pair seen first: that depends on the order of the text"
    assert result != (4, 4), "of equal counts you take the pair seen last: that depends on the order of the text"
    assert result != (5, 1), "of equal counts you take the largest ids: min of (-count, pair) gives the smallest"
    assert result == (3, 4), f"of four pairs that occur 7 times, (3, 4) is the smallest, and you give {result!r}"
    for text in (_TEXT, "abababab", "the end"):
        counts = ladder.count_pairs(ladder.text_to_ids(text))
        assert call(answer, counts) == ladder.best_pair(counts), f"for the pairs of {text!r} you choose another"
    print("best_pair_of: right")


def check_encode_by_rank(answer: Function) -> None:
    """`encode_by_rank(text, merges)`: the ids of a text, the pair that was learned earliest joined first."""
    result = call(answer, "abcbc", [(_A, _B), (_B, _C)])
    assert result != [0, _C, 1], "merge number m makes the id 256 + m, not m"
    assert result != [_A, 257, 257], "you join the pair that is most frequent in this text: the merge's number decides"
    assert result == [256, _C, 257], f"'abcbc' with the merges ab, bc is [256, 99, 257], and you give {result}"
    result = call(answer, "abc", [(_B, _C), (_A, _B)])
    assert result != [257, _C], "'bc' was learned before 'ab', so it goes first, though 'ab' stands further left"
    assert result == [_A, 256], f"'abc' with the merges bc, ab is [97, 256], and you give {result}"
    result = call(answer, "abab", [(_A, _B), (256, 256)])
    assert result != [256, 256], "a new token can be part of a pair too: go on until no pair is a merge"
    assert result == [257], f"'abab' with the merges ab, abab is [257], and you give {result}"
    result = call(answer, "aaa", [(_A, _A)])
    assert result != [_A, 256], "'aaa' is joined from the left: [256, 97]"
    assert result == [256, _A], f"'aaa' with the merge aa is [256, 97], and you give {result}"
    assert call(answer, "é", []) == [0xC3, 0xA9], "begin with the bytes of UTF-8, not with ord(): é is 195, 169"
    assert call(answer, "", _BANANA, hint="an empty text has no pairs") == [], "no text is no ids"
    merges = ladder.learn_on_text(_TEXT * 2, 40)
    for text in (_TEXT, "that mat is thatched", "the theatre at the café"):
        right = ladder.encode_with_merges(text, merges)
        assert call(answer, text, merges) == right, f"{text!r} has other ids than the ladder's encode_with_merges gives"
    print("encode_by_rank: right")


def check_learn_from_words(answer: Function) -> None:
    """`learn_from_words(counts, n_merges)`: the merges of training, within words that occur so many times each."""
    result = call(answer, {b"abab": 2, b"cd": 5}, 1)
    assert result != [(_A, _B)], "'cd' occurs 5 times and 'ab' 4: a pair counts as often as its word occurs"
    assert result == [(_C, _D)], f"the most frequent pair is (99, 100), and you give {result}"
    result = call(answer, {b"a": 9, b"bc": 2}, 1)
    assert result != [(_A, _A)], "(97, 97) stands in no word: do not put the words together, pairs end with the word"
    assert result == [(_B, _C)], f"the only pair is (98, 99), and you give {result}"
    result = call(answer, {b"abab": 3}, 2)
    assert result != [(_A, _B), (_A, _B)], "the same merge twice: write the new id into the words after each merge"
    assert result == [(_A, _B), (256, 256)], f"'abab' three times gives ab, then (256, 256), and you give {result}"
    stop = "there may be no pair left before n_merges are found: stop then"
    assert call(answer, {b"ab": 3}, 5, hint=stop) == [(_A, _B)], stop
    result = call(answer, {b"ab": 1, b"cd": 1}, 5)
    assert result == [], "a pair that occurs once saves nothing on any other text: stop when the best count is below 2"
    counts = {word.encode(): 1 + _TEXT.split().count(word) for word in _TEXT.split()}
    right = ladder.learn_on_pieces(counts, 25)
    got = call(answer, counts, 25)
    first = next((m for m, (a, b) in enumerate(zip(got, right, strict=False)) if a != b), min(len(got), len(right)))
    assert got == right, f"on a longer text merge number {first} is another: of equal counts the smallest ids go first"
    print("learn_from_words: right")
