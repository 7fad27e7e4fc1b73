"""Writes text with a trained model, token by token.

python gpt_model/generate.py --model runs/demo/model --prompt "The assert statement" --temperature 0.8

A model gives a distribution over the next token; generation draws from it, appends, and asks again. How one draws
decides between dull and deranged:

    temperature         logits / t: below 1 sharpens, above 1 flattens, 0 always takes the most probable (greedy)
    top-k               only the k most probable tokens (Fan et al. 2018)
    top-p               only the fewest tokens that together have probability p (nucleus, Holtzman et al. 2020)
    min-p               only tokens at least min_p times as probable as the best (Nguyen et al. 2024)
    repetition penalty  tokens already in the text: positive logits / r, negative ones · r (Keskar et al. 2019, 4.1)

They are applied in this order: penalty, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from utils.devices import pick_device
from utils.errors import UserError, run_command
from working_with_text_data.bytepair_enc import StreamDecoder

if TYPE_CHECKING:
    from gpt_model.gpt import GPT
    from working_with_text_data.bytepair_enc import BytePairTokenizer


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The defaults draw from the model's own distribution.

    Raises:
        ValueError: a value is out of its range.
    """

    temperature: float = 1.0
    """Below 1 is safer, above 1 is wilder, 0 always takes the most probable token."""
    top_k: int = 0
    """Draw from only the k most probable tokens; 0 for all."""
    top_p: float = 1.0
    """Draw from only the fewest tokens with this probability together; 1 for all."""
    min_p: float = 0.0
    """Draw from only tokens at least this fraction as probable as the best; 0 for all."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that are already in the text less probable."""
    seed: int | None = None
    """The same seed gives the same text; none gives another each time."""

    def __post_init__(self) -> None:
        checks = {
            "temperature": (self.temperature == 0 or 0.001 <= self.temperature < math.inf, "0 or at least 0.001"),
            "top_k": (self.top_k >= 0, "at least 0 (0 for no limit)"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0 (1 for none)"),
            "seed": (self.seed is None or 0 <= self.seed < 2**63, "from 0 to 2**63 - 1"),
        }
        for name, (fine, wanted) in checks.items():
            if not fine:
                raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)}")


def next_token_logits(logits: Tensor, sampling: Sampling, seen: Collection[int] = ()) -> Tensor:
    """The logits that are drawn from: penalised, scaled, and -inf for the tokens that are cut off.

    Args:
        logits: (vocab_size,) of the next token. Not changed.
        seen: ids already in the text, for the repetition penalty.

    Returns:
        float32 (vocab_size,); the best token always remains. With temperature 0 only the best one does.
    """
    logits = logits.float().clone()
    if seen and sampling.repetition_penalty != 1:
        ids = torch.tensor(sorted(set(seen)), device=logits.device)
        chosen = logits[ids]
        penalty = sampling.repetition_penalty
        logits[ids] = torch.where(chosen > 0, chosen / penalty, chosen * penalty)
    if sampling.temperature == 0:
        best = logits.argmax()
        return torch.full_like(logits, -torch.inf).index_fill(0, best, 0.0)
    logits /= sampling.temperature
    if 0 < sampling.top_k < len(logits):
        logits[logits < logits.topk(sampling.top_k).values[-1]] = -torch.inf
    if sampling.top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(dim=0)
        before = probabilities.cumsum(dim=0) - probabilities  # what the more probable tokens have together
        logits[order[before >= sampling.top_p]] = -torch.inf
    if sampling.min_p > 0:
        probabilities = logits.softmax(dim=0)
        logits[probabilities < sampling.min_p * probabilities.max()] = -torch.inf
    return logits


