"""The records of `densepath audit` as a terminal table and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from densepath.report.document import Column, Row, Table
from densepath.report.heatmap import quoted
from densepath.report.next_step import after_audit
from densepath.report.scored_row import scored_row
from densepath.report.text import visible
from densepath.report.view import ScoreView
from densepath.report.words import DASH, Run, Words, nats

_QUOTE, _AROUND = 40, 30
"""Characters of a span, and on either side of it."""


def audit_table(records: Sequence[Mapping[str, Any]], count: int) -> Table:
    """The worst rows: number, reward per token, lowest token, the worst span with its line and reward, and flags."""
    columns = (
        *(Column(name, numeric=True) for name in ("row", "per token", "lowest")),
        Column("worst span in its line", fold=True),
        Column("nats", numeric=True),
        Column("flags", fold=True),
    )
    rows = []
    for record in records[:count]:
        figures = (str(record["row"]), nats(record["reward_per_token"], "+.3f"), nats(record["lowest"]))
        worst = record["worst_spans"][0] if record["worst_spans"] else None
        span: tuple[Words, Words] = (DASH, DASH)
        if worst is not None:
            span = (span_in_line(record, worst), nats(worst["reward"]))
        rows.append(Row((*figures, *span, flags_text(record))))
    return Table(columns, tuple(rows))


def span_in_line(record: Mapping[str, Any], span: Mapping[str, Any]) -> Words:
    """A span of a record in brackets, with what stands around it in the answer."""
    turn = record["turns"][span["turn"]]
    start, end = turn["offsets"][span["start"]][0], turn["offsets"][span["end"] - 1][1]
    before, after = (visible(text).replace("\n", "↵") for text in (turn["text"][:start], turn["text"][end:]))
    head = before if len(before) <= _AROUND else "…" + before[1 - _AROUND :]
    tail = after if len(after) <= _AROUND else after[: _AROUND - 1] + "…"
    return (head, Run(f"[{quoted(span['text'], _QUOTE)}]", "bold"), tail)


def flags_text(record: Mapping[str, Any]) -> str:
    """The flags of a record in words."""
    return ", ".join(map(flag_text, record["flags"]))


def flag_text(flag: Mapping[str, Any]) -> str:
    """A flag in words.

    >>> flag_text({"flag": "near_duplicate", "of": 3})
    'near duplicate of row 3'
    """
    name = str(flag["flag"]).replace("_", " ")
    return f"{name} of row {flag['of']}" if "of" in flag else name


def audit_view(records: Sequence[Mapping[str, Any]], count: int, facts: Sequence[tuple[str, str]]) -> ScoreView:
    """The worst rows as a page; the flags stand where a row's category does."""
    rows = []
    for record in records[:count]:
        value = {**record, "category": flags_text(record) or record["category"]}
        rows.append(scored_row(value, record["row"], "audit"))
    return ScoreView(rows=tuple(rows), title="audit", facts=tuple(facts), total=len(records), next=after_audit(facts))
