"""Means with their 95 % intervals over independent units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from densepath.records.estimates import LEVEL, Interval

CONFIDENCE = 1 - LEVEL
ONE_SIDED_CONFIDENCE = 0.9
RESAMPLES = 9999
MOST_FOR_BCA = 5000
_BLOCK = 2_000_000
"""Numbers resampled at once; bounds memory."""
ROUNDING = 1e-12
"""Relative spread below which values are one value in float64: BCa's corrections would divide zero by zero."""


def proportion_interval(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927), sound also at 0 and 1.

    Args:
        successes: how often it came true.
        n: how often it was tried, at least 1.
        confidence: of the interval, two-sided.
    """
    found = stats.binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
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
    low, high, _ = mean_with_replicates(array, "BCa", seed)
    return Interval(float(array.mean()), low, high, array.size)


def mean_with_replicates(
    array: NDArray[np.float64], method: str, seed: int
) -> tuple[float, float, NDArray[np.float64]]:
    """Ends of the bootstrap interval of a mean, and its replicates: all of them the mean where nothing spreads.

    Args:
        array: (n,) one number an independent unit.
        method: "BCa" or "percentile".
        seed: of the resampling.
    """
    mean = float(array.mean())
    if array.size < 2 or float(np.ptp(array)) <= ROUNDING * float(np.abs(array).max()):
        return mean, mean, np.full(RESAMPLES, mean)
    found = _resampled(array, method, seed, CONFIDENCE)
    return float(found.confidence_interval.low), float(found.confidence_interval.high), found.bootstrap_distribution


def _resampled(array: NDArray[np.float64], method: str, seed: int, confidence: float) -> Any:
    """SciPy's bootstrap of a mean, a block of resamples at a time; beyond `MOST_FOR_BCA` values by percentiles.

    The jackknife of BCa takes the square of their number in time, for a correction that so many do not need.
    """
    method = "percentile" if method == "BCa" and array.size > MOST_FOR_BCA else method
    return stats.bootstrap(
        (array,),
        np.mean,
        batch=max(1, _BLOCK // array.size),
        confidence_level=confidence,
        n_resamples=RESAMPLES,
        method=method,
        rng=np.random.default_rng(seed),
    )