@torch.inference_mode()
def generate(
    model: GPT,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: Collection[int] = (),
) -> Generator[int, None, None]:
    """Yields the ids that follow `prompt_ids`, one by one as they are drawn.

    When the text outgrows the model's context, the older half of the window is forgotten and the newer half is read
    again from position 0 (learned positions cannot slide). A prompt longer than the context keeps its end.

    Args:
        prompt_ids: at least one id.
        stop: ids that end the text; the one that was drawn is not yielded.

    Raises:
        ValueError: the prompt is empty or has ids that the model does not know.
    """
    sampling = sampling or Sampling()
    vocab_size, context = model.config.vocab_size, model.config.context_length
    if not prompt_ids:
        raise ValueError("the prompt is empty: give at least one id, for example the tokenizer's eot_token")
    if not all(0 <= i < vocab_size for i in prompt_ids):
        raise ValueError(f"the prompt has ids outside the model's vocabulary of {vocab_size}: is it its tokenizer?")
    was_training = model.training
    model.eval()  # dropout off, until the text ends or nobody asks for more of it
    generator = torch.Generator()  # on the CPU, so that a seed gives the same draws for every device
    if sampling.seed is not None:
        generator.manual_seed(sampling.seed)
    else:
        generator.seed()
    text = list(prompt_ids)
    cache = model.make_cache(1, min(context, len(text) + max_new_tokens))
    unread = text[-context:]
    try:
        for _ in range(max_new_tokens):
            if cache.length + len(unread) > context:
                cache.reset()
                unread = text[-max(context // 2, 1) :]
            hidden = model.hidden_states(torch.tensor([unread], device=model.device), cache)  # (1, unread, d_model)
            logits = model.lm_head(hidden[0, -1])  # (vocab_size,): only the last position is asked what comes next
            probabilities = next_token_logits(logits, sampling, text).softmax(dim=0).cpu()
            token = int(torch.multinomial(probabilities, 1, generator=generator))
            if token in stop:
                return
            text.append(token)
            unread = [token]
            yield token
    finally:
        model.train(was_training)


def stream_text(ids: Iterable[int], tokenizer: BytePairTokenizer, stop: Sequence[str] = ()) -> Iterator[str]:
    """Yields the text of a stream of ids in pieces, as soon as each is certain.

    A character may be spread over tokens: bytes wait until it is whole. A stop string may be too: text that could be
    its beginning waits until it is known not to be.

    Args:
        stop: strings that end the text, whichever is complete first; it is not yielded, and no further id is asked for.
    """
    stop = [s for s in stop if s]
    decoder = StreamDecoder(tokenizer)
    waiting = ""
    for i in ids:
        waiting += decoder.feed(i)
        found = [(at + len(s), at) for s in stop if (at := waiting.find(s)) >= 0]
        if found:
            _, cut = min(found)  # of several, the one that is complete first, however tokens cut the text
            if cut:
                yield waiting[:cut]
            return
        certain = len(waiting) - _possible_beginning(waiting, stop)
        if certain:
            yield waiting[:certain]
            waiting = waiting[certain:]
    if rest := waiting + decoder.finish():
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

    model: Path = Path("runs/demo/model")
    """A model folder."""
    prompt: tuple[str, ...] = ("",)
    """One text or several; each is continued in its turn. Empty lets the model begin."""
    max_new_tokens: int = 200
    """Tokens to write at most."""
    stop: tuple[str, ...] = ()
    """Strings at which to stop."""
    temperature: float = 0.8
    """Below 1 is safer, above 1 is wilder, 0 always takes the most probable token."""
    top_p: float = 0.95
    """Draw from only the fewest tokens with this probability together; 1 for all."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise UserError(str(error)) from None
        if self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens must be at least 1, got {self.max_new_tokens}")


def main(options: Generate) -> None:
    from gpt_model.pretrained import load_model, load_tokenizer

    model = load_model(options.model, pick_device(options.device))
    tokenizer = load_tokenizer(options.model)
    end = set(tokenizer.special_tokens.values())
    print(f"{options.model}: {model.n_parameters:,} parameters, on {model.device}", file=sys.stderr)
    for prompt in options.prompt:
        print(f"\n--- {prompt!r}" if prompt else "\n--- (a new document)", file=sys.stderr)
        print(prompt, end="", flush=True)
        ids = generate(model, encode_prompt(prompt, tokenizer, model), options.max_new_tokens, options, end)
        n_tokens, start = 0, time.perf_counter()

        def counted(ids: Iterator[int] = ids) -> Iterator[int]:
            nonlocal n_tokens
            for i in ids:
                n_tokens += 1
                yield i

        for piece in stream_text(counted(), tokenizer, options.stop):
            print(piece, end="", flush=True)
        seconds = time.perf_counter() - start
        print(flush=True)
        print(f"--- {n_tokens} tokens, {n_tokens / max(seconds, 1e-9):.0f} a second", file=sys.stderr)
    command = shlex.join(["python", "gpt_model/generate.py", "--model", str(options.model), "--prompt"])
    print(f'\nNext: your own words, {command} "..."', file=sys.stderr)


if __name__ == "__main__":
    run_command(main, Generate)
