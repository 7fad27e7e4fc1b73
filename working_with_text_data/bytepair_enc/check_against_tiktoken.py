"""Compares ids with tiktoken's: on random texts made to be difficult, and on any real text.

python working_with_text_data/bytepair_enc/check_against_tiktoken.py --vocabularies FOLDER --texts 1000000

Random letters find nothing: the mistakes are where classes meet. So the generator draws runs from pools that patterns
tell apart (letters of both cases and none, marks, digits, signs, every white space of Unicode, line ends, joiners,
emoji, control characters, lone surrogates, special tokens cut short) and puts them side by side.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from utils.errors import UserError, run_command
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.bytepair_enc.vocabularies import VOCABULARIES

if TYPE_CHECKING:
    import tiktoken

_WHITE_SPACE = "\t\n\v\f\r \x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2000\u2003\u200a\u2028\u2029\u202f\u205f\u3000"
_POOLS = (
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789",
    " ",
    " \n",
    " \t\r\n/",
    _WHITE_SPACE,
    ".,;:!?-_/\\()[]{}<>|'\"`@#$%^&*+=~",
    "'sStTdDmM",
    "éßøžŐǅΣσςЖжŁł",  # both cases, and one that is neither
    "ªʰ漢字かなカナ한글ไทยअआعبא",  # letters without case
    "\u0300\u0301\u093e\u0941\u20dd\ufe0f",  # marks
    "٣४५Ⅷ½²①",  # other numbers
    "👩💻🎉🇫🇷🏽\u200d\u200c\u200b",
    "ʕՙ\u0558\ua7ce\U000323b0\U0001df30\U00010ec5",  # where Unicode versions differ
    "\0\1\2\x07\x1b\x7f\ufffd\ufdd0\ue000",
    "\ud800\udfff\udc00",  # lone surrogates
    "ſK",  # lower case is ASCII's s and k
)
_WORDS = ("'re", "'LL", "'ve", "n't", " the", "  ", "\r\n", "\n\n", "://", "...", "<|endoftext|>", "<|endof", "|>")


def random_texts(seed: int, number: int) -> Iterator[str]:
    """`number` difficult texts of up to some hundred characters, the same for the same seed."""
    draw = random.Random(seed)
    for _ in range(number):
        parts = []
        for _ in range(draw.randint(0, 12)):
            kind = draw.random()
            if kind < 0.15:
                parts.append(draw.choice(_WORDS))
            elif kind < 0.25:  # any plane, assigned or not
                parts += [chr(draw.randrange(0x110000)) for _ in range(draw.randint(1, 3))]
            else:
                parts += draw.choices(draw.choice(_POOLS), k=draw.choice((1, 1, 2, 3, 5, 12)))
        yield "".join(parts)


def real_texts(path: Path) -> list[str]:
    """The texts in a file: each string of JSON (also by lines) and of Parquet's columns, or the whole of any other.

    It may be packed with gzip; bytes that are no UTF-8 become U+FFFD, which is a character like another here.
    """
    if path.suffix == ".parquet":
        from pyarrow import parquet

        table = parquet.read_table(path)
        return [text for column in table.columns for text in column.to_pylist() if isinstance(text, str)]
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", "replace")
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        return [string for line in text.split("\n") if line for string in _strings(json.loads(line))]
    return list(_strings(json.loads(text))) if name.endswith(".json") else [text]


def _strings(value: object) -> Iterator[str]:
    """Every string in a value that was JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def real_tiktoken(name: str, folder: Path) -> tiktoken.Encoding:
    """tiktoken's own encoding, with its own pattern and code, from local files: it never asks the network.

    Args:
        name: a key of `VOCABULARIES`.
        folder: holds the files of the vocabulary, packed with gzip or not.

    Raises:
        ValueError: a file is missing.
    """
    import tiktoken

    with tempfile.TemporaryDirectory() as cache:
        for file in VOCABULARIES[name].files:
            found = [p for p in (folder / file.name, folder / f"{file.name}.gz") if p.is_file()]
            if not found:
                raise ValueError(f"the vocabulary {name} needs {file.name}, and there is none in {folder}")
            data = found[0].read_bytes()
            data = gzip.decompress(data) if found[0].suffix == ".gz" else data
            (Path(cache) / hashlib.sha1(file.url.encode()).hexdigest()).write_bytes(data)  # as tiktoken names it
        before = os.environ.get("TIKTOKEN_CACHE_DIR")
        os.environ["TIKTOKEN_CACHE_DIR"] = cache
        try:
            return tiktoken.get_encoding(name)
        finally:
            if before is None:
                del os.environ["TIKTOKEN_CACHE_DIR"]
            else:
                os.environ["TIKTOKEN_CACHE_DIR"] = before


