"""Writes text with a trained model, token by token.

python gpt_model/generate.py --model runs/demo/model --prompt "The assert statement" --temperature 0.8

A model scores what may come next (`gpt.py`); a token is drawn from that (`sampling.py`), appended, and the model asked
again. The prompt is read in one pass, the *prefill*; from then on each step reads one token a text, and everything
before it from the cache.

    prompts of different lengths  are aligned at their ends, so that all of them write into the same column
    a text beyond the context     the older half of the window is forgotten and the newer half is read again from
                                  position 0, since learned positions cannot slide: once in context / 2 steps
    a stop string                 may be spread over tokens: text that could be its beginning waits until it is not
    a character                   may be spread over tokens too, and waits until it is whole
    on a GPU                      nothing waits for a token to arrive at the CPU before the next step is started
"""

from __future__ import annotations

import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from gpt_model.decoding import decoding_cache, decoding_length, decoding_step
from gpt_model.sampling import Sampler, Sampling, count_tokens
from utils.devices import pick_device
from utils.errors import UserError, run_command
from working_with_text_data.bytepair_enc import StreamDecoder

if TYPE_CHECKING:
    from attention_mechanisms import LayerCaches
    from gpt_model.gpt import GPT
    from working_with_text_data.bytepair_enc import BytePairTokenizer

_ROOM = 4096  # columns of text to begin with; who asks for a billion tokens will not read them all
T = TypeVar("T")
Processor = Callable[[Tensor, Tensor], Tensor]
"""Logits (batch, vocab_size) and the texts so far, int64 (batch, tokens) with -1 on the left, to new logits."""


class Token(NamedTuple):
    """A token that was drawn."""

    row: int
    """Of which text."""
    id: int
    logprob: float | None = None
    """Its log-probability, in nats, by the model itself: before processors, penalties, temperature and cuts."""
    alternatives: tuple[tuple[int, float], ...] = ()
    """The most probable (id, log-probability) at this place."""


@torch.inference_mode()
def generate_tokens(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | Sequence[Sampling] | None = None,
    stop: Collection[int] = (),
    processors: Sequence[Processor] = (),
    n_logprobs: int | None = None,
    compiled: bool = False,
) -> Generator[Token, None, None]:
    """Yields the tokens that follow each of `prompts`, step by step as they are drawn.

    A prompt longer than the context keeps its end. Texts do not depend on those beside them, but for rounding.

    Args:
        prompts: ids of each text, at least one.
        sampling: one for each text, or one for all; of that, text i has the seed `seed + i`.
        stop: ids that end a text; the one that was drawn is not yielded.
        processors: functions that change the logits, in their order, before `sampling` does.
        n_logprobs: how many alternatives come with each token, 0 for its own log-probability alone; None for neither.
        compiled: see `decoding.py`; the first steps then take half a minute.

    Raises:
        ValueError: a prompt is empty or has ids that the model does not know, or there are not as many settings.
    """
    require_prompts(model, prompts)
    if n_logprobs is not None and not 0 <= n_logprobs <= model.config.vocab_size:
        raise ValueError(f"n_logprobs must be from 0 to the vocabulary of {model.config.vocab_size}, got {n_logprobs}")
    sampler = Sampler(settings_of_rows(sampling, len(prompts)), model.device)
    texts = _Texts(prompts, max_new_tokens, model.device)
    lag = 1 if model.device.type == "cuda" else 0  # steps that are started before a token is looked at
    under_way: deque[_Drawn] = deque()
    going = set(range(len(prompts)))
    was_training = model.training
    model.eval()  # dropout off, until the texts end or nobody asks for more of them
    try:
        for logits in _next_logits(model, texts, max_new_tokens, compiled):
            adjusted = logits
            for processor in processors:
                adjusted = processor(adjusted, texts.so_far)
            ids = sampler.draw(sampler.adjust(adjusted, texts.counts(logits.shape[1]) if sampler.penalises else None))
            texts.append(ids)
            under_way.append(_Drawn(ids, logits, n_logprobs))
            if len(under_way) > lag:
                yield from under_way.popleft().tokens(going, stop)
            if not going:
                return
        for drawn in under_way:
            yield from drawn.tokens(going, stop)
    finally:
        model.train(was_training)


