"""What a run makes of SFT that is not finished: a warning before any arm, and the arms as they were asked for."""

from __future__ import annotations

from tests.choice.test_decide import HABIT, ended, findings, preview

from densepath.config.run import RunArguments
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
