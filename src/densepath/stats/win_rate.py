"""Win rates over prompts: ties are one half, repeats and orders are averaged first, the judge's chance is told apart.

Source: the frame is derived in docs/judging.md; the published figures of AlpacaEval are `alpaca_eval`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from densepath.records.estimates import LEVEL, Difference, verdict_of
from densepath.records.judged import AlpacaEval, JudgeNoise, LengthControlled, PositionBias, RateComparison, WinRate
from densepath.stats.bootstrap import credit_interval, value_interval
from densepath.stats.comparisons import corrected, holm
from densepath.stats.games import PairGames, mean_known
from densepath.stats.seeds import seed_difference

Floats = NDArray[np.float64]

POWER = 0.8
_TIE = 1e-12
"""Distance from one half within which a mean of preferences is a tie: means of thirds are not exact."""


def win_rate(
    games: PairGames, categories: Mapping[str, str] | None = None, lengths: Mapping[str, float] | None = None
) -> WinRate:
    """The win rate of one model, before any correction for others.

    Args:
        games: of the model.
        categories: question -> category; a question that it lacks is in none.
        lengths: question -> characters of the model's answer less those of the baseline's.

    Raises:
        ValueError: no prompt has a verdict in each of its orders.
    """
    values = games.by_prompt
    known = np.isfinite(values)
    if not known.any():
        raise ValueError(f"{games.model}: no prompt has a verdict in each order that was asked")
    kept = values[known]
    prompts = [prompt for prompt, fine in zip(games.prompts, known, strict=True) if fine]
    against_half = seed_difference([kept], [np.full(kept.size, 0.5)])
    wins, losses = int((kept > 0.5 + _TIE).sum()), int((kept < 0.5 - _TIE).sum())
    groups: dict[str, list[float]] = {}
    for prompt, value in zip(prompts, kept, strict=True):
        if categories is not None and prompt in categories:
            groups.setdefault(categories[prompt], []).append(float(value))
    spans = None if lengths is None else np.array([lengths[prompt] for prompt in prompts], dtype=np.float64)
    return WinRate(
        games.model,
        games.baseline,
        rate=credit_interval(kept),
        wins=wins,
        ties=kept.size - wins - losses,
        losses=losses,
        p=against_half.p,
        p_holm=against_half.p,
        verdict=against_half.verdict,
        detectable=detectable_effect(kept),
        length=None if spans is None else value_interval(spans),
        position=position_bias(games.by_order),
        noise=judge_noise(games.by_repeat[known]),
        invalid=games.invalid,
        dropped=int((~known).sum()),
        categories={name: credit_interval(np.array(of)) for name, of in sorted(groups.items())},
    )


def corrected_rates(rates: Sequence[WinRate]) -> tuple[WinRate, ...]:
    """The rates of models that were judged together, with Holm's correction for their number."""
    adjusted = holm([rate.p for rate in rates])
    return tuple(
        replace(rate, p_holm=p, verdict=verdict_of(p, rate.rate.mean - 0.5))
        for rate, p in zip(rates, adjusted, strict=True)
    )


def compare_models(games: Sequence[PairGames]) -> tuple[RateComparison, ...]:
    """Each model's win rate less that of each model after it, over the prompts of both, with Holm's correction.

    Models of different baselines, or without a prompt in common, are not compared.
    """
    pairs: list[tuple[str, str]] = []
    baselines: list[str] = []
    differences: list[Difference] = []
    for index, one in enumerate(games):
        mine = dict(zip(one.prompts, one.by_prompt, strict=True))
        for other in (each for each in games[index + 1 :] if each.baseline == one.baseline):
            theirs = dict(zip(other.prompts, other.by_prompt, strict=True))
            both = [(mine[key], theirs[key]) for key in mine if key in theirs]
            paired = np.array([pair for pair in both if np.isfinite(pair).all()])
            if paired.size:
                pairs.append((one.model, other.model))
                baselines.append(one.baseline)
                differences.append(seed_difference([paired[:, 0]], [paired[:, 1]]))
    found = zip(corrected(pairs, differences), baselines, strict=True)
    return tuple(RateComparison(**vars(each), baseline=baseline) for each, baseline in found)


