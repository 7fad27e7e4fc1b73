"""The chat in the browser, on the models of this machine.

chainlit run chat_ui/app.py            # from the repository's root; or make chat

Everything that has to do with a model is in `chat_engine.py`, which knows no web framework; here is what the page
needs. Tokens come from the engine's thread into an asyncio queue, so nothing here blocks, and who writes to one person
does not keep another waiting. An answer is written by a task of its own, which no lost connection and no stop button
breaks off in the middle: these cancel the *answer*, it ends at its next token, and the task puts away what there is.

Where things are kept: `runs/chat/`, or `$SCRATCHBOOK_RUNS/chat/`. `$SCRATCHBOOK_DEVICE` picks the processor.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any

import chainlit as cl
import chainlit.config
import chainlit.server
from chainlit.chat_context import chat_contexts
from chainlit.config import APP_ROOT, config
from chainlit.session import WebsocketSession
from chainlit.types import ThreadDict
from starlette.datastructures import Headers

from attention_mechanisms.attention_maps import to_png
from chat_ui.accounts import Accounts, chat_folder, session_secret
from chat_ui.chat_engine import Answer, Busy, ChatEngine, Piece
from chat_ui.conversation import Figures, Markdown, conversation, goes_on, is_answer, metadata_of, wish_from
from chat_ui.history import History
from chat_ui.look_inside import MOST_TOKENS, candidates, draw_attention, draw_candidates
from chat_ui.models import MAKE_ONE, Choice, Models
from chat_ui.own_pages_only import OwnPagesOnly, with_proper_ids, without_links_elsewhere
from chat_ui.settings_panel import widgets
from chat_ui.starters import starters
from utils.addresses import is_loopback
from utils.devices import pick_device
from utils.errors import UserError, one_line

_PATIENCE = 10  # seconds that a lost connection may take to come back before its answer is cancelled
_A_MOMENT, _A_CHARACTER = 0.03, 3e-5  # seconds between two pieces on the page, which sets all of a text anew each time
_LARGEST = 16 * 2**20  # bytes of a message; far more than any model here reads, so that one can be told
_NOTHING = "nothing trained yet"
_CHAINLIT_STOPPED = "Task manually stopped."


def begin() -> tuple[Models, Accounts, History]:
    """Checks what has to be right before anybody is served, and sets up what all share."""
    if Path(APP_ROOT).resolve() != Path(__file__).resolve().parent:
        raise UserError("start the chat from the repository's root, `chainlit run chat_ui/app.py`, or by `make chat`")
    accounts = Accounts(chat_folder() / "accounts.json")
    if not accounts.read() and not is_loopback(config.run.host):
        raise UserError(
            f"--host {config.run.host} can be reached from other machines, and nobody has to log in: add an account "
            "first, python chat_ui/accounts.py --add NAME"
        )
    os.environ.setdefault("CHAINLIT_AUTH_SECRET", session_secret(chat_folder() / "secret"))
    chainlit.server.app.add_middleware(OwnPagesOnly)
    chainlit.server.sio.on("connect", with_proper_ids(chainlit.server.sio.handlers["/"]["connect"]))
    chainlit.server.sio.eio.max_http_buffer_size = _LARGEST  # beyond it a connection breaks off without a word
    # Chainlit empties its folder of files when it ends, and a second chat of the same folder would lose its pictures.
    files = chat_folder() / "files" / str(os.getpid())
    files.mkdir(parents=True, exist_ok=True)
    chainlit.config.FILES_DIRECTORY = chainlit.server.FILES_DIRECTORY = files  # type: ignore[attr-defined]
    page = chainlit.server.get_html_template
    chainlit.server.get_html_template = lambda root_path: without_links_elsewhere(page(root_path))
    models = Models(chat_folder().parent, pick_device(os.environ.get("SCRATCHBOOK_DEVICE", "auto")))
    return models, accounts, History(chat_folder() / "history.sqlite")


try:
    models, accounts, kept = begin()
except (UserError, ValueError, OSError) as error:
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(2)


# Who is there


if accounts.read():

    @cl.password_auth_callback
    async def log_in(name: str, password: str) -> cl.User | None:
        """A wrong password costs a second."""
        if await asyncio.to_thread(accounts.check, name, password):
            return cl.User(identifier=name)
        await asyncio.sleep(1)
        return None

else:

    @cl.header_auth_callback
    async def whoever_sits_here(headers: Headers) -> cl.User | None:
        """Nobody has to log in; but under another name this machine is not spoken to (DNS rebinding)."""
        name = headers.get("host", "").rsplit(":", 1)[0].strip("[]")
        return cl.User(identifier="you") if is_loopback(name) else None


@cl.data_layer
def history() -> History:
    """Where conversations are kept."""
    return kept


# What can be picked


@cl.set_chat_profiles
async def profiles(user: cl.User | None, language: str | None) -> list[cl.ChatProfile]:
    """A profile for each model."""
    found = await asyncio.to_thread(models.choices)
    ours = [choice for choice in found if choice.source != choice.name]
    listed = [
        cl.ChatProfile(
            name=choice.name,
            markdown_description=choice.about,
            icon="/public/favicon.svg",
            default=bool(ours) and choice == ours[0],
            starters=[cl.Starter(label=label, message=text) for label, text in starters(choice)],
        )
        for choice in found
    ]
    if not ours:
        about = f"There is no model in `{models.runs}`: {MAKE_ONE}"
        listed.insert(0, cl.ChatProfile(name=_NOTHING, markdown_description=about, default=True))
    return listed


def chosen() -> Choice:
    """The model of this conversation.

    Raises:
        UserError: there is none, or it is gone.
    """
    name = cl.user_session.get("chat_profile")
    found = {choice.name: choice for choice in models.choices()}
    if name in found:
        return found[name]
    if name in (None, _NOTHING):
        raise UserError(
            f"there is no model here yet: {MAKE_ONE}; then reload this page. With a network, pick gpt2 above instead"
        )
    raise UserError(f"the model {name} is gone from {models.runs}: pick another one above, or make one, {MAKE_ONE}")


async def show_settings() -> Choice:
    """Puts the settings of this conversation on the page, as they stand, and gives back its model.

    Raises:
        UserError: there is none, or it is gone.
    """
    choice = await asyncio.to_thread(chosen)
    values = {"system_prompt": models.system_prompt(choice.source), **(cl.user_session.get("chat_settings") or {})}
    await cl.ChatSettings(widgets(choice.answers, values)).send()
    return choice


# A conversation


@cl.on_chat_start
async def start() -> None:
    """A new conversation: its settings, and the model on its way into memory."""
    try:
        choice = await show_settings()
    except UserError as error:
        await tell(error)
        return
    if choice.source != choice.name:  # what the hub would have to be asked for waits for the first message
        _in_background(asyncio.to_thread(models.engine, choice.source))


@cl.on_chat_resume
async def resume(thread: ThreadDict) -> None:
    """An old conversation: its settings and, once the page shows it, the buttons under its answers.

    Also whenever its page comes back after a lost connection; Chainlit then adds all messages to what is there already.
    """
    cl.chat_context.clear()
    await _finish_what_nobody_watches(thread)
    try:
        await show_settings()
    except UserError as error:
        await tell(error)
        return

    async def add_buttons() -> None:
        await asyncio.sleep(0.5)
        for message in cl.chat_context.get():
            if is_answer(message):
                await add_actions(message)

    _in_background(add_buttons())


_greet = chainlit.server.sio.handlers["/"]["connection_successful"]


async def come_back(sid: str) -> None:
    """A page that comes back gets its settings once more: what was sent while it was away is lost.

    Chainlit's page does so whenever a model is picked: it connects, hangs up and connects again.
    """
    await _greet(sid)
    if WebsocketSession.require(sid).restored:
        with contextlib.suppress(UserError):
            await show_settings()


chainlit.server.sio.on("connection_successful", come_back)


async def _finish_what_nobody_watches(thread: ThreadDict) -> None:
    """A page that was reloaded while an answer was written: the answer ends, and is part of the conversation."""
    for writing in list(_writing):
        if writing.session.thread_id == thread["id"] and not writing.is_watched and writing.task is not None:
            writing.cancel()
            await asyncio.wait([writing.task])
            for _ in range(20):  # it is put away by the way
                fresh = await history().get_thread(thread["id"])
                if fresh and any(step.get("id") == writing.reply.id for step in fresh["steps"]):
                    thread["steps"] = fresh["steps"]
                    break
                await asyncio.sleep(0.05)


@cl.on_message
async def asked(message: cl.Message) -> None:
    """A message of a person, new or edited: an answer."""
    before = [one for one in cl.chat_context.get() if one.id != message.id]
    await write_answer([*before, message], message.content)


class Writing:
    """An answer on its way, and whose it is."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.reply = cl.Message("")
        self.answer: Answer | None = None  # None while the model is being loaded and the prompt encoded
        self.unwanted = False
        self.task: asyncio.Task[None] | None = None

    @property
    def is_watched(self) -> bool:
        """Whether the page that asked is still connected."""
        return bool(chainlit.server.sio.manager.is_connected(self.session.socket_id, "/"))

    def begin(self, answer: Answer) -> None:
        """The engine has it."""
        self.answer = answer
        if self.unwanted:
            answer.cancel()

    def cancel(self) -> None:
        """Ends it at its next token."""
        self.unwanted = True
        if self.answer is not None:
            self.answer.cancel()


_writing: set[Writing] = set()


async def write_answer(
    shown: list[cl.Message],
    question: str = "",
    attempt: int = 0,
    more_of: cl.Message | None = None,
    in_place_of: Sequence[cl.Message] = (),
) -> None:
    """Writes an answer below what is `shown`, and comes back when it is there.

    Args:
        question: what a base model continues.
        attempt: how often it was written before.
        more_of: an answer that goes on, in place of a new one.
        in_place_of: what goes once the answer begins, and stays if it cannot.
    """
    writing = Writing(cl.context.session)
    _writing.add(writing)
    writing.task = asyncio.create_task(_write_answer(writing, shown, question, attempt, more_of, in_place_of))
    writing.task.add_done_callback(lambda _: _writing.discard(writing))
    await asyncio.shield(writing.task)  # the stop button cancels who waits here; the answer ends by itself


async def _write_answer(
    writing: Writing,
    shown: list[cl.Message],
    question: str,
    attempt: int,
    more_of: cl.Message | None,
    in_place_of: Sequence[cl.Message],
) -> None:
    settings = dict(cl.user_session.get("chat_settings") or {})
    try:
        choice = await asyncio.to_thread(chosen)
        if not question.strip() and more_of is None:
            raise UserError("the message is empty: write something")
        wish = wish_from(settings, slide=not choice.answers, attempt=attempt)
        engine = await asyncio.to_thread(models.engine, choice.source)
        if more_of is not None:
            prompt = goes_on(more_of.metadata or {}, engine.context_length)
        else:
            turns = conversation(shown, str(settings.get("system_prompt", "") or ""))
            prompt = await asyncio.to_thread(engine.prompt, turns if engine.layout else question, wish.max_new_tokens)
        answer, pieces = engine.stream(prompt, wish)
    except (UserError, Busy) as error:
        await tell(error)
        return
    writing.begin(answer)
    for message in in_place_of:
        await message.remove()
    text = ""
    try:
        text = await _show(writing.reply, pieces, is_markdown=engine.layout is not None)
    except Exception as error:  # inside the engine; out of memory, say
        await tell(error)
    finally:
        answer.cancel()
    writing.reply.metadata = metadata_of(answer, text, choice.source, attempt)
    await writing.reply.send()
    await add_actions(writing.reply)


