"""An OpenAI-compatible server on the chat's engine: what speaks to OpenAI can speak to your model.

python deployment/api.py --model runs/demo/instruct/model
curl http://127.0.0.1:8001/v1/chat/completions -H "Content-Type: application/json" \\
     -d '{"model": "demo/instruct", "messages": [{"role": "user", "content": "What does len do?"}]}'

Requests are written side by side by one engine a model (`chat_ui/chat_engine.py`). What cannot be served is refused
with its status before a stream begins; a client that leaves stops its computation; as many wait as may wait, and the
next one is told to come back (429).

Keys come from the environment, `SCRATCHBOOK_API_KEYS=key1,key2`, and clients send one as `Authorization: Bearer KEY`.
Without keys the server listens on loopback alone. The log has a line of JSON for each request, without its text.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chat_ui.chat_engine import Answer, Busy, ChatEngine, Piece, Prompt, TooLong, Wish
from chat_ui.models import shown_name
from deployment.guards import Guard, Impatient, Keys, Metrics, log
from deployment.openai_format import ApiError, ChatRequest, CompletionRequest, Reply
from finetuning.instruction.prompt_format import PromptFormat
from gpt_model import load_model, load_tokenizer
from gpt_model.pretrained import find_folder
from utils.addresses import is_loopback, require_free
from utils.devices import pick_device
from utils.errors import UserError, run_command

PATHS = ("/v1/models", "/v1/chat/completions", "/v1/completions", "/health", "/metrics", "/openapi.json")


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Raises:
        ValueError: a number is not at least 1.
    """

    max_tokens: int = 1024
    """Tokens of an answer at most, whatever a request asks for."""
    max_body_bytes: int = 1_000_000
    """Bytes of a request at most."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.max_body_bytes < 1:
            raise ValueError("limits must be at least 1")


def create_app(
    engines: Mapping[str, ChatEngine], keys: Sequence[str] = (), limits: Limits | None = None, log_text: bool = False
) -> FastAPI:
    """The server.

    Args:
        engines: what clients call a model -> its engine.
        keys: that open it; without any, nobody is asked for one.
        log_text: write questions and answers into the log, too.
    """
    server = _Server(dict(engines), limits or Limits(), log_text)
    checked = Keys(keys)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        for engine in engines.values():  # uvicorn has waited as long as it should for those that were under way
            engine.cancel_all()

    app = FastAPI(
        title="LLM Scratchbook", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )  # a redirect is to http://, and would take the key out of the TLS of a proxy in front
    app.add_middleware(Guard, keys=checked, metrics=server.metrics, paths=PATHS, largest=server.limits.max_body_bytes)
    app.add_exception_handler(ApiError, _told)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _failed)
    app.get("/v1/models")(server.list_models)
    app.get("/v1/models/{model:path}")(server.show_model)
    app.post("/v1/chat/completions", response_model=None)(server.chat)
    app.post("/v1/completions", response_model=None)(server.complete)
    app.get("/health")(server.health)
    app.head("/health", include_in_schema=False)(server.health)  # as some load balancers ask
    app.get("/metrics", response_model=None)(server.show_metrics)
    return app


async def _told(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    headers = {"Retry-After": "1"} if error.status == 429 else None
    return JSONResponse(error.body(), error.status, headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """A body that is no JSON, or not what the path takes: the first thing that is wrong with it."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return JSONResponse(ApiError(400, "the body is no JSON").body(), 400)
    kind = request.headers.get("content-type", "")
    if first["loc"] == ("body",) and "json" not in kind:  # as curl sends it unless it is told
        told = ApiError(415, f"Content-Type is {kind!r}: it must be application/json", "unsupported_content_type")
        return JSONResponse(told.body(), 415)
    where = ".".join(str(part) for part in first["loc"] if part != "body") or None
    wrong = ApiError(400, f"{where or 'the body'}: {first['msg']}", param=where)
    return JSONResponse(wrong.body(), 400)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    told = ApiError(error.status_code, f"{error.detail}: {request.method} {request.url.path}")
    return JSONResponse(told.body(), error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse(ApiError(500, "something went wrong here, and was logged").body(), 500)


class _Server:
    """The routes."""

    def __init__(self, engines: dict[str, ChatEngine], limits: Limits, log_text: bool) -> None:
        self.engines, self.limits, self.log_text = engines, limits, log_text
        self.metrics, self.started = Metrics(), int(time.time())
        self.metrics.open.set_function(lambda: sum(engine.n_open for engine in engines.values()))

    def list_models(self) -> dict[str, Any]:
        """What there is to ask."""
        return {"object": "list", "data": [self._model(name) for name in self.engines]}

    def show_model(self, model: str) -> dict[str, Any]:
        """One of them."""
        self._engine(model)
        return self._model(model)

    def _model(self, name: str) -> dict[str, Any]:
        engine = self.engines[name]
        return {
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": "llm-scratchbook",
            "context_length": engine.context_length,
            "answers": engine.layout is not None,
        }

    def _engine(self, name: str) -> ChatEngine:
        if name not in self.engines:
            there = ", ".join(self.engines)
            raise ApiError(404, f"there is no model {name!r}: there is {there}", "model_not_found", "model")
        return self.engines[name]

    def health(self) -> dict[str, str]:
        """Whether the server is there."""
        return {"status": "ok"}

    def show_metrics(self) -> Response:
        """Counts for Prometheus."""
        return PlainTextResponse(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """An answer to a conversation."""
        engine = self._engine(body.model)
        wish = body.wish(self.limits.max_tokens)
        turns = body.conversation()
        try:
            prompt = await asyncio.to_thread(engine.prompt, turns, wish.max_new_tokens)
        except UserError as error:
            raise _refused(error, "messages") from None
        return await self._answer(engine, prompt, wish, body, True, request)

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """A continuation of a text."""
        engine = self._engine(body.model)
        wish, text = body.wish(self.limits.max_tokens), body.one_prompt()
        try:
            if isinstance(text, str):
                prompt = await asyncio.to_thread(engine.prompt, text, wish.max_new_tokens)
            else:
                prompt = engine.prompt_of_ids(text)
        except (UserError, ValueError) as error:
            raise _refused(error, "prompt") from None
        return await self._answer(engine, prompt, wish, body, False, request)

    async def _answer(
        self,
        engine: ChatEngine,
        prompt: Prompt,
        wish: Wish,
        body: ChatRequest | CompletionRequest,
        is_chat: bool,
        request: Request,
    ) -> Response:
        try:
            answer, pieces = engine.stream(prompt, wish)
        except Busy as error:
            raise ApiError(429, str(error), "server_busy") from None

        def end() -> None:
            answer.cancel()
            self._note(answer, request)

        include_usage = bool(body.stream_options and body.stream_options.include_usage)
        reply = Reply(body.model, is_chat, engine.tokenizer, include_usage)
        if body.stream:
            return _Stream(_events(reply, answer, pieces), end)
        try:
            whole = await _unless_left(request, _collect(pieces))
        finally:
            end()
        return JSONResponse(reply.whole(whole[0], whole[1], answer))

    def _note(self, answer: Answer, request: Request) -> None:
        """Counts an answer, and logs it without its text unless that is wanted."""
        self.metrics.tokens.labels("prompt").inc(len(answer.prompt.ids))
        self.metrics.tokens.labels("prompt_reused").inc(answer.n_reused)
        self.metrics.tokens.labels("completion").inc(len(answer.ids))
        if answer.seconds_to_first is not None:
            self.metrics.first_token.observe(answer.seconds_to_first)
        figures: dict[str, object] = {
            "request": request.state.request_id,
            "prompt_tokens": len(answer.prompt.ids),
            "reused": answer.n_reused,
            "completion_tokens": len(answer.ids),
            "finish": answer.finish,
            "first_token": answer.seconds_to_first,
        }
        if self.log_text:
            figures["prompt_ids"], figures["ids"] = answer.prompt.ids, answer.ids
        log(**figures)


def _refused(error: Exception, param: str) -> ApiError:
    """What the engine says of a prompt, as a client is told."""
    return ApiError(400, str(error), "context_length_exceeded" if isinstance(error, TooLong) else None, param)


def _event(content: dict[str, Any]) -> str:
    """A server-sent event. It is ASCII, since some clients take U+2028 and the like for the end of a line."""
    return f"data: {json.dumps(content)}\n\n"


class _Stream(StreamingResponse):
    """Server-sent events.

    Args:
        at_end: is called however they end, even if the client has left before the first of them.
    """

    def __init__(self, events: AsyncIterator[str], at_end: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.at_end()


async def _events(reply: Reply, answer: Answer, pieces: AsyncIterator[Piece]) -> AsyncIterator[str]:
    """An answer as server-sent events."""
    with_logprobs = answer.wish.n_logprobs is not None
    try:
        if reply.is_chat:
            yield _event(reply.first())
        async for text, token in pieces:
            if text or (with_logprobs and token):
                yield _event(reply.piece(text, token, with_logprobs))
        yield _event(reply.last(answer))
        if reply.include_usage:
            yield _event(reply.usage(answer))
        yield "data: [DONE]\n\n"
    except Exception as error:  # the status is long sent: what is left is to say so in the stream
        logging.getLogger("uvicorn.error").exception("an answer failed", exc_info=error)
        yield _event(ApiError(500, "something went wrong here, and was logged").body())


async def _collect(pieces: AsyncIterator[Piece]) -> tuple[str, list[Any]]:
    """The text and the tokens of a whole answer."""
    text, tokens = "", []
    async for piece in pieces:
        text += piece.text
        if piece.token is not None:
            tokens.append(piece.token)
    return text, tokens


async def _unless_left(request: Request, work: Any) -> Any:
    """What some work comes to; it is cancelled if the client leaves before.

    Raises:
        ApiError: it did. Nobody reads this.
    """

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(499, "the client has left")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


class Server(uvicorn.Server):
    """uvicorn's, which ends the answers under way before it would break them off.

    Args:
        patience: seconds that they may take after the first signal; after a second one they end at once.
    """

    def __init__(self, config: uvicorn.Config, engines: Iterable[ChatEngine], patience: float) -> None:
        super().__init__(config)
        self.engines, self.patience, self.hurry = list(engines), patience, False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to end."""
        if self.should_exit:
            self.hurry = True
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Waits for those who are answered."""
        ending = asyncio.create_task(self._end_answers())
        await super().shutdown(sockets)
        ending.cancel()

    async def _end_answers(self) -> None:
        """Ends each answer at its next token, when it is time: its client gets what there is."""
        end = time.monotonic() + self.patience
        while time.monotonic() < end and not self.hurry:
            await asyncio.sleep(0.1)
        for engine in self.engines:
            engine.cancel_all()


@dataclass(frozen=True)
class Serve:
    """The flags of this script."""

    model: tuple[str, ...] = ("runs/demo/instruct/model",)
    """Model folders, or names on the hub."""
    name: tuple[str, ...] = ()
    """What clients call them; their folders below runs/ if not given."""
    host: str = "127.0.0.1"
    """The address to listen on; any other than loopback needs keys."""
    port: int = 8001
    """The port to listen on."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    rows: int | None = None
    """Answers that are written at a time; as many as fit 2 GiB of cache, at most 32, if not given."""
    max_waiting: int = 64
    """Answers that may wait beside those; more are told to come back."""
    max_tokens: int = 1024
    """Tokens of an answer at most."""
    max_body_bytes: int = 1_000_000
    """Bytes of a request at most."""
    shutdown_seconds: int = 30
    """How long answers under way may take when the server is told to stop; a second signal ends them at once."""
    log_text: bool = False
    """Log the ids of questions and answers, too."""

    def __post_init__(self) -> None:
        if not all(self.model or [""]):
            raise UserError("--model needs a model folder or a name on the hub")
        if self.name and len(self.name) != len(self.model):
            raise UserError(f"--name gives {len(self.name)} names for {len(self.model)} models")
        if not all(name.strip() for name in self.name):
            raise UserError("a --name is empty: clients could not ask for that model")
        if not 1 <= self.port < 65536 or self.max_waiting < 0 or (self.rows is not None and self.rows < 1):
            raise UserError("--port is from 1 to 65535, --max-waiting at least 0, --rows at least 1")
        if min(self.max_tokens, self.max_body_bytes) < 1 or self.shutdown_seconds < 0:
            raise UserError("--max-tokens and --max-body-bytes are at least 1, --shutdown-seconds at least 0")


def load_engines(options: Serve) -> dict[str, ChatEngine]:
    """The engines by their names.

    Raises:
        ValueError, OSError: a model cannot be opened.
    """
    engines: dict[str, ChatEngine] = {}
    for i, source in enumerate(options.model):
        folder = find_folder(source)
        name = options.name[i] if options.name else shown_name(Path(source), Path("runs"))
        if name in engines:
            raise UserError(f"two models would be called {name!r}: tell them apart by --name")
        model, tokenizer = load_model(source, pick_device(options.device)), load_tokenizer(source)
        layout = PromptFormat.of(folder)
        engines[name] = ChatEngine(model, tokenizer, layout, name, options.rows, options.max_waiting)
    return engines


def keys_from_environment() -> list[str]:
    """Those in `SCRATCHBOOK_API_KEYS`, separated by commas.

    Raises:
        UserError: one is too short to keep anybody out, or no client could send it.
    """
    keys = [key.strip() for key in os.environ.get("SCRATCHBOOK_API_KEYS", "").split(",") if key.strip()]
    if any(len(key) < 16 for key in keys):
        raise UserError(
            "a key in SCRATCHBOOK_API_KEYS has less than 16 characters: make one with `openssl rand -hex 24`"
        )
    if not all(key.isascii() and key.isprintable() for key in keys):
        raise UserError("a key in SCRATCHBOOK_API_KEYS has characters that no header carries: use letters and digits")
    return keys


def main(options: Serve) -> None:
    keys = keys_from_environment()
    if not keys and not is_loopback(options.host):
        raise UserError(
            f"--host {options.host} can be reached from other machines, and there is no key: set SCRATCHBOOK_API_KEYS"
        )
    require_free(options.host, options.port)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    engines = load_engines(options)
    host = f"[{options.host}]" if ":" in options.host else options.host
    app = create_app(engines, keys, Limits(options.max_tokens, options.max_body_bytes), options.log_text)
    print(f"Serving {', '.join(engines)} at http://{host}:{options.port}/v1", flush=True)
    print(f"Keys: {len(keys) or 'none, for this machine alone'}. Ctrl-C ends it.", flush=True)
    config = uvicorn.Config(
        app,
        http=Impatient,
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=options.shutdown_seconds + 5,  # for the last tokens, and those who read slowly
        limit_concurrency=4 * (32 + sum(engine.n_rows + options.max_waiting for engine in engines.values())),
    )
    with contextlib.suppress(KeyboardInterrupt):
        Server(config, engines.values(), options.shutdown_seconds).run()


if __name__ == "__main__":
    run_command(main, Serve)
