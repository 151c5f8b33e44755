"""What `densepath reward-eval` found as tables: each measure, and the reward's lead over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from densepath.records.estimates import Comparison, Interval
from densepath.records.reward_eval import Changes, RewardEvaluation
from densepath.records.reward_eval import Figure as Evaluated
from densepath.report.document import Column, Paragraph, Part, Row, Table, present
from densepath.report.words import DASH, Run, Words, interval, number, short

GROUPS_SHOWN = 12
"""Groups of one grouping in the terminal; the file holds all."""


def reward_eval_parts(found: RewardEvaluation) -> tuple[Part, ...]:
    """A table and a statement for each figure, then the reward within groups, and what an altered number changes."""
    return present([*figure_parts(found.figures), _changes_table(found.changes) if found.changes else None])


def figure_parts(figures: Sequence[Evaluated]) -> tuple[Part, ...]:
    """A table and a statement for each figure, then the compared measure within groups."""
    parts: list[Part | None] = []
    for figure in figures:
        parts += [_figure_table(figure), Paragraph(figure.statement + "\n")]
    return present([*parts, *map(_groups_table, figures)])


def _columns(first: str, *others: str) -> tuple[Column, ...]:
    return (Column(first), *(Column(name, numeric=True) for name in others))


def _share(value: Interval | None, *, signed: bool = False) -> str:
    return short(interval(value, signed=signed))


def _figure_table(figure: Evaluated) -> Table:
    against = {one.against: one for one in figure.comparisons}
    primary = next((one.measure for one in figure.comparisons), "reward")
    rows = []
    for measure in figure.measures:
        one = against.get(measure.name)
        cells: list[Words] = [Run(measure.name, "bold" if measure.name == primary else "")]
        cells += [_share(measure.value), DASH if measure.ties is None else str(measure.ties)]
        cells += [DASH, DASH, ""] if one is None else [_share(one.difference, signed=True), _p(one), one.verdict.value]
        rows.append(Row(tuple(cells)))
    title = f"{figure.name}: {figure.description} ({figure.measures[0].value.n} rows)"
    columns = _columns("measure", figure.name, "ties", f"lead of {primary}", "p", "")
    return Table(columns, tuple(rows), title)


def _p(one: Comparison) -> str:
    return number(one.p_holm).lstrip("0")


def _groups_table(figure: Evaluated) -> Table | None:
    """The compared measure and the best baseline on average, within each group."""
    if not figure.comparisons:
        return None
    primary = figure.comparisons[0].measure
    measures = {measure.name: measure for measure in figure.measures}
    rivals = [name for name in measures if name != primary and not name.startswith("reward")]
    rival = max(rivals, key=lambda name: measures[name].value.mean)
    rows = []
    for grouping, groups in measures[primary].groups.items():
        if len(groups) < 2:
            continue
        for group, value in list(groups.items())[:GROUPS_SHOWN]:
            other = measures[rival].groups.get(grouping, {}).get(group)
            rows.append(Row((group, str(value.n), _share(value), _share(other))))
    columns = _columns("group", "rows", primary, f"{rival} (best other)")
    return Table(columns, tuple(rows), f"{figure.name} within groups") if rows else None


def _changes_table(changes: Mapping[str, Changes]) -> Table:
    title = "change of each signal where the number was altered, and after it (nats; before it nothing changes)"
    rows = []
    for name, change in changes.items():
        figures = (
            interval(getattr(change, column), 2, signed=column != "after_size")
            for column in ("at", "next", "after", "after_size")
        )
        rows.append(Row((name, *figures)))
    return Table(_columns("signal", "altered token", "next token", "later, mean", "mean size"), tuple(rows), title)
