"""The checks of notebook 20 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer

from finetuning.classification.classifier import ClassifierConfig, GPTClassifier
from finetuning.classification.metrics import calibration_error
from finetuning.exercises import ex20
from gpt_model import GPT, GPTConfig
from tests.conftest import refuses


def bag(count=lambda found, word: found.count(word), split=lambda text: text.lower().split()):
    return lambda texts, words: [[count(split(text), word) for word in words] for text in texts]


def bag_of_sklearn(texts, words):
    return CountVectorizer(vocabulary=words).transform(texts).toarray().tolist()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (bag(split=lambda text: text.split()), "in small letters"),
        (bag(count=lambda found, word: int(word in found)), "each word counts once only"),
        (bag(split=lambda text: text.lower()), "split the text at blanks"),
        (lambda texts, words: [list(column) for column in zip(*bag()(texts, words), strict=True)], "changed places"),
        (lambda texts, words: {"good": 2}, "a list of rows"),
        (lambda texts, words: bag()(texts, words[::-1]), "expected"),
    ],
)
def test_bag_of_words(wrong, message):
    ex20.check_bag_of_words(bag())
    ex20.check_bag_of_words(bag_of_sklearn)
    refuses(ex20.check_bag_of_words, wrong, message)


def pooled_by_the_module(pooling):
    def pool(hidden, lengths):
        gpt = GPT(GPTConfig(vocab_size=9, context_length=8, n_layer=1, n_head=1, d_model=hidden.shape[2]))
        classifier = GPTClassifier(gpt, ClassifierConfig(tuple("abcd"), pooling, 8))
        classifier.score.weight.data.copy_(torch.eye(4))
        real = torch.arange(hidden.shape[1]) < lengths[:, None]
        return classifier.head(hidden.masked_fill(~real[..., None], 0), lengths).detach()

    return pool


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda hidden, lengths: hidden[:, -1], "the last column"),
        (lambda hidden, lengths: hidden[torch.arange(3), lengths.clamp(max=4)], "one too far"),
        (lambda hidden, lengths: hidden[:, lengths - 1], "index the rows, too"),
        (lambda hidden, lengths: hidden[:, 0], "the first token"),
        (lambda hidden, lengths: hidden[torch.arange(3), lengths - 2], "last but one"),
        (lambda hidden, lengths: hidden[0], "a vector a text"),
        (lambda hidden, lengths: hidden[torch.arange(3), lengths - 1].tolist(), "return a tensor"),
        (lambda hidden, lengths: -hidden[torch.arange(3), lengths - 1], "expected"),
    ],
)
def test_last_vectors(wrong, message):
    ex20.check_last_vectors(lambda hidden, lengths: hidden[torch.arange(len(hidden)), lengths - 1])
    ex20.check_last_vectors(pooled_by_the_module("last"))
    refuses(ex20.check_last_vectors, wrong, message)


def mean(inside=True, divisor=lambda hidden, lengths: lengths[:, None], fill=True):
    """An answer with one part that may be wrong."""

    def mean_vectors(hidden, lengths):
        real = (torch.arange(hidden.shape[1]) < lengths[:, None])[..., None]
        if inside:
            hidden = hidden.masked_fill(~real, 0) if fill else hidden * real
        return hidden.sum(dim=1) / divisor(hidden, lengths)

    return mean_vectors


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda hidden, lengths: hidden.mean(dim=1), "the padding is in the mean"),
        (mean(divisor=lambda hidden, lengths: hidden.shape[1]), "divide by the text's own length"),
        (mean(inside=False), "padding is in the sum"),
        (mean(divisor=lambda hidden, lengths: 1), "that is the sum"),
        (mean(fill=False), "0 · NaN is NaN"),
        (lambda hidden, lengths: hidden[torch.arange(3), lengths - 1], "that is the last token"),
        (lambda hidden, lengths: hidden[:, 0], "expected"),
    ],
)
def test_mean_vectors(wrong, message):
    ex20.check_mean_vectors(mean())
    ex20.check_mean_vectors(pooled_by_the_module("mean"))
    refuses(ex20.check_mean_vectors, wrong, message)


def batches_of(lengths, size):
    return [lengths[i : i + size] for i in range(0, len(lengths), size)]


def share(lengths, size):
    return 1 - sum(lengths) / sum(len(batch) * max(batch) for batch in batches_of(lengths, size))


def without_the_rest(lengths, size):
    return share(lengths[: len(lengths) // size * size], size)


def with_empty_rows(lengths, size):
    return 1 - sum(lengths) / sum(size * max(batch) for batch in batches_of(lengths, size))


def mean_of_shares(lengths, size):
    return sum(1 - sum(b) / (len(b) * max(b)) for b in batches_of(lengths, size)) / len(batches_of(lengths, size))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda lengths, size: share(sorted(lengths), size), "you sorted the lengths"),
        (lambda lengths, size: 1 - share(lengths, size), "the share of real tokens"),
        (lambda lengths, size: share(lengths, len(lengths)), "its own longest"),
        (lambda lengths, size: 10, "the number of padded cells"),
        (lambda lengths, size: 1 / (1 - share(lengths, size)) - 1, "divide by all cells"),
        (mean_of_shares, "sum cells"),
        (without_the_rest, "with one text, is missing"),
        (with_empty_rows, "have no cells"),
        (lambda lengths, size: 0.0, "expected 10 cells of 30"),
    ],
)
def test_padding_share(wrong, message):
    ex20.check_padding_share(share)
    refuses(ex20.check_padding_share, wrong, message)


def distances(sure, right, bins, last=True):
    """(answers, mean probability - share that is right) of each bin."""
    where = (sure * bins).astype(int)
    where = np.minimum(where, bins - 1) if last else where
    chosen = [where == i for i in range(bins)]
    return [(int(c.sum()), float(sure[c].mean() - right[c].mean())) for c in chosen if c.any()]


def ece(sure, right, bins, last=True, size=abs):
    return sum(n * size(gap) for n, gap in distances(sure, right, bins, last)) / len(sure)


def with_signs(sure, right, bins):
    return ece(sure, right, bins, size=lambda gap: gap)


def ece_of_the_module(sure, right, bins):
    """Which has 15 bins: they part these answers as well."""
    return calibration_error(right.astype(int), np.stack([1 - sure, sure], axis=1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda *a: float(np.mean([abs(gap) for _, gap in distances(*a)])), "every bin counts the same"),
        (lambda *a: ece(*a) * len(a[0]), "divide by the number of answers"),
        (lambda *a: sum(abs(gap) for _, gap in distances(*a)), "the plain sum"),
        (lambda *a: max(abs(gap) for _, gap in distances(*a)), "the largest distance"),
        (lambda sure, right, bins: float(np.abs(sure - right).mean()), "only a bin has a share"),
        (with_signs, "distances with a sign"),
        (lambda sure, right, bins: abs(sure.mean() - right.mean()), "all answers in one bin"),
        (lambda sure, right, bins: ece(sure, right, bins, last=False), "a probability of exactly 1"),
        (lambda *a: 0.5, "expected 0.4"),
    ],
)
def test_expected_calibration_error(wrong, message):
    ex20.check_expected_calibration_error(ece)
    refuses(ex20.check_expected_calibration_error, wrong, message)


def test_the_module_has_the_figure_of_the_check():
    sure, right = np.array([0.9] * 4 + [0.6] * 6), np.array([1, 1, 1, 0, 1, 1, 1, 0, 0, 0], dtype=bool)
    assert ece_of_the_module(sure, right, 15) == pytest.approx(ece(sure, right, 15)) == pytest.approx(0.12)
