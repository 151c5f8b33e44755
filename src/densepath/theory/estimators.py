"""The gradient estimators that a trainer offers, put together from the core functions, and their expectations.

A batch holds `num_generations` completions of each prompt. Its loss is a function of the policy's logit table;
`expected_gradient` sums its gradient over every possible batch, `sampled_gradients` draws batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from densepath.core import objective, rewards
from densepath.core.estimator import Batch, Estimator, Tokens
from densepath.core.logprobs import exact_kl
from densepath.core.objective import Normalizer
from densepath.core.returns import Baseline
from densepath.theory import mdp
from densepath.theory.instances import Instance
from densepath.theory.mdp import TokenTree


@dataclass(frozen=True)
class Variant:
    """An estimator, and what lies around it.

    Args:
        estimator: which one; its beta is the problem's.
        clip: bound on the per-token reward, or None.
        normalizer: what the sum is divided by.
    """

    estimator: Estimator
    clip: float | None = None
    normalizer: Normalizer = Normalizer.COMPLETIONS


_NONE, _MEAN, _LEAVE = Baseline.NONE, Baseline.POSITION_MEAN, Baseline.LEAVE_ONE_OUT


def _variant(baseline: Baseline, **arguments: Any) -> Variant:
    return Variant(Estimator(baseline=baseline, **arguments))


UNBIASED: dict[str, Variant] = {
    "REINFORCE": _variant(_NONE),
    "REINFORCE, position mean": _variant(_MEAN),
    "REINFORCE, leave one out": _variant(_LEAVE),
    "sequence level": _variant(_NONE, whole_sequence=True),
    "sequence level, position mean": _variant(_MEAN, whole_sequence=True),
    "sequence level, leave one out": _variant(_LEAVE, whole_sequence=True),
    "all actions": _variant(_NONE, all_action=True, all_action_weight=1.0),
    "all actions, position mean": _variant(_MEAN, all_action=True, all_action_weight=1.0),
    "all actions, leave one out": _variant(_LEAVE, all_action=True, all_action_weight=1.0),
    "mixture, position mean": _variant(_MEAN, all_action=True),
    "mixture, leave one out": _variant(_LEAVE, all_action=True),
    "PPO clip, first step": _variant(_MEAN, epsilons=(0.2, 0.2)),
}
"""Estimators whose expectation is the exact gradient of the KL-regularised objective."""

BIASED: dict[str, Variant] = {
    "KL as a loss per state": _variant(_MEAN, kl_in_return=False),
    "whitening, KL in the return": _variant(_MEAN, whiten=True),
    "whitening, KL as a loss": _variant(_MEAN, kl_in_return=False, whiten=True),
    "r̂ clipped at ±1": Variant(Estimator(), clip=1.0),
    "γ = 0.9": _variant(_MEAN, gamma=0.9),
    "γ = 0.9, leave one out": _variant(_LEAVE, gamma=0.9),
    "γ = 0": _variant(_MEAN, gamma=0.0),
    "divided by tokens": Variant(Estimator(), normalizer=Normalizer.TOKENS),
    "divided by tokens, no baseline": Variant(Estimator(baseline=_NONE), normalizer=Normalizer.TOKENS),
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


def batch_loss(variant: Variant, problem: Problem, log_policy: Tensor, rows: Tensor) -> Tensor:
    """The loss of one batch, by the functions a trainer uses.

    Args:
        variant: which estimator.
        problem: the frozen part.
        log_policy: (states, actions) float with gradient, log pi_theta.
        rows: (batch,) int64 into the tree's sequences; completions of one prompt are neighbours.
    """
    estimator = dataclasses.replace(variant.estimator, beta=problem.beta)
    tree = problem.tree
    states, ids, mask = tree.states[rows], tree.sequences[rows], tree.mask[rows]
    policy_lp, sft_lp, ref_lp = (table[states, ids] for table in (log_policy, problem.log_sft, problem.log_ref))
    dense = rewards.baseline_relative(sft_lp, ref_lp, mask)
    if variant.clip is not None:
        dense = dense.clamp(-variant.clip, variant.clip)
    expected = state_kl = old = None
    log_dist, sft_dist = log_policy[states], problem.log_sft[states]
    if estimator.all_action:
        everywhere = mask.unsqueeze(-1).expand(*mask.shape, tree.mdp.num_actions)
        everything = rewards.baseline_relative(sft_dist, problem.log_ref[states], everywhere)
        action_rewards = estimator.penalised(everything, log_dist, sft_dist, None, everywhere)
        expected = objective.expected_rewards(log_dist, action_rewards)
    if not estimator.kl_in_return:
        state_kl = exact_kl(log_dist, sft_dist)
    if estimator.epsilons:
        old = policy_lp.detach()
    batch = Batch(dense, policy_lp, sft_lp, mask, expected=None if expected is None else expected.detach())
    credit = estimator.credit(estimator.returns(batch), mask, problem.num_generations)
    shares = None if credit.shares is None else credit.shares.unsqueeze(1)
    tokens = Tokens(policy_lp, credit.advantages, mask, old, expected, shares, state_kl)
    normalizer = objective.loss_divisor(variant.normalizer, float(rows.shape[0]), mask.sum(), mask.shape[1])
    return estimator.loss(tokens, normalizer)[0]


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


def batch_gradients(variant: Variant, problem: Problem, logits: Tensor, rows: Tensor, chunk: int = 4096) -> Tensor:
    """Ascent direction of each batch, `-d loss / d logits`: (batches, states, actions)."""

    def loss(table: Tensor, batch: Tensor) -> Tensor:
        return batch_loss(variant, problem, table.log_softmax(-1), batch)

    each: Callable[[Tensor, Tensor], Tensor] = torch.func.vmap(
        torch.func.grad(loss), in_dims=(None, 0), chunk_size=chunk
    )
    return -each(logits, rows)


def moments(variant: Variant, problem: Problem, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the estimate over every batch, exactly.

    Returns:
        Expectation (states, actions), and the trace of the covariance, `E|g|^2 - |E g|^2`, scalar.
    """
    rows, probs = all_batches(problem, logits.log_softmax(-1))
    gradients = batch_gradients(variant, problem, logits, rows)
    mean = torch.einsum("b,bsa->sa", probs, gradients)
    return mean, probs @ (gradients**2).sum(dim=(1, 2)) - (mean**2).sum()


def expected_gradient(variant: Variant, problem: Problem, logits: Tensor) -> Tensor:
    """Expectation of the estimate over every batch, exactly: (states, actions)."""
    return moments(variant, problem, logits)[0]


def sampled_z_scores(
    variant: Variant, problem: Problem, logits: Tensor, exact: Tensor, count: int, generator: torch.Generator
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
    gradients = batch_gradients(variant, problem, logits, torch.cat(drawn, dim=1)).flatten(1)
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
