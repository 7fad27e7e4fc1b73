"""Checks of notebook 09, the next token. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.exercises import require_an_answer


def _near(given: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors are the same but for rounding."""
    return given.shape == wanted.shape and torch.allclose(given.double(), wanted.double(), atol=1e-5)


def check_penalise_text(answer: Callable[[Tensor, list[int], float], Tensor]) -> None:
    """`penalise_text(logits, text, r)`: the logits with the repetition penalty for what is in the text."""
    logits, text, r = torch.tensor([3.0, 2.0, -1.0, -4.0, 1.5]), [0, 3, 0], 2.0
    mine = logits.clone()
    given = answer(mine, list(text), r)
    require_an_answer(given)
    assert torch.equal(mine, logits), "the logits that were given have changed: begin with logits.clone()"
    assert isinstance(given, Tensor) and given.shape == logits.shape, "return a tensor of logits as long as the given"
    assert not _near(given, torch.tensor([1.5, 2.0, -1.0, -2.0, 1.5])), (
        "a negative logit that is divided goes up, and its token becomes more probable: multiply where it is below 0"
    )
    assert not _near(given, torch.tensor([0.75, 2.0, -1.0, -8.0, 1.5])), (
        "token 0 is in the text twice and was penalised twice: once is as bad as twice, so go through set(text)"
    )
    assert not _near(given, torch.tensor([1.5, 1.0, -2.0, -8.0, 0.75])), (
        "all tokens are penalised, and not only those in the text"
    )
    assert not _near(given, torch.tensor([6.0, 2.0, -1.0, -2.0, 1.5])), (
        "the two cases have changed places: r above 1 must make a token less probable, so divide what is positive"
    )
    assert not _near(given, torch.tensor([1.0, 2.0, -1.0, -6.0, 1.5])), (
        "you take r away: the repetition penalty divides and multiplies (frequency and presence subtract)"
    )
    wanted = torch.tensor([1.5, 2.0, -1.0, -8.0, 1.5])
    assert _near(given, wanted), f"expected {wanted.tolist()}, and you have {given.tolist()}"
    nothing = answer(logits.clone(), [], r)
    assert _near(nothing, logits), "an empty text penalises nothing: the logits stay as they are"
    print("penalise_text: right")


def check_nucleus(answer: Callable[[list[float], float], set[int]]) -> None:
    """`nucleus(probabilities, p)`: the ids of the fewest of the best that have p together."""
    shares = [0.0625, 0.25, 0.0625, 0.5, 0.125]  # exact in binary, so that no sum rounds
    given = answer(list(shares), 0.8)
    require_an_answer(given)
    assert isinstance(given, (set, frozenset)), f"return a set of ids, not a {type(given).__name__}"
    assert given != {0, 1, 2}, "those are places in the sorted order, not ids: keep each token's id while you sort"
    assert given != {0, 1, 2, 3, 4}, (
        "everything is kept: begin with the best, not with the least, and stop when the kept ones have p together"
    )
    assert given != {3, 1}, (
        "3 and 1 have 0.75 together, which is less than 0.8: the token that crosses p is needed and stays"
    )
    assert given != {0, 1, 2, 3}, "you go through the ids in their own order: the best come first"
    assert given == {3, 1, 4}, f"with p = 0.8 expected {{1, 3, 4}}, and you have {sorted(given)}"
    low = answer(list(shares), 0.3)
    assert low == {3}, f"the best one alone has 0.5, more than 0.3, and it always stays: {{3}}, not {sorted(low)}"
    exact = answer(list(shares), 0.75)
    assert exact == {3, 1}, (
        f"3 and 1 have exactly 0.75, which is enough: {{1, 3}}, not {sorted(exact)}. "
        "A token goes if those before it have >= p"
    )
    every = answer(list(shares), 1.0)
    assert every == set(range(5)), f"with p = 1 all that have probability stay, not {sorted(every)} alone"
    print("nucleus: right")


def _draws(answer: Callable[[Tensor, Tensor], int], logits: Tensor, n: int) -> Tensor:
    """How often each token is drawn in n draws: (V,)."""
    noise = torch.rand(n, len(logits), generator=torch.Generator().manual_seed(3)).clamp(1e-6, 1 - 1e-6)
    return torch.bincount(torch.tensor([int(answer(logits, u)) for u in noise]), minlength=len(logits))


def check_gumbel_draw(answer: Callable[[Tensor, Tensor], int]) -> None:
    """`gumbel_draw(logits, u)`: the id that the Gumbel-max trick draws with the uniform numbers u."""
    logits = torch.tensor([1.0, 0.5, 0.0, -0.5])
    first = answer(logits, torch.tensor([0.5, 0.5, 0.5, 0.5]))
    require_an_answer(first)
    assert isinstance(first, int) and not isinstance(first, bool), (
        f"return an int, the id, and not a {type(first).__name__}: int(... .argmax())"
    )
    assert first != 3, "with equal noise the best logit must win: you take argmin, or the signs are turned"
    assert first == 0, f"with equal noise the best logit wins, id 0, and you have {first}"
    noise = torch.rand(300, 4, generator=torch.Generator().manual_seed(5)).clamp(1e-6, 1 - 1e-6)
    given = [answer(logits, u) for u in noise]
    gumbel = -torch.log(-torch.log(noise))

    def is_same(scores: Tensor) -> bool:
        return given == scores.argmax(dim=1).tolist()

    assert set(given) != {0}, "the noise is not used: this is greedy, the same token always"
    assert not is_same(logits.softmax(0) * noise), (
        "the argmax of p · u, or of its logarithm, logits + log(u), takes the best far too often: "
        "add -log(-log(u)) to the logits"
    )
    assert not is_same(logits + noise), "plain uniform noise is not Gumbel noise: add -log(-log(u)) to the logits"
    assert not is_same(logits - torch.log(noise)), (
        "one logarithm is missing: -log(u) is a waiting time, and the noise is minus the logarithm of that"
    )
    assert not is_same(logits - gumbel), "the sign of the noise is turned: it is -log(-log(u)), added to the logits"
    assert not is_same(logits.softmax(0) + gumbel), "add the noise to the logits, not to the probabilities"
    shares = _draws(answer, logits, 2000) / 2000
    off = float((shares - logits.softmax(0)).abs().max())
    assert off < 0.05, f"the draws do not follow softmax(logits): a token is off by {off:.2f}"
    assert is_same(logits + gumbel), "expected the argmax of logits - log(-log(u)) for each row of noise"
    print("gumbel_draw: right")


