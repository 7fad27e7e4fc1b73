"""Preference pairs: one question, an answer that is preferred and one that is not.

Instructions show a model what to say. They do not show what not to say, and for most questions it is easier to judge
two answers than to write the best one. So people (or a stronger model) compare answers, and what is learned from is

    (prompt, chosen, rejected)

Three sources are read here:

    python-docs      made by rule, offline: a question about a name of Python's standard library; chosen is the first
                     paragraph of its docstring, rejected a corruption of it (`KINDS`)
    hub:OWNER/NAME   a data set of the Hugging Face hub, such as hub:HuggingFaceH4/ultrafeedback_binarized (Tunstall et
                     al. 2023) or hub:Anthropic/hh-rlhf (Bai et al. 2022)
    a path           a .json, .jsonl or .parquet file with the same columns

In the columns `prompt`, `chosen` and `rejected` may stand texts or lists of messages; without a prompt, `chosen` and
`rejected` are whole conversations, as lists of messages or as texts with "Human:" and "Assistant:" in front of turns.

A pair whose answers are equal says nothing, and one with an empty answer or with two different prompts is broken: all
are left out and counted. The split is by question, so that none stands on both sides; that of python-docs is by name,
and the names are those that train_instruct.py holds out, so that evaluate.py asks of what neither has learned from.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

from finetuning.instruction.instructions import EMBEDDED, InstructionOptions, side_of
from finetuning.instruction.prompt_format import ROLES, Message, Role, is_message
from finetuning.instruction.records import read_records
from utils.errors import UserError, one_line
from working_with_text_data.python_docs import python_docs
from working_with_text_data.rows import require_utf8

KINDS = ("other", "truncated", "shuffled", "repeated")
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")
_QUESTION = "What does `{}` do?"
_SHORTEST = 5  # words of an answer that can be corrupted in every way


@dataclass(frozen=True)
class Pair:
    """One comparison."""

    messages: tuple[Message, ...]
    """The conversation up to the answer."""
    chosen: str
    rejected: str
    kind: str = ""
    """How the rejected answer was made, one of `KINDS`; "" where it was not made by rule."""

    @property
    def question(self) -> str:
        """The conversation up to the answer, as one text."""
        return "\n\n".join(f"{m['role']}: {m['content']}" for m in self.messages)


@dataclass(frozen=True)
class PreferenceOptions:
    """The flags that say which pairs."""

    data: str = EMBEDDED
    """python-docs (made by rule), hub:OWNER/NAME, or a .json, .jsonl or .parquet file."""
    hub_config: str | None = None
    """The configuration of the hub's data set, where it has several."""
    hub_split: str = "train"
    """The split of the hub's data set; ultrafeedback_binarized calls it train_prefs."""
    revision: str | None = None
    """The commit, branch or tag of the hub's data set; the newest if not given."""
    max_pairs: int | None = None
    """Take the first so many pairs; all if not given."""
    validation_share: float = 0.1
    """Share of the questions that are kept for validation; python-docs keeps those that train_instruct.py holds out."""

    def check(self) -> None:
        """Raises UserError where a flag is out of its range, or means nothing with this data."""
        if not 0 < self.validation_share < 1:
            raise UserError(f"--validation-share must be between 0 and 1, got {self.validation_share}")
        if self.data == EMBEDDED and self.validation_share != PreferenceOptions.validation_share:
            raise UserError(
                f"--validation-share says nothing of --data {EMBEDDED}, whose validation questions are those that "
                "train_instruct.py holds out: leave it out"
            )
        if self.max_pairs is not None and self.max_pairs < 2:
            raise UserError(f"--max-pairs must be at least 2, got {self.max_pairs}")
        if not self.data.startswith("hub:"):
            for name, given in (
                ("hub-config", self.hub_config is not None),
                ("hub-split", self.hub_split != "train"),
                ("revision", self.revision is not None),
            ):
                if given:
                    raise UserError(f"--{name} belongs to --data hub:OWNER/NAME, and here it is {self.data}")

    def read(self) -> tuple[list[Pair], list[Pair], dict[str, Any]]:
        """(training pairs, validation pairs, what was found and left out).

        Raises:
            UserError: no such file or data set, or fewer than two questions.
            ValueError: columns are missing or hold something else; the message names the row.
        """
        report: dict[str, Any] = {"data": self.data, "left_out": {}}
        if self.data == EMBEDDED:
            return *self._embedded(report), report
        pairs = pairs_from_rows(self._rows(report), self.data, report["left_out"])
        found = list(islice(pairs, self.max_pairs))
        if not found:
            left_out = ", ".join(f"{n:,} {why}" for why, n in report["left_out"].items() if n)
            raise UserError(f"{self.data} holds no preference pairs" + (f" ({left_out} left out)" if left_out else ""))
        training, validation = split_pairs(found, self.validation_share)
        return training, validation, report

    def _embedded(self, report: dict[str, Any]) -> tuple[list[Pair], list[Pair]]:
        documented = documented_names()
        learned, held_out = split_names(documented)
        training, validation = rule_pairs(learned), rule_pairs(held_out)
        report["left_out"]["answers held out under another name"] = len(documented) - len(learned) - len(held_out)
        if self.max_pairs is not None:
            of_validation = max(1, round(self.max_pairs * len(validation) / (len(training) + len(validation))))
            training, validation = training[: self.max_pairs - of_validation], validation[:of_validation]
        return training, validation

    def _rows(self, report: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if self.data.startswith("hub:"):
            return _hub_rows(self.data.removeprefix("hub:"), self.hub_config, self.hub_split, self.revision, report)
        path = Path(self.data).expanduser()
        if not path.is_file():
            raise UserError(
                f"--data {self.data}: no such file; use python-docs, hub:OWNER/NAME, or a .json, .jsonl or .parquet "
                "file"
            )
        return read_records(path)


_REASONS = ("equal answers", "empty answers", "different prompts", "repeated pairs")


def pairs_from_rows(
    rows: Iterable[dict[str, Any]], name: str, left_out: dict[str, int] | None = None
) -> Iterator[Pair]:
    """The pairs of a table, read as they are asked for.

    Args:
        name: of the table, for messages.
        left_out: gets, as rows are read, how many were left out for which reason.

    Raises:
        ValueError: a column is missing or holds something else than texts or messages; the message names the row.
    """
    left_out = {} if left_out is None else left_out
    left_out |= dict.fromkeys(_REASONS, 0)
    seen = set[bytes]()
    for number, row in enumerate(rows, 1):
        found = _pair_of(row, f"{name}, row {number}")
        if isinstance(found, Pair):
            require_utf8(f"{found.question}{found.chosen}{found.rejected}", f"{name}, row {number}")
            digest = hashlib.sha256(repr((found.question, found.chosen, found.rejected)).encode()).digest()
            if digest not in seen:
                seen.add(digest)
                yield found
                continue
            found = "repeated pairs"
        left_out[found] += 1


def _pair_of(row: dict[str, Any], where: str) -> Pair | str:
    """The pair in a row, or why it is left out: one of `_REASONS`."""
    for column in ("chosen", "rejected"):
        if column not in row:
            raise ValueError(
                f"{where} has no column {column!r}: preference pairs need chosen and rejected (and prompt, where these "
                f"are answers alone); it has {', '.join(map(str, row)) or 'none'}"
            )
    chosen, rejected = (_conversation(row.get("prompt"), row[c], f"{where}, {c}") for c in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        return "different prompts"
    good, bad = chosen[-1]["content"].strip(), rejected[-1]["content"].strip()
    if not good or not bad or not any(message["content"].strip() for message in chosen[:-1]):
        return "empty answers"
    return Pair(tuple(chosen[:-1]), good, bad) if good != bad else "equal answers"


def _conversation(prompt: Any, answer: Any, where: str) -> list[Message]:
    """The messages up to an answer, and the answer."""
    before: list[Message] = []
    if isinstance(prompt, str):
        before = _transcript(prompt)
        if not before or before[0]["role"] != "user":  # a question, whatever word it begins with
            before = [{"role": "user", "content": prompt}]
        if before[-1]["role"] == "assistant":  # "… Assistant:", behind which the answer stands
            before.pop()
    elif prompt is not None:
        before = _messages(prompt, f"{where}: the prompt")
    if isinstance(answer, str):
        said: list[Message] = _transcript(answer) if prompt is None else [{"role": "assistant", "content": answer}]
    else:
        said = _messages(answer, where)
    whole = said if not before or said[0]["role"] != "assistant" else before + said
    if len(whole) < 2 or whole[-1]["role"] != "assistant":
        raise ValueError(
            f"{where} is no conversation that ends with an answer: give a column prompt, messages with the roles user "
            'and assistant, or a text with "Human:" and "Assistant:" in front of the turns'
        )
    return whole


def _messages(value: Any, where: str) -> list[Message]:
    if not isinstance(value, list | tuple) or not value or not all(map(is_message, value)):
        raise ValueError(
            f"{where} is {str(value)[:80]!r}: expected a text, or a list of messages with a role ({', '.join(ROLES)}) "
            "and a content each"
        )
    return [{"role": cast(Role, m["role"]), "content": m["content"]} for m in value]


def _transcript(text: str) -> list[Message]:
    """The turns of a text as in hh-rlhf, "Human: … Assistant: …"; none if it does not begin with one."""
    first = _TURN.match(text.lstrip())
    if first is None:
        return []
    _, *parts = _TURN.split(text.lstrip())
    roles: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]


def split_pairs(pairs: Iterable[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
    """(training, validation): a share of the questions, at least one, decided by the questions themselves.

    Pairs with one chosen answer stay together, too: several names have the same docstring.

    Raises:
        UserError: all have one question, or one chosen answer.
    """
    pairs = list(pairs)
    group: dict[str, str] = {}  # question or answer -> the group that it is in
    for pair in pairs:
        names = (f"q {pair.question}", f"a {pair.chosen}")
        first = min(_root(group, name) for name in names)
        for name in names:
            group[_root(group, name)] = first
    roots = sorted({_root(group, f"q {p.question}") for p in pairs}, key=lambda r: hashlib.sha256(r.encode()).digest())
    if len(roots) < 2:
        raise UserError(
            "all pairs have one question or one chosen answer in common, and training and validation need different "
            "ones: give more pairs"
        )
    held_out = set(roots[: max(1, min(round(share * len(roots)), len(roots) - 1))])
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        sides[_root(group, f"q {pair.question}") in held_out].append(pair)
    return sides


def _root(group: dict[str, str], name: str) -> str:
    """The group that `name` belongs to: what it was joined to, and that in turn."""
    while (above := group.setdefault(name, name)) != name:
        name = above
    return name


def split_names(documented: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """(names to learn from, names held out) with what to say of them, as train_instruct.py has them by default.

    A name to learn from is left out if a held-out one has the same answer.
    """
    options = InstructionOptions()
    held_out = {name: text for name, text in documented.items() if side_of(name, options) != "train"}
    known = {*held_out.values()}
    learned = {name: text for name, text in documented.items() if name not in held_out and text not in known}
    return learned, held_out


def rule_pairs(documented: dict[str, str]) -> list[Pair]:
    """The embedded default: a pair for each name, the same on every call. Wrong answers are made of these names' alone.

    Args:
        documented: names and what to say of them.
    """
    answers = {name: text for name, text in documented.items() if len(text.split()) >= _SHORTEST}
    names, pairs = sorted(answers), []
    for name in names:
        draw = random.Random(name)
        kind, answer = draw.choice(KINDS), answers[name]
        other = answers[draw.choice(names)]
        while other == answer:
            other = answers[draw.choice(names)]
        question: Message = {"role": "user", "content": _QUESTION.format(name)}
        pairs.append(Pair((question,), answer, corrupt(answer, kind, other, draw), kind))
    return pairs


def documented_names(most_words: int = 40) -> dict[str, str]:
    """Full name -> the first paragraph of its docstring, of every documented name of the standard library.

    Args:
        most_words: longer paragraphs are left out.
    """
    found = {}
    for name, text in python_docs():
        kind, _, module = name.partition(":")
        if kind != "module":
            continue
        entry = re.compile(rf"(?:^|\n\n\n)({re.escape(module)}(?:\.\w+)*)\n\n(.+?)(?=\n\n|\s*$)", re.S)
        for match in entry.finditer(text):
            words = match[2].split()
            if 0 < len(words) <= most_words:
                found[match[1]] = " ".join(words)
    return found


def corrupt(answer: str, kind: str, other: str, draw: random.Random) -> str:
    """A wrong answer: never equal to `answer`, if that has some words.

    Args:
        kind: other: the answer to another question; truncated: its first words; shuffled: its words in another order;
            repeated: its first words again and again, to about its length.
        other: the right answer to another question.

    Raises:
        ValueError: no such kind, or all words are the same, so that there is no other order.
    """
    words = answer.split()
    if kind == "other":
        return other
    if kind == "truncated":
        return " ".join(words[: max(1, draw.randrange(len(words) // 4, len(words) // 2 + 1))])
    if kind == "repeated":
        few = words[: draw.randrange(2, 4)]
        repeated = (few * len(words))[: len(words) + 1]
        return " ".join(repeated if repeated[:-1] == words else repeated[:-1])
    if kind != "shuffled":
        raise ValueError(f"unknown kind {kind!r}: use one of {', '.join(KINDS)}")
    if len(set(words)) < 2:
        raise ValueError(f"{answer!r} has no other order of words")
    mixed = list(words)
    while mixed == words:
        draw.shuffle(mixed)
    return " ".join(mixed)


def _hub_rows(
    dataset: str, config: str | None, split: str, revision: str | None, report: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The rows of a data set of the hub, at the commit that `report` gets.

    Raises:
        UserError: the hub cannot be reached, or has no such data set, configuration or split.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", dataset):
        raise UserError(f"--data hub:{dataset}: write it as hub:OWNER/NAME, such as hub:Anthropic/hh-rlhf")
    from datasets import load_dataset  # here, because it takes seconds that local files need not wait for
    from huggingface_hub import HfApi

    try:
        report["commit"] = HfApi().dataset_info(dataset, revision=revision, timeout=30).sha
        yield from load_dataset(dataset, config, split=split, revision=report["commit"], streaming=True)
    except Exception as error:  # whatever its HTTP client, the proxy or the server say
        reason = one_line(error)[:300] or type(error).__name__
        raise UserError(
            f"{dataset} could not be read from the hub ({reason}): run the same command again when it can be, or "
            f"download a .parquet or .jsonl file of https://huggingface.co/datasets/{dataset} and use --data FILE"
        ) from None
