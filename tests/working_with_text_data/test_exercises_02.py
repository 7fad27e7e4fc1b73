"""The checks of notebook 02 tell a right answer from the usual wrong ones, and say which it is."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from working_with_text_data.bytepair_enc import ladder
from working_with_text_data.exercises import ex02


def expand(token, merges):
    return bytes([token]) if token < 256 else b"".join(expand(part, merges) for part in merges[token - 256])


def expand_in_wrong_order(token, merges):
    return bytes([token]) if token < 256 else b"".join(expand(part, merges) for part in merges[token - 256][::-1])


def expand_once(token, merges):
    return bytes([token]) if token < 256 else bytes(merges[token - 256])


def expand_from_0(token, merges):
    return bytes([token]) if token < 256 else expand(merges[token][0], merges)


def expand_one_late(token, merges):
    return bytes([token]) if token < 256 else b"".join(expand(part, merges) for part in merges[token - 255])


def decode(ids, merges, errors="replace"):
    return b"".join(expand(i, merges) for i in ids).decode("utf-8", errors)


def decode_one_by_one(ids, merges, errors="replace"):
    return "".join(expand(i, merges).decode("utf-8", errors) for i in ids)


def best(counts):
    return min(counts, key=lambda pair: (-counts[pair], pair))


def last_seen(counts):
    return max(reversed(list(counts)), key=counts.get)


def encode(text, merges, choose=None, ids_from=256):
    """By rank, or by another rule that `choose` has: (pair, place, count) -> sort key."""
    number = {pair: m for m, pair in enumerate(merges)}
    ids = list(text.encode())
    while True:
        counts = Counter(pairwise(ids))
        known = [(pair, i) for i, pair in enumerate(pairwise(ids)) if pair in number]
        if not known:
            return ids
        key = choose or (lambda pair, i, count: (number[pair], i))
        pair, i = min(known, key=lambda found: key(found[0], found[1], counts[found[0]]))
        ids[i : i + 2] = [ids_from + number[pair]]


def from_the_right(text, merges):
    number = {pair: m for m, pair in enumerate(merges)}
    return encode(text, merges, lambda pair, i, count: (number[pair], -i))


def encode_characters(text, merges):
    return encode(text, merges) if text.isascii() else [ord(c) for c in text]


def without_empty(text, merges):
    min(text)
    return encode(text, merges)


def one_pass(text, merges):
    number = {pair: m for m, pair in enumerate(merges)}
    ids = list(text.encode())
    for pair in sorted(set(pairwise(ids)) & set(number), key=number.__getitem__):
        ids = ladder.merge_pair(ids, pair, 256 + number[pair])
    return ids


def learn(counts, n_merges, weighted=True, least=2, replace=True, choose=best):
    words = {word: list(word) for word in counts}
    merges: list[ladder.Pair] = []
    while len(merges) < n_merges:
        pairs: Counter[ladder.Pair] = Counter()
        for word, ids in words.items():
            for pair in pairwise(ids):
                pairs[pair] += counts[word] if weighted else 1
        pair = choose(pairs)
        if pairs[pair] < least:
            break
        if replace:
            words = {word: ladder.merge_pair(ids, pair, 256 + len(merges)) for word, ids in words.items()}
        merges.append(pair)
    return merges


def learn_right(counts, n_merges, **options):
    try:
        return learn(counts, n_merges, **options)
    except ValueError:  # min of nothing: no pair is left
        return learn(counts, 1, **options)


def learn_across(counts, n_merges):
    return ladder.learn_on_text("".join(word.decode() * n for word, n in counts.items()), n_merges)


def first_seen(pairs):
    return max(pairs, key=pairs.get)


RIGHT = [
    (ex02.check_expand, expand),
    (ex02.check_decode_ids, decode),
    (ex02.check_best_pair_of, best),
    (ex02.check_encode_by_rank, encode),
    (ex02.check_encode_by_rank, ladder.encode_with_merges),
    (ex02.check_learn_from_words, ladder.learn_on_pieces),
]
WRONG = [
    (ex02.check_expand, lambda token, merges: None, "in place of the dots"),
    (ex02.check_expand, lambda token, merges: bytes(token), "98 zeros"),
    (ex02.check_expand, lambda token, merges: chr(token), "return bytes, not a str"),
    (ex02.check_expand, lambda token, merges: chr(token).encode(), "would make a character"),
    (ex02.check_expand, lambda token, merges: expand(merges[token - 256][0], merges), "no merge made it"),
    (ex02.check_expand, expand_in_wrong_order, "wrong order"),
    (ex02.check_expand, expand_once, "down to the bytes"),
    (ex02.check_expand, expand_from_0, "merges\\[token - 256\\]"),
    (ex02.check_expand, expand_one_late, "look at merges"),
    (ex02.check_decode_ids, lambda ids, merges: decode(ids, merges).encode(), "return a str"),
    (
        ex02.check_decode_ids,
        lambda ids, merges: "".join(map(chr, b"".join(expand(i, merges) for i in ids))),
        "mojibake",
    ),
    (ex02.check_decode_ids, decode_one_by_one, "before you decode"),
    (ex02.check_decode_ids, lambda ids, merges: decode_one_by_one(ids, merges, "strict"), "before you decode"),
    (ex02.check_decode_ids, lambda ids, merges: decode(ids, merges, "strict"), "errors='replace'"),
    (ex02.check_decode_ids, lambda ids, merges: decode(ids, merges, "ignore"), "hides that something"),
    (ex02.check_best_pair_of, lambda counts: min(counts, key=counts.get), "rarest pair"),
    (ex02.check_best_pair_of, min, "smallest ids"),
    (ex02.check_best_pair_of, lambda counts: max(counts.values()), "without its count"),
    (ex02.check_best_pair_of, lambda counts: Counter(counts).most_common(1)[0], "without its count"),
    (ex02.check_best_pair_of, first_seen, "seen first"),
    (ex02.check_best_pair_of, last_seen, "seen last"),
    (ex02.check_best_pair_of, lambda counts: max(counts, key=lambda p: (counts[p], p)), "largest ids"),
    (ex02.check_encode_by_rank, lambda text, merges: encode(text, merges, ids_from=0), "not m"),
    (ex02.check_encode_by_rank, lambda t, m: encode(t, m, lambda pair, i, count: (-count, i)), "most frequent in this"),
    (ex02.check_encode_by_rank, lambda t, m: encode(t, m, lambda pair, i, count: i), "further left"),
    (ex02.check_encode_by_rank, one_pass, "until no pair is a merge"),
    (ex02.check_encode_by_rank, from_the_right, "from the left"),
    (ex02.check_encode_by_rank, encode_characters, "not with ord"),
    (ex02.check_encode_by_rank, without_empty, "an empty text has no pairs"),
    (ex02.check_learn_from_words, lambda c, n: learn(c, n, weighted=False), "as often as its word"),
    (ex02.check_learn_from_words, learn_across, "stands in no word"),
    (ex02.check_learn_from_words, lambda c, n: learn(c, n, replace=False), "same merge twice"),
    (ex02.check_learn_from_words, learn, "stop then"),
    (ex02.check_learn_from_words, lambda c, n: learn_right(c, n, least=1), "saves nothing"),
    (ex02.check_learn_from_words, lambda c, n: learn_right(c, n, choose=first_seen), "smallest ids go first"),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_a_right_answer_passes(check, answer, capsys):
    check(answer)
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize(("check", "answer", "message"), WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(check, answer, message):
    with pytest.raises(AssertionError, match=message):
        check(answer)
