"""Figures as inline SVG: deterministic, themed by the page's CSS variables, without pyplot's global state."""

from __future__ import annotations

import importlib.util
import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from densepath.report.records import Curve, Estimate
from densepath.report.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_THEME = {"#010101": "var(--ink)", "#020202": "var(--muted)", "#030303": "var(--line)", "#040404": "var(--card)"}
INK, MUTED, LINE, CARD = _THEME
ARM_COLORS = {"sft": "#050505", "continued_sft": "#060606", "dpr": "#070707"}
_OTHER_COLORS = ("#080808", "#090909", "#0a0a0a")
_THEME |= {color: f"var(--arm-{arm})" for arm, color in ARM_COLORS.items()}
_THEME |= {color: f"var(--arm-{index})" for index, color in enumerate(_OTHER_COLORS)}
"""Stand-in colours drawn by matplotlib, and the CSS variable each becomes."""

DASHES: dict[str, Any] = {"sft": (0, (1, 1.6)), "continued_sft": (0, (5, 2)), "dpr": "-"}
_MARKERS = {"sft": "s", "continued_sft": "D", "dpr": "o"}
SMOOTH_FROM = 40
"""Curves with at least this many points are drawn faintly, under their running mean over a twentieth of them."""


@dataclass(frozen=True)
class Whisker:
    """One row of a dot-and-whisker plot; `arm` decides colour and marker."""

    label: str
    estimate: Estimate
    arm: str = ""


@dataclass(frozen=True)
class Spent:
    """A point of a plot of value against cost: `estimate` for `cost`; `arm` decides colour and marker."""

    label: str
    cost: float
    estimate: Estimate
    arm: str = ""


def available() -> bool:
    """Whether matplotlib is installed (the `plot` extra)."""
    return importlib.util.find_spec("matplotlib") is not None


def arm_color(arm: str) -> str:
    """The stand-in colour of an arm; arms without one of their own share three."""
    return ARM_COLORS.get(arm) or _OTHER_COLORS[sum(map(ord, arm)) % len(_OTHER_COLORS)]


def arm_css(arm: str) -> str:
    """The colour of an arm as CSS: the same as in the plots."""
    return _THEME[arm_color(arm)]


def curve_svg(curves: Sequence[Curve], unit: str, *, name: str, watch: float | None = None) -> str:
    """One metric over the steps of each stage.

    Args:
        curves: same metric, one per stage.
        unit: label of the vertical axis.
        name: prefix of the SVG's ids, unique on the page.
        watch: a level to mark with a dashed line, in `unit`.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for curve in curves:
            _draw_curve(axes, curve)
        if watch is not None:
            highest = max((value for curve in curves for value in curve.values if value is not None), default=0.0)
            if highest > watch / 3:
                axes.axhline(watch, color=MUTED, linewidth=0.8, linestyle="--", zorder=1)
        axes.set_xlabel("step of the stage")
        axes.set_ylabel(unit)
        axes.grid(axis="y", color=LINE, linewidth=0.7)
        axes.margins(x=0.02, y=0.12)

    return _svg(draw, (3.5, 2.15), name)


def _draw_curve(axes: Axes, curve: Curve) -> None:
    values = [float("nan") if value is None else value for value in curve.values]
    color, dash = arm_color(curve.stage), DASHES.get(curve.stage, "-")
    many = len(values) >= SMOOTH_FROM
    marker = "o" if len(values) < 3 else None
    axes.plot(
        curve.steps,
        values,
        color=color,
        alpha=0.28 if many else 1.0,
        linestyle="-" if many else dash,
        linewidth=0.8 if many else 1.5,
        marker=marker,
        markersize=4,
    )
    if many:
        smooth = running_mean(curve.values, max(5, len(values) // 20 | 1))
        axes.plot(curve.steps, smooth, color=color, linewidth=1.6, linestyle=dash)


def running_mean(values: Sequence[float | None], window: int) -> list[float]:
    """The mean of the known values among the `window` (odd) around each; NaN where there is none.

    Near an end the window holds only what is there.
    """
    means = []
    for index in range(len(values)):
        near = values[max(0, index - window // 2) : index + window // 2 + 1]
        known = [value for value in near if value is not None]
        means.append(sum(known) / len(known) if known else float("nan"))
    return means


def whisker_svg(
    rows: Sequence[Whisker],
    xlabel: str,
    *,
    name: str,
    zero: float | None = None,
    limits: tuple[float, float] | None = None,
) -> str:
    """Means as dots with their intervals, first row on top.

    Args:
        rows: what to draw.
        xlabel: the quantity with its unit.
        name: prefix of the SVG's ids, unique on the page.
        zero: where to draw a reference line (no difference, or the baseline).
        limits: of the horizontal axis, for plots that are compared.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, row in enumerate(rows):
            found = row.estimate
            color = arm_color(row.arm) if row.arm else INK
            if found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [index, index], color=color, linewidth=1.8, solid_capstyle="butt")
            axes.plot(
                [found.mean], [index], _MARKERS.get(row.arm, "o"), color=color, markersize=6, markeredgecolor=CARD
            )
        if zero is not None:
            axes.axvline(zero, color=MUTED, linewidth=0.9, linestyle="--", zorder=1)
        axes.set_yticks(range(len(rows)), [_short(row.label) for row in rows], parse_math=False)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        if limits:
            axes.set_xlim(*limits)
        axes.margins(x=0.06)
        axes.set_xlabel(_short(xlabel, 70), parse_math=False)
        axes.grid(axis="x", color=LINE, linewidth=0.7)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)

    return _svg(draw, (5.2, 0.62 + 0.27 * max(1, len(rows))), name)


