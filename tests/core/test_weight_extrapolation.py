from __future__ import annotations

import pytest
import torch

from densepath.core.extrapolation import extrapolated, extrapolated_lora


def test_literal():
    sft, ref = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 3.0])
    assert extrapolated(sft, ref, 2.0).tolist() == [4.0, -3.0]  # 2 + 2 (2 - 1), 1 + 2 (1 - 3)
    assert extrapolated(sft, ref, -0.5).tolist() == [1.5, 2.0]  # half-way


def test_alpha_zero_is_sft_and_minus_one_the_reference_to_the_last_bit():
    generator = torch.Generator().manual_seed(0)
    sft, ref = (torch.randn(1000, generator=generator) * 10**k for k in (0, 3))
    assert torch.equal(extrapolated(sft, ref, 0.0), sft)
    assert torch.equal(extrapolated(sft, ref, -1.0), ref)


def test_half_precision_is_lifted():
    sft, ref = torch.tensor([1.0]).bfloat16(), torch.tensor([1.0078125]).bfloat16()
    assert extrapolated(sft, ref, 0.5).item() == 1 - 0.5 * 0.0078125  # not a bfloat16
    with pytest.raises(ValueError, match="shapes differ"):
        extrapolated(torch.zeros(2), torch.zeros(3), 1.0)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.7, 3.0])
def test_one_adapter_says_what_two_and_the_line_through_them_say(alpha):
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(3, 5, generator=generator).double(), torch.randn(4, 3, generator=generator).double()
    c, d = torch.randn(2, 5, generator=generator).double(), torch.randn(4, 2, generator=generator).double()
    found_a, found_b = extrapolated_lora((a, b), (c, d), alpha, (2.0, 0.5))
    expected = 2.0 * b @ a + alpha * (2.0 * b @ a - 0.5 * d @ c)
    torch.testing.assert_close(found_b @ found_a, expected)
    assert (found_a.shape, found_b.shape) == ((5, 5), (4, 5))
    found_a, found_b = extrapolated_lora((a, b), None, alpha, (2.0, 0.0))
    torch.testing.assert_close(found_b @ found_a, (1 + alpha) * 2.0 * b @ a)
