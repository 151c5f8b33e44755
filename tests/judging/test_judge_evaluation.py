"""A judge against labels: planted judges, what is counted, and when there is no headline."""

from __future__ import annotations

import numpy as np
import pytest
from tests.judging.test_games import SaysJudge

from densepath.errors import DataError
from densepath.judging.evaluation import evaluate_judge, labelled_pairs
from densepath.judging.games import plan_games, play
from densepath.records.codec import from_json, to_json
from densepath.records.estimates import Verdict
from densepath.records.judge_eval import JudgeEvaluation
from densepath.records.judging import Judgement, preference_of
from densepath.records.reward_eval import SetAside
from densepath.report.html import page_html
from densepath.report.judge_eval import judge_eval_page


def rows(count=60, seed=0):
    """The right answer holds a plus; which of the two is longer is a coin's choice."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        pad = int(rng.integers(2))
        chosen, rejected = f"+ {index} {'word ' * (3 * pad)}".strip(), f"- {index} {'word ' * (3 - 3 * pad)}".strip()
        found.append({"prompt": f"Q {index}?", "chosen": chosen, "rejected": rejected, "category": "ab"[index % 2]})
    return found


def said(verdict):
    return Judgement(preference_of(verdict), verdict=verdict)


def right(request):
    return said(">" if request.answers[0][0].startswith("+") else "<")


def longer(request):
    one, other = (len(each[0]) for each in request.answers)
    return said(">" if one > other else "<" if one < other else "=")


def first(request):
    return said(">")


def evaluated(says, given=None, repeats=1):
    pairs, aside = labelled_pairs(rows() if given is None else given, "pairs.jsonl")
    games = list(play(SaysJudge(says), plan_games([pair.match for pair in pairs], repeats=repeats), max_invalid=1))
    found = evaluate_judge("the judge", pairs, games, set_aside=aside)
    assert from_json(JudgeEvaluation, to_json(found)) == found
    return found


def measure(found, figure, name):
    (own,) = (each for each in found.figures if each.name == figure)
    return next(each.value.mean for each in own.measures if each.name == name)


def test_the_right_answer_of_a_row_is_shown():
    pairs, _ = labelled_pairs([{**rows(1)[0], "reference": "RIGHT"}, *rows(1, seed=1)], "pairs.jsonl")
    assert [pair.match.request.reference for pair in pairs] == [("RIGHT",), None]
    with pytest.raises(DataError, match=r"pairs\.jsonl, row 1: the reference is 5; give a text"):
        labelled_pairs([{**rows(1)[0], "reference": 5}], "pairs.jsonl")


def test_a_judge_that_knows_the_answer():
    found = evaluated(right)
    assert measure(found, "accuracy", "judge") == 1.0
    assert (found.verdict, found.rows, found.invalid) == (Verdict.BETTER, 60, 0)
    assert found.headline == "the judge agrees with 1.000 [0.940, 1.000] of 60 labels"
    assert (found.position.follows_place.mean, found.position.first_place.mean) == (0.0, 0.5)
    groups = found.figures[0].measures[0].groups
    assert set(groups["category"]) == {"a", "b"}
    assert set(groups["length"]) == {"chosen longer", "chosen shorter"}
    assert [one.against for one in found.figures[0].comparisons] == ["longer", "shorter"]


def test_a_judge_that_prefers_the_longer_answer():
    found = evaluated(longer)
    assert measure(found, "accuracy", "judge") == measure(found, "accuracy", "longer")
    assert measure(found, "prefers_longer", "judge") == 1.0
    assert measure(found, "prefers_longer", "label") == pytest.approx(np.mean([len(r["chosen"]) > 9 for r in rows()]))
    assert found.figures[1].statement.endswith("more often than the labels")
    assert found.headline is None


def test_a_judge_that_prefers_the_first_place_has_no_headline_and_the_page_says_so():
    found = evaluated(first)
    assert (measure(found, "accuracy", "judge"), found.headline, found.verdict) == (0.5, None, Verdict.TIE)
    assert (found.position.follows_place.mean, found.position.first_place.mean) == (1.0, 1.0)
    page = page_html(judge_eval_page(found, "pairs.jsonl"))
    assert "No headline: this judge is no better than chance" in page
    assert "agrees with 1.000" not in page
    assert "the judge agrees with" in page_html(judge_eval_page(evaluated(right), "pairs.jsonl"))


def test_a_judge_that_is_wrong_on_purpose_has_no_headline():
    found = evaluated(lambda request: said({">": "<", "<": ">"}[right(request).verdict]))
    assert (found.verdict, found.headline) == (Verdict.WORSE, None)


def test_its_own_chance_is_told():
    rng = np.random.default_rng(0)
    found = evaluated(lambda request: said(str(rng.choice([">", "<"]))), repeats=3)
    assert found.noise.repeats == 3
    assert found.noise.of_judge == pytest.approx(0.5 / np.sqrt(6 * 60), rel=0.2)
    assert evaluated(right).noise is None


def test_what_the_judge_says_nothing_of_is_set_aside():
    found = evaluated(lambda request: Judgement(invalid="?") if request.row["category"] == "a" else right(request))
    assert (found.rows, found.invalid) == (30, 60)
    assert found.set_aside[0] == SetAside(1, "the judge gave no verdict")
    with pytest.raises(DataError, match="no pair has a verdict"):
        evaluated(lambda request: Judgement(invalid="?"))


def test_the_judge_sees_no_label():
    def look(request):
        assert not {"chosen", "rejected"} & set(request.row)
        return said("=")

    evaluated(look)


def test_pairs_of_every_form():
    turns = [{"role": "user", "content": "Hi"}]
    given = [
        {
            "prompt": turns,
            "chosen": [{"role": "assistant", "content": "A"}],
            "rejected": [{"role": "assistant", "content": "B"}],
        },
        {
            "chosen": [*turns, {"role": "assistant", "content": "A"}],
            "rejected": [*turns, {"role": "assistant", "content": "B"}],
        },
        {"prompt": "Hi", "chosen": "A", "rejected": "B"},
        {"prompt": "Hi", "chosen": "A", "rejected": "A"},
    ]
    pairs, aside = labelled_pairs(given, "f")
    assert [pair.match.request.answers for pair in pairs] == [(("A",), ("B",))] * 3
    assert [pair.match.request.prompt[-1]["content"] for pair in pairs] == ["Hi"] * 3
    assert aside == [SetAside(4, "chosen and rejected are the same text")]
    with pytest.raises(DataError, match=r'f, row 2: no "rejected"'):
        labelled_pairs([given[0], {"prompt": "x", "chosen": "a"}], "f")
    with pytest.raises(DataError, match="no row can be used"):
        labelled_pairs(given[3:], "f")
    drawn, _ = labelled_pairs(rows(), "f", max_samples=10, seed=1)
    assert [pair.row for pair in drawn] == sorted(pair.row for pair in drawn)
    assert len(drawn) == 10
