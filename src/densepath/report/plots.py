"""Drawings as inline SVG: colours and fonts of the page, no ids, no scripts; the same drawing gives the same bytes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup

from densepath.records.estimates import Interval
from densepath.report.drawings import Bars, Costs, Curves, Drawing, Histogram, Lines, Outcomes, Whiskers
from densepath.report.elements import element
from densepath.report.records import Curve
from densepath.report.text import visible

INK, MUTED, LINE, CARD = "var(--ink)", "var(--muted)", "var(--line)", "var(--card)"
_ARMS = ("sft", "continued_sft", "dpr")
_PALETTE = ("dpr", "continued_sft", "0", "1", "2", "sft")
_DASHES = {"sft": "1.5 2.4", "continued_sft": "7.5 3"}
SMOOTH_FROM = 40
"""Curves with at least this many points are drawn faintly, under their running mean over a twentieth of them."""

_FONT = 8.0
"""Size of the letters; a drawing's units are points."""


def color_name(arm: str) -> str:
    """What the style sheet calls the colour of an arm; arms without one of their own share three."""
    return arm if arm in _ARMS else str(sum(map(ord, arm)) % 3)


def arm_color(arm: str) -> str:
    """The colour of an arm as CSS."""
    return f"var(--arm-{color_name(arm)})"


@functools.singledispatch
def svg(drawing: Drawing) -> Markup:
    """A drawing as one `svg` element."""
    raise TypeError(f"no drawing: {drawing!r}")


# --- Axes ------------------------------------------------------------------------------------------------------------


