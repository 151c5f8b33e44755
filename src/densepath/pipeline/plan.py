"""The memory plan of a recipe: its keys and its accelerate file, as the sizes that `planning` computes with."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from trl import SFTConfig

from densepath.config.coerce import coerce
from densepath.config.recipe_yaml import load_mapping, settled
from densepath.config.run import PlanArguments, RunArguments
from densepath.errors import ConfigError
from densepath.methods._stage import dpr_config, sft_config
from densepath.pipeline.environment import resident_bytes
from densepath.planning.architecture import Architecture, architecture_of
from densepath.planning.memory import GIB, Adapter, Sharding
from densepath.planning.plan import Machine, Plan, Setup, Training, make_plan
from densepath.planning.table import check_fits
from densepath.trainers.dpr_config import DPRConfig, EstimatorKind

CUDA_RESERVE = 1.5 * GIB
"""CUDA context, cuBLAS workspaces, NCCL, and what the caching allocator cannot hand out: ours, an allowance."""
CPU_RESERVE = 100 * 2**20
"""What a run adds to its imports whatever the model: tokenizer, dataset, the kernels' pages. Measured with a model of
10,000 weights (docs/log.md)."""
UNKNOWN_PROMPT = 1024
"""Tokens of a prompt that are counted with where the recipe gives no `max_prompt_length`: ours."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
HALF = ("bf16", "fp16")


def plan_recipe(arguments: RunArguments, others: Mapping[str, Any], *, process: float | None = None) -> Plan:
    """The plan of a `densepath run` recipe; its weights are not read.

    Args:
        arguments: the recipe.
        others: its `sft_*` and `dpr_*` keys.
        process: bytes that the process takes beside the model, on a CPU; if None what this process takes, which has
            imported what a run imports, and `CPU_RESERVE`.

    Raises:
        ConfigError: keys that contradict each other.
        ModelError: a model whose configuration cannot be had, or that there are no formulas for.
        MissingFileError: an accelerate file that is not there.
    """
    sharding, processes = launch_of(arguments)
    cuda = arguments.gpu_memory is not None or processes > 1 or torch.cuda.is_available()
    if cuda:
        machine = Machine(True, _gpu_memory(arguments), CUDA_RESERVE, processes, sharding)
    else:
        before = resident_bytes() + CPU_RESERVE if process is None else process
        machine = Machine(False, machine_memory(), before)
    architecture = architecture_of(arguments.model_name_or_path, trust_remote_code=arguments.trust_remote_code)
    return make_plan(setup_of(arguments, others, architecture, sharding, cuda=cuda), machine)


def require_fit(plan: Plan) -> None:
    """Refuse a plan that needs more than there is.

    Raises:
        ConfigError: the stage, the term that is too large, and what to change.
    """
    reason = check_fits(plan)
    if reason is not None:
        raise ConfigError(reason)


