"""The engine: trees by hand, dynamic programming against brute force over sequences, gradients against autograd."""

import itertools
import math
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.theory import bounds, conjugate, exact
from densepath.theory.mdp import (
    FiniteMDP,
    gather_tokens,
    rollouts,
    sequence_logprobs,
    sequence_tv,
    slippery,
    token_policy,
    token_tree,
)


def random_table(tree, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    shape = (tree.mdp.num_states, tree.mdp.num_actions)
    return scale * torch.randn(*shape, dtype=torch.float64, generator=generator)


def naive_sequences(vocab, horizon, eos):
    """Every completion as a tuple of tokens, by brute force over all words of full length."""
    found = set()
    for word in itertools.product(range(vocab), repeat=horizon):
        cut = word.index(eos) + 1 if eos is not None and eos in word else horizon
        found.add(word[:cut])
    return found


@pytest.mark.parametrize(("vocab", "horizon", "eos"), [(2, 1, 0), (3, 3, 0), (3, 3, 2), (4, 2, 1), (2, 3, None)])
def test_every_sequence_once(vocab, horizon, eos):
    tree = token_tree(vocab, horizon, eos)
    rows = [tuple(row[m].tolist()) for row, m in zip(tree.sequences, tree.mask, strict=True)]
    assert len(rows) == len(set(rows))
    assert set(rows) == naive_sequences(vocab, horizon, eos)
    assert [eos not in row for row in rows] == tree.truncated.tolist()
    ends = torch.tensor([len(row) for row in rows])
    assert torch.equal(torch.arange(horizon) < ends[:, None], tree.mask)  # up to the first EOS, and nothing behind it
    # each state is the prefix it stands for
    for row, mask, path in zip(tree.sequences, tree.mask, tree.states, strict=True):
        for t in range(int(mask.sum())):
            assert tree.prefixes[path[t]][:t].tolist() == row[:t].tolist()
            assert tree.mdp.depths[path[t]] == t


def test_tree_literal():
    tree = token_tree(vocab=3, horizon=2, eos=0)
    # states: 0 = (), 1 = (1), 2 = (2); ends: 3 = EOS, 4.. = (1,1) (1,2) (2,1) (2,2)
    assert tree.mdp.layers == (0, 1, 3)
    assert tree.mdp.next_states[..., 0].tolist() == [[3, 1, 2], [3, 4, 5], [3, 6, 7]]
    assert tree.sequences.tolist() == [[0, 0], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2]]
    assert tree.mask.tolist() == [[True, False]] + [[True, True]] * 6
    assert tree.truncated.tolist() == [False, False, True, True, False, True, True]


def test_prompts_have_trees_of_their_own():
    tree = token_tree(3, 2, 0, torch.tensor([0.25, 0.75]))
    assert tree.mdp.layers == (0, 2, 6)
    assert tree.prompts.tolist() == [0] * 7 + [1] * 7
    log_policy = random_table(tree, 0).log_softmax(-1)
    probs = sequence_logprobs(tree, log_policy).exp()
    assert probs[:7].sum().item() == pytest.approx(0.25, abs=1e-14)
    assert probs[7:].sum().item() == pytest.approx(0.75, abs=1e-14)


def test_one_token_vocabulary_is_only_eos():
    tree = token_tree(1, 3, 0)
    assert (tree.mdp.num_states, tree.sequences.shape[0], tree.mask.sum().item()) == (1, 1, 1)


def test_policy_of_a_distribution_over_sequences_literal():
    """Seven sequences EOS, aE, aa, ab, bE, ba, bb; a's three weigh 1, 2, 3, EOS 2, b's nothing, over any constant."""
    tree = token_tree(3, 2, 0)
    weights = torch.tensor([2.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0], dtype=torch.float64).log() + 800.0
    policy = token_policy(tree, weights).exp()
    assert policy[0].tolist() == pytest.approx([2 / 8, 6 / 8, 0.0], abs=1e-12)
    assert policy[1].tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6], abs=1e-12)
    assert policy[2].tolist() == pytest.approx([1 / 3] * 3, abs=1e-15)  # nothing comes here


