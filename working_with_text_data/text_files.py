"""Text files as they are found: packed or not, in any of the encodings that English prose has been stored in.

Bytes do not say what they mean. UTF-8 can be recognised, since almost nothing else happens to be valid UTF-8; the older
one-byte encodings cannot, as each takes almost any byte. So they are tried, strictest first: a byte order mark, ASCII,
UTF-8, what the file itself declares, Latin-1, Windows-1252.
"""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Collection
from pathlib import Path

_DECLARED = re.compile(rb"Character set encoding:[ \t]*([\w-]+)", re.I)  # a line in the headers of Project Gutenberg
_DECLARED_WITHIN = 40_000  # bytes from the start
_C1_CONTROLS = re.compile(r"[\x80-\x9f]")
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")


def decode_text(data: bytes) -> tuple[str, str]:
    """The text of a file, with LF line ends and no byte order mark, and the encoding that its bytes were in.

    Raises:
        ValueError: the bytes are not text.
    """
    try:
        text, encoding = _decode(data)
    except UnicodeDecodeError:
        raise ValueError("not a text: the bytes do not fit the byte order mark before them") from None
    sample = text[:100_000]
    if "\0" in text or len(_CONTROLS.findall(sample)) > len(sample) / 10:
        raise ValueError("not a text: it looks like a binary file")
    return text.replace("\r\n", "\n").replace("\r", "\n"), encoding


def _decode(data: bytes) -> tuple[str, str]:
    """The first encoding that fits. Raises UnicodeDecodeError where there is a byte order mark and it lies.

    Nothing but UTF-8 looks like UTF-8. The one-byte encodings are harder, as each takes almost any byte, but
    no book has C1 controls. So Latin-1 with some is Windows-1252, which has curly quotes and dashes in their
    place, whatever the header declares.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16"), "utf-16"
    if data.startswith(codecs.BOM_UTF8):
        return data.decode("utf-8-sig"), "utf-8-bom"
    for encoding in ("ascii", "utf-8", _declared_encoding(data), "latin-1", "cp1252"):
        try:
            text = data.decode(encoding)
        except (UnicodeDecodeError, LookupError):  # LookupError: declared is a codec that is none of text
            continue
        if encoding == "utf-8" or not _C1_CONTROLS.search(text):
            return text, encoding
    return data.decode("latin-1"), "latin-1"  # which takes every byte


def _declared_encoding(data: bytes) -> str:
    """What the header's own line says, if that is an older encoding that Python knows, or else Latin-1."""
    declared = _DECLARED.search(data, 0, _DECLARED_WITHIN)
    try:
        name = codecs.lookup(declared[1].decode() if declared else "latin-1").name
    except LookupError:
        return "latin-1"
    return "latin-1" if name == "iso8859-1" else name


def read_text(path: Path) -> tuple[str, str]:
    """The text of a file, which may be packed with gzip, and its encoding: `decode_text` of what is on disk.

    Raises:
        ValueError: it is a broken gzip file or not a text; one line that names it.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    try:
        return decode_text(gzip.decompress(data) if path.suffix.lower() == ".gz" else data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: broken gzip file ({error})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def find_text_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The files anywhere below `folder` whose names end so, in either case, pg2 before pg10; hidden ones left out."""
    endings = tuple(suffix.lower() for suffix in suffixes)
    found = (
        path
        for path in folder.rglob("*")
        if path.name.lower().endswith(endings)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    return sorted(found, key=_natural_order)


def _natural_order(path: Path) -> tuple[list[str | int], str]:
    """A sorting key by file name in which numbers count as numbers: they are at every second place."""
    pieces = re.split(r"([0-9]+)", path.name.casefold())
    return [int(piece) if place % 2 else piece for place, piece in enumerate(pieces)], str(path)
