"""Every check can fail: faults are planted in the functions under test, and the verdict turns.

Each row names the statement, what is replaced, by what, and a check that must see it.
"""

from dataclasses import replace

import pytest
import torch

from densepath.core import mixture, objective, returns, rewards
from densepath.theory import (
    bounds,
    conjugate,
    contraction,
    contrastive,
    estimators,
    exact,
    inverse_bellman,
    mdp,
    optimum,
    posterior,
    sft_is_iq_learn,
    subtractive,
)
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


def uncut(real):
    """The posterior without its max: below 0 where the reference is likelier."""
    return lambda ratios, share: 1 - share * torch.exp(-ratios)


def of_the_whole(real):
    """Every prefix gets the posterior of its completion."""
    return lambda dense, mask, share: mixture.bounded_posterior((dense * mask).sum(1, keepdim=True), share) * mask


def shares_forgotten(real):
    return lambda likelihoods, log_shares: likelihoods.softmax(dim=1)


def hard(real):
    """Each answer given whole to its likeliest behaviour, as k-means does."""
    return lambda *a: torch.nn.functional.one_hot(real(*a).argmax(1), len(a[1])).double()


def past_forgotten(real):
    return lambda sft, ref, ratios, *rest: real(sft, ref, torch.zeros_like(ratios), *rest)


def one_token(real):
    """Completions of one token: nothing comes before it."""
    return lambda statement, seed, count: real(statement, seed, count, ((3, 1, 1),))


def past_turned(real):
    return lambda sft, ref, ratios, *rest: real(sft, ref, -ratios, *rest)


def floored(real):
    return lambda sft, ref, ratios, share, floor: real(sft, ref, ratios, share, max(floor, 0.7))


def unfloored_past(real):
    """Subtracts token by token, with no end: `pi_SFT^2 / pi_ref`, the log-space slip of a subtraction."""
    return lambda sft, ref, ratios, share, floor: ((1 + share) * sft - share * ref).log_softmax(-1)


def capped_tokens(real):
    """The cap on each token's reward instead of on the sum."""
    return lambda dense, mask, cap, scale=1.0: scale * (dense - cap).clamp(max=0) * mask


def at_the_end(real):
    """The whole reward on the last token that counts: right in its sum, but a function of more than the state."""

    def call(dense, mask, cap, scale=1.0):
        last = torch.arange(mask.shape[1]) == mask.sum(1, keepdim=True) - 1
        return last * scale * ((dense * mask).sum(1, keepdim=True) - cap).clamp(max=0)

    return call


def start_lost(real):
    """Plain differences, from the cap's own value at the start: they miss `scale min(0, -cap)`."""
    return lambda dense, ratios, first, *rest: real(dense, ratios, torch.zeros_like(first), *rest)


def sign_of_cap(real):
    return lambda ratios, cap, scale=1.0: real(ratios, -cap, scale)


