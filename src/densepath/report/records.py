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
class Metric:
    """What completions are judged by."""

    name: str = "metric"
    higher_is_better: bool = True
    description: str = ""


@dataclass(frozen=True)
class ResultRow:
    """One arm under one decoding, over `n` held-out prompts.

    `dense_reward` and `kl` are in nats per completion, `length` in tokens, `entropy` in nats per token,
    `nll` that of held-out demonstrations in nats per token,
    `truncated` is the share of completions cut off at the length limit. None means not measured.
    """

    arm: str
    label: str
    decoding: str
    n: int | None = None
    metric: Estimate | None = None
    dense_reward: Estimate | None = None
    length: Estimate | None = None
    entropy: Estimate | None = None
    kl: Estimate | None = None
    nll: Estimate | None = None
    truncated: float | None = None
    train_seconds: float | None = None
    train_flops: float | None = None


@dataclass(frozen=True)
class PairedRow:
    """The metric of `arm` minus that of `against`, prompt by prompt; `verdict` is better, worse or tie.

    `primary`: each at its own best decoding, the arm under test: what the run was made for.
    """

    arm: str
    against: str
    decoding: str
    difference: Estimate | None
    verdict: str
    primary: bool = False


@dataclass(frozen=True)
class Results:
    """The evaluation: `results.json`."""

    metric: Metric
    interval: str
    rows: tuple[ResultRow, ...]
    paired: tuple[PairedRow, ...] = ()
    warnings: tuple[str, ...] = ()

    def label(self, arm: str) -> str:
        """The name of an arm as shown to a reader; the arm itself where it has no row."""
        return next((row.label for row in self.rows if row.arm == arm), arm.replace("_", " "))


@dataclass(frozen=True)
class SelectionRow:
    """One candidate: its reference, beta (nats), alpha = 1/beta, validation score, and lead over SFT at its best."""

    reference: str
    beta: float | None
    alpha: float | None
    score: Estimate | None
    n: int | None
    decoding: str = ""
    lead: Estimate | None = None


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
class Verdict:
    """The answer in plain words. `kind`: better, worse, tie, mixed, none-helps or unknown."""

    kind: str
    headline: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Term:
    """A line of the glossary."""

    name: str
    unit: str
    meaning: str
    alarm: str


@dataclass(frozen=True)
class Report:
    """Everything the page shows. `date` is ISO 8601, UTC; `missing` names what the folder does not hold."""

    run: str
    model: str | None
    date: str | None
    version: str | None
    made_by: str
    verdict: Verdict
    results: Results | None = None
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
