"""How far an error in the reward can move the soft-optimal policy, its values and its return.

For two rewards with `|r - r'| <= eps` everywhere, the same prior, temperature beta, gamma = 1 and ends worth 0.
Proofs: docs/theory.md, statement 6. Derived there, not the paper's.
"""

from __future__ import annotations

from torch import Tensor

from densepath.theory.exact import regularised_return, sequence_kl
from densepath.theory.mdp import FiniteMDP


def steps_left(mdp: FiniteMDP) -> Tensor:
    """(states,) float64: `H - t`, the actions still possible from each state, the next one included."""
    return (mdp.horizon - mdp.depths).double()


def value_error_bound(mdp: FiniteMDP, eps: float) -> Tensor:
    """Bound on the soft values: `|V_r(s_t) - V_r'(s_t)| <= eps (H - t)`; (states,)."""
    return eps * steps_left(mdp)


def log_policy_error_bound(mdp: FiniteMDP, eps: float, beta: float) -> Tensor:
    """Bound on the soft optima: `|log pi_r(a|s_t) - log pi_r'(a|s_t)| <= 2 eps (H - t) / beta`; (states,)."""
    return 2 * eps * steps_left(mdp) / beta


def return_gap(
    mdp: FiniteMDP, rewards: Tensor, optimum: Tensor, other: Tensor, log_prior: Tensor, beta: float
) -> Tensor:
    """What `other` falls short of the optimum by, in the regularised return: `J_r(pi_r) - J_r(other)`; scalar.

    It equals `return_gap_as_kl` exactly.

    Args:
        mdp: the MDP.
        rewards: (states, actions) float, r.
        optimum: (states, actions) float, log pi_r, soft-optimal under r.
        other: (states, actions) float, any log-policy, for instance log pi_r'.
        log_prior: (states, actions) float, nats.
        beta: temperature.
    """
    best = regularised_return(mdp, optimum, rewards, log_prior, beta)
    return best - regularised_return(mdp, other, rewards, log_prior, beta)


def return_gap_as_kl(mdp: FiniteMDP, optimum: Tensor, other: Tensor, beta: float) -> Tensor:
    """The same gap as a divergence: `beta KL(other || pi_r)` over trajectories; scalar."""
    return beta * sequence_kl(mdp, other, optimum)
