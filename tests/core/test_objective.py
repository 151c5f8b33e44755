"""Losses: values by hand, gradients against naive ones, invariance to accumulation, and padding kept out."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.core.masks import lengths_to_mask
from densepath.core.objective import (
    Normalizer,
    all_action_loss,
    clipped_loss,
    expected_rewards,
    kl_estimate,
    loss_divisor,
    reinforce_loss,
    sft_loss,
    state_kl_loss,
)

NAN = float("nan")
MASK = torch.tensor([[True, True, False], [True, False, False]])
LOGPROBS = torch.tensor([[-1.0, -2.0, NAN], [-0.5, NAN, NAN]])


def test_sft_loss_literal():
    loss, metrics = sft_loss(LOGPROBS, MASK)
    assert loss.item() == 3.5  # 1 + 2 + 0.5, the sum
    assert metrics["nll"].item() == pytest.approx(3.5 / 3)
    assert sft_loss(LOGPROBS, MASK, normalizer=2.0)[0].item() == 1.75


def test_reinforce_literal():
    advantages = torch.tensor([[2.0, -1.0, NAN], [4.0, NAN, NAN]])
    # -(-1 * 2 + -2 * -1 + -0.5 * 4) / 2 = -(-2) / 2
    assert reinforce_loss(LOGPROBS, advantages, MASK, 2.0)[0].item() == 1.0


def test_clipped_literal():
    # ratios 1.5, 0.5, 1.1, 1.5; advantages +1, +1, +1, -1; band 0.8 to 1.2
    ratio = torch.tensor([[1.5, 0.5, 1.1, 1.5]])
    advantages = torch.tensor([[1.0, 1.0, 1.0, -1.0]])
    old = torch.tensor([[-1.0, -2.0, -3.0, -4.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    logprobs = (old + ratio.log()).requires_grad_()
    loss, metrics = clipped_loss(logprobs, old, advantages, mask, 1.0)
    # min(1.5, 1.2) + min(0.5, 0.8) + 1.1 + min(-1.5, -1.2) = 1.2 + 0.5 + 1.1 - 1.5
    assert loss.item() == pytest.approx(-1.3, abs=1e-6)
    assert metrics["clip_ratio"].item() == 0.25  # the first alone lost its gradient
    (gradient,) = torch.autograd.grad(loss, logprobs)
    # -ratio * advantage where it was not cut
    assert gradient.tolist()[0] == pytest.approx([0.0, -0.5, -1.1, 1.5], abs=1e-6)


def test_clipped_with_an_asymmetric_band():
    logprobs, old = torch.tensor([[math.log(1.25)]]), torch.zeros(1, 1)
    mask, advantages = torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 1)
    wide = clipped_loss(logprobs, old, advantages, mask, 1.0, epsilon_high=0.3)[0]
    assert wide.item() == pytest.approx(-1.25)
    low = clipped_loss(-logprobs, old, -advantages, mask, 1.0, epsilon_low=0.1)[0]
    assert low.item() == pytest.approx(0.9)  # min(-0.8, -0.9)


def test_expected_rewards_and_all_actions_literal():
    # one state: probabilities 1/4, 3/4; rewards 2, -2: expectation 1/2 - 3/2
    logprobs = torch.tensor([[[math.log(0.25), math.log(0.75)]]], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([[[2.0, -2.0]]], dtype=torch.float64)
    expected = expected_rewards(logprobs, rewards)
    assert expected.item() == pytest.approx(-1.0, abs=1e-15)
    chosen = logprobs[..., 0]
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss, _ = all_action_loss(chosen, expected, torch.tensor([[3.0]], dtype=torch.float64), mask, 2.0)
    assert loss.item() == pytest.approx(-(-1.0 + 3.0 * math.log(0.25)) / 2, abs=1e-15)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    # d/dlogp of p q is p q: 1/2, -3/2; the score adds 3 to the chosen one
    assert gradient.flatten().tolist() == pytest.approx([-(0.5 + 3) / 2, 1.5 / 2], abs=1e-15)


def test_an_impossible_action_adds_nothing():
    logits = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    rewards = torch.tensor([[1.0, 3.0, torch.inf]])
    value = expected_rewards(logits.log_softmax(-1), rewards)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.item() == pytest.approx(2.0)
    assert gradient.tolist()[0] == pytest.approx([-0.5, 0.5, 0.0])


def test_state_kl_loss_literal():
    state_kl = torch.tensor([[0.5, 0.25, NAN], [1.0, NAN, NAN]])
    loss, metrics = state_kl_loss(state_kl, 0.2, MASK, 2.0)
    assert loss.item() == pytest.approx(0.2 * 1.75 / 2)
    assert metrics["state_kl"].item() == pytest.approx(1.75 / 3)
    with pytest.raises(ValueError, match="beta"):
        state_kl_loss(state_kl, -0.2, MASK, 2.0)


def test_kl_estimate_literal():
    other = torch.tensor([[-2.0, -2.5, NAN], [-0.25, NAN, NAN]])
    # (-1 + 2) + (-2 + 2.5) | -0.5 + 0.25
    assert kl_estimate(LOGPROBS, other, MASK).tolist() == [1.5, -0.25]


LOSSES = {
    "sft": lambda lp, adv, mask, n: sft_loss(lp, mask, n)[0],
    "reinforce": lambda lp, adv, mask, n: reinforce_loss(lp, adv, mask, n)[0],
    "clipped": lambda lp, adv, mask, n: clipped_loss(lp, 0.9 * lp.detach(), adv, mask, n)[0],
    "all actions": lambda lp, adv, mask, n: all_action_loss(lp, 0.5 * lp, adv, mask, n)[0],
    "state KL": lambda lp, adv, mask, n: state_kl_loss(lp**2, 0.3, mask, n)[0],
}


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("poison", [NAN, float("inf"), -float("inf"), 1e4])
def test_what_stands_behind_the_mask_reaches_neither_loss_nor_gradient(name, poison):
    generator = torch.Generator().manual_seed(0)
    logprobs, advantages = (torch.randn(3, 4, generator=generator) for _ in range(2))
    mask = lengths_to_mask(torch.tensor([4, 2, 0]), 4)

    def value_and_gradient(filler):
        filled = [torch.where(mask, t, torch.full_like(t, filler)) for t in (-logprobs.abs(), advantages)]
        leaf = filled[0].requires_grad_()
        if name == "state KL" and filler != 0.0:
            # its input is a KL made by the caller; poison that, not what it is made from
            kl = torch.where(mask, (-logprobs.abs()) ** 2, torch.full_like(leaf, filler)).requires_grad_()
            loss = state_kl_loss(kl, 0.3, mask, 2.0)[0]
            return loss, torch.autograd.grad(loss, kl)[0] * 2 * -logprobs.abs() * mask
        loss = LOSSES[name](leaf, filled[1], mask, 2.0)
        return loss, torch.autograd.grad(loss, leaf)[0]

    clean, clean_gradient = value_and_gradient(0.0)
    loss, gradient = value_and_gradient(poison)
    torch.testing.assert_close(loss, clean, rtol=0, atol=0)
    torch.testing.assert_close(gradient, clean_gradient, rtol=0, atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(list(LOSSES)))
def test_one_batch_of_eight_equals_eight_of_one(seed, name):
    """With the normaliser of the global batch, accumulation and sharding change nothing."""
    generator = torch.Generator().manual_seed(seed)
    logprobs, advantages = (torch.randn(8, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    logprobs.requires_grad_()
    mask = lengths_to_mask(torch.randint(0, 6, (8,), generator=generator), 5)
    whole = LOSSES[name](logprobs, advantages, mask, 8.0)
    (gradient,) = torch.autograd.grad(whole, logprobs)
    parts = sum(LOSSES[name](logprobs[i : i + 1], advantages[i : i + 1], mask[i : i + 1], 8.0) for i in range(8))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(parts, logprobs)[0], gradient, rtol=0, atol=1e-12)
    order = torch.randperm(8, generator=generator)
    shuffled = LOSSES[name](logprobs[order], advantages[order], mask[order], 8.0)
    torch.testing.assert_close(shuffled, whole, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000))
def test_clipping_does_nothing_on_fresh_samples(seed):
    generator = torch.Generator().manual_seed(seed)
    logprobs, advantages = (torch.randn(4, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    logprobs.requires_grad_()
    mask = lengths_to_mask(torch.randint(0, 6, (4,), generator=generator), 5)
    loss, metrics = clipped_loss(logprobs, logprobs, advantages, mask, 4.0)
    plain, _ = reinforce_loss(logprobs, advantages, mask, 4.0)
    left, right = (torch.autograd.grad(x, logprobs)[0] for x in (loss, plain))
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12)
    assert metrics["clip_ratio"].item() == 0.0


def test_advantages_and_rewards_are_constants():
    leaf = torch.randn(2, 3, requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool)
    for loss in (
        reinforce_loss(leaf, leaf * 2, mask, 1.0)[0],
        clipped_loss(leaf, leaf.detach(), leaf * 2, mask, 1.0)[0],
        all_action_loss(leaf, leaf * 0, leaf * 2, mask, 1.0)[0],
    ):
        (gradient,) = torch.autograd.grad(loss, leaf)
        torch.testing.assert_close(gradient, -2 * leaf.detach())


def test_wrong_shapes_are_refused():
    mask, lp = torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        reinforce_loss(lp, torch.zeros(2, 1), mask, 1.0)  # would broadcast
    with pytest.raises(ValueError, match="differ"):
        clipped_loss(lp, torch.zeros(3), lp, mask, 1.0)
    with pytest.raises(ValueError, match="differ"):
        all_action_loss(lp, torch.zeros(2, 1), lp, mask, 1.0)
    with pytest.raises(ValueError, match="differ"):
        expected_rewards(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(TypeError, match="bool"):
        sft_loss(lp, mask.float())


def test_loss_divisor_literal():
    assert loss_divisor(Normalizer.COMPLETIONS, 4.0, 37, 16) == 4
    assert loss_divisor(Normalizer.MAX_COMPLETION_LENGTH, 4.0, 37, 16) == 64
    assert loss_divisor(Normalizer.TOKENS, 4.0, 37, 16) == 37
