"""Statement 7: a strongly convex regulariser recovers a reward that is Lipschitz in the policy's occupancy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from densepath.records.theory import StatementResult
from densepath.theory import conjugate, exact
from densepath.theory.instances import Instance, random_instances
from densepath.theory.tally import Tally

KAPPA = 1.0
MUS = (0.1, 1.0, 4.0)
ROUNDING = 1e-9

Recover = Callable[[Tensor, float], Tensor]
"""(rho_E - rho_pi, mu) -> recovered reward."""


def _quadratic(gap: Tensor, mu: float) -> Tensor:
    return conjugate.quadratic_reward(gap, mu)


def _logcosh(gap: Tensor, mu: float) -> Tensor:
    return conjugate.logcosh_reward(gap, mu, KAPPA)


def contraction(seed: int = 0, instances: int = 12) -> StatementResult:
    """Check statement 7 for two regularisers, and that statement 1 does not hold under its assumption."""
    tally = Tally()
    shares: dict[str, dict[str, float]] = {"quadratic": {}, "logcosh": {}}
    for instance in random_instances(7, seed, instances):
        for mu in MUS:
            _duality(tally, instance, mu)
            for name, recover in (("quadratic", _quadratic), ("logcosh", _logcosh)):
                share = _lipschitz(instance, recover, mu)
                tally.bounded(f"ψ {name}: Lipschitz constant · μ ≤ 1", share.max(), 1 + ROUNDING)
                shares[name][str(mu)] = max(shares[name].get(str(mu), 0.0), float(share.max()))
                if name == "quadratic":
                    tally.equal("ψ quadratic: the constant is 1/μ, in every pair", share, torch.ones_like(share))
                else:
                    # curvature at the largest reward an occupancy gap (at most 1 a pair) can recover
                    least = mu + KAPPA / torch.cosh(_logcosh(torch.ones(1, dtype=torch.float64), mu)) ** 2
                    tally.bounded(
                        "ψ log cosh: constant · (μ + κ/cosh² r_max) ≤ 1", share.max() * least / mu, 1 + ROUNDING
                    )
                    tally.differs("ψ log cosh does not attain 1/μ: 1 - constant · μ", 1 - share.max())
        _clash(tally, instance)
    return StatementResult(
        number=7,
        key="contraction",
        title="ψ μ-strongly convex: |r_π - r_π'| ≤ |ρ_π - ρ_π'| / μ",
        source="P (a dual contraction); this form D",
        assumes="ψ strongly convex: NOT the linear conjugate of statement 1 (there μ = 0, no bound)",
        method="pairs of policies, far and near; two ψ, three μ",
        checks=tally.checks(),
        details={"largest_constant_times_mu": shares, "kappa": KAPPA, "zero_mu": _vanishing(seed)},
    )


def _gaps(instance: Instance) -> tuple[Tensor, Tensor]:
    """Occupancy gaps to the expert of policies pi and pi', several pairs: two of (pairs, states x actions)."""
    mdp = instance.tree.mdp
    expert = exact.occupancy(mdp, instance.log_policy)
    first: list[Tensor] = []
    second: list[Tensor] = []
    for distance in (0.03, 0.3, 1.0, 5.0):
        logits = instance.sft_logits
        other = logits + distance * instance.table()
        for table, pile in ((logits, first), (other, second)):
            pile.append((expert - exact.occupancy(mdp, table.log_softmax(-1))).flatten())
    return torch.stack(first), torch.stack(second)


def _lipschitz(instance: Instance, recover: Recover, mu: float) -> Tensor:
    """`mu |r_pi - r_pi'| / |rho_pi - rho_pi'|` for each pair (Euclidean norms)."""
    here, there = _gaps(instance)
    moved: Tensor = torch.linalg.vector_norm(recover(here, mu) - recover(there, mu), dim=1)
    share: Tensor = mu * moved / torch.linalg.vector_norm(here - there, dim=1)
    return share


def _duality(tally: Tally, instance: Instance, mu: float) -> None:
    """The recovered reward maximises `<r, gap> - psi(r)`: the gradient vanishes there, and elsewhere it is lower."""
    gap = _gaps(instance)[0][0]
    regularisers: dict[str, tuple[Recover, Callable[[Tensor], Tensor]]] = {
        "quadratic": (_quadratic, lambda r: mu / 2 * (r**2).sum()),
        "log cosh": (_logcosh, lambda r: (mu / 2 * r**2 + KAPPA * torch.cosh(r).log()).sum()),
    }
    for name, (recover, psi) in regularisers.items():
        reward = recover(gap, mu).requires_grad_()
        value = reward @ gap - psi(reward)
        (slope,) = torch.autograd.grad(value, reward)
        tally.equal(f"ψ {name}: recovered r maximises <r, ρ_E - ρ_π> - ψ(r)", slope, torch.zeros_like(slope))
        step = 0.1 * instance.normal(*gap.shape)
        moved = (reward + step) @ gap - psi(reward + step)
        lost = mu / 2 * (step**2).sum() - (value - moved)
        tally.bounded(f"ψ {name}: μ/2 |step|² - what a step loses ≤ 0 (strong convexity)", lost, 1e-12)


def _clash(tally: Tally, instance: Instance) -> None:
    """With the strongly convex chi-square regulariser, SFT is not IQ-Learn; it becomes so as it is switched off."""
    mdp = instance.tree.mdp
    occupancy = exact.occupancy(mdp, instance.log_policy)
    sft = -(occupancy * instance.log_sft).sum()
    off = []
    for strength in (1.0, 100.0):
        j = conjugate.iq_objective(
            mdp,
            instance.sft_logits,
            occupancy,
            phi=lambda r, s=strength: conjugate.chi_square(r, s),  # type: ignore[misc]
        )
        off.append((sft + j).abs())
    tally.differs("assumptions clash: under χ² |SFT loss + J| (statement 1 fails)", off[0])
    tally.equal("and it fails in proportion to 1/strength", off[0], off[1] * 100)
    linear = conjugate.iq_objective(mdp, instance.sft_logits, occupancy)
    tally.equal("under the linear conjugate it holds", -linear, sft)


def _vanishing(seed: int) -> list[list[float]]:
    """[mu, Lipschitz constant of log cosh]: without bound as mu -> 0 and kappa -> 0, the linear conjugate's case."""
    instance = next(random_instances(7, seed, 1))
    here, there = _gaps(instance)
    rows = []
    for mu in (1.0, 0.1, 0.01, 0.001):
        recovered = [conjugate.logcosh_reward(gap, mu, mu) for gap in (here, there)]
        rows.append([mu, float(((recovered[0] - recovered[1]).norm(dim=1) / (here - there).norm(dim=1)).max())])
    return rows
