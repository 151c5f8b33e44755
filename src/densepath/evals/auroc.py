"""Area under the ROC curve with ties counted half, and its bootstrap over rows that hold several items each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from densepath.stats.bootstrap import bootstrap

AUROC_RESAMPLES = 1999
_BLOCK = 4_000_000
"""Weights held at once; bounds memory."""


def auroc(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    """Probability that a positive item scores above a negative one, ties counted half.

        AUROC = (sum of the positives' ranks - P (P + 1) / 2) / (P N)

    with tied items sharing their mean rank: the Mann-Whitney U over the number of pairs.

    Args:
        scores: (items,) float; higher means more likely positive.
        labels: (items,) bool, True = positive.

    Returns:
        0 to 1, 0.5 for chance; NaN where one class is missing.

    >>> auroc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True]))
    0.875
    """
    _check(scores, labels)
    positives = int(labels.sum())
    negatives = labels.size - positives
    if not positives or not negatives:
        return float("nan")
    ranks = stats.rankdata(scores)
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def auroc_replicates(
    scores: NDArray[np.float64], labels: NDArray[np.bool_], rows: NDArray[np.int64], n: int, *, seed: int
) -> NDArray[np.float64]:
    """Bootstrap replicates of the AUROC over rows: the items of a row are drawn together.

    Args:
        scores: (items,) float.
        labels: (items,) bool.
        rows: (items,) int, the row that each item belongs to, below `n`.
        n: rows, those without items included.
        seed: of the draws; the same seed pairs the replicates of several scores.

    Returns:
        (resamples,) float; NaN where one class was not drawn.
    """
    _check(scores, labels)
    order = np.argsort(scores, kind="stable")
    ordered, positive, row = scores[order], labels[order], rows[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # of each run of equal scores

    def statistic(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        block = max(1, _BLOCK // max(1, scores.size))
        parts = [_weighted(counts[at : at + block, row], positive, starts) for at in range(0, len(counts), block)]
        return np.concatenate(parts)

    return bootstrap(n, statistic, seed=seed, resamples=AUROC_RESAMPLES)


def _weighted(
    weights: NDArray[np.int64], positive: NDArray[np.bool_], starts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(b,) AUROC of items in ascending order that occur as often as their (b, items) weights say."""
    ups = np.add.reduceat(np.where(positive, weights, 0), starts, axis=1)
    downs = np.add.reduceat(np.where(positive, 0, weights), starts, axis=1)
    below = np.cumsum(downs, axis=1) - downs
    pairs = (ups.sum(axis=1) * downs.sum(axis=1)).astype(np.float64)
    wins = (ups * (below + downs / 2)).sum(axis=1)
    found: NDArray[np.float64] = np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return found


def _check(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> None:
    if scores.ndim != 1 or scores.shape != labels.shape or labels.dtype != np.bool_:
        raise ValueError(
            f"scores must be (items,) and labels (items,) bool, got {scores.shape} and {labels.shape} {labels.dtype}"
        )
    if np.isnan(scores).any():
        raise ValueError(f"score {int(np.flatnonzero(np.isnan(scores))[0])} is NaN: it has no rank")
