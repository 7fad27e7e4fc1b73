"""From the model's scores to the next token.

A model gives a distribution over the next token; one draws from it, appends, and asks again. How one draws decides
between dull and deranged:

    repetition penalty  tokens already in the text: positive logits / r, negative ones · r (Keskar et al. 2019, 4.1)
    frequency penalty   logits - f · how often the token is in the text; presence: - p if it is there at all (OpenAI)
    temperature         logits / t: below 1 sharpens, above 1 flattens, 0 always takes the most probable (greedy)
    top-k               only the k most probable tokens (Fan et al. 2018)
    top-p               only the fewest tokens that together have probability p (nucleus, Holtzman et al. 2020)
    min-p               only tokens at least min_p times as probable as the best (Nguyen et al. 2024)

They are applied in this order. Each is a plain function from logits to logits, of many texts at once, whose settings
are columns: (batch, 1), a number for each text.

**The draw** is by inversion. With the probabilities laid end to end on a line from 0 to 1, one uniform number u falls
into the stretch of token i with probability p_i. A text's numbers come from its own seed alone, on the CPU: so they are
the same alone and among other texts, on every device. And no step waits for the device's answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Device = torch.device | str


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
    frequency_penalty: float = 0.0
    """Taken from a token's logit for each time that it is in the text; below 0 favours what is there."""
    presence_penalty: float = 0.0
    """Taken from a token's logit if it is in the text at all."""

    def __post_init__(self) -> None:
        checks = {
            "temperature": (self.temperature == 0 or 0.001 <= self.temperature < math.inf, "0 or at least 0.001"),
            "top_k": (0 <= self.top_k < 2**63, "from 0 (for no limit) to 2**63 - 1"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (0.001 <= self.repetition_penalty <= 1000, "from 0.001 to 1000 (1 for none)"),
            "frequency_penalty": (math.isfinite(self.frequency_penalty), "finite (0 for none)"),
            "presence_penalty": (math.isfinite(self.presence_penalty), "finite (0 for none)"),
            "seed": (self.seed is None or 0 <= self.seed < 2**63, "from 0 to 2**63 - 1"),
        }
        for name, (fine, wanted) in checks.items():
            if not fine:
                raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)}")

    @property
    def penalises(self) -> bool:
        """Whether it matters what is already in the text."""
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0


# Each of these: logits (batch, vocab_size) and a column, (batch, 1) or (1, 1) for all rows, to new logits. -inf is a
# token that is cut off; the best one never is.