def generate(
    model: GPT,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: Collection[int] = (),
    processors: Sequence[Processor] = (),
    compiled: bool = False,
) -> Generator[int, None, None]:
    """`generate_tokens` of one text: yields the ids that follow `prompt_ids`."""
    for token in generate_tokens(model, [prompt_ids], max_new_tokens, sampling, stop, processors, None, compiled):
        yield token.id


def require_prompts(model: GPT, prompts: Sequence[Sequence[int]]) -> None:
    """Raises ValueError where a model cannot continue a prompt."""
    vocab_size = model.config.vocab_size
    if not prompts:
        raise ValueError("there is no prompt: give at least one")
    for prompt in prompts:
        if not len(prompt):
            raise ValueError("the prompt is empty: give at least one id, for example the tokenizer's eot_token")
        if not all(0 <= i < vocab_size for i in prompt):
            raise ValueError(f"the prompt has ids outside the model's vocabulary of {vocab_size}: is it its tokenizer?")


def settings_of_rows(sampling: Sampling | Sequence[Sampling] | None, n_rows: int) -> list[Sampling]:
    """The settings of each text.

    Raises:
        ValueError: there are not as many as texts.
    """
    if sampling is None or isinstance(sampling, Sampling):
        one = sampling or Sampling()
        return [one if one.seed is None else replace(one, seed=one.seed + row) for row in range(n_rows)]
    if len(sampling) != n_rows:
        raise ValueError(f"{len(sampling)} settings for {n_rows} texts: give one for each, or one for all")
    return list(sampling)


