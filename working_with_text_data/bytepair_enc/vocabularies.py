"""The published vocabularies: GPT-2's, GPT-3's, GPT-4's and GPT-4o's, from a local file or fetched once.

A vocabulary is three things, and only the first is in a file: the bytes of each token with its rank, the pattern that
cuts text, and the special tokens. Two formats are about:

    .tiktoken                   a line a token: its bytes in base 64, a space, its rank
    vocab.bpe + encoder.json    GPT-2's own: the merges in order, and the ids, bytes spelled as printable characters

An id that is off by one in a hundred thousand gives a model that babbles, with no error anywhere. So what is read is
checked against the SHA-256 of the file that OpenAI published, as recorded in tiktoken's `openai_public.py`.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from utils.downloads import cache_folder, fetch
from utils.files import write_bytes
from working_with_text_data.bytepair_enc.bpe import BytePairTokenizer
from working_with_text_data.bytepair_enc.patterns import GPT2_PATTERN, GPT4_PATTERN, GPT4O_PATTERN
from working_with_text_data.bytepair_enc.tokenizer_json import byte_alphabet, bytes_of_spelling

_ADDRESS = "https://openaipublic.blob.core.windows.net/"
_ENCODINGS = _ADDRESS + "encodings/"


@dataclass(frozen=True)
class PublishedFile:
    """One file of a vocabulary."""

    url: str
    sha256: str
    """Of the file's bytes, unpacked."""

    @property
    def name(self) -> str:
        """What the file is called, here and there."""
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class Vocabulary:
    """A published vocabulary."""

    files: tuple[PublishedFile, ...]
    """One `.tiktoken` file, or `vocab.bpe` and `encoder.json`."""
    pattern: str
    """How it cuts text."""
    special_tokens: dict[str, int]
    """Their spelling and ids."""


