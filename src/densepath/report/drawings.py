"""What can be drawn: frozen data, of which `plots` makes SVG."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from densepath.records.estimates import Interval
from densepath.report.records import Curve


@dataclass(frozen=True)
class Whisker:
    """One row of a dot-and-whisker plot; `arm` decides colour and marker."""

    label: str
    estimate: Interval
    arm: str = ""


@dataclass(frozen=True)
class Whiskers:
    """Means as dots with their intervals, the first row on top.

    `zero` is where to draw a dashed reference line; `limits` are those of the axis, for plots that are compared.
    """

    rows: tuple[Whisker, ...]
    xlabel: str
    zero: float | None = None
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Curves:
    """One metric over the steps of each stage; `watch` is a level to mark, in `unit`."""

    curves: tuple[Curve, ...]
    unit: str
    watch: float | None = None


@dataclass(frozen=True)
class Spent:
    """A point of a plot of value against cost: `estimate` for `cost`; `arm` decides colour and marker."""

    label: str
    cost: float
    estimate: Interval
    arm: str = ""


@dataclass(frozen=True)
class Costs:
    """Value against cost, from cost 0 on, with the names in a column on the right; `level` is a reference line."""

    points: tuple[Spent, ...]
    xlabel: str
    ylabel: str
    level: float | None = None


@dataclass(frozen=True)
class Histogram:
    """Counts between ascending edges (one more than counts), with a line at 0."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    xlabel: str
    ylabel: str = "completions"


@dataclass(frozen=True)
class Line:
    """Points that are joined, or with `dots` only marked; `group` shares one colour, and one label in the legend."""

    label: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    group: int = 0
    dots: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Lines:
    """Lines on common axes, either of which may be logarithmic.

    `levels` are (value, label) lines across; `limits` those of the vertical axis; `names` stand for 0, 1, ... on it.
    """

    lines: tuple[Line, ...]
    xlabel: str
    ylabel: str
    xlog: bool = False
    ylog: bool = False
    levels: tuple[tuple[float, str], ...] = ()
    uprights: tuple[tuple[float, str], ...] = ()
    limits: tuple[float, float] | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bars:
    """Horizontal bars from 0: for each name one of every series."""

    names: tuple[str, ...]
    series: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    xlabel: str = ""


@dataclass(frozen=True)
class Outcome:
    """A bar of wins, ties and losses, with the rate and its interval on it, all as shares."""

    label: str
    wins: float
    ties: float
    losses: float
    rate: Interval


@dataclass(frozen=True)
class Outcomes:
    """Wins, ties and losses as bars from 0 to 1, the first row on top, with a dashed line at one half."""

    rows: tuple[Outcome, ...]
    xlabel: str = ""


Drawing: TypeAlias = Whiskers | Curves | Costs | Histogram | Lines | Bars | Outcomes
