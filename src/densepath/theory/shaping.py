"""Statement 3: potential-based shaping keeps the soft-optimal policy, and what truncation does to it."""

from __future__ import annotations

import torch

from densepath.records.theory import StatementResult
from densepath.theory import exact, mdp
from densepath.theory.instances import Instance, random_instances
from densepath.theory.tally import Tally


def shaping(seed: int = 0, instances: int = 12) -> StatementResult:
    """Check statement 3 for random rewards and potentials, then with a potential at the cut."""
    tally = Tally()
    cut_tv: list[float] = []
    for instance in random_instances(3, seed, instances):
        _shape(tally, instance)
        _by_value(tally, instance)
        cut_tv.append(_cut(tally, instance))
    return StatementResult(
        number=3,
        key="shaping",
        title="r + Φ(s') - Φ(s) has the same soft-optimal policy and the same gradient",
        source="D (the paper reads log π_SFT as a shaped reward: P)",
        assumes="γ = 1, fixed horizon, Φ the same at every end (EOS and cut)",
        method="backward induction with and without; Φ at the cut set to other values",
        checks=tally.checks(),
        details={"tv_when_the_cut_has_a_potential": cut_tv},
    )


def _shape(tally: Tally, instance: Instance) -> None:
    tree, log_policy = instance.tree, instance.log_policy
    reward, potential = instance.table(), instance.normal(tree.mdp.num_states)
    shaped = exact.shaped_rewards(tree.mdp, reward, potential)
    for name, prior, beta in (("entropy", None, 1.0), ("KL to SFT", instance.log_sft, 0.5)):
        plain = exact.soft_optimum(tree.mdp, reward, prior, beta)
        other = exact.soft_optimum(tree.mdp, shaped, prior, beta)
        tally.equal(f"{name}: soft-optimal policy stays", other.log_policy, plain.log_policy)
        tally.equal(f"{name}: values shift by -Φ", other.v, plain.v - potential)
    constant = torch.full((tree.mdp.num_ends,), 0.7, dtype=torch.float64)
    lifted = exact.shaped_rewards(tree.mdp, reward, potential, final=constant)
    same = exact.soft_optimum(tree.mdp, lifted)
    tally.equal(
        "Φ(end) = any one constant: policy stays", same.log_policy, exact.soft_optimum(tree.mdp, reward).log_policy
    )
    gradients = [exact.policy_gradient(tree.mdp, log_policy, table) for table in (reward, shaped)]
    tally.equal("exact policy gradient stays", gradients[0], gradients[1])
    discounted = exact.soft_optimum(tree.mdp, reward, gamma=0.9).log_policy
    fitting = exact.shaped_rewards(tree.mdp, reward, potential, gamma=0.9)
    tally.equal(
        "γ = 0.9 with r + γΦ(s') - Φ(s): policy stays",
        exact.soft_optimum(tree.mdp, fitting, gamma=0.9).log_policy,
        discounted,
    )
    unfit = exact.soft_optimum(tree.mdp, shaped, gamma=0.9).log_policy
    tally.differs("γ = 0.9 with r + Φ(s') - Φ(s): TV", mdp.sequence_tv(tree, unfit, discounted))


def _by_value(tally: Tally, instance: Instance) -> None:
    """The reward log pi_SFT: r shaped by V. Its soft optimum is the SFT policy, its soft values are 0."""
    best = exact.soft_optimum(instance.tree.mdp, instance.log_sft)
    tally.equal("reward log π_SFT: soft optimum is π_SFT", best.log_policy, instance.log_sft)
    tally.equal("reward log π_SFT: soft values are 0", best.v, torch.zeros_like(best.v))


def _cut(tally: Tally, instance: Instance) -> float:
    """The model still has a value where the budget cuts: a potential there is not constant over ends."""
    tree, q = instance.tree, instance.sft_logits
    at_cut = 1.5 * instance.normal(tree.mdp.num_ends) + 1.0
    at_cut[0] = 0.0  # after EOS
    reward, potential = instance.table(), instance.normal(tree.mdp.num_states)
    plain = exact.soft_optimum(tree.mdp, reward).log_policy
    shaped = exact.shaped_rewards(tree.mdp, reward, potential, final=at_cut)
    moved = exact.soft_optimum(tree.mdp, shaped).log_policy
    restored = exact.soft_optimum(tree.mdp, shaped, final=-at_cut).log_policy
    tv = mdp.sequence_tv(tree, moved, plain)
    tally.differs("truncation, Φ(cut) ≠ 0: TV", tv)
    tally.equal("truncation, with -Φ(cut) as value of the cut: policy stays", restored, plain)
    # the same for the reward read from logits, whose V at the cut is the model's own
    read = exact.inverse_soft_bellman(tree.mdp, q, final=at_cut)
    naive = exact.soft_optimum(tree.mdp, read).log_policy
    bootstrapped = exact.soft_optimum(tree.mdp, read, final=at_cut).log_policy
    tally.differs(
        "truncation, r = Q - V(s'), V(cut) ignored: TV to SFT", mdp.sequence_tv(tree, naive, instance.log_sft)
    )
    tally.equal("truncation, V(cut) paid at the cut: SFT policy", bootstrapped, instance.log_sft)
    return float(tv)
