"""How many people one model can talk to at once: the engine against serving them one after another.

python chat_ui/benchmark.py --model runs/demo/instruct/model
python chat_ui/benchmark.py --shape gpt2-124m               # random weights cost the same

N users ask at the same moment, each its own question. Three ways to serve them, by turns in the same run:

    one at a time    a lock around the model: whoever comes next waits until the one before has all of its answer
    the engine       continuous batching in a thread, with streams of text and all that the chat needs
    one batch        `generate_tokens` of all: without any of that, but nobody may come later or be done earlier

What counts is tokens a second of all users together, and how long they wait for their first token. All answers are
greedy and of one length; before anything is timed, the engine's are compared with those that are written alone.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from tqdm import tqdm

from chat_ui.chat_engine import Answer, ChatEngine, Piece, Prompt, Wish
from gpt_model import GPT, Sampling, generate_tokens, load_model, load_tokenizer
from gpt_model.gpt import GPT2_124M, GPTConfig
from utils.context_report import where
from utils.device_benchmarking import describe_device
from utils.devices import pick_device
from utils.errors import UserError, run_command
from utils.files import require_writable, write_json
from utils.readme_tables import markdown_table, read_results, require_markers, write_block
from utils.tracking import provenance
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.bytepair_enc.bpe import END_OF_TEXT
from working_with_text_data.bytepair_enc.patterns import GPT2_PATTERN

CHAPTER = Path(__file__).parent
GREEDY = Sampling(temperature=0)
SHAPES: dict[str, GPTConfig] = {"gpt2-124m": GPT2_124M}
WAYS = ("one at a time", "the engine", "one batch")


@dataclass(frozen=True)
class ChatBenchmark:
    """The flags of this script."""

    model: str | None = None
    """A model folder; runs/demo/instruct/model if neither this nor a shape is given."""
    shape: Literal["gpt2-124m"] | None = None
    """A model of random weights in place of a folder."""
    name: str | None = None
    """What the model is called in the table, and the name of the JSON file; if not given, the shape or "demo"."""
    users: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """How many ask at once."""
    prompt_tokens: int = 48
    """Tokens of each question."""
    new_tokens: int = 64
    """Tokens of each answer."""
    repeats: int = 3
    """Turns; figures are medians."""
    threads: int = 2
    """Of torch, on a CPU."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    out: Path = CHAPTER / "results"
    """The folder for NAME.json; the table is made of all that are in it."""
    readme: Path = CHAPTER / "README.md"
    """The README with the table, between <!-- chat:begin --> and <!-- chat:end -->."""
    report_only: bool = False
    """Make the table from the JSON files as they are."""

    def __post_init__(self) -> None:
        if self.model and self.shape:
            raise UserError("--model and --shape are two ways to say which model: give one")
        if not self.users or min(*self.users, self.prompt_tokens, self.new_tokens - 1, self.repeats, self.threads) < 1:
            raise UserError("--users, --prompt-tokens, --repeats and --threads are at least 1, --new-tokens at least 2")

    @property
    def called(self) -> str:
        """The model's name in the table."""
        return self.name or self.shape or "demo"


def load_or_make(model: str | None, shape: str | None, device: str) -> tuple[GPT, BytePairTokenizer]:
    """The model of a folder or of the hub, or of random weights in a shape; runs/demo/instruct/model for neither."""
    if shape:
        torch.manual_seed(0)
        made = GPT(SHAPES[shape]).to(pick_device(device)).eval()
        return made, any_tokenizer(made.config.vocab_size)
    folder = model or "runs/demo/instruct/model"
    return load_model(folder, pick_device(device)), load_tokenizer(folder)


def any_tokenizer(n_vocab: int) -> BytePairTokenizer:
    """One that has so many tokens, for a model of random weights: the bytes, any three bytes each, and an end."""
    ranks = {bytes([i]): i for i in range(256)} | {i.to_bytes(3, "big"): i for i in range(256, n_vocab - 1)}
    return BytePairTokenizer(ranks, GPT2_PATTERN, {END_OF_TEXT: n_vocab - 1})


@dataclass(frozen=True)
class Served:
    """What a turn took, in seconds from the moment when all asked."""

    all: float
    """Until the last token of the last answer."""
    first: list[float]
    """Until the first token of each."""


def one_at_a_time(model: GPT, prompts: Sequence[Prompt], n: int) -> Served:
    """Each answer after the one before."""
    start, first = perf_counter(), []
    for prompt in prompts:
        for i, _ in enumerate(generate_tokens(model, [prompt.ids], n, GREEDY)):
            if not i:
                first.append(perf_counter() - start)
    return Served(perf_counter() - start, first)


def one_batch(model: GPT, prompts: Sequence[Prompt], n: int) -> Served:
    """All answers step by step."""
    start, first = perf_counter(), []
    for i, _ in enumerate(generate_tokens(model, [prompt.ids for prompt in prompts], n, GREEDY)):
        if i < len(prompts):
            first.append(perf_counter() - start)
    return Served(perf_counter() - start, first)


def the_engine(engine: ChatEngine, prompts: Sequence[Prompt], n: int) -> tuple[Served, list[Answer]]:
    """Each from a client of its own that reads its stream."""
    start, ended, left = perf_counter(), threading.Event(), len(prompts)
    lock = threading.Lock()

    def deliver(piece: Piece | None) -> None:
        nonlocal left
        if piece is None:
            with lock:
                left -= 1
                if not left:
                    ended.set()

    answers = [engine.ask(prompt, Wish(n, GREEDY), deliver) for prompt in prompts]
    ended.wait()
    return Served(perf_counter() - start, [(a.first_at or start) - start for a in answers]), answers


