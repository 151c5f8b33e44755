"""The record of an experiment with a row a method: as tables of a terminal, and as Markdown for docs/results.md."""

from __future__ import annotations

from collections.abc import Iterator

from densepath.records.estimates import Interval
from densepath.records.results import ArmComparison, ArmRow, Results, SettingResults, Sweep
from densepath.report.document import Column, Notice, Paragraph, Part, Row, Section, Table, present
from densepath.report.experiment import UNCHECKED, under_test, withheld
from densepath.report.markdown import sections_markdown
from densepath.report.sections import warnings_notice
from densepath.report.words import DASH, Run, Words, count, interval, nats, number, short

WIDE = 116
"""Columns of a terminal from which the differences to the best control, the length and the KL have room."""


def experiment_parts(record: Results, width: int = WIDE) -> tuple[Part, ...]:
    """For each setting its warnings, a table, and the verdicts on the methods under test.

    Every method stands at the decoding that did best on validation. An asterisk marks a mean that lacks seeds, an
    exclamation mark a length far from SFT's; the KL is that of the first decoding where it is measured. The other
    decodings, the costs and the plots stand on the page.

    Args:
        record: what `densepath.pipeline.results.assemble` made.
        width: columns of the terminal; below `WIDE` the table ends after the differences to SFT.
    """
    parts: list[Part | None] = []
    for setting in record.settings:
        own = [one for one in setting.statements if one.own_decoding and under_test(record, one.method)]
        lines = (Paragraph(one.text if "ties" in one.text else Run(one.text, "bold")) for one in own)
        parts += [warnings_notice(setting.warnings), _brief_table(record, setting, width >= WIDE), *lines]
        parts.append(None if record.metric else Paragraph(UNCHECKED))
        parts.append(withheld(setting))
        parts.append(Paragraph(""))
    return present(parts)


def _methods(setting: SettingResults) -> Iterator[tuple[ArmRow, dict[str, ArmRow], float | None]]:
    """(row at the method's own decoding, decoding -> row, the first KL that is known) for each method."""
    for method in dict.fromkeys(row.method for row in setting.rows):
        rows = {row.decoding: row for row in setting.rows if row.method == method}
        own = next((row for row in rows.values() if row.chosen), next(iter(rows.values())))
        yield own, rows, next((row.kl for row in rows.values() if row.kl is not None), None)


def _roles(setting: SettingResults) -> dict[tuple[str, str], ArmComparison]:
    return {(one.method, one.role): one for one in setting.comparisons if one.own_decoding}


def _brief_table(record: Results, setting: SettingResults, wide: bool) -> Table:
    if record.metric is None:
        return _unchecked_table(setting)
    names = (record.metric, "less SFT", "", "less best control", "", "length", "KL")
    columns = [Column("method", fold=True), Column("decoding"), *(Column(name, numeric=bool(name)) for name in names)]
    roles = _roles(setting)
    rows = []
    for row, _, kl in _methods(setting):
        decoding = "missing" if row.status == "missing" else row.decoding.replace("temperature ", "T = ")
        value = short(interval(row.value, missing=""))
        cells: list[Words] = [row.label, decoding, ("*" if row.missing_seeds else "") + value]
        for role in ("sft", "best control"):
            one = roles.get((row.method, role))
            cells += [DASH, ""] if one is None else [_short_difference(one), one.verdict.value]
        cells += [number(row.length, ".1f") + ("!" if row.length_flag else ""), number(kl, ".2f")]
        rows.append(Row(tuple(cells[: len(columns) if wide else 5])))
    count = len(setting.seeds)
    title = f"{setting.name} ({count} seed{'' if count == 1 else 's'})"
    return Table(tuple(columns if wide else columns[:5]), tuple(rows), title)


def _unchecked_table(setting: SettingResults) -> Table:
    """What is known of the arms where nothing checked their answers."""
    names = ("length", "KL", "reward", "held-out NLL")
    rows = []
    for row, _, kl in _methods(setting):
        cells = [number(row.length, ".1f"), number(kl, ".2f"), nats(row.reward), number(row.nll)]
        rows.append(Row((row.label, "missing" if row.status == "missing" else row.decoding, *cells)))
    columns = (Column("method", fold=True), Column("decoding"), *(Column(name, numeric=True) for name in names))
    return Table(columns, tuple(rows), setting.name)


