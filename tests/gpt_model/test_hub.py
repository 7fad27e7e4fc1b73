"""Names of hub models: fetched once, checked, pinned; and whatever fails is one line that says what to do.

The real client asks a hub on this machine. It reads HF_ENDPOINT and HF_HUB_OFFLINE when it is imported, so it runs in
processes of its own: one that may use the hub, one that is offline, and one whose hub is not there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import save

from gpt_model.hub import PINNED, repository_and_revision
from gpt_model.pretrained import CHAT_TEMPLATE, MERGES, PICKLE, VOCABULARY
from tests.conftest import ROOT
from tests.gpt_model.loopback_hub import LoopbackHub, Repository
from working_with_text_data.bytepair_enc import BytePairTokenizer, tokenizer_json
from working_with_text_data.bytepair_enc.patterns import GPT2_PATTERN

TEXT = "the cat's mat isn't 12345 日本\n\n  the end"
IDS = [[1, 5, 2, 270, 0]]
TOKENIZER = BytePairTokenizer.train([TEXT] * 3, 280, GPT2_PATTERN, byte_order=list(tokenizer_json.byte_alphabet()))
OTHER = "a" * 40  # the commit of every model that is not pinned

# Asked one after the other in one process: what `attempts` gives is what each call gave, or the error that it raised.
PRELUDE = """
import json, time
import huggingface_hub.constants
time.sleep = lambda seconds: None  # the client waits some seconds before it tries again
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 500  # else it keeps whole 10 MB of a file that breaks off
from gpt_model import GPT, load_model, load_tokenizer
from gpt_model.pretrained import origin
import torch

def logits(*arguments, **options):
    return load_model(*arguments, **options)(torch.tensor(IDS)).tolist()

def attempt(call):
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""


def as_published(model):
    """A model's files as they lie on the hub: no prefix to the names, masks among the weights, extra fields."""
    weights = {name.removeprefix("transformer."): w for name, w in model.state_dict().items() if "lm_head" not in name}
    n = model.config.n_positions
    masks = {f"h.{i}.attn.bias": torch.ones(n, n).tril().view(1, 1, n, n) for i in range(model.config.n_layer)}
    config = {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": TOKENIZER.eot_token,
        "embd_pdrop": 0.1,
        "eos_token_id": TOKENIZER.eot_token,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": n,
        "n_embd": model.config.n_embd,
        "n_head": model.config.n_head,
        "n_layer": model.config.n_layer,
        "n_positions": n,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": model.config.vocab_size,
    }
    return weights | masks, {"config.json": json.dumps(config).encode()}


def tokenizer_files():
    """vocab.json and merges.txt, as GPT-2 has them."""
    content = tokenizer_json.to_dict(TOKENIZER)["model"]
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in content["merges"]), ""])
    return {VOCABULARY: json.dumps(content["vocab"]).encode(), MERGES: merges.encode()}


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=TOKENIZER.n_vocab, n_positions=32, n_layer=2, n_head=2, n_embd=16)
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def hub(published, tmp_path_factory):
    weights, config = as_published(published)
    whole = config | tokenizer_files() | {"model.safetensors": save(weights, {"format": "pt"})}
    whole[CHAT_TEMPLATE] = b"{{ messages }}"
    halves = [dict(list(weights.items())[:9]), dict(list(weights.items())[9:])]
    shards = {f"model-0000{i}-of-00002.safetensors": save(half) for i, half in enumerate(halves, 1)}
    places = {name: file for half, file in zip(halves, shards, strict=True) for name in half}
    index = {"model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": places}).encode()}
    torch.save(weights, tmp_path_factory.mktemp("pickle") / PICKLE)
    pickled = (tmp_path_factory.getbasetemp() / "pickle0" / PICKLE).read_bytes()
    unwanted = {"tf_model.h5": b"x", PICKLE: pickled, "onnx/model.safetensors": b"x"}
    repositories = {
        "openai-community/gpt2": Repository(whole | unwanted, PINNED["openai-community/gpt2"]),
        "tests/sharded": Repository(config | tokenizer_files() | shards | index, OTHER),
        "tests/pickled": Repository(config | {PICKLE: pickled}, OTHER),
        "tests/drops": Repository(whole, OTHER, breaks=[1000]),
        "tests/lost": Repository(whole, OTHER, breaks=[1000, *[0] * 5]),
        "tests/wrong": Repository(whole, OTHER, announced={"model.safetensors": "b" * 64}),
        "tests/wrong-config": Repository(whole, OTHER, announced={"config.json": "c" * 40}),
        "tests/incomplete": Repository(config, OTHER),
        "tests/promises": Repository(whole, OTHER, listed_only={"config.json"}),
        "tests/gated": Repository(whole, OTHER, gated=True),
    }
    server = LoopbackHub(repositories)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def ask(script, endpoint, home, offline="0"):
    """The JSON that a client prints, whose caches are in `home`."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")} | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home / "huggingface"),
        "HF_HUB_OFFLINE": offline,
        "HF_TOKEN": "",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "SCRATCHBOOK_CACHE": str(home / "scratchbook"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", f"{PRELUDE.replace('IDS', str(IDS))}\n{script}\nprint(json.dumps(answers))"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def answers(hub, home):
    """All that is asked of the hub while it is there."""
    script = """
