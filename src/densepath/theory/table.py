"""A report as a table on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from densepath.theory.records import Kind, Report, StatementResult, Verdict


def print_report(report: Report, console: Console, seconds: float | None = None) -> None:
    """Print the table, then every check that fails, then one line that sums up."""
    table = Table(title="densepath theory", show_lines=True, expand=False)
    table.add_column("#", justify="right")
    table.add_column("statement", ratio=3)
    table.add_column("source", ratio=1)
    table.add_column("assumes", ratio=2)
    table.add_column("checked by", ratio=2)
    table.add_column("largest deviation", justify="right")
    table.add_column("checks", justify="right")
    table.add_column("verdict")
    for result in report.results:
        table.add_row(
            str(result.number),
            Text(result.title),
            Text(result.source),
            Text(result.assumes),
            Text(result.method),
            f"{result.deviation:.1e}",
            _count(result),
            _verdict(result.verdict),
        )
    console.print(table)
    for result in report.results:
        for check in result.checks:
            if check.verdict is Verdict.FAILS:
                relation = "at least" if check.kind is Kind.DIFFERS else "at most"
                console.print(
                    Text(
                        f"{result.number}. {check.name}: {check.value:.3e}, should be {relation} {check.limit:.0e}",
                        style="red",
                    )
                )
    time = "" if seconds is None else f" in {seconds:.1f} s"
    console.print(
        Text(
            f"{sum(r.verdict is Verdict.HOLDS for r in report.results)} of {len(report.results)} statements hold"
            f"{time} (seed {report.seed}, {report.instances} instances each). "
            "P: the paper's; D: derived in docs/theory.md"
        )
    )


def _count(result: StatementResult) -> str:
    held = sum(check.verdict is Verdict.HOLDS for check in result.checks)
    return f"{held}/{len(result.checks)}"


def _verdict(verdict: Verdict) -> Text:
    return Text(verdict.value, style="green" if verdict is Verdict.HOLDS else "bold red")
