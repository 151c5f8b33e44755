"""Losses: inputs -> (loss, metrics). They are minimised, they log nothing, and they hold no state."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from densepath.core.masks import check_mask, keep, masked_mean, masked_sum

Metrics = dict[str, Tensor]


class Normalizer(str, Enum):
    """What the summed loss is divided by; the first two are constants, and keep the gradient's direction exact."""

    COMPLETIONS = "completions"
    MAX_COMPLETION_LENGTH = "max_completion_length"
    TOKENS = "tokens"


def loss_divisor(
    kind: Normalizer, completions: float, tokens: float | Tensor, max_completion_length: int
) -> float | Tensor:
    """What the loss is divided by: `n`, `n max_completion_length` or the number of tokens.

    The first two are constants: the expected gradient keeps its direction. The third was sampled, and biases it.

    Args:
        kind: which.
        completions: n, in the global batch (or a constant multiple of it).
        tokens: that count, in the same batch.
        max_completion_length: budget of one completion, tokens.
    """
    if kind is Normalizer.COMPLETIONS:
        return completions
    if kind is Normalizer.MAX_COMPLETION_LENGTH:
        return completions * max_completion_length
    return tokens


def sft_loss(logprobs: Tensor, mask: Tensor, normalizer: float | Tensor = 1.0) -> tuple[Tensor, Metrics]:
    """Summed negative log-likelihood: `-(1/normalizer) sum_{i,t} log pi(a_t|s_t)`.

    The *sum* is what equals the IQ-Learn objective; trainers usually divide by the number of tokens.

    Args:
        logprobs: (batch, tokens) float, nats.
        mask: (batch, tokens) bool.
        normalizer: divisor; 1 for the theory's sum, the batch for a mean over sequences.

    Returns:
        Scalar loss, nats; metrics: `nll` per token.
    """
    loss = -masked_sum(logprobs, mask) / normalizer
    return loss, {"nll": -masked_mean(logprobs.detach(), mask)}


def reinforce_loss(
    logprobs: Tensor, advantages: Tensor, mask: Tensor, normalizer: float | Tensor
) -> tuple[Tensor, Metrics]:
    """REINFORCE: `-(1/normalizer) sum_{i,t} log pi_theta(a_t|s_t) A_{i,t}`.

    Its gradient is minus that of the objective `E[sum_t r_t]` when `A` are returns-to-go less a baseline that
    does not depend on the action, the tokens were sampled from pi_theta at temperature 1, and `normalizer`
    is the number of completions. A normalizer that depends on the sampled lengths biases it.

    Args:
        logprobs: (batch, tokens) float with gradient, nats.
        advantages: (batch, tokens) float, taken as constants.
        mask: (batch, tokens) bool.
        normalizer: number of completions in the *global* batch (or a constant multiple of it).

    Returns:
        Scalar loss; no metrics.

    Source: the paper, undiscounted REINFORCE on the dense reward.
    """
    check_mask(mask, logprobs)
    if advantages.shape != logprobs.shape:
        raise ValueError(f"advantages have shape {tuple(advantages.shape)}, log-probabilities {tuple(logprobs.shape)}")
    # both factors are masked, so that not even a NaN behind the mask reaches the gradient
    return -masked_sum(keep(logprobs, mask) * keep(advantages.detach(), mask), mask) / normalizer, {}


def expected_rewards(policy_logprobs: Tensor, action_rewards: Tensor) -> Tensor:
    """Expected immediate reward at each state: `sum_a pi_theta(a|s) q(s,a)`.

    Its gradient, q being constant, is the exact all-action gradient of the immediate reward. The caller calls
    it on a chunk of positions at a time (checkpointed where gradients flow). With the KL inside,
    `q = r(s,.) - beta (log pi_theta - log pi_SFT)` over the whole vocabulary (`returns.kl_penalised_rewards`).

    Args:
        policy_logprobs: (..., vocabulary) float with gradient, log pi_theta(.|s), nats.
        action_rewards: (..., vocabulary) float, taken as constants; read only where pi_theta(a|s) > 0.

    Returns:
        (...) float, nats.
    """
    if policy_logprobs.shape != action_rewards.shape:
        raise ValueError(f"shapes differ: {tuple(policy_logprobs.shape)} and {tuple(action_rewards.shape)}")
    policy = policy_logprobs.exp()
    zero = torch.zeros((), dtype=action_rewards.dtype, device=action_rewards.device)
    return (policy * torch.where(policy > 0, action_rewards.detach(), zero)).sum(dim=-1)


