"""LAMBADA and HellaSwag: questions whose answers can be counted, for models that can only continue a text.

**LAMBADA** (Paperno et al. 2016): passages whose last word is easy with the whole passage and a riddle with the last
sentence alone. The context is everything before the last space.

    accuracy      all tokens of the last word are the most probable ones: greedy decoding would have written it
    perplexity    exp(mean of -ln p(last word)); the mean is over words, however many tokens each is

**HellaSwag** (Zellers et al. 2019): how does this go on? One of four endings is what really came, three were written by
a machine and chosen to mislead one.

    acc           how often the real ending has the highest ln p
    acc_norm      the highest ln p / length of the ending in characters: without it the short one has an advantage

Guessing is right in a quarter of HellaSwag and never in LAMBADA. Texts are prepared and figures computed as
lm-evaluation-harness does for `lambada_openai` and `hellaswag` (no examples before the question), so that they can
stand beside published ones. Each accuracy p comes with its standard error √(p · (1 - p) / n): of two models on the
same questions, a difference below twice that may well be luck.

The four endings of a question are four rows of a batch, each with the context again: caching it would save up to
three quarters of the work, and be most of the code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gpt_model.log_likelihood import encode_pair, log_likelihoods, require_same_vocabulary
from utils.devices import Precision
from utils.errors import UserError
from working_with_text_data.rows import read_rows

if TYPE_CHECKING:
    from gpt_model.gpt import GPT
    from working_with_text_data.bytepair_enc import BytePairTokenizer

TaskName = Literal["lambada", "hellaswag"]
Row = Mapping[str, Any]
Figures = dict[str, float | int]


@dataclass(frozen=True)
class Question:
    """A text, and what may follow it."""

    context: str
    answers: tuple[str, ...]
    """Each would follow after a space."""
    correct: int = 0
    """Which of them does."""


def lambada_question(row: Row) -> Question:
    """A row with the whole passage in `text`; its last word is the only answer.

    Raises:
        ValueError: there is no such text, or just one word of it.
    """
    text = row.get("text")
    if not isinstance(text, str):
        raise ValueError(f"LAMBADA needs a text in the column 'text', and the row has {_columns(row)}")
    context, _, word = text.rpartition(" ")
    if not context.strip() or not word.strip():
        raise ValueError(f"{text!r} has no last word after a space")
    return Question(context, (word,))


def hellaswag_question(row: Row) -> Question:
    """A row of the original files: activity_label, ctx_a, ctx_b, endings, label.

    Raises:
        ValueError: a column is missing, there are not four endings, or the label is none of them.
    """
    if missing := [name for name in ("activity_label", "ctx_a", "ctx_b", "endings", "label") if name not in row]:
        raise ValueError(f"HellaSwag needs the column {missing[0]!r}, and the row has {_columns(row)}")
    endings, label = row["endings"], str(row["label"])  # the hub's copy has the label as text
    if wrong := [name for name in ("activity_label", "ctx_a", "ctx_b") if not isinstance(row[name], str)]:
        raise ValueError(f"{wrong[0]!r} is {row[wrong[0]]!r}, not a text")
    if not isinstance(endings, list) or len(endings) != 4 or not all(isinstance(ending, str) for ending in endings):
        raise ValueError(f"a question of HellaSwag has four endings, not {endings!r}")
    if label not in ("0", "1", "2", "3"):
        hint = ": the answers of the test part are not published, take the validation part" if not label else ""
        raise ValueError(f"the label must be 0, 1, 2 or 3, got {label!r}{hint}")
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return Question(without_brackets(context), tuple(map(without_brackets, endings)), int(label))


def without_brackets(text: str) -> str:
    """What WikiHow's markup leaves: [title] ends a sentence, and all else in brackets goes."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _columns(row: Row) -> str:
    return ", ".join(map(str, row)) or "none"