def penalise_repetition(logits: Tensor, penalty: Tensor, counts: Tensor) -> Tensor:
    """What is in the text becomes less probable. `counts` (batch, vocab_size): how often each token is in it."""
    return torch.where(counts > 0, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def penalise_frequency(logits: Tensor, frequency: Tensor, presence: Tensor, counts: Tensor) -> Tensor:
    """So much off for each time that a token is in the text, and so much for its being there."""
    return logits - frequency * counts - presence * (counts > 0)


def scale_by_temperature(logits: Tensor, temperature: Tensor) -> Tensor:
    """Temperature 0 is left to the draw, which takes the best."""
    return logits / torch.where(temperature == 0, 1, temperature)


def keep_top_k(logits: Tensor, k: Tensor, most: int) -> Tensor:
    """The k best, and what is as good as the last of them; 0 keeps all.

    Args:
        most: the largest of `k`, so that nobody has to ask the device for it.
    """
    most = min(most, logits.shape[1])
    place = (k - 1).clamp(0, most - 1).expand(len(logits), 1)
    last = logits.topk(most).values.gather(1, place)  # (batch, 1): the worst that stays
    return logits.masked_fill((logits < last) & (k > 0), -torch.inf)


def keep_top_p(logits: Tensor, p: Tensor) -> Tensor:
    """The fewest of the best that have probability p together: a token goes if those before it have p already."""
    probabilities = logits.softmax(dim=-1)
    # To sort a vocabulary takes a CPU milliseconds, to find its best thousand a tenth: mostly they have enough.
    few = logits.shape[1] if logits.is_cuda else min(1000, logits.shape[1])
    ordered, order = probabilities.topk(few)
    if few < logits.shape[1] and bool((ordered.sum(dim=-1, keepdim=True) < p).any()):
        ordered, order = probabilities.sort(descending=True)
    before = ordered.cumsum(dim=-1) - ordered  # what the more probable tokens have together
    cut = torch.ones_like(logits, dtype=torch.bool).scatter(1, order, before >= p)
    return logits.masked_fill(cut & (p < 1), -torch.inf)


def keep_min_p(logits: Tensor, min_p: Tensor) -> Tensor:
    """Those at least min_p times as probable as the best."""
    return logits.masked_fill(logits < logits.max(dim=-1, keepdim=True).values + min_p.log(), -torch.inf)


def invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The tokens at `uniform` of the way through the probabilities laid end to end.

    Args:
        probabilities: (batch, vocab_size), of any positive sum.
        uniform: (batch, 1), from 0 to below 1.

    Returns:
        int64 (batch, 1); never a token of probability 0.
    """
    ends = probabilities.cumsum(dim=-1)  # (batch, vocab_size): where the stretch of each token ends
    total = ends[:, -1:]
    place = torch.minimum(
        uniform * total, torch.nextafter(total, torch.zeros_like(total))
    )  # rounding may reach the end
    return torch.searchsorted(ends, place, right=True)


def count_tokens(ids: Tensor, vocab_size: int, padding: Sequence[int]) -> Tensor:
    """float32 (batch, vocab_size): how often each token is in each row of `ids` (batch, tokens).

    Args:
        padding: the columns on the left of each row that are no text.
    """
    counts = torch.zeros(len(ids), vocab_size, device=ids.device)
    for row, n in enumerate(padding):
        counts[row] = torch.bincount(ids[row, n:], minlength=vocab_size)
    return counts


class Sampler:
    """Draws the next token of several texts, each by its own settings.

    Args:
        settings: one for each text.
        device: where the logits are.
        generators: where each text's uniform numbers come from, `random_source` of its seed; new ones if not given.
    """

    def __init__(
        self,
        settings: Sequence[Sampling],
        device: Device = "cpu",
        generators: Sequence[torch.Generator] | None = None,
    ) -> None:
        self.settings = list(settings)
        self.penalises = any(s.penalises for s in settings)
        self.greedy = all(s.temperature == 0 for s in settings)
        self.generators = [random_source(s.seed) for s in settings] if generators is None else list(generators)
        self.device = torch.device(device)
        self.temperature = self._column("temperature")
        self.repetition, self.frequency, self.presence = (
            self._column(f"{kind}_penalty") for kind in ("repetition", "frequency", "presence")
        )
        self.top_k, self.top_p, self.min_p = self._column("top_k"), self._column("top_p"), self._column("min_p")

    def _column(self, name: str) -> Tensor:
        """(batch, 1)."""
        return torch.tensor([[getattr(s, name)] for s in self.settings], device=self.device)

    def adjust(self, logits: Tensor, counts: Tensor | None = None) -> Tensor:
        """The logits that are drawn from: penalised, scaled, and -inf for the tokens that are cut off.

        Args:
            logits: (batch, vocab_size). Not changed.
            counts: (batch, vocab_size), how often each token is in the text; needed where `penalises`.

        Returns:
            float32 (batch, vocab_size).
        """
        logits = logits.float()
        if self.penalises:
            if counts is None:
                raise ValueError("penalties need the counts of the tokens that are in the text")
            logits = penalise_repetition(logits, self.repetition, counts)
            logits = penalise_frequency(logits, self.frequency, self.presence, counts)
        if self.greedy:
            return logits
        logits = scale_by_temperature(logits, self.temperature)
        if most := max(s.top_k for s in self.settings):
            logits = keep_top_k(logits, self.top_k, most)
        if any(s.top_p < 1 for s in self.settings):
            logits = keep_top_p(logits, self.top_p)
        if any(s.min_p for s in self.settings):
            logits = keep_min_p(logits, self.min_p)
        return logits

    def probabilities(self, adjusted: Tensor) -> Tensor:
        """(batch, vocab_size) that sum to 1; with temperature 0 all on the best token."""
        best = torch.zeros_like(adjusted).scatter(1, adjusted.argmax(dim=-1, keepdim=True), 1)
        return best if self.greedy else torch.where(self.temperature == 0, best, adjusted.softmax(dim=-1))

    def uniforms(self, n: int = 1) -> Tensor:
        """The next uniform numbers of each text: (batch, n)."""
        numbers = [torch.rand(n, generator=generator) for generator in self.generators]
        return torch.stack(numbers).to(self.device, non_blocking=True)

    def draw(self, adjusted: Tensor) -> Tensor:
        """The next token of each text, int64 (batch, 1), from what `adjust` gave."""
        if self.greedy:
            return adjusted.argmax(dim=-1, keepdim=True)
        return invert(self.probabilities(adjusted), self.uniforms())


def random_source(seed: int | None) -> torch.Generator:
    """A source of uniform numbers on the CPU; from the system's entropy without a seed."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
