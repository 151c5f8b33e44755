"""Returns-to-go, and the baselines that turn them into advantages.

Each baseline says whether the gradient estimate stays unbiased: a baseline at position t must not depend
on the action taken at t.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from densepath.core.masks import at_first, check_mask, keep, masked_mean, masked_sum


class Baseline(str, Enum):
    """What is subtracted from the return-to-go."""

    NONE = "none"
    POSITION_MEAN = "position_mean"
    LEAVE_ONE_OUT = "leave_one_out"


def returns_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Sum of the rewards from each token on: `G_t = r_t + gamma G_{t+1}`, `G = 0` after the last token.

    With gamma = 1 (the paper's) `G_0` is the sequence's whole reward. The discount counts from t, so
    gamma < 1 shortens the sight of every token alike; it is not the objective's gamma^t weighting.

    Args:
        rewards: (batch, tokens) float, nats.
        mask: (batch, tokens) bool. Tokens that do not count (a tool's, between the policy's) earn nothing; gamma
            counts them as time.
        gamma: discount in [0, 1].

    Returns:
        (batch, tokens) float, zero where the mask is False.
    """
    returns = _returns_to_go(rewards, mask, gamma)
    return keep(returns, mask)


def _returns_to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """The same at every column, those that do not count included."""
    if rewards.dim() != 2:
        raise ValueError(f"rewards must be (batch, tokens), got {tuple(rewards.shape)}")
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma}")
    rewards = keep(rewards, mask)
    if gamma == 1.0:
        return rewards.flip(1).cumsum(1).flip(1)
    # G_t = r_t + gamma G_{t+1}, from the last column to the first
    returns = torch.zeros_like(rewards)
    following = rewards.new_zeros(rewards.shape[0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        following = rewards[:, t] + gamma * following
        returns[:, t] = following
    return returns


def returns_after(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Sum of the rewards strictly after each token: `G_t - r_t = gamma G_{t+1}`.

    What multiplies the score function when the immediate reward is taken as an expectation
    (`objective.all_action_loss`).

    Args:
        rewards: (batch, tokens) float, nats.
        mask: (batch, tokens) bool. Tokens that do not count (a tool's, between the policy's) earn nothing; gamma
            counts them as time.
        gamma: discount in [0, 1].

    Returns:
        (batch, tokens) float, zero where the mask is False.
    """
    returns = _returns_to_go(rewards, mask, gamma)
    return gamma * torch.nn.functional.pad(returns[:, 1:], (0, 1)) * mask


def sequence_returns(rewards: Tensor, mask: Tensor) -> Tensor:
    """The whole sequence's return on each of its tokens: sequence-level REINFORCE, `G_t = sum_k r_k`.

    Unbiased like `returns_to_go` with gamma = 1: the rewards before t do not depend on the action at t and
    average out. They only add variance.

    Args:
        rewards: (batch, tokens) float, nats.
        mask: (batch, tokens) bool.

    Returns:
        (batch, tokens) float, zero where the mask is False.
    """
    check_mask(mask, rewards)
    return masked_sum(rewards, mask, dim=1).unsqueeze(1) * mask


def kl_penalised_rewards(
    rewards: Tensor, policy_logprobs: Tensor, sft_logprobs: Tensor, beta: float, mask: Tensor
) -> Tensor:
    """Reward with the KL to the SFT policy inside: `q_t = r_t - beta (log pi_theta - log pi_SFT)`.

    Its return-to-go carries the KL of later states too, so that the fixed point is the optimum
    `pi* ~ pi_SFT exp(sum r / beta)`. A separate exact KL loss per state moves the fixed point.

    Args:
        rewards: (batch, tokens) float, nats.
        policy_logprobs: (batch, tokens) float, log pi_theta of the sampled tokens; taken as constants.
        sft_logprobs: the same under pi_SFT.
        beta: coefficient, at least 0.
        mask: (batch, tokens) bool.

    Returns:
        (batch, tokens) float, zero where the mask is False.
    """
    if beta < 0:
        raise ValueError(f"beta must be at least 0, got {beta}")
    return keep(rewards - beta * (policy_logprobs.detach() - sft_logprobs), mask)


def position_mean_baseline(returns: Tensor, mask: Tensor) -> Tensor:
    """Mean return of the *other* completions that reach each position; 0 where there is none.

    `b[i, t] = sum_{j != i, alive at t} G[j, t] / #{j != i alive at t}`. Leaving the own completion out makes
    it independent of its actions, hence unbiased; it equals the plain batch mean but for the factor
    n / (n - 1) on the advantage.

    Args:
        returns: (batch, tokens) float.
        mask: (batch, tokens) bool.

    Returns:
        (batch, tokens) float, zero where the mask is False.
    """
    kept = keep(returns, mask)
    others = kept.sum(dim=0, keepdim=True) - kept
    count = mask.sum(dim=0, keepdim=True) - mask.long()
    return keep(others / count.clamp(min=1), mask & (count > 0))


def leave_one_out_baseline(returns: Tensor, mask: Tensor, num_generations: int) -> Tensor:
    """Mean whole-sequence return of the other completions of the same prompt, minus the rewards already had.

    The state value that a completion at position t can expect is estimated as
    `mean_{j != i, same prompt} G[j, 0] - (G[i, 0] - G[i, t])`, where 0 is a completion's first token that counts: the
    siblings' return from the start, less what completion i collected before t. Both parts are independent of the
    action at t, so it is unbiased.

    Args:
        returns: (batch, tokens) float, undiscounted; rows of one prompt are neighbours.
        mask: (batch, tokens) bool; a completion that is masked out as a whole is no sibling.
        num_generations: completions per prompt, at least 2; divides batch.

    Returns:
        (batch, tokens) float, zero where the mask is False.
    """
    check_mask(mask, returns)
    batch = returns.shape[0]
    if num_generations < 2 or batch % num_generations:
        raise ValueError(f"num_generations must be at least 2 and divide the batch {batch}, got {num_generations}")
    there = mask.any(dim=1).view(-1, num_generations)
    whole = at_first(returns, mask)
    totals = torch.where(there, whole.view(-1, num_generations), 0.0)
    others = there.sum(dim=1, keepdim=True) - there.long()
    siblings = (totals.sum(dim=1, keepdim=True) - totals) / others.clamp(min=1)
    collected = whole - returns
    return keep(siblings.reshape(-1, 1) - collected, mask)


def baseline(kind: Baseline, returns: Tensor, mask: Tensor, num_generations: int) -> Tensor:
    """The baseline of that kind; see the functions above."""
    if kind is Baseline.NONE:
        return torch.zeros_like(returns)
    if kind is Baseline.POSITION_MEAN:
        return position_mean_baseline(returns, mask)
    return leave_one_out_baseline(returns, mask, num_generations)


def whiten(advantages: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """Advantages divided by their standard deviation over all tokens that count; the mean is kept.

    The mean stays because the baseline has seen to it. The scale is a random number that depends on the
    batch, so the estimate is biased; the optimum stays a fixed point only with the KL inside the return.

    Args:
        advantages: (batch, tokens) float.
        mask: (batch, tokens) bool.
        eps: added to the standard deviation.

    Returns:
        (batch, tokens) float, zero where the mask is False.
    """
    mean = masked_mean(advantages, mask)
    variance = masked_mean((advantages - mean) ** 2, mask)
    return keep(advantages / (variance.sqrt() + eps), mask)
