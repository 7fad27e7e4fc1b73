"""Beam search: the most probable text, rather than the most probable token again and again.

Greedy decoding takes the best token at each step and cannot go back on it. So it misses a text whose first token is
only second best and whose others make up for that:

    "the"  0.6  →  "cat" 0.4, "dog" 0.3, …       best text:  0.24
    "a"    0.4  →  "bird" 0.9, …                 best text:  0.36, which greedy decoding never sees

The best of all texts of T tokens is one of vocab_size^T; nobody can look at them all. Beam search keeps the `n_beams`
most probable beginnings, extends each by every token, and keeps the `n_beams` best of those. One beam is greedy
decoding; vocab_size^(T-1) beams forget nothing.

**Length.** Each token makes a text less probable, so that the most probable texts are short ones: empty, in the extreme
(Stahlberg and Byrne 2019). Texts of different lengths are therefore compared by

    score = log-probability / length ** length_penalty        (after Wu et al. 2016, section 7, in its plain form)

0 compares probabilities, 1 the mean log-probability of a token, more favours longer texts. A text that ends is set
aside with its score, and the search is over when no open beam can overtake any of those any more.

**What it is good for** is text that is nearly fixed by what is asked: translation, transcription, a short answer. In
open text the most probable continuation is dull and repeats itself, and people do not write so: their words are, again
and again, not the most probable ones (Holtzman et al. 2020). There, draw: see `sampling.py`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gpt_model.generate import require_prompts

if TYPE_CHECKING:
    from gpt_model.gpt import GPT


@dataclass(frozen=True)
class Beam:
    """A text that was found."""

    ids: list[int]
    """What follows the prompt, without the id that ended it."""
    logprob: float
    """The log-probability of all that, in nats, that id included."""
    score: float
    """`logprob` / length ** length_penalty, where an id that ended the text counts as one of it."""


@torch.inference_mode()
def beam_search(
    model: GPT,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    n_beams: int,
    length_penalty: float = 1.0,
    stop: Collection[int] = (),
) -> list[Beam]:
    """The best continuations of a prompt that beam search finds.

    All beams go through the model as one batch. Where a beam has several children, its row of the cache is copied to
    each of them; a beam without any is overwritten.

    Args:
        stop: ids that end a text; without any, all texts have `max_new_tokens` tokens.

    Returns:
        `n_beams` of them, or as many as there are, the best first.

    Raises:
        ValueError: the prompt is empty or has ids that the model does not know; it does not fit into the context with
            what is to come; or a number is out of its range.
    """
    require_prompts(model, [prompt_ids])
    _check(model, len(prompt_ids), max_new_tokens, n_beams, length_penalty)
    was_training = model.training
    model.eval()
    try:
        return _search(model, prompt_ids, max_new_tokens, n_beams, length_penalty, frozenset(stop))
    finally:
        model.train(was_training)


def _search(
    model: GPT,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    n_beams: int,
    length_penalty: float,
    stop: frozenset[int],
) -> list[Beam]:
    """`beam_search`, after its checks."""
    cache = model.make_cache(n_beams, len(prompt_ids) + max_new_tokens - 1)  # nobody asks what follows the last token
    ids = torch.tensor([prompt_ids] * n_beams, device=model.device)  # (n_beams, tokens): what is read next
    # All beams begin as the same text, and only one of them may have children, or each child would be there n times.
    totals = torch.full((n_beams, 1), -torch.inf, device=model.device)  # (n_beams, 1): log-probabilities
    totals[0] = 0
    texts: list[list[int]] = [[]] * n_beams
    finished: list[Beam] = []
    for length in range(1, max_new_tokens + 1):
        logprobs = totals + model.next_logits(ids, cache).float().log_softmax(dim=-1)  # (n_beams, vocab_size)
        open_beams: list[tuple[float, int, int]] = []  # log-probability, parent, token
        for rank, (logprob, parent, token) in enumerate(_best(logprobs, n_beams * (1 + len(stop)))):
            if token not in stop and length < max_new_tokens:
                open_beams.append((logprob, parent, token))
            elif rank < n_beams:  # a text may end here only if it is one of the best as it is
                text = texts[parent] if token in stop else [*texts[parent], token]
                finished.append(Beam(text, logprob, logprob / length**length_penalty))
        finished = sorted(finished, key=lambda beam: -beam.score)[:n_beams]
        open_beams = open_beams[:n_beams]
        if not open_beams or _is_decided(finished, open_beams[0][0], n_beams, length, max_new_tokens, length_penalty):
            break
        open_beams += [(-math.inf, 0, 0)] * (n_beams - len(open_beams))  # where there are not yet as many texts
        texts = [[*texts[parent], token] for _, parent, token in open_beams]
        values, parents, tokens = zip(*open_beams, strict=True)
        totals = torch.tensor(values, device=model.device)[:, None]
        ids = torch.tensor(tokens, device=model.device)[:, None]
        cache.select_rows(torch.tensor(parents, device=model.device))
    return finished


def _best(logprobs: torch.Tensor, n: int) -> list[tuple[float, int, int]]:
    """The n best children: log-probability, parent and token of each, the best first.

    Args:
        logprobs: (n_beams, vocab_size), of each beam with each token after it; -inf for what does not exist.
    """
    best = logprobs.flatten().topk(min(n, logprobs.numel()))
    children = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return [(value, *divmod(at, logprobs.shape[1])) for value, at in children if value > -math.inf]


def _is_decided(
    finished: Sequence[Beam], best_open: float, n_beams: int, length: int, max_length: int, length_penalty: float
) -> bool:
    """Whether no open beam can come to be among the finished ones.

    A log-probability only falls. So an open beam's score is at best its present log-probability over the length that
    flatters it most: the longest with a positive penalty, the present one with a negative.
    """
    flattering = max_length if length_penalty > 0 else length
    return len(finished) == n_beams and best_open / flattering**length_penalty <= finished[-1].score


def _check(model: GPT, n_prompt: int, max_new_tokens: int, n_beams: int, length_penalty: float) -> None:
    """Raises ValueError where numbers are out of their range or the text is too long."""
    for name, value in {"max_new_tokens": max_new_tokens, "n_beams": n_beams}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not -10 <= length_penalty <= 10:  # written so that NaN fails; beyond that, powers of lengths overflow
        raise ValueError(f"length_penalty must be from -10 to 10, got {length_penalty}")
    context = model.config.context_length
    if n_prompt + max_new_tokens - 1 > context:
        raise ValueError(
            f"a prompt of {n_prompt} tokens and {max_new_tokens} new ones do not fit into the model's context of "
            f"{context}: give a shorter prompt, or ask for less"
        )
