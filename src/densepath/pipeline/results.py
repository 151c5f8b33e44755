"""The cells of an experiment -> one record, and its files: JSON, CSV and a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from densepath import __version__
from densepath.errors import DataError
from densepath.evidence.cells import (
    Place,
    SettingCells,
    is_measured,
    length_ratio,
    mean_length,
    prompt_lengths,
    verdicts,
)
from densepath.evidence.comparisons import differs, family_sizes, setting_comparisons
from densepath.evidence.statements import statements, warnings
from densepath.io import write_json_atomic, write_text_atomic
from densepath.pipeline.grid import Grid
from densepath.pipeline.recipe import Setting
from densepath.records.arm import SFT, SPLITS, Arm, ArmResult, Budget, mean_of
from densepath.records.codec import field_names, to_json
from densepath.records.results import ArmRow, BestControl, Results, SettingResults
from densepath.report.experiment import experiment_page
from densepath.report.experiment_brief import results_markdown
from densepath.report.html import page_html
from densepath.report.parse import clean

INTERVAL = (
    "95 % t-interval over seeds, a seed's value being the mean over its prompts. Differences are paired seed by seed. "
    "A verdict is better or worse only where the paired t-test is below 5 % after Holm's correction for all "
    "comparisons of the setting (half of the 5 % for the methods under test at their own decodings, half for all "
    "others); else a tie: no difference was shown. With one seed, or no spread over seeds: over prompts (bootstrap, "
    "sign-flip test)."
)

_ESTIMATES = ("value", "validation", "difference", "length_difference")
"""Columns that hold a mean with its interval."""


BUDGET = field_names(Budget)


class ExperimentPaths(NamedTuple):
    """Where the results were written."""

    html: Path
    json: Path
    csv: Path
    comparisons: Path
    markdown: Path


WIN_RATE = "win rate against SFT"
"""Metric where a judge compares: with the SFT model's answer at its lowest temperature, which itself has 1/2."""


def grid_results(grid: Grid, info: Mapping[str, Any]) -> Results:
    """What is known of a grid; a run and an experiment write the same record.

    Args:
        grid: its cells are read from disk.
        info: what is told beside the figures: date, versions, command.
    """
    names = [setting.name for setting in grid.settings]
    known = {**info, "seeds": list(grid.seeds)}
    found = assemble(grid.results(), _arms(grid), names, metric=_metric(grid.settings), info=known)
    return replace(found, sweeps=tuple(grid.sweeps()))


def _metric(settings: Sequence[Setting]) -> str | None:
    """Its name; of several, each with the settings that it belongs to."""
    found: dict[str | None, list[str]] = {}
    for setting in settings:
        name = WIN_RATE if setting.arguments.judge is not None else setting.arguments.verifier
        found.setdefault(name, []).append(setting.name)
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{name} ({', '.join(of)})" for name, of in found.items())


def _arms(grid: Grid) -> list[Arm]:
    """Every arm of any setting, and the settings that it belongs to; matched where it is so in all of them."""
    plans: dict[str, dict[str, Arm]] = {}
    for setting in grid.settings:
        for plan in setting.methods.values():
            plans.setdefault(plan.name, {})[setting.name] = plan.arm
    found = []
    for arms in plans.values():
        *_, last = arms.values()
        matches = last.matches if len({arm.matches for arm in arms.values()}) == 1 else None
        found.append(replace(last, settings=tuple(arms), matches=matches))
    return found


def assemble(
    results: Sequence[ArmResult],
    methods: Sequence[Arm],
    settings: Sequence[str],
    *,
    metric: str | None,
    info: Mapping[str, Any],
) -> Results:
    """The record of an experiment: what the table, the page and the files show.

    Validation chooses: each method's decoding, and the best control. Test values are used for nothing but the table.

    Args:
        results: finished cells in any order; a cell that failed is just not there.
        methods: every method of the recipe, those without a result too; "sft" among them.
        settings: in the order of the table.
        metric: name of what the verifier or judge says, higher is better; None where nothing checks.
        info: kept as it is, but for secrets. `seeds`, if there, are those expected of every method in every setting;
            `commit` and `command` are shown beside each table.

    Raises:
        DataError: no SFT among the methods, a method or setting twice or unknown, or cells that do not fit together.
    """
    names = [method.name for method in methods]
    for kind, given in (("method", names), ("setting", list(settings))):
        twice = sorted({name for name in given if given.count(name) > 1})
        if twice:
            raise DataError(f"{kind} {', '.join(twice)} is there twice; name each once")
    if SFT not in names:
        raise DataError(f"no method is called {SFT}; every other is compared with it, so add it")
    for cell in results:
        if cell.setting not in settings:
            raise DataError(f"{cell}: the setting is not among {', '.join(settings)}")
    seeds = [int(seed) for seed in info.get("seeds") or ()]
    cells = [
        SettingCells(setting, results, [m for m in methods if m.settings is None or setting in m.settings], seeds)
        for setting in settings
    ]
    return Results(
        metric=metric,
        interval=INTERVAL,
        made_by=__version__,
        info=clean(info),
        methods=tuple(methods),
        settings=tuple(_setting(each, metric is not None) for each in cells),
    )


