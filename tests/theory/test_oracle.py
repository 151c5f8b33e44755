"""The oracle itself: a tiny transformer's exact table, and REINFORCE's expectation against the exact gradient."""

import pytest
import torch
from tests.oracle import (
    batch_distribution,
    exact_gradient,
    expected_gradient,
    policy_table,
    reward_table,
    sequence_probs,
    tiny_llama,
    token_tree,
)

from densepath.core.logprobs import token_logprobs
from densepath.core.objective import all_action_loss, expected_rewards, reinforce_loss
from densepath.core.returns import Baseline, baseline, kl_penalised_rewards, returns_after, returns_to_go
from densepath.core.rewards import baseline_relative
from densepath.theory.mdp import gather_tokens

VOCAB, HORIZON, EOS, BETA = 4, 3, 3, 0.5
PROMPTS = [[1, 2], [0, 1, 1]]


@pytest.fixture(scope="module")
def ground():
    policy, sft, ref = (tiny_llama(VOCAB, seed) for seed in (1, 2, 3))
    tree = token_tree(VOCAB, HORIZON, EOS, torch.tensor([0.5, 0.5], dtype=torch.float64))
    tables = [policy_table(model, PROMPTS, VOCAB, HORIZON, EOS) for model in (policy, sft, ref)]
    return policy, tree, tables[0], tables[1].detach(), tables[2].detach()


def test_table_agrees_with_scoring_each_sequence(ground):
    policy, tree, table, _, _ = ground
    gathered = gather_tokens(tree, table)
    for row in range(0, len(tree.sequences), 7):
        prompt = PROMPTS[tree.prompts[row]]
        ids = torch.tensor([[*prompt, *tree.sequences[row].tolist()]])
        logits = policy(input_ids=ids).logits[:, len(prompt) - 1 : -1]
        scored = token_logprobs(logits, tree.sequences[row : row + 1])[0]
        torch.testing.assert_close(scored[tree.mask[row]], gathered[row][tree.mask[row]], rtol=0, atol=1e-13)
    assert sequence_probs(tree, table).sum().item() == pytest.approx(1.0, abs=1e-13)


def loss_of(tree, table, sft, ref, rows, kind, generations):
    """The REINFORCE loss of one batch, put together from the core functions as a trainer does."""
    mask = tree.mask[rows]
    policy_lp, sft_lp, ref_lp = (gather_tokens(tree, t)[rows] for t in (table, sft, ref))
    rewards = kl_penalised_rewards(baseline_relative(sft_lp, ref_lp, mask), policy_lp, sft_lp, BETA, mask)
    returns = returns_to_go(rewards, mask)
    advantages = returns - baseline(kind, returns, mask, generations)
    return reinforce_loss(policy_lp, advantages, mask, normalizer=len(rows))[0]


def test_reinforce_expectation_is_the_exact_gradient_of_a_transformer(ground):
    policy, tree, table, sft, ref = ground
    exact = exact_gradient(policy, tree, table, reward_table(sft, ref), sft, BETA)
    rows = torch.arange(len(tree.sequences))
    losses = torch.stack([loss_of(tree, table, sft, ref, row[None], Baseline.NONE, 1) for row in rows])
    estimate = -expected_gradient(policy, sequence_probs(tree, table), losses)
    assert exact.norm() > 0.1
    assert (estimate - exact).abs().max() < 1e-12


@pytest.mark.parametrize("kind", [Baseline.POSITION_MEAN, Baseline.LEAVE_ONE_OUT])
def test_baselines_leave_the_expectation(kind):
    tree = token_tree(VOCAB, 2, EOS)
    policy, *others = (tiny_llama(VOCAB, seed) for seed in (1, 2, 3))
    table = policy_table(policy, PROMPTS[0], VOCAB, 2, EOS)
    sft, ref = (policy_table(model, PROMPTS[0], VOCAB, 2, EOS).detach() for model in others)
    exact = exact_gradient(policy, tree, table, reward_table(sft, ref), sft, BETA)
    batches, probs = batch_distribution(tree, sequence_probs(tree, table), num_generations=2)
    losses = torch.stack([loss_of(tree, table, sft, ref, rows, kind, 2) for rows in batches])
    assert (-expected_gradient(policy, probs, losses) - exact).abs().max() < 1e-12


@pytest.mark.parametrize("kind", list(Baseline))
def test_all_action_estimator_has_the_same_expectation(kind):
    tree = token_tree(VOCAB, 2, EOS)
    policy, *others = (tiny_llama(VOCAB, seed) for seed in (1, 2, 3))
    table = policy_table(policy, PROMPTS[0], VOCAB, 2, EOS)
    sft, ref = (policy_table(model, PROMPTS[0], VOCAB, 2, EOS).detach() for model in others)
    exact = exact_gradient(policy, tree, table, reward_table(sft, ref), sft, BETA)
    batches, probs = batch_distribution(tree, sequence_probs(tree, table), num_generations=2)
    q = reward_table(sft, ref) - BETA * (table.detach() - sft)
    expected_table = expected_rewards(table, q)
    losses = []
    for rows in batches:
        mask, states = tree.mask[rows], tree.states[rows]
        expected = expected_table[states]
        later = returns_after(expected.detach(), mask)
        advantages = later - baseline(kind, later, mask, 2)
        losses.append(all_action_loss(gather_tokens(tree, table)[rows], expected, advantages, mask, 2.0)[0])
    assert (-expected_gradient(policy, probs, torch.stack(losses)) - exact).abs().max() < 1e-12


def test_oracle_can_fail(ground):
    """A dropped EOS changes the expectation: the comparison above is not vacuous."""
    policy, tree, table, sft, ref = ground
    exact = exact_gradient(policy, tree, table, reward_table(sft, ref), sft, BETA)
    lame = tree.mask & (tree.sequences != EOS)
    policy_lp, sft_lp, ref_lp = (gather_tokens(tree, t) for t in (table, sft, ref))
    rewards = kl_penalised_rewards(baseline_relative(sft_lp, ref_lp, lame), policy_lp, sft_lp, BETA, lame)
    losses = -(policy_lp * returns_to_go(rewards, lame) * lame).sum(1)
    estimate = -expected_gradient(policy, sequence_probs(tree, table), losses)
    assert (estimate - exact).abs().max() > 1e-3
