"""The API with the clients that people use, against the model written alone; and hammered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_ui.chat_engine import ChatEngine
from deployment.api import Limits, _event, create_app
from finetuning.instruction.prompt_format import PromptFormat
from gpt_model import Sampling, generate_tokens, load_model, load_tokenizer
from tests.chat_ui.browser import ROOT
from tests.chat_ui.helpers import model_folder, tiny_model, tokenizer
from tests.deployment.serving import KEY, RunningApi, serving

pytestmark = pytest.mark.filterwarnings("default")  # sockets that a test breaks off


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "taught": model_folder(folder / "taught", "alpaca", context_length=256),
        "base": model_folder(folder / "base", None, seed=1, context_length=256),
    }


@pytest.fixture(scope="module")
def api(folders, tmp_path_factory) -> Iterator[RunningApi]:
    log = tmp_path_factory.mktemp("log") / "api.log"
    with serving(folders, log, "--rows", "4", "--max-waiting", "80", "--max-tokens", "4000") as running:
        yield running


@pytest.fixture
def client(api) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=KEY, max_retries=0) as one:
        yield one


def post(api, path, body, key=KEY, **more):
    content = body if isinstance(body, bytes | str) else json.dumps(body)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    return httpx.post(api.url + path, content=content, headers=headers, timeout=60, **more)


def chat(**more):
    return {"model": "taught", "messages": [{"role": "user", "content": "What does len do?"}], "seed": 3} | more


def alone(folder, ids, n, stop=True, **sampling):
    """The tokens that the model writes without engine and server."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    ends = set(tokenizer.special_tokens.values()) if stop else set()
    return list(generate_tokens(model, [ids], n, Sampling(**sampling), ends, n_logprobs=2))


def prompt_ids(folder, messages):
    layout = PromptFormat.of(folder)
    assert layout is not None
    return layout.encode(load_tokenizer(folder), messages, ask=True).ids


MESSAGES = [{"role": "user", "content": "What does len do?"}]


def test_a_chat_is_what_the_model_says(client, folders):
    answer = client.chat.completions.create(
        model="taught",
        messages=MESSAGES,
        seed=3,
        temperature=0.8,
        max_completion_tokens=12,
        logprobs=True,
        top_logprobs=2,
    )
    ids = prompt_ids(folders["taught"], MESSAGES)
    tokens = alone(folders["taught"], ids, 12, temperature=0.8, seed=3)
    choice, tokenizer = answer.choices[0], load_tokenizer(folders["taught"])
    assert choice.message.role == "assistant"
    assert choice.message.content == tokenizer.decode([token.id for token in tokens])
    assert choice.finish_reason == ("length" if len(tokens) == 12 else "stop")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), len(tokens))
    for told, token in zip(choice.logprobs.content, tokens, strict=True):
        assert bytes(told.bytes) == tokenizer.decode_bytes([token.id])
        assert told.logprob == pytest.approx(token.logprob, abs=1e-4)
        assert [bytes(one.bytes) for one in told.top_logprobs] == [
            tokenizer.decode_bytes([i]) for i, _ in token.alternatives
        ]


