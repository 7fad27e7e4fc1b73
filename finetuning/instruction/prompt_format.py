"""How messages become a text, once for training, for the chat and for the API.

A model that has learned instructions has learned them in one layout, and in another it is lost. So the layout goes with
the model: as a Jinja template in `chat_template.jinja` of its folder, which `transformers` applies identically
(`tokenizer.apply_chat_template`). Two are here.

    alpaca   ### Instruction: … ### Response: …, as Stanford's Alpaca had it (Taori et al. 2023); the layout that most
             small instruction models were trained with. It has no roles: later turns follow in the same way.
    chat     <|user|> … <|assistant|> …, a line for each role. The marks are plain text here, not new tokens, so that a
             pretrained vocabulary stays as it is.

Every answer ends with the tokenizer's end-of-text token, so that the model learns to stop. No text that a user types
is ever such a token: only the template's own parts are searched for special tokens, and what is in a message is encoded
as ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypedDict

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gpt_model.pretrained import CHAT_TEMPLATE
from utils.errors import UserError
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.bytepair_enc.bpe import END_OF_TEXT

Role = Literal["system", "user", "assistant"]
FormatName = Literal["alpaca", "chat"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


class Message(TypedDict):
    """One turn of a conversation."""

    role: Role
    content: str


def is_message(value: Any) -> bool:
    """Whether what came out of a file is a `Message`."""
    return isinstance(value, dict) and isinstance(value.get("content"), str) and value.get("role") in ROLES


ALPACA_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{ message.content + '\\n\\n' }}
{%- elif message.role == 'user' -%}
{{ '### Instruction:\\n' + message.content + '\\n\\n' }}
{%- else -%}
{{ '### Response:\\n' + message.content + eos_token + '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '### Response:\\n' }}
{%- endif -%}
"""

CHAT_LAYOUT = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{ '<|assistant|>\\n' + message.content + eos_token + '\\n' }}
{%- else -%}
{{ '<|' + message.role + '|>\\n' + message.content + '\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|assistant|>\\n' }}
{%- endif -%}
"""

TEMPLATES: dict[FormatName, str] = {"alpaca": ALPACA_TEMPLATE, "chat": CHAT_LAYOUT}
_HOLE = "\ue000{}\ue001"  # stands for the content of message {} while a template is rendered: private-use characters
_SPACE = "\u205f"  # around it: a rare white space, which a template that strips contents takes away


@dataclass(frozen=True)
class Encoded:
    """A conversation as ids, and which of them are the model's to say."""

    ids: list[int]
    answer: list[bool]
    """As long as `ids`: True for what an assistant says, its end among it."""


