"""A figure of an evaluation: one statistic of every measure, with intervals and the reward against the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from densepath.evals.auroc import auroc, auroc_replicates
from densepath.evals.signals import Floats
from densepath.records.estimates import Comparison, Interval, Verdict
from densepath.records.reward_eval import Figure, MeasureValue
from densepath.stats.bootstrap import credit_interval, mean_replicates, replicate_interval
from densepath.stats.comparisons import compare

Groupings = Mapping[str, Sequence[str]]
"""Name of a grouping, for example "category" -> the group of each row."""


def credit_figure(
    name: str,
    description: str,
    credits: Mapping[str, Floats],
    *,
    primary: str,
    chance: float,
    decides: bool = True,
    groupings: Groupings | None = None,
    seed: int = 0,
) -> Figure:
    """Mean credit of each measure over rows: 1 right, 0 wrong, a share where several tie.

    Args:
        name: of the figure.
        description: what it counts.
        credits: measure -> (rows,) credits.
        primary: the measure that is compared with the others.
        chance: what guessing earns on average.
        decides: a credit between 0 and 1 is a tie; False where credits are shares.
        groupings: further means within groups of rows.
        seed: of the bootstrap.
    """
    rows = len(credits[primary])
    replicates = mean_replicates(np.stack(list(credits.values())), seed=seed)
    by_name = {measure: replicates[:, column] for column, measure in enumerate(credits)}
    measures = tuple(
        MeasureValue(
            measure,
            credit_interval(values, seed),
            int(((values > 0) & (values < 1)).sum()) if decides else None,
            {
                grouping: {group: credit_interval(values[members], seed) for group, members in _groups(labels)}
                for grouping, labels in (groupings or {}).items()
            },
        )
        for measure, values in credits.items()
    )
    means = {measure: float(values.mean()) for measure, values in credits.items()}
    return _figure(name, description, chance, measures, compare(primary, means, by_name, rows))


def auroc_figure(
    name: str,
    description: str,
    scores: Mapping[str, Floats],
    wrong: NDArray[np.bool_],
    rows: NDArray[np.int64],
    n: int,
    *,
    primary: str,
    groupings: Groupings | None = None,
    seed: int = 0,
) -> Figure | None:
    """AUROC with which low scores point out what is wrong; bootstrap over rows. None where nothing or all is wrong.

    Args:
        name: of the figure.
        description: what is told from what.
        scores: measure -> (items,) scores, higher is better.
        wrong: (items,) bool, True = to be pointed out.
        rows: (items,) int, the row of each item.
        n: rows.
        primary: the measure that is compared with the others.
        groupings: further AUROCs within groups of rows; a group without both kinds is left out.
        seed: of the bootstrap.
    """
    if wrong.all() or not wrong.any():
        return None
    values, replicates = {}, {}
    for measure, found in scores.items():
        values[measure] = auroc(-found, wrong)
        replicates[measure] = auroc_replicates(-found, wrong, rows, n, seed=seed)
    measures = []
    for measure, found in scores.items():
        groups: dict[str, dict[str, Interval]] = {}
        for grouping, labels in (groupings or {}).items():
            inside = groups[grouping] = {}
            for group, members in _groups(labels):
                chosen = np.isin(rows, members)
                mine = wrong[chosen]
                if mine.all() or not mine.any():
                    continue
                again = np.searchsorted(members, rows[chosen])
                spread = auroc_replicates(-found[chosen], mine, again, len(members), seed=seed)
                inside[group] = replicate_interval(auroc(-found[chosen], mine), spread, len(members))
        measures.append(
            MeasureValue(measure, replicate_interval(values[measure], replicates[measure], n), None, groups)
        )
    return _figure(name, description, 0.5, measures, compare(primary, values, replicates, n))


def _figure(
    name: str,
    description: str,
    chance: float,
    measures: Sequence[MeasureValue],
    comparisons: Sequence[Comparison],
) -> Figure:
    """With its statement."""
    said = _statement(name, measures, comparisons)
    return Figure(name, description, chance, tuple(measures), tuple(comparisons), said)


def _statement(figure: str, measures: Sequence[MeasureValue], comparisons: Sequence[Comparison]) -> str:
    """Which differences are shown, in words."""
    if not comparisons:
        return ""
    primary = comparisons[0].measure
    mine = next(measure.value for measure in measures if measure.name == primary)
    parts = [f"{figure} of {primary}: {mine.mean:.3f} [{mine.low:.3f}, {mine.high:.3f}]"]
    for verdict, words in (
        (Verdict.BETTER, "better than"),
        (Verdict.WORSE, "worse than"),
        (Verdict.TIE, "no difference shown to"),
    ):
        names = [one.against for one in comparisons if one.verdict is verdict]
        if names:
            parts.append(f"{words} {', '.join(names)}")
    return "; ".join(parts)


def _groups(labels: Sequence[str]) -> list[tuple[str, NDArray[np.int64]]]:
    """Rows of each group, in ascending order, groups in their order of appearance."""
    array = np.asarray(labels)
    return [(group, np.flatnonzero(array == group)) for group in dict.fromkeys(labels)]
