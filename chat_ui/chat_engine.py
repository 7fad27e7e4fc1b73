"""The engine behind the chat and the API: conversations in, streams of text out, many at once, from one model.

    who asks                          the engine's thread
    ────────                          ───────────────────
    messages ─ layout ─> prompt ids ──> a row of the ContinuousBatch, beside all the others
                                       each step: a token ─ TextStream ─> text that is certain
    async for piece in …  <──────────── deliver(piece)

There is no web framework in here, and no lock around the model: those who ask at the same time are written side by side
(`gpt_model/continuous_batching.py`), so that the first word of one does not wait for the last word of another. The
thread begins with the first question and ends with the last answer.

A model that has learned instructions is asked in the layout that it learned them in, with as many turns as fit. What a
person types is text there and never a control token. A base model continues what it is given.
"""

from __future__ import annotations

import asyncio
import threading
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import NamedTuple

from finetuning.instruction.prompt_format import Message, PromptFormat
from gpt_model import GPT, Sampling, Token
from gpt_model.continuous_batching import ContinuousBatch, Finish, Progress, Text
from gpt_model.generate import TextStream, encode_prompt, require_prompts
from utils.errors import UserError
from working_with_text_data.bytepair_enc import BytePairTokenizer

_CACHE_BYTES = 2 * 2**30  # that the rows of an engine may take together, if nobody says otherwise
_MOST_ROWS = 32
_CHARACTERS_A_TOKEN = 50  # far more than any text has on average: what is longer is refused without being encoded


class Busy(Exception):
    """As many answers wait as may wait. Who asked should try again later."""


class TooLong(UserError):
    """A text that does not fit the model's context."""


class Piece(NamedTuple):
    """What one more token has made certain."""

    text: str
    """May be empty: half a character, or what could be the beginning of a stop string."""
    token: Token | None
    """None for what comes without a token: what was held back, at the end."""


Deliver = Callable[[Piece | None], object]


@dataclass(frozen=True)
class Prompt:
    """What the model is to continue."""

    ids: list[int]
    n_dropped: int = 0
    """Messages at the beginning of the conversation that did not fit the context."""


