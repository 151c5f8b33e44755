"""The gradient estimators that a trainer offers, put together from the core functions, and their expectations.

A batch holds `num_generations` completions of each prompt. Its loss is a function of the policy's logit table;
`expected_gradient` sums its gradient over every possible batch, `sampled_gradients` draws batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from densepath.core import mdp, objective, returns, rewards
from densepath.core.control import control_weights
from densepath.core.logprobs import exact_kl
from densepath.core.mdp import TokenTree
from densepath.core.objective import Normalizer
from densepath.core.returns import Baseline
from densepath.theory.instances import Instance


class KL(str, Enum):
    """Where the KL to the SFT policy goes."""

    IN_RETURN = "in the return"
    STATE_LOSS = "as a loss per state"


@dataclass(frozen=True)
class Estimator:
    """One way of estimating the gradient; the defaults are the trainer's.

    Args:
        baseline: what is subtracted from the return.
        kl: where the KL goes.
        gamma: discount of the return-to-go.
        whole_sequence: the sequence's whole return on every token, instead of the return-to-go.
        clip: bound on the per-token reward, or None.
        whiten: divide advantages by their standard deviation.
        normalizer: what the sum is divided by.
        all_action: the Rao-Blackwellised loss.
        mixed: that and the sampled one, mixed for each completion as the others of the batch say.
        ppo: PPO's clipped surrogate at its first step, instead of the plain loss.
    """

    baseline: Baseline = Baseline.NONE
    kl: KL = KL.IN_RETURN
    gamma: float = 1.0
    whole_sequence: bool = False
    clip: float | None = None
    whiten: bool = False
    normalizer: Normalizer = Normalizer.COMPLETIONS
    all_action: bool = False
    mixed: bool = False
    ppo: bool = False


UNBIASED: dict[str, Estimator] = {
    "REINFORCE": Estimator(),
    "REINFORCE, position mean": Estimator(Baseline.POSITION_MEAN),
    "REINFORCE, leave one out": Estimator(Baseline.LEAVE_ONE_OUT),
    "sequence level": Estimator(whole_sequence=True),
    "sequence level, position mean": Estimator(Baseline.POSITION_MEAN, whole_sequence=True),
    "sequence level, leave one out": Estimator(Baseline.LEAVE_ONE_OUT, whole_sequence=True),
    "all actions": Estimator(all_action=True),
    "all actions, position mean": Estimator(Baseline.POSITION_MEAN, all_action=True),
    "all actions, leave one out": Estimator(Baseline.LEAVE_ONE_OUT, all_action=True),
    "mixture, position mean (default)": Estimator(Baseline.POSITION_MEAN, mixed=True),
    "mixture, leave one out": Estimator(Baseline.LEAVE_ONE_OUT, mixed=True),
    "PPO clip, first step": Estimator(Baseline.POSITION_MEAN, ppo=True),
}
"""Estimators whose expectation is the exact gradient of the KL-regularised objective."""

BIASED: dict[str, Estimator] = {
    "KL as a loss per state": Estimator(Baseline.POSITION_MEAN, kl=KL.STATE_LOSS),
    "whitening, KL in the return": Estimator(Baseline.POSITION_MEAN, whiten=True),
    "whitening, KL as a loss": Estimator(Baseline.POSITION_MEAN, kl=KL.STATE_LOSS, whiten=True),
    "r̂ clipped at ±1": Estimator(Baseline.POSITION_MEAN, clip=1.0),
    "γ = 0.9": Estimator(Baseline.POSITION_MEAN, gamma=0.9),
    "γ = 0.9, leave one out": Estimator(Baseline.LEAVE_ONE_OUT, gamma=0.9),
    "γ = 0": Estimator(Baseline.POSITION_MEAN, gamma=0.0),
    "divided by tokens": Estimator(Baseline.POSITION_MEAN, normalizer=Normalizer.TOKENS),
    "divided by tokens, no baseline": Estimator(normalizer=Normalizer.TOKENS),
}
"""Estimators with another expectation: named as such, their bias measured."""


@dataclass(frozen=True)
class Problem:
    """What an estimator is asked about: the MDP, the frozen models, beta, and the batch's make-up."""

    tree: TokenTree
    log_sft: Tensor
    log_ref: Tensor
    beta: float
    num_generations: int

    @classmethod
    def of(cls, instance: Instance, beta: float, num_generations: int) -> Problem:
        """The problem of an instance, with equally likely prompts."""
        return cls(instance.tree, instance.log_sft, instance.log_ref, beta, num_generations)