def check_total_surprise(answer: Callable[[Tensor, Tensor], float]) -> None:
    """`total_surprise(logits, ids)`: -log p of ids[1:] in nats; row i scores what follows ids[i]."""
    generator = torch.Generator().manual_seed(2)
    logits, ids = 2 * torch.randn(6, 5, generator=generator), torch.tensor([4, 0, 3, 3, 1, 2])
    given = answer(logits, ids)
    require_an_answer(given)
    value = float(given)
    log_p = logits.log_softmax(dim=-1)
    wanted = F.cross_entropy(logits[:-1], ids[1:], reduction="sum").item()

    def is_near(other: float | Tensor) -> bool:
        return math.isclose(value, float(other), rel_tol=1e-4, abs_tol=1e-4)

    assert not is_near(-wanted), "that is the log-probability: surprise is minus that, and never below 0"
    assert not is_near(wanted / 5), "that is the mean, the loss of training: the total is the sum over the tokens"
    assert not is_near(wanted / math.log(2)), "that is in bits: nats take the natural logarithm"
    assert not is_near(-log_p[range(6), ids].sum()), (
        "row i scores what follows ids[i], and you look up ids[i] itself: pair logits[:-1] with ids[1:]"
    )
    assert not is_near(-log_p[range(1, 6), ids[1:]].sum()), (
        "you pair row i with ids[i], from 1 on: row i scores what comes after it, so pair logits[:-1] with ids[1:]"
    )
    assert not is_near(-log_p[range(1, 6), ids[:-1]].sum()), (
        "you look backwards: row i scores what follows ids[i], so pair logits[:-1] with ids[1:]"
    )
    assert not is_near(-logits[range(5), ids[1:]].sum()), "logits are no log-probabilities yet: log_softmax is missing"
    assert not is_near(-log_p[range(5), ids[1:]].exp().sum()), "probabilities multiply: add up their logarithms instead"
    assert not is_near(1 - log_p[range(5), ids[1:]].exp().sum()), "take the logarithm of each probability, then the sum"
    assert is_near(wanted), f"expected {wanted:.4f} nats, and you have {value:.4f}"
    certain = answer(torch.tensor([[0.0, 200.0], [0.0, 0.0]]), torch.tensor([0, 1]))
    assert abs(float(certain)) < 1e-6, f"what is certain surprises nobody: expected 0, and you have {float(certain)}"
    unlikely = answer(torch.tensor([[0.0, 200.0], [0.0, 0.0]]), torch.tensor([0, 0]))
    assert math.isclose(float(unlikely), 200.0, rel_tol=1e-4), (
        "log(softmax) underflows where p is e^-200: use log_softmax or cross_entropy; "
        f"expected 200, not {float(unlikely)}"
    )
    print("total_surprise: right")


def check_safe_length(answer: Callable[[str, Sequence[str]], int]) -> None:
    """`safe_length(text, stops)`: how many characters cannot be the beginning of a stop string any more."""
    given = answer("He looks at th", ["the sea"])
    require_an_answer(given)
    assert isinstance(given, int) and not isinstance(given, bool), f"return a number, not a {type(given).__name__}"
    assert given != 14, "all is shown: `th` at the end may become `the sea`, and cannot be taken back"
    assert given != 2, "that is how many must wait: asked for is how many may be shown"
    assert given != 13, "only the last character waits, but the end `th` is two long: try every length"
    assert given != 8, (
        "you hold back as many as the stop string is long, less one, whatever stands there: only what begins it waits"
    )
    assert given == 12, f"`He looks at ` may be shown, 12 characters, and you have {given}"
    free = answer("The sky is blue", ["the sea"])
    assert free == 15, f"no end of this text begins `the sea`, so all 15 may be shown, not {free}"
    inside = answer("theory of wind", ["the sea"])
    assert inside == 14, f"`the` stands at the beginning, but only an *end* of the text can grow: 14, not {inside}"
    several = answer("a b c<", ["the sea", "<|end|>", "c<|x"])
    assert several != 5, "`<` begins one stop string, and `c<` another, which is longer: the longest end waits"
    assert several != 6, "only the first stop string is looked at: go through all of them"
    assert several == 4, f"`c<` waits, so 4 characters may be shown, and you have {several}"
    repeated = answer("ababa", ["ababc"])
    assert repeated != 4, "`a` begins `ababc`, but so does the longer end `aba`: take the longest"
    assert repeated == 2, f"`aba` waits, so 2 characters may be shown, and you have {repeated}"
    short = answer("t", ["the sea"])
    assert short == 0, f"a text shorter than the stop string may be its beginning as a whole: 0, not {short}"
    none = answer("nothing stops this", [])
    assert none == 18, f"without stop strings all may be shown: 18, not {none}"
    print("safe_length: right")
