"""MT-Bench's figures: mean grades over all turns, and its pairwise form.

Source: Zheng et al., Judging LLM-as-a-Judge (2306.05685), and FastChat's `show_result.py`; their figures have no
interval. Both turns of a question, and its repeats, are one unit here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from densepath.records.estimates import Interval
from densepath.records.judged import AdjustedWinRate, MtBench
from densepath.records.judging import Game
from densepath.stats.bootstrap import ratio_interval, value_interval
from densepath.stats.games import pair_turns

Floats = NDArray[np.float64]


def mt_bench(games: Sequence[Game], model: str, categories: Mapping[str, str]) -> MtBench:
    """Mean grades of one model; an answer's repeats are averaged first, and answers without a grade left out.

    Args:
        games: of any models, graded one by one.
        model: its name.
        categories: question -> category.

    Raises:
        ValueError: none of its answers has a grade.
    """
    mine = [game for game in games if game.model == model and game.baseline is None]
    questions = list(dict.fromkeys(game.question for game in mine))
    turns = sorted({game.turn for game in mine})
    grades: dict[tuple[str, int], list[float]] = {}
    for game in mine:
        found = grades.setdefault((game.question, game.turn), [])
        if game.judgement.grade is not None:
            found.append(game.judgement.grade)
    table = np.array([[_mean(grades.get((question, turn), [])) for turn in turns] for question in questions])
    known = np.isfinite(table)
    if not known.any():
        raise ValueError(f"{model}: none of its answers has a grade")
    kinds = np.array([categories[question] for question in questions])
    return MtBench(
        model,
        _mean_over(table),
        tuple(value_interval(column[np.isfinite(column)]) for column in table.T if np.isfinite(column).any()),
        {str(kind): _mean_over(table[kinds == kind]) for kind in sorted(set(kinds)) if known[kinds == kind].any()},
        sum(1 for found in grades.values() if not found),
    )


def _mean(grades: Sequence[float]) -> float:
    return float(np.mean(grades)) if grades else float("nan")


def _mean_over(table: Floats) -> Interval:
    """Mean over all answers, (questions, turns) with NaN where there is none, with questions as units."""
    known = np.isfinite(table)
    some = known.any(axis=1)
    sums, counts = np.where(known, table, 0.0).sum(axis=1)[some], known.sum(axis=1)[some].astype(np.float64)
    return ratio_interval(sums, counts)


def adjusted_win_rate(games: Sequence[Game], model: str, baseline: str) -> AdjustedWinRate:
    """MT-Bench's pairwise form: each turn is a game, and it is won by who wins it in both orders.

    Args:
        games: of any models; the two's in both orders. Of repeats the first counts.
        model: its name.
        baseline: its name.

    Raises:
        ValueError: no turn has a verdict in both orders.
    """
    preferences, seen = pair_turns(games, model, baseline)
    values, asked = preferences[:, :, 0], seen[:, :, 0]  # (questions, 2, turns) of the first repeat
    known = np.asarray(np.isfinite(values).all(axis=1))
    if not known.any():
        raise ValueError(f"{model} against {baseline}: no turn has a verdict in both orders")
    sides = np.sign(values - 0.5)
    agreed = np.where(known & (sides[:, 0] == sides[:, 1]), sides[:, 0], 0.0)
    credits = np.where(known, (agreed + 1) / 2, 0.0)
    some = known.any(axis=1)
    rate = ratio_interval(credits.sum(axis=1)[some], known.sum(axis=1)[some].astype(np.float64))
    wins, losses = int((agreed > 0).sum()), int((agreed < 0).sum())
    return AdjustedWinRate(
        model,
        baseline,
        rate,
        wins,
        int(known.sum()) - wins - losses,
        losses,
        int(((asked.sum(axis=1) > 0) & ~known).sum()),
    )
