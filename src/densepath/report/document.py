"""A document as frozen parts: what a page, a terminal and a Markdown file say, without how each of them looks.

Builders make documents of records; `html`, `console` and `markdown` render them. The JSON twin of a page is the record
that its document was built from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from densepath.records.completion import Sample
from densepath.report.drawings import Drawing
from densepath.report.words import Words


class Part:
    """What a section holds: one of the records below, each of which every renderer knows."""


@dataclass(frozen=True)
class Heading(Part):
    """A heading within a section."""

    text: str


@dataclass(frozen=True)
class Paragraph(Part):
    """Words; `style` is empty, "muted" or "keys" (the legend of line styles)."""

    words: Words
    style: str = ""


@dataclass(frozen=True)
class Notice(Part):
    """A card of sentences: a verdict (`kind` "better", "worse" or any other word) or "warnings"."""

    title: str
    lines: tuple[Words, ...] = ()
    kind: str = ""
    headline: bool = False


@dataclass(frozen=True)
class Column:
    """A column of a table; numbers stand on the right. `fold` breaks words in a terminal instead of cutting none."""

    name: str
    unit: str = ""
    numeric: bool = False
    fold: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table; `group` stands above the first row of each run of rows that share it."""

    cells: tuple[Words, ...]
    chosen: bool = False
    group: str = ""


@dataclass(frozen=True)
class Table(Part):
    """A table whose first column names the rows; `style` is empty, "stack" (intervals under means) or "kv".

    `lines` draws one between rows, for those of several lines.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    title: str = ""
    caption: str = ""
    style: str = ""
    lines: bool = False


@dataclass(frozen=True)
class Tile:
    """A figure to see first: what it is called, the figure, what it measures; `arm` gives its colour."""

    label: str
    figure: str
    notes: tuple[str, ...]
    arm: str = ""


@dataclass(frozen=True)
class Tiles(Part):
    """Tiles beside each other."""

    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Figure(Part):
    """A drawing with its title, a note below it and a line at the foot. Terminal and Markdown leave it out."""

    title: str
    drawing: Drawing
    note: str = ""
    foot: str = ""


@dataclass(frozen=True)
class Beside(Part):
    """Parts beside each other where there is room: "plots" two of them, "panels" three."""

    parts: tuple[Part, ...]
    style: str = "plots"


@dataclass(frozen=True)
class Fold(Part):
    """Parts that a page shows on demand."""

    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Samples(Part):
    """Prompts with each arm's completion as a heat map on one scale, and a filter of them.

    `labels` names arms; with `judged` the metric says right (1) or wrong (0). One part of a page can be `searched`.
    """

    assets: ClassVar[tuple[str, ...]] = ("heatmap.css", "tokens.js", "page.js")
    samples: tuple[Sample, ...]
    labels: Mapping[str, str]
    judged: bool = False
    searched: bool = True


@dataclass(frozen=True)
class Next(Part):
    """What a reader does next: why, and the command to type (`densepath.report.next_step`)."""

    text: str
    command: str


@dataclass(frozen=True)
class Section:
    """A part of the page that the navigation leads to; one without a title stands first."""

    id: str
    title: str
    parts: tuple[Part, ...]
    link: str = ""


@dataclass(frozen=True)
class Document:
    """A whole page.

    Attributes:
        brand: which command made it.
        title: of the page, and of the browser's window with the brand.
        facts: (name, value) below the title.
        sections: what it holds.
        footer: who wrote it, and what lies beside it.
        next: what a reader does with it.
        heading: what stands at the top instead of the title.
    """

    brand: str
    title: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    footer: Words
    next: Next
    heading: str = ""


def present(parts: Iterable[Part | None]) -> tuple[Part, ...]:
    """The parts that there are."""
    return tuple(part for part in parts if part is not None)


def walk(parts: Iterable[object]) -> Iterator[object]:
    """All parts, those within others too."""
    for part in parts:
        yield part
        yield from walk(getattr(part, "parts", ()))
