"""What the Modal apps share: prices, and that an app is read in a container as it is here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from deployment.modal_common import DOLLARS_A_SECOND, PARTS, dollars_an_hour, gpus_of, proxy_token
from tests.conftest import ROOT


def test_prices_are_those_of_all_gpus_of_all_machines():
    assert dollars_an_hour("L4") == pytest.approx(0.7992)
    assert dollars_an_hour("H100:8", machines=2) == pytest.approx(16 * 3.9492)
    assert dollars_an_hour(None) == 0
    assert (gpus_of("H100:8"), gpus_of("L4"), gpus_of(None)) == (8, 1, 0)
    assert all(0.0001 < price < 0.01 for price in DOLLARS_A_SECOND.values())


@pytest.fixture(scope="module")
def container(tmp_path_factory):
    """The files that a container finds in /root."""
    root = tmp_path_factory.mktemp("root")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(
                ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__", "*.ipynb", "results")
            )
        else:
            shutil.copyfile(ROOT / part, root / part)
    return root


@pytest.mark.parametrize("name", ["modal_serve", "modal_train", "modal_vscode"])
def test_an_app_is_read_in_a_container_with_the_settings_of_its_deployment(container, name):
    """There its file stands beside the packages."""
    shutil.copyfile(ROOT / "deployment" / f"{name}.py", container / f"{name}.py")
    code = f"import {name} as app, deployment.modal_common as common; print(app.GPU, common.ROOT)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SCRATCHBOOK_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd="/",
        env=environment | {"PYTHONPATH": str(container), "SCRATCHBOOK_GPU": "A10"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["A10", str(container)]


def test_a_token_for_modals_door_is_whole_or_none(monkeypatch):
    monkeypatch.delenv("MODAL_PROXY_SECRET", raising=False)
    monkeypatch.setenv("MODAL_PROXY_KEY", "wk-1")
    assert proxy_token() == {}
    monkeypatch.setenv("MODAL_PROXY_SECRET", "ws-1")
    assert proxy_token() == {"Modal-Key": "wk-1", "Modal-Secret": "ws-1"}