def cost_svg(points: Sequence[Spent], xlabel: str, ylabel: str, *, name: str, level: float | None = None) -> str:
    """Value against cost, from cost 0 on; the names stand in a column on the right, at the end of thin lines.

    Args:
        points: what to draw.
        xlabel: the cost with its unit.
        ylabel: the value.
        name: prefix of the SVG's ids, unique on the page.
        level: where to draw a horizontal reference line.
    """
    height = max(2.3, 0.6 + 0.17 * len(points))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for point in points:
            found, color = point.estimate, arm_color(point.arm)
            if found.low is not None and found.high is not None:
                axes.plot([point.cost] * 2, [found.low, found.high], color=color, linewidth=1.2, alpha=0.6)
            marker = _MARKERS.get(point.arm, "o")
            axes.plot([point.cost], [found.mean], marker, color=color, markersize=6, markeredgecolor=CARD)
        if level is not None:
            axes.axhline(level, color=MUTED, linewidth=0.9, linestyle="--", zorder=1)
        axes.margins(x=0.04, y=0.06)
        most = max(point.cost for point in points)
        axes.set_xlim(-0.03 * (most or 1.0), 1.04 * (most or 1.0))
        low, high = axes.get_ylim()
        axes.set_ylim(low, high)
        ordered = sorted(points, key=lambda point: (point.estimate.mean, point.label))
        heights = [(point.estimate.mean - low) / (high - low) for point in ordered]
        for point, at in zip(ordered, apart(heights, 0.16 / (height - 0.6)), strict=True):
            axes.annotate(
                _short(point.label, 34),
                (point.cost, point.estimate.mean),
                (1.03, at),
                textcoords="axes fraction",
                va="center",
                color=arm_color(point.arm),
                arrowprops={"arrowstyle": "-", "color": LINE, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3},
                parse_math=False,
                zorder=1,
            )
        axes.set_xlabel(_short(xlabel, 70), parse_math=False)
        axes.set_ylabel(_short(ylabel, 40), parse_math=False)
        axes.grid(color=LINE, linewidth=0.7)

    return _svg(draw, (5.2, height), name)


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending places in [0, 1], each near its height and `gap` from the next, as far as they all fit.

    >>> apart([0.25, 0.25, 1.0], 0.125)
    [0.25, 0.375, 1.0]
    """
    gap = min(gap, 1 / max(1, len(heights) - 1))
    places = list(heights)
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + gap)
    ceiling = 1.0
    for index in reversed(range(len(places))):
        places[index] = min(places[index], ceiling)
        ceiling = places[index] - gap
    return places


def histogram_svg(edges: Sequence[float], counts: Sequence[int], xlabel: str, *, name: str) -> str:
    """Counts between edges, with a line at 0.

    Args:
        edges: one more than counts, ascending.
        counts: how many fall between each two.
        xlabel: the quantity with its unit.
        name: prefix of the SVG's ids, unique on the page.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.stairs(counts, edges, fill=True, color=arm_color("dpr"), linewidth=0)
        axes.axvline(0.0, color=MUTED, linewidth=0.9, linestyle="--")
        axes.set_xlabel(_short(xlabel, 70), parse_math=False)
        axes.set_ylabel("completions")
        axes.grid(axis="y", color=LINE, linewidth=0.7)

    return _svg(draw, (3.5, 1.9), name)


def _short(text: str, length: int = 38) -> str:
    text = " ".join(visible(text).split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _svg(draw: Any, size: tuple[float, float], name: str) -> str:
    """A figure as SVG; the same input gives the same bytes (salted ids, no date)."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {
        "svg.hashsalt": "densepath",
        "svg.fonttype": "none",
        "font.size": 8,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": LINE,
        "axes.facecolor": "none",
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.useoffset": False,
        "axes.unicode_minus": True,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": INK,
    }
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # the user's matplotlibrc must not change the page
        matplotlib.rcParams.update(style)
        warnings.simplefilter("ignore")  # glyphs that matplotlib's font lacks are drawn by the browser
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return inline_svg(buffer.getvalue(), name)


def inline_svg(text: str, name: str) -> str:
    """Matplotlib's SVG as a fragment of a page: no metadata, fonts and colours from the page, ids prefixed."""
    root = ET.fromstring(text)
    for parent in root.iter():
        for child in [item for item in parent if item.tag.rpartition("}")[2] in ("metadata", "style")]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            if key == "style":
                value = re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", value)
                value = re.sub(r"font-family: [^;]*; ?", "", value)
                value = re.sub(r"#0[1-9a]0[1-9a]0[1-9a]", lambda match: _THEME.get(match[0], match[0]), value)
            elif key == "id":
                value = f"{name}-{value}"
            value = value.replace("url(#", f"url(#{name}-")
            value = f"#{name}-{value[1:]}" if key.endswith("href") and value.startswith("#") else value
            element.set(key.rpartition("}")[2], value)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("aria-hidden", "true")
    return ET.tostring(root, encoding="unicode").replace("\n", "")
