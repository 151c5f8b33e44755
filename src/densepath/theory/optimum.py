"""Statement 5: the KL-regularised optimum in closed form, and which gradient estimates lead there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from densepath.core.logprobs import contrastive_logits
from densepath.records.theory import StatementResult
from densepath.theory import estimators, exact, mdp
from densepath.theory.estimators import BIASED, UNBIASED, Problem
from densepath.theory.fixed_points import resting_point
from densepath.theory.instances import Instance, instance_seed, make_instance, random_instances
from densepath.theory.tally import Tally

BETA = 0.5
ASCENT_STEPS = 300
ASCENT_RATE = 2.0
SAMPLED_BATCHES = 8000
WHITENED_BATCHES = (2, 4, 6)
ENUMERATED = ((3, 3, 1, 2), (2, 2, 2, 2), (2, 4, 1, 3))
"""(vocabulary, horizon, prompts, completions per prompt): every batch of these is enumerated."""


def optimum(seed: int = 0, instances: int = 12) -> StatementResult:
    """Check statement 5: closed form, ascent, every estimator exactly and by sampling."""
    tally = Tally()
    for instance in random_instances(5, seed, instances):
        _closed_form(tally, instance)
    curves = [_ascent(tally, make_instance(3, 2, 1, instance_seed(seed, 5, 1000 + i), spread=1.0)) for i in range(2)]
    problems = [_problem(seed, *size, number=i) for i, size in enumerate(ENUMERATED)]
    variances = [_unbiased(tally, problem, logits) for problem, logits in problems]
    biases = {name: _bias(tally, name, problems) for name in BIASED}
    _sampled(tally, seed)
    return StatementResult(
        number=5,
        key="optimum",
        title="π* ∝ π_SFT exp(Σ r̂/β) is the optimum, exact ascent reaches it, REINFORCE is unbiased",
        source="D (the algorithm: P)",
        assumes="γ = 1, KL inside the return, τ = 1 samples, divided by completions",
        method="all sequences; all batches of 2-4 enumerated; sampled mean within 5 standard errors",
        checks=tally.checks(),
        details={
            "ascent_gap": [curve.tolist() for curve in curves],
            "estimators": biases,
            "variance": variances,
            "variance_ratio_to_all_actions": [_ratios(row) for places in variances for row in places.values()],
            "whitening_by_batch": _whitening(seed),
            "sampled_batches": SAMPLED_BATCHES,
            "beta": BETA,
        },
    )


def _closed_form(tally: Tally, instance: Instance) -> None:
    tree = instance.tree
    reward = instance.dense_rewards
    total = mdp.gather_tokens(tree, reward).sum(dim=1)
    sft, ref = (mdp.sequence_logprobs(tree, table) for table in (instance.log_sft, instance.log_ref))
    for beta in (0.3, 1.0, 3.0):
        best = exact.soft_optimum(tree.mdp, reward, instance.log_sft, beta)
        found = mdp.sequence_logprobs(tree, best.log_policy)
        tally.equal("soft optimum = π_SFT exp(Σ r̂/β) / Z(x)", found, _normalised(tree, sft + total / beta))
        powers = (1 + 1 / beta) * sft - ref / beta
        tally.equal("= π_SFT^(1+1/β) π_ref^(-1/β) / Z(x)", found, _normalised(tree, powers))
        optimal = exact.regularised_return(tree.mdp, best.log_policy, reward, instance.log_sft, beta)
        tally.equal("its objective = E[V(s_0)]", optimal, tree.mdp.start @ best.v[: tree.mdp.layers[1]])
        other = exact.regularised_return(tree.mdp, instance.log_policy, reward, instance.log_sft, beta)
        tally.bounded("another policy's objective - the optimum's ≤ 0", other - optimal, 0.0)
        tally.equal(
            "what another policy lacks = β KL(it || π*)",
            optimal - other,
            beta * exact.sequence_kl(tree.mdp, instance.log_policy, best.log_policy),
        )
        # generalised on-policy distillation from pi_SFT: the same objective over beta, for any policy
        strength = 1 + 1 / beta
        distilled = exact.regularised_return(tree.mdp, instance.log_policy, strength * reward, instance.log_ref, 1.0)
        tally.equal("the objective = β (λ E[Σ r̂] - KL(π || π_ref)), λ = 1 + 1/β (G-OPD)", other, beta * distilled)
    # autograd and enumeration against the closed-form gradient
    logits = instance.policy_logits.clone().requires_grad_()
    value = exact.regularised_return(tree.mdp, logits.log_softmax(-1), reward, instance.log_sft, BETA)
    (by_autograd,) = torch.autograd.grad(value, logits)
    penalised = reward - BETA * (instance.log_policy - instance.log_sft)
    by_formula = exact.policy_gradient(tree.mdp, instance.log_policy, penalised)
    tally.equal("exact gradient: formula = autograd of the objective", by_formula, by_autograd)


def _normalised(tree: mdp.TokenTree, weights: Tensor) -> Tensor:
    """Log-probabilities from log-weights, normalised within each prompt."""
    for prompt in range(tree.mdp.start.shape[0]):
        of_prompt = tree.prompts == prompt
        total = torch.where(of_prompt, weights, -torch.inf).logsumexp(0)
        weights = torch.where(of_prompt, weights - total + tree.mdp.start[prompt].log(), weights)
    return weights


def _ascent(tally: Tally, instance: Instance) -> Tensor:
    """Plain ascent (its gap is returned) and natural ascent, both from the SFT policy, exact gradients."""
    mdp_, reward, log_sft = instance.tree.mdp, instance.dense_rewards, instance.log_sft
    best = exact.soft_optimum(mdp_, reward, log_sft, BETA)
    top = mdp_.start @ best.v[: mdp_.layers[1]]
    logits, gaps = log_sft.clone(), []
    for _ in range(ASCENT_STEPS):
        log_policy = logits.log_softmax(-1)
        penalised = reward - BETA * (log_policy - log_sft)
        gaps.append(top - exact.expected_return(mdp_, log_policy, penalised))
        logits = logits + ASCENT_RATE * exact.policy_gradient(mdp_, log_policy, penalised)
    curve = torch.stack(gaps)
    tally.bounded("plain exact ascent: the gap to the optimum never grows", curve.diff(), 1e-14)
    tally.bounded("plain exact ascent, 300 steps: gap left / first gap", curve[-1] / curve[0], 0.05)
    logits = instance.policy_logits
    for _ in range(mdp_.horizon + 1):
        log_policy = logits.log_softmax(-1)
        penalised = reward - BETA * (log_policy - log_sft)
        # natural gradient: the plain one over the visits and the policy, gradient / (d(s) pi(a|s))
        gradient = exact.policy_gradient(mdp_, log_policy, penalised)
        logits = log_policy + gradient / exact.occupancy(mdp_, log_policy) / BETA
    tally.equal("natural exact ascent, H + 1 steps: at the optimum", logits.log_softmax(-1), best.log_policy)
    at_best = exact.policy_gradient(mdp_, best.log_policy, reward - BETA * (best.log_policy - log_sft))
    tally.equal("exact gradient at the optimum is 0", at_best, torch.zeros_like(at_best))
    return curve


def _problem(
    seed: int, vocab: int, horizon: int, prompts: int, generations: int, number: int
) -> tuple[Problem, Tensor]:
    instance = make_instance(vocab, horizon, prompts, instance_seed(seed, 5, 2000 + number))
    # the prompts of a batch are given, so each weighs the same in the objective
    start = torch.full((prompts,), 1.0 / prompts, dtype=torch.float64)
    tree = replace(instance.tree, mdp=replace(instance.tree.mdp, start=start))
    return Problem.of(replace(instance, tree=tree), BETA, generations), instance.policy_logits


def _exact(problem: Problem, logits: Tensor) -> Tensor:
    log_policy = logits.log_softmax(-1)
    reward = problem.log_sft - problem.log_ref - problem.beta * (log_policy - problem.log_sft)
    return exact.policy_gradient(problem.tree.mdp, log_policy, reward)


def _unbiased(tally: Tally, problem: Problem, logits: Tensor) -> dict[str, dict[str, float]]:
    """Every estimator's expectation against the exact gradient; their exact variances are returned."""
    variances: dict[str, dict[str, float]] = {}
    for place, table in (("random policy", logits), ("SFT policy", problem.log_sft)):
        truth = _exact(problem, table)
        variances[place] = {}
        for name, variant in UNBIASED.items():
            mean, variance = estimators.moments(variant, problem, table)
            tally.equal(f"unbiased, all batches: {name}", mean, truth)
            variances[place][name] = float(variance)
    log_policy = logits.log_softmax(-1)
    tally.equal(
        "KL estimate of samples (k1) is unbiased",
        estimators.mean_kl_estimate(problem, log_policy),
        exact.sequence_kl(problem.tree.mdp, log_policy, problem.log_sft),
    )
    return variances


