"""`Report` -> the page. Every value passes through one door: made visible, then escaped."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from jinja2 import Environment
from markupsafe import Markup

from densepath.report import plots
from densepath.report.heatmap import heat_scale, heatmap_css, heatmap_html, legend_html
from densepath.report.html import asset, duration, interval, make_environment, script_hash
from densepath.report.load import STAGES
from densepath.report.records import Curve, Report
from densepath.report.verdict import KL_WATCH


class Panel(NamedTuple):
    """A training curve on the page: which metric of which stages, and how its axis is called."""

    metric: str
    title: str
    unit: str
    note: str = ""
    stages: tuple[str, ...] = tuple(STAGES)
    watch: float | None = None


PANELS = (
    Panel("reward", "Dense reward", "nats per completion", "A rise alone is not evidence of quality."),
    Panel(
        "kl_sequence",
        "KL to SFT",
        "nats per completion",
        f"Dashed: {KL_WATCH}; most collapses came above it.",
        watch=KL_WATCH,
    ),
    Panel("completions/mean_length", "Completion length", "tokens"),
    Panel("completions/clipped_ratio", "Share truncated", "share of completions", "Cut off at the length limit."),
    Panel("entropy", "Entropy", "nats per token"),
    Panel("loss", "Loss: SFT", "nats per token", "", ("sft", "continued_sft")),
    Panel("loss", "Loss: DPR", "surrogate", "Only its gradient has a meaning.", ("dpr",)),
    Panel("grad_norm", "Gradient norm", "before clipping"),
)


def render_html(report: Report) -> str:
    """The whole page as text: one file, no network, complete without JavaScript."""
    script = asset("tokens.js") + asset("page.js")
    spans = [part for sample in report.samples for item in sample.completions for part in item.spans]
    scale = heat_scale(spans)
    return (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            css=Markup(asset("page.css") + heatmap_css()),
            script=Markup(script),
            script_hash=script_hash(script),
            plots_available=plots.available(),
            arm_plots=_arm_plots(report),
            paired_plot=_paired_plot(report),
            selection_plot=_selection_plot(report),
            panels=_panels(report),
            not_logged=_not_logged(report),
            legend=Markup(legend_html(scale)),
            heatmap=lambda item: Markup(heatmap_html(item.spans, scale=scale, label=item.label, standalone=False)),
            categories=sorted({sample.category for sample in report.samples if sample.category}),
            stages=STAGES,
        )
    )


@functools.cache
def _environment() -> Environment:
    return make_environment(interval=interval, duration=duration, flat=flat, arm_css=plots.arm_css)


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted key, value) rows, in their own order."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return rows


def _arm_plots(report: Report) -> list[tuple[str, Markup]]:
    """(decoding, SVG): the metric of each arm, on a common axis."""
    results = report.results
    if results is None or not plots.available():
        return []
    known = [row.metric for row in results.rows if row.metric]
    ends = [end for item in known for end in (item.mean, item.low, item.high) if end is not None]
    if not ends:
        return []
    pad = 0.05 * (max(ends) - min(ends) or 1.0)
    limits = (min(ends) - pad, max(ends) + pad)
    xlabel = f"{results.metric.name} ({'higher' if results.metric.higher_is_better else 'lower'} is better)"
    found = []
    for index, decoding in enumerate(dict.fromkeys(row.decoding for row in results.rows)):
        rows = [
            plots.Whisker(row.label, row.metric, row.arm)
            for row in results.rows
            if row.decoding == decoding and row.metric
        ]
        if rows:
            found.append((decoding, Markup(plots.whisker_svg(rows, xlabel, name=f"arm{index}", limits=limits))))
    return found


def _paired_plot(report: Report) -> Markup | None:
    results = report.results
    if results is None or not plots.available():
        return None
    pairs = [
        plots.Whisker(
            f"{results.label(pair.arm)} − {results.label(pair.against)}, {pair.decoding}", pair.difference, pair.arm
        )
        for pair in results.paired
        if pair.difference
    ]
    if not pairs:
        return None
    side = "better" if results.metric.higher_is_better else "worse"
    xlabel = f"difference in {results.metric.name} (right of 0: {side})"
    return Markup(plots.whisker_svg(pairs, xlabel, name="paired", zero=0.0))


def _selection_plot(report: Report) -> Markup | None:
    selection = report.selection
    if selection is None or not plots.available():
        return None
    rows = [
        plots.Whisker(f"reference {row.reference}" + (f", β {row.beta:g}" if row.beta is not None else ""), row.score)
        for row in selection.rows
        if row.score
    ]
    if not rows:
        return None
    zero = selection.baseline.mean if selection.baseline else None
    if selection.baseline:
        rows.insert(0, plots.Whisker("SFT (baseline)", selection.baseline, "sft"))
    return Markup(plots.whisker_svg(rows, selection.criterion or "validation score", name="select", zero=zero))


def _panel_curves(report: Report, panel: Panel) -> list[Curve]:
    return [
        curve
        for curve in report.curves
        if curve.metric == panel.metric
        and curve.stage in panel.stages
        and any(value is not None for value in curve.values)
    ]


def _panels(report: Report) -> list[tuple[Panel, list[Curve], Markup | None]]:
    found: list[tuple[Panel, list[Curve], Markup | None]] = []
    for index, panel in enumerate(PANELS):
        curves = _panel_curves(report, panel)
        if curves:
            svg = plots.available() and plots.curve_svg(curves, panel.unit, name=f"curve{index}", watch=panel.watch)
            found.append((panel, curves, Markup(svg) if svg else None))
    return found


def _not_logged(report: Report) -> list[str]:
    return [panel.title for panel in PANELS if not _panel_curves(report, panel)]
