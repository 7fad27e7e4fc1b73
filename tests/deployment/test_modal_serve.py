"""The serving app: what a deployment sets up, and its body on the CPU behind a real server."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from deployment.modal_common import THERE
from tests.chat_ui.helpers import model_folder
from tests.conftest import ROOT
from tests.deployment.modal_tools import deployed, image_commands, read_app, refused
from utils.errors import UserError

KEY = "a-key-of-this-test"
pytestmark = pytest.mark.filterwarnings("ignore:.*is executing locally")  # as it should


@contextlib.contextmanager
def served(app) -> Iterator[str]:
    """The address of a real server that runs this app meanwhile."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("layout", ["alpaca", None])
def test_its_body_serves_a_folder_of_the_volume(layout, tmp_path, monkeypatch):
    folder = model_folder(tmp_path / "demo" / "instruct" / "model", layout)
    app = read_app("modal_serve", monkeypatch, tmp_path, gpu="none", max_tokens=5)
    monkeypatch.setattr(app, "MODELS", str(tmp_path))
    monkeypatch.setenv("SCRATCHBOOK_API_KEYS", KEY)
    with served(app.Api().web.local()) as url:
        answer = app.smoke_test(url, KEY, {})
        assert isinstance(answer, str)
        models = httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {KEY}"}).json()["data"]
        assert [model["id"] for model in models] == ["demo/instruct"]
        body = {"model": "demo/instruct", "prompt": "The", "max_tokens": 50}
        written = httpx.post(f"{url}/v1/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}).json()
        assert written["usage"]["completion_tokens"] <= 5
    assert folder.is_dir()


def test_the_smoke_test_refuses_an_open_door(tmp_path, monkeypatch):
    from deployment.api import create_app

    app = read_app("modal_serve", monkeypatch, tmp_path)
    with served(create_app({})) as url, pytest.raises(SystemExit, match="a client without a key"):
        app.smoke_test(url, KEY, {})
    with served(create_app({}, [KEY])) as url, pytest.raises(SystemExit, match="no token for Modal's proxy"):
        app.smoke_test(url, KEY, {"Modal-Key": "wk-1", "Modal-Secret": "ws-1"})


def test_without_keys_it_does_not_start(tmp_path, monkeypatch):
    app = read_app("modal_serve", monkeypatch, tmp_path, api_keys=" , ")
    with pytest.raises(UserError, match="holds no key"):
        app.Api().web.local()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gpu": "H1000"}, "SCRATCHBOOK_GPU=H1000"),
        ({"gpu": "H100:9"}, "a number of up to 8"),
        ({"max_containers": 0}, "SCRATCHBOOK_MAX_CONTAINERS must be a whole number of at least 1"),
        ({"at_once": "many"}, "SCRATCHBOOK_AT_ONCE"),
        ({"proxy_auth": "no"}, "on or off"),
        ({"idle_seconds": 3601}, "at least 2 and at most 3600"),
        ({"max_containers": 10**12}, "at most 1000000"),
        ({"app": "my app"}, "SCRATCHBOOK_APP=my app: Modal's names"),
        ({"models_volume": "a/b"}, "SCRATCHBOOK_MODELS_VOLUME=a/b"),
        ({"api_secret": "x" * 64}, "at most 63"),
    ],
)
def test_settings_that_make_no_sense_are_one_clear_line(settings, words):
    assert words in refused("modal_serve", **settings)


def test_what_is_deployed(tmp_path):
    (function,) = deployed("modal_serve", tmp_path)["functions"]
    assert function["gpu"] == "L4:1" and (function["min_containers"], function["max_containers"]) == (0, 2)
    assert function["volumes"] == {"/models": "scratchbook-models (ro)"} and function["max_inputs"] == 64
    assert function["web"]["Api.web"]["requires_proxy_auth"]
    commands = image_commands(function)
    assert "-r /.requirements.txt -c /constraints.txt" in commands
    assert f"{THERE}/attention_mechanisms/attend.py" in function["mount_files"]


def test_settings_are_taken_from_the_environment(tmp_path):
    given = {"gpu": "h100:2", "max_containers": 7, "at_once": 8, "waiting": 0, "idle_seconds": 30, "model": "gpt2"}
    report = deployed("modal_serve", tmp_path, **given, api_secret="other", models_volume="elsewhere")
    (function,) = report["functions"]
    assert function["gpu"] == "H100:2" and function["max_containers"] == 7 and function["scaledown_window"] == 30
    assert function["max_inputs"] == 8 and function["volumes"] == {"/models": "elsewhere (ro)"}
    assert report["secrets"]["other"] == ["SCRATCHBOOK_API_KEYS"]


def test_the_container_reads_the_same_settings(tmp_path, monkeypatch):
    app = read_app("modal_serve", monkeypatch, tmp_path, gpu="A10", model="gpt2")
    there = app.settings()
    assert there["SCRATCHBOOK_GPU"] == "A10" and there["SCRATCHBOOK_MODEL"] == "gpt2"
    assert not any("KEY" in name for name in there)  # secrets do not travel as settings


def test_the_repository_goes_along_and_nothing_else():
    from deployment.modal_common import PARTS, _stays_at_home

    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not tracked:
        pytest.skip("needs a git clone, to know what belongs to the repository")
    code = [Path(name) for name in tracked if name.endswith(".py") and "/" in name]
    assert code and not any(_stays_at_home(path) for path in code)
    assert {name.split("/")[0] for name in tracked} - set(PARTS) <= {
        ".ci", ".env", ".gitattributes", ".github", ".gitignore", ".dockerignore", "Dockerfile", "compose.yaml"
    }  # fmt: skip
    for stays in (".env", ".git/config", "runs/demo/model/model.safetensors", "utils/__pycache__/x.pyc", "my-keys.txt"):
        assert _stays_at_home(Path(stays))
    assert os.path.isfile(ROOT / "constraints.txt")
