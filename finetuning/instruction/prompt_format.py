"""How messages become a text, once for training, for the chat and for the API.

A model that has learned instructions has learned them in one layout, and in another it is lost. So the layout goes with
the model: as a Jinja template in `chat_template.jinja` of its folder, which `transformers` applies identically
(`tokenizer.apply_chat_template`). Two are here.

    alpaca   ### Instruction: … ### Response: …, as Stanford's Alpaca had it (Taori et al. 2023); the layout that most
             small instruction models were trained with. It has no roles: later turns follow in the same way.
    chat     <|user|> … <|assistant|> …, a line for each role. The marks are plain text here, not new tokens, so that a
             pretrained vocabulary stays as it is.

Every answer ends with the tokenizer's end-of-text token, so that the model learns to stop. That token, and no text
that a user types, is ever a control token: the template's parts are encoded one by one, and what is in a message is
encoded as ordinary text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gpt_model.pretrained import CHAT_TEMPLATE
from utils.errors import UserError
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.bytepair_enc.bpe import END_OF_TEXT

Role = Literal["system", "user", "assistant"]
FormatName = Literal["alpaca", "chat"]


class Message(TypedDict):
    """One turn of a conversation."""

    role: Role
    content: str


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
            _environment().from_string(self.template)
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
            return cls(path.read_text(encoding="utf-8"))
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
        """The same as ids: the template's own parts with the end-of-text token, each message as ordinary text.

        Raises:
            ValueError: the tokenizer has no end-of-text token, or a template does not give back what is in a message.
        """
        if END_OF_TEXT not in tokenizer.special_tokens:
            raise ValueError(f"the tokenizer has no {END_OF_TEXT}, with which answers end")
        # Contents are held out while the template is rendered, so that no content can be taken for a part of it.
        held = [{"role": m["role"], "content": _HOLE.format(i)} for i, m in enumerate(messages)]
        rest, ids, answer = self._render(held, ask), list[int](), list[bool]()
        for i, message in enumerate(messages):
            before, hole, rest = rest.partition(_HOLE.format(i))
            if not hole:
                raise ValueError("the chat template leaves out a message, or changes the order of messages")
            said = message["role"] == "assistant"
            _extend(ids, answer, tokenizer.encode(before, allowed_special={END_OF_TEXT}), False)
            _extend(ids, answer, tokenizer.encode_ordinary(message["content"]), said)
            if said and rest.startswith(END_OF_TEXT):
                _extend(ids, answer, [tokenizer.eot_token], True)
                rest = rest.removeprefix(END_OF_TEXT)
        _extend(ids, answer, tokenizer.encode(rest, allowed_special={END_OF_TEXT}), False)
        return Encoded(ids, answer)

    def _render(self, messages: list[dict[str, Any]], ask: bool) -> str:
        template = _environment().from_string(self.template)
        try:
            return template.render(
                messages=messages, add_generation_prompt=ask, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT
            )
        except TemplateError as error:
            raise ValueError(f"the chat template refuses these messages ({error})") from None


def _extend(ids: list[int], answer: list[bool], more: list[int], said: bool) -> None:
    ids += more
    answer += [said] * len(more)


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as `transformers` sets it up: blocks swallow the line that they stand on, and nothing can be reached."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment.globals["raise_exception"] = refuse
    return environment
