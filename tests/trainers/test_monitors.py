"""What DPRTrainer logs, against slow loops over its own completions; the pieces against values by hand."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import datasets
import pytest
import torch
from tests.tiny_models import with_lora
from tests.trainers.test_dpr import config, naive_logprobs
from transformers import TrainerCallback

from densepath.core.mixture import Cap
from densepath.data.encode import encode_pairs
from densepath.errors import ConfigError, DataError
from densepath.trainers.dpr import DPRTrainer
from densepath.trainers.held_out import HeldOutDemonstrations
from densepath.trainers.monitors import (
    EffectiveSampleSize,
    RolloutMonitor,
    distinct_ngrams,
    held_out_reward,
    reward_correlations,
)

ALONE = SimpleNamespace(
    reduce=lambda values, reduction: values,
    gather=lambda values: values,
    sync_gradients=True,
    process_index=0,
    num_processes=1,
    device="cpu",
)
"""An accelerator of one process, as far as monitors ask."""
DEMONSTRATIONS = [
    {"prompt": "Say red tree:", "completion": " red tree"},
    {"prompt": "Say one:", "completion": " one one one one"},
    {"prompt": "Only a prompt:", "completion": None},
    {"prompt": "Say red tree:", "completion": " tree"},
]


def test_distinct_ngrams_are_averaged_over_completions_that_have_any():
    ids = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 9], [7, 7, 7, 9, 9, 9]])
    mask = torch.tensor([[True] * 6, [True] * 5 + [False], [True] * 3 + [False] * 3])
    # 4-grams: 1 of 3 are distinct; 2 of 2; the third has none and does not count: (1/3 + 1) / 2
    assert distinct_ngrams(ids, mask, ALONE) == pytest.approx(2 / 3)
    assert math.isnan(distinct_ngrams(ids, mask & False, ALONE))


def test_held_out_reward_literal():
    sft = torch.tensor([[-1.0, -2.0], [-3.0, math.nan]])
    other = torch.tensor([[-2.0, -1.5], [-5.0, math.nan]])
    mask = torch.tensor([[True, True], [True, False]])
    assert held_out_reward(sft, other, mask, ALONE) == 1.25  # ((1 - 0.5) + 2) / 2


def test_reward_correlations_literal():
    found = reward_correlations(
        [1.0, 2.0, 3.0, 9.0], {"right": [0.0, 1.0, 1.0, None], "same": [1.0] * 4, "anti": [3.0, 2.0, 1.0, -5.0]}
    )
    # deviations (-1, 0, 1) and (-2/3, 1/3, 1/3): 1 / sqrt(2 * 2/3)
    assert found["reward_corr/right"] == pytest.approx(1 / math.sqrt(4 / 3))
    assert math.isnan(found["reward_corr/same"])
    assert found["reward_corr/anti"] == pytest.approx(-1.0)


def test_effective_sample_size_is_that_of_all_micro_batches_of_a_step():
    accelerator = SimpleNamespace(**{**vars(ALONE), "sync_gradients": False})
    size = EffectiveSampleSize(accelerator)
    nan = math.nan
    mask = torch.tensor([[True, True], [True, False]])
    sampled = torch.tensor([[-1.0, -1.0], [-1.0, -1.0]])
    # log weights 0 and log 3; then NaN (no correction) and 0: weights 1, 3, 1, 1
    assert size.observe(torch.tensor([[-0.5, -1.5], [-1.0 + math.log(3), 7.0]]), sampled, mask) == {}
    accelerator.sync_gradients = True
    (share,) = size.observe(
        torch.tensor([[-1.0, -1.0], [-9.0, -1.0]]), torch.tensor([[-1.0, -1.0], [nan, -1.0]]), mask
    ).values()
    assert share == pytest.approx(6**2 / (4 * 12))
    assert size.observe(sampled, sampled, mask) == {
        "effective_sample_size": pytest.approx(1.0)
    }  # a new step begins with nothing


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "completion": [{"role": "assistant", "content": "a"}]}, "row 2: .*differ in kind"),
        ({"prompt": "x" * 60, "completion": "a"}, "row 2: 6[0-9] tokens, but the models' context holds 50"),
    ],
)
def test_a_demonstration_that_cannot_be_used_is_named(tokenizer, row, message):
    with pytest.raises(DataError, match=message):
        HeldOutDemonstrations([DEMONSTRATIONS[0], row], tokenizer, max_length=50)


def trainer_of(tmp_path, make_model, tokenizer, prompts, callbacks=(), **changes) -> DPRTrainer:
    return DPRTrainer(
        model=make_model(0),
        ref_model=make_model(1),
        held_out_ref_model=make_model(2),
        args=config(tmp_path, **changes),
        train_dataset=prompts,
        eval_dataset=datasets.Dataset.from_list(DEMONSTRATIONS),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


class Snapshots(TrainerCallback):
    """The policy after each step, and the generation batch that the step used."""

    def __init__(self, make_model):
        self.make_model, self.models, self.rollouts = make_model, [], []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.models.append(self.make_model(0))
        self.models[-1].load_state_dict(model.state_dict())
        self.rollouts.append(self.trainer.rollout)


def naive_nll(model, tokenizer) -> float:
    pairs = [pair for row in DEMONSTRATIONS if row["completion"] for pair in encode_pairs(row, tokenizer)]
    values = torch.cat([naive_logprobs(model, list(p.prompt_ids), list(p.completion_ids)) for p in pairs])
    return -values.mean().item()


def test_logs_equal_loops_over_what_was_sampled(tmp_path, make_model, tokenizer, prompts):
    """Two updates on each batch, in two micro-batches; the held-out NLL after each, without sampling."""
    snapshots = Snapshots(make_model)
    trainer = trainer_of(
        tmp_path,
        make_model,
        tokenizer,
        prompts,
        [snapshots],
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_iterations=2,
        learning_rate=1e-3,
        max_completion_length=12,
        eval_strategy="steps",
        eval_steps=1,
        eval_on_start=True,
        predict_with_generate=False,
    )
    snapshots.trainer = trainer
    trainer.train()
    train = [row for row in trainer.state.log_history if "loss" in row]
    evals = [row for row in trainer.state.log_history if "eval_nll" in row]
    assert snapshots.rollouts[0] is snapshots.rollouts[1]
    rollout = snapshots.rollouts[0].scored.sampled
    held_out, shares, weights = [], [], []
    for prompt, ids, sampled in zip(rollout.prompt_ids, rollout.completion_ids, rollout.logprobs, strict=True):
        held_out.append(
            (naive_logprobs(make_model(0), prompt, ids) - naive_logprobs(make_model(2), prompt, ids)).sum()
        )
        grams = [tuple(ids[at : at + 4]) for at in range(len(ids) - 3)]
        shares += [len(set(grams)) / len(grams)] if grams else []
        weights.append(math.exp(naive_logprobs(snapshots.models[0], prompt, ids).sum() - sum(sampled)))
    assert train[0]["reward_held_out_ref"] == pytest.approx(torch.stack(held_out).mean().item(), abs=1e-4)
    assert train[0]["completions/distinct_4"] == pytest.approx(sum(shares) / len(shares))
    assert train[0]["effective_sample_size"] == pytest.approx(1.0, abs=1e-4)
    expected = sum(weights) ** 2 / (len(weights) * sum(weight**2 for weight in weights))
    assert expected < 0.95  # the policy has moved
    assert train[1]["effective_sample_size"] == pytest.approx(expected, abs=1e-3)
    sft = naive_nll(make_model(0), tokenizer)
    assert [row["step"] for row in evals] == [0, 1, 2]
    for row, model in zip(evals, [make_model(0), *snapshots.models], strict=True):
        assert row["eval_nll"] == pytest.approx(naive_nll(model, tokenizer), abs=1e-4)
        assert row["eval_nll_increase"] == pytest.approx(row["eval_nll"] - sft, abs=1e-4)
    assert evals[0]["eval_nll_increase"] == pytest.approx(0, abs=1e-6)
    assert "eval_reward" not in evals[0]  # nothing was sampled


def test_an_evaluation_with_sampling_has_the_nll_too(tmp_path, make_model, tokenizer, prompts):
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, per_device_eval_batch_size=4)
    metrics = trainer.evaluate()
    assert metrics["eval_nll"] == pytest.approx(naive_nll(make_model(0), tokenizer), abs=1e-4)
    assert {"eval_reward", "eval_kl_sequence", "eval_completions/distinct_4", "eval_nll_increase"} <= metrics.keys()


def test_an_evaluation_of_nothing_is_refused_before_the_first_step(tmp_path, make_model, tokenizer, prompts):
    with pytest.raises(ConfigError, match="no row of eval_dataset has a completion"):
        DPRTrainer(
            make_model(0),
            make_model(1),
            config(tmp_path, predict_with_generate=False),
            prompts,
            eval_dataset=prompts,
            processing_class=tokenizer,
        )


def test_what_a_step_spends_is_a_sum_over_its_generations(tmp_path, make_model, tokenizer, prompts):
    """Four generations a step, and one whose completions two steps train on."""
    seen = []
    for changes in ({"gradient_accumulation_steps": 4, "steps_per_generation": 1}, {"num_iterations": 2}):
        trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, estimator="sampled", **changes)
        spent, monitor = [], trainer._monitor
        trainer._monitor = lambda credited, spent=spent, monitor=monitor: spent.append(monitor(credited)) or spent[-1]
        trainer.train()
        rows = [row for row in trainer.state.log_history if "loss" in row]
        for name in ("samples", "flops"):
            assert sum(row.get(name, 0.0) for row in rows) == pytest.approx(sum(each[name] for each in spent))
        seen.append([row.get("samples") for row in rows])
    assert seen == [[32.0, 32.0], [8.0, None]]


def test_flops_are_those_of_the_policys_own_weights_and_of_all_its_passes(tmp_path, make_model, tokenizer, prompts):
    """Frozen adapters beside its own are no part of it; with two updates on a batch TRL scores it once before."""
    policy = with_lora(make_model(0))
    own = sum(weight.numel() for weight in policy.parameters())
    for changes, passes in (({}, 2 + 2 + 2 + 6), ({"num_iterations": 2}, 2 + 2 + 2 + 2 + 2 * 6)):
        given = {"args": config(tmp_path, estimator="sampled", max_steps=1, **changes), "train_dataset": prompts}
        trainer = DPRTrainer(copy.deepcopy(policy), make_model(1), processing_class=tokenizer, **given)
        trainer.train()
        (row,) = [row for row in trainer.state.log_history if "loss" in row]
        sampled = trainer.rollout.scored.sampled
        tokens = sum(map(len, {tuple(ids) for ids in sampled.prompt_ids})) + sum(map(len, sampled.completion_ids))
        assert row["flops"] == pytest.approx(own * tokens * passes)


def test_a_demonstration_that_is_not_sampled_for_needs_no_room(tmp_path, make_model, tokenizer, prompts):
    """A context of 256, and a prompt with its completion that fits: room for 64 more tokens is not asked for."""
    rows = datasets.Dataset.from_list([{"prompt": "Say red: " + "x" * 220, "completion": " ."}])
    (pair,) = encode_pairs(rows[0], tokenizer)
    assert 256 - 64 < len(pair.prompt_ids) < 256 - len(pair.completion_ids)

    def made(**changes):
        args = config(tmp_path, max_completion_length=64, **changes)
        return DPRTrainer(make_model(0), make_model(1), args, prompts, eval_dataset=rows, processing_class=tokenizer)

    assert made(predict_with_generate=False).evaluate()["eval_runtime"] > 0
    with pytest.raises(DataError, match=r"eval_dataset, row 0: .* tokens beside max_completion_length=64"):
        made()


def test_completions_that_the_loss_leaves_out_do_not_dilute_the_kl():
    mask = torch.tensor([[True, True], [False, False], [False, False], [False, False]])
    batch = SimpleNamespace(
        mask=mask, rewards=mask.float(), policy_logprobs=mask * 2.5, sft_logprobs=torch.zeros(mask.shape)
    )
    credited = SimpleNamespace(batch=batch, scored=SimpleNamespace(state_kl=(), sums=lambda: [0.0, 9.0, 9.0, 9.0]))
    monitor = RolloutMonitor(ALONE, (), None, 64, 1, 2, 1, cap=Cap(5.0, 1.0), beta=1.0)
    assert monitor._kl_and_reward(credited) == {"kl": 2.5, "kl_sequence": 5.0, "reward_per_token": 1.0}
    assert monitor._capped(credited)["capped/share"] == 0.0
    assert monitor._capped(credited)["capped/z"] == pytest.approx(math.exp(-5))


def test_an_evaluation_of_more_than_a_generation_batch_fits_the_table(tmp_path, make_model, tokenizer, prompts):
    changes = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 8, "log_completions": True}
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, **changes)
    trainer.evaluate()
    assert len(trainer._logs["advantages"]) <= 4


def test_a_rollout_function_is_not_believed_what_the_policy_says(tmp_path, make_model, tokenizer, prompts):
    """It sampled, and gives numbers of an engine of its own."""

    def rollout_func(prompts, trainer):
        ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        completions = [[20 + row % 5, 21, tokenizer.eos_token_id] for row in range(len(ids))]
        return {"prompt_ids": ids, "completion_ids": completions, "logprobs": [[0.0] * 3 for _ in ids]}

    trainer = DPRTrainer(
        model=make_model(0),
        ref_model=make_model(1),
        args=config(tmp_path, estimator="sampled", max_steps=1),
        train_dataset=prompts,
        processing_class=tokenizer,
        rollout_func=rollout_func,
    )
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "loss" in row]
    assert row["kl_sequence"] == pytest.approx(0, abs=1e-4)  # before the first update the policy is the SFT model
