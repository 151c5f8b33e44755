"""The dense reward inside a supervised fine-tuned model: three readings of one pair of models.

All are (batch, tokens) tensors in nats, zero where the mask is False. See docs/method.md, "The reward".
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor

from densepath.core.logprobs import lift
from densepath.core.masks import check_mask, keep, masked_mean


class ReferenceMean(str, Enum):
    """How several references become one."""

    ARITHMETIC = "arithmetic"
    GEOMETRIC = "geometric"


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
    return keep(sft_logprobs - ref_logprobs, mask)


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
    return keep(sft_logprobs, mask)


def inverse_bellman(action_logits: Tensor, values: Tensor, mask: Tensor, terminated: Tensor) -> Tensor:
    """The reward that IQ-Learn recovers: `r(s_t, a_t) = Q(s_t, a_t) - V(s_{t+1})`, `V(terminal) = 0`.

    Q are the raw logits and `V(s) = logsumexp_a Q(s, a)`. Read from logits it depends on their arbitrary
    offset c(s); `logprob` does not. A truncated row ends in a state whose V is not zero: it must be given as
    one more value, and `terminated` is False for it. The sum of such a row is short of V there, so a return has to
    pay it back: training says that all rows terminated (docs/theory.md, statement 3).

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
    return keep(lift(action_logits) - lift(next_values), mask)


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


def mean_logprob(logprobs: Sequence[Tensor]) -> Tensor:
    """Log of the geometric mean probability of several references, not normalised: `(1/K) sum_k log pi_k`.

    The reward against it is the mean of the rewards against each reference.

    Args:
        logprobs: K tensors of one shape, nats.

    Returns:
        A tensor of that shape, nats.

    Source: derived. Its normaliser over the vocabulary would add a function of the state to the reward.
    """
    if not logprobs:
        raise ValueError("mean_logprob needs at least one tensor")
    return torch.stack(list(logprobs)).mean(dim=0)


def pair_rewards(
    sft_logprobs: Tensor,
    ref_logprobs: Sequence[Tensor],
    mask: Tensor,
    *,
    reference_mean: ReferenceMean = ReferenceMean.ARITHMETIC,
    scale: float = 1.0,
    floor: float | None = None,
    clip: float | None = None,
) -> Tensor:
    """The reward of a model and its references: `clip(scale (max(log pi_SFT, floor) - max(log pi_ref, floor)))`.

    Without references it is that of the model alone, `logprob`. All is elementwise, so the shapes may be those of
    sampled tokens or of a chunk of whole-vocabulary rows.

    Args:
        sft_logprobs: (...) float, nats.
        ref_logprobs: one tensor of that shape for each reference; empty for none.
        mask: (...) bool, True = counts.
        reference_mean: how several references become one.
        scale: factor on the reward; the beta of a DPO pair makes it DPO's implicit reward.
        floor: log-probabilities are raised to at least this, nats, below 0. Where both models are that unsure the
            reward is 0. None for none.
        clip: the scaled reward is cut at plus and minus this, nats, above 0. None for none. It moves the optimum.

    Returns:
        (...) float, nats, zero where the mask is False.

    Source: the difference is the paper's; mean, scale, floor and clip are ours.
    """
    if floor is not None:
        sft_logprobs = sft_logprobs.clamp(min=floor)
    if ref_logprobs:
        ref = reference_logprobs(ref_logprobs, reference_mean)
        rewards = baseline_relative(sft_logprobs, ref if floor is None else ref.clamp(min=floor), mask)
    else:
        rewards = logprob(sft_logprobs, mask)
    if scale != 1.0:
        rewards = rewards * scale
    return rewards if clip is None else rewards.clamp(min=-clip, max=clip)


def reference_logprobs(logprobs: Sequence[Tensor], mean: ReferenceMean) -> Tensor:
    """Log-probability under one or several references: `mean_probability` or `mean_logprob` of them."""
    if len(logprobs) == 1:
        return logprobs[0]
    return mean_probability(logprobs) if mean is ReferenceMean.ARITHMETIC else mean_logprob(logprobs)


def position_z_scores(rewards: Tensor, mask: Tensor) -> Tensor:
    """Each reward against those at the same position: `z[i, t] = (r[i, t] - mean_t) / sd_t`, without a unit.

    A score to look at, not a reward to train on: it depends on the company. The deviation is the population's; a
    position whose rewards are equal, or that one completion alone reaches, has z = 0.

    Args:
        rewards: (batch, tokens) float, nats.
        mask: (batch, tokens) bool.

    Returns:
        (batch, tokens) float, zero where the mask is False.
    """
    centred = rewards - masked_mean(rewards, mask, dim=0)
    deviation = masked_mean(centred**2, mask, dim=0).sqrt()
    # Rounding leaves a deviation of about 1e-8 where all are equal.
    spread = deviation > 1e-6 * masked_mean(rewards.abs(), mask, dim=0)
    z = centred / torch.where(spread, deviation, torch.ones_like(deviation))
    return keep(z, mask & spread)


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
