"""Models whose next-token distribution is written down: a table from the present token to the next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

NEVER = -30.0  # log-probability of everything that a row does not name: 384 tokens of it are 4e-11


def planted_model(tokenizer: Any, rows: Mapping[str, Mapping[str, float]]) -> Any:
    """A Llama that reads the present token alone: P(next | present) as given, and EOS after any other token.

    Embeddings are one-hot, attention and MLP add nothing, and the head's columns are the log-probabilities.

    Args:
        tokenizer: its tokens' texts are the keys; "" is EOS.
        rows: present token -> next token -> probability; each sums to 1.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    size, eos = len(tokenizer), tokenizer.eos_token_id
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size, hidden_size=size, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=128, rms_norm_eps=1e-12, bos_token_id=None, eos_token_id=eos, pad_token_id=eos,
        )
    )  # fmt: skip
    model.generation_config.eos_token_id = eos
    table = torch.full((size, size), NEVER)
    table[:, eos] = 0.0
    for present, following in rows.items():
        assert math.isclose(sum(following.values()), 1.0)
        table[token_id(tokenizer, present)] = NEVER
        for token, probability in following.items():
            table[token_id(tokenizer, present), token_id(tokenizer, token)] = math.log(probability)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.copy_(table.T / math.sqrt(size))  # RMSNorm turns a one-hot into sqrt(size)
    return model.eval()


def token_id(tokenizer: Any, text: str) -> int:
    """The one token of a text; EOS for the empty text."""
    if not text:
        return int(tokenizer.eos_token_id)
    (found,) = tokenizer(text, add_special_tokens=False)["input_ids"]
    return int(found)


def save_planted(folder: Path, tokenizer: Any, rows: Mapping[str, Mapping[str, float]]) -> str:
    """A planted model with its tokenizer as a folder."""
    planted_model(tokenizer, rows).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