def batch_loss(estimator: Estimator, problem: Problem, log_policy: Tensor, rows: Tensor) -> Tensor:
    """The loss of one batch, by the functions a trainer uses.

    Args:
        estimator: which one.
        problem: the frozen part.
        log_policy: (states, actions) float with gradient, log pi_theta.
        rows: (batch,) int64 into the tree's sequences; completions of one prompt are neighbours.
    """
    tree = problem.tree
    states, ids, mask = tree.states[rows], tree.sequences[rows], tree.mask[rows]
    policy_lp, sft_lp, ref_lp = (table[states, ids] for table in (log_policy, problem.log_sft, problem.log_ref))
    normalizer = objective.loss_divisor(estimator.normalizer, float(rows.shape[0]), mask.sum(), mask.shape[1])
    inside = problem.beta if estimator.kl is KL.IN_RETURN else 0.0

    dense = rewards.baseline_relative(sft_lp, ref_lp, mask)
    if estimator.clip is not None:
        dense = dense.clamp(-estimator.clip, estimator.clip)
    dense = returns.kl_penalised_rewards(dense, policy_lp, sft_lp, inside, mask)
    if estimator.whole_sequence:
        to_go = returns.sequence_returns(dense, mask)
    else:
        to_go = returns.returns_to_go(dense, mask, estimator.gamma)
    advantages = to_go - returns.baseline(estimator.baseline, to_go, mask, problem.num_generations)
    if estimator.all_action or estimator.mixed:
        log_dist, sft_dist = log_policy[states], problem.log_sft[states]
        everywhere = mask.unsqueeze(-1).expand(*mask.shape, tree.mdp.num_actions)
        everything = rewards.baseline_relative(sft_dist, problem.log_ref[states], everywhere)
        action_rewards = returns.kl_penalised_rewards(everything, log_dist, sft_dist, inside, everywhere)
        expected = objective.expected_rewards(log_dist, action_rewards)
        later = returns.returns_after(expected.detach(), mask, estimator.gamma)
        share = torch.ones_like(later[:, :1])
        if estimator.mixed:
            noise = returns.returns_to_go(dense - expected.detach(), mask, estimator.gamma)
            share = control_weights(to_go, noise, mask).unsqueeze(1)
        after = later - returns.baseline(estimator.baseline, later, mask, problem.num_generations)
        advantages = (1 - share) * advantages + share * after
        return objective.all_action_loss(policy_lp, share * expected, advantages, mask, normalizer)[0]
    if estimator.whiten:
        advantages = returns.whiten(advantages, mask)
    if estimator.ppo:
        loss = objective.clipped_loss(policy_lp, policy_lp.detach(), advantages, mask, normalizer)[0]
    else:
        loss = objective.reinforce_loss(policy_lp, advantages, mask, normalizer)[0]
    if estimator.kl is KL.STATE_LOSS:
        state_kl = exact_kl(log_policy[states], problem.log_sft[states])
        loss = loss + objective.state_kl_loss(state_kl, problem.beta, mask, normalizer)[0]
    return loss


def all_batches(problem: Problem, log_policy: Tensor) -> tuple[Tensor, Tensor]:
    """Every batch and its probability: rows (batches, batch), probabilities (batches,)."""
    tree = problem.tree
    probs = mdp.gather_tokens(tree, log_policy).sum(dim=1).exp()
    columns = [
        (tree.prompts == prompt).nonzero().squeeze(1)
        for prompt in range(tree.mdp.start.shape[0])
        for _ in range(problem.num_generations)
    ]
    rows = torch.cartesian_prod(*columns).view(-1, len(columns))
    return rows, probs[rows].prod(dim=1)


def batch_gradients(estimator: Estimator, problem: Problem, logits: Tensor, rows: Tensor, chunk: int = 4096) -> Tensor:
    """Ascent direction of each batch, `-d loss / d logits`: (batches, states, actions)."""

    def loss(table: Tensor, batch: Tensor) -> Tensor:
        return batch_loss(estimator, problem, table.log_softmax(-1), batch)

    each: Callable[[Tensor, Tensor], Tensor] = torch.func.vmap(
        torch.func.grad(loss), in_dims=(None, 0), chunk_size=chunk
    )
    return -each(logits, rows)


def moments(estimator: Estimator, problem: Problem, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the estimate over every batch, exactly.

    Returns:
        Expectation (states, actions), and the trace of the covariance, `E|g|^2 - |E g|^2`, scalar.
    """
    rows, probs = all_batches(problem, logits.log_softmax(-1))
    gradients = batch_gradients(estimator, problem, logits, rows)
    mean = torch.einsum("b,bsa->sa", probs, gradients)
    return mean, probs @ (gradients**2).sum(dim=(1, 2)) - (mean**2).sum()


def expected_gradient(estimator: Estimator, problem: Problem, logits: Tensor) -> Tensor:
    """Expectation of the estimate over every batch, exactly: (states, actions)."""
    return moments(estimator, problem, logits)[0]


def sampled_z_scores(
    estimator: Estimator, problem: Problem, logits: Tensor, exact: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """`(sampled mean - exact) / standard error` of the gradient along the exact gradient and 15 random directions.

    Directions mix all states; single coordinates of states that are hardly ever visited would have no
    normal distribution to speak of.
    """
    tree = problem.tree
    probs = mdp.gather_tokens(tree, logits.log_softmax(-1)).sum(dim=1).exp()
    drawn = []
    for prompt in range(tree.mdp.start.shape[0]):
        rows = (tree.prompts == prompt).nonzero().squeeze(1)
        picks = torch.multinomial(probs[rows], count * problem.num_generations, replacement=True, generator=generator)
        drawn.append(rows[picks].view(count, problem.num_generations))
    gradients = batch_gradients(estimator, problem, logits, torch.cat(drawn, dim=1)).flatten(1)
    random = torch.randn(15, exact.numel(), dtype=exact.dtype, generator=generator)
    directions = torch.cat([exact.flatten().unsqueeze(0), random])
    projected = gradients @ directions.T
    error = projected.std(dim=0) / count**0.5
    z_scores: Tensor = (projected.mean(dim=0) - directions @ exact.flatten()) / error
    return z_scores


def mean_kl_estimate(problem: Problem, log_policy: Tensor) -> Tensor:
    """Expectation of `objective.kl_estimate` over the completions, prompts weighed by their probability; scalar."""
    tree = problem.tree
    policy_lp, sft_lp = (mdp.gather_tokens(tree, table) for table in (log_policy, problem.log_sft))
    probs = mdp.sequence_logprobs(tree, log_policy).exp()
    return probs @ objective.kl_estimate(policy_lp, sft_lp, tree.mask)
