"""Scored completions as something to look at: a page, a file with a JSON twin, or a notebook's output."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment
from markupsafe import Markup

from densepath import __version__
from densepath.core.spans import RewardSpan, worst_spans
from densepath.errors import UsageError
from densepath.io import write_json_atomic, write_text_atomic
from densepath.report import parse
from densepath.report.build import ReportPaths
from densepath.report.compare import Comparison, aligned_html, compare
from densepath.report.curve import Line, curve_html
from densepath.report.heatmap import LEVELS, heat_scale, heatmap_css, heatmap_html, legend_html, shown
from densepath.report.html import asset, make_environment, script_hash
from densepath.report.records import Completion, ScoredRow, Span
from densepath.report.scored import SORTS
from densepath.report.scored_row import scored_row
from densepath.report.text import visible

WORST = 3
"""Worst spans shown of each completion."""
LONGEST_WORST = 12
"""Runs in a worst span at most: what a reader takes in at once, and no bridge between two faults far apart."""

MOST_IN_NOTEBOOK = 20
"""Completions in one output of a notebook, which keeps its outputs in its file."""

_LONGEST_QUOTE = 48
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
    """

    rows: tuple[ScoredRow, ...] = ()
    comparison: Comparison | None = None
    title: str = "dense reward"
    facts: tuple[tuple[str, str], ...] = ()
    total: int = 0
    scale: float = 0.0
    sort: str = "row"
    descending: bool = False

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
        paths = ReportPaths(Path(path), Path(path).with_suffix(".json"))
        if paths.html == paths.json:
            raise UsageError(f"{path}: give the page a name that ends in .html; its JSON twin takes .json")
        page = page_html(self, beside=True)
        write_json_atomic(paths.json, self.to_dict())
        write_text_atomic(paths.html, page)
        return paths

    def _repr_html_(self) -> str:
        """What a notebook shows: the same fragments, with their style."""
        prefix = f"dp{next(_outputs)}-"
        few = dataclasses.replace(self, rows=self.rows[:MOST_IN_NOTEBOOK])
        parts = fragment_html(few, prefix)
        if len(few.rows) < self.total:
            parts += Markup('<p class="dp-note">{} of {} completions.</p>').format(len(few.rows), self.total)
        page = Markup('<div class="dp-alone"><style>{}</style>{}</div>').format(
            Markup(heatmap_css() + asset("view.css")), parts
        )
        return str(page)


def page_html(view: ScoreView, *, beside: bool = False) -> str:
    """The page of a view: one file, no network, complete without JavaScript.

    Args:
        view: what to show.
        beside: say that the JSON twin lies beside it.
    """
    return _page(
        live=False,
        beside=beside,
        view=view,
        legend=Markup(legend_html(view.scale)),
        comparison=comparison_html(view.comparison, view.scale, "c-") if view.comparison else "",
        rows=[row_html(row, view.scale, f"r{place}-") for place, row in enumerate(view.rows)],
    )


def live_page_html() -> str:
    """The page of a running server, without anything to see: its script asks the server that it came from."""
    return _page(live=True, beside=False, view=ScoreView(), legend="", comparison="", rows=())


def content_policy(live: bool) -> str:
    """What a page may do: run its one script, and, where a server is behind it, ask that server alone."""
    connect = "connect-src 'self'; " if live else ""
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script_hash(_script())}'; "
        f"{connect}img-src data:; base-uri 'none'; form-action 'none'"
    )


def _script() -> str:
    return asset("tokens.js") + asset("view.js")


