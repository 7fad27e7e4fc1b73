"""Instruction tuning as its users run it: any split of a batch, killed, resumed, and opened by other programs."""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetuning.instruction.answering import answers, exactly, learned_system_prompt
from finetuning.instruction.ask import Ask, kept_questions
from finetuning.instruction.ask import main as ask
from finetuning.instruction.packing import tokens_of
from finetuning.instruction.prompt_format import PromptFormat
from finetuning.instruction.train_instruct import InstructionTask, TrainInstruct, main, plain_copy, token_accuracy
from gpt_model import GPT, GPTConfig, load_model, load_tokenizer
from pretraining.distributed import Ranks
from tests.conftest import ROOT, assert_one_clear_line, ended, started
from utils.checkpoints import find_checkpoints
from utils.errors import UserError
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.token_shards import IGNORE

SCRIPT, ASK = "finetuning/instruction/train_instruct.py", "finetuning/instruction/ask.py"
HERE = Ranks(0, 1, torch.device("cpu"))
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A tiny base model with random weights, and sums in words: answers of different lengths."""
    folder = tmp_path_factory.mktemp("instruct")
    rows = [
        {"instruction": f"Add {a} to {b}.", "input": "", "output": " and ".join([WORDS[a], *[WORDS[b]] * (a % 4)])}
        for a in range(10)
        for b in range(8)
    ]
    (folder / "sums.json").write_text(json.dumps(rows))
    text = [f"### Instruction:\n{r['instruction']}\n\n### Response:\n{r['output']}" for r in rows]
    tokenizer = BytePairTokenizer.train(text, 330)
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=tokenizer.n_vocab, context_length=48, n_layer=2, n_head=2, d_model=16, dropout=0.1)
    GPT(config).save_pretrained(folder / "base", tokenizer)
    return folder


def flags(work, *more):
    tiny = ["--model", work / "base", "--data", work / "sums.json", "--validation-share", 0.2, "--batch-size", 8]
    tiny += ["--device", "cpu", "--precision", "float32", "--ask", 2, "--max-new-tokens", 4, "--learning-rate", 0.01]
    return [str(x) for x in (*tiny, *more)]


def options(work, **more) -> TrainInstruct:
    given: dict[str, Any] = {"model": str(work / "base"), "data": str(work / "sums.json"), "validation_share": 0.2}
    given |= {"batch_size": 8, "device": "cpu", "precision": "float32", "ask": 2, "max_new_tokens": 4}
    return TrainInstruct(**(given | {"learning_rate": 0.01} | more))


def start(work, run, *more, ranks=1):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "--"]
    python = [sys.executable] if ranks == 1 else torchrun
    return started([*python, ROOT / SCRIPT, "--run", run, *flags(work, *more)])


def as_typed(name, value):
    """A flag and its value, as in a shell."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, value]


