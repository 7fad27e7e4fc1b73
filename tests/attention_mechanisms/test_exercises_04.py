"""The checks of notebook 04 let the right answer pass and tell plausible wrong ones what is wrong with them."""

from __future__ import annotations

import math

import pytest
import torch

from attention_mechanisms.exercises import ex04
from tests.conftest import refuses


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda n, d, latent, rope: (latent + rope) / (2 * n * d), "upside down"),
        (lambda n, d, latent, rope: n * d / (latent + rope), "keeps keys and values"),
        (lambda n, d, latent, rope: 2 * n * d / (2 * (latent + rope)), "one latent serves for both"),
        (lambda n, d, latent, rope: 2 * n * d / latent, "the rotary key is forgotten"),
        (lambda n, d, latent, rope: 2 * n * d / (latent + n * rope), "one rotary key serves all heads"),
        (lambda n, d, latent, rope: 2 * d / (latent + rope), "of every head"),
        (lambda n, d, latent, rope: 2 * n * d // (latent + rope), "expected 5.333, and you have 5.000"),
    ],
)
def test_cache_ratio(wrong, message):
    ex04.check_cache_ratio(lambda n, d, latent, rope: 2 * n * d / (latent + rope))
    refuses(ex04.check_cache_ratio, wrong, message)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda q, w: torch.einsum("hd,hld->hl", q, w), "which makes a key of the query"),
        (lambda q, w: torch.einsum("hd,hdl->l", q, w), "the heads are summed"),
        (lambda q, w: q @ w[0], "all heads use the matrix of head 0"),
        (lambda q, w: (q[:, None] @ w)[:, 0] / math.sqrt(q.shape[1]), "that belongs to the scores"),
        (lambda q, w: q[:, None] @ w, r"\(2, 3\) is wanted, and you have \(2, 1, 3\)"),
        (lambda q, w: q @ w, r"is wanted, and you have \(2, 2, 3\)"),
        (lambda q, w: -(q[:, None] @ w)[:, 0], "expected"),
    ],
)
def test_absorb_query(wrong, message):
    ex04.check_absorb_query(lambda q, w: (q[:, None] @ w)[:, 0])
    ex04.check_absorb_query(lambda q, w: (q[:, :, None] * w).sum(1))
    refuses(ex04.check_absorb_query, wrong, message)


def lift(gathered, w):
    return (w @ gathered[:, :, None])[:, :, 0]  # (n_head, head_dim, d_latent) @ (n_head, d_latent, 1)


def gather_slowly(weights, latents, w):
    values = latents @ w.transpose(1, 2)  # (keys, d_latent) @ (n_head, d_latent, head_dim)
    return (weights[:, None] @ values)[:, 0]  # (n_head, 1, keys) @ (n_head, keys, head_dim)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (gather_slowly, "you make the values of all tokens"),
        (lambda weights, latents, w: weights @ latents, "W_uv has still to make values of it"),
        (lambda weights, latents, w: lift(weights @ latents, w.transpose(1, 2)), "W_uv is transposed"),
        (lambda weights, latents, w: weights @ latents @ w[0].T, "the W_uv of head 0"),
        (lambda weights, latents, w: lift(weights.softmax(1) @ latents, w), "a second softmax"),
        (lambda weights, latents, w: lift(weights @ latents, w).flatten(), "one row for each head"),
        (lambda weights, latents, w: lift(latents.mean(0).expand(3, -1), w), "expected"),
    ],
)
def test_gather_values(wrong, message):
    ex04.check_gather_values(lambda weights, latents, w: lift(weights @ latents, w))
    refuses(ex04.check_gather_values, wrong, message)


def crossing(d, latent):
    return math.inf if latent <= d else math.ceil(latent * d / (latent - d))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda d, latent: d, "have to be attended to as well"),
        (lambda d, latent: math.ceil(latent * d / (latent - d) / 2), "keys and values are both made"),
        (lambda d, latent: math.ceil(2 * latent * d / (latent - d)), "meets each key twice"),
        (lambda d, latent: latent * d / (latent - d), "round up"),
        (lambda d, latent: latent * d // (latent - d), "rounded down"),
        (lambda d, latent: latent * d // (latent - d) + 1, "one too many"),
        (lambda d, latent: math.ceil(latent * d / (latent - d)), "never pays"),
        (lambda d, latent: crossing(d, latent) if latent > d else 0, "never pays"),
        (lambda d, latent: latent, "expected 86, and you have 256"),
    ],
)
def test_crossover(wrong, message):
    ex04.check_crossover(crossing)
    refuses(ex04.check_crossover, wrong, message)


def cut(w_k, w_v, n, power=1, take=slice(None)):
    u, s, vt = torch.linalg.svd(torch.cat([w_k, w_v]), full_matrices=False)
    order = torch.arange(len(s))[take][:n]
    up = u[:, order] * s[order] ** power
    return vt[order], up[: len(w_k)], up[len(w_k) :]


def cut_the_keys_alone(w_k, w_v, n):
    vt = torch.linalg.svd(w_k)[2][:n]
    return vt, w_k @ vt.T, w_v @ vt.T


def cut_each(w_k, w_v, n):
    (u_k, s_k, vt_k), (u_v, s_v, _) = torch.linalg.svd(w_k), torch.linalg.svd(w_v)
    return vt_k[:n], u_k[:, :n] * s_k[:n], u_v[:, :n] * s_v[:n]


def cut_side_by_side(w_k, w_v, n):
    u, s, vt = torch.linalg.svd(torch.cat([w_k, w_v], dim=1), full_matrices=False)
    return vt[:n], u[:, :n] * s[:n], u[:, :n] * s[:n]


def cut_at_random(w_k, w_v, n):
    basis = torch.linalg.qr(torch.arange(30.0, dtype=w_k.dtype).view(10, 3).sin())[0].T  # (3, 10)
    return basis, w_k @ basis.T, w_v @ basis.T


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda k, v, n: (cut(k, v, n)[0], cut(k, v, n)[2], cut(k, v, n)[1]), "have changed places"),
        (lambda k, v, n: cut(k, v, n, take=slice(-n, None)), "the smallest singular values"),
        (lambda k, v, n: cut(k, v, n, power=0), "the singular values are missing"),
        (lambda k, v, n: cut(k, v, n, power=2), "applied twice"),
        (cut_the_keys_alone, "for w_k alone"),
        (lambda k, v, n: tuple(cut_the_keys_alone(v, k, n)[i] for i in (0, 2, 1)), "for w_v alone"),
        (cut_each, "for w_k alone"),
        (cut_side_by_side, "on top of w_v, not beside it"),
        (lambda k, v, n: tuple(w.T for w in cut(k, v, n)), "all three are transposed"),
        (lambda k, v, n: cut(k, v, n)[:2], "return three matrices"),
        (cut_at_random, "of the energy, and the best"),
    ],
)
def test_cut_to_latent(wrong, message):
    ex04.check_cut_to_latent(cut)
    refuses(ex04.check_cut_to_latent, wrong, message)
