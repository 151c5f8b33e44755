"""A document, or parts of one, in the terminal. Figures are left out: they stand on the page."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.text import Text

from densepath.report.document import (
    DASH,
    MINUS,
    Beside,
    Document,
    Figure,
    Fold,
    Heading,
    Notice,
    Paragraph,
    Run,
    Samples,
    Section,
    Table,
    Tiles,
    Words,
    runs,
)
from densepath.report.heatmap import color_level, heat_scale
from densepath.report.records import Span
from densepath.report.text import visible
from densepath.terminal import Console, plain_table, show

_STYLES = {"bold": "bold", "better": "bold green", "worse": "bold red"}


def document_text(document: Document) -> Group:
    """The whole document, one part below the other."""
    title = Text(document.heading or document.title, style="bold")
    last = [Text("What next: ").append_text(_plain(document.next))] if document.next else []
    return Group(title, *(parts_text(section.parts) for section in document.sections), *last)


def print_parts(console: Console, *parts: object) -> None:
    """Print parts one below the other."""
    show(console, parts_text(parts))


def parts_text(parts: Iterable[object]) -> Group:
    """Parts one below the other."""
    return Group(*(shown for part in parts if (shown := part_text(part)) is not None))


def _plain(words: Words, *, numeric: bool = False, style: str = "") -> Text:
    text = Text(style=style)
    for run in runs(words):
        shown = run.text.replace(MINUS, "-").replace(DASH, "-") if numeric else run.text
        text.append(visible(shown), style=_style(run))
    return text


def _style(run: Run) -> str:
    return _STYLES.get(run.style, "")


@functools.singledispatch
def part_text(part: object) -> RenderableType | None:
    """A part as something that rich prints; None where it is for a page alone."""
    raise TypeError(f"no part of a document: {part!r}")


@part_text.register
def _section(part: Section) -> RenderableType:
    return Group(Text(part.title, style="bold"), parts_text(part.parts))


@part_text.register
def _heading(part: Heading) -> RenderableType:
    return Text(part.text, style="bold")


@part_text.register
def _paragraph(part: Paragraph) -> RenderableType:
    return _plain(part.words)


@part_text.register
def _notice(part: Notice) -> RenderableType:
    """`- ` before each sentence of a verdict, and `warning: ` in yellow before a warning."""
    warning = part.kind == "warnings"
    lines = [Text("warning: " if warning else "- ").append_text(_plain(line)) for line in part.lines]
    for line in lines:
        line.stylize("yellow" if warning else "")
    return Group(*([] if warning else [Text(part.title, style="bold")]), *lines)


@part_text.register
def _table(part: Table) -> RenderableType:
    table = plain_table(part.title or None, caption=Text(part.caption) if part.caption else None)
    table.show_lines = part.lines
    for column in part.columns:
        name = f"{column.name}\n{column.unit}" if column.unit else column.name
        justify = "right" if column.numeric else "left"
        overflow = "fold" if column.fold else "ellipsis"
        table.add_column(Text(name), justify=justify, no_wrap=not column.fold, overflow=overflow)
    for row in part.rows:
        style = "bold" if row.chosen else ""
        cells = zip(row.cells, part.columns, strict=True)
        table.add_row(*(_plain(cell, numeric=column.numeric, style=style) for cell, column in cells))
    return table


@part_text.register
def _tiles(part: Tiles) -> RenderableType:
    return Group(*(Text(f"{tile.label}: {tile.figure} ({', '.join(tile.notes)})") for tile in part.tiles))


@part_text.register
def _figure(part: Figure) -> None:
    return None


@part_text.register
def _many(part: Beside) -> RenderableType:
    return parts_text(part.parts)


@part_text.register
def _fold(part: Fold) -> RenderableType:
    return Group(Text(part.title, style="bold"), parts_text(part.parts))


@part_text.register
def _samples(part: Samples) -> RenderableType:
    scale = heat_scale(span for sample in part.samples for item in sample.completions for span in item.spans)
    shown: list[RenderableType] = []
    for sample in part.samples:
        shown.append(Text(visible(sample.prompt), style="bold"))
        shown += [heat_text(item.spans, scale, f"{item.label}: ") for item in sample.completions]
    return Group(*shown)


def heat_text(spans: Iterable[Span], scale: float, before: str = "") -> Text:
    """A completion with its tokens coloured as on a page: blue above zero, orange below."""
    text = Text(before)
    for span in spans:
        level = color_level(span.reward, scale)
        colour = (38, 112, 190) if level > 0 else (226, 122, 16)
        strength = abs(level) / 10
        mixed = ",".join(str(round(255 + (part - 255) * strength)) for part in colour)
        text.append(visible(span.text), style=f"black on rgb({mixed})" if level else "")
    return text
