"""Asks a model that has learned to answer, in the layout that it learned.

python finetuning/instruction/ask.py --model runs/instruct/model "What does `len` do?"

With --examples, it asks what the run kept for this: questions that the model has learned from, and held-out ones about
names that it has never seen, each beside the right answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from finetuning.instruction.answering import answers, exactly, learned_system_prompt, require_layout
from finetuning.instruction.prompt_format import Message, is_message
from gpt_model import load_model, load_tokenizer
from gpt_model.pretrained import find_folder
from gpt_model.sampling import Sampling
from utils.devices import pick_device
from utils.errors import UserError, run_command
from utils.files import read_json


@dataclass(frozen=True)
class Ask:
    """The flags of this script."""

    question: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """What to ask; several questions are answered one by one."""
    model: str = "runs/instruct/model"
    """A model folder that train_instruct.py wrote."""
    examples: int = 0
    """Ask so many learned questions, and as many held-out ones, of those that the run kept."""
    system_prompt: str | None = None
    """Stands before each question; the one that the model was trained with if not given."""
    max_new_tokens: int = 128
    """Tokens of an answer at most."""
    temperature: float = 0.0
    """0 takes the most probable token each time; higher is wilder."""
    seed: int = 0
    """Of the draws, where the temperature is above 0."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def __post_init__(self) -> None:
        if not self.question and not self.examples:
            raise UserError("nothing is asked: give a question in quotes, or --examples 5")
        if self.examples < 0 or self.max_new_tokens < 1:
            raise UserError("--examples must be at least 0, and --max-new-tokens at least 1")
        if any(not question.strip() for question in self.question):
            raise UserError("a question is empty: write it in quotes")
        try:
            "".join((*self.question, self.system_prompt or "")).encode()
            self.sampling()
        except UnicodeEncodeError:
            raise UserError("the question is not UTF-8: write it in a UTF-8 terminal") from None
        except ValueError as error:
            raise UserError(str(error)) from None

    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(temperature=self.temperature, seed=self.seed)


def kept_questions(folder: Path, n: int) -> list[dict[str, Any]]:
    """`n` questions of each side that the run beside a model folder kept.

    Raises:
        UserError: there are none, or they are damaged.
    """
    path = folder.parent / "questions.json"
    if not path.is_file():
        raise UserError(f"{path} is missing, which a run writes beside its model: ask a question of your own")
    kept = read_json(path)
    if not isinstance(kept, list) or not all(map(_is_kept, kept)):
        raise UserError(f"{path} is damaged: ask a question of your own")
    return [one for side in ("trained", "held out") for one in [k for k in kept if k["side"] == side][:n]]


def _is_kept(one: Any) -> bool:
    """Whether this is a question as train_instruct.py writes it."""
    if not isinstance(one, dict) or not isinstance(one.get("answer"), str) or not isinstance(one.get("side"), str):
        return False
    messages = one.get("messages")
    return isinstance(messages, list) and bool(messages) and all(map(is_message, messages))


def main(options: Ask) -> None:
    folder = find_folder(options.model)
    layout = require_layout(folder)
    model, tokenizer = load_model(folder, pick_device(options.device)), load_tokenizer(folder)
    prompt = learned_system_prompt(folder) if options.system_prompt is None else options.system_prompt
    system: list[Message] = [{"role": "system", "content": prompt}] if prompt else []
    kept = kept_questions(folder, options.examples) if options.examples else []
    asked: list[list[Message]] = [[*system, {"role": "user", "content": q}] for q in options.question]
    asked += [one["messages"] for one in kept]
    _say_what_is_too_long([len(layout.encode(tokenizer, q, ask=True).ids) for q in asked], model.config.context_length)
    said = answers(model, tokenizer, layout, asked, options.max_new_tokens, options.sampling())
    for question, answer in zip(asked, said[: len(options.question)], strict=False):
        _show("", question, answer)
    right = {"trained": 0, "held out": 0}
    for one, answer in zip(kept, said[len(options.question) :], strict=True):
        _show(f"({one['side']}) ", one["messages"], answer)
        is_right = exactly(answer, one["answer"])
        right[one["side"]] += is_right
        if not is_right:
            print(f"  right would be: {one['answer'].strip()}")
    for side, n in right.items():
        of = sum(one["side"] == side for one in kept)
        if of:
            seen = "learned from" if side == "trained" else "about names never seen in training"
            print(f"\n{n} of {of} questions {seen} are answered word for word", end="")
    print(f'\nNext: your own question, python finetuning/instruction/ask.py --model {options.model} "..."')


def _say_what_is_too_long(lengths: Sequence[int], context_length: int) -> None:
    for number, length in enumerate(lengths, 1):
        if length > context_length:
            print(f"The beginning of question {number} was not read: it has {length:,} tokens in the layout, ", end="")
            print(f"and the model sees {context_length:,}")


def _show(label: str, question: list[Message], answer: str) -> None:
    print(f"\n{label}{question[-1]['content']}\n  {answer.strip() or '(nothing)'}")


if __name__ == "__main__":
    run_command(main, Ask)
