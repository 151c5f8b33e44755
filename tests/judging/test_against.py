"""A judge where a verifier stands: win rates against fixed answers, and what it could not say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pytest

from densepath.config.judge import JudgeArguments
from densepath.config.mixins import LoadArguments
from densepath.errors import DataError, JudgeError
from densepath.evals.generation import Completion, checked
from densepath.judging.against import AgainstAnswers, prompt_key, turns_of
from densepath.judging.build import make_judge_against, shows_reference
from densepath.judging.evaluation import labelled_pairs
from densepath.judging.protocol import JudgeRequest
from densepath.judging.templates import load_template
from densepath.pipeline.data import check_right_answers
from densepath.records.judging import Judgement, Preference, Spending

ROWS = [{"prompt": "one"}, {"prompt": [{"role": "user", "content": "two"}]}, {"prompt": "three"}]
FIXED = {prompt_key(row): "fixed" for row in ROWS}


class First:
    """Prefers what it is shown first, but says nothing of an answer that is "?"; counts what it is asked."""

    name = "first"
    num_answers = (2,)
    spent = Spending()
    asked = 0

    def judge(self, requests: Sequence[JudgeRequest]) -> Iterator[Judgement]:
        self.asked += len(requests)
        for request in requests:
            unread = ("?",) in request.answers
            yield Judgement(invalid="unreadable") if unread else Judgement(1.0, verdict=">")

    def estimate(self, requests: Sequence[JudgeRequest]) -> Spending:
        return Spending()


def test_both_orders_ties_without_asking_and_nothing_where_nothing_was_said():
    judge = First()
    against = AgainstAnswers(judge, FIXED, max_invalid=0.5)
    found = against.judged(["fixed", "other", "?"], ROWS)
    assert found == [Preference(0.5), Preference(0.5, (1.0, 0.0)), Preference(None)]
    assert judge.asked == 4
    found = AgainstAnswers(judge, FIXED, both_orders=False).judged(["a", "b", "c"], ROWS)
    assert {(each.value == 0.5, each.by_order) for each in found} == {(False, None)}
    with pytest.raises(JudgeError, match="3 of 6 judgements are invalid"):
        AgainstAnswers(judge, FIXED, max_invalid=0.4).judged(["a", "?", "?"], ROWS)
    with pytest.raises(DataError, match="has no answer to compare with"):
        against.judged(["a"], [{"prompt": "four"}])


def test_the_right_answer_of_a_row_is_shown(tmp_path):
    """The template promises it, and the command `judge` shows it: the last columns are a verifier's, or are none."""
    asked = []

    class Listens(First):
        def judge(self, requests):
            asked.extend(load_template("pair").messages(request)[-1]["content"] for request in requests)
            return super().judge(requests)

    given = [{"reference": "RIGHT"}, {"reference": ["RIGHT"]}, {"reference_turns": ["RIGHT"]}, {"answer": "RIGHT"}]
    for columns in given:
        AgainstAnswers(Listens(), FIXED).judged(["other"], [{**ROWS[0], **columns}])
    assert ["<right_answer>\nRIGHT\n" in each for each in asked] == [True] * 6 + [False] * 2
    odd = {**ROWS[0], "reference": 5}
    (tmp_path / "rows.jsonl").write_text(json.dumps(odd))
    with pytest.raises(
        DataError, match="row 1: the reference is 5; give a text for each of its 1 turns, which a judge"
    ):
        check_right_answers(JudgeArguments(judge="openai:m"), [odd], str(tmp_path / "rows.jsonl"), "train")


@pytest.mark.parametrize(
    ("judge", "template"),
    [("verifier:exact_match", None), ("local:somewhere", None), ("openai:m", "letters"), (None, None)],
)
@pytest.mark.parametrize("reference", [["Paris", "paris"], 42, {"city": "Paris"}])
def test_a_reference_that_the_judge_is_not_shown_may_hold_anything(tmp_path, judge, template, reference):
    row = {**ROWS[0], "answer": "right", "reference": reference}
    asked = JudgeArguments(judge=judge, judge_template=template)
    check_right_answers(asked, [row], "rows.jsonl", "train")
    pair = {**row, "chosen": "right", "rejected": "wrong"}
    labelled_pairs([pair], "rows.jsonl", shows_reference=shows_reference(asked))
    if judge == "verifier:exact_match":
        against = make_judge_against(asked, LoadArguments(), FIXED, tmp_path)
        assert against.judged(["right"], [row]) == [Preference(1.0, (1.0, 1.0))]


def test_completions_get_its_preferences():
    given = [Completion(row, [1], [2], [0.0], text, False, None) for row, text in ((0, "fixed"), (2, "?"), (2, "x"))]
    found = checked(given, ROWS, AgainstAnswers(First(), FIXED, max_invalid=0.5))
    assert [(each.metric, each.by_order) for each in found] == [(0.5, None), (None, None), (0.5, (1.0, 0.0))]


def test_a_prompt_is_known_by_what_it_says():
    assert turns_of(ROWS[0]) == ({"role": "user", "content": "one"},)
    assert prompt_key(ROWS[0]) != prompt_key({"prompt": [{"role": "user", "content": "one"}]})
    with_answer = {"messages": [{"role": "user", "content": "two"}, {"role": "assistant", "content": "x"}]}
    assert prompt_key(ROWS[1]) == prompt_key(with_answer)
