"""A report's measured numbers as SVG pictures; the same report gives the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from densepath.errors import UsageError
from densepath.theory.records import EQUALITY_TOLERANCE, Kind, Report, StatementResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TINY = 1e-18
"""Where a deviation of exactly zero is drawn on a logarithmic axis."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's palette: told apart by colour-blind readers too."""


def _draw(paint: Callable[[Axes], None], name: str, size: tuple[float, float] = (6.4, 3.4)) -> str:
    """One figure as an SVG element: no date, no random ids, text kept as text."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("--html draws with matplotlib: pip install 'densepath[plot]'") from error
    settings: dict[Any, Any] = {"svg.hashsalt": f"densepath-theory-{name}", "svg.fonttype": "none", "font.size": 9}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        paint(axes)
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL).strip()


def report_plots(report: Report) -> dict[str, list[dict[str, str]]]:
    """Pictures by statement key, and under "all" those of the whole report.

    Returns:
        Lists of {"svg", "caption"}.
    """
    plots = {"all": [_deviations(report)]}
    painters: dict[str, Callable[[StatementResult], list[dict[str, str]]]] = {
        "shaping": _cut,
        "length": _running,
        "optimum": _optimum,
        "reward-error": _tightness,
        "contraction": _contraction,
        "contrastive": _contrastive,
        "capped": _capped,
    }
    for result in report.results:
        if result.key in painters and result.details:
            plots[result.key] = painters[result.key](result)
    return plots


def _picture(svg: str, caption: str) -> dict[str, str]:
    return {"svg": svg, "caption": caption}


def _deviations(report: Report) -> dict[str, str]:
    def paint(axes: Axes) -> None:
        for place, result in enumerate(report.results):
            values = [max(c.value, TINY) for c in result.checks if c.kind is Kind.EQUALITY]
            axes.plot(values, [place] * len(values), "o", ms=4, alpha=0.6, color=COLOURS[0])
        axes.axvline(EQUALITY_TOLERANCE, color=COLOURS[1], lw=1, label="tolerance")
        axes.set_xscale("log")
        axes.set_yticks(range(len(report.results)), [f"{r.number} {r.key}" for r in report.results])
        axes.invert_yaxis()
        axes.set_xlabel("largest absolute deviation of each equality (0 drawn at 1e-18)")
        axes.legend(frameon=False)

    return _picture(_draw(paint, "deviations"), "Every equality of every statement, against the tolerance.")


def _cut(result: StatementResult) -> list[dict[str, str]]:
    values = result.details["tv_when_the_cut_has_a_potential"]

    def paint(axes: Axes) -> None:
        axes.bar(range(1, len(values) + 1), values, color=COLOURS[0])
        axes.set(xlabel="instance", ylabel="total variation", ylim=(0, 1))

    return [_picture(_draw(paint, "cut"), "How far shaping moves the policy when the cut keeps a potential.")]


def _running(result: StatementResult) -> list[dict[str, str]]:
    def paint(axes: Axes) -> None:
        for colour, (name, curve) in zip(COLOURS, result.details["running_reward"].items(), strict=False):
            axes.plot(range(1, len(curve) + 1), curve, "o-", color=colour, label=name)
        axes.axhline(0, color="grey", lw=0.8)
        axes.set(xlabel="tokens", ylabel="mean running sum, nats")
        axes.legend(frameon=False)

    return [_picture(_draw(paint, "running"), "What a completion of the SFT policy has earned so far, on average.")]


def _optimum(result: StatementResult) -> list[dict[str, str]]:
    details = result.details

    def ascent(axes: Axes) -> None:
        for colour, curve in zip(COLOURS, details["ascent_gap"], strict=False):
            axes.semilogy([max(value, 1e-16) for value in curve], color=colour)
        axes.set(xlabel="steps of plain exact gradient ascent", ylabel="objective's gap to the optimum, nats")

    resting = {
        name: row["tv_of_resting_point"] for name, row in details["estimators"].items() if "tv_of_resting_point" in row
    }

    def rest(axes: Axes) -> None:
        axes.barh(list(resting), list(resting.values()), color=COLOURS[1])
        axes.invert_yaxis()
        axes.set_xlabel("total variation between where it rests and the optimum")

    variances = details["variance"][0]

    def variance(axes: Axes) -> None:
        names = list(variances["random policy"])
        for shift, (place, row) in enumerate(variances.items()):
            heights = [index + 0.4 * shift for index in range(len(names))]
            axes.barh(heights, [row[name] for name in names], height=0.38, color=COLOURS[shift], label=place)
        axes.set_yticks([index + 0.2 for index in range(len(names))], names)
        axes.invert_yaxis()
        axes.set_xlabel("trace of the gradient's covariance (one batch, exact)")
        axes.legend(frameon=False)

    return [
        _picture(_draw(ascent, "ascent"), "Exact ascent closes the gap to the closed-form optimum."),
        _picture(_draw(rest, "rest"), "Estimators that aim elsewhere, and how far from the optimum they rest."),
        _picture(_draw(variance, "variance", (6.4, 4.4)), "Unbiased estimators differ in variance alone."),
    ]


def _tightness(result: StatementResult) -> list[dict[str, str]]:
    def paint(axes: Axes) -> None:
        labels: set[str] = set()
        for search in result.details["search_curves"]:
            kind = search["bound"]
            colour = COLOURS[0 if kind == "policy" else 1]
            label = None if kind in labels else f"searched, {kind} bound"
            labels.add(kind)
            axes.plot(search["ratio"], color=colour, label=label)
        best = result.details["tightness_random"]["policy"]
        axes.axhline(best, color=COLOURS[2], ls="--", label="best random, policy bound")
        axes.axhline(1, color="grey", lw=0.8)
        axes.set(xlabel="steps of the search", ylabel="share of the bound", ylim=(0, 1.05))
        axes.legend(frameon=False, loc="lower right")

    return [_picture(_draw(paint, "tightness"), "The bounds hold, and a search comes up to them (first token).")]


def _contraction(result: StatementResult) -> list[dict[str, str]]:
    def paint(axes: Axes) -> None:
        for colour, (name, row) in zip(COLOURS, result.details["largest_constant_times_mu"].items(), strict=False):
            axes.semilogx([float(mu) for mu in row], list(row.values()), "o-", color=colour, label=f"ψ {name}")
        axes.axhline(1, color="grey", lw=0.8)
        axes.set(xlabel="μ", ylabel="largest Lipschitz constant · μ", ylim=(0, 1.1))
        axes.legend(frameon=False)

    return [_picture(_draw(paint, "contraction"), "The quadratic attains 1/μ, log cosh does not.")]


def _contrastive(result: StatementResult) -> list[dict[str, str]]:
    alphas: list[float] = result.details["alphas"]
    curves: list[dict[str, Any]] = result.details["curves"]

    def paint(axes: Axes) -> None:
        sizes = sorted({(curve["vocab"], curve["horizon"]) for curve in curves})
        seen: set[tuple[int, int]] = set()
        for curve in curves:
            size = (curve["vocab"], curve["horizon"])
            label = None if size in seen else f"V = {size[0]}, H = {size[1]}"
            seen.add(size)
            axes.plot(alphas, curve["tv"], "o-", ms=3, color=COLOURS[sizes.index(size) % len(COLOURS)], label=label)
        axes.set(xlabel="α = 1/β", ylabel="total variation to π*", ylim=(0, 1))
        axes.legend(frameon=False, loc="lower right")

    return [_picture(_draw(paint, "contrastive"), "Token-by-token contrastive sampling against the optimum.")]


def _capped(result: StatementResult) -> list[dict[str, str]]:
    inverse = [1 / beta for beta in result.details["betas"]]

    def paint(axes: Axes) -> None:
        for number, growth in enumerate(result.details["largest_log_growth"]):
            for colour, name in zip(COLOURS, ("capped", "uncapped"), strict=False):
                axes.plot(inverse, growth[name], "o-", ms=3, color=colour, label=None if number else name)
        axes.plot(inverse, inverse, "--", color="grey", label="α/β, the bound for κ = 0")
        axes.set(xlabel="α/β", ylabel="largest log π*(y)/π_SFT(y), nats")
        axes.legend(frameon=False)

    return [_picture(_draw(paint, "capped"), "How much a sequence can gain, with the reward capped at 0 and without.")]
