"""Texts with labels: where they come from, and what has to be done before a figure measured on them means anything.

python finetuning/classification/labelled.py --data aclImdb_v1.tar.gz --export runs/reviews/texts

    synthetic          a few thousand generated film reviews, on every machine. They are made from patterns and say
                       nothing about real reviews; they let everything here be tried offline
    imdb               `stanfordnlp/imdb` from the hub: 25,000 film reviews to learn from and 25,000 to measure on, half
                       of each positive (Maas et al. 2011)
    a path             a folder laid out like aclImdb (train/pos/*.txt ...), its .tar.gz as it is, or for any task a
                       .jsonl, .jsonl.gz, .csv or .parquet with a text and a label in each row

Three things are done to all of them.

*Duplicates go.* A text that stands in the test split and in training is an answer known beforehand; so is one that
stands in validation. Texts count as equal if they are so without case and blanks.

*Validation comes out of training*, the same share of every label, and never out of the test split: what is chosen by
validation (a rate, a length, a stop) is then honest when it is measured on the test.

*HTML goes.* IMDb's reviews are pieces of web pages, with `<br />` for ends of lines and `&quot;` for quotation marks.
"""

from __future__ import annotations

import csv
import hashlib
import html
import json
import random
import re
import shlex
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetuning.classification.synthetic import synthetic_reviews
from utils.errors import UserError, run_command
from utils.files import require_writable, write_text
from working_with_text_data.rows import ROW_SUFFIXES, read_rows, require_utf8

_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_WHOLE = re.compile("0|-?[1-9][0-9]{0,17}")
# What files of rows call their splits. Validation rows are learned from: ours is drawn from the training texts.
_SPLIT_OF: dict[str, str | None] = dict.fromkeys(("train", "training", "validation", "valid", "val", "dev"), "train")
_SPLIT_OF |= dict.fromkeys(("test", "testing"), "test") | {"unsupervised": None}
_ARCHIVES = (".tar.gz", ".tgz", ".tar")
_OF_ACL = re.compile(r"(?:^|/)(train|test)/(pos|neg)/[^/]+\.txt$")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class LabelledText:
    """A text, and the number of its label."""

    text: str
    label: int


@dataclass(frozen=True)
class LabelledData:
    """Three splits that share no text."""

    name: str
    labels: tuple[str, ...]
    """What the numbers mean: label i is called labels[i]."""
    train: list[LabelledText]
    validation: list[LabelledText]
    test: list[LabelledText]
    dropped: dict[str, int]
    """Why texts were left out, and how many."""

    def split(self, name: str) -> list[LabelledText]:
        """train, validation or test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    @property
    def summary(self) -> dict[str, Any]:
        """For a run's config.json: what was learned from, and how it is known."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for item in self.split(split):
                digest.update(f"{split}\0{item.label}\0{item.text}\0".encode())
        counts = {split: len(self.split(split)) for split in SPLITS}
        return {"name": self.name, "labels": list(self.labels), "texts": counts, "sha256": digest.hexdigest()}


@dataclass(frozen=True)
class DataOptions:
    """The flags of every script that reads labelled texts."""

    data: str = "synthetic"
    """synthetic; imdb; or a path: an aclImdb folder or its .tar.gz, a .jsonl, .jsonl.gz, .csv or .parquet."""
    test_data: Path | None = None
    """A second file of rows, the test split; else a column `split` says it (train, validation, test), or a tenth of
    the texts is taken."""
    text_column: str = "text"
    """Of rows: the column with the text."""
    label_column: str = "label"
    """Of rows: the column with the label, a text or a whole number."""
    label_names: tuple[str, ...] = ()
    """What labels are called, in the order of their values; the values themselves if not given."""
    validation: float = 0.1
    """The share of the training texts that is held out to choose by."""
    train_limit: int | None = None
    """Learn from so many texts at most, of each label the same share."""
    test_limit: int | None = None
    """Measure on so many test texts at most."""
    data_seed: int = 0
    """Decides which texts are held out, and what the limits leave."""

    def __post_init__(self) -> None:
        if not 0 < self.validation < 1:
            raise UserError(f"--validation is a share: above 0 and below 1, got {self.validation}")
        if len(set(self.label_names)) != len(self.label_names):
            raise UserError(f"--label-names are to be told apart, got {' '.join(self.label_names)}")
        for name in ("train_limit", "test_limit"):
            if getattr(self, name) is not None and getattr(self, name) < 2:
                raise UserError(f"--{name.replace('_', '-')} must be at least 2, got {getattr(self, name)}")


