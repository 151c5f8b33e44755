"""DPRTrainer's own rollout and loss against exact gradients, by enumeration of everything it could sample.

What an option's expectation should be is computed from the tables of the enumerated MDP, never from the trainer.
"""

from __future__ import annotations

import pytest
import torch
from tests.oracle import policy_table, sequence_probs
from tests.trainers.enumerated import BETA, EOS, PROMPT, Enumerated

from densepath.theory import exact
from densepath.theory.mdp import gather_tokens

TOLERANCE = {"atol": 3e-6, "rtol": 1e-5}  # the trainer keeps rewards and returns in float32


def objective(e: Enumerated, rewards, beta=BETA, ref_beta=0.0, gamma=1.0):
    """`E[sum r] - beta KL(pi || SFT) - ref_beta KL(pi || ref)`, or the surrogate that gamma < 1 follows."""
    mdp = e.tree.mdp
    if gamma == 1.0:
        value = exact.regularised_return(mdp, e.table, rewards, e.sft_table, beta)
        return value - ref_beta * exact.sequence_kl(mdp, e.table, e.ref_tables[0]) if ref_beta else value
    # sum_s d(s) sum_a grad pi(a|s) Q_gamma(s, a), everything but pi(a|s) being constant
    constant = e.table.detach()
    penalised = rewards - beta * (constant - e.sft_table)
    q = exact.policy_values(mdp, constant, penalised, gamma).q
    visits = exact.visits(mdp, constant)[: mdp.num_states]
    return (visits.unsqueeze(1) * e.table.exp() * q).sum()


def state_loss(e: Enumerated):
    """Surrogate of `kl_in_return=False`: the return of the reward alone, and the KL at states taken as given."""
    visits = exact.visits(e.tree.mdp, e.table.detach())[: e.tree.mdp.num_states]
    return objective(e, plain(e), beta=0.0) - BETA * (visits * exact.state_kl(e.table, e.sft_table)).sum()


def plain(e: Enumerated):
    return e.sft_table - e.ref_tables[0]


def floored(e: Enumerated):
    return e.sft_table.clamp(min=-1.2) - e.ref_tables[0].clamp(min=-1.2)


def mean_of_probabilities(e: Enumerated):
    return e.sft_table - torch.stack([table.exp() for table in e.ref_tables]).mean(dim=0).log()


def mean_of_logprobs(e: Enumerated):
    return e.sft_table - torch.stack(e.ref_tables).mean(dim=0)


def capped(e: Enumerated, cap: float, scale: float, beta=BETA):
    """`E[scale min(0, R(y) - cap)] - beta KL(pi || SFT)`, summed over every completion."""
    probs = sequence_probs(e.tree, e.table)
    ratios = (gather_tokens(e.tree, plain(e))).sum(dim=1)
    return probs @ (scale * (ratios - cap).clamp(max=0)) - beta * exact.sequence_kl(e.tree.mdp, e.table, e.sft_table)


