"""DPO: learning from preferences without a reward model and without reinforcement learning (Rafailov et al. 2023).

**What is wanted.** A policy π with high rewards r(x, y) for its answers y to prompts x that stays near the model π_ref
it began as, or it would find texts that please the reward and nobody else (section 3, eq. 3):

    max over π of   E[ r(x, y) ] - β · KL( π(·|x) ‖ π_ref(·|x) )

**Its solution is known** (eq. 4): π(y|x) = π_ref(y|x) · exp(r(x, y) / β) / Z(x). Each answer's probability is raised by
its reward. Nobody can compute Z, a sum over all texts. But solved for r,

    r(x, y) = β · log( π(y|x) / π_ref(y|x) ) + β · log Z(x)

every policy *is* the best one for some reward, and this says for which (eq. 5).

**Comparisons need only differences.** By Bradley and Terry (1952), y_w is preferred to y_l with probability
σ(r(x, y_w) - r(x, y_l)). In the difference Z is gone, and the comparisons' likelihood is a loss of π alone (eq. 7):

    loss = -log σ( h ),    h = β · [ log π(y_w|x)/π_ref(y_w|x)  -  log π(y_l|x)/π_ref(y_l|x) ]

h is the *reward margin*. At the start π = π_ref, so h = 0 and the loss is ln 2, whatever the pairs. The gradient is

    -β · σ(-h) · ( ∇ log π(y_w|x) - ∇ log π(y_l|x) )

up with the chosen answer, down with the rejected one, and the more so the more wrong the order still is. Nothing says
that log π(y_w|x) itself must rise: often both fall, and the rejected one faster. The figures show each alone.

log π(y|x) is the sum over the answer's tokens, its end-of-text among them. Variants:

    label smoothing  a share ε of the pairs is the wrong way round: (1-ε)·loss(h) + ε·loss(-h) (cDPO, Mitchell 2023)
    dpo-norm         each log-ratio divided by its answer's number of tokens, so that length is no reward of its own
                     (length-normalised DPO, Lambert et al. 2024, Tülu 3, section 5.1)
    ipo              (h/β - 1/(2β))², h of dpo-norm: a margin to reach and not to pass (Azar et al. 2023, eq. 17)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as forget_and_compute_again

from finetuning.instruction.preferences import Pair
from finetuning.instruction.prompt_format import PromptFormat
from gpt_model import GPT
from pretraining.distributed import Ranks, add_up
from pretraining.training_loop import Objective
from utils.devices import TrainingPrecision, autocast
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.token_shards import IGNORE

LossName = Literal["dpo", "dpo-norm", "ipo"]
Floats = npt.NDArray[np.float32]


# --- a pair as tokens


@dataclass(frozen=True)
class EncodedPair:
    """A pair as ids."""

    prompt: list[int]
    chosen: list[int]
    """The answer's ids and its end-of-text."""
    rejected: list[int]
    shortened: tuple[str, ...] = ()
    """What did not fit: "prompt" lost its beginning, "answer" its end."""
    kind: str = ""

    @property
    def length(self) -> int:
        """Tokens of the prompt with the longer answer."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def encode_pair(layout: PromptFormat, tokenizer: BytePairTokenizer, pair: Pair, context_length: int) -> EncodedPair:
    """A pair as ids that fit the context, both answers behind the same prompt.

    A prompt that is too long loses its beginning, but keeps half of the context; an answer that does not fit then loses
    its end, and with it the end-of-text.

    Raises:
        ValueError: the layout puts nothing in front of an answer, or the context is too short.
    """
    prompt, chosen = _prompt_and_answer(layout, tokenizer, pair, pair.chosen)
    _, rejected = _prompt_and_answer(layout, tokenizer, pair, pair.rejected)
    if not prompt or context_length < 2:
        raise ValueError("an answer needs a token before it, and room in the context: another --format or model?")
    longest = max(len(chosen), len(rejected))
    room = max(context_length - longest, (context_length + 1) // 2)
    shortened = ("prompt",) * (len(prompt) > room)
    prompt = prompt[-room:]
    left = context_length - len(prompt)
    shortened += ("answer",) * (longest > left)
    return EncodedPair(prompt, chosen[:left], rejected[:left], shortened, pair.kind)


def _prompt_and_answer(
    layout: PromptFormat, tokenizer: BytePairTokenizer, pair: Pair, answer: str
) -> tuple[list[int], list[int]]:
    """The ids before the last answer, and its own. What a template puts behind it is the user's, and is left out."""
    encoded = layout.encode(tokenizer, [*pair.messages, {"role": "assistant", "content": answer}])
    end = len(encoded.answer) - encoded.answer[::-1].index(True)
    begin = end
    while begin and encoded.answer[begin - 1]:
        begin -= 1
    return encoded.ids[:begin], encoded.ids[begin:end]


