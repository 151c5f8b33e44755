"""IQ-Learn's objective and reward regularisers: the linear conjugate, and strongly convex ones.

The two are *different assumptions*. The linear conjugate `phi(x) = x` is what makes SFT equal to IQ-Learn; it
belongs to a regulariser psi that is zero, hence not strongly convex. The contraction of the recovered reward
needs a strongly convex psi, under which SFT is *not* IQ-Learn. See docs/theory.md, statements 1 and 7.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from densepath.theory.exact import inverse_soft_bellman
from densepath.theory.mdp import FiniteMDP


def linear(rewards: Tensor) -> Tensor:
    """The linear conjugate: `phi(r) = r`."""
    return rewards


def chi_square(rewards: Tensor, strength: float) -> Tensor:
    """The conjugate of the chi-square regulariser: `phi(r) = r - r^2 / (4 strength)`.

    Source: IQ-Learn, the chi-square divergence; concave and not linear.
    """
    return rewards - rewards**2 / (4 * strength)


def iq_objective(
    mdp: FiniteMDP,
    q: Tensor,
    expert_occupancy: Tensor,
    gamma: float = 1.0,
    phi: Callable[[Tensor], Tensor] = linear,
) -> Tensor:
    """IQ-Learn's objective: `J(Q) = E_E[sum_t gamma^t phi(Q(s,a) - gamma E V(s'))] - E[V(s_0)]`; maximised.

    `V(s) = logsumexp_a Q(s,a)`, `V(end) = 0`. The initial states are the expert's own.

    Args:
        mdp: the MDP.
        q: (states, actions) float, for instance logits.
        expert_occupancy: (states, actions) float, how often the expert takes a in s: exact (`exact.occupancy`)
            or counted in demonstrations and divided by their number.
        gamma: discount in [0, 1].
        phi: concave function of the recovered reward; linear by default, as in the paper.

    Returns:
        Scalar, nats per trajectory.

    Source: IQ-Learn; with a linear phi the paper's starting point.
    """
    if expert_occupancy.shape != q.shape:
        raise ValueError(f"expert_occupancy has shape {tuple(expert_occupancy.shape)}, q {tuple(q.shape)}")
    discount = gamma ** mdp.depths.to(q.dtype).unsqueeze(1)
    first = mdp.layer(0)
    from_start = expert_occupancy[first].sum(dim=-1) @ q[first].logsumexp(dim=-1)
    return (discount * expert_occupancy * phi(inverse_soft_bellman(mdp, q, gamma))).sum() - from_start


def quadratic_reward(gap: Tensor, mu: float) -> Tensor:
    """Reward recovered under `psi(r) = mu/2 |r|^2`: `grad psi*(x) = x / mu`.

    Args:
        gap: any shape, `rho_E - rho_pi`, the expert's occupancy less the policy's.
        mu: strong convexity, above 0.
    """
    _check_mu(mu)
    return gap / mu


def logcosh_reward(gap: Tensor, mu: float, kappa: float, iterations: int = 60) -> Tensor:
    """Reward recovered under `psi(r) = sum mu/2 r^2 + kappa log cosh r`: the r with `mu r + kappa tanh r = x`.

    psi is mu-strongly convex, and its curvature `mu + kappa / cosh^2 r` exceeds mu at every finite r, so the
    slope of `grad psi*` stays below 1/mu. Newton from `x / (mu + kappa)`: on r > 0 the left side is concave
    and starts below x, so every step stays below the root and rises to it (mirrored for r < 0).

    Args:
        gap: any shape, `rho_E - rho_pi`.
        mu: strong convexity, above 0.
        kappa: extra curvature at 0, at least 0.
        iterations: Newton steps.
    """
    _check_mu(mu)
    if kappa < 0:
        raise ValueError(f"kappa must be at least 0, got {kappa}")
    rewards = gap / (mu + kappa)
    for _ in range(iterations):
        tanh = torch.tanh(rewards)
        rewards = rewards - (mu * rewards + kappa * tanh - gap) / (mu + kappa * (1 - tanh**2))
    return rewards


def _check_mu(mu: float) -> None:
    if mu <= 0:
        raise ValueError(f"mu must be above 0, got {mu}: with mu = 0 psi* is not smooth and no bound holds")
