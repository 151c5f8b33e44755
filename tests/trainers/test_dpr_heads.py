"""DPR with heads that are not plain, and with models of other lengths: before the first update the KL is 0."""

from __future__ import annotations

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.models.test_vocabulary import padded
from tests.tiny_models import randomize_adapter, tiny_llama
from tests.trainers.test_dpr import rollout, trainer_of

from densepath.errors import ConfigError


def adapter(make_model, **settings):
    tied = {"tie_word_embeddings": True} if settings.get("ensure_weight_tying") else {}
    given = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "lm_head"], **settings}
    model = get_peft_model(make_model(0, **tied), LoraConfig(task_type="CAUSAL_LM", **given))
    randomize_adapter(model, "default", seed=1)
    return model


def scaled(tokenizer, family):
    from tests.families import build

    model = build(family, scaled=True)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.15)
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.15)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


POLICIES = {
    "lora": lambda make, _: adapter(make),
    "dora": lambda make, _: adapter(make, use_dora=True),
    "rslora": lambda make, _: adapter(make, use_rslora=True),
    "tied": lambda make, _: adapter(make, ensure_weight_tying=True, target_modules=["lm_head", "embed_tokens"]),
    "saved head": lambda make, _: adapter(make, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "merged": lambda make, _: adapter(make).merge_and_unload().requires_grad_(True),
    "lm_head_multiplier": lambda _, tokenizer: scaled(tokenizer, "falcon_h1"),
    "logits_scaling": lambda _, tokenizer: scaled(tokenizer, "granite"),
}


@pytest.mark.parametrize("name", POLICIES)
def test_kl_is_zero_before_the_first_update(tmp_path, make_model, tokenizer, prompts, name):
    policy = POLICIES[name](make_model, tokenizer)
    trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, model=policy, max_completion_length=4)
    plain = name in ("merged", "lm_head_multiplier", "logits_scaling")
    assert trainer.estimator.all_action == plain
    output = rollout(trainer)
    assert abs(trainer._metrics["train"]["kl"][-1]) < 1e-6
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, output).backward()


def test_a_head_that_is_not_plain_is_sampled_with_a_line(tmp_path, make_model, tokenizer, prompts, caplog):
    with caplog.at_level(logging.WARNING):
        trainer_of(tmp_path, make_model, tokenizer, prompts, model=adapter(make_model))
    assert "estimator=auto became sampled: the language-model head of the policy is not a plain" in caplog.text
    with pytest.raises(ConfigError, match="all_action is not possible: the language-model head of the policy"):
        trainer_of(tmp_path, make_model, tokenizer, prompts, model=adapter(make_model), estimator="all_action")


def test_heads_of_different_lengths_are_sampled_with_a_line(tmp_path, make_model, tokenizer, prompts, caplog):
    policy = padded(0, len(tokenizer) + 64)
    with torch.no_grad():
        policy.lm_head.weight[len(tokenizer) :] = 0.0
    policy.generation_config.eos_token_id = tokenizer.eos_token_id
    ref = tiny_llama(vocab_size=len(tokenizer), seed=1)
    with caplog.at_level(logging.WARNING):
        trainer = trainer_of(tmp_path, make_model, tokenizer, prompts, model=policy, ref=ref)
    assert "the heads have different numbers of rows (policy 448, SFT model 448, reference 0 384)" in caplog.text
    assert not trainer.estimator.all_action
