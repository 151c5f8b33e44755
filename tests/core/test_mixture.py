"""Responsibilities, posterior, subtractive decoding and the capped reward: by hand, by enumeration, at the edges."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.core.masks import lengths_to_mask
from densepath.core.mixture import (
    bounded_posterior,
    capped_increments,
    capped_returns,
    capped_rewards,
    capped_weights,
    excess_weights,
    lifts,
    log_ratios_before,
    log_ratios_so_far,
    log_share_errors,
    mean_shares,
    prefix_posteriors,
    rank_bands,
    responsibilities,
    running_before,
    sequence_scores,
    settled_shares,
    subtractive_logprobs,
    systematic_draws,
)
from densepath.theory import exact
from densepath.theory.mdp import gather_tokens, sequence_logprobs, token_policy, token_tree

INF, NAN = float("inf"), float("nan")
F64 = torch.float64
LOG2, LOG4 = math.log(2), math.log(4)


def tensor(values):
    return torch.tensor(values, dtype=F64)


def close(found, expected, atol=1e-13):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


# ---------------------------------------------------------------- by hand


REWARDS = tensor([[1.0, -2.0, 4.0, NAN], [3.0, 0.5, NAN, NAN], [NAN, NAN, NAN, NAN]])
MASK = lengths_to_mask(torch.tensor([3, 2, 0]), 4)


def test_log_ratios_literal():
    # 1, 1 - 2, 1 - 2 + 4 | 3, 3.5 | nothing
    assert log_ratios_so_far(REWARDS, MASK).tolist() == [[1.0, -1.0, 3.0, 0.0], [3.0, 3.5, 0.0, 0.0], [0.0] * 4]
    assert log_ratios_before(REWARDS, MASK).tolist() == [[0.0, 1.0, -1.0, 0.0], [0.0, 3.0, 0.0, 0.0], [0.0] * 4]
    # a tool's tokens in between add nothing
    tool = torch.tensor([[False, True, False, True]])
    assert log_ratios_so_far(tensor([[NAN, 1.0, NAN, 2.0]]), tool).tolist() == [[0.0, 1.0, 0.0, 3.0]]
    assert log_ratios_before(tensor([[NAN, 1.0, NAN, 2.0]]), tool).tolist() == [[0.0, 0.0, 0.0, 1.0]]


def test_sequence_scores_literal():
    # 3 / sqrt 3, 3.5 / sqrt 2, and nothing for nothing
    close(sequence_scores(REWARDS, MASK), tensor([math.sqrt(3), 3.5 / math.sqrt(2), 0.0]))


def test_responsibilities_literal():
    # shares 1/4, 3/4; likelihoods 1/2, 1/10 and 0, 1: (1/8, 3/40) is 5 : 3
    likelihoods = tensor([[1 / 2, 1 / 10], [0.0, 1.0]])
    found = responsibilities(likelihoods.log(), tensor([1 / 4, 3 / 4]).log())
    close(found, tensor([[5 / 8, 3 / 8], [0.0, 1.0]]))
    close(mean_shares(found), tensor([5 / 16, 11 / 16]))
    # long answers: likelihoods that exp cannot hold, and any common offset of the shares
    far = responsibilities(likelihoods.log() - 2e4, tensor([1 / 4, 3 / 4]).log() + 7.0)
    close(far, found, atol=1e-10)


def test_an_empty_completion_says_nothing_and_one_behaviour_wrote_everything():
    close(responsibilities(tensor([[0.0, 0.0]]), tensor([0.3, 0.7]).log()), tensor([[0.3, 0.7]]))
    assert responsibilities(tensor([[-5.0], [-1e6]]), tensor([0.0])).tolist() == [[1.0], [1.0]]
    assert mean_shares(tensor([[1.0], [1.0]])).tolist() == [1.0]
    assert lifts(tensor([1.0]), tensor([1.0])).tolist() == [0.0]


def test_lifts_literal():
    found = lifts(tensor([0.6, 0.4, 0.0, 0.0]), tensor([0.3, 0.0, 0.7, 0.0]))
    assert found[:3].tolist() == [pytest.approx(LOG2), INF, -INF]
    assert math.isnan(found[3])  # neither shows it: there is nothing to say


def test_bounded_posterior_literal():
    # c = 1/2: 1 - 1/2, 1 - 1/2 / 4, cut at 0 below log 1/2, and the ends
    ratios = tensor([0.0, LOG4, -LOG2, -LOG4, INF, -INF])
    close(bounded_posterior(ratios, 0.5), tensor([0.5, 0.875, 0.0, 0.0, 1.0, 0.0]))
    assert bounded_posterior(ratios, 0.0).tolist() == [1.0] * 6  # nothing is the reference's
    close(bounded_posterior(ratios, 1.0), tensor([0.0, 0.75, 0.0, 0.0, 1.0, 0.0]))
    # near 0 it keeps its digits: 1 - exp(-x) = x - x^2 / 2
    close(bounded_posterior(tensor([1e-9]), 1.0) / 1e-9, tensor([1 - 0.5e-9]))
    assert bounded_posterior(tensor([1e4, -1e4]), 1.0).tolist() == [1.0, 0.0]
    assert bounded_posterior(torch.tensor([LOG4], dtype=torch.bfloat16), 0.5).dtype == torch.float32


def test_excess_weights_literal():
    ratios = tensor([0.0, LOG2, LOG4, 3 * LOG2, INF, -INF])
    # of their median-like threshold log 2: what is twice and four times as likely beyond it
    close(excess_weights(ratios, LOG2), tensor([0.0, 0.0, 0.5, 0.75, 1.0, 0.0]))
    assert torch.equal(excess_weights(ratios, math.log(0.3)), bounded_posterior(ratios, 0.3))


def test_half_precision_is_lifted_before_it_is_summed():
    """256 + 1 is 256 in bfloat16."""
    rewards = torch.tensor([[256.0, 1.0, -257.0]], dtype=torch.bfloat16).clamp(min=-256.0)
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert log_ratios_so_far(rewards, mask).tolist() == [[256.0, 257.0, 1.0]]
    assert capped_rewards(rewards, mask, 2.0).tolist() == [[0.0, 0.0, -1.0]]
    assert sequence_scores(rewards, mask).item() == pytest.approx(1 / math.sqrt(3), abs=1e-7)


def test_prefix_posteriors_literal():
    rewards = tensor([[LOG2, LOG2, -LOG4, NAN], [NAN] * 4])
    mask = lengths_to_mask(torch.tensor([3, 0]), 4)
    # R: log 2, log 4, 0; c = 1: 1/2, 3/4, 0
    close(prefix_posteriors(rewards, mask, 1.0), tensor([[0.5, 0.75, 0.0, 0.0], [0.0] * 4]))


def test_subtractive_logprobs_literal():
    sft, ref = tensor([0.5, 0.25, 0.25]).log(), tensor([0.25, 0.75, 0.0]).log()
    # at the start, c = 1/2: .5 - .125, .25 - .375 -> floor .1 of .25, .25 - 0
    expected = tensor([0.375, 0.025, 0.25]) / 0.65
    close(subtractive_logprobs(sft, ref, tensor(0.0), 0.5, 0.1).exp(), expected)
    # after R = log 2 the reference weighs half as much: .5 - .0625, .25 - .1875, .25
    expected = tensor([0.4375, 0.0625, 0.25]) / 0.75
    close(subtractive_logprobs(sft, ref, tensor(LOG2), 0.5, 0.1).exp(), expected)
    # logits of any offset, and a batch
    both = subtractive_logprobs(
        torch.stack([sft + 3, sft]), torch.stack([ref, ref - 5]), tensor([LOG2, LOG2]), 0.5, 0.1
    )
    close(both.exp(), torch.stack([expected, expected]))


def test_subtractive_logprobs_at_the_edges():
    sft, ref = tensor([0.5, 0.5, 0.0]).log(), tensor([0.75, 0.0, 0.25]).log()
    zero = tensor(0.0)
    for share, ratio, floor in (
        (0.0, zero, 1e-3),
        (0.7, zero, 1.0),
        (1.0, tensor(INF), 1e-3),
        (0.0, -tensor(INF), 0.1),
    ):
        close(subtractive_logprobs(sft, ref, ratio, share, floor).exp(), tensor([0.5, 0.5, 0.0]))
    # c = 1: .5 - .75 -> floor; the reference never takes the second; the third stays impossible
    close(subtractive_logprobs(sft, ref, zero, 1.0, 0.01).exp(), tensor([0.005, 0.5, 0.0]) / 0.505)
    # all of it is the reference's doing: SFT's own distribution, by the floor
    close(subtractive_logprobs(sft, sft, zero, 1.0, 1e-6).exp(), tensor([0.5, 0.5, 0.0]))
    close(subtractive_logprobs(sft, sft, tensor(-1e4), 1.0, 1e-6).exp(), tensor([0.5, 0.5, 0.0]))
    # a floor that float32 cannot hold
    tiny = subtractive_logprobs(sft.float(), sft.float(), torch.tensor(-3.0), 1.0, 1e-60)
    assert tiny.exp().tolist() == [0.5, 0.5, 0.0]
    # half precision is lifted
    half = subtractive_logprobs(sft.bfloat16(), ref.bfloat16(), zero.bfloat16(), 0.5, 0.1)
    assert half.dtype == torch.float32


def test_a_nan_is_passed_on_and_not_taken_for_a_number():
    sft, bad = tensor([0.5, 0.5]).log(), tensor([NAN, 0.0])
    for arguments in ((bad, sft, tensor(0.0)), (sft, bad, tensor(0.0)), (sft, sft, tensor(NAN))):
        for share in (0.0, 0.5):
            if share == 0.0 and arguments[1] is bad:
                continue  # c = 0 does not read the reference
            assert subtractive_logprobs(*arguments, share, 0.1).isnan().all()
    for share in (0.0, 0.5, 1.0):
        assert bounded_posterior(tensor([NAN]), share).isnan().all()
    assert capped_rewards(tensor([[1.0, NAN, 1.0]]), torch.ones(1, 3, dtype=torch.bool), 0.0).isnan()[0, 1]


def test_capped_rewards_literal():
    # R: 1, -1, 3; kappa 0: 0, -1, 0, so the increments 0, -1, +1. R: 3, 3.5: 0
    assert capped_rewards(REWARDS, MASK, 0.0).tolist() == [[0.0, -1.0, 1.0, 0.0], [0.0] * 4, [0.0] * 4]
    # kappa 2, alpha 3: 3 min(0, R - 2) is -3, -9, 0; the first token bears all of its own
    assert capped_rewards(REWARDS, MASK, 2.0, 3.0).tolist() == [[-3.0, -6.0, 9.0, 0.0], [0.0] * 4, [0.0] * 4]
    # kappa -1/2: 0, -1/2, 0
    assert capped_rewards(REWARDS, MASK, -0.5).tolist()[0] == [0.0, -0.5, 0.5, 0.0]
    assert capped_returns(tensor([3.0, 2.0, -1.0, INF, -INF]), 2.0, 3.0).tolist() == [0.0, 0.0, -9.0, 0.0, -INF]
    # whatever the first token that counts
    tool = torch.tensor([[False, True, False, True]])
    assert capped_rewards(tensor([[NAN, 1.0, NAN, 3.0]]), tool, 2.0).tolist() == [[0.0, -1.0, 0.0, 1.0]]


def test_capped_rewards_of_impossible_tokens():
    mask = torch.ones(1, 3, dtype=torch.bool)
    # what the reference cannot write is as good as R above the cap; what SFT cannot write is lost for good
    assert capped_rewards(tensor([[-2.0, INF, -5.0]]), mask, 0.0).tolist() == [[-2.0, 2.0, 0.0]]
    assert capped_rewards(tensor([[-2.0, -INF, 5.0]]), mask, 0.0).tolist() == [[-2.0, -INF, 0.0]]


def test_capped_increments_of_every_action():
    """Those of the tokens that were sampled, and of any other that could have been."""
    rewards, mask = REWARDS[:2, :2], MASK[:2, :2]
    others = torch.stack([rewards, rewards - 3.0], dim=-1)
    first = torch.tensor([[True, False], [True, False]])
    before = log_ratios_before(rewards, mask)
    found = capped_increments(others, before.unsqueeze(-1), first.unsqueeze(-1), 2.0, 3.0)
    assert torch.equal(found[..., 0], capped_rewards(rewards, mask, 2.0, 3.0))
    # first tokens 1 - 3, 3 - 3: 3 min(0, R - 2) = -12, -6; then R = 1 - 5 from -3 and 3 - 2.5 from 0
    assert found[..., 1].tolist() == [[-12.0, -15.0], [-6.0, -4.5]]


def test_capped_weights_literal():
    ratios = tensor([INF, 1.0, 0.0, -LOG2, -INF])
    close(capped_weights(ratios, 0.0, 1.0, 1.0), tensor([1.0, 1.0, 1.0, 0.5, 0.0]))
    close(capped_weights(ratios, 0.0, 1.0, 0.5), tensor([1.0, 1.0, 1.0, 0.25, 0.0]))
    close(capped_weights(ratios, 1.0, 2.0, 2.0), tensor([1.0, 1.0, math.exp(-1), 0.5 * math.exp(-1), 0.0]))
    # beta 0 is the filter R >= kappa
    assert capped_weights(ratios, 0.0, 1.0, 0.0).tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_no_columns_and_no_rows():
    for shape in ((2, 0), (0, 3), (0, 0)):
        rewards, mask = torch.zeros(shape, dtype=F64), torch.ones(shape, dtype=torch.bool)
        for found in (
            log_ratios_so_far(rewards, mask),
            log_ratios_before(rewards, mask),
            prefix_posteriors(rewards, mask, 0.5),
            capped_rewards(rewards, mask, 1.0),
        ):
            assert found.shape == shape
        assert sequence_scores(rewards, mask).tolist() == [0.0] * shape[0]


def test_bad_arguments_are_refused():
    one = tensor([[1.0]])
    with pytest.raises(TypeError, match="bool"):
        sequence_scores(one, one)
    with pytest.raises(ValueError, match=r"\(batch, tokens\)"):
        log_ratios_so_far(one[0], torch.ones(1, dtype=torch.bool))
    with pytest.raises(ValueError, match="log-shares"):
        responsibilities(one, tensor([0.0, 0.0]))
    for value in (NAN, INF):
        with pytest.raises(ValueError, match="answer 1 are NaN"):
            responsibilities(tensor([[0.0, 0.0], [value, 0.0]]), tensor([0.5, 0.5]).log())
    with pytest.raises(ValueError, match="answer 1 has probability 0"):
        responsibilities(tensor([[0.0, 0.0], [0.0, -INF]]), tensor([0.0, 1.0]).log())
    with pytest.raises(ValueError, match="answers > 0"):
        mean_shares(one[:0])
    with pytest.raises(ValueError, match="shares must be"):
        lifts(tensor([1.0]), tensor([0.5, 0.5]))
    for share in (-0.1, 1.1, NAN):
        with pytest.raises(ValueError, match="reference_share"):
            bounded_posterior(one, share)
    with pytest.raises(ValueError, match="threshold"):
        excess_weights(one, NAN)
    for floor in (0.0, -1.0, 1.5, NAN):
        with pytest.raises(ValueError, match="floor"):
            subtractive_logprobs(one, one, one[0], 0.5, floor)
    with pytest.raises(ValueError, match="do not fit"):
        subtractive_logprobs(one, one, one, 0.5, 0.1)
    for cap in (INF, NAN):
        with pytest.raises(ValueError, match="cap"):
            capped_returns(one, cap)
    for scale in (0.0, -1.0, INF, NAN):
        with pytest.raises(ValueError, match="scale"):
            capped_rewards(one, one > 0, 0.0, scale)
    for beta in (-1.0, INF, NAN):
        with pytest.raises(ValueError, match="beta"):
            capped_weights(one, 0.0, 1.0, beta)


# ---------------------------------------------------------------- whatever the numbers


rows = st.lists(st.lists(st.floats(-50, 50), max_size=6), min_size=1, max_size=4)


def padded(rows, width, filler):
    values = torch.full((len(rows), width), filler, dtype=F64)
    for number, row in enumerate(rows):
        values[number, : len(row)] = tensor(row)
    return values, lengths_to_mask(torch.tensor([len(row) for row in rows]), width)


@settings(deadline=None, max_examples=60)
@given(rows, st.floats(-20, 20), st.floats(0.01, 10))
def test_capped_rewards_telescope_and_padding_changes_nothing(rows, cap, scale):
    values, mask = padded(rows, 6, NAN)
    found = capped_rewards(values, mask, cap, scale)
    for number, row in enumerate(rows):
        # each beginning's increments sum to the capped sum of that beginning
        for end in range(1, len(row) + 1):
            expected = scale * min(0.0, math.fsum(row[:end]) - cap)
            assert found[number, :end].sum().item() == pytest.approx(expected, abs=1e-10)
    assert torch.equal(found * mask, found)
    wider, wide_mask = padded(rows, 9, INF)
    for function in (
        lambda r, m: capped_rewards(r, m, cap, scale),
        lambda r, m: prefix_posteriors(r, m, 0.5),
        log_ratios_so_far,
        log_ratios_before,
    ):
        assert torch.equal(function(wider, wide_mask)[:, :6], function(values, mask))
        assert torch.equal(function(values.flip(0), mask.flip(0)).flip(0), function(values, mask))
    close(sequence_scores(wider, wide_mask), sequence_scores(values, mask), atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-800, 800) | st.sampled_from([INF, -INF]), min_size=1, max_size=8), st.floats(0, 1))
def test_posterior_is_a_probability_and_rises_with_the_log_ratio(values, share):
    ratios = tensor(values).sort().values
    posterior = bounded_posterior(ratios, share)
    assert bool(((posterior >= 0) & (posterior <= 1)).all())
    assert bool((posterior[:-1] <= posterior[1:]).all())
    for ratio, found in zip(ratios.tolist(), posterior.tolist(), strict=True):
        if share > 0 and abs(ratio) < 700:
            assert found == pytest.approx(max(0.0, 1 - share * math.exp(-ratio)), abs=1e-13)


logits = st.lists(st.floats(-30, 30), min_size=4, max_size=4)


@settings(deadline=None, max_examples=80)
@given(logits, logits, st.floats(-30, 30), st.floats(0, 1), st.floats(1e-6, 1))
def test_subtractive_logprobs_against_the_formula_in_probabilities(sft, ref, ratio, share, floor):
    sft, ref = tensor(sft), tensor(ref)
    p, q = sft.softmax(-1), ref.softmax(-1)
    expected = torch.maximum(p - share * math.exp(-ratio) * q, floor * p)
    found = subtractive_logprobs(sft, ref, tensor(ratio), share, floor)
    assert found.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    close(found.exp(), expected / expected.sum(), atol=1e-9)


# ---------------------------------------------------------------- by enumeration


def planted(groups=3, vocab=3, horizon=3, seed=0):
    """Behaviours that share no sequence: which one each sequence belongs to, and log-probabilities under each."""
    tree = token_tree(vocab, horizon, 0)
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(len(tree.sequences), dtype=F64, generator=generator)
    owner = torch.randperm(len(base), generator=generator) % groups
    behaviours = torch.stack([torch.where(owner == k, base, -INF).log_softmax(0) for k in range(groups)])
    return tree, owner, behaviours


def mixed(tree, behaviours, shares):
    """The mixture as a policy: token by token, as a model has it."""
    return token_policy(tree, (behaviours + shares.log().unsqueeze(1)).logsumexp(0))


def rewards_of(tree, log_sft, log_ref):
    return gather_tokens(tree, log_sft - log_ref)


SFT_SHARES, REF_SHARES = tensor([0.5, 0.3, 0.2]), tensor([0.2, 0.3, 0.5])


def test_em_recovers_a_planted_mixture():
    """With the true behaviours one E step from any shares is exact, and R is the log-lift of the behaviour."""
    tree, owner, behaviours = planted()
    for shares in (SFT_SHARES, tensor([0.98, 0.01, 0.01])):
        found = responsibilities(behaviours.T, shares.log())
        assert torch.equal(found, torch.nn.functional.one_hot(owner, 3).double())
    sft, ref = (mixed(tree, behaviours, shares) for shares in (SFT_SHARES, REF_SHARES))
    # shares of a population: every sequence as often as its probability
    of_sft, of_ref = (sequence_logprobs(tree, policy).exp() @ found for policy in (sft, ref))
    close(of_sft, SFT_SHARES)
    close(of_ref, REF_SHARES)
    close(rewards_of(tree, sft, ref).sum(1), lifts(of_sft, of_ref)[owner], atol=1e-12)


def test_posterior_is_exact_on_a_disjoint_mixture_for_sequences_and_prefixes():
    """Demonstrations: the reference's own habits, and more of some behaviours, whether it has them or not."""
    tree, owner, behaviours = planted()
    for ref_shares, new_shares in (
        (tensor([1.0, 0.0, 0.0]), tensor([0.0, 0.6, 0.4])),  # all new
        (REF_SHARES, tensor([0.7, 0.3, 0.0])),
    ):
        share = 0.4
        joint = torch.stack([share * ref_shares, (1 - share) * new_shares])  # who wrote it, behaviour
        sft, ref = mixed(tree, behaviours, joint.sum(0)), mixed(tree, behaviours, ref_shares)
        exactly = (joint[1] / joint.sum(0))[owner]
        ratios = sequence_logprobs(tree, sft) - sequence_logprobs(tree, ref)
        close(bounded_posterior(ratios, share), exactly)
        chances = sequence_logprobs(tree, sft).exp()
        prefixes = prefix_posteriors(reachable(tree, sft, ref), tree.mask, share)
        for row, end in itertools.product(range(len(owner)), range(tree.mdp.horizon)):
            if not tree.mask[row, end]:
                continue
            begin = (tree.sequences[:, : end + 1] == tree.sequences[row, : end + 1]).all(1)
            begin &= tree.mask[:, end]
            bayes = (chances * exactly)[begin].sum() / chances[begin].sum()
            assert prefixes[row, end].item() == pytest.approx(bayes.item(), abs=1e-13)


