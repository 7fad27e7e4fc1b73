"""How fast is it? Encoding, decoding and training against tiktoken, Hugging Face and rustbpe, ids compared first.

python working_with_text_data/bytepair_enc/benchmark.py --vocabularies FOLDER --prose FOLDER --languages FILE

Encoding has three speeds, and only the three together are the truth:

    repeated   every word was seen before: what a service meets after some hours, and any second pass over a corpus
    steady     an unseen tenth of a corpus, after the other nine: what tokenising a corpus meets, most of the time
    cold       a fresh tokenizer on its first text: what a script meets that starts, encodes and ends

Each is one thread against one thread; the last rows use all cores. Ratios are to the peer in the same run: 2.00 is
twice as fast. Each measurement runs in a process of its own, so that none inherits another's memory.
With --report-only nothing is measured: the tables and the plot are made again from the figures that are there.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import random
import sysconfig
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from utils.benchmarking import Seconds, describe_machine, median, time_by_turns
from utils.errors import UserError, run_command
from utils.files import read_json, write_json
from utils.parallel import usable_cores
from utils.plots import save_figure
from utils.readme_tables import markdown_table, write_block
from utils.tracking import REPOSITORY, provenance
from working_with_text_data.bytepair_enc import GPT4_PATTERN, BytePairTokenizer
from working_with_text_data.bytepair_enc.check_against_tiktoken import real_tiktoken
from working_with_text_data.bytepair_enc.merging import merge_piece
from working_with_text_data.bytepair_enc.patterns import splitter
from working_with_text_data.bytepair_enc.tokenizer_json import byte_alphabet, recover_pair

RESULTS = REPOSITORY / "working_with_text_data" / "bytepair_enc" / "results"
README = REPOSITORY / "working_with_text_data" / "README.md"
Row = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """The flags of this script."""

    vocabularies: Path | None = None
    """The folder with the published vocabularies' files, packed with gzip or not: needed to measure."""
    prose: str = "python-docs"
    """English prose: python-docs, or a folder of books."""
    languages: Path | None = None
    """A file of many languages: .jsonl or .jsonl.gz with a field `text`; left out if not given."""
    megabytes: float = 22.0
    """Of prose and of code, at most."""
    names: tuple[str, ...] = ("cl100k_base",)
    """Which published vocabularies."""
    vocab_sizes: tuple[int, ...] = (512, 4096, 32_000)
    """Vocabulary sizes to train."""
    repeats: int = 3
    """Runs of each; the median counts."""
    out: Path = RESULTS
    """The folder for benchmark.json and benchmark.png; the chapter's README gets the tables when it is its own."""
    only: tuple[str, ...] = ()
    """Some of encode, worst, train, memory, cores; all if not given."""
    report_only: bool = False
    """Measure nothing: make the tables and the plot again from benchmark.json."""


# --- texts ------------------------------------------------------------------------------------------------------------


def load_texts(options: Benchmark) -> dict[str, list[str]]:
    """corpus -> documents."""
    from working_with_text_data.corpora import open_corpus

    limit = options.megabytes * 1e6

    def some(documents: Any) -> list[str]:
        texts: list[str] = []
        size = 0
        for text in documents:
            size += len(text.encode("utf-8", "replace"))
            if size > limit and texts:
                break
            texts.append(text)
        return texts

    prose = open_corpus("gutenberg", options.prose) if Path(options.prose).is_dir() else open_corpus(options.prose)
    library = Path(sysconfig.get_path("stdlib"))
    sources = sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    texts = {
        "prose": some(document.text for document in prose),
        "code": some(path.read_text(encoding="utf-8", errors="replace") for path in sources),
    }
    if options.languages is not None:
        import gzip

        data = options.languages.read_bytes()
        lines = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode("utf-8").strip().split("\n")
        texts["languages"] = [json.loads(line)["text"] for line in lines]
    return texts


def size_of(texts: list[str]) -> int:
    """Bytes of UTF-8."""
    return sum(len(text.encode("utf-8", "replace")) for text in texts)


# --- what is measured, each in its own process ------------------------------------------------------------------------


