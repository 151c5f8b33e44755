"""What pages are made of: the answer, arms, differences, the choice of reference, training, samples, setup, terms."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

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
    Tile,
    Tiles,
    present,
)
from densepath.report.drawings import Curves, Whisker, Whiskers
from densepath.report.load import STAGES
from densepath.report.records import Curve, Results, Selection, Term, Verdict
from densepath.report.verdict import KL_WATCH
from densepath.report.words import DASH, Run, Words, duration, interval, number, share, verdict


def warnings_notice(lines: Sequence[str]) -> Notice | None:
    """What a reader has to know first; None where there is nothing."""
    return Notice("Be wary of", tuple(lines), "warnings") if lines else None


def glossary_table(terms: Iterable[Term]) -> Table:
    """Each quantity with its unit, meaning, and which way is alarming."""
    columns = tuple(Column(name) for name in ("name", "unit", "meaning", "be alarmed by"))
    return Table(columns, tuple(Row((term.name, term.unit or DASH, term.meaning, term.alarm)) for term in terms))


# --- The answer ------------------------------------------------------------------------------------------------------


def summary_section(found: Verdict, results: Results | None, warnings: Sequence[str]) -> Section:
    """The verdict, the arms' figures, what the arms are, and what to be wary of."""
    words = (
        "SFT fine-tunes a model on demonstrations. DPR (Dense-Path REINFORCE) then trains it on a reward found inside "
        "that fine-tuning: for each token, how much likelier the SFT model finds it than an earlier ",
        Run("reference", target="glossary"),
        " does. Continued SFT is the control: plain fine-tuning for as long. Terms are explained in the ",
        Run("glossary", target="glossary"),
        ".",
    )
    card = Notice(found.headline, found.details, found.kind, headline=True)
    parts = present([card, _tiles(results), Paragraph(words, "muted"), warnings_notice(warnings)])
    return Section("summary", "", parts, link="Summary")


def _tiles(results: Results | None) -> Tiles | None:
    """The metric of each arm at the first decoding."""
    if results is None or not results.rows:
        return None
    decoding = results.rows[0].decoding
    tiles = []
    for row in results.rows:
        if row.decoding != decoding or row.metric is None:
            continue
        notes = [f"{results.metric.name}, {decoding}"]
        if row.metric.low is not None and row.metric.high is not None:
            notes.append(f"{number(row.metric.low)} to {number(row.metric.high)}")
        tiles.append(Tile(row.label, number(row.metric.mean), tuple(notes), row.arm))
    return Tiles(tuple(tiles))


# --- The arms --------------------------------------------------------------------------------------------------------


def results_section(results: Results) -> Section:
    """The table of arms with the metric drawn, and the paired differences."""
    metric = results.metric
    words: list[str | Run] = ["Metric: ", Run(metric.name, "strong")]
    words.append(f", {'higher' if metric.higher_is_better else 'lower'} is better. {metric.description}".rstrip())
    parts = [Paragraph(tuple(words)), arms_table(results), _arm_plots(results), *_paired(results)]
    return Section("results", "Results", present(parts))


def arms_table(results: Results) -> Table:
    """Every arm at every decoding, with all that was measured and its intervals."""
    rows = results.rows
    optional = {
        "nll": any(row.nll for row in rows) and results.metric.name != "nll",
        "time": any(row.train_seconds is not None for row in rows),
        "FLOPs": any(row.train_flops is not None for row in rows),
    }
    columns = [Column("arm"), Column("prompts", numeric=True), Column(results.metric.name, numeric=True)]
    units = {"dense reward": "nats/completion", "length": "tokens", "entropy": "nats/token"}
    units["KL to SFT"] = "nats/completion"
    units |= {"held-out NLL": "nats/token"} if optional["nll"] else {}
    columns += [Column(name, unit, numeric=True) for name, unit in (*units.items(), ("truncated", "share"))]
    columns += [Column("training", name, numeric=True) for name in ("time", "FLOPs") if optional[name]]
    made = []
    for row in rows:
        cells: list[Words] = [row.label, DASH if row.n is None else str(row.n), interval(row.metric)]
        cells += [
            interval(row.dense_reward, 2),
            interval(row.length, 1),
            interval(row.entropy, 2),
            interval(row.kl, 2),
        ]
        cells += [interval(row.nll)] if optional["nll"] else []
        cells.append(share(row.truncated))
        cells += [duration(row.train_seconds)] if optional["time"] else []
        cells += [number(row.train_flops, ".4g")] if optional["FLOPs"] else []
        made.append(Row(tuple(cells), group=row.decoding or "decoding not recorded"))
    caption = f"mean [interval]{f'; {results.interval}' if results.interval else ''}. A dash: not measured."
    return Table(tuple(columns), tuple(made), caption=caption, style="stack")


