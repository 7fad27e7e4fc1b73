"""Many people at once, through the server: everybody gets their own text, and nothing is left when they go."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import statistics
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import socketio

from gpt_model import Sampling, load_model, load_tokenizer
from gpt_model.generate import generate_text
from tests.chat_ui.browser import RunningChat, resident_bytes
from tests.chat_ui.helpers import model_folder
from tests.chat_ui.socket_user import SocketUser, log_in

pytestmark = pytest.mark.filterwarnings("default")  # asyncio's and aiohttp's own


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningChat]:
    runs = tmp_path_factory.mktemp("many")
    model_folder(runs / "base" / "model", layout=None, seed=1)
    model_folder(runs / "taught" / "model", context_length=512)
    running = RunningChat(runs)
    running.start()
    yield running
    running.stop()


def resident(chat: RunningChat) -> int:
    """Bytes that the server holds."""
    assert chat.process is not None
    return resident_bytes(chat.process.pid)


def test_thirty_two_users_at_once(chat):
    model, tokenizer = load_model(chat.runs / "base" / "model"), load_tokenizer(chat.runs / "base" / "model")
    cookie = log_in(chat.url)

    async def one(n: int) -> tuple[str, str, float]:
        user = SocketUser(chat.url, cookie, "base")
        await user.connect(seed=str(n), max_new_tokens=40, temperature=0.7)
        text = await user.ask(f"The cat {n}")
        waited = (user.first_at or time.monotonic()) - user.asked_at
        await user.leave()
        sampling = Sampling(temperature=0.7, top_k=50, seed=n)
        return text, "".join(generate_text(model, tokenizer, f"The cat {n}", 40, sampling)), waited

    async def all_of_them() -> list[tuple[str, str, float]]:
        return await asyncio.gather(*(one(n) for n in range(32)))

    answers = asyncio.run(all_of_them())
    same = [shown == alone for shown, alone, _ in answers]
    assert sum(same) >= 31, same  # in float32, a draw may hang on a rounding
    waits = [wait for _, _, wait in answers]
    print(f"first token: median {statistics.median(waits):.2f} s, last {max(waits):.2f} s")
    end = time.monotonic() + 30
    while chat.n_threads("engine") and time.monotonic() < end:
        time.sleep(0.1)
    assert chat.n_threads("engine") == 0


def test_a_page_that_calls_itself_a_path_removes_no_folder(chat, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to-anna.txt").write_text("dear")

    async def come_and_go() -> None:
        user = SocketUser(chat.url, log_in(chat.url), "base", session=str(tmp_path))
        with contextlib.suppress(socketio.exceptions.ConnectionError):
            await user.connect()
            await user.client.emit("clear_session")
            await asyncio.sleep(0.5)
            await user.leave()

    asyncio.run(come_and_go())
    time.sleep(1)
    assert (tmp_path / "letters" / "to-anna.txt").read_text() == "dear"


def test_a_page_that_comes_back_has_its_settings(chat):
    """Chainlit's page connects twice when a model is picked, and what was sent to the first socket is lost."""
    cookie, session = log_in(chat.url), str(uuid.uuid4())

    async def come(**settings: Any) -> dict[str, Any]:
        user, shown = SocketUser(chat.url, cookie, "base", session), asyncio.Queue[Any]()
        user.client.on("chat_settings", shown.put)
        await user.connect(**settings)
        widgets = await asyncio.wait_for(shown.get(), 10)
        await user.leave()
        return {widget["id"]: widget["initial"] for widget in widgets}

    assert asyncio.run(come(seed="5"))["seed"] == ""
    assert asyncio.run(come())["seed"] == "5"


def test_a_conversation_that_comes_back_twice_is_read_once(chat):
    """As after a reload and a lost connection."""
    cookie, session = log_in(chat.url), str(uuid.uuid4())
    history = sqlite3.connect(chat.runs / "chat" / "history.sqlite")

    async def kept(query: str, n: int) -> list[Any]:
        """At least `n` rows, which are put away by the way."""
        while len(rows := history.execute(query).fetchall()) < n:
            await asyncio.sleep(0.1)
        return rows

    async def talk() -> str:
        user = SocketUser(chat.url, cookie, "taught")
        await user.connect(seed="1", max_new_tokens=8)
        await user.ask("The only cat")
        await user.leave()
        (thread,) = (await kept("SELECT threadId FROM steps WHERE output = 'The only cat'", 1))[0]
        for turn in range(2):
            user = SocketUser(chat.url, cookie, "taught", session, thread)
            await user.connect(seed="1", max_new_tokens=8)
            await asyncio.wait_for(user.answers.get(), 10)  # the buttons
            if turn:
                await user.ask("The mat")
            await user.leave()
        answers = f"SELECT metadata FROM steps WHERE threadId = '{thread}' AND type = 'assistant_message'"
        return str((await kept(answers + " ORDER BY createdAt", 2))[-1][0])

    ids = json.loads(asyncio.run(asyncio.wait_for(talk(), 120)))["prompt_ids"]
    prompt = load_tokenizer(chat.runs / "taught" / "model").decode(ids)
    assert prompt.count("The only cat") == 1


def test_memory_is_flat_over_five_hundred_messages(chat):
    cookie = log_in(chat.url)

    async def talk(n_users: int, n_messages: int) -> None:
        async def one(n: int) -> None:
            user = SocketUser(chat.url, cookie, "base")
            await user.connect(max_new_tokens=8)
            for i in range(n_messages):
                await user.ask(f"The cat {n} {i}")
            await user.leave()

        await asyncio.gather(*(one(n) for n in range(n_users)))

    asyncio.run(talk(10, 10))
    before = resident(chat)
    asyncio.run(talk(10, 50))
    grown = resident(chat) - before
    print(f"500 messages: {grown / 2**20:.1f} MiB more than {before / 2**20:.0f}")
    assert grown < 30 * 2**20


def test_half_leave_in_the_middle_and_the_others_are_served(chat):
    cookie = log_in(chat.url)

    async def one(n: int) -> str | None:
        user = SocketUser(chat.url, cookie, "base")
        await user.connect(seed="5", max_new_tokens=40 if n % 2 else 4000)
        if n % 2:
            text = await user.ask("The cat")
            await user.leave()
            return text
        await user.say("The mat")
        while user.first_at is None:
            await asyncio.sleep(0.01)
        await user.leave()
        return None

    async def all_of_them() -> list[str | None]:
        return await asyncio.gather(*(one(n) for n in range(16)))

    texts = {text for text in asyncio.run(all_of_them()) if text is not None}
    assert len(texts) == 1 and texts != {""}
    end = time.monotonic() + 40
    while chat.n_threads("engine") and time.monotonic() < end:
        time.sleep(0.1)
    assert chat.n_threads("engine") == 0
