"""A workbench on a GPU of Modal: VS Code in the browser, SSH, this repository, and a disk that stays.

    modal run --detach deployment/modal_vscode.py --ssh-key ~/.ssh/id_ed25519.pub

It prints an address for the browser and a block for `~/.ssh/config`. Both lead from the public internet into a
container, so both are locked: the browser by a password from a Secret, which is printed nowhere; SSH by your public key
and by nothing else. The container ends half an hour after the last connection. README.md in this folder begins at an
empty account.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import modal

from deployment.modal_common import (
    PARTS,
    PRICES_OF,
    ROOT,
    dollars_an_hour,
    gpu_setting,
    name_of,
    python_image,
    refuse,
    settings,
    whole,
    with_repository,
)
from utils.errors import UserError

APP = name_of("SCRATCHBOOK_APP", "scratchbook-workbench")
GPU = gpu_setting("L4")
HOURS = whole("SCRATCHBOOK_HOURS", 8)  # after which it ends, used or not
IDLE_SECONDS = 60 * whole("SCRATCHBOOK_IDLE_MINUTES", 30)
VOLUME = name_of("SCRATCHBOOK_WORKBENCH_VOLUME", "scratchbook-workbench")
RUNS_VOLUME = name_of("SCRATCHBOOK_RUNS_VOLUME", "scratchbook-runs")
SECRET = name_of("SCRATCHBOOK_WORKBENCH_SECRET", "scratchbook-workbench")
if HOURS > 24:
    refuse("Modal lets a container run 24 hours at most: SCRATCHBOOK_HOURS")

# The release's own checksum, as several public projects pin it. The build ends where the file is another.
CODE_SERVER = "4.139.1"
CODE_SERVER_SHA256 = "53029be6c5781b7bca49b815fcc9a2a3fc111813ad8c9965b2c0f0d2985a0674"
CODE_SERVER_URL = f"https://github.com/coder/code-server/releases/download/v{CODE_SERVER}/code-server-{CODE_SERVER}-linux-amd64.tar.gz"

WORK = Path("/workbench")  # the Volume that keeps what is written here
RUNS = Path("/runs")  # the Volume of modal_train.py
STATE = Path("/run/workbench")  # gone with the container
HEARTBEAT = Path.home() / ".local/share/code-server/heartbeat"  # touched each minute while a browser is connected
EDITOR = "/opt/code-server/bin/code-server"
SSHD = "/usr/sbin/sshd"
BROWSER_PORT, SSH_PORT = 8080, 2222
NAME = "scratchbook-workbench"  # by which SSH knows the host key, wherever the host is today
SHORTEST_PASSWORD = 16
LOOK_SECONDS = 30.0  # longer than LoginGraceTime: a connection that is there at two looks has shown its key
COMMIT_SECONDS = 300.0

volume = modal.Volume.from_name(VOLUME, create_if_missing=True)
runs_volume = modal.Volume.from_name(RUNS_VOLUME, create_if_missing=True)
image = with_repository(
    python_image()
    .run_commands(
        # Debian makes host keys as it installs sshd. They go in the same layer: an image is no place for them.
        "apt-get update && apt-get install -y --no-install-recommends ca-certificates curl git less nano openssh-server"
        " procps tmux && rm -f /etc/ssh/ssh_host_* && rm -rf /var/lib/apt/lists/*",
    )
    .run_commands(
        f"curl -fsSL -o /tmp/code-server.tar.gz {CODE_SERVER_URL}"
        f" && echo '{CODE_SERVER_SHA256}  /tmp/code-server.tar.gz' | sha256sum -c -"
        " && mkdir -p /opt/code-server"
        " && tar -xzf /tmp/code-server.tar.gz -C /opt/code-server --strip-components=1 --no-same-owner"
        " && rm /tmp/code-server.tar.gz",
    )
)
app = modal.App(APP)


# --- SSH


def sshd_config(state: Path, address: str = "0.0.0.0", port: int = 2222, user: str = "root", env: str = "") -> str:
    """What sshd should do: let in one user by a known key, and nobody by anything else."""
    return f"""\
