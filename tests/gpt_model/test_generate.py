"""Generation against `transformers`' own processors and loop, and against the definitions of its cuts."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_model import Sampling, generate, generate_tokens
from gpt_model.generate import encode_prompt, generate_text, stream_text
from gpt_model.gpt import GPT2_124M, GPT2_355M, GPT2_774M, GPT2_1558M
from gpt_model.sampling import Sampler
from tests.gpt_model.test_gpt import TINY, as_transformers, tiny_gpt
from tests.gpt_model.test_variants import MAKERS, lively
from working_with_text_data.bytepair_enc import BytePairTokenizer

TOKENIZER = BytePairTokenizer.train(["the cat sat on the mat, é 日本 👩‍👩‍👧 "] * 3, 280)


def test_greedy_text_equals_transformers():
    model = tiny_gpt().eval()
    prompt = [3, 1, 4, 1, 5]
    expected = as_transformers(model).generate(
        torch.tensor([prompt]), max_new_tokens=15, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    assert list(generate(model, prompt, 15, Sampling(temperature=0))) == expected[0, 5:].tolist()


def test_draws_follow_the_distribution():
    model = tiny_gpt().eval()
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(8)  # some tokens then are far more probable than others
    probabilities = model(torch.tensor([[7, 8]]))[0, -1].softmax(0)
    draws = torch.tensor([next(generate(model, [7, 8], 1, Sampling(seed=seed))) for seed in range(2000)])
    frequency = torch.bincount(draws, minlength=61) / 2000
    assert probabilities.max() > 0.2
    assert (frequency - probabilities).abs().max() < 0.04  # 3.5 deviations of the mean of 2,000 draws


def test_a_seed_repeats_and_another_differs():
    model = tiny_gpt()
    texts = [list(generate(model, [1], 20, Sampling(seed=seed))) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_text_longer_than_the_context_goes_on_from_its_newer_half():
    model = tiny_gpt().eval()
    ids = list(generate(model, [1, 2, 3], 60, Sampling(temperature=0)))
    assert len(ids) == 60
    text = [1, 2, 3, *ids]
    n = TINY.context_length
    # The first token that no longer fits: position n is asked of the last n / 2 tokens alone.
    expected = model(torch.tensor([text[n - n // 2 + 1 : n + 1]]))[0, -1].argmax().item()
    assert text[n + 1] == expected


def test_a_prompt_longer_than_the_context_keeps_its_end():
    model = tiny_gpt().eval()
    prompt = [i % 61 for i in range(100)]
    expected = model(torch.tensor([prompt[-TINY.context_length :]]))[0, -1].argmax().item()
    assert next(generate(model, prompt, 1, Sampling(temperature=0))) == expected


def test_stop_ids_end_the_text_and_are_not_given():
    model = tiny_gpt()
    free = list(generate(model, [1], 10, Sampling(seed=0)))
    stopped = list(generate(model, [1], 10, Sampling(seed=0), stop={free[4]}))
    assert stopped == free[: free.index(free[4])]


@given(st.text("the cat日👩é, ", max_size=40), st.lists(st.text("the ca日", min_size=1, max_size=4), max_size=3))
def test_streamed_text_is_whole_and_stops_before_the_first_stop(text, stops):
    ids = TOKENIZER.encode_ordinary(text)
    pieces = list(stream_text(iter(ids), TOKENIZER, stops))
    _, cut = min(((at + len(s), at) for s in stops if (at := text.find(s)) >= 0), default=(0, len(text)))
    assert "".join(pieces) == text[:cut]
    assert all(piece and "\ufffd" not in piece for piece in pieces)  # never half a character


def test_streamed_text_asks_for_no_id_after_the_stop():
    ids = iter(TOKENIZER.encode_ordinary("the cat sat on"))
    assert "".join(stream_text(ids, TOKENIZER, ["cat"])) == "the "
    assert TOKENIZER.decode(list(ids)).endswith("sat on")


def test_bytes_that_are_no_text_end_as_replacement_characters():
    assert "".join(stream_text([0xE6, 0x97], TOKENIZER)) == "\ufffd"


def test_generated_text_begins_a_document_for_an_empty_prompt():
    model = tiny_gpt(
        config=type(TINY)(vocab_size=TOKENIZER.n_vocab, context_length=16, n_layer=1, n_head=2, d_model=16)
    )
    assert encode_prompt("", TOKENIZER, model) == [TOKENIZER.eot_token]
    assert TOKENIZER.eot_token not in encode_prompt("<|endoftext|>", TOKENIZER, model)  # typed text stays text
    assert isinstance("".join(generate_text(model, TOKENIZER, "", 5, Sampling(seed=0))), str)
    with pytest.raises(ValueError, match="do not belong together"):
        encode_prompt("x", TOKENIZER, tiny_gpt())


@pytest.mark.parametrize("training", [True, False])
def test_the_model_s_mode_is_as_it_was(training):
    model = tiny_gpt().train(training)
    for _ in generate(model, [1], 3):
        assert not model.training
    assert model.training == training
    text = generate(model, [1], 3)
    next(text)
    text.close()
    assert model.training == training


def test_bad_prompts_are_refused():
    with pytest.raises(ValueError, match="prompt is empty"):
        next(generate(tiny_gpt(), [], 1))
    with pytest.raises(ValueError, match="outside the model's vocabulary"):
        next(generate(tiny_gpt(), [61], 1))


PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]


def ids_of_rows(tokens, n_rows):
    rows: list[list[int]] = [[] for _ in range(n_rows)]
    for token in tokens:
        rows[token.row].append(token.id)
    return rows


@pytest.mark.parametrize("max_new_tokens", [10, 60])  # within the context of 32, and sliding beyond it
@pytest.mark.parametrize("name", MAKERS)
def test_a_greedy_text_does_not_depend_on_those_beside_it(name, max_new_tokens):
    model = lively(name)
    together = ids_of_rows(generate_tokens(model, PROMPTS, max_new_tokens, Sampling(temperature=0)), 3)
    if max_new_tokens == 10:  # a slide comes when the longest text is full, so later texts may differ
        assert together == [list(generate(model, p, max_new_tokens, Sampling(temperature=0))) for p in PROMPTS]
    assert [len(row) for row in together] == [max_new_tokens] * 3


def test_a_batch_equals_transformers_with_left_padding():
    model = tiny_gpt().eval()
    longest = max(map(len, PROMPTS))
    padded = torch.tensor([[0] * (longest - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS])
    expected = as_transformers(model).generate(
        padded, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    ours = ids_of_rows(generate_tokens(model, PROMPTS, 12, Sampling(temperature=0)), 3)
    assert ours == expected[:, longest:].tolist()


def test_each_text_has_its_own_seed_and_settings():
    model = tiny_gpt().eval()
    settings = [Sampling(seed=5), Sampling(0.7, 10, seed=1), Sampling(top_p=0.8, repetition_penalty=1.5, seed=9)]
    together = ids_of_rows(generate_tokens(model, PROMPTS, 15, settings), 3)
    assert together == [list(generate(model, p, 15, s)) for p, s in zip(PROMPTS, settings, strict=True)]
    same = [[7, 8]] * 3  # one setting for all: text i has the seed + i
    together = ids_of_rows(generate_tokens(model, same, 15, Sampling(seed=20)), 3)
    assert together == [list(generate(model, [7, 8], 15, Sampling(seed=20 + i))) for i in range(3)]
    assert together[0] != together[1]
    with pytest.raises(ValueError, match="2 settings for 3 texts"):
        next(generate_tokens(model, PROMPTS, 1, [Sampling()] * 2))


def test_a_text_that_stops_leaves_the_others_going():
    model = tiny_gpt().eval()
    free = ids_of_rows(generate_tokens(model, PROMPTS, 10, Sampling(seed=0)), 3)
    stop = {free[0][3]}
    stopped = ids_of_rows(generate_tokens(model, PROMPTS, 10, Sampling(seed=0), stop), 3)
    for row in range(3):
        end = next((i for i, token in enumerate(free[row]) if token in stop), None)
        assert stopped[row] == free[row][:end]


def test_penalties_count_prompt_and_text():
    model = tiny_gpt().eval()
    s = Sampling(temperature=0, repetition_penalty=1.3, frequency_penalty=0.2, presence_penalty=0.1)
    text = list(PROMPTS[0])
    for token in generate(model, PROMPTS[0], 20, s):
        logits = model(torch.tensor([text]))[0, -1]
        counts = torch.bincount(torch.tensor(text), minlength=61).float()[None]
        assert token == Sampler([s]).adjust(logits[None], counts).argmax().item()
        text.append(token)


def test_logprobs_are_the_model_s_own():
    model = tiny_gpt().eval()
    text = list(PROMPTS[0])
    s = Sampling(temperature=2.0, top_k=5, seed=1)
    for token in generate_tokens(model, [PROMPTS[0]], 8, s, n_logprobs=3):
        expected = model(torch.tensor([text]))[0, -1].log_softmax(0)
        best = expected.topk(3)
        assert token.logprob == pytest.approx(expected[token.id].item(), abs=1e-4)
        assert [i for i, _ in token.alternatives] == best.indices.tolist()
        assert [p for _, p in token.alternatives] == pytest.approx(best.values.tolist(), abs=1e-4)
        text.append(token.id)
    assert [t.alternatives for t in generate_tokens(model, [[1]], 2, s, n_logprobs=0)] == [(), ()]
    with pytest.raises(ValueError, match="n_logprobs"):
        next(generate_tokens(model, [[1]], 1, n_logprobs=62))


def test_processors_see_the_texts_and_change_the_logits():
    model = tiny_gpt().eval()
    seen = []

    def one_more_than_the_last(logits, texts):
        seen.append(texts.clone())
        only = torch.full_like(logits, -torch.inf)
        return only.scatter(1, (texts[:, -1:] + 1) % 61, 0.0)

    rows = ids_of_rows(generate_tokens(model, PROMPTS, 3, Sampling(seed=0), processors=[one_more_than_the_last]), 3)
    assert rows == [[6, 7, 8], [10, 11, 12], [10, 11, 12]]
    assert seen[0].tolist()[1] == [-1] * 8 + [9]
    assert seen[2].tolist()[0] == [-1] * 4 + [3, 1, 4, 1, 5, 6, 7]


def test_the_command_continues_several_prompts(run, tmp_path):
    model = tiny_gpt(
        config=type(TINY)(vocab_size=TOKENIZER.n_vocab, context_length=16, n_layer=1, n_head=2, d_model=16)
    )
    model.save_pretrained(tmp_path / "model", TOKENIZER)
    flags = ["--model", tmp_path / "model", "--max-new-tokens", 8, "--seed", 3, "--prompt", "the cat", "sat", ""]
    done = run("gpt_model/generate.py", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the cat")
    expected = [list(generate(model, encode_prompt(p, TOKENIZER, model), 8, Sampling(0.8, top_p=0.95, seed=3 + i)))
                for i, p in enumerate(["the cat", "sat", ""])]  # fmt: skip
    texts = ["the cat" + TOKENIZER.decode(expected[0]), "sat" + TOKENIZER.decode(expected[1])]
    assert all(text.split(TOKENIZER.decode([TOKENIZER.eot_token]))[0] in done.stdout for text in texts)
    assert run("gpt_model/generate.py", *flags).stdout == done.stdout


@pytest.mark.parametrize(
    "config",
    [GPT2_124M, *(replace(c, n_layer=2, vocab_size=2000) for c in (GPT2_355M, GPT2_774M, GPT2_1558M))],
    ids=["124M", "355M's width", "774M's width", "1558M's width"],
)
def test_two_hundred_greedy_tokens_equal_transformers_at_the_published_sizes(config):
    model = tiny_gpt(config=config).eval()
    prompt = torch.randint(0, config.vocab_size, (1, 20), generator=torch.Generator().manual_seed(3))
    expected = as_transformers(model).generate(
        prompt, max_new_tokens=200, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    ids = list(generate(model, prompt[0].tolist(), 200, Sampling(temperature=0)))
    assert ids == expected[0, 20:].tolist()
    assert len(set(ids)) > 20  # a text that repeats one token would show little


def test_a_long_text_gets_room_as_it_grows(monkeypatch):
    model = tiny_gpt().eval()
    expected = list(generate(model, [1, 2], 70, Sampling(seed=0, frequency_penalty=0.1)))
    monkeypatch.setattr(sys.modules["gpt_model.generate"], "_ROOM", 3)  # the package's own `generate` is the function
    assert list(generate(model, [1, 2], 70, Sampling(seed=0, frequency_penalty=0.1))) == expected
    endless = generate(model, [1, 2], 10**12, Sampling(seed=0, frequency_penalty=0.1))
    assert [next(endless) for _ in range(70)] == expected
