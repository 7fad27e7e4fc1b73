"""Labelled texts: every kind of source, no text in two splits, and a clear line for what is wrong."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from finetuning.classification.labelled import SPLITS, DataOptions, clean, describe, read_labelled
from finetuning.classification.synthetic import synthetic_reviews
from tests.conftest import assert_one_clear_line
from utils.errors import UserError

DATA = os.environ.get("SCRATCHBOOK_DATA")
IMDB = Path(DATA or ".") / "imdb"
real = pytest.mark.skipif(DATA is None, reason="SCRATCHBOOK_DATA is not set")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def many(count, start=0):
    return [{"text": f"text number {i}", "label": i % 2} for i in range(start, start + count)]


def texts(data, split):
    return [item.text for item in data.split(split)]


def test_breaks_and_entities_are_what_they_stand_for():
    assert clean("A<br /><br/>b &quot;c&quot; &amp; d<BR>") == 'A\n\nb "c" & d'


def test_the_synthetic_reviews_are_the_same_ones_and_balanced():
    made = list(synthetic_reviews(400))
    assert made == list(synthetic_reviews(400)) != list(synthetic_reviews(400, seed=1))
    assert sum(positive for _, positive in made) == 200
    assert len({text for text, _ in made}) == 400
    data = read_labelled(DataOptions())
    assert "synthetic: figures say nothing" in describe(data)
    for split in SPLITS:
        counts = Counter(item.label for item in data.split(split))
        assert counts[0] == counts[1]


def test_no_text_is_in_two_splits_or_twice_in_one(tmp_path):
    train = [*many(20), {"text": "Text  NUMBER 3", "label": 1}, {"text": "in both<br />", "label": 0}]
    test = [*many(6, 100), {"text": "In Both", "label": 0}, {"text": "in both", "label": 1}, {"text": " ", "label": 1}]
    path, test_path = write_rows(tmp_path / "a.jsonl", train), write_rows(tmp_path / "b.jsonl", test)
    data = read_labelled(DataOptions(data=path, test_data=Path(test_path)))
    normal = [" ".join(text.casefold().split()) for split in SPLITS for text in texts(data, split)]
    assert len(normal) == len(set(normal)) == 20 + 7
    assert sum(data.dropped.values()) == 4
    assert len(data.test) == 7


def test_validation_is_the_same_share_of_each_label_and_a_seed_decides_it(tmp_path):
    rows = [{"text": f"text {i}", "label": "abc"[min(i % 10, 2)]} for i in range(400)]
    options = DataOptions(data=write_rows(tmp_path / "rows.jsonl", rows), validation=0.25)
    data = read_labelled(options)
    assert data.labels == ("a", "b", "c")
    shares = [Counter(item.label for item in data.split(split)) for split in ("train", "validation")]
    for label in range(3):
        assert shares[1][label] / (shares[0][label] + shares[1][label]) == pytest.approx(0.25, abs=0.02)
    assert len(data.test) == 40  # a tenth of each label, since no test split was given
    assert read_labelled(options).summary == data.summary
    assert read_labelled(replace(options, data_seed=1)).summary["sha256"] != data.summary["sha256"]
    small = read_labelled(replace(options, train_limit=50, test_limit=20))
    assert (len(small.train), len(small.test)) == (50, 20)
    assert texts(small, "validation") == texts(data, "validation")


@pytest.mark.parametrize(("limit", "counts"), [(4, [1, 1, 1, 1]), (5, [2, 1, 1, 1]), (20, [14, 4, 1, 1])])
def test_a_limit_is_kept_and_leaves_each_label_a_text(tmp_path, limit, counts):
    rows = [{"text": f"text {i}", "label": "abcd"[sum(i % 100 >= n for n in (76, 96, 98))]} for i in range(1000)]
    options = DataOptions(data=write_rows(tmp_path / "rows.jsonl", rows), train_limit=limit, test_limit=limit)
    data = read_labelled(options)
    for split in ("train", "test"):
        found = Counter(item.label for item in data.split(split))
        assert [found[i] for i in range(4)] == counts
    with pytest.raises(UserError, match=r"--train-limit 3 .* 4 labels"):
        read_labelled(replace(options, train_limit=3))
    with pytest.raises(UserError, match=r"--test-limit 3 .* 4 labels"):
        read_labelled(replace(options, test_limit=3))


@pytest.mark.parametrize("data", ["synthetic", "imdb", "acl.tar.gz", "."])
def test_a_test_file_beside_what_has_a_test_split_is_refused(tmp_path, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_rows(tmp_path / "rows.jsonl", many(10))
    with pytest.raises(UserError, match="--test-data belongs to a file of rows"):
        read_labelled(DataOptions(data=data, test_data=Path(path)))


def test_all_kinds_of_sources_say_the_same(tmp_path):
    rows = [{"text": f"A film, number {i}.<br />", "label": ["negative", "positive"][i % 2]} for i in range(40)]
    for i, row in enumerate(rows):
        split, side = ("test" if i >= 30 else "train"), {"negative": "neg", "positive": "pos"}[row["label"]]
        path = tmp_path / "aclImdb" / split / side / f"{i:02d}_7.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(row["text"], encoding="utf-8")
        (tmp_path / "aclImdb" / split / "urls_pos.txt").write_text("not a review", encoding="utf-8")
    with tarfile.open(tmp_path / "acl.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "aclImdb", "aclImdb")
        evil = tarfile.TarInfo("../../../aclImdb/train/pos/evil.txt")
        archive.addfile(evil, io.BytesIO())  # an empty text, which is left out; nothing is unpacked
    split_rows = [row | {"split": "test" if i >= 30 else "train"} for i, row in enumerate(rows)]
    write_rows(tmp_path / "rows.jsonl", split_rows)
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["split", "label", "text"])
        writer.writeheader()
        writer.writerows(split_rows)
    found = {}
    for name in ("aclImdb", "acl.tar.gz", "rows.jsonl", "rows.csv"):
        data = read_labelled(DataOptions(data=str(tmp_path / name)))
        assert data.labels == ("negative", "positive")
        found[name] = [sorted((i.text, i.label) for s in group for i in data.split(s)) for group in (SPLITS, ["test"])]
    assert len(found["aclImdb"][0]) == 40
    assert len(found["aclImdb"][1]) == 10
    assert all(value == found["aclImdb"] for value in found.values())


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"review": "x", "label": 1}], {}, "has no column 'text'.*--text-column"),
        ([{"text": "x", "sentiment": 1}], {}, "has no column 'label'.*--label-column"),
        ([{"text": "x", "label": None}], {}, "a str and a NoneType"),
        ([{"text": "x", "label": 0.5}], {}, "a str and a float"),
        ([{"text": 5, "label": 1}], {}, "a int and a int"),
        ([{"text": "x", "label": 1}, {"text": "y", "label": "one"}], {}, "all be texts or all be whole numbers"),
        ([*many(30), {"text": "half \ud83d pair", "label": 1}], {}, "row 31 holds half a surrogate pair"),
        ([*many(30), {"text": "the only one", "label": 7}], {}, "label '7' stands in none of the training texts"),
        ([{"text": f"x{i}", "label": 1} for i in range(30)], {}, "at least two labels"),
        ([{"text": "x", "label": 0}, {"text": "y", "label": 1}], {}, "at least two labels"),
        ([{"text": " ", "label": i % 2} for i in range(9)], {}, "has no texts.*left out: 9 empty"),
        ([{"text": "same", "label": i % 2} for i in range(9)], {}, "left out: 8 twice in training"),
        (many(30), {"label_names": ("a", "b", "c")}, "3 names for 2 labels"),
        (many(30), {"label_names": ("a", "a")}, "--label-names are to be told apart"),
    ],
)
def test_wrong_rows_get_a_clear_line(tmp_path, rows, options, message):
    with pytest.raises((UserError, ValueError), match=message):
        read_labelled(DataOptions(data=write_rows(tmp_path / "rows.jsonl", rows), **options))


def test_a_split_that_nobody_knows_is_refused_and_not_learned_from(tmp_path):
    rows = [row | {"split": ("train", "holdout")[i % 2]} for i, row in enumerate(many(60))]
    write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=r"row 2 is of the split 'holdout': the column says train, training, valid"):
        read_labelled(DataOptions(str(tmp_path / "rows.jsonl")))


def test_other_names_of_splits_and_rows_without_labels_in_theirs(tmp_path):
    names = ("training", "dev", "testing", "unsupervised", "", None)
    rows = [row | {"split": names[i % 6]} for i, row in enumerate(many(120))]
    rows = [row | ({"label": -1} if row["split"] == "unsupervised" else {}) for row in rows]
    rows = [row | ({"label": int(i % 4 > 1)} if row["label"] != -1 else {}) for i, row in enumerate(rows)]
    write_rows(tmp_path / "rows.jsonl", rows)
    data = read_labelled(DataOptions(str(tmp_path / "rows.jsonl")))
    assert data.labels == ("0", "1")
    assert sorted(texts(data, "test")) == sorted(row["text"] for row in rows if row["split"] == "testing")
    learned = sorted(row["text"] for row in rows if row["split"] not in ("testing", "unsupervised"))
    assert sorted(texts(data, "train") + texts(data, "validation")) == learned


def test_a_row_without_a_label_is_named(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{i % 2 if i != 3 else ''}\n" for i in range(40)))
    with pytest.raises(UserError, match=r"rows.csv, row 4 has no label"):
        read_labelled(DataOptions(str(path)))


def test_labels_of_many_digits_are_names(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{'7' * 5000 if i % 2 else 1}\n" for i in range(40)))
    assert read_labelled(DataOptions(str(path))).labels == ("1", "7" * 5000)


def test_a_split_is_known_however_it_is_written(tmp_path):
    rows = [row | {"split": ("Test", " TEST ", "Train")[i % 3]} for i, row in enumerate(many(60))]
    data = read_labelled(DataOptions(data=write_rows(tmp_path / "rows.jsonl", rows)))
    assert sorted(texts(data, "test")) == sorted(row["text"] for row in rows if row["split"] != "Train")


def test_numbers_of_a_csv_are_in_the_order_of_numbers(tmp_path):
    """Names are given in the order of the values, and as texts 10 would stand before 2."""
    rows = [f"text {i},{i % 11}" for i in range(220)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    names = tuple(f"class {i}" for i in range(11))
    data = read_labelled(DataOptions(data=str(tmp_path / "rows.csv"), label_names=names))
    assert all(item.label == int(item.text.split()[1]) % 11 for split in SPLITS for item in data.split(split))
    test = write_rows(tmp_path / "test.jsonl", [{"text": f"test {i}", "label": i % 11} for i in range(22)])
    data = read_labelled(DataOptions(data=str(tmp_path / "rows.csv"), test_data=Path(test)))
    assert data.labels == tuple(map(str, range(11)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\nfine,1\na text, with commas,0\n", "row 2 has 3 fields, and the header names 2"),
        ("text,label\nfine,1\nonly a text\n", "row 2 has 1 fields, and the header names 2"),
        ('label,text\n1,fine\n0,"never closed\n1,and swallowed\n', "is no CSV in UTF-8.*unexpected end of data"),
    ],
)
def test_nothing_of_a_broken_csv_is_lost_silently(tmp_path, content, message):
    (tmp_path / "rows.csv").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_labelled(DataOptions(data=str(tmp_path / "rows.csv")))


def test_wrong_files_get_a_clear_line(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.tar.gz").write_bytes(b"\x1f\x8bxxxx")
    (tmp_path / "latin.csv").write_bytes("text,label\nÄ,1\n".encode("latin-1"))
    (tmp_path / "latin.jsonl").write_bytes('{"text": "Ä", "label": 1}\n'.encode("latin-1"))
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    for name, message in {
        "nowhere": "no file or folder",
        "empty": "not laid out like aclImdb",
        "broken.tar.gz": "damaged or no tar archive",
        "latin.csv": "no CSV in UTF-8",
        "latin.jsonl": "line 1 is not JSON",
        "rows.xlsx": "not a file of rows",
    }.items():
        with pytest.raises((UserError, ValueError), match=message):
            read_labelled(DataOptions(data=str(tmp_path / name)))
    done = run("finetuning/classification/labelled.py", "--data", tmp_path / "nowhere")
    assert_one_clear_line(done, "no file or folder")


def packed(path, *more, mode="w:gz"):
    """An archive of 48 reviews, then `more` members: (name, kind, where a link points)."""
    with tarfile.open(path, mode) as archive:
        names = [f"a/{s}/{side}/{i}_1.txt" for s in ("train", "test") for side in ("pos", "neg") for i in range(12)]
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
        for name, kind, target in more:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_with_a_broken_header_is_damaged_and_not_smaller(tmp_path, mode):
    path = packed(tmp_path / "acl.tar", mode=mode)
    raw = bytearray(gzip.decompress(path.read_bytes()) if mode == "w:gz" else path.read_bytes())
    assert len(read_labelled(DataOptions(data=str(path))).test) == 24
    raw[40 * 1024 + 5] ^= 0x5A  # in the name of the 41st: a member takes two blocks of 512 bytes
    broken = bytes(raw)
    if mode == "w:gz":  # the checksum stays that of the whole, as where a disk has turned a bit
        broken = gzip.compress(broken)[:-8] + path.read_bytes()[-8:]
    path.write_bytes(broken)
    with pytest.raises(UserError, match="is damaged"):
        read_labelled(DataOptions(data=str(path)))


def test_an_archive_whose_checksum_is_wrong_is_damaged(tmp_path):
    path = packed(tmp_path / "acl.tar.gz")
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="is damaged"):
        read_labelled(DataOptions(data=str(path)))
    raw = bytearray(packed(path).read_bytes())
    raw[len(raw) // 2 :] = bytes(len(raw) - len(raw) // 2)
    path.write_bytes(raw)
    with pytest.raises(UserError, match="is damaged"):
        read_labelled(DataOptions(data=str(path)))


@pytest.mark.parametrize(
    ("kind", "target"),
    [(tarfile.SYMTYPE, "x.txt"), (tarfile.SYMTYPE, "/etc/passwd"), (tarfile.SYMTYPE, "../neg/0_1.txt"),
     (tarfile.LNKTYPE, "a/nothing.txt"), (tarfile.FIFOTYPE, ""), (tarfile.DIRTYPE, "")],
)  # fmt: skip
def test_only_regular_files_of_an_archive_are_read(tmp_path, kind, target):
    path = packed(tmp_path / "acl.tar.gz", ("a/train/pos/x.txt", kind, target))
    data = read_labelled(DataOptions(data=str(path)))
    assert sum(len(data.split(split)) for split in SPLITS) == 48
    assert not data.dropped


def test_the_training_texts_alone_are_exported(run, tmp_path):
    done = run("finetuning/classification/labelled.py", "--export", tmp_path / "texts")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "texts" / "train.jsonl").read_text("utf-8").splitlines()]
    data = read_labelled(DataOptions())
    assert [row["text"] for row in rows] == texts(data, "train")
    assert all(set(row) == {"text"} for row in rows)


@real
def test_the_real_reviews_in_their_own_layout():
    data = read_labelled(DataOptions(data=str(IMDB / "aclImdb_mini.tar.gz")))
    assert (len(data.train) + len(data.validation), len(data.test)) == (200, 200)
    assert not any("<br" in text for split in SPLITS for text in texts(data, split))
