"""Tiny random models of several families: a second of CPU in all, the same on every machine."""

from __future__ import annotations

from typing import Any

import torch


def tiny_llama(vocab_size: int = 64, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """Llama: grouped-query attention, rotary positions, full attention; 2 layers of width 32, context 256."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return _build(LlamaForCausalLM, LlamaConfig, seed, dtype, vocab_size=vocab_size, **{**_WIDTHS, **config})


def tiny_mistral(vocab_size: int = 64, seed: int = 0, dtype: torch.dtype = torch.float32, window: int = 6) -> Any:
    """Mistral: every layer sees the last `window` tokens alone."""
    from transformers import MistralConfig, MistralForCausalLM

    return _build(
        MistralForCausalLM, MistralConfig, seed, dtype, vocab_size=vocab_size, sliding_window=window, **_WIDTHS
    )


def tiny_gemma3(vocab_size: int = 64, seed: int = 0, dtype: torch.dtype = torch.float32, window: int = 6) -> Any:
    """Gemma 3 (text): sliding and full attention layers in turn, tied embeddings."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return _build(
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        seed,
        dtype,
        vocab_size=vocab_size,
        sliding_window=window,
        head_dim=8,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=8,
        **_WIDTHS,
    )


def tiny_gpt2(vocab_size: int = 64, seed: int = 0, dtype: torch.dtype = torch.float32, dropout: float = 0.1) -> Any:
    """GPT-2: learned positions, and dropout on embeddings, attention and residuals."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return _build(
        GPT2LMHeadModel,
        GPT2Config,
        seed,
        dtype,
        vocab_size=vocab_size,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        resid_pdrop=dropout,
    )


def tiny_mamba(vocab_size: int = 64, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """Mamba: a state-space model, without positions and without a key-value cache."""
    from transformers import MambaConfig, MambaForCausalLM

    return _build(
        MambaForCausalLM,
        MambaConfig,
        seed,
        dtype,
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=4,
    )


def with_lora(model: Any, seed: int = 0, scale: float = 0.2, dropout: float = 0.0) -> Any:
    """`model` inside of a PeftModel with a LoRA adapter "default" whose weights are not zero."""
    from peft import LoraConfig, get_peft_model

    peft_model = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["q_proj", "v_proj"]
        ),
    )
    randomize_adapter(peft_model, "default", seed=seed, scale=scale)
    return peft_model


def randomize_adapter(peft_model: Any, name: str, *, seed: int, scale: float = 0.2) -> None:
    """Fill one adapter's weights with noise, so that it is not the base model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in peft_model.named_parameters():
            if f".{name}." in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * scale)


_WIDTHS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def _build(model_class: Any, config_class: Any, seed: int, dtype: torch.dtype, **config: Any) -> Any:
    """A model with weights from `seed`, large enough that its distributions are far from uniform; in eval mode."""
    settings = config_class(bos_token_id=1, eos_token_id=2, pad_token_id=2, initializer_range=0.25, **config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(settings)
    return model.to(dtype).eval()