def measured(run: Path) -> list[dict[str, float]]:
    """Everything that is a function of the training, in its order, without what a kill left behind."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "minutes")} for row in rows]


def weights(run: Path):
    return load_model(run / "model").state_dict()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_killed_and_resumed_is_as_if_never_killed(work, tmp_path, kind):
    """Adapters, padded; and all weights, packed and in parts. Both with dropout."""
    kinds: dict[str, dict[str, Any]] = {"lora": {"lora": True, "packing": False}, "full": {"micro_batch_size": 4}}
    more: dict[str, Any] = {"steps": 24, "checkpoint_every": 5, "evaluate_every": 900, "keep": "last", **kinds[kind]}
    words = [str(x) for name, value in more.items() for x in as_typed(name, value)]
    process, deadline = start(work, tmp_path / "cut", *words), time.monotonic() + 240
    log = tmp_path / "cut" / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < deadline:
        if log.is_file() and log.read_text().count('"loss"') >= 13:
            process.kill()
            break
        time.sleep(0.002)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL, said
    assert len([row for row in measured(tmp_path / "cut") if "loss" in row]) < 24
    main(options(work, run=tmp_path / "cut", resume="auto", **more))
    main(options(work, run=tmp_path / "whole", **more))
    whole, cut = measured(tmp_path / "whole"), measured(tmp_path / "cut")
    assert [row["step"] for row in cut] == [row["step"] for row in whole]
    assert cut == whole
    pairs = zip(weights(tmp_path / "whole").values(), weights(tmp_path / "cut").values(), strict=True)
    assert all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("packing", [True, False])
def test_two_ranks_and_parts_take_the_step_of_one_large_batch(work, tmp_path, packing):
    """Answers have one to four words, so that means of means would be other losses."""
    base = tmp_path / "base"  # dropout would differ
    model = load_model(work / "base")
    GPT(replace(model.config, dropout=0.0)).save_pretrained(base, load_tokenizer(work / "base"))
    more: dict[str, Any] = {"model": str(base), "steps": 4, "packing": packing}
    more |= {"evaluate_every": 10**9, "ask": 0}
    names = ["two", "parts"] if packing else ["parts"]  # ranks cost seconds, and cut both kinds in one way
    if packing:
        two = start(work, tmp_path / "two", *(str(x) for n, v in more.items() for x in as_typed(n, v)), ranks=2)
    main(options(work, run=tmp_path / "one", **more))
    main(options(work, run=tmp_path / "parts", micro_batch_size=2, **more))
    if packing:
        ended(two)
    one_steps, *others = ([r["loss"] for r in measured(tmp_path / n) if "loss" in r] for n in ("one", *names))
    for steps in others:
        assert steps == pytest.approx(one_steps, rel=1e-5)
    assert one_steps[:1] == pytest.approx(expected_losses(base, work, packing), rel=1e-5)
    for name in names:
        for ours, plain in zip(weights(tmp_path / name).values(), weights(tmp_path / "one").values(), strict=True):
            if ours.ndim == 2:
                torch.testing.assert_close(ours, plain, atol=1e-3, rtol=1e-2)


def expected_losses(base, work, packing) -> list[float]:
    """The first step's loss by the book: each example alone, the mean over the tokens of all answers."""
    task = InstructionTask(options(work, model=str(base), packing=packing), HERE)
    numbers = task.padded(0) if not packing else [i for row in task.packed(0) for i in row]
    model, losses = load_model(base), []
    for i in numbers:
        if i >= 0:
            tokens = task.train.tokens[i]
            logits = model(torch.from_numpy(tokens.inputs)[None])[0]
            losses.append(F.cross_entropy(logits, torch.from_numpy(tokens.targets), reduction="none"))
            losses[-1] = losses[-1][torch.from_numpy(tokens.targets) != IGNORE]
    return [torch.cat(losses).mean().item()]


def test_held_out_figures_are_those_of_each_example_alone(work):
    task = InstructionTask(options(work), HERE)
    model, right, asked = load_model(work / "base"), 0, 0
    for tokens in task.validation.tokens:
        logits = model(torch.from_numpy(tokens.inputs)[None])[0]
        counts = torch.from_numpy(tokens.targets != IGNORE)
        right += int((logits.argmax(-1) == torch.from_numpy(tokens.targets))[counts].sum())
        asked += int(counts.sum())
    assert asked == task.validation.n_targets
    assert token_accuracy(task.model, task.measured, HERE, "float32", 3) == pytest.approx(right / asked)


@pytest.fixture(scope="module")
def tuned(work, tmp_path_factory):
    """A run with everything, and what it said."""
    run = tmp_path_factory.mktemp("tuned") / "run"
    more = ("--lora", "--lora-targets", "c_attn", "c_proj", "c_fc", "--lora-rank", 16, "--format", "chat")
    return run, ended(start(work, run, *more, "--system-prompt", "Add.", "--steps", 12))


