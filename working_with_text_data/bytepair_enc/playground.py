"""See a text as the tokenizer sees it: coloured pieces, in a notebook, in a file, or on a page of this machine's own.

python working_with_text_data/bytepair_enc/playground.py --text "Hello  world" --out playground.html
python working_with_text_data/bytepair_enc/playground.py --serve

Every token is a box. Five light colours follow one another, and a thin border shows the boxes without colour too. White
space is drawn (· a space, ⏎ a line end, → a tab), a byte that is no whole character as \\x…, and a box says its id and
its bytes when the pointer rests on it. The text is ordinary text: a special token's spelling is cut like any other.

The page of `--serve` is for whoever sits at this machine. It listens on 127.0.0.1 alone. That is not enough: a page
from elsewhere, open in the same browser, can send requests to 127.0.0.1 as well, and can even make its own name point
there. So a request that names another host or comes from another page is refused, and so is one that is too large.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import threading
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import regex

from utils.errors import UserError, run_command
from utils.files import write_text
from working_with_text_data.bytepair_enc import BytePairTokenizer

COLOURS = ("#fde9c8", "#d6ecd2", "#d3e5f7", "#f5d8e4", "#e6e0f3")
_DRAWN = {" ": "·", "\n": "⏎\n", "\r": "␍", "\t": "→"}
_BOX = "color:#000;border:1px solid #666;border-radius:2px;padding:0 1px;unicode-bidi:isolate"
_FRAME = "font-family:monospace;line-height:1.9;white-space:pre-wrap;overflow-wrap:anywhere"
# Fillers, selectors of variants and joiners, which are letters, marks or signs by their category; and Braille's blank.
_INVISIBLE = regex.compile(r"[\p{Default_Ignorable_Code_Point}\u2800]")
_DEFAULT = Path("runs/demo/tokenizer.json")
MAX_BYTES = 1_000_000  # of one request
_HOSTS = ("127.0.0.1", "localhost")


def visible(token: bytes) -> str:
    """The bytes of a token for people: nothing in it is invisible."""
    text = token.decode("utf-8", "backslashreplace")
    return "".join(_DRAWN.get(c) or (c if _is_seen(c) else c.encode("unicode_escape").decode("ascii")) for c in text)


def _is_seen(character: str) -> bool:
    return character.isprintable() and not _INVISIBLE.match(character)


def pieces_html(tokenizer: BytePairTokenizer, text: str) -> str:
    """The tokens of `text`, all of it ordinary, as boxes: HTML that brings its own style and nothing that runs.

    The title of each box has the token's id and its bytes in hexadecimal, so the text can be put together again.
    """
    boxes = []
    for i, number in enumerate(tokenizer.encode_ordinary(text)):
        token = tokenizer.decode_single_token_bytes(number)
        style = f"background:{COLOURS[i % len(COLOURS)]};{_BOX}"
        title = f"id {number}, bytes {token.hex(' ')}"
        boxes.append(f'<span style="{style}" title="{title}">{html.escape(visible(token))}</span>')
    return f'<div dir="ltr" style="{_FRAME}">{"<wbr>".join(boxes)}</div>'


def facts(tokenizer: BytePairTokenizer, text: str) -> dict[str, Any]:
    """What the page shows of `text`: boxes, ids, counts, bytes per token."""
    ids = tokenizer.encode_ordinary(text)
    data = tokenizer.decode_bytes(ids)
    return {
        "pieces": pieces_html(tokenizer, text),
        "ids": ids,
        "tokens": len(ids),
        "characters": len(data.decode("utf-8")),
        "bytes": len(data),
        "bytes_per_token": round(len(data) / len(ids), 2) if ids else None,
    }


# --- the page ---------------------------------------------------------------------------------------------------------

_SCRIPT = """
const text = document.querySelector("textarea"), put = (id, what) => document.getElementById(id).textContent = what;
let asked = 0;
async function show() {
  const mine = ++asked;
  try {
    const answer = await fetch("pieces", {method: "POST", body: text.value});
    if (!answer.ok) throw new Error(await answer.text());
    const found = await answer.json();
    if (mine !== asked) return;  // a later answer is on its way
    document.getElementById("pieces").innerHTML = found.pieces;  // escaped by the server
    put("counts", summary(found)); put("ids", found.ids.join(" "));
  } catch (error) { put("counts", "No answer: " + error.message); }
}
function summary(found) {
  return found.tokens + " tokens, " + found.characters + " characters, " + found.bytes + " bytes"
    + (found.tokens ? ", " + found.bytes_per_token.toFixed(2) + " bytes per token" : "");
}
let waiting;
text.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(show, 150); });
"""
_SCRIPT_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode("utf-8")).digest()).decode("ascii")
# Nothing runs but this script, and nothing is fetched but from this server.
_POLICY = (
    f"default-src 'none'; script-src 'sha256-{_SCRIPT_HASH}'; style-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_STYLE = (
    "body{max-width:60em;margin:2em auto;padding:0 1em;font-family:sans-serif;background:#fff;color:#000}"
    "textarea{width:100%;height:8em;font:inherit;box-sizing:border-box}#ids{font-family:monospace;color:#333}"
)


def summary(found: dict[str, Any]) -> str:
    """The counts in a line, as the page's script writes it too."""
    line = f"{found['tokens']} tokens, {found['characters']} characters, {found['bytes']} bytes"
    return line + (f", {found['bytes_per_token']:.2f} bytes per token" if found["tokens"] else "")


