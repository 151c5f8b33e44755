"""A plan as a terminal table of 80 columns and as JSON, and whether it fits: one line that says what to change."""

from __future__ import annotations

import math
from typing import Any

from rich.text import Text

from densepath.planning import memory
from densepath.planning.memory import GIB
from densepath.planning.plan import TERMS, Plan, Setup, Stage
from densepath.terminal import Table, plain_table

SHOWN = 0.005 * GIB
"""Less than this rounds to nothing and is shown as a dash."""


def headline(plan: Plan) -> str:
    """The model, what is trained of it, and where."""
    machine = plan.machine
    place = "GPU" if machine.cuda else "CPU"
    many = f"{machine.processes} GPUs, {machine.sharding.value}" if machine.processes > 1 else f"one {place}"
    there = "" if machine.memory is None else f" of {machine.memory / GIB:.1f} GiB"
    return (
        f"{plan.setup.architecture.name}: {plan.setup.architecture.parameters:,} parameters, "
        f"{plan.setup.trained:,} trained; {many}{there}"
    )


def verdict(plan: Plan) -> str:
    """Whether it fits, with the room that is left."""
    limit, stage = plan.machine.memory, plan.peak
    total = stage.peak.total
    if limit is None:
        return f"needs {total / GIB:.1f} GiB ({stage.name}); give gpu_memory to compare it with"
    if total > limit:
        return f"does not fit: {stage.name} needs {total / GIB:.1f} GiB"
    return f"fits: {stage.name} needs most, and leaves {(limit - total) / GIB:.1f} GiB"


def plan_table(plan: Plan) -> Table:
    """Terms in rows, stages at their largest moment in columns, GiB per process."""
    table = plain_table()
    table.add_column("GiB", no_wrap=True)
    for stage in plan.stages:
        table.add_column(Text(stage.name), justify="right", no_wrap=True)
    for term in TERMS:
        values = [stage.peak.terms.get(term, 0.0) for stage in plan.stages]
        if any(value >= SHOWN for value in values):
            table.add_row(term, *(f"{value / GIB:.2f}" if value >= SHOWN else "-" for value in values))
    table.add_row("total", *(f"{stage.peak.total / GIB:.2f}" for stage in plan.stages))
    table.add_row("when", *(stage.peak.name for stage in plan.stages))
    return table


def plan_json(plan: Plan) -> dict[str, Any]:
    """Everything that the table is made of; bytes."""
    machine = plan.machine
    return {
        "model": plan.setup.architecture.name,
        "parameters": plan.setup.architecture.parameters,
        "trained_parameters": plan.setup.trained,
        "device": "cuda" if machine.cuda else "cpu",
        "memory": machine.memory,
        "processes": machine.processes,
        "sharding": machine.sharding.value,
        "stages": {
            stage.name: {
                "total": stage.peak.total,
                "peak": stage.peak.name,
                "moments": {moment.name: {"total": moment.total, **moment.terms} for moment in stage.moments},
            }
            for stage in plan.stages
        },
        "fits": check_fits(plan) is None,
        "reason": check_fits(plan),
    }


def check_fits(plan: Plan) -> str | None:
    """One line that says which term is too large and what to change, or None where the plan fits."""
    limit = plan.machine.memory
    if limit is None:
        return None
    stage = plan.peak
    moment = stage.peak
    if moment.total <= limit:
        return _check_vllm(plan.setup, limit)
    name = max((term for term in moment.terms if term != "process"), key=lambda term: moment.terms[term])
    place = "GPU" if plan.machine.cuda else "process"
    return (
        f"{stage.name} needs {moment.total / GIB:.1f} GiB per {place} and there are {limit / GIB:.1f}: "
        f"{name} take{'s' if name in ('policy', 'optimizer', 'KV cache', 'vLLM') else ''} "
        f"{moment.terms[name] / GIB:.1f} GiB; {_remedy(name, plan, stage)}"
    )


def _check_vllm(setup: Setup, limit: float) -> str | None:
    """A colocated vLLM keeps weights of its own, in half precision, and at least one sequence's cache in its share."""
    if not setup.vllm:
        return None
    weights = memory.weight_bytes(setup.architecture, 2) / setup.vllm_parallel
    need = weights + memory.cache_bytes(setup.architecture, 2, 1, setup.vllm_length) / setup.vllm_parallel
    share = setup.vllm * limit
    if need <= share:
        return None
    return (
        f"vLLM's share is {share / GIB:.1f} GiB, and its own half-precision weights take {weights / GIB:.1f}: "
        f"raise dpr_vllm_gpu_memory_utilization to {math.ceil(100 * need / limit) / 100:.2f}, or set "
        "dpr_vllm_mode: server"
    )


def _remedy(term: str, plan: Plan, stage: Stage) -> str:
    setup, prefix = plan.setup, "sft" if stage.name == "SFT" else "dpr"
    batch = f"lower {prefix}_per_device_train_batch_size (and raise {prefix}_gradient_accumulation_steps)"
    training = setup.sft if stage.name == "SFT" else setup.dpr
    adapters = "set use_peft: true"
    several = "shard it over more GPUs (accelerate_config: recipes/accelerate/fsdp2.yaml)"
    if term in ("optimizer", "gradients"):
        return f"{adapters}, or {several}" if setup.adapter is None else several
    if term == "policy":
        return f"set dtype: bfloat16, or {several}" if setup.weights > 2 and not setup.four_bit else several
    if term == "frozen models":
        return f"{adapters}: adapters share one base" if setup.adapter is None else "choose a smaller model or dtype"
    if term == "activations":
        return batch if training.checkpointing else f"set {prefix}_gradient_checkpointing: true, or {batch}"
    if term == "KV cache":
        return "lower max_completion_length or num_generations"
    if term == "vLLM":
        return "lower dpr_vllm_gpu_memory_utilization, or set dpr_vllm_enable_sleep_mode: true"
    return batch
