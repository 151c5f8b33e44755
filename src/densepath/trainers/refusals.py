"""Arguments that a trainer takes from TRL and does not use, and what the libraries below say of those that it uses."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.optimization import get_scheduler
from transformers.training_args import OptimizerNames
from trl.import_utils import is_liger_kernel_available, is_vllm_available

from densepath.errors import ConfigError, DensepathError
from densepath.io import UNWRITABLE
from densepath.trainers.bounds import check_bounds

_UNLISTED_TRACKERS = ("azure_ml", "flyte")
"""Trackers that transformers knows, and whose package it does not look for under their name."""
_LAYERWISE = ("galore", "apollo", "lomo")
"""Optimizers that are made from the model itself."""
_OF_MODULES = ("galore", "apollo")
"""Those that treat some modules otherwise than the rest."""


def without_effect(config: type, used: Collection[str], also: Collection[str] = ()) -> dict[str, Any]:
    """What a config of TRL adds to transformers' arguments and a trainer does not use, with the defaults.

    Args:
        config: dataclass of TRL.
        used: its arguments that the trainer uses.
        also: arguments of transformers' that the trainer does not use.
    """
    shared = {field.name for field in dataclasses.fields(TrainingArguments)} - set(also)
    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(config)
        if field.name not in shared and field.name not in used
    }


def refuse_unused(args: Any, unused: Mapping[str, Any], where: str, instead: Mapping[str, str]) -> None:
    """Refuse any of these arguments that was set.

    Args:
        args: a config.
        unused: name -> its default, the one value that may stay.
        where: why it has no effect, such as "DPR, which has its own advantages and loss".
        instead: name -> what to do instead.

    Raises:
        ConfigError: the first that differs from its default.
    """
    for name, default in unused.items():
        value = getattr(args, name, default)
        if value != default:
            hint = f" ({instead[name]})" if name in instead else ""
            raise ConfigError(f"{name}={value!r} has no effect in {where}: leave it out{hint}")


@contextlib.contextmanager
def refusing(what: str = "") -> Iterator[None]:
    """What TRL, transformers, PEFT and the packages behind them raise while something is built, as one line.

    Only for building: what is raised while training is a fault, and keeps its traceback. So do a full disk or memory.

    Args:
        what: how the message begins, such as "SFT cannot begin".

    Raises:
        ConfigError: with the cause.
    """
    try:
        yield
    except (DensepathError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise
        raise ConfigError(f"{what}: {_cause(error)}" if what else _cause(error)) from error


def _cause(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.replace(".", "_").isidentifier():
        package = error.name.partition(".")[0]
        return f"the package {package} is missing: pip install {package} ({text})"
    if text and isinstance(error, (ValueError, TypeError, RuntimeError, ImportError, OSError)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def check_startable(args: TrainingArguments) -> None:
    """Refuse, before models are loaded, what would be refused later: packages, optimizer, learning rate.

    Raises:
        ConfigError: a tracker or package that is not there, arguments that optimizer or scheduler do not take,
            checkpoints that nothing could go on from, or a token that they would hold.
    """
    check_checkpoints(args)
    check_token(args)
    check_packages(args)
    check_optimization(args)


def check_token(args: TrainingArguments) -> None:
    """Refuse a token among the arguments, which transformers pickles into every checkpoint and model.

    Raises:
        ConfigError: there is one.
    """
    if args.hub_token is not None:
        raise ConfigError(
            "hub_token would be written into training_args.bin of each checkpoint: leave it out, and log in with "
            "`hf auth login` or set the environment variable HF_TOKEN"
        )


def check_checkpoints(args: TrainingArguments) -> None:
    """Refuse checkpoints that a killed training could not go on from as if nothing had happened.

    Raises:
        ConfigError: without the optimizer's state, or only one, which is removed before the next is whole.
    """
    if args.save_only_model:
        raise ConfigError(
            "save_only_model keeps no optimizer, so a killed training could not go on; leave it out, or set "
            "save_strategy=no for no checkpoints"
        )
    if args.save_total_limit is not None and args.save_total_limit == 1:
        raise ConfigError(
            "save_total_limit=1 removes the last whole checkpoint before the next one is whole; give at least 2"
        )


def check_packages(args: TrainingArguments) -> None:
    """Refuse arguments whose package is not on this machine: trackers, vLLM, liger.

    Raises:
        ConfigError: the first such argument, with what to install; vLLM as a server where it cannot be.
    """
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ConfigError(
            "use_liger_kernel needs a package that is missing: pip install liger-kernel; or leave it out"
        )
    if getattr(args, "use_vllm", False) and not is_vllm_available():
        raise ConfigError(
            "use_vllm needs a package that is missing: pip install 'densepath[vllm]' (on a CPU docs/engines.md); or "
            "leave it out"
        )
    if getattr(args, "use_vllm", False) and args.vllm_mode == "server" and not torch.cuda.is_available():
        raise ConfigError(
            "vllm_mode=server sends the weights to the server over NCCL, which needs CUDA: set vllm_mode=colocate"
        )
    available = {*get_available_reporting_integrations(), *_UNLISTED_TRACKERS}
    for name in args.report_to:
        if not isinstance(name, str) or name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ConfigError(f"report_to={name!r} does not exist; choose none, all, or some of {known}")
        if name not in available:
            raise ConfigError(
                f"report_to={name} needs a package that is missing: pip install {name}; or report_to=none"
            )


def check_optimization(args: TrainingArguments) -> None:
    """Refuse what transformers would refuse only when training begins: an optimizer, schedule or loader of batches.

    And what it would take without a word: numbers that nothing can be trained with, float16 on a CPU; or notice at the
    end: ZeRO-3 that saves no model.

    Raises:
        ConfigError: with the cause.
    """
    check_bounds(type(args), {field.name: getattr(args, field.name) for field in dataclasses.fields(args)})
    check_deepspeed(args)
    _check_loader(args)
    optim = OptimizerNames(args.optim).value
    if args.optim_target_modules is not None and not any(name in optim for name in _OF_MODULES):
        raise ConfigError(f"optim_target_modules has no effect with optim={optim}: leave it out")
    if args.fp16 and (args.use_cpu or not torch.accelerator.is_available()):
        raise ConfigError("fp16=True has no effect on a CPU: leave it out, or set bf16")
    optimizer = _optimizer(args)
    with refusing("lr_scheduler_type, lr_scheduler_kwargs"):
        steps = max(1, args.max_steps)
        get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )


def check_deepspeed(args: TrainingArguments) -> None:
    """Refuse a ZeRO-3 whose model could not be written when training ends.

    Raises:
        ConfigError: the weights are not gathered to be saved.
    """
    plugin = args.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3:
        return
    zero = plugin.deepspeed_config["zero_optimization"]
    if not zero.get("stage3_gather_16bit_weights_on_model_save", False):
        raise ConfigError(
            "under ZeRO-3 no process holds the weights whole, so no model could be written: set "
            "zero3_save_16bit_model: true in the accelerate configuration, or "
            "stage3_gather_16bit_weights_on_model_save in DeepSpeed's"
        )


def check_evaluation(trainer: Trainer) -> None:
    """Refuse `eval_on_start` without rows, which transformers would notice in the midst of the training.

    Raises:
        ConfigError: there are none.
    """
    if trainer.args.eval_on_start and trainer.eval_dataset is None:
        raise ConfigError("eval_on_start=True needs held-out rows, and there are none: leave it out")


def _check_loader(args: TrainingArguments) -> None:
    """Refuse `dataloader_*` that torch takes no batches with; it starts no worker before the first batch."""
    with refusing("dataloader_num_workers and its like"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more workers than cores: it is said when training begins
        DataLoader(
            [0],  # type: ignore[arg-type]  # whatever has a length
            num_workers=args.dataloader_num_workers,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
        )


def _optimizer(args: TrainingArguments) -> torch.optim.Optimizer:
    """The optimizer on one weight, where it is torch's own; a plain one in the place of another's."""
    layer = nn.Linear(1, 1)
    plain = torch.optim.SGD(layer.parameters(), lr=0.1)
    if any(name in OptimizerNames(args.optim).value for name in _LAYERWISE):
        try:
            Trainer.get_optimizer_cls_and_kwargs(args, layer)
        except ImportError as error:
            raise ConfigError(f"optim: {_cause(error)}") from error
        except Exception:  # which weights it is for, only the model can say
            return plain
        return plain
    with refusing("optim"):
        kind, arguments = Trainer.get_optimizer_cls_and_kwargs(args, layer)
        if not kind.__module__.startswith("torch.optim"):
            return plain
        made: torch.optim.Optimizer = kind(layer.parameters(), **arguments)
    return made
