"""AlpacaEval's length-controlled win rate as it is published, with a sampling error; and a fit by length alone.

    y = preference for the model
    z = (length of the baseline's answer - length of the model's) / standard deviation of that over prompts
    logit P(y) = w_length tanh(z) + w_difficulty difficulty + w_model [the row is the model's]
    rate = mean over prompts of P at z = 0

Rows of the gamed baselines (the baseline's own concise and verbose answers) are fitted beside the model's, with a
tenth of their weight, so that w_length is known where the model's own lengths say little. Without them and without
the difficulties (they are on the hub, under a licence that forbids to ship them) there remains a fit of two terms,
a figure of another name: over 56 published models it is off by 6.6 points on average.

Source: Dubois et al., Length-Controlled AlpacaEval (2404.04475), and the settings of alpaca-eval 0.6.6.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densepath.errors import UsageError
from densepath.records.estimates import Interval
from densepath.records.judged import LengthControlled
from densepath.stats.bootstrap import bootstrap, replicate_interval
from densepath.stats.logistic import determined, logistic_fit

Floats = NDArray[np.float64]

GAMED_SHARE = 0.1
"""Weight of a gamed row: half of AlpacaEval's 0.2, since there are two gamed baselines."""
RESAMPLES = 1999
LEAST = 1e-8
"""Preferences that are fitted lie this far from 0 and 1 where no gamed rows bring both labels: ours."""
FOLDS, PENALTIES, SEED = 5, 10, 123
"""Of AlpacaEval's choice of the penalty."""
FEATURES = ("length", "difficulty", "model")


@dataclass(frozen=True)
class Gamed:
    """AlpacaEval's rows of the gamed baselines.

    Attributes:
        preferences: (m,) for the gamed answer, from 0 to 1.
        deltas: (m,) z of each row, as published.
        difficulties: (m,) of its prompt.
    """

    preferences: Floats
    deltas: Floats
    difficulties: Floats


def length_controlled(
    preferences: Floats, deltas: Floats, difficulties: Floats | None = None, gamed: Gamed | None = None, seed: int = 0
) -> LengthControlled:
    """The win rate at equal lengths, with a bootstrap interval over prompts, whose fits have no penalty.

    Args:
        preferences: (n,) for the model, from 0 to 1; a prompt with NaN is predicted and not fitted.
        deltas: (n,) characters of the baseline's answer less those of the model's.
        difficulties: (n,) of the prompts; None for the fit of two terms.
        gamed: rows of the gamed baselines; given with `difficulties`, and only then.
        seed: of the bootstrap.

    Raises:
        ValueError: difficulties without gamed rows or the reverse, or fewer known preferences than folds.
        UsageError: scikit-learn is not installed.
    """
    if (difficulties is None) != (gamed is None):
        raise ValueError("length_controlled needs difficulties and gamed rows, or neither")
    known = np.isfinite(preferences)
    if known.sum() < FOLDS:
        raise ValueError(f"length_controlled needs at least {FOLDS} preferences, got {int(known.sum())}")
    if not deltas.any() and (preferences[known] == 0.5).all():
        return _of_the_same(int(known.sum()), gamed is not None)
    spread = float(deltas.std(ddof=1))
    own = [np.tanh(deltas / spread) if spread > 0 else np.zeros_like(deltas), np.ones_like(deltas)]
    others: list[Floats] = []
    if difficulties is not None and gamed is not None:
        own.insert(1, difficulties)
        others = [np.tanh(gamed.deltas), gamed.difficulties, np.zeros_like(gamed.deltas)]
    before = len(others[0]) if others else 0
    features = np.column_stack([np.concatenate([*pair]) for pair in zip(others, own, strict=True)] if others else own)
    # Without rows of both labels liblinear's sign is wrong: a model that loses everything would have one half.
    targets = np.concatenate([gamed.preferences, preferences]) if gamed else np.clip(preferences, LEAST, 1 - LEAST)
    fitted = np.concatenate([np.isfinite(targets[:before]), known])
    shares = np.concatenate([np.full(before, GAMED_SHARE), np.ones(len(known))])
    at_zero = np.column_stack([np.zeros_like(deltas), *own[1:]])
    weights = _alpaca_eval_fit(features[fitted], targets[fitted], shares[fitted])
    predicted = _predicted(at_zero, weights)
    rate = float(predicted.mean())
    rows = _Rows(features[fitted], targets[fitted], shares[fitted], int(fitted[:before].sum()), at_zero, known)
    # The penalty that is chosen often takes every term of two near-equal models away: no resample would move the rate.
    replicates = bootstrap(len(known), rows.rates, seed=seed, resamples=RESAMPLES)
    name, names = _names(gamed is not None)
    return LengthControlled(
        name,
        replicate_interval(rate, replicates, int(known.sum())),
        float(predicted.std(ddof=1)) / math.sqrt(len(predicted)),
        dict(zip(names, map(float, weights), strict=True)),
        rows.determine(),
    )


