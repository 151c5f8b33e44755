"""The record of `densepath select` as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from densepath.report import parse
from densepath.report.document import Column, Row, Table
from densepath.report.words import Run, Words, interval_text


def selection_table(record: Mapping[str, Any]) -> Table:
    """One row a reference, one column a criterion; the best of each column is marked."""
    criteria = list(record["best_by"])
    columns = (Column("reference"), *(Column(name, record["units"][name], numeric=True) for name in criteria))
    rows = []
    for candidate in record["candidates"]:
        cells: list[Words] = [candidate["reference"]]
        for name in criteria:
            best = record["best_by"][name] == candidate["reference"]
            value = interval_text(parse.estimate(candidate["criteria"][name]["value"]), 2)
            cells.append(Run(value + (" *" if best else "  "), "bold" if best else ""))
        rows.append(Row(tuple(cells)))
    return Table(columns, tuple(rows))
