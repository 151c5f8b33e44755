"""Paired replicates, Holm's correction by hand, and the rate of false verdicts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from densepath.records.estimates import Interval, Verdict
from densepath.stats import bootstrap as module
from densepath.stats.bootstrap import (
    bootstrap,
    credit_interval,
    expanded_tail,
    mean_replicates,
    replicate_interval,
)
from densepath.stats.comparisons import compare, holm
from densepath.stats.intervals import proportion_interval


def test_replicates_of_a_mean_are_means_of_drawn_rows(monkeypatch):
    values = np.random.default_rng(0).normal(size=(3, 40))
    drawn = []
    bootstrap(40, lambda counts: drawn.append(counts) or np.zeros(len(counts)), seed=4)
    counts = np.concatenate(drawn)
    assert (counts.sum(axis=1) == 40).all()
    found = mean_replicates(values, seed=4)
    for resample in (0, 17, len(counts) - 1):
        written_out = np.repeat(values, counts[resample], axis=1)
        assert found[resample] == pytest.approx(written_out.mean(axis=1))
    monkeypatch.setattr(module, "_BLOCK", 40 * 7)  # other blocks, the same draws
    assert mean_replicates(values, seed=4) == pytest.approx(found)


def test_the_interval_of_a_mean_is_the_normal_one_where_there_are_many_rows():
    values = np.random.default_rng(1).normal(2.0, 3.0, (1, 600))
    interval = replicate_interval(float(values.mean()), mean_replicates(values, seed=0)[:, 0], 600)
    half = 1.959964 * values.std() / math.sqrt(600)
    assert (interval.low, interval.high) == (
        pytest.approx(interval.mean - half, abs=0.02),
        pytest.approx(interval.mean + half, abs=0.02),
    )


def test_the_interval_of_few_rows_is_as_wide_as_students():
    """Of replicates that are normal it is Student's, whose spread is by n - k."""
    replicates = stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    for n, parameters in ((5, 1), (10, 1), (40, 5), (3, 4)):
        free = max(1, n - parameters)
        found = replicate_interval(0.0, replicates, n, parameters=parameters)
        wide = min(stats.t.ppf(0.975, free) * math.sqrt(n / free), replicates[-1])
        assert (found.low, found.high) == (pytest.approx(-wide, rel=0.02), pytest.approx(wide, rel=0.02))
    assert expanded_tail(100_000) == pytest.approx(0.025, rel=1e-3)


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04: times 4, 3, 2, 1 is .04 .06 .06 .04, and the running maximum .04 .06 .06 .06.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(ps):
    """Holm's own words: go up the sorted p-values and stop at the first above level / (m - i)."""
    level, rejected = 0.05, set()
    for place, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        if ps[index] * (len(ps) - place) >= level:
            break
        rejected.add(index)
    assert {index for index, p in enumerate(holm(ps)) if p < level} == rejected


def compared(values):
    names = [f"m{index}" for index in range(len(values))]
    replicates = mean_replicates(values, seed=0)
    return compare(
        "m0",
        dict(zip(names, values.mean(axis=1).tolist(), strict=True)),
        {name: replicates[:, index] for index, name in enumerate(names)},
        values.shape[1],
    )


def test_pairing_shows_what_unpaired_spreads_would_hide():
    noise = np.random.default_rng(2).normal(0, 10, 60)
    better, same = compared(np.stack([noise + 1, noise + np.random.default_rng(3).normal(0, 0.5, 60), noise + 1]))
    assert (better.against, better.verdict) == ("m1", Verdict.BETTER)
    assert 0.5 < better.difference.low < 1 < better.difference.high < 1.5
    assert (same.verdict, same.p, same.difference.mean) == (Verdict.TIE, 1.0, 0.0)
    worse = compared(np.stack([noise, noise + 1]))[0]
    assert (worse.verdict, worse.p) == (Verdict.WORSE, 2 / 10_000)


def test_one_row_shows_nothing():
    (only,) = compared(np.array([[1.0], [0.0]]))
    assert (only.verdict, only.p) == (Verdict.TIE, 1.0)


def test_false_verdicts_are_as_rare_as_promised():
    """Eight baselines that differ by noise alone: at most about 5 % of the data sets may show any difference."""
    rng = np.random.default_rng(5)
    shown = 0
    for index in range(100):
        values = rng.normal(size=(9, 50))
        counts = np.random.default_rng(index).multinomial(50, np.full(50, 0.02), size=999)
        replicates = counts @ values.T / 50
        found = compare("0", {str(m): float(values[m].mean()) for m in range(9)},
                        {str(m): replicates[:, m] for m in range(9)}, 50)  # fmt: skip
        shown += any(one.verdict is not Verdict.TIE for one in found)
    assert shown / 100 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 100)


def test_the_interval_of_credits_is_wilsons_or_the_bootstraps():
    assert credit_interval(np.array([1.0, 1.0, 0.0])) == proportion_interval(2, 3)
    assert credit_interval(np.full(7, 0.5)) == Interval(0.5, 0.5, 0.5, 7)
    credits = np.random.default_rng(0).choice([0.0, 0.5, 1.0], 400, p=[0.2, 0.2, 0.6])
    found = credit_interval(credits)
    half = 1.959964 * credits.std() / 20
    assert (found.mean, found.n) == (credits.mean(), 400)
    assert (found.low, found.high) == (
        pytest.approx(found.mean - half, abs=0.005),
        pytest.approx(found.mean + half, abs=0.005),
    )