def pack(pairs: Sequence[EncodedPair], n_tokens: int | None = None) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Pairs as arrays, filled up on the right, where causal attention never looks.

    Args:
        n_tokens: the width; that of the longest if not given.

    Returns:
        ids int64 (pairs, 2, tokens), the chosen in front, and bool of the same shape: which of them are the answer's.
    """
    width = n_tokens or max(pair.length for pair in pairs)
    ids, answer = np.zeros((len(pairs), 2, width), np.int64), np.zeros((len(pairs), 2, width), bool)
    for i, pair in enumerate(pairs):
        for side, said in enumerate((pair.chosen, pair.rejected)):
            begin, end = len(pair.prompt), len(pair.prompt) + len(said)
            ids[i, side, :end] = pair.prompt + said
            answer[i, side, begin:end] = True
    return ids, answer


# --- log-probabilities


def answer_logprobs(
    model: GPT, ids: Tensor, answer: Tensor, chunk_tokens: int = 1024, body: Callable[..., Tensor] | None = None
) -> Tensor:
    """log π(y|x) of each row: the sum of the log-probabilities of its answer's tokens, in nats.

    The logits of a token are a row of the vocabulary's size. They are made for answers only, some tokens at a time, and
    made again for the gradient: so `chunk_tokens` of them are all that ever exist.

    Args:
        ids: int64 (rows, tokens).
        answer: bool (rows, tokens), False in the first column, which nothing comes before.
        body: in place of `model.hidden_states`, if that is compiled.

    Returns:
        float32 (rows,).
    """
    hidden = (body or model.hidden_states)(ids[:, :-1])  # (rows, tokens - 1, d_model)
    asked = answer[:, 1:]  # (rows, tokens - 1): the vector at t is asked for the token at t + 1
    vectors, targets = hidden[asked], ids[:, 1:][asked]  # (answer tokens, d_model), (answer tokens,)
    read = partial(_logprobs, model)
    if torch.is_grad_enabled():
        read = partial(forget_and_compute_again, read, use_reentrant=False)
    parts = [read(v, t) for v, t in zip(vectors.split(chunk_tokens), targets.split(chunk_tokens), strict=True)]
    logprobs = torch.cat(parts)  # (answer tokens,)
    return logprobs.new_zeros(asked.shape).masked_scatter(asked, logprobs).sum(dim=1)  # (rows,)


def _logprobs(model: GPT, vectors: Tensor, targets: Tensor) -> Tensor:
    """(tokens, d_model) and (tokens,) to float32 (tokens,)."""
    logits = model.logits_of(vectors).float()  # (tokens, vocab_size)
    return logits.log_softmax(dim=1).gather(1, targets.unsqueeze(1)).squeeze(1)


@torch.no_grad()
def pair_logprobs(
    model: GPT,
    pairs: Sequence[EncodedPair],
    batch_size: int,
    ranks: Ranks,
    chunk_tokens: int = 1024,
    precision: TrainingPrecision = "float32",
) -> Floats:
    """log π of both answers of every pair, float32 (pairs, 2), without dropout; every rank must call it, and gets all.

    The same batches for the same pairs on every call, so that equal models give equal numbers to the last bit.
    """
    was_training = model.training
    model.eval()
    found = np.zeros((len(pairs), 2), np.float64)
    order = np.argsort([pair.length for pair in pairs], kind="stable")
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    for batch in batches[ranks.rank :: ranks.size]:
        ids, answer = (torch.from_numpy(a).to(ranks.device) for a in pack([pairs[i] for i in batch]))
        with autocast(ranks.device, precision):
            logprobs = answer_logprobs(model, ids.flatten(0, 1), answer.flatten(0, 1), chunk_tokens)  # (2 · pairs,)
        found[batch] = logprobs.unflatten(0, (-1, 2)).double().cpu().numpy()
    model.train(was_training)
    return np.array(add_up(ranks, *found.flatten().tolist()), np.float32).reshape(-1, 2)


def answer_lengths(pairs: Sequence[EncodedPair]) -> Tensor:
    """Tokens of both answers: float32 (pairs, 2)."""
    return torch.tensor([[len(pair.chosen), len(pair.rejected)] for pair in pairs], dtype=torch.float32)


# --- the loss


@dataclass(frozen=True)
class PreferenceLoss:
    """The loss of a comparison.

    Raises:
        ValueError: a number is out of its range.
    """

    beta: float = 0.1
    """How dear it is to leave the reference: less lets the model go further from it."""
    label_smoothing: float = 0.0
    """The share of comparisons that are thought to be the wrong way round; not with ipo."""
    kind: LossName = "dpo"
    """dpo, dpo-norm (by the answers' lengths) or ipo."""

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"beta must be above 0 and finite, got {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label smoothing must be at least 0 and below 0.5, got {self.label_smoothing}")
        if self.kind == "ipo" and self.label_smoothing:
            raise ValueError("label smoothing is for dpo and dpo-norm: ipo bounds its margins by itself")

    def rewards(self, policy: Tensor, reference: Tensor, lengths: Tensor) -> Tensor:
        """β · log(π / π_ref) of both answers, by their lengths where the kind says so.

        Args:
            policy, reference: log-probabilities, (pairs, 2), the chosen in front.
            lengths: tokens of the answers, (pairs, 2).

        Returns:
            (pairs, 2).
        """
        ratios = policy - reference
        return self.beta * (ratios if self.kind == "dpo" else ratios / lengths.clamp(min=1))

    def __call__(self, rewards: Tensor) -> Tensor:
        """(pairs, 2) to the losses, (pairs,)."""
        margin = rewards[:, 0] - rewards[:, 1]  # (pairs,)
        if self.kind == "ipo":
            return (margin / self.beta - 1 / (2 * self.beta)) ** 2
        smoothed: Tensor = -(1 - self.label_smoothing) * F.logsigmoid(margin)
        return smoothed - self.label_smoothing * F.logsigmoid(-margin)


