"""A pair of models that vLLM can hold on a CPU: its attention wants heads that are at least 32 wide."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.support import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM


def saved_pair(folder: Path) -> tuple[Path, Path]:
    """Folders of an SFT model and of its reference."""
    tokenizer = tiny_tokenizer()
    for seed, name in enumerate(("sft", "ref")):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
            initializer_range=0.3,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
        model = LlamaForCausalLM(config)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder / "sft", folder / "ref"
