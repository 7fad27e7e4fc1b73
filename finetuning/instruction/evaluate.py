"""How well models answer questions that they have not learned from: before and after a training, in one table.

python finetuning/instruction/evaluate.py --models runs/instruct/model runs/dpo/model

Two kinds of figures. With the reference answer given, each of its tokens is a question: how surprised is the model
(loss), and would it have been its first choice (accuracy)? And asked to answer by itself, greedily: is that the
reference, how near does it come, does it end, does it say different things to different questions (answer_metrics.py)?
With --judge-url, a larger model says whose answers are better (judge.py).

Losses per token can be compared between models of one tokenizer only; bits per byte between any.

    OUT/results.json     every figure and every answer
    OUT/answers.html     the answers side by side
"""

from __future__ import annotations

import math
import random
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from finetuning.instruction.answer_metrics import distinct, exact_match, keeps_format, layout_marks, rouge_l
from finetuning.instruction.answering import learned_system_prompt, with_system
from finetuning.instruction.answers_page import answers_page
from finetuning.instruction.instructions import EMBEDDED, InstructionOptions, read_examples, split_examples
from finetuning.instruction.judge import judge_from, win_rate
from finetuning.instruction.prompt_format import FormatName, Message, PromptFormat
from gpt_model import GPT
from gpt_model.generate import generate_tokens
from gpt_model.pretrained import find_folder, load_model, load_tokenizer, origin
from gpt_model.sampling import Sampling
from utils.devices import describe_device, pick_device
from utils.errors import UserError, run_command
from utils.files import require_writable, write_json, write_text
from utils.readme_tables import markdown_table
from utils.tracking import provenance
from working_with_text_data.bytepair_enc import BytePairTokenizer

COLUMNS = {  # figure -> its name in the table, and its format
    "loss": ("loss (nats a token)", ".4f"),
    "bits_per_byte": ("bits per byte", ".4f"),
    "token_accuracy": ("token accuracy", ".1%"),
    "exact_match": ("exact match", ".1%"),
    "rouge_l": ("ROUGE-L", ".4f"),
    "keeps_format": ("keeps the format", ".1%"),
    "distinct_1": ("distinct-1", ".4f"),
    "distinct_2": ("distinct-2", ".4f"),
    "answer_tokens": ("tokens an answer", ".1f"),
    "win_rate": ("win rate against the first", ".1%"),
}


