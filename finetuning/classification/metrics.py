"""How good is a classifier? More than the share of right answers, and how sure that share is.

accuracy           right answers over all
F1                 2 · precision · recall / (precision + recall), the mean over the labels
ROC-AUC            how often a text of one label scores above one of another; it needs no threshold
log loss           mean surprise at the right label, in nats: punishes what is wrong and sure
calibration error  of all answers given with 80 % probability, are 80 % right? The mean distance over 15 bins of
                   probability, weighted by how many answers are in each (Guo et al. 2017, section 2)
interval           that 95 % of accuracies fall into when the test texts are drawn again and again from themselves
                   (the bootstrap, Efron 1979): two classifiers whose intervals overlap much are not told apart
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]
BINS = 15


def bootstrap_interval(right: npt.NDArray[np.bool_], draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The middle 95 % of accuracies of texts drawn with replacement.

    Args:
        right: (texts,), whether each answer is right.
    """
    # Drawing n texts with replacement, of which a share p is right, gives a binomial number of right ones.
    counts = np.random.default_rng(seed).binomial(len(right), right.mean(), draws)  # (draws,)
    low, high = np.quantile(counts / len(right), [0.025, 0.975])
    return float(low), float(high)


def reliability(truth: Ints, probabilities: Floats) -> list[tuple[float, float, int]]:
    """(mean probability, share that is right, count) of the answers in each bin of probability that has any."""
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth  # (texts,) each
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)  # (texts,)
    found = []
    for i in range(BINS):
        if (chosen := bins == i).any():
            found.append((float(sure[chosen].mean()), float(right[chosen].mean()), int(chosen.sum())))
    return found


def calibration_error(truth: Ints, probabilities: Floats) -> float:
    """Expected calibration error: see above."""
    bins = reliability(truth, probabilities)
    return sum(count * abs(sure - right) for sure, right, count in bins) / len(truth)


def roc_auc(truth: Ints, probabilities: Floats) -> float:
    """Of two labels, how often a text of the second scores above one of the first; of more, each against all others.

    A label that no text has cannot be told from the others: the mean is over those that are there.
    """
    from sklearn import metrics as sk  # here, as it takes a second that not all need

    if probabilities.shape[1] == 2:
        return float(sk.roc_auc_score(truth, probabilities[:, 1]))
    return float(np.mean([sk.roc_auc_score(truth == i, probabilities[:, i]) for i in np.unique(truth)]))


def report(truth: Sequence[int] | Ints, probabilities: Floats) -> dict[str, Any]:
    """All figures of above.

    Args:
        truth: (texts,), the right labels.
        probabilities: (texts, labels).
    """
    from sklearn import metrics as sk

    truth = np.asarray(truth)
    n_labels = probabilities.shape[1]
    answers = probabilities.argmax(axis=1)
    low, high = bootstrap_interval(answers == truth)
    return {
        "texts": len(truth),
        "accuracy": float((answers == truth).mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "f1": float(sk.f1_score(truth, answers, average="macro")),
        "roc_auc": roc_auc(truth, probabilities),
        "log_loss": float(sk.log_loss(truth, np.clip(probabilities, 1e-15, 1), labels=list(range(n_labels)))),
        "calibration_error": calibration_error(truth, probabilities),
        "confusion": sk.confusion_matrix(truth, answers, labels=list(range(n_labels))).tolist(),
    }


def most_confident_errors(truth: Sequence[int] | Ints, probabilities: Floats, count: int = 10) -> list[int]:
    """Numbers of the texts that were answered wrong with the highest probability, the surest first."""
    answers, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(answers != np.asarray(truth))
    return wrong[np.argsort(-sure[wrong], kind="stable")][:count].tolist()


def save_picture(path: Path, truth: Sequence[int] | Ints, probabilities: Floats, labels: Sequence[str]) -> None:
    """Writes a PNG: the reliability of the probabilities, and who was taken for whom."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    truth = np.asarray(truth)
    figures, bins = report(truth, probabilities), reliability(truth, probabilities)
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="perfectly calibrated")
    sizes = [10 + 200 * count / len(truth) for _, _, count in bins]
    left.scatter([b[0] for b in bins], [b[1] for b in bins], s=sizes, color="black", label="answers, by probability")
    left.set(xlabel="probability that was given", ylabel="share that was right", xlim=(0, 1.02), ylim=(0, 1.02))
    left.set_title(f"calibration error {figures['calibration_error']:.3f}")
    left.legend(loc="upper left", fontsize=8)
    table = np.array(figures["confusion"])
    right.imshow(table, cmap="Greys", vmin=0, vmax=2 * table.max())  # pale, so that figures can be read on it
    for row, column in np.ndindex(*table.shape):
        right.text(column, row, f"{table[row, column]:,}", ha="center", va="center")
    # Labels are people's own: between dollar signs matplotlib would look for a formula.
    right.set_xticks(range(len(labels)), labels, rotation=0 if len(labels) < 4 else 45, parse_math=False)
    right.set_yticks(range(len(labels)), labels, parse_math=False)
    right.set(xlabel="answer", ylabel="truth")
    right.set_title(f"accuracy {figures['accuracy']:.3f}")
    figure.savefig(path, dpi=110)
