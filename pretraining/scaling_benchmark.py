"""How large a model, and how many tokens, for a given amount of compute? Five sizes, measured on one core.

python pretraining/scaling_benchmark.py

Training costs about C = 6 · N · D FLOPs: N weights, D tokens, 2 for each weight forward and 4 backward. For each budget
C, every size gets the tokens that it can pay with it, in a run of its own whose schedule ends there. Then

    L(N, D) = E + A / N^α + B / D^β                 (Hoffmann et al. 2022, equation 2)

is fitted to all losses. For given α and β the law is *linear* in E, A and B, so a search over a grid of two exponents,
with a little least squares in each cell, finds the best fit without a start to guess. The least loss at C = 6 · N · D
is at a size that grows with C to the power β / (α + β).

The text is Python's documentation by characters, about 1.7 million of them; no run reads more than about once through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_model import GPT
from pretraining.bare_loop import Ids, Windows, config_of, train_on_ids, whole_windows
from pretraining.pretrain import PRESETS, Pretrain
from pretraining.training_loop import flops_per_token
from utils.benchmarking import describe_machine
from utils.errors import UserError, run_command
from utils.files import read_json, require_writable, write_json
from utils.plots import save_figure
from utils.readme_tables import markdown_table, require_markers, write_block
from utils.tracking import REPOSITORY, provenance
from working_with_text_data.corpora import CorpusOptions

RESULTS = REPOSITORY / "pretraining" / "results" / "scaling.json"
VOCAB_SIZE = 96  # the newline, and the 95 characters from the blank to the tilde
HEAD_DIM = 16
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScalingBenchmark:
    """The flags of this script."""

    corpus: str = "python-docs"
    """Python's documentation, or the path of a file or folder of texts."""
    sizes: tuple[str, ...] = ("1x32", "2x48", "3x64", "4x96", "5x128")
    """Models, as blocks x width; the width is a multiple of 16, which is a head. The largest is held out once."""
    budgets: tuple[float, ...] = (1e11, 2e11, 4e11, 8e11, 1.6e12)
    """Compute of a run in FLOPs, rising."""
    least_steps: int = 100
    """A size goes without a budget that pays fewer steps than these: the law is not about beginnings."""
    epochs: float = 1.1
    """A size goes without a budget that reads the text more often than this."""
    batch_size: int = 8
    """Windows in each step."""
    context_length: int = 64
    """Characters in a window."""
    seed: int = 0
    """Decides the weights and the order of the data."""
    out: Path = RESULTS
    """The JSON file to write; the picture is beside it."""
    readme: Path | None = None
    """A README to write the table to, between <!-- scaling:begin --> and <!-- scaling:end -->."""
    report_only: bool = False
    """Make the picture and the table from the JSON file as it is."""

    def __post_init__(self) -> None:
        for size in self.sizes:
            blocks, _, width = size.partition("x")
            if not (blocks.isdigit() and width.isdigit() and int(blocks) and int(width)) or int(width) % HEAD_DIM:
                raise UserError(f"--sizes are blocks x width, such as 2x48, the width a multiple of 16; got {size!r}")
        if len(set(self.sizes)) < 3:
            raise UserError("--sizes must be at least 3: the law is fitted without the largest, too")
        if not self.budgets or list(self.budgets) != sorted(set(self.budgets)) or not self.budgets[0] > 0:
            raise UserError("--budgets must be rising numbers of FLOPs")
        for name in ("least_steps", "epochs", "batch_size", "context_length"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")


# --- the law


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^α + B / D^β, in nats."""

    E: float
    """What no size and no text takes away."""
    A: float
    B: float
    alpha: float
    """Exponent of the size N."""
    beta: float
    """Exponent of the tokens D."""

    def loss(self, n: float | Floats, d: float | Floats) -> float | Floats:
        """The loss of `n` weights after `d` tokens."""
        return self.E + self.A / n**self.alpha + self.B / d**self.beta

    @property
    def size_exponent(self) -> float:
        """a in N_best ~ C^a (Hoffmann et al. 2022, equation 4); of the tokens it is 1 - a."""
        return self.beta / (self.alpha + self.beta)

    def best_size(self, flops: float) -> float:
        """The N of the least loss where 6 · N · D = `flops`."""
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return scale * (flops / 6) ** self.size_exponent


def fit_cells(n: Floats, d: Floats, losses: Floats, alpha: Floats, beta: Floats) -> tuple[Floats, Floats]:
    """Least squares of the relative error in E, A and B, for many pairs of exponents at once.

    Args:
        n, d, losses: (runs,) each.
        alpha, beta: (cells,) each.

    Returns:
        The coefficients (cells, 3), and the sums of squares (cells,), infinite where one is not above 0. Where E would
        be below 0 it is 0, and the other two are fitted alone.
    """
    columns = np.stack(
        [np.ones((len(alpha), len(n))), n ** -alpha[:, None], d ** -beta[:, None]], axis=2
    )  # (cells, runs, 3)
    columns = columns / losses[:, None]  # (cells, runs, 3) / (runs, 1): every run's error as a share of its loss

    def solve(some: Floats) -> Floats:
        across = some.transpose(0, 2, 1)  # (cells, columns, runs)
        ridge = 1e-12 * np.eye(some.shape[2])  # resampled runs can have one size alone
        solved = np.linalg.solve(across @ some + ridge, across @ np.ones((len(losses), 1)))  # (cells, columns, 1)
        return np.asarray(solved[:, :, 0], dtype=np.float64)

    all_three = solve(columns)  # (cells, 3)
    without_e = np.pad(solve(columns[:, :, 1:]), ((0, 0), (1, 0)))  # (cells, 2) -> (cells, 3)
    coefficients = np.where(all_three[:, :1] > 0, all_three, without_e)
    errors = (columns @ coefficients[:, :, None])[:, :, 0] - 1  # (cells, runs)
    squares = (errors**2).sum(axis=1)  # (cells,)
    return coefficients, np.where((coefficients[:, 1:] > 0).all(axis=1), squares, np.inf)


def fit_law(n: Floats, d: Floats, losses: Floats, cells: int = 31, zooms: int = 4) -> Law:
    """The law with the least squared relative error: the best cell of a grid of exponents, and finer grids around it.

    Sizes and tokens are measured in units of their geometric means while fitting, so that no column is tiny.

    Raises:
        ValueError: fewer runs than the five coefficients, or no cell has positive ones.
    """
    if len(losses) < 5:
        raise ValueError(f"a law of five coefficients needs at least 5 runs, got {len(losses)}")
    n0, d0 = float(np.exp(np.log(n).mean())), float(np.exp(np.log(d).mean()))
    low, high = np.array([0.02, 0.02]), np.array([2.0, 2.0])
    for _ in range(zooms):
        axes = [np.linspace(low[i], high[i], cells) for i in range(2)]
        alpha, beta = (grid.ravel() for grid in np.meshgrid(*axes, indexing="ij"))  # (cells · cells,)
        coefficients, squares = fit_cells(n / n0, d / d0, losses, alpha, beta)
        best = int(squares.argmin())
        if not np.isfinite(squares[best]):
            raise ValueError("no exponents from 0.02 to 2 give a law with positive coefficients: are these losses?")
        middle, step = np.array([alpha[best], beta[best]]), 1.5 * (high - low) / (cells - 1)
        low, high = np.maximum(middle - step, 0.02), np.minimum(middle + step, 2.0)
    (e, a, b), (of_n, of_d) = coefficients[best].tolist(), middle.tolist()
    return Law(e, a * n0**of_n, b * d0**of_d, of_n, of_d)


def bootstrap_exponents(n: Floats, d: Floats, losses: Floats, times: int = 200, seed: int = 0) -> list[float]:
    """The size exponents of fits to runs drawn with replacement, sorted; those without a fit are left out."""
    generator, exponents = np.random.default_rng(seed), []
    for _ in range(times):
        drawn = generator.integers(0, len(losses), len(losses))
        try:
            exponents.append(fit_law(n[drawn], d[drawn], losses[drawn], cells=15, zooms=3).size_exponent)
        except ValueError:
            continue
    return sorted(exponents)


# --- the runs


def characters(text: str) -> Ids:
    """The ids of the newline (0) and of the characters from the blank (1) to the tilde (95); others are left out."""
    codes = np.frombuffer(text.encode("ascii", "ignore"), dtype=np.uint8)
    codes = codes[(codes == 10) | ((codes >= 32) & (codes < 127))]
    return np.where(codes == 10, 0, codes - 31).astype(np.uint16)


def read_text(options: ScalingBenchmark) -> tuple[Ids, Windows]:
    """The training text, and windows spread evenly over the validation text.

    Raises:
        UserError: there is too little text.
    """
    parts: dict[str, list[str]] = {"train": [], "validation": []}
    for side, document in CorpusOptions(corpus=options.corpus).split_documents():
        parts[side].append(document.text)
    train, validation = (characters("\n\n".join(parts[side])) for side in ("train", "validation"))
    inputs, targets = whole_windows(validation, options.context_length)
    if len(inputs) < options.batch_size or len(train) < options.batch_size * (options.context_length + 1):
        raise UserError(f"--corpus {options.corpus} has too little text: {len(train):,} characters to train on")
    every = max(1, len(inputs) // 512)
    return train, (inputs[::every], targets[::every])


def recipe_of(options: ScalingBenchmark, size: str, steps: int) -> Pretrain:
    """The preset `modern` in a size. The rate falls as the width grows; 0.02 at a width of 64."""
    blocks, width = map(int, size.split("x"))
    rate = 0.02 * 64 / width
    return replace(
        PRESETS["modern"],
        n_layer=blocks,
        n_head=width // HEAD_DIM,
        d_model=width,
        context_length=options.context_length,
        batch_size=options.batch_size,
        steps=steps,
        learning_rate=rate,
        other_learning_rate=rate,
        precision="float32",
        seed=options.seed,
    )


def measure(options: ScalingBenchmark) -> list[dict[str, Any]]:
    """A row for each size and budget: size, weights, tokens, FLOPs and loss."""
    train, validation = read_text(options)
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        model = GPT(config_of(recipe_of(options, size, 1), VOCAB_SIZE))
        per_step = flops_per_token(model) * options.batch_size * options.context_length
        for budget in options.budgets:
            steps = round(budget / per_step)
            tokens = steps * options.batch_size * options.context_length
            if steps < options.least_steps or tokens > options.epochs * len(train):
                continue
            recipe = recipe_of(options, size, steps)
            name = f"{size}, {tokens:,} tokens"
            loss = train_on_ids(recipe, VOCAB_SIZE, train, validation, name=name).loss
            row = {"size": size, "parameters": model.n_parameters, "tokens": tokens, "budget": budget}
            rows.append(row | {"flops": steps * per_step, "loss": loss})
            print(f"{size}: {model.n_parameters:,} weights, {tokens:,} tokens: {loss:.3f} nats", flush=True)
    if len(rows) < 5:
        raise UserError(f"only {len(rows)} runs fit --budgets, --least-steps and --epochs; the law needs 5: widen them")
    return rows


def as_arrays(rows: Sequence[dict[str, Any]]) -> tuple[Floats, Floats, Floats]:
    """Weights, tokens and losses of the rows: (runs,) each."""
    n, d, losses = (np.array([row[key] for row in rows], dtype=np.float64) for key in ("parameters", "tokens", "loss"))
    return n, d, losses


def analyse(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fit to all runs, the exponent's middle 90 %, and how a fit without the largest size predicts that one."""
    law = fit_law(*as_arrays(rows))
    exponents = bootstrap_exponents(*as_arrays(rows))
    found: dict[str, Any] = {"fit": asdict(law), "size_exponent": law.size_exponent}
    if exponents:
        found["size_exponent_90"] = [exponents[len(exponents) // 20], exponents[-1 - len(exponents) // 20]]
    largest = max(row["parameters"] for row in rows)
    smaller = [row for row in rows if row["parameters"] < largest]
    if len(smaller) >= 5:
        without = fit_law(*as_arrays(smaller))
        found["fit_without_largest"] = asdict(without)
        found["held_out"] = [
            {"tokens": row["tokens"], "loss": row["loss"], "predicted": without.loss(row["parameters"], row["tokens"])}
            for row in rows
            if row["parameters"] == largest
        ]
    return found


# --- what is shown


def best_of_law(law: Law, rows: Sequence[dict[str, Any]], budget: float) -> tuple[float, float]:
    """(size, loss) where the law is lowest, for what is left of a budget when attention's own products are paid.

    Args:
        rows: the runs with that budget; they tell the share of it that went into 6 · N · D.
    """
    share = sum(6 * row["parameters"] * row["tokens"] / row["flops"] for row in rows) / len(rows)
    size = law.best_size(share * budget)
    return size, float(law.loss(size, share * budget / 6 / size))


def table(results: dict[str, Any]) -> str:
    """A row for each budget: the best of the sizes that were tried, and the law's own best size."""
    law, rows = Law(**results["fit"]), []
    for budget in sorted({row["budget"] for row in results["points"]}):
        tried = [row for row in results["points"] if row["budget"] == budget]
        best = min(tried, key=lambda row: row["loss"])
        inside = min(r["parameters"] for r in tried) < best["parameters"] < max(r["parameters"] for r in tried)
        size = f"{best['parameters']:,}{'' if inside else ' (at the edge)'}"
        of_fit = f"{best_of_law(law, tried, budget)[0]:,.0f}"
        rows.append([f"{budget:.1e}", str(len(tried)), size, f"{best['tokens']:,}", f"{best['loss']:.3f}", of_fit])
    header = ["FLOPs", "sizes tried", "best of them, weights", "its tokens", "its loss", "the fit's best, weights"]
    text = markdown_table(header, rows, "rrrrrr")
    low, high = results.get("size_exponent_90", (float("nan"),) * 2)
    text += (
        f"\n\nFit: L = {law.E:.2f} + {law.A:.3g} / N^{law.alpha:.2f} + {law.B:.3g} / D^{law.beta:.2f}; "
        f"best N ~ C^{law.size_exponent:.2f} (90 % of the bootstrap: {low:.2f} to {high:.2f})."
    )
    if held := results.get("held_out"):
        off = [abs(row["predicted"] / row["loss"] - 1) for row in held]
        text += f" Without the largest size, the fit predicts it {max(off):.1%} off at most."
    return text


def draw(results: dict[str, Any], path: Path) -> None:
    """Loss against compute for each size, and against size for each budget."""
    from matplotlib.figure import Figure  # here, because it takes a second that most commands need not wait

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    points, law = results["points"], Law(**results["fit"])
    sizes = sorted({row["parameters"] for row in points})
    for i, size in enumerate(sizes):
        some = sorted((row for row in points if row["parameters"] == size), key=lambda row: row["flops"])
        grey = str(0.7 * (1 - i / max(1, len(sizes) - 1)))
        x = [row["flops"] for row in some]
        left.plot(x, [row["loss"] for row in some], marker="osv^DxP*"[i % 8], color=grey, label=f"{size:,} weights")
    for i, budget in enumerate(sorted({row["budget"] for row in points})):
        some = sorted((row for row in points if row["budget"] == budget), key=lambda row: row["parameters"])
        x, y = [row["parameters"] for row in some], [row["loss"] for row in some]
        right.plot(x, y, marker="osv^DxP*"[i % 8], color="0.3", linestyle="--", label=f"{budget:.1e} FLOPs")
        right.plot(*best_of_law(law, some, budget), "*", color="black", markersize=10)
    left.set(xscale="log", xlabel="compute C (FLOPs)", ylabel="validation loss (nats per character)")
    right.set(xscale="log", xlabel="weights N", ylabel="validation loss (nats per character)")
    right.set_title("one line a budget; stars: the fit's best size", fontsize=9)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    save_figure(path, figure)


def main(options: ScalingBenchmark) -> None:
    if options.readme is not None:
        require_markers(options.readme, "scaling")
    if options.report_only:
        if not options.out.is_file():
            raise UserError(f"no figures at {options.out}: run without --report-only first")
    else:
        require_writable(options.out.parent)
        points = measure(options)
        flags = {k: str(v) for k, v in vars(options).items() if k not in ("corpus", "out", "readme", "report_only")}
        about = {"options": flags, "machine": describe_machine(), "made_by": provenance()}
        write_json(options.out, {"points": points, **about})  # what took long is kept, whatever the fit says
        write_json(options.out, {"points": points, **analyse(points), **about})
        print(f"Wrote {options.out}")
    results = read_json(options.out)
    draw(results, options.out.with_suffix(".png"))
    print(f"Wrote {options.out.with_suffix('.png')}\n\n{table(results)}")
    if options.readme is not None:
        write_block(options.readme, "scaling", table(results))
        print(f"Wrote {options.readme}")


if __name__ == "__main__":
    run_command(main, ScalingBenchmark)