def page(tokenizer: BytePairTokenizer, text: str, live: bool = False) -> str:
    """A whole page about `text`, which needs no other file.

    Args:
        live: with a field to type into; what is typed goes to the server that the page came from.
    """
    found = facts(tokenizer, text)
    shown = html.escape(tokenizer.decode(found["ids"]))
    field = f'<textarea aria-label="text" maxlength="{MAX_BYTES // 3}" autofocus>\n{shown}</textarea>' if live else ""
    script = f"<script>{_SCRIPT}</script>" if live else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Tokenizer playground</title>'
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>\n'
        f"<h1>{html.escape(tokenizer.name)}, {tokenizer.n_vocab:,} tokens</h1>\n{field}\n"
        f'<p id="counts">{summary(found)}</p>\n<div id="pieces">{found["pieces"]}</div>\n'
        f'<p id="ids">{" ".join(map(str, found["ids"]))}</p>\n{script}</body></html>\n'
    )


# --- the server -------------------------------------------------------------------------------------------------------


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Playground(ThreadingHTTPServer):
    """GET / is the page; POST /pieces takes a text in UTF-8 and answers with its `facts` as JSON.

    Args:
        port: to listen on, on 127.0.0.1; 0 takes one that is free.

    Raises:
        OSError: the port is in use.
    """

    def __init__(self, tokenizer: BytePairTokenizer, port: int = 0, text: str = "") -> None:
        self.tokenizer, self.text = tokenizer, text
        self.lock = threading.Lock()  # a browser asks several things at once; the tokenizer's memory is one
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: Playground
    timeout = 10  # seconds that a silent connection is kept

    def do_GET(self) -> None:
        self._answer("/", "text/html; charset=utf-8")

    def do_POST(self) -> None:
        self._answer("/pieces", "application/json")

    def _answer(self, path: str, kind: str) -> None:
        status = HTTPStatus.OK
        try:
            self._require_this_machine()
            if self.path.partition("?")[0] != path:
                raise _Refused(HTTPStatus.NOT_FOUND, "there is only the page at / and POST to /pieces")
            if path == "/":
                with self.server.lock:
                    body = page(self.server.tokenizer, self.server.text, live=True)
            else:
                text = self._text()
                with self.server.lock:
                    body = json.dumps(facts(self.server.tokenizer, text))
        except _Refused as refused:
            status, body, kind = refused.status, f"{refused}\n", "text/plain; charset=utf-8"
        data = body.encode("utf-8")
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(data)), "Content-Security-Policy": _POLICY}
        for name, value in (headers | {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}).items():
            self.send_header(name, value)
        with suppress(ConnectionError):  # the page was closed meanwhile
            self.end_headers()
            self.wfile.write(data)

    def _require_this_machine(self) -> None:
        host = self.headers.get("Host", "").split(":")[0].lower()
        origin = self.headers.get("Origin")
        if host not in _HOSTS or (origin is not None and origin != f"http://{self.headers['Host']}"):
            raise _Refused(HTTPStatus.FORBIDDEN, "only pages of this machine's own may ask")

    def _text(self) -> str:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "the request does not say how long it is")
        if len(length) > 20 or int(length) > MAX_BYTES:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the text has more than {MAX_BYTES:,} bytes")
        try:
            return self.rfile.read(int(length)).decode("utf-8")
        except UnicodeDecodeError:
            raise _Refused(HTTPStatus.BAD_REQUEST, "the text is not UTF-8") from None

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: what people type is theirs."""


# --- the command ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShowPieces:
    """The flags of this script."""

    text: str | None = None
    """What to show. With --serve: what stands in the field at first."""
    tokenizer: Path | None = None
    """A tokenizer.json; runs/demo/tokenizer.json if neither this nor --vocabulary is given."""
    vocabulary: str | None = None
    """A published vocabulary instead: gpt2, r50k_base, p50k_base, cl100k_base or o200k_base."""
    path: Path | None = None
    """With --vocabulary: its file, or the folder with its files; fetched once if not given."""
    out: Path = Path("runs/playground.html")
    """Where the page goes."""
    serve: bool = False
    """Open a page to type into, on this machine alone, until Ctrl-C."""
    port: int = 8765
    """With --serve: the port on 127.0.0.1; 0 takes one that is free."""


def _open_tokenizer(options: ShowPieces) -> BytePairTokenizer:
    if options.tokenizer is not None and options.vocabulary is not None:
        raise UserError("give --tokenizer or --vocabulary, not both")
    if options.path is not None and options.vocabulary is None:
        raise UserError("--path says where the files of --vocabulary are: give both")
    if options.vocabulary is not None:
        return BytePairTokenizer.from_vocabulary(options.vocabulary, options.path)
    if options.tokenizer is None and not _DEFAULT.is_file():
        raise UserError(
            f"there is no {_DEFAULT}: make it with `python working_with_text_data/bytepair_enc/train_tokenizer.py`, or "
            "give --tokenizer or --vocabulary"
        )
    return BytePairTokenizer.load(options.tokenizer or _DEFAULT)


def _serve(tokenizer: BytePairTokenizer, options: ShowPieces) -> None:
    if not 0 <= options.port < 2**16:
        raise UserError(f"--port {options.port}: a port is a number from 0 to 65535")
    try:
        server = Playground(tokenizer, options.port, options.text or "Type here.  It's 12345 o'clock!")
    except OSError as error:
        raise UserError(f"port {options.port} is not free ({error.strerror}): choose another, or --port 0") from None
    print(f"Open {server.address} in a browser. Ctrl-C ends it.", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:  # the one way to end it, so no failure
        print("\nStopped")
    finally:
        server.server_close()


def main(options: ShowPieces) -> None:
    if options.text is None and not options.serve:
        raise UserError('give --text "some text", or --serve for a page to type into')
    if options.out.is_dir():
        raise UserError(f"--out {options.out} is a folder: give a file name such as {options.out / 'playground.html'}")
    tokenizer = _open_tokenizer(options)
    if options.serve:
        _serve(tokenizer, options)
        return
    text = options.text or ""
    write_text(options.out, page(tokenizer, text))
    print(f"{summary(facts(tokenizer, text))}\n\nWrote {options.out}")
    print("Next: open it in a browser, or type your own: the same command with --serve")


if __name__ == "__main__":
    run_command(main, ShowPieces)
