"""Hidden states at visited states: with the head they give the model's own distributions."""

from __future__ import annotations

import pytest
import torch
from tests.tiny_models import tiny_gemma3, tiny_gpt2, tiny_llama, tiny_mamba, tiny_mistral, with_lora

from densepath.core.heads import head_logprobs
from densepath.models.logits import plain_head
from densepath.models.scoring import completion_hidden_states

MODELS = {
    "llama": tiny_llama(),
    "mistral, sliding": tiny_mistral(),
    "gemma3, sliding and tied": tiny_gemma3(),
    "gpt2": tiny_gpt2(),
    "mamba": tiny_mamba(),
}
PROMPTS = [[1, 5, 9, 4], [1, 5, 9, 4], [7], [3, 3, 8, 20, 21, 22, 23, 24]]
COMPLETIONS = [[6, 7, 8], [2], [], [30, 31, 32, 33, 34, 2]]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("budget", [8, 2048])
def test_the_head_of_hidden_states_gives_the_models_distributions(name, budget):
    model = MODELS[name]
    assert plain_head(model) is not None
    model.train()
    rows = completion_hidden_states(model, PROMPTS, COMPLETIONS, token_budget=budget)
    assert model.training
    model.eval()
    assert [len(states) for states in rows] == [3, 1, 0, 6]
    for prompt, completion, states in zip(PROMPTS, COMPLETIONS, rows, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
            expected = logits[len(prompt) - 1 : len(prompt) - 1 + len(completion)].double().log_softmax(-1)
            found = head_logprobs(states, plain_head(model))
        torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)


def test_heads_that_are_not_one_linear_layer_are_seen():
    from peft import LoraConfig, get_peft_model

    assert plain_head(with_lora(tiny_llama())) is not None
    adapter = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM"))
    assert plain_head(adapter) is None
    saved = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    assert plain_head(get_peft_model(tiny_llama(), saved)) is None


def test_a_scaling_that_the_head_does_not_know_is_seen():
    model = tiny_llama()
    inner = model.forward

    def doubled(*args, **kwargs):
        output = inner(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    model.forward = doubled
    assert plain_head(model) is None
