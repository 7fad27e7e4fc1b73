"""The chat in a real browser, on tiny models of random weights: what a person can do, and what must not happen."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from chat_ui.accounts import Accounts, hash_password
from finetuning.instruction.prompt_format import PromptFormat
from gpt_model import Sampling, generate, load_model, load_tokenizer
from gpt_model.generate import generate_text
from tests.chat_ui.browser import Person, RunningChat, chromium, person
from tests.chat_ui.helpers import model_folder

pytestmark = pytest.mark.filterwarnings("default")  # playwright's and asyncio's own


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningChat]:
    chromium()
    runs = tmp_path_factory.mktemp("runs")
    model_folder(runs / "base" / "model", layout=None, seed=1)
    model_folder(runs / "taught" / "model", layout="alpaca", seed=0, context_length=512)
    running = RunningChat(runs)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def me(chat: RunningChat) -> Iterator[Person]:
    with person(chat.url) as someone:
        yield someone


def expected(folder: Path, prompt: str, seed: int, n: int) -> str:
    """What the model says, written without engine and server, as a page shows it."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    sampling = Sampling(temperature=0.7, top_k=50, seed=seed)
    return "".join(generate_text(model, tokenizer, prompt, n, sampling))


def lasting_seed(folder: Path, prompt: str, n: int) -> int:
    """A seed with which, and with the next one, the model writes so many tokens without a stop."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    ids, stop = tokenizer.encode_ordinary(prompt), set(tokenizer.special_tokens.values())

    def lasts(seed: int) -> bool:
        return len(list(generate(model, ids, n, Sampling(temperature=0.7, top_k=50, seed=seed), stop))) == n

    return next(seed for seed in range(100) if lasts(seed) and lasts(seed + 1))


def same(shown: str, text: str) -> bool:
    """Whether it is the same text but for Markdown's white space and marks."""

    def letters(some: str) -> str:
        return "".join(c for c in some if c.isalnum())

    return letters(shown) == letters(text)


def test_an_answer_streams_and_a_seed_repeats_it(chat, me):
    me.open()
    assert me.page.locator("#chat-profiles").inner_text() == "taught"
    me.set(seed="7", max_new_tokens="20")
    me.say("What does len do?")
    prompt = PromptFormat.named("alpaca").text([{"role": "user", "content": "What does len do?"}], ask=True)
    first = me.texts()[-1]
    assert same(first, expected(chat.runs / "taught" / "model", prompt, 7, 20))
    assert "20 tokens" in me.page.locator("body").inner_text()
    me.page.locator("#new-chat-button").click()
    me.page.wait_for_timeout(500)
    me.set(seed="8", max_new_tokens="20")
    me.say("What does len do?")
    assert me.texts()[-1] != first


def test_a_base_model_continues_the_text_alone(chat, me):
    me.open()
    me.pick("base")
    me.page.get_by_text("continues the text").first.wait_for()
    me.set(seed="3", max_new_tokens="15")
    for text in ("The cat sat", "The mat"):
        me.say(text)
        assert same(me.texts()[-1], expected(chat.runs / "base" / "model", text, 3, 15))


def test_regenerate_edit_and_go_on(chat, me):
    me.open()
    me.pick("base")
    seed = lasting_seed(chat.runs / "base" / "model", "The cat sat", 12)
    me.set(seed=str(seed), max_new_tokens="12")
    me.say("The cat sat")
    first = me.texts()[-1]
    me.answers().last.click()
    me.until(lambda: len(texts := me.texts()) == 1 and texts[0] != first and me.answers().count() == 1)
    assert same(me.texts()[0], expected(chat.runs / "base" / "model", "The cat sat", seed + 1, 12))
    me.page.get_by_role("button", name="Go on").click()
    me.wait_for_answers(2)
    assert len(me.texts()) == 2
    me.answers().last.click()  # another continuation, not another answer
    model, tokenizer = load_model(chat.runs / "base" / "model"), load_tokenizer(chat.runs / "base" / "model")
    ids = tokenizer.encode_ordinary("The cat sat")
    for _ in range(2):
        ids += generate(model, ids, 12, Sampling(temperature=0.7, top_k=50, seed=seed + 1))
    more = tokenizer.decode(ids[-12:])
    me.until(lambda: len(texts := me.texts()) == 2 and same(texts[1], more) and me.answers().count() == 2)
    me.page.get_by_text("The cat sat", exact=True).last.hover()
    me.page.locator(".edit-message").first.click()
    me.page.locator("#edit-chat-input").fill("The mat")
    me.page.get_by_role("button", name="Confirm").click()
    me.until(lambda: len(me.texts()) == 1 and me.answers().count() == 1)
    assert same(me.texts()[0], expected(chat.runs / "base" / "model", "The mat", seed, 12))


