"""What the three apps for Modal share: the image, settings from the environment, prices.

An app's file is read twice: on your machine, where `modal deploy` or `modal run` reads it to see what to set up, and in
the container, where its functions run. Settings are environment variables of your machine at that first reading; they
are handed to the container (`settings`), so that the second one finds the same.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NoReturn

import modal

ROOT = Path(__file__).resolve().parents[1]
THERE = "/root"
"""Where the repository lies in a container: Modal's Python imports from there."""
PARTS = (
    "utils", "working_with_text_data", "attention_mechanisms", "gpt_model", "pretraining", "finetuning", "chat_ui",
    "deployment", "tests", "requirements.txt", "constraints.txt", "pyproject.toml", "Makefile", "README.md", "LICENSE",
)  # fmt: skip
"""What of the repository goes along. Runs, environments and whatever else lies beside these stay at home."""

# Dollars a second of one GPU, as pages and repositories quote modal.com/pricing, which was not read itself: T4, L4,
# L40S, A100-80GB and H100 from a page of May 2026, the others from sources without a date. Processor cores and memory
# (0.00000222 a GiB) come on top, storage on a Volume (0.09 a GiB and month), and what a choice of region adds. Only an
# estimate: the dashboard's figures are what is billed.
PRICES_OF = "about May 2026, as others quote them"
DOLLARS_A_SECOND = {
    "T4": 0.000164,
    "L4": 0.000222,
    "A10": 0.000306,
    "L40S": 0.000542,
    "A100": 0.000583,
    "A100-40GB": 0.000583,
    "A100-80GB": 0.000694,
    "RTX-PRO-6000": 0.000842,
    "H100": 0.001097,
    "H200": 0.001261,
    "B200": 0.001736,
}
DOLLARS_A_CORE_SECOND = 0.0000131

_settings: dict[str, str] = {}


def refuse(message: str) -> NoReturn:
    """Ends the command with one line, as `utils.errors` does for scripts."""
    raise SystemExit(f"error: {' '.join(message.split())}")


def setting(name: str, default: str) -> str:
    """The environment variable `name`, or the default; the container will find it, too."""
    _settings[name] = os.environ.get(name, "").strip() or default
    return _settings[name]


def name_of(variable: str, default: str) -> str:
    """The same for what an app, a Volume or a Secret is called."""
    given = setting(variable, default)
    if not re.fullmatch(r"[\w.-]{1,63}", given, re.ASCII):
        refuse(f"{variable}={given}: Modal's names have letters, digits, dashes, dots and underscores, at most 63")
    return given


def whole(name: str, default: int, least: int = 1, most: int = 1_000_000) -> int:
    """The same for a whole number from `least` to `most`."""
    given = setting(name, str(default))
    if not given.isdecimal() or not least <= int(given[:20]) <= most:
        refuse(f"{name} must be a whole number of at least {least} and at most {most}, got {given!r}")
    return int(given)


def gpu_setting(default: str) -> str | None:
    """SCRATCHBOOK_GPU as Modal takes it, such as L4 or H100:8; None for "none"."""
    given = setting("SCRATCHBOOK_GPU", default)
    if given.lower() == "none":
        return None
    kind, _, count = given.upper().partition(":")
    if kind not in DOLLARS_A_SECOND or (count and not (count.isdecimal() and 1 <= int(count) <= 8)):
        known = ", ".join(DOLLARS_A_SECOND)
        refuse(f"SCRATCHBOOK_GPU={given}: give one of {known}, with a number of up to 8 behind it (H100:8), or none")
    return f"{kind}:{count}" if count else kind


def gpus_of(gpu: str | None) -> int:
    """How many that is."""
    return int(gpu.partition(":")[2] or 1) if gpu else 0


def dollars_an_hour(gpu: str | None, machines: int = 1) -> float:
    """The GPUs' price."""
    return 3600 * machines * gpus_of(gpu) * DOLLARS_A_SECOND[gpu.partition(":")[0]] if gpu else 0.0


def proxy_token() -> dict[str, str]:
    """The headers that open Modal's own door, of a token in the environment; none where there is no whole one."""
    names = {"Modal-Key": "MODAL_PROXY_KEY", "Modal-Secret": "MODAL_PROXY_SECRET"}
    token = {header: os.environ.get(name, "") for header, name in names.items()}
    return token if all(token.values()) else {}


def settings() -> dict[str, str | None]:
    """The settings that have been read so far, for a container's environment."""
    return dict(_settings)


def python_image(*debian: str) -> modal.Image:
    """Debian with Python, the packages `debian`, and all that requirements.txt and constraints.txt pin."""
    return (
        modal.Image.debian_slim(python_version="3.11")
        .apt_install(*debian)
        .add_local_file(ROOT / "constraints.txt", "/constraints.txt", copy=True)
        .pip_install_from_requirements(str(ROOT / "requirements.txt"), extra_options="-c /constraints.txt")
        .env({"PYTHONUNBUFFERED": "1", "HF_HOME": "/tmp/hf"})
    )


def with_repository(image: modal.Image) -> modal.Image:
    """The image with this repository's code. It is put beside the image when a container starts, so it comes last."""
    return image.add_local_dir(ROOT, THERE, ignore=_stays_at_home)


def _stays_at_home(path: Path) -> bool:
    """Whether a path, relative to the repository, is none of `PARTS`, or hidden, or a cache."""
    if not path.parts:
        return False
    hidden = any(part == "__pycache__" or (part.startswith(".") and part != ".chainlit") for part in path.parts)
    return hidden or path.parts[0] not in PARTS