answers = {
    "first": attempt(lambda: logits("gpt2")),
    "second": attempt(lambda: logits("openai-community/gpt2")),
    "class": attempt(lambda: GPT.from_pretrained("gpt2", dtype=torch.bfloat16).lm_head.weight.dtype.__str__()),
    "tokens": attempt(lambda: load_tokenizer("gpt2").encode(TEXT)),
    "origin": attempt(lambda: origin("gpt2")),
    "sharded": attempt(lambda: logits("tests/sharded")),
    "sharded origin": attempt(lambda: origin("tests/sharded")),
    "pickled": attempt(lambda: logits("tests/pickled")),
    "allowed pickle": attempt(lambda: logits("tests/pickled", allow_pickle=True)),
    "drops": attempt(lambda: logits("tests/drops")),
    "lost": attempt(lambda: logits("tests/lost")),
    "found again": attempt(lambda: logits("tests/lost")),
    "wrong": attempt(lambda: logits("tests/wrong")),
    "wrong again": attempt(lambda: logits("tests/wrong")),
    "wrong config": attempt(lambda: logits("tests/wrong-config")),
    "incomplete": attempt(lambda: logits("tests/incomplete")),
    "no tokenizer": attempt(lambda: load_tokenizer("tests/incomplete").n_vocab),
    "promises": attempt(lambda: logits("tests/promises")),
    "nowhere": attempt(lambda: logits("tests/nowhere")),
    "no revision": attempt(lambda: logits("tests/sharded", revision="v9")),
    "gated": attempt(lambda: logits("tests/gated")),
    "no name": attempt(lambda: logits("what a name")),
}
"""
    return ask(script.replace("TEXT", repr(TEXT)), hub.endpoint, home)


@pytest.fixture(scope="module")
def expected(published):
    return published(torch.tensor(IDS)).logits.detach()


@pytest.mark.parametrize("which", ["first", "second", "sharded", "allowed pickle", "drops", "found again"])
def test_logits_of_what_was_fetched_equal_transformers(which, answers, expected):
    torch.testing.assert_close(torch.tensor(answers[which]), expected, atol=1e-5, rtol=1e-4)


def test_a_model_is_fetched_once_and_only_what_it_needs(answers, hub):
    asked = [path.split("?")[0] for _, path, _ in hub.requests if "openai-community" in path]
    assert len(hub.downloads("cdn/openai-community/gpt2")) == 1  # of five calls
    wanted = ("config.json", "model.safetensors", VOCABULARY, MERGES, CHAT_TEMPLATE)
    commit = PINNED["openai-community/gpt2"]
    resolved = {path.split(f"/resolve/{commit}/")[1] for path in asked if "/resolve/" in path}
    assert resolved == set(wanted)
    assert all(commit in path for path in asked)  # the pinned commit, never what main is now
    assert not any("xet" in path for _, path, _ in hub.requests)
    assert answers["class"] == "torch.bfloat16"


def test_the_tokenizer_of_two_files_encodes_as_transformers_does(answers, hub, tmp_path):
    for name, data in hub.repositories["openai-community/gpt2"].files.items():
        if name in (VOCABULARY, MERGES):
            (tmp_path / name).write_bytes(data)
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    assert answers["tokens"] == theirs(TEXT)["input_ids"] == TOKENIZER.encode(TEXT)


def test_where_a_model_came_from_is_told(answers):
    assert answers["origin"] == {"model": "openai-community/gpt2", "commit": PINNED["openai-community/gpt2"]}
    assert answers["sharded origin"] == {"model": "tests/sharded", "commit": OTHER}


def test_a_broken_connection_is_taken_up_where_it_broke(answers, hub):
    assert hub.downloads("cdn/tests/drops") == [None, "bytes=1000-"]


def test_after_an_interruption_only_what_is_missing_is_fetched(answers, hub):
    message = r"ConnectionError: tests/lost \(main\) could not be fetched .* run the same command"
    assert re.match(message, answers["lost"]), answers["lost"]
    assert hub.downloads("cdn/tests/lost") == [None, *["bytes=1000-"] * 5, None]
    assert len(hub.downloads("tests/lost/resolve/" + OTHER + "/config.json")) == 1


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("pickled", r"ValueError: .* has no model\.safetensors.*allow_pickle=True \(--allow-pickle\)"),
        ("wrong", r"ValueError: model\.safetensors of tests/wrong came damaged: .* announced bbbbbbbbbbbb"),
        ("wrong again", r"ValueError: model\.safetensors of tests/wrong came damaged"),
        ("wrong config", r"ValueError: config\.json of tests/wrong-config came damaged: .* announced cccccccccccc"),
        ("incomplete", r"ValueError: .* is not a model folder: it has no model\.safetensors"),
        ("no tokenizer", r"ValueError: no tokenizer at .*tokenizer\.json"),
        ("promises", r"ConnectionError: tests/promises \(main\) could not be fetched .*404 .*Entry Not Found"),
        (
            "nowhere",
            r"ValueError: 'tests/nowhere' is neither a folder here nor a model .* `make demo`, .* such as gpt2",
        ),
        ("no revision", r"ValueError: tests/sharded has no revision 'v9': see http"),
        ("gated", r"ValueError: tests/gated is gated: .*/tests/gated, log in with `hf auth login`"),
        ("no name", r"ValueError: 'what a name' is neither a folder nor a name .* `make demo`, .* such as gpt2"),
    ],
)
def test_what_fails_is_one_line_that_says_what_to_do(which, message, answers):
    assert re.match(message, answers[which]), answers[which]
    assert "\n" not in answers[which]


def test_a_damaged_file_does_not_stay_in_the_cache(answers, hub, home):
    assert len(hub.downloads("cdn/tests/wrong/")) == 2  # fetched anew by the second call
    kept = [path.name for path in (home / "huggingface" / "hub" / "models--tests--wrong").rglob("*")]
    assert "config.json" in kept
    assert not {"model.safetensors", "b" * 64} & set(kept)


def test_offline_what_is_cached_opens_and_the_rest_says_how_to_get_it(answers, hub, home, expected):
    before = len(hub.requests)
    script = """
