"""The stage scripts end to end at a tiny size, as a user runs them, and every mistake that a user can make."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gpt_model import load_model, load_tokenizer
from gpt_model.evaluate import bytes_of_tokens, evaluate_windows
from pretraining import pretrain_simple
from pretraining.model_options import refuse_flags_without_meaning
from pretraining.pretrain import PRESETS, Pretrain
from pretraining.pretrain_simple import PretrainSimple
from tests.conftest import ROOT, assert_one_clear_line
from utils.checkpoints import write_checkpoint
from utils.errors import UserError
from utils.files import alone_in, read_json
from utils.tracking import read_metrics
from working_with_text_data.token_shards import TokenShards, evaluation_windows

TRAIN_TOKENIZER = "working_with_text_data/bytepair_enc/train_tokenizer.py"
PREPARE, PRETRAIN, GENERATE = "pretraining/prepare_data.py", "pretraining/pretrain_simple.py", "gpt_model/generate.py"
TINY = [
    *("--n-layer", "1", "--n-head", "2", "--d-model", "32", "--context-length", "16", "--batch-size", "4"),
    *("--device", "cpu", "--steps", "12", "--evaluations", "2", "--eval-tokens", "64"),
]
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A run folder made by the four stages, and what each printed."""
    folder = tmp_path_factory.mktemp("stages")
    corpus = folder / "corpus"
    corpus.mkdir()
    for i, name in enumerate(NUMBERS):
        text = "".join(f"{name} and {other} make {i + j + 2}.\n" for j, other in enumerate(NUMBERS)) * 4
        (corpus / f"{i}.txt").write_text(text, encoding="utf-8")
    run_folder = folder / "run"
    commands = [
        [TRAIN_TOKENIZER, "--corpus", corpus, "--vocab-size", 300, "--out", run_folder / "tokenizer.json"],
        [PREPARE, "--corpus", corpus, "--tokenizer", run_folder / "tokenizer.json", "--out", run_folder / "tokens"],
        [PRETRAIN, "--data", run_folder / "tokens", "--run", run_folder, *TINY],
        [
            GENERATE,
            "--model",
            run_folder / "model",
            "--device",
            "cpu",
            "--max-new-tokens",
            8,
            "--seed",
            1,
            "--prompt",
            "one and",
            "",
        ],
    ]
    printed = []
    for command in commands:
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        printed.append(done)
    return run_folder, corpus, printed


def tiny_run(stages, run, **flags):
    """The options of a run of two steps on the tokens of `stages`."""
    shape = {"n_layer": 1, "n_head": 2, "d_model": 16, "context_length": 16, "batch_size": 4}
    few = {"steps": 2, "evaluations": 1, "eval_tokens": 64, "device": "cpu"}
    return PretrainSimple(**{"data": stages[0] / "tokens", "run": run} | shape | few | flags)


def test_the_run_folder_is_complete_and_its_figures_are_true(stages):
    folder, _, _ = stages
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "loss.png", "metrics.jsonl", "model", "samples.txt", "tokenizer.json", "tokens",
    }  # fmt: skip
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))
    last = [row for row in rows if "validation_loss" in row][-1]
    assert last["step"] == 12
    assert last["validation_loss"] < rows[0]["validation_loss"]
    # The figure in the log is what the saved model really scores.
    shards = TokenShards.open(folder / "tokens")
    windows = torch.from_numpy(evaluation_windows(shards.arrays["validation"], 16))
    loss, bits = evaluate_windows(load_model(folder / "model"), windows, bytes_of_tokens(shards.tokenizer))
    assert loss == pytest.approx(last["validation_loss"], rel=1e-3)
    assert bits == pytest.approx(last["bits_per_byte"], rel=1e-3)
    assert load_tokenizer(folder / "model").fingerprint == shards.tokenizer.fingerprint
    made_by = json.loads((folder / "model" / "scratchbook.json").read_text(encoding="utf-8"))
    assert made_by["metrics"]["bits_per_byte"] == last["bits_per_byte"]
    assert made_by["command"].startswith("python pretraining/pretrain_simple.py --data ")
    assert made_by["metrics"]["finished"] is True
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "--- step 12" in (folder / "samples.txt").read_text(encoding="utf-8")


def test_each_stage_shows_its_work_and_names_the_next(stages):
    _, _, (tokenizer, prepare, pretrain, generated) = stages
    assert "The first merges:" in tokenizer.stdout
    assert "bytes per token" in tokenizer.stdout
    assert "Next: python pretraining/prepare_data.py" in tokenizer.stdout
    assert "Next: python pretraining/pretrain_simple.py" in prepare.stdout
    assert "Next: python gpt_model/generate.py" in pretrain.stdout
    assert generated.stdout.startswith("one and")
    assert "tokens" in generated.stderr


