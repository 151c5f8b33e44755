"""DPRTrainer: its rewards, advantages and loss against slow references, and its training end to end."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from tests.core.test_control import naive as naive_weight
from tests.live_memory import WidestRows
from tests.support import tiny_tokenizer
from tests.tiny_models import with_lora

from densepath.errors import ConfigError, ModelError
from densepath.rewards.frozen import FrozenPolicy
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
        "estimator": "auto",  # all actions where they are possible: more can go wrong there than with the default
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


def rollout(trainer: DPRTrainer) -> dict:
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    return trainer._generate_and_score_completions(batch)


def completion_of(output, row: int) -> tuple[list[int], list[int]]:
    prompt = output["prompt_ids"][row][output["prompt_mask"][row].bool()].tolist()
    completion = output["completion_ids"][row][output["completion_mask"][row].bool()].tolist()
    return prompt, completion


def uneven_lengths(trainer) -> None:
    """Cut the samples to 1, 2, ..., 6, 1, ... tokens."""
    inner = trainer._generate_single_turn

    def cut(*args):
        return tuple([row[: 1 + index % 6] for index, row in enumerate(rows)] for rows in inner(*args))

    trainer._generate_single_turn = cut


def naive_distributions(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """(tokens, vocabulary) float64 with gradient."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double()
    return torch.log_softmax(logits, dim=-1)


def chosen(distributions, completion: list[int]) -> torch.Tensor:
    return distributions[torch.arange(len(completion)), torch.tensor(completion)]


def naive_logprobs(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return chosen(naive_distributions(model, prompt, completion), completion)


PURE = {"sampled": {}, "all_action": {"all_action_weight": 1.0}}


@pytest.mark.parametrize("estimator", ["sampled", "all_action"])
@pytest.mark.parametrize("baseline", ["none", "position_mean", "leave_one_out"])
def test_advantages_equal_a_loop_over_tokens(tmp_path, make_model, tokenizer, prompts, baseline, estimator):
    sft, ref = make_model(0), make_model(1)
    policy = make_model(2)  # another than the SFT model, so that the KL counts
    trainer = DPRTrainer(
        model=policy,
        ref_model=ref,
        sft_model=sft,
        args=config(tmp_path, baseline=baseline, estimator=estimator, **PURE[estimator]),
        train_dataset=prompts,
        processing_class=tokenizer,
    )
    uneven_lengths(trainer)
    output = rollout(trainer)
    rows = len(output["advantages"])
    returns = []
    for row in range(rows):
        prompt, completion = completion_of(output, row)
        with torch.no_grad():
            pi, s, r = (naive_distributions(m, prompt, completion) for m in (policy, sft, ref))
        q = s - r - 0.3 * (pi - s)
        if estimator == "sampled":
            q = chosen(q, completion).tolist()
            returns.append([sum(q[t:]) for t in range(len(q))])
        else:
            expected = (pi.exp() * q).sum(-1).tolist()
            returns.append([sum(expected[t + 1 :]) for t in range(len(expected))])
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


@pytest.mark.parametrize("changes", [{"estimator": "sampled"}, {}, {"estimator": "sampled", "kl_in_return": False}])
def test_loss_and_gradient_equal_the_formula(tmp_path, make_model, tokenizer, prompts, changes):
    policy, sft, ref = make_model(2), make_model(0), make_model(1)
    slow = copy.deepcopy(policy)
    trainer = DPRTrainer(policy, ref, config(tmp_path, **changes), prompts, sft_model=sft, processing_class=tokenizer)
    uneven_lengths(trainer)
    output = rollout(trainer)
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, output)
    loss.backward()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(output["advantages"])):
        prompt, completion = completion_of(output, row)
        pi = naive_distributions(slow, prompt, completion)
        with torch.no_grad():
            s, r = (naive_distributions(m, prompt, completion) for m in (sft, ref))
        total = total - (chosen(pi, completion) * output["advantages"][row, : len(completion)]).sum()
        if trainer.estimator.all_action:
            share = output["all_action_weights"][row]
            assert 0 < share < 1
            total = total - share * (pi.exp() * (s - r - 0.3 * (pi - s)).detach()).sum()
        if changes.get("kl_in_return") is False:
            total = total + 0.3 * (pi.exp() * (pi - s)).sum()
    total = total / len(output["advantages"])
    total.backward()
    assert loss.item() == pytest.approx(total.item(), abs=1e-4)
    for (name, ours), theirs in zip(policy.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=5e-5, rtol=2e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_the_mixture_is_fitted_to_the_other_completions(tmp_path, make_model, tokenizer, prompts):
    """Advantages are those of both estimates, mixed by weights that a loop over the other completions gives."""
    models = {"policy": make_model(2), "sft": make_model(0), "ref": make_model(1)}

    def rolled_out(**changes):
        arguments = config(tmp_path, **changes)
        trainer = DPRTrainer(
            models["policy"], models["ref"], arguments, prompts, sft_model=models["sft"], processing_class=tokenizer
        )
        uneven_lengths(trainer)
        return rollout(trainer), trainer

    fitted, trainer = rolled_out()
    sampled, pure = rolled_out(estimator="sampled")[0], rolled_out(all_action_weight=1.0)[0]
    returns, noise = torch.zeros(8, 6), torch.zeros(8, 6)
    for row in range(8):
        prompt, completion = completion_of(fitted, row)
        with torch.no_grad():
            pi, s, r = (naive_distributions(models[m], prompt, completion) for m in ("policy", "sft", "ref"))
        q = s - r - 0.3 * (pi - s)
        extra = chosen(q, completion) - (pi.exp() * q).sum(-1)
        for t in range(len(completion)):
            returns[row, t], noise[row, t] = chosen(q, completion)[t:].sum(), extra[t:].sum()
    mask = fitted["completion_mask"].bool()
    expected = torch.tensor([naive_weight(returns, noise, mask, row) for row in range(8)])
    torch.testing.assert_close(fitted["all_action_weights"], expected, atol=1e-3, rtol=0)
    assert trainer._metrics["train"]["all_action_weight"] == [pytest.approx(expected.mean().item(), abs=1e-3)]
    mixed = torch.lerp(sampled["advantages"], pure["advantages"], fitted["all_action_weights"].unsqueeze(1))
    torch.testing.assert_close(fitted["advantages"], mixed, atol=2e-4, rtol=1e-4)


SGD = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.02}


