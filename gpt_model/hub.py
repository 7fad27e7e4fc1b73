"""Models from the Hugging Face hub: a name becomes a folder with the files that are needed, fetched once and checked.

    gpt2, gpt2-medium, …     a published model, always at one commit: the bytes of tomorrow are those of today
    somebody/model           any other, at the revision that is asked for; without one, as its branch main is now

A hub is git behind HTTP: a commit lists its files, each with a checksum. `huggingface_hub` reads that list, fetches
into its cache (below HF_HOME) what is not there yet, and when a connection breaks goes on where it broke. A commit that
is in the cache costs no request. All of that checks how *long* a file is, not what is in it; so this is done here. The
cache calls each file by the checksum that the hub announced: SHA-256 for large files, git's own SHA-1 for small ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from utils.downloads import cache_folder
from utils.files import sha256_of, write_text

# The commits of the published models; weights, vocabulary and config have not changed since safetensors were added.
PINNED = {
    "openai-community/gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "openai-community/gpt2-medium": "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
    "openai-community/gpt2-large": "32b71b12589c2f8d625668d2335a01cac3249519",
    "openai-community/gpt2-xl": "15ea56dee5df4983c59b2538573817e1667135e2",
    "distilbert/distilgpt2": "2290a62682d06624634c1f46a6ad5be0f47f38aa",
}
_SHORT = {repository.split("/")[1]: repository for repository in PINNED}


def repository_and_revision(name: str, revision: str | None = None) -> tuple[str, str]:
    """What `name` is called on the hub, and the revision to take: the one given, the pinned one, or main."""
    repository = _SHORT.get(name, name)
    return repository, revision or PINNED.get(repository, "main")


def download(name: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """The folder with those files of a model on the hub that match one of `patterns`; its name is the commit.

    Args:
        name: a published model (`gpt2`) or any hub id (`somebody/model`).
        revision: a branch, tag or commit; a pinned model's own if not given, else main.

    Raises:
        ValueError: no such model or revision, not allowed to see it, or a file that is not what the hub announced.
        ConnectionError: the hub cannot be reached, or must not be, and the cache has not all of it.
        OSError: the cache cannot be written, disk full.
    """
    from huggingface_hub import snapshot_download

    repository, revision = repository_and_revision(name, revision)
    with _clear_errors(repository, revision):
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    for path in sorted(folder.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in patterns):
            _require_announced(path, repository)
    return folder


def _require_announced(path: Path, repository: str) -> None:
    """Removes a file from the cache, and says so, if it is not what the hub announced. Done once for each file.

    Where the cache has no symbolic links (Windows may not allow them) nothing tells the checksum: only lengths count.

    Raises:
        ValueError: it is not.
    """
    announced = Path(os.readlink(path)).name if path.is_symlink() else ""  # ../../blobs/<checksum>
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", announced):
        return
    blob = path.parent / os.readlink(path)
    found = blob.stat()
    stamp, checked = f"{found.st_size} {found.st_mtime_ns}", cache_folder() / "checked" / announced
    with contextlib.suppress(OSError, ValueError):
        if checked.read_text(encoding="utf-8") == stamp:
            return
    actual = sha256_of(blob) if len(announced) == 64 else _git_checksum(blob)
    if actual != announced:
        for bad in {path, blob, blob.resolve()}:  # a blob may be a link too, into a store that repositories share
            bad.unlink(missing_ok=True)
        raise ValueError(
            f"{path.name} of {repository} came damaged: its checksum begins {actual[:12]}, where the hub announced "
            f"{announced[:12]}; it was removed, so run the same command again to fetch it anew"
        )
    with contextlib.suppress(OSError):  # a cache that cannot be written is checked each time
        write_text(checked, stamp)


def _git_checksum(path: Path) -> str:
    """The name that git gives to a file of these contents."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def _clear_errors(repository: str, revision: str) -> Iterator[None]:
    """Turns what `huggingface_hub` raises into one line that says what to do."""
    import httpx2  # what `huggingface_hub` speaks HTTP with, and whose errors it lets through
    from huggingface_hub import constants, errors

    what, where = f"{repository} ({revision})", constants.ENDPOINT
    by_hand = f"or put its files into a folder and give the path of that, such as ./{repository.split('/')[-1]}"
    try:
        yield
    except errors.HFValidationError:
        raise ValueError(
            f"{repository!r} is neither a folder nor a name that a hub model can have: train one with `make demo`, or "
            "name a hub model such as gpt2"
        ) from None
    except errors.GatedRepoError:
        raise ValueError(
            f"{repository} is gated: accept its terms at {where}/{repository}, log in with `hf auth login`, and run "
            "the same command again"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ValueError(
            f"{repository!r} is neither a folder here nor a model that {where} shows: train one with `make demo`, or "
            "name a hub model such as gpt2; for a private one, log in with `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise ValueError(f"{repository} has no revision {revision!r}: see {where}/{repository}/commits/main") from None
    except errors.LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError(
                f"{what} is no folder here and not whole in the cache, and HF_HUB_OFFLINE forbids to fetch it: run "
                f"`hf download {repository} --revision {revision}` where there is a network, {by_hand}"
            ) from None
        raise ConnectionError(
            f"{what} is no folder here and not whole in the cache, and {where} cannot be reached "
            f"({_reason(error.__cause__ or error)}): try again later, {by_hand}"
        ) from None
    except (errors.HfHubHTTPError, httpx2.HTTPError, RuntimeError) as error:  # the last are those of xet
        raise ConnectionError(
            f"{what} could not be fetched from {where} ({_reason(error)}): run the same command again, {by_hand}"
        ) from None
    except OSError as error:
        if error.errno is not None:  # the disk's, which `run_command` explains
            raise
        raise ConnectionError(f"{what} could not be fetched ({_reason(error)}): run the same command again") from None


def _reason(error: BaseException) -> str:
    """The first two lines of what an error says, or its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".") or type(error).__name__
