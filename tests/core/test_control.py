"""The share of the all-action estimate: against a loop over the other completions, and never from one's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.core.estimator import control_weights
from densepath.core.masks import lengths_to_mask

NAN = float("nan")


def naive(returns, noise, mask, i):
    """By the definition, for completion i."""
    others = [j for j in range(len(mask)) if j != i]
    slope = spread = 0.0
    for t in range(mask.shape[1]):
        alive = [j for j in others if mask[j, t]]
        mean = sum(float(returns[j, t]) for j in alive) / max(len(alive), 1)
        for j in alive:
            slope += (float(returns[j, t]) - mean) * float(noise[j, t])
            spread += float(noise[j, t]) ** 2
    fitted = slope / spread if spread > 0 else 1.0
    return min(max((len(others) * fitted + 1) / (len(others) + 1), 0.0), 1.0)


batches = st.integers(2, 5).flatmap(
    lambda n: st.tuples(st.lists(st.integers(1, 4), min_size=n, max_size=n), st.integers(0, 1000))
)


@settings(deadline=None, max_examples=60)
@given(batches)
def test_weights_equal_a_loop_and_ignore_ones_own_row(batch):
    lengths, seed = batch
    mask = lengths_to_mask(torch.tensor(lengths), 4)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(mask.shape, dtype=torch.float64, generator=generator).masked_fill(~mask, NAN)
    returns = 0.5 * noise + torch.randn(mask.shape, dtype=torch.float64, generator=generator)
    weights = control_weights(returns, noise, mask)
    for i in range(len(lengths)):
        assert weights[i].item() == pytest.approx(naive(returns, noise, mask, i), abs=1e-12)
        changed = returns.clone(), noise.clone()
        for each in changed:
            each[i] = torch.randn(4, dtype=torch.float64, generator=generator)
        assert control_weights(*changed, mask)[i].item() == pytest.approx(weights[i].item(), abs=1e-9)


def test_all_where_returns_are_the_noise_none_where_they_have_nothing_of_it():
    noise = torch.tensor([[1.0], [-1.0], [2.0], [-2.0]])
    mask = torch.ones(4, 1, dtype=torch.bool)
    # completion 0: the others' mean is -1/3; (-2/3)(-1) + (7/3)(2) + (-5/3)(-2) = 26/3 over 9; (3 * 26/27 + 1) / 4
    assert control_weights(noise, noise, mask)[0].item() == pytest.approx((3 * 26 / 27 + 1) / 4)
    # returns that do not depend on the noise leave the prior alone, 1 completion of 4
    assert control_weights(torch.full_like(noise, 5.0), noise, mask).tolist() == pytest.approx([0.25] * 4)
    # a slope below 0 is averaged with the 1 before it is clipped: (3 * -26/270 + 1) / 4, and (3 * -26/27 + 1) / 4 < 0
    assert control_weights(-0.1 * noise, noise, mask)[0].item() == pytest.approx((1 - 78 / 270) / 4)
    assert control_weights(-noise, noise, mask)[0].item() == 0
    # no noise: nothing to tell the two estimates apart
    assert control_weights(noise, torch.zeros_like(noise), mask).tolist() == [1.0] * 4


def test_not_even_the_rounding_of_ones_own_row_is_in_its_weight():
    """The others' noise is small beside one's own: a sum over all, less one's own, would keep its rounding."""
    generator = torch.Generator().manual_seed(0)
    noise, rest = 1e-6 * torch.randn(2, 5, 3, dtype=torch.float64, generator=generator)
    returns = 0.5 * noise + 0.1 * rest
    mask = torch.ones(5, 3, dtype=torch.bool)
    weight = control_weights(returns, noise, mask)[2].item()
    assert 0 < weight < 1
    for own in (1.0, 1e3, 1e7):
        noise[2], returns[2] = own, -own
        assert control_weights(returns, noise, mask)[2].item() == weight
