"""A user's mistake is one line and a status; a bug of ours keeps its traceback."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from utils.errors import UserError, one_line, preset_of

SCRIPT = """
from dataclasses import dataclass
from utils.errors import UserError, run_command

@dataclass
class Options:
    n: int = 1

def main(options):
    {body}

if __name__ == "__main__":
    run_command(main, Options)
"""


def run_body(tmp_path, body, *arguments):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(body=body), encoding="utf-8")
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        ("raise UserError('no such corpus')", 2, "error: no such corpus"),
        ("raise ValueError('two\\nlines')", 2, "error: two lines"),
        ("raise OSError(28, 'No space left on device', 'f')", 2, "error: the disk is full (f): free some space"),
        ("open('/nowhere/at/all')", 2, "error: no such file or folder (/nowhere/at/all)"),
        ("raise MemoryError", 2, "error: out of memory"),
        ("raise RuntimeError('CUDA out of memory. Tried to allocate')", 2, "error: out of memory"),
        ("raise KeyboardInterrupt", 130, "stopped"),
    ],
)
def test_one_line_and_a_status(tmp_path, body, status, line):
    done = run_body(tmp_path, body)
    assert done.returncode == status
    assert done.stderr.startswith(line)
    assert len(done.stderr.splitlines()) == 1


def test_a_bug_keeps_its_traceback(tmp_path):
    done = run_body(tmp_path, "raise RuntimeError('ours')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a closed pipe is another error there")
def test_a_reader_that_stops_reading_is_no_error(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(body="print('line\\n' * 100_000)"), encoding="utf-8")
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_wrong_flag_is_refused(tmp_path):
    done = run_body(tmp_path, "pass", "--n", "many")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_one_line_of_errors_without_a_number():
    assert one_line(ConnectionError("nobody\nanswers")) == "nobody answers"
    assert one_line(UserError("x")) == "x"
    assert "permission denied (f)" in one_line(PermissionError(errno.EACCES, "Permission denied", "f"))


def test_of_two_presets_the_last_counts_as_of_any_flag():
    presets = {"small": 1, "large": 2}
    assert preset_of(["--preset", "small", "--steps", "3"], presets) == 1
    assert preset_of(["--preset", "small", "--preset=large"], presets) == 2
    assert preset_of(["--steps", "3"], presets) is None
    for wrong in (["--preset", "tiny", "--preset", "large"], ["--preset", "large", "--preset"]):
        with pytest.raises(UserError, match="there is no such preset; use one of small, large"):
            preset_of(wrong, presets)