def test_training_is_the_same_for_the_same_seed(stages, run, tmp_path):
    folder, _, _ = stages
    for name in ("a", "b"):
        run(PRETRAIN, "--data", folder / "tokens", "--run", tmp_path / name, *TINY, "--max-minutes", 0)
    a, b = ((tmp_path / n / "model" / "model.safetensors").read_bytes() for n in ("a", "b"))
    assert a == b


def test_adamw_learns_too(stages, run, tmp_path):
    folder, _, _ = stages
    flags = ["--optimizer", "adamw", "--learning-rate", 0.003]
    done = run(PRETRAIN, "--data", folder / "tokens", "--run", tmp_path, *TINY, *flags)
    assert done.returncode == 0, done.stderr
    losses = [row["validation_loss"] for row in read_metrics(tmp_path / "metrics.jsonl") if "validation_loss" in row]
    assert losses[-1] < losses[0]


def test_a_time_limit_ends_the_run_in_order(stages, run, tmp_path):
    folder, _, _ = stages
    flags = ["--steps", 10**9, "--max-minutes", 0.05]
    done = run(PRETRAIN, "--data", folder / "tokens", "--run", tmp_path, *TINY, *flags)
    assert done.returncode == 0, done.stderr
    scales = [row["learning_rate_scale"] for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row]
    assert max(scales) == 1
    assert scales[-1] < 0.5  # the rate came down as the time ran out


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a single child process")
def test_ctrl_c_leaves_a_loadable_model(stages, tmp_path):
    folder, _, _ = stages
    command = [sys.executable, PRETRAIN, "--data", folder / "tokens", "--run", tmp_path / "run", *TINY]
    command[command.index("--steps") + 1] = "1000000"
    process = subprocess.Popen(
        [*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and len(read_metrics(metrics)) > 20) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "Stopped at step" in out
    load_model(tmp_path / "run" / "model")
    load_tokenizer(tmp_path / "run" / "model")
    made_by = json.loads((tmp_path / "run" / "model" / "scratchbook.json").read_text(encoding="utf-8"))
    assert made_by["metrics"]["interrupted"] is True


def test_a_tokenizer_s_training_goes_on_from_its_checkpoint(run, stages, tmp_path):
    flags = ["--corpus", stages[1], "--checkpoint", tmp_path / "state.gz", "--out"]
    assert run(TRAIN_TOKENIZER, *flags, tmp_path / "small.json", "--vocab-size", 280).returncode == 0
    done = run(TRAIN_TOKENIZER, *flags, tmp_path / "t.json", "--vocab-size", 300, "--processes", 2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "t.json").read_bytes() == (stages[0] / "tokenizer.json").read_bytes()
    assert "the corpus is not read again" in done.stdout + done.stderr
    other = ["--corpus", stages[1] / "0.txt", *flags[2:]]
    assert_one_clear_line(run(TRAIN_TOKENIZER, *other, tmp_path / "x.json", "--vocab-size", 300), "another corpus")
    (tmp_path / "state.gz").write_bytes(b"something else")
    done = run(TRAIN_TOKENIZER, *flags, tmp_path / "t.json", "--vocab-size", 300)
    assert_one_clear_line(done, "is not a readable checkpoint", "delete it")


# --- bad input: one clear line each, and nothing half written ----------------------------------------------------


def listing(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_unknown_corpus(run, tmp_path):
    done = run(TRAIN_TOKENIZER, "--corpus", "wikipedia", "--out", tmp_path / "new" / "t.json")
    assert_one_clear_line(done, "unknown corpus 'wikipedia'", "python-docs, gutenberg")
    assert listing(tmp_path) == []


def test_empty_corpus(run, stages, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("  \n", encoding="utf-8")
    assert_one_clear_line(run(TRAIN_TOKENIZER, "--corpus", tmp_path / "empty", "--out", tmp_path / "t.json"), "empty")
    flags = ["--tokenizer", stages[0] / "tokenizer.json", "--out", tmp_path / "tokens"]
    assert_one_clear_line(run(PREPARE, "--corpus", tmp_path / "empty", *flags), "empty")
    assert listing(tmp_path) == ["empty", "empty/a.txt"]


def test_binary_file(run, stages, tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(256)) * 10)
    flags = ["--tokenizer", stages[0] / "tokenizer.json", "--out", tmp_path / "tokens"]
    assert_one_clear_line(run(PREPARE, "--corpus", tmp_path / "a.txt", *flags), "a.txt", "binary")
    assert listing(tmp_path) == ["a.txt"]


def test_empty_values_and_a_checkpoint_that_cannot_be_one(run, tmp_path):
    out = ["--out", tmp_path / "t.json"]
    assert_one_clear_line(run(TRAIN_TOKENIZER, "--corpus", "", *out), "need a value")
    assert_one_clear_line(run(TRAIN_TOKENIZER, "--corpus", "gutenberg", "--books", "", *out), "need a value")
    assert_one_clear_line(run(TRAIN_TOKENIZER, *out, "--checkpoint", tmp_path), "is a folder")
    assert_one_clear_line(run(TRAIN_TOKENIZER, *out, "--checkpoint", tmp_path / "t.json"), "the same file")
    assert listing(tmp_path) == []


@pytest.mark.parametrize("size", [256, 0, -5])
def test_vocabulary_too_small(run, tmp_path, size):
    done = run(TRAIN_TOKENIZER, "--vocab-size", size, "--out", tmp_path / "t.json")
    assert_one_clear_line(done, f"vocabulary of {size} is too small", "at least 257")
    assert listing(tmp_path) == []


def test_pattern_that_does_not_compile(run, tmp_path):
    assert_one_clear_line(run(TRAIN_TOKENIZER, "--pattern", "(", "--out", tmp_path / "t.json"), "does not compile")
    assert listing(tmp_path) == []


def test_context_longer_than_the_shard(run, stages, tmp_path):
    done = run(PRETRAIN, "--data", stages[0] / "tokens", "--run", tmp_path / "run", "--context-length", 100_000)
    assert_one_clear_line(done, "too few for a batch", "shorter context")
    assert listing(tmp_path) == []


def test_missing_and_foreign_tokenizer(run, stages, tmp_path):
    folder, corpus, _ = stages
    done = run(PREPARE, "--corpus", corpus, "--tokenizer", tmp_path / "no.json", "--out", tmp_path / "tokens")
    assert_one_clear_line(done, "no tokenizer at", "train_tokenizer.py")
    run(TRAIN_TOKENIZER, "--corpus", corpus, "--vocab-size", 290, "--out", tmp_path / "other.json")
    flags = ["--data", folder / "tokens", "--run", tmp_path / "run"]
    done = run(PRETRAIN, *flags, "--tokenizer", tmp_path / "other.json")
    assert_one_clear_line(done, "is not the tokenizer that made the shards")
    assert listing(tmp_path) == ["other.json"]


def test_missing_shards_and_model(run, tmp_path):
    assert_one_clear_line(run(PRETRAIN, "--data", tmp_path / "no", "--run", tmp_path / "run"), "no token shards in")
    assert_one_clear_line(run(GENERATE, "--model", tmp_path / "no"), "no model folder at", "make demo")
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("script", "flag"),
    [(TRAIN_TOKENIZER, "--out"), (PREPARE, "--out"), (PRETRAIN, "--run")],
)
def test_unwritable_folder(run, stages, tmp_path, script, flag):
    """A path below a file: that no user, not even root, can make."""
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    inputs = {PREPARE: ["--tokenizer", stages[0] / "tokenizer.json"], PRETRAIN: ["--data", stages[0] / "tokens", *TINY]}
    done = run(script, *inputs.get(script, []), flag, tmp_path / "file" / "below" / "deep")
    assert_one_clear_line(done, "part of that path is a file" if os.name != "nt" else "file")
    assert listing(tmp_path) == ["file"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root and Windows ignore the mode bits of a folder")
def test_folder_without_permission(run, tmp_path):
    tmp_path.chmod(0o500)
    done = run(TRAIN_TOKENIZER, "--out", tmp_path / "x" / "t.json")
    tmp_path.chmod(0o700)
    assert_one_clear_line(done, "permission denied")


DISK_OF_64_KB = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64_000, 64_000))  # larger writes fail as on a full disk, with an OSError
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif(os.name == "nt", reason="needs resource limits")
def test_a_write_that_fails_half_way_leaves_nothing(stages, tmp_path):
    folder, _, _ = stages
    big = tmp_path / "big.txt"
    big.write_text("one and two make three. " * 20_000, encoding="utf-8")
    for script, *flags in (
        (PREPARE, "--corpus", big, "--tokenizer", folder / "tokenizer.json", "--out", tmp_path / "tokens"),
        (PRETRAIN, "--data", folder / "tokens", "--run", tmp_path / "run", *TINY, "--d-model", 128),
    ):
        command = [sys.executable, "-c", DISK_OF_64_KB, script, *flags]
        done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
        assert_one_clear_line(done, "File too large")
    names = {p.name for p in tmp_path.rglob("*")}
    assert names <= {"big.txt", "run", "config.json", "metrics.jsonl", "samples.txt"}  # no shards, no model, no staging


