"""Fine-tunes a GPT to tell labels of texts apart, and measures it on texts that it has never seen.

python finetuning/classification/train_classifier.py --model runs/demo/model --run runs/reviews

python finetuning/classification/train_classifier.py --data aclImdb_v1.tar.gz --model gpt2 --run runs/imdb

What learns is chosen by `--learn` and `--lora`; `--from-scratch` leaves the base's shape and takes its weights away,
which shows what they were worth. The best model by validation loss is measured on the test split at the end, once.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetuning.classification.classifier import (
    ClassifierConfig,
    Cut,
    GPTClassifier,
    Pooling,
    encode_texts,
    load_classifier,
    padded,
    predict_logits,
    save_classifier,
)
from finetuning.classification.labelled import SPLITS, DataOptions, LabelledText, describe, read_labelled
from finetuning.classification.metrics import most_confident_errors, report, save_picture
from finetuning.lora import add_lora, lora_layers, merged_weights, save_adapter
from finetuning.tuning import Arrays, ExampleBatches, Tuning, TuningOptions, blocks_of, exit_unless_finished, quoted
from gpt_model import GPT, load_model, load_tokenizer
from pretraining.distributed import Ranks, join_ranks
from pretraining.run_options import alone_with
from pretraining.training_loop import Ending, Objective, TrainingLoop
from utils.errors import UserError, run_command
from utils.files import write_json, write_text
from utils.seeding import seed_everything
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.token_shards import IGNORE


@dataclass(frozen=True)
class TrainClassifier(TuningOptions, DataOptions):
    """The flags of this script."""

    run: Path = Path("runs/classifier")
    """The folder for everything that the run writes."""
    learn: Literal["all", "last-block", "head"] = "all"
    """What is trained besides the head: everything; last block and last norm; nothing. --lora is a fourth way."""
    from_scratch: bool = False
    """Begin from random weights of the base's shape."""
    pooling: Pooling = "last"
    """The vector of a text: that of its last token, or the mean of all."""
    max_length: int | None = None
    """Tokens of a text that are read; what the base can see if not given."""
    cut: Cut = "start"
    """What a longer text loses."""
    eval_texts: int = 2000
    """Validation texts to measure on along the way, and at the end."""

    def __post_init__(self) -> None:
        TuningOptions.__post_init__(self)
        DataOptions.__post_init__(self)
        if self.lora and self.learn != "all":
            raise UserError(f"--lora trains adapters and the head: leave out --learn {self.learn}")
        if self.learn == "head" and self.optimizer != "adamw":
            raise UserError(
                f"--optimizer {self.optimizer} is for the blocks' matrices, and with --learn head none of them learns: "
                "leave it out"
            )
        if self.lora and self.from_scratch:
            raise UserError("--lora adapts weights that are there, and --from-scratch takes them away: choose one")
        if self.max_length is not None and self.max_length < 2:
            raise UserError(f"--max-length must be at least 2 tokens, got {self.max_length}")
        if self.eval_texts < 2:
            raise UserError(f"--eval-texts must be at least 2, got {self.eval_texts}")


def make_classifier(options: TrainClassifier, labels: tuple[str, ...]) -> tuple[GPTClassifier, BytePairTokenizer]:
    """The base with a new head; what is not to be trained asks for no gradient.

    Raises:
        UserError, ValueError: there is no such base, it has no tokenizer, or sees too little.
    """
    gpt, tokenizer = load_model(options.model, dtype=torch.float32), load_tokenizer(options.model)
    seed_everything(options.seed)
    if options.from_scratch:
        gpt = type(gpt)(gpt.config)
    length = gpt.config.context_length if options.max_length is None else options.max_length
    classifier = GPTClassifier(gpt, ClassifierConfig(labels, options.pooling, length, options.cut))
    if options.lora:
        add_lora(gpt, options.adapters())
    elif options.learn != "all":
        gpt.requires_grad_(False)
        if options.learn == "last-block":
            gpt.transformer.blocks[-1].requires_grad_(True)
            gpt.transformer.ln_f.requires_grad_(True)
    return classifier.train(), tokenizer


