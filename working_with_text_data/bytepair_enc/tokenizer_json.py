"""`tokenizer.json`: our tokenizer in the file format that `tokenizers` and `transformers` read, and theirs as ours.

The format writes bytes as text. GPT-2's authors gave each of the 256 bytes a printable character: the printable
bytes stand for themselves, the others take the characters from U+0100 on. A space is `Ġ`, a line end `Ċ`.
The pipeline in the file says the same three steps as `bpe.py`: Split (our pattern), ByteLevel (bytes to those
characters), BPE (merges by rank).

Others' files say more, and each thing is either done as they say or refused in one line:

    ids in any order            RoBERTa numbers its tokens by how frequent they are: ids and ranks are two tables
    ranks of pairs              the format ranks *pairs*, and we what they make. These are the same, because of all
                                pairs that spell a token only one ever meets. Two neighbours had nothing joined across
                                their outer ends, so they came about as their bytes alone would: a token's last two
                                parts, when it is merged by itself, are its pair in every text
    tokens that none makes      a token that does not come about alone never does. With `ignore_merges` (Llama 3) it is
                                taken where it is a whole piece, as tiktoken does; without, it is only decoded
    several cuts in a row       Splits, Digits and GPT-2's own cut, each of the pieces of the one before (DeepSeek)
    composed characters         the normalizer NFC (Qwen, GPT-NeoX): the same text to a reader, in other code points
    a space in front            before all ordinary text that has none (Blenderbot): decoding gives it too
    special tokens' flags       they take white space beside them along (RoBERTa's `<mask>`), or want to stand alone
    classes in classes          `[^(\\s|[.,!?])]` (Bloom): the inner one's members are the outer one's
    refused                     what else changes the text before it is cut (another normalizer): decoding would not
                                give the text back; chance (dropout); patterns that Hugging Face's engine reads
                                otherwise than ours
    not applied                 what comes after the ids of a text: templates that put special tokens around it,
                                truncation, padding. `encode` gives the ids of the text alone, as `tokenizers` does with
                                `add_special_tokens=False`. A special token that a text spells follows tiktoken's rules
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from math import inf
from pathlib import Path
from typing import Any, get_args

import regex

from utils.files import read_json, write_text
from working_with_text_data.bytepair_enc.bpe import BytePairTokenizer, SpecialFlag
from working_with_text_data.bytepair_enc.merging import PairOrder, PairRanks, merge_pieces
from working_with_text_data.bytepair_enc.patterns import GPT2_PATTERN, Pattern
from working_with_text_data.bytepair_enc.word_cuts import CUTTERS, WHITE_SPACE


def byte_alphabet() -> dict[int, str]:
    """byte -> the printable character that stands for it, in GPT-2's order (printable bytes first)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


_SPELLING = byte_alphabet()  # for `str.translate` of a text whose characters are bytes (Latin-1)
# Its inverse; a character below 256 that stands for no byte becomes one that is none.
_READING = dict.fromkeys(range(256), "\uffff") | {ord(character): chr(byte) for byte, character in _SPELLING.items()}


def merged_alone(token: bytes, rank: Callable[[bytes, bytes], float]) -> list[bytes]:
    """The last two parts of `token` when it is merged by itself; or more, where no pair of them has a rank.

    Args:
        rank: of two neighbours; infinite for a pair that is not joined.
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    ranks = [rank(left, right) for left, right in pairwise(parts)]
    while len(parts) > 2 and (best := min(ranks)) < inf:
        i = ranks.index(best)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        del ranks[i]
        for left in range(max(i - 1, 0), min(i + 1, len(ranks))):  # the pairs on both sides of the new part
            ranks[left] = rank(parts[left], parts[left + 1])
    return parts


def last_parts(tokens: Sequence[bytes], pair_ranks: PairRanks) -> list[list[bytes]]:
    """`merged_alone` of many tokens at once, each of at least two bytes."""
    if not tokens:
        return []
    ids, counts = merge_pieces(tokens, pair_ranks, fewest=2)
    parts = iter([pair_ranks.tokens[i] for i in ids.tolist()])
    return [list(islice(parts, n)) for n in counts.tolist()]


def recover_pair(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that are merged into `token`, in whatever text it comes about.

    Raises:
        ValueError: no two tokens make it.
    """
    parts = merged_alone(token, lambda left, right: ranks.get(left + right, inf))
    if len(parts) != 2:
        raise ValueError(f"token {token!r} is not the merge of two earlier tokens")
    return parts[0], parts[1]


