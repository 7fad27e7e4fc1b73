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

The vocabulary is one dictionary, `ranks`: the bytes of a token -> its rank, which is also its id. (Where a file from
elsewhere numbers its tokens otherwise, `ids` says how.) The pair that made a token need not be stored: it is the only
pair of earlier tokens that ever meets and spells it.

The plain versions of all of this are in `ladder.py`; what makes it fast stands apart, each piece in a file of its own:
`merging.py`, `word_cuts.py`, `fast_encoding.py`, `counting.py`, `training.py`. Here is what they add up to.
"""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import regex

from utils.parallel import map_in_order
from working_with_text_data.bytepair_enc import training
from working_with_text_data.bytepair_enc.counting import chunks_of
from working_with_text_data.bytepair_enc.fast_encoding import FastEncoder
from working_with_text_data.bytepair_enc.patterns import GPT4_PATTERN, Pattern, splitter
from working_with_text_data.bytepair_enc.word_cuts import CUTTERS, WHITE_SPACE

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"
Spellings = Literal["all"] | Collection[str]
SpecialFlag = Literal["single_word", "lstrip", "rstrip"]
_FLAGS = ", ".join(get_args(SpecialFlag))
# What Hugging Face's engine takes for a part of a word (`\w` as in Unicode's UTS 18, annex C).
_WORD = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]")
_CHUNK = 2_000_000  # characters that one process encodes at a time
_MAX_ID = 2**24 - 1  # `decode` has a table that is as long as the largest id
_SLICE = 4_000  # ids that are decoded together: few enough that what is fetched stays in the processor's cache


class BytePairTokenizer:
    """A byte-level BPE tokenizer with the interface of `tiktoken.Encoding`.

    Args:
        ranks: the bytes of each ordinary token -> its rank: the pair with the lowest is joined first. All 256 single
            bytes must be there.
        pattern: the regular expression that cuts text into pieces (syntax of the `regex` package), or several, each
            of which cuts the pieces of the one before.
        special_tokens: text -> id of tokens that stand for something other than their letters.
        name: shown in messages.
        ids: the bytes of each ordinary token -> its id, where that is not its rank (RoBERTa numbers its tokens by how
            frequent they are). Tokens without a rank may be there too: they decode, but no text is encoded to them.
        nfc: write ordinary text in Unicode's composed form before it is cut, as Qwen and GPT-NeoX do: e and a combining
            accent become é. `decode` then gives that form. Python's Unicode decides, which may be older than another's.
        add_prefix_space: put a space before ordinary text that begins with none, so that its first word is the token
            that it is elsewhere (RoBERTa, Blenderbot). `decode` gives that space.
        special_flags: of special tokens that look at what is beside them, their flags. `lstrip`, `rstrip`: white space
            on that side belongs to the token (RoBERTa's `<mask>`), and `decode` does not give it. `single_word`: the
            spelling is the token only where no letter, digit or `_` touches it.

    Raises:
        ValueError: a byte is missing, an id is used twice, the pattern does not compile, or a flag is not one.
    """

    def __init__(
        self,
        ranks: Mapping[bytes, int],
        pattern: Pattern = GPT4_PATTERN,
        special_tokens: Mapping[str, int] | None = None,
        name: str = "bytepair",
        ids: Mapping[bytes, int] | None = None,
        nfc: bool = False,
        add_prefix_space: bool = False,
        special_flags: Mapping[str, Collection[SpecialFlag]] | None = None,
    ) -> None:
        self.ranks = dict(ranks)
        self.ids = self.ranks if ids is None or ids == self.ranks else dict(ids)
        self.pattern = pattern
        self.special_tokens = dict(special_tokens or {})
        self.name = name
        self.nfc = nfc
        self.add_prefix_space = add_prefix_space
        self.special_flags = {text: frozenset(flags) for text, flags in (special_flags or {}).items() if flags}
        for text, flags in self.special_flags.items():
            if text not in self.special_tokens or not flags <= set(get_args(SpecialFlag)):
                raise ValueError(f"the flags {sorted(flags)} of {text!r}: these are {_FLAGS}, of a special token")
        wrong = [i for part in (self.ranks, self.ids, self.special_tokens) for i in part.values() if not _is_id(i)]
        if wrong:
            raise ValueError(f"the id {wrong[0]!r} is not a whole number from 0 to {_MAX_ID:,}")
        if missing := [b for b in range(256) if bytes([b]) not in self.ranks]:
            raise ValueError(
                f"a byte-level vocabulary needs all 256 bytes; {len(missing)} are missing, first {missing[0]}"
            )
        self._bytes_of = {i: token for token, i in self.ids.items()}
        self._bytes_of.update({i: text.encode("utf-8") for text, i in self.special_tokens.items()})
        # The same as an array for `decode`, None where no token has that id. Each byte is the character of its number
        # (which is what Latin-1 means), since Python joins strings faster than bytes.
        table: list[str | None] = [None] * (max(self._bytes_of) + 1)
        for i, token in self._bytes_of.items():
            table[i] = token.decode("latin-1")
        self._token_table = np.array(table, object)
        if len(self._bytes_of) != len(self.ids) + len(self.special_tokens):
            raise ValueError("two tokens share one id: each token, special ones included, needs an id of its own")
        if "" in self.special_tokens or b"" in self.ids:
            raise ValueError("a token must not be empty")
        self._split = splitter(pattern)
        by_rank = self._bytes_of
        self._id_of_rank: npt.NDArray[np.uint32] | None = None
        if self.ids is not self.ranks:
            by_rank = {rank: token for token, rank in self.ranks.items()}
            if len(by_rank) != len(self.ranks) or not self.ranks.keys() <= self.ids.keys():
                raise ValueError("two tokens share one rank, or one with a rank has no id")
            self._id_of_rank = np.zeros(max(by_rank) + 1, np.uint32)
            self._id_of_rank[list(by_rank)] = [self.ids[token] for token in by_rank.values()]
        self._encoder = FastEncoder(self.ranks, by_rank, self._split, CUTTERS.get(pattern))

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes: the vocabulary, without what was remembered of texts."""
        before = (self.nfc, self.add_prefix_space, self.special_flags)
        return BytePairTokenizer, (self.ranks, self.pattern, self.special_tokens, self.name, self.ids, *before)

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
        max_pieces: int = 20_000_000,
        num_processes: int = 1,
        progress: bool = False,
        checkpoint: Path | str | None = None,
        corpus: str = "",
    ) -> BytePairTokenizer:
        """Learns a vocabulary from `texts`: the 256 bytes, then one token a merge, then the special tokens.

        Args:
            texts: read once, one at a time.
            vocab_size: number of tokens to end with. A small corpus can run out of pairs and end with fewer.
            byte_order: the byte that each of the ids 0 … 255 stands for.
            min_frequency: pairs seen fewer times are not merged.
            max_pieces: distinct pieces to remember; of more, the rarest are forgotten (see `counting.py`).
            num_processes: that count pieces at the same time. The vocabulary is the same for any number.
            progress: shows a progress bar.
            checkpoint: a file that is kept up to date meanwhile; where it is there already, training goes on from it
                and counts no text again (see `training.learn_from_texts`).
            corpus: what the texts are, in words; a checkpoint of another corpus is refused.

        Raises:
            ValueError: `vocab_size` has no room for the bytes and the special tokens, or the texts are empty.
        """
        if isinstance(texts, str) or isinstance(special_tokens, str):
            raise TypeError("texts and special_tokens are collections of str: write [...] around a single one")
        if len(set(special_tokens)) != len(special_tokens) or "" in special_tokens:
            raise ValueError(f"special tokens must be distinct and not empty, got {list(special_tokens)}")
        n_merges = vocab_size - 256 - len(special_tokens)
        if n_merges < 0:
            least = 256 + len(special_tokens)
            raise ValueError(
                f"vocabulary of {vocab_size} is too small: it needs at least {least} "
                f"(256 bytes + {len(special_tokens)} special tokens)"
            )
        merges = training.learn_from_texts(
            _strings(texts),
            n_merges,
            pattern,
            byte_order=byte_order,
            min_frequency=min_frequency,
            max_pieces=max_pieces,
            num_processes=num_processes,
            progress=progress,
            checkpoint=checkpoint,
            corpus=corpus,
        )
        return cls.from_merges(merges, pattern, special_tokens, byte_order)

    @classmethod
    def from_merges(
        cls,
        merges: Iterable[tuple[int, int]],
        pattern: str = GPT4_PATTERN,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        byte_order: Sequence[int] = range(256),
    ) -> BytePairTokenizer:
        """The tokenizer of learned merges: number m makes the id 256 + m; special tokens take the ids behind.

        Raises:
            ValueError: a merge joins what is not there yet, or spells a token once more.
            TypeError: `special_tokens` is a single str.
        """
        if isinstance(special_tokens, str):
            raise TypeError("special_tokens is a collection of str: write [...] around a single one")
        tokens = [bytes([b]) for b in byte_order]
        ranks = {token: i for i, token in enumerate(tokens)}
        for m, (left, right) in enumerate(merges):
            if not (0 <= left < len(tokens) and 0 <= right < len(tokens)):
                raise ValueError(f"merge {m} joins {left!r} and {right!r}: ids from 0 to {len(tokens) - 1} are there")
            token = tokens[left] + tokens[right]
            if token in ranks:
                raise ValueError(f"merge {m} spells {token!r}, which is the token {ranks[token]} already")
            ranks[token] = len(tokens)
            tokens.append(token)
        return cls(ranks, pattern, {text: len(tokens) + i for i, text in enumerate(special_tokens)})

    @classmethod
    def from_vocabulary(cls, name: str, path: Path | str | None = None) -> BytePairTokenizer:
        """A published vocabulary: gpt2, r50k_base, p50k_base, cl100k_base or o200k_base.

        Args:
            path: its `.tiktoken` file, or the folder with it (for gpt2, with `vocab.bpe` and `encoder.json`), packed
                with gzip or not. Without one the file is downloaded once and kept; either way its SHA-256 is checked.

        Raises:
            ValueError: no such vocabulary, or a file is missing or not the published one.
            ConnectionError: it could not be downloaded.
        """
        from working_with_text_data.bytepair_enc.vocabularies import published_tokenizer

        return published_tokenizer(name, path)

    # --- text to ids --------------------------------------------------------------------------------------------

    def encode(self, text: str, *, allowed_special: Spellings = (), disallowed_special: Spellings = "all") -> list[int]:
        """The ids of `text`, with tiktoken's rules for special tokens that are spelled out in it.

        Text that a person typed must never turn into a control token by accident. So a special token's spelling is
        an error, unless it is in `allowed_special` (then it becomes its id) or `disallowed_special` leaves it out
        (then it is ordinary text).

        Raises:
            ValueError: `text` spells a disallowed special token.
            TypeError: `text` is not a string.
        """
        return self.encode_to_numpy(
            text, allowed_special=allowed_special, disallowed_special=disallowed_special
        ).tolist()

    def encode_to_numpy(
        self, text: str, *, allowed_special: Spellings = (), disallowed_special: Spellings = "all"
    ) -> npt.NDArray[np.uint32]:
        """`encode` as an array, uint32 (tokens,), read-only: faster than a list, and an eighth of its memory."""
        return self._encode_texts([text], allowed_special, disallowed_special)[0]

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of `text`, all of it as ordinary text. A lone surrogate becomes U+FFFD, as in tiktoken.

        Raises:
            TypeError: `text` is not a string.
        """
        _require_text(text)
        return self.encode_part(self.with_prefix(text)).tolist()

    def encode_part(self, text: str) -> npt.NDArray[np.uint32]:
        """The ids of ordinary text as it is, uint32 (tokens,): a part that more of it may come before."""
        return np.frombuffer(self._encode_packed([text])[0], np.uint32)

    def with_prefix(self, text: str) -> str:
        """The ordinary text, behind a space if it is to have one and has none; all of it, or a beginning."""
        return f" {text}" if self.add_prefix_space and text and text[0] != " " else text

    def _encode_texts(
        self, texts: Sequence[str], allowed_special: Spellings, disallowed_special: Spellings
    ) -> list[npt.NDArray[np.uint32]]:
        """`encode_to_numpy` of each text, all together."""
        allowed = _spellings(allowed_special, self.special_tokens)
        disallowed = _spellings(disallowed_special, self.special_tokens.keys() - allowed)
        allowed &= set(self.special_tokens)
        ordinary: list[str] = []  # what stands before, between and behind the special tokens of each text
        special: list[list[bytes]] = []  # for each text, the ids between these
        for text in texts:
            _require_text(text)
            if disallowed and (wrong := _any_of(frozenset(disallowed)).search(text)):
                raise ValueError(
                    f"the text spells the special token {wrong.group()!r}: "
                    f"pass allowed_special={{{wrong.group()!r}}} to encode it as that token, "
                    "or disallowed_special=() to encode it as ordinary text"
                )
            ids, position = [], 0
            for start, end, i in self._special_in(text, allowed):
                ordinary.append(self.with_prefix(text[position:start]))
                ids.append(np.uint32(i).tobytes())
                position = end
            ordinary.append(self.with_prefix(text[position:]))
            special.append(ids)
        packed = iter(self._encode_packed(ordinary))
        alternating = ([next(packed), *chain.from_iterable(zip(ids, packed, strict=False))] for ids in special)
        return [np.frombuffer(b"".join(parts), np.uint32) for parts in alternating]

    def _special_in(self, text: str, allowed: set[str]) -> Iterator[tuple[int, int, int]]:
        """Where allowed special tokens begin and end in `text`, with the white space that is theirs, and their ids."""
        for found in _any_of(frozenset(allowed)).finditer(text) if allowed else ():
            start, end = found.span()
            flags = self.special_flags.get(found.group(), ())
            if "single_word" in flags and (_WORD.search(text, max(start - 1, 0), start) or _WORD.match(text, end)):
                continue
            if "lstrip" in flags:
                while start and text[start - 1] in WHITE_SPACE:
                    start -= 1
            if "rstrip" in flags:
                while end < len(text) and text[end] in WHITE_SPACE:
                    end += 1
            yield start, end, self.special_tokens[found.group()]

    def _encode_packed(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of each text, all of it ordinary, side by side as uint32."""
        if self.nfc:
            texts = [unicodedata.normalize("NFC", text) for text in texts]
        try:
            packed = self._encoder.encode_many(texts)
        except UnicodeEncodeError:
            whole = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
            packed = self._encoder.encode_many(whole)
        if self._id_of_rank is None:
            return packed
        return [self._id_of_rank[np.frombuffer(ranks, np.uint32)].tobytes() for ranks in packed]

    def encode_batch(
        self,
        texts: Iterable[str],
        *,
        num_processes: int = 1,
        allowed_special: Spellings = (),
        disallowed_special: Spellings = "all",
    ) -> list[list[int]]:
        """`encode` of each text.

        Args:
            num_processes: that encode at the same time. Starting them takes a second or two, so this is for many
                megabytes; the ids are the same for any number.
        """
        arrays = self.encode_batch_to_numpy(
            texts,
            num_processes=num_processes,
            allowed_special=allowed_special,
            disallowed_special=disallowed_special,
        )
        return [ids.tolist() for ids in arrays]

    def encode_batch_to_numpy(
        self,
        texts: Iterable[str],
        *,
        num_processes: int = 1,
        allowed_special: Spellings = (),
        disallowed_special: Spellings = "all",
    ) -> Iterator[npt.NDArray[np.uint32]]:
        """`encode_to_numpy` of each text, in order, as the texts are read: for a corpus larger than memory.

        Some two million characters are read ahead and encoded together; a text that is refused raises before the first
        of those it was read with is given.
        """
        if isinstance(texts, str):
            raise TypeError("a batch is a collection of str: write [...] around a single one")
        rules = allowed_special, disallowed_special
        chunks = chunks_of(_strings(texts), _CHUNK)  # of which the new words are learned together
        if num_processes == 1:
            for chunk in chunks:
                yield from self._encode_texts(chunk, *rules)
            return
        for encoded in map_in_order(_encode_chunk, chunks, num_processes, _set_tokenizer, (self, rules)):
            yield from encoded

    def encode_single_token(self, token: str | bytes) -> int:
        """The id of `token`, ordinary or special.

        Raises:
            KeyError: it is not one token.
        """
        if isinstance(token, str):
            if token in self.special_tokens:
                return self.special_tokens[token]
            try:
                token = token.encode("utf-8")
            except UnicodeEncodeError:  # a lone surrogate
                raise KeyError(token) from None
        return self.ids[token]

    # --- ids to text --------------------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of `ids`. Ids cut in the middle of a character give U+FFFD there, unless `errors` says otherwise."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`, exactly; special tokens give their spelling.

        Raises:
            ValueError: an id that no token has.
        """
        ids = ids.tolist() if isinstance(ids, np.ndarray) else ids if isinstance(ids, list) else list(ids)
        try:  # `array` takes whole numbers from 0 on and nothing else, and `take` fetches a whole slice in C
            table, places = self._token_table, np.frombuffer(array("I", ids), np.uintc)
            slices = (places[i : i + _SLICE] for i in range(0, len(places), _SLICE))
            return b"".join(["".join(table.take(some).tolist()).encode("latin-1") for some in slices])
        except (IndexError, OverflowError, TypeError):
            wrong = next(i for i in ids if not self._is_token(i))
            raise ValueError(f"id {wrong!r} is no token of this vocabulary (0 … {self.max_token_value})") from None

    def _is_token(self, i: Any) -> bool:
        try:
            return index(i) in self._bytes_of
        except TypeError:
            return False

    def decode_batch(self, batch: Iterable[Iterable[int]], errors: str = "replace") -> list[str]:
        """`decode` of each list of ids."""
        return [self.decode(ids, errors) for ids in batch]

    def decode_single_token_bytes(self, token: int) -> bytes:
        """The bytes of one token."""
        return self.decode_bytes([token])

    def decode_tokens_bytes(self, ids: Iterable[int]) -> list[bytes]:
        """The bytes of each token."""
        return [self.decode_bytes([i]) for i in ids]

    def decode_with_offsets(self, ids: Iterable[int]) -> tuple[str, list[int]]:
        """The text of `ids`, and for each id the index of the first character that it has a byte of."""
        tokens = self.decode_tokens_bytes(ids)
        offsets, characters = [], 0
        for token in tokens:
            continues = bool(token) and 0x80 <= token[0] < 0xC0  # inside a character that began before
            offsets.append(max(0, characters - continues))
            characters += sum(not 0x80 <= byte < 0xC0 for byte in token)
        return b"".join(tokens).decode("utf-8", "strict"), offsets

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

    def is_special_token(self, token: int) -> bool:
        """Whether `token` is the id of a special token."""
        return token in self.special_tokens.values()

    def token_byte_values(self) -> list[bytes]:
        """The bytes of all ordinary tokens, in the order of bytes, as in tiktoken."""
        return sorted(self.ids)

    def tokens_by_rank(self) -> list[bytes]:
        """The bytes of all ordinary tokens that have a rank, in the order in which they were learned."""
        return sorted(self.ranks, key=self.ranks.__getitem__)

    @property
    def special_tokens_set(self) -> set[str]:
        """The spellings of the special tokens."""
        return set(self.special_tokens)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides an id. Equal fingerprints mean equal ids for every text."""
        digest = hashlib.sha256(str(self.pattern).encode("utf-8"))
        for token, i in sorted(self.ranks.items(), key=lambda item: item[1]):
            digest.update(b"%d:%d:%b" % (i, len(token), token))
        for token, i in sorted(self.ids.items()) if self.ids is not self.ranks else ():
            digest.update(b"id:%d:%d:%b" % (i, len(token), token))
        for text, i in sorted(self.special_tokens.items(), key=lambda item: item[1]):
            digest.update(b"special:%d:%b" % (i, text.encode("utf-8")))
        if self.nfc:
            digest.update(b"nfc")
        if self.add_prefix_space:
            digest.update(b"add_prefix_space")
        for text, flags in sorted(self.special_flags.items()):
            digest.update(f"flags:{text}:{sorted(flags)}".encode())
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
        """Reads a byte-level BPE `tokenizer.json`, ours or another's (`tokenizer_json.py` says which).

        Raises:
            ValueError: the file is missing or holds another kind of tokenizer; the message says what to do.
        """
        from working_with_text_data.bytepair_enc import tokenizer_json

        return tokenizer_json.load(path)

    def to_tiktoken(self) -> tiktoken.Encoding:
        """The same tokenizer as a `tiktoken.Encoding`.

        Two things differ there: text that the pattern leaves out is dropped (the published patterns leave none out),
        and of special tokens that begin one another, not always the longest is taken.

        Raises:
            ValueError: it has several patterns, ids that are not ranks, or changes text before it cuts: tiktoken does
                none of these.
        """
        import tiktoken

        if not isinstance(self.pattern, str):
            raise ValueError(f"tiktoken cuts text with one pattern, and {self.name!r} has {len(self.pattern)}")
        if self.ids is not self.ranks:
            raise ValueError(f"tiktoken takes ranks for ids, and in {self.name!r} they differ")
        if self.nfc or self.add_prefix_space or self.special_flags:
            raise ValueError(
                f"tiktoken takes text as it is, and {self.name!r} composes characters first (NFC), adds a space before "
                "it, or has special tokens that look at what is beside them"
            )
        return tiktoken.Encoding(
            self.name, pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens=self.special_tokens
        )