FULL_DISK = """
import errno, os, runpy, sys
def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
os.replace = full
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_full_disk_is_told_and_leaves_nothing(stages, tmp_path):
    folder, corpus, _ = stages
    for script, *flags in (
        (TRAIN_TOKENIZER, "--corpus", corpus, "--vocab-size", 300, "--out", tmp_path / "tokenizer.json"),
        (PREPARE, "--corpus", corpus, "--tokenizer", folder / "tokenizer.json", "--out", tmp_path / "tokens"),
    ):
        command = [sys.executable, "-c", FULL_DISK, script, *flags]
        done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
        assert_one_clear_line(done, "the disk is full", "free some space")
    assert listing(tmp_path) == []


def test_an_older_run_is_replaced_only_when_asked_for(run, stages):
    folder, _, _ = stages
    before = (folder / "model" / "model.safetensors").read_bytes()
    assert_one_clear_line(run(PRETRAIN, "--data", folder / "tokens", "--run", folder, *TINY), "holds a run already")
    assert (folder / "model" / "model.safetensors").read_bytes() == before
    done = run(PRETRAIN, "--data", folder / "tokens", "--run", folder, *TINY, "--overwrite")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no lock for folders")
def test_a_folder_that_another_process_writes_is_let_be(stages):
    folder, _, _ = stages
    before = listing(folder)
    options = replace(tiny_run(stages, folder), overwrite=True)
    with alone_in(folder), pytest.raises(ValueError, match="another process is writing"):
        pretrain_simple.main(options)
    assert listing(folder) == before


def test_overwrite_leaves_no_checkpoints_to_go_on_from(stages, tmp_path):
    """They would be of the older run, and pretrain.py --resume auto would take them for this one's."""
    run = tmp_path / "run"
    write_checkpoint(run / "checkpoints", 5, lambda folder: None)
    (run / "wandb_id.txt").write_text("the older run's")
    (run / "tensorboard").mkdir()
    (run / "notes.txt").write_text("mine")
    options = tiny_run(stages, run)
    with pytest.raises(UserError, match="holds a run already"):
        pretrain_simple.main(options)
    assert (run / "checkpoints").is_dir()
    pretrain_simple.main(replace(options, overwrite=True))
    left = {"config.json", "loss.png", "metrics.jsonl", "model", "notes.txt", "samples.txt"}
    assert {path.name for path in run.iterdir()} == left


