"""Checkpoints: all that a long work needs to go on, each whole or not there, and known to be whole before it is used.

    checkpoints/step-00000400/
        checkpoint.json      the step, some figures, and the SHA-256 of every other file
        …                    whatever the work itself writes: `save_tree`'s files, shards

A folder is filled under another name, flushed to the disk, and renamed, so that a kill leaves the older ones untouched.
The manifest is written last: with it, a folder that is still under the other name is whole, too, and counts.
A disk can still lie later. So what is read is compared with the checksums first; a damaged checkpoint is passed over
with a warning, and the one before it serves.

State is a tree of dictionaries, lists, tuples, plain values and tensors: `save_tree` keeps it as one safetensors file,
whose header holds the tree. There is no pickle in it, so a checkpoint from a stranger can do no more than be wrong.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from utils.files import read_json, sha256_of, take_place, write_json

MANIFEST = "checkpoint.json"
FORMAT = "scratchbook-checkpoint-1"
_NAME = re.compile(r"step-(\d+)|\.step-(\d+)\.new")
_PLAIN = (bool, int, float, str, type(None))


def save_tree(path: Path | str, tree: Any) -> None:
    """Writes a tree of dictionaries (keys: texts or integers), lists, tuples, plain values and tensors as one file.

    Tensors that are one and the same are stored once, and come back as one and the same.

    Raises:
        TypeError: there is something else in it.
        OSError: it cannot be written, the disk is full.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[Any, str] = {}

    def encode(value: Any) -> Any:
        if isinstance(value, Tensor):
            place = (value.data_ptr(), value.dtype, value.shape, value.stride()) if value.numel() else id(value)
            if place not in names:
                names[place] = str(len(names))
                tensors[names[place]] = value.detach().contiguous()
            return {"tensor": names[place]}
        if isinstance(value, dict):
            if wrong := [key for key in value if not isinstance(key, str | int)]:
                raise TypeError(f"{wrong[0]!r} cannot be a key in a stored tree: use a text or an integer")
            return {"dict": [[key, encode(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return {type(value).__name__: [encode(item) for item in value]}
        if not isinstance(value, _PLAIN):
            raise TypeError(f"a {type(value).__name__} cannot be stored in a tree")
        return value

    header = {"tree": json.dumps(encode(tree))}
    try:
        save_file(tensors, path, header)
    except SafetensorError as error:
        number = errno.ENOSPC if "No space left" in str(error) else errno.EIO
        if told := re.search(r"os error (\d+)", str(error)):
            number = int(told[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def load_tree(path: Path | str) -> Any:
    """What `save_tree` wrote, its tensors on the CPU.

    Raises:
        ValueError: the file is damaged or another kind of file.
        OSError: it cannot be read.
    """
    tensors: dict[str, Tensor] = {}

    def decode(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "dict":
            return {key: decode(item) for key, item in content}
        items = [decode(item) for item in content]
        return tuple(items) if kind == "tuple" else items

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        return decode(json.loads(header["tree"]))
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or no stored tree ({error})") from None


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint folder, and what its manifest says."""

    folder: Path
    step: int
    facts: dict[str, Any]

    def damage(self) -> str | None:
        """What is wrong with it in a few words, after reading all of it; None for nothing."""
        for name, digest in self.facts["files"].items():
            path = self.folder / name
            if not path.is_file():
                return f"{path} is missing"
            if sha256_of(path) != digest:
                return f"{path} is damaged (its checksum is another)"
        return None


def checkpoint_name(step: int) -> str:
    """The name of the folder of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def staging_folder(folder: Path, step: int) -> Path:
    """Where a checkpoint is filled before it is whole: the same place for every process of a run."""
    return folder / f".{checkpoint_name(step)}.new"


def begin_checkpoint(folder: Path, step: int) -> Path:
    """An empty folder to fill, in place of what a killed writer left; for one process, as `finish_checkpoint` is."""
    staging = staging_folder(folder, step)
    for checkpoint in find_checkpoints(folder):
        whole = folder / checkpoint_name(checkpoint.step)
        if checkpoint.folder != whole:  # a kill fell just before the last rename
            os.replace(checkpoint.folder, whole)
    for left in (*folder.glob(".step-*.new"), *folder.glob(".step-*.old")):
        shutil.rmtree(left, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def finish_checkpoint(folder: Path, step: int, **facts: Any) -> Checkpoint:
    """Flushes what was filled in, notes the checksums and `facts`, and gives it its name.

    Raises:
        OSError: the disk is full, cannot be written.
    """
    staging, target = staging_folder(folder, step), folder / checkpoint_name(step)
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    for path in files:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    digests = {path.relative_to(staging).as_posix(): sha256_of(path) for path in files}
    manifest = {"format": FORMAT, "step": step, **facts, "files": digests}
    write_json(staging / MANIFEST, manifest)
    take_place(staging, target)  # of an older one of the same step, if there is one
    return Checkpoint(target, step, manifest)


def write_checkpoint(folder: Path, step: int, fill: Callable[[Path], None], **facts: Any) -> Checkpoint:
    """A new checkpoint whose files `fill` writes into the folder that it is given: for one process alone.

    Raises:
        OSError: the disk is full, cannot be written; the older ones are as they were, and nothing else remains.
    """
    staging = begin_checkpoint(folder, step)
    try:
        fill(staging)
        return finish_checkpoint(folder, step, **facts)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def find_checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoints in `folder`, the newest first; their files are not compared with the checksums yet.

    One that is renamed or removed while somebody else looks is not among them.
    """
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if (name := _NAME.fullmatch(path.name)) and (path / MANIFEST).is_file():
            step = int(name[1] or name[2])
            if name[2] and (folder / checkpoint_name(step)).exists():
                continue
            try:
                facts = read_json(path / MANIFEST)
            except FileNotFoundError:
                continue
            except ValueError:
                facts = None
            if isinstance(facts, dict) and facts.get("format") == FORMAT and isinstance(facts.get("files"), dict):
                found.append(Checkpoint(path, step, facts))
            else:  # its manifest itself is damaged
                found.append(Checkpoint(path, step, {"files": {MANIFEST: ""}}))
    return sorted(found, key=lambda checkpoint: -checkpoint.step)


def newest_whole(folder: Path, warn: Callable[[str], object] = print) -> Checkpoint | None:
    """The newest checkpoint whose files are what was written; `warn` is told of each that was passed over."""
    for checkpoint in find_checkpoints(folder):
        damage = checkpoint.damage()
        if damage is None:
            return checkpoint
        warn(f"warning: {damage}; this checkpoint is passed over")
    return None


def prune(
    folder: Path, keep_last: int, keep_best: int = 0, by: str = "validation_loss", newest: int | None = None
) -> None:
    """Removes all checkpoints but the last `keep_last` and the `keep_best` of lowest `by` among their facts.

    Args:
        newest: the step that counts as the last. What claims a later one was passed over as damaged, and goes.
    """
    found = find_checkpoints(folder)
    counted = [c for c in found if newest is None or c.step <= newest]
    kept = counted[:keep_last]
    judged = [c for c in counted if isinstance(c.facts.get(by), int | float)]
    kept += sorted(judged, key=lambda checkpoint: (checkpoint.facts[by], checkpoint.step))[:keep_best]
    for checkpoint in found:
        if checkpoint not in kept:
            # By another name first, so that a kill half way leaves none that looks whole.
            doomed = checkpoint.folder.with_name(f".{checkpoint.folder.name}.old")
            shutil.rmtree(doomed, ignore_errors=True)
            os.replace(checkpoint.folder, doomed)
            shutil.rmtree(doomed, ignore_errors=True)
