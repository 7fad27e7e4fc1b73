"""Shared by all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test uses the network
# No test is about time; and what CI finds, it finds again.
settings.register_profile("house", deadline=None, database=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("house")
ROOT = Path(__file__).resolve().parents[1]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data that SCRATCHBOOK_DATA names; the test is skipped where there is none."""
    named = os.environ.get("SCRATCHBOOK_DATA")
    if not named:
        pytest.skip("needs real data: set SCRATCHBOOK_DATA to its folder")
    if not Path(named).is_dir():
        pytest.skip(f"needs real data: SCRATCHBOOK_DATA names {named}, which is no folder")
    return Path(named)


@pytest.fixture
def run() -> Run:
    """Runs one of the project's scripts as a user does, and gives its status, output and errors."""

    def run_script(
        script: str, *arguments: object, cwd: Path = ROOT, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / script), *map(str, arguments)],
            cwd=cwd,
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"} | environment,
            timeout=300,
        )

    return run_script


def started(command: Iterable[object]) -> subprocess.Popen[str]:
    """A command on its way, from the repository's root, with one thread; `ended` waits for it."""
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    """What a process said, all of it, once it ended as it should."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def assert_one_clear_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """The command failed, said so in one line with these words in it, and showed no traceback."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in errors[0], errors[0]


def refuses(check: Callable[[Any], None], answer: Any, message: str) -> None:
    """The check of an exercise does not take this answer, and says why."""
    with pytest.raises(AssertionError, match=message):
        check(answer)
