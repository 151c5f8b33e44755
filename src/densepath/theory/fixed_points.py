"""Where each biased estimator comes to rest: by backward induction where there is a formula, else by Broyden."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from densepath.core.objective import Normalizer
from densepath.theory import exact
from densepath.theory.estimators import BIASED, Problem, expected_gradient

STEP = 1e-6
"""Of the finite differences behind Broyden's first Jacobian; it need not be exact."""


def resting_point(name: str, problem: Problem) -> Tensor:
    """Log-policy at which the expected update of that biased estimator vanishes.

    Args:
        name: a key of `estimators.BIASED`.
        problem: the MDP and the frozen models.

    Returns:
        (states, actions) float, nats.
    """
    variant = BIASED[name]
    estimator = variant.estimator
    mdp, reward = problem.tree.mdp, problem.log_sft - problem.log_ref
    if variant.clip is not None:
        reward = reward.clamp(-variant.clip, variant.clip)
    if not estimator.kl_in_return:
        found = exact.state_loss_fixed_point(mdp, reward, problem.log_sft, problem.beta)
    else:
        # a return discounted by gamma^(k-t) makes every state plan with gamma
        found = exact.soft_optimum(mdp, reward, problem.log_sft, problem.beta, estimator.gamma).log_policy
    if estimator.whiten or variant.normalizer is Normalizer.TOKENS:
        found = broyden(lambda logits: expected_gradient(variant, problem, logits), found)
    return found


def broyden(
    field: Callable[[Tensor], Tensor], start: Tensor, tolerance: float = 1e-12, rounds: int = 6, steps: int = 20
) -> Tensor:
    """Logits near `start` at which the field vanishes, as a log-policy.

    The last action's logit is held, since adding a constant to a state's logits changes nothing.

    Args:
        field: (states, actions) -> (states, actions), rows summing to 0.
        start: (states, actions) float.
        tolerance: largest entry of the field to stop at.
        rounds: fresh Jacobians at most.
        steps: updates of each; the caller checks the residual.
    """
    shape = start.shape

    def widen(point: Tensor) -> Tensor:
        return torch.cat([point.view(shape[0], -1), start[:, -1:]], dim=1)

    def residual(point: Tensor) -> Tensor:
        return field(widen(point))[:, :-1].flatten()

    point = start[:, :-1].flatten()
    value = residual(point)
    for _ in range(rounds):
        columns = [(residual(point + STEP * unit) - value) / STEP for unit in torch.eye(len(point), dtype=start.dtype)]
        jacobian = torch.stack(columns, dim=1)
        if not bool(jacobian.isfinite().all()):
            break
        inverse = torch.linalg.pinv(jacobian)
        for _ in range(steps):
            if float(value.abs().max()) <= tolerance:
                return widen(point).log_softmax(dim=-1)
            move = -inverse @ value
            following = residual(point + move)
            # Broyden's update of the inverse Jacobian (Sherman-Morrison)
            change = inverse @ (following - value)
            inverse = inverse + torch.outer(move - change, move @ inverse) / (move @ change)
            point, value = point + move, following
            if not bool(inverse.isfinite().all()):
                break
    return widen(point).log_softmax(dim=-1)