def test_stop_stops_the_computation_too(chat, me):
    me.open()
    me.pick("base")
    me.set(seed="3", max_new_tokens="4000")
    me.say("The cat sat", wait=False)
    me.page.locator("#stop-button").wait_for()
    me.until(lambda: len(me.texts()) >= 1 and len(me.texts()[0]) > 20)
    me.page.locator("#stop-button").click()
    me.wait_for_answers(1)
    me.until(lambda: chat.n_threads("engine") == 0)
    assert "stopped" in me.page.locator("body").inner_text()


def test_stop_clicked_often_is_stop_clicked_once(chat, me):
    me.open()
    me.pick("base")
    me.set(seed="3", max_new_tokens="4000")
    me.say("The cat sat", wait=False)
    me.page.locator("#stop-button").wait_for()
    me.page.evaluate("() => { for (let i = 0; i < 3; i++) document.querySelector('#stop-button').click() }")
    me.wait_for_answers(1)
    me.page.wait_for_timeout(500)
    assert "manually" not in me.page.locator("body").inner_text()
    me.page.reload()
    me.wait_for_answers(1)
    assert len(me.texts()) == 1


def test_an_answer_stays_where_another_one_cannot_be_written(chat, me):
    me.open()
    me.set(seed="7", max_new_tokens="9")
    me.say("What does len do?")
    answer = me.texts()[0]
    me.set(seed="seven")
    me.answers().last.click()
    me.page.get_by_text("settings: seed must be a number").wait_for()
    assert me.texts()[0] == answer


def test_a_thumb_outlives_a_reload(chat, me):
    me.open()
    me.set(seed="7", max_new_tokens="9")
    me.say("What does len do?")
    me.page.locator(".positive-feedback-off").click()
    me.page.get_by_role("button", name="Submit").click()
    me.page.locator(".positive-feedback-on").wait_for()
    me.page.reload()
    me.page.locator(".positive-feedback-on").wait_for()


def test_look_inside_shows_two_pictures(chat, me):
    me.open()
    me.set(seed="7", max_new_tokens="9")
    me.say("What does len do?")
    me.page.get_by_role("button", name="Look inside").click()
    pictures = me.page.locator("#side-view-content img")
    pictures.nth(1).wait_for()
    for i in range(2):
        assert me.page.wait_for_function(
            "i => document.querySelectorAll('#side-view-content img')[i].naturalWidth > 100", arg=i
        )
    me.page.get_by_role("button", name="9 tokens").click()
    me.page.get_by_text("Wrote 9 tokens").wait_for()


def test_another_chat_of_this_repository_may_end_meanwhile(chat, me, tmp_path):
    other = RunningChat(tmp_path)
    other.start()
    me.open()
    me.set(seed="7", max_new_tokens="9")
    me.say("What does len do?")
    other.stop()
    me.page.get_by_role("button", name="Look inside").click()
    me.page.locator("#side-view-content img").nth(1).wait_for()


def test_a_conversation_outlives_a_reload_and_a_restart(chat, me):
    me.open()
    me.pick("base")
    me.set(seed="7", max_new_tokens="16")
    me.say("Return the number of items")
    answer = me.texts()[-1]
    me.until(lambda: "/thread/" in me.page.url)
    path = me.page.url.removeprefix(chat.url)
    me.page.reload()
    me.wait_for_answers(1)
    assert me.texts() == [answer]
    assert me.page.locator("#chat-profiles").inner_text() == "base"  # and not the first one
    chat.stop()
    chat.start()
    me.open(path)
    me.wait_for_answers(1)
    assert me.texts() == [answer]
    me.say("and the cat")
    me.page.get_by_role("button", name="16 tokens").last.click()
    me.page.get_by_text("of them still in the cache").or_(me.page.get_by_text("Wrote 16 tokens")).first.wait_for()
    rows = sqlite3.connect(chat.runs / "chat" / "history.sqlite").execute(
        "SELECT type, output FROM steps WHERE threadId = ? ORDER BY createdAt", (path.split("/")[-1],)
    )
    kept = [(kind, text) for kind, text in rows if kind.endswith("_message")]
    assert [kind for kind, _ in kept] == ["user_message", "assistant_message"] * 2
    assert same(kept[1][1], answer)


