"""Which settings learn best? A search over the flags of `pretrain.py`, by Optuna; the same space as a W&B sweep.

python pretraining/sweep.py --data runs/demo/tokens --steps 300 --space learning_rate=log:0.003:0.1 warmup=0:0.1

A trial is a run of `pretrain.py` with some settings drawn: at first at random, later near those that did well (TPE,
Bergstra et al. 2011). One that is worse than the middle of the others at the same number of tokens is given up.

What is known of all trials lies in a SQLite file. The same command goes on where it stopped, and started several times
at once it makes several workers of one study. More --trials may be asked for; other settings are another study. A trial
that Ctrl-C stopped is begun again by the next worker; one whose worker was killed is tried once more, a minute after
its last sign of life.

The loss that decides is the validation loss, so the best of many is a little better than it deserves: score what you
report on text that the search has not seen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shlex
import signal
import sys
import time
import typing
import warnings
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pretraining.distributed import join_ranks
from pretraining.model_options import make_model
from pretraining.pretrain import PRESETS, Pretrain, Pretraining
from pretraining.run_options import alone_with
from utils.devices import pick_device
from utils.errors import EXIT_TERMINATED, UserError, one_line, run_command
from utils.files import require_writable, sha256_of, write_json
from utils.readme_tables import markdown_table
from utils.tracking import require_wandb_key
from working_with_text_data.token_shards import MANIFEST, TokenShards

if TYPE_CHECKING:
    import optuna

# What is no setting of the training, or would make losses that do not compare.
_SAME_FOR_ALL = {
    "run", "resume", "overwrite", "preset", "data", "tokenizer", "from_model", "keep_last", "keep_best",
    "eval_tokens", "all_at_end", "device", "tensorboard", "wandb", "wandb_project",
}  # fmt: skip
# What may change while a study is searched: where things lie, and what changes no loss.
_OF_A_WORKER = (_SAME_FOR_ALL | {"diagnose_every", "sample_prompt"}) - {"from_model", "eval_tokens", "all_at_end"}
_SIGN_OF_LIFE, _DEAD_AFTER = 10, 60  # seconds: from one to the next, and without one until a worker counts as killed


class Terminated(KeyboardInterrupt):
    """SIGTERM came. Optuna ends a trial in order at a KeyboardInterrupt, and this is one."""


@dataclass(frozen=True)
class Sweep(Pretrain):
    """The flags of this script: those of pretrain.py for what all trials share, and these."""

    space: tuple[str, ...] = ("learning_rate=log:0.001:0.1",)
    """What is searched: NAME=LOW:HIGH, NAME=log:LOW:HIGH, NAME=int:LOW:HIGH or NAME=A,B,C for flags of pretrain.py."""
    study: str = "sweep"
    """The study's name; its file and its runs are in runs/sweeps/STUDY."""
    trials: int = 20
    """Trials of the study altogether, those that were given up among them."""
    folder: Path = Path("runs/sweeps")
    """Where studies lie."""
    wandb_sweep: Path | None = None
    """Write the space as the configuration of a W&B sweep to this file, and search nothing here."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trials < 1:
            raise UserError(f"--trials must be at least 1, got {self.trials}")


@dataclass(frozen=True)
class Range:
    """One flag and what it may be: any number from low to high, or one of the choices."""

    name: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    choices: tuple[Any, ...] = ()

    def __str__(self) -> str:
        """As it is written after --space NAME=."""
        if self.choices:
            return ",".join(str(choice) for choice in self.choices)
        kinds = [word for word, is_one in (("int", self.integer), ("log", self.log)) if is_one]
        return ":".join((*kinds, str(self.low), str(self.high)))

    def draw(self, trial: optuna.Trial) -> Any:
        """What this trial takes."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if self.integer:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def for_wandb(self, default: Any) -> tuple[str, dict[str, Any]]:
        """The same in the words of a W&B sweep: a parameter's name, and what it may be.

        W&B leaves out a flag that is false, so a boolean is written as the flag that changes its default.
        """
        if isinstance(default, bool):
            name = f"no_{self.name}" if default else self.name
            return name, {"values": [choice != default for choice in self.choices]}
        if self.choices:
            return self.name, {"values": list(self.choices)}
        ends: dict[str, Any] = {"min": self.low, "max": self.high}
        if self.log and self.integer:
            return self.name, ends | {"distribution": "q_log_uniform_values", "q": 1}
        return self.name, ends | ({"distribution": "log_uniform_values"} if self.log else {})


