"""The chat's pages speak with this machine alone.

Chainlit's page asks other machines for fonts and a style sheet, and a picture in what a model writes would be fetched
from wherever the model likes: an address that could carry the conversation away. So

    what the page names elsewhere      is taken out of it
    what it would still ask for        the browser refuses, by a Content-Security-Policy
    a page of another origin           that talks to the chat in the name of whoever sits here is sent away
    a page that is none                and names itself with a path, for which Chainlit would remove that folder, too
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline'",  # the page sets its theme in a script of its own
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
_ELSEWHERE = re.compile(r'<(?:link|meta)\b[^>]*\b(?:href|content)="https?://[^>]*>\s*')


def without_links_elsewhere(page: str) -> str:
    """A page without its links to other machines."""
    return _ELSEWHERE.sub("", page)


class OwnPagesOnly:
    """Middleware that keeps other origins out, and the browser in."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if not from_own_page(Headers(scope=scope)):
            await _refuse(scope, receive, send)
            return

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                _protect(message)
            await send(message)

        await self.app(scope, receive, with_policy)


def from_own_page(headers: Headers) -> bool:
    """Whether a request comes from one of the chat's own pages, or from no page at all."""
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


def with_proper_ids(connect: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A handler of new sockets that takes no page whose id is anything but a UUID.

    Chainlit makes a folder of that name for the page's files, and removes it with all that is in it at the end: with
    the id `/home/anna`, or `..`, whoever may log in could remove what they like.
    """

    async def connect_page(sid: str, environ: Any, auth: Any) -> Any:
        try:
            UUID(auth["sessionId"])
        except (TypeError, KeyError, ValueError, AttributeError):
            raise ConnectionRefusedError("sessionId is no UUID") from None
        return await connect(sid, environ, auth)

    return connect_page


def _protect(message: MutableMapping[str, Any]) -> None:
    headers = MutableHeaders(scope=message)
    headers["Content-Security-Policy"] = POLICY
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "no-referrer"


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:
        await PlainTextResponse("this comes from a page of another origin", 403)(scope, receive, send)
