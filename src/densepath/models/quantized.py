"""Bases in 4 bits: how they are quantised, whether this machine can, and what their sizes are."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

from densepath.errors import ConfigError, ModelError


def quantized(model_init_kwargs: Mapping[str, Any], dtype: str | torch.dtype, given: Any = None) -> dict[str, Any]:
    """The keywords with their quantisation as transformers takes it.

    `load_in_4bit=True` stands for NF4 with double quantisation, computed in `dtype` (QLoRA, Dettmers et al. 2023);
    `load_in_8bit=True` for LLM.int8().

    Args:
        model_init_kwargs: further keywords of `from_pretrained`.
        dtype: of the weights that are not quantised.
        given: a quantisation given elsewhere.

    Raises:
        ConfigError: a quantisation given twice.
        ModelError: one that needs bitsandbytes, where it is not installed.
    """
    kwargs = dict(model_init_kwargs)
    found = [given, kwargs.pop("quantization_config", None)]
    if kwargs.pop("load_in_4bit", False):
        compute = getattr(torch, dtype, torch.float32) if isinstance(dtype, str) else dtype
        found.append(
            BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=compute,
            )
        )
    if kwargs.pop("load_in_8bit", False):
        found.append(BitsAndBytesConfig(load_in_8bit=True))
    chosen = [config for config in found if config is not None]
    if len(chosen) > 1:
        raise ConfigError(
            "the quantisation is given more than once: leave it in one of quantization_config= and model_init_kwargs"
        )
    if chosen:
        kwargs["quantization_config"] = chosen[0]
        _check_installed(chosen[0])
    return kwargs


def _check_installed(config: Any) -> None:
    values: Mapping[str, Any] = config if isinstance(config, Mapping) else vars(config)
    bits = [name for name in ("load_in_4bit", "load_in_8bit") if values.get(name) or values.get(f"_{name}")]
    if bits and not is_bitsandbytes_available():
        raise ModelError(f"{bits[0]} needs bitsandbytes: pip install bitsandbytes, or leave the quantisation out")


def check_four_bit() -> None:
    """Refuse, before models are loaded, a base in 4 bits where there can be none: a matrix is quantised on trial.

    Raises:
        ModelError: bitsandbytes is not installed, or cannot do it on this device.
    """
    _check_installed({"load_in_4bit": True})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        import bitsandbytes

        layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4").to(device)
        layer(torch.ones(1, 64, device=device))
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"load_in_4bit: bitsandbytes cannot do it on this {device.upper()} ({reason[0][:200]}); leave it out, or "
            "set dtype: bfloat16 instead"
        ) from error


def is_quantized(model: Any) -> bool:
    """Whether bitsandbytes holds weights of a model, PEFT or not, in 4 or 8 bits."""
    return bool(getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False))


def parameter_count(model: nn.Module) -> int:
    """Numbers that the weights of a model stand for; 4-bit ones are stored two in a byte."""
    states = ((getattr(weight, "quant_state", None), weight) for weight in model.parameters())
    return sum(weight.numel() if state is None else math.prod(state.shape) for state, weight in states)


@contextlib.contextmanager
def adapters_kept(model: nn.Module) -> Iterator[None]:
    """Inside, a trainer of TRL is made: the adapters that it trains on a quantised base stay as they are.

    It rounds them to bfloat16, as QLoRA trained them. A step of DPR is smaller than what that resolves: many weights
    would never move, and the policy would not begin as the SFT model.
    """
    trained = model.parameters() if is_quantized(model) else ()
    kept = [(weight, weight.data) for weight in trained if weight.requires_grad]
    yield
    for weight, data in kept:
        weight.data = data


def adapters_in_float32(model: nn.Module) -> None:
    """Let new adapters on a quantised base, which TRL rounds to bfloat16 before their first step, be float32."""
    if is_quantized(model):
        for weight in model.parameters():
            if weight.requires_grad and weight.dtype is torch.bfloat16:
                weight.data = weight.data.float()