def to_dict(tokenizer: BytePairTokenizer) -> dict[str, Any]:
    """The contents of the `tokenizer.json` of `tokenizer`.

    Raises:
        ValueError: the format cannot say it: a special token that is spelled as an ordinary one, or a pattern that its
            readers read otherwise.
    """
    ranks = tokenizer.ranks
    by_rank = {rank: token for token, rank in ranks.items()}
    alone = last_parts([t for t in tokenizer.tokens_by_rank() if len(t) > 1], PairRanks(ranks, by_rank))
    merges = [[_spell(part) for part in parts] for parts in alone if len(parts) == 2]
    only_whole = len(merges) < len(alone)  # some are no merge of two tokens, and stand only for a piece of their own
    if only_whole and len(ranks) < len(tokenizer.ids):
        raise ValueError("this format cannot say that of the tokens that no merge makes, some are used and some not")
    vocabulary = {_spell(token): i for token, i in sorted(tokenizer.ids.items(), key=lambda item: item[1])}
    special = sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
    if taken := vocabulary.keys() & dict(special).keys():
        raise ValueError(
            f"the special token {min(taken)!r} is spelled as an ordinary token is in this format: give it another "
            "spelling, such as <|name|>"
        )
    prefix = tokenizer.add_prefix_space
    if prefix and tokenizer.pattern not in (GPT2_PATTERN, ()):
        raise ValueError("this format puts a space before a whole text (add_prefix_space) with GPT-2's pattern alone")
    # Then the step ByteLevel cuts too: behind another, it would put a space before each piece.
    cuts = prefix and tokenizer.pattern == GPT2_PATTERN
    byte_level = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": cuts}
    patterns = [tokenizer.pattern] if isinstance(tokenizer.pattern, str) else tokenizer.pattern
    splits = [
        {"type": "Split", "pattern": {"Regex": require_read_alike(pattern)}, "behavior": "Isolated", "invert": False}
        for pattern in (() if cuts else patterns)
    ]
    added = []
    for text, i in special:
        flags = tokenizer.special_flags.get(text, ())
        looks = {flag: flag in flags for flag in get_args(SpecialFlag)}
        added.append({"id": i, "content": text, **looks, "normalized": False, "special": True})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if tokenizer.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": only_whole,
            "vocab": vocabulary | dict(special),
            "merges": merges,
        },
    }


def save(tokenizer: BytePairTokenizer, path: Path | str) -> None:
    """Writes `tokenizer.json` atomically."""
    write_text(path, json.dumps(to_dict(tokenizer), ensure_ascii=False, indent=1) + "\n")