def read_range(text: str) -> Range:
    """The range that one word after --space says.

    Raises:
        UserError: it is none, or its flag is not there, not to be searched, or takes no such values.
    """
    name, equals, what = text.partition("=")
    name = name.strip().lstrip("-").replace("-", "_")
    types = typing.get_type_hints(Pretrain)
    if not equals or not what or name not in types:
        raise UserError(f"--space {text}: write NAME=LOW:HIGH, NAME=log:LOW:HIGH or NAME=A,B,C, a flag of pretrain.py")
    if name in _SAME_FOR_ALL:
        raise UserError(f"--space {text}: --{name.replace('_', '-')} is the same for all trials: search another flag")
    kind = types[name]
    try:
        one = _range(name, kind, what) if ":" in what else _choices(name, kind, what)
        for value in one.choices or (one.low, one.high):
            Pretrain(**{name: value})
    except (UserError, ValueError) as error:
        raise UserError(f"--space {text}: {one_line(error)}") from None
    return one


def _range(name: str, kind: Any, what: str) -> Range:
    """The range LOW:HIGH, log:LOW:HIGH, int:LOW:HIGH or int:log:LOW:HIGH of a flag of this type."""
    number = next((t for t in (int, float) if t in (kind, *typing.get_args(kind))), None)
    if number is None:
        raise UserError(f"--{name.replace('_', '-')} takes no numbers: write NAME=A,B,C")
    *kinds, low, high = what.split(":")
    if unknown := [word for word in kinds if word not in ("log", "int")]:
        raise UserError(f"there is no kind of range {unknown[0]!r}: use log, int, both or none")
    integer, log = number is int or "int" in kinds, "log" in kinds
    try:
        ends = float(low), float(high)
    except ValueError:
        raise UserError(f"{low!r} and {high!r} must be numbers") from None
    if integer and not all(end.is_integer() for end in ends):
        raise UserError(f"{low} and {high} must be whole numbers")
    if not -math.inf < ends[0] < ends[1] < math.inf or (log and ends[0] <= 0):
        raise UserError("the lower end comes first, and above 0 where it is log")
    first, last = (int(ends[0]), int(ends[1])) if integer else ends
    return Range(name, first, last, log=log, integer=integer)


def _choices(name: str, kind: Any, what: str) -> Range:
    """The choices A,B,C of a flag of this type."""
    allowed = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    types = typing.get_args(kind) if not allowed and typing.get_args(kind) else (kind,)

    def read(word: str) -> Any:
        if allowed and word in allowed:
            return word
        if bool in types and word.lower() in ("true", "false"):
            return word.lower() == "true"
        if type(None) in types and word.lower() == "none":
            return None
        for number in (int, float):
            if number in types:
                with contextlib.suppress(ValueError):
                    return number(word)
        if str in types:
            return word
        words = f": use {', '.join(allowed)}" if allowed else ""
        raise UserError(f"{word!r} is not what --{name.replace('_', '-')} takes{words}")

    return Range(name, choices=tuple(dict.fromkeys(read(word.strip()) for word in what.split(","))))


def options_of(sweep: Sweep, drawn: dict[str, Any], number: int) -> Pretrain:
    """The flags of one trial.

    Raises:
        UserError: they do not go together.
    """
    run = sweep.folder / sweep.study / f"trial-{number:04d}"
    return _shared(sweep, **drawn, run=run, resume="no", overwrite=True, keep_last=1, keep_best=0)


def _shared(sweep: Sweep, **changes: Any) -> Pretrain:
    """The flags that all trials share, with some changes."""
    return Pretrain(**{field.name: getattr(sweep, field.name) for field in dataclasses.fields(Pretrain)} | changes)


def _defaults(options: Pretrain) -> Pretrain:
    """What the flags are that a command line with this preset does not name."""
    return Pretrain() if options.preset is None else PRESETS[options.preset]


def words_of(options: Pretrain) -> list[str]:
    """The words after `pretrain.py` that say these flags."""
    defaults = _defaults(options)
    words = [] if options.preset is None else ["--preset", options.preset]
    for field in dataclasses.fields(Pretrain):
        value, flag = getattr(options, field.name), field.name.replace("_", "-")
        if value == getattr(defaults, field.name):
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return words


