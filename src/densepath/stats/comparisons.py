"""Differences on the same units, with Holm's correction where several are judged together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from densepath.records.estimates import Comparison, Difference, verdict_of
from densepath.stats.bootstrap import replicate_interval
from densepath.stats.intervals import mean_with_replicates


def paired_difference(values: Sequence[float], others: Sequence[float], seed: int = 0) -> Difference:
    """Mean of `values - others`, unit by unit, with a percentile bootstrap interval and the same replicates' p-value.

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
    *_, replicates = mean_with_replicates(difference, "percentile", seed)
    interval = replicate_interval(float(difference.mean()), replicates, int(difference.size))
    return Difference(interval, bootstrap_p(replicates, difference.size))


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

    Args:
        pairs: keys of `values`.
        values: the statistic of each measure.
        replicates: its paired replicates, of the same resamples for every measure.
        n: independent units.

    Returns:
        One comparison for each pair.
    """
    found = []
    for measure, other in pairs:
        spread = replicates[measure] - replicates[other]
        spread = spread[np.isfinite(spread)]
        interval = replicate_interval(values[measure] - values[other], spread, n)
        found.append(Difference(interval, bootstrap_p(spread, n)))
    return corrected(pairs, found)


def corrected(pairs: Sequence[tuple[str, str]], differences: Sequence[Difference]) -> list[Comparison]:
    """The differences of named pairs, with Holm's correction over all of them.

    Args:
        pairs: names of the one and the other.
        differences: one for each pair.
    """
    adjusted = holm([difference.p for difference in differences])
    return [
        Comparison(name, other, one.interval, one.p, p_holm, verdict_of(p_holm, one.interval.mean))
        for (name, other), one, p_holm in zip(pairs, differences, adjusted, strict=True)
    ]


def bootstrap_p(replicates: NDArray[np.float64], n: int) -> float:
    """Two-sided p-value of no difference: twice the smaller share of replicates on either side of 0.

        p = min(1, 2 (count + 1) / (all + 1)), at least 2^(1-n): what a sign-flip test of n units can say at most

    Args:
        replicates: (resamples,) of the difference.
        n: independent units.
    """
    share = (min((replicates <= 0).sum(), (replicates >= 0).sum()) + 1) / (replicates.size + 1)
    return min(1.0, max(2 * float(share), 2.0 ** (1 - n)))


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
