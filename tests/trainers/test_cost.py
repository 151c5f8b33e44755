"""Cost of a step: how often each model's layers run, and what is counted as FLOPs."""

from __future__ import annotations

import pytest
import torch
from tests.tiny_models import with_lora
from tests.trainers.test_dpr import rollout, trainer_of, uneven_lengths

from densepath.models.logits import causal_lm
from densepath.trainers.dpr_config import DPRConfig


class Passes:
    """Counts the passes through a model's layers, and the tokens of the widest."""

    def __init__(self, model):
        self.calls = 0
        causal_lm(model).base_model.register_forward_pre_hook(self._count)

    def _count(self, module, given):
        self.calls += 1


def one_step(trainer):
    """Loss of a rollout, and its gradient."""
    output = rollout(trainer)
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, output).backward()
    return output


@pytest.mark.parametrize("estimator", ["auto", "all_action", "sampled"])
@pytest.mark.parametrize("lora", [False, True])
def test_passes_of_one_step(tmp_path, make_model, tokenizer, prompts, estimator, lora):
    """The policy samples (a pass a token) and is trained (one pass); each frozen model is scored in one pass."""
    if lora:
        policy = with_lora(make_model(0))
        policy.peft_config["default"].base_model_name_or_path = None
        trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, model=policy, estimator=estimator)
    else:
        trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, estimator=estimator)
    ref = trainer.dense_reward.refs[0].model
    one_step(trainer)  # and what is tried once for a model
    counted = {"policy": Passes(trainer.model), "ref": Passes(ref)}
    if not lora:
        counted["sft"] = Passes(trainer.dense_reward.sft.model)
    output = one_step(trainer)
    sampled = int(output["completion_mask"].sum(dim=1).max())
    own = 1 if lora else 0  # with an adapter the SFT policy is the same layers
    assert counted["policy"].calls == sampled + 1 + own
    assert counted["ref"].calls == 1
    assert lora or counted["sft"].calls == 1
    assert trainer.rollout.scored.policy_passes == 0


def test_the_policys_states_are_computed_once_more_where_the_sampler_did_not_keep_them(
    tmp_path, make_model, tokenizer, prompts
):
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts)
    uneven_lengths(trainer)
    one_step(trainer)
    passes = Passes(trainer.model)
    one_step(trainer)
    assert trainer.rollout.scored.policy_passes == 1
    assert passes.calls == 6 + 1 + 1


def test_the_default_is_the_estimator_whose_step_is_the_cheaper(tmp_path):
    assert DPRConfig(str(tmp_path), report_to="none").estimator == "sampled"


@pytest.mark.parametrize("estimator", ["auto", "sampled"])
def test_flops_of_a_step(tmp_path, make_model, tokenizer, prompts, estimator):
    """2 a token and parameter forward, 4 backward: sampling 2, two frozen models 2 each, training 6."""
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, estimator=estimator)
    output = rollout(trainer)
    distinct = {tuple(ids) for ids in trainer.rollout.scored.sampled.prompt_ids}
    tokens = sum(map(len, distinct)) + int(output["completion_mask"].sum())
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    assert trainer._metrics["train"]["flops"][-1] == tokens * parameters * 12


def test_kept_states_give_what_a_pass_over_the_samples_gives(tmp_path, make_model, tokenizer, prompts):
    found = []
    for cut in (False, True):
        trainer = trainer_of(tmp_path, make_model, tokenizer, prompts)
        if cut:  # a copy: equal ids, but not what the sampler returned
            inner = trainer._generate_single_turn

            def forget(*args, trainer=trainer, inner=inner):
                output = inner(*args)
                trainer._samples = None
                return output

            trainer._generate_single_turn = forget
        torch.manual_seed(0)
        output = rollout(trainer)
        found.append(
            (trainer.rollout.scored.policy_passes, output["advantages"], trainer.rollout.scored.policy_logprobs)
        )
    assert [passes for passes, _, _ in found] == [0, 1]
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=0)
    for kept, computed in zip(found[0][2], found[1][2], strict=True):
        torch.testing.assert_close(kept, computed, atol=1e-5, rtol=0)
