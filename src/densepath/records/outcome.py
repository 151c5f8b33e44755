"""What a training came to."""

from __future__ import annotations

from dataclasses import dataclass

from densepath.records.arm import Budget


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    Attributes:
        budget: what it spent; of a method, beyond SFT.
        steps: of its optimizer.
    """

    budget: Budget = Budget()
    steps: int = 0
