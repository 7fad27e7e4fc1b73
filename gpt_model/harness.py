"""lm-evaluation-harness on any model folder of ours, variants included.

python gpt_model/harness.py --model runs/demo/model --tasks lambada_openai hellaswag arc_easy

EleutherAI's harness (Gao et al.) holds hundreds of benchmarks, and is what published figures of small models mostly
come from. It knows nothing of models: it asks three questions, in text, and counts the answers. This is all that stands
between:

    loglikelihood          ln p of a continuation, and is it greedy?    `log_likelihoods`
    loglikelihood_rolling  ln p of a whole text                         the same, of its windows
    generate_until         what does the model write?                   `generate_tokens`

It is a large package and no part of this project's requirements. Beside them, with none of their versions changed:

    make harness
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from gpt_model.generate import TextStream, generate_tokens
from gpt_model.gpt import GPT
from gpt_model.log_likelihood import log_likelihoods, require_same_vocabulary, windows_of
from gpt_model.pretrained import load_model, load_tokenizer
from gpt_model.sampling import Sampling
from utils.devices import Precision, pick_device
from utils.errors import EXIT_USER_ERROR, UserError, run_command
from utils.files import require_writable, write_json
from utils.readme_tables import markdown_table
from utils.tracking import provenance

# A script's folder comes first on the path, where the harness would take our evaluate.py for the library `evaluate`.
sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]
try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    print(
        f"error: the harness is not installed ({error}): `make harness` does it",
        file=sys.stderr,
    )
    sys.exit(EXIT_USER_ERROR)


@register_model("scratchbook")
class ScratchbookLM(TemplateLM):  # type: ignore[misc] # the harness has no types
    """A model folder as the harness sees it.

    Args:
        model: a model folder, or a name that `load_model` knows.
        batch_size: texts at once.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: of the products.
        max_batch_size: for the harness, which always gives one; does nothing.

    Raises:
        ValueError: no such model, or its tokenizer is another's or has no `<|endoftext|>`.
    """

    def __init__(
        self,
        model: str,
        batch_size: int | str = 16,
        device: str = "auto",
        precision: Precision = "float32",
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.model: GPT = load_model(model, pick_device(device))
        self.tokenizer = load_tokenizer(model)
        require_same_vocabulary(self.model, self.tokenizer)
        self.name, self.batch_size, self.precision = model, int(batch_size), precision
        self.end = self.tokenizer.eot_token
        self._device = self.model.device

    @property
    def eot_token_id(self) -> int:
        """What a text begins after where it begins with nothing."""
        return self.end

    @property
    def max_length(self) -> int:
        """Tokens that the model sees at once."""
        return self.model.config.context_length

    @property
    def tokenizer_name(self) -> str:
        """By which the harness keeps requests apart."""
        return f"{self.name}:{self.tokenizer.fingerprint}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """All of it as ordinary text, but for `<|endoftext|>`, as our folders' tokenizer is in `transformers`."""
        return self.tokenizer.encode(string, allowed_special="all")

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        title = "" if disable_tqdm else "answers"
        return log_likelihoods(self.model, pairs, self.batch_size, self.precision, title)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """ln p of each text, in windows that do not overlap: the harness's rule."""
        texts = [[self.eot_token_id, *self.tok_encode(request.args[0])] for request in requests]
        windows = [list(windows_of(ids, self.max_length, self.max_length)) for ids in texts]
        pairs = [pair for of_text in windows for pair in of_text]
        judged = iter(
            log_likelihoods(self.model, pairs, self.batch_size, self.precision, "" if disable_tqdm else "windows")
        )
        return [sum(ln_p for ln_p, _ in itertools.islice(judged, len(of_text))) for of_text in windows]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each text until one of its stop strings, which is left out."""
        texts = [""] * len(requests)
        for places in alike(requests, self.batch_size):
            settings = requests[places[0]].args[1]
            written = self._write([requests[i].args[0] for i in places], settings)
            for i, text in zip(places, written, strict=True):
                texts[i] = text
        return texts

    def _write(self, prompts: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
        """`generate_until` of texts with the same settings, side by side."""
        settings = normalize_gen_kwargs(dict(settings), default_max_gen_toks=256)
        room = settings["max_gen_toks"]
        ids = [self.tok_encode(prompt) or [self.end] for prompt in prompts]
        if room < self.max_length:  # the prompt's end, so that what is written fits behind it
            ids = [prompt[-(self.max_length - room) :] for prompt in ids]
        until = handle_stop_sequences(settings.get("until"), eos=None)
        streams = [TextStream(self.tokenizer, until) for _ in ids]
        texts = [""] * len(ids)
        special = set(self.tokenizer.special_tokens.values())
        for token in generate_tokens(self.model, ids, room, sampling_of(settings), special):
            texts[token.row] += streams[token.row].feed(token.id)
            if all(stream.stopped for stream in streams):
                break
        return [text + stream.finish() for text, stream in zip(texts, streams, strict=True)]


def alike(requests: Sequence[Instance], batch_size: int) -> Iterator[list[int]]:
    """The places of requests with the same settings, up to `batch_size` of them at a time."""
    groups: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(repr(request.args[1]), []).append(i)
    for places in groups.values():
        for start in range(0, len(places), batch_size):
            yield places[start : start + batch_size]


def sampling_of(settings: Mapping[str, Any]) -> Sampling:
    """The harness's settings of generation, which are `transformers`', as ours; greedy if nothing is said."""
    names = ("top_k", "top_p", "min_p", "repetition_penalty")
    chosen = {name: settings[name] for name in names if settings.get(name) is not None}
    temperature = settings.get("temperature", 1.0) if settings["do_sample"] else 0.0
    return Sampling(temperature=temperature, seed=0, **chosen)


@dataclass(frozen=True)
class Harness:
    """The flags of this script."""

    model: str = "runs/demo/model"
    """A model folder, or the name of a model on the hub: gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2."""
    tasks: tuple[str, ...] = ("lambada_openai",)
    """Tasks of the harness; `lm_eval ls tasks` lists them. Their data come from the hub."""
    task_folder: Path | None = None
    """A folder with .yaml files of further tasks."""
    num_fewshot: int | None = None
    """Solved examples before each question; what the task says if not given."""
    limit: int | None = None
    """Ask just the first questions of each task: for a try."""
    batch_size: int = 16
    """Texts at once."""
    precision: Precision = "float32"
    """bfloat16 is faster on some processors and a little less exact; auto takes it where it is fast."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    out: Path | None = None
    """A JSON file for the figures, and how they came about."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UserError("--tasks: name at least one")
        for name in ("limit", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


def main(options: Harness) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    if options.out is not None:
        require_writable(options.out.parent)
    folder = None if options.task_folder is None else str(options.task_folder)
    manager = TaskManager(include_path=folder)
    if unknown := [name for name in options.tasks if name not in manager.all_tasks]:
        raise UserError(f"the harness has no task {unknown[0]!r}: `lm_eval ls tasks` lists them")
    model = ScratchbookLM(options.model, options.batch_size, options.device, options.precision)
    print(f"{options.model}: {model.model.n_parameters:,} parameters, context {model.max_length}, on {model.device}")
    report = simple_evaluate(
        model,
        tasks=list(options.tasks),
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        task_manager=manager,
        bootstrap_iters=1000,  # of its 100,000: standard errors of perplexities to a fiftieth, in seconds
        log_samples=False,
    )
    print(table(report["results"]))
    if options.out is not None:
        harness = {"lm_eval": metadata.version("lm_eval"), "tasks": report["versions"], "n-shot": report["n-shot"]}
        write_json(options.out, provenance(model=options.model, harness=harness, results=report["results"]))
        print(f"Wrote {options.out}")


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The harness's figures, whose names are "figure,filter", with their standard errors."""
    rows = []
    for task, figures in results.items():
        for name, value in figures.items():
            figure, comma, kind = name.partition(",")
            if comma and not figure.endswith("_stderr"):
                error = figures.get(f"{figure}_stderr,{kind}")
                shown = f"{error:.4f}" if isinstance(error, float) else ""
                rows.append([task, figure, f"{value:,.4f}" if isinstance(value, float) else str(value), shown])
    return markdown_table(["task", "figure", "value", "±"], rows, "llrr")


if __name__ == "__main__":
    run_command(main, Harness)
