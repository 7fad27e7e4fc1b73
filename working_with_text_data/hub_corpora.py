"""Corpora of the Hugging Face hub, read as they are asked for: some are a hundred times larger than the disk.

A data set is a repository: it changes, and a name alone does not say which text was read. So a name is resolved once to
a commit, which never changes, and everything is read at that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from utils.errors import UserError, one_line

SMOLLM = "HuggingFaceTB/smollm-corpus"  # Ben Allal et al. 2024, https://huggingface.co/blog/smollm
SMOLLM_CONFIGS = ("fineweb-edu-dedup", "cosmopedia-v2", "python-edu")
_WITHOUT_TEXT = "python-edu"  # its columns are blob_id, repo_name, path, length_bytes, score, int_score


def require_smollm_texts(configs: list[str]) -> None:
    """Proves that the configurations of the SmolLM corpus exist and hold text.

    Raises:
        UserError: one does not.
    """
    for config in configs:
        if config not in SMOLLM_CONFIGS:
            raise UserError(f"--mix: smollm has no {config!r}, but {', '.join(SMOLLM_CONFIGS)}")
    if _WITHOUT_TEXT in configs:
        raise UserError(
            "--mix: smollm's python-edu holds no text, only the ids of files at Software Heritage: fetch these as its "
            "dataset card shows, save them as FOLDER/python-edu/*.parquet beside folders of the others, and use "
            "--corpus FOLDER"
        )


def resolve_revision(dataset: str, revision: str | None) -> str:
    """The commit that a branch or tag (or the newest state, for None) stands for at this moment.

    Raises:
        UserError: the hub cannot be reached, or has no such data set; one line that says what to do.
    """
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi  # here, because it takes a while that most commands need not wait

    try:
        commit = HfApi().dataset_info(dataset, revision=revision, timeout=30).sha
    except Exception as error:  # whatever its HTTP client, the proxy or the server say
        raise _unreachable(dataset, error) from None
    if commit is None:
        raise UserError(f"the hub names no commit for {dataset}: give --revision")
    return commit


def stream_column(
    dataset: str, config: str | None, split: str, revision: str | None, column: str
) -> Iterator[tuple[str, str]]:
    """(name, text) of each row of a data set of the hub, read as they are asked for.

    Raises:
        UserError: the hub cannot be reached, or has no such data set, configuration, split or column.
    """
    from datasets import load_dataset

    try:
        rows = iter(load_dataset(dataset, config, split=split, revision=revision, streaming=True))
    except Exception as error:
        raise _unreachable(dataset, error) from None
    number = 0
    while True:
        try:
            row = next(rows, None)
        except Exception as error:
            raise _unreachable(dataset, error) from None
        if row is None:
            return
        number += 1
        if not isinstance(row.get(column), str):
            what = f"{row[column]!r} in" if column in row else f"only {', '.join(row)} and not"
            raise UserError(f"{dataset}, row {number} has {what} the column {column!r}: choose another --text-column")
        yield f"{config or dataset}#{number}", row[column]


def _unreachable(dataset: str, error: Exception) -> UserError:
    reason = one_line(error)[:300] or type(error).__name__
    files = f"https://huggingface.co/datasets/{dataset}"
    if dataset == SMOLLM:
        where = "FOLDER/fineweb-edu-dedup/ and FOLDER/cosmopedia-v2/ and use --corpus FOLDER with the same --mix"
    else:
        where = "a FOLDER and use --corpus FOLDER"
    return UserError(
        f"{dataset} could not be read from the hub ({reason}): run the same command again when it can be, or put "
        f"the .parquet files of {files} into {where}"
    )