Port {port}
ListenAddress {address}
HostKey {state}/ssh_host_ed25519_key
AuthorizedKeysFile {state}/authorized_keys
PidFile none
AllowUsers {user}
AuthenticationMethods publickey
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
HostbasedAuthentication no
GSSAPIAuthentication no
KerberosAuthentication no
PermitEmptyPasswords no
PermitRootLogin prohibit-password
UsePAM no
StrictModes yes
LoginGraceTime 20
MaxAuthTries 3
MaxStartups 10:30:60
PermitUserEnvironment no
PermitUserRC no
PermitTunnel no
X11Forwarding no
AllowAgentForwarding no
AllowStreamLocalForwarding no
AllowTcpForwarding local
GatewayPorts no
ClientAliveInterval 60
ClientAliveCountMax 3
Subsystem sftp internal-sftp
{f"SetEnv {env}" if env else ""}
"""


def host_key(kept: Path, state: Path) -> str:
    """Puts the host key from the Volume where sshd takes it; made there at the first start. Returns its public half."""
    key = kept / "ssh_host_ed25519_key"
    if not key.is_file():
        kept.mkdir(parents=True, exist_ok=True)
        made = state / "new"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", NAME, "-f", str(made)], check=True)
        shutil.copyfile(made.with_suffix(".pub"), key.with_suffix(".pub"))
        shutil.move(made, key)
    here = state / key.name
    here.touch(mode=0o600)
    here.write_bytes(key.read_bytes())  # sshd takes no key that others may read, and a Volume may not keep modes
    return key.with_suffix(".pub").read_text(encoding="ascii").strip()


def checked_key(text: str) -> str:
    """A public key, or several, as they stand in a .pub file.

    Raises:
        UserError: it is none.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    kinds = ("ssh-ed25519 ", "sk-ssh-ed25519@openssh.com ", "ecdsa-sha2-", "sk-ecdsa-sha2-", "ssh-rsa ")
    if "PRIVATE KEY" in text:
        raise UserError("that is a private key, which never leaves your machine: give the file that ends in .pub")
    if not lines or not all(line.startswith(kinds) for line in lines):
        raise UserError("that is no public key: give a file such as ~/.ssh/id_ed25519.pub")
    return "\n".join(lines) + "\n"


def start_sshd(public_key: str, environment: str) -> tuple[subprocess.Popen[bytes], str]:
    """sshd on its port, and its public host key."""
    known = host_key(WORK / ".ssh-host", STATE)
    authorized = STATE / "authorized_keys"
    authorized.touch(mode=0o600)
    authorized.write_text(checked_key(public_key), encoding="utf-8")
    config = STATE / "sshd_config"
    config.write_text(sshd_config(STATE, port=SSH_PORT, env=environment), encoding="utf-8")
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd locks itself up before a key was shown
    return subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)]), known


def how_to_connect(host: str, port: int, known: str) -> str:
    """What to put into two files on your machine. The host key stays the same, so a stranger in between is noticed."""
    kind, key = known.split()[:2]
    return f"""\
In ~/.ssh/scratchbook_known_hosts, once:

{NAME} {kind} {key}

In ~/.ssh/config, at each start; then `ssh scratchbook`, or VS Code's Remote-SSH:

Host scratchbook
    HostName {host}
    Port {port}
    User root
    HostKeyAlias {NAME}
    UserKnownHostsFile ~/.ssh/scratchbook_known_hosts
    StrictHostKeyChecking yes
    ServerAliveInterval 30
"""


# --- the browser


