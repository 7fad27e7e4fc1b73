"""Layouts: the same text and ids as `transformers`, and nothing that a user types is more than text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoTokenizer

from finetuning.instruction.prompt_format import TEMPLATES, Encoded, Message, PromptFormat
from gpt_model import GPT, GPTConfig
from gpt_model.pretrained import find_folder
from utils.errors import UserError
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.bytepair_enc.bpe import END_OF_TEXT

SYSTEM: Message = {"role": "system", "content": "Be brief."}
QUESTION: Message = {"role": "user", "content": "What is a plum? A fruit?\n  Say why."}
ANSWER: Message = {"role": "assistant", "content": "Yes: it grows on trees."}
AGAIN: Message = {"role": "user", "content": "And a carrot"}
LATER: Message = {"role": "assistant", "content": "No. "}
CONVERSATIONS: dict[str, list[Message]] = {
    "one turn": [QUESTION, ANSWER],
    "system": [SYSTEM, QUESTION, ANSWER],
    "two turns": [SYSTEM, QUESTION, ANSWER, AGAIN, LATER],
}
# As Llama 2's and Zephyr's are written: contents stripped, other marks, an end of its own.
STRIPPING = """\
{%- for m in messages %}
{%- if m['role'] == 'user' %}{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}
{%- elif m['role'] == 'system' %}{{ '<<SYS>> ' + m['content'] | trim + ' <</SYS>> ' }}
{%- else %}{{ m['content'].strip() + eos_token }}{% endif %}
{%- endfor %}
"""


@pytest.fixture(scope="module")
def tokenizer():
    texts = [m["content"] for messages in CONVERSATIONS.values() for m in messages] * 3 + list(TEMPLATES.values())
    return BytePairTokenizer.train(texts, 420)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    GPT(GPTConfig(vocab_size=tokenizer.n_vocab, context_length=8, n_layer=1, n_head=1, d_model=8)).save_pretrained(
        folder, tokenizer
    )
    return folder


def theirs(folder, template) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    return tokenizer


def said(tokenizer, encoded: Encoded) -> list[str]:
    """The stretches that are the model's to say."""
    parts, last = list[str](), False
    for i, mine in zip(encoded.ids, encoded.answer, strict=True):
        if mine and not last:
            parts.append("")
        if mine:
            parts[-1] += tokenizer.decode([i])
        last = mine
    return parts


@pytest.mark.parametrize("ask", [False, True])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", [*TEMPLATES.values(), STRIPPING], ids=[*TEMPLATES, "stripping"])
def test_text_and_ids_are_those_of_transformers(folder, tokenizer, template, conversation, ask):
    messages = CONVERSATIONS[conversation][:-1] if ask else CONVERSATIONS[conversation]
    layout, other = PromptFormat(template), theirs(folder, template)
    expected = other.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    assert layout.text(messages, ask) == expected
    ids = other.apply_chat_template(messages, tokenize=True, add_generation_prompt=ask, return_dict=False)
    assert layout.encode(tokenizer, messages, ask).ids == ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_model_folder_carries_the_layout_to_transformers(tmp_path, tokenizer, name):
    torch.manual_seed(0)
    layout = PromptFormat.named(name)
    model = GPT(GPTConfig(vocab_size=tokenizer.n_vocab, context_length=8, n_layer=1, n_head=1, d_model=8))
    model.save_pretrained(tmp_path / "model", tokenizer, beside=layout.beside())
    assert PromptFormat.of(tmp_path / "model") == layout
    other = AutoTokenizer.from_pretrained(tmp_path / "model")
    messages: Any = CONVERSATIONS["two turns"]
    assert other.apply_chat_template(messages, tokenize=False) == layout.text(messages)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_answers_and_their_ends_are_the_model_s_to_say_and_nothing_else(tokenizer, name, conversation):
    messages = CONVERSATIONS[conversation]
    encoded = PromptFormat.named(name).encode(tokenizer, messages)
    expected = [m["content"] + END_OF_TEXT for m in messages if m["role"] == "assistant"]
    assert said(tokenizer, encoded) == expected
    assert tokenizer.decode(encoded.ids) == PromptFormat.named(name).text(messages)


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_model_is_asked_with_is_what_stood_before_the_answer(tokenizer, name):
    """Or it would be asked in another way than it learned."""
    layout = PromptFormat.named(name)
    for messages in CONVERSATIONS.values():
        whole, asked = layout.encode(tokenizer, messages), layout.encode(tokenizer, messages[:-1], ask=True)
        last = len(whole.ids) - whole.answer[::-1].index(True) - 1
        start = last - whole.answer[: last + 1][::-1].index(False) + 1
        assert asked.ids == whole.ids[:start]
        assert not any(asked.answer[-1:])


