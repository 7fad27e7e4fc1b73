"""What OpenAI's clients send, and what they expect back: requests, answers, pieces of a stream, errors.

Fields that a client sends and that mean nothing here are passed over, as OpenAI's server does; those that would change
the answer and cannot be served (`n` above 1, pictures, tools, a format of the answer) are refused.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool

from chat_ui.chat_engine import Answer, Wish
from finetuning.instruction.prompt_format import Message
from gpt_model import Sampling, Token
from gpt_model.continuous_batching import Finish
from working_with_text_data.bytepair_enc import BytePairTokenizer

_MOST_STOPS = 16
_LONGEST_STOP = 256  # characters


class ApiError(Exception):
    """Something that a client is told, with its HTTP status."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class _Lenient(BaseModel):
    """Passes over what it does not know; a null is the same as nothing."""

    model_config = ConfigDict(extra="ignore")


class StreamOptions(_Lenient):
    """Of a streamed answer."""

    include_usage: StrictBool | None = None
    """A last piece tells the numbers of tokens."""


class Part(_Lenient):
    """A part of a message's content."""

    type: str
    text: str | None = None


class ChatMessage(_Lenient):
    """A turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None

    def as_message(self, place: int) -> Message:
        """The turn as the engine reads it.

        Raises:
            ApiError: a part of it is no text.
        """
        role: Any = "system" if self.role == "developer" else self.role
        if isinstance(self.content, list):
            for part in self.content:
                if part.type not in ("text", "input_text") or part.text is None:
                    raise ApiError(
                        400, f"content of type {part.type!r} cannot be read: text alone can", param=f"messages[{place}]"
                    )
            return {"role": role, "content": "".join(part.text or "" for part in self.content)}
        return {"role": role, "content": self.content or ""}


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=_LONGEST_STOP)]],
    BeforeValidator(_one_or_more),
    Field(max_length=_MOST_STOPS),
]


class _Request(_Lenient):
    """What both kinds of request have."""

    model: str
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stops | None = None
    n: int | None = None
    # what vLLM and others have, too
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    # what cannot be served: see `require_servable`
    best_of: Any = None
    tools: Any = None
    functions: Any = None
    response_format: Any = None
    logit_bias: Any = None
    suffix: Any = None

    def sampling(self) -> Sampling:
        """How tokens are drawn; OpenAI's defaults where nothing is said.

        Raises:
            ApiError: a value is out of its range.
        """
        try:
            return Sampling(
                temperature=1.0 if self.temperature is None else self.temperature,
                top_p=1.0 if self.top_p is None else max(self.top_p, 1e-6),
                top_k=max(self.top_k or 0, 0),  # -1 means all, elsewhere
                min_p=self.min_p or 0.0,
                repetition_penalty=self.repetition_penalty or 1.0,
                frequency_penalty=self.frequency_penalty or 0.0,
                presence_penalty=self.presence_penalty or 0.0,
                seed=None if self.seed is None else self.seed % 2**63,
            )
        except ValueError as error:
            raise ApiError(400, str(error), param=str(error).split()[0]) from None

    def require_servable(self) -> None:
        """Raises ApiError where several answers are wanted, or something that would make the answer another one."""
        for name in ("n", "best_of"):
            if getattr(self, name) not in (None, 1):
                raise ApiError(400, f"{name} must be 1: one answer is written for each request", param=name)
        for name in ("tools", "functions", "response_format", "logit_bias", "suffix"):
            if getattr(self, name) not in (None, "", [], {}, {"type": "text"}):
                raise ApiError(400, f"{name} cannot be served: leave it out", param=name)


class ChatRequest(_Request):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def conversation(self) -> list[Message]:
        """The turns, those of the system at the beginning as one."""
        turns = [message.as_message(i) for i, message in enumerate(self.messages)]
        n = next((i for i, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
        if n > 1:
            turns[:n] = [{"role": "system", "content": "\n\n".join(turn["content"] for turn in turns[:n])}]
        return turns

    def wish(self, most: int) -> Wish:
        """How the answer should be written, of `most` tokens at most."""
        self.require_servable()
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
        wanted = self.max_completion_tokens or self.max_tokens or most
        return Wish(
            min(wanted, most),
            self.sampling(),
            tuple(self.stop or ()),
            (self.top_logprobs or 0) if self.logprobs else None,
        )


class CompletionRequest(_Request):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]] = ""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: StrictBool | None = None

    def one_prompt(self) -> str | list[int]:
        """The text or the ids to continue.

        Raises:
            ApiError: there are several, or the prompt would have to be repeated.
        """
        if self.echo:
            raise ApiError(400, "echo cannot be served: the prompt is known to who sent it", param="echo")
        prompt: Any = self.prompt
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
            if len(prompt) > 1:
                raise ApiError(400, "one prompt is served for each request", param="prompt")
            prompt = prompt[0]
        if isinstance(prompt, list) and not prompt:
            raise ApiError(400, "the prompt is empty", param="prompt")
        return prompt

    def wish(self, most: int) -> Wish:
        """How the answer should be written, of `most` tokens at most; 16 if nothing is said, as at OpenAI."""
        self.require_servable()
        return Wish(min(self.max_tokens or 16, most), self.sampling(), tuple(self.stop or ()), self.logprobs)


_FINISH: dict[Finish, str] = {"stop": "stop", "length": "length", "context": "length", "cancelled": "length"}


class Reply:
    """Makes the parts of an answer.

    Args:
        model: what the client called it.
        is_chat: whether it is an answer of the chat kind.
        include_usage: the stream ends with the numbers of tokens; all pieces before have a null in their place.
    """

    def __init__(self, model: str, is_chat: bool, tokenizer: BytePairTokenizer, include_usage: bool = False) -> None:
        self.model, self.is_chat, self.tokenizer, self.include_usage = model, is_chat, tokenizer, include_usage
        self.id = f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self._offset = 0  # of the next token in the text, in characters

    def whole(self, text: str, tokens: Sequence[Token], answer: Answer) -> dict[str, Any]:
        """An answer in one piece."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason(answer)}
        choice["logprobs"] = self.logprobs(tokens) if answer.wish.n_logprobs is not None else None
        if self.is_chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        return self._object("chat.completion", [choice]) | {"usage": usage(answer)}

    def first(self) -> dict[str, Any]:
        """The first piece of a chat's stream: who speaks."""
        return self._piece({"role": "assistant", "content": ""}, None, None)

    def piece(self, text: str, token: Token | None, with_logprobs: bool) -> dict[str, Any]:
        """A piece of a stream."""
        logprobs = self.logprobs([token]) if with_logprobs and token is not None else None
        return self._piece({"content": text} if self.is_chat else {"text": text}, logprobs, None)

    def last(self, answer: Answer) -> dict[str, Any]:
        """The last piece with a choice: why it ended."""
        return self._piece({} if self.is_chat else {"text": ""}, None, finish_reason(answer))

    def usage(self, answer: Answer) -> dict[str, Any]:
        """The piece after that, with no choice and the numbers of tokens."""
        return self._object("chat.completion.chunk", []) | {"usage": usage(answer)}

    def _piece(self, delta: dict[str, Any], logprobs: Any, finish: str | None) -> dict[str, Any]:
        content = {"delta": delta} if self.is_chat else delta
        choice = {"index": 0, **content, "logprobs": logprobs, "finish_reason": finish}
        return self._object("chat.completion.chunk", [choice]) | ({"usage": None} if self.include_usage else {})

    def _object(self, chat_kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = chat_kind if self.is_chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """The log-probabilities of tokens, in the layout of a chat or of a completion."""
        if self.is_chat:
            content = [
                self._told(token.id, token.logprob or 0.0)
                | {"top_logprobs": [self._told(i, logprob) for i, logprob in token.alternatives]}
                for token in tokens
            ]
            return {"content": content, "refusal": None}
        texts = [self._text(token.id) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [  # the token itself is among them, even if it is none of the best
                {self._text(i): logprob for i, logprob in token.alternatives} | {text: token.logprob}
                for text, token in zip(texts, tokens, strict=True)
            ],
            "text_offset": offsets,
        }

    def _told(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self._text(token), "logprob": logprob, "bytes": list(self.tokenizer.decode_bytes([token]))}

    def _text(self, token: int) -> str:
        return self.tokenizer.decode_bytes([token]).decode("utf-8", errors="replace")


def finish_reason(answer: Answer) -> str | None:
    """Why an answer ended, in OpenAI's words."""
    return None if answer.finish is None else _FINISH[answer.finish]


def usage(answer: Answer) -> dict[str, Any]:
    """Numbers of tokens; those of the prompt that did not have to be read are told apart."""
    read, written = len(answer.prompt.ids), len(answer.ids)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": answer.n_reused},
    }