def _short_difference(one: ArmComparison) -> str:
    return short(interval(one.difference, signed=True))


# --- Markdown --------------------------------------------------------------------------------------------------------


def results_markdown(record: Results, *, level: int = 2) -> str:
    """A heading, a table, the verdicts and the warnings of each setting, and the commit and command.

    Args:
        record: what `densepath.pipeline.results.assemble` made.
        level: of the headings.
    """
    return sections_markdown([_setting(record, setting) for setting in record.settings], level=level) + "\n"


def _setting(record: Results, setting: SettingResults) -> Section:
    info, seeds = record.info, len(setting.seeds)
    words: list[str | Run] = [
        f"{seeds} seed{'' if seeds == 1 else 's'}, {setting.prompts['test'] or 'no'} test prompts; "
    ]
    words.append(record.metric or UNCHECKED.removesuffix("."))
    words += ["; made by "] if info.get("command") or info.get("commit") else []
    words += [Run(info["command"], "code"), " "] if info.get("command") else []
    words.append(f"at commit {info['commit']}." if info.get("commit") else ".")
    verdicts = tuple(one.text for one in setting.statements if one.own_decoding)
    none = withheld(setting)
    warnings = Notice("", tuple(setting.warnings), "warnings") if setting.warnings else None
    sweeps = [one for one in record.sweeps if one.setting == setting.name]
    own = Notice("", verdicts) if verdicts else None
    table = _table(setting) if record.metric else _unchecked_table(setting)
    return Section("", setting.name, present([Paragraph(tuple(words)), table, none, own, warnings, _sweeps(sweeps)]))


def _table(setting: SettingResults) -> Table:
    """A row a method: the metric at each decoding (bold: chosen on validation), then its own decoding's figures.

    The KL is that of the first decoding where it is measured.
    """
    decodings, roles = setting.decodings, _roles(setting)
    names = ("method", *decodings, "less SFT", "less best control", "length", "KL", "samples", "FLOPs", "seconds")
    rows = []
    for row, by_decoding, kl in _methods(setting):
        budget = row.budget
        cells: list[Words] = [row.label + (" (control)" if row.control and row.method != "sft" else "")]
        cells += [_value(by_decoding.get(decoding)) for decoding in decodings]
        cells += [_difference(roles.get((row.method, "sft")))]
        cells += [_difference(roles.get((row.method, "best control")), name=True)]
        cells += [number(row.length, ".1f") + (" ⚠" if row.length_flag else ""), number(kl, ".2f")]
        cells += [count(budget["samples"]), number(budget["flops"], ".3g"), count(budget["seconds"])]
        rows.append(Row(tuple(cells)))
    return Table(tuple(map(Column, names)), tuple(rows))


def _sweeps(sweeps: list[Sweep]) -> Table | None:
    """What validation chose among, bold."""
    rows = []
    for one in sweeps:
        value = DASH if one.value is None else plus_minus(one.value)
        rows.append(Row((one.method, one.variant, one.decoding, Run(value, "strong" if one.chosen else ""))))
    names = ("tuned on validation", "value", "decoding", "mean on validation")
    return Table(tuple(map(Column, names)), tuple(rows)) if rows else None


def _value(row: ArmRow | None) -> Words:
    """`.359 ± .043`; the ends where the interval is not symmetric, and how many seeds where some are missing."""
    if row is None:
        return ""
    if row.value is None:
        return str(row.status)
    seeds = f" (seed {', '.join(map(str, row.missing_seeds))} missing)" if row.missing_seeds else ""
    return (Run(plus_minus(row.value), "strong" if row.chosen else ""), seeds)


def _difference(one: ArmComparison | None, *, name: bool = False) -> str:
    if one is None or one.difference is None:
        return DASH
    against = f" ({one.against_label}, {one.against_decoding})" if name else ""
    return f"{plus_minus(one.difference, signed=True)} {one.verdict.value}{against}"


def plus_minus(value: Interval, *, signed: bool = False) -> str:
    """`.359 ± .043`, or the ends where the interval is not symmetric."""
    text = number(value.mean, "+.3f" if signed else ".3f")
    if abs((value.high - value.mean) - (value.mean - value.low)) < 1e-9:
        return f"{text} ± {number(value.high - value.mean)}"
    return f"{text} [{number(value.low)}, {number(value.high)}]"
