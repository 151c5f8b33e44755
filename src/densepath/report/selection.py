"""The record of `densepath select` as a terminal table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from densepath.report import parse
from densepath.report.table import format_interval
from densepath.terminal import Table, plain_table


def selection_table(record: Mapping[str, Any]) -> Table:
    """One row a reference, one column a criterion; the best of each column is marked."""
    criteria = list(record["best_by"])
    table = plain_table()
    table.add_column("reference", no_wrap=True)
    for name in criteria:
        table.add_column(Text(f"{name}\n{record['units'][name]}"), justify="right", no_wrap=True)
    for candidate in record["candidates"]:
        cells = []
        for name in criteria:
            best = record["best_by"][name] == candidate["reference"]
            value = format_interval(parse.estimate(candidate["criteria"][name]["value"]), 2)
            cells.append(Text(value + (" *" if best else "  "), style="bold" if best else ""))
        table.add_row(Text(candidate["reference"]), *cells)
    return table
