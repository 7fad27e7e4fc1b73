"""The checks of notebook 05 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from tests.conftest import refuses
from working_with_text_data.exercises import ex05


def test_attempt_reports_whatever_a_function_raises(capsys):
    ex05.attempt(ex05.check_count_windows, lambda n, t, s: n // 0)
    assert "not solved yet: ZeroDivisionError" in capsys.readouterr().out
    ex05.attempt(ex05.check_count_windows, lambda n, t, s: max((n - t - 1) // s + 1, 0))
    assert capsys.readouterr().out == "count_windows: right\n"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda n, t, s: (n - t) // s + 1, "needs a target too"),
        (lambda n, t, s: (n - t - 1) // s, "add 1 to the number of steps"),
        (lambda n, t, s: n // s, "you divide all ids"),
        (lambda n, t, s: (n - 1) // t, "the stride is not used"),
        (lambda n, t, s: (n - t - 1) // s + 1, "without room for one window has 0"),
        (lambda n, t, s: max(n - t, 0), r"count_windows\(\d+, \d+, \d+\) is \d+, and you have"),
    ],
)
def test_count_windows(wrong, message):
    ex05.check_count_windows(lambda n, t, s: max(0, (n - t - 1) // s + 1))
    refuses(ex05.check_count_windows, wrong, message)


def counts_by(add, last=0):
    def target_counts(n, t, s):
        counts = np.zeros(n, int)
        for start in range(0, n - t + last, s):
            add(counts, start, t)
        return counts

    return target_counts


def add_targets(counts, start, t):
    counts[start + 1 : start + t + 1] += 1


def add_inputs(counts, start, t):
    counts[start : start + t] += 1


def add_whole_windows(counts, start, t):
    counts[start : start + t + 1] += 1


def set_targets(counts, start, t):
    counts[start + 1 : start + t + 1] = 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (counts_by(add_inputs), "you count how often an id is read"),
        (counts_by(add_whole_windows), "id 0 is never a target"),
        (counts_by(set_targets), "add to a count in place of setting"),
        (counts_by(add_targets, last=1), "without room for its last target"),
        (lambda n, t, s: counts_by(add_targets)(n, t, s)[1:], "one count for each of the"),
        (lambda n, t, s: counts_by(add_targets)(n, t, t), r"stride=\d: .*"),
    ],
)
def test_target_counts(wrong, message):
    ex05.check_target_counts(counts_by(add_targets))
    refuses(ex05.check_target_counts, wrong, message)


def joined(documents, end):
    return [i for document in documents for i in [*document, end]]


def joined_in_place(documents, end):
    for document in documents:
        document.append(end)
    return [i for document in documents for i in document]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda documents, end: [i for d in documents for i in d], "nothing stands between"),
        (lambda documents, end: [i for d in documents for i in [end, *d]], "the end stands in front"),
        (lambda documents, end: joined(documents, end)[:-1], "the last document has no end"),
        (lambda documents, end: joined(filter(None, documents), end), "an empty document has an end too"),
        (joined_in_place, "have changed"),
        (lambda documents, end: [[*document, end] for document in documents] + [end], "a flat row"),
    ],
)
def test_join_documents(wrong, message):
    ex05.check_join_documents(joined)
    refuses(ex05.check_join_documents, wrong, message)


def split_when(is_held, order=lambda names: names):
    def split_by_document(lines, every):
        names = order(list(dict.fromkeys(name for name, _ in lines)))
        held = {name for number, name in enumerate(names, 1) if is_held(number, every)}
        return [line for line in lines if line[0] not in held], [line for line in lines if line[0] in held]

    return split_by_document


split_rightly = split_when(lambda number, every: number % every == 0)


def split_lines(lines, every):
    held = [line for i, line in enumerate(lines, 1) if i % every == 0]
    return [line for line in lines if line not in held], held


def split_at_the_end(lines, every):
    cut = len(lines) - len(lines) // every
    return lines[:cut], lines[cut:]


def split_runs(lines, every):
    """The right split without the last document, which a loop over neighbours forgets."""
    names = [a[0] for a, b in pairwise(lines) if a[0] != b[0]]
    held = set(names[every - 1 :: every])
    return [line for line in lines if line[0] in set(names) - held], [line for line in lines if line[0] in held]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (split_lines, "is on both sides, which is the leak"),
        (split_at_the_end, "is on both sides"),
        (split_runs, "lost or doubled"),
        (lambda lines, every: split_rightly(lines, every)[::-1], "swapped"),
        (split_when(lambda number, every: number % every == 0, sorted), "order of their names"),
        (split_when(lambda number, every: number % every == 1), "the first of every four"),
        (lambda lines, every: split_rightly(lines, every)[0], "return two lists"),
    ],
)
def test_split_by_document(wrong, message):
    ex05.check_split_by_document(split_rightly)
    refuses(ex05.check_split_by_document, wrong, message)


def n_bytes(text):
    return len(text.encode("utf-8"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda loss, n, text: loss * n / n_bytes(text), "that is nats a byte"),
        (lambda loss, n, text: loss * n / n_bytes(text) * math.log(2), "multiplied by ln 2"),
        (lambda loss, n, text: loss / math.log(2), "that is bits a token"),
        (lambda loss, n, text: loss * n_bytes(text) / n / math.log(2), "have changed places"),
        (lambda loss, n, text: loss * n / len(text) / math.log(2), "counts characters"),
        (lambda loss, n, text: loss * n / n_bytes(text) / math.log(10), "expected"),
    ],
)
def test_bits_per_byte(wrong, message):
    ex05.check_bits_per_byte(lambda loss, n, text: loss * n / (n_bytes(text) * math.log(2)))
    refuses(ex05.check_bits_per_byte, wrong, message)


def batch_with(seed_of, target_shift=1, replace=False):
    def batch_at(ids, context_length, batch_size, seed, step):
        n_windows = (len(ids) - 1) // context_length
        epoch, position = divmod(step, n_windows // batch_size)
        random = np.random.default_rng(seed_of(seed, epoch, step))
        if replace:
            rows = random.integers(n_windows, size=batch_size)
        else:
            rows = random.permutation(n_windows)[position * batch_size : (position + 1) * batch_size]
        at = rows[:, None] * context_length + np.arange(context_length)
        return ids[at], ids[at + target_shift]

    return batch_at


def batch_from_a_state():
    random = np.random.default_rng(0)

    def batch_at(ids, context_length, batch_size, seed, step):
        at = random.permutation(20)[:4, None] * context_length + np.arange(context_length)
        return ids[at], ids[at + 1]

    return batch_at


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (batch_with(lambda seed, epoch, step: (seed, epoch), target_shift=0), "targets are the inputs themselves"),
        (batch_with(lambda seed, epoch, step: (seed, epoch), target_shift=-1), "each target is the id that follows"),
        (batch_with(lambda seed, epoch, step: None), "asked twice"),
        (batch_from_a_state(), "asked twice"),
        (batch_with(lambda seed, epoch, step: (seed, step), replace=True), "a window comes twice"),
        (batch_with(lambda seed, epoch, step: (seed, step)), "a window comes twice"),
        (batch_with(lambda seed, epoch, step: seed), "epoch 1 repeats the order"),
        (batch_with(lambda seed, epoch, step: epoch), "the seed is not used"),
        (batch_with(lambda seed, epoch, step: seed + epoch), "do not add the two"),
    ],
)
def test_batch_at(wrong, message):
    ex05.check_batch_at(batch_with(lambda seed, epoch, step: (seed, epoch)))
    refuses(ex05.check_batch_at, wrong, message)
