"""Several tokens for one pass of the model, drawn exactly as if they were drawn one by one.

A step reads every weight of the model from memory, whether it then judges one token or five: the reading is what takes
the time. So let something cheap guess the next few tokens, and the model (the *target*) judge them all in one pass:

    guess    k tokens, each x drawn from the guesser's distribution q
    judge    from left to right, accept x with probability min(1, p(x) / q(x)), where p is the target's distribution
    mend     in place of the first that is refused, draw from what is left of p: (p - q)+ / Σ (p - q)+
    extend   if none is refused, draw one more from p: the pass has told what follows the last guess too

(Leviathan et al. 2023; Chen et al. 2023.) **What comes out has distribution p, whatever q is.** A token x is either
accepted or drawn as a replacement, and Σ (p - q)+ = 1 - Σ min(p, q) is just the probability of a refusal:

    P(x)  =  q(x) · min(1, p(x) / q(x))  +  P(refusal) · (p(x) - q(x))+ / Σ (p - q)+
          =  min(p(x), q(x))             +  (p(x) - q(x))+                             =  p(x)

A bad guesser costs time, never quality. If each guess is accepted with probability a, a pass gives
1 + a + … + aᵏ = (1 - aᵏ⁺¹) / (1 - a) tokens on average.

p and q are what `sampling.py` makes of the logits: penalised, scaled and cut. With temperature 0 both put everything on
one token, and the rule says: accept what greedy search would have taken. Two guessers are here:

    a draft model    a smaller GPT of the same vocabulary; it reads the text through a cache of its own
    prompt lookup    what followed the last few tokens when they last occurred (Saxena 2023). It is certain of itself:
                     q is 1 for the guess, so x is accepted with probability p(x), and the rest is p without x
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_mechanisms import RollingCache
from gpt_model.generate import require_prompts
from gpt_model.gpt import GPT
from gpt_model.sampling import Sampler, Sampling, count_tokens, invert

Guess = Callable[[list[int], int, Sampler], tuple[Tensor, Tensor | None]]
"""The text so far, how many tokens to guess at most, and what draws them, to the guesses, int64 (n or fewer,), and the
probabilities that they were drawn from, (n or fewer, vocab_size); None for guesses that were certain."""


@dataclass
class Speculation:
    """What became of the guesses; `generate_speculatively` adds to it."""

    passes: int = 0
    """Of the target, the one that reads the prompt among them."""
    guessed: int = 0
    """Tokens that were guessed."""
    judged: int = 0
    """Those of them that the target came to: all up to the first refused one."""
    accepted: int = 0
    """Those of them that became text."""

    def add(self, n_guessed: int, n_accepted: int) -> None:
        """One more pass."""
        self.passes += 1
        self.guessed += n_guessed
        self.judged += min(n_accepted + 1, n_guessed)
        self.accepted += n_accepted

    @property
    def acceptance_rate(self) -> float:
        """The probability that a guess is accepted once its turn comes: a in the formula above."""
        return self.accepted / max(self.judged, 1)

    @property
    def tokens_per_pass(self) -> float:
        """1 without any guess that was right; `n_guess` + 1 at most."""
        return (self.accepted + self.passes) / max(self.passes, 1)


@torch.inference_mode()
def generate_speculatively(
    model: GPT,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: Collection[int] = (),
    guesser: GPT | Guess | None = None,
    n_guess: int = 4,
    speculation: Speculation | None = None,
) -> Generator[int, None, None]:
    """`generate` in fewer passes: yields the ids that follow `prompt_ids`, one text at a time.

    Their distribution is that of `generate`, and with temperature 0 the ids are the same, but for rounding: a pass over
    several tokens adds in another order than one over each, which half precision may show. A seed repeats its text; it
    is another text than `generate` draws by that seed, since other uniform numbers decide. Near the end of a window
    less is guessed.

    Args:
        stop: ids that end the text; the one that was drawn is not yielded.
        guesser: a draft model with the same vocabulary and on the same device, or a function; None for `look_up`.
        n_guess: tokens to guess for each pass, at most.
        speculation: is added to, pass by pass.

    Raises:
        ValueError: the prompt is empty or has ids that the model does not know, the draft model does not belong to the
            model, there is nothing to guess, or one of the two cannot go back: see `TextReader`.
    """
    require_prompts(model, [prompt_ids])
    if n_guess < 1:
        raise ValueError(f"n_guess must be at least 1, got {n_guess}: to guess nothing, use generate")
    reader = TextReader(model, len(prompt_ids), max_new_tokens)
    guess = _as_function(guesser, model, prompt_ids, max_new_tokens)
    sampler = Sampler([sampling or Sampling()], model.device)
    speculation = speculation or Speculation()
    text, longest = list(prompt_ids), len(prompt_ids) + max_new_tokens
    modes = [(one, one.training) for one in (model, guesser) if isinstance(one, GPT)]
    for one, _ in modes:
        one.eval()
    try:
        while len(text) < longest:
            n = min(n_guess, longest - len(text) - 1, reader.room(text))  # and one more comes of itself
            guesses, q = _guesses(guess, text, n, sampler, model.config.vocab_size)
            logits = reader.read(torch.cat([reader.unread(text), guesses[None]], dim=1), len(guesses) + 1)
            p = sampler.probabilities(sampler.adjust(logits, counts_along(text, guesses, sampler, logits.shape[1])))
            accepted, last = judge(p, q, guesses, sampler.uniforms(len(guesses) + 1)[0])
            *ids, n_accepted, extra = torch.cat([guesses, accepted, last]).tolist()  # the one wait for the device
            speculation.add(len(guesses), n_accepted)
            for token in (*ids[:n_accepted], extra):
                if token in stop:
                    return
                text.append(token)
                yield token
    finally:
        for one, mode in modes:
            one.train(mode)


def judge(p: Tensor, q: Tensor, guesses: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The rule: accept, mend, extend.

    Args:
        p: (n + 1, vocab_size), the target's probabilities of the token at each guess's place and after the last one.
        q: (n, vocab_size), what the guesses were drawn from.
        guesses: int64 (n,).
        uniform: (n + 1,), numbers from 0 to below 1.

    Returns:
        How many of the guesses are accepted, int64 (1,), and the token that follows those, int64 (1,).
    """
    p_guess, q_guess = (of[: len(guesses)].gather(1, guesses[:, None])[:, 0] for of in (p, q))  # (n,)
    fine = uniform[:-1] * q_guess < p_guess  # with probability min(1, p / q)
    accepted = fine.long().cumprod(dim=0).sum(dim=0, keepdim=True)  # (1,): those before the first refusal
    q = F.pad(q, (0, 0, 0, 1))  # (n + 1, vocab_size): after the last guess nothing was guessed, and all of p is left
    p, q = p[accepted], q[accepted]  # (1, vocab_size), where the first was refused or after the last
    left = (p - q).clamp(min=0)
    left = torch.where(left.sum(dim=-1, keepdim=True) > 0, left, p)  # rounding may refuse where p equals q
    return accepted, invert(left, uniform[-1:, None])[:, 0]


