"""The published vocabularies against tiktoken itself, and files that are missing, damaged or another's."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import tokenizers
import transformers

from tests.conftest import assert_one_clear_line
from working_with_text_data.bytepair_enc import GPT4_PATTERN, BytePairTokenizer
from working_with_text_data.bytepair_enc.check_against_tiktoken import (
    first_difference,
    random_texts,
    real_texts,
    real_tiktoken,
)
from working_with_text_data.bytepair_enc.tokenizer_json import byte_alphabet
from working_with_text_data.bytepair_enc.vocabularies import (
    VOCABULARIES,
    PublishedFile,
    Vocabulary,
    parse_gpt2_files,
    parse_tiktoken,
)

BYTES = b"".join(base64.b64encode(bytes([b])) + b" %d\n" % b for b in range(256))
TINY = BYTES + base64.b64encode(b"ab") + b" 256\n"


@pytest.fixture(params=sorted(VOCABULARIES))
def pair(request, data_folder):
    """(our tokenizer, tiktoken's encoding) of one published vocabulary."""
    folder = data_folder / "vocab"
    return BytePairTokenizer.from_vocabulary(request.param, folder), real_tiktoken(request.param, folder)


def test_ids_equal_tiktoken_s_on_random_and_on_real_text(pair, data_folder):
    ours, theirs = pair
    texts = list(random_texts(3, 1500))
    real = [text[:60_000] for path in sorted(data_folder.rglob("*.gz"))[::9] for text in real_texts(path)[:40]]
    for text in [*texts, "".join(texts), *real, "".join(real)]:
        assert first_difference(ours, theirs, text) is None
    assert (ours.n_vocab, ours.eot_token) == (theirs.n_vocab, theirs.eot_token)
    assert ours.special_tokens_set == theirs.special_tokens_set
    assert ours.token_byte_values() == theirs.token_byte_values()


def test_offsets_equal_tiktoken_s(pair):
    ours, theirs = pair
    text = "naïve 日本語 👩‍👩‍👧 and a word"
    ids = theirs.encode_ordinary(text)
    assert ours.decode_with_offsets(ids) == theirs.decode_with_offsets(ids)


@pytest.mark.parametrize("name", ["gpt2", "p50k_base", "cl100k_base"])
def test_a_saved_vocabulary_opens_in_hugging_face_s_libraries(data_folder, tmp_path, name):
    ours = BytePairTokenizer.from_vocabulary(name, data_folder / "vocab")
    ours.save(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    text = "It's 12345 o'clock, DON'T   panic!\n\n  def f(x):\r\n\treturn x//2  # Größe, 日本語, हिन्दी 👩‍👩‍👧\n \n"
    assert theirs.encode(text).ids == fast(text)["input_ids"] == ours.encode(text)
    loaded = BytePairTokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.encode(text) == ours.encode(text)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch):
    """A published vocabulary of 257 tokens, which a test can make files of."""
    file = PublishedFile("http://127.0.0.1:9/tiny.tiktoken", hashlib.sha256(TINY).hexdigest())
    monkeypatch.setitem(VOCABULARIES, "tiny", Vocabulary((file,), GPT4_PATTERN, {"<|endoftext|>": 257}))
    return file


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_or_its_folder_packed_or_not(tiny, tmp_path, packed):
    path = tmp_path / ("tiny.tiktoken.gz" if packed else "tiny.tiktoken")
    path.write_bytes(gzip.compress(TINY) if packed else TINY)
    for given in (path, tmp_path, str(path)):
        assert BytePairTokenizer.from_vocabulary("tiny", given).encode("abc") == [256, 99]


def test_another_file_is_refused(tiny, tmp_path):
    path = tmp_path / "tiny.tiktoken"
    path.write_bytes(TINY[:-5])
    with pytest.raises(ValueError, match=r"tiny\.tiktoken is not the published tiny\.tiktoken: its SHA-256"):
        BytePairTokenizer.from_vocabulary("tiny", path)
    (tmp_path / "tiny.tiktoken.gz").write_bytes(gzip.compress(TINY)[:-20])
    path.unlink()
    with pytest.raises(ValueError, match="broken gzip file"):
        BytePairTokenizer.from_vocabulary("tiny", tmp_path)
    with pytest.raises(ValueError, match="no such file or folder"):
        BytePairTokenizer.from_vocabulary("tiny", tmp_path / "nowhere")
    (tmp_path / "tiny.tiktoken.gz").unlink()
    with pytest.raises(ValueError, match=r"needs tiny\.tiktoken, and there is none in"):
        BytePairTokenizer.from_vocabulary("tiny", tmp_path)
    with pytest.raises(ValueError, match="unknown vocabulary 'gpt5': use one of gpt2"):
        BytePairTokenizer.from_vocabulary("gpt5")


class Files(BaseHTTPRequestHandler):
    """Serves `body`, and counts how often it was asked."""

    body, asked = TINY, 0

    def do_GET(self):
        Files.asked += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_):
        pass


