"""One bootstrap over rows for many statistics at once, so that their differences are paired."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from densepath.records.estimates import Interval
from densepath.stats.intervals import CONFIDENCE, RESAMPLES, proportion_interval

_BLOCK = 2_000_000
"""Counts held at once; bounds memory."""


def bootstrap(
    rows: int,
    statistic: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> NDArray[np.float64]:
    """Replicates of a statistic over rows drawn with replacement.

    The same seed draws the same rows, so replicates of several statistics of the same rows are paired.

    Args:
        rows: independent units.
        statistic: (b, rows) counts, how often each row was drawn in b resamples, to (b, ...) values.
        seed: of the draws.
        resamples: how many.

    Returns:
        (resamples, ...) float.
    """
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // rows)
    found = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(rows, size=(size, rows)) + np.arange(0, size * rows, rows)[:, None]
        found.append(statistic(np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows)))
    return np.concatenate(found)


def mean_replicates(values: NDArray[np.float64], *, seed: int) -> NDArray[np.float64]:
    """Bootstrap replicates of the means of several measures: (measures, rows) in, (resamples, measures) out."""
    rows = values.shape[1]
    return bootstrap(rows, lambda counts: counts @ values.T / rows, seed=seed)


def replicate_interval(
    value: float, replicates: NDArray[np.float64], n: int, confidence: float = CONFIDENCE, parameters: int = 1
) -> Interval:
    """Expanded percentile interval of a statistic, which it holds itself; resamples without it (NaN) are left out.

    Args:
        value: the statistic.
        replicates: (resamples,) of it.
        n: independent units behind it.
        confidence: two-sided.
        parameters: that were fitted to the units: 1 for a mean.
    """
    if n < 2 or not np.isfinite(replicates).any():
        return Interval(value, value, value, n)
    tail = expanded_tail(n, confidence, parameters)
    low, high = np.nanquantile(replicates, [tail, 1 - tail])
    return Interval(value, min(float(low), value), max(float(high), value), n)


def expanded_tail(n: int, confidence: float = CONFIDENCE, parameters: int = 1) -> float:
    """Share of the replicates that lies beyond each end of a percentile interval of n units, k parameters fitted.

        Phi(-sqrt(n / (n - k)) t_(1 - a/2, n - k)),    a = 1 - confidence

    The replicates spread by n instead of n - k, and know nothing of Student's t: with a/2 an interval of 5 units holds
    the mean in 83 of 100 cases, of 10 units in 92. For many units it is a/2.

    Source: Hesterberg, What Teachers Should Know About the Bootstrap (2015), the expanded percentile interval.

    >>> expanded_tail(10_000), expanded_tail(5)  # doctest: +ELLIPSIS
    (0.0249..., 0.0009...)
    """
    free = max(1, n - parameters)
    widened = math.sqrt(n / free) * float(stats.t.ppf((1 + confidence) / 2, free))
    return float(stats.norm.cdf(-widened))


def value_interval(values: NDArray[np.float64], seed: int = 0) -> Interval:
    """Percentile interval of a mean of values of any scale: grades, lengths."""
    return ratio_interval(values, np.ones_like(values), seed)


def credit_interval(credits: NDArray[np.float64], seed: int = 0, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's interval where every credit is 0 or 1, else the bootstrap's, whose memory is bounded for any number."""
    if np.isin(credits, (0.0, 1.0)).all():
        return proportion_interval(int(credits.sum()), credits.size, confidence)
    mean = float(credits.mean())
    if np.ptp(credits) == 0:
        return Interval(mean, mean, mean, credits.size)
    return replicate_interval(mean, mean_replicates(credits[None], seed=seed)[:, 0], credits.size, confidence)


def ratio_interval(sums: NDArray[np.float64], counts: NDArray[np.float64], seed: int = 0) -> Interval:
    """Sum over rows by count over rows, where a row brings several values, with a percentile interval over rows.

    Args:
        sums: (rows,) of a row's values.
        counts: (rows,) how many they are, or their weight; positive in sum.
        seed: of the draws.
    """
    value = float(sums.sum() / counts.sum())

    def statistic(drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        weight = drawn @ counts
        return np.where(weight > 0, drawn @ sums / np.where(weight > 0, weight, 1), np.nan)

    return replicate_interval(value, bootstrap(len(sums), statistic, seed=seed), len(sums))