def test_a_stream_has_its_role_first_and_its_reason_last(client, api):
    whole = client.chat.completions.create(**chat(max_tokens=20))
    stream = client.chat.completions.create(**chat(max_tokens=20), stream=True, stream_options={"include_usage": True})
    pieces = list(stream)
    assert pieces[0].choices[0].delta.role == "assistant"
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content
    assert pieces[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert all(piece.choices[0].finish_reason is None for piece in pieces[:-2])
    assert pieces[-1].choices == [] and pieces[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({piece.id for piece in pieces}) == 1
    raw = post(api, "/v1/chat/completions", chat(max_tokens=3, stream=True)).text
    assert raw.endswith("data: [DONE]\n\n") and "usage" not in raw
    asked = chat(max_tokens=3, stream=True, stream_options={"include_usage": True})
    told = post(api, "/v1/chat/completions", asked).text
    events = [json.loads(line.removeprefix("data: ")) for line in told.splitlines() if line.startswith("data: {")]
    assert [event["usage"] is None for event in events] == [True] * (len(events) - 1) + [False]


def test_a_piece_of_a_stream_is_a_line_to_every_client():
    """Python's `splitlines`, by which httpx and with it Hugging Face's client go, has many ends of lines."""
    content = {"text": "one\u2028line\u0085, and \x0b no other"}
    line, empty = _event(content).splitlines()
    assert json.loads(line.removeprefix("data: ")) == content and not empty


def test_a_completion_of_a_text_and_of_ids(client, folders):
    tokenizer = load_tokenizer(folders["base"])
    ids = tokenizer.encode_ordinary("The cat")
    tokens = alone(folders["base"], ids, 9, temperature=1.0, seed=5)
    for prompt in ("The cat", ["The cat"], ids, [ids]):
        answer = client.completions.create(model="base", prompt=prompt, max_tokens=9, seed=5, logprobs=2)
        assert answer.choices[0].text == tokenizer.decode([token.id for token in tokens])
        told = answer.choices[0].logprobs
        assert told.token_logprobs == pytest.approx([token.logprob for token in tokens], abs=1e-4)
        assert told.text_offset[0] == 0 and len(told.text_offset) == len(tokens)
        assert all(token in best for token, best in zip(told.tokens, told.top_logprobs, strict=True))
        # The test would show nothing if every token that was drawn were one of the two best.
        assert max(map(len, told.top_logprobs)) == 3


def test_content_in_parts_system_messages_and_fields_that_are_not_known(client, folders):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "What does "}, {"type": "text", "text": "len do?"}]},
    ]
    answer = client.chat.completions.create(
        model="taught",
        messages=messages,
        temperature=0,
        max_tokens=8,
        user="me",
        response_format={"type": "text"},
        extra_body={"whatever": 1, "top_k": 5, "tools": [], "logit_bias": {}},
    )
    same = [{"role": "system", "content": "Be brief.\n\nBe kind."}, MESSAGES[0]]
    ids = prompt_ids(folders["taught"], same)
    tokens = alone(folders["taught"], ids, 8, temperature=0)
    assert answer.choices[0].message.content == load_tokenizer(folders["taught"]).decode([t.id for t in tokens])
    assert answer.usage.prompt_tokens == len(ids)


def test_a_stop_string_is_not_part_of_the_answer(client):
    whole = client.completions.create(model="base", prompt="The", max_tokens=40, seed=1).choices[0].text
    stop = whole[len(whole) // 2 :][:2]
    for asked in (stop, [stop, "never"]):
        answer = client.completions.create(model="base", prompt="The", max_tokens=40, seed=1, stop=asked)
        assert answer.choices[0].text == whole[: whole.index(stop)]
        assert answer.choices[0].finish_reason == "stop"


def test_a_second_turn_tells_what_was_in_the_cache(client):
    first = client.chat.completions.create(**chat(max_tokens=5, temperature=0))
    turns = [*MESSAGES, {"role": "assistant", "content": first.choices[0].message.content}, MESSAGES[0]]
    second = client.chat.completions.create(model="taught", messages=turns, max_tokens=5)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["taught", "base"]
    assert client.models.retrieve("base").owned_by == "llm-scratchbook"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{", 400, None, None),
        (b"\xff\xfe", 400, None, None),
        (b"[]", 400, None, None),
        (b"[" * 100_000, 400, None, None),
        ({}, 400, None, "model"),
        (chat(model="other"), 404, "model_not_found", "model"),
        (chat(messages=[]), 400, None, "messages"),
        (chat(messages="hi"), 400, None, "messages"),
        (chat(messages=[{"role": "robot", "content": "x"}]), 400, None, "messages.0.role"),
        (chat(messages=[{"role": "user", "content": "  "}]), 400, None, "messages"),
        (chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400, None, "messages[0]"),
        (chat(messages=[{"role": "user", "content": "cat " * 1000}]), 400, "context_length_exceeded", "messages"),
        (chat(messages=[{"role": "user", "content": "x" * 500_000}]), 400, "context_length_exceeded", "messages"),
        (chat(n=2), 400, None, "n"),
        (chat(temperature=2.1), 400, None, "temperature"),
        (chat(temperature="hot"), 400, None, "temperature"),
        (chat(top_p=-1), 400, None, "top_p"),
        (chat(max_tokens=0), 400, None, "max_tokens"),
        (chat(stop=["x"] * 17), 400, None, "stop"),
        (chat(stop=""), 400, None, "stop.0"),
        (chat(top_logprobs=3), 400, None, "top_logprobs"),
        (chat(stream="yes"), 400, None, "stream"),
        (chat(model="base"), 400, None, "messages"),
        (chat(tools=[{"type": "function", "function": {"name": "f"}}]), 400, None, "tools"),
        (chat(response_format={"type": "json_object"}), 400, None, "response_format"),
        (chat(logit_bias={"5": 100}), 400, None, "logit_bias"),
    ],
)
def test_what_cannot_be_is_an_error_before_a_stream_begins(api, body, status, code, param):
    for stream in (False, True):
        asked = {**body, "stream": stream} if isinstance(body, dict) and "stream" not in body else body
        answer = post(api, "/v1/chat/completions", asked)
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert error["message"] and error["type"] == "invalid_request_error"
        assert (error["code"], error["param"]) == (code, param)


