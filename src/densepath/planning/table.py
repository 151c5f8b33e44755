"""A plan as a terminal table of 80 columns, and as JSON."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from densepath.planning.fits import check_fits
from densepath.planning.memory import GIB
from densepath.planning.plan import TERMS, Plan
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
        f"{plan.trained:,} trained; {many}{there}"
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
        "trained_parameters": plan.trained,
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
