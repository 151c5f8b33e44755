"""The AUROC against all pairs counted one by one, and its bootstrap against rows written out as often as drawn."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.evals import auroc as module
from densepath.evals.auroc import auroc, auroc_replicates


def pairs_won(scores, labels) -> float:
    """Every positive against every negative: 1 for above, 1/2 for equal."""
    won = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for (a, up), (b, down) in itertools.product(zip(scores, labels, strict=True), repeat=2)
        if up and not down
    ]
    return sum(won) / len(won)


items = st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 4)), min_size=2, max_size=30).filter(
    lambda found: len({label for _, label, _ in found}) == 2
)


def arrays(found):
    scores, labels, rows = (np.array(column) for column in zip(*found, strict=True))
    return scores.astype(float), labels.astype(bool), rows.astype(np.int64)


@settings(deadline=None, max_examples=60)
@given(items)
def test_it_is_the_share_of_pairs_won(found):
    scores, labels, _ = arrays(found)
    assert auroc(scores, labels) == pytest.approx(pairs_won(scores, labels), abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(items)
def test_a_monotone_map_changes_nothing_and_a_flip_mirrors(found):
    scores, labels, _ = arrays(found)
    assert auroc(np.exp(scores), labels) == pytest.approx(auroc(scores, labels), abs=1e-12)
    assert auroc(-scores, labels) == pytest.approx(1 - auroc(scores, labels), abs=1e-12)


def test_by_hand():
    # Positives 2 and 4 against negatives 1, 2, 3: (1, 1/2, 0) and (1, 1, 1), 4.5 of 6.
    assert auroc(np.array([1.0, 2.0, 2.0, 3.0, 4.0]), np.array([False, True, False, False, True])) == 0.75
    assert auroc(np.zeros(7), np.arange(7) < 2) == 0.5
    assert math.isnan(auroc(np.array([1.0, 2.0]), np.array([True, True])))


@settings(deadline=None, max_examples=40)
@given(items, st.integers(0, 5))
def test_a_replicate_is_the_auroc_of_the_rows_as_often_as_they_were_drawn(found, seed):
    scores, labels, rows = arrays(found)
    counts = np.random.default_rng(seed).multinomial(5, np.full(5, 0.2), size=7)
    seen = []

    def few_draws(n, statistic, **settings):
        seen.append(n)
        return statistic(counts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "bootstrap", few_draws)
        patch.setattr(module, "_BLOCK", 3 * scores.size)  # several blocks
        replicates = auroc_replicates(scores, labels, rows, 5, seed=0)
    assert seen == [5]
    for drawn, replicate in zip(counts, replicates, strict=True):
        written_out = np.repeat(np.arange(scores.size), drawn[rows])
        if len(set(labels[written_out])) < 2:
            assert math.isnan(replicate)
        else:
            assert replicate == pytest.approx(pairs_won(scores[written_out], labels[written_out]), abs=1e-12)


def test_the_spread_over_rows_is_that_of_independent_rows_not_of_items():
    """30 copies of an item in a row say no more than one: the spread stays, and does not fall by sqrt(30)."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2 == 0
    scores = rng.normal(labels * 1.0, 1.0)
    rows = np.arange(60)
    once = auroc_replicates(scores, labels, rows, 60, seed=1)
    often = auroc_replicates(np.repeat(scores, 30), np.repeat(labels, 30), np.repeat(rows, 30), 60, seed=1)
    assert often == pytest.approx(once, abs=1e-12)
    # The variance of U / (P N) by its textbook form (Hanley & McNeil 1982) from the two probabilities of triples.
    a = auroc(scores, labels)
    won = (scores[labels][:, None] > scores[~labels][None, :]).astype(float)
    variance = (
        a * (1 - a) + 29 * ((won.mean(1) ** 2).mean() - a * a) + 29 * ((won.mean(0) ** 2).mean() - a * a)
    ) / 900
    assert np.nanstd(once) == pytest.approx(math.sqrt(variance), rel=0.15)


def test_nan_and_mismatched_shapes_are_refused():
    with pytest.raises(ValueError, match="score 1 is NaN"):
        auroc(np.array([0.0, np.nan]), np.array([True, False]))
    with pytest.raises(ValueError, match="bool"):
        auroc(np.zeros(3), np.zeros(3))
