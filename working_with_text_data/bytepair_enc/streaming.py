"""Text that comes in parts: files larger than memory, and words that a model writes token by token.

Parts end anywhere. Encoded by themselves, the two halves of a cut word would get other ids than the word, so text is
held back until a place that no match of the pattern can cross (`word_cuts.py`). Decoded by themselves, the two tokens
of one emoji would be two question marks, so bytes are held back until their character is whole.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from working_with_text_data.bytepair_enc.word_cuts import CUTTERS, last_cut

if TYPE_CHECKING:
    from working_with_text_data.bytepair_enc.bpe import BytePairTokenizer

_PART = 4_000_000  # characters that are encoded together


def encode_stream(tokenizer: BytePairTokenizer, parts: Iterable[str]) -> Iterator[npt.NDArray[np.uint32]]:
    """The ids of the text that the parts make together, all of it ordinary, some at a time.

    Holds a few million characters at most, unless there is no place to cut in them: a text without a space or a line
    end, or a pattern of one's own, about which nothing is proven. Such a text is held whole.
    """
    waiting: list[str] = []
    characters = 0
    begun = False
    for part in parts:
        if not begun and part:
            part, begun = tokenizer.with_prefix(part), True
        waiting.append(part)
        characters += len(part)
        if characters >= _PART and tokenizer.pattern in CUTTERS:
            text = "".join(waiting)
            cut = last_cut(text)
            if cut:
                yield tokenizer.encode_part(text[:cut])
            waiting = [text[cut:]]
            # With no place to cut in it, ask again only when there is twice as much.
            characters = len(text) - cut if cut else -len(text)
    yield tokenizer.encode_part("".join(waiting))


def encode_file(tokenizer: BytePairTokenizer, path: Path | str) -> Iterator[npt.NDArray[np.uint32]]:
    """`encode_stream` of a UTF-8 file of any size, its line ends as they are.

    Raises:
        ValueError: the file is not UTF-8.
        OSError: it cannot be read.
    """
    with open(path, encoding="utf-8", newline="") as file:
        try:
            yield from encode_stream(tokenizer, iter(lambda: file.read(_PART), ""))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 ({error})") from None


class StreamDecoder:
    """Ids one by one to text, as soon as each character is certain.

    >>> decoder = StreamDecoder(tokenizer)
    >>> for i in ids:
    ...     print(decoder.feed(i), end="", flush=True)
    >>> print(decoder.finish())
    """

    def __init__(self, tokenizer: BytePairTokenizer) -> None:
        self._bytes_of: Any = tokenizer.decode_single_token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, i: int) -> str:
        """The characters that are whole with this id; "" while one is not.

        Raises:
            ValueError: an id that no token has.
        """
        return self._utf8.decode(self._bytes_of(i))

    def finish(self) -> str:
        """What was held back, as U+FFFD: the ids ended in the middle of a character. The decoder begins anew."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest
