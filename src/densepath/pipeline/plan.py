"""The memory plan of a recipe: its keys and its accelerate file, as the sizes that `planning` computes with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from trl import SFTConfig

from densepath.choice.measure import PREVIEW_TEMPERATURES, SFT_TEMPERATURES
from densepath.config.coerce import coerce
from densepath.config.options import check_required
from densepath.config.recipe_yaml import load_mapping, settled
from densepath.config.run import PlanArguments, RunArguments
from densepath.errors import ConfigError
from densepath.io import read_json
from densepath.methods import get_method
from densepath.methods._stage import dpr_config, sft_config
from densepath.methods.dpr import reference_names
from densepath.models.kept import with_known_model
from densepath.models.load import dtype_of
from densepath.pipeline.environment import resident_bytes
from densepath.pipeline.inputs import is_kept
from densepath.planning.architecture import Architecture, architecture_of
from densepath.planning.plan import (
    DIVIDED,
    FLOAT32,
    GIB,
    PARTS,
    Machine,
    Moments,
    Plan,
    Terms,
    Training,
    cache_bytes,
    held_terms,
    sampling_terms,
    training_moments,
    weight_bytes,
)
from densepath.planning.table import SHARD, check_fits
from densepath.trainers.dpr_config import DPRConfig, EstimatorKind

CUDA_RESERVE = 1.5 * GIB
"""CUDA context, cuBLAS workspaces, NCCL, and what the caching allocator cannot hand out: ours, an allowance."""
CPU_RESERVE = 100 * 2**20
"""What a run adds to its imports whatever the model: tokenizer, dataset, the kernels' pages. Measured with a model of
10,000 weights (docs/log.md)."""
UNKNOWN_PROMPT = 1024
"""Tokens of a prompt that are counted with where the recipe gives no `max_prompt_length`: ours."""
UNKNOWN_COMPLETION = 512
"""Tokens of a completion that are counted with where the recipe gives no `max_completion_length`: ours."""
HALF = ("bf16", "fp16")
LAUNCHES = {"NO": "none", "MULTI_GPU": "ddp", "MULTI_CPU": "ddp", "FSDP": "fsdp2", "DEEPSPEED": "ddp"}
"""`distributed_type` of an accelerate file -> sharding; DeepSpeed by its stage."""
ACCELERATE_STAGE = 2
"""ZeRO's stage where an accelerate file names none: accelerate's default."""


def plan_recipe(arguments: RunArguments, others: Mapping[str, Any], *, process: float | None = None) -> Plan:
    """The plan of a `densepath run` recipe; its weights are not read.

    Args:
        arguments: the recipe.
        others: its `sft_*` and `dpr_*` keys.
        process: bytes that the process takes beside the model, on a CPU; if None what this process takes, which has
            imported what a run imports, and `CPU_RESERVE`.

    Raises:
        ConfigError: no model, keys that contradict each other, that TRL's configs do not take, lengths beyond the
            context, or an accelerate file that there are no formulas for.
        UsageError: an unknown dtype.
        ModelError: a model whose configuration cannot be had, or that there are no formulas for.
        MissingFileError: an accelerate file that is not there, or the DeepSpeed file that it names.
    """
    arguments = with_known_model(arguments)
    check_required(PlanArguments, vars(arguments))
    machine = machine_of(arguments, process)
    model = architecture_of(arguments.model_name_or_path, trust_remote_code=arguments.trust_remote_code)
    if arguments.max_completion_length is None:
        at_most = max(1, model.context // 2)  # as a run does
        completion = min(UNKNOWN_COMPLETION, at_most)
        prompt = min(arguments.max_prompt_length or UNKNOWN_PROMPT, max(1, model.context - completion))
        arguments = replace(arguments, max_completion_length=completion, max_prompt_length=prompt)
    safe = {key: value for key, value in others.items() if key.partition("_")[2] not in HALF}
    folder = Path(arguments.output_dir)
    config = dpr_config(arguments, {**safe, "dpr_bf16": False}, folder / "dpr", beta=1.0)
    prompt, completion, length = _lengths(arguments, config, model)
    spread = DIVIDED[machine.sharding] == 3
    all_action = EstimatorKind(config.estimator) is not EstimatorKind.SAMPLED and config.all_action_obstacle() is None
    sft_keys = sft_config(arguments, safe, folder / "sft", bf16=False)
    sft = replace(_training(arguments, others, sft_keys, model, machine), completion=length - 1)
    dpr = replace(
        _training(arguments, others, config, model, machine),
        prompt=prompt,
        completion=completion,
        group=config.num_generations if config.steps_per_generation == 1 else 1,
        whole_vocabulary=not config.kl_in_return or (all_action and not spread),
    )
    colocated = "DPR" in _trained(arguments) and config.use_vllm and config.vllm_mode == "colocate"
    share = float(config.vllm_gpu_memory_utilization) if colocated else 0.0
    sequence = cache_bytes(model, 2, 1, config.vllm_max_model_length or prompt + completion)
    done = {
        "set use_peft: true": arguments.use_peft,
        "set dtype: bfloat16": sft.weights == 2,
        "set load_in_4bit: true": sft.four_bit or not arguments.use_peft,
        SHARD: not machine.cuda,
        "set sft_gradient_checkpointing: true": sft.checkpointing,
        "set dpr_gradient_checkpointing: true": dpr.checkpointing,
        "set dpr_vllm_enable_sleep_mode: true": config.vllm_enable_sleep_mode,
    }
    return Plan(
        model,
        sft.trained,
        machine,
        _stages(arguments, config, sft, dpr, share * (machine.memory or 0.0)),
        done=frozenset(remedy for remedy, taken in done.items() if taken),
        vllm=share,
        vllm_needs=bool(share) * (weight_bytes(model, 2) + sequence) / config.vllm_tensor_parallel_size,
    )


def require_fit(plan: Plan) -> None:
    """Refuse a plan that needs more than there is.

    Raises:
        ConfigError: the stage, the term that is too large, and what to change.
    """
    reason = check_fits(plan)
    if reason is not None:
        raise ConfigError(reason)


def _lengths(arguments: RunArguments, dpr: DPRConfig, model: Architecture) -> tuple[int, int, int]:
    """Tokens of a prompt, of a completion and of a demonstration."""
    completion = dpr.max_completion_length or 0
    prompt = arguments.max_prompt_length or max(1, min(UNKNOWN_PROMPT, model.context - completion))
    length = arguments.max_length or prompt + completion
    for name, value in (("max_length", length), ("max_prompt_length + max_completion_length", prompt + completion)):
        if value > model.context:
            raise ConfigError(f"{name} is {value}, and {model.name} has a context of {model.context}")
    return prompt, completion, length


def _training(
    arguments: RunArguments,
    others: Mapping[str, Any],
    config: SFTConfig | DPRConfig,
    model: Architecture,
    machine: Machine,
) -> Training:
    """A training stage of the recipe; its lengths are still to come."""
    prefix = "dpr" if isinstance(config, DPRConfig) else "sft"
    dtype = dtype_of(arguments.dtype)
    weights = dtype.itemsize if isinstance(dtype, torch.dtype) else model.saved
    bf16, fp16 = (_said(others, f"{prefix}_{name}") for name in HALF)
    half = bool(fp16 or (machine.cuda if bf16 is None else bf16))
    names = [f"{prefix}_{name}" for name in ("gradient_checkpointing", "activation_checkpointing")]
    checkpointing = [said for name in names if (said := _said(others, name)) is not None]
    adapter, reads = _adapter(arguments, model) if arguments.use_peft else (0, 0)
    return Training(
        model=model,
        machine=machine,
        weights=weights,
        autocast=half,
        adapter=adapter,
        adapter_reads=reads,
        four_bit=arguments.load_in_4bit,
        rows=config.per_device_train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        optimizer=str(getattr(config.optim, "value", config.optim)),
        checkpointing=any(checkpointing) if checkpointing else machine.cuda,
    )


def _said(others: Mapping[str, Any], key: str) -> bool | None:
    """The truth value that a recipe gives a key, read as TRL's configs read it; None where it gives none."""
    value: bool | None = coerce(others.get(key), bool | None, key)
    return value


