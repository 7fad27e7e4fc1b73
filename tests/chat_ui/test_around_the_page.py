"""Accounts, history, the page's walls, the look inside, and how the chat is started."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import stat
import subprocess
import sys

import pytest
import torch
from starlette.datastructures import Headers

from chat_ui.accounts import Accounts, hash_password, session_secret
from chat_ui.look_inside import candidates, draw_attention, draw_candidates
from chat_ui.own_pages_only import OwnPagesOnly, from_own_page, without_links_elsewhere
from gpt_model import Sampling, generate_tokens
from tests.chat_ui.browser import ROOT
from tests.chat_ui.helpers import tiny_model, tokenizer
from utils.addresses import free_port


def run(*arguments, runs, stdin="", expect=0):
    environment = {**os.environ, "SCRATCHBOOK_RUNS": str(runs)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == expect, done.stderr
    return done


def test_an_account_is_made_checked_and_removed(tmp_path):
    script = "chat_ui/accounts.py"
    assert "nobody" in run(script, runs=tmp_path).stdout
    run(script, "--add", "anna", runs=tmp_path, stdin="correct horse\n")
    accounts = Accounts(tmp_path / "chat" / "accounts.json")
    assert accounts.check("anna", "correct horse")
    assert not accounts.check("anna", "wrong horse") and not accounts.check("bert", "") and not accounts.check("", "")
    assert stat.S_IMODE(accounts.path.stat().st_mode) == 0o600
    assert "correct horse" not in accounts.path.read_text()
    done = run(script, "--add", "bert", runs=tmp_path, stdin="short\n", expect=2)
    assert "at least 8 characters" in done.stderr and "Traceback" not in done.stderr
    assert "there is no account 'bert'" in run(script, "--remove", "bert", runs=tmp_path, expect=2).stderr
    run(script, "--remove", "anna", runs=tmp_path)
    assert not accounts.read() and not accounts.path.exists()


def test_a_hash_is_scrypt_s_own():
    cryptography = pytest.importorskip("cryptography.hazmat.primitives.kdf.scrypt")
    kept = hash_password("pässword", b"0123456789abcdef")
    import base64

    raw = base64.b64decode(kept)
    key = cryptography.Scrypt(salt=b"0123456789abcdef", length=64, n=2**14, r=8, p=1).derive("pässword".encode())
    assert raw == b"0123456789abcdef" + key
    assert hash_password("a") != hash_password("a")  # a salt of its own


def test_the_secret_outlives_a_restart(tmp_path):
    path = tmp_path / "secret"
    assert session_secret(path) == session_secret(path) and len(session_secret(path)) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_who_has_no_account_any_more_is_not_logged_in_any_more(tmp_path):
    script, path = "chat_ui/accounts.py", tmp_path / "chat" / "secret"
    secrets = [session_secret(path)]
    for flags in (["--add", "anna"], ["--add", "bert"], ["--add", "anna"], ["--remove", "bert"], ["--remove", "anna"]):
        run(script, *flags, runs=tmp_path, stdin="correct horse\n")
        secrets.append(session_secret(path))
    assert len(set(secrets)) == len(secrets)
    run(script, runs=tmp_path)  # a look changes nothing
    assert session_secret(path) == secrets[-1]


@pytest.mark.parametrize(
    ("origin", "host", "is_own"),
    [
        (None, "localhost:8000", True),
        ("http://localhost:8000", "localhost:8000", True),
        ("https://evil.example", "localhost:8000", False),
        ("http://localhost:9000", "localhost:8000", False),
        ("null", "localhost:8000", False),
    ],
)
def test_other_origins_are_sent_away(origin, host, is_own):
    headers = {"host": host} | ({"origin": origin} if origin else {})
    assert from_own_page(Headers(headers)) is is_own

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"inside"})

    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }

    async def receive():
        return {"type": "http.request", "body": b""}

    asyncio.run(OwnPagesOnly(app)(scope, receive, send))
    assert sent[0]["status"] == (200 if is_own else 403)
    assert (b"content-security-policy" in dict(sent[0]["headers"])) is is_own


def test_chainlit_s_page_names_no_other_machine():
    """The real page, with all that Chainlit puts into it."""
    code = (
        "import chainlit.server as s; from chat_ui.own_pages_only import without_links_elsewhere as w;"
        "p = s.get_html_template(''); assert 'https://' in p; print(w(p))"
    )
    page = run("-c", code, runs="runs").stdout
    assert "https://" not in page and "http://" not in page
    assert 'src="/assets/' in page and "window.theme" in page
    assert without_links_elsewhere('<link href="/public/chat.css">') == '<link href="/public/chat.css">'


def test_the_history_has_the_columns_that_chainlit_fills(tmp_path):
    code = f"""
