"""A document, or parts of one, as Markdown. Figures are left out: they stand on the page."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from densepath.report.document import (
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
from densepath.report.text import visible

_SIGNS = re.compile(r"[\\`*<>|]|(?<!\w)_|_(?!\w)|\](?=[(\[:])")
"""What starts markup: an underscore within a word does not, nor brackets without an address behind them."""


def document_markdown(document: Document, *, level: int = 1) -> str:
    """The whole document; its title has a heading of this level."""
    parts = [f"{'#' * level} {plain(document.heading or document.title)}"]
    parts += [sections_markdown(document.sections, level=level + 1)]
    parts += [f"**What next:** {words_markdown(document.next)}"] if document.next else []
    return "\n\n".join(parts) + "\n"


def sections_markdown(sections: Iterable[Section], *, level: int) -> str:
    """Sections under headings of a level."""
    parts = []
    for section in sections:
        parts += [f"{'#' * level} {plain(section.title)}"] if section.title else []
        parts += [text for part in section.parts if (text := part_markdown(part, level + 1))]
    return "\n\n".join(parts)


def plain(text: str) -> str:
    """Text that cannot leave its cell or start markup."""
    return " ".join(_SIGNS.sub(r"\\\g<0>", visible(text)).split())


def words_markdown(words: Words) -> str:
    """Runs of text with their emphasis."""
    shown = (_run(run) for run in runs(words))
    return "".join(text for text in shown if text)


def _run(run: Run) -> str:
    sign = {"strong": "**", "quote": "*", "code": "`"}.get(run.style, "")
    if not run.text.strip():
        return run.text
    start, end = run.text[: len(run.text) - len(run.text.lstrip())], run.text[len(run.text.rstrip()) :]
    text = " ".join(visible(run.text).split()).replace("`", "'") if run.style == "code" else plain(run.text)
    return f"{start}{sign}{text}{sign}{end}"


@functools.singledispatch
def part_markdown(part: object, level: int) -> str:
    """A part as Markdown, its headings of a level; empty where it is for a page alone."""
    raise TypeError(f"no part of a document: {part!r}")


@part_markdown.register
def _heading(part: Heading, level: int) -> str:
    return f"{'#' * level} {plain(part.text)}"


@part_markdown.register
def _paragraph(part: Paragraph, level: int) -> str:
    return words_markdown(part.words)


@part_markdown.register
def _notice(part: Notice, level: int) -> str:
    title = f"**{plain(part.title)}**\n\n" if part.title else ""
    lines = (words_markdown(line) for line in part.lines)
    return title + "\n".join(f"* *{line}*" if part.kind == "warnings" else f"* {line}" for line in lines)


@part_markdown.register
def _table(part: Table, level: int) -> str:
    names = [plain(f"{column.name}, {column.unit}" if column.unit else column.name) for column in part.columns]
    lines = [names, ["---"] * len(names)]
    lines += [[words_markdown(cell) for cell in row.cells] for row in part.rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


@part_markdown.register
def _tiles(part: Tiles, level: int) -> str:
    return "\n".join(f"* {plain(tile.label)}: {tile.figure} ({plain(', '.join(tile.notes))})" for tile in part.tiles)


@part_markdown.register
def _figure(part: Figure, level: int) -> str:
    return ""


@part_markdown.register(Beside)
@part_markdown.register(Fold)
def _many(part: Beside | Fold, level: int) -> str:
    title = f"**{plain(part.title)}**\n\n" if isinstance(part, Fold) else ""
    return title + "\n\n".join(text for one in part.parts if (text := part_markdown(one, level)))


@part_markdown.register
def _samples(part: Samples, level: int) -> str:
    parts = []
    for sample in part.samples:
        answers = "\n".join(f"* {plain(item.label)}: {plain(item.text)}" for item in sample.completions)
        parts.append(f"{plain(sample.prompt)}\n\n{answers}")
    return "\n\n".join(parts)
