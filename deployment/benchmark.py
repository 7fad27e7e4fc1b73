"""What a served token costs: many clients ask the API over HTTP; how fast is it, how long do they wait, for how much?

python deployment/benchmark.py                                                    # the model of `make demo`
python deployment/benchmark.py --shape gpt2-124m --clients 1 4 16          # random weights cost the same
python deployment/benchmark.py --url https://... --served NAME --dollars-an-hour 0.8 --name L4    # what runs elsewhere

Two kinds of load, for two questions:

    closed    N clients, each of whom asks again as soon as it has its answer: how many tokens can the server write?
    open      answers are asked for at moments that have nothing to do with the server (a Poisson process), at shares of
              what the closed load reached: how long do people wait, if they come when they like?

Waiting is counted from the moment when a question was due, so that a server which holds up the clients cannot hide it.
Tokens are those that the server reports; on a server that was started here they are compared with its /metrics.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import aiohttp
import torch
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from chat_ui.benchmark import load_or_make
from chat_ui.chat_engine import ChatEngine
from deployment.api import create_app
from deployment.modal_common import DOLLARS_A_CORE_SECOND, PRICES_OF, proxy_token
from utils.addresses import free_port
from utils.context_report import where
from utils.device_benchmarking import describe_device
from utils.devices import pick_device
from utils.errors import EXIT_USER_ERROR, UserError, one_line, run_command
from utils.files import require_writable, write_json
from utils.readme_tables import markdown_table, read_results, require_markers, write_block
from utils.tracking import provenance

CHAPTER = Path(__file__).parent
PATIENCE = 600.0  # seconds that a client waits for the next piece


@dataclass(frozen=True)
class ServedBenchmark:
    """The flags of this script."""

    model: str | None = None
    """A model folder or a name on the hub; it needs a --name. runs/demo/instruct/model if nothing is given."""
    shape: Literal["gpt2-124m"] | None = None
    """A model of random weights in place of a folder."""
    url: str | None = None
    """A server that runs already, in place of one that is started here; its key is SCRATCHBOOK_API_KEY's value, and one
    on Modal has its proxy's token from MODAL_PROXY_KEY and MODAL_PROXY_SECRET."""
    served: str | None = None
    """What that server calls the model; the first of its list if not given."""
    name: str | None = None
    """What it is called in the table, and the name of the JSON file; the shape, or "demo", if not given."""
    clients: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """How many ask at a time, in the closed load."""
    shares: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    """Of the most answers a second that the closed load reached: the rates of the open load."""
    prompt_tokens: int = 48
    """Ids of each question, drawn at random."""
    new_tokens: int = 48
    """Tokens of an answer, on average: each is given from half to one and a half times as many."""
    seconds: float = 20
    """For each load."""
    threads: int = 2
    """Of torch in the server, on a CPU."""
    device: str = "auto"
    """The server's: auto, cpu, cuda, cuda:1 or mps."""
    dollars_an_hour: float | None = None
    """What the machine costs; if not given, as many cores as it has threads at Modal's price."""
    out: Path = CHAPTER / "results"
    """The folder for NAME.json; the tables are made of all that are in it."""
    readme: Path = CHAPTER / "README.md"
    """The README with the tables, between <!-- served:begin --> and <!-- served:end -->."""
    report_only: bool = False
    """Make the tables from the JSON files as they are."""

    def __post_init__(self) -> None:
        if sum(one is not None for one in (self.model, self.shape, self.url)) > 1:
            raise UserError("--model, --shape and --url are three ways to say which model: give one")
        if (self.url or self.model) and not self.name:
            raise UserError("give --name, too: it names the JSON file and the rows of the table")
        if self.name and Path(self.name).name != self.name:
            raise UserError(f"--name {self.name} cannot name a file: give one without a slash")
        if self.url and self.dollars_an_hour is None:
            raise UserError("what a server elsewhere costs is not known here: give --dollars-an-hour, too")
        if self.served and not self.url:
            raise UserError("--served is for a server that runs already: give --url, too")
        numbers = (*self.clients, self.prompt_tokens, self.new_tokens - 1, self.threads)
        if not self.clients or min(numbers) < 1 or not self.seconds > 0:
            raise UserError("--clients, --prompt-tokens, --threads and --seconds are at least 1, --new-tokens 2")
        if not all(0 < share < 1 for share in self.shares):
            raise UserError("--shares are between 0 and 1: at 1 the queue has no end")
        if self.dollars_an_hour is not None and not self.dollars_an_hour > 0:
            raise UserError(f"--dollars-an-hour must be above 0, got {self.dollars_an_hour}")

    @property
    def price(self) -> float:
        """Dollars an hour."""
        return self.dollars_an_hour or 3600 * self.threads * DOLLARS_A_CORE_SECOND


