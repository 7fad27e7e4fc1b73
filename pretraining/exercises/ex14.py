"""Checks of notebook 14, schedules and optimisers. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from utils.exercises import require_an_answer


def _same(given: Sequence[float], wanted: Sequence[float]) -> bool:
    """Whether two lists of numbers are equal but for rounding."""
    return len(given) == len(wanted) and all(math.isclose(a, b, abs_tol=1e-9) for a, b in zip(given, wanted))  # noqa: B905


def check_heavy_ball_path(answer: Callable[[float, float, float, float, int], list[float]]) -> None:
    """`heavy_ball_path(w, c, rate, beta, n)`: the positions after each of n steps of momentum on c w² / 2."""
    given = answer(16.0, 9.0, 0.25, 0.25, 3)
    require_an_answer(given)
    assert isinstance(given, list), f"return a list of positions, not a {type(given).__name__}"
    assert not _same(given, [16.0, -20.0, 16.0, -11.0]), "the start is among them: only positions after a step belong"
    assert not _same(given, [-11.0]), "only the last position is there: append after every step"
    assert not _same(given, [-20.0, 25.0, -31.25]), "that is plain descent: the velocity u must keep beta of itself"
    assert not _same(given, [-11.0, 0.8125, 2.39453125]), (
        "the gradient has the share 1 - beta: here u is beta · u + g, a sum and not a mean"
    )
    assert not _same(given, [12.0, 8.0, 5.0]), "the curvature is missing: the gradient of c w² / 2 is c w"
    assert not _same(given, [52.0, 178.0, 610.0]), "you walk up: take the velocity times the rate away"
    assert not _same(given, [16.0, -20.0, -65.0]), "you step before the gradient is in u: first u, then w"
    assert _same(given, [-20.0, 16.0, -11.0]), f"from 16 with c = 9 expected [-20, 16, -11], and you have {given}"
    flat = answer(16.0, 1.0, 0.25, 0.25, 3)
    assert _same(flat, [12.0, 8.0, 5.0]), f"from 16 with c = 1 expected [12, 8, 5], and you have {flat}"
    print("heavy_ball_path: right")


def check_adam_direction(answer: Callable[[list[float], float, float], float]) -> None:
    """`adam_direction(gradients, b1, b2)`: Adam's last step over the rate, both means corrected."""
    first = answer([4.0], 0.5, 0.9375)
    require_an_answer(first)
    value = float(first)

    def is_near(wanted: float) -> bool:
        return math.isclose(value, wanted, rel_tol=1e-6)

    assert not is_near(-1.0), "the direction has the gradient's sign: the minus stands where the step is taken"
    assert not is_near(0.25), "v is the mean of g², and the step is divided by its square root"
    assert is_near(1.0), (
        f"the first step is 1, whatever the gradient, and you have {value:.4g}: "
        "divide m by 1 - b1 ** t and v by 1 - b2 ** t"
    )
    value = float(answer([4.0, 0.0], 0.5, 0.75))
    assert not is_near(2 / 12**0.5), "from the second step on, 1 - b is not enough: it is 1 - b ** t"
    assert not is_near(0.0), "only the last gradient is used: m and v go through all of them"
    v = 48 / 7
    assert not is_near(1 / v**0.5), "m is not corrected: divide it by 1 - b1 ** t"
    assert not is_near((4 / 3) / 3**0.5), "v is not corrected: divide it by 1 - b2 ** t"
    assert is_near((4 / 3) / v**0.5), f"after 4, 0 expected {(4 / 3) / v**0.5:.4f}, and you have {value:.4f}"
    value = float(answer([1.0, 2.0, -3.0], 0.9, 0.95))
    m, w = (0.81 * 0.1 + 0.9 * 0.2 - 0.3) / (1 - 0.9**3), (0.9025 * 0.05 + 0.95 * 0.2 + 0.45) / (1 - 0.95**3)
    assert is_near(m / w**0.5), f"after 1, 2, -3 expected {m / w**0.5:.4f}, and you have {value:.4f}"
    print("adam_direction: right")