def reachable(tree, sft, ref):
    """Rewards with 0 for tokens behind one that the reference cannot take: its table says nothing true there."""
    rewards = rewards_of(tree, sft, ref)
    behind = (log_ratios_before(rewards, tree.mask) == INF) & tree.mask
    return torch.where(behind, 0.0, rewards)


def small(seed=4):
    """Seven sequences, 128 events."""
    tree = token_tree(3, 2, 0)
    generator = torch.Generator().manual_seed(seed)
    sft, drift = (torch.randn(tree.mdp.num_states, 3, dtype=F64, generator=generator) for _ in range(2))
    return tree, sft.log_softmax(-1), (sft + 1.5 * drift).log_softmax(-1)


def table_of(tree, per_token):
    """Per-token values of every sequence as a (states, actions) table; sequences agree where they share a prefix."""
    table = torch.zeros(tree.mdp.num_states, tree.mdp.num_actions, dtype=F64)
    table[tree.states[tree.mask], tree.sequences[tree.mask]] = per_token[tree.mask]
    close(gather_tokens(tree, table), per_token, atol=0)
    return table


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("cap", "scale", "beta"), [(0.0, 1.0, 1.0), (0.3, 2.0, 0.5), (-0.7, 8.0, 1.0)])
def test_capped_optimum_and_its_bound_for_every_event(seed, cap, scale, beta):
    tree, sft, ref = small(seed)
    rewards = rewards_of(tree, sft, ref)
    prior = sequence_logprobs(tree, sft).exp()
    table = table_of(tree, capped_rewards(rewards, tree.mask, cap, scale))
    best = sequence_logprobs(tree, exact.soft_optimum(tree.mdp, table, sft, beta).log_policy).exp()
    # in probabilities, from the ratio itself
    ratio = prior / sequence_logprobs(tree, ref).exp()
    weights = torch.clamp((ratio / math.exp(cap)) ** (scale / beta), max=1.0)
    z = (prior * weights).sum()
    close(best, prior * weights / z)
    close(capped_weights(ratio.log(), cap, scale, beta), weights)
    assert bool((best / prior <= 1 / z * (1 + 1e-12)).all())  # hence for every event, and each of them:
    for chosen in itertools.product([False, True], repeat=7):
        event = torch.tensor(chosen)
        assert best[event].sum() <= prior[event].sum() / z + 1e-14
    # what lies above the cap never loses
    assert bool((best >= prior * (1 - 1e-12))[ratio.log() >= cap].all())