def clean(text: str) -> str:
    """Without HTML: breaks become ends of lines, `&amp;` and the like what they stand for."""
    return html.unescape(_BREAK.sub("\n", text)).strip()


def _same(text: str) -> str:
    """What two texts have in common that count as equal."""
    return " ".join(text.casefold().split())


def read_labelled(options: DataOptions) -> LabelledData:
    """The data that the flags name, cleaned and split.

    Raises:
        UserError: there is no such data, a column is missing, a split is empty or has one label only.
        OSError: a file cannot be read; ConnectionError: the hub cannot be reached.
    """
    found = _with_numbers(list(_raw(options)))
    labels = _labels_of({label for _, _, label in found}, options)
    numbers = {value: i for i, value in enumerate(labels)}
    dropped: Counter[str] = Counter()
    splits: dict[str, list[LabelledText]] = {"train": [], "test": []}
    for split, text, label in found:
        text = clean(text)
        if text:
            splits[split].append(LabelledText(text, numbers[label]))
        else:
            dropped["empty"] += 1
    test = _without_duplicates(splits["test"], set(), dropped, "twice in the test split")
    seen = {_same(item.text) for item in test}
    train = _without_duplicates(splits["train"], seen, dropped, "twice in training, or in the test split, too")
    shuffle = random.Random(options.data_seed)
    if not splits["test"]:
        train, test = _held_out(train, 0.1, shuffle)
    train, validation = _held_out(train, options.validation, shuffle)
    train = _at_most(train, options.train_limit, "--train-limit", shuffle)
    test = _at_most(test, options.test_limit, "--test-limit", shuffle)
    names = options.label_names or tuple(map(str, labels))
    data = LabelledData(options.data, names, train, validation, test, dict(dropped))
    _require_usable(data)
    return data


def _require_usable(data: LabelledData) -> None:
    for split in SPLITS:
        counts = Counter(item.label for item in data.split(split))
        if len(counts) < 2:
            what = "no texts" if not counts else f"texts of the label {data.labels[next(iter(counts))]!r} only"
            lost = ", ".join(f"{count:,} {reason}" for reason, count in data.dropped.items())
            note = f" (left out: {lost})" if lost else ""
            raise UserError(
                f"the {split} split of {data.name} has {what}{note}: at least two labels are needed in each"
            )
    learned = {item.label for item in data.train}
    for i, name in enumerate(data.labels):
        if i not in learned:
            raise UserError(
                f"the label {name!r} stands in none of the training texts of {data.name}: give more texts that have "
                "it, or leave it out"
            )


def _with_numbers(found: list[tuple[str, str, Any]]) -> list[tuple[str, str, Any]]:
    """A CSV's labels are texts. Where all are written as whole numbers they become such: as texts, 10 is before 2."""
    if all(isinstance(label, int) or _WHOLE.fullmatch(label) for _, _, label in found):
        return [(split, text, int(label)) for split, text, label in found]
    return found


def _labels_of(values: set[Any], options: DataOptions) -> list[Any]:
    """The labels' values in order.

    Raises:
        UserError: they are of several types, or there are not as many as `label_names`.
    """
    kinds = {type(value) for value in values}
    if len(kinds) > 1 or not kinds <= {int, str}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UserError(f"labels of {options.data} must all be texts or all be whole numbers, and there are {names}")
    ordered = sorted(values)
    if options.label_names and len(options.label_names) != len(ordered):
        shown = ", ".join(map(str, ordered[:5]))
        raise UserError(f"--label-names gives {len(options.label_names)} names for {len(ordered)} labels ({shown})")
    return ordered


def _without_duplicates(
    items: list[LabelledText], seen: set[str], dropped: Counter[str], reason: str
) -> list[LabelledText]:
    kept = []
    for item in items:
        if (same := _same(item.text)) in seen:
            dropped[reason] += 1
        else:
            seen.add(same)
            kept.append(item)
    return kept