def check_decaying_names(answer: Callable[[Mapping[str, tuple[int, ...]]], set[str]]) -> None:
    """`decaying_names(shapes)`: the names of the matrices in the blocks."""
    shapes = {
        "transformer.wte.weight": (256, 64),
        "transformer.h.0.ln_1.weight": (64,),
        "transformer.h.0.ln_1.bias": (64,),
        "transformer.h.0.attn.c_attn.weight": (192, 64),
        "transformer.h.0.attn.c_attn.bias": (192,),
        "transformer.h.0.mlp.c_fc.weight": (256, 64),
        "transformer.h.0.mlp.c_fc.bias": (256,),
        "transformer.ln_f.weight": (64,),
        "lm_head.weight": (256, 64),
    }
    given = answer(dict(shapes))
    require_an_answer(given)
    assert isinstance(given, (set, frozenset)), f"return a set of names, not a {type(given).__name__}"
    norms = {name for name in given if ".ln_" in name}
    assert given != set(shapes), "everything decays: norms, biases and embeddings must not"
    assert not norms, f"{sorted(norms)[0]} is a norm's: its name may end in `weight`, but it is no matrix"
    assert not any(name.endswith("bias") for name in given), "biases do not decay: ask for two dimensions"
    assert "transformer.wte.weight" not in given, "the embedding is a matrix, but in no block: look for `.h.`"
    assert "lm_head.weight" not in given, "the output is a matrix, but in no block: look for `.h.`"
    wanted = {"transformer.h.0.attn.c_attn.weight", "transformer.h.0.mlp.c_fc.weight"}
    assert given == wanted, f"missing: {sorted(wanted - given)}, too many: {sorted(given - wanted)}"
    print("decaying_names: right")


def check_newton_schulz_round(answer: Callable[[Tensor, float, float, float], Tensor]) -> None:
    """`newton_schulz_round(X, a, b, c)`: a X + b (X Xᵀ) X + c (X Xᵀ)² X."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    X = X / X.norm()
    a, b, c = 3.4445, -4.7750, 2.0315
    try:
        given = answer(X.clone(), a, b, c)
    except RuntimeError as error:
        raise AssertionError(
            f"the shapes do not fit ({error}): for X of (3, 5), X Xᵀ is (3, 3) and stands to the left of X"
        ) from None
    require_an_answer(given)
    assert isinstance(given, Tensor) and given.shape == X.shape, "return a matrix of the shape of X"
    gram = X @ X.mT
    wanted = a * X + (b * gram + c * gram @ gram) @ X

    def is_near(other: Tensor) -> bool:
        return torch.allclose(given, other, atol=1e-9)

    assert not is_near(a * X + b * X**3 + c * X**5), (
        "you take powers of each number: X³ means (X Xᵀ) X, products of matrices"
    )
    assert not is_near(a * X + (b * gram + c * gram**2) @ X), (
        "(X Xᵀ)² is a product of matrices, gram @ gram, not gram ** 2"
    )
    assert not is_near(a * X + b * gram @ X + c * gram @ gram @ gram @ X), (
        "(X Xᵀ)³ X is the seventh power: one too many"
    )
    assert not is_near((b * gram + c * gram @ gram) @ X), "the first term, a X, is missing"
    assert not is_near(wanted / wanted.norm()), "the result is normalised: a round changes lengths, and should"
    assert is_near(wanted), f"off by {float((given - wanted).abs().max()):.3g} at the worst place"
    print("newton_schulz_round: right")


def check_wsd_share(answer: Callable[[int, int, int, int], float]) -> None:
    """`wsd_share(step, steps, warmup, decay)`: (step + 1) / warmup, then 1, then (steps - step) / decay."""
    given = [answer(step, 20, 4, 8) for step in range(20)]
    require_an_answer(given[0])
    assert max(given) <= 1, f"the share grows to {max(given):g}: it is never above 1"
    assert given[0] != 0, "the first step has the share 0 and learns nothing: (step + 1) / warmup"
    assert given[0] != 1, "there is no warm-up: step 0 of 4 has 1/4"
    assert given[-1] >= 0, f"the last step has {given[-1]:g}, and walks up: the share is never below 0"
    assert given[-1] != 1, "there is no decay: the last of 8 steps down has 1/8"
    assert not _same(given[4:], [(20 - step) / 16 for step in range(4, 20)]), (
        "it falls from the warm-up on: level until the last `decay` steps"
    )
    assert given[-1] != 0, "the last step has the share 0 and learns nothing: (steps - step) / decay"
    wanted = [min(1.0, (step + 1) / 4, (20 - step) / 8) for step in range(20)]
    off = next((step for step in range(20) if not math.isclose(given[step], wanted[step])), None)
    assert off is None, f"step {off} of 20 (warm-up 4, decay 8): expected {wanted[off]:g}, and you have {given[off]:g}"
    print("wsd_share: right")
