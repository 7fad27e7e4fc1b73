"""Checks of notebook 21, low-rank adapters. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from utils.exercises import require_an_answer


def check_count_adapter(answer: Callable[[Sequence[tuple[int, int]], int], int]) -> None:
    """`count_adapter(shapes, r)`: numbers in the adapters of rank r of all matrices."""
    given = answer([(192, 64), (64, 256)], 8)
    require_an_answer(given)
    assert given != 192 * 64 + 64 * 256, "those are the matrices themselves: an adapter has r rows and r columns"
    assert given != 8 * (192 * 64 + 64 * 256), "A and B lie beside each other: add in and out, do not multiply them"
    assert given != 192 + 64 + 64 + 256, "that is for rank 1: multiply by r"
    assert given != 8 * (64 + 256), "that is A alone: B has r columns of length out, too"
    assert given != 8 * (192 + 64), "that is one of the two parts only: the first matrix's adapter, or all B"
    assert given == 8 * (192 + 64 + 64 + 256), f"expected 8 · (192 + 64 + 64 + 256) = 4608, and you have {given}"
    print("count_adapter: right")


def _numbers() -> dict[str, Tensor]:
    """Small matrices with different in, out, r and n."""
    of = torch.Generator().manual_seed(0)
    sizes = {"A": (2, 5), "B": (4, 2), "W": (4, 5), "bias": (4,), "x": (3, 5)}
    return {name: torch.randn(size, generator=of) for name, size in sizes.items()}


def _near(given: Tensor, wanted: Tensor) -> bool:
    return given.shape == wanted.shape and torch.allclose(given, wanted, atol=1e-5)


def check_delta_weight(answer: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """`delta_weight(A, B, alpha)`: what merging adds to W."""
    n = _numbers()
    given = answer(n["A"].clone(), n["B"].clone(), 6.0)
    require_an_answer(given)
    assert isinstance(given, Tensor), f"return a tensor, not a {type(given).__name__}"
    assert given.shape != (5, 4), "that is (in, out): W is (out, in), so B comes first"
    assert given.shape == (4, 5), f"W is (out, in) = (4, 5), and you have {tuple(given.shape)}"
    product = n["B"] @ n["A"]
    assert not _near(given, product), "the scale is missing: what was trained is alpha / r times B A"
    assert not _near(given, 6 * product), "the scale is alpha / r, and not alpha: r is the number of rows of A"
    assert not _near(given, 6 / 5 * product), "you divide by `in`: r is the number of rows of A, A.shape[0]"
    assert not _near(given, 6 / 2**0.5 * product), "that is alpha / √r, another proposal: here it is alpha / r"
    assert _near(given, 3 * product), "expected alpha / r · B A"
    print("delta_weight: right")


class _Watch(TorchDispatchMode):
    """Notes whether any operation makes a tensor of a shape."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape, self.seen = shape, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        is_view = "t.default" in str(func) or "transpose" in str(func) or "permute" in str(func)
        if isinstance(result, Tensor) and not is_view and tuple(result.shape) in (self.shape, self.shape[::-1]):
            self.seen = True
        return result


def check_lora_forward(answer: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """`lora_forward(x, W, bias, A, B, alpha)`: the layer and its adapter, without a matrix (out, in)."""
    n = _numbers()
    x, W, bias, A, B = n["x"], n["W"], n["bias"], n["A"], n["B"]
    given = answer(x.clone(), W.clone(), bias.clone(), A.clone(), B.clone(), 6.0)
    require_an_answer(given)
    assert isinstance(given, Tensor) and given.shape == (3, 4), "return a tensor (n, out), here (3, 4)"
    plain, adapter = x @ W.T, x @ A.T @ B.T
    assert not _near(given, plain + 3 * adapter), "the bias is missing"
    assert not _near(given, plain + bias + adapter), "the scale alpha / r is missing"
    assert not _near(given, plain + bias + 6 * adapter), "the scale is alpha / r, and not alpha"
    assert not _near(given, bias + 3 * adapter), "W x is missing: the adapter is added to what was there"
    assert not _near(given, plain + bias), "the adapter is missing"
    assert not _near(given, 3 * (plain + bias + adapter)), "the scale is the adapter's alone: W x and bias stay"
    assert _near(given, plain + bias + 3 * adapter), "expected W x + bias + alpha / r · B (A x) for each row of x"
    with _Watch((4, 5)) as watch:
        answer(x, W, bias, A, B, 6.0)
    assert not watch.seen, "right, but a matrix (out, in) was built on the way: multiply x by A first, and that by B"
    print("lora_forward: right")


def check_start_adapter(answer: Callable[[int, int, int], tuple[Tensor, Tensor]]) -> None:
    """`start_adapter(n_in, n_out, r)`: A (r, n_in) and B (n_out, r) that change nothing and can learn."""
    given = answer(5, 4, 2)
    require_an_answer(given)
    assert isinstance(given, tuple) and len(given) == 2, "return two tensors, A and B"
    A, B = (part.detach().float() for part in given)
    assert not (A.shape == (4, 2) and B.shape == (2, 5)), "A and B have changed places: A first, (r, in)"
    assert A.shape == (2, 5) and B.shape == (4, 2), (
        f"A is (r, in) = (2, 5) and B (out, r) = (4, 2); you have {tuple(A.shape)} and {tuple(B.shape)}"
    )
    assert A.abs().max() > 0 or B.abs().max() > 0, (
        "both are zero: each gradient has the other matrix as a factor, so nothing ever learns"
    )
    assert (B @ A).abs().max() == 0, "B A is not zero: the model would begin changed. Leave one of the two at zero"
    alive = A if A.abs().max() > 0 else B.T
    assert torch.linalg.matrix_rank(alive) == 2, (
        "rows that are equal, or multiples of each other, get equal gradients: the rank stays 1. Draw them at random"
    )
    print("start_adapter: right")


def check_rank_for(answer: Callable[[Tensor, float], int]) -> None:
    """`rank_for(M, share)`: the smallest rank that keeps this share of the sum of squares."""
    M = torch.diag(torch.tensor([1.0, 4.0, 0.0, 2.0]))  # squares 16, 4, 1, 0 of 21
    given = answer(M.clone(), 0.9)
    require_an_answer(given)
    assert isinstance(given, int) and not isinstance(given, bool), f"return an int, not a {type(given).__name__}"
    assert given != 3, "you add the singular values themselves: their squares are what the error is made of"
    assert given != 1, "rank 1 keeps 16 of 21, 0.76: that is less than 0.9. (An index is one less than the rank.)"
    assert given != 4, "begin with the largest singular value, not with the smallest, and not with all"
    assert given == 2, f"16 + 4 of 21 is 0.95, so rank 2 is enough, and you have {given}"
    assert answer(M.clone(), 0.7) == 1, "16 of 21 is 0.76: for a share of 0.7 rank 1 is enough"
    assert answer(M.clone(), 1.0) == 3, "for all of it rank 3 is enough: the last singular value is 0"
    turned = torch.tensor([[2.0, 1, 0], [1, 2, 0], [0, 0, 1]])
    assert answer(turned, 0.8) == 1, (
        "the matrix of section 1 has the singular values 3, 1, 1, and rank 1 keeps 9 of 11, 0.82: take svdvals, "
        "not the diagonal"
    )
    print("rank_for: right")
