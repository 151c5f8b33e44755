"""DPRTrainer: its rewards, advantages and loss against slow references, and its training end to end."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.tiny_models import with_lora

from densepath.errors import ConfigError, ModelError
from densepath.trainers.dpr import DPRTrainer
from densepath.trainers.dpr_config import DPRConfig


def config(tmp_path, **changes) -> DPRConfig:
    values = {
        "output_dir": str(tmp_path / "dpr"),
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "learning_rate": 1e-3,
        "beta": 0.3,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        **changes,
    }
    return DPRConfig(**values)


def trainer_of(tmp_path, make_model, tokenizer, prompts, *, model=None, ref=None, **changes) -> DPRTrainer:
    return DPRTrainer(
        model=model if model is not None else make_model(0),
        ref_model=ref if ref is not None else make_model(1),
        args=config(tmp_path, **changes),
        train_dataset=prompts,
        processing_class=tokenizer,
    )


def naive_logprobs(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].double()
    rows = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
    return rows[torch.arange(len(completion)), torch.tensor(completion)]


def rollout(trainer: DPRTrainer) -> dict:
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    return trainer._generate_and_score_completions(batch)


def completion_of(output, row: int) -> tuple[list[int], list[int]]:
    prompt = output["prompt_ids"][row][output["prompt_mask"][row].bool()].tolist()
    completion = output["completion_ids"][row][output["completion_mask"][row].bool()].tolist()
    return prompt, completion


@pytest.mark.parametrize("baseline", ["none", "position_mean", "leave_one_out"])
def test_advantages_equal_a_loop_over_tokens(tmp_path, make_model, tokenizer, prompts, baseline):
    sft, ref = make_model(0), make_model(1)
    policy = make_model(2)  # another than the SFT model, so that the KL counts
    trainer = DPRTrainer(
        model=policy,
        ref_model=ref,
        sft_model=sft,
        args=config(tmp_path, baseline=baseline),
        train_dataset=prompts,
        processing_class=tokenizer,
    )
    output = rollout(trainer)
    rows = len(output["advantages"])
    returns = []
    for row in range(rows):
        prompt, completion = completion_of(output, row)
        pi, s, r = (naive_logprobs(m, prompt, completion) for m in (policy, sft, ref))
        q = [float(s[t] - r[t] - 0.3 * (pi[t] - s[t])) for t in range(len(completion))]
        returns.append([sum(q[t:]) for t in range(len(q))])
    for row in range(rows):
        for t, value in enumerate(returns[row]):
            if baseline == "none":
                b = 0.0
            elif baseline == "position_mean":
                others = [returns[j][t] for j in range(rows) if j != row and len(returns[j]) > t]
                b = sum(others) / len(others) if others else 0.0
            else:
                group = range(row // 4 * 4, row // 4 * 4 + 4)
                siblings = [returns[j][0] for j in group if j != row]
                b = sum(siblings) / len(siblings) - (returns[row][0] - value)
            assert output["advantages"][row, t].item() == pytest.approx(value - b, abs=2e-4)
        assert output["advantages"][row, len(returns[row]) :].abs().sum() == 0


def test_loss_and_gradient_equal_the_formula(tmp_path, make_model, tokenizer, prompts):
    policy = make_model(0)
    slow = copy.deepcopy(policy)
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, model=policy)
    output = rollout(trainer)
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, output)
    loss.backward()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(output["advantages"])):
        prompt, completion = completion_of(output, row)
        logits = slow(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double()
        chosen = torch.log_softmax(logits, -1)[torch.arange(len(completion)), torch.tensor(completion)]
        total = total - (chosen * output["advantages"][row, : len(completion)]).sum()
    total = total / len(output["advantages"])
    total.backward()
    assert loss.item() == pytest.approx(total.item(), abs=1e-5)
    for (name, ours), theirs in zip(policy.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_accumulation_changes_nothing(tmp_path, make_model, tokenizer, prompts):
    """One batch of 16 completions, or 4 micro-batches of 4: the same weights after two steps of SGD."""
    weights = []
    for size, accumulation in ((16, 1), (4, 4)):
        model = make_model(0)
        trainer = trainer_of(
            tmp_path,
            make_model,
            tokenizer,
            prompts,
            model=model,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            max_grad_norm=0.0,
            learning_rate=0.02,
        )
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in make_model(0).parameters()])
    assert (weights[0] - start).abs().max() > 1e-3
    torch.testing.assert_close(weights[0], weights[1], atol=2e-5, rtol=1e-4)


def test_reference_equal_to_sft_gives_no_signal(tmp_path, make_model, tokenizer, prompts):
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, ref=make_model(0))
    output = rollout(trainer)
    assert output["advantages"].abs().max() < 1e-4


def test_training_raises_the_reward_and_keeps_the_sft_model(tmp_path, make_model, tokenizer, prompts):
    model = make_model(0)
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, model=model, max_steps=25, beta=0.1)
    sft_before = [p.clone() for p in trainer.dense_reward.sft.model.parameters()]
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.5
    for before, now in zip(sft_before, trainer.dense_reward.sft.model.parameters(), strict=True):
        assert torch.equal(before, now)
    logged = trainer.state.log_history[-2]
    assert {"kl", "kl_sequence", "entropy", "reward_per_token", "completions/mean_length", "flops"} <= logged.keys()


def test_peft_shares_one_base_and_equals_separate_models(tmp_path, make_model, tokenizer, prompts):
    """Adapters on one base, or merged copies: the same rollout and the same advantages."""
    shared = with_lora(make_model(0))
    separate_sft = copy.deepcopy(shared).merge_and_unload()
    one = trainer_of(tmp_path, make_model, tokenizer, prompts, model=shared)
    assert one.dense_reward.sft.model is one.model
    two = DPRTrainer(
        model=with_lora(make_model(0)),
        ref_model=make_model(1),
        sft_model=separate_sft,
        args=config(tmp_path),
        train_dataset=prompts,
        processing_class=tokenizer,
    )
    a, b = rollout(one), rollout(two)
    assert torch.equal(a["completion_ids"], b["completion_ids"])
    torch.testing.assert_close(a["advantages"], b["advantages"], atol=1e-4, rtol=1e-4)
    one.train()
    trained = {n for n, p in one.model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".default." in name for name in trained)


def test_new_adapter_uses_the_model_without_it_as_sft(tmp_path, make_model, tokenizer, prompts):
    from peft import LoraConfig

    trainer = DPRTrainer(
        model=make_model(0),
        ref_model=make_model(1),
        args=config(tmp_path),
        train_dataset=prompts,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    assert trainer.dense_reward.sft.adapter is None
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.7}, "temperature=1"),
        ({"top_p": 0.9}, "top_p=1"),
        ({"num_generations": 1}, "num_generations=1 must be at least 2"),
        ({"gamma": 1.5}, r"gamma=1.5 must lie in \[0, 1\]"),
        ({"baseline": "critic"}, "choose one of: none, position_mean, leave_one_out"),
        ({"per_device_train_batch_size": 6}, "divisible"),
    ],
)
def test_arguments_that_would_bias_the_gradient_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **changes)


def test_a_reference_is_required_and_must_fit(tmp_path, make_model, tokenizer, prompts):
    with pytest.raises(ModelError, match="needs ref_model"):
        DPRTrainer(make_model(0), None, config(tmp_path), prompts, processing_class=tokenizer)
    from tests.tiny_models import tiny_llama

    with pytest.raises(ModelError, match="both must share one tokenizer"):
        trainer_of(tmp_path, make_model, tokenizer, prompts, ref=tiny_llama(vocab_size=77))