@dataclass(frozen=True)
class Question:
    """What a model is asked, and what it should say."""

    messages: tuple[Message, ...]
    reference: str

    @property
    def text(self) -> str:
        """The conversation for people; a single question without its role."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n\n".join(f"{m['role']}: {m['content']}" for m in self.messages)


@dataclass(frozen=True)
class Evaluate(InstructionOptions):
    """The flags of this script: those that say which data, as train_instruct.py has them, and its own."""

    models: tuple[str, ...] = ("runs/instruct/model",)
    """Model folders or names on the hub, the one to compare with in front."""
    data: str = "default"
    """default: the questions about Python that train_instruct.py holds out; or anything that its --data takes (a file,
    a folder, the name of a data set on the hub), all of which is then asked."""
    held_out: bool = False
    """Ask only those of --data that train_instruct.py holds out of it, too, with the same --validation-share and
    --split-seed."""
    max_questions: int = 100
    """Ask so many at most, drawn by --seed."""
    format: FormatName = "alpaca"
    """The layout of messages for models that have none of their own."""
    max_new_tokens: int = 128
    """Tokens of an answer at most."""
    temperature: float = 0.0
    """0 always takes the most probable token, so that the figures are the same again."""
    batch_size: int = 16
    """Questions that are computed side by side."""
    out: Path = Path("runs/evaluation")
    """The folder for results.json and answers.html."""
    judge_url: str | None = None
    """Of an endpoint with OpenAI's API, up to /v1, that compares the answers with those of the first model."""
    judge_model: str | None = None
    """The model that judges there."""
    judge_key_variable: str = "JUDGE_API_KEY"
    """The environment variable that holds the key, if the endpoint wants one."""
    judge_timeout: float = 60.0
    """Seconds of silence after which a request counts as failed."""
    judge_retries: int = 4
    """How often a request is sent again that failed in a way that may pass."""
    seed: int = 0
    """Decides which questions are asked, and the draws of a --temperature above 0."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unread(self)
        for name in ("max_questions", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if not self.models or len(set(self.models)) != len(self.models):
            raise UserError("--models needs one model or several different ones")
        self.judge()
        if self.judge_url is not None and len(self.models) < 2:
            raise UserError("--judge-url compares models: give two or more to --models")
        try:
            Sampling(temperature=self.temperature, seed=self.seed)
        except ValueError as error:
            raise UserError(f"--{error}") from None

    def judge(self) -> Any:
        """The judge that the flags name, or None."""
        return judge_from(
            self.judge_url, self.judge_model, self.judge_key_variable, self.judge_timeout, self.judge_retries
        )


# --- the questions


def read_questions(options: Evaluate) -> list[Question]:
    """The questions of a file, or the held-out ones of it or of the embedded data; as many as the flags say, drawn by
    their seed.

    Raises:
        UserError: no such file, or no question with an answer in it; columns of other names.
        ValueError: the file is damaged.
    """
    options = replace(options, data=EMBEDDED if options.data == "default" else options.data)
    examples = read_examples(options)
    if options.held_out or options.data == EMBEDDED:
        examples = split_examples(examples, options)["validation"]
    found = [Question(example.question, example.answer) for example in examples]
    most = options.max_questions
    return found if len(found) <= most else random.Random(options.seed).sample(found, most)


def refuse_unread(options: InstructionOptions) -> None:
    """Refuses the flags of the training that say nothing of what is held out.

    Raises:
        UserError: one of them was given.
    """
    for name in ("test_share", "max_examples"):
        if getattr(options, name) != getattr(InstructionOptions, name):
            raise UserError(
                f"--{name.replace('_', '-')} chooses what is learned from, and nothing is here: leave it out"
            )


# --- one model


@dataclass(frozen=True)
class Answers:
    """What one model made of all questions."""

    figures: dict[str, float]
    texts: list[str]
    ended: list[bool]
    """Whether an answer ended by itself within the limit."""
    shortened: int
    """References or prompts that did not fit the context."""


def evaluate_model(
    model: GPT,
    tokenizer: BytePairTokenizer,
    layout: PromptFormat,
    questions: Sequence[Question],
    max_new_tokens: int = 128,
    batch_size: int = 16,
    sampling: Sampling | None = None,
) -> Answers:
    """All figures of a model but those that need another one.

    Args:
        sampling: how answers are drawn; greedy if not given.
    """
    figures, shortened = reference_figures(model, tokenizer, layout, questions, batch_size)
    texts, counts = answer_all(model, tokenizer, layout, questions, max_new_tokens, batch_size, sampling)
    ended = [n < max_new_tokens for n in counts]
    marks = layout_marks(layout)
    pairs = [(text, question.reference) for text, question in zip(texts, questions, strict=True)]
    n = len(questions)
    figures |= {
        "exact_match": sum(exact_match(*pair) for pair in pairs) / n,
        "rouge_l": sum(rouge_l(*pair) for pair in pairs) / n,
        "keeps_format": sum(keeps_format(t, e, marks) for t, e in zip(texts, ended, strict=True)) / n,
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "answer_tokens": sum(counts) / n,
    }
    return Answers(figures, texts, ended, shortened)


@torch.no_grad()
def reference_figures(
    model: GPT,
    tokenizer: BytePairTokenizer,
    layout: PromptFormat,
    questions: Sequence[Question],
    batch_size: int = 16,
) -> tuple[dict[str, float], int]:
    """Loss, accuracy and bits per byte of the reference answers, over all their tokens; and how many were shortened.

    A conversation longer than the context loses its beginning, and what is left of an answer still counts. The
    end-of-text of an answer is one of its tokens, and none of its bytes.
    """
    context = model.config.context_length
    rows, shortened = [], 0
    for question in questions:
        encoded = layout.encode(tokenizer, [*question.messages, {"role": "assistant", "content": question.reference}])
        end = len(encoded.answer) - encoded.answer[::-1].index(True)  # what follows the answer is not asked
        begin = end
        while begin and encoded.answer[begin - 1]:
            begin -= 1
        start = max(0, end - context)
        shortened += start > 0
        rows.append((encoded.ids[start:end], max(begin - start, 1)))
    nats = hits = n_tokens = n_bytes = 0.0
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    model.eval()
    for at in tqdm(range(0, len(order), batch_size), desc="reading", unit="batch", leave=False):
        some = order[at : at + batch_size]
        width = max(len(rows[i][0]) for i in some)
        ids = torch.zeros(len(some), width, dtype=torch.int64)
        asked = torch.zeros(len(some), width, dtype=torch.bool)
        for row, i in enumerate(some):
            own, begin = rows[i]
            ids[row, : len(own)] = torch.tensor(own)
            asked[row, begin : len(own)] = True
            spoken = [token for token in own[begin:] if token != tokenizer.eot_token]
            n_bytes += len(tokenizer.decode_bytes(spoken))
        ids, asked = ids.to(model.device), asked.to(model.device)
        logprobs, targets = _answer_tokens(model, ids, asked)
        nats -= logprobs.gather(1, targets.unsqueeze(1)).double().sum().item()
        hits += (logprobs.argmax(dim=1) == targets).sum().item()
        n_tokens += len(targets)
    bits = nats / math.log(2) / n_bytes if n_bytes else math.inf
    return {"loss": nats / n_tokens, "bits_per_byte": bits, "token_accuracy": hits / n_tokens}, shortened


def _answer_tokens(model: GPT, ids: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (answer tokens, vocab_size) and the tokens (answer tokens,) of what is `asked` of `ids`."""
    hidden = model.hidden_states(ids[:, :-1])  # (rows, tokens - 1, d_model)
    vectors = hidden[asked[:, 1:]]  # (answer tokens, d_model): each is asked for the token after its own
    return model.logits_of(vectors).float().log_softmax(dim=1), ids[:, 1:][asked[:, 1:]]


