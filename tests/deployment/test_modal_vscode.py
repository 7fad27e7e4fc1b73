"""The workbench: what a deployment sets up, a real sshd with its configuration, and its body on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT
from tests.deployment.modal_tools import deployed, image_commands, read_app, refused
from utils.addresses import free_port
from utils.errors import UserError

PASSWORD = "correct-horse-battery-staple"
pytestmark = pytest.mark.filterwarnings("ignore:.*is executing locally")  # as it should
needs_sshd = pytest.mark.skipif(
    not (os.access("/usr/sbin/sshd", os.X_OK) and shutil.which("ssh") and os.geteuid() == 0),
    reason="needs openssh-server and openssh-client, and to be root as in a container: .ci/run installs them",
)


@pytest.fixture
def app(tmp_path, monkeypatch):
    """The app, with all that it writes in folders of this test. sshd reads no keys below a folder like /tmp."""
    app = read_app("modal_vscode", monkeypatch, tmp_path, gpu="none")
    (tmp_path / "home").mkdir()
    state = Path(tempfile.mkdtemp(prefix=".workbench-test-", dir=Path.home()))
    for name, value in {"WORK": tmp_path / "work", "RUNS": tmp_path / "runs", "STATE": state}.items():
        monkeypatch.setattr(app, name, value)
    monkeypatch.setattr(app, "HEARTBEAT", tmp_path / "heartbeat")
    monkeypatch.setattr(app, "SSH_PORT", free_port())
    monkeypatch.setattr(app, "LOOK_SECONDS", 0.1)
    (tmp_path / "work").mkdir()
    yield app
    shutil.rmtree(state)


def new_key(folder: Path, name: str) -> Path:
    """A key pair; sshd and ssh take what only its owner reads."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    return folder / name


