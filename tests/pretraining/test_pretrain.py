"""The training system as its users run it: killed, resumed, on several ranks, with every optimiser."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from gpt_model import load_model
from pretraining import pretrain
from pretraining.pretrain import PRESETS, Pretrain
from tests.conftest import ROOT, assert_one_clear_line, ended, started
from utils.checkpoints import find_checkpoints, load_tree
from utils.errors import EXIT_INTERRUPTED, EXIT_TERMINATED
from utils.files import alone_in, read_json, write_json
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.corpora import Document, Split
from working_with_text_data.token_shards import write_shards

PRETRAIN = "pretraining/pretrain.py"
TINY = ["--n-layer", 2, "--n-head", 2, "--d-model", 16, "--context-length", 16, "--batch-size", 8, "--eval-tokens", 256]
TINY += [
    "--evaluate-every",
    1280,
    "--checkpoint-every",
    7,
    "--dropout",
    0.1,
    "--device",
    "cpu",
    "--precision",
    "float32",
]
TINY += ["--galore-rank", 4, "--galore-gap", 5, "--diagnose-every", 9]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A little made-up corpus: sums, which are text enough to have structure."""
    draw = random.Random(0)
    documents: list[tuple[Split, Document]] = []
    for i in range(60):
        lines = [f"{a} plus {b} is {a + b}" for a, b in ((draw.randrange(50), draw.randrange(50)) for _ in range(20))]
        documents.append(("train" if i % 6 else "validation", Document(f"d{i}", "\n".join(lines))))
    tokenizer = BytePairTokenizer.train([d.text for _, d in documents], 300)
    folder = tmp_path_factory.mktemp("corpus") / "tokens"
    write_shards(folder, documents, tokenizer, {"why": "test"}, shard_tokens=4000)
    return folder


def command(tokens, run, *flags, ranks=1):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks, "--"]
    start = [sys.executable] if ranks == 1 else torchrun
    return [str(x) for x in (*start, ROOT / PRETRAIN, "--data", tokens, "--run", run, *TINY, *flags)]


def start(tokens, run, *flags, ranks=1):
    return started(command(tokens, run, *flags, ranks=ranks))


def stop_in_the_middle(tokens, run, *flags, ranks=1, at, number):
    """Starts the command, sends the signal once `at` steps are noted (to all ranks), and gives the exit status."""
    process = start(tokens, run, *flags, ranks=ranks)
    log = run / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if log.is_file() and log.read_text().count('"loss"') >= at:
            if number == signal.SIGKILL:
                for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
                    one.kill()
            else:
                process.send_signal(number)
            break
        time.sleep(0.002)
    said, _ = process.communicate(timeout=240)
    return process.returncode, said


