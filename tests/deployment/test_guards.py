"""What stands before the routes, without a server: a request as ASGI brings it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployment import guards
from deployment.guards import Guard, Impatient, Keys, Metrics


def asked(
    app: ASGIApp,
    pieces: Iterable[Message],
    metrics: Metrics | None = None,
    keys: Iterable[str] = (),
    **headers: str,
) -> list[Message]:
    """What is sent in answer to a request that comes in these pieces."""
    sent: list[Message] = []
    coming = iter(pieces)

    async def receive() -> Message:
        return next(coming, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        sent.append(message)

    told = [(name.encode(), value.encode()) for name, value in {"host": "localhost", **headers}.items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": told}
    guard = Guard(app, Keys(keys), metrics or Metrics(), ["/v1/completions"], largest=100_000)
    asyncio.run(guard(scope, receive, send))
    return sent


async def length(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the number of pieces and bytes that it is given."""
    pieces = [await receive()]
    while pieces[-1].get("more_body", False):
        pieces.append(await receive())
    n = sum(len(piece.get("body", b"")) for piece in pieces)
    await PlainTextResponse(f"{len(pieces)} {n} {pieces[-1]['type']}")(scope, receive, send)


class Looked(dict[str, Any]):
    """A message that counts how often somebody looks into it."""

    n = 0

    def get(self, key: str, default: Any = None) -> Any:
        Looked.n += 1
        return super().get(key, default)


def test_a_body_in_many_pieces_is_not_looked_at_again_for_each_of_them():
    """A thousand pieces would be a million looks, and a hundred thousand hold up everybody for minutes."""
    pieces = [Looked(type="http.request", body=b"x", more_body=i < 999) for i in range(1000)]
    assert asked(length, pieces)[1]["body"] == b"1 1000 http.request"
    assert Looked.n <= 3000


def test_who_leaves_in_the_middle_of_a_body_has_left():
    assert b"http.disconnect" in asked(length, [{"type": "http.request", "body": b"x", "more_body": True}])[1]["body"]


def test_of_a_body_that_has_no_end_no_more_is_read_than_may_be():
    pieces = ({"type": "http.request", "body": b"x" * 1000, "more_body": True} for _ in range(10**9))
    assert asked(length, pieces)[0]["status"] == 413
    assert next(pieces)


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    """Something that goes wrong inside."""
    raise RuntimeError("out of memory")


def test_what_goes_wrong_inside_is_counted_as_that_and_not_as_a_client_that_left():
    metrics = Metrics()
    with pytest.raises(RuntimeError):
        asked(broken, [{"type": "http.request"}], metrics)
    counted = {"path": "/v1/completions", "status": "500"}
    assert metrics.registry.get_sample_value("scratchbook_requests_total", counted) == 1


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8001", 200),
        ("127.0.0.1:8001", 200),
        ("[::1]", 200),
        ("[::1]:8001", 200),
        ("evil.example:8001", 403),
        ("localhost.evil.example", 403),
        ("192.168.1.7:8001", 403),
        ("[", 403),
        ("", 403),
    ],
)
def test_without_keys_it_answers_to_no_other_name_than_this_machines(host, status):
    """The name of a stranger's page may be turned to 127.0.0.1 once a browser has it, whose scripts could then ask."""
    body = [{"type": "http.request", "body": b"x"}]
    assert asked(length, body, host=host)[0]["status"] == status
    with_key = {"host": host, "authorization": "Bearer a-long-enough-key"}
    assert asked(length, body, keys=["a-long-enough-key"], **with_key)[0]["status"] == 200


async def slow(scope: Scope, receive: Receive, send: Send) -> None:
    """Takes its time with an answer, if it has the whole question."""
    while (await receive()).get("more_body", False):
        pass
    await asyncio.sleep(1)
    await PlainTextResponse("there it is")(scope, receive, send)


def test_a_connection_on_which_nothing_comes_ends_and_an_answer_takes_its_time(monkeypatch):
    monkeypatch.setattr(guards, "SECONDS_TO_ASK", 0.2)
    server = uvicorn.Server(uvicorn.Config(slow, http=Impatient, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    address = server.servers[0].sockets[0].getsockname()
    begin = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
    for sent in (b"", begin, begin + b"\r\n", begin + b"\r\n1"):
        with socket.create_connection(address, timeout=20) as client:
            client.sendall(sent)
            assert client.recv(1000) == b"", sent
    with socket.create_connection(address, timeout=20) as client:
        client.sendall(begin + b"\r\n12")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    server.should_exit = True
    thread.join()