class LabelLoss(Objective):
    """The surprise at the right labels, summed over a batch, in nats."""

    def __init__(self, classifier: GPTClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self._body: Any = classifier.gpt.hidden_states

    def forward(self, ids: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        """`ids` (batch, tokens); `labels` and `lengths` (batch,), with `IGNORE` where a row holds no text."""
        logits = self.classifier.head(self._body(ids), lengths).float()  # (batch, labels)
        return F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE)

    def compile_parts(self) -> None:
        """The body; batches have many lengths, so kernels are made for any."""
        self._body = torch.compile(self.classifier.gpt.hidden_states, dynamic=True)


class Classification:
    """The `Task` of fine-tuning for labels."""

    def __init__(self, options: TrainClassifier, ranks: Ranks) -> None:
        self.options = options
        self.texts = read_labelled(options)
        self.model: nn.Module
        self.classifier, self.tokenizer = make_classifier(options, self.texts.labels)
        self.classifier.to(ranks.device)
        self.model, self.blocks = self.classifier, blocks_of(self.classifier.gpt)
        self.objective: Objective = LabelLoss(self.classifier)
        config = self.classifier.config
        self.encoded: dict[str, list[npt.NDArray[np.int64]]] = {}
        self.cut: dict[str, int] = {}
        for split in SPLITS:
            texts = [item.text for item in self.texts.split(split)]
            self.encoded[split], self.cut[split] = encode_texts(self.tokenizer, texts, config)
        self.labels = {split: np.array([item.label for item in self.texts.split(split)]) for split in SPLITS}
        lengths = [len(ids) for ids in self.encoded["train"]]
        self.examples = ExampleBatches(lengths, options.batch_size, options.seed)
        self.data = self.texts.summary | {"cut": self.cut, "max_length": config.max_length}
        self.data["fingerprint"] = self._fingerprint()

    def batch(self, step: int, rank: int, ranks: int) -> Arrays:
        """ids (batch, tokens), labels and lengths (batch,)."""
        chosen = self.examples(step)
        end = np.array([self.tokenizer.eot_token], dtype=np.int64)  # where the epoch's last batch has no text left
        ids, lengths = padded([self.encoded["train"][i] if i >= 0 else end for i in chosen])
        labels = np.where(chosen >= 0, self.labels["train"][chosen], IGNORE)
        share = slice(rank * len(chosen) // ranks, (rank + 1) * len(chosen) // ranks)
        return ids[share], labels[share], lengths[share]

    def _fingerprint(self) -> str:
        """Of all that is learned from and measured on: 16 hexadecimal digits."""
        digest = hashlib.sha256(self.tokenizer.fingerprint.encode())
        for split in SPLITS:
            for ids, label in zip(self.encoded[split], self.labels[split], strict=True):
                digest.update(f"{split} {label} ".encode() + ids.tobytes())
        return digest.hexdigest()[:16]

    def probabilities(self, split: str, count: int | None = None) -> npt.NDArray[np.float32]:
        """What the classifier, as it is, says of the first `count` texts of a split: (texts, labels)."""
        logits = predict_logits(self.classifier, self.encoded[split][:count], precision=self.options.precision)
        return logits.softmax(dim=1).numpy()

    def evaluate(self, loop: TrainingLoop, last: bool) -> dict[str, float]:
        """Loss and accuracy on validation texts."""
        count = self.options.eval_texts
        logits = predict_logits(self.classifier, self.encoded["validation"][:count], precision=self.options.precision)
        labels = torch.from_numpy(self.labels["validation"][:count])
        accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
        return {"validation_loss": F.cross_entropy(logits, labels).item(), "validation_accuracy": accuracy}

    def save(self, folder: Path, made_by: dict[str, Any]) -> None:
        """The model folder with the head; adapters are merged in it, and kept alone beside it."""
        gpt = self.classifier.gpt
        if lora_layers(gpt):
            save_adapter(gpt, folder.with_name("adapter"), self.options.adapters(), self.options.model)
            plain: GPT = type(gpt)(gpt.config)
            plain.load_state_dict({name: weight.cpu() for name, weight in merged_weights(gpt).items()})
            gpt = plain
        save_classifier(self.classifier, folder, self.tokenizer, made_by, gpt)

    def sample(self) -> str:
        """Three validation texts with their labels and what the classifier says."""
        probabilities = self.probabilities("validation", 3)
        return "\n".join(
            _shown(item, row, self.texts.labels)
            for item, row in zip(self.texts.validation[:3], probabilities, strict=True)
        )


def _shown(item: LabelledText, row: npt.NDArray[np.float32], labels: tuple[str, ...], width: int = 160) -> str:
    text = " ".join(item.text.split())
    end = text if len(text) <= width else "…" + text[-width:]
    return f"[{labels[item.label]}; {labels[int(row.argmax())]} with {row.max():.0%}] {end}"


def measure_on_test(task: Classification, run: Path, seconds: float) -> dict[str, Any]:
    """The kept model's figures on the test split, written to `run`: test.json, test.png, errors.txt."""
    device = task.classifier.gpt.device
    task.classifier, _ = load_classifier(run / "model", device)
    start = time.perf_counter()
    probabilities, truth = task.probabilities("test"), task.labels["test"]
    took = time.perf_counter() - start
    figures = report(truth, probabilities)
    figures |= {"training_seconds": seconds, "test_texts_per_second": len(truth) / took}
    write_json(run / "test.json", figures)
    save_picture(run / "test.png", truth, probabilities, task.texts.labels)
    errors = [
        _shown(task.texts.test[i], probabilities[i], task.texts.labels, 1000)
        for i in most_confident_errors(truth, probabilities)
    ]
    write_text(run / "errors.txt", "\n\n".join(errors) + "\n")
    return figures


def train_and_measure(options: TrainClassifier, ranks: Ranks) -> tuple[Ending, dict[str, Any] | None]:
    """The whole run; on rank 0, and if it came to its end, with the figures on the test split."""
    with alone_with(options, ranks):
        return _train_and_measure(options, ranks)


def _train_and_measure(options: TrainClassifier, ranks: Ranks) -> tuple[Ending, dict[str, Any] | None]:
    task = Classification(options, ranks)
    tuning = Tuning(options, ranks, task)
    if ranks.is_first:
        print(describe(task.texts))
        for split in SPLITS:
            share = task.cut[split] / len(task.encoded[split])
            print(f"  {task.cut[split]:,} texts of {split} ({share:.0%}) lose their {options.cut} beyond "
                  f"{task.classifier.config.max_length} tokens")  # fmt: skip
    ending = tuning.train()
    if ending != "finished" or not ranks.is_first:
        return ending, None
    return ending, measure_on_test(task, options.run, tuning.loop.seconds)


def main(options: TrainClassifier) -> None:
    with join_ranks(options.device) as ranks:
        ending, figures = train_and_measure(options, ranks)
    if figures is not None:
        low, high = figures["accuracy_low"], figures["accuracy_high"]
        print(f"Test: accuracy {figures['accuracy']:.3f} ({low:.3f} to {high:.3f}), F1 {figures['f1']:.3f}, ", end="")
        print(f"ROC-AUC {figures['roc_auc']:.3f}, calibration error {figures['calibration_error']:.3f}")
        print(f"Wrote {options.run}: test.json, test.png, errors.txt")
        command = "python finetuning/classification/predict.py"
        print(f'Next: {command} --model {quoted(options.run / "model")} --text "What a film."')
    exit_unless_finished(ending)


if __name__ == "__main__":
    run_command(main, TrainClassifier)
