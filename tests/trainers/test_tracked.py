"""Trackers of all stages at once: each training is a run of its own."""

from __future__ import annotations

import sys
import types

from tests.pipeline.runs import run_argv, save_tiny_model

from densepath.cli.main import main
from densepath.config.run import RunArguments
from densepath.methods._stage import dpr_config, sft_config
from densepath.trainers.tracked import end_tracked_run


def test_every_stage_reports_and_has_a_name_of_its_own(tmp_path):
    given = {"max_completion_length": 8, "report_to": ["tensorboard"]}
    arguments, other = RunArguments(**given), RunArguments(max_completion_length=8)
    folder = tmp_path / "runs/mine/sft"
    sft, dpr = sft_config(arguments, {}, folder), dpr_config(arguments, {}, folder.with_name("dpr"), 1.0)
    assert [config.report_to for config in (sft, dpr)] == [["tensorboard"]] * 2
    assert [config.run_name for config in (sft, dpr)] == ["runs/mine/sft", "runs/mine/dpr"]
    assert sft_config(other, {}, folder).report_to == []


def test_a_run_leaves_a_log_of_each_training(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    short = {"sft_max_steps": 1, "dpr_max_steps": 1, "dpr_eval_strategy": "no", "eval_temperatures": [0]}
    words = run_argv(model, tmp_path / "run", **short, reference=0, beta=1, arms=["dpr"], report_to="tensorboard")
    assert main(words) == 0
    logs = {path.relative_to(tmp_path / "run").parts[0] for path in (tmp_path / "run").rglob("events.out.tfevents*")}
    assert logs == {"sft", "dpr"}


def test_what_transformers_leaves_open_is_closed(monkeypatch):
    ended = []
    for name in ("wandb", "swanlab"):
        tracker = types.SimpleNamespace(finish=lambda name=name: ended.append(name))
        monkeypatch.setitem(sys.modules, name, tracker)
    end_tracked_run()
    assert ended == ["wandb", "swanlab"]
    for name in ended:
        monkeypatch.delitem(sys.modules, name)
    end_tracked_run()
    assert len(ended) == 2