def setup_of(
    arguments: RunArguments, others: Mapping[str, Any], architecture: Architecture, sharding: Sharding, *, cuda: bool
) -> Setup:
    """What the recipe asks of memory.

    Raises:
        ConfigError: a key or value that TRL's configs do not take, or lengths that exceed the context.
    """
    folder = Path(arguments.output_dir)
    safe = {key: value for key, value in others.items() if key.partition("_")[2] not in HALF}
    sft = sft_config(arguments, safe, folder / "sft", bf16=False)
    dpr = dpr_config(arguments, {**safe, "dpr_bf16": False}, folder / "dpr", beta=1.0)
    completion = dpr.max_completion_length or 0
    prompt = arguments.max_prompt_length or max(1, min(UNKNOWN_PROMPT, architecture.context - completion))
    length = arguments.max_length or prompt + completion
    for name, value in (("max_length", length), ("max_prompt_length + max_completion_length", prompt + completion)):
        if value > architecture.context:
            raise ConfigError(f"{name} is {value}, and {architecture.name} has a context of {architecture.context}")
    four_bit = isinstance(arguments, PlanArguments) and arguments.load_in_4bit
    if four_bit and not arguments.use_peft:
        raise ConfigError("load_in_4bit trains an adapter on a quantised base: set use_peft: true")
    weights = BYTES.get(arguments.dtype, 4)

    def training(prefix: str, config: SFTConfig | DPRConfig, **own: Any) -> Training:
        half = any(others.get(f"{prefix}_{name}", cuda and name == "bf16") for name in HALF)
        names = [f"{prefix}_{name}" for name in ("gradient_checkpointing", "activation_checkpointing")]
        given = [others[name] for name in names if name in others]
        return Training(
            rows=config.per_device_train_batch_size,
            accumulation=config.gradient_accumulation_steps,
            optimizer=str(getattr(config.optim, "value", config.optim)),
            checkpointing=bool(given[0]) if given else cuda,
            compute=min(weights, 2) if half else weights,
            **own,
        )

    adapter = None
    if arguments.use_peft:
        targets = arguments.lora_target_modules
        names = None if targets == "all-linear" else tuple(targets.replace(",", " ").split())
        adapter = Adapter(arguments.lora_r, names)
    reads_reference = arguments.dense_reward == "baseline_relative"
    chooses = reads_reference and (arguments.reference == "auto" or arguments.beta == "auto")
    return Setup(
        architecture=architecture,
        weights=weights,
        adapter=adapter,
        four_bit=four_bit,
        sft=training("sft", sft, prompt=1, completion=length - 1, group=1),
        dpr=training(
            "dpr",
            dpr,
            prompt=prompt,
            completion=completion,
            group=dpr.num_generations if dpr.steps_per_generation == 1 else 1,
            rollouts=dpr.per_device_train_batch_size * (dpr.steps_per_generation or 1),
            all_action=EstimatorKind(dpr.estimator) is not EstimatorKind.SAMPLED
            and dpr.all_action_obstacle() is None
            and "policy" not in sharding.divides,
            state_kl=not dpr.kl_in_return,
            token_budget=dpr.score_token_budget,
        ),
        references=int(reads_reference),
        shared_reference=arguments.use_peft and (_is_fraction(arguments.reference) or arguments.reference == "auto"),
        validation_rows=arguments.num_validation_samples if chooses else 0,
        evaluation_rows=arguments.num_test_samples,
        vllm=_vllm_share(dpr),
        vllm_length=dpr.vllm_max_model_length or prompt + completion,
        vllm_parallel=dpr.vllm_tensor_parallel_size,
        vllm_sleeps=bool(dpr.vllm_enable_sleep_mode),
        samples=not dpr.use_vllm,
        gathers=dpr.ds3_gather_for_generation,
    )


def _is_fraction(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _vllm_share(dpr: DPRConfig) -> float:
    return float(dpr.vllm_gpu_memory_utilization) if dpr.use_vllm and dpr.vllm_mode == "colocate" else 0.0


# -- the machine -------------------------------------------------------------------------------------------------


def launch_of(arguments: RunArguments) -> tuple[Sharding, int]:
    """How the accelerate file splits the model, and over how many processes.

    Raises:
        MissingFileError: it is not there.
        ConfigError: it is no accelerate file, or contradicts `num_processes`.
    """
    path = arguments.accelerate_config
    if path is None:
        processes = arguments.num_processes or 1
        return (Sharding.DDP if processes > 1 else Sharding.NONE), processes
    values = settled(load_mapping(path, f"accelerate_config={path}"))
    kind = str(values.get("distributed_type", "")).upper()
    if kind not in _KINDS:
        raise ConfigError(f"{path}: no accelerate configuration: distributed_type is none of {', '.join(_KINDS)}")
    processes = arguments.num_processes or coerce(values.get("num_processes", 1), int, f"{path}: num_processes")
    if processes == 1 and kind in ("NO", "MULTI_GPU"):
        return Sharding.NONE, 1
    if kind == "NO":
        raise ConfigError(
            f"num_processes={processes}, and {path} is for one process: name recipes/accelerate/multi_gpu.yaml"
        )
    return _KINDS[kind](values), processes


def _deepspeed(values: Mapping[str, Any]) -> Sharding:
    stage = (values.get("deepspeed_config") or {}).get("zero_stage", 0)
    return {1: Sharding.ZERO1, 2: Sharding.ZERO2, 3: Sharding.ZERO3}.get(int(stage), Sharding.DDP)


_KINDS = {
    "NO": lambda values: Sharding.NONE,
    "MULTI_GPU": lambda values: Sharding.DDP,
    "MULTI_CPU": lambda values: Sharding.DDP,
    "FSDP": lambda values: Sharding.FSDP2,
    "DEEPSPEED": _deepspeed,
}


def _gpu_memory(arguments: RunArguments) -> float | None:
    if arguments.gpu_memory is not None:
        return arguments.gpu_memory * GIB
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    return None


def machine_memory() -> float:
    """Bytes of memory that this process may use: the machine's, or the control group's where that is less."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, float(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return total
