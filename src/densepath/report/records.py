"""What a report holds: plain frozen records, the one source of the HTML page and of its JSON twin."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from densepath.records.behaviours import Purification
from densepath.records.choice import ReferenceChoice
from densepath.records.codec import to_json
from densepath.records.completion import Sample
from densepath.records.results import Results


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

    `results` holds one setting; `date` is ISO 8601, UTC; `missing`
    names what the folder does not hold.
    """

    run: str
    model: str | None
    date: str | None
    version: str | None
    made_by: str
    results: Results | None = None
    selection: ReferenceChoice | None = None
    purification: Purification | None = None
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
        return {
            **to_json(dataclasses.replace(self, samples=())),
            "samples": [sample.to_json() for sample in self.samples],
        }