def questions(model: GPT, users: int, length: int) -> list[Prompt]:
    """A question for each user; no two begin alike, so that none can lend another what it has read."""
    generator = torch.Generator().manual_seed(length)
    vocabulary = min(model.config.vocab_size, 50_000) - 1
    ids = torch.randint(users, vocabulary, (users, length), generator=generator)
    ids[:, 0] = torch.arange(users)
    return [Prompt(row) for row in ids.tolist()]


def check(engine: ChatEngine, prompts: Sequence[Prompt], n: int) -> None:
    """Refuses to time an engine that writes something else.

    Where two tokens are as probable but for a rounding, texts may part; in float32 one in a hundred may.

    Raises:
        UserError: more than that do.
    """
    _, answers = the_engine(engine, prompts, n)
    alone = [[t.id for t in generate_tokens(engine.model, [prompt.ids], n, GREEDY)] for prompt in prompts]
    same = sum(answer.ids == ids for answer, ids in zip(answers, alone, strict=True))
    if same < 0.97 * len(prompts):
        raise UserError(f"the engine writes {same} of {len(prompts)} answers as they are written alone")


def measure(options: ChatBenchmark) -> dict[str, Any]:
    """The contents of the JSON file."""
    torch.set_num_threads(options.threads)
    model, tokenizer = load_or_make(options.model, options.shape, options.device)
    needed, context = options.prompt_tokens + options.new_tokens, model.config.context_length
    if needed > context:
        raise UserError(f"{needed} tokens do not fit the model's context of {context}: ask for fewer")
    rows = []
    for users in options.users:
        rows.append(measure_users(model, tokenizer, users, options))
        speeds = {way: users * options.new_tokens / statistics.median(rows[-1]["all"][way]) for way in WAYS}
        print(
            f"{users} users: " + ", ".join(f"{way} {speed:,.0f} tokens/s" for way, speed in speeds.items()), flush=True
        )
    return {
        **provenance(),
        "machine": describe_device(model.device, options.threads),
        "name": options.called,
        "parameters": model.n_parameters,
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "results": rows,
    }


def measure_users(model: GPT, tokenizer: BytePairTokenizer, users: int, options: ChatBenchmark) -> dict[str, Any]:
    """A row of the report: so many users, all ways by turns."""
    prompts, n = questions(model, users, options.prompt_tokens), options.new_tokens
    check(fresh_engine(model, tokenizer, users), prompts, n)
    ways: dict[str, Callable[[], Served]] = {
        "one at a time": lambda: one_at_a_time(model, prompts, n),
        "the engine": lambda: the_engine(fresh_engine(model, tokenizer, users), prompts, n)[0],
        "one batch": lambda: one_batch(model, prompts, n),
    }
    served: dict[str, list[Served]] = {way: [] for way in WAYS}
    for _ in tqdm(range(options.repeats), desc=f"{users} users", unit="turn", leave=False):
        for way, serve in ways.items():
            served[way].append(serve())
    return {
        "users": users,
        "all": {way: [one.all for one in served[way]] for way in WAYS},
        "first_median": {way: [statistics.median(one.first) for one in served[way]] for way in WAYS},
        "first_last": {way: [max(one.first) for one in served[way]] for way in WAYS},
    }


def fresh_engine(model: GPT, tokenizer: BytePairTokenizer, users: int) -> ChatEngine:
    """An engine that has read nothing yet, and whose answers no token ends."""
    engine = ChatEngine(model, tokenizer, n_rows=users)
    engine.stop_ids = frozenset()
    return engine


def table(results: Sequence[dict[str, Any]]) -> str:
    """A row for each model and number of users."""
    rows = []
    for result in results:
        for row in result["results"]:
            n = row["users"] * result["new_tokens"]
            speed = {way: n / statistics.median(row["all"][way]) for way in WAYS}
            wait = {way: statistics.median(row["first_median"][way]) for way in WAYS}
            last = {way: statistics.median(row["first_last"][way]) for way in WAYS}
            rows.append(
                [
                    f"{result['name']}, {result['parameters'] / 1e6:.0f} M",
                    str(row["users"]),
                    *(f"{speed[way]:,.0f}" for way in WAYS),
                    f"{speed['the engine'] / speed['one at a time']:.1f}×",
                    *(f"{wait[way]:.2f} ({last[way]:.2f})" for way in WAYS[:2]),
                ]
            )
    header = ["model", "users", *(f"{way}, tokens/s" for way in WAYS), "engine × one at a time"]
    header += [f"first token, s (the last one's): {way}" for way in WAYS[:2]]
    return markdown_table(header, rows, "lrrrrrrr")


def report(results: Sequence[dict[str, Any]]) -> str:
    """What stands in the README."""
    told = [
        f"{result['name']}: {result['prompt_tokens']} tokens each and an answer of {result['new_tokens']}, medians of "
        f"{len(result['results'][0]['all'][WAYS[0]])} turns, on {where(result)}"
        for result in results
    ]
    return f"All ask at once. {'; '.join(told)}.\n\n{table(results)}"


def main(options: ChatBenchmark) -> None:
    require_markers(options.readme, "chat")
    if not options.report_only:
        require_writable(options.out)
        result = measure(options)
        write_json(options.out / f"{result['name']}.json", result)
        print(f"Wrote {options.out / result['name']}.json")
    made = report(read_results(options.out))
    print(made)
    write_block(options.readme, "chat", made)
    print(f"Wrote the table in {options.readme}")


if __name__ == "__main__":
    run_command(main, ChatBenchmark)
