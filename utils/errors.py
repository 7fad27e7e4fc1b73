"""The one way a mistake of the user's reaches the user: a single line, no traceback.

Inside the library a wrong value raises `ValueError` with the value and what was expected. At the edges
(a script, a file, the network) that becomes one line on standard error and a non-zero exit status. Every
script's last line is therefore `run_command(main, Config)`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import tyro

Config = TypeVar("Config")

EXIT_USER_ERROR = 2  # the shell's convention for wrong usage
EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
EXIT_TERMINATED = 143  # 128 + SIGTERM


_OUT_OF_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory", re.I)  # as torch's devices say it


class UserError(Exception):
    """Something that the user can mend. The message says in one line what is wrong and what to do."""


@contextlib.contextmanager
def interrupts_wait() -> Iterator[Callable[[], bool]]:
    """While the block runs, Ctrl-C does nothing but be noted; it takes effect when the block ends.

    For work in small steps, each of which has to be whole: ask between two steps, and leave the block if it is time.
    Outside of the main thread, where Python tells nobody of signals, the block runs as any other.

    Yields:
        A function: has Ctrl-C been pressed?
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGINT, before)
    if noted:
        raise KeyboardInterrupt


@contextlib.contextmanager
def signals_noted(*signals: signal.Signals) -> Iterator[Callable[[], int]]:
    """While the block runs, the first of `signals` is only noted, so that the work can end in order at its next step.

    A second Ctrl-C interrupts as usual. Outside of the main thread, where Python tells nobody of signals, the block
    runs as any other.

    Yields:
        A function: the number of the signal that came, or 0.
    """
    noted: list[int] = []

    def note(number: int, _: object) -> None:
        if noted and number == signal.SIGINT:
            raise KeyboardInterrupt
        noted.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.signal(number, note) for number in signals}
    try:
        yield lambda: noted[0] if noted else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def one_line(error: Exception) -> str:
    """What to print for `error`: its own words for a `UserError` or `ValueError`, plain ones for the disk's errors."""
    if isinstance(error, OSError) and error.errno is not None:
        where = f" ({error.filename})" if error.filename else ""
        again = "free some space and run the same command again, with --resume auto if it has that"
        advice = {
            errno.ENOSPC: f"the disk is full{where}: {again}",
            errno.EDQUOT: f"the disk quota is used up{where}: {again}",
            errno.EACCES: f"permission denied{where}: choose a folder that you may write to, or change its permissions",
            errno.EPERM: f"not permitted{where}: choose another folder, or change its permissions",
            errno.EROFS: f"the file system is read-only{where}: choose a folder that you may write to",
            errno.ENOENT: f"no such file or folder{where}",
            errno.ENOTDIR: f"part of that path is a file, not a folder{where}",
            errno.EISDIR: f"that is a folder where a file is needed{where}",
        }.get(error.errno)
        return advice or f"{error.strerror}{where}"
    return " ".join(str(error).split())


def refuse_foreign_flags(options: Any, flag: str, chosen: str, belongs: Mapping[str, Sequence[str]]) -> None:
    """Refuses a flag that was given and does nothing, because it belongs to another choice than the one made.

    Args:
        options: a dataclass of flags with defaults; a flag at its default was not given.
        flag: the choice's flag, such as "--attention".
        chosen: its value.
        belongs: value -> the fields that mean something with it alone.

    Raises:
        UserError: one does.
    """
    default = {field.name: field.default for field in dataclasses.fields(options)}
    for choice, names in belongs.items():
        for name in names:
            if choice != chosen and getattr(options, name) != default[name]:
                raise UserError(f"--{name.replace('_', '-')} belongs to {flag} {choice}, and here it is {chosen}")


def refuse_broken_text(flag: str, text: str) -> None:
    """Raises UserError where `text` is no Unicode: Python takes other bytes of a command line for lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{flag} is not UTF-8: write it in a UTF-8 terminal") from None


def preset_of(arguments: Sequence[str], presets: Mapping[str, Config]) -> Config | None:
    """The preset that a command line names by `--preset NAME`, whose values are the defaults of all other flags.

    As of any flag that is given twice, the last counts.

    Raises:
        UserError: there is no such preset, or no name.
    """
    chosen = None
    for i, argument in enumerate(arguments):
        name = None
        if argument == "--preset":
            name = arguments[i + 1] if i + 1 < len(arguments) else ""
        elif argument.startswith("--preset="):
            name = argument.removeprefix("--preset=")
        if name is not None:
            if name not in presets:
                raise UserError(f"--preset {name}: there is no such preset; use one of {', '.join(presets)}")
            chosen = presets[name]
    return chosen


def run_command(
    main: Callable[[Config], None], config_class: type[Config], presets: Mapping[str, Config] | None = None
) -> None:
    """Parses the command line into `config_class`, runs `main`, and ends the process as a command should.

    Where the script has `presets`, `--preset NAME` chooses the defaults; its help then shows them.
    Exit status: 0 when done, 2 for anything the user can mend (one line on standard error), 130 after Ctrl-C.
    Any other exception is a bug of ours and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):  # a Windows console or a pipe may be cp1252; a model writes any character
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    description = (sys.modules["__main__"].__doc__ or "").strip()
    try:
        chosen = preset_of(sys.argv[1:], presets) if presets else None
        defaults: dict[str, Any] = {} if chosen is None else {"default": chosen}
        main(tyro.cli(config_class, description=description, **defaults))
        sys.stdout.flush()
    except BrokenPipeError:  # who read our output has had enough of it, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own last flush would fail
        sys.exit(EXIT_BROKEN_PIPE)
    except (UserError, ValueError, OSError) as error:
        rank = f" (rank {os.environ['RANK']})" if os.environ.get("RANK", "0") != "0" else ""
        print(f"error{rank}: {one_line(error)}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        print("error: out of memory: try a smaller batch, context or model", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
