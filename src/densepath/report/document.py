"""A document as frozen parts: what a page, a terminal and a Markdown file say, without how each of them looks.

Builders make documents of records; `html`, `console` and `markdown` render them. The JSON twin of a page is the record
that its document was built from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from densepath.report.drawings import Drawing
from densepath.report.records import Estimate, Sample

MINUS, DASH = "−", "–"
"""The sign of a negative number, and what stands where nothing was measured."""


@dataclass(frozen=True)
class Run:
    """A run of text.

    `style` is empty, "strong", "small" (a lighter voice, in stacked tables a line of its own), "code", "quote", "tag"
    (a pill), "better" or "worse" (a pill with the colour of a verdict), or a class of the page's style sheet. `target`
    is the id of the section that it leads to.
    """

    text: str
    style: str = ""
    target: str = ""


Words: TypeAlias = str | Run | tuple[str | Run, ...]
"""Text, or runs of it; a plain string is a run without style."""


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

    `labels` names arms; with `judged` the metric says right (1) or wrong (0).
    """

    assets: ClassVar[tuple[str, ...]] = ("heatmap.css", "tokens.js", "page.js")
    samples: tuple[Sample, ...]
    judged: bool = False


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
        next: what a reader does with it: the next command.
        heading: what stands at the top instead of the title.
    """

    brand: str
    title: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    footer: Words
    next: Words = ""
    heading: str = ""


def runs(words: Words) -> tuple[Run, ...]:
    """Words as runs."""
    many = words if isinstance(words, tuple) else (words,)
    return tuple(Run(one) if isinstance(one, str) else one for one in many)


def present(parts: Iterable[Part | None]) -> tuple[Part, ...]:
    """The parts that there are."""
    return tuple(part for part in parts if part is not None)


def walk(parts: Iterable[object]) -> Iterator[object]:
    """All parts, those within others too."""
    for part in parts:
        yield part
        yield from walk(getattr(part, "parts", ()))


# --- Figures in words ------------------------------------------------------------------------------------------------


def number(value: float | None, form: str = ".3f", *, missing: str = DASH) -> str:
    """A number in a format of Python's, with the true minus sign.

    >>> number(-0.5, "+.1f"), number(None)
    ('−0.5', '–')
    """
    return missing if value is None else format(value, form).replace("-", MINUS)


def share(value: float | None) -> str:
    """A share as percent."""
    return DASH if value is None else f"{100 * value:.1f} %"


def count(value: float | None) -> str:
    """A whole number with its thousands set apart."""
    return number(value, ",.0f")


def duration(seconds: float | None) -> str:
    """A time as seconds, minutes or hours."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def interval_text(value: Estimate | None, digits: int = 3, *, signed: bool = False, missing: str = DASH) -> str:
    """`mean [low, high]`; the interval is left out where it is unknown.

    Args:
        value: the quantity, in its own unit.
        digits: decimals.
        signed: write "+" before a positive number (for differences).
        missing: what stands for None.

    >>> interval_text(Estimate(0.5, 0.4, 0.6), 2)
    '0.50 [0.40, 0.60]'
    """
    return "".join(run.text for run in runs(interval(value, digits, signed=signed, missing=missing)))


def interval(value: Estimate | None, digits: int = 3, *, signed: bool = False, missing: str = DASH) -> Words:
    """As `interval_text`, with the mean in a strong voice and the interval in a lighter one."""
    if value is None:
        return Run(missing, "strong")
    form = f"{'+' if signed else ''}.{digits}f"
    mean = Run(number(value.mean, form), "strong")
    if value.low is None or value.high is None:
        return mean
    return (mean, " ", Run(f"[{number(value.low, form)}, {number(value.high, form)}]", "small"))


def short(words: Words) -> str:
    """The text without the 0 before a decimal point, so that a row fits a terminal.

    >>> short("0.50 [−0.40, 10.60]")
    '.50 [−.40, 10.60]'
    """
    return re.sub(r"(?<![0-9])0\.", ".", "".join(run.text for run in runs(words)))


def verdict(word: str, text: str = "") -> Run:
    """A verdict as a pill: coloured where it is better or worse."""
    return Run(text or word, word if word in ("better", "worse") else "tag")
