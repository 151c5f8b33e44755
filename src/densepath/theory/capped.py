"""Statement 11: the capped reward, its dense form, its optimum, and how much any event can grow under it."""

from __future__ import annotations

import torch
from torch import Tensor

from densepath.core import mixture, objective, returns
from densepath.records.theory import StatementResult
from densepath.theory import exact, mdp
from densepath.theory.instances import Instance, random_instances, rare_habit
from densepath.theory.mdp import TokenTree
from densepath.theory.posterior import sequence_log_ratios
from densepath.theory.subtractive import state_log_ratios
from densepath.theory.tally import Tally

SETTINGS = ((0.0, 1.0, 1.0), (0.0, 8.0, 1.0), (0.5, 2.0, 0.5), (-0.5, 2.0, 1.0))
"""(cap κ, scale α, β)."""

BETAS = (4.0, 2.0, 1.0, 0.5, 0.25)
ROUNDING = 1e-12


def capped(seed: int = 0, instances: int = 12) -> StatementResult:
    """Check statement 11: telescoping, gradient and estimators, closed-form optimum, bounds, limit, caps on tokens."""
    tally = Tally()
    growths = []
    for instance in random_instances(11, seed, instances):
        for cap, scale, beta in SETTINGS:
            dense = _dense(tally, instance, cap, scale)
            _optimum(tally, instance, dense, cap, scale, beta)
            _gradient(tally, instance, dense, cap, scale, beta)
        _limit(tally, instance)
        _per_token(tally, instance)
        growths.append(_growth(tally, instance))
    rare = rare_habit()
    best = exact.soft_optimum(rare.tree.mdp, rare.dense_rewards, rare.log_sft, 1.0).log_policy
    tally.differs("without a cap, of a rare token: log π*/π_SFT - α/β", (best - rare.log_sft).max() - 1)
    return StatementResult(
        number=11,
        key="capped",
        title="reward α min(0, R - κ): π* ∝ π_SFT min(1, e^(α(R-κ)/β)), and π*(A) ≤ π_SFT(A)/Z for every event A",
        source="D",
        assumes="KL inside the return, γ = 1; the cap on the sequence, not on its tokens",
        method="all sequences; soft optimum, gradient and estimates of the dense form against the sequence's",
        checks=tally.checks(),
        details={"betas": list(BETAS), "largest_log_growth": growths},
    )


def _table(tree: TokenTree, per_token: Tensor) -> Tensor:
    """Per-token values of all sequences as a (states, actions) table."""
    table = per_token.new_zeros(tree.mdp.num_states, tree.mdp.num_actions)
    table[tree.states[tree.mask], tree.sequences[tree.mask]] = per_token[tree.mask]
    return table


def _capped(ratios: Tensor, cap: float, scale: float) -> Tensor:
    """The sequence's reward, written once more."""
    return torch.where(ratios < cap, scale * (ratios - cap), 0.0)


def _dense(tally: Tally, instance: Instance, cap: float, scale: float) -> Tensor:
    """The dense form as a table; it is one, it sums to the sequence's reward, and it is known for every action."""
    tree = instance.tree
    tokens, ratios = sequence_log_ratios(tree, instance.log_sft, instance.log_ref)
    per_token = mixture.capped_rewards(tokens, tree.mask, cap, scale)
    table = _table(tree, per_token)
    tally.equal("dense form: a function of state and action", mdp.gather_tokens(tree, table), per_token)
    tally.equal("dense form: sums to α min(0, R - κ)", per_token.sum(dim=1), _capped(ratios, cap, scale))
    before, first = state_log_ratios(tree, tokens).unsqueeze(1), (tree.mdp.depths == 0).unsqueeze(1)
    everything = mixture.capped_increments(instance.dense_rewards, before, first, cap, scale)
    tally.equal("dense form: of every action in every state", everything, table)
    return table


def _by_prompt(tree: TokenTree, values: Tensor) -> Tensor:
    """Sum of the sequences' values over each prompt, on each of its sequences."""
    return values.new_zeros(tree.mdp.start.shape[0]).index_add(0, tree.prompts, values)[tree.prompts]


def _optimum(tally: Tally, instance: Instance, dense: Tensor, cap: float, scale: float, beta: float) -> None:
    tree = instance.tree
    log_sft, log_ref = (mdp.sequence_logprobs(tree, table) for table in (instance.log_sft, instance.log_ref))
    sft, ref = log_sft.exp(), log_ref.exp()
    weights = mixture.capped_weights(log_sft - log_ref, cap, scale, beta)
    start = tree.mdp.start[tree.prompts]
    z = _by_prompt(tree, sft * weights) / start
    best = exact.soft_optimum(tree.mdp, dense, instance.log_sft, beta).log_policy
    found = mdp.sequence_logprobs(tree, best).exp()
    by_hand = sft * ((sft / ref) / torch.tensor(cap).double().exp()).pow(scale / beta).clamp(max=1)
    tally.equal(
        "soft optimum of the dense form = π_SFT min(1, e^(α(R-κ)/β)) / Z",
        found,
        by_hand * start / _by_prompt(tree, by_hand),
    )
    tally.bounded("log π*/π_SFT + log Z ≤ 0, hence π*(A) ≤ π_SFT(A)/Z", (found / sft * z).log(), ROUNDING)
    reached = sft / ref >= torch.tensor(cap).double().exp()
    tally.equal("R ≥ κ: grows by exactly 1/Z", torch.where(reached, found * z / sft, 1.0), torch.ones_like(sft))
    kept = _by_prompt(tree, sft * reached) / start
    tally.bounded("P_SFT(R ≥ κ) - Z ≤ 0", kept - z, ROUNDING)
    stick = _by_prompt(tree, (torch.tensor(cap).double().exp() * ref - sft).clamp(min=0)) / start
    tally.bounded("exp(-α/β Σ max(0, e^κ π_ref - π_SFT)) - Z ≤ 0", (-scale / beta * stick).exp() - z, ROUNDING)
    if cap <= 0:
        filtered = torch.where(reached, sft / kept, 0.0)
        distance = (found - filtered).abs().sum() / 2
        lost = tree.mdp.start.sum() - (sft * reached / z).sum()
        tally.equal("TV to π_SFT given R ≥ κ = 1 - P_SFT(R ≥ κ)/Z", distance, lost)