def alone(function: Callable[..., Any], *arguments: Any, threads: int = 1) -> Any:
    """`function(*arguments)` in a fresh process in which the Rust libraries use so many threads."""
    before = dict(os.environ)
    os.environ |= {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false"}
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


def hugging_face(tokenizer: BytePairTokenizer) -> Any:
    """The same vocabulary in Hugging Face's `tokenizers`."""
    import tokenizers

    with TemporaryDirectory() as folder:
        tokenizer.save(Path(folder) / "tokenizer.json")
        return tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))


def require_equal(a: object, b: object, what: str) -> None:
    """Stops the benchmark: nothing is timed that does not do the same."""
    if a != b:
        raise UserError(f"{what} differ: nothing was measured")


def row(task: str, corpus: str, seconds: Seconds, n_bytes: int, n_tokens: int, **more: Any) -> Row:
    """One measurement as it is kept."""
    return {"task": task, "corpus": corpus, "bytes": n_bytes, "tokens": n_tokens, "seconds": seconds, **more}


def measure_encoding(name: str, folder: Path, corpus: str, texts: list[str], repeats: int) -> list[Row]:
    """Repeated, steady and cold encoding, and decoding, of one corpus with one vocabulary."""
    theirs = real_tiktoken(name, folder)
    fresh = partial(BytePairTokenizer.from_vocabulary, name, folder)
    ours, huggingface = fresh(), hugging_face(fresh())
    facts = {"vocabulary": name}
    ids = [ours.encode_ordinary(text) for text in texts]
    require_equal(ids, [theirs.encode_ordinary(text) for text in texts], f"ids of {name} on {corpus}")
    n_bytes, n_tokens = size_of(texts), sum(map(len, ids))
    rows = []

    def all_of(encode: Callable[[str], Any], some: list[str] = texts) -> Callable[[], None]:
        def run() -> None:
            for text in some:
                encode(text)

        return run

    contestants = {
        "ours": all_of(ours.encode_ordinary),
        "ours, as an array": all_of(partial(ours.encode_to_numpy, disallowed_special=())),
        "tiktoken": all_of(theirs.encode_ordinary),
        "tokenizers": all_of(lambda text: huggingface.encode(text, add_special_tokens=False).ids),
    }
    rows.append(row("repeated", corpus, time_by_turns(contestants, repeats), n_bytes, n_tokens, **facts))

    state: dict[str, Any] = {}

    def start(encode_first: list[str]) -> dict[str, Callable[[], object]]:
        def make_ours() -> None:
            state["ours"] = fresh()
            for text in encode_first:
                state["ours"].encode_ordinary(text)
            gc.collect()

        def make_theirs() -> None:
            state["tokenizers"] = hugging_face(state["ours"])
            for text in encode_first:
                state["tokenizers"].encode(text)

        return {"ours": make_ours, "tokenizers": make_theirs}

    def unseen(some: list[str]) -> dict[str, Callable[[], object]]:
        return {
            "ours": all_of(lambda text: state["ours"].encode_ordinary(text), some),
            "tiktoken": all_of(theirs.encode_ordinary, some),
            "tokenizers": all_of(lambda text: state["tokenizers"].encode(text).ids, some),
        }

    rows.append(row("cold", corpus, time_by_turns(unseen(texts), repeats, start([])), n_bytes, n_tokens, **facts))
    seen, last = nine_tenths(texts)
    seconds = time_by_turns(unseen(last), repeats, start(seen))
    rows.append(
        row("steady", corpus, seconds, size_of(last), sum(len(theirs.encode_ordinary(t)) for t in last), **facts)
    )

    require_equal([ours.decode(i) for i in ids], [theirs.decode(i) for i in ids], "decoded texts")
    decoders: dict[str, Callable[[], object]] = {
        "ours": lambda: [ours.decode(i) for i in ids],
        "tiktoken": lambda: [theirs.decode(i) for i in ids],
        "tokenizers": lambda: [huggingface.decode(i, skip_special_tokens=False) for i in ids],
    }
    rows.append(row("decode", corpus, time_by_turns(decoders, repeats), n_bytes, n_tokens, **facts))

    little = [texts[0][:200_000]]
    split = splitter(ours.pattern)
    rungs: dict[str, Callable[[], object]] = {
        "ours": all_of(lambda text: state["ours"].encode_ordinary(text), little),
        "every piece merged by the plain rule": all_of(
            lambda text: [merge_piece(piece.encode(), ours.ranks) for piece in split(text)], little
        ),
        "tiktoken": all_of(theirs.encode_ordinary, little),
    }
    rows.append(
        row(
            "ladder",
            corpus,
            time_by_turns(rungs, repeats, start([])),
            size_of(little),
            len(theirs.encode_ordinary(little[0])),
            **facts,
        )
    )
    return rows