def _by_label(items: Iterable[LabelledText]) -> dict[int, list[LabelledText]]:
    groups: dict[int, list[LabelledText]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return dict(sorted(groups.items()))


def _held_out(
    items: list[LabelledText], share: float, shuffle: random.Random
) -> tuple[list[LabelledText], list[LabelledText]]:
    """(what stays, what is held out): the same share of every label."""
    counts = {label: max(1, round(share * len(group))) for label, group in _by_label(items).items()}
    return _drawn(items, counts, shuffle)


def _drawn(
    items: list[LabelledText], counts: dict[int, int], shuffle: random.Random
) -> tuple[list[LabelledText], list[LabelledText]]:
    """(what stays, what is drawn): so many of each label."""
    stays, held = [], []
    for label, group in _by_label(items).items():
        shuffle.shuffle(group)
        held += group[: counts[label]]
        stays += group[counts[label] :]
    shuffle.shuffle(stays)
    shuffle.shuffle(held)
    return stays, held


def _at_most(items: list[LabelledText], limit: int | None, flag: str, shuffle: random.Random) -> list[LabelledText]:
    """`limit` of the texts, of each label one at least and about the same share.

    Raises:
        UserError: there are more labels.
    """
    if limit is None or limit >= len(items):
        return items
    sizes = {label: len(group) for label, group in _by_label(items).items()}
    if limit < len(sizes):
        raise UserError(f"{flag} {limit} is less than a text of each of the {len(sizes)} labels: give a higher one")
    exact = {label: limit * size / len(items) for label, size in sizes.items()}
    counts = {label: max(1, int(share)) for label, share in exact.items()}
    while sum(counts.values()) < limit:  # rounding down has left some
        counts[max(counts, key=lambda label: exact[label] - counts[label])] += 1
    while sum(counts.values()) > limit:  # one at least was too much: the most frequent label gives
        counts[max(counts, key=lambda label: counts[label])] -= 1
    return _drawn(items, counts, shuffle)[1]


# --- where they come from ---------------------------------------------------------------------------------------------


def _raw(options: DataOptions) -> Iterator[tuple[str, str, Any]]:
    """(train or test, text, label) of all that there is."""
    path = Path(options.data)
    if options.test_data is not None and (
        options.data in ("synthetic", "imdb") or path.is_dir() or path.name.lower().endswith(_ARCHIVES)
    ):
        raise UserError(
            f"--test-data belongs to a file of rows, and --data {options.data} has its own test split: leave it out"
        )
    if options.data == "synthetic":
        for i, (text, positive) in enumerate(synthetic_reviews()):
            yield "test" if i % 5 == 4 else "train", text, ("negative", "positive")[positive]
        return
    if options.data == "imdb":
        yield from _from_hub()
        return
    if path.is_dir():
        yield from _acl_folder(path)
    elif path.name.lower().endswith(_ARCHIVES):
        yield from _acl_archive(path)
    elif path.is_file():
        yield from _rows(path, options, "test" if options.test_data == path else None)
        if options.test_data is not None:
            yield from _rows(options.test_data, options, "test")
    else:
        raise UserError(f"no file or folder {options.data}: --data is synthetic, imdb or a path")


def _from_hub() -> Iterator[tuple[str, str, str]]:
    import datasets  # here, because it takes seconds that offline runs need not wait for

    try:
        found = datasets.load_dataset("stanfordnlp/imdb")
    except Exception as error:  # it has dozens of kinds of errors for a network that is not there
        raise ConnectionError(
            f"stanfordnlp/imdb could not be fetched ({type(error).__name__}): download aclImdb_v1.tar.gz from "
            "ai.stanford.edu/~amaas/data/sentiment and pass --data aclImdb_v1.tar.gz"
        ) from None
    for split in ("train", "test"):
        for row in found[split]:
            yield split, row["text"], ("negative", "positive")[row["label"]]


_ACL_LABELS = {"neg": "negative", "pos": "positive"}


def _acl_folder(folder: Path) -> Iterator[tuple[str, str, str]]:
    paths = sorted(path for path in folder.glob("**/*.txt") if _OF_ACL.search(path.as_posix()))
    if not paths:
        raise UserError(f"{folder} is not laid out like aclImdb: train/pos, train/neg, test/pos and test/neg hold .txt")
    for path in paths:
        match = _OF_ACL.search(path.as_posix())
        assert match
        yield match[1], _decoded(path.read_bytes(), str(path)), _ACL_LABELS[match[2]]


def _acl_archive(path: Path) -> Iterator[tuple[str, str, str]]:
    """Read as it is: nothing is unpacked, so nothing can be written anywhere. Links and devices are passed over."""
    if not path.is_file():
        raise UserError(f"no archive {path}")
    count = 0
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if (match := _OF_ACL.search(member.name)) and member.isfile():
                    file = archive.extractfile(member)
                    assert file is not None
                    count += 1
                    yield match[1], _decoded(file.read(), f"{path}, {member.name}"), _ACL_LABELS[match[2]]
            _require_end(archive)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} is damaged or no tar archive ({error})") from None
    if not count:
        raise UserError(f"{path} holds nothing laid out like aclImdb: train/pos/*.txt and so on")


