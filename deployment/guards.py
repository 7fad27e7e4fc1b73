"""What stands between the world and the model: keys, sizes, counts and a log.

None of these knows what a model is. Most are plain ASGI: a body is read once, up to its limit, and a stream of answers
passes through as it comes. What ASGI does not see, a connection on which nothing comes, is uvicorn's.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import Iterable
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from deployment.openai_format import ApiError
from utils.addresses import is_loopback

LOG = logging.getLogger("scratchbook.api")
_OPEN = {"/health"}  # what needs no key
SECONDS_TO_ASK = 30.0


class Keys:
    """The keys that open the API.

    Args:
        keys: in plain text; none of them empty. Without any, nobody is asked for one.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._hashes = [hashlib.sha256(key.encode()).digest() for key in keys if key]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def allow(self, authorization: str | None) -> bool:
        """Whether a request's `Authorization` header has one of them; takes as long whichever is wrong."""
        if not self._hashes:
            return True
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        known = [hmac.compare_digest(given, one) for one in self._hashes]
        return scheme.lower() == "bearer" and any(known)


class Metrics:
    """What Prometheus reads at /metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "scratchbook_requests_total", "Requests by path and status", ["path", "status"], registry=self.registry
        )
        self.tokens = Counter("scratchbook_tokens_total", "Tokens by kind", ["kind"], registry=self.registry)
        self.seconds = Histogram(
            "scratchbook_request_seconds",
            "From a request to the end of its answer",
            ["path"],
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
            registry=self.registry,
        )
        self.first_token = Histogram(
            "scratchbook_first_token_seconds",
            "From a question to the first token of its answer",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=self.registry,
        )
        self.open = Gauge("scratchbook_open_answers", "Answers that are written or wait", registry=self.registry)


class Guard:
    """Lets in who has a key and a body that is not too large; counts and logs what came of it.

    Args:
        paths: those that are counted by their names; all others are "other", or anybody could fill the memory.
        largest: bytes of a body.
    """

    def __init__(self, app: ASGIApp, keys: Keys, metrics: Metrics, paths: Iterable[str], largest: int) -> None:
        self.app, self.keys, self.metrics, self.paths, self.largest = app, keys, metrics, frozenset(paths), largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, start, status = Headers(scope=scope), time.perf_counter(), 499  # the client left before an answer
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._let_in(scope, headers, receive, told)
        except Exception:
            status = 500 if status == 499 else status  # what the client is told by who catches this
            raise
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            took = time.perf_counter() - start
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(took)
            log(request=request_id, path=path, method=scope["method"], status=status, seconds=round(took, 4))

    async def _let_in(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        if not self.keys and not is_loopback(_called(headers)):  # DNS rebinding
            message = "without keys the server answers to the names of this machine alone, such as localhost"
            await self._refuse(ApiError(403, message, "unknown_host"), scope, receive, send)
            return
        if scope["path"] not in _OPEN and not self.keys.allow(headers.get("authorization")):
            error = ApiError(401, "a valid key is needed: Authorization: Bearer KEY", "invalid_api_key")
            await self._refuse(error, scope, receive, send)
            return
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.largest:
            await self._refuse(self._too_large(), scope, receive, send)
            return
        read = await self._read(receive)
        if read is None:  # it did not say how long it would be
            await self._refuse(self._too_large(), scope, receive, send)
            return
        waiting = [read]

        async def again() -> Message:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, again, send)

    async def _read(self, receive: Receive) -> Message | None:
        """A body in one piece, however many it came in, or that its client has left; None if it is too large."""
        body = bytearray()
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if len(body) > self.largest:
                return None
            if not message.get("more_body", False):
                return {"type": "http.request", "body": bytes(body), "more_body": False}
        return message

    def _too_large(self) -> ApiError:
        return ApiError(413, f"a request has at most {self.largest:,} bytes", "request_too_large")

    @staticmethod
    async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse(error.body(), error.status)(scope, receive, send)


class Impatient(H11Protocol):
    """uvicorn's connection, which ends where a request does not come: half a minute without one, or with half of one.

    uvicorn waits for ever, and a few hundred such connections keep everybody else out.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody has come."""
        super().connection_made(transport)
        self._waited: object = None
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """And has left."""
        self._next.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        """Ends it if it waits for what it waited for at the last look. An answer may take as long as it takes."""
        cycle = self.cycle
        asked = cycle is not None and not cycle.more_body and not cycle.response_complete
        waits = None if asked else (cycle, cycle is not None and cycle.response_complete)
        if waits is not None and waits == self._waited:
            self.transport.close()
        self._waited = waits
        self._next = self.loop.call_later(SECONDS_TO_ASK, self._look)


def _called(headers: Headers) -> str:
    """By which name a request calls the server."""
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


def log(**figures: object) -> None:
    """A line of JSON."""
    LOG.info(json.dumps(figures, ensure_ascii=False))
