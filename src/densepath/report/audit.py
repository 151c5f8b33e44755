"""The records of `densepath audit` as a terminal table and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from densepath.report.heatmap import shown
from densepath.report.scored_row import scored_row
from densepath.report.text import visible
from densepath.report.view import ScoreView
from densepath.terminal import Table, plain_table

_QUOTE = 40


def audit_table(records: Sequence[Mapping[str, Any]], count: int) -> Table:
    """The worst rows: number, reward per token, lowest token, the worst span with its reward, and flags."""
    table = plain_table()
    for name in ("row", "per token", "lowest"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("worst span", overflow="ellipsis", no_wrap=True)
    table.add_column("nats", justify="right", no_wrap=True)
    table.add_column("flags", overflow="fold")
    for record in records[:count]:
        worst = record["worst_spans"][0] if record["worst_spans"] else None
        table.add_row(
            str(record["row"]),
            f"{record['reward_per_token']:+.3f}",
            f"{record['lowest']:+.2f}",
            Text("-" if worst is None else _quote(worst["text"])),
            "-" if worst is None else f"{worst['reward']:+.2f}",
            Text(flags_text(record)),
        )
    return table


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


def _quote(text: str) -> str:
    quote = visible(shown(text)) or "∅"
    return quote if len(quote) <= _QUOTE else quote[: _QUOTE - 1] + "…"
