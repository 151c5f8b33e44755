"""Sampled training with DPRTrainer.train() ends at the closed-form optimum, or where a biased option rests."""

from __future__ import annotations

import pytest
import torch
from tests.oracle import policy_table
from tests.trainers.enumerated import EOS, PROMPT, Enumerated

from densepath.theory import exact
from densepath.theory.mdp import sequence_logprobs, sequence_tv

BETA = 0.3


def trained(tmp_path, tokenizer, steps: int, batch: int = 64, **changes) -> Enumerated:
    """A policy that began as the SFT policy, after `steps` of Adam on completions that its own sampler drew."""
    e = Enumerated(
        tmp_path,
        tokenizer,
        horizon=3,
        scale=0.3,
        from_sft=True,
        max_steps=steps,
        per_device_train_batch_size=batch,
        num_generations=batch // 2,
        learning_rate=0.01,
        beta=BETA,
        save_strategy="no",
        disable_tqdm=True,
        **changes,
    )
    e.trainer._tokenize_prompts = lambda prompts: ([PROMPT] * len(prompts), None, {})
    e.trainer.train()
    return e


def distance(e: Enumerated, log_policy: torch.Tensor) -> float:
    table = policy_table(e.policy, PROMPT, 3, 3, EOS).detach()
    return float(sequence_tv(e.tree, table, log_policy))


def closed_form(e: Enumerated) -> torch.Tensor:
    """(sequences,) probabilities `pi_SFT^(1 + 1/beta) pi_ref^(-1/beta)`, normalised: no backward induction."""
    sft, ref = (sequence_logprobs(e.tree, table) for table in (e.sft_table, e.ref_tables[0]))
    return ((1 + 1 / BETA) * sft - ref / BETA).softmax(0)


@pytest.mark.parametrize(
    ("changes", "steps", "batch", "within"),
    [
        ({}, 60, 64, 0.02),
        ({"estimator": "sampled"}, 60, 64, 0.02),
        pytest.param({"baseline": "leave_one_out"}, 60, 64, 0.02, marks=pytest.mark.slow),
        pytest.param({"reward_level": "sequence"}, 150, 128, 0.02, marks=pytest.mark.slow),
        # alone, all actions keep their noise near the optimum
        pytest.param({"all_action_weight": 1.0}, 150, 256, 0.02, marks=pytest.mark.slow),
        pytest.param({"num_iterations": 2}, 200, 128, 0.02, marks=pytest.mark.slow),
    ],
)
def test_training_ends_at_the_closed_form_optimum(tmp_path, tokenizer, changes, steps, batch, within):
    e = trained(tmp_path, tokenizer, steps, batch, **changes)
    target = closed_form(e)
    found = sequence_logprobs(e.tree, policy_table(e.policy, PROMPT, 3, 3, EOS).detach()).exp()
    start = sequence_logprobs(e.tree, e.sft_table).exp()
    assert 0.5 * (start - target).abs().sum() > 0.5
    assert target.max() < 0.7  # the optimum is no single sequence
    assert 0.5 * (found - target).abs().sum() < within


@pytest.mark.slow
def test_the_kl_as_a_loss_ends_where_the_theory_says(tmp_path, tokenizer):
    e = trained(tmp_path, tokenizer, 150, 256, kl_in_return=False)
    rewards = e.sft_table - e.ref_tables[0]
    assert distance(e, exact.state_loss_fixed_point(e.tree.mdp, rewards, e.sft_table, BETA)) < 0.03
    assert distance(e, exact.soft_optimum(e.tree.mdp, rewards, e.sft_table, BETA).log_policy) > 0.15