def test_small_beta_is_sft_given_that_the_cap_is_reached():
    tree, sft, ref = small()
    rewards = rewards_of(tree, sft, ref)
    prior, total = sequence_logprobs(tree, sft).exp(), rewards.sum(1)
    for cap in (0.0, 0.2):
        given_cap = torch.where(total >= cap, prior, 0.0) / prior[total >= cap].sum()
        assert 0 < (total >= cap).sum() < 7
        table = table_of(tree, capped_rewards(rewards, tree.mask, cap, 1.0))
        best = sequence_logprobs(tree, exact.soft_optimum(tree.mdp, table, sft, 1e-3).log_policy).exp()
        close(best, given_cap)
        weights = capped_weights(total, cap, 1.0, 0.0)
        close(prior * weights / (prior @ weights), given_cap)


def test_why_the_cap_is_on_the_sequence():
    """SFT learned the task, and with it a new error beside the right answer: R is positive for both.

    First token: habit (which ends) or task, .9 and .1 before, .1 and .9 after. Then right or error: .9 and .1 before,
    .5 and .5 after. The cap at 0 leaves right and error as SFT has them; a cap on each token sees log .5/.9 < 0 at the
    right answer's second token and nothing at the error's, and makes the right answer rarer than under SFT.
    """
    tree = token_tree(3, 2, 0)  # 0 ends; first 0 = habit, 1 = task, 2 unused; then 1 = right, 2 = error
    tiny = 1e-300
    sft = tensor([[0.1, 0.9, tiny], [tiny, 0.5, 0.5], [1 / 3] * 3]).log()
    ref = tensor([[0.9, 0.1, tiny], [tiny, 0.9, 0.1], [1 / 3] * 3]).log()
    habit, right, error = 0, 2, 3
    assert [tree.sequences[row].tolist() for row in (habit, right, error)] == [[0, 0], [1, 1], [1, 2]]
    rewards = rewards_of(tree, sft, ref)
    close(rewards.sum(1)[[habit, right, error]], tensor([-math.log(9), math.log(5), math.log(45)]))
    found = {}
    per_token = rewards.clamp(max=0)
    for name, dense in (("sequence", capped_rewards(rewards, tree.mask, 0.0)), ("token", per_token)):
        best = exact.soft_optimum(tree.mdp, table_of(tree, dense), sft, 1.0).log_policy
        found[name] = sequence_logprobs(tree, best).exp()[[habit, right, error]]
    # weights 1/9, 1, 1 on .1, .45, .45; per token 1/9, 5/9, 1
    by_hand = tensor([0.1 / 9, 0.45, 0.45])
    close(found["sequence"], by_hand / by_hand.sum())
    by_hand = tensor([0.1 / 9, 0.25, 0.45])
    close(found["token"], by_hand / by_hand.sum())
    assert found["token"][1] < 0.45 < found["sequence"][1]


