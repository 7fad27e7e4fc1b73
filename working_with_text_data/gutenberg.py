"""Project Gutenberg books, from a file or the network to the plain words of the author.

A Gutenberg file is a book in an envelope: a header that says what it is, and a licence of some 19,000
characters behind it. Both changed their form over thirty years, and so did the bytes they are written in. A
model that trained on whole files would learn the licence by heart. So there are three steps before it reads:

    1. decode   bytes -> text with LF line ends. Encodings are tried from the strictest to the most lenient.
    2. strip    the envelope goes, the book stays. There are two forms of envelope:
                  start-line    *** START OF THE/THIS PROJECT GUTENBERG EBOOK title ***  (or on several lines)
                                the book
                                *** END OF THE/THIS PROJECT GUTENBERG EBOOK title ***    and the licence
                  small-print   *END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*  (to 2003)
                                the book, then "End of The Project Gutenberg Etext of title" or nothing
    3. fetch    books that are not at hand come from a mirror, one at a time, and are kept in a folder.

Sources: the forms were read off 78 files of all ages; every file shows its own. The licence is at
https://www.gutenberg.org/policy/license.html. The main site is asked last, because it sends programs
(https://www.gutenberg.org/policy/robot_access.html) to its mirrors (https://www.gutenberg.org/MIRRORS.ALL).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

from tqdm import tqdm

from utils import downloads, files
from working_with_text_data.text_files import decode_text, find_text_files, read_text

# A header has up to 14,000 characters and a footer up to 20,000, so their markers are sought only this far
# from either end of the file. What the story says in between is never taken for one.
ENVELOPE_CHARACTERS = 40_000

_START = re.compile(  # up to the stars behind the title, or else to the end of the line
    r"^[ \t]*\*{3}[ \t]*START OF TH(?:E|IS) (?:COPYRIGHTED )?PROJECT GUTENBERG\b"
    r"(?:.*?(?:\n.+?){0,3}?\*{3}[ \t]*$|.*)",
    re.M,
)
_SMALL_PRINT = re.compile(r"^[ \t]*\*+ ?END[ *]*THE SMALL PRINT!.*", re.M)
_END = re.compile(r"^[ \t]*\*{3}[ \t]*END OF TH(?:E|IS) (?:COPYRIGHTED )?PROJECT GUTENBERG\b", re.M)
_CLOSING = re.compile(  # the book's last line or, where it is wrapped, its last few
    r"^[ \t*]*(?:The )?(?:End of|Fin de|Ende dieses)(?: the| this)? Proje[ck]t Gutenberg"
    r"(?:['’]s|,? e-?(?:text|book))\b.*(?:\n.*){0,3}\Z",
    re.M | re.I,
)
_PARAGRAPH = re.compile(r"[\s*]*[^\s*].*(?:\n.*\S.*){0,20}")  # with the stars and blank lines above it
_NOTICE = re.compile(  # how a paragraph begins that says who made the file, or what Project Gutenberg offers
    r"""(?:
        (?:This[ ]|The[ ])?(?:Project[ ]Gutenberg[ ])?(?:(?i:e-?text|e-?book)[ ])?(?:was[ ])?
        (?:[Pp]roduced|[Pp]repared|[Tt]ranscribed|[Ss]canned|[Tt]yped)(?:,?[ ][a-z]+){0,3}[ ](?:by|from)\b
      | An[ ]Anonymous[ ]Volunteer\b
      | The[ ]Project[ ]Gutenberg[ ](?i:e-?text|e-?book)[ ]of[ ]
      | (?:(?:Editor['’]s[ ])?Note:[ ].*)?Project[ ]Gutenberg[ ](?:also[ ]has|is[ ]proud|(?i:e-?book)[ ]\#)
      | (?:We[ ]thank|Nous[ ]remercions)[ ](?:the|la)[ ]Biblioth
    )""",
    re.X,
)
_DECLARED = re.compile(
    rb"Character set encoding:[ \t]*((?:ISO-?8859|Windows|CP|KOI8|Mac|Big5|GB)[\w-]*)",
    re.I,
)
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_C1_CONTROLS = re.compile(r"[\x80-\x9f]")
_BOOK_SUFFIX = re.compile(r"\.txt(\.gz)?$", re.I)


@dataclass(frozen=True)
class Book:
    """One book out of its envelope.

    Attributes:
        name: the file's name without `.txt` and `.gz`.
        text: the book with LF line ends, no byte order mark, no blank lines around it, and one LF at its end.
        encoding: what the file was: "ascii", "utf-8", "utf-8-bom", "utf-16", "latin-1", "cp1252", or another
            that its header declares, by Python's name ("iso8859-2").
        header_characters, footer_characters: how much was dropped before and after the book.
        marker: by which form of header its beginning was known: "start-line", "small-print" or "none".
    """

    name: str
    text: str
    encoding: str
    header_characters: int
    footer_characters: int
    marker: str


def strip_boilerplate(text: str) -> tuple[str, int, int, str]:
    """Takes a book out of its envelope; a text without any marker is kept whole.

    Credits and notices straight behind the header ("Produced by ...") go too, and so does the closing line
    ("End of Project Gutenberg's ..."). What transcribers wrote elsewhere stays. Where a story quotes the
    markers, the first START and the last END are the real ones.

    Returns:
        The book, the number of characters dropped before it and after it, and `Book.marker`.
    """
    start, marker = 0, "none"
    if header := _START.search(text, 0, ENVELOPE_CHARACTERS):
        start, marker = header.end(), "start-line"
    elif header := _SMALL_PRINT.search(text, 0, ENVELOPE_CHARACTERS):  # second, as footers may have it too
        start, marker = header.end(), "small-print"
    end = _find_footer(text, start)
    if header:
        start = _skip_notices(text, start, end)
    body = text[start:end].rstrip()
    blank = body.rfind("\n", 0, len(body) - len(body.lstrip())) + 1  # whole lines: the first may be indented
    end = start + len(body)
    dropped_after = len(text) - end - text.startswith("\n", end)  # the LF behind the last line is the book's
    return body[blank:] + "\n" if body else "", start + blank, dropped_after, marker


def _find_footer(text: str, start: int) -> int:
    """Where the footer begins: at the last END line, if there is one, or at the closing line before it."""
    end = len(text)
    for line in _END.finditer(text, max(start, end - ENVELOPE_CHARACTERS)):
        end = line.start()
    end = start + len(text[start:end].rstrip())
    closing = _CLOSING.search(text, max(start, end - 500), end)
    return closing.start() if closing else end


def _skip_notices(text: str, start: int, end: int) -> int:
    """Where the short paragraphs of credits and notices behind the header end."""
    while (paragraph := _PARAGRAPH.match(text, start, end)) and len(paragraph[0]) < 1000:
        if not _NOTICE.match(paragraph[0].lstrip(" \t\n*[")):
            break
        start = paragraph.end()
    return start


def read_book(path: Path) -> Book:
    """Reads a `.txt` or `.txt.gz` file.

    Raises:
        ValueError: as `read_text`, or the envelope is empty.
        OSError: it cannot be read.
    """
    text, encoding = read_text(path)
    body, header_characters, footer_characters, marker = strip_boilerplate(text)
    if not body:
        raise ValueError(f"{path}: there is no text in it")
    name = _BOOK_SUFFIX.sub("", path.name)
    return Book(name, body, encoding, header_characters, footer_characters, marker)


def find_books_in(folder: Path) -> list[Path]:
    """The `.txt` and `.txt.gz` files anywhere below `folder`, pg2 before pg10.

    Raises:
        ValueError: there is none.
    """
    paths = find_text_files(folder, (".txt", ".txt.gz"))
    if not paths:
        raise ValueError(f"no .txt or .txt.gz files in {folder}")
    return paths


def read_books_folder(folder: Path) -> Iterator[Book]:
    """Reads each of `find_books_in(folder)`, one at a time.

    Raises:
        ValueError: there is none (at once), or `read_book` refuses one (when its turn comes).
    """
    return map(read_book, find_books_in(folder))


_MIRROR_FILES = (  # from the newest form of a book to the oldest
    "cache/epub/{id}/pg{id}.txt",
    "{digits}/{id}/{id}-0.txt",
    "{digits}/{id}/{id}-8.txt",
    "{digits}/{id}/{id}.txt",
)
MIRRORS = (
    *(f"https://gutenberg.pglaf.org/{file}" for file in _MIRROR_FILES),
    *(f"https://aleph.gutenberg.org/{file}" for file in _MIRROR_FILES),
    "https://www.gutenberg.org/cache/epub/{id}/pg{id}.txt",
    "https://www.gutenberg.org/files/{id}/{id}-0.txt",
)
MAX_BYTES = 64 * 1024 * 1024  # the largest book has a tenth of it


def parse_book_ids(spec: str) -> list[int]:
    """The book numbers in a list such as "11,84 1342" or "11-20", in its order and without repeats.

    Raises:
        ValueError: a part is neither a book number nor a range of them, or there is no part at all.
    """
    ids: dict[int, None] = {}  # used as a set that keeps its order
    for part in re.findall(r"[^\s,]+", spec):
        numbers = re.fullmatch(r"([1-9][0-9]{0,5})(?:-([1-9][0-9]{0,5}))?", part)
        found = range(int(numbers[1]), int(numbers[2] or numbers[1]) + 1) if numbers else ()
        if not found:
            raise ValueError(f"{part!r} is not a Project Gutenberg book number or a range such as 11-20")
        ids.update(dict.fromkeys(found))
    if not ids:
        raise ValueError("no Project Gutenberg book numbers given: write them as in 11,84 or 11-20")
    return list(ids)


def download_book(
    book_id: int,
    cache_folder: Path,
    mirrors: Sequence[str] = MIRRORS,
    attempts: int = 3,
    timeout: float = 30,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """The path of `pg{book_id}.txt` in `cache_folder`, which is fetched unless it is there.

    Args:
        book_id: the book's number at Project Gutenberg.
        cache_folder: made when missing. Only whole books ever appear in it.
        mirrors: addresses to try in turn, with `{id}` in them and `{digits}` where book 1342 lies in 1/3/4.
        attempts: how often an address is asked that is busy, slow or breaks off.
        timeout: for how many seconds a server may be silent.
        sleep: waits between attempts.

    Raises:
        ConnectionError: no address gave the book; one line that says what to do instead.
        OSError: the folder cannot be written.
    """
    target = _cached(cache_folder, book_id)
    if target.is_file():
        return target
    problem: Exception = ValueError("there is no address")
    dead_hosts: set[str] = set()  # who cannot be reached for one file is not asked for the next
    for template in mirrors:
        url = template.format(id=book_id, digits="/".join(str(book_id)[:-1]) or "0")
        if urlsplit(url).netloc in dead_hosts:
            continue
        try:
            data = _fetch_text(url, attempts, timeout, sleep)
        except (OSError, HTTPException, ValueError) as error:
            problem = error
            if isinstance(error, OSError) and not isinstance(error, HTTPError):
                dead_hosts.add(urlsplit(url).netloc)
            continue
        files.write_bytes(target, data)
        return target
    raise ConnectionError(
        f"book {book_id} could not be fetched from any mirror ({' '.join(str(problem).split())}); "
        "put its .txt file into a folder and pass --books FOLDER instead"
    )


def download_books(
    ids: Iterable[int],
    cache_folder: Path,
    mirrors: Sequence[str] = MIRRORS,
    attempts: int = 3,
    timeout: float = 30,
    delay: float = 2,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Path]:
    """`download_book` for each of `ids`, with a progress bar and `delay` seconds between two downloads.

    Raises:
        ConnectionError, OSError: as `download_book`. The books before are kept, so another run goes on there.
    """
    fetched_before = False
    for book_id in tqdm(ids, desc="books", unit="book", disable=None):  # None: no bar where nobody watches
        to_fetch = not _cached(cache_folder, book_id).is_file()
        if to_fetch and fetched_before:
            sleep(delay)
        fetched_before |= to_fetch
        yield download_book(book_id, cache_folder, mirrors, attempts, timeout, sleep)


def _cached(cache_folder: Path, book_id: int) -> Path:
    """Where a fetched book is kept."""
    return cache_folder / f"pg{book_id}.txt"


def _fetch_text(url: str, attempts: int, timeout: float, sleep: Callable[[float], None]) -> bytes:
    """`fetch`, and a check that it is a text: mirrors answer some wrong addresses with a page that says so.

    Raises:
        OSError, HTTPException, ValueError: as `fetch`, and ValueError for what is not a text.
    """
    data, content_type = downloads.fetch(url, attempts, timeout, sleep, MAX_BYTES)
    if content_type == "text/html" or re.match(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|\?xml)", data, re.I):
        raise ValueError("a web page came, not a text")
    if not decode_text(data)[0].strip():
        raise ValueError("an empty file came")
    return data
