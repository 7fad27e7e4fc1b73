"""The checks of notebook 09 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from gpt_model.exercises import ex09
from gpt_model.generate import _possible_beginning
from gpt_model.sampling import keep_top_p, penalise_repetition
from tests.conftest import refuses


def penaliser(positive=lambda x, r: x / r, negative=lambda x, r: x * r, which=set, copies=True):
    """An answer with one part that may be wrong."""

    def penalise_text(logits, text, r):
        new = logits.clone() if copies else logits
        for i in which(text):
            new[i] = positive(new[i], r) if new[i] > 0 else negative(new[i], r)
        return new

    return penalise_text


def penalised_by_the_module(logits, text, r):
    counts = torch.bincount(torch.tensor(text, dtype=torch.long), minlength=len(logits))[None]
    return penalise_repetition(logits[None], torch.tensor([[r]]), counts)[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (penaliser(negative=lambda x, r: x / r), "a negative logit that is divided goes up"),
        (penaliser(which=list), "penalised twice"),
        (penaliser(copies=False), "have changed"),
        (penaliser(which=lambda text: range(5)), "all tokens are penalised"),
        (penaliser(lambda x, r: x * r, lambda x, r: x / r), "changed places"),
        (penaliser(lambda x, r: x - r, lambda x, r: x - r), "you take r away"),
        (lambda logits, text, r: logits[torch.tensor(text)] / r, "as long as the given"),
        (lambda logits, text, r: logits.clone(), "expected"),
        (lambda logits, text, r: penaliser()(logits, text or [1], r), "an empty text"),
    ],
)
def test_penalise_text(wrong, message):
    ex09.check_penalise_text(penaliser())
    ex09.check_penalise_text(penalised_by_the_module)
    refuses(ex09.check_penalise_text, wrong, message)


def kept(order=lambda shares: sorted(range(len(shares)), key=lambda i: -shares[i]), full=lambda sum_, p: sum_ >= p):
    """An answer with one part that may be wrong."""

    def nucleus(probabilities, p):
        ids, together = set(), 0.0
        for i in order(probabilities):
            if full(together, p):
                break
            ids.add(i)
            together += probabilities[i]
        return ids

    return nucleus


def without_the_last(probabilities, p):
    ids, together = set(), 0.0
    for i in sorted(range(len(probabilities)), key=lambda i: -probabilities[i]):
        together += probabilities[i]
        if together > p:
            break
        ids.add(i)
    return ids


def only_the_best_is_saved(probabilities, p):
    """0.8 right, 0.3 without the best."""
    return kept()(probabilities, p) if p > 0.5 else set()


def nucleus_of_the_module(probabilities, p):
    logits = torch.tensor([probabilities], dtype=torch.float64).log()
    left = keep_top_p(logits, torch.tensor([[p]], dtype=torch.float64)).isfinite()[0]
    return set(left.nonzero()[:, 0].tolist())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (without_the_last, "the token that crosses p is needed"),
        (kept(order=lambda shares: range(len(shares))), "in their own order"),
        (kept(order=lambda shares: sorted(range(len(shares)), key=lambda i: shares[i])), "begin with the best"),
        (lambda shares, p: set(range(len(kept()(shares, p)))), "places in the sorted order"),
        (lambda shares, p: sorted(kept()(shares, p)), "return a set"),
        (lambda shares, p: set(range(5)), "everything is kept"),
        (kept(full=lambda sum_, p: sum_ > p), "exactly 0.75"),
        (only_the_best_is_saved, "it always stays"),
        (lambda shares, p: kept()(shares, min(p, 0.9)), "with p = 1 all"),
    ],
)
def test_nucleus(wrong, message):
    ex09.check_nucleus(kept())
    refuses(ex09.check_nucleus, wrong, message)


def test_the_nucleus_is_the_module_s():
    shares = [0.05, 0.3, 0.1, 0.4, 0.15]
    for p in (0.2, 0.6, 0.8, 0.97):
        assert kept()(shares, p) == nucleus_of_the_module(shares, p)


def gumbel(noise, of=lambda logits: logits):
    return lambda logits, u: int((of(logits) + noise(u)).argmax())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda logits, u: int((logits.softmax(0) * u).argmax()), "argmax of p · u"),
        (gumbel(lambda u: u), "plain uniform noise"),
        (gumbel(lambda u: -u.log()), "one logarithm is missing"),
        (gumbel(lambda u: u.log()), "or of its logarithm"),
        (gumbel(lambda u: (-u.log()).log()), "the sign of the noise"),
        (gumbel(lambda u: -(-u.log()).log(), lambda logits: logits.softmax(0)), "not to the probabilities"),
        (lambda logits, u: int(logits.argmax()), "the noise is not used"),
        (lambda logits, u: (logits - (-u.log()).log()).argmax(), "return an int"),
        (lambda logits, u: int((logits - (-u.log()).log()).argmin()), "you take argmin"),
        (gumbel(lambda u: -(-u.log()).log(), lambda logits: logits / 2), "do not follow"),
    ],
)
def test_gumbel_draw(wrong, message):
    ex09.check_gumbel_draw(gumbel(lambda u: -(-u.log()).log()))
    refuses(ex09.check_gumbel_draw, wrong, message)


def surprise(logits, ids):
    return F.cross_entropy(logits[:-1], ids[1:], reduction="sum").item()


def own_rows(logits, ids, first=0):
    return F.cross_entropy(logits[first:], ids[first:], reduction="sum").item()


def through_probabilities(logits, ids):
    return -logits[:-1].softmax(-1)[range(len(ids) - 1), ids[1:]].log().sum().item()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x, ids: -surprise(x, ids), "that is the log-probability"),
        (lambda x, ids: surprise(x, ids) / (len(ids) - 1), "that is the mean"),
        (lambda x, ids: surprise(x, ids) / math.log(2), "in bits"),
        (own_rows, "you look up ids"),
        (lambda x, ids: own_rows(x, ids, 1), "from 1 on"),
        (lambda x, ids: F.cross_entropy(x[1:], ids[:-1], reduction="sum"), "you look backwards"),
        (lambda x, ids: -x[range(len(ids) - 1), ids[1:]].sum(), "log_softmax is missing"),
        (lambda x, ids: -x[:-1].softmax(-1)[range(len(ids) - 1), ids[1:]].sum(), "probabilities multiply"),
        (through_probabilities, "underflows"),
        (lambda x, ids: surprise(x, ids) + 1, "expected"),
    ],
)
def test_total_surprise(wrong, message):
    ex09.check_total_surprise(surprise)
    refuses(ex09.check_total_surprise, wrong, message)


def waiting(longest=max, which=lambda stops: stops):
    """An answer with one part that may be wrong."""

    def safe_length(text, stops):
        fits = [n for s in which(stops) for n in range(1, min(len(s) - 1, len(text)) + 1) if text.endswith(s[:n])]
        return len(text) - (longest(fits) if fits else 0)

    return safe_length


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda text, stops: len(text), "all is shown"),
        (lambda text, stops: len(text) - waiting()(text, stops), "how many must wait"),
        (lambda text, stops: len(text) - 1, "only the last character"),
        (lambda text, stops: len(text) - max(map(len, stops), default=1) + 1, "whatever stands there"),
        (waiting(which=lambda stops: stops[:1]), "only the first stop string"),
        (waiting(longest=min), "the longest end waits"),
        (lambda text, stops: 0 if text.startswith("the") else waiting()(text, stops), r"only an \*end\*"),
        (lambda text, stops: waiting()(text, stops) if len(text) > 1 else 1, "as a whole"),
        (lambda text, stops: waiting()(text, stops) if stops else 0, "without stop strings"),
    ],
)
def test_safe_length(wrong, message):
    ex09.check_safe_length(waiting())
    ex09.check_safe_length(lambda text, stops: len(text) - _possible_beginning(text, stops))
    refuses(ex09.check_safe_length, wrong, message)
