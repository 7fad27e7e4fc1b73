"""Figures, readable in black and white: lines differ by dash and marker, not by colour alone."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = tuple[Sequence[float], Sequence[float]]  # x values, y values
_LINES: tuple[dict[str, Any], ...] = (
    {"linestyle": "-", "color": "0.6", "linewidth": 1.0},
    {"linestyle": "-", "color": "black", "marker": "o", "markersize": 4, "linewidth": 1.5},
    {"linestyle": "--", "color": "0.3", "marker": "s", "markersize": 4},
    {"linestyle": ":", "color": "black", "marker": "^", "markersize": 4},
    *(
        {"linestyle": line, "color": colour, "marker": marker, "markersize": 4}
        for line, colour in (("-.", "0.2"), ("-", "0.4"))
        for marker in "vDxP"
    ),
)


def save_curves(
    path: Path | str,
    curves: Mapping[str, Curve],
    title: str,
    x_label: str,
    y_label: str,
    note: str = "",
    text: str = "",
) -> None:
    """Draws named curves into one PNG, written atomically.

    Args:
        curves: name -> (x values, y values), at most twelve.
        x_label, y_label: with their units.
        note: stands small in a corner.
        text: stands beside the curves, in a panel of its own.
    """
    from matplotlib.figure import Figure  # here, because it takes a second that most commands need not wait

    # Not through pyplot: no window, no global state, so it works on a server and leaves a notebook's figures alone.
    figure = Figure(figsize=(11 if text else 7, 4), layout="constrained")
    axes = figure.add_subplot(1, 2 if text else 1, 1)
    if text:
        panel = figure.add_subplot(1, 2, 2)
        panel.axis("off")
        panel.text(0, 1, plain(text), family="monospace", fontsize=8.5, va="top", transform=panel.transAxes)
    for (name, (x, y)), style in zip(curves.items(), _LINES, strict=False):
        axes.plot(x, y, label=plain(name), **style)
    axes.set(title=plain(title), xlabel=plain(x_label), ylabel=plain(y_label))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    if note:
        axes.text(0.02, 0.03, plain(note), transform=axes.transAxes, fontsize=8, va="bottom")
    save_figure(path, figure)


def plain(text: str) -> str:
    """The text as it stands: matplotlib would set formulas between dollars."""
    return text.replace("$", r"\$")


def save_figure(path: Path | str, figure: Figure) -> None:
    """Writes a figure as PNG, atomically."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_bytes(path, picture.getvalue())
