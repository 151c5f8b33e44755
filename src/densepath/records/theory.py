"""Plain records: a check, a statement's result, a report. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from densepath.records.brief import brief

EQUALITY_TOLERANCE = 1e-10
"""Largest absolute deviation that an equality may show in float64 (values are of order 1 to 100 nats)."""

Z_LIMIT = 5.0
"""Largest |z| of a sampled mean: beyond five standard errors in some hundred coordinates is 1 in 10,000."""


class Kind(str, Enum):
    """How a check's value is judged."""

    EQUALITY = "equality"  # largest deviation over all instances, at most the limit
    BOUND = "bound"  # largest value over all instances, at most the limit
    DIFFERS = "differs"  # largest difference over all instances, at least the limit
    SAMPLED = "sampled"  # largest |z| of a sampled mean, at most the limit


def verdict_word(holds: bool) -> str:
    """As tables show it: what fails is to be seen."""
    return "holds" if holds else "FAILS"


@dataclass(frozen=True)
class Check:
    """One comparison: what was compared, the largest value over all instances, and its limit."""

    name: str
    kind: Kind
    value: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether the value is on the right side of the limit; a NaN never is."""
        return self.value >= self.limit if self.kind is Kind.DIFFERS else self.value <= self.limit

    def as_dict(self) -> dict[str, Any]:
        """The check as JSON values; a value that is not finite becomes null."""
        return {
            "name": self.name,
            "kind": self.kind.value,
            "value": self.value if math.isfinite(self.value) else None,
            "limit": self.limit,
            "verdict": verdict_word(self.holds),
        }


@dataclass(frozen=True)
class StatementResult:
    """What checking one statement gave.

    Args:
        number: the statement's number in docs/theory.md.
        key: its short name, as `--only` takes it.
        title: the statement in one line.
        source: "P" (the paper's) or "D" (derived in docs/theory.md), with what is meant where it is both.
        assumes: what it needs.
        method: how it was checked.
        checks: every comparison.
        details: measured numbers and curves, JSON values only.
    """

    number: int
    key: str
    title: str
    source: str
    assumes: str
    method: str
    checks: tuple[Check, ...]
    details: Mapping[str, Any] = field(default_factory=dict)

    __repr__ = brief

    @property
    def docs(self) -> str:
        """Where its proof stands."""
        return f"docs/theory.md#statement-{self.number}"

    @property
    def deviation(self) -> float:
        """Largest deviation of its equalities; infinity if one was not a number."""
        values = [check.value for check in self.checks if check.kind is Kind.EQUALITY]
        return math.inf if any(math.isnan(value) for value in values) else max(values, default=0.0)

    @property
    def tolerance(self) -> float:
        """What an equality may deviate by."""
        return EQUALITY_TOLERANCE

    @property
    def holds(self) -> bool:
        """Whether it was checked at all and every check holds."""
        return bool(self.checks) and all(check.holds for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "number": self.number,
            "key": self.key,
            "title": self.title,
            "source": self.source,
            "assumes": self.assumes,
            "method": self.method,
            "docs": self.docs,
            "deviation": self.deviation if math.isfinite(self.deviation) else None,
            "tolerance": self.tolerance,
            "verdict": verdict_word(self.holds),
            "checks": [check.as_dict() for check in self.checks],
            "details": dict(self.details),
        }


@dataclass(frozen=True)
class Report:
    """All statements that were run, with what reproduces them."""

    seed: int
    instances: int
    results: tuple[StatementResult, ...]

    __repr__ = brief

    @property
    def holds(self) -> bool:
        """Whether at least one statement was run and none fails."""
        return bool(self.results) and all(result.holds for result in self.results)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "seed": self.seed,
            "instances": self.instances,
            "verdict": verdict_word(self.holds),
            "statements": [result.as_dict() for result in self.results],
        }