def first_difference(ours: BytePairTokenizer, theirs: tiktoken.Encoding, text: str) -> str | None:
    """What differs for `text`, or None: ids with and without special tokens, their bytes, and the text again."""
    plain = theirs.encode_ordinary(text)
    if ours.encode_ordinary(text) != plain:
        return f"ids of {text!r}"
    special = theirs.encode(text, allowed_special="all")
    if ours.encode(text, allowed_special="all") != special:
        return f"ids with special tokens of {text!r}"
    if ours.decode_bytes(special) != theirs.decode_bytes(special):
        return f"bytes of the ids of {text!r}"
    if ours.decode(plain) != text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"):
        return f"the text back from the ids of {text!r}"
    return None


@dataclass(frozen=True)
class CheckAgainstTiktoken:
    """The flags of this script."""

    vocabularies: Path
    """The folder with vocab.bpe, encoder.json and the .tiktoken files, packed with gzip or not."""
    names: tuple[str, ...] = tuple(VOCABULARIES)
    """Which of them to compare."""
    texts: int = 100_000
    """Random texts for each."""
    seed: int = 0
    """Which random texts."""
    corpus: tuple[Path, ...] = ()
    """Real texts besides: files, or folders of them (text, JSON, Parquet; packed with gzip or not)."""


def main(options: CheckAgainstTiktoken) -> None:
    if unknown := set(options.names) - set(VOCABULARIES):
        raise UserError(f"unknown vocabulary {sorted(unknown)[0]!r}: use {', '.join(VOCABULARIES)}")
    if options.texts < 0 or not options.names:
        raise UserError(f"there is nothing to compare: {options.texts} texts, {len(options.names)} vocabularies")
    if missing := [path for path in options.corpus if not path.exists()]:
        raise UserError(f"no such file or folder: {missing[0]}")
    paths = [path for given in options.corpus for path in ([given] if given.is_file() else sorted(given.rglob("*")))]
    if options.corpus and not paths:
        raise UserError(f"there is no file in {options.corpus[0]}")
    for name in options.names:
        ours = BytePairTokenizer.from_vocabulary(name, options.vocabularies)
        theirs = real_tiktoken(name, options.vocabularies)
        n_real = 0
        for path in tqdm([path for path in paths if path.is_file()], f"{name}, files", unit=" files", disable=None):
            try:
                texts = real_texts(path)
            except (ValueError, OSError, EOFError, RecursionError) as error:
                raise UserError(f"{path} cannot be read ({error})") from None
            for text in texts:
                n_real += 1
                _stop_if_different(ours, theirs, text)
        group: list[str] = []
        for text in tqdm(random_texts(options.seed, options.texts), name, options.texts, unit=" texts", disable=None):
            _stop_if_different(ours, theirs, text)
            group.append(text)
            if len(group) == 5_000:  # as one long text they take the way of long texts
                _stop_if_different(ours, theirs, "".join(group))
                group = []
        print(f"{name}: {options.texts:,} random texts and {n_real:,} real ones, all ids equal", flush=True)


def _stop_if_different(ours: BytePairTokenizer, theirs: tiktoken.Encoding, text: str) -> None:
    if difference := first_difference(ours, theirs, text):
        print(f"{ours.name}: {difference[:2000]} differ")
        sys.exit(1)


if __name__ == "__main__":
    run_command(main, CheckAgainstTiktoken)
