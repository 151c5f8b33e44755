"""TRL configs from flat keys: coerced to their fields' types, unknown keys refused with the nearest known one."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from trl import SFTConfig

from densepath.config.coerce import coerce, expanded
from densepath.errors import ConfigError
from densepath.trainers.bounds import check_bounds
from densepath.trainers.refusals import refusing
from densepath.trainers.sft import check_sft_arguments

T = TypeVar("T")

QUIET: Mapping[str, Any] = {
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1,
    "logging_nan_inf_filter": False,  # it would log a loss of NaN as the last one that was none
    "save_strategy": "steps",
    "save_steps": 20,  # TRL's 500 would lose a short training to a kill
    "save_total_limit": 2,
    "optim": "adamw_torch_fused",
}
"""What every stage sets: densepath shows progress and keeps metrics.jsonl itself. Two checkpoints are kept, since
the newest may be the one that a kill cuts short."""


_COMMANDS_OWN: Mapping[str, str] = {
    "model_init_kwargs": "a command loads its models itself; set dtype and trust_remote_code",
    "trust_remote_code": "set trust_remote_code, which holds for every stage",
    "device": "a training takes the GPU that there is; set use_cpu: true, or choose with CUDA_VISIBLE_DEVICES",
    "resume_from_checkpoint": "the same command on the same output_dir goes on from its last checkpoint",
}
"""Arguments of TRL's configs, or of other commands, that a training does not take, and what it takes."""


def device_defaults() -> dict[str, Any]:
    """TRL's bf16 and gradient checkpointing where there is a GPU; neither on a CPU, where both only cost time."""
    cuda = torch.cuda.is_available()
    return {
        "bf16": cuda and torch.cuda.is_bf16_supported(),
        "gradient_checkpointing": cuda,
        # accelerate joins processes on a CPU only if it is told so; Apple's MPS has no float64, which sampling needs
        "use_cpu": not torch.accelerator.is_available() or torch.backends.mps.is_available(),
    }


def trl_config(kind: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """A TRL config from keyword values that may come from YAML or the command line.

    Args:
        kind: `SFTConfig`, `DPRConfig` or another `TrainingArguments`.
        values: field -> value; numbers may be text such as "5e-5".
        prefix: put before field names in messages, e.g. "sft_".

    Raises:
        ConfigError: an unknown field, a value that no training could use, or one that the config refuses.
    """
    checked = checked_values(kind, values, prefix)
    with refusing(kind.__name__):
        config = kind(**checked)
    if isinstance(config, SFTConfig):
        check_sft_arguments(config)
    return config


def checked_values(kind: type[Any], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a TRL config's fields, each of its field's type and within its bounds (`trainers.bounds`).

    Args: as of `trl_config`.

    Raises:
        ConfigError: an unknown field, or a value that no training could use.
    """
    names = [f.name for f in dataclasses.fields(kind) if f.init]
    hints = typing.get_type_hints(kind)
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key in _COMMANDS_OWN:
            raise ConfigError(f"{prefix + key} is not taken here: {_COMMANDS_OWN[key]}")
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise ConfigError(f"unknown key {prefix + key!r}: {kind.__name__} has no such argument{hint}")
        checked[key] = _fitting(value, hints[key], prefix + key)
    check_bounds(kind, checked, prefix)
    return checked


def _fitting(value: Any, hint: Any, name: str) -> Any:
    """A value as a field's type where that is a number, a truth value, text or a list; any other as it is.

    Raises:
        ConfigError: it is of none of the field's types.
    """
    is_one_of = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if is_one_of else (hint,)
    if all(option in (int, float, bool, type(None)) for option in options):
        return coerce(value, hint, name)
    if all(option in (str, type(None)) for option in options) and value is not None:
        return coerce(value, str, name)
    kinds = [typing.get_origin(option) or option for option in options]
    if set(kinds) <= {list, type(None)}:
        return coerce(value, hint, name)
    if all(isinstance(kind, type) for kind in kinds) and not isinstance(value, tuple(kinds)):
        names = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
        raise ConfigError(f"{name}={value!r} must be {names}")
    return expanded(value, name)


def peft_config(arguments: Any, model: Any = None) -> Any:
    """A `LoraConfig` from the model arguments, or None for full fine-tuning and for a model that has its adapter."""
    if not arguments.use_peft or hasattr(model, "peft_config"):
        return None
    from peft import LoraConfig

    modules: typing.Any = arguments.lora_target_modules
    if modules != "all-linear":
        modules = [name for name in modules.replace(",", " ").split() if name]
    with refusing("LoRA"):
        return LoraConfig(
            r=arguments.lora_r, lora_alpha=arguments.lora_alpha, target_modules=modules, task_type="CAUSAL_LM"
        )
