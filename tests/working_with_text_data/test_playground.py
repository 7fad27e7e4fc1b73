"""The playground: boxes that hide nothing and run nothing, and a server for this machine alone."""

from __future__ import annotations

import http.client
import json
import re
import threading
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import assert_one_clear_line
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.bytepair_enc import playground as module
from working_with_text_data.bytepair_enc.playground import MAX_BYTES, Playground, page, pieces_html, visible

SCRIPT = "working_with_text_data/bytepair_enc/playground.py"
TOKENIZER = BytePairTokenizer.train(["the cat sat on the mat, the end. " * 4], 290)
HARD = "a<script>alert('x')</script>&amp; \"q\"\t\r\n \u00a0日👩\u200d👧\u202e<|endoftext|>"


class Boxes(HTMLParser):
    """What a browser sees: tags, titles and text of the spans."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.titles: list[str] = []
        self.shown: list[str] = []
        self.styles: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "span":
            self.titles.append(dict(attrs)["title"])
            self.styles.append(dict(attrs)["style"])
            self.shown.append("")

    def handle_data(self, data):
        if self.shown:
            self.shown[-1] += data


def test_nothing_that_was_typed_becomes_a_tag():
    boxes = Boxes(pieces_html(TOKENIZER, HARD))
    assert boxes.tags == {"div", "span", "wbr"}
    assert "<script>" not in pieces_html(TOKENIZER, HARD)
    assert "alert" in "".join(boxes.shown)


@given(st.text(max_size=40))
def test_titles_have_the_ids_and_the_bytes_of_the_text(text):
    boxes = Boxes(pieces_html(TOKENIZER, text))
    found = [re.fullmatch(r"id (\d+), bytes ([0-9a-f ]+)", title) for title in boxes.titles]
    assert all(found)
    assert [int(match[1]) for match in found if match] == TOKENIZER.encode_ordinary(text)
    data = b"".join(bytes.fromhex(match[2]) for match in found if match)
    assert data.decode("utf-8") == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def test_each_box_has_a_border_and_another_colour_than_its_neighbour():
    styles = Boxes(pieces_html(TOKENIZER, HARD)).styles
    assert all("border:1px solid" in style for style in styles)
    colours = [style.split(";")[0] for style in styles]
    assert all(a != b for a, b in pairwise(colours))
    assert len(set(colours)) == 5


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (b" the", "·the"),
        (b"\n\n", "⏎\n⏎\n"),
        (b"\t\r", "→␍"),
        (b"\xf0\x9f", "\\xf0\\x9f"),
        ("\u00a0\u200d\u202e\0".encode(), "\\xa0\\u200d\\u202e\\x00"),
        ("日é".encode(), "日é"),
        ("a\ufe0f\u3164\u2800\u034f".encode(), "a\\ufe0f\\u3164\\u2800\\u034f"),
    ],
)
def test_nothing_in_a_token_is_invisible(token, shown):
    assert visible(token) == shown


def test_a_page_needs_no_other_file():
    text = page(TOKENIZER, HARD)
    assert "<script" not in text and "<textarea" not in text
    assert not re.search(r"https?:|@import|url\(", text)
    live = page(TOKENIZER, "\n</textarea><script>alert(1)</script>", live=True)
    assert live.count("</textarea>") == 1 and live.count("<script>") == 1
    assert "alert(1)" in unescape(live)
    assert "0 tokens" in page(TOKENIZER, "")


@pytest.fixture(scope="module")
def server():
    with Playground(TOKENIZER, text="at first") as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(server, method, path, body=None, **headers):
    """Status and text of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, names)
    answer = connection.getresponse()
    text = answer.read().decode("utf-8")
    connection.close()
    return answer.status, text, answer.headers


