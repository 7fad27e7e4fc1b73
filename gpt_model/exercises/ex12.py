"""Checks of notebook 12, guess and judge. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from utils.exercises import require_an_answer


def check_accept_probability(answer: Callable[[float, float], float]) -> None:
    """`accept_probability(p_x, q_x)`: min(1, p / q)."""
    given = answer(0.1, 0.4)
    require_an_answer(given)
    assert abs(given - 0.1) > 1e-9, "that is p(x) alone, which is right for a guesser that is certain: divide by q(x)"
    assert abs(given - 4.0) > 1e-9, (
        "the fraction is upside down: p / q, since what is guessed too often must be refused"
    )
    assert abs(given - 0.25) < 1e-9, f"with p = 0.1 and q = 0.4 it is 0.25, and you have {given}"
    assert answer(0.6, 0.3) <= 1, "above 1: a probability ends there, so take the minimum of 1 and p / q"
    assert abs(answer(0.6, 0.3) - 1) < 1e-9, "what comes too seldom from the guesser is always accepted"
    print("accept_probability: right")


def check_leftover(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """`leftover(p, q)`: (p - q)⁺, normalised."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.1, 0.7])
    given = answer(p.clone(), q.clone())
    require_an_answer(given)
    assert given.shape == p.shape, f"a probability for each token, shape {tuple(p.shape)}, not {tuple(given.shape)}"
    assert not torch.allclose(given, p), "that is p: what was accepted already would be counted twice"
    assert float(given.min()) >= 0, "a probability is negative: where q is larger, nothing is left, so clamp at 0"
    assert not torch.allclose(given, torch.tensor([0.0, 0.0, 1.0])), (
        "that is (q - p)⁺: what the guesser has too much of"
    )
    assert not torch.allclose(given, torch.tensor([0.3, 0.2, 0.0])), "it does not sum to 1: divide by its sum"
    assert not torch.allclose(given, torch.tensor([0.3, 0.2, 0.0]).softmax(0)), "a softmax is not a division by the sum"
    assert torch.allclose(given, torch.tensor([0.6, 0.4, 0.0])), f"expected 0.6, 0.4, 0, and you have {given.tolist()}"
    print("leftover: right")


def check_expected_tokens(answer: Callable[[Sequence[float]], float]) -> None:
    """`expected_tokens(rates)`: 1 + r0 + r0 r1 + …"""
    given = answer([0.5, 0.5, 0.5])
    require_an_answer(given)
    assert abs(given - 0.875) > 1e-9, "the token that comes of itself is missing: each pass gives one more"
    assert abs(given - 2.5) > 1e-9, (
        "you add the rates up: a guess counts only if all before it were accepted, so multiply along the way"
    )
    assert abs(given - 1.125) > 1e-9, (
        "that counts only passes of which every guess is accepted: the others give some too"
    )
    assert abs(given - 1.875) < 1e-9, f"1 + 1/2 + 1/4 + 1/8 is 1.875, and you have {given}"
    assert abs(answer([]) - 1) < 1e-9, "without guesses a pass gives one token"
    assert abs(answer([0.0, 1.0]) - 1) < 1e-9, "what comes after a refusal is lost, however good it would have been"
    assert abs(answer([1.0, 0.0]) - 2) < 1e-9, "the order matters: with rates 1 and 0 a pass gives two tokens"
    print("expected_tokens: right")


def check_lookup(answer: Callable[[list[int], int, int], list[int]]) -> None:
    """`lookup(text, size, n)`: what followed the last `size` tokens when they last occurred before."""
    text = [1, 2, 7, 7, 1, 2, 8, 9, 3, 1, 2]
    given = answer(list(text), 2, 2)
    require_an_answer(given)
    assert given != [], "nothing was found, though 1, 2 is there twice before: is the tail the last `size` tokens?"
    assert given != [7, 7], "that followed the first time: look from the end, for what is near is more often right"
    assert given != [1, 2], "you give the tail itself: what followed begins `size` tokens later"
    assert given == [8, 9], f"after the last 1, 2 before the end came 8, 9, and you have {given}"
    assert answer([5, 6, 5], 1, 4) == [6, 5], "fewer than n may follow: give what there is"
    assert answer([1, 2, 3], 2, 2) == [], (
        "the tail itself is no earlier occurrence: nothing follows it, so an empty list where there is no other"
    )
    print("lookup: right")
