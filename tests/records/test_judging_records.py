"""Judgements and games check themselves, and turn round."""

from __future__ import annotations

import pytest

from densepath.errors import DataError
from densepath.judging.protocol import JudgeRequest
from densepath.records.codec import from_json, to_json
from densepath.records.judging import Game, Judgement, Usage

ASKED = ({"role": "user", "content": "Name a colour."},)


def game(switched: bool = False, baseline: str | None = "sft", **judgement) -> Game:
    return Game("q-1", 1, "dpr", baseline, switched, 0, Judgement(**judgement))


def test_a_game_survives_the_codec():
    for each in (
        game(True, preference=1.0, verdict=">>", reply="[[A>>B]]", usage=Usage(10, 3)),
        game(baseline=None, grade=7.0),
        game(invalid="no verdict in the reply"),
    ):
        assert from_json(Game, to_json(each)) == each


@pytest.mark.parametrize(("verdict", "preference", "turned"), [(">>", 1, "<<"), ("<", 0, ">"), ("=", 0.5, "=")])
def test_a_switched_game_is_turned_back(verdict, preference, turned):
    plain, switched = (game(each, preference=preference, verdict=verdict) for each in (False, True))
    assert (plain.preference_of_model, plain.verdict_of_model) == (preference, verdict)
    assert (switched.preference_of_model, switched.verdict_of_model) == (1 - preference, turned)


@pytest.mark.parametrize("switched", [False, True])
def test_what_was_not_judged_has_no_preference(switched):
    found = game(switched, invalid="empty reply")
    assert found.preference_of_model is None
    assert found.verdict_of_model is None


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"preference": 1.0, "grade": 3.0},
        {"preference": 1.0, "invalid": "why"},
        {"invalid": ""},
        {"preference": 1.5},
        {"preference": float("nan")},
        {"grade": float("inf")},
        {"preference": 1.0, "verdict": "<"},
        {"preference": 1.0, "verdict": "A>B"},
        {"grade": 3.0, "verdict": ">"},
    ],
)
def test_a_judgement_that_contradicts_itself_is_refused(fields):
    with pytest.raises(DataError):
        Judgement(**fields)


def test_games_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="no baseline"):
        game(baseline=None, preference=1.0)
    with pytest.raises(DataError, match="no baseline"):
        game(True, baseline=None, grade=1.0)
    with pytest.raises(DataError, match="has a baseline"):
        game(grade=1.0)
    with pytest.raises(DataError, match="negative"):
        Usage(-1, 0)


def test_a_request_tells_the_conversation_with_each_answer():
    request = JudgeRequest(ASKED, (("Red.", "Blue."), ("Green.", "Grey.")), ("Another.",))
    assert [turn["content"] for turn in request.conversation(1)] == ["Name a colour.", "Green.", "Another.", "Grey."]
    assert request.switched.conversation(0) == request.conversation(1)
    assert request.switched.switched == request


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": (), "answers": (("a",),)},
        {"prompt": ASKED, "answers": ()},
        {"prompt": ASKED, "answers": (("a",), ("b",), ("c",))},
        {"prompt": ASKED, "answers": (("a",), ("b", "c"))},
        {"prompt": ASKED, "answers": (("a",),), "reference": ("r", "s")},
    ],
)
def test_a_request_that_does_not_fit_is_refused(fields):
    with pytest.raises(DataError):
        JudgeRequest(**fields)
