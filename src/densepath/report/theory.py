"""What checking the statements of docs/theory.md gave, as a page with plots and as a table of the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from densepath import __version__
from densepath.records.theory import EQUALITY_TOLERANCE, Check, Kind, Report, StatementResult, verdict_word
from densepath.report.document import Beside, Column, Document, Figure, Paragraph, Part, Row, Section, Table, present
from densepath.report.drawings import Bars, Line, Lines
from densepath.report.next_step import after_theory
from densepath.report.words import Run

TINY = 1e-18
"""Where a deviation of exactly zero is drawn on a logarithmic axis."""

WIDE = 150
"""Columns that a table with everything side by side needs; below, a statement's particulars stand under it."""


def theory_page(report: Report) -> Document:
    """The page; its JSON twin is the report itself."""
    sources = " P: the paper's. D: derived in docs/theory.md, where the proofs stand."
    words = (
        f"Seed {report.seed}, {report.instances} random instances of each statement, float64. Verdict: ",
        _verdict(report.holds),
        f".{sources}",
    )
    first = Section("statements", "", (Paragraph(words), _statements(report), Beside((_deviations(report),))))
    return Document(
        brand="densepath theory",
        title="statements checked",
        facts=(),
        sections=(first, *map(_section, report.results)),
        footer=f"Written by densepath {__version__}.",
        next=after_theory(),
    )


def theory_parts(report: Report, width: int, seconds: float | None = None) -> tuple[Part, ...]:
    """For the terminal: the table, every check that fails, and one line that sums up."""
    held = sum(result.holds for result in report.results)
    time = "" if seconds is None else f" in {seconds:.1f} s"
    last = f"{held} of {len(report.results)} statements hold{time} "
    last += f"(seed {report.seed}, {report.instances} instances each). "
    failed = [
        Paragraph(Run(_failure(result, check), "worse"))
        for result in report.results
        for check in result.checks
        if not check.holds
    ]
    return (_brief(report, width >= WIDE), *failed, Paragraph(f"{last}P: the paper's; D: derived in docs/theory.md"))


def _verdict(holds: bool) -> Run:
    return Run(verdict_word(holds), "better" if holds else "worse")


def _failure(result: StatementResult, check: Check) -> str:
    relation = "at least" if check.kind is Kind.DIFFERS else "at most"
    return f"{result.number}. {check.name}: {check.value:.3e}, should be {relation} {check.limit:.0e}"


def _brief(report: Report, wide: bool) -> Table:
    words = ("statement", "source", "assumes", "checked by") if wide else ("statement",)
    columns = [Column("#", numeric=True), *(Column(name, fold=True) for name in words)]
    columns += [Column("largest", "deviation", numeric=True), Column("checks", numeric=True), Column("verdict")]
    rows = []
    for result in report.results:
        particulars = (result.source, result.assumes, result.method)
        named = zip(("source", "assumes", "checked by"), particulars, strict=True)
        under = [f"\n{name}: {text}" for name, text in named]
        about = (result.title, *particulars) if wide else ((Run(result.title, "bold"), *under),)
        count = f"{sum(check.holds for check in result.checks)}/{len(result.checks)}"
        rows.append(Row((str(result.number), *about, f"{result.deviation:.1e}", count, _verdict(result.holds))))
    return Table(tuple(columns), tuple(rows), "densepath theory", lines=True)


def _statements(report: Report) -> Table:
    names = ("statement", "source", "assumes", "checked by")
    columns = [Column("#"), *map(Column, names), Column("largest deviation", numeric=True), Column("verdict")]
    rows = []
    for result in report.results:
        title = Run(result.title, target=result.key)
        cells = (str(result.number), title, result.source, result.assumes, result.method, f"{result.deviation:.1e}")
        rows.append(Row((*cells, _verdict(result.holds))))
    return Table(tuple(columns), tuple(rows))


def _section(result: StatementResult) -> Section:
    columns = (
        Column("check"),
        Column("kind"),
        Column("value", numeric=True),
        Column("limit", numeric=True),
        Column("verdict"),
    )
    rows = []
    for check in result.checks:
        limit = f"{'≥' if check.kind is Kind.DIFFERS else '≤'} {check.limit:.3g}"
        rows.append(Row((check.name, check.kind.value, f"{check.value:.3e}", limit, _verdict(check.holds))))
    words = Paragraph(f"Assumes: {result.assumes}. Source: {result.source}. Proof: {result.docs}.")
    figures = _FIGURES[result.key](result.details) if result.key in _FIGURES and result.details else ()
    beside = Beside(tuple(figures)) if figures else None
    parts = present([words, beside, Table(columns, tuple(rows))])
    return Section(result.key, f"{result.number}. {result.title}", parts, link=str(result.number))


# --- Figures ---------------------------------------------------------------------------------------------------------


def _line(label: str, values: Iterable[float], group: int = 0, *, first: int = 0) -> Line:
    ys = tuple(values)
    return Line(label, tuple(float(first + place) for place in range(len(ys))), ys, group)


