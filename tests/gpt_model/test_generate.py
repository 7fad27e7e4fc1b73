"""Generation against `transformers`' own processors and loop, and against the definitions of its cuts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_model import Sampling, generate
from gpt_model.generate import encode_prompt, generate_text, stream_text
from tests.gpt_model.test_gpt import TINY, as_transformers, tiny_gpt
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