OPTIONS = {
    "default": ({}, lambda e: objective(e, plain(e))),
    "logprob": ({"dense_reward": "logprob"}, lambda e: objective(e, e.sft_table)),
    "reward_clip": ({"reward_clip": 0.5}, lambda e: objective(e, plain(e).clamp(-0.5, 0.5))),
    "reward_floor": ({"reward_floor": -1.2}, lambda e: objective(e, floored(e))),
    "reward_scale": ({"reward_scale": 0.3}, lambda e: objective(e, 0.3 * plain(e))),
    "two references": ({"refs": (3, 4)}, lambda e: objective(e, mean_of_probabilities(e))),
    "geometric": ({"refs": (3, 4), "reference_mean": "geometric"}, lambda e: objective(e, mean_of_logprobs(e))),
    "capped at 0": ({"sequence_cap": 0.0}, lambda e: capped(e, 0.0, 1.0)),
    "capped above, scaled": ({"sequence_cap": 0.4, "reward_scale": 2.0}, lambda e: capped(e, 0.4, 2.0)),
    "capped below, by lambda": (
        {"sequence_cap": -0.3, "reward_lambda": 5.0, "beta": None},
        lambda e: capped(e, -0.3, 1.0, beta=0.25),
    ),
    "ref_beta": ({"ref_beta": 0.4}, lambda e: objective(e, plain(e), ref_beta=0.4)),
    "beta 0": ({"beta": 0.0}, lambda e: objective(e, plain(e), beta=0.0)),
    "gamma 0.5": ({"gamma": 0.5}, lambda e: objective(e, plain(e), gamma=0.5)),
    "gamma 0": ({"gamma": 0.0}, lambda e: objective(e, plain(e), gamma=0.0)),
    "KL at each state": ({"kl_in_return": False}, state_loss),
    "divided by length": ({"loss_normalizer": "max_completion_length"}, lambda e: objective(e, plain(e)) / 3),
}
MOVED = (
    "capped at 0",
    "capped above, scaled",
    "reward_clip",
    "reward_floor",
    "gamma 0.5",
    "gamma 0",
    "KL at each state",
)
"""Options whose expectation is not the gradient of the objective: the comparison must see it."""


@pytest.mark.parametrize("estimator", ["sampled", "all_action"])
@pytest.mark.parametrize("option", OPTIONS)
def test_expected_gradient_of_an_option_is_what_it_says(tmp_path, tokenizer, option, estimator):
    changes, truth = OPTIONS[option]
    if estimator == "all_action":  # mixed by a constant, so that completions do not see one another
        changes = {**changes, "all_action_weight": 0.6}
    e = Enumerated(tmp_path, tokenizer, horizon=3, baseline="none", estimator=estimator, **changes)
    assert e.trainer.estimator.all_action == (estimator == "all_action")
    expected = e.expected_gradient_alone()
    target = e.gradient_of(truth(e))
    assert target.abs().max() > 0.02
    torch.testing.assert_close(expected, target, **TOLERANCE)
    if option in MOVED:
        default = e.gradient_of(objective(e, plain(e)))
        assert (expected - default).abs().max() > 1e-2


@pytest.mark.parametrize("estimator", ["sampled", "all_action"])  # the latter mixed as the other completion says
@pytest.mark.parametrize("baseline", ["position_mean", "leave_one_out"])
def test_a_baseline_leaves_the_expected_gradient(tmp_path, tokenizer, baseline, estimator):
    e = Enumerated(tmp_path, tokenizer, baseline=baseline, estimator=estimator)
    target = e.gradient_of(objective(e, plain(e)))
    assert target.abs().max() > 0.02
    torch.testing.assert_close(e.expected_gradient(), target, **TOLERANCE)


@pytest.mark.parametrize("baseline", ["none", "position_mean", "leave_one_out"])
def test_sequence_level_rewards_leave_it_too(tmp_path, tokenizer, baseline):
    e = Enumerated(tmp_path, tokenizer, baseline=baseline, reward_level="sequence")
    assert not e.trainer.estimator.all_action
    expected = e.expected_gradient_alone() if baseline == "none" else e.expected_gradient()
    torch.testing.assert_close(expected, e.gradient_of(objective(e, plain(e))), **TOLERANCE)


# -- another engine samples ------------------------------------------------------------------------------------------


