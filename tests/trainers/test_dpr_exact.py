"""DPRTrainer's own rollout and loss against the exact gradient, by enumeration of every batch it could sample.

The policy is a tiny transformer over four tokens, so all its completions can be listed. Each possible batch is put
in place of the sampled one; rewards, returns, baseline, packed pass and loss are the trainer's. The gradients,
weighted by the probability of their batch, must sum to minus the exact gradient of the regularised objective.
"""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from tests.oracle import (
    batch_distribution,
    exact_gradient,
    policy_table,
    reward_table,
    sequence_probs,
    tiny_llama,
    token_tree,
)

from densepath.core.mdp import gather_tokens
from densepath.trainers.dpr import DPRTrainer
from densepath.trainers.dpr_config import DPRConfig

VOCAB, EOS, BETA, PROMPT = 4, 0, 0.7, [1, 2]


def expected_trainer_gradient(tmp_path, tokenizer, horizon: int, kind: str, **changes):
    policy, sft, ref = (tiny_llama(VOCAB, seed) for seed in (1, 2, 3))
    tree = token_tree(VOCAB, horizon, EOS)
    table, sft_table, ref_table = (policy_table(m, PROMPT, VOCAB, horizon, EOS) for m in (policy, sft, ref))
    exact = exact_gradient(policy, tree, table, reward_table(sft_table, ref_table), sft_table, BETA)
    trainer = DPRTrainer(
        model=policy,
        ref_model=ref,
        sft_model=sft,
        args=DPRConfig(
            output_dir=str(tmp_path / kind),
            per_device_train_batch_size=2,
            num_generations=2,
            max_completion_length=horizon,
            max_steps=1,
            beta=BETA,
            baseline=kind,
            report_to="none",
            gradient_checkpointing=False,
            **changes,
        ),
        train_dataset=Dataset.from_list([{"prompt": "x"}] * 2),
        processing_class=tokenizer,
    )
    trainer.eos_token_ids = [EOS]
    trainer.current_gradient_accumulation_steps = 1
    logprobs = gather_tokens(tree, table).detach()
    rows, probs = batch_distribution(tree, sequence_probs(tree, table), 2)
    expected = torch.zeros_like(exact)
    for batch, probability in zip(rows.tolist(), probs, strict=True):
        ids = [tree.sequences[r][tree.mask[r]].tolist() for r in batch]
        sampled = [logprobs[r][tree.mask[r]].tolist() for r in batch]
        trainer._tokenize_prompts = lambda prompts: ([PROMPT] * len(prompts), None, {})
        trainer._generate_single_turn = lambda *args, ids=ids, sampled=sampled: (ids, sampled)
        trainer.model.train()
        output = trainer._generate_and_score_completions([{"prompt": "x"}] * 2)
        policy.zero_grad()
        trainer._compute_loss(trainer.model, output).backward()
        gradient = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in policy.parameters()]
        )
        expected -= probability.detach() * gradient
    return exact, expected


@pytest.mark.parametrize("kind", ["none", "position_mean", "leave_one_out"])
def test_expected_gradient_is_exact(tmp_path, tokenizer, kind):
    exact, expected = expected_trainer_gradient(tmp_path, tokenizer, 2, kind)
    assert exact.abs().max() > 0.05
    # The trainer keeps rewards in float32.
    torch.testing.assert_close(expected, exact, atol=2e-6, rtol=1e-5)


def test_a_discount_is_seen(tmp_path, tokenizer):
    """The comparison can fail: gamma < 1 moves the expectation."""
    exact, expected = expected_trainer_gradient(tmp_path, tokenizer, 2, "none", gamma=0.5)
    assert (expected - exact).abs().max() > 1e-3