def start_editor(password: str, folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """code-server, which asks for the password; it gets it by its environment and takes it out from there.

    Raises:
        UserError: there is none to speak of.
    """
    if len(password) < SHORTEST_PASSWORD:
        raise UserError(
            f"WORKBENCH_PASSWORD in the Secret {SECRET} has less than {SHORTEST_PASSWORD} characters, and the address "
            "is public: make one with `openssl rand -hex 16`"
        )
    line = [EDITOR, "--auth", "password", "--bind-addr", f"0.0.0.0:{BROWSER_PORT}"]
    line += ["--user-data-dir", str(WORK / ".code-server"), "--extensions-dir", str(WORK / ".code-server/extensions")]
    line += ["--disable-telemetry", "--disable-update-check", "--app-name", "LLM Scratchbook", str(folder)]
    ours = {name: value for name, value in os.environ.items() if name not in ("WORKBENCH_PASSWORD", "HASHED_PASSWORD")}
    return subprocess.Popen(line, env=ours | environment | {"PASSWORD": password}, stdin=subprocess.DEVNULL)


# --- the container


def lay_out(source: Path) -> Path:
    """The repository on the Volume, copied there once; what you change stays. Its `runs` are those of the training."""
    folder = WORK / "scratchbook"
    if not folder.exists():
        new = WORK / ".scratchbook-new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        for part in PARTS:
            if (source / part).is_dir():
                shutil.copytree(source / part, new / part, ignore=shutil.ignore_patterns("__pycache__"))
            elif (source / part).is_file():
                shutil.copyfile(source / part, new / part)
        new.rename(folder)
    with contextlib.suppress(FileExistsError):
        (folder / "runs").symlink_to(RUNS)
    return folder


def children_of(parent: int) -> set[int]:
    """The processes that a process has started and that still run."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(after_name[1]) == parent:
            found.add(int(stat.parent.name))
    return found


def wait_until_idle(servers: Sequence[subprocess.Popen[bytes]], sshd: int | None, commit: Callable[[], object]) -> None:
    """Returns once nobody has been connected for IDLE_SECONDS, and `WORK/keep` does not say to wait.

    Raises:
        RuntimeError: a server has died.
    """
    used = committed = time.monotonic()
    before: set[int] = set()
    while True:
        time.sleep(LOOK_SECONDS)
        now = time.monotonic()
        for server in servers:
            if server.poll() is not None:
                raise RuntimeError(f"{Path(str(server.args[0])).name} has ended with {server.returncode}")  # type: ignore[index]
        connected = children_of(sshd) if sshd else set()
        in_browser = HEARTBEAT.is_file() and time.time() - HEARTBEAT.stat().st_mtime < 60 + 2 * LOOK_SECONDS
        if connected & before or in_browser or (WORK / "keep").exists():
            used = now
        before = connected
        if now - committed >= COMMIT_SECONDS:
            committed = now
            commit()
        if now - used >= IDLE_SECONDS:
            print(f"Nobody was connected for {IDLE_SECONDS / 60:.0f} minutes: good bye", flush=True)
            return


def _commit() -> None:
    if not modal.is_local():
        volume.commit()
        runs_volume.commit()


@app.function(
    image=image,
    gpu=GPU,
    volumes={str(WORK): volume, str(RUNS): runs_volume},
    secrets=[modal.Secret.from_name(SECRET, required_keys=["WORKBENCH_PASSWORD"])],
    env=settings(),
    timeout=HOURS * 3600,
    max_containers=1,
    single_use_containers=True,
)
def workbench(public_key: str = "") -> None:
    """Runs until nobody uses it.

    Args:
        public_key: who may come in by SSH; without one there is no SSH.
    """
    STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = lay_out(ROOT)
    environment = {"PYTHONPATH": str(folder), "CHAINLIT_APP_ROOT": "chat_ui"}
    servers = [start_editor(os.environ.pop("WORKBENCH_PASSWORD", ""), folder, environment)]
    try:
        sshd = None
        if public_key:
            sshd, known = start_sshd(public_key, " ".join(f"{name}={value}" for name, value in environment.items()))
            servers.append(sshd)
        _commit()  # the host key among the rest
        with modal.forward(BROWSER_PORT) as page:
            print(f"In the browser, with the password from the Secret {SECRET}: {page.url}\n", flush=True)
            if sshd is None:
                wait_until_idle(servers, None, _commit)
                return
            with modal.forward(SSH_PORT, unencrypted=True) as door:  # SSH encrypts by itself
                print(how_to_connect(*door.tcp_socket, known), flush=True)
                wait_until_idle(servers, sshd.pid, _commit)
    finally:
        for server in servers:
            server.send_signal(signal.SIGTERM)
        for server in servers:
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
        _commit()


@app.local_entrypoint()
def main(ssh_key: str = "") -> None:
    """`modal run [--detach] deployment/modal_vscode.py --ssh-key FILE.pub`; without a key, the browser alone."""
    text: Any = ""
    if ssh_key:
        try:
            text = checked_key(Path(ssh_key).expanduser().read_text(encoding="utf-8"))
        except (OSError, UserError, ValueError) as error:
            refuse(f"--ssh-key {ssh_key}: {error}")
    print(f"{GPU or 'No GPU'}: ${dollars_an_hour(GPU):.2f} an hour for GPUs by the prices of {PRICES_OF}.")
    print(f"It ends after {IDLE_SECONDS // 60} minutes without a connection, and after {HOURS} hours in any case.")
    workbench.remote(text)
