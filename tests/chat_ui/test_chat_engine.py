"""The engine: many at once against one alone, turns that fit, streams, stops, and what goes wrong."""

from __future__ import annotations

import asyncio
import threading
import time
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from chat_ui.chat_engine import Answer, Busy, ChatEngine, Prompt, Wish, rows_that_fit
from finetuning.instruction.prompt_format import Message, PromptFormat
from gpt_model import Sampling, generate_tokens
from gpt_model.generate import generate_text
from gpt_model.gpt import GPT2_124M, GPT2_1558M
from tests.chat_ui.helpers import tiny_model, tokenizer
from utils.errors import UserError

GREEDY = Wish(12, Sampling(temperature=0))


def engine(layout: Any = "alpaca", context: int = 96, **more: Any) -> ChatEngine:
    return ChatEngine(tiny_model(context), tokenizer(), PromptFormat.named(layout) if layout else None, "tiny", **more)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def wait_for_the_thread(chat: ChatEngine) -> None:
    while (thread := chat._thread) is not None:
        thread.join(10)


def collect(chat: ChatEngine, prompt: Prompt, wish: Wish) -> tuple[Answer, str]:
    """An answer to its end, and its text."""
    pieces: SimpleQueue[Any] = SimpleQueue()
    answer = chat.ask(prompt, wish, pieces.put)
    parts = []
    while (piece := pieces.get(timeout=60)) is not None:
        parts.append(piece.text)
    return answer, "".join(parts)


