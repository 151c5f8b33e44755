"""The record of an experiment (`results.json`) as a page: warnings, verdicts, plots, tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from densepath.errors import MissingFileError
from densepath.io import write_text_atomic
from densepath.records.codec import read_record
from densepath.records.estimates import Verdict
from densepath.records.results import ArmComparison, ArmRow, Results, SettingResults
from densepath.report.document import (
    Beside,
    Column,
    Document,
    Figure,
    Fold,
    Heading,
    Notice,
    Paragraph,
    Part,
    Row,
    Section,
    Table,
    Tile,
    Tiles,
    present,
)
from densepath.report.drawings import Costs, Spent, Whisker, Whiskers
from densepath.report.glossary import EXPERIMENT_GLOSSARY
from densepath.report.html import page_html
from densepath.report.next_step import after_experiment
from densepath.report.sections import glossary_table, warnings_notice
from densepath.report.verdict import GOES_BY_PLACE, nll_alarms
from densepath.report.words import DASH, Run, Words, count, duration, interval, nats, number, runs, share, verdict

_ROLES = {
    "sft": "SFT",
    "best control": "the best control",
    "equal compute": "the control at equal compute",
    "trained on validation": "the control that was trained on the validation prompts",
}
_MORE = {"equal compute": "less equal compute", "trained on validation": "less trained on validation"}
"""Columns of the comparisons that only some methods have."""
_COSTS = {"flops": "FLOPs of the training beyond SFT", "seconds": "seconds of the training beyond SFT"}
_COMPARED = (
    "Differences in {metric} on test, mean [95 % interval]; p after Holm's correction over all comparisons of the "
    "setting. Incomplete: a seed is missing."
)
TITLE = "The methods under test, each at the decoding that did best on validation"
UNCHECKED = (
    "Nothing checked the answers, so nothing says which are better: give a verifier or a judge, or compare the arms' "
    "answers with densepath judge. The NLL of held-out demonstrations is a health check: it favours what imitates "
    "them, continued SFT before all, and decides nothing."
)
"""What a page, a terminal and a README say where there is neither verifier nor judge."""
_WITHHELD = (
    "So no comparison is put into words; the table has them as they were computed. Ask a judge that densepath "
    "judge-eval gives a headline."
)
_OPTIONAL = {"entropy": "entropy", "nll": "held-out NLL"}
"""Columns of the results that are there where they were measured."""


def experiment_page(record: Results) -> Document:
    """The page.

    Args:
        record: what `densepath.pipeline.results.assemble` made, or `results.json` read back.
    """
    info = record.info
    facts = [
        ("metric", f"{record.metric}, higher is better" if record.metric else "none: nothing checked the answers")
    ]
    facts += [(str(k), str(v)) for k, v in info.items() if isinstance(v, str | int | float) and k != "name"]
    facts.append(("made with", f"densepath {record.made_by}"))
    sections = [_section(record, setting, f"s{index}") for index, setting in enumerate(record.settings)]
    files = (
        Run("results.json", "code"),
        " beside this page holds the same data, ",
        Run("results.csv", "code"),
        " and ",
    )
    return Document(
        brand="densepath experiment",
        title=str(info.get("name") or "experiment"),
        facts=tuple(facts),
        sections=(*sections, _reading(record)),
        footer=(f"Written by densepath {record.made_by}; ", *files, Run("comparisons.csv", "code"), " the tables."),
        next=after_experiment(record),
    )


def is_experiment(folder: Path) -> bool:
    """Whether a folder is that of `densepath experiment`."""
    return (Path(folder) / "experiment.yaml").is_file()


def rewrite_experiment_page(folder: Path, html: Path | None = None) -> Path:
    """Make the page again from the folder's `results.json`, atomically; returns its path.

    Args:
        folder: of the experiment.
        html: where the page goes; `results.html` of the folder if None.

    Raises:
        MissingFileError: the experiment has no table yet.
        DamagedFileError: the record is none. StorageError: it cannot be read, or the page cannot be written.
    """
    record, page = Path(folder) / "results.json", html or Path(folder) / "results.html"
    try:
        text = page_html(experiment_page(read_record(Results, record)))
    except MissingFileError:
        raise MissingFileError(f"{record}: no such file yet; run densepath experiment again to go on") from None
    write_text_atomic(page, text)
    return page


def under_test(record: Results, method: str) -> bool:
    """Whether a method is no control."""
    return not any(info.control for info in record.methods if info.name == method)


def _reading(record: Results) -> Section:
    tie = "A tie does not say that there is no difference: it says that these seeds do not show one."
    parts = (Paragraph(record.interval), Paragraph(tie, "muted"), glossary_table(EXPERIMENT_GLOSSARY))
    return Section("reading", "How to read it", parts)


def _section(record: Results, setting: SettingResults, name: str) -> Section:
    words = Paragraph(prompts_text(setting), "muted")
    found = Notice(TITLE, tuple(verdicts(record, setting)), kind(setting)) if verdicts(record, setting) else None
    answer = withheld(setting) or found
    parts = [words, warnings_notice(warning_lines(setting)), answer, *results_parts(record, setting)]
    return Section(name, setting.name, present(parts))


def withheld(setting: SettingResults) -> Notice | None:
    """What stands in the place of an answer where the judge goes by the place; None where it does not."""
    if setting.position is None or not setting.position.decides:
        return None
    return Notice(GOES_BY_PLACE, (_WITHHELD,), "unchecked", headline=True)


def prompts_text(setting: SettingResults) -> str:
    """How many seeds and prompts there are, and what each prompt is for."""
    seeds, prompts = len(setting.seeds), setting.prompts
    words = f"{seeds} seed{'' if seeds == 1 else 's'}; {prompts['validation'] or 'no'} validation prompts choose, "
    return words + f"{prompts['test'] or 'no'} test prompts judge."


def verdicts(record: Results, setting: SettingResults) -> list[str]:
    """What the comparisons say of each method under test at its best decoding, the better ones first."""
    own = [one for one in setting.statements if one.own_decoding and under_test(record, one.method)]
    found: dict[str, list[Verdict]] = {}
    for each in setting.comparisons:
        if each.primary:
            found.setdefault(each.method, []).append(each.verdict)
    order = [Verdict.BETTER, Verdict.TIE, Verdict.INCOMPLETE, Verdict.WORSE]
    own.sort(key=lambda one: [order.index(each) for each in found.get(one.method, [])])
    return [one.text for one in own]


def kind(setting: SettingResults) -> str:
    """The colour of the answer: better where a method beats SFT and the best control, else the verdict that all share.

    It is "tie" where they share none.
    """
    found: dict[str, set[Verdict]] = {}
    for one in setting.comparisons:
        if one.primary:
            found.setdefault(one.method, set()).add(one.verdict)
    if {Verdict.BETTER} in found.values():
        return Verdict.BETTER.value
    shared = set().union(*found.values())
    return shared.pop().value if len(shared) == 1 else "tie"


def warning_lines(setting: SettingResults) -> list[str]:
    """What a reader of the table has to know first."""
    return [*setting.warnings, *nll_alarms(setting.rows)]


def results_parts(record: Results, setting: SettingResults) -> tuple[Part, ...]:
    """Comparisons, results, costs, and what validation chose; of the first and last nothing where nothing checked."""
    if record.metric is None:
        rows = (Heading("The arms"), _results(record, setting), Heading("What it cost"), _budgets(setting))
        return present([Paragraph(UNCHECKED), *rows, _sweeps(record, setting)])
    parts: list[Part | None] = [*_comparisons(record, setting), Heading("Results on test"), _results(record, setting)]
    parts += [_result_plots(record, setting), Heading("What it cost"), _budgets(setting), _costs(record, setting)]
    parts += [Heading("Chosen on validation"), _sweeps(record, setting)]
    return present([*parts, Beside((_chosen(record, setting), _best_controls(record, setting)))])


# --- Comparisons -----------------------------------------------------------------------------------------------------


def _comparisons(record: Results, setting: SettingResults) -> Iterator[Part]:
    """Each method at its own decoding, then, on demand, all of them at each decoding."""
    for decoding in (None, *setting.decodings):
        compared = _compared(setting, decoding)
        if not compared:
            continue
        forests = _forests(record, compared)
        parts = present([Beside(forests) if forests else None, _comparison_table(record, compared)])
        if decoding is None:
            yield Heading("Compared each at its own decoding, chosen on validation")
            yield from parts
        else:
            yield Fold(f"Compared at {decoding}", parts)


def _compared(setting: SettingResults, decoding: str | None) -> list[dict[str, ArmComparison]]:
    """Role -> comparison for each method."""
    found: dict[str, dict[str, ArmComparison]] = {}
    for one in setting.comparisons:
        if one.own_decoding if decoding is None else not one.own_decoding and one.decoding == decoding:
            found.setdefault(one.method, {})[one.role] = one
    return list(found.values())


def _comparison_table(record: Results, compared: Sequence[Mapping[str, ArmComparison]]) -> Table:
    more = {role: name for role, name in _MORE.items() if any(role in roles for roles in compared)}
    columns = (
        Column("method"),
        Column("less SFT", numeric=True),
        Column("verdict", "p, corrected"),
        Column("best control", "by validation"),
        Column("less it", numeric=True),
        Column("verdict", "p, corrected"),
        *(
            column
            for name in more.values()
            for column in (Column(name, numeric=True), Column("verdict", "p, corrected"))
        ),
        Column("length less SFT's", "tokens", numeric=True),
    )
    rows = []
    for roles in compared:
        first, sft, best = next(iter(roles.values())), roles.get("sft"), roles.get("best control")
        against: Words = DASH
        if best:
            against = (best.against_label, Run(best.against_decoding, "small"))
        name = (first.label, Run(first.decoding, "small"))
        others = (words for role in more for words in _difference(roles.get(role)))
        rows.append(Row((name, *_difference(sft), against, *_difference(best), *others, _length(sft))))
    return Table(columns, tuple(rows), caption=_COMPARED.format(metric=record.metric), style="stack")


def _difference(one: ArmComparison | None) -> tuple[Words, Words]:
    if one is None:
        return DASH, ""
    p = () if one.p_holm is None else (Run(f"p {number(one.p_holm, '.2g')}", "small"),)
    return interval(one.difference, signed=True), (verdict(one.verdict.value), *p)


def _length(sft: ArmComparison | None) -> Words:
    if sft is None:
        return DASH
    flag = (Run(f" × {number(sft.length_ratio, '.2f')} ⚠", "small"),) if sft.length_flag else ()
    return (*runs(interval(sft.length_difference, 1, signed=True)), *flag)


def _arm(record: Results, method: str) -> str:
    """SFT, the controls and the methods under test have the colours and markers of the run report's arms."""
    return "sft" if method == "sft" else "dpr" if under_test(record, method) else "continued_sft"