def detectable_effect(values: Floats) -> float:
    """Least distance from one half that as many prompts with that spread show, at 5 % with a power of 80 %.

    The sign-flip test measures a mean against the spread about one half, which the distance d is a part of, so that

        sqrt(n) d = z_.975 sqrt(s^2 + d^2) + z_.8 s

    Where every prompt says 0, one half or 1, the sums that the flips can have lie 1 apart, and the test waits for the
    next one: it needs 1 / (2n) more on average. 1/2, the most that there is, where the prompts are too few.

    The spread s of fewer than two prompts, or of prompts that all say the same, is taken as that of a coin: 1/2.
    """
    n = values.size
    spread = (float(values.std(ddof=1)) if n > 1 else 0.0) or 0.5
    level, power = float(stats.norm.ppf(1 - LEVEL / 2)), float(stats.norm.ppf(POWER))
    if n <= level**2:
        return 0.5
    root = level * math.sqrt(n + power**2 - level**2)
    distance = spread * (power * math.sqrt(n) + root) / (n - level**2)
    step = 0.5 / n if np.isin(values, (0.0, 0.5, 1.0)).all() else 0.0
    return min(0.5, distance + step)


def position_bias(orders: Floats, units: NDArray[np.int64] | None = None) -> PositionBias | None:
    """How far the judge goes by the place, from pairs with a verdict in both orders; None where there is none.

    Args:
        orders: (pairs, 2) preference for the model: shown first, shown second.
        units: (pairs,) what each pair is of, such as its prompt; those of one unit are averaged, since they are not
            independent. None: each is its own.
    """
    known = np.isfinite(orders).all(axis=1)
    if not known.any():
        return None
    first, second = orders[known, 0], 1 - orders[known, 1]  # each is a preference for what was shown first
    figures = ((first - 0.5) * (second - 0.5) > 0).astype(np.float64), (first + second) / 2
    if units is not None:
        _, place, counts = np.unique(units[known], return_inverse=True, return_counts=True)
        figures = np.bincount(place, figures[0]) / counts, np.bincount(place, figures[1]) / counts
    return PositionBias(*map(credit_interval, figures))


def judge_noise(by_repeat: Floats) -> JudgeNoise | None:
    """The two sources of a win rate's standard error; None where no prompt was judged twice.

        of_judge^2   = mean over prompts of [ variance over repeats / repeats ] / n
        total^2      = variance of the prompts' means / n
        of_prompts^2 = total^2 - of_judge^2, at least 0

    Args:
        by_repeat: (prompts, repeats) preference, both orders averaged; NaN where there is none.
    """
    known = np.isfinite(by_repeat)
    counts = known.sum(axis=1)
    twice = counts > 1  # the noise of what was judged once is unknown
    if not twice.any():
        return None
    means = mean_known(by_repeat)
    squares = np.where(known, (by_repeat - means[:, None]) ** 2, 0.0).sum(axis=1)[twice]
    n = len(by_repeat)
    of_judge = float((squares / (counts[twice] - 1) / counts[twice]).mean()) / n
    total = max(of_judge, float(means.var(ddof=1)) / n if n > 1 else 0.0)
    return JudgeNoise(int(counts.max()), math.sqrt(of_judge), math.sqrt(total - of_judge), math.sqrt(total))


def alpaca_eval(model: str, preferences: Floats, length: LengthControlled | None = None) -> AlpacaEval:
    """AlpacaEval's own figures, which ignore that prompts without a verdict may be special.

    Args:
        model: its name.
        preferences: (n,) for the model, from 0 to 1 (theirs less 1, and their stored 0 as 1/2); NaN is passed over.
        length: the rate at equal lengths.

    Raises:
        ValueError: no preference is known.
    """
    known = preferences[np.isfinite(preferences)]
    if not known.size:
        raise ValueError(f"{model}: no preference is known")
    error = float(known.std(ddof=1)) / math.sqrt(known.size) if known.size > 1 else 0.0
    discrete = np.where(known == 0.5, 0.5, known > 0.5).mean()
    return AlpacaEval(model, float(known.mean()), error, float(discrete), known.size, length)
