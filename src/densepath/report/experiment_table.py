"""The record of an experiment as terminal tables: each method at its own decoding, its verdicts, and warnings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from densepath.report import parse
from densepath.report.table import format_interval
from densepath.terminal import Table, plain_table

WIDE = 116
"""Columns of a terminal from which the differences to the best control, the length and the KL have room."""


def experiment_table(record: Mapping[str, Any], width: int = WIDE) -> Group:
    """For each setting its warnings, a table, and the verdicts on the methods under test.

    Every method stands at the decoding that did best on validation. An asterisk marks a mean that lacks seeds, an
    exclamation mark a length far from SFT's; the KL is that of the first decoding where it is measured. The other
    decodings, the costs and the plots stand on the page.

    Args:
        record: what `densepath.pipeline.results.assemble` made.
        width: columns of the terminal; below `WIDE` the table ends after the differences to SFT.
    """
    parts: list[RenderableType] = []
    control = {info["name"]: info["control"] for info in record["methods"]}
    for setting in record["settings"]:
        parts += [Text(f"warning: {line}", style="yellow") for line in setting["warnings"]]
        parts.append(_table(record, setting, wide=width >= WIDE))
        parts += [
            Text(one["text"], style="" if "ties" in one["text"] else "bold")
            for one in setting["statements"]
            if one["own_decoding"] and not control[one["method"]]
        ]
        parts.append(Text(""))
    return Group(*parts)


def _table(record: Mapping[str, Any], setting: Mapping[str, Any], *, wide: bool) -> Table:
    count = len(setting["seeds"])
    table = plain_table(f"{setting['name']} ({count} seed{'' if count == 1 else 's'})")
    table.add_column("method", overflow="fold", min_width=12)
    table.add_column("decoding", no_wrap=True)
    titles = (record["metric"], "less SFT", "", "less best control", "", "length", "KL")
    shown = titles if wide else titles[:3]
    for title in shown:
        table.add_column(Text(title), justify="left" if not title else "right", no_wrap=True)
    roles = {(one["method"], one["role"]): one for one in setting["comparisons"] if one["own_decoding"]}
    for method in dict.fromkeys(row["method"] for row in setting["rows"]):
        rows = [row for row in setting["rows"] if row["method"] == method]
        kl = next((row["kl"] for row in rows if row["kl"] is not None), None)
        row = next((row for row in rows if row["chosen"]), rows[0])
        cells = []
        for role in ("sft", "best control"):
            one = roles.get((row["method"], role))
            cells += ["-", ""] if one is None else [_short(one["difference"], signed=True), one["verdict"]]
        figures = [
            ("*" if row["missing_seeds"] else "") + _short(row["value"]).removeprefix("-"),
            *cells,
            "-" if row["length"] is None else f"{row['length']:.1f}{'!' if row['length_flag'] else ''}",
            "-" if kl is None else f"{kl:.2f}",
        ]
        table.add_row(
            Text(row["label"]),
            Text(row["decoding"].replace("temperature ", "T = ") if row["status"] != "missing" else "missing"),
            *figures[: len(shown)],
        )
    return table


def _short(value: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """An interval without the 0 before the point, so that a row fits."""
    return re.sub(r"(?<![0-9])0\.", ".", format_interval(parse.estimate(value), 3, signed=signed))