def test_a_run_leaves_what_it_says(tuned, work, run):
    folder, said = tuned
    assert "80 rows, 80 examples" in said
    assert "Only to fill up" in said
    assert "ask.py" in said.splitlines()[-1]
    rows = [row for row in measured(folder) if "validation_loss" in row]
    assert {"token_accuracy", "exact_match_trained", "exact_match_held_out"} <= rows[-1].keys()
    assert rows[-1]["validation_loss"] < rows[0]["validation_loss"]
    assert (folder / "loss.png").stat().st_size > 1000
    samples = (folder / "samples.txt").read_text()
    assert "(trained) Add" in samples
    assert "(held out) Add" in samples
    data = json.loads((folder / "config.json").read_text())["data"]
    assert data["examples"]["train"] + data["examples"]["validation"] == 80
    asked = run(ASK, "--model", folder / "model", "Add 1 to 2.", "--examples", 1, "--max-new-tokens", 5)
    assert asked.returncode == 0, asked.stderr
    assert "Add 1 to 2." in asked.stdout
    assert "1 questions learned from" in asked.stdout
    assert "was not read" not in asked.stdout
    long = run(ASK, "--model", folder / "model", "Add 1 to 2. " * 100, "--max-new-tokens", 1)
    assert "The beginning of question 1 was not read:" in long.stdout, long.stderr
    assert learned_system_prompt(folder / "model") == "Add."
    assert learned_system_prompt(work / "base") == ""


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # between those two
def test_transformers_and_peft_open_the_run(tuned, work):
    """The merged model, the adapter on the base, and transformers' own greedy answer are one."""
    folder, _ = tuned
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "model")
    question: Any = [{"role": "user", "content": "Add 3 to 5."}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    layout, ours = PromptFormat.of(folder / "model"), load_model(folder / "model")
    assert layout is not None
    encoded = layout.encode(load_tokenizer(folder / "model"), question, ask=True)
    assert encoded.ids == ids[0].tolist()
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)
    base: Any = AutoModelForCausalLM.from_pretrained(work / "base")
    adapted = PeftModel.from_pretrained(base, folder / "adapter").eval()
    torch.testing.assert_close(ours(ids), adapted(ids).logits, atol=1e-4, rtol=1e-4)
    (said,) = answers(ours, load_tokenizer(folder / "model"), layout, [question], 5)
    written = theirs.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
    assert said == tokenizer.decode(written, skip_special_tokens=True)


def test_adapters_are_merged_into_a_copy_and_go_on_learning(work):
    task = InstructionTask(options(work, lora=True), HERE)
    with torch.no_grad():
        for name, parameter in task.model.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_()
    ids = torch.arange(20)[None]
    plain = plain_copy(task.model)
    assert not any("lora" in name for name in plain.state_dict())
    torch.testing.assert_close(plain(ids), task.model.eval()(ids), atol=1e-5, rtol=1e-5)
    assert [n for n, p in task.model.named_parameters() if p.requires_grad] == [
        n for n, _ in task.model.named_parameters() if "lora" in n
    ]


def test_what_is_too_long_is_cut_or_dropped_and_counted(work):
    layout, tokenizer = PromptFormat.named("alpaca"), load_tokenizer(work / "base")
    whole = InstructionTask(options(work), HERE)
    longest = max(whole.train.lengths)
    cut = InstructionTask(options(work, max_length=longest - 3), HERE)
    dropped = InstructionTask(options(work, max_length=longest - 3, too_long="drop"), HERE)
    assert cut.train.cut > 0
    assert cut.train.cut + cut.train.dropped == dropped.train.dropped  # all that do not fit
    assert max(cut.train.lengths) == longest - 3
    for example, tokens in zip(cut.train.examples, cut.train.tokens, strict=True):
        alone = tokens_of(layout.encode(tokenizer, example.messages), 48)
        assert alone is not None
        assert tokens.inputs.tolist() == alone.inputs[: len(tokens)].tolist()  # the beginning stays
    assert not dropped.train.cut


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"data": "nowhere.json"}, "--data nowhere.json: no such file"),
        ({"max_length": 49}, "--max-length 49 is more than the model's context of 48"),
        ({"max_length": 5}, "leaves room for an answer in 5 tokens"),
        ({"model": "nowhere/at/all"}, "no model folder at nowhere/at/all"),
        ({"batch_size": 6, "micro_batch_size": 4}, "does not divide the 6"),
        ({"lora": True, "lora_targets": ("q_proj",)}, "no linear layer is called q_proj"),
        ({"validation_share": 0}, "--validation-share must be above 0"),
        ({"output_column": "answer"}, "row 1 has the columns instruction, input, output"),
        ({"eval_examples": 0}, "--eval-examples must be at least 1"),
        ({"system_prompt": "\ud800"}, "--system-prompt is not UTF-8"),
    ],
)
def test_mistakes_are_one_clear_line(work, tmp_path, more, words):
    with pytest.raises((UserError, ValueError)) as caught:
        main(options(work, run=tmp_path / "run", **more))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_mistake_ends_the_command_without_a_traceback(work, run):
    assert_one_clear_line(run(SCRIPT, *flags(work, "--data", "nowhere.json")), "--data nowhere.json: no such file")
    with pytest.raises(UserError, match=r"is a base model, .*train_instruct\.py"):
        ask(Ask(question=("Hi",), model=str(work / "base")))
    with pytest.raises(UserError, match="nothing is asked"):
        Ask()


