"""The methods of an experiment: each trains a policy from the SFT model, or says how to decode from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from densepath.experiments.cell import Cell
from densepath.experiments.imitation import dft, extrapolate, gsil, spin
from densepath.pipeline.selection import chosen
from densepath.pipeline.training import train_continued_sft, train_dpr

Outcome = dict[str, Any]


def dpr(cell: Cell) -> Outcome | None:
    """DPR, or one of its relatives by `dpr_*` keys; None where `reference: auto` found that none helps."""
    reference, beta = cell.arguments.reference, cell.arguments.beta
    if "auto" in (reference, beta):
        found = chosen(cell.source)
        if found is None:
            return None
        reference, beta = found.reference, str(found.beta)
    outcome = train_dpr(cell, reference=reference, beta=float(beta))
    return {"samples": outcome.pop("completions"), "demonstrations": 0, **outcome}


def continued_sft(cell: Cell, like: Mapping[str, Any] | None = None) -> Outcome:
    """SFT that goes on, with as many samples as DPR samples, or the FLOPs or seconds of another cell.

    Args:
        cell: the cell.
        like: outcome of the cell whose FLOPs or seconds are matched.
    """
    sft = cell.source.outcome("sft")
    steps = cell.samples / cell.demonstrations_per_step
    if cell.arguments.budget != "samples":
        assert like is not None
        steps = like[cell.arguments.budget] / (sft[cell.arguments.budget] / sft["steps"])
    outcome = train_continued_sft(cell, steps=max(1, round(steps)))
    return {"samples": 0, **outcome}


TRAINED: Mapping[str, Callable[[Cell], Outcome | None]] = {
    "dpr": dpr,
    "dft": dft,
    "spin": spin,
    "gsil": gsil,
    "extrapolation": extrapolate,
}
"""Methods that train, but for `continued_sft`, which may need another cell's outcome."""
