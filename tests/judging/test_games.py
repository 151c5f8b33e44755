"""Orders, repeats and invalid games: what a pair's games say together."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densepath.errors import DataError, JudgeError
from densepath.judging.game_log import GameLog
from densepath.judging.games import Match, grade_of_answer, key_of, plan_games, play, preference_of_pair
from densepath.judging.protocol import JudgeRequest
from densepath.records.judging import Game, Judgement, Spending

Says = Callable[[JudgeRequest], Judgement]
ASKED = ({"role": "user", "content": "?"},)


class SaysJudge:
    """A judge that says what a function does."""

    name = "says"
    num_answers = (1, 2)
    spent = Spending()

    def __init__(self, says: Says) -> None:
        self.says = says

    def judge(self, requests: Sequence[JudgeRequest]) -> Iterator[Judgement]:
        return map(self.says, requests)

    def estimate(self, requests: Sequence[JudgeRequest]) -> Spending:
        return Spending()


def matches(count: int, baseline: str | None = "sft") -> list[Match]:
    answers = (("model's",), ("baseline's",))[: 1 if baseline is None else 2]
    return [Match(f"q-{n}", "dpr", baseline, JudgeRequest(ASKED, answers, row={"n": n})) for n in range(count)]


def by_question(games: Sequence[Game]) -> dict[str, list[Game]]:
    found: dict[str, list[Game]] = {}
    for game in games:
        found.setdefault(game.question, []).append(game)
    return found


@given(st.floats(0, 1), st.integers(1, 3))
def test_a_judge_that_looks_at_the_place_alone_gives_one_half(first, repeats):
    games = list(play(SaysJudge(lambda request: Judgement(first)), plan_games(matches(3), repeats=repeats)))
    assert len(games) == 3 * 2 * repeats
    for each in by_question(games).values():
        assert preference_of_pair(each) == pytest.approx(0.5, abs=1e-15)


def test_one_half_is_exact_for_a_judge_with_hard_verdicts():
    games = list(play(SaysJudge(lambda request: Judgement(1.0, verdict=">")), plan_games(matches(1))))
    assert preference_of_pair(games) == 0.5


@given(st.floats(0, 1), st.booleans())
def test_a_judge_that_looks_at_the_answers_alone_gives_what_it_says(preference, both_orders):
    def says(request: JudgeRequest) -> Judgement:
        return Judgement(preference if request.answers[0] == ("model's",) else 1 - preference)

    games = list(play(SaysJudge(says), plan_games(matches(4), both_orders=both_orders, repeats=2)))
    assert len(games) == 4 * 2 * (2 if both_orders else 1)
    for each in by_question(games).values():
        assert preference_of_pair(each) == pytest.approx(preference, abs=1e-12)


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 2), st.sampled_from([0.0, 0.25, 0.5, 1.0, None])),
        max_size=6,
        unique_by=lambda each: each[:2],
    )
)
def test_the_mean_of_whole_repeats(rows):
    games = [
        Game("q", 1, "a", "b", switched, repeat, Judgement(invalid="?") if said is None else Judgement(said))
        for switched, repeat, said in rows
    ]
    means = []
    for repeat in range(3):
        said = [(switched, value) for switched, r, value in rows if r == repeat]
        if said and all(value is not None for _, value in said):
            means.append(math.fsum(1 - value if switched else value for switched, value in said) / len(said))
    expected = None if not means else math.fsum(means) / len(means)
    assert preference_of_pair(games) == (None if expected is None else pytest.approx(expected))


def test_one_order_is_drawn_the_same_way_each_time_and_is_fair():
    planned = plan_games(matches(1000), both_orders=False)
    assert planned == plan_games(matches(1000), both_orders=False)
    assert 440 < sum(each.switched for each in planned) < 560  # 4 standard deviations
    assert plan_games(matches(1000), both_orders=False, repeats=2)[::2] == planned


def test_a_planned_game_asks_for_its_order_and_repeat():
    plain, switched = plan_games(matches(1))
    assert plain.request.answers == (("model's",), ("baseline's",))
    assert switched.request.answers == (("baseline's",), ("model's",))
    assert [each.request.repeat for each in plan_games(matches(1), repeats=2)] == [0, 0, 1, 1]
    game = switched.played(Judgement(1.0))
    assert key_of(game) == switched.key == ("q-0", 1, "dpr", "sft", True, 0)
    assert game.preference_of_model == 0.0
    two_turns = JudgeRequest(ASKED, (("a", "b"),), ("more?",))
    assert plan_games([Match("q", "m", None, two_turns)])[0].played(Judgement(grade=1.0)).turn == 2


def test_single_answers_are_graded_once_and_averaged_over_repeats():
    grades = iter([3.0, 5.0, 8.0, 8.0])
    games = list(
        play(SaysJudge(lambda request: Judgement(grade=next(grades))), plan_games(matches(2, None), repeats=2))
    )
    assert [grade_of_answer(each) for each in by_question(games).values()] == [4.0, 8.0]
    assert grade_of_answer([]) is None


@pytest.mark.parametrize(("invalid", "stops"), [(0, False), (4, False), (5, True), (20, True)])
def test_too_many_invalid_ones_stop_with_the_reason(invalid, stops):
    count = iter(range(20))

    def says(request: JudgeRequest) -> Judgement:
        return Judgement(invalid="no verdict") if next(count) < invalid else Judgement(1.0)

    games = play(SaysJudge(says), plan_games(matches(10)), max_invalid=0.2)
    if not stops:
        assert len(list(games)) == 20
        return
    assert len(list(itertools.islice(games, 5))) == 5
    with pytest.raises(
        JudgeError,
        match=r"5 of 20 judgements are invalid, and max_invalid=0\.2 allows 4; 5 of them: no.*, or raise max_inv",
    ):
        next(games)


def test_exactly_the_allowed_share_may_be_invalid_whatever_its_rounding():
    for invalid in range(1, 100):
        count = iter(range(100))

        def says(request: JudgeRequest, invalid: int = invalid, count: Iterator[int] = count) -> Judgement:
            return Judgement(invalid="no verdict") if next(count) < invalid else Judgement(1.0)

        planned = plan_games(matches(50))
        assert len(list(play(SaysJudge(says), planned, max_invalid=invalid / 100))) == 100


def test_after_a_kill_the_share_is_one_of_all_games_and_told_as_it_was_given(tmp_path):
    planned = plan_games(matches(10))
    log = GameLog(tmp_path / "games.jsonl")
    log.play(SaysJudge(lambda request: Judgement(1.0)), {}, planned[:13], max_invalid=0, on_game=lambda: None)
    says = SaysJudge(lambda request: Judgement(invalid="no verdict"))
    with pytest.raises(JudgeError, match=r"5 of 20 judgements are invalid, and max_invalid=0\.2 allows 4"):
        log.play(says, {}, planned, max_invalid=0.2, on_game=lambda: None)


def test_a_match_that_does_not_fit_is_refused():
    with pytest.raises(DataError, match="2 answers, and the baseline is None"):
        Match("q", "m", None, JudgeRequest(ASKED, (("a",), ("b",))))


def test_a_game_that_was_judged_before_requests_said_whether_they_are_plain_is_found(tmp_path):
    (match,) = matches(1)
    whose = {"question": "q-0", "model": "dpr", "baseline": "sft"}
    asked = {"prompt": ASKED, "answers": [["model's"], ["baseline's"]], "follow_ups": [], "repeat": 0, "row": {"n": 0}}
    written = json.dumps([{"judge": "j"}, whose, False, asked], sort_keys=True, separators=(",", ":"))
    log = GameLog(tmp_path / "games.jsonl")
    planned = plan_games([match], both_orders=True)[:1]
    judge = SaysJudge(lambda request: Judgement(1.0, verdict=">"))
    log.play(judge, {"judge": "j"}, planned, max_invalid=0, on_game=lambda: None)
    key = json.loads((tmp_path / "games.jsonl").read_text())["key"]
    assert key == hashlib.sha256(written.encode()).hexdigest()