def nine_tenths(texts: list[str]) -> tuple[list[str], list[str]]:
    """The corpus in two: nine tenths to have seen, and a tenth to meet."""
    whole = "".join(texts)
    cut = whole.index(" ", len(whole) * 9 // 10)
    return [whole[:cut]], [whole[cut:]]


def measure_worst_case(name: str, folder: Path, repeats: int) -> list[Row]:
    """A hundred thousand letters without a break."""
    theirs = real_tiktoken(name, folder)
    ours = BytePairTokenizer.from_vocabulary(name, folder)
    draw = random.Random(0)
    texts = {
        "100,000 random letters": "".join(draw.choices("aeiounrstlcdm", k=100_000)),
        "100,000 times a": "a" * 100_000,
    }
    rows = []
    for corpus, text in texts.items():
        ids = theirs.encode_ordinary(text)
        require_equal(ours.encode_ordinary(text), ids, f"ids of {corpus}")
        state: dict[str, BytePairTokenizer] = {}

        def forget(state: dict[str, BytePairTokenizer] = state) -> None:
            state["ours"] = BytePairTokenizer(ours.ranks, ours.pattern, ours.special_tokens)

        seconds = time_by_turns(
            {
                "ours": lambda state=state, text=text: state["ours"].encode_ordinary(text),  # type: ignore[misc]
                "tiktoken": lambda text=text: theirs.encode_ordinary(text),  # type: ignore[misc]
            },
            repeats,
            {"ours": forget},
        )
        rows.append(row("worst case", corpus, seconds, len(text), len(ids), vocabulary=name))
    return rows


def train_ours(texts: list[str], vocab_size: int, processes: int = 1) -> list[tuple[bytes, bytes]]:
    """The merges, as pairs of bytes. Bytes are numbered as Hugging Face does, so that ties fall alike."""
    order = list(byte_alphabet())
    ours = BytePairTokenizer.train(texts, vocab_size, GPT4_PATTERN, (), byte_order=order, num_processes=processes)
    tokens = ours.tokens_by_rank()
    return [recover_pair(token, ours.ranks) for token in tokens[256:]]


def train_hugging_face(texts: list[str], vocab_size: int) -> Any:
    """Hugging Face's trainer with the same pattern and rules."""
    import tokenizers

    pre = tokenizers.pre_tokenizers
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = pre.Split(tokenizers.Regex(GPT4_PATTERN), "isolated")
    theirs.pre_tokenizer = pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre.ByteLevel.alphabet(), min_frequency=2, show_progress=False
    )
    theirs.train_from_iterator(texts, trainer)
    return theirs


def train_rustbpe(texts: list[str], vocab_size: int) -> Any:
    """rustbpe's trainer with the same pattern."""
    import rustbpe

    theirs = rustbpe.Tokenizer()
    theirs.train_from_iterator(iter(texts), vocab_size, pattern=GPT4_PATTERN)
    return theirs


def measure_training(corpus: str, texts: list[str], vocab_size: int, repeats: int) -> list[Row]:
    """Training on one corpus, merges compared first."""
    from working_with_text_data.bytepair_enc.tokenizer_json import bytes_of_spelling

    theirs = json.loads(train_hugging_face(texts, vocab_size).to_str())["model"]["merges"]
    expected = [(bytes_of_spelling(left), bytes_of_spelling(right)) for left, right in theirs]
    require_equal(train_ours(texts, vocab_size), expected, f"merges of vocabulary {vocab_size}")
    plain = BytePairTokenizer.train(texts, vocab_size, GPT4_PATTERN, ())
    rust = [bytes(token) for token, _ in train_rustbpe(texts, vocab_size).get_mergeable_ranks()]
    require_equal(plain.tokens_by_rank(), rust, f"tokens of vocabulary {vocab_size} and rustbpe's")
    contestants: dict[str, Callable[[], object]] = {
        "ours": lambda: BytePairTokenizer.train(texts, vocab_size, GPT4_PATTERN, ()),
        "tokenizers": lambda: train_hugging_face(texts, vocab_size),
        "rustbpe": lambda: train_rustbpe(texts, vocab_size),
    }
    seconds = time_by_turns(contestants, repeats)
    return [row("train", corpus, seconds, size_of(texts), 0, vocabulary=f"{vocab_size:,} tokens")]


