"""Which part of a GPT should learn? The same base, the same texts, one table.

python finetuning/classification/compare_classifiers.py --model runs/imdb/lm/model --data aclImdb_v1.tar.gz \
    --baselines runs/imdb/baselines.json

    head only          the base is a fixed reader; a matrix of (labels, d_model) learns
    last block + head  and one block with it
    LoRA               low-rank adapters in all blocks, and the head
    everything         all weights
    mean pooling       everything, with the mean of all vectors in place of the last token's
    from scratch       everything, from random weights: what pretraining was worth

Each is trained with some learning rates; the one with the lowest validation loss is measured on the test split. Runs
that are whole in `--runs`, with the same flags, are not done again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetuning.classification.labelled import DataOptions, read_labelled
from finetuning.classification.train_classifier import TrainClassifier, train_and_measure
from finetuning.report_tables import fits, require_figures
from gpt_model.pretrained import MADE_BY
from pretraining.distributed import join_ranks
from pretraining.run_options import refuse_another_run
from utils.benchmarking import describe_machine
from utils.devices import Precision
from utils.errors import UserError, run_command
from utils.files import read_json, require_writable, write_json
from utils.readme_tables import markdown_table, read_results, require_markers, write_block
from utils.tracking import REPOSITORY, provenance

RESULTS = REPOSITORY / "finetuning" / "results" / "classifiers"
README = REPOSITORY / "finetuning" / "README.md"
WAYS: dict[str, dict[str, Any]] = {
    "head only": {"learn": "head"},
    "last block + head": {"learn": "last-block"},
    "LoRA": {"lora": True},
    "everything": {},
    "everything, mean pooling": {"pooling": "mean"},
    "everything, from scratch": {"from_scratch": True},
}
RATES = {"head only": (1e-2, 3e-2), "LoRA": (1e-3, 3e-3)}  # the others have --rates


@dataclass(frozen=True)
class CompareClassifiers(DataOptions):
    """The flags of this script."""

    name: str | None = None
    """What the data is called in the table, and the name of the JSON file; as in --data if not given."""
    model: str = "runs/demo/model"
    """The base: a model folder, or a name on the hub."""
    ways: tuple[str, ...] = tuple(WAYS)
    """Those to compare."""
    rates: tuple[float, ...] = (3e-4, 1e-3)
    """Learning rates to choose from, where all or a part of the base learns."""
    epochs: float = 3.0
    """How often each text is learned from."""
    batch_size: int = 16
    """Texts in each step."""
    max_length: int | None = None
    """Tokens of a text that are read; what the base can see if not given."""
    precision: Precision = "auto"
    """Of the products; auto takes bfloat16 where the device is fast at it."""
    baselines: Path | None = None
    """What train_baselines.py wrote for the same data, for the same table."""
    runs: Path = Path("runs/classifiers")
    """The folder for the runs."""
    out: Path = RESULTS
    """The folder for NAME.json."""
    readme: Path = README
    """The README with the table, between <!-- classifiers:begin --> and <!-- classifiers:end -->."""
    report_only: bool = False
    """Make the table from the JSON files as they are."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    seed: int = 0
    """Decides the head's first weights and the order of the texts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := sorted(set(self.ways) - set(WAYS)):
            raise UserError(f"--ways {unknown[0]!r} is unknown: {', '.join(WAYS)} are there")
        if not self.ways or not self.rates or min(self.rates) <= 0:
            raise UserError("name one of --ways at least, and --rates above 0")
        if Path(self.called).name != self.called or self.called in ("", ".."):
            raise UserError(f"--name {self.called!r} must be the name of a file, without a folder")

    @property
    def called(self) -> str:
        """The data's name: imdb, or that of the file or folder."""
        return Path(self.data).name.split(".")[0] if self.name is None else self.name


def options_of(options: CompareClassifiers, way: str, rate: float) -> TrainClassifier:
    """The run of one way with one rate."""
    data = {name: getattr(options, name) for name in DataOptions.__dataclass_fields__}
    return TrainClassifier(
        **data,
        **WAYS[way],
        model=options.model,
        run=options.runs / options.called / way.replace(" ", "-").replace(",", "") / f"{rate:g}",
        learning_rate=rate,
        other_learning_rate=max(rate, 1e-3),
        epochs=options.epochs,
        batch_size=options.batch_size,
        max_length=options.max_length,
        precision=options.precision,
        device=options.device,
        seed=options.seed,
        resume="auto",
        keep_last=1,
        keep_best=0,
    )


