"""What to be wary of: computed from the numbers, never from hope."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.records.arm import BASE
from densepath.records.results import ArmRow
from densepath.report.records import Curve

KL_WATCH = 1.5
"""Nats per completion: most collapses of the prototype came above it (one came at 0.4). Ours."""

NLL_WATCH = 0.1
"""Rise of held-out NLL in nats per token. Ours: it flags, it does not judge."""


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