def uncapped(real):
    return lambda ratios, cap, scale=1.0: scale * (ratios - cap)


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
        "regularised_return",
        lambda real: lambda m, p, r, prior, beta: real(m, p, r, prior, 0.5 * beta + 0.5),
        "G-OPD",
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
        lambda real: {**real, "KL as a loss per state": estimators.Variant(estimators.Estimator())},
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
    # 9
    ("posterior", rewards, "baseline_relative", swapped, "R(y) = log"),
    ("posterior", mdp, "token_tree", dropped_eos, "R(y) = log"),
    ("posterior", mixture, "lifts", swapped, "lift found = R"),
    ("posterior", mixture, "mean_shares", lambda real: lambda g: real(g).sqrt(), "shares found"),
    ("posterior", mixture, "mean_shares", lambda real: lambda g: real(g) * 0.9 + 0.03, "the true shares stay"),
    ("posterior", mixture, "mean_shares", lambda real: lambda g: real(g).flip(0), "what KL(ρ || ρ_n) falls by"),
    ("posterior", mixture, "responsibilities", shares_forgotten, "Bayes' posterior"),
    ("posterior", mixture, "responsibilities", shares_forgotten, "last KL"),
    ("posterior", mixture, "responsibilities", hard, "the true shares stay"),
    ("posterior", mixture, "responsibilities", lambda real: lambda *a: real(*a).roll(1, 1), "who wrote what"),
    ("posterior", mixture, "bounded_posterior", lambda real: lambda r, c: real(-r, c), "posterior of y"),
    ("posterior", mixture, "bounded_posterior", lambda real: scaled(real, 1.1), "w ≤ 1"),
    ("posterior", mixture, "bounded_posterior", lambda real: lambda r, c: 1 - c * real(-r, c), "mean over SFT"),
    ("posterior", mixture, "bounded_posterior", uncut, "where it is cut"),
    ("posterior", mixture, "excess_weights", lambda real: lambda r, k: real(r, k - 0.5), "above 1 too"),
    ("posterior", mixture, "prefix_posteriors", of_the_whole, "every prefix"),
    ("posterior", mixture, "prefix_posteriors", of_the_whole, "w of a prefix"),
    ("posterior", posterior, "CUT_SHARES", plain((1e-9,)), "where it is cut"),
    (
        "posterior",
        exact,
        "soft_optimum",
        lambda real: lambda m, r, prior, beta: real(m, r, prior, 2 * beta),
        "DPR's optimum has shares",
    ),
    # 10
    ("subtractive", mixture, "subtractive_logprobs", past_forgotten, "decoded sequences"),
    ("subtractive", mixture, "subtractive_logprobs", past_turned, "decodes π_E"),
    ("subtractive", mixture, "subtractive_logprobs", floored, "decoded sequences"),
    ("subtractive", mixture, "subtractive_logprobs", unfloored_past, "any c: log p/π_SFT + log"),
    ("subtractive", mixture, "subtractive_logprobs", unfloored_past, "any c: log p/π_SFT - log max(w"),
    ("subtractive", mixture, "subtractive_logprobs", swapped, "c = 0"),
    ("subtractive", subtractive, "random_instances", one_token, "without the factor"),
    ("subtractive", mixture, "log_ratios_before", lambda real: mixture.log_ratios_so_far, "decodes π_E"),
    ("subtractive", mixture, "bounded_posterior", lambda real: lambda r, c: real(r, 0.5 * c), "w(y) / (1-c)"),
    ("subtractive", mdp, "token_tree", dropped_eos, "decodes π_E"),
    ("subtractive", subtractive, "SHARES", plain((0.0,)), "where it is cut"),
    ("subtractive", subtractive, "contrastive_logits", plain(lambda sft, ref, alpha: sft), "contrastive"),
    # 11
    ("capped", mixture, "capped_rewards", capped_tokens, "sums to α min"),
    ("capped", mixture, "capped_rewards", capped_tokens, "soft optimum of the dense form"),
    ("capped", mixture, "capped_rewards", capped_tokens, "what R ≥ κ loses ≤ 0"),
    ("capped", mixture, "capped_rewards", capped_tokens, "cap on each token: TV"),
    ("capped", mixture, "capped_rewards", at_the_end, "of every action"),
    ("capped", mixture, "capped_increments", start_lost, "sums to α min"),
    ("capped", mixture, "capped_returns", sign_of_cap, "sums to α min"),
    ("capped", mixture, "capped_returns", uncapped, "hence π*(A)"),
    ("capped", mixture, "capped_returns", uncapped, "κ = 0: log π*/π_SFT"),
    ("capped", mixture, "capped_weights", lambda real: scaled(real, 1.5), "hence π*(A)"),
    ("capped", mixture, "capped_weights", lambda real: scaled(real, 0.5), "P_SFT(R ≥ κ) - Z"),
    ("capped", mixture, "capped_weights", lambda real: lambda r, *a: real(r - 0.1, *a), "β → 0"),
    ("capped", mixture, "log_ratios_before", lambda real: mixture.log_ratios_so_far, "sums to α min"),
    ("capped", rewards, "baseline_relative", swapped, "soft optimum of the dense form"),
    ("capped", mdp, "token_tree", dropped_eos, "soft optimum of the dense form"),
    ("capped", returns, "returns_to_go", first_reward_lost, "returns-to-go of the dense form"),
    ("capped", returns, "sequence_returns", lambda real: returns.returns_after, "on every token"),
    ("capped", returns, "returns_after", discounted, "all actions"),
    ("capped", exact, "policy_gradient", lambda real: scaled(real, 1.1), "exact gradient"),
    (
        "capped",
        exact,
        "soft_optimum",
        lambda real: lambda m, r, prior, beta: real(m, r, prior, 1.1 * beta),
        "soft optimum of the dense form",
    ),
    (
        "capped",
        exact,
        "soft_optimum",
        lambda real: lambda m, r, prior, beta: real(m, r, prior, 10 * beta),
        "without a cap",
    ),
]


FIRST = {row[0]: number for number, row in reversed(list(enumerate(PLANTS)))}
EACH = [
    pytest.param(*row, marks=() if FIRST[row[0]] == number or number % 3 == 0 else pytest.mark.slow)
    for number, row in enumerate(PLANTS)
]
"""Of each statement the first plant, and a third of all; the others are slow."""


@pytest.mark.parametrize(("key", "where", "name", "fault", "seen_by"), EACH)
def test_planted_fault_turns_the_verdict(key, where, name, fault, seen_by, monkeypatch, small_settings):
    monkeypatch.setattr(where, name, fault(getattr(where, name)))
    result = STATEMENTS[key](5, 3)
    failed = [check.name for check in result.checks if not check.holds]
    assert not result.holds
    assert any(seen_by in check for check in failed), failed


def test_every_statement_has_plants():
    assert {row[0] for row in PLANTS} == set(STATEMENTS)
    assert mdp.token_tree is REAL_TREE
