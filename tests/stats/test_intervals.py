"""Intervals against closed forms by hand, against enumeration, and by their coverage."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.records.estimates import Interval, Verdict
from densepath.stats import intervals
from densepath.stats.comparisons import paired_difference
from densepath.stats.intervals import mean_interval, metric_interval, proportion_interval

Z = 1.959963984540054  # the normal distribution's 97.5 % point


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson (1927): the p for which (p_hat - p)^2 = z^2 p (1 - p) / n."""
    p = successes / n
    middle = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return middle - half, middle + half


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_proportions_interval_is_wilsons(case):
    successes, n = case
    found = proportion_interval(successes, n)
    low, high = wilson(successes, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))
    assert (found.mean, found.n) == (successes / n, n)


def test_a_proportion_by_hand():
    # 8 of 10: (0.8 + 0.19207) / 1.38415 = 0.71674, 1.95996 / 1.38415 * sqrt(0.016 + 0.0096036) = 0.22658
    found = proportion_interval(8, 10)
    assert (found.mean, found.n) == (0.8, 10)
    assert found.low == pytest.approx(0.49016, abs=1e-4)
    assert found.high == pytest.approx(0.94332, abs=1e-4)
    # never and always: 0 of n reaches up to z^2 / (n + z^2) = 3.84146 / 13.84146
    assert proportion_interval(0, 10).low == 0
    assert proportion_interval(0, 10).high == pytest.approx(0.27753, abs=1e-4)
    assert proportion_interval(10, 10).low == pytest.approx(1 - 0.27753, abs=1e-4)
    assert proportion_interval(10, 10).high == 1


@pytest.mark.parametrize("n", [20, 100])
def test_a_proportions_interval_covers_the_truth_as_often_as_it_says(n):
    """Exactly: the binomial weight of the outcomes whose interval holds p, averaged over p."""
    found = [proportion_interval(k, n) for k in range(n + 1)]
    coverage = []
    for p in np.linspace(0.02, 0.98, 97):
        weights = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        coverage.append(sum(w for w, i in zip(weights, found, strict=True) if i.low <= p <= i.high))
    assert statistics.mean(coverage) == pytest.approx(0.95, abs=0.01)
    assert min(coverage) > 0.83  # Wilson's known dips near 0 and 1


def test_a_verifiers_verdicts_are_a_proportion_and_its_grades_a_mean():
    verdicts = [1.0, 0.0, 0.0, 1.0, 1.0]
    assert metric_interval(verdicts) == proportion_interval(3, 5)
    grades = [1.0, 0.0, 0.5, 1.0, 1.0]
    assert metric_interval(grades) == mean_interval(grades)
    assert metric_interval([0.0, 0.0]).high == proportion_interval(0, 2).high > 0.5  # never, but of two


def test_a_means_interval_is_the_normal_one_where_there_are_many_values():
    values = np.random.default_rng(3).normal(2.0, 3.0, 2000).tolist()
    found = mean_interval(values)
    half = Z * statistics.stdev(values) / math.sqrt(2000)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.low == pytest.approx(found.mean - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.mean + half, abs=0.1 * half)
    assert found.n == 2000


def test_a_means_interval_leans_towards_the_long_tail():
    """Against BCa (Efron 1987) written out here, with resamples of its own."""
    rng = np.random.default_rng(5)
    values = rng.lognormal(sigma=1.2, size=60)
    normal, theta = statistics.NormalDist(), values.mean()
    resampled = np.sort(values[rng.integers(60, size=(40_000, 60))].mean(axis=1))
    bias = normal.inv_cdf(float((resampled < theta).mean()))
    left_out = np.array([np.delete(values, i).mean() for i in range(60)])
    away = left_out.mean() - left_out
    acceleration = (away**3).sum() / (6 * (away**2).sum() ** 1.5)

    def end(z: float) -> float:
        at = normal.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
        return float(np.quantile(resampled, at))

    found = mean_interval(values.tolist())
    width = found.high - found.low
    assert found.low == pytest.approx(end(-Z), abs=0.03 * width)
    assert found.high == pytest.approx(end(Z), abs=0.03 * width)
    assert found.high - found.mean > 1.3 * (found.mean - found.low)


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_a_means_interval_covers_the_truth_as_often_as_it_says(monkeypatch, draw):
    monkeypatch.setattr(intervals, "RESAMPLES", 999)
    rng = np.random.default_rng(0)
    truth = {"normal": 0.0, "exponential": 1.0}[draw]
    found = [mean_interval(getattr(rng, draw)(size=40).tolist(), seed) for seed in range(250)]
    covered = statistics.mean(interval.low <= truth <= interval.high for interval in found)
    assert 0.89 <= covered <= 0.985  # 95 %; four standard errors are 5.5 points


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).normal(size=30).tolist()
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1) != mean_interval(values, seed=2)


