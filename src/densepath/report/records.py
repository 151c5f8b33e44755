"""What a report holds: plain frozen records, the one source of the HTML page and of its JSON twin."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from densepath.records.completion import Sample


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; the unit is that of the quantity. `low` and `high` may be unknown."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class SelectionRow:
    """One candidate reward: its reference, beta (nats), alpha = 1/beta, and its validation score."""

    reference: str
    beta: float | None
    alpha: float | None
    score: Estimate | None
    n: int | None


@dataclass(frozen=True)
class Selection:
    """How the reference and beta were chosen; `chosen_reference` is None where no candidate helps."""

    mode: str
    criterion: str
    reason: str
    chosen_reference: str | None
    chosen_beta: float | None
    baseline: Estimate | None
    baseline_n: int | None
    rows: tuple[SelectionRow, ...]


@dataclass(frozen=True)
class Curve:
    """One metric over one stage. `values` align with `steps`; None where the log holds no finite number."""

    stage: str
    metric: str
    steps: tuple[float, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Term:
    """A line of the glossary."""

    name: str
    unit: str
    meaning: str
    alarm: str


@dataclass(frozen=True)
class Report:
    """Everything the page of a run shows.

    `results` is the record of `densepath.pipeline.results` with its one setting; `date` is ISO 8601, UTC; `missing`
    names what the folder does not hold.
    """

    run: str
    model: str | None
    date: str | None
    version: str | None
    made_by: str
    results: dict[str, Any] | None = None
    selection: Selection | None = None
    curves: tuple[Curve, ...] = ()
    samples: tuple[Sample, ...] = ()
    samples_total: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    glossary: tuple[Term, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types: the twin of the page."""
        samples = [sample.to_json() for sample in self.samples]
        return dataclasses.asdict(dataclasses.replace(self, samples=())) | {"samples": samples}
