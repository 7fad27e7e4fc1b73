"""Devices are found or refused in one line."""

from __future__ import annotations

import pytest
import torch

from utils.devices import autocast, describe_device, has_fast_bfloat16, pick_device
from utils.seeding import seed_everything


def test_auto_is_a_device_that_works():
    device = pick_device("auto")
    assert torch.ones(2, device=device).sum().item() == 2


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", "xpu"])
def test_a_device_that_is_not_here_is_refused(name):
    with pytest.raises(ValueError, match="device"):
        pick_device(name)


def test_precision_decides_what_products_run_in():
    device = torch.device("cpu")
    a = torch.ones(4, 4)
    with autocast(device, "bfloat16"):
        assert (a @ a).dtype == torch.bfloat16
    with autocast(device, "float32"):
        assert (a @ a).dtype == torch.float32
    assert "float32" in describe_device(device, "float32")


def test_one_seed_decides_every_generator():
    import random

    import numpy as np

    def draws():
        seed_everything(7)
        return random.random(), float(np.random.rand()), torch.rand(1).item()  # noqa: NPY002

    assert draws() == draws()
    with pytest.raises(ValueError, match="seed -1"):
        seed_everything(-1)


@pytest.mark.parametrize("tiles", [True, False])
def test_a_cpu_multiplies_bfloat16_only_with_tiles(monkeypatch, tiles):
    """AVX512-BF16 without AMX was measured slower than float32."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    assert has_fast_bfloat16(torch.device("cpu")) is tiles