def _deviations(report: Report) -> Figure:
    lines = []
    for place, result in enumerate(report.results):
        values = tuple(max(check.value, TINY) for check in result.checks if check.kind is Kind.EQUALITY)
        values = tuple(value for value in values if value == value)  # a NaN has no place on an axis
        lines.append(Line("", values, (float(place),) * len(values), dots=True))
    drawing = Lines(
        tuple(lines),
        "largest absolute deviation of each equality (0 drawn at 1e-18)",
        "",
        xlog=True,
        uprights=((EQUALITY_TOLERANCE, "tolerance"),),
        names=tuple(f"{result.number} {result.key}" for result in report.results),
    )
    return Figure("Every equality of every statement, against the tolerance.", drawing)


def _cut(details: Mapping[str, Any]) -> list[Figure]:
    values = details["tv_when_the_cut_has_a_potential"]
    names = tuple(f"instance {place + 1}" for place in range(len(values)))
    drawing = Bars(names, {"": tuple(values)}, "total variation")
    return [Figure("How far shaping moves the policy when the cut keeps a potential.", drawing)]


def _running(details: Mapping[str, Any]) -> list[Figure]:
    curves = details["running_reward"].items()
    lines = [_line(name, curve, group, first=1) for group, (name, curve) in enumerate(curves)]
    drawing = Lines(tuple(lines), "tokens", "mean running sum, nats", levels=((0.0, ""),))
    return [Figure("What a completion of the SFT policy has earned so far, on average.", drawing)]


def _optimum(details: Mapping[str, Any]) -> list[Figure]:
    curves = [
        _line("", (max(value, 1e-16) for value in curve), group) for group, curve in enumerate(details["ascent_gap"])
    ]
    ascent = Lines(tuple(curves), "steps of plain exact gradient ascent", "gap to the optimum, nats", ylog=True)
    rest = {
        name: row["tv_of_resting_point"] for name, row in details["estimators"].items() if "tv_of_resting_point" in row
    }
    resting = Bars(tuple(rest), {"": tuple(rest.values())}, "total variation between where it rests and the optimum")
    variances = details["variance"][0]
    names = tuple(variances["random policy"])
    series = {place: tuple(row[name] for name in names) for place, row in variances.items()}
    variance = Bars(names, series, "trace of the gradient's covariance (one batch, exact)")
    return [
        Figure("Exact ascent closes the gap to the closed-form optimum.", ascent),
        Figure("Estimators that aim elsewhere, and how far from the optimum they rest.", resting),
        Figure("Unbiased estimators differ in variance alone.", variance),
    ]


def _tightness(details: Mapping[str, Any]) -> list[Figure]:
    lines = []
    for search in details["search_curves"]:
        lines.append(_line(f"searched, {search['bound']} bound", search["ratio"], int(search["bound"] != "policy")))
    best = (float(details["tightness_random"]["policy"]), "best random, policy bound")
    drawing = Lines(
        tuple(lines), "steps of the search", "share of the bound", levels=(best, (1.0, "")), limits=(0.0, 1.05)
    )
    return [Figure("The bounds hold, and a search comes up to them (first token).", drawing)]


def _contraction(details: Mapping[str, Any]) -> list[Figure]:
    lines = []
    for group, (name, row) in enumerate(details["largest_constant_times_mu"].items()):
        lines.append(Line(f"ψ {name}", tuple(float(mu) for mu in row), tuple(row.values()), group))
    drawing = Lines(
        tuple(lines), "μ", "largest Lipschitz constant · μ", xlog=True, levels=((1.0, ""),), limits=(0.0, 1.1)
    )
    return [Figure("The quadratic attains 1/μ, log cosh does not.", drawing)]


def _contrastive(details: Mapping[str, Any]) -> list[Figure]:
    alphas, curves = tuple(details["alphas"]), details["curves"]
    sizes = sorted({(curve["vocab"], curve["horizon"]) for curve in curves})
    lines = []
    for curve in curves:
        size = (curve["vocab"], curve["horizon"])
        lines.append(Line(f"V = {size[0]}, H = {size[1]}", alphas, tuple(curve["tv"]), sizes.index(size)))
    drawing = Lines(tuple(lines), "α = 1/β", "total variation to π*", limits=(0.0, 1.0))
    return [Figure("Token-by-token contrastive sampling against the optimum.", drawing)]


def _capped(details: Mapping[str, Any]) -> list[Figure]:
    inverse = tuple(1 / beta for beta in details["betas"])
    lines = [
        Line(name, inverse, tuple(growth[name]), group)
        for growth in details["largest_log_growth"]
        for group, name in enumerate(("capped", "uncapped"))
    ]
    bound = Line("α/β, the bound for κ = 0", inverse, inverse, 5, dashed=True)
    drawing = Lines((*lines, bound), "α/β", "largest log π*(y)/π_SFT(y), nats")
    return [Figure("How much a sequence can gain, with the reward capped at 0 and without.", drawing)]


_FIGURES: dict[str, Callable[[Mapping[str, Any]], list[Figure]]] = {
    "shaping": _cut,
    "length": _running,
    "optimum": _optimum,
    "reward-error": _tightness,
    "contraction": _contraction,
    "contrastive": _contrastive,
    "capped": _capped,
}