def test_without_all_at_end_a_run_is_finished_all_the_same(stages, tmp_path):
    pretrain_simple.main(tiny_run(stages, tmp_path / "run", all_at_end=False))
    metrics = read_json(tmp_path / "run" / "model" / "scratchbook.json")["metrics"]
    assert (metrics["finished"], metrics["validation_tokens"]) == (True, 64)


def test_a_model_with_a_longer_context_is_measured_at_the_length_it_is_trained_at(stages, tmp_path):
    flags = {"all_at_end": False, "eval_tokens": 128}
    pretrain_simple.main(tiny_run(stages, tmp_path / "long", context_length=64, **flags))
    base = tmp_path / "long" / "model"
    short = tiny_run(stages, tmp_path / "short", from_model=base, n_layer=4, n_head=3, d_model=192, **flags)
    pretrain_simple.main(short)
    measured = next(row for row in read_metrics(tmp_path / "short" / "metrics.jsonl") if "validation_loss" in row)
    shards = TokenShards.open(short.data)
    windows = torch.from_numpy(evaluation_windows(shards.arrays["validation"], 16, 128))
    loss, _ = evaluate_windows(load_model(base), windows, bytes_of_tokens(shards.tokenizer), 4, "auto")
    assert measured["validation_loss"] == pytest.approx(loss, rel=1e-4)