def ssh(port: int, *options: str, command: str = "echo let in") -> subprocess.CompletedProcess[str]:
    """The real client, which asks nobody anything and knows no other configuration."""
    plain = ["-F", "none", "-o", "BatchMode=no", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    plain += ["-o", "IdentitiesOnly=yes", "-o", "NumberOfPasswordPrompts=1", "-p", str(port)]
    return subprocess.run(
        ["ssh", *plain, *options, "root@127.0.0.1", command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=os.environ | {"SSH_AUTH_SOCK": "", "SSH_ASKPASS_REQUIRE": "never"},
        timeout=60,
    )


@contextlib.contextmanager
def listening(app, public_key: str, environment: str = "A_VALUE=from_sshd") -> Iterator[str]:
    """A real sshd with the workbench's configuration; its public host key."""
    sshd, known = app.start_sshd(public_key, environment)
    try:
        wait_for(app.SSH_PORT)
        yield known
    finally:
        sshd.terminate()
        sshd.wait(10)


def wait_for(port: int) -> None:
    for _ in range(600):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("nobody listens")


@needs_sshd
def test_a_known_key_is_let_in_and_nothing_else_is(app):
    mine, strange = new_key(app.STATE, "mine"), new_key(app.STATE, "strange")
    with listening(app, mine.with_suffix(".pub").read_text()):
        port = app.SSH_PORT
        done = ssh(port, "-i", str(mine), command="echo let in, $A_VALUE")
        assert done.stdout == "let in, from_sshd\n", done.stderr

        for options in (
            ["-i", str(strange)],
            ["-o", "PubkeyAuthentication=no"],
            ["-o", "PubkeyAuthentication=no", "-o", "PreferredAuthentications=password"],
            ["-o", "PubkeyAuthentication=no", "-o", "PreferredAuthentications=keyboard-interactive"],
        ):
            done = ssh(port, *options)
            assert done.returncode == 255 and not done.stdout
            assert "Permission denied (publickey)." in done.stderr  # what the server offers: this and nothing more
        refused_user = ssh(port, "-i", str(mine), "-l", "nobody")
        assert refused_user.returncode == 255 and "Permission denied" in refused_user.stderr


@needs_sshd
def test_a_password_is_not_even_asked_for(app):
    """The client has one ready for whoever asks."""
    mine = new_key(app.STATE, "mine")
    answer = app.STATE / "answer"
    answer.write_text(f"#!/bin/sh\ntouch {app.STATE}/asked\necho {PASSWORD}\n")
    answer.chmod(0o700)
    with listening(app, mine.with_suffix(".pub").read_text()):
        options = [
            "-o",
            "PubkeyAuthentication=no",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ]
        done = subprocess.run(
            ["ssh", "-F", "none", *options, "-p", str(app.SSH_PORT), "root@127.0.0.1", "echo let in"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=os.environ | {"SSH_ASKPASS": str(answer), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":0"},
            timeout=60,
        )
    assert "Permission denied (publickey)." in done.stderr and not (app.STATE / "asked").exists()


@needs_sshd
def test_sshd_itself_says_that_it_is_hardened(app):
    app.host_key(app.WORK / "keys", app.STATE)
    config = app.STATE / "sshd_config"
    config.write_text(app.sshd_config(app.STATE))
    said = subprocess.run(
        ["/usr/sbin/sshd", "-T", "-f", str(config)], capture_output=True, text=True, check=True
    ).stdout
    holds = dict(line.split(" ", 1) for line in said.splitlines())
    assert holds["authenticationmethods"] == "publickey" and holds["pubkeyauthentication"] == "yes"
    for name in ("passwordauthentication", "kbdinteractiveauthentication", "permitemptypasswords", "usepam"):
        assert holds[name] == "no", name
    assert holds["permitrootlogin"] in ("without-password", "prohibit-password") and holds["allowusers"] == "root"
    for name in ("x11forwarding", "allowagentforwarding", "permittunnel", "gatewayports", "permituserenvironment"):
        assert holds[name] == "no", name


@needs_sshd
def test_the_host_key_stays_and_a_stranger_in_between_is_noticed(app):
    mine = new_key(app.STATE, "mine")
    with listening(app, mine.with_suffix(".pub").read_text()) as first:
        pass
    for file in app.STATE.glob("ssh_host*"):
        file.unlink()  # the container is gone, the Volume stays
    app.SSH_PORT = free_port()
    with listening(app, mine.with_suffix(".pub").read_text()) as again:
        assert first == again
        block = app.how_to_connect("127.0.0.1", app.SSH_PORT, again)
        config, known = app.STATE / "config", app.STATE / "known_hosts"
        config.write_text(
            block[block.index("Host scratchbook\n") :].replace("~/.ssh/scratchbook_known_hosts", str(known))
        )
        line = next(line for line in block.splitlines() if line.startswith(f"{app.NAME} ssh-ed25519 "))
        for key, status in (
            (line, 0),
            (f"{app.NAME} {new_key(app.STATE, 'other').with_suffix('.pub').read_text()}", 255),
        ):
            known.write_text(f"{key}\n")
            done = subprocess.run(
                ["ssh", "-F", str(config), "-i", str(mine), "-o", "IdentitiesOnly=yes", "scratchbook", "true"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == status, done.stderr


@needs_sshd
def test_the_whole_body_on_this_machine(app, tmp_path, monkeypatch, capfd):
    """A stand-in for code-server, since there is no network to fetch it from, and for Modal's tunnels; a real sshd."""
    mine = new_key(app.STATE, "mine")
    editor = tmp_path / "code-server"
    editor.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/line\nenv >{tmp_path}/env\nexec sleep 1000\n')
    editor.chmod(0o700)

    @contextlib.contextmanager
    def forward(port: int, unencrypted: bool = False):
        yield SimpleNamespace(url=f"https://somewhere/{port}", tcp_socket=("127.0.0.1", port))

    idle = iter([True])

    def use_it(servers, sshd, commit):
        next(idle)
        wait_for(app.SSH_PORT)
        said = ssh(app.SSH_PORT, "-i", str(mine), command='python3 -c "import utils; print(utils.__file__)"')
        assert said.stdout.strip() == str(app.WORK / "scratchbook" / "utils" / "__init__.py"), said.stderr
        commit()

    monkeypatch.setattr(app, "EDITOR", str(editor))
    monkeypatch.setattr(app.modal, "forward", forward)
    monkeypatch.setattr(app, "wait_until_idle", use_it)
    monkeypatch.setenv("WORKBENCH_PASSWORD", PASSWORD)
    app.workbench.local(mine.with_suffix(".pub").read_text())

    environment = (tmp_path / "env").read_text()
    assert f"PASSWORD={PASSWORD}" in environment.splitlines() and "WORKBENCH_PASSWORD" not in environment
    line = (tmp_path / "line").read_text()
    assert "--auth password" in line and PASSWORD not in line
    said = "".join(capfd.readouterr())
    assert f"https://somewhere/{app.BROWSER_PORT}" in said and f"    Port {app.SSH_PORT}\n" in said
    assert PASSWORD not in said and "PRIVATE KEY" not in said
    assert not app.children_of(os.getpid()), "nothing is left running"


@pytest.mark.parametrize("password", ["", "short", "fifteen-letters"])
def test_without_a_good_password_it_does_not_start(app, monkeypatch, password):
    monkeypatch.setenv("WORKBENCH_PASSWORD", password)
    with pytest.raises(UserError, match="less than 16 characters") as refusal:
        app.workbench.local("")
    assert not password or password not in str(refusal.value)


def test_only_public_keys_are_taken(app):
    good = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE9 me@here"
    assert app.checked_key(f"# mine\n{good}\n") == good + "\n"
    with pytest.raises(UserError, match="a private key"):
        app.checked_key("-----BEGIN OPENSSH " + "PRIVATE KEY-----\nabc")
    for text in ("", "hello", f"{good}\nhello"):
        with pytest.raises(UserError, match="no public key"):
            app.checked_key(text)


def test_it_ends_when_nobody_is_there_and_waits_where_it_should(app, monkeypatch):
    monkeypatch.setattr(app, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(app, "COMMIT_SECONDS", 0.0)
    keep, looks = app.WORK / "keep", []
    keep.touch()

    def commit() -> None:
        looks.append(keep.exists())
        if len(looks) == 10:
            keep.unlink()

    with subprocess.Popen(["sleep", "1000"]) as server:
        app.wait_until_idle([server], None, commit)
        server.terminate()
    assert looks[:10] == [True] * 10 and len(looks) > 10


def test_a_browser_or_a_session_counts_as_somebody(app, monkeypatch):
    monkeypatch.setattr(app, "IDLE_SECONDS", 0.3)
    looks: list[float] = []

    def stop_after(n: int):
        def commit() -> None:
            looks.append(time.monotonic())
            if len(looks) == n:
                raise KeyboardInterrupt

        return commit

    monkeypatch.setattr(app, "COMMIT_SECONDS", 0.0)
    with subprocess.Popen(["sh", "-c", "sleep 1000 & wait"]) as server:
        try:
            with pytest.raises(KeyboardInterrupt):  # its child is a session that goes on
                app.wait_until_idle([server], server.pid, stop_after(10))
            looks.clear()
            app.HEARTBEAT.touch()
            with pytest.raises(KeyboardInterrupt):
                app.wait_until_idle([server], None, stop_after(10))
            os.utime(app.HEARTBEAT, (1, 1))
            looks.clear()
            app.wait_until_idle([server], None, stop_after(100))
        finally:
            for child in app.children_of(server.pid):
                os.kill(child, 15)
            server.terminate()


def test_a_server_that_dies_ends_it(app):
    with subprocess.Popen(["sh", "-c", "exit 3"]) as server, pytest.raises(RuntimeError, match="sh has ended with 3"):
        app.wait_until_idle([server], None, lambda: None)


def test_the_repository_is_copied_once_and_changes_stay(app):
    folder = app.lay_out(ROOT)
    assert (folder / "pretraining" / "pretrain.py").read_bytes() == (ROOT / "pretraining" / "pretrain.py").read_bytes()
    assert (folder / "runs").readlink() == app.RUNS and not (folder / ".git").exists()
    (folder / "README.md").write_text("mine")
    app.lay_out(ROOT)
    assert (folder / "README.md").read_text() == "mine"


def test_the_build_stops_at_another_code_server(app, tmp_path):
    """The command that checks it, with another file in its place."""
    command = f"echo '{app.CODE_SERVER_SHA256}  {tmp_path}/file' | sha256sum -c -"
    (tmp_path / "file").write_bytes(b"something else")
    assert subprocess.run(["sh", "-c", command], capture_output=True).returncode == 1
    assert len(app.CODE_SERVER_SHA256) == 64


def test_what_is_deployed(tmp_path):
    report = deployed("modal_vscode", tmp_path)
    (function,) = report["functions"]
    assert function["gpu"] == "L4:1" and function["max_containers"] == 1 and function["timeout_s"] == 8 * 3600
    assert not function["web"] and not function["retries"]  # no address but the tunnels, while it runs
    assert function["volumes"] == {"/workbench": "scratchbook-workbench", "/runs": "scratchbook-runs"}
    assert report["secrets"]["scratchbook-workbench"] == ["WORKBENCH_PASSWORD"]
    commands = image_commands(function)
    assert "| sha256sum -c - && " in commands and "| sh" not in commands.replace("| sha256sum", "")
    assert "rm -f /etc/ssh/ssh_host_*" in next(line for line in commands.splitlines() if "openssh-server" in line)


def test_settings_that_make_no_sense_are_one_clear_line():
    assert "24 hours at most" in refused("modal_vscode", hours=30)
    assert "SCRATCHBOOK_IDLE_MINUTES" in refused("modal_vscode", idle_minutes=0)
