"""A model beyond the SFT model, on the line from a reference through it: all weights, or one adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from densepath.core.extrapolation import extrapolated, extrapolated_lora
from densepath.errors import ModelError
from densepath.models import locate
from densepath.models.compat import changes_base
from densepath.models.identity import record_base
from densepath.models.load import load_model

Pairs = dict[str, dict[str, Tensor]]
"""Module -> its LoRA matrices, "A" (rank, in) and "B" (out, rank)."""


def save_extrapolated(
    sft: str | Path, ref: str | Path, alpha: float, folder: Path, *, trust_remote_code: bool = False
) -> int:
    """Write `theta_SFT + alpha (theta_SFT - theta_ref)` in float32 as a model folder, without a tokenizer.

    Two LoRA adapters of one base, or one and its base, become one adapter of that base, whose rank is the sum of
    theirs; that is exact. Anything else is merged first, and becomes a whole model.

    Args:
        sft: hub id, model folder, adapter folder or catalogue name.
        ref: likewise, a model of the same shape.
        alpha: 0 gives the SFT model, -1 the reference.
        folder: where to.
        trust_remote_code: run Python code that comes with the weights.

    Returns:
        Weights that were computed.

    Raises:
        MissingFileError, ModelError: a model that cannot be loaded, or two of different shapes.
    """
    if (written := _save_adapter(locate.locate(sft), locate.locate(ref), alpha, folder)) is not None:
        return written
    models = [load_model(p, dtype="float32", merge=True, trust_remote_code=trust_remote_code) for p in (sft, ref)]
    model, other = models[0], dict(models[1].named_parameters())
    ours = dict(model.named_parameters())
    shapes = [{name: tuple(weight.shape) for name, weight in found.items()} for found in (ours, other)]
    if shapes[0] != shapes[1]:
        odd = next(name for name in (*shapes[0], *shapes[1]) if shapes[0].get(name) != shapes[1].get(name))
        raise ModelError(
            f"{sft} and {ref} have different weights: only models of one architecture extrapolate ({odd}: "
            f"{shapes[0].get(odd)} and {shapes[1].get(odd)}); embeddings of two lengths need resize_token_embeddings"
        )
    with torch.no_grad():
        for name, weight in ours.items():
            weight.copy_(extrapolated(weight, other[name], alpha))
    model.save_pretrained(str(folder))
    return sum(weight.numel() for weight in ours.values())


def _save_adapter(sft: str, ref: str, alpha: float, folder: Path) -> int | None:
    """Write the extrapolated adapter; how many weights it has. None where one adapter cannot say it."""
    if not _is_plain_lora(sft):
        return None
    base, pairs, other = locate.adapter_base(sft), _pairs(sft), None
    config: LoraConfig = PeftConfig.from_pretrained(sft)
    scales = config.lora_alpha / config.r, 0.0
    if not locate.same_model(ref, base):
        if not (_is_plain_lora(ref) and locate.same_model(locate.adapter_base(ref), base)):
            return None
        other, its = _pairs(ref), PeftConfig.from_pretrained(ref)
        scales = scales[0], its.lora_alpha / its.r
        if other.keys() != pairs.keys() or its.fan_in_fan_out != config.fan_in_fan_out:
            return None
    tensors = {}
    for module, pair in pairs.items():
        theirs = None if other is None else (other[module]["A"], other[module]["B"])
        a, b = extrapolated_lora((pair["A"], pair["B"]), theirs, alpha, scales)
        tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = a.contiguous(), b.contiguous()
    config.r = config.lora_alpha = len(a)
    config.base_model_name_or_path = base
    config.save_pretrained(str(folder))
    record_base(Path(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return sum(tensor.numel() for tensor in tensors.values())


def _is_plain_lora(source: str) -> bool:
    """Whether a folder is a LoRA adapter that is nothing but matrix pairs of one rank and scale."""
    if not (Path(source).is_dir() and locate.is_adapter(source)):
        return False
    locate.check_adapter_folder(source)
    config = PeftConfig.from_pretrained(source)
    return (
        isinstance(config, LoraConfig)
        and not any(_get(config, name) for name in ("use_rslora", "use_dora", "modules_to_save", "target_parameters"))
        and not any(
            _get(config, name) for name in ("rank_pattern", "alpha_pattern", "trainable_token_indices", "lora_bias")
        )
        and not changes_base(config)
        and _read(source) is not None
    )


def _get(config: LoraConfig, name: str) -> Any:
    return getattr(config, name, None)


def _pairs(source: str) -> Pairs:
    found = _read(source)
    if found is None:
        raise ModelError(f"{source}: its weights are not pairs of LoRA matrices")
    return found


def _read(source: str) -> Pairs | None:
    """The matrices of an adapter folder; None if there is anything else in it."""
    found: Pairs = {}
    for key, tensor in load_file(Path(source) / "adapter_model.safetensors").items():
        for name in ("A", "B"):
            if key.endswith(f".lora_{name}.weight"):
                found.setdefault(key.removesuffix(f".lora_{name}.weight"), {})[name] = tensor
                break
        else:
            return None
    return found if found and all(len(pair) == 2 for pair in found.values()) else None
