"""The record of `densepath reward-eval` as terminal tables: each measure, and the reward's lead over it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from densepath.report import parse
from densepath.report.table import format_interval
from densepath.terminal import Table, plain_table

GROUPS_SHOWN = 12
"""Groups of one grouping in the terminal; the file holds all."""


def reward_eval_tables(record: Mapping[str, Any]) -> Iterator[Table | Text]:
    """A table and a statement for each figure, then the reward within groups, and what an altered number changes."""
    for figure in record["figures"]:
        yield _figure_table(figure)
        yield Text(figure["statement"] + "\n")
    for figure in record["figures"]:
        table = _groups_table(figure)
        if table is not None:
            yield table
    if "changes" in record:
        yield _changes_table(record["changes"])


def _table(title: str, *columns: str) -> Table:
    table = plain_table(title)
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _share(value: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """Shares and their differences without the 0 before the point, so that a row fits 80 columns."""
    return re.sub(r"(?<![0-9])0\.", ".", format_interval(parse.estimate(value), 3, signed=signed))


def _figure_table(figure: Mapping[str, Any]) -> Table:
    against = {one["against"]: one for one in figure["comparisons"]}
    primary = next((one["measure"] for one in figure["comparisons"]), "reward")
    n = figure["measures"][0]["value"]["n"]
    table = _table(
        f"{figure['name']}: {figure['description']} ({n} rows)",
        "measure",
        figure["name"],
        "ties",
        f"lead of {primary}",
        "p",
        "",
    )
    for measure in figure["measures"]:
        one = against.get(measure["name"])
        table.add_row(
            Text(measure["name"], style="bold" if measure["name"] == primary else ""),
            _share(measure["value"]),
            "-" if measure["ties"] is None else str(measure["ties"]),
            "-" if one is None else _share(one["difference"], signed=True),
            "-" if one is None else f"{one['p_holm']:.3f}".lstrip("0"),
            "" if one is None else one["verdict"],
        )
    return table


def _groups_table(figure: Mapping[str, Any]) -> Table | None:
    """The compared measure and the best baseline on average, within each group."""
    if not figure["comparisons"]:
        return None
    primary = figure["comparisons"][0]["measure"]
    measures = {measure["name"]: measure for measure in figure["measures"]}
    rivals = [name for name in measures if not name.startswith("reward")]
    rival = max(rivals, key=lambda name: measures[name]["value"]["mean"])
    table = _table(f"{figure['name']} within groups", "group", "rows", primary, f"{rival} (best other)")
    for grouping, groups in measures[primary]["groups"].items():
        if len(groups) < 2:
            continue
        for group, value in list(groups.items())[:GROUPS_SHOWN]:
            other = measures[rival]["groups"].get(grouping, {}).get(group)
            table.add_row(Text(group), str(value["n"]), _share(value), _share(other))
    return table if table.row_count else None


def _changes_table(changes: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table(
        "change of each signal where the number was altered, and after it (nats; before it nothing changes)",
        "signal",
        "altered token",
        "next token",
        "later, mean",
        "mean size",
    )
    for name, columns in changes.items():
        cells = [
            format_interval(parse.estimate(columns[column]), 2, signed=column != "after_size")
            for column in ("at", "next", "after", "after_size")
        ]
        table.add_row(Text(name), *cells)
    return table
