"""All that a command prints goes through here: rich reads no markup, emoji code or number out of anybody's text.

Paths, names, reasons and cells of tables are text that a user or a data set wrote: `run [v2]`, `a[/b]`, `checks:one`.
"""

from __future__ import annotations

from typing import IO, Any

from rich import box
from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

__all__ = ["Console", "PlainTable", "Table", "plain_table", "progress_bar", "say", "show", "terminal", "warn"]


def terminal(
    *, stderr: bool = False, quiet: bool = False, file: IO[str] | None = None, width: int | None = None
) -> Console:
    """A console of which strings come out as they are."""
    return Console(stderr=stderr, quiet=quiet, file=file, width=width, markup=False, emoji=False, highlight=False)


def say(console: Console, text: str, style: str = "") -> None:
    """Print a text as it is, whatever the console makes of strings: one line stays one line.

    What the output cannot encode (half of a surrogate pair in a file's name) is shown by its number.
    """
    shown = text.encode(console.encoding, "backslashreplace").decode(console.encoding)
    console.print(Text(shown), style=style, soft_wrap=True)


def warn(console: Console, text: object) -> None:
    """`say` with "warning: " before it, in yellow."""
    say(console, f"warning: {text}", style="yellow")


def show(console: Console, renderable: RenderableType) -> None:
    """Print a table, a text with styles of our own, or a group of such.

    Raises:
        TypeError: a string, which is for `say`.
    """
    if isinstance(renderable, str):
        raise TypeError("a string is printed with say")
    console.print(renderable)


class PlainTable(Table):
    """A table whose strings are text: those of the headers, the cells, the title and the caption."""

    def __init__(self, *headers: Any, title: Any = None, caption: Any = None, **options: Any) -> None:
        super().__init__(*map(_text, headers), title=_text(title), caption=_text(caption), **options)

    def add_column(self, header: Any = "", footer: Any = "", **options: Any) -> None:
        """As rich's, with text."""
        super().add_column(_text(header), _text(footer), **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        """As rich's, with text."""
        super().add_row(*map(_text, cells), **options)


def plain_table(title: str | None = None, caption: Text | None = None) -> PlainTable:
    """An empty table in the style of all commands: a line under the header, and a bold title on the left."""
    return PlainTable(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption,
    )


def progress_bar(console: Console, *columns: str | ProgressColumn, disable: bool = False) -> Progress:
    """A bar that goes when it is done.

    Args:
        console: where it is shown.
        columns: what stands in its line; a string is a format of the task (`{task.description}`), filled in as text.
        disable: show nothing.
    """
    parts = [TextColumn(column, markup=False) if isinstance(column, str) else column for column in columns]
    return Progress(*parts, console=console, transient=True, disable=disable)


def _text(value: Any) -> Any:
    return Text(value) if isinstance(value, str) else value