def test_a_base_without_an_end_or_with_another_tokenizer_is_refused(work, tmp_path):
    bare = BytePairTokenizer.train(["abc"] * 5, 256, special_tokens=())
    config = GPTConfig(vocab_size=256, context_length=8, n_layer=1, n_head=1, d_model=8)
    GPT(config).save_pretrained(tmp_path / "bare", bare)
    with pytest.raises(UserError, match=r"its tokenizer has no <.endoftext.>"):
        InstructionTask(options(work, model=str(tmp_path / "bare")), HERE)
    load_tokenizer(work / "base").save(tmp_path / "bare" / "tokenizer.json")
    with pytest.raises(ValueError, match="they do not belong together"):
        InstructionTask(options(work, model=str(tmp_path / "bare")), HERE)


def test_a_run_goes_on_with_its_own_settings_and_data_alone(work, tmp_path):
    own = tmp_path / "own.json"
    own.write_text((work / "sums.json").read_text())
    once = options(work, data=str(own), run=tmp_path / "run", steps=2)
    main(once)
    assert find_checkpoints(tmp_path / "run" / "checkpoints")[0].step == 2
    with pytest.raises(UserError, match="holds a run already"):
        main(once)
    with pytest.raises(UserError, match="was trained with --format alpaca, not chat"):
        main(replace(once, resume="auto", format="chat"))
    own.write_text(own.read_text().replace("nine", "ten"))
    with pytest.raises(UserError, match="was begun with other examples or another tokenizer"):
        main(replace(once, resume="auto"))


def test_time_that_is_up_ends_the_run_whole(work, tmp_path):
    main(options(work, run=tmp_path / "run", steps=10**6, max_minutes=0.001, evaluate_every=10**9))
    steps = [row["step"] for row in measured(tmp_path / "run")]
    assert 1 <= steps[-1] < 1000
    assert find_checkpoints(tmp_path / "run" / "checkpoints")[0].step == steps[-1]
    assert load_model(tmp_path / "run" / "model").n_parameters > 0


def test_what_is_learned_by_heart_comes_back_right(work, tmp_path):
    """Loss mask, shift, layout, stopping and comparison at once: any one of them off, and no answer would be exact."""
    more: dict[str, Any] = {"optimizer": "muon", "learning_rate": 0.03, "evaluate_every": 10**9, "keep": "last"}
    few = options(work, run=tmp_path / "run", max_examples=6, ask=6, max_new_tokens=12, steps=100, **more)
    main(replace(few, batch_size=4))
    before, after = [row for row in measured(tmp_path / "run") if "exact_match_trained" in row]
    assert before["exact_match_trained"] == 0
    assert after["exact_match_trained"] == 1
    kept = json.loads((tmp_path / "run" / "questions.json").read_text())
    trained = [one for one in kept if one["side"] == "trained"]
    model, tokenizer = load_model(tmp_path / "run" / "model"), load_tokenizer(tmp_path / "run" / "model")
    said = answers(model, tokenizer, PromptFormat.named("alpaca"), [one["messages"] for one in trained], 12)
    assert said == [one["answer"] for one in trained]


def test_exactly_overlooks_white_space_alone():
    assert exactly(" a  b\n", "a b")
    assert not exactly("a b.", "a b")


@pytest.mark.parametrize(
    "kept",
    [[{"side": "trained"}], {}, [3], [{"side": 1, "messages": [], "answer": "a"}],
     [{"side": "trained", "messages": [{"role": "user"}], "answer": "a"}],
     [{"side": "trained", "messages": [{"role": "user", "content": "q"}], "answer": None}]],
)  # fmt: skip
def test_damaged_questions_of_a_run_are_one_clear_line(tmp_path, kept):
    (tmp_path / "questions.json").write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(UserError, match=r"questions\.json is damaged: ask a question of your own"):
        kept_questions(tmp_path / "model", 1)


def test_what_a_folder_says_of_its_making_may_be_damaged(tmp_path):
    (tmp_path / "scratchbook.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"scratchbook\.json is damaged"):
        learned_system_prompt(tmp_path)
