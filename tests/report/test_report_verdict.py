import pytest
from tests.report.made_results import comparison, record, row

from densepath.report import parse
from densepath.report.records import Curve
from densepath.report.verdict import alarms, verdict


def results(*pairs):
    rows = [
        row("dpr", "DPR", value=0.5),
        row("sft", "SFT", value=0.5),
        row("continued_sft", "continued SFT", value=0.5),
    ]
    return parse.results(record(rows, [comparison(*pair) for pair in pairs]))


UP = {"mean": 0.1, "low": 0.05, "high": 0.15}
NONE_HELPS = parse.selection({"chosen": None, "rows": [{"reference": "0", "beta": 1.0}]})


@pytest.mark.parametrize(
    ("words", "kind", "headline"),
    [
        (("better", "better"), "better", "DPR does better than SFT and continued SFT on score."),
        (("worse", "worse"), "worse", "DPR does worse than SFT and continued SFT on score."),
        (("tie", "tie"), "tie", "No difference shown between DPR and SFT and continued SFT on score."),
        (
            ("better", "tie"),
            "mixed",
            "Mixed on score: of 2 comparisons, DPR does better in 1 and shows no difference in 1.",
        ),
        (("better", "worse"), "mixed", "Mixed on score: of 2 comparisons, DPR does better in 1 and does worse in 1."),
        (("?", "?"), "unknown", "The comparisons of DPR on score came to no verdict."),
    ],
)
def test_headline_follows_the_paired_rows(words, kind, headline):
    found = verdict(results(("dpr", "sft", words[0], UP), ("dpr", "continued_sft", words[1], UP)), None)
    assert (found.kind, found.headline) == (kind, headline)
    assert len(found.details) == 2


def test_details_carry_the_interval():
    [line] = verdict(results(("dpr", "sft", "better", UP)), None).details
    assert line == "DPR against SFT, greedy: better; score changes by +0.100 [+0.050, +0.150]."


def test_the_headline_is_that_of_each_arm_at_its_own_decoding():
    own = {**comparison("dpr", "sft", "tie", UP), "primary": True, "against_decoding": "temperature 1"}
    same = comparison("dpr", "sft", "better", UP)
    found = verdict(parse.results(record([row("sft", "SFT", value=0.5)], [same, own])), None)
    assert found.kind == "tie"
    assert "greedy against temperature 1" in found.details[0]


def test_comparisons_of_other_arms_do_not_speak_for_dpr():
    found = verdict(results(("continued_sft", "sft", "better", UP), ("dpr", "sft", "worse", UP)), None)
    assert found.kind == "worse"


def test_without_an_evaluation_nothing_is_claimed():
    assert verdict(None, None).kind == "unknown"
    assert verdict(results(), None).kind == "unknown"
    assert verdict(None, NONE_HELPS).kind == "none-helps"
    assert "No candidate reference" in verdict(results(("dpr", "sft", "worse", UP)), NONE_HELPS).details[-1]


def test_a_verdict_against_its_own_interval_is_flagged():
    around_zero = {"mean": 0.1, "low": -0.05, "high": 0.25}
    [line] = alarms(results(("dpr", "sft", "better", around_zero)), [])
    assert "its interval holds zero" in line
    assert alarms(results(("dpr", "sft", "tie", around_zero)), []) == []


@pytest.mark.parametrize(
    ("stage", "metric", "values", "count"),
    [
        ("dpr", "kl_sequence", (0.0, 1.6), 1),
        ("dpr", "kl_sequence", (0.0, 1.4), 0),
        ("dpr", "reward", (1.0, 9.0), 0),
    ],
)
def test_monitors_that_came_with_failed_runs(stage, metric, values, count):
    assert len(alarms(None, [Curve(stage, metric, tuple(range(len(values))), values)])) == count


@pytest.mark.parametrize(("nll", "count"), [(1.2, 1), (1.05, 0), (0.5, 0)])
def test_a_rise_of_the_nll_of_held_out_demonstrations_is_flagged(nll, count):
    rows = [row("sft", value=0.5, nll={"mean": 1.0}), row("dpr", value=0.5, nll={"mean": nll})]
    assert len(alarms(parse.results(record(rows)), [])) == count


def test_length_and_truncation_are_flagged():
    rows = [
        row("sft", "SFT", value=0.5, length=10.0, truncated=0.01),
        row("dpr", "DPR", value=0.5, length=14.0, truncated=0.1),
    ]
    found = alarms(parse.results(record(rows)), [])
    assert len(found) == 2
    assert "10.0%" in found[0]
    assert "1.4 times as long" in found[1]
