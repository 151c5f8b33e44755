"""The hybrid reward: the dense reward of a completion's tokens mixed with a reward from outside.

All are (batch, tokens) tensors, zero where the mask is False. See docs/method.md, "The reward".
"""

from __future__ import annotations

import torch
from torch import Tensor

from densepath.core.masks import keep


def on_last_token(values: Tensor, mask: Tensor) -> Tensor:
    """One number a completion as the reward of its last token: `r_t = value * 1[t is the last that counts]`.

    Its return-to-go without discount is then the number itself at every token, as for a reward of the whole
    completion. A row without a token that counts is zero.

    Args:
        values: (batch,) float, one number a completion, in the unit of its reward function.
        mask: (batch, tokens) bool, True = counts.

    Returns:
        (batch, tokens) float.
    """
    if values.shape != mask.shape[:1]:
        raise ValueError(f"values must be (batch,) = {tuple(mask.shape[:1])}, got {tuple(values.shape)}")
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask must be bool, got {mask.dtype}")
    later = mask.flip(1).cumsum(dim=1).flip(1)  # how many tokens from here on count
    return torch.where(mask & (later == 1), values.unsqueeze(1), torch.zeros_like(values).unsqueeze(1))


def hybrid_rewards(dense: Tensor, external: Tensor, mask: Tensor, alpha: float) -> Tensor:
    """A mixture of the dense reward and one from outside: `r_t = alpha * dense_t + (1 - alpha) * external_t`.

    Args:
        dense: (batch, tokens) float, nats.
        external: (batch, tokens) float: a verifier's number on the last token (`on_last_token`), or one a token.
        mask: (batch, tokens) bool, True = counts.
        alpha: share of the dense reward, in [0, 1].

    Returns:
        (batch, tokens) float, zero where the mask is False.

    Source: ours; asked for by the paper's reviewers. The two have different units, so alpha also converts them.
    """
    if external.shape != dense.shape:
        raise ValueError(f"shapes differ: {tuple(dense.shape)} and {tuple(external.shape)}")
    return keep(alpha * dense + (1 - alpha) * external, mask)
