"""Models of real shapes with random weights, made on the device; and what the device reaches."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from densepath.planning.architecture import configuration_of

SHAPES = {"Qwen3-0.6B": "Qwen/Qwen3-0.6B", "Llama-3.1-8B": "meta-llama/Llama-3.1-8B"}
"""Whose configurations come with densepath, so that no network is needed."""
TINY = "tiny"
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def configuration(name: str) -> Any:
    """The configuration of a shape by its name."""
    if name != TINY:
        return configuration_of(SHAPES[name])
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaConfig(vocab_size=512, max_position_embeddings=1024, tie_word_embeddings=False, **sizes)


def random_model(name: str, device: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A model of that shape; its weights are drawn on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(configuration(name), dtype=dtype)


def with_adapters(model: Any, *names: str, scale: float = 0.02) -> Any:
    """The model under an adapter "default" and one of each name, all different and none without effect."""
    peft_model = get_peft_model(model, LoraConfig(**LORA))
    for name in names:
        peft_model.add_adapter(name, LoraConfig(**LORA))
    with torch.no_grad():
        for key, weight in peft_model.named_parameters():
            if "lora_B" in key:
                weight.normal_(0, scale)
            weight.requires_grad_("lora" in key and ".default." in key)
    return peft_model


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer that has a word for every id of a model, so that random weights may sample any."""
    words = {f"w{token}": token for token in range(vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    last = f"w{vocabulary - 1}"
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=last, pad_token=last, unk_token="w0")


def save_configuration(name: str, folder: Path) -> str:
    """What a plan reads: the name of a known shape, or a folder with the tiny one's configuration."""
    if name in SHAPES:
        return SHAPES[name]
    configuration(name).save_pretrained(folder)
    return str(folder)


def settle(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def device_rates(device: str, size: int) -> dict[str, float]:
    """FLOP/s of a bfloat16 matrix product of that size, and bytes/s that a copy moves, read and written."""
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    memory = torch.empty(64 * size * size, device=device, dtype=torch.uint8)
    return {
        "flops": 2 * size**3 / _seconds(lambda: one @ other, device),
        "bytes": 2 * memory.numel() / _seconds(lambda: memory.clone(), device),
    }


def _seconds(work: Any, device: str, rounds: int = 5) -> float:
    for _ in range(2):
        work()
    settle(device)
    started = time.perf_counter()
    for _ in range(rounds):
        work()
    settle(device)
    return (time.perf_counter() - started) / rounds