def _forests(record: Results, compared: Sequence[Mapping[str, ArmComparison]]) -> tuple[Figure, ...]:
    """The differences to SFT, to the best control, and to other controls that there are."""
    drawn = []
    for role, words in _ROLES.items():
        rows = []
        for roles in compared:
            one = roles.get(role)
            estimate = one.difference if one else None
            if one and estimate:
                rows.append(Whisker(one.label, estimate, _arm(record, one.method)))
        if rows:
            drawing = Whiskers(tuple(rows), f"difference in {record.metric}; right of 0: better", zero=0.0)
            note = "95 % intervals, before correction. Dots: under test; diamonds: controls"
            drawn.append(Figure(f"Differences to {words}", drawing, note))
    return tuple(drawn)


# --- Results and costs -----------------------------------------------------------------------------------------------


def _results(record: Results, setting: SettingResults) -> Table:
    names = {
        "length": "tokens",
        "truncated": "share",
        "KL to SFT": "nats/completion",
        "dense reward": "nats/completion",
    }
    measured = [name for name in _OPTIONAL if any(getattr(row, name) is not None for row in setting.rows)]
    checked = () if record.metric is None else (record.metric, "on validation")
    columns = [Column("method"), *(Column(name, numeric=True) for name in checked)]
    columns += [Column(name, unit, numeric=True) for name, unit in names.items()]
    columns += [Column(_OPTIONAL[name], "nats/token", numeric=True) for name in measured]
    rows = [
        _result(setting, row, measured, checked=bool(checked))
        for decoding in setting.decodings
        for row in setting.rows
        if row.decoding == decoding
    ]
    unit = any(row.value and row.value.unit == "prompts" for row in setting.rows)
    caption = f"mean [95 % interval]{'; † over prompts, not over seeds' if unit else ''}. A dash: not measured. "
    caption += "✓: the method's decoding chosen on validation. " if checked else ""
    caption += "Held-out NLL: a health check that favours what imitates." if "nll" in measured else ""
    return Table(tuple(columns), tuple(rows), caption=caption, style="stack")


