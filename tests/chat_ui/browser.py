"""A chat that runs, and a person in front of a real browser."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from utils.addresses import free_port

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60  # seconds for anything to appear, on a machine that is busy


def chromium() -> str:
    """The path of a browser; the test is skipped where there is none, but not in CI, which installs one."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    if os.environ.get("CI"):
        raise AssertionError("there is no Chromium, which .ci/run should have installed")
    pytest.skip("there is no Chromium: apt install chromium")


class RunningChat:
    """`chainlit run chat_ui/app.py` in a process of its own.

    Args:
        runs: the folder of the models; the history goes there too.
    """

    def __init__(self, runs: Path, port: int | None = None) -> None:
        self.runs, self.port = runs, port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = runs / "chat.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        code = "from chainlit.cli import cli; cli()"
        arguments = [sys.executable, "-c", code, "run", "chat_ui/app.py", "--headless", "--port", str(self.port)]
        environment = {**os.environ, "SCRATCHBOOK_RUNS": str(self.runs), "SCRATCHBOOK_DEVICE": "cpu"}
        environment["HF_HUB_OFFLINE"] = "1"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=log, stderr=log)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health") as answer:
                if answer.status == 200:
                    return
            time.sleep(0.1)
        raise AssertionError(f"the chat does not start: {self.log.read_text()}")

    def stop(self) -> None:
        """Ends it."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(20)
            self.process = None

    def n_threads(self, name: str) -> int:
        """Threads of the process whose names begin so."""
        assert self.process is not None
        return threads_named(self.process.pid, name)


def threads_named(process: int, name: str) -> int:
    """Threads of a process whose names begin so (15 characters are kept of a name)."""
    found = 0
    for task in Path(f"/proc/{process}/task").iterdir():
        with contextlib.suppress(OSError):  # it may end at this very moment
            found += (task / "comm").read_text().startswith(name)
    return found


def resident_bytes(process: int) -> int:
    """Bytes of memory that a process holds."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


class Person:
    """Somebody in front of a page, who notices what goes wrong with it.

    Args:
        page: playwright's.
        url: of the chat.
    """

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        page.set_default_timeout(PATIENCE * 1000)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._note_request)
        self._heard_at = time.monotonic()
        page.on("websocket", self._note_socket)

    def _note_request(self, request: Any) -> None:
        if not request.url.startswith((self.url, self.url.replace("http", "ws"), "data:", "blob:")):
            self.elsewhere.append(request.url)

    def _note_socket(self, socket: Any) -> None:
        if f":{self.url.rsplit(':', 1)[1]}/" not in socket.url:
            self.elsewhere.append(socket.url)
        self._heard_at = time.monotonic()
        socket.on("framereceived", lambda _: setattr(self, "_heard_at", time.monotonic()))

    def open(self, path: str = "/") -> None:
        """Goes to the chat, and waits for the message box."""
        self.page.goto(self.url + path)
        self.page.wait_for_selector("#chat-input")

    def say(self, text: str, wait: bool = True) -> None:
        """Types a message and sends it; waits until its answer has its buttons."""
        before = self.answers().count()
        self.page.locator("#chat-input").click()
        self.page.keyboard.insert_text(text)
        self.page.locator("#chat-submit").click()
        if wait:
            self.wait_for_answers(before + 1)
            self.until(lambda: "/thread/" in self.page.url)  # the page moves there, and sets the message box anew

    def wait_for_answers(self, n: int) -> None:
        """Until there are so many answers that have ended."""
        self.page.wait_for_function(
            "n => [...document.querySelectorAll('button')].filter(b => b.innerText.includes('Regenerate')).length >= n",
            arg=n,
        )

    def until(self, condition: Callable[[], object]) -> None:
        """Waits for something to become true, while the page goes on."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end
            self.page.wait_for_timeout(50)

    def answers(self) -> Any:
        """The buttons of answers that have ended."""
        return self.page.get_by_role("button", name="Regenerate")

    def texts(self) -> list[str]:
        """What is in the messages of the model, from the oldest on."""
        texts = self.page.locator(".ai-message .message-content").all_inner_texts()
        return [text.removeprefix("txt\n").strip() for text in texts]

    def pick(self, name: str) -> None:
        """Picks a model."""
        self.page.locator("#chat-profiles").click()
        self.page.locator(f'[data-test="select-item:{name}"]').click()
        self.page.wait_for_timeout(500)
        if self.page.locator("#new-chat-dialog").is_visible():  # a conversation is there already
            self.page.locator("#confirm").click()
        self._heard_at = time.monotonic()
        self.until(lambda: time.monotonic() - self._heard_at > 1)  # it connects twice, and sets the message box anew
        self.page.wait_for_selector("#chat-input")

    def set(self, **values: str) -> None:
        """Changes text settings."""
        self.page.locator("#chat-settings-open-modal").click()
        for name, value in values.items():
            self.page.locator(f"#chat-settings #{name}").fill(value)
        self.page.get_by_role("button", name="Confirm").click()
        self.page.wait_for_selector("#chat-settings", state="hidden")


@contextlib.contextmanager
def person(url: str) -> Iterator[Person]:
    """A person with a browser window; at the end nothing may have gone wrong with the page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        try:
            context = browser.new_context(viewport={"width": 1280, "height": 860})
            someone = Person(context.new_page(), url)
            yield someone
            assert someone.errors == [] and someone.elsewhere == []
        finally:
            browser.close()