@pytest.mark.parametrize(
    "changes",
    [{"estimator": "sampled"}, {}, {"loss_normalizer": "tokens"}, {"loss_normalizer": "max_completion_length"}],
)
def test_accumulation_changes_nothing(tmp_path, make_model, tokenizer, prompts, changes):
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
            **SGD,
            **changes,
        )
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in make_model(0).parameters()])
    assert (weights[0] - start).abs().max() > 5e-4
    torch.testing.assert_close(weights[0], weights[1], atol=2e-5, rtol=1e-4)


def test_chunks_of_tokens_change_nothing(tmp_path, make_model, tokenizer, prompts):
    weights = []
    for chunk_tokens in (None, 7):
        model = make_model(0)
        trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, model=model, max_steps=1, **SGD)
        trainer.estimation = dataclasses.replace(trainer.estimation, chunk_tokens=chunk_tokens)
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*weights, atol=1e-5, rtol=1e-4)


def test_no_distribution_of_a_whole_batch_ever_lives(tmp_path, make_model, tokenizer, prompts):
    """Scoring, advantages, loss and its gradient: at most `chunk_tokens` rows as wide as the vocabulary."""
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts)
    trainer.current_gradient_accumulation_steps = 1
    ids = [[5 + t for t in range(6)] for _ in range(8)]
    trainer._generate_single_turn = lambda *args: (ids, [[-1.0] * 6] * 8)
    trainer.estimation = dataclasses.replace(trainer.estimation, chunk_tokens=5)
    with WidestRows(len(tokenizer)) as seen:
        output = rollout(trainer)
        trainer._compute_loss(trainer.model, output).backward()
    assert seen.rows == 5