def _setting(cells: SettingCells, checked: bool) -> SettingResults:
    every = (_row(cells, info, decoding) for decoding in cells.decodings for info in cells.methods)
    rows = tuple(row if checked else _unchecked(row) for row in every if row is not None)
    comparisons = tuple(setting_comparisons(cells)) if checked else ()
    position = cells.position()
    told = position is None or not position.decides
    return SettingResults(
        name=cells.setting,
        seeds=tuple(cells.seeds),
        prompts={split: _prompts(cells, split) for split in SPLITS},
        decodings=tuple(cells.decodings),
        warnings=tuple(warnings(cells, rows, position)),
        rows=rows,
        best_controls=tuple(_best_control(cells, decoding) for decoding in [None, *cells.decodings] if checked),
        comparisons=comparisons,
        compared=family_sizes(comparisons),
        statements=tuple(statements(cells, comparisons)) if told else (),
        position=position,
    )


def _row(cells: SettingCells, info: Arm, decoding: str) -> ArmRow | None:
    """A method at a decoding; None where it was never meant to be evaluated there."""
    place = Place(info.name, decoding)
    test, validation = cells.of(place, "test"), cells.of(place, "validation")
    own = cells.of_method(info.name)
    if own and not test and not validation:
        return None
    budget = {cell.seed: cell.budget for cell in own}
    length = mean_length(test.values()) if test else None
    shared = [seed for seed in test if seed in cells.of(Place(SFT, decoding), "test")]
    ratio = None
    if shared:
        sft = cells.of(Place(SFT, decoding), "test")
        ratio = length_ratio(mean_length(test[seed] for seed in shared), mean_length(sft[seed] for seed in shared))
    value, validated = cells.mean(place, "test"), cells.mean(place, "validation")
    missing = cells.missing(place, "test") if test or not validation else cells.missing(place, "validation")
    return ArmRow(
        method=info.name,
        label=info.label,
        control=info.control,
        decoding=decoding,
        chosen=cells.chosen_decoding(info.name) == decoding,
        status="missing" if not own else "incomplete" if missing else "complete" if test else "validation only",
        seeds=tuple(sorted(test)),
        missing_seeds=tuple(missing),
        value=value,
        validation=validated,
        by_seed={str(seed): float(np.mean(verdicts(cell))) for seed, cell in test.items() if is_measured(cell)},
        length=length,
        length_ratio=ratio,
        length_flag=differs(ratio),
        truncated=_mean([cell.truncated for cell in test.values()]),
        kl=_mean([mean_of(cell.kl) for cell in test.values()]),
        reward=_mean([mean_of(cell.reward) for cell in test.values()]),
        entropy=_mean([mean_of(cell.entropy) for cell in test.values()]),
        nll=_mean([mean_of(cell.nll) for cell in test.values()]),
        budget={name: _mean([getattr(each, name) for each in budget.values()]) for name in BUDGET},
    )


def _unchecked(row: ArmRow) -> ArmRow:
    """The row without what stands for a metric where nothing checks: the likelihood, which tuned values go by."""
    return replace(row, value=None, validation=None, by_seed={}, chosen=False)


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where any is not known, or there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _prompts(cells: SettingCells, split: str) -> int | None:
    """How many were answered, whether anything checks the answers or not; None where none was."""
    known = (cell for info in cells.methods for cell in cells.of_method(info.name) if cell.split == split)
    return max((len(prompt_lengths(cell)) for cell in known), default=None)


def _best_control(cells: SettingCells, decoding: str | None) -> BestControl:
    """The best control for a method under test, with its mean on validation."""
    place = cells.best_control("", decoding)
    if place is None:
        return BestControl(decoding is None, decoding, None, None, None)
    label = cells.info(place.method).label
    return BestControl(decoding is None, place.decoding, place.method, label, cells.validation_score(place))


def write_results(folder: Path, results: Results) -> ExperimentPaths:
    """Write `results.{json,csv,html,md}` and `comparisons.csv` into a folder, each atomically.

    Raises:
        StorageError: writing failed.
    """
    folder, record = Path(folder), to_json(results)
    paths = ExperimentPaths(
        folder / "results.html",
        folder / "results.json",
        folder / "results.csv",
        folder / "comparisons.csv",
        folder / "results.md",
    )
    write_json_atomic(paths.json, record)
    write_text_atomic(paths.csv, _csv(record, "rows"))
    write_text_atomic(paths.comparisons, _csv(record, "comparisons"))
    write_text_atomic(paths.markdown, results_markdown(results))
    write_text_atomic(paths.html, page_html(experiment_page(results)))
    return paths


def _csv(record: Mapping[str, Any], part: str) -> str:
    """One line a row, its nested columns spread: `value` becomes `value_mean`, `value_low` and so on."""
    lines = [{"setting": setting["name"], **_spread(row)} for setting in record["settings"] for row in setting[part]]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns or ["setting"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _spread(row: Mapping[str, Any]) -> dict[str, Any]:
    """Flat columns; lists joined by spaces, what is not known left empty."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if name == "by_seed" or (value is None and name in _ESTIMATES):
            continue
        if isinstance(value, Mapping):
            flat |= {key if name == "budget" else f"{name}_{key}": item for key, item in value.items()}
        elif isinstance(value, list):
            flat[name] = " ".join(map(str, value))
        else:
            flat[name] = value
    return flat