def _result(setting: SettingResults, row: ArmRow, measured: Sequence[str], *, checked: bool) -> Row:
    name: list[str | Run] = [row.label + (" ✓" if row.chosen else "")]
    name += [Run("control", "small")] if row.control else []
    if row.status != "complete":
        few = f"{len(row.seeds)} of {len(setting.seeds)} seeds"
        name += [" ", Run(few if row.status == "incomplete" else row.status, "worse")]
    mean, *ends = runs(interval(row.value))
    value = (mean, *([Run(" †")] if row.value and row.value.unit == "prompts" else []), *ends)
    length: Words = number(row.length, ".1f")
    if row.length_flag:
        length = (f"{length} ⚠", Run(f"× {number(row.length_ratio, '.2f')}", "small"))
    cells: list[Words] = [tuple(name), *((value, interval(row.validation)) if checked else ())]
    cells += [length, share(row.truncated)]
    cells += [number(row.kl, ".2f"), nats(row.reward, ".2f"), *(number(getattr(row, one)) for one in measured)]
    return Row(tuple(cells), row.chosen, row.decoding)


def _result_plots(record: Results, setting: SettingResults) -> Beside | None:
    """The metric of each method, a drawing each decoding, on a common axis."""
    known = [(row, value) for row in setting.rows if (value := row.value)]
    ends = [end for _, value in known for end in (value.low, value.high)]
    if not ends:
        return None
    pad = 0.05 * (max(ends) - min(ends) or 1.0)
    figures = []
    for decoding in setting.decodings:
        rows = [
            Whisker(row.label, value, _arm(record, row.method)) for row, value in known if row.decoding == decoding
        ]
        drawing = Whiskers(
            tuple(rows), f"{record.metric} (higher is better)", None, (min(ends) - pad, max(ends) + pad)
        )
        figures += [Figure(f"{record.metric}, {decoding}", drawing)] if rows else []
    return Beside(tuple(figures))


