"""Teaches a language model to answer: supervised fine-tuning on instructions.

python finetuning/instruction/train_instruct.py --model runs/demo/model --run runs/instruct

A base model continues text; asked a question, it may go on with another question. Instruction tuning shows it
conversations in a fixed layout (`prompt_format.py`), and the loss is pretraining's with one change: only what the
assistant says, its end among it, counts (Ouyang et al. 2022, section 3.5):

    loss = - Σ ln p(token | all before it)  over the answers' tokens  /  how many there are in the whole step

The question is read and not learned. The sum is divided by the targets of the *whole* step, over all accumulated parts
and ranks: answers have different lengths, and a mean of means would weigh a token of a short one more.

    RUN/model/          the model, adapters merged, with the layout that it learned (chat_template.jinja)
    RUN/adapter/        with --lora, the adapters alone, as peft reads them
    RUN/questions.json  questions that were learned, and held-out ones, with their answers
    RUN/samples.txt     what the model answered to them along the way
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from finetuning.instruction.answering import answers, exactly, with_system
from finetuning.instruction.instructions import (
    Example,
    InstructionOptions,
    Side,
    read_examples,
    split_examples,
)
from finetuning.instruction.packing import PackedBatches, Tokens, best_fit, packed, padded, padding_waste, tokens_of
from finetuning.instruction.prompt_format import FormatName, PromptFormat
from finetuning.lora import LoRA, add_lora, lora_layers, merged_weights, save_adapter
from finetuning.tuning import (
    Arrays,
    Epochs,
    ExampleBatches,
    Tuning,
    TuningOptions,
    blocks_of,
    exit_unless_finished,
    quoted,
)
from gpt_model import GPT, load_model, load_tokenizer
from gpt_model.pretrained import origin
from pretraining.distributed import Ranks, add_up, join_ranks
from pretraining.run_options import alone_with, refuse_another_run
from pretraining.training_loop import Ending, NextToken, TrainingLoop
from utils.devices import autocast
from utils.errors import UserError, run_command
from utils.files import write_json
from utils.seeding import seed_everything
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.bytepair_enc.bpe import END_OF_TEXT
from working_with_text_data.token_shards import IGNORE

QUESTIONS = "questions.json"
_TO_DECIDE_PADDING = 2048  # examples by which padding's waste is estimated, to be shown beside packing's


@dataclass(frozen=True)
class TrainInstruct(InstructionOptions, TuningOptions):
    """The flags of this script."""

    run: Path = Path("runs/instruct")
    """The folder for everything that the run writes."""
    format: FormatName = "alpaca"
    """The layout of questions and answers: alpaca (### Instruction:) or chat (a mark for each role)."""
    system_prompt: str = ""
    """Stands before each conversation that has no system message of its own."""
    max_length: int = 0
    """Tokens of an example at most; 0 for the model's context."""
    too_long: Literal["cut", "drop"] = "cut"
    """Longer examples: cut the end off the answer, or leave them out. A question that leaves its answer no room is
    left out in any case. Both are counted."""
    packing: bool = True
    """Put several examples into each row, hidden from each other, in place of padding: batch_size then counts rows."""
    eval_examples: int = 512
    """Held-out examples to measure on."""
    ask: int = 20
    """Held-out questions, and as many learned ones, that are answered at each measurement; 0 for none."""
    max_new_tokens: int = 96
    """Tokens of such an answer at most."""

    def __post_init__(self) -> None:
        InstructionOptions.__post_init__(self)
        TuningOptions.__post_init__(self)
        if self.max_length and self.max_length < 2:
            raise UserError(f"--max-length must be at least 2 tokens (0 for the context), got {self.max_length}")
        for name, least in (("eval_examples", 1), ("ask", 0), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")
        try:
            self.system_prompt.encode()
        except UnicodeEncodeError:
            raise UserError("--system-prompt is not UTF-8: write it in a UTF-8 terminal") from None


@dataclass(frozen=True)
class Prepared:
    """The examples on one side of the split that fit, as texts and as tokens."""

    examples: list[Example]
    tokens: list[Tokens]
    cut: int
    """How many answers lost their end."""
    dropped: int
    """How many examples did not fit."""

    @property
    def lengths(self) -> list[int]:
        """Of each example, in tokens."""
        return [len(tokens) for tokens in self.tokens]

    @property
    def n_targets(self) -> int:
        """Tokens to learn to say."""
        return sum(int((tokens.targets != IGNORE).sum()) for tokens in self.tokens)


def prepare(
    examples: Sequence[Example], tokenizer: BytePairTokenizer, layout: PromptFormat, max_length: int, drop: bool
) -> Prepared:
    """Encodes what fits into `max_length` tokens. See `tokens_of` for what is cut."""
    kept, tokens, cut, dropped = [], [], 0, 0
    for example in examples:
        one = tokens_of(layout.encode(tokenizer, example.messages), max_length)
        if one is None or (drop and one.was_cut):
            dropped += 1
            continue
        kept.append(example)
        tokens.append(one)
        cut += one.was_cut
    return Prepared(kept, tokens, cut, dropped)


def plain_copy(model: GPT) -> GPT:
    """The model without adapters that does the same; the model itself where it has none."""
    if not lora_layers(model):
        return model
    with torch.device("meta"):
        plain = type(model)(model.config)
    plain.load_state_dict(merged_weights(model), assign=True)
    if model.config.tie_embeddings:
        plain.lm_head.weight = plain.transformer.wte.weight
    return plain.eval()


@torch.no_grad()
def token_accuracy(model: GPT, arrays: Arrays, ranks: Ranks, precision: Any, n_rows: int) -> float:
    """The share of targets that the model finds most probable, over all ranks.

    Args:
        arrays: what `packed` gives.
        n_rows: rows to compute at a time.
    """
    model.eval()
    right = asked = 0
    for start in range(ranks.rank * n_rows, len(arrays[0]), ranks.size * n_rows):
        ids, targets, documents, positions = (
            torch.from_numpy(array[start : start + n_rows]).to(ranks.device) for array in arrays
        )
        with autocast(ranks.device, precision):
            hidden = model.hidden_states(ids, None, documents, positions)  # (rows, tokens, d_model)
            counts = targets != IGNORE
            best = model.logits_of(hidden[counts]).argmax(dim=-1)  # (targets,)
        right, asked = right + int((best == targets[counts]).sum()), asked + int(counts.sum())
    model.train()
    all_right, all_asked = add_up(ranks, right, asked)
    return all_right / max(all_asked, 1)


class InstructionTask:
    """Instructions as a `Task` of `Tuning`.

    Raises:
        UserError, ValueError: the base model, its tokenizer or the data do not do; one line that says what to do.
    """

    def __init__(self, options: TrainInstruct, ranks: Ranks) -> None:
        self.options, self.ranks = options, ranks
        self.tokenizer = load_tokenizer(options.model)
        if END_OF_TEXT not in self.tokenizer.special_tokens:
            raise UserError(
                f"{options.model} cannot learn to end its answers: its tokenizer has no {END_OF_TEXT}; take a model "
                "whose tokenizer has one"
            )
        self.model: GPT = load_model(options.model, ranks.device, torch.float32)
        self.layout = PromptFormat.named(options.format)
        context = self.model.config.context_length
        if options.max_length > context:
            raise UserError(f"--max-length {options.max_length} is more than the model's context of {context} tokens")
        self.width = options.max_length or context
        self.report: dict[str, int] = {}
        sides = split_examples(self._with_system(read_examples(options, self.report)), options)
        self.train, self.validation = self._prepare(sides, "train"), self._prepare(sides, "validation")
        if options.packing:
            self.packed = PackedBatches(self.train.lengths, self.width, options.batch_size, options.seed)
        self.padded = ExampleBatches(self.train.lengths, options.batch_size, options.seed)
        self.measured = self._validation_rows()
        self.data = self._describe(sides)
        self.asked = _asked(self.train.examples, "trained", options.ask)
        self.asked += _asked(self.validation.examples, "held out", options.ask)
        self.answered: list[str] = []
        seed_everything(options.seed)  # the same adapters on every rank, and in every run
        self.lora: LoRA | None = options.adapters() if options.lora else None
        if self.lora is not None:
            add_lora(self.model, self.lora)
        self.model.train()
        self.objective = NextToken(self.model, options.chunk_tokens)
        self.blocks = blocks_of(self.model)

    @property
    def examples(self) -> Epochs:
        """What decides the batches."""
        return self.packed if self.options.packing else self.padded

    def _with_system(self, examples: list[Example]) -> list[Example]:
        prompt = self.options.system_prompt
        return [Example(with_system(example.messages, prompt), example.name) for example in examples]

    def _prepare(self, sides: dict[Side, list[Example]], side: Side) -> Prepared:
        o = self.options
        examples = sides[side][: o.eval_examples] if side == "validation" else sides[side]
        done = prepare(examples, self.tokenizer, self.layout, self.width, o.too_long == "drop")
        if not done.examples:
            raise UserError(
                f"none of the {len(examples)} {side} examples of {o.data} leaves room for an answer in {self.width} "
                "tokens: take a base model with a longer context, or shorter examples"
            )
        return done

    def _validation_rows(self) -> Arrays:
        """The held-out examples, packed in any case: the loss is the same, and little is computed in vain."""
        tokens = self.validation.tokens
        rows = best_fit(self.validation.lengths, self.width)
        return packed([[tokens[i] for i in row] for row in rows], self.width)

    def _describe(self, sides: dict[Side, list[Example]]) -> dict[str, Any]:
        o, train = self.options, self.train
        digest = hashlib.sha256(self.tokenizer.fingerprint.encode())
        for tokens in (*train.tokens, *self.validation.tokens):
            digest.update(tokens.inputs.tobytes() + tokens.targets.tobytes())
        lengths = np.asarray(train.lengths)
        some = lengths[:_TO_DECIDE_PADDING]
        return {
            "instructions": o.data,
            "rows": self.report,
            "examples": {side: len(examples) for side, examples in sides.items()},
            "tokens": {"train": int(lengths.sum()), "longest": int(lengths.max()), "targets": train.n_targets},
            "answers_cut": {"train": train.cut, "validation": self.validation.cut},
            "left_out_as_too_long": {"train": train.dropped, "validation": self.validation.dropped},
            "filled_up": {
                "packed": PackedBatches(lengths, self.width, o.batch_size).waste,
                "padded": padding_waste(some, ExampleBatches(some, o.batch_size)),
                "padded_unsorted": padding_waste(some, ExampleBatches(some, o.batch_size, pool=1)),
            },
            "format": o.format,
            "base": origin(o.model),
            "fingerprint": digest.hexdigest()[:16],
        }

    # --- what Tuning calls

    def batch(self, step: int, rank: int, ranks: int) -> Arrays:
        """A rank's slice of batch number `step`."""
        share = self.options.batch_size // ranks
        mine = slice(rank * share, (rank + 1) * share)
        tokens = self.train.tokens
        if self.options.packing:
            return packed([[tokens[i] for i in row] for row in self.packed(step)[mine]], self.width)
        return padded([tokens[i] for i in self.padded(step)[mine] if i >= 0], share)

    def evaluate(self, loop: TrainingLoop, last: bool) -> dict[str, float]:
        """Held-out loss and token accuracy; greedy answers to some questions, compared with the right ones."""
        o = self.options
        n_rows = max(o.batch_size // self.ranks.size // loop.parts, 1)
        figures = {
            "validation_loss": loop.mean_loss(*self.measured),
            "token_accuracy": token_accuracy(self.model, self.measured, self.ranks, o.precision, n_rows),
        }
        if self.asked and self.ranks.is_first:
            questions = [example.question for _, example in self.asked]
            self.answered = answers(plain_copy(self.model), self.tokenizer, self.layout, questions, o.max_new_tokens)
            for side in ("trained", "held out"):
                right = [
                    exactly(answer, example.answer)
                    for (of, example), answer in zip(self.asked, self.answered, strict=True)
                    if of == side
                ]
                figures[f"exact_match_{side.replace(' ', '_')}"] = sum(right) / max(len(right), 1)
        return figures

    def save(self, folder: Path, made_by: dict[str, Any]) -> None:
        """The model folder, adapters merged; beside it the adapters alone, and the questions."""
        plain_copy(self.model).save_pretrained(folder, self.tokenizer, made_by, beside=self.layout.beside())
        if self.lora is not None:
            save_adapter(self.model, folder.parent / "adapter", self.lora, self.options.model)
        asked = [{"side": side, "messages": list(e.question), "answer": e.answer} for side, e in self.asked]
        write_json(folder.parent / QUESTIONS, asked)

    def sample(self) -> str:
        """The first of the questions on each side, what was answered, and what is right."""
        lines = []
        for side in ("trained", "held out"):
            found = [i for i, (of, _) in enumerate(self.asked) if of == side][:5]
            for i in found if self.answered else ():
                example, answer = self.asked[i][1], self.answered[i]
                mark = "=" if exactly(answer, example.answer) else "x"
                lines.append(f"({side}) {example.question[-1]['content']}\n  {mark} {answer.strip()}")
                if mark == "x":
                    lines.append(f"  right: {example.answer.strip()}")
        return "\n".join(lines)


def _asked(examples: Sequence[Example], side: str, n: int) -> list[tuple[str, Example]]:
    """`n` examples with short answers, spread over all, each of another name."""
    short = {example.name: example for example in reversed(examples) if len(example.answer) <= 400}
    found = list(short.values())[::-1]
    step = max(len(found) // max(n, 1), 1)
    return [(side, example) for example in found[::step][:n]]


def say_what_is_learned(task: InstructionTask) -> None:
    """The counts: what was read, left out and cut, and what fills up the rows."""
    data, o = task.data, task.options
    rows = ", ".join(f"{n:,} {name}" for name, n in data["rows"].items())
    sides = ", ".join(f"{n:,} {side}" for side, n in data["examples"].items() if n)
    tokens, cut, out, fill = (data[k] for k in ("tokens", "answers_cut", "left_out_as_too_long", "filled_up"))
    print(f"{o.data}: {rows}; {sides}")
    print(
        f"{tokens['train']:,} tokens to learn from, {tokens['targets']:,} of them answers; the longest example has "
        f"{tokens['longest']:,}; {sum(cut.values()):,} answers cut at {task.width}, {sum(out.values()):,} examples "
        "left out as too long"
    )
    print(
        f"Only to fill up: {fill['packed']:.1%} of the tokens packed, {fill['padded']:.1%} padded (by length), "
        f"{fill['padded_unsorted']:.1%} padded as they come; here {'packed' if o.packing else 'padded'}"
    )


def train(options: TrainInstruct, ranks: Ranks) -> Ending:
    """The whole run."""
    options.parts(ranks.size)
    refuse_another_run(options)  # before the minutes that reading and encoding may take
    task = InstructionTask(options, ranks)
    tuning = Tuning(options, ranks, task)
    if ranks.is_first:
        say_what_is_learned(task)
    return tuning.train()


def main(options: TrainInstruct) -> None:
    with join_ranks(options.device) as ranks, alone_with(options, ranks):
        ending = train(options, ranks)
    if ending == "finished" and ranks.is_first:
        command = f"python finetuning/instruction/ask.py --model {quoted(options.run / 'model')}"
        print(f'Next: {command} "What does `len` do?"')
    exit_unless_finished(ending)


if __name__ == "__main__":
    run_command(main, TrainInstruct)
