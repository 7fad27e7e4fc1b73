"""How good is a model? The surprise at text that it has not seen, and the answers that it finds.

python gpt_model/evaluate.py --model runs/demo/model --text book.txt articles.parquet

python gpt_model/evaluate.py --model runs/demo/model --task hellaswag

The loss is the mean surprise at each next token, -ln p, in nats. It depends on the vocabulary: longer tokens are
harder to guess, and fewer. *Bits per byte* does not: all surprise, in bits, over the bytes that the tokens stand for.
A model that has learned nothing needs log2(vocab_size) bits a token; the text stored plainly needs 8 bits a byte.

    loss              nats / tokens
    perplexity        exp(nats / tokens): as unsure as between so many tokens
    bits per byte     nats / ln 2 / bytes: the size to which the model would compress a byte of the text
    word perplexity   exp(nats / words), words being what stands between blanks: what papers on WikiText report

All four are of the same sum of nats. Each document is judged by itself, its first token after `<|endoftext|>`, so that
every byte counts once; a tokenizer without that token leaves the first token of each document out. How texts beyond the
context are judged, and why the stride matters, is in `log_likelihood.py`; the questions are in `tasks.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_model.log_likelihood import Pair, default_stride, log_likelihoods, require_same_vocabulary, windows_of
from gpt_model.tasks import TASKS, Question, TaskName, judge, read_questions
from utils.devices import Precision, TrainingPrecision, autocast, describe_device, pick_device
from utils.errors import UserError, run_command
from utils.files import require_writable, write_json
from utils.tracking import provenance
from working_with_text_data.bytepair_enc.bpe import END_OF_TEXT
from working_with_text_data.corpora import TEXT_SUFFIXES, Document, open_corpus
from working_with_text_data.rows import ROW_SUFFIXES, read_column
from working_with_text_data.text_files import find_text_files

if TYPE_CHECKING:
    from gpt_model.gpt import GPT
    from working_with_text_data.bytepair_enc import BytePairTokenizer


def next_token_loss(model: GPT, inputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of `targets` under the model's predictions, in nats. Both int64 (batch, tokens)."""
    logits = model(inputs)  # (batch, tokens, vocab_size)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction=reduction)


def bytes_of_tokens(tokenizer: BytePairTokenizer) -> Tensor:
    """int64 (n_vocab,): bytes of text that each token stands for; 0 for special tokens, which are not in the text."""
    lengths = torch.zeros(tokenizer.n_vocab, dtype=torch.long)
    for token, i in tokenizer.ids.items():
        lengths[i] = len(token)
    return lengths


@torch.inference_mode()
def evaluate_windows(
    model: GPT, windows: Tensor, token_bytes: Tensor, batch_size: int = 16, precision: TrainingPrecision = "auto"
) -> tuple[float, float]:
    """(loss in nats per token, bits per byte) over fixed windows of text.

    Args:
        windows: int64 (windows, tokens + 1); the last id of each is only a target.
        token_bytes: what `bytes_of_tokens` gives.
    """
    was_training = model.training
    model.eval()
    nats = 0.0
    for ids in windows.split(batch_size):
        ids = ids.to(model.device)  # (batch, tokens + 1)
        with autocast(model.device, precision):
            nats += next_token_loss(model, ids[:, :-1], ids[:, 1:], reduction="sum").item()
    model.train(was_training)
    targets = windows[:, 1:]
    n_bytes = int(token_bytes[targets].sum())
    return nats / targets.numel(), nats / math.log(2) / max(n_bytes, 1)


@dataclass(frozen=True)
class TextFigures:
    """The sums over some text, and what is made of them."""

    nats: float
    """The surprise at all of it."""
    tokens: int
    bytes: int
    words: int
    documents: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """The number of equally probable tokens that would be as surprising."""
        return _exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """The same for every vocabulary that says the same."""
        return self.nats / math.log(2) / self.bytes

    @property
    def word_perplexity(self) -> float:
        """Perplexity of what stands between blanks; infinite where a text has none for pages."""
        return _exp(self.nats / max(self.words, 1))

    def as_dict(self) -> dict[str, float | int | None]:
        """All of it, for a report; None for what is infinite, which JSON does not know."""
        names = ("loss", "perplexity", "bits_per_byte", "word_perplexity")
        figures = {name: getattr(self, name) for name in names}
        return {**asdict(self), **{name: x if math.isfinite(x) else None for name, x in figures.items()}}


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def evaluate_documents(
    model: GPT,
    tokenizer: BytePairTokenizer,
    texts: Sequence[str],
    stride: int | None = None,
    batch_size: int = 16,
    precision: Precision = "float32",
    progress: str = "",
) -> TextFigures:
    """The figures of some documents, each judged by itself and whole.

    Args:
        stride: tokens by which a window moves on; half the model's context if not given.
        progress: the title of a progress bar; none without it.

    Raises:
        ValueError: there is no token to judge, the tokenizer is another model's, or the stride does not fit.
    """
    require_same_vocabulary(model, tokenizer)
    stride = default_stride(model) if stride is None else stride
    begin = [tokenizer.eot_token] if END_OF_TEXT in tokenizer.special_tokens else []
    token_bytes = bytes_of_tokens(tokenizer)
    windows: list[Pair] = []
    tokens = n_bytes = 0
    for text in texts:
        ids = begin + tokenizer.encode_ordinary(text)
        tokens += len(ids[1:])
        n_bytes += int(token_bytes[ids[1:]].sum())
        windows += windows_of(ids, model.config.context_length, stride)
    if not tokens:
        raise ValueError("there is no token to judge: the text is empty, or a single token without <|endoftext|>")
    nats = -sum(ln_p for ln_p, _ in log_likelihoods(model, windows, batch_size, precision, progress))
    return TextFigures(nats, tokens, n_bytes, sum(len(text.split()) for text in texts), len(texts))