def counts_along(text: Sequence[int], guesses: Tensor, sampler: Sampler, vocab_size: int) -> Tensor | None:
    """How often each token is in the text that comes before each guess and after the last: (n + 1, vocab_size).

    None where nothing is penalised.
    """
    if not sampler.penalises:
        return None
    counts = count_tokens(torch.tensor([text]), vocab_size, [0]).to(guesses.device, non_blocking=True)
    return torch.cat([counts, counts + F.one_hot(guesses, vocab_size).cumsum(dim=0)])


def _as_function(guesser: GPT | Guess | None, model: GPT, prompt_ids: Sequence[int], max_new_tokens: int) -> Guess:
    """What guesses for `model`.

    Raises:
        ValueError: a draft model that does not belong to it.
    """
    if not isinstance(guesser, GPT):
        return guesser or look_up
    if guesser.config.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"the draft model has a vocabulary of {guesser.config.vocab_size:,} tokens and the model one of "
            f"{model.config.vocab_size:,}: guesses need the same tokenizer"
        )
    if guesser.device != model.device:
        raise ValueError(f"the draft model is on {guesser.device} and the model on {model.device}: move one of them")
    return DraftModel(guesser, prompt_ids, max_new_tokens)


def _guesses(guess: Guess, text: list[int], n: int, sampler: Sampler, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Guesses (n or fewer,) on the device, and what they were drawn from, (n or fewer, vocab_size)."""
    ids, q = guess(text, n, sampler) if n else (torch.empty(0, dtype=torch.int64), None)
    ids = ids.to(sampler.device, non_blocking=True)
    return ids, F.one_hot(ids, vocab_size).float() if q is None else q


def look_up(text: list[int], n: int, sampler: Sampler, longest: int = 3) -> tuple[Tensor, None]:
    """Prompt lookup: guesses that the text goes on as it did after its last few tokens when they last occurred.

    Args:
        longest: tokens to look for; if they never occurred, ever fewer, down to one.
    """
    for size in range(min(longest, len(text) - 1), 0, -1):
        tail = text[-size:]
        for end in range(len(text) - 1, size - 1, -1):
            if text[end - 1] == tail[-1] and text[end - size : end] == tail:
                followed = text[end:]  # if that is short, the text repeats itself, and so does the guess
                return torch.tensor((followed * (n // len(followed) + 1))[:n], dtype=torch.int64), None
    return torch.empty(0, dtype=torch.int64), None


class DraftModel:
    """Guesses with a smaller model, which draws by the same settings as the target.

    Args:
        model: the draft.
        prompt_ids: the text's beginning.
        max_new_tokens: how much it may grow.
    """

    def __init__(self, model: GPT, prompt_ids: Sequence[int], max_new_tokens: int) -> None:
        self.reader = TextReader(model, len(prompt_ids), max_new_tokens)

    def __call__(self, text: list[int], n: int, sampler: Sampler) -> tuple[Tensor, Tensor]:
        """As `Guess`; fewer than `n` where the draft's own window is nearly full."""
        n = min(n, self.reader.room(text) + 1)  # nobody asks what follows the last guess
        ids = self.reader.unread(text)
        counts = counts_along(text, ids.new_empty(0), sampler, self.reader.model.config.vocab_size)
        guesses, drawn_from = [], []
        for _ in range(n):
            drawn_from.append(sampler.probabilities(sampler.adjust(self.reader.read(ids, 1), counts)))
            ids = invert(drawn_from[-1], sampler.uniforms())  # (1, 1)
            guesses.append(ids[0])
            if counts is not None:
                counts = counts.scatter_add(1, ids, torch.ones_like(ids, dtype=counts.dtype))
        return torch.cat(guesses), torch.cat(drawn_from)


class TextReader:
    """A model that reads a text which grows, and whose end may be taken back.

    What it has read is in a cache, which is cut back to what is still text. The window on a text beyond the context
    moves as in `generate.py`: when it is full, its newer half is read again.

    Args:
        model: in whichever mode it is.
        n_prompt: tokens at the beginning.
        max_new_tokens: how many more there may be.

    Raises:
        ValueError: the text would outgrow a sliding window, and the model could not go back to what has left it.
    """

    def __init__(self, model: GPT, n_prompt: int, max_new_tokens: int) -> None:
        self.model = model
        self.context = model.config.context_length
        self.start = max(n_prompt - self.context, 0)  # where in the text the window begins
        self.cache = model.make_cache(1, min(self.context, n_prompt + max_new_tokens))
        for layer in self.cache.layers:
            if isinstance(layer, RollingCache) and layer.window < layer.max_length:
                raise ValueError(
                    f"a {type(model).__name__} with a window of {layer.window} cannot take back guesses in a text of "
                    f"{layer.max_length} tokens, since its cache forgets: use generate, or a text within the window"
                )

    def room(self, text: Sequence[int]) -> int:
        """How many tokens after `text` the window has room for; it is moved if the text itself does not fit."""
        if len(text) - self.start > self.context:
            self.start = len(text) - max(self.context // 2, 1)
            self.cache.reset()
        return self.context - (len(text) - self.start)

    def unread(self, text: Sequence[int]) -> Tensor:
        """What of `text` is still to be read, (1, tokens): at least its last token, which no pass has read yet.

        What was read from that place on were guesses that were refused; they are forgotten.
        """
        self.cache.truncate(min(self.cache.length, len(text) - 1 - self.start))
        return torch.tensor([text[self.start + self.cache.length :]], device=self.model.device)

    def read(self, ids: Tensor, n: int) -> Tensor:
        """Reads on. Ids (1, tokens) to the logits of what follows each of the last `n`, (n, vocab_size)."""
        return self.model.logits_of(self.model.hidden_states(ids, self.cache)[0, -n:])
