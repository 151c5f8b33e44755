"""Statistics over seeds: by hand, against SciPy, and where the seeds do not spread."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from densepath.stats.intervals import mean_interval, proportion_interval
from densepath.stats.seeds import seed_difference, seed_mean, sign_flip_p


def test_a_mean_over_seeds_by_hand():
    # Seeds .2, .4, .6: mean .4, s = .2, se = .2 / sqrt 3 = .115470; t_(.975, 2) = 4.302653: half .496828
    found = seed_mean([[0, 0, 0, 0, 1], [0, 0, 0, 1, 1], [0, 0, 1, 1, 1]])
    assert (found.unit, found.n) == ("seeds", 3)
    assert found.mean == pytest.approx(0.4)
    assert found.low == pytest.approx(0.4 - 0.496828, abs=1e-6)
    assert found.high == pytest.approx(0.4 + 0.496828, abs=1e-6)


def test_a_seed_counts_once_however_many_prompts_it_has():
    assert seed_mean([[1.0] * 90, [0.0] * 10]).mean == 0.5


def test_a_paired_difference_by_hand():
    # Differences .2, .4, .6 as above: t = .4 / .115470 = 3.464102. With 2 degrees of freedom the two-sided p is
    # 1 - t / sqrt(2 + t^2) = 1 - 3.464102 / sqrt(14) = .074180
    values = [[0.3, 0.5], [0.6, 0.8], [0.9, 0.9]]
    others = [[0.1, 0.3], [0.2, 0.4], [0.2, 0.4]]
    found = seed_difference(values, others)
    assert (found.interval.unit, found.interval.n) == ("seeds", 3)
    assert found.interval.mean == pytest.approx(0.4)
    assert found.interval.low == pytest.approx(0.4 - 0.496828, abs=1e-6)
    assert found.p == pytest.approx(1 - math.sqrt(12) / math.sqrt(14), abs=1e-9)


def test_levels_that_seeds_share_do_not_widen_a_paired_difference():
    levels, gains = [0.1, 0.5, 0.9], [0.010, 0.012, 0.011]
    found = seed_difference([[a + b] for a, b in zip(levels, gains, strict=True)], [[a] for a in levels])
    # s = .001, se = .000577350, half = 4.302653 se = .002484
    assert found.interval.high - found.interval.mean == pytest.approx(0.002484, abs=1e-6)


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_a_model_against_itself_is_no_difference(seeds):
    values = np.random.default_rng(0).random((seeds, 40)).tolist()
    found = seed_difference(values, values)
    assert (found.interval.mean, found.interval.low, found.interval.high, found.p) == (0, 0, 0, 1)


def test_two_seeds_that_gain_the_same_are_judged_by_their_prompts():
    """A t-test would say p = 0; with two prompts each nothing is shown, with two hundred it is."""
    few = seed_difference([[1, 1]] * 2, [[0, 0]] * 2)
    assert (few.interval.unit, few.interval.n, few.interval.mean) == ("prompts", 4, 1)
    assert few.p == 2 / 2**4  # all four prompts gain: 2 of 16 sign vectors are as far out
    many = seed_difference([[1, 0] * 100] * 2, [[0, 0] * 100] * 2)
    assert many.interval.unit == "prompts"
    assert 0 < many.p <= 2e-4
    assert 0.4 < many.interval.low < 0.5 < many.interval.high < 0.6


def test_equal_gains_that_rounding_makes_unequal_have_no_spread():
    values, others = [[0.3], [0.4], [0.7]], [[0.2], [0.3], [0.6]]  # 0.1 three times, but not in float64
    assert len({a[0] - b[0] for a, b in zip(values, others, strict=True)}) > 1
    assert seed_difference(values, others).interval.unit == "prompts"


def test_no_gain_in_every_seed_is_p_1_though_prompts_differ():
    found = seed_difference([[1, 0, 1, 0]] * 3, [[0, 1, 0, 1]] * 3)
    assert (found.interval.mean, found.p) == (0, 1)
    assert found.interval.low < 0 < found.interval.high


def test_one_seed_has_an_interval_over_prompts():
    right = [1.0] * 30 + [0.0] * 20
    found = seed_mean([right])
    assert found == proportion_interval(30, 50)
    grades = np.random.default_rng(1).normal(size=50).tolist()
    assert seed_mean([grades], mean_interval) == mean_interval(grades)
    difference = seed_difference([right], [[0.0] * 50])
    assert (difference.interval.unit, difference.interval.n) == ("prompts", 50)
    assert difference.interval.low < 0.6 < difference.interval.high


def test_one_seeds_interval_is_about_the_normal_one():
    rng = np.random.default_rng(2)
    values, others = rng.random(400) < 0.6, rng.random(400) < 0.5
    difference = values.astype(float) - others
    half = 1.96 * difference.std() / math.sqrt(400)
    found = seed_difference([values], [others]).interval
    assert found.low == pytest.approx(difference.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(difference.mean() + half, abs=0.1 * half)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=2, max_size=11).filter(any))
def test_few_prompts_have_scipys_exact_p(parts):
    found = stats.permutation_test(
        (np.array(parts),), lambda x, axis: x.sum(axis=axis), permutation_type="samples", vectorized=True
    )
    assert sign_flip_p(np.array(parts)) == pytest.approx(float(found.pvalue))


def test_many_prompts_have_the_binomial_p():
    # 40 gains and 20 losses: two-sided sign test
    found = sign_flip_p(np.array([1.0] * 40 + [-1.0] * 20 + [0.0] * 100))
    assert found == pytest.approx(stats.binomtest(40, 60).pvalue, abs=0.004)


@pytest.mark.parametrize(
    ("values", "others", "words"),
    [([[1.0]], [], "1 and 0 seeds"), ([], [], "0 and 0"), ([[1.0], [1.0]], [[1.0], [1.0, 0.0]], "seed number 1")],
)
def test_what_does_not_pair_is_refused(values, others, words):
    with pytest.raises(ValueError, match=words):
        seed_difference(values, others)


@settings(deadline=None, max_examples=25)
@given(st.randoms(use_true_random=False), st.integers(2, 5))
def test_the_order_of_seeds_does_not_matter(random, seeds):
    rng = np.random.default_rng(random.randrange(2**32))
    pairs = [(rng.random(8).tolist(), rng.random(8).tolist()) for _ in range(seeds)]
    one = seed_difference(*zip(*pairs, strict=True))
    random.shuffle(pairs)
    other = seed_difference(*zip(*pairs, strict=True))
    assert one.p == pytest.approx(other.p)
    assert one.interval.low == pytest.approx(other.interval.low)
