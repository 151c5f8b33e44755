"""Weighted logistic regression for many weightings of the same rows at once, as a bootstrap asks it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_STEPS = 100
_HALVINGS = 30
_ENOUGH = 1e-13
"""Relative fall of the objective below which a fit has arrived. Rows that can be told apart have no optimum: their
weights grow until this ends it, where the prediction is 0 or 1 to many digits."""
_RIDGE = 1e-9
"""Keeps a feature that is constant from making the Newton step undefined."""
_UNKNOWN = 50.0
"""Standard error of a logit, from which on its rate may as well be 0 as 1. Rows that can be told apart, and features
that cannot, have one of hundreds and more, whatever the scale of the features."""


@dataclass(frozen=True)
class _Problem:
    """What is minimised: `logistic_fit`'s arguments, for some of its weightings."""

    features: Floats
    targets: Floats
    weights: Floats

    def of(self, fits: NDArray[np.intp]) -> _Problem:
        """The same for fewer weightings."""
        return replace(self, weights=self.weights[fits])

    def value(self, at: Floats) -> Floats:
        """(fits,) objective."""
        logits = at @ self.features.T
        found: Floats = (self.weights * (np.logaddexp(0, logits) - self.targets * logits)).sum(axis=1)
        return found

    def slopes(self, at: Floats) -> tuple[Floats, Floats]:
        """(fits, k) gradient and (fits, k, k) curvature."""
        columns = self.features.shape[1]
        chances = 0.5 * (1 + np.tanh(0.5 * (at @ self.features.T)))
        gradient = (self.weights * (chances - self.targets)) @ self.features
        products = (self.features[:, :, None] * self.features[:, None, :]).reshape(-1, columns**2)
        curvature = ((self.weights * chances * (1 - chances)) @ products).reshape(-1, columns, columns)
        return gradient, curvature + _RIDGE * np.eye(columns)


def logistic_fit(features: Floats, targets: Floats, weights: Floats) -> Floats:
    """Weights of the features, without an intercept, for each weighting of the rows.

        minimise over b:  sum_i w_i [ log(1 + exp(x_i b)) - y_i x_i b ]

    By Newton steps, halved until the objective does not rise.

    Args:
        features: (n, k) x.
        targets: (n,) y, shares in [0, 1].
        weights: (fits, n) w, at least 0.

    Returns:
        (fits, k).
    """
    whole = _Problem(features, targets, weights)
    found = np.zeros((len(weights), features.shape[1]))
    value = whole.value(found)
    active = np.arange(len(weights))
    for _ in range(_STEPS):
        problem, at = whole.of(active), found[active]
        gradient, curvature = problem.slopes(at)
        step = np.asarray(-np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0], dtype=np.float64)
        found[active], new = _halved(problem, at, step, value[active])
        arrived = value[active] - new <= _ENOUGH * (1 + np.abs(new))
        value[active] = new
        active = active[~arrived]
        if not active.size:
            break
    return found


def determined(features: Floats, weights: Floats, fitted: Floats, points: Floats) -> NDArray[np.bool_]:
    """Whether the rows determine the logit at each point, by the curvature of the objective at its minimum.

    They do not where there is no minimum, since some weights of the features tell all labels apart, nor where the
    features do not tell what belongs to which of them; a point in whose logit that makes no difference has one.

    Args:
        features: (n, k) x of `logistic_fit`.
        weights: (n,) of the rows.
        fitted: (k,) what it found.
        points: (m, k) features of the logits.

    Returns:
        (m,).
    """
    _, (curvature,) = _Problem(features, np.zeros(len(features)), weights[None]).slopes(fitted[None])
    values, vectors = np.linalg.eigh(curvature)  # at least the ridge
    errors = np.sqrt(((points @ vectors) ** 2 / np.maximum(values, _RIDGE)).sum(axis=1))
    return np.asarray(errors < _UNKNOWN)


def _halved(problem: _Problem, at: Floats, step: Floats, value: Floats) -> tuple[Floats, Floats]:
    """Where each step leads, halved until the objective does not rise, and the objective there."""
    size = np.ones(len(at))
    reached, falls = at.copy(), value.copy()
    waiting = np.arange(len(at))
    for _ in range(_HALVINGS):
        tried = at[waiting] + size[waiting, None] * step[waiting]
        new = problem.of(waiting).value(tried)
        better = new <= value[waiting]
        reached[waiting[better]], falls[waiting[better]] = tried[better], new[better]
        waiting = waiting[~better]
        if not waiting.size:
            break
        size[waiting] /= 2
    return reached, falls
