"""What has to be beaten: linear classifiers on counts of words, which cost seconds and are hard to beat.

python finetuning/classification/train_baselines.py --data aclImdb_v1.tar.gz

    majority               always the most frequent label
    naive Bayes            words are drawn independently, given the label: log p(label) + Σ log p(word | label). A word
                           is there or not, however often (Wang and Manning 2012)
    logistic regression    a weight for each word, on counts (bag of words) and on TF-IDF
    linear SVM             the same with another loss, which does not care for what is right by a margin

TF-IDF is a word's count in the text, dampened, times the logarithm of how rare it is in all texts: *the* weighs least.
Bigrams (*not good*) are words too. Each classifier has its few settings searched on the validation split; the
best setting then learns from training and validation together, and is measured on the test split, once.

All of it is scikit-learn's: nothing here is what this project teaches, and it does it well.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.calibration import CalibratedClassifierCV
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import Pipeline
from sklearn.svm import LinearSVC
from tqdm import tqdm

from finetuning.classification.labelled import DataOptions, LabelledData, LabelledText, describe, read_labelled
from finetuning.classification.metrics import report
from utils.benchmarking import describe_machine
from utils.errors import UserError, run_command
from utils.files import require_writable, write_json
from utils.tracking import provenance

Setting = dict[str, float | int | str]
FOLDS = 5  # parts by which the SVM's distances are made into probabilities; each needs a text of every label


@dataclass(frozen=True)
class TrainBaselines(DataOptions):
    """The flags of this script."""

    out: Path = Path("runs/baselines.json")
    """The JSON file with all figures."""
    min_count: int = 2
    """Words that stand in fewer training texts are left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_count < 1:
            raise UserError(f"--min-count must be at least 1, got {self.min_count}")
        if self.out.is_dir():
            raise UserError(f"{self.out} is a folder: --out names a JSON file")


def tokens_of_length(pair: bool) -> tuple[int, int]:
    """Words alone, or words and pairs of them that stand beside each other."""
    return (1, 2) if pair else (1, 1)


def candidates(min_count: int) -> dict[str, Iterator[tuple[Setting, Pipeline]]]:
    """name of a classifier -> (setting, pipeline from texts to labels) of each setting to try."""

    def counts(pairs: bool, binary: bool = False) -> CountVectorizer:
        return CountVectorizer(ngram_range=tokens_of_length(pairs), min_df=min_count, binary=binary)

    def tfidf(pairs: bool) -> TfidfVectorizer:
        return TfidfVectorizer(ngram_range=tokens_of_length(pairs), min_df=min_count, sublinear_tf=True)

    def bayes() -> Iterator[tuple[Setting, Pipeline]]:
        for pairs, alpha in product((False, True), (0.1, 0.5, 1.0)):
            steps = [("words", counts(pairs, binary=True)), ("bayes", MultinomialNB(alpha=alpha))]
            yield {"pairs": pairs, "alpha": alpha}, Pipeline(steps)

    def logistic(dense_counts: bool, strengths: tuple[float, ...]) -> Iterator[tuple[Setting, Pipeline]]:
        for pairs, c in product((False, True), strengths):
            words = counts(pairs, binary=True) if dense_counts else tfidf(pairs)
            yield (
                {"pairs": pairs, "C": c},
                Pipeline([("words", words), ("logistic", LogisticRegression(C=c, max_iter=300))]),
            )

    def svm() -> Iterator[tuple[Setting, Pipeline]]:
        for pairs, c in product((False, True), (0.1, 0.3, 1.0)):
            yield {"pairs": pairs, "C": c}, Pipeline([("words", tfidf(pairs)), ("svm", LinearSVC(C=c))])

    return {
        "majority": iter([({}, Pipeline([("words", counts(False)), ("majority", DummyClassifier())]))]),
        "naive Bayes": bayes(),
        "logistic regression, bag of words": logistic(True, (0.01, 0.03, 0.1)),
        "logistic regression, TF-IDF": logistic(False, (3.0, 10.0, 30.0)),
        "linear SVM, TF-IDF": svm(),
    }


