"""Two models in turn on one base: a view computes what a model of its own does, and leaves the base as it was."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.models.test_adapters import IDS, logits, merged, saved, state_of  # noqa: F401 - a fixture
from tests.tiny_models import randomize_adapter, tiny_llama, with_lora

from densepath.errors import UsageError
from densepath.models.adapters import active_adapter, adapter_view, add_frozen_copy, load_frozen_adapter
from densepath.models.sampling import Contrast, ContrastKind, sample
from densepath.rewards.frozen import FrozenPolicy


@pytest.fixture
def shared(saved):  # noqa: F811
    model = with_lora(tiny_llama(), seed=7)
    load_frozen_adapter(model, saved / "one", "ref")
    return model.requires_grad_(False).eval()


@pytest.mark.parametrize(("name", "seed"), [("ref", 1), (None, None)])
def test_a_view_is_its_adapter_whatever_is_active(shared, name, seed):
    truth = logits(tiny_llama() if seed is None else merged(seed))
    before = state_of(shared)
    for active, own in (("default", merged(7)), ("ref", merged(1)), (None, tiny_llama())):
        with active_adapter(shared, active), adapter_view(shared, name) as view, torch.no_grad():
            torch.testing.assert_close(view(input_ids=IDS).logits, truth, atol=1e-5, rtol=0)
            torch.testing.assert_close(logits(shared), logits(own), atol=1e-5, rtol=0)  # switched back after the call
    assert state_of(shared) == before


def test_a_view_of_no_adapter_is_refused(shared):
    with (
        pytest.raises(UsageError, match="no adapter 'other'; there are 'default', 'ref'"),
        adapter_view(shared, "other"),
    ):
        pass


@pytest.mark.parametrize("kind", ContrastKind, ids=lambda kind: kind.value)
@pytest.mark.parametrize(("name", "seed"), [("ref", 1), (None, None)])
def test_decoding_between_two_adapters_of_one_base_samples_what_two_models_do(shared, kind, name, seed):
    second = tiny_llama() if seed is None else merged(seed)
    settings = {"num_generations": 3, "max_completion_length": 18, "eos_token_ids": [2]}

    def drawn(model, other):
        generator = torch.Generator().manual_seed(3)
        return sample(model, [[1, 5, 9], [1, 7]], contrast=Contrast(other, kind, 0.7), generator=generator, **settings)

    apart = drawn(merged(7).requires_grad_(False), second)
    before = state_of(shared)
    with FrozenPolicy(shared, "default").active() as model, FrozenPolicy(shared, name).beside() as other:
        together = drawn(model, other)
    assert together.completion_ids == apart.completion_ids
    for ours, theirs in zip(together.logprobs, apart.logprobs, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert state_of(shared) == before


def test_a_view_switches_the_modules_that_an_adapter_keeps_a_copy_of():
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["lm_head", "norm"])
    model = get_peft_model(tiny_llama(), config)
    randomize_adapter(model, "default", seed=3)
    add_frozen_copy(model, name="sft")
    truth = {"sft": logits(model), None: logits(tiny_llama())}
    randomize_adapter(model, "default", seed=4)
    before, own = state_of(model), logits(model)
    for name, expected in truth.items():
        with adapter_view(model, name) as view, torch.no_grad():
            torch.testing.assert_close(view(input_ids=IDS).logits, expected, atol=1e-6, rtol=0)
            torch.testing.assert_close(logits(model), own, atol=0, rtol=0)
    assert state_of(model) == before
