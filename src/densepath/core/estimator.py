"""From a batch of completions to a gradient, composed once: batch -> returns -> credit -> loss.

The trainer calls it, and so does the theory check, which sums it over every batch there can be. An `Estimator` is
chosen once; its methods are pure functions of tensors, which log nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from densepath.core import objective, returns
from densepath.core.masks import keep
from densepath.core.objective import Metrics
from densepath.core.returns import Baseline


@dataclass(frozen=True)
class Batch:
    """What completions earned, and how likely the models find their tokens.

    Attributes:
        rewards: (batch, tokens) float, the whole reward of each token without any KL term, nats.
        policy_logprobs: (batch, tokens) float, log pi_theta of the sampled tokens, nats; taken as constants.
        sft_logprobs: the same under pi_SFT.
        mask: (batch, tokens) bool, True = counts, EOS included.
        ref_logprobs: the same under the reference, for a second KL; None without one.
        expected: (batch, tokens) float, `sum_a pi_theta(a|s_t) q(s_t, a)`, KL terms included; only for all actions.
        external: (batch, tokens) float, the part of `rewards` that is known of the sampled token alone, and hence is
            not in `expected`; None for none.
    """

    rewards: Tensor
    policy_logprobs: Tensor
    sft_logprobs: Tensor
    mask: Tensor
    ref_logprobs: Tensor | None = None
    expected: Tensor | None = None
    external: Tensor | None = None


@dataclass(frozen=True)
class Returns:
    """What each token is followed by: a completion's own affair, so that processes compute theirs apart.

    Attributes:
        sampled: (batch, tokens) float, returns-to-go of the sampled rewards, nats.
        after: the same after each token, in expectation over the actions; None unless all actions are used.
        noise: returns-to-go of what the sampled rewards are above their expectations; likewise.
    """

    sampled: Tensor
    after: Tensor | None = None
    noise: Tensor | None = None


@dataclass(frozen=True)
class Credit:
    """What multiplies the score function of each token, and of each completion the share of the all-action estimate.

    Attributes:
        advantages: (batch, tokens) float, zero where the mask is False.
        shares: (batch,) float in [0, 1]; None unless all actions are used.
    """

    advantages: Tensor
    shares: Tensor | None = None


@dataclass(frozen=True)
class Tokens:
    """What a loss reads of its tokens; all of one shape (...), a batch's or a chunk's.

    Attributes:
        logprobs: (...) float with gradient, log pi_theta of the sampled tokens, nats.
        advantages: (...) float, from `Credit`; taken as constants.
        mask: (...) bool.
        old_logprobs: (...) float under the policy that sampled, where updates are clipped; else None.
        expected: (...) float with gradient, expected rewards at each state; only for all actions.
        shares: (...) float, of the all-action estimate; likewise.
        state_kl: (...) float with gradient, exact KL to SFT at each state, where it is a loss of its own.
        state_weights: (...) float, factor on what is an expectation at a state; None for 1.
    """

    logprobs: Tensor
    advantages: Tensor
    mask: Tensor
    old_logprobs: Tensor | None = None
    expected: Tensor | None = None
    shares: Tensor | None = None
    state_kl: Tensor | None = None
    state_weights: Tensor | None = None


@dataclass(frozen=True)
class Estimator:
    """One way of estimating the gradient of `E[sum_t r_t] - beta KL(pi_theta || pi_SFT)`.

    Attributes:
        beta: coefficient of the KL to SFT, at least 0.
        ref_beta: of a second one, to the reference, at least 0; always inside the return.
        gamma: discount of the return-to-go, in [0, 1]; below 1 it is biased.
        baseline: what is subtracted from the return.
        kl_in_return: the KL to SFT is part of the return; else an exact loss at each state, which is biased.
        whole_sequence: the sequence's whole return on every token, instead of the return-to-go.
        whiten: divide advantages by their standard deviation; biased.
        all_action: expectations over all next tokens, mixed with the sampled estimate.
        all_action_weight: their share in (0, 1]; None: fitted, for each completion to the others.
        epsilons: bounds of PPO's ratio below and above 1, for several updates on one batch; None: plain REINFORCE.

    Raises:
        ValueError: numbers out of range, or a combination that means nothing.

    Source: REINFORCE on the dense reward is the paper's; all actions, their mixture and each bias are derived in
    docs/theory.md, statement 5.
    """

    beta: float = 0.5
    ref_beta: float = 0.0
    gamma: float = 1.0
    baseline: Baseline = Baseline.POSITION_MEAN
    kl_in_return: bool = True
    whole_sequence: bool = False
    whiten: bool = False
    all_action: bool = False
    all_action_weight: float | None = None
    epsilons: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("beta", "ref_beta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must lie in [0, 1], got {self.gamma}")
        if self.whole_sequence and self.gamma < 1:
            raise ValueError("a whole sequence's return has no discount: gamma must be 1")
        if not self.kl_in_return and self.beta == 0:
            raise ValueError("with beta=0 there is no KL to be a loss of its own")
        sampled_only = {"whole_sequence": self.whole_sequence, "whiten": self.whiten, "epsilons": bool(self.epsilons)}
        for name, given in sampled_only.items():
            if self.all_action and given:
                raise ValueError(f"{name} is of the sampled estimate alone, not of all actions")
        if self.all_action_weight is not None and not (self.all_action and 0 < self.all_action_weight <= 1):
            raise ValueError(f"all_action_weight={self.all_action_weight} must lie in (0, 1], and needs all actions")

    def penalised(
        self, rewards: Tensor, policy_logprobs: Tensor, sft_logprobs: Tensor, ref_logprobs: Tensor | None, mask: Tensor
    ) -> Tensor:
        """`q = r - beta (log pi_theta - log pi_SFT) - ref_beta (log pi_theta - log pi_ref)`, as far as in the return.

        Elementwise: of sampled tokens, or of whole distributions.
        """
        if self.kl_in_return and self.beta > 0:
            rewards = returns.kl_penalised_rewards(rewards, policy_logprobs, sft_logprobs, self.beta, mask)
        if self.ref_beta > 0 and ref_logprobs is not None:
            rewards = returns.kl_penalised_rewards(rewards, policy_logprobs, ref_logprobs, self.ref_beta, mask)
        return rewards

    def returns(self, batch: Batch) -> Returns:
        """What follows each token of each completion.

        Raises:
            ValueError: all actions without their expected rewards.
        """
        mask = batch.mask
        rewards = self.penalised(batch.rewards, batch.policy_logprobs, batch.sft_logprobs, batch.ref_logprobs, mask)
        if self.whole_sequence:
            return Returns(returns.sequence_returns(rewards, mask))
        sampled = returns.returns_to_go(rewards, mask, self.gamma)
        if not self.all_action:
            return Returns(sampled)
        if batch.expected is None:
            raise ValueError("all actions need the expected reward at each state")
        external = torch.zeros_like(rewards) if batch.external is None else batch.external
        # what only the sampled token has is no expectation: its return keeps the present one
        after = returns.returns_after(batch.expected, mask, self.gamma)
        after = after + returns.returns_to_go(external, mask, self.gamma)
        noise = returns.returns_to_go(rewards - external - batch.expected, mask, self.gamma)
        return Returns(sampled, after, noise)

    def credit(self, found: Returns, mask: Tensor, num_generations: int) -> Credit:
        """Returns less a baseline, which compares completions: those of the global batch.

        Args:
            found: of the whole batch, rows of one prompt being neighbours.
            mask: (batch, tokens) bool.
            num_generations: completions of a prompt; 1 leaves `leave_one_out` without a baseline.
        """
        advantages = self._less_baseline(found.sampled, mask, num_generations)
        if found.after is None or found.noise is None:
            return Credit(returns.whiten(advantages, mask) if self.whiten else advantages)
        if self.all_action_weight is None:
            shares = control_weights(found.sampled, found.noise, mask)
        else:
            shares = torch.full_like(found.sampled[:, 0], self.all_action_weight)
        share = shares.unsqueeze(1)
        after = self._less_baseline(found.after, mask, num_generations)
        return Credit((1 - share) * advantages + share * after, shares)

    def _less_baseline(self, values: Tensor, mask: Tensor, num_generations: int) -> Tensor:
        alone = num_generations < 2 and self.baseline is Baseline.LEAVE_ONE_OUT
        kind = Baseline.NONE if alone else self.baseline
        return keep(values - returns.baseline(kind, values, mask, num_generations), mask)

    def loss(self, tokens: Tokens, normalizer: float | Tensor) -> tuple[Tensor, Metrics]:
        """The loss of these tokens; those of parts of a batch add up to the batch's.

        Args:
            tokens: see `Tokens`.
            normalizer: what the sum is divided by; see `objective.loss_divisor`.

        Returns:
            Scalar loss; metrics: `clip_ratio` where updates are clipped.

        Raises:
            ValueError: something that this estimator needs is missing.
        """
        logprobs, advantages, mask = tokens.logprobs, tokens.advantages, tokens.mask
        metrics: Metrics = {}
        if self.all_action:
            if tokens.expected is None or tokens.shares is None:
                raise ValueError("all actions need the expected reward at each state, and its share")
            expected = _weighted(tokens.shares * tokens.expected, tokens.state_weights)
            loss, _ = objective.all_action_loss(logprobs, expected, advantages, mask, normalizer)
        elif self.epsilons is None:
            loss, _ = objective.reinforce_loss(logprobs, advantages, mask, normalizer)
        else:
            if tokens.old_logprobs is None:
                raise ValueError("clipping needs the log-probabilities under the policy that sampled")
            loss, metrics = objective.clipped_loss(
                logprobs, tokens.old_logprobs, advantages, mask, normalizer, *self.epsilons
            )
        if not self.kl_in_return:
            if tokens.state_kl is None:
                raise ValueError("a KL loss needs the KL at each state")
            state_kl = _weighted(tokens.state_kl, tokens.state_weights)
            loss = loss + objective.state_kl_loss(state_kl, self.beta, mask, normalizer)[0]
        return loss, metrics


def _weighted(values: Tensor, weights: Tensor | None) -> Tensor:
    return values if weights is None else weights * values


PRIOR_COMPLETIONS = 1
"""Weight of the prior coefficient 1 in `control_weights`, in completions: what a tiny batch falls back on."""


def control_weights(returns: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
    """Share of the all-action estimate in its mixture with the sampled one, for each completion from the *others*.

    The two differ by the noise of the immediate rewards, `D_t = q_t - E_a q(s_t, a)`, whose sum to go is S. Both are
    unbiased, and so is any mixture whose share does not depend on the completion's own actions. The variance is least
    near the slope of the returns on that noise,

        lambda_i = sum_{j != i, t} (G_jt - mean_t) S_jt / sum_{j != i, t} S_jt^2,

    with means over the other completions, averaged with 1 at the weight of one completion, and only then clipped to
    [0, 1]: a slope below 0 counts against that 1. It is 1 where rewards at different tokens have nothing to do with
    each other, as at the SFT policy, and 0 at the optimum, where the noise of a reward is made up for by what follows.

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
