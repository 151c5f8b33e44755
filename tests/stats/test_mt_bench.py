"""MT-Bench's means and its pairwise form by hand."""

from __future__ import annotations

import pytest
from tests.judged_games import game, grade

from densepath.stats.mt_bench import adjusted_win_rate, mt_bench

KINDS = {"81": "writing", "82": "writing", "111": "math"}


def test_means_by_hand():
    games = [
        grade("81", 8, turn=1),
        grade("81", 6, turn=2),
        grade("82", 9, turn=1),
        grade("82", None, turn=2),
        grade("111", 3, turn=1),
        grade("111", 5, turn=1, repeat=1),
        grade("111", None, turn=2),
        grade("111", 2, turn=2, repeat=1),
        grade("81", 1, turn=1, model="other"),
    ]
    found = mt_bench(games, "m", KINDS)
    assert found.mean.mean == pytest.approx((8 + 6 + 9 + 4 + 2) / 5)
    assert found.mean.n == 3
    assert [turn.mean for turn in found.turns] == [pytest.approx(7.0), pytest.approx(4.0)]
    assert {name: each.mean for name, each in found.categories.items()} == {
        "math": 3.0,
        "writing": pytest.approx(23 / 3),
    }
    assert found.invalid == 1
    assert found.mean.low <= found.mean.mean <= found.mean.high
    with pytest.raises(ValueError, match="none of its answers has a grade"):
        mt_bench([grade("81", None)], "m", KINDS)


def test_the_pairwise_form_by_hand():
    rows = [
        ("81", 1, ">", "<"),  # won in both orders
        ("81", 2, ">", ">"),  # another winner in each: a tie
        ("82", 1, ">", "="),  # a tie in one order is a tie
        ("82", 2, "<<", ">>"),  # lost in both
        ("111", 1, None, "<"),  # not known
        ("111", 2, "=", "="),
    ]
    games = [game(q, said, turn=turn) for q, turn, said, _ in rows]
    games += [game(q, said, turn=turn, switched=True) for q, turn, _, said in rows]
    found = adjusted_win_rate(games, "m", "b")
    assert (found.wins, found.ties, found.losses, found.invalid) == (1, 3, 1, 1)
    assert found.rate.mean == pytest.approx((1 + 3 / 2) / 5)
    with pytest.raises(ValueError, match="no turn has a verdict in both orders"):
        adjusted_win_rate(games[:1], "m", "b")