import asyncio, json, sqlite3
from pathlib import Path
path = Path({str(tmp_path / "history.sqlite")!r})
old = sqlite3.connect(path)
old.execute('CREATE TABLE users ("id" TEXT PRIMARY KEY, "identifier")')
old.execute("INSERT INTO users VALUES ('1', 'anna')")
old.commit(); old.close()
from chat_ui.history import History
from chainlit.user import User
from chainlit.types import Pagination, ThreadFilter, Feedback
async def main():
    history = History(path)
    user = await history.create_user(User(identifier="bert", metadata={{"a": 1}}))
    assert user.metadata == {{"a": 1}}
    await history.update_thread("t", name="a talk", user_id=user.id, metadata={{"chat_profile": "demo"}})
    step = {{"id": "s", "threadId": "t", "name": "bot", "type": "assistant_message", "output": "hi", "input": "",
            "createdAt": "2026-01-01", "metadata": {{"answer": {{"tokens": 3}}, "ids": [1, 2]}}, "streaming": False,
            "isError": False, "showInput": "json", "start": "1", "end": "2", "generation": {{"x": 1}}}}
    await History.create_step.__wrapped__(history, step)
    await history.upsert_feedback(Feedback(forId="s", threadId="t", value=1))  # as the page sends it
    thread = await history.get_thread("t")
    assert thread["userIdentifier"] == "bert" and thread["name"] == "a talk"
    assert thread["metadata"]["chat_profile"] == "demo"  # the page shows it as the model that is picked
    (kept,) = thread["steps"]
    assert kept["output"] == "hi" and kept["metadata"]["ids"] == [1, 2] and kept["feedback"]["value"] == 1
    page = await history.list_threads(Pagination(first=10), ThreadFilter(userId=user.id, search="hi"))
    assert [one["id"] for one in page.data] == ["t"]
    assert not (await history.list_threads(Pagination(first=10), ThreadFilter(userId="1"))).data
    await history.delete_thread("t")
    await history.update_thread("t", metadata={{"chat_settings": {{"system_prompt": "secret"}}}})  # its page closes
    assert await history.get_thread("t") is None
    assert b"secret" not in path.read_bytes() + path.with_name(path.name + "-wal").read_bytes()
    await history.close()
    again = History(path)
    assert (await again.get_user("bert")).id == user.id
    await again.close()
asyncio.run(main())
print("fine")
"""
    done = run("-c", code, runs=tmp_path)
    assert "fine" in done.stdout and "An error occurred" not in done.stdout + done.stderr
    rows = sqlite3.connect(tmp_path / "history.sqlite").execute("SELECT identifier FROM users").fetchall()
    assert ("anna",) in rows


def start(runs, *flags, cwd=ROOT):
    environment = {**os.environ, "SCRATCHBOOK_RUNS": str(runs)}
    arguments = [sys.executable, "-c", "from chainlit.cli import cli; cli()", "run", str(ROOT / "chat_ui" / "app.py")]
    arguments += ["--headless", "--port", str(free_port()), *flags]
    return subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_it_is_not_opened_to_others_without_an_account(tmp_path):
    done = start(tmp_path, "--host", "0.0.0.0")
    assert done.returncode == 2 and "add an account first" in done.stderr and "Traceback" not in done.stderr


def test_it_is_not_started_where_its_configuration_is_not(tmp_path):
    done = start(tmp_path, cwd=tmp_path)
    assert done.returncode == 2 and "from the repository's root" in done.stderr and "Traceback" not in done.stderr


def test_damaged_accounts_open_no_door(tmp_path):
    (tmp_path / "chat").mkdir()
    (tmp_path / "chat" / "accounts.json").write_text('{"anna": ')
    done = start(tmp_path)
    assert done.returncode == 2 and "accounts.json" in done.stderr and "Traceback" not in done.stderr


def test_a_damaged_history_is_a_line_that_says_what_to_do(tmp_path):
    (tmp_path / "chat").mkdir()
    (tmp_path / "chat" / "history.sqlite").write_bytes(b"no database" * 1000)
    done = start(tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "history.sqlite is damaged" in done.stderr and "move it away" in done.stderr


def test_the_configuration_has_no_unsafe_default():
    code = (
        "import json; from chainlit.config import config as c; f = c.features;"
        "print(json.dumps([c.project.allow_origins, f.unsafe_allow_html, f.spontaneous_file_upload.enabled,"
        "f.audio.enabled, f.mcp.enabled, f.auto_tag_thread, f.edit_message, c.root]))"
    )
    shown = json.loads(run("-c", code, runs="runs").stdout.splitlines()[-1])
    assert shown == [[], False, False, False, False, False, True, "chat_ui"]


def test_the_look_inside_shows_what_the_engine_saw():
    model, prompt = tiny_model(), [1, 2, 3]
    tokens = list(generate_tokens(model, [prompt], 9, Sampling(seed=4), n_logprobs=3))
    inside = candidates(model, prompt, [token.id for token in tokens])
    assert len(inside) == 9
    for token, one in zip(tokens, inside, strict=True):
        assert one.drawn == token.id
        assert one.probability == pytest.approx(torch.tensor(token.logprob).exp().item(), rel=1e-4)
        assert [i for i, _ in one.best] == [i for i, _ in token.alternatives]
        assert one.rank == sum(p > one.probability for _, p in one.best) or one.rank >= 3
    for figure in (draw_candidates(inside, tokenizer(), 5), draw_attention(model, tokenizer(), prompt)):
        assert figure.get_size_inches()[0] < 6


def test_a_look_into_more_than_the_context():
    model = tiny_model(context_length=16)
    prompt, answer = [1, 2, 3], list(range(4, 34))
    assert [one.drawn for one in candidates(model, prompt, answer)] == answer[-15:]
    assert candidates(model, [1], []) == []