def answer_all(
    model: GPT,
    tokenizer: BytePairTokenizer,
    layout: PromptFormat,
    questions: Sequence[Question],
    max_new_tokens: int = 128,
    batch_size: int = 16,
    sampling: Sampling | None = None,
) -> tuple[list[str], list[int]]:
    """What the model says to each question, and in how many tokens; as many as the limit where it found no end.

    Questions of about the same length are answered side by side. Each has a seed of its own, whatever is beside it.
    """
    prompts = [layout.encode(tokenizer, question.messages, ask=True).ids for question in questions]
    said: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    how = sampling or Sampling(temperature=0)
    end = set(tokenizer.special_tokens.values())
    for at in tqdm(range(0, len(order), batch_size), desc="answering", unit="batch", leave=False):
        some = order[at : at + batch_size]
        own = [how if how.seed is None else Sampling(**asdict(how) | {"seed": how.seed + i}) for i in some]
        for token in generate_tokens(model, [prompts[i] for i in some], max_new_tokens, own, end):
            said[some[token.row]].append(token.id)
    return [tokenizer.decode(ids) for ids in said], [len(ids) for ids in said]


# --- the command


def main(options: Evaluate) -> None:
    require_writable(options.out)
    device = pick_device(options.device)
    questions = read_questions(options)
    print(f"{len(questions):,} questions of {options.data}, answered by {len(options.models)} models on {device}")
    found: dict[str, Answers] = {}
    made_by: dict[str, Any] = {}
    layouts: dict[str, str] = {}
    prompts: dict[str, str] = {}
    for name in options.models:
        model, tokenizer = load_model(name, device), load_tokenizer(name)
        own = PromptFormat.of(find_folder(name))
        layouts[name] = "its own" if own else options.format
        prompts[name] = learned_system_prompt(find_folder(name))
        how = Sampling(temperature=options.temperature, seed=options.seed)
        found[name] = evaluate_model(
            model,
            tokenizer,
            own or PromptFormat.named(options.format),
            [Question(with_system(q.messages, prompts[name]), q.reference) for q in questions],
            options.max_new_tokens,
            options.batch_size,
            how,
        )
        made_by[name] = origin(name)
        print(f"{name}: {model.n_parameters:,} parameters, layout: {layouts[name]}", end="")
        print(f", {found[name].shortened} conversations shortened" if found[name].shortened else "")
    about = provenance(
        device=describe_device(device),
        options=asdict(options),
        models=made_by,
        layouts=layouts,
        system_prompts=prompts,
    )
    write_results(options.out, about, questions, found)  # before a judge is asked, who may not answer
    print(f"Wrote {options.out}: results.json, answers.html")
    judge = options.judge()
    if judge is not None:
        first = options.models[0]
        asked = [question.text for question in questions]
        for name in options.models[1:]:
            found[name].figures.update(win_rate(judge, asked, found[name].texts, found[first].texts))
            write_results(options.out, about, questions, found)
    print(markdown_table(*_table(found)))
    for name, answers in found.items():
        if "wins" in answers.figures:
            counts = ("wins", "losses", "ties", "moved_with_position", "unparsable", "unanswered")
            told = ", ".join(f"{answers.figures[c]:.0f} {c.replace('_', ' ')}" for c in counts)
            low, high = answers.figures["win_rate_low"], answers.figures["win_rate_high"]
            print(f"{name} against {options.models[0]}: {told}; the rate is {low:.1%} to {high:.1%} with 95 %")
    print(f"Next: open {shlex.quote(str(options.out / 'answers.html'))}")


def _table(found: dict[str, Answers]) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and alignment: a row a figure, a column a model."""
    rows = []
    for figure, (name, spec) in COLUMNS.items():
        if any(figure in answers.figures for answers in found.values()):
            rows.append(
                [name, *(format(a.figures[figure], spec) if figure in a.figures else "" for a in found.values())]
            )
    return ["", *found], rows, "l" + "r" * len(found)


def write_results(
    folder: Path, about: dict[str, Any], questions: Sequence[Question], found: dict[str, Answers]
) -> None:
    """results.json and answers.html."""
    records = [
        {
            "messages": list(question.messages),
            "reference": question.reference,
            "answers": {name: answers.texts[i] for name, answers in found.items()},
        }
        for i, question in enumerate(questions)
    ]
    figures = {name: answers.figures for name, answers in found.items()}
    write_json(folder / "results.json", {"figures": figures, "made_by": about, "answers": records})
    header, rows, _ = _table(found)
    notes = {
        name: [
            f"ROUGE-L {rouge_l(text, question.reference):.2f}" + ("" if ended else ", without an end")
            for text, question, ended in zip(answers.texts, questions, answers.ended, strict=True)
        ]
        for name, answers in found.items()
    }
    page = answers_page(
        "Answers side by side",
        [header, *rows],
        [question.text for question in questions],
        [question.reference for question in questions],
        {name: answers.texts for name, answers in found.items()},
        notes,
    )
    write_text(folder / "answers.html", page)


if __name__ == "__main__":
    run_command(main, Evaluate)
