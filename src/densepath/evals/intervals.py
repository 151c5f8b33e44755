"""Means with 95 % intervals, and paired differences with a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999
ROUNDING = 1e-12
"""Relative spread below which values are one value in float64: BCa's corrections would divide zero by zero."""


class Verdict(str, Enum):
    """What a paired difference says when higher is better."""

    BETTER = "better"
    WORSE = "worse"
    TIE = "tie"


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its 95 % interval, and the number of values behind it."""

    mean: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int]:
        """For JSON."""
        return asdict(self)


def proportion_interval(successes: int, n: int) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927), sound also at 0 and 1.

    Args:
        successes: how often it came true.
        n: how often it was tried, at least 1.
    """
    found = stats.binomtest(successes, n).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return Interval(successes / n, float(found.low), float(found.high), n)


def metric_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean of a verifier's verdicts: Wilson's interval if each is 0 or 1, else `mean_interval`."""
    if values and all(value in (0.0, 1.0) for value in values):
        return proportion_interval(int(sum(values)), len(values))
    return mean_interval(values, seed)


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean with a bootstrap interval (BCa) over the values.

    Args:
        values: one number an independent unit (a prompt), at least one.
        seed: of the resampling.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("mean_interval needs at least one value")
    return Interval(float(array.mean()), *_bootstrap(array, "BCa", seed), array.size)


def paired_difference(values: Sequence[float], others: Sequence[float], seed: int = 0) -> tuple[Interval, Verdict]:
    """Mean of `values - others`, unit by unit, with a percentile bootstrap interval; a tie if it holds 0.

    Args:
        values: one number a unit.
        others: numbers of the same units in the same order.
        seed: of the resampling.

    Raises:
        ValueError: no pair, or a value without its other.
    """
    if len(values) != len(others) or not len(values):
        raise ValueError(f"paired_difference needs as many values as others, got {len(values)} and {len(others)}")
    difference = np.asarray(values, dtype=np.float64) - np.asarray(others, dtype=np.float64)
    low, high = _bootstrap(difference, "percentile", seed)
    verdict = Verdict.BETTER if low > 0 else Verdict.WORSE if high < 0 else Verdict.TIE
    if len(values) < 2:  # one unit has no spread to judge by
        verdict = Verdict.TIE
    return Interval(float(difference.mean()), low, high, int(difference.size)), verdict


def _bootstrap(array: NDArray[np.float64], method: str, seed: int) -> tuple[float, float]:
    """Ends of the bootstrap interval of a mean; the mean itself where all values are equal up to rounding."""
    mean = float(array.mean())
    if array.size < 2 or float(np.ptp(array)) <= ROUNDING * float(np.abs(array).max()):
        return mean, mean
    found = stats.bootstrap(
        (array,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method=method,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