@dataclass(frozen=True)
class Wish:
    """How an answer should be written.

    Raises:
        ValueError: `max_new_tokens` or `n_logprobs` is out of its range.
    """

    max_new_tokens: int = 128
    """Tokens at most."""
    sampling: Sampling = field(default_factory=Sampling)
    """How they are drawn."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer; they are not part of it."""
    n_logprobs: int | None = None
    """How many alternatives come with each token; 0 for its own log-probability alone, None for neither."""
    slide: bool = False
    """Where the context is full: forget the older half and go on, or end."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.n_logprobs is not None and self.n_logprobs < 0:
            raise ValueError(f"n_logprobs must be at least 0, got {self.n_logprobs}")


class Answer:
    """An answer that is being written. Its figures are whole once it has ended.

    Args:
        deliver: is called from the engine's thread with each piece, and with None at the end.
    """

    def __init__(
        self, prompt: Prompt, wish: Wish, stream: TextStream, deliver: Callable[[Piece | None], object]
    ) -> None:
        self.prompt, self.wish = prompt, wish
        self.ids: list[int] = []
        """The tokens so far."""
        self.finish: Finish | None = None
        """Why it ended; None while it has not, or where `error` says why."""
        self.error: Exception | None = None
        """What went wrong inside, if something did."""
        self.n_reused = 0
        """Tokens of the prompt that did not have to be read, since the cache held them."""
        self.asked_at = time.perf_counter()
        self.first_at: float | None = None
        self.ended_at: float | None = None
        self._stream, self._deliver = stream, deliver
        self._text: Text | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """Nobody wants it any more: it ends at the next token. From any thread, as often as one likes."""
        self._cancelled = True
        if self._text is not None:
            self._text.cancelled = True

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.ended_at is not None

    @property
    def seconds_to_first(self) -> float | None:
        """From the question to the first token."""
        return None if self.first_at is None else self.first_at - self.asked_at

    @property
    def tokens_per_second(self) -> float | None:
        """After the first token."""
        if self.first_at is None or self.ended_at is None or len(self.ids) < 2:
            return None
        return (len(self.ids) - 1) / max(self.ended_at - self.first_at, 1e-9)

    # What follows is called by the engine alone, in its thread.

    def begin(self, text: Text) -> None:
        """The text that is written for it."""
        self._text = text
        if self._cancelled:  # it may happen at this very moment, and must not be undone
            text.cancelled = True

    def take(self, progress: Progress) -> None:
        """Passes on what a step has brought."""
        if self.has_ended:
            return
        if progress.token is not None:
            if not self.ids:
                self.first_at = time.perf_counter()
                self.n_reused = progress.text.n_reused
            self.ids.append(progress.token.id)
            self._send(Piece(self._stream.feed(progress.token.id), progress.token))
        finish = "stop" if self._stream.stopped else progress.finish
        if finish is not None:
            if rest := self._stream.finish():
                self._send(Piece(rest, None))
            progress.text.cancelled = True  # where it was a stop string, the batch does not know yet
            self.end(finish)

    def end(self, finish: Finish | None, error: Exception | None = None) -> None:
        """Nothing more comes."""
        self.finish, self.error, self.ended_at = finish, error, time.perf_counter()
        self._send(None)

    def _send(self, piece: Piece | None) -> None:
        try:
            self._deliver(piece)
        except RuntimeError:  # the event loop that listened is closed
            self.cancel()


class ChatEngine:
    """One model and all who talk to it.

    Args:
        layout: in which the model has learned instructions; None for a base model.
        name: what to call it in messages.
        n_rows: answers that are written at a time; as many as fit 2 GiB of cache, at most 32, if not given.
        max_waiting: answers that may wait beside those.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: BytePairTokenizer,
        layout: PromptFormat | None = None,
        name: str = "",
        n_rows: int | None = None,
        max_waiting: int = 256,
    ) -> None:
        encode_prompt("", tokenizer, model)  # raises where they do not belong together
        self.model, self.tokenizer, self.layout, self.name = model, tokenizer, layout, name
        self.n_rows = rows_that_fit(model) if n_rows is None else n_rows
        self.max_waiting = max_waiting
        self._batch = ContinuousBatch(model, self.n_rows)
        self.stop_ids = frozenset(tokenizer.special_tokens.values())
        self._lock = threading.Lock()
        self._incoming: list[Answer] = []
        self._answers: dict[Text, Answer] = {}
        self._thread: threading.Thread | None = None

    @property
    def context_length(self) -> int:
        """Tokens of a conversation that the model can see."""
        return self._batch.max_length

    @property
    def n_open(self) -> int:
        """Answers that have not ended."""
        return len(self._incoming) + len(self._answers)

    def prompt(self, asked: Sequence[Message] | str, max_new_tokens: int) -> Prompt:
        """The ids for a conversation that ends with a question, or for a text to continue.

        A conversation that leaves no room for an answer, of `max_new_tokens` or half the context, loses its oldest
        turns. A system message at its beginning stays.

        Raises:
            UserError: there is no text in it, or a base model is given a conversation.
            TooLong: it does not fit even so.
        """
        if isinstance(asked, str):
            self._require_fits(asked)
            return Prompt(self._checked(encode_prompt(asked, self.tokenizer, self.model)))
        if self.layout is None:
            raise UserError(f"{self.name} is a base model, which continues a text and knows no conversation")
        for message in asked:
            self._require_fits(message["content"])
        if not asked or not asked[-1]["content"].strip():
            raise UserError("the message is empty: write something")
        layout, system = self.layout, list(asked[:1]) if asked[0]["role"] == "system" else []
        room = self.context_length - min(max_new_tokens, self.context_length // 2)
        least = max(self._first_that_may_fit(asked), len(system))
        starts = [i for i in range(least, len(asked)) if asked[i]["role"] == "user"] or [least]

        def ids_from(start: int) -> list[int]:
            return layout.encode(self.tokenizer, [*system, *asked[start:]], ask=True).ids

        if least == len(system) and len(whole := ids_from(least)) <= room:
            return Prompt(whole)
        first = bisect_left(starts, True, hi=len(starts) - 1, key=lambda start: len(ids_from(start)) <= room)
        return Prompt(self._checked(ids_from(starts[first])), starts[first] - len(system))

    def prompt_of_ids(self, ids: Sequence[int]) -> Prompt:
        """The same for a text that is ids already.

        Raises:
            TooLong: there are too many.
            ValueError: there is none, or the model does not know one.
        """
        require_prompts(self.model, [ids])
        return Prompt(self._checked(list(ids)))

    def cancel_all(self) -> None:
        """Ends all answers at their next token."""
        with self._lock:
            for answer in [*self._incoming, *self._answers.values()]:
                answer.cancel()

    def _require_fits(self, text: str) -> None:
        """Refuses what is too long by far, without encoding it."""
        if len(text) > _CHARACTERS_A_TOKEN * self.context_length:
            raise TooLong(
                f"this text has {len(text):,} characters, and {self.name or 'this model'} reads "
                f"{self.context_length:,} tokens at a time, of about 4 characters each: shorten it"
            )

    def _first_that_may_fit(self, asked: Sequence[Message]) -> int:
        """Before it there are more messages, or more text, than a context holds: none of that is encoded."""
        room = _CHARACTERS_A_TOKEN * self.context_length
        for i in reversed(range(len(asked))):
            room -= max(len(asked[i]["content"]), _CHARACTERS_A_TOKEN)  # each takes a token of its layout at least
            if room < 0:
                return i + 1
        return 0

    def _checked(self, ids: list[int]) -> list[int]:
        if len(ids) >= self.context_length:
            raise TooLong(
                f"this text has {len(ids):,} tokens, and {self.name or 'this model'} reads {self.context_length:,} at "
                "a time, its answer among them: shorten it"
            )
        return ids

    def ask(self, prompt: Prompt, wish: Wish, deliver: Deliver) -> Answer:
        """Begins an answer; from any thread. Ids that the model does not know are a ValueError in the answer's `error`.

        Raises:
            Busy: too many wait already.
        """
        answer = Answer(prompt, wish, TextStream(self.tokenizer, wish.stop), deliver)
        with self._lock:
            if self.n_open >= self.n_rows + self.max_waiting:
                raise Busy(f"{self.n_open} answers are being written or wait: try again later")
            self._incoming.append(answer)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"engine {self.name}", daemon=True)
                self._thread.start()
        return answer

    def write(self, prompt: Prompt, wish: Wish) -> Generator[str, None, None]:
        """The answer as it comes, for whoever waits in a thread; it is cancelled if the reader leaves."""
        pieces: SimpleQueue[Piece | None] = SimpleQueue()
        answer = self.ask(prompt, wish, pieces.put)
        try:
            while (piece := pieces.get()) is not None:
                if piece.text:
                    yield piece.text
        finally:
            answer.cancel()
        if answer.error:
            raise answer.error

    def stream(self, prompt: Prompt, wish: Wish) -> tuple[Answer, AsyncIterator[Piece]]:
        """The same for asyncio: the answer, and its pieces as they come. Call it with the loop running."""
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Piece | None]()
        answer = self.ask(prompt, wish, lambda piece: loop.call_soon_threadsafe(pieces.put_nowait, piece))

        async def received() -> AsyncIterator[Piece]:
            try:
                while (piece := await pieces.get()) is not None:
                    yield piece
            finally:
                answer.cancel()
            if answer.error:
                raise answer.error

        return answer, received()

    def _run(self) -> None:
        """The thread: steps until nobody waits for anything."""
        while True:
            with self._lock:
                incoming, self._incoming = self._incoming, []
                if not incoming and not self._answers:
                    self._thread = None
                    return
                for answer in incoming:
                    self._begin(answer)
            try:
                progress = self._batch.step()
            except Exception as error:  # out of memory, say: everybody is told, and the next one finds an empty batch
                self._fail(error)
                continue
            for one in progress:
                if answer_of := self._answers.get(one.text):
                    answer_of.take(one)
                if one.finish:
                    self._answers.pop(one.text, None)

    def _begin(self, answer: Answer) -> None:
        wish = answer.wish
        try:
            text = self._batch.add(
                answer.prompt.ids, wish.max_new_tokens, wish.sampling, self.stop_ids, wish.n_logprobs, wish.slide
            )
        except Exception as error:  # whatever it is, it must not end the thread that all others wait for
            answer.end(None, error)
            return
        self._answers[text] = answer
        answer.begin(text)

    def _fail(self, error: Exception) -> None:
        answers, self._answers = list(self._answers.values()), {}
        self._batch.clear()  # in place: where memory was short there is none for another one
        for answer in answers:
            if not answer.has_ended:
                answer.end(None, error)


def rows_that_fit(model: GPT, n_bytes: int = _CACHE_BYTES) -> int:
    """How many texts of a whole context the cache may hold in so many bytes: at least 1, at most 32."""
    a_number = model.transformer.ln_f.weight.element_size()
    return max(1, min(_MOST_ROWS, n_bytes // model.cache_bytes(model.config.context_length, a_number)))
