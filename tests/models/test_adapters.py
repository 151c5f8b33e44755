from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.tiny_models import randomize_adapter, tiny_gpt2, tiny_llama, with_lora

from densepath.errors import MissingFileError, ModelError, UsageError
from densepath.models.adapters import active_adapter, adapters_differ, add_frozen_copy, load_frozen_adapter

IDS = torch.tensor([[1, 5, 9, 3, 7, 11]])


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def state_of(model):
    """Everything that a switch might disturb."""
    return (
        model.active_adapter,
        list(model.base_model.active_adapters),
        {key: parameter.requires_grad for key, parameter in model.named_parameters()},
        {key: module.training for key, module in model.named_modules()},
        logits(copy.deepcopy(model).eval()).tolist(),
    )


@pytest.fixture
def saved(tmp_path):
    """A base model and two adapters on disk; each adapter merged into a model of its own is the truth."""
    for name, seed in (("one", 1), ("two", 2)):
        with_lora(tiny_llama(), seed=seed).save_pretrained(tmp_path / name)
    return tmp_path


def merged(seed):
    return with_lora(tiny_llama(), seed=seed).merge_and_unload()


def test_adapters_over_one_base_equal_separate_merged_models(saved):
    model = with_lora(tiny_llama(), seed=7)
    load_frozen_adapter(model, saved / "one", "sft")
    load_frozen_adapter(model, saved / "two", "ref")
    for name, truth in (("sft", merged(1)), ("ref", merged(2)), ("default", merged(7)), (None, tiny_llama())):
        with active_adapter(model, name):
            torch.testing.assert_close(logits(model), logits(truth), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(model), logits(merged(7)), atol=1e-5, rtol=0)


def test_a_frozen_copy_keeps_the_weights_of_its_moment():
    model = with_lora(tiny_llama(), seed=1, dropout=0.5)
    before = logits(model.eval())
    add_frozen_copy(model, name="sft")
    assert not adapters_differ(model, "default", "sft")
    randomize_adapter(model, "default", seed=5)
    assert adapters_differ(model, "default", "sft")
    model.train()  # the copy has no dropout: train mode computes the same
    with active_adapter(model, "sft"):
        torch.testing.assert_close(logits(model), before, atol=0, rtol=0)
    assert not torch.allclose(logits(model), before)


def test_a_frozen_copy_keeps_the_dtype():
    model = with_lora(tiny_llama(dtype=torch.bfloat16), seed=1).to(torch.bfloat16)
    add_frozen_copy(model, name="sft")
    assert {p.dtype for key, p in model.named_parameters() if ".sft." in key} == {torch.bfloat16}
    assert not adapters_differ(model, "default", "sft")


def test_trained_embeddings_are_copied_too():
    model = get_peft_model(
        tiny_llama(),
        LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    ).eval()
    randomize_adapter(model, "default", seed=3)
    before = logits(model)
    add_frozen_copy(model, name="sft")
    randomize_adapter(model, "default", seed=4)
    with active_adapter(model, "sft"):
        torch.testing.assert_close(logits(model), before, atol=0, rtol=0)
    with active_adapter(model, None):
        torch.testing.assert_close(logits(model), logits(tiny_llama()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["sft", "default", None])
@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_restored_also_after_an_exception(name, fails):
    model = with_lora(tiny_llama(), seed=1)
    add_frozen_copy(model, name="sft")
    randomize_adapter(model, "default", seed=2)
    model.train()
    model.base_model.model.model.layers[0].eval()
    before = state_of(model)
    trainable = before[2]
    assert any(trainable.values())
    assert not any(flag for key, flag in trainable.items() if ".default." not in key)
    try:
        with active_adapter(model, name):
            assert {key: p.requires_grad for key, p in model.named_parameters()} == trainable
            model.eval()
            if fails:
                raise KeyError("inside")
    except KeyError:
        assert fails
    assert state_of(model) == before


def test_blocks_nest():
    model = with_lora(tiny_llama(), seed=1)
    add_frozen_copy(model, name="sft")
    randomize_adapter(model, "default", seed=2)
    before = state_of(model)
    with active_adapter(model, None):
        base = logits(model)
        with active_adapter(model, "sft"):
            torch.testing.assert_close(logits(model), logits(merged(1)), atol=1e-5, rtol=0)
            with active_adapter(model, None):
                assert torch.equal(logits(model), base)
        assert torch.equal(logits(model), base)
    assert state_of(model) == before


def test_only_the_policy_gets_gradients():
    model = with_lora(tiny_llama(), seed=1)
    add_frozen_copy(model, name="sft")
    policy = model(input_ids=IDS).logits
    with active_adapter(model, "sft"):
        reference = model(input_ids=IDS).logits
    assert not reference.requires_grad
    (policy - reference.detach()).square().sum().backward()
    (policy_again := model(input_ids=IDS).logits).sum().backward()
    assert policy_again.requires_grad
    touched = {key for key, p in model.named_parameters() if p.grad is not None}
    assert touched
    assert all(".default." in key for key in touched)


def test_adding_changes_nothing_else(saved):
    model = with_lora(tiny_llama(), seed=1).train()
    before = state_of(model)
    add_frozen_copy(model, name="sft")
    load_frozen_adapter(model, saved / "two", "ref")
    after = state_of(model)
    assert after[0:2] == before[0:2]
    assert after[4] == before[4]
    assert {key: flag for key, flag in after[2].items() if flag} == {
        key: flag for key, flag in before[2].items() if flag
    }


def test_mistakes_are_named(saved):
    model = with_lora(tiny_llama(), seed=1)
    with pytest.raises(UsageError, match="already an adapter 'default'"):
        add_frozen_copy(model, name="default")
    with pytest.raises(UsageError, match="no adapter 'sft'; there are 'default'"):
        add_frozen_copy(model, source="sft", name="ref")
    with pytest.raises(UsageError, match="no adapter 'sft'"), active_adapter(model, "sft"):
        pass
    with pytest.raises(MissingFileError, match="no such model folder"):
        load_frozen_adapter(model, saved / "three", "ref")
    (saved / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        load_frozen_adapter(model, saved / "empty", "ref")


def test_an_adapter_that_does_not_fit_leaves_nothing_behind(saved):
    model = with_lora(_wider(), seed=1)
    before = state_of(model)
    with pytest.raises(ModelError, match="cannot load the adapter"):
        load_frozen_adapter(model, saved / "one", "ref")
    assert list(model.peft_config) == ["default"]
    assert state_of(model) == before


def _wider():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    ).eval()


@pytest.mark.parametrize("settings", [{"bias": "lora_only"}, {"init_lora_weights": "olora"}])
def test_no_other_adapter_stands_on_a_base_that_one_changes(tmp_path, settings):
    model, other = (
        get_peft_model(tiny_gpt2(), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], **each))
        for each in (settings, {})
    )
    with pytest.raises(ModelError, match="adapter 'default' changes weights of its base"):
        add_frozen_copy(model, name="sft")
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="changes weights of its base"):
        load_frozen_adapter(other, tmp_path, "ref")
