"""The cumulative reward, token by token, as a small plot: SVG that stretches with the page, and labels in HTML."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from densepath.report.text import visible
from densepath.report.words import nats

WIDTH, HEIGHT = 1000, 100
"""Units of the drawing; it is stretched to its place."""
LEAST_GAP = 16.0
"""Percent of the height below which two labels of the axis would touch."""


class Line(NamedTuple):
    """One curve: the rewards (nats) that are summed up, one per step of the axis, and what it is called."""

    label: str
    rewards: Sequence[float]


def cumulative(rewards: Iterable[float]) -> list[float]:
    """0, r_1, r_1 + r_2, ...: (steps + 1,) nats."""
    return list(itertools.accumulate(rewards, initial=0.0))


def curve_html(
    lines: Sequence[Line], *, steps: str = "tokens", count: int | None = None, bands: Sequence[tuple[int, int]] = ()
) -> str:
    """One or two cumulative curves on common axes; complete without a script, which only adds the moving mark.

    Args:
        lines: one or two curves with the same number of steps.
        steps: what a step of the axis is.
        count: how many there are, where a step holds several; by default the number of rewards.
        bands: (start, end) steps to shade.
    """
    sums = [cumulative(line.rewards) for line in lines]
    size = max((len(values) - 1 for values in sums), default=0)
    low, high = min(0.0, *map(min, sums)), max(0.0, *map(max, sums))
    if high - low <= 0:
        low, high = -1.0, 1.0

    def down(value: float) -> float:
        return HEIGHT * (high - value) / (high - low)

    def across(step: float) -> float:
        return WIDTH * step / max(size, 1)

    drawn = [
        Markup('<rect class="dp-band" x="{:.1f}" y="0" width="{:.1f}" height="{}"/>').format(
            across(start), across(end) - across(start), HEIGHT
        )
        for start, end in bands
    ]
    drawn.append(Markup('<path class="dp-zero" d="M0 {0:.1f}H{1}"/>').format(down(0.0), WIDTH))
    for name, values in zip("ab", sums, strict=False):
        points = " ".join(f"{across(step):.1f} {down(value):.1f}" for step, value in enumerate(values))
        drawn.append(Markup('<path class="dp-line {}" d="M{}"/>').format(name, points))
    labels = [Markup('<i class="dp-dot {}"></i>').format(name) for name, _ in zip("ab", sums, strict=False)]
    labels += [
        Markup('<span class="dp-y" style="top:{:.1f}%">{}</span>').format(place, nats(value, "+.1f") if value else "0")
        for value, place in _ticks(low, high, down)
    ]
    ends = ", ".join(f"{line.label} {nats(values[-1])}" for line, values in zip(lines, sums, strict=True))
    keys = Markup("").join(
        Markup('<span class="dp-key {}">{}</span>').format(name, visible(line.label))
        for name, line in zip("ab", lines, strict=False)
    )
    page = Markup(
        '<figure class="dp-curve" role="img" aria-label="{title}"><div class="dp-plot">'
        '<svg viewBox="0 0 {w} {h}" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg>{labels}</div>'
        "<figcaption>{keys}<span>cumulative reward, nats, over {count} {steps}</span></figcaption></figure>"
    ).format(
        title=visible(f"Cumulative reward over {steps}; at the end: {ends} nats"),
        w=WIDTH,
        h=HEIGHT,
        drawn=Markup("").join(drawn),
        labels=Markup("").join(labels),
        keys=keys if len(lines) > 1 else "",
        count=size if count is None else count,
        steps=steps,
    )
    return str(page)


def _ticks(low: float, high: float, down: Callable[[float], float]) -> list[tuple[float, float]]:
    """(value, percent from the top): the ends, and zero where it stands clear of them."""
    ticks = [(high, 0.0), (low, 100.0)]
    if all(abs(down(0.0) - place) >= LEAST_GAP for _, place in ticks):
        ticks.insert(1, (0.0, down(0.0)))
    return ticks