def texts_and_labels(items: list[LabelledText]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """(texts, labels)."""
    return [item.text for item in items], np.array([item.label for item in items], dtype=np.int64)


def search(data: LabelledData, name: str, settings: Iterator[tuple[Setting, Pipeline]]) -> dict[str, Any]:
    """The settings tried, the best by accuracy on validation, and its figures on the test split."""
    (texts, labels), (held_texts, held_labels) = texts_and_labels(data.train), texts_and_labels(data.validation)
    tried, best, best_accuracy = [], None, -1.0
    for setting, pipeline in tqdm(list(settings), desc=name, unit="setting", disable=None, leave=False):
        accuracy = float(pipeline.fit(texts, labels).score(held_texts, held_labels))
        tried.append({"setting": setting, "validation_accuracy": accuracy})
        if accuracy > best_accuracy:
            best, best_accuracy = pipeline, accuracy
    assert best is not None
    if isinstance(best.steps[-1][1], LinearSVC):  # gives distances, which calibration makes into probabilities
        best = Pipeline([best.steps[0], ("svm", CalibratedClassifierCV(best.steps[-1][1], ensemble=False, cv=FOLDS))])
    start = time.perf_counter()
    best.fit(texts + held_texts, np.concatenate([labels, held_labels]))
    seconds = time.perf_counter() - start
    test_texts, test_labels = texts_and_labels(data.test)
    figures = report(test_labels, best.predict_proba(test_texts))
    chosen = max(tried, key=lambda one: one["validation_accuracy"])
    return {"tried": tried, **chosen, "test": figures, "training_seconds": seconds}


def train_baselines(data: LabelledData, min_count: int = 2) -> dict[str, Any]:
    """name -> what `search` found.

    Raises:
        UserError: the texts have no words, or a label has too few texts.
    """
    counts = Counter(item.label for item in data.train + data.validation)
    for label, name in enumerate(data.labels):
        if counts[label] < FOLDS:
            raise UserError(
                f"there are {counts[label]} texts of the label {name!r} in training and validation, and {FOLDS} are "
                "needed: give more, or leave the label out"
            )
    texts, _ = texts_and_labels(data.train)
    try:
        CountVectorizer(min_df=min_count).fit(texts)
    except ValueError:
        raise UserError(
            f"no word of two letters or more stands in {min_count:,} of the training texts: lower --min-count, or give "
            "more texts"
        ) from None
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 300 steps are enough for a baseline
        for name, settings in candidates(min_count).items():
            found[name] = search(data, name, settings)
    return found


def main(options: TrainBaselines) -> None:
    data = read_labelled(options)
    print(describe(data))
    require_writable(options.out.parent)
    found = train_baselines(data, options.min_count)
    print(f"\n{'':<36}{'validation':>11}{'test':>8}{'95 % of it':>18}{'ROC-AUC':>9}{'seconds':>9}   setting")
    for name, one in found.items():
        test = one["test"]
        interval = f"{test['accuracy_low']:.3f} to {test['accuracy_high']:.3f}"
        setting = ", ".join(f"{key} {value}" for key, value in one["setting"].items())
        print(
            f"{name:<36}{one['validation_accuracy']:>11.3f}{test['accuracy']:>8.3f}{interval:>18}{test['roc_auc']:>9.3f}"
            f"{one['training_seconds']:>9.1f}   {setting}"
        )
    results = {"data": data.summary, "baselines": found, "machine": describe_machine(), "made_by": provenance()}
    write_json(options.out, results)
    print(f"Wrote {options.out}")
    print("Next: python finetuning/classification/train_classifier.py --help")


if __name__ == "__main__":
    run_command(main, TrainBaselines)