def read_documents(path: Path, column: str = "text") -> Iterator[Document]:
    """The documents of a file, or of every file below a folder: texts, and rows with a text in `column`.

    Raises:
        UserError: no such path, or a folder without such a file.
        ValueError: a file is damaged, or a row has no such column; the message names it.
    """
    if not path.exists():
        raise UserError(f"--text {path}: there is no such file or folder")
    files = find_text_files(path, (*TEXT_SUFFIXES, *ROW_SUFFIXES)) if path.is_dir() else [path]
    if not files:
        raise UserError(f"--text {path} holds no {', '.join((*TEXT_SUFFIXES, *ROW_SUFFIXES))} file")
    for file in files:
        if file.name.lower().endswith(ROW_SUFFIXES):
            for number, text in enumerate(read_column(file, column), 1):
                yield Document(f"{file.name}, row {number}", text)
        else:
            yield from open_corpus(str(file))


@dataclass(frozen=True)
class Evaluate:
    """The flags of this script."""

    model: str = "runs/demo/model"
    """A model folder, or the name of a model on the hub: gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2."""
    text: tuple[Path, ...] = ()
    """Texts to judge: .txt, .md, .txt.gz, .jsonl, .jsonl.gz or .parquet files, or folders of these."""
    column: str = "text"
    """Where the text is in .jsonl and .parquet; each row is a document."""
    stride: int | None = None
    """Tokens by which a window moves on, up to the model's context: less is truer and slower. None is half of it."""
    task: TaskName | None = None
    """Questions to ask instead."""
    data: Path | None = None
    """With --task: a .jsonl or .parquet file of its rows; fetched from the hub if not given."""
    limit: int | None = None
    """Judge just the first documents, or questions: for a try."""
    batch_size: int = 16
    """Windows or answers at once."""
    precision: Precision = "float32"
    """bfloat16 is faster on some processors and a little less exact; auto takes it where it is fast."""
    weights: Literal["as-saved", "float32", "bfloat16", "int8"] = "as-saved"
    """Judge the model with its weights stored in fewer bytes: what does that cost it?"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    out: Path | None = None
    """A JSON file for the figures, and how they came about."""

    def __post_init__(self) -> None:
        if bool(self.text) == (self.task is not None):
            raise UserError("give either --text with files to judge, or --task with lambada or hellaswag")
        for flag, given, choice in (
            ("--stride", self.stride is not None, "--text"),
            ("--column", self.column != "text", "--text"),
            ("--data", self.data is not None, "--task"),
        ):
            if given and (choice == "--text") != bool(self.text):
                raise UserError(f"{flag} belongs to {choice}: leave it out")
        for name in ("stride", "limit", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


def main(options: Evaluate) -> None:
    from gpt_model.pretrained import load_model, load_tokenizer
    from gpt_model.weight_only import store_weights

    device = pick_device(options.device)
    if options.out is not None:
        require_writable(options.out.parent)
    texts = [d.text for path in options.text for d in read_documents(path, options.column)][: options.limit]
    questions = [] if options.task is None else read_questions(options.task, options.data, options.limit)
    model, tokenizer = load_model(options.model, device), load_tokenizer(options.model)
    if options.weights != "as-saved":
        model = store_weights(model, options.weights)
    where = describe_device(device, options.precision)
    print(f"{options.model}: {model.n_parameters:,} parameters, context {model.config.context_length}, {where}")
    if options.task is None:
        figures = judge_texts(model, tokenizer, texts, options)
    else:
        figures = ask(model, tokenizer, options.task, questions, options)
    if options.out is not None:
        write_json(options.out, provenance(model=options.model, weights=options.weights, device=where, **figures))
        print(f"Wrote {options.out}")


def judge_texts(model: GPT, tokenizer: BytePairTokenizer, texts: Sequence[str], options: Evaluate) -> dict[str, Any]:
    """Prints the figures of texts, and gives them for a report."""
    stride = options.stride or default_stride(model)
    result = evaluate_documents(model, tokenizer, texts, stride, options.batch_size, options.precision, "windows")
    print(f"{result.documents:,} documents, {result.words:,} words, {result.tokens:,} tokens, {result.bytes:,} bytes")
    print(f"nats per token   {result.loss:.4f}")
    print(f"perplexity       {result.perplexity:,.2f}")
    print(f"bits per byte    {result.bits_per_byte:.4f}")
    print(f"word perplexity  {result.word_perplexity:,.2f}")
    if stride > 1:
        print(f"Next: --stride {max(stride // 4, 1)} (here {stride}) gives each token more context, and takes longer")
    return {"text": [str(path) for path in options.text], "stride": stride, "figures": result.as_dict()}


def ask(
    model: GPT, tokenizer: BytePairTokenizer, name: TaskName, questions: Sequence[Question], options: Evaluate
) -> dict[str, Any]:
    """Prints the figures of a task, and gives them for a report."""
    task = TASKS[name]
    judged = judge(model, tokenizer, questions, options.batch_size, options.precision, task.title)
    figures = task.figures(questions, judged)
    print(f"{task.title}, {len(questions):,} questions")
    for figure, value in figures.items():
        if figure != "questions" and not figure.endswith("_stderr"):
            error = figures.get(f"{figure}_stderr")
            print(f"{figure:16s} {value:,.4f}" + ("" if error is None else f" ± {error:.4f}"))
    return {"task": name, "data": str(options.data or f"{task.hub}@{task.revision}"), "figures": figures}


if __name__ == "__main__":
    run_command(main, Evaluate)