def run_one(run: TrainClassifier, data_sha256: str) -> dict[str, Any]:
    """The figures of a run, which is trained if it is not whole yet.

    Args:
        data_sha256: of its texts, which can be others under the same name.

    Raises:
        UserError: it was interrupted.
    """
    done = run.run / "done.json"
    flags = {name: str(value) for name, value in asdict(run).items() if name not in ("run", "resume")}
    flags["data_sha256"] = data_sha256
    before = read_json(done) if done.is_file() else None
    if isinstance(before, dict) and before.get("flags") == flags and fits(table, _as_result(before.get("figures"))):
        return dict(before["figures"])
    try:
        refuse_another_run(run)
    except UserError as error:
        reason = str(error).partition(": ")[0]
        raise UserError(f"{reason}: choose another folder with --runs, or remove that one") from None
    with join_ranks(run.device) as ranks:
        ending, test = train_and_measure(run, ranks)
    if ending != "finished" or test is None:
        raise UserError("stopped: the same command goes on from here")
    metrics = read_json(run.run / "model" / "scratchbook.json")["metrics"]
    figures = {"learning_rate": run.learning_rate, "validation_loss": metrics["validation_loss"], "test": test}
    write_json(done, {"flags": flags, "figures": figures})
    return figures


def _as_result(figures: Any) -> dict[str, Any]:
    """A run alone, as something to make a table of."""
    return {"name": "", "baselines": {}, "ways": {"": figures}}


def table(results: Sequence[dict[str, Any]]) -> str:
    """A row for each linear baseline, and for each way to fine-tune."""
    rows = []
    for result in results:
        for name, one in result["baselines"].items():
            rows.append([result["name"], name, "", *_figures(one["test"], one["training_seconds"])])
        for name, one in result["ways"].items():
            test = one["test"]
            rows.append([result["name"], name, f"{one['learning_rate']:g}", *_figures(test, test["training_seconds"])])
    header = ["data", "classifier", "rate", "accuracy", "95 % of it", "ROC-AUC", "calibration error", "seconds"]
    return markdown_table(header, rows, "llrrrrrr")


def _figures(test: dict[str, Any], seconds: float) -> list[str]:
    interval = f"{test['accuracy_low']:.3f} to {test['accuracy_high']:.3f}"
    figures = [f"{test['accuracy']:.3f}", interval, f"{test['roc_auc']:.3f}", f"{test['calibration_error']:.3f}"]
    return [*figures, f"{seconds:,.0f}"]


def main(options: CompareClassifiers) -> None:
    require_markers(options.readme, "classifiers")
    path = options.out / f"{options.called}.json"
    require_figures(options.out, table, replaced=None if options.report_only else path)
    if not options.report_only:
        require_writable(options.out)
        data_sha256 = read_labelled(options).summary["sha256"]
        baselines, base = baselines_of(options, data_sha256), _metrics_of(options.model)
        ways = {}
        for way in options.ways:
            found = []
            for rate in RATES.get(way, options.rates):
                print(f"\n=== {way}, learning rate {rate:g}", flush=True)
                found.append(run_one(options_of(options, way, rate), data_sha256))
            ways[way] = min(found, key=lambda one: one["validation_loss"])
        results = {"name": options.called, "baselines": baselines, "ways": ways, "base": base, "epochs": options.epochs}
        write_json(path, results | {"machine": describe_machine(), "made_by": provenance()})
        print(f"Wrote {path}")
    found_table = table(read_results(options.out))
    print(found_table)
    write_block(options.readme, "classifiers", found_table)
    print(f"Wrote {options.readme}")


def baselines_of(options: CompareClassifiers, data_sha256: str) -> dict[str, Any]:
    """What train_baselines.py found on the same texts; nothing if it is not asked for.

    Raises:
        UserError: there is no such file, or it is of other texts.
    """
    if options.baselines is None:
        return {}
    again = f"make it anew with python finetuning/classification/train_baselines.py --data {options.data}"
    if not options.baselines.is_file():
        raise UserError(f"no file {options.baselines}: {again}")
    found = read_json(options.baselines)
    data = found.get("data") if isinstance(found, dict) else None
    if not isinstance(data, dict) or data.get("sha256") != data_sha256:
        raise UserError(f"{options.baselines} is of other texts than --data {options.data}: {again}")
    baselines = found.get("baselines")
    if not fits(table, {"name": "", "baselines": baselines, "ways": {}}):
        raise UserError(f"{options.baselines} is damaged: {again}")
    return dict(baselines)


def _metrics_of(model: str) -> Any:
    """What a model folder of ours says of its training."""
    path = Path(model) / MADE_BY
    made_by = read_json(path) if path.is_file() else {}
    if not isinstance(made_by, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return made_by.get("metrics", {})


if __name__ == "__main__":
    run_command(main, CompareClassifiers)