@pytest.mark.parametrize("values", [[0.25], [0.25] * 7, [0.1 + 0.2, 0.3, 0.3], [5.0, 5.0 + 1e-15, 5.0 - 1e-15]])
def test_values_without_spread_have_an_interval_of_no_width(values):
    found = mean_interval(values)
    assert found.low == found.high == found.mean == pytest.approx(statistics.fmean(values))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, -2.25, 1e-7, 5.0, 5.0 + 1e-14]), min_size=1, max_size=8))
def test_an_interval_is_finite_and_holds_its_mean(values):
    found = mean_interval(values)
    assert math.isfinite(found.low + found.high)
    assert found.low <= found.mean + 1e-12
    assert found.high >= found.mean - 1e-12
    assert min(values) - 1e-12 <= found.low <= found.high <= max(values) + 1e-12


def test_no_values_have_no_interval():
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])
    with pytest.raises(ValueError, match="got 0 and 0"):
        paired_difference([], [])


def test_unequal_numbers_of_units_are_no_pairs():
    """numpy would broadcast the one against the three."""
    with pytest.raises(ValueError, match="got 3 and 1"):
        paired_difference([1.0, 2.0, 3.0], [1.0])


def test_a_method_that_is_the_same_ties():
    values = [0.0, 1.0, 1.0, 0.0]
    found = paired_difference(values, values)
    assert found.interval == Interval(0.0, 0.0, 0.0, 4)
    assert found.verdict is Verdict.TIE
    # differences that cancel out tie as well
    assert paired_difference([1.0, 0.0] * 20, [0.0, 1.0] * 20).verdict is Verdict.TIE


def test_pairing_finds_what_two_intervals_would_not():
    """Prompts differ much more than the methods do: separate intervals overlap, the paired one is clear of zero."""
    rng = random.Random(1)
    others = [rng.uniform(0, 10) for _ in range(50)]
    values = [value + rng.uniform(0.1, 0.3) for value in others]
    found = paired_difference(values, others)
    interval = found.interval
    assert found.verdict is Verdict.BETTER
    assert 0.1 < interval.low < interval.mean < interval.high < 0.3
    assert interval.mean == pytest.approx(statistics.fmean(values) - statistics.fmean(others))
    assert mean_interval(values).low < mean_interval(others).high
    assert paired_difference(others, values).verdict is Verdict.WORSE


def test_a_paired_interval_is_the_percentile_bootstrap():
    """Of 0/1 differences k of n, a resampled mean is binomial(n, k/n) / n: its quantiles are known."""
    n, k = 40, 10
    found = paired_difference([1.0] * k + [0.0] * (n - k), [0.0] * n)
    interval = found.interval
    weights = [math.comb(n, j) * 0.25**j * 0.75 ** (n - j) for j in range(n + 1)]
    low = next(j for j in range(n + 1) if sum(weights[: j + 1]) >= 0.025) / n
    high = next(j for j in range(n + 1) if sum(weights[: j + 1]) >= 0.975) / n
    assert interval.mean == 0.25
    assert (interval.low, interval.high) == (pytest.approx(low, abs=1 / n), pytest.approx(high, abs=1 / n))
    assert found.verdict is Verdict.BETTER


def test_a_tie_is_called_better_as_rarely_as_the_confidence_says(monkeypatch):
    """Under no difference at all, a verdict other than a tie comes in about 5 % of the comparisons."""
    monkeypatch.setattr(intervals, "RESAMPLES", 499)
    rng = np.random.default_rng(0)
    verdicts = [
        paired_difference(rng.normal(size=60).tolist(), rng.normal(size=60).tolist(), seed).verdict
        for seed in range(250)
    ]
    assert verdicts.count(Verdict.TIE) >= 0.9 * 250
    assert {Verdict.BETTER, Verdict.WORSE} <= set(verdicts)


def test_one_unit_is_no_evidence():
    found = paired_difference([1.0], [0.0])
    assert found.interval.mean == 1.0
    assert found.verdict is Verdict.TIE


def test_many_values_take_bounded_memory():
    import tracemalloc

    values = np.random.default_rng(0).random(30_000).tolist()
    tracemalloc.start()
    found = mean_interval(values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 * 2**20
    half = 1.96 * np.std(values) / len(values) ** 0.5
    assert found.low == pytest.approx(found.mean - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.mean + half, abs=0.1 * half)