def _status(field: str) -> int:
    """Bytes that the system counts for this process: VmRSS, what it holds now, or VmHWM, the most it has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def memory_added(work: Callable[[], object]) -> int:
    """The most bytes that a piece of work needs on top of what this process holds before it. Linux alone tells."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is what it holds now
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def memory_of_encoding(contestant: str, name: str, folder: Path, texts: list[str]) -> int:
    """Bytes that loading a vocabulary and encoding a corpus add to the texts; ids are thrown away as they come."""

    def work() -> None:
        encode: Callable[[str], Any]
        if contestant == "tiktoken":
            encode = real_tiktoken(name, folder).encode_ordinary
        elif contestant == "tokenizers":
            encode = hugging_face(BytePairTokenizer.from_vocabulary(name, folder)).encode
        else:
            encode = BytePairTokenizer.from_vocabulary(name, folder).encode_ordinary
        for text in texts:
            encode(text)

    return memory_added(work)


def memory_of_training(contestant: str, texts: list[str], vocab_size: int) -> int:
    """Bytes that training adds to the texts."""
    trainers: dict[str, Callable[[list[str], int], Any]] = {
        "ours": lambda t, size: BytePairTokenizer.train(t, size, GPT4_PATTERN, ()),
        "tokenizers": train_hugging_face,
        "rustbpe": train_rustbpe,
    }
    return memory_added(lambda: trainers[contestant](texts, vocab_size))


def measure_all_cores(name: str, folder: Path, corpus: str, texts: list[str], cores: int, repeats: int) -> list[Row]:
    """The whole corpus from a fresh start, with every core: processes for us, threads for the Rust libraries."""
    theirs = real_tiktoken(name, folder)
    ours = BytePairTokenizer.from_vocabulary(name, folder)
    huggingface = hugging_face(ours)
    expected = theirs.encode_ordinary_batch(texts, num_threads=cores)
    encoded = [ids.tolist() for ids in ours.encode_batch_to_numpy(texts, num_processes=cores, disallowed_special=())]
    require_equal(encoded, expected, "ids with all cores")
    contestants: dict[str, Callable[[], object]] = {
        "ours": lambda: list(ours.encode_batch_to_numpy(texts, num_processes=cores, disallowed_special=())),
        "tiktoken": lambda: theirs.encode_ordinary_batch(texts, num_threads=cores),
        "tokenizers": lambda: [e.ids for e in huggingface.encode_batch(texts)],
    }
    n_tokens = sum(map(len, expected))
    seconds = time_by_turns(contestants, repeats)
    return [row("all cores", corpus, seconds, size_of(texts), n_tokens, vocabulary=name, cores=cores)]


# --- what a person sees -----------------------------------------------------------------------------------------------


def ratio(measured: Row, peer: str, ours: str = "ours") -> str:
    """How many times as fast as the peer, for a table."""
    middle = median(measured["seconds"])
    return f"{middle[peer] / middle[ours]:.2f}" if peer in middle else ""


