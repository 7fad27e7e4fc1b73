"""The benchmark of the API: what it counts, and how, against a server with a known pace and against the real one."""

from __future__ import annotations

import asyncio
import json
import random
import re
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from deployment.benchmark import (
    Asked,
    Client,
    ServedBenchmark,
    closed_load,
    contexts_of,
    dollars_a_million,
    http_to,
    main,
    open_load,
    quantile,
    running_server,
    summary,
)
from tests.chat_ui.helpers import model_folder
from tests.deployment.serving import KEY, serving
from utils.errors import UserError
from utils.files import read_json


def test_figures_of_a_load_by_hand():
    one = Asked(due=0.0, first=1.0, last=5.0, prompt=3, new=9)  # 1 s of waiting, then a token each half second
    two = Asked(due=2.0, first=2.5, last=12.5, prompt=3, new=11)  # and one each second, three quarters of it in time
    assert summary([one, two], 10.0) == {
        "tokens_per_second": pytest.approx((9 + 11 * 0.75) / 10),
        "answers_per_second": pytest.approx((9 + 11 * 0.75) / 10 / 10),
        "first_median": pytest.approx(0.75),
        "first_95": pytest.approx(1.0),
        "token_median": pytest.approx(0.75),
        "token_95": pytest.approx(1.0),
        "whole_median": pytest.approx((5 + 10.5) / 2),
    }
    assert two.tokens_before(2.0) == 0.0


def test_a_quantile_is_what_so_many_do_not_exceed():
    values = list(range(1, 101))
    random.Random(0).shuffle(values)
    assert [quantile(values, share) for share in (0.01, 0.5, 0.95, 1.0)] == [1, 50, 95, 100]
    assert quantile([7.0], 0.95) == 7.0


def test_a_million_tokens_of_a_machine_for_a_dollar_an_hour():
    assert dollars_a_million(1.0, 1e6 / 3600) == pytest.approx(1.0)
    assert dollars_a_million(3.6, 100) == pytest.approx(10.0)


class Paced:
    """A server that serves one after another, each in `seconds`, and writes what was asked for."""

    def __init__(self, seconds: float, refuse_beyond: int = 10**9) -> None:
        self.seconds, self.refuse_beyond = seconds, refuse_beyond
        self.lock, self.inside, self.most = asyncio.Lock(), 0, 0

    async def __call__(self, request: web.BaseRequest) -> web.Response:
        asked = await request.json()
        if self.inside >= self.refuse_beyond:
            return web.Response(status=429)
        self.inside += 1
        self.most = max(self.most, self.inside)
        async with self.lock:
            await asyncio.sleep(self.seconds)
        self.inside -= 1
        usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": asked["max_tokens"]}
        pieces = [{"choices": [{"text": "a"}]}, {"choices": [], "usage": usage}]
        return web.Response(text="".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces))


OPTIONS = ServedBenchmark(prompt_tokens=4, new_tokens=10)


@asynccontextmanager
async def connected(answer):
    """Connections to a server that answers so."""
    async with RawTestServer(answer) as server, http_to(str(server.make_url("/"))) as http:
        yield http


async def loaded(load, answer, *arguments):
    async with connected(answer) as http:
        client = Client(http, "paced", OPTIONS, 256, seed=1)
        return client, await load(client, *arguments)


def test_a_closed_load_has_as_many_questions_at_a_time_as_clients():
    transport = Paced(0.01)
    _, asked = asyncio.run(loaded(closed_load, transport, 5, 0.3))
    assert transport.most == 5 and len(asked) >= 5
    assert all(5 <= one.new <= 15 and one.prompt == 4 for one in asked)
    assert len({one.new for one in asked}) > 1


def test_an_open_load_does_not_wait_for_the_server_and_counts_from_when_a_question_was_due():
    # The server takes 0.1 s for each and has 50 a second: the last ones wait for nearly all those before.
    transport = Paced(0.1)
    _, asked = asyncio.run(loaded(open_load, transport, 50.0, 0.6))
    assert transport.most > 15
    waits = [one.first - one.due for one in sorted(asked, key=lambda one: one.due)]
    assert waits[-1] > 0.1 * (len(asked) - 1) - 0.6
    assert max(one.due for one in asked) < 0.6


def test_who_is_told_to_come_back_is_counted_in_the_open_load_and_ends_the_closed_one():
    client, asked = asyncio.run(loaded(open_load, Paced(0.2, refuse_beyond=2), 40.0, 0.5))
    assert client.refused > 0 and len(asked) >= 2
    with pytest.raises(UserError, match="fewer places than --clients"):
        asyncio.run(loaded(closed_load, Paced(0.05, refuse_beyond=2), 5, 0.2))


class Broken:
    def __init__(self, status, text):
        self.status, self.text = status, text

    async def __call__(self, request):
        return web.Response(status=self.status, text=self.text)


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (401, "a key is needed", "answers 401: a key is needed"),
        (200, 'data: {"error": {"message": "it failed"}}\n\n', "ended a stream: it failed"),
        (200, 'data: {"choices": [{"text": "a"}]}\n\n', "without saying how many tokens"),
    ],
)
def test_a_server_that_fails_ends_the_benchmark_with_a_line(status, text, message):
    with pytest.raises(UserError, match=message):
        asyncio.run(loaded(closed_load, Broken(status, text), 1, 0.1))