def _ratios(variances: dict[str, float]) -> dict[str, float]:
    """How many times the variance of the all-action estimate plain REINFORCE has, by baseline."""
    pairs = {
        "none": ("REINFORCE", "all actions"),
        "position_mean": ("REINFORCE, position mean", "all actions, position mean"),
        "leave_one_out": ("REINFORCE, leave one out", "all actions, leave one out"),
    }
    return {name: variances[plain] / variances[better] for name, (plain, better) in pairs.items()}


def _bias(tally: Tally, name: str, problems: list[tuple[Problem, Tensor]]) -> dict[str, Any]:
    """Bias of the gradient at random policies, and how far from the optimum the estimator comes to rest."""
    relative, turned = [], []
    for problem, logits in problems:
        truth = _exact(problem, logits).flatten()
        mean = estimators.expected_gradient(BIASED[name], problem, logits).flatten()
        relative.append(float((mean - truth).norm() / truth.norm()))
        turned.append(float(1 - torch.cosine_similarity(mean, truth, dim=0)))
    tally.differs(f"biased: {name}: |bias| / |gradient|", max(relative))
    measured: dict[str, Any] = {"relative_bias": relative, "one_minus_cosine": turned}
    problem, _ = problems[0]
    best = exact.soft_optimum(problem.tree.mdp, problem.log_sft - problem.log_ref, problem.log_sft, BETA)
    at_best = estimators.expected_gradient(BIASED[name], problem, best.log_policy)
    measured["gradient_at_the_optimum"] = float(at_best.norm())
    if BIASED[name].estimator.whiten:
        return measured  # dividing by a spread that vanishes makes it jump: no point of rest to solve for
    rest = resting_point(name, problem)
    residual = estimators.expected_gradient(BIASED[name], problem, rest)
    tally.equal(f"at rest where said: {name}", residual, torch.zeros_like(residual))
    if name == "γ = 0":
        local = contrastive_logits(problem.log_sft, problem.log_ref, 1 / BETA).log_softmax(-1)
        tally.equal("γ = 0 rests at token-by-token contrastive sampling, α = 1/β", rest, local)
    measured["tv_of_resting_point"] = float(mdp.sequence_tv(problem.tree, rest, best.log_policy))
    return measured


