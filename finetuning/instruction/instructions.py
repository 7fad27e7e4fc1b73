"""Instructions: files of questions and answers become examples, each one once, on one side of the split.

What is handed around has one of four shapes, and all become the same list of messages:

    {"instruction": …, "input": …, "output": …}                    Alpaca (Taori et al. 2023)
    {"instruction": …, "instances": [{"input": …, "output": …}]}   Self-Instruct's seed tasks (Wang et al. 2022)
    {"messages": [{"role": "user", "content": …}, …]}              chats
    {"conversations": [{"from": "human", "value": …}, …]}          chats as ShareGPT has them

An input is joined to its instruction as Alpaca does: below it, after a line `### Input:`.

**The split** goes by instruction: which side an example is on is decided by a hash of its normalised instruction (case,
white space and end marks do not count), with a seed. The same instruction with two inputs is thus never on both sides,
and adding rows moves no other.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from finetuning.instruction.prompt_format import Message, Role
from finetuning.instruction.python_questions import python_questions
from finetuning.instruction.records import SUFFIXES, read_records
from utils.errors import UserError, one_line
from working_with_text_data.rows import require_utf8

Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = ("train", "validation", "test")
EMBEDDED = "python-docs"
_ROLES: dict[str, Role] = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
}  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A conversation whose last message is an answer."""

    messages: tuple[Message, ...]
    name: str
    """What it is about, by which it is split: its normalised instruction, or what a question of `python-docs` asks."""

    @property
    def question(self) -> tuple[Message, ...]:
        """All but the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class InstructionOptions:
    """The flags of every script that reads instructions."""

    data: str = EMBEDDED
    """python-docs (questions about this Python), a .json, .jsonl (.gz) or .parquet file, a folder of them, or the name
    of a data set on the hub such as vicgalle/alpaca-gpt4."""
    instruction_column: str = "instruction"
    """Of rows: what is asked."""
    input_column: str = "input"
    """Of rows: what it is asked of; may be missing or empty."""
    output_column: str = "output"
    """Of rows: the answer."""
    messages_column: str = "messages"
    """Of chats: the list of messages; one called conversations is found, too."""
    validation_share: float = 0.05
    """Share of the instructions that are measured on and never learned from."""
    test_share: float = 0.0
    """Share that is left out altogether, for a test at the end."""
    split_seed: int = 0
    """Decides which."""
    max_examples: int | None = None
    """Learn from this many examples at most, drawn by --split-seed; all if not given."""

    def __post_init__(self) -> None:
        for name in ("validation_share", "test_share"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be from 0 to below 1, got {getattr(self, name)}")
        if not self.validation_share:
            raise UserError("--validation-share must be above 0: without held-out examples nothing can be measured")
        if self.validation_share + self.test_share >= 1:
            raise UserError("--validation-share and --test-share together leave nothing to learn from")
        if self.max_examples is not None and self.max_examples < 1:
            raise UserError(f"--max-examples must be at least 1, got {self.max_examples}")


def read_examples(options: InstructionOptions, report: dict[str, int] | None = None) -> list[Example]:
    """All examples, each question once (its first answer), in the order in which they are read.

    Args:
        report: gets how many rows there were, and how many were left out for which reason.

    Raises:
        UserError: no such file or data set, columns of other names, no example at all.
        ValueError: a file is damaged, not UTF-8 or no JSON; one line that names the row.
    """
    counts: Counter[str] = Counter()
    seen: set[str] = set()
    examples = []
    for example in _all_examples(options, counts):
        key = "\n".join(normalised(m["content"]) for m in example.question if m["role"] != "assistant")
        if key in seen:
            counts["asked before"] += 1
            continue
        seen.add(key)
        examples.append(example)
    counts["examples"] = len(examples)
    if report is not None:
        report.update(counts)
    if not examples:
        what = ", ".join(f"{n} {reason}" for reason, n in counts.items()) or "it is empty"
        raise UserError(f"--data {options.data} holds no example with a question and an answer ({what})")
    return examples


def normalised(text: str) -> str:
    """A text without what does not make another question of it: case, white space, Unicode's variants, end marks."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(" .!?:")