def _adapter(arguments: RunArguments, model: Architecture) -> tuple[int, int]:
    """Parameters of the recipe's adapter, and the numbers of a token that it reads in one layer."""
    targets = arguments.lora_target_modules
    if targets == "all-linear":
        return model.adapter(arguments.lora_r), model.adapter_reads()
    names = targets.replace(",", " ").split()
    unknown = {name.rpartition(".")[2] for name in names} - {*model.linears, "lm_head", "embed_tokens"}
    if unknown or not names:
        raise ConfigError(
            f"lora_target_modules={targets}: no module of {model.name} is called {', '.join(sorted(unknown))}; name "
            f"some of {', '.join(model.linears)}, or all-linear"
        )
    return model.adapter(arguments.lora_r, names), model.adapter_reads(names)


def _trained(arguments: RunArguments) -> set[str | None]:
    """Stages in which anything is trained."""
    return {None if arguments.gives_sft else "SFT", *(get_method(arm).stage for arm in arguments.arms)}


def _stages(
    arguments: RunArguments, config: DPRConfig, sft: Training, dpr: Training, vllm: float
) -> dict[str, Moments]:
    """What is alive at each moment of each stage; `vllm` is the share of a colocated one, bytes."""
    machine, whole = dpr.machine, weight_bytes(dpr.model, dpr.weights, four_bit=dpr.four_bit)
    relative = arguments.dense_reward == "baseline_relative"
    references = len(reference_names(arguments.reference)) if relative else 0
    # Under LoRA the SFT model and the references are adapters on the policy's base, one of the user's own excepted.
    shared = is_kept(arguments.reference)
    apart = 1 + references if not dpr.adapter else 0 if shared else references
    adapters = (1 + references - apart) * dpr.adapter * FLOAT32
    # They are spread where the policy is; ZeRO-3 keeps them as it keeps the policy.
    width = dpr.stored if machine.sharding == "zero3" else dpr.weights
    beside = (apart * weight_bytes(dpr.model, width, four_bit=dpr.four_bit) + adapters) * machine.part("policy")
    rollouts = config.per_device_train_batch_size * (config.steps_per_generation or 1)
    # Last hidden states of the SFT model and the reference at each token of the completions.
    hidden = float((rollouts + dpr.rows) * dpr.completion * dpr.model.hidden * dpr.weights)
    kept = {
        "frozen models": beside,
        "hidden states": dpr.whole_vocabulary * (1 + references) * hidden,
        "vLLM": 0.0 if config.vllm_enable_sleep_mode else vllm,
    }
    moments = {name: {**terms, **kept} for name, terms in training_moments(dpr).items()}
    own = DIVIDED[machine.sharding] < 3
    sampling = {**held_terms(dpr), "frozen models": beside, "vLLM": vllm}
    sampling["buffers"] *= not own
    if not config.use_vllm:
        sampling |= sampling_terms(dpr, rollouts, own=own)
        if machine.sharding == "zero3" and config.ds3_gather_for_generation:
            sampling["policy"] = held_terms(replace(dpr, machine=replace(machine, processes=1, offloaded=())))[
                "policy"
            ]
    stages, trained = {}, _trained(arguments)
    if "SFT" in trained:
        stages["SFT"] = training_moments(sft)
    if references and "auto" in (arguments.reference, arguments.beta):
        # With LoRA the SFT model and every candidate but the model before it are adapters on one base.
        candidates = 1 + sum(fraction != 0 for fraction in arguments.reference_fractions)
        candidates += arguments.reference_ema_decay is not None
        models = whole + candidates * dpr.adapter * FLOAT32 if dpr.adapter and shared else 2 * whole
        held = {"process": machine.process, "frozen models": models}
        judged = arguments.verifier is not None or arguments.judge is not None  # else there are no previews
        asked = {"sampling": (len(SFT_TEMPERATURES) if judged else 1, 1)}
        asked |= {"previews": (len(PREVIEW_TEMPERATURES), 2)} if judged else {}
        stages["selection"] = {
            moment: {**held, **_answering(dpr, arguments.num_validation_samples, temperatures, decoders)}
            for moment, (temperatures, decoders) in asked.items()
        }
    if "DPR" in trained:
        stages["DPR"] = {**moments, "sampling": sampling}
    if "self-play" in trained:
        # A demonstration and a sample for each prompt; the opponent, which samples and scores before, is gone.
        stages["self-play"] = training_moments(replace(dpr, rows=2 * dpr.rows, group=2, whole_vocabulary=False))
    # The policy and SFT continued come after it; all weights of one arm at a time.
    held = {"process": machine.process, "frozen models": (1 + apart) * whole + adapters + 2 * dpr.adapter * FLOAT32}
    prompts = max(arguments.num_test_samples, arguments.num_validation_samples)
    decoders = max(get_method(arm).decoders for arm in arguments.arms)
    answered = _answering(dpr, prompts, len(arguments.eval_temperatures), decoders)
    stages["evaluation"] = {"sampling": {**held, **answered}}
    return stages