def _page(*, live: bool, **values: Any) -> str:
    return (
        _environment()
        .get_template("view.html")
        .render(
            live=live,
            made_by=__version__,
            css=Markup(asset("page.css") + heatmap_css() + asset("view.css")),
            policy=Markup(content_policy(live)),
            script=Markup(_script()),
            sorts=SORTS,
            **values,
        )
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
        facts = Markup(", ").join(Markup("{} <b>{}</b>").format(visible(n), visible(v)) for n, v in view.facts)
        parts.append(Markup('<p class="dp-note">{}</p>').format(facts))
    if view.comparison is not None:
        parts.append(comparison_html(view.comparison, view.scale, f"{prefix}c-"))
    parts += [row_html(row, view.scale, f"{prefix}r{place}-", picks=picks) for place, row in enumerate(view.rows)]
    return Markup("").join(parts)


def row_html(row: ScoredRow, scale: float, prefix: str, *, picks: bool = False) -> Markup:
    """One scored row: its prompt, and each turn as a heat map with its curve and worst spans.

    Args:
        row: the row.
        scale: nats at full colour.
        prefix: what the ids of this row begin with; no other part of the page may begin so.
        picks: with the buttons that choose it for a comparison.
    """
    turns = [_turn(turn, scale, f"{prefix}{place}-") for place, turn in enumerate(row.turns)]
    return Markup(_environment().get_template("view_row.html").render(row=row, turns=turns, picks=picks))


def comparison_html(comparison: Comparison, scale: float, prefix: str) -> Markup:
    """Two answers: their sums, both curves over the aligned tokens, the alignment, and each answer by itself."""
    columns = comparison.columns()
    sides = [
        Line(name, [0.0 if run is None else run.reward for run in runs])
        for name, runs in (("A", [c.a for c in columns]), ("B", [c.b for c in columns]))
    ]
    return Markup(
        _environment()
        .get_template("view_comparison.html")
        .render(
            comparison=comparison,
            curve=Markup(curve_html(sides, steps="aligned tokens")),
            aligned=Markup(aligned_html(comparison, scale, "A above B, aligned")),
            answers=[
                (name, row, [_turn(turn, scale, f"{prefix}{name}{place}-") for place, turn in enumerate(row.turns)])
                for name, row in (("A", comparison.a), ("B", comparison.b))
            ],
        )
    )


def worst_runs(spans: Sequence[Span], scale: float, count: int = WORST) -> list[RewardSpan]:
    """The worst spans of a completion, counted in runs of tokens.

    A run too faint to be coloured does not widen a span: the margin is half a step of colour.
    """
    rewards = [span.reward for span in spans]
    return worst_spans(rewards, count, margin=scale / (2 * LEVELS), max_tokens=LONGEST_WORST)


class _Worst(NamedTuple):
    """A worst span as a page shows it; `first` and `last` count tokens from 1."""

    id: str
    quote: str
    reward: float
    first: int
    last: int


class _Turn(NamedTuple):
    """A completion with its drawings."""

    turn: Completion
    heat: Markup
    curve: Markup
    worst: list[_Worst]


def _turn(turn: Completion, scale: float, prefix: str) -> _Turn:
    found = worst_runs(turn.spans, scale)
    sizes = [max(len(span.token_ids), len(span.rewards)) for span in turn.spans]
    worst = []
    for place, (start, end, reward) in enumerate(found):
        quote = shown("".join(span.text for span in turn.spans[start:end])) or "∅"
        if len(quote) > _LONGEST_QUOTE:
            quote = quote[: _LONGEST_QUOTE - 1] + "…"
        worst.append(_Worst(f"{prefix}{place}", quote, reward, sum(sizes[:start]) + 1, sum(sizes[:end])))
    marks = {(start, end): item.id for (start, end, _), item in zip(found, worst, strict=True)}
    heat = heatmap_html(turn.spans, scale=scale, label=turn.label, standalone=False, marks=marks)
    curve = curve_html(
        [Line("reward", [span.reward for span in turn.spans])],
        count=turn.num_tokens,
        bands=[(start, end) for start, end, _ in found],
    )
    return _Turn(turn, Markup(heat), Markup(curve), worst)


@functools.cache
def _environment() -> Environment:
    return make_environment()


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
        tokenizer: that of the models; needed for scores made from ids, and to show the name of a final EOS.
        limit: take the first completions alone; all if None.

    Raises:
        UsageError: scores without texts and no tokenizer, or a pair that is not there.
    """
    size = len(scores.rewards)
    if tokenizer is None and len(scores.texts) != size:
        raise UsageError("these scores were made from token ids and hold no text; give the tokenizer as well")
    if pair is not None and not all(0 <= index < size for index in pair):
        raise UsageError(f"pair={pair}: there are completions 0 to {size - 1}")
    rows = []
    for index in range(size if limit is None or pair is not None else min(size, limit)):
        turn = _turn_record(scores, index) if tokenizer is None else {"spans": scores.spans(index, tokenizer)}
        value = {"id": labels[index] if labels else f"completion {index + 1}", "turns": [turn]}
        if prompts is not None:
            value["prompt"] = prompts[index]
        rows.append(scored_row(value, index + 1, "scores"))
    if pair is not None:
        return ScoreView(comparison=compare(rows[pair[0]], rows[pair[1]]))
    return ScoreView(rows=tuple(rows), total=size)


def _turn_record(scores: Any, index: int) -> dict[str, Any]:
    """One completion with its text, as a scored file holds a turn."""
    text, offsets = scores.texts[index], [list(offset) for offset in scores.offsets[index]]
    return {
        "tokens": [text[start:end] for start, end in offsets],
        "offsets": offsets,
        "token_ids": list(scores.completion_ids[index]),
        "rewards": scores.rewards[index].tolist(),
        "sft_logprobs": scores.sft_logprobs[index].tolist(),
    }