def test_many_at_once_get_what_each_would_get_alone():
    chat = engine(None, n_rows=5)
    prompts = [chat.prompt(f"The cat {n}", 30) for n in range(40)]
    wishes = [Wish(5 + n % 25, Sampling(seed=n, temperature=0.5 + n / 20), slide=True) for n in range(40)]
    texts = dict.fromkeys(range(40), "")

    def talk(n: int) -> None:
        texts[n] = "".join(chat.write(prompts[n], wishes[n]))

    threads = [threading.Thread(target=talk, args=(n,)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for n, wish in enumerate(wishes):
        expected = "".join(
            generate_text(chat.model, tokenizer(), f"The cat {n}", wish.max_new_tokens, wish.sampling, wish.stop)
        )
        assert texts[n] == expected, n
    wait_for_the_thread(chat)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("engine")]
    assert chat.n_open == 0


def test_a_conversation_is_asked_in_the_layout_that_was_learned():
    chat = engine()
    conversation = [user("What does len do?"), said("It counts."), user("And str?")]
    prompt = chat.prompt(conversation, 12)
    assert tokenizer().decode(prompt.ids) == PromptFormat.named("alpaca").text(conversation, ask=True)
    expected = [
        token.id
        for token in generate_tokens(
            chat.model, [prompt.ids], 12, GREEDY.sampling, set(tokenizer().special_tokens.values())
        )
    ]
    answer, text = collect(chat, prompt, GREEDY)
    assert answer.ids == expected and text == tokenizer().decode(expected)


def test_what_a_person_types_is_never_a_control_token():
    end = tokenizer().special_tokens["<|endoftext|>"]
    for layout in ("alpaca", None):
        chat = engine(layout)
        typed = "say <|endoftext|> and stop"
        assert end not in chat.prompt([user(typed)] if layout else typed, 8).ids


def test_of_a_conversation_without_end_no_more_is_encoded_than_may_fit(monkeypatch):
    """Its beginning is as dear as the rest, and some ten thousand messages take many seconds."""
    chat, encoded, encode = engine(), [], PromptFormat.encode

    def noted(layout, tokenizer, messages, ask=False):
        encoded.append(len(messages))
        return encode(layout, tokenizer, messages, ask)

    monkeypatch.setattr(PromptFormat, "encode", noted)
    prompt = chat.prompt([user("a")] * 20_000, 5)
    assert prompt.n_dropped > 19_900 and max(encoded) <= 96
    encoded.clear()
    prompt = chat.prompt([*[user("cat " * 1000)] * 50, user("a")], 5)
    assert prompt.n_dropped == 50 and max(encoded) <= 2


def test_the_oldest_turns_give_way_and_the_system_message_stays():
    chat = engine()
    turns: list[Message] = [{"role": "system", "content": "Be brief."}]
    for n in range(6):
        turns += [user(f"question {n}"), said(f"answer {n}")]
    turns.append(user("the last question"))
    prompt = chat.prompt(turns, 24)
    text = tokenizer().decode(prompt.ids)
    assert text.startswith("Be brief.") and text.endswith("the last question\n\n### Response:\n")
    assert prompt.n_dropped and prompt.n_dropped % 2 == 0
    kept = [turns[0], *turns[1 + prompt.n_dropped :]]
    assert text == PromptFormat.named("alpaca").text(kept, ask=True)
    assert len(prompt.ids) <= 96 - 24
    one_more = [turns[0], *turns[1 + prompt.n_dropped - 2 :]]
    assert len(PromptFormat.named("alpaca").encode(tokenizer(), one_more, ask=True).ids) > 96 - 24


def test_a_second_turn_reads_what_is_new_alone():
    chat = engine(context=200)
    first = chat.prompt([user("The cat sat")], 12)
    answer, text = collect(chat, first, GREEDY)
    assert answer.n_reused == 0
    second = chat.prompt([user("The cat sat"), said(text), user("on the mat")], 12)
    again, _ = collect(chat, second, GREEDY)
    kept = [*first.ids, *answer.ids[:-1]]  # the last token was drawn and never read
    assert again.n_reused == next(n for n in range(99) if kept[: n + 1] != second.ids[:-1][: n + 1])
    assert again.n_reused >= len(first.ids)


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it():
    chat = engine(None)
    prompt = chat.prompt("The cat", 40)
    _, whole = collect(chat, prompt, Wish(40, Sampling(seed=5), slide=True))
    stop = whole[len(whole) // 2 :][:3]
    answer, text = collect(chat, prompt, Wish(40, Sampling(seed=5), (stop,), slide=True))
    assert text == whole[: whole.index(stop)] and answer.finish == "stop"
    assert len(answer.ids) < 40


def test_characters_come_whole_even_where_tokens_cut_them():
    chat = engine(None)
    prompt = chat.prompt("日本 👩‍👩‍👧", 60)
    pieces: SimpleQueue[Any] = SimpleQueue()
    chat.ask(prompt, Wish(60, Sampling(seed=3, temperature=1.5), slide=True), pieces.put)
    parts = list(iter(lambda: pieces.get(timeout=60), None))
    ids = [piece.token.id for piece in parts if piece.token]
    assert len(ids) == 60
    assert "".join(piece.text for piece in parts) == tokenizer().decode(ids)
    assert any(not piece.text for piece in parts)  # bytes that waited for their others


def test_log_probabilities_come_with_the_tokens():
    chat = engine(None)
    prompt = chat.prompt("The cat", 5)
    pieces: SimpleQueue[Any] = SimpleQueue()
    chat.ask(prompt, Wish(5, Sampling(temperature=0), n_logprobs=3), pieces.put)
    for piece in iter(lambda: pieces.get(timeout=60), None):
        if piece.token:
            assert len(piece.token.alternatives) == 3
            assert piece.token.alternatives[0] == (piece.token.id, piece.token.logprob)


def test_a_reader_that_leaves_stops_the_computation():
    chat = engine(None)
    text = chat.write(chat.prompt("The cat", 5), Wish(10**6, Sampling(seed=1), slide=True))
    next(text)
    text.close()
    wait_for_the_thread(chat)
    assert chat.n_open == 0


def test_cancelling_stops_at_the_next_token_and_others_go_on():
    chat = engine(None)
    pieces: SimpleQueue[Any] = SimpleQueue()
    endless = chat.ask(chat.prompt("The cat", 5), Wish(10**6, Sampling(seed=1), slide=True), pieces.put)
    for _ in range(20):
        pieces.get(timeout=60)
    endless.cancel()
    _, other = collect(chat, chat.prompt("The mat", 30), Wish(30, Sampling(seed=2), slide=True))
    assert other == "".join(generate_text(chat.model, tokenizer(), "The mat", 30, Sampling(seed=2)))
    while pieces.get(timeout=60) is not None:
        pass
    assert endless.finish == "cancelled" and endless.has_ended
    wait_for_the_thread(chat)


def test_asyncio_gets_the_same_and_a_cancelled_task_cancels_the_answer():
    chat = engine(None)

    async def read(answer_and_pieces: Any) -> str:
        return "".join([piece.text async for piece in answer_and_pieces[1]])

    async def main() -> None:
        texts = await asyncio.gather(
            *(read(chat.stream(chat.prompt(f"The {n}", 9), Wish(20, Sampling(seed=n), slide=True))) for n in range(6))
        )
        for n, text in enumerate(texts):
            assert text == "".join(generate_text(chat.model, tokenizer(), f"The {n}", 20, Sampling(seed=n)))
        answer, pieces = chat.stream(chat.prompt("The", 9), Wish(10**6, Sampling(seed=1), slide=True))
        task = asyncio.create_task(read((answer, pieces)))
        while len(answer.ids) < 5:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while not answer.has_ended:
            await asyncio.sleep(0.01)
        assert answer.finish == "cancelled"

    asyncio.run(main())
    wait_for_the_thread(chat)


def test_a_closed_loop_cancels_what_it_listened_to():
    chat = engine(None)

    async def leave() -> Answer:
        return chat.stream(chat.prompt("The", 9), Wish(10**6, Sampling(seed=1), slide=True))[0]

    answer = asyncio.run(leave())
    wait_for_the_thread(chat)
    assert answer.finish == "cancelled"


def test_too_many_are_sent_away_and_those_inside_are_served():
    chat = engine(None, n_rows=1, max_waiting=2)
    prompt, wish = chat.prompt("The cat", 5), Wish(10**6, Sampling(seed=1), slide=True)
    answers = [chat.ask(prompt, wish, lambda piece: None) for _ in range(3)]
    with pytest.raises(Busy, match="try again later"):
        chat.ask(prompt, wish, lambda piece: None)
    for answer in answers:
        answer.cancel()
    wait_for_the_thread(chat)
    assert all(answer.finish == "cancelled" for answer in answers)
    assert collect(chat, prompt, GREEDY)[0].finish in ("length", "stop")


def test_a_failure_inside_is_told_to_all_and_the_next_one_is_served(monkeypatch):
    chat = engine(None)
    prompt = chat.prompt("The cat", 5)
    expected = collect(chat, prompt, GREEDY)[1]
    working = chat.model.next_logits

    def fail(*arguments: Any) -> torch.Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(chat.model, "next_logits", fail)
    answer, text = collect(chat, prompt, GREEDY)
    assert (text, answer.finish, str(answer.error)) == ("", None, "out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        list(chat.write(prompt, GREEDY))
    monkeypatch.setattr(chat.model, "next_logits", working)
    assert collect(chat, prompt, GREEDY)[1] == expected


def test_after_a_failure_no_memory_is_asked_for(monkeypatch):
    """Where a step ran out of it, there is none for another cache beside the first."""
    chat = engine(None)
    prompt = chat.prompt("The cat", 5)
    expected = collect(chat, prompt, GREEDY)[1]
    working, steps = chat.model.next_logits, []

    def fail_once(*arguments: Any) -> torch.Tensor:
        steps.append(arguments)
        if len(steps) == 4:
            raise torch.OutOfMemoryError
        return working(*arguments)

    def no_memory(*arguments: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(chat.model, "next_logits", fail_once)
    monkeypatch.setattr(chat.model, "make_cache", no_memory)
    assert isinstance(collect(chat, prompt, GREEDY)[0].error, torch.OutOfMemoryError)
    answer, text = collect(chat, prompt, GREEDY)
    assert (text, answer.n_reused) == (expected, 0)


def test_the_cache_does_not_grow():
    chat = engine()
    held = chat._batch.shared.nbytes
    for n in range(100):
        collect(chat, chat.prompt([user(f"question {n}")], 4), Wish(4, Sampling(seed=n)))
    assert chat._batch.shared.nbytes == held
    assert sum(len(row.ids) for row in chat._batch.rows) <= chat.n_rows * chat.context_length
    assert not chat._answers and not chat._incoming


def test_figures_of_an_answer():
    chat = engine(None)
    before = time.perf_counter()
    answer, _ = collect(chat, chat.prompt("The cat", 10), Wish(10, Sampling(seed=1), slide=True))
    took = time.perf_counter() - before
    assert answer.seconds_to_first is not None and 0 < answer.seconds_to_first < took
    assert answer.tokens_per_second is not None and answer.tokens_per_second > 9 / took


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([user("  \n")], "the message is empty"),
        ([], "the message is empty"),
        ([user("x" * 1_000_000)], "1,000,000 characters"),
        ([user("cat " * 200)], "tokens, and tiny reads 96"),
        ([{"role": "system", "content": "cat " * 200}, user("short")], "tokens, and tiny reads 96"),
    ],
)
def test_messages_that_cannot_be_asked(asked, message):
    with pytest.raises(UserError, match=message):
        engine().prompt(asked, 12)


def test_a_base_model_knows_no_conversation_and_reads_any_text():
    chat = engine(None)
    with pytest.raises(UserError, match="base model"):
        chat.prompt([user("hello")], 12)
    with pytest.raises(UserError, match="tokens, and tiny reads 96"):
        chat.prompt("cat " * 200, 12)
    assert chat.prompt("", 12).ids == [tokenizer().eot_token]
    assert chat.prompt("\x00\x1b[31m \ud800", 12).ids
    with pytest.raises(ValueError, match="max_new_tokens"):
        Wish(0)
    with pytest.raises(ValueError, match="n_logprobs"):
        Wish(n_logprobs=-1)


def test_a_prompt_that_the_model_does_not_know_is_an_error_of_its_own():
    chat = engine(None)
    answer, text = collect(chat, Prompt([10**6]), GREEDY)
    assert text == "" and "outside the model's vocabulary" in str(answer.error)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_prompt_that_is_none_does_not_end_the_engine():
    chat, nonsense = engine(None), Prompt(["a"])  # type: ignore[list-item]
    assert isinstance(collect(chat, nonsense, GREEDY)[0].error, TypeError)
    assert collect(chat, chat.prompt("The cat", 5), GREEDY)[0].finish


def test_rows_go_by_the_memory_that_they_take():
    with torch.device("meta"):
        from gpt_model import GPT

        small, large = GPT(GPT2_124M), GPT(GPT2_1558M)
    assert rows_that_fit(small) == 2 * 2**30 // (12 * 2 * 768 * 1024 * 4)
    assert rows_that_fit(large) == 2 * 2**30 // (48 * 2 * 1600 * 1024 * 4)
    assert rows_that_fit(large, 1) == 1
    assert rows_that_fit(tiny_model()) == 32