def _gradient(tally: Tally, instance: Instance, dense: Tensor, cap: float, scale: float, beta: float) -> None:
    """Objective of the sequence's reward by enumeration; exact and estimated gradients of the dense form."""
    tree = instance.tree
    _, ratios = sequence_log_ratios(tree, instance.log_sft, instance.log_ref)
    logits = instance.policy_logits.clone().requires_grad_()
    log_policy = logits.log_softmax(-1)
    log_p, log_sft = (mdp.sequence_logprobs(tree, table) for table in (log_policy, instance.log_sft))
    value = (log_p.exp() * (_capped(ratios, cap, scale) - beta * (log_p - log_sft))).sum()
    (truth,) = torch.autograd.grad(value, logits)
    fixed = log_policy.detach()
    action_rewards = dense - beta * (fixed - instance.log_sft)
    tally.equal(
        "exact gradient: dense form = sequence's", exact.policy_gradient(tree.mdp, fixed, action_rewards), truth
    )
    # estimates from one completion, weighed by its probability and summed: their expectation
    often = log_p.detach().exp().unsqueeze(1)
    per_token, mask = mdp.gather_tokens(tree, action_rewards), tree.mask
    for name, to_go in (
        ("REINFORCE, returns-to-go of the dense form", returns.returns_to_go(per_token, mask)),
        ("REINFORCE, the sequence's return on every token", returns.sequence_returns(per_token, mask)),
    ):
        taken = mdp.gather_tokens(tree, logits.log_softmax(-1))
        loss = objective.reinforce_loss(taken, often * to_go, mask, 1.0)[0]
        tally.equal(f"unbiased: {name}", -torch.autograd.grad(loss, logits)[0], truth)
    log_dist = logits.log_softmax(-1)
    expected = objective.expected_rewards(log_dist, action_rewards)[tree.states]
    later = returns.returns_after(expected.detach(), mask)
    taken = mdp.gather_tokens(tree, log_dist)
    loss = objective.all_action_loss(taken, often * expected, often * later, mask, 1.0)[0]
    tally.equal("unbiased: all actions", -torch.autograd.grad(loss, logits)[0], truth)


def _limit(tally: Tally, instance: Instance) -> None:
    """β → 0: SFT's own distribution, given that R reaches the cap."""
    tree = instance.tree
    tokens, ratios = sequence_log_ratios(tree, instance.log_sft, instance.log_ref)
    gap = -ratios[ratios < 0].max()
    table = _table(tree, mixture.capped_rewards(tokens, tree.mask, 0.0))
    best = exact.soft_optimum(tree.mdp, table, instance.log_sft, float(gap) / 50).log_policy
    sft = mdp.sequence_logprobs(tree, instance.log_sft).exp()
    kept = sft * mixture.capped_weights(ratios, 0.0, 1.0, 0.0)
    filtered = kept / _by_prompt(tree, kept) * tree.mdp.start[tree.prompts]
    distance = (mdp.sequence_logprobs(tree, best).exp() - filtered).abs().sum() / 2
    tally.bounded("β → 0: TV to π_SFT given R ≥ κ", distance, 1e-6)


def _per_token(tally: Tally, instance: Instance) -> None:
    """A cap on each token's reward has another optimum, and lowers answers whose R is above it."""
    tree, log_sft = instance.tree, instance.log_sft
    tokens, ratios = sequence_log_ratios(tree, log_sft, instance.log_ref)
    table = _table(tree, mixture.capped_rewards(tokens, tree.mask, 0.0))
    best, other = (
        exact.soft_optimum(tree.mdp, dense, log_sft, 0.5).log_policy
        for dense in (table, instance.dense_rewards.clamp(max=0.0))
    )
    tally.differs("cap on each token: TV to π*", mdp.sequence_tv(tree, best, other))
    growth, wrong = (mdp.sequence_logprobs(tree, p) - mdp.sequence_logprobs(tree, log_sft) for p in (best, other))
    tally.bounded("cap on the sequence: what R ≥ κ loses ≤ 0", -growth[ratios >= 0], ROUNDING)
    tally.differs("cap on each token: the most that R ≥ κ loses, nats", (-wrong[ratios >= 0]).max())


def _growth(tally: Tally, instance: Instance) -> dict[str, list[float]]:
    """Largest log growth of a sequence by β, with κ = 0 and α = 1, and without a cap."""
    tree, log_sft = instance.tree, instance.log_sft
    tokens, _ = sequence_log_ratios(tree, log_sft, instance.log_ref)
    table = _table(tree, mixture.capped_rewards(tokens, tree.mask, 0.0))
    growths: dict[str, list[float]] = {"capped": [], "uncapped": []}
    prior = mdp.sequence_logprobs(tree, log_sft)
    for beta in BETAS:
        for name, dense in (("capped", table), ("uncapped", instance.dense_rewards)):
            best = exact.soft_optimum(tree.mdp, dense, log_sft, beta).log_policy
            growths[name].append(float((mdp.sequence_logprobs(tree, best) - prior).max()))
        tally.bounded("κ = 0: log π*/π_SFT - α/β ≤ 0", torch.tensor(growths["capped"][-1]) - 1 / beta, ROUNDING)
    return growths
