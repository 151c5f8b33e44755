"""The records of `densepath audit` as a terminal table and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from densepath.report.document import Column, Row, Table
from densepath.report.heatmap import quoted
from densepath.report.scored_row import scored_row
from densepath.report.view import ScoreView
from densepath.report.words import DASH, number

_QUOTE = 40


def audit_table(records: Sequence[Mapping[str, Any]], count: int) -> Table:
    """The worst rows: number, reward per token, lowest token, the worst span with its reward, and flags."""
    columns = (
        *(Column(name, numeric=True) for name in ("row", "per token", "lowest")),
        Column("worst span"),
        Column("nats", numeric=True),
        Column("flags", fold=True),
    )
    rows = []
    for record in records[:count]:
        figures = (str(record["row"]), number(record["reward_per_token"], "+.3f"), number(record["lowest"], "+.2f"))
        worst = record["worst_spans"][0] if record["worst_spans"] else None
        span = (DASH, DASH) if worst is None else (quoted(worst["text"], _QUOTE), number(worst["reward"], "+.2f"))
        rows.append(Row((*figures, *span, flags_text(record))))
    return Table(columns, tuple(rows))


def flags_text(record: Mapping[str, Any]) -> str:
    """The flags of a record in words.

    >>> flags_text({"flags": [{"flag": "duplicate", "of": 3}]})
    'duplicate of row 3'
    """
    words = []
    for flag in record["flags"]:
        name = str(flag["flag"]).replace("_", " ")
        words.append(f"{name} of row {flag['of']}" if "of" in flag else name)
    return ", ".join(words)


def audit_view(records: Sequence[Mapping[str, Any]], count: int, facts: Sequence[tuple[str, str]]) -> ScoreView:
    """The worst rows as a page; the flags stand where a row's category does."""
    rows = []
    for record in records[:count]:
        value = {**record, "category": flags_text(record) or record["category"]}
        rows.append(scored_row(value, record["row"], "audit"))
    return ScoreView(rows=tuple(rows), title="audit", facts=tuple(facts), total=len(records))