def side_of(name: str, options: InstructionOptions) -> Side:
    """On which side of the split everything about `name` is."""
    digest = blake2b(f"{options.split_seed}\n{name}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest) / 2**64
    if place < options.validation_share:
        return "validation"
    return "test" if place < options.validation_share + options.test_share else "train"


def split_examples(examples: Iterable[Example], options: InstructionOptions) -> dict[Side, list[Example]]:
    """The examples on each side, those to learn from cut to `max_examples`.

    Raises:
        UserError: a side that should have examples has none.
    """
    sides: dict[Side, list[Example]] = {side: [] for side in SIDES}
    for example in examples:
        sides[side_of(example.name, options)].append(example)
    wanted = {"train": True, "validation": options.validation_share > 0, "test": options.test_share > 0}
    for side in SIDES:
        if wanted[side] and not sides[side]:
            n = sum(map(len, sides.values()))
            raise UserError(
                f"no {side} example among the {n} of {options.data}: give more data, a larger share or another "
                "--split-seed"
            )
    if options.max_examples is not None:
        sides["train"] = _some(sides["train"], options.max_examples, options.split_seed)
    return sides


def _some(examples: list[Example], n: int, seed: int) -> list[Example]:
    """The same `n` of them, in their order, however many others there are between."""

    def place(i: int) -> bytes:
        text = "\n".join(m["content"] for m in examples[i].messages)
        return blake2b(f"{seed}\n{text}".encode(), digest_size=8).digest()

    return [examples[i] for i in sorted(sorted(range(len(examples)), key=place)[:n])]


# --- rows to examples


def _all_examples(options: InstructionOptions, counts: Counter[str]) -> Iterator[Example]:
    if options.data == EMBEDDED:
        for pair in python_questions():
            counts["rows"] += 1
            yield Example(_turns(pair.question, pair.answer), pair.name)
        return
    for where, row in _rows(options.data):
        counts["rows"] += 1
        for messages, name in _conversations(row, where, options):
            fault = _fault(messages)
            if fault is not None:
                counts[fault] += 1
                continue
            require_utf8("".join(message["content"] for message in messages), where)
            yield Example(messages, normalised(name))


def _turns(question: str, answer: str) -> tuple[Message, ...]:
    return {"role": "user", "content": question}, {"role": "assistant", "content": answer}


def _fault(messages: Sequence[Message]) -> str | None:
    """Why a conversation cannot be learned from."""
    roles = [message["role"] for message in messages]
    if "user" not in roles or not roles or roles[-1] != "assistant":
        return "without question or answer"
    if any(not message["content"].strip() for message in messages if message["role"] == "user"):
        return "empty questions"
    if any(not message["content"].strip() for message in messages if message["role"] == "assistant"):
        return "empty answers"
    return None


def _conversations(
    row: dict[str, Any], where: str, options: InstructionOptions
) -> Iterator[tuple[tuple[Message, ...], str]]:
    """(messages, instruction) of what is in a row, whichever shape it has."""
    for column in (options.messages_column, "conversations"):
        if column in row:
            messages = _chat(row[column], f"{where}, {column}")
            yield messages, next((m["content"] for m in messages if m["role"] == "user"), "")
            return
    instruction = options.instruction_column
    instances = row.get("instances")
    if instruction not in row or not (options.output_column in row or isinstance(instances, list)):
        raise UserError(
            f"{where} has the columns {', '.join(map(str, row)) or '(none)'}: name yours with --instruction-column, "
            "--input-column and --output-column, or --messages-column"
        )
    asked = _text(row, instruction, where)
    for part in instances if isinstance(instances, list) and options.output_column not in row else [row]:
        if not isinstance(part, dict):
            raise UserError(f"{where}: an instance is {part!r}, not an object with input and output")
        given, answer = _text(part, options.input_column, where), _text(part, options.output_column, where)
        yield _turns(with_input(asked, given), answer), asked


def with_input(instruction: str, given: str) -> str:
    """An instruction and what it is about, as Alpaca writes both; an empty input leaves nothing behind."""
    return f"{instruction}\n\n### Input:\n{given}" if given.strip() and instruction.strip() else instruction


def _text(row: dict[str, Any], column: str, where: str) -> str:
    """The text in a column; empty where it is missing or null."""
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: {column!r} is {_short(value)}, not a text")
    return value or ""


def _chat(value: Any, where: str) -> tuple[Message, ...]:
    """The messages of a chat up to its last answer; () for null."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise UserError(f"{where} is {_short(value)}, not a list of messages")
    messages: list[Message] = []
    for turn in value:
        if not isinstance(turn, dict) or not {"role", "from"} & turn.keys() or not {"content", "value"} & turn.keys():
            raise UserError(f"{where}: a message is {_short(turn)}, and needs role and content (or from and value)")
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str) or role not in _ROLES:
            raise UserError(f"{where}: a message is by {role!r}, and roles are {', '.join(_ROLES)}")
        if content is not None and not isinstance(content, str):
            raise UserError(f"{where}: the content of a message is {_short(content)}, not a text")
        messages.append({"role": _ROLES[role], "content": content or ""})
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()  # a question that nobody answered
    return tuple(messages)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- where rows come from


def _rows(data: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, row) of each row of a file, of all files of rows below a folder, or of a hub data set."""
    path = Path(data).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.name.lower().endswith(SUFFIXES) and file.is_file())
        if not files:
            raise UserError(f"--data {data}: no {', '.join(SUFFIXES)} file below this folder")
    elif path.is_file():
        files = [path]
    elif re.fullmatch(r"(hub:)?[\w-][\w.-]*/[\w.-]+", data) and not data.lower().endswith(SUFFIXES):
        yield from _hub_rows(data.removeprefix("hub:"))
        return
    else:
        raise UserError(
            f"--data {data}: no such file or folder; use {EMBEDDED}, a {', '.join(SUFFIXES)} file, or OWNER/NAME on "
            "the hub"
        )
    for file in files:
        for number, row in enumerate(read_records(file), 1):
            yield f"{file}, row {number}", row


def _hub_rows(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from datasets import load_dataset  # here, because it takes seconds that local files need not wait

    try:
        rows = load_dataset(name, split="train")
    except Exception as error:  # whatever its HTTP client, the proxy or the server say
        reason = one_line(error)[:300] or type(error).__name__
        raise UserError(
            f"{name} could not be read from the hub ({reason}): run the same command again when it can be, or fetch "
            f"a file of https://huggingface.co/datasets/{name} and use --data PATH"
        ) from None
    for number, row in enumerate(rows, 1):
        yield f"{name}, row {number}", dict(row)
