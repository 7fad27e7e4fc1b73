"""The benchmark of sizes: the law from points made of one, and a run of seconds from text to picture."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.optimize

from pretraining.scaling_benchmark import Law, analyse, as_arrays, best_of_law, bootstrap_exponents, characters, fit_law
from tests.conftest import assert_one_clear_line

CHINCHILLA = Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)


def grid(law, noise=0.0, seed=0):
    """Weights, tokens and losses of a law: five sizes, four lengths."""
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e4, 1e6, 5), np.geomspace(3e4, 3e6, 4)))
    factor = 1 + noise * np.random.default_rng(seed).standard_normal(len(n))
    return n, d, law.loss(n, d) * factor


def test_the_fit_recovers_the_law_that_made_the_points():
    found = fit_law(*grid(CHINCHILLA))
    assert math.isclose(found.alpha, 0.34, abs_tol=0.002) and math.isclose(found.beta, 0.28, abs_tol=0.002)
    assert math.isclose(found.E, 1.69, abs_tol=0.05)
    assert math.isclose(found.A, 406.4, rel_tol=0.05) and math.isclose(found.B, 410.7, rel_tol=0.05)
    assert math.isclose(found.size_exponent, 0.28 / 0.62, abs_tol=0.005)


def test_scipy_finds_no_better_fit():
    n, d, losses = grid(Law(1.2, 60.0, 90.0, 0.45, 0.4), noise=0.01)
    ours = fit_law(n, d, losses)

    def errors(x):
        return Law(*np.exp(x)).loss(n, d) / losses - 1

    start = np.log([1.2, 60.0, 90.0, 0.45, 0.4])
    theirs = scipy.optimize.least_squares(errors, start, x_scale="jac", max_nfev=2000)
    mine = ((ours.loss(n, d) / losses - 1) ** 2).sum()
    assert mine <= 2 * theirs.cost * 1.01


def test_the_best_size_has_the_least_loss():
    best = CHINCHILLA.best_size(1e18)
    losses = [CHINCHILLA.loss(best * f, 1e18 / 6 / (best * f)) for f in (0.9, 1.0, 1.1)]
    assert losses[1] == min(losses)
    assert math.isclose(CHINCHILLA.best_size(1e20) / best, 100**CHINCHILLA.size_exponent)


def test_what_attention_costs_buys_no_tokens():
    rows = [{"parameters": 10, "tokens": 100, "flops": 12_000.0}] * 2  # half of the budget
    size, loss = best_of_law(CHINCHILLA, rows, 2e18)
    assert math.isclose(size, CHINCHILLA.best_size(1e18))
    assert math.isclose(loss, CHINCHILLA.loss(size, 1e18 / 6 / size))


def test_noise_widens_the_bootstrap():
    def width(noise):
        n, d, losses = grid(CHINCHILLA, noise)
        exponents = bootstrap_exponents(n, d, losses, times=30)
        return exponents[-2] - exponents[1]

    assert width(0.0) < 0.05 < width(0.02)


def test_what_cannot_be_fitted_is_refused():
    n, d, losses = grid(CHINCHILLA)
    with pytest.raises(ValueError, match="at least 5 runs, got 4"):
        fit_law(n[:4], d[:4], losses[:4])
    with pytest.raises(ValueError, match="positive coefficients"):
        fit_law(n, d, np.log(n) + np.log(d))  # a loss that grows with both


def test_the_largest_is_held_out():
    n, d, losses = grid(CHINCHILLA)
    rows = [{"parameters": a, "tokens": b, "loss": c} for a, b, c in zip(n, d, losses, strict=True)]
    found = analyse(rows)
    assert len(found["held_out"]) == 4
    for row in found["held_out"]:
        assert math.isclose(row["predicted"], row["loss"], rel_tol=2e-3)
    assert all(len(array) == 20 for array in as_arrays(rows))


def test_characters_are_ids_from_0_to_95():
    assert characters("a\n ~\té").tolist() == [66, 0, 1, 95]


def test_a_run_of_seconds_writes_points_fit_and_picture(tmp_path, run):
    out, readme, text = tmp_path / "scaling.json", tmp_path / "README.md", tmp_path / "texts"
    text.mkdir()
    for i in range(20):
        (text / f"{i}.txt").write_text(f"The cat number {i} sat on the mat and saw {i * 7} birds. " * 20)
    readme.write_text("<!-- scaling:begin -->\n<!-- scaling:end -->\n")
    flags = ["--corpus", text, "--sizes", "1x16", "1x32", "2x32", "--budgets", "2e8", "4e8", "8e8", "--epochs", "9"]
    done = run(
        "pretraining/scaling_benchmark.py", *flags, "--least-steps", "2", "--context-length", "16",
        "--out", out, "--readme", readme,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert len(results["points"]) == 9
    assert all(0 < row["loss"] < 5 for row in results["points"])
    assert all(abs(row["flops"] / row["budget"] - 1) < 0.2 for row in results["points"])
    assert set(results["fit"]) == {"E", "A", "B", "alpha", "beta"}
    assert str(tmp_path) not in json.dumps({**results, "made_by": None})
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "| FLOPs |" in readme.read_text()
    again = run("pretraining/scaling_benchmark.py", "--report-only", "--out", out)
    assert again.returncode == 0 and "best N ~ C^" in again.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sizes", "2x50", "1x16", "1x32"], "--sizes are blocks x width"),
        (["--sizes", "large", "1x16", "1x32"], "--sizes are blocks x width"),
        (["--sizes", "1x16", "1x32"], "--sizes must be at least 3"),
        (["--budgets", "2e9", "1e9"], "--budgets must be rising"),
        (["--epochs", "0"], "--epochs must be above 0"),
        (["--report-only", "--out", "nowhere.json"], "run without --report-only first"),
        (["--readme", "LICENSE"], "<!-- scaling:begin -->"),
    ],
)
def test_bad_flags_give_one_clear_line(flags, message, run):
    assert_one_clear_line(run("pretraining/scaling_benchmark.py", *flags), message)