def tiles(record: Results, setting: SettingResults) -> Tiles | None:
    """The metric of each method at its own decoding; None where there is none."""
    found = []
    for row in setting.rows:
        value = row.value
        if row.chosen and value is not None:
            notes = (f"{record.metric}, {row.decoding}", f"{number(value.low)} to {number(value.high)}")
            found.append(Tile(row.label, number(value.mean), notes, row.method))
    return Tiles(tuple(found)) if found else None


def _budgets(setting: SettingResults) -> Table:
    names = ("samples", "demonstrations", "tokens", "FLOPs", "time")
    spent = {row.label: row.budget for row in setting.rows if row.status != "missing"}
    rows = []
    for label, budget in spent.items():
        counts = (count(budget[name]) for name in names[:3])
        rows.append(Row((label, *counts, number(budget["flops"], ".3g"), duration(budget["seconds"]))))
    columns = (Column("method"), *(Column(name, numeric=True) for name in names))
    return Table(columns, tuple(rows), caption="Of the training beyond SFT, mean over seeds.")


def _costs(record: Results, setting: SettingResults) -> Beside | None:
    """The metric against FLOPs and against seconds, each method at its own decoding."""
    rows = [row for row in setting.rows if row.chosen and row.value]
    level = next((row.value.mean for row in rows if row.method == "sft" and row.value), None)
    note = "Each at its own decoding. Dots: under test; diamonds: controls; dashed: SFT"
    drawn = []
    for cost, xlabel in _COSTS.items():
        points = []
        for row in rows:
            estimate, spent = row.value, row.budget[cost]
            if estimate is not None and spent is not None:
                label = f"{row.label}, {row.decoding.replace('temperature ', 'T = ')}"
                points.append(Spent(label, spent, estimate, _arm(record, row.method)))
        if points:
            drawing = Costs(tuple(points), xlabel, str(record.metric), level)
            drawn.append(Figure(f"{record.metric} against cost", drawing, note))
    return Beside(tuple(drawn)) if drawn else None


# --- What validation chose -------------------------------------------------------------------------------------------


def _sweeps(record: Results, setting: SettingResults) -> Table | None:
    rows = [
        Row(
            (
                one.method,
                one.variant + (" ✓" if one.chosen else ""),
                one.decoding,
                interval(one.value),
            ),
            one.chosen,
        )
        for one in record.sweeps
        if one.setting == setting.name
    ]
    columns = (Column("method"), Column("value"), Column("decoding"), _on_validation(record))
    caption = "Values that were tried; ✓ the chosen one, which alone met the test prompts."
    return Table(columns, tuple(rows), caption=caption) if rows else None


def _on_validation(record: Results) -> Column:
    return Column(record.metric or "log-likelihood of demonstrations", "validation", numeric=True)


def _chosen(record: Results, setting: SettingResults) -> Table:
    rows = [
        Row((row.label, row.decoding, interval(row.validation)))
        for info in record.methods
        for row in setting.rows
        if row.chosen and row.method == info.name
    ]
    return Table((Column("method"), Column("decoding"), _on_validation(record)), tuple(rows))


def _best_controls(record: Results, setting: SettingResults) -> Table:
    rows = []
    for best in setting.best_controls:
        own = f", {best.decoding}" if best.own_decoding and best.decoding else ""
        where = "own decodings" if best.own_decoding else str(best.decoding)
        rows.append(Row((where, f"{best.label or DASH}{own}", number(best.validation))))
    caption = "The control with the highest mean on validation. A control is compared with the best of the others."
    return Table((Column("where"), Column("best control"), _on_validation(record)), tuple(rows), caption=caption)
