"""A GPT that gives a text a label: the language model's body, and a small matrix in place of the vocabulary.

    ids → blocks → hidden vectors (tokens, d_model) → one vector of the text → score → a number for each label

*Which vector?* Attention is causal: only the last token has seen all of the text, so its vector is taken (`last`). In a
batch, short texts are filled up on the right, and the last column is then not the last token: reading it there is the
classic bug. The mean over all tokens (`mean`) mixes in vectors that have seen little.

A text begins after `<|endoftext|>`, as every document of pretraining did. What is longer than `max_length` loses its
beginning, or its end: film reviews keep their verdict for the end.

A classifier's folder is a model folder as any, so the language model in it can still be read, with the head beside it:

    classifier.json           labels, pooling, max_length, which side is cut
    classifier.safetensors    score.weight, (labels, d_model)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from gpt_model import GPT, load_model, load_tokenizer
from utils.devices import TrainingPrecision, autocast
from utils.files import read_json
from working_with_text_data.bytepair_enc import BytePairTokenizer

CONFIG, HEAD = "classifier.json", "classifier.safetensors"
Pooling = Literal["last", "mean"]
Cut = Literal["start", "end"]


@dataclass(frozen=True)
class ClassifierConfig:
    """What stands between a text and its label.

    Raises:
        ValueError: fewer than two labels, or no token would be left of a text.
    """

    labels: tuple[str, ...]
    """What the outputs are called."""
    pooling: Pooling = "last"
    """last: the vector of the last token; mean: that of all tokens."""
    max_length: int = 256
    """Tokens of a text that are read, `<|endoftext|>` in front among them."""
    cut: Cut = "start"
    """What a longer text loses."""

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise ValueError(f"a classifier needs two labels at least, got {len(self.labels)}")
        if self.max_length < 2:
            raise ValueError(f"max_length must be at least 2, got {self.max_length}")
        if self.pooling not in ("last", "mean") or self.cut not in ("start", "end"):
            raise ValueError(f"pooling is last or mean and cut is start or end, got {self.pooling!r} and {self.cut!r}")


class GPTClassifier(nn.Module):
    """A GPT with a head.

    Raises:
        ValueError: `max_length` is more than the model can see.
    """

    def __init__(self, gpt: GPT, config: ClassifierConfig) -> None:
        super().__init__()
        if config.max_length > gpt.config.context_length:
            raise ValueError(
                f"max_length {config.max_length} is more than the model's context of {gpt.config.context_length}"
            )
        self.gpt, self.config = gpt, config
        self.score = nn.Linear(gpt.config.d_model, len(config.labels), bias=False)
        nn.init.normal_(self.score.weight, std=0.02)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """The logits of the labels: (batch, labels).

        Args:
            ids: int64 (batch, tokens), filled up on the right with anything.
            lengths: int64 (batch,): tokens of each text.
        """
        return self.head(self.gpt.hidden_states(ids), lengths)

    def head(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """From vectors of tokens, (batch, tokens, d_model), to logits of labels, (batch, labels)."""
        rows = torch.arange(len(hidden), device=hidden.device)  # (batch,)
        if self.config.pooling == "last":
            pooled = hidden[rows, lengths - 1]  # (batch, d_model)
        else:
            real = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]  # (batch, tokens)
            total = (hidden * real[..., None]).sum(dim=1)  # (batch, d_model)
            pooled = total / lengths.clamp(min=1)[:, None]
        logits: Tensor = self.score(pooled)
        return logits


# --- texts to ids -----------------------------------------------------------------------------------------------------


def encode_texts(
    tokenizer: BytePairTokenizer, texts: Sequence[str], config: ClassifierConfig
) -> tuple[list[npt.NDArray[np.int64]], int]:
    """(ids of each text, how many texts were cut).

    Raises:
        ValueError: the tokenizer has no end-of-text token.
    """
    end, room = tokenizer.eot_token, config.max_length - 1
    encoded, cut = [], 0
    for ids in tokenizer.encode_batch(list(texts), disallowed_special=()):
        cut += len(ids) > room
        kept = ids[-room:] if config.cut == "start" else ids[:room]
        encoded.append(np.array([end, *kept], dtype=np.int64))
    return encoded, cut


def padded(rows: Sequence[npt.NDArray[np.int64]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(ids, lengths): int64 (rows, longest), filled up with zeros on the right, and (rows,)."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.zeros((len(rows), int(lengths.max())), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, lengths


@torch.no_grad()
def predict_logits(
    classifier: GPTClassifier,
    encoded: Sequence[npt.NDArray[np.int64]],
    batch_tokens: int = 8192,
    precision: TrainingPrecision = "auto",
) -> Tensor:
    """The logits of all texts in their order, float32 (texts, labels), on the CPU.

    Texts of about equal length are read together, as many as make `batch_tokens` tokens with what fills them up.
    """
    was_training, device = classifier.training, classifier.gpt.device
    classifier.eval()
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    logits = torch.empty(len(encoded), len(classifier.config.labels))
    at = 0
    while at < len(order):
        count = 1
        while at + count < len(order) and len(encoded[order[at + count]]) * (count + 1) <= batch_tokens:
            count += 1
        some = order[at : at + count]
        ids, lengths = (torch.from_numpy(array).to(device) for array in padded([encoded[i] for i in some]))
        with autocast(device, precision):
            logits[some] = classifier(ids, lengths).float().cpu()
        at += count
    classifier.train(was_training)
    return logits


# --- on disk ----------------------------------------------------------------------------------------------------------


def save_classifier(
    classifier: GPTClassifier,
    folder: Path | str,
    tokenizer: BytePairTokenizer,
    made_by: dict[str, Any] | None = None,
    gpt: GPT | None = None,
) -> None:
    """Writes the model folder, the head among it; whole or not at all.

    Args:
        gpt: stands in for `classifier.gpt`, where that has adapters.
    """
    head = save({"score.weight": classifier.score.weight.detach().cpu().contiguous()})
    config = json.dumps(asdict(classifier.config), indent=2, ensure_ascii=False) + "\n"
    (gpt or classifier.gpt).save_pretrained(folder, tokenizer, made_by, beside={CONFIG: config.encode(), HEAD: head})


def load_classifier(folder: Path | str, device: torch.device | str = "cpu") -> tuple[GPTClassifier, BytePairTokenizer]:
    """What `save_classifier` wrote, in evaluation mode.

    Raises:
        ValueError: there is no classifier, or it is damaged.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / HEAD).is_file():
        raise ValueError(f"{folder} holds no classifier: finetuning/classification/train_classifier.py makes one")
    content = read_json(folder / CONFIG)
    try:
        config = ClassifierConfig(**content | {"labels": tuple(content["labels"])})
        if not isinstance(content["labels"], list) or not all(isinstance(label, str) for label in config.labels):
            raise TypeError("its labels are no list of texts")
        if type(config.max_length) is not int:
            raise TypeError(f"max_length is {config.max_length!r}")
        head = load((folder / HEAD).read_bytes())["score.weight"]
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"the classifier in {folder} is damaged ({error})") from None
    classifier = GPTClassifier(load_model(folder, dtype=torch.float32), config)
    if head.shape != classifier.score.weight.shape:
        shapes = f"{tuple(head.shape)}, not {tuple(classifier.score.weight.shape)}"
        raise ValueError(f"the classifier in {folder} is damaged: its head is {shapes}")
    classifier.score.weight.data.copy_(head)
    return classifier.to(torch.device(device)).eval(), load_tokenizer(folder)
