"""What does a trained classifier say of a text, and which words made it say so?

python finetuning/classification/predict.py --model runs/reviews/model --text "Never dull, and I feared it would be."

The words are judged by *gradient × input* (Shrikumar et al. 2016): how fast the winning label's logit, less the mean of
the others, grows with each token's embedding, times that embedding. For a linear model the products add up to the
logit itself; for a GPT they are the first term of its expansion around the text, good for a look and not for a proof.
"""

from __future__ import annotations

import codecs
import io
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetuning.classification.classifier import GPTClassifier, encode_texts, load_classifier
from finetuning.classification.labelled import clean
from utils.devices import pick_device
from utils.errors import UserError, run_command
from utils.files import write_bytes
from working_with_text_data.bytepair_enc import BytePairTokenizer


@dataclass(frozen=True)
class Predict:
    """The flags of this script."""

    model: Path = Path("runs/classifier/model")
    """A model folder that train_classifier.py wrote."""
    text: str | None = None
    """The text; standard input if not given."""
    out: Path | None = None
    """A PNG with the words that mattered, if given."""
    device: str = "cpu"
    """auto, cpu, cuda, cuda:1 or mps."""

    def __post_init__(self) -> None:
        if self.out is not None and self.out.suffix.lower() != ".png":
            raise UserError(f"--out {self.out} must end with .png")


class Prediction(NamedTuple):
    """What a classifier says of a text."""

    label: str
    probabilities: dict[str, float]
    tokens: list[str]
    """The text as the tokens that were read; several that spell one character are one."""
    contributions: list[float]
    """Of each token to the label that won: above 0 for it, below 0 against it. In logits."""
    cut: bool
    """Whether the text was too long, and lost a part."""


def predict(classifier: GPTClassifier, tokenizer: BytePairTokenizer, text: str) -> Prediction:
    """The label of a text.

    Raises:
        ValueError: there is nothing in it.
    """
    if not (text := clean(text)):
        raise ValueError("the text is empty: there is nothing to label")
    (ids,), cut = encode_texts(tokenizer, [text], classifier.config)
    logits, contributions = contributions_of(classifier, torch.from_numpy(ids).to(classifier.gpt.device))
    probabilities = logits.softmax(dim=0).tolist()
    labels = classifier.config.labels
    pieces = [tokenizer.decode_bytes([int(i)]) for i in ids[1:]]
    tokens, shares = whole_characters(pieces, contributions[1:].tolist())
    label = labels[int(logits.argmax())]
    return Prediction(label, dict(zip(labels, probabilities, strict=True)), tokens, shares, cut > 0)


def whole_characters(pieces: Sequence[bytes], shares: Sequence[float]) -> tuple[list[str], list[float]]:
    """Tokens as texts: those that spell a character's bytes together are one, and their contributions add up."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    texts, sums, text, total = [], [], "", 0.0
    for number, (piece, share) in enumerate(zip(pieces, shares, strict=True), 1):
        text, total = text + decoder.decode(piece, final=number == len(pieces)), total + share
        if not decoder.getstate()[0]:  # no bytes are waiting for the rest of their character
            texts.append(text)
            sums.append(total)
            text, total = "", 0.0
    return texts, sums


def contributions_of(classifier: GPTClassifier, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(logits (labels,), gradient × input of each token (tokens,)), of ids (tokens,)."""
    embedding = classifier.gpt.transformer.wte
    kept: list[Tensor] = []

    def keep(module: object, arguments: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_(True))  # (1, tokens, d_model)
        return kept[0]

    handle = embedding.register_forward_hook(keep)
    try:
        logits = classifier(ids[None], torch.tensor([len(ids)], device=ids.device))[0]  # (labels,)
    finally:
        handle.remove()
    best = int(logits.argmax())
    others = (logits.sum() - logits[best]) / (len(logits) - 1)
    (gradient,) = torch.autograd.grad(logits[best] - others, kept[0])
    return logits.detach().cpu(), (gradient * kept[0]).sum(dim=-1)[0].detach().cpu()


def save_words(path: Path, prediction: Prediction, per_line: int = 84) -> None:
    """Writes a PNG of the text: dark behind tokens that spoke for the label, framed where they spoke against it."""
    from matplotlib.figure import Figure

    lines: list[list[tuple[str, float]]] = [[]]
    width = 0
    for token, share in zip(prediction.tokens, prediction.contributions, strict=True):
        shown = token.replace("\n", " ")
        if width + len(shown) > per_line and lines[-1]:
            lines.append([])
            width = 0
        lines[-1].append((shown, share))
        width += len(shown)
    most = max((abs(share) for share in prediction.contributions), default=0.0) or 1.0
    figure = Figure(figsize=(9, 0.6 + 0.28 * len(lines)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set(xlim=(-1, per_line + 2), ylim=(-len(lines) - 0.4, 2.2))
    probability = prediction.probabilities[prediction.label]
    told = f"{prediction.label}, {probability:.1%}"
    axes.text(0, 1.2, told, fontsize=11, weight="bold", va="center", parse_math=False)
    axes.text(per_line, 1.2, "grey: for it    framed: against it", fontsize=8, ha="right", va="center", color="0.3")
    for row, line in enumerate(lines):
        at = 0.0
        for token, share in line:
            strength = abs(share) / most
            colour = str(1 - 0.55 * strength) if share > 0 else "white"
            edge = "black" if share < 0 and strength > 0.15 else "none"
            axes.add_patch(_box(at, -row, len(token), colour, edge, strength))
            for i, character in enumerate(token):
                axes.text(at + i + 0.5, -row, character, family="monospace", fontsize=9, ha="center", va="center")
            at += len(token)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for what the font does not have
        figure.savefig(buffer, dpi=120)
    write_bytes(path, buffer.getvalue())


def _box(x: float, y: float, width: float, colour: str, edge: str, strength: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y - 0.42), width, 0.84, facecolor=colour, edgecolor=edge, linewidth=0.5 + strength)


def strongest(prediction: Prediction, count: int = 8) -> Sequence[tuple[str, float]]:
    """(token, contribution) of those that mattered most, for or against."""
    pairs = list(zip(prediction.tokens, prediction.contributions, strict=True))
    return sorted(pairs, key=lambda pair: -abs(pair[1]))[:count]


def main(options: Predict) -> None:
    classifier, tokenizer = load_classifier(options.model, pick_device(options.device))
    text = options.text if options.text is not None else sys.stdin.read()
    prediction = predict(classifier, tokenizer, text)
    shown = ", ".join(f"{name} {p:.1%}" for name, p in prediction.probabilities.items())
    print(f"{prediction.label}  ({shown})")
    if prediction.cut:
        print(
            f"The {classifier.config.cut} of the text was not read: {classifier.config.max_length} tokens are the most"
        )
    print("Most for it (+) and against it (-):", end=" ")
    print(", ".join(f"{token.strip()!r} {share:+.2f}" for token, share in strongest(prediction)))
    if options.out is not None:
        save_words(options.out, prediction)
        print(f"Wrote {options.out}")


if __name__ == "__main__":
    run_command(main, Predict)
