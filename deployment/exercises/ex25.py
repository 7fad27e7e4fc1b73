"""Checks of notebook 25, what a served token costs. Each raises an AssertionError that names the mistake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isclose

from utils.exercises import require_an_answer


def _require_a_number(given: object) -> None:
    assert isinstance(given, int | float) and not isinstance(given, bool), (
        f"return a number, not a {type(given).__name__}"
    )


def _near(given: float, expected: float) -> bool:
    return isclose(given, expected, rel_tol=1e-9, abs_tol=1e-12)


def check_price(answer: Callable[[float, float, float], float]) -> None:
    """`price(dollars_an_hour, tokens_per_second, busy)`: dollars for a million tokens."""
    given = answer(3.6, 50.0, 0.5)
    require_an_answer(given)
    _require_a_number(given)
    assert not _near(given, 20), "that is for a machine that is always busy: idle seconds are paid for, too"
    assert not _near(given, 10), "a machine that is idle half of the time makes tokens dearer, not cheaper"
    assert not _near(given, 144_000), "the price is for an hour, the tokens are for a second: 3600 is missing"
    assert not _near(given, 40e-6), "that is for one token: return the price of a million"
    assert not _near(given, 0.025), "that is how many million tokens a dollar buys: turn it round"
    assert _near(given, 40), (
        f"3.60 dollars an hour, 50 tokens a second, busy half of the time: 40 dollars, and you have {given}"
    )
    assert _near(answer(7.2, 1000.0, 1.0), 2), "for 7.2, 1000 and 1.0 it is 2 dollars"
    print("price: right")


def check_widest_step(answer: Callable[[int, int, int], int]) -> None:
    """`widest_step(a, c, most)`: as many texts as a step may have that lasts `most` at most."""
    given = answer(16, 4, 50)
    require_an_answer(given)
    assert isinstance(given, int) and not isinstance(given, bool), (
        f"return an int, not a {type(given).__name__}: there are only whole texts"
    )
    assert given != 9, "you round up: 9 texts take 16 + 9 · 4 = 52 ms"
    assert given != 12, "the shared part comes first: a is to be paid before any text is"
    assert given != 34, "each text takes c: divide what a leaves by it"
    assert given == 8, f"8 texts take 16 + 8 · 4 = 48 ms, and 9 take 52: expected 8, and you have {given}"
    assert answer(16, 4, 48) == 8, "8 texts take exactly 48 ms, which is allowed: `most` itself is not too long"
    none = answer(16, 4, 19)
    assert none != 1, "one text alone takes 20 ms: under 19 ms there is no room even for it, so 0"
    assert none == 0, f"where not even one text fits, return 0: for 19 ms you have {none}"
    assert answer(16, 4, 10) == 0, "where a alone is too long, return 0, and nothing below it"
    print("widest_step: right")


def check_waits(answer: Callable[[list[float], list[float]], Sequence[float]]) -> None:
    """`waits(due, seconds)`: one after another; from when a question was due to the end of its answer."""
    due, seconds = [0.0, 2.0, 3.0, 12.0], [4.0, 1.0, 5.0, 2.0]
    given = answer(list(due), list(seconds))
    require_an_answer(given)
    assert isinstance(given, list | tuple), f"return a list with a number for each question, not {given!r}"
    assert len(given) == 4, f"there are 4 questions, and you have {len(given)} numbers"
    some = list(given)
    assert some != seconds, (
        "that is the bug of section 7: your clock starts when the server turns to the question, not when it was due"
    )
    assert some != [0, 2, 2, 0], "that is until the answer *begins*: its own seconds are missing"
    assert some != [4, 5, 10, 14], "those are the moments when answers end: take off when each was due"
    assert some != [4, 3, 7, 0], (
        "the server cannot work ahead: the last question is due at 12, when the server has been free for 2 seconds"
    )
    assert some != [4, 3, 6, 2], "the third waits for the second, too, not for the first alone"
    assert some == [4, 3, 7, 2], f"expected [4, 3, 7, 2], and you have {some}"
    assert list(answer([5.0], [1.0])) == [1], "a server that is free begins at once: [1] for ([5], [1])"
    print("waits: right")


def check_paid_seconds(answer: Callable[[list[float], float], float]) -> None:
    """`paid_seconds(moments, idle)`: how long a container is there that goes `idle` seconds after the last answer."""
    given = answer([0, 60, 360, 420, 1200], 120)
    require_an_answer(given)
    _require_a_number(given)
    assert given != 360, "the last answer has its idle seconds, too: nobody knows that no other comes"
    assert given != 600, "each answer starts the clock anew: two that are 60 s apart do not pay for 120 s each"
    assert given != 1320, "between 60 and 360 nobody asks for 300 s: after 120 of them the container is gone"
    assert given != 1200, "that is from the first question to the last: the container was gone in between"
    assert given != 240, "short gaps are paid for as well: the container is there from 0 to 60"
    assert given == 480, f"60 + 120 + 60 + 120 between the answers and 120 at the end: 480, and you have {given}"
    assert answer([7], 120) == 120, "one answer costs its idle seconds: 120, wherever the clock stands"
    assert answer([0, 120], 120) == 240, "a gap of exactly `idle` seconds is paid for once: 120 + 120"
    assert answer([], 120) == 0, "where nobody asks, nothing is paid: 0 for an empty list"
    print("paid_seconds: right")


def check_price_within(answer: Callable[[float, float, float, float], float | None]) -> None:
    """`price_within(a, c, most, dollars_an_hour)`: the lowest price at which tokens come often enough."""
    given = answer(0.016, 0.004, 0.1, 3.6)
    require_an_answer(given)
    _require_a_number(given)
    assert given is not None
    assert not _near(given, 4), "that is the price that no load reaches: at ρ = 1 the gap has no end"
    assert not _near(given, 0.8), "that is ρ: the price is that of c, divided by ρ"
    assert not _near(given, 3.2), "the more there is to do, the cheaper a token: divide by ρ"
    assert not _near(given, 20), "ρ is the load, and not 1 - ρ: at ρ = 0.8 the machine is well used"
    assert not _near(given, 100 / 21), (
        "who is alone waits a + c for a token, not a: so the gap is (a + c) / (1 - ρ). What you have is the price of "
        "a step that always has as many texts, and people who come by chance do not do you that favour"
    )
    assert not _near(given, 100), "that is the price of a machine that gives one token each `most` seconds"
    assert _near(given, 5), (
        f"a + c = 20 ms may grow to 100 ms: ρ = 0.8, and a million tokens cost 4 / 0.8 = 5 dollars. You have {given}"
    )
    assert _near(answer(0.016, 0.004, 0.04, 7.2) or 0.0, 16), "for most = 0.04 s and 7.2 dollars an hour it is 16"
    for too_short in (0.02, 0.01):
        try:
            none = answer(0.016, 0.004, too_short, 3.6)
        except ZeroDivisionError:
            raise AssertionError("for most = a + c there is no room: return None before you divide") from None
        assert none is None, (
            f"who is alone waits 20 ms: for {too_short * 1e3:.0f} ms at most there is no load, and so no price. Return "
            f"None; you have {none}"
        )
    print("price_within: right")