def _answering(dpr: Training, prompts: int, temperatures: int, models: int) -> Terms:
    """What it takes to answer prompts at all temperatures at once, without autocast; each prompt is read once."""
    return sampling_terms(replace(dpr, autocast=False, group=temperatures), temperatures * prompts, models)


# -- the machine -------------------------------------------------------------------------------------------------


def machine_of(arguments: RunArguments, process: float | None = None) -> Machine:
    """The device of one process, how many the accelerate file starts, and how it splits the model.

    Args:
        arguments: the recipe.
        process: as for `plan_recipe`.

    Raises:
        MissingFileError: the accelerate file is not there, or the DeepSpeed file that it names.
        ConfigError: it is no accelerate file, contradicts `num_processes`, or there are no formulas for it.
    """
    path, values, kind = arguments.accelerate_config, {}, "MULTI_GPU"
    if path is not None:
        given = settled(load_mapping(path, f"accelerate_config={path}"))
        values = {key: value for key, value in given.items() if value is not None}  # a key without a value is none
        kind = str(values.get("distributed_type", "")).upper()
    if kind not in LAUNCHES:
        raise ConfigError(f"{path}: no accelerate configuration: distributed_type is none of {', '.join(LAUNCHES)}")
    processes = arguments.num_processes or coerce(values.get("num_processes", 1), int, f"{path}: num_processes")
    if kind == "NO" and processes > 1:
        raise ConfigError(
            f"num_processes={processes}, and {path} is for one process: name recipes/accelerate/multi_gpu.yaml"
        )
    sharding, offloaded = _split(kind, values, path)
    if kind != "DEEPSPEED" and sharding == "ddp" and processes == 1:
        sharding = "none"
    on_cpu = kind == "MULTI_CPU" or coerce(values.get("use_cpu", False), bool, f"{path}: use_cpu")
    if on_cpu and arguments.gpu_memory is not None:
        raise ConfigError(f"gpu_memory={arguments.gpu_memory}, and {path} trains on CPUs: leave one of them out")
    if on_cpu or (arguments.gpu_memory is None and processes == 1 and not torch.cuda.is_available()):
        before = resident_bytes() + CPU_RESERVE if process is None else process
        together = processes / coerce(values.get("num_machines", 1), int, f"{path}: num_machines")
        return Machine(False, machine_memory() / together, before, processes, sharding)
    memory = arguments.gpu_memory * GIB if arguments.gpu_memory is not None else None
    if memory is None and torch.cuda.is_available():
        memory = float(torch.cuda.get_device_properties(0).total_memory)
    return Machine(True, memory, CUDA_RESERVE, processes, sharding, offloaded)


