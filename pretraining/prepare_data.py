"""Turns a corpus into token shards: what training reads.

A corpus of any size: documents are read as they are needed, tokenised by all cores and written at once. After a stop
or a kill, the same command goes on where it was.

python pretraining/prepare_data.py --corpus python-docs --tokenizer runs/demo/tokenizer.json --out runs/demo/tokens
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from utils.errors import UserError, run_command
from utils.files import require_writable
from utils.parallel import usable_cores
from utils.tracking import provenance
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.corpora import CorpusOptions, Document, Split
from working_with_text_data.shard_writer import DOCUMENTS, SPLITS
from working_with_text_data.token_shards import write_shards


@dataclass(frozen=True)
class PrepareData(CorpusOptions):
    """The flags of this script."""

    tokenizer: Path = Path("runs/demo/tokenizer.json")
    """The tokenizer.json that train_tokenizer.py wrote."""
    out: Path = Path("runs/demo/tokens")
    """The folder for the shards; an older one there is replaced when the new one is whole."""
    shard_tokens: int = 100_000_000
    """Tokens in one file at most."""
    processes: int = field(default_factory=usable_cores)
    """Processes that tokenise; any number gives the same shards."""


def main(options: PrepareData) -> None:
    if options.shard_tokens < 2:
        raise UserError(f"--shard-tokens must be at least 2, got {options.shard_tokens}")
    if options.processes < 1:
        raise UserError(f"--processes must be at least 1, got {options.processes}")
    tokenizer = BytePairTokenizer.load(options.tokenizer)
    options = options.resolved()
    report: dict[str, Any] = {}
    split_documents = options.split_documents(report)
    require_writable(options.out.parent)
    if options.revision is not None:
        print(f"Reading the commit {options.revision}: --revision with it gives the same text, also after a stop")
    print(f"Tokenising {options.corpus} with {options.tokenizer} ({tokenizer.n_vocab:,} tokens)")

    seen: Counter[str] = Counter()

    def documents() -> Iterator[tuple[Split, Document]]:
        for split, document in tqdm(split_documents, desc="documents", unit="", disable=None):
            if "header_characters" in document.source:  # a Gutenberg book
                seen["books"] += 1
                seen["dropped"] += int(document.source["header_characters"]) + int(document.source["footer_characters"])
                seen[f"decoded as {document.source['encoding']}"] += 1
                seen["without a Gutenberg header, kept whole"] += document.source["marker"] == "none"
            yield split, document

    made_by = provenance(**options.describe(), tokenizer=str(options.tokenizer))
    manifest = write_shards(
        options.out,
        documents(),
        tokenizer,
        made_by,
        options.shard_tokens,
        options.processes,
        options.describe(),
        report,
    )
    for split in SPLITS:
        part = manifest[split]
        print(
            f"  {split:10s} {part['documents']:6,} documents  {part['bytes']:12,} bytes  {part['tokens']:11,} tokens  "
            f"{part['bytes'] / part['tokens']:.2f} bytes per token"
        )
    read_from = report.get("bytes_read_from", {})
    for name, n_bytes in read_from.items():
        end = ", all there is of it" if name in report["exhausted"] else ""
        print(f"  {n_bytes / sum(read_from.values()):6.1%} of the text is from {name}{end}")
    if report["empty_texts"]:
        print(f"  {report['empty_texts']:,} documents without text were left out")
    for found in report.get("dropped", []):
        print(f"  {found['dropped']} was dropped: {found['containment']:.0%} of the shorter is in {found['kept']}")
    if seen:
        dropped = seen.pop("dropped")
        print(f"  of {seen.pop('books')} books, {dropped:,} characters of Gutenberg headers and footers were dropped;")
        print(f"  {', '.join(f'{n} {what}' for what, n in sorted(seen.items()) if n)}")
        print(f"  book by book: {options.out / DOCUMENTS}")
    print(f"\nWrote {options.out}")
    flags = ["--data", options.out, "--run", options.out.parent]
    print(f"Next: python pretraining/pretrain_simple.py {shlex.join(map(str, flags))}")


if __name__ == "__main__":
    run_command(main, PrepareData)