def _require_end(archive: tarfile.TarFile) -> None:
    """At a broken header tarfile ends as if nothing followed, and then nobody comes to the checksum at gzip's end.

    Raises:
        tarfile.ReadError, OSError: what follows the last member is not the end of an archive.
    """
    file = archive.fileobj
    assert file is not None
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("a broken header, or no end")
    while file.read(1 << 20):
        pass


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 ({error})") from None


def _rows(path: Path, options: DataOptions, split: str | None) -> Iterator[tuple[str, str, Any]]:
    """Rows of a file; a column `split` says which (`_SPLIT_OF`), where `split` does not."""
    if not path.is_file():
        raise UserError(f"no file {path}")
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else read_rows(path)
    if path.suffix.lower() != ".csv" and not path.name.lower().endswith(ROW_SUFFIXES):
        raise UserError(f"{path} is not a file of rows: .csv, {', '.join(ROW_SUFFIXES)} can be read")
    for number, row in enumerate(rows, 1):
        for column in (options.text_column, options.label_column):
            if column not in row:
                flag = "--text-column" if column == options.text_column else "--label-column"
                raise UserError(f"{path}, row {number} has no column {column!r}, but {', '.join(row)}: pass {flag}")
        text, label = row[options.text_column], row[options.label_column]
        if not isinstance(text, str) or not isinstance(label, int | str) or isinstance(label, bool):
            kinds = f"a {type(text).__name__} and a {type(label).__name__}"
            raise UserError(f"{path}, row {number}: text and label are {kinds}, not a text and a text or whole number")
        require_utf8(f"{text}{label}", f"{path}, row {number}")
        told = split or str(row.get("split") or "train").strip().lower()
        if told not in _SPLIT_OF:
            raise UserError(f"{path}, row {number} is of the split {told!r}: the column says {', '.join(_SPLIT_OF)}")
        part = _SPLIT_OF[told]
        if part is None:
            continue  # its texts have no labels
        if isinstance(label, str) and not label.strip():
            raise UserError(f"{path}, row {number} has no label: give it one, or leave the row out")
        yield ("train" if options.test_data is not None and split is None else part), text, label


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a review may be longer than 128 kB
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = (row for row in csv.reader(file, strict=True) if row)  # strict: a quotation mark must be closed
            header = next(rows, [])
            for number, row in enumerate(rows, 1):
                if len(row) != len(header):
                    raise UserError(
                        f"{path}, row {number} has {len(row)} fields, and the header names {len(header)}: a text with "
                        "a comma in it needs quotation marks around it"
                    )
                yield dict(zip(header, row, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no CSV in UTF-8 ({error})") from None


# --- for people -------------------------------------------------------------------------------------------------------


def describe(data: LabelledData) -> str:
    """The labels' balance and the lengths of each split, and what was left out, in some lines."""
    lines = []
    for split in SPLITS:
        items = data.split(split)
        counts = Counter(item.label for item in items)
        shares = ", ".join(f"{name} {counts[i] / len(items):.0%}" for i, name in enumerate(data.labels))
        words = np.array([len(item.text.split()) for item in items])
        middle, long = np.quantile(words, [0.5, 0.95])
        lines.append(
            f"  {split:<11}{len(items):>7,} texts: {shares}; words: median {middle:.0f}, 95 % below {long:.0f}, "
            f"longest {words.max():,}"
        )
    lines += [f"  left out: {count:,} ({reason})" for reason, count in data.dropped.items()]
    note = " (synthetic: figures say nothing about real reviews)" if data.name == "synthetic" else ""
    return "\n".join([f"{data.name}{note}", *lines])


@dataclass(frozen=True)
class Labelled(DataOptions):
    """The flags of this script."""

    export: Path | None = None
    """A folder for the training texts without their labels, one file of rows, to pretrain on. The validation and test
    texts are not among them."""


def main(options: Labelled) -> None:
    data = read_labelled(options)
    print(describe(data))
    if options.export is not None:
        rows = [json.dumps({"text": item.text}, ensure_ascii=False) for item in data.train]
        path = require_writable(options.export) / "train.jsonl"
        write_text(path, "\n".join(rows) + "\n")
        folder = shlex.quote(str(options.export))
        print(f"Wrote {path}")
        print(f"Next: python pretraining/prepare_data.py --corpus {folder} --tokenizer TOKENIZER.json --out TOKENS")


if __name__ == "__main__":
    run_command(main, Labelled)
