"""Tables of records in the documents are what the records say of themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from densepath.errors import DataError
from densepath.records.tables import field_table, row_table, with_tables

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@dataclass
class Record:
    """One.

    Attributes:
        mean: of a | b, which
            goes on.
        n: how many.
    """

    mean: float
    n: int


@dataclass
class Bare:
    """Nothing is said of its field."""

    n: int


def test_a_table_by_hand():
    assert field_table(Record) == (
        "| name | meaning |\n|---|---|\n| `mean` | of a \\| b, which goes on |\n| `n` | how many |\n"
    )
    with pytest.raises(DataError, match=r"Bare\.n is not explained"):
        field_table(Bare)


def test_a_table_of_records_by_hand():
    assert row_table([Record("a", "b"), Record("c", "")]) == "| mean | n |\n| --- | --- |\n| a | b |\n| c |  |\n"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_documents_hold_what_the_records_say(document):
    """Else: python -m densepath.records.tables DOCUMENT."""
    text = document.read_text(encoding="utf-8")
    assert with_tables(text) == text


def test_the_records_that_travel_are_in_the_documents():
    marked = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    for name in (
        *("arm.ArmResult", "arm.Budget", "estimates.Interval", "estimates.Comparison"),
        *("choice.ReferenceChoice", "choice.CandidateRow", "choice.Findings", "choice.Decision", "choice.Answers"),
        *("results.Results", "results.SettingResults", "results.ArmRow", "results.ArmComparison", "results.Sweep"),
        *("completion.ScoredCompletion", "reward_eval.RewardEvaluation", "reward_eval.Figure", "reward_eval.Changes"),
        "judge_eval.JudgeEvaluation",
        *("choice.Agreement", "choice.RewardFigures", "choice.Likelihood"),
        *(
            "judged.Judged",
            "judged.WinRate",
            "judged.AlpacaEval",
            "judged.ArenaHard",
            "judged.MtBench",
            "judged.Kappa",
        ),
        *("behaviours.Purification", "behaviours.Mixture", "behaviours.Behaviour"),
    ):
        assert f"<!-- fields of densepath.records.{name} -->" in marked, name