def all_action_loss(
    logprobs: Tensor, expected: Tensor, later_advantages: Tensor, mask: Tensor, normalizer: float | Tensor
) -> tuple[Tensor, Metrics]:
    """Rao-Blackwellised REINFORCE: `-(1/normalizer) sum_{i,t} (qbar(s_t) + log pi_theta(a_t|s_t) L_{i,t})`.

    `qbar(s) = sum_a pi_theta(a|s) q(s,a)` carries the immediate reward's gradient exactly; `L_t` is the sum of the
    *later* expected rewards, `returns.returns_after(qbar)`, less a baseline that does not depend on the action
    at t. Same expectation as `reinforce_loss`; what is averaged in closed form leaves the variance.

    Args:
        logprobs: (batch, tokens) float with gradient, log pi_theta of the sampled tokens, nats.
        expected: (batch, tokens) float with gradient, from `expected_rewards`.
        later_advantages: (batch, tokens) float, taken as constants.
        mask: (batch, tokens) bool.
        normalizer: see `reinforce_loss`.

    Returns:
        Scalar loss; no metrics.

    Source: derived in docs/theory.md, statement 5; not the paper's.
    """
    check_mask(mask, logprobs)
    if not logprobs.shape == expected.shape == later_advantages.shape:
        raise ValueError(
            f"shapes differ: {tuple(logprobs.shape)}, {tuple(expected.shape)}, {tuple(later_advantages.shape)}"
        )
    scored = keep(logprobs, mask) * keep(later_advantages.detach(), mask)
    return -masked_sum(keep(expected, mask) + scored, mask) / normalizer, {}


def state_kl_loss(state_kl: Tensor, beta: float, mask: Tensor, normalizer: float | Tensor) -> tuple[Tensor, Metrics]:
    """The KL as a loss of its own: `(beta/normalizer) sum_{i,t} KL(pi_theta(.|s_t) || pi_SFT(.|s_t))`.

    The named alternative to `returns.kl_penalised_rewards`. Its gradient leaves out that theta also decides which
    states come later, so its fixed point is not the KL-regularised optimum.

    Args:
        state_kl: (batch, tokens) float with gradient, from `logprobs.exact_kl`, nats.
        beta: coefficient, at least 0.
        mask: (batch, tokens) bool.
        normalizer: see `reinforce_loss`.

    Returns:
        Scalar loss; metrics: `state_kl` per token, nats.

    Source: derived in docs/theory.md, statement 5; not the paper's.
    """
    if beta < 0:
        raise ValueError(f"beta must be at least 0, got {beta}")
    loss = beta * masked_sum(state_kl, mask) / normalizer
    return loss, {"state_kl": masked_mean(state_kl.detach(), mask)}


def clipped_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    normalizer: float | Tensor,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
) -> tuple[Tensor, Metrics]:
    """PPO's clipped surrogate for several updates on one batch of samples.

    `-(1/normalizer) sum min(w A, clip(w, 1 - epsilon_low, 1 + epsilon_high) A)`, `w = pi_theta / pi_old`.
    At `pi_theta = pi_old` its gradient is that of `reinforce_loss`; away from it clipping biases it.

    Args:
        logprobs: (batch, tokens) float with gradient, nats.
        old_logprobs: the same under the policy that sampled.
        advantages: (batch, tokens) float.
        mask: (batch, tokens) bool.
        normalizer: see `reinforce_loss`.
        epsilon_low: how far below 1 the ratio may fall.
        epsilon_high: how far above 1 it may rise.

    Returns:
        Scalar loss; metrics: `clip_ratio` (share of tokens whose gradient was cut).
    """
    check_mask(mask, logprobs)
    if not logprobs.shape == old_logprobs.shape == advantages.shape:
        raise ValueError(
            f"shapes differ: {tuple(logprobs.shape)}, {tuple(old_logprobs.shape)}, {tuple(advantages.shape)}"
        )
    advantages = keep(advantages.detach(), mask)
    ratio = torch.exp(keep(logprobs, mask) - keep(old_logprobs.detach(), mask))
    clipped = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    is_cut = (ratio * advantages > clipped * advantages).to(logprobs.dtype)
    return -masked_sum(surrogate, mask) / normalizer, {"clip_ratio": masked_mean(is_cut.detach(), mask)}


def kl_estimate(policy_logprobs: Tensor, other_logprobs: Tensor, mask: Tensor) -> Tensor:
    """KL(pi_theta || other) of each completion, from its own sample: `sum_t log pi_theta - log other`.

    Unbiased over completions sampled from pi_theta ("k1"); single completions may be negative.

    Args:
        policy_logprobs: (batch, tokens) float, nats.
        other_logprobs: (batch, tokens) float, nats.
        mask: (batch, tokens) bool.

    Returns:
        (batch,) float, nats per completion.
    """
    return masked_sum(policy_logprobs - other_logprobs, mask, dim=1)
