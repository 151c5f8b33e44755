"""Every check can fail: faults are planted in the functions under test, and the verdict turns.

Each row names the statement, what is replaced, by what, and a check that must see it.
"""

from dataclasses import replace

import pytest
import torch

from densepath.core import bounds, conjugate, exact, mdp, objective, returns, rewards
from densepath.theory import (
    contraction,
    contrastive,
    estimators,
    inverse_bellman,
    optimum,
    sft_is_iq_learn,
)
from densepath.theory.records import Verdict
from densepath.theory.runner import STATEMENTS

REAL_TREE = mdp.token_tree


def negated(real):
    return lambda *a, **k: -real(*a, **k)


def negated_loss(real):
    return lambda *a, **k: (-real(*a, **k)[0], {})


def dropped_eos(real):
    """A tree whose mask leaves the EOS out, as a trainer does that takes EOS for padding."""

    def build(*a, **k):
        tree = real(*a, **k)
        return tree if tree.eos is None else replace(tree, mask=tree.mask & (tree.sequences != tree.eos))

    return build


def stochastic(real):
    """A tree that believes itself deterministic over transitions that slip."""

    def build(*a, **k):
        tree = real(*a, **k)
        return replace(tree, mdp=mdp.slippery(tree.mdp, 0.3)) if tree.mdp.next_states.shape[2] == 1 else tree

    return build


def discounted(real):
    """A function of two arguments and gamma, with a discount nobody asked for."""
    return lambda left, right, gamma=1.0: real(left, right, 0.9 * gamma)


def discounted_objective(real):
    return lambda m, q, occupancy, gamma=1.0, **k: real(m, q, occupancy, 0.9 * gamma, **k)


def swapped(real):
    return lambda left, right, *rest, **k: real(right, left, *rest, **k)


def averaged(real):
    return lambda logprobs, mask, normalizer=1.0: real(logprobs, mask, normalizer=mask.sum())


def scaled(real, factor):
    return lambda *a, **k: factor * real(*a, **k)


def plain(value):
    return lambda real: value


def own_in_baseline(real):
    """The mean over all completions, the own included: it depends on the own action."""

    def call(values, mask):
        kept = torch.where(mask, values, torch.zeros_like(values))
        return kept.sum(0, keepdim=True) / mask.sum(0, keepdim=True).clamp(min=1) * mask

    return call


def future_in_baseline(real):
    return lambda values, mask, n: real(values, mask, n) + 0.3 * values


def no_kl(real):
    return lambda rewards_, policy, sft, beta, mask: real(rewards_, policy, sft, 0.0, mask)


def wrong_kl_sign(real):
    return lambda rewards_, policy, sft, beta, mask: real(rewards_, 2 * sft - policy, sft, beta, mask)


def first_reward_lost(real):
    return lambda dense, mask, gamma=1.0: real(dense, mask, gamma) - dense * mask


def gradient_in_rewards(real):
    """Rewards that carry the gradient of log pi_theta along."""
    return lambda log_dist, action_rewards: (log_dist.exp() * (action_rewards - log_dist + log_dist.detach() * 2)).sum(
        -1
    )


def terminal_value_kept(real):
    """V after EOS taken from the model instead of 0."""
    return lambda logits, values, mask, terminated: real(logits, values + 0.5, mask, torch.zeros_like(terminated))


def cut_has_a_value(real):
    """A shaping that pays a potential at every end but EOS."""

    def call(mdp_, reward, potential, gamma=1.0, final=None):
        ends = torch.linspace(0, 1, mdp_.num_ends, dtype=torch.float64)
        return real(mdp_, reward, potential, gamma, ends if final is None else final)

    return call


