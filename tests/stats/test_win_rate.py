"""Win rates by hand, AlpacaEval's figures by their definition, and planted judges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from tests.judged_games import both_orders, game

from densepath.records.estimates import Verdict
from densepath.stats.games import pair_games, pairs_of
from densepath.stats.seeds import seed_difference
from densepath.stats.win_rate import (
    alpaca_eval,
    compare_models,
    corrected_rates,
    detectable_effect,
    judge_noise,
    position_bias,
    win_rate,
)


def rate_of(games, **more):
    return win_rate(pair_games(games, "m", "b"), **more)


def test_orders_and_repeats_are_averaged_for_each_prompt_first():
    games = [
        game("one", 1.0),
        game("one", 1.0, switched=True),  # the baseline was first, and won
        game("two", ">"),
        game("two", "<<", switched=True),
        game("three", 0.0),
        game("three", "=", switched=True),
        game("three", 1.0, repeat=1),
        game("three", 0.2, repeat=1, switched=True),
        game("three", None, repeat=2),  # this repeat does not count, whatever its other order says
        game("three", 0.0, repeat=2, switched=True),
    ]
    found = rate_of(games)
    assert found.rate.mean == pytest.approx((0.5 + 1 + (0.25 + 0.9) / 2) / 3)
    assert found.invalid == 1
    assert (found.wins, found.ties, found.losses) == (2, 1, 0)
    assert found.rate.n == 3
    assert pairs_of(games) == (("m", "b"),)


def test_a_prompt_whose_other_order_says_nothing_counts_in_no_figure():
    games = [*both_orders([1.0, 0.0]), game("q2", ">"), game("q2", None, switched=True), game("q3", None)]
    found = rate_of(games)
    assert (found.invalid, found.dropped, found.rate.n) == (2, 2, 2)
    only_first = rate_of([game("q0", ">"), game("q1", "<"), game("q2", "=")])
    assert (only_first.rate.mean, only_first.dropped, only_first.position) == (0.5, 0, None)
    with pytest.raises(ValueError, match="no prompt has a verdict"):
        rate_of([game("q0", None)])


def test_a_turn_counts_where_both_of_its_orders_have_a_verdict():
    games = [game("q0", "="), game("q0", "=", switched=True), game("q0", ">", turn=2)]
    games.append(game("q0", None, turn=2, switched=True))
    assert pair_games(games, "m", "b").by_prompt.tolist() == [0.5]


def test_a_game_that_is_there_twice_is_refused():
    with pytest.raises(ValueError, match="m at q0, turn 1, repeat 0: two games of one order"):
        pair_games([game("q0", ">"), game("q0", "<")], "m", "b")
    with pytest.raises(ValueError, match="m has no games against c"):
        pair_games([game("q0", ">")], "m", "c")


def test_a_judge_that_prefers_the_first_place():
    found = rate_of([game(f"q{i}", ">", switched=switched) for i in range(40) for switched in (False, True)])
    assert found.rate.mean == 0.5
    assert (found.position.follows_place.mean, found.position.first_place.mean) == (1.0, 1.0)
    assert (found.ties, found.verdict) == (40, Verdict.TIE)
    fair = rate_of(both_orders(np.random.default_rng(0).uniform(size=40)))
    assert (fair.position.follows_place.mean, fair.position.first_place.mean) == (0.0, pytest.approx(0.5))


def test_turns_and_repeats_in_one_order_each_tell_nothing_of_a_place():
    """A fair judge of a model that wins each first turn and loses each second one, and wins every other repeat."""
    turns = [game(f"q{i}", 1.0, turn=turn, switched=turn == 2) for i in range(40) for turn in (1, 2)]
    repeats = [game(f"q{i}", 1.0, repeat=repeat, switched=repeat == 1) for i in range(40) for repeat in (0, 1)]
    for found in map(rate_of, (turns, repeats)):
        assert (found.rate.mean, found.position) == (0.5, None)


def test_each_turn_weighs_the_same_in_whichever_order_it_was_shown():
    won = [game("q0", 1.0), game("q0", 1.0, turn=2), game("q0", 1.0, turn=3, switched=True)]  # this one is lost
    assert rate_of(won).rate.mean == pytest.approx(2 / 3)


def test_pairs_of_one_prompt_are_one_unit_of_the_bias_for_a_place():
    orders = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [math.nan, 1.0], [0.0, 1.0], [0.0, 0.0]])
    found = position_bias(orders, np.array([0, 0, 0, 1, 1, 2]))
    assert (found.follows_place.mean, found.follows_place.n) == (pytest.approx((2 / 3 + 1 + 0) / 3), 3)
    assert found.first_place.mean == pytest.approx((5 / 6 + 0 + 1 / 2) / 3)
    assert position_bias(orders[3:4], np.array([0])) is None
    same = position_bias(np.tile([[1.0, 0.0]], (8, 1)), np.repeat([0, 1], 4))
    assert not same.decides  # two prompts, however often they are asked
    assert position_bias(np.tile([[1.0, 0.0]], (8, 1))).decides


def test_categories_and_lengths():
    kinds = {"q0": "math", "q1": "code", "q2": "math"}
    spans = {"q0": 10.0, "q1": -4.0, "q2": 3.0}
    found = rate_of(both_orders([1.0, 0.0, 0.5]), categories=kinds, lengths=spans)
    assert {name: (each.mean, each.n) for name, each in found.categories.items()} == {
        "code": (0.0, 1),
        "math": (0.75, 2),
    }
    assert found.length.mean == 3.0


def test_alpaca_eval_by_its_definition():
    stored = [1.2, 1.9, 1.5, 0.0, math.nan, 2.0, 1.0]  # theirs: 1 the baseline, 2 the model, 0 a draw
    ours = np.array([0.5 if value == 0 else value - 1 for value in stored])
    known = [0.2, 0.9, 0.5, 0.5, 1.0, 0.0]
    found = alpaca_eval("m", ours)
    assert found.win_rate == pytest.approx(sum(known) / 6)
    spread = math.sqrt(sum((value - sum(known) / 6) ** 2 for value in known) / 5)
    assert found.standard_error == pytest.approx(spread / math.sqrt(6))
    assert found.discrete_win_rate == pytest.approx((2 + 2 / 2) / 6)
    assert found.n == 6
    with pytest.raises(ValueError, match="no preference"):
        alpaca_eval("m", np.array([math.nan]))


def test_the_noise_of_the_judge_is_told_from_that_of_the_prompts():
    """Prompts with spread 0.2, a judge that adds a chance of its own with spread 0.1 to each judgement."""
    rng = np.random.default_rng(0)
    prompts = 0.5 + 0.2 * rng.standard_normal((4000, 1))
    said = prompts + 0.1 * rng.standard_normal((4000, 3))
    found = judge_noise(said)
    assert found.repeats == 3
    assert found.of_judge == pytest.approx(0.1 / math.sqrt(3 * 4000), rel=0.05)
    assert found.of_prompts == pytest.approx(0.2 / math.sqrt(4000), rel=0.05)
    assert found.total**2 == pytest.approx(found.of_judge**2 + found.of_prompts**2)
    assert judge_noise(said[:, :1]) is None
    same = judge_noise(np.repeat(prompts, 2, axis=1))
    assert (same.of_judge, same.of_prompts) == (0.0, pytest.approx(same.total))


def test_holm_over_models_by_hand():
    rng = np.random.default_rng(3)
    rates = [rate_of(both_orders(np.clip(rng.normal(0.5 + gain, 0.3, 60), 0, 1))) for gain in (0.0, 0.09, 0.2)]
    found = corrected_rates(rates)
    ordered = sorted(range(3), key=lambda index: rates[index].p)
    most = 0.0
    for place, index in enumerate(ordered):
        most = max(most, min(1.0, (3 - place) * rates[index].p))
        assert found[index].p_holm == most
    assert found[0].verdict == Verdict.TIE
    assert found[2].verdict == Verdict.BETTER


def test_models_are_compared_over_the_prompts_of_both():
    rng = np.random.default_rng(0)
    hard = rng.uniform(0.2, 0.8, 50)  # difficulty that both share
    games = [*both_orders(hard), *both_orders(hard[:40] + 0.05, model="n")]
    pairs = [pair_games(games, name, "b") for name in ("m", "n")]
    (found,) = compare_models(pairs)
    assert (found.measure, found.against, found.difference.n) == ("m", "n", 40)
    assert found.difference.mean == pytest.approx(-0.05)
    assert found.verdict == Verdict.WORSE


def test_the_same_answers_twice_are_a_tie():
    assert rate_of(both_orders([0.5] * 30)).verdict == Verdict.TIE
    rng = np.random.default_rng(0)
    noise = rate_of(both_orders(rng.choice([0.0, 1.0], 300)))
    assert noise.rate.low < 0.5 < noise.rate.high


def power(gain: float, prompts: int, draws: int) -> float:
    """How often a gain is shown: preferences are 0, 1/2 or 1 after both orders."""
    shown = 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        values = rng.choice([0.0, 0.5, 1.0], prompts, p=[0.35 - gain / 2, 0.3, 0.35 + gain / 2])
        shown += seed_difference([values], [np.full(prompts, 0.5)]).verdict == Verdict.BETTER
    return shown / draws


def prompts_for_ten_points():
    """How many prompts that say 0, 1/2 or 1 with shares .25, .3 and .45 detect ten points, which they show."""
    for n in range(50, 1000):
        lost, won = round(0.25 * n), round(0.45 * n)
        if detectable_effect(np.repeat([0.0, 0.5, 1.0], [lost, n - lost - won, won])) <= 0.1:
            return n
    raise AssertionError("never")


def test_ten_points_are_found_with_the_prompts_that_the_detectable_effect_names():
    n = prompts_for_ten_points()
    assert 140 <= n <= 146  # 130 by (z_.975 + z_.8) s / sqrt(n), whose power is 76 %
    assert power(0.2, n, 12) >= 7 / 12  # of which 8 in 10 are found; 0.2 in the difference is ten points of the rate


@pytest.mark.slow
def test_ten_points_are_found_as_often_as_the_detectable_effect_promises():
    found = power(0.2, prompts_for_ten_points(), 1000)
    print(found)
    assert found == pytest.approx(0.8, abs=0.035)  # not three standard errors


def test_the_power_of_the_detectable_effect_is_that_of_the_test():
    """Of prompts that all say 0 or 1 the sign-flip test is the binomial one, whose power is known exactly."""
    found = []
    for n in range(60, 400, 3):
        gain = 0.2
        for _ in range(8):  # the distance that is as large as what can be detected at it
            gain = detectable_coin(n, 0.5 + gain)
        least = n - stats.binom.ppf(0.025, n, 0.5) + 1
        found.append(stats.binom.sf(least - 1, n, 0.5 + gain))
    assert np.mean(found) == pytest.approx(0.8, abs=0.01)


def detectable_coin(n, chance):
    """Of n prompts that say 0 or 1, as near to that chance of a 1 as they can."""
    return detectable_effect((np.arange(n) < round(n * chance)).astype(float))


def test_the_detectable_effect_by_hand():
    level, power_of = 1.959964, 0.841621
    flat = np.array([0.3, 0.7] * 50)
    found, spread = detectable_effect(flat), flat.std(ddof=1)
    assert 10 * found == pytest.approx(level * math.hypot(spread, found) + power_of * spread, rel=1e-5)
    coins, spread = np.array([0.0, 1.0] * 50), 0.502519
    found = detectable_effect(coins) - 0.005
    assert 10 * found == pytest.approx(level * math.hypot(spread, found) + power_of * spread, rel=1e-5)
    assert detectable_effect(np.full(100, 0.6)) == pytest.approx(found, rel=0.01)  # the spread of a coin, no step
    assert [detectable_effect(np.ones(n)) for n in (1, 3, 4, 8)] == [0.5] * 4
