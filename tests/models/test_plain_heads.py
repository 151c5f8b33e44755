"""Heads that are not one linear layer: scores and training passes are those of the model's own forward pass."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.tiny_models import randomize_adapter, tiny_llama, with_lora
from torch import nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from densepath.errors import ModelError
from densepath.models.adapters import active_adapter, add_frozen_copy
from densepath.models.logits import layout_of, plain_head
from densepath.models.packed_forward import add_packed_forward
from densepath.models.packing import Layout
from densepath.models.sampling import sample
from densepath.models.scoring import completion_hidden_states, score_completions

PROMPTS = [[1, 5, 9, 4], [1, 5, 9, 4], [7], [3, 3, 8, 20, 21, 22, 23, 24]]
COMPLETIONS = [[6, 7, 8], [2], [], [30, 31, 32, 33, 34, 2]]
ADAPTERS = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "tied": {"ensure_weight_tying": True, "target_modules": ["lm_head", "embed_tokens"]},
    "trained tokens": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 7]}},
}


def with_head_adapter(name: str, model=None, randomize: bool = True):
    settings = {"target_modules": ["q_proj", "lm_head"], **ADAPTERS[name]}
    tied = {"tie_word_embeddings": True} if name in ("tied", "trained tokens") else {}
    model = get_peft_model(
        model or tiny_llama(**tied), LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **settings)
    )
    if randomize:
        randomize_adapter(model, "default", seed=1)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "lora_magnitude" in parameter_name or "trainable_tokens_delta" in parameter_name:
                    parameter.copy_(parameter.abs() + 0.7)
    return model.eval()


def own(model, prompt, completion):
    """(completion tokens,) float64 of one plain forward pass."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].double()
    rows = logits[len(prompt) - 1 : len(prompt) + len(completion) - 1].log_softmax(-1)
    return rows.gather(-1, torch.tensor(completion, dtype=torch.long).unsqueeze(-1)).squeeze(-1)


def assert_scores_are_its_own(model, atol=1e-5):
    for budget in (8, 2048):
        scored = score_completions(model, PROMPTS, COMPLETIONS, token_budget=budget)
        for prompt, completion, values in zip(PROMPTS, COMPLETIONS, scored.logprobs, strict=True):
            torch.testing.assert_close(values.double(), own(model, prompt, completion), atol=atol, rtol=0)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_on_the_head_are_scored(name):
    model = with_head_adapter(name)
    assert (own(model, PROMPTS[0], COMPLETIONS[0]) - own(tiny_llama(), PROMPTS[0], COMPLETIONS[0])).abs().max() > 0.1
    assert_scores_are_its_own(model)
    generator = torch.Generator().manual_seed(0)
    drawn = sample(model, PROMPTS, max_completion_length=4, eos_token_ids=[2], generator=generator)
    scored = score_completions(model, PROMPTS, drawn.completion_ids).logprobs
    difference = torch.cat(scored) - torch.tensor([value for row in drawn.logprobs for value in row])
    assert difference.mean().abs() < 1e-6
    assert difference.abs().max() < 1e-5


def test_an_adapter_that_changes_nothing_yet_is_seen():
    """Its numbers are the plain head's until the first update."""
    model = with_head_adapter("lora", randomize=False)
    assert plain_head(model) is None
    with pytest.raises(ModelError, match="head is not a plain linear layer"):
        completion_hidden_states(model, PROMPTS, COMPLETIONS)


def test_an_adapter_comes_goes_is_merged_and_switched_on_one_base():
    base = tiny_llama()
    assert_scores_are_its_own(base)
    plain = plain_head(base)
    assert plain is not None
    model = with_head_adapter("lora", base)
    assert_scores_are_its_own(model)
    add_frozen_copy(model, name="sft")
    randomize_adapter(model, "default", seed=2)
    seen = []
    for adapter in ("default", "sft", None):
        with active_adapter(model, adapter):
            assert_scores_are_its_own(model)
            seen.append(score_completions(model, PROMPTS, COMPLETIONS).logprobs[0])
    assert (seen[0] - seen[1]).abs().max() > 0.1
    torch.testing.assert_close(seen[2], score_completions(tiny_llama(), PROMPTS, COMPLETIONS).logprobs[0])
    model.merge_adapter()
    assert_scores_are_its_own(model)
    model.unmerge_adapter()
    merged = model.merge_and_unload()
    assert plain_head(merged) is not None
    assert_scores_are_its_own(merged)


def test_hooks_and_parametrisations_of_a_head_are_seen():
    model = tiny_llama()
    handle = model.lm_head.register_forward_hook(lambda module, given, output: output * 1.5)
    assert_scores_are_its_own(model)
    handle.remove()
    assert plain_head(model) is not None
    nn.utils.parametrizations.weight_norm(model.lm_head)
    model.lm_head.parametrizations.weight.original0.data *= 1.3
    assert_scores_are_its_own(model)


def test_a_head_with_layers_of_its_own():
    model = tiny_llama()
    model.lm_head = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 64))
    assert plain_head(model) is None
    assert_scores_are_its_own(model)


def test_the_scaling_is_found_although_the_head_is_still_zero():
    config = GraniteConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, logits_scaling=3.0, tie_word_embeddings=False,
    )  # fmt: skip
    model = GraniteForCausalLM(config).eval()
    nn.init.zeros_(model.lm_head.weight)
    score_completions(model, PROMPTS, COMPLETIONS)
    nn.init.normal_(model.lm_head.weight)
    head = plain_head(model)
    assert head is not None
    assert head.scale == 1 / 3
    assert_scores_are_its_own(model)


