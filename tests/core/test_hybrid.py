"""The hybrid reward: literal values, and the return that a reward on the last token must have."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densepath.core.returns import returns_to_go
from densepath.core.rewards import hybrid_rewards, on_last_token

T, F = True, False


def test_a_number_lands_on_the_last_token_that_counts():
    mask = torch.tensor([[T, T, T], [T, F, F], [F, F, F], [T, T, F]])
    placed = on_last_token(torch.tensor([1.0, 2.0, 3.0, -4.0]), mask)
    assert placed.tolist() == [[0, 0, 1.0], [2.0, 0, 0], [0, 0, 0], [0, -4.0, 0]]


def test_a_tool_result_at_the_end_earns_nothing():
    mask = torch.tensor([[T, F, T, F]])  # the last token was written by a tool
    assert on_last_token(torch.tensor([5.0]), mask).tolist() == [[0, 0, 5.0, 0]]


def test_mixture_by_hand():
    mask = torch.tensor([[T, T, F]])
    dense = torch.tensor([[1.0, -2.0, float("nan")]])  # what stands behind a False never enters
    external = torch.tensor([[0.0, 4.0, 7.0]])
    # 0.25 * 1 + 0.75 * 0 and 0.25 * -2 + 0.75 * 4
    assert hybrid_rewards(dense, external, mask, 0.25).tolist() == [[0.25, 2.5, 0.0]]


@given(
    st.lists(st.tuples(st.integers(1, 5), st.floats(-3, 3)), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 3),
)
def test_the_return_is_that_of_both_rewards_whatever_the_padding(rows, alpha, padding):
    """G_t = alpha * (dense to go) + (1 - alpha) * number, at every token, with a loop as the truth."""
    width = max(length for length, _ in rows) + padding
    mask = torch.tensor([[t < length for t in range(width)] for length, _ in rows])
    dense = torch.arange(float(len(rows) * width)).reshape(len(rows), width) % 7 - 3
    values = torch.tensor([value for _, value in rows])
    returns = returns_to_go(hybrid_rewards(dense, on_last_token(values, mask), mask, alpha), mask, 1.0)
    for i, (length, value) in enumerate(rows):
        for t in range(length):
            expected = alpha * sum(dense[i, t:length].tolist()) + (1 - alpha) * value
            assert returns[i, t].item() == pytest.approx(expected, abs=1e-4)


def test_shapes_that_would_broadcast_are_refused():
    mask = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"values must be \(batch,\)"):
        on_last_token(torch.ones(2, 2), mask)
    with pytest.raises(ValueError, match="shapes differ"):
        hybrid_rewards(torch.ones(2, 2), torch.ones(2, 1), mask, 0.5)
    with pytest.raises(ValueError, match="must be bool"):
        on_last_token(torch.ones(2), mask.long())
