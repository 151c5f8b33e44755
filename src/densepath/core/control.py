"""How much of the all-action estimate to take: a control variate whose coefficient the other completions choose."""

from __future__ import annotations

import torch
from torch import Tensor

from densepath.core.masks import keep

PRIOR_COMPLETIONS = 1
"""Weight of the prior coefficient 1 in `control_weights`, in completions: what a tiny batch falls back on."""


def control_weights(returns: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
    """Share of the all-action estimate in its mixture with the sampled one, for each completion from the *others*.

    The two differ by the noise of the immediate rewards, `D_t = q_t - E_a q(s_t, a)`, whose sum to go is S. Both are
    unbiased, and so is any mixture whose share does not depend on the completion's own actions. The variance is least
    near the slope of the returns on that noise,

        lambda_i = sum_{j != i, t} (G_jt - mean_t) S_jt / sum_{j != i, t} S_jt^2,

    with means over the other completions, clipped to [0, 1] and drawn towards 1 where they are few. It is 1 where
    rewards at different tokens have nothing to do with each other, as at the SFT policy, and 0 at the optimum, where
    the noise of a reward is made up for by what follows.

    Args:
        returns: (batch, tokens) float, G: sampled returns-to-go.
        noise: (batch, tokens) float, S: returns-to-go of D.
        mask: (batch, tokens) bool.

    Returns:
        (batch,) float in [0, 1].

    Source: derived in docs/theory.md, statement 5; not the paper's.
    """
    returns, noise = keep(returns, mask), keep(noise, mask)
    mean = _others(returns) / _others(mask.long()).clamp(min=1)
    slope = _others((returns * noise).sum(dim=1)) - (mean * _others(noise)).sum(dim=1)
    spread = _others(noise.square().sum(dim=1))
    fitted = torch.where(spread > 0, slope / spread.clamp(min=torch.finfo(spread.dtype).tiny), torch.ones_like(spread))
    others = len(returns) - 1
    return ((others * fitted + PRIOR_COMPLETIONS) / (others + PRIOR_COMPLETIONS)).clamp(0.0, 1.0)


def _others(values: Tensor) -> Tensor:
    """Sum over the other rows, for each row; by adding alone, so that not even the own row's rounding is in it."""
    none = torch.zeros_like(values[:1])
    before = torch.cat([none, values[:-1].cumsum(dim=0)])
    after = torch.cat([values[1:].flip(0).cumsum(dim=0).flip(0), none])
    return before + after
