"""Checks of notebook 04, multi-head latent attention. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from utils.exercises import require_an_answer


def check_cache_ratio(answer: Callable[[int, int, int, int], float]) -> None:
    """`cache_ratio(n_head, head_dim, d_latent, d_rope)`: how many times smaller than multi-head attention's cache."""
    require_an_answer(answer(12, 64, 256, 32))
    for n, d, latent, rope in [(12, 64, 256, 32), (128, 128, 512, 64), (3, 8, 10, 4)]:
        given, right = float(answer(n, d, latent, rope)), 2 * n * d / (latent + rope)

        def is_near(value: float, given: float = given) -> bool:
            return math.isclose(given, value, rel_tol=1e-9)

        assert not is_near(1 / right), "upside down: the larger cache, multi-head attention's, is divided by the other"
        assert not is_near(right / 2), (
            "half of it: multi-head attention keeps keys and values, and one latent serves for both"
        )
        assert not is_near(2 * n * d / latent), "the rotary key is forgotten: it lies in the cache beside the latent"
        assert not is_near(2 * n * d / (latent + n * rope)), (
            "one rotary key serves all heads: do not count it n_head times"
        )
        assert not is_near(2 * d / (latent + rope)), "multi-head attention keeps a key and a value of every head"
        assert is_near(right), f"for {(n, d, latent, rope)} expected {right:.3f}, and you have {given:.3f}"
    print("cache_ratio: right")


