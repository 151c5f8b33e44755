"""Laid-out weights: the same products, only without gradient, and nothing of it left behind."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.tiny_models import tiny_gemma3, tiny_gpt2, tiny_llama, with_lora
from torch import nn

from densepath.models import prepacked as module
from densepath.models.prepacked import prepacked

pytestmark = pytest.mark.skipif(not module._can_pack(), reason="this processor or build of torch has no such layout")
IDS = torch.tensor([[5, 9, 2, 7, 7, 1], [3, 3, 8, 60, 2, 4]])


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    monkeypatch.setattr(module, "_LEAST_ELEMENTS", 1)


def own_forwards(model: nn.Module) -> list[str]:
    return [name for name, each in model.named_modules() if "forward" in vars(each)]


@pytest.mark.parametrize("rows", [1, 2, 16, 300])
@pytest.mark.parametrize("bias", [False, True])
def test_products_are_the_same_for_any_number_of_rows(rows, bias):
    torch.manual_seed(0)
    layer, inputs = nn.Linear(40, 24, bias=bias), torch.randn(rows, 40)
    with torch.no_grad():
        expected = layer(inputs)
        with prepacked([layer]):
            assert own_forwards(layer) == [""]
            torch.testing.assert_close(layer(inputs), expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(
                layer(inputs.view(1, rows, 40)), expected.view(1, rows, 24), rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("build", [tiny_llama, tiny_gemma3, tiny_gpt2, lambda: with_lora(tiny_llama())])
@torch.no_grad()
def test_models_are_the_same_inside_and_untouched_after(build):
    model = build().eval()
    expected, modules = model(input_ids=IDS).logits, list(map(type, model.modules()))
    with prepacked([model, model]):
        assert own_forwards(model)
        torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert own_forwards(model) == []
    assert list(map(type, model.modules())) == modules
    torch.testing.assert_close(copy.deepcopy(model)(input_ids=IDS).logits, expected, rtol=0, atol=0)


def test_an_error_inside_leaves_nothing_behind():
    model = tiny_llama()
    with pytest.raises(KeyboardInterrupt), prepacked([model]):
        raise KeyboardInterrupt
    assert own_forwards(model) == []


def test_gradients_and_autocast_take_the_plain_weights():
    layer = nn.Linear(40, 24)
    with prepacked([layer]):
        layer(torch.randn(3, 40)).sum().backward()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert layer(torch.randn(3, 40)).dtype == torch.bfloat16
    assert layer.weight.grad is not None


def test_what_computes_in_a_way_of_its_own_keeps_it():
    class Doubled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    hooked = nn.Linear(40, 24)
    hooked.forward = own = lambda input: input
    layers = [Doubled(40, 24), hooked, nn.Linear(40, 24).double(), nn.Linear(40, 24).bfloat16()]
    with prepacked(layers):
        assert [own_forwards(layer) for layer in layers] == [[], [""], [], []]
    assert hooked.forward is own


def test_a_compiled_model_is_left_alone():
    model = tiny_llama()
    model.compile()
    with prepacked([model, torch.compile(nn.Linear(40, 24))]):
        assert own_forwards(model) == []


def test_an_operator_that_changed_is_not_used(monkeypatch):
    monkeypatch.setattr(module, "onednn_linear", lambda inputs, weight, bias: inputs.new_zeros(3, 96))
    module._can_pack.cache_clear()
    try:
        with prepacked([layer := nn.Linear(40, 24)]):
            assert own_forwards(layer) == []
    finally:
        module._can_pack.cache_clear()
