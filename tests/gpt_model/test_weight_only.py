"""Stored weights against the matrices that they stand for, multiplied by torch."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gpt_model import Sampling, generate, weight_only
from gpt_model.weight_only import FEW_ROWS, Storage, WeightOnlyLinear, quantize_int8, store_weights, stored_bytes
from tests.gpt_model.test_gpt import tiny_gpt
from tests.gpt_model.test_variants import MAKERS, lively

STORAGES: list[Storage] = ["float32", "bfloat16", "int8"]


@pytest.fixture(params=["native", "torch"])
def kernel(request, monkeypatch):
    """With the compiled kernel and without: a machine that has no compiler computes the same."""
    monkeypatch.setattr(weight_only, "_KERNELS", {})
    if request.param == "torch":
        monkeypatch.setattr(weight_only, "load_native", lambda _: None)
    elif weight_only._kernel(torch.float32) is None:
        pytest.skip("no C++ compiler on this machine")


@given(
    rows=st.integers(1, FEW_ROWS),
    n_out=st.integers(1, 70),
    n_in=st.integers(1, 300),
    storage=st.sampled_from(STORAGES),
    bias=st.booleans(),
    seed=st.integers(0, 9),
)
def test_few_rows_equal_a_product_with_the_widened_matrix(rows, n_out, n_in, storage, bias, seed):
    torch.manual_seed(seed)
    linear = nn.Linear(n_in, n_out, bias=bias)
    stored = WeightOnlyLinear(linear.weight, linear.bias, storage)
    x = torch.randn(2, rows // 2, n_in) if rows % 2 == 0 else torch.randn(rows, n_in)
    exact = F.linear(x.double(), stored.weight.double(), None if linear.bias is None else linear.bias.double())
    with torch.no_grad():
        torch.testing.assert_close(stored(x), exact.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("storage", STORAGES)
def test_both_ways_of_the_operator_agree(kernel, storage):
    torch.manual_seed(0)
    stored = WeightOnlyLinear(torch.randn(33, 130), torch.randn(33), storage)
    x = torch.randn(3, 130)[:, :]
    with torch.no_grad():
        torch.testing.assert_close(stored(x), F.linear(x, stored.weight, stored.bias), atol=1e-4, rtol=1e-5)
        strided = torch.randn(130, 3).T  # not contiguous
        torch.testing.assert_close(stored(strided), F.linear(strided, stored.weight, stored.bias), atol=1e-4, rtol=1e-5)


@given(st.integers(1, 20), st.integers(1, 50), st.floats(1e-6, 1e6), st.integers(0, 99))
def test_int8_is_off_by_half_a_scale_at_most(n_out, n_in, size, seed):
    weight = size * torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(seed))
    q, scale = quantize_int8(weight)
    assert (scale[:, None] * q.float() - weight).abs().le(scale[:, None] * 0.501).all()
    assert q.abs().amax(dim=1).eq(127).all()  # the whole range is used, and -128 never
    assert scale.tolist() == pytest.approx((weight.abs().amax(1) / 127).tolist())


def test_a_row_of_zeros_stays_one():
    q, scale = quantize_int8(torch.zeros(2, 3))
    assert not q.any() and not scale.any()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", MAKERS)
def test_a_stored_model_is_the_model_with_rounded_matrices(name, storage: Storage, kernel):
    model = lively(name)
    rounded = copy.deepcopy(model)
    for module in rounded.modules():
        is_place = module is rounded.transformer.wpe  # which stays as it is
        if isinstance(module, nn.Linear | nn.Embedding) and not is_place:
            module.weight.data = WeightOnlyLinear(module.weight.data, None, storage).weight
    for full, whole in zip(rounded.named_modules(), model.named_modules(), strict=True):
        if full[0].endswith(("k_up", "v_up")):  # read as tensors, and so kept as they are
            full[1].weight.data = whole[1].weight.data
    stored = store_weights(model, storage)
    ids = torch.randint(0, model.config.vocab_size, (1, 12))
    with torch.no_grad():
        torch.testing.assert_close(stored(ids), rounded(ids), atol=2e-5, rtol=2e-5)
    s = Sampling(temperature=0)
    assert list(generate(stored, [1, 2, 3], 30, s)) == list(generate(rounded, [1, 2, 3], 30, s))


def test_a_stored_model_has_the_same_parameters_in_fewer_bytes():
    model = tiny_gpt()
    assert model.n_parameters == store_weights(model, "int8").n_parameters
    sizes = [stored_bytes(store_weights(model, storage)) for storage in STORAGES]
    assert sizes[0] == stored_bytes(model) == 4 * model.n_parameters
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "wpe" not in n)
    assert sizes[0] - sizes[1] == 2 * matrices
    scales = sum(len(p) for n, p in model.named_parameters() if p.ndim == 2 and "wpe" not in n)
    assert sizes[0] - sizes[2] == 3 * matrices - 4 * scales


def test_half_precision_models_can_be_stored():
    model = tiny_gpt().bfloat16().eval()
    stored = store_weights(model, "int8")
    ids = torch.randint(0, 61, (1, 20))
    with torch.no_grad():
        expected = model.float()(ids)
        assert (stored(ids) - expected).abs().max() < 0.05 * expected.abs().max()
    assert stored.make_cache(1).layers[0].buffers[0].dtype == torch.float32


def test_more_rows_and_gradients_go_through_torch():
    stored = store_weights(tiny_gpt(), "int8")
    x = torch.randn(2, FEW_ROWS, 32, requires_grad=True)
    layer = stored.transformer.blocks[0].mlp.c_fc
    layer(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0, 0], layer.weight.sum(dim=0), atol=1e-4, rtol=1e-4)


def test_what_cannot_be_stored_says_so(tmp_path):
    with pytest.raises(ValueError, match="save the model that it was made from"):
        store_weights(tiny_gpt(), "int8").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="not 'int4'"):
        store_weights(tiny_gpt(), "int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stored already"):
        store_weights(store_weights(tiny_gpt(), "int8"), "int8")
