"""Work over processes comes back in order, whatever their number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.conftest import ROOT
from utils.parallel import map_in_order, usable_cores

_offset = 0


def set_offset(offset: int) -> None:
    global _offset
    _offset = offset


def square(n: int) -> tuple[int, int]:
    return n * n + _offset, os.getpid()


def fail_at_seven(n: int) -> int:
    if n == 7:
        raise ValueError("seven is not liked")
    return n


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_are_in_the_order_of_the_items(processes):
    found = list(map_in_order(square, range(20), processes, set_offset, (100,)))
    set_offset(0)
    assert [result for result, _ in found] == [n * n + 100 for n in range(20)]
    assert (os.getpid() in {pid for _, pid in found}) == (processes == 1)


def test_one_item_starts_no_process():
    assert list(map_in_order(square, [3], 4)) == [(9, os.getpid())]
    assert list(map_in_order(square, [], 4)) == []


def test_items_are_read_as_results_are_taken():
    read = []

    def items():
        for n in range(1000):
            read.append(n)
            yield n

    results = map_in_order(square, items(), 2)
    assert next(results)[0] == 0
    assert len(read) < 10
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_reaches_the_caller(processes):
    with pytest.raises(ValueError, match="seven is not liked"):
        list(map_in_order(fail_at_seven, range(10), processes))


def test_no_processes_are_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        list(map_in_order(square, [1, 2], 0))
    assert usable_cores() >= 1


SCRIPT = """
import sys, time
from utils.parallel import map_in_order

if __name__ != "__main__":
    with open(IMPORTING, "a") as file:
        file.write("1")
    time.sleep(0.5)  # as one that imports much

def work(n):
    time.sleep(0.02)
    return n

if __name__ == "__main__":
    try:
        for n in map_in_order(work, range(100_000), 2):
            print("result", flush=True)
    except KeyboardInterrupt:
        print("stopped")
        sys.exit(130)
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="Windows has no groups of processes")
@pytest.mark.parametrize("moment", ["one has started", "both have started", "both import", "they work"])
def test_ctrl_c_shows_no_traceback_whenever_it_comes(tmp_path, moment):
    """A terminal sends it to all processes of the group."""
    script = tmp_path / "script.py"
    (tmp_path / "importing").touch()
    script.write_text(SCRIPT.replace("IMPORTING", repr(str(tmp_path / "importing"))))
    process = subprocess.Popen(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    deadline = time.monotonic() + 60
    if moment == "they work":
        assert process.stdout.readline() == "result\n"
    else:
        wanted = 1 if moment == "one has started" else 2
        while time.monotonic() < deadline:
            children = psutil.Process(process.pid).children()
            if sum("spawn_main" in " ".join(child.cmdline()) for child in children) >= wanted:
                break
    if moment == "both import":
        while (tmp_path / "importing").stat().st_size < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert set(said.splitlines()) <= {"result", "stopped"}, said
