"""A run that begins with an SFT model that is there already."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.pipeline.runs import run_argv

from densepath.cli.main import main
from densepath.io import read_json
from densepath.pipeline.run_folder import RunFolder

QUICK = {"dpr_max_steps": 1, "eval_temperatures": [0], "dpr_eval_strategy": "no", "sft_max_steps": 1}


def argv(tiny_model, folder, **changes):
    return run_argv(tiny_model, folder, **{**QUICK, **changes})


def test_the_models_of_a_finished_run_are_taken_and_no_sft_is_run(tmp_path, finished, tiny_model, capsys):
    source, _ = finished
    assert main(argv(tiny_model, tmp_path / "run", sft_from=source)) == 0
    out = capsys.readouterr().out
    assert f"SFT: {source}/sft/model, given; references: 0, 0.25, 0.5, 0.75" in out
    assert not (tmp_path / "run/sft/model").exists()
    (setting,) = read_json(tmp_path / "run/results.json")["settings"]
    assert {row["method"] for row in setting["rows"]} == {"base", "sft", "dpr", "continued_sft"}


def test_dpr_starts_from_the_given_model_and_the_control_has_its_compute(tmp_path, finished, tiny_model):
    source, _ = finished
    model = tmp_path / "mine"
    shutil.copytree(source / "sft/model", model)
    folder = tmp_path / "run"
    words = argv(tiny_model, folder, sft_model_name_or_path=model, reference=0, dpr_learning_rate=0)
    assert main(words) == 0
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder / "dpr/model", model))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    one, dpr, control = (
        RunFolder((folder / path).parents[1], read_only=True).outcome(Path(path).stem)
        for path in ("stages/sft.json", "dpr/stages/train.json", "continued_sft/stages/train.json")
    )
    assert one.steps == 1
    assert control.steps == max(1, round(dpr.budget.flops / one.budget.flops))
    # a step of the control is on average what was said of one
    assert control.budget.flops / control.steps == pytest.approx(one.budget.flops, rel=0.3)
    assert main([*words, "--sft_model_name_or_path", str(source / "sft/references/0.5")]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sft_from": "nowhere"}, "nowhere: no such folder; give the output_dir of densepath sft or run"),
        ({"sft_from": "a", "sft_model_name_or_path": "b"}, "both name the SFT model; give one of them"),
        ({"sft_model_name_or_path": "./nothing"}, "no such model folder: ./nothing"),
    ],
)
def test_what_is_not_there_is_said_at_once(tmp_path, tiny_model, capsys, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    assert main(argv(tiny_model, tmp_path / "run", **changes)) == 2
    assert message in capsys.readouterr().err
