"""The checks of notebook 22 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from attention_mechanisms.masks import document_mask
from finetuning.exercises import ex22
from finetuning.instruction.answer_metrics import longest_common_subsequence, rouge_l
from finetuning.instruction.judge import compare
from finetuning.instruction.packing import Tokens, packed, tokens_of
from finetuning.instruction.prompt_format import Encoded
from tests.conftest import refuses


def masked(ids, said):
    return [i if mine else -100 for i, mine in zip(ids, said, strict=True)]


def of_the_module(ids, said):
    """`tokens_of` leaves out what stands after the last answer."""
    tokens = tokens_of(Encoded(ids, said), len(ids))
    assert tokens is not None
    targets = tokens.targets.tolist()
    return targets + [-100] * (len(ids) - 1 - len(targets))


def first_answer_only(ids, said):
    end = said.index(True) + said[said.index(True) :].index(False)
    return masked(ids[1:], [mine and i + 1 < end for i, mine in enumerate(said[1:])])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda ids, said: masked(ids[1:], said[:-1]), "once too few"),
        (lambda ids, said: masked(ids[:-1], said[:-1]), "those are the tokens that are read"),
        (lambda ids, said: masked(ids, said), "n tokens have n - 1 targets"),
        (lambda ids, said: ids[1:], "that asks everything"),
        (lambda ids, said: [i if mine else 0 for i, mine in zip(ids[1:], said[1:], strict=True)], "and not 0"),
        (lambda ids, said: [-100 if i == 1 else i for i in masked(ids[1:], said[1:])], "the end token"),
        (lambda ids, said: masked(ids[1:], [not mine for mine in said[1:]]), "the other way round"),
        (first_answer_only, "several answers"),
        (lambda ids, said: [7] * 6, "expected"),
    ],
)
def test_answer_targets(wrong, message):
    ex22.check_answer_targets(lambda ids, said: masked(ids[1:], said[1:]))
    ex22.check_answer_targets(lambda ids, said: torch.tensor(masked(ids[1:], said[1:])))
    ex22.check_answer_targets(of_the_module)
    refuses(ex22.check_answer_targets, wrong, message)


def total(parts):
    return sum(losses[asked].sum() for losses, asked in parts)


def count(parts):
    return sum(asked.sum() for _, asked in parts)


def mean(values):
    return sum(values) / len(values)


def by_rows(parts):
    return mean([row[asks].mean() for losses, asked in parts for row, asks in zip(losses, asked, strict=True)])


def joined(parts):
    return torch.cat([losses[asked] for losses, asked in parts]).mean()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda parts: mean([losses[asked].mean() for losses, asked in parts]), "the parts' means"),
        (by_rows, "the rows' means"),
        (lambda parts: torch.cat([losses.flatten() for losses, _ in parts]).mean(), "padding is counted"),
        (lambda parts: total(parts) / sum(losses.numel() for losses, _ in parts), "not by all places"),
        (total, "that is the sum"),
        (lambda parts: total(parts) / len(parts), "the number of parts"),
        (lambda parts: total(parts) / sum(len(losses) for losses, _ in parts), "the number of rows"),
        (
            lambda parts: sum(losses[asked].mean() * asked.sum() for losses, asked in parts) / count(parts),
            "without targets",
        ),
        (lambda parts: 0.5, "expected 9 / 6"),
    ],
)
def test_step_mean(wrong, message):
    ex22.check_step_mean(lambda parts: total(parts) / count(parts))
    ex22.check_step_mean(joined)
    refuses(ex22.check_step_mean, wrong, message)


def row_of_the_module(lengths, width):
    examples = [Tokens(np.zeros(n, np.int64), np.zeros(n, np.int64)) for n in lengths]
    _, _, documents, positions = packed([examples], width)
    return torch.from_numpy(positions[0]), document_mask(torch.from_numpy(documents))[0, 0]


def row(positions=lambda p: p, mask=lambda m: m):
    """An answer with one part that may be wrong."""

    def pack_row(lengths, width):
        p, m = row_of_the_module(lengths, width)
        return positions(p), mask(m)

    return pack_row


def hides_what_fills_up(lengths, width):
    positions, mask = row_of_the_module(lengths, width)
    mask[sum(lengths) :] = False
    return positions, mask


def fills_the_last_example(lengths, width):
    positions, _ = row_of_the_module(lengths, width)
    longer = [*lengths[:-1], width - sum(lengths[:-1])]
    return positions, row_of_the_module(longer, width)[1]


def two_examples_at_most(lengths, width):
    first = torch.arange(width) < lengths[0]
    used = torch.arange(width) < sum(lengths)
    documents = torch.where(first, 0, torch.where(used, 1, 2))
    return row_of_the_module(lengths, width)[0], document_mask(documents[None])[0, 0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (row(positions=lambda p: torch.arange(len(p))), "positions go on"),
        (row(positions=lambda p: p + 1), "positions begin at 0"),
        (row(positions=lambda p: p[:5]), r"positions are \(width,\)"),
        (row(positions=lambda p: 2 * p), "expected positions"),
        (row(mask=lambda m: torch.ones_like(m).tril()), "the causal mask alone"),
        (row(mask=lambda m: m | m.T), "those after it"),
        (row(mask=lambda m: m.T), "rows and columns"),
        (row(mask=lambda m: ~m), "true and false"),
        (row(mask=lambda m: m.float()), "boolean"),
        (row(mask=lambda m: m[None]), r"the mask is \(width, width\)"),
        (row(mask=lambda m: m & ~torch.eye(len(m), dtype=torch.bool)), "a softmax over nothing"),
        (hides_what_fills_up, "a softmax over nothing"),
        (fills_the_last_example, "what fills up sees an example"),
        (row(mask=lambda m: torch.eye(len(m), dtype=torch.bool)), "should be True"),
        (two_examples_at_most, "of three examples"),
        (lambda lengths, width: row()(lengths, width)[0], "return two tensors"),
    ],
)
def test_pack_row(wrong, message):
    ex22.check_pack_row(row_of_the_module)
    refuses(ex22.check_pack_row, wrong, message)


def rouge(common=longest_common_subsequence, figure=lambda n, said, wanted: 2 * n / (said + wanted)):
    """An answer with one part that may be wrong."""

    def rouge_of(said, wanted):
        n = common(said, wanted)
        return figure(n, len(said), len(wanted)) if n else 0.0

    return rouge_of


def bag(said, wanted):
    return sum((Counter(said) & Counter(wanted)).values())


def run_of_words(said, wanted):
    runs = [said[i:j] for i in range(len(said)) for j in range(i + 1, len(said) + 1)]
    return max(len(r) for r in [[], *runs] if any(wanted[k : k + len(r)] == r for k in range(len(wanted) + 1)))


def as_it_comes(said, wanted):
    found, start = 0, 0
    for word in said:
        if word in wanted[start:]:
            found, start = found + 1, wanted.index(word, start) + 1
    return found


def every_equal_word(said, wanted):
    return len([w for w in said if w in wanted]) if len(said) < 5 else longest_common_subsequence(said, wanted)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (rouge(common=bag), "a bag of words"),
        (rouge(common=run_of_words), "gaps are allowed"),
        (rouge(figure=lambda n, said, wanted: n), "L itself"),
        (rouge(figure=lambda n, said, wanted: n / wanted), "recall alone"),
        (rouge(figure=lambda n, said, wanted: n / said), "precision alone"),
        (rouge(figure=lambda n, said, wanted: n / (said + wanted)), "has a 2 in it"),
        (rouge(figure=lambda n, said, wanted: (n / said + n / wanted) / 2), "plain mean"),
        (rouge(common=every_equal_word), "as often as both have it"),
        (rouge(common=as_it_comes), "as it comes"),
        (lambda said, wanted: rouge()(said, wanted) if set(said) & set(wanted) else 0.1, "0 where nothing is common"),
        (lambda said, wanted: "half", "return a number"),
        (lambda said, wanted: 0.9, "expected 2"),
    ],
)
def test_rouge_of(wrong, message):
    ex22.check_rouge_of(rouge())
    ex22.check_rouge_of(lambda said, wanted: rouge_l(" ".join(said), " ".join(wanted)))
    refuses(ex22.check_rouge_of, wrong, message)


def known_judge(*verdicts):
    """A judge that says these, one after the other."""
    said = iter(verdicts)
    return lambda prompt: f"[[{next(said)}]]"


def outcomes_of_the_module(first, second):
    """`compare`, with judges whose two verdicts are known."""
    worth = {"win": 1.0, "moved": 0.5, "tie": 0.5, "loss": 0.0}
    found = [worth[compare(known_judge(*pair), "?", "ours", "theirs")] for pair in zip(first, second, strict=True)]
    return sum(found) / len(found)


def rate(worth=lambda a, b: {("A", "B"): 1.0, ("B", "A"): 0.0}.get((a, b), 0.5), keep=lambda a, b: True):
    """An answer with one part that may be wrong."""

    def swapped_win_rate(first, second):
        found = [worth(a, b) for a, b in zip(first, second, strict=True) if keep(a, b)]
        return sum(found) / len(found)

    return swapped_win_rate


VOTE = {"A": 1.0, "B": 0.0, "tie": 0.5}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (rate(worth=lambda a, b: VOTE[a]), "the first order alone"),
        (
            rate(worth=lambda a, b: {("A", "A"): 1.0, ("B", "B"): 0.0}.get((a, b), 0.5)),
            "places are exchanged",
        ),
        (rate(worth=lambda a, b: (VOTE[a] + 1 - VOTE[b]) / 2), "the mean of both orders"),
        (rate(worth=lambda a, b: float((a, b) == ("A", "B"))), "ties are worth a half"),
        (rate(keep=lambda a, b: {a, b} == {"A", "B"}), "divide by all of them"),
        (rate(keep=lambda a, b: (a, b) not in (("A", "A"), ("B", "B"), ("A", "tie"))), "do not leave them out"),
        (lambda first, second: len(first) * rate()(first, second), "that is a sum"),
        (lambda first, second: 1 - rate()(first, second), "expected"),
    ],
)
def test_swapped_win_rate(wrong, message):
    ex22.check_swapped_win_rate(rate())
    ex22.check_swapped_win_rate(outcomes_of_the_module)
    refuses(ex22.check_swapped_win_rate, wrong, message)