def test_the_server_listens_on_this_machine_alone(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.address == f"http://127.0.0.1:{server.server_port}/"


def test_the_page_allows_its_own_script_and_no_other(server):
    status, text, headers = ask(server, "GET", "/")
    assert status == 200 and "at first" in text
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script == module._SCRIPT
    policy = headers["Content-Security-Policy"]
    assert f"script-src 'sha256-{module._SCRIPT_HASH}'" in policy and "default-src 'none'" in policy


def test_a_text_that_is_posted_comes_back_in_pieces(server):
    status, text, _ = ask(server, "POST", "/pieces", HARD.encode("utf-8"))
    found = json.loads(text)
    assert status == 200
    assert found["pieces"] == pieces_html(TOKENIZER, HARD)
    assert TOKENIZER.decode(found["ids"]) == HARD
    assert (found["tokens"], found["characters"]) == (len(found["ids"]), len(HARD))
    assert found["bytes"] == len(HARD.encode("utf-8"))
    assert found["bytes_per_token"] == round(found["bytes"] / found["tokens"], 2)


def test_an_empty_text_is_a_text(server):
    status, text, _ = ask(server, "POST", "/pieces", b"", Content_Length="0")
    assert status == 200 and json.loads(text)["tokens"] == 0


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "[::1]:80", ""])
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("POST", "/pieces")])
def test_a_request_to_another_name_is_refused(server, method, path, host):
    assert ask(server, method, path, b"the cat", Host=host)[0] == 403


def test_localhost_is_this_machine(server):
    assert ask(server, "POST", "/pieces", b"the cat", Host=f"localhost:{server.server_port}")[0] == 200


def test_a_request_of_another_site_s_page_is_refused(server):
    own = f"http://127.0.0.1:{server.server_port}"
    assert ask(server, "POST", "/pieces", b"the", Origin=own)[0] == 200
    for origin in ("https://evil.example", "null", "http://[", f"http://localhost:{server.server_port}"):
        assert ask(server, "POST", "/pieces", b"the", Origin=origin)[0] == 403


@pytest.mark.parametrize("length", [str(MAX_BYTES + 1), "9" * 30, "9" * 5000])
def test_a_body_that_is_too_large_is_refused_unread(server, length):
    status, text, _ = ask(server, "POST", "/pieces", b"", Content_Length=length)
    assert status == 413 and "more than" in text


@pytest.mark.parametrize("length", ["many", "-1", "²"])
def test_a_body_without_a_length_is_refused(server, length):
    assert ask(server, "POST", "/pieces", b"", Content_Length=length)[0] == 411


def test_what_is_not_utf_8_or_not_there_is_refused(server):
    assert ask(server, "POST", "/pieces", b"\xff\xfe")[0] == 400
    assert ask(server, "POST", "/other", b"the")[0] == 404
    assert ask(server, "GET", "/pieces")[0] == 404


def test_the_command_writes_a_page(run, tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer.json")
    out = tmp_path / "page.html"
    done = run(SCRIPT, "--text", "the cat <b>", "--tokenizer", tmp_path / "tokenizer.json", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "tokens, 11 characters, 11 bytes" in done.stdout and f"Wrote {out}" in done.stdout
    text = out.read_text(encoding="utf-8")
    assert "&lt;" in text and "<b>" not in text


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "--serve"),
        (("--text", "a"), "train_tokenizer.py"),
        (("--text", "a", "--tokenizer", "t.json", "--vocabulary", "gpt2"), "not both"),
        (("--text", "a", "--path", "."), "--vocabulary"),
        (("--text", "a", "--vocabulary", "gpt9", "--path", "."), "gpt9"),
        (("--text", "a", "--tokenizer", "nowhere.json"), "nowhere.json"),
    ],
)
def test_a_mistake_is_one_clear_line(run, tmp_path, arguments, word):
    assert_one_clear_line(run(SCRIPT, *arguments, cwd=tmp_path), word)


def test_a_port_that_is_taken_is_one_clear_line(run, tmp_path, server):
    TOKENIZER.save(tmp_path / "tokenizer.json")
    flags = ("--serve", "--tokenizer", tmp_path / "tokenizer.json", "--port")
    assert_one_clear_line(run(SCRIPT, *flags, server.server_port), "not free", "--port 0")
    assert_one_clear_line(run(SCRIPT, *flags, 70000), "65535")


def test_ctrl_c_ends_the_server_cleanly(monkeypatch, tmp_path, capsys):
    TOKENIZER.save(tmp_path / "tokenizer.json")
    closed = []

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Playground, "serve_forever", interrupted)
    monkeypatch.setattr(Playground, "server_close", lambda self: closed.append(self.socket.close()))
    module.main(module.ShowPieces(serve=True, port=0, tokenizer=tmp_path / "tokenizer.json"))
    assert closed and "Stopped" in capsys.readouterr().out
