"""Teaches a model that follows instructions which of two answers is the better one, by DPO (dpo.py).

python finetuning/instruction/train_dpo.py --model runs/instruct/model --run runs/dpo

The pairs are made by rule from Python's documentation if --data names no others (preferences.py). The reference is the
model as it was before the first step. It never changes, and so its log-probabilities are computed once and kept in
RUN/reference.safetensors; a second model in memory is not needed. A run that goes on reads them from there, and refuses
another model or other pairs under the same names.

    RUN/model/        the policy, with the chat template and the system prompt of the model that it began as
    RUN/adapter/      with --lora: the adapters alone
    RUN/rewards.png   the reward margin, and the rewards of chosen and rejected answers
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from finetuning.instruction.answering import learned_system_prompt, with_system
from finetuning.instruction.dpo import (
    EncodedPair,
    Floats,
    LossName,
    Preference,
    PreferenceLoss,
    answer_lengths,
    encode_pair,
    pack,
    pair_logprobs,
    reward_figures,
)
from finetuning.instruction.preferences import KINDS, Pair, PreferenceOptions
from finetuning.instruction.prompt_format import FormatName, PromptFormat
from finetuning.lora import add_lora, merged_weights, save_adapter
from finetuning.tuning import (
    Arrays,
    ExampleBatches,
    Plot,
    Tuning,
    TuningOptions,
    blocks_of,
    exit_unless_finished,
    quoted,
)
from gpt_model import GPT
from gpt_model.generate import generate_tokens
from gpt_model.pretrained import find_folder, load_model, load_tokenizer, origin, save_model
from gpt_model.sampling import Sampling
from pretraining.distributed import Ranks, join_ranks, say_to_all
from pretraining.run_options import alone_with, refuse_another_run
from pretraining.training_loop import Objective, TrainingLoop
from utils.errors import UserError, run_command
from utils.files import write_bytes
from working_with_text_data.bytepair_enc import BytePairTokenizer
from working_with_text_data.token_shards import IGNORE

REFERENCE = "reference.safetensors"
REWARDS = Plot(
    "rewards.png",
    "reward (β · nats)",
    {
        "margin, training batches": "batch_reward_margin",
        "margin, validation": "reward_margin",
        "chosen, validation": "chosen_reward",
        "rejected, validation": "rejected_reward",
    },
)
_SHOWN, _SHOWN_TOKENS = 3, 60  # validation questions in samples.txt, and the tokens of an answer


@dataclass(frozen=True)
class TrainDPO(PreferenceOptions, TuningOptions):
    """The flags of this script."""

    model: str = "runs/instruct/model"
    """What to begin from, and to stay near: a model folder, or a name on the hub."""
    run: Path = Path("runs/dpo")
    """The folder for everything that the run writes."""
    beta: float = 0.1
    """How dear it is to leave the reference: less lets the model go further from it."""
    label_smoothing: float = 0.0
    """The share of comparisons that are thought to be the wrong way round (cDPO)."""
    loss: LossName = "dpo"
    """dpo; dpo-norm: by the answers' lengths; ipo: a margin to reach and not to pass."""
    format: FormatName | None = None
    """The layout of messages, alpaca or chat, for a model that has none of its own."""
    epochs: float = 1.0
    """How often each pair is learned from."""
    learning_rate: float = 1e-4
    """Full learning rate of the blocks' matrices; for models of 100 million parameters and more, 1e-5 and less."""
    weight_decay: float = 0.0
    """Weight decay of the blocks' matrices."""
    warmup: float = 0.1
    """Share of the steps in which the rate climbs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()
        try:
            self.objective()
        except ValueError as error:
            raise UserError(f"--loss {self.loss}: {error}") from None

    def objective(self) -> PreferenceLoss:
        """What the flags say of the loss."""
        return PreferenceLoss(self.beta, self.label_smoothing, self.loss)


class PreferenceTask:
    """DPO as a task of `Tuning`.

    Raises:
        UserError, ValueError: model, data or flags do not fit; one line that says what to do.
    """

    def __init__(self, options: TrainDPO, ranks: Ranks) -> None:
        self.options, self.ranks = options, ranks
        self.layout = layout_of(options.model, options.format)
        self.tokenizer = load_tokenizer(options.model)
        self.policy = load_model(options.model, ranks.device, torch.float32)
        self.system_prompt = learned_system_prompt(find_folder(options.model))
        training, validation, report = options.read()
        training, validation = self._with_system(training), self._with_system(validation)
        context = self.policy.config.context_length
        self.training = encode_pairs(self.layout, self.tokenizer, training, context, report, "training")
        self.validation = encode_pairs(self.layout, self.tokenizer, validation, context, report, "validation")
        self.shown = validation[:_SHOWN]
        self.examples = ExampleBatches([pair.length for pair in self.training], options.batch_size, options.seed)
        self.data = {"pairs": report, "base": origin(options.model)}
        self.reference = self._reference()
        without_dropout(self.policy)
        if options.lora:
            torch.manual_seed(options.seed)
            add_lora(self.policy, options.adapters())
        self.loss = options.objective()
        self.objective: Objective = Preference(self.policy.train(), self.loss, options.chunk_tokens)
        self.model: nn.Module = self.policy
        self.blocks = blocks_of(self.policy)

    def batch(self, step: int, rank: int, ranks: int) -> Arrays:
        """A rank's slice: ids, numbers of pairs, which ids are the answers', the reference's log-probabilities."""
        numbers = self.examples(step).reshape(ranks, -1)[rank]  # (pairs of this rank,)
        real = numbers >= 0
        pairs = [self.training[i] for i in numbers[real]]
        width = max((self.training[i].length for i in self.examples(step) if i >= 0), default=2)
        ids, answer = np.zeros((len(numbers), 2, width), np.int64), np.zeros((len(numbers), 2, width), bool)
        reference = np.zeros((len(numbers), 2), np.float32)
        if pairs:
            ids[real], answer[real] = pack(pairs, width)
            reference[real] = self.reference["training"][numbers[real]]
        return ids, np.where(real, numbers, IGNORE), answer, reference

    def evaluate(self, loop: TrainingLoop, last: bool) -> dict[str, float]:
        """Loss and rewards on the validation pairs."""
        policy = torch.from_numpy(self._logprobs(self.validation))  # (pairs, 2)
        lengths, loss = answer_lengths(self.validation), self.loss
        rewards = loss.rewards(policy, torch.from_numpy(self.reference["validation"]), lengths)  # (pairs, 2)
        figures = {"validation_loss": loss(rewards.double()).mean().item(), **reward_figures(rewards)}
        likely = policy / lengths  # log-probability of a token, on average
        figures["chosen_likelier"] = (likely[:, 0] > likely[:, 1]).double().mean().item()
        for kind in KINDS:
            of_kind = torch.tensor([pair.kind == kind for pair in self.validation])
            if of_kind.any():
                figures[f"accuracy_{kind}"] = reward_figures(rewards[of_kind])["accuracy"]
        return figures

    def save(self, folder: Path, made_by: dict[str, Any]) -> None:
        """The model folder, and beside it the adapters alone."""
        plain = self.policy
        if self.options.lora:
            plain = type(self.policy)(self.policy.config)
            plain.load_state_dict(merged_weights(self.policy))
            save_adapter(self.policy, folder.parent / "adapter", self.options.adapters(), self.options.model)
        options = made_by["options"] | {"system_prompt": self.system_prompt}  # as if it had been given here
        made_by = made_by | {"options": options}
        save_model(plain, folder, self.tokenizer, made_by, beside=self.layout.beside())

    def sample(self) -> str:
        """Some validation questions: the two answers, and the one that the model writes."""
        prompts = [self.layout.encode(self.tokenizer, pair.messages, ask=True).ids for pair in self.shown]
        said: list[list[int]] = [[] for _ in prompts]
        end = {self.tokenizer.eot_token}
        for token in generate_tokens(self.policy, prompts, _SHOWN_TOKENS, Sampling(temperature=0), end):
            said[token.row].append(token.id)
        lines = []
        for pair, ids in zip(self.shown, said, strict=True):
            lines += [pair.question, f"  chosen    {pair.chosen}", f"  rejected  {pair.rejected}"]
            lines += [f"  written   {self.tokenizer.decode(ids).strip()}"]
        return "\n".join(lines)

    def _with_system(self, pairs: Sequence[Pair]) -> list[Pair]:
        return [replace(pair, messages=with_system(pair.messages, self.system_prompt)) for pair in pairs]

    def _logprobs(self, pairs: Sequence[EncodedPair]) -> Floats:
        o = self.options
        return pair_logprobs(self.policy, pairs, o.batch_size, self.ranks, o.chunk_tokens, o.precision)

    def _reference(self) -> dict[str, Floats]:
        """The log-probabilities of the model as it is now, or as it was when this run began."""
        path, sides = self.options.run / REFERENCE, {"training": self.training, "validation": self.validation}
        key = fingerprint(self.policy, [*self.training, *self.validation]) if self.ranks.is_first else ""
        self.data["fingerprint"] = key = say_to_all(self.ranks, key)
        kept: dict[str, Floats] | None = None
        if self.options.resume == "auto" and self.ranks.is_first:
            kept = read_reference(path, key)
        kept = say_to_all(self.ranks, kept)
        return kept or {side: self._logprobs(pairs) for side, pairs in sides.items()}

    def keep_reference(self) -> None:
        """Writes the reference's log-probabilities, so that a later process goes on against the same."""
        tensors = {side: torch.from_numpy(values) for side, values in self.reference.items()}
        kept = safetensors.torch.save(tensors, {"key": str(self.data["fingerprint"])})
        write_bytes(self.options.run / REFERENCE, kept)


