"""Byte-pair encoding: text to ids and back, with nothing unknown.

A language model reads numbers. Characters make sequences long, words make vocabularies endless and leave new words
out. Byte-pair encoding (Sennrich et al. 2016, after Gage 1994) takes the middle: it starts from the 256 bytes, so
that any text whatever can be written, and adds one token at a time for the pair of neighbours that is most frequent
in some text. Common words end as one token, rare ones as a few, and every byte stays a token of its own.

Three steps make the ids of a text (Radford et al. 2019, section 2.2):

    1. pretokenise   a regular expression cuts the text into pieces, so that no token spans two words
                     "Hello world!"  ->  "Hello" | " world" | "!"
    2. to bytes      each piece becomes its UTF-8 bytes
    3. merge         in each piece, the adjacent pair with the lowest rank (learned earliest) is joined, again and
                     again, until no pair of neighbours is a token

The vocabulary is one dictionary, `ranks`: the bytes of a token -> its id, which is also its rank. The pair that made
a token need not be stored: it is the only pair of earlier tokens that ever meets and spells it.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import regex

from working_with_text_data.bytepair_enc import training

if TYPE_CHECKING:
    import tiktoken

# How GPT-2 cuts text: an English contraction, a word, a number or a run of signs, each with one space before it.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# How GPT-4 does (cl100k_base): contractions in either case, numbers in threes, line ends kept with the signs before.
GPT4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END_OF_TEXT = "<|endoftext|>"

_LONG_PIECE = 64  # bytes; from here on a heap beats looking at every pair again
_CACHED_PIECES = 1_000_000  # pieces whose ids are remembered; natural text repeats nearly all of its pieces


def merge_piece(piece: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """The ids of one piece by the plain rule: join the adjacent pair of lowest rank, leftmost first.

    This is the definition. It looks at every pair for every merge: O(n²) for n bytes, which is the fastest way for
    the handful of bytes in a word and hopeless for a long run of letters: see `merge_long_piece`.
    """
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 1:
        candidates = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not candidates:
            break
        _, i = min(candidates)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]


def merge_long_piece(piece: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """The same ids as `merge_piece` in O(n log n): a heap of pairs by rank over parts that are linked to their right.

    Each part is named by where it starts; `end[start]` is where it ends, and so where its right neighbour starts.
    A heap entry is (rank, start, middle, stop) of two neighbours. It is stale, and skipped, if either has grown since.
    """
    n = len(piece)
    end = list(range(1, n + 1))
    start_of_part_ending_at = list(range(-1, n))
    heap = [(ranks[piece[i : i + 2]], i, i + 1, i + 2) for i in range(n - 1) if piece[i : i + 2] in ranks]
    heapq.heapify(heap)
    while heap:
        _, start, middle, stop = heapq.heappop(heap)
        if end[start] != middle or end[middle] != stop:
            continue
        end[start], end[middle] = stop, -1
        start_of_part_ending_at[stop] = start
        left = start_of_part_ending_at[start]
        for a, b in ((left, start), (start, stop)):  # the two pairs that the new part makes
            if a >= 0 and b < n and (pair := piece[a : end[b]]) in ranks:
                heapq.heappush(heap, (ranks[pair], a, b, end[b]))
    ids, start = [], 0
    while start < n:
        ids.append(ranks[piece[start : end[start]]])
        start = end[start]
    return ids


class _PieceIds(dict[str, tuple[int, ...]]):
    """piece -> its ids, merged on first sight and remembered."""

    def __init__(self, ranks: Mapping[bytes, int]) -> None:
        super().__init__()
        self.ranks = ranks

    def __missing__(self, piece: str) -> tuple[int, ...]:
        data = piece.encode("utf-8")
        if data in self.ranks:
            ids: tuple[int, ...] = (self.ranks[data],)
        else:
            ids = tuple((merge_piece if len(data) < _LONG_PIECE else merge_long_piece)(data, self.ranks))
        if len(data) < _LONG_PIECE:
            if len(self) >= _CACHED_PIECES:
                self.clear()
            self[piece] = ids
        return ids


class BytePairTokenizer:
    """A byte-level BPE tokenizer with the interface of `tiktoken.Encoding`.

    Args:
        ranks: the bytes of each ordinary token -> its id. All 256 single bytes must be there.
        pattern: the regular expression that cuts text into pieces (syntax of the `regex` package).
        special_tokens: text -> id of tokens that stand for something other than their letters.
        name: shown in messages.

    Raises:
        ValueError: a byte is missing, an id is used twice, or the pattern does not compile.
    """

    def __init__(
        self,
        ranks: Mapping[bytes, int],
        pattern: str = GPT4_PATTERN,
        special_tokens: Mapping[str, int] | None = None,
        name: str = "bytepair",
    ) -> None:
        self.ranks = dict(ranks)
        self.pattern = pattern
        self.special_tokens = dict(special_tokens or {})
        self.name = name
        if missing := [b for b in range(256) if bytes([b]) not in self.ranks]:
            raise ValueError(
                f"a byte-level vocabulary needs all 256 bytes; {len(missing)} are missing, first {missing[0]}"
            )
        self._bytes_of = {i: token for token, i in self.ranks.items()}
        self._bytes_of.update({i: text.encode("utf-8") for text, i in self.special_tokens.items()})
        if len(self._bytes_of) != len(self.ranks) + len(self.special_tokens):
            raise ValueError("two tokens share one id: each token, special ones included, needs an id of its own")
        self._compiled = training.compile_pattern(pattern)
        self._ids_of_piece = _PieceIds(self.ranks)

    # --- training -----------------------------------------------------------------------------------------------

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        pattern: str = GPT4_PATTERN,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        *,
        byte_order: Sequence[int] = range(256),
        min_frequency: int = 2,
        progress: bool = False,
    ) -> BytePairTokenizer:
        """Learns a vocabulary from `texts`: the 256 bytes, then one token a merge, then the special tokens.

        Args:
            texts: read once, one at a time.
            vocab_size: number of tokens to end with. A small corpus can run out of pairs and end with fewer.
            byte_order: the byte that each of the ids 0 … 255 stands for.
            min_frequency: pairs seen fewer times are not merged.
            progress: shows a progress bar.

        Raises:
            ValueError: `vocab_size` has no room for the bytes and the special tokens, or the texts are empty.
        """
        if len(set(special_tokens)) != len(special_tokens) or "" in special_tokens:
            raise ValueError(f"special tokens must be distinct and not empty, got {list(special_tokens)}")
        n_merges = vocab_size - 256 - len(special_tokens)
        if n_merges < 0:
            least = 256 + len(special_tokens)
            raise ValueError(
                f"vocabulary of {vocab_size} is too small: it needs at least {least} "
                f"(256 bytes + {len(special_tokens)} special tokens)"
            )
        piece_counts = training.count_pieces(texts, pattern)
        if not piece_counts:
            raise ValueError("there is no text to train a tokenizer on: the corpus is empty")
        merges = training.learn_merges(piece_counts, n_merges, byte_order, min_frequency, progress)
        tokens = [bytes([b]) for b in byte_order]
        for left, right in merges:
            tokens.append(tokens[left] + tokens[right])
        ranks = {token: i for i, token in enumerate(tokens)}
        return cls(ranks, pattern, {text: len(tokens) + i for i, text in enumerate(special_tokens)})

    # --- text to ids --------------------------------------------------------------------------------------------

    def encode(
        self,
        text: str,
        *,
        allowed_special: Literal["all"] | Collection[str] = (),
        disallowed_special: Literal["all"] | Collection[str] = "all",
    ) -> list[int]:
        """The ids of `text`, with tiktoken's rules for special tokens that are spelled out in it.

        Text that a person typed must never turn into a control token by accident. So a special token's spelling is
        an error, unless it is in `allowed_special` (then it becomes its id) or `disallowed_special` leaves it out
        (then it is ordinary text).

        Raises:
            ValueError: `text` spells a disallowed special token.
        """
        allowed = set(self.special_tokens) if allowed_special == "all" else set(allowed_special)
        disallowed = set(self.special_tokens) - allowed if disallowed_special == "all" else set(disallowed_special)
        if disallowed and (found := _any_of(disallowed).search(text)):
            raise ValueError(
                f"the text spells the special token {found.group()!r}: pass allowed_special={{{found.group()!r}}} "
                "to encode it as that token, or disallowed_special=() to encode it as ordinary text"
            )
        allowed &= set(self.special_tokens)
        if not allowed:
            return self.encode_ordinary(text)
        ids, position = [], 0
        for found in _any_of(allowed).finditer(text):
            ids += self.encode_ordinary(text[position : found.start()])
            ids.append(self.special_tokens[found.group()])
            position = found.end()
        return ids + self.encode_ordinary(text[position:])

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of `text`, all of it as ordinary text. A lone surrogate becomes U+FFFD, as in tiktoken."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids_of_piece = self._ids_of_piece
        return [i for piece in training.split_into_pieces(self._compiled, text) for i in ids_of_piece[piece]]

    def encode_batch(
        self,
        texts: Iterable[str],
        *,
        allowed_special: Literal["all"] | Collection[str] = (),
        disallowed_special: Literal["all"] | Collection[str] = "all",
    ) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(t, allowed_special=allowed_special, disallowed_special=disallowed_special) for t in texts]

    def encode_single_token(self, token: str | bytes) -> int:
        """The id of `token`, ordinary or special.

        Raises:
            KeyError: it is not one token.
        """
        if isinstance(token, str):
            if token in self.special_tokens:
                return self.special_tokens[token]
            token = token.encode("utf-8")
        return self.ranks[token]

    # --- ids to text --------------------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of `ids`. Ids cut in the middle of a character give U+FFFD there, unless `errors` says otherwise."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`, exactly; special tokens give their spelling.

        Raises:
            ValueError: an id that no token has.
        """
        try:
            return b"".join([self._bytes_of[i] for i in ids])
        except KeyError as error:
            raise ValueError(f"id {error} is no token of this vocabulary (0 … {self.max_token_value})") from None

    def decode_single_token_bytes(self, token: int) -> bytes:
        """The bytes of one token."""
        return self.decode_bytes([token])

    def decode_tokens_bytes(self, ids: Iterable[int]) -> list[bytes]:
        """The bytes of each token."""
        return [self.decode_bytes([i]) for i in ids]

    # --- facts --------------------------------------------------------------------------------------------------

    @property
    def n_vocab(self) -> int:
        """One more than the largest id: the number of rows that a model's embedding needs."""
        return self.max_token_value + 1

    @property
    def max_token_value(self) -> int:
        """The largest id."""
        return max(self._bytes_of)

    @property
    def eot_token(self) -> int:
        """The id of `<|endoftext|>`, which stands between documents.

        Raises:
            ValueError: this tokenizer has no such token.
        """
        if END_OF_TEXT not in self.special_tokens:
            raise ValueError(f"this tokenizer has no {END_OF_TEXT} token")
        return self.special_tokens[END_OF_TEXT]

    @property
    def special_tokens_set(self) -> set[str]:
        """The spellings of the special tokens."""
        return set(self.special_tokens)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides an id. Equal fingerprints mean equal ids for every text."""
        digest = hashlib.sha256(self.pattern.encode("utf-8"))
        for token, i in sorted(self.ranks.items(), key=lambda item: item[1]):
            digest.update(b"%d:%d:%b" % (i, len(token), token))
        for text, i in sorted(self.special_tokens.items(), key=lambda item: item[1]):
            digest.update(b"special:%d:%b" % (i, text.encode("utf-8")))
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"<BytePairTokenizer {self.name!r}, {self.n_vocab:,} tokens>"

    # --- files and other libraries ------------------------------------------------------------------------------

    def save(self, path: Path | str) -> None:
        """Writes one file, Hugging Face's `tokenizer.json`, which `tokenizers` and `transformers` read."""
        from working_with_text_data.bytepair_enc import tokenizer_json

        tokenizer_json.save(self, path)

    @classmethod
    def load(cls, path: Path | str) -> BytePairTokenizer:
        """Reads a byte-level BPE `tokenizer.json`.

        Raises:
            ValueError: the file is missing or holds another kind of tokenizer; the message says what to do.
        """
        from working_with_text_data.bytepair_enc import tokenizer_json

        return tokenizer_json.load(path)

    def to_tiktoken(self) -> tiktoken.Encoding:
        """The same tokenizer as a `tiktoken.Encoding`."""
        import tiktoken

        return tiktoken.Encoding(
            self.name, pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens=self.special_tokens
        )


def _any_of(spellings: Collection[str]) -> regex.Pattern[str]:
    """Matches any of the spellings, the longest first where one begins another."""
    return regex.compile("|".join(regex.escape(s) for s in sorted(spellings, key=len, reverse=True)))