def tables(report: dict[str, Any]) -> str:
    """The tables of a README, from the contents of a benchmark.json."""
    rows = report["results"]
    machine = report["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, Python {report['versions']['python']}"

    def speed(r: Row, who: str = "ours") -> str:
        return f"{r['bytes'] / median(r['seconds'])[who] / 1e6:.1f}"

    encode = [
        [
            r["task"],
            r["corpus"],
            f"{r['bytes'] / 1e6:.2f}",
            f"{r['bytes'] / r['tokens']:.2f}",
            speed(r),
            f"{r['tokens'] / median(r['seconds'])['ours'] / 1e6:.2f}",
            ratio(r, "tiktoken"),
            ratio(r, "tokenizers"),
        ]
        for r in rows
        if r["task"] in ("repeated", "steady", "cold", "decode", "all cores")
        and r["vocabulary"] == rows[0]["vocabulary"]
    ]
    train = [
        [
            r["vocabulary"],
            f"{r['bytes'] / 1e6:.1f}",
            f"{median(r['seconds'])['ours']:.2f}",
            ratio(r, "tokenizers"),
            ratio(r, "rustbpe"),
        ]
        for r in rows
        if r["task"] == "train"
    ]
    worst = [
        [r["corpus"], f"{median(r['seconds'])['ours']:.3f}", ratio(r, "tiktoken")]
        for r in rows
        if r["task"] == "worst case"
    ]
    rungs = [
        [r["corpus"], ratio(r, "every piece merged by the plain rule"), ratio(r, "tiktoken")]
        for r in rows
        if r["task"] == "ladder"
    ]
    memory = [
        [
            r["what"],
            *(f"{r['bytes_added'].get(who, 0) / 1e6:.0f}" for who in ("ours", "tiktoken", "tokenizers", "rustbpe")),
        ]
        for r in report["memory"]
    ]
    parts = [
        f"Measured on {where}; one thread each but in the rows of all cores. Ratios above 1 are faster than the peer.",
        "![Times as fast as the peers, in encoding, decoding and training](bytepair_enc/results/benchmark.png)",
        markdown_table(
            [
                f"`{rows[0]['vocabulary']}`" if rows else "",
                "corpus",
                "MB",
                "bytes/token",
                "MB/s",
                "million tokens/s",
                "× tiktoken",
                "× tokenizers",
            ],
            encode,
            "llrrrrrr",
        ),
        markdown_table(["train", "MB", "seconds", "× tokenizers", "× rustbpe"], train, "lrrrr"),
        markdown_table(["worst case", "seconds", "× tiktoken"], worst, "lrr"),
        markdown_table(["a fresh start on 200 kB", "× the plain rule", "× tiktoken"], rungs, "lrr"),
        markdown_table(["MB of memory added", "ours", "tiktoken", "tokenizers", "rustbpe"], memory, "lrrrr"),
    ]
    return "\n\n".join(parts).replace("| 0 |", "| |")


_TASKS = ("repeated", "steady", "cold", "decode")
_CORPORA: dict[str, dict[str, str]] = {
    "prose": {"marker": "o", "color": "black"},
    "code": {"marker": "s", "color": "0.65", "markeredgecolor": "black"},
    "languages": {"marker": "^", "color": "white", "markeredgecolor": "black"},
}
_TRAINERS: dict[str, dict[str, str]] = {
    "tokenizers": {"marker": "D", "color": "black"},
    "rustbpe": {"marker": "X", "color": "white", "markeredgecolor": "black"},
}


def draw(path: Path, report: dict[str, Any]) -> None:
    """The ratios of the tables as dots on one scale: one PNG, readable in black and white."""
    from matplotlib.figure import Figure  # here, because it takes a second that most commands need not wait

    rows = report["results"]
    encode = [r for r in rows if r["task"] in _TASKS and r["vocabulary"] == rows[0]["vocabulary"]]
    train = [r for r in rows if r["task"] == "train"]
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, width_ratios=(1, 1, 0.9))

    def dots(axes: Any, label: str, style: dict[str, str], shift: float, found: list[tuple[int, str]]) -> None:
        x, y = [float(r) for _, r in found if r], [place + shift for place, r in found if r]
        axes.plot(x, y, label=label, linestyle="", markersize=7.5, **style)

    for axes, peer in zip(panels, ("tiktoken", "tokenizers"), strict=False):
        for k, (corpus, style) in enumerate(_CORPORA.items()):
            places = [(_TASKS.index(r["task"]), ratio(r, peer)) for r in encode if r["corpus"] == corpus]
            dots(axes, corpus, style, 0.22 * (k - 1), places)
        axes.set_title(f"text to ids and back, against {peer}", fontsize=11)
        axes.set_yticks(range(len(_TASKS)), _TASKS)
    for k, (peer, style) in enumerate(_TRAINERS.items()):
        dots(panels[2], f"against {peer}", style, 0.1 * (2 * k - 1), [(i, ratio(r, peer)) for i, r in enumerate(train)])
    panels[2].set_title("training on prose", fontsize=11)
    panels[2].set_yticks(range(len(train)), [r["vocabulary"] for r in train])
    shown = [x for axes in panels for line in axes.lines for x in line.get_xdata()]
    low, high = min([0.1, *shown]) * 0.9, max([20, *shown]) * 1.05
    ticks = [n * 10.0**p for p in range(-3, 4) for n in (1, 2, 5) if low < n * 10.0**p < high]
    for axes in panels:
        n = len(axes.get_yticks())
        axes.set(xscale="log", xlim=(low, high), ylim=(n - 0.5, -0.75), xlabel="times as fast as the peer (log scale)")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.axvline(1.0, color="black", linewidth=1.2)
        for place in range(n - 1):
            axes.axhline(place + 0.5, color="0.85", linewidth=0.8)
        axes.grid(alpha=0.3, axis="x")
        axes.tick_params(axis="y", length=0)
        for at, word, side in ((0.93, "slower", "right"), (1.08, "faster", "left")):
            axes.text(at, -0.55, word, fontsize=8.5, ha=side, va="center", style="italic")
    flat = {"frameon": False, "handletextpad": 0.2}
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=3, **flat)
    figure.legend(*panels[2].get_legend_handles_labels(), loc="outside lower right", ncols=2, **flat)
    save_figure(path, figure)