def test_gradient_checkpointing_changes_nothing(tmp_path, make_model, tokenizer, prompts):
    weights = []
    for checkpointing in (False, True):
        model = make_model(0)
        trainer = trainer_of(
            tmp_path,
            make_model,
            tokenizer,
            prompts,
            model=model,
            max_steps=1,
            gradient_checkpointing=checkpointing,
            **SGD,
        )
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_mixed_precision_leaves_the_scorers_in_float32(tmp_path, make_model, tokenizer, prompts):
    """Under bfloat16 autocast the policy's pass is rounded; rewards, and every head, are not."""
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, bf16=True, use_cpu=True)
    output = rollout(trainer)
    sft, ref = trainer.dense_reward.sft.model, trainer.dense_reward.refs[0].model
    for row, rewards in enumerate(trainer.rollout.scored.scores.rewards):
        prompt, ids = completion_of(output, row)
        expected = naive_logprobs(sft, prompt, ids) - naive_logprobs(ref, prompt, ids)
        torch.testing.assert_close(rewards.double(), expected, atol=1e-4, rtol=0)
    # at the start the policy is the SFT model: what the KL sees is the rounding of its pass
    kl = torch.cat(trainer.rollout.scored.state_kl)
    assert 0 < kl.abs().max() < 0.05
    trainer.train()
    assert trainer.state.global_step == 2


def test_what_stands_behind_the_mask_never_reaches_the_gradient(tmp_path, make_model, tokenizer, prompts):
    policy = make_model(2)
    trainer = DPRTrainer(
        policy, make_model(1), config(tmp_path), prompts, sft_model=make_model(0), processing_class=tokenizer
    )
    trainer.current_gradient_accumulation_steps = 1
    uneven_lengths(trainer)
    output = rollout(trainer)
    mask = output["completion_mask"].bool()
    assert mask.sum(dim=1).tolist() == [1, 2, 3, 4, 5, 6, 1, 2]
    gradients = []
    for garbage in (0.0, float("nan")):
        inputs = {**output, "advantages": output["advantages"].masked_fill(~mask, garbage)}
        inputs["completion_ids"] = output["completion_ids"].masked_fill(~mask, 7 if garbage else 3)
        policy.zero_grad()
        trainer._compute_loss(trainer.model, inputs).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    assert torch.equal(*gradients)


def test_a_tools_tokens_are_no_actions(tmp_path, make_model, tokenizer, prompts):
    """With some tokens marked as a tool's, the loss is that of the others, and returns reach across them."""
    policy, sft, ref = make_model(2), make_model(0), make_model(1)
    arguments = config(tmp_path, baseline="none", all_action_weight=1.0)
    trainer = DPRTrainer(policy, ref, arguments, prompts, sft_model=sft, processing_class=tokenizer)
    trainer.current_gradient_accumulation_steps = 1
    inner = trainer._generate

    def with_tool(prompts):
        prompt_ids, completion_ids, _, *rest = inner(prompts)
        return prompt_ids, completion_ids, [[int(not 0 < t < 3) for t in range(len(i))] for i in completion_ids], *rest

    trainer._generate = with_tool
    output = rollout(trainer)
    loss = trainer._compute_loss(trainer.model, output)
    total = 0.0
    for row in range(len(output["advantages"])):
        prompt, completion = completion_of(output, row)
        with torch.no_grad():
            pi, s, r = (naive_distributions(m, prompt, completion) for m in (policy, sft, ref))
        expected = (pi.exp() * (s - r - 0.3 * (pi - s))).sum(-1).tolist()
        own = [t for t in range(len(completion)) if not 0 < t < 3]
        for t in own:
            later = sum(expected[k] for k in own if k > t)
            assert output["advantages"][row, t].item() == pytest.approx(later, abs=2e-4)
            total -= (expected[t] + chosen(pi, completion)[t].item() * later) / len(output["advantages"])
    assert loss.item() == pytest.approx(total, abs=2e-4)


