"""Collects a statement's comparisons over its instances and keeps the largest value of each."""

from __future__ import annotations

import math

from torch import Tensor

from densepath.records.theory import EQUALITY_TOLERANCE, Z_LIMIT, Check, Kind

FLOOR = 1e-3
"""What is said to differ must do so by this on one instance at least: one counterexample refutes an equality.
Where none of few random ones does, `runner` looks at a sure one."""


class Tally:
    """The largest value of each named check so far; a NaN stays."""

    def __init__(self) -> None:
        self._largest: dict[str, Check] = {}

    def equal(self, name: str, left: Tensor, right: Tensor) -> None:
        """Two tensors are the same but for rounding."""
        if left.shape != right.shape:
            raise ValueError(f"{name}: shapes {tuple(left.shape)} and {tuple(right.shape)} differ")
        self._keep(name, Kind.EQUALITY, _largest((left - right).abs()), EQUALITY_TOLERANCE)

    def bounded(self, name: str, values: Tensor, limit: float) -> None:
        """No value exceeds the limit."""
        self._keep(name, Kind.BOUND, _largest(values), limit)

    def differs(self, name: str, difference: Tensor | float, floor: float = FLOOR) -> None:
        """The two sides differ: on some instance by at least the floor."""
        self._keep(name, Kind.DIFFERS, float(difference), floor)

    def sampled(self, name: str, z_scores: Tensor) -> None:
        """A sampled mean agrees with the exact one within its confidence interval."""
        self._keep(name, Kind.SAMPLED, _largest(z_scores.abs()), Z_LIMIT)

    def value(self, name: str) -> float:
        """The largest value so far of that check."""
        return self._largest[name].value

    def checks(self) -> tuple[Check, ...]:
        """All of them, in the order of their first appearance."""
        return tuple(self._largest.values())

    def _keep(self, name: str, kind: Kind, value: float, limit: float) -> None:
        before = self._largest.get(name)
        if before is None or math.isnan(value) or value > before.value:
            self._largest[name] = Check(name, kind, value, limit)


def _largest(values: Tensor) -> float:
    """Largest entry; NaN if there is one."""
    return float(values.detach().max())