async def _show(reply: cl.Message, pieces: AsyncIterator[Piece], is_markdown: bool) -> str:
    """Puts an answer on the page as it comes, and gives back its text.

    What a base model writes is shown letter by letter and line by line, as it is; an answer may have Markdown in it.
    """
    reply.language = None if is_markdown else "txt"
    markdown, text, to_show, shown_at = Markdown(), "", "", 0.0
    async for piece in pieces:
        text += piece.text
        to_show += markdown.feed(piece.text) if is_markdown else piece.text
        if time.monotonic() > shown_at + _A_MOMENT + len(text) * _A_CHARACTER:
            await reply.stream_token(to_show)
            to_show, shown_at = "", time.monotonic()
    await reply.stream_token(to_show + markdown.finish())
    return text


async def tell(error: Exception) -> None:
    """What went wrong, in a line, as a notice that the model never reads."""
    await cl.ErrorMessage(one_line(error)).send()


async def add_actions(message: cl.Message) -> None:
    """The buttons under an answer."""
    metadata = message.metadata or {}
    figures, payload = Figures(**metadata["answer"]), {"message": message.id}
    buttons = [
        cl.Action(name="figures", label=figures.short(), tooltip=figures.long(), icon="gauge", payload=payload),
        cl.Action(name="look_inside", label="Look inside", icon="microscope", payload=payload),
        cl.Action(name="regenerate", label="Regenerate", icon="refresh-cw", payload=payload),
    ]
    if figures.finish in ("length", "cancelled", "context"):
        buttons.append(cl.Action(name="go_on", label="Go on", icon="arrow-right", payload=payload))
    for button in buttons:
        button.id = f"{button.name} {message.id}"
        await button.remove()  # a page that came back has it
        await button.send(for_id=message.id)


# Buttons


def find(action: cl.Action) -> tuple[list[cl.Message], cl.Message]:
    """The messages on the screen up to an answer, and the answer.

    Raises:
        UserError: it is gone.
    """
    shown = cl.chat_context.get()
    for i, message in enumerate(shown):
        if message.id == action.payload.get("message") and is_answer(message):
            return shown[:i], message
    raise UserError("this answer is not there any more: reload the page")


