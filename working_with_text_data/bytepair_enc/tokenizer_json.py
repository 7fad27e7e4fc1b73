"""`tokenizer.json`: our tokenizer in the file format that `tokenizers` and `transformers` read.

The format writes bytes as text. GPT-2's authors gave each of the 256 bytes a printable character: the printable
bytes stand for themselves, the others take the characters from U+0100 on. A space is `Ġ`, a line end `Ċ`.
The pipeline in the file says the same three steps as `bpe.py`: Split (our pattern), ByteLevel (bytes to those
characters), BPE (merges by rank).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.files import read_json, write_text

if TYPE_CHECKING:
    from working_with_text_data.bytepair_enc.bpe import BytePairTokenizer


def byte_alphabet() -> dict[int, str]:
    """byte -> the printable character that stands for it, in GPT-2's order (printable bytes first)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


_CHARACTER_OF = byte_alphabet()
_BYTE_OF = {character: byte for byte, character in _CHARACTER_OF.items()}


def recover_pair(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that were merged into `token`: what is left when its bytes are merged by lower ranks alone.

    Raises:
        ValueError: no two earlier tokens make it, so the vocabulary was not made by merging.
    """
    limit = ranks[token]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        rank, i = min((ranks.get(parts[i] + parts[i + 1], limit), i) for i in range(len(parts) - 1))
        if rank >= limit:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    if len(parts) != 2:
        raise ValueError(f"token {token!r} is not the merge of two earlier tokens")
    return parts[0], parts[1]


def to_dict(tokenizer: BytePairTokenizer) -> dict[str, Any]:
    """The contents of the `tokenizer.json` of `tokenizer`."""
    by_rank = sorted(tokenizer.ranks, key=tokenizer.ranks.__getitem__)
    merges = [[_spell(part) for part in recover_pair(t, tokenizer.ranks)] for t in by_rank if len(t) > 1]
    vocabulary = {_spell(token): tokenizer.ranks[token] for token in by_rank}
    special = sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
    if taken := vocabulary.keys() & dict(special).keys():
        raise ValueError(
            f"the special token {min(taken)!r} is spelled as an ordinary token is in this format: give it another "
            "spelling, such as <|name|>"
        )
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": text, **flags} for text, i in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
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
            "ignore_merges": False,
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
        ValueError: no such file, not JSON, or a tokenizer that this one cannot be (another algorithm, a normaliser,
            merges out of order). The message names the file.
    """
    from working_with_text_data.bytepair_enc.bpe import BytePairTokenizer

    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"no tokenizer at {path}: make one with "
            "`python working_with_text_data/bytepair_enc/train_tokenizer.py --out FILE`"
        )
    content = read_json(path)
    try:
        ranks, pattern, special = _parse(content)
        return BytePairTokenizer(ranks, pattern, special, name=path.stem)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is not a Hugging Face tokenizer.json ({type(error).__name__}: {error})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _parse(content: dict[str, Any]) -> tuple[dict[bytes, int], str, dict[str, int]]:
    model = content["model"]
    if model.get("type") != "BPE" or model.get("unk_token") or model.get("byte_fallback"):
        raise ValueError(f"this is a {model.get('type')} tokenizer; only byte-level BPE is understood")
    if content.get("normalizer"):
        raise ValueError("it has a normalizer, so its ids do not give back the exact text; this one is not supported")
    special = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
    ranks = {bytes_of_spelling(t): i for t, i in model["vocab"].items() if t not in special}
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    made = [bytes_of_spelling(left) + bytes_of_spelling(right) for left, right in pairs]
    if [t for t in sorted(ranks, key=ranks.__getitem__) if len(t) > 1] != made:
        raise ValueError("its merges are not in the order of its ids, which this tokenizer relies on")
    return ranks, _pattern_of(content["pre_tokenizer"]), special


def _pattern_of(pre_tokenizer: dict[str, Any]) -> str:
    """The pattern of the two usual pipelines: GPT-2's ByteLevel alone, or a Split before a ByteLevel."""
    from working_with_text_data.bytepair_enc.patterns import GPT2_PATTERN

    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    byte_level = steps[-1]
    if byte_level["type"] == "ByteLevel" and not byte_level["add_prefix_space"]:
        if len(steps) == 1 and byte_level.get("use_regex", True):
            return GPT2_PATTERN
        split = steps[0]
        if len(steps) == 2 and not byte_level.get("use_regex", True) and split["type"] == "Split":
            isolates = split["behavior"] == "Isolated" and not split["invert"]
            if isolates and "Regex" in split["pattern"]:
                return str(split["pattern"]["Regex"])
    raise ValueError(f"its pre-tokenizer ({', '.join(step['type'] for step in steps)}) is not understood")


def _spell(token: bytes) -> str:
    return "".join(_CHARACTER_OF[b] for b in token)


def bytes_of_spelling(text: str) -> bytes:
    """The bytes that a token's printable characters stand for.

    Raises:
        KeyError: a character that stands for no byte.
    """
    return bytes([_BYTE_OF[character] for character in text])
