"""What to be wary of: computed from the numbers, never from hope."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.records.arm import BASE
from densepath.records.judged import PositionBias
from densepath.records.results import ArmRow
from densepath.report.records import Curve
from densepath.report.words import share

KL_WATCH = 1.5
"""Nats per completion: most collapses of the prototype came above it (one came at 0.4). Ours."""

NLL_WATCH = 0.1
"""Rise of held-out NLL in nats per token. Ours: it flags, it does not judge."""

GOES_BY_PLACE = "The judge goes by the place in which an answer stands: its figures say nothing"
"""The headline where `PositionBias.decides`."""


def place_warning(position: PositionBias | None, where: str) -> str | None:
    """That a judge goes by the place in which an answer is shown; None where it does not, or that is not known.

    Args:
        position: of the judge.
        where: the prompts or pairs that it was measured at, in words.
    """
    if position is None or not (position.leans or position.decides):
        return None
    share_of = share(position.follows_place.mean)
    if not position.leans:
        return f"The judge goes by the place in which an answer stands at {share_of} of {where}."
    favoured = "first" if position.first_place.mean > 0.5 else "second"
    return f"The judge favours the answer shown {favoured}: at {share_of} of {where} it goes by the place."


def curve_alarms(curves: Sequence[Curve]) -> list[str]:
    """Signs that came with failed runs. Their absence proves nothing, and a rising reward is not among them."""
    found = []
    for curve in curves:
        known = [value for value in curve.values if value is not None]
        if len(known) > 1 and curve.metric == "kl_sequence" and known[-1] > KL_WATCH:
            found.append(
                f"{curve.stage}: KL to SFT ended at {known[-1]:.2f} nats per completion; "
                f"most collapses came above {KL_WATCH}."
            )
    return found


def nll_alarms(rows: Sequence[ArmRow]) -> list[str]:
    """Arms that moved away from the demonstrations, in one line: a health check, and no verdict.

    Args:
        rows: of a setting of `results.json`.
    """
    nll = {row.method: (row.label, row.nll) for row in rows if row.nll is not None and row.method != BASE}
    if "sft" not in nll:
        return []
    _, base = nll["sft"]
    above = ", ".join(f"{label} {value:.3f}" for label, value in nll.values() if value > base + NLL_WATCH)
    if not above:
        return []
    return [
        f"Health check, no verdict: the NLL of held-out demonstrations is {base:.3f} nats per token for SFT, "
        f"{above}. It favours continued SFT; what leaves the demonstrations' errors behind raises it too."
    ]