def brief_arms_table(results: Results | None) -> Table:
    """The same in 80 columns: the metric has its interval, those of the other columns stand on the page."""
    metric = results.metric.name if results else "metric"
    names = (metric, "reward", "length", "entropy", "KL")
    made = []
    for row in results.rows if results else ():
        figures = ((row.dense_reward, 2), (row.length, 1), (row.entropy, 2), (row.kl, 2))
        means = (number(value.mean if value else None, f".{digits}f") for value, digits in figures)
        made.append(Row((row.label, row.decoding.replace("temperature ", "T = "), interval(row.metric), *means)))
    columns = (Column("arm"), Column("decoding"), *(Column(name, numeric=True) for name in names))
    return Table(columns, tuple(made), caption=f"interval: {results.interval}" if results and results.interval else "")


def _arm_plots(results: Results) -> Beside | None:
    """The metric of each arm, a drawing each decoding, on a common axis."""
    known = [row.metric for row in results.rows if row.metric]
    ends = [end for item in known for end in (item.mean, item.low, item.high) if end is not None]
    if not ends:
        return None
    pad = 0.05 * (max(ends) - min(ends) or 1.0)
    xlabel = f"{results.metric.name} ({'higher' if results.metric.higher_is_better else 'lower'} is better)"
    found = []
    for decoding in dict.fromkeys(row.decoding for row in results.rows if row.metric):
        rows = [
            Whisker(row.label, row.metric, row.arm) for row in results.rows if row.decoding == decoding and row.metric
        ]
        drawing = Whiskers(tuple(rows), xlabel, limits=(min(ends) - pad, max(ends) + pad))
        found.append(Figure(f"{results.metric.name}, {decoding}", drawing))
    return Beside(tuple(found))


def _paired(results: Results) -> list[Part]:
    if not results.paired:
        return []
    words = (
        "Both arms answered the same prompts, so they are compared prompt by prompt. An interval that holds 0 shows "
        "no difference; it does not show that there is none."
    )
    unit = f"in {results.metric.name}"
    columns = (Column("comparison"), Column("difference", unit, numeric=True), Column("verdict"))
    rows, drawn = [], []
    for pair in results.paired:
        arm, against = results.label(pair.arm), results.label(pair.against)
        name = (Run(f"{arm} − {against}"), Run(pair.decoding, "small"))
        tag = verdict(pair.verdict, "no difference shown" if pair.verdict == "tie" else "")
        rows.append(Row((name, interval(pair.difference, signed=True), tag)))
        if pair.difference:
            drawn.append(Whisker(f"{arm} − {against}, {pair.decoding}", pair.difference, pair.arm))
    side = "better" if results.metric.higher_is_better else "worse"
    xlabel = f"difference in {results.metric.name} (right of 0: {side})"
    drawing = Whiskers(tuple(drawn), xlabel, zero=0.0)
    figure = Figure("Differences with their intervals", drawing, "Dashed: no difference") if drawn else None
    beside = Beside(present([Table(columns, tuple(rows), style="stack"), figure]))
    return [Heading("Paired differences"), Paragraph(words), beside]


# --- The choice of reference -----------------------------------------------------------------------------------------


def choice_section(selection: Selection) -> Section:
    """Which reference and beta were chosen, why, and among what."""
    words = (
        "DPR amplifies whatever changed from the reference to the SFT model, good or bad; the reference decides "
        "between the best and the worst outcome."
    )
    reason = f" {selection.reason}" if selection.reason else ""
    parts = [Paragraph((Run(_chosen(selection), "strong"), reason)), Paragraph(words, "muted")]
    beside = Beside(present([_candidates(selection), _candidates_plot(selection)])) if selection.rows else None
    return Section("reference", "Choice of reference", present([*parts, beside]), link="Reference")


