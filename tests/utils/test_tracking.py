"""What a run leaves behind can be read again, also after a kill."""

from __future__ import annotations

import math
import re
import sys
from types import SimpleNamespace

import pytest

from utils.errors import UserError
from utils.plots import save_curves
from utils.tracking import (
    Figures,
    MetricsLog,
    metric_curves,
    provenance,
    read_metrics,
    tensorboard_tracker,
    wandb_tracker,
)


def test_metrics_come_back_and_a_torn_last_line_does_not(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    log = MetricsLog(path)
    log.log(step=1, loss=2.5)
    log.log(step=2, loss=2.25)
    assert read_metrics(path) == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.25}]
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "lo')
    assert len(read_metrics(path)) == 2


def test_a_damaged_line_hides_nothing_behind_it(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    for damage in ('{"step": 2, "lo', "5", "[]", '{"loss": 2.0}', '{"step": "2"}', '{"step": 2, "loss": [1]}', "\0\0"):
        path.write_text(f'{{"step": 1, "loss": 3.0}}\n{damage}\n{{"step": 3, "loss": 1.0}}\n{{"st')
        assert [row["step"] for row in read_metrics(path)] == [1, 3]
        assert capsys.readouterr().err == f"warning: line 2 of {path} is damaged, and left out\n"
        assert metric_curves(path, training="loss") == {"training": ([1, 3], [3.0, 1.0])}
        assert capsys.readouterr().err
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n{"step": 3}\n')
    assert [row["step"] for row in read_metrics(path)] == [1, 3]
    assert "line 2" in capsys.readouterr().err
    path.write_text('{"step": 1}\n\n{"step": 3}\n{"step": 4')
    assert [row["step"] for row in read_metrics(path)] == [1, 3]
    assert not capsys.readouterr().err


def test_what_json_has_no_number_for_is_left_out(tmp_path):
    told: list[object] = []
    log = MetricsLog(tmp_path / "metrics.jsonl", trackers=[told.append])
    log.log(step=1, loss=2.5, gradient_norm=math.inf, ratio=math.nan, kept=-math.inf)
    assert log.path.read_text() == '{"step": 1, "loss": 2.5}\n'
    assert told == [{"step": 1, "loss": 2.5}]


def test_provenance_names_versions_and_commit(tmp_path):
    made_by = provenance(seed=3)
    assert made_by["seed"] == 3
    assert set(made_by["versions"]) >= {"python", "torch"}
    assert made_by["commit"] is None or re.fullmatch(r"[0-9a-f]{40}\+?", made_by["commit"])


def test_dollars_in_names_are_no_formulas(tmp_path):
    name = r"R/$\foo$"
    save_curves(tmp_path / "one.png", {name: ([0, 1], [2.0, 1.0])}, name, name, name, name, name)
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_is_a_png_of_its_curves(tmp_path):
    save_curves(tmp_path / "one.png", {"loss": ([0, 1], [2.0, 1.0])}, "t", "step", "nats")
    save_curves(tmp_path / "two.png", {"loss": ([0, 1], [1.0, 2.0])}, "t", "step", "nats")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()


def test_what_a_run_tells_after_going_back_reaches_wandb(tmp_path, monkeypatch):
    """W&B drops what is told of a step below the last one that it counted."""
    kept: list[object] = []

    def log(figures, step=None):
        if step is None or step >= len(kept):
            kept.append(figures)

    run = SimpleNamespace(log=log, define_metric=lambda *_, **__: None)
    wandb = SimpleNamespace(api=None, init=lambda **_: run, Settings=lambda **_: None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    track = wandb_tracker(tmp_path, "offline", "project", "name", {}, goes_on=False)
    told: list[Figures] = [{"step": step, "loss": loss} for step, loss in ((0, 3.0), (1, 9.0), (0, 3.5), (1, 2.0))]
    for figures in told:
        track(figures)
    assert kept == told


def test_what_trackers_refuse_is_one_line(tmp_path, monkeypatch):
    class Refused(Exception):
        pass

    def init(**_):
        raise Refused("Invalid project name 'a/b':\nno slashes")

    errors = SimpleNamespace(Error=Refused)
    wandb = SimpleNamespace(init=init, Settings=lambda **_: None, errors=errors)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(UserError, match=r"^W&B: Invalid project name 'a/b': no slashes; mend it, or pass --wandb off"):
        wandb_tracker(tmp_path, "offline", "a/b", "name", {}, goes_on=False)


def test_trackers_whose_package_is_missing_say_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        wandb_tracker(tmp_path, "offline", "project", "name", {}, goes_on=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        tensorboard_tracker(tmp_path)


def test_an_empty_id_of_wandb_is_made_anew(tmp_path, monkeypatch):
    begun: list[str] = []

    def init(**given):
        begun.append(given["id"])
        return SimpleNamespace(log=lambda figures: None, define_metric=lambda *_, **__: None)

    wandb = SimpleNamespace(init=init, Settings=lambda **_: None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    (tmp_path / "wandb_id.txt").write_text("")
    wandb_tracker(tmp_path, "offline", "project", "name", {}, goes_on=True)
    assert begun == [(tmp_path / "wandb_id.txt").read_text()]
    assert begun[0]


def test_a_log_that_goes_on_is_cut_where_it_is(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("0123456789")
    before = path.stat().st_ino
    MetricsLog(path, 4)
    assert path.read_text() == "0123"
    assert path.stat().st_ino == before
    MetricsLog(path, 100)
    assert path.read_text() == "0123"
    MetricsLog(path)
    assert path.read_text() == ""
