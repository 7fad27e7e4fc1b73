"""The container's files, as far as they can be checked without Docker."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import packages_distributions

from tests.conftest import ROOT

DOCKERFILE = (ROOT / "deployment" / "Dockerfile").read_text(encoding="utf-8")
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def plain(name: str) -> str:
    """A package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_copied_is_there_and_not_ignored():
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.M) for name in line.split()]
    assert "deployment" in copied and "requirements.txt" in copied
    for name in copied:
        assert (ROOT / name).exists() and name not in IGNORED


def test_nothing_hidden_and_no_run_goes_into_the_image():
    """Files of the chat's users, keys in an .env, models, histories."""
    assert {"**/.*", "runs"} <= set(IGNORED)


def test_the_server_needs_no_package_that_the_image_lacks():
    (listed,) = re.findall(r"-c constraints.txt (numpy[^&]*?)\n(?=COPY)", DOCKERFILE, re.S)
    installed = {plain(name) for name in listed.replace("\\", "").split()} | {"torch"}
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.M)
    lacking = {plain(name) for name in pinned} - installed
    assert {"matplotlib", "chainlit", "transformers"} <= lacking
    missing = {module for module, names in packages_distributions().items() if {plain(n) for n in names} <= lacking}
    code = f"import sys; sys.modules.update(dict.fromkeys({missing!r})); import deployment.api"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_it_runs_as_a_user_that_kubernetes_can_tell_from_root():
    """`runAsNonRoot` takes no name, since it cannot know whose that is."""
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.M)
    assert users and users[-1].isdecimal() and int(users[-1]) > 0


def test_it_is_called_as_on_this_machine():
    assert '"--name", "demo/instruct"' in DOCKERFILE
