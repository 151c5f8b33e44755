"""A plan as a terminal table of 80 columns and as JSON, and whether it fits: one line that says what to change."""

from __future__ import annotations

import math
from typing import Any

from rich.text import Text

from densepath.planning.plan import GIB, TERMS, Plan, peak
from densepath.terminal import Table, plain_table

SHOWN = 0.005 * GIB
"""Less than this rounds to nothing and is shown as a dash."""
ADAPTERS, SHARD = "set use_peft: true", "shard it over more GPUs (accelerate_config: recipes/accelerate/fsdp2.yaml)"
SMALLER = "choose a smaller model"
BATCH = "lower {0}_per_device_train_batch_size (and raise {0}_gradient_accumulation_steps)"
REMEDIES = {
    "policy": ("set dtype: bfloat16", "set load_in_4bit: true", SHARD),
    "frozen models": (ADAPTERS, "set dtype: bfloat16", "set load_in_4bit: true", SMALLER),
    "gradients": (ADAPTERS, SHARD),
    "optimizer": (ADAPTERS, SHARD),
    "activations": ("set {0}_gradient_checkpointing: true", BATCH),
    "KV cache": ("lower max_completion_length or num_generations",),
    "vLLM": ("set dpr_vllm_enable_sleep_mode: true", "lower dpr_vllm_gpu_memory_utilization"),
}
"""What makes a term smaller; {0} is the prefix of the stage's keys. All others: a smaller batch."""


def headline(plan: Plan) -> str:
    """The model, what is trained of it, and where."""
    machine = plan.machine
    where = "one GPU" if machine.cuda else "one CPU"
    if machine.processes > 1:
        where = f"{machine.processes} {'GPUs' if machine.cuda else 'processes on CPUs'}, {machine.sharding}"
    there = "" if machine.memory is None else f" of {machine.memory / GIB:.1f} GiB"
    return f"{plan.model.name}: {plan.model.parameters:,} parameters, {plan.trained:,} trained; {where}{there}"


def verdict(plan: Plan) -> str:
    """Whether it fits, with the room that is left."""
    limit, stage, need = plan.machine.memory, plan.largest, plan.need(plan.largest)
    if limit is None:
        return f"needs {need / GIB:.1f} GiB ({stage}); give gpu_memory to compare it with"
    if need > limit:
        return f"does not fit: {stage} needs {need / GIB:.1f} GiB"
    return f"fits: {stage} needs most, and leaves {(limit - need) / GIB:.1f} GiB"


def plan_table(plan: Plan) -> Table:
    """Terms in rows, stages at their largest moment in columns, GiB per process."""
    table = plain_table()
    table.add_column("GiB", no_wrap=True)
    for stage in plan.stages:
        table.add_column(Text(stage), justify="right", no_wrap=True)
    peaks = [peak(moments) for moments in plan.stages.values()]
    for term in TERMS:
        values = [terms.get(term, 0.0) for _, terms in peaks]
        if max(values) >= SHOWN:
            table.add_row(term, *(f"{value / GIB:.2f}" if value >= SHOWN else "-" for value in values))
    table.add_row("total", *(f"{plan.need(stage) / GIB:.2f}" for stage in plan.stages))
    table.add_row("when", *(moment for moment, _ in peaks))
    return table


def plan_json(plan: Plan) -> dict[str, Any]:
    """Everything that the table is made of; bytes."""
    machine, reason = plan.machine, check_fits(plan)
    stages = {
        stage: {
            "total": plan.need(stage),
            "peak": peak(moments)[0],
            "moments": {moment: {"total": sum(terms.values()), **terms} for moment, terms in moments.items()},
        }
        for stage, moments in plan.stages.items()
    }
    return {
        "model": plan.model.name,
        "parameters": plan.model.parameters,
        "trained_parameters": plan.trained,
        "device": "cuda" if machine.cuda else "cpu",
        "memory": machine.memory,
        "processes": machine.processes,
        "sharding": machine.sharding,
        "stages": stages,
        "fits": reason is None,
        "reason": reason,
    }


def check_fits(plan: Plan) -> str | None:
    """One line that says which term is too large and what to change, or None where the plan fits."""
    limit, stage = plan.machine.memory, plan.largest
    if limit is None:
        return None
    if plan.need(stage) > limit:
        terms = {term: value for term, value in peak(plan.stages[stage])[1].items() if term != "process"}
        name = max(terms, key=lambda term: terms[term])
        prefix = "sft" if stage == "SFT" else "dpr"
        remedies = [remedy.format(prefix) for remedy in REMEDIES.get(name, (BATCH,))]
        left = [each for each in remedies if each not in plan.done] or [SMALLER]
        place = "GPU" if plan.machine.cuda else "process"
        takes = "take" if name.endswith("s") else "takes"
        return (
            f"{stage} needs {plan.need(stage) / GIB:.1f} GiB per {place} and there are {limit / GIB:.1f}: {name} "
            f"{takes} {terms[name] / GIB:.1f} GiB; {', or '.join(left)}"
        )
    if plan.vllm_needs > plan.vllm * limit:
        return (
            f"vLLM's share is {plan.vllm * limit / GIB:.1f} GiB, and its own half-precision weights and one sequence "
            f"take {plan.vllm_needs / GIB:.1f}: raise dpr_vllm_gpu_memory_utilization to "
            f"{math.ceil(100 * plan.vllm_needs / limit) / 100:.2f}, or set dpr_vllm_mode: server"
        )
    return None