answers = {
    "pinned": attempt(lambda: logits("gpt2")),
    "main": attempt(lambda: logits("tests/sharded")),
    "other": attempt(lambda: logits("distilgpt2")),
    "wrong": attempt(lambda: logits("tests/wrong")),
}
"""
    offline = ask(script, hub.endpoint, home, offline="1")
    assert len(hub.requests) == before
    for which in ("pinned", "main"):
        torch.testing.assert_close(torch.tensor(offline[which]), expected, atol=1e-5, rtol=1e-4)
    for which, name in (("other", "distilbert/distilgpt2"), ("wrong", "tests/wrong")):
        message = rf"ConnectionError: {name} \(.*\) is no folder here and not whole in the cache, and HF_HUB_OFFLINE .*"
        assert re.match(message + rf"`hf download {name} --revision .* folder", offline[which]), offline[which]


def test_without_a_network_what_is_cached_opens_too(answers, home, expected):
    script = 'answers = [attempt(lambda: logits(name)) for name in ("gpt2", "tests/sharded", "gpt2-xl")]'
    pinned, main, other = ask(script, "http://127.0.0.1:9", home)  # the port of `discard`, where nobody listens
    torch.testing.assert_close(torch.tensor(pinned), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.tensor(main), expected, atol=1e-5, rtol=1e-4)
    message = r"ConnectionError: openai-community/gpt2-xl .* http://127\.0\.0\.1:9 cannot be reached \("
    assert re.match(message, other), other
    assert "\n" not in other


def test_published_names_are_pinned_to_whole_commits():
    for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2"):
        repository, revision = repository_and_revision(name)
        assert repository_and_revision(repository) == (repository, revision)
        assert re.fullmatch(rf"(openai-community|distilbert)/{name}", repository)
        assert re.fullmatch("[0-9a-f]{40}", revision)
    assert repository_and_revision("gpt2", "main") == ("openai-community/gpt2", "main")
    assert repository_and_revision("somebody/gpt2") == ("somebody/gpt2", "main")