def test_policy_of_a_policys_sequences_is_that_policy():
    tree = token_tree(3, 3, 0, torch.tensor([0.25, 0.75]))
    log_policy = random_table(tree, 1, 2.0).log_softmax(-1)
    found = token_policy(tree, sequence_logprobs(tree, log_policy))
    torch.testing.assert_close(found, log_policy, rtol=0, atol=1e-13)


def test_soft_optimum_literal():
    """One state, two actions, then nothing: V = log(e^1 + e^0); with a prior (1/4, 3/4) and beta 2 by hand."""
    tree = token_tree(2, 1, 0)
    reward = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    best = exact.soft_optimum(tree.mdp, reward)
    assert best.v.item() == pytest.approx(math.log(math.e + 1), abs=1e-15)
    assert best.log_policy[0, 0].exp().item() == pytest.approx(math.e / (math.e + 1), abs=1e-15)
    prior = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()
    best = exact.soft_optimum(tree.mdp, reward, prior, beta=2.0)
    partition = 0.25 * math.exp(0.5) + 0.75
    assert best.v.item() == pytest.approx(2 * math.log(partition), abs=1e-15)
    assert best.log_policy[0, 0].exp().item() == pytest.approx(0.25 * math.exp(0.5) / partition, abs=1e-15)


def test_two_steps_literal():
    """V = 2, H = 2, uniform policy, rewards 1 for EOS and 3 for going on: E = 1/2 1 + 1/2 (3 + 1/2 1 + 1/2 3)."""
    tree = token_tree(2, 2, 0)
    uniform = torch.full((2, 2), 0.5, dtype=torch.float64).log()
    reward = torch.tensor([[1.0, 3.0], [1.0, 3.0]], dtype=torch.float64)
    assert exact.expected_return(tree.mdp, uniform, reward).item() == pytest.approx(3.0, abs=1e-15)
    # gamma 1/2: 1/2 + 1/2 (3 + 1/2 2)
    assert exact.expected_return(tree.mdp, uniform, reward, 0.5).item() == pytest.approx(2.5, abs=1e-15)
    assert exact.expected_length(tree.mdp, uniform).item() == pytest.approx(1.5, abs=1e-15)
    assert exact.occupancy(tree.mdp, uniform).tolist() == [[0.5, 0.5], [0.25, 0.25]]
    assert exact.visits(tree.mdp, uniform).tolist() == [1.0, 0.5, 0.75, 0.25]


sizes = st.tuples(st.integers(2, 4), st.integers(1, 4), st.integers(1, 2), st.integers(0, 10_000))


def build(size):
    vocab, horizon, prompts, seed = size
    start = torch.rand(prompts, generator=torch.Generator().manual_seed(seed)).double() + 0.1
    tree = token_tree(vocab, horizon, seed % vocab, start / start.sum())
    return tree, random_table(tree, seed).log_softmax(-1), random_table(tree, seed + 1), seed


@settings(deadline=None, max_examples=30)
@given(sizes, st.sampled_from([1.0, 0.9, 0.0]))
def test_dynamic_programming_against_enumeration(size, gamma):
    tree, log_policy, reward, seed = build(size)
    probs = sequence_logprobs(tree, log_policy).exp()
    discount = gamma ** torch.arange(tree.mdp.horizon, dtype=torch.float64)
    by_hand = probs @ (gather_tokens(tree, reward) * discount).sum(dim=1)
    found = exact.expected_return(tree.mdp, log_policy, reward, gamma)
    torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-12)
    # occupancies: how often each pair occurs over all sequences
    counted = torch.zeros_like(reward)
    for p, states, ids, mask in zip(probs, tree.states, tree.sequences, tree.mask, strict=True):
        for t in range(int(mask.sum())):
            counted[states[t], ids[t]] += p
    torch.testing.assert_close(exact.occupancy(tree.mdp, log_policy), counted, rtol=0, atol=1e-12)
    length = probs @ tree.mask.sum(dim=1).double()
    torch.testing.assert_close(exact.expected_length(tree.mdp, log_policy), length, rtol=0, atol=1e-12)
    # KL and total variation of the sequence distributions
    other = random_table(tree, seed + 2).log_softmax(-1)
    q = sequence_logprobs(tree, other)
    kl = (probs * (probs.log() - q)).sum()
    torch.testing.assert_close(exact.sequence_kl(tree.mdp, log_policy, other), kl, rtol=0, atol=1e-12)
    tv = (probs - q.exp()).abs().sum() / 2
    torch.testing.assert_close(sequence_tv(tree, log_policy, other), tv, rtol=0, atol=1e-15)