def reward_figures(rewards: Tensor) -> dict[str, float]:
    """What rewards (pairs, 2) show: how they differ, and how often the chosen answer has the higher one.

    Where both are equal, as all are at the start, half a hit counts.
    """
    chosen, rejected = rewards.double().unbind(dim=1)
    hits = (chosen > rejected).double() + 0.5 * (chosen == rejected).double()
    return {
        "reward_margin": (chosen - rejected).mean().item(),
        "accuracy": hits.mean().item(),
        "chosen_reward": chosen.mean().item(),
        "rejected_reward": rejected.mean().item(),
    }


class Preference(Objective):
    """The objective: a target is a pair, and the loss is summed over pairs.

    Args:
        model: the policy. What it was at the start comes in as numbers, with each batch.
    """

    def __init__(self, model: GPT, loss: PreferenceLoss, chunk_tokens: int = 1024) -> None:
        super().__init__()
        self.model, self.loss, self.chunk_tokens = model, loss, chunk_tokens
        self._body: Callable[..., Tensor] = model.hidden_states
        self._seen: list[Tensor] = []

    def forward(self, ids: Tensor, numbers: Tensor, answer: Tensor, reference: Tensor) -> Tensor:
        """The sum of the losses.

        Args:
            ids: int64 (pairs, 2, tokens), the chosen answer in front.
            numbers: int64 (pairs,), `IGNORE` for a pair that only fills up the batch; other values mean nothing.
            answer: bool (pairs, 2, tokens), which of `ids` are the answer's.
            reference: float32 (pairs, 2), the reference's log-probabilities.
        """
        rows, said = ids.flatten(0, 1), answer.flatten(0, 1)  # (2 · pairs, tokens)
        policy = answer_logprobs(self.model, rows, said, self.chunk_tokens, self._body).unflatten(0, (-1, 2))
        rewards = self.loss.rewards(policy, reference, answer.sum(dim=2))  # (pairs, 2)
        real = numbers != IGNORE
        self._seen.append(rewards.detach()[real])
        return (self.loss(rewards) * real).sum()

    def take_figures(self) -> dict[str, float]:
        """`reward_figures` of the pairs of this rank since the last call, before the step was taken."""
        seen, self._seen = self._seen, []
        if not sum(map(len, seen)):
            return {}
        return {f"batch_{name}": value for name, value in reward_figures(torch.cat(seen)).items()}

    def compile_parts(self) -> None:
        """The blocks become kernels; what reads the output matrix stays as it is."""
        self._body = torch.compile(self.model.hidden_states)
