"""DPRTrainer's own rollout and loss against exact gradients, by enumeration of everything it could sample.

What an option's expectation should be is computed from the tables of the enumerated MDP, never from the trainer.
"""

from __future__ import annotations

import pytest
import torch
from tests.trainers.enumerated import BETA, Enumerated

from densepath.core import exact

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


OPTIONS = {
    "default": ({}, lambda e: objective(e, plain(e))),
    "logprob": ({"dense_reward": "logprob"}, lambda e: objective(e, e.sft_table)),
    "reward_clip": ({"reward_clip": 0.5}, lambda e: objective(e, plain(e).clamp(-0.5, 0.5))),
    "reward_floor": ({"reward_floor": -1.2}, lambda e: objective(e, floored(e))),
    "reward_scale": ({"reward_scale": 0.3}, lambda e: objective(e, 0.3 * plain(e))),
    "two references": ({"refs": (3, 4)}, lambda e: objective(e, mean_of_probabilities(e))),
    "geometric": ({"refs": (3, 4), "reference_mean": "geometric"}, lambda e: objective(e, mean_of_logprobs(e))),
    "ref_beta": ({"ref_beta": 0.4}, lambda e: objective(e, plain(e), ref_beta=0.4)),
    "beta 0": ({"beta": 0.0}, lambda e: objective(e, plain(e), beta=0.0)),
    "gamma 0.5": ({"gamma": 0.5}, lambda e: objective(e, plain(e), gamma=0.5)),
    "gamma 0": ({"gamma": 0.0}, lambda e: objective(e, plain(e), gamma=0.0)),
    "KL at each state": ({"kl_in_return": False}, state_loss),
    "divided by length": ({"loss_normalizer": "max_completion_length"}, lambda e: objective(e, plain(e)) / 3),
}
MOVED = ("reward_clip", "reward_floor", "gamma 0.5", "gamma 0", "KL at each state")
"""Options whose expectation is not the gradient of the objective: the comparison must see it."""


@pytest.mark.parametrize("estimator", ["sampled", "all_action"])
@pytest.mark.parametrize("option", OPTIONS)
def test_expected_gradient_of_an_option_is_what_it_says(tmp_path, tokenizer, option, estimator):
    changes, truth = OPTIONS[option]
    if estimator == "all_action":  # mixed by a constant, so that completions do not see one another
        changes = {**changes, "all_action_weight": 0.6}
    e = Enumerated(tmp_path, tokenizer, horizon=3, baseline="none", estimator=estimator, **changes)
    assert e.trainer.estimator.value == estimator
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
    assert e.trainer.estimator.value == "sampled"
    expected = e.expected_gradient_alone() if baseline == "none" else e.expected_gradient()
    torch.testing.assert_close(expected, e.gradient_of(objective(e, plain(e))), **TOLERANCE)
