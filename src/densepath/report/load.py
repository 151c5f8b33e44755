"""Run folder -> raw parts, each optional; what cannot be read becomes a warning, not a traceback."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from densepath.errors import DataError, MissingFileError, NumericalError
from densepath.io import read_json, read_jsonl, read_log
from densepath.records.codec import from_json
from densepath.records.completion import Sample
from densepath.report import parse
from densepath.report.records import Curve

LOG = "metrics.jsonl"
"""Of every training, in the folder of its stage: `sft`, and each arm that was trained."""

MAX_SAMPLES = 24
MAX_SAMPLE_TOKENS = 12_000
"""Samples on the page: the first ones of the file, until either limit (ours) keeps the page near 2 MB."""

_PARTS = {
    "config.yaml": "the configuration",
    "environment.json": "versions and device",
    "data.json": "data sources and hashes",
    "selection.json": "the choice of reference",
    "results.json": "the evaluation",
    "samples.jsonl": "sample completions",
}


@dataclass
class RunParts:
    """What a run folder holds, parsed but not yet interpreted."""

    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    selection: Any = None
    results: Any = None
    purifications: dict[str, Any] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    samples_total: int = 0
    curves: list[Curve] = field(default_factory=list)
    logged: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def load_run(run_dir: Path) -> RunParts:
    """The parts of a run folder.

    Raises:
        MissingFileError: the folder is not there, or holds none of a run's files.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise MissingFileError(f"{run_dir}: no such run folder")
    parts = RunParts()
    logs = sorted(run_dir.glob(f"*/{LOG}"), key=lambda path: (path.parent.name != "sft", path))
    found = {name: (run_dir / name).is_file() for name in _PARTS} | {f"{log.parent.name}/{LOG}": True for log in logs}
    if not any(found.values()):
        raise MissingFileError(f"{run_dir} is not a run folder: it holds none of {', '.join(_PARTS)}, STAGE/{LOG}")
    parts.missing = [f"{meaning} ({name})" for name, meaning in _PARTS.items() if not found[name]]
    parts.logged = {log.parent.name for log in logs}

    def read(name: str) -> Any:
        if not found[name]:
            return None
        path = run_dir / name
        try:
            if name.endswith(".yaml"):
                return parse.clean(yaml.safe_load(path.read_text(encoding="utf-8")))
            if name.endswith(".jsonl"):
                return read_log(path) if path.name == LOG else read_jsonl(path)
            return parse.clean(read_json(path))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            reason = str(error).replace(str(path), name).split("\n")[0]
            parts.warnings.append(f"{name} cannot be read and is left out: {reason}")
            return None

    for name, key in (("config.yaml", "config"), ("environment.json", "environment"), ("data.json", "data")):
        value = read(name)
        if isinstance(value, dict):
            setattr(parts, key, value)
        elif value is not None:
            parts.warnings.append(f"{name} does not hold a mapping and is left out")
    parts.selection = read("selection.json")
    parts.results = read("results.json")
    for path in sorted(run_dir.glob("*/purification.json")):
        name = path.relative_to(run_dir).as_posix()
        found[name] = True
        parts.purifications[path.parent.name] = read(name)
    for log in logs:
        rows = read(f"{log.parent.name}/{LOG}")
        if rows:
            _add_curves(parts, log.parent.name, rows)
    _add_samples(parts, read("samples.jsonl") or [])
    return parts


def _add_curves(parts: RunParts, stage: str, rows: list[dict[str, Any]]) -> None:
    """One curve per metric; a step logged twice (a resumed run) keeps its last value."""
    points: dict[str, dict[float, float | None]] = {}
    broken: dict[str, list[float]] = {}
    for row in rows:
        step = parse.number(row.get("step"))
        if step is None:
            continue
        for name, raw in row.items():
            if name in ("step", "time") or isinstance(raw, bool) or not isinstance(raw, int | float):
                continue
            value = parse.number(raw)
            points.setdefault(parse.clean(name), {})[step] = value
            if value is None:
                broken.setdefault(parse.clean(name), []).append(step)
    for name, steps in broken.items():
        parts.warnings.append(
            f"{stage}/{LOG}: {name} is not finite at {len(steps)} step(s), first at step {min(steps):g}"
        )
    for name in sorted(points):
        order = sorted(points[name])
        values = tuple(points[name][step] for step in order)
        parts.curves.append(Curve(stage, name, tuple(order), values))


def _add_samples(parts: RunParts, rows: list[dict[str, Any]]) -> None:
    """The first samples of the file: never a selection by outcome."""
    parts.samples_total = len(rows)
    tokens = 0
    for number, row in enumerate(rows[:MAX_SAMPLES], start=1):
        try:
            sample = from_json(Sample, parse.clean(row))
        except (DataError, NumericalError) as error:
            parts.warnings.append(f"samples.jsonl, row {number}: left out: {error}")
            continue
        tokens += sum(len(completion.rewards) for completion in sample.completions.values())
        if parts.samples and tokens > MAX_SAMPLE_TOKENS:
            break
        parts.samples.append(sample)
