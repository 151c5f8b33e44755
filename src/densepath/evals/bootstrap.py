"""One bootstrap over rows for many statistics at once, so that their differences are paired; and Holm's correction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densepath.evals.intervals import CONFIDENCE, RESAMPLES, Interval, Verdict

_BLOCK = 2_000_000
"""Counts held at once; bounds memory."""


@dataclass(frozen=True)
class Comparison:
    """One measure against another on the same rows.

    Attributes:
        measure: name of the one.
        against: name of the other.
        difference: of the statistic, `measure` less `against`, with its 95 % interval.
        p: two-sided bootstrap p-value of no difference.
        p_holm: the same after Holm's correction for all comparisons made together.
        verdict: better or worse where `p_holm` is below 5 %, else tie: no difference was shown.
    """

    measure: str
    against: str
    difference: Interval
    p: float
    p_holm: float
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "measure": self.measure,
            "against": self.against,
            "difference": self.difference.as_dict(),
            "p": self.p,
            "p_holm": self.p_holm,
            "verdict": self.verdict.value,
        }


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


def replicate_interval(value: float, replicates: NDArray[np.float64], n: int) -> Interval:
    """Percentile interval of a statistic; resamples in which it is not defined (NaN) are left out."""
    if not np.isfinite(replicates).any():
        return Interval(value, value, value, n)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(replicates, [tail, 1 - tail])
    return Interval(value, float(low), float(high), n)


def compare(
    measure: str,
    values: Mapping[str, float],
    replicates: Mapping[str, NDArray[np.float64]],
    n: int,
) -> list[Comparison]:
    """One measure against each of the others, in their order: `compare_pairs`."""
    return compare_pairs([(measure, name) for name in values if name != measure], values, replicates, n)


def compare_pairs(
    pairs: Sequence[tuple[str, str]],
    values: Mapping[str, float],
    replicates: Mapping[str, NDArray[np.float64]],
    n: int,
) -> list[Comparison]:
    """The first measure of each pair against the second, paired over rows, with Holm's correction over all pairs.

    The p-value doubles the smaller share of replicates on either side of 0, each share as (count + 1) / (all + 1).

    Args:
        pairs: keys of `values`.
        values: the statistic of each measure.
        replicates: its paired replicates, of the same resamples for every measure.
        n: independent units.

    Returns:
        One comparison for each pair.
    """
    intervals, ps = [], []
    for measure, other in pairs:
        spread = replicates[measure] - replicates[other]
        spread = spread[np.isfinite(spread)]
        intervals.append(replicate_interval(values[measure] - values[other], spread, n))
        share = (min((spread <= 0).sum(), (spread >= 0).sum()) + 1) / (spread.size + 1)
        # One unit has no spread to judge by.
        ps.append(1.0 if n < 2 else min(1.0, 2 * float(share)))
    found = []
    for (measure, other), interval, p, adjusted in zip(pairs, intervals, ps, holm(ps), strict=True):
        shown = Verdict.TIE
        if adjusted < 1 - CONFIDENCE:
            shown = Verdict.BETTER if interval.mean > 0 else Verdict.WORSE
        found.append(Comparison(measure, other, interval, p, adjusted, shown))
    return found


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values: the chance of any false verdict stays below the level.

        adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j)), with p_(1) <= ... <= p_(m)

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [1.0] * len(ps)
    highest = 0.0
    for place, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - place) * ps[index]))
        adjusted[index] = highest
    return adjusted