def test_no_network(run, tmp_path):
    """Every request goes to a proxy that nobody listens on."""
    nobody = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    environment = nobody | {"SCRATCHBOOK_CACHE": str(tmp_path / "cache")}
    done = run(TRAIN_TOKENIZER, "--corpus", "gutenberg", "--books", 11, "--out", tmp_path / "t.json", **environment)
    assert_one_clear_line(done, "book 11 could not be fetched", "--books FOLDER")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    ("flag", "value", "word"),
    [
        ("--steps", 0, "--steps must be above 0"),
        ("--learning-rate", "nan", "--learning-rate must be above 0"),
        ("--max-minutes", -1, "--max-minutes"),
        ("--device", "cuda:77", "CUDA"),
        ("--n-head", 5, "not divisible"),
        ("--dropout", 1.5, "dropout"),
        ("--seed", -1, "seed -1"),
    ],
)
def test_bad_flags(run, stages, tmp_path, flag, value, word):
    done = run(PRETRAIN, "--data", stages[0] / "tokens", "--run", tmp_path / "run", *TINY, flag, value)
    assert_one_clear_line(done, word)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("evaluations", [2, 12])  # found at the next step, and found when measuring
def test_a_loss_that_explodes_is_told(run, stages, tmp_path, evaluations):
    flags = ["--learning-rate", 1e30, "--other-learning-rate", 1e30, "--evaluations", evaluations]
    done = run(PRETRAIN, "--data", stages[0] / "tokens", "--run", tmp_path / "run", *TINY, *flags)
    assert_one_clear_line(done, "loss is", "lower --learning-rate")
    load_model(tmp_path / "run" / "model")


def test_somebody_s_folder_is_not_replaced(run, stages, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    done = run(PREPARE, "--corpus", stages[1], "--tokenizer", stages[0] / "tokenizer.json", "--out", tmp_path)
    assert_one_clear_line(done, "holds 'thesis.tex', which is not ours")
    assert listing(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize(("flag", "value"), [("--temperature", -1), ("--top-p", 0), ("--max-new-tokens", 0)])
def test_bad_sampling_flags(run, stages, flag, value):
    done = run(GENERATE, "--model", stages[0] / "model", flag, value)
    assert_one_clear_line(done, flag.strip("-").split("-")[0], f"got {value}")


@pytest.mark.parametrize("script", [TRAIN_TOKENIZER, PREPARE, PRETRAIN, GENERATE])
def test_help(run, script):
    done = run(script, "--help")
    assert done.returncode == 0
    assert "usage:" in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"n_kv_head": 7, "attention": "sliding-window"}, "--n-kv-head belongs to --attention grouped-query"),
        ({"window": 0}, "--window belongs to --attention sliding-window, and here it is multi-head"),
        ({"from_model": Path("m"), "n_layer": 9}, "--n-layer does nothing with --from-model"),
        ({"from_model": Path("m"), "attention": "latent"}, "--attention does nothing with --from-model"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        refuse_flags_without_meaning(PretrainSimple(**flags))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"max_minutes": math.nan}, "--max-minutes must be at least 0"),
        ({"max_minutes": math.inf}, "--max-minutes must be at least 0 .0 for no limit"),
        ({"weight_decay": math.nan}, "--weight-decay must be at least 0"),
        ({"weight_decay": -5.0}, "--weight-decay must be at least 0"),
        ({"learning_rate": math.inf}, "--learning-rate must be above 0"),
        ({"other_learning_rate": math.inf}, "--other-learning-rate must be above 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        PretrainSimple(**flags)


@pytest.mark.parametrize("options", [Pretrain, PretrainSimple])
def test_a_prompt_that_is_not_utf_8_is_refused_before_anything_is_written(options):
    with pytest.raises(UserError, match="--sample-prompt is not UTF-8: write it in a UTF-8 terminal"):
        options(sample_prompt=os.fsdecode(b"\xff"))


def test_flags_that_mean_something_are_taken():
    refuse_flags_without_meaning(PretrainSimple(attention="grouped-query", n_kv_head=3, n_layer=9))
    refuse_flags_without_meaning(PretrainSimple(from_model=Path("m"), context_length=16, learning_rate=0.01))


def test_a_preset_s_shape_gives_way_to_a_model_s_own():
    """What only the preset says was not asked for; what was given beside it would do nothing."""
    preset = PRESETS["modern"]
    refuse_flags_without_meaning(replace(preset, from_model=Path("m")), preset)
    with pytest.raises(UserError, match="--norm does nothing with --from-model"):
        refuse_flags_without_meaning(replace(preset, from_model=Path("m"), norm="layernorm"), preset)
    with pytest.raises(UserError, match="--positions does nothing with --from-model"):
        refuse_flags_without_meaning(Pretrain(from_model=Path("m"), positions="rope"))