@dataclass(frozen=True)
class Asked:
    """An answer as its client saw it, in seconds since the load began."""

    due: float
    """When it was to be asked for."""
    first: float
    """The first piece of text."""
    last: float
    """The end of the stream."""
    prompt: int
    """Tokens read."""
    new: int
    """Tokens written."""

    def tokens_before(self, end: float) -> float:
        """Tokens until then, as if they came evenly."""
        if self.last <= end:
            return self.new
        return self.new * max(end - self.first, 0) / (self.last - self.first)


class Client:
    """Who asks one server.

    Args:
        http: with the server's address and key.
        model: what the server calls it.
        options: how long questions and answers are.
        n_vocab: ids of questions are below this.
    """

    def __init__(
        self, http: aiohttp.ClientSession, model: str, options: ServedBenchmark, n_vocab: int, seed: int
    ) -> None:
        self.http, self.model, self.options, self.n_vocab = http, model, options, n_vocab
        self.random = random.Random(seed)
        self.started = perf_counter()
        self.refused = 0

    def now(self) -> float:
        """Seconds since the load began."""
        return perf_counter() - self.started

    def question(self) -> dict[str, Any]:
        """The next request. No two begin alike, so that nothing that was read can be used again."""
        n = self.options.new_tokens
        return {
            "model": self.model,
            "prompt": [self.random.randrange(self.n_vocab) for _ in range(self.options.prompt_tokens)],
            "max_tokens": self.random.randint(max(n // 2, 1), n + n // 2),
            "seed": self.random.getrandbits(31),
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    async def ask(self, question: dict[str, Any], due: float) -> Asked | None:
        """Asks, and reads the stream to its end; None where the server has told it to come back (429)."""
        first, usage = None, None
        async with self.http.post("/v1/completions", json=question) as response:
            if response.status == 429:
                self.refused += 1
                return None
            if response.status != 200:
                told = await response.text(errors="replace")
                raise UserError(f"{response.url} answers {response.status}: {told[:200]}")
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                piece = json.loads(line.removeprefix(b"data: "))
                if "error" in piece:
                    raise UserError(f"{response.url} ended a stream: {piece['error']['message']}")
                usage = piece.get("usage") or usage
                if first is None and piece["choices"]:
                    first = self.now()
        if first is None or usage is None:
            raise UserError(f"{response.url} ended a stream without saying how many tokens it has")
        return Asked(due, first, self.now(), usage["prompt_tokens"], usage["completion_tokens"])


async def closed_load(client: Client, clients: int, seconds: float) -> list[Asked]:
    """So many clients, each of whom asks again as soon as it has its answer."""

    async def again_and_again() -> list[Asked]:
        had: list[Asked] = []
        while (due := client.now()) < seconds:
            if (asked := await client.ask(client.question(), due)) is None:
                raise UserError("the server tells clients to come back: it has fewer places than --clients")
            had.append(asked)
        return had

    lists = await asyncio.gather(*(again_and_again() for _ in range(clients)))
    return sorted((asked for some in lists for asked in some), key=lambda asked: asked.due)


async def open_load(client: Client, rate: float, seconds: float) -> list[Asked]:
    """Questions at `rate` a second on average, which wait for nobody."""
    asked: list[asyncio.Task[Asked | None]] = []
    due = client.random.expovariate(rate)
    while due < seconds:
        await asyncio.sleep(due - client.now())
        asked.append(asyncio.create_task(client.ask(client.question(), due)))
        due += client.random.expovariate(rate)
    return [one for one in await asyncio.gather(*asked) if one is not None]


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    return sorted(values)[max(int(-(-share * len(values) // 1)) - 1, 0)]


def summary(asked: Sequence[Asked], seconds: float) -> dict[str, float]:
    """What a load came to: tokens and answers a second, and seconds that clients waited.

    Tokens count until `seconds`, when clients stop asking: what comes later comes from a server that empties.
    """
    waits = [one.first - one.due for one in asked]
    between = [(one.last - one.first) / (one.new - 1) for one in asked if one.new > 1]
    tokens_per_second = sum(one.tokens_before(seconds) for one in asked) / seconds
    return {
        "tokens_per_second": tokens_per_second,
        "answers_per_second": tokens_per_second / (statistics.mean(one.new for one in asked) or 1),
        "first_median": statistics.median(waits),
        "first_95": quantile(waits, 0.95),
        "token_median": statistics.median(between) if between else 0.0,
        "token_95": quantile(between, 0.95) if between else 0.0,
        "whole_median": statistics.median(one.last - one.due for one in asked),
    }


def dollars_a_million(dollars_an_hour: float, tokens_per_second: float) -> float:
    """What a million tokens cost, of a machine that writes so many a second."""
    return dollars_an_hour / 3600 / tokens_per_second * 1e6


def serve(options: ServedBenchmark, port: int) -> None:
    """The server, in a process of its own."""
    torch.set_num_threads(options.threads)
    try:
        model, tokenizer = load_or_make(options.model, options.shape, options.device)
    except (UserError, ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    engine = ChatEngine(model, tokenizer, None, "served", n_rows=max(options.clients), max_waiting=10_000)
    engine.stop_ids = frozenset()  # an answer has the length that was asked for
    uvicorn.run(create_app({"served": engine}), host="127.0.0.1", port=port, log_level="warning", access_log=False)


@asynccontextmanager
async def running_server(options: ServedBenchmark) -> AsyncIterator[aiohttp.ClientSession]:
    """HTTP to the server at --url, or to one that runs while the block does."""
    if options.url:
        key = os.environ.get("SCRATCHBOOK_API_KEY")
        headers = proxy_token() | ({"Authorization": f"Bearer {key}"} if key else {})
        async with http_to(options.url.rstrip("/").removesuffix("/v1"), headers) as http:
            yield http
        return
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(options, port))
    process.start()
    try:
        async with http_to(f"http://127.0.0.1:{port}") as http:
            await _until_it_answers(http, process)
            yield http
    finally:
        process.terminate()
        process.join(30)
        if process.is_alive():
            process.kill()


def http_to(url: str, headers: Mapping[str, str] | None = None) -> aiohttp.ClientSession:
    """Connections to a server, as many as there are clients.

    They are aiohttp's, which takes little of the processor for each piece of a stream: it may be the server's own.

    Raises:
        UserError: that is no URL of a server.
    """
    try:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=PATIENCE, sock_read=PATIENCE)
        return aiohttp.ClientSession(url, headers=headers, timeout=timeout, connector=aiohttp.TCPConnector(limit=0))
    except ValueError as error:
        raise UserError(f"{url}: {error}") from None


async def _until_it_answers(http: aiohttp.ClientSession, process: Any) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.is_alive():
        try:
            async with http.get("/health"):
                return
        except aiohttp.ClientError:
            await asyncio.sleep(0.1)
    raise UserError("the server did not start: what it said stands above")


async def contexts_of(http: aiohttp.ClientSession) -> dict[str, int]:
    """The models that a server has, and the length of each one's context.

    Raises:
        UserError: it is no such server, or wants a key.
    """
    async with http.get("/v1/models") as answer:
        if answer.status == 401:
            names = "SCRATCHBOOK_API_KEY, and for Modal's door MODAL_PROXY_KEY and MODAL_PROXY_SECRET"
            raise UserError(f"{answer.url} wants a key: set {names}")
        try:
            content = json.loads(await answer.read())
            contexts = {one["id"]: one["context_length"] for one in content["data"]} if answer.ok else {}
        except (ValueError, KeyError, TypeError):
            contexts = {}
        if not contexts:
            raise UserError(f"{answer.url} answers {answer.status}, and lists no model as ours does")
        return contexts


async def written_by(http: aiohttp.ClientSession) -> float:
    """Tokens that the server says it has written."""
    async with http.get("/metrics", raise_for_status=True) as answer:
        told = await answer.text()
    for family in text_string_to_metric_families(told):
        for sample in family.samples:
            if sample.name == "scratchbook_tokens_total" and sample.labels == {"kind": "completion"}:
                return sample.value
    return 0.0


async def measure(options: ServedBenchmark) -> dict[str, Any]:
    """The contents of the JSON file."""
    async with running_server(options) as http:
        contexts = await contexts_of(http)
        served = options.served or next(iter(contexts))
        context = contexts.get(served)
        if context is None:
            raise UserError(f"there is no model {served!r}: there is {', '.join(contexts)}")
        if options.prompt_tokens + 3 * options.new_tokens // 2 > context:
            raise UserError(f"questions and answers do not fit the model's context of {context}: make them shorter")
        seeds = iter(range(10**9))

        def new_client() -> Client:
            return Client(http, served, options, n_vocab=256, seed=next(seeds))

        await closed_load(new_client(), max(options.clients), 0.01)  # a server that has just started is slow
        closed: list[dict[str, Any]] = []
        opened: list[dict[str, Any]] = []
        for clients in options.clients:
            before = 0 if options.url else await written_by(http)
            asked = await closed_load(new_client(), clients, options.seconds)
            if not any(one.tokens_before(options.seconds) for one in asked):
                raise UserError(f"not a token has come in {options.seconds:g} seconds: give more --seconds")
            if not options.url and (written := await written_by(http) - before) != sum(one.new for one in asked):
                raise UserError(f"the server counts {written:.0f} tokens, the clients {sum(one.new for one in asked)}")
            closed.append({"clients": clients} | summary(asked, options.seconds) | {"asked": rounded(asked)})
            print(f"{clients} clients: {told(closed[-1])}", flush=True)
        most = max(row["answers_per_second"] for row in closed)
        for share in options.shares:
            client = new_client()
            asked = await open_load(client, share * most, options.seconds)
            if not asked:
                raise UserError(f"nobody has asked in {options.seconds:g} seconds: give more --seconds")
            row = {"share": share, "rate": share * most, "refused": client.refused}
            opened.append(row | summary(asked, options.seconds) | {"asked": rounded(asked)})
            print(f"{share:.0%} of {most:.2f} answers/s: {told(opened[-1])}", flush=True)
    machine = None if options.url else describe_device(pick_device(options.device), options.threads)
    return {
        **provenance(),
        "machine": machine,
        "name": options.name or options.shape or "demo",
        "context_length": context,
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "seconds": options.seconds,
        "dollars_an_hour": options.price,
        "prices_of": "the --dollars-an-hour that was given" if options.dollars_an_hour else PRICES_OF,
        "closed": closed,
        "open": opened,
    }


def rounded(asked: Sequence[Asked]) -> list[dict[str, float]]:
    """The answers for the JSON file, to the tenth of a millisecond."""
    return [{name: round(value, 4) for name, value in asdict(one).items()} for one in asked]


def told(row: dict[str, Any]) -> str:
    """A load in a line."""
    return (
        f"{row['tokens_per_second']:,.0f} tokens/s, first token after {row['first_median']:.3f} s "
        f"(95 %: {row['first_95']:.3f}), then one every {1e3 * row['token_median']:.1f} ms"
    )


def tables(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The table of the closed load, and that of the open one."""
    waits = ["first token, s (95 %)", "a token, ms (95 %)"]
    rows = [
        [
            result["name"],
            str(row["clients"]),
            f"{row['tokens_per_second']:,.0f}",
            *waiting(row),
            f"{dollars_a_million(result['dollars_an_hour'], row['tokens_per_second']):.3f}",
        ]
        for result in results
        for row in result["closed"]
    ]
    yield markdown_table(["model", "clients", "tokens/s", *waits, "$ a million tokens"], rows, "lrrrrr")
    rows = [
        [result["name"], f"{row['share']:.0%}", f"{row['rate']:.2f}", *waiting(row), str(row["refused"])]
        for result in results
        for row in result["open"]
    ]
    yield markdown_table(["model", "of the most", "questions/s", *waits, "refused"], rows, "lrrrrr")


def waiting(row: dict[str, Any]) -> list[str]:
    """What clients waited, for a table."""
    return [
        f"{row['first_median']:.2f} ({row['first_95']:.2f})",
        f"{1e3 * row['token_median']:.1f} ({1e3 * row['token_95']:.1f})",
    ]


def measured_on(result: dict[str, Any]) -> str:
    """The machine of a result's server; of one that was at --url nothing is known but its name."""
    return where(result) if result["machine"] else "a server elsewhere"


def report(results: Sequence[dict[str, Any]]) -> str:
    """What stands in the README."""
    measured = "; ".join(
        f"{result['name']}: {result['prompt_tokens']} tokens each and an answer of {result['new_tokens']} on average, "
        f"{result['seconds']:g} s a row, on {measured_on(result)}, ${result['dollars_an_hour']:.3f} an hour "
        f"(prices: {result['prices_of']})"
        for result in results
    )
    closed, opened = tables(results)
    return (
        f"Over HTTP, clients and server on the same machine where it was started here. {measured}.\n\nEach client asks "
        f"again as soon as it has its answer:\n\n{closed}\n\nPeople come when they like, at a share of the most "
        f"answers a second above:\n\n{opened}"
    )


def main(options: ServedBenchmark) -> None:
    require_markers(options.readme, "served")
    if not options.report_only:
        require_writable(options.out)
        try:
            result = asyncio.run(measure(options))
        except (aiohttp.ClientError, TimeoutError) as error:
            server = options.url or "the server that was started here"
            raise UserError(f"{server}: {error or type(error).__name__}") from None
        write_json(options.out / f"{result['name']}.json", result)
        print(f"Wrote {options.out / result['name']}.json")
    made = report(read_results(options.out))
    print(made)
    write_block(options.readme, "served", made)
    print(f"Wrote the tables in {options.readme}")


if __name__ == "__main__":
    run_command(main, ServedBenchmark)
