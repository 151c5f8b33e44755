"""A report as a table on the terminal."""

from __future__ import annotations

from rich.text import Text

from densepath.terminal import Console, PlainTable, say, show
from densepath.theory.records import Kind, Report, StatementResult, verdict_word

WIDE = 150
"""Columns that a table with everything side by side needs; below, a statement's particulars stand under it."""


def print_report(report: Report, console: Console, seconds: float | None = None) -> None:
    """Print the table, then every check that fails, then one line that sums up."""
    wide = console.width >= WIDE
    table = PlainTable(title="densepath theory", show_lines=True)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("statement", overflow="fold", ratio=3)
    if wide:
        table.add_column("source", overflow="fold", ratio=1)
        table.add_column("assumes", overflow="fold", ratio=2)
        table.add_column("checked by", overflow="fold", ratio=2)
    table.add_column("largest\ndeviation", justify="right", no_wrap=True)
    table.add_column("checks", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for result in report.results:
        particulars = [Text(text) for text in (result.source, result.assumes, result.method)]
        table.add_row(
            str(result.number),
            *([Text(result.title), *particulars] if wide else [_stacked(result)]),
            f"{result.deviation:.1e}",
            _count(result),
            _verdict(result.holds),
        )
    show(console, table)
    for result in report.results:
        for check in result.checks:
            if not check.holds:
                relation = "at least" if check.kind is Kind.DIFFERS else "at most"
                say(
                    console,
                    f"{result.number}. {check.name}: {check.value:.3e}, should be {relation} {check.limit:.0e}",
                    style="red",
                )
    time = "" if seconds is None else f" in {seconds:.1f} s"
    show(
        console,
        Text(
            f"{sum(r.holds for r in report.results)} of {len(report.results)} statements hold"
            f"{time} (seed {report.seed}, {report.instances} instances each). "
            "P: the paper's; D: derived in docs/theory.md"
        ),
    )


def _stacked(result: StatementResult) -> Text:
    text = Text(result.title, style="bold")
    for name, words in (("source", result.source), ("assumes", result.assumes), ("checked by", result.method)):
        text.append(f"\n{name}: {words}", style="not bold")
    return text


def _count(result: StatementResult) -> str:
    held = sum(check.holds for check in result.checks)
    return f"{held}/{len(result.checks)}"


def _verdict(holds: bool) -> Text:
    return Text(verdict_word(holds), style="green" if holds else "bold red")
