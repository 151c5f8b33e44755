"""Statement 9: R is the log-lift of an answer's behaviour, and `1 - c e^-R` the posterior that it is new."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from densepath.core import mixture, rewards
from densepath.core.masks import masked_sum
from densepath.records.theory import StatementResult
from densepath.theory import exact, mdp
from densepath.theory.instances import Instance, disjoint_mixture, overlapping_mixture, random_instances
from densepath.theory.mdp import TokenTree
from densepath.theory.tally import Tally

BETA = 0.5
EM_ROUNDS = 30
CUT_SHARES = (0.8, 1.0)
"""Values of c that are too large for most instances, and for all: the posterior is cut at 0."""

ROUNDING = 1e-12


def posterior(seed: int = 0, instances: int = 12) -> StatementResult:
    """Check statement 9: behaviours apart, behaviours that overlap, the posterior of sequences and prefixes."""
    tally = Tally()
    lifts_off = []
    for instance in random_instances(9, seed, instances):
        _apart(tally, instance)
        lifts_off.append(_overlapping(tally, instance))
        _posterior(tally, instance)
        _cut(tally, instance)
    return StatementResult(
        number=9,
        key="posterior",
        title="R(y) is the log-lift of y's behaviour, max(0, 1 - c e^-R) the posterior that it is not the reference's",
        source="D",
        assumes="behaviours that share no sequence (lift); π_SFT = c π_ref + (1-c) π_E (posterior)",
        method="planted mixtures, Bayes over all sequences and prefixes",
        checks=tally.checks(),
        details={"lift_off_when_behaviours_overlap": lifts_off, "em_rounds": EM_ROUNDS},
    )


def sequence_log_ratios(tree: TokenTree, log_sft: Tensor, log_ref: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards (sequences, horizon) along every sequence, and their sum R (sequences,)."""
    sft, ref = (mdp.gather_tokens(tree, table) for table in (log_sft, log_ref))
    dense = rewards.baseline_relative(sft, ref, tree.mask)
    return dense, masked_sum(dense, tree.mask, dim=1)


def _population_shares(tree: TokenTree, log_policy: Tensor, responsibilities: Tensor) -> Tensor:
    """Shares among all sequences, each as often as its probability."""
    often = mdp.sequence_logprobs(tree, log_policy).exp() * len(responsibilities)
    return mixture.mean_shares(responsibilities * often.unsqueeze(1))


def _apart(tally: Tally, instance: Instance) -> None:
    planted = disjoint_mixture(instance)
    tree, log_sft, log_ref = planted.tree, planted.log_sft, planted.log_ref
    owner = planted.behaviours.argmax(dim=0)  # -inf under all the others
    lift = (planted.sft_shares / planted.ref_shares).log()
    _, ratios = sequence_log_ratios(tree, log_sft, log_ref)
    tally.equal("apart: R(y) = log ρ_k/ρ⁰_k of y's behaviour k", ratios, lift[owner])
    for shares in (torch.zeros_like(lift), instance.normal(len(lift))):
        found = mixture.responsibilities(planted.behaviours.T, shares)
        truth = torch.nn.functional.one_hot(owner, len(lift)).double()
        tally.equal("apart: one E step, any shares: who wrote what", found, truth)
    of_sft, of_ref = (_population_shares(tree, policy, found) for policy in (log_sft, log_ref))
    tally.equal("apart: shares found = planted", of_sft, planted.sft_shares)
    tally.equal("apart: lift found = R", mixture.lifts(of_sft, of_ref)[owner], ratios)
    best = exact.soft_optimum(tree.mdp, log_sft - log_ref, log_sft, BETA).log_policy
    powers = planted.sft_shares * (lift / BETA).exp()
    chances = mdp.sequence_logprobs(tree, best).exp()
    tally.equal("apart: DPR's optimum has shares ∝ ρ_k (ρ_k/ρ⁰_k)^(1/β)", chances @ truth, powers / powers.sum())


