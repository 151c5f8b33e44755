"""Statement 6: an error in the reward moves the soft-optimal policy, values and return by so much at most."""

from __future__ import annotations

import torch
from torch import Tensor

from densepath.records.theory import StatementResult
from densepath.theory import bounds, exact
from densepath.theory.instances import Instance, instance_seed, make_instance, random_instances
from densepath.theory.tally import Tally

ROUNDING = 1e-9
"""How far above 1 a ratio to its bound may come out."""

SEARCH_STEPS = 150
EPSILONS = (0.01, 0.3, 2.0)


def reward_error(seed: int = 0, instances: int = 12) -> StatementResult:
    """Check statement 6 on random errors, then search for the worst reward, error and prior."""
    tally = Tally()
    random_policy: list[float] = []
    random_value: list[float] = []
    for instance in random_instances(6, seed, instances):
        for eps in EPSILONS:
            for beta in (0.3, 1.0, 4.0):
                error = eps * (2 * torch.rand_like(instance.sft_logits) - 1)
                signs = eps * torch.sign(instance.table())
                for change in (error, signs):
                    ratios = _ratios(instance, instance.table(), change, instance.log_sft, eps, beta)
                    tally.bounded("random errors: |Δ log π| β / (2ε(H-t)) ≤ 1", ratios[0], 1 + ROUNDING)
                    tally.bounded("random errors: |ΔV| / (ε(H-t)) ≤ 1", ratios[1], 1 + ROUNDING)
                    first = instance.tree.mdp.layer(0)
                    random_policy.append(float(ratios[0][first].max()))
                    random_value.append(float(ratios[1][first].max()))
        _return_gap(tally, instance)
    searches = [
        _search(tally, make_instance(3, horizon, 1, instance_seed(seed, 6, 1000 + horizon)), what)
        for horizon in (2, 3, 4)
        for what in ("policy", "value")
    ]
    return StatementResult(
        number=6,
        key="reward-error",
        title="|r - r'| ≤ ε: |Δ log π(a|s_t)| ≤ 2ε(H-t)/β, |ΔV(s_t)| ≤ ε(H-t), return gap = β KL(π_r' || π_r)",
        source="D",
        assumes="same prior and β, γ = 1, ends worth 0",
        method="random and adversarial errors: signs by gradient, then ascent on reward and prior",
        checks=tally.checks(),
        details={
            # at the first token, where the whole horizon counts; at the last one both bounds are met trivially
            "tightness_random": {"policy": max(random_policy), "value": max(random_value)},
            "tightness_searched": {
                what: max(max(curve) for name, curve in searches if name == what) for what in ("policy", "value")
            },
            "random_ratios": random_policy,
            "search_curves": [{"bound": name, "ratio": curve} for name, curve in searches],
        },
    )


def _ratios(
    instance: Instance, reward: Tensor, change: Tensor, log_prior: Tensor, eps: float, beta: float
) -> tuple[Tensor, Tensor]:
    """Error of log-policy (states, actions) and value (states,) as shares of their bounds."""
    mdp = instance.tree.mdp
    before = exact.soft_optimum(mdp, reward, log_prior, beta)
    after = exact.soft_optimum(mdp, reward + change, log_prior, beta)
    policy = (after.log_policy - before.log_policy).abs() / bounds.log_policy_error_bound(mdp, eps, beta).unsqueeze(1)
    value = (after.v - before.v).abs() / bounds.value_error_bound(mdp, eps)
    return policy, value


def _return_gap(tally: Tally, instance: Instance) -> None:
    mdp, reward, prior = instance.tree.mdp, instance.table(), instance.log_sft
    for eps, beta in ((0.3, 0.3), (0.3, 1.0), (2.0, 1.0)):
        change = eps * torch.sign(instance.table())
        best = exact.soft_optimum(mdp, reward, prior, beta).log_policy
        other = exact.soft_optimum(mdp, reward + change, prior, beta).log_policy
        gap = bounds.return_gap(mdp, reward, best, other, prior, beta)
        tally.equal("return gap = β KL(π_r' || π_r)", gap, bounds.return_gap_as_kl(mdp, best, other, beta))
        tally.bounded("return gap / (2εH) ≤ 1", gap / (2 * eps * mdp.horizon), 1 + ROUNDING)


def _search(tally: Tally, instance: Instance, what: str) -> tuple[str, list[float]]:
    """Gradient ascent on reward and prior; the error takes, at each step, the sign of its own gradient.

    With reward and prior fixed each entry of the error moves `log pi(a|s_0)` (or `V(s_0)`) in one direction
    only, so the sign of the gradient *is* the worst error.
    """
    eps, beta, rate = 0.5, 1.0, 0.3
    mdp = instance.tree.mdp
    reward = instance.table().requires_grad_()
    prior_logits = instance.sft_logits.clone().requires_grad_()
    change = torch.zeros_like(reward)
    curve: list[float] = []
    optimiser = torch.optim.Adam([reward, prior_logits], lr=rate)
    action = 1
    for _ in range(SEARCH_STEPS):
        log_prior = prior_logits.log_softmax(-1)
        before = exact.soft_optimum(mdp, reward, log_prior, beta)
        tried = change.clone().requires_grad_()
        (slope,) = torch.autograd.grad(
            _moved(what, exact.soft_optimum(mdp, reward + tried, log_prior, beta), action), tried, retain_graph=True
        )
        change = eps * torch.sign(slope)
        after = exact.soft_optimum(mdp, reward + change, log_prior, beta)
        moved = _moved(what, after, action) - _moved(what, before, action)
        optimiser.zero_grad()
        (-moved).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            policy, value = _ratios(instance, reward, change, log_prior, eps, beta)
            tally.bounded("searched errors: share of the policy bound ≤ 1", policy, 1 + ROUNDING)
            tally.bounded("searched errors: share of the value bound ≤ 1", value, 1 + ROUNDING)
            curve.append(float(policy[0, action] if what == "policy" else value[0]))
        optimiser.step()
    tally.differs(f"the {what} bound is tight at the first token: share found", max(curve), floor=0.9)
    return what, curve


def _moved(what: str, best: exact.SoftOptimum, action: int) -> Tensor:
    return best.log_policy[0, action] if what == "policy" else best.v[0]
