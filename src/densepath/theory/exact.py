"""Exact quantities of a finite MDP by backward and forward induction, in float64 and differentiable.

Tables are (states, actions); `final` are the values of the ends, zero unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from densepath.theory.mdp import FiniteMDP


class Values(NamedTuple):
    """Action values (states, actions) and state values (states,)."""

    q: Tensor
    v: Tensor


class SoftOptimum(NamedTuple):
    """Soft-optimal action values, state values and log-policy."""

    q: Tensor
    v: Tensor
    log_policy: Tensor


def _check_table(mdp: FiniteMDP, table: Tensor, name: str) -> None:
    if table.shape != (mdp.num_states, mdp.num_actions):
        raise ValueError(f"{name} must be {(mdp.num_states, mdp.num_actions)}, got {tuple(table.shape)}")


def _check_gamma(gamma: float) -> None:
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma}")


def _final(mdp: FiniteMDP, like: Tensor, final: Tensor | None) -> Tensor:
    if final is None:
        return like.new_zeros(mdp.num_ends)
    if final.shape != (mdp.num_ends,):
        raise ValueError(f"final must be ({mdp.num_ends},), got {tuple(final.shape)}")
    return final


def next_values(mdp: FiniteMDP, values: Tensor, final: Tensor | None = None) -> Tensor:
    """Expected value of the next state: `sum_s' P(s'|s,a) V(s')`.

    Args:
        mdp: the MDP.
        values: (states,) float.
        final: (ends,) float, values of the ends; 0 by default.

    Returns:
        (states, actions) float.
    """
    everything = torch.cat([values, _final(mdp, values, final)])
    return (mdp.next_probs * everything[mdp.next_states]).sum(dim=-1)


def _backward(
    mdp: FiniteMDP, rewards: Tensor, gamma: float, final: Tensor | None, backup: Callable[[Tensor, slice], Tensor]
) -> Values:
    """`Q(s,a) = r(s,a) + gamma E V(s')`, `V(s) = backup(Q(s,.))`, from the last depth to the first."""
    _check_table(mdp, rewards, "rewards")
    _check_gamma(gamma)
    later = _final(mdp, rewards, final)
    q_layers: list[Tensor] = []
    for t in reversed(range(mdp.horizon)):
        layer = mdp.layer(t)
        following = later[mdp.next_states[layer] - mdp.layers[t + 1]]
        q = rewards[layer] + gamma * (mdp.next_probs[layer] * following).sum(dim=-1)
        q_layers.append(q)
        later = torch.cat([backup(q, layer), later])
    return Values(torch.cat(q_layers[::-1]), later[: mdp.num_states])


def policy_values(
    mdp: FiniteMDP, log_policy: Tensor, rewards: Tensor, gamma: float = 1.0, final: Tensor | None = None
) -> Values:
    """Values of a policy: `Q(s,a) = r(s,a) + gamma E V(s')`, `V(s) = sum_a pi(a|s) Q(s,a)`.

    Args:
        mdp: the MDP.
        log_policy: (states, actions) float, nats.
        rewards: (states, actions) float.
        gamma: discount in [0, 1].
        final: (ends,) float, values of the ends; 0 by default.
    """
    _check_table(mdp, log_policy, "log_policy")
    policy = log_policy.exp()
    return _backward(mdp, rewards, gamma, final, lambda q, layer: (policy[layer] * q).sum(dim=-1))


def soft_optimum(
    mdp: FiniteMDP,
    rewards: Tensor,
    log_prior: Tensor | None = None,
    beta: float = 1.0,
    gamma: float = 1.0,
    final: Tensor | None = None,
) -> SoftOptimum:
    """The soft-optimal policy: `V(s) = beta log sum_a prior(a|s) exp(Q(s,a)/beta)`, `pi = prior exp((Q-V)/beta)`.

    It maximises `E[sum r] - beta KL(pi || prior)`; without a prior, `E[sum r] + beta entropy`. A policy is
    fixed by its own soft values: `Q = r + gamma E V(s')`.

    Args:
        mdp: the MDP.
        rewards: (states, actions) float.
        log_prior: (states, actions) float, nats; None for the uniform measure (each action weighs 1).
        beta: temperature, above 0.
        gamma: discount in [0, 1].
        final: (ends,) float, values of the ends; 0 by default.
    """
    if beta <= 0:
        raise ValueError(f"beta must be above 0, got {beta}")
    _check_table(mdp, rewards, "rewards")
    prior = torch.zeros_like(rewards) if log_prior is None else log_prior
    _check_table(mdp, prior, "log_prior")
    q, v = _backward(mdp, rewards, gamma, final, lambda q, layer: beta * (prior[layer] + q / beta).logsumexp(dim=-1))
    return SoftOptimum(q, v, prior + (q - v.unsqueeze(1)) / beta)


def soft_bellman(mdp: FiniteMDP, q: Tensor, rewards: Tensor, gamma: float = 1.0) -> Tensor:
    """The soft Bellman operator: `(B Q)(s,a) = r(s,a) + gamma E V(s')`, `V(s) = logsumexp_a Q(s,a)`.

    Args:
        mdp: the MDP.
        q: (states, actions) float.
        rewards: (states, actions) float.
        gamma: discount in [0, 1].
    """
    _check_table(mdp, q, "q")
    return rewards + gamma * next_values(mdp, q.logsumexp(dim=-1))


def inverse_soft_bellman(mdp: FiniteMDP, q: Tensor, gamma: float = 1.0, final: Tensor | None = None) -> Tensor:
    """The reward that makes Q soft-optimal: `r(s,a) = Q(s,a) - gamma E V(s')`, `V(s) = logsumexp_a Q(s,a)`.

    Args:
        mdp: the MDP.
        q: (states, actions) float, for instance the logits of a model.
        gamma: discount in [0, 1].
        final: (ends,) float, values of the ends; 0 by default.

    Source: IQ-Learn's inverse soft Bellman operator, with a finite horizon.
    """
    _check_table(mdp, q, "q")
    _check_gamma(gamma)
    return q - gamma * next_values(mdp, q.logsumexp(dim=-1), final)


def shaped_rewards(
    mdp: FiniteMDP, rewards: Tensor, potential: Tensor, gamma: float = 1.0, final: Tensor | None = None
) -> Tensor:
    """Rewards after potential-based shaping: `r(s,a) + gamma E Phi(s') - Phi(s)`.

    Args:
        mdp: the MDP.
        rewards: (states, actions) float.
        potential: (states,) float, Phi.
        gamma: discount in [0, 1].
        final: (ends,) float, Phi of the ends; 0 by default.
    """
    _check_table(mdp, rewards, "rewards")
    return rewards + gamma * next_values(mdp, potential, final) - potential.unsqueeze(1)


def visits(mdp: FiniteMDP, log_policy: Tensor) -> Tensor:
    """Probability of passing through each state and of ending in each end.

    Args:
        mdp: the MDP.
        log_policy: (states, actions) float, nats.

    Returns:
        (states + ends,) float; the entries of one depth and of the ends reached by then sum to 1.
    """
    _check_table(mdp, log_policy, "log_policy")
    policy = log_policy.exp()
    mass = torch.cat([mdp.start, policy.new_zeros(mdp.num_states + mdp.num_ends - mdp.layers[1])])
    for t in range(mdp.horizon):
        layer = mdp.layer(t)
        flow = (mass[layer].unsqueeze(1) * policy[layer]).unsqueeze(2) * mdp.next_probs[layer]
        mass = mass.index_add(0, mdp.next_states[layer].flatten(), flow.flatten())
    return mass


def occupancy(mdp: FiniteMDP, log_policy: Tensor) -> Tensor:
    """Occupancy measure, undiscounted: `rho(s,a) = P(s is visited and a taken in it)`.

    Args:
        mdp: the MDP.
        log_policy: (states, actions) float, nats.

    Returns:
        (states, actions) float; it sums to the expected length.
    """
    return visits(mdp, log_policy)[: mdp.num_states].unsqueeze(1) * log_policy.exp()


def expected_return(mdp: FiniteMDP, log_policy: Tensor, rewards: Tensor, gamma: float = 1.0) -> Tensor:
    """Expected discounted sum of rewards: `E[sum_t gamma^t r(s_t,a_t)]`.

    Args:
        mdp: the MDP.
        log_policy: (states, actions) float, nats.
        rewards: (states, actions) float.
        gamma: discount in [0, 1].

    Returns:
        Scalar.
    """
    return mdp.start @ policy_values(mdp, log_policy, rewards, gamma).v[: mdp.layers[1]]


def expected_length(mdp: FiniteMDP, log_policy: Tensor) -> Tensor:
    """Expected number of actions, EOS included; scalar."""
    return visits(mdp, log_policy)[: mdp.num_states].sum()


def state_kl(log_policy: Tensor, other: Tensor) -> Tensor:
    """KL at each state: `sum_a pi(a|s) (log pi - log other)`.

    Args:
        log_policy: (states, actions) float, nats.
        other: (states, actions) float, nats.

    Returns:
        (states,) float, nats.
    """
    return (log_policy.exp() * (log_policy - other)).sum(dim=-1)


def sequence_kl(mdp: FiniteMDP, log_policy: Tensor, other: Tensor) -> Tensor:
    """KL between trajectory distributions: `sum_s P(s is visited) KL(pi(.|s) || other(.|s))`; scalar, nats."""
    return visits(mdp, log_policy)[: mdp.num_states] @ state_kl(log_policy, other)


def regularised_return(mdp: FiniteMDP, log_policy: Tensor, rewards: Tensor, log_prior: Tensor, beta: float) -> Tensor:
    """The objective of Dense-Path REINFORCE: `E[sum_t r] - beta KL(pi || prior)` over trajectories; scalar.

    Args:
        mdp: the MDP.
        log_policy: (states, actions) float, nats.
        rewards: (states, actions) float.
        log_prior: (states, actions) float, nats, for instance log pi_SFT.
        beta: coefficient.
    """
    return expected_return(mdp, log_policy, rewards) - beta * sequence_kl(mdp, log_policy, log_prior)


def policy_gradient(mdp: FiniteMDP, log_policy: Tensor, rewards: Tensor, gamma: float = 1.0) -> Tensor:
    """Exact gradient of `E[sum_t gamma^t r]` with respect to logits: `gamma^t d(s) pi(a|s) (Q(s,a) - V(s))`.

    For the KL-regularised objective pass `r - beta (log pi - log prior)`: the derivative of the logarithm
    itself averages to zero.

    Args:
        mdp: the MDP.
        log_policy: (states, actions) float, the log-softmax of the logits, nats.
        rewards: (states, actions) float, taken as constants.
        gamma: discount in [0, 1].

    Returns:
        (states, actions) float.
    """
    q, v = policy_values(mdp, log_policy, rewards, gamma)
    discount = gamma ** mdp.depths.to(rewards.dtype).unsqueeze(1)
    return discount * occupancy(mdp, log_policy) * (q - v.unsqueeze(1))


def state_loss_fixed_point(mdp: FiniteMDP, rewards: Tensor, log_prior: Tensor, beta: float) -> Tensor:
    """Where REINFORCE with the KL as a loss per state comes to rest: `pi = prior exp(Q/beta) / Z`, `V = sum_a pi Q`.

    The values are those of the reward alone: the KL of later states does not enter, which is why it is not the
    soft optimum.

    Args:
        mdp: the MDP.
        rewards: (states, actions) float.
        log_prior: (states, actions) float, nats.
        beta: coefficient, above 0.

    Returns:
        (states, actions) float, its log-policy.
    """
    if beta <= 0:
        raise ValueError(f"beta must be above 0, got {beta}")
    _check_table(mdp, log_prior, "log_prior")

    def backup(q: Tensor, layer: slice) -> Tensor:
        return ((log_prior[layer] + q / beta).softmax(dim=-1) * q).sum(dim=-1)

    q, _ = _backward(mdp, rewards, 1.0, None, backup)
    return (log_prior + q / beta).log_softmax(dim=-1)