def test_masked_truncated_completions_add_nothing(tmp_path, make_model, tokenizer, prompts):
    """A micro-batch in which every completion was cut off has a loss of 0 that still reaches the weights."""
    policy = make_model(0)
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, model=policy, mask_truncated_completions=True)
    trainer.current_gradient_accumulation_steps = 1
    output = rollout(trainer)
    output["completion_mask"] = torch.zeros_like(output["completion_mask"])
    loss = trainer._compute_loss(trainer.model, output)
    assert loss.item() == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in policy.parameters() if p.grad is not None)


def test_reference_equal_to_sft_gives_no_signal(tmp_path, make_model, tokenizer, prompts):
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, ref=make_model(0))
    output = rollout(trainer)
    assert output["advantages"].abs().max() < 1e-4


def test_training_raises_the_reward_and_keeps_the_sft_model(tmp_path, make_model, tokenizer, prompts):
    model = make_model(0)
    changes = {"max_steps": 25, "beta": 0.1, "learning_rate": 3e-3, "per_device_train_batch_size": 16}
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, model=model, **changes)
    sft_before = [p.clone() for p in trainer.dense_reward.sft.model.parameters()]
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 1.0
    for before, now in zip(sft_before, trainer.dense_reward.sft.model.parameters(), strict=True):
        assert torch.equal(before, now)
    logged = trainer.state.log_history[-2]
    assert {"kl", "kl_sequence", "entropy", "reward_per_token", "completions/mean_length", "flops"} <= logged.keys()


@pytest.mark.parametrize("estimator", ["sampled", "all_action"])
def test_peft_shares_one_base_and_equals_separate_models(tmp_path, make_model, tokenizer, prompts, estimator):
    """Policy, SFT model and reference as adapters of one base, or as models apart: the same training."""
    shared = with_lora(make_model(0))
    separate_sft = copy.deepcopy(shared).merge_and_unload()
    arguments = {"estimator": estimator, **SGD}
    one = DPRTrainer(
        shared, FrozenPolicy(shared, None), config(tmp_path, **arguments), prompts, processing_class=tokenizer
    )
    assert one.dense_reward.sft.model is one.model
    two = DPRTrainer(
        with_lora(make_model(0)),
        make_model(0),
        config(tmp_path, **arguments),
        prompts,
        sft_model=separate_sft,
        processing_class=tokenizer,
    )
    a, b = rollout(one), rollout(two)
    assert torch.equal(a["completion_ids"], b["completion_ids"])
    torch.testing.assert_close(a["advantages"], b["advantages"], atol=1e-4, rtol=1e-4)
    trained = []
    for trainer in (one, two):
        trainer.train()
        names = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
        assert names
        assert all(".default." in name for name in names)
        trained.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad]))
    start = torch.cat([p.detach().flatten() for p in with_lora(make_model(0)).parameters() if p.requires_grad])
    assert (trained[0] - start).abs().max() > 1e-3
    torch.testing.assert_close(trained[0], trained[1], atol=2e-5, rtol=1e-3)


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
        ({"estimator": "exact"}, "choose one of: auto, all_action, sampled"),
        ({"reward_level": "turn"}, "choose one of: token, sequence"),
        ({"loss_normalizer": "mean"}, "choose one of: completions, max_completion_length, tokens"),
        ({"reference_mean": "median"}, "choose one of: arithmetic, geometric"),
        ({"loss_type": "dr_grpo"}, "loss_normalizer says what the loss is divided by"),
        ({"scale_rewards": "batch"}, "whiten_advantages divides advantages by their spread"),
        ({"beta": -0.1}, "beta=-0.1 must be at least 0"),
        ({"beta": float("nan")}, "beta=nan must be a finite number"),
        ({"ref_beta": -1.0}, "ref_beta=-1.0 must be at least 0"),
        (
            {"ref_beta": 0.1, "dense_reward": "logprob"},
            "ref_beta has no effect: dense_reward=logprob has no reference",
        ),
        ({"reward_clip": 0.0}, "reward_clip=0.0 must be above 0"),
        ({"reward_floor": 1.0}, "reward_floor=1.0 must be below 0"),
        ({"gamma": 0.9, "baseline": "leave_one_out"}, "leave_one_out needs gamma=1"),
        ({"gamma": 0.9, "reward_level": "sequence"}, "gamma has no effect with reward_level=sequence"),
        ({"all_action_weight": 0.0}, r"all_action_weight=0.0 must lie in \(0, 1\]; for 0 use estimator=sampled"),
        ({"all_action_weight": 0.5, "estimator": "sampled"}, "all_action_weight has no effect with estimator=sampled"),
        ({"kl_in_return": False, "beta": 0.0}, "kl_in_return=False has no effect with beta=0"),
        ({"estimator": "all_action", "num_iterations": 2}, "several updates on one batch"),
        ({"estimator": "all_action", "steps_per_generation": 2}, "several updates on one batch"),
        ({"estimator": "all_action", "reward_level": "sequence"}, "reward_level=sequence adds the rewards before"),
        ({"estimator": "all_action", "whiten_advantages": True}, "whiten_advantages divides by the spread"),
        ({"estimator": "all_action", "dense_reward": "inverse_bellman"}, "needs the value of the next state"),
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


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_iterations": 2}, "several updates"),
        ({"reward_level": "sequence"}, "reward_level=sequence"),
        ({"dense_reward": "inverse_bellman"}, "the value of the next state"),
    ],
)
def test_auto_falls_back_to_sampled_and_says_why(tmp_path, make_model, tokenizer, prompts, changes, reason, caplog):
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, **changes)
    assert not trainer.estimator.all_action
    said = [record.message for record in caplog.records if "estimator=auto" in record.message]
    assert len(said) == 1
    assert reason in said[0]
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_head_that_is_not_one_layer_is_left_to_sampling(tmp_path, make_model, tokenizer, prompts, caplog):
    ref = make_model(1)
    ref.lm_head = torch.nn.Sequential(ref.lm_head)  # say, a head with something on top
    ref.lm_head.weight = ref.lm_head[0].weight
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, ref=ref)
    assert not trainer.estimator.all_action
    assert any("head of the reference 0" in record.message for record in caplog.records)
    for refused in ({"estimator": "all_action"}, {"kl_in_return": False}):
        with pytest.raises(ConfigError, match="head of the reference 0 is not a plain linear layer"):
            trainer_of(tmp_path, make_model, tokenizer, prompts, ref=ref, **refused)


