"""How well the reward that each reference makes agrees with what is known; by this one reference is told from another.

Candidates are judged on the same texts, each scored once under every model:

* `preference`: pairs that somebody judged;
* `verifier`: the SFT policy's own completions that a program found right against those it found wrong;
* `altered`: demonstrations against twins in which one number was altered;
* `samples`: held-out demonstrations against the SFT policy's own completions of the same prompts.

The first three know what is true; the last one only who wrote it. Pairs are counted, with Wilson's interval; the
others have the bootstrap's, and do not exist for fewer than `FEWEST` prompts. Derived and measured here, not the
paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densepath.errors import ConfigError
from densepath.evals.auroc import auroc, auroc_replicates
from densepath.evals.preferences import pair_credits
from densepath.evals.scored_texts import Texts
from densepath.evals.signal_to_noise import reward_margins, signal_to_noise, signal_to_noise_replicates
from densepath.evals.signals import Floats
from densepath.records.choice import FEWEST, Agreement, Criterion
from densepath.records.estimates import Comparison, Interval
from densepath.stats.bootstrap import credit_interval, mean_replicates, replicate_interval
from densepath.stats.comparisons import compare
from densepath.stats.intervals import CONFIDENCE, ONE_SIDED_CONFIDENCE

ENSEMBLE = "all"
"""Name of the reward whose reference is the mean probability of all kept references."""

ROUNDING = 1e-5
"""Nats per token by which two scores of the same tokens may differ in float32."""

RIGHT = 0.5
"""Verdicts from here on count as right where right and wrong completions are told apart."""

Rewards = Mapping[str, Sequence[Tensor]]
"""Name of each candidate -> one (completion tokens,) tensor for each text, nats."""


@dataclass(frozen=True)
class Measured:
    """One criterion of all candidates: values, paired replicates over units, and what else is told of each.

    A value that is a mean of `credits` has their interval: resamples of credits that are all alike never differ.
    """

    values: dict[str, float]
    replicates: dict[str, NDArray[np.float64]]
    n: int
    extras: dict[str, dict[str, float]] = field(default_factory=dict)
    credits: dict[str, Floats] = field(default_factory=dict)

    def agreement(self, name: str, criterion: Criterion) -> Agreement:
        """The record of one candidate."""
        low = self._interval(name, 2 * ONE_SIDED_CONFIDENCE - 1).low  # its two tails are that one
        return Agreement(name, criterion, self._interval(name, CONFIDENCE), low, **self.extras.get(name, {}))

    def _interval(self, name: str, confidence: float) -> Interval:
        if name in self.credits:
            return credit_interval(self.credits[name], confidence=confidence)
        return replicate_interval(self.values[name], self.replicates[name], self.n, confidence)

    @property
    def best(self) -> str:
        """The candidate with the highest value."""
        return max(self.values, key=self.values.__getitem__)


def measure_agreement(texts: Texts, rewards: Rewards, limit: int, seed: int) -> dict[Criterion, Measured]:
    """Each criterion that can be computed from the texts, those that know what is true first.

    Args:
        texts: what was scored.
        rewards: of every candidate.
        limit: demonstrations are compared with samples over this stretch, tokens.
        seed: of the bootstrap.
    """
    found = {
        Criterion.PREFERENCE: _preference(texts, rewards, seed),
        Criterion.VERIFIER: _verifier(texts, rewards, seed),
        Criterion.ALTERED: _altered(texts, rewards, seed),
        Criterion.SAMPLES: _samples(texts, rewards, limit, seed),
    }
    return {criterion: measured for criterion, measured in found.items() if measured is not None}


def deciding_criterion(
    asked: Criterion | None, measured: Mapping[Criterion, Measured], *, judged: bool
) -> Criterion | None:
    """What decides: what was asked for, else judged answers, else the first criterion of the reward that there is.

    Raises:
        ConfigError: the criterion asked for cannot be computed.
    """
    available = [*([Criterion.ANSWERS] if judged else []), *measured]
    if asked is None:
        return available[0] if available else None
    if asked not in available:
        known = ", ".join(criterion.value for criterion in available) or "none"
        raise ConfigError(
            f"criterion={asked.value} cannot be computed from what was given (prompts count from {FEWEST} on); "
            f"there is {known}"
        )
    return asked


def best_against_others(criterion: Criterion | None, measured: Mapping[Criterion, Measured]) -> tuple[Comparison, ...]:
    """The best reference less each other, by the deciding criterion, or by the first one of the reward."""
    if not measured:
        return ()
    chosen = (criterion and measured.get(criterion)) or next(iter(measured.values()))
    return tuple(compare(chosen.best, chosen.values, chosen.replicates, chosen.n))


def preference_credits(texts: Texts, rewards: Sequence[Tensor]) -> Floats:
    """(pairs,) 1 where the chosen completion has the higher mean, 0 where the rejected one has, a half for equal."""
    sides = (np.array([float(rewards[pair[side]].mean()) for pair in texts.pairs]) for side in (0, 1))
    return pair_credits(*sides)


def _preference(texts: Texts, rewards: Rewards, seed: int) -> Measured | None:
    if not texts.pairs:
        return None
    credits = {name: preference_credits(texts, of) for name, of in rewards.items()}
    columns = mean_replicates(np.stack(list(credits.values())), seed=seed)
    return Measured(
        {name: float(values.mean()) for name, values in credits.items()},
        {name: columns[:, index] for index, name in enumerate(credits)},
        len(texts.pairs),
        credits=credits,
    )


def _verifier(texts: Texts, rewards: Rewards, seed: int) -> Measured | None:
    verdicts = np.array([value for values in texts.verdicts for value in values])
    judged = ~np.isnan(verdicts)
    right = verdicts[judged] >= RIGHT
    prompt = np.repeat(np.arange(len(texts.verdicts)), [len(values) for values in texts.verdicts])[judged]
    prompts, row = np.unique(prompt, return_inverse=True)  # those that were judged, counted from 0
    n = len(prompts)
    if n < FEWEST or not right.any() or right.all():
        return None
    flat = np.array([index for indices in texts.samples for index in indices])[judged]
    scores = {name: np.array([float(of[index].mean()) for index in flat]) for name, of in rewards.items()}
    return Measured(
        {name: auroc(values, right) for name, values in scores.items()},
        {name: auroc_replicates(values, right, row, n, seed=seed) for name, values in scores.items()},
        n,
        {name: {"right": float(right.mean())} for name in scores},
    )


def _altered(texts: Texts, rewards: Rewards, seed: int) -> Measured | None:
    altered = [(mine, twin) for mine, twin in zip(texts.demonstrations, texts.twins, strict=True) if twin is not None]
    margins = {
        name: reward_margins([of[mine] for mine, _ in altered], [of[twin] for _, twin in altered])
        for name, of in rewards.items()
    }
    return _margins(margins, seed)


def _samples(texts: Texts, rewards: Rewards, limit: int, seed: int) -> Measured | None:
    if not any(texts.samples):
        return None
    margins = {}
    for name, of in rewards.items():
        own = [torch.cat([of[index] for index in texts.samples[row]]) for row in texts.demonstrated]
        margins[name] = reward_margins([of[index][:limit] for index in texts.demonstrations], own)
    return _margins(margins, seed)


def _margins(margins: Mapping[str, list[float]], seed: int) -> Measured | None:
    """None of too few margins, or where those of a candidate do not vary."""
    arrays = {name: np.array(values) for name, values in margins.items()}
    if any(values.size < FEWEST for values in arrays.values()):
        return None
    found = {name: signal_to_noise(values) for name, values in margins.items()}
    if np.isnan(list(found.values())).any():
        return None
    return Measured(
        found,
        {name: signal_to_noise_replicates(values, seed=seed) for name, values in arrays.items()},
        len(next(iter(arrays.values()))),
        {
            name: {"margin": float(values.mean()), "above": float((values > ROUNDING).mean())}
            for name, values in arrays.items()
        },
    )
