"""The library that multiplies: how it is chosen, and that models, adapters and training are the same through it."""

from __future__ import annotations

import copy
import logging
from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.tiny_models import tiny_gpt2, tiny_llama
from torch import nn
from transformers.pytorch_utils import Conv1D

from densepath.core import products
from densepath.core.products import Library
from densepath.models import linear
from densepath.models.linear import Rates, choose_library, install, measure_rates, memory_bandwidth
from densepath.models.load import load_model

needs_onednn = pytest.mark.skipif(not products.has_onednn(), reason="this build of torch has no oneDNN")
IDS = torch.tensor([[5, 9, 2, 7, 7, 1], [3, 3, 8, 60, 2, 4]])


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Each test begins with nothing chosen, and leaves torch as it was."""
    monkeypatch.setattr(linear, "_tried", None)
    monkeypatch.setattr(products, "_in_use", Library.BLAS)
    monkeypatch.setattr(products, "LEAST_WORK", 1)
    for kind in (nn.Linear, Conv1D):
        monkeypatch.setattr(kind, "forward", kind.forward)


def rates_of(monkeypatch, *rates: Rates) -> list[Counter]:
    """Let trials give these rates; the shapes that they were asked for."""
    asked = []

    def measure(shapes):
        asked.append(shapes)
        return rates[len(asked) - 1]

    monkeypatch.setattr(linear, "measure_rates", measure)
    monkeypatch.setattr(linear, "_LEAST_WEIGHTS", 1)
    return asked


@needs_onednn
@pytest.mark.parametrize(
    ("rates", "library"),
    [
        (Rates(100.0, 240.0), Library.ONEDNN),
        (Rates(100.0, 149.0), Library.BLAS),
        (Rates(100.0, None), Library.BLAS),
    ],
    ids=["clearly", "nearly equal", "not in the build"],
)
def test_the_clearly_faster_library_is_taken_and_said_once(rates, library, monkeypatch, caplog):
    asked = rates_of(monkeypatch, rates, Rates(1.0, 1.0))
    with caplog.at_level(logging.INFO, logger="densepath"):
        choose_library(tiny_llama())
        choose_library(tiny_llama(seed=1))
    assert products.in_use() is library
    assert len(asked) == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"linear layers on the CPU through {library.value} ({rates})"
    ]


def test_the_models_own_shapes_are_tried(monkeypatch):
    asked = rates_of(monkeypatch, Rates(1.0, 1.0))
    choose_library(tiny_gpt2())
    width = tiny_gpt2().config.n_embd
    assert asked[0][3 * width, width] == tiny_gpt2().config.n_layer  # c_attn, whose weight is (in, out)


def test_small_models_and_other_types_try_nothing(monkeypatch):
    monkeypatch.setattr(linear, "measure_rates", None)
    choose_library(tiny_llama())
    monkeypatch.setattr(linear, "_LEAST_WEIGHTS", 1)
    choose_library(tiny_llama(dtype=torch.bfloat16))
    assert linear._tried is None


def test_loading_a_model_chooses(tmp_path, monkeypatch):
    tiny_llama().save_pretrained(tmp_path)
    asked = rates_of(monkeypatch, Rates(1.0, 1.0))
    load_model(tmp_path)
    assert len(asked) == 1


def test_rates_and_bandwidth_are_measured():
    rates = measure_rates(Counter({(32, 16): 3, (5000, 8): 1}))
    assert min(rates.blas, rates.onednn or 1) > 0
    assert 1e8 < memory_bandwidth() < 1e13
    assert str(Rates(107.3, None)).endswith("oneDNN not in this build float32 GFLOP/s a core")


@needs_onednn
def test_a_private_operator_that_changed_is_not_used(monkeypatch):
    monkeypatch.setattr(products, "onednn_linear", lambda inputs, weight: inputs @ weight.t() + 1)
    assert measure_rates(Counter({(32, 16): 1})).onednn is None


def tuned(kind: str) -> torch.nn.Module:
    """A model in train mode, what is trained of it set to differ from zero."""
    model = {"llama": tiny_llama, "gpt2": tiny_gpt2}[kind.split("+")[0]]()
    if kind.endswith("+lora"):
        targets = ["c_attn"] if kind.startswith("gpt2") else ["q_proj", "down_proj"]
        lora = LoraConfig(r=2, target_modules=targets, fan_in_fan_out=kind.startswith("gpt2"), task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    return model.eval()


def pass_of(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and gradients of a loss."""
    model.zero_grad()
    output = model(input_ids=IDS, labels=IDS)
    output.loss.backward()
    return output.logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@needs_onednn
@pytest.mark.parametrize("kind", ["llama", "gpt2", "llama+lora", "gpt2+lora"])
def test_models_and_adapters_are_the_same(kind):
    model = tuned(kind)
    logits, gradients = pass_of(model)
    classes, state = [type(module) for module in model.modules()], model.state_dict()
    install()
    found, its = pass_of(model)
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(its, gradients, rtol=1e-4, atol=1e-6)
    assert [type(module) for module in model.modules()] == classes
    assert model.state_dict().keys() == state.keys()
    torch.testing.assert_close(pass_of(copy.deepcopy(model))[0], found, rtol=0, atol=0)


@needs_onednn
def test_layers_of_adapters_that_come_later_go_through_it_too(monkeypatch):
    install()
    seen = []
    monkeypatch.setattr(products, "onednn_linear", lambda *given: seen.append(given) or nn.functional.linear(*given))
    model = tuned("llama+lora")
    model(input_ids=IDS)
    inner = {tuple(weight.shape) for _, weight, _ in seen}
    assert {tuple(p.shape) for n, p in model.named_parameters() if "lora_" in n} <= inner


def trained(steps: int, start: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    model = tiny_llama().train()
    model.load_state_dict(start or model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@needs_onednn
def test_training_repeats_and_resumes_bit_by_bit():
    install()
    whole = trained(4)
    for again in (trained(4), trained(2, trained(2))):
        torch.testing.assert_close(again, whole, rtol=0, atol=0)