@dataclass(frozen=True)
class PromptFormat:
    """A layout of messages.

    Raises:
        ValueError: the template is no Jinja template.
    """

    template: str

    def __post_init__(self) -> None:
        try:
            _compiled(self.template)
        except TemplateError as error:
            raise ValueError(f"the chat template cannot be read ({error})") from None

    @classmethod
    def named(cls, name: FormatName) -> PromptFormat:
        """One of `TEMPLATES`."""
        return cls(TEMPLATES[name])

    @classmethod
    def of(cls, folder: Path | str) -> PromptFormat | None:
        """The layout that a model folder was trained with; None for one that knows no instructions."""
        path = Path(folder) / CHAT_TEMPLATE
        if not path.is_file():
            return None
        try:
            template = path.read_text(encoding="utf-8")
            if not template.strip():
                raise ValueError("it is empty: bring it back, or train the model again")
            return cls(template)
        except (ValueError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: {error}") from None

    def beside(self) -> dict[str, bytes]:
        """What `save_pretrained` is to write into the model folder."""
        return {CHAT_TEMPLATE: self.template.encode()}

    def text(self, messages: Sequence[Message], ask: bool = False) -> str:
        """The whole text, as `tokenizer.apply_chat_template(messages, tokenize=False)` of `transformers` gives it.

        Args:
            ask: end with what stands before an answer.
        """
        return self._render([dict(message) for message in messages], ask)

    def encode(self, tokenizer: BytePairTokenizer, messages: Sequence[Message], ask: bool = False) -> Encoded:
        """The same as ids. Special tokens stand where the template has them, and nowhere else.

        They are the ids that `transformers` gives to `text`, but for two things: what looks like a special token in a
        message stays text, and an answer begins with a token of its own, since that is where a model goes on.

        Raises:
            ValueError: the tokenizer has no end-of-text token, or a template does not give back what is in a message.
        """
        if END_OF_TEXT not in tokenizer.special_tokens:
            raise ValueError(f"the tokenizer has no {END_OF_TEXT}, with which answers end")
        # Contents are held out while the template is rendered, so that no content can be taken for a part of it.
        held = [{"role": m["role"], "content": _SPACE + _HOLE.format(i) + _SPACE} for i, m in enumerate(messages)]
        rest, ids, told = self._render(held, ask), _Ids(tokenizer), ""
        for i, message in enumerate(messages):
            before, hole, rest = rest.partition(_HOLE.format(i))
            if not hole:
                raise ValueError("the chat template leaves out a message, or changes the order of messages")
            content = message["content"]
            if not before.endswith(_SPACE):  # the template has stripped it
                content = content.lstrip()
            if not rest.startswith(_SPACE):
                content = content.rstrip()
            ids.add_template(before.removesuffix(_SPACE))
            rest = rest.removeprefix(_SPACE)
            told += before.removesuffix(_SPACE) + content
            if message["role"] == "assistant":
                after = ids.add_answer(content, rest)
                told += rest.removesuffix(after)
                rest = after
            else:
                ids.add_text(content)
        ids.add_template(rest)
        if self.template not in TEMPLATES.values() and told + rest != self.text(messages, ask):
            raise ValueError(
                "the chat template changes what is in a message, repeats it or depends on it: take one that puts "
                "contents in as they are"
            )
        return ids.encoded()

    def _render(self, messages: list[dict[str, Any]], ask: bool) -> str:
        template = _compiled(self.template)
        try:
            return template.render(
                messages=messages, add_generation_prompt=ask, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT
            )
        except Exception as error:  # a template is a program, and may fail in any way
            raise ValueError(f"the chat template refuses these messages ({error})") from None


class _Ids:
    """Collects ids. Text that touches is encoded in one piece, since a token may reach from one part into the next."""

    def __init__(self, tokenizer: BytePairTokenizer) -> None:
        self.tokenizer = tokenizer
        self.specials = re.compile("|".join(map(re.escape, tokenizer.special_tokens)))
        self.ids: list[int] = []
        self.answer: list[bool] = []
        self.waiting = ""

    def add_text(self, text: str) -> None:
        """Text of a person, in which nothing is special."""
        self.waiting += text

    def add_template(self, text: str) -> None:
        """A part of the template, with its special tokens."""
        while found := self.specials.search(text):
            self.waiting += text[: found.start()]
            self._extend([self.tokenizer.special_tokens[found[0]]], said=False)
            text = text[found.end() :]
        self.waiting += text

    def add_answer(self, text: str, rest: str) -> str:
        """What the model says, with the special token at its end if the template has one; the rest of the template."""
        ids = self.tokenizer.encode_ordinary(text)
        if end := self.specials.match(rest):
            ids.append(self.tokenizer.special_tokens[end[0]])
            rest = rest[end.end() :]
        self._extend(ids, said=True)
        return rest

    def encoded(self) -> Encoded:
        """All of it."""
        self._extend([], said=False)
        return Encoded(self.ids, self.answer)

    def _extend(self, ids: list[int], said: bool) -> None:
        """Adds what waits, and then `ids`."""
        before = self.tokenizer.encode_ordinary(self.waiting)
        self.waiting = ""
        self.ids += before + ids
        self.answer += [False] * len(before) + [said] * len(ids)


@lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    """Compiling takes far longer than rendering one example, and there may be fifty thousand of them."""
    return _environment().from_string(template)


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as `transformers` sets it up: blocks swallow the line that they stand on, and nothing can be reached."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment.globals["raise_exception"] = refuse
    return environment
