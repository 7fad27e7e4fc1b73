"""Asks a model that follows instructions, in the layout that it was trained with.

The question ends with what stands before an answer (`PromptFormat.encode` with `ask`), and the answer ends with the
end-of-text token. Questions are answered side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetuning.instruction.prompt_format import Message, PromptFormat
from gpt_model import GPT
from gpt_model.generate import generate_tokens
from gpt_model.pretrained import MADE_BY
from gpt_model.sampling import Sampling
from utils.errors import UserError
from utils.files import read_json
from working_with_text_data.bytepair_enc import BytePairTokenizer


def answers(
    model: GPT,
    tokenizer: BytePairTokenizer,
    layout: PromptFormat,
    questions: Sequence[Sequence[Message]],
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    side_by_side: int = 32,
) -> list[str]:
    """The answer to each conversation that ends with a question; greedy if no `sampling` is given.

    A question longer than the context keeps its end.

    Args:
        side_by_side: how many are answered at a time.
    """
    texts: list[str] = []
    for start in range(0, len(questions), side_by_side):
        some = questions[start : start + side_by_side]
        prompts = [layout.encode(tokenizer, question, ask=True).ids for question in some]
        ids: list[list[int]] = [[] for _ in some]
        end = set(tokenizer.special_tokens.values())
        for token in generate_tokens(model, prompts, max_new_tokens, sampling or Sampling(temperature=0), end):
            ids[token.row].append(token.id)
        texts += [tokenizer.decode(one) for one in ids]
    return texts


def exactly(answer: str, expected: str) -> bool:
    """Whether an answer is the expected one, white space aside."""
    return answer.split() == expected.split()


def require_layout(folder: Path | str) -> PromptFormat:
    """The layout of a model folder.

    Raises:
        UserError: the model has learned no instructions.
    """
    layout = PromptFormat.of(folder)
    if layout is None:
        raise UserError(
            f"{folder} is a base model, which continues text and knows no instructions: let it write with "
            "python gpt_model/generate.py, or teach it with python finetuning/instruction/train_instruct.py"
        )
    return layout


def learned_system_prompt(folder: Path) -> str:
    """What stood before each conversation in training, as a model folder tells; "" where it does not.

    Raises:
        ValueError: what the folder tells of its making is damaged.
    """
    path = folder / MADE_BY
    made_by = read_json(path) if path.is_file() else {}
    if not isinstance(made_by, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object")
    options = made_by.get("options")
    return str(options.get("system_prompt", "")) if isinstance(options, dict) else ""


def with_system(messages: Sequence[Message], system_prompt: str) -> tuple[Message, ...]:
    """The conversation with a system message before it, if there is one to say and it has none."""
    if not system_prompt or (messages and messages[0]["role"] == "system"):
        return tuple(messages)
    return {"role": "system", "content": system_prompt}, *messages