def load(path: Path | str) -> BytePairTokenizer:
    """Reads a `tokenizer.json` of byte-level BPE, ours or another's.

    Raises:
        ValueError: no such file, not JSON, or a tokenizer that this one cannot be (another algorithm, a normalizer).
            The message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"no tokenizer at {path}: make one with "
            "`python working_with_text_data/bytepair_enc/train_tokenizer.py --out FILE`"
        )
    content = read_json(path)
    try:
        ranks, ids, pattern, special = _parse(content)
        return BytePairTokenizer(
            ranks,
            pattern,
            special,
            path.stem,
            ids,
            nfc=_composes(content),
            add_prefix_space=list(_steps(content["pre_tokenizer"], "pretokenizers"))[-1].get("add_prefix_space", True),
            special_flags={
                token["content"]: {flag for flag in get_args(SpecialFlag) if token.get(flag)}
                for token in content.get("added_tokens") or []
            },
        )
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is not a Hugging Face tokenizer.json ({type(error).__name__}: {error})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _parse(content: dict[str, Any]) -> tuple[dict[bytes, int], dict[bytes, int], Pattern, dict[str, int]]:
    """Ranks, ids, pattern and special tokens."""
    model, added = content["model"], content.get("added_tokens") or []
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = "BPE with byte_fallback" if model.get("type") == "BPE" else model.get("type")
        raise ValueError(f"this is a {kind} tokenizer; only byte-level BPE is understood")
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(setting):
            raise ValueError(f"its {setting} ({model[setting]!r}) is not understood: only byte-level BPE without it is")
    pattern = _pattern_of(content["pre_tokenizer"])
    special = {token["content"]: token["id"] for token in added}
    _require_as_added(added, model["vocab"])
    ids = {bytes_of_spelling(spelled): i for spelled, i in model["vocab"].items() if spelled not in special}
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    if wrong := [merge for merge in merges if len(merge) != 2]:
        raise ValueError(f"its merge {wrong[0]!r} is not one of two tokens")
    pairs = [(bytes_of_spelling(left), bytes_of_spelling(right)) for left, right in merges]
    for left, right in pairs:
        if not {left, right, left + right} <= ids.keys():
            if also := sorted(special.keys() & {_spell(token) for token in (left, right, left + right)}):
                raise ValueError(f"its added token {also[0]!r} is an ordinary one too: take it out of the added ones")
            raise ValueError(f"its merge of {left!r} and {right!r} is not one of ordinary tokens in its vocabulary")
    return _ranks_of(ids, pairs, bool(model.get("ignore_merges"))), ids, pattern, special


def _require_as_added(added: list[dict[str, Any]], vocabulary: dict[str, int]) -> None:
    """Raises ValueError if `tokenizers` gives an added token another id than the file says, or seeks it otherwise.

    What is not in the vocabulary gets the next free id there, whatever the file says. Tokens that are sought in
    normalized text come second there, and here all are sought together: the same only if they cannot overlap.
    """
    seen: set[str] = set()
    largest = len(vocabulary) - 1
    for token in added:
        content, i = token["content"], token["id"]
        if content in seen:
            raise ValueError(f"its token {content!r} is added twice: take one of them out of the file")
        expected = vocabulary.get(content, largest + 1)
        if i != expected:
            raise ValueError(
                f"its added token {content!r} has the id {i}, and tokenizers gives it {expected}, the next that is "
                "free: write that in the file, or the token into the vocabulary"
            )
        seen.add(content)
        largest = max(largest, i)
    late = [token["content"] for token in added if token.get("normalized")]
    for content in seen.difference(late):
        for other in late:
            if _can_overlap(content, other):
                raise ValueError(
                    f"its tokens {content!r} and {other!r} can overlap, and one of them is sought in normalized text "
                    "(normalized), the other before: set that alike in the file"
                )
    strips = [token["content"] for token in added if token.get("lstrip") or token.get("rstrip")]
    if strips and (white := sorted(content for content in seen if content.strip(WHITE_SPACE) != content)):
        raise ValueError(
            f"its token {white[0]!r} has white space at an end, and {strips[0]!r} takes white space along (lstrip, "
            "rstrip): which of them gets it is not understood"
        )


def _can_overlap(one: str, two: str) -> bool:
    """Whether both can be found in one text with a character in common."""
    if one in two or two in one:
        return True
    return any(one.endswith(two[:n]) or two.endswith(one[:n]) for n in range(1, min(len(one), len(two))))


def _ranks_of(ids: dict[bytes, int], pairs: list[tuple[bytes, bytes]], ignore_merges: bool) -> dict[bytes, int]:
    """The ranks of the tokens that come about: their ids where these are in the order of merging, else their places."""
    order = {pair: m for m, pair in enumerate(pairs)}
    made: dict[bytes, int] = {}
    only_whole: list[bytes] = []
    longer = [token for token in ids if len(token) > 1]
    for token, parts in zip(longer, last_parts(longer, PairOrder(pairs)), strict=True):
        if len(parts) > 2:
            only_whole.append(token)
        elif (parts[0], parts[1]) in order:
            made[token] = order[parts[0], parts[1]]
        elif ignore_merges:  # to us, what two neighbours spell is their merge
            raise ValueError(f"its token {token!r} is for whole pieces only, although two tokens make it")
    in_order = sorted(made, key=made.__getitem__)
    others = [token for token in ids if len(token) == 1] + (only_whole if ignore_merges else [])
    others.sort(key=ids.__getitem__)  # and not as the file has them: what is saved again comes in this order
    if in_order == sorted(made, key=ids.__getitem__):
        return {token: ids[token] for token in sorted([*others, *in_order], key=ids.__getitem__)}
    return {token: rank for rank, token in enumerate([*others, *in_order])}


def _steps(part: dict[str, Any] | None, inside: str) -> Iterator[dict[str, Any]]:
    """The steps of a part of the pipeline, in a row: none, one, or those of a Sequence."""
    if part and part["type"] == "Sequence":
        for step in part[inside]:
            yield from _steps(step, inside)
    elif part:
        yield part


def _composes(content: dict[str, Any]) -> bool:
    """Whether text is written in the composed form (NFC) first.

    Raises:
        ValueError: something else is done to it; or a token is sought in what became of the text, where NFC could make
            one or take a part of it: it cannot do either to spaces and line ends.
    """
    steps = list(_steps(content.get("normalizer"), "normalizers"))
    for step in steps:
        if step["type"] != "NFC":
            raise ValueError(
                f"its normalizer ({step['type']}) changes the text, so ids would not give it back: take it out of "
                "the file, and normalize texts beforehand"
            )
    for token in content.get("added_tokens") or [] if steps else ():
        if token.get("normalized") and token["content"].strip(" \t\r\n"):
            raise ValueError(
                f"its token {token['content']!r} is sought in text that is normalized already (normalized): set that "
                "to false in the file"
            )
    return bool(steps)


def _pattern_of(pre_tokenizer: dict[str, Any] | None) -> Pattern:
    """The patterns of the cuts that come before ByteLevel, and GPT-2's if ByteLevel makes that cut too."""
    steps = list(_steps(pre_tokenizer, "pretokenizers"))
    if not steps or steps[-1]["type"] != "ByteLevel":
        raise ValueError(
            f"its pre-tokenizer ({_names(steps)}) does not end in ByteLevel: only byte-level BPE is understood"
        )
    if steps[-1].get("add_prefix_space", True) and len(steps) > 1:
        raise ValueError(
            f"its pre-tokenizer ({_names(steps)}) puts a space before each piece of a text (add_prefix_space), so ids "
            "would not give it back: set that to false in the file"
        )
    patterns = [_pattern_of_step(step) for step in steps[:-1]]
    if steps[-1].get("use_regex", True):
        patterns.append(GPT2_PATTERN)
    return patterns[0] if len(patterns) == 1 else tuple(patterns)


