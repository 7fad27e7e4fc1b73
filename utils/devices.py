"""Which processor the work runs on, and in which number format.

The same code serves a laptop's CPU, an Apple GPU (MPS) and CUDA. Two questions are asked once, here: where do the
tensors live, and is bfloat16 fast there? bfloat16 keeps float32's exponent and drops 16 bits of its fraction, so a
matrix product moves half the bytes; it pays only where the chip multiplies it natively.
"""

from __future__ import annotations

import contextlib
import platform
import re
import time
from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]
TrainingPrecision = Literal["auto", "float32", "bfloat16", "float16"]  # float16 needs its losses scaled


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


def products_dtype(device: torch.device, precision: TrainingPrecision = "auto") -> torch.dtype:
    """The number format of matrix products: the one asked for, or bfloat16 where it is fast ("auto")."""
    if precision == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def autocast(device: torch.device, precision: TrainingPrecision = "auto") -> AbstractContextManager[object]:
    """A context in which matrix products run in the format of `products_dtype`.

    Weights, gradients and sums stay float32: this is mixed precision (Micikevicius et al. 2018, section 3). bfloat16's
    wide exponent makes loss scaling needless; whoever trains in float16 has to scale.
    """
    dtype = products_dtype(device, precision)
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


_PEAKS = {  # dense bfloat16 products, FLOP/s, by NVIDIA's data sheets
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "T4": 65e12,  # float16: it knows no bfloat16
}


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """The most floating-point operations a second that products of `dtype` reach, and where the figure is from.

    For GPUs of the table it is the data sheet's figure for half precision (TF32: half of it). For all others it is
    measured: the best of some products of large square matrices, which is what a program can hope for.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, peak in _PEAKS.items():
            if known in name:
                return (peak / 2 if dtype == torch.float32 else peak), f"data sheet of {known}"
    size = 1536
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)  # (size, size) each
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # which waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best, f"measured on products of {size} × {size} matrices"


def describe_device(device: torch.device, precision: TrainingPrecision = "auto") -> str:
    """For people: for example "cpu, 8 threads, bfloat16 products" or "NVIDIA H200, float32"."""
    dtype = products_dtype(device, precision)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    format_name = str(dtype).removeprefix("torch.")
    return f"{name}{threads}, {format_name}{'' if dtype == torch.float32 else ' products'}"