@pytest.mark.parametrize("name", ["lora", "dora", "saved head"])
def test_the_training_pass_of_an_adapted_head(name):
    """Values and gradients against autograd through plain passes, float64; rows are padded on the left."""
    model = with_head_adapter(name, tiny_llama(dtype=torch.float64)).double()
    reference = copy.deepcopy(model)
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy", "is_top1"))
    add_packed_forward(model)
    rows = [(p, c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True) if c]
    width = max(len(p) + len(c) for p, c in rows)
    ids, mask = torch.full((3, width), 9), torch.zeros(3, width, dtype=torch.long)
    labels = torch.full((3, width), -100)
    for row, (prompt, completion) in enumerate(rows):
        ids[row, -len(prompt + completion) :] = torch.tensor(prompt + completion)
        mask[row, -len(prompt + completion) :] = 1
        labels[row, -len(completion) :] = torch.tensor(completion)
    output = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    output.loss.backward()
    total = 0.0
    for row, (prompt, completion) in enumerate(rows):
        logits = reference(input_ids=torch.tensor([prompt + completion])).logits[0]
        logprobs = logits[len(prompt) - 1 : -1].log_softmax(-1)
        chosen = logprobs[torch.arange(len(completion)), torch.tensor(completion)]
        torch.testing.assert_close(output.log_probs[row, -len(completion) :], chosen, atol=1e-6, rtol=0)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        torch.testing.assert_close(output.entropy[row, -len(completion) :], entropy, atol=1e-6, rtol=0)
        total = total - chosen.sum() / sum(len(c) for _, c in rows)
    total.backward()
    for (key, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        if mine.requires_grad:
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-5, msg=key)


def test_a_window_wider_than_the_trial_is_not_packed():
    config = GPTNeoConfig(
        vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=20, max_position_embeddings=256, intermediate_size=32, initializer_range=0.3,
    )  # fmt: skip
    model = GPTNeoForCausalLM(config).eval()
    assert layout_of(model) is Layout.PADDED
    prompts = [list(range(1, 41))] * 3
    completions = [[50, 51, 52, 53]] * 2 + [[54, 55]]
    scored = score_completions(model, prompts, completions)
    for prompt, completion, values in zip(prompts, completions, scored.logprobs, strict=True):
        torch.testing.assert_close(values.double(), own(model, prompt, completion), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "original_max_position_embeddings": 16, "short_factor": [1.0] * 4,
         "long_factor": [4.0] * 4, "factor": 4.0},
    ],
)  # fmt: skip
def test_rotary_frequencies_that_follow_the_longest_sequence_are_not_mixed(rope):
    model = tiny_llama(rope_parameters={"rope_theta": 10000.0, **rope})
    prompts, completions = [[1, 2, 3], [*range(1, 31)], [4, 5]], [[6, 7], [8, 9, 10], [11]]
    scored = score_completions(model, prompts, completions)
    for prompt, completion, values in zip(prompts, completions, scored.logprobs, strict=True):
        torch.testing.assert_close(values.double(), own(model, prompt, completion), atol=1e-5, rtol=0)


def test_a_model_that_sees_later_tokens_is_refused():
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = BertConfig(intermediate_size=32, initializer_range=0.3, **sizes)
    with pytest.raises(ModelError, match="BertLMHeadModel is not causal"):
        score_completions(BertLMHeadModel(config).eval(), PROMPTS, COMPLETIONS)
    config.is_decoder = True
    assert_scores_are_its_own(BertLMHeadModel(config).eval())


def test_adapters_that_work_in_the_wrapper_are_refused():
    from peft import PromptTuningConfig

    model = get_peft_model(tiny_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ModelError, match="virtual prompt tokens"):
        score_completions(model, PROMPTS, COMPLETIONS)
    ordinary = with_lora(tiny_llama())
    ordinary.peft_config["default"].alora_invocation_tokens = [3]
    with pytest.raises(ModelError, match="aLoRA"):
        score_completions(ordinary, PROMPTS, COMPLETIONS)


def test_an_id_that_the_model_does_not_have_is_named():
    with pytest.raises(ModelError, match="sequence 1 has token id 64, and the model has 64 of them"):
        score_completions(tiny_llama(), [[1], [2]], [[3], [64]])


def test_what_changes_logits_after_the_trial_is_seen():
    class Scaled(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * self.config.somebodys_scale
            return output

    model = tiny_llama()
    model.__class__, model.config.somebodys_scale = Scaled, 1.0
    assert_scores_are_its_own(model)
    model.config.somebodys_scale = 3.0
    assert_scores_are_its_own(model)

    model = tiny_llama()
    assert_scores_are_its_own(model)

    def twice(module, given, output):
        output.logits = output.logits * 2
        return output

    handle = model.register_forward_hook(twice)
    assert plain_head(model) is None
    assert_scores_are_its_own(model)
    handle.remove()
    assert plain_head(model) is not None

    plain = model.forward
    model.forward = functools.wraps(plain)(lambda **given: twice(model, (), plain(**given)))
    assert plain_head(model) is None
    assert_scores_are_its_own(model)