@pytest.mark.parametrize("seed", range(4))
def test_subtractive_decoding_is_the_difference_of_whole_sequences(seed):
    tree, sft, ref = small(seed)
    p, q = (sequence_logprobs(tree, table).exp() for table in (sft, ref))
    share = 0.9 * float((p / q).min())
    found = decoded(tree, sft, ref, share, 1e-9)
    close(found, (p - share * q) / (1 - share))
    # any c: no sequence, so no event, grows by more than 1 / max(1 - c, floor)
    for wanted, floor in ((0.5, 0.01), (0.8, 0.1), (1.0, 0.05)):
        bound = torch.clamp(1 - wanted * q / p, min=floor) / max(1 - wanted, floor)
        assert bool((decoded(tree, sft, ref, wanted, floor) / p <= bound * (1 + 1e-12)).all())


def decoded(tree, sft, ref, share, floor):
    """Probabilities of the sequences when every token is drawn by `subtractive_logprobs`, with its own R_<t."""
    rewards = rewards_of(tree, sft, ref)
    before = log_ratios_before(rewards, tree.mask)
    policy = subtractive_logprobs(sft[tree.states], ref[tree.states], before, share, floor)
    taken = policy.gather(-1, tree.sequences.unsqueeze(-1)).squeeze(-1)
    return torch.where(tree.mask, taken, 0.0).sum(1).exp()


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_the_running_sum_of_rows_in_a_line_equals_a_loop(chunk):
    lengths = [3, 1, 0, 5, 2]
    rewards = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(0))
    first = torch.tensor([place == 0 for length in lengths for place in range(length)])
    expected, total = [], 0.0
    for value, begins in zip(rewards.tolist(), first.tolist(), strict=True):
        total = 0.0 if begins else total
        expected.append(total)
        total += value
    carried, parts = torch.zeros((), dtype=torch.float64), []
    for start in range(0, len(rewards), chunk):
        part = slice(start, start + chunk)
        found, carried = running_before(rewards[part], first[part], carried)
        parts.append(found)
    torch.testing.assert_close(torch.cat(parts), torch.tensor(expected, dtype=torch.float64))


