"""The record of a finished grid: every arm's figures, compared; a run and an experiment write the same one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from densepath.experiments.results import assemble
from densepath.pipeline.grid import Grid
from densepath.records.arm import Arm


def grid_record(grid: Grid, info: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a grid, as JSON types (`results.json`).

    Args:
        grid: its cells are read from disk.
        info: what is told beside the figures: date, versions, command.
    """
    metric = grid.settings[0].arguments.verifier or "nll"
    names = [setting.name for setting in grid.settings]
    record = assemble(grid.results(), _arms(grid), names, metric=metric, info={**info, "seeds": list(grid.seeds)})
    return {**record, "sweeps": grid.sweeps()}


def _arms(grid: Grid) -> list[Arm]:
    """Every arm of any setting, and the settings that it belongs to."""
    arms = {plan.name: plan.arm for setting in grid.settings for plan in setting.methods.values()}
    return [
        Arm(name, arm.label, arm.control, tuple(s.name for s in grid.settings if name in s.methods))
        for name, arm in arms.items()
    ]
