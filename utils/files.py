"""Files that are either whole or not there.

A program can be killed, and a disk can fill, between any two bytes. So nothing here writes where a reader looks:
it writes beside the target and renames. A rename within one file system happens at
one instant, so whoever opens the target sees the old contents or the new, never half of either.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_ABANDONED_AFTER = 24 * 3600.0  # seconds; what a killed writer left, unless another is still at it


def write_bytes(path: Path | str, data: bytes) -> None:
    """Writes `data` to `path` at one instant, making the folders above it.

    Raises:
        OSError: the folder cannot be written or the disk is full; `path` then is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_text(path: Path | str, text: str) -> None:
    """`write_bytes` of `text` in UTF-8, with the line ends that it has (no translation on Windows)."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path | str, value: Any) -> None:
    """`write_text` of `value` as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path | str) -> Any:
    """The value in the JSON file at `path`.

    Raises:
        ValueError: the file is not JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are both ValueErrors
        raise ValueError(f"{path} is not a readable JSON file ({error})") from None


@contextlib.contextmanager
def replace_folder(folder: Path | str, marker: str, owned: Collection[str] = ()) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` when the block ends without an error.

    Args:
        folder: the target. It may be absent, empty, or an older one of the same kind.
        marker: the file by which such a folder is known (`manifest.json`, say); it is in every whole one.
        owned: patterns (`train_*.bin`) of what else such a folder holds. A folder that holds anything besides, or no
            marker, is somebody's own and is never replaced.

    Raises:
        ValueError: `folder` holds something else.
        OSError: cannot be written, disk full. The old folder is then as it was and nothing else remains.
    """
    folder = _replaceable(folder, marker, owned)
    for abandoned in folder.parent.glob(f".{glob.escape(folder.name)}.new.*"):
        if time.time() - abandoned.stat().st_mtime > _ABANDONED_AFTER:
            shutil.rmtree(abandoned, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.new."))
    os.chmod(staging, 0o777 & ~_umask())
    try:
        yield staging
        take_place(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextlib.contextmanager
def resume_folder(folder: Path | str, marker: str, owned: Collection[str], key: str, progress: str) -> Iterator[Path]:
    """`replace_folder` for long work: what an attempt leaves unfinished lies beside the target for the next one.

    Args:
        key: what decides the contents, as a short name. Only attempts with equal keys go on from each other; what
            others left for the same target is removed.
        progress: the file that says how far the work is. Without it, what an attempt leaves is worth nothing and goes.

    Raises:
        ValueError: as `replace_folder`, or another process is at the same work.
        OSError: cannot be written, disk full. The old folder is then as it was.
    """
    folder = _replaceable(folder, marker, owned)
    staging = folder.with_name(f".{folder.name}.part.{key}")
    for stale in folder.parent.glob(f".{glob.escape(folder.name)}.part.*"):
        if stale != staging:
            with alone_in(stale):
                print(f"Removing what a run with other settings left unfinished: {stale}")
                shutil.rmtree(stale, ignore_errors=True)
    staging.mkdir(exist_ok=True)
    with alone_in(staging):
        try:
            yield staging
            take_place(staging, folder)
        except BaseException:
            if not (staging / progress).is_file():
                shutil.rmtree(staging, ignore_errors=True)
            raise


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other processes out of the same block; a process that dies lets go. Windows has no such lock for folders.

    Raises:
        ValueError: another process is in it.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot lock: then it is as on Windows
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"another process is writing {folder}: wait for its end, or choose another folder"
                ) from None
        yield
    finally:
        os.close(handle)


def require_replaceable(folder: Path | str, marker: str, owned: Collection[str]) -> None:
    """Raises ValueError if `replace_folder` would: before hours of work are spent on what should go there."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose another folder")
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    foreign = [name for name in names if not any(fnmatch(name, pattern) for pattern in (marker, *owned))]
    if foreign or (names and marker not in names):
        what = f"{sorted(foreign)[0]!r}, which is not ours" if foreign else f"no {marker}"
        raise ValueError(f"{folder} holds {what}, so it is not replaced: choose another folder")


def _replaceable(folder: Path | str, marker: str, owned: Collection[str]) -> Path:
    """The folder to replace (what a link points to), after a look that it is ours and the mending of a broken swap."""
    require_replaceable(folder, marker, owned)
    folder = Path(folder)
    if folder.is_symlink():
        folder = folder.resolve()  # the link stays, what it points to is replaced
    folder.parent.mkdir(parents=True, exist_ok=True)
    old = _set_aside(folder)
    if (old / marker).is_file() and not folder.exists():  # a kill fell between the two renames of take_place
        os.replace(old, folder)
    return folder


def take_place(staging: Path, folder: Path) -> None:
    """`staging` becomes `folder`; where that fails, the old one stays.

    A kill between the two renames leaves no `folder`, but the new and the old one whole, under the names of `staging`
    and `.NAME.old`: readers have to look for one of them.
    """
    old = _set_aside(folder)
    shutil.rmtree(old, ignore_errors=True)
    try:
        if folder.exists():
            os.replace(folder, old)
        os.replace(staging, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def latest_whole_folder(folder: Path | str, marker: str) -> Path:
    """Where to read what `replace_folder` wrote: `folder`, or the older one if a kill fell between the two renames.

    Readers ask here first, so that no instant of a kill loses what had been written. They move nothing themselves.
    """
    folder = Path(folder)
    old = _set_aside(folder)
    return old if not folder.exists() and (old / marker).is_file() else folder


def _set_aside(folder: Path) -> Path:
    """Where the old folder is for the instant between the two renames of `replace_folder`."""
    return folder.with_name(f".{folder.name}.old")


def require_writable(folder: Path | str) -> Path:
    """Proves that `folder` can be written or made, before hours of work are spent on what should go there.

    Nothing is left behind: what is tried is a temporary file in the folder, or in the nearest one above that exists.

    Raises:
        OSError: it cannot.
    """
    nearest = Path(folder)
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    with tempfile.TemporaryFile(dir=nearest):
        pass
    return Path(folder)


def sha256_of(path: Path | str) -> str:
    """The SHA-256 of the file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    """The process's file mode mask, which can be read only by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
