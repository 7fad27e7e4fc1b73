"""The chunked loss against `F.cross_entropy` on all logits: value, gradients, and the memory that it saves."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pretraining import losses
from pretraining.losses import chunked_cross_entropy, softcap
from working_with_text_data.token_shards import IGNORE


def made(tokens, d_model=8, vocab_size=30, dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, d_model, generator=random, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocab_size, d_model, generator=random, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, vocab_size, (tokens,), generator=random)
    targets[torch.rand(tokens, generator=random) < 0.3] = IGNORE
    return hidden, weight, targets


@given(
    st.integers(1, 20), st.integers(1, 25), st.integers(1, 200), st.sampled_from([None, 1.0, 15.0]), st.integers(0, 5)
)
def test_loss_and_gradients_equal_the_plain_ones(tokens, chunk, block, cap, seed):
    hidden, weight, targets = made(tokens, dtype=torch.float32, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "BLOCK", block)
        ours = chunked_cross_entropy(hidden, weight, targets, chunk, cap)
    plain = F.cross_entropy(softcap(hidden @ weight.T, cap), targets, reduction="sum", ignore_index=IGNORE)
    torch.testing.assert_close(ours, plain)
    factor = 0.37  # as dividing by the number of targets does
    ours_gradients = torch.autograd.grad(factor * ours, (hidden, weight))
    for a, b in zip(ours_gradients, torch.autograd.grad(factor * plain, (hidden, weight)), strict=True):
        torch.testing.assert_close(a, b)


def test_equals_torch_s_own_chunked_loss():
    hidden, weight, targets = made(64, dtype=torch.float32)
    options = torch.nn.LinearCrossEntropyOptions()
    theirs = F.linear_cross_entropy(hidden, weight, targets, reduction="sum", ignore_index=IGNORE, options=options)
    torch.testing.assert_close(chunked_cross_entropy(hidden, weight, targets, 16), theirs)


@pytest.mark.parametrize("cap", [None, 15.0])
def test_in_half_precision_a_sure_model_still_gets_the_little_gradient_that_is_left(cap):
    """p is 0.9991 here, 1 in bfloat16: a gradient of p - 1 taken from that would be 0."""
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[8.0], [1.0]], requires_grad=True)  # logits 8 and 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = torch.autograd.grad(chunked_cross_entropy(hidden, weight, torch.tensor([0]), cap=cap), weight)[0]
    plain = torch.autograd.grad(F.cross_entropy(softcap(hidden @ weight.T, cap), torch.tensor([0])), weight)[0]
    assert plain[0] < 0
    torch.testing.assert_close(ours, plain, rtol=0.01, atol=0)


def test_the_compiled_kernel_computes_the_same():
    hidden, weight, targets = made(20, dtype=torch.float32)
    plain = torch.autograd.grad(chunked_cross_entropy(hidden, weight, targets, 8, 15.0), (hidden, weight))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "_kernel", losses._kernel)
        losses.compile_loss()
        compiled = torch.autograd.grad(chunked_cross_entropy(hidden, weight, targets, 8, 15.0), (hidden, weight))
    for a, b in zip(compiled, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_only_what_is_asked_for_gets_a_gradient():
    hidden, weight, targets = made(10, dtype=torch.float32)
    assert torch.autograd.grad(chunked_cross_entropy(hidden, weight.detach(), targets, 3), hidden)[0].norm() > 0
    assert torch.autograd.grad(chunked_cross_entropy(hidden.detach(), weight, targets, 3), weight)[0].norm() > 0
    with torch.no_grad():
        assert not chunked_cross_entropy(hidden, weight, targets, 3).requires_grad


def test_under_autocast_products_are_halved_and_sums_are_not():
    hidden, weight, targets = made(100, 64, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = chunked_cross_entropy(hidden, weight, targets, 16)
    whole = chunked_cross_entropy(hidden, weight, targets, 16)
    assert half.dtype == torch.float32
    assert half != whole
    torch.testing.assert_close(half, whole, rtol=0.01, atol=0)
    a, b = torch.autograd.grad(half, weight)[0], torch.autograd.grad(whole, weight)[0]
    assert a.dtype == torch.float32
    assert (a - b).norm() < 0.02 * b.norm()


@pytest.mark.parametrize("vocab_size", [63, 64, 65, 1])
def test_rows_added_to_a_half_precision_copy_change_nothing(vocab_size):
    """Whole numbers and their sums are exact in bfloat16, so nothing but the rows could make a difference."""
    random = torch.Generator().manual_seed(0)
    hidden = torch.randint(-2, 3, (10, 8), generator=random).float().requires_grad_()
    weight = torch.randint(-2, 3, (vocab_size, 8), generator=random).float().requires_grad_()
    targets = torch.randint(0, vocab_size, (10,), generator=random)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = chunked_cross_entropy(hidden, weight, targets, 4)
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    torch.testing.assert_close(ours, plain)
    gradients = torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(plain, (hidden, weight))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)  # of the softmax, 8 bits


def test_wrong_shapes_are_refused():
    hidden, weight, targets = made(4)
    with pytest.raises(ValueError, match="expected"):
        chunked_cross_entropy(hidden, weight.T, targets)
    with pytest.raises(ValueError, match="expected"):
        chunked_cross_entropy(hidden[None], weight, targets)
    with pytest.raises(ValueError, match="at least 1"):
        chunked_cross_entropy(hidden, weight, targets, 0)


PEAK = """
import re, sys, torch, torch.nn.functional as F
from pretraining.losses import chunked_cross_entropy
def peak():  # not ru_maxrss, which begins at what the process that started this one had
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
hidden, weight = torch.randn(4096, 16, requires_grad=True), torch.randn(50257, 16, requires_grad=True)
targets = torch.randint(0, 50257, (4096,))
F.cross_entropy(hidden[:8] @ weight.T, targets[:8]).backward()  # so that what torch itself takes is there already
before = peak()
if sys.argv[1] == "plain":
    F.cross_entropy(hidden @ weight.T, targets, reduction="sum").backward()
else:
    chunked_cross_entropy(hidden, weight, targets, 256).backward()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which Linux alone has")
def test_the_peak_at_gpt2_s_vocabulary_is_a_third_at_most():
    peak = {
        name: int(subprocess.run([sys.executable, "-c", PEAK, name], capture_output=True, text=True, check=True).stdout)
        for name in ("plain", "chunked")
    }
    logits = 4096 * 50257 * 4 / 1024
    assert peak["plain"] > 1.9 * logits  # logits, and their gradient
    assert peak["chunked"] * 3 < peak["plain"], peak
