"""What a model nearly said instead, and what it looked at: an answer opened up, as pictures.

One pass over the prompt and the answer gives both, since a causal model says at each token what it expects next, and it
says the same whether the tokens come one by one or all at once. The probabilities are the model's own, before
temperature, penalties and cuts: so one sees when a draw was a bold one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attention_mechanisms.attention_maps import one_head, readable
from gpt_model import GPT
from gpt_model.show_attention import attention_weights
from working_with_text_data.bytepair_enc import BytePairTokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_TOKENS = 40  # of an answer, in one picture
_MOST_IN_MAP = 28  # tokens along each side of an attention map


@dataclass(frozen=True)
class Candidates:
    """What could have come at one place of an answer."""

    drawn: int
    """The token that came."""
    probability: float
    """Its probability."""
    rank: int
    """How many tokens were more probable."""
    best: list[tuple[int, float]]
    """The most probable tokens, with their probabilities."""


@torch.inference_mode()
def candidates(model: GPT, prompt: Sequence[int], answer: Sequence[int], n_best: int = 3) -> list[Candidates]:
    """For each token of an answer, what the model expected there.

    A text beyond the model's context loses its beginning.

    Args:
        prompt: ids before the answer, at least one.
        answer: ids that followed.
    """
    ids = [*prompt, *answer][-model.config.context_length :]
    n = min(len(answer), len(ids) - 1)
    if n < 1:
        return []
    hidden = model.hidden_states(torch.tensor([ids], device=model.device))[0, -n - 1 : -1]  # (n, d_model)
    probabilities = model.logits_of(hidden).float().softmax(dim=-1)  # (n, vocab_size)
    drawn = torch.tensor(ids[-n:], device=model.device)
    own = probabilities.gather(1, drawn[:, None])  # (n, 1)
    ranks = (probabilities > own).sum(dim=1)  # (n,)
    best = probabilities.topk(min(n_best, probabilities.shape[1]))
    return [
        Candidates(token, p, rank, list(zip(some, values, strict=True)))
        for token, p, rank, some, values in zip(
            drawn.tolist(),
            own.flatten().tolist(),
            ranks.tolist(),
            best.indices.tolist(),
            best.values.tolist(),
            strict=True,
        )
    ]


def draw_candidates(some: Sequence[Candidates], tokenizer: BytePairTokenizer, first: int = 0) -> Figure:
    """A line for each token: the candidates from the most probable on, darker the more probable, the drawn one framed.

    Args:
        some: at least one.
        first: which token of the answer the first line is.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    n_best = max(len(one.best) for one in some)
    figure = Figure(figsize=(1.7 + n_best, 0.7 + 0.24 * len(some)), layout="constrained")  # as wide as the side bar
    axes = figure.subplots()
    for line, one in enumerate(some):
        for place, (token, probability) in enumerate(one.best):
            axes.add_patch(Rectangle((place, line), 1, 1, color=str(1 - 0.75 * probability), lw=0))
            label = f"{_short(tokenizer, token)} {_percent(probability)}"
            ink = "white" if probability > 0.6 else "black"
            axes.text(place + 0.5, line + 0.5, label, ha="center", va="center", fontsize=8, color=ink)
            if token == one.drawn:
                axes.add_patch(Rectangle((place + 0.03, line + 0.06), 0.94, 0.88, fill=False, lw=1.8, color="#c0392b"))
    labels = [
        f"{first + line + 1}  {_short(tokenizer, one.drawn)} {_percent(one.probability)}"
        + ("" if any(token == one.drawn for token, _ in one.best) else f", no. {one.rank + 1}")
        for line, one in enumerate(some)
    ]
    axes.set_yticks([line + 0.5 for line in range(len(some))], labels, fontsize=8)
    axes.set_xticks(
        [place + 0.5 for place in range(n_best)], [f"no. {place + 1}" for place in range(n_best)], fontsize=8
    )
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set(xlim=(0, n_best), ylim=(len(some), 0), title="what could have come (framed: what came)")
    axes.title.set_fontsize(9)
    return figure


def draw_attention(model: GPT, tokenizer: BytePairTokenizer, ids: Sequence[int]) -> Figure:
    """The attention of the last layer at the end of a text, the mean of its heads.

    Args:
        ids: at least two.
    """
    ids = list(ids)[-min(_MOST_IN_MAP, model.config.context_length) :]
    weights: Tensor = attention_weights(model, torch.tensor([ids], device=model.device))[-1][0]  # (n_head, T, T)
    tokens = [_short(tokenizer, i) for i in ids]
    last = model.config.n_layer - 1
    return one_head(weights.float().mean(dim=0), tokens, f"layer {last}, mean of {weights.shape[0]} heads", size=4.7)


def _short(tokenizer: BytePairTokenizer, token: int) -> str:
    """A token as a picture can show it."""
    text = tokenizer.decode_bytes([token]).decode("utf-8", errors="replace")
    text = "".join(c if c.isprintable() or c in "\n\t " else "·" for c in readable(text))
    return text if len(text) <= 12 else text[:11] + "…"


def _percent(probability: float) -> str:
    return f"{probability:.0%}" if probability >= 0.01 else "<1%"
