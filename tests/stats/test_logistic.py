"""The batched fit against scikit-learn's, and against what has no optimum."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from densepath.stats.logistic import determined, logistic_fit


def rows(seed=0, n=300):
    rng = np.random.default_rng(seed)
    features = np.column_stack([rng.normal(size=(n, 2)), np.ones(n)])
    targets = np.clip(1 / (1 + np.exp(-features @ [1.0, -0.5, 0.3])) + 0.1 * rng.normal(size=n), 0, 1)
    return features, targets, rng.integers(0, 4, (3, n)).astype(float)


def test_as_scikit_learn_fits_it():
    features, targets, weights = rows()
    found = logistic_fit(features, targets, weights)
    twice, labels = np.concatenate([features, features]), np.repeat([1, 0], len(targets))
    for fit, weight in zip(found, weights, strict=True):
        theirs = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-9, max_iter=20_000).fit(
            twice, labels, sample_weight=np.concatenate([targets, 1 - targets]) * np.tile(weight, 2)
        )
        assert fit == pytest.approx(theirs.coef_[0], abs=2e-5)


def test_rows_that_can_be_told_apart_end_at_certainty():
    features = np.array([[1.0], [2.0], [-1.0]])
    (found,) = logistic_fit(features, np.array([1.0, 1.0, 0.0]), np.ones((1, 3)))
    assert np.isfinite(found).all()
    assert found[0] > 15


def test_a_feature_that_is_constant_zero_has_no_weight():
    features, targets, weights = rows()
    features[:, 1] = 0
    found = logistic_fit(features, targets, weights)
    assert found[:, 1] == pytest.approx(0)
    assert np.isfinite(found).all()


def test_what_the_rows_determine():
    """A feature that tells the labels of its own rows apart takes nothing from the others; two alike none."""
    features, targets, weights = rows()
    apart = np.zeros((len(targets), 1))
    apart[:20, 0], targets[:20] = 1, 1.0
    features = np.column_stack([features, apart, features[:, 0], features[:, 1]])
    (fitted,) = logistic_fit(features, targets, weights[:1])
    points = np.array([[0, 0, 1.0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 1, 0]])
    assert determined(features, weights[0], fitted, points).tolist() == [True, False, False, True]
