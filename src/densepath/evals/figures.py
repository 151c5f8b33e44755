"""A figure of an evaluation: one statistic of every measure, with intervals and the reward against the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densepath.evals.auroc import auroc, auroc_replicates
from densepath.evals.signals import Floats
from densepath.records.codec import to_json
from densepath.records.estimates import Comparison, Interval, Verdict
from densepath.stats.bootstrap import credit_interval, mean_replicates, replicate_interval
from densepath.stats.comparisons import compare

Groupings = Mapping[str, Sequence[str]]
"""Name of a grouping, for example "category" -> the group of each row."""


@dataclass(frozen=True)
class MeasureValue:
    """One measure's statistic.

    Attributes:
        name: of the measure.
        value: with its 95 % interval over rows.
        ties: rows in which it could not decide; None where nothing is decided row by row.
        groups: grouping -> group -> value.
    """

    name: str
    value: Interval
    ties: int | None = None
    groups: dict[str, dict[str, Interval]] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """One statistic of all measures.

    Attributes:
        name: for example `accuracy`.
        description: what it counts, and over what.
        chance: what guessing earns on average.
        measures: the reward's first.
        comparisons: the reward under the chosen aggregation against every other measure.
    """

    name: str
    description: str
    chance: float
    measures: tuple[MeasureValue, ...]
    comparisons: tuple[Comparison, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        measures = [
            {
                "name": measure.name,
                "value": to_json(measure.value),
                "ties": measure.ties,
                "groups": {
                    grouping: {group: to_json(interval) for group, interval in found.items()}
                    for grouping, found in measure.groups.items()
                },
            }
            for measure in self.measures
        ]
        return {
            "name": self.name,
            "description": self.description,
            "chance": self.chance,
            "measures": measures,
            "comparisons": [to_json(comparison) for comparison in self.comparisons],
            "statement": statement(self),
        }


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
    return Figure(name, description, chance, measures, tuple(compare(primary, means, by_name, rows)))


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
    return Figure(name, description, 0.5, tuple(measures), tuple(compare(primary, values, replicates, n)))


def statement(figure: Figure) -> str:
    """Which differences are shown, in words."""
    if not figure.comparisons:
        return ""
    primary = figure.comparisons[0].measure
    mine = next(measure.value for measure in figure.measures if measure.name == primary)
    parts = [f"{figure.name} of {primary}: {mine.mean:.3f} [{mine.low:.3f}, {mine.high:.3f}]"]
    for verdict, words in (
        (Verdict.BETTER, "better than"),
        (Verdict.WORSE, "worse than"),
        (Verdict.TIE, "no difference shown to"),
    ):
        names = [one.against for one in figure.comparisons if one.verdict is verdict]
        if names:
            parts.append(f"{words} {', '.join(names)}")
    return "; ".join(parts)


def _groups(labels: Sequence[str]) -> list[tuple[str, NDArray[np.int64]]]:
    """Rows of each group, in ascending order, groups in their order of appearance."""
    array = np.asarray(labels)
    return [(group, np.flatnonzero(array == group)) for group in dict.fromkeys(labels)]