def _names(exact: bool) -> tuple[str, tuple[str, ...]]:
    return ("length_controlled", FEATURES) if exact else ("length_adjusted", (FEATURES[0], FEATURES[2]))


def _of_the_same(n: int, exact: bool) -> LengthControlled:
    """A model against itself: one half by construction, as AlpacaEval has it, and nothing to fit."""
    name, names = _names(exact)
    return LengthControlled(name, Interval(0.5, 0.5, 0.5, n), 0.0, dict.fromkeys(names, 0.0))


@dataclass(frozen=True)
class _Rows:
    """What is fitted, and where it is predicted: prompts are drawn, the gamed rows stay."""

    features: Floats
    targets: Floats
    shares: Floats
    gamed: int
    at_zero: Floats
    known: NDArray[np.bool_]

    def rates(self, counts: NDArray[np.int64]) -> Floats:
        """(fits, prompts) counts to (fits,) rates."""
        gamed = np.ones((len(counts), self.gamed))
        drawn = np.concatenate([gamed, counts[:, self.known]], axis=1) * self.shares
        fits = logistic_fit(self.features, self.targets, drawn)
        predicted = _predicted(self.at_zero, fits.T).T
        return np.asarray((counts * predicted).sum(axis=1) / counts.sum(axis=1))

    def determine(self) -> bool:
        """Whether all rows determine the predictions without a penalty."""
        (fitted,) = logistic_fit(self.features, self.targets, self.shares[None])
        return bool(determined(self.features, self.shares, fitted, self.at_zero).all())


def _predicted(features: Floats, weights: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * (features @ weights))))


def _alpaca_eval_fit(features: Floats, targets: Floats, shares: Floats) -> Floats:
    """Weights of AlpacaEval's fit: each row once with label 1 and once with label 0, weighted by its preference.

    The penalty is chosen by the log loss over folds of whole rows. liblinear stops early: only the same order of rows
    and the same seed give the same weights.
    """
    try:
        import sklearn
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegressionCV
        from sklearn.metrics import make_scorer
        from sklearn.model_selection import GroupKFold
    except ImportError as error:
        raise UsageError("length control needs scikit-learn; pip install scikit-learn") from error
    rows = len(targets)
    chances = np.concatenate([targets, 1 - targets])
    twice = np.concatenate([shares, shares])
    labels = np.repeat([1, 0], rows)
    with sklearn.config_context(enable_metadata_routing=True), warnings.catch_warnings():
        # Where rows can be told apart liblinear gives up at AlpacaEval's number of iterations, and so must this.
        warnings.simplefilter("ignore", ConvergenceWarning)
        scorer = make_scorer(_negative_loss, response_method="predict_proba")
        scorer = scorer.set_score_request(chances=True, shares=True)
        model: Any = LogisticRegressionCV(
            Cs=PENALTIES,
            cv=GroupKFold(FOLDS),
            scoring=scorer,
            solver="liblinear",
            fit_intercept=False,
            random_state=SEED,
            **_lasso(inspect.signature(LogisticRegressionCV).parameters),
        ).set_fit_request(sample_weight=True)
        model.fit(
            np.concatenate([features, features]),
            labels,
            sample_weight=chances * twice,
            groups=np.tile(np.arange(rows), 2),
            chances=chances,
            shares=twice,
        )
    return np.asarray(model.coef_[0], dtype=np.float64)


def _lasso(parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The L1 penalty in the words of the scikit-learn that is there: 1.8 renamed it, and 1.10 forgets the old name.

    Args:
        parameters: that its LogisticRegressionCV takes.
    """
    defaults = {name: each.default for name, each in parameters.items()}
    found: dict[str, Any] = {"l1_ratios": (1.0,)}
    if defaults.get("penalty", "deprecated") != "deprecated":
        found = {"penalty": "l1"}
    if defaults.get("use_legacy_attributes") == "warn":  # of 1.8 and 1.9, about attributes that are not read here
        found["use_legacy_attributes"] = False
    return found


def _negative_loss(y_true: Floats, y_pred: Floats, *, chances: Floats, shares: Floats) -> float:
    """The weighted log likelihood of the preferences themselves: `chances` are those of the labels."""
    of_one = np.where(y_true == 1, chances, 1 - chances)
    bounded = np.clip(y_pred, 1e-15, 1 - 1e-15)
    return float(np.mean(shares * (of_one * np.log(bounded) + (1 - of_one) * np.log(1 - bounded))))
