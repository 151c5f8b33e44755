"""Per-token rewards: worked by hand, and what must not change them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.core.masks import lengths_to_mask
from densepath.core.returns import returns_to_go
from densepath.core.rewards import (
    ReferenceMean,
    baseline_relative,
    inverse_bellman,
    logprob,
    mean_logprob,
    mean_probability,
    pair_rewards,
    position_z_scores,
)

NAN = float("nan")


def test_baseline_relative_literal():
    sft = torch.tensor([[-1.0, -2.0, -0.5, NAN], [-3.0, -1.0, NAN, NAN]])
    ref = torch.tensor([[-1.5, -1.0, -0.5, NAN], [-1.0, -1.0, -9.0, NAN]])
    mask = lengths_to_mask(torch.tensor([3, 2]), 4)
    # -1 + 1.5, -2 + 1, -0.5 + 0.5 | -3 + 1, -1 + 1; zero behind the mask, whatever stands there
    assert baseline_relative(sft, ref, mask).tolist() == [[0.5, -1.0, 0.0, 0.0], [-2.0, 0.0, 0.0, 0.0]]


def test_logprob_literal():
    mask = torch.tensor([[True, True, False]])
    assert logprob(torch.tensor([[-1.0, -2.0, NAN]]), mask).tolist() == [[-1.0, -2.0, 0.0]]


def test_inverse_bellman_literal():
    # raw logits of the tokens, and V of every state passed
    logits = torch.tensor([[2.0, 1.0, 5.0], [0.5, 4.0, 3.0]])
    values = torch.tensor([[3.0, 2.5, 7.0, 9.0], [1.0, 6.0, 5.0, 8.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    # row 0 ends with EOS at its second token: 2 - 2.5, 1 - 0 (V after EOS is 0, the 7 is padding's)
    # row 1 is cut: 0.5 - 6, 4 - 5, 3 - 8 (the model still has a value there)
    found = inverse_bellman(logits, values, mask, terminated=torch.tensor([True, False]))
    assert found.tolist() == [[-0.5, 1.0, 0.0], [-5.5, -1.0, -5.0]]


@pytest.mark.parametrize("value", [1.0, 5.0])
def test_a_policy_trained_on_inverse_bellman_stays_where_the_value_at_the_cut_is_paid_back(value):
    """The maximiser of E[sum r] + entropy, over all completions of two tokens of {EOS, 1, 2}, against pi_SFT."""
    sft = torch.tensor([[0.2, -0.3, 0.5], [0.1, 1.0, -1.0], [0.4, 0.0, 0.7]], dtype=torch.float64)  # s_0, s_1, s_2
    values, policy = sft.logsumexp(-1), sft.softmax(-1)
    states = [(0, 0), *((0, first) for first in (1, 2) for _ in range(3))]
    tokens = [
        (0, 0),
        *((first, second) for first in (1, 2) for second in range(3)),
    ]  # EOS, then 1 and 2 with all three
    mask = torch.tensor([[True, False], *[[True, True]] * 6])
    logits = torch.stack([sft[list(at), list(taken)] for at, taken in zip(states, tokens, strict=True)])
    passed = torch.stack([torch.stack([values[a], values[b], torch.tensor(value).double()]) for a, b in states])
    terminated = torch.tensor([taken[-1] == 0 for taken in tokens])
    chances = torch.tensor(
        [policy[0, 0]] + [policy[0, a] * policy[a, b] for a, b in tokens[1:]], dtype=torch.float64
    )  # of each completion under pi_SFT

    def off(ended):
        optimum = inverse_bellman(logits, passed, mask, ended).sum(dim=1).softmax(0)
        return float((optimum - chances).abs().sum()) / 2

    assert off(terminated) > 0.1  # V taken off at the cut, and not paid back
    assert off(torch.ones_like(terminated)) < 1e-12


def test_inverse_bellman_of_an_empty_row_is_zero():
    found = inverse_bellman(
        torch.ones(1, 2), torch.ones(1, 3), torch.zeros(1, 2, dtype=torch.bool), torch.tensor([True])
    )
    assert found.tolist() == [[0.0, 0.0]]


def test_mean_probability_literal():
    # probabilities 1/2 and 1/4, 1/8 and 1/8: means 3/8 and 1/8
    logprobs = [torch.tensor([math.log(0.5), math.log(0.125)]), torch.tensor([math.log(0.25), math.log(0.125)])]
    assert mean_probability(logprobs).tolist() == pytest.approx([math.log(3 / 8), math.log(1 / 8)])
    one = torch.tensor([-0.3, -7.0], dtype=torch.float64)
    torch.testing.assert_close(mean_probability([one]), one, rtol=0, atol=1e-15)
    assert mean_probability([one, one]).dtype == torch.float64


def test_mean_probability_is_a_distribution():
    tables = [torch.randn(6, dtype=torch.float64).log_softmax(-1) for _ in range(3)]
    assert mean_probability(tables).exp().sum().item() == pytest.approx(1.0, abs=1e-14)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_properties(seed, lengths):
    generator = torch.Generator().manual_seed(seed)
    mask = lengths_to_mask(torch.tensor(lengths), 5)
    sft, ref = (-torch.rand(len(lengths), 5, dtype=torch.float64, generator=generator) for _ in range(2))
    dense = baseline_relative(sft, ref, mask)
    # a model relative to itself earns nothing; exchanging the two turns the sign
    assert not baseline_relative(sft, sft, mask).any()
    assert torch.equal(baseline_relative(ref, sft, mask), -dense)
    # pad contents never matter
    poisoned = torch.where(mask, sft, torch.full_like(sft, NAN))
    assert torch.equal(baseline_relative(poisoned, ref, mask), dense)
    # returns[0] is the sequence's log-ratio
    log_ratio = torch.tensor([(sft[i, :n].sum() - ref[i, :n].sum()).item() for i, n in enumerate(lengths)])
    torch.testing.assert_close(returns_to_go(dense, mask)[:, 0], log_ratio.double(), rtol=0, atol=1e-6)
    # permuting the batch permutes the result
    order = torch.randperm(len(lengths), generator=generator)
    assert torch.equal(baseline_relative(sft[order], ref[order], mask[order]), dense[order])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_inverse_bellman_is_logprob_before_shaping(seed, lengths):
    """log pi = r + V(s') - V(s) at every token, V(s') = 0 after EOS."""
    generator = torch.Generator().manual_seed(seed)
    batch = len(lengths)
    logits = torch.randn(batch, 5, 4, dtype=torch.float64, generator=generator)
    ids = torch.randint(4, (batch, 5), generator=generator)
    final = torch.randn(batch, 1, dtype=torch.float64, generator=generator)
    terminated = torch.rand(batch, generator=generator) < 0.5
    mask = lengths_to_mask(torch.tensor(lengths), 5)
    values = torch.cat([logits.logsumexp(-1), final], dim=1)
    chosen = logits.gather(2, ids.unsqueeze(2)).squeeze(2)
    reward = inverse_bellman(chosen, values, mask, terminated)
    for i, n in enumerate(lengths):
        for t in range(n):
            after = 0.0 if t == n - 1 and terminated[i] else values[i, t + 1].item()
            log_pi = logits[i, t].log_softmax(-1)[ids[i, t]].item()
            assert log_pi == pytest.approx(reward[i, t].item() + after - values[i, t].item(), abs=1e-12)


def test_wrong_inputs_are_refused():
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="differ"):
        baseline_relative(torch.zeros(2, 3), torch.zeros(2, 2), mask)
    with pytest.raises(TypeError, match="bool"):
        logprob(torch.zeros(2, 3), mask.long())
    with pytest.raises(ValueError, match=r"tokens \+ 1"):
        inverse_bellman(torch.zeros(2, 3), torch.zeros(2, 3), mask, torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="terminated"):
        inverse_bellman(torch.zeros(2, 3), torch.zeros(2, 4), mask, torch.ones(2))
    with pytest.raises(ValueError, match="at least one"):
        mean_probability([])


def test_mean_logprob_literal():
    logprobs = [torch.tensor([-1.0, -4.0]), torch.tensor([-3.0, -4.0])]
    assert mean_logprob(logprobs).tolist() == [-2.0, -4.0]
    with pytest.raises(ValueError, match="at least one"):
        mean_logprob([])


def test_pair_rewards_literal():
    sft = torch.tensor([[-1.0, -9.0, -6.0, -0.5, NAN]])
    ref = torch.tensor([[-2.0, -7.0, -1.0, -8.0, NAN]])
    mask = torch.tensor([[True, True, True, True, False]])
    # differences 1, -2, -5, 7.5; with the floor -5: -1+2, -5+5, -5+1, -0.5+5; halved; cut at 1.5
    assert pair_rewards(sft, [ref], mask).tolist() == [[1.0, -2.0, -5.0, 7.5, 0.0]]
    assert pair_rewards(sft, [ref], mask, floor=-5.0).tolist() == [[1.0, 0.0, -4.0, 4.5, 0.0]]
    assert pair_rewards(sft, [ref], mask, floor=-5.0, scale=0.5).tolist() == [[0.5, 0.0, -2.0, 2.25, 0.0]]
    assert pair_rewards(sft, [ref], mask, floor=-5.0, scale=0.5, clip=1.5).tolist() == [[0.5, 0.0, -1.5, 1.5, 0.0]]
    assert pair_rewards(sft, [], mask, floor=-5.0).tolist() == [[-1.0, -5.0, -5.0, -0.5, 0.0]]


def test_the_geometric_mean_of_references_is_the_mean_of_their_rewards():
    sft, *refs = (torch.randn(3, 5, dtype=torch.float64) for _ in range(4))
    mask = torch.ones(3, 5, dtype=torch.bool)
    found = pair_rewards(sft, refs, mask, reference_mean=ReferenceMean.GEOMETRIC)
    each = [pair_rewards(sft, [ref], mask) for ref in refs]
    torch.testing.assert_close(found, sum(each) / 3, atol=1e-14, rtol=0)
    assert (pair_rewards(sft, refs, mask) < found).all()  # the arithmetic mean is larger, Jensen


def test_position_z_scores_literal():
    rewards = torch.tensor([[1.0, 5.0, 2.0], [3.0, 5.0, NAN], [5.0, 5.0, NAN]])
    mask = lengths_to_mask(torch.tensor([3, 2, 2]), 3)
    # first column: mean 3, deviation sqrt(8/3); second: all equal; third: alone
    side = 2 / math.sqrt(8 / 3)
    assert position_z_scores(rewards, mask).tolist() == [
        [pytest.approx(-side), 0.0, 0.0],
        [0.0, 0.0, 0.0],
        [pytest.approx(side), 0.0, 0.0],
    ]
