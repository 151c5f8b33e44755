"""Weighted logistic regression for many weightings of the same rows at once, as a bootstrap asks it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_STEPS = 100
_HALVINGS = 30
_SWEEPS = 60
_ENOUGH = 1e-13
"""Relative fall of the objective below which a fit has arrived. Rows that can be told apart have no optimum: their
weights grow until this ends it, where the prediction is 0 or 1 to many digits."""
_RIDGE = 1e-9
"""Keeps a feature that is constant from making the Newton step undefined."""


def logistic_fit(features: Floats, targets: Floats, weights: Floats, penalty: float = 0.0) -> Floats:
    """Weights of the features, without an intercept, for each weighting of the rows.

        minimise over b:  sum_i w_i [ log(1 + exp(x_i b)) - y_i x_i b ]  +  penalty * sum_j |b_j|

    By Newton steps, halved until the objective falls; with a penalty each step is solved by coordinate descent.

    Args:
        features: (n, k) x.
        targets: (n,) y, shares in [0, 1].
        weights: (fits, n) w, at least 0.
        penalty: of the absolute values; liblinear's 1 / C.

    Returns:
        (fits, k).
    """
    fits, columns = weights.shape[0], features.shape[1]
    found = np.zeros((fits, columns))
    products = (features[:, :, None] * features[:, None, :]).reshape(len(features), -1)
    value = _objective(features, targets, weights, penalty, found)
    active = np.arange(fits)
    for _ in range(_STEPS):
        at, mine = found[active], weights[active]
        chances = _sigmoid(at @ features.T)
        gradient = (mine * (chances - targets)) @ features
        curvature = ((mine * chances * (1 - chances)) @ products).reshape(-1, columns, columns)
        curvature += _RIDGE * np.eye(columns)
        step = _step(gradient, curvature, at, penalty)
        reached, falls = _halved(features, targets, mine, penalty, at, step, value[active])
        found[active] = reached
        arrived = value[active] - falls <= _ENOUGH * (1 + np.abs(falls))
        value[active] = falls
        active = active[~arrived]
        if not active.size:
            break
    return found


def _sigmoid(logits: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(0.5 * logits))


def _objective(features: Floats, targets: Floats, weights: Floats, penalty: float, at: Floats) -> Floats:
    logits = at @ features.T
    fit: Floats = (weights * (np.logaddexp(0, logits) - targets * logits)).sum(axis=1)
    size: Floats = np.abs(at).sum(axis=1)
    return fit + penalty * size


def _step(gradient: Floats, curvature: Floats, at: Floats, penalty: float) -> Floats:
    """The minimum of the quadratic model: of g d + d H d / 2 + penalty |at + d|."""
    if penalty == 0:
        return np.asarray(-np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0])
    step = np.zeros_like(gradient)
    for _ in range(_SWEEPS):
        before = step.copy()
        for j in range(gradient.shape[1]):
            own = curvature[:, j, j]
            rest = gradient[:, j] + (curvature[:, j] * step).sum(axis=1) - own * step[:, j]
            target = own * at[:, j] - rest
            step[:, j] = np.sign(target) * np.maximum(np.abs(target) - penalty, 0) / own - at[:, j]
        if np.abs(step - before).max() < _ENOUGH:
            break
    return step


def _halved(
    features: Floats, targets: Floats, weights: Floats, penalty: float, at: Floats, step: Floats, value: Floats
) -> tuple[Floats, Floats]:
    """Where each step leads, halved until the objective does not rise, and the objective there."""
    size = np.ones(len(at))
    reached, falls = at.copy(), value.copy()
    waiting = np.arange(len(at))
    for _ in range(_HALVINGS):
        tried = at[waiting] + size[waiting, None] * step[waiting]
        new = _objective(features, targets, weights[waiting], penalty, tried)
        better = new <= value[waiting]
        reached[waiting[better]], falls[waiting[better]] = tried[better], new[better]
        waiting = waiting[~better]
        if not waiting.size:
            break
        size[waiting] /= 2
    return reached, falls
