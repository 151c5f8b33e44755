"""Sections of a document as Markdown; what needs a page to be seen is left out."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from densepath.report.document import Next, Notice, Paragraph, Section, Table
from densepath.report.text import visible
from densepath.report.words import Run, Words, runs

_SIGNS = re.compile(r"[\\`*<>|]|(?<!\w)_|_(?!\w)|\](?=[(\[:])")
"""What starts markup: an underscore within a word does not, nor brackets without an address behind them."""


def sections_markdown(sections: Iterable[Section], *, level: int) -> str:
    """Sections under headings of a level."""
    return "\n\n".join(f"{'#' * level} {_plain(each.title)}\n\n{_parts(each)}" for each in sections)


@functools.singledispatch
def part_markdown(part: object) -> str:
    """A part as Markdown: its title and what it holds, where it has no form of its own here."""
    title = getattr(part, "title", "") if hasattr(part, "parts") else getattr(part, "text", "")
    return "\n\n".join(text for text in (f"**{_plain(title)}**" if title else "", _parts(part)) if text)


def _parts(part: object) -> str:
    return "\n\n".join(text for one in getattr(part, "parts", ()) if (text := part_markdown(one)))


def _plain(text: str) -> str:
    """Text that cannot leave its cell or start markup."""
    return " ".join(_SIGNS.sub(r"\\\g<0>", visible(text)).split())


def _words(words: Words) -> str:
    """Runs of text with their emphasis; spaces between runs stay, outside of it."""
    return "".join(map(_run, runs(words)))


def _run(run: Run) -> str:
    if not run.text.strip():
        return run.text
    sign = {"strong": "**", "code": "`"}.get(run.style, "")
    start, end = run.text[: -len(run.text.lstrip())], run.text[len(run.text.rstrip()) :]
    text = " ".join(visible(run.text).split()).replace("`", "'") if run.style == "code" else _plain(run.text)
    return f"{start}{sign}{text}{sign}{end}"


@part_markdown.register
def _paragraph(part: Paragraph) -> str:
    return _words(part.words)


@part_markdown.register
def _next(part: Next) -> str:
    return f"**What next:** {_plain(part.text)}\n\n    {visible(part.command)}"


@part_markdown.register
def _notice(part: Notice) -> str:
    title = f"**{_plain(part.title)}**\n\n" if part.title else ""
    lines = map(_words, part.lines)
    return title + "\n".join(f"* *{line}*" if part.kind == "warnings" else f"* {line}" for line in lines)


@part_markdown.register
def _table(part: Table) -> str:
    names = [_plain(f"{column.name}, {column.unit}" if column.unit else column.name) for column in part.columns]
    lines = [names, ["---"] * len(names), *([_words(cell) for cell in row.cells] for row in part.rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
