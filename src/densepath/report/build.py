"""Run folder -> `Report`, and both its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from densepath import __version__
from densepath.errors import DataError, NumericalError
from densepath.io import write_json_atomic, write_text_atomic
from densepath.records.behaviours import Purification
from densepath.records.choice import ReferenceChoice
from densepath.records.codec import from_json
from densepath.records.results import Results
from densepath.report import parse
from densepath.report.glossary import GLOSSARY
from densepath.report.html import page_html
from densepath.report.load import LOG, RunParts, load_run
from densepath.report.records import Report
from densepath.report.run import run_page
from densepath.report.verdict import curve_alarms

T = TypeVar("T")


class ReportPaths(NamedTuple):
    """Where a report was written."""

    html: Path
    json: Path

    @classmethod
    def of(cls, html: Path) -> ReportPaths:
        """The page, and its twin beside it."""
        return cls(html, html.with_suffix(".json"))


def write_report(run_dir: Path, html: Path | None = None) -> ReportPaths:
    """Write the page of a run and its twin, each atomically.

    Args:
        run_dir: the run folder.
        html: where the page goes; `report.html` of the run folder if None.

    Raises:
        MissingFileError: no such folder, or nothing of a run in it.
        StorageError: writing failed.
    """
    report = build_report(run_dir)
    paths = ReportPaths.of(html or Path(run_dir) / "report.html")
    page = page_html(run_page(report))
    write_json_atomic(paths.json, report.to_dict())
    write_text_atomic(paths.html, page)
    return paths


def build_report(run_dir: Path) -> Report:
    """Everything known about a run, from its files alone: the same folder gives the same report.

    Raises:
        MissingFileError: no such folder, or nothing of a run in it.
    """
    run_dir = Path(run_dir)
    parts = load_run(run_dir)
    warnings = [*parts.warnings, *curve_alarms(parts.curves)]
    results = _record(Results, parts.results, "results.json", warnings)
    selection = _record(ReferenceChoice, parts.selection, "selection.json", warnings)
    sorted_by = {
        arm: record
        for arm, value in parts.purifications.items()
        if (record := _record(Purification, value, f"{arm}/purification.json", warnings)) is not None
    }
    model = next((parts.config[key] for key in ("model", "model_name_or_path") if parts.config.get(key)), None)
    return Report(
        run=parse.clean(run_dir.resolve().name),
        model=None if model is None else str(model),
        date=_text(parts.environment, "date"),
        version=_text(parts.environment.get("versions"), "densepath"),
        made_by=__version__,
        results=results,
        selection=selection,
        purification=sorted_by.get("purified_sft"),
        curves=tuple(parts.curves),
        samples=tuple(parts.samples),
        samples_total=parts.samples_total,
        config=parts.config,
        environment=parts.environment,
        data=parts.data,
        warnings=tuple(dict.fromkeys(warnings)),
        missing=(*parts.missing, *_unlogged(parts, results, sorted_by)),
        glossary=GLOSSARY,
    )


def _unlogged(parts: RunParts, results: Results | None, sorted_by: Mapping[str, Purification]) -> list[str]:
    """The logs that trainings of this run left and that are not there: of SFT, and of arms that saw tokens."""
    given = any(parts.config.get(key) is not None for key in ("sft_from", "sft_model_name_or_path"))
    trained = {} if given else {"sft": "SFT"}
    rows = [row for setting in (results.settings if results else ()) for row in setting.rows]
    trained |= {row.method: row.label for row in rows if row.budget.get("tokens")}
    for arm, purification in sorted_by.items():
        if not purification.trained:
            trained.pop(arm, None)  # its tokens are those of the behaviours: the SFT model was kept
    return [
        f"the training log of {label} ({name}/{LOG})" for name, label in trained.items() if name not in parts.logged
    ]


def _record(cls: type[T], value: Any, name: str, warnings: list[str]) -> T | None:
    """The record that a file holds; None, with a warning, where it holds something else."""
    if value is None:
        return None
    try:
        return from_json(cls, value)
    except (DataError, NumericalError) as error:
        warnings.append(f"{name} is left out: {error}")
        return None


def _text(values: Any, key: str) -> str | None:
    """What stands under a key of a mapping, if both are there."""
    found = values.get(key) if isinstance(values, Mapping) else None
    return None if found is None else str(found)
