"""Which processor the work runs on, and in which number format.

The same code serves a laptop's CPU, an Apple GPU (MPS) and CUDA. Two questions are asked once, here: where do the
tensors live, and is bfloat16 fast there? bfloat16 keeps float32's exponent and drops 16 bits of its fraction, so a
matrix product moves half the bytes; it pays only where the chip multiplies it natively.
"""

from __future__ import annotations

import contextlib
import platform
import re
from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def pick_device(name: str = "auto") -> torch.device:
    """The torch device called `name`; for "auto" the best that is here: CUDA, then MPS, then the CPU.

    Raises:
        ValueError: no such kind of device, or this machine has none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", name):
        raise ValueError(f"unknown device {name!r}: use auto, cpu, cuda, cuda:1 or mps")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r}: this torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps': no Apple GPU is available to this torch; use --device cpu")
    return device


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products beat float32 on `device`: CUDA from Ampere on, and x86 with AMX tiles.

    x86 processors that know bfloat16 but have no tiles (AVX512-BF16) multiply it slower than float32: there a step of
    the demo's model took 1.3 times as long with it.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and platform.machine() in ("x86_64", "AMD64") and torch.cpu._is_amx_tile_supported()


def autocast(device: torch.device, precision: Precision = "auto") -> AbstractContextManager[object]:
    """A context in which matrix products run in bfloat16 where that is asked for, or is fast ("auto").

    Weights, gradients and sums stay float32: this is mixed precision (Micikevicius et al. 2018, section 3),
    without loss scaling, which bfloat16's wide exponent makes needless.
    """
    if precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(device)):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def describe_device(device: torch.device, precision: Precision = "auto") -> str:
    """For people: for example "cpu, 8 threads, bfloat16 products" or "NVIDIA H200, float32"."""
    bf16 = precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(device))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{name}{threads}, {'bfloat16 products' if bf16 else 'float32'}"
