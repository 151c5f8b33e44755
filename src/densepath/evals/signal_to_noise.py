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
    strong and weak references can be compared.
    """
    return float(np.mean(margins) / (np.std(margins) + 1e-12))


def signal_to_noise_replicates(margins: Floats, *, seed: int) -> NDArray[np.float64]:
    """Bootstrap replicates of `signal_to_noise` over prompts."""

    def statistic(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        mean = counts @ margins / margins.size
        variance = counts @ margins**2 / margins.size - mean**2
        found: NDArray[np.float64] = mean / (np.sqrt(np.maximum(variance, 0.0)) + 1e-12)
        return found

    return bootstrap(margins.size, statistic, seed=seed)
