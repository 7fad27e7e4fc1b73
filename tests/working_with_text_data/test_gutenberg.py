"""Tests of the Gutenberg reader: small envelopes of every form, a library on the loopback, and 78 real books.

The real books are read from `$SCRATCHBOOK_DATA/gutenberg`, files named `pgID_title.ENCODING.txt.gz`; without
that variable their tests are skipped. Nothing here leaves the machine.
"""

from __future__ import annotations

import codecs
import gzip
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from working_with_text_data import gutenberg
from working_with_text_data.gutenberg import (
    Book,
    download_book,
    download_books,
    parse_book_ids,
    read_book,
    read_books_folder,
    strip_boilerplate,
)
from working_with_text_data.text_files import decode_text

BODY = "THE TALE\n\nby A. Nonymous\n\nOnce there was a pen.\n\n  It wrote.\n\nTHE END\n"
HEADER = "The Project Gutenberg eBook of The Tale\n\nTitle: The Tale\n\n"
START = "*** START OF THE PROJECT GUTENBERG EBOOK THE TALE ***"
END = "*** END OF THE PROJECT GUTENBERG EBOOK THE TALE ***"
LICENCE = "\nUpdated editions will replace the previous one.\n\nSection 1. General Terms\n"
SMALL_PRINT = "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*"


def envelope(body: str = BODY, start: str = START, end: str = END) -> str:
    return f"{HEADER}{start}\n\n\n{body}\n\n{end}\n{LICENCE}"


# decoding

LINE_ENDS = ["\n", "\r\n", "\r"]
ENCODED = [
    ("ascii", "ascii", "plain", b""),
    ("utf-8", "utf-8", "naïve “quotes” — 日本 🖋", b""),
    ("utf-8-bom", "utf-8", "naïve “quotes” — 日本 🖋", codecs.BOM_UTF8),
    ("utf-8-bom", "ascii", "plain", codecs.BOM_UTF8),
    ("latin-1", "latin-1", "naïve café ÿ", b""),
    ("cp1252", "cp1252", "naïve “quotes” — café…", b""),
    ("utf-16", "utf-16-le", "naïve “quotes” 🖋", codecs.BOM_UTF16_LE),
    ("utf-16", "utf-16-be", "naïve “quotes” 🖋", codecs.BOM_UTF16_BE),
]


