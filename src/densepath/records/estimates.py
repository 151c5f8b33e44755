"""An estimate with its interval, a difference of two, and the one rule by which a difference is called shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from densepath.errors import NumericalError
from densepath.records.brief import brief

LEVEL = 0.05
"""Chance of calling a difference shown where there is none, over all differences that were corrected together."""


class Verdict(str, Enum):
    """What a difference says when higher is better."""

    BETTER = "better"
    WORSE = "worse"
    TIE = "tie"  # no difference was shown
    INCOMPLETE = "incomplete"  # a unit is missing, and those that are there may be the lucky ones


def verdict_of(p: float, mean: float) -> Verdict:
    """Better or worse where the p-value is below 5 %, else a tie.

    Args:
        p: two-sided p-value of no difference, corrected where several differences are judged together.
        mean: the difference.

    Raises:
        NumericalError: NaN, of which every comparison says no.
    """
    if math.isnan(p) or math.isnan(mean):
        raise NumericalError(f"a difference of {mean} with p = {p} has no verdict: a value behind it is no number")
    if p >= LEVEL:
        return Verdict.TIE
    return Verdict.BETTER if mean > 0 else Verdict.WORSE


@dataclass(frozen=True)
class Interval:
    """A mean, or another statistic, with the ends of its 95 % interval.

    Attributes:
        mean: the statistic, in its own unit.
        low: lower end.
        high: upper end.
        n: number of independent units behind it.
        unit: what these are: "prompts" (rows of data), or "seeds" (trainings).
    """

    mean: float
    low: float
    high: float
    n: int
    unit: str = "prompts"

    __repr__ = brief


@dataclass(frozen=True)
class Difference:
    """One less another on the same units, before any correction.

    Attributes:
        interval: of the difference.
        p: two-sided p-value of no difference.
    """

    interval: Interval
    p: float

    @property
    def verdict(self) -> Verdict:
        """Of this difference alone."""
        return verdict_of(self.p, self.interval.mean)


@dataclass(frozen=True)
class Comparison:
    """One measure against another on the same rows, corrected for all that were compared together.

    Attributes:
        measure: name of the one.
        against: name of the other.
        difference: of the statistic, `measure` less `against`.
        p: two-sided p-value of no difference.
        p_holm: the same after Holm's correction for all comparisons made together.
        verdict: `verdict_of` the corrected p-value.
    """

    measure: str
    against: str
    difference: Interval
    p: float
    p_holm: float
    verdict: Verdict
