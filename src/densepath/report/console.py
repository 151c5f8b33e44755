"""Parts of a document in the terminal; what needs a page to be seen is left out."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from itertools import groupby

from rich.console import Group, RenderableType
from rich.text import Text

from densepath.report.document import Next, Notice, Paragraph, Table
from densepath.report.text import visible
from densepath.report.words import DASH, MINUS, Words, runs
from densepath.terminal import Console, plain_table, show

_STYLES = {"bold": "bold", "better": "bold green", "worse": "bold red"}


def print_parts(console: Console, *parts: object) -> None:
    """Print parts one below the other."""
    show(console, parts_text(parts))


def parts_text(parts: Iterable[object]) -> Group:
    """Parts one below the other."""
    return Group(*map(part_text, parts))


@functools.singledispatch
def part_text(part: object) -> RenderableType:
    """A part as something that rich prints: its title and what it holds, where it has no form of its own here."""
    title = getattr(part, "title", "") if hasattr(part, "parts") else getattr(part, "text", "")
    return Group(*([Text(visible(title), style="bold")] if title else []), *map(part_text, getattr(part, "parts", ())))


def _plain(words: Words, *, numeric: bool = False, style: str = "") -> Text:
    text = Text(style=style)
    for run in runs(words):
        shown = run.text.replace(MINUS, "-").replace(DASH, "-") if numeric else run.text
        text.append(visible(shown), style=_STYLES.get(run.style, ""))
    return text


@part_text.register
def _paragraph(part: Paragraph) -> RenderableType:
    return _plain(part.words)


@part_text.register
def _next(part: Next) -> RenderableType:
    return Group(Text(f"next: {visible(part.text)}"), Text(f"    {visible(part.command)}", style="bold"))


@part_text.register
def _notice(part: Notice) -> RenderableType:
    """`- ` before each sentence of a verdict, and `warning: ` in yellow before a warning."""
    if part.kind == "warnings":
        return Group(*(Text("warning: ", style="yellow").append_text(_plain(line)) for line in part.lines))
    lines = (Text("- ").append_text(_plain(line)) for line in part.lines)
    return Group(Text(part.title, style="bold"), *lines)


@part_text.register
def _table(part: Table) -> RenderableType:
    table = plain_table(part.title or None, caption=Text(part.caption) if part.caption else None)
    table.show_lines = part.lines
    for column in part.columns:
        name = f"{column.name}\n{column.unit}" if column.unit else column.name
        justify, overflow = "right" if column.numeric else "left", "fold" if column.fold else "ellipsis"
        table.add_column(Text(name), justify=justify, no_wrap=not column.fold, overflow=overflow)
    for group, rows in groupby(part.rows, key=lambda row: row.group):
        if group:
            table.add_row(_plain(group))
        for row in rows:
            cells = zip(row.cells, part.columns, strict=True)
            style = "bold" if row.chosen else ""
            table.add_row(*(_plain(cell, numeric=column.numeric, style=style) for cell, column in cells))
    return table
