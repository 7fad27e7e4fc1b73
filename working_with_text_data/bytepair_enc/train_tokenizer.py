"""Trains a byte-pair tokenizer on a corpus and shows what it learned.

python working_with_text_data/bytepair_enc/train_tokenizer.py --corpus python-docs --vocab-size 2048
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from utils.errors import UserError, run_command
from utils.files import require_writable
from utils.parallel import usable_cores
from working_with_text_data.bytepair_enc import GPT2_PATTERN, GPT4_PATTERN, GPT4O_PATTERN, BytePairTokenizer
from working_with_text_data.bytepair_enc.tokenizer_json import recover_pair, require_read_alike
from working_with_text_data.corpora import CorpusOptions

PATTERNS = {"gpt2": GPT2_PATTERN, "gpt4": GPT4_PATTERN, "gpt4o": GPT4O_PATTERN}


@dataclass(frozen=True)
class TrainTokenizer(CorpusOptions):
    """The flags of this script."""

    out: Path = Path("runs/demo/tokenizer.json")
    """Where the tokenizer goes."""
    vocab_size: int = 2048
    """Tokens in the vocabulary: 256 bytes, then one a merge, then <|endoftext|>."""
    pattern: str = "gpt4"
    """How text is cut before merging: gpt2, gpt4, gpt4o, or a regular expression of your own."""
    min_frequency: int = 2
    """Pairs that stand in the corpus fewer times are not merged."""
    max_pieces: int = 20_000_000
    """Distinct words to remember; of more, the rarest are forgotten, which bounds the memory."""
    processes: int = field(default_factory=usable_cores)
    """Processes that count words; any number gives the same tokenizer."""
    checkpoint: Path | None = None
    """A file that is kept up to date meanwhile: the same command goes on from it after a stop."""
    sentence: str = "The quick brown fox doesn't jump over 12345 lazy dogs."
    """Shown as the tokenizer splits it."""


def show(piece: bytes) -> str:
    """A token for people: spaces as a middle dot, line ends as ⏎, bytes that are no whole character as \\x.."""
    return piece.decode("utf-8", "backslashreplace").replace(" ", "·").replace("\n", "⏎")


def main(options: TrainTokenizer) -> None:
    if options.out.is_dir():
        raise UserError(f"--out {options.out} is a folder: give a file name such as {options.out / 'tokenizer.json'}")
    if options.checkpoint is not None:
        if options.checkpoint.is_dir() or options.checkpoint == Path("."):
            raise UserError(f"--checkpoint {options.checkpoint} is a folder: give a file name such as state.gz")
        if options.checkpoint.resolve() == options.out.resolve():
            raise UserError("--checkpoint and --out are the same file: give two names")
        require_writable(options.checkpoint.parent)
    pattern = require_read_alike(PATTERNS.get(options.pattern, options.pattern))
    documents = options.split_documents()
    require_writable(options.out.parent)
    print(f"Training a tokenizer of {options.vocab_size:,} tokens on the training documents of {options.corpus}")

    held_out: list[str] = []

    def training_texts() -> Iterator[str]:
        for split, document in tqdm(documents, desc="reading", unit=" documents", disable=None):
            if split == "train":
                yield document.text
            elif sum(map(len, held_out)) < 2_000_000:  # enough to measure on
                held_out.append(document.text)

    tokenizer = BytePairTokenizer.train(
        training_texts(),
        options.vocab_size,
        pattern,
        min_frequency=options.min_frequency,
        max_pieces=options.max_pieces,
        num_processes=options.processes,
        progress=True,
        checkpoint=options.checkpoint,
        corpus=str(options.describe()),
    )
    tokenizer.save(options.out)

    by_rank = tokenizer.tokens_by_rank()
    print("\nThe first merges:")
    for token in by_rank[256:266]:
        left, right = recover_pair(token, tokenizer.ranks)
        print(f"  {tokenizer.ranks[token]:5d}  {show(left)} + {show(right)} -> {show(token)}")
    longest = sorted(by_rank, key=len, reverse=True)[:8]
    print(f"The longest tokens: {'  '.join(show(token) for token in longest)}")
    n_bytes = sum(len(text.encode("utf-8", "replace")) for text in held_out)
    n_tokens = sum(len(tokenizer.encode_ordinary(text)) for text in held_out)
    if n_tokens:
        print(f"Compression on {n_bytes:,} bytes of held-out text: {n_bytes / n_tokens:.2f} bytes per token")
    ids = tokenizer.encode_ordinary(options.sentence)
    pieces = tokenizer.decode_tokens_bytes(ids)
    print(f"{len(options.sentence)} characters in {len(ids)} tokens: {' | '.join(show(piece) for piece in pieces)}")
    print(f"  ids: {ids}")
    if tokenizer.n_vocab < options.vocab_size:
        print(f"The corpus ran out of repeated pairs: the vocabulary has {tokenizer.n_vocab:,} tokens")
    print(f"\nWrote {options.out}")
    flags = ["--tokenizer", options.out, "--out", options.out.parent / "tokens", *options.flags()]
    print(f"Next: python pretraining/prepare_data.py {shlex.join(map(str, flags))}")


if __name__ == "__main__":
    run_command(main, TrainTokenizer)
