"""The one composition of batch, credit and loss: what it refuses, and that parts of a batch add up to it."""

import dataclasses

import pytest
import torch

from densepath.core.estimator import Batch, Estimator, Tokens
from densepath.core.returns import Baseline

MASK = torch.tensor([[True, True, True], [True, False, False], [True, True, False], [True, True, True]])


def batch(**changes) -> Batch:
    generator = torch.Generator().manual_seed(0)
    rewards, policy, sft, expected = torch.randn(4, *MASK.shape, dtype=torch.float64, generator=generator)
    return Batch(**{"rewards": rewards, "policy_logprobs": policy, "sft_logprobs": sft, "mask": MASK,
                    "expected": expected, **changes})  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": -0.1}, "beta must be at least 0"),
        ({"ref_beta": float("inf")}, "ref_beta must be at least 0 and finite"),
        ({"gamma": 1.1}, r"gamma must lie in \[0, 1\]"),
        ({"gamma": 0.9, "whole_sequence": True}, "no discount"),
        ({"kl_in_return": False, "beta": 0.0}, "no KL"),
        ({"all_action": True, "whole_sequence": True}, "whole_sequence is of the sampled estimate alone"),
        ({"all_action": True, "whiten": True}, "whiten is of the sampled estimate alone"),
        ({"all_action": True, "epsilons": (0.2, 0.2)}, "epsilons is of the sampled estimate alone"),
        ({"all_action_weight": 0.5}, "needs all actions"),
        ({"all_action": True, "all_action_weight": 0.0}, r"must lie in \(0, 1\]"),
    ],
)
def test_what_means_nothing_is_refused_when_it_is_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        Estimator(**arguments)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="expected reward"):
        Estimator(all_action=True).returns(batch(expected=None))
    logprobs = torch.zeros(MASK.shape)
    tokens = Tokens(logprobs, logprobs, MASK)
    for estimator, message in (
        (Estimator(all_action=True), "expected reward"),
        (Estimator(epsilons=(0.2, 0.2)), "policy that sampled"),
        (Estimator(kl_in_return=False), "KL at each state"),
    ):
        with pytest.raises(ValueError, match=message):
            estimator.loss(tokens, 1.0)


def test_advantages_worked_by_hand():
    """Two completions of one prompt, beta 0.5: q, returns-to-go and the siblings' mean are written out."""
    mask = torch.tensor([[True, True], [True, False]])
    given = Batch(
        rewards=torch.tensor([[1.0, 2.0], [3.0, 9.0]]),
        policy_logprobs=torch.tensor([[-1.0, -1.0], [-2.0, 9.0]]),
        sft_logprobs=torch.tensor([[-3.0, -1.0], [-1.0, 9.0]]),
        mask=mask,
    )
    estimator = Estimator(beta=0.5, baseline=Baseline.LEAVE_ONE_OUT)  # q = [0, 2], [3.5]
    found = estimator.returns(given)
    torch.testing.assert_close(found.sampled, torch.tensor([[2.0, 2.0], [3.5, 0.0]]))
    credit = estimator.credit(found, mask, num_generations=2)
    torch.testing.assert_close(credit.advantages, torch.tensor([[-1.5, -1.5], [1.5, 0.0]]))
    alone = estimator.credit(found, mask, num_generations=1)
    torch.testing.assert_close(alone.advantages, found.sampled)


@pytest.mark.parametrize("estimator", [Estimator(), Estimator(all_action=True), Estimator(kl_in_return=False)])
def test_losses_of_parts_add_up_to_the_batchs(estimator):
    generator = torch.Generator().manual_seed(1)
    logprobs, expected, state_kl = torch.randn(3, *MASK.shape, dtype=torch.float64, generator=generator)
    credit = estimator.credit(estimator.returns(batch()), MASK, num_generations=2)
    shares = None if credit.shares is None else credit.shares.unsqueeze(1).expand(MASK.shape)
    tokens = Tokens(logprobs, credit.advantages, MASK, expected=expected, shares=shares, state_kl=state_kl)
    whole, _ = estimator.loss(tokens, 4.0)

    def of(rows: slice) -> Tokens:
        fields = {name: value for name, value in vars(tokens).items() if value is not None}
        return dataclasses.replace(tokens, **{name: value[rows] for name, value in fields.items()})

    parts = sum(estimator.loss(of(rows), 4.0)[0] for rows in (slice(0, 1), slice(1, 4)))
    torch.testing.assert_close(parts, whole)


def test_rewards_from_outside_stay_with_their_token():
    """What is known of the sampled token alone is credited as in the sampled estimate, whatever the share."""
    outside = torch.ones(MASK.shape, dtype=torch.float64) * MASK
    estimator = Estimator(all_action=True, all_action_weight=1.0, baseline=Baseline.NONE)
    plain, mixed = batch(), batch()
    mixed = dataclasses.replace(mixed, rewards=plain.rewards + outside, external=outside)
    without, with_it = (estimator.credit(estimator.returns(each), MASK, 2).advantages for each in (plain, mixed))
    expected = torch.tensor([[3.0, 2, 1], [1, 0, 0], [2, 1, 0], [3, 2, 1]], dtype=torch.float64)
    torch.testing.assert_close(with_it - without, expected)