class _Texts:
    """Texts that grow in step, aligned at their ends, on the model's device.

    Args:
        prompts: their beginnings.
        room: tokens by which they may grow.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], room: int, device: torch.device) -> None:
        self.length = longest = max(map(len, prompts))
        self.padding = [longest - len(prompt) for prompt in prompts]
        rows = [[-1] * n + list(prompt) for n, prompt in zip(self.padding, prompts, strict=True)]
        self.ids = torch.tensor(rows, device=device)  # (batch, longest)
        self._make_room(min(room, _ROOM))
        self._counts: Tensor | None = None

    @property
    def so_far(self) -> Tensor:
        """(batch, length), with -1 before the beginnings."""
        return self.ids[:, : self.length]

    def _make_room(self, n_columns: int) -> None:
        """So many columns more to write into."""
        self.ids = torch.cat([self.ids, self.ids.new_full((len(self.ids), n_columns), -1)], dim=1)

    def append(self, ids: Tensor) -> None:
        """Adds a column, (batch, 1)."""
        if self.length == self.ids.shape[1]:
            self._make_room(self.length)
        self.ids[:, self.length : self.length + 1] = ids
        self.length += 1
        if self._counts is not None:
            self._counts.scatter_add_(1, ids, torch.ones_like(ids, dtype=self._counts.dtype))

    def last(self, n_columns: int) -> tuple[Tensor, Tensor | None]:
        """What a model reads, (batch, n_columns or fewer), and the padding of `make_cache`."""
        start = max(self.length - n_columns, 0)
        padding = [max(n - start, 0) for n in self.padding]
        ids = self.so_far[:, start:].clamp(min=0)
        return ids, torch.tensor(padding, device=ids.device) if any(padding) else None

    def counts(self, vocab_size: int) -> Tensor:
        """How often each token is in each text, (batch, vocab_size); kept up to date from now on."""
        if self._counts is None:
            self._counts = count_tokens(self.so_far, vocab_size, self.padding)
        return self._counts


def _next_logits(model: GPT, texts: _Texts, n_steps: int, compiled: bool) -> Iterator[Tensor]:
    """The logits of what follows `texts`, (batch, vocab_size), `n_steps` times; in between they grow by a token."""
    context = model.config.context_length
    step = decoding_step(model.device, compiled)
    cache: LayerCaches | None = None
    n_read, window = 0, context  # columns in the cache; columns to read when it is begun
    for left in range(n_steps, 0, -1):
        if cache is None or n_read == context:
            ids, padding = texts.last(window)  # at first as much as fits, later the newer half
            length = decoding_length(context, ids.shape[1] + left, compiled)
            cache = model.make_cache(len(ids), length, padding)
            logits = model.next_logits(ids, cache)
            cache, n_read, window = decoding_cache(cache, compiled), ids.shape[1], max(context // 2, 1)
        else:
            logits = step(model, texts.so_far[:, -1:], cache)
            n_read += 1
        yield logits


class _Drawn:
    """A drawn column on its way to the CPU, which need not wait for it.

    Args:
        ids: int64 (batch, 1).
        logits: (batch, vocab_size), from the model.
        n_logprobs: see `generate_tokens`.
    """

    def __init__(self, ids: Tensor, logits: Tensor, n_logprobs: int | None) -> None:
        self.parts = [ids]
        if n_logprobs is not None:
            logprobs = logits.float().log_softmax(dim=-1)
            best = logprobs.topk(n_logprobs)
            self.parts += [logprobs.gather(1, ids), best.indices, best.values]
        self.arrived: torch.cuda.Event | None = None
        if ids.is_cuda:
            self.parts = [part.to("cpu", non_blocking=True) for part in self.parts]
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def tokens(self, going: set[int], stop: Collection[int]) -> Iterator[Token]:
        """The tokens of the texts that are `going`; one that stops is taken out of them."""
        if self.arrived is not None:
            self.arrived.synchronize()
        ids, *more = [part.tolist() for part in self.parts]
        for row in sorted(going):
            token = ids[row][0]
            if token in stop:
                going.discard(row)
            elif more:
                (own,), best, values = more[0][row], more[1][row], more[2][row]
                yield Token(row, token, own, tuple(zip(best, values, strict=True)))
            else:
                yield Token(row, token)


class TextStream:
    """Turns ids into text, in pieces that are each certain.

    A character may be spread over tokens: bytes wait until it is whole. A stop string may be too: text that could be
    its beginning waits until it is known not to be.

    Args:
        stop: strings that end the text, whichever is complete first. It is not part of it.
    """

    def __init__(self, tokenizer: BytePairTokenizer, stop: Sequence[str] = ()) -> None:
        self.stop = [s for s in stop if s]
        self.decoder = StreamDecoder(tokenizer)
        self.waiting = ""
        self.stopped = False

    def feed(self, token: int) -> str:
        """What has become certain with one more token; nothing once the text has stopped."""
        if self.stopped:
            return ""
        self.waiting += self.decoder.feed(token)
        found = [(at + len(s), at) for s in self.stop if (at := self.waiting.find(s)) >= 0]
        if found:
            self.stopped = True
            _, cut = min(found)  # of several, the one that is complete first, however tokens cut the text
            return self.waiting[:cut]
        certain = len(self.waiting) - _possible_beginning(self.waiting, self.stop)
        piece, self.waiting = self.waiting[:certain], self.waiting[certain:]
        return piece

    def finish(self) -> str:
        """What still waits when no token comes any more."""
        return "" if self.stopped else self.waiting + self.decoder.finish()


def stream_text(ids: Iterable[int], tokenizer: BytePairTokenizer, stop: Sequence[str] = ()) -> Iterator[str]:
    """Yields the text of a stream of ids as a `TextStream` gives it; after a stop string no further id is asked for."""
    stream = TextStream(tokenizer, stop)
    for i in ids:
        if piece := stream.feed(i):
            yield piece
        if stream.stopped:
            return
    if rest := stream.finish():
        yield rest


def _possible_beginning(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of `text` begin one of the stop strings."""
    longest = min(max(map(len, stop), default=1) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in stop)), 0)


