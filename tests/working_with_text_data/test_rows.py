"""Files of rows, written by the libraries that others write them with."""

from __future__ import annotations

import gzip
import json

import pytest
from datasets import Dataset

from working_with_text_data.rows import read_column, read_rows

ROWS = [{"text": "one\u2028two\x85three", "n": 1}, {"text": "", "n": 2}, {"text": "日本", "n": 3}]


def written(path):
    """ROWS in a file of the kind that its name says."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    if path.suffix == ".parquet":
        Dataset.from_list(ROWS).to_parquet(path)
    else:
        path.write_bytes(gzip.compress(lines, mtime=0) if path.suffix == ".gz" else lines + b"\n")
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_rows_come_back(tmp_path, name):
    path = written(tmp_path / name)
    assert list(read_rows(path)) == ROWS
    assert list(read_column(path, "text")) == [row["text"] for row in ROWS]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt is not a file of rows"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl, line 1 is not JSON"),
        ("a.jsonl", b'["a"]\n', "line 1 is JSON, but no object"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz: broken gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9], "broken gzip file"),
        ("a.parquet", b"PAR1 and then no more", "damaged or not Parquet"),
        ("a.jsonl", b'{"story": "a", "n": 1}\n', "row 1 has no column 'text': it has story, n"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 1}\n', "row 2: 'text' is 1, not a text"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        list(read_column(tmp_path / name, "text"))
    assert "\n" not in str(caught.value)