@settings(deadline=None, max_examples=30)
@given(sizes, st.sampled_from([1.0, 0.9, 0.0]), st.booleans())
def test_policy_gradient_against_autograd(size, gamma, stochastic):
    tree, _, reward, seed = build(size)
    mdp = slippery(tree.mdp, 0.3) if stochastic else tree.mdp
    logits = random_table(tree, seed).requires_grad_()
    value = exact.expected_return(mdp, logits.log_softmax(-1), reward, gamma)
    (expected,) = torch.autograd.grad(value, logits)
    found = exact.policy_gradient(mdp, logits.detach().log_softmax(-1), reward, gamma)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@settings(deadline=None, max_examples=30)
@given(sizes, st.sampled_from([0.2, 1.0, 5.0]), st.booleans())
def test_soft_optimum_is_the_best(size, beta, stochastic):
    tree, prior, reward, seed = build(size)
    mdp = slippery(tree.mdp, 0.3) if stochastic else tree.mdp
    best = exact.soft_optimum(mdp, reward, prior, beta)
    torch.testing.assert_close(best.log_policy.exp().sum(-1), torch.ones(mdp.num_states).double())
    top = exact.regularised_return(mdp, best.log_policy, reward, prior, beta)
    torch.testing.assert_close(top, mdp.start @ best.v[: mdp.layers[1]], rtol=0, atol=1e-11)
    other = (best.log_policy + 0.3 * random_table(tree, seed + 5)).log_softmax(-1)
    gap = bounds.return_gap(mdp, reward, best.log_policy, other, prior, beta)
    assert gap > 0
    torch.testing.assert_close(gap, bounds.return_gap_as_kl(mdp, best.log_policy, other, beta), rtol=0, atol=1e-10)


