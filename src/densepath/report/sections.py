"""What the page of a run has beside its results: choice of reference, training, samples, setup; and terms."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from densepath.records.choice import CandidateRow, ReferenceChoice, strength_name
from densepath.records.completion import Sample
from densepath.report.document import (
    Beside,
    Column,
    Figure,
    Fold,
    Heading,
    Notice,
    Paragraph,
    Part,
    Row,
    Samples,
    Section,
    Table,
    present,
)
from densepath.report.drawings import Curves, Whisker, Whiskers
from densepath.report.plots import color_name
from densepath.report.records import Curve, Term
from densepath.report.verdict import KL_WATCH
from densepath.report.words import DASH, Run, interval, number


def warnings_notice(lines: Sequence[str]) -> Notice | None:
    """What a reader has to know first; None where there is nothing."""
    return Notice("Be wary of", tuple(lines), "warnings") if lines else None


def glossary_table(terms: Iterable[Term]) -> Table:
    """Each quantity with its unit, meaning, and which way is alarming."""
    columns = tuple(Column(name) for name in ("name", "unit", "meaning", "be alarmed by"))
    return Table(columns, tuple(Row((term.name, term.unit or DASH, term.meaning, term.alarm)) for term in terms))


# --- The choice of reference -----------------------------------------------------------------------------------------


def choice_section(selection: ReferenceChoice) -> Section:
    """Which reference and beta were chosen, why, and among what."""
    words = (
        "DPR amplifies whatever changed from the reference to the SFT model, good or bad; the reference decides "
        "between the best and the worst outcome."
    )
    reason = f" {selection.reason}" if selection.reason else ""
    parts = [Paragraph((Run(_chosen(selection), "strong"), reason)), Paragraph(words, "muted")]
    beside = Beside((_candidates(selection), _candidates_plot(selection))) if selection.rows else None
    return Section("reference", "Choice of reference", present([*parts, beside]), link="Reference")


def _chosen(selection: ReferenceChoice) -> str:
    chosen = selection.chosen
    if chosen is None:
        return "None helps: no candidate beat the SFT model on validation, so DPR has nothing sound to train on."
    words = f"Chosen: reference {chosen.reference}" + (" (the model before SFT)" if chosen.reference == "0" else "")
    words += ", with the capped reward" if chosen.capped else f", β {number(chosen.beta, '.4g')}"
    return words + (" (fixed by the configuration)." if selection.mode == "fixed" else ".")


def _is_chosen(selection: ReferenceChoice, row: CandidateRow) -> bool:
    chosen = selection.chosen
    if chosen is None or (row.reference, row.capped) != (chosen.reference, chosen.capped):
        return False
    return row.capped or row.beta == chosen.beta  # there is one capped candidate, whatever beta is


def _candidates(selection: ReferenceChoice) -> Table:
    judged = any(row.lead for row in selection.rows)
    names = ("score", *(("lead",) if judged else ()), "n")
    columns = [Column("reference", "share of SFT"), Column("β", "nats", numeric=True)]
    columns += [Column(name, numeric=True) for name in names]
    rows = []
    if (best := selection.baseline) is not None:
        lead = (DASH,) if judged else ()
        rows.append(Row(("SFT at its best", DASH, interval(best), *lead, str(best.n))))
    for row in selection.rows:
        chosen = _is_chosen(selection, row)
        cells = [row.reference + (" ✓" if chosen else ""), "capped" if row.capped else number(row.beta, ".4g")]
        leads = (interval(row.lead, signed=True),) if judged else ()
        rows.append(Row((*cells, interval(row.score), *leads, str(row.n)), chosen))
    caption = f"Score: {selection.criterion}. Shaded: chosen."
    return Table(tuple(columns), tuple(rows), caption=caption)


def _candidates_plot(selection: ReferenceChoice) -> Figure:
    """The number that decides: the lead over SFT at its best, or, where no answers were judged, the score."""
    names = [
        f"reference {row.reference}, {strength_name(row.beta, row.capped).replace('beta', 'β')}"
        for row in selection.rows
    ]
    leads = [row.lead for row in selection.rows if row.lead is not None]
    if not leads:
        scores = map(Whisker, names, (row.score for row in selection.rows))
        return Figure("Validation score", Whiskers(tuple(scores), selection.criterion))
    drawing = Whiskers(tuple(map(Whisker, names, leads)), selection.criterion, zero=0.0)
    return Figure("Lead on validation", drawing, "Dashed: no difference to SFT at its best")


# --- Training --------------------------------------------------------------------------------------------------------


class Panel(NamedTuple):
    """A training curve on the page: which metric, of which stages if not of all, and how its axis is called."""

    metric: str
    title: str
    unit: str
    note: str = ""
    stages: tuple[str, ...] | None = None
    watch: float | None = None


_BY_OWN_LOSS = ("dft", "purified_sft", "purified_random", "purified_sft_logprob")
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
    Panel("loss", "Loss: SFT", "nats per token", "", ("sft", "continued_sft", "rejection_sampling", "filtered_sft")),
    Panel("loss", "Loss: DFT, purification", "of each its own", "Not to be compared.", _BY_OWN_LOSS),
    Panel("loss", "Loss: DPR", "surrogate", "Only its gradient has a meaning.", ("dpr", "dpr_capped")),
    Panel("grad_norm", "Gradient norm", "before clipping"),
)


def training_section(curves: Sequence[Curve], labels: Mapping[str, str]) -> Section | None:
    """A drawing for each panel that was logged; None where none was.

    Args:
        curves: of every stage.
        labels: what a reader calls each stage.
    """
    panels = [(panel, _panel_curves(curves, panel)) for panel in PANELS]
    drawn = [_panel_figure(panel, found, labels) for panel, found in panels if found]
    if not drawn:
        return None
    stages = dict.fromkeys(curve.stage for curve in curves)
    keys = tuple(Run(labels[stage], f"k-{color_name(stage)}") for stage in stages)
    words = "Long curves are drawn faintly under their running mean. Each stage counts its own steps."
    missing = [panel.title for panel, found in panels if not found]
    words += f" Not logged: {', '.join(missing)}." if missing else ""
    parts = (Paragraph(keys, "keys"), Paragraph(words, "muted"), Beside(tuple(drawn), "panels"))
    return Section("training", "Training", parts)


def _panel_curves(curves: Sequence[Curve], panel: Panel) -> list[Curve]:
    return [
        curve
        for curve in curves
        if curve.metric == panel.metric
        and (panel.stages is None or curve.stage in panel.stages)
        and any(value is not None for value in curve.values)
    ]


def _panel_figure(panel: Panel, curves: Sequence[Curve], labels: Mapping[str, str]) -> Figure:
    last = ", ".join(f"{labels[curve.stage]} {number(curve.values[-1], '.3g')}" for curve in curves)
    return Figure(panel.title, Curves(tuple(curves), panel.unit, panel.watch), panel.note, f"last: {last}")


# --- Samples and setup -----------------------------------------------------------------------------------------------


def samples_section(samples: Sequence[Sample], total: int, labels: Mapping[str, str], *, judged: bool) -> Section:
    """The first saved samples, each arm's completion as a heat map.

    Args:
        samples: what is shown.
        total: how many there are.
        labels: names of arms.
        judged: whether the metric says right (1) or wrong (0).
    """
    few = f"The first {len(samples)} of {total} in file order, not selected by outcome."
    words = few if len(samples) < total else f"All {total} saved samples."
    words += (
        " Each token is coloured by its dense reward on one common scale. The colour says what the reward pays for, "
        "not what is right. Point at a token, or focus a completion and use the arrow keys, to see its numbers."
    )
    parts = (Paragraph(words), Samples(tuple(samples), labels, judged))
    return Section("samples", "Sample completions", parts, link="Samples")


def setup_section(data: Mapping[str, Any], values: Mapping[str, Mapping[str, Any]], missing: Sequence[str]) -> Section:
    """Where the rows came from, and each mapping of settings under its title."""
    left = Paragraph(f"Not in this run folder: {'; '.join(missing)}.", "muted") if missing else None
    folds = [Fold(title, (_settings(each),)) for title, each in values.items() if each]
    return Section("run", "Run", present([left, *_data(data), *folds]))


def _data(data: Mapping[str, Any]) -> list[Part]:
    rows = []
    for name, entry in data.items():
        if isinstance(entry, Mapping):
            source, count = (DASH if entry.get(key) is None else str(entry[key]) for key in ("source", "rows"))
            rows.append(Row((name, source, count, Run(str(entry.get("sha256") or DASH), "mono hash"))))
    columns = (Column("name"), Column("source"), Column("rows", numeric=True), Column("SHA-256"))
    return [Heading("Data"), Table(columns, tuple(rows), style="kv")] if rows else []


def _settings(values: Mapping[str, Any]) -> Table:
    rows = tuple(Row((Run(key, "mono"), Run(value, "mono"))) for key, value in flat(values))
    return Table((Column(""), Column("")), rows, style="kv")


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted key, value) rows, in their own order."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return rows
