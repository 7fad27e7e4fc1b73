"""Pictures of attention: who looks at whom, and what is remembered.

A map is the weights of one head as a square: row i is the token that looks, column j the token that is looked at, black
is all of its attention. Every row sums to 1, and the upper right is empty because nobody sees the future.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def readable(token: str) -> str:
    """A token's text as an axis can show it: spaces and line ends visible, formulas not set."""
    return token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥").replace("$", r"\$")


def all_heads(weights: Tensor, title: str = "") -> Figure:
    """All heads of a layer at a glance.

    Args:
        weights: (n_head, tokens, tokens), as `reference` of an attention module gives them for one text.

    Raises:
        ValueError: the weights are of another shape.
    """
    from matplotlib.figure import Figure  # here, because it takes a second that most commands need not wait

    _require_square(weights, 3)
    n_head = weights.shape[0]
    columns = min(n_head, 4)
    rows = -(-n_head // columns)
    figure = Figure(figsize=(2.3 * columns, 2.4 * rows + 0.5), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for head, panel in enumerate(axes):
        if head >= n_head:
            panel.axis("off")
            continue
        panel.imshow(weights[head].detach().float().cpu().numpy(), cmap="Greys", vmin=0, vmax=1)
        panel.set_title(f"head {head}", fontsize=9)
        panel.set(xticks=[], yticks=[])
    figure.supxlabel("token looked at", fontsize=9)
    figure.supylabel("token that looks", fontsize=9)
    return figure


def one_head(weights: Tensor, tokens: Sequence[str], title: str = "", size: float | None = None) -> Figure:
    """One head large, with its tokens.

    Args:
        weights: (tokens, tokens).
        tokens: the text of each.
        size: of the square, in inches; one that keeps the tokens readable if not given.

    Raises:
        ValueError: the weights are of another shape, or there are more or fewer tokens.
    """
    from matplotlib.figure import Figure

    _require_square(weights, 2)
    if len(tokens) != weights.shape[0]:
        raise ValueError(f"{len(tokens)} tokens for weights of {weights.shape[0]}")
    size = max(4.0, 0.24 * len(tokens) + 1.5) if size is None else size
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(weights.detach().float().cpu().numpy(), cmap="Greys", vmin=0, vmax=1)
    labels = [readable(token) for token in tokens]
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set(title=title, xlabel="token looked at", ylabel="token that looks")
    figure.colorbar(picture, ax=axes, label="weight (each row sums to 1)", shrink=0.8)
    return figure


def cache_growth(sizes: Mapping[str, tuple[Sequence[int], Sequence[int]]], title: str = "") -> Figure:
    """The bytes of caches over the length of a text.

    Args:
        sizes: name -> (lengths in tokens, bytes at each), at most four.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    for (name, (lengths, held)), line in zip(sizes.items(), ("-", "--", ":", "-."), strict=False):
        axes.plot(lengths, [n / 2**20 for n in held], line, color="black", label=name)
    axes.set(title=title, xlabel="length of the text (tokens)", ylabel="cache (MiB)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as a file's contents."""
    contents = io.BytesIO()
    figure.savefig(contents, format="png", dpi=120)
    return contents.getvalue()


def _require_square(weights: Tensor, n_axes: int) -> None:
    if weights.ndim != n_axes or weights.shape[-1] != weights.shape[-2]:
        expected = "(n_head, tokens, tokens)" if n_axes == 3 else "(tokens, tokens)"
        raise ValueError(f"attention weights are {expected}, not {tuple(weights.shape)}")