def _is_id(i: object) -> bool:
    return type(i) is int and 0 <= i <= _MAX_ID


def _spellings(given: Spellings, everything: Iterable[str]) -> set[str]:
    """The set that `allowed_special` or `disallowed_special` means."""
    if given == "all":
        return set(everything)
    if isinstance(given, str):
        raise TypeError(f'expected "all" or a set of special tokens, got the str {given!r}: write {{{given!r}}}')
    return set(given)


@lru_cache
def _any_of(spellings: frozenset[str]) -> regex.Pattern[str]:
    """Matches any of the spellings, the longest first where one begins another."""
    return regex.compile("|".join(regex.escape(s) for s in sorted(spellings, key=len, reverse=True)))


def _require_text(text: object) -> None:
    if not isinstance(text, str):
        raise TypeError(f"a tokenizer encodes a str, not {type(text).__name__}: decode bytes first")


def _strings(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        _require_text(text)
        yield text


# --- in another process: the tokenizer is sent once, then chunks of texts ---------------------------------------------

_here: dict[str, Any] = {}


def _set_tokenizer(tokenizer: BytePairTokenizer, rules: tuple[Spellings, Spellings]) -> None:
    _here.update(tokenizer=tokenizer, rules=rules)


def _encode_chunk(texts: list[str]) -> list[npt.NDArray[np.uint32]]:
    tokenizer: BytePairTokenizer = _here["tokenizer"]
    return tokenizer._encode_texts(texts, *_here["rules"])
