"""Every causal family of transformers, built small with random weights, with default scales and with others."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FAMILIES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
SCALES = ("multiplier", "logit_scale", "logits_scaling", "softcap", "logit_softcapping", "scale_emb", "scale_depth")
_VOCABULARY = 64
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "dim": 32,
    "emb_dim": 32,
    "dim_model": 32,
    "decoder_hidden_size": 32,
    "embedding_size": 32,
    "input_embedding_size": 32,
    "output_embedding_size": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "n_inner": 48,
    "dff": 48,
    "dim_ff": 48,
    "d_inner": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "ffn_hidden_size": 48,
    "feed_forward_size": 48,
    "expert_ffn_hidden_size": 16,
    "prefix_dense_intermediate_size": 48,
    "intermediate_size_mlp": 48,
    "moe_shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_blocks": 2,
    "depth": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "v_head_dim": 8,
    "kv_lora_rank": 8,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "qk_head_dim": 8,
    "attention_head_dim": 8,
    "dim_head": 8,
    "d_kv": 8,
    "rotary_dim": 4,
    "num_query_heads": 4,
    "global_head_dim": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "top_k_experts": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_token": 2,
    "moe_num_experts": 4,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "n_ctx": 64,
    "max_seq_len": 64,
    "max_sequence_length": 64,
    "context_length": 64,
    "max_target_positions": 64,
    "max_source_positions": 64,
    "state_size": 4,
    "time_step_rank": 4,
    "conv_kernel": 4,
    "chunk_size": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "lru_width": 32,
    "attention_window_size": 16,
    "sliding_window": 6,
    "window_size": 6,
    "mamba_d_ssm": 64,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "n_groups": 1,
    "ssm_state_size": 8,
    "mamba_dt_rank": 4,
    "type_vocab_size": 1,
    "vocab_size_per_layer_input": 64,
    "hidden_size_per_layer_input": 8,
}
_OVERRIDES: dict[str, dict[str, Any]] = {
    **{
        name: {"num_hidden_layers": 4}
        for name in (
            "qwen3_next",
            "qwen3_5",
            "qwen3_5_moe",
            "qwen3_5_text",
            "qwen3_5_moe_text",
            "qwen4_exp",
            "qwen4_exp_text",
        )
    },
    "kimi_linear": {"num_hidden_layers": 5, "linear_head_dim": 8, "linear_num_heads": 4},
    "phimoe": {"router_jitter_noise": 0.0, "input_jitter_noise": 0.0},  # noise in training, which DPR refuses
    "recurrent_gemma": {"num_hidden_layers": 3},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "reformer": {"axial_pos_embds": False, "attention_head_size": 8},
    "zaya": {"num_experts_per_tok": 1},
    "roc_bert": {"enable_pronunciation": False, "enable_shape": False},
    "zamba": {"num_hidden_layers": 3, "layer_types": ["linear_attention", "linear_attention", "hybrid"]},
    "zamba2": {"num_hidden_layers": 3},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    **{name: {"num_key_value_heads": 4} for name in ("dots3_note", "dots3_note_text", "dots1")},
    **{
        name: {"head_dim": 4}
        for name in (
            "axk1",
            "axk2",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "longcat_flash",
            "minicpm3",
            "youtu",
        )
    },
}
"""By family: what its code asks beyond the common sizes."""


def build(family: str, *, scaled: bool = False, seed: int = 0) -> Any:
    """A model of the family with random weights, in eval mode; raises what its code raises where it cannot be.

    Args:
        family: key of `FAMILIES`.
        scaled: every scale and soft-capping of the configuration is set to another value than its default.
        seed: of the weights.
    """
    config = _config(CONFIG_MAPPING[family], _OVERRIDES.get(family, {}))
    if scaled:
        for part in (config, config.get_text_config()):
            for name, value in scales(part).items():
                setattr(part, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config._attn_implementation = "eager" if family in ("gpt_oss",) else None
        with torch.device("meta"):
            total = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
        if total > 3_000_000:
            raise ValueError(f"{total / 1e6:.1f} M parameters: not small")
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and parameter.is_floating_point():
                torch.nn.init.normal_(parameter, std=0.15)
            elif "norm" in name.lower():
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.float().eval()


def scales(config: Any) -> dict[str, float]:
    """Other values for the scales of a configuration, by name."""
    found = {}
    for name, value in vars(config).items():
        if any(part in name for part in SCALES) and not isinstance(value, (bool, str, list, dict)):
            found[name] = 4.0 if "softcap" in name else 0.37 if value is None else 0.7 * float(value) + 0.1
    return found


def _config(config_class: Any, overrides: dict[str, Any]) -> Any:
    names = {*inspect.signature(config_class.__init__).parameters}
    names |= {name for each in config_class.__mro__ for name in vars(each).get("__annotations__", {})}
    given = {name: value for name, value in _SIZES.items() if name in names}
    if "qk_rope_head_dim" in given and "head_dim" in given:
        given["head_dim"] = given["qk_rope_head_dim"]
    for name in getattr(config_class, "sub_configs", {}):
        part = config_class.sub_configs[name]
        if isinstance(part, type) and issubclass(part, PretrainedConfig) and part.__name__ != "AutoConfig":
            given[name] = _config(part, {}).to_dict()
    given |= {"vocab_size": _VOCABULARY, "is_decoder": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return config_class(**{**given, **overrides})
