"""Masks: literal rows, and that padding never enters, gradients included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.core.masks import (
    check_mask,
    lengths_to_mask,
    masked_mean,
    masked_sum,
)


def test_lengths_to_mask_literal():
    expected = [[False, False, False], [True, True, False], [True, True, True]]
    assert lengths_to_mask(torch.tensor([0, 2, 3]), 3).tolist() == expected


def test_masked_sum_and_mean_literal():
    values = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_sum(values, mask).item() == 3.0
    assert masked_sum(values, mask, dim=1).tolist() == [3.0, 0.0]
    assert masked_mean(values, mask).item() == 1.5
    assert masked_mean(values, mask, dim=0).tolist() == [1.0, 2.0, 0.0]
    assert masked_mean(values, mask, dim=1).tolist() == [1.5, 0.0]  # nothing counts: 0, not NaN


def test_wrong_masks_are_refused():
    values = torch.zeros(2, 3)
    with pytest.raises(TypeError, match="bool"):
        masked_sum(values, torch.ones(2, 3))
    with pytest.raises(TypeError, match=r"int64"):
        check_mask(torch.ones(2, 3, dtype=torch.long), values)
    with pytest.raises(ValueError, match=r"\(3,\).*\(2, 3\)"):
        masked_sum(values, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="lengths"):
        lengths_to_mask(torch.zeros(2, 2), 2)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_padding_never_enters_nor_its_gradient(poison):
    values = torch.tensor([[1.0, poison], [2.0, 3.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    total = masked_sum(values, mask)
    (gradient,) = torch.autograd.grad(total, values)
    assert total.item() == 6.0
    assert gradient.tolist() == [[1.0, 0.0], [1.0, 1.0]]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_lengths_survive_the_round_trip(lengths):
    assert lengths_to_mask(torch.tensor(lengths), 6).sum(dim=1).tolist() == lengths