class _Scale:
    """Values to places: straight, or by their logarithm."""

    def __init__(self, low: float, high: float, start: float, end: float, *, log: bool = False) -> None:
        if high == low:
            low, high = (low / 10, high * 10) if log else (low - (0.05 * abs(low) or 0.06), high + 0.06)
        self.low, self.high, self.start, self.end, self.log = low, high, start, end, log

    def __call__(self, value: float) -> float:
        low, high, value = map(math.log10, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Round values on the axis, at most about so many, with how they are written."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            every = max(1, math.ceil((last - first) / most))
            return [(10.0**power, _power(power)) for power in range(first, last + 1, every)]
        raw = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(each * power for each in (1, 2, 2.5, 5, 10) if each * power >= raw * (1 - 1e-9))
        digits = max(0, -math.floor(math.log10(step) + 1e-9)) + (abs(step / power - 2.5) < 1e-9 and power <= 1)
        places = range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
        return [(place * step, _tick(place * step, digits, self.high)) for place in places]


def _tick(value: float, digits: int, largest: float) -> str:
    text = f"{value:.3g}".replace("e+0", "e").replace("e+", "e") if abs(largest) >= 1e5 else f"{value:.{digits}f}"
    return text.replace("-", "−")


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


class _Canvas:
    """An SVG that grows: axes with their ticks, and marks on them."""

    def __init__(
        self,
        size: tuple[float, float],
        margins: tuple[float, float, float, float],
        limits: Sequence[float],
        **log: bool,
    ) -> None:
        """Of a size, with margins left, top, right and bottom, and limits of x and y."""
        left, top, right, bottom = margins
        self.width, self.height = size
        self.x = _Scale(limits[0], limits[1], left, self.width - right, log=log.get("xlog", False))
        self.y = _Scale(limits[2], limits[3], self.height - bottom, top, log=log.get("ylog", False))
        self.parts: list[Markup] = []

    def text(
        self, x: float, y: float, words: str, *, anchor: str = "middle", color: str = INK, turn: bool = False
    ) -> None:
        self.parts.append(
            element(
                "text",
                words,
                x=_at(x),
                y=_at(y),
                text_anchor=anchor,
                style=f"fill:{color}",
                transform=f"rotate(-90 {_at(x)} {_at(y)})" if turn else None,
            )
        )

    def path(
        self, points: Iterable[tuple[float, float]], color: str, width: float, *, dash: str = "", opacity: float = 1
    ) -> None:
        line = "L".join(f"{_at(x)} {_at(y)}" for x, y in points)
        style = f"fill:none;stroke:{color};stroke-width:{width:g}"
        style += (f";stroke-dasharray:{dash}" if dash else "") + (f";opacity:{opacity:g}" if opacity < 1 else "")
        self.parts.append(element("path", d=f"M{line}", style=style))

    def across(self, value: float, *, color: str = MUTED, dash: str = "3.3 1.5") -> None:
        self.path([(self.x.start, self.y(value)), (self.x.end, self.y(value))], color, 0.9, dash=dash)

    def upright(self, value: float, *, color: str = MUTED, dash: str = "3.3 1.5") -> None:
        self.path([(self.x(value), self.y.start), (self.x(value), self.y.end)], color, 0.9, dash=dash)

    def marker(self, x: float, y: float, arm: str, color: str, size: float = 3.0) -> None:
        style = f"fill:{color};stroke:{CARD}"
        if arm == "sft":
            side = _at(2 * size - 1)
            shape = element("rect", x=_at(x - size + 0.5), y=_at(y - size + 0.5), width=side, height=side, style=style)
        elif arm == "continued_sft":
            half = 1.3 * size
            corners = f"M{_at(x)} {_at(y - half)}l{half:g} {half:g}l{-half:g} {half:g}l{-half:g} {-half:g}z"
            shape = element("path", d=corners, style=style)
        else:
            shape = element("circle", cx=_at(x), cy=_at(y), r=f"{size:g}", style=style)
        self.parts.append(shape)

    def box(self, x: float, y: float, width: float, height: float, color: str) -> None:
        self.parts.append(
            element("rect", x=_at(x), y=_at(y), width=_at(width), height=_at(height), style=f"fill:{color}")
        )

    def bottom(self, label: str, *, grid: bool = True, spine: bool = True) -> None:
        """The horizontal axis."""
        foot = self.y.start
        for value, text in self.x.ticks(max(2, int((self.x.end - self.x.start) / 42))):
            if grid:
                self.path([(self.x(value), foot), (self.x(value), self.y.end)], LINE, 0.7)
            self.path([(self.x(value), foot), (self.x(value), foot + 3.0)], LINE, 0.8)
            self.text(self.x(value), foot + 11.5, text, color=MUTED)
        if spine:
            self.path([(self.x.start, foot), (self.x.end, foot)], LINE, 0.8)
        self.text((self.x.start + self.x.end) / 2, foot + 22.0, _short(label, 70), color=MUTED)

    def side(self, label: str, *, grid: bool = True) -> None:
        """The vertical axis."""
        left = self.x.start
        for value, text in self.y.ticks(max(2, int((self.y.start - self.y.end) / 22))):
            if grid:
                self.path([(left, self.y(value)), (self.x.end, self.y(value))], LINE, 0.7)
            self.text(left - 4.5, self.y(value) + 2.8, text, anchor="end")
        self.path([(left, self.y.start), (left, self.y.end)], LINE, 0.8)
        self.text(9.0, (self.y.start + self.y.end) / 2, _short(label, 40), color=MUTED, turn=True)

    def names(self, names: Sequence[str]) -> None:
        """The names of rows 0, 1, ... on the left."""
        for index, name in enumerate(names):
            self.text(self.x.start - 6.0, self.y(index) + 2.8, name, anchor="end")

    def legend(self, entries: Sequence[tuple[str, str, str]]) -> None:
        """(label, colour, dash) in a line above the axes."""
        at = self.x.start
        for label, color, dash in entries:
            self.path([(at, 8.0), (at + 14.0, 8.0)], color, 1.6, dash=dash)
            self.text(at + 18.0, 10.8, label, anchor="start")
            at += 30.0 + _wide(label)

    def done(self) -> Markup:
        return element(
            "svg",
            *self.parts,
            viewBox=f"0 0 {_at(self.width)} {_at(self.height)}",
            font_size=f"{_FONT:g}",
            aria_hidden="true",
        )


def _at(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _short(text: str, length: int = 38) -> str:
    text = " ".join(visible(text).split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _wide(text: str) -> float:
    """About how wide a text is drawn."""
    return sum(_FONT if ord(letter) > 0x2E80 else 0.56 * _FONT for letter in text)


def _limits(values: Iterable[float], margin: float) -> tuple[float, float]:
    known = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(known), max(known)
    pad = margin * (high - low)
    return low - pad, high + pad


def _ends(estimates: Iterable[Interval]) -> list[float]:
    return [end for one in estimates for end in (one.mean, one.low, one.high)]


# --- Drawings --------------------------------------------------------------------------------------------------------


@svg.register
def _whiskers(drawing: Whiskers) -> Markup:
    rows = drawing.rows
    names = [_short(row.label) for row in rows]
    ends = _ends(row.estimate for row in rows) + ([] if drawing.zero is None else [drawing.zero])
    limits = drawing.limits or _limits(ends, 0.06)
    height = 45.0 + 19.4 * max(1, len(rows))
    left = 12.0 + max(map(_wide, names), default=0.0)
    canvas = _Canvas((374.0, height), (left, 3.0, 8.0, 27.0), (*limits, len(rows) - 0.4, -0.6))
    canvas.bottom(drawing.xlabel)
    canvas.names(names)
    if drawing.zero is not None:
        canvas.upright(drawing.zero)
    for index, row in enumerate(rows):
        color = arm_color(row.arm) if row.arm else INK
        found, at = row.estimate, canvas.y(index)
        canvas.path([(canvas.x(found.low), at), (canvas.x(found.high), at)], color, 1.8)
        canvas.marker(canvas.x(found.mean), at, row.arm, color)
    return canvas.done()


@svg.register
def _curves(drawing: Curves) -> Markup:
    points = [value for curve in drawing.curves for value in curve.values if value is not None]
    watch = drawing.watch if drawing.watch is not None and max(points, default=0.0) > drawing.watch / 3 else None
    steps = _limits((step for curve in drawing.curves for step in curve.steps), 0.02)
    values = _limits([*points, *([] if watch is None else [watch])], 0.12)
    canvas = _Canvas((252.0, 155.0), (_left(values, 155.0), 4.0, 4.0, 27.0), (*steps, *values))
    canvas.bottom("step of the stage", grid=False)
    canvas.side(drawing.unit)
    if watch is not None:
        canvas.across(watch)
    for curve in drawing.curves:
        _draw_curve(canvas, curve)
    return canvas.done()


def _left(limits: tuple[float, float], height: float) -> float:
    """Room for the numbers of a vertical axis and its label."""
    ticks = _Scale(*limits, height, 0.0).ticks(max(2, int((height - 31) / 22)))
    return 20.0 + max(_wide(text) for _, text in ticks)


def _draw_curve(canvas: _Canvas, curve: Curve) -> None:
    color, dash = arm_color(curve.stage), _DASHES.get(curve.stage, "")
    many = len(curve.values) >= SMOOTH_FROM
    for stretch in _stretches(curve.steps, curve.values):
        points = [(canvas.x(step), canvas.y(value)) for step, value in stretch]
        if many:
            canvas.path(points, color, 0.8, opacity=0.28)
        else:
            canvas.path(points, color, 1.5, dash=dash)
        if len(curve.values) < 3:
            for x, y in points:
                canvas.marker(x, y, "", color, 2.0)
    if many:
        for stretch in _stretches(curve.steps, running_mean(curve.values, max(5, len(curve.values) // 20 | 1))):
            canvas.path([(canvas.x(step), canvas.y(value)) for step, value in stretch], color, 1.6, dash=dash)


def _stretches(steps: Sequence[float], values: Sequence[float | None]) -> list[list[tuple[float, float]]]:
    """The parts of a curve between the steps of which no value is known."""
    found: list[list[tuple[float, float]]] = [[]]
    for step, value in zip(steps, values, strict=True):
        if value is None:
            found.append([])
        else:
            found[-1].append((step, value))
    return [stretch for stretch in found if stretch]


def running_mean(values: Sequence[float | None], window: int) -> list[float | None]:
    """The mean of the known values among the `window` (odd) around each; None where there is none.

    Near an end the window holds only what is there.
    """
    means: list[float | None] = []
    for index in range(len(values)):
        near = values[max(0, index - window // 2) : index + window // 2 + 1]
        known = [value for value in near if value is not None]
        means.append(sum(known) / len(known) if known else None)
    return means


@svg.register
def _costs(drawing: Costs) -> Markup:
    points = drawing.points
    height = 72 * max(2.3, 0.6 + 0.17 * len(points))
    levels = [] if drawing.level is None else [drawing.level]
    values = _limits(_ends(point.estimate for point in points) + levels, 0.06)
    most = max(point.cost for point in points) or 1.0
    labels = [_short(point.label, 34) for point in points]
    margins = (_left(values, height), 4.0, 16.0 + max(map(_wide, labels)), 27.0)
    canvas = _Canvas((374.0, height), margins, (-0.03 * most, 1.04 * most, *values))
    canvas.bottom(drawing.xlabel)
    canvas.side(drawing.ylabel)
    if drawing.level is not None:
        canvas.across(drawing.level)
    tall = canvas.y.start - canvas.y.end
    ordered = sorted(points, key=lambda point: (point.estimate.mean, point.label))
    heights = [(canvas.y.start - canvas.y(point.estimate.mean)) / tall for point in ordered]
    for point, at in zip(ordered, apart(heights, 11.5 / tall), strict=True):
        place = canvas.y.start - at * tall
        right = canvas.x.end + 10.0
        canvas.path([(canvas.x(point.cost), canvas.y(point.estimate.mean)), (right, place)], LINE, 0.6)
        canvas.text(right + 2.0, place + 2.8, _short(point.label, 34), anchor="start", color=arm_color(point.arm))
    for point in points:
        found, color, at = point.estimate, arm_color(point.arm), canvas.x(point.cost)
        canvas.path([(at, canvas.y(found.low)), (at, canvas.y(found.high))], color, 1.2, opacity=0.6)
        canvas.marker(at, canvas.y(found.mean), point.arm, color)
    return canvas.done()


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


@svg.register
def _histogram(drawing: Histogram) -> Markup:
    limits = (0.0, 1.05 * max(1, *drawing.counts))
    edges = _limits([*drawing.edges, 0.0], 0.02)
    canvas = _Canvas((252.0, 137.0), (_left(limits, 137.0), 4.0, 4.0, 27.0), (*edges, *limits))
    canvas.bottom(drawing.xlabel, grid=False)
    canvas.side(drawing.ylabel)
    for low, high, count in zip(drawing.edges, drawing.edges[1:], drawing.counts, strict=False):
        top = canvas.y(count)
        canvas.box(canvas.x(low), top, canvas.x(high) - canvas.x(low), canvas.y.start - top, arm_color("dpr"))
    canvas.upright(0.0)
    return canvas.done()


@svg.register
def _lines(drawing: Lines) -> Markup:
    lines, names = drawing.lines, drawing.names
    xs = [*(x for line in lines for x in line.xs), *(value for value, _ in drawing.uprights)]
    ys = [*(y for line in lines for y in line.ys), *(value for value, _ in drawing.levels)]
    around: Callable[..., tuple[float, float]] = _limits
    limits = (*_margin(xs, drawing.xlog, around), *(drawing.limits or _margin(ys, drawing.ylog, around)))
    if names:
        limits = (*limits[:2], len(names) - 0.4, -0.6)
    height = 30.0 + 20.0 * len(names) if names else 245.0
    left = 12.0 + max(map(_wide, names)) if names else 52.0
    canvas = _Canvas((460.0, height + 15.0), (left, 18.0, 8.0, 27.0), limits, xlog=drawing.xlog, ylog=drawing.ylog)
    canvas.bottom(drawing.xlabel)
    if names:
        canvas.names(names)
    else:
        canvas.side(drawing.ylabel)
    for value, _ in drawing.levels:
        canvas.across(value)
    for value, _ in drawing.uprights:
        canvas.upright(value, color=arm_color("continued_sft"), dash="")
    for line in lines:
        color, points = (
            _group_color(line.group),
            [(canvas.x(x), canvas.y(y)) for x, y in zip(line.xs, line.ys, strict=True)],
        )
        if not line.dots and points:
            canvas.path(points, color, 1.5, dash="5 3" if line.dashed else "")
        if line.dots or len(points) <= 12:
            for x, y in points:
                canvas.marker(x, y, "", color, 2.2)
    canvas.legend(_legend(drawing))
    return canvas.done()


def _margin(values: Sequence[float], log: bool, around: Callable[..., tuple[float, float]]) -> tuple[float, float]:
    if not log:
        low, high = around(values, 0.04)
        return low, high
    low, high = around([math.log10(value) for value in values], 0.04)
    return 10.0**low, 10.0**high


def _group_color(group: int) -> str:
    return f"var(--arm-{_PALETTE[group % len(_PALETTE)]})"


def _legend(drawing: Lines) -> list[tuple[str, str, str]]:
    entries = {
        line.label: (_group_color(line.group), "5 3" if line.dashed else "") for line in drawing.lines if line.label
    }
    entries |= {label: (MUTED, "3.3 1.5") for _, label in drawing.levels if label}
    entries |= {label: (arm_color("continued_sft"), "") for _, label in drawing.uprights if label}
    return [(label, *looks) for label, looks in entries.items()]


@svg.register
def _bars(drawing: Bars) -> Markup:
    names = [_short(name) for name in drawing.names]
    most = max((value for values in drawing.series.values() for value in values), default=1.0) or 1.0
    left = 12.0 + max(map(_wide, names), default=0.0)
    size = (460.0, 60.0 + 19.4 * len(names))
    canvas = _Canvas(size, (left, 18.0, 8.0, 27.0), (0.0, 1.05 * most, len(names) - 0.4, -0.6))
    canvas.bottom(drawing.xlabel)
    canvas.names(names)
    thick = 13.0 / max(1, len(drawing.series))
    for group, values in enumerate(drawing.series.values()):
        for index, value in enumerate(values):
            top = canvas.y(index) - 6.5 + thick * group
            canvas.box(canvas.x.start, top, canvas.x(value) - canvas.x.start, thick - 0.5, _group_color(group))
    if len(drawing.series) > 1:
        canvas.legend([(name, _group_color(group), "") for group, name in enumerate(drawing.series)])
    return canvas.done()


@svg.register
def _outcomes(drawing: Outcomes) -> Markup:
    rows = drawing.rows
    names = [_short(row.label) for row in rows]
    left = 12.0 + max(map(_wide, names), default=0.0)
    size = (460.0, 60.0 + 19.4 * max(1, len(rows)))
    canvas = _Canvas(size, (left, 18.0, 12.0, 27.0), (0.0, 1.0, len(rows) - 0.4, -0.6))
    canvas.bottom(drawing.xlabel, grid=False)
    canvas.names(names)
    shades = (("wins", "var(--good)"), ("ties", LINE), ("losses", "var(--bad)"))
    for index, row in enumerate(rows):
        start, at = 0.0, canvas.y(index)
        for name, color in shades:
            end = start + getattr(row, name)
            canvas.box(canvas.x(start), at - 6.5, canvas.x(end) - canvas.x(start), 13.0, color)
            start = end
        canvas.path([(canvas.x(row.rate.low), at), (canvas.x(row.rate.high), at)], INK, 1.8)
        canvas.marker(canvas.x(row.rate.mean), at, "", INK)
    canvas.upright(0.5, color=INK)
    canvas.legend([(name, color, "") for name, color in shades])
    return canvas.done()
