"""Small C++ files of this project, compiled by the machine's own compiler when they are first needed.

A file is compiled for the processor that it runs on, in a second, and kept in the cache folder under a name that holds
its contents, the compiler and the processor: none of them can change without a new library. There is no build step and
no header of another project. Where there is no compiler the caller has another way, and is told why it is slower.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from utils.benchmarking import processor
from utils.downloads import cache_folder

# What each compiler may not know is left out in turn: 512-bit vectors (x86), threads, the processor's own instructions.
_FLAGS: tuple[list[str], ...] = (
    ["-march=native", "-mprefer-vector-width=512", "-fopenmp"],
    ["-march=native", "-fopenmp"],
    ["-march=native"],
    ["-mcpu=native"],
    [],
)


@lru_cache
def load_native(source: Path) -> ctypes.CDLL | None:
    """The compiled C++ file, or None where it cannot be compiled. SCRATCHBOOK_NATIVE=0 asks for None."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if os.environ.get("SCRATCHBOOK_NATIVE") == "0" or compiler is None or os.name == "nt":
        return None
    try:
        return ctypes.CDLL(str(_compile(source, compiler)))
    except (OSError, subprocess.SubprocessError):
        return None


def _compile(source: Path, compiler: str) -> Path:
    """The library, compiled if it is not there yet.

    Raises:
        OSError, SubprocessError: the compiler is not there or takes no set of flags.
    """
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    key = "\0".join([source.read_text(encoding="utf-8"), compiler, version, processor(), repr(_FLAGS)])
    folder = cache_folder() / "native"
    library = folder / f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for i, flags in enumerate(_FLAGS):
            made = Path(scratch) / library.name
            command = [compiler, "-std=c++17", "-O3", *flags, "-shared", "-fPIC", str(source), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                os.replace(made, library)  # whole or not there, whoever else compiles it
                return library
            if i + 1 == len(_FLAGS):
                done.check_returncode()
    raise AssertionError("the last set of flags either works or raises")
