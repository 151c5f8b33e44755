import pytest

from densepath.report import parse
from densepath.report.records import Curve
from densepath.report.verdict import alarms, verdict


def results(*pairs, **rest):
    paired = [
        {"arm": arm, "against": against, "decoding": "greedy", "difference": difference, "verdict": word}
        for arm, against, word, difference in pairs
    ]
    rows = [
        {"arm": "dpr", "label": "DPR"},
        {"arm": "sft", "label": "SFT"},
        {"arm": "continued_sft", "label": "continued SFT"},
    ]
    return parse.results({"metric": {"name": "score", **rest}, "rows": rows, "paired": paired})


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


def test_details_carry_the_interval_and_the_direction():
    [line] = verdict(results(("dpr", "sft", "worse", UP), higher_is_better=False), None).details
    assert line == "DPR against SFT, greedy: worse; score changes by +0.100 [+0.050, +0.150] (lower is better)."


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
    rows = [
        {"arm": "sft", "decoding": "greedy", "nll": {"mean": 1.0}},
        {"arm": "dpr", "decoding": "greedy", "nll": {"mean": nll}},
    ]
    assert len(alarms(parse.results({"rows": rows}), [])) == count


def test_length_and_truncation_are_flagged():
    rows = [
        {"arm": "sft", "label": "SFT", "decoding": "greedy", "length": 10.0, "truncated": 0.01},
        {"arm": "dpr", "label": "DPR", "decoding": "greedy", "length": 14.0, "truncated": 0.1},
    ]
    found = alarms(parse.results({"rows": rows}), [])
    assert len(found) == 2
    assert "10.0%" in found[0]
    assert "1.4 times as long" in found[1]
