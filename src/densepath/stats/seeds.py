"""Means and paired differences over seeds: the seed is the unit, since each is a training of its own.

A seed's value is the mean over its prompts. Where there is one seed, or the seeds do not spread at all (with few seeds
and few prompts that happens by chance, and a t-test would divide by zero), the prompts within each seed are the
unit instead, and `Interval.unit` says so: such an interval knows nothing of how trainings differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from densepath.records.estimates import Difference, Interval
from densepath.stats.bootstrap import mean_replicates, replicate_interval
from densepath.stats.intervals import CONFIDENCE, RESAMPLES, ROUNDING, metric_interval

_BLOCK = 2_000_000
"""Signs held at once; bounds memory."""

SeedValues = Sequence[Sequence[float] | NDArray[np.float64]]
"""For each seed one value a prompt."""


def seed_mean(values: SeedValues, over_prompts: Callable[[Sequence[float]], Interval] = metric_interval) -> Interval:
    """Mean over seeds with a t-interval.

        mean +- t_(.975, n - 1) s / sqrt(n)

    With one seed, or without spread over seeds, the interval is over all prompts.

    Args:
        values: at least one seed with at least one prompt.
        over_prompts: makes that interval.
    """
    means = _means(values)
    if _spread(means, means):
        return _t_interval(means)
    pooled = over_prompts([float(value) for of_seed in values for value in of_seed])
    return Interval(float(means.mean()), pooled.low, pooled.high, pooled.n)


def seed_difference(values: SeedValues, others: SeedValues) -> Difference:
    """Mean of `values - others`, seed by seed, with the paired t-interval and the p-value of the paired t-test.

    With one seed, or where every seed has the same difference, prompts are paired within each seed: the interval is a
    percentile bootstrap, stratified by seed, and the p-value that of the sign-flip test (exact for few prompts, so
    that two prompts never give a small one). Values that are the same for every prompt have p = 1.

    Args:
        values: one sequence a seed, one value a prompt.
        others: the same seeds and prompts in the same order.

    Raises:
        ValueError: seeds or prompts that do not pair.
    """
    if len(values) != len(others) or not len(values):
        raise ValueError(f"seed_difference needs as many values as others, got {len(values)} and {len(others)} seeds")
    for seed, (mine, other) in enumerate(zip(values, others, strict=True)):
        if len(mine) != len(other) or not len(mine):
            raise ValueError(f"seed number {seed} has {len(mine)} prompts against {len(other)}; both need the same")
    means, other_means = _means(values), _means(others)
    differences = means - other_means
    if _spread(differences, np.concatenate([means, other_means])):
        p = float(stats.ttest_rel(means, other_means).pvalue)
        return Difference(_t_interval(differences), p)
    strata = [np.subtract(mine, other, dtype=np.float64) for mine, other in zip(values, others, strict=True)]
    return _over_prompts(float(differences.mean()), strata)


def _over_prompts(mean: float, strata: Sequence[NDArray[np.float64]]) -> Difference:
    """The difference with the prompts within each seed as units."""
    n = sum(len(stratum) for stratum in strata)
    if not any(stratum.any() for stratum in strata):
        seeds = len(strata)
        one = Interval(0.0, 0.0, 0.0, seeds, "seeds") if seeds > 1 else Interval(0.0, 0.0, 0.0, n)
        return Difference(one, 1.0)
    draws = [mean_replicates(stratum[None], seed=seed)[:, 0] for seed, stratum in enumerate(strata)]
    parts = np.concatenate([stratum / (len(strata) * len(stratum)) for stratum in strata])
    return Difference(replicate_interval(mean, np.mean(draws, axis=0), n), sign_flip_p(parts))


def sign_flip_p(parts: NDArray[np.float64]) -> float:
    """Two-sided p-value of a sum whose parts are as often positive as negative if there is no difference.

        p = share of all sign vectors s with |sum_i s_i parts_i| >= |sum_i parts_i|

    Exact up to 13 parts that are not 0; beyond that over random signs, (count + 1) / (drawn + 1), hence never 0.

    Source: Fisher's randomisation test (1935); `scipy.stats.permutation_test(permutation_type="samples")` is the same
    and 20 times slower.
    """
    parts = parts[parts != 0]
    least = abs(float(parts.sum())) * (1 - 1e-9)
    if 2**parts.size <= RESAMPLES:
        bits = np.arange(2**parts.size)[:, None] >> np.arange(parts.size) & 1
        return float((np.abs((2 * bits - 1) @ parts) >= least).mean())
    rng = np.random.default_rng(0)
    count, block = 0, max(1, _BLOCK // parts.size)
    for start in range(0, RESAMPLES, block):
        bits = rng.integers(2, size=(min(block, RESAMPLES - start), parts.size), dtype=np.int8)
        count += int((np.abs((2.0 * bits - 1) @ parts) >= least).sum())
    return (count + 1) / (RESAMPLES + 1)


def _means(values: SeedValues) -> NDArray[np.float64]:
    return np.array([np.mean(of_seed, dtype=np.float64) for of_seed in values])


def _spread(of: NDArray[np.float64], scale: NDArray[np.float64]) -> bool:
    """Whether numbers differ by more than the rounding of what they were computed from."""
    return of.size > 1 and float(np.ptp(of)) > ROUNDING * float(np.abs(scale).max())


def _t_interval(values: NDArray[np.float64]) -> Interval:
    found = stats.ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
    return Interval(float(values.mean()), float(found.low), float(found.high), int(values.size), "seeds")
