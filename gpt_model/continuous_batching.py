"""Many texts at once, which come and go: continuous batching (Yu et al. 2022, Orca).

A step reads every weight of the model from memory, for one text or for thirty. So those who wait for the model should
be served together. `generate_tokens` does that for texts that begin together; a server's texts do not. Here each step

    admits   texts that wait, as long as there is a free row in the cache
    reads    at most `chunk` tokens of prompts, so that no long one keeps the others waiting (Agrawal et al. 2023)
    steps    all texts that are being written by one token, in one pass, each at its own position (`ragged.py`)
    draws    a token for each of them, by its own settings and its own random numbers

and whoever is done leaves its row to the next. What the row has read stays there: a text that begins like it, such as
the next turn of the same conversation, is read from where the two part. Any row may lend its beginning; a shared system
prompt is computed once.

Rows that step together are the first ones of the cache, so that a step works on a piece of memory and not on a
selection of it. When one of them is done, the last one moves into its place: a copy of one text, once a text.

A text is the same as `generate_tokens` would write it alone, but for rounding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from attention_mechanisms import LayerCaches
from attention_mechanisms.ragged import RaggedCaches
from gpt_model.generate import Token, require_prompts
from gpt_model.sampling import Sampler, Sampling, count_tokens, random_source

if TYPE_CHECKING:
    from gpt_model.gpt import GPT

Finish = Literal["stop", "length", "context", "cancelled"]
"""Why a text ended: a stop token, its last token, a full context, or nobody wants it any more."""


@dataclass(eq=False)
class Text:
    """A text that is written."""

    number: int
    """Which one of its batch, counted from 0."""
    ids: list[int]
    """The prompt, and what has been written so far."""
    max_new_tokens: int
    sampling: Sampling
    stop: Collection[int]
    """Ids that end the text."""
    n_logprobs: int | None
    """As in `generate_tokens`."""
    slide: bool
    """Where the context is full: go on with its newer half, or end."""
    n_prompt: int = field(init=False)
    """Tokens of the prompt."""
    n_reused: int = 0
    """Tokens of the prompt that a row of the cache held already."""
    cancelled: bool = False
    """Set by whoever does not want it any more, from any thread; it ends at the next step."""
    read_from: int = 0
    """Where in `ids` the row of the cache begins."""

    def __post_init__(self) -> None:
        self.n_prompt = len(self.ids)
        self.generator = random_source(self.sampling.seed)
        self.counts: Tensor | None = None  # (vocab_size,), where the sampling penalises

    @property
    def n_new(self) -> int:
        """Tokens written."""
        return len(self.ids) - self.n_prompt


class Progress(NamedTuple):
    """What a step did for a text."""

    text: Text
    token: Token | None
    """What was drawn; nothing where a stop token was, or the text was cancelled."""
    finish: Finish | None
    """Why the text has ended; None while it goes on."""


class _Row:
    """A row of the cache, the ids that are in it, and the text that has it."""

    def __init__(self, cache: LayerCaches) -> None:
        self.cache = cache
        self.ids: list[int] = []
        self.text: Text | None = None
        self.last_used = 0

    def swap(self, other: _Row) -> None:
        """Exchanges everything."""
        self.cache.swap(other.cache)
        self.ids, other.ids = other.ids, self.ids
        self.text, other.text = other.text, self.text
        self.last_used, other.last_used = other.last_used, self.last_used

    def reset(self) -> None:
        """Forgets what it has read."""
        self.cache.reset()
        self.ids = []


class ContinuousBatch:
    """Writes texts side by side. Not for several threads at once, but for `Text.cancelled`.

    Args:
        model: is put into evaluation mode.
        n_rows: texts that are written at a time; more have to wait.
        max_length: tokens of a text that a row holds; the model's context if not given.
        chunk: tokens of prompts that are read in a step at most.

    Raises:
        ValueError: a number is not at least 1, or `max_length` is above the model's context.
    """

    def __init__(self, model: GPT, n_rows: int = 32, max_length: int | None = None, chunk: int = 256) -> None:
        context = model.config.context_length
        max_length = context if max_length is None else max_length
        if n_rows < 1 or chunk < 1 or not 1 <= max_length <= context:
            raise ValueError(
                f"n_rows={n_rows} and chunk={chunk} must be at least 1, and max_length={max_length} from 1 to the "
                f"model's context of {context}"
            )
        self.model, self.max_length, self.chunk = model.eval(), max_length, chunk
        self.shared = model.make_cache(n_rows, max_length)
        self.rows = [_Row(self.shared.row(i)) for i in range(n_rows)]
        self.n_writing = 0  # the first so many rows are past their prompts
        self.waiting: deque[Text] = deque()
        self._n_texts = self._n_steps = 0
        self._sampler: tuple[list[Text], Sampler] = [], Sampler([], model.device)

    def add(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling | None = None,
        stop: Collection[int] = (),
        n_logprobs: int | None = None,
        slide: bool = False,
    ) -> Text:
        """A text to write; it begins as soon as there is a free row. Of a prompt beyond `max_length` the end is read.

        Raises:
            ValueError: the prompt is empty or has ids that the model does not know, or `max_new_tokens` is below 1.
        """
        require_prompts(self.model, [prompt])
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        text = Text(self._n_texts, list(prompt), max_new_tokens, sampling or Sampling(), stop, n_logprobs, slide)
        text.read_from = max(text.n_prompt - self.max_length, 0)
        self._n_texts += 1
        self.waiting.append(text)
        return text

    @property
    def n_texts(self) -> int:
        """Texts that are written or wait."""
        return len(self.waiting) + sum(row.text is not None for row in self.rows)

    def clear(self) -> None:
        """Lets go of all texts, and of what the rows have read; also after a step that has broken off anywhere."""
        self.waiting.clear()
        self.n_writing = 0
        for row in self.rows:
            row.text = None
            row.reset()

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """One pass for all that are being written, and a piece of prompts; what came of it, in no special order."""
        self._n_steps += 1
        gone = list(self._cancel())
        self._admit()
        logits = [self._write()] if self.n_writing else []
        logits += self._read()
        return gone + (self._draw(torch.cat(logits)) if logits else [])

    def _cancel(self) -> Iterator[Progress]:
        """Lets go of what nobody wants any more."""
        for waiting in [text for text in self.waiting if text.cancelled]:
            self.waiting.remove(waiting)
            yield Progress(waiting, None, "cancelled")
        for i in reversed(range(len(self.rows))):
            text = self.rows[i].text
            if text and text.cancelled:
                self._leave(i)
                yield Progress(text, None, "cancelled")

    def _admit(self) -> None:
        """Gives free rows to those who wait."""
        while self.waiting and (free := [row for row in self.rows if row.text is None]):
            text = self.waiting.popleft()
            prompt = text.ids[text.read_from :]
            # The last token is read in any case: its logits are what is wanted.
            shared = [_n_common(row.ids, prompt[:-1]) for row in self.rows]
            lender, n = max(zip(self.rows, shared, strict=True), key=lambda pair: pair[1])
            # A row that would mostly be kept is taken itself. From others the beginning is copied.
            mostly_kept = lender.text is None and 2 * n >= len(lender.ids) > 0
            row = lender if mostly_kept else min(free, key=lambda row: row.last_used)
            try:
                if row is lender:
                    row.cache.truncate(n)
                else:
                    row.cache.copy_from(lender.cache, n)
                row.ids = prompt[:n]
            except ValueError:  # a window that has moved on
                row.reset()
            row.text, text.n_reused = text, len(row.ids)

    def _read(self) -> list[Tensor]:
        """Reads a piece of the prompts; the logits of those that are through, (1, vocab_size) each."""
        room, logits = self.chunk, []
        while room and (row := self._next_to_read()) and (text := row.text):
            begin = text.read_from + len(row.ids)
            piece = text.ids[begin : begin + room]
            last = self.model.next_logits(torch.tensor([piece], device=self.model.device), row.cache)
            row.ids += piece
            room -= len(piece)
            if begin + len(piece) == len(text.ids):
                logits.append(last)
                self._exchange(row, self.rows[self.n_writing])
                self.n_writing += 1
        return logits

    def _next_to_read(self) -> _Row | None:
        """The row of the oldest text whose prompt has not been read to its end."""
        reading = [row for row in self.rows[self.n_writing :] if row.text]
        return min(reading, key=lambda row: row.text.number if row.text else 0, default=None)

    def _write(self) -> Tensor:
        """The step of all that are past their prompts: (n_writing, vocab_size)."""
        rows = self.rows[: self.n_writing]
        for row in rows:
            assert row.text is not None
            row.ids.append(row.text.ids[-1])
        caches = RaggedCaches(self.shared, [row.cache for row in rows])
        logits = self.model.next_logits(torch.tensor([row.ids[-1:] for row in rows], device=self.model.device), caches)
        caches.done()
        return logits

    def _draw(self, logits: Tensor) -> list[Progress]:
        """A token for each of the texts that are past their prompts; (n_writing, vocab_size)."""
        texts = [row.text for row in self.rows[: self.n_writing] if row.text is not None]
        if texts != self._sampler[0]:
            settings, generators = [text.sampling for text in texts], [text.generator for text in texts]
            self._sampler = texts, Sampler(settings, logits.device, generators)
        sampler = self._sampler[1]
        counts = torch.stack([_counts(text, logits) for text in texts]) if sampler.penalises else None
        ids = sampler.draw(sampler.adjust(logits, counts))
        tokens = list(_tokens(texts, ids, logits))
        progress = [self._take(i, tokens[i]) for i in reversed(range(len(texts)))]  # rows behind i have been looked at
        return progress[::-1]

    def _take(self, i: int, token: Token) -> Progress:
        """Adds what was drawn to the text in row `i`, and ends it if this was its last."""
        row, text = self.rows[i], self.rows[i].text
        assert text is not None
        row.last_used = self._n_steps
        finish: Finish | None = None
        if token.id in text.stop:
            self._leave(i)
            return Progress(text, None, "stop")
        text.ids.append(token.id)
        if text.counts is not None:
            text.counts[token.id] += 1
        if text.n_new == text.max_new_tokens:
            finish = "length"
        elif len(row.ids) == self.max_length:
            finish = None if text.slide else "context"
            if text.slide:
                text.read_from = len(text.ids) - max(self.max_length // 2, 1)
                row.reset()
                self._stop_writing(i)
        if finish:
            self._leave(i)
        return Progress(text, token, finish)

    def _leave(self, i: int) -> None:
        """Row `i` is free; what it has read stays in it."""
        self.rows[i].text = None
        if i < self.n_writing:
            self._stop_writing(i)

    def _stop_writing(self, i: int) -> None:
        """Takes row `i` out of the first ones."""
        self.n_writing -= 1
        self._exchange(self.rows[i], self.rows[self.n_writing])

    @staticmethod
    def _exchange(a: _Row, b: _Row) -> None:
        if a is not b:
            a.swap(b)


def _n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two texts have in common from their beginning."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


def _counts(text: Text, logits: Tensor) -> Tensor:
    """How often each token is in a text, (vocab_size,); kept up to date from now on."""
    if text.counts is None:
        text.counts = count_tokens(torch.tensor([text.ids], device=logits.device), logits.shape[1], [0])[0]
    return text.counts


def _tokens(texts: Sequence[Text], ids: Tensor, logits: Tensor) -> Iterator[Token]:
    """What was drawn, with its log-probability and the best others where that is wanted.

    Args:
        ids: int64 (texts, 1).
        logits: (texts, vocab_size), from the model.
    """
    for i, (text, token) in enumerate(zip(texts, ids.flatten().tolist(), strict=True)):
        if text.n_logprobs is None:
            yield Token(text.number, token)
            continue
        logprobs = logits[i].float().log_softmax(dim=-1)
        best = logprobs.topk(text.n_logprobs)
        alternatives = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        yield Token(text.number, token, float(logprobs[token]), alternatives)