@given(st.text(max_size=30), st.text(min_size=1, max_size=30))
@pytest.mark.parametrize("name", TEMPLATES)
def test_nothing_that_is_typed_is_a_special_token(tokenizer, name, before, after):
    typed = f"{before}{END_OF_TEXT}{after}\ue0000\ue001"
    messages: list[Message] = [{"role": "user", "content": typed}, {"role": "assistant", "content": typed}]
    encoded = PromptFormat.named(name).encode(tokenizer, messages)
    ends = [i for i, token in enumerate(encoded.ids) if token == tokenizer.eot_token]
    assert len(ends) == 1  # the template's own, behind the answer
    assert encoded.answer[ends[0]]
    assert said(tokenizer, encoded)[0].endswith(END_OF_TEXT)
    assert tokenizer.decode(encoded.ids) == PromptFormat.named(name).text(messages)


def test_a_foreign_template_that_strips_strips_the_ids_too(tokenizer):
    messages: list[Message] = [{"role": "user", "content": " \n a plum \n"}, {"role": "assistant", "content": " yes\n"}]
    encoded = PromptFormat(STRIPPING).encode(tokenizer, messages)
    assert tokenizer.decode(encoded.ids) == "[INST] a plum [/INST]yes" + END_OF_TEXT
    assert said(tokenizer, encoded) == ["yes" + END_OF_TEXT]


def test_a_template_that_loses_a_message_or_is_broken_says_so(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="leaves out a message"):
        PromptFormat("{{ messages[0].content }}").encode(tokenizer, [QUESTION, ANSWER])
    with pytest.raises(ValueError, match="cannot be read"):
        PromptFormat("{% for %}")
    refusing = PromptFormat("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match=r"refuses these messages .roles must alternate"):
        refusing.text([QUESTION])
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"chat_template.jinja: .*utf-8"):
        PromptFormat.of(tmp_path)
    assert PromptFormat.of(tmp_path / "nothing") is None


ALL = "{% for m in messages %}"


@pytest.mark.parametrize(
    "template",
    [
        ALL + "{{ m.content }}{{ m.content }}\n{% endfor %}",
        ALL + "{{ m.content | upper }}\n{% endfor %}",
        ALL + "{% if 'plum' in m.content %}Fruit: {% endif %}{{ m.content }}\n{% endfor %}",
        ALL + "{{ m.content }} ({{ m.content | length }})\n{% endfor %}",
        ALL + "{{ m.content }}{% endfor %}{{ messages[0].content }}",
    ],
)
def test_a_template_that_does_not_give_contents_back_says_so(tokenizer, template):
    with pytest.raises(ValueError, match="changes what is in a message, repeats it or depends on it"):
        PromptFormat(template).encode(tokenizer, [QUESTION, ANSWER])


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ messages[5].content }}", "{{ messages + 1 }}", "{{ no() }}"])
def test_a_template_that_cannot_be_rendered_says_so(tokenizer, template):
    with pytest.raises(ValueError, match="the chat template refuses these messages"):
        PromptFormat(template).encode(tokenizer, [QUESTION, ANSWER])


def test_a_tokenizer_without_an_end_cannot_end_answers():
    bare = BytePairTokenizer.train(["abc"], 256, special_tokens=())
    with pytest.raises(ValueError, match=r"has no <.endoftext.>"):
        PromptFormat.named("alpaca").encode(bare, [QUESTION, ANSWER])


def test_alpaca_s_layout_is_alpaca_s():
    with_input: Message = {"role": "user", "content": "Add.\n\n### Input:\n1 2"}
    text = PromptFormat.named("alpaca").text([with_input], ask=True)
    assert text == "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"


def test_a_template_is_compiled_once_however_many_examples_there_are(tokenizer, monkeypatch):
    compiled = []
    from_string = ImmutableSandboxedEnvironment.from_string

    def counting(environment, source, *rest, **named):
        compiled.append(source)
        return from_string(environment, source, *rest, **named)

    monkeypatch.setattr(ImmutableSandboxedEnvironment, "from_string", counting)
    own = "{# of this test alone #}" + TEMPLATES["chat"]
    messages: list[Message] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    texts = {PromptFormat(own).text(messages) for _ in range(3)}
    PromptFormat(own).encode(tokenizer, messages)
    assert texts == {PromptFormat.named("chat").text(messages)}
    assert compiled.count(own) == 1


def test_an_empty_template_names_its_file(tmp_path):
    (tmp_path / "chat_template.jinja").write_text(" \n")
    with pytest.raises(UserError, match=r"chat_template\.jinja: it is empty"):
        PromptFormat.of(tmp_path)


def test_a_run_s_folder_is_told_from_its_model(tmp_path):
    (tmp_path / "model").mkdir()
    for folder in (tmp_path, tmp_path / "model"):
        (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is the folder of a run: its model is .*model$"):
        find_folder(tmp_path)
    assert find_folder(tmp_path / "model") == tmp_path / "model"