def _overlapping(tally: Tally, instance: Instance) -> float:
    """The E step is Bayes' rule, EM for the shares converges; returns how far one step misses the lifts."""
    planted = overlapping_mixture(instance)
    tree, log_sft, shares = planted.tree, planted.log_sft, planted.sft_shares
    log_joint = planted.behaviours + shares.log().unsqueeze(1)
    joint = log_joint.exp()
    found = mixture.responsibilities(planted.behaviours.T, shares.log())
    tally.equal("overlapping: E step = Bayes' posterior", found, (joint / joint.sum(dim=0)).T)
    tally.equal("overlapping: the true shares stay", _population_shares(tree, log_sft, found), shares)
    lift = mixture.lifts(shares, _population_shares(tree, planted.log_ref, found))
    off = (lift - (shares / planted.ref_shares).log()).abs().max()
    tally.differs("overlapping: one E step with ρ on the reference's samples: lift is off", off)
    chances = mdp.sequence_logprobs(tree, log_sft).exp()
    guess = torch.full_like(shares, 1 / len(shares))
    divergence = torch.full((), torch.inf, dtype=torch.float64)
    for _ in range(EM_ROUNDS):
        before = guess
        log_guess = (planted.behaviours + before.log().unsqueeze(1)).logsumexp(dim=0)
        found = mixture.responsibilities(planted.behaviours.T, before.log())
        guess = _population_shares(tree, log_sft, found)
        earlier, divergence = divergence, chances @ (log_joint.logsumexp(dim=0) - log_guess)
        tally.bounded("EM: what KL(π_SFT || π_n) rises by ≤ 0", divergence - earlier, ROUNDING)
        nearer = shares @ (guess / before).log()
        tally.bounded("EM: KL(π_SFT || π_n) - what KL(ρ || ρ_n) falls by ≤ 0", divergence - nearer, ROUNDING)
    rate = divergence * EM_ROUNDS / math.log(len(shares))
    tally.bounded("EM: last KL(π_SFT || π_n) · rounds / log K ≤ 1", rate, 1.0)
    return float(off)


def _posterior(tally: Tally, instance: Instance) -> None:
    """The reference's doing and another policy's, mixed."""
    tree, log_ref, log_new = instance.tree, instance.log_ref, instance.log_policy
    share = float(torch.rand(1, dtype=torch.float64, generator=instance.generator) * 0.8 + 0.1)
    old, new = (mdp.sequence_logprobs(tree, table).exp() for table in (log_ref, log_new))
    log_sft = mdp.token_policy(tree, (share * old + (1 - share) * new).log())
    dense, ratios = sequence_log_ratios(tree, log_sft, log_ref)
    bayes = (1 - share) * new / (share * old + (1 - share) * new)
    tally.equal("π_SFT = c π_ref + (1-c) π_E: posterior of y", mixture.bounded_posterior(ratios, share), bayes)
    old, new = (exact.occupancy(tree.mdp, table) for table in (log_ref, log_new))  # probability of each prefix
    bayes = mdp.gather_tokens(tree, (1 - share) * new / (share * old + (1 - share) * new))
    tally.equal("and of every prefix", mixture.prefix_posteriors(dense, tree.mask, share), bayes)
    mean = mdp.sequence_logprobs(tree, log_sft).exp() @ mixture.bounded_posterior(ratios, share)
    tally.equal("its mean over SFT's samples = 1 - c", mean, torch.full_like(mean, 1 - share))


def _cut(tally: Tally, instance: Instance) -> None:
    """Any two models and any c: bounded, and a prefix's value is at most the mean of what it leads to."""
    tree = instance.tree
    dense, ratios = sequence_log_ratios(tree, instance.log_sft, instance.log_ref)
    chances = mdp.sequence_logprobs(tree, instance.log_sft).exp()
    for share in CUT_SHARES:
        weights = mixture.bounded_posterior(ratios, share)
        tally.bounded("any c: w ≤ 1", weights, 1.0)
        above = chances * mixture.excess_weights(ratios, math.log(2 * share))
        twice = 2 * share * mdp.sequence_logprobs(tree, instance.log_ref).exp()
        tally.equal("any c, above 1 too: π_SFT w = max(0, π_SFT - c π_ref)", above, (chances - twice).clamp(min=0))
        tally.bounded("any c: 1 - c - E_SFT[w] ≤ 0", 1 - share - chances @ weights, ROUNDING)
        led_to = _passing(tree, chances * weights) / _passing(tree, chances)
        gap = mdp.gather_tokens(tree, led_to) - mixture.prefix_posteriors(dense, tree.mask, share)
        tally.bounded("any c: w of a prefix - mean w of its sequences ≤ 0", -gap, ROUNDING)
        tally.differs("where it is cut: the mean is larger by", gap.max())


def _passing(tree: TokenTree, values: Tensor) -> Tensor:
    """Sum of the sequences' values over those that pass through each state and action."""
    table = values.new_zeros(tree.mdp.num_states, tree.mdp.num_actions)
    return table.index_put((tree.states, tree.sequences), values.unsqueeze(1) * tree.mask, accumulate=True)