def test_the_real_server_is_measured_and_both_sides_count_the_same(tmp_path):
    folder, readme = model_folder(tmp_path / "model", layout=None), tmp_path / "README.md"
    readme.write_text("<!-- served:begin -->\n<!-- served:end -->\n")
    options = ServedBenchmark(
        model=str(folder),
        name="tiny",
        clients=(1, 3),
        shares=(0.5,),
        prompt_tokens=5,
        new_tokens=6,
        seconds=0.5,
        threads=1,
        device="cpu",
        out=tmp_path / "results",
        readme=readme,
    )
    main(options)
    result = read_json(tmp_path / "results" / "tiny.json")
    assert [row["clients"] for row in result["closed"]] == [1, 3]
    for row in result["closed"] + result["open"]:
        assert all(one["due"] <= one["first"] <= one["last"] and one["prompt"] == 5 for one in row["asked"])
        assert all(3 <= one["new"] <= 9 for one in row["asked"])
        assert row == row | summary([Asked(**one) for one in row["asked"]], 0.5) | {
            name: pytest.approx(row[name], rel=0.05, abs=2e-3)
            for name in row
            if name.endswith(("median", "95", "second"))
        }
    assert "tiny: 5 tokens each and an answer of 6 on average" in readme.read_text()


def test_a_server_that_runs_already_is_measured_with_its_key(tmp_path, monkeypatch):
    folder, readme = model_folder(tmp_path / "model", layout=None), tmp_path / "README.md"
    readme.write_text("<!-- served:begin -->\n<!-- served:end -->\n")
    monkeypatch.setenv("SCRATCHBOOK_API_KEY", KEY)
    with serving({"tiny": folder}, tmp_path / "log") as api:
        options = ServedBenchmark(
            url=f"{api.url}/v1",
            served="tiny",
            name="there",
            clients=(2,),
            shares=(0.5,),
            prompt_tokens=5,
            new_tokens=6,
            seconds=0.5,
            dollars_an_hour=0.8,
            out=tmp_path / "results",
            readme=readme,
        )
        main(options)
    result = read_json(tmp_path / "results" / "there.json")
    assert result["machine"] is None and result["dollars_an_hour"] == 0.8
    assert "on a server elsewhere, $0.800 an hour" in readme.read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model": "a", "shape": "gpt2-124m"}, "give one"),
        ({"model": "a"}, "give --name"),
        ({"url": "http://127.0.0.1:1", "name": "there"}, "give --dollars-an-hour"),
        ({"served": "a"}, "give --url"),
        ({"clients": ()}, "--clients"),
        ({"new_tokens": 1}, "--new-tokens 2"),
        ({"seconds": 0}, "--seconds"),
        ({"shares": (1.0,)}, "the queue has no end"),
        ({"dollars_an_hour": -1.0}, "--dollars-an-hour must be above 0"),
        ({"name": "results/mine"}, "without a slash"),
    ],
)
def test_flags_that_cannot_be(flags, message):
    with pytest.raises(UserError, match=message):
        ServedBenchmark(**flags)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "127.0.0.1:9", "http://["])
def test_a_server_that_is_not_there_is_said_in_a_line(url, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- served:begin -->\n<!-- served:end -->\n")
    options = ServedBenchmark(url=url, name="nowhere", dollars_an_hour=1.0, out=tmp_path, readme=readme)
    with pytest.raises(UserError, match=f"{re.escape(url)}: "):
        main(options)


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (401, "{}", "set SCRATCHBOOK_API_KEY"),
        (404, "nothing here", "/v1/models answers 404"),
        (200, "<html>", "lists no model"),
        (200, "[]", "lists no model"),
        (200, '{"data": []}', "lists no model"),
        (200, '{"data": [{"id": "of another program"}]}', "lists no model"),
    ],
)
def test_what_is_no_such_server_is_said_in_a_line(status, text, message):
    async def ask():
        async with connected(Broken(status, text)) as http:
            await contexts_of(http)

    with pytest.raises(UserError, match=message):
        asyncio.run(ask())


@pytest.mark.parametrize(
    ("flags", "message"),
    [({"device": "tpu"}, "the server did not start"), ({"seconds": 1e-9}, "give more --seconds")],
)
def test_a_server_that_does_not_start_and_one_that_has_no_time_are_said_in_a_line(flags, message, tmp_path, capfd):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- served:begin -->\n<!-- served:end -->\n")
    folder = model_folder(tmp_path / "model", layout=None)
    tiny = {"clients": (1,), "prompt_tokens": 5, "new_tokens": 6, "threads": 1, "device": "cpu"}
    options = ServedBenchmark(model=str(folder), name="tiny", out=tmp_path, readme=readme, **tiny | flags)
    with pytest.raises(UserError, match=message):
        main(options)
    assert "Traceback" not in capfd.readouterr().err


def test_a_server_on_modal_is_sent_its_key_and_the_token_of_modals_door(monkeypatch):
    for name, value in {"MODAL_PROXY_KEY": "wk-1", "MODAL_PROXY_SECRET": "ws-1", "SCRATCHBOOK_API_KEY": "k"}.items():
        monkeypatch.setenv(name, value)

    async def headers():
        async with running_server(ServedBenchmark(url="http://there", name="L4", dollars_an_hour=0.8)) as http:
            return http.headers

    sent = asyncio.run(headers())
    assert (sent["modal-key"], sent["modal-secret"], sent["authorization"]) == ("wk-1", "ws-1", "Bearer k")