def _chosen(selection: Selection) -> str:
    reference = selection.chosen_reference
    if reference is None:
        return "None helps: no candidate beat the SFT model on validation, so DPR has nothing sound to train on."
    words = f"Chosen: reference {reference}" + (" (the model before SFT)" if reference in ("0", "0.0") else "")
    words += "" if selection.chosen_beta is None else f", β {number(selection.chosen_beta, '.4g')}"
    return words + (" (fixed by the configuration)." if selection.mode == "fixed" else ".")


def _candidates(selection: Selection) -> Table:
    judged = any(row.lead for row in selection.rows)
    columns = [Column("reference", "share of SFT"), Column("β", "nats", numeric=True)]
    names = ("α = 1/β", "score", *(("lead",) if judged else ()), "n")
    columns += [Column(name, numeric=True) for name in names]
    rows = []
    if selection.baseline:
        n = DASH if selection.baseline_n is None else str(selection.baseline_n)
        lead = (DASH,) if judged else ()
        rows.append(Row(("SFT at its best", DASH, DASH, interval(selection.baseline), *lead, n)))
    for row in selection.rows:
        chosen = (row.reference, row.beta) == (selection.chosen_reference, selection.chosen_beta)
        cells = [row.reference + (" ✓" if chosen else ""), number(row.beta, ".4g"), number(row.alpha, ".4g")]
        leads = (interval(row.lead, signed=True),) if judged else ()
        rows.append(Row((*cells, interval(row.score), *leads, DASH if row.n is None else str(row.n)), chosen))
    caption = f"Score: {selection.criterion}. Shaded: chosen." if selection.criterion else "Shaded: chosen."
    return Table(tuple(columns), tuple(rows), caption=caption)


def _candidates_plot(selection: Selection) -> Figure | None:
    """The number that decides: the lead over SFT at its best, or, where no answers were judged, the score."""
    judged = any(row.lead for row in selection.rows)
    rows = [
        Whisker(f"reference {row.reference}" + (f", β {row.beta:g}" if row.beta is not None else ""), shown)
        for row in selection.rows
        if (shown := row.lead if judged else row.score)
    ]
    if not rows:
        return None
    if not judged:
        return Figure("Validation score", Whiskers(tuple(rows), selection.criterion or "validation score", zero=None))
    drawing = Whiskers(tuple(rows), selection.criterion, zero=0.0)
    return Figure("Lead on validation", drawing, "Dashed: no difference to SFT at its best")


# --- Training --------------------------------------------------------------------------------------------------------


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


def training_section(curves: Sequence[Curve]) -> Section | None:
    """A drawing for each panel that was logged; None where none was."""
    panels = [(panel, _panel_curves(curves, panel)) for panel in PANELS]
    drawn = [_panel_figure(panel, found) for panel, found in panels if found]
    if not drawn:
        return None
    stages = {curve.stage for curve in curves}
    keys = tuple(Run(label, f"k-{stage}") for stage, label in STAGES.items() if stage in stages)
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
        and curve.stage in panel.stages
        and any(value is not None for value in curve.values)
    ]


def _panel_figure(panel: Panel, curves: Sequence[Curve]) -> Figure:
    last = ", ".join(f"{STAGES[curve.stage]} {number(curve.values[-1], '.3g')}" for curve in curves)
    return Figure(panel.title, Curves(tuple(curves), panel.unit, panel.watch), panel.note, f"last: {last}")


# --- Samples and setup -----------------------------------------------------------------------------------------------


def samples_section(samples: Sequence[Sample], total: int, results: Results | None) -> Section:
    """The first saved samples, each arm's completion as a heat map."""
    few = f"The first {len(samples)} of {total} in file order, not selected by outcome."
    words = few if len(samples) < total else f"All {total} saved samples."
    words += (
        " Each token is coloured by its dense reward on one common scale. The colour says what the reward pays for, "
        "not what is right. Point at a token, or focus a completion and use the arrow keys, to see its numbers."
    )
    arms = dict.fromkeys(arm for sample in samples for arm in sample.completions)
    labels = {arm: results.label(arm) if results else STAGES.get(arm, arm) for arm in arms}
    judged = results is not None and results.metric.name == "exact_match"
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
