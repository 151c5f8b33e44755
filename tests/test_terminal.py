"""What is printed is what was written: rich reads nothing into text."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest
from rich.console import Console

import densepath
from densepath.progress import StageProgress
from densepath.terminal import plain_table, say, show, terminal, warn

ROOT = Path(densepath.__file__).parent
NASTY = ["run [v2]", "a[/b]", "checks:one", "[red]x[/red]", r"\[x]", "[link=x]y", ":smile: [bold", "1,300 'text' None"]


@pytest.fixture(params=["ours", "the caller's"])
def console(request: pytest.FixtureRequest) -> Console:
    """Two consoles: that of the commands, and one that a script hands over, with markup and emoji on."""
    if request.param == "ours":
        return terminal(file=io.StringIO(), width=400)
    return Console(file=io.StringIO(), width=400)


def output(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.mark.parametrize("text", NASTY)
def test_text_comes_out_as_it_is(console: Console, text: str) -> None:
    say(console, text)
    warn(console, text)
    assert output(console) == f"{text}\nwarning: {text}\n"


@pytest.mark.parametrize("text", NASTY)
def test_cells_headers_and_titles_come_out_as_they_are(console: Console, text: str) -> None:
    table = plain_table(text)
    table.add_column(text, no_wrap=True)
    table.add_row(text)
    show(console, table)
    assert output(console).count(text) == 3


def test_a_line_stays_one_line(console: Console) -> None:
    text = "model: /" + "a folder/" * 200
    say(console, text)
    assert output(console) == text + "\n"


def test_what_the_output_cannot_encode_is_shown_by_its_number() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    say(terminal(file=file), "a\udc80 日")
    file.flush()
    assert file.buffer.getvalue() == b"a\\udc80 \\u65e5\n"


@pytest.mark.parametrize("text", NASTY)
def test_progress_shows_titles_and_notes_as_they_are(text: str) -> None:
    file = io.StringIO()
    shown = Console(file=file, width=200, force_terminal=True, color_system=None)
    with StageProgress(shown, text, 2) as progress:
        progress.update(1, note=text)
        assert progress._bar is not None
        progress._bar.refresh()
    assert file.getvalue().count(text) >= 3  # title, note, and the last line


def faults(source: str) -> list[str]:
    """Ways to print, or to make cells and bars, that go past `densepath.terminal`."""
    found = []
    tree = ast.parse(source)
    documents = {  # records of that name: what a page holds, which prints nothing
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("densepath.report")
        for alias in node.names
    }
    makers = {"Console", "Table", "Table.grid", "Progress"} - documents
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rich"):
            names = {alias.name for alias in node.names}
            bad = names & {"Console", "Table", "Progress", "TextColumn", "print", "Markdown", "Panel", "track"}
            if "TaskID" in names and bad == {"Progress"}:
                bad = set()  # for an annotation
            found += [f"line {node.lineno}: imports {name}" for name in sorted(bad)]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = ast.unparse(node.func)
            if node.func.attr in ("print", "rule", "log") and "console" in name.lower():
                found.append(f"line {node.lineno}: {name}")
            if node.func.attr == "from_markup":
                found.append(f"line {node.lineno}: {name}")
            if node.func.attr == "status" and not ast.unparse(node.args[0]).startswith("Text("):
                found.append(f"line {node.lineno}: {name} of a string")
        if isinstance(node, ast.Call) and ast.unparse(node.func) in makers:
            found.append(f"line {node.lineno}: makes {ast.unparse(node.func)}")
    return found


def test_every_module_prints_through_the_one_place() -> None:
    modules = [path for path in ROOT.rglob("*.py") if path.name != "terminal.py"]
    assert {str(path): found for path in modules if (found := faults(path.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "from rich.console import Console",
        "from rich.table import Table",
        "self.console.print(name)",
        "table = Table()",
        "Text.from_markup(name)",
        "console.status(name)",
    ],
)
def test_a_way_past_it_is_seen(source: str) -> None:
    assert faults(source)