@settings(deadline=None, max_examples=30)
@given(sizes, st.sampled_from([1.0, 0.9]), st.booleans())
def test_inverse_soft_bellman_undoes_the_soft_bellman_operator(size, gamma, stochastic):
    tree, _, q, seed = build(size)
    mdp = slippery(tree.mdp, 0.3) if stochastic else tree.mdp
    final = torch.randn(mdp.num_ends, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    reward = exact.inverse_soft_bellman(mdp, q, gamma, final)
    torch.testing.assert_close(exact.soft_optimum(mdp, reward, gamma=gamma, final=final).q, q, rtol=0, atol=1e-12)
    plain = exact.inverse_soft_bellman(mdp, q, gamma)
    torch.testing.assert_close(exact.soft_bellman(mdp, q, plain, gamma), q, rtol=0, atol=1e-12)


def test_rollouts_follow_the_policy_and_the_kernel():
    tree = token_tree(3, 3, 0, torch.tensor([0.3, 0.7]))
    mdp = slippery(tree.mdp, 0.4)
    log_policy = random_table(tree, 3).log_softmax(-1)
    count = 40_000
    states, actions, mask = rollouts(mdp, log_policy, count, torch.Generator().manual_seed(0))
    table = torch.zeros(mdp.num_states, 3, dtype=torch.float64)
    table.index_put_((states[mask], actions[mask]), torch.tensor(1.0 / count, dtype=torch.float64), accumulate=True)
    expected = exact.occupancy(mdp, log_policy)
    error = (expected * (1 - expected) / count).sqrt()
    assert ((table - expected).abs() / error).max() < 5
    assert torch.equal(states[~mask], torch.zeros_like(states[~mask]))


def test_deterministic_is_the_case_without_slips():
    tree = token_tree(3, 3)
    log_policy, reward = random_table(tree, 0).log_softmax(-1), random_table(tree, 1)
    same = slippery(tree.mdp, 0.0)
    torch.testing.assert_close(
        exact.expected_return(same, log_policy, reward), exact.expected_return(tree.mdp, log_policy, reward)
    )
    with pytest.raises(ValueError, match="already stochastic"):
        slippery(same, 0.1)
    with pytest.raises(ValueError, match="slip"):
        slippery(tree.mdp, 1.5)


def test_large_instance_in_under_a_second():
    """V = 5, H = 6: 1365 states, 5461 sequences; soft optimum, occupancy and exact gradient."""
    tree = token_tree(5, 6)
    prior, reward = random_table(tree, 0).log_softmax(-1), random_table(tree, 1)
    assert (tree.mdp.num_states, len(tree.sequences)) == (1365, 5461)
    fastest = math.inf
    for _ in range(3):  # the machine may be busy: the best of three counts
        began = time.perf_counter()
        token_tree(5, 6)
        best = exact.soft_optimum(tree.mdp, reward, prior, 0.5)
        exact.policy_gradient(tree.mdp, best.log_policy, reward)
        fastest = min(fastest, time.perf_counter() - began)
    assert fastest < 1.0
    assert sequence_logprobs(tree, best.log_policy).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


def test_bad_mdps_are_refused():
    mdp = token_tree(3, 2).mdp
    for change, words in (
        ({"layers": (0, 1, 1)}, "layers"),
        ({"next_states": mdp.next_states[:2]}, "next_states"),
        ({"next_probs": mdp.next_probs[:, :2]}, "differ"),
        ({"next_probs": mdp.next_probs * 0.5}, "sum to 1"),
        ({"start": torch.ones(2).double()}, "start"),
        ({"start": mdp.start * 2}, "start must sum"),
        ({"next_states": torch.zeros_like(mdp.next_states)}, "neither deeper"),
        ({"num_ends": 1}, "neither deeper"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(mdp, **change)
    assert isinstance(mdp, FiniteMDP)
    for arguments in ((0, 2), (3, 0), (3, 2, 3)):
        with pytest.raises(ValueError, match="need vocab"):
            token_tree(*arguments)


def test_bad_arguments_are_refused():
    tree = token_tree(3, 2)
    table = random_table(tree, 0)
    with pytest.raises(ValueError, match="rewards must be"):
        exact.soft_optimum(tree.mdp, table[:2])
    with pytest.raises(ValueError, match="beta"):
        exact.soft_optimum(tree.mdp, table, beta=0.0)
    with pytest.raises(ValueError, match="beta"):
        exact.state_loss_fixed_point(tree.mdp, table, table, 0.0)
    with pytest.raises(ValueError, match="gamma"):
        exact.expected_return(tree.mdp, table.log_softmax(-1), table, 1.1)
    with pytest.raises(ValueError, match="final"):
        exact.next_values(tree.mdp, table[:, 0], torch.zeros(2).double())
    with pytest.raises(ValueError, match="expert_occupancy"):
        conjugate.iq_objective(tree.mdp, table, table[:2])
    with pytest.raises(ValueError, match="mu"):
        conjugate.quadratic_reward(table, 0.0)
    with pytest.raises(ValueError, match="kappa"):
        conjugate.logcosh_reward(table, 1.0, -1.0)


def test_logcosh_reward_solves_its_equation():
    x = torch.linspace(-30, 30, 301, dtype=torch.float64)
    for mu, kappa in ((0.01, 5.0), (1.0, 1.0), (4.0, 0.0)):
        r = conjugate.logcosh_reward(x, mu, kappa)
        torch.testing.assert_close(mu * r + kappa * torch.tanh(r), x, rtol=0, atol=1e-12)


def test_iq_objective_literal():
    """One state, one demonstration of action 0: J = Q(0) - V, whatever phi is at 0; with chi-square by hand."""
    tree = token_tree(2, 1, 0)
    q = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    seen = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    v = math.log(math.e + 1)
    assert conjugate.iq_objective(tree.mdp, q, seen).item() == pytest.approx(1 - v, abs=1e-15)
    chi = conjugate.iq_objective(tree.mdp, q, seen, phi=lambda r: conjugate.chi_square(r, 0.5))
    assert chi.item() == pytest.approx(1 - 0.5 - v, abs=1e-15)  # r - r^2 / 2 at r = 1
