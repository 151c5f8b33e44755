"""The expectations over all batches, against naive sums that share no code with them."""

import itertools

import pytest
import torch

from densepath.core import estimator
from densepath.theory import exact
from densepath.theory.estimators import (
    BIASED,
    UNBIASED,
    Problem,
    all_batches,
    batch_gradients,
    batch_loss,
    moments,
)
from densepath.theory.fixed_points import broyden, resting_point
from densepath.theory.instances import make_instance
from densepath.theory.mdp import gather_tokens

BETA = 0.5


def problem_of(vocab=2, horizon=2, prompts=1, generations=2, seed=3):
    instance = make_instance(vocab, horizon, prompts, seed)
    return Problem.of(instance, BETA, generations), instance.policy_logits


def test_reinforce_against_a_naive_sum():
    """One batch of two completions, all pairs, gradient by the textbook formula, no autograd."""
    problem, logits = problem_of()
    tree, log_policy = problem.tree, logits.log_softmax(-1)
    policy = log_policy.exp()
    total = torch.zeros_like(logits)
    for pair in itertools.product(range(len(tree.sequences)), repeat=2):
        estimate, chance = torch.zeros_like(logits), 1.0
        for row in pair:
            length = int(tree.mask[row].sum())
            steps = [(int(tree.states[row, t]), int(tree.sequences[row, t])) for t in range(length)]
            reward = [
                float(
                    problem.log_sft[s, a] - problem.log_ref[s, a] - BETA * (log_policy[s, a] - problem.log_sft[s, a])
                )
                for s, a in steps
            ]
            for t, (s, a) in enumerate(steps):
                chance *= float(policy[s, a])
                score = -policy[s].clone()
                score[a] += 1.0
                estimate[s] += score * sum(reward[t:]) / 2
        total += chance * estimate
    mean, variance = moments(UNBIASED["REINFORCE"], problem, logits)
    torch.testing.assert_close(mean, total, rtol=0, atol=1e-14)
    assert variance > 0


def test_batches_are_all_there_and_sum_to_one():
    problem, logits = problem_of(vocab=3, horizon=2, prompts=2, generations=2)
    rows, probs = all_batches(problem, logits.log_softmax(-1))
    assert rows.shape == (7**4, 4)
    assert probs.sum().item() == pytest.approx(1.0, abs=1e-13)
    assert problem.tree.prompts[rows].unique(dim=0).tolist() == [[0, 0, 1, 1]]  # neighbours


@pytest.mark.parametrize("name", list(UNBIASED) + list(BIASED))
def test_each_estimator_is_what_it_is_called(name):
    """Unbiased ones agree with the exact gradient, biased ones do not."""
    problem, logits = problem_of(3, 2, 1, 2)
    log_policy = logits.log_softmax(-1)
    reward = problem.log_sft - problem.log_ref - BETA * (log_policy - problem.log_sft)
    truth = exact.policy_gradient(problem.tree.mdp, log_policy, reward)
    mean, _ = moments({**UNBIASED, **BIASED}[name], problem, logits)
    off = float((mean - truth).abs().max())
    if name in UNBIASED:
        assert off < 1e-14
    elif name != "r̂ clipped at ±1" or bool(((problem.log_sft - problem.log_ref).abs() > 1).any()):
        assert off > 1e-4


def test_all_actions_have_less_variance_for_every_seed():
    for seed in range(6):
        problem, logits = problem_of(3, 3, 1, 1, seed)
        plain, better = (moments(UNBIASED[name], problem, logits)[1] for name in ("REINFORCE", "all actions"))
        assert better < plain


