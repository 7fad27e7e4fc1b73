"""Which folders a run may write to, and what it goes on from."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from pretraining.distributed import Ranks
from pretraining.run_options import RunOptions, go_on, make_room, refuse_another_run, require_same_data, trackers_of
from pretraining.training_loop import TrainingLoop
from utils.checkpoints import begin_checkpoint, write_checkpoint
from utils.errors import UserError
from utils.files import write_json

HERE = Ranks(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class WithSeed(RunOptions):
    seed: int = 0


@pytest.fixture
def options(tmp_path):
    """Of a run whose folder is as a kill during the very first checkpoint leaves it."""
    options = RunOptions(tmp_path / "run", resume="auto")
    begin_checkpoint(options.run / "checkpoints", 0)
    (options.run / "metrics.jsonl").write_text("")
    write_json(options.run / "config.json", {"options": asdict(options)})
    return options


def test_what_was_killed_before_its_first_checkpoint_begins_anew(options):
    refuse_another_run(options)
    (options.run / "config.json").unlink()  # killed a little earlier still
    refuse_another_run(options)


@pytest.mark.parametrize("of_a_run", ["metrics.jsonl", "model", "checkpoints/diverged-step-00000002"])
def test_what_has_learned_something_does_not_begin_anew_unasked(options, of_a_run):
    path = options.run / of_a_run
    if path.suffix:
        path.write_text('{"step": 1, "loss": 2.0}\n')
    else:
        path.mkdir()
    with pytest.raises(UserError, match="no checkpoints to go on from"):
        refuse_another_run(options)
    refuse_another_run(replace(options, overwrite=True))


def test_nor_does_what_was_begun_with_other_settings_or_without_resume(options):
    write_json(options.run / "config.json", {"options": asdict(options) | {"seed": 1}})
    with pytest.raises(UserError, match="--seed 1, not 0"):
        refuse_another_run(WithSeed(**asdict(options)))
    with pytest.raises(UserError, match="--resume auto"):
        refuse_another_run(replace(options, resume="no"))


@pytest.mark.parametrize("config", [None, "{", "{}"])
def test_overwrite_helps_where_config_json_is_missing_or_damaged(options, config):
    """As its own error says: then nothing is gone on from, not even with --resume auto."""
    write_checkpoint(options.run / "checkpoints", 2, lambda folder: None)
    path = options.run / "config.json"
    path.unlink() if config is None else path.write_text(config)
    for check in (refuse_another_run, lambda o: require_same_data(o, "digest")):
        with pytest.raises((UserError, ValueError), match=r"config.json is (missing|damaged|not a readable)"):
            check(options)
        check(replace(options, overwrite=True))
    resumed: list[bool] = []
    loop = SimpleNamespace(ranks=HERE, folder=options.run / "checkpoints", resume=lambda: resumed.append(True))
    assert not go_on(replace(options, overwrite=True), cast(TrainingLoop, loop))
    assert not resumed


def test_what_begins_anew_is_another_run_for_the_trackers_too(options, monkeypatch):
    """And what goes on is the same one there."""
    begun: list[str] = []

    def init(**arguments):
        begun.append(arguments["id"])
        return SimpleNamespace(log=lambda figures: None, define_metric=lambda *_, **__: None)

    wandb = SimpleNamespace(api=SimpleNamespace(api_key=""), init=init, Settings=lambda **_: None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    told = replace(options, wandb="offline")
    for goes_on in (False, True, False):
        trackers_of(told, 0, goes_on)
    assert begun[0] == begun[1] != begun[2]


def test_room_is_made_only_for_what_begins_anew_and_cannot_be_refused_any_more(options, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(api=SimpleNamespace(api_key="")))
    left = ("tensorboard/events", "checkpoints/step-00000002/state.pt", "wandb_id.txt", "speed.json")
    for name in left:
        (options.run / name).parent.mkdir(parents=True, exist_ok=True)
        (options.run / name).touch()
    with pytest.raises(UserError, match="set WANDB_API_KEY"):
        make_room(replace(options, wandb="online"), False)
    make_room(options, True)
    assert all((options.run / name).is_file() for name in left)
    make_room(options, False)
    assert not any((options.run / name).exists() for name in left)
    assert not (options.run / "checkpoints").exists()