# ---------------------------------------------------------------- bands, draws and settled shares


def test_rank_bands_by_hand():
    scores = tensor([5.0, 1.0, 9.0, 3.0, 7.0, 2.0, 8.0, 4.0, 6.0, 0.0])
    one = torch.zeros(10, dtype=torch.int64)
    # Ranks are the scores themselves. Two of ten in a band: 0 1 | 4 5 | 8 9, flush at both ends.
    assert rank_bands(scores, one, 3, 0.2).tolist() == [1, 0, 2, -1, -1, -1, 2, 1, -1, 0]
    assert rank_bands(scores, one, 2, 0.5).tolist() == [int(score >= 5) for score in scores]
    # Four of one value stay in their order.
    assert rank_bands(torch.zeros(4), one[:4], 2, 0.5).tolist() == [0, 0, 1, 1]


def test_rank_bands_are_taken_within_each_kind():
    scores = tensor([10.0, 11.0, 12.0, 13.0, 0.0, 1.0, 2.0, 3.0])
    kinds = torch.tensor([0, 0, 0, 0, 7, 7, 7, 7])
    assert rank_bands(scores, kinds, 2, 0.25).tolist() == [0, -1, -1, 1, 0, -1, -1, 1]
    assert rank_bands(scores, torch.zeros(8), 2, 0.25).tolist() == [-1, -1, 1, 1, 0, 0, -1, -1]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-9, 9), min_size=5, max_size=60), st.integers(2, 5), st.floats(0.01, 1))
