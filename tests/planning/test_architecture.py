"""Sizes read off meta models: published parameter counts, and what there are no formulas for."""

from __future__ import annotations

import pytest
import torch
from tests.tiny_models import tiny_gemma3, tiny_gpt2, tiny_llama, tiny_mamba, with_lora
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from densepath.errors import MissingFileError, ModelError
from densepath.planning.architecture import (
    architecture_of,
    configuration_of,
    known_configurations,
    read_architecture,
)

PUBLISHED = {
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "smollm2-135m-instruct": 134_515_008,
}
"""As the hub counts the tensors of each model's safetensors, tied ones once."""
GEMMA_3_4B = 4_300_079_472
"""google/gemma-3-4b-it, the vision tower and the projector included."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    assert architecture_of(name).parameters == PUBLISHED[name]


def test_gemma_3_4b_is_the_published_model_without_its_vision_part():
    text = configuration_of("google/gemma-3-4b-it").to_dict()
    vision = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "image_size": 896,
        "vision_use_head": False,
    }
    with torch.device("meta"):
        whole = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision))
    assert sum(parameter.numel() for parameter in whole.parameters()) == GEMMA_3_4B
    pictures = sum(p.numel() for name, p in whole.named_parameters() if "language_model" not in name)
    # 416,866,032 of the vision tower; 1,152 x 2,560 and a norm of 1,152 of the projector
    assert pictures == 416_866_032 + 1152 * 2560 + 1152
    assert architecture_of("google/gemma-3-4b-it").parameters == GEMMA_3_4B - pictures


def test_every_known_model_can_be_planned():
    for name, values in known_configurations().items():
        sizes = architecture_of(name)
        norms = 4 if values["model_type"] == "gemma3_text" else 2
        normed_queries = values["model_type"] in ("qwen3", "gemma3_text")
        assert sizes.normed == norms * sizes.hidden + normed_queries * (sizes.query + sizes.key)
        assert len(sizes.linears) == 7


def test_sizes_of_a_model_with_weights_and_of_its_configuration_agree(tmp_path):
    model = tiny_llama(vocab_size=70)
    model.save_pretrained(tmp_path)
    found = architecture_of(str(tmp_path))
    assert found == read_architecture(model, str(tmp_path))
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (found.layers, found.hidden, found.intermediate, found.query, found.key) == (2, 32, 64, 32, 16)
    assert (found.vocabulary, found.embedding, found.context, found.windows) == (70, 70 * 32, 256, (None, None))


def test_an_adapter_folder_stands_for_its_base(tmp_path):
    base = tiny_llama()
    base.save_pretrained(tmp_path / "base")
    adapter = with_lora(base)
    adapter.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapter.save_pretrained(tmp_path / "adapter")
    name = str(tmp_path / "adapter")
    assert architecture_of(name).parameters == architecture_of(str(tmp_path / "base")).parameters


def test_the_text_part_of_a_model_with_pictures_is_planned(tmp_path):
    text = tiny_gemma3().config.to_dict()
    Gemma3Config(text_config=text).save_pretrained(tmp_path)
    assert architecture_of(str(tmp_path)).parameters == read_architecture(tiny_gemma3(), "x").parameters


def test_sliding_windows_are_read():
    assert read_architecture(tiny_gemma3(window=6), "x").windows == (6, None)
    assert all(window is None for window in architecture_of("mistralai/Mistral-7B-v0.3").windows)
    gemma = architecture_of("google/gemma-3-4b-pt").windows
    assert gemma[:6] == (1024, 1024, 1024, 1024, 1024, None)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_mamba])
def test_what_has_no_gated_mlp_is_refused(make):
    with pytest.raises(ModelError, match="has formulas for dense decoders with gated MLPs"):
        read_architecture(make(), "x")


def test_a_mixture_of_experts_is_refused():
    config = CONFIG_MAPPING["mixtral"](
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        num_local_experts=4,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match="mixtral is none"):
        read_architecture(model, "x")


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(MissingFileError, match="no such model folder"):
        architecture_of("./nowhere")
    with pytest.raises(ModelError, match=r"cannot load the configuration .*config\.json"):
        architecture_of(str(tmp_path))