def layout_of(model: str, named: FormatName | None = None) -> PromptFormat:
    """How a model wants its messages: as its folder says, or as `named` for one that knows none.

    Raises:
        UserError: neither says anything, or both do.
    """
    own = PromptFormat.of(find_folder(model))
    if own is None and named is None:
        raise UserError(
            f"{model} has no chat template: it has learned no instructions. Begin from one that has, or say how "
            "messages are to look with --format alpaca or --format chat"
        )
    if own is not None and named is not None and own != PromptFormat.named(named):
        raise UserError(f"{model} has a chat template of its own, which is not {named}: leave out --format")
    return own or PromptFormat.named(named or "alpaca")


def encode_pairs(
    layout: PromptFormat,
    tokenizer: BytePairTokenizer,
    pairs: Sequence[Pair],
    context_length: int,
    report: dict[str, Any],
    side: str,
) -> list[EncodedPair]:
    """`encode_pair` of each, without those whose answers are equal as far as they fit; `report` gets the counts.

    Raises:
        UserError: none is left.
    """
    encoded = [encode_pair(layout, tokenizer, pair, context_length) for pair in pairs]
    differ = [pair for pair in encoded if pair.chosen != pair.rejected]
    cut = Counter(part for pair in differ for part in pair.shortened)
    report[f"{side} pairs"] = len(differ)
    report["left_out"][f"{side} answers equal as far as they fit"] = len(encoded) - len(differ)
    report[f"{side} prompts shortened"], report[f"{side} answers shortened"] = cut["prompt"], cut["answer"]
    if not differ:
        raise UserError(f"no {side} pair differs within the context of {context_length} tokens: take a longer context")
    return differ