def losses(run: Path) -> dict[int, tuple[float, ...]]:
    """Step -> everything that was measured there and is a function of the training."""
    kept: dict[int, tuple[float, ...]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        kept[row["step"]] = (
            *kept.get(row["step"], ()),
            *(row[k] for k in sorted(row) if k not in ("seconds", "minutes")),
        )
    return kept


AND_THEN_ITS_THREADS = """
from pathlib import Path
from pretraining import pretrain
from pretraining.pretrain import PRESETS, Pretrain, main
from utils.errors import run_command
run_command(main, Pretrain, PRESETS)
print("threads:", [comm.read_text().strip() for comm in Path("/proc/self/task").glob("*/comm")])
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="there is no list of a process's threads")
def test_no_thread_of_the_group_outlives_it(tokens, tmp_path):
    script = tmp_path / "and_then.py"
    script.write_text(AND_THEN_ITS_THREADS)
    line = command(tokens, tmp_path / "run", "--steps", 3, ranks=2)
    said = ended(started(script if part == str(ROOT / PRETRAIN) else part for part in line))
    assert said.count("threads:") == 2
    assert "gloo" not in said.split("threads:", 1)[1], said


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "galore-adamw", "galore-adafactor"])
def test_killed_and_resumed_is_bit_for_bit_as_if_never_killed(tokens, tmp_path, optimizer, ranks):
    flags = ("--steps", 60, "--optimizer", optimizer, "--micro-batch-size", 2)
    whole = start(tokens, tmp_path / "whole", *flags, ranks=ranks)
    at = random.Random(f"{optimizer}{ranks}").randrange(3, 40)
    status, said = stop_in_the_middle(tokens, tmp_path / "cut", *flags, ranks=ranks, at=at, number=signal.SIGKILL)
    assert status == -signal.SIGKILL, said
    assert len(losses(tmp_path / "cut")) < 60
    assert "Going on after step" in ended(start(tokens, tmp_path / "cut", *flags, "--resume", "auto", ranks=ranks))
    ended(whole)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    a, b = load_model(tmp_path / "whole" / "model"), load_model(tmp_path / "cut" / "model")
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_bfloat16_weights_go_on_bit_for_bit_and_only_the_masters_are_written(tokens, tmp_path):
    flags = ("--steps", 40, "--optimizer", "muon", "--micro-batch-size", 2, "--precision", "bfloat16")
    half = (*flags, "--weights", "bfloat16")
    whole = start(tokens, tmp_path / "whole", *half)
    status, said = stop_in_the_middle(tokens, tmp_path / "cut", *half, at=12, number=signal.SIGKILL)
    assert status == -signal.SIGKILL, said
    assert_one_clear_line(
        subprocess.run(
            command(tokens, tmp_path / "cut", *flags, "--resume", "auto"), capture_output=True, text=True, cwd=ROOT
        ),
        "was trained with --weights bfloat16",
    )
    assert "Going on after step" in ended(start(tokens, tmp_path / "cut", *half, "--resume", "auto"))
    ended(whole)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    masters = load_tree(find_checkpoints(tmp_path / "cut" / "checkpoints")[0].folder / "state.safetensors")["model"]
    for folder in ("whole", "cut"):
        read = load_model(tmp_path / folder / "model").state_dict()
        assert all(torch.equal(read[name], master) for name, master in masters.items())
        written = load_file(tmp_path / folder / "model" / "model.safetensors")
        assert {weight.dtype for weight in written.values()} == {torch.float32}
        assert any((weight != weight.bfloat16()).any() for weight in written.values())


EXACT = """
import runpy, sys
sys.path.insert(0, {root!r})
from pretraining import optimizers
optimizers.has_fast_bfloat16 = lambda device: False  # in bfloat16, Muon's products show the order of a sum
runpy.run_path({script!r}, run_name="__main__")
"""


def test_fsdp_goes_on_with_another_number_of_ranks(tokens, tmp_path, monkeypatch):
    (tmp_path / "exact.py").write_text(EXACT.format(root=str(ROOT), script=str(ROOT / PRETRAIN)))
    monkeypatch.setattr(sys.modules[__name__], "PRETRAIN", tmp_path / "exact.py")
    flags = ("--steps", 30, "--optimizer", "muon", "--parallel", "fsdp", "--dropout", 0)
    whole = start(tokens, tmp_path / "whole", *flags, ranks=1)
    _, said = stop_in_the_middle(tokens, tmp_path / "cut", *flags, ranks=2, at=10, number=signal.SIGTERM)
    assert find_checkpoints(tmp_path / "cut" / "checkpoints")[0].step < 30, said
    ended(start(tokens, tmp_path / "cut", *flags, "--resume", "auto", ranks=1))
    ended(whole)
    whole, cut = losses(tmp_path / "whole"), losses(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    for step in whole:
        assert cut[step] == pytest.approx(whole[step], rel=1e-3), step
    assert load_model(tmp_path / "cut" / "model").n_parameters > 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, EXIT_TERMINATED), (signal.SIGINT, EXIT_INTERRUPTED)])
def test_a_signal_saves_and_ends(tokens, tmp_path, number, status):
    flags = ("--steps", 2000, "--checkpoint-every", 1000)
    ended, said = stop_in_the_middle(tokens, tmp_path / "run", *flags, at=5, number=number)
    assert ended == status, said
    assert "--resume auto goes on" in said
    newest = find_checkpoints(tmp_path / "run" / "checkpoints")[0]
    assert newest.step == max(losses(tmp_path / "run"))
    assert newest.damage() is None


def test_a_damaged_checkpoint_is_passed_over(tokens, tmp_path):
    run = tmp_path / "run"
    ended(start(tokens, run, "--steps", 20))
    newest = find_checkpoints(run / "checkpoints")[0]
    assert newest.step == 20
    before = losses(run)
    with (newest.folder / "state.safetensors").open("r+b") as file:
        file.seek(2000)
        file.write(b"\0\1\2\3")
    assert "is damaged" in ended(start(tokens, run, "--steps", 20, "--resume", "auto"))
    assert losses(run) == before


def test_a_run_is_not_lost_by_mistake(tokens, tmp_path, run):
    flags = ("--data", tokens, "--run", tmp_path / "run", *TINY, "--steps", 2)
    assert run(PRETRAIN, *flags).returncode == 0
    assert_one_clear_line(run(PRETRAIN, *flags), "holds a run already", "--resume auto", "--overwrite")
    other = run(PRETRAIN, *flags, "--resume", "auto", "--learning-rate", 0.5)
    assert_one_clear_line(other, "was trained with --learning-rate 0.003, not 0.5")
    config = read_json(tmp_path / "run" / "config.json")
    del config["options"]["weights"]  # as of a run that began before there was this flag
    write_json(tmp_path / "run" / "config.json", config)
    other = run(PRETRAIN, *flags, "--resume", "auto", "--weights", "bfloat16")
    assert_one_clear_line(other, "was trained with --weights float32, not bfloat16")
    assert run(PRETRAIN, *flags, "--resume", "auto").returncode == 0
    assert run(PRETRAIN, *flags, "--overwrite").returncode == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--steps", 0), ("--steps must be above 0",)),
        (("--steps", "many"), ()),
        (("--batch-size", 7, "--micro-batch-size", 2), ("does not divide the 7 windows",)),
        (("--batch-size", 100_000), ("too few for a batch",)),
        (("--learning-rate", "nan"), ("--learning-rate must be above 0",)),
        (("--warmup", 1.5), ("--warmup is a share",)),
        (("--optimizer", "galore-adamw8bit"), ("CUDA only",)),
        (("--wandb", "online"), ("set WANDB_API_KEY", "--wandb offline")),
        (("--preset", "gpt5"), ("no such preset", "gpt2-124m")),
        (("--data", "nowhere"), ("no token shards in nowhere",)),
    ],
)
def test_mistakes_are_one_clear_line(tokens, tmp_path, run, flags, words):
    done = run(
        PRETRAIN, "--data", tokens, "--run", tmp_path / "run", *TINY, *flags, HOME=str(tmp_path), WANDB_API_KEY=""
    )
    if not words:  # tyro's own words
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        return
    assert_one_clear_line(done, *words)


def test_presets_have_the_shapes_they_name():
    assert set(PRESETS) == {"laptop", "modern", "gpt2-124m", "gpt2-355m"}
    small, medium = PRESETS["gpt2-124m"], PRESETS["gpt2-355m"]
    assert small.batch_size * small.context_length == 491_520  # nanoGPT's tokens per step
    assert (small.n_layer, small.n_head, small.d_model) == (12, 12, 768)
    assert (medium.n_layer, medium.n_head, medium.d_model) == (24, 16, 1024)
    assert all(isinstance(preset, Pretrain) and preset.preset == name for name, preset in PRESETS.items())


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_divide_among_the_usual_numbers_of_ranks(preset, ranks):
    options = PRESETS[preset]
    share = options.batch_size // ranks
    assert options.parts(ranks) == share // (options.micro_batch_size or share)


def test_the_commands_of_the_readme_divide_among_their_ranks():
    text = (ROOT / "pretraining/README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [line for line in text.splitlines() if "torchrun" in line and "pretrain.py" in line]
    sizes = []
    for line in commands:
        words = line.replace('"$SLURM_NNODES"', "2").split()  # as --nodes says above it
        nodes = int(words[words.index("--nnodes") + 1]) if "--nnodes" in words else 1
        sizes.append(nodes * int(words[words.index("--nproc-per-node") + 1]))
        assert PRESETS[words[words.index("--preset") + 1]].parts(sizes[-1])
    assert sizes == [8, 16, 16]


def test_a_preset_goes_on_from_a_model_of_another_shape(tokens, tmp_path):
    few = {"data": tokens, "steps": 1, "batch_size": 4, "eval_tokens": 64, "all_at_end": False, "context_length": 16}
    base = Pretrain(run=tmp_path / "base", n_layer=1, n_head=2, d_model=16, **few)
    pretrain.main(base)
    pretrain.main(replace(PRESETS["modern"], run=tmp_path / "more", from_model=base.run / "model", **few))
    assert load_model(tmp_path / "more" / "model").config == load_model(base.run / "model").config


def test_what_is_refused_loses_nothing(run, tokens, tmp_path):
    """Wrong flags beside --overwrite, a run without its log, damaged checkpoints: all is there afterwards."""
    folder = tmp_path / "run"
    ours = ("--data", tokens, "--run", folder, *TINY, "--steps", 6, "--checkpoint-every", 2)
    assert run(PRETRAIN, *ours).returncode == 0

    def contents():
        return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    before = contents()
    assert_one_clear_line(run(PRETRAIN, *ours, "--overwrite", "--optimizer", "galore-adamw8bit"), "CUDA")
    no_key = {"WANDB_API_KEY": "", "HOME": str(tmp_path)}
    assert_one_clear_line(run(PRETRAIN, *ours, "--overwrite", "--wandb", "online", **no_key), "wandb")
    assert contents() == before
    (folder / "metrics.jsonl").unlink()
    assert_one_clear_line(run(PRETRAIN, *ours), "holds a run already", "config.json")
    assert run(PRETRAIN, *ours, "--resume", "auto").returncode == 0  # the log begins anew, the run is whole
    for state in folder.glob("checkpoints/*/state.safetensors"):
        state.write_bytes(state.read_bytes()[:-1] + b"\xff")
    assert_one_clear_line(run(PRETRAIN, *ours, "--resume", "auto"), "all checkpoints", "--overwrite")
    assert find_checkpoints(folder / "checkpoints")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert_one_clear_line(run(PRETRAIN, *ours, "--resume", "auto"), "config.json is damaged")
    (folder / "config.json").unlink()
    assert_one_clear_line(run(PRETRAIN, *ours, "--resume", "auto"), "config.json is missing")


def test_a_run_goes_on_with_its_own_tokens_alone(run, tokens, tmp_path):
    ours = ("--run", tmp_path / "run", *TINY, "--steps", 4)
    assert run(PRETRAIN, "--data", tokens, *ours).returncode == 0
    shutil.copytree(tokens, tmp_path / "moved")
    assert run(PRETRAIN, "--data", tmp_path / "moved", *ours, "--resume", "auto").returncode == 0
    manifest = tmp_path / "moved" / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("test", "other"), encoding="utf-8")
    done = run(PRETRAIN, "--data", tmp_path / "moved", *ours, "--resume", "auto")
    assert_one_clear_line(done, "on other tokens")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no lock for folders")
def test_two_runs_do_not_write_to_one_folder(run, tokens, tmp_path):
    ours = ("--data", tokens, "--run", tmp_path, *TINY, "--steps", 4)
    with alone_in(tmp_path):
        assert_one_clear_line(run(PRETRAIN, *ours), "another process is writing")
    assert run(PRETRAIN, *ours).returncode == 0