def test_a_vocabulary_is_downloaded_once_and_checked(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCHBOOK_CACHE", str(tmp_path))
    server = HTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    file = replace(tiny, url=f"http://127.0.0.1:{server.server_port}/tiny.tiktoken")
    monkeypatch.setitem(VOCABULARIES, "tiny", replace(VOCABULARIES["tiny"], files=(file,)))
    monkeypatch.setattr(Files, "body", TINY + b"x")
    try:
        with pytest.raises(ValueError, match="is not the published"):
            BytePairTokenizer.from_vocabulary("tiny")
        assert not list(tmp_path.rglob("*.tiktoken"))  # what is wrong is not kept
        monkeypatch.setattr(Files, "body", TINY)
        asked = Files.asked
        for _ in range(2):
            assert BytePairTokenizer.from_vocabulary("tiny").encode("ab") == [256]
        assert Files.asked == asked + 1
    finally:
        server.shutdown()
        server.server_close()


def test_without_a_network_the_error_says_what_to_do(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCHBOOK_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"could not be fetched .*: put the file into a folder and give its path"):
        BytePairTokenizer.from_vocabulary("tiny")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TINY + b"no\n", "line 258: expected a token in base 64 and its rank"),
        (TINY + b"%%% 300\n", "line 258: expected"),
        (TINY + base64.b64encode(b"cd") + b" x\n", "line 258: expected"),
        (TINY + base64.b64encode(b"ab") + b" 300\n", "line 258: the token b'ab' is there twice"),
        (TINY + base64.b64encode(b"cd") + b" 256\n", "two tokens have the rank 256"),
    ],
)
def test_a_damaged_tiktoken_file_is_told_by_its_line(data, message):
    with pytest.raises(ValueError, match=message):
        parse_tiktoken(data, "some file")


def test_gpt2_s_two_files_have_to_belong_together():
    alphabet = byte_alphabet()
    spelled = {character: i for i, character in enumerate(alphabet.values())} | {"ab": 256, "<|endoftext|>": 257}

    encoder = json.dumps(spelled).encode()
    assert parse_gpt2_files(b"#version: 0.2\na b\n", encoder)[b"ab"] == 256
    for merges in (b"#version: 0.2\na c\n", b"#version: 0.2\n", b"a b\n"):
        with pytest.raises(ValueError, match="do not belong together"):
            parse_gpt2_files(merges, encoder)
    for merges, vocabulary in (
        (b"\xff\xfe", encoder),
        (b"#version: 0.2\na b c\n", encoder),
        (b"#version: 0.2\n", b"{"),
    ):
        with pytest.raises(ValueError, match="damaged"):
            parse_gpt2_files(merges, vocabulary)


def test_text_must_be_a_str():
    tokenizer = BytePairTokenizer(parse_tiktoken(TINY))
    for encode in (tokenizer.encode, tokenizer.encode_ordinary, tokenizer.encode_to_numpy):
        with pytest.raises(TypeError, match="encodes a str, not bytes: decode bytes first"):
            encode(b"ab")  # type: ignore[arg-type]


@pytest.mark.parametrize("ids", [[-1], [97, -300], [257], [10**9], [97.5], ["a"], [None], [97] * 9000 + [-1]])
def test_ids_out_of_range_are_refused(ids):
    tokenizer = BytePairTokenizer(parse_tiktoken(TINY))
    with pytest.raises(ValueError, match=r"is no token of this vocabulary \(0 … 256\)"):
        tokenizer.decode(ids)


def test_the_command_compares(run, data_folder):
    script = "working_with_text_data/bytepair_enc/check_against_tiktoken.py"
    done = run(script, "--vocabularies", data_folder / "vocab", "--names", "gpt2", "--texts", 200)
    assert done.returncode == 0, done.stderr
    assert "gpt2: 200 random texts and 0 real ones, all ids equal" in done.stdout
    assert_one_clear_line(run(script, "--vocabularies", data_folder / "vocab", "--names", "gpt5"), "unknown vocabulary")
    assert_one_clear_line(run(script, "--vocabularies", "nowhere", "--texts", 1), "needs vocab.bpe")


def test_lines_of_json_end_with_line_feeds_alone(tmp_path):
    """U+2028 and U+0085 end a line to `str.splitlines`, and stand inside JSON's strings."""
    texts = ["one\u2028two\x85three", "four"]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), "utf-8"
    )
    assert real_texts(tmp_path / "a.jsonl") == texts
    (tmp_path / "a.json").write_text(json.dumps([{"a": texts, "b": 1}]), "utf-8")
    assert real_texts(tmp_path / "a.json") == texts


def test_every_file_is_named_with_its_checksum():
    files = [file for vocabulary in VOCABULARIES.values() for file in vocabulary.files]
    assert len({file.sha256 for file in files}) == len(files)
    assert all(len(file.sha256) == 64 and file.url.startswith("https://") for file in files)