def test_rank_bands_are_of_one_size_in_order_and_flush(values, number, share):
    scores, share = tensor(values), share / number
    bands = rank_bands(scores, torch.zeros(len(values)), number, share)
    sizes = [int((bands == band).sum()) for band in range(number)]
    assert sizes == [max(1, math.floor(share * len(values)))] * number
    assert bands[scores.argsort(stable=True)[0]] == 0
    assert bands[scores.argsort(stable=True)[-1]] == number - 1
    for band in range(number - 1):
        assert scores[bands == band].max() <= scores[bands == band + 1].min()


@pytest.mark.parametrize(
    ("scores", "kinds", "number", "share", "message"),
    [
        (torch.zeros(4), torch.zeros(4), 1, 0.2, "1 bands of a share of 0.2 each overlap or are none"),
        (torch.zeros(4), torch.zeros(4), 2, 0.6, "2 bands of a share of 0.6 each overlap"),
        (torch.zeros(4), torch.zeros(4), 2, 0.0, "overlap or are none"),
        (torch.zeros(2), torch.zeros(2), 3, 0.2, "2 answers of a kind, fewer than 3 bands need"),
        (torch.zeros(4), torch.tensor([0, 0, 0, 1]), 2, 0.2, "1 answers of a kind, fewer than 2 bands need"),
        (torch.zeros(4), torch.zeros(3), 2, 0.2, "scores must be finite and"),
        (tensor([0.0, NAN]), torch.zeros(2), 2, 0.2, "scores must be finite and"),
    ],
)
def test_rank_bands_refuse(scores, kinds, number, share, message):
    with pytest.raises(ValueError, match=message):
        rank_bands(scores, kinds, number, share)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.just(0.0) | st.floats(1e-6, 1e6), min_size=1, max_size=30).filter(any),
    st.integers(1, 200),
    st.integers(0, 9),
)
def test_systematic_draws_are_expectations_rounded(values, count, seed):
    weights = tensor(values)
    found = systematic_draws(weights, count, torch.Generator().manual_seed(seed))
    assert found.shape == (count,)
    drawn = torch.bincount(found, minlength=len(values)).double()
    expected = count * weights / weights.sum()
    assert bool((drawn >= (expected - 1e-6).floor()).all())
    assert bool((drawn <= (expected + 1e-6).ceil()).all())
    assert not drawn[weights == 0].any()


