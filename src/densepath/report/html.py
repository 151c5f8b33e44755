"""A document as one page: a single file, no network, complete without JavaScript."""

from __future__ import annotations

import functools
from itertools import groupby

from markupsafe import Markup

from densepath.records.completion import Sample, ScoredCompletion
from densepath.report.document import (
    Beside,
    Document,
    Figure,
    Fold,
    Heading,
    Next,
    Notice,
    Paragraph,
    Row,
    Samples,
    Section,
    Table,
    Tile,
    Tiles,
    walk,
)
from densepath.report.elements import asset, content_policy, element, join, text
from densepath.report.heatmap import heat_scale, heatmap_html, legend_html
from densepath.report.plots import arm_color, svg
from densepath.report.words import Run, Words, nats, number, runs

_ELEMENTS = {"strong": "strong", "small": "small", "code": "code", "quote": "q"}
_TAGS = {"tag": "tag", "better": "tag better", "worse": "tag worse"}


def page_html(document: Document, *, live: bool = False) -> str:
    """The whole page as text.

    Args:
        document: what it shows.
        live: whether a server is behind it: the page may ask that one, and asks it for no icon.
    """
    names = dict.fromkeys(name for part in walk(document.sections) for name in getattr(part, "assets", ()))
    script = Markup("").join(asset(name) for name in names if name.endswith(".js"))
    style = Markup("").join(asset(name) for name in ("page.css", *names) if name.endswith(".css"))
    policy = Markup(content_policy(script, live=live))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        Markup('<meta http-equiv="Content-Security-Policy" content="{}">').format(policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("link", rel="icon", href="data:,") if live else None,
        element("title", f"{document.title} · {document.brand}"),
        element("style", style),
    )
    body = element(
        "body",
        _header(document),
        _navigation(document),
        element("main", *map(_section, document.sections), part_html(document.next)),
        element("footer", words_html(document.footer)),
        element("script", script) if script else None,
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _header(document: Document) -> Markup:
    brand = element("p", document.brand, class_="brand")
    facts = [element("div", element("dt", name), " ", element("dd", value)) for name, value in document.facts]
    heading = element("h1", document.heading or document.title, id="title")
    return element("header", brand, heading, element("dl", *facts, class_="facts", id="facts"))


def _navigation(document: Document) -> Markup:
    named = [(section.link or section.title, section.id) for section in document.sections]
    links = [element("a", name, href=f"#{place}") for name, place in named if name]
    return element("nav", element("div", *links), aria_label="Sections") if links else Markup("")


def _section(section: Section) -> Markup:
    title = element("h2", section.title) if section.title else None
    return element("section", title, *map(part_html, section.parts), id=section.id)


def words_html(words: Words) -> Markup:
    """Runs of text as elements."""
    return Markup("").join(map(_run, runs(words)))


def _run(run: Run) -> Markup:
    if run.target:
        return element("a", run.text, href=f"#{run.target}")
    if run.style in _ELEMENTS:
        return element(_ELEMENTS[run.style], run.text)
    return element("span", run.text, class_=_TAGS.get(run.style, run.style)) if run.style else text(run.text)


@functools.singledispatch
def part_html(part: object) -> Markup:
    """A part of a document as elements."""
    raise TypeError(f"no part of a document: {part!r}")


@part_html.register
def _heading(part: Heading) -> Markup:
    return element("h3", part.text)


@part_html.register
def _paragraph(part: Paragraph) -> Markup:
    return element("p", words_html(part.words), class_=part.style or None)


@part_html.register
def _next(part: Next) -> Markup:
    words = element("p", element("strong", "What next: "), part.text)
    return element("div", words, element("pre", element("code", part.command)), class_="next")


@part_html.register
def _notice(part: Notice) -> Markup:
    lines = element("ul", *(element("li", words_html(line)) for line in part.lines)) if part.lines else None
    kind = "warnings" if part.kind == "warnings" else f"verdict {part.kind}".strip()
    return element("div", element("h2" if part.headline else "h3", part.title), lines, class_=f"card {kind}")


@part_html.register
def _table(part: Table) -> Markup:
    head = element("thead", element("tr", *(_head_cell(part, index) for index in range(len(part.columns)))))
    bodies = []
    for group, rows in groupby(part.rows, key=lambda row: row.group):
        span = element("th", group, scope="rowgroup", colspan=len(part.columns))
        above = element("tr", span, class_="group") if group else None
        bodies.append(element("tbody", above, *(_row(part, row) for row in rows)))
    table = element(
        "table",
        element("caption", part.caption) if part.caption else None,
        head if any(column.name for column in part.columns) else None,
        *bodies,
        class_=part.style or None,
    )
    return element("div", table, class_="card scroll")


def _head_cell(table: Table, index: int) -> Markup:
    column = table.columns[index]
    unit = element("small", column.unit) if column.unit else None
    return element("th", column.name, unit, scope="col", class_="num" if column.numeric else None)


def _row(table: Table, row: Row) -> Markup:
    cells = [element("th", words_html(row.cells[0]), scope="row")]
    for column, cell in zip(table.columns[1:], row.cells[1:], strict=True):
        cells.append(element("td", words_html(cell), class_="num" if column.numeric else None))
    return element("tr", *cells, class_="chosen" if row.chosen else None)


@part_html.register
def _tiles(part: Tiles) -> Markup:
    return element("div", *map(_tile, part.tiles), class_="tiles")


def _tile(tile: Tile) -> Markup:
    notes = Markup("<br>").join(map(text, tile.notes))
    style = f"border-top-color: {arm_color(tile.arm)}" if tile.arm else None
    return element("div", tile.label, element("b", tile.figure), element("span", notes), class_="tile", style=style)


@part_html.register
def _figure(part: Figure) -> Markup:
    title = element("figcaption", part.title, element("small", part.note) if part.note else None)
    foot = element("small", part.foot, class_="muted") if part.foot else None
    return element("figure", title, svg(part.drawing), foot, role="img", aria_label=part.title)


@part_html.register
def _beside(part: Beside) -> Markup:
    return element("div", *map(part_html, part.parts), class_=part.style)


@part_html.register
def _fold(part: Fold) -> Markup:
    return element("details", element("summary", part.title), *map(part_html, part.parts), class_="card")


# --- Samples ---------------------------------------------------------------------------------------------------------


@part_html.register
def _samples(part: Samples) -> Markup:
    scale = heat_scale(span for sample in part.samples for item in sample.completions.values() for span in item.spans)
    articles = [_sample(part, sample, scale) for sample in part.samples]
    legend = Markup(legend_html(scale))
    if not part.searched:
        return join([legend, *articles])
    return join([legend, _filters(part), *articles, element("output", id="token", hidden=True)])


def _filters(part: Samples) -> Markup:
    categories = sorted({sample.category for sample in part.samples if sample.category})
    search = element("label", "Search ", element("input", id="filter-text", type="search", autocomplete="off"))
    options = [element("option", "all", value=""), *(element("option", name) for name in categories)]
    chooser = element("label", "Category ", element("select", *options, id="filter-category")) if categories else None
    differs = element("label", element("input", id="filter-differs", type="checkbox"), " only differences")
    count = element("span", id="filter-count", class_="muted", role="status")
    return element("div", search, chooser, differs, count, id="filters", hidden=True)


def _sample(part: Samples, sample: Sample, scale: float) -> Markup:
    category = element("span", sample.category, class_="tag") if sample.category else None
    expected = None
    if sample.answer is not None:
        expected = element("div", element("small", "expected:"), f" {sample.answer}", class_="text", dir="auto")
    named = ((part.labels.get(arm, arm), item) for arm, item in sample.completions.items())
    answers = (_completion(label, item, scale, part.judged) for label, item in named)
    return element(
        "article",
        element(
            "header",
            element("h3", sample.id, " ", category),
            element("div", sample.prompt, class_="text prompt", dir="auto"),
            expected,
        ),
        element("div", *answers, class_="sides"),
        class_="card sample",
        data_category=sample.category or "",
        data_differs="yes" if sample.differs else "no",
    )


def _completion(label: str, item: ScoredCompletion, scale: float, judged: bool) -> Markup:
    tags = []
    if item.metric is not None:
        words = {1.0: "✓ right", 0.0: "✗ wrong"}.get(item.metric) if judged else None
        tags.append(Run(words or f"metric {number(item.metric, '.4g')}", "better" if item.metric == 1 else "tag"))
    if item.truncated:
        tags.append(Run("cut off at the length limit", "worse"))
    size = f"{len(item.rewards)} tokens, reward {nats(item.sum, '.2f')} nats"
    shown = Markup(heatmap_html(item.spans, scale=scale, label=label, standalone=False))
    return element(
        "div",
        element("h4", label, " ", *map(_run, tags), element("small", size)),
        shown,
        class_="completion",
    )
