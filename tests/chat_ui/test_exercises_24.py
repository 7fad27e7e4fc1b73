"""The checks of notebook 24 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import pytest
import torch

from attention_mechanisms.ragged import RaggedCaches
from chat_ui.exercises import ex24
from gpt_model import Sampling
from gpt_model.continuous_batching import ContinuousBatch, Text
from gpt_model.generate import TextStream
from tests.chat_ui.helpers import tiny_model, tokenizer
from tests.conftest import refuses


def first_words(n_tokens):
    return [1 + sum(n_tokens[:i]) for i in range(len(n_tokens))]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda some: [sum(some[: i + 1]) for i in range(len(some))], "the passes of the last tokens"),
        (lambda some: [n - 1 for n in first_words(some)], "counted from 1"),
        (lambda some: [1] * len(some), "side by side"),
        (lambda some: list(range(1, len(some) + 1)), "not one each"),
        (lambda some: [1, 3, 6], "you sort by length"),
        (lambda some: 1 + sum(some), "return a list"),
        (lambda some: [1], "there are 3 people"),
        (lambda some: [1, 7, 9], "one person alone"),
        (lambda some: [2, 7, 9], "expected"),
    ],
)
def test_first_words(wrong, message):
    ex24.check_first_words(first_words)
    refuses(ex24.check_first_words, wrong, message)


def step_mask(lengths):
    return torch.arange(int(lengths.max()) + 1) <= lengths[:, None]


def mask_of_the_module(lengths):
    model = tiny_model()
    shared = model.make_cache(len(lengths))
    rows = [shared.row(i) for i in range(len(lengths))]
    with torch.inference_mode():
        for row, n in zip(rows, lengths.tolist(), strict=True):
            model.next_logits(torch.zeros(1, n, dtype=torch.int64), row)
    mask = RaggedCaches(shared, rows).step.mask
    assert mask is not None
    return mask[:, 0, 0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda lengths: torch.arange(5) < lengths[:, None], "does not see itself"),
        (lambda lengths: step_mask(lengths)[:, :-1], "own key is there too"),
        (lambda lengths: step_mask(lengths).T, r"\(keys, rows\)"),
        (lambda lengths: step_mask(lengths).float(), "of bools"),
        (lambda lengths: torch.ones(3, 5, dtype=torch.bool), "nothing is hidden"),
        (lambda lengths: ~step_mask(lengths), "the other way round"),
        (lambda lengths: step_mask(lengths).flip(1), "not aligned at their ends"),
        (lambda lengths: torch.arange(5) == lengths[:, None], "those before it"),
        (lambda lengths: step_mask(lengths).tolist(), "return a tensor"),
        (lambda lengths: step_mask(lengths)[None], r"you have \(1, 3, 5\)"),
        (lambda lengths: torch.ones(3, 5, dtype=torch.bool).tril(), "row i is True"),
    ],
)
def test_step_mask(wrong, message):
    ex24.check_step_mask(step_mask)
    ex24.check_step_mask(mask_of_the_module)
    refuses(ex24.check_step_mask, wrong, message)


def safe_length(text, stop):
    if stop in text:
        return text.index(stop)
    return len(text) - next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)


def length_of_the_module(text, stop):
    stream = TextStream(tokenizer(), [stop])
    return len("".join(stream.feed(i) for i in tokenizer().encode_ordinary(text)))


def shortest_end(text, stop):
    if stop in text:
        return text.index(stop)
    return len(text) - next((n for n in range(1, len(stop)) if text.endswith(stop[:n])), 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda text, stop: len(text), "nothing is held back"),
        (lambda text, stop: len(text) - safe_length(text, stop), "return what does not"),
        (lambda text, stop: text[: safe_length(text, stop)], "return an int"),
        (lambda text, stop: max(len(text) - len(stop) + 1, 0), "expected 6"),
        (lambda text, stop: text.index("<") if "<" in text else len(text), "of 'x<|<|' only"),
        (shortest_end, "the longest end"),
        (lambda text, stop: safe_length(text.replace(stop, ""), stop), "nothing from there on"),
        (lambda text, stop: text.rindex("<") if "<" in text else len(text), "the longest end"),
        (lambda text, stop: safe_length(text, stop) if text else 1, "an empty text"),
        (lambda text, stop: safe_length(text, stop) if len(text) > 1 else len(text), "the whole text"),
        (lambda text, stop: safe_length(text, stop) if len(text) != 9 else 8, "all 9 are certain"),
        (lambda text, stop: safe_length(text, stop) if text[:2] != "ca" or len(text) < 4 else len(text), "has to wait"),
    ],
)
def test_safe_length(wrong, message):
    ex24.check_safe_length(safe_length)
    ex24.check_safe_length(length_of_the_module)
    refuses(ex24.check_safe_length, wrong, message)


def n_common(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def tokens_to_read(rows, prompt):
    return len(prompt) - max((n_common(row, prompt[:-1]) for row in rows), default=0)


def read_by_the_module(rows, prompt):
    batch = ContinuousBatch(tiny_model(), len(rows) + 1)
    for row, ids in zip(batch.rows, rows, strict=False):
        if ids:
            batch.model.next_logits(torch.tensor([ids]), row.cache)
            row.ids = list(ids)
    text = batch.add(prompt, 1)
    with torch.inference_mode():
        batch._admit()
    return len(prompt) - text.n_reused


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda rows, prompt: tokens_to_read(rows[:1], prompt), "the first row"),
        (
            lambda rows, prompt: (
                len(prompt) - max(sum(a == b for a, b in zip(row, prompt, strict=False)) for row in rows)
            ),
            "after the first difference",
        ),
        (lambda rows, prompt: len(prompt), "need not be read"),
        (lambda rows, prompt: len(set(prompt) - {i for row in rows for i in row}) - 1, "count the beginning only"),
        (
            lambda rows, prompt: len(prompt) - max((n_common(row, prompt) for row in rows), default=0),
            "the last token is read in any case",
        ),
        (lambda rows, prompt: float(tokens_to_read(rows, prompt)), "return an int"),
        (lambda rows, prompt: tokens_to_read(rows, prompt) if rows else 0, "without any row"),
        (lambda rows, prompt: min(tokens_to_read(rows, prompt), 3) - (rows == [[7]]), "lends nothing"),
        (lambda rows, prompt: 4, "you have 4"),
    ],
)
def test_tokens_to_read(wrong, message):
    ex24.check_tokens_to_read(tokens_to_read)
    with torch.inference_mode():
        ex24.check_tokens_to_read(read_by_the_module)
    refuses(ex24.check_tokens_to_read, wrong, message)


def serve(people, n_rows, order=lambda waiting: waiting, too_early=False):
    """An answer with one part that may be wrong."""
    first, left, step = dict[int, int](), dict[int, int](), 0
    while len(first) < len(people) or left:
        step += 1
        waiting = [i for i, (arrives, _) in enumerate(people) if i not in first and (too_early or arrives < step)]
        for i in order(waiting):
            if len(left) < n_rows:
                first[i], left[i] = step, people[i][1]
        left = {i: n - 1 for i, n in left.items() if n > 1}
    return [first[i] for i in range(len(people))]


def serve_by_the_module(people, n_rows):
    batch = ContinuousBatch(tiny_model(), n_rows)
    coming, who, first, step = list(people), dict[Text, int](), dict[int, int](), 0
    while coming or batch.n_texts:
        step += 1
        while coming and coming[0][0] < step:
            _, n_tokens = coming.pop(0)
            who[batch.add([1, 2], n_tokens, Sampling(temperature=0))] = len(who)
        for text, _, _ in batch.step():
            first.setdefault(who[text], step)
    return [first[i] for i in range(len(people))]


def locked(people, n_rows):
    return serve(people, 1)


def in_batches(people, n_rows):
    clock, first = 0, list[int]()
    while len(first) < len(people):
        batch = people[len(first) : len(first) + n_rows]
        clock = max(clock, batch[0][0])
        first += [clock + 1] * len(batch)
        clock += max(n for _, n in batch)
    return first


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (locked, "that is a lock"),
        (in_batches, "static batches"),
        (lambda people, n_rows: serve(people, 99), "there are 2 rows"),
        (lambda people, n_rows: [n - 1 for n in serve(people, n_rows)], "counted from 1"),
        (lambda people, n_rows: serve(people, n_rows, too_early=True), "nobody begins before coming"),
        (lambda people, n_rows: serve(people, n_rows, order=reversed), "first come, first served"),
        (lambda people, n_rows: serve([(a, n + 1) for a, n in people], n_rows), "leave it empty for a step"),
        (lambda people, n_rows: serve([(a, max(n - 1, 1)) for a, n in people], n_rows), "not in step 2"),
        (lambda people, n_rows: max(serve(people, n_rows)), "return a list"),
        (lambda people, n_rows: serve(people, 2), "one row"),
        (
            lambda people, n_rows: [n + (a > 1) for n, (a, _) in zip(serve(people, n_rows), people, strict=True)],
            "with rows free",
        ),
        (lambda people, n_rows: [1, 2, 3, 4], "expected"),
    ],
)
def test_serve(wrong, message):
    ex24.check_serve(serve)
    ex24.check_serve(serve_by_the_module)
    refuses(ex24.check_serve, wrong, message)