def run_trial(sweep: Sweep, ranges: list[Range], trial: optuna.Trial) -> float:
    """Trains with what the trial draws, and gives the last validation loss; gives up where others were better."""
    import optuna

    trial.study.sampler = sampler_of(sweep.seed, trial.number)
    drawn = {one.name: one.draw(trial) for one in ranges}
    last = math.inf

    def report(tokens: int, loss: float) -> None:
        nonlocal last
        last = loss
        if not tokens:  # before its first step, a trial has shown nothing of its settings
            return
        trial.report(loss, tokens)
        if trial.should_prune():
            raise optuna.TrialPruned()

    print(f"\nTrial {trial.number}: {', '.join(f'{name} {value}' for name, value in drawn.items())}", flush=True)
    try:
        options = options_of(sweep, drawn, trial.number)
        with join_ranks(sweep.device) as ranks, alone_with(options, ranks):
            ending = Pretraining(options, ranks, report).train()
        if ending != "finished":
            raise Terminated if ending == "terminated" else KeyboardInterrupt
    except KeyboardInterrupt:
        try_again(trial.study, trial.study.get_trials()[trial.number], times=None)
        raise
    except (UserError, ValueError) as error:
        print(f"Trial {trial.number} failed: {one_line(error)}")
        raise
    return last


def sampler_of(seed: int, number: int) -> optuna.samplers.TPESampler:
    """Draws one trial. With a seed of its own, no trial repeats another's draws, whichever worker draws it and when."""
    import optuna

    drawn = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    return optuna.samplers.TPESampler(seed=drawn, constant_liar=True)


