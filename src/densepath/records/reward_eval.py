"""How well the reward agrees with labels: what `densepath reward-eval` writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from densepath.records.brief import brief
from densepath.records.estimates import Comparison, Interval


@dataclass(frozen=True)
class MeasureValue:
    """One measure's statistic.

    Attributes:
        name: a signal and how its tokens became one number, as `reward/mean`; or a baseline, as `shorter`.
        value: with its 95 % interval over rows.
        ties: rows in which it could not decide; None where nothing is decided row by row.
        groups: grouping (`category` and others) -> group -> value.
    """

    name: str
    value: Interval
    ties: int | None = None
    groups: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """One statistic of all measures.

    Attributes:
        name: `accuracy`, `lowest_step`, `auroc_step`, `auroc_token`, `auroc_row`, `lowest_token` or `rank_of_token`.
        description: what it counts, and over what.
        chance: what guessing earns on average.
        measures: the reward's first.
        comparisons: the reward under the chosen aggregation against every other measure, paired over rows.
        statement: the comparisons in words.
    """

    name: str
    description: str
    chance: float
    measures: tuple[MeasureValue, ...]
    comparisons: tuple[Comparison, ...]
    statement: str

    __repr__ = brief


@dataclass(frozen=True)
class SetAside:
    """A row that says nothing.

    Attributes:
        row: its number, from 1.
        reason: equal twins, steps that share a token, longer than the context.
    """

    row: int
    reason: str


@dataclass(frozen=True)
class Changes:
    """How a signal changes where one number is altered, altered less original; nothing changes before it.

    Attributes:
        at: at the altered token, nats.
        next: at the token right after, nats.
        after: mean over all later tokens, nats per token.
        after_size: their mean size, nats per token.
    """

    at: Interval
    next: Interval
    after: Interval
    after_size: Interval


@dataclass(frozen=True)
class RewardEvaluation:
    """The whole evaluation.

    Attributes:
        task: what was asked: `preference`, `first_error` or `altered_numbers`.
        rows: that were used.
        set_aside: rows that say nothing.
        aggregation: the one that is compared with the baselines.
        seed: of the draw, the altered digits and the bootstrap.
        reward: the reading of the models.
        interval: how intervals and verdicts are made.
        figures: one statistic each.
        changes: signal -> its changes, of altered numbers; None for the other tasks.
    """

    task: str
    rows: int
    set_aside: tuple[SetAside, ...]
    aggregation: str
    seed: int
    reward: str
    interval: str
    figures: tuple[Figure, ...]
    changes: Mapping[str, Changes] | None = None

    __repr__ = brief
