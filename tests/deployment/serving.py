"""The API as a process of its own, on a tiny model."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.chat_ui.browser import ROOT, resident_bytes, threads_named
from utils.addresses import free_port

KEY = "a key that is long enough"


class RunningApi:
    """`python deployment/api.py`.

    Args:
        folders: what clients call a model -> its folder.
        flags: more of the script's.
    """

    def __init__(self, folders: Mapping[str, Path], log: Path, *flags: str, keys: str = KEY) -> None:
        self.port, self.log, self.keys = free_port(), log, keys
        self.url = f"http://127.0.0.1:{self.port}"
        arguments = [sys.executable, "deployment/api.py", "--port", str(self.port), "--device", "cpu"]
        arguments += ["--model", *map(str, folders.values()), "--name", *folders, *flags]
        environment = {**os.environ, "SCRATCHBOOK_API_KEYS": keys, "OMP_NUM_THREADS": "1"}
        with log.open("wb") as out:
            self.process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=out, stderr=out)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            assert self.process.poll() is None, log.read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health"):
                return
            time.sleep(0.1)
        raise AssertionError(log.read_text())

    def stop(self) -> int:
        """Tells it to end, and waits; its exit status."""
        self.process.terminate()
        return self.process.wait(60)

    def n_threads(self, name: str) -> int:
        """Threads whose names begin so."""
        return threads_named(self.process.pid, name)

    def resident(self) -> int:
        """Bytes that it holds."""
        return resident_bytes(self.process.pid)


@contextlib.contextmanager
def serving(folders: Mapping[str, Path], log: Path, *flags: str, keys: str = KEY) -> Iterator[RunningApi]:
    """An API while the block runs."""
    api = RunningApi(folders, log, *flags, keys=keys)
    try:
        yield api
    finally:
        if api.process.poll() is None:
            api.process.kill()
            api.process.wait(20)
