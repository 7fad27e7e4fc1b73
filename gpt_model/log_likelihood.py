"""How probable is a continuation? The one question from which every evaluation is made.

A model gives ln p of each next token, so it gives ln p of any text after any other: the sum over its tokens, each given
all before it. Three uses of that one number:

    how good is the model?      ln p of a text that it has not seen: perplexity, bits per byte (`evaluate.py`)
    which answer does it give?  the one of several with the highest ln p: HellaSwag (`tasks.py`)
    what would it say itself?   are all of the answer's tokens the most probable ones? LAMBADA (`tasks.py`)

**Batches.** Continuations of about the same length are computed together, filled up on the *right*: no token sees what
comes after it, so what stands there changes nothing, and positions begin at 0 as they did in training. Logits are made
for the continuation's tokens alone; of 1,024 tokens in GPT-2 all of them would be 200 MB a text.

**Texts longer than the context** are judged in windows. Each window moves on by `stride` tokens and judges only these;
what it sees before them is context:

    stride = context    t0 t1 t2 t3 | t4 t5 t6 t7       one pass a token; t4 is guessed from nothing: mostly too harsh
    stride = 2          t0 t1 t2 t3
                              t2 t3   t4 t5             every token after the first window has at least
                                      t4 t5   t6 t7     context - stride tokens before it: two passes a token
    stride = 1          each has all that the model can see, which is the true figure and `context` passes a token
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from tqdm import tqdm

from utils.devices import Precision, autocast

if TYPE_CHECKING:
    from gpt_model.gpt import GPT
    from working_with_text_data.bytepair_enc import BytePairTokenizer

Ids = Sequence[int]
Pair = tuple[Ids, Ids]
"""The ids of a context and of what follows it."""


def log_likelihoods(
    model: GPT,
    pairs: Sequence[Pair],
    batch_size: int = 16,
    precision: Precision = "float32",
    progress: str = "",
) -> list[tuple[float, bool]]:
    """For each (context, continuation): ln p(continuation | context), and whether it is what greedy decoding writes.

    A pair that is longer than the model's context loses the beginning of its context.

    Args:
        progress: the title of a progress bar; none without it.

    Raises:
        ValueError: a side is empty, a continuation is longer than the model's context, or an id is not in its
            vocabulary.
    """
    require_pairs(model, pairs)
    order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))  # longest first: if it fits, all do
    results = [(0.0, False)] * len(pairs)
    was_training = model.training
    model.eval()
    with tqdm(total=len(pairs), desc=progress, disable=not progress, leave=False) as bar:
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            for i, result in zip(places, _judge(model, [pairs[i] for i in places], precision), strict=True):
                results[i] = result
            bar.update(len(places))
    model.train(was_training)
    return results


@torch.inference_mode()
def _judge(model: GPT, pairs: Sequence[Pair], precision: Precision) -> list[tuple[float, bool]]:
    """`log_likelihoods` of one batch."""
    room = model.config.context_length + 1  # the last id is only a target
    rows = [[*context, *continuation][-room:] for context, continuation in pairs]
    longest = max(map(len, rows)) - 1
    ids = torch.tensor([row[:-1] + [0] * (longest + 1 - len(row)) for row in rows], device=model.device)
    sums, greedy = [], []
    with autocast(model.device, precision):
        hidden = model.hidden_states(ids)  # (batch, longest, d_model)
        for vectors, row, (_, continuation) in zip(hidden, rows, pairs, strict=True):
            n, end = len(continuation), len(row) - 1
            logits = model.logits_of(vectors[end - n : end]).float()  # (n, vocab_size)
            targets = torch.tensor(row[-n:], device=model.device)  # (n,)
            sums.append(-F.cross_entropy(logits, targets, reduction="sum"))
            greedy.append((logits.argmax(dim=-1) == targets).all())
    return list(zip(torch.stack(sums).tolist(), torch.stack(greedy).tolist(), strict=True))


def require_pairs(model: GPT, pairs: Sequence[Pair]) -> None:
    """Raises ValueError where a model cannot judge a pair."""
    context_length, vocab_size = model.config.context_length, model.config.vocab_size
    for context, continuation in pairs:
        if not len(context) or not len(continuation):
            raise ValueError("a context and its continuation need at least one token each: <|endoftext|> is a context")
        if len(continuation) > context_length:
            raise ValueError(
                f"a continuation of {len(continuation)} tokens does not fit the model's context of {context_length}: "
                "use a model with a longer context"
            )
        if not (min(*context, *continuation) >= 0 and max(*context, *continuation) < vocab_size):
            raise ValueError(f"there are ids outside the model's vocabulary of {vocab_size}: is it its tokenizer?")


def windows_of(ids: Ids, context_length: int, stride: int) -> Iterator[Pair]:
    """Cuts a text into pairs of which every id but the first is in just one continuation: see the drawing above.

    Raises:
        ValueError: `stride` is not from 1 to `context_length`.
    """
    if not 1 <= stride <= context_length:
        raise ValueError(f"the stride must be from 1 to the model's context of {context_length}, got {stride}")
    begin, end = 1, 1 + context_length
    while begin < len(ids):
        end = min(end, len(ids))
        yield ids[max(end - 1 - context_length, 0) : begin], ids[begin:end]
        begin, end = end, end + stride


def text_log_likelihood(
    model: GPT, ids: Ids, stride: int | None = None, batch_size: int = 16, precision: Precision = "float32"
) -> float:
    """ln p of a text of any length, its first id given.

    Args:
        ids: the first, usually `<|endoftext|>`, is only context.
        stride: tokens by which each window moves on; half the model's context if not given.

    Raises:
        ValueError: as `log_likelihoods` and `windows_of`.
    """
    stride = default_stride(model) if stride is None else stride
    windows = list(windows_of(ids, model.config.context_length, stride))
    return sum(ln_p for ln_p, _ in log_likelihoods(model, windows, batch_size, precision))


def default_stride(model: GPT) -> int:
    """Half the model's context: two passes a token, and each has at least that half before it."""
    return max(model.config.context_length // 2, 1)


def encode_pair(tokenizer: BytePairTokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The ids of two texts as they are when the second follows the first: lm-evaluation-harness's rule.

    They are encoded together and cut where the context alone would end, since "the cat" is "the" and " cat", and never
    "the ", "cat": spaces at the context's end go to the continuation.

    Raises:
        ValueError: the tokenizer has no `<|endoftext|>`, which an empty context becomes.
    """
    bare = context.rstrip()
    together = tokenizer.encode_ordinary(context + continuation)
    if not bare:
        return [tokenizer.eot_token], together
    cut = len(tokenizer.encode_ordinary(bare))
    return together[:cut], together[cut:]


def require_same_vocabulary(model: GPT, tokenizer: BytePairTokenizer) -> None:
    """Raises ValueError where a tokenizer gives ids that a model does not know."""
    if tokenizer.n_vocab > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.n_vocab:,} tokens and the model {model.config.vocab_size:,}: "
            "they do not belong together"
        )
