"""All figures of a benchmark from games: what is there for which table, and what is said where something is not."""

from __future__ import annotations

import builtins
from dataclasses import replace

import numpy as np
import pytest
from tests.judged_games import both_orders, game, grade

from densepath.records.benchmark import Answer, Question
from densepath.records.codec import from_json, to_json
from densepath.records.judged import Judged
from densepath.stats import arena_hard, length_controlled
from densepath.stats.judged import JudgedInputs, judged
from densepath.stats.length_controlled import Gamed


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(arena_hard, "RESAMPLES", 49)
    monkeypatch.setattr(length_controlled, "RESAMPLES", 49)


QUESTIONS = [
    Question(f"q{index}", "math" if index % 2 else "code", (f"Q {index}",), index + 1, index=index)
    for index in range(24)
]
ANSWERS = [
    Answer(question.id, name, ("x" * (10 * (place + 1) + question.row % 7),), question.row)
    for place, name in enumerate("mnb")
    for question in QUESTIONS
]
PREFERENCES = np.random.default_rng(0).uniform(size=(2, 24))
GAMES = [*both_orders(PREFERENCES[0]), *both_orders(PREFERENCES[1], model="n")]


def figures(table, games=GAMES, answers=ANSWERS, **more):
    found = judged(JudgedInputs("bench", table, "judge", QUESTIONS, answers, games, **more))
    assert from_json(Judged, to_json(found)) == found
    return found


def test_win_rates_of_every_table():
    found = figures("win_rate")
    assert [(rate.model, rate.baseline) for rate in found.win_rates] == [("m", "b"), ("n", "b")]
    assert found.win_rates[0].rate.mean == pytest.approx(PREFERENCES[0].mean())
    assert set(found.win_rates[0].categories) == {"math", "code"}
    assert found.win_rates[0].length.mean == -20  # b writes 20 characters more
    assert found.comparisons[0].difference.mean == pytest.approx(PREFERENCES[0].mean() - PREFERENCES[1].mean())
    assert (found.alpaca_eval, found.arena_hard, found.mt_bench, found.notes) == ((), (), (), ())


def test_a_category_of_few_prompts_has_no_rate():
    rare = [replace(each, category="rare") if each.row <= 4 else each for each in QUESTIONS]
    found = judged(JudgedInputs("bench", "win_rate", "judge", rare, ANSWERS, GAMES))
    assert set(found.win_rates[0].categories) == {"math", "code"}
    assert sum(each.n for each in found.win_rates[0].categories.values()) == 20


def test_alpaca_eval_without_and_with_the_gamed_rows():
    first = figures("alpaca_eval").alpaca_eval[0]
    assert first.win_rate == pytest.approx(PREFERENCES[0].mean())
    assert first.length.name == "length_adjusted"
    rng = np.random.default_rng(0)
    gamed = Gamed(rng.uniform(size=40), rng.normal(size=40), rng.normal(size=40))
    exact = figures("alpaca_eval", gamed=(gamed, dict(enumerate(gamed.difficulties[:24]))))
    assert exact.alpaca_eval[0].length.name == "length_controlled"
    lacking = figures("alpaca_eval", gamed=(gamed, {0: 1.0}))
    assert lacking.alpaca_eval[0].length.name == "length_adjusted"
    assert "no difficulty" in lacking.notes[0]


def test_without_answers_there_are_fewer_figures_and_it_is_said():
    found = figures("alpaca_eval", answers=[])
    assert found.win_rates[0].length is None
    assert found.alpaca_eval[0].length is None
    assert "no lengths" in found.notes[0]
    assert figures("arena_hard", answers=ANSWERS[1:]).arena_hard[0].styles == ()
    assert "style is not controlled" in figures("arena_hard", answers=ANSWERS[1:]).notes[0]


def test_without_scikit_learn_the_rest_stands(monkeypatch):
    real = builtins.__import__

    def no_sklearn(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_sklearn)
    found = figures("alpaca_eval")
    assert found.alpaca_eval[0].length is None
    assert "scikit-learn" in found.notes[0]


def test_arena_hard_and_mt_bench():
    games = [game(f"q{index}", said) for index, said in enumerate([">>", ">", "=", "<"])]
    found = figures("arena_hard", games)
    assert found.arena_hard[0].score.mean == pytest.approx((3 + 1 + 0.5) / 6)
    assert len(found.arena_hard[0].styles) == 3
    graded = figures("mt_bench", [grade("q0", 7), grade("q1", None)])
    assert (graded.mt_bench[0].mean.mean, graded.mt_bench[0].invalid, graded.win_rates) == (7.0, 1, ())
    paired = figures("mt_bench", both_orders([1.0, 0.0, 0.5]))
    assert (paired.mt_bench_pairs[0].rate.mean, paired.mt_bench_pairs[0].ties) == (0.5, 1)


def test_a_model_without_a_verdict_is_named():
    found = figures("arena_hard", [game("q0", None), game("q1", None)])
    assert (found.win_rates, found.arena_hard) == ((), ())
    assert found.notes == ("m against b: no prompt has a verdict in each order that was asked",)
    none = figures("mt_bench", [grade("q0", None)])
    assert (none.mt_bench, none.notes) == ((), ("m: none of its answers has a grade",))


def test_what_cannot_be_told_of_the_repeats_that_are_there_is_a_note():
    """The first repeat has no verdict in both orders, and each prompt of Arena-Hard has a game that cannot be read."""
    first = [game(f"q{i}", said, switched=said is None) for i in range(3) for said in (">", None)]
    games = [*first, *both_orders([1.0, 1.0, 1.0], repeat=1)]
    found = figures("mt_bench", games)
    assert found.mt_bench_pairs == ()
    assert "in the first repeat" in found.notes[-1]
    games = [*both_orders([1.0, 1.0]), *(game(f"q{i}", None, repeat=1) for i in range(2))]
    found = figures("arena_hard", games)
    assert (len(found.win_rates), found.arena_hard) == (1, ())
    assert "no prompt has a verdict in each of its games" in found.notes[-1]


def test_a_rate_that_is_not_determined_is_told():
    longer = [len(own.turns[0]) % 10 > 3 for own in ANSWERS[:20]]
    base = [replace(each, turns=("x" * 33,)) for each in ANSWERS[40:]]
    games = both_orders([float(each) for each in longer])
    lengths = [
        replace(each, turns=("x" * (40 if won else 20),)) for each, won in zip(ANSWERS[:20], longer, strict=True)
    ]
    found = figures("alpaca_eval", games, [*lengths, *base])
    assert "m: length and model tell all that it won from all that it lost" in found.notes[0]
    words = [
        replace(each, turns=("x " * (40 if won else 20),)) for each, won in zip(ANSWERS[:20], longer, strict=True)
    ]
    base = [replace(each, turns=("x " * 33,)) for each in base]
    found = figures("arena_hard", games, [*words, *base])
    assert "m against b: no rate with length or with length, headers, lists, bold held fixed" in found.notes[0]
    assert found.arena_hard[0].styles[0].rate is None
