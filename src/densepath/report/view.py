"""Scored completions as something to look at: a page, a file with a JSON twin, or a notebook's output."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from markupsafe import Markup

from densepath import __version__
from densepath.errors import UsageError
from densepath.io import write_json_atomic, write_text_atomic
from densepath.records.completion import ScoredRow, prompt_text
from densepath.report import parse
from densepath.report.build import ReportPaths
from densepath.report.compare import Comparison, compare
from densepath.report.document import Document, Next, Part, Section
from densepath.report.elements import asset, content_policy, element, join, text
from densepath.report.heatmap import heat_scale, legend_html
from densepath.report.html import page_html, part_html
from densepath.report.next_step import after_view
from densepath.report.scored import SORTS
from densepath.report.view_parts import comparison_html, row_html, worst_runs

MOST_IN_NOTEBOOK = 20
"""Completions in one output of a notebook, which keeps its outputs in its file."""

_outputs = itertools.count(1)


@dataclass(frozen=True)
class ScoreView:
    """Scored rows, and perhaps two of them compared: what a page, its JSON twin and a notebook show.

    Attributes:
        rows: in the order to show.
        comparison: two answers to one prompt.
        title: what the page is called.
        facts: (name, value) lines below the title: file, models, reading.
        total: rows that there are, shown or not.
        scale: nats at full colour; by default from the rows shown.
        sort: what the rows are ordered by, one of `densepath.report.scored.SORTS`.
        descending: the highest first.
        next: what a reader does with it; None: as after any scored rows.
    """

    rows: tuple[ScoredRow, ...] = ()
    comparison: Comparison | None = None
    title: str = "dense reward"
    facts: tuple[tuple[str, str], ...] = ()
    total: int = 0
    scale: float = 0.0
    sort: str = "row"
    descending: bool = False
    next: Next | None = None

    def __post_init__(self) -> None:
        rows = [*self.rows, *((self.comparison.a, self.comparison.b) if self.comparison else ())]
        if self.scale <= 0:
            object.__setattr__(self, "scale", heat_scale(span for row in rows for span in row.spans))
        object.__setattr__(self, "total", max(self.total, len(self.rows)))

    def to_dict(self) -> dict[str, Any]:
        """The view as JSON types: the twin of the page."""
        value: dict[str, Any] = parse.clean(dataclasses.asdict(self))
        worst = [[worst_runs(turn.spans, self.scale) for turn in row.turns] for row in self.rows]
        for row, spans in zip(value["rows"], worst, strict=True):
            for turn, found in zip(row["turns"], spans, strict=True):
                turn["worst_spans"] = [span._asdict() for span in found]
        if self.comparison is not None:
            value["comparison"]["edits"] = [edit._asdict() for edit in self.comparison.edits]
        return {"made_by": __version__, "facts": dict(self.facts)} | {k: v for k, v in value.items() if k != "facts"}

    def save(self, path: str | Path) -> ReportPaths:
        """Write the page, and its JSON twin beside it, each atomically.

        Raises:
            UsageError: the twin would have the page's own name.
            StorageError: writing failed.
        """
        paths = ReportPaths.of(Path(path))
        if paths.html == paths.json:
            raise UsageError(f"{path}: give the page a name that ends in .html; its JSON twin takes .json")
        page = page_html(view_page(self, beside=True))
        write_json_atomic(paths.json, self.to_dict())
        write_text_atomic(paths.html, page)
        return paths

    def _repr_html_(self) -> str:
        """What a notebook shows: the same fragments, with their style."""
        prefix = f"dp{next(_outputs)}-"
        few = dataclasses.replace(self, rows=self.rows[:MOST_IN_NOTEBOOK])
        note = f"{len(few.rows)} of {self.total} completions." if len(few.rows) < self.total else None
        style = element("style", asset("heatmap.css") + asset("view.css"))
        more = element("p", note, class_="dp-note") if note else None
        return str(element("div", style, fragment_html(few, prefix), more, class_="dp-alone"))


@dataclass(frozen=True)
class Scores(Part):
    """A view as a part of a document; a `live` one asks the server that it came from for what it shows."""

    assets: ClassVar[tuple[str, ...]] = ("heatmap.css", "view.css", "tokens.js", "view.js")
    view: ScoreView
    live: bool = False


def view_page(view: ScoreView, *, live: bool = False, beside: bool = False) -> Document:
    """The page of a view.

    Args:
        view: what to show.
        live: the page of a running server.
        beside: say that the JSON twin lies beside it.
    """
    twin = " The JSON file of the same name beside this page holds the same data." if beside else ""
    return Document(
        brand="densepath view",
        title=view.title,
        facts=view.facts,
        sections=(Section("view", "", (Scores(view, live),)),),
        footer=f"Made by densepath {__version__}.{twin}",
        next=view.next or after_view(view.facts),
    )


def live_page_html() -> str:
    """The page of a running server, without anything to see: its script asks the server that it came from."""
    return page_html(view_page(ScoreView(), live=True), live=True)


def live_policy() -> str:
    """What the page of a running server may do, for its header."""
    return content_policy("".join(map(asset, ("tokens.js", "view.js"))), live=True)


@part_html.register
def _scores(part: Scores) -> Markup:
    view, live = part.view, part.live
    words = (
        "Each token is coloured by its dense reward. The colour says what the reward pays for, not what is right. "
        "Point at a token or at a curve, or focus a completion and use the arrow keys, to see its numbers."
    )
    compared = comparison_html(view.comparison, view.scale, "c-") if view.comparison else None
    save = element("a", "Save this as a file", id="save", download="view.html")
    return element(
        "div",
        element("p", words, class_="muted"),
        None if live else Markup(legend_html(view.scale)),
        asset("view_form.html") if live else None,
        element("section", compared, id="result", aria_label="Result"),
        element("p", save, id="keep", hidden=True) if live else None,
        _rows(view, live) if view.rows or live else None,
        element("output", id="token", hidden=True),
        class_="view",
        data_live="yes" if live else None,
    )


def _rows(view: ScoreView, live: bool) -> Markup:
    """The rows with the controls that order and search them; a server pages through them."""
    shown, total = len(view.rows), view.total
    count = f"{shown} of {total} rows." if shown < total else f"{total} {'row' if total == 1 else 'rows'}."
    rows = [row_html(row, view.scale, f"r{place}-") for place, row in enumerate(view.rows)]
    previous = element("button", "‹ Previous", type="button", id="previous", disabled=True)
    following = element("button", "Next ›", type="button", id="next", disabled=True)
    return element(
        "section",
        element("h2", "Rows"),
        _controls(view),
        element("p", None if live else count, id="count", class_="muted", role="status"),
        element("div", *rows, id="rows"),
        element("p", previous, " ", following, id="pager") if live else None,
        id="rows-section",
        aria_label="Rows",
        hidden=live,
    )


def _controls(view: ScoreView) -> Markup:
    names = {"row": "as in the file", "lowest": "lowest token"}
    sorts = [
        element("option", names.get(name, name.replace("_", " ")), value=name, selected=name == view.sort)
        for name in SORTS
    ]
    up = element("option", "lowest first", value="up")
    down = element("option", "highest first", value="down", selected=view.descending)
    bounds = [
        element("label", words, element("input", id=name, type="number", step="any", inputmode="decimal"))
        for words, name in (("From ", "low"), ("to ", "high"))
    ]
    search = element("input", id="words", type="search", maxlength=200, autocomplete="off")
    return element(
        "form",
        element("label", "Order ", element("select", *sorts, id="sort")),
        element("label", "Direction ", element("select", up, down, id="direction")),
        element("span", bounds[0], " ", bounds[1], class_="range"),
        element("label", "Search ", search),
        id="controls",
        hidden=True,
    )


def fragment_html(view: ScoreView, prefix: str = "", *, picks: bool = False) -> Markup:
    """A view without a page around it: legend, facts, comparison, rows.

    Args:
        view: what to show.
        prefix: what all ids begin with.
        picks: with buttons that choose rows for a comparison.
    """
    parts = [Markup(legend_html(view.scale))]
    if view.facts:
        facts = Markup(", ").join(join([text(f"{name} "), element("b", value)]) for name, value in view.facts)
        parts.append(element("p", facts, class_="dp-note"))
    if view.comparison is not None:
        parts.append(comparison_html(view.comparison, view.scale, f"{prefix}c-"))
    parts += [row_html(row, view.scale, f"{prefix}r{place}-", picks=picks) for place, row in enumerate(view.rows)]
    return Markup("").join(parts)


def view_scores(
    scores: Any,
    *,
    prompts: Sequence[Any] | None = None,
    labels: Sequence[str] | None = None,
    pair: tuple[int, int] | None = None,
    tokenizer: Any = None,
    limit: int | None = None,
) -> ScoreView:
    """A view of `DenseScores`, for a notebook (as the last value of a cell) or a file (`save`).

    Args:
        scores: what `DenseReward.score` or `score_ids` returned.
        prompts: the prompts, text or turns, to show above the completions.
        labels: what to call the completions; by default completion 1, 2, ...
        pair: indices of two answers to one prompt, to align instead of listing all completions.
        tokenizer: that of the models; needed for scores made from ids.
        limit: take the first completions alone; all if None.

    Raises:
        UsageError: scores without texts and no tokenizer, or a pair that is not there.
    """
    size = len(scores.rewards)
    if pair is not None and not all(0 <= index < size for index in pair):
        raise UsageError(f"pair={pair}: there are completions 0 to {size - 1}")
    rows = tuple(
        ScoredRow(
            number=index + 1,
            id=labels[index] if labels else f"completion {index + 1}",
            prompt=None if prompts is None else prompt_text(prompts[index]),
            category=None,
            turns=(scores.completion(index, tokenizer),),
        )
        for index in range(size if limit is None or pair is not None else min(size, limit))
    )
    if pair is not None:
        return ScoreView(comparison=compare(rows[pair[0]], rows[pair[1]]))
    return ScoreView(rows=rows, total=size)