def _pattern_of_step(step: dict[str, Any]) -> str:
    if step["type"] == "Digits":
        return r"\p{N}" if step["individual_digits"] else r"\p{N}+"
    if step["type"] == "Split":
        ((kind, pattern),) = step["pattern"].items()
        pattern = regex.escape(pattern) if kind == "String" else require_read_alike(without_inner_classes(pattern))
        # Removed and inverted: the matches stay and what is between them goes, which for these patterns is nothing.
        keeps_matches = step["behavior"] == "Removed" and step["invert"] and pattern in CUTTERS
        if step["behavior"] == "Isolated" or keeps_matches:
            return pattern
        raise ValueError(f"its pre-tokenizer's Split ({step['behavior']}) is not understood: only Isolated is")
    raise ValueError(f"its pre-tokenizer has a step that is not understood: {step['type']}")


# What both engines are known to read alike; all else is refused. Not here, among others: `^` and `$` (there, of every
# line), `\w` and `\b` (² and ½ are letters to one of the two), `{1,3}+` and `{3}?` (there a repetition of repetitions),
# classes in classes, other flags, other letters in `(?i: )` (there, `ss` is also `ß`), properties beyond the general
# categories and scripts.
_PROPERTY = (
    "[LMNPSZC]|L[ultmo]|M[nce]|N[dlo]|P[cdseifo]|S[mcko]|Z[slp]|C[cf]|Letter|Mark|Number|Punctuation|Symbol|Separator|"
    "Alphabetic|Uppercase|Lowercase|White_Space|Han|Hiragana|Katakana|Hangul|Latin|Greek|Cyrillic|Arabic|Hebrew|Thai|"
    "Devanagari|Bengali|Tamil|Telugu|Georgian|Armenian|Ethiopic|Khmer|Lao|Tibetan|Mongolian"
)
_ESCAPE = rf"\\[pP]\{{\^?(?:{_PROPERTY})\}}|\\[sSdDrntvf]|\\x[0-7][0-9A-Fa-f]|\\u[0-9A-Fa-f]{{4}}|\\[^\w]"
_CLASS = rf"\[\^?(?:[^\[\]\\&]|&(?!&)|{_ESCAPE}|\[:\^?(?:alpha|upper|lower|space|blank|cntrl|xdigit):\])+\]"
_ANY_CASE = "|".join(map(regex.escape, ("(?i:[sdmt]|ll|ve|re)", "(?i:'s|'t|'re|'ve|'m|'ll|'d)")))
_REPETITION = r"\{(?:\d+|\d+,\d*|,\d+)\}(?![+?])|\{(?:\d+,\d*|,\d+)\}\?"
_ALIKE = regex.compile(
    rf"(?:{_ESCAPE}|{_CLASS}|{_ANY_CASE}|\((?!\?|\*)|\(\?(?:[:=!>]|<[=!])|{_REPETITION}|[^\\\[({{^$])*+", regex.S
)
_PART = regex.compile(  # what else a part may be, for the message
    r"\\[pP]\{[^}]*\}|\\.|\[(?:\[:[^\]]*:\]|\\.|[^\]\\])*\]|\(\?[A-Za-z-]+[:)]?|\{[^}]*\}[+?]?|.", regex.S
)