def encode_prompt(prompt: str, tokenizer: BytePairTokenizer, model: GPT) -> list[int]:
    """The ids of a prompt, all of it ordinary text; an empty one becomes `<|endoftext|>`: begin a new document.

    Raises:
        ValueError: the tokenizer has more tokens than the model.
    """
    if tokenizer.n_vocab > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.n_vocab:,} tokens and the model {model.config.vocab_size:,}: "
            "they do not belong together"
        )
    return tokenizer.encode_ordinary(prompt) or [tokenizer.eot_token]


def generate_text(
    model: GPT,
    tokenizer: BytePairTokenizer,
    prompt: str,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """`generate` from text to text: yields what follows `prompt`, until a stop string or a special token."""
    ids = generate(
        model, encode_prompt(prompt, tokenizer, model), max_new_tokens, sampling, set(tokenizer.special_tokens.values())
    )
    return stream_text(ids, tokenizer, stop)


@dataclass(frozen=True)
class Generate(Sampling):
    """The flags of this script."""

    model: str = "runs/demo/model"
    """A model folder, or the name of a model on the hub: gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2."""
    prompt: tuple[str, ...] = ("",)
    """One text, which is written as it comes, or several, which are continued side by side. Empty begins a new one."""
    max_new_tokens: int = 200
    """Tokens to write at most."""
    stop: tuple[str, ...] = ()
    """Strings at which to stop."""
    temperature: float = 0.8
    """Below 1 is safer, above 1 is wilder, 0 always takes the most probable token."""
    top_p: float = 0.95
    """Draw from only the fewest tokens with this probability together; 1 for all."""
    weights: Literal["as-saved", "float32", "bfloat16", "int8"] = "as-saved"
    """The format to keep the weights in: fewer bytes are read faster, and int8 is a little less exact."""
    compile: bool = False
    """torch.compile of the step: the first tokens then take half a minute longer, the others less. Needs a compiler."""
    draft: str | None = None
    """A smaller model with the same tokenizer, which guesses what comes next: the same distribution in fewer passes."""
    prompt_lookup: bool = False
    """Guess that the text goes on as it did after its last words when they last occurred: pays where text repeats."""
    n_guess: int = 4
    """Of --draft and --prompt-lookup: tokens to guess for each pass."""
    revision: str | None = None
    """Of a model on the hub: a branch, tag or commit; a published model's own if not given."""
    allow_pickle: bool = False
    """Open weights that are there as a pickle only, from somebody whom you trust."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise UserError(str(error)) from None
        if self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens must be at least 1, got {self.max_new_tokens}")
        if self.draft is not None and self.prompt_lookup:
            raise UserError("--draft and --prompt-lookup are two ways to guess: take one")
        if self.guesses and self.compile:
            raise UserError("--compile is for steps of one token, and guesses are judged several at a time: take one")
        if not self.guesses and self.n_guess != 4:
            raise UserError("--n-guess belongs to --draft or --prompt-lookup")

    @property
    def guesses(self) -> bool:
        """Whether several tokens are judged in one pass."""
        return self.draft is not None or self.prompt_lookup


def main(options: Generate) -> None:
    from gpt_model.pretrained import load_model, load_tokenizer
    from gpt_model.weight_only import few_rows_are_fast, store_weights

    device = pick_device(options.device)
    model = load_model(options.model, device, revision=options.revision, allow_pickle=options.allow_pickle)
    tokenizer = load_tokenizer(options.model, options.revision)
    if options.weights != "as-saved":
        model = store_weights(model, options.weights)
        if device.type == "cpu" and not few_rows_are_fast():
            print("no C++ compiler found: --weights saves memory here, and no time", file=sys.stderr)
    print(f"{options.model}: {model.n_parameters:,} parameters, on {model.device}", file=sys.stderr)
    prompts = [encode_prompt(prompt, tokenizer, model) for prompt in options.prompt]
    end = set(tokenizer.special_tokens.values())
    if options.guesses:
        _write_speculatively(model, prompts, end, tokenizer, options)
    else:
        clock = _Clock()
        tokens = clock.watch(
            generate_tokens(model, prompts, options.max_new_tokens, options, end, compiled=options.compile)
        )
        if len(prompts) == 1:
            _write_one((token.id for token in tokens), options.prompt[0], tokenizer, options.stop)
        else:
            _write_many(tokens, options.prompt, tokenizer, options)
        print(f"--- {clock}", file=sys.stderr)
    command = shlex.join(["python", "gpt_model/generate.py", "--model", options.model, "--prompt"])
    print(f'\nNext: your own words, {command} "..."', file=sys.stderr)


class _Clock:
    """When tokens came."""

    def __init__(self) -> None:
        self.n_tokens = 0
        self.start = self.first = self.last = time.perf_counter()

    def watch(self, tokens: Iterator[T]) -> Iterator[T]:
        """The same tokens, counted."""
        for token in tokens:
            self.n_tokens, self.last = self.n_tokens + 1, time.perf_counter()
            if self.n_tokens == 1:
                self.first = self.last
            yield token

    def __str__(self) -> str:
        speed = f", then {(self.n_tokens - 1) / (self.last - self.first):.0f} a second" if self.n_tokens > 1 else ""
        return f"{self.n_tokens} tokens: the first after {self.first - self.start:.2f} s{speed}"


def _write_speculatively(
    model: GPT, prompts: list[list[int]], end: set[int], tokenizer: BytePairTokenizer, options: Generate
) -> None:
    """One text after the other, each as it comes, with what became of the guesses."""
    from gpt_model.pretrained import load_model, load_tokenizer
    from gpt_model.speculative import Speculation, generate_speculatively

    draft = None
    if options.draft is not None:
        draft = load_model(options.draft, model.device)
        if load_tokenizer(options.draft).fingerprint != tokenizer.fingerprint:
            raise UserError(f"{options.draft} has another tokenizer than {options.model}: it cannot guess for it")
    for prompt, ids in zip(options.prompt, prompts, strict=True):
        done, clock = Speculation(), _Clock()
        tokens = generate_speculatively(
            model, ids, options.max_new_tokens, options, end, draft, options.n_guess, speculation=done
        )
        _write_one(clock.watch(tokens), prompt, tokenizer, options.stop)
        print(
            f"--- {clock}; {done.passes} passes, {done.tokens_per_pass:.2f} tokens each, "
            f"{done.accepted} of {done.guessed} guesses accepted",
            file=sys.stderr,
        )


def _write_one(ids: Iterator[int], prompt: str, tokenizer: BytePairTokenizer, stop: Sequence[str]) -> None:
    """A text as it comes."""
    print(f"\n--- {prompt!r}" if prompt else "\n--- (a new document)", file=sys.stderr)
    print(prompt, end="", flush=True)
    for piece in stream_text(ids, tokenizer, stop):
        print(piece, end="", flush=True)
    print(flush=True)


def _write_many(
    tokens: Iterator[Token], prompts: Sequence[str], tokenizer: BytePairTokenizer, options: Generate
) -> None:
    """Texts that are written side by side, one after the other when they are done."""
    streams = [TextStream(tokenizer, options.stop) for _ in prompts]
    texts = list(prompts)
    with tqdm(total=options.max_new_tokens * len(prompts), unit="token", desc="writes", leave=False) as bar:
        for token in tokens:
            texts[token.row] += streams[token.row].feed(token.id)
            bar.update()
            if all(stream.stopped for stream in streams):
                break
    for prompt, text, stream in zip(prompts, texts, streams, strict=True):
        print(f"\n--- {prompt!r}" if prompt else "\n--- (a new document)", file=sys.stderr, flush=True)
        print(text + stream.finish(), flush=True)


if __name__ == "__main__":
    run_command(main, Generate)
