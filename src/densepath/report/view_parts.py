"""Scored rows and comparisons as elements: heat maps, running sums, worst spans, and what a running server adds."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from densepath.records.completion import ScoredCompletion, ScoredRow, Span
from densepath.records.spans import RewardSpan, worst_spans
from densepath.report.compare import Comparison, aligned_html
from densepath.report.curve import Line, curve_html
from densepath.report.elements import element, join
from densepath.report.heatmap import LEVELS, heatmap_html, quoted
from densepath.report.words import nats, number

WORST = 3
"""Worst spans shown of each completion."""
LONGEST_WORST = 12
"""Runs in a worst span at most: what a reader takes in at once, and no bridge between two faults far apart."""

_LONGEST_QUOTE = 48


def worst_runs(spans: Sequence[Span], scale: float, count: int = WORST) -> list[RewardSpan]:
    """The worst spans of a completion, counted in runs of tokens.

    A run too faint to be coloured does not widen a span: the margin is half a step of colour.
    """
    rewards = [span.reward for span in spans]
    return worst_spans(rewards, count, margin=scale / (2 * LEVELS), max_tokens=LONGEST_WORST)


def row_html(row: ScoredRow, scale: float, prefix: str, *, picks: bool = False) -> Markup:
    """One scored row: its prompt, and each turn as a heat map with its curve and worst spans.

    Args:
        row: the row.
        scale: nats at full colour.
        prefix: what the ids of this row begin with; no other part of the page may begin so.
        picks: with the buttons that choose it for a comparison.
    """
    size = f"{_size(row.num_tokens, row.reward)}, {nats(row.reward_per_token, '+.3f')} per token"
    size += "" if row.id is None else f", row {row.number}"
    category = element("span", row.category, class_="tag") if row.category else None
    heading = element("h3", row.label, " ", category, element("small", size), _picks(row) if picks else None)
    turns = _turns(row, scale, prefix)
    numbers = {"row": row.number, "reward": row.reward, "reward_per_token": row.reward_per_token}
    numbers |= {"tokens": row.num_tokens, "lowest": row.lowest}
    return element(
        "article",
        element("header", heading, _prompt(row.prompt)),
        *(turns or [element("p", "No turn of this row was scored.", class_="dp-note")]),
        class_="dp-row",
        **{f"data_{name}": value for name, value in numbers.items()},
    )


def comparison_html(comparison: Comparison, scale: float, prefix: str) -> Markup:
    """Two answers: their sums, both curves over the aligned tokens, the alignment, and each answer by itself."""
    a, b, columns = comparison.a, comparison.b, comparison.columns()
    lines = [
        Line(name, [0.0 if run is None else run.reward for run in found])
        for name, found in (("A", [c.a for c in columns]), ("B", [c.b for c in columns]))
    ]
    names = ("A" + ("" if a.id == "A" else f": {a.label}"), "B" + ("" if b.id == "B" else f": {b.label}"))
    other = None
    if b.prompt is not None and b.prompt != a.prompt:
        other = join([element("p", "B answers another prompt:", class_="dp-note"), _prompt(b.prompt) or Markup("")])
    note = "A above B. Shared tokens stand under one another; changed ones are boxed."
    aligned = Markup(aligned_html(comparison, scale, "A above B, aligned"))
    return element(
        "article",
        element(
            "header",
            element("h3", names[0], " ", element("small", "against"), f" {names[1]}"),
            _prompt(a.prompt),
            other,
        ),
        element(
            "div",
            _sums(comparison),
            Markup(curve_html(lines, steps="aligned tokens")),
            element("div", element("p", note, class_="dp-note"), aligned, class_="dp-aligned"),
            class_="dp-linked dp-both",
        ),
        element("div", _side("A", a, scale, prefix), _side("B", b, scale, prefix), class_="dp-sides"),
        class_="dp-row dp-comparison",
    )


def _side(name: str, row: ScoredRow, scale: float, prefix: str) -> Markup:
    label = "" if row.id == name else f": {row.label}"
    turns = _turns(row, scale, f"{prefix}{name}")
    return element(
        "section",
        element("h4", f"{name}{label} ", element("small", _size(row.num_tokens, row.reward))),
        *turns,
        aria_label=name,
    )


def _sums(comparison: Comparison) -> Markup:
    a, b = comparison.a, comparison.b
    figures = [
        ("reward", a.reward, b.reward, "+.2f"),
        ("on shared tokens", comparison.rewards("a", True), comparison.rewards("b", True), "+.2f"),
        ("on changed tokens", comparison.rewards("a", False), comparison.rewards("b", False), "+.2f"),
        ("per token", a.reward_per_token, b.reward_per_token, "+.3f"),
    ]
    rows = [(name, *(nats(value, form) for value in (x, y, y - x))) for name, x, y, form in figures]
    rows.append(("tokens", str(a.num_tokens), str(b.num_tokens), number(b.num_tokens - a.num_tokens, "+.0f")))
    cell = functools.partial(element, "td", class_="num")
    heads = (element("th", name, scope="col", class_="num") for name in ("A", "B", "B − A"))
    body = (element("tr", element("th", name, scope="row"), *map(cell, values)) for name, *values in rows)
    head = element("thead", element("tr", element("th", "nats", scope="col"), *heads))
    return element("div", element("table", head, element("tbody", *body)), class_="dp-table")


def _size(tokens: int, reward: float) -> str:
    return f"{tokens} tokens, {nats(reward)} nats"


def _prompt(prompt: str | None) -> Markup | None:
    return None if prompt is None else element("div", prompt, class_="dp-prompt", dir="auto", tabindex=0)


def _picks(row: ScoredRow) -> Markup:
    buttons = [
        element("button", side.upper(), type="button", data_pick=side, data_number=row.number, aria_pressed="false")
        for side in "ab"
    ]
    return element("span", "compare as ", buttons[0], " ", buttons[1], class_="dp-picks")


class _Worst(NamedTuple):
    """A worst span as a page shows it; `first` and `last` count tokens from 1."""

    id: str
    quote: str
    reward: float
    first: int
    last: int


def _turns(row: ScoredRow, scale: float, prefix: str) -> list[Markup]:
    labels = [f"turn {place + 1}" if len(row.turns) > 1 else "" for place in range(len(row.turns))]
    turns = enumerate(zip(row.turns, labels, strict=True))
    return [_turn(turn, scale, f"{prefix}{place}-", label) for place, (turn, label) in turns]


def _turn(turn: ScoredCompletion, scale: float, prefix: str, label: str) -> Markup:
    spans = turn.spans
    found = worst_runs(spans, scale)
    sizes = [len(span.rewards) for span in spans]
    worst = []
    for place, (start, end, reward) in enumerate(found):
        quote = quoted("".join(span.text for span in spans[start:end]), _LONGEST_QUOTE)
        worst.append(_Worst(f"{prefix}{place}", quote, reward, sum(sizes[:start]) + 1, sum(sizes[:end])))
    marks = {(start, end): item.id for (start, end, _), item in zip(found, worst, strict=True)}
    heat = heatmap_html(spans, scale=scale, label=label or "completion", standalone=False, marks=marks)
    bands = [(start, end) for start, end, _ in found]
    line = Line("reward", [span.reward for span in spans])
    curve = curve_html([line], count=len(turn.rewards), bands=bands)
    size = element("small", _size(len(turn.rewards), turn.sum))
    title = element("h4", label, " ", size, class_="dp-turn-title") if label else None
    aside = element("aside", Markup(curve), _worst_list(worst))
    return element("div", element("div", title, Markup(heat)), aside, class_="dp-turn dp-linked")


def _worst_list(worst: Sequence[_Worst]) -> Markup:
    if not worst:
        return element("p", "No token has a reward below zero.", class_="dp-note")
    items = []
    for span in worst:
        where = f"token {span.first}" if span.first == span.last else f"tokens {span.first}–{span.last}"
        reward = element("b", nats(span.reward))
        link = element("a", reward, " ", element("q", span.quote), " ", element("small", where), href=f"#{span.id}")
        items.append(element("li", link))
    return element("div", element("span", "worst spans"), element("ol", *items), class_="dp-worst")