PLANTS = [
    # 1
    ("sft-is-iq-learn", conjugate, "iq_objective", negated, "whole distribution: value"),
    ("sft-is-iq-learn", conjugate, "iq_objective", discounted_objective, "whole distribution: gradient"),
    ("sft-is-iq-learn", mdp, "token_tree", dropped_eos, "whole distribution: value"),
    ("sft-is-iq-learn", mdp, "token_tree", dropped_eos, "set of demonstrations: gradient"),
    ("sft-is-iq-learn", mdp, "slippery", plain(lambda m, slip: m), "demonstrations: value is off"),
    ("sft-is-iq-learn", objective, "sft_loss", averaged, "whole distribution: value"),
    ("sft-is-iq-learn", objective, "sft_loss", negated_loss, "γ^t: gradient"),
    ("sft-is-iq-learn", sft_is_iq_learn, "GAMMA", plain(1.0), "ordinary SFT: value is off"),
    ("sft-is-iq-learn", sft_is_iq_learn, "SLIP", plain(0.0), "demonstrations: gradient is off"),
    ("sft-is-iq-learn", conjugate, "inverse_soft_bellman", negated, "whole distribution: value"),
    # 2
    ("inverse-bellman", exact, "inverse_soft_bellman", negated, "is Q"),
    (
        "inverse-bellman",
        exact,
        "inverse_soft_bellman",
        lambda real: lambda m, q, gamma=1.0, final=None: real(m, q, 0.95 * gamma, final),
        "soft-optimal policy is",
    ),
    ("inverse-bellman", rewards, "inverse_bellman", terminal_value_kept, "token reading = table"),
    ("inverse-bellman", mdp, "token_tree", dropped_eos, "sum of r"),
    ("inverse-bellman", rewards, "logprob", negated, "log π_SFT = r"),
    ("inverse-bellman", inverse_bellman, "SLIP", plain(0.0), "for the s' that happened"),
    # 3
    (
        "shaping",
        exact,
        "shaped_rewards",
        lambda real: lambda m, r, p, gamma=1.0, final=None: real(m, r, -p, gamma, final),
        "values shift",
    ),
    (
        "shaping",
        exact,
        "shaped_rewards",
        lambda real: lambda m, r, p, gamma=1.0, final=None: real(m, r, p, 0.9, final),
        "soft-optimal policy stays",
    ),
    ("shaping", exact, "shaped_rewards", cut_has_a_value, "soft-optimal policy stays"),
    ("shaping", exact, "shaped_rewards", cut_has_a_value, "gradient stays"),
    (
        "shaping",
        exact,
        "soft_optimum",
        lambda real: lambda m, r, *a, **k: real(m, r, *a, **{**k, "final": None}),
        "-Φ(cut) as value",
    ),
    # 4
    ("length", rewards, "baseline_relative", swapped, "every state"),
    ("length", rewards, "logprob", negated, "-entropy"),
    ("length", mdp, "token_tree", dropped_eos, "KL of the sequences"),
    ("length", exact, "sequence_kl", lambda real: lambda m, p, q: real(m, q, p), "KL of the sequences"),
    (
        "length",
        exact,
        "soft_optimum",
        lambda real: lambda m, r, prior, beta: real(m, -r, prior, beta),
        "log π*(EOS|s)",
    ),
    # 5
    ("optimum", objective, "reinforce_loss", negated_loss, "REINFORCE"),
    ("optimum", returns, "returns_to_go", discounted, "all batches: REINFORCE"),
    ("optimum", returns, "returns_to_go", first_reward_lost, "all batches: REINFORCE"),
    ("optimum", returns, "position_mean_baseline", own_in_baseline, "position mean"),
    ("optimum", returns, "leave_one_out_baseline", future_in_baseline, "leave one out"),
    ("optimum", returns, "kl_penalised_rewards", no_kl, "all batches: REINFORCE"),
    ("optimum", returns, "kl_penalised_rewards", wrong_kl_sign, "sampled"),
    ("optimum", returns, "returns_after", discounted, "all actions"),
    ("optimum", objective, "expected_rewards", gradient_in_rewards, "all actions"),
    ("optimum", rewards, "baseline_relative", swapped, "sampled"),
    ("optimum", mdp, "token_tree", dropped_eos, "all batches: REINFORCE"),
    ("optimum", mdp, "token_tree", stochastic, "π_SFT exp(Σ r̂/β)"),
    ("optimum", exact, "policy_gradient", lambda real: scaled(real, 1.1), "autograd"),
    (
        "optimum",
        exact,
        "soft_optimum",
        lambda real: lambda m, r, prior, beta, *a: real(m, r, prior, 1.1 * beta, *a),
        "E[V(s_0)]",
    ),
    (
        "optimum",
        exact,
        "state_loss_fixed_point",
        lambda real: lambda m, r, p, b: exact.soft_optimum(m, r, p, b).log_policy,
        "at rest where said: KL",
    ),
    (
        "optimum",
        optimum,
        "BIASED",
        lambda real: {**real, "KL as a loss per state": estimators.Estimator()},
        "biased: KL as a loss",
    ),
    ("optimum", optimum, "contrastive_logits", swapped, "γ = 0 rests"),
    # 6
    ("reward-error", bounds, "log_policy_error_bound", lambda real: scaled(real, 0.5), "share of the policy bound"),
    ("reward-error", bounds, "value_error_bound", lambda real: scaled(real, 0.9), "share of the value bound"),
    ("reward-error", bounds, "value_error_bound", lambda real: scaled(real, 3.0), "value bound is tight"),
    (
        "reward-error",
        bounds,
        "return_gap_as_kl",
        lambda real: lambda m, best, other, beta: real(m, other, best, beta),
        "return gap =",
    ),
    (
        "reward-error",
        exact,
        "soft_optimum",
        lambda real: lambda m, r, prior, beta: real(m, 3 * r, prior, beta),
        "|Δ log π|",
    ),
    # 7
    ("contraction", conjugate, "quadratic_reward", lambda real: scaled(real, 1.2), "quadratic: Lipschitz"),
    ("contraction", conjugate, "quadratic_reward", lambda real: scaled(real, 0.8), "in every pair"),
    ("contraction", conjugate, "quadratic_reward", negated, "maximises"),
    ("contraction", contraction, "KAPPA", plain(0.0), "does not attain"),
    ("contraction", conjugate, "chi_square", plain(lambda r, strength: r), "clash"),
    # 8
    (
        "contrastive",
        contrastive,
        "contrastive_logits",
        lambda real: lambda s, r, alpha: real(s, r, 0.5 * alpha),
        "H = 1",
    ),
    ("contrastive", contrastive, "contrastive_logits", swapped, "log π*(y)"),
    ("contrastive", mdp, "token_tree", dropped_eos, "log π*(y)"),
    (
        "contrastive",
        exact,
        "soft_optimum",
        lambda real: lambda m, r, prior, beta: real(m, r, prior, beta, 0.0),
        "α = 2: TV",
    ),
]


@pytest.mark.parametrize(("key", "where", "name", "fault", "seen_by"), PLANTS)
def test_planted_fault_turns_the_verdict(key, where, name, fault, seen_by, monkeypatch, small_settings):
    monkeypatch.setattr(where, name, fault(getattr(where, name)))
    result = STATEMENTS[key](5, 3)
    failed = [check.name for check in result.checks if check.verdict is Verdict.FAILS]
    assert result.verdict is Verdict.FAILS
    assert any(seen_by in check for check in failed), failed


def test_every_statement_has_plants():
    assert {row[0] for row in PLANTS} == set(STATEMENTS)
    assert mdp.token_tree is REAL_TREE
