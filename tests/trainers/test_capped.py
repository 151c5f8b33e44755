"""A capped completion reward in the trainer: what it trains on, watches and refuses; gradients: test_dpr_exact."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tests.trainers.test_dpr import completion_of, config, naive_logprobs, rollout, uneven_lengths

from densepath.errors import ConfigError
from densepath.trainers.dpr import DPRTrainer

KAPPA, ALPHA, BETA = 4.0, 0.5, 2.0
CAPPED = {"sequence_cap": KAPPA, "reward_scale": ALPHA, "beta": BETA, "baseline": "leave_one_out"}


def trainer_of(tmp_path, make_model, tokenizer, prompts, **changes) -> DPRTrainer:
    arguments = config(tmp_path, **{**CAPPED, **changes})
    trainer = DPRTrainer(
        make_model(2), make_model(1), arguments, prompts, sft_model=make_model(0), processing_class=tokenizer
    )
    uneven_lengths(trainer)
    return trainer


@pytest.mark.parametrize("estimator", ["sampled", "all_action"])
def test_rewards_add_up_to_the_capped_sum_and_monitors_see_the_plain_one(
    tmp_path, make_model, tokenizer, prompts, estimator
):
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, estimator=estimator)
    output = rollout(trainer)
    sums, weights, importance = [], [], []
    for row in range(len(output["advantages"])):
        prompt, ids = completion_of(output, row)
        policy, sft, ref = (naive_logprobs(make_model(seed), prompt, ids) for seed in (2, 0, 1))
        total = float((sft - ref).sum())
        trained = float(trainer.rollout.batch.rewards[row].sum())
        assert trained == pytest.approx(ALPHA * min(0.0, total - KAPPA), abs=1e-3)
        sums.append(total)
        weights.append(min(1.0, math.exp(ALPHA * (total - KAPPA) / BETA)))
        importance.append(math.exp(float((sft - policy).sum())))
    assert trainer.rollout.scored.sums() == pytest.approx(sums, abs=1e-3)
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    z = sum(w * r for w, r in zip(weights, importance, strict=True)) / sum(importance)
    assert 0.01 < z < 0.99
    assert logged["capped/z"] == pytest.approx(z, rel=1e-2)
    assert logged["capped/growth"] == pytest.approx(1 / z, rel=1e-2)
    assert logged["capped/share"] == pytest.approx(sum(total >= KAPPA for total in sums) / len(sums))
    assert logged["reward"] == pytest.approx(sum(sums) / len(sums), abs=1e-3)


def test_chunks_of_tokens_change_nothing(tmp_path, make_model, tokenizer, prompts):
    """The running sum goes on from one chunk to the next, in scoring and in the loss."""
    found = []
    for chunk_tokens in (None, 4):
        trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, estimator="all_action")
        trainer.estimation = dataclasses.replace(trainer.estimation, chunk_tokens=chunk_tokens)
        trainer.current_gradient_accumulation_steps = 1
        output = rollout(trainer)
        found.append((output["advantages"], output["log_ratios"], trainer._compute_loss(trainer.model, output)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)
    rewards = trainer.rollout.scored.scores.rewards
    for row, before in zip(rewards, found[0][1], strict=True):
        torch.testing.assert_close(before[: len(row)], row.cumsum(0) - row, atol=1e-5, rtol=0)


def test_a_capped_reward_is_mixed_after_its_cap(tmp_path, make_model, tokenizer, prompts):
    def one(completions, **kwargs):
        return [1.0] * len(completions)

    arguments = config(tmp_path, **CAPPED, dense_reward_weight=0.5)
    trainer = DPRTrainer(
        make_model(0), make_model(1), arguments, prompts, processing_class=tokenizer, reward_funcs=one
    )
    rollout(trainer)
    totals = torch.tensor(trainer.rollout.scored.sums())
    expected = 0.5 * ALPHA * (totals - KAPPA).clamp(max=0) + 0.5
    torch.testing.assert_close(trainer.rollout.batch.rewards.sum(dim=1), expected, atol=1e-4, rtol=0)
    trainer.train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_cap": math.inf}, "sequence_cap=inf must be a finite number of nats"),
        ({"sequence_cap": math.nan}, "sequence_cap=nan must be a finite number"),
        ({"sequence_cap": 0.0, "reward_scale": 0.0}, "reward_scale=0.0 must be above 0 with sequence_cap"),
        ({"sequence_cap": 0.0, "dense_reward": "logprob"}, "relative to a reference, not logprob"),
        ({"sequence_cap": 0.0, "dense_reward": "inverse_bellman"}, "relative to a reference, not inverse_bellman"),
        ({"sequence_cap": 0.0, "gamma": 0.9}, "sequence_cap needs gamma=1"),
        ({"sequence_cap": 0.0, "reward_clip": 1.0}, "reward_clip has no use beside sequence_cap"),
        ({"reward_lambda": 1.0, "beta": None}, "reward_lambda=1.0 must be above 1"),
        ({"reward_lambda": math.inf, "beta": None}, "reward_lambda=inf must be above 1 and finite"),
        ({"reward_lambda": 1.25, "beta": 0.5}, "reward_lambda=1.25 is beta=4, and beta=0.5 was given: leave one out"),
    ],
)
def test_what_has_no_meaning_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **changes)


def test_lambda_is_another_name_for_beta(tmp_path):
    assert config(tmp_path, beta=None).beta == 0.5
    assert config(tmp_path, beta=None, reward_lambda=1.25).beta == pytest.approx(4.0)
    assert config(tmp_path, beta=4.0, reward_lambda=1.25).beta == 4.0
    assert config(tmp_path, beta=None, reward_lambda=3.0).beta == 0.5