def with_vllm(e: Enumerated, mode: str, clip_max: float = 1e9, correct: bool = True):
    """A sampler whose numerics differ from the trainer's, and TRL's correction for it; the sampler's table."""
    e.trainer.use_vllm = True
    e.trainer.vllm_importance_sampling_correction = correct
    e.trainer.vllm_importance_sampling_mode = mode
    e.trainer.vllm_importance_sampling_clip_max = clip_max
    e.trainer.vllm_importance_sampling_clip_min = None
    noise = torch.randn(e.table.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return (e.table.detach() + 0.3 * noise).log_softmax(-1)


ENGINES = [("sampled", {}), ("all_action", {"all_action_weight": 1.0})]


@pytest.mark.parametrize(("estimator", "share"), ENGINES)
@pytest.mark.parametrize("kl_in_return", [True, False])
def test_a_ratio_of_whole_sequences_corrects_for_the_sampler(tmp_path, tokenizer, estimator, share, kl_in_return):
    arguments = {"baseline": "none", "estimator": estimator, "kl_in_return": kl_in_return, **share}
    e = Enumerated(tmp_path, tokenizer, horizon=3, **arguments)
    sampler = with_vllm(e, "sequence_truncate")
    target = e.gradient_of(objective(e, plain(e)) if kl_in_return else state_loss(e))
    torch.testing.assert_close(e.expected_gradient_alone(sampler), target, **TOLERANCE)
    e.trainer.vllm_importance_sampling_correction = False
    assert (e.expected_gradient_alone(sampler) - target).abs().max() > 1e-2  # the comparison can fail


@pytest.mark.parametrize(("estimator", "share"), ENGINES)
def test_a_ratio_per_token_leaves_the_states_that_the_sampler_visits(tmp_path, tokenizer, estimator, share):
    """The action at hand is corrected for; the states, and the actions of later rewards, stay the sampler's."""
    e = Enumerated(tmp_path, tokenizer, horizon=3, baseline="none", estimator=estimator, **share)
    sampler = with_vllm(e, "token_truncate")
    mdp, constant = e.tree.mdp, e.table.detach()
    q = plain(e) - BETA * (constant - e.sft_table)
    later = q if estimator == "sampled" else (constant.exp() * q).sum(-1, keepdim=True).expand_as(q)
    following = exact.next_values(mdp, exact.policy_values(mdp, sampler, later).v)
    visits = exact.visits(mdp, sampler)[: mdp.num_states]
    surrogate = (visits.unsqueeze(1) * e.table.exp() * (q + following)).sum()
    torch.testing.assert_close(e.expected_gradient_alone(sampler), e.gradient_of(surrogate), **TOLERANCE)


# -- several updates on one batch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"kl_in_return": False}])
def test_the_first_of_several_updates_is_exact(tmp_path, tokenizer, changes):
    e = Enumerated(tmp_path, tokenizer, horizon=3, baseline="none", num_iterations=2, **changes)
    assert not e.trainer.estimator.all_action
    target = e.gradient_of(objective(e, plain(e)) if not changes else state_loss(e))
    torch.testing.assert_close(e.expected_gradient_alone(), target, **TOLERANCE)


def test_later_updates_compare_with_the_policy_that_sampled(tmp_path, tokenizer):
    """After a step of the weights: PPO's clipped surrogate of the old batch, from the tables."""
    e = Enumerated(tmp_path, tokenizer, horizon=3, baseline="none", num_iterations=2, epsilon=0.1)
    batch = e.each(e.table)
    old = e.table.detach()
    with torch.no_grad():
        for parameter in e.policy.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).to(parameter)
    table = policy_table(e.policy, PROMPT, 3, 3, EOS)
    states, ids, mask = e.tree.states, e.tree.sequences, e.tree.mask
    rewards = (plain(e) - BETA * (old - e.sft_table))[states, ids].masked_fill(~mask, 0.0)
    returns = rewards.flip(1).cumsum(1).flip(1)
    ratio = (table[states, ids] - old[states, ids]).exp()
    surrogate = torch.minimum(ratio * returns, ratio.clamp(0.9, 1.1) * returns).masked_fill(~mask, 0.0).sum(1)
    chances = torch.stack([weight for weight, _ in batch])
    assert ((ratio - 1).abs() > 0.1).float().mean() > 0.2
    target = e.gradient_of((chances * surrogate).sum())
    found = sum(weight * e.gradient(one) for weight, one in batch)
    torch.testing.assert_close(found, target, **TOLERANCE)