def judge(
    model: GPT,
    tokenizer: BytePairTokenizer,
    questions: Sequence[Question],
    batch_size: int = 16,
    precision: Precision = "float32",
    progress: str = "",
) -> list[list[tuple[float, bool]]]:
    """For each question, `log_likelihoods` of each of its answers.

    Raises:
        ValueError: as `log_likelihoods`; or there is no question, or the tokenizer is another model's.
    """
    require_same_vocabulary(model, tokenizer)
    if not questions:
        raise ValueError("there are no questions in the data")
    pairs = [encode_pair(tokenizer, q.context, f" {answer}") for q in questions for answer in q.answers]
    judged = iter(log_likelihoods(model, pairs, batch_size, precision, progress))
    return [[next(judged) for _ in q.answers] for q in questions]


def lambada_figures(questions: Sequence[Question], judged: Sequence[Sequence[tuple[float, bool]]]) -> Figures:
    """How often the last word would have been written, and the perplexity of it."""
    words = [answers[0] for answers in judged]
    mean = sum(ln_p for ln_p, _ in words) / len(words)
    return {
        "questions": len(questions),
        **_accuracy("acc", [greedy for _, greedy in words]),
        "perplexity": math.exp(-mean) if mean > -700 else math.inf,
    }


def hellaswag_figures(questions: Sequence[Question], judged: Sequence[Sequence[tuple[float, bool]]]) -> Figures:
    """How often the real ending is the most probable, as a whole and for each of its characters."""
    right, right_by_length = [], []
    for question, answers in zip(questions, judged, strict=True):
        whole = [ln_p for ln_p, _ in answers]
        by_length = [ln_p / max(len(ending), 1) for ln_p, ending in zip(whole, question.answers, strict=True)]
        right.append(whole.index(max(whole)) == question.correct)
        right_by_length.append(by_length.index(max(by_length)) == question.correct)
    return {"questions": len(questions), **_accuracy("acc", right), **_accuracy("acc_norm", right_by_length)}


def _accuracy(name: str, right: Sequence[bool]) -> Figures:
    """The part that is right, and the standard error of a binomial."""
    p = sum(right) / len(right)
    return {name: p, f"{name}_stderr": math.sqrt(p * (1 - p) / len(right))}


@dataclass(frozen=True)
class Task:
    """A set of questions: where it is, how a row is read, what is counted."""

    title: str
    question_of: Callable[[Row], Question]
    figures: Callable[[Sequence[Question], Sequence[Sequence[tuple[float, bool]]]], Figures]
    hub: str
    """Its name on the Hugging Face hub."""
    revision: str
    """The commit there, so that the questions never change."""
    split: str
    file: str
    """Where the same questions can be had as .jsonl."""


TASKS: dict[TaskName, Task] = {
    "lambada": Task(
        "LAMBADA",
        lambada_question,
        lambada_figures,
        "EleutherAI/lambada_openai",
        "900124bf3b8235c6daf21033af9948b3f07346c4",
        "test",
        "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
    ),
    "hellaswag": Task(
        "HellaSwag",
        hellaswag_question,
        hellaswag_figures,
        "Rowan/hellaswag",
        "218ec52e09a7e7462a5400043bb9a69a41d06b76",
        "validation",
        "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl",
    ),
}


def read_questions(task: TaskName, data: Path | None = None, limit: int | None = None) -> list[Question]:
    """The questions of a task, the first `limit` of them if given.

    Args:
        data: a file of its rows; from the hub if not given.

    Raises:
        UserError: the hub cannot be reached.
        ValueError: a row is not as it should be; the message says which.
    """
    rows: Iterable[Row] = hub_rows(task) if data is None else read_rows(data)
    where = TASKS[task].hub if data is None else data
    questions = []
    for number, row in enumerate(islice(rows, limit), 1):
        try:
            questions.append(TASKS[task].question_of(row))
        except ValueError as error:
            raise ValueError(f"{where}, row {number}: {error}") from None
    return questions


def hub_rows(task: TaskName) -> Iterable[Row]:
    """The rows of a task from the hub, where `datasets` keeps what it has fetched once.

    Raises:
        UserError: it cannot be reached.
    """
    import datasets  # here, because it takes a second that a local file need not wait

    source = TASKS[task]
    try:
        rows: Iterable[Row] = datasets.load_dataset(source.hub, split=source.split, revision=source.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{source.title} could not be fetched from the hub ({type(error).__name__}): download {source.file} and "
            f"name the file with --data"
        ) from None
    return rows