def test_the_mixture_is_near_the_better_estimate_all_the_way_to_the_optimum():
    """All actions win at the SFT policy and lose at the optimum; the mixture takes the better of both by itself."""
    problem, _ = problem_of(3, 3, 1, 16, seed=1)
    best = exact.soft_optimum(problem.tree.mdp, problem.log_sft - problem.log_ref, problem.log_sft, BETA).log_policy
    kinds = ("REINFORCE, position mean", "all actions, position mean", "mixture, position mean")
    generator = torch.Generator().manual_seed(0)
    found = {}
    for place, table in (("SFT", problem.log_sft), ("half", problem.log_sft.lerp(best, 0.5)), ("optimum", best)):
        log_policy = table.log_softmax(-1)
        chances = gather_tokens(problem.tree, log_policy).sum(dim=1).exp()
        rows = torch.multinomial(chances, 1500 * 16, replacement=True, generator=generator).view(1500, 16)
        found[place] = [
            float(batch_gradients(UNBIASED[kind], problem, table, rows).var(dim=0).sum()) for kind in kinds
        ]
    sampled, everything, mixture = found["SFT"]
    assert everything < sampled / 4
    assert mixture < 1.2 * everything
    sampled, everything, mixture = found["optimum"]
    assert sampled < everything / 2
    assert mixture < 1.2 * sampled
    assert found["half"][2] < 1.2 * min(found["half"][:2])


def test_a_mixture_that_asks_ones_own_completion_is_biased(monkeypatch):
    def of_all(returns, noise, mask):
        share = (returns * noise * mask).sum() / (noise.square() * mask).sum().clamp(min=1e-12)
        return share.clamp(0, 1).expand(len(returns))

    problem, logits = problem_of(3, 2, 1, 2)
    honest = moments(UNBIASED["mixture, position mean"], problem, logits)[0]
    monkeypatch.setattr(estimator, "control_weights", of_all)
    assert (moments(UNBIASED["mixture, position mean"], problem, logits)[0] - honest).abs().max() > 1e-3


def test_leave_one_out_needs_gamma_one():
    """With gamma < 1 its `collected` part holds the own future: a bias beyond gamma's own."""
    problem, logits = problem_of(3, 3, 1, 2)
    with_mean, with_rloo = (
        moments(BIASED[name], problem, logits)[0] for name in ("γ = 0.9", "γ = 0.9, leave one out")
    )
    assert (with_mean - with_rloo).abs().max() > 1e-3


def test_kl_as_a_loss_is_unbiased_at_the_sft_policy_alone():
    """There the KL's gradient is zero, so both forms agree; elsewhere they do not."""
    problem, logits = problem_of(3, 3, 1, 2)
    for table, agree in ((problem.log_sft, True), (logits, False)):
        left, right = (
            moments(estimator, problem, table)[0]
            for estimator in (UNBIASED["REINFORCE, position mean"], BIASED["KL as a loss per state"])
        )
        assert bool((left - right).abs().max() < 1e-13) is agree


@pytest.mark.parametrize(
    "name", ["KL as a loss per state", "γ = 0.9", "γ = 0", "r̂ clipped at ±1", "divided by tokens"]
)
def test_resting_points_are_where_the_expected_update_vanishes(name):
    problem, _ = problem_of(3, 2, 1, 2)
    rest = resting_point(name, problem)
    assert moments(BIASED[name], problem, rest)[0].abs().max() < 1e-10


def test_broyden_on_a_system_with_a_known_root():
    target = torch.tensor([[0.3, -1.0, 0.0], [2.0, 0.5, 0.0]], dtype=torch.float64).log_softmax(-1)

    def field(logits):
        return logits.softmax(-1) - target.exp()

    found = broyden(field, torch.zeros(2, 3, dtype=torch.float64))
    torch.testing.assert_close(found, target, rtol=0, atol=1e-10)


def test_loss_of_a_batch_by_hand():
    """V = 2, H = 1: completions EOS and a; with one of each the leave-one-out advantages are r_0 - r_1 and back."""
    problem, logits = problem_of(2, 1, 1, 2)
    log_policy = logits.log_softmax(-1)
    loss = batch_loss(UNBIASED["REINFORCE, leave one out"], problem, log_policy, torch.tensor([0, 1]))
    q = gather_tokens(problem.tree, problem.log_sft - problem.log_ref - BETA * (log_policy - problem.log_sft)).squeeze(
        1
    )
    expected = -(log_policy[0, 0] * (q[0] - q[1]) + log_policy[0, 1] * (q[1] - q[0])) / 2
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-14)
