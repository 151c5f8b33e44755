"""The record of an experiment (`results.json`) -> one self-contained page: warnings, verdicts, plots, tables."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from densepath.errors import MissingFileError, StorageError
from densepath.io import read_json, write_text_atomic
from densepath.report import parse, plots
from densepath.report.glossary import EXPERIMENT_GLOSSARY
from densepath.report.html import asset, duration, interval, make_environment

ROLES = {"sft": "SFT", "best control": "the best control"}
COSTS = {"flops": "FLOPs of the training beyond SFT", "seconds": "seconds of the training beyond SFT"}
BUDGETS = {
    "samples": "samples",
    "demonstrations": "demonstrations",
    "tokens": "tokens",
    "flops": "FLOPs",
    "seconds": "time",
}


def render_experiment(record: Mapping[str, Any]) -> str:
    """The page as text: one file, no network, no script.

    Args:
        record: what `densepath.pipeline.results.assemble` made, or `results.json` read back.
    """
    sections = [_section(record, setting, f"s{index}") for index, setting in enumerate(record["settings"])]
    return (
        _environment()
        .get_template("experiment.html")
        .render(
            record=record,
            title=str(record["info"].get("name") or "experiment"),
            info=_facts(record["info"]),
            sections=sections,
            css=Markup(asset("page.css")),
            plots_available=plots.available(),
            roles=ROLES,
            budgets=BUDGETS,
            glossary=EXPERIMENT_GLOSSARY,
        )
    )


def is_experiment(folder: Path) -> bool:
    """Whether a folder is that of `densepath experiment`."""
    return (Path(folder) / "experiment.yaml").is_file()


def rewrite_experiment_page(folder: Path) -> Path:
    """Make `results.html` again from the `results.json` beside it, atomically; returns its path.

    Raises:
        MissingFileError: the experiment has no table yet.
        StorageError: the record cannot be read, or the page cannot be written.
    """
    record, page = Path(folder) / "results.json", Path(folder) / "results.html"
    try:
        html = render_experiment(read_json(record))
    except MissingFileError:
        raise MissingFileError(f"{record}: no such file yet; run densepath experiment again to go on") from None
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{record} is not the record of an experiment: {error!r}") from error
    write_text_atomic(page, html)
    return page


@functools.cache
def _environment() -> Environment:
    return make_environment(
        interval=lambda value, digits=3, signed=False: interval(parse.estimate(value), digits, signed),
        duration=duration,
    )


def _facts(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the experiment says of itself and fits on a line; the rest stands in `results.json`."""
    return [
        (str(key), str(value)) for key, value in info.items() if isinstance(value, str | int | float) and key != "name"
    ]


def _section(record: Mapping[str, Any], setting: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the template shows of a setting, plots drawn."""
    contexts: list[str | None] = [None, *setting["decodings"]]
    compared = [
        {
            "title": "each at its own decoding, chosen on validation" if decoding is None else decoding,
            "rows": _compared(setting, decoding),
            "plots": _forests(record, setting, decoding, f"{name}f{index}"),
        }
        for index, decoding in enumerate(contexts)
    ]
    return {
        **setting,
        "anchor": name,
        "sweeps": [one for one in record.get("sweeps", ()) if one["setting"] == setting["name"]],
        "contexts": [context for context in compared if context["rows"]],
        "costs": _costs(record, setting, name),
        "budgets": {row["label"]: row["budget"] for row in setting["rows"] if row["status"] != "missing"},
        "chosen": [
            row
            for info in record["methods"]
            for row in setting["rows"]
            if row["chosen"] and row["method"] == info["name"]
        ],
        "main": [one for one in setting["statements"] if one["own_decoding"] and _under_test(record, one["method"])],
    }


def _under_test(record: Mapping[str, Any], method: str) -> bool:
    return not any(info["control"] for info in record["methods"] if info["name"] == method)


def _arm(record: Mapping[str, Any], method: str) -> str:
    """SFT, the controls and the methods under test have the colours and markers of the run report's arms."""
    return "sft" if method == "sft" else "dpr" if _under_test(record, method) else "continued_sft"


def _compared(setting: Mapping[str, Any], decoding: str | None) -> list[tuple[Mapping[str, Any], dict[str, Any]]]:
    """(a comparison of the method, role -> comparison) for each method."""
    found: dict[str, dict[str, Any]] = {}
    for one in setting["comparisons"]:
        if one["own_decoding"] if decoding is None else not one["own_decoding"] and one["decoding"] == decoding:
            found.setdefault(one["method"], {})[one["role"]] = one
    return [(next(iter(roles.values())), roles) for roles in found.values()]


def _forests(
    record: Mapping[str, Any], setting: Mapping[str, Any], decoding: str | None, name: str
) -> list[tuple[str, Markup]]:
    """(what it is compared with, SVG of the differences)."""
    drawn = []
    xlabel = f"difference in {record['metric']}; right of 0: better"
    for role, words in ROLES.items():
        rows = []
        for _, roles in _compared(setting, decoding):
            one = roles.get(role)
            estimate = parse.estimate(one["difference"]) if one else None
            if one and estimate:
                rows.append(plots.Whisker(one["label"], estimate, _arm(record, one["method"])))
        if rows and plots.available():
            drawn.append((words, Markup(plots.whisker_svg(rows, xlabel, name=f"{name}{role[0]}", zero=0.0))))
    return drawn


def _costs(record: Mapping[str, Any], setting: Mapping[str, Any], name: str) -> list[Markup]:
    """The metric against FLOPs and against seconds, each method at its own decoding."""
    rows = [row for row in setting["rows"] if row["chosen"] and row["value"]]
    level = next((row["value"]["mean"] for row in rows if row["method"] == "sft"), None)
    drawn = []
    for cost, xlabel in COSTS.items():
        points = []
        for row in rows:
            estimate, spent = parse.estimate(row["value"]), row["budget"][cost]
            if estimate is not None and spent is not None:
                label = f"{row['label']}, {row['decoding'].replace('temperature ', 'T = ')}"
                points.append(plots.Spent(label, spent, estimate, _arm(record, row["method"])))
        if points and plots.available():
            drawn.append(Markup(plots.cost_svg(points, xlabel, record["metric"], name=f"{name}{cost}", level=level)))
    return drawn
