"""Two answers to one prompt, aligned token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from densepath.records.completion import ScoredRow, Span
from densepath.report.align import Edit, align
from densepath.report.heatmap import span_html


class Column(NamedTuple):
    """What stands one above the other: a run of A, a run of B, or a gap. `shared`: both are the same tokens."""

    a: Span | None
    b: Span | None
    shared: bool


@dataclass(frozen=True)
class Comparison:
    """Two scored answers and the edits that lead from one to the other, counted in runs of tokens."""

    a: ScoredRow
    b: ScoredRow
    edits: tuple[Edit, ...]

    def columns(self) -> list[Column]:
        """The alignment, column by column; runs that replace each other stand in pairs."""
        a, b = self.a.spans, self.b.spans
        columns = []
        for edit in self.edits:
            for step in range(max(edit.a_end - edit.a_start, edit.b_end - edit.b_start)):
                i, j = edit.a_start + step, edit.b_start + step
                left = a[i] if i < edit.a_end else None
                right = b[j] if j < edit.b_end else None
                columns.append(Column(left, right, edit.tag == "equal"))
        return columns

    def rewards(self, side: str, shared: bool) -> float:
        """Sum of the rewards of side "a" or "b" over the shared or over the changed tokens, nats."""
        runs = [column.a if side == "a" else column.b for column in self.columns() if column.shared == shared]
        return sum(run.reward for run in runs if run is not None)


def compare(a: ScoredRow, b: ScoredRow) -> Comparison:
    """Align two answers by the text and ids of their runs of tokens."""
    keys = [[(span.text, span.token_ids) for span in row.spans] for row in (a, b)]
    return Comparison(a, b, tuple(align(*keys)))


def aligned_html(comparison: Comparison, scale: float, label: str) -> str:
    """Both answers in one flow of columns, A above B; all text is escaped.

    Args:
        comparison: the two answers.
        scale: nats at full colour.
        label: what a screen reader announces.
    """
    totals = {"a": 0.0, "b": 0.0}
    parts = []
    for column in comparison.columns():
        cells = []
        for name, run in (("a", column.a), ("b", column.b)):
            if run is None:
                cells.append(Markup('<span class="dp-gap"></span>'))
                continue
            totals[name] += run.reward
            # A line end is drawn, and breaks the line after the whole column.
            cells.append(Markup("<span>{}</span>").format(span_html(run, totals[name], scale, _one_line(run.text))))
        kind = "dp-col" if column.shared else "dp-col dp-changed"
        parts.append(Markup('<span class="{}">{}{}</span>').format(kind, *cells))
        if any(run is not None and "\n" in run.text for run in (column.a, column.b)):
            parts.append(Markup('<span class="dp-break"></span>'))
    page = Markup('<div class="dp-heat dp-pair" dir="auto" role="group" aria-label="{}">{}</div>').format(
        label, Markup("").join(parts)
    )
    return str(page)


def _one_line(text: str) -> str:
    return text.replace("\n", "↵")
