"""Which folders a run may write to, and what it goes on from."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from pretraining.distributed import Ranks
from pretraining.run_folder import alone_in_run, room_for_a_run
from pretraining.run_options import RunOptions, go_on, refuse_another_run, require_same_data, trackers_of
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


OLDER = {
    "config.json": "{}",
    "metrics.jsonl": "of the older run",
    "checkpoints/step-00000002/state.pt": "weights",
    "tensorboard/events": "figures",
    "wandb_id.txt": "abc",
    "speed.json": "{}",
    "samples.txt": "It was",
    "reference.safetensors": "of the older model",
}
KEPT = {"model/config.json": "{}", "notes.txt": "by hand"}


@pytest.fixture
def older(tmp_path):
    """The folder of a run, with what a person wrote into it."""
    for name, text in (OLDER | KEPT).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_an_older_run_is_gone_once_nothing_can_be_refused_any_more(older):
    with room_for_a_run(older):
        (older / "config.json").write_text("new")
    assert contents(older) == KEPT | {"config.json": "new"}
    assert {path.name for path in older.iterdir()} == {"model", "notes.txt", "config.json"}


@pytest.mark.parametrize("ending", [UserError, KeyboardInterrupt])
def test_an_older_run_is_back_where_a_new_one_is_refused(older, ending):
    with pytest.raises(ending), room_for_a_run(older):
        (older / "config.json").write_text("new")
        (older / "loss.png").write_text("new")
        (older / "tensorboard").mkdir()
        raise ending
    assert contents(older) == OLDER | KEPT
    assert not (older / ".older").exists()


def test_what_a_kill_left_aside_is_back_for_the_next_run(older):
    killed = [room_for_a_run(older), room_for_a_run(older)]  # kept: to be forgotten would end them in order
    killed[0].__enter__()
    (older / "metrics.jsonl").write_text("")
    with alone_in_run(older):
        assert contents(older) == OLDER | KEPT
    killed[1].__enter__()
    with pytest.raises(UserError), room_for_a_run(older):  # who asks for no lock finds it in order, too
        raise UserError("no")
    assert contents(older) == OLDER | KEPT
    (older / ".older.gone").mkdir()  # killed once the older run was to go
    with alone_in_run(older):
        assert contents(older) == OLDER | KEPT
        assert not (older / ".older.gone").exists()


def test_a_link_to_the_checkpoints_stays(older, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("large") / "checkpoints"
    (older / "checkpoints").rename(elsewhere)
    (older / "checkpoints").symlink_to(elsewhere)
    with room_for_a_run(older):
        assert (older / "checkpoints").is_symlink()
    assert (elsewhere / "step-00000002" / "state.pt").is_file()


def test_a_folder_is_not_made_for_what_is_refused(tmp_path):
    with pytest.raises(UserError), alone_in_run(tmp_path / "new"):
        raise UserError("no")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="another process"), alone_in_run(tmp_path), alone_in_run(tmp_path):
        pass


@pytest.mark.parametrize("resume", ["no", "auto"])
@pytest.mark.parametrize("name", ["tensorboard/mine.txt", "speed.json", "samples.txt", "wandb_id.txt"])
def test_what_looks_like_part_of_a_run_is_not_replaced_unasked(tmp_path, name, resume):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match="holds a run already"):
        refuse_another_run(RunOptions(tmp_path, resume=resume))
    refuse_another_run(RunOptions(tmp_path, resume=resume, overwrite=True))


def test_a_model_folder_that_cannot_be_replaced_is_seen_at_once(older):
    (older / "model" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes.txt', which is not ours, so it is not replaced"):
        refuse_another_run(RunOptions(older, overwrite=True))