def without_dropout(model: GPT) -> None:
    """Both models of a comparison must be the same at the start, and dropout would make the policy another one."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):  # a number, which attention hands to its kernel
            setattr(module, "attention_dropout", 0.0)  # noqa: B010 - mypy takes a module's attributes for tensors


def fingerprint(model: GPT, pairs: Sequence[EncodedPair]) -> str:
    """What the reference's log-probabilities depend on: weights and ids, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    for pair in pairs:
        digest.update(repr((pair.prompt, pair.chosen, pair.rejected)).encode())
    return digest.hexdigest()


def read_reference(path: Path, key: str) -> dict[str, Floats] | None:
    """What a run kept of its reference; None where there is nothing whole.

    Raises:
        UserError: it is of another model or of other pairs.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            there = (file.metadata() or {}).get("key")
            kept = {side: file.get_tensor(side).numpy() for side in ("training", "validation")}
    except SafetensorError:
        return None
    if there != key:
        raise UserError(
            f"{path.parent} began with another model or other pairs than those that now have these names: bring them "
            "back, or begin anew with another --run or with --overwrite"
        )
    return kept


def main(options: TrainDPO) -> None:
    with join_ranks(options.device) as ranks, alone_with(options, ranks):
        refuse_another_run(options)  # before the minutes that reading and asking the reference may take
        task = PreferenceTask(options, ranks)
        if ranks.is_first:
            _say_what_was_read(task)
        ending = Tuning(options, ranks, task, [REWARDS], task.keep_reference).train()
    if ending == "finished" and ranks.is_first:
        models = f"{quoted(options.model)} {quoted(options.run / 'model')}"
        print(f"Next: python finetuning/instruction/evaluate.py --models {models}")
    exit_unless_finished(ending)


def _say_what_was_read(task: PreferenceTask) -> None:
    report = task.data["pairs"]
    print(f"{len(task.training):,} pairs to learn from, {len(task.validation):,} to measure on: {report['data']}")
    for what, counts in (("Left out", report["left_out"]), ("Too long for the context", report)):
        told = [f"{n:,} {name}" for name, n in counts.items() if n and (counts is not report or "shortened" in name)]
        if told:
            print(f"{what}: {', '.join(told)}")


if __name__ == "__main__":
    run_command(main, TrainDPO)
