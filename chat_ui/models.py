"""Which models there are to talk to, and one engine for each that is in use.

Every model folder below `runs/` can be picked, and GPT-2 as it was published. A model is loaded when somebody picks it
and is then shared by all who do. A folder that was trained anew is another model: who picks it next gets the new one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from chat_ui.chat_engine import ChatEngine
from finetuning.classification.classifier import HEAD
from finetuning.instruction.answering import learned_system_prompt
from finetuning.instruction.prompt_format import PromptFormat
from gpt_model import load_model, load_tokenizer
from gpt_model.pretrained import CHAT_TEMPLATE, CONFIG, MADE_BY, TOKENIZER, find_folder
from utils.errors import UserError, one_line
from utils.files import read_json

PUBLISHED = {
    "gpt2": "124 million parameters",
    "gpt2-medium": "355 million parameters",
    "gpt2-large": "774 million parameters",
    "gpt2-xl": "1,558 million parameters",
}
_DEEPEST = 5  # folders below runs/ in which a model is looked for
_NOT_SEARCHED = {"checkpoints", "tokens"}
MAKE_ONE = "`make demo` makes one in about 8 minutes"


@dataclass(frozen=True)
class Choice:
    """A model that can be picked."""

    name: str
    """As it is shown, and no other one: its folder below runs/, without a last "model", or its name on the hub."""
    source: str
    """What `load_model` takes."""
    answers: bool
    """Whether it has learned to answer; a base model continues text."""
    about: str
    """A line about it."""


def choices(runs: Path) -> list[Choice]:
    """The models below `runs`, those that answer first and the newest of these first; then the published ones."""
    names: dict[str, Path | None] = dict.fromkeys(PUBLISHED)
    for folder in _model_folders(runs):
        names[next(name for name in _possible_names(folder, runs) if name not in names)] = folder
    found = [(name, folder) for name, folder in names.items() if folder]
    ours = []
    for name, folder in sorted(found, key=lambda pair: (not _answers(pair[1]), -_stamp(pair[1]))):
        about = "Answers questions." if _answers(folder) else "A base model: it continues the text that you give it."
        made_by = _made_by(folder)
        about += f" Made by `{made_by}`." if made_by else ""
        ours.append(Choice(name, str(folder), _answers(folder), about))
    hub = [
        Choice(name, name, False, f"GPT-2 as published, {size}: it continues the text that you give it.")
        for name, size in PUBLISHED.items()
    ]
    return ours + hub


def shown_name(folder: Path, runs: Path) -> str:
    """A model folder's path below runs/ without a last "model"; a published model's own name."""
    parts = folder.relative_to(runs).parts if folder.is_relative_to(runs) else folder.parts
    return Path(*(parts[:-1] if parts[-1:] == ("model",) and len(parts) > 1 else parts)).as_posix()


def _possible_names(folder: Path, runs: Path) -> Iterator[str]:
    """What to call a model folder: the first of these that is no other model's name."""
    yield shown_name(folder, runs)
    yield folder.relative_to(runs).as_posix()
    yield str(folder.resolve())


def _model_folders(folder: Path, depth: int = _DEEPEST) -> Iterator[Path]:
    """The model folders below a folder that need no classifier's head."""
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return
    whole = (folder / CONFIG).is_file() and (folder / TOKENIZER).is_file() and any(folder.glob("model*.safetensors"))
    if whole and not (folder / HEAD).exists():
        yield folder
    for path in inside:
        if depth and path.name not in _NOT_SEARCHED:
            yield from _model_folders(path, depth - 1)


def _answers(folder: Path) -> bool:
    return (folder / CHAT_TEMPLATE).is_file()


def _stamp(folder: Path) -> float:
    """When the model was written; 0 where there is none."""
    try:
        return (folder / CONFIG).stat().st_mtime
    except OSError:
        return 0.0


def _made_by(folder: Path) -> str:
    """The name of the script that made a model, as the folder tells; "" where it does not."""
    try:
        command = read_json(folder / MADE_BY)["command"]
        return Path(str(command).split(" --")[0].split()[-1]).name
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return ""


class Models:
    """The engines of the models that are in use.

    Args:
        runs: the folder of all runs.
        device: where models are put.
        most: models that stay loaded; of more, those that nobody waits for go.
        make_engine: makes one from what was loaded; for tests and for those who want other rows.
    """

    def __init__(
        self,
        runs: Path,
        device: torch.device | str = "cpu",
        most: int = 3,
        make_engine: Callable[..., ChatEngine] = ChatEngine,
    ) -> None:
        self.runs, self.device, self.most, self.make_engine = runs, device, most, make_engine
        self._engines: dict[str, tuple[float, ChatEngine]] = {}  # the one that was asked for last is at the end
        self._lock = threading.Lock()  # around that, for a moment
        self._loading: dict[str, threading.Lock] = {}  # around loading each model, which may be a download of minutes

    def choices(self) -> list[Choice]:
        """See `choices`."""
        return choices(self.runs)

    def engine(self, source: str) -> ChatEngine:
        """The engine of a model, which is loaded if it is not yet. Takes as long as that: call it in a thread.

        A model that is loaded stays usable when its folder is gone.

        Raises:
            UserError: it is missing or broken, and cannot be fetched. The message says what to do.
        """
        with self._lock:
            loading = self._loading.setdefault(source, threading.Lock())
        with loading:  # so that two who pick the same model do not load it twice
            loaded = self._engines.get(source)
            stamp = _stamp(Path(source))
            if loaded is None or stamp not in (0.0, loaded[0]):
                loaded = stamp, self._load(source)
            self._keep(source, loaded)
            return loaded[1]

    def _keep(self, source: str, loaded: tuple[float, ChatEngine]) -> None:
        """Puts a model at the end of those that are loaded, and lets go of the first ones."""
        with self._lock:
            self._engines.pop(source, None)
            self._engines[source] = loaded
            idle = [name for name, (_, engine) in self._engines.items() if not engine.n_open and name != source]
            for name in idle[: max(len(self._engines) - self.most, 0)]:
                del self._engines[name]

    def _load(self, source: str) -> ChatEngine:
        try:
            folder = find_folder(source)
            model, tokenizer = load_model(source, self.device), load_tokenizer(source)
            return self.make_engine(model, tokenizer, PromptFormat.of(folder), shown_name(Path(source), self.runs))
        except (ValueError, OSError, UserError) as error:
            hint = "" if "make demo" in str(error) else f" ({MAKE_ONE})"
            raise UserError(f"{source} cannot be opened: {one_line(error)}{hint}") from None

    def system_prompt(self, source: str) -> str:
        """What stood before each conversation in training; "" where nothing did."""
        try:
            return learned_system_prompt(Path(source))
        except (OSError, ValueError):
            return ""