@pytest.mark.parametrize("line_end", LINE_ENDS, ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize(("expected", "codec", "words", "mark"), ENCODED)
def test_every_encoding_and_line_end_gives_the_same_text(
    expected: str, codec: str, words: str, mark: bytes, line_end: str
) -> None:
    lines = [words, "", "second line", ""]
    assert decode_text(mark + line_end.join(lines).encode(codec)) == ("\n".join(lines), expected)


@pytest.mark.parametrize(
    ("label", "raw", "words", "encoding"),
    [
        ("ISO-8859-1", b"caf\xe9", "café", "latin-1"),
        ("Windows-1252", b"caf\xe9", "café", "cp1252"),
        ("ISO-8859-1", b"\x93caf\xe9\x94", "“café”", "cp1252"),  # a false label, as many files have it
        ("ISO-8859-2", b"\xb3\xf3d\xbc", "łódź", "iso8859-2"),
        ("Windows-1251", b"\xcc\xe8\xf0", "Мир", "cp1251"),
        ("UTF-8", b"caf\xe9 au lait", "café au lait", "latin-1"),  # declared, but not so
        ("ISO-8859-99", b"caf\xe9", "café", "latin-1"),  # no such thing
        ("rot13", b"caf\xe9", "café", "latin-1"),  # a Python codec, but not an encoding of books
        ("ISO-8859-1", "café".encode(), "café", "utf-8"),  # what is valid UTF-8 is UTF-8
    ],
)
def test_the_declared_encoding_counts_when_it_can_be_true(label: str, raw: bytes, words: str, encoding: str) -> None:
    text, found = decode_text(f"Character set encoding: {label}\r\n\r\n".encode() + raw)
    assert (text.splitlines()[-1], found) == (words, encoding)


def test_a_byte_that_not_even_cp1252_defines_is_latin_1() -> None:
    assert decode_text(b"caf\xe9 \x81 in a sentence") == ("café \x81 in a sentence", "latin-1")


@pytest.mark.parametrize(
    "data",
    [
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"words\0and a NUL",
        "UTF-16 without its mark".encode("utf-16-le"),
        bytes(range(1, 256)) * 20,
        codecs.BOM_UTF8 + b"caf\xe9",
        codecs.BOM_UTF16_LE + b"odd",
        codecs.BOM_UTF32_LE + "UTF-32".encode("utf-32-le"),
        gzip.compress(b"a file that was packed twice", mtime=0),
    ],
)
def test_what_is_not_text_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^not a text: .+$"):
        decode_text(data)


# Characters that occur in books: no controls but the line ends, no surrogates, no byte order marks.
BOOK_CHARACTERS = st.characters(exclude_categories=["Cc", "Cs"], include_characters="\n", exclude_characters="\ufeff")
BOOK_TEXT = st.text(BOOK_CHARACTERS)


@given(BOOK_TEXT, st.sampled_from(LINE_ENDS), st.booleans())
def test_any_text_survives_utf_8(text: str, line_end: str, mark: bool) -> None:
    data = text.replace("\n", line_end).encode("utf-8-sig" if mark else "utf-8")
    decoded, encoding = decode_text(data)
    assert decoded == text
    assert encoding == ("utf-8-bom" if mark else "ascii" if text.isascii() else "utf-8")


@given(st.binary(max_size=400))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    try:
        text, _ = decode_text(data)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert "\r" not in text and "\0" not in text


# stripping


@pytest.mark.parametrize(
    "start",
    [
        START,
        "*** START OF THIS PROJECT GUTENBERG EBOOK THE TALE ***",
        "***START OF THE PROJECT GUTENBERG EBOOK THE TALE***",
        "*** START OF THE COPYRIGHTED PROJECT GUTENBERG EBOOK THE TALE ***",
        "  *** START OF THE PROJECT GUTENBERG EBOOK, THE TALE ***  ",
        "*** START OF THE PROJECT GUTENBERG EBOOK THE TALE, WITH A\nTITLE OF TWO LINES ***",
        "*** START OF THE PROJECT GUTENBERG EBOOK THE TALE, WITH A\nTITLE THAT NEEDS\nTHREE LINES ***",
        "*** START OF THE PROJECT GUTENBERG EBOOK THE TALE",
    ],
)
@pytest.mark.parametrize(
    "end",
    [
        END,
        "*** END OF THIS PROJECT GUTENBERG EBOOK THE TALE ***",
        "***END OF THE PROJECT GUTENBERG EBOOK THE TALE***",
        "*** END OF THE PROJECT GUTENBERG EBOOK THE TALE, WITH A\nTITLE OF TWO LINES ***",
        f"End of Project Gutenberg's The Tale, by A. Nonymous\n\n{END}",
        f"End of Project Gutenberg’s The Tale, by A. Nonymous\n\n{END}",
        f"End of the Project Gutenberg EBook of The Tale,\nby A. Nonymous\n\n\n\n{END}",
        "End of The Project Gutenberg Etext of The Tale",
        'The End of Project Gutenberg etext of "The Tale"\n\n',
        "Fin de Project Gutenberg Etext La Tale",
    ],
)
def test_every_start_and_end_form(start: str, end: str) -> None:
    text = f"{HEADER}{start}\n\n\n{BODY}\n\n{end}" + (LICENCE if END in end or "END OF" in end else "")
    body, before, after, marker = strip_boilerplate(text)
    assert (body, marker) == (BODY, "start-line")
    assert text[before : len(text) - after] == BODY


@pytest.mark.parametrize(
    "line",
    [
        SMALL_PRINT,
        "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.07.02.92*END*",
        "*END THE SMALL PRINT! FOR PUBLIC DOMAIN EBOOKS*Ver.02/11/02*END*",
        "*END*THE SMALL PRINT! FOR COPYRIGHT PROTECTED ETEXTS*Ver.04.29.93*END*",
    ],
)
@pytest.mark.parametrize("end", ["", "\n\nEnd of The Project Gutenberg Etext of The Tale\n\n"])
def test_the_small_print_form(line: str, end: str) -> None:
    opening = "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\nWhy is this here?\n"
    body, before, after, marker = strip_boilerplate(f"{HEADER}{opening}\n{line}\n\n\n{BODY}{end}")
    assert (body, marker) == (BODY, "small-print")
    assert (before, after) == (len(f"{HEADER}{opening}\n{line}\n\n\n"), len(end))


def test_a_book_right_below_the_start_line_stays() -> None:
    name = "THE PROJECT GUTENBERG EBOOK A ***"
    assert strip_boilerplate(f"*** START OF {name}\nfoo\n*** END OF {name}\nlicence\n")[0] == "foo\n"


def test_small_print_in_a_footer_is_not_a_header() -> None:
    assert strip_boilerplate(envelope() + SMALL_PRINT + "\n")[0] == BODY


@pytest.mark.parametrize(
    "notice",
    [
        "Produced by Judith Boss",
        "Produced by Ann and Bob and the Online\nDistributed Proofreading Team at http://www.pgdp.net",
        "E-text prepared by Ann, Bob,\nand Project Gutenberg Distributed Proofreaders",
        "This eBook was produced by Ann",
        "This etext was prepared by Ann",
        "Transcribed from the 1897 Service & Paton edition by David Price",
        "Scanned and proofed by Ann",
        "An Anonymous Volunteer, and Ann",
        "The Project Gutenberg Etext of The Tale\nby A. Nonymous\n\n***\n\nProduced by Ann",
        "E-text prepared by Ann\n\n\n\nNote: Project Gutenberg also has an HTML version of this\n      file.",
        "[Editor's Note: Project Gutenberg ebook #43 is easier to read than this file.]",
        "*Project Gutenberg is proud to cooperate with The World Library*\nfor your education.",
    ],
)
@pytest.mark.parametrize("start", [START, SMALL_PRINT])
def test_credits_behind_the_header_go(notice: str, start: str) -> None:
    assert strip_boilerplate(envelope(f"{notice}\n\n\n{BODY}", start))[0] == BODY


@pytest.mark.parametrize(
    "story",
    [
        "*** END of the line, said the conductor.\n",
        "Project Gutenberg is a fine thing.\n\nProduced by nobody.\n",
        "*** START OF THE PROJECT GUTENBERG EBOOK OF MY DREAMS ***\n\nwas written on the door, and\n\n"
        "*** END OF THE PROJECT GUTENBERG EBOOK OF MY DREAMS ***\n\nbehind it.\n",
        "End of Project Gutenberg's long day. The story went on:\n\none\n\ntwo\n\nthree\n",
        "He said: *** END OF THE PROJECT GUTENBERG EBOOK ***\n",
        "*** END: FULL LICENSE ***\n",
        f"A quotation:\n{SMALL_PRINT}\nand more.\n",
        "Transcriber's Note: spelling was kept.\n",
    ],
)
def test_a_story_that_mentions_the_markers_is_whole(story: str) -> None:
    book = f"THE TALE\n\n{story}\nand so on\n"
    assert strip_boilerplate(envelope(book))[0] == book


def test_markers_deep_inside_a_long_text_are_part_of_it() -> None:
    filler = "word " * 10_000 + "\n"
    text = f"{filler}{START}\n{SMALL_PRINT}\n{END}\n{filler}"
    assert strip_boilerplate(text) == (text.rstrip() + "\n", 0, 2, "none")  # 2: the space and LF at the end


@pytest.mark.parametrize("text", ["One line", "One line\n", "Produced by nobody\n\n*** END ***\n", BODY])
def test_a_text_without_markers_is_kept_whole(text: str) -> None:
    assert strip_boilerplate(text) == (text.rstrip("\n") + "\n", 0, 0, "none")


def test_a_footer_goes_even_where_the_header_is_gone() -> None:
    text = f"{BODY}\n\n{END}\n{LICENCE}"
    assert strip_boilerplate(text) == (BODY, 0, len(text) - len(BODY), "none")


def test_blank_lines_go_and_an_indented_first_line_stays() -> None:
    text = " \n\t\n\n   The Title\n\nwords  \n \n\n"
    assert strip_boilerplate(text) == ("   The Title\n\nwords\n", 5, 6, "none")


@pytest.mark.parametrize("text", ["", "\n \n", envelope(""), f"{START}\n{END}", envelope("Produced by Ann")])
def test_an_empty_envelope_has_no_body(text: str) -> None:
    assert strip_boilerplate(text)[0] == ""


@given(BOOK_TEXT)
def test_the_counts_say_where_the_body_was(text: str) -> None:
    body, before, after, _ = strip_boilerplate(text)
    assert body in (text[before : len(text) - after], text[before : len(text) - after] + "\n", "")
    assert body == "" or (body.endswith("\n") and body.strip() == text.strip())


@given(st.text("abc *.\n"))
def test_any_story_comes_out_of_its_envelope(story: str) -> None:
    book = f"THE TALE\n{story}".rstrip() + "\n"
    assert strip_boilerplate(envelope(book))[0] == book


@pytest.mark.parametrize(
    "piece", ["*", "*** ", " ", "\n", "\n \n", "*** START OF ", "\n***\n", "x\n", "Note: ", "Produced by\n\n"]
)
def test_megabytes_of_near_misses_are_no_trouble(piece: str) -> None:
    text = piece * (2_000_000 // len(piece))
    for start in (START, START[:-4], SMALL_PRINT):  # a regular expression that backtracks would not come back
        strip_boilerplate(f"{start}{text}{END}")
        strip_boilerplate(f"{start}\n{text}\n{END}")


# reading


def test_a_file_is_read_packed_or_not(tmp_path: Path) -> None:
    data = envelope().replace("\n", "\r\n").encode("utf-8-sig")
    (tmp_path / "pg7_tale.txt").write_bytes(data)
    (tmp_path / "pg8_tale.utf-8-bom.TXT.GZ").write_bytes(gzip.compress(data, mtime=0))
    before, after = len(f"{HEADER}{START}\n\n\n"), len(f"\n\n{END}\n{LICENCE}")
    expected = Book("pg7_tale", BODY, "utf-8-bom", before, after, "start-line")
    assert read_book(tmp_path / "pg7_tale.txt") == expected
    packed = read_book(tmp_path / "pg8_tale.utf-8-bom.TXT.GZ")
    assert (packed.name, packed.text) == ("pg8_tale.utf-8-bom", BODY)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("not-packed.txt.gz", b"plain words"),
        ("cut.txt.gz", gzip.compress(envelope().encode(), mtime=0)[:-20]),
        ("cut-in-the-header.txt.gz", gzip.compress(b"words", mtime=0)[:5]),
        ("flipped.txt.gz", gzip.compress(b"words", mtime=0)[:10] + b"\xff\xff" + gzip.compress(b"words", mtime=0)[12:]),
        ("binary.txt", b"\0\1\2\3"),
        ("binary.txt.gz", gzip.compress(b"\0\1\2\3", mtime=0)),
        ("empty.txt", b""),
        ("empty.txt.gz", b""),
        ("only-an-envelope.txt", envelope("").encode()),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError) as caught:
        read_book(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)


def test_a_folder_is_read_in_natural_order_at_any_depth(tmp_path: Path) -> None:
    books = ["pg10.txt", "deep/down/pg2.txt.gz", "deep/PG3.TXT", "pg2_b.txt", "a.txt/b.txt"]
    for name in [*books, "notes.md", ".hidden.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        words = name.encode()
        (tmp_path / name).write_bytes(gzip.compress(words, mtime=0) if name.endswith(".gz") else words)
    assert [book.name for book in read_books_folder(tmp_path)] == ["b", "pg2", "pg2_b", "PG3", "pg10"]


@pytest.mark.parametrize("folder", ["", "missing"])
def test_a_folder_without_books_is_an_error_at_once(tmp_path: Path, folder: str) -> None:
    (tmp_path / "notes.md").write_text("no book")
    with pytest.raises(ValueError, match=re.escape(f"no .txt or .txt.gz files in {tmp_path / folder}")):
        read_books_folder(tmp_path / folder)


# book numbers


@pytest.mark.parametrize(
    ("spec", "ids"),
    [
        ("11", [11]),
        ("11,84 1342", [11, 84, 1342]),
        (" 84 ,, 11,\n84\t11 ", [84, 11]),
        ("3-5", [3, 4, 5]),
        ("4 3-5,7-7", [4, 3, 5, 7]),
    ],
)
def test_book_numbers(spec: str, ids: list[int]) -> None:
    assert parse_book_ids(spec) == ids


@pytest.mark.parametrize(
    "spec",
    ["", " , ", "alice", "11;84", "0", "-5", "5-", "20-11", "1-2-3", "1.5", "٣", "²", "1234567", "1-9999999"],
)
def test_rubbish_is_not_a_book_number(spec: str) -> None:
    with pytest.raises(ValueError, match="Project Gutenberg book number"):
        parse_book_ids(spec)


@given(st.lists(st.integers(1, 999_999), min_size=1, unique=True), st.sampled_from([",", " ", ", ", "\n"]))
def test_written_numbers_are_read_back(ids: list[int], separator: str) -> None:
    assert parse_book_ids(separator.join(map(str, ids))) == ids


# downloading


@dataclass
class Answer:
    """What the library says to one request; `missing` bytes of it are announced and never sent."""

    status: int = 200
    body: bytes = b""
    content_type: str = "text/plain"
    headers: dict[str, str] = field(default_factory=dict)
    missing: int = 0
    announce: bool = True


class Library:
    """A server on the loopback with a list of answers for each path, the last of which it repeats."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[str] = []
        self.user_agents: set[str] = set()
        library = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                library.requests.append(self.path)
                library.user_agents.add(self.headers["User-Agent"])
                answers = library.answers.get(self.path, [Answer(404, b"<html>Not found</html>", "text/html")])
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.content_type)
                if answer.announce:
                    self.send_header("Content-Length", str(len(answer.body) + answer.missing))
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.mirrors = [f"{self.address}/new/pg{{id}}.txt", f"{self.address}/old/{{digits}}/{{id}}.txt"]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    monkeypatch.setenv("no_proxy", "*")
    library = Library()
    thread = threading.Thread(target=library.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield library
    library.server.shutdown()
    library.server.server_close()
    thread.join()


BOOK = envelope().encode()
NEW, OLD = "/new/pg1342.txt", "/old/1/3/4/1342.txt"


def test_a_book_is_fetched_once_and_then_found(tmp_path: Path, library: Library) -> None:
    library.answers = {NEW: [Answer(body=BOOK)]}
    cache = tmp_path / "made" / "when missing"
    for _ in range(2):
        assert download_book(1342, cache, library.mirrors) == cache / "pg1342.txt"
    assert (cache / "pg1342.txt").read_bytes() == BOOK
    assert [path.name for path in cache.iterdir()] == ["pg1342.txt"]
    assert library.requests == [NEW]
    assert all("scratchbook" in agent for agent in library.user_agents)


def test_a_missing_file_sends_to_the_next_mirror_at_once(tmp_path: Path, library: Library) -> None:
    library.answers = {OLD: [Answer(body=BOOK)]}
    pauses: list[float] = []
    path = download_book(1342, tmp_path, library.mirrors, sleep=pauses.append)
    assert (path.read_bytes(), library.requests, pauses) == (BOOK, [NEW, OLD], [])


@pytest.mark.parametrize(
    ("trouble", "pauses"),
    [
        (Answer(503), [1.0, 2.0]),
        (Answer(500), [1.0, 2.0]),
        (Answer(429, headers={"Retry-After": "7"}), [7.0, 7.0]),
        (Answer(503, headers={"Retry-After": "86400"}), [60.0, 60.0]),
        (Answer(503, headers={"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}), [1.0, 2.0]),
        (Answer(body=BOOK[:50], missing=9), [1.0, 2.0]),
    ],
)
def test_passing_trouble_is_waited_out(tmp_path: Path, library: Library, trouble: Answer, pauses: list[float]) -> None:
    library.answers = {NEW: [trouble, trouble, Answer(body=BOOK)]}
    waited: list[float] = []
    path = download_book(1342, tmp_path, library.mirrors, sleep=waited.append)
    assert (path.read_bytes(), library.requests, waited) == (BOOK, [NEW, NEW, NEW], pauses)


def test_a_file_of_unannounced_length_is_taken(tmp_path: Path, library: Library) -> None:
    library.answers = {NEW: [Answer(body=BOOK, announce=False)]}
    assert download_book(1342, tmp_path, library.mirrors).read_bytes() == BOOK


@pytest.mark.parametrize(
    "answer",
    [
        Answer(body=b"<!DOCTYPE html><html>Sorry</html>", content_type="text/html"),
        Answer(body=b"\xef\xbb\xbf\n <HTML>Sorry</HTML>"),
        Answer(body=BOOK, content_type="text/html; charset=utf-8"),
        Answer(body=b"PK\3\4\0\0\0\0 a zip file"),
        Answer(body=b" \r\n"),
        Answer(body=BOOK + b"x" * 5000),
        Answer(body=BOOK + b"x" * 5000, announce=False),
        Answer(403),
    ],
)
def test_what_is_not_a_book_is_not_kept(
    tmp_path: Path, library: Library, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gutenberg, "MAX_BYTES", 4096)
    library.answers = {NEW: [answer], OLD: [Answer(body=BOOK)]}
    assert download_book(1342, tmp_path, library.mirrors).read_bytes() == BOOK
    assert library.requests == [NEW, OLD]  # it is not asked for again either


@pytest.mark.parametrize("bad", [Answer(404), Answer(503), Answer(body=b"cut", missing=1), Answer(body=b"\0")])
def test_without_a_mirror_one_line_says_what_to_do(tmp_path: Path, library: Library, bad: Answer) -> None:
    library.answers = {NEW: [bad], OLD: [bad]}
    advice = r"^book 1342 .*put its \.txt file into a folder and pass --books FOLDER"
    with pytest.raises(ConnectionError, match=advice) as caught:
        download_book(1342, tmp_path, library.mirrors, attempts=2, sleep=lambda _: None)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert set(library.requests) == {NEW, OLD}


def test_where_nobody_answers_is_no_place_to_wait(tmp_path: Path, library: Library) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    library.answers = {NEW: [Answer(body=BOOK)]}
    pauses: list[float] = []
    path = download_book(1342, tmp_path, [f"{address}/a/{{id}}", *library.mirrors], sleep=pauses.append)
    assert (path.read_bytes(), pauses) == (BOOK, [])


def test_a_silent_server_is_given_up_and_the_next_one_asked(tmp_path: Path, library: Library) -> None:
    library.answers = {NEW: [Answer(body=BOOK)]}
    pauses: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections and never says a word
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        mirrors = [f"{address}/a/{{id}}", f"{address}/b/{{id}}", *library.mirrors]
        path = download_book(1342, tmp_path, mirrors, attempts=2, timeout=0.5, sleep=pauses.append)
    assert (path.read_bytes(), pauses) == (BOOK, [1.0])  # the silent one's second file was not asked for


def test_an_unwritable_cache_is_not_blamed_on_the_network(tmp_path: Path, library: Library) -> None:
    library.answers = {NEW: [Answer(body=BOOK)]}
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError) as caught:
        download_book(1342, tmp_path / "file", library.mirrors)
    assert not isinstance(caught.value, ConnectionError)


def test_books_are_fetched_with_pauses_between_downloads_only(tmp_path: Path, library: Library) -> None:
    library.answers = {f"/new/pg{book_id}.txt": [Answer(body=BOOK)] for book_id in (1, 3, 4)}
    (tmp_path / "pg2.txt").write_bytes(BOOK)
    pauses: list[float] = []
    paths = download_books([2, 1, 2, 3, 1, 4], tmp_path, library.mirrors, delay=5, sleep=pauses.append)
    assert [path.name for path in paths] == ["pg2.txt", "pg1.txt", "pg2.txt", "pg3.txt", "pg1.txt", "pg4.txt"]
    assert library.requests == ["/new/pg1.txt", "/new/pg3.txt", "/new/pg4.txt"]
    assert pauses == [5, 5]


def test_the_books_before_a_failure_stay(tmp_path: Path, library: Library) -> None:
    library.answers = {"/new/pg1.txt": [Answer(body=BOOK)]}
    with pytest.raises(ConnectionError, match=r"^book 2 "):
        list(download_books([1, 2], tmp_path, library.mirrors, sleep=lambda _: None))
    assert [path.name for path in tmp_path.iterdir()] == ["pg1.txt"]


def test_the_mirrors_spell_their_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def missing(url: str, *_: object) -> bytes:
        asked.append(url)
        raise ValueError("nothing here")

    monkeypatch.setattr(gutenberg, "_fetch_text", missing)
    for book_id in (7, 84, 1342):
        with pytest.raises(ConnectionError):
            download_book(book_id, tmp_path)
    assert {
        "https://gutenberg.pglaf.org/cache/epub/7/pg7.txt",
        "https://gutenberg.pglaf.org/0/7/7-0.txt",
        "https://aleph.gutenberg.org/8/84/84-8.txt",
        "https://aleph.gutenberg.org/1/3/4/1342/1342.txt",
        "https://www.gutenberg.org/cache/epub/1342/pg1342.txt",
        "https://www.gutenberg.org/files/1342/1342-0.txt",
    } <= set(asked)
    assert asked[-1].startswith("https://www.gutenberg.org/")  # people come first there, programs last


# real books

NO_FOOTER = {"pg408"}  # its file ends with the book
SMALL_PRINT_BOOKS = {"pg139", "pg408", "pg972", "pg1234"}
OPENINGS_AND_ENDINGS = {
    "pg11": ("ALICE'S ADVENTURES IN WONDERLAND", "THE END"),
    "pg76": ("ADVENTURES", "THE END. YOURS TRULY, _HUCK FINN_."),
    "pg84": ("Frankenstein;", "lost in darkness and distance."),
    "pg139": ("THE LOST WORLD", "me across the table."),
    "pg408": ("The Souls of", "THE END"),
    "pg844": ("The Importance of Being Earnest", "TABLEAU"),
    "pg1080": ("A MODEST PROPOSAL", "child-bearing."),
    "pg1260": ("JANE EYRE", "respond,--'Amen; even so come, Lord Jesus!'\""),
    "pg1342": ("PRIDE AND PREJUDICE", "her into Derbyshire, had been the means of uniting them."),
    "pg2600": ("WAR AND PEACE", "conscious."),
    "pg2701": ("MOBY-DICK;", "children, only found another orphan."),
    "pg4650": ("OEUVRES", "FIN DE CANDIDE."),
    "pg13650": ("NONSENSE BOOKS", 'disaster!"'),
    "pg64317": ("The Great Gatsby", "the past."),
}


@pytest.fixture(scope="module")
def real_books(data_folder: Path) -> dict[str, Book]:
    if not (data_folder / "gutenberg").is_dir():
        pytest.skip("needs real books: SCRATCHBOOK_DATA has no folder gutenberg")
    return {book.name.split("_")[0]: book for book in read_books_folder(data_folder / "gutenberg")}


def test_real_books_are_decoded_as_their_names_say(real_books: dict[str, Book]) -> None:
    assert len(real_books) == 78
    for book in real_books.values():
        assert book.encoding == book.name.split(".")[-1], book.name
        assert not re.search(r"[\r\ufeff\x00-\x08\x0e-\x1f\x7f-\x9f]", book.text), book.name


def test_real_books_leave_their_envelopes(real_books: dict[str, Book]) -> None:
    # "Project Gutenberg" alone may stay: five books name it in notes of their transcribers, inside the book.
    envelope_words = re.compile(
        r"^Produced by|(?i:project gutenberg license|small print!|(?:start|end) of th(?:e|is) project gutenberg|"
        r"^end of (?:the )?project gutenberg|gutenberg literary archive|electronic works)",
        re.M,
    )
    for number, book in real_books.items():
        assert not (found := envelope_words.search(book.text)), (book.name, found)
        assert book.marker == ("small-print" if number in SMALL_PRINT_BOOKS else "start-line"), book.name


def test_real_books_are_kept_whole(real_books: dict[str, Book]) -> None:
    for number, book in real_books.items():
        # Envelopes are of about one length, whatever the book's: more than that would be cut from the book.
        assert 500 < book.header_characters < 1_200 or (
            number in SMALL_PRINT_BOOKS and 10_000 < book.header_characters < 12_000
        ), book.name
        assert 18_000 < book.footer_characters < 21_000 or (
            number in SMALL_PRINT_BOOKS and (number in NO_FOOTER or 50 < book.footer_characters < 100)
        ), book.name
        dropped = book.header_characters + book.footer_characters
        assert len(book.text) > 9 * dropped or len(book.text) < 200_000, book.name


def test_real_books_begin_and_end_where_their_authors_did(real_books: dict[str, Book]) -> None:
    for number, (opening, ending) in OPENINGS_AND_ENDINGS.items():
        lines = real_books[number].text.splitlines()
        assert (lines[0].strip(), lines[-1].strip()) == (opening, ending), number
    for book in real_books.values():
        assert book.text.splitlines()[0].strip() and re.search(r"\S\n\Z", book.text), book.name
