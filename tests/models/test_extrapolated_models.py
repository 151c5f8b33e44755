from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tests.families import build
from tests.tiny_models import randomize_adapter, tiny_gpt2, tiny_llama, with_lora

from densepath.errors import ModelError
from densepath.models.extrapolation import save_extrapolated
from densepath.models.load import load_model

IDS = torch.tensor([[1, 5, 9, 3, 7]])


@pytest.fixture
def models(tmp_path):
    """Two whole models with tied head; names of their folders."""
    for seed, name in enumerate(("sft", "ref")):
        tiny_llama(seed=seed, tie_word_embeddings=True).save_pretrained(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 2.0])
def test_whole_models(models, alpha):
    save_extrapolated(models / "sft", models / "ref", alpha, models / "out")
    found, sft, ref = (load_file(models / name / "model.safetensors") for name in ("out", "sft", "ref"))
    assert found.keys() == sft.keys()
    for name, weight in found.items():
        expected = sft[name].double() + alpha * (sft[name].double() - ref[name].double())
        torch.testing.assert_close(weight.double(), expected, atol=1e-6, rtol=1e-6)
    if alpha in (0, -1):
        same = sft if alpha == 0 else ref
        assert all(torch.equal(found[name], same[name]) for name in same)
    model = load_model(models / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def adapter(base_folder, folder, rank, seed, **settings):
    base = load_model(base_folder, for_training=True)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=3 * rank, target_modules=["q_proj", "down_proj"], **settings
    )
    model = get_peft_model(base, config)
    randomize_adapter(model, "default", seed=seed)
    model.save_pretrained(folder)


def merged(folder) -> dict[str, torch.Tensor]:
    return {name: p.double() for name, p in load_model(folder, dtype="float64", merge=True).named_parameters()}


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 1.5])
@pytest.mark.parametrize("against", ["adapter", "base"])
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}], ids=["plain", "rslora"])
def test_adapters_of_one_base_give_what_their_merged_weights_give(models, alpha, against, settings):
    adapter(models / "sft", models / "a", 4, 1, **settings)
    adapter(models / "sft", models / "b", 2, 2, **settings)
    ref = models / ("b" if against == "adapter" else "sft")
    save_extrapolated(models / "a", ref, alpha, models / "out")
    is_adapter = (models / "out/adapter_config.json").exists()
    assert is_adapter == (not settings)  # another scale than alpha / r: merged
    found, sft, other = merged(models / "out"), merged(models / "a"), merged(ref)
    for name, weight in found.items():
        torch.testing.assert_close(weight, sft[name] + alpha * (sft[name] - other[name]), atol=2e-6, rtol=2e-6)
    if is_adapter:
        model = load_model(models / "out")
        assert isinstance(model, PeftModel)
        assert model.peft_config["default"].r == (6 if against == "adapter" else 4)
        expected = copy.deepcopy(model).merge_and_unload()(input_ids=IDS).logits
        torch.testing.assert_close(model(input_ids=IDS).logits, expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_against_another_model_is_merged(models):
    with_lora(load_model(models / "sft", for_training=True)).save_pretrained(models / "a")
    save_extrapolated(models / "a", models / "ref", 1.0, models / "out")
    assert (models / "out/model.safetensors").exists()
    found, sft, other = merged(models / "out"), merged(models / "a"), merged(models / "ref")
    for name, weight in found.items():
        torch.testing.assert_close(weight, 2 * sft[name] - other[name], atol=2e-6, rtol=2e-6)


def test_models_of_two_architectures_are_refused(models):
    tiny_gpt2().save_pretrained(models / "other")
    with pytest.raises(ModelError, match="different weights: only models of one architecture"):
        save_extrapolated(models / "sft", models / "other", 1.0, models / "out")


@pytest.mark.parametrize("changed", ["experts", "base"])
def test_adapters_that_are_more_than_pairs_of_matrices_are_merged(tmp_path, changed):
    """LoRA on the experts' own parameters is laid out for each expert; PiSSA takes a part of the base's weights."""
    build("mixtral").save_pretrained(tmp_path / "base")
    experts = {"target_parameters": ["mlp.experts.down_proj"]}
    settings = experts if changed == "experts" else {"init_lora_weights": "pissa"}
    for seed, name in enumerate(("a", "b")):
        base = load_model(tmp_path / "base", for_training=True)
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], **settings))
        randomize_adapter(model, "default", seed=seed)
        model.save_pretrained(tmp_path / name)
    save_extrapolated(tmp_path / "a", tmp_path / "b", 0.5, tmp_path / "out")
    names = ("out", "a", "b")  # PEFT takes PiSSA's part in float32
    found, sft, other = (dict(load_model(tmp_path / name, merge=True).named_parameters()) for name in names)
    for name, weight in found.items():
        torch.testing.assert_close(weight, 1.5 * sft[name] - 0.5 * other[name], atol=2e-6, rtol=2e-6)