def try_again(study: optuna.Study, trial: optuna.trial.FrozenTrial, times: int | None = 1) -> None:
    """Puts a trial that did not come to its end in the queue once more, if that was not done so many times before."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=times)(study, trial)


def open_what_all_share(sweep: Sweep) -> TokenShards:
    """The shards that all trials learn from; looks at the device, the first weights and W&B's key besides.

    What is wrong with them would fail one trial after the other.

    Raises:
        UserError, ValueError: no trial could begin.
    """
    shards = TokenShards.open(sweep.data, sweep.tokenizer)
    pick_device(sweep.device)
    if sweep.from_model is not None:
        make_model(Pretrain(from_model=sweep.from_model, context_length=1), shards)
    if sweep.wandb != "off":
        require_wandb_key(sweep.wandb)
    return shards


def keep_to_its_search(study: optuna.Study, sweep: Sweep, ranges: list[Range], shards: TokenShards) -> None:
    """Notes in the study what it searches and with which settings, or makes sure that this is the same.

    Raises:
        UserError: it is not: losses would be compared that do not compare, and the best settings would be of neither.
    """
    named = {field.name: field.default for field in dataclasses.fields(Pretrain) if field.name not in _OF_A_WORKER}
    searched = {one.name: str(one) for one in ranges}
    now = {name: str(getattr(sweep, name)) for name in named} | searched
    now["tokens"] = sha256_of(shards.folder / MANIFEST)
    before = study.user_attrs.get("search")
    if before is None:
        study.set_user_attr("search", now)
        return
    for name, value in now.items():
        was = before.get(name, str(named.get(name)))  # a flag that did not exist yet when the study began
        if was == value:
            continue
        what = "on other tokens" if name == "tokens" else f"with {name}={was}, not {value}"
        raise UserError(f"the study {sweep.study} was begun {what}: go on as it began, or choose another --study")


def open_study(sweep: Sweep) -> optuna.Study:
    """The study of that name, as far as it is.

    Raises:
        UserError: there are trials that it does not know, and would replace.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # its warnings are tracebacks of failed trials
    folder = require_writable(sweep.folder / sweep.study)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "study.db").exists() and any(folder.glob("trial-*")):
        raise UserError(f"{folder} holds trials, but no study.db knows them: bring it back, or choose another --study")
    return optuna.create_study(
        storage=_open_storage(folder / "study.db"),
        study_name=sweep.study,
        load_if_exists=True,
        sampler=sampler_of(sweep.seed, 0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
    )


def _open_storage(path: Path) -> optuna.storages.RDBStorage:
    """The study's file. Workers that start at once all find it lacking, and one alone can make each of its tables."""
    import optuna
    from sqlalchemy.engine import URL
    from sqlalchemy.exc import DatabaseError

    url = URL.create("sqlite", database=str(path.resolve()))  # which quotes: a path may hold ?, % and #
    attempts = 0
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # signs of life are
                return optuna.storages.RDBStorage(
                    url.render_as_string(),
                    engine_kwargs={"connect_args": {"timeout": 60}},
                    heartbeat_interval=_SIGN_OF_LIFE,
                    grace_period=_DEAD_AFTER,
                    heartbeat_stale_trial_callback=try_again,
                )
        except DatabaseError as error:
            attempts += 1
            if attempts == 10:
                raise UserError(f"{path} cannot be opened ({error.orig}): choose another --study") from None
            time.sleep(0.2)


def begun(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that count: those that ended or failed, and those under way. What is tried again counts once."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)  # and put them in the queue
    trials = study.get_trials(deepcopy=False)
    again = {number for trial in trials for number in trial.system_attrs.get("retry_history", [])}
    long_ago = datetime.now() - timedelta(seconds=_DEAD_AFTER)
    return [
        trial
        for trial in trials
        if trial.number not in again
        and trial.datetime_start is not None  # None is one in the queue
        # A worker that was killed before it drew anything gave no sign of life that could be missing.
        and (trial.state.is_finished() or trial.params or trial.datetime_start > long_ago)
    ]


def search(sweep: Sweep, ranges: list[Range], study: optuna.Study) -> None:
    """Works on the study's trials until all are done, by this worker and the others."""
    waits_for: list[int] = []
    while True:
        trials = begun(study)
        under_way = [trial.number for trial in trials if not trial.state.is_finished()]
        if len(trials) < sweep.trials:
            # What diverges, or is a shape that cannot be, is a failed trial, and the search goes on.
            study.optimize(lambda trial: run_trial(sweep, ranges, trial), n_trials=1, catch=(UserError, ValueError))
        elif under_way:
            if under_way != waits_for:
                print(f"Waiting for trials {under_way} of other workers; what was killed begins again in a minute")
            waits_for = under_way
            time.sleep(1)
        else:
            return


def wandb_configuration(sweep: Sweep, ranges: list[Range]) -> dict[str, Any]:
    """For `wandb sweep FILE`: the same search, its trials shared out by W&B to every `wandb agent`.

    The agent tells a run its id in the environment, from where a shell takes it to give each run a folder of its own.
    """
    defaults = _defaults(sweep)
    searched = {one.name: getattr(defaults, one.name) for one in ranges}
    wandb = "online" if sweep.wandb == "off" else sweep.wandb
    # The folder is in the shell's words below, and what is searched comes from W&B.
    fixed = _shared(sweep, **searched, run=defaults.run, resume="no", overwrite=True, wandb=wandb)
    runs = shlex.quote(str(sweep.folder / sweep.study))
    shell = f'exec python pretraining/pretrain.py --run {runs}/"$WANDB_RUN_ID" "$@"'
    return {
        "program": "pretraining/pretrain.py",
        "method": "bayes",
        "metric": {"name": "validation_loss", "goal": "minimize"},
        "early_terminate": {"type": "hyperband", "min_iter": 3},
        "parameters": dict(one.for_wandb(searched[one.name]) for one in ranges),
        "command": ["${env}", "sh", "-c", shell, "sh", *words_of(fixed), "${args_no_boolean_flags}"],
    }


def _terminate(number: int, frame: object) -> None:
    raise Terminated


def main(sweep: Sweep) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "a trial is one process: start sweep.py without torchrun, and again with the same --study for each worker"
        )
    ranges = [read_range(text) for text in sweep.space]
    if len({one.name for one in ranges}) < len(ranges):
        raise UserError("--space names a flag twice: give each one range")
    if sweep.wandb_sweep is not None:
        write_json(sweep.wandb_sweep, wandb_configuration(sweep, ranges))  # JSON is YAML, too
        print(f"Wrote {sweep.wandb_sweep}\nNext: wandb sweep {shlex.quote(str(sweep.wandb_sweep))}")
        return
    from optuna.trial import TrialState

    options_of(sweep, {}, 0)
    shards = open_what_all_share(sweep)
    study = open_study(sweep)
    keep_to_its_search(study, sweep, ranges, shards)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        search(sweep, ranges, study)
    except KeyboardInterrupt as stop:
        print("Stopped: the same command goes on, and begins this trial again")
        if isinstance(stop, Terminated):
            sys.exit(EXIT_TERMINATED)
        raise
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not done:
        raise UserError("no trial came to its end: look at the messages above, and choose another --space")
    best = sorted(done, key=lambda trial: trial.value if trial.value is not None else math.inf)
    names = [one.name for one in ranges]
    rows = [[str(t.number), *(f"{t.params.get(n)}"[:9] for n in names), f"{t.value:.4f}"] for t in best[:10]]
    print("\n" + markdown_table(["trial", *names, "validation loss"], rows))
    given_up = len(study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)))
    print(f"\n{len(done)} trials came to their end, {given_up} were given up")
    folder = sweep.folder / sweep.study
    results = [{"number": t.number, "state": t.state.name, "value": t.value, **t.params} for t in study.get_trials()]
    write_json(folder / "trials.json", results)
    print(f"Wrote {folder}: study.db, trials.json, a run folder a trial")
    winner = _shared(sweep, **best[0].params, run=folder / "best", resume="no", overwrite=False)
    print(f"Next: python pretraining/pretrain.py {shlex.join(words_of(winner))}")


if __name__ == "__main__":
    run_command(main, Sweep, {name: Sweep(**dataclasses.asdict(preset)) for name, preset in PRESETS.items()})
