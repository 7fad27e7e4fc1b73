"""A user of the chat without a browser: what the page says over its socket, said by hand."""

from __future__ import annotations

import asyncio
import time
import urllib.request
import uuid
from typing import Any

import socketio


def log_in(url: str) -> str:
    """The cookie of whoever sits at this machine."""
    request = urllib.request.Request(f"{url}/auth/header", data=b"", method="POST")
    with urllib.request.urlopen(request) as answer:
        return "; ".join(value.split(";")[0] for name, value in answer.getheaders() if name.lower() == "set-cookie")


class SocketUser:
    """A user with a conversation of their own.

    Args:
        url: of the chat.
        cookie: from `log_in`.
        profile: the model that is picked.
        session: what the page calls itself; a UUID as the real one makes it, if not given.
        thread: the conversation that is taken up again; a new one if not given.
    """

    def __init__(self, url: str, cookie: str, profile: str, session: str = "", thread: str = "") -> None:
        self.url, self.cookie, self.profile, self.thread = url, cookie, profile, thread
        self.session = session or str(uuid.uuid4())
        self.client = socketio.AsyncClient(reconnection=False)
        self.texts: dict[str, str] = {}
        """Messages of the other side by their ids, as they stand on the page."""
        self.answers: asyncio.Queue[str] = asyncio.Queue()
        """Those that have their buttons."""
        self.first_at: float | None = None
        self.client.on("stream_start", self._start)
        self.client.on("stream_token", self._token)
        self.client.on("new_message", self._message)
        self.client.on("update_message", self._message)
        self.client.on("action", self._action)

    async def connect(self, **settings: Any) -> None:
        """Opens the page."""
        auth = {"sessionId": self.session, "clientType": "webapp", "userEnv": "", "threadId": self.thread}
        await self.client.connect(
            self.url,
            headers={"Cookie": self.cookie},
            auth=auth | {"chatProfile": self.profile},
            socketio_path="/ws/socket.io",
            transports=["websocket"],
            wait_timeout=60,
        )
        await self.client.emit("connection_successful")
        await asyncio.sleep(0.5)
        await self.client.emit("chat_settings_change", settings)

    async def ask(self, text: str) -> str:
        """Says something, and waits for the answer and its buttons."""
        await self.say(text)
        return self.texts[await asyncio.wait_for(self.answers.get(), 120)]

    async def say(self, text: str) -> None:
        """Says something."""
        self.first_at, self.asked_at = None, time.monotonic()
        message = {"id": str(uuid.uuid4()), "name": "you", "type": "user_message", "output": text, "createdAt": None}
        await self.client.emit("client_message", {"message": message, "fileReferences": []})

    async def leave(self) -> None:
        """Closes the page."""
        await self.client.disconnect()

    async def _start(self, step: dict[str, Any]) -> None:
        self.first_at = self.first_at or time.monotonic()
        self.texts[step["id"]] = step["output"]

    async def _token(self, token: dict[str, Any]) -> None:
        self.texts[token["id"]] += token["token"]

    async def _message(self, step: dict[str, Any]) -> None:
        if step["type"] == "assistant_message":
            self.texts[step["id"]] = step["output"]

    async def _action(self, action: dict[str, Any]) -> None:
        if action["name"] == "regenerate":
            self.answers.put_nowait(action["forId"])