def main(options: Benchmark) -> None:
    path = options.out / "benchmark.json"
    if options.report_only and not path.is_file():
        raise UserError(f"--report-only needs {path}, and there is none: measure first")
    report = read_json(path) if options.report_only else measure(options, path)
    draw(options.out / "benchmark.png", report)
    print(f"Wrote {options.out / 'benchmark.png'}")
    if options.out.resolve() == RESULTS and report["results"] and report["memory"]:
        write_block(README, "benchmark", tables(report))
        print(f"Wrote the tables in {README.relative_to(REPOSITORY)}")


def measure(options: Benchmark, path: Path) -> dict[str, Any]:
    """The contents of benchmark.json, which is written to `path` as well."""
    wanted = set(options.only or ("encode", "worst", "train", "memory", "cores"))
    if unknown := wanted - {"encode", "worst", "train", "memory", "cores"}:
        raise UserError(f"--only {sorted(unknown)[0]} is not one of encode, worst, train, memory, cores")
    if options.vocabularies is None:
        raise UserError("--vocabularies is needed to measure: the folder with the published vocabularies' files")
    texts = load_texts(options)
    for corpus, documents in texts.items():
        print(f"{corpus}: {len(documents):,} documents, {size_of(documents) / 1e6:.1f} MB")
    results: list[Row] = []
    memory: list[Row] = []

    def note(rows: list[Row]) -> None:
        for r in rows:
            middle = median(r["seconds"])
            ratios = ", ".join(f"{t / middle['ours']:.2f} x {who}" for who, t in middle.items() if who != "ours")
            print(
                f"{r['task']:10s} {r['vocabulary']:14s} {r['corpus']:22s} {middle['ours']:8.3f} s: {ratios}", flush=True
            )
        results.extend(rows)

    first, folder, cores = options.names[0], options.vocabularies, usable_cores()
    if "encode" in wanted:
        for name in options.names:
            for corpus, documents in texts.items():
                note(alone(measure_encoding, name, folder, corpus, documents, options.repeats))
    if "cores" in wanted:
        note(alone(measure_all_cores, first, folder, "prose", texts["prose"], cores, options.repeats, threads=cores))
    if "worst" in wanted:
        note(alone(measure_worst_case, first, folder, options.repeats))
    if "train" in wanted:
        for vocab_size in options.vocab_sizes:
            note(alone(measure_training, "prose", texts["prose"], vocab_size, options.repeats))
    if "memory" in wanted and Path("/proc/self/clear_refs").exists():
        added = {
            who: alone(memory_of_encoding, who, first, folder, texts["prose"])
            for who in ("ours", "tiktoken", "tokenizers")
        }
        memory.append({"what": f"encode prose with {first}", "bytes_added": added})
        largest = max(options.vocab_sizes)
        added = {
            who: alone(memory_of_training, who, texts["prose"], largest) for who in ("ours", "tokenizers", "rustbpe")
        }
        memory.append({"what": f"train {largest:,} tokens on prose", "bytes_added": added})
    report = {**provenance(), "machine": describe_machine(), "results": results, "memory": memory}
    report["versions"] |= {name: version_of(name) for name in ("tiktoken", "tokenizers", "rustbpe", "regex")}
    if wanted == {"memory"} and path.is_file():  # takes the place of the older figures of memory alone
        report = read_json(path) | {"memory": [measured | {"commit": report["commit"]} for measured in memory]}
    write_json(path, report)
    print(f"\nWrote {path}")
    return report


def version_of(name: str) -> str | None:
    """The installed version of a library, or None."""
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    run_command(main, Benchmark)