def test_sharded_weights_are_left_to_sampling(tmp_path, make_model, tokenizer, prompts, monkeypatch, caplog):
    monkeypatch.setattr(DPRTrainer, "_is_sharded", lambda self: True)
    monkeypatch.setattr("densepath.trainers.policies.shard_frozen", lambda model, accelerator: model)
    assert not trainer_of(tmp_path, make_model, tokenizer, prompts).estimator.all_action
    assert any("the weights are sharded" in record.message for record in caplog.records)


def test_an_evaluation_at_the_start_needs_rows(tmp_path, make_model, tokenizer, prompts):
    with pytest.raises(ConfigError, match="eval_on_start=True needs held-out rows"):
        trainer_of(tmp_path, make_model, tokenizer, prompts, eval_on_start=True, eval_strategy="no")


def test_a_completion_ends_where_the_model_says_if_its_tokenizer_does_not(tmp_path, make_model, prompts):
    tokenizer = tiny_tokenizer(pad_is_eos=False)
    tokenizer.eos_token = None
    policy = make_model(0)
    policy.generation_config.eos_token_id = list(range(200))  # about half of the ids, so that some are sampled
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, model=policy, max_steps=1)
    trainer.train()
    assert trainer.eos_token_ids == trainer.generation_config.eos_token_id == list(range(200))
    ids = trainer.rollout.scored.sampled.completion_ids
    assert any(len(row) < 6 for row in ids)
    assert all(all(token >= 200 for token in row[:-1]) and (row[-1] < 200 or len(row) == 6) for row in ids)
    policy.generation_config.eos_token_id = None
    with pytest.raises(ModelError, match="neither the generation config nor the tokenizer has an eos_token_id"):
        trainer_of(tmp_path, make_model, tokenizer, prompts, model=policy)