def check_absorb_query(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """`absorb_query(q, w_uk)`: queries of all heads that ask the latents, (n_head, d_latent)."""
    generator = torch.Generator().manual_seed(0)
    for n, d, latent in [(2, 3, 3), (3, 2, 5), (4, 8, 4)]:  # a square matrix first: there a wrong order still fits
        q = torch.randn(n, d, generator=generator, dtype=torch.float64)
        w_uk = torch.randn(n, d, latent, generator=generator, dtype=torch.float64)
        given = answer(q.clone(), w_uk.clone())
        require_an_answer(given)
        right = torch.einsum("hd,hdl->hl", q, w_uk)

        def is_near(value: Tensor, given: Tensor = given) -> bool:
            return given.shape == value.shape and torch.allclose(given, value)

        assert not is_near(right.sum(0)), "the heads are summed: each head keeps an absorbed query of its own"
        assert given.shape == right.shape, f"({n}, {latent}) is wanted, and you have {tuple(given.shape)}"
        assert d != latent or not is_near(torch.einsum("hd,hld->hl", q, w_uk)), (
            "that is W_uk q, which makes a key of the query: it is the transpose of W_uk that moves over to q"
        )
        assert not is_near(q @ w_uk[0]), "all heads use the matrix of head 0: each has its own"
        assert not is_near(right * d**-0.5), "scaled by 1 / √head_dim: that belongs to the scores, not to absorption"
        assert is_near(right), f"expected {_rounded(right)}, and you have {_rounded(given)}"
    print("absorb_query: right")


def check_gather_values(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """`gather_values(weights, latents, w_uv)`: the weighted sums of values, (n_head, head_dim), no value being made."""
    generator = torch.Generator().manual_seed(1)
    n, d, latent, keys = 3, 6, 6, 200
    weights = torch.randn(n, keys, generator=generator, dtype=torch.float64).mul(2).softmax(1)
    latents = torch.randn(keys, latent, generator=generator, dtype=torch.float64)
    w_uv = torch.randn(n, d, latent, generator=generator, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        given = answer(weights.clone(), latents.clone(), w_uv.clone())
    require_an_answer(given)
    gathered = weights @ latents  # (n, keys) @ (keys, latent) -> (n, latent)
    right = torch.einsum("hl,hdl->hd", gathered, w_uv)

    def is_near(value: Tensor) -> bool:
        return given.shape == value.shape and torch.allclose(given, value)

    assert not is_near(gathered), "that is what each head gathers of the latents: W_uv has still to make values of it"
    assert given.shape == right.shape, f"({n}, {d}) is wanted, one row for each head: you have {tuple(given.shape)}"
    assert not is_near(torch.einsum("hl,hld->hd", gathered, w_uv)), "W_uv is transposed: a value is W_uv c"
    assert not is_near(gathered @ w_uv[0].T), "all heads use the W_uv of head 0: each has its own"
    assert not is_near(torch.einsum("hl,hdl->hd", weights.softmax(1) @ latents, w_uv)), (
        "a second softmax: the weights sum to 1 already"
    )
    assert is_near(right), f"expected {_rounded(right)}, and you have {_rounded(given)}"
    needed = 2 * n * keys * latent + 2 * n * latent * d
    assert counter.get_total_flops() <= 1.05 * needed, (
        f"the right sums, with {counter.get_total_flops():,} operations where {needed:,} suffice: you make the values "
        "of all tokens. Sum the latents first, and apply W_uv to the sums"
    )
    print("gather_values: right")


def check_crossover(answer: Callable[[int, int], float]) -> None:
    """`crossover(head_dim, d_latent)`: the fewest new tokens for which expanding costs no more than absorbing."""
    require_an_answer(answer(64, 256))
    for d, latent in [(64, 256), (16, 32), (8, 12), (128, 512), (5, 12)]:
        given, exact = answer(d, latent), latent * d / (latent - d)
        right, where = math.ceil(exact), f"head_dim={d}, d_latent={latent}: "
        assert given != d or d == right, where + "expanded keys have to be attended to as well, 4 · head_dim a query"
        assert given != math.ceil(exact / 2), where + "keys and values are both made: 4 · d_latent · head_dim"
        assert given == right or given != math.ceil(2 * exact), (
            where + "a query meets each key twice, in the score and in the sum: 4 · d_latent, and 4 · head_dim"
        )
        assert given == right or not math.isclose(given, exact), where + "a whole number of tokens is wanted: round up"
        assert given != right - 1, where + f"rounded down: with {right - 1} queries expanding still costs more"
        assert given != right + 1, where + f"one too many: with {right} queries expanding costs no more"
        assert given == right, where + f"expected {right}, and you have {given}"
    for d, latent in [(64, 64), (64, 16)]:
        try:
            given = answer(d, latent)
        except ZeroDivisionError:
            given = math.nan
        assert given == math.inf, (
            f"head_dim={d}, d_latent={latent}: an absorbed query is no longer than another, so expanding never pays: "
            f"math.inf, and you have {given}"
        )
    print("crossover: right")


def check_cut_to_latent(answer: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]]) -> None:
    """`cut_to_latent(w_k, w_v, d_latent)`: (w_down, w_uk, w_uv), the best latent of that width."""
    generator = torch.Generator().manual_seed(2)
    d, latent = 10, 3
    w_k = torch.randn(d, d, generator=generator, dtype=torch.float64)
    w_v = 2 * torch.randn(d, d, generator=generator, dtype=torch.float64)
    given = answer(w_k.clone(), w_v.clone(), latent)
    require_an_answer(given)
    assert isinstance(given, tuple | list) and len(given) == 3, "return three matrices: (w_down, w_uk, w_uv)"
    down, w_uk, w_uv = given
    shapes = [tuple(w.shape) for w in given]
    assert shapes != [(d, latent), (latent, d), (latent, d)], "all three are transposed: a latent is w_down @ x"
    assert shapes == [(latent, d), (d, latent), (d, latent)], (
        f"({latent}, {d}), ({d}, {latent}), ({d}, {latent}) are wanted, and you have {shapes}: one w_down for both, so "
        "stack w_k on top of w_v, not beside it"
    )

    def lost(of_k: Tensor, of_v: Tensor) -> float:
        return float((of_k - w_k).square().sum() + (of_v - w_v).square().sum())

    k, v = w_uk @ down, w_uv @ down  # (d, latent) @ (latent, d) -> (d, d)
    singular = torch.linalg.svdvals(torch.cat([w_k, w_v]))
    best, everything = float(singular[latent:].square().sum()), float(singular.square().sum())
    error = lost(k, v)
    if error > best * (1 + 1e-6):
        assert not lost(v, k) < best * (1 + 1e-6), "keys and values have changed places: the rows of w_k come first"
        smallest = everything - float(singular[-latent:].square().sum())
        assert not math.isclose(error, smallest, rel_tol=1e-6), (
            "you keep the smallest singular values: torch gives the largest first"
        )
        u, s, vt = torch.linalg.svd(torch.cat([w_k, w_v]), full_matrices=False)
        for power, message in [(0, "the singular values are missing"), (2, "the singular values are applied twice")]:
            other = u[:, :latent] * s[:latent] ** power @ vt[:latent]
            assert not torch.allclose(torch.cat([k, v]), other), f"{message}: W = U S Vᵀ, and each stands there once"
        for name, w, made in [("w_k", w_k, k), ("w_v", w_v, v)]:
            alone = float(torch.linalg.svdvals(w)[latent:].square().sum())
            assert not math.isclose(float((made - w).square().sum()), alone, rel_tol=1e-6), (
                f"the latent is the best one for {name} alone: it serves both, so decompose them stacked"
            )
        raise AssertionError(
            f"this latent loses {error / everything:.1%} of the energy, and the best {best / everything:.1%}"
        )
    print("cut_to_latent: right")


def _rounded(tensor: Tensor) -> list[list[float]]:
    return [[round(float(number), 3) for number in row] for row in tensor]
