"""How clearly a reward tells two kinds of text apart: margins and their signal-to-noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from densepath.evals.signals import Floats
from densepath.stats.bootstrap import bootstrap


def reward_margins(rewards: Sequence[Tensor], others: Sequence[Tensor]) -> list[float]:
    """Mean reward of a token of each text less that of its other, nats per token."""
    return [float(mine.mean() - other.mean()) for mine, other in zip(rewards, others, strict=True)]


def signal_to_noise(margins: Sequence[float]) -> float:
    """Mean of the margins over their standard deviation (the population's), without a unit.

    How far the reward tells the one kind of text from the other, in units of how much that varies from prompt to
    prompt: at 1 about five normal margins in six are above zero. It does not change with the reward's scale, so
    strong and weak references can be compared. It is 0 where all margins are 0, and NaN where they are one other
    number: then nothing says how much they vary.
    """
    values = np.asarray(margins, dtype=np.float64)
    return float(_ratio(values.mean(), np.where(np.ptp(values) > 0, values.std(), 0.0)))


def signal_to_noise_replicates(margins: Floats, *, seed: int) -> NDArray[np.float64]:
    """Bootstrap replicates of `signal_to_noise` over prompts; NaN as there, where one number was drawn alone."""
    centred = margins - margins.mean()

    def statistic(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        variance = counts @ centred**2 / margins.size - (counts @ centred / margins.size) ** 2
        lowest, highest = (np.where(counts > 0, margins, edge) for edge in (np.inf, -np.inf))
        varies = lowest.min(axis=1) < highest.max(axis=1)  # rounding leaves a variance where nothing varies
        return _ratio(counts @ margins / margins.size, np.where(varies, np.sqrt(np.maximum(variance, 0.0)), 0.0))

    return bootstrap(margins.size, statistic, seed=seed)


def _ratio(mean: NDArray[np.float64], deviation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over deviation; 0 where the mean is 0, else NaN where nothing deviates."""
    found = np.divide(mean, deviation, out=np.full(np.shape(mean), np.nan), where=deviation > 0)
    return np.where(mean == 0, 0.0, found)