def test_systematic_draws_on_average_and_refused():
    draws = [systematic_draws(tensor([1.0, 2.0, 0.0, 7.0]), 3, torch.Generator().manual_seed(n)) for n in range(4000)]
    drawn = torch.bincount(torch.cat(draws), minlength=4) / 4000
    close(drawn.double(), tensor([0.3, 0.6, 0.0, 2.1]), atol=0.03)  # four standard errors
    firsts = torch.bincount(torch.stack(draws)[:, 0], minlength=4) / 4000
    close(firsts.double(), tensor([0.1, 0.2, 0.0, 0.7]), atol=0.03)  # in random order
    for weights in ([0.0, 0.0], [1.0, -1.0], [1.0, NAN], [1.0, INF], []):
        with pytest.raises(ValueError, match="finite numbers, none below 0 and not all 0"):
            systematic_draws(tensor(weights), 2, torch.Generator())


@pytest.mark.parametrize("seed", range(5))
def test_settled_shares_maximise_the_likelihood(seed):
    """Against every pair of shares on a grid of a thousandth."""
    scores = 3 * torch.randn(40, 3, dtype=F64, generator=torch.Generator().manual_seed(seed)) - 20
    found = settled_shares(scores, tolerance=1e-9, most=20_000)
    steps = torch.arange(1001, dtype=F64) / 1000
    grid = torch.cartesian_prod(steps, steps)
    grid = torch.cat([grid, 1 - grid.sum(dim=1, keepdim=True)], dim=1)
    grid = grid[grid[:, 2] > -1e-12].clamp(min=0)
    likelihoods = ((scores + 20).exp() @ grid.T).log().sum(dim=0)
    close(found, grid[likelihoods.argmax()], atol=1.5e-3)
    assert (scores + found.log()).logsumexp(dim=1).sum() + 800 >= likelihoods.max() - 1e-6