def test_what_cannot_be_is_said_in_a_line(chat, me):
    me.open()
    me.set(seed="7", max_new_tokens="5")
    me.say("x" * 1_000_000, wait=False)
    me.page.get_by_text("this text has 1,000,000 characters").wait_for()
    me.set(seed="seven")
    me.say("What does len do?", wait=False)
    me.page.get_by_text("settings: seed must be a number").wait_for()
    me.set(seed="7")
    me.say("<|endoftext|> \x07 ![](https://example.com/x.png) <script>alert(1)</script>")
    me.say("What does len do?")
    prompt = PromptFormat.named("alpaca").text([{"role": "user", "content": "What does len do?"}], ask=True)
    assert prompt  # what was refused is not part of the conversation: the next answer came


def test_a_model_that_is_gone(chat, me):
    folder = model_folder(chat.runs / "short-lived" / "model", layout=None, seed=5)
    me.open()
    me.pick("short-lived")
    me.set(seed="7", max_new_tokens="5")
    me.say("The cat")
    shutil.rmtree(folder.parent)
    me.say("The mat", wait=False)
    me.page.get_by_text("the model short-lived is gone from").wait_for()
    me.page.get_by_text("make demo").first.wait_for()
    me.pick("taught")
    me.say("What does len do?")


def test_a_lost_connection_keeps_what_was_written_and_stops_the_engine(chat, me):
    me.open()
    me.pick("base")
    me.set(seed="3", max_new_tokens="4000")
    me.say("The cat sat", wait=False)
    me.until(lambda: len(me.texts()) >= 1 and len(me.texts()[0]) > 20)
    me.until(lambda: "/thread/" in me.page.url)
    path = me.page.url.removeprefix(chat.url)
    me.page.goto("about:blank")
    me.until(lambda: chat.n_threads("engine") == 0)
    me.open(path)
    me.wait_for_answers(1)
    assert len(me.texts()[0]) > 20


def test_two_windows_of_one_person(chat, me):
    other = me.page.context.new_page()
    me.open()
    second = Person(other, chat.url)
    second.open()
    for one, text in ((me, "The cat"), (second, "The mat")):
        one.pick("base")
        one.set(seed="3", max_new_tokens="12")
        one.say(text)
    for one, text in ((me, "The cat"), (second, "The mat")):
        assert len(one.texts()) == 1
        assert same(one.texts()[0], expected(chat.runs / "base" / "model", text, 3, 12))


def test_with_accounts_one_has_to_log_in_and_sees_ones_own_alone(tmp_path):
    chromium()
    model_folder(tmp_path / "taught" / "model", context_length=512)
    accounts = Accounts(tmp_path / "chat" / "accounts.json")
    accounts.path.parent.mkdir()
    accounts.write({"anna": hash_password("correct horse"), "bert": hash_password("battery staple")})
    running = RunningChat(tmp_path)
    running.start()
    try:
        with person(running.url) as anna:
            anna.page.goto(running.url)
            for password in ("wrong horse", "correct horse"):
                anna.page.locator("#email").fill("anna")
                anna.page.locator("#password").fill(password)
                anna.page.get_by_role("button", name="Sign In").click()
                if password == "wrong horse":
                    anna.page.get_by_role("alert").wait_for()
            anna.page.wait_for_selector("#chat-input")
            anna.say("a secret of anna")
            anna.until(lambda: "/thread/" in anna.page.url)
            path = anna.page.url.removeprefix(running.url)
        with person(running.url) as bert:
            bert.page.goto(running.url)
            bert.page.locator("#email").fill("bert")
            bert.page.locator("#password").fill("battery staple")
            bert.page.get_by_role("button", name="Sign In").click()
            bert.page.wait_for_selector("#chat-input")
            bert.page.wait_for_timeout(1000)
            assert "a secret of anna" not in bert.page.locator("body").inner_text()
            bert.page.goto(running.url + path)
            bert.page.wait_for_timeout(2000)
            assert "a secret of anna" not in bert.page.locator("body").inner_text()
    finally:
        running.stop()


def test_with_nothing_trained_it_says_how_to_make_something(tmp_path):
    chromium()
    running = RunningChat(tmp_path)
    running.start()
    try:
        with person(running.url) as someone:
            someone.open()
            someone.page.get_by_text("make demo").first.wait_for()
            someone.say("hello?", wait=False)
            someone.page.get_by_text("there is no model here yet").first.wait_for()
            model_folder(tmp_path / "demo" / "model", layout=None)
            someone.open()
            someone.say("The cat")
    finally:
        running.stop()