def test_a_clear_word_for_what_is_no_json(api):
    assert "no JSON" in post(api, "/v1/chat/completions", b"{").json()["error"]["message"]


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_does_not_say_that_it_is_json_is_told_what_to_say(api, kind):
    """A page of a stranger's may send these, and no others, to a server that has not allowed it."""
    headers = {"Authorization": f"Bearer {KEY}"} | ({"Content-Type": kind} if kind else {})
    answer = httpx.post(f"{api.url}/v1/chat/completions", content=json.dumps(chat()).encode(), headers=headers)
    assert answer.status_code == 415 and "application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": {"a": 1}}, "prompt.str"),
        ({"prompt": list(range(100)) * 3}, "prompt"),
        ({"prompt": "a", "top_k": 2**63}, "top_k"),
        ({"prompt": "a", "repetition_penalty": 1e-40}, "repetition_penalty"),
    ],
)
def test_prompts_that_cannot_be(api, body, param):
    answer = post(api, "/v1/completions", {"model": "base"} | body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


def test_nobody_comes_in_without_a_key(api):
    wrong = [f"Bearer {key}".encode() for key in ("wrong", KEY + "x", KEY[:-1], "ü" * 20)]
    for authorization in (None, b"Bearer", KEY.encode(), f"Basic {KEY}".encode(), *wrong):
        headers = {} if authorization is None else {b"Authorization": authorization}
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
            answer = httpx.get(api.url + path, headers=headers)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(api.url + "/health").json() == {"status": "ok"}
    assert (httpx.head(api.url + "/health").status_code, httpx.head(api.url + "/health").content) == (200, b"")


def test_nobody_is_sent_elsewhere_with_a_key(api):
    """A redirect names the scheme that the server itself speaks, http, and the name that the client called it by."""
    for path in ("/v1/chat/completions/", "/health/"):
        answer = post(api, path, chat())
        assert answer.status_code == 404 and "location" not in answer.headers


def test_a_body_that_is_too_large_is_not_read(api):
    for headers in ({}, {"Transfer-Encoding": "chunked"}):

        def parts():
            for _ in range(40):
                yield b"x" * 50_000

        content = parts() if headers else b"x" * 2_000_000
        answer = httpx.post(
            f"{api.url}/v1/chat/completions", content=content, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
        )
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "request_too_large"


def test_a_client_that_leaves_stops_its_computation(api):
    asked = {"model": "base", "prompt": "The cat", "max_tokens": 200, "seed": 1}
    with httpx.stream(
        "POST", f"{api.url}/v1/completions", json=asked | {"stream": True}, headers={"Authorization": f"Bearer {KEY}"}
    ) as stream:
        next(stream.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{api.url}/v1/completions", json=asked, headers={"Authorization": f"Bearer {KEY}"}, timeout=0.02)
    wait_until_idle(api)


@pytest.mark.parametrize("stream", [True, False])
def test_one_that_has_left_before_the_first_piece_stops_it_too(stream, monkeypatch):
    """It has not read what came before on its connection, so that the server waits to send, and goes."""
    engine = ChatEngine(tiny_model(context_length=2048), tokenizer(), None, "base")
    engine.stop_ids = frozenset()
    answers, ask = [], engine.ask

    def noted(*given):
        answers.append(ask(*given))
        return answers[-1]

    monkeypatch.setattr(engine, "ask", noted)
    asked = json.dumps({"model": "base", "prompt": "The cat", "max_tokens": 2000, "stream": stream}).encode()
    coming = iter([{"type": "http.request", "body": asked}])

    async def receive():
        return next(coming, {"type": "http.disconnect"})

    async def send(message):
        await asyncio.sleep(0.1)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}

    async def serve():
        await create_app({"base": engine}, limits=Limits(max_tokens=2000))(scope, receive, send)
        while not answers[0].has_ended:  # the loop runs on, as a server's does
            await asyncio.sleep(0.01)

    asyncio.run(serve())
    assert answers[0].finish == "cancelled"


def wait_until_idle(api):
    end = time.monotonic() + 30
    while api.n_threads("engine"):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_sixty_four_clients_of_which_half_leave(api, folders):
    tokenizer = load_tokenizer(folders["base"])
    headers = {"Authorization": f"Bearer {KEY}"}

    async def stays(http, n):
        body = {"model": "base", "prompt": f"The cat {n}", "max_tokens": 30, "seed": n, "stream": bool(n % 4)}
        answer = await http.post(f"{api.url}/v1/completions", json=body)
        assert answer.status_code == 200
        if not body["stream"]:
            return answer.json()["choices"][0]["text"]
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        assert events[-1] == "[DONE]"
        return "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])

    async def leaves(http, n):
        body = {"model": "base", "prompt": f"The mat {n}", "max_tokens": 200, "seed": n, "stream": True}
        async with http.stream("POST", f"{api.url}/v1/completions", json=body) as stream:
            async for _ in stream.aiter_lines():
                break

    async def all_of_them():
        async with httpx.AsyncClient(headers=headers, timeout=120, limits=httpx.Limits(max_connections=64)) as http:
            return await asyncio.gather(*(stays(http, n) if n % 2 else leaves(http, n) for n in range(64)))

    texts = asyncio.run(all_of_them())
    same = 0
    for n in range(1, 64, 2):
        tokens = alone(folders["base"], tokenizer.encode_ordinary(f"The cat {n}"), 30, seed=n)
        same += texts[n] == tokenizer.decode([token.id for token in tokens])
    assert same >= 31  # in float32, a draw may hang on a rounding
    wait_until_idle(api)


def test_memory_is_flat(api):
    headers = {"Authorization": f"Bearer {KEY}"}

    async def ask(http, n):
        await http.post(f"{api.url}/v1/completions", json={"model": "base", "prompt": f"{n} ", "max_tokens": 4})

    async def many(n):
        async with httpx.AsyncClient(headers=headers, timeout=120) as http:
            for start in range(0, n, 20):
                await asyncio.gather(*(ask(http, i) for i in range(start, start + 20)))

    asyncio.run(many(200))
    before = api.resident()
    asyncio.run(many(400))
    assert api.resident() - before < 20 * 2**20


def test_metrics_and_log_have_figures_and_no_text(api, client):
    client.chat.completions.create(**chat(messages=[{"role": "user", "content": "a secret word: xyzzy"}], max_tokens=3))
    found = httpx.get(f"{api.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    assert 'scratchbook_requests_total{path="/v1/chat/completions",status="200"}' in found
    assert "scratchbook_first_token_seconds_bucket" in found and "scratchbook_open_answers 0.0" in found
    for n in range(3):
        httpx.get(f"{api.url}/nothing/{n}", headers={"Authorization": f"Bearer {KEY}"})
    assert "/nothing" not in httpx.get(f"{api.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    log = api.log.read_text()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert any(line.get("completion_tokens") == 3 for line in lines)
    assert "xyzzy" not in log and KEY not in log and "Traceback" not in log


def test_more_than_may_wait_are_told_to_come_back(folders, tmp_path):
    with serving(folders, tmp_path / "log", "--rows", "1", "--max-waiting", "1", "--max-tokens", "200") as api:
        body = {"model": "base", "prompt": "The cat", "max_tokens": 200, "stream": True}
        headers = {"Authorization": f"Bearer {KEY}"}

        async def ask(http):
            async with http.stream("POST", f"{api.url}/v1/completions", json=body) as stream:
                text = await stream.aread()
                return stream.status_code, stream.headers.get("retry-after"), text

        async def twelve():
            async with httpx.AsyncClient(headers=headers, timeout=120) as http:
                return await asyncio.gather(*(ask(http) for _ in range(12)))

        answers = asyncio.run(twelve())
        statuses = [status for status, _, _ in answers]
        assert set(statuses) == {200, 429} and statuses.count(200) >= 2
        for status, retry, text in answers:
            if status == 429:
                assert retry == "1" and json.loads(text)["error"]["type"] == "rate_limit_error"


def test_there_are_connections_for_as_many_as_may_be_answered(folders, tmp_path):
    flags = ["--rows", "100", "--max-waiting", "0"]
    with serving(folders, tmp_path / "log", *flags) as api, contextlib.ExitStack() as stack:
        for _ in range(200):  # 100 for each of two models
            stack.enter_context(socket.create_connection(("127.0.0.1", api.port)))
        assert httpx.get(f"{api.url}/health").status_code == 200


def test_it_ends_in_order_and_lets_answers_finish(folders, tmp_path):
    with serving(folders, tmp_path / "log") as api:
        body = {"model": "base", "prompt": "The cat", "max_tokens": 100, "seed": 3, "stream": True}
        with httpx.stream(
            "POST", f"{api.url}/v1/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
        ) as stream:
            lines = stream.iter_lines()
            next(lines)
            api.process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert api.process.wait(30) in (0, -signal.SIGTERM)
        assert "Traceback" not in api.log.read_text()


@pytest.mark.parametrize(
    ("seconds", "signals"),
    [("1", [signal.SIGTERM]), ("0", [signal.SIGINT]), ("600", [signal.SIGINT, signal.SIGINT])],
)
def test_answers_that_take_too_long_end_where_they_are(seconds, signals, tmp_path):
    """Those who stream and those who do not; after a second signal at once."""
    folders = {"base": model_folder(tmp_path / "base", None, context_length=8192)}
    flags = ["--shutdown-seconds", seconds, "--rows", "4", "--max-tokens", "8000"]
    asked = {"model": "base", "prompt": "The cat", "max_tokens": 8000, "temperature": 0}
    asked["frequency_penalty"] = -2  # what is there once comes again: a text that has no end

    async def ask(http, stream):
        answer = await http.post("/v1/completions", json=asked | {"stream": stream})
        if not stream:
            return answer.json()["choices"][0]
        events = answer.text.split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        return json.loads(events[-3].removeprefix("data: "))["choices"][0]

    async def ask_and_stop(api):
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=api.url, headers=headers, timeout=60) as http:
            answers = [asyncio.create_task(ask(http, n % 2 == 0)) for n in range(8)]
            while not (await http.get("/metrics")).text.count("scratchbook_open_answers 8.0"):
                await asyncio.sleep(0.01)
            for number in signals:
                api.process.send_signal(number)
                await asyncio.sleep(0.3)
            return await asyncio.gather(*answers)

    with serving(folders, tmp_path / "log", *flags) as api:
        assert {answer["finish_reason"] for answer in asyncio.run(ask_and_stop(api))} == {"length"}
        assert api.process.wait(30) in (0, -signal.SIGTERM)
        log = api.log.read_text()
        assert "Traceback" not in log and "ERROR" not in log


def test_a_slow_reader_keeps_nobody_waiting(api, client):
    slow = socket.create_connection(("127.0.0.1", api.port))
    body = json.dumps({"model": "base", "prompt": "The cat", "max_tokens": 200, "stream": True})
    slow.sendall(
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    assert client.completions.create(model="base", prompt="The mat", max_tokens=5).usage.completion_tokens <= 5
    slow.close()
    wait_until_idle(api)


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (["--host", "0.0.0.0"], {}, "there is no key: set SCRATCHBOOK_API_KEYS"),
        ([], {"SCRATCHBOOK_API_KEYS": "short"}, "less than 16 characters"),
        ([], {"SCRATCHBOOK_API_KEYS": "ü" * 20}, "characters that no header carries"),
        ([], {"SCRATCHBOOK_API_KEYS": "one key in a line\nand another one"}, "characters that no header carries"),
        (["--model", "nowhere/model"], {}, "nowhere/model"),
        (["--model", ""], {}, "--model needs a model folder"),
        (["--model", "FOLDER", "--name", " "], {}, "a --name is empty"),
        (["--model", "FOLDER", "FOLDER"], {}, "tell them apart by --name"),
        (["--model", "FOLDER", "--name", "a", "b"], {}, "2 names for 1 models"),
        (["--port", "99999"], {}, "--port is from 1 to 65535"),
        (["--port", "0"], {}, "--port is from 1 to 65535"),
        (["--model", "FOLDER", "--max-tokens", "0"], {}, "--max-tokens and --max-body-bytes are at least 1"),
        (["--model", "FOLDER", "--shutdown-seconds", "-1"], {}, "--shutdown-seconds at least 0"),
        (["--host", "203.0.113.1"], {"SCRATCHBOOK_API_KEYS": KEY}, "cannot listen at 203.0.113.1, port 8001"),
    ],
)
def test_mistakes_at_the_start_are_a_line(folders, flags, environment, message):
    flags = [str(folders["base"]) if flag == "FOLDER" else flag for flag in flags]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "SCRATCHBOOK_API_KEYS": ""} | environment
    done = subprocess.run(
        [sys.executable, "deployment/api.py", *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(api, run):
    done = run("deployment/api.py", "--model", "nowhere/model", "--port", api.port, SCRATCHBOOK_API_KEYS="")
    assert done.returncode == 2 and f"cannot listen at 127.0.0.1, port {api.port}" in done.stderr
    assert "Serving" not in done.stdout and len(done.stderr.splitlines()) == 1


def test_another_client_that_people_use(api, monkeypatch):
    """Hugging Face's own, which parses answers by itself."""
    from huggingface_hub import InferenceClient

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it would not even ask this machine
    client = InferenceClient(base_url=f"{api.url}/v1", api_key=KEY)
    answer = client.chat_completion(MESSAGES, model="taught", max_tokens=6, seed=3, temperature=1.0)
    text = ""
    for piece in client.chat_completion(MESSAGES, model="taught", max_tokens=6, seed=3, temperature=1.0, stream=True):
        text += (piece.choices[0].delta.content or "") if piece.choices else ""
    assert text == answer.choices[0].message.content
    assert answer.usage.completion_tokens <= 6


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_whatever_is_in_a_field_nothing_breaks(api, path):
    """Every field that the server's own OpenAPI description names, with any JSON in it."""
    headers = {"Authorization": f"Bearer {KEY}"}
    described = httpx.get(f"{api.url}/openapi.json", headers=headers).json()
    reference = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    fields = sorted(described["components"]["schemas"][reference.split("/")[-1]]["properties"])
    assert {"model", "temperature", "stop", "stream", "seed"} <= set(fields)
    good = {"model": "taught", "messages": MESSAGES, "prompt": "The cat", "max_tokens": 2}

    with httpx.Client(base_url=api.url, headers=headers | {"Content-Type": "application/json"}, timeout=60) as http:

        @settings(max_examples=150, deadline=None)
        @given(st.dictionaries(st.sampled_from(fields), json_values, min_size=1, max_size=2))
        def fuzz(wrong):
            answer = http.post(path, content=json.dumps(good | wrong).encode())
            assert answer.status_code in (200, 400, 404), (wrong, answer.text)
            if answer.status_code != 200:
                assert answer.json()["error"]["message"]

        fuzz()
    assert "Traceback" not in api.log.read_text()