@cl.action_callback("figures")
async def show_figures(action: cl.Action) -> None:
    """All figures of an answer, as a note in the corner."""
    try:
        _, message = find(action)
        await cl.context.emitter.send_toast(Figures(**(message.metadata or {})["answer"]).long())
    except UserError as error:
        await tell(error)


@cl.action_callback("look_inside")
async def look_inside(action: cl.Action) -> None:
    """The pictures of an answer, in the side bar."""
    try:
        _, message = find(action)
        metadata = message.metadata or {}
        if metadata["model"] not in {choice.source for choice in await asyncio.to_thread(models.choices)}:
            raise UserError(f"the model {metadata['model']}, which wrote this, is gone")
        engine = await asyncio.to_thread(models.engine, metadata["model"])
        pictures = await asyncio.to_thread(_pictures, engine, metadata["prompt_ids"], metadata["ids"])
    except UserError as error:
        await tell(error)
        return
    images = [
        cl.Image(name=name, content=png, display="side", size="large", mime="image/png") for name, png in pictures
    ]
    await cl.ElementSidebar.set_elements(images)
    await cl.ElementSidebar.set_title("Look inside")


def _pictures(engine: ChatEngine, prompt: list[int], answer: list[int]) -> list[tuple[str, bytes]]:
    if not answer:
        raise UserError("there is no token to look into")
    some = candidates(engine.model, prompt, answer)
    first = len(answer) - len(some)
    shown = some[:MOST_TOKENS]
    name = f"tokens {first + 1} to {first + len(shown)} of {len(answer)}"
    return [
        (name, to_png(draw_candidates(shown, engine.tokenizer, first))),
        ("attention at the end", to_png(draw_attention(engine.model, engine.tokenizer, [*prompt, *answer]))),
    ]


@cl.action_callback("regenerate")
async def regenerate(action: cl.Action) -> None:
    """Another answer to the same question, or another continuation; what came after it goes."""
    try:
        before, message = find(action)
    except UserError as error:
        await tell(error)
        return
    attempt = int((message.metadata or {}).get("attempt", 0)) + 1
    later = cl.chat_context.get()[len(before) :]
    last = next((one for one in reversed(before) if one.type == "user_message" or is_answer(one)), message)
    if is_answer(last):
        await _with_stop_button(write_answer(before, attempt=attempt, more_of=last, in_place_of=later))
    else:
        await _with_stop_button(write_answer(before, last.content, attempt, in_place_of=later))


@cl.action_callback("go_on")
async def go_on(action: cl.Action) -> None:
    """More of an answer, as a message of its own."""
    try:
        before, message = find(action)
    except UserError as error:
        await tell(error)
        return
    await _with_stop_button(write_answer(before, more_of=message))


async def _with_stop_button(work: Any) -> None:
    await cl.context.emitter.task_start()
    try:
        await work
    finally:
        await cl.context.emitter.task_end()


# Endings


@cl.on_stop
async def stop() -> None:
    """The stop button: the computation ends at its next token. Chainlit's word about it goes: the answer says so.

    It comes once for each click, and the answer may have ended between two of them.
    """
    for writing in list(_writing):
        if writing.session is cl.context.session:
            writing.cancel()
    for message in cl.chat_context.get():
        if message.content == _CHAINLIT_STOPPED and message.type == "assistant_message" and not is_answer(message):
            await message.remove()


@cl.on_chat_end
async def lost() -> None:
    """A connection is gone. If it does not come back soon, nobody waits for the answer."""
    session = cl.context.session

    async def clean_up() -> None:
        leaves = getattr(session, "to_clear", False)
        await asyncio.sleep(0 if leaves else _PATIENCE)
        unwatched = [one for one in _writing if one.session is session and not one.is_watched]
        for writing in unwatched:
            writing.cancel()
        await asyncio.gather(*(one.task for one in unwatched if one.task), return_exceptions=True)
        await asyncio.sleep(1 if leaves else config.project.session_timeout)  # till Chainlit has forgotten the session
        if WebsocketSession.get_by_id(session.id) is None:
            chat_contexts.pop(session.id, None)  # but keeps its messages

    _in_background(clean_up())


_tasks: set[asyncio.Task[Any]] = set()  # the loop itself keeps none of them alive


def _in_background(work: Coroutine[Any, Any, Any]) -> None:
    """Lets something happen by the way; what goes wrong with it is told when somebody asks for it."""

    async def quietly() -> None:
        with contextlib.suppress(UserError, ValueError, OSError):
            await work

    task = asyncio.create_task(quietly())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