def _whitening(seed: int) -> dict[str, dict[str, float]]:
    """|expected update at the optimum| / |at the SFT policy| by batch size: whether whitening moves the optimum."""
    table: dict[str, dict[str, float]] = {}
    for name in ("whitening, KL in the return", "whitening, KL as a loss"):
        table[name] = {}
        for size in WHITENED_BATCHES:
            problem, _ = _problem(seed, 2, 3, 1, size, number=50)
            best = exact.soft_optimum(problem.tree.mdp, problem.log_sft - problem.log_ref, problem.log_sft, BETA)
            there, here = (
                estimators.expected_gradient(BIASED[name], problem, log_policy).norm()
                for log_policy in (best.log_policy, problem.log_sft)
            )
            table[name][str(size)] = float(there / here)
    return table


def _sampled(tally: Tally, seed: int) -> None:
    problem, logits = _problem(seed, 3, 3, 2, 2, number=100)
    truth = _exact(problem, logits)
    generator = torch.Generator().manual_seed(instance_seed(seed, 5, 3000))
    for variant in UNBIASED.values():
        z = estimators.sampled_z_scores(variant, problem, logits, truth, SAMPLED_BATCHES, generator)
        tally.sampled("unbiased, sampled: largest |z| of all estimators", z)
    z = estimators.sampled_z_scores(
        BIASED["KL as a loss per state"], problem, logits, truth, SAMPLED_BATCHES, generator
    )
    tally.differs("sampling sees the bias of the KL as a loss per state: |z|", z.abs().max(), floor=8.0)