def _split(kind: str, values: Mapping[str, Any], path: str | None) -> tuple[str, tuple[str, ...]]:
    """How an accelerate file splits the trained model, and which of its terms are kept off the GPU."""
    if kind == "FSDP":
        fsdp = {name.removeprefix("fsdp_"): value for name, value in (values.get("fsdp_config") or {}).items()}
        resharding = fsdp.get("reshard_after_forward", True)  # of FSDP1 it is the name of a strategy
        second = str(fsdp.get("version", 1)) == "2"
        if not (second and coerce(resharding, bool, f"{path}: fsdp_reshard_after_forward")):
            raise ConfigError(
                f"{path}: of FSDP's strategies there are formulas for FSDP2 that spreads everything alone: set "
                "fsdp_version: 2 and fsdp_reshard_after_forward: true (recipes/accelerate/fsdp2.yaml)"
            )
        offloads = coerce(fsdp.get("offload_params", False), bool, f"{path}: fsdp_offload_params")
        return "fsdp2", PARTS * offloads
    if kind != "DEEPSPEED":
        return LAUNCHES[kind], ()
    given = values.get("deepspeed_config") or {}
    stage = given.get("zero_stage", ACCELERATE_STAGE)
    devices = [given.get(f"offload_{name}_device") for name in ("optimizer", "param")]
    file = given.get("deepspeed_config_file")
    if file is not None:  # which alone counts then
        zero = (read_json(Path(file).expanduser(), "mend it") or {}).get("zero_optimization") or {}
        stage = zero.get("stage", 0)
        devices = [(zero.get(f"offload_{name}") or {}).get("device") for name in ("optimizer", "param")]
    stage = coerce(stage, int, f"{file or path}: the stage of ZeRO")
    sharding = f"zero{stage}" if stage else LAUNCHES[kind]
    if sharding not in DIVIDED:
        raise ConfigError(f"{file or path}: the stage of ZeRO is {stage}, and there are 0 to 3")
    # With the optimizer go the gradients that are divided: each is sent to the CPU as soon as it is there.
    optimizer, weights = (device in ("cpu", "nvme") for device in devices)
    divided = DIVIDED[sharding]
    return sharding, PARTS[: min(divided, 2)] * optimizer + PARTS[2:divided] * weights


def machine_memory() -> float:
    """Bytes of memory that this process may use: the machine's, or the control group's where that is less."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, float(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return total