def test_settled_shares_of_what_tells_nothing_stay():
    close(settled_shares(torch.zeros(6, 2)), tensor([0.5, 0.5]))
    told = tensor([[0.0, -900.0], [0.0, -900.0], [-900.0, 0.0]])
    close(settled_shares(told), tensor([2 / 3, 1 / 3]))


@pytest.mark.parametrize("seed", range(3))
def test_the_errors_of_log_shares_are_those_of_the_likelihoods_curvature(seed):
    """Two behaviours: var(log rho) = 1 / (rho^2 I), I the second difference of -log-likelihood at its maximum."""
    scores = 3 * torch.randn(60, 2, dtype=F64, generator=torch.Generator().manual_seed(seed)) - 20
    found = settled_shares(scores, tolerance=1e-12, most=20_000)

    def likelihood(first: float) -> float:
        return float((scores + tensor([first, 1 - first]).log()).logsumexp(dim=1).sum())

    first, step = float(found[0]), 1e-4
    curvature = (2 * likelihood(first) - likelihood(first - step) - likelihood(first + step)) / step**2
    close(log_share_errors(scores, found), 1 / (found * curvature**0.5), atol=1e-5)


def test_the_errors_of_log_shares_where_answers_tell_all_or_nothing():
    told = tensor([[0.0, -900.0]] * 30 + [[-900.0, 0.0]] * 10)
    close(
        log_share_errors(told, settled_shares(told)), tensor([(1 / 120) ** 0.5, (3 / 40) ** 0.5]), atol=1e-8
    )  # binomial
    alike, never = torch.zeros(40, 2, dtype=F64), told[:30]
    assert float(log_share_errors(alike, settled_shares(alike)).min()) > 100
    assert float(log_share_errors(never, settled_shares(never))[1]) > 100