# Classes with classes in them, which are neither negated nor have a sign for a range or an intersection where it would
# get another meaning beside new neighbours. What stands behind a backslash begins none.
_MEMBER = r"(?:[^\[\]\\&-]|\\.|&(?!&)|-(?!\[)|\[:\^?\w+:\])"
_INNER = rf"\[(?![\^-])({_MEMBER}+)(?<!-)\](?!-)"
_NESTED = regex.compile(rf"\\.|\[\^?(?:{_MEMBER}|{_INNER})+\]", regex.S)
_IN_NESTED = regex.compile(rf"(\\.|\[:\^?\w+:\])|{_INNER}", regex.S)


def without_inner_classes(pattern: str) -> str:
    """The pattern with the members of classes in classes as members of these, which both engines read alike.

    To Hugging Face's engine `[a[bc]]` is `[abc]`; to ours it would be one of `a[bc`, and a `]` behind.
    """

    def flat(found: regex.Match[str]) -> str:
        return found[0][0] + _IN_NESTED.sub(lambda part: part[1] or part[2], found[0][1:])

    return _NESTED.sub(flat, pattern)


def require_read_alike(pattern: str) -> str:
    """The pattern, if Hugging Face's engine (Oniguruma, with Ruby's syntax) reads it as ours does.

    Raises:
        ValueError: it has a part that means something else there, or that is not known to mean the same.
    """
    alike = _ALIKE.match(pattern)
    if part := _PART.match(pattern, alike.end() if alike else 0):
        raise ValueError(
            f"the pattern {pattern!r} has {part[0]!r}, which Hugging Face's engine reads otherwise than ours, or may: "
            "characters, classes, general categories, scripts, groups and repetitions are read alike"
        )
    return pattern


def _names(steps: list[dict[str, Any]]) -> str:
    return ", ".join(str(step["type"]) for step in steps) or "none"


def _spell(token: bytes) -> str:
    return token.decode("latin-1").translate(_SPELLING)


def bytes_of_spelling(text: str) -> bytes:
    """The bytes that a token's printable characters stand for.

    Raises:
        ValueError: a character stands for no byte.
    """
    try:
        return text.translate(_READING).encode("latin-1")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"its token {text!r} has {text[error.start]!r}, which stands for no byte: this is no byte-level BPE"
        ) from None