VOCABULARIES = {
    "gpt2": Vocabulary(
        (
            PublishedFile(
                _ADDRESS + "gpt-2/encodings/main/vocab.bpe",
                "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
            ),
            PublishedFile(
                _ADDRESS + "gpt-2/encodings/main/encoder.json",
                "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
            ),
        ),
        GPT2_PATTERN,
        {"<|endoftext|>": 50256},
    ),
    "r50k_base": Vocabulary(
        (
            PublishedFile(
                _ENCODINGS + "r50k_base.tiktoken", "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
            ),
        ),
        GPT2_PATTERN,
        {"<|endoftext|>": 50256},
    ),
    "p50k_base": Vocabulary(
        (
            PublishedFile(
                _ENCODINGS + "p50k_base.tiktoken", "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069"
            ),
        ),
        GPT2_PATTERN,
        {"<|endoftext|>": 50256},
    ),
    "cl100k_base": Vocabulary(
        (
            PublishedFile(
                _ENCODINGS + "cl100k_base.tiktoken", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
            ),
        ),
        GPT4_PATTERN,
        {
            "<|endoftext|>": 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": Vocabulary(
        (
            PublishedFile(
                _ENCODINGS + "o200k_base.tiktoken", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
            ),
        ),
        GPT4O_PATTERN,
        {"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
    ),
}


def published_tokenizer(name: str, path: Path | str | None = None) -> BytePairTokenizer:
    """The tokenizer of a published vocabulary.

    Args:
        name: a key of `VOCABULARIES`.
        path: its file, or the folder that its files are in; packed with gzip or not. Without one they are taken from
            the cache folder, and fetched into it if they are not there.

    Raises:
        ValueError: no such vocabulary, a file is missing, or its contents are not the published ones.
        ConnectionError: a file could not be fetched.
    """
    if name not in VOCABULARIES:
        raise ValueError(f"unknown vocabulary {name!r}: use one of {', '.join(VOCABULARIES)}")
    vocabulary = VOCABULARIES[name]
    if path is None:
        contents = [_cached_or_fetched(file) for file in vocabulary.files]
    else:
        contents = [_local(file, Path(path).expanduser(), name) for file in vocabulary.files]
    if len(contents) == 2:
        ranks = parse_gpt2_files(*contents)
    else:
        ranks = parse_tiktoken(contents[0], vocabulary.files[0].name)
    return BytePairTokenizer(ranks, vocabulary.pattern, vocabulary.special_tokens, name)


def _local(file: PublishedFile, path: Path, name: str) -> bytes:
    """The contents of one of a vocabulary's files, from the path that a user gave."""
    if not path.exists():
        raise ValueError(f"no such file or folder: {path}; the vocabulary {name} needs {file.name}")
    folder = path if path.is_dir() else path.parent
    candidates = [folder / file.name, folder / (file.name + ".gz")]
    if path.is_file() and (len(VOCABULARIES[name].files) == 1 or path in candidates):
        candidates = [path]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise ValueError(f"the vocabulary {name} needs {file.name}, and there is none in {folder}")
    data = found.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{found}: broken gzip file ({error})") from None
    _check(data, file, str(found))
    return data


def _cached_or_fetched(file: PublishedFile) -> bytes:
    target = cache_folder() / "vocabularies" / file.sha256[:8] / file.name  # two vocabularies may name files alike
    if target.is_file():
        data = target.read_bytes()
        _check(data, file, str(target))
        return data
    try:
        data, _ = fetch(file.url)
    except (OSError, HTTPException, ValueError) as error:
        raise ConnectionError(
            f"{file.url} could not be fetched ({' '.join(str(error).split())}): put the file into a folder and give "
            "its path"
        ) from None
    _check(data, file, file.url)
    write_bytes(target, data)
    return data


def _check(data: bytes, file: PublishedFile, where: str) -> None:
    digest = hashlib.sha256(data).hexdigest()
    if digest != file.sha256:
        raise ValueError(
            f"{where} is not the published {file.name}: its SHA-256 begins {digest[:12]}, not {file.sha256[:12]}; "
            "delete it and get it again"
        )


def parse_tiktoken(data: bytes, name: str = "the file") -> dict[bytes, int]:
    """The ranks in a `.tiktoken` file.

    Raises:
        ValueError: a line is not a token and a rank, or a token or a rank is there twice; the message has its number.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            decoded, i = base64.b64decode(token, validate=True), int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"{name}, line {number}: expected a token in base 64 and its rank") from None
        if decoded in ranks:
            raise ValueError(f"{name}, line {number}: the token {decoded!r} is there twice")
        ranks[decoded] = i
    _require_distinct(list(ranks.values()), name)
    return ranks


def parse_gpt2_files(vocab_bpe: bytes, encoder_json: bytes) -> dict[bytes, int]:
    """The ranks in GPT-2's `vocab.bpe` (merges in order) and `encoder.json` (spelled token -> id).

    Raises:
        ValueError: the two are damaged or do not belong together.
    """
    try:
        version, *lines = vocab_bpe.decode("utf-8").splitlines()
        merges = [tuple(line.split(" ")) for line in lines if line]
        spelled: dict[str, int] = json.loads(encoder_json)
        tokens = [*(bytes([byte]) for byte in byte_alphabet())]
        tokens += [bytes_of_spelling(left) + bytes_of_spelling(right) for left, right in merges]
        listed = {bytes_of_spelling(text): i for text, i in spelled.items() if text != "<|endoftext|>"}
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"vocab.bpe or encoder.json is damaged ({error})") from None
    ranks = {token: i for i, token in enumerate(tokens)}
    if not version.startswith("#version") or ranks != listed or len(ranks) != len(tokens):
        raise ValueError("vocab.bpe and encoder.json do not belong together: they give tokens other ids")
    return ranks


def _require_distinct(values: Sequence[int], name: str) -> None:
    if len(set(values)) != len(values):
        ((twice, _),) = Counter(values).most_common(1)
        raise ValueError(f"{name}: two tokens have the rank {twice}")
