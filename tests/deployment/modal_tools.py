"""What the tests of the Modal apps share: an app read anew under some settings, and a deployment to a loopback."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import ROOT

LOOPBACK = ROOT.parent / "shared" / "tools" / "modal_loopback" / "run_deploy.sh"
ELSEWHERE = Path(os.environ.get("SCRATCHBOOK_MODAL_LOOPBACK", str(LOOPBACK)))


def read_app(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **settings: object) -> ModuleType:
    """The app `deployment/NAME.py`, as it is read where these settings hold, without any token of Modal's."""
    for variable in [variable for variable in os.environ if variable.startswith(("SCRATCHBOOK_", "MODAL_"))]:
        if variable != "SCRATCHBOOK_DATA":
            monkeypatch.delenv(variable)
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(tmp_path / "no-modal.toml"))
    for variable, value in settings.items():
        monkeypatch.setenv(f"SCRATCHBOOK_{variable.upper()}", str(value))
    for module in ("deployment.modal_common", f"deployment.{name}"):
        sys.modules.pop(module, None)
    return importlib.import_module(f"deployment.{name}")


def refused(name: str, **settings: object) -> str:
    """What is said where an app is read under settings that make no sense: one line."""
    environment = os.environ | {f"SCRATCHBOOK_{variable.upper()}": str(value) for variable, value in settings.items()}
    command = [sys.executable, "-c", f"import deployment.{name}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def deployed(name: str, tmp_path: Path, **settings: object) -> dict[str, Any]:
    """What the real `modal deploy` sends of an app to a stand-in for Modal's control plane, reviewed strictly."""
    if not ELSEWHERE.is_file():
        pytest.skip("needs the stand-in for Modal's control plane: SCRATCHBOOK_MODAL_LOOPBACK names its run_deploy.sh")
    report = tmp_path / f"{name}.json"
    done = subprocess.run(
        [str(ELSEWHERE), f"deployment/{name}.py", sys.executable, "--strict", "--json", str(report)],
        cwd=ROOT,
        env=os.environ | {f"SCRATCHBOOK_{variable.upper()}": str(value) for variable, value in settings.items()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return content


def image_commands(function: dict[str, Any]) -> str:
    """All that its image is built by."""
    return "\n".join(command for layer in function["image_layers"] for command in layer["commands"])
