"""Returns and baselines: worked by hand, against naive loops, and for what they promise about dependence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.core.masks import lengths_to_mask
from densepath.core.returns import (
    Baseline,
    baseline,
    kl_penalised_rewards,
    leave_one_out_baseline,
    position_mean_baseline,
    returns_after,
    returns_to_go,
    sequence_returns,
    whiten,
)

NAN = float("nan")
REWARDS = torch.tensor([[1.0, -2.0, 4.0, NAN], [3.0, 0.5, NAN, NAN]])
MASK = lengths_to_mask(torch.tensor([3, 2]), 4)


def test_returns_to_go_literal():
    # row 0: 4; -2 + 4 = 2; 1 + 2 = 3. row 1: 0.5; 3.5
    assert returns_to_go(REWARDS, MASK).tolist() == [[3.0, 2.0, 4.0, 0.0], [3.5, 0.5, 0.0, 0.0]]
    # gamma 1/2: 4; -2 + 2 = 0; 1 + 0 = 1. 0.5; 3 + 0.25
    assert returns_to_go(REWARDS, MASK, 0.5).tolist() == [[1.0, 0.0, 4.0, 0.0], [3.25, 0.5, 0.0, 0.0]]
    # gamma 0: each token for itself
    assert returns_to_go(REWARDS, MASK, 0.0).tolist() == [[1.0, -2.0, 4.0, 0.0], [3.0, 0.5, 0.0, 0.0]]


def test_tokens_of_a_tool_between_the_policys_earn_nothing_and_hide_nothing():
    rewards = torch.tensor([[1.0, NAN, NAN, 2.0, 4.0]])
    mask = torch.tensor([[True, False, False, True, True]])
    assert returns_to_go(rewards, mask).tolist() == [[7.0, 0.0, 0.0, 6.0, 4.0]]
    assert returns_after(rewards, mask).tolist() == [[6.0, 0.0, 0.0, 4.0, 0.0]]
    # gamma counts them as time: 1/8 of 2 and 1/16 of 4
    assert returns_after(rewards, mask, 0.5).tolist() == [[0.5, 0.0, 0.0, 2.0, 0.0]]


def test_returns_after_and_whole_sequence_literal():
    # what comes later: -2 + 4, 4, nothing | 0.5, nothing
    assert returns_after(REWARDS, MASK).tolist() == [[2.0, 4.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0]]
    assert returns_after(REWARDS, MASK, 0.5).tolist() == [[0.0, 2.0, 0.0, 0.0], [0.25, 0.0, 0.0, 0.0]]
    assert sequence_returns(REWARDS, MASK).tolist() == [[3.0, 3.0, 3.0, 0.0], [3.5, 3.5, 0.0, 0.0]]


def test_kl_penalised_rewards_literal():
    policy = torch.tensor([[-1.0, -2.0, -1.0, NAN], [-0.5, -1.0, NAN, NAN]], requires_grad=True)
    sft = torch.tensor([[-2.0, -2.0, -0.5, NAN], [-1.0, -3.0, NAN, NAN]])
    # 1 - 2 (1), -2 - 0, 4 - 2 (-0.5) | 3 - 2 (0.5), 0.5 - 2 (2)
    found = kl_penalised_rewards(REWARDS, policy, sft, 2.0, MASK)
    assert found.tolist() == [[-1.0, -2.0, 5.0, 0.0], [2.0, -3.5, 0.0, 0.0]]
    assert not found.requires_grad  # a reward is a constant: its gradient goes through the score function
    assert kl_penalised_rewards(REWARDS, policy, sft, 0.0, MASK)[0, :3].tolist() == [1.0, -2.0, 4.0]
    with pytest.raises(ValueError, match="beta"):
        kl_penalised_rewards(REWARDS, policy, sft, -1.0, MASK)


def test_position_mean_literal():
    returns = torch.tensor([[3.0, 2.0, 4.0], [5.0, 8.0, NAN], [1.0, NAN, NAN]])
    mask = lengths_to_mask(torch.tensor([3, 2, 1]), 3)
    # position 0: (5+1)/2, (3+1)/2, (3+5)/2; position 1: the other one alive; position 2: alone, no baseline
    assert position_mean_baseline(returns, mask).tolist() == [[3.0, 8.0, 0.0], [2.0, 2.0, 0.0], [4.0, 0.0, 0.0]]


def test_leave_one_out_literal():
    # two prompts, two completions each; rewards (1, -2, 4), (3, .5), (2), (1, 1)
    rewards = torch.tensor([[1.0, -2.0, 4.0], [3.0, 0.5, 0.0], [2.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    mask = lengths_to_mask(torch.tensor([3, 2, 1, 2]), 3)
    returns = returns_to_go(rewards, mask)
    found = leave_one_out_baseline(returns, mask, 2)
    # the sibling's total less what the row had before t: 3.5 - 0, - 1, - (1 - 2) | 3 - 0, 3 - 3 | 2 | 2, 2 - 1
    assert found.tolist() == [[3.5, 2.5, 4.5], [3.0, 0.0, 0.0], [2.0, 0.0, 0.0], [2.0, 1.0, 0.0]]
    # so every token's advantage is the total less the siblings' mean: sequence-level RLOO
    totals = torch.tensor([3.0, 3.5, 2.0, 2.0])
    siblings = torch.tensor([3.5, 3.0, 2.0, 2.0])
    expected = (totals - siblings).unsqueeze(1) * mask
    torch.testing.assert_close((returns - found) * mask, expected, rtol=0, atol=0)


def test_a_completion_that_begins_with_a_tools_tokens_has_its_whole_return():
    rewards = torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 4.0]])
    mask = torch.tensor([[False, True, True], [False, True, True]])
    found = leave_one_out_baseline(returns_to_go(rewards, mask), mask, 2)
    # totals 1 + 2 and 3 + 4: the other's, less what the row had before the token
    assert found.tolist() == [[0.0, 7.0, 6.0], [0.0, 3.0, 0.0]]


def test_what_is_masked_out_is_no_sibling():
    """Two of four completions count, with a return of -10 each: neither is better than what it can expect."""
    rewards = torch.tensor([[-10.0], [-10.0], [-3.0], [7.0], [1.0], [2.0], [3.0], [4.0]])
    mask = torch.tensor([[True], [True], [False], [False], [True], [False], [False], [False]])
    found = leave_one_out_baseline(returns_to_go(rewards, mask), mask, 4)
    assert found.squeeze(1).tolist() == [-10.0, -10.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]  # the fifth one is alone


def test_dispatch():
    returns = returns_to_go(REWARDS, MASK)
    assert not baseline(Baseline.NONE, returns, MASK, 2).any()
    assert torch.equal(baseline(Baseline.POSITION_MEAN, returns, MASK, 2), position_mean_baseline(returns, MASK))
    assert torch.equal(baseline(Baseline.LEAVE_ONE_OUT, returns, MASK, 2), leave_one_out_baseline(returns, MASK, 2))
    assert Baseline("position_mean") is Baseline.POSITION_MEAN


def test_whiten_literal():
    # values 1, 3, 8: mean 4, deviations -3, -1, 4: variance 26/3; the mean is kept
    advantages = torch.tensor([[1.0, 3.0], [8.0, NAN]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, False]])
    scale = (26 / 3) ** 0.5
    expected = torch.tensor([[1 / scale, 3 / scale], [8 / scale, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(whiten(advantages, mask, eps=0.0), expected, rtol=1e-15, atol=0)
    assert not whiten(torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool)).any()  # no spread: 0, not NaN


def naive_returns(rewards, lengths, gamma):
    table = torch.zeros_like(rewards)
    for i, n in enumerate(lengths):
        for t in range(n):
            table[i, t] = sum(gamma ** (k - t) * rewards[i, k].item() for k in range(t, n))
    return table


cases = st.tuples(st.integers(0, 10_000), st.lists(st.integers(0, 5), min_size=1, max_size=5))


@settings(deadline=None, max_examples=60)
@given(cases, st.sampled_from([1.0, 0.9, 0.5, 0.0]))
def test_returns_against_a_double_loop(case, gamma):
    seed, lengths = case
    rewards = torch.randn(len(lengths), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    mask = lengths_to_mask(torch.tensor(lengths), 5)
    found = returns_to_go(rewards, mask, gamma)
    torch.testing.assert_close(found, naive_returns(rewards, lengths, gamma), rtol=0, atol=1e-12)
    torch.testing.assert_close(returns_after(rewards, mask, gamma), (found - rewards) * mask, rtol=0, atol=1e-12)
    assert torch.equal(sequence_returns(rewards, mask)[:, :1] * mask, sequence_returns(rewards, mask))
    # pad contents never matter
    poisoned = torch.where(mask, rewards, torch.full_like(rewards, NAN))
    assert torch.equal(returns_to_go(poisoned, mask, gamma), found)


@settings(deadline=None, max_examples=60)
@given(cases)
def test_position_mean_against_a_loop_and_never_of_its_own(case):
    seed, lengths = case
    generator = torch.Generator().manual_seed(seed)
    returns = torch.randn(len(lengths), 5, dtype=torch.float64, generator=generator)
    mask = lengths_to_mask(torch.tensor(lengths), 5)
    found = position_mean_baseline(returns, mask)
    for i, n in enumerate(lengths):
        for t in range(5):
            others = [returns[j, t].item() for j in range(len(lengths)) if j != i and t < lengths[j]]
            expected = sum(others) / len(others) if t < n and others else 0.0
            assert found[i, t].item() == pytest.approx(expected, abs=1e-12)
    moved = returns.clone()
    moved[0] += 100.0
    torch.testing.assert_close(position_mean_baseline(moved, mask)[0], found[0], rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(2, 4))
def test_leave_one_out_ignores_the_own_future(seed, prompts, generations):
    """The baseline at t may use the own past, never what comes at t or later."""
    generator = torch.Generator().manual_seed(seed)
    batch = prompts * generations
    rewards = torch.randn(batch, 4, dtype=torch.float64, generator=generator)
    mask = torch.ones(batch, 4, dtype=torch.bool)
    before = leave_one_out_baseline(returns_to_go(rewards, mask), mask, generations)
    t = int(torch.randint(4, (1,), generator=generator))
    changed = rewards.clone()
    changed[0, t:] += torch.randn(4 - t, dtype=torch.float64, generator=generator)
    after = leave_one_out_baseline(returns_to_go(changed, mask), mask, generations)
    torch.testing.assert_close(after[0, : t + 1], before[0, : t + 1], rtol=0, atol=1e-12)
    # another prompt's completions do not matter
    if prompts > 1:
        changed = rewards.clone()
        changed[generations:] += 7.0
        other = leave_one_out_baseline(returns_to_go(changed, mask), mask, generations)
        torch.testing.assert_close(other[:generations], before[:generations], rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(cases, st.floats(0.1, 50))
def test_whitening_forgets_the_scale(case, scale):
    seed, lengths = case
    advantages = torch.randn(len(lengths), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    mask = lengths_to_mask(torch.tensor(lengths), 5)
    if int(mask.sum()) < 2:
        return
    white = whiten(advantages, mask, eps=0.0)
    torch.testing.assert_close(whiten(scale * advantages, mask, eps=0.0), white, rtol=1e-9, atol=1e-9)
    kept = [white[i, t].item() for i, n in enumerate(lengths) for t in range(n)]
    mean = sum(kept) / len(kept)
    assert sum((v - mean) ** 2 for v in kept) / len(kept) == pytest.approx(1.0, abs=1e-9)
    assert torch.equal(white > 0, (advantages > 0) & mask)  # the signs stay: it does not centre


def test_wrong_inputs_are_refused():
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="gamma"):
        returns_to_go(torch.zeros(2, 3), mask, 1.1)
    with pytest.raises(ValueError, match="batch, tokens"):
        returns_to_go(torch.zeros(3), mask[0])
    with pytest.raises(TypeError, match="bool"):
        returns_to_go(torch.zeros(2, 3), mask.float())
    for generations in (1, 3):
        with pytest.raises(ValueError, match="num_generations"):
            leave_one_out_baseline(torch.zeros(2, 3), mask, generations)
