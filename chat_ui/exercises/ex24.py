"""Checks of notebook 24, what happens when you press Enter. Each raises an AssertionError that names the mistake."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from utils.exercises import require_an_answer


def check_first_words(answer: Callable[[list[int]], Sequence[int]]) -> None:
    """`first_words(n_tokens)`: the pass of each first token, one person after another."""
    given = answer([6, 2, 3])
    require_an_answer(given)
    assert isinstance(given, list | tuple), f"return a list with a number for each person, not a {type(given).__name__}"
    assert len(given) == 3, f"there are 3 people, and you have {len(given)} numbers"
    some = list(given)
    assert some != [6, 8, 11], "those are the passes of the last tokens: the first comes before one's own others"
    assert some != [0, 6, 8], "passes are counted from 1: the first person's first token comes in pass 1"
    assert some != [1, 1, 1], "that is side by side: behind a lock one waits for all tokens of those before"
    assert some != [1, 2, 3], "those before take as many passes as they want tokens, not one each"
    assert some != [1, 3, 6], "you sort by length: they are served in the order in which they stand"
    assert some == [1, 7, 9], f"expected [1, 7, 9], as in section 1, and you have {some}"
    assert list(answer([4])) == [1], "with one person alone it is [1]"
    print("first_words: right")


def check_step_mask(answer: Callable[[Tensor], Tensor]) -> None:
    """`step_mask(lengths)`: which keys the new token of each row sees."""
    lengths = torch.tensor([3, 1, 4])
    given = answer(lengths.clone())
    require_an_answer(given)
    assert isinstance(given, Tensor), f"return a tensor, not a {type(given).__name__}"
    right = torch.arange(5) <= lengths[:, None]
    assert given.shape != (3, 4), "the new token's own key is there too: longest + 1 columns"
    assert given.shape != (5, 3), "that is (keys, rows): a row of the mask is a row of the cache"
    assert given.shape == (3, 5), f"expected (rows, longest + 1) = (3, 5), and you have {tuple(given.shape)}"
    assert given.dtype == torch.bool, f"a mask is of bools, not of {given.dtype}"
    assert not torch.equal(given, torch.arange(5) < lengths[:, None]), (
        "the new token does not see itself: it stands at position `length`, so that belongs to it, too"
    )
    assert not given.all(), "nothing is hidden: a shorter row would look at what somebody else has left there"
    assert not torch.equal(given, ~right), "True is where a query may look: you have it the other way round"
    assert not torch.equal(given, right.flip(1)), "rows are filled from the left here, not aligned at their ends"
    assert not torch.equal(given, torch.arange(5) == lengths[:, None]), "a token sees those before it, too"
    assert torch.equal(given, right), "row i is True for the keys 0 to lengths[i], its own among them"
    print("step_mask: right")


def check_safe_length(answer: Callable[[str, str], int]) -> None:
    """`safe_length(text, stop)`: characters that are certain."""
    given = answer("It is <|us", "<|user|>")
    require_an_answer(given)
    assert isinstance(given, int) and not isinstance(given, bool), f"return an int, not a {type(given).__name__}"
    assert given != 10, "nothing is held back: '<|us' may be the beginning of '<|user|>'"
    assert given != 4, "that is what waits: return what does not"
    assert given == 6, f"'It is ' is certain and '<|us' is not: expected 6, and you have {given}"
    assert answer("It is so.", "<|user|>") == 9, "no end of 'It is so.' begins '<|user|>': all 9 are certain"
    assert answer("a <|user|> b", "<|user|>") == 2, "the stop string is in the text: nothing from there on, so 2"
    assert answer("x<|<|", "<|user|>") == 3, "of 'x<|<|' only the last '<|' can still become '<|user|>': expected 3"
    assert answer("caa", "aab") == 1, "hold back the longest end that begins the stop string: of 'caa' it is 'aa'"
    assert answer("ca<|user|", "<|user|>") == 2, "all of the stop string but its last character has to wait, too"
    assert answer("<", "<|user|>") == 0, "the whole text may be a beginning: then nothing is certain"
    assert answer("", "<|user|>") == 0, "of an empty text nothing is certain, and nothing waits"
    print("safe_length: right")


def check_tokens_to_read(answer: Callable[[list[list[int]], list[int]], int]) -> None:
    """`tokens_to_read(rows, prompt)`: what the best row does not hold, and at least the last token."""
    given = answer([[5, 9], [5, 6, 7, 1, 9], []], [5, 6, 7, 8, 9, 4])
    require_an_answer(given)
    assert isinstance(given, int) and not isinstance(given, bool), f"return an int, not a {type(given).__name__}"
    assert given != 5, "that is with the first row: the second has more in common"
    assert given != 2, "after the first difference nothing counts: the 9 that follows has seen another token before it"
    assert given != 1, "count the beginning only: an id somewhere in a row is of no use"
    assert given != 6, "a row lends its beginning: what it holds of the prompt need not be read"
    assert given == 3, f"the second row holds 5, 6, 7: the other 3 are to be read, and you have {given}"
    assert answer([[1, 2, 3, 4]], [1, 2, 3]) == 1, (
        "all of it is there, but the last token is read in any case: its logits are what is wanted"
    )
    assert answer([], [1, 2]) == 2, "without any row all of the prompt is read"
    assert answer([[7]], [1, 2]) == 2, "a row that begins differently lends nothing"
    print("tokens_to_read: right")


def check_serve(answer: Callable[[list[tuple[int, int]], int], Sequence[int]]) -> None:
    """`serve(people, n_rows)`: the step of each first token, where who is there decides anew at every step."""
    people = [(0, 6), (0, 2), (1, 3), (1, 2)]
    given = answer(list(people), 2)
    require_an_answer(given)
    assert isinstance(given, list | tuple), f"return a list with a step for each person, not a {type(given).__name__}"
    some = list(given)
    assert some != [1, 7, 9, 12], "that is a lock: as long as a row is free, the next one begins beside the others"
    assert some != [1, 1, 7, 7], "those are static batches: a row is free as soon as *its* text is done"
    assert some != [1, 1, 2, 2], "there are 2 rows: the third has to wait until one of the first two is done"
    assert some != [0, 0, 2, 5], "steps are counted from 1"
    assert some != [1, 1, 2, 4], "who wants 2 tokens has the row in steps 1 and 2: it is free in step 3, not in step 2"
    assert some != [1, 1, 4, 8], "a row that becomes free in step 2 is taken in step 3: you leave it empty for a step"
    assert some != [1, 1, 5, 3], "first come, first served: the third came before the fourth"
    assert some == [1, 1, 3, 6], f"expected [1, 1, 3, 6], and you have {some}"
    alone = list(answer([(3, 2), (9, 1)], 2))
    assert alone != [1, 1], "nobody begins before coming: who arrives at 3 can begin in step 4"
    assert alone == [4, 10], f"for arrivals at 3 and 9, with rows free, expected [4, 10], and you have {alone}"
    assert list(answer([(0, 1), (0, 1)], 1)) == [1, 2], "one row, one token each: steps 1 and 2"
    print("serve: right")
