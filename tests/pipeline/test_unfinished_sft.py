"""What a run makes of SFT that is not finished: more of it where its length was left open, else a warning."""

from __future__ import annotations

import json

import pytest
from tests.choice.test_decide import HABIT, ended, findings, preview
from tests.pipeline.folders import differences
from tests.pipeline.runs import run_argv

from densepath.cli.main import main
from densepath.config.run import RunArguments
from densepath.io import read_json
from densepath.pipeline import selection, sft
from densepath.pipeline.run_folder import RunFolder
from densepath.pipeline.selection import _choose
from densepath.records.choice import Answer, ChosenReference


def test_it_is_a_warning_and_dpr_is_run_with_what_looks_best_all_the_same():
    worth_trying = preview("0", 0.37, 0.42, **HABIT)
    choice = _choose(RunArguments(), findings((0.36, 0.35, 0.28), worth_trying, likelihoods=ended(0.0235)))
    assert choice.decision is not None
    assert choice.decision.answer is Answer.TRAIN_ON
    assert choice.chosen == ChosenReference("0", 1.0)
    (warning,) = choice.warnings
    assert warning.startswith("SFT is not finished, train on first")
    assert choice.reason.startswith("A lead of +0.060 would be worth having")  # what else was found, without it
    finished = _choose(RunArguments(), findings((0.36, 0.35, 0.28), worth_trying))
    assert (finished.chosen, finished.warnings) == (choice.chosen, ())


def test_where_no_reference_helps_dpr_is_left_out_as_before():
    none = preview("0", 0.36, 0.28, **HABIT)
    choice = _choose(RunArguments(), findings((0.36, 0.35, 0.28), none, likelihoods=ended(0.0235)))
    assert choice.chosen is None
    assert len(choice.warnings) == 1


@pytest.fixture(scope="module")
def shortest(tiny_model):
    """A run without arms beyond SFT whose length is left open: eighteen rows are learnt in more than four passes."""
    short = {"sft_max_steps": None, "num_validation_samples": 12, "beta": 1, "arms": "sft", "eval_temperatures": 0}
    of_dpr = ("num_generations", "dpr_max_steps", "dpr_per_device_train_batch_size", "dpr_learning_rate")
    of_dpr += ("dpr_eval_strategy", "dpr_eval_steps", "dpr_predict_with_generate")
    return lambda folder, **changes: run_argv(tiny_model, folder, **{**short, **dict.fromkeys(of_dpr), **changes})


def assert_same(folder, other):
    assert differences(folder, other) == []


def test_where_its_length_is_open_sft_begins_anew_as_if_it_had_been_told_so(shortest, tmp_path, capsys):
    assert main(shortest(tmp_path / "open", sft_most_epochs=4)) == 0
    said = capsys.readouterr().out
    assert main(shortest(tmp_path / "told", sft_num_train_epochs=4)) == 0
    for part in ("sft/model", "sft/references/0.5"):
        assert_same(tmp_path / "open" / part, tmp_path / "told" / part)
    first, second = sft.passes_said(tmp_path / "open")
    assert first.startswith("SFT began anew with 2 passes. After 1 pass: SFT is not finished")
    assert second.startswith("SFT began anew with 4 passes. After 2 passes: SFT is not finished")
    assert first in " ".join(said.split())
    (setting,) = read_json(tmp_path / "open/results.json")["settings"]
    assert setting["warnings"][:2] == [first, second]
    outcomes = [json.loads((tmp_path / run / "stages/sft.json").read_text()) for run in ("open", "told")]
    assert outcomes[0]["steps"] == outcomes[1]["steps"]
    assert outcomes[0]["budget"]["flops"] == outcomes[1]["budget"]["flops"]


def test_killed_while_it_begins_anew_it_goes_on_to_the_same_and_keeps_its_configuration(
    shortest, tmp_path, monkeypatch, capsys
):
    def killed(self, stage):
        whole(self, stage)
        raise KeyboardInterrupt

    whole = RunFolder.forget
    with monkeypatch.context() as cut:
        cut.setattr(RunFolder, "forget", killed)
        assert main(shortest(tmp_path / "run")) == 130
    assert not (tmp_path / "run/sft").exists()
    assert main(shortest(tmp_path / "run", sft_learning_rate=1e-4)) == 2
    assert "another configuration" in capsys.readouterr().err
    assert main(shortest(tmp_path / "run")) == 0
    assert main(shortest(tmp_path / "told", sft_num_train_epochs=2)) == 0
    assert_same(tmp_path / "run/sft/model", tmp_path / "told/sft/model")


def test_what_nothing_is_measured_on_makes_one_pass(shortest, tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "measure", None)  # no forward pass for a question without an answer
    assert main(shortest(tmp_path / "run", reference=0.25, reference_fractions=0.25)) == 0
    assert sft.passes_said(tmp_path / "run") == []


@pytest.mark.parametrize("length", [{"sft_max_steps": 8}, {"sft_num_train_epochs": 2}])
def test_most_passes_beside_a_length_are_refused(shortest, tmp_path, capsys, length):
    assert main(shortest(tmp_path / "run", sft_most_epochs=4, **length)) == 2
    assert "sft_most_epochs=4 has no effect beside sft_max_steps or sft_num_train_epochs" in capsys.readouterr().err
