"""Fetching files from the network: patiently, completely, and into a folder that keeps them.

A server that is busy says so and is asked again later; one that says no is not. What comes is checked against the
length that was announced, so that a connection that breaks never leaves half a file that looks whole.
"""

from __future__ import annotations

import os
import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from urllib.error import HTTPError, URLError

USER_AGENT = "llm-scratchbook/0.1 (a course on language models; fetches few files, once, and keeps them)"
MAX_PAUSE = 60.0


def cache_folder() -> Path:
    """The folder for downloads: what SCRATCHBOOK_CACHE names, or `~/.cache/llm-scratchbook`."""
    return Path(os.environ.get("SCRATCHBOOK_CACHE") or Path.home() / ".cache" / "llm-scratchbook")


def fetch(
    url: str,
    attempts: int = 3,
    timeout: float = 30,
    sleep: Callable[[float], None] = time.sleep,
    max_bytes: int = 64 * 1024 * 1024,
) -> tuple[bytes, str]:
    """The bytes at `url` and their content type, such as "text/plain".

    Args:
        attempts: how often to ask a server that is busy, slow or breaks off.
        timeout: for how many seconds it may be silent.
        sleep: waits between attempts.

    Raises:
        OSError, HTTPException: no answer, an error for an answer, or less than was announced; that of the last attempt.
        ValueError: more than `max_bytes` came.
    """
    for attempt in range(attempts - 1):
        try:
            return _fetch_once(url, timeout, max_bytes)
        except (OSError, HTTPException) as error:
            pause = _pause(error, attempt)
            if pause is None:
                raise
            sleep(pause)
    return _fetch_once(url, timeout, max_bytes)


def _pause(error: OSError | HTTPException, attempt: int) -> float | None:
    """Seconds before asking again: what the server wants, or 1, 2, 4, ...; None where it would be in vain."""
    if isinstance(error, HTTPError):
        if error.code != 429 and error.code < 500:
            return None
        wanted = error.headers.get("Retry-After", "")  # in seconds; for the rare date, the powers of two do
        if wanted.isdecimal():
            return min(float(wanted), MAX_PAUSE)
    elif isinstance(error, URLError) and not isinstance(error.reason, TimeoutError):
        return None  # no such host, or nobody answers there
    return min(2.0**attempt, MAX_PAUSE)


def _fetch_once(url: str, timeout: float, max_bytes: int) -> tuple[bytes, str]:
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except HTTPError as error:
        error.close()  # the page that comes with it helps nobody
        raise
    with response:
        announced = response.length  # Content-Length, or None without one
        data: bytes = response.read(max_bytes + 1)
        content_type: str = response.headers.get_content_type()
    if len(data) > max_bytes:
        raise ValueError(f"more than {max_bytes:,} bytes came")
    if announced is not None and len(data) < announced:
        raise IncompleteRead(data, announced - len(data))
    return data, content_type
