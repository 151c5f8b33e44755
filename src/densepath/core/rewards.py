"""The dense reward inside a supervised fine-tuned model: three readings of one pair of models.

All are (batch, tokens) tensors in nats, zero where the mask is False. See docs/method.md, "The reward".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from densepath.core.logprobs import lift
from densepath.core.masks import check_mask


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    check_mask(mask, values)
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))


def baseline_relative(sft_logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """The method's reward: `r(s_t, a_t) = log pi_SFT(a_t|s_t) - log pi_ref(a_t|s_t)`.

    The reference cancels the fluency that both models share, and with it the pressure of `logprob` towards
    short answers. What stays: under pi_SFT each token earns `KL(pi_SFT || pi_ref) >= 0` on average, so
    length is mildly rewarded.

    Args:
        sft_logprobs: (batch, tokens) float, log-probabilities of the sampled tokens, nats.
        ref_logprobs: the same under the reference.
        mask: (batch, tokens) bool, True = counts, EOS included.

    Returns:
        (batch, tokens) float, nats.

    Source: the paper; an earlier checkpoint of the same SFT run as reference.
    """
    if sft_logprobs.shape != ref_logprobs.shape:
        raise ValueError(f"shapes differ: {tuple(sft_logprobs.shape)} and {tuple(ref_logprobs.shape)}")
    return _masked(sft_logprobs - ref_logprobs, mask)


def logprob(sft_logprobs: Tensor, mask: Tensor) -> Tensor:
    """The reward of one model alone: `log pi_SFT(a_t|s_t) = r(s_t, a_t) + V(s_{t+1}) - V(s_t)`.

    It is `inverse_bellman` after shaping with the potential V, and free of the logits' arbitrary offset.
    Every token costs, so the best sequence under it is a short one.

    Args:
        sft_logprobs: (batch, tokens) float, nats.
        mask: (batch, tokens) bool.

    Returns:
        (batch, tokens) float, nats.
    """
    return _masked(sft_logprobs, mask)


def inverse_bellman(action_logits: Tensor, values: Tensor, mask: Tensor, terminated: Tensor) -> Tensor:
    """The reward that IQ-Learn recovers: `r(s_t, a_t) = Q(s_t, a_t) - V(s_{t+1})`, `V(terminal) = 0`.

    Q are the raw logits and `V(s) = logsumexp_a Q(s, a)`. Read from logits it depends on their arbitrary
    offset c(s); `logprob` does not. A truncated row ends in a state whose V is not zero: it must be given as
    one more value, and `terminated` is False for it.

    Args:
        action_logits: (batch, tokens) float, raw logit of each sampled token.
        values: (batch, tokens + 1) float, `V(s_t)` for every state, the one after the last token included.
        mask: (batch, tokens) bool.
        terminated: (batch,) bool, True where the last token that counts is EOS.

    Returns:
        (batch, tokens) float, nats.
    """
    check_mask(mask, action_logits)
    if values.shape != (action_logits.shape[0], action_logits.shape[1] + 1):
        raise ValueError(
            f"values must be (batch, tokens + 1) = {(action_logits.shape[0], action_logits.shape[1] + 1)}, "
            f"got {tuple(values.shape)}"
        )
    if terminated.dtype != torch.bool or terminated.shape != mask.shape[:1]:
        raise ValueError(f"terminated must be (batch,) bool, got {tuple(terminated.shape)} {terminated.dtype}")
    width = mask.shape[1]
    last = torch.arange(width, device=mask.device) == (mask.sum(dim=1, keepdim=True) - 1)
    next_values = torch.where(last & terminated.unsqueeze(1), torch.zeros_like(action_logits), values[:, 1:])
    return _masked(lift(action_logits) - lift(next_values), mask)


def mean_probability(logprobs: Sequence[Tensor]) -> Tensor:
    """Log of the mean probability of several references: `logsumexp_k log pi_k - log K`.

    Args:
        logprobs: K tensors of one shape, nats.

    Returns:
        A tensor of that shape, nats.

    Source: derived; the arithmetic mean keeps one reference's surprise from dominating.
    """
    if not logprobs:
        raise ValueError("mean_probability needs at least one tensor")
    stacked = torch.stack(list(logprobs))
    return stacked.logsumexp(dim=0) - torch.log(torch.tensor(float(len(logprobs)), dtype=stacked.dtype))
